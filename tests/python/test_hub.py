"""Models of the Hub: from the server that stands for it, which `cargo build --example hub_server` builds."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import mergeforge
import pytest
from conftest import ROOT, TIES, digests, left, read, tensors, write

SERVER = ROOT / "target" / "debug" / "examples" / "hub_server"

CONFIG = TIES.format(base="org/base", a="org/a", b="org/b")


class Hub:
    """The server, which does what a line says and answers with JSON."""

    def __init__(self, served: Path) -> None:
        assert SERVER.is_file(), f"{SERVER} is missing: cargo build --example hub_server"
        self.process = subprocess.Popen([SERVER, served], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.endpoint = self._line()

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ask(self, words: str) -> dict[str, object]:
        assert self.process.stdin is not None
        print(words, file=self.process.stdin, flush=True)
        answer: dict[str, object] = json.loads(self._line())
        assert "error" not in answer, answer
        return answer

    def requests(self) -> list[object]:
        """What it was asked."""
        requests = self.ask("counts")["requests"]
        assert isinstance(requests, list)
        return requests


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub with three models, and an empty cache."""
    served = tmp_path / "served"
    (served / "org").mkdir(parents=True)
    for seed, name in enumerate(["base", "a", "b"]):
        write(served / "org" / name, tensors(seed))
        shutil.copy(ROOT / "examples" / "models" / "base" / "config.json", served / "org" / name)
    hub = Hub(served)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    for name in ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"]:
        monkeypatch.delenv(name, raising=False)
    yield hub
    hub.process.kill()
    hub.process.wait()
    for pipe in [hub.process.stdin, hub.process.stdout]:
        assert pipe is not None
        pipe.close()


@pytest.fixture
def expected(tmp_path: Path, hub: Hub) -> str:
    """What the same models give as folders."""
    folders = {name: str(tmp_path / "served" / "org" / name) for name in ["base", "a", "b"]}
    return digests(mergeforge.merge(TIES.format(**folders), tmp_path / "expected").manifest)


def test_models_are_fetched_and_found_offline(hub: Hub, expected: str, tmp_path: Path) -> None:
    reported: list[tuple[int, int]] = []
    planned = mergeforge.plan(CONFIG, out=tmp_path / "out")
    assert len(planned.tensors) == 3
    assert not list((tmp_path / "cache").rglob("*.safetensors")), "a plan fetches no weights"
    merged = mergeforge.merge(CONFIG, tmp_path / "out", progress=lambda done, total: reported.append((done, total)))
    assert digests(merged.manifest) == expected
    # Bytes that are fetched come before those that are written.
    weights = sum(path.stat().st_size for path in (tmp_path / "served").rglob("*.safetensors"))
    assert reported[-1][0] == reported[-1][1] > weights
    hub.ask("forget")
    assert digests(mergeforge.merge(CONFIG, tmp_path / "again", offline=True).manifest) == expected
    assert hub.requests() == []


def test_a_stream_keeps_no_weights(hub: Hub, expected: str, tmp_path: Path) -> None:
    assert digests(mergeforge.merge(CONFIG, tmp_path / "out", stream=True).manifest) == expected
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_a_model_of_the_hub_is_merged_with_tensors_in_memory(hub: Hub, expected: str, tmp_path: Path) -> None:
    merged = mergeforge.merge_state_dicts(CONFIG, {"org/a": tensors(1), "org/b": tensors(2)})
    assert not list((tmp_path / "cache" / "models--org--a").rglob("*.safetensors")), "it was given"
    mergeforge.merge(CONFIG, tmp_path / "out")
    same = read(tmp_path / "out")
    assert all(merged[name].equal(same[name]) for name in merged) and merged.keys() == same.keys()


def test_refusals_of_the_hub_are_exceptions(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(mergeforge.ConfigError) as caught:
        mergeforge.merge(CONFIG.replace("org/b", "org/none"), tmp_path / "out")
    assert "org/none" in caught.value.message and caught.value.hint
    hub.ask("limit org/b gated")
    with pytest.raises(mergeforge.ConfigError) as caught:
        mergeforge.merge(CONFIG, tmp_path / "out")
    assert "org/b" in caught.value.message and "is gated" in caught.value.message and "token" in str(caught.value.hint)
    with pytest.raises(mergeforge.Error, match="model \"org/b\" not found"):
        mergeforge.merge(CONFIG, tmp_path / "out", offline=True)
    assert left(tmp_path) == []


def test_a_hub_that_is_out_of_reach_is_an_exception(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(mergeforge.NetworkError) as caught:
        mergeforge.plan(CONFIG)
    assert caught.value.exit_code == 6 and "127.0.0.1:9" in caught.value.message


def test_ctrl_c_ends_a_plan_that_waits_for_the_hub(hub: Hub) -> None:
    hub.ask("fault /org/base 1000 retry-after 60")
    threading.Timer(0.5, signal.raise_signal, [signal.SIGINT]).start()
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        mergeforge.plan(CONFIG)
    assert time.monotonic() - begun < 10
    # What was stopped then does not stop what comes later.
    hub.ask("heal")
    assert len(mergeforge.plan(CONFIG).tensors) == 3


def test_who_stops_does_not_stop_others(hub: Hub, expected: str, tmp_path: Path) -> None:
    """An exception in one thread's `progress` while another thread waits for the Hub."""
    outcome: list[object] = []

    def merge() -> None:
        try:
            outcome.append(digests(mergeforge.merge(CONFIG, tmp_path / "out").manifest))
        except BaseException as why:
            outcome.append(why)

    def stop(done: int, total: int) -> None:
        raise LookupError

    hub.ask("fault /org/base 1 retry-after 2")
    thread = threading.Thread(target=merge)
    thread.start()
    time.sleep(0.5)
    folders = {name: str(tmp_path / "served" / "org" / name) for name in ["base", "a", "b"]}
    with pytest.raises(LookupError):
        mergeforge.merge(TIES.format(**folders), tmp_path / "other", progress=stop)
    thread.join()
    assert outcome == [expected]

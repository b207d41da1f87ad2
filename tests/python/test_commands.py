"""The programs that are installed: the command line, and mergekit's commands."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from conftest import ROOT, TIES, left, program, run, tensors, write

MERGEKIT = ["mergeforge-mergekit-yaml", "mergeforge-mergekit-multi", "mergeforge-mergekit-moe", "mergeforge-mergekit-extract-lora"]


def test_the_programs_are_there_and_mergekits_own_names_are_free() -> None:
    installed = {Path(name).stem for name in os.listdir(sysconfig.get_path("scripts"))}
    assert {"mergeforge", *MERGEKIT} <= installed
    from importlib.metadata import entry_points

    ours = {entry.name for entry in _scripts(entry_points()) if entry.value.startswith("mergeforge")}
    assert ours == {"mergeforge", *MERGEKIT}


def _scripts(found: object) -> list[object]:
    # A dict before Python 3.10.
    return list(found.select(group="console_scripts") if hasattr(found, "select") else found["console_scripts"])  # type: ignore[index]


@pytest.mark.parametrize("words", [[program("mergeforge")], [sys.executable, "-m", "mergeforge"]], ids=["script", "module"])
def test_the_command_line_has_its_exit_codes(words: list[str], tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    ended = run(*words, "merge", "examples/ties.yml", out)
    assert ended.returncode == 0 and "39 tensors written to" in ended.stderr, ended.stderr
    (tmp_path / "foreign.partial").mkdir()
    (tmp_path / "foreign.partial" / "mine").touch()
    for code, command in [
        (0, ["--help"]),
        (1, ["diff", "examples/models/base", out]),
        (2, ["merge"]),
        (2, ["plan", "no/such.yml"]),
        (2, ["merge", "examples/ties.yml", out]),
        (4, ["merge", "examples/ties.yml", str(tmp_path / "foreign")]),
        (5, ["merge", "examples/ties.yml", str(tmp_path / "other"), "--device", "cuda:77"]),
    ]:
        ended = run(*words, *command)
        assert ended.returncode == code, (command, ended.stderr)
    weights = tmp_path / "out" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert run(*words, "info", out).returncode == 3
    shown = run(*words, "--json", "nonsense")
    assert shown.returncode == 2 and '"kind":"config"' in shown.stderr


def test_words_are_those_of_the_shell(tmp_path: Path) -> None:
    """Names that are no text in UTF-8 too."""
    name = os.fsencode(tmp_path) + b"/\xff.yml"
    with open(name, "wb") as file:
        file.write((ROOT / "examples" / "ties.yml").read_bytes())
    assert run(program("mergeforge"), "plan", os.fsdecode(name)).returncode == 0


@pytest.fixture
def long_merge(tmp_path: Path) -> list[str]:
    """The words of a merge that takes a second or more."""
    models = {name: write(tmp_path / name, tensors(seed, elements=12_000_000)) for seed, name in enumerate(["base", "a", "b"])}
    config = tmp_path / "config.yml"
    config.write_text(TIES.format(**models))
    return [program("mergeforge"), "merge", str(config), str(tmp_path / "out"), "--threads", "1"]


def signalled(words: list[str], number: signal.Signals, ignored: bool = False) -> tuple[int, str]:
    """How a merge ends that gets a signal once it has begun, and what it says from then on."""

    def prepare() -> None:
        signal.signal(number, signal.SIG_IGN if ignored else signal.SIG_DFL)

    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, cwd=ROOT, preexec_fn=prepare) as child:
        assert child.stderr is not None
        # What it is about to do is said first.
        while "to write; reads" not in (line := child.stderr.readline()):
            assert line, "it has ended"
        child.send_signal(number)
        _, said = child.communicate(timeout=60)
    return child.returncode, said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_are_those_of_the_program(number: signal.Signals, long_merge: list[str], tmp_path: Path) -> None:
    code, said = signalled(long_merge, number)
    assert code == 130 and "interrupted" in said and "Traceback" not in said, said
    assert left(tmp_path) == []


def test_a_signal_that_was_ignored_stays_ignored(long_merge: list[str], tmp_path: Path) -> None:
    code, said = signalled(long_merge, signal.SIGINT, ignored=True)
    assert code == 0 and left(tmp_path) == ["out"], said


@pytest.mark.parametrize("words", [[program("mergeforge")], [sys.executable, "-m", "mergeforge"]], ids=["script", "module"])
def test_a_bench_starts_this_program_again(words: list[str], tmp_path: Path) -> None:
    flags = ["--shape", "tiny", "--repeat", "1", "--dir", str(tmp_path), "--json", "--device", "cpu"]
    ended = run(*words, "bench", "merge", *flags)
    assert ended.returncode == 0 and '"method"' in ended.stdout, ended.stderr


PASTED = """
    config.yml out --cuda --lazy-unpickle --allow-crimes
    config.yml ./out --copy-tokenizer --allow-crimes --out-shard-size 1B --lazy-unpickle
    config.yml out --cuda --low-cpu-memory --trust-remote-code --write-model-card --quiet
    --no-cuda --out-shard-size 5B --random-seed 42 config.yml out --async-write --write-threads 2 --num-threads 1 -v
    config.yml out --multi-gpu --gpu-rich --read-to-gpu --clone-tensors --safe-serialization --no-copy-tokenizer
    config.yml out --transformers-cache /tmp/cache --lora-merge-cache /tmp/lora --lora-merge-dtype bfloat16 --device auto
    --verbose config.yml out --no-lazy-unpickle --no-allow-crimes --no-trust-remote-code
"""


@pytest.mark.parametrize("pasted", [line.strip() for line in PASTED.strip().splitlines()])
def test_mergekits_command_lines_are_taken_as_they_are(pasted: str, tmp_path: Path) -> None:
    models = {name: write(tmp_path / name, tensors(seed)) for seed, name in enumerate(["base", "a", "b"])}
    (tmp_path / "config.yml").write_text(TIES.format(**models))
    ended = run(program("mergeforge-mergekit-yaml"), *shlex.split(pasted), cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_the_other_commands_of_mergekit(tmp_path: Path) -> None:
    documents = tmp_path / "documents.yml"
    first = (ROOT / "examples" / "linear.yml").read_text() + "\nname: first\n"
    documents.write_text(first + "---\n" + (ROOT / "examples" / "slerp.yml").read_text().replace("examples/models/chat", "first"))
    multi = run(program(MERGEKIT[1]), str(documents), "-I", str(tmp_path / "kept"), "--out-path", str(tmp_path / "result"))
    assert multi.returncode == 0 and (tmp_path / "result" / "config.json").is_file(), multi.stderr
    moe = tmp_path / "moe.yml"
    moe.write_text(
        "base_model: examples/models/base\ngate_mode: random\nexperts:\n"
        "  - {source_model: examples/models/chat, positive_prompts: []}\n"
        "  - {source_model: examples/models/medical, positive_prompts: []}\n"
    )
    ended = run(program(MERGEKIT[2]), str(moe), str(tmp_path / "mixture"), "--cuda", "--lazy-unpickle")
    assert ended.returncode == 0 and (tmp_path / "mixture" / "config.json").is_file(), ended.stderr
    flags = ["--model", "examples/models/chat", "--base-model", "examples/models/base", "--max-rank", "4"]
    ended = run(program(MERGEKIT[3]), *flags, "--out-path", str(tmp_path / "lora"), "--cuda")
    assert ended.returncode == 0 and (tmp_path / "lora" / "adapter_config.json").is_file(), ended.stderr

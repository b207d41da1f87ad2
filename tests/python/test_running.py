"""While a merge runs: progress, Ctrl-C, exceptions, and other threads."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import mergeforge
import pytest
from conftest import TIES, digests, left, tensors, write

# Elements of a tensor whose merge takes long enough to be met in the middle.
MANY = 20_000_000


@pytest.fixture
def long_merge(tmp_path: Path) -> str:
    """A config whose merge takes a second or more."""
    models = {name: tensors(seed, elements=MANY) for seed, name in enumerate(["base", "a", "b"])}
    return TIES.format(**{name: write(tmp_path / name, model) for name, model in models.items()})


def test_progress_counts_the_bytes_that_are_written(ties: str, tmp_path: Path) -> None:
    reported: list[tuple[int, int]] = []
    mergeforge.merge(ties, tmp_path / "out", progress=lambda done, total: reported.append((done, total)))
    total = sum(tensor.nbytes for tensor in tensors(0).values())
    assert reported[-1] == (total, total)
    assert reported == sorted(set(reported)) and {of for _, of in reported} == {total}


def test_progress_is_told_in_the_middle_by_the_thread_that_merges(long_merge: str, tmp_path: Path) -> None:
    reported: list[int] = []
    threads: set[int] = set()

    def progress(done: int, total: int) -> None:
        reported.append(done)
        threads.add(threading.get_ident())

    mergeforge.merge(long_merge, tmp_path / "out", progress=progress, threads=1)
    assert len(reported) > 3 and reported == sorted(reported) and threads == {threading.get_ident()}


def test_an_exception_of_progress_stops_the_merge(long_merge: str, tmp_path: Path) -> None:
    def progress(done: int, total: int) -> None:
        assert done < total, "it is reported too late"
        raise LookupError(done)

    with pytest.raises(LookupError):
        mergeforge.merge(long_merge, tmp_path / "out", progress=progress, threads=1)
    assert left(tmp_path) == []


# Merges in a process of its own.
CHILD = """
import sys, mergeforge
config, out = sys.argv[1:]
try:
    mergeforge.merge(config, out, threads=1)
except KeyboardInterrupt as why:
    print("interrupted", why, flush=True)
    sys.exit(77)
"""


def test_ctrl_c_ends_a_merge_and_leaves_nothing(long_merge: str, tmp_path: Path) -> None:
    (tmp_path / "config.yml").write_text(long_merge)
    words = [sys.executable, "-c", CHILD, str(tmp_path / "config.yml"), str(tmp_path / "out")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as child:
        while left(tmp_path) != ["out.partial"]:
            assert child.poll() is None, "it has ended"
            time.sleep(0.005)
        # Its notes are passed on by then: no Python code runs any more, and whether a signal came has to be asked.
        time.sleep(0.12)
        assert left(tmp_path) == ["out.partial"], "it has ended"
        sent = time.monotonic()
        child.send_signal(signal.SIGINT)
        rest, _ = child.communicate(timeout=60)
        took = time.monotonic() - sent
    assert child.returncode == 77 and rest.splitlines()[-1].startswith("interrupted"), rest
    assert left(tmp_path) == [] and took < 5


def test_ctrl_c_ends_a_merge_in_memory() -> None:
    models = {name: tensors(seed, elements=MANY) for seed, name in enumerate(["base", "a", "b"])}
    config = TIES.format(base="base", a="a", b="b")
    before = signal.getsignal(signal.SIGINT)
    far: list[float] = []

    def progress(done: int, total: int) -> None:
        far.append(done / total)
        if len(far) == 1:
            # Its handler runs in the main thread, which is the one that waits here.
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        mergeforge.merge_state_dicts(config, models, threads=1, progress=progress)
    assert len(far) == 1 and far[0] < 1, far
    assert signal.getsignal(signal.SIGINT) is before


def test_other_threads_run_meanwhile(long_merge: str, tmp_path: Path) -> None:
    counted, over = 0, False

    def count() -> None:
        nonlocal counted
        while not over:
            counted += 1

    def rate(work: Callable[[], object]) -> float:
        begun, before = time.monotonic(), counted
        work()
        return (counted - before) / (time.monotonic() - begun)

    thread = threading.Thread(target=count)
    thread.start()
    try:
        alone = rate(lambda: time.sleep(0.5))
        beside = rate(lambda: mergeforge.merge(long_merge, tmp_path / "out", threads=1))
    finally:
        over = True
        thread.join()
    # While the lock is held nobody counts, but for moments at the beginning and the end.
    assert beside > 0.2 * alone, f"{beside:.0f} a second beside a merge, {alone:.0f} beside nothing"


def test_merges_in_threads_do_not_meet(ties: str, tmp_path: Path) -> None:
    typo = ties.replace("density: 0.7", "densty: 0.7, density: 0.7")
    expected = digests(mergeforge.merge(ties, tmp_path / "alone").manifest)
    found: dict[int, object] = {}
    barrier = threading.Barrier(8)

    def merge(number: int) -> None:
        barrier.wait()
        try:
            if number % 4 == 0:
                found[number] = mergeforge.plan(typo).warnings
            elif number % 4 == 1:
                found[number] = mergeforge.merge(ties.replace("ties", "tise"), tmp_path / str(number))
            else:
                found[number] = digests(mergeforge.merge(ties, tmp_path / str(number)).manifest)
        except mergeforge.Error as error:
            found[number] = error.hint

    threads = [threading.Thread(target=merge, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(8):
        if number % 4 == 0:
            assert "densty" in str(found[number])
        else:
            assert found[number] == ("did you mean `ties`?" if number % 4 == 1 else expected), number


def test_a_merge_in_a_thread_is_not_the_main_threads(long_merge: str, tmp_path: Path) -> None:
    """Ctrl-C is the main thread's: a merge in another thread goes on."""
    outcome: list[object] = []

    def merge() -> None:
        try:
            outcome.append(mergeforge.merge(long_merge, tmp_path / "out", threads=1))
        except BaseException as why:
            outcome.append(why)

    thread = threading.Thread(target=merge)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        threading.Timer(0.2, signal.raise_signal, [signal.SIGINT]).start()
        thread.join()
    thread.join()
    assert isinstance(outcome[0], mergeforge.Merged)

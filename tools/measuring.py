"""Shared by the tools that measure: programs that are run and timed, the machine, merges and tables."""

import contextlib
import dataclasses
import json
import os
import pathlib
import platform
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from typing import Any

Json = dict[str, Any]

# Of a program's output, what an error shows.
WORDS_KEPT = 6000

# Units of ru_maxrss.
RSS_UNIT_BYTES = 1 if sys.platform == "darwin" else 1024

# mergekit looks for a tokenizer, which synthetic models lack, and must not ask the network for it while it is timed.
MERGEKIT_ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


class Failed(Exception):
    """A program did not do what it should; its last words."""


class Late(Exception):
    """A program was stopped at its time limit."""


@dataclasses.dataclass
class Ran:
    """How a program ended. Its peak memory is at least that of the Python that started it."""

    code: int
    wall_s: float
    cpu_s: float
    peak_bytes: int
    out: str
    err: str

    def words(self) -> str:
        return (self.out + self.err).strip()[-WORDS_KEPT:]


def shown(command: Sequence[Any]) -> str:
    return " ".join(map(str, command))


def run(command: Sequence[Any], limit_s: float | None = None, environment: dict[str, str] | None = None) -> Ran:
    """Runs a program to its end, whatever that is; at the limit, it and all that it started are stopped."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        start = time.perf_counter()
        try:
            child = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=os.environ | (environment or {}),
                start_new_session=True,
            )
        except OSError as error:
            raise Failed(f"{command[0]} cannot be started: {error}") from error
        late = threading.Event()

        def stop() -> None:
            late.set()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)

        timer = threading.Timer(max(limit_s or 0, 0.1), stop)
        if limit_s is not None:
            timer.start()
        try:
            _, status, usage = os.wait4(child.pid, 0)
        except BaseException:
            stop()
            raise
        finally:
            timer.cancel()
        wall_s = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        if late.is_set():
            raise Late(f"stopped after {wall_s:.0f} s: {shown(command)}")
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
    peak_bytes = usage.ru_maxrss * RSS_UNIT_BYTES
    return Ran(child.returncode, wall_s, usage.ru_utime + usage.ru_stime, peak_bytes, *texts)


def succeed(command: Sequence[Any], limit_s: float | None = None, environment: dict[str, str] | None = None) -> Ran:
    """The same for a program that has to succeed."""
    ran = run(command, limit_s, environment)
    if ran.code:
        raise Failed(f"{shown(command)}: exit code {ran.code}\n{ran.words()}")
    return ran


def answer(command: Sequence[Any], limit_s: float | None = None) -> Any:
    """The JSON that a program prints, which has to succeed."""
    ran = succeed(command, limit_s)
    try:
        return json.loads(ran.out)
    except ValueError as error:
        raise Failed(f"{shown(command)}: no JSON ({error})\n{ran.words()}") from error


def models_folder(parent: pathlib.Path, shape: str, layers: int | None) -> pathlib.Path:
    """Where `mergeforge bench merge --dir PARENT` makes the models of a shape, whole or cut down to so many layers."""
    cut = parent / f"{shape}-{layers}-layers-bfloat16-seed-0"
    return cut if layers and cut.is_dir() else parent / f"{shape}-bfloat16-seed-0"


def config_of(method: str, folder: pathlib.Path, models: int = 2) -> str:
    """The merge that `mergeforge bench merge` does with the models of a folder. JSON is YAML."""
    path = {number: str(folder / (f"model-{number}" if number else "base")) for number in range(models + 1)}
    tuned = [{"model": path[number]} for number in range(1, models + 1)]
    config: Json = {"merge_method": method, "models": tuned, "dtype": "bfloat16"}
    if method == "slerp":
        return json.dumps(config | {"base_model": path[1], "parameters": {"t": 0.5}})
    shared = {"nearswap": {"t": 0.001}, "sce": {"select_topk": 0.5}}.get(method)
    without_density = ("linear", "task_arithmetic", "nuslerp", "multislerp")
    without_weight = ("karcher", "model_stock", "sce", "ram", "ramplus_tl", "nearswap", "arcee_fusion")
    for model in tuned if method not in without_weight else []:
        model["parameters"] = {"weight": 1 / models} | ({} if method in without_density else {"density": 0.5})
    base = {} if method in ("linear", "karcher") else {"base_model": path[0]}
    return json.dumps(config | base | ({"parameters": shared} if shared else {}))


def machine() -> Json:
    """The facts that every result needs beside it."""
    return {
        "cpu": processor(),
        "cores": cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()}",
        "load": round(os.getloadavg()[0], 1),
    }


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.machine()


def file_system(folder: pathlib.Path) -> str:
    """The kind of the file system of a folder, which need not be there yet."""
    at, kind = pathlib.Path("/"), "file system unknown"
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/mounts").read_text().splitlines():
            where, found = line.split()[1:3]
            # Mounts may be stacked: the last is the one seen.
            if folder.resolve().is_relative_to(where) and pathlib.Path(where).is_relative_to(at):
                at, kind = pathlib.Path(where), found
    return kind


def memory_folder() -> pathlib.Path:
    """Where files lie in memory, if there is such a place."""
    memory = pathlib.Path("/dev/shm")
    return memory if memory.is_dir() else pathlib.Path(tempfile.gettempdir())


def table(rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; its first row is the head. Columns of figures are aligned to the right."""
    head, *body = rows
    is_figures = [all(re.match(r"[-–(≤\d]|$", row[column]) for row in body) for column in range(len(head))]
    marks = ["--:" if figures else ":--" for figures in is_figures]
    lines = [[cell.replace("|", "\\|") for cell in row] for row in [head, marks, *body]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)

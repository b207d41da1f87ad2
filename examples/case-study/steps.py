"""The work folder: what is finished stays there under a name made of its settings, and is not done again.

A step is built in `NAME.partial` and renamed when it is complete, so whatever has its final name is whole.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Json = dict[str, Any]

# Part of every name: raise it when steps with the same settings have to be done again.
FORMAT = 1


class Failed(Exception):
    """What a user has to know: what went wrong, where, and the way out."""


def digest(settings: Any) -> str:
    return hashlib.sha256(json.dumps([FORMAT, settings], sort_keys=True, default=str).encode()).hexdigest()[:12]


def identity(folder: Path) -> Json:
    """What tells a model that a user named from another: its files with their sizes and times."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in files}


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False, default=str) + "\n", encoding="utf-8")


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


class Work:
    """Finished steps in one folder, which one run at a time may use."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Of all steps that this run needs, in whatever run they were done: on the clock, and of processors.
        self.seconds = self.cpu_seconds = 0.0
        folder.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        with (self.folder / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise Failed(f"{self.folder}: another run is at work there\nhint: wait for it, or name another folder with --work") from None
            # Of a run that was interrupted: nobody else is at work here.
            for left in (*self.folder.glob("*.partial"), *self.folder.glob("*.old")):
                shutil.rmtree(left)
            yield

    def count(self, step: Json) -> None:
        self.seconds += step["seconds"]
        self.cpu_seconds += step["cpu_seconds"]

    def step(self, name: str, settings: Any, make: Callable[[Path], None]) -> Path:
        """The folder that `make` fills for these settings, now or in an earlier run."""
        done = self.folder / f"{name}-{digest(settings)}"
        if done.is_dir():
            say(f"{name}: kept from an earlier run")
            self.count(json.loads((done / "step.json").read_text(encoding="utf-8")))
            return done
        partial = done.with_name(done.name + ".partial")
        partial.mkdir()
        say(f"{name} …")
        clock, processor = time.monotonic(), time.process_time()
        make(partial)
        seconds = {"seconds": round(time.monotonic() - clock, 1), "cpu_seconds": round(time.process_time() - processor, 1)}
        write_json(partial / "step.json", {"name": name, "settings": settings} | seconds)
        for path in partial.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        partial.rename(done)
        self.count(seconds)
        say(f"{name}: {seconds['seconds']} s")
        return done


def need_disk(folder: Path, byte_count: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < byte_count:
        raise Failed(
            f"{folder}: the models of this run take up to {byte_count / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free\n"
            "hint: name a folder on another disk with --work, or use --dtype bfloat16"
        )

#!/usr/bin/env python3
"""Runs mergekit's commands one after another for `any_config.py`, in processes that need not import everything anew.

    VENV/bin/python tools/any_config_mergekit.py

Each line of the input is a JSON object: `command` (yaml, multi or moe), `arguments`, `folder` (to run in), `hub` (the Hugging
Face cache), `log` and `limit_s`. Each answer is one: `code`, which is -9 where the time was up.
"""

import importlib
import json
import os
import pathlib
import signal
import sys
import time
import traceback

COMMANDS = {"yaml": "run_yaml", "multi": "multimerge", "moe": "moe"}


def prepare() -> None:
    """All that a command would import."""
    import torch
    import transformers  # noqa: F401

    torch.set_num_threads(1)
    for module in COMMANDS.values():
        importlib.import_module(f"mergekit.scripts.{module}")


def run_command(job: dict) -> int:
    """In a child: the command, as its own program would run it."""
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(job["folder"])
    use_cache(pathlib.Path(job["hub"]))
    command = importlib.import_module(f"mergekit.scripts.{COMMANDS[job['command']]}").main
    try:
        command(job["arguments"], standalone_mode=False)
        return 0
    except SystemExit as exit:
        return 1 if exit.code else 0
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def use_cache(hub: pathlib.Path) -> None:
    """Takes models from a cache; what mergekit asks the hub itself, which files a model has and whether there is one, is known
    from the cache too."""
    import huggingface_hub
    from huggingface_hub import constants

    def folder_of(name: str) -> pathlib.Path:
        return hub / ("models--" + name.replace("/", "--"))

    def list_files(name: str, *, revision: str | None = None, **_: object) -> list[str]:
        repository = folder_of(name)
        if not repository.is_dir():
            raise FileNotFoundError(f"{name} is no model of the hub")
        ref = repository / "refs" / (revision or "main")
        snapshot = repository / "snapshots" / (ref.read_text() if ref.exists() else str(revision))
        return sorted(path.name for path in snapshot.iterdir())

    constants.HF_HUB_CACHE = constants.HUGGINGFACE_HUB_CACHE = str(hub)
    huggingface_hub.list_repo_files = list_files
    huggingface_hub.repo_exists = lambda name, **_: folder_of(name).is_dir()


def wait(child: int, limit_s: float) -> int:
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -signal.SIGKILL


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    prepare()
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            os._exit(run_command(job))
        print(json.dumps({"code": wait(child, job["limit_s"])}), file=answers, flush=True)


if __name__ == "__main__":
    main()

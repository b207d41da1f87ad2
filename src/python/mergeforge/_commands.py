"""The command line, as the programs that are installed start it."""

from __future__ import annotations

import signal
import sys

from . import _mergeforge


def _run(*command: str) -> int:
    """Runs a command with the arguments of this process, as the program without Python does."""
    # Python's handler would raise an exception when all is over. A signal that was ignored at the start stays ignored.
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    return _mergeforge.run(["mergeforge", *command, *sys.argv[1:]], [sys.executable, "-m", "mergeforge"])


def mergeforge() -> int:
    """`mergeforge`"""
    return _run()


def mergekit_yaml() -> int:
    """`mergekit-yaml`: a merge, with the flags of mergekit."""
    return _run("merge")


def mergekit_multi() -> int:
    """`mergekit-multi`: all merges of a config with several documents."""
    return _run("multi")


def mergekit_moe() -> int:
    """`mergekit-moe`: a mixture of experts."""
    return _run("moe")


def mergekit_extract_lora() -> int:
    """`mergekit-extract-lora`: an adapter from a model and its base."""
    return _run("mergekit-extract-lora")

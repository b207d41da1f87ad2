"""What goes wrong, as exceptions: one class for each kind of error, as the exit codes of the command line tell them apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional, Union

# Kind, message, hint, file, line, column, exit code.
Problem = tuple[str, str, Optional[str], Optional[str], Optional[int], Optional[int], int]


class Error(Exception):
    """Something that mergeforge refuses, or that failed.

    Where several things are wrong, this is the first of them, and `others` has the rest. The text of the exception says all of it.
    """

    message: str
    """What failed and on what, in one line."""
    hint: str | None
    """The way out, where there is one."""
    file: str | None
    """The file that is wrong, if it is one: the config, or a file of a checkpoint."""
    line: int | None
    """The line in the config, from 1."""
    column: int | None
    """The character in that line, from 1."""
    exit_code: int
    """What the command line would end with."""
    others: tuple[Error, ...]
    """What else is wrong."""

    def __init__(
        self,
        message: str,
        hint: str | None = None,
        *,
        file: str | None = None,
        line: int | None = None,
        column: int | None = None,
        exit_code: int = 2,
        others: Sequence[Error] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.file = file
        self.line = line
        self.column = column
        self.exit_code = exit_code
        self.others = tuple(others)

    def __str__(self) -> str:
        hint = "" if self.hint is None else f"\nhint: {self.hint}"
        return "\n".join([self.message + hint, *map(str, self.others)])

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions cross processes (multiprocessing, concurrent.futures), with all that they say.
        return (type(self), (self.message, self.hint), self.__dict__)


class ConfigError(Error, ValueError):
    """The config, an option, or the plan made from them is wrong, or a model is not where the config says. No tensor data was read."""


class InputError(Error):
    """A file of an input is missing, damaged, or changed during the merge."""


class OutputError(Error):
    """The output cannot be written."""


class DeviceError(Error):
    """The GPU or its driver is missing, too old, too small, computes other bits, or failed."""


class NetworkError(Error):
    """The Hub cannot be reached, or does not do as it should."""


class InternalError(Error):
    """A mistake in mergeforge itself."""


class MergeforgeWarning(UserWarning):
    """Something that a merge does and that was probably not meant. `strict=True` makes it an error."""


_KINDS: dict[str, type[Error]] = {
    "config": ConfigError,
    "input": InputError,
    "output": OutputError,
    "device": DeviceError,
    "network": NetworkError,
    # Parts of an output that are not made yet, which no function here asks for.
    "unready": OutputError,
}


def of(problems: Sequence[Problem]) -> Union[Error, KeyboardInterrupt]:
    """The exception for what the program reports, of which there is at least one."""
    kind, message, *_ = problems[0]
    if kind == "interrupted":
        return KeyboardInterrupt(message)
    first, *others = map(_one, problems)
    first.others = tuple(others)
    return first


def broken(message: str) -> Error:
    """The exception for a panic."""
    return InternalError(message, "this is a mistake in mergeforge: please report it, with the config", exit_code=101)


def _one(problem: Problem) -> Error:
    kind, message, hint, file, line, column, exit_code = problem
    return _KINDS[kind](message, hint, file=file, line=line, column=column, exit_code=exit_code)

from collections.abc import Callable, Sequence
from os import PathLike
from typing import Protocol, final

_Said = Callable[[str, str, str | None], object]
_Progress = Callable[[int, int], object]

class _Memory(Protocol):
    @property
    def address(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    @property
    def owner(self) -> object: ...

__all__ = ["PlannedTensors", "flags", "merge", "methods", "plan", "plan_tensors", "read", "run"]

@final
class PlannedTensors:
    def tensors(self) -> list[tuple[str, str, list[int]]]: ...
    def merge(self, rooms: Sequence[_Memory], said: _Said, progress: _Progress | None) -> None: ...

def read(file: str | PathLike[str]) -> tuple[str, str]: ...
def plan_tensors(
    config: tuple[str, str],
    models: Sequence[tuple[str, Sequence[tuple[str, str, Sequence[int], _Memory]]]],
    words: Sequence[str],
    said: _Said,
) -> PlannedTensors: ...
def merge(
    config: tuple[str, str],
    out: str | PathLike[str],
    words: Sequence[str],
    said: _Said,
    progress: _Progress | None,
) -> str: ...
def plan(config: tuple[str, str], words: Sequence[str], said: _Said) -> str: ...
def methods(said: _Said) -> str: ...
def flags() -> list[tuple[str, list[tuple[str, bool]]]]: ...
def run(words: Sequence[str], program: Sequence[str]) -> int: ...

"""A program as users write it: it is not run, its types are checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mergeforge


class Bar:
    """As much of a tqdm bar as is needed."""

    n: int = 0
    total: int | None = None

    def update(self, by: int) -> None:
        self.n += by


def merged(config: Path, out: Path) -> Mapping[str, Any]:
    bar = Bar()

    def progress(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    try:
        result = mergeforge.merge(config, out, progress=progress, device="cpu", threads=2, host_memory="512MiB", trace=out / "t")
    except mergeforge.ConfigError as error:
        place: tuple[str | None, int | None] = (error.file, error.line)
        hints: list[str | None] = [error.hint, *(other.hint for other in error.others)]
        raise SystemExit(f"{place}: {error.message} {hints}") from error
    notes: tuple[str, ...] = result.notes
    assert notes is not None
    return result.manifest


def planned() -> int:
    plan = mergeforge.plan({"merge_method": "linear", "models": []}, out=Path("out"), strict=True)
    shapes: list[tuple[int, ...]] = [tensor.shape for tensor in plan.tensors]
    return plan.bytes + len(shapes) + len(plan.warnings)


class Array:
    """Whatever the tensors are, the result has them too."""

    def __dlpack__(self, *, stream: object = None) -> object:
        raise BufferError


def in_memory(models: Mapping[str, Mapping[str, Array]]) -> dict[str, Array]:
    result = mergeforge.merge_state_dicts("merge_method: linear\n", models, random_seed=1, tensor_union=True)
    summaries: list[Any] = [method["summary"] for method in mergeforge.methods().values()]
    assert summaries
    return result

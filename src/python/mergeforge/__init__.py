"""mergeforge merges large model checkpoints: fast, exact, the same bytes everywhere.

    import mergeforge

    print(mergeforge.plan("ties.yml"))
    mergeforge.merge("ties.yml", "out/ties")

A config is the path of a mergekit YAML, its text, or a dict. Options have the names of the command line's flags.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Protocol, TypeVar, Union

from . import _mergeforge, _tensors
from ._configs import Config, written
from ._errors import ConfigError, DeviceError, Error, InputError, InternalError, MergeforgeWarning, NetworkError, OutputError
from ._options import MergeOptions, PlanOptions, TensorOptions, words
from ._plans import Merged, Plan, PlannedTensor, plan_of

if sys.version_info >= (3, 11):
    from typing import Unpack
elif TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = [
    "Config",
    "ConfigError",
    "DeviceError",
    "Error",
    "InputError",
    "InternalError",
    "MergeOptions",
    "Merged",
    "MergeforgeWarning",
    "NetworkError",
    "OutputError",
    "Plan",
    "PlanOptions",
    "PlannedTensor",
    "Progress",
    "TensorOptions",
    "__version__",
    "merge",
    "merge_state_dicts",
    "methods",
    "plan",
]

__version__ = version("mergeforge")

Progress = Callable[[int, int], object]
"""A function of the bytes downloaded and written so far, and of those to come as far as they are known, called now and then by the
thread that merges."""


class _ByDlpack(Protocol):
    """Tensors of torch, of numpy and of other libraries."""

    def __dlpack__(self, *args: Any, **wishes: Any) -> Any: ...


Tensor = TypeVar("Tensor", bound=_ByDlpack)


class _Listener:
    """Warnings become Python's; notes are kept."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def __call__(self, level: str, message: str, hint: str | None) -> None:
        if level == "warning":
            text = message if hint is None else f"{message} (hint: {hint})"
            # Where the user called: behind this method and the function that is documented.
            warnings.warn(text, MergeforgeWarning, stacklevel=3)
        else:
            self.notes.append(message)


def merge(
    config: Config,
    out: Union[str, os.PathLike[str]],
    *,
    progress: Progress | None = None,
    **options: Unpack[MergeOptions],
) -> Merged:
    """Merges models into the new folder `out`, as a mergekit YAML says.

    The folder appears whole, or not at all: errors, Ctrl-C (KeyboardInterrupt) and exceptions that `progress` raises leave none, unless
    the merge had just ended. What was finished of a large one stays beside it, and the same call goes on from there. The interpreter is
    free meanwhile, and merges may run in several threads.

    Raises:
        Error: one of its subclasses, by what is wrong.
    """
    listener = _Listener()
    given = words("merge", options)
    manifest = _mergeforge.merge(written(config), os.fspath(out), given, listener, progress)
    return Merged(Path(out), tuple(listener.notes), json.loads(manifest))


def plan(config: Config, **options: Unpack[PlanOptions]) -> Plan:
    """What a merge would do, from the config and the checkpoints' headers alone. Its `repr` is a summary.

    Raises:
        Error: one of its subclasses, by what is wrong.
    """
    # A plan has its warnings itself.
    return plan_of(_mergeforge.plan(written(config), words("plan", options), lambda *_: None))


def methods() -> dict[str, dict[str, Any]]:
    """The merge methods by name: summary, formula, paper, and parameters with their defaults."""
    listed = json.loads(_mergeforge.methods(lambda *_: None))
    return {method["name"]: method for method in listed}


def merge_state_dicts(
    config: Config,
    models: Mapping[str, Mapping[str, Tensor]],
    *,
    progress: Progress | None = None,
    **options: Unpack[TensorOptions],
) -> dict[str, Tensor]:
    """Merges tensors in memory, and returns new ones: the bytes that `merge` would write.

    `models` has the tensors of each model by the name that the config gives it. A model that is not there is looked for on the disk and
    on the Hub. Tensors are torch's, numpy's, or any with `__dlpack__`. The result has torch's where one of them is torch's, else numpy's,
    in the processor's memory. Do not change them before the merge has ended.

    Raises:
        Error: one of its subclasses, by what is wrong.
    """
    listener = _Listener()
    given, has_torch = _tensors.seen(models)
    planned = _mergeforge.plan_tensors(written(config), given, words("merge_state_dicts", options), listener)
    tensors = planned.tensors()
    make = _tensors.maker(has_torch, {dtype for _, dtype, _ in tensors})
    made = {name: make(dtype, shape) for name, dtype, shape in tensors}
    planned.merge([memory for _, memory in made.values()], listener, progress)
    return {name: tensor for name, (tensor, _) in made.items()}

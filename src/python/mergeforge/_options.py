"""Options of functions: the flags of the command line, with `_` for `-`."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from typing import Any, TypedDict, Union

from . import _mergeforge

Size = Union[int, str]
"""Bytes, or a text with a unit, such as `"512MiB"` or `"2GB"`."""


class TensorOptions(TypedDict, total=False):
    """Options of a merge, wherever its models are and its result goes. `mergeforge merge --help` says more of each."""

    strict: bool
    """Warnings are errors."""
    allow_crimes: bool
    """Merge models of different architectures too, where names and shapes of their tensors fit."""
    unsafe_truncate_embeddings: bool
    """Cut embeddings of different numbers of rows to the fewest, whatever their tokens are."""
    tensor_intersection: bool
    """Leave out tensors that only some of the models have."""
    tensor_union: bool
    """Merge tensors that only some of the models have from those alone."""
    random_seed: int
    """The seed of random masks, 0 by default."""
    threads: int
    """Worker threads, one per core by default."""
    host_memory: Size
    """Memory for buffers, and on the CPU for inputs held between sweeps."""
    device: str
    """Where to compute: "auto" (a GPU if there is one), "cpu", "cuda", "wgpu", or one of several ("cuda:1")."""
    device_memory: Size
    """The GPU's memory for buffers and inputs held between sweeps."""
    offline: bool
    """Make no connection: take models from folders and the Hugging Face cache alone."""
    stream: bool
    """Read models that are not in the cache straight from the Hub, without keeping them."""
    reads: str
    """How inputs are read: "auto", "mapped", "copied" or "direct"."""


class PlanOptions(TensorOptions, total=False):
    """Options of `plan`."""

    out: Union[str, "os.PathLike[str]"]
    """The folder that the merge would make: whether it is free and its disk large enough is checked."""
    out_shard_size: Size
    """The most tensor data in a shard."""
    i_understand_this_is_not_useful_without_training: bool
    """Where the config is one of a mixture of experts: plan one of equal experts too."""


class MergeOptions(TensorOptions, total=False):
    """Options of `merge`."""

    out_shard_size: Size
    """The most tensor data in a shard: by default an eighth of all, but from 1 GB to 5 GB."""
    intermediate_dir: Union[str, "os.PathLike[str]"]
    """Of a config with several documents: where the results of those with a name are kept."""
    copy_tokenizer: bool
    """Whether the donor's tokenizer and the other files beside its weights are copied, as they are by default."""
    no_copy_tokenizer: bool
    """The same as `copy_tokenizer=False`."""
    write_model_card: bool
    """Whether a README.md is written, as it is by default."""
    no_write_model_card: bool
    """The same as `write_model_card=False`."""
    restart: bool
    """Begin anew, where a merge into the same folder was stopped, in place of going on with it."""
    no_cache: bool
    """Neither use nor keep thresholds that merges of the same models found."""
    hash_inputs: bool
    """Every input file is read whole before the merge, so that the manifest says its SHA-256."""
    trace: Union[str, "os.PathLike[str]"]
    """A file for the work of each thread and of the device over time, in Chrome's trace format."""


_FLAGS = {function: dict(flags) for function, flags in _mergeforge.flags()}


def words(function: str, options: Mapping[str, Any]) -> list[str]:
    """Options as the command line has them. What is None is left out."""
    flags = _FLAGS[function]
    given = []
    for name, value in options.items():
        flag = name.replace("_", "-")
        if flag not in flags or "-" in name:
            known = sorted(flag.replace("-", "_") for flag in flags)
            meant = difflib.get_close_matches(name, known, 1)
            what = f"did you mean {meant[0]!r}?" if meant else f"the options are {', '.join(known)}"
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}: {what}")
        if value is None:
            continue
        if flags[flag]:
            if isinstance(value, bool):
                raise TypeError(f"{function}(): {name} takes a value, not {value}")
            given.append(f"--{flag}={os.fspath(value) if isinstance(value, os.PathLike) else value}")
        elif not isinstance(value, bool):
            raise TypeError(f"{function}(): {name} is True or False, not {value!r}")
        elif value:
            given.append(f"--{flag}")
        elif f"no-{flag}" in flags:
            given.append(f"--no-{flag}")
    return given

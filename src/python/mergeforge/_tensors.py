"""Tensors of torch, of numpy, and of whatever exchanges them by DLPack: where they lie, and new ones like them.

Neither library is imported here before somebody gives tensors of it, and none is needed for anything else.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, Callable, NamedTuple

from ._errors import ConfigError


class Memory(NamedTuple):
    """Memory in one piece."""

    address: int
    bytes: int
    owner: object
    """What holds the memory."""


Tensor = tuple[str, str, Sequence[int], Memory]
"""A tensor: its name, its type as safetensors calls it, its shape, and where it lies."""

# Types of tensors by the names that safetensors gives them: in torch, and in numpy (with the package ml_dtypes, those that numpy lacks).
_TYPES = {
    "BOOL": ("bool", "bool"),
    "U8": ("uint8", "uint8"),
    "I8": ("int8", "int8"),
    "F8_E5M2": ("float8_e5m2", "float8_e5m2"),
    "F8_E4M3": ("float8_e4m3fn", "float8_e4m3fn"),
    "F8_E8M0": ("float8_e8m0fnu", "float8_e8m0fnu"),
    "F8_E4M3FNUZ": ("float8_e4m3fnuz", "float8_e4m3fnuz"),
    "F8_E5M2FNUZ": ("float8_e5m2fnuz", "float8_e5m2fnuz"),
    "I16": ("int16", "int16"),
    "U16": ("uint16", "uint16"),
    "F16": ("float16", "float16"),
    "BF16": ("bfloat16", "bfloat16"),
    "I32": ("int32", "int32"),
    "U32": ("uint32", "uint32"),
    "F32": ("float32", "float32"),
    "C64": ("complex64", "complex64"),
    "F64": ("float64", "float64"),
    "I64": ("int64", "int64"),
    "U64": ("uint64", "uint64"),
}
_OF_TORCH = {f"torch.{torch}": name for name, (torch, _) in _TYPES.items()}
_OF_NUMPY = {numpy: name for name, (_, numpy) in _TYPES.items()}


def seen(models: Mapping[str, Mapping[str, Any]]) -> tuple[list[tuple[str, list[Tensor]]], bool]:
    """The tensors of models where they lie, and whether one of them is torch's.

    What is not contiguous, or lies on a device, is copied; the copy lives as long as its `Memory`.
    """
    has_torch = False
    found = []
    for model, tensors in models.items():
        if not isinstance(model, str):
            raise ConfigError(f"the name {model!r} of a model is {type(model).__name__}, not a text")
        if not isinstance(tensors, Mapping):
            hint = "give model.state_dict()" if hasattr(tensors, "state_dict") else "give a dict of tensors by their names"
            raise ConfigError(f"the tensors of {model} are {type(tensors).__name__}, not a dict", hint)
        of_model = []
        for name, tensor in tensors.items():
            if not isinstance(name, str):
                raise ConfigError(f"{model}: the name {name!r} of a tensor is {type(name).__name__}, not a text")
            where = f"{model}: tensor {name}"
            has_torch |= _is_of("torch", "Tensor", tensor)
            of_model.append((name, *_seen(where, tensor)))
        found.append((model, of_model))
    return found, has_torch


def _library(name: str) -> Any:
    """A library, if this process has imported it: who gives its tensors has."""
    return sys.modules.get(name)


def _is_of(library: str, name: str, tensor: Any) -> bool:
    """Whether it is of a type of a library."""
    found = _library(library)
    return found is not None and isinstance(tensor, getattr(found, name))


def _seen(where: str, tensor: Any) -> tuple[str, Sequence[int], Memory]:
    """The type of a tensor, its shape, and where it lies."""
    if _is_of("torch", "Tensor", tensor):
        return _of_torch(where, tensor)
    if _is_of("numpy", "ndarray", tensor) or _is_of("numpy", "generic", tensor):
        return _of_numpy(where, tensor)
    if not hasattr(tensor, "__dlpack__"):
        hint = "tensors are torch's, numpy's, or objects with __dlpack__"
        raise ConfigError(f"{where} is {type(tensor).__name__}, not a tensor", hint)
    # torch has more types, and takes longer to import.
    why: Exception | None = None
    for name, of_library in (("numpy", _of_numpy), ("torch", _of_torch)):
        try:
            given = __import__(name).from_dlpack(tensor)
        except Exception as failure:  # Whatever the library makes of it: the other one may take it.
            why = failure
            continue
        return of_library(where, given)
    hint = "copy it to the processor's memory, and install torch or numpy, by which it is read"
    raise ConfigError(f"{where}: this {type(tensor).__name__} cannot be read by DLPack", hint) from why


def _of_torch(where: str, tensor: Any) -> tuple[str, Sequence[int], Memory]:
    torch = _library("torch")
    dtype = _OF_TORCH.get(str(tensor.dtype))
    if dtype is None or tensor.layout != torch.strided or tensor.device.type == "meta":
        what = f"{tensor.dtype}, {tensor.layout}, on {tensor.device}"
        hint = "give dense tensors with data, of a type that safetensors stores"
        raise ConfigError(f"{where} cannot be merged ({what})", hint)
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    memory = Memory(_address(tensor), tensor.numel() * tensor.element_size(), tensor)
    if memory.bytes and not memory.address:
        # Its numbers are in other tensors, or nowhere.
        hint = "give plain tensors: .full_tensor() of a DTensor, .dequantize() of a quantised one"
        raise ConfigError(f"{where} is {type(tensor).__name__}, which has no memory of its own", hint)
    return dtype, tuple(tensor.shape), memory


def _address(tensor: Any) -> int:
    """Where the numbers of a tensor of torch begin; 0 where it has no memory."""
    try:
        return int(tensor.data_ptr()) if tensor.untyped_storage().data_ptr() else 0
    except RuntimeError:
        return 0


def _of_numpy(where: str, tensor: Any) -> tuple[str, Sequence[int], Memory]:
    numpy = _library("numpy")
    if isinstance(tensor, numpy.ma.MaskedArray):
        raise ConfigError(f"{where} is masked", "say what stands in the gaps: .filled(0)")
    tensor = numpy.asarray(tensor)
    dtype = _OF_NUMPY.get(tensor.dtype.name)
    if dtype is None:
        hint = "give numbers of a type that safetensors stores"
        raise ConfigError(f"{where} cannot be merged ({tensor.dtype})", hint)
    shape = tensor.shape
    # In one piece, and in the order of bytes of this machine, which is that of files.
    tensor = numpy.ascontiguousarray(tensor, dtype=tensor.dtype.newbyteorder("="))
    return dtype, shape, Memory(tensor.__array_interface__["data"][0], tensor.nbytes, tensor)


def maker(of_torch: bool, dtypes: set[str]) -> Callable[[str, Sequence[int]], tuple[Any, Memory]]:
    """What makes new tensors of torch or of numpy, of a type and a shape, and says where they lie.

    Types that the library does not have are refused here, before anything is computed.
    """
    if of_torch:
        torch = _library("torch")
        types = {dtype: _torch_type(torch, dtype) for dtype in dtypes}

        def make_torch(dtype: str, shape: Sequence[int]) -> tuple[Any, Memory]:
            # Whatever device the user has chosen for new tensors.
            tensor = torch.empty(tuple(shape), dtype=types[dtype], device="cpu")
            return tensor, Memory(tensor.data_ptr(), tensor.numel() * tensor.element_size(), tensor)

        return make_torch
    import numpy

    types = {dtype: _numpy_type(numpy, dtype) for dtype in dtypes}

    def make_numpy(dtype: str, shape: Sequence[int]) -> tuple[Any, Memory]:
        tensor = numpy.empty(tuple(shape), dtype=types[dtype])
        return tensor, Memory(tensor.__array_interface__["data"][0], tensor.nbytes, tensor)

    return make_numpy


def _torch_type(torch: Any, dtype: str) -> Any:
    name = _TYPES.get(dtype, (dtype, dtype))[0]
    found = getattr(torch, name, None)
    if found is None:
        hint = "a newer torch may have it; or merge into a folder"
        raise ConfigError(f"the merge gives tensors of type {name}, which torch does not have", hint)
    return found


def _numpy_type(numpy: Any, dtype: str) -> Any:
    name = _TYPES.get(dtype, (dtype, dtype))[1]
    try:
        return numpy.dtype(name)
    except TypeError:
        pass
    try:
        import ml_dtypes

        return numpy.dtype(getattr(ml_dtypes, name))
    except (ImportError, AttributeError):
        hint = "install ml_dtypes, which gives numpy this type; give torch tensors; or write `dtype: float32` into the config"
        raise ConfigError(f"the merge gives tensors of type {name}, which numpy does not have", hint) from None

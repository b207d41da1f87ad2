"""Merges in memory give the bytes of merges into folders, of whatever the tensors are."""

from __future__ import annotations

import contextlib
import gc
import json
import sys
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mergeforge
import numpy
import pytest
import torch
from conftest import TIES, read, tensors, write

NAMES = ["base", "a", "b"]
CONFIG = TIES.format(base="base", a="a", b="b")
FLOATS = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


def models(dtype: torch.dtype = torch.bfloat16) -> dict[str, dict[str, torch.Tensor]]:
    return {name: tensors(seed, dtype) for seed, name in enumerate(NAMES)}


def assert_equal(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    """Names, types, shapes and bytes."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert torch.equal(found[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8)), name


def merged_in_a_folder(config: mergeforge.Config, models: Mapping[str, Mapping[str, torch.Tensor]], folder: Path, **options: Any) -> dict[str, torch.Tensor]:
    """What `merge` writes of these models, which the config names by the keys that they have here."""
    folder.mkdir()

    def placed(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: placed(inside) for key, inside in value.items()}
        if isinstance(value, list):
            return [placed(inside) for inside in value]
        return str(folder / value) if value in models else value

    for name, model in models.items():
        write(folder / name, model)
    mergeforge.merge(placed(config), folder / "out", **options)
    return read(folder / "out")


def config_of(method: Mapping[str, Any]) -> dict[str, Any]:
    """A config of a method with a base and two models, or as many as it takes."""
    required = {parameter["name"]: 0.4 for parameter in method["parameters"] if parameter["required"]}
    density = {parameter["name"]: 0.6 for parameter in method["parameters"] if parameter["name"] == "density"}
    per_model = {name for parameter in method["parameters"] if parameter["per_model"] for name in [parameter["name"]]}
    values = {**required, **density}
    entry = {name: value for name, value in values.items() if name in per_model}
    most = method["models_most"] or 3
    with_base = method["base_model_required"]
    listed = NAMES[1:] if with_base and most > 2 else NAMES[1:2] if with_base else NAMES[1 : 1 + min(most, 2)]
    config: dict[str, Any] = {
        "merge_method": method["name"],
        "models": [{"model": name, "parameters": dict(entry)} for name in listed],
        "parameters": {name: value for name, value in values.items() if name not in per_model},
    }
    if with_base:
        config["base_model"] = "base"
    return config


# One that needs files beside the models is tested below.
METHODS = [
    method
    for method in mergeforge.methods().values()
    if not any(parameter["kind"] == "file" for parameter in method["parameters"])
]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: str(method["name"]))
def test_every_method_gives_the_bytes_of_a_merge(method: Mapping[str, Any], tmp_path: Path) -> None:
    config = config_of(method)
    named = [config.get("base_model"), *(entry["model"] for entry in config["models"])]
    given = {name: model for name, model in models().items() if name in named}
    found = mergeforge.merge_state_dicts(config, given, random_seed=3)
    assert_equal(found, merged_in_a_folder(config, given, tmp_path / "models", random_seed=3))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("out", [None, "bfloat16", "float32", "float16"])
def test_every_type_gives_the_bytes_of_a_merge(dtype: torch.dtype, out: str | None, tmp_path: Path) -> None:
    entry = {"weight": 0.7, "density": 0.5}
    listed = [{"model": name, "parameters": entry} for name in NAMES[1:]]
    config = {"merge_method": "dare_ties", "base_model": "base", "models": listed, **({"dtype": out} if out else {})}
    found = mergeforge.merge_state_dicts(config, models(dtype))
    assert_equal(found, merged_in_a_folder(config, models(dtype), tmp_path / "models"))
    assert found["norm"].dtype == (getattr(torch, out) if out else dtype)


def test_a_file_may_say_something_of_tensors_in_memory(tmp_path: Path) -> None:
    importance = write(tmp_path / "importance", {name: t.abs().float() for name, t in tensors(5).items()})
    config = {"merge_method": "fisher", "models": [{"model": name, "importance": importance} for name in NAMES[1:]]}
    given = {name: model for name, model in models().items() if name != "base"}
    assert_equal(mergeforge.merge_state_dicts(config, given), merged_in_a_folder(config, given, tmp_path / "models"))


def test_numpy_in_numpy_out(tmp_path: Path) -> None:
    given = {name: {key: t.numpy() for key, t in model.items()} for name, model in models(torch.float16).items()}
    found = mergeforge.merge_state_dicts(CONFIG, given)
    assert all(type(tensor) is numpy.ndarray and tensor.flags.writeable for tensor in found.values())
    expected = merged_in_a_folder(yaml_of(CONFIG), models(torch.float16), tmp_path / "models")
    assert_equal({name: torch.from_numpy(tensor) for name, tensor in found.items()}, expected)


def yaml_of(text: str) -> Any:
    import yaml

    return yaml.safe_load(text)


def test_what_numpy_cannot_say_is_said_before_anything_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {name: {key: t.numpy() for key, t in model.items()} for name, model in models(torch.float32).items()}
    # As if it were not installed: there is no bfloat16 then.
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    monkeypatch.setattr(numpy, "dtype", no_bfloat16(numpy.dtype))
    reported: list[object] = []
    with pytest.raises(mergeforge.ConfigError, match="type bfloat16, which numpy does not have") as caught:
        mergeforge.merge_state_dicts(CONFIG + "dtype: bfloat16\n", given, progress=lambda *now: reported.append(now))
    assert caught.value.hint is not None and "ml_dtypes" in caught.value.hint and reported == []
    assert mergeforge.merge_state_dicts(CONFIG + "dtype: float32\n", given)["norm"].dtype == numpy.float32


def no_bfloat16(real: Any) -> Any:
    def dtype(name: Any) -> Any:
        if name == "bfloat16":
            raise TypeError(name)
        return real(name)

    return dtype


def test_numpy_has_bfloat16_by_ml_dtypes() -> None:
    import ml_dtypes

    given = {
        name: {key: t.view(torch.int16).numpy().view(ml_dtypes.bfloat16) for key, t in model.items()}
        for name, model in models().items()
    }
    found = mergeforge.merge_state_dicts(CONFIG, given)
    assert {tensor.dtype for tensor in found.values()} == {numpy.dtype(ml_dtypes.bfloat16)}
    again = {name: torch.from_numpy(tensor.view(numpy.int16)).view(torch.bfloat16) for name, tensor in found.items()}
    assert_equal(again, mergeforge.merge_state_dicts(CONFIG, models()))


def test_torch_where_one_of_them_is_torchs() -> None:
    mixed: dict[str, dict[str, Any]] = {**models(torch.float32)}
    mixed["a"] = {name: tensor.numpy() for name, tensor in mixed["a"].items()}
    found = mergeforge.merge_state_dicts(CONFIG, mixed)
    assert_equal(found, mergeforge.merge_state_dicts(CONFIG, models(torch.float32)))


class ByDlpack:
    """What other libraries give: nothing but DLPack's protocol."""

    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor

    def __dlpack__(self, **wishes: Any) -> Any:
        return self.tensor.__dlpack__(**wishes)

    def __dlpack_device__(self) -> Any:
        return self.tensor.__dlpack_device__()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_tensors_of_other_libraries_come_by_dlpack(dtype: torch.dtype) -> None:
    """None of them is torch's, whoever reads them: the result has numpy's."""
    given = {name: {key: ByDlpack(t) for key, t in model.items()} for name, model in models(dtype).items()}
    found: dict[str, Any] = mergeforge.merge_state_dicts(CONFIG, given)
    assert all(type(tensor) is numpy.ndarray for tensor in found.values())
    same = {name: torch.from_numpy(tensor.view(numpy.uint8)).view(dtype) for name, tensor in found.items()}
    assert_equal(same, mergeforge.merge_state_dicts(CONFIG, models(dtype)))


class NoMemory(torch.Tensor):
    """As tensors that are sharded or quantised: a type and a shape, and the numbers elsewhere."""

    @staticmethod
    def __new__(cls) -> NoMemory:
        made: NoMemory = torch.Tensor._make_wrapper_subclass(cls, (2,))  # type: ignore[attr-defined]
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0]


def test_the_result_lies_in_the_processors_memory_whatever_is_usual() -> None:
    expected = mergeforge.merge_state_dicts(CONFIG, models())
    given = models()
    with torch.device("meta"):
        found = mergeforge.merge_state_dicts(CONFIG, given)
    assert_equal(found, expected)


def test_types_that_no_library_has_are_refused(tmp_path: Path) -> None:
    """Half a byte each, as models of MXFP4 have them."""
    header = json.dumps({"w": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}}).encode()
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\x12\x34")
    config = {"merge_method": "passthrough", "models": [{"model": str(tmp_path / "a")}]}
    with pytest.raises(mergeforge.ConfigError, match="F4"):
        mergeforge.merge_state_dicts(config, {})


def test_odd_values_are_warned_of() -> None:
    given = models()
    given["a"]["norm"][3] = torch.nan
    with pytest.warns(mergeforge.MergeforgeWarning, match="tensor norm: 1 NaN read"):
        mergeforge.merge_state_dicts(CONFIG, given)
    odd = {f"odd.{number}": torch.full((2,), torch.nan) for number in range(9)}
    with pytest.warns(mergeforge.MergeforgeWarning) as caught:
        mergeforge.merge_state_dicts(CONFIG, {name: {**model, **odd} for name, model in models().items()})
    # There is no manifest to look into.
    assert str(caught[-1].message) == "… and 1 more tensors with odd values"


def test_tensors_may_lie_in_any_way() -> None:
    expected = mergeforge.merge_state_dicts(CONFIG, models(torch.float32))
    given = models(torch.float32)
    odd = {
        "base": {name: tensor.t().contiguous().t() if tensor.dim() == 2 else tensor for name, tensor in given["base"].items()},
        "a": {name: torch.nn.Parameter(tensor) for name, tensor in given["a"].items()},
        "b": {name: torch.cat([tensor, tensor])[len(tensor) :] for name, tensor in given["b"].items()},
    }
    assert_equal(mergeforge.merge_state_dicts(CONFIG, odd), expected)
    arrays = {name: {key: t.numpy() for key, t in model.items()} for name, model in given.items()}
    swapped = {
        "base": {name: array.astype(array.dtype.newbyteorder(">")) for name, array in arrays["base"].items()},
        "a": {name: numpy.asfortranarray(array) for name, array in arrays["a"].items()},
        "b": {name: numpy.repeat(array, 2, axis=0)[::2] for name, array in arrays["b"].items()},
    }
    for array in arrays["a"].values():
        array.flags.writeable = False
    found = mergeforge.merge_state_dicts(CONFIG, swapped)
    assert_equal({name: torch.from_numpy(array) for name, array in found.items()}, expected)


def test_inputs_stay_as_they_are_and_results_are_new() -> None:
    given = models()
    before = {name: {key: t.clone() for key, t in model.items()} for name, model in given.items()}
    found = mergeforge.merge_state_dicts(CONFIG, given)
    for tensor in found.values():
        tensor.zero_()
    for name, model in before.items():
        assert_equal(given[name], model)


def test_what_is_no_float_is_copied_in_the_order_of_the_donor(tmp_path: Path) -> None:
    more = {
        "zz": torch.arange(6).reshape(2, 3),
        "flag": torch.tensor([True, False]),
        "scalar": torch.tensor(1.5),
        "empty": torch.zeros(0, 3),
        "ids": torch.tensor([3], dtype=torch.int32),
    }
    given = {name: {**more, **model} for name, model in models().items()}
    found = mergeforge.merge_state_dicts(CONFIG, given)
    assert list(found) == list(given["base"])
    assert_equal(found, merged_in_a_folder(yaml_of(CONFIG), given, tmp_path / "models"))


def test_a_model_that_is_not_given_lies_on_the_disk(tmp_path: Path) -> None:
    given = models()
    folder = write(tmp_path / "base", given.pop("base"))
    found = mergeforge.merge_state_dicts(TIES.format(base=folder, a="a", b="b"), given)
    assert_equal(found, mergeforge.merge_state_dicts(CONFIG, models()))


def test_a_model_with_a_config_may_lie_on_the_disk() -> None:
    base = read(Path("examples/models/base"))
    chat = read(Path("examples/models/chat"))
    config = TIES.format(base="examples/models/base", a="chat", b="examples/models/medical")
    found = mergeforge.merge_state_dicts(config, {"chat": chat})
    assert found.keys() == base.keys() and not torch.equal(found["model.norm.weight"], base["model.norm.weight"])


@pytest.mark.parametrize(
    ("given", "says", "hint"),
    [
        ({"base": {}, "a": {}, "c": {}}, "tensors are given of a model \"c\", which the config does not name", "the config names a, b, base"),
        ({"a": {"x": 3}}, "a: tensor x is int, not a tensor", "torch's, numpy's"),
        ({"a": torch.nn.Linear(2, 2)}, "the tensors of a are Linear, not a dict", "give model.state_dict()"),
        ({"a": {"x": torch.zeros(2).to_sparse()}}, "a: tensor x cannot be merged", "dense tensors with data"),
        ({"a": {"x": torch.zeros(2, device="meta")}}, "a: tensor x cannot be merged", "dense tensors with data"),
        ({"a": {"x": numpy.array(["text"])}}, "a: tensor x cannot be merged (<U4)", "numbers of a type"),
        ({"a": {"x": NoMemory()}}, "a: tensor x is NoMemory, which has no memory of its own", ".full_tensor()"),
        ({"a": {"x": numpy.ma.masked_array([1.0], [True])}}, "a: tensor x is masked", ".filled(0)"),
        ({"a": {3: torch.zeros(2)}}, "a: the name 3 of a tensor is int, not a text", "None"),
        ({3: {"x": torch.zeros(2)}}, "the name 3 of a model is int, not a text", "None"),
        ({"a": {"x": ByDlpack(torch.zeros(2).to_sparse())}}, "a: tensor x: this ByDlpack cannot be read by DLPack", "copy it"),
    ],
)
def test_what_cannot_be_merged_is_refused_by_name(given: Any, says: str, hint: str) -> None:
    with pytest.raises(mergeforge.ConfigError) as caught:
        mergeforge.merge_state_dicts(CONFIG, given)
    assert says in caught.value.message and hint in str(caught.value.hint), str(caught.value)


def test_models_that_do_not_fit_are_refused_as_on_the_disk() -> None:
    given = models()
    given["a"]["norm"] = torch.zeros(41, dtype=torch.bfloat16)
    with pytest.raises(mergeforge.ConfigError, match=r"tensor norm: it is \[41\] in a and \[40\] in b"):
        mergeforge.merge_state_dicts(CONFIG, given)
    with pytest.raises(mergeforge.ConfigError, match="several documents cannot be merged in memory"):
        mergeforge.merge_state_dicts([yaml_of(CONFIG) | {"name": "x"}, yaml_of(CONFIG)], models())
    with pytest.raises(TypeError, match="unexpected keyword argument 'out_shard_size'"):
        mergeforge.merge_state_dicts(CONFIG, models(), out_shard_size=1)  # type: ignore[call-arg]


def test_progress_and_warnings_are_those_of_a_merge() -> None:
    reported: list[tuple[int, int]] = []
    typo = CONFIG.replace("density: 0.7", "densty: 0.7, density: 0.7")
    with pytest.warns(mergeforge.MergeforgeWarning, match="densty") as caught:
        mergeforge.merge_state_dicts(typo, models(), progress=lambda done, total: reported.append((done, total)))
    assert [warning.filename for warning in caught] == [__file__]
    total = sum(tensor.nbytes for tensor in tensors(0).values())
    assert reported[-1] == (total, total)


@pytest.mark.parametrize("ends", ["well", "wrong", "stopped"])
def test_memory_is_given_back(ends: str) -> None:
    """Nothing keeps the tensors that were given: numpy's are read as they are."""
    given = {name: {key: t.numpy() for key, t in model.items()} for name, model in models(torch.float32).items()}
    watched = [weakref.ref(tensor) for model in given.values() for tensor in model.values()]

    def progress(done: int, total: int) -> None:
        if ends == "stopped":
            raise LookupError

    config = CONFIG.replace("ties", "tise") if ends == "wrong" else CONFIG
    with contextlib.suppress(mergeforge.ConfigError, LookupError):
        mergeforge.merge_state_dicts(config, given, progress=progress)
    del given
    gc.collect()
    assert [ref() for ref in watched] == [None] * len(watched)

"""Merges into folders, plans and methods: what is given, what comes back, and that it is what the command line gives."""

from __future__ import annotations

import json
import typing
import warnings
from pathlib import Path

import mergeforge
import pytest
import yaml
from conftest import ROOT, digests, program, read, run, tensors, write
from mergeforge import _configs, _mergeforge, _options


def test_a_merge_is_that_of_the_command_line(tmp_path: Path) -> None:
    merged = mergeforge.merge("examples/dare_ties.yml", tmp_path / "module", random_seed=7)
    ended = run(program("mergeforge"), "merge", "examples/dare_ties.yml", str(tmp_path / "program"), "--seed", "7", "-q")
    assert ended.returncode == 0, ended.stderr
    files = {path.name: path.read_bytes() for path in (tmp_path / "program").iterdir()}
    assert files.keys() == {path.name for path in (tmp_path / "module").iterdir()}
    for name, content in files.items():
        # Its title is the folder's name.
        if name != "README.md":
            assert (tmp_path / "module" / name).read_bytes() == content, name
    manifest = json.loads(files["mergeforge.json"])
    assert digests(merged.manifest) == digests(manifest)
    assert {key: value for key, value in merged.manifest.items() if key != "run"} == manifest
    assert merged.manifest["run"]["threads"] > 0
    assert (merged.out, merged.manifest["seed"]) == (tmp_path / "module", 7)
    assert repr(merged).startswith("Merged(out=")


def test_every_form_of_a_config_gives_the_same(tmp_path: Path) -> None:
    path = ROOT / "examples" / "ties.yml"
    text = path.read_text()
    given = {
        "path": path,
        "str": "examples/ties.yml",
        "text": text,
        "flow": json.dumps(yaml.safe_load(text)),
        "dict": yaml.safe_load(text),
        "list": [yaml.safe_load(text)],
    }
    found = {name: digests(mergeforge.merge(config, tmp_path / name).manifest) for name, config in given.items()}
    assert set(found.values()) == {found["path"]}
    # What lies beside the model says how it was made, and is read back as the same config.
    for name in given:
        kept = tmp_path / name / "mergekit_config.yml"
        assert yaml.safe_load(kept.read_text()) == yaml.safe_load(text), name
        again = mergeforge.merge(kept, tmp_path / f"{name}-again")
        assert digests(again.manifest) == found["path"]


def test_documents_of_a_list_are_stages(tmp_path: Path) -> None:
    models = {name: write(tmp_path / name, tensors(seed)) for seed, name in enumerate(["a", "b", "c"])}
    entries = [{"model": models["a"], "parameters": {"weight": 1}}, {"model": models["b"], "parameters": {"weight": 2}}]
    first = {"name": "half", "merge_method": "linear", "models": entries, "dtype": "float32"}
    more = [{"model": "half", "parameters": {"weight": 1}}, {"model": models["c"], "parameters": {"weight": 1}}]
    second = {"merge_method": "linear", "models": more, "dtype": "float32"}
    merged = mergeforge.merge([first, second], tmp_path / "out", intermediate_dir=tmp_path / "kept")
    kept = read(tmp_path / "kept" / "half")
    assert read(tmp_path / "out")["norm"].allclose((kept["norm"] + tensors(2)["norm"].float()) / 2)
    assert any("half" in note for note in merged.notes), merged.notes


def test_what_a_dict_holds_is_what_yaml_reads() -> None:
    config = {
        "numbers": [1, -2, 0.5, 1e-05, 1e300, -1e-7, 3.0, float("inf"), True, False, None],
        "texts": ["plain", "1e-05", "yes", "null", "a: b", "# no comment", "two\nlines", 'quo"tes', "päth", "", " "],
        "nested": {"list": [[1, [2, {"x": [{}]}]], [], {}], "empty": {}, "path": Path("a/b")},
        "models": [{"model": "a", "parameters": {"weight": [0, 1], "t": [{"filter": "mlp", "value": 0.1}, {"value": 1}]}}],
        12: "a key",
        "no": "another",
    }
    name, text = _configs.written(config)
    expected = json.loads(json.dumps(config, default=str).replace("Infinity", "1e999"))
    expected[12] = expected.pop("12")
    assert (name, yaml.safe_load(text)) == ("", expected)


def test_numbers_of_numpy_and_torch_may_stand_in_a_dict() -> None:
    import numpy
    import torch

    config = {"a": numpy.float32(0.5), "b": numpy.array([1, 2]), "c": torch.tensor(0.25), "d": numpy.int64(3)}
    assert yaml.safe_load(_configs.written(config)[1]) == {"a": 0.5, "b": [1, 2], "c": 0.25, "d": 3}


@pytest.mark.parametrize("config", [3, b"x.yml", ["x.yml"], {"models": {1, 2}}, None])
def test_what_is_no_config_is_a_type_error(config: typing.Any) -> None:
    with pytest.raises(TypeError):
        mergeforge.plan(config)


def test_a_plan_says_what_will_happen(ties: str, tmp_path: Path) -> None:
    plan = mergeforge.plan(ties, out=tmp_path / "out", threads=1)
    assert (plan.method, plan.models[0]) == ("ties", str(tmp_path / "a"))
    assert plan.base_model == plan.donor == str(tmp_path / "base")
    assert [(tensor.name, tensor.dtype) for tensor in plan.tensors] == [(name, "BF16") for name in read(tmp_path / "base")]
    assert [tensor.shape for tensor in plan.tensors] == [tuple(tensor.shape) for tensor in read(tmp_path / "base").values()]
    inputs = 3 * sum(tensor.nbytes for tensor in tensors(0).values())
    assert (plan.read_bytes, plan.threads, plan.warnings) == (inputs, 1, ())
    assert plan.bytes == plan.write_bytes == plan.as_dict["write_bytes"] > inputs // 3
    assert plan.tensors[0].action["merge"][0]["parameters"] == {"weight": 1, "density": 0.5}
    shown = repr(plan)
    for part in ["<Plan: ties of ", "3 merged, 0 copied", "in 1 file\n", "1 thread\n", "note     "]:
        assert part in shown, shown
    assert not (tmp_path / "out").exists()


def test_a_plan_has_the_warnings_and_strictly_they_are_errors(ties: str) -> None:
    typo = ties.replace("density: 0.7", "densty: 0.7, density: 0.7")
    plan = mergeforge.plan(typo)
    assert len(plan.warnings) == 1 and "densty" in plan.warnings[0]
    assert "\n  warning  <config>:5:" in repr(plan)
    with pytest.raises(mergeforge.ConfigError, match="refused for its warnings, 1 in all"):
        mergeforge.plan(typo, strict=True)


def test_a_plan_of_experts(tmp_path: Path) -> None:
    experts = [{"source_model": f"examples/models/{name}", "positive_prompts": []} for name in ["chat", "medical"]]
    moe = {"base_model": "examples/models/base", "gate_mode": "random", "experts": experts}
    plan = mergeforge.plan(moe)
    assert any("block_sparse_moe" in tensor.name for tensor in plan.tensors)


def test_warnings_of_a_merge_are_pythons(ties: str, tmp_path: Path) -> None:
    typo = ties.replace("density: 0.7", "densty: 0.7, density: 0.7")
    with pytest.warns(mergeforge.MergeforgeWarning, match="densty") as caught:
        mergeforge.merge(typo, tmp_path / "out")
    assert [warning.filename for warning in caught] == [__file__]
    # Whoever makes warnings errors stops the merge.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(mergeforge.MergeforgeWarning):
            mergeforge.merge(typo, tmp_path / "other")


def test_methods_are_those_of_the_program() -> None:
    methods = mergeforge.methods()
    listed = json.loads(run(program("mergeforge"), "methods", "--json").stdout)
    assert list(methods.values()) == listed and list(methods) == [method["name"] for method in listed]
    assert methods["ties"]["base_model_required"] is True


def test_options_are_the_flags_of_the_command_line() -> None:
    flags = {function: {name.replace("-", "_") for name, _ in flags} for function, flags in _mergeforge.flags()}
    typed = {"merge": mergeforge.MergeOptions, "plan": mergeforge.PlanOptions, "merge_state_dicts": mergeforge.TensorOptions}
    for function, options in typed.items():
        assert set(options.__annotations__) | _of_bases(options) == flags[function], function
        for name, takes_value in dict(_mergeforge.flags())[function]:
            annotation = _annotation(options, name.replace("-", "_"))
            assert takes_value == (annotation != "bool"), name


def _of_bases(options: type) -> set[str]:
    return {name for base in options.__mro__ for name in getattr(base, "__annotations__", {})}


def _annotation(options: type, name: str) -> str:
    hint = options.__annotations__[name]
    return getattr(hint, "__forward_arg__", str(hint))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device": "cpu", "threads": 2, "strict": True}, ["--device=cpu", "--threads=2", "--strict"]),
        ({"strict": False, "host_memory": None}, []),
        ({"copy_tokenizer": False, "no_write_model_card": True}, ["--no-copy-tokenizer", "--no-write-model-card"]),
        ({"trace": Path("a b.json"), "out_shard_size": "5GB"}, ["--trace=a b.json", "--out-shard-size=5GB"]),
    ],
)
def test_options_become_flags(options: dict[str, object], words: list[str]) -> None:
    assert _options.words("merge", options) == words


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"thread": 2}, r"merge\(\) got an unexpected keyword argument 'thread': did you mean 'threads'\?"),
        ({"out-shard-size": 2}, "unexpected keyword argument"),
        ({"json": True}, "the options are allow_crimes, copy_tokenizer"),
        ({"strict": 1}, "strict is True or False, not 1"),
        ({"device": True}, "device takes a value, not True"),
    ],
)
def test_options_that_there_are_not_are_type_errors(options: dict[str, object], says: str, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=says):
        mergeforge.merge("examples/ties.yml", tmp_path / "out", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_options_do_what_they_say(ties: str, tmp_path: Path) -> None:
    mergeforge.merge("examples/ties.yml", tmp_path / "out", copy_tokenizer=False, write_model_card=False, out_shard_size="300kB")
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert "model-00001-of-00005.safetensors" in files and not files & {"tokenizer.json", "README.md"}
    trace = tmp_path / "trace.json"
    mergeforge.merge(ties, tmp_path / "traced", trace=trace)
    assert json.loads(trace.read_text())


def test_the_version_is_the_programs() -> None:
    assert run(program("mergeforge"), "--version").stdout.split() == ["mergeforge", mergeforge.__version__]

"""What goes wrong is an exception with message, hint and place, and leaves nothing."""

from __future__ import annotations

import pickle
from pathlib import Path

import mergeforge
import pytest
from conftest import left


def failing(config: mergeforge.Config, out: Path, **options: str) -> mergeforge.Error:
    with pytest.raises(mergeforge.Error) as caught:
        mergeforge.merge(config, out, **options)  # type: ignore[arg-type]
    return caught.value


def test_a_mistake_in_a_config_has_its_place(ties: str, tmp_path: Path) -> None:
    config = tmp_path / "wrong.yml"
    config.write_text(ties.replace("density: 0.5", "density: [0.5, half]").replace("ties", "tise"))
    error = failing(config, tmp_path / "out")
    assert type(error) is mergeforge.ConfigError and isinstance(error, ValueError)
    assert error.message == f"{config}:1:15: there is no merge method `tise`"
    assert (error.file, error.line, error.column, error.exit_code) == (str(config), 1, 15, 2)
    assert error.hint == "did you mean `ties`?"
    [other] = error.others
    assert (other.file, other.line) == (str(config), 4) and other.others == ()
    text = str(error)
    assert text.startswith(f"{error.message}\nhint: {error.hint}\n{other.message}"), text


def test_places_of_a_text_are_its_own_and_a_dict_has_none(ties: str, tmp_path: Path) -> None:
    error = failing(ties.replace("ties", "tise"), tmp_path / "out")
    assert (error.file, error.line) == ("<config>", 1)
    error = failing({"merge_method": "tise", "models": [{"model": "a"}]}, tmp_path / "out")
    assert (error.message, error.file, error.line) == ("there is no merge method `tise`", None, None)


def test_a_config_that_is_not_there(tmp_path: Path) -> None:
    error = failing("no/such.yml", tmp_path / "out")
    assert (error.message[:38], error.file) == ("cannot read no/such.yml: No such file ", "no/such.yml")
    assert error.hint is not None


@pytest.mark.parametrize("config", ["-", Path("-")], ids=["text", "path"])
def test_the_standard_input_is_not_waited_for(config: mergeforge.Config, tmp_path: Path) -> None:
    error = failing(config, tmp_path / "out")
    assert type(error) is mergeforge.ConfigError and "sys.stdin.read()" in str(error.hint)


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    models = [{"model": "./nowhere", "parameters": {"weight": 1}}]
    error = failing({"merge_method": "linear", "models": models}, tmp_path / "out")
    assert type(error) is mergeforge.ConfigError and "./nowhere" in error.message


def test_a_damaged_checkpoint(ties: str, tmp_path: Path) -> None:
    weights = tmp_path / "a" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    error = failing(ties, tmp_path / "out")
    assert type(error) is mergeforge.InputError and error.exit_code == 3
    assert "the file is cut short" in error.message and str(weights) in error.message and left(tmp_path) == []
    assert (error.file, error.line) == ("<config>", 4), "where the config names it"
    models = [{"model": str(tmp_path / "a"), "parameters": {"weight": 1}}]
    error = failing({"merge_method": "linear", "models": models}, tmp_path / "out")
    assert (error.file, error.line) == (str(weights), None), "a dict has no places"


def test_an_output_that_is_in_use(ties: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    error = failing(ties, tmp_path / "out")
    assert type(error) is mergeforge.ConfigError and "exists and is not empty" in error.message
    assert (tmp_path / "out" / "mine").exists() and left(tmp_path) == ["out"]


def test_an_output_that_cannot_be_written(ties: str, tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "mine").touch()
    error = failing(ties, tmp_path / "out")
    assert type(error) is mergeforge.OutputError and error.exit_code == 4
    assert "out.partial is in the way" in error.message and str(error.hint).startswith("move or delete it")
    assert (tmp_path / "out.partial" / "mine").exists() and left(tmp_path) == ["out.partial"]


def test_a_device_that_is_not_there(ties: str, tmp_path: Path) -> None:
    error = failing(ties, tmp_path / "out", device="cuda:77")
    assert type(error) is mergeforge.DeviceError and error.exit_code == 5


def test_a_value_that_no_option_has(ties: str, tmp_path: Path) -> None:
    error = failing(ties, tmp_path / "out", host_memory="much")
    assert type(error) is mergeforge.ConfigError
    assert "--host-memory" in error.message and "a size like 512MiB" in error.message


def test_exceptions_cross_processes(ties: str, tmp_path: Path) -> None:
    error = failing(ties.replace("ties", "tise").replace("0.5", "x"), tmp_path / "out")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error) and str(again) == str(error) and len(again.others) == len(error.others) > 0
    for field in ["message", "hint", "file", "line", "column", "exit_code"]:
        assert getattr(again, field) == getattr(error, field)

"""The types of the package: strict, true of the compiled module, and of use to whoever writes a program."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import mergeforge
import pytest
from conftest import ROOT, run

HERE = Path(__file__).parent


def mypy(*words: str) -> subprocess.CompletedProcess[str]:
    config = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", "/dev/null", "--no-color-output"]
    return run(sys.executable, "-m", "mypy", *config, *words)


def test_the_package_and_a_program_that_uses_it_are_strictly_typed() -> None:
    assert (Path(mergeforge.__file__).parent / "py.typed").is_file()
    checked = mypy("-p", "mergeforge")
    assert checked.returncode == 0, checked.stdout
    checked = mypy(str(HERE / "typed_program.py"))
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ('mergeforge.merge("c.yml", "out", thread=1)', 'Unexpected keyword argument "thread"'),
        ('mergeforge.merge("c.yml", "out", strict="yes")', "incompatible type"),
        ('mergeforge.merge("c.yml")', 'Missing positional argument "out"'),
        ("mergeforge.plan(3)", "incompatible type"),
        ('x: int = mergeforge.plan("c.yml").method', "Incompatible types in assignment"),
    ],
)
def test_mistakes_are_found_by_their_types(wrong: str, says: str, tmp_path: Path) -> None:
    program = tmp_path / "wrong.py"
    program.write_text(f"import mergeforge\n\n{wrong}\n")
    checked = mypy(str(program))
    assert checked.returncode == 1 and says in checked.stdout, checked.stdout


def test_the_stubs_are_those_of_the_compiled_module() -> None:
    checked = run(sys.executable, "-m", "mypy.stubtest", "mergeforge", "--mypy-config-file", str(ROOT / "pyproject.toml"))
    assert checked.returncode == 0, checked.stdout

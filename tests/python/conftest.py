"""Checkpoints for tests of the Python package, and the package's programs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[2]

TIES = """\
merge_method: ties
base_model: {base}
models:
  - {{model: {a}, parameters: {{weight: 1, density: 0.5}}}}
  - {{model: {b}, parameters: {{weight: 0.5, density: 0.7}}}}
"""


@pytest.fixture(autouse=True)
def _nothing_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """No network, neither models nor findings of earlier merges, and the folder from which the examples name their models."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", "/nowhere")
    monkeypatch.setenv("MERGEFORGE_CACHE", "")
    monkeypatch.chdir(ROOT)


@pytest.fixture(autouse=True)
def _ctrl_c_is_heard() -> Iterator[None]:
    """By this process and by those that it starts, though it may have been started with SIGINT ignored, as in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def tensors(seed: int, dtype: torch.dtype = torch.bfloat16, elements: int = 5000) -> dict[str, torch.Tensor]:
    """Tensors of a model: those of one seed are near to those of another, as fine-tunes are."""
    base, own = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
    shapes = {"layers.1.w": (elements // 40, 40), "layers.0.w": (7, 11), "norm": (40,)}
    found = {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=base) + 0.1 * seed * torch.randn(shape, generator=own)
        found[name] = values.to(dtype)
    return found


def write(folder: Path, tensors: Mapping[str, torch.Tensor]) -> str:
    """A folder with these tensors and nothing else, as configs name it."""
    folder.mkdir()
    save_file(dict(tensors), folder / "model.safetensors")
    return str(folder)


def read(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a folder."""
    return load_file(folder / "model.safetensors")


@pytest.fixture
def ties(tmp_path: Path) -> str:
    """A config of three models on the disk, as a text."""
    names = {name: write(tmp_path / name, tensors(seed)) for seed, name in enumerate(["base", "a", "b"])}
    return TIES.format(**names)


def program(name: str) -> str:
    """A program that was installed with the package."""
    return str(Path(sysconfig.get_path("scripts")) / name)


def run(*words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Runs a program to its end."""
    return subprocess.run(words, cwd=cwd, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)


def left(folder: Path) -> list[str]:
    """What a merge into `folder/out` left."""
    return sorted(name for name in os.listdir(folder) if name.startswith("out"))


def digests(manifest: Mapping[str, object]) -> str:
    """The digests of all tensors, as a text that can be compared."""
    return json.dumps(manifest["tensors"], sort_keys=True)

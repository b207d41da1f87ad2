"""Shared by the tools that load outputs in transformers: models that are loaded whole, and their logits."""

import os
import pathlib
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # Everything is in the folders: nothing may be looked up.
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import torch
import transformers
from transformers import AutoModelForCausalLM

# Logits of the tiny models are of size 1; float32 leaves so much after all layers.
CLOSE = 2e-5

torch.set_num_threads(1)
transformers.utils.logging.disable_progress_bar()


class Wrong(Exception):
    """What is wrong with an output."""


def load(folder: pathlib.Path, kind: Any = AutoModelForCausalLM) -> torch.nn.Module:
    """Every tensor has its place, and every place its tensor."""
    loaded, info = kind.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info.get(what):
            raise Wrong(f"{what}: {sorted(map(str, info[what]))[:3]}")
    return loaded.eval()


@torch.no_grad()
def logits(loaded: torch.nn.Module, ids: list[int]) -> torch.Tensor:
    return loaded.eval()(input_ids=torch.tensor([ids])).logits[0]


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Between logits: the largest difference of two."""
    if a.shape != b.shape:
        raise Wrong(f"logits of shape {list(a.shape)}, not {list(b.shape)}")
    return float((a - b).abs().max())


def near(a: torch.Tensor, b: torch.Tensor) -> str:
    """Logits that have to be the same, in words."""
    apart = distance(a, b)
    if not apart <= CLOSE:
        raise Wrong(f"logits are off by {apart:.2g}, and their largest is {float(b.abs().max()):.2g}")
    return f"logits within {apart:.1e}"

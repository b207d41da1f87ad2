"""What `mergekit_agreement.py` merges that has adapters: models, PEFT adapters as peft itself saves them, and the configs.

mergekit applies an adapter with peft, in float32 here; its result at `dtype: float64` is what is compared with.
"""

import pathlib
import zlib
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model

from any_config_models import Templates, Wish, checkpoint_files, write_files
from mergekit_cases import Case, merge, model

LAYERS = 2
ATTENTION = ["q_proj", "v_proj"]

# Kinds of adapters that peft saves: what makes them special.
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"target_modules": ATTENTION},
    "all-linear": {"target_modules": "all-linear", "lora_alpha": 3},
    "rank-pattern": {"target_modules": ATTENTION, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 32}},
    "rslora": {"target_modules": ATTENTION, "use_rslora": True},
    "dora": {"target_modules": [*ATTENTION, "down_proj"], "use_dora": True},
    "embeddings": {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
    "saved-modules": {"target_modules": ATTENTION, "modules_to_save": ["lm_head", "norm"]},
    "biases": {"target_modules": ATTENTION, "bias": "lora_only"},
    "regular-expression": {"target_modules": r".*layers\.1\..*\.(q|k)_proj"},
    "some-layers": {"target_modules": ATTENTION, "layers_to_transform": [1]},
    "tokens": {"target_modules": ATTENTION, "trainable_token_indices": [5, 9, 250]},
}

# For other architectures than Llama.
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "conv1d": ("gpt2", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "tied": ("gemma", {"target_modules": ATTENTION}),
    "biased": ("qwen2", {"target_modules": ATTENTION, "bias": "all"}),
}


def make_adapter_inputs(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Models and adapters; returns name -> folder."""
    templates = Templates(folder / "templates")
    models = {"base": "llama3", "tuned": "llama3", **{f"base-{family}": family for family, _ in OTHERS.values()}}
    for name, family in models.items():
        write_files(checkpoint_files(Wish(name, family, LAYERS), templates), folder / name)
    for kind, settings in KINDS.items():
        make_adapter(folder / "base", folder / f"lora-{kind}", settings)
    for kind, (family, settings) in OTHERS.items():
        make_adapter(folder / f"base-{family}", folder / f"lora-{kind}", settings)
    return {path.name: path.resolve() for path in folder.iterdir() if path != templates.folder}


def make_adapter(base: pathlib.Path, out: pathlib.Path, settings: dict[str, Any]) -> None:
    """An adapter that changes something: peft begins with a product of 0."""
    loaded = transformers.AutoModelForCausalLM.from_pretrained(base)
    adapted = get_peft_model(loaded, LoraConfig(**{"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM"} | settings))
    noise = torch.Generator().manual_seed(zlib.crc32(out.name.encode()))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad:
                change = 0.05 * torch.randn(parameter.shape, generator=noise)
                parameter.copy_(parameter * (1 + change) if "magnitude" in name else parameter + change)
    adapted.save_pretrained(out)


def load_adapted(base: pathlib.Path, adapter: pathlib.Path) -> torch.nn.Module:
    """What the adapter makes of the model, by peft alone."""
    loaded = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return PeftModel.from_pretrained(loaded, adapter).eval()


def adapter_cases(of: dict[str, pathlib.Path]) -> list[Case]:
    base = of["base"]

    def adapted(kind: str, on: str = "base") -> str:
        return f"{of[on]}+{of[f'lora-{kind}']}"

    alone = {f"{kind} alone": merge("passthrough", [model(adapted(kind))]) for kind in KINDS}
    alone |= {
        f"{kind} alone, of {family}": merge("passthrough", [model(adapted(kind, f"base-{family}"))])
        for kind, (family, _) in OTHERS.items()
    }
    long_form = {"model": {"model": {"path": str(base)}, "lora": {"path": str(of["lora-plain"])}}}
    slices = [
        {"sources": [{"model": adapted("plain"), "layer_range": [0, 2]}]},
        {"sources": [{"model": str(base), "layer_range": [1, 2]}]},
    ]
    vectors = [model(adapted("plain"), weight=0.8), model(adapted("rslora"), weight=0.5)]
    cases = alone | {
        "two adapters of a model": merge("linear", [model(adapted("plain"), weight=0.3), model(adapted("rslora"), weight=0.7)]),
        "an adapter and a model": merge("linear", [model(adapted("all-linear"), weight=0.5), model(of["tuned"], weight=0.5)]),
        "task vectors that adapters make": merge("task_arithmetic", vectors, base=base),
        "slerp with an adapted base": merge(
            "slerp", [model(adapted("plain")), model(of["tuned"])], base=adapted("plain"), parameters={"t": 0.3}
        ),
        "the long form": merge("linear", [long_form | {"parameters": {"weight": 1}}]),
        "slices of an adapted model": merge("passthrough", slices=slices),
        "ties of adapters": merge("ties", [one | {"parameters": {"weight": 1, "density": 0.6}} for one in vectors], base=base),
    }
    found = [Case(f"adapters, {name}", config, "exact") for name, config in cases.items()]
    return [
        *found,
        Case("adapters, refused: an adapter that is not there", merge("passthrough", [model(f"{base}+{base}-none")]), "refused"),
        Case("adapters, refused: an adapter as a model", merge("passthrough", [model(of["lora-plain"])]), "refused"),
        Case(
            "adapters, refused: of another architecture",
            merge("passthrough", [model(f"{of['base-gpt2']}+{of['lora-plain']}")]),
            "refused",
        ),
    ]

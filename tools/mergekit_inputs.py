"""The checkpoints that `mergekit_agreement.py` merges: the examples', and copies that differ from them in one respect each."""

import functools
import json
import pathlib
import shutil

import torch
from safetensors.torch import load_file, save_file

# So many fine-tunes: one more than have a vote in mergeforge.
MANY = 13

# So many float32 checkpoints are alike in every other row.
ALIKE = 7


def make_inputs(models, folder):
    """Copies of the example checkpoints that differ from them in one respect each; returns name -> folder."""
    inputs = {name: models / name for name in ("base", "medical", "chat")}
    derived = {
        "base-f32": {"of": "base", "dtype": torch.float32},
        "base-sharded": {"of": "base", "shards": 2},
        "medical-f16": {"of": "medical", "dtype": torch.float16},
        "chat-f32": {"of": "chat", "dtype": torch.float32},
        "chat-f64": {"of": "chat", "dtype": torch.float64, "change": widen},
        "chat-sharded": {"of": "chat", "shards": 3},
        "third": noisy("chat", 0.02, seed=1, dtype=torch.bfloat16),
        "bent": {"of": "medical", "dtype": torch.float32, "change": functools.partial(bend, models / "base")},
        "far": {"of": "chat", "change": roll},
        "deep": {"of": "chat", "change": deepen, "config": {"num_hidden_layers": 6}},
        "medical-tied": {"of": "medical", "change": tie, "config": {"tie_word_embeddings": True}},
        "chat-tied": {"of": "chat", "change": tie, "config": {"tie_word_embeddings": True}},
        "chat-vocab": {"of": "chat", "change": widen_vocabulary, "config": {"vocab_size": 1040}},
        # Hardly two of their magnitudes are equal.
        "medical-uneven": noisy("medical", 1e-3, seed=2),
        "chat-uneven": noisy("chat", 1e-3, seed=3),
        # Fine-tunes that moved little.
        "near": noisy("base", 1e-4, seed=4),
        "near-too": noisy("base", 1e-4, seed=5),
        "nearest": noisy("base", 1e-6, seed=6),
    }
    derived |= {f"many-{i}": noisy(("medical", "chat")[i % 2], 0.1, seed=10 + i, dtype=torch.bfloat16) for i in range(MANY)}
    for i in range(ALIKE):
        change = functools.partial(blur_odd_rows, share=0.02, seed=30 + i)
        derived[f"alike-{i}"] = {"of": "chat", "dtype": torch.float32, "change": change}
    for name in ("base", "medical"):
        derived[f"{name}-narrow"] = {"of": name, "change": narrow}
        derived[f"{name}-scalar"] = {"of": name, "change": make_scalars}
        derived[f"{name}-large"] = {"of": name, "change": enlarge, "config": {"vocab_size": 11 * 1024}}
    for name, kwargs in derived.items():
        inputs[name] = folder / name
        derive(models, inputs[name], **kwargs)
    return {name: path.resolve() for name, path in inputs.items()}


def derive(models, target, of, dtype=None, shards=1, change=None, config=None):
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    tensors = load_checkpoint(models / of)
    tensors = change(tensors) if change else tensors
    tensors = {name: tensor.to(dtype or tensor.dtype).contiguous() for name, tensor in tensors.items()}
    settings = json.loads((models / of / "config.json").read_text()) | (config or {})
    if dtype:
        settings["dtype"] = str(dtype).removeprefix("torch.")
    (target / "config.json").write_text(json.dumps(settings, indent=2))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(models / of / file, target / file)
    save_sharded(tensors, target, shards)


def save_sharded(tensors, target, shards):
    if shards == 1:
        save_file(tensors, target / "model.safetensors", {"format": "pt"})
        return
    weight_map = {}
    # Names dealt out in turn: a layer's tensors lie in different shards, as a reader must be able to bear.
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in sorted(tensors)[shard::shards]}
        save_file(part, target / file, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (target / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def noisy(of, share, seed, dtype=torch.float32):
    return {"of": of, "dtype": dtype, "change": functools.partial(blur, share=share, seed=seed)}


def blur(tensors, share, seed):
    """Another fine-tune, in float32: a model with so much noise."""
    noise = torch.Generator().manual_seed(seed)
    return {name: tensor.float() * (1 + share * torch.randn(tensor.shape, generator=noise)) for name, tensor in tensors.items()}


def blur_odd_rows(tensors, share, seed):
    """The same, but of even rows the noise does not depend on the seed."""
    common, own = blur(tensors, share, 0), blur(tensors, share, seed)
    for name, tensor in common.items():
        tensor[1::2] = own[name][1::2]
    return common


def bend(base, tensors):
    """Rows in turn as in the base, twice as far from it, as far on its other side, and unchanged; norms as in the base."""
    bent = {}
    for name, start in load_checkpoint(base).items():
        factors = torch.tensor([0.0, 2.0, -1.0, 1.0]).repeat(len(start))[: len(start), None] if start.dim() > 1 else 0.0
        bent[name] = start.float() + factors * (tensors[name].float() - start.float())
    return bent


def roll(tensors):
    """At a right angle to the others, or nearly: each tensor's elements moved by one place."""
    return {name: tensor.roll(1) for name, tensor in tensors.items()}


def deepen(tensors):
    """Layers 2 and 3 once more, on top."""
    added = {
        name.replace(f"layers.{layer}.", f"layers.{layer + 2}."): tensor.clone()
        for layer in (2, 3)
        for name, tensor in tensors.items()
        if f"layers.{layer}." in name
    }
    return tensors | added


def widen(tensors):
    """Numbers that need float64."""
    return {name: tensor.double() / 3 for name, tensor in tensors.items()}


def tie(tensors):
    return {name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"}


def widen_vocabulary(tensors):
    wide = {}
    for name, tensor in tensors.items():
        vocabulary = name in ("lm_head.weight", "model.embed_tokens.weight")
        wide[name] = torch.cat([tensor, tensor[:16]]) if vocabulary else tensor
    return wide


def narrow(tensors):
    """One column of a matrix."""
    return {name: tensor[:, :1] if "o_proj" in name else tensor for name, tensor in tensors.items()}


def make_scalars(tensors):
    """The final norm as a tensor without dimensions."""
    return tensors | {"model.norm.weight": tensors["model.norm.weight"][0]}


def enlarge(tensors):
    """Two tensors of more than a million elements."""
    large = ("lm_head.weight", "model.embed_tokens.weight")
    return tensors | {name: tensors[name].repeat(11, 1) for name in large}


def load_checkpoint(folder):
    tensors = {}
    folder = pathlib.Path(folder)
    for file in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        shard = load_file(file) if file.suffix == ".safetensors" else torch.load(file, weights_only=True)
        assert not shard.keys() & tensors.keys(), f"{folder}: a tensor in two shards"
        tensors |= shard
    return tensors


# The derived inputs are read for many cases, and are small.
cached_checkpoint = functools.lru_cache(maxsize=None)(load_checkpoint)

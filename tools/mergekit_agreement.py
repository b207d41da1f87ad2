#!/usr/bin/env python3
"""Does mergeforge give what mergekit 0.1.5 gives for the configs that people write?

Every config below is of our own making. Each is merged by both tools and compared tensor by tensor: names, shapes,
types, values. At `dtype: float32` both tools compute in float32, so what is left to differ is rounding; anything more is
a bug, or one of the differences that METHODS.md lists as intended, and then the case says which.

    python tools/mergekit_agreement.py --mergeforge target/release/mergeforge --mergekit mergekit-yaml \\
        --models examples/models --work DIR [--out benches/results/NAME.md] [--only PART_OF_A_NAME]

With the Python of mergekit's environment, mergekit is imported once; with another, `--mergekit` is run for each config.
Needs torch, numpy, safetensors and PyYAML. The exit code is 1 if any case disagrees.

The scale of a difference is the largest of |out| (of both) and |input| at that element: the rounding of a sum is relative
to what was added up. For TIES two shares of agreeing elements are given: of all, and of those whose value does not hang
on a free choice or a rounding (see `undecided`).
"""

import argparse
import contextlib
import dataclasses
import datetime
import functools
import io
import json
import math
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import traceback

import numpy as np
import torch
import yaml
from safetensors.torch import load_file, save_file

# Differences up to this share of the scale are rounding in float32: a few operations of 2^-24 each.
TOLERANCE = 1e-6

# mergekit takes the angle of a slerp from a dot product in float32; ours is solved in float64. Its values are off by up to
# 3.3e-6 of the scale on these models, measured against float64 arithmetic.
SLERP_TOLERANCE = 1e-5

# One unit in the last place of a stored value, relative to it: two correct results may round to neighbours.
STORED_ULP = {torch.float32: 0.0, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}

# Neighbours are allowed to be rare only: a tool that truncates would differ by an ulp in half of the elements.
ROUNDED_APART = 0.001


# ---------------------------------------------------------------------------------------------------------------------
# Inputs


def make_inputs(models, folder):
    """Copies of the example checkpoints that differ from them in one respect each; returns name -> folder."""
    inputs = {name: models / name for name in ("base", "medical", "chat")}
    for name, kwargs in {
        "base-f32": {"of": "base", "dtype": torch.float32},
        "medical-f16": {"of": "medical", "dtype": torch.float16},
        "chat-f32": {"of": "chat", "dtype": torch.float32},
        "chat-sharded": {"of": "chat", "shards": 3},
        "third": {"of": "chat", "change": blur},
        "deep": {"of": "chat", "change": deepen, "config": {"num_hidden_layers": 6}},
        "medical-tied": {"of": "medical", "change": tie, "config": {"tie_word_embeddings": True}},
        "chat-tied": {"of": "chat", "change": tie, "config": {"tie_word_embeddings": True}},
        "chat-vocab": {"of": "chat", "change": widen_vocabulary, "config": {"vocab_size": 1040}},
    }.items():
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


def blur(tensors):
    """A third fine-tune: the chat model with 2 % of noise."""
    noise = torch.Generator().manual_seed(1)
    return {
        name: (tensor.float() * (1 + 0.02 * torch.randn(tensor.shape, generator=noise))).to(tensor.dtype)
        for name, tensor in tensors.items()
    }


def deepen(tensors):
    """Layers 2 and 3 once more, on top."""
    added = {
        name.replace(f"layers.{layer}.", f"layers.{layer + 2}."): tensor.clone()
        for layer in (2, 3)
        for name, tensor in tensors.items()
        if f"layers.{layer}." in name
    }
    return tensors | added


def tie(tensors):
    return {name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"}


def widen_vocabulary(tensors):
    wide = {}
    for name, tensor in tensors.items():
        vocabulary = name in ("lm_head.weight", "model.embed_tokens.weight")
        wide[name] = torch.cat([tensor, tensor[:16]]) if vocabulary else tensor
    return wide


def load_checkpoint(folder):
    tensors = {}
    for file in sorted(pathlib.Path(folder).glob("*.safetensors")):
        shard = load_file(file)
        assert not shard.keys() & tensors.keys(), f"{folder}: a tensor in two shards"
        tensors |= shard
    return tensors


# The derived inputs are read for many cases, and are small.
cached_checkpoint = functools.lru_cache(maxsize=None)(load_checkpoint)


# ---------------------------------------------------------------------------------------------------------------------
# Cases


@dataclasses.dataclass
class Case:
    """A config and how its two outputs compare.

    `kind`: values (agree to rounding), ties (the same, but for undecided elements), random (statistics only),
    refused (both must fail), ours_refuses (mergeforge must fail, on purpose: `why`). `tolerance` is what the verdict
    allows; the columns always count by TOLERANCE. `exempt` names tensors and config keys that differ on purpose."""

    name: str
    config: dict
    kind: str = "values"
    why: str = ""
    tolerance: float = TOLERANCE
    exempt: tuple = ()


def model(path, **parameters):
    return {"model": str(path)} | ({"parameters": parameters} if parameters else {})


def source(path, first, end, **parameters):
    return model(path, **parameters) | {"layer_range": [first, end]}


def merge(method, models=None, slices=None, base=None, dtype="float32", **rest):
    config = {"merge_method": method}
    config |= {"models": models} if models else {"slices": slices}
    config |= {"base_model": str(base)} if base else {}
    config |= {"dtype": dtype} if dtype else {}
    # `lambda` is a word of Python's.
    if "parameters" in rest:
        rest["parameters"] = {key.rstrip("_"): value for key, value in rest["parameters"].items()}
    return config | rest


def all_cases(of):
    cases = [
        *linear_cases(of),
        *slerp_cases(of),
        *task_arithmetic_cases(of),
        *ties_cases(of),
        *dare_cases(of),
        *passthrough_cases(of),
        *slice_cases(of),
        *type_cases(of),
        *scope_cases(of),
        *refused_cases(of),
    ]
    for case in cases:
        if case.config["merge_method"] == "slerp":
            case.tolerance = SLERP_TOLERANCE
    return cases


def linear_cases(of):
    medical, chat, third = of["medical"], of["chat"], of["third"]

    def linear(*models, **rest):
        return merge("linear", list(models), **rest)

    filtered = [{"filter": "self_attn", "value": 0.25}, {"filter": "mlp", "value": [0.5, 0.75, 1]}, {"value": 0.4}]
    return [
        Case("linear, half and half", linear(model(medical, weight=0.5), model(chat, weight=0.5))),
        Case("linear, weights that do not add up to 1", linear(model(medical, weight=0.3), model(chat, weight=2))),
        Case(
            "linear, normalize off",
            linear(model(medical, weight=0.3), model(chat, weight=0.9), parameters={"normalize": False}),
        ),
        Case("linear, a negative weight", linear(model(medical, weight=-0.5), model(chat, weight=1.5))),
        Case(
            "linear, weights as gradients",
            linear(model(medical, weight=[0.1, 0.9, 0.3]), model(chat, weight=[1, 0.2])),
        ),
        Case("linear, weights by filters", linear(model(medical, weight=filtered), model(chat, weight=0.6))),
        Case(
            "linear, three models", linear(model(medical, weight=0.2), model(chat, weight=0.3), model(third, weight=0.5))
        ),
        Case(
            "linear, base_model not listed, one weight for all",
            linear(model(medical), model(chat), base=of["base"], parameters={"weight": 1.0}),
        ),
        Case(
            "linear, gradient with normalize off",
            linear(model(medical, weight=[0, 1]), model(chat, weight=[1, 0]), parameters={"normalize": False}),
        ),
        Case(
            "linear, weights that add up to 0",
            linear(model(medical, weight=1), model(chat, weight=-1)),
            "ours_refuses",
            "mergekit divides by zero and writes infinities",
        ),
    ]


def slerp_cases(of):
    medical, chat = of["medical"], of["chat"]

    def slerp(t, base=medical, **rest):
        return merge("slerp", [model(medical), model(chat)], base=base, parameters={"t": t}, **rest)

    # The table that most published slerp merges carry.
    pasted = [
        {"filter": "self_attn", "value": [0, 0.5, 0.3, 0.7, 1]},
        {"filter": "mlp", "value": [1, 0.5, 0.7, 0.3, 0]},
        {"value": 0.5},
    ]
    whole = [{"sources": [source(medical, 0, 4), source(chat, 0, 4)]}]
    return [
        Case("slerp, t 0.5", slerp(0.5)),
        Case("slerp, base_model listed second", slerp(0.25, base=chat)),
        Case("slerp, t 0", slerp(0)),
        Case("slerp, t 1", slerp(1)),
        Case("slerp, t 1.5 beyond the other model", slerp(1.5)),
        Case("slerp, gradients by filters", merge("slerp", slices=whole, base=medical, parameters={"t": pasted})),
        Case("slerp, gradient over all tensors", slerp([0, 0.2, 1])),
        Case(
            "slerp, base and a model near it",
            merge("slerp", [model(of["base"]), model(medical)], base=of["base"], parameters={"t": 0.3}),
        ),
    ]


def task_arithmetic_cases(of):
    def arithmetic(a, b, **parameters):
        models = [model(of["medical"], weight=a), model(of["chat"], weight=b)]
        return merge("task_arithmetic", models, base=of["base"], parameters=parameters)

    listed = [model(of["base"]), model(of["medical"], weight=0.7), model(of["chat"], weight=0.6)]
    return [
        Case("task_arithmetic", arithmetic(0.5, 1.0)),
        Case("task_arithmetic, negative weights", arithmetic(-0.5, 1.25)),
        Case("task_arithmetic, lambda", arithmetic(0.5, 1.0, lambda_=0.7)),
        Case("task_arithmetic, normalize", arithmetic(0.5, 1.0, normalize=True)),
        Case("task_arithmetic, normalize, weights that add up to 0", arithmetic(1.0, -1.0, normalize=True)),
        Case("task_arithmetic, base listed too", merge("task_arithmetic", listed, base=of["base"])),
    ]


def ties_cases(of):
    medical, chat, third = of["medical"], of["chat"], of["third"]

    def ties(*models, **parameters):
        return merge("ties", list(models), base=of["base"], parameters=parameters)

    def both(density, a=0.5, b=0.5, **parameters):
        return ties(model(medical, density=density, weight=a), model(chat, density=density, weight=b), **parameters)

    three = [model(path, density=0.4, weight=weight) for path, weight in ((medical, 1), (chat, 0.7), (third, 0.4))]
    gradients = [model(medical, density=[1, 0.7, 0.1], weight=1), model(chat, density=[0.2, 0.9], weight=[0, 0.3, 1])]
    filters = [{"filter": "mlp", "value": 0.2}, {"filter": "norm", "value": 1}, {"value": 0.6}]
    cases = {
        "density 0.5": both(0.5),
        "density 0.01": both(0.01),
        "density 0.2": both(0.2),
        "density 0.9": both(0.9),
        "density 1": both(1.0),
        "densities and weights as gradients": ties(*gradients),
        "densities by filters": both(filters),
        "a negative weight": both(0.5, 1.0, -0.5),
        "normalize off": both(0.5, normalize=False),
        "int8_mask": both(0.5, int8_mask=True),
        "lambda": both(0.5, lambda_=1.5),
        "unequal weights": both(0.3, 0.2, 1.3),
        "three models": ties(*three),
        "one model": ties(model(chat, density=0.3, weight=1.0)),
        "rescale": both(0.3, rescale=True),
    }
    return [Case(f"ties, {name}", config, "ties") for name, config in cases.items()]


def dare_cases(of):
    def dare(method, *densities, weight=0.6, **parameters):
        paths = [of["chat"], of["medical"]]
        models = [model(path, density=density, weight=weight) for path, density in zip(paths, densities)]
        return merge(method, models, base=of["base"], parameters=parameters)

    masks = "random masks are our own"
    return [
        Case("dare_linear, density 1", dare("dare_linear", 1.0, 1.0)),
        Case("dare_ties, density 1", dare("dare_ties", 1.0, 1.0)),
        Case("dare_ties, density 1, normalize", dare("dare_ties", 1.0, 1.0, normalize=True)),
        Case("dare_linear, one model, density 0.5", dare("dare_linear", 0.5), "random", masks),
        Case("dare_linear, one model, density 0.1, no rescale", dare("dare_linear", 0.1, rescale=False), "random", masks),
        Case("dare_ties, one model, density 0.9", dare("dare_ties", 0.9), "random", masks),
        Case("dare_linear, two models", dare("dare_linear", 0.5, 0.3), "random", masks),
        Case("dare_ties, two models", dare("dare_ties", 0.5, 0.3), "random", masks),
    ]


def passthrough_cases(of):
    medical, chat = of["medical"], of["chat"]

    def stack(*sources, **rest):
        return merge("passthrough", slices=[{"sources": [one]} for one in sources], **rest)

    scale = [{"filter": "o_proj", "value": 0}, {"filter": "down_proj", "value": 0.5}, {"value": 1.0}]
    return [
        Case("passthrough, one model", merge("passthrough", [model(chat)])),
        Case("passthrough, frankenmerge", stack(source(medical, 0, 3), source(chat, 1, 4))),
        Case("passthrough, repeated layers", stack(source(chat, 0, 3), source(chat, 1, 3), source(chat, 1, 4))),
        Case(
            "passthrough, scale by filters",
            stack(source(chat, 0, 4), source(chat, 3, 4, scale=scale)),
        ),
        Case("passthrough, no dtype", stack(source(chat, 0, 2), source(medical, 2, 4), dtype=None)),
        Case("passthrough, a deeper model cut", stack(source(of["deep"], 0, 2), source(of["deep"], 3, 6))),
    ]


def slice_cases(of):
    base, medical, chat, deep = of["base"], of["medical"], of["chat"], of["deep"]

    def pair(a, b, **rest):
        return {"sources": [a, b]} | rest

    own_bases = [
        pair(source(medical, 0, 2), source(chat, 0, 2), base_model=str(chat)),
        pair(source(medical, 2, 4), source(chat, 2, 4)),
    ]
    offset = [
        pair(source(medical, 0, 2, weight=0.25), source(chat, 2, 4, weight=0.75)),
        pair(source(medical, 1, 4, weight=0.5), source(deep, 3, 6, weight=[0.2, 0.8])),
    ]
    single = [pair(source(medical, layer, layer + 1), source(chat, layer, layer + 1)) for layer in range(4)]
    vectors = [{"sources": [source(base, 0, 4), source(medical, 0, 4, weight=0.5), source(chat, 0, 4, weight=1)]}]
    trimmed = [
        {"sources": [source(base, 0, 2), source(chat, 0, 2, weight=1, density=[0.3, 0.6]), source(medical, 0, 2, weight=2)]},
        {"sources": [source(base, 2, 4), source(chat, 2, 4, weight=1, density=0.2), source(medical, 2, 4, weight=1)]},
    ]
    uneven = [{"sources": trimmed[0]["sources"][:2]}, trimmed[1]]
    return [
        Case("slices, a base_model of their own", merge("slerp", slices=own_bases, base=medical, parameters={"t": 0.2})),
        Case("slices, ranges with an offset", merge("linear", slices=offset)),
        Case("slices of one layer", merge("slerp", slices=single, base=medical, parameters={"t": [0, 0.7]})),
        Case("slices, task vectors", merge("task_arithmetic", slices=vectors, base=base)),
        Case("slices, ties", merge("ties", slices=trimmed, base=base, parameters={"density": 0.5}), "ties"),
        Case(
            "slices with two sources, then three",
            merge("ties", slices=uneven, base=base, parameters={"density": 0.5}),
            "ties",
            "mergekit gives final norm and lm_head only as many of the last slice's models as the first slice has",
            exempt=("model.norm.weight", "lm_head.weight"),
        ),
        Case(
            "models with more layers, cut to the fewer",
            merge("linear", slices=[pair(source(deep, 0, 4, weight=0.4), source(medical, 0, 4, weight=0.6))]),
        ),
        Case(
            "a layer range past the end",
            merge("linear", slices=[pair(source(medical, 0, 5, weight=0.5), source(chat, 0, 5, weight=0.5))]),
            "ours_refuses",
            "there is no such layer",
        ),
    ]


def type_cases(of):
    halves = [model(of["medical"], weight=0.5), model(of["chat"], weight=0.5)]
    unweighted = [model(of["medical"]), model(of["chat"])]
    mixed = [model(of["medical-f16"], weight=0.3), model(of["chat-f32"], weight=0.3), model(of["base"], weight=0.4)]
    vectors = [model(of["medical-f16"], weight=0.5), model(of["chat"], weight=1)]
    tied = [model(of["medical-tied"], weight=0.3), model(of["chat-tied"], weight=0.7)]
    return [
        Case("out_dtype bfloat16", merge("linear", halves, out_dtype="bfloat16")),
        Case("out_dtype float16", merge("linear", halves, out_dtype="float16")),
        Case("out_dtype bfloat16, slerp", merge("slerp", unweighted, base=of["chat"], parameters={"t": 0.4}, out_dtype="bfloat16")),
        Case("dtype bfloat16, linear", merge("linear", halves, dtype="bfloat16")),
        Case("inputs of three types", merge("linear", mixed)),
        Case(
            "inputs of three types, no dtype",
            merge("linear", mixed, dtype=None),
            why="config.json names the type that was written",
            exempt=("dtype",),
        ),
        Case("task vectors of two types", merge("task_arithmetic", vectors, base=of["base-f32"])),
        Case("a sharded input", merge("linear", [halves[0], model(of["chat-sharded"], weight=0.5)])),
        Case("tied models", merge("linear", tied)),
        Case(
            "a tied and an untied model",
            merge("linear", [model(of["medical-tied"], weight=0.3), model(of["chat"], weight=0.7)], base=of["medical-tied"]),
            why="tie_word_embeddings says what was written",
            exempt=("tie_word_embeddings",),
        ),
    ]


def scope_cases(of):
    medical, chat = of["medical"], of["chat"]
    slices = [
        {
            "sources": [source(medical, 0, 2, weight=0.9), source(chat, 0, 2)],
            "parameters": {"weight": [{"filter": "mlp", "value": 0.2}], "normalize": False},
        },
        {
            "sources": [source(medical, 2, 4), source(chat, 2, 4, weight=[{"filter": "q_proj", "value": 0.1}])],
            "parameters": {"weight": [0.3, 0.8]},
        },
    ]
    t_slices = [
        {"sources": [source(medical, 0, 2), source(chat, 0, 2)], "parameters": {"t": [{"filter": "mlp", "value": 0.9}]}},
        {"sources": [source(medical, 2, 4, t=0.99), source(chat, 2, 4)]},
    ]
    unknown = [model(medical, weight=0.5, wieght=3), model(chat, weight=0.5)]
    return [
        Case("parameters in every scope", merge("linear", slices=slices, parameters={"weight": 0.5})),
        Case("a shared parameter in every scope", merge("slerp", slices=t_slices, base=chat, parameters={"t": [0.1, 0.6]})),
        Case("unknown keys", merge("linear", unknown, parameters={"embed_slerp": True}, name="ours")),
    ]


def refused_cases(of):
    base, medical, chat = of["base"], of["medical"], of["chat"]
    halves = [model(medical, weight=0.5), model(chat, weight=0.5)]
    unequal = [{"sources": [source(medical, 0, 2, weight=0.5), source(chat, 0, 3, weight=0.5)]}]
    no_base = [{"sources": [source(medical, 0, 4, weight=0.5), source(chat, 0, 4, weight=0.5)]}]
    cases = {
        "an unknown method": merge("linaer", halves),
        "a missing weight": merge("linear", [halves[0], model(chat)]),
        "no weight for a base_model that is not listed": merge("linear", halves, base=base),
        "a model listed twice": merge("linear", [halves[0], halves[0]]),
        "slerp of three models": merge("slerp", [model(base), model(medical), model(chat)], base=base, parameters={"t": 0.5}),
        "slerp without base_model": merge("slerp", [model(medical), model(chat)], parameters={"t": 0.5}),
        "slerp without t": merge("slerp", [model(medical), model(chat)], base=medical),
        "ties without base_model": merge("ties", halves),
        "vocabularies of two sizes": merge("linear", [halves[0], model(of["chat-vocab"], weight=0.5)]),
        "ranges of two lengths": merge("linear", slices=unequal),
        "a base_model that is not in the slice": merge("task_arithmetic", slices=no_base, base=base),
        "passthrough of two models": merge("passthrough", [model(medical), model(chat)]),
        "a model that is not there": merge("linear", [halves[0], model(chat.parent / "nowhere", weight=0.5)]),
        "a weight that is no number": merge("linear", [halves[0], model(chat, weight="heavy")]),
        "no models": {"merge_method": "linear", "dtype": "float32"},
    }
    return [Case(f"refused: {name}", config, "refused") for name, config in cases.items()]


# ---------------------------------------------------------------------------------------------------------------------
# What a config means for one tensor: just enough of it to tell which elements TIES leaves to chance


@dataclasses.dataclass
class Origin:
    """Where an output tensor comes from: (model, input tensor, the source's own parameters) in order, and its slice."""

    sources: list
    slice_parameters: dict
    position: float
    base: str | None


def origin(config, name):
    parts = name.split(".")
    layer = next((int(part) for part in parts if part.isdigit()), None)
    slices = config.get("slices") or [{"sources": whole_models(config)}]
    if layer is None:
        # Embeddings belong to the first slice, all that follows the layers to the last; both are at the start of a gradient.
        part = slices[0] if "embed" in name else slices[-1]
        return origin_in(config, part, name, 0, lambda one: name)
    first = 0
    for part in slices:
        count = part["sources"][0]["layer_range"][1] - part["sources"][0]["layer_range"][0]
        if layer < first + count:
            inside = layer - first
            position = inside / (count - 1) if count > 1 else 1
            moved = lambda one: name.replace(f".{layer}.", f".{one['layer_range'][0] + inside}.", 1)
            return origin_in(config, part, name, position, moved)
        first += count
    raise ValueError(f"{name} lies in no slice")


def origin_in(config, part, name, position, input_name):
    sources = []
    for one in part["sources"]:
        found = input_name(one)
        if found not in cached_checkpoint(one["model"]):
            assert found == "lm_head.weight", found
            found = "model.embed_tokens.weight"
        sources.append((one["model"], found, one.get("parameters", {})))
    base = part.get("base_model", config.get("base_model"))
    return Origin(sources, part.get("parameters", {}), position, base)


def whole_models(config):
    listed = config["models"]
    base = config.get("base_model")
    if base and all(one["model"] != base for one in listed):
        listed = [*listed, {"model": base}]
    return [one | {"layer_range": [0, layer_count(one["model"])]} for one in listed]


@functools.lru_cache(maxsize=None)
def layer_count(folder):
    return json.loads((pathlib.Path(folder) / "config.json").read_text())["num_hidden_layers"]


def parameter(config, place, source_at, key, default):
    """The value of a number for one model and tensor: the innermost scope with an entry for this tensor wins."""
    _, name, own = place.sources[source_at]
    for scope in (own, place.slice_parameters, config.get("parameters", {})):
        if key in scope:
            for entry in entries(scope[key]):
                if entry.get("filter") in (None, "*") or entry["filter"] in name:
                    return interpolate(entry["value"], place.position)
    return default


def entries(setting):
    if isinstance(setting, list) and setting and isinstance(setting[0], dict):
        return setting
    return [setting] if isinstance(setting, dict) else [{"value": setting}]


def interpolate(value, position):
    if not isinstance(value, list):
        return value
    at = position * (len(value) - 1)
    low = math.trunc(at)
    high = min(low + 1, len(value) - 1)
    return value[low] + (at - low) * (value[high] - value[low])


def input_arrays(place):
    return [cached_checkpoint(folder)[name].float().numpy() for folder, name, _ in place.sources]


def task_vectors(config, name):
    """Base, and (task vector, weight, density) of every other model, in float32 as both tools compute them."""
    place = origin(config, name)
    arrays = input_arrays(place)
    base_at = next(i for i, (folder, _, _) in enumerate(place.sources) if folder == place.base)
    vectors = [
        (arrays[i] - arrays[base_at], parameter(config, place, i, "weight", None), parameter(config, place, i, "density", 1))
        for i in range(len(arrays))
        if i != base_at
    ]
    return arrays[base_at], vectors


def undecided(config, name):
    """Elements of a TIES merge whose value is a free choice or hangs on a rounding:

    those whose magnitude is the k-th, where only some of that magnitude are kept (which ones depends on the sort), and
    those whose vote is within rounding of zero."""
    base, vectors = task_vectors(config, name)
    free = np.zeros(base.shape, bool)
    vote = np.zeros(base.shape)
    total = np.zeros(base.shape)
    for delta, weight, density in vectors:
        magnitude = np.abs(delta)
        kept = magnitude > -1
        if density < 1:
            k = max(1, math.trunc(density * delta.size))
            cut = np.partition(magnitude, magnitude.size - k, axis=None)[magnitude.size - k]
            kept = magnitude >= cut
            if kept.sum() > k and cut > 0:
                free |= magnitude == cut
        vote += np.where(kept, weight * delta.astype(np.float64), 0)
        total += np.where(kept, np.abs(weight * delta.astype(np.float64)), 0)
    return free | ((total > 0) & (np.abs(vote) <= TOLERANCE * total))


# ---------------------------------------------------------------------------------------------------------------------
# Comparing


@dataclasses.dataclass
class Result:
    """One line of the table. `problems` is empty where the tools agree."""

    case: Case
    worst: float | None = None
    equal_all: float | None = None
    equal_decided: float | None = None
    problems: list = dataclasses.field(default_factory=list)
    note: str = ""

    def verdict(self):
        if self.problems:
            more = f" (and {len(self.problems) - 3} more)" if len(self.problems) > 3 else ""
            return "DISAGREE: " + "; ".join(self.problems[:3]) + more
        if self.note:
            return self.note
        return f"differs on purpose ({self.case.why})" if self.case.why else "agree"


def judge(case, ours, theirs, ours_error, theirs_error):
    """`ours` and `theirs` are the output folders; an error is a tool's last words, or None where it succeeded."""
    result = Result(case)
    if ours_error and "panicked" in ours_error:
        result.problems.append(f"mergeforge panicked: {ours_error}")
    elif case.kind in ("refused", "ours_refuses"):
        judge_refusal(result, ours, ours_error, theirs_error)
    elif ours_error or theirs_error:
        result.problems += [f"mergeforge refused: {ours_error}"] if ours_error else []
        result.problems += [f"mergekit refused: {theirs_error}"] if theirs_error else []
    else:
        judge_outputs(result, ours, theirs)
    return result


def judge_refusal(result, ours, ours_error, theirs_error):
    if not ours_error:
        result.problems.append("mergeforge accepted it")
    if list(pathlib.Path(ours).glob("*.safetensors")):
        result.problems.append("mergeforge left tensors behind")
    if result.case.kind == "refused" and not theirs_error:
        result.problems.append("mergekit accepted it")
    if not result.problems and theirs_error:
        result.note = "agree (both refuse)"


def judge_outputs(result, ours, theirs):
    compare_configs(result, ours, theirs)
    ours, theirs = load_checkpoint(ours), load_checkpoint(theirs)
    if not ours or ours.keys() != theirs.keys():
        apart = sorted(ours.keys() ^ theirs.keys())
        result.problems.append(f"{len(apart)} tensors only on one side: {', '.join(apart[:3])}")
        return
    for name in sorted(ours):
        a, b = ours[name], theirs[name]
        if (a.dtype, a.shape) != (b.dtype, b.shape):
            result.problems.append(f"{name} is {describe(a)}, not {describe(b)}")
    if not result.problems:
        (compare_random if result.case.kind == "random" else compare_values)(result, ours, theirs)


def describe(tensor):
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def compare_configs(result, ours, theirs):
    """The keys that say how to read the tensors."""
    ours, theirs = (json.loads((pathlib.Path(folder) / "config.json").read_text()) for folder in (ours, theirs))
    for settings in (ours, theirs):
        settings["dtype"] = settings.get("dtype", settings.get("torch_dtype"))
    for key in ("num_hidden_layers", "vocab_size", "hidden_size", "tie_word_embeddings", "dtype"):
        if ours.get(key) != theirs.get(key) and key not in result.case.exempt:
            result.problems.append(f"config.json: {key} is {ours.get(key)}, not {theirs.get(key)}")


def compare_values(result, ours, theirs):
    case = result.case
    equal = decided_equal = count = decided_count = 0
    result.worst = 0.0
    for name in sorted(ours.keys() - set(case.exempt)):
        a, b = ours[name].double().numpy(), theirs[name].double().numpy()
        relative = relative_difference(a, b, input_arrays(origin(case.config, name)))
        decided = ~undecided(case.config, name) if case.kind == "ties" else np.ones(a.shape, bool)
        # What is stored in 16 bits is equal when its bits are: rounding has hidden anything less.
        ulp = STORED_ULP[ours[name].dtype]
        same = (a == b) if ulp else relative <= TOLERANCE
        near = np.abs(a - b) <= ulp * np.maximum(np.abs(a), np.abs(b)) if ulp else relative <= case.tolerance
        far = decided & ~near
        if far.any():
            result.problems.append(f"{name}: {int(far.sum())} of {far.size} differ, by up to {relative[far].max():.2g}")
        equal += int(same.sum())
        count += same.size
        decided_equal += int((same & decided).sum())
        decided_count += int(decided.sum())
        result.worst = max(result.worst, float(relative[decided].max(initial=0.0)))
        compare_kept(result, name, a, b)
    result.equal_all, result.equal_decided = equal / count, decided_equal / decided_count
    # In 16 bits, elements an ulp apart passed above; here they may be but few.
    rounded = any(STORED_ULP[tensor.dtype] for tensor in ours.values())
    if rounded and result.equal_decided < 1 - ROUNDED_APART:
        result.problems.append(f"{1 - result.equal_decided:.2%} of the elements differ")
    if decided_count < count / 2:
        result.problems.append("more than half of the elements are undecided: this case tests nothing")


def relative_difference(a, b, inputs):
    scale = np.maximum(np.abs(a), np.abs(b))
    for array in inputs:
        scale = np.maximum(scale, np.abs(array))
    difference = np.abs(a - b)
    relative = np.divide(difference, scale, out=np.zeros_like(a), where=difference != 0)
    # NaN against a number must not pass as "not greater than".
    return np.where(np.isnan(a) & np.isnan(b), 0, np.where(np.isnan(relative), np.inf, relative))


def compare_kept(result, name, a, b):
    """With one task vector, what TIES kept can be counted in the output: ties must not change how many are kept."""
    if result.case.kind != "ties":
        return
    base, vectors = task_vectors(result.case.config, name)
    if len(vectors) == 1:
        kept = [int((out != base).sum()) for out in (a, b)]
        if kept[0] != kept[1]:
            result.problems.append(f"{name}: {kept[0]} elements kept, not {kept[1]}")


def compare_random(result, ours, theirs):
    """DARE: the masks differ, so what is compared is what they leave: how many elements, how much of |delta|."""
    totals = {"mergeforge": [0, 0, 0.0], "mergekit": [0, 0, 0.0]}
    for name in sorted(ours):
        base, vectors = task_vectors(result.case.config, name)
        moved = np.any([delta != 0 for delta, _, _ in vectors], axis=0)
        for tool, out in (("mergeforge", ours[name].numpy()), ("mergekit", theirs[name].numpy())):
            if not np.isfinite(out).all():
                result.problems.append(f"{name}: {tool} wrote NaN or infinity")
            if len(vectors) == 1:
                result.problems += check_one_mask(result.case.config, name, tool, base, vectors[0], out)
            totals[tool][0] += int((out != base).sum())
            totals[tool][1] += int(moved.sum())
            totals[tool][2] += float(np.abs(out.astype(np.float64) - base).sum())
    compare_totals(result, *totals.values())


def compare_totals(result, ours, theirs):
    (ours_kept, moved, ours_sum), (theirs_kept, _, theirs_sum) = ours, theirs
    # Two binomial counts: six standard deviations of their difference, at the widest.
    if abs(ours_kept - theirs_kept) > 6 * math.sqrt(moved / 2):
        result.problems.append(f"{ours_kept / moved:.4f} of the elements kept, not {theirs_kept / moved:.4f}")
    if abs(ours_sum / theirs_sum - 1) > 0.01:
        result.problems.append(f"the sum of |delta| is {ours_sum / theirs_sum:.4f} times mergekit's")
    if not result.problems:
        result.note = (
            f"differs on purpose ({result.case.why}; kept {ours_kept / moved:.4f} and {theirs_kept / moved:.4f}, "
            f"ratio of Σ abs(delta) {ours_sum / theirs_sum:.4f})"
        )


def check_one_mask(config, name, tool, base, vector, out):
    """With one task vector the mask is visible: its share, one scale for all that is kept, and the sum of |delta|."""
    delta, weight, density = vector
    delta = delta.astype(np.float64)
    step = out.astype(np.float64) - base
    kept = out != base
    moved = int((delta != 0).sum())
    if moved == 0 or not kept.any():
        return [] if not kept.any() else [f"{name}: {tool} moved an element that has no delta"]
    problems = []
    if abs(int(kept.sum()) - density * moved) > 6 * math.sqrt(density * (1 - density) * moved) + 1:
        problems.append(f"{name}: {tool} kept {kept.sum() / moved:.4f}, not {density}")
    scale = np.abs(step).sum() / np.abs(delta[kept]).sum() * math.copysign(1, weight)
    expected = np.where(kept, scale * delta, 0)
    if (np.abs(step - expected) > 4 * TOLERANCE * (np.abs(base) + np.abs(expected))).any():
        problems.append(f"{name}: {tool} scaled elements by different factors")
    if config.get("parameters", {}).get("rescale", True):
        share = np.abs(step).sum() / (abs(weight) * np.abs(delta).sum())
        if abs(share - 1) > 1e-4:
            problems.append(f"{name}: {tool} left {share:.5f} of the sum of |delta|")
    elif abs(scale - weight) > 1e-4 * abs(weight):
        problems.append(f"{name}: {tool} rescaled by {scale / weight:.5f}")
    return problems


# ---------------------------------------------------------------------------------------------------------------------
# Running


def run_mergeforge(binary, config, out):
    done = subprocess.run([binary, "merge", str(config), str(out)], capture_output=True, text=True, timeout=600)
    (out.parent / "mergeforge.log").write_text(done.stdout + done.stderr)
    if done.returncode == 0:
        return None
    # A signal or Rust's own exit code for panics is no refusal.
    crash = "panicked, " if done.returncode < 0 or done.returncode == 101 else ""
    return f"{crash}exit {done.returncode}: {last_line(done.stderr)}"


def run_mergekit(command, config, out):
    try:
        from mergekit.config import MergeConfiguration
        from mergekit.merge import run_merge
        from mergekit.options import MergeOptions
    except ImportError:
        return run_mergekit_command(command, config, out)
    words = io.StringIO()
    try:
        with contextlib.redirect_stdout(words), contextlib.redirect_stderr(words):
            settings = MergeConfiguration.model_validate(yaml.safe_load(config.read_text()))
            options = MergeOptions(quiet=True, random_seed=1, write_model_card=False)
            run_merge(settings, str(out), options=options)
    except (Exception, SystemExit) as error:
        (out.parent / "mergekit.log").write_text(words.getvalue() + traceback.format_exc())
        return f"{type(error).__name__}: {last_line(str(error))}"
    (out.parent / "mergekit.log").write_text(words.getvalue())
    return None


def run_mergekit_command(command, config, out):
    done = subprocess.run(
        [command, str(config), str(out), "--quiet", "--random-seed", "1"], capture_output=True, text=True, timeout=600
    )
    (out.parent / "mergekit.log").write_text(done.stdout + done.stderr)
    return None if done.returncode == 0 else last_line(done.stderr)


def last_line(text):
    return (text.strip().splitlines() or ["no message"])[-1][:200]


def run_case(case, args):
    folder = args.work / "runs" / "".join(c if c.isalnum() else "-" for c in case.name)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config = folder / "config.yml"
    config.write_text(yaml.safe_dump(case.config, sort_keys=False))
    theirs_error = run_mergekit(args.mergekit, config, folder / "mergekit")
    ours_error = run_mergeforge(args.mergeforge, config, folder / "mergeforge")
    return judge(case, folder / "mergeforge", folder / "mergekit", ours_error, theirs_error)


# ---------------------------------------------------------------------------------------------------------------------
# Report


def report(results, args):
    lines = [
        "# Agreement with mergekit",
        "",
        f"{datetime.date.today()}, {machine()}; {version(args.mergeforge)}, mergekit {mergekit_version()}, "
        f"torch {torch.__version__}; inputs: `examples/models` and variants of them. Made by `tools/mergekit_agreement.py`, "
        "which says what the columns mean.",
        "",
        "| case | max abs(diff) / scale | equal, all elements | equal, decided elements | verdict |",
        "| --- | --- | --- | --- | --- |",
        *(row(result) for result in results),
        "",
        summary(results),
        "",
    ]
    return "\n".join(lines)


def row(result):
    worst = "–" if result.worst is None else f"{result.worst:.1e}"
    cells = [result.case.name, worst, percent(result.equal_all), percent(result.equal_decided), result.verdict()]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def percent(share):
    """Rounded down: 100 % means all."""
    return "–" if share is None else f"{math.floor(share * 1e6) / 1e4:.4f} %".replace("100.0000", "100")


def summary(results):
    disagree = sum(bool(result.problems) for result in results)
    purpose = sum(result.verdict().startswith("differs on purpose") for result in results)
    return f"{len(results)} cases: {len(results) - disagree - purpose} agree, {purpose} differ on purpose, {disagree} disagree."


def machine():
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.split(':')[1].strip()}, {os.cpu_count()} threads"
    return f"{platform.machine()}, {os.cpu_count()} threads"


def version(binary):
    done = subprocess.run([binary, "--version"], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 and done.stdout.strip() else "mergeforge"


def mergekit_version():
    from importlib import metadata

    try:
        return metadata.version("mergekit")
    except metadata.PackageNotFoundError:
        return "as a command"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mergeforge", required=True, help="the binary")
    parser.add_argument("--mergekit", default="mergekit-yaml", help="the command, where mergekit cannot be imported")
    parser.add_argument("--models", type=pathlib.Path, default=pathlib.Path("examples/models"))
    parser.add_argument("--work", type=pathlib.Path, required=True, help="folder for inputs, outputs and logs")
    parser.add_argument("--out", type=pathlib.Path, help="file to save the table to")
    parser.add_argument("--only", default="", help="run the cases whose name contains this")
    # No merge may profit from the one before.
    os.environ["MERGEFORGE_CACHE"] = ""
    args = parser.parse_args()
    # The binary and the configs are used from other folders.
    args.work = args.work.resolve()
    args.mergeforge = shutil.which(args.mergeforge) or sys.exit(f"no program {args.mergeforge}")
    torch.set_num_threads(1)

    cases = [case for case in all_cases(make_inputs(args.models, args.work / "inputs")) if args.only in case.name]
    results = []
    for case in cases:
        results.append(run_case(case, args))
        print(f"{case.name}: {results[-1].verdict()}", file=sys.stderr)
    table = report(results, args)
    print(table)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(table)
    sys.exit(any(result.problems for result in results) or not results)


if __name__ == "__main__":
    main()

"""What `mergekit_agreement.py` merges: the inputs, and the configs with how their two outputs compare."""

import dataclasses
import functools
import json
import pathlib
import shutil

import torch
from safetensors.torch import load_file, save_file

# The methods that see tensors as vectors.
ANGLES = ("slerp", "nuslerp", "multislerp", "karcher", "model_stock")


# ---------------------------------------------------------------------------------------------------------------------
# Inputs


def make_inputs(models, folder):
    """Copies of the example checkpoints that differ from them in one respect each; returns name -> folder."""
    inputs = {name: models / name for name in ("base", "medical", "chat")}
    for name, kwargs in {
        "base-f32": {"of": "base", "dtype": torch.float32},
        "base-sharded": {"of": "base", "shards": 2},
        "medical-f16": {"of": "medical", "dtype": torch.float16},
        "chat-f32": {"of": "chat", "dtype": torch.float32},
        "chat-sharded": {"of": "chat", "shards": 3},
        "third": {"of": "chat", "change": blur},
        "bent": {"of": "medical", "dtype": torch.float32, "change": functools.partial(bend, models / "base")},
        "far": {"of": "chat", "change": roll},
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

    `kind`: values (agree to rounding), ties and angles (the same, but for undecided elements), random (statistics only),
    refused (both must fail), ours_refuses and theirs_refuses (one must fail, on purpose: `why`). `exempt` names tensors and
    config keys that differ on purpose."""

    name: str
    config: dict
    kind: str = "values"
    why: str = ""
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


def named(prefix, cases, kind="values", joined_by=", "):
    return [Case(prefix + joined_by + name, config, kind) for name, config in cases.items()]


def all_cases(of):
    cases = [
        *linear_cases(of),
        *slerp_cases(of),
        *nuslerp_cases(of),
        *multislerp_cases(of),
        *karcher_cases(of),
        *model_stock_cases(of),
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
        # What is stored in 16 bits shows no such distances.
        if case.config["merge_method"] in ANGLES and case.kind == "values" and "out_dtype" not in case.config:
            case.kind = "angles"
    return cases


def linear_cases(of):
    medical, chat, third = of["medical"], of["chat"], of["third"]

    def linear(*models, **rest):
        return merge("linear", list(models), **rest)

    plain = {"normalize": False}
    filtered = [{"filter": "self_attn", "value": 0.25}, {"filter": "mlp", "value": [0.5, 0.75, 1]}, {"value": 0.4}]
    cases = {
        "half and half": linear(model(medical, weight=0.5), model(chat, weight=0.5)),
        "weights that do not add up to 1": linear(model(medical, weight=0.3), model(chat, weight=2)),
        "normalize off": linear(model(medical, weight=0.3), model(chat, weight=0.9), parameters=plain),
        "a negative weight": linear(model(medical, weight=-0.5), model(chat, weight=1.5)),
        "weights as gradients": linear(model(medical, weight=[0.1, 0.9, 0.3]), model(chat, weight=[1, 0.2])),
        "weights by filters": linear(model(medical, weight=filtered), model(chat, weight=0.6)),
        "three models": linear(model(medical, weight=0.2), model(chat, weight=0.3), model(third, weight=0.5)),
        "base_model not listed, one weight for all": linear(
            model(medical), model(chat), base=of["base"], parameters={"weight": 1.0}
        ),
        "gradient with normalize off": linear(model(medical, weight=[0, 1]), model(chat, weight=[1, 0]), parameters=plain),
    }
    nothing = linear(model(medical, weight=1), model(chat, weight=-1))
    why = "mergekit divides by zero and writes infinities"
    return [*named("linear", cases), Case("linear, weights that add up to 0", nothing, "ours_refuses", why)]


def slerp_cases(of):
    medical, chat = of["medical"], of["chat"]

    def slerp(t, base=medical, models=(medical, chat)):
        return merge("slerp", list(map(model, models)), base=base, parameters={"t": t})

    # The table that most published slerp merges carry.
    pasted = [
        {"filter": "self_attn", "value": [0, 0.5, 0.3, 0.7, 1]},
        {"filter": "mlp", "value": [1, 0.5, 0.7, 0.3, 0]},
        {"value": 0.5},
    ]
    whole = [{"sources": [source(medical, 0, 4), source(chat, 0, 4)]}]
    cases = {
        "t 0.5": slerp(0.5),
        "base_model listed second": slerp(0.25, base=chat),
        "t 0": slerp(0),
        "t 1": slerp(1),
        "t 1.5 beyond the other model": slerp(1.5),
        "gradients by filters": merge("slerp", slices=whole, base=medical, parameters={"t": pasted}),
        "gradient over all tensors": slerp([0, 0.2, 1]),
        "base and a model near it": slerp(0.3, base=of["base"], models=(of["base"], medical)),
    }
    return named("slerp", cases)


def nuslerp_cases(of):
    medical, chat, base = of["medical"], of["chat"], of["base"]

    def nuslerp(a=0.4, b=0.8, other=chat, base=None, **parameters):
        return merge("nuslerp", [model(medical, weight=a), model(other, weight=b)], base=base, parameters=parameters)

    rows, columns = {"nuslerp_flatten": False}, {"nuslerp_flatten": False, "nuslerp_row_wise": True}
    cases = {
        "flat": nuslerp(),
        "flat, base_model": nuslerp(base=base),
        "rows": nuslerp(**rows),
        "rows, base_model": nuslerp(base=base, **rows),
        "columns": nuslerp(**columns),
        "columns, base_model": nuslerp(base=base, **columns),
        "flat, nuslerp_row_wise": nuslerp(base=base, nuslerp_row_wise=True),
        "weights that add up to 0": nuslerp(1, -1, base=base),
        "a negative weight": nuslerp(-0.5, 1.5, base=base),
        "weights as gradients": nuslerp([0.2, 1], [1, 0.1], base=base),
        "models alike": nuslerp(other=of["third"]),
        "models far apart": nuslerp(other=of["far"]),
        "rows equal, parallel, opposite, and as in the base": nuslerp(other=of["bent"], base=base, **rows),
    }
    return named("nuslerp", cases)


def multislerp_cases(of):
    medical, chat, third, base = of["medical"], of["chat"], of["third"], of["base"]
    two = [model(medical, weight=0.4), model(chat, weight=0.8)]
    three = [*two, model(third, weight=0.3)]
    unchanged = [model(of["bent"], weight=1), model(of["base-f32"], weight=1)]
    cases = {
        "two models": merge("multislerp", two),
        "two models, base_model": merge("multislerp", two, base=base),
        "three models": merge("multislerp", three),
        "three models, base_model": merge("multislerp", three, base=base),
        "normalize_weights off": merge("multislerp", three, base=base, parameters={"normalize_weights": False}),
        "a negative weight": merge("multislerp", [*two, model(third, weight=-0.2)], base=base),
        "eps": merge("multislerp", three, base=base, parameters={"eps": 1e-3}),
        "models far apart": merge("multislerp", [*three, model(of["far"], weight=0.7)]),
        "one model": merge("multislerp", two[:1], base=base),
        "two models, unchanged tensors": merge("multislerp", unchanged, base=base),
    }
    return [
        *named("multislerp", cases),
        Case(
            "multislerp, three models, unchanged tensors",
            merge("multislerp", [*unchanged, model(of["base-sharded"], weight=1)], base=base),
            "theirs_refuses",
            "mergekit refuses tensors that none of three models has changed; they are copied",
        ),
    ]


def karcher_cases(of):
    two = [model(of["medical"]), model(of["chat"])]
    three, far = [*two, model(of["third"])], [*two, model(of["far"])]
    cases = {
        "two models": merge("karcher", two),
        "three models": merge("karcher", three),
        "models far apart": merge("karcher", far),
        "models far apart, one step": merge("karcher", far, parameters={"max_iter": 1}),
        "models far apart, tol": merge("karcher", far, parameters={"tol": 1e-2}),
        "base_model not listed": merge("karcher", two, base=of["base"]),
        "one model": merge("karcher", two[:1]),
    }
    return named("karcher", cases)


def model_stock_cases(of):
    two = [model(of["medical"]), model(of["chat"])]
    three = [*two, model(of["third"])]
    bent = [model(of["medical"]), model(of["bent"])]

    def stock(models, **parameters):
        return merge("model_stock", models, base=of["base"], parameters=parameters)

    cases = {
        "flat, two models": stock(two),
        "flat, three models": stock(three),
        "filter_wise, two models": stock(two, filter_wise=True),
        "filter_wise, three models": stock(three, filter_wise=True),
        "filter_wise, rows equal, parallel, opposite, and as in the base": stock(bent, filter_wise=True),
    }
    return named("model_stock", cases)


def task_arithmetic_cases(of):
    def arithmetic(a, b, **parameters):
        models = [model(of["medical"], weight=a), model(of["chat"], weight=b)]
        return merge("task_arithmetic", models, base=of["base"], parameters=parameters)

    listed = [model(of["base"]), model(of["medical"], weight=0.7), model(of["chat"], weight=0.6)]
    cases = {
        "negative weights": arithmetic(-0.5, 1.25),
        "lambda": arithmetic(0.5, 1.0, lambda_=0.7),
        "normalize": arithmetic(0.5, 1.0, normalize=True),
        "normalize, weights that add up to 0": arithmetic(1.0, -1.0, normalize=True),
        "base listed too": merge("task_arithmetic", listed, base=of["base"]),
    }
    return [Case("task_arithmetic", arithmetic(0.5, 1.0)), *named("task_arithmetic", cases)]


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
    return named("ties", cases, "ties")


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
        Case(
            "out_dtype bfloat16, slerp",
            merge("slerp", unweighted, base=of["chat"], parameters={"t": 0.4}, out_dtype="bfloat16"),
        ),
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
        "nuslerp of three models": merge("nuslerp", [*halves, model(base, weight=1)]),
        "multislerp without a weight": merge("multislerp", [halves[0], model(chat)]),
        "model_stock without base_model": merge("model_stock", [model(base), model(medical), model(chat)]),
        "model_stock of one model": merge("model_stock", [model(medical)], base=base),
        "vocabularies of two sizes": merge("linear", [halves[0], model(of["chat-vocab"], weight=0.5)]),
        "ranges of two lengths": merge("linear", slices=unequal),
        "a base_model that is not in the slice": merge("task_arithmetic", slices=no_base, base=base),
        "passthrough of two models": merge("passthrough", [model(medical), model(chat)]),
        "a model that is not there": merge("linear", [halves[0], model(chat.parent / "nowhere", weight=0.5)]),
        "a weight that is no number": merge("linear", [halves[0], model(chat, weight="heavy")]),
        "no models": {"merge_method": "linear", "dtype": "float32"},
    }
    return named("refused", cases, "refused", ": ")

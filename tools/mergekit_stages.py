"""What `mergekit_agreement.py` merges in several steps, and models that consist of modules: the models and the configs."""

import pathlib
from typing import Any

from any_config_models import Templates, Wish, checkpoint_files, write_files
from mergekit_cases import Case, merge, model, source

LAYERS = 4


def make_stage_inputs(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    templates = Templates(folder / "templates")
    families = {"base": "llama3", "one": "llama3", "two": "llama3", "three": "llama3"}
    families |= {f"{family}-{name}": family for family in ("t5_gated", "gemma3", "whisper") for name in ("base", "other")}
    for name, family in families.items():
        write_files(checkpoint_files(Wish(name, family, LAYERS), templates), folder / name)
    return {path.name: path.resolve() for path in folder.iterdir() if path != templates.folder}


def named(name: str, config: dict[str, Any]) -> dict[str, Any]:
    return {"name": name} | config


def stage_cases(of: dict[str, pathlib.Path]) -> list[Case]:
    base, one, two, three = (of[name] for name in ("base", "one", "two", "three"))
    halves = named("halves", merge("linear", [model(one, weight=0.5), model(two, weight=0.5)]))
    tall = named("tall", merge("passthrough", slices=[{"sources": [source(one, 0, 3)]}, {"sources": [source(two, 2, 4)]}]))
    vectors = named("vectors", merge("task_arithmetic", [model(one, weight=0.6), model(two, weight=0.4)], base=base))
    above = {"sources": [{"model": "tall", "layer_range": [1, 5]}]}
    first = [halves, vectors]
    return [
        Case(
            "stages, slerp of a linear merge",
            merge("slerp", [model("halves"), model(three)], base="halves", parameters={"t": 0.4}),
            "exact",
            stages=(halves,),
        ),
        Case(
            "stages, two before the last",
            merge("linear", [model("halves", weight=0.3), model("vectors", weight=0.7)]),
            "exact",
            stages=tuple(first),
        ),
        Case(
            "stages, of a stage",
            merge("linear", [model("second", weight=0.3), model(base, weight=0.7)]),
            "exact",
            stages=(
                named("second", merge("linear", [model("halves", weight=0.5), model(three, weight=0.5)])),
                halves,
            ),
        ),
        Case("stages, slices of a stage", merge("passthrough", slices=[above]), "exact", stages=(tall,)),
        Case(
            "stages, ties on a stage as the base",
            merge("ties", [model(three, weight=1, density=0.5)], base="halves"),
            "exact",
            stages=(halves,),
        ),
        Case(
            "stages, stored in 16 bits in between",
            merge("linear", [model("halves", weight=0.3), model(three, weight=0.7)]),
            "exact",
            stages=(halves | {"dtype": "float32", "out_dtype": "bfloat16"},),
        ),
        Case(
            "stages, refused: in a circle",
            merge("linear", [model("a", weight=1)]),
            "refused",
            stages=(
                named("a", merge("linear", [model("b", weight=1)])),
                named("b", merge("linear", [model("a", weight=1)])),
            ),
        ),
        Case(
            "stages, refused: two without a name",
            merge("linear", [model(one, weight=1)]),
            "refused",
            stages=(halves_unnamed(halves),),
        ),
        *module_cases(of),
    ]


def halves_unnamed(halves: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in halves.items() if key != "name"}


def module_cases(of: dict[str, pathlib.Path]) -> list[Case]:
    def pair(family: str, **first: Any) -> list[dict]:
        return [model(of[f"{family}-base"], weight=0.25, **first), model(of[f"{family}-other"], weight=0.75)]

    def pair_of_sources(family: str, first: int, end: int, weight: float) -> dict:
        names = (f"{family}-base", f"{family}-other")
        weights = (weight, 1 - weight)
        return {"sources": [source(of[name], first, end, weight=part) for name, part in zip(names, weights, strict=True)]}

    t5 = {
        "encoder": {"slices": [pair_of_sources("t5_gated", 0, 4, 0.25)]},
        "decoder": {"slices": [pair_of_sources("t5_gated", 0, 2, 0.5), pair_of_sources("t5_gated", 2, 4, 0.9)]},
    }
    by_models = {name: {"models": pair("t5_gated")} for name in ("encoder", "decoder")}
    llama = {"default": {"slices": [pair_of_layers(of)]}}

    def modules(of_modules: dict[str, Any], **rest: Any) -> dict:
        return {"merge_method": "linear", "modules": of_modules, "dtype": "float32"} | rest

    return [
        Case("modules, one by the name default", modules(llama), "exact"),
        Case("modules, encoder and decoder by slices", modules(t5), "exact"),
        Case("modules, encoder and decoder by models", modules(by_models), "exact"),
        Case("modules, all of encoder and decoder", modules(by_models | {"shared": {"models": pair("t5_gated")}}), "exact"),
        Case("encoder and decoder without modules", merge("linear", pair("t5_gated")), "exact"),
        Case(
            "speech, without modules",
            merge("linear", pair("whisper")),
            "theirs_refuses",
            "mergekit looks for a misspelt name among Whisper's tensors",
        ),
        Case("vision and language, without modules", merge("linear", pair("gemma3")), "exact"),
        Case(
            "modules, vision and language",
            modules(
                {
                    "text_decoder": {"models": pair("gemma3")},
                    "vision_tower": {"models": pair("gemma3")},
                    "multi_modal_projector": {"models": pair("gemma3")},
                }
            ),
            "exact",
        ),
        Case(
            "modules, refused: a name that is no module",
            modules({"encoder": {"models": pair("t5_gated")}, "decodre": {"models": pair("t5_gated")}}),
            "refused",
        ),
    ]


def pair_of_layers(of: dict[str, pathlib.Path]) -> dict:
    return {"sources": [source(of["one"], 0, 4, weight=0.25), source(of["two"], 0, 4, weight=0.75)]}

"""What `mergekit_agreement.py` makes mixtures of experts of: dense models, and configs of mergekit-moe."""

import pathlib
from typing import Any

from any_config_models import Templates, Wish, checkpoint_files, write_files
from mergekit_cases import Case

LAYERS = 2
PROMPTS = [["the end of it", "other rings"], ["in the nation"], ["12 tales"]]


def make_mixture_inputs(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    templates = Templates(folder / "templates")
    for family in ("mistral", "llama", "qwen2", "qwen3"):
        for name in ("base", "one", "two", "three"):
            write_files(checkpoint_files(Wish(f"{family}-{name}", family, LAYERS), templates), folder / f"{family}-{name}")
    return {path.name: path.resolve() for path in folder.iterdir() if path != templates.folder}


def mixture_cases(of: dict[str, pathlib.Path]) -> list[Case]:
    def mixture(family: str, gate_mode: str, shared: dict[str, Any] | None = None, **rest: Any) -> dict[str, Any]:
        names = ("one", "two", "three")
        experts = [{"source_model": str(of[f"{family}-{name}"])} for name in names]
        # mergekit wants prompts for uniform_random too, which have no effect.
        if gate_mode != "random":
            for expert, prompts in zip(experts, PROMPTS, strict=True):
                expert["positive_prompts"] = prompts
        config = {"base_model": str(of[f"{family}-base"]), "gate_mode": gate_mode, "dtype": "float32", "experts": experts}
        if shared is not None:
            config["shared_experts"] = [{"source_model": str(of[f"{family}-one"])} | shared]
        return config | rest

    negative = mixture("mistral", "cheap_embed")
    negative["experts"][0]["negative_prompts"] = ["a tale"]
    prompts = {"positive_prompts": ["rings"]}
    cases = {
        "Mixtral, random": mixture("mistral", "random"),
        "Mixtral, uniform_random": mixture("llama", "uniform_random"),
        "Mixtral, cheap_embed": mixture("mistral", "cheap_embed"),
        "Mixtral, negative prompts": negative,
        "Mixtral, one expert for a token": mixture("mistral", "random", experts_per_token=1),
        "Mixtral, by its name": mixture("mistral", "random", architecture="mixtral"),
        "Qwen3, random": mixture("qwen3", "random"),
        "Qwen3, cheap_embed": mixture("qwen3", "cheap_embed"),
        "Qwen, a shared expert": mixture("qwen2", "random", {"residual_scale": 0.1}),
        "Qwen, a shared expert with a router": mixture("qwen2", "cheap_embed", prompts),
        "DeepSeek": mixture("llama", "random", architecture="deepseek"),
        "DeepSeek, a shared expert": mixture("llama", "random", {}, architecture="deepseek"),
        "DeepSeek, a shared expert scaled": mixture("mistral", "cheap_embed", {"residual_scale": 0.1}, architecture="deepseek"),
    }
    refused = {
        "Qwen without a shared expert": mixture("qwen2", "random"),
        "Mixtral with a shared expert": mixture("mistral", "random", {}, architecture="mixtral"),
        "no such gate_mode": mixture("mistral", "rnadom"),
        "no such architecture": mixture("mistral", "random", architecture="mixtrel"),
        "no prompts": mixture("mistral", "random") | {"gate_mode": "cheap_embed"},
        "no base_model": {key: value for key, value in mixture("mistral", "random").items() if key != "base_model"},
        "no experts": mixture("mistral", "random") | {"experts": []},
    }
    noisy = mixture("mistral", "random")
    noisy["experts"][1]["noise_scale"] = 0.1
    # mergekit averages over what shorter prompts are filled up with too: one prompt for each expert has none of it.
    def single(config: dict[str, Any]) -> dict[str, Any]:
        for expert in config["experts"] + config.get("shared_experts", []):
            expert["positive_prompts"] = expert["positive_prompts"][:1]
        return config

    hidden = {
        f"Mixtral of {family}, {mode}": mixture(family, mode)
        for family in ("mistral", "llama")
        for mode in ("hidden", "hidden_last")
    }
    hidden |= {f"Mixtral of {family}, hidden_avg": single(mixture(family, "hidden_avg")) for family in ("mistral", "llama")}
    hidden |= {
        "Qwen3, hidden": mixture("qwen3", "hidden"),
        "Qwen, hidden_avg, a shared expert with a router": single(mixture("qwen2", "hidden_avg", prompts)),
    }
    return [
        *(Case(f"mixtures, {name}", config, "mixture") for name, config in cases.items()),
        *(Case(f"mixtures, refused: {name}", config, "refused") for name, config in refused.items()),
        *(Case(f"mixtures, {name}", config, "mixture") for name, config in hidden.items()),
        Case("mixtures, an expert with noise", noisy, "mixture"),
    ]

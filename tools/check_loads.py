#!/usr/bin/env python3
"""Do merged models compute what they should? Loads outputs in transformers and compares logits.

    python tools/check_loads.py --mergeforge target/release/mergeforge --work DIR [--out benches/results/NAME.md] [--only PART]

Tiny models are made (`any_config_models.py`, adapters by peft itself), merged, and loaded without a missing or an unexpected key.
Then logits are compared with what does not depend on mergeforge: an adapted model with peft's, a model with a merged vocabulary
with the model that its rows are from, token by token, a mixture of equal experts with the dense model. Chat templates are
rendered and answered. Needs torch, transformers and peft; the exit code is 1 if anything is wrong.
"""

import argparse
import dataclasses
import datetime
import os
import pathlib
import shutil
import sys
from collections.abc import Callable, Iterator
from typing import Any

from loading import CLOSE, Wrong, load, logits, near  # isort: skip; before transformers, for which it sets the environment

import torch
import transformers
import yaml
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from any_config_models import Templates, Wish, checkpoint_files, write_files
from measuring import cores, processor, run, table
from mergekit_adapters import KINDS, OTHERS, load_adapted, make_adapter_inputs
from mergekit_cases import merge, model, source
from mergekit_rows import vocabulary
from mergekit_vocabularies import END, LITERAL_TEMPLATE, MESSAGES, PACKAGED, START, TOOL, make_token_inputs

TEXT = "The end of the other nation, and in it 12 rings!"


@dataclasses.dataclass
class Check:
    """A config, mergeforge's subcommand for it, and what is to be seen in the output: words for the table."""

    name: str
    config: dict[str, Any] | list[dict[str, Any]]
    look: Callable[[pathlib.Path], str]
    verb: str = "merge"
    flags: tuple[str, ...] = ()


# ---------------------------------------------------------------------------------------------------------------------
# What is checked


def adapter_checks(of: dict[str, pathlib.Path]) -> Iterator[Check]:
    ids = list(range(3, 40))
    pairs = [(kind, "base") for kind in KINDS] + [(kind, f"base-{family}") for kind, (family, _) in OTHERS.items()]
    for kind, base in pairs:
        adapter = of[f"lora-{kind}"]

        def look(out: pathlib.Path, base: pathlib.Path = of[base], adapter: pathlib.Path = adapter) -> str:
            by_peft = logits(load_adapted(base, adapter), ids)
            if torch.allclose(by_peft, logits(load(base), ids), atol=100 * CLOSE):
                raise Wrong("the adapter changes nothing: this check sees nothing")
            return near(logits(load(out), ids), by_peft) + " of peft's"

        yield Check(f"adapter: {kind}", merge("passthrough", [model(f"{of[base]}+{adapter}")]), look)


def token_checks(of: dict[str, pathlib.Path]) -> Iterator[Check]:
    def of_one(name: str, other: str, base: str, tokenizer: dict[str, Any]) -> dict[str, Any]:
        """All of one model and nothing of the other: rows of its own tokens are its own."""
        models = [model(of[name], weight=1), model(of[other], weight=0)]
        return merge("linear", models, base=of[base], tokenizer=tokenizer)

    def rows_of(name: str) -> Callable[[pathlib.Path], str]:
        return lambda out: by_token(out, of[name])

    union: dict[str, Any] = {"source": "union"}
    for name, other in (("plain", "chatml"), ("chatml", "plain"), ("chatml", "renumbered"), ("other-words", "plain")):
        yield Check(f"union: {name}, {other}", of_one(name, other, other, union), rows_of(name))
    yield Check("union: tied embeddings", of_one("tied-chatml", "tied", "tied", union), rows_of("tied-chatml"))
    yield Check("union: biases of the head", of_one("biased-chatml", "biased", "biased", union), rows_of("biased-chatml"))
    yield Check("union: pieces", of_one("pieces", "pieces-chatml", "pieces", union), rows_of("pieces"))
    padded = union | {"pad_to_multiple_of": 64}
    yield Check("union, padded to a multiple of 64", of_one("chatml", "plain", "plain", padded), rows_of("chatml"))
    yield Check("source: base", of_one("chatml", "tools", "chatml", {"source": "base"}), rows_of("chatml"))
    yield Check("source: a model", of_one("tools", "chatml", "chatml", {"source": str(of["tools"])}), rows_of("tools"))
    alone = merge("passthrough", [model(of["padded"])])
    yield Check("no tokenizer key, more rows than tokens", alone, rows_of("padded"))
    swapped = {"source": "union", "tokens": {TOOL: {"source": str(of["tools"])}, START: {"source": {"kind": "zero"}}}}
    yield Check("tokens from a model and as zeros", of_one("chatml", "tools", "tools", swapped), rows_of("chatml"))
    for template in ("auto", *PACKAGED, LITERAL_TEMPLATE):
        config = of_one("chatml", "plain", "plain", union) | {"chat_template": template}
        name = template if len(template) < 20 else "literal"
        yield Check(f"chat_template: {name}", config, converse)


def by_token(out: pathlib.Path, donor: pathlib.Path) -> str:
    """The same text has the same tokens, and each token the same logits."""
    ours, theirs = load(out), load(donor)
    a, b = (vocabulary(folder / "tokenizer.json") for folder in (out, donor))
    common = [token for token in b if token in a]
    if len(common) < 280:
        raise Wrong(f"only {len(common)} tokens are in both")
    tokenizer = AutoTokenizer.from_pretrained(donor)
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(TEXT)["input_ids"])
    tokens += [token for token in (START, END) if token in b]
    if (again := AutoTokenizer.from_pretrained(out).tokenize(TEXT)) != tokens[: len(again)]:
        raise Wrong(f"the text is cut into {again}, not {tokens}")
    rows = [logits(loaded, [numbers[token] for token in tokens]) for loaded, numbers in ((ours, a), (theirs, b))]
    columns = [[numbers[token] for token in common] for numbers in (a, b)]
    words = near(rows[0][:, columns[0]], rows[1][:, columns[1]])
    return f"{words} of the model's own, {len(common)} tokens; {ours.config.vocab_size} rows"


def converse(out: pathlib.Path) -> str:
    """The template is rendered and answered."""
    tokenizer = AutoTokenizer.from_pretrained(out)
    text = tokenizer.apply_chat_template(MESSAGES[:1], tokenize=False, add_generation_prompt=True)
    if MESSAGES[0]["content"] not in text:
        raise Wrong(f"the question is not in {text!r}")
    given = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    given.pop("token_type_ids", None)
    answer = load(out).generate(**given, max_new_tokens=6, do_sample=False, pad_token_id=0)
    count = answer.shape[1] - given["input_ids"].shape[1]
    if not 1 <= count <= 6:
        raise Wrong(f"{count} tokens in answer")
    return f"{given['input_ids'].shape[1]} tokens of question, {count} of answer"


def make_other_inputs(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    templates = Templates(folder / "templates")
    families = ("mistral", "llama", "qwen2", "qwen3", "t5_gated", "whisper", "gemma3", "qwen2_vl", "florence2", "mixtral")
    for family in families:
        for name in ("one", "two"):
            write_files(checkpoint_files(Wish(f"{family}-{name}", family, 3), templates), folder / f"{family}-{name}")
        shutil.copytree(folder / f"{family}-one", folder / f"{family}-copy", dirs_exist_ok=True)
    return {path.name: path.resolve() for path in folder.iterdir() if path != templates.folder}


def expert_checks(of: dict[str, pathlib.Path]) -> Iterator[Check]:
    ids = list(range(3, 40))
    for family, architecture, shared in (
        ("mistral", "mixtral", 0),
        ("llama", "mixtral", 0),
        ("qwen3", "qwen3", 0),
        ("qwen2", "qwen", 1),
    ):
        dense = of[f"{family}-one"]
        for gate in ("random", "uniform_random", "cheap_embed"):
            experts: list[dict[str, Any]] = [{"source_model": str(of[f"{family}-{name}"])} for name in ("one", "copy")]
            if gate == "cheap_embed":
                experts[0]["positive_prompts"], experts[1]["positive_prompts"] = ["the end of it"], ["other rings"]
            config = {"base_model": str(dense), "gate_mode": gate, "dtype": "float32", "experts": experts}
            config |= {"architecture": architecture}
            if shared:
                prompts = {"positive_prompts": ["nation"]} if gate == "cheap_embed" else {}
                config["shared_experts"] = [{"source_model": str(dense), "residual_scale": 0.5} | prompts]

            def look(out: pathlib.Path, dense: pathlib.Path = dense, alike: bool = not shared) -> str:
                mixture = load(out)
                found = logits(mixture, ids)
                if not found.isfinite().all():
                    raise Wrong("logits are not finite")
                # Whichever experts the router takes, equal ones with weights that add up to 1 are the dense model.
                return near(found, logits(load(dense), ids)) + " of the dense model's" if alike else "finite logits"

            yield Check(f"moe: {architecture} of {family}, {gate}", config, look, "moe")


def module_checks(of: dict[str, pathlib.Path]) -> Iterator[Check]:
    kinds = {
        "t5_gated": AutoModelForSeq2SeqLM,
        "whisper": transformers.WhisperForConditionalGeneration,
        "gemma3": transformers.Gemma3ForConditionalGeneration,
        "qwen2_vl": transformers.Qwen2VLForConditionalGeneration,
        "florence2": transformers.Florence2ForConditionalGeneration,
        "mixtral": AutoModelForCausalLM,
    }

    def halves(family: str, **rest: Any) -> list[dict[str, Any]]:
        return [model(of[f"{family}-{name}"], weight=0.5, **rest) for name in ("one", "two")]

    def loads(family: str) -> Callable[[pathlib.Path], str]:
        def look(out: pathlib.Path) -> str:
            ours, *halves = (dict(load(folder, kinds[family]).named_parameters()) for folder in (out, *folders(family)))
            for name, parameter in ours.items():
                mean = (halves[0][name] + halves[1][name]) / 2
                if not torch.allclose(parameter, mean, atol=1e-6):
                    raise Wrong(f"{name} is not the mean")
            return f"{len(ours)} parameters are the mean"

        return look

    def folders(family: str) -> list[pathlib.Path]:
        return [of[f"{family}-{name}"] for name in ("one", "two")]

    for family in kinds:
        yield Check(f"whole: {family}", merge("linear", halves(family)), loads(family))
    modules = {name: {"models": halves("t5_gated")} for name in ("encoder", "decoder", "shared")}
    by_modules = {"merge_method": "linear", "modules": modules, "dtype": "float32"}
    yield Check("modules: all of encoder and decoder", by_modules, loads("t5_gated"))
    some = by_modules | {"modules": {"encoder": modules["encoder"]}, "base_model": str(of["t5_gated-one"])}

    def mixed(out: pathlib.Path) -> str:
        ours, one, two = (dict(load(folder, kinds["t5_gated"]).named_parameters()) for folder in (out, *folders("t5_gated")))
        moved = {name for name in ours if not torch.equal(ours[name], one[name])}
        if not moved or any(not name.startswith("encoder.") for name in moved):
            raise Wrong(f"changed: {sorted(moved)[:3]}")
        if any(not torch.allclose(ours[name], (one[name] + two[name]) / 2, atol=1e-6) for name in moved):
            raise Wrong("the encoder is not the mean")
        return f"{len(moved)} parameters of the encoder merged, {len(ours) - len(moved)} copied"

    yield Check("modules: the encoder alone, the rest copied", some, mixed)


def stage_checks(of: dict[str, pathlib.Path]) -> Iterator[Check]:
    ids = list(range(3, 40))
    one, two = of["llama-one"], of["llama-two"]
    first = {"name": "tall"} | merge("passthrough", slices=[{"sources": [source(one, 0, 2)]}, {"sources": [source(two, 1, 3)]}])
    last = merge("linear", [model("tall", weight=1)])

    def look(out: pathlib.Path) -> str:
        stacked, layers = load(out), load(one)
        others = load(two)
        layers.model.layers = torch.nn.ModuleList([*layers.model.layers[:2], *others.model.layers[1:]])
        for number, layer in enumerate(layers.model.layers):
            layer.self_attn.layer_idx = number
        layers.config.num_hidden_layers = len(layers.model.layers)
        layers.model.norm, layers.lm_head = others.model.norm, others.lm_head
        return near(logits(stacked, ids), logits(layers, ids)) + " of the stack's"

    yield Check("stages: a stack, then linear", [first, last], look)


# ---------------------------------------------------------------------------------------------------------------------
# Running


def carry_out(check: Check, args: argparse.Namespace) -> tuple[bool, str]:
    folder = args.work / "runs" / "".join(c if c.isalnum() else "-" for c in check.name)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    documents = check.config if isinstance(check.config, list) else [check.config]
    (folder / "config.yml").write_text(yaml.safe_dump_all(documents, sort_keys=False))
    ran = run([args.mergeforge, check.verb, *check.flags, folder / "config.yml", folder / "out"], limit_s=300)
    if ran.code:
        first = next((line for line in ran.err.splitlines() if line.startswith("error")), "no message")
        return False, f"refused: {first.replace(str(folder), 'DIR')}"
    try:
        return True, check.look(folder / "out")
    except Wrong as wrong:
        return False, f"WRONG: {wrong}"
    except (OSError, RuntimeError, ValueError, KeyError, IndexError, AttributeError) as error:
        return False, f"WRONG: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mergeforge", required=True, help="the binary")
    parser.add_argument("--work", type=pathlib.Path, required=True, help="folder for models and outputs")
    parser.add_argument("--out", type=pathlib.Path, help="file to save the table to")
    parser.add_argument("--only", default="", help="run the checks whose name contains this")
    args = parser.parse_args()
    args.work = args.work.resolve()
    os.environ["MERGEFORGE_CACHE"] = ""
    args.mergeforge = shutil.which(args.mergeforge) or sys.exit(f"no program {args.mergeforge}")
    others = make_other_inputs(args.work / "others")
    checks = [
        *adapter_checks(make_adapter_inputs(args.work / "adapters")),
        *token_checks(make_token_inputs(args.work / "tokens")),
        *expert_checks(others),
        *module_checks(others),
        *stage_checks(others),
    ]
    rows, wrong = [["check", "what was seen"]], 0
    for check in checks:
        if args.only in check.name:
            good, words = carry_out(check, args)
            wrong += not good
            rows.append([check.name, words])
            print(f"{check.name}: {words}", file=sys.stderr)
    if args.out:
        version = run([args.mergeforge, "--version"]).out.strip()
        head = f"{datetime.date.today()}, {processor()}, {cores()} threads; {version}, torch {torch.__version__}, transformers "
        head += f"{transformers.__version__}. Made by `tools/check_loads.py`, which says what is compared."
        args.out.write_text("\n".join(["# Outputs in transformers", "", head, "", table(rows), ""]))
    print(f"{len(rows) - 1 - wrong} of {len(rows) - 1} good")
    sys.exit(bool(wrong) or len(rows) == 1)


if __name__ == "__main__":
    main()

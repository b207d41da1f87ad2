"""What `mergekit_agreement.py` merges that have different tokenizers: the models, the configs, and what must come out.

Both tools' embeddings, heads and output biases are compared with the definition (`mergekit_rows.py`), row by row, where rows are
found by their tokens; and whatever else there is, with mergekit's result at float64. The two tokenizers must have the same tokens
and read texts alike.
"""

import json
import pathlib
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from any_config_models import Templates, Wish, checkpoint_files, write_files
from mergekit_cases import Case, merge, model
from mergekit_inputs import load_checkpoint
from mergekit_rows import expected_rows, is_of_tokens, vocabulary

LAYERS = 2

# Rounding of float32 where a few values are added up.
ALLOWED = 1e-6

START, END, TOOL, NEW = "<|im_start|>", "<|im_end|>", "<tool_call>", "<brand_new>"

TEXTS = [
    "The end of the other nation, and in it 12 rings!",
    f"{START}user\nwhat is heat?{END}{START}assistant\n",
    f"call {TOOL} then {NEW}stop</s>",
    "né 😀 -- \t ütf",
    "",
]

MESSAGES = [{"role": "user", "content": "What is heat?"}, {"role": "assistant", "content": "Motion."}]
LITERAL_TEMPLATE = "{% for message in messages %}[{{ message.role }}] {{ message.content }}{% endfor %}"


def make_token_inputs(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Models with the same architecture and other tokens; returns name -> folder."""
    templates = Templates(folder / "templates")
    wishes = {
        # More rows than tokens, as many as tokens, and far more.
        "plain": Wish("plain", "llama3", LAYERS),
        "chatml": Wish("chatml", "llama3", LAYERS, (START, END), None),
        "tools": Wish("tools", "llama3", LAYERS, (END, TOOL)),
        "padded": Wish("padded", "llama3", LAYERS, (), 384),
        "pieces": Wish("pieces", "llama", LAYERS),
        "pieces-chatml": Wish("pieces-chatml", "llama", LAYERS, (START, END), None),
        "tied": Wish("tied", "gemma", LAYERS),
        "tied-chatml": Wish("tied-chatml", "gemma", LAYERS, (START, END), None),
        "biased": Wish("biased", "phi", LAYERS),
        "biased-chatml": Wish("biased-chatml", "phi", LAYERS, (START, END), None),
        "unigram": Wish("unigram", "t5", LAYERS),
        "unigram-chatml": Wish("unigram-chatml", "t5", LAYERS, (START, END), None),
    }
    for name, wish in wishes.items():
        write_files(checkpoint_files(wish, templates), folder / name)
    write_files(renumbered(checkpoint_files(wishes["chatml"], templates)), folder / "renumbered")
    write_files(respelt(checkpoint_files(wishes["plain"], templates)), folder / "other-words")
    return {path.name: path.resolve() for path in folder.iterdir() if path != templates.folder}


def renumbered(files: dict[str, Any]) -> dict[str, Any]:
    """The same tokens, in another order."""
    tokenizer = files["tokenizer.json"]
    entries = tokenizer["model"]["vocab"]
    order = dict(zip(entries, reversed(entries.values()), strict=True))
    tokenizer["model"]["vocab"] = dict(sorted(order.items(), key=lambda entry: entry[1]))
    return files


def respelt(files: dict[str, Any]) -> dict[str, Any]:
    """Twelve tokens that no other model has, made by merges of their own, in place of twelve of bytes that texts seldom hold."""
    model_of = files["tokenizer.json"]["model"]
    rare = [token for token in model_of["vocab"] if not token.isascii()][-12:]
    pairs = [[first, second] for first in "xqzj" for second in "wvk"]
    for token, pair in zip(rare, pairs, strict=True):
        model_of["vocab"]["".join(pair)] = model_of["vocab"].pop(token)
        model_of["merges"].append(pair)
    return files


def token_cases(of: dict[str, pathlib.Path]) -> list[Case]:
    def linear(*names: str, base: str | None = None, **rest: Any) -> dict:
        models = [model(of[name], weight=0.3 + 0.4 * at) for at, name in enumerate(names)]
        return merge("linear", models, base=of[base] if base else None, **rest)

    def union(*names: str, base: str | None = None, **rest: Any) -> dict:
        return linear(*names, base=base or names[0], tokenizer={"source": "union"} | rest)

    def tokens(entries: dict[str, Any], *names: str, **rest: Any) -> dict:
        return union(*names, tokens=entries, **rest)

    def from_model(name: str, **which: Any) -> dict:
        return {"source": {"kind": "model_token", "model": str(of[name])} | which}

    three = ("plain", "chatml", "tools")
    zero = {"source": {"kind": "zero"}}
    end_of = {END: {"source": str(of["chatml"])}}
    cases = {
        "union of two": union("plain", "chatml"),
        "union of three": union(*three),
        "union, the base second": union("plain", "chatml", base="chatml"),
        "union, the base not among the holders": union("plain", "chatml", "tools", base="plain"),
        "union, tokens in another order": union("chatml", "renumbered"),
        "union, words that one model has": union("plain", "other-words"),
        "union of pieces": union("pieces", "pieces-chatml"),
        "union, tied embeddings": union("tied", "tied-chatml"),
        "union, biases of the head": union("biased", "biased-chatml"),
        "union, more rows than tokens": union("plain", "padded"),
        "source base": linear(*three, base="chatml", tokenizer_source="base"),
        "source base, rows of the padding": linear("plain", "padded", base="padded", tokenizer={"source": "base"}),
        "source of a model": linear(*three, base="plain", tokenizer_source=str(of["tools"])),
        "source of a model, as mapping": linear(*three, base="plain", tokenizer={"source": str(of["chatml"])}),
        "a token from a model": tokens(end_of, *three),
        "a token from a model, forced": tokens({END: end_of[END] | {"force": True}}, *three),
        "a token as zeros": tokens({START: zero}, *three),
        "a token as zeros, forced": tokens({START: zero | {"force": True}}, *three),
        "a token from another token": tokens({NEW: from_model("chatml", token=START)}, *three),
        "a token from an id": tokens({NEW: from_model("tools", token_id=7)}, *three),
        "a common token from another, forced": tokens({"th": from_model("plain", token="he") | {"force": True}}, *three),
        "a token that nobody has, as zeros": tokens({NEW: zero}, *three),
        "padded to a multiple of 64": union(*three, pad_to_multiple_of=64),
        "padded to a multiple that fits already": union("plain", "chatml", pad_to_multiple_of=2),
        "base, padded to a multiple of 128": linear(
            "plain", "tools", base="plain", tokenizer={"source": "base", "pad_to_multiple_of": 128}
        ),
        "chat_template auto": union(*three) | {"chat_template": "auto"},
        "a literal chat_template": union("plain", "chatml") | {"chat_template": LITERAL_TEMPLATE},
    }
    found = [Case(f"tokens, {name}", config, "tokens") for name, config in cases.items()]
    for name, why in PACKAGED.items():
        config = union("plain", "chatml") | {"chat_template": name}
        found.append(Case(f"tokens, chat_template {name}", config, "tokens", why, ("the chat template writes",) if why else ()))
    pair = [model(of["plain"]), model(of["chatml"])]
    source = {"tokenizer": {"source": "union"}}
    stacked = [{"sources": [{"model": str(of[name]), "layer_range": [0, 1]}]} for name in ("plain", "chatml")]
    return [
        *found,
        Case("tokens, slerp of a union", merge("slerp", pair, base=of["plain"], parameters={"t": 0.4}, **source), "tokens"),
        Case(
            "tokens, task_arithmetic of a union",
            merge("task_arithmetic", [model(of["chatml"], weight=0.7)], base=of["plain"], **source),
            "tokens",
        ),
        Case("tokens, refused: a literal template that is no Jinja", union("plain") | {"chat_template": "nonsense"}, "refused"),
        Case(
            "tokens, refused: a token from a model that lacks it",
            tokens({TOOL: {"source": str(of["chatml"])}}, *three),
            "refused",
        ),
        Case(
            "tokens, refused: a token from an id beyond the rows",
            tokens({NEW: from_model("tools", token_id=4000)}, *three),
            "refused",
        ),
        Case(
            "tokens, refused: two ways to say a source",
            union("plain", "chatml") | {"tokenizer_source": "base"},
            "refused",
        ),
        Case(
            "tokens, slices of models with other tokens",
            merge("passthrough", slices=stacked, tokenizer={"source": "union"}),
            "tokens",
            "a token that no source of a slice has gets another model's row; mergekit writes zeros",
            exempt=("model.embed_tokens.weight: ", "lm_head.weight: "),
        ),
        *truncated_cases(of),
    ]


# Names of packaged templates, and where a conversation looks otherwise than mergekit's.
PACKAGED = {
    "alpaca": "the blank lines of the format stand behind a turn, not before it",
    "chatml": "",
    "exaone": "the format without the blanks that mergekit's template writes",
    "llama3": "the format without the line ends that mergekit's template writes",
    "mistral": "",
}


def truncated_cases(of: dict[str, pathlib.Path]) -> list[Case]:
    models = [model(of["plain"], weight=0.4), model(of["padded"], weight=0.6)]
    config = merge("linear", models, base=of["padded"])
    why = "mergekit leaves vocab_size as it was, and the model does not load"
    return [
        Case("vocabularies of two sizes", config, "refused"),
        Case(
            "truncated, the base has more rows",
            config,
            "exact",
            why,
            exempt=("config.json: vocab_size is 320",),
            flags=("--unsafe-truncate-embeddings",),
        ),
        Case(
            "truncated, the base has fewer rows",
            merge("linear", models, base=of["plain"]),
            "exact",
            flags=("--unsafe-truncate-embeddings",),
        ),
    ]


# ---------------------------------------------------------------------------------------------------------------------
# What must come out


def check_definition(config: dict, out: pathlib.Path) -> list[str]:
    """An output's vocabulary tensors against the definition, of methods that add up weighted models."""
    numbers = vocabulary(out / "tokenizer.json")
    tokens = sorted(numbers, key=numbers.get)
    weights = weights_of(config)
    problems = []
    for name, tensor in load_checkpoint(out).items():
        rows = tensor.double().numpy()
        if not is_of_tokens(name):
            continue
        aligned = expected_rows(config, name, tokens)
        merged = sum(weight * array for weight, array in zip(weights, aligned.values(), strict=True))
        at = [numbers[token] for token in tokens]
        multiple = (config.get("tokenizer") or {}).get("pad_to_multiple_of", 1)
        count = -(-len(tokens) // multiple) * multiple
        if rows.shape[0] != count:
            problems.append(f"{name}: {rows.shape[0]} rows for {len(tokens)} tokens, not {count}")
            continue
        off = np.abs(rows[at] - merged).reshape(len(tokens), -1).max(axis=1)
        if (off > ALLOWED).any():
            worst = tokens[int(off.argmax())]
            problems.append(f"{name}: {int((off > ALLOWED).sum())} rows are not as defined, such as that of {worst!r}")
        padding = np.abs(rows[len(tokens) :] - merged.mean(axis=0))
        if padding.size and padding.max() > ALLOWED:
            problems.append(f"{name}: rows of the padding are not the mean of the others")
    return problems


def weights_of(config: dict) -> list[float]:
    """So much of each model."""
    weights = [one.get("parameters", {}).get("weight", 0) for one in config["models"]]
    if config["merge_method"] == "task_arithmetic":
        return [*weights, 1 - sum(weights)]
    return [weight / sum(weights) for weight in weights]


def compare_tokenizers(ours: pathlib.Path, theirs: pathlib.Path) -> list[str]:
    """The same tokens, and texts cut into the same ones."""
    a, b = (Tokenizer.from_file(str(folder / "tokenizer.json")) for folder in (ours, theirs))
    if a.get_vocab().keys() != b.get_vocab().keys():
        apart = sorted(a.get_vocab().keys() ^ b.get_vocab().keys())
        return [f"{len(apart)} tokens only on one side: {', '.join(apart[:3])}"]
    problems = []
    for text in TEXTS:
        tokens = [tokenizer.encode(text).tokens for tokenizer in (a, b)]
        if tokens[0] != tokens[1]:
            problems.append(f"{text!r} is {tokens[0]}, not {tokens[1]}")
    return problems


def compare_templates(ours: pathlib.Path, theirs: pathlib.Path) -> list[str]:
    """What a conversation looks like, where both write a template."""
    texts = []
    for folder in (ours, theirs):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        if not tokenizer.chat_template:
            return [f"no chat template in {folder.name}"]
        texts.append(tokenizer.apply_chat_template(MESSAGES, tokenize=False))
    return [] if texts[0] == texts[1] else [f"the chat template writes {texts[0]!r}, not {texts[1]!r}"]


def check_token_settings(out: pathlib.Path) -> list[str]:
    """vocab_size is the number of rows, and ids of special tokens are those of the tokens."""
    config = json.loads((out / "config.json").read_text())
    tensors = load_checkpoint(out)
    rows = {tensor.shape[0] for name, tensor in tensors.items() if is_of_tokens(name)}
    problems = [] if rows == {config["vocab_size"]} else [f"vocab_size is {config['vocab_size']}, and there are {rows} rows"]
    numbers = vocabulary(out / "tokenizer.json")
    roles = json.loads((out / "tokenizer_config.json").read_text())
    for role in ("bos", "eos", "pad", "unk"):
        token = roles.get(f"{role}_token")
        token = token["content"] if isinstance(token, dict) else token
        if token is not None and token not in numbers:
            problems.append(f"tokenizer_config.json: {role}_token is {token!r}, which is no token")
    return problems

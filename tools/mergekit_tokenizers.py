#!/usr/bin/env python3
"""Do vocabularies merge as mergekit 0.1.5 merges them, and does transformers load what comes out?

Tiny Llamas with made-up tokenizers (BPE, Unigram, WordPiece; some share tokens, some have tokens without a row or rows without a
token) are merged by both tools. Outputs are compared token by token, since mergekit numbers the tokens that it adds in an order
that differs from run to run: the vocabulary, what is an added token and how, each token's row in each tensor, the number of rows,
what config.json says of them. Our output is loaded in transformers, encodes texts, gives finite logits, applies its template and
generates; where a config picks the rows of one model, its logits are those of that model.

    python tools/mergekit_tokenizers.py --mergeforge target/release/mergeforge --work DIR [--only PART_OF_A_NAME]

with the Python of an environment that has mergekit. The exit code is 1 if any case disagrees.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import shutil
import sys

import torch
import transformers
import yaml
from safetensors.torch import load_file
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from measuring import MERGEKIT_ENVIRONMENT
from mergekit_agreement import run_mergeforge, run_mergekit

TEXTS = [
    "the cat sat on the mat and looked at the dog",
    "a merge of two models has the tokens of both",
    "every row of the output comes from the right model",
    "<|im_start|>user\nhello there<|im_end|>",
]
OTHER_TEXTS = [
    "der hund und die katze sitzen auf der matte",
    "zwei modelle werden ein modell mit allen token",
    "hello there, what is the right answer to this",
]
# What float32 arithmetic may differ by.
TOLERANCE = 1e-6
# A merge with one model of weight 1 adds zeros, but logits are sums.
LOGIT_TOLERANCE = 1e-5


@dataclasses.dataclass
class Case:
    """A config, and what is expected of its two outputs. `of` names the model whose logits a text has. Where `why` is given, mergekit
    fails or differs on purpose, in what `differs` says: refused (by mergekit), both refuse, or added (which tokens are, and how)."""

    name: str
    config: dict
    of: str = ""
    differs: str = ""
    why: str = ""


# ---------------------------------------------------------------------------------------------------------------------
# Models


def tokenizer(kind, texts, size, special, plain=(), listed=()):
    """A tokenizer trained on a few texts, with added tokens behind its vocabulary; those `listed` first are in it."""
    if kind == "bpe":
        made = Tokenizer(models.BPE(unk_token="<unk>"))
        trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=["<unk>", *listed], show_progress=False)
        made.pre_tokenizer = pre_tokenizers.Whitespace()
    elif kind == "unigram":
        made = Tokenizer(models.Unigram())
        trainer = trainers.UnigramTrainer(
            vocab_size=size, special_tokens=["<unk>", *listed], unk_token="<unk>", show_progress=False
        )
        made.pre_tokenizer = pre_tokenizers.Metaspace()
    else:
        made = Tokenizer(models.WordPiece(unk_token="<unk>"))
        trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=["<unk>", *listed], show_progress=False)
        made.normalizer = normalizers.Lowercase()
        made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.train_from_iterator(texts, trainer)
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    made.add_tokens([AddedToken(token, normalized=False, lstrip=True) for token in plain])
    return made


def save(folder, made, rows, seed, tied=False, template=None, vocab_size=None, **names):
    shutil.rmtree(folder, ignore_errors=True)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=rows,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        dtype="float32",
        bos_token_id=made.token_to_id(names.get("bos_token", "<s>")),
        eos_token_id=made.token_to_id(names.get("eos_token", "</s>")),
    )
    model = LlamaForCausalLM(config)
    model.generation_config.bos_token_id = config.bos_token_id
    model.generation_config.eos_token_id = config.eos_token_id
    model.save_pretrained(folder)
    loaded = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", **names)
    loaded.chat_template = template
    loaded.save_pretrained(folder)


CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
MARKED = "{% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}{# a template of its own #}"


def make_models(folder):
    one = ("<s>", "</s>")
    chat = ("<s>", "<|im_start|>", "<|im_end|>")
    bpe = lambda **more: tokenizer("bpe", TEXTS, 90, one, **more)
    made = {
        "a": (bpe(), dict(bos_token="<s>", eos_token="</s>", template=MARKED)),
        "a-again": (bpe(), dict(bos_token="<s>", eos_token="</s>", template=MARKED + "\n")),
        "a-tied": (bpe(), dict(bos_token="<s>", eos_token="</s>", tied=True)),
        "a-wide": (bpe(), dict(bos_token="<s>", eos_token="</s>", more=7)),
        "a-pad": (bpe(plain=["<pad>"]), dict(bos_token="<s>", eos_token="</s>", pad_token="<pad>", more=-1)),
        "b": (
            tokenizer("bpe", OTHER_TEXTS, 80, chat, plain=["cat"], listed=["</s>"]),
            dict(bos_token="<s>", eos_token="<|im_end|>", template=CHATML, more=3),
        ),
        "c": (tokenizer("bpe", TEXTS + OTHER_TEXTS, 120, one, plain=["<x>"]), dict(bos_token="<s>", eos_token="</s>")),
        "unigram": (tokenizer("unigram", TEXTS, 60, one), dict(bos_token="<s>", eos_token="</s>")),
        "unigram-too": (tokenizer("unigram", OTHER_TEXTS, 50, chat), dict(bos_token="<s>", eos_token="<|im_end|>")),
        "wordpiece": (tokenizer("wordpiece", TEXTS, 80, one), dict(bos_token="<s>", eos_token="</s>")),
        "wordpiece-too": (tokenizer("wordpiece", OTHER_TEXTS, 90, chat), dict(bos_token="<s>", eos_token="<|im_end|>")),
    }
    for seed, (name, (tokens, kwargs)) in enumerate(made.items()):
        more = kwargs.pop("more", 0)
        save(folder / name, tokens, tokens.get_vocab_size() + more, seed, **kwargs)
    return {name: folder / name for name in made}


# ---------------------------------------------------------------------------------------------------------------------
# Cases


def merge(models, base=None, method="linear", **rest):
    entries = [{"model": str(path), "parameters": {"weight": weight}} for path, weight in models]
    config = {"merge_method": method, "models": entries, "dtype": "float32"}
    return config | ({"base_model": str(base)} if base else {}) | rest


def all_cases(of):
    a, b, c = of["a"], of["b"], of["c"]
    both = [(a, 0.5), (b, 0.5)]
    three = [(a, 0.2), (b, 0.3), (c, 0.5)]

    def tokens(source="union", **settings):
        named = {
            "<|im_end|>": {"source": {"kind": "model_token", "model": str(a), "token": "</s>"}, "force": True},
            "<new>": {"source": {"kind": "model_token", "model": str(b), "token_id": 5}},
            "<none>": {"source": {"kind": "zero"}},
            "cat": {"source": str(b)},
            "the": {"source": {"kind": "zero"}, "force": True},
        }
        return {"source": source, "tokens": named} | settings

    one_of = lambda name, whole, base: [(of[name], 1.0), (of[whole], 0.0)]
    return [
        Case("union", merge(both, a, tokenizer_source="union")),
        Case("union, the other base", merge(both, b, tokenizer_source="union")),
        Case(
            "union of three without a base",
            merge(three, tokenizer_source="union"),
            differs="added",
            why="without a base, the tokenizer that the others' tokens are added to is the first model's; mergekit takes any",
        ),
        Case("union of three and a base", merge(three, c, tokenizer={"source": "union"})),
        Case("union, one model's rows", merge([(a, 0.0), (b, 1.0)], b, tokenizer_source="union"), of="b"),
        Case("base", merge(both, a, tokenizer_source="base")),
        Case("base, one model's rows", merge([(a, 1.0), (b, 0.0)], a, tokenizer_source="base"), of="a"),
        Case("another model", merge(both, a, tokenizer_source=str(b))),
        Case(
            "another model, the old spelling",
            merge(both, a, tokenizer_source=f"model:{b}"),
            differs="refused",
            why="mergekit 0.1.5 takes `model:` for a part of the path",
        ),
        Case("task vectors", merge([(b, 0.5), (c, 0.7)], a, "task_arithmetic", tokenizer_source="union")),
        Case("ties", merge([(b, 0.5), (c, 0.7)], a, "ties", tokenizer_source="union", parameters={"density": 1.0})),
        Case("single tokens", merge(both, a, tokenizer=tokens())),
        Case(
            "single tokens, the base's vocabulary",
            merge(both, a, tokenizer=tokens("base")),
            differs="refused",
            why="mergekit adds new tokens to the base's own tokenizer, and then misses their rows in it",
        ),
        Case("filled up", merge(both, a, tokenizer={"source": "union", "pad_to_multiple_of": 32})),
        Case("filled up, three and a new token", merge(three, a, tokenizer=tokens(pad_to_multiple_of=64))),
        Case("tied and untied", merge([(of["a-tied"], 0.5), (b, 0.5)], b, tokenizer_source="union")),
        Case("tied", merge([(of["a-tied"], 0.5), (of["a-tied"], 0.5)][:1] + [(a, 0.5)], a, tokenizer_source="union")),
        Case("rows without a token", merge([(of["a-wide"], 0.5), (a, 0.5)], a, tokenizer_source="base")),
        Case("rows without a token in the base", merge([(of["a-wide"], 0.5), (a, 0.5)], of["a-wide"], tokenizer_source="base")),
        Case("the same tokenizer", merge([(a, 0.5), (of["a-again"], 0.5)], a, tokenizer_source="union")),
        Case("a token without a row", merge([(of["a-pad"], 0.5), (b, 0.5)], b, tokenizer_source="union")),
        Case(
            "a token without a row in the base",
            merge([(of["a-pad"], 0.5), (a, 0.5)], of["a-pad"], tokenizer_source="union"),
            differs="added",
            why="a special token that gets a row keeps its flags; mergekit loses them",
        ),
        Case("Unigram", merge([(of["unigram"], 0.5), (of["unigram-too"], 0.5)], of["unigram"], tokenizer_source="union")),
        Case("WordPiece", merge([(of["wordpiece"], 0.5), (of["wordpiece-too"], 0.5)], of["wordpiece"], tokenizer_source="union")),
        Case("WordPiece and BPE", merge([(of["wordpiece"], 0.5), (b, 0.5)], b, tokenizer_source="union")),
        *(
            Case(f"template {name}", merge(both, a, tokenizer_source="union", chat_template=name))
            for name in ("chatml", "alpaca", "llama3", "mistral", "exaone")
        ),
        Case("the most common template", merge([*both, (of["a-again"], 0.1)], a, tokenizer_source="union", chat_template="auto")),
        Case("a template as text", merge(both, a, tokenizer_source="base", chat_template=MARKED + "{{ bos_token }}")),
        Case("no template", merge(both, a, tokenizer_source="base", chat_template="{{ short }}"), differs="both refuse"),
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Judging


def vocabulary(folder):
    """Tokens by text, and the added ones with their flags, as transformers has them."""
    loaded = AutoTokenizer.from_pretrained(folder)
    added = {token.content: str(token.__getstate__()) for token in loaded.added_tokens_decoder.values()}
    return loaded, loaded.get_vocab(), added


def judge(case, ours, theirs, ours_error, theirs_error):
    if case.differs == "both refuse":
        return [f"{tool} accepted it" for tool, error in (("mergeforge", ours_error), ("mergekit", theirs_error)) if not error]
    if ours_error:
        return [f"mergeforge refused: {ours_error}"]
    if case.differs == "refused":
        return loads(case, ours) + ([] if theirs_error else ["mergekit accepted it"])
    if theirs_error:
        return [f"mergekit refused: {theirs_error}"]
    problems = loads(case, ours)
    (_, own, own_added), (_, other, other_added) = vocabulary(ours), vocabulary(theirs)
    if set(own) != set(other):
        problems.append(f"tokens: only ours {sorted(set(own) - set(other))[:5]}, only theirs {sorted(set(other) - set(own))[:5]}")
    for token in [] if case.differs == "added" else sorted(set(own_added) | set(other_added)):
        if own_added.get(token) != other_added.get(token):
            problems.append(f"added token {token!r}: {own_added.get(token)}, theirs {other_added.get(token)}")
    tensors, of_other = load_all(ours), load_all(theirs)
    if set(tensors) != set(of_other):
        problems.append(f"tensors: {sorted(set(tensors) ^ set(of_other))}")
    for name in sorted(set(tensors) & set(of_other)):
        mine, yours = tensors[name], of_other[name]
        if mine.shape != yours.shape:
            problems.append(f"{name}: {list(mine.shape)}, theirs {list(yours.shape)}")
            continue
        if "embed_tokens" in name or "lm_head" in name:
            tokens = sorted(set(own) & set(other))
            size = len(other)
            mine = torch.cat([mine[[own[token] for token in tokens]], mine[size:]])
            yours = torch.cat([yours[[other[token] for token in tokens]], yours[size:]])
        apart = (mine - yours).abs().amax(-1)
        if apart.max() > TOLERANCE * yours.abs().max():
            worst = apart.argmax().item() if apart.dim() else 0
            which = tokens[worst] if ("embed_tokens" in name or "lm_head" in name) and worst < len(tokens) else worst
            problems.append(f"{name}: off by {apart.max():.2e} at {which!r}")
    settings = [json.loads((folder / "config.json").read_text())["vocab_size"] for folder in (ours, theirs)]
    if settings[0] != settings[1]:
        problems.append(f"vocab_size {settings[0]}, theirs {settings[1]}")
    return problems


def load_all(folder):
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def loads(case, folder):
    """What is wrong with an output in transformers."""
    loaded, tokens, _ = vocabulary(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    rows = model.get_input_embeddings().weight.shape[0]
    problems = []
    if rows != model.config.vocab_size or max(tokens.values()) >= rows:
        problems.append(f"{rows} rows, vocab_size {model.config.vocab_size}, ids up to {max(tokens.values())}")
    for text in TEXTS + OTHER_TEXTS:
        ids = loaded(text, add_special_tokens=False, return_tensors="pt").input_ids
        if not torch.isfinite(model(ids).logits).all():
            problems.append(f"the logits of {text!r} are not finite")
    if case.of:
        problems += logits_differ(folder, model, loaded, pathlib.Path(case.config["base_model"]))
    if case.config.get("chat_template"):
        talk = [{"role": "user", "content": "hello there"}]
        prompt = loaded.apply_chat_template(talk, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        made = model.generate(**prompt, max_new_tokens=4, do_sample=False, pad_token_id=0)
        if made.shape[1] <= prompt.input_ids.shape[1]:
            problems.append("nothing was generated")
    return problems


def logits_differ(folder, model, loaded, parent):
    """Of a merge that takes all of one model: its logits, token by token."""
    other, names = AutoModelForCausalLM.from_pretrained(parent, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(parent)
    ids = loaded.get_vocab()
    shared = [token for token in names.get_vocab() if names.get_vocab()[token] < other.config.vocab_size]
    problems = []
    for text in TEXTS + OTHER_TEXTS:
        theirs = names(text, add_special_tokens=False, return_tensors="pt").input_ids
        mine = torch.tensor([[ids[names.convert_ids_to_tokens(token.item())] for token in theirs[0]]])
        columns = [ids[token] for token in shared]
        apart = model(mine).logits[..., columns] - other(theirs).logits[..., [names.get_vocab()[token] for token in shared]]
        if apart.abs().max() > LOGIT_TOLERANCE:
            problems.append(f"logits of {text!r} are off by {apart.abs().max():.1e}")
    return problems


def run_case(case, args):
    folder = args.work / "runs" / "".join(c if c.isalnum() else "-" for c in case.name)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config = folder / "config.yml"
    config.write_text(yaml.safe_dump(case.config, sort_keys=False))
    theirs_error = run_mergekit(config, folder / "mergekit")
    ours_error = run_mergeforge(args.mergeforge, config, folder / "mergeforge")
    return judge(case, folder / "mergeforge", folder / "mergekit", ours_error, theirs_error)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mergeforge", required=True, help="the binary")
    parser.add_argument("--work", type=pathlib.Path, required=True, help="folder for inputs, outputs and logs")
    parser.add_argument("--only", default="", help="run the cases whose name contains this")
    os.environ |= MERGEKIT_ENVIRONMENT | {"MERGEFORGE_CACHE": ""}
    args = parser.parse_args()
    args.work = args.work.resolve()
    args.mergeforge = shutil.which(args.mergeforge) or sys.exit(f"no program {args.mergeforge}")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    disagree = 0
    for case in all_cases(make_models(args.work / "inputs")):
        if args.only not in case.name:
            continue
        problems = run_case(case, args)
        disagree += bool(problems)
        verdict = "; ".join(problems) if problems else f"differs on purpose ({case.why})" if case.why else "agree"
        print(f"{case.name}: {verdict}", flush=True)
    sys.exit(bool(disagree))


if __name__ == "__main__":
    main()

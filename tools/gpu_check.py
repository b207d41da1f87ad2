#!/usr/bin/env python3
"""Is mergeforge right on a real GPU, and how far from the best possible speed?

    python3 tools/gpu_check.py --binary mergeforge --out results.tar.gz
    python3 tools/gpu_check.py --binary mergeforge --out results.tar.gz --all --disk /a/folder/on/a/disk --minutes 40

For a machine with an NVIDIA GPU and Python; neither Rust nor a network is needed. The built program makes the models,
merges them and times its kernels. The rest is done here: nvidia-smi, copies by the driver alone
(tools/cuda_copies.py), mergekit, compute-sanitizer.

The first call is for a GPU that is there for a few minutes. It measures the most important things first, within `--minutes`:
kernels checked and timed, a streamed merge of 7B models beside the floor and beside plain copies, the wait of a first
use, write-combined memory, one file against many, mergekit. With `--all` come the other methods, the CPU's bytes,
other settings, cold reads, the sanitizers and mergekit's other modes.

The archive holds results.json with all figures, results.md with tables of them, pages and traces. It is written
again after every step, so that a call that is cut off loses one step. A step that fails is noted with its output,
and the others go on; the exit code is then 1. A step that could not be tried is `not run`, with the reason, never a pass.
`--tiny` shrinks everything, to rehearse the tool where there is no GPU; a GPU that is software then counts as one.
"""

import argparse
import contextlib
import datetime
import gzip
import hashlib
import json
import os
import pathlib
import re
import shutil
import signal
import sys
import tarfile
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from measuring import MERGEKIT_ENVIRONMENT, Failed, Json, Late, answer, config_of, cores, file_system, machine
from measuring import memory_folder, models_folder, run, shown, succeed, table

HERE = pathlib.Path(__file__).resolve().parent

# What the program is meant to reach.
FLOOR_RATIO_MOST = 1.25
HOST_BYTES_MOST = 4 << 30
DEVICE_BYTES_MOST = 8 << 30
STREAM_SHARE_LEAST = 0.9
MERGEKIT_RATIO_LEAST = 10.0

# What it is meant to reach through WebGPU beside CUDA on the same card: the share of the rate of `consensus`, and the
# times that a whole merge by ties takes.
WGPU_RATE_LEAST = 0.75
WGPU_RATIO_MOST = 2.0

# No run takes so long; one that hangs must not take the others' time.
RUN_LIMIT_S = 240.0

# Layers of the models, from all down to what there is room for.
LAYERS = (None, 24, 16, 8, 4, 2, 1)

MERGEKIT_VERSION = "0.1.5"
MERGEKIT_RUN = "from mergekit.scripts.run_yaml import main; main()"

BEGAN = time.monotonic()


class NotRun(Exception):
    """A step cannot be tried; the reason."""


def say(text: str) -> None:
    print(f"[{time.monotonic() - BEGAN:6.1f} s] {text}", file=sys.stderr, flush=True)


def gib(count: float | None) -> str:
    return "–" if count is None else f"{count / (1 << 30):.2f} GiB"


def rate(moved: float, seconds: float) -> str:
    return f"{moved / 1e9 / seconds:.1f}"


# ---------------------------------------------------------------------------------------------------------------------
# Steps, and what is kept of them


class Results:
    """Every step with its figures, in an archive that is written again after each of them."""

    def __init__(self, args: argparse.Namespace, files: pathlib.Path) -> None:
        self.args = args
        self.files = files
        self.deadline = time.monotonic() + 60 * args.minutes
        self.began = datetime.datetime.now(datetime.UTC)
        self.facts: Json = {}
        self.targets: list[Json] = []
        self.steps: list[Json] = []

    def left_s(self) -> float:
        return self.deadline - time.monotonic()

    def step(self, name: str, action: Callable[[], Json], least_s: float) -> None:
        """Runs a step, if there is the time that it takes at the least."""
        say(name)
        began = time.monotonic()
        entry: Json = {"step": name, "status": "failed"}
        try:
            if self.args.skip and re.search(self.args.skip, name):
                raise NotRun("left out by --skip")
            if self.left_s() < (1 if self.args.tiny else least_s):
                raise NotRun("no time left")
            entry |= {"figures": action(), "status": "ok"}
        except NotRun as why:
            entry |= {"status": "not run", "why": str(why)}
        except Late as why:
            entry |= {"status": "failed" if self.left_s() > 0 else "not run", "why": str(why)}
        except Failed as why:
            entry["why"] = str(why)
        except Exception:
            # A mistake in this tool, or a program that answers in another way: the other steps may still work.
            entry["why"] = traceback.format_exc()
        entry["seconds"] = round(time.monotonic() - began, 2)
        self.steps.append(entry)
        if entry["status"] != "ok":
            say(f"{name}: {result_of(entry)}")
        self.save()

    def figures(self, name: str) -> Json | None:
        """Those of an earlier step, if it succeeded."""
        return next((step.get("figures") for step in self.steps if step["step"] == name), None)

    def target(self, what: str, figure: float, shown_as: str, least: float | None = None, most: float = 0) -> None:
        met = figure <= most if least is None else figure >= least
        self.targets.append({"target": what, "measured": shown_as, "figure": figure, "met": met})

    def failed(self) -> bool:
        return any(step["status"] == "failed" for step in self.steps)

    def save(self) -> None:
        seconds = round((datetime.datetime.now(datetime.UTC) - self.began).total_seconds(), 1)
        written = {"date": self.began.isoformat(timespec="seconds"), "seconds": seconds, "tiny": self.args.tiny}
        written |= {"facts": self.facts, "targets": self.targets, "steps": self.steps}
        (self.files / "results.json").write_text(json.dumps(written, indent=1) + "\n")
        (self.files / "results.md").write_text(self.markdown())
        partial_archive = self.args.out.with_name(self.args.out.name + ".partial")
        with tarfile.open(partial_archive, "w:gz") as archive:
            for file in sorted(self.files.iterdir()):
                archive.add(file, file.name)
        partial_archive.replace(self.args.out)

    def markdown(self) -> str:
        parts = [f"# GPU check, {self.began:%Y-%m-%d %H:%M} UTC"]
        if self.args.tiny:
            parts.append("**A rehearsal with `--tiny`: the figures mean nothing.**")
        parts.append("\n".join(f"- {name}: {value}" for name, value in self.facts.items()))
        if self.targets:
            rows = [[one["target"], one["measured"], "met" if one["met"] else "missed"] for one in self.targets]
            parts += ["## Targets", table([["target", "measured", ""], *rows])]
        steps = [[step["step"], result_of(step), f"{step['seconds']:.1f}"] for step in self.steps]
        parts += ["## Steps", table([["step", "result", "s"], *steps])]
        for step in self.steps:
            for title, rows in step.get("figures", {}).get("tables", {}).items():
                parts += [f"## {title}", table(rows)]
        return "\n\n".join(parts) + "\n"


def result_of(step: Json) -> str:
    """A step's result in a line: of what a program said, the line in which it says what is wrong."""
    lines = step.get("why", "").strip().splitlines()
    if step["status"] == "failed":
        return f"failed: {next((line for line in lines if 'rror:' in line), lines[-1] if lines else '')}"
    return f"{step['status']}: {lines[0]}" if lines else step["status"]


# ---------------------------------------------------------------------------------------------------------------------
# The program, the GPU and the models


class Bench:
    """The program with its models in a folder; outputs do not outlive their use."""

    def __init__(self, args: argparse.Namespace, results: Results, models: pathlib.Path) -> None:
        self.args = args
        self.results = results
        self.models = models
        self.out = models / "out"
        self.layers: int | None = None
        self.repeat = 1 if args.tiny else args.repeat
        self.found: Json = {"devices": [], "absent": {}}

    def limit_s(self) -> float:
        return min(RUN_LIMIT_S, self.results.left_s())

    def answer(self, *words: Any) -> Any:
        return answer([self.args.binary, *words, "--json"], self.limit_s())

    def device(self, family: str) -> str:
        """The first device of a family, if its speed says something: software may only be rehearsed with."""
        devices = [one for one in self.found["devices"] if one["id"].partition(":")[0] == family]
        good = [one for one in devices if self.args.tiny or one["facts"].get("kind") != "software"]
        if not devices:
            raise NotRun(self.found["absent"].get(family, "the program does not list one"))
        if not good:
            raise NotRun(f"{devices[0]['name']} is software")
        if good[0].get("unusable"):
            raise NotRun(good[0]["unusable"])
        return good[0]["id"]

    def shape(self, small: bool = False) -> str:
        return "tiny" if self.args.tiny else "llama-68m" if small else "llama-2-7b"

    def bench_merge(self, method: str, device: str, *words: Any) -> Json:
        """Merges beside the floor of the machine; makes the models that are not there."""
        for name, default in {"--dir": self.models, "--layers": self.layers, "--repeat": self.repeat}.items():
            words += (name, default) if default and name not in words else ()
        merge = ["--shape", self.shape(), "--method", method, "--device", device]
        return self.answer("bench", "merge", *merge, *self.args.flags.split(), *words)

    def made_models(self, small: bool = False) -> pathlib.Path:
        """The folder of the models that a bench has made."""
        found = models_folder(self.models, self.shape(small), None if small else self.layers)
        if not (found / "base").is_dir():
            raise NotRun("there are no models")
        return found

    def config(self, method: str, small: bool = False) -> pathlib.Path:
        config = self.models / f"{method}.yml"
        config.write_text(config_of(method, self.made_models(small)))
        return config

    @contextlib.contextmanager
    def output(self) -> Iterator[pathlib.Path]:
        shutil.rmtree(self.out, ignore_errors=True)
        try:
            yield self.out
        finally:
            shutil.rmtree(self.out, ignore_errors=True)

    def merge(
        self,
        config: pathlib.Path,
        device: str,
        *words: Any,
        environment: dict[str, str] | None = None,
        look: Callable[[pathlib.Path], Any] = lambda out: None,
    ) -> Json:
        """One merge as a user runs it: its manifest and how it went, the time of its process, and what a look at the output gives."""
        with self.output() as out:
            flags = ["--device", device, "--quiet", "--json", *self.args.flags.split(), *words]
            ran = succeed([self.args.binary, "merge", config, out, *flags], self.limit_s(), environment)
            told = json.loads(ran.out)
            return told | told["run"] | {"process_seconds": ran.wall_s, "seen": look(out)}


def tool(name: str) -> str:
    """A program of the machine; CUDA's tools are often not on the path."""
    of_cuda = pathlib.Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin"
    found = shutil.which(name) or shutil.which(name, path=str(of_cuda))
    if not found:
        raise NotRun(f"there is no {name}")
    return found


GPU_FACTS = ("name", "driver_version", "memory.total", "compute_cap", "pcie.link.gen.max", "pcie.link.width.max")
GPU_LOAD = ("memory.used", "pcie.link.gen.current", "pcie.link.width.current", "clocks.sm")


def nvidia_smi(fields: tuple[str, ...]) -> list[str]:
    return [tool("nvidia-smi"), f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]


class Watch:
    """How far the machine's memory outside of the page cache rises, and the GPU's; its link and clock under load.

    Pinned memory and the driver's own may be no part of what a process is counted to hold."""

    def __enter__(self) -> "Watch":
        self.before, self.host, self.gpu = self.used_bytes(), [0], [self.gpu_load()]
        self.done = threading.Event()
        self.threads = [threading.Thread(target=follow) for follow in (self.follow_host, self.follow_gpu)]
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        for thread in self.threads:
            thread.join()

    @staticmethod
    def used_bytes() -> int:
        lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
        info = {line.split(":")[0]: int(line.split()[1]) << 10 for line in lines}
        return info["MemTotal"] - sum(info[name] for name in ("MemFree", "Buffers", "Cached", "SReclaimable"))

    @staticmethod
    def gpu_load() -> Json:
        """Nothing of what nvidia-smi does not report."""
        try:
            line = succeed(nvidia_smi(GPU_LOAD), 30).out.splitlines()[0]
        except (NotRun, Failed, Late, IndexError):
            return {}
        cells = zip(GPU_LOAD, (cell.strip() for cell in line.split(",")))
        return {name: int(cell) for name, cell in cells if cell.isdigit()}

    def follow_host(self) -> None:
        while not self.done.wait(0.05):
            self.host.append(self.used_bytes() - self.before)

    def follow_gpu(self) -> None:
        while self.gpu[0] and not self.done.wait(0.05):
            self.gpu.append(self.gpu_load())

    def figures(self) -> Json:
        most = {name: max(seen.get(name, 0) for seen in self.gpu) for name in self.gpu[0]}
        if "memory.used" in most:
            most["gpu_rise_bytes"] = (most["memory.used"] - self.gpu[0]["memory.used"]) << 20
        return {"host_rise_bytes": max(self.host)} | most


# ---------------------------------------------------------------------------------------------------------------------
# Steps of the one call, in the order in which they matter


def version(bench: Bench) -> Json:
    facts = machine()
    facts["memory"] = gib(facts.pop("memory_bytes"))
    with bench.args.binary.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    words = succeed([bench.args.binary, "--version"], bench.limit_s()).out.strip()
    bench.results.facts |= facts | {"program": f"{words}, SHA-256 {digest[:16]}", "models": file_system(bench.models)}
    return {}


def gpus(bench: Bench) -> Json:
    lines = succeed(nvidia_smi(GPU_FACTS), bench.limit_s()).out.strip().splitlines()
    found = [dict(zip(GPU_FACTS, (cell.strip() for cell in line.split(",")))) for line in lines]
    for number, gpu in enumerate(found):
        bench.results.facts[f"GPU {number}"] = ", ".join(f"{name} {value}" for name, value in gpu.items())
    return {"gpus": found}


def devices(bench: Bench) -> Json:
    bench.found = bench.answer("devices")
    for device in bench.found["devices"]:
        facts = [f"{name.replace('_', ' ')} {value}" for name, value in device["facts"].items()]
        bench.results.facts[device["id"]] = ", ".join([device["name"], *facts])
    bench.results.facts |= {family: f"absent: {why}" for family, why in bench.found["absent"].items()}
    return bench.found


def check(bench: Bench, family: str) -> Json:
    """Every kernel against its plain definition, bit for bit."""
    device = bench.device(family)
    quick = ["--quick"] if bench.args.tiny else []
    command = [bench.args.binary, "check", "--device", device, *quick, "--json"]
    ran = run(command, bench.limit_s())
    # What differs is in the rows, and gives an exit code.
    rows = [row for one in json.loads(ran.out) for row in one["kernels"]] if ran.out.startswith("[") else []
    wrong = [row["wrong"] for row in rows if row["wrong"]]
    # What the CPU computed in the device's place is equal to what the CPU computes.
    wrong += [
        f"error: {row['kernel']} of {row['inputs']} inputs: all was left to the CPU, nothing was checked"
        for row in rows
        if row["by_cpu"] and row["by_cpu"] == row["chunks"]
    ]
    if wrong or not rows or ran.code:
        raise Failed("\n".join([*wrong, f"{shown(command)}: exit code {ran.code}", ran.err[-2000:]]))
    launches = sum(row["launches"] for row in rows)
    bench.results.facts[f"checked {device}"] = f"{launches} launches, the CPU's bits"
    return {"launches": launches, "rows": rows}


def kernels(bench: Bench, family: str) -> Json:
    """Every kernel's time beside a copy and a stream of the same bytes; WebGPU's beside CUDA's too."""
    device = bench.device(family)
    size = ["--mebi-elements", 1, "--repeat", 1] if bench.args.tiny else ["--mebi-elements", 64, "--repeat", 9]
    found = bench.answer("bench", "kernels", "--device", device, *size)
    on_cuda = (bench.results.figures("kernels cuda") or {}).get("kernels", []) if family != "cuda" else []
    rates = {(row["kernel"], row["what"]): row["gb_per_s"] for row in on_cuda}
    rows = [["kernel", "what", "µs", "GB/s", "of copy", "of stream", "B/param", *(["of CUDA's"] if rates else [])]]
    for row in found["kernels"]:
        cells = [f"{row['seconds'] * 1e6:.1f}", f"{row['gb_per_s']:.1f}", f"{row['share_of_copy']:.0%}"]
        cells += [f"{row['share_of_stream']:.0%}", f"{row['bytes_per_parameter']:.2f}"]
        beside = row["gb_per_s"] / rates.get((row["kernel"], row["what"]), float("inf"))
        rows.append([row["kernel"], row["what"], *cells, *([f"{beside:.0%}"] if rates else [])])
        if row["kernel"] == "consensus" and row["what"].startswith("ties"):
            share, least, of = row["share_of_stream"], STREAM_SHARE_LEAST, "a stream of the same bytes"
            if rates:
                share, least, of = beside, WGPU_RATE_LEAST, "CUDA's rate"
            what = f"{device}, consensus, {row['what']}: at least {least:.0%} of {of}"
            bench.results.target(what, share, f"{share:.0%}", least=least)
    title = f"Kernels on {device}: {found['name']}; a copy moves {found['copy_gb_per_s']:.0f} GB/s"
    return found | {"tables": {title: rows}}


def merges(bench: Bench, method: str, family: str) -> Json:
    """Whole merges of 7B models, beside the floor of the machine. The first one makes the models."""
    device = bench.device(family)
    # The page has a timeline of the stages.
    page = bench.results.files / f"{method}-{family}.html"
    found = bench.bench_merge(method, device, "--report", page)
    moved = found["input_bytes"] + found["output_bytes"]
    rows = [["what", "s", "GB/s", "all rounds, s"]]
    for what, seconds, every in (
        ("from start to exit", found["seconds"], found["seconds_all"]),
        ("from first read to last write", found["streaming_seconds"], []),
        ("floor: the host reads and writes", found["floor"]["seconds"], found["floor"]["seconds_all"]),
    ):
        rows.append([what, f"{seconds:.3f}", rate(moved, seconds), ", ".join(f"{one:.2f}" for one in every)])
    stages = [["stage", "busy", "GB/s while busy"]]
    for stage in found["stages"]:
        stages.append([f"{stage['stage']}, {stage['by']}", f"{stage['share']:.0%}", f"{stage['gb_per_s']:.1f}"])
    on_cuda = bench.results.figures(f"{method} on cuda")
    if family == "wgpu" and method == "ties" and on_cuda:
        ratio = found["seconds"] / on_cuda["seconds"]
        what = f"{device}, ties: at most {WGPU_RATIO_MOST:g} × CUDA's time"
        bench.results.target(what, ratio, f"{ratio:.2f} ×", most=WGPU_RATIO_MOST)
    size = f"{found['shape']}, {found['layers']} layers, {moved / 1e9:.1f} GB in and out"
    title = f"{method} of {found['models']} models on {device}"
    tables = {f"{title}: {size}": rows, f"{title}: stages, bottleneck: {found['bottleneck'] or 'none'}": stages}
    return found | {"tables": tables}


def first_merges(bench: Bench) -> Json:
    """As many layers as there is room for: exit code 4 says that there is too little."""
    for layers in LAYERS:
        bench.layers = layers
        try:
            return merges(bench, "ties", "cuda")
        except Failed as why:
            if "exit code 4" not in str(why) or layers == LAYERS[-1]:
                raise
    raise AssertionError("the last is returned or raised")


def without_kernels(bench: Bench) -> Json:
    """The same stream with no kernels: what reads, copies, digests and writes take by themselves."""
    config, device = bench.config("ties"), bench.device("cuda")
    runs = []
    for _ in range(2):
        with bench.output() as out:
            runs.append(bench.answer("bench", "floor", config, out, "--device", device, *bench.args.flags.split()))
    found = min(runs, key=lambda one: one["seconds"])
    if merged := bench.results.figures("ties on cuda"):
        ratio = merged["streaming_seconds"] / found["seconds"]
        what = f"ties on cuda: at most {FLOOR_RATIO_MOST} × the same stream with no kernels"
        bench.results.target(what, ratio, f"{ratio:.2f} ×", most=FLOOR_RATIO_MOST)
    return found | {"tables": {"The same stream with no kernels": [["s"], [f"{found['seconds']:.3f}"]]}}


def copies(bench: Bench, *words: str) -> Json:
    """Copies by the driver alone, and reads into pinned memory."""
    number = bench.device("cuda").partition(":")[2]
    file = max(bench.made_models().glob("base/*.safetensors"), key=lambda file: file.stat().st_size)
    size = ["--mib", 1, "--count", 2, "--repeat", 2] if bench.args.tiny else []
    command = [sys.executable, HERE / "cuda_copies.py", "--device", number, "--read", file, *size, *words]
    return answer(command, bench.limit_s())


WAYS = {
    "to_device": "to the GPU",
    "from_device": "from the GPU",
    "both_each_way": "each way, both at once",
    "on_device": "on the GPU, read and written",
    "read_one_thread": "a file read, one thread",
    "read_all_threads": "a file read, all threads",
}


def plain_copies(bench: Bench) -> Json:
    """Beside the merge: no merge can be faster than the slowest way for its bytes."""
    found = copies(bench)
    merged = bench.results.figures("ties on cuda") or {"input_bytes": 0, "output_bytes": 0}
    size = dict.fromkeys(WAYS, merged["input_bytes"]) | {"from_device": merged["output_bytes"]}
    rows = [["way", "GB/s", "s for the bytes of ties"]]
    rows += [[name, f"{found[way]:.1f}", f"{size[way] / 1e9 / found[way]:.2f}"] for way, name in WAYS.items()]
    return found | {"tables": {"Copies with nothing else running, plain pinned memory": rows}}


def write_combined(bench: Bench) -> Json:
    """Pinned memory that the processor's caches leave alone: faster to copy from, perhaps, and slower to read into."""
    found, plain = copies(bench, "--write-combined"), bench.results.figures("plain copies") or {}
    rows = [["way, GB/s", "plain", "write-combined"]]
    rows += [[name, f"{plain.get(way, 0):.1f}", f"{found[way]:.1f}"] for way, name in WAYS.items()]
    pinning = [f"{one.get('pinning_s_per_gb', 0):.3f}" for one in (plain, found)]
    return found | {"tables": {"Pinned memory": [*rows, ["to pin 1 GB, s", *pinning]]}}


def first_use(bench: Bench) -> Json:
    """How long the first merge waits while the driver compiles the kernels: small models, an empty cache of CUDA's."""
    device = bench.device("cuda")
    words = ["--shape", bench.shape(small=True), "--dir", bench.models, "--device", "cpu", "--repeat", 1]
    bench.answer("bench", "merge", *words)
    config = bench.config("ties", small=True)
    with tempfile.TemporaryDirectory(prefix="gpu_check-") as cache:
        environment = {"CUDA_CACHE_PATH": cache}
        runs = [bench.merge(config, device, "--no-cache", environment=environment) for _ in range(3)]
        kept = sum(file.stat().st_size for file in pathlib.Path(cache).rglob("*") if file.is_file())
    seconds = [one["process_seconds"] for one in runs]
    wait_s = seconds[0] - min(seconds[1:])
    rows = [["run", "process, s"], ["first, CUDA's cache empty", f"{seconds[0]:.2f}"]]
    rows += [["again", f"{one:.2f}"] for one in seconds[1:]] + [["wait of the first", f"{wait_s:.2f}"]]
    return {"seconds": seconds, "wait_seconds": wait_s, "cached_bytes": kept, "tables": {"First use": rows}}


def watched(bench: Bench) -> Json:
    """One merge with a trace, and a watch over memory, link and clock."""
    trace = bench.models / "trace.json"
    with Watch() as watch:
        found = bench.merge(bench.config("ties"), bench.device("cuda"), "--no-cache", "--trace", trace)
    (bench.results.files / "ties-cuda.trace.json.gz").write_bytes(gzip.compress(trace.read_bytes(), 6))
    trace.unlink()
    seen = watch.figures()
    peak = max(seen["host_rise_bytes"], (bench.results.figures("ties on cuda") or {}).get("peak_bytes") or 0)
    what = "ties on cuda: at most {} of the {} memory"
    bench.results.target(what.format(gib(HOST_BYTES_MOST), "host's"), peak, gib(peak), most=HOST_BYTES_MOST)
    if there := seen.get("gpu_rise_bytes"):
        bench.results.target(what.format(gib(DEVICE_BYTES_MOST), "GPU's"), there, gib(there), most=DEVICE_BYTES_MOST)
    rows = [[name, gib(most) if name.endswith("bytes") else str(most)] for name, most in seen.items()]
    return {"seconds": found["seconds"], **seen, "tables": {"One merge by ties, watched": [["", "most"], *rows]}}


def file_names(out: pathlib.Path) -> list[str]:
    return sorted(file.name for file in out.glob("*.safetensors"))


def files(bench: Bench) -> Json:
    """One output file against many: one file is written by one thread at a time."""
    config, device = bench.config("ties"), bench.device("cuda")
    sizes = ("1GB", "500kB", "100kB") if bench.args.tiny else ("1TB", "5GB", "500MB")
    runs: dict[str, list[Json]] = {size: [] for size in sizes}
    # In turns: a slow minute then spoils one run of each.
    for _ in range(2):
        for size in sizes:
            runs[size].append(bench.merge(config, device, "--no-cache", "--out-shard-size", size, look=file_names))
    rows = [["shards of at most", "files", "s", "write, busy", "write wait"]]
    for size, both in runs.items():
        best = min(both, key=lambda one: one["seconds"])
        shares = {stage["stage"]: stage["share"] for stage in best["stages"] if stage["by"] != "device"}
        busy = [f"{shares.get(stage, 0):.0%}" for stage in ("write", "write wait")]
        rows.append([size, str(len(best["seen"])), f"{best['seconds']:.2f}", *busy])
    seconds = {size: [one["seconds"] for one in both] for size, both in runs.items()}
    return {"seconds": seconds, "tables": {"One file against many, the faster of two runs": rows}}


def mergekit_environment(bench: Bench) -> dict[str, str]:
    """mergekit from the wheels that were given, whose other needs are on the machine, or as it is installed here."""
    environment = dict(MERGEKIT_ENVIRONMENT)
    if wheels := bench.args.wheels:
        site = bench.models / "site"
        if not site.exists():
            flags = ["--quiet", "--no-index", "--no-deps", "--no-compile", "--target", site]
            succeed([sys.executable, "-m", "pip", "install", *flags, *sorted(wheels.glob("*.whl"))], bench.limit_s())
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    ask = "import importlib.metadata as m, torch; print(m.version('mergekit'), torch.cuda.is_available())"
    asked = run([sys.executable, "-c", ask], bench.limit_s(), environment)
    if asked.code:
        raise NotRun(f"{asked.err.strip().splitlines()[-1]}; --wheels takes a folder with mergekit's wheels")
    version, sees_gpu = asked.out.split()
    if version != MERGEKIT_VERSION:
        raise Failed(f"mergekit {version} is there, and not {MERGEKIT_VERSION}")
    if sees_gpu != "True":
        raise NotRun("torch sees no GPU")
    return environment


def mergekit(bench: Bench, modes: list[str]) -> Json:
    """The same merge by mergekit on the same files; its start-up is that of `--help`."""
    config, environment = bench.config("ties"), mergekit_environment(bench)
    command = [sys.executable, "-c", MERGEKIT_RUN]
    start_s = succeed([*command, "--help"], bench.limit_s(), environment).wall_s
    with bench.output() as out:
        # It takes as long as it takes: what is left is for it.
        ran = succeed([*command, config, out, *modes], bench.results.left_s(), environment)
        if not list(out.glob("*.safetensors")):
            raise Failed(f"mergekit wrote nothing\n{ran.words()}")
    found = {"seconds": ran.wall_s, "start_up_seconds": start_s, "peak_bytes": ran.peak_bytes}
    rows = [["", "s"], [f"mergekit {shown(modes)}", f"{ran.wall_s:.1f}"], ["its start-up", f"{start_s:.1f}"]]
    if ours := bench.results.figures("ties on cuda"):
        ratio = ran.wall_s / ours["seconds"]
        rows += [["mergeforge", f"{ours['seconds']:.2f}"], ["ratio", f"{ratio:.1f}"]]
        rows.append(["ratio without start-up", f"{(ran.wall_s - start_s) / ours['seconds']:.1f}"])
        what = f"ties: mergekit {shown(modes)} takes at least {MERGEKIT_RATIO_LEAST:g} times as long"
        bench.results.target(what, ratio, f"{ratio:.1f} ×", least=MERGEKIT_RATIO_LEAST)
    return found | {"tables": {f"ties beside mergekit {MERGEKIT_VERSION} {shown(modes)}": rows}}


# ---------------------------------------------------------------------------------------------------------------------
# Steps that only --all takes


def digests(out: pathlib.Path) -> dict[str, str]:
    def digest(file: pathlib.Path) -> tuple[str, str]:
        with file.open("rb") as opened:
            return file.name, hashlib.file_digest(opened, "sha256").hexdigest()

    with ThreadPoolExecutor(cores()) as threads:
        return dict(threads.map(digest, out.glob("*.safetensors")))


def same_bytes(bench: Bench, method: str, family: str) -> Json:
    """The device's files and the CPU's: digests of the tensors as computed, and of the files as written."""
    config, device = bench.config(method), bench.device(family)
    # Many files, so that many threads can read them.
    there, here = (bench.merge(config, one, "--out-shard-size", "1GB", look=digests) for one in (device, "cpu"))
    for what in ("tensors", "seen"):
        differ = [name for name, digest in here[what].items() if there[what].get(name) != digest]
        if differ or len(there[what]) != len(here[what]):
            raise Failed(f"error: {len(differ)} of {len(here[what])} differ from the CPU's: {differ[:8]}")
    return {"tensors": len(here["tensors"]), "files": len(here["seen"])}


def setting(bench: Bench, words: tuple[str, Any]) -> Json:
    """ties with one setting away from the defaults, once: for orientation."""
    found = bench.bench_merge("ties", bench.device("cuda"), *words, "--repeat", 1)
    row = [f"{found['seconds']:.2f}", f"{found['streaming_seconds']:.2f}", f"{found['floor']['seconds']:.2f}"]
    head = ["process, s", "s", "floor, s", "bottleneck"]
    return found | {"tables": {f"ties, {shown(words)}": [head, [*row, found["bottleneck"] or "none"]]}}


def known_thresholds(bench: Bench) -> Json:
    """A merge that uses what the one before found: a single sweep."""
    config, device = bench.config("ties"), bench.device("cuda")
    first, again = (bench.merge(config, device) for _ in range(2))
    if first["tensors"] != again["tensors"]:
        raise Failed("error: known thresholds changed the output")
    rows = [["thresholds", "s"], ["searched", f"{first['seconds']:.2f}"], ["known", f"{again['seconds']:.2f}"]]
    return {"seconds": [first["seconds"], again["seconds"]], "tables": {"Known thresholds": rows}}


def cold(bench: Bench, reads: str) -> Json:
    """ties with nothing of the inputs in the page cache, and some 20 GB on a disk."""
    if bench.args.disk is None:
        raise NotRun("no --disk was given")
    if file_system(bench.args.disk) in ("tmpfs", "ramfs"):
        raise NotRun("--disk is in memory, where nothing is cold")
    layers = [] if bench.args.tiny else ["--layers", min(10, bench.layers or 10)]
    words = ["--dir", bench.args.disk, "--cold", "--reads", reads, *layers]
    found = bench.bench_merge("ties", bench.device("cuda"), *words)
    seconds = [found["seconds"], found["floor_stored"]["seconds"]]
    rows = [["s", "floor, stored, s", "share of the floor", "bottleneck"]]
    rows.append([*(f"{one:.2f}" for one in seconds), f"{found['share_of_floor']:.0%}", found["bottleneck"] or "none"])
    return found | {"tables": {f"ties on {file_system(bench.args.disk)}, cold, --reads {reads}": rows}}


SANITIZER_SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (\d+) (?:errors?|hazards?)")


def sanitized(bench: Bench, name: str, of_merge: bool = False) -> Json:
    """The program under compute-sanitizer. initcheck may report padding that is read and not used."""
    sanitizer, device = tool("compute-sanitizer"), bench.device("cuda")
    with bench.output() as out:
        words = ["check", "--quick"]
        if of_merge:
            words = ["merge", bench.config("ties", small=True), out, "--quiet", "--no-cache", "--threads", 2]
        command = [sanitizer, "--tool", name, "--print-limit", 20, bench.args.binary, *words, "--device", device]
        ran = succeed(command, bench.results.left_s())
    reports = [int(count) for count in SANITIZER_SUMMARY.findall(ran.out + ran.err)]
    if not reports or (sum(reports) and name != "initcheck"):
        raise Failed(f"{ran.words()}\n{sum(reports)} reports of {name}, {len(reports)} summaries")
    return {"reports": sum(reports), "words": ran.words() if sum(reports) else ""}


def cublas() -> dict[str, str]:
    """Where a PyTorch of this machine has it, for a program that does not find it by itself."""
    folders = [pathlib.Path(folder) / "nvidia" for folder in sys.path if folder]
    found = [file for folder in folders for file in sorted(folder.glob("*/lib/libcublas.so.*"))]
    return {"MERGEFORGE_CUBLAS": str(found[0])} if found else {}


def linked(file: str, to: str) -> None:
    """Without a copy, where both are on one file system: links by name are not followed out of a model's folder."""
    try:
        os.link(file, to)
    except OSError:
        shutil.copy(file, to)


def reading(bench: Bench) -> Json:
    """Texts read on the GPU and on the CPU: whether losses agree, and how many tokens a second of a large model."""
    examples, device = HERE.parent / "examples" / "models", bench.device("cuda")
    texts = ["--text", examples / "texts" / "general_valid.txt"]
    if bench.args.tiny:
        short = bench.models / "short.txt"
        short.write_text((examples / "texts" / "general_valid.txt").read_text(encoding="utf-8")[:2000], encoding="utf-8")
        texts = ["--text", short]

    def read(model: pathlib.Path, where: str, *words: Any) -> Json:
        command = [bench.args.binary, "eval", model, *texts, *words, "--device", where, "--json"]
        ran = succeed(command, bench.limit_s(), cublas() if where != "cpu" else None)
        return json.loads(ran.out)["models"][0]

    small = {where: read(examples / "base", where, "--window", 96) for where in (device, "cpu")}
    losses = [one["sets"][0]["loss"] for one in small.values()]
    apart = abs(losses[0] - losses[1])
    bench.results.target("losses on cuda: within 0.0001 of the CPU's", apart, f"{apart:.1e}", most=1e-4)
    # A model of the bench with the examples' tokenizer: its losses mean nothing, its speed does. The tiny one has no room for that.
    large = bench.models / "reads"
    shutil.rmtree(large, ignore_errors=True)
    shutil.copytree(examples / "medical" if bench.args.tiny else bench.made_models() / "base", large, copy_function=linked)
    for file in examples.glob("base/tokenizer*"):
        (large / file.name).unlink(missing_ok=True)
        shutil.copy(file, large)
    found = read(large, device, "--packed", "--window", 64 if bench.args.tiny else 2048)
    shutil.rmtree(large)
    rows = [["model", "device", "tokens", "passes", "tokens/s"]]
    for name, one in [*(("example", one) for one in small.values()), (bench.shape(), found)]:
        rows.append([name, one["device"], str(one["sets"][0]["tokens"]), str(one["passes"]), f"{one['tokens_per_second']:.0f}"])
    figures = {"losses": losses, "tokens_per_second": found["tokens_per_second"], "passes": found["passes"]}
    return figures | {"tables": {"Texts read": rows}}


# Name, what is done, the seconds that it takes at the least.
Step = tuple[str, Callable[[Bench], Json], float]


def steps_of_the_call() -> list[Step]:
    families = ("cuda", "wgpu")
    return [
        ("version", version, 0),
        ("nvidia-smi", gpus, 0),
        ("devices", devices, 0),
        *((f"check {family}", partial(check, family=family), 5) for family in families),
        *((f"kernels {family}", partial(kernels, family=family), 5) for family in families),
        ("ties on cuda", first_merges, 40),
        ("ties with no kernels", without_kernels, 15),
        ("plain copies", plain_copies, 10),
        ("first use", first_use, 10),
        ("texts read", reading, 20),
        ("write-combined memory", write_combined, 10),
        ("ties, watched", watched, 15),
        ("one file or many", files, 30),
        ("mergekit --cuda", partial(mergekit, modes=["--cuda"]), 40),
    ]


def steps_of_all(tiny: bool) -> list[Step]:
    methods, modes = ("ties", "linear", "dare_ties"), ("--lazy-unpickle", "--low-cpu-memory", "--gpu-rich")
    threads = sorted({2, max(1, cores() // 2), 2 * cores()})
    settings = [("--threads", count) for count in threads]
    settings += [("--chunk-tiles", count) for count in ((16,) if tiny else (512, 1024, 2048, 4096, 8192))]
    settings += [("--host-memory", size) for size in (("64MiB",) if tiny else ("512MiB", "1GiB", "2GiB", "4GiB"))]
    of_methods = [("linear", "cuda"), ("dare_ties", "cuda"), *((method, "wgpu") for method in methods)]
    return [
        *((f"{one} on {family}", partial(merges, method=one, family=family), 30) for one, family in of_methods),
        *(
            (f"{one} on {family}: the CPU's bytes", partial(same_bytes, method=one, family=family), 40)
            for family in ("cuda", "wgpu")
            for one in methods
        ),
        *((f"ties {shown(words)}", partial(setting, words=words), 20) for words in settings),
        ("ties, known thresholds", known_thresholds, 20),
        *((f"ties, cold, --reads {how}", partial(cold, reads=how), 60) for how in ("copied", "direct")),
        # The shortest first, so that the slowest gets all the time that is left.
        *((f"{name} of check", partial(sanitized, name=name), 10) for name in ("synccheck", "initcheck", "memcheck")),
        ("memcheck of a merge", partial(sanitized, name="memcheck", of_merge=True), 10),
        ("racecheck of check", partial(sanitized, name="racecheck"), 10),
        *((f"mergekit --cuda {mode}", partial(mergekit, modes=["--cuda", mode]), 40) for mode in modes),
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Command line


def parse_args() -> argparse.Namespace:
    path = pathlib.Path
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=path, required=True, help="the built mergeforge")
    parser.add_argument("--out", type=path, required=True, metavar="FILE.tar.gz", help="the archive of all results")
    parser.add_argument("--all", action="store_true", help="all that there is to measure")
    parser.add_argument("--minutes", type=float, help="for everything [7, with --all 40]")
    parser.add_argument("--dir", type=path, help="for models, which then stay [a folder in memory that does not]")
    parser.add_argument("--disk", type=path, help="a folder on a disk, for cold reads; its models stay")
    parser.add_argument("--wheels", type=path, help=f"a folder with wheels of mergekit {MERGEKIT_VERSION}")
    parser.add_argument("--repeat", type=int, default=3, help="counted rounds of merges [%(default)s]")
    parser.add_argument("--flags", default="", metavar="WORDS", help='more flags for merges, like "--threads 8"')
    parser.add_argument("--skip", metavar="PATTERN", help="leave out steps whose name has this")
    parser.add_argument("--tiny", action="store_true", help="everything as small as it gets: a rehearsal")
    args = parser.parse_args()
    args.minutes = args.minutes or (40 if args.all else 7)
    for name in ("binary", "out", "dir", "disk", "wheels"):
        if getattr(args, name):
            # Not `resolve`: a program may be a link that must be called by its name.
            setattr(args, name, getattr(args, name).absolute())
    if not os.access(args.binary, os.X_OK):
        parser.error(f"{args.binary} is no program")
    return args


def temporary(stack: contextlib.ExitStack, parent: pathlib.Path | None = None) -> pathlib.Path:
    """A folder that goes when the stack ends."""
    return pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gpu_check-", dir=parent)))


def main() -> int:
    # So that a call that is cut off takes its models away.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    args = parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        kept, cache = (temporary(stack) for _ in range(2))
        models = args.dir or temporary(stack, memory_folder())
        models.mkdir(parents=True, exist_ok=True)
        # A device is checked before its first use once in this call, and kernels are compiled once.
        os.environ |= {"MERGEFORGE_CACHE": str(cache / "mergeforge"), "CUDA_CACHE_PATH": str(cache / "cuda")}
        results = Results(args, kept)
        bench = Bench(args, results, models)
        for name, action, least_s in steps_of_the_call() + (steps_of_all(args.tiny) if args.all else []):
            results.step(name, partial(action, bench), least_s)
        print(results.markdown())
    return 1 if results.failed() else 0


if __name__ == "__main__":
    sys.exit(main())

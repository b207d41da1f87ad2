#!/usr/bin/env python3
"""How fast is a merge, against what the machine could do at best and against mergekit?

A time alone says little: it depends on disk, memory and the neighbours of that minute. So each round runs, for each
merge below, the floor (tools/floor.rs: the same bytes read and written, no arithmetic), mergeforge, and in the first
rounds mergekit, one after the other; what is graded is the ratio of runs that were neighbours in time.

    cargo build --release --bins --examples
    target/release/examples/synth --shape tinyllama-1.1b --models 4 --dtype bf16 /dev/shm/models
    python tools/compare.py --models /dev/shm/models --disk target/compare --mergekit "$(which mergekit-yaml)" \\
        --save benches/results/NAME

Saves NAME.md and NAME.json; benches/README.md says how to read them. Needs numpy only for comparing the outputs of
the two tools. Results name models by their folders alone. Nothing is removed that this run did not write.
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import datetime
import json
import multiprocessing
import os
import pathlib
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent

# Elements compared at a time: some arrays of 16 MiB, and so little memory beside outputs that may lie in memory too.
PIECE_ELEMENTS = 4 << 20

# Magnitude bits of infinity in bfloat16; all that is above is NaN.
BF16_INFINITY = 0x7F80

# No two bfloat16 are further apart than this many ulps.
ULPS_MAX = 2 * (BF16_INFINITY + 1)

# Of ru_maxrss, in bytes.
RSS_UNIT = 1 if sys.platform == "darwin" else 1024

# mergekit looks for a tokenizer, which synthetic models lack, and must not ask the network for it while it is timed.
MERGEKIT_ENVIRONMENT = {"HF_HUB_OFFLINE": "1"}


# ---------------------------------------------------------------------------------------------------------------------
# Merges


@dataclasses.dataclass(frozen=True)
class Case:
    """A merge. Where masks are random, outputs agree only in their statistics."""

    name: str
    method: str
    models: dict
    base: str | None = None
    parameters: dict = dataclasses.field(default_factory=dict)
    random: bool = False

    @property
    def inputs(self):
        """The checkpoints that the merge reads, each once."""
        return list(dict.fromkeys([*([self.base] if self.base else []), *self.models]))

    def config(self, folder=None):
        """The YAML; with a folder, it names the models by whole paths."""

        def name(model):
            return json.dumps(str(folder / model)) if folder else model

        lines = [f"merge_method: {self.method}", *([f"base_model: {name(self.base)}"] if self.base else []), "models:"]
        for model, settings in self.models.items():
            lines += [f"  - model: {name(model)}", *block("parameters", settings, "    ")]
        return "\n".join([*lines, *block("parameters", self.parameters), "dtype: bfloat16", ""])


def block(key, settings, indent=""):
    lines = [f"{indent}  {name}: {value}" for name, value in settings.items()]
    return [f"{indent}{key}:", *lines] if lines else []


def all_cases():
    thirds = {"model-1": {"weight": 0.5}, "model-2": {"weight": 0.3}, "model-3": {"weight": 0.2}}
    two = {f"model-{n}": {"density": 0.5, "weight": 0.5} for n in (1, 2)}
    four = {f"model-{n}": {"density": 0.5, "weight": 0.25} for n in (1, 2, 3, 4)}
    return [
        Case("linear", "linear", thirds),
        Case("slerp", "slerp", {"model-1": {}, "model-2": {}}, "model-1", {"t": 0.5}),
        Case("ties", "ties", two, "base"),
        Case("dare_ties", "dare_ties", two, "base", random=True),
        Case("ties_4", "ties", four, "base"),
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Running


@dataclasses.dataclass
class Run:
    wall_s: float
    cpu_s: float
    peak_rss_bytes: int


def run(command, cwd, log, environment=None):
    """Runs to the end, or leaves with the last words of the program.

    What this process holds when it starts a child counts as the child's (see `least_rss_bytes`), so it must stay small:
    it never loads numpy."""
    with log.open("wb") as words:
        start = time.perf_counter()
        child = subprocess.Popen(
            [str(word) for word in command],
            cwd=cwd,
            stdout=words,
            stderr=subprocess.STDOUT,
            env=os.environ | (environment or {}),
        )
        _, status, usage = os.wait4(child.pid, 0)
        wall_s = time.perf_counter() - start
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"{shown(command)}: exit {child.returncode}\n{log.read_text(errors='replace')[-2000:]}")
    return Run(wall_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * RSS_UNIT)


def least_rss_bytes():
    """Until exec a child is a copy of this process: a peak below ours cannot be seen."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT


def shown(command):
    return " ".join(map(str, command))


class Bench:
    """One folder for outputs, and the programs that write into it."""

    def __init__(self, args, folder, fsync=False):
        self.args = args
        self.folder = folder
        self.log = folder / "log"
        self.fsync = fsync

    def floor(self, case):
        """The floor's own time: it ends before its output is removed, as mergeforge's does."""
        command = [self.args.floor, "--out", self.folder, "--repeat", 1, "--threads", self.args.threads, "--json"]
        command += ["--output-bytes", self.args.plans[case.name]["write_bytes"], *(["--fsync"] if self.fsync else [])]
        measured = run([*command, *case.inputs], self.args.models, self.log)
        figures = json.loads(self.log.read_text())
        return dataclasses.replace(measured, wall_s=figures["seconds"][0])

    def mergeforge(self, case, out):
        command = [self.args.mergeforge, "merge", self.config(case), out, "--threads", self.args.threads, "--quiet"]
        if self.args.host_memory:
            command += ["--host-memory", self.args.host_memory]
        return run(command, self.args.models, self.log)

    def mergekit(self, case, out, *flags):
        command = [self.args.mergekit, self.config(case), out, *flags]
        return run(command, self.args.models, self.log, MERGEKIT_ENVIRONMENT)

    def config(self, case):
        path = self.folder / f"{case.name}.yml"
        path.write_text(case.config(self.args.models))
        return path

    @contextlib.contextmanager
    def output(self, name):
        """A place for an output, which does not outlive its use: two of them may be more than the memory holds."""
        path = self.folder / name
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)


def measure_in_memory(args, chosen):
    """Rounds over all merges, rather than all rounds of one merge: a slow minute then spoils one round of each."""
    runs = {case.name: {} for case in chosen}
    agreements = {}
    with bench_in(args.out, args) as bench:
        bench.floor(max(chosen, key=lambda case: len(case.inputs)))  # Uncounted: inputs may not be cached yet.
        for turn in range(args.rounds):
            for case in chosen:
                with_mergekit = args.mergekit and turn < args.mergekit_rounds
                measure_round(bench, case, turn, with_mergekit, runs[case.name], agreements)
    return runs, agreements


def measure_round(bench, case, turn, with_mergekit, runs, agreements):
    with bench.output("mergekit") as theirs, bench.output("mergeforge") as ours:
        if with_mergekit:
            measure_mergekit(bench, case, theirs, runs)
        compared = with_mergekit and case.name not in agreements
        if not compared:
            shutil.rmtree(theirs, ignore_errors=True)
        measure_pair(bench, case, turn, ours, runs)
        if compared:
            base = bench.args.models / "base" if case.random else None
            agreements[case.name] = in_child(agreement, ours, theirs, base)


def measure_mergekit(bench, case, out, runs):
    if bench.args.lazy_unpickle:
        keep(runs, "mergekit --lazy-unpickle", case, bench.mergekit(case, out, "--lazy-unpickle"))
        shutil.rmtree(out)
    keep(runs, "mergekit", case, bench.mergekit(case, out))


def measure_pair(bench, case, turn, out, runs):
    """Floor and merge take turns in going first: what the first leaves behind must not always meet the same one."""
    pair = [("floor", lambda: bench.floor(case)), ("mergeforge", lambda: bench.mergeforge(case, out))]
    for name, measured in pair if turn % 2 == 0 else reversed(pair):
        if bench.fsync:
            os.sync()  # What others left unwritten is not this run's to wait for.
        keep(runs, name, case, measured())


def measure_on_disk(args, chosen):
    runs = {case.name: {} for case in chosen}
    with bench_in(args.disk, args, fsync=True) as bench:
        for turn in range(args.rounds):
            for case in chosen:
                with bench.output("mergeforge") as out:
                    measure_pair(bench, case, turn, out, runs[case.name])
    return runs


@contextlib.contextmanager
def bench_in(parent, args, fsync=False):
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="compare-", dir=parent) as folder:
        yield Bench(args, pathlib.Path(folder), fsync)


def keep(runs, program, case, measured):
    runs.setdefault(program, []).append(measured)
    print(f"{case.name}, {program}: {measured.wall_s:.2f} s, {measured.cpu_s:.2f} s CPU", file=sys.stderr)


def measure_startup(args):
    """What mergekit needs before it reads its config; the first call only warms the page cache."""
    with bench_in(args.out, args) as bench:
        calls = [run([args.mergekit, "--help"], args.models, bench.log, MERGEKIT_ENVIRONMENT) for _ in range(2)]
    return calls[-1]


def measure_copy(args):
    return output_of([args.floor, "--copy", "--threads", args.threads, "--json"], args.models, json.loads)


def plan(args, case):
    """Bytes to read and to write, from the headers alone; a config that is wrong ends the run here."""
    with tempfile.NamedTemporaryFile("w", suffix=".yml") as config:
        config.write(case.config(args.models))
        config.flush()
        planned = output_of([args.mergeforge, "plan", config.name, "--json"], args.models, json.loads)
    return {key: planned[key] for key in ("read_bytes", "write_bytes")}


def output_of(command, cwd=None, parse=str.strip):
    done = subprocess.run([str(word) for word in command], cwd=cwd, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{shown(command)}: exit {done.returncode}")
    return parse(done.stdout)


# ---------------------------------------------------------------------------------------------------------------------
# Agreement


def in_child(function, *arguments):
    """Elsewhere, so that numpy's memory is not counted as that of the programs measured (see `run`)."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def agreement(ours, theirs, base=None):
    """How far apart two checkpoints in bfloat16 are; with a base, how far each of them has moved from it."""
    ours, theirs = tensors(ours), tensors(theirs)
    if problem := different_tensors(ours, theirs):
        return {"problem": problem}
    if base is None:
        return agreement_of_values(ours, theirs)
    base = tensors(base)
    return {"mergeforge": moved(ours, base), "mergekit": moved(theirs, base)}


def tensors(folder):
    """Name -> (file, offset, elements, dtype) of every tensor in a checkpoint."""
    found = {}
    for path in sorted(pathlib.Path(folder).glob("*.safetensors")):
        with path.open("rb") as file:
            head_bytes = int.from_bytes(file.read(8), "little")
            head = json.loads(file.read(head_bytes))
        head.pop("__metadata__", None)
        for name, entry in head.items():
            start, end = entry["data_offsets"]
            found[name] = (path, 8 + head_bytes + start, (end - start) // 2, entry["dtype"])
    return found


def different_tensors(ours, theirs):
    if apart := sorted(ours.keys() ^ theirs.keys()):
        return f"{len(apart)} tensors in one output only, such as {apart[0]}"
    for name, (_, _, count, dtype) in ours.items():
        if (count, dtype) != (theirs[name][2], theirs[name][3]) or dtype != "BF16":
            return f"{name}: {count} elements of {dtype} and {theirs[name][2]} of {theirs[name][3]}"
    return None


def pieces(*checkpoints):
    """The bits of the same elements of each checkpoint, a piece at a time."""
    import numpy as np

    for name, (_, _, count, _) in checkpoints[0].items():
        for first in range(0, count, PIECE_ELEMENTS):
            elements = min(PIECE_ELEMENTS, count - first)
            places = [checkpoint[name] for checkpoint in checkpoints]
            yield [np.fromfile(path, "<u2", elements, offset=at + 2 * first) for path, at, _, _ in places]


def agreement_of_values(ours, theirs):
    import numpy as np

    # How many elements are 0, 1, 2, … ulps apart.
    counts = np.zeros(ULPS_MAX + 1, np.int64)
    largest = 0.0
    for a, b in pieces(ours, theirs):
        apart = np.abs(ordinals(a) - ordinals(b))
        unequal = apart > 0
        counts += np.bincount(apart[unequal], minlength=len(counts))
        counts[0] += np.count_nonzero(~unequal)
        largest = np.fmax(largest, np.abs(values(a[unequal]) - values(b[unequal])).max(initial=0))
    total = int(counts.sum())
    return {
        "elements": total,
        "equal": int(counts[0]) / total,
        "within_1_ulp": int(counts[:2].sum()) / total,
        "ulps_of_9999_in_10000": int(np.searchsorted(np.cumsum(counts), 0.9999 * total)),
        "ulps_max": int(np.flatnonzero(counts)[-1]),
        "difference_max": float(largest),
    }


def ordinals(bits):
    """Integers in the order of the values: neighbours are 1 apart, the two zeros are one, and so are all NaNs."""
    import numpy as np

    magnitude = np.minimum(bits & 0x7FFF, BF16_INFINITY + 1).astype(np.int32)
    return np.where(bits >> 15, -magnitude, magnitude)


def moved(out, base):
    import numpy as np

    total = changed = 0
    distance = 0.0
    for a, b in pieces(out, base):
        step = values(a) - values(b)
        total += len(step)
        changed += int(np.count_nonzero(step))
        distance += float(np.abs(step).sum(dtype=np.float64))
    return {"moved": changed / total, "mean_abs_step": distance / total}


def values(bits):
    import numpy as np

    return (bits.astype(np.uint32) << 16).view(np.float32)


# ---------------------------------------------------------------------------------------------------------------------
# Report


def median(runs, figure="wall_s"):
    return statistics.median(getattr(run, figure) for run in runs)


def least(runs):
    return min(run.wall_s for run in runs)


def moved_bytes(plan):
    return plan["read_bytes"] + plan["write_bytes"]


def floor_share(runs):
    """The median over rounds: floor and merge of one round met the same machine."""
    return statistics.median(floor.wall_s / merge.wall_s for floor, merge in zip(runs["floor"], runs["mergeforge"]))


def figures(runs, plan):
    """What the tables show, by program."""
    by_program = {
        program: {
            "wall_s_median": median(measured),
            "wall_s_min": least(measured),
            "cpu_s_median": median(measured, "cpu_s"),
            "peak_rss_bytes_max": max(run.peak_rss_bytes for run in measured),
            "gb_per_s_median": moved_bytes(plan) / 1e9 / median(measured),
        }
        for program, measured in runs.items()
    }
    by_program["mergeforge"]["share_of_floor"] = floor_share(runs)
    return by_program


def ratios(ours, theirs, startup):
    """How many times mergeforge's wall time mergekit takes, whole and without its start-up."""
    ours, theirs = ours["wall_s_median"], theirs["wall_s_median"]
    return {"ratio": theirs / ours, "ratio_without_startup": (theirs - startup.wall_s) / ours}


def results(args, chosen, runs, disk_runs, agreements, startup):
    """All that is saved; nothing in it names a folder but the models'."""
    saved = {
        "date": datetime.date.today().isoformat(),
        "machine": args.machine,
        "versions": versions(args),
        "threads": args.threads,
        "rounds": args.rounds,
        "mergekit_rounds": min(args.rounds, args.mergekit_rounds) if args.mergekit else 0,
        "host_memory": args.host_memory,
        "copy": measure_copy(args),
        "peak_rss_seen_from_bytes": least_rss_bytes(),
        "mergekit_startup": startup and dataclasses.asdict(startup),
        "merges": {},
    }
    for case in chosen:
        saved["merges"][case.name] = entry = {
            "config": case.config(),
            "inputs": case.inputs,
            **args.plans[case.name],
            "in_memory": section(runs[case.name], args, case, startup),
            "agreement": agreements.get(case.name),
        }
        if disk_runs:
            entry["on_disk"] = section(disk_runs[case.name], args, case, None)
    return saved


def section(runs, args, case, startup):
    by_program = figures(runs, args.plans[case.name])
    for program, theirs in by_program.items():
        if program.startswith("mergekit"):
            theirs |= ratios(by_program["mergeforge"], theirs, startup)
    raw = {program: [dataclasses.asdict(run) for run in measured] for program, measured in runs.items()}
    return {"figures": by_program, "runs": raw}


def report(saved):
    merges = saved["merges"]
    parts = [
        "# Speed of merges",
        heading(saved),
        "## Output in memory",
        f"Folder of the outputs: {saved['machine']['out']}.",
        speed_table(saved, "in_memory"),
    ]
    if any("on_disk" in merge for merge in merges.values()):
        where = f"Folder of the outputs: {saved['machine']['disk']}. Both end when all is stored."
        parts += ["## On disk, with fsync", where, speed_table(saved, "on_disk")]
    if saved["mergekit_startup"]:
        parts += ["## mergekit", mergekit_note(saved), mergekit_table(merges)]
        parts += ["## Agreement of the outputs", *agreement_tables(merges)]
    parts += ["## Configs", *(f"{name}:\n\n```yaml\n{merge['config']}```" for name, merge in merges.items())]
    return "\n\n".join(parts) + "\n"


def heading(saved):
    machine, versions = saved["machine"], saved["versions"]
    programs = ", ".join(f"{name} {version}" for name, version in versions.items())
    memory = f"--host-memory {saved['host_memory']}" if saved["host_memory"] else "the default memory budget"
    return (
        f"{saved['date']}; {machine['cpu']}, {machine['cores']} cores, {machine['memory_bytes'] / 2**30:.0f} GiB, "
        f"{machine['kernel']}; load before the run {machine['load']:.1f}. {programs}. {saved['threads']} threads, "
        f"{memory}, rounds: {saved['rounds']}; medians, in brackets the fastest run. Plain copies in memory: "
        f"{saved['copy']['gb_per_s_median']:.1f} GB/s read + written. Made by `tools/compare.py`; `benches/README.md` "
        "says what the columns mean."
    )


def speed_table(saved, section):
    rows = []
    for name, merge in saved["merges"].items():
        floor, ours = (merge[section]["figures"][program] for program in ("floor", "mergeforge"))
        rows.append(
            [
                name,
                f"{merge['read_bytes'] / 1e9:.2f} + {merge['write_bytes'] / 1e9:.2f}",
                seconds(floor),
                seconds(ours),
                f"{ours['gb_per_s_median']:.2f}",
                f"{ours['share_of_floor']:.1%}".replace("%", " %"),
                f"{ours['cpu_s_median']:.2f}",
                megabytes(ours, saved["peak_rss_seen_from_bytes"]),
            ]
        )
    titles = ["merge", "GB in + out", "floor, s", "mergeforge, s", "GB/s", "share of floor", "CPU, s", "peak RSS, MB"]
    return table(titles, rows)


def mergekit_note(saved):
    startup = saved["mergekit_startup"]
    return (
        f"By its command, with its defaults; rounds: {saved['mergekit_rounds']}. Its start-up (`mergekit-yaml --help`) "
        f"takes {startup['wall_s']:.1f} s and {startup['peak_rss_bytes'] / 1e6:.0f} MB. The ratio is its wall time to "
        "mergeforge's."
    )


def mergekit_table(merges):
    rows = []
    for name, merge in merges.items():
        for program, theirs in merge["in_memory"]["figures"].items():
            if program.startswith("mergekit"):
                cells = [seconds(theirs), f"{theirs['cpu_s_median']:.2f}", megabytes(theirs), f"{theirs['ratio']:.1f}"]
                rows.append([name, program, *cells, f"{theirs['ratio_without_startup']:.1f}"])
    titles = ["merge", "program", "wall, s", "CPU, s", "peak RSS, MB", "ratio", "ratio without start-up"]
    return table(titles, rows)


def agreement_tables(merges):
    agreements = {name: merge["agreement"] for name, merge in merges.items() if merge["agreement"]}
    problems = [f"**{name}**: {found['problem']}" for name, found in agreements.items() if "problem" in found]
    valued = [[name, *agreement_cells(found)] for name, found in agreements.items() if "equal" in found]
    masked = [
        [name, program, percent_down(found[program]["moved"]), f"{found[program]['mean_abs_step']:.4e}"]
        for name, found in agreements.items()
        for program in ("mergeforge", "mergekit")
        if program in found
    ]
    ulp_titles = ["ulps, 9999 of 10,000", "ulps, at most", "abs(diff), at most"]
    value_titles = ["merge", "equal elements", "at most 1 ulp apart", *ulp_titles]
    mask_titles = ["merge", "program", "elements moved from the base", "mean abs(out - base)"]
    tables = [table(titles, rows) for titles, rows in ((value_titles, valued), (mask_titles, masked)) if rows]
    return [*problems, *tables]


def agreement_cells(found):
    shares = [percent_down(found["equal"]), percent_down(found["within_1_ulp"])]
    ulps = [str(found["ulps_of_9999_in_10000"]), str(found["ulps_max"])]
    return [*shares, *ulps, f"{found['difference_max']:.1e}"]


def percent_down(share):
    """Rounded down: 100 % means all."""
    return f"{int(share * 1e6) / 1e4:.4f} %".replace("100.0000", "100")


def seconds(figures):
    return f"{figures['wall_s_median']:.2f} ({figures['wall_s_min']:.2f})"


def megabytes(figures, seen_from_bytes=0):
    peak_bytes = figures["peak_rss_bytes_max"]
    return f"{'≤ ' if peak_bytes <= seen_from_bytes else ''}{peak_bytes / 1e6:.0f}"


def table(titles, rows):
    # Names to the left, numbers to the right.
    marks = [":--" if title in ("merge", "program") else "--:" for title in titles]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [titles, marks, *rows])


def save(path, saved, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not `with_suffix`: a name may have dots of its own.
    path.with_name(path.name + ".md").write_text(text)
    path.with_name(path.name + ".json").write_text(json.dumps(saved, indent=1) + "\n")


# ---------------------------------------------------------------------------------------------------------------------
# Machine and programs


def machine(args):
    return {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": f"{platform.system()} {platform.release()}",
        "load": os.getloadavg()[0],
        "models": file_system(args.models),
        "out": file_system(args.out),
        "disk": args.disk and file_system(args.disk),
    }


def cpu_model():
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    return platform.machine()


def file_system(folder):
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        # Mounts may be stacked: the last is the one seen.
        return subprocess.check_output(["findmnt", "-no", "FSTYPE", "-T", folder], text=True).split()[-1]
    return "file system unknown"


def versions(args):
    commit = output_of(["git", "-C", REPOSITORY, "describe", "--always", "--dirty", "--tags"])
    named = {"mergeforge": f"{output_of([args.mergeforge, '--version']).split()[-1]} at {commit}"}
    if args.mergekit:
        # As the environment of the command has them, which need not be this script's.
        python = args.mergekit.parent / "python"
        ask = "from importlib.metadata import version; print(version('mergekit'), version('torch'))"
        named["mergekit"], named["torch"] = output_of([python, "-c", ask]).split()
    return named


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [case.name for case in all_cases()]
    release = REPOSITORY / "target" / "release"
    path = pathlib.Path
    parser.add_argument("--models", type=path, required=True, help="folder that holds base, model-1, … (bfloat16)")
    parser.add_argument("--out", type=path, default=path("/dev/shm"), help="for outputs, in memory [%(default)s]")
    parser.add_argument("--disk", type=path, help="folder on a disk: measure there too, with fsync")
    of_names = f"of {', '.join(names)}"
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="MERGE", help=of_names)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of floor and mergeforge [all cores]")
    parser.add_argument("--host-memory", metavar="SIZE", help="mergeforge's [its default]")
    parser.add_argument("--mergekit", type=path, help="the command mergekit-yaml: measure it too")
    parser.add_argument("--mergekit-rounds", type=int, default=1)
    parser.add_argument("--lazy-unpickle", action="store_true", help="mergekit with this flag too")
    parser.add_argument("--mergeforge", type=path, default=release / "mergeforge")
    parser.add_argument("--floor", type=path, default=release / "examples" / "floor")
    parser.add_argument("--save", type=path, metavar="NAME", help="write NAME.md and NAME.json")
    return check(parser.parse_args())


def check(args):
    """Programs run in the folder of the models, which the floor names by their folders: every path must hold there."""
    for name in ("models", "out", "disk", "mergekit", "mergeforge", "floor"):
        if getattr(args, name):
            # Not `resolve`: it would follow the links of a virtual environment.
            setattr(args, name, getattr(args, name).absolute())
    for program, hint in (
        ("mergeforge", "cargo build --release"),
        ("floor", "cargo build --release --example floor"),
        ("mergekit", 'give a whole path: --mergekit "$(which mergekit-yaml)"'),
    ):
        if getattr(args, program) and not getattr(args, program).is_file():
            sys.exit(f"no program {getattr(args, program)}\nhint: {hint}")
    needed = {model for case in all_cases() if case.name in args.only for model in case.inputs}
    if missing := sorted(model for model in needed if not (args.models / model).is_dir()):
        sys.exit(
            f"{args.models} has no {', '.join(missing)}\nhint: cargo run --release --example synth -- "
            f"--shape tinyllama-1.1b --models 4 --dtype bf16 {args.models}"
        )
    if args.rounds < 1:
        sys.exit("--rounds must be at least 1")
    return args


def main():
    # No merge may profit from the one before.
    os.environ["MERGEFORGE_CACHE"] = ""
    args = parse_args()
    args.machine = machine(args)
    chosen = [case for case in all_cases() if case.name in args.only]
    args.plans = {case.name: plan(args, case) for case in chosen}
    startup = measure_startup(args) if args.mergekit else None
    runs, agreements = measure_in_memory(args, chosen)
    disk_runs = measure_on_disk(args, chosen) if args.disk else None
    saved = results(args, chosen, runs, disk_runs, agreements, startup)
    text = report(saved)
    print(text)
    if args.save:
        save(args.save, saved, text)


if __name__ == "__main__":
    main()

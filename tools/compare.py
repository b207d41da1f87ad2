#!/usr/bin/env python3
"""How fast is a merge, against the best that the machine could do and against mergekit?

A time alone says little: it depends on disk, memory and the neighbours of that minute. `mergeforge bench merge` makes
the models and measures each merge below in turns with the floor; mergekit then merges the same files, and the outputs of
the two tools are compared.

    cargo build --release
    python tools/compare.py --disk target/compare --mergekit "$(which mergekit-yaml)" --save benches/results/NAME

Saves NAME.md and NAME.json; benches/README.md says how to read them. Needs numpy only for comparing the outputs of the
two tools. Without --dir the models lie in memory, and are removed at the end.
"""

import argparse
import concurrent.futures
import dataclasses
import datetime
import json
import multiprocessing
import os
import pathlib
import shutil
import statistics
import sys
import tempfile

from measuring import MERGEKIT_ENVIRONMENT, Failed, Json, Ran, answer, config_of, cores, file_system, machine
from measuring import memory_folder, models_folder, succeed, table

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent

# Elements compared at a time: some arrays of 16 MiB, and so little memory beside outputs that may lie in memory too.
PIECE_ELEMENTS = 4 << 20

# Magnitude bits of infinity in bfloat16; all that is above is NaN.
BF16_INFINITY = 0x7F80

# No two bfloat16 are further apart than this many ulps.
ULPS_MAX = 2 * (BF16_INFINITY + 1)


# ---------------------------------------------------------------------------------------------------------------------
# Merges


@dataclasses.dataclass(frozen=True)
class Case:
    """A merge. Where masks are random, outputs agree only in their statistics."""

    name: str
    method: str
    models: int
    random: bool = False


CASES = [
    Case("linear", "linear", 3),
    Case("slerp", "slerp", 2),
    Case("ties", "ties", 2),
    Case("dare_ties", "dare_ties", 2, random=True),
    Case("ties_4", "ties", 4),
]

# The other methods that both tools have, measured where --only names them.
OTHER_CASES = [
    Case("nuslerp", "nuslerp", 2),
    Case("multislerp", "multislerp", 2),
    Case("karcher", "karcher", 2),
    Case("model_stock", "model_stock", 2),
    Case("task_arithmetic", "task_arithmetic", 2),
    Case("dare_linear", "dare_linear", 2, random=True),
    Case("breadcrumbs", "breadcrumbs", 2),
    Case("breadcrumbs_ties", "breadcrumbs_ties", 2),
    Case("della", "della", 2, random=True),
    Case("della_linear", "della_linear", 2, random=True),
    Case("sce", "sce", 2),
    Case("ram", "ram", 2),
    Case("ramplus_tl", "ramplus_tl", 2),
    Case("nearswap", "nearswap", 1),
    Case("arcee_fusion", "arcee_fusion", 1),
]


def bench(args: argparse.Namespace, case: Case, folder: pathlib.Path) -> Json:
    """Rounds of floor and merge; the models are made first where they are not there."""
    flags = ["--shape", args.shape, "--method", case.method, "--models", case.models, "--threads", args.threads]
    flags += ["--device", "cpu", "--repeat", args.rounds, "--dir", folder]
    flags += ["--layers", args.layers] if args.layers else []
    flags += ["--host-memory", args.host_memory] if args.host_memory else []
    found = answer([args.mergeforge, "bench", "merge", *flags, "--json"])
    say(f"{case.name} on {file_system(folder)}: {found['seconds']:.2f} s, floor {floor_of(found)['seconds']:.2f} s")
    return found


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def floor_of(found: Json) -> Json:
    """On a disk, the floor that ends when the output is stored, as a merge does."""
    return found["floor_stored"] or found["floor"]


def beside_mergekit(args: argparse.Namespace, case: Case, models: pathlib.Path) -> tuple[dict[str, list[Ran]], Json]:
    """Runs of mergekit, and how far its output is from that of mergeforge."""
    runs: dict[str, list[Ran]] = {}
    modes = [["--lazy-unpickle"]] if args.lazy_unpickle else []
    with tempfile.TemporaryDirectory(prefix="compare-", dir=args.out) as folder:
        config, theirs, ours = (pathlib.Path(folder) / name for name in ("config.yml", "mergekit", "mergeforge"))
        config.write_text(config_of(case.method, models, case.models))
        # The last run is with the defaults, and its output stays.
        for mode in [*modes, []] * args.mergekit_rounds:
            shutil.rmtree(theirs, ignore_errors=True)
            ran = succeed([args.mergekit, config, theirs, *mode], environment=MERGEKIT_ENVIRONMENT)
            program = " ".join(["mergekit", *mode])
            say(f"{case.name}, {program}: {ran.wall_s:.2f} s")
            runs.setdefault(program, []).append(ran)
        succeed([args.mergeforge, "merge", config, ours, "--device", "cpu", "--quiet", "--no-cache"])
        return runs, in_child(agreement, ours, theirs, models / "base" if case.random else None)


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


def figures_of_mergekit(runs: list[Ran], ours_s: float, startup: Ran) -> Json:
    """What the table shows: how many times mergeforge's wall time mergekit takes, whole and without its start-up."""
    wall_s = statistics.median(run.wall_s for run in runs)
    return {
        "wall_s": [run.wall_s for run in runs],
        "wall_s_median": wall_s,
        "cpu_s_median": statistics.median(run.cpu_s for run in runs),
        "peak_bytes": max(run.peak_bytes for run in runs),
        "ratio": wall_s / ours_s,
        "ratio_without_startup": (wall_s - startup.wall_s) / ours_s,
    }


def report(saved: Json) -> str:
    merges = saved["merges"]
    parts = ["# Speed of merges", heading(saved)]
    sections = {"in_memory": "Models and output in memory", "on_disk": "On disk, until all is stored"}
    for section, title in sections.items():
        found = {name: merge[section] for name, merge in merges.items() if merge[section]}
        if found:
            parts += [f"## {title}", f"Folder: {saved['folders'][section]}.", speed_table(found)]
    if saved["mergekit_startup"]:
        parts += ["## mergekit", mergekit_note(saved), mergekit_table(merges)]
        parts += ["## Agreement of the outputs", *agreement_tables(merges)]
    configs = (f"{name}:\n\n```yaml\n{merge['config']}\n```" for name, merge in merges.items())
    return "\n\n".join([*parts, "## Configs", *configs]) + "\n"


def heading(saved: Json) -> str:
    here = saved["machine"]
    programs = ", ".join(f"{name} {version}" for name, version in saved["versions"].items())
    memory = f"--host-memory {saved['host_memory']}" if saved["host_memory"] else "the default memory budget"
    copies = [one["copy_gb_per_s"] for merge in saved["merges"].values() if (one := merge["in_memory"])]
    return (
        f"{saved['date']}; {here['cpu']}, {here['cores']} cores, {here['memory_bytes'] / 2**30:.0f} GiB, "
        f"{here['system']}; load before the run {here['load']:.1f}. {programs}. {saved['shape']} in bfloat16, "
        f"{saved['threads']} threads, {memory}, rounds: {saved['rounds']}; medians, in brackets the fastest run. Plain "
        f"copies in memory: {statistics.median(copies):.1f} GB/s read + written. Made by `tools/compare.py`; "
        "`benches/README.md` says what the columns mean."
    )


def speed_table(merges: dict[str, Json]) -> str:
    head = ["merge", "GB in + out", "floor, s", "mergeforge, s", "GB/s", "share of floor", "CPU, s", "peak, MB"]
    head += ["bytes read a parameter", "through kernels"]
    rows = [head]
    for name, found in merges.items():
        cells = [f"{found['input_bytes'] / 1e9:.2f} + {found['output_bytes'] / 1e9:.2f}"]
        cells += [seconds(floor_of(found)), seconds(found), f"{found['gb_per_s']:.2f}"]
        cells += [f"{100 * found['share_of_floor']:.1f} %", f"{found['cpu_seconds'] or 0:.2f}"]
        cells += [f"{(found['peak_bytes'] or 0) / 1e6:.0f}", *(of_stage(found, stage) for stage in ("read", "compute"))]
        rows.append([name, *cells])
    return table(rows)


def of_stage(found: Json, name: str) -> str:
    """The bytes that a stage moved for each parameter."""
    moved = sum(stage["bytes"] for stage in found["stages"] if stage["stage"] == name)
    return f"{moved / found['parameters']:.1f}"


def seconds(found: Json) -> str:
    return f"{found['seconds']:.2f} ({min(found['seconds_all']):.2f})"


def mergekit_note(saved: Json) -> str:
    startup = saved["mergekit_startup"]
    return (
        f"By its command, with its defaults; rounds: {saved['mergekit_rounds']}. Its start-up (`mergekit-yaml --help`) "
        f"takes {startup['wall_s']:.1f} s and {startup['peak_bytes'] / 1e6:.0f} MB. The ratio is its wall time to "
        "mergeforge's."
    )


def mergekit_table(merges: dict[str, Json]) -> str:
    rows = [["merge", "program", "wall, s", "CPU, s", "peak RSS, MB", "ratio", "ratio without start-up"]]
    for name, merge in merges.items():
        for program, theirs in merge["mergekit"].items():
            wall = f"{theirs['wall_s_median']:.2f} ({min(theirs['wall_s']):.2f})"
            cells = [wall, f"{theirs['cpu_s_median']:.2f}", f"{theirs['peak_bytes'] / 1e6:.0f}"]
            rows.append([name, program, *cells, f"{theirs['ratio']:.1f}", f"{theirs['ratio_without_startup']:.1f}"])
    return table(rows)


def agreement_tables(merges: dict[str, Json]) -> list[str]:
    agreements = {name: merge["agreement"] for name, merge in merges.items()}
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
    tables = [table([titles, *rows]) for titles, rows in ((value_titles, valued), (mask_titles, masked)) if rows]
    return [*problems, *tables]


def agreement_cells(found: Json) -> list[str]:
    shares = [percent_down(found["equal"]), percent_down(found["within_1_ulp"])]
    ulps = [str(found["ulps_of_9999_in_10000"]), str(found["ulps_max"])]
    return [*shares, *ulps, f"{found['difference_max']:.1e}"]


def percent_down(share: float) -> str:
    """Rounded down: 100 % means all."""
    return f"{int(share * 1e6) / 1e4:.4f} %".replace("100.0000", "100")


# ---------------------------------------------------------------------------------------------------------------------
# Programs and command line


def versions(args: argparse.Namespace) -> dict[str, str]:
    commit = succeed(["git", "-C", REPOSITORY, "describe", "--always", "--dirty", "--tags"]).out.strip()
    named = {"mergeforge": f"{succeed([args.mergeforge, '--version']).out.split()[-1]} at {commit}"}
    if args.mergekit:
        # As the environment of the command has them, which need not be this script's.
        python = args.mergekit.parent / "python"
        ask = "from importlib.metadata import version; print(version('mergekit'), version('torch'))"
        named["mergekit"], named["torch"] = succeed([python, "-c", ask]).out.split()
    return named


def parse_args() -> argparse.Namespace:
    path = pathlib.Path
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    usual = [case.name for case in CASES]
    names = usual + [case.name for case in OTHER_CASES]
    parser.add_argument("--shape", default="tinyllama-1.1b", help="of the models [%(default)s]")
    parser.add_argument("--layers", type=int, help="cut the shape down to so many")
    parser.add_argument("--dir", type=path, help="for models, which then stay [a folder in memory that does not]")
    parser.add_argument("--out", type=path, default=memory_folder(), help="for outputs to compare [%(default)s]")
    parser.add_argument("--disk", type=path, help="folder on a disk: measure there too; the models stay")
    of_names = f"of {', '.join(names)}"
    parser.add_argument("--only", nargs="+", choices=names, default=usual, metavar="MERGE", help=of_names)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=cores(), help="of floor and mergeforge [all cores]")
    parser.add_argument("--host-memory", metavar="SIZE", help="mergeforge's [its default]")
    parser.add_argument("--mergekit", type=path, help="the command mergekit-yaml: measure it too")
    parser.add_argument("--mergekit-rounds", type=int, default=1)
    parser.add_argument("--lazy-unpickle", action="store_true", help="mergekit with this flag too")
    parser.add_argument("--mergeforge", type=path, default=REPOSITORY / "target" / "release" / "mergeforge")
    parser.add_argument("--save", type=path, metavar="NAME", help="write NAME.md and NAME.json")
    args = parser.parse_args()
    for name, hint in (("mergeforge", "cargo build --release"), ("mergekit", "give the path of mergekit-yaml")):
        if program := getattr(args, name):
            # Not `resolve`: it would follow the links of a virtual environment.
            setattr(args, name, program.absolute())
            if not program.is_file():
                sys.exit(f"no program {program}\nhint: {hint}")
    return args


def measured(args: argparse.Namespace, folder: pathlib.Path) -> Json:
    """All that is saved; it names no folder, but for their file systems."""
    saved = {
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "versions": versions(args),
        "shape": args.shape,
        "threads": args.threads,
        "rounds": args.rounds,
        "mergekit_rounds": args.mergekit_rounds if args.mergekit else 0,
        "host_memory": args.host_memory,
        "folders": {"in_memory": file_system(folder), "on_disk": args.disk and file_system(args.disk)},
        "mergekit_startup": None,
        "merges": {},
    }
    if args.mergekit:
        # The first call only brings its files into the page cache.
        startup = [succeed([args.mergekit, "--help"], environment=MERGEKIT_ENVIRONMENT) for _ in range(2)][-1]
        saved["mergekit_startup"] = {"wall_s": startup.wall_s, "peak_bytes": startup.peak_bytes}
    for case in (case for case in CASES + OTHER_CASES if case.name in args.only):
        found = bench(args, case, folder)
        config = config_of(case.method, pathlib.Path(""), case.models)
        saved["merges"][case.name] = entry = {"config": config, "in_memory": found, "mergekit": {}, "agreement": {}}
        entry["on_disk"] = bench(args, case, args.disk) if args.disk else None
        if args.mergekit:
            runs, entry["agreement"] = beside_mergekit(args, case, models_folder(folder, args.shape, args.layers))
            for program, of_program in runs.items():
                entry["mergekit"][program] = figures_of_mergekit(of_program, found["seconds"], startup)
    return saved


def main() -> None:
    # No merge may profit from the one before.
    os.environ["MERGEFORGE_CACHE"] = ""
    args = parse_args()
    with tempfile.TemporaryDirectory(prefix="compare-", dir=memory_folder()) as temporary:
        try:
            saved = measured(args, args.dir or pathlib.Path(temporary))
        except Failed as error:
            sys.exit(str(error))
    text = report(saved)
    print(text)
    if args.save:
        args.save.parent.mkdir(parents=True, exist_ok=True)
        # Not `with_suffix`: a name may have dots of its own.
        args.save.with_name(args.save.name + ".md").write_text(text)
        args.save.with_name(args.save.name + ".json").write_text(json.dumps(saved, indent=1) + "\n")


if __name__ == "__main__":
    main()

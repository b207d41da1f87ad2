#!/usr/bin/env python3
"""What a merge in parts costs on several machines: bytes, time, and what saturates. A small simulation of `mergeforge merge --part I/N`.

    python3 tools/scale.py                                    # the table of docs/scale.md
    python3 tools/scale.py --nodes 1 8 --cores 64 --network 25
    python3 tools/scale.py --check target/release/mergeforge CONFIG WORK  # against real parts of a merge on this machine
    python3 tools/scale.py --check-page docs/scale.md

Sizes are in bytes, rates in GB/s (10^9 bytes). A node's stages overlap: it takes as long as its slowest resource. Its cores do all stages, one after
the other for each byte; its network carries what it reads, and the other way what it writes; all nodes share the store. Nodes have
whole files, so the node with the most bytes is the last.
"""

import argparse
import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path

BEGIN, END = "<!-- scale -->\n", "<!-- /scale -->\n"


@dataclass(frozen=True)
class Merge:
    """What is merged: bytes of the output's tensors, and bytes read for each of them."""

    name: str
    output: int
    inputs: float


@dataclass(frozen=True)
class Machine:
    """A node, and what all of them share. The rates of a core are those of docs/performance.md: ties of a base and two models, whose
    stages took 0.59, 0.37, 0.12 and 0.76 s of two cores for 6.6 GB read and 2.2 GB written; hashing has 6.5 GB/s there."""

    name: str
    network: float
    store_read: float
    store_write: float
    # Whether reads and writes have to share what the store can do.
    store_shared: bool = False
    # Of a disk of each node's own with a copy of the models, which is then all that it reads.
    disk_read: float | None = None
    cores: int = 16
    core_read: float = 5.6
    core_compute: float = 8.9
    core_hash: float = 6.5
    core_write: float = 1.45
    # Opening models, planning, the end of the last file.
    start_seconds: float = 2.0


# Llama 3.1 405B: 405.85e9 parameters.
MERGES = [Merge("linear of 2", 811_700_000_000, 2), Merge("ties, base + 2", 811_700_000_000, 3)]
MACHINES = [
    Machine("parallel file system, 100 Gbit/s a node", network=12.5, store_read=40, store_write=20),
    Machine("the same, models copied to a disk of each node", network=12.5, store_read=40, store_write=20, disk_read=3.5),
    Machine("one NFS server of 3 GB/s, 25 Gbit/s a node", network=3.1, store_read=3, store_write=3, store_shared=True),
]


def share(sizes, number, parts):
    """The files of a part: those whose middle lies in its share of all bytes (`Layout::share`)."""
    begun, all_bytes, mine = 0, sum(sizes), []
    for size in sizes:
        if int((2 * begun + size) * parts // (2 * all_bytes)) == number - 1:
            mine.append(size)
        begun += size
    return mine


def files(merge, shard):
    """Files as large as they may be; the last one has the rest."""
    count = math.ceil(merge.output / shard)
    return [shard] * (count - 1) + [merge.output - shard * (count - 1)]


def moved(merge, nodes, shard):
    """The bytes that each node reads and writes: exactly those that real parts do, if all files are as large as they may be."""
    sizes = files(merge, shard)
    written = [sum(share(sizes, number, nodes)) for number in range(1, nodes + 1)]
    return [(size * merge.inputs, size) for size in written]


def resources(machine, read, written, all_read, all_written):
    """How long each resource is busy for a node's bytes, and those of all nodes, in seconds."""
    read, written, all_read, all_written = (size / 1e9 for size in [read, written, all_read, all_written])
    core = read / machine.core_read + read / machine.core_compute
    core += written / machine.core_hash + written / machine.core_write
    from_disk = machine.disk_read is not None
    store = [0 if from_disk else all_read / machine.store_read, all_written / machine.store_write]
    return {
        "cores": core / machine.cores,
        "network": max(0 if from_disk else read, written) / machine.network,
        "store": sum(store) if machine.store_shared else max(store),
        "disks": read / machine.disk_read if from_disk else 0,
    }


def simulate(merge, machine, nodes, shard):
    """Seconds, the resource that takes them, and the bytes that the node with the most of them writes."""
    of_nodes = moved(merge, nodes, shard)
    read, written = max(of_nodes)
    busy = resources(machine, read, written, *(sum(sizes) for sizes in zip(*of_nodes)))
    slowest = max(busy, key=busy.get)
    return busy[slowest] + machine.start_seconds, slowest, written


def table(merges, machines, nodes, shard):
    lines = ["| merge | store | nodes | read, TB | written, TB | most of a node, GB written | time | saturated |", "| --- | --- | ---: | ---: | ---: | ---: | ---: | --- |"]
    for machine in machines:
        for merge in merges:
            for count in nodes:
                seconds, slowest, most = simulate(merge, machine, count, shard)
                time = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
                read, written = merge.output * merge.inputs / 1e12, merge.output / 1e12
                lines.append(
                    f"| {merge.name} | {machine.name} | {count} | {read:.2f} | {written:.2f} | {most / 1e9:.0f} | {time} | {slowest} |"
                )
    return "\n".join(lines) + "\n"


def check(program, config, work, factor):
    """Merges in one, takes the rates from what its stages did, predicts parts of the same merge, and makes them: the predictions have
    to be right within the factor, for parts that take long enough to be measured."""
    environment = {**os.environ, "MERGEFORGE_CACHE": ""}

    def merge(out, *more):
        words = [program, "merge", config, str(out), "--json", "--quiet", "-j1", *more]
        printed = subprocess.run(words, env=environment, check=True, capture_output=True, text=True).stdout
        return json.loads(printed)

    work = Path(work)
    work.mkdir(parents=True)
    merge(work / "first")
    size = max(1, merge(work / "size")["total_size"] // 12)
    shards = ["--out-shard-size", str(size)]
    # The quickest of three, as any other is of a machine that does something else too.
    runs = [merge(work / f"one{number}", *shards) for number in range(3)]
    one = min(runs, key=lambda run: run["run"]["seconds"])
    stages = {stage["stage"]: stage for stage in one["run"]["stages"]}
    written, seconds = one["total_size"], one["run"]["seconds"]
    machine = Machine("here", network=1e9, store_read=1e9, store_write=1e9, cores=1, start_seconds=0)
    read = stages["read"]["bytes"]
    carried = {"read": read, "compute": read, "hash": written, "write": written}
    busy = {name: stages[name]["busy_seconds"] for name in carried if stages.get(name, {}).get("busy_seconds")}
    # What no stage takes belongs to all.
    share_of_all = sum(busy.values()) / seconds
    machine = replace(machine, **{f"core_{name}": carried[name] / 1e9 / taken * share_of_all for name, taken in busy.items()})
    inputs = read / written
    sizes = [record["bytes"] for name, record in one["files"].items() if "header_bytes" in record]
    worst = 1.0
    for parts in [2, 4]:
        for number in range(1, parts + 1):
            mine = sum(share(sizes, number, parts))
            expected = resources(machine, mine * inputs, mine, 0, 0)["cores"]
            measured = min(
                merge(work / f"{parts}", *shards, "--part", f"{number}/{parts}", "--restart")["run"]["seconds"] for _ in range(3)
            )
            ratio = measured / expected
            worst = max(worst, ratio, 1 / ratio)
            print(f"part {number}/{parts}: {mine / 1e9:.3f} GB written, {expected:.2f} s predicted, {measured:.2f} s measured: {ratio:.2f} times")
    print(f"in one: {written / 1e9:.3f} GB written, {seconds:.2f} s; the worst prediction is off by {worst:.2f} times")
    if worst > factor:
        sys.exit(f"FAIL: more than {factor} times")


def whole(text):
    """The value of an option that counts something."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1 on")
    return int(text)


def positive(text):
    """That of a size or a rate."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return value


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-gb", type=positive, help="bytes of the output, in GB, in place of 405B in bfloat16")
    parser.add_argument("--inputs", type=positive, help="bytes read for each byte written")
    parser.add_argument("--nodes", type=whole, nargs="+", default=[1, 4, 16])
    parser.add_argument("--shard-gb", type=positive, default=5)
    for name in ["network", "store-read", "store-write", "disk-read", "core-read", "core-compute", "core-hash", "core-write"]:
        parser.add_argument(f"--{name}", type=positive, metavar="GB/S")
    parser.add_argument("--store-shared", action="store_true", default=None, help="reads and writes share what the store can do")
    parser.add_argument("--start-seconds", type=float, metavar="SECONDS", help="of each node, beside what it moves")
    parser.add_argument("--cores", type=whole, help="of a node")
    parser.add_argument("--check", nargs=3, metavar=("MERGEFORGE", "CONFIG", "WORK"))
    parser.add_argument("--factor", type=positive, default=2.0, help="how far predictions may be off with --check")
    parser.add_argument("--check-page", metavar="FILE")
    given = parser.parse_args()
    if given.check:
        return check(*given.check, given.factor)
    merges, machines = MERGES, MACHINES
    if given.output_gb or given.inputs:
        output = MERGES[0].output if given.output_gb is None else max(1, round(given.output_gb * 1e9))
        merges = [Merge("given", output, given.inputs or MERGES[0].inputs)]
    changed = {field.name: getattr(given, field.name, None) for field in fields(Machine) if field.name != "name"}
    changed = {name: value for name, value in changed.items() if value is not None}
    if changed:
        machines = [replace(machines[0], name="given", **changed)]
    page = table(merges, machines, given.nodes, max(1, round(given.shard_gb * 1e9)))
    if given.check_page is None:
        print(page, end="")
    elif BEGIN + "\n" + page + "\n" + END not in Path(given.check_page).read_text():
        sys.exit(f"FAIL: {given.check_page} should have this table:\n{page}")


if __name__ == "__main__":
    main()

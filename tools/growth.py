#!/usr/bin/env python3
"""How does the cost of a merge grow with parameters, models and tensors?

Runs `mergeforge bench merge` over growing shapes and prints a table in Markdown: wall time, the time per GB of input, the
floor, peak memory.

    cargo build --release
    python tools/growth.py > growth.md

The largest inputs have 13 GB, and lie in memory where there is room, else in the folder of temporary files (--dir).
"""

import argparse
import pathlib
import shutil
import sys
import tempfile

from measuring import Json, answer, memory_folder, table

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent

# Shape, layers (all where None), method, models beside the base.
PARAMETERS = [
    ("llama-68m", 1, "ties", 2),
    ("llama-68m", None, "ties", 2),
    ("tinyllama-1.1b", 1, "ties", 2),
    ("tinyllama-1.1b", 8, "ties", 2),
    ("tinyllama-1.1b", None, "ties", 2),
    ("llama-2-7b", 9, "ties", 2),
]
LINEAR = [("llama-68m", None, "linear", 2), ("tinyllama-1.1b", None, "linear", 2), ("llama-2-7b", 14, "linear", 2)]
MODELS = [("tinyllama-1.1b", None, "ties", models) for models in (1, 2, 3, 4)]
TENSORS = [("tiny-20k", None, "linear", 2), ("tiny-20k", None, "ties", 2)]

# Inputs and output of the largest.
BYTES_MAX = 18e9

HEAD = ["merge", "tensors", "GB in", "wall, s", "s per GB in", "floor, s", "of the floor", "peak, MB"]


def row(name: str, found: Json) -> list[str]:
    gigabytes = found["input_bytes"] / 1e9
    # Of a dense shape: nine a layer, both embeddings and the last norm.
    tensors = 9 * found["layers"] + 3
    cells = [name, f"{tensors:,}", f"{gigabytes:.2f}", f"{found['seconds']:.3f}"]
    cells += [f"{found['seconds'] / gigabytes:.3f}", f"{found['floor']['seconds']:.3f}"]
    cells += [f"{1 / found['share_of_floor']:.2f}×", f"{found['peak_bytes'] / 1e6:.0f}"]
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default=str(REPOSITORY / "target" / "release" / "mergeforge"))
    parser.add_argument("--dir", type=pathlib.Path, help="where checkpoints are made [memory if there is room]")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="the smallest of each list: a rehearsal")
    args = parser.parse_args()
    memory = memory_folder()
    has_room = shutil.disk_usage(memory).free > BYTES_MAX
    parent = args.dir or (memory if has_room else pathlib.Path(tempfile.gettempdir()))
    lists = {"Parameters": PARAMETERS, "Parameters, one sweep": LINEAR, "Models": MODELS, "Tensors": TENSORS}
    for title, cases in lists.items():
        rows = []
        for shape, layers, method, models in cases[: 1 if args.quick else None]:
            command = [args.binary, "bench", "merge", "--shape", shape, "--method", method, "--models", models]
            command += ["--layers", layers] if layers else []
            with tempfile.TemporaryDirectory(prefix="mergeforge-growth-", dir=parent) as folder:
                found = answer([*command, "--device", "cpu", "--repeat", args.repeat, "--dir", folder, "--json"])
            cut = f", {layers} layers" if layers else ""
            rows.append(row(f"{method}, {models} models, {shape}{cut}", found))
            print(f"{title}: {' '.join(rows[-1])}", file=sys.stderr)
        print(f"## {title}\n\n{table([HEAD, *rows])}\n")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""The README's table of devices on which the kernels were compared with their plain twins, between its two marks.

It is made from the outputs of `mergeforge check --json` there, saved as benches/results/verified/DATE-NAME.json:

    python3 tools/verified_table.py README.md            # writes the table
    python3 tools/verified_table.py README.md --check    # exit code 1 if it is stale
"""

import difflib
import json
import pathlib
import sys

BEGIN, END = "<!-- verified -->\n", "<!-- /verified -->\n"
RESULTS = pathlib.Path(__file__).parent.parent / "benches" / "results" / "verified"
# Kernels, and kinds of inputs: each of float32, float16, bfloat16, and a mixture.
ROWS = 8 * 4


def row(file, device):
    kernels = device["kernels"]
    facts = device["facts"]
    date = file.stem[: len("2026-11-25")]
    wrong = [kernel for kernel in kernels if kernel["wrong"] is not None]
    if len(kernels) != ROWS:
        sys.exit(f"{file}: {device['device']} has {len(kernels)} rows, not {ROWS}: save a whole check")
    launches, chunks, by_cpu = (sum(kernel[key] for kernel in kernels) for key in ("launches", "chunks", "by_cpu"))
    family = device["device"].split(":")[0]
    through = " ".join(filter(None, (family, facts.get("backend"), facts.get("driver"), facts.get("kind"))))
    result = f"{len(wrong)} of {ROWS} differ" if wrong else "the same bits"
    left = f"{100 * by_cpu / chunks:.0f} %" if by_cpu else "–"
    return f"| {device['name']} | {through} | {date} | {launches:,} | {left} | {result} |\n"


def table():
    head = "| device | through | date | launches | left to the CPU | result |\n| --- | --- | --- | --- | --- | --- |\n"
    files = sorted(RESULTS.glob("*.json"))
    if not files:
        sys.exit(f"{RESULTS} holds no results")
    rows = [row(file, device) for file in files for device in json.loads(file.read_text(encoding="utf-8"))]
    return "\n" + head + "".join(rows) + "\n"


def main():
    readme = pathlib.Path(sys.argv[1])
    text = readme.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    fresh = before + BEGIN + table() + END + after
    if "--check" not in sys.argv[2:]:
        readme.write_text(fresh, encoding="utf-8")
    elif fresh != text:
        sys.stdout.writelines(difflib.unified_diff(text.splitlines(True), fresh.splitlines(True), "README.md", "results"))
        sys.exit("README.md: the table of verified devices is stale: run tools/verified_table.py")


if __name__ == "__main__":
    main()

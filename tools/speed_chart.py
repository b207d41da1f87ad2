#!/usr/bin/env python3
"""The README's chart of speed, docs/speed.svg, drawn from a saved result of tools/compare.py.

    python3 tools/speed_chart.py            # writes docs/speed.svg
    python3 tools/speed_chart.py --check    # exit code 1 if it is not what the result gives

Needs Python alone. The chart has no fonts, scripts or links of its own, and colours for light and dark pages.
"""

import datetime
import html
import json
import math
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULT = ROOT / "benches" / "results" / "2026-11-29-tinyllama-cpu.json"
CHART = ROOT / "docs" / "speed.svg"

# The shape that was measured; the result names it in its file's name alone.
SHAPE = "TinyLlama-1.1B"

# Pixels. The bars begin at LEFT, and the longest leaves room for its figures.
WIDTH, LEFT, LONGEST = 760, 190, 450
TOP, BAR, GROUP = 84, 16, 54

STYLE = """\
    text { font: 13px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1f2328 }
    .title { font-size: 15px; font-weight: 600 }
    .small { font-size: 12px; fill: #59636e }
    .page { fill: #ffffff }
    .axis { stroke: #d1d9e0 }
    .ours { fill: #bc4c00 }
    .theirs { fill: #818b98 }
    @media (prefers-color-scheme: dark) {
      text { fill: #f0f6fc }
      .small { fill: #9198a1 }
      .page { fill: #0d1117 }
      .axis { stroke: #3d444d }
      .ours { fill: #f0883e }
      .theirs { fill: #656c76 }
    }
"""


def seconds(value):
    """Three digits, as in the README's table."""
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f} s"


def models(merge):
    """How many models are merged, and how much of each task vector is kept."""
    ours = merge["in_memory"]
    has_base = re.search(r"density", merge["config"]) is not None
    count = f"base + {ours['models']}" if has_base else f"{ours['models']} models"
    return f"{count}, density {ours['density']}" if has_base else count


def text(x, y, content, kind="", end=False):
    attributes = (f' class="{kind}"' if kind else "") + (' text-anchor="end"' if end else "")
    return f'  <text x="{x:g}" y="{y:g}"{attributes}>{html.escape(content)}</text>\n'


def bar(y, length, kind):
    return f'  <rect x="{LEFT}" y="{y:g}" width="{length:.2f}" height="{BAR}" rx="2" class="{kind}"/>\n'


def chart(result):
    merges = result["merges"]
    slowest = max(merge["mergekit"]["mergekit"]["wall_s_median"] for merge in merges.values())
    machine, version = result["machine"], result["versions"]["mergekit"]
    day = datetime.date.fromisoformat(result["date"])
    where = f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_bytes'] / 2**30:.0f} GiB"
    note = (
        f"{where}; {day.day} {day:%B %Y}; inputs and output in memory; "
        f"medians of {result['rounds']} runs, mergekit: {result['mergekit_rounds']}"
    )
    startup = f"mergekit's times include its start-up of {seconds(result['mergekit_startup']['wall_s'])}"
    title = f"Seconds to merge models of the shape of {SHAPE}, in bfloat16, on a CPU"
    bottom = TOP + GROUP * len(merges)
    height = bottom + 46

    body = [text(20, 28, title, "title")]
    for x, kind, name in ((LEFT, "ours", "mergeforge"), (LEFT + 110, "theirs", f"mergekit {version}")):
        body.append(f'  <rect x="{x}" y="46" width="12" height="12" rx="2" class="{kind}"/>\n')
        body.append(text(x + 18, 57, name))
    body.append(text(WIDTH - 20, 57, "shorter is better", "small", end=True))
    described = []
    for row, (name, merge) in enumerate(merges.items()):
        y = TOP + GROUP * row
        mergekit = merge["mergekit"]["mergekit"]
        ours, theirs, ratio = merge["in_memory"]["seconds"], mergekit["wall_s_median"], f"{mergekit['ratio']:.0f}×"
        body += [
            text(LEFT - 12, y + 13, name, end=True),
            text(LEFT - 12, y + 31, models(merge), "small", end=True),
        ]
        for place, value, kind in ((0, ours, "ours"), (1, theirs, "theirs")):
            length = value / slowest * LONGEST
            figure = seconds(value) + (f"  ({ratio})" if kind == "theirs" else "")
            body += [
                bar(y + place * (BAR + 3), length, kind),
                text(LEFT + length + 7, y + place * (BAR + 3) + 13, figure),
            ]
        described.append(f"{name}, {models(merge)}: {seconds(ours)}, mergekit {seconds(theirs)}")
    axis = f'  <line x1="{LEFT}" y1="{TOP - 6}" x2="{LEFT}" y2="{bottom - 10}" class="axis"/>\n'
    return "".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img">\n',
            f"  <title>{html.escape(title)}</title>\n  <desc>{html.escape('; '.join(described))}. {html.escape(note)}; {html.escape(startup)}.</desc>\n",
            f"  <style>\n{STYLE}  </style>\n",
            f'  <rect width="{WIDTH}" height="{height}" rx="6" class="page"/>\n',
            *body,
            axis,
            text(20, height - 30, note, "small"),
            text(20, height - 12, startup, "small"),
            "</svg>\n",
        ]
    )


def main():
    fresh = chart(json.loads(RESULT.read_text(encoding="utf-8")))
    if sys.argv[1:] == ["--check"]:
        if not CHART.is_file() or CHART.read_text(encoding="utf-8") != fresh:
            sys.exit(f"{CHART.relative_to(ROOT)} is stale: run tools/speed_chart.py")
    elif sys.argv[1:]:
        sys.exit("usage: speed_chart.py [--check]")
    else:
        CHART.write_text(fresh, encoding="utf-8")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""How good `mergeforge predict` is: a grid of merges of the example models, predicted, then merged and evaluated.

    python3 tools/predict_truth.py measure --mergeforge target/release/mergeforge   # minutes; writes benches/results/
    python3 tools/predict_truth.py predict ...  # the same, with the merges measured before
    python3 tools/predict_truth.py            # draws docs/predict.svg from that
    python3 tools/predict_truth.py --check    # exit code 1 if the chart is not what the result gives

Needs Python alone. The chart has no fonts, scripts or links of its own, and colours for light and dark pages.
"""

import argparse
import datetime
import html
import itertools
import json
import math
import pathlib
import random
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULT = ROOT / "benches" / "results" / "2026-11-29-predict.json"
PAGE = RESULT.with_suffix(".md")
CHART = ROOT / "docs" / "predict.svg"
MODELS = ROOT / "examples" / "models"

GRID = [i / 4 for i in range(7)]
TOPS = [1024, 64, 16]
GRADIENTS = 16
CUT = ["--lines", "--packed", "--frame", "--window", "96"]


def config(name, weights, folder):
    """A task-arithmetic merge of both example fine-tunes; a weight may be a gradient."""
    document = {
        "merge_method": "task_arithmetic",
        "base_model": str(MODELS / "base"),
        "models": [
            {"model": str(MODELS / model), "parameters": {"weight": weight}}
            for model, weight in zip(("medical", "chat"), weights)
        ],
        "dtype": "bfloat16",
    }
    path = folder / f"{name}.yml"
    path.write_text(json.dumps(document))
    return path


def texts(folder):
    """The four sets as lines; questions are asked as the chat model was taught to."""
    files = [MODELS / "texts" / "general_valid.txt", MODELS / "texts" / "medical_valid.txt"]
    for name in ("chat_valid", "medqa_valid"):
        rows = map(json.loads, (MODELS / "texts" / f"{name}.jsonl").read_text().splitlines())
        path = folder / f"{name}.txt"
        path.write_text("".join(f"<|user|>{row['question']}<|assistant|>{row['answer']}\n" for row in rows))
        files.append(path)
    return files


def called(program, *arguments):
    ended = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True)
    if ended.returncode:
        sys.exit(f"{arguments[0]} failed:\n{ended.stderr}")
    return ended.stdout


def measured(program, configs, files, folder):
    """The loss of every merge on every set: merged, then evaluated."""
    outs = []
    for path in configs:
        out = folder / "out" / path.stem
        called(program, "merge", path, out, "--quiet", "--no-cache", "--device", "cpu")
        outs.append(out)
    found = json.loads(called(program, "eval", *outs, "--text", *files, *CUT, "--json", "--quiet"))
    return [[one["loss"] for one in model["sets"]] for model in found["models"]]


def predicted(program, configs, files, *flags):
    found = json.loads(called(program, "predict", *configs, "--text", *files, *CUT, "--json", "--quiet", *flags))
    losses = [[merge["loss"] for merge in one["merges"]] for one in found["sets"]]
    facts = ("kept_tokens", "kept_probability", "kept_bytes", "memory_bytes", "seconds", "seconds_per_merge", "groups")
    beyond = [merge["beyond_parents"] for merge in found["sets"][0]["merges"]]
    return {**{fact: found[fact] for fact in facts}, "beyond": beyond, "losses": [list(row) for row in zip(*losses)]}


def carried_out(program, merges_too):
    """Everything, or only the predictions beside what was measured before."""
    result = {} if merges_too else json.loads(RESULT.read_text(encoding="utf-8"))
    draw = random.Random(1)
    gradients = [[[round(draw.uniform(0, 1), 2) for _ in range(2)] for _ in range(2)] for _ in range(GRADIENTS)]
    points = list(itertools.product(GRID, GRID))
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "out").mkdir()
        files = texts(folder)
        grid = [config(f"grid_{a}_{b}", (a, b), folder) for a, b in points]
        by_layer = [config(f"gradient_{i}", weights, folder) for i, weights in enumerate(gradients)]
        if merges_too:
            result = {
                "date": datetime.date.today().isoformat(),
                "sets": [file.stem for file in files],
                "points": points,
                "measured": measured(program, grid, files, folder),
                "gradients": gradients,
                "gradients_measured": measured(program, by_layer, files, folder),
            }
        tops = {str(top): predicted(program, grid, files, "--top", top, "--host-memory", "4GiB") for top in TOPS}
        groups = {
            str(groups): predicted(program, by_layer, files, "--groups", groups, "--top", 64) for groups in (1, 4)
        }
    result |= {"predicted": tops, "gradients_predicted": groups}
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    PAGE.write_text(page(result))


def ranks(values):
    """Ranks, of equal values their mean."""
    order = sorted(range(len(values)), key=values.__getitem__)
    out, at = [0.0] * len(values), 0
    while at < len(order):
        end = at
        while end + 1 < len(order) and values[order[end + 1]] == values[order[at]]:
            end += 1
        for i in range(at, end + 1):
            out[order[i]] = (at + end) / 2
        at = end + 1
    return out


def spearman(a, b):
    a, b = ranks(a), ranks(b)
    mean = (len(a) - 1) / 2
    dot = lambda x, y: sum((p - mean) * (q - mean) for p, q in zip(x, y))
    return dot(a, b) / math.sqrt(dot(a, a) * dot(b, b))


def figures(measured, predicted, beyond):
    """What a set comes to: rank correlation, errors between and beyond the parents, and what the best prediction misses."""
    errors = [(p - m, b) for m, p, b in zip(measured, predicted, beyond)]
    mean = lambda values: sum(values) / len(values) if values else math.nan
    best = measured[min(range(len(predicted)), key=predicted.__getitem__)]
    return {
        "spearman": spearman(measured, predicted),
        "between": mean([abs(error) for error, is_beyond in errors if not is_beyond]),
        "beyond": mean([abs(error) for error, is_beyond in errors if is_beyond]),
        "too_high_beyond": mean([float(error > 0) for error, is_beyond in errors if is_beyond]),
        "regret": best - min(measured),
    }


def by_set(result, measured, one):
    return [
        figures([row[i] for row in measured], [row[i] for row in one["losses"]], one["beyond"])
        for i in range(len(result["sets"]))
    ]


def page(result):
    names = result["sets"]
    lines = [
        "# Merges predicted and measured",
        "",
        f"`tools/predict_truth.py measure`, {result['date']}. Task arithmetic over `examples/models`: base + c₁ (medical − base) + c₂ (chat − base) with",
        f"c₁ and c₂ from 0 to 1.5 ({len(result['points'])} merges in bfloat16, each merged and evaluated), on four sets, windows of 96 tokens. Between the",
        "parents: c₁ + c₂ ≤ 1. Errors are means of absolute values, regret is what the merge with the best prediction loses against the best merge;",
        "all in nats a token.",
        "",
        "| tokens of the vocabulary kept | probability | set | Spearman | error between | error beyond | too high beyond | regret |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for one in result["predicted"].values():
        for name, found in zip(names, by_set(result, result["measured"], one)):
            lines.append(
                f"| {one['kept_tokens']} of 1024 | {100 * one['kept_probability']:.1f} % | {name} | {found['spearman']:.3f} | "
                f"{found['between']:.4f} | {found['beyond']:.4f} | {100 * found['too_high_beyond']:.0f} % | {found['regret']:.4f} |"
            )
    whole, *others = result["predicted"].values()
    lines.append("")
    for one in others:
        gaps = [abs(a - b) for x, y in zip(whole["losses"], one["losses"]) for a, b in zip(x, y)]
        lines.append(
            f"Of {one['kept_tokens']} tokens kept, predictions differ from those of the whole vocabulary by {sum(gaps) / len(gaps):.5f} nats in the mean,"
            f" {max(gaps):.5f} at most ({one['kept_bytes'] / 1e6:.0f} MB in place of {whole['kept_bytes'] / 1e6:.0f} MB)."
        )
    lines += [
        "",
        f"Weights by layer ({len(result['gradients'])} merges with gradients of random ends between 0 and 1), by one group of layers and by all:",
        "",
        "| groups | set | Spearman | mean error |",
        "| --- | --- | --- | --- |",
    ]
    for one in result["gradients_predicted"].values():
        for i, name in enumerate(names):
            measured = [row[i] for row in result["gradients_measured"]]
            predicted = [row[i] for row in one["losses"]]
            error = sum(abs(p - m) for m, p in zip(measured, predicted)) / len(measured)
            lines.append(f"| {one['groups']} | {name} | {spearman(measured, predicted):.3f} | {error:.4f} |")
    return "\n".join(lines) + "\n"


# Pixels. Four panels side by side in two rows.
WIDTH, PANEL, LEFT, TOP, GAP_X, GAP_Y = 760, 270, 70, 92, 90, 78

STYLE = """\
    text { font: 13px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1f2328 }
    .title { font-size: 15px; font-weight: 600 }
    .small { font-size: 12px; fill: #59636e }
    .page { fill: #ffffff }
    .axis { stroke: #d1d9e0; fill: none }
    .between { fill: #bc4c00 }
    .beyond { fill: none; stroke: #0969da; stroke-width: 1.5 }
    @media (prefers-color-scheme: dark) {
      text { fill: #f0f6fc }
      .small { fill: #9198a1 }
      .page { fill: #0d1117 }
      .axis { stroke: #3d444d }
      .between { fill: #f0883e }
      .beyond { stroke: #4493f8 }
    }
"""


def text(x, y, content, kind="", anchor=""):
    attributes = (f' class="{kind}"' if kind else "") + (f' text-anchor="{anchor}"' if anchor else "")
    return f'  <text x="{x:g}" y="{y:g}"{attributes}>{html.escape(content)}</text>\n'


def panel(x, y, name, measured, predicted, beyond):
    least, most = min(measured + predicted), max(measured + predicted)
    margin = 0.04 * (most - least)
    least, most = least - margin, most + margin
    place = lambda loss: PANEL * (loss - least) / (most - least)
    out = [
        text(x, y - 8, f"{name}: Spearman {spearman(measured, predicted):.3f}"),
        f'  <rect x="{x}" y="{y}" width="{PANEL}" height="{PANEL}" class="axis"/>\n',
        f'  <line x1="{x}" y1="{y + PANEL}" x2="{x + PANEL}" y2="{y}" class="axis"/>\n',
    ]
    for m, p, is_beyond in zip(measured, predicted, beyond):
        kind = "beyond" if is_beyond else "between"
        out.append(f'  <circle cx="{x + place(m):.1f}" cy="{y + PANEL - place(p):.1f}" r="3.5" class="{kind}"/>\n')
    for share in (0.1, 0.5, 0.9):
        loss = least + share * (most - least)
        figure = f"{math.exp(loss):.3g}"
        out.append(text(x + share * PANEL, y + PANEL + 16, figure, "small", "middle"))
        out.append(text(x - 6, y + PANEL - share * PANEL + 4, figure, "small", "end"))
    return "".join(out)


def chart(result):
    one = result["predicted"][str(TOPS[0])]
    title = "Perplexity of 49 merges: predicted without merging (up), and measured (right)"
    height = TOP + 2 * PANEL + GAP_Y + 48
    body = [
        text(20, 28, title, "title"),
        '  <circle cx="26" cy="52" r="3.5" class="between"/>\n',
        text(36, 57, "between the parents: weights add up to 1 or less"),
        '  <circle cx="366" cy="52" r="3.5" class="beyond"/>\n',
        text(376, 57, "beyond them"),
    ]
    for i, name in enumerate(result["sets"]):
        x, y = LEFT + (i % 2) * (PANEL + GAP_X), TOP + (i // 2) * (PANEL + GAP_Y)
        measured, predicted = [row[i] for row in result["measured"]], [row[i] for row in one["losses"]]
        body.append(panel(x, y, name, measured, predicted, one["beyond"]))
    body.append(text(20, height - 10, f"base + c₁ (medical − base) + c₂ (chat − base) of examples/models, c from 0 to 1.5; {result['date']}", "small"))
    return "".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img">\n',
            f"  <title>{html.escape(title)}</title>\n",
            f"  <style>\n{STYLE}  </style>\n",
            f'  <rect width="{WIDTH}" height="{height}" rx="6" class="page"/>\n',
            *body,
            "</svg>\n",
        ]
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("step", nargs="?", choices=["measure", "predict"])
    parser.add_argument("--mergeforge", default=ROOT / "target" / "release" / "mergeforge")
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    if arguments.step:
        return carried_out(arguments.mergeforge, arguments.step == "measure")
    result = json.loads(RESULT.read_text(encoding="utf-8"))
    for path, fresh in ((CHART, chart(result)), (PAGE, page(result))):
        if not arguments.check:
            path.write_text(fresh, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != fresh:
            sys.exit(f"{path.relative_to(ROOT)} is stale: run tools/predict_truth.py")


if __name__ == "__main__":
    main()

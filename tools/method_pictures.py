#!/usr/bin/env python3
"""The pictures of docs/methods-in-pictures.md: what each method makes of two models, every point of it merged by mergeforge.

    python3 tools/method_pictures.py --mergeforge target/debug/mergeforge            # writes docs/methods-in-pictures/*.svg
    python3 tools/method_pictures.py --mergeforge target/debug/mergeforge --check    # exit code 1 if they, or the page, are stale

Checkpoints of a few numbers are written, merged, and read again; nothing here knows a formula. The tensor `plane` has two
elements, a point in the plane, in each of many layers: a gradient over the layers makes a path of it, and a random mask, which
is drawn anew for every tensor, a cloud. The tensor `elements` has some more, drawn as bars.

Needs Python alone. Pictures have no fonts, scripts or links of their own, and colours for light and dark pages.
"""

import argparse
import collections
import html
import json
import math
import pathlib
import struct
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "methods-in-pictures.md"
PICTURES = ROOT / "docs" / "methods-in-pictures"

LAYERS = 201
# A path is drawn through every such layer.
STRIDE = 8

BASE = ((0.0, 0.0), (0.0,) * 14)
# Two task vectors that are nearly orthogonal, as those of fine-tunes are. Of the elements some agree in sign and some do not,
# and some are changed by one model alone.
A = ((1.0, 0.35), (0.90, 0.15, -0.55, 0.30, 0.00, -0.10, 0.70, -0.35, 0.05, 0.45, -0.80, 0.20, 0.00, -0.25))
B = ((-0.35, 0.8), (0.40, -0.60, 0.25, 0.35, 0.50, 0.00, -0.30, -0.65, 0.10, -0.20, 0.15, 0.75, -0.45, 0.05))
# One task vector with few large changes, for methods that merge two models and no more.
FEW = ((1.0, 0.35), (0.12, -0.08, 0.95, 0.05, -0.15, 0.10, -0.70, 0.03, 0.20, -0.06, 0.14, -0.11, 0.55, 0.02))
# Whole weights, seen from 0, and a third model.
LONG, SHORT, THIRD = ((1.05, 0.2), BASE[1]), ((0.0, 0.75), BASE[1]), ((0.3, 1.1), BASE[1])
# Task vectors that have some direction in common.
ALIKE = (((1.0, 0.2), BASE[1]), ((0.35, 1.0), BASE[1]))
# Checkpoints of one run, which goes past where it wants to.
RUN = [(point, BASE[1]) for point in ((0.05, 0.2), (0.4, 1.05), (1.2, 0.45), (0.75, 1.25), (1.1, 0.95))]
# How much each element matters to the models of fisher: to A the first, to B the second.
IMPORTANCE = (((4.0, 0.6), (1.0,) * 14), ((0.5, 3.0), (1.0,) * 14))

HALF = {"weight": 0.5}
THINNED = {"weight": 0.5, "density": 0.5}
# Methods that combine two task vectors element by element: the parameters of each model, those of all, and whether what is
# left of each task vector by itself can be seen (by a weight of 0 for the other).
TASK_VECTORS = {
    "task_arithmetic": (HALF, {}, False),
    "ties": (THINNED, {}, True),
    "dare_linear": (THINNED, {}, True),
    "dare_ties": (THINNED, {}, True),
    "breadcrumbs": (THINNED | {"gamma": 0.1}, {}, True),
    "breadcrumbs_ties": (THINNED | {"gamma": 0.1}, {}, True),
    "della": (THINNED | {"epsilon": 0.3}, {}, True),
    "della_linear": (THINNED | {"epsilon": 0.3}, {}, True),
    "sce": ({}, {"select_topk": 0.5}, False),
    "ram": ({}, {}, False),
    "ramplus_tl": ({}, {"r": 1.0, "alpha": 0.5}, False),
    "magmax": ({}, {}, False),
    "emr": ({}, {}, False),
    "consensus": ({}, {}, False),
}
RANDOM = ("dare_linear", "dare_ties", "della", "della_linear")
# What it does is to whole layers, and no picture of elements shows it.
WITHOUT = ("passthrough",)

STYLE = """\
    text { font: 13px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1f2328 }
    .title { font-size: 15px; font-weight: 600 }
    .small { font-size: 12px; fill: #59636e }
    .page { fill: #ffffff }
    .axis { stroke: #d1d9e0; fill: none }
    .grey { stroke: #818b98; fill: none; stroke-dasharray: 4 3 }
    .a { fill: #0969da; stroke: #0969da }
    .b { fill: #bc4c00; stroke: #bc4c00 }
    .c { fill: #8250df; stroke: #8250df }
    .merged { fill: #1f2328; stroke: #1f2328 }
    @media (prefers-color-scheme: dark) {
      text { fill: #f0f6fc }
      .small { fill: #9198a1 }
      .page { fill: #0d1117 }
      .axis { stroke: #3d444d }
      .grey { stroke: #656c76 }
      .a { fill: #4493f8; stroke: #4493f8 }
      .b { fill: #f0883e; stroke: #f0883e }
      .c { fill: #ab7df8; stroke: #ab7df8 }
      .merged { fill: #f0f6fc; stroke: #f0f6fc }
    }
    .line { fill: none; stroke-width: 2 }
    .outline { fill: none; stroke-width: 1 }
    circle.grey { stroke-dasharray: none; stroke-width: 1.5 }
    .cloud { fill-opacity: 0.45; stroke: none }
    text.a, text.b, text.c, text.merged { stroke: none; font-weight: 600 }
"""

# Pixels. The plane shows the same stretch in all pictures, so that they can be compared.
PLANE_WIDTH, STRIP_WIDTH, HEIGHT = 330, 390, 318
UNIT, LEFT, BOTTOM = 150, 106, 282
FIRST_BAR, BAR, STEP, BAR_UNIT = PLANE_WIDTH + 76, 13, 22, 23
ROW_TOP, ROW = 60, 84


def plane(layer):
    return f"model.layers.{layer}.plane"


def checkpoint(model):
    """The tensors of a model: its point in every layer, and its elements."""
    point, elements = model
    return {plane(layer): point for layer in range(LAYERS)} | {"elements": elements}


def write(path, tensors):
    """A safetensors file of float32."""
    header, data = {}, b""
    for name, values in tensors.items():
        packed = struct.pack(f"<{len(values)}f", *values)
        place = [len(data), len(data) + len(packed)]
        header[name] = {"dtype": "F32", "shape": [len(values)], "data_offsets": place}
        data += packed
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def read(path):
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    tensors = {}
    for name, about in header.items():
        if name != "__metadata__":
            begin, end = about["data_offsets"]
            tensors[name] = struct.unpack(f"<{(end - begin) // 4}f", data[begin:end])
    return tensors


class Merges:
    """Merges of models of a few numbers, by the program."""

    def __init__(self, program, folder):
        self.program, self.folder, self.count = program, pathlib.Path(folder), 0

    def __call__(self, method, models, base=None, shared=None, importance=None):
        """The merged tensors of `models`, each a model and its own parameters."""
        self.count += 1
        place = self.folder / str(self.count)
        place.mkdir()
        entries = []
        for i, (model, own) in enumerate(models):
            write(place / f"{i}.safetensors", checkpoint(model))
            entries.append({"model": f"{i}.safetensors", "parameters": own})
            if importance:
                write(place / f"importance-{i}.safetensors", checkpoint(importance[i]))
                entries[-1]["importance"] = f"importance-{i}.safetensors"
        config = {"merge_method": method, "models": entries, "parameters": shared or {}, "dtype": "float32"}
        if base:
            write(place / "base.safetensors", checkpoint(base))
            config["base_model"] = "base.safetensors"
        (place / "config.yml").write_text(json.dumps(config))
        command = [self.program, "merge", "--quiet", "--no-cache", "--device", "cpu", "config.yml", "out"]
        ended = subprocess.run(command, cwd=place, capture_output=True, text=True)
        if ended.returncode:
            sys.exit(f"{method}: {ended.stderr}")
        return read(place / "out" / "model.safetensors")


def number(value):
    """A place in a picture, to a tenth of a pixel."""
    written = f"{value:.1f}".removesuffix(".0")
    return "0" if written == "-0" else written


def at(point):
    """A point of the plane as pixels."""
    return LEFT + UNIT * point[0], BOTTOM - UNIT * point[1]


def text(x, y, content, kind="", anchor=""):
    attributes = (f' class="{kind}"' if kind else "") + (f' text-anchor="{anchor}"' if anchor else "")
    return f'  <text x="{number(x)}" y="{number(y)}"{attributes}>{html.escape(content)}</text>\n'


def line(begin, end, kind):
    (x1, y1), (x2, y2) = begin, end
    return f'  <line x1="{number(x1)}" y1="{number(y1)}" x2="{number(x2)}" y2="{number(y2)}" class="{kind}"/>\n'


def path(points, kind):
    places = " ".join(f"{number(x)},{number(y)}" for x, y in map(at, points))
    return f'  <polyline points="{places}" class="{kind}"/>\n'


def arrow(to, kind, label, wide=2, begin=(0, 0)):
    """An arrow between two points of the plane, with its name behind the tip."""
    (x1, y1), (x2, y2) = at(begin), at(to)
    length = math.hypot(x2 - x1, y2 - y1)
    if length < 1:
        return dot(to, kind, label)
    ux, uy = (x2 - x1) / length, (y2 - y1) / length
    head = 5 + 2 * wide
    neck = (x2 - head * ux, y2 - head * uy)
    sides = [(neck[0] - side * head * uy / 2.6, neck[1] + side * head * ux / 2.6) for side in (1, -1)]
    corners = " ".join(f"{number(x)},{number(y)}" for x, y in ((x2, y2), *sides))
    anchor = "start" if ux > 0.3 else "end" if ux < -0.3 else "middle"
    named = text(x2 + 8 * ux, y2 + 12 * uy + 4, label, kind, anchor) if label else ""
    return (
        f'  <line x1="{number(x1)}" y1="{number(y1)}" x2="{number(neck[0])}" y2="{number(neck[1])}" '
        f'class="{kind}" stroke-width="{wide}"/>\n  <polygon points="{corners}" class="{kind}" stroke-width="0"/>\n{named}'
    )


def dot(point, kind, label="", radius=4.0, side=(1, 0)):
    """A point of the plane, with its name to the right, or to another side."""
    x, y = at(point)
    circle = f'  <circle cx="{number(x)}" cy="{number(y)}" r="{number(radius)}" class="{kind}"/>\n'
    right, up = side
    anchor = {1: "start", 0: "middle", -1: "end"}[right]
    return circle + (text(x + 9 * right, y + 4 - 13 * up, label, kind, anchor) if label else "")


def axes(origin):
    return "".join(
        [
            line((14, BOTTOM), (PLANE_WIDTH - 10, BOTTOM), "axis"),
            line((LEFT, 48), (LEFT, HEIGHT - 10), "axis"),
            text(PLANE_WIDTH - 10, BOTTOM + 16, "first element", "small", "end"),
            text(LEFT + 6, 57, "second element", "small"),
            text(LEFT - 6, BOTTOM + 16, origin, "small", "end"),
        ]
    )


def bars(row, values, kind):
    """The bars of a row; an outline where `kind` says so."""
    drawn, middle = [], middle_of(row)
    for place, value in enumerate(values):
        height = abs(value) * BAR_UNIT
        if height >= 0.05:
            x, y = FIRST_BAR + STEP * place, middle - max(0, value) * BAR_UNIT
            drawn.append(
                f'  <rect x="{number(x)}" y="{number(y)}" width="{BAR}" height="{number(height)}" class="{kind}"/>\n'
            )
    return "".join(drawn)


def middle_of(row):
    return ROW_TOP + ROW * row + ROW / 2


def strip(rows):
    """Task vectors and what becomes of them, element by element: a row is its name, what is outlined in it and how, and its bars."""
    body = []
    for row, (name, outlined, kind, values) in enumerate(rows):
        body.append(text(FIRST_BAR - 10, middle_of(row) + 4, name, name.lower(), "end"))
        body.append(line((FIRST_BAR - 4, middle_of(row)), (FIRST_BAR + STEP * len(values), middle_of(row)), "axis"))
        body.append(bars(row, outlined or (), f"{kind} outline") + bars(row, values, name.lower()))
    return "".join(body)


def picture(title, note, described, width, body, height=HEIGHT):
    return "".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">\n',
            f"  <title>{html.escape(title)}</title>\n  <desc>{html.escape(described)}</desc>\n",
            f"  <style>\n{STYLE}  </style>\n",
            f'  <rect width="{width}" height="{height}" rx="6" class="page"/>\n',
            text(14, 24, title, "title"),
            text(14, 42, note, "small"),
            *body,
            "</svg>\n",
        ]
    )


def words(own, shared):
    """Parameters as a reader would say them."""
    each = [f"{name} {value:g}" for name, value in own.items()]
    every = [f"{name} {value:g}" for name, value in shared.items()]
    return ", ".join(([", ".join(each) + " for each model"] if each else []) + every) or "all parameters by default"


def rounded(point):
    return tuple(round(value, 3) + 0.0 for value in point)


def shown(point):
    return "({:.3f}, {:.3f})".format(*rounded(point))


def cloud(merged):
    """The points that random masks lead to, each as large as it is frequent."""
    points = collections.Counter(rounded(merged[plane(layer)]) for layer in range(LAYERS))
    return [
        dot(point, "merged cloud", radius=1.5 + 28 * math.sqrt(count / LAYERS / math.pi))
        for point, count in sorted(points.items())
    ], len(points)


def task_vectors(merge, method):
    """Two task vectors, merged: in the plane, and element by element."""
    own, shared, by_itself = TASK_VECTORS[method]
    merged = merge(method, [(A, own), (B, own)], BASE, shared)
    left = [A[1], B[1]]
    if by_itself:
        alone = ((own | {"weight": 1}, own | {"weight": 0}), (own | {"weight": 0}, own | {"weight": 1}))
        left = [merge(method, [(A, of_a), (B, of_b)], BASE, shared)["elements"] for of_a, of_b in alone]
    mean = merge("linear", [(A, HALF), (B, HALF)])
    body = [axes("base"), arrow(A[0], "a", "A"), arrow(B[0], "b", "B")]
    body += [line(at(A[0]), at(B[0]), "grey"), dot(mean[plane(0)], "grey", radius=3)]
    described = f"Task vectors A {shown(A[0])} and B {shown(B[0])}"
    if method in RANDOM:
        dots, count = cloud(merged)
        body += dots
        described += f" merge to one of {count} points, by chance"
    else:
        point = merged[plane(0)]
        body.append(arrow(point, "merged", "merged", 3))
        described += f" merge to {shown(point)}"
    rows = [("A", A[1], "a", left[0]), ("B", B[1], "b", left[1])]
    body.append(strip([*rows, ("merged", mean["elements"], "grey", merged["elements"])]))
    return picture(method, words(own, shared), f"{described}.", PLANE_WIDTH + STRIP_WIDTH, body)


def linear(merge):
    halves = merge("linear", [(LONG, HALF), (SHORT, HALF)])[plane(0)]
    steps = merge("linear", [(LONG, {"weight": [1, 0]}), (SHORT, {"weight": [0, 1]})])
    body = [axes("0"), *ends(LONG, SHORT), way(steps), arrow(halves, "merged", "merged", 3)]
    note = "weight 0.5 for each model; line: other weights"
    return picture("linear", note, f"{described_ends(halves)} on the straight line between them.", PLANE_WIDTH, body)


def slerp(merge):
    half = merge("slerp", [(SHORT, {})], LONG, {"t": 0.5})[plane(0)]
    steps = merge("slerp", [(SHORT, {})], LONG, {"t": [0, 1]})
    body = [axes("0"), *ends(LONG, SHORT), way(steps), line(at(LONG[0]), at(SHORT[0]), "grey")]
    body.append(arrow(half, "merged", "merged", 3))
    note = "base_model A, t 0.5; arc: t from 0 to 1"
    return picture("slerp", note, f"{described_ends(half)} on an arc around 0.", PLANE_WIDTH, body)


def nuslerp(merge):
    half = merge("nuslerp", [(A, {"weight": 1}), (B, {"weight": 1})], BASE)[plane(0)]
    steps = merge("nuslerp", [(A, {"weight": [1, 0]}), (B, {"weight": [0, 1]})], BASE)
    body = [axes("base"), *ends(A, B), way(steps), line(at(A[0]), at(B[0]), "grey"), arrow(half, "merged", "merged", 3)]
    note = "with a base; weight 1 for each model"
    return picture("nuslerp", note, f"{described_ends(half, A, B)} on an arc around the base.", PLANE_WIDTH, body)


def of_three(merge, method, own):
    """Three whole models and their spherical mean, beside the plain one."""
    models = [(model, own) for model in (LONG, SHORT, THIRD)]
    point = merge(method, models)[plane(0)]
    plain = merge("linear", [(model, {"weight": 1}) for model, _ in models])[plane(0)]
    body = [axes("0"), *ends(LONG, SHORT), arrow(THIRD[0], "c", "C"), dot(plain, "grey", radius=3)]
    body.append(arrow(point, "merged", "merged", 3))
    note = f"{words(own, {})}; grey ring: linear"
    described = f"Models at {shown(LONG[0])}, {shown(SHORT[0])} and {shown(THIRD[0])} merge to {shown(point)}; linear: {shown(plain)}."
    return picture(method, note, described, PLANE_WIDTH, body)


def model_stock(merge):
    a, b = ALIKE
    point = merge("model_stock", [(a, {}), (b, {})], BASE)[plane(0)]
    mean = merge("linear", [(a, HALF), (b, HALF)])[plane(0)]
    body = [axes("base"), *ends(a, b), line(at(a[0]), at(b[0]), "grey"), line(at((0, 0)), at(mean), "grey")]
    body += [dot(mean, "grey", radius=3), arrow(point, "merged", "merged", 3)]
    note = "grey ring: the average"
    return picture("model_stock", note, f"{described_ends(point, a, b)}, between the base and the average {shown(mean)}.", PLANE_WIDTH, body)


def average(merge):
    points = {
        weights: merge("average", [(model, {}) for model in RUN], shared={"weights": weights})[plane(0)]
        for weights in ("uniform", "linear")
    }
    body = [axes("0"), path([model[0] for model in RUN], "a line")]
    body += [dot(model[0], "a", str(i + 1), side=(0, 1)) for i, model in enumerate(RUN)]
    body.append(dot(points["uniform"], "merged", "uniform", 5, side=(-1, -1)))
    body.append(dot(points["linear"], "merged", "linear", 5, side=(1, -1)))
    described = "; ".join(f"weights: {name}, {shown(point)}" for name, point in points.items())
    return picture("average", "five checkpoints of a run, oldest first", f"{described}.", PLANE_WIDTH, body)


def fisher(merge):
    point = merge("fisher", [(LONG, {}), (SHORT, {})], importance=IMPORTANCE)[plane(0)]
    mean = merge("linear", [(LONG, HALF), (SHORT, HALF)])[plane(0)]
    body = [axes("0"), line(at(LONG[0]), at(SHORT[0]), "grey"), dot(mean, "grey", radius=3)]
    for (model, kind, name), (importance, _) in zip(((LONG, "a", "A"), (SHORT, "b", "B")), IMPORTANCE):
        x, y = at(model[0])
        wide, tall = (8 * value for value in importance)
        body.append(
            f'  <ellipse cx="{number(x)}" cy="{number(y)}" rx="{number(wide)}" ry="{number(tall)}" class="{kind} outline"/>\n'
        )
        body.append(dot(model[0], kind, name, side=(1, 1)))
    body.append(dot(point, "merged", "merged", 5))
    note = "ellipses: how much each element matters"
    return picture("fisher", note, f"{described_ends(point)}, nearer to each where that matters more.", PLANE_WIDTH, body)


def nearswap(merge):
    shared = {"t": 0.25}
    merged = merge("nearswap", [(FEW, {})], BASE, shared)
    steps = merge("nearswap", [(FEW, {})], BASE, {"t": [0, 1.2]})
    point = merged[plane(0)]
    body = [axes("base"), arrow(FEW[0], "a", "A"), way(steps), arrow(point, "merged", "", 3)]
    body += [text(at(point)[0] + 4, at(point)[1] + 20, "merged", "merged"), few(merged)]
    note = "t 0.25; line: t from 0 on"
    return picture("nearswap", note, f"The base and A {shown(FEW[0])} merge to {shown(point)}.", PLANE_WIDTH + STRIP_WIDTH, body)


def arcee_fusion(merge):
    merged = merge("arcee_fusion", [(FEW, {})], BASE)
    kept = sum(value != 0 for value in merged["elements"])
    body = [f'  <g transform="translate({-PLANE_WIDTH})">\n', few(merged), "  </g>\n"]
    described = f"Of {len(FEW[1])} changes {kept} are taken over."
    return picture("arcee_fusion", words({}, {}), described, STRIP_WIDTH, body, ROW_TOP + 2 * ROW)


def few(merged):
    """The one task vector, and what is taken of it."""
    return strip([("A", None, "a", FEW[1]), ("merged", FEW[1], "grey", merged["elements"])])


def ends(a, b):
    return arrow(a[0], "a", "A"), arrow(b[0], "b", "B")


def described_ends(point, a=LONG, b=SHORT):
    return f"A {shown(a[0])} and B {shown(b[0])} merge to {shown(point)}"


def way(steps):
    """The path that a gradient over the layers makes."""
    return path([steps[plane(layer)] for layer in range(0, LAYERS, STRIDE)], "merged line")


def pictures(merge):
    """Every picture by the name of its method."""
    drawn = {method: task_vectors(merge, method) for method in TASK_VECTORS}
    for draw in (linear, slerp, nuslerp, model_stock, average, fisher, nearswap, arcee_fusion):
        drawn[draw.__name__] = draw(merge)
    drawn["multislerp"] = of_three(merge, "multislerp", {"weight": 1})
    drawn["karcher"] = of_three(merge, "karcher", {})
    return drawn


def problems(methods, drawn):
    """What of the page and the pictures is not as it should be."""
    page = PAGE.read_text(encoding="utf-8")
    lines = page.splitlines()
    for method in methods:
        if f"### {method}" not in lines:
            yield f"{PAGE.relative_to(ROOT)} has no section on {method}"
        if method in WITHOUT:
            continue
        file = PICTURES / f"{method}.svg"
        if method not in drawn:
            yield f"there is no picture of {method}: draw one in tools/method_pictures.py"
        elif not file.is_file() or file.read_text(encoding="utf-8") != drawn[method]:
            yield f"{file.relative_to(ROOT)} is stale: run tools/method_pictures.py"
        if f"]({PICTURES.name}/{method}.svg)" not in page:
            yield f"{PAGE.relative_to(ROOT)} does not show {method}.svg"
    for file in sorted(PICTURES.iterdir()):
        if file.stem not in drawn or file.suffix != ".svg":
            yield f"{file.relative_to(ROOT)} is of no method"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mergeforge", default="target/debug/mergeforge", help="the program that merges")
    parser.add_argument("--check", action="store_true", help="write nothing, and fail if anything is stale")
    options = parser.parse_args()
    program = str(pathlib.Path(options.mergeforge).resolve())
    listed = subprocess.run([program, "methods", "--json"], check=True, capture_output=True, text=True)
    methods = [method["name"] for method in json.loads(listed.stdout)]
    with tempfile.TemporaryDirectory() as folder:
        drawn = pictures(Merges(program, folder))
    if not options.check:
        PICTURES.mkdir(exist_ok=True)
        for method, content in drawn.items():
            (PICTURES / f"{method}.svg").write_text(content, encoding="utf-8")
    found = list(problems(methods, drawn))
    if found:
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main()

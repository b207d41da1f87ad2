#!/usr/bin/env python3
"""The README's table of methods, made from `mergeforge methods --json` between its two marks.

    cargo run -- methods --json | python3 tools/methods_table.py README.md            # writes the table
    cargo run -- methods --json | python3 tools/methods_table.py README.md --check    # exit code 1 if it is stale
"""

import difflib
import json
import pathlib
import sys

BEGIN, END = "<!-- methods -->\n", "<!-- /methods -->\n"


def shown(parameter):
    if parameter["required"]:
        return f"**`{parameter['name']}`**"
    default = parameter["default"]
    words = {None: "none", True: "true", False: "false"}
    word = f"{default:g}" if isinstance(default, float) else words.get(default, default)
    return f"`{parameter['name']}` ({word})"


def common(methods):
    """The shared parameters that no method needs and several have: they stand below the table, once."""
    unset = lambda p: not p["per_model"] and not p["required"] and p["default"] is None
    names = [p["name"] for method in methods for p in method["parameters"] if unset(p)]
    return [name for name in dict.fromkeys(names) if names.count(name) > 1]


def row(method, left_out):
    def parameters(per_model):
        own = [p for p in method["parameters"] if p["per_model"] == per_model and p["name"] not in left_out]
        return ", ".join(map(shown, own)) or "–"

    paper = method["paper"]
    name = f"[`{method['name']}`]({paper['url']})" if paper else f"`{method['name']}`"
    return f"| {name} | {method['summary']} | {method['base_model']} | {parameters(True)} | {parameters(False)} |\n"


def table(methods):
    head = "| method | output | `base_model` | per model | for all models |\n| --- | --- | --- | --- | --- |\n"
    left_out = common(methods)
    having = [f"`{method['name']}`" for method in methods if any(p["name"] in left_out for p in method["parameters"])]
    below = f"Beside these, {', '.join(having)} take {', '.join(f'`{name}`' for name in left_out)} (none; beyond mergekit).\n"
    return "\n" + head + "".join(row(method, left_out) for method in methods) + "\n" + below + "\n"


def main():
    readme = pathlib.Path(sys.argv[1])
    text = readme.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    fresh = before + BEGIN + table(json.load(sys.stdin)) + END + after
    if "--check" not in sys.argv[2:]:
        readme.write_text(fresh, encoding="utf-8")
    elif fresh != text:
        sys.stdout.writelines(difflib.unified_diff(text.splitlines(True), fresh.splitlines(True), "README.md", "methods --json"))
        sys.exit("README.md: the table of methods is stale: run tools/methods_table.py")


if __name__ == "__main__":
    main()

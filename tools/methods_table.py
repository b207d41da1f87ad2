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
    word = {None: "none", True: "true", False: "false"}.get(default) if not isinstance(default, float) else f"{default:g}"
    return f"`{parameter['name']}` ({word})"


def row(method):
    def parameters(per_model):
        return ", ".join(shown(p) for p in method["parameters"] if p["per_model"] == per_model) or "–"

    paper = method["paper"]
    name = f"[`{method['name']}`]({paper['url']})" if paper else f"`{method['name']}`"
    return f"| {name} | {method['summary']} | {method['base_model']} | {parameters(True)} | {parameters(False)} |\n"


def table(methods):
    head = "| method | output | `base_model` | per model | for all models |\n| --- | --- | --- | --- | --- |\n"
    return "\n" + head + "".join(map(row, methods)) + "\n"


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

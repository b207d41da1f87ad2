"""Configs as users have them, as YAML texts."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, Union

from . import _mergeforge
from ._errors import ConfigError

Config = Union[str, "os.PathLike[str]", Mapping[str, Any], Sequence[Mapping[str, Any]]]
"""A config: the path of a file, its text, a mapping, or several mappings for several documents."""


# A text that needs no quotes: none of YAML's words.
_PLAIN = re.compile(r"(?!(?:yes|no|on|off|true|false|null|y|n)$)[a-z]\w*", re.ASCII)


def written(config: Config) -> tuple[str, str]:
    """What messages call a config, and its text.

    A `str` with a line break in it, or that begins with `{`, is a text; any other is a path, as everything that has `__fspath__` is.
    """
    if isinstance(config, Mapping):
        # A line of a text that nobody wrote would say nothing.
        return "", "\n".join([*_mapping(config, ""), ""])
    if isinstance(config, (str, os.PathLike)) and os.fspath(config) == "-":
        raise ConfigError("the standard input is read by the command line alone", "give its text: sys.stdin.read()")
    if isinstance(config, str):
        is_text = "\n" in config or config.lstrip().startswith("{")
        return ("<config>", config) if is_text else _mergeforge.read(config)
    if isinstance(config, os.PathLike):
        return _mergeforge.read(config)
    if isinstance(config, (bytes, bytearray)) or not isinstance(config, Sequence):
        raise TypeError(f"a config is a path, a YAML text or a dict, not {type(config).__name__}")
    return "", "---\n".join(written(document)[1] for document in _mappings(config))


def _mappings(documents: Sequence[Any]) -> Sequence[Mapping[str, Any]]:
    for document in documents:
        if not isinstance(document, Mapping):
            raise TypeError(f"a list of configs has dicts, not {type(document).__name__}")
    if not documents:
        raise ConfigError("a list of configs is empty")
    return documents


def _mapping(mapping: Mapping[Any, Any], indent: str) -> list[str]:
    """The lines of a mapping, in YAML's block style."""
    lines = []
    for key, value in mapping.items():
        below = _below(value, indent + "  ")
        key = key if isinstance(key, str) and _PLAIN.fullmatch(key) else _scalar(key)
        lines += [f"{indent}{key}:", *below] if below else [f"{indent}{key}: {_scalar(value)}"]
    return lines


def _below(value: Any, indent: str) -> list[str]:
    """The lines of a value that has some of its own: of a mapping or a list that is not empty."""
    if isinstance(value, Mapping):
        return _mapping(value, indent)
    if not _is_list(value):
        return []
    lines = []
    for item in value:
        below = _below(item, indent + "  ")
        # The first line of what is inside stands behind the dash.
        lines += [f"{indent}- {below[0].lstrip()}", *below[1:]] if below else [f"{indent}- {_scalar(item)}"]
    return lines


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple)) or hasattr(value, "tolist") and isinstance(value.tolist(), list)


def _scalar(value: Any) -> str:
    """A value without lines of its own, as YAML and PyYAML read it back."""
    if hasattr(value, "tolist"):
        # A number of numpy or torch.
        value = value.tolist()
    if value is None or isinstance(value, (bool, int)):
        return json.dumps(value)
    if isinstance(value, float):
        if math.isnan(value) or math.isinf(value):
            return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
        text = repr(value)
        # PyYAML takes 1e-05 for a text.
        return text if "." in text or "e" not in text else text.replace("e", ".0e")
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, Mapping):
        return "{}"
    if isinstance(value, (list, tuple)):
        return "[]"
    raise TypeError(f"a config has no {type(value).__name__}: {value!r}")

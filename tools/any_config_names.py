"""Which checkpoints a mergekit config names, in which way, and how deep they have to be. Reads what YAML or patience can read."""

import dataclasses
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import yaml

from any_config_models import Wish, family_of

# Values of tokenizer keys that name no model.
NO_MODELS = ("union", "base")

# Names without an owner that the hub knows.
HUB_NAMES = ("gpt2", "bert-base-uncased", "t5-base", "t5-small", "roberta-base")

DEFAULT_LAYERS = 3

# What some of the models of a config have beside the common tokens, where tokenizers are merged.
ADDED_TOKENS = [(), ("<|im_start|>", "<|im_end|>"), ("<|im_end|>", "<tool_call>"), ("<|im_start|>",)]

LINE = re.compile(
    r"^[\s-]*(?:model|base_model|source_model|tokenizer_source)\s*:\s*[\"']?([^\s\"'#][^\"'#\n]*?)[\"']?\s*(?:#.*)?$"
)


@dataclasses.dataclass(frozen=True)
class Reference:
    """A model, perhaps a revision of it, and an adapter for it."""

    model: str
    revision: str | None = None
    adapter: str | None = None
    adapter_revision: str | None = None


@dataclasses.dataclass
class Config:
    """A file as it was written, and what it names."""

    path: pathlib.Path
    text: str
    # The documents, as far as YAML can read them.
    documents: list[Any]
    readable: bool

    @property
    def kind(self) -> str:
        if not self.readable:
            return "unreadable"
        if any(isinstance(document, dict) and "experts" in document for document in self.documents):
            return "moe"
        return "multi" if len(self.documents) > 1 else "merge"

    @property
    def methods(self) -> str:
        found = [document.get("merge_method") for document in self.documents if isinstance(document, dict)]
        return ", ".join(dict.fromkeys(str(method) for method in found if method)) or "–"

    @property
    def merges_tokenizers(self) -> bool:
        return bool(re.search(r"^\s*tokenizer(_source)?\s*:", self.text, re.MULTILINE))


def read_config(path: pathlib.Path) -> Config:
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        documents = [document for document in yaml.load_all(text, yaml.BaseLoader) if document]
        return Config(path, text, documents, True)
    except yaml.YAMLError:
        return Config(path, text, [], False)


def references(config: Config) -> list[Reference]:
    """Every model that is named, bases first."""
    found = []
    for document in config.documents:
        bases = [document["base_model"]] if isinstance(document, dict) and document.get("base_model") else []
        found += [*bases, *named_in(document)]
    if not config.readable:
        found = [match[1] for line in config.text.splitlines() if (match := LINE.match(line))]
    return list(dict.fromkeys(reference for value in found if (reference := parse(value))))


def named_in(node: Any, key: str = "") -> Iterator[Any]:
    """Values of the keys that hold models, wherever they are."""
    if isinstance(node, list):
        for entry in node:
            # A list of names in place of the mappings that it should hold.
            if key in ("models", "sources") and isinstance(entry, str):
                yield entry
            yield from named_in(entry, key)
    elif isinstance(node, dict):
        for name, value in node.items():
            names_model = name in ("model", "base_model", "source_model", "tokenizer_source")
            if names_model or (name == "source" and key in ("tokenizer", "tokens")):
                yield value
            if isinstance(value, (dict, list)):
                # Tokens lie two levels below their key.
                yield from named_in(value, "tokens" if key == "tokens" else name)


def parse(value: Any) -> Reference | None:
    """mergekit's notations: `model@revision+adapter@revision`, and the same as a mapping."""
    if isinstance(value, dict):
        path, adapter = value.get("model"), value.get("lora")
        if not path or "kind" in value:
            return None
        path, adapter = ((part if isinstance(part, dict) else {"path": part}) for part in (path, adapter))
        if not isinstance(path.get("path"), str):
            return None
        return Reference(path["path"], path.get("revision"), adapter.get("path"), adapter.get("revision"))
    if not isinstance(value, str) or not value.strip() or value in (*NO_MODELS, "null", "~", "true", "false"):
        return None
    value = value.removeprefix("model:")
    model, plus, adapter = value.partition("+")
    model, _, revision = model.partition("@")
    adapter, _, adapter_revision = adapter.partition("@")
    return Reference(model, revision or None, adapter or None if plus else None, adapter_revision or None)


def stages(config: Config) -> dict[str, int]:
    """The merges that other documents can refer to by their names, and how many layers they have, 0 for unknown."""
    named = {}
    for document in config.documents if len(config.documents) > 1 else []:
        if isinstance(document, dict) and isinstance(document.get("name"), str):
            named[document["name"]] = sum(last - first for first, last in stacked(document))
    return named


def stacked(document: dict) -> Iterator[tuple[int, int]]:
    for part in document.get("slices") or []:
        sources = part.get("sources") if isinstance(part, dict) else None
        if sources and isinstance(sources, list) and (layers := layer_range(sources[0])):
            yield layers


def layer_range(source: Any) -> tuple[int, int] | None:
    given = source.get("layer_range") if isinstance(source, dict) else None
    try:
        first, last = (int(end) for end in given)
    except (TypeError, ValueError):
        return None
    return (first, last) if 0 <= first <= last <= 200 else None


def depth(config: Config) -> int:
    """So many layers as the deepest range of a source needs; the same for all, as for models that are merged."""

    def last_layers(node: Any) -> Iterator[int]:
        if isinstance(node, dict) and (layers := layer_range(node)):
            yield layers[1]
        for value in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
            yield from last_layers(value)

    return max(last_layers(config.documents), default=0) or DEFAULT_LAYERS


def wishes(config: Config) -> list[tuple[Reference, Wish]]:
    """The checkpoints to make for a config."""
    found = references(config)
    made_here = stages(config)
    family = family_of([reference.model for reference in found])
    layers = depth(config)
    made = []
    for reference in found:
        if reference.model in made_here:
            continue
        number = len({one.model for one, _ in made})
        added, rows = ADDED_TOKENS[number % len(ADDED_TOKENS)], None if number % 2 else 320
        wish = Wish(reference.model, family, layers_beside(reference.model, config, made_here) or layers)
        if config.merges_tokenizers:
            wish.added_tokens, wish.rows = added, rows
        made.append((reference, wish))
    return made


def layers_beside(model: str, config: Config, made_here: dict[str, int]) -> int:
    """How deep a model must be that is merged with an earlier stage."""
    for document in config.documents:
        models = document.get("models") if isinstance(document, dict) else None
        names = {str(one.get("model")) for one in models or [] if isinstance(one, dict)}
        if model in names | {document.get("base_model") if isinstance(document, dict) else None}:
            for stage in names & made_here.keys():
                return made_here[stage]
    return 0


def is_hub_name(name: str) -> bool:
    return name in HUB_NAMES or bool(re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name))

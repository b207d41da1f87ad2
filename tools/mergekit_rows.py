"""What becomes of the rows of embeddings, heads and output biases where models have different tokenizers: the definition."""

import json
import pathlib
import re
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from mergekit_inputs import cached_checkpoint
from mergekit_undecided import origin


def is_of_tokens(name: str) -> bool:
    return bool(re.search(r"embed_tokens|lm_head|word_embeddings|\bwte\b|embed_in|embed_out|\bshared\.weight", name))


def vocabulary(path: pathlib.Path) -> dict[str, int] | None:
    """The number of each token of a tokenizer.json."""
    if not path.exists():
        return None
    tokenizer = json.loads(path.read_text())
    entries = tokenizer["model"]["vocab"]
    numbers = entries if isinstance(entries, dict) else {token: number for number, (token, _) in enumerate(entries)}
    return numbers | {token["content"]: token["id"] for token in tokenizer["added_tokens"]}


def expected_rows(config: dict[str, Any], name: str, tokens: list[str]) -> dict[str, np.ndarray]:
    """A tensor of each model, by its folder, with a row for each of the tokens: its own, or what stands in for it.

    In its place stands what the config says; else the row of the only model that has the token; else the base's; else the mean
    of those that have it; else zeros."""
    place = origin(config, name)
    folders = [folder for folder, _, _ in place.sources]
    given = (config.get("tokenizer") or {}).get("tokens") or {}
    numbers = {folder: vocabulary(pathlib.Path(folder) / "tokenizer.json") or {} for folder in folders}
    tensors = {folder: cached_checkpoint(folder)[found].double().numpy() for folder, found, _ in place.sources}
    shape = next(iter(tensors.values())).shape[1:]
    aligned = {folder: np.zeros((len(tokens), *shape)) for folder in folders}

    def own(folder: str, token: str) -> np.ndarray:
        return tensors[folder][numbers[folder][token]]

    def of_source(source: Any, token: str) -> np.ndarray:
        if not isinstance(source, dict):
            return own(str(source), token)
        if source["kind"] == "zero":
            return np.zeros(shape)
        folder = str(source["model"])
        return tensors[folder][source["token_id"]] if "token_id" in source else own(folder, source["token"])

    for row, token in enumerate(tokens):
        # Rows of a number beyond the tensor are no rows.
        holders = [folder for folder in folders if numbers[folder].get(token, len(tensors[folder])) < len(tensors[folder])]
        entry = given.get(token) or {}
        if token in given:
            instead = of_source(entry.get("source"), token)
        elif len(holders) == 1:
            instead = own(holders[0], token)
        elif place.base in holders:
            instead = own(place.base, token)
        else:
            instead = np.mean([own(folder, token) for folder in holders], axis=0) if holders else np.zeros(shape)
        for folder in folders:
            aligned[folder][row] = own(folder, token) if folder in holders and not entry.get("force") else instead
    return aligned


def with_aligned(config: dict[str, Any], name: str, tokens: list[str], rows: int, folder: pathlib.Path) -> dict[str, Any]:
    """The config with models that have the rows of the output already, made in a folder; those of the padding are the mean."""
    replaced = {}
    for number, (model, array) in enumerate(expected_rows(config, name, tokens).items()):
        padding = np.broadcast_to(array.mean(axis=0), (rows - len(tokens), *array.shape[1:]))
        made = folder / str(number)
        made.mkdir()
        whole = np.concatenate([array, padding]).astype(np.float32)
        save_file({name: torch.from_numpy(whole)}, made / "model.safetensors")
        (made / "config.json").write_text((pathlib.Path(model) / "config.json").read_text())
        replaced[model] = str(made)

    def change(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: change(value) for key, value in node.items()}
        if isinstance(node, list):
            return [change(value) for value in node]
        return replaced.get(node, node) if isinstance(node, str) else node

    return change(config)

#!/usr/bin/env python3
"""Do other programs read the outputs of mergeforge? Checks a folder with the Python libraries that will load it.

    python tools/check_output.py --like DONOR [--shards N] OUT…

DONOR is the model that gave config and tokenizer. Each OUT must hold DONOR's tensors by name and shape, of the type in its
config.json; an index that fits the shards; a manifest whose digests fit the data; and a config and a tokenizer that
transformers loads, the tokenizer with DONOR's tokens. Needs safetensors, numpy, blake3 and transformers; no torch.
"""

import argparse
import json
import os
import pathlib
import sys

os.environ["HF_HUB_OFFLINE"] = "1"  # Everything is in the folders: nothing may be looked up.
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import blake3
import numpy as np
import safetensors
from transformers import AutoConfig, AutoTokenizer

INDEX = "model.safetensors.index.json"
DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
SENTENCE = "<|user|>What is meant by fever?<|assistant|>A disease marked by increase of heat — the “ague”, 1913."


class Wrong(Exception):
    """What is wrong with an output."""


def check(holds, message):
    if not holds:
        raise Wrong(message)


def load(folder):
    """Every tensor of a checkpoint, name -> {dtype, shape, data}, and the shard of each, as safetensors reads them."""
    tensors, shard_of = {}, {}
    for path in sorted(folder.glob("*.safetensors")):
        with safetensors.safe_open(path, framework="np") as opened:
            names = set(opened.keys())
            check((opened.metadata() or {}).get("format") == "pt", f"{path.name}: no format in the metadata")
        for name, tensor in safetensors.deserialize(path.read_bytes()):
            check(name not in tensors, f"{name} is in two shards")
            tensors[name], shard_of[name] = tensor, path.name
            names.remove(name)
        check(not names, f"{path.name}: {names} cannot be loaded")
    check(tensors, "no tensors")
    return tensors, shard_of


def values(tensor):
    """A tensor's elements as float32; numpy has no bfloat16."""
    data = bytes(tensor["data"])
    if tensor["dtype"] == "BF16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, {"F16": "<f2", "F32": "<f4"}[tensor["dtype"]]).astype(np.float32)


def check_tensors(tensors, like, dtype):
    check(set(tensors) == set(like), f"names differ: {sorted(set(tensors) ^ set(like))[:5]}")
    for name, tensor in tensors.items():
        check(tensor["shape"] == like[name]["shape"], f"{name}: shape {tensor['shape']}, not {like[name]['shape']}")
        check(tensor["dtype"] == DTYPES[dtype], f"{name}: {tensor['dtype']}, and config.json says {dtype}")
        check(np.isfinite(values(tensor)).all(), f"{name}: not finite")
    changed = sum(bytes(tensor["data"]) != bytes(like[name]["data"]) for name, tensor in tensors.items())
    check(changed > len(tensors) // 2, f"only {changed} of {len(tensors)} tensors differ from the donor's")


def check_shards(out, tensors, shard_of, count):
    shards = sorted(set(shard_of.values()))
    if count == 1:
        check(shards == ["model.safetensors"] and not (out / INDEX).exists(), f"one file expected: {shards}")
        return
    check(len(shards) >= count, f"{len(shards)} shards, at least {count} expected")
    names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    check(shards == names, f"shards are called {shards}")
    index = json.loads((out / INDEX).read_text(encoding="utf-8"))
    check(index["weight_map"] == shard_of, "the index does not say where the tensors are")
    total = sum(len(tensor["data"]) for tensor in tensors.values())
    check(index["metadata"]["total_size"] == total, f"total_size is {index['metadata']['total_size']}, not {total}")


def check_manifest(out, tensors):
    manifest = json.loads((out / "mergeforge.json").read_text(encoding="utf-8"))
    digests = {name: entry["blake3"] for name, entry in manifest["tensors"].items()}
    computed = {name: blake3.blake3(bytes(tensor["data"])).hexdigest() for name, tensor in tensors.items()}
    check(digests == computed, "mergeforge.json: digests differ from the data")


def check_companions(out, donor):
    ours, theirs = (AutoConfig.from_pretrained(folder) for folder in (out, donor))
    for key in ("model_type", "architectures", "num_hidden_layers", "hidden_size", "vocab_size", "tie_word_embeddings"):
        check(getattr(ours, key) == getattr(theirs, key), f"config.json: {key} is {getattr(ours, key)}")
    ours, theirs = (AutoTokenizer.from_pretrained(folder) for folder in (out, donor))
    tokens = ours(SENTENCE)["input_ids"]
    check(tokens == theirs(SENTENCE)["input_ids"] and len(tokens) > 10, f"the tokenizer gives {tokens}")
    for file in ("README.md", "mergekit_config.yml", "generation_config.json"):
        check((out / file).is_file(), f"no {file}")
    check(not out.with_name(out.name + ".partial").exists(), "the partial folder is left")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--like", type=pathlib.Path, required=True, metavar="DONOR")
    parser.add_argument("--shards", type=int, default=1, help="the least number of shards; 1: exactly one file")
    parser.add_argument("out", type=pathlib.Path, nargs="+")
    args = parser.parse_args()
    like, _ = load(args.like)
    wrong = 0
    for out in args.out:
        try:
            tensors, shard_of = load(out)
            check_tensors(tensors, like, json.loads((out / "config.json").read_text(encoding="utf-8"))["dtype"])
            check_shards(out, tensors, shard_of, args.shards)
            check_manifest(out, tensors)
            check_companions(out, args.like)
            print(f"{out.name}: {len(tensors)} tensors in {len(set(shard_of.values()))} file(s), config, tokenizer, digests: good")
        except (Wrong, OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
            wrong += 1
            print(f"{out.name}: WRONG: {error}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()

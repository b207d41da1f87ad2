#!/usr/bin/env python3
"""Tests of `any_config.py`, with configs of our own.

    MERGEFORGE=target/debug/mergeforge [MERGEKIT=VENV] python tools/any_config_test.py

With MERGEKIT, the environment that has mergekit, tensors are judged from end to end too.
"""

import argparse
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
import unittest

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

import any_config
from any_config_judge import judge, split_experts
from any_config_models import (
    FAMILIES,
    TOKENIZERS,
    Templates,
    Wish,
    checkpoint_files,
    family_of,
    pickled,
    tokenizer_files,
    write_files,
    write_to_cache,
)
from any_config_names import Reference, depth, parse, read_config, references, wishes

LINEAR = """
models:
  - model: acme/Mistral-tuned
    parameters: {weight: 0.25}
  - model: ./here/other
    parameters: {weight: 0.75}
merge_method: linear
dtype: bfloat16
"""
STAGED = """
name: tall
merge_method: passthrough
slices:
  - sources: [{model: acme/one, layer_range: [0, 3]}]
  - sources: [{model: acme/two, layer_range: [1, 4]}]
---
merge_method: slerp
base_model: tall
models: [{model: tall}, {model: /data/six-layers}]
parameters: {t: 0.5}
dtype: float32
"""
ADAPTED = """
merge_method: linear
models:
  - model: acme/Qwen2-base@v1+acme/style-lora
    parameters: {weight: 1}
  - model: {model: {path: acme/Qwen2-base, revision: v1}, lora: acme/other-lora}
    parameters: {weight: 1}
"""
BROKEN = """
models:
  - model: C:\\models\\alpha
   - model: acme/beta # the second
merge_method: linear
"""
DARE = """
base_model: acme/llama-2-base
models:
  - model: acme/llama-2-base
  - {model: acme/chat, parameters: {weight: 0.5, density: 0.4}}
  - {model: acme/code, parameters: {weight: 0.8, density: 0.7}}
merge_method: dare_ties
dtype: bfloat16
"""
STAGES = """
name: half
models: [{model: acme/llama-2-a, parameters: {weight: 1}}, {model: acme/llama-2-b, parameters: {weight: 1}}]
merge_method: linear
dtype: bfloat16
---
models: [{model: half, parameters: {weight: 0.3}}, {model: acme/llama-2-c, parameters: {weight: 0.7}}]
merge_method: linear
dtype: float32
"""
NO_BASE = "merge_method: ties\nmodels: [{model: acme/one, parameters: {weight: 1}}]\n"


class WithFolder(unittest.TestCase):
    def setUp(self) -> None:
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="any-config-"))
        self.addCleanup(shutil.rmtree, self.folder)

    def config(self, text: str, name: str = "config") -> any_config.Config:
        path = self.folder / f"{name}.yml"
        path.write_text(text)
        return read_config(path)


class Names(WithFolder):
    def test_what_is_named(self) -> None:
        self.assertEqual([one.model for one in references(self.config(LINEAR))], ["acme/Mistral-tuned", "./here/other"])
        adapted = references(self.config(ADAPTED))
        self.assertEqual(adapted[0], Reference("acme/Qwen2-base", "v1", "acme/style-lora"))
        self.assertEqual(adapted[1], Reference("acme/Qwen2-base", "v1", "acme/other-lora"))
        tokens = "tokenizer: {source: union, tokens: {<x>: {source: acme/tokens}, <y>: {source: {kind: zero}}}}\n"
        self.assertIn(Reference("acme/tokens"), references(self.config(LINEAR + tokens)))
        self.assertEqual(parse("model:acme/old-spelling"), Reference("acme/old-spelling"))

    def test_what_yaml_cannot_read(self) -> None:
        config = self.config(BROKEN)
        self.assertEqual(config.kind, "unreadable")
        self.assertEqual([one.model for one in references(config)], ["C:\\models\\alpha", "acme/beta"])

    def test_stages_are_not_made_and_set_the_depth(self) -> None:
        config = self.config(STAGED)
        self.assertEqual((config.kind, depth(config)), ("multi", 4))
        layers = {reference.model: wish.layers for reference, wish in wishes(config)}
        self.assertEqual(layers, {"acme/one": 4, "acme/two": 4, "/data/six-layers": 6})

    def test_architectures(self) -> None:
        self.assertEqual(family_of(["acme/unknown", "Qwen/Qwen3-8B"]), "qwen3")
        self.assertEqual(family_of(["acme/Qwen2.5-VL-7B"]), "qwen2_vl")
        self.assertEqual(family_of(["acme/unknown"]), "llama")


class Models(WithFolder):
    def test_tokenizers(self) -> None:
        for kind in TOKENIZERS:
            files, count = tokenizer_files(kind, ("<|im_start|>",))
            (self.folder / "tokenizer.json").write_text(json.dumps(files["tokenizer.json"]))
            tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
            self.assertEqual(tokenizer.get_vocab_size(), count, kind)
            encoded = tokenizer.encode("the end<|im_start|>of it")
            self.assertIn("<|im_start|>", encoded.tokens)
            self.assertLess(max(encoded.ids), count)
            text = tokenizer.decode(encoded.ids, skip_special_tokens=True).replace(" ", "")
            self.assertEqual(text, "theendofit", kind)

    def test_every_architecture(self) -> None:
        templates = Templates(self.folder)
        for family in FAMILIES:
            short, tall = (checkpoint_files(Wish("acme/x", family, layers), templates) for layers in (2, 4))
            tensors = [files["model.safetensors"] for files in (short, tall)]
            self.assertLess(len(tensors[0]), len(tensors[1]), family)
            self.assertTrue(tensors[0].keys() < tensors[1].keys() or family in ("lfm2", "zamba2"), family)

    def test_packed_weights_and_pickles(self) -> None:
        files = checkpoint_files(Wish("acme/x-GPTQ", "llama", 2), Templates(self.folder))
        self.assertEqual(files["config.json"]["quantization_config"]["quant_method"], "gptq")
        names = files["model.safetensors"].keys()
        self.assertIn("model.layers.0.mlp.up_proj.qweight", names)
        self.assertFalse(any(name.endswith("_proj.weight") for name in names))
        write_files(pickled(files), self.folder / "x")
        loaded = torch.load(self.folder / "x" / "pytorch_model.bin", weights_only=True)
        self.assertEqual(loaded.keys(), names)

    def test_a_cache_that_the_hub_reads(self) -> None:
        from huggingface_hub import snapshot_download

        files = checkpoint_files(Wish("acme/x", "llama", 2), Templates(self.folder / "templates"))
        for _ in range(2):
            write_to_cache(files, self.folder, "acme/x", "v1")
        found = snapshot_download("acme/x", revision="v1", cache_dir=self.folder, local_files_only=True)
        names = {path.name for path in pathlib.Path(found).iterdir()}
        self.assertEqual(names, files.keys())
        self.assertEqual(len(load_file(pathlib.Path(found) / "model.safetensors")), 21)


class Judging(WithFolder):
    """A merge by hand, right and wrong."""

    def setUp(self) -> None:
        super().setUp()
        config = self.config(LINEAR.replace("bfloat16", "float32"))
        self.place = any_config.Place(self.folder, config)
        self.place.prepare(Templates(self.folder / "templates"))
        self.out, self.exact = self.folder / "out", self.folder / "exact"
        hub = next(self.place.hub.glob("models--acme--Mistral-tuned/snapshots/*"))
        other = self.place.here / "here" / "other"
        a, b = (load_file(folder / "model.safetensors") for folder in (hub, other))
        merged = {name: 0.25 * a[name].double() + 0.75 * b[name].double() for name in a}
        for folder, dtype in ((self.exact, torch.float64), (self.out, torch.float32)):
            shutil.copytree(other, folder)
            save_file({name: tensor.to(dtype) for name, tensor in merged.items()}, folder / "model.safetensors")

    def problems(self) -> list[str]:
        return judge(self.out, self.exact, any_config.resolved(self.place), ["linear"]).problems

    def change(self, change) -> None:
        tensors = load_file(self.out / "model.safetensors")
        change(tensors)
        save_file(tensors, self.out / "model.safetensors")

    def test_what_is_right(self) -> None:
        judgement = judge(self.out, self.exact, any_config.resolved(self.place), ["linear"])
        self.assertEqual((judgement.problems, judgement.tensors), ([], 30))

    def test_one_element(self) -> None:
        self.change(lambda tensors: tensors["lm_head.weight"][3, 4].add_(1e-5))
        self.assertIn("1 of 10240 differ", self.problems()[0])

    def test_truncated_in_place_of_rounded(self) -> None:
        def truncate(tensors) -> None:
            tensors["lm_head.weight"] = (tensors["lm_head.weight"].view(torch.int32) & -65536).view(torch.float32).bfloat16()

        self.change(truncate)
        self.assertIn("lm_head.weight", self.problems()[0])

    def test_not_a_number(self) -> None:
        self.change(lambda tensors: tensors["model.norm.weight"][0].fill_(float("nan")))
        self.assertIn("model.norm.weight", self.problems()[0])

    def test_names_and_shapes(self) -> None:
        self.change(lambda tensors: tensors.pop("model.norm.weight"))
        self.assertIn("1 tensors are missing: model.norm.weight", self.problems()[0])
        self.change(lambda tensors: tensors.update({"model.norm.weight": torch.ones(2)}))
        self.assertIn("shape [2], not [32]", self.problems()[0])

    def test_the_number_of_rows(self) -> None:
        config = json.loads((self.out / "config.json").read_text())
        (self.out / "config.json").write_text(json.dumps(config | {"vocab_size": 316}))
        self.assertEqual(len(self.problems()), 2)

    def test_tokens_in_another_order(self) -> None:
        tokenizer = json.loads((self.out / "tokenizer.json").read_text())
        vocabulary = tokenizer["model"]["vocab"]
        vocabulary["th"], vocabulary["he"] = vocabulary["he"], vocabulary["th"]
        (self.out / "tokenizer.json").write_text(json.dumps(tokenizer))
        self.assertIn("model.embed_tokens.weight", " ".join(self.problems()))

        def swap(tensors) -> None:
            rows = [vocabulary["th"], vocabulary["he"]]
            for name in ("model.embed_tokens.weight", "lm_head.weight"):
                tensors[name][rows] = tensors[name][rows[::-1]]

        self.change(swap)
        self.assertEqual(self.problems(), [])

    def test_experts(self) -> None:
        fused = {
            "l.mlp.experts.gate_up_proj": torch.arange(16.0).reshape(2, 4, 2),
            "l.mlp.experts.down_proj": torch.ones(2, 2, 2),
        }
        split = split_experts(fused)
        self.assertEqual(split["l.mlp.experts.1.up_proj.weight"].tolist(), [[12, 13], [14, 15]])
        self.assertEqual(split["l.block_sparse_moe.experts.0.w1.weight"].tolist(), [[0, 1], [2, 3]])


class EndToEnd(WithFolder):
    def test_configs(self) -> None:
        configs = self.folder / "configs"
        configs.mkdir()
        for name, text in {"linear": LINEAR, "broken": BROKEN, "no-base": NO_BASE, "dare": DARE, "stages": STAGES}.items():
            (configs / f"{name}.yml").write_text(text)
        mergeforge = pathlib.Path(os.environ["MERGEFORGE"]).resolve()
        mergekit = pathlib.Path(os.environ["MERGEKIT"]) if "MERGEKIT" in os.environ else None
        args = argparse.Namespace(
            mergeforge=str(mergeforge),
            digest=hashlib.sha256(mergeforge.read_bytes()).hexdigest(),
            mergekit=mergekit,
            work=self.folder / "work",
            limit=120,
            bin=False,
            keep=True,
        )
        rows = {path.stem: any_config.run_config(path, args) for path in configs.iterdir()}
        self.assertTrue(rows["linear"].ours.merged and rows["dare"].ours.merged)
        self.assertFalse(rows["broken"].ours.merged)
        self.assertIn("needs a base_model", rows["no-base"].ours.words)
        text = any_config.report(list(rows.values()), args)
        self.assertIn("| linear.yml | merge | linear | mistral | merged |", text)
        if mergekit:
            self.assertTrue(rows["linear"].theirs.merged and rows["dare"].theirs.merged)
            self.assertFalse(rows["no-base"].theirs.merged or rows["broken"].theirs.merged)
            for name in ("linear", "dare", "stages"):
                self.assertEqual((rows[name].judgement.problems, rows[name].judgement.tensors), ([], 30))
            self.assertTrue(any("random masks" in note for note in rows["dare"].judgement.notes))
        # What is known is not done again.
        again = any_config.run_config(configs / "linear.yml", args)
        self.assertEqual(again, rows["linear"])


if __name__ == "__main__":
    unittest.main()

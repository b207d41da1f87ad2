"""Modules of models with several parts, merged by mergeforge, beside mergekit and beside what the formulas give.

    python tools/check_modules.py target/debug/mergeforge [mergekit-yaml]

It needs torch and transformers. Of each architecture two tiny random models are made. Every output must load without missing or
unexpected keys and hold every tensor of its donor. What mergekit writes must be the same to within float32's rounding; where it
refuses, or writes less, that is printed. Then language models are merged into models of several modalities.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # Everything is in the folders: nothing may be looked up.

import torch
import transformers
from safetensors.torch import load_file

# Weights are below 1: this is what float32 leaves of them.
CLOSE = 2e-7
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
    "max_position_embeddings": 128,
}
TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "image_size": 16, "patch_size": 4}
HALVES = {"encoder_layers": 2, "decoder_layers": 3, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
HALVES |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "d_model": 32, "vocab_size": 96}


def qwen_vision(**rest):
    return {"depth": 3, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "out_hidden_size": 32, "patch_size": 4} | rest


def rope(*sections):
    return {"rope_scaling": {"rope_type": "default", "mrope_section": list(sections)}}


def t5(**rest):
    return {"d_model": 32, "d_ff": 48, "d_kv": 8, "num_heads": 4, "num_layers": 2, "num_decoder_layers": 3, "vocab_size": 96} | rest


# Architecture and config.
MODELS = {
    "qwen2.5-vl": (
        "Qwen2_5_VLForConditionalGeneration",
        {"text_config": TEXT | rope(1, 1, 2), "vision_config": qwen_vision(fullatt_block_indexes=[1])},
    ),
    "qwen3-vl": (
        "Qwen3VLForConditionalGeneration",
        {
            "text_config": TEXT | {"head_dim": 8} | rope(2, 1, 1),
            "vision_config": qwen_vision(deepstack_visual_indexes=[0, 1, 2], num_position_embeddings=16),
        },
    ),
    "gemma3": (
        "Gemma3ForConditionalGeneration",
        {
            "text_config": TEXT | {"head_dim": 8},
            "vision_config": TOWER | {"num_hidden_layers": 2},
            "mm_tokens_per_image": 4,
        },
    ),
    "mistral3": (
        "Mistral3ForConditionalGeneration",
        {
            "text_config": TEXT | {"model_type": "mistral", "head_dim": 8},
            "vision_config": TOWER | {"model_type": "pixtral", "num_hidden_layers": 2, "head_dim": 8},
        },
    ),
    "llava": (
        "LlavaForConditionalGeneration",
        {
            "text_config": TEXT | {"model_type": "llama"},
            "vision_config": TOWER | {"model_type": "clip_vision_model", "num_hidden_layers": 2},
        },
    ),
    "t5": ("T5ForConditionalGeneration", t5(feed_forward_proj="gated-gelu", tie_word_embeddings=False)),
    "whisper": (
        "WhisperForConditionalGeneration",
        HALVES
        | {"num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 16}
        | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1},
    ),
    "bart": ("BartForConditionalGeneration", HALVES | {"max_position_embeddings": 16}),
    "qwen2": ("Qwen2ForCausalLM", TEXT),
    "qwen3": ("Qwen3ForCausalLM", TEXT | {"head_dim": 8}),
    "gemma3-text": ("Gemma3ForCausalLM", TEXT | {"head_dim": 8}),
    "mistral": ("MistralForCausalLM", TEXT | {"head_dim": 8}),
    "llama": ("LlamaForCausalLM", TEXT),
}

VISION = ("text_decoder", "vision_tower", "multi_modal_projector")
# Architecture, method and modules.
CASES = [
    # Of its projector mergekit takes the numbers in `merger.mlp.0` and `merger.mlp.2` for no layers, which gradients show.
    ("qwen2.5-vl", "slerp", VISION[:2]),
    ("qwen2.5-vl", "linear", VISION),
    ("qwen3-vl", "slerp", VISION),
    ("gemma3", "slerp", VISION[:1]),
    ("mistral3", "linear", VISION),
    ("llava", "linear", VISION),
    ("t5", "linear", ("encoder", "decoder", "shared")),
    ("t5", "slerp", ("decoder",)),
    ("t5", "passthrough", ("decoder",)),
    ("whisper", "slerp", ("encoder",)),
    ("whisper", "linear", ("encoder", "decoder")),
    ("bart", "linear", ("model.encoder.layers", "model.decoder.layers", "default")),
    ("llama", "linear", ("default",)),
]
# A model of several modalities, the language model merged into it, and how that one's names become the other's.
TOGETHER = [
    ("qwen2.5-vl", "qwen2", "model.", "model."),
    ("qwen3-vl", "qwen3", "model.language_model.", "model."),
    ("gemma3", "gemma3-text", "language_model.", ""),
    ("mistral3", "mistral", "language_model.", ""),
    ("llava", "llama", "language_model.", ""),
]


def make(folder, name, seed):
    architecture, settings = MODELS[name]
    of = getattr(transformers, architecture)
    model = of(of.config_class(**settings))
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.05)
    model.save_pretrained(folder)


def tensors(folder):
    return {name: tensor for file in Path(folder).glob("*.safetensors") for name, tensor in load_file(file).items()}


def config(method, modules, a, b):
    """Both models in every module; of passthrough layers of both, one on the other."""
    lines = [f"merge_method: {method}", f"base_model: {a}", "modules:"]
    for module in modules:
        lines.append(f"  {module}:")
        if method == "passthrough":
            ranges = [(a, 0, 2), (b, 1, 3)]
            slices = [f"    - sources: [{{model: {model}, layer_range: [{low}, {high}]}}]" for model, low, high in ranges]
            lines += ["    slices:", *slices]
            continue
        lines.append("    parameters: {t: [0.1, 0.9]}")
        models = [f"    - {{model: {model}, parameters: {{weight: {weight}}}}}" for model, weight in ((a, 0.3), (b, 0.6))]
        lines += ["    models:", *models]
    return "\n".join(lines) + "\n"


def merge(command, file, out):
    ended = subprocess.run([*command, file, out], capture_output=True, text=True)
    if ended.returncode:
        return None, ended.stderr.strip().splitlines()[-1]
    return tensors(out), None


def distance(a, b):
    return (a.double() - b.double()).abs().max().item()


def loading_problems(out):
    architecture = json.loads((out / "config.json").read_text())["architectures"][0]
    _, info = getattr(transformers, architecture).from_pretrained(out, output_loading_info=True)
    return {key: sorted(keys)[:3] for key, keys in info.items() if keys}


def check_case(folder, case, mergeforge, mergekit):
    name, method, modules = case
    donor = tensors(folder / f"{name}-a")
    file = folder / "config.yml"
    file.write_text(config(method, modules, folder / f"{name}-a", folder / f"{name}-b"))
    for tool in ("ours", "theirs"):
        shutil.rmtree(folder / tool, ignore_errors=True)
    ours, refusal = merge([mergeforge, "merge", "-q"], file, folder / "ours")
    if ours is None:
        return [f"refused: {refusal}"]
    wrong = [f"lost {name}" for name in donor.keys() - ours.keys()]
    wrong += [f"loading: {problem}" for problem in [loading_problems(folder / "ours")] if problem]
    if not mergekit:
        return wrong
    theirs, refusal = merge([mergekit, "--no-copy-tokenizer"], file, folder / "theirs")
    if theirs is None:
        print(f"    mergekit refuses: {refusal}")
        return wrong
    both = ours.keys() & theirs.keys()
    print(f"    mergekit writes {len(theirs)} of {len(ours)} tensors; {len(both)} by the same name")
    far = [key for key in both if ours[key].shape != theirs[key].shape or distance(ours[key], theirs[key]) > CLOSE]
    return wrong + [f"other than mergekit's: {key}" for key in far]


def check_together(folder, whole, part, prefix, own_prefix, mergeforge):
    a, b = folder / f"{whole}-a", folder / f"{part}-b"
    file = folder / "config.yml"
    file.write_text(config("linear", ["text_decoder"], a, b))
    shutil.rmtree(folder / "ours", ignore_errors=True)
    ours, refusal = merge([mergeforge, "merge", "-q"], file, folder / "ours")
    if ours is None:
        return [f"refused: {refusal}"]
    donor, other = tensors(a), tensors(b)
    wrong = [f"lost {name}" for name in donor.keys() - ours.keys()]
    wrong += [f"loading: {problem}" for problem in [loading_problems(folder / "ours")] if problem]
    merged = 0
    for name, tensor in donor.items():
        own = own_prefix + name.removeprefix(prefix) if name.startswith(prefix) else name
        expected = tensor.double()
        if own in other:
            merged += 1
            expected = (0.3 * expected + 0.6 * other[own].double()) / 0.9
        if distance(ours[name], expected) > CLOSE:
            wrong.append(f"wrong: {name}")
    print(f"    {merged} of the {len(other)} tensors of the language model are merged by name")
    return wrong if merged > len(other) - 2 else [*wrong, "too few tensors were merged"]


def main():
    mergeforge, mergekit = Path(sys.argv[1]).resolve(), next(iter(sys.argv[2:]), None)
    transformers.logging.set_verbosity_error()
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for name in MODELS:
            for seed, letter in enumerate("ab"):
                make(folder / f"{name}-{letter}", name, seed)
        checks = [(" ".join([case[0], case[1], *case[2]]), check_case, (case, mergeforge, mergekit)) for case in CASES]
        checks += [(f"{names[1]} into {names[0]}", check_together, (*names, mergeforge)) for names in TOGETHER]
        for title, check, arguments in checks:
            print(title)
            wrong = check(folder, *arguments)
            print("    " + ("good" if not wrong else "; ".join(wrong[:5])))
            failures += bool(wrong)
    print(f"{failures} of {len(CASES) + len(TOGETHER)} are wrong")
    sys.exit(failures > 0)


if __name__ == "__main__":
    main()

"""Adapters of every kind that PEFT makes, added by mergeforge, beside PEFT's own forward pass.

    python tools/check_adapters.py target/debug/mergeforge

It needs torch, transformers and peft. For each kind a tiny random model gets a random adapter; the logits of the model under PEFT
are compared with those of the folder that a merge of `BASE+ADAPTER` wrote, loaded as any model. Then adapters are extracted from
a model and its base, loaded by PEFT, and compared with the model.
"""

import sys
import tempfile
import warnings
from pathlib import Path

from loading import CLOSE, Wrong, distance, load, logits  # isort: skip; before transformers, for which it sets the environment

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MixtralConfig,
    MixtralForCausalLM,
)

from measuring import succeed
from mergekit_adapters import load_adapted

warnings.filterwarnings("ignore")

VOCABULARY = 64
IDS = list(range(2, 34))


def llama(tied=False, bias=True):
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            attention_bias=bias,
            tie_word_embeddings=tied,
        )
    )


def gpt2():
    config = GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=VOCABULARY, n_positions=32)
    config.bos_token_id = config.eos_token_id = 0
    return GPT2LMHeadModel(config)


def mixtral():
    return MixtralForCausalLM(
        MixtralConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            num_local_experts=4,
        )
    )


def llava():
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8
    )
    text = llama().config
    return LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, image_token_index=1))


def tied():
    return llama(tied=True)


ATTENTION = ["q_proj", "v_proj"]
# What each kind is: the model, and the adapter's settings.
KINDS = {
    "plain": (llama, {"target_modules": ATTENTION}),
    "plain, as .bin": (llama, {"target_modules": ATTENTION}),
    "all linear": (llama, {"target_modules": "all-linear", "lora_alpha": 3}),
    "rsLoRA": (llama, {"target_modules": ATTENTION, "use_rslora": True}),
    "patterns": (
        llama,
        {
            "target_modules": ATTENTION,
            "rank_pattern": {"q_proj": 2, r"layers\.1\.self_attn\.v_proj": 6},
            "alpha_pattern": {"model.layers.0.self_attn.q_proj": 5, "v_proj": 1},
        },
    ),
    "DoRA": (llama, {"target_modules": [*ATTENTION, "embed_tokens", "down_proj"], "use_dora": True}),
    "bias all": (llama, {"target_modules": ATTENTION, "bias": "all"}),
    "bias lora_only": (llama, {"target_modules": ATTENTION, "bias": "lora_only"}),
    "lora_bias": (llama, {"target_modules": ATTENTION, "lora_bias": True}),
    "saved modules": (
        llama,
        {"target_modules": ATTENTION, "modules_to_save": ["lm_head", "embed_tokens", "input_layernorm"]},
    ),
    "tokens": (llama, {"target_modules": ATTENTION, "trainable_token_indices": [5, 3, 9]}),
    "tokens, tied": (tied, {"target_modules": ATTENTION, "trainable_token_indices": {"embed_tokens": [7, 2]}}),
    "embedding": (llama, {"target_modules": ["embed_tokens", "lm_head"]}),
    "embedding, tied": (tied, {"target_modules": ["embed_tokens"]}),
    "head, tied": (tied, {"target_modules": ["lm_head"]}),
    "both, tied": (tied, {"target_modules": ["embed_tokens", "lm_head"]}),
    "both as one, tied": (tied, {"target_modules": ["embed_tokens", "lm_head"], "ensure_weight_tying": True}),
    "saved, tied": (tied, {"target_modules": ATTENTION, "modules_to_save": ["embed_tokens"]}),
    "saved as one, tied": (
        tied,
        {"target_modules": ATTENTION, "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ),
    "GPT-2": (gpt2, {"target_modules": ["c_attn", "c_proj", "wte"], "fan_in_fan_out": True}),
    "GPT-2 square": (gpt2, {"target_modules": ["attn.c_proj"], "fan_in_fan_out": True}),
    "GPT-2 DoRA": (gpt2, {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True, "use_dora": True}),
    "experts": (
        mixtral,
        {
            "target_modules": ["q_proj"],
            "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
        },
    ),
}


def randomise(model):
    """An adapter as after a training: nothing of it is 0."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and ("ensure" not in name):
            noise = torch.randn(parameter.shape, generator=generator) * 0.1
            with torch.no_grad():
                parameter.add_(noise * (parameter.abs().mean() if "magnitude" in name else 1))


def keep_experts_as_they_are(model, folder):
    """Writes the weights with the names that the modules have: transformers would store the experts one by one."""
    model.config.save_pretrained(folder)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "model.safetensors")


def added(mergeforge, folder, name, make, settings):
    """How far the logits of a merge are from PEFT's, and how much the adapter changes them."""
    torch.manual_seed(0)
    base = make()
    fused = "target_parameters" in settings
    if fused:
        (folder / "base").mkdir()
        keep_experts_as_they_are(base, folder / "base")
    else:
        base.save_pretrained(folder / "base")
    before = logits(base, IDS)

    def again(saved):
        if not fused:
            return load(saved)
        model = make()
        model.load_state_dict(load_file(saved / "model.safetensors"))
        return model

    settings = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, **settings}
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **settings))
    randomise(model)
    model.save_pretrained(folder / "adapter", safe_serialization=not name.endswith(".bin"))
    # As PEFT itself reads it again.
    expected = logits(PeftModel.from_pretrained(again(folder / "base"), folder / "adapter"), IDS)
    config = folder / "config.yaml"
    config.write_text(
        "merge_method: passthrough\nmodels:\n"
        f"  - model: {{model: {{path: {folder / 'base'}}}, lora: {{path: {folder / 'adapter'}}}}}\n"
    )
    succeed([mergeforge, "merge", config, folder / "out", "--device", "cpu"])
    return distance(logits(again(folder / "out"), IDS), expected), distance(before, expected)


def tune(model, seed):
    """Low ranks and a little noise on every matrix, noise on all else."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                low = [torch.randn(size, 3, generator=generator) for size in parameter.shape]
                parameter.add_(0.01 * low[0] @ low[1].T + 0.0005 * torch.randn(parameter.shape, generator=generator))
            else:
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))


def extracted(mergeforge, folder, make, flags):
    """What the extracted adapter lacks of the change of logits, under PEFT."""
    torch.manual_seed(0)
    base = make()
    kind = AutoModelForImageTextToText if make is llava else AutoModelForCausalLM
    base.save_pretrained(folder / "base")
    before = logits(base, IDS)
    tune(base, 2)
    base.save_pretrained(folder / "tuned")
    succeed([mergeforge, "extract-lora", folder / "tuned", folder / "base", folder / "adapter", "--quiet", *flags])
    with warnings.catch_warnings():
        # PEFT warns of names that it does not find.
        warnings.filterwarnings("error", message=".*missing adapter keys.*")
        adapted = PeftModel.from_pretrained(load(folder / "base", kind), folder / "adapter")
    after = logits(base, IDS)
    return ((after - logits(adapted, IDS)).norm() / (after - before).norm()).item()


def of_adapted(mergeforge, folder):
    """What the adapter of a model with an adapter, on a base with another, lacks of the change, beside the base's own under PEFT."""
    torch.manual_seed(0)
    llama().save_pretrained(folder / "base")
    for seed, name in enumerate(("own", "other")):
        model = get_peft_model(load(folder / "base"), LoraConfig(task_type="CAUSAL_LM", target_modules=ATTENTION, r=4))
        torch.manual_seed(seed)
        randomise(model)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.mul_(1 + seed)
        model.save_pretrained(folder / name)
    base, own, other = (folder / name for name in ("base", "own", "other"))
    succeed([mergeforge, "extract-lora", f"{base}+{other}", f"{base}+{own}", folder / "adapter", "--quiet", "--rank", "32"])
    before, after = (logits(load_adapted(base, adapter), IDS) for adapter in (own, other))
    both = load_adapted(base, own)
    both.load_adapter(folder / "adapter", "extracted")
    both.base_model.set_adapter(["default", "extracted"])
    return ((after - logits(both, IDS)).norm() / (after - before).norm()).item()


# What is extracted: the model, the flags, and how much of the change may be missing in the logits.
EXTRACTED = {
    "Llama, rank 8": (llama, ["--rank", "8", "--embeddings", "--save-changed"], 0.25),
    "Llama, whole": (llama, ["--rank", "64", "--embeddings", "--save-changed"], 1e-4),
    "Llama, error": (llama, ["--error", "0.02", "--embeddings", "--save-changed"], 0.1),
    "Llama, alpha": (llama, ["--rank", "32", "--alpha", "7", "--embeddings", "--save-changed"], 1e-4),
    "Llama, saved": (
        llama,
        ["--rank", "64", "--save-module", "embed_tokens", "--save-module", "lm_head", "--save-changed"],
        1e-4,
    ),
    "Llama, tied": (tied, ["--rank", "64", "--embeddings", "--save-changed"], 1e-4),
    "Llama, tied, saved": (tied, ["--rank", "64", "--save-module", "embed_tokens", "--save-changed"], 1e-4),
    "GPT-2, whole": (gpt2, ["--rank", "64", "--embeddings", "--save-changed"], 1e-4),
    "LLaVA, whole": (llava, ["--rank", "64", "--embeddings", "--save-changed"], 1e-4),
}


def main():
    mergeforge = Path(sys.argv[1]).resolve()
    only = sys.argv[2:]
    failed = []

    def check(name, look):
        """Looks, in a folder of its own; the words, and whether they are good."""
        if only and name not in only:
            return
        with tempfile.TemporaryDirectory() as folder:
            try:
                words, good = look(Path(folder))
            except Wrong as wrong:
                words, good = str(wrong), False
        print(f"{name:20} {words}")
        if not good:
            failed.append(name)

    for name, (make, settings) in KINDS.items():

        def look(folder, name=name, make=make, settings=settings):
            difference, change = added(mergeforge, folder, name, make, settings)
            good = difference < CLOSE and change >= 100 * CLOSE
            return f"changes logits by {change:.3f}, differs by {difference:.1e}", good

        check(name, look)

    def lacks(missing, most):
        return f"lacks {missing:.1e} of the change of logits", missing < most

    for name, (make, flags, most) in EXTRACTED.items():
        check(name, lambda folder, make=make, flags=flags, most=most: lacks(extracted(mergeforge, folder, make, flags), most))
    check("adapters of a base", lambda folder: lacks(of_adapted(mergeforge, folder), 1e-4))
    if failed:
        raise SystemExit(f"not as PEFT has it: {', '.join(failed)}")


if __name__ == "__main__":
    main()

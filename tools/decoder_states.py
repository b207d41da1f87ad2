#!/usr/bin/env python3
"""Records what transformers makes of made-up models: the hidden states that tests/all/decoder.rs asks of our own forward pass.

    python tools/decoder_states.py [--check]

It writes tests/all/decoder_states.json, or compares with it. Each model is one of the kinds below with three layers; its weights
follow from names and places (`value`), so that the test makes the same ones. Recorded are, before the second and the third
layer, the state of the last token and the mean over all tokens of a text. Needs torch and transformers.
"""

import argparse
import json
import pathlib
import sys

import numpy
import torch
import transformers

FILE = pathlib.Path(__file__).parent.parent / "tests/all/decoder_states.json"
# Apart by more than what the order of sums in float32 makes of values near 1.
CLOSE = 2e-5
TEXTS = [[1, 7, 3, 12, 12, 9, 0, 5, 2, 11, 4], [3, 8, 1]]
SIZES = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 13,
    "max_position_embeddings": 32,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
}
# What config.json says of each, as published models have it.
KINDS = {
    "llama": {"model_type": "llama", "rope_theta": 10000.0},
    "llama with biases and wide heads": {
        "model_type": "llama",
        "attention_bias": True,
        "mlp_bias": True,
        "head_dim": 10,
        "rope_theta": 5000.0,
    },
    "llama 3.1": {
        "model_type": "llama",
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8,
        },
    },
    "llama, stretched evenly": {
        "model_type": "llama",
        "rope_theta": 10000.0,
        "rope_scaling": {"type": "linear", "factor": 4.0},
    },
    "llama, pressed": {
        "model_type": "llama",
        "rope_theta": 10000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 0.5},
    },
    "llama, whose layer_types nothing reads": {
        "model_type": "llama",
        "rope_theta": 10000.0,
        "sliding_window": 2,
        "layer_types": ["sliding_attention"] * 3,
    },
    "llama, turned by the length": {
        "model_type": "llama",
        "rope_theta": 10000.0,
        "rope_scaling": {"rope_type": "dynamic", "factor": 4.0},
    },
    "mistral": {"model_type": "mistral", "rope_theta": 10000.0, "sliding_window": 3},
    "mistral without a window": {"model_type": "mistral", "rope_theta": 1000000.0, "sliding_window": None},
    "qwen 2": {
        "model_type": "qwen2",
        "rope_theta": 1000000.0,
        "use_sliding_window": True,
        "sliding_window": 4,
        "max_window_layers": 1,
    },
    "qwen 2, its window unused": {
        "model_type": "qwen2",
        "rope_theta": 1000000.0,
        "use_sliding_window": False,
        "sliding_window": 4,
        "max_window_layers": 1,
    },
    "qwen 2 with YaRN": {
        "model_type": "qwen2",
        "rope_theta": 10000.0,
        "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8},
    },
    "qwen 3": {"model_type": "qwen3", "rope_theta": 1000000.0, "head_dim": 8},
}


def value(name: str, count: int) -> numpy.ndarray:
    """The elements of a tensor: near 1 for norms, near 0 for others."""
    seed = sum((place + 1) * byte for place, byte in enumerate(name.encode()))
    steps = (numpy.arange(count, dtype=numpy.int64) * 7919 + seed * 104729) % 2003 - 1001
    around = 1.0 if "norm" in name else 0.0
    return (around + steps / 2500.0).astype(numpy.float32)


def states(config: dict) -> list:
    """Of each text and layer the last state and the mean."""
    made = transformers.AutoConfig.for_model(**config)
    model = transformers.AutoModelForCausalLM.from_config(made, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(value(name, parameter.numel())).reshape(parameter.shape))
        found = []
        for text in TEXTS:
            hidden = model(torch.tensor([text]), output_hidden_states=True).hidden_states
            found.append([[hidden[layer][0, -1].tolist(), hidden[layer][0].mean(0).tolist()] for layer in (1, 2)])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    arguments = parser.parse_args()
    kinds = []
    for kind, own in KINDS.items():
        config = SIZES | own
        rounded = [[[[float(f"{x:.6g}") for x in row] for row in rows] for rows in text] for text in states(config)]
        kinds.append({"kind": kind, "config": config, "states": rounded})
    made = {"made_by": f"transformers {transformers.__version__}", "texts": TEXTS, "kinds": kinds}
    if not arguments.check:
        lines = ",\n".join("  " + json.dumps(kind) for kind in kinds)
        FILE.write_text(f'{{\n"made_by": "{made["made_by"]}",\n"texts": {json.dumps(TEXTS)},\n"kinds": [\n{lines}\n]\n}}\n')
        return
    known = json.loads(FILE.read_text())
    for own, recorded in zip(kinds, known["kinds"], strict=True):
        assert own["config"] == recorded["config"], own["kind"]
        both = zip(own["states"], recorded["states"], strict=True)
        apart = max(numpy.abs(numpy.array(one) - numpy.array(other)).max() for one, other in both)
        if apart > CLOSE:
            sys.exit(f"{own['kind']}: apart by {apart}")


if __name__ == "__main__":
    main()

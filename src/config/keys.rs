//! The keys that are read, by the mappings that they stand in: for those who read configs, and for whoever describes them.

/// At the top.
pub const TOP: &[&str] = &[
    "merge_method",
    "models",
    "slices",
    "modules",
    "base_model",
    "dtype",
    "out_dtype",
    "parameters",
    "tokenizer_source",
    "tokenizer",
    "chat_template",
    "name",
];
/// Those at the top that say what is merged, of which there is one.
pub const WAYS: &[&str] = &["models", "slices", "modules"];
/// Of an entry of `modules`.
pub const MODULE: &[&str] = &["models", "slices", "parameters"];
/// Those of them that say what is merged.
pub const WAYS_OF_MODULE: &[&str] = &["models", "slices"];
/// Of an entry of `models`.
pub const LISTED_MODEL: &[&str] = &["model", "glob", "mask", "importance", "parameters"];
/// Of an entry of `slices`.
pub const SLICE: &[&str] = &["sources", "base_model", "parameters", "residual_weight"];
/// Of an entry of a slice's `sources`.
pub const SLICE_SOURCE: &[&str] = &["model", "layer_range", "mask", "importance", "parameters"];
/// Of a model at length.
pub const MODEL: &[&str] = &["model", "lora", "override_architecture"];
/// Of a model or an adapter in it.
pub const REVISIONED: &[&str] = &["path", "revision"];
/// Of `tokenizer`.
pub const TOKENIZER: &[&str] = &["source", "tokens", "pad_to_multiple_of"];
/// Of an entry of its `tokens`.
pub const TOKEN: &[&str] = &["source", "force"];
/// Of a token's row of nothing but 0.
pub const ROW_OF_ZEROS: &[&str] = &["kind"];
/// Of a token's row that is another token's.
pub const ROW_OF_TOKEN: &[&str] = &["kind", "model", "token", "token_id"];
/// Of a value with a filter.
pub const CONDITION: &[&str] = &["filter", "value"];
/// Of a value that is left open for a sweep, one of them.
pub const OPEN: &[&str] = &["range", "choice"];
/// The types of floats.
pub const DTYPES: &[&str] = &["bfloat16", "float16", "float32", "float64"];
/// At the top of a config of experts.
pub const MIXTURE: &[&str] =
    &["base_model", "experts", "gate_mode", "dtype", "experts_per_token", "shared_experts", "architecture"];
/// Those of them that only such a config has.
pub const OF_MIXTURE: &[&str] = &["experts", "gate_mode"];
/// Of an entry of `experts` or `shared_experts`.
pub const EXPERT: &[&str] =
    &["source_model", "positive_prompts", "negative_prompts", "noise_scale", "residual_scale"];

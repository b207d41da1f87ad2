//! The small files beside the weights: the edited config, the donor's tokenizer, the model card.

use std::sync::Arc;

use indexmap::IndexMap;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::folder::ModelFolder;
use super::limits::{COMPANION_BYTES_MAX, COMPANIONS_MAX, TOKENIZER_BYTES_MAX};
use super::sink::{Content, Sidecar};
use crate::dtype::Float;
use crate::error::{Error, Result};
use crate::text::escaped;

/// What a merge changes in the donor's `config.json`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ConfigEdits {
    /// The type of the output's tensors.
    pub dtype: Option<Float>,
    /// How many layers the output has.
    pub layers: Option<usize>,
    /// Whether the output's `lm_head` is its embedding.
    pub tied: Option<bool>,
}

/// Newer and older transformers' key for the type of the weights.
const DTYPE_KEYS: [&str; 2] = ["dtype", "torch_dtype"];
/// What architectures call their layer count.
const LAYER_KEYS: [&str; 4] = ["num_hidden_layers", "n_layer", "num_layers", "n_layers"];
/// Where a model of several modalities keeps the config of its language model.
const TEXT: &str = "text_config";

/// An object whose values are as they are written.
type Written = IndexMap<String, Box<RawValue>>;

/// The donor's `config.json`, given as its text, edited; all else stays as it is written, in its order.
///
/// The edits reach into `text_config`. A type or tie flag that does not stand at the top is added there; a layer count is only
/// changed where it stands, because no key for it fits all architectures.
///
/// # Panics
/// When the text is no JSON object: a source has seen that it is.
pub fn config_json(donor: &str, edits: &ConfigEdits) -> Vec<u8> {
    let mut config: Written = serde_json::from_str(donor).expect("the config was parsed when it was read");
    edit_present(&mut config, edits);
    // What is no object there is left alone.
    if let Some(text) = config.get_mut(TEXT)
        && let Ok(mut inner) = serde_json::from_str::<Written>(text.get())
    {
        edit_present(&mut inner, edits);
        // Line ends cannot stand within JSON's texts.
        *text = raw(pretty(&inner).replace('\n', "\n  "));
    }
    if let Some(dtype) = edits.dtype
        && !DTYPE_KEYS.iter().any(|key| config.contains_key(*key))
    {
        config.insert("torch_dtype".into(), json_text(dtype.name()));
    }
    if let Some(tied) = edits.tied {
        config.insert("tie_word_embeddings".into(), json_text(tied));
    }
    (pretty(&config) + "\n").into_bytes()
}

fn pretty(object: &Written) -> String {
    serde_json::to_string_pretty(object).expect("texts and JSON are JSON")
}

fn json_text(value: impl Into<Value>) -> Box<RawValue> {
    raw(value.into().to_string())
}

fn raw(json: String) -> Box<RawValue> {
    RawValue::from_string(json).expect("what was written as JSON is JSON")
}

fn text_config(config: &Map<String, Value>) -> Option<&Map<String, Value>> {
    config.get(TEXT)?.as_object()
}

fn edit_present(config: &mut Written, edits: &ConfigEdits) {
    let mut set = |key: &str, value: Option<Box<RawValue>>| {
        if let (Some(place), Some(value)) = (config.get_mut(key), value) {
            *place = value;
        }
    };
    for key in DTYPE_KEYS {
        set(key, edits.dtype.map(|dtype| json_text(dtype.name())));
    }
    for key in LAYER_KEYS {
        set(key, edits.layers.map(json_text));
    }
    set("tie_word_embeddings", edits.tied.map(json_text));
}

/// The keys whose arrays have one entry per layer (`layer_types` and the like), for `layers` layers. They no
/// longer fit when the output has other layers, and only the user can say what they should be.
pub fn per_layer_lists(config: &Map<String, Value>, layers: usize) -> Vec<String> {
    let lists = |config: &Map<String, Value>, prefix: &str| -> Vec<String> {
        let fits = |value: &Value| value.as_array().is_some_and(|list| list.len() == layers);
        config.iter().filter(|(_, value)| fits(value)).map(|(key, _)| format!("{prefix}{key}")).collect()
    };
    let mut names = lists(config, "");
    if let Some(text) = text_config(config) {
        names.extend(lists(text, "text_config."));
    }
    names
}

/// Files of a tokenizer: they may be large.
const TOKENIZERS: &[&str] = &[
    "added_tokens.json",
    "merges.txt",
    "normalizer.json",
    "sentencepiece.bpe.model",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
];
/// Files of the tokenizer, the processor or generation that are small.
const SETTINGS: &[&str] = &[
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
];
/// Vocabularies of tiktoken.
const VOCABULARY: &str = ".tiktoken";
/// The code of a model that brings its own.
const CODE: &str = ".py";
/// A folder of further templates.
pub(super) const TEMPLATES: &str = "additional_chat_templates";
/// What transformers reads there.
const TEMPLATE: &str = ".jinja";

/// `mergeforge.json`.
pub const MANIFEST: &str = "mergeforge.json";
/// The config of the merge.
pub const MERGE_CONFIG: &str = "mergekit_config.yml";
/// The model card.
pub const CARD: &str = "README.md";
/// The config of the model.
pub const MODEL_CONFIG: &str = "config.json";

/// Whether a file of this name is one that a merge writes beside the weights, in its output folder itself.
pub(super) fn is_sidecar(name: &str) -> bool {
    [MANIFEST, MERGE_CONFIG, CARD, MODEL_CONFIG].contains(&name) || is_companion(name)
}

/// Whether a file of this name is one that a merge writes in [`TEMPLATES`].
pub(super) fn is_template(name: &str) -> bool {
    has_ending(name, TEMPLATE)
}

fn is_companion(name: &str) -> bool {
    TOKENIZERS.contains(&name)
        || SETTINGS.contains(&name)
        || has_ending(name, VOCABULARY)
        || has_ending(name, CODE)
}

fn has_ending(name: &str, ending: &str) -> bool {
    name.strip_suffix(ending).is_some_and(|stem| !stem.is_empty())
}

/// The donor's tokenizer and generation files, to be copied byte for byte, sorted by name.
///
/// # Errors
/// Kind `Input`: the folder cannot be listed, the templates lie elsewhere, or there are too many.
pub fn companion_files(folder: &Arc<ModelFolder>) -> Result<Vec<Sidecar>> {
    let is_folder = |name: &str| folder.path.join(name).symlink_metadata().is_ok_and(|found| found.is_dir());
    let names = folder.names("")?;
    let mut files: Vec<String> =
        names.iter().filter(|name| is_companion(name) && !is_folder(name)).cloned().collect();
    // Through a link too, if it leads there.
    if names.contains(TEMPLATES) && folder.path.join(TEMPLATES).is_dir() {
        let templates = folder.names(TEMPLATES)?;
        files.extend(
            templates.iter().filter(|name| is_template(name)).map(|name| format!("{TEMPLATES}/{name}")),
        );
    }
    if files.len() > COMPANIONS_MAX {
        let refusal =
            format!("{} has {} files to be copied beside the weights", folder.path.display(), files.len());
        return Err(Error::input(refusal)
            .hint(format!("{COMPANIONS_MAX} are the most: remove what the model does not need")));
    }
    files.sort_unstable();
    let copy = |file: String| Sidecar { content: Content::CopyOf(folder.file(file.as_str())), file };
    Ok(files.into_iter().map(copy).collect())
}

/// Whether everything that [`companion_files`] names can be read; returns how many bytes that is.
///
/// # Errors
/// Kind `Input`: a file is missing behind its link, lies outside of the model, is no file, is too large, or may not be read.
pub fn check_companions(folder: &Arc<ModelFolder>) -> Result<u64> {
    let mut bytes = 0;
    for companion in companion_files(folder)? {
        if let Content::CopyOf(original) = &companion.content {
            let (_, metadata) = original.open()?;
            original.check_size(metadata.len(), companion_bytes_max(&companion.file))?;
            bytes += metadata.len();
        }
    }
    Ok(bytes)
}

/// The most bytes of a companion.
pub(super) fn companion_bytes_max(name: &str) -> u64 {
    let large = TOKENIZERS.contains(&name) || has_ending(name, VOCABULARY);
    if large { TOKENIZER_BYTES_MAX } else { COMPANION_BYTES_MAX }
}

/// What the model card tells.
#[derive(Debug, Clone, Copy, Default)]
pub struct ModelCard<'a> {
    /// The name of the output.
    pub title: &'a str,
    /// The merge method, as in the config.
    pub method: &'a str,
    /// A link to the paper that describes it.
    pub paper: Option<&'a str>,
    /// The base model as the user wrote it.
    pub base: Option<&'a str>,
    /// The merged models as the user wrote them.
    pub models: &'a [String],
    /// The version of mergeforge.
    pub version: &'a str,
    /// The seed of random masks.
    pub seed: u64,
    /// Those of all the models that are `org/name` on the Hub; the Hub links to them.
    pub hub_models: &'a [String],
    /// The config, as written.
    pub yaml: &'a str,
}

/// `README.md`: what was merged, how, and the config to do it again.
pub fn model_card(card: &ModelCard<'_>) -> String {
    let title = heading(card.title);
    let method = match card.paper {
        Some(paper) => format!("{} ([paper]({}))", code(card.method), one_line(paper)),
        None => code(card.method),
    };
    let base = card.base.map_or(String::new(), |base| format!("Base model: {}\n\n", code(base)));
    let models: Vec<String> = card.models.iter().map(|model| format!("- {}", code(model))).collect();
    let models = models.join("\n");
    let fence = "`".repeat(longest_run_of_backticks(card.yaml).max(2) + 1);
    let (version, seed, yaml) = (card.version, card.seed, card.yaml.trim_end());
    format!(
        "{}\
# {title}

This model was put together from the weights of other models, without training. It was written by
mergeforge from a mergekit config.

## How

Method: {method}

{base}Merged models:

{models}

## Config

Running mergeforge {version} on this config with `--random-seed {seed}` and the same inputs gives the
same weights, byte for byte.

{fence}yaml
{yaml}
{fence}
",
        front_matter(card.hub_models)
    )
}

/// The header that the Hub reads.
fn front_matter(hub_models: &[String]) -> String {
    let mut text = String::from("---\n");
    if !hub_models.is_empty() {
        text.push_str("base_model:\n");
        // A JSON string is a YAML string, whatever it holds.
        text.extend(hub_models.iter().map(|model| format!("- {}\n", Value::from(model.as_str()))));
    }
    text.push_str("library_name: transformers\ntags:\n- mergeforge\n- mergekit\n- merge\n---\n\n");
    text
}

/// Inline code that may hold backticks itself.
fn code(text: &str) -> String {
    let text = one_line(text);
    match longest_run_of_backticks(&text) {
        0 => format!("`{text}`"),
        run => {
            let fence = "`".repeat(run + 1);
            format!("{fence} {text} {fence}")
        }
    }
}

/// Text that is no markup in a heading.
fn heading(text: &str) -> String {
    let mut out = String::new();
    for c in one_line(text).chars() {
        if "\\`*_{}[]<>#|&!~".contains(c) {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

fn one_line(text: &str) -> String {
    escaped(&text.split_whitespace().collect::<Vec<_>>().join(" "))
}

fn longest_run_of_backticks(text: &str) -> usize {
    text.split(|c| c != '`').map(str::len).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;
    use std::fs;

    fn edited(donor: &Value, edits: ConfigEdits) -> String {
        String::from_utf8(config_json(&donor.to_string(), &edits)).unwrap()
    }

    fn edited_value(donor: &Value, edits: ConfigEdits) -> Value {
        serde_json::from_str(&edited(donor, edits)).unwrap()
    }

    const ALL: ConfigEdits = ConfigEdits { dtype: Some(Float::BF16), layers: Some(9), tied: Some(true) };

    #[test]
    fn edits_keep_the_order_and_everything_else() {
        let donor = r#"{"z": [1,
    2], "torch_dtype": "float32", "num_hidden_layers": 4, "rope": null, "a": 1e-05, "b": 1.0}"#;
        let expected = r#"{
  "z": [1,
    2],
  "torch_dtype": "bfloat16",
  "num_hidden_layers": 9,
  "rope": null,
  "a": 1e-05,
  "b": 1.0,
  "tie_word_embeddings": true
}
"#;
        assert_eq!(String::from_utf8(config_json(donor, &ALL)).unwrap(), expected);
        assert_eq!(config_json(expected, &ALL), expected.as_bytes());
    }

    #[test]
    fn integers_beyond_64_bits_keep_their_digits() {
        let donor = r#"{
  "seed": 123456789012345678901234567890,
  "text_config": {
    "n_layer": 3,
    "id": -18446744073709551616
  },
  "dtype": "bfloat16"
}
"#;
        let edits = ConfigEdits { layers: Some(4), ..ConfigEdits::default() };
        let edited = String::from_utf8(config_json(donor, &edits)).unwrap();
        assert_eq!(edited, donor.replace("\"n_layer\": 3", "\"n_layer\": 4"));
    }

    #[test]
    fn either_name_of_the_type_is_edited() {
        let dtype = ConfigEdits { dtype: Some(Float::F16), ..ConfigEdits::default() };
        assert_eq!(edited_value(&json!({"dtype": null}), dtype), json!({"dtype": "float16"}));
        assert_eq!(edited_value(&json!({}), dtype), json!({"torch_dtype": "float16"}));
        let both = json!({"dtype": "a", "torch_dtype": "b"});
        assert_eq!(edited_value(&both, dtype), json!({"dtype": "float16", "torch_dtype": "float16"}));
    }

    #[test]
    fn edits_reach_the_text_config() {
        let donor = json!({
            "dtype": "a", "text_config": {"dtype": "a", "n_layer": 3, "tie_word_embeddings": false}, "n_layers": 3
        });
        let text = json!({"dtype": "bfloat16", "n_layer": 9, "tie_word_embeddings": true});
        assert_eq!(
            edited_value(&donor, ALL),
            json!({"dtype": "bfloat16", "text_config": text, "n_layers": 9, "tie_word_embeddings": true})
        );
    }

    proptest! {
        /// serde_json needs its feature `float_roundtrip` for that.
        #[test]
        fn numbers_keep_their_value(number in -1e3_f64..1e3) {
            let donor: Value = serde_json::from_str(&format!(r#"{{"x":{number:?}}}"#)).unwrap();
            let text = edited(&donor, ConfigEdits::default());
            let written = text.trim_matches(|c: char| !c.is_ascii_digit() && c != '-');
            prop_assert_eq!(written.parse::<f64>().unwrap().to_bits(), number.to_bits());
        }
    }

    #[test]
    fn lists_of_one_entry_per_layer_are_named() {
        let config = json!({"layer_types": [1, 2], "eos": [1], "text_config": {"types": [1, 2]}, "n": 2});
        let names = per_layer_lists(config.as_object().unwrap(), 2);
        assert_eq!(names, ["layer_types", "text_config.types"]);
    }

    #[test]
    fn companions_are_found_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join(TEMPLATES)).unwrap();
        fs::create_dir(folder.path().join("vocab.json")).unwrap();
        for name in [
            "tokenizer.json",
            "qwen.tiktoken",
            "modeling_x.py",
            "additional_chat_templates/tool.jinja",
            "additional_chat_templates/id_rsa",
            ".py",
            "config.json",
            "README.md",
            "model.safetensors",
        ] {
            fs::write(folder.path().join(name), name).unwrap();
        }
        let folder = ModelFolder::open(folder.path()).unwrap();
        let files = companion_files(&folder).unwrap();
        let names: Vec<&str> = files.iter().map(|sidecar| sidecar.file.as_str()).collect();
        assert_eq!(
            names,
            ["additional_chat_templates/tool.jinja", "modeling_x.py", "qwen.tiktoken", "tokenizer.json"]
        );
        let Content::CopyOf(file) = &files[0].content else { panic!("companions are copied") };
        assert_eq!(file.read(100).unwrap(), names[0].as_bytes());
    }

    #[test]
    fn a_card_tells_what_was_merged() {
        let models = ["org/a".to_owned(), "./local".to_owned()];
        let card = model_card(&ModelCard {
            version: "1.2.3",
            seed: 7,
            title: "my\nmerge",
            method: "ties",
            paper: Some("https://arxiv.org/abs/2306.01708"),
            base: Some("org/base"),
            models: &models,
            hub_models: &models[..1],
            yaml: "a: |\n  ````\n\n",
        });
        assert!(card.starts_with("---\nbase_model:\n- \"org/a\"\nlibrary_name: transformers\n"));
        assert!(card.contains("# my merge\n"));
        assert!(card.contains("`--random-seed 7`"));
        assert!(card.contains("Method: `ties` ([paper](https://arxiv.org/abs/2306.01708))\n"));
        assert!(card.contains("Base model: `org/base`\n\nMerged models:\n\n- `org/a`\n- `./local`\n"));
        assert!(card.ends_with("`````yaml\na: |\n  ````\n`````\n"));
    }

    #[test]
    fn a_card_without_hub_models_has_a_valid_header() {
        let card = model_card(&ModelCard { title: "t", method: "we`ird", ..ModelCard::default() });
        assert!(card.starts_with("---\nlibrary_name: transformers\ntags:\n"));
        assert!(card.contains("Method: `` we`ird ``\n"));
    }
}

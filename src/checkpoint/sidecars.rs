//! The small files beside the weights: the edited config, the donor's tokenizer, the model card.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::file::open_regular;
use super::sink::{Content, Sidecar};
use crate::dtype::Float;
use crate::error::{Error, Result};

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

/// The donor's `config.json`, edited; all else stays, in its order.
///
/// The edits reach into `text_config`. A type or tie flag that does not stand at the top is added there; a layer count is only
/// changed where it stands, because no key for it fits all architectures.
pub fn config_json(donor: &Map<String, Value>, edits: &ConfigEdits) -> Vec<u8> {
    let mut config = donor.clone();
    edit_present(&mut config, edits);
    if let Some(Value::Object(text)) = config.get_mut(TEXT) {
        edit_present(text, edits);
    }
    if let Some(dtype) = edits.dtype
        && !DTYPE_KEYS.iter().any(|key| config.contains_key(*key))
    {
        config.insert("torch_dtype".into(), dtype.name().into());
    }
    if let Some(tied) = edits.tied {
        config.insert("tie_word_embeddings".into(), tied.into());
    }
    format!("{:#}\n", Value::Object(config)).into_bytes()
}

fn text_config(config: &Map<String, Value>) -> Option<&Map<String, Value>> {
    config.get(TEXT)?.as_object()
}

fn edit_present(config: &mut Map<String, Value>, edits: &ConfigEdits) {
    let mut set = |key: &str, value: Option<Value>| {
        if let (Some(place), Some(value)) = (config.get_mut(key), value) {
            *place = value;
        }
    };
    for key in DTYPE_KEYS {
        set(key, edits.dtype.map(|dtype| dtype.name().into()));
    }
    for key in LAYER_KEYS {
        set(key, edits.layers.map(Value::from));
    }
    set("tie_word_embeddings", edits.tied.map(Value::from));
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

/// Files that belong to the tokenizer, the processor or generation, by name.
const COMPANIONS: &[&str] = &[
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "merges.txt",
    "normalizer.json",
    "preprocessor_config.json",
    "processor_config.json",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
    "vocab.json",
    "vocab.txt",
];
/// Vocabularies of tiktoken, and the code of a model that brings its own.
const COMPANION_EXTENSIONS: [&str; 2] = ["tiktoken", "py"];
/// A folder of further templates.
const TEMPLATES: &str = "additional_chat_templates";

/// The donor's tokenizer and generation files, to be copied byte for byte, sorted by name.
///
/// # Errors
/// Kind `Input`: the folder cannot be listed.
pub fn companion_files(folder: &Path) -> Result<Vec<Sidecar>> {
    let mut files = list(folder, "", is_companion)?;
    if folder.join(TEMPLATES).is_dir() {
        files.extend(list(&folder.join(TEMPLATES), &format!("{TEMPLATES}/"), |_| true)?);
    }
    files.sort_by(|a, b| a.file.cmp(&b.file));
    Ok(files)
}

/// Whether everything that [`companion_files`] names can be read.
///
/// # Errors
/// Kind `Input`: a file is missing behind its link, is no file, or may not be read.
pub fn check_companions(folder: &Path) -> Result<()> {
    for companion in companion_files(folder)? {
        if let Content::CopyOf(path) = companion.content {
            open_regular(&path)?;
        }
    }
    Ok(())
}

fn is_companion(name: &str) -> bool {
    let extension = Path::new(name).extension().and_then(|extension| extension.to_str());
    COMPANIONS.contains(&name) || extension.is_some_and(|extension| COMPANION_EXTENSIONS.contains(&extension))
}

fn list(folder: &Path, prefix: &str, wanted: impl Fn(&str) -> bool) -> Result<Vec<Sidecar>> {
    let failed = |e| Error::reading(folder, &e);
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path: PathBuf = entry.map_err(failed)?.path();
        if let Some(name) = path.file_name().and_then(|name| name.to_str())
            && wanted(name)
            && !path.is_dir()
        {
            files.push(Sidecar { file: format!("{prefix}{name}"), content: Content::CopyOf(path) });
        }
    }
    Ok(files)
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
    let title = one_line(card.title);
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

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn longest_run_of_backticks(text: &str) -> usize {
    text.split(|c| c != '`').map(str::len).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn edited(donor: &Value, edits: ConfigEdits) -> String {
        String::from_utf8(config_json(donor.as_object().unwrap(), &edits)).unwrap()
    }

    fn edited_value(donor: &Value, edits: ConfigEdits) -> Value {
        serde_json::from_str(&edited(donor, edits)).unwrap()
    }

    const ALL: ConfigEdits = ConfigEdits { dtype: Some(Float::BF16), layers: Some(9), tied: Some(true) };

    #[test]
    fn edits_keep_the_order_and_everything_else() {
        let donor =
            json!({"z": [1, 2], "torch_dtype": "float32", "num_hidden_layers": 4, "rope": null, "a": 1e-5});
        let expected = "{\n  \"z\": [\n    1,\n    2\n  ],\n  \"torch_dtype\": \"bfloat16\",\n  \
                        \"num_hidden_layers\": 9,\n  \"rope\": null,\n  \"a\": 0.00001,\n  \
                        \"tie_word_embeddings\": true\n}\n";
        assert_eq!(edited(&donor, ALL).replace("1e-5", "0.00001").replace("1e-05", "0.00001"), expected);
        assert_eq!(edited_value(&donor, ConfigEdits::default()), donor);
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
            "config.json",
            "README.md",
            "model.safetensors",
        ] {
            fs::write(folder.path().join(name), name).unwrap();
        }
        let files = companion_files(folder.path()).unwrap();
        let names: Vec<&str> = files.iter().map(|sidecar| sidecar.file.as_str()).collect();
        assert_eq!(
            names,
            ["additional_chat_templates/tool.jinja", "modeling_x.py", "qwen.tiktoken", "tokenizer.json"]
        );
        let Content::CopyOf(path) = &files[0].content else { panic!("companions are copied") };
        assert_eq!(fs::read_to_string(path).unwrap(), names[0]);
        assert!(companion_files(&folder.path().join("none")).is_err());
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

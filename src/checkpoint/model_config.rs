//! The donor's `config.json`, edited as it is written.

use indexmap::IndexMap;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::dtype::{Dtype, float_name};

/// What a merge changes in the donor's `config.json`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ConfigEdits {
    /// The type of the output's tensors.
    pub dtype: Option<Dtype>,
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
        config.insert("torch_dtype".into(), json_text(float_name(dtype)));
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
        set(key, edits.dtype.map(|dtype| json_text(float_name(dtype))));
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn edited(donor: &Value, edits: ConfigEdits) -> String {
        String::from_utf8(config_json(&donor.to_string(), &edits)).unwrap()
    }

    fn edited_value(donor: &Value, edits: ConfigEdits) -> Value {
        serde_json::from_str(&edited(donor, edits)).unwrap()
    }

    const ALL: ConfigEdits = ConfigEdits { dtype: Some(Dtype::BF16), layers: Some(9), tied: Some(true) };

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
        let dtype = ConfigEdits { dtype: Some(Dtype::F16), ..ConfigEdits::default() };
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
}

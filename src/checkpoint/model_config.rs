//! The donor's `config.json`, edited as it is written.

use indexmap::IndexMap;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::dtype::{Dtype, float_name};

/// What a merge changes in the donor's `config.json`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ConfigEdits {
    /// The type of the output's tensors.
    pub dtype: Option<Dtype>,
    /// How many layers the output has, or single parts of it.
    pub counts: Vec<LayerCount>,
    /// Whether the output's `lm_head` is its embedding.
    pub tied: Option<bool>,
    /// Other keys, where they stand: what each becomes, or nothing where it is taken away.
    pub keys: IndexMap<String, Option<Value>>,
    /// Keys that the output has at the top in any case.
    pub added: IndexMap<String, Value>,
}

/// A number of layers that changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerCount {
    /// The part of the model: `text_decoder`, `vision_tower`, `audio_tower`, `encoder`, `decoder`, or `default` for all of it.
    pub part: &'static str,
    /// How many the donor has.
    pub from: usize,
    /// How many the output has.
    pub to: usize,
}

impl LayerCount {
    /// The sections of a config that may have the count, and what it is called there.
    fn places(&self) -> (&'static [&'static str], &'static [&'static str]) {
        match self.part {
            "vision_tower" => (&["vision_config", "visual"], &TOWER_LAYER_KEYS),
            "audio_tower" => (&["audio_config"], &TOWER_LAYER_KEYS),
            "encoder" => {
                (&[""], &["encoder_layers", "num_encoder_layers", "num_layers", "num_hidden_layers"])
            }
            "decoder" => (&[""], &["decoder_layers", "num_decoder_layers"]),
            _ => (&["", TEXT], &LAYER_KEYS),
        }
    }
}

/// Newer and older transformers' key for the type of the weights.
const DTYPE_KEYS: [&str; 2] = ["dtype", "torch_dtype"];
/// The part that is all of a model.
const WHOLE: &str = "default";
/// What architectures call their layer count.
const LAYER_KEYS: [&str; 4] = ["num_hidden_layers", "n_layer", "num_layers", "n_layers"];
/// What towers call theirs.
const TOWER_LAYER_KEYS: [&str; 4] = ["depth", "encoder_layers", "num_hidden_layers", "num_layers"];
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
    edit_section(&mut config, TEXT, |text| {
        edit_present(text, edits);
        // Some families' language models are tied where nothing is said.
        if let Some(tied) = edits.tied {
            text.insert("tie_word_embeddings".into(), json_text(tied));
        }
    });
    let of_all = matches!(edits.counts[..], [LayerCount { part: WHOLE, .. }]);
    for count in &edits.counts {
        let (sections, keys) = count.places();
        for section in sections {
            edit_section(&mut config, section, |config| edit_count(config, keys, count, of_all));
        }
    }
    if let Some(dtype) = edits.dtype
        && !DTYPE_KEYS.iter().any(|key| config.contains_key(*key))
    {
        config.insert("torch_dtype".into(), json_text(float_name(dtype)));
    }
    config.extend(edits.added.iter().map(|(key, value)| (key.clone(), json_text(value.clone()))));
    if let Some(tied) = edits.tied {
        config.insert("tie_word_embeddings".into(), json_text(tied));
    }
    (pretty(&config) + "\n").into_bytes()
}

/// Edits an object within the config, or the config itself where the key is empty. What is no object is left alone.
fn edit_section(config: &mut Written, key: &str, edit: impl FnOnce(&mut Written)) {
    if key.is_empty() {
        return edit(config);
    }
    if let Some(section) = config.get_mut(key)
        && let Ok(mut inner) = serde_json::from_str::<Written>(section.get())
    {
        edit(&mut inner);
        // Line ends cannot stand within JSON's texts.
        *section = raw(pretty(&inner).replace('\n', "\n  "));
    }
}

/// Changes a count of layers, and the lists that say the same of every layer. Unless it is that of all layers, a key may mean another
/// part: it is changed where it has the value that the donor's layers have.
fn edit_count(config: &mut Written, keys: &[&str], count: &LayerCount, of_all: bool) {
    if keys.iter().any(|key| config.contains_key(*key)) {
        resize_lists(config, count.from, count.to);
    }
    for key in keys {
        if let Some(value) = config.get_mut(*key)
            && (of_all || value.get().trim() == count.from.to_string())
        {
            *value = json_text(count.to);
        }
    }
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
    fn replace(config: &mut Written, key: &str, value: Option<Box<RawValue>>) {
        if let (Some(place), Some(value)) = (config.get_mut(key), value) {
            *place = value;
        }
    }
    let mut set = |key: &str, value: Option<Box<RawValue>>| replace(config, key, value);
    for key in DTYPE_KEYS {
        set(key, edits.dtype.map(|dtype| json_text(float_name(dtype))));
    }
    set("tie_word_embeddings", edits.tied.map(json_text));
    for (key, value) in &edits.keys {
        match value {
            Some(value) => replace(config, key, Some(json_text(value.clone()))),
            None => drop(config.shift_remove(key)),
        }
    }
}

/// Gives lists of one entry for each layer another length, where all entries are the same.
fn resize_lists(config: &mut Written, from: usize, to: usize) {
    for value in config.values_mut() {
        if let Ok(list) = serde_json::from_str::<Vec<Value>>(value.get())
            && list.len() == from
            && is_uniform(&list)
        {
            *value = json_text(vec![list[0].clone(); to]);
        }
    }
}

/// Whether more than one entry are all the same.
fn is_uniform(list: &[Value]) -> bool {
    list.len() > 1 && list.iter().all(|entry| *entry == list[0])
}

/// The keys whose arrays have one entry per layer (`layer_types` and the like), for `layers` layers, unless all entries are the
/// same. They no longer fit when the output has other layers, and only the user can say what they should be.
pub fn per_layer_lists(config: &Map<String, Value>, layers: usize) -> Vec<String> {
    let lists = |config: &Map<String, Value>, prefix: &str| -> Vec<String> {
        let fits =
            |value: &Value| value.as_array().is_some_and(|list| list.len() == layers && !is_uniform(list));
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

    fn edited(donor: &Value, edits: &ConfigEdits) -> String {
        String::from_utf8(config_json(&donor.to_string(), edits)).unwrap()
    }

    fn edited_value(donor: &Value, edits: &ConfigEdits) -> Value {
        serde_json::from_str(&edited(donor, edits)).unwrap()
    }

    /// A count that no config here has is changed all the same.
    fn to_layers(to: usize) -> Vec<LayerCount> {
        vec![LayerCount { part: WHOLE, from: 77, to }]
    }

    fn all() -> ConfigEdits {
        let keys = IndexMap::new();
        ConfigEdits {
            dtype: Some(Dtype::BF16),
            counts: to_layers(9),
            tied: Some(true),
            keys,
            added: IndexMap::new(),
        }
    }

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
        assert_eq!(String::from_utf8(config_json(donor, &all())).unwrap(), expected);
        assert_eq!(config_json(expected, &all()), expected.as_bytes());
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
        let edits = ConfigEdits { counts: to_layers(4), ..ConfigEdits::default() };
        let edited = String::from_utf8(config_json(donor, &edits)).unwrap();
        assert_eq!(edited, donor.replace("\"n_layer\": 3", "\"n_layer\": 4"));
    }

    #[test]
    fn either_name_of_the_type_is_edited() {
        let dtype = ConfigEdits { dtype: Some(Dtype::F16), ..ConfigEdits::default() };
        assert_eq!(edited_value(&json!({"dtype": null}), &dtype), json!({"dtype": "float16"}));
        assert_eq!(edited_value(&json!({}), &dtype), json!({"torch_dtype": "float16"}));
        let both = json!({"dtype": "a", "torch_dtype": "b"});
        assert_eq!(edited_value(&both, &dtype), json!({"dtype": "float16", "torch_dtype": "float16"}));
    }

    #[test]
    fn edits_reach_the_text_config() {
        let donor = json!({
            "dtype": "a", "text_config": {"dtype": "a", "n_layer": 3, "tie_word_embeddings": false}, "n_layers": 3
        });
        let text = json!({"dtype": "bfloat16", "n_layer": 9, "tie_word_embeddings": true});
        assert_eq!(
            edited_value(&donor, &all()),
            json!({"dtype": "bfloat16", "text_config": text, "n_layers": 9, "tie_word_embeddings": true})
        );
    }

    #[test]
    fn other_keys_are_replaced_where_they_stand_or_taken_away() {
        let donor =
            json!({"vocab_size": 3, "quantization_config": {"bits": 8}, "text_config": {"vocab_size": 3}});
        let keys =
            [("vocab_size", Some(json!(5))), ("quantization_config", None), ("eos_token_id", Some(json!(1)))];
        let keys = keys.map(|(key, value)| (key.to_string(), value)).into();
        let edited = edited_value(&donor, &ConfigEdits { keys, ..ConfigEdits::default() });
        assert_eq!(edited, json!({"vocab_size": 5, "text_config": {"vocab_size": 5}}));
    }

    #[test]
    fn counts_of_layers_are_changed_where_they_belong() {
        let donor = json!({
            "num_hidden_layers": 2, "encoder_layers": 2, "decoder_layers": 2, "num_decoder_layers": 2,
            "text_config": {"num_hidden_layers": 2, "layer_types": ["full", "full"], "odd": ["full", "half"]},
            "vision_config": {"depth": 2, "num_hidden_layers": 7, "types": ["a", "a"], "deep": {"depth": 2}},
        });
        let after = |part: &'static str, paths: &[&str], to: Value| {
            let edits =
                ConfigEdits { counts: vec![LayerCount { part, from: 2, to: 3 }], ..ConfigEdits::default() };
            let mut expected = donor.clone();
            expected["torch_dtype"] = Value::Null;
            for path in paths {
                *expected.pointer_mut(path).unwrap() = to.clone();
            }
            let mut edited = edited_value(&donor, &edits);
            edited["torch_dtype"] = Value::Null;
            for (list, entry) in [("/text_config/layer_types", "full"), ("/vision_config/types", "a")] {
                let list = edited.pointer_mut(list).unwrap();
                if list.as_array().unwrap().len() == 3 {
                    *list = json!([entry, entry]);
                }
            }
            assert_eq!(edited, expected, "{part}");
        };
        after("text_decoder", &["/num_hidden_layers", "/text_config/num_hidden_layers"], json!(3));
        after("vision_tower", &["/vision_config/depth"], json!(3));
        after("encoder", &["/num_hidden_layers", "/encoder_layers"], json!(3));
        after("decoder", &["/decoder_layers", "/num_decoder_layers"], json!(3));
        after("audio_tower", &[], json!(3));
    }

    #[test]
    fn lists_that_say_the_same_of_every_layer_grow_with_them() {
        let donor =
            json!({"num_hidden_layers": 2, "types": ["full", "full"], "odd": [1, 2], "three": [0, 0, 0]});
        let counts = vec![LayerCount { part: "default", from: 2, to: 3 }];
        let edited = edited_value(&donor, &ConfigEdits { counts, ..ConfigEdits::default() });
        let expected = json!({
            "num_hidden_layers": 3, "types": ["full", "full", "full"], "odd": [1, 2], "three": [0, 0, 0]
        });
        assert_eq!(edited, expected);
    }

    proptest! {
        /// serde_json needs its feature `float_roundtrip` for that.
        #[test]
        fn numbers_keep_their_value(number in -1e3_f64..1e3) {
            let donor: Value = serde_json::from_str(&format!(r#"{{"x":{number:?}}}"#)).unwrap();
            let text = edited(&donor, &ConfigEdits::default());
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

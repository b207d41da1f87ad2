//! What the manifest says of inputs: which bytes they were, and what of them was read.

use std::collections::{HashMap, HashSet};

use serde_json::{Value, json};

use super::Intermediate;
use crate::Prepared;
use crate::checkpoint::{Source, TOKENIZER};
use crate::error::Result;
use crate::input::{self, At};
use crate::limits::TOKENIZER_READ_BYTES_MAX;
use crate::plan::PlannedModel;

/// The tensors of a merge's sources, by what becomes of them.
struct Coverage {
    /// Those that are read.
    read: HashSet<At>,
    /// These, and those that belong to a tensor of the output and that its method has no use for: of models without a weight.
    planned: HashSet<At>,
}

impl Coverage {
    fn of(prepared: &Prepared) -> Self {
        let plan = &prepared.plan;
        let behind = |input: &usize| input::stored(&plan.inputs, *input);
        let planned =
            plan.tensors.iter().flat_map(|tensor| tensor.inputs().iter().flat_map(behind)).collect();
        Self { read: plan.stored(), planned }
    }

    /// How many tensors a source has, how many of them are read, and the names of the others: left out by the config, or without
    /// effect.
    fn json(&self, prepared: &Prepared, source: usize) -> Value {
        let (mut left_out, mut unused) = (Vec::new(), Vec::new());
        let tensors = prepared.sources[source].tensors();
        let all = tensors.len();
        for (tensor, info) in tensors.enumerate() {
            let at = At { source, tensor };
            if !self.planned.contains(&at) {
                left_out.push(info.name.as_str());
            } else if !self.read.contains(&at) {
                unused.push(info.name.as_str());
            }
        }
        left_out.sort_unstable();
        unused.sort_unstable();
        json!({ "all": all, "read": all - left_out.len() - unused.len(), "left_out": left_out, "unused": unused })
    }
}

/// Which bytes the models are, and their adapters, beside the names that the config calls them by; behind them the models of which
/// others are merged on the way. Of what is merged while it is read there is nothing but the name; of what was merged into a folder
/// first, which may be gone by now, there are its own inputs too.
///
/// # Errors
/// Kind `Input`: a tokenizer cannot be read.
pub(crate) fn models(prepared: &Prepared) -> Result<Vec<Value>> {
    records(prepared, None)
}

/// The same, and what of them is read.
///
/// # Errors
/// Kind `Input`: a tokenizer cannot be read.
pub(super) fn covered_models(prepared: &Prepared) -> Result<Vec<Value>> {
    records(prepared, Some(&Coverage::of(prepared)))
}

fn records(prepared: &Prepared, coverage: Option<&Coverage>) -> Result<Vec<Value>> {
    let named = |key: &str, name: &str, source: usize| {
        let mut found = named(key, name, &prepared.sources[source]);
        if let Some(coverage) = coverage {
            found["tensors"] = coverage.json(prepared, source);
        }
        found
    };
    let of = |source: usize, name: &str| -> Result<Value> {
        let result = prepared.results.get(&source);
        let mut found = match result {
            Some(result) if !result.is_in_folder => json!({ "model": name }),
            _ => named("model", name, source),
        };
        if result.is_some() {
            found["merged"] = true.into();
        }
        // Where vocabularies become one, they say which rows are whose.
        let file = prepared.sources[source].folder.file(TOKENIZER);
        if prepared.plan.tokenizer.vocabulary.is_some()
            && let Some(text) = file.read_if_sound(TOKENIZER_READ_BYTES_MAX)?
        {
            found["tokenizer_blake3"] = blake3::hash(&text).to_hex().as_str().into();
        }
        Ok(found)
    };
    let adapted = |model: &PlannedModel| -> Result<Value> {
        let mut found = of(model.source, &model.name)?;
        if let Some(adapter) = model.adapter {
            found["adapter"] = named("adapter", &prepared.sources[adapter].name, adapter);
        }
        Ok(found)
    };
    let of_stages = prepared.models_of_stages().map(|source| of(source, &prepared.sources[source].name));
    let mut all: Vec<Value> =
        prepared.plan.models.iter().map(adapted).chain(of_stages).collect::<Result<_>>()?;
    // Results of results have their inputs in common: only those of one name are compared.
    let mut places: HashMap<Option<String>, Vec<usize>> = HashMap::new();
    let name = |input: &Value| name_of(input).map(str::to_owned);
    all.iter().enumerate().for_each(|(place, input)| places.entry(name(input)).or_default().push(place));
    for input in results(prepared).flat_map(|result| &result.inputs) {
        let same_name = places.entry(name(input)).or_default();
        if !same_name.iter().any(|place| agree(&all[*place], input)) {
            same_name.push(all.len());
            let mut input = input.clone();
            // What was read of it there is no matter of this merge.
            input.as_object_mut().into_iter().for_each(|input| drop(input.shift_remove("tensors")));
            all.push(input);
        }
    }
    Ok(all)
}

/// The same of the files that say something of models' elements.
pub(crate) fn element_files(prepared: &Prepared) -> Vec<Value> {
    prepared.element_files().map(|file| named("path", &file.name, file)).collect()
}

/// The results of other documents that are read, in the order of the sources.
pub(super) fn results(prepared: &Prepared) -> impl Iterator<Item = &Intermediate> {
    (0..prepared.sources.len()).filter_map(|source| prepared.results.get(&source).map(|result| &**result))
}

fn named(key: &str, name: &str, source: &Source) -> Value {
    let mut found = source.provenance();
    found[key] = name.into();
    found
}

/// Whether two entries can be about the same bytes: what both know of them is the same. How much of them was read is no matter, and a
/// SHA-256 may be known to one alone.
pub(crate) fn agree(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Object(one), Value::Object(other)) => {
            one.keys().chain(other.keys()).all(|key| match (key.as_str(), one.get(key), other.get(key)) {
                ("tensors" | "sha256_verified", _, _) | ("sha256", None, _) | ("sha256", _, None) => true,
                (_, Some(one), Some(other)) => agree(one, other),
                _ => false,
            })
        }
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| agree(one, other))
        }
        _ => one == other,
    }
}

/// The name of an input in a manifest.
pub(crate) fn name_of(input: &Value) -> Option<&str> {
    input.get("model").or(input.get("path")).or(input.get("adapter"))?.as_str()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_agree_by_what_both_know() {
        let file = |more: Value| {
            let mut file = json!({ "file": "a", "bytes": 4, "header_blake3": "00" });
            more.as_object().unwrap().iter().for_each(|(key, value)| file[key] = value.clone());
            json!({ "model": "m", "files": [file] })
        };
        let plain = file(json!({}));
        let hashed = file(json!({ "sha256": "11", "sha256_verified": true }));
        assert!(agree(&plain, &hashed) && agree(&hashed, &plain));
        assert!(agree(&hashed, &file(json!({ "sha256": "11", "sha256_verified": false }))));
        assert!(!agree(&hashed, &file(json!({ "sha256": "12", "sha256_verified": true }))));
        assert!(!agree(&plain, &file(json!({ "bytes": 5 }))));
        assert!(!agree(&plain, &file(json!({ "revision": "0" }))));
        assert!(!agree(&plain, &json!({ "model": "m", "files": [] })));
        let mut covered = plain.clone();
        covered["tensors"] = json!({ "all": 1 });
        assert!(agree(&plain, &covered));
    }
}

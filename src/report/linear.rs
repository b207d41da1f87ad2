//! A merge by position, spelled out as a config of mergekit's `linear`: each model with its weight.

use std::fmt::Write;

use serde_json::Value;

use crate::Prepared;
use crate::config::{Inputs, ModelRef, TokenizerSource};
use crate::dtype::float_name;

/// The config that gives the same weight files, where the plan knows the weight of each model. Weights are not normalised: they
/// are the numbers that the method began with, so that what is made of them is the same to the last bit.
pub(super) fn linear_config(prepared: &Prepared) -> Option<String> {
    let (config, weights) = (&prepared.config, prepared.plan.weights.as_ref()?);
    let Inputs::Models(models) = &config.inputs else { return None };
    let mut text =
        String::from("# The merge of mergekit_config.yml, with the weight of every model written out.\n");
    text += "merge_method: linear\nparameters:\n  normalize: true\nmodels:\n";
    for (model, weight) in models.iter().zip(weights) {
        let model = reference(&model.model.value);
        let _ = writeln!(text, "  - model: {model}\n    parameters:\n      weight: {weight}");
    }
    let mut key = |key: &str, value: Option<String>| {
        let _ = value.map(|value| writeln!(text, "{key}: {value}"));
    };
    key("base_model", config.base_model.as_ref().map(|base| reference(&base.value)));
    key("dtype", config.dtype.as_ref().map(|dtype| float_name(dtype.value).into()));
    key("out_dtype", config.out_dtype.as_ref().map(|dtype| float_name(dtype.value).into()));
    let tokenizer = |source: &TokenizerSource| match source {
        TokenizerSource::Union => "union".into(),
        TokenizerSource::Base => "base".into(),
        TokenizerSource::Model(model) => reference(model),
    };
    key("tokenizer_source", config.tokenizer.as_ref().map(|wish| tokenizer(&wish.source)));
    Some(text)
}

/// A model as YAML. A JSON string is a YAML string, whatever it holds.
fn reference(model: &ModelRef) -> String {
    let text = |text: &str| Value::from(text).to_string();
    let lora = model.lora.as_ref();
    let paths = std::iter::once(&model.path).chain(lora.map(|lora| &lora.path));
    if paths.into_iter().all(|path| !path.contains(['@', '+'])) {
        return text(&model.to_string());
    }
    let place = |path: &str, revision: Option<&String>| {
        let revision = revision.map(|revision| format!(", revision: {}", text(revision)));
        format!("{{path: {}{}}}", text(path), revision.unwrap_or_default())
    };
    let lora = lora.map(|lora| format!(", lora: {}", place(&lora.path, lora.revision.as_ref())));
    format!("{{model: {}{}}}", place(&model.path, model.revision.as_ref()), lora.unwrap_or_default())
}

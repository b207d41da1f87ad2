//! A result that is there already, compared with what a plan would make: whether it can stand for it.

use std::path::Path;

use indexmap::IndexMap;
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::{Value, json};

use super::inputs::{self, agree, name_of};
use super::manifest::OptionsRecord;
use super::{config_name, model_files};
use crate::Prepared;
use crate::cache::read_small;
use crate::checkpoint::{Content, MANIFEST, ModelFolder, Shard, Sidecar, Source};
use crate::error::Result;
use crate::files;
use crate::limits::MANIFEST_BYTES_MAX;
use crate::plan::{Choices, PartlyHeldPolicy, Tensor};
use crate::text::few;

/// So many inputs or files are named; the rest is counted.
const NAMED_MAX: usize = 3;

/// What a manifest says of how its merge was made.
#[derive(Deserialize)]
struct Recorded {
    mergeforge: String,
    seed: u64,
    #[serde(default)]
    options: Value,
    inputs: Vec<Value>,
    element_files: Vec<Value>,
    tensors: IndexMap<String, IgnoredAny>,
}

/// What becomes of tensors that only some of the models have, by its word in a manifest; the usual first.
const POLICIES: [(PartlyHeldPolicy, &str); 3] = [
    (PartlyHeldPolicy::Copied, "copied"),
    (PartlyHeldPolicy::LeftOut, "left out"),
    (PartlyHeldPolicy::Merged, "merged"),
];

impl OptionsRecord {
    /// Choices with these among them.
    pub fn choices(&self, others: &Choices) -> Choices {
        let policy = POLICIES.iter().find(|(_, word)| *word == self.tensors_of_some_models);
        let partly_held = policy.unwrap_or(&POLICIES[0]).0;
        Choices { truncate_embeddings: self.truncated_embeddings, partly_held, ..*others }
    }
}

/// The options that change what is merged, beside the seed, for the manifest.
pub(super) fn options(prepared: &Prepared) -> OptionsRecord {
    let choices = &prepared.choices;
    let policy = POLICIES.iter().find(|(policy, _)| *policy == choices.partly_held);
    let partly_held = policy.unwrap_or(&POLICIES[0]).1;
    OptionsRecord {
        truncated_embeddings: choices.truncate_embeddings,
        tensors_of_some_models: partly_held.into(),
    }
}

/// The manifest in a folder, if there is one.
pub(crate) fn manifest_in<T: DeserializeOwned>(folder: &Path) -> Option<T> {
    serde_json::from_slice(&read_small(&folder.join(MANIFEST), MANIFEST_BYTES_MAX).ok()?).ok()
}

/// What of the result in a folder is not what a plan would make now, as far as its manifest and the sizes of its files show; nothing
/// if it can stand for that. `copied` says whether the donor's files would be there.
///
/// # Errors
/// Kind `Input`: what says which bytes an input is cannot be read.
pub(crate) fn differences(folder: &Path, prepared: &Prepared, copied: bool) -> Result<Vec<String>> {
    let Some(recorded) = manifest_in::<Recorded>(folder) else {
        return Ok(vec![format!("it has no {MANIFEST} that says what it was made of")]);
    };
    let Prepared { config, plan, .. } = prepared;
    let mut found = Vec::new();
    let version = env!("CARGO_PKG_VERSION");
    if recorded.mergeforge != version {
        found.push(format!("mergeforge {} made it, and this is {version}", recorded.mergeforge));
    }
    let name = config_name(prepared);
    let recipe = read_small(&folder.join(name), config.source.len() as u64);
    if !recipe.is_ok_and(|recipe| recipe == config.source.as_bytes()) {
        found.push(format!("its recipe ({name}) is another one"));
    }
    if recorded.seed != plan.seed {
        found.push(format!("its seed is {}, not {}", recorded.seed, plan.seed));
    }
    found.extend(other_options(&recorded.options, &json!(options(prepared))));
    let inputs = [inputs::models(prepared)?, inputs::element_files(prepared)].concat();
    let recorded_inputs = [recorded.inputs, recorded.element_files].concat();
    let mut others = named_beyond(&inputs, &recorded_inputs);
    // What is merged anew is another input, and what that is made of in the end is not known yet.
    if !prepared.sources.iter().any(Source::is_planned) {
        let gone = named_beyond(&recorded_inputs, &inputs);
        others.extend(gone.into_iter().filter(|name| !others.contains(name)).collect::<Vec<_>>());
    }
    // What no hash identifies is the same if nobody has changed it since.
    if let Ok(made) = files::metadata(&folder.join(MANIFEST)).and_then(|found| found.modified()) {
        let changed = prepared.sources.iter().filter(|source| source.changed_after(made));
        let changed: Vec<String> =
            changed.map(|source| source.name.clone()).filter(|name| !others.contains(name)).collect();
        others.extend(changed);
    }
    if !others.is_empty() {
        found.push(format!("inputs are not those that it was made of: {}", few(&others, NAMED_MAX)));
    }
    let is_there = |tensor: &Tensor| recorded.tensors.contains_key(&*tensor.name);
    if recorded.tensors.len() != plan.tensors.len() || !plan.tensors.iter().all(is_there) {
        found.push("it has other tensors".into());
    }
    let size = |shard: &Shard| files::metadata(&folder.join(&shard.file)).ok().map(|found| found.len());
    let mut wrong: Vec<String> = plan
        .layout
        .shards
        .iter()
        .filter(|shard| size(shard) != Some(shard.bytes))
        .map(|shard| shard.file.clone())
        .collect();
    let wanted = model_files(prepared, copied);
    // What is merged anew is copied of files that are not there yet.
    let known = !prepared.sources.iter().any(Source::is_planned);
    let is_wrong =
        |file: &&Sidecar| !files::is_file(&folder.join(&file.file)) || known && !holds(folder, file);
    wrong.extend(wanted.iter().filter(is_wrong).map(|file| file.file.clone()));
    if !wrong.is_empty() {
        found.push(format!("files are missing or hold something else: {}", few(&wrong, NAMED_MAX)));
    }
    let is_wanted = |file: &Sidecar| wanted.iter().any(|wanted| wanted.file == file.file);
    let beyond =
        model_files(prepared, true).into_iter().filter(|file| !is_wanted(file)).map(|file| file.file);
    let beyond: Vec<String> = beyond.filter(|file| files::is_file(&folder.join(file))).collect();
    if !beyond.is_empty() {
        found.push(format!("files are there that would not be: {}", few(&beyond, NAMED_MAX)));
    }
    Ok(found)
}

/// Whether a folder holds a file with this content.
fn holds(folder: &Path, file: &Sidecar) -> bool {
    match &file.content {
        Content::Bytes(bytes) => {
            read_small(&folder.join(&file.file), bytes.len() as u64).is_ok_and(|found| found == *bytes)
        }
        Content::CopyOf(of) => ModelFolder::open(folder)
            .and_then(|folder| folder.file(file.file.as_str()).same_content(of, u64::MAX))
            .unwrap_or(false),
    }
}

/// The options of which a manifest says something else.
fn other_options(recorded: &Value, now: &Value) -> Vec<String> {
    let Some(now) = now.as_object() else { return Vec::new() };
    let others = now.iter().filter(|(name, value)| recorded.get(name) != Some(value));
    let shown = |(name, value): (&String, &Value)| match recorded.get(name) {
        Some(other) => format!("its {name} is {other}, not {value}"),
        None => format!("its {MANIFEST} does not say what its {name} is"),
    };
    others.map(shown).collect()
}

/// The names of inputs that are not among these.
fn named_beyond(inputs: &[Value], known: &[Value]) -> Vec<String> {
    let others = inputs.iter().filter(|input| !known.iter().any(|known| agree(known, input)));
    others.filter_map(name_of).map(str::to_owned).collect()
}

//! Tensors of a merge made again, on the processor, from the inputs that the manifest names.

use std::collections::HashMap;
use std::time::Instant;

use serde_json::{Value, json};

use super::{Findings, Output, Problem, short};
use crate::backend::devices::processor;
use crate::checkpoint::Reads;
use crate::error::{Error, Result};
use crate::hub::Remote;
use crate::limits::YAML_BYTES_MAX;
use crate::plan::Choices;
use crate::report::inputs::{self, agree, name_of};
use crate::stages::{Visit, Way};
use crate::stream::{self, Budget, Deposit, Watch, Work};
use crate::text::quoted;
use crate::timeline::Timeline;
use crate::{AnyConfig, Prepared, Written, checkpoint, open_device, prepare_config, prepare_moe, verified};

/// Where what is made again goes: its hash is all that counts.
struct Nowhere;

impl Deposit for Nowhere {
    fn write_at(&self, _tensor: usize, _offset: u64, _bytes: &[u8]) -> Result<Option<Instant>> {
        Ok(None)
    }
}

/// Documents on the way are read with the result, or it cannot be made again from its inputs alone.
struct AllFused;

impl Visit for AllFused {
    fn folder(&mut self, name: &str, _prepared: &Prepared, why: &str) -> Result<Way> {
        let what = format!(
            "`{name}` was merged into a folder first ({why}): its tensors are no more than on the way"
        );
        Err(Error::config(what).hint("merge the config again, and compare with `mergeforge diff`"))
    }
}

/// Plans the merge of a folder again, from the config in it and the inputs that this names.
///
/// # Errors
/// The config is not that of the merge, or its inputs are not where they were.
pub fn plan_again(output: &Output, remote: Remote) -> Result<Prepared> {
    let manifest = &output.manifest;
    let file = output.folder.file(manifest.config.file.as_str());
    let text = file.read(YAML_BYTES_MAX as u64)?;
    if checkpoint::sha256_of(&text) != manifest.config.sha256 {
        let what = format!("{}: it is not the config of the merge", file.path().display());
        return Err(Error::input(what).in_file(&file.path()).hint("take a whole copy, or merge again"));
    }
    let name = file.path().display().to_string();
    let text = String::from_utf8(text).map_err(|_| Error::input(format!("{name}: not a text in UTF-8")))?;
    // What refuses models changes no byte of those that are merged.
    let choices = Choices { seed: manifest.seed, allow_crimes: true, remote, ..Choices::USUAL };
    let choices = manifest.options.choices(&choices);
    let planned = match (Written { name, text }).any_or_space()?.1 {
        AnyConfig::Mixture(config) => prepare_moe(&config, true, &choices),
        AnyConfig::Merges(stages) => match stages.single() {
            Ok(config) => prepare_config(config, &choices),
            Err(stages) => stages.survey(&choices, false, &mut AllFused).and_then(|planned| {
                planned.ok_or_else(|| {
                    Error::config("the config has several results: this folder is one of them")
                        .in_file(&file.path())
                })
            }),
        },
    };
    planned.map_err(|error| match error.hint {
        Some(_) => error,
        None => error.hint(
            "inputs are looked up as in the merge: run this where the merge ran, with its models where they were",
        ),
    })
}

/// What of the inputs is not what the merge read, by file.
///
/// # Errors
/// Kind `Input`: what says which bytes an input is cannot be read.
pub fn inputs_changed(output: &Output, prepared: &Prepared) -> Result<Vec<Problem>> {
    let recorded = output.manifest.inputs.iter().chain(&output.manifest.element_files);
    let recorded: Vec<Value> = recorded.map(|input| of_its_own(json!(input))).collect();
    let now = [inputs::models(prepared)?, inputs::element_files(prepared)].concat();
    let now: Vec<Value> = now.into_iter().map(of_its_own).collect();
    let problem = |recorded: &Value, what: &str| {
        let name = name_of(recorded).unwrap_or_default();
        let error = Error::input(format!("input {name}: {what}"));
        let error = error.hint("give the merge's own inputs back their place, or merge again with these");
        Problem { file: Some(name.into()), tensor: None, error }
    };
    let mut problems = Vec::new();
    for recorded in &recorded {
        let same = now.iter().filter(|now| name_of(now) == name_of(recorded));
        let same: Vec<&Value> = same.collect();
        if same.iter().any(|now| agree(now, recorded)) {
            continue;
        }
        let what = same.first().map_or_else(
            || "the merge does not read it any more".into(),
            |now| difference(recorded, now).unwrap_or_else(|| "it is not what the merge read".into()),
        );
        problems.push(problem(recorded, &what));
    }
    for now in now.iter().filter(|now| !recorded.iter().any(|recorded| name_of(recorded) == name_of(now))) {
        problems.push(problem(now, "the merge did not read it"));
    }
    Ok(problems)
}

/// An input without what it has of its own inputs, as the result of another document: these are compared themselves, and the folder that
/// it may have been in is none of the merge's.
fn of_its_own(mut input: Value) -> Value {
    if input["merged"] == true
        && let Some(input) = input.as_object_mut()
    {
        input.retain(|key, _| ["model", "merged", "adapter"].contains(&key.as_str()));
    }
    input
}

/// What differs between an input as it was and as it is.
fn difference(recorded: &Value, now: &Value) -> Option<String> {
    let files = |of: &Value| of["files"].as_array().cloned().unwrap_or_default();
    let (recorded_files, files) = (files(recorded), files(now));
    for recorded in &recorded_files {
        let name = recorded["file"].as_str().unwrap_or_default();
        let Some(now) = files.iter().find(|now| now["file"] == recorded["file"]) else {
            return Some(format!("{name} is missing"));
        };
        let differs =
            |key: &str| !recorded[key].is_null() && !now[key].is_null() && recorded[key] != now[key];
        if differs("bytes") {
            return Some(format!("{name} has {} bytes, and had {}", now["bytes"], recorded["bytes"]));
        }
        for (key, what) in [("sha256", "SHA-256"), ("header_blake3", "header")] {
            if differs(key) {
                return Some(format!("{name} is another file: its {what} differs"));
            }
        }
    }
    if files.len() > recorded_files.len() {
        return Some("it has more files of weights than the merge read".into());
    }
    for (key, what) in [
        ("config_blake3", "its config.json was changed"),
        ("tokenizer_blake3", "its tokenizer.json was changed"),
        ("revision", "it is another commit: pin the one of the manifest, as in NAME@COMMIT"),
    ] {
        if recorded[key] != now[key] {
            return Some(what.into());
        }
    }
    match (recorded.get("adapter"), now.get("adapter")) {
        (Some(recorded), Some(now)) if recorded.is_object() => {
            let name = name_of(recorded).unwrap_or_default();
            difference(recorded, now).map(|what| format!("adapter {name}: {what}"))
        }
        _ => None,
    }
}

/// So many of the tensors, by their places in a plan, ascending: the same for a seed and the names, and more of them with a larger
/// `count`.
pub fn sample<'a>(names: impl IntoIterator<Item = &'a str>, count: usize, seed: u64) -> Vec<usize> {
    let key = |name: &str| {
        *blake3::Hasher::new().update(&seed.to_le_bytes()).update(name.as_bytes()).finalize().as_bytes()
    };
    let mut keys: Vec<([u8; 32], usize)> = names.into_iter().map(key).zip(0..).collect();
    keys.sort_unstable();
    let mut chosen: Vec<usize> = keys.into_iter().take(count).map(|(_, place)| place).collect();
    chosen.sort_unstable();
    chosen
}

/// Makes tensors again, by their places in the plan, ascending, and compares them with what the files hold. Returns what differs.
///
/// # Errors
/// An input cannot be read, or the user wants to stop.
pub fn recompute(
    output: &Output,
    findings: &Findings,
    prepared: &Prepared,
    chosen: &[usize],
    budget: &Budget,
    watch: &dyn Watch,
) -> Result<Vec<Problem>> {
    let Prepared { sources, plan, .. } = prepared;
    let manifest = &output.manifest;
    let mut problems = Vec::new();
    let planned: HashMap<&str, _> = plan.tensors.iter().map(|tensor| (&*tensor.name, tensor)).collect();
    let differs = |name: &String| {
        let record = &manifest.tensors[name];
        planned
            .get(name.as_str())
            .is_none_or(|now| (now.dtype, &*now.shape) != (record.dtype, &*record.shape))
    };
    let beyond = planned.keys().find(|name| !manifest.tensors.contains_key(**name)).copied();
    if let Some(name) = beyond
        .or_else(|| manifest.tensors.keys().map(String::as_str).find(|name| differs(&(*name).to_owned())))
    {
        let what = "the merge as it is planned now makes it otherwise, or not at all";
        problems.push(output.problem(crate::checkpoint::MANIFEST, Some(name), what));
        return Ok(problems);
    }
    let device = processor();
    let (backend, limits) = open_device(plan, &device, budget, watch)?;
    let (reads, guess) = (Reads::Mapped, device.family.reads_again);
    let work = Work { plan, chosen: Some(chosen), sources, recalled: &[], reads, idle: false, guess };
    stream::prepare(&work, &*backend, watch)?;
    let merged = stream::run(work, &*backend, &Nowhere, &limits, watch, &Timeline::timing());
    for (tensor, merged) in chosen.iter().zip(verified(sources, merged)?.merged) {
        let name = &plan.tensors[*tensor].name;
        let made = merged.digest.to_hex();
        match findings.digests.get(&**name) {
            Some(held) if *held == *made.as_str() => {}
            Some(held) => {
                let file = &manifest.tensors[&**name].file;
                let path = output.folder.path.join(file);
                let what = format!(
                    "{}: tensor {}: made again from the inputs its BLAKE3 hash is {}, and the file holds {}",
                    path.display(),
                    quoted(name),
                    short(&made),
                    short(held)
                );
                let version = env!("CARGO_PKG_VERSION");
                let hint = if manifest.mergeforge == version {
                    "it is not what these inputs merge to, or an input was changed in its data: --hash-inputs finds that out, where \
                     the merge was made with --hash-inputs"
                        .into()
                } else {
                    format!(
                        "mergeforge {} made it, and this is {version}: make it again with that",
                        manifest.mergeforge
                    )
                };
                let error = Error::input(what).in_file(&path).hint(hint);
                problems.push(Problem { file: Some(file.clone()), tensor: Some(name.to_string()), error });
            }
            // It could not be read, which is among the findings.
            None => {}
        }
    }
    Ok(problems)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_depends_on_names_and_seed_and_grows() {
        let names: Vec<String> = (0..50).map(|i| format!("model.layers.{i}.weight")).collect();
        let of = |count, seed| sample(names.iter().map(String::as_str), count, seed);
        assert_eq!(of(50, 0), (0..50).collect::<Vec<_>>());
        assert_eq!((of(500, 3).len(), of(0, 0).len()), (50, 0));
        let (few, more) = (of(5, 7), of(9, 7));
        assert!(few.len() == 5 && few.iter().all(|tensor| more.contains(tensor)), "{few:?} {more:?}");
        assert!(few.is_sorted() && few == of(5, 7) && few != of(5, 8));
        let reversed = sample(names.iter().rev().map(String::as_str), 5, 7);
        let mirrored: Vec<usize> = reversed.into_iter().rev().map(|place| 49 - place).collect();
        assert_eq!(mirrored, few, "the order of tensors does not count");
    }
}

//! All that the bytes of an output depend on, for a merge that goes on with what another one left.

use serde_json::{Value, json};

use super::{inputs, made};
use crate::Prepared;
use crate::checkpoint::{Layout, Source, TOKENIZER};
use crate::error::Result;
use crate::limits::TOKENIZER_READ_BYTES_MAX;

/// What the places of tensors are called.
pub(crate) const LAYOUT: &str = "the tensors or the sizes of shards";

/// The files that say which token has which number.
const TOKEN_FILES: [&str; 4] =
    [TOKENIZER, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"];

/// What the bytes of a plan's tensors and their places depend on: by what it is called where it differs. Where an input is still to be
/// merged, nothing is said of inputs.
///
/// # Errors
/// Kind `Input`: what says which bytes an input is cannot be read.
pub(crate) fn making(prepared: &Prepared) -> Result<Value> {
    let plan = &prepared.plan;
    let mut making = json!({
        "the version of mergeforge": env!("CARGO_PKG_VERSION"),
        "the config": blake3::hash(prepared.config.source.as_bytes()).to_hex().as_str(),
        "the seed": plan.seed,
        "an option": made::options(prepared),
        (LAYOUT): layout_digest(&plan.layout),
    });
    if !prepared.sources.iter().any(Source::is_planned) {
        let mut add = |name: &str, known: Value| match &mut making[format!("the input {name}")] {
            Value::Array(all) => all.push(known),
            none => *none = json!([known]),
        };
        for record in inputs::models(prepared)? {
            let name = inputs::name_of(&record).unwrap_or_default().to_owned();
            add(&name, unhashed(record));
        }
        // Every source, whatever it is read for: models, adapters, files of elements, tokenizers, and those of other documents.
        for (number, source) in prepared.sources.iter().enumerate() {
            add(&source.name, source_of(prepared, number, source)?);
        }
    }
    Ok(making)
}

/// Which tensors go where.
pub(crate) fn layout_digest(layout: &Layout) -> String {
    let mut digest = blake3::Hasher::new();
    for shard in &layout.shards {
        digest.update(shard.file.as_bytes());
        digest.update(&shard.header);
    }
    digest.finalize().to_hex().to_string()
}

/// Records of inputs without the hashes that one merge has computed and another one of the same inputs may not have: what is known of
/// them by name stands among the sources.
fn unhashed(mut records: Value) -> Value {
    match &mut records {
        Value::Object(record) => {
            record.retain(|key, _| !["sha256", "sha256_verified"].contains(&key.as_str()));
            record.values_mut().for_each(|value| *value = unhashed(value.take()));
        }
        Value::Array(all) => all.iter_mut().for_each(|value| *value = unhashed(value.take())),
        _ => {}
    }
    records
}

/// What says that a source has the same bytes.
fn source_of(prepared: &Prepared, number: usize, source: &Source) -> Result<Value> {
    let hash = |name: &&str| -> Result<Option<String>> {
        let text = source.folder.file(*name).read_if_sound(TOKENIZER_READ_BYTES_MAX)?;
        Ok(text.map(|text| blake3::hash(&text).to_hex().to_string()))
    };
    let tokens = match prepared.plan.tokenizer.vocabulary {
        Some(_) => Some(TOKEN_FILES.iter().map(hash).collect::<Result<Vec<_>>>()?),
        None => None,
    };
    match prepared.results.get(&number) {
        // It is merged while it is read: of the other sources, which are here too.
        Some(result) if !result.is_in_folder => Ok(Value::Null),
        // It may have been merged again, to the same bytes at another time.
        Some(result) => match &result.tensors {
            Some(tensors) => Ok(json!({ "tensors": tensors, "tokens": tokens })),
            None => Ok(json!({ "files": stable(source)?, "tokens": tokens })),
        },
        None => Ok(json!({ "files": stable(source)?, "tokens": tokens })),
    }
}

/// Which bytes the files of a source are: by their SHA-256 where that is known, wherever they lie, else by size, time, header and a few
/// places of their content.
fn stable(source: &Source) -> Result<Value> {
    let mut identity = source.identity();
    let files = identity["files"].as_array_mut().map(std::mem::take).unwrap_or_default();
    let stable = |(file, sample): (Value, Option<String>)| match file.get("sha256") {
        Some(sha256) => json!({ "file": file["file"], "bytes": file["bytes"], "sha256": sha256 }),
        None => json!({ "of": file, "sample": sample }),
    };
    identity["files"] = files.into_iter().zip(source.samples()?).map(stable).collect();
    Ok(identity)
}

//! What a part says of itself: `part.json`, beside its shards. All parts together say what the manifest needs.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Part;
use crate::Prepared;
use crate::cache::read_small;
use crate::checkpoint::{Finished, OutTensor, partial_path};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::files;
use crate::limits::PART_BYTES_MAX;
use crate::report::Report;

/// Its file.
pub(super) const RECORD: &str = "part.json";

/// The folder in the first part for the files beside the tensors.
pub(super) const BESIDE: &str = "beside";

/// The form that this program writes, and reads.
const FORMAT: u64 = 1;

/// What a part says of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    format: u64,
    /// Which part, of how many.
    pub part: (usize, usize),
    /// The words that make any part, but for the part.
    pub command: Vec<String>,
    /// All that its bytes depend on, by what it is called where it differs.
    pub making: Value,
    /// The first of its shards, of all.
    pub first_shard: usize,
    /// Its shards, and their sizes in bytes.
    pub shards: Vec<(String, u64)>,
    /// How many shards and tensors the output has.
    pub all: (usize, usize),
    /// Its tensors, in the order of the output.
    pub tensors: Vec<TensorOfPart>,
    /// Of the first part: the manifest without what it says of tensors.
    pub manifest: Option<Value>,
    /// Of the first part: the files beside the tensors.
    pub files: Vec<String>,
}

/// A tensor of a part.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TensorOfPart {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    /// Its shard, of those of the part.
    pub shard: usize,
    /// The BLAKE3 hash of its data, in hexadecimal.
    pub blake3: String,
    /// What else was found out about it.
    found: Value,
}

impl TensorOfPart {
    pub(super) fn stored(&self) -> OutTensor {
        OutTensor { name: self.name.clone(), dtype: self.dtype, shape: self.shape.clone() }
    }

    /// How many elements it has, or more than any tensor.
    pub(super) fn elements(&self) -> u64 {
        self.shape.iter().fold(1, |elements: u64, length| elements.saturating_mul(*length as u64))
    }

    /// As it is noted, by its place among all; nothing where its hash is none.
    pub(super) fn noted(&self, tensor: usize) -> Option<Finished> {
        let digest = blake3::Hash::from_hex(&self.blake3).ok()?;
        Some(Finished { tensor, digest, found: self.found.clone() })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }
}

impl Record {
    /// That of a part that is merged.
    pub(super) fn of(
        report: &Report,
        prepared: &Prepared,
        (part, command): (Part, &[String]),
        making: Value,
        files: Vec<String>,
    ) -> Self {
        let (plan, layout) = (&prepared.plan, &prepared.plan.layout);
        let shards = part.shards(layout);
        let tensor = |(place, merged): (usize, &crate::stream::Merged)| {
            let (planned, noted) = (&plan.tensors[place], merged.noted(place));
            TensorOfPart {
                name: planned.name.to_string(),
                dtype: planned.dtype,
                shape: planned.shape.to_vec(),
                shard: layout.places[place].shard - shards.start,
                blake3: noted.digest.to_hex().to_string(),
                found: noted.found,
            }
        };
        Self {
            format: FORMAT,
            part: (part.number, part.of),
            command: command.to_vec(),
            making,
            first_shard: shards.start,
            shards: layout.shards[shards.clone()].iter().map(|of| (of.file.clone(), of.bytes)).collect(),
            all: (layout.shards.len(), layout.places.len()),
            tensors: report.placed().map(tensor).collect(),
            manifest: part.is_first().then(|| report.manifest().without_tensors()),
            files,
        }
    }

    pub(super) fn text(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a record is plain JSON")
    }

    /// That in a folder; none where there is none.
    ///
    /// # Errors
    /// Kind `Input`: it is not what a merge writes.
    pub(super) fn read(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(RECORD);
        let text = match read_small(&path, PART_BYTES_MAX) {
            Ok(text) => text,
            Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(cause) => return Err(Error::reading(&path, &cause)),
        };
        let broken = |what: String| {
            let refusal = Error::input(format!("{}: {what}", path.display())).in_file(&path);
            refusal.hint(format!("remove {}, and make this part again", folder.display()))
        };
        let record: Self =
            serde_json::from_slice(&text).map_err(|cause| broken(format!("no record of a part: {cause}")))?;
        if record.format != FORMAT {
            return Err(broken("another version of mergeforge made this part".into()));
        }
        Ok(Some(record))
    }

    /// What differs, in words, where the part was made of something else.
    pub(super) fn changed(&self, making: &Value) -> Vec<String> {
        let keys = making.as_object().into_iter().flatten().map(|(key, _)| key);
        keys.filter(|key| self.making[*key] != making[*key]).cloned().collect()
    }

    /// Whether all of its shards are there, in its folder or where they are put together.
    ///
    /// # Errors
    /// Kind `Output`: the system does not say. Kind `Config`: `out` is no place for an output.
    pub(super) fn is_whole(&self, folder: &Path, out: &Path) -> Result<bool> {
        let moved = partial_path(out)?;
        let is_in = |folder: &Path, (file, bytes): &(String, u64)| {
            let path = folder.join(file);
            match files::metadata_of_link(&path) {
                Ok(found) => Ok(found.is_file() && found.len() == *bytes),
                Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => Ok(false),
                Err(cause) => Err(Error::output(format!("cannot look at {}: {cause}", path.display()))),
            }
        };
        for shard in &self.shards {
            if !is_in(folder, shard)? && !is_in(&moved, shard)? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

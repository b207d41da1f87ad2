//! What a part says of itself: `part.json`, beside its shards. All parts together say what the manifest needs.

use std::collections::BTreeSet;
use std::env;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Part;
use crate::Prepared;
use crate::cache::read_small;
use crate::checkpoint::{CARD, Finished, OutTensor, in_the_way, partial_path};
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
const FORMAT: u64 = 2;

/// What a part says of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    format: u64,
    /// Which part, of how many.
    pub part: (usize, usize),
    /// The words that make any part, but for the part.
    pub command: Vec<String>,
    /// The folder that they were given in: relative paths among them start there.
    pub given_in: String,
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
    /// Of the first part: the files beside the tensors, and their sizes in bytes.
    pub files: Vec<(String, u64)>,
}

/// What there is of a part in its folder.
pub(super) enum There {
    /// A part, whole or not, with its record.
    Recorded(Box<Record>),
    /// Something without a record that can be read: why, in words.
    Unrecorded(String),
    /// Nothing, or an empty folder.
    Nothing,
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
        files: Vec<(String, u64)>,
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
            given_in: working_folder(),
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

    /// That in a folder.
    ///
    /// # Errors
    /// Kind `Input`: another version wrote it, or the system does not let us read it. Kind `Output`: the folder is none.
    pub(super) fn read(folder: &Path) -> Result<There> {
        let path = folder.join(RECORD);
        let text = match read_small(&path, PART_BYTES_MAX) {
            Ok(text) => text,
            Err(cause) if cause.kind() == io::ErrorKind::NotADirectory => {
                return Err(in_the_way(folder, "it is no folder"));
            }
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => match names_in(folder) {
                Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(There::Nothing),
                Err(cause) => return Err(Error::reading(folder, &cause)),
                Ok(names) if names.is_empty() => return Ok(There::Nothing),
                // It has come meanwhile, or a network's file system remembered that it was not there.
                Ok(names) if names.iter().any(|name| name == RECORD) => {
                    read_small(&path, PART_BYTES_MAX).map_err(|cause| Error::reading(&path, &cause))?
                }
                Ok(_) => return Ok(There::Unrecorded(format!("it has no {RECORD}"))),
            },
            Err(cause) => return Err(Error::reading(&path, &cause)),
        };
        match Self::of_text(&text) {
            Ok(Some(record)) => Ok(There::Recorded(Box::new(record))),
            Ok(None) => {
                let what = format!("{}: another version of mergeforge made this part", path.display());
                let hint = format!("remove {}, and make this part again", folder.display());
                Err(Error::input(what).in_file(&path).hint(hint))
            }
            Err(why) => Ok(There::Unrecorded(format!("{RECORD} is no record of a part: {why}"))),
        }
    }

    /// `None` of another version, whose records may have another form.
    fn of_text(text: &[u8]) -> serde_json::Result<Option<Self>> {
        #[derive(Deserialize)]
        struct Version {
            format: u64,
        }
        let Version { format } = serde_json::from_slice(text)?;
        if format == FORMAT { serde_json::from_slice(text).map(Some) } else { Ok(None) }
    }

    /// What differs, in words, where the part was made of something else.
    pub(super) fn changed(&self, making: &Value) -> Vec<String> {
        let keys =
            [&self.making, making].into_iter().filter_map(Value::as_object).flatten().map(|(key, _)| key);
        let keys: BTreeSet<&String> = keys.filter(|key| self.making[*key] != making[*key]).collect();
        keys.into_iter().cloned().collect()
    }

    /// The files in its folder.
    pub(super) fn all_files(&self) -> BTreeSet<String> {
        let shards = self.shards.iter().map(|(file, _)| file.clone());
        let beside = self.files.iter().map(|(file, _)| format!("{BESIDE}/{file}"));
        shards.chain(beside).chain([RECORD.to_owned()]).collect()
    }

    /// What of it is not as it was made, in words, by names and sizes; shards may lie in its folder or where they are put together.
    ///
    /// # Errors
    /// Kind `Output`: the system does not say. Kind `Config`: `out` is no place for an output.
    pub(super) fn lacks(&self, folder: &Path, out: &Path) -> Result<Option<String>> {
        let moved = partial_path(out)?;
        let wrong = |folder: &Path, file: &str, bytes: Option<u64>| {
            let path = folder.join(file);
            match files::metadata_of_link(&path) {
                Ok(found) if found.is_file() => {
                    let other = bytes.filter(|bytes| *bytes != found.len());
                    Ok(other.map(|bytes| format!("{file} has {} bytes, not {bytes}", found.len())))
                }
                Ok(_) => Ok(Some(format!("{file} is no file"))),
                Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(Some(format!("it lacks {file}"))),
                Err(cause) => Err(Error::output(format!("cannot look at {}: {cause}", path.display()))),
            }
        };
        for (file, bytes) in &self.shards {
            if let Some(wrong_here) = wrong(folder, file, Some(*bytes))?
                && wrong(&moved, file, Some(*bytes))?.is_some()
            {
                return Ok(Some(wrong_here));
            }
        }
        for (file, bytes) in &self.files {
            // Which people go on writing.
            let bytes = Some(*bytes).filter(|_| file != CARD);
            if let Some(wrong) = wrong(folder, &format!("{BESIDE}/{file}"), bytes)? {
                return Ok(Some(wrong));
            }
        }
        Ok(None)
    }
}

/// What a folder holds, by name.
///
/// # Errors
/// Those of the system.
pub(super) fn names_in(folder: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in files::list(folder)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort_unstable();
    Ok(names)
}

/// The folder that relative paths start in now; nothing where the system does not say.
pub(super) fn working_folder() -> String {
    env::current_dir().map_or_else(|_| String::new(), |folder| folder.display().to_string())
}

//! An output made in parts: each has some of the shards, in a folder of its own beside the output, `OUT.parts/2-of-4`. Whoever makes them,
//! in whatever order and how often, they are put together to the bytes of one merge.
//!
//! A part is an output like any other: built in `2-of-4.partial`, gone on with where it was stopped, and renamed when it is complete.
//! What it says of itself is its record (`record.rs`); the first one has the files beside the tensors, too.

mod finish;
mod record;
#[cfg(all(test, target_os = "linux"))]
mod tests;

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

pub use finish::{Done, Whole, finish, manifest};
use record::{BESIDE, RECORD, Record, There, names_in};

use crate::checkpoint::{
    Content, Destination, Layout, Sidecar, check_apart, check_destinations, check_left, check_only,
    check_out, partial_path, parts_of, remove_folder,
};
use crate::error::{Error, Result};
use crate::hub::Remote;
use crate::limits::PARTS_MAX;
use crate::report::{self, FileRecord, Report, differences, output_files};
use crate::text::few;
use crate::{Options, Prepared, Stopped, free_for, places_of_inputs, preflight};

/// So many parts, or what else there is, are named; the rest is counted.
const NAMED_MAX: usize = 8;

/// Which part of an output, of how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Part {
    number: usize,
    of: usize,
}

impl Part {
    /// The part `number`, from 1, of `of`; none where there is no such part.
    pub fn new(number: usize, of: usize) -> Option<Self> {
        ((1..=of).contains(&number) && of <= PARTS_MAX).then_some(Self { number, of })
    }

    /// The one that has the files beside the tensors.
    pub fn is_first(self) -> bool {
        self.number == 1
    }

    /// Its shards, of all.
    pub fn shards(self, layout: &Layout) -> Range<usize> {
        layout.share(self.number, self.of)
    }

    /// The folder that it is made in.
    ///
    /// # Errors
    /// Kind `Config`: `out` is no place for an output. Kind `Output`: something else has the name of the folder of its parts.
    pub fn folder(self, out: &Path) -> Result<PathBuf> {
        parts_of(out).map(|parts| parts.join(self.folder_name()))
    }

    fn folder_name(self) -> String {
        format!("{}-of-{}", self.number, self.of)
    }

    /// The part that has a folder of this name.
    fn of_folder(name: &str) -> Option<Self> {
        let (number, of) = name.split_once("-of-")?;
        let part = Self::new(number.parse().ok()?, of.parse().ok()?)?;
        (part.folder_name() == name).then_some(part)
    }
}

/// As `--part` takes it.
impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.of)
    }
}

/// All that the bytes of a part depend on.
///
/// # Errors
/// Those of [`report::making`].
pub(crate) fn making(prepared: &Prepared, options: &Options) -> Result<Value> {
    let mut making = report::making(prepared)?;
    making[FILES] = json!({ "tokenizer": options.copy_tokenizer, "card": options.model_card });
    making[HASHES] = options.inputs_hashed.into();
    Ok(making)
}

/// What the choice of files beside the tensors is called.
const FILES: &str = "the files beside the tensors";

/// What the choice whether the manifest has the hashes of inputs is called. The first part reads them; whoever asks for them means them
/// of the whole output.
const HASHES: &str = "--hash-inputs";

/// The same for the output as one, whose tensors do not depend on these.
fn making_of_all(making: &Value) -> Value {
    let is_of_tensors = |key: &str| ![FILES, HASHES].contains(&key);
    let keys = making.as_object().into_iter().flatten().filter(|(key, _)| is_of_tensors(key));
    keys.map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// Where a part is already, if it is: in its folder, moved from there by whoever puts parts together, or in the output.
///
/// # Errors
/// Kind `Config`: a part of something else is there, or it is to be made anew of an output that is whole. Kind `Input`: what is there
/// cannot be read. Kind `Output`: what is there is no part's alone.
pub fn made(prepared: &Prepared, options: &Options, part: Part) -> Result<Option<PathBuf>> {
    Ok(match looked_at(prepared, options, part)? {
        Seen::Made(place) => Some(place),
        Seen::Left(_) | Seen::Nothing => None,
    })
}

/// What is seen of a part.
enum Seen {
    /// All of it, in this place.
    Made(PathBuf),
    /// One that is not whole, or is to be made anew: these files, and nothing else.
    Left(BTreeSet<String>),
    Nothing,
}

/// Looks once: another process may make it at any moment.
fn looked_at(prepared: &Prepared, options: &Options, part: Part) -> Result<Seen> {
    let (out, restarts) = (&options.out, options.stopped == Stopped::Restarts);
    if differences(out, prepared, options.copy_tokenizer)?.is_empty() {
        if restarts {
            let what = format!("{} is whole already, and no part of it is made again", out.display());
            return Err(Error::config(what).hint("remove it first; or leave --restart out"));
        }
        return Ok(Seen::Made(out.clone()));
    }
    let folder = part.folder(out)?;
    let files = match Record::read(&folder)? {
        There::Nothing => return Ok(Seen::Nothing),
        There::Unrecorded(_) => files_of(prepared, part),
        There::Recorded(record) => {
            let making = making(prepared, options)?;
            if !restarts && record.making != making {
                let changed = record.changed(&making).join(", ");
                let what =
                    format!("{} holds a part of a different merge (changed: {changed})", folder.display());
                let hint = "give --restart to make it again; or merge as before, or into another folder";
                return Err(Error::config(what).hint(hint));
            }
            if !restarts && record.lacks(&folder, out)?.is_none() {
                return Ok(Seen::Made(folder));
            }
            record.all_files()
        }
    };
    // What is removed may look like an input, and the other way round.
    check_apart(&folder, &places_of_inputs(prepared).collect::<Vec<_>>())?;
    check_only(&folder, &files)?;
    Ok(Seen::Left(files))
}

/// The files that a part has in its folder, and perhaps of some more.
fn files_of(prepared: &Prepared, part: Part) -> BTreeSet<String> {
    let layout = &prepared.plan.layout;
    let shards = layout.shards[part.shards(layout)].iter().map(|shard| shard.file.clone());
    let beside = if part.is_first() { output_files(prepared) } else { Vec::new() };
    let beside = beside.into_iter().map(|file| format!("{BESIDE}/{file}"));
    shards.chain(beside).chain([RECORD.to_owned()]).collect()
}

/// Removes what is there of a part that is to be made, if it is not whole, or is to be made anew: under the lock of its `.partial` folder,
/// so that it is not what another process has just made.
pub(crate) fn clear(prepared: &Prepared, options: &Options, part: Part) -> Result<()> {
    match looked_at(prepared, options, part)? {
        Seen::Made(place) => {
            let refusal = Error::output(format!("{} is there by now", place.display()));
            Err(refusal.hint("another process has made it meanwhile: there is nothing left to do"))
        }
        Seen::Left(files) => {
            remove(&part.folder(&options.out)?, &files)?;
            let inputs: Vec<PathBuf> = places_of_inputs(prepared).collect();
            check_destinations(&[destination(prepared, options, part)?], &inputs)
        }
        Seen::Nothing => Ok(()),
    }
}

/// Refuses places that are not free, or a disk that is too small, before anything is read.
///
/// # Errors
/// What is wrong with the places or the disk.
pub fn check_room(prepared: &Prepared, options: &Options, part: Part) -> Result<()> {
    let inputs: Vec<PathBuf> = places_of_inputs(prepared).collect();
    check_out(&options.out, &inputs)?;
    check_half_made(&options.out, || report::making(prepared))?;
    preflight::check(prepared, part.shards(&prepared.plan.layout).len(), options)?;
    let destination = destination(prepared, options, part)?;
    let beside = (destination.out.clone(), destination.bytes);
    if matches!(Record::read(&beside.0)?, There::Nothing) {
        check_destinations(&[destination], &inputs)?;
        if options.stopped == Stopped::GoesOn {
            check_left(&beside.0, || making(prepared, options))?;
        }
    }
    if prepared.choices.remote != Remote::Streamed {
        free_for(&prepared.absent(), &[(&beside.0, beside.1)])?;
    }
    Ok(())
}

/// Where a part goes, and how large it is.
fn destination(prepared: &Prepared, options: &Options, part: Part) -> Result<Destination> {
    let (out, layout) = (part.folder(&options.out)?, &prepared.plan.layout);
    let of_shards: u64 = layout.shards[part.shards(layout)].iter().map(|shard| shard.bytes).sum();
    let others = if part.is_first() {
        crate::output_bytes(prepared, options.copy_tokenizer) - layout.file_bytes
    } else {
        0
    };
    Ok(Destination { out, bytes: of_shards + others, on_the_way_bytes: 0 })
}

/// Refuses an output beside which something else is half made: parts of it could not be put together.
///
/// # Errors
/// Kind `Config`, with what differs.
fn check_half_made(out: &Path, making: impl FnOnce() -> Result<Value>) -> Result<()> {
    check_left(out, making).map_err(|refusal| {
        let partial = partial_path(out).unwrap_or_else(|_| out.to_path_buf());
        refusal.hint(format!(
            "go on with that merge, or remove {} where it is of no use; or make these parts for another output",
            partial.display()
        ))
    })
}

/// The files beside the shards of a part.
pub(crate) fn sidecars(
    report: &mut Report,
    prepared: &Prepared,
    options: &Options,
    (part, command): (Part, &[String]),
) -> Result<Vec<Sidecar>> {
    let mut files = if part.is_first() { report.beside(prepared, options)? } else { Vec::new() };
    let recorded = &report.manifest().files;
    let bytes = |sidecar: &Sidecar| match (&sidecar.content, recorded.get(&sidecar.file)) {
        (Content::Bytes(bytes), _) => bytes.len() as u64,
        (_, Some(FileRecord::Other { bytes, .. } | FileRecord::Weights { bytes, .. })) => *bytes,
        (Content::CopyOf(_), None) => unreachable!("what is copied is in the manifest"),
    };
    let sizes = files.iter().map(|sidecar| (sidecar.file.clone(), bytes(sidecar))).collect();
    let record = Record::of(report, prepared, (part, command), making(prepared, options)?, sizes);
    for sidecar in &mut files {
        // Apart from the shards, with which they would look like a model.
        sidecar.file = format!("{BESIDE}/{}", sidecar.file);
    }
    files.push(Sidecar { file: RECORD.into(), content: Content::Bytes(record.text()) });
    Ok(files)
}

/// Removes a part's folder with these files: its record goes last.
fn remove(folder: &Path, files: &BTreeSet<String>) -> Result<()> {
    let files = files.iter().filter(|file| *file != RECORD).cloned().collect();
    match remove_folder(folder, &files, RECORD) {
        // By another process.
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(cause) if cause.kind() == io::ErrorKind::DirectoryNotEmpty => {
            let (what, stay) = (folder.display(), few(&names_in(folder).unwrap_or_default(), NAMED_MAX));
            let refusal = Error::output(format!("{what} stays, with what is none of its files: {stay}"));
            Err(refusal.hint("move that away, or remove the folder where nothing in it is of use"))
        }
        removed => removed.map_err(|cause| Error::writing(folder, &cause)),
    }
}

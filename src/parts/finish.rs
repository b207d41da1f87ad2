//! Parts put together: all are looked at, their shards are moved, and the files beside them written, the manifest among them.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::record::{BESIDE, Record};
use super::{Part, check_half_made, making_of_all};
use crate::checkpoint::layout::DATA_BYTES_MAX;
use crate::checkpoint::{
    Access, Content, Finished, InParts, Layout, MANIFEST, ModelFolder, OutTensor, Sidecar, Sink, laid_out,
    partial_path, parts_of, remove_lock,
};
use crate::error::{Error, Kind, Result};
use crate::files::{self, Folder};
use crate::preflight::{Capacity, Requirements};
use crate::report::{FileRecord, LAYOUT, Manifest, add_tensors, layout_digest, manifest_in};
use crate::stream::{Merged, Watch};
use crate::text::quoted;

/// So many missing parts are named; the rest is counted.
const NAMED_MAX: usize = 8;

/// So many elements an output has at most, whatever their type.
const ELEMENTS_MAX: u64 = DATA_BYTES_MAX / 8;

/// An output that was put together.
#[derive(Debug)]
pub struct Whole {
    /// Of how many parts.
    pub parts: usize,
    /// How many files have its tensors.
    pub shards: usize,
    /// How many tensors it has.
    pub tensors: usize,
    /// Bytes of its tensors.
    pub bytes: u64,
}

/// What became of an output.
#[derive(Debug)]
pub struct Done {
    /// What was put together; nothing where that was done before, or meanwhile by another process.
    pub made: Option<Whole>,
    /// Why something is left of the parts. The output is whole nevertheless.
    pub left: Option<Error>,
}

/// Puts the parts of `out` together, by `threads` threads; `read` says whether all of their tensors are read again, and compared with their
/// digests.
///
/// # Errors
/// Kind `Unready`: parts are missing. Kind `Config`: they were made of different things, `out` is something else, or its file system has no
/// locks. Kind `Input`: one is damaged. Kind `Output`: the system refuses. What is there of the parts stays.
pub fn finish(out: &Path, read: bool, threads: usize, watch: &dyn Watch) -> Result<Done> {
    let folder = parts_of(out)?;
    let is_there = || files::is_file(&out.join(MANIFEST));
    if is_there() {
        return done_before(out, &folder);
    }
    let stop = || watch.stop();
    let to_go_on = |error: Error| {
        if error.kind != Kind::Interrupted {
            return error;
        }
        let (parts, partial) = (folder.display(), partial_path(out).unwrap_or_default());
        let goes_on = "the parts are still there, and the same command goes on from there";
        error.hint(format!("{goes_on}; {parts} and {}, removed, give them up", partial.display()))
    };
    let (records, joined, sidecars, sink) = match gathered(out, &folder, (read, threads), &stop) {
        Ok(gathered) => gathered,
        // Another process has put it together meanwhile.
        Err(_) if is_there() => return done_before(out, &folder),
        Err(error) => return Err(to_go_on(error)),
    };
    sink.finish(&sidecars, &stop).map_err(to_go_on)?;
    let left = remove(&folder, &records).err();
    let Layout { shards, places, total_bytes, .. } = &joined.layout;
    let made =
        Whole { parts: records.len(), shards: shards.len(), tensors: places.len(), bytes: *total_bytes };
    Ok(Done { made: Some(made), left })
}

/// The manifest of an output that is there.
///
/// # Errors
/// Kind `Input`: it has none, or not what a merge writes.
pub fn manifest(out: &Path) -> Result<Value> {
    Manifest::of(&ModelFolder::open(out)?).map(|(manifest, _)| manifest.value())
}

/// All parts, what they say together, the files beside the tensors, and the output with all shards in it.
type Gathered = (Vec<(PathBuf, Record)>, Joined, Vec<Sidecar>, Sink);

fn gathered(
    out: &Path,
    folder: &Path,
    how: (bool, usize),
    stop: &(dyn Fn() -> bool + Sync),
) -> Result<Gathered> {
    let records = all_of(out, &parts_in(folder)?)?;
    let joined = Joined::of(&records)?;
    let first = &records[0];
    Requirements::of_parts(joined.layout.shards.len(), records.len()).check(&Capacity::now())?;
    let access = access(&records)?;
    let folders: Vec<PathBuf> =
        records.iter().flat_map(|(folder, record)| record.shards.iter().map(|_| folder.clone())).collect();
    let making = making_of_all(&first.1.making);
    check_half_made(out, || Ok(making.clone()))?;
    let made = InParts {
        layout: &joined.layout,
        folders: &folders,
        finished: &joined.finished,
        access,
        making: &making,
    };
    let sidecars = joined.sidecars(first)?;
    let sink = Sink::gathered(out, &made, how, stop).map_err(|error| joined.in_part(&records, error))?;
    Ok((records, joined, sidecars, sink))
}

/// The folders of parts.
fn parts_in(folder: &Path) -> Result<BTreeMap<(usize, usize), PathBuf>> {
    let entries = match files::list(folder) {
        Ok(entries) => entries,
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(cause) => return Err(Error::reading(folder, &cause)),
    };
    let mut found = BTreeMap::new();
    for entry in entries {
        let entry = entry.map_err(|cause| Error::reading(folder, &cause))?;
        if let Some(Part { number, of }) = entry.file_name().to_str().and_then(Part::of_folder) {
            found.insert((of, number), entry.path());
        }
    }
    Ok(found)
}

/// All parts of the output, each with its folder; of those that are there, the fewest that are all.
fn all_of(out: &Path, found: &BTreeMap<(usize, usize), PathBuf>) -> Result<Vec<(PathBuf, Record)>> {
    let mut records: BTreeMap<usize, BTreeMap<usize, (PathBuf, Record)>> = BTreeMap::new();
    for ((of, number), folder) in found {
        let Some(record) = Record::read(folder)? else { continue };
        if record.part != (*number, *of) {
            let what = format!("{} holds part {} of {}", folder.display(), record.part.0, record.part.1);
            return Err(
                Error::input(what).hint("give it its name again, or remove it and make this part again")
            );
        }
        if record.is_whole(folder, out)? {
            records.entry(*of).or_default().insert(*number, (folder.clone(), record));
        }
    }
    if let Some(of) = records.iter().find_map(|(of, parts)| (parts.len() == *of).then_some(*of)) {
        return Ok(records.remove(&of).into_iter().flat_map(BTreeMap::into_values).collect());
    }
    // Of parts of several N, those of which most are there.
    let most = records.into_iter().max_by_key(|(_, parts)| parts.len());
    let Some((of, parts)) = most else {
        let refusal = format!("there are no parts of {}", out.display());
        return Err(
            Error::unready(refusal).hint("`mergeforge merge CONFIG OUT --part I/N` makes one of them")
        );
    };
    let missing: Vec<usize> = (1..=of).filter(|number| !parts.contains_key(number)).collect();
    let named = missing.iter().take(NAMED_MAX).map(usize::to_string).collect::<Vec<_>>().join(", ");
    let more = match missing.len().saturating_sub(NAMED_MAX) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let what = if missing.len() == 1 { "part" } else { "parts" };
    let command = parts.into_values().next().map(|(_, record)| record.command).unwrap_or_default();
    let refusal = format!("{}: {what} {named}{more} of {of} are missing", out.display());
    let refusal = if missing.len() == 1 { refusal.replace(" are missing", " is missing") } else { refusal };
    Err(Error::unready(refusal)
        .hint(format!("make them, and finish then: {}", commands(&command, &missing, of))))
}

/// What makes these parts, each to be typed.
fn commands(words: &[String], numbers: &[usize], of: usize) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@+%".contains(c);
    let typed = |word: &String| {
        if word.chars().all(is_plain) && !word.is_empty() {
            word.clone()
        } else {
            format!("'{}'", word.replace('\'', "'\\''"))
        }
    };
    let words = words.iter().map(typed).collect::<Vec<_>>().join(" ");
    let command = |number: &usize| format!("`mergeforge {words} --part {number}/{of}`");
    numbers.iter().take(NAMED_MAX).map(command).collect::<Vec<_>>().join(", ")
}

/// Who may read all of the parts.
fn access(records: &[(PathBuf, Record)]) -> Result<Access> {
    let mut access = Access::ANY;
    for (folder, record) in records {
        let looked = |path: &Path| files::metadata(path).map_err(|cause| Error::reading(path, &cause));
        access = access.and_folder(&looked(folder)?);
        for (shard, _) in &record.shards {
            // What is moved already is as readable as the others.
            if let Ok(found) = files::metadata(&folder.join(shard)) {
                access = access.and_file(&found);
            }
        }
    }
    Ok(access)
}

/// What parts say together.
struct Joined {
    layout: Layout,
    finished: Vec<Finished>,
    manifest: Manifest,
    /// The shards of each part, of all.
    shards: Vec<Range<usize>>,
}

impl Joined {
    /// Puts together what parts say, once it is seen that they belong together, and that they have every tensor once.
    fn of(records: &[(PathBuf, Record)]) -> Result<Self> {
        let (first, others) = records.split_first().expect("there is a first part");
        for (folder, record) in others {
            let changed = record.changed(&first.1.making);
            if record.making != first.1.making {
                let (one, other) = (first.0.display(), folder.display());
                let what = format!(
                    "{one} and {other} are parts of different merges (changed: {})",
                    changed.join(", ")
                );
                return Err(Error::config(what).hint("make one of them again, with --restart"));
            }
        }
        let damaged = |what: &str| {
            let folder = first.0.parent().unwrap_or(&first.0).display();
            let refusal = Error::input(format!("{folder}: the records of its parts {what}"));
            refusal
                .hint(format!("they were changed after the merge: remove {folder}, and make all parts again"))
        };
        let (mut tensors, mut finished, mut merged) = (Vec::<OutTensor>::new(), Vec::new(), Vec::new());
        let mut elements = 0_u64;
        let (mut ranges, mut shards) = (Vec::<Range<usize>>::new(), Vec::new());
        for (_, record) in records {
            if record.first_shard != ranges.len() || record.all != first.1.all {
                return Err(damaged("leave shards out, or have some twice"));
            }
            let (mut begun, mut counts) = (tensors.len(), vec![0; record.shards.len()]);
            for tensor in &record.tensors {
                elements = elements.saturating_add(tensor.elements());
                let noted = tensor.noted(tensors.len()).filter(|_| elements <= ELEMENTS_MAX);
                let of = noted.as_ref().and_then(Merged::from_noted);
                let (Some(noted), Some(of), Some(count)) = (noted, of, counts.get_mut(tensor.shard)) else {
                    return Err(damaged("cannot be understood"));
                };
                *count += 1;
                tensors.push(tensor.stored());
                finished.push(noted);
                merged.push(of);
            }
            shards.push(ranges.len()..ranges.len() + counts.len());
            for count in counts {
                ranges.push(begun..begun + count);
                begun += count;
            }
        }
        if (ranges.len(), tensors.len()) != first.1.all {
            return Err(damaged("leave tensors out, or have some twice"));
        }
        let layout = laid_out(&tensors, &ranges);
        if first.1.making[LAYOUT] != layout_digest(&layout) {
            return Err(damaged("have tensors in other places than were planned"));
        }
        let manifest = first.1.manifest.clone().map(serde_json::from_value::<Manifest>);
        let Some(Ok(mut manifest)) = manifest else { return Err(damaged("have no manifest")) };
        let files = layout.places.iter().map(|place| &*layout.shards[place.shard].file);
        add_tensors(&mut manifest, &tensors.iter().collect::<Vec<_>>(), files, &merged);
        Ok(Self { layout, finished, manifest, shards })
    }

    /// The files beside the tensors, which the first part has.
    fn sidecars(&self, (folder, record): &(PathBuf, Record)) -> Result<Vec<Sidecar>> {
        let from = ModelFolder::open(folder)?;
        let mut files = Vec::new();
        for file in &record.files {
            let original = from.file(format!("{BESIDE}/{file}"));
            if let Some(FileRecord::Other { sha256, .. }) = self.manifest.files.get(file)
                && original.sha256(&|_| Ok(()))?.1 != *sha256
            {
                let path = original.path();
                let what = format!("{} was changed after the merge", path.display());
                return Err(Error::input(what)
                    .in_file(&path)
                    .hint("make the first part again, with --restart"));
            }
            files.push(Sidecar { file: file.clone(), content: Content::CopyOf(original) });
        }
        files.push(Sidecar {
            file: MANIFEST.into(),
            content: Content::Bytes(self.manifest.text().into_bytes()),
        });
        Ok(files)
    }

    /// An error about a shard, with the way to make its part again.
    fn in_part(&self, records: &[(PathBuf, Record)], error: Error) -> Error {
        let Some(file) = error.file.as_deref().map(Path::new).and_then(Path::file_name) else { return error };
        let shard = self.layout.shards.iter().position(|shard| Path::new(&shard.file).as_os_str() == file);
        let part = shard.and_then(|shard| self.shards.iter().position(|range| range.contains(&shard)));
        match part {
            // What the system did not let us read, or write, is not damaged by that.
            Some(part) if error.kind == Kind::Input && error.cause.is_none() => {
                let path = error.file.clone().unwrap_or_default();
                let command = commands(&records[part].1.command, &[part + 1], records.len());
                error.hint(format!("remove {path}, and make part {} again: {command}", part + 1))
            }
            _ => error,
        }
    }
}

/// Removes what is left of parts of an output that is there, and what whoever was killed after the rename has left in it.
fn done_before(out: &Path, folder: &Path) -> Result<Done> {
    let manifest = manifest_in::<Value>(out).unwrap_or_default();
    let mut records = Vec::new();
    for path in parts_in(folder)?.into_values() {
        let Some(record) = Record::read(&path)? else {
            // One that was being removed.
            remove_empty(&path);
            continue;
        };
        let is_its = record.tensors.iter().all(|tensor| {
            manifest["tensors"][tensor.name()]["blake3"].as_str() == Some(tensor.blake3.as_str())
        });
        if !is_its {
            let what = format!(
                "{} is there already, and {} is no part of it",
                quoted(&out.display().to_string()),
                path.display()
            );
            return Err(Error::config(what).hint("choose another output folder, or delete this one"));
        }
        records.push((path, record));
    }
    remove_lock(out);
    Ok(Done { made: None, left: remove(folder, &records).err() })
}

/// Removes a folder, if it is empty.
fn remove_empty(folder: &Path) {
    if let (Some(parent), Some(name)) = (folder.parent(), folder.file_name()) {
        let _ = Folder::open(parent).and_then(|parent| parent.remove_folder(name));
    }
}

/// Removes the folders of parts, each as far as that can be, and the one that they lie in if it is empty then.
fn remove(folder: &Path, records: &[(PathBuf, Record)]) -> Result<()> {
    let mut removed = Ok(());
    for (path, record) in records {
        removed = removed.and(record.remove(path));
    }
    // Of parts of other numbers, or half made ones, whoever made them has to know what becomes of them.
    remove_empty(folder);
    removed
}

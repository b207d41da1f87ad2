//! Parts put together: all are looked at, their shards are moved, and the files beside them written, the manifest among them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::record::{BESIDE, Record, There, names_in, working_folder};
use super::{NAMED_MAX, Part, check_half_made, making_of_all, remove};
use crate::checkpoint::layout::DATA_BYTES_MAX;
use crate::checkpoint::{
    Access, CARD, Content, Finished, InParts, Layout, MANIFEST, ModelFolder, OutTensor, Sidecar, Sink,
    laid_out, partial_path, parts_of, remove_lock,
};
use crate::error::{Error, Kind, Result};
use crate::files::{self, Folder};
use crate::preflight::{Capacity, Requirements};
use crate::report::{FileRecord, LAYOUT, Manifest, add_tensors, layout_digest, manifest_in};
use crate::stream::{Merged, Watch};
use crate::text::{few, quoted, shell_word};

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
    /// Where it was there before: parts of it that were left, and are removed now.
    pub removed: Option<String>,
    /// The folder of its parts.
    pub folder: PathBuf,
    /// What is in that, if it is still there.
    pub stays: Option<String>,
}

/// Puts the parts of `out` together, by `threads` threads; `read` says whether all of their tensors are read again, and compared with their
/// digests.
///
/// # Errors
/// Kind `Unready`: parts are missing or not whole. Kind `Config`: they were made of different things, `out` is something else, or its file
/// system has no locks. Kind `Input`: one is damaged. Kind `Output`: the system refuses, or another process is at work there. What is there
/// of the parts stays.
pub fn finish(out: &Path, read: bool, threads: usize, watch: &dyn Watch) -> Result<Done> {
    let is_there = || files::is_file(&out.join(MANIFEST));
    let folder = match parts_of(out) {
        // No parts are wanted of it any more, so nothing is in their way.
        Err(refusal) if refusal.kind == Kind::Output && is_there() => {
            return Ok(Done { made: None, left: None, removed: None, folder: out.into(), stays: None });
        }
        folder => folder?,
    };
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
    let left = remove_all(&folder, &records).1.err();
    let stays = some(&names_in(&folder).unwrap_or_default());
    let Layout { shards, places, total_bytes, .. } = &joined.layout;
    let made =
        Whole { parts: records.len(), shards: shards.len(), tensors: places.len(), bytes: *total_bytes };
    Ok(Done { made: Some(made), left, removed: None, folder, stays })
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
    let records = all_of(out, parts_in(folder)?)?;
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
        tensors: &joined.tensors,
        folders: &folders,
        finished: &joined.finished,
        access,
        making: &making,
    };
    let sidecars = joined.sidecars(first)?;
    let sink = Sink::gathered(out, &made, how, stop).map_err(|error| joined.in_part(&records, error))?;
    Ok((records, joined, sidecars, sink))
}

/// What lies in the folder of parts, by how many there are and which: whole ones or what is left of them, and those that are begun.
struct Listed {
    made: BTreeMap<(usize, usize), PathBuf>,
    begun: BTreeSet<(usize, usize)>,
}

fn parts_in(folder: &Path) -> Result<Listed> {
    let (mut made, mut begun) = (BTreeMap::new(), BTreeSet::new());
    let entries = match files::list(folder) {
        Ok(entries) => entries,
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => return Ok(Listed { made, begun }),
        Err(cause) => return Err(Error::reading(folder, &cause)),
    };
    for entry in entries {
        let entry = entry.map_err(|cause| Error::reading(folder, &cause))?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if let Some(Part { number, of }) = Part::of_folder(name) {
            made.insert((of, number), entry.path());
        } else if let Some(Part { number, of }) = name.strip_suffix(".partial").and_then(Part::of_folder) {
            begun.insert((of, number));
        }
    }
    Ok(Listed { made, begun })
}

/// The parts of one number, as far as something of them is there.
#[derive(Default)]
struct SomeParts {
    /// Those that have a record, with their folders.
    recorded: BTreeMap<usize, (PathBuf, Record)>,
    /// Why one is not whole, whether it has a record or not.
    not_whole: BTreeMap<usize, String>,
}

impl SomeParts {
    fn whole(&self) -> usize {
        self.recorded.keys().filter(|number| !self.not_whole.contains_key(number)).count()
    }

    /// Refuses parts of different merges: those are named that are not of the merge that most are of.
    fn check_together(&self) -> Result<()> {
        let mut counts: HashMap<&Value, usize> = HashMap::new();
        self.recorded.values().for_each(|(_, record)| *counts.entry(&record.making).or_default() += 1);
        let of_most = self.recorded.values().rev().max_by_key(|(_, record)| counts[&record.making]);
        let Some((folder, most)) = of_most.filter(|_| counts.len() > 1) else { return Ok(()) };
        let is_odd = |(_, (_, record)): &(&usize, &(PathBuf, Record))| record.making != most.making;
        let odd: Vec<(&usize, &(PathBuf, Record))> = self.recorded.iter().filter(is_odd).collect();
        let changed: BTreeSet<String> =
            odd.iter().flat_map(|(_, (_, record))| record.changed(&most.making)).collect();
        let changed = changed.into_iter().collect::<Vec<_>>().join(", ");
        let names: Vec<String> = odd.iter().map(|(_, (folder, _))| name_of(folder)).collect();
        let names = few(&names, NAMED_MAX);
        let numbers: Vec<usize> = odd.iter().map(|(number, _)| **number).collect();
        let what =
            format!("{} and {names} are parts of different merges (changed: {changed})", folder.display());
        let (first, again) = (name_of(folder), most.commands(&numbers, " --restart"));
        Err(Error::config(what).hint(format!(
            "make {names} again as {first} was made: {again}; or all others, if {names} is right"
        )))
    }

    /// What is missing of so many, or not whole, with the commands that make it.
    fn unready(&self, of: usize, out: &Path) -> Error {
        let is_missing =
            |number: &usize| !self.recorded.contains_key(number) && !self.not_whole.contains_key(number);
        let missing: Vec<usize> = (1..=of).filter(is_missing).collect();
        let named = few(&missing.iter().map(usize::to_string).collect::<Vec<_>>(), NAMED_MAX);
        let mut what: Vec<String> = match missing.len() {
            0 => Vec::new(),
            1 => vec![format!("part {named} of {of} is missing")],
            _ => vec![format!("parts {named} of {of} are missing")],
        };
        let why = |(number, why): (&usize, &String)| format!("part {number} of {of} {why}");
        what.extend(self.not_whole.iter().map(why).take(NAMED_MAX));
        let more = self.not_whole.len().saturating_sub(NAMED_MAX);
        what.extend((more > 0).then(|| format!("{more} more are not whole")));
        let numbers: Vec<usize> =
            (1..=of).filter(|n| is_missing(n) || self.not_whole.contains_key(n)).collect();
        let them = if numbers.len() == 1 { "it" } else { "them" };
        let of_any = format!("mergeforge merge CONFIG {}", shell_word(&out.display().to_string()));
        let commands = match self.recorded.values().next() {
            Some((_, record)) => record.commands(&numbers, ""),
            None => commands(&of_any, &numbers, of, ""),
        };
        Error::unready(format!("{}: {}", out.display(), what.join("; ")))
            .hint(format!("make {them}, and finish then: {commands}"))
    }
}

/// All parts of the output, each with its folder; of those that are there, the fewest that are all.
fn all_of(out: &Path, Listed { made, begun }: Listed) -> Result<Vec<(PathBuf, Record)>> {
    let mut all: BTreeMap<usize, SomeParts> = BTreeMap::new();
    for ((of, number), folder) in made {
        let record = match Record::read(&folder)? {
            There::Nothing => continue,
            There::Unrecorded(why) => {
                let why = format!("is there without a record that can be read: {why}");
                all.entry(of).or_default().not_whole.insert(number, why);
                continue;
            }
            There::Recorded(record) => *record,
        };
        if record.part != (number, of) {
            let what = format!("{} holds part {} of {}", folder.display(), record.part.0, record.part.1);
            return Err(
                Error::input(what).hint("give it its name again, or remove it and make this part again")
            );
        }
        let parts = all.entry(of).or_default();
        if let Some(why) = record.lacks(&folder, out)? {
            parts.not_whole.insert(number, format!("is not whole: {why}"));
        }
        parts.recorded.insert(number, (folder, record));
    }
    for (of, number) in begun {
        let parts = all.entry(of).or_default();
        if !parts.recorded.contains_key(&number) {
            parts.not_whole.entry(number).or_insert_with(|| "is begun and not finished".into());
        }
    }
    let complete = all.iter().find_map(|(of, parts)| (parts.whole() == *of).then_some(*of));
    // Of parts of several N, those of which most are there.
    let most =
        || all.iter().max_by_key(|(_, parts)| (parts.whole(), parts.recorded.len())).map(|(of, _)| *of);
    let Some((of, parts)) = complete.or_else(most).and_then(|of| all.remove_entry(&of)) else {
        let refusal = format!("there are no parts of {}", out.display());
        return Err(
            Error::unready(refusal).hint("`mergeforge merge CONFIG OUT --part I/N` makes one of them")
        );
    };
    parts.check_together()?;
    if complete.is_some() { Ok(parts.recorded.into_values().collect()) } else { Err(parts.unready(of, out)) }
}

impl Record {
    /// What makes these of the parts, each to be typed.
    fn commands(&self, numbers: &[usize], flags: &str) -> String {
        let words = self.command.iter().map(|word| shell_word(word)).collect::<Vec<_>>().join(" ");
        let is_here = self.given_in.is_empty() || self.given_in == working_folder();
        let there = if is_here { String::new() } else { format!("cd {} && ", shell_word(&self.given_in)) };
        commands(&format!("{there}mergeforge {words}"), numbers, self.part.1, flags)
    }
}

/// Some names, if there are any.
fn some(names: &[String]) -> Option<String> {
    (!names.is_empty()).then(|| few(names, NAMED_MAX))
}

/// The last part of a part's folder.
fn name_of(folder: &Path) -> String {
    folder.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// What makes these of so many parts, each to be typed.
fn commands(words: &str, numbers: &[usize], of: usize, flags: &str) -> String {
    let command = |number: &usize| format!("`{words} --part {number}/{of}{flags}`");
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
    tensors: Vec<OutTensor>,
    finished: Vec<Finished>,
    manifest: Manifest,
    /// The shards of each part, of all.
    shards: Vec<Range<usize>>,
}

impl Joined {
    /// Puts together what parts of one merge say, once it is seen that they have every tensor once.
    fn of(records: &[(PathBuf, Record)]) -> Result<Self> {
        let first = records.first().expect("there is a first part");
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
        Ok(Self { layout, tensors, finished, manifest, shards })
    }

    /// The files beside the tensors, which the first part has.
    fn sidecars(&self, (folder, record): &(PathBuf, Record)) -> Result<Vec<Sidecar>> {
        let from = ModelFolder::open(folder)?;
        let mut files = Vec::new();
        for (file, _) in &record.files {
            let original = from.file(format!("{BESIDE}/{file}"));
            if let Some(FileRecord::Other { sha256, .. }) = self.manifest.files.get(file)
                && file != CARD
                && original.sha256(&|_| Ok(()))?.1 != *sha256
            {
                let path = original.path();
                let what = format!("{} was changed after the merge", path.display());
                let again = record.commands(&[1], " --restart");
                return Err(Error::input(what)
                    .in_file(&path)
                    .hint(format!("make the first part again: {again}")));
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
                let command = records[part].1.commands(&[part + 1], "");
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
    for path in parts_in(folder)?.made.into_values() {
        let record = match Record::read(&path)? {
            There::Recorded(record) => *record,
            There::Unrecorded(_) => continue,
            There::Nothing => {
                // One that was being removed.
                remove_empty(&path);
                continue;
            }
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
    let (removed, all) = remove_all(folder, &records);
    let (removed, stays, folder) =
        (some(&removed), some(&names_in(folder).unwrap_or_default()), folder.to_path_buf());
    Ok(Done { made: None, left: all.err(), removed, folder, stays })
}

/// Removes a folder, if it is empty.
fn remove_empty(folder: &Path) {
    if let (Some(parent), Some(name)) = (folder.parent(), folder.file_name()) {
        let _ = Folder::open(parent).and_then(|parent| parent.remove_folder(name));
    }
}

/// Removes the folders of parts, each as far as that can be, and the one that they lie in if it is empty then. Returns the names of those
/// that are gone, and why one is not.
fn remove_all(folder: &Path, records: &[(PathBuf, Record)]) -> (Vec<String>, Result<()>) {
    let (mut gone, mut all) = (Vec::new(), Ok(()));
    for (path, record) in records {
        match remove(path, &record.all_files()) {
            Ok(()) => gone.push(name_of(path)),
            left => all = all.and(left),
        }
    }
    // Of parts of other numbers, or half made ones, whoever made them has to know what becomes of them.
    remove_empty(folder);
    (gone, all)
}

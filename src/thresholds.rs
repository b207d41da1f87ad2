//! Thresholds that merges found, kept for the next merge of the same models: it then needs no counting.
//!
//! Where a task vector is trimmed depends on its tensor and the density alone, not on weights, λ or seed: who tries
//! several of them selects once. What is kept here is never trusted. The merge that uses it counts what it keeps, which
//! proves a threshold or refutes it, and selects anew where it is refuted. So a file that is lost, stale or damaged costs
//! time and nothing else, and no failure here is an error.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::cache::{UNFINISHED, make_private, read_small, replace};
use crate::checkpoint::Source;
use crate::files;
use crate::input::{At, Input};
use crate::kernel::thinning::Trim;
use crate::limits::THRESHOLDS_BYTES_MAX;
use crate::plan::{Action, Plan};
use crate::recipe::Threshold;
use crate::stream::Merged;

/// Pairs of models that are remembered; those used longest ago are forgotten.
const PAIRS_MAX: usize = 256;

/// Densities that are remembered of a tensor; the oldest are forgotten.
const DENSITIES_MAX: usize = 16;

/// The thresholds of one model's tensors, one for each density.
type Known = HashMap<Names, Vec<Remembered>>;

/// How many elements are kept, the key of the smallest, and the flat index before which keys equal to that are kept.
type Remembered = (u64, u32, u64);

/// A tensor's names in the base and in the model.
type Names = (String, String);

/// What earlier merges found for the inputs of a plan's tensors, in their order.
pub fn recall(cache: &Path, plan: &Plan, sources: &[Source]) -> Vec<Vec<Threshold>> {
    let pairs = Pairs::new(cache, sources);
    let mut files: HashMap<PathBuf, Known> = HashMap::new();
    let mut of_tensor = |index: usize| {
        let mut found = Vec::new();
        for (input, base, model) in task_vectors(plan, index) {
            let file = pairs.file(base, model);
            let known = files.entry(file).or_insert_with_key(|file| read(file).unwrap_or_default());
            let of_names = known.get(&pairs.names(base, model)).into_iter().flatten();
            found.extend(of_names.map(|(kept, threshold, cut)| Threshold {
                input,
                kept: *kept,
                trim: Trim::new(*threshold, *cut),
            }));
        }
        found
    };
    (0..plan.tensors.len()).map(&mut of_tensor).collect()
}

/// Keeps what a merge found of tensors, by their places in the plan. Where the folder cannot be written, nothing is kept.
pub fn remember<'a>(
    cache: &Path,
    plan: &Plan,
    sources: &[Source],
    merged: impl Iterator<Item = (usize, &'a Merged)>,
) {
    let pairs = Pairs::new(cache, sources);
    let mut files: HashMap<PathBuf, Known> = HashMap::new();
    for (index, merged) in merged.filter(|(_, merged)| !merged.thresholds.is_empty()) {
        for (input, base, model) in task_vectors(plan, index) {
            for Threshold { kept, trim, .. } in merged.thresholds.iter().filter(|found| found.input == input)
            {
                let known = files
                    .entry(pairs.file(base, model))
                    .or_insert_with_key(|file| read(file).unwrap_or_default());
                let densities = known.entry(pairs.names(base, model)).or_default();
                densities.retain(|(known, ..)| known != kept);
                densities.push((*kept, trim.threshold, trim.cut()));
                let beyond = densities.len().saturating_sub(DENSITIES_MAX);
                densities.drain(..beyond);
            }
        }
    }
    for (file, known) in &files {
        let _ = write(file, known);
    }
    let _ = forget_oldest(&pairs.folder);
}

/// The inputs of a tensor that are compared with its base: the input, where the base's tensor is, and where its own is.
fn task_vectors(plan: &Plan, index: usize) -> Vec<(usize, At, At)> {
    let Action::Merge(merge) = &plan.tensors[index].action else { return Vec::new() };
    let Some(base) = merge.settings.base else { return Vec::new() };
    // Of tensors that are made of others nothing is known by name.
    let stored = |input: usize| match &plan.inputs[merge.inputs[input]] {
        Input::Stored(at) => Some(*at),
        Input::Made(_) => None,
    };
    let of = |input: usize| Some((input, stored(base)?, stored(input)?));
    merge.settings.non_base().filter_map(of).collect()
}

/// Which file holds what is known of which two models.
struct Pairs<'a> {
    folder: PathBuf,
    sources: &'a [Source],
    /// What each model's files are, without the name that the user calls it by.
    identities: Vec<String>,
}

impl<'a> Pairs<'a> {
    fn new(cache: &Path, sources: &'a [Source]) -> Self {
        let identity = |source: &Source| source.identity()["files"].to_string();
        let identities = sources.iter().map(identity).collect();
        Self { folder: cache.join("thresholds"), sources, identities }
    }

    fn file(&self, base: At, model: At) -> PathBuf {
        let both = [self.identities[base.source].as_str(), self.identities[model.source].as_str()].join("\n");
        self.folder.join(format!("{}.json", blake3::hash(both.as_bytes()).to_hex()))
    }

    fn names(&self, base: At, model: At) -> Names {
        let name = |at: At| self.sources[at.source].tensor_at(at.tensor).name.clone();
        (name(base), name(model))
    }
}

/// What a file holds.
#[derive(Serialize, Deserialize)]
struct ThresholdFile {
    format: u32,
    tensors: Vec<(Names, Vec<Remembered>)>,
}

/// Files of another form are not understood.
const FORMAT: u32 = 1;

fn read(file: &Path) -> io::Result<Known> {
    let ThresholdFile { format, tensors } = serde_json::from_slice(&read_small(file, THRESHOLDS_BYTES_MAX)?)?;
    if format == FORMAT { Ok(tensors.into_iter().collect()) } else { Err(io::ErrorKind::InvalidData.into()) }
}

fn write(file: &Path, known: &Known) -> io::Result<()> {
    let mut tensors: Vec<_> = known.clone().into_iter().collect();
    tensors.sort_unstable();
    make_private(file.parent().unwrap_or(Path::new("")))?;
    replace(file, &serde_json::to_vec(&ThresholdFile { format: FORMAT, tensors })?)
}

/// Whether a file of this name is one that [`write()`] makes.
fn is_ours(name: &str) -> bool {
    let is_hash = |text: &str| text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match name.split('.').collect::<Vec<_>>()[..] {
        [hash, "json"] => is_hash(hash),
        [hash, process, UNFINISHED] => is_hash(hash) && is_number(process),
        _ => false,
    }
}

/// Removes the files of our own that were written longest ago; nothing else that lies there.
fn forget_oldest(folder: &Path) -> io::Result<()> {
    let mut files: Vec<(SystemTime, PathBuf)> = Vec::new();
    for entry in files::list(folder)? {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(is_ours) && entry.file_type()?.is_file() {
            files.push((entry.metadata()?.modified()?, entry.path()));
        }
    }
    files.sort_unstable();
    let beyond = files.len().saturating_sub(PAIRS_MAX);
    files.iter().take(beyond).try_for_each(|(_, file)| files::remove_file(file))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn only_files_of_our_own_naming_are_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let hash = |i: usize| format!("{i:064x}");
        for i in 0..PAIRS_MAX + 3 {
            fs::write(at(&format!("{}.json", hash(i))), "{}").unwrap();
        }
        fs::write(at(&format!("{}.12.partial", hash(0))), "").unwrap();
        let foreign =
            ["thesis.tex", "package.json", "0.json", "photo.partial", &format!("{}.json.bak", hash(1))];
        for name in foreign {
            fs::write(at(name), "").unwrap();
            let file = fs::File::options().write(true).open(at(name)).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        }
        fs::create_dir(at(&format!("{}.json", "f".repeat(64)))).unwrap();
        forget_oldest(folder.path()).unwrap();
        assert!(foreign.iter().all(|name| at(name).exists()));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), PAIRS_MAX + foreign.len() + 1);
    }

    #[cfg(unix)]
    #[test]
    fn a_link_in_place_of_the_unfinished_file_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (file, precious) = (folder.path().join("known.json"), folder.path().join("precious"));
        fs::write(&precious, "mine").unwrap();
        let unfinished = folder.path().join(format!("known.{}.partial", std::process::id()));
        std::os::unix::fs::symlink(&precious, unfinished).unwrap();
        assert!(write(&file, &Known::new()).is_err());
        assert_eq!(fs::read_to_string(precious).unwrap(), "mine");
    }
}

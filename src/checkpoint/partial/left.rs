//! What merges that ended have left beside an output, or in it: looked at, and removed.

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::path::Path;

use serde_json::Value;

use super::{LOCK, MARK, clear, is_still_there, name_of, only_ours};
use crate::checkpoint::journal::{JOURNAL, Left, left_in};
use crate::checkpoint::out_folder::{in_the_way, partial_of, resolve};
use crate::error::{Error, Result};
use crate::files::Folder;
use crate::text::quoted;

/// Checks that what a stopped merge has left at `out`, if anything, is of what is made, as far as that is said: keys that `making` lacks
/// are not compared. A merge that is at work there is left to whoever makes the output, and so is what is not this user's.
///
/// # Errors
/// Kind `Config`, with what differs; and those of `making`.
pub fn check_left(out: &Path, making: impl FnOnce() -> Result<Value>) -> Result<()> {
    let Ok(path) = resolve(out).map(|out| partial_of(&out)) else { return Ok(()) };
    let Some(left) = left_at(&path) else { return Ok(()) };
    let making = making()?;
    let differs = !differing(&left.making, &making).is_empty();
    if differs { Err(of_another(&path, &left.making, Some(&making))) } else { Ok(()) }
}

fn left_at(path: &Path) -> Option<Left> {
    let parent = Folder::open(path.parent()?).ok()?;
    let folder = parent.open_folder(name_of(path)).ok()?;
    folder.found().ok()?.is_ours().ok()?;
    folder.open_file(LOCK).ok()?.try_lock_shared().ok()?;
    let mut journal = folder.open_file(JOURNAL).ok()?;
    left_in(&mut journal).ok()?.filter(|left| !left.finished.is_empty())
}

/// The keys of what is made that say something else.
fn differing<'a>(then: &Value, now: &'a Value) -> Vec<&'a str> {
    let keys = now.as_object().into_iter().flatten().map(|(key, _)| key);
    keys.filter(|key| then[*key] != now[*key]).map(String::as_str).collect()
}

pub(super) fn of_another(path: &Path, then: &Value, now: Option<&Value>) -> Error {
    let (shown, differ) = (path.display(), now.map_or_else(Vec::new, |now| differing(then, now)));
    let other = if differ.is_empty() { String::new() } else { format!(" (changed: {})", differ.join(", ")) };
    let refusal = Error::config(format!("{shown} holds part of a different merge{other}"));
    refusal.hint("give --restart to begin anew; or merge as before, or into another folder")
}

/// Removes the lock and the journal from an output whose merge was killed after the rename. Where a merge is still at work, or this cannot
/// be done, they stay: readers pass them over.
pub fn remove_lock(out: &Path) {
    let Ok(folder) = Folder::open(out) else { return };
    let Ok(mut lock) = folder.open_file(LOCK) else { return };
    let mut mark = vec![0; MARK.len()];
    let is_left = lock.try_lock().is_ok() && is_still_there(&lock, &folder).unwrap_or(false);
    if is_left && lock.read_exact(&mut mark).is_ok() && mark == MARK {
        let journal = clear(&folder, &BTreeSet::from([JOURNAL.to_owned()]));
        let _ = journal.and_then(|()| folder.remove_file(LOCK)).and_then(|()| folder.sync());
    }
}

/// Checks that a folder holds nothing but these files, and what a merge that was killed once the folder had its name has left there.
///
/// # Errors
/// Kind `Output`: it holds something else, which is named, or cannot be looked into.
pub fn check_only(path: &Path, files: &BTreeSet<String>) -> Result<()> {
    let opened = Folder::open(path).map_err(|cause| Error::writing(path, &cause))?;
    // Files of weights are taken for a merge's whatever their numbers are.
    let found = only_ours(&opened, Some(files.clone())).and_then(|found| {
        match found.iter().find(|file| !files.contains(*file) && *file != JOURNAL) {
            Some(other) => Err(format!("it holds {}, which is none of its files", quoted(other))),
            None => Ok(()),
        }
    });
    let hint = format!("move that away; or remove {} where nothing in it is of use", path.display());
    found.map_err(|what| in_the_way(path, &what).hint(hint))
}

/// Removes a folder that holds these files, and `last`, which goes last: as long as that is there, they are known. What else is in the
/// folder stays, and the folder with it.
///
/// # Errors
/// Those of the system.
pub fn remove_folder(path: &Path, files: &BTreeSet<String>, last: &str) -> io::Result<()> {
    let parent = Folder::open(path.parent().unwrap_or(path))?;
    let folder = parent.open_folder(name_of(path))?;
    // A merge that was killed once the folder had its name has left its own files there.
    let own = [JOURNAL, LOCK].map(str::to_owned);
    clear(&folder, &files.iter().cloned().chain(own).collect())?;
    // After a power cut, too, nothing is there without it.
    folder.sync()?;
    clear(&folder, &BTreeSet::from([last.to_owned()]))?;
    drop(folder);
    parent.remove_folder(name_of(path))
}

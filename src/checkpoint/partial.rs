//! The output folder appears whole or not at all: it is built beside its place, in `OUT.partial`, and
//! renamed when everything is on the disk. A reader never meets half a checkpoint.
//!
//! `OUT.partial` is locked while it is built. A lock dies with its process, so one that can be taken is
//! what a stopped merge left behind: if it is this user's own, carries our mark, and holds nothing but weights
//! and the files that its lock lists, each before it is made. Where its [journal](super::journal) says that some of the same output is
//! finished, the weights stay and the merge goes on; else all is cleared. The lock goes after the rename: a merge that is killed at any
//! moment leaves a folder that the next one takes over, or an output that is whole.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{File, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use cap_fs_ext::{DirExt, MetadataExt};
use cap_std::fs::{Dir, FileType, Metadata};

use serde_json::Value;

use super::file::Access;
use super::journal::{Finished, JOURNAL, Journal, Left, left_in};
use super::layout::Layout;
use super::layout::is_weights_file;
use super::out_folder::{free_to_take, nearest_existing, partial_of, resolve};
use super::own::{existing_file, is_ours, new_file, open_to, private_folder, sync_folder};
use crate::error::{Error, Result};
use crate::limits::LOCK_BYTES_MAX;
use crate::text::quoted;

/// The file in `OUT.partial` whose lock says that a merge is at work there.
const LOCK: &str = ".lock";

/// What the lock begins with: without it the folder is somebody else's, whatever its name. The names of the files beside the
/// weights follow, a line each.
const MARK: &[u8] =
    b"A merge by mergeforge writes here. What is left when it has ended is cleared by the next merge, or taken over.\n";

/// What is made, for whoever is to go on with it.
#[derive(Debug, Clone, Copy)]
pub struct Making<'a> {
    /// All that the bytes of its tensors depend on: an object whose keys are what differs, in words.
    pub what: &'a Value,
    /// Whether what a stopped merge has left is removed.
    pub anew: bool,
}

/// `OUT.partial`, locked. Dropped before [`Partial::publish`] has given it its name, it is removed with all it holds, unless the journal
/// says that much is finished.
///
/// Others may write where it lies. So all is done by handles, which nobody can exchange, and no link is followed.
#[derive(Debug)]
pub(super) struct Partial {
    out: PathBuf,
    path: PathBuf,
    parent: Dir,
    folder: Dir,
    /// Held open, and so locked, until the folder is published or gone.
    lock: File,
    access: Access,
    /// The parents that were made for it: the folders they were made in, and their names.
    made: Vec<(Dir, OsString)>,
    /// The files that were made in it.
    files: Mutex<BTreeSet<String>>,
    keep: bool,
    /// Whether it was there, left by a merge that was killed.
    was_left: bool,
    /// What that merge had finished of the same output.
    left: Option<Left>,
    /// What is finished by now.
    journal: Option<Arc<Journal>>,
    /// Whether the lock holds: only then can another merge know that this one has ended.
    is_locked: bool,
}

impl Partial {
    /// Makes an empty `OUT.partial`, or takes over what a stopped merge of this user left: what is finished of the same output stays.
    /// Only this user may look into it until it is published; then `access` holds.
    ///
    /// # Errors
    /// Kind `Output`: another merge is at work there, or the folder is not ours. Kind `Config`: OUT holds something by now, or what was
    /// left is of another output.
    pub fn create(out: &Path, access: Access, making: Option<Making<'_>>) -> Result<Self> {
        let out = resolve(out).map_err(Error::output)?;
        let partial = Self::begin(partial_of(&out), out, access, making)?;
        // Another merge may have held the lock until now, and taken the place.
        free_to_take(&partial.out, &partial.out)?;
        Ok(partial)
    }

    fn begin(path: PathBuf, out: PathBuf, access: Access, making: Option<Making<'_>>) -> Result<Self> {
        let mut made = Vec::new();
        let begun = parent_of(&path, &mut made)
            .and_then(|parent| begin(&parent, &path, making).map(|begun| (parent, begun)));
        match begun {
            Ok((parent, Begun { folder, lock, is_locked, was_left, files, left })) => {
                let files = Mutex::new(files);
                let (keep, journal) = (false, None);
                Ok(Self {
                    out,
                    path,
                    parent,
                    folder,
                    lock,
                    access,
                    made,
                    files,
                    keep,
                    was_left,
                    left,
                    journal,
                    is_locked,
                })
            }
            Err(error) => {
                remove_parents(&mut made);
                Err(error)
            }
        }
    }

    /// Where it lies, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes a file in it, which must not be there; a `/` in its name leads into folders there, which are made if they have to be.
    ///
    /// # Errors
    /// Those of the system.
    pub fn create_file(&self, name: &str, access: Access) -> io::Result<File> {
        self.note(name)?;
        for folder in folders_of(name).rev() {
            match self.folder.create_dir_with(folder, &private_folder()) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
                _ => {}
            }
        }
        let file = self.folder.open_with(name, &new_file(access.file_mode()))?;
        Ok(file.into_std())
    }

    /// Begins its journal, or goes on with the one that is there, and returns what that had finished. Where nobody could see that this
    /// merge has ended there is none.
    ///
    /// # Errors
    /// Those of the system.
    pub fn journal(
        &mut self,
        making: &Value,
        layout: &Layout,
    ) -> io::Result<(Option<Arc<Journal>>, Vec<Finished>)> {
        if !self.is_locked {
            return Ok((None, Vec::new()));
        }
        let journal = match &self.left {
            Some(left) => Journal::go_on(self.kept_file(JOURNAL, Access::ANY)?, left, layout)?,
            None => Journal::begin(self.create_file(JOURNAL, Access::ANY)?, making)?,
        };
        let left = self.left.take().map_or_else(Vec::new, |left| left.finished);
        Ok((Some(Arc::clone(self.journal.insert(Arc::new(journal)))), left))
    }

    /// A file that a stopped merge left in it, from now on no more readable than `access` says.
    ///
    /// # Errors
    /// Those of the system.
    pub fn kept_file(&self, name: &str, access: Access) -> io::Result<File> {
        let file = self.folder.open_with(name, &existing_file())?.into_std();
        access.narrow(&file)?;
        Ok(file)
    }

    /// Removes what a stopped merge left in it, but for its journal and these files.
    ///
    /// # Errors
    /// Those of the system.
    pub fn keep_only(&self, names: &BTreeSet<&str>) -> io::Result<()> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let stays = |file: &String| file == JOURNAL || names.contains(file.as_str());
        let (stay, go) = std::mem::take(&mut *files).into_iter().partition(stays);
        *files = stay;
        clear(&self.folder, &go)
    }

    /// Removes such a file.
    ///
    /// # Errors
    /// Those of the system.
    pub fn remove_file(&self, name: &str) -> io::Result<()> {
        self.folder.remove_file(name)
    }

    /// Puts the names of its files on the disk, and its own. Where that cannot be, a power cut takes more of what is finished.
    pub fn sync_names(&self) {
        let _ = self.lock.sync_data();
        let _ = sync_folder(&self.folder);
        let _ = sync_folder(&self.parent);
    }

    /// Lists files in the lock, and puts that on the disk, before the first of them is made: after a power cut, too, none is there that
    /// is not known for its own.
    ///
    /// # Errors
    /// Those of the system.
    pub fn expect<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> io::Result<()> {
        names.into_iter().try_for_each(|name| self.note(name))?;
        let _ = self.lock.sync_data();
        Ok(())
    }

    /// Lists a file in the lock before it is made, so that a merge that is killed leaves none that is not known for its own.
    fn note(&self, name: &str) -> io::Result<()> {
        if name.contains('\n') {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a file's name has a line's end in it"));
        }
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let is_listed = files.insert(name.into()) && !is_weights_file(name);
        if is_listed { (&self.lock).write_all(format!("{name}\n").as_bytes()) } else { Ok(()) }
    }

    /// Gives the folder its name; the rename is on the disk when this returns.
    ///
    /// # Errors
    /// Kind `Output`. Where only the rename failed the work is done, so `OUT.partial` stays; where only what follows
    /// failed, OUT is there. The message says so.
    pub fn publish(mut self) -> Result<()> {
        let failed = |e: io::Error| Error::writing(&self.path, &e);
        let umask = self.lock.metadata().map(|lock| Access::ANY.of_new_file(&lock)).map_err(failed)?;
        let access = self.access.and(umask);
        let files = self.files.get_mut().unwrap_or_else(PoisonError::into_inner).clone();
        for folder in folders(&files).into_iter().rev() {
            let folder = self.folder.open_dir_nofollow(folder).map_err(failed)?;
            open_to(&folder, access).and_then(|()| sync_folder(&folder)).map_err(failed)?;
        }
        open_to(&self.folder, access).and_then(|()| sync_folder(&self.folder)).map_err(failed)?;
        self.still_there().map_err(failed)?;
        self.keep = true;
        // Some systems rename no folder in which files are open.
        let has_journal = self.journal.take().inspect(|journal| journal.kept().nothing()).is_some();
        self.rename().map_err(|e| self.not_renamed(&e))?;
        // Only now: what is killed before is known for a merge's leftover, and what is killed after is whole.
        let without_journal = if has_journal { self.folder.remove_file(JOURNAL) } else { Ok(()) };
        let finished = without_journal
            .and_then(|()| self.folder.remove_file(LOCK))
            .and_then(|()| sync_folder(&self.folder));
        finished.and_then(|()| sync_folder(&self.parent)).map_err(|e| self.not_known_to_last(&e))
    }

    /// Whether `OUT.partial` is still this folder, as far as that can be known.
    fn still_there(&self) -> io::Result<()> {
        let (there, ours) = (self.parent.symlink_metadata(name_of(&self.path))?, self.folder.dir_metadata()?);
        if there.dev() == ours.dev() && there.ino() == ours.ino() {
            return Ok(());
        }
        Err(io::Error::other("another folder has been put in its place"))
    }

    /// Replaces an empty folder too, which only POSIX's rename does by itself.
    fn rename(&self) -> io::Result<()> {
        let (from, to) = (name_of(&self.path), name_of(&self.out));
        if cfg!(not(unix)) && self.parent.is_dir(to) {
            self.parent.remove_dir(to)?;
        }
        self.parent.rename(from, &self.parent, to)
    }

    fn not_renamed(&self, cause: &io::Error) -> Error {
        // Without them no merge takes the finished files for leftovers.
        let _ = self.folder.remove_file(JOURNAL);
        let _ = self.folder.remove_file(LOCK);
        let (partial, out) = (self.path.display(), self.out.display());
        Error::output(format!("the merge is complete, but {partial} could not be renamed to {out}: {cause}"))
            .hint(format!("the finished files are in {partial}: move them where you want them"))
    }

    fn not_known_to_last(&self, cause: &io::Error) -> Error {
        let (partial, out) = (self.path.display(), self.out.display());
        Error::output(format!(
            "the merge is complete and {out} has all its files, which are on the disk, but whether its name is there too is \
             unknown: {cause}"
        ))
        .hint(format!("`sync` puts it there; after a power cut before that, look for the files in {partial}"))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // What an earlier merge left stays, too, where this one did not come to go on with it.
        let is_worth_it =
            self.journal.as_ref().map_or(self.left.is_some(), |journal| journal.kept().bytes().is_some());
        if !self.keep && !is_worth_it {
            let files = std::mem::take(self.files.get_mut().unwrap_or_else(PoisonError::into_inner));
            // What cannot be removed now is cleared by the next merge to the same place: the lock goes last.
            if clear(&self.folder, &files).is_ok() {
                let _ = self.folder.remove_file(LOCK);
            }
            let _ = self.still_there().and_then(|()| self.parent.remove_dir(name_of(&self.path)));
            remove_parents(&mut self.made);
        }
    }
}

/// A folder for results that are needed for a while, locked while they are. Dropped, it is removed with all that was expected in it.
#[derive(Debug)]
pub struct WorkFolder(Partial);

impl WorkFolder {
    /// Makes an empty folder at `path`, or takes over what a killed merge of this user left there, under the rules of `OUT.partial`.
    ///
    /// # Errors
    /// Kind `Output`: another merge is at work there, or the folder is not ours.
    pub fn create(path: &Path) -> Result<Self> {
        let path = resolve(path).map_err(Error::output)?;
        Partial::begin(path.clone(), path, Access::ANY, None).map(Self)
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Whether a killed merge had left it.
    pub fn was_left(&self) -> bool {
        self.0.was_left
    }

    /// Lists the files of a result before it is merged into the folder `name` here.
    ///
    /// # Errors
    /// Kind `Output`: the list cannot be written.
    pub fn expect(&self, name: &str, files: &[String]) -> Result<()> {
        let in_both = |folder: &Path| {
            let files = files.iter().map(String::as_str).chain([LOCK, JOURNAL]);
            files.map(|file| format!("{}/{file}", folder.display())).collect::<Vec<_>>()
        };
        let listed = [partial_of(Path::new(name)), name.into()];
        let mut listed = listed.iter().flat_map(|folder| in_both(folder));
        let failed = |cause| Error::writing(&self.path().join(LOCK), &cause);
        listed.try_for_each(|file| self.0.note(&file)).map_err(failed)
    }
}

/// The last part of a path that [`resolve`] has seen to have one.
fn name_of(path: &Path) -> &Path {
    path.file_name().unwrap_or_default().as_ref()
}

/// Opens the folder that a path lies in; what is missing on the way is made, and noted.
fn parent_of(path: &Path, made: &mut Vec<(Dir, OsString)>) -> Result<Dir> {
    let parent = path.parent().unwrap_or(path);
    let failed = |e: io::Error| Error::writing(parent, &e);
    let existing = nearest_existing(parent).unwrap_or(parent);
    let mut folder = Dir::open_ambient_dir(existing, cap_std::ambient_authority()).map_err(failed)?;
    for part in parent.strip_prefix(existing).unwrap_or(Path::new("")) {
        match folder.create_dir(part) {
            // Another merge may make the same one at the same time.
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(failed(e)),
            Ok(()) => made.push((folder.try_clone().map_err(failed)?, part.into())),
            Err(_) => {}
        }
        folder = folder.open_dir_nofollow(part).map_err(failed)?;
    }
    Ok(folder)
}

/// Removes the parents that were made, unless something else has come there.
fn remove_parents(made: &mut Vec<(Dir, OsString)>) {
    while let Some((folder, name)) = made.pop() {
        if folder.remove_dir(name).is_err() {
            return;
        }
    }
}

/// A lock's file, and whether it holds.
type Lock = (File, bool);

/// A folder that is ours.
struct Begun {
    folder: Dir,
    lock: File,
    is_locked: bool,
    was_left: bool,
    /// The files that stayed in it.
    files: BTreeSet<String>,
    left: Option<Left>,
}

/// Makes or takes over the folder.
fn begin(parent: &Dir, path: &Path, making: Option<Making<'_>>) -> Result<Begun> {
    let failed = |e: io::Error| Error::writing(path, &e);
    let name = name_of(path);
    let is_new = match parent.create_dir_with(name, &private_folder()) {
        Ok(()) => true,
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => false,
        Err(e) => return Err(failed(e)),
    };
    let begun = locked(parent, path, is_new, making);
    if is_new && begun.is_err() {
        let _ = parent.remove_dir(name);
    }
    begun
}

/// Opens the folder and locks it, if it is ours.
fn locked(parent: &Dir, path: &Path, is_new: bool, making: Option<Making<'_>>) -> Result<Begun> {
    let failed = |e: io::Error| Error::writing(path, &e);
    let name = name_of(path);
    // Neither a link nor somebody else's folder, into which what follows could lead.
    if !parent.symlink_metadata(name).map_err(failed)?.is_dir() {
        return Err(in_the_way(path, "it is no folder"));
    }
    let folder = parent.open_dir_nofollow(name).map_err(failed)?;
    is_ours(&folder.dir_metadata().map_err(failed)?).map_err(|what| in_the_way(path, what))?;
    let ((lock, is_locked), files, left) = if is_new {
        (new_lock(&folder, path)?, BTreeSet::new(), None)
    } else {
        take_over(&folder, path, making)?
    };
    Ok(Begun { folder, lock, is_locked, was_left: !is_new, files, left })
}

/// Locks a folder that was just made, if that can be.
fn new_lock(folder: &Dir, path: &Path) -> Result<Lock> {
    let failed = |e: io::Error| Error::writing(&path.join(LOCK), &e);
    let mut lock = match folder.open_with(LOCK, &new_file(Access::ANY.file_mode())) {
        Ok(lock) => lock.into_std(),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Err(in_use(path)),
        Err(e) => return Err(failed(e)),
    };
    let is_locked = match lock.try_lock() {
        Err(TryLockError::WouldBlock) => return Err(in_use(path)),
        // Some network file systems have no locks. The folder is new, so nobody else is in it.
        locked => locked.is_ok(),
    };
    lock.write_all(MARK).map_err(failed)?;
    Ok((lock, is_locked))
}

/// Locks what a stopped merge left, and clears it but for what is finished of the same output: these files stay.
fn take_over(
    folder: &Dir,
    path: &Path,
    making: Option<Making<'_>>,
) -> Result<(Lock, BTreeSet<String>, Option<Left>)> {
    let failed = |e: io::Error| Error::writing(path, &e);
    let not_ours = |what: &str| in_the_way(path, what);
    if !folder.symlink_metadata(LOCK).is_ok_and(|found| found.is_file()) {
        // Killed between making the folder and the lock.
        return match only_ours(folder, None) {
            Ok(_) => Ok((new_lock(folder, path)?, BTreeSet::new(), None)),
            Err(_) => Err(not_ours("no merge is making it (it holds no .lock), and it is not empty")),
        };
    }
    let mut lock = folder.open_with(LOCK, &existing_file()).map_err(failed)?.into_std();
    match lock.try_lock() {
        Ok(()) if is_still_there(&lock, folder) => {}
        Ok(()) | Err(TryLockError::WouldBlock) => return Err(in_use(path)),
        Err(TryLockError::Error(e)) => {
            return Err(not_ours(&format!("whether a merge is making it cannot be seen ({e})")));
        }
    }
    let mut text = Vec::new();
    (&lock).take(LOCK_BYTES_MAX).read_to_end(&mut text).map_err(failed)?;
    let files = match listed(&text) {
        Some(files) => files,
        // Killed between making the lock and marking it: then there is nothing else.
        None if text.is_empty() && only_ours(folder, None).is_ok() => BTreeSet::new(),
        None => return Err(not_ours("its .lock is not one of a merge")),
    };
    let files = only_ours(folder, Some(files)).map_err(|what| not_ours(&what))?;
    let left = left_by(folder, path, making)?;
    let stays = |file: &String| left.is_some() && (is_weights_file(file) || file == JOURNAL);
    let (stay, go): (BTreeSet<String>, BTreeSet<String>) = files.into_iter().partition(stays);
    clear(folder, &go).map_err(failed)?;
    let listed = if left.is_some() {
        // What is listed stays listed at every moment. A line that was cut off goes.
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        lock.set_len(whole as u64).and_then(|()| lock.seek(SeekFrom::End(0)).map(drop))
    } else {
        lock.set_len(0).and_then(|()| lock.rewind()).and_then(|()| lock.write_all(MARK))
    };
    listed.map_err(failed)?;
    Ok(((lock, true), stay, left))
}

/// What of the same output is finished in a folder.
fn left_by(folder: &Dir, path: &Path, making: Option<Making<'_>>) -> Result<Option<Left>> {
    if making.is_some_and(|making| making.anew) {
        return Ok(None);
    }
    let read = folder.open_with(JOURNAL, &existing_file()).and_then(|file| left_in(&mut file.into_std()));
    let left = match read {
        Ok(left) => left.filter(|left| !left.finished.is_empty()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => {
            let unread = Error::reading(&path.join(JOURNAL), &e);
            return Err(unread.hint(format!("--restart, or removing {}, begins anew", path.display())));
        }
    };
    match (left, making) {
        (Some(left), Some(making)) if left.making == *making.what => Ok(Some(left)),
        (Some(left), making) => Err(of_another(path, &left.making, making.map(|making| making.what))),
        (None, _) => Ok(None),
    }
}

/// Checks that what a stopped merge has left at `out`, if anything, is of what is made, as far as that is said: keys that `making` lacks
/// are not compared. A merge that is at work there is left to whoever makes the output, and so is what is not this user's.
///
/// # Errors
/// Kind `Config`, with what differs.
pub fn check_left(out: &Path, making: impl FnOnce() -> Value) -> Result<()> {
    let Ok(path) = resolve(out).map(|out| partial_of(&out)) else { return Ok(()) };
    let Some(left) = left_at(&path) else { return Ok(()) };
    let making = making();
    let differs = !differing(&left.making, &making).is_empty();
    if differs { Err(of_another(&path, &left.making, Some(&making))) } else { Ok(()) }
}

fn left_at(path: &Path) -> Option<Left> {
    let parent = Dir::open_ambient_dir(path.parent()?, cap_std::ambient_authority()).ok()?;
    let folder = parent.open_dir_nofollow(name_of(path)).ok()?;
    is_ours(&folder.dir_metadata().ok()?).ok()?;
    folder.open_with(LOCK, &existing_file()).ok()?.into_std().try_lock_shared().ok()?;
    let mut journal = folder.open_with(JOURNAL, &existing_file()).ok()?.into_std();
    left_in(&mut journal).ok()?.filter(|left| !left.finished.is_empty())
}

/// The keys of what is made that say something else.
fn differing<'a>(then: &Value, now: &'a Value) -> Vec<&'a str> {
    let keys = now.as_object().into_iter().flatten().map(|(key, _)| key);
    keys.filter(|key| then[*key] != now[*key]).map(String::as_str).collect()
}

fn of_another(path: &Path, then: &Value, now: Option<&Value>) -> Error {
    let (shown, differ) = (path.display(), now.map_or_else(Vec::new, |now| differing(then, now)));
    let other = if differ.is_empty() { String::new() } else { format!(" (changed: {})", differ.join(", ")) };
    let refusal = Error::config(format!("{shown} holds part of a different merge{other}"));
    refusal.hint("give --restart to begin anew; or merge as before, or into another folder")
}

/// The files that a lock lists, if it is one of a merge. The last line may have been cut off: then its file was not made.
fn listed(lock: &[u8]) -> Option<BTreeSet<String>> {
    let text = std::str::from_utf8(lock.strip_prefix(MARK)?).ok()?;
    let (lines, _cut_off) = text.rsplit_once('\n').unwrap_or_default();
    Some(lines.split('\n').map(str::to_owned).collect())
}

/// The folders that the path of a file leads through, the innermost first.
fn folders_of(file: &str) -> impl DoubleEndedIterator<Item = &str> {
    file.rmatch_indices('/').map(|(end, _)| &file[..end])
}

/// The folders of files: each behind those that it lies in.
fn folders(files: &BTreeSet<String>) -> BTreeSet<&str> {
    files.iter().flat_map(|file| folders_of(file)).collect()
}

fn in_the_way(path: &Path, what: &str) -> Error {
    Error::output(format!("{} is in the way: {what}", path.display()))
        .hint("move or delete it, or choose another output folder")
}

fn in_use(path: &Path) -> Error {
    Error::output(format!("another merge is writing {}", path.display()))
        .hint("wait for it, or choose another output folder")
}

/// Between opening and locking, its owner may have removed the file: the lock would guard nothing.
fn is_still_there(lock: &File, folder: &Dir) -> bool {
    match (Metadata::from_file(lock), folder.symlink_metadata(LOCK)) {
        (Ok(held), Ok(there)) => (held.dev(), held.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

/// The files that a merge made in a folder, if it holds nothing else, its lock aside: weights, and those listed; or, without
/// a list, if it holds nothing at all.
fn only_ours(
    folder: &Dir,
    listed: Option<BTreeSet<String>>,
) -> std::result::Result<BTreeSet<String>, String> {
    let (marked, mut files) = (listed.is_some(), listed.unwrap_or_default());
    let folders: BTreeSet<String> = folders(&files).into_iter().map(str::to_owned).collect();
    let mut places = vec![String::new()];
    while let Some(place) = places.pop() {
        let inside = if place.is_empty() { folder.try_clone() } else { folder.open_dir_nofollow(&place) };
        let entries = inside.and_then(|inside| entries(&inside));
        for (name, kind) in entries.map_err(|e| format!("it cannot be listed ({e})"))? {
            let path =
                format!("{place}{}{}", if place.is_empty() { "" } else { "/" }, name.to_string_lossy());
            if kind.is_dir() && folders.contains(&path) {
                places.push(path);
            } else if kind.is_file() && marked && is_weights_file(&path) {
                files.insert(path);
            } else if !(kind.is_file() && (path == LOCK || files.contains(&path))) {
                return Err(format!("it holds {}, which no merge wrote", quoted(&path)));
            }
        }
    }
    Ok(files)
}

fn entries(folder: &Dir) -> io::Result<Vec<(OsString, FileType)>> {
    folder
        .entries()?
        .map(|entry| entry.and_then(|entry| Ok((entry.file_name(), entry.file_type()?))))
        .collect()
}

/// Removes these files and the folders that they lie in, by their names: listing a folder needs one more open file, of which there
/// may be none left.
fn clear(folder: &Dir, files: &BTreeSet<String>) -> io::Result<()> {
    let gone = |removed: io::Result<()>| match removed {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    };
    // The journal last: as long as it is there, what is left can still be gone on with.
    let (journal, others): (Vec<&String>, Vec<&String>) = files.iter().partition(|file| *file == JOURNAL);
    others.into_iter().chain(journal).try_for_each(|file| gone(folder.remove_file(file)))?;
    folders(files).into_iter().rev().try_for_each(|inside| gone(folder.remove_dir(inside)))
}

#[cfg(test)]
mod tests;

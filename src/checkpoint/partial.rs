//! The output folder appears whole or not at all: it is built beside its place, in `OUT.partial`, and
//! renamed when everything is on the disk. A reader never meets half a checkpoint.
//!
//! `OUT.partial` is locked while it is built. A lock dies with its process, so one that can be taken is
//! what a stopped merge left behind: if it is this user's own, carries our mark, and holds nothing but weights
//! and the files that its lock lists, each before it is made. Where its [journal](super::journal) says that some of the same output is
//! finished, the weights stay and the merge goes on; else all is cleared. The lock goes after the rename: a merge that is killed at any
//! moment leaves a folder that the next one takes over, or an output that is whole.

mod left;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;

use left::of_another;
pub use left::{check_left, check_only, remove_folder, remove_lock};

use super::file::Access;
use super::journal::{Finished, JOURNAL, Journal, Left, left_in};
use super::layout::Layout;
use super::layout::is_weights_file;
use super::out_folder::{free_to_take, in_the_way, nearest_existing, partial_of, resolve};
use crate::error::{Error, Result};
use crate::files::{File, Folder, Found, TryLockError};
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
    parent: Folder,
    folder: Folder,
    /// Held open, and so locked, until the folder is published or gone.
    lock: File,
    access: Access,
    /// The parents that were made for it: the folders they were made in, and their names.
    made: Vec<(Folder, OsString)>,
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
        Self::create_for(out, access, making, &|| Ok(()))
    }

    /// The same; what is in OUT by then is for `free` to remove or to refuse: nobody else makes OUT meanwhile.
    ///
    /// # Errors
    /// Those too of `free`.
    pub fn create_for(
        out: &Path,
        access: Access,
        making: Option<Making<'_>>,
        free: &dyn Fn() -> Result<()>,
    ) -> Result<Self> {
        let out = resolve(out).map_err(Error::output)?;
        let partial = Self::begin(partial_of(&out), out, access, making)?;
        free()?;
        // Another merge may have held the lock until now, and taken the place.
        free_to_take(&partial.out, &partial.out)?;
        Ok(partial)
    }

    fn begin(path: PathBuf, out: PathBuf, access: Access, making: Option<Making<'_>>) -> Result<Self> {
        let mut made = Vec::new();
        let failed = |cause| Error::writing(&path, &cause);
        let begun = parent_of(&path, &mut made).and_then(|parent| {
            // At once: whoever merges into them next does not know that they are new.
            made.iter().try_for_each(|(place, _)| place.sync()).map_err(failed)?;
            begin(&parent, &path, making).map(|begun| (parent, begun))
        });
        match begun {
            Ok((parent, Begun { folder, lock, is_locked, was_left, files, left })) => {
                let (files, keep, journal) = (Mutex::new(files), false, None);
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

    /// Where its lock lies, for messages.
    pub fn lock_path(&self) -> PathBuf {
        self.path.join(LOCK)
    }

    /// Makes a file in it, which must not be there; a `/` in its name leads into folders there, which are made if they have to be.
    ///
    /// # Errors
    /// Those of the system.
    pub fn create_file(&self, name: &str, access: Access) -> io::Result<File> {
        self.note(name)?;
        for folder in folders_of(name).rev() {
            match self.folder.make_private_folder(folder) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
                _ => {}
            }
        }
        self.folder.make_file(name, access.file_mode())
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
        let file = self.folder.open_file(name)?;
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

    /// Moves a file of this name out of another folder into it, in the place of one that is there.
    ///
    /// # Errors
    /// Those of the system.
    pub fn move_in(&self, name: &str, from: &Folder) -> io::Result<()> {
        self.note(name)?;
        from.move_to(name, &self.folder)
    }

    /// From now on all of it stays, whatever happens.
    pub fn keep(&mut self) {
        self.keep = true;
    }

    /// Puts the names of its files on the disk, and its own.
    ///
    /// # Errors
    /// The disk is full or fails.
    pub fn sync_names(&self) -> io::Result<()> {
        self.lock.sync_data().and_then(|()| self.folder.sync()).and_then(|()| self.parent.sync())
    }

    /// Lists files in the lock, and puts that on the disk, before the first of them is made: after a power cut, too, none is there that
    /// is not known for its own.
    ///
    /// # Errors
    /// Those of the system.
    pub fn expect<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> io::Result<()> {
        names.into_iter().try_for_each(|name| self.note(name))?;
        self.lock.sync_data().map_err(|cause| unlisted(&cause))
    }

    /// Lists a file in the lock before it is made, so that a merge that is killed leaves none that is not known for its own.
    fn note(&self, name: &str) -> io::Result<()> {
        if name.contains('\n') {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a file's name has a line's end in it"));
        }
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let is_listed = files.insert(name.into()) && !is_weights_file(name);
        if !is_listed {
            return Ok(());
        }
        (&self.lock).write_all(format!("{name}\n").as_bytes()).map_err(|cause| unlisted(&cause))
    }

    /// Gives the folder its name; the rename is on the disk when this returns.
    ///
    /// # Errors
    /// Kind `Output`. Where only the rename failed the work is done, so `OUT.partial` stays; where only what follows
    /// failed, OUT is there. The message says so.
    pub fn publish(mut self) -> Result<()> {
        let failed = |e: io::Error| Error::writing(&self.path, &e);
        let lock = self.lock.metadata().map_err(|e| Error::writing(&self.lock_path(), &e))?;
        let access = self.access.and(Access::ANY.of_new_file(&lock));
        let files = self.files.get_mut().unwrap_or_else(PoisonError::into_inner).clone();
        let ready = |folder: &Folder| folder.set_mode(access.folder_mode()).and_then(|()| folder.sync());
        for name in folders(&files).into_iter().rev() {
            let inside = self.folder.open_folder(name).and_then(|inside| ready(&inside));
            inside.map_err(|e| Error::writing(&self.path.join(name), &e))?;
        }
        ready(&self.folder).map_err(failed)?;
        self.still_there().map_err(failed)?;
        self.keep = true;
        // Some systems rename no folder in which files are open.
        let has_journal = self.journal.take().inspect(|journal| journal.kept().nothing()).is_some();
        self.rename().map_err(|e| self.not_renamed(&e))?;
        // Only now, and once the name is on the disk: what is stopped before is known for a merge's leftover, and what is stopped after
        // is whole.
        let named = self.parent.sync();
        let without_journal = if has_journal { self.folder.remove_file(JOURNAL) } else { Ok(()) };
        let finished =
            without_journal.and_then(|()| self.folder.remove_file(LOCK)).and_then(|()| self.folder.sync());
        named.map_err(|e| self.not_known_to_last(&e))?;
        finished.map_err(|e| self.not_cleared(&e))
    }

    /// Whether `OUT.partial` is still this folder, as far as that can be known.
    fn still_there(&self) -> io::Result<()> {
        let (there, ours) = (self.parent.look(name_of(&self.path))?, self.folder.found()?);
        if there.number() == ours.number() {
            return Ok(());
        }
        Err(io::Error::other("another folder has been put in its place"))
    }

    /// Replaces an empty folder too, which only POSIX's rename does by itself.
    fn rename(&self) -> io::Result<()> {
        let (from, to) = (name_of(&self.path), name_of(&self.out));
        if cfg!(not(unix)) && self.parent.look(to).is_ok_and(|there| there.is_folder()) {
            self.parent.remove_folder(to)?;
        }
        self.parent.rename(from, to)
    }

    fn not_renamed(&self, cause: &io::Error) -> Error {
        // Without them no merge takes the finished files for leftovers.
        let _ = self.folder.remove_file(JOURNAL);
        let _ = self.folder.remove_file(LOCK);
        let (partial, out) = (self.path.display(), self.out.display());
        Error::output(format!("the merge is complete, but {partial} could not be renamed to {out}: {cause}"))
            .hint(format!("the finished files are in {partial}: move them where you want them"))
    }

    fn not_cleared(&self, cause: &io::Error) -> Error {
        let out = self.out.display();
        let mut there = vec![JOURNAL, LOCK];
        there.retain(|name| self.folder.look(name).is_ok());
        let there = there.join(" and ");
        let (left, files) = if there.is_empty() {
            let both = format!("{JOURNAL} and {LOCK}");
            (format!("whether {both} are gone from there for good is unknown"), both + ", if they are there")
        } else {
            (format!("{there} could not be removed from there"), there)
        };
        Error::output(format!("the merge is complete and {out} has all its files, but {left}: {cause}"))
            .hint(format!("remove {files}: only the merge needed them"))
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
        self.journal.iter().for_each(|journal| journal.write_out());
        // What an earlier merge left stays, too, where this one did not come to go on with it.
        let is_worth_it =
            self.journal.as_ref().map_or(self.left.is_some(), |journal| journal.kept().bytes().is_some());
        if !self.keep && !is_worth_it {
            let files = std::mem::take(self.files.get_mut().unwrap_or_else(PoisonError::into_inner));
            // What cannot be removed now is cleared by the next merge to the same place: the lock goes last.
            if clear(&self.folder, &files).is_ok() {
                // What is left without a lock is nobody's. Where this cannot be done, a power cut may leave that.
                let _ = self.folder.sync();
                let _ = self.folder.remove_file(LOCK);
            }
            let _ = self.still_there().and_then(|()| self.parent.remove_folder(name_of(&self.path)));
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
        let failed = |cause| Error::writing(&self.0.lock_path(), &cause);
        let noted = listed.try_for_each(|file| self.0.note(&file));
        noted.and_then(|()| self.0.expect([])).map_err(failed)
    }
}

/// The last part of a path that [`resolve`] has seen to have one.
fn name_of(path: &Path) -> &Path {
    path.file_name().unwrap_or_default().as_ref()
}

/// Opens the folder that a path lies in; what is missing on the way is made, and noted.
fn parent_of(path: &Path, made: &mut Vec<(Folder, OsString)>) -> Result<Folder> {
    let parent = path.parent().unwrap_or(path);
    let failed = |e: io::Error| Error::writing(parent, &e);
    let existing = nearest_existing(parent).unwrap_or(parent);
    let mut folder = Folder::open(existing).map_err(failed)?;
    for part in parent.strip_prefix(existing).unwrap_or(Path::new("")) {
        // Before it is made: what is made is noted, and goes again.
        let place = folder.try_clone().map_err(failed)?;
        match folder.make_folder(part) {
            // Another merge may make the same one at the same time.
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(failed(e)),
            Ok(()) => made.push((place, part.into())),
            Err(_) => {}
        }
        folder = folder.open_folder(part).map_err(failed)?;
    }
    Ok(folder)
}

/// Removes the parents that were made, unless something else has come there.
fn remove_parents(made: &mut Vec<(Folder, OsString)>) {
    while let Some((folder, name)) = made.pop() {
        if folder.remove_folder(name).is_err() {
            return;
        }
    }
}

/// A lock's file, and whether it holds.
type Lock = (File, bool);

/// A folder that is ours.
struct Begun {
    folder: Folder,
    lock: File,
    is_locked: bool,
    was_left: bool,
    /// The files that stayed in it.
    files: BTreeSet<String>,
    left: Option<Left>,
}

/// Makes or takes over the folder.
fn begin(parent: &Folder, path: &Path, making: Option<Making<'_>>) -> Result<Begun> {
    let failed = |e: io::Error| Error::writing(path, &e);
    let name = name_of(path);
    let is_new = match parent.make_private_folder(name) {
        Ok(()) => true,
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => false,
        Err(e) => return Err(failed(e)),
    };
    let begun = locked(parent, path, is_new, making);
    if is_new && begun.is_err() {
        let _ = parent.remove_folder(name);
    }
    begun
}

/// Opens the folder and locks it, if it is ours.
fn locked(parent: &Folder, path: &Path, is_new: bool, making: Option<Making<'_>>) -> Result<Begun> {
    let failed = |e: io::Error| Error::writing(path, &e);
    let name = name_of(path);
    // Neither a link nor somebody else's folder, into which what follows could lead.
    if !parent.look(name).map_err(failed)?.is_folder() {
        return Err(in_the_way(path, "it is no folder"));
    }
    let folder = parent.open_folder(name).map_err(failed)?;
    folder.found().map_err(failed)?.is_ours().map_err(|what| in_the_way(path, what))?;
    let ((lock, is_locked), files, left) = if is_new {
        (new_lock(&folder, path)?, BTreeSet::new(), None)
    } else {
        take_over(&folder, path, making)?
    };
    Ok(Begun { folder, lock, is_locked, was_left: !is_new, files, left })
}

/// Locks a folder that was just made, if that can be.
fn new_lock(folder: &Folder, path: &Path) -> Result<Lock> {
    let failed = |e: io::Error| Error::writing(&path.join(LOCK), &e);
    let mut lock = match folder.make_file(LOCK, Access::ANY.file_mode()) {
        Ok(lock) => lock,
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Err(in_use(path)),
        Err(e) => return Err(failed(e)),
    };
    let is_locked = match lock.try_lock() {
        Err(TryLockError::WouldBlock) => return Err(in_use(path)),
        // Some network file systems have no locks. The folder is new, so nobody else is in it.
        locked => locked.is_ok(),
    };
    if let Err(cause) = lock.write_all(MARK) {
        // Nothing is in the folder yet that this would have to guard, and with it in there the folder could not be removed.
        let _ = folder.remove_file(LOCK);
        return Err(failed(cause));
    }
    sync_lock(folder, &lock);
    Ok((lock, is_locked))
}

/// Puts the lock and its name on the disk before anything else is made: what a power cut leaves is known for a merge's by it. Where that
/// cannot be, it may not be known.
fn sync_lock(folder: &Folder, lock: &File) {
    let _ = lock.sync_data();
    let _ = folder.sync();
}

/// Locks what a stopped merge left, and clears it but for what is finished of the same output: these files stay.
fn take_over(
    folder: &Folder,
    path: &Path,
    making: Option<Making<'_>>,
) -> Result<(Lock, BTreeSet<String>, Option<Left>)> {
    let failed = |e: io::Error| Error::writing(path, &e);
    let unread = |e: io::Error| Error::output(format!("cannot read {}: {e}", path.join(LOCK).display()));
    let not_ours = |what: &str| in_the_way(path, what);
    if !folder.look(LOCK).is_ok_and(|found| found.is_file()) {
        // Killed between making the folder and the lock.
        return match only_ours(folder, None) {
            Ok(_) => Ok((new_lock(folder, path)?, BTreeSet::new(), None)),
            Err(_) => Err(not_ours("no merge is making it (it holds no .lock), and it is not empty")),
        };
    }
    let mut lock = folder.open_file(LOCK).map_err(unread)?;
    match lock.try_lock() {
        Ok(()) if is_still_there(&lock, folder).map_err(unread)? => {}
        Ok(()) | Err(TryLockError::WouldBlock) => return Err(in_use(path)),
        Err(TryLockError::Error(e)) => {
            // What it holds may be all that there is of an output's parts.
            let refusal = not_ours(&format!("whether a merge is making it cannot be seen ({LOCK}: {e})"));
            return Err(refusal
                .hint("go on where its file system has locks; or delete it if nothing in it is of use"));
        }
    }
    let mut text = Vec::new();
    (&lock).take(LOCK_BYTES_MAX).read_to_end(&mut text).map_err(unread)?;
    let files = match listed(&text) {
        Some(files) => files,
        // Stopped between making the lock and marking it, be it by a power cut: then there is nothing else.
        None if is_half_marked(&text) && only_ours(folder, None).is_ok() => BTreeSet::new(),
        None => return Err(not_ours("its .lock is not one of a merge")),
    };
    let files = only_ours(folder, Some(files)).map_err(|what| not_ours(&what))?;
    let left = left_by(folder, path, making)?;
    let stays = |file: &String| left.is_some() && (is_weights_file(file) || file == JOURNAL);
    let (stay, go): (BTreeSet<String>, BTreeSet<String>) = files.into_iter().partition(stays);
    clear(folder, &go).map_err(failed)?;
    // What is there stays listed at every moment, on the disk too: names go after their files. A line that was cut off goes.
    let is_marked = text.starts_with(MARK);
    let whole = match () {
        () if !is_marked => 0,
        () if left.is_none() && folder.sync().is_ok() => MARK.len(),
        () => text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1),
    };
    let relisted = lock.set_len(whole as u64).and_then(|()| lock.seek(SeekFrom::End(0)));
    let relisted = relisted.and_then(|_| if is_marked { Ok(()) } else { lock.write_all(MARK) });
    relisted.map_err(|e| Error::writing(&path.join(LOCK), &e))?;
    sync_lock(folder, &lock);
    Ok(((lock, true), stay, left))
}

/// What of the same output is finished in a folder.
fn left_by(folder: &Folder, path: &Path, making: Option<Making<'_>>) -> Result<Option<Left>> {
    if making.is_some_and(|making| making.anew) {
        return Ok(None);
    }
    let read = folder.open_file(JOURNAL).and_then(|mut file| left_in(&mut file));
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

/// Why a file could not be listed in the lock.
fn unlisted(cause: &io::Error) -> io::Error {
    io::Error::new(cause.kind(), format!("it cannot be listed in {LOCK}: {cause}"))
}

/// Whether a lock's mark did not come to the disk whole: there is the beginning of it, or its length.
fn is_half_marked(lock: &[u8]) -> bool {
    MARK.starts_with(lock) || lock.len() <= MARK.len() && lock.iter().all(|byte| *byte == 0)
}

/// The files that a lock lists, if it is one of a merge. A line may have been cut off, or not have come to the disk: then its file was
/// not made.
fn listed(lock: &[u8]) -> Option<BTreeSet<String>> {
    let text = std::str::from_utf8(lock.strip_prefix(MARK)?).ok()?;
    let (lines, _cut_off) = text.rsplit_once('\n').unwrap_or_default();
    let is_whole = |name: &&str| !name.is_empty() && !name.contains('\0');
    Some(lines.split('\n').filter(is_whole).map(str::to_owned).collect())
}

/// The folders that the path of a file leads through, the innermost first.
fn folders_of(file: &str) -> impl DoubleEndedIterator<Item = &str> {
    file.rmatch_indices('/').map(|(end, _)| &file[..end])
}

/// The folders of files: each behind those that it lies in.
fn folders(files: &BTreeSet<String>) -> BTreeSet<&str> {
    files.iter().flat_map(|file| folders_of(file)).collect()
}

fn in_use(path: &Path) -> Error {
    Error::output(format!("another process is writing {}", path.display()))
        .hint("wait for it to end, or choose another output folder")
}

/// Between opening and locking, its owner may have removed the file: the lock would guard nothing.
fn is_still_there(lock: &File, folder: &Folder) -> io::Result<bool> {
    match folder.look(LOCK) {
        Ok(there) => Ok(Found::of(lock)?.number() == there.number()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

/// The files that a merge made in a folder, if it holds nothing else, its lock aside: weights, the journal, and those listed; or,
/// without a list, if it holds nothing at all.
fn only_ours(
    folder: &Folder,
    listed: Option<BTreeSet<String>>,
) -> std::result::Result<BTreeSet<String>, String> {
    let (marked, mut files) = (listed.is_some(), listed.unwrap_or_default());
    let folders: BTreeSet<String> = folders(&files).into_iter().map(str::to_owned).collect();
    let mut places = vec![String::new()];
    while let Some(place) = places.pop() {
        let inside = if place.is_empty() { folder.try_clone() } else { folder.open_folder(&place) };
        let entries = inside.and_then(|inside| inside.entries());
        for (name, kind) in entries.map_err(|e| format!("it cannot be listed ({e})"))? {
            let path =
                format!("{place}{}{}", if place.is_empty() { "" } else { "/" }, name.to_string_lossy());
            if kind.is_dir() && folders.contains(&path) {
                places.push(path);
            } else if kind.is_file() && marked && (is_weights_file(&path) || path == JOURNAL) {
                files.insert(path);
            } else if !(kind.is_file() && (path == LOCK || files.contains(&path))) {
                return Err(format!("it holds {}, which no merge wrote", quoted(&path)));
            }
        }
    }
    Ok(files)
}

/// Removes these files and the folders that they lie in, by their names: listing a folder needs one more open file, of which there
/// may be none left.
fn clear(folder: &Folder, files: &BTreeSet<String>) -> io::Result<()> {
    let gone = |removed: io::Result<()>| match removed {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    };
    // The journal last: as long as it is there, what is left can still be gone on with.
    let (journal, others): (Vec<&String>, Vec<&String>) = files.iter().partition(|file| *file == JOURNAL);
    others.into_iter().chain(journal).try_for_each(|file| gone(folder.remove_file(file)))?;
    folders(files).into_iter().rev().try_for_each(|inside| gone(folder.remove_folder(inside)))
}

#[cfg(test)]
mod tests;

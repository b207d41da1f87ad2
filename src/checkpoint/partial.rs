//! The output folder appears whole or not at all: it is built beside its place, in `OUT.partial`, and
//! renamed when everything is on the disk. A reader never meets half a checkpoint.
//!
//! `OUT.partial` is locked while it is built. A lock dies with its process, so one that can be taken is
//! what a killed merge left behind, and is cleared: if it is this user's own, carries our mark, and holds nothing but weights
//! and the files that its lock lists, each before it is made. The lock goes after the rename: a merge that is killed at any
//! moment leaves a folder that the next one clears, or an output that is whole.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{File, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use cap_fs_ext::{DirExt, FollowSymlinks, MetadataExt, OpenOptionsFollowExt, OpenOptionsSyncExt};
use cap_std::fs::{Dir, DirBuilder, File as CapFile, FileType, Metadata, OpenOptions};

use super::file::Access;
use super::layout::is_weights_file;
use super::out_folder::{free_to_take, nearest_existing, partial_of, resolve};
use crate::error::{Error, Result};
use crate::text::quoted;

/// The file in `OUT.partial` whose lock says that a merge is at work there.
const LOCK: &str = ".lock";

/// What the lock begins with: without it the folder is somebody else's, whatever its name. The names of the files beside the
/// weights follow, a line each.
const MARK: &[u8] =
    b"A merge by mergeforge writes here. What is left when it has ended is cleared by the next merge.\n";

/// The most that a lock holds: a thousand names of the length that paths may have make as much.
const LOCK_BYTES_MAX: u64 = 4 << 20;

/// `OUT.partial`, locked. Dropped before [`Partial::publish`] has given it its name, it is removed with all it holds.
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
}

impl Partial {
    /// Makes an empty `OUT.partial`, or takes over what a killed merge of this user left. Only this user may look into it until
    /// it is published; then `access` holds.
    ///
    /// # Errors
    /// Kind `Output`: another merge is at work there, or the folder is not ours. Kind `Config`: OUT holds something by now.
    pub fn create(out: &Path, access: Access) -> Result<Self> {
        let out = resolve(out).map_err(Error::output)?;
        let partial = Self::begin(partial_of(&out), out, access)?;
        // Another merge may have held the lock until now, and taken the place.
        free_to_take(&partial.out, &partial.out)?;
        Ok(partial)
    }

    fn begin(path: PathBuf, out: PathBuf, access: Access) -> Result<Self> {
        let mut made = Vec::new();
        let begun =
            parent_of(&path, &mut made).and_then(|parent| begin(&parent, &path).map(|begun| (parent, begun)));
        match begun {
            Ok((parent, (folder, lock, was_left))) => Ok(Self {
                out,
                path,
                parent,
                folder,
                lock,
                access,
                made,
                files: Mutex::default(),
                keep: false,
                was_left,
            }),
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
        self.rename().map_err(|e| self.not_renamed(&e))?;
        // Only now: what is killed before is known for a merge's leftover, and what is killed after is whole.
        let finished = self.folder.remove_file(LOCK).and_then(|()| sync_folder(&self.folder));
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
        // Without it no merge takes the finished files for leftovers.
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
        if !self.keep {
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
        Partial::begin(path.clone(), path, Access::ANY).map(Self)
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
            let files = files.iter().map(String::as_str).chain([LOCK]);
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

/// Makes or takes over the folder: its handle and its lock, and whether it was there.
fn begin(parent: &Dir, path: &Path) -> Result<(Dir, File, bool)> {
    let failed = |e: io::Error| Error::writing(path, &e);
    let name = name_of(path);
    let is_new = match parent.create_dir_with(name, &private_folder()) {
        Ok(()) => true,
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => false,
        Err(e) => return Err(failed(e)),
    };
    let begun = locked(parent, path, is_new);
    if is_new && begun.is_err() {
        let _ = parent.remove_dir(name);
    }
    begun.map(|(folder, lock)| (folder, lock, !is_new))
}

/// Opens the folder and locks it, if it is ours.
fn locked(parent: &Dir, path: &Path, is_new: bool) -> Result<(Dir, File)> {
    let failed = |e: io::Error| Error::writing(path, &e);
    let name = name_of(path);
    // Neither a link nor somebody else's folder, into which what follows could lead.
    if !parent.symlink_metadata(name).map_err(failed)?.is_dir() {
        return Err(in_the_way(path, "it is no folder"));
    }
    let folder = parent.open_dir_nofollow(name).map_err(failed)?;
    is_ours(&folder.dir_metadata().map_err(failed)?).map_err(|what| in_the_way(path, what))?;
    let lock = if is_new { new_lock(&folder, path)? } else { take_over(&folder, path)? };
    Ok((folder, lock))
}

/// Whether nobody else can have put anything into a folder or file.
#[cfg(unix)]
fn is_ours(found: &Metadata) -> std::result::Result<(), &'static str> {
    use cap_std::fs::MetadataExt;
    if found.uid() != rustix::process::geteuid().as_raw() {
        return Err("it belongs to another user");
    }
    if found.mode() & 0o022 != 0 {
        return Err("others may write to it");
    }
    Ok(())
}

#[cfg(not(unix))]
fn is_ours(_found: &Metadata) -> std::result::Result<(), &'static str> {
    Ok(())
}

/// Locks a folder that was just made.
fn new_lock(folder: &Dir, path: &Path) -> Result<File> {
    let failed = |e: io::Error| Error::writing(&path.join(LOCK), &e);
    let mut lock = match folder.open_with(LOCK, &new_file(Access::ANY.file_mode())) {
        Ok(lock) => lock.into_std(),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Err(in_use(path)),
        Err(e) => return Err(failed(e)),
    };
    match lock.try_lock() {
        Err(TryLockError::WouldBlock) => return Err(in_use(path)),
        // Some network file systems have no locks. The folder is new, so nobody else is in it.
        Ok(()) | Err(TryLockError::Error(_)) => {}
    }
    lock.write_all(MARK).map_err(failed)?;
    Ok(lock)
}

/// Locks and clears what a killed merge left.
fn take_over(folder: &Dir, path: &Path) -> Result<File> {
    let failed = |e: io::Error| Error::writing(path, &e);
    let not_ours = |what: &str| in_the_way(path, what);
    if !folder.symlink_metadata(LOCK).is_ok_and(|found| found.is_file()) {
        // Killed between making the folder and the lock.
        return match only_ours(folder, None) {
            Ok(_) => new_lock(folder, path),
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
    clear(folder, &files).map_err(failed)?;
    lock.set_len(0).and_then(|()| lock.rewind()).and_then(|()| lock.write_all(MARK)).map_err(failed)?;
    Ok(lock)
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
    files.iter().try_for_each(|file| gone(folder.remove_file(file)))?;
    folders(files).into_iter().rev().try_for_each(|inside| gone(folder.remove_dir(inside)))
}

/// How a file is made that must not be there.
fn new_file(mode: u32) -> OpenOptions {
    let mut options = existing_file();
    options.create_new(true);
    #[cfg(unix)]
    {
        use cap_std::fs::OpenOptionsExt;
        options.mode(mode);
    }
    #[cfg(not(unix))]
    let _ = mode;
    options
}

/// How a file is opened that may not be what it was: a link is not followed, and a pipe not waited for.
fn existing_file() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).nonblock(true).follow(FollowSymlinks::No);
    options
}

/// A folder that only this user may look into.
fn private_folder() -> DirBuilder {
    #[allow(unused_mut, reason = "only unix has modes")]
    let mut builder = DirBuilder::new();
    #[cfg(unix)]
    {
        use cap_std::fs::DirBuilderExt;
        builder.mode(0o700);
    }
    builder
}

/// Gives a folder the mode that the inputs and the system's mask leave.
#[cfg(unix)]
fn open_to(folder: &Dir, access: Access) -> io::Result<()> {
    use cap_std::fs::MetadataExt;
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;
    // The system may have added bits of the parent's, such as the one that hands its group on.
    let added = folder.dir_metadata()?.mode() & 0o7000;
    handle_of(folder)?.set_permissions(Permissions::from_mode(added | access.folder_mode()))
}

#[cfg(not(unix))]
fn open_to(_folder: &Dir, _access: Access) -> io::Result<()> {
    Ok(())
}

/// A handle with which a folder can be synced and changed; one that only leads to files cannot.
#[cfg(unix)]
fn handle_of(folder: &Dir) -> io::Result<File> {
    folder.open(".").map(CapFile::into_std)
}

/// Puts a folder's entries on the disk. Elsewhere than on unix a folder cannot be opened for that.
fn sync_folder(folder: &Dir) -> io::Result<()> {
    #[cfg(unix)]
    match handle_of(folder).and_then(|folder| folder.sync_all()) {
        // Some file systems do not sync folders by themselves.
        Err(e) if ![io::ErrorKind::InvalidInput, io::ErrorKind::Unsupported].contains(&e.kind()) => {
            return Err(e);
        }
        _ => {}
    }
    #[cfg(not(unix))]
    let _ = folder;
    Ok(())
}

#[cfg(test)]
mod tests;

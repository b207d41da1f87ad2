//! The output folder appears whole or not at all: it is built beside its place, in `OUT.partial`, and
//! renamed when everything is on the disk. A reader never meets half a checkpoint.
//!
//! `OUT.partial` is locked while it is built. A lock dies with its process, so one that can be taken is
//! what a killed merge left behind, and is cleared: if it is this user's own, carries our mark, and holds nothing but files of
//! the names that a merge writes. The lock goes after the rename: a merge that is killed at any moment leaves a folder that
//! the next one clears, or an output that is whole.

use std::ffi::OsString;
use std::fs::{File, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use cap_fs_ext::{DirExt, FollowSymlinks, MetadataExt, OpenOptionsFollowExt, OpenOptionsSyncExt};
use cap_std::fs::{Dir, DirBuilder, File as CapFile, FileType, Metadata, OpenOptions};

use super::file::Access;
use super::layout::is_weights_file;
use super::out_folder::{nearest_existing, partial_of, resolve};
use super::sidecars::{TEMPLATES, is_sidecar, is_template};
use crate::error::{Error, Result};
use crate::text::quoted;

/// The file in `OUT.partial` whose lock says that a merge is at work there.
const LOCK: &str = ".lock";

/// What the lock holds: without it the folder is somebody else's, whatever its name.
const MARK: &[u8] =
    b"A merge by mergeforge writes here. What is left when it has ended is cleared by the next merge.\n";

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
    /// The files that were made in it: they are removed by name, since listing a folder needs one more open file.
    files: Mutex<Vec<String>>,
    keep: bool,
}

impl Partial {
    /// Makes an empty `OUT.partial`, or takes over what a killed merge of this user left. Only this user may look into it until
    /// it is published; then `access` holds.
    ///
    /// # Errors
    /// Kind `Output`: another merge is at work there, or the folder is not ours.
    pub fn create(out: &Path, access: Access) -> Result<Self> {
        let out = resolve(out).map_err(Error::output)?;
        let path = partial_of(&out);
        let mut made = Vec::new();
        let begun =
            parent_of(&path, &mut made).and_then(|parent| begin(&parent, &path).map(|begun| (parent, begun)));
        match begun {
            Ok((parent, (folder, lock))) => Ok(Self {
                out,
                path,
                parent,
                folder,
                lock,
                access,
                made,
                files: Mutex::default(),
                keep: false,
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

    /// Makes a file in it, which must not be there; a `/` in its name leads into a folder there, which is made if it has to be.
    ///
    /// # Errors
    /// Those of the system.
    pub fn create_file(&self, name: &str, access: Access) -> io::Result<File> {
        if let Some((folder, _)) = name.rsplit_once('/') {
            match self.folder.create_dir_with(folder, &private_folder()) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
                _ => {}
            }
        }
        let file = self.folder.open_with(name, &new_file(access.file_mode()))?;
        self.files.lock().unwrap_or_else(PoisonError::into_inner).push(name.into());
        Ok(file.into_std())
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
        if self.folder.is_dir(TEMPLATES) {
            let templates = self.folder.open_dir_nofollow(TEMPLATES).map_err(failed)?;
            open_to(&templates, access).and_then(|()| sync_folder(&templates)).map_err(failed)?;
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
            let removed = files.iter().filter(|name| self.folder.remove_file(name).is_ok()).count();
            let _ = self.folder.remove_dir(TEMPLATES);
            // What cannot be removed now is cleared by the next merge to the same place: the lock goes last.
            if clear(&self.folder).is_ok() || removed == files.len() {
                let _ = self.folder.remove_file(LOCK);
            }
            let _ = self.still_there().and_then(|()| self.parent.remove_dir(name_of(&self.path)));
            remove_parents(&mut self.made);
        }
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

/// Makes or takes over the folder: its handle and its lock.
fn begin(parent: &Dir, path: &Path) -> Result<(Dir, File)> {
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
    begun
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
        return match only_ours(folder, false) {
            Ok(()) => new_lock(folder, path),
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
    let mut mark = Vec::new();
    (&lock).take(MARK.len() as u64 + 1).read_to_end(&mut mark).map_err(failed)?;
    // Killed between making the lock and marking it: then there is nothing else.
    let marked = mark == MARK;
    if !(marked || mark.is_empty() && only_ours(folder, false).is_ok()) {
        return Err(not_ours("its .lock is not one of a merge"));
    }
    only_ours(folder, true).map_err(|what| not_ours(&what))?;
    clear(folder).map_err(failed)?;
    if !marked {
        lock.write_all(MARK).map_err(failed)?;
    }
    Ok(lock)
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

/// Whether a folder holds nothing but what a merge writes, or, unless `written` is wanted, nothing at all; its lock aside.
fn only_ours(folder: &Dir, written: bool) -> std::result::Result<(), String> {
    let failed = |e: io::Error| format!("it cannot be listed ({e})");
    for (name, kind) in entries(folder).map_err(failed)? {
        let known = match name.to_str() {
            Some(LOCK) => kind.is_file(),
            Some(TEMPLATES) if kind.is_dir() => {
                let templates = folder
                    .open_dir_nofollow(TEMPLATES)
                    .and_then(|folder| entries(&folder))
                    .map_err(failed)?;
                written
                    && templates
                        .iter()
                        .all(|(name, kind)| kind.is_file() && name.to_str().is_some_and(is_template))
            }
            Some(name) => written && kind.is_file() && (is_weights_file(name) || is_sidecar(name)),
            None => false,
        };
        if !known {
            return Err(format!("it holds {}, which no merge wrote", quoted(&name.to_string_lossy())));
        }
    }
    Ok(())
}

fn entries(folder: &Dir) -> io::Result<Vec<(OsString, FileType)>> {
    folder
        .entries()?
        .map(|entry| entry.and_then(|entry| Ok((entry.file_name(), entry.file_type()?))))
        .collect()
}

/// Removes what a merge wrote, but for the lock. Links are removed, not followed.
fn clear(folder: &Dir) -> io::Result<()> {
    for (name, kind) in entries(folder)? {
        if name == LOCK {
            continue;
        }
        if kind.is_dir() {
            let inside = folder.open_dir_nofollow(&name)?;
            entries(&inside)?.iter().try_for_each(|(name, _)| inside.remove_file(name))?;
            folder.remove_dir(&name)?;
        } else {
            folder.remove_file(&name)?;
        }
    }
    Ok(())
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
mod tests {
    use super::*;
    use crate::checkpoint::check_out;
    use crate::error::Kind;
    use std::fs;

    fn is_empty(folder: &Path) -> io::Result<bool> {
        Ok(fs::read_dir(folder)?.next().is_none())
    }

    #[test]
    fn a_partial_folder_belongs_to_one_merge() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let first = Partial::create(&out, Access::ANY).unwrap();
        let error = Partial::create(&out, Access::ANY).unwrap_err();
        assert!(error.message.contains("another merge") && error.kind == Kind::Output);
        assert!(first.path().is_dir());
        drop(first);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    /// A folder with `out.partial` as a killed merge leaves it, with these files besides the lock.
    fn leftover(lock: &[u8], files: &[&str]) -> (tempfile::TempDir, PathBuf, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let (out, partial) = (dir.path().join("out"), dir.path().join("out.partial"));
        fs::create_dir_all(partial.join(TEMPLATES)).unwrap();
        fs::write(partial.join(LOCK), lock).unwrap();
        files.iter().for_each(|name| fs::write(partial.join(name), "x").unwrap());
        (dir, out, partial)
    }

    const WRITTEN: &[&str] =
        &["model-00001-of-00002.safetensors", "config.json", "additional_chat_templates/a.jinja"];

    #[test]
    fn what_a_killed_merge_left_is_cleared() {
        let (dir, out, partial) = leftover(MARK, WRITTEN);
        let taken = Partial::create(&out, Access::ANY).unwrap();
        assert_eq!(fs::read_dir(&partial).unwrap().count(), 1);
        taken.publish().unwrap();
        assert!(is_empty(&out).unwrap() && !partial.exists());
        // Killed before it had a lock, and before that was marked.
        fs::create_dir(&partial).unwrap();
        drop(Partial::create(&dir.path().join("out"), Access::ANY).unwrap());
        assert!(!partial.exists());
        fs::create_dir(&partial).unwrap();
        fs::write(partial.join(LOCK), "").unwrap();
        drop(Partial::create(&dir.path().join("out"), Access::ANY).unwrap());
        assert!(!partial.exists());
    }

    #[test]
    fn nothing_foreign_in_a_partial_folder_is_deleted() {
        let foreign: [(&[u8], &str); 6] = [
            (b"", "model.safetensors"),
            (b"lock of another program", "model.safetensors"),
            (MARK, "thesis.tex"),
            (MARK, "model.safetensors.bak"),
            (MARK, "additional_chat_templates/id_rsa"),
            (MARK, "weights.safetensors"),
        ];
        for (lock, name) in foreign {
            let (_dir, out, partial) = leftover(lock, &[&[name], WRITTEN].concat());
            let error = Partial::create(&out, Access::ANY).unwrap_err();
            assert!(error.message.contains("is in the way") && error.hint.is_some(), "{error}");
            assert!(WRITTEN.iter().chain([&name]).all(|name| partial.join(name).exists()), "{name}");
        }
        let (_dir, out, partial) = leftover(MARK, &[]);
        fs::create_dir(partial.join("model.safetensors")).unwrap();
        Partial::create(&out, Access::ANY).unwrap_err();
        assert!(partial.join("model.safetensors").is_dir());
    }

    /// What is left when the process dies at this moment: nothing is cleaned up, and the lock is free.
    fn kill(mut partial: Partial) {
        partial.keep = true;
    }

    #[test]
    fn a_merge_killed_before_or_after_the_rename_blocks_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let write = || {
            let partial = Partial::create(&out, Access::ANY).unwrap();
            partial.create_file("config.json", Access::ANY).unwrap();
            partial
        };
        kill(write());
        // A whole merge that was not renamed is a leftover.
        write().publish().unwrap();
        assert!(out.join("config.json").exists() && !out.join(LOCK).exists());
        fs::remove_dir_all(&out).unwrap();
        let partial = write();
        partial.rename().unwrap();
        kill(partial);
        // One that was is an output, and is treated as one.
        assert!(out.join("config.json").exists());
        assert!(check_out(&out, &[]).unwrap_err().message.contains("is not empty"));
        fs::remove_dir_all(&out).unwrap();
        write().publish().unwrap();
    }

    #[test]
    fn parents_that_were_made_go_again_if_nothing_else_has_come() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("a/b/out");
        drop(Partial::create(&out, Access::ANY).unwrap());
        assert!(is_empty(dir.path()).unwrap());
        let partial = Partial::create(&out, Access::ANY).unwrap();
        fs::write(dir.path().join("a/mine"), "").unwrap();
        drop(partial);
        assert!(dir.path().join("a/mine").exists() && !dir.path().join("a/b").exists());
        // Nor does one that could not begin leave any.
        let (_dir, out, partial) = leftover(b"", WRITTEN);
        fs::rename(&partial, out.with_file_name("c.partial")).unwrap();
        Partial::create(&out.with_file_name("c"), Access::ANY).unwrap_err();
        Partial::create(&out, Access::ANY).unwrap().publish().unwrap();
        assert!(out.is_dir());
    }

    #[cfg(unix)]
    #[test]
    fn a_folder_put_in_the_place_of_the_partial_one_is_not_touched() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("precious")).unwrap();
        fs::write(at("precious/model.safetensors"), "mine").unwrap();
        for publish in [false, true] {
            let partial = Partial::create(&at("out"), Access::ANY).unwrap();
            fs::rename(at("out.partial"), at("moved")).unwrap();
            symlink(at("precious"), at("out.partial")).unwrap();
            partial.create_file("model.safetensors", Access::ANY).unwrap();
            if publish {
                assert!(partial.publish().unwrap_err().message.contains("put in its place"));
            } else {
                drop(partial);
            }
            assert_eq!(fs::read_to_string(at("precious/model.safetensors")).unwrap(), "mine");
            assert!(!at("out").exists() && is_empty(&at("moved")).unwrap());
            fs::remove_file(at("out.partial")).unwrap();
            fs::remove_dir(at("moved")).unwrap();
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_partial_folder_that_others_can_write_to_is_not_taken_over() {
        use std::os::unix::fs::{PermissionsExt, chown};
        let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        for shared in [0o777, 0o775, 0o702] {
            let (_dir, out, partial) = leftover(MARK, WRITTEN);
            mode(&partial, shared);
            let error = Partial::create(&out, Access::ANY).unwrap_err();
            assert!(error.message.contains("others may write to it"), "{error}");
            assert!(partial.join("config.json").exists());
            mode(&partial, 0o755);
            drop(Partial::create(&out, Access::ANY).unwrap());
        }
        // Only root can give a folder away.
        if rustix::process::geteuid().is_root() {
            let (_dir, out, partial) = leftover(MARK, WRITTEN);
            chown(&partial, Some(12_345), None).unwrap();
            let error = Partial::create(&out, Access::ANY).unwrap_err();
            assert!(error.message.contains("belongs to another user"), "{error}");
            assert!(partial.join("config.json").exists());
        }
    }

    #[cfg(unix)]
    #[test]
    fn only_the_user_looks_into_a_partial_folder_and_who_may_read_the_inputs_into_the_output() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let (out, partial) = (dir.path().join("out"), dir.path().join("out.partial"));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let umask = 0o777
            & !{
                fs::create_dir(&out).unwrap();
                mode(&out)
            };
        for (file, folder) in [(0o600, 0o700), (0o640, 0o750), (0o666, 0o777)] {
            let access = Access { file, folder };
            let partial_folder = Partial::create(&out, access).unwrap();
            assert_eq!(mode(&partial), 0o700);
            partial_folder.create_file("additional_chat_templates/x.jinja", access).unwrap();
            partial_folder.publish().unwrap();
            assert_eq!(mode(&out), folder & !umask);
            assert_eq!(mode(&out.join(TEMPLATES)), folder & !umask);
            assert_eq!(mode(&out.join("additional_chat_templates/x.jinja")), file & !umask);
            fs::remove_dir_all(&out).unwrap();
        }
    }

    #[test]
    fn a_partial_folder_of_someone_else_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (out, partial) = (dir.path().join("out"), dir.path().join("out.partial"));
        fs::create_dir(&partial).unwrap();
        fs::write(partial.join("thesis.tex"), "x").unwrap();
        let error = Partial::create(&out, Access::ANY).unwrap_err();
        assert!(error.message.contains("in the way") && error.hint.is_some());
        assert!(partial.join("thesis.tex").exists());
    }

    #[cfg(unix)]
    #[test]
    fn a_symlink_named_partial_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let elsewhere = dir.path().join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        fs::write(elsewhere.join(LOCK), "").unwrap();
        std::os::unix::fs::symlink(&elsewhere, dir.path().join("out.partial")).unwrap();
        let error = Partial::create(&dir.path().join("out"), Access::ANY).unwrap_err();
        assert!(error.message.contains("no folder"));
        assert!(elsewhere.join(LOCK).exists());
    }

    #[test]
    fn a_rename_that_fails_leaves_the_finished_files() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let partial = Partial::create(&out, Access::ANY).unwrap();
        fs::write(partial.path().join("config.json"), "{}").unwrap();
        fs::create_dir(&out).unwrap();
        fs::write(out.join("appeared"), "").unwrap();
        let error = partial.publish().unwrap_err();
        assert!(error.message.contains("complete") && error.hint.unwrap().contains("out.partial"));
        assert!(dir.path().join("out.partial/config.json").exists());
        assert!(Partial::create(&out, Access::ANY).is_err(), "finished files are not taken for leftovers");
    }

    #[cfg(unix)]
    #[test]
    fn a_symlink_to_an_empty_folder_is_replaced_where_it_leads() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("real")).unwrap();
        std::os::unix::fs::symlink("real", dir.path().join("link")).unwrap();
        let partial = Partial::create(&dir.path().join("link"), Access::ANY).unwrap();
        fs::write(partial.path().join("x"), "").unwrap();
        partial.publish().unwrap();
        assert!(dir.path().join("real/x").exists() && dir.path().join("link").is_symlink());
    }
}

//! The output folder appears whole or not at all: it is built beside its place, in `OUT.partial`, and
//! renamed when everything is on the disk. A reader never meets half a checkpoint.
//!
//! `OUT.partial` is locked while it is built. A lock dies with its process, so one that can be taken is
//! what a killed merge left behind, and is cleared.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The file in `OUT.partial` whose lock says that a merge is at work there.
const LOCK: &str = ".lock";

/// Checks, before anything is read, that `out` can become the output: it is new or an empty folder, apart
/// from every input, and can be made.
///
/// # Errors
/// Kind `Config`, with what stands in the way.
pub fn check_out(out: &Path, inputs: &[&Path]) -> Result<()> {
    let real = resolve(out).map_err(Error::config)?;
    apart_from_inputs(out, &real, inputs)?;
    free_to_take(out, &real)?;
    can_be_made(out, &real)
}

/// The bytes that may still be written where `out` will lie. `None` where the system does not tell.
pub fn free_bytes(out: &Path) -> Option<u64> {
    #[cfg(unix)]
    {
        let folder = nearest_existing(&resolve(out).ok()?)?.to_path_buf();
        let stat = rustix::fs::statvfs(&folder).ok()?;
        Some(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
    #[cfg(not(unix))]
    {
        let _ = out;
        None
    }
}

/// `out` without symlinks, as far as it exists; the rest as it is written. It has a name and a parent.
fn resolve(out: &Path) -> std::result::Result<PathBuf, String> {
    let shown = out.display();
    let absolute = std::path::absolute(out).map_err(|e| format!("the output folder {shown:?}: {e}"))?;
    let (mut existing, mut rest) = (absolute.as_path(), Vec::new());
    let mut real = loop {
        match existing.canonicalize() {
            Ok(real) => break real,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(format!("the output folder {shown} cannot be reached: {e}")),
        }
        if existing.is_symlink() {
            return Err(format!("{} is a symlink to nothing", existing.display()));
        }
        // A path that ends in `..` has no name: what it means depends on a folder that is not there.
        let (Some(name), Some(parent)) = (existing.file_name(), existing.parent()) else {
            return Err(format!("the output folder {shown} leads through a folder that does not exist"));
        };
        rest.push(name);
        existing = parent;
    };
    real.extend(rest.into_iter().rev());
    match real.file_name() {
        Some(_) => Ok(real),
        None => Err(format!("{shown} cannot be the output folder")),
    }
}

fn nearest_existing(path: &Path) -> Option<&Path> {
    path.ancestors().find(|ancestor| ancestor.exists())
}

/// The sibling in which `real` is built.
fn partial_of(real: &Path) -> PathBuf {
    let mut name = real.file_name().unwrap_or(OsStr::new("out")).to_os_string();
    name.push(".partial");
    real.with_file_name(name)
}

/// Neither the output nor the folder it is built in may lie in an input, or hold one.
fn apart_from_inputs(out: &Path, real: &Path, inputs: &[&Path]) -> Result<()> {
    let places = [real.to_path_buf(), partial_of(real)];
    for input in inputs {
        let folder = input.canonicalize().map_err(|e| Error::reading(input, &e))?;
        if places.iter().any(|place| place.starts_with(&folder) || folder.starts_with(place)) {
            let (out, input) = (out.display(), input.display());
            return Err(Error::config(format!("the output folder {out} and the input {input} overlap"))
                .hint("write to a folder of its own, beside the models"));
        }
    }
    Ok(())
}

fn free_to_take(out: &Path, real: &Path) -> Result<()> {
    let Ok(metadata) = fs::symlink_metadata(real) else {
        return Ok(());
    };
    if !metadata.is_dir() {
        return Err(Error::config(format!("the output {} exists and is no folder", out.display()))
            .hint("choose another output folder"));
    }
    if !is_empty(real).map_err(|e| Error::config(format!("cannot look into {}: {e}", out.display())))? {
        return Err(Error::config(format!("the output folder {} exists and is not empty", out.display()))
            .hint("choose another output folder, or delete this one"));
    }
    if is_mount_point(real) {
        return Err(Error::config(format!(
            "the output folder {} is a mount point, which cannot be replaced by a finished folder",
            out.display()
        ))
        .hint("give a folder inside it"));
    }
    Ok(())
}

fn can_be_made(out: &Path, real: &Path) -> Result<()> {
    let refused = |what: String| {
        Err(Error::config(format!("the output folder {} cannot be made: {what}", out.display()))
            .hint("choose another output folder"))
    };
    let Some(parent) = real.parent().and_then(nearest_existing) else {
        return refused("no parent folder exists".into());
    };
    if !parent.is_dir() {
        return refused(format!("{} is no folder", parent.display()));
    }
    #[cfg(unix)]
    {
        use rustix::fs::{Access, access};
        if let Err(e) = access(parent, Access::WRITE_OK | Access::EXEC_OK) {
            return refused(format!("cannot write in {}: {}", parent.display(), io::Error::from(e)));
        }
    }
    Ok(())
}

fn is_empty(folder: &Path) -> io::Result<bool> {
    Ok(fs::read_dir(folder)?.next().is_none())
}

#[cfg(unix)]
fn is_mount_point(folder: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev()).ok();
    folder.parent().is_some_and(|parent| device(parent) != device(folder))
}

#[cfg(not(unix))]
fn is_mount_point(_folder: &Path) -> bool {
    false
}

/// `OUT.partial`, locked. Dropped before [`Partial::publish`] succeeds, it is removed with all it holds.
#[derive(Debug)]
pub(super) struct Partial {
    out: PathBuf,
    path: PathBuf,
    /// Held open, and so locked, until the folder is published or gone.
    _lock: File,
    keep: bool,
}

impl Partial {
    /// Makes an empty `OUT.partial`, or takes over what a killed merge left.
    ///
    /// # Errors
    /// Kind `Output`: another merge is at work there, or the folder is not ours.
    pub fn create(out: &Path) -> Result<Self> {
        let out = resolve(out).map_err(Error::output)?;
        let path = partial_of(&out);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(|e| Error::writing(parent, &e))?;
        }
        let lock = match fs::create_dir(&path) {
            Ok(()) => new_lock(&path)?,
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => take_over(&path)?,
            Err(e) => return Err(Error::writing(&path, &e)),
        };
        Ok(Self { out, path, _lock: lock, keep: false })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the folder its name; the rename is on the disk when this returns.
    ///
    /// # Errors
    /// Kind `Output`. Where only the rename failed the work is done, so `OUT.partial` stays and the message
    /// says so.
    pub fn publish(mut self) -> Result<()> {
        let lock = self.path.join(LOCK);
        fs::remove_file(&lock).map_err(|e| Error::writing(&lock, &e))?;
        sync_folder(&self.path)?;
        self.keep = true;
        rename_folder(&self.path, &self.out).map_err(|e| self.not_renamed(&e))?;
        self.out.parent().map_or(Ok(()), sync_folder)
    }

    fn not_renamed(&self, cause: &io::Error) -> Error {
        let (partial, out) = (self.path.display(), self.out.display());
        Error::output(format!("the merge is complete, but {partial} could not be renamed to {out}: {cause}"))
            .hint(format!("the finished files are in {partial}: move them where you want them"))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.keep {
            // What cannot be removed now is cleared by the next merge to the same place: the lock goes last.
            let _ = clear(&self.path).and_then(|()| fs::remove_file(self.path.join(LOCK)));
            let _ = fs::remove_dir(&self.path);
        }
    }
}

/// Locks a folder that was just made.
fn new_lock(partial: &Path) -> Result<File> {
    let path = partial.join(LOCK);
    let lock = match File::create_new(&path) {
        Ok(lock) => lock,
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Err(in_use(partial)),
        Err(e) => return Err(Error::writing(&path, &e)),
    };
    match lock.try_lock() {
        Err(TryLockError::WouldBlock) => Err(in_use(partial)),
        // Some network file systems have no locks. The folder is new, so nobody else is in it.
        Ok(()) | Err(TryLockError::Error(_)) => Ok(lock),
    }
}

/// Locks and clears what a killed merge left.
fn take_over(partial: &Path) -> Result<File> {
    let failed = |e: io::Error| Error::writing(partial, &e);
    let not_ours = |what: &str| {
        Error::output(format!("{} is in the way: {what}", partial.display()))
            .hint("move or delete it, or choose another output folder")
    };
    // Not followed: a symlink could lead the clearing below anywhere.
    if !fs::symlink_metadata(partial).map_err(failed)?.is_dir() {
        return Err(not_ours("it is no folder"));
    }
    let path = partial.join(LOCK);
    match fs::symlink_metadata(&path) {
        Ok(metadata) if metadata.is_file() => {}
        // Killed between making the folder and the lock.
        _ if is_empty(partial).map_err(failed)? => return new_lock(partial),
        _ => return Err(not_ours("no merge is making it (it holds no .lock), and it is not empty")),
    }
    let lock = OpenOptions::new().read(true).write(true).open(&path).map_err(failed)?;
    match lock.try_lock() {
        Ok(()) if is_still_at(&lock, &path) => {}
        Ok(()) | Err(TryLockError::WouldBlock) => return Err(in_use(partial)),
        Err(TryLockError::Error(e)) => {
            return Err(not_ours(&format!("whether a merge is making it cannot be told ({e})")));
        }
    }
    clear(partial).map_err(failed)?;
    Ok(lock)
}

fn in_use(partial: &Path) -> Error {
    Error::output(format!("another merge is writing {}", partial.display()))
        .hint("wait for it, or choose another output folder")
}

/// Between opening and locking, its owner may have removed the file: the lock would guard nothing.
#[cfg(unix)]
fn is_still_at(lock: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (lock.metadata(), fs::symlink_metadata(path)) {
        (Ok(held), Ok(there)) => (held.dev(), held.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

#[cfg(not(unix))]
fn is_still_at(_lock: &File, path: &Path) -> bool {
    path.exists()
}

/// Removes everything in the folder but the lock; symlinks are removed, not followed.
fn clear(partial: &Path) -> io::Result<()> {
    for entry in fs::read_dir(partial)? {
        let entry = entry?;
        if entry.file_name() == LOCK {
            continue;
        }
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Replaces an empty folder too, which only POSIX's rename does by itself.
fn rename_folder(from: &Path, to: &Path) -> io::Result<()> {
    if cfg!(not(unix)) && to.is_dir() {
        fs::remove_dir(to)?;
    }
    fs::rename(from, to)
}

/// Puts a folder's entries on the disk. Elsewhere than on unix a folder cannot be opened for that.
pub(super) fn sync_folder(folder: &Path) -> Result<()> {
    if cfg!(unix) {
        match File::open(folder).and_then(|folder| folder.sync_all()) {
            // Some file systems do not sync folders by themselves.
            Err(e) if ![io::ErrorKind::InvalidInput, io::ErrorKind::Unsupported].contains(&e.kind()) => {
                return Err(Error::writing(folder, &e));
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    fn refused(out: &Path, inputs: &[&Path]) -> String {
        let error = check_out(out, inputs).unwrap_err();
        assert_eq!(error.kind, Kind::Config);
        error.message
    }

    #[test]
    fn the_output_must_be_new_or_empty() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        check_out(&at("new"), &[]).unwrap();
        check_out(&at("new/deep/er"), &[]).unwrap();
        fs::create_dir(at("empty")).unwrap();
        check_out(&at("empty"), &[]).unwrap();
        fs::write(at("file"), "x").unwrap();
        assert!(refused(&at("file"), &[]).contains("is no folder"));
        assert!(refused(&at("file/below"), &[]).contains("cannot be"));
        assert!(refused(dir.path(), &[]).contains("is not empty"));
        assert!(refused(&at("not/../there"), &[]).contains("does not exist"));
        assert!(refused(Path::new("/"), &[]).contains("cannot be the output"));
        check_out(Path::new(""), &[]).unwrap_err();
    }

    #[test]
    fn the_output_is_apart_from_the_inputs() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("models/a")).unwrap();
        fs::create_dir_all(at("c.partial")).unwrap();
        let input = at("models/a");
        for inside in ["models/a", "models/a/out", "models/a/x/y", "models/../models/a/out", "models"] {
            assert!(refused(&at(inside), &[&input]).contains("overlap"), "{inside}");
        }
        assert!(refused(&at("c"), &[&at("c.partial")]).contains("overlap"));
        check_out(&at("models/ab"), &[&input]).unwrap();
        assert!(check_out(&at("out"), &[&at("none")]).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn symlinks_do_not_hide_where_the_output_lies() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("model")).unwrap();
        symlink(at("model"), at("link")).unwrap();
        assert!(refused(&at("link/new/out"), &[&at("model")]).contains("overlap"));
        assert!(refused(&at("model/out"), &[&at("link")]).contains("overlap"));
        symlink(at("nowhere"), at("dangling")).unwrap();
        assert!(refused(&at("dangling"), &[]).contains("symlink to nothing"));
        assert!(refused(&at("dangling/out"), &[]).contains("symlink to nothing"));
    }

    #[cfg(unix)]
    #[test]
    fn a_folder_that_cannot_be_written_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        // Root may write anywhere, so there is nothing to refuse.
        if rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o555)).unwrap();
        assert!(refused(&dir.path().join("deep/out"), &[]).contains("cannot be made"));
    }

    #[test]
    fn free_space_is_told_for_a_folder_that_is_not_there_yet() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(free_bytes(&dir.path().join("a/b")).is_some(), cfg!(unix));
    }

    #[test]
    fn a_partial_folder_belongs_to_one_merge() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let first = Partial::create(&out).unwrap();
        let error = Partial::create(&out).unwrap_err();
        assert!(error.message.contains("another merge") && error.kind == Kind::Output);
        assert!(first.path().is_dir());
        drop(first);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_a_killed_merge_left_is_cleared() {
        let dir = tempfile::tempdir().unwrap();
        let (out, partial) = (dir.path().join("out"), dir.path().join("out.partial"));
        fs::create_dir_all(partial.join("sub")).unwrap();
        for name in [LOCK, "model.safetensors", "sub/x"] {
            fs::write(partial.join(name), "x").unwrap();
        }
        let taken = Partial::create(&out).unwrap();
        assert_eq!(fs::read_dir(&partial).unwrap().count(), 1);
        taken.publish().unwrap();
        assert!(is_empty(&out).unwrap() && !partial.exists());
        // Killed before it had a lock.
        fs::create_dir(&partial).unwrap();
        drop(Partial::create(&dir.path().join("out")).unwrap());
        assert!(!partial.exists());
    }

    #[test]
    fn a_partial_folder_of_someone_else_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (out, partial) = (dir.path().join("out"), dir.path().join("out.partial"));
        fs::create_dir(&partial).unwrap();
        fs::write(partial.join("thesis.tex"), "x").unwrap();
        let error = Partial::create(&out).unwrap_err();
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
        let error = Partial::create(&dir.path().join("out")).unwrap_err();
        assert!(error.message.contains("no folder"));
        assert!(elsewhere.join(LOCK).exists());
    }

    #[test]
    fn a_rename_that_fails_leaves_the_finished_files() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let partial = Partial::create(&out).unwrap();
        fs::write(partial.path().join("config.json"), "{}").unwrap();
        fs::create_dir(&out).unwrap();
        fs::write(out.join("appeared"), "").unwrap();
        let error = partial.publish().unwrap_err();
        assert!(error.message.contains("complete") && error.hint.unwrap().contains("out.partial"));
        assert!(dir.path().join("out.partial/config.json").exists());
        assert!(Partial::create(&out).is_err(), "finished files are not taken for leftovers");
    }

    #[cfg(unix)]
    #[test]
    fn a_symlink_to_an_empty_folder_is_replaced_where_it_leads() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("real")).unwrap();
        std::os::unix::fs::symlink("real", dir.path().join("link")).unwrap();
        let partial = Partial::create(&dir.path().join("link")).unwrap();
        fs::write(partial.path().join("x"), "").unwrap();
        partial.publish().unwrap();
        assert!(dir.path().join("real/x").exists() && dir.path().join("link").is_symlink());
    }
}

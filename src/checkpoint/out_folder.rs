//! Where the output goes, checked before anything is read: the folder is new or empty, apart from every input, and can be made.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

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

/// The bytes that may still be written where `out` will lie. `None` where the system does not say.
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
pub(super) fn resolve(out: &Path) -> std::result::Result<PathBuf, String> {
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

pub(super) fn nearest_existing(path: &Path) -> Option<&Path> {
    path.ancestors().find(|ancestor| ancestor.exists())
}

/// The sibling in which `real` is built.
pub(super) fn partial_of(real: &Path) -> PathBuf {
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

/// Another file system, or the same one mounted there as well.
#[cfg(unix)]
fn is_mount_point(folder: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev()).ok();
    folder.parent().is_some_and(|parent| device(parent) != device(folder)) || is_mount_root(folder)
}

#[cfg(target_os = "linux")]
fn is_mount_root(folder: &Path) -> bool {
    use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};
    let found = statx(CWD, folder, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::empty());
    found.is_ok_and(|found| found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

#[cfg(all(unix, not(target_os = "linux")))]
fn is_mount_root(_folder: &Path) -> bool {
    false
}

#[cfg(not(unix))]
fn is_mount_point(_folder: &Path) -> bool {
    false
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
    fn free_space_is_reported_for_a_folder_that_is_not_there_yet() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(free_bytes(&dir.path().join("a/b")).is_some(), cfg!(unix));
    }
}

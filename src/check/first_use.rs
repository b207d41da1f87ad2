//! Devices whose kernels are checked before a merge uses them for the first time.
//!
//! A WebGPU device compiles the shaders with whatever its driver makes of them. What it compiled is compared with the CPU
//! once for each adapter, driver and text of the shaders, and then remembered in the cache folder: an empty file, whose
//! name is a hash of all of them. A file that cannot be written costs the next merge another check.

use std::io;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use super::{Depth, limits, refusal, run};
use crate::backend::device::Device;
use crate::cache::make_private;
use crate::error::Result;
use crate::files::{self, File};

/// Checks a device that has to be, and is not yet known to be right.
///
/// # Errors
/// Kind `Device`: it computes something else than the CPU, or fails.
pub fn before_first_use(device: &Device, cache: Option<&Path>) -> Result<()> {
    // Where nothing can be kept, one check still holds for this process.
    static CHECKED: Mutex<Vec<blake3::Hash>> = Mutex::new(Vec::new());
    let Some(identity) = &device.identity else { return Ok(()) };
    let hash = blake3::hash(identity.as_bytes());
    let known = cache.map(|cache| cache.join("checked").join(hash.to_hex().as_str()));
    let mut checked = CHECKED.lock().unwrap_or_else(PoisonError::into_inner);
    if checked.contains(&hash) || known.as_ref().is_some_and(|known| files::exists(known)) {
        return Ok(());
    }
    let rows = run(&*device.open(&limits())?, Depth::First, None, |_| {})?;
    if let Some(refusal) = refusal(&device.id(), &rows) {
        return Err(refusal);
    }
    checked.push(hash);
    if let Some(known) = known {
        let _ = remember(&known);
    }
    Ok(())
}

/// Makes a file that says all by its name. A link that lies in its place is not followed.
fn remember(known: &Path) -> io::Result<()> {
    make_private(known.parent().unwrap_or(Path::new("")))?;
    File::make(known).map(drop)
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn a_planted_link_is_not_followed() {
        let cache = tempfile::tempdir().unwrap();
        let (target, link) = (cache.path().join("target"), cache.path().join("link"));
        for before in [None, Some("precious")] {
            before.inspect(|text| fs::write(&target, text).unwrap());
            symlink(&target, &link).unwrap();
            assert_eq!(remember(&link).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
            assert_eq!(fs::read_to_string(&target).ok().as_deref(), before);
            fs::remove_file(&link).unwrap();
        }
    }

    #[test]
    fn what_is_remembered_lies_in_folders_of_the_user_alone() {
        let folder = tempfile::tempdir().unwrap();
        let checked = folder.path().join("mergeforge/checked");
        remember(&checked.join("hash")).unwrap();
        assert_eq!(fs::read(checked.join("hash")).unwrap(), b"");
        for made in [&*checked, checked.parent().unwrap()] {
            assert_eq!(fs::metadata(made).unwrap().permissions().mode() & 0o777, 0o700, "{}", made.display());
        }
    }
}

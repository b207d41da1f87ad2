//! The folder of what merges remember for later ones.

use std::fs::{DirBuilder, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Makes a folder, and those that it lies in, for the user alone. What is there stays as it is.
///
/// # Errors
/// Those of the system.
pub fn make_private(folder: &Path) -> io::Result<()> {
    let mut builder = DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.recursive(true).create(folder)
}

/// Where merges keep what helps the next one: `$MERGEFORGE_CACHE` (nowhere if that is empty), else a folder of our own
/// where programs keep such things.
pub fn folder() -> Option<PathBuf> {
    let folder = |name| std::env::var_os(name).map(PathBuf::from);
    let in_caches = |caches: PathBuf| caches.join("mergeforge");
    folder("MERGEFORGE_CACHE")
        // One that is empty or relative is to be ignored, by its specification.
        .or_else(|| folder("XDG_CACHE_HOME").filter(|caches| caches.is_absolute()).map(in_caches))
        .or_else(|| std::env::home_dir().map(|home| in_caches(home.join(".cache"))))
        .filter(|folder| folder.is_absolute() || folder.components().next().is_some())
}

/// All of a small file that is not a model's: a reference or something that we remembered ourselves. Not read where it is no regular
/// file, which could have no end or be waited for, or has more than `bytes_max`.
///
/// # Errors
/// Those of the system, and these.
pub fn read_small(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut options = File::options();
    options.read(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed());
    }
    let file = options.open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut content = Vec::new();
    file.take(bytes_max + 1).read_to_end(&mut content)?;
    if content.len() as u64 > bytes_max { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(content) }
}

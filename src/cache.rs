//! The folder of what merges remember for later ones.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use crate::files::{self, File};

/// Makes a folder, and those that it lies in, for the user alone. What is there stays as it is.
///
/// # Errors
/// Those of the system.
pub fn make_private(folder: &Path) -> io::Result<()> {
    files::make_folders(folder, 0o700)
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
    let file = open_regular(path)?;
    let mut content = Vec::new();
    file.take(bytes_max + 1).read_to_end(&mut content)?;
    if content.len() as u64 > bytes_max { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(content) }
}

/// Opens what has to be a regular file.
///
/// # Errors
/// Those of the system, and that it is none.
pub fn open_regular(path: &Path) -> io::Result<File> {
    let file = File::open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::ErrorKind::InvalidInput.into()) }
}

/// The ending of a file that is being written.
pub const UNFINISHED: &str = "partial";

/// Replaces a small file in one step, by way of one beside it: who reads it at the same time sees the old or the new one, and what is
/// in its place, a link or a pipe, is neither followed nor waited for.
///
/// # Errors
/// Those of the system.
pub fn replace(file: &Path, content: &[u8]) -> io::Result<()> {
    let unfinished = file.with_extension(format!("{}.{UNFINISHED}", std::process::id()));
    // One that is there is a killed process's or somebody's trap: it is left alone.
    let mut made = File::make(&unfinished)?;
    made.write_all(content).and_then(|()| files::rename(&unfinished, file)).inspect_err(|_| {
        let _ = files::remove_file(&unfinished);
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn small_files_are_read_up_to_their_size() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.json");
        replace(&file, b"1234").unwrap();
        assert_eq!(read_small(&file, 4).unwrap(), b"1234");
        assert_eq!(read_small(&file, 3).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        replace(&file, b"5").unwrap();
        assert_eq!(read_small(&file, 4).unwrap(), b"5");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[cfg(unix)]
    #[test]
    fn what_is_no_file_is_not_waited_for_and_makes_room() {
        use rustix::fs::{CWD, FileType, Mode, mknodat};
        let folder = tempfile::tempdir().unwrap();
        let (pipe, precious) = (folder.path().join("pipe.json"), folder.path().join("precious"));
        mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        fs::write(&precious, "mine").unwrap();
        let link = folder.path().join("link.json");
        std::os::unix::fs::symlink(&precious, &link).unwrap();
        assert_eq!(read_small(&pipe, 4).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert!(read_small(Path::new("/dev/zero"), 4).is_err() && read_small(folder.path(), 4).is_err());
        for file in [&pipe, &link] {
            replace(file, b"new").unwrap();
            assert_eq!(read_small(file, 4).unwrap(), b"new");
        }
        assert_eq!(fs::read(&precious).unwrap(), b"mine");
    }
}

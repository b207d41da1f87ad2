//! Opening files safely, and positioned reads and writes: many threads share one handle, whose cursor
//! nobody uses.
//!
//! Inputs are read by position and never mapped: a file truncated under a map kills the process (SIGBUS),
//! truncated under a read it is an error that can name it.

use std::fs::{File, Metadata};
use std::io;
use std::path::Path;

use crate::error::{Error, Result};

/// Opens an input file (symlinks are followed) with what the system says about it.
///
/// Only regular files: opening a pipe would wait for ever, and a device has no end.
pub fn open_regular(path: &Path) -> Result<(File, Metadata)> {
    let found = std::fs::metadata(path).map_err(|e| Error::reading(path, &e))?;
    if !found.is_file() {
        return Err(Error::input(format!("{} is not a regular file", path.display())));
    }
    let file = File::open(path).map_err(|e| with_limit_hint(Error::reading(path, &e), &e))?;
    let metadata = file.metadata().map_err(|e| Error::reading(path, &e))?;
    Ok((file, metadata))
}

/// Adds the way out where a file could not be opened because too many are open.
pub fn with_limit_hint(error: Error, cause: &io::Error) -> Error {
    #[cfg(unix)]
    if cause.raw_os_error() == Some(rustix::io::Errno::MFILE.raw_os_error()) {
        return error.hint("allow more open files (`ulimit -n`): every shard is one");
    }
    let _ = cause;
    error
}

/// Lets this process open as many files as the system permits: twelve models of 200 shards pass the usual
/// limit of 1024. Where it cannot be raised, opening says so when it matters.
pub fn raise_open_file_limit() {
    #[cfg(unix)]
    {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        static ONCE: std::sync::Once = std::sync::Once::new();
        ONCE.call_once(|| {
            let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
            let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
        });
    }
}

/// Fills `into` from `offset` on; an earlier end of the file is `UnexpectedEof`.
#[cfg(unix)]
pub fn read_exact_at(file: &File, into: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, into, offset)
}

/// Writes all of `bytes` from `offset` on.
#[cfg(unix)]
pub fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
}

/// Fills `into` from `offset` on; an earlier end of the file is `UnexpectedEof`.
#[cfg(windows)]
pub fn read_exact_at(file: &File, mut into: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !into.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, into, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                into = &mut into[count..];
                offset += count as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Writes all of `bytes` from `offset` on.
#[cfg(windows)]
pub fn write_all_at(file: &File, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match std::os::windows::fs::FileExt::seek_write(file, bytes, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => {
                bytes = &bytes[count..];
                offset += count as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

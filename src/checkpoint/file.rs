//! Opening files safely, and positioned reads and writes: many threads share one handle, whose cursor
//! nobody uses.
//!
//! Large inputs may be read past the page cache: what does not fit there would only push out other data, and copying a
//! cold page costs the processor more than the disk's own transfer into our memory.
//!
//! All is read by position but what a method on the CPU reads several times, which is mapped (`mapped`).

use std::fmt;
use std::io;

use crate::error::Error;
use crate::files::{File, Metadata};

/// Who may use the files of a merge besides the user, as bits of a mode: never more than may use all of its inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// Of files.
    pub file: u32,
    /// Of folders.
    pub folder: u32,
}

impl Access {
    /// What the system's own mask leaves.
    pub const ANY: Self = Self { file: 0o666, folder: 0o777 };

    /// What this and a file leave.
    #[must_use]
    pub fn and_file(self, metadata: &Metadata) -> Self {
        Self { file: self.file & readers(metadata), ..self }
    }

    /// What this and a folder leave.
    #[must_use]
    pub fn and_folder(self, metadata: &Metadata) -> Self {
        Self { folder: self.folder & readers(metadata), ..self }
    }

    /// What both leave.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self { file: self.file & other.file, folder: self.folder & other.folder }
    }

    /// What the system's mask has left of a new file, and would leave of a folder that has the same readers.
    #[must_use]
    pub fn of_new_file(self, metadata: &Metadata) -> Self {
        let file = mode(metadata);
        Self { file: self.file & file, folder: self.folder & (file | (file & 0o444) >> 2) }
    }

    /// The mode of a file that is made; the user can always read and write it.
    pub fn file_mode(self) -> u32 {
        self.file & 0o666 | 0o600
    }

    /// Takes rights from a file that is there, so that it has no more than these.
    ///
    /// # Errors
    /// Those of the system.
    pub fn narrow(self, file: &File) -> io::Result<()> {
        #[cfg(unix)]
        {
            let mode = mode(&file.metadata()?) & 0o777;
            if mode & !self.file_mode() != 0 {
                file.set_mode(mode & self.file_mode())?;
            }
        }
        #[cfg(not(unix))]
        let _ = file;
        Ok(())
    }

    /// The mode of the output folder.
    pub fn folder_mode(self) -> u32 {
        self.folder & 0o777 | 0o700
    }
}

/// Who may read it, and look into it; they may also be given the right to write to what is made of it.
fn readers(metadata: &Metadata) -> u32 {
    let mode = mode(metadata);
    mode & 0o555 | (mode & 0o444) >> 1
}

#[cfg(unix)]
fn mode(metadata: &Metadata) -> u32 {
    std::os::unix::fs::MetadataExt::mode(metadata)
}

/// Elsewhere files have no such bits.
#[cfg(not(unix))]
fn mode(_metadata: &Metadata) -> u32 {
    0o777
}

/// Adds the way out where a file could not be opened because too many are open.
pub fn with_limit_hint(error: Error, cause: &io::Error) -> Error {
    #[cfg(unix)]
    if cause.raw_os_error() == Some(rustix::io::Errno::MFILE.raw_os_error()) {
        return error.hint("allow more open files (`ulimit -n`)");
    }
    let _ = cause;
    error
}

/// Lets this process open as many files as the system permits: twelve models of 200 shards pass the usual
/// limit of 1024. Where that is too few, files are closed and opened again: see `handles`.
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

/// How many files the system lets this process open.
pub fn open_files_max() -> usize {
    #[cfg(unix)]
    {
        use rustix::process::{Resource, getrlimit};
        raise_open_file_limit();
        getrlimit(Resource::Nofile).current.map_or(usize::MAX, |most| most as usize)
    }
    // Windows ends at the memory.
    #[cfg(not(unix))]
    usize::MAX
}

/// How data is read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Reads {
    /// Where the page cache has it, without a copy: for those who can use it there, and where the system can do that. Else
    /// as `Copied`.
    #[default]
    Mapped,
    /// Copied out of the page cache, which keeps it for the next merge.
    Copied,
    /// Past it, where the system can do that.
    Direct,
}

/// Fills `into` from `offset` on by `direct`, a handle of [`File::direct`], or by `file` where that cannot be; an earlier
/// end of the file is `UnexpectedEof`.
pub fn read_exact_past_cache(file: &File, direct: &File, into: &mut [u8], offset: u64) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    if read_blocks(direct, into, offset)? {
        return Ok(());
    }
    let _ = direct;
    file.read_exact_at(into, offset)
}

/// Reads whole blocks around what is wanted; false where the file cannot be read in such blocks, or ends.
#[cfg(target_os = "linux")]
fn read_blocks(direct: &File, into: &mut [u8], offset: u64) -> io::Result<bool> {
    use std::cell::RefCell;
    /// Offsets, lengths and addresses of direct reads are multiples of this; disks have blocks of 512 or 4096 bytes.
    const BLOCK: usize = 4096;
    thread_local! {
        static ROOM: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    let before = offset as usize % BLOCK;
    let wanted = before + into.len();
    ROOM.with_borrow_mut(|room| {
        let len = wanted.next_multiple_of(BLOCK);
        room.resize(room.len().max(len + BLOCK), 0);
        let start = room.as_ptr().align_offset(BLOCK);
        let room = &mut room[start..start + len];
        let mut read = 0;
        while read < wanted {
            match direct.read_at(&mut room[read..], offset - before as u64 + read as u64) {
                // Too early an end of the file, or of what this disk calls a block.
                Ok(count) if count == 0 || (!count.is_multiple_of(BLOCK) && read + count < wanted) => {
                    return Ok(false);
                }
                Ok(count) => read += count,
                Err(cause) if cause.kind() == io::ErrorKind::InvalidInput => return Ok(false),
                Err(cause) => return Err(cause),
            }
        }
        into.copy_from_slice(&room[before..wanted]);
        Ok(true)
    })
}

/// What is read by position: a file, or what stands for one.
pub trait ReadAt: fmt::Debug {
    /// Fills `into` from `offset` on; an earlier end is `UnexpectedEof`.
    ///
    /// # Errors
    /// Those of the system.
    fn fill(&self, into: &mut [u8], offset: u64) -> io::Result<()>;
}

impl ReadAt for File {
    fn fill(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(into, offset)
    }
}

#[cfg(target_os = "linux")]
#[cfg(test)]
mod tests {
    use super::*;

    /// Whether the page cache has a file's byte. Asking makes the system read it: each file is asked once.
    fn is_cached(file: &File, offset: u64) -> bool {
        use rustix::io::{ReadWriteFlags, preadv2};
        let mut byte = [0];
        preadv2(file, &mut [io::IoSliceMut::new(&mut byte)], offset, ReadWriteFlags::NOWAIT).is_ok()
    }

    #[test]
    fn direct_reads_give_the_same_bytes_and_leave_nothing_in_the_cache() {
        // Beside the program, since temporary files may lie in memory.
        let program = std::env::current_exe().unwrap();
        let folder = tempfile::tempdir_in(program.parent().unwrap()).unwrap();
        let data: Vec<u8> = (0..300_001u32).map(|i| (i * 7 % 251) as u8).collect();
        let forgotten = |name: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, &data).unwrap();
            let file = File::open(&path).unwrap();
            file.sync_all().unwrap();
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
            let direct = file.direct();
            (file, direct)
        };
        let (file, direct) = forgotten("first");
        if (0..10).all(|attempt| is_cached(&forgotten(&format!("first-{attempt}")).0, 0)) || direct.is_none()
        {
            return eprintln!("not run: this file system has no reads past its cache");
        }
        for (offset, len) in [
            (0, 1),
            (0, 4096),
            (1, 4095),
            (4095, 2),
            (4096, 8192),
            (17, 200_000),
            (299_000, 1001),
            (300_000, 1),
        ] {
            // The system forgets what it can, which now and then is not all: what reading leaves is left every time.
            let is_left = |attempt: usize| {
                let (file, direct) = forgotten(&format!("{offset}-{len}-{attempt}"));
                let mut into = vec![0; len];
                assert!(
                    read_blocks(&direct.unwrap(), &mut into, offset as u64).unwrap(),
                    "{len} from {offset}"
                );
                assert!(into == data[offset..offset + len], "{len} bytes from {offset}");
                is_cached(&file, offset as u64)
            };
            assert!(!(0..10).all(is_left), "{len} bytes from {offset} are cached");
        }
        for (offset, len) in [(300_000, 2), (0, 300_002), (300_001, 1), (400_000, 10)] {
            let error = read_exact_past_cache(&file, direct.as_ref().unwrap(), &mut vec![0; len], offset)
                .unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{len} bytes from {offset}");
        }
    }
}

//! How fast files are written: by how many threads, into how many files, and in which way. What `mergeforge bench writes` measures,
//! and what the way in which merges write was chosen by.
//!
//! Every run writes whole pieces of one size, as many to each file, into new files that have their size from the start. Threads take
//! the pieces in order, and one piece goes to each file in turn, so that with as many files as threads hardly two meet. The time is
//! from the first file made to the last byte written, or to all of it stored. All ways take turns, round by round, and before each
//! run the memory that it will fill is at hand.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use super::merge::HeldFolder;
use super::{at_hand, too_few_threads};
use crate::checkpoint::OutFile;
use crate::error::{Error, Result};
use crate::files::{self, WritableMap};
use crate::threads::share;

/// Addresses, offsets and lengths of direct writes are multiples of this; disks have blocks of 512 or 4096 bytes.
pub const BLOCK_BYTES: usize = 4096;

/// What is written, and how often.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The folder of the files, which are removed.
    pub dir: PathBuf,
    /// Bytes of all files of a run together, as near as whole pieces come to it.
    pub bytes: u64,
    /// Bytes that a thread writes at a time.
    pub piece_bytes: u64,
    /// Numbers of threads.
    pub threads: Vec<usize>,
    /// Numbers of files.
    pub files: Vec<usize>,
    /// Counted rounds.
    pub repeat: usize,
    /// Whether a run ends when all is stored.
    pub stored: bool,
}

impl Setup {
    /// Pieces of each of so many files.
    fn pieces(&self, files: usize) -> u64 {
        (self.bytes / self.piece_bytes / files as u64).max(1)
    }
}

/// How a thread writes a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// By position, one thread at a time to a file: as merges do.
    Positioned,
    /// Into mapped pages, which the system is asked for first.
    Mapped,
    /// By position and past the page cache.
    Direct,
}

impl Way {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Positioned, Self::Mapped, Self::Direct];

    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Positioned => "positioned",
            Self::Mapped => "mapped",
            Self::Direct => "direct",
        }
    }
}

/// What one way took.
#[derive(Debug, Clone)]
pub struct WriteTimes {
    /// How the pieces were written.
    pub way: Way,
    /// Whether the files' space was allocated first.
    pub allocated: bool,
    /// Threads.
    pub threads: usize,
    /// Files.
    pub files: usize,
    /// Seconds of each counted round; none where this file system cannot do it.
    pub seconds: Vec<f64>,
}

impl WriteTimes {
    /// Bytes a second of the fastest round and of the median one.
    pub fn rates(&self, setup: &Setup) -> Option<(f64, f64)> {
        let bytes = setup.pieces(self.files) * self.files as u64 * setup.piece_bytes;
        let mut seconds = self.seconds.clone();
        seconds.sort_by(f64::total_cmp);
        let rate = |seconds: &f64| bytes as f64 / seconds;
        Some((rate(seconds.first()?), rate(&seconds[seconds.len() / 2])))
    }
}

/// Measures everything; `stop` is asked between runs.
///
/// # Errors
/// Kind `Output`: the folder cannot be written to, or another bench uses it. Kind `Device`: so many threads cannot be started.
/// Kind `Interrupted`.
pub fn run(setup: &Setup, stop: &dyn Fn() -> bool) -> Result<Vec<WriteTimes>> {
    let held = HeldFolder::take(&setup.dir.join("mergeforge-bench-writes"))?;
    let mut times = Vec::new();
    for way in Way::ALL {
        for allocated in [false, true] {
            for (&threads, &files) in
                setup.threads.iter().flat_map(|t| setup.files.iter().map(move |f| (t, f)))
            {
                times.push(WriteTimes { way, allocated, threads, files, seconds: Vec::new() });
            }
        }
    }
    // The first round does not count.
    for round in 0..=setup.repeat {
        for row in &mut times {
            if stop() {
                return Err(Error::interrupted());
            }
            at_hand(&held.work.join("touched"), setup.bytes, stop)?;
            let taken = Run { setup, row, folder: &held.work }.time();
            for file in 0..row.files {
                // What was never made cannot be removed.
                let _ = fs::remove_file(path(&held.work, file));
            }
            match taken {
                Ok((_, working)) if working < row.threads => {
                    return Err(too_few_threads(working, row.threads));
                }
                Ok((seconds, _)) if round > 0 => row.seconds.push(seconds),
                Err(cause) if cause.kind() != io::ErrorKind::Unsupported => {
                    return Err(Error::writing(&held.work, &cause));
                }
                _ => {}
            }
        }
    }
    Ok(times)
}

fn path(folder: &Path, file: usize) -> PathBuf {
    folder.join(file.to_string())
}

/// One run.
struct Run<'a> {
    setup: &'a Setup,
    row: &'a WriteTimes,
    folder: &'a Path,
}

/// A file of a run.
struct Target {
    out: OutFile,
    by: Handle,
}

/// How it is written to.
enum Handle {
    Positioned,
    Mapped(WritableMap),
    Direct(files::File),
}

impl Run<'_> {
    /// Seconds, and how many threads there were.
    ///
    /// # Errors
    /// Kind `Unsupported` where this file system cannot do it.
    fn time(&self) -> io::Result<(f64, usize)> {
        let started = Instant::now();
        let targets = (0..self.row.files).map(|file| self.target(file)).collect::<io::Result<Vec<_>>>()?;
        let (next, failure) = (AtomicUsize::new(0), Mutex::new(None));
        let working = share(self.row.threads, |_| {
            if let Err(cause) = self.write(&targets, &next) {
                failure.lock().expect("no thread panics").get_or_insert(cause);
            }
        });
        failure.into_inner().expect("no thread panicked").map_or(Ok(()), Err)?;
        if self.setup.stored {
            targets.iter().try_for_each(|target| target.out.sync())?;
        }
        // Unmapping is a part of it.
        drop(targets);
        Ok((started.elapsed().as_secs_f64(), working))
    }

    /// Bytes of each file: whole pieces.
    fn file_bytes(&self) -> u64 {
        self.setup.pieces(self.row.files) * self.setup.piece_bytes
    }

    fn target(&self, file: usize) -> io::Result<Target> {
        let path = path(self.folder, file);
        let made = File::options().read(true).write(true).create_new(true).open(&path)?;
        if self.row.allocated {
            allocate(&made, self.file_bytes())?;
        }
        let made = files::File::from(made);
        made.set_len(self.file_bytes())?;
        let by = match self.row.way {
            Way::Positioned => Handle::Positioned,
            Way::Mapped => Handle::Mapped(
                WritableMap::new(&made, self.setup.piece_bytes as usize).map_err(unless_invalid)?,
            ),
            Way::Direct => Handle::Direct(open_direct(&path)?.into()),
        };
        Ok(Target { out: OutFile::as_it_is(path, made), by })
    }

    /// One thread: takes pieces until none is left.
    fn write(&self, targets: &[Target], next: &AtomicUsize) -> io::Result<()> {
        let (bytes, piece) = (self.setup.piece_bytes, Piece::new(self.setup.piece_bytes as usize));
        loop {
            let turn = next.fetch_add(1, Ordering::Relaxed);
            let (target, place) = (&targets[turn % targets.len()], (turn / targets.len()) as u64);
            if place >= self.setup.pieces(targets.len()) {
                return Ok(());
            }
            let (piece, offset) = (piece.bytes(), place * bytes);
            match &target.by {
                Handle::Positioned => target.out.write_at(piece, offset).map(|_| ())?,
                Handle::Mapped(map) => map.write(place as usize, piece).map_err(unless_invalid)?,
                Handle::Direct(file) => file.write_all_at(piece, offset).map_err(unless_invalid)?,
            }
        }
    }
}

/// What a system or a file system does not know is not a failure of the bench.
fn unless_invalid(cause: io::Error) -> io::Error {
    if cause.kind() == io::ErrorKind::InvalidInput { io::ErrorKind::Unsupported.into() } else { cause }
}

/// Takes space for a file before anything is written.
#[cfg(target_os = "linux")]
fn allocate(file: &File, bytes: u64) -> io::Result<()> {
    Ok(rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, bytes)?)
}

#[cfg(target_os = "linux")]
fn open_direct(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let flags = rustix::fs::OFlags::DIRECT.bits();
    File::options().write(true).custom_flags(flags.cast_signed()).open(path).map_err(unless_invalid)
}

#[cfg(not(target_os = "linux"))]
fn allocate(_file: &File, _bytes: u64) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(not(target_os = "linux"))]
fn open_direct(_path: &Path) -> io::Result<File> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Bytes that begin where a direct write may begin.
struct Piece {
    room: Vec<u8>,
    len: usize,
}

impl Piece {
    fn new(len: usize) -> Self {
        Self { room: vec![7; len + BLOCK_BYTES], len }
    }

    fn bytes(&self) -> &[u8] {
        let start = self.room.as_ptr().align_offset(BLOCK_BYTES);
        &self.room[start..start + self.len]
    }
}

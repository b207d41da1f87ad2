//! A file of an output, written by many threads.
//!
//! Systems let one thread at a time write to a file; the others wait for the file's lock. Here they wait for a lock of our own, so
//! that this time is seen and reported. The scheduler keeps threads to different files as far as it can; ways around the lock are
//! slower (`mergeforge bench writes` measures them).
//!
//! On a disk, a file's space is taken before anything is written: it then lies in few pieces, however many threads write, and a full
//! disk is noticed at the start. What is written is put on the disk while more is made ([`Storing`]), so that little is left to be
//! waited for in the end.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::journal::Journal;
use crate::files::File;

/// The time in which a CPU's chunk is written to memory. A GPU's takes longer: the thread then falls asleep, as it should.
const AWAKE: Duration = Duration::from_micros(100);

/// So many bytes of a file are put on the disk together.
const STORED_BYTES: u64 = 64 << 20;

/// So many bytes are read at once.
const DIGEST_BYTES: u64 = 1 << 20;

/// How often it is seen whether there are so many.
const LOOKED_AFTER: Duration = Duration::from_millis(5);

/// A file that has its size from the start, while it is written.
#[derive(Debug)]
pub struct OutFile {
    /// Where it lies.
    pub path: PathBuf,
    file: File,
    /// Held by the thread that writes.
    turn: Mutex<()>,
    /// Bytes that were written since it was stored last.
    unstored: AtomicU64,
    /// The first failure to store it: the system reports each only once.
    failure: Mutex<Option<io::Error>>,
}

impl OutFile {
    /// A new file, opened for reading and writing, which gets its size and, on a disk, its space.
    ///
    /// # Errors
    /// The system refuses such a size. The disk is full.
    pub fn new(path: PathBuf, file: File, bytes: u64) -> io::Result<Self> {
        file.take_space(bytes)?;
        file.set_len(bytes)?;
        Ok(Self::as_it_is(path, file))
    }

    /// A file that has its size.
    pub fn as_it_is(path: PathBuf, file: File) -> Self {
        let (turn, unstored, failure) = Default::default();
        Self { path, file, turn, unstored, failure }
    }

    /// Writes all of `bytes` from `offset` on, from any thread. Returns when that began, if the thread had to wait for another
    /// one's write before.
    ///
    /// # Errors
    /// The disk is full or fails.
    pub fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<Option<Instant>> {
        let (_turn, began) = match self.turn.try_lock() {
            Ok(turn) => (turn, None),
            // Nothing is left half done by a thread that panics: what it wrote is not used.
            Err(TryLockError::Poisoned(turn)) => (turn.into_inner(), None),
            Err(TryLockError::WouldBlock) => (self.wait(), Some(Instant::now())),
        };
        self.file.write_all_at(bytes, offset)?;
        self.unstored.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(began)
    }

    /// Whether so many bytes from `offset` on have this digest, as far as that is found out before `stop`.
    ///
    /// # Errors
    /// Those of the system.
    pub fn has_digest(
        &self,
        digest: &blake3::Hash,
        (offset, bytes): (u64, u64),
        stop: &dyn Fn() -> bool,
    ) -> io::Result<bool> {
        let (mut hasher, mut buffer) = (blake3::Hasher::new(), vec![0; bytes.min(DIGEST_BYTES) as usize]);
        let mut done = 0;
        while done < bytes {
            if stop() {
                return Ok(false);
            }
            let part = &mut buffer[..(bytes - done).min(DIGEST_BYTES) as usize];
            self.file.read_exact_at(part, offset + done)?;
            hasher.update(part);
            done += part.len() as u64;
        }
        Ok(hasher.finalize() == *digest)
    }

    /// Whether these are its first bytes.
    ///
    /// # Errors
    /// Those of the system.
    pub fn begins_with(&self, bytes: &[u8]) -> io::Result<bool> {
        let mut found = vec![0; bytes.len()];
        self.file.read_exact_at(&mut found, 0)?;
        Ok(found == bytes)
    }

    /// Waits for the turn. A write takes little longer than falling asleep and being woken, so the thread first stays awake.
    fn wait(&self) -> MutexGuard<'_, ()> {
        let asked = Instant::now();
        while asked.elapsed() < AWAKE {
            if let Ok(turn) = self.turn.try_lock() {
                return turn;
            }
            std::hint::spin_loop();
        }
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until all of it is stored. Failures of earlier writes, which the system notices when it stores them, come out here.
    ///
    /// # Errors
    /// The disk is full or fails.
    pub fn sync(&self) -> io::Result<()> {
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner).take();
        failure.map_or_else(|| self.file.sync_all(), Err)
    }

    /// Puts on the disk what was written so far, and says whether that could be.
    fn store(&self) -> bool {
        self.unstored.store(0, Ordering::Relaxed);
        if let Err(cause) = self.file.sync_data() {
            self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(cause);
            return false;
        }
        true
    }
}

/// A thread that puts files on the disk while they are written, until this is dropped.
#[derive(Debug)]
pub struct Storing {
    ended: Arc<AtomicBool>,
    /// None where it could not be started: then all is stored in the end.
    thread: Option<JoinHandle<()>>,
}

impl Storing {
    /// Starts it; after each file it puts the journal on the disk.
    pub fn begin(files: &Arc<Vec<OutFile>>, journal: Option<Arc<Journal>>) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let (files, asked) = (Arc::clone(files), Arc::clone(&ended));
        let run = move || {
            while !asked.load(Ordering::Relaxed) {
                let unstored = |file: &&OutFile| file.unstored.load(Ordering::Relaxed);
                match files.iter().max_by_key(unstored).filter(|file| unstored(file) >= STORED_BYTES) {
                    Some(file) => {
                        let is_stored = file.store();
                        // What could not be stored may still be read from memory, and look as if it were there.
                        journal
                            .iter()
                            .for_each(|journal| if is_stored { journal.sync() } else { journal.drop_all() });
                    }
                    None => thread::park_timeout(LOOKED_AFTER),
                }
            }
        };
        Self { ended, thread: thread::Builder::new().spawn(run).ok() }
    }
}

impl Drop for Storing {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // It has no way to panic that would not be one here too.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIECE: usize = 10_007;

    fn new_file(folder: &tempfile::TempDir, bytes: u64) -> OutFile {
        let path = folder.path().join("file");
        let file = File::make(&path).unwrap();
        OutFile::new(path, file, bytes).unwrap()
    }

    #[test]
    fn many_threads_write_one_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = new_file(&folder, 400 * PIECE as u64);
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let file = &file;
                scope.spawn(move || {
                    for piece in (thread..400).step_by(8) {
                        file.write_at(&[piece as u8; PIECE], (piece * PIECE) as u64).unwrap();
                    }
                });
            }
        });
        file.sync().unwrap();
        let bytes = std::fs::read(&file.path).unwrap();
        assert_eq!(bytes.len(), 400 * PIECE);
        for (piece, part) in bytes.chunks_exact(PIECE).enumerate() {
            assert!(part.iter().all(|byte| *byte == piece as u8), "piece {piece}");
        }
    }

    #[test]
    fn what_is_written_is_stored_meanwhile() {
        let folder = tempfile::tempdir().unwrap();
        let files = Arc::new(vec![new_file(&folder, 2 * STORED_BYTES)]);
        let storing = Storing::begin(&files, None);
        let piece = vec![1; 1 << 20];
        for at in (0..STORED_BYTES).step_by(piece.len()) {
            files[0].write_at(&piece, at).unwrap();
        }
        let began = Instant::now();
        while files[0].unstored.load(Ordering::Relaxed) > 0 {
            assert!(began.elapsed() < Duration::from_mins(1), "nothing is stored");
            thread::sleep(LOOKED_AFTER);
        }
        // Less is left for later.
        files[0].write_at(&piece, STORED_BYTES).unwrap();
        thread::sleep(10 * LOOKED_AFTER);
        drop(storing);
        assert_eq!(files[0].unstored.load(Ordering::Relaxed), piece.len() as u64);
        files[0].sync().unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn a_failure_to_store_is_not_lost() {
        let folder = tempfile::tempdir().unwrap();
        // What is opened for reading and writing syncs; a pipe does not.
        let (_reader, writer) = std::io::pipe().unwrap();
        let broken = OutFile::as_it_is(
            folder.path().into(),
            std::fs::File::from(std::os::fd::OwnedFd::from(writer)).into(),
        );
        broken.store();
        assert!(broken.failure.lock().unwrap().is_some());
        assert!(broken.sync().is_err());
        let whole = new_file(&folder, 8);
        whole.store();
        whole.sync().unwrap();
        *whole.failure.lock().unwrap() = Some(io::ErrorKind::StorageFull.into());
        assert_eq!(whole.sync().unwrap_err().kind(), io::ErrorKind::StorageFull);
    }

    #[test]
    fn who_meets_another_write_waits_for_it_and_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let file = new_file(&folder, 8);
        assert!(file.write_at(&[1; 4], 0).unwrap().is_none());
        // A thread that comes only when the turn is free again says nothing, as is right: it is then tried once more.
        let says_so = || {
            let turn = file.turn.lock().unwrap();
            std::thread::scope(|scope| {
                let waiting = scope.spawn(|| file.write_at(&[2; 4], 4));
                // However late the thread comes, it cannot have written.
                std::thread::sleep(std::time::Duration::from_millis(20));
                assert_eq!(std::fs::read(&file.path).unwrap()[..4], [1; 4]);
                assert!(!waiting.is_finished());
                let released = Instant::now();
                drop(turn);
                let began = waiting.join().unwrap().unwrap();
                assert!(began.is_none_or(|began| began >= released));
                began.is_some()
            })
        };
        assert!((0..100).any(|_| says_so()), "a hundred waits, and none was noticed");
        assert_eq!(std::fs::read(&file.path).unwrap(), [1, 1, 1, 1, 2, 2, 2, 2]);
    }
}

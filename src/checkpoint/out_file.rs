//! A file of an output, written by many threads.
//!
//! Systems let one thread at a time write to a file; the others wait for the file's lock. Here they wait for a lock of our own, so
//! that this time is seen and reported. The scheduler keeps threads to different files as far as it can; ways around the lock are
//! slower (`mergeforge bench writes` measures them).

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use super::file::write_all_at;

/// The time in which a CPU's chunk is written to memory. A GPU's takes longer: the thread then falls asleep, as it should.
const AWAKE: Duration = Duration::from_micros(100);

/// A file that has its size from the start, while it is written.
#[derive(Debug)]
pub struct OutFile {
    /// Where it lies.
    pub path: PathBuf,
    file: File,
    /// Held by the thread that writes.
    turn: Mutex<()>,
}

impl OutFile {
    /// A new file, opened for reading and writing, which gets its size.
    ///
    /// # Errors
    /// The system refuses such a size.
    pub fn new(path: PathBuf, file: File, bytes: u64) -> io::Result<Self> {
        file.set_len(bytes)?;
        Ok(Self { path, file, turn: Mutex::default() })
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
        write_all_at(&self.file, bytes, offset)?;
        Ok(began)
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
        self.file.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIECE: usize = 10_007;

    fn new_file(folder: &tempfile::TempDir, bytes: u64) -> OutFile {
        let path = folder.path().join("file");
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
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

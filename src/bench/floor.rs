//! The floor of a machine: what a merge would take if arithmetic, hashing and scheduling were free. A merge is graded as
//! a share of this.
//!
//! Threads read every input by position into buffers of 1 MiB, reused so that they stay in cache, while they write the
//! output's size. Each MiB read is followed by its share of the output, so that reading and writing overlap as they do
//! in a merge. Inputs are read side by side, a MiB of each in turn.

use std::fs::{self, File};
use std::hint::black_box;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::checkpoint::{read_exact_at, write_all_at};
use crate::error::{Error, Result};
use crate::threads::share;

/// Bytes of a read: small enough for a second-level cache.
const BLOCK_BYTES: u64 = 1 << 20;

/// Pages of the page cache.
const PAGE_BYTES: u64 = 4096;

/// The inputs to read and how much to write.
#[derive(Debug)]
pub struct Floor {
    inputs: Vec<FloorInput>,
    blocks: Vec<Block>,
    written_bytes: u64,
}

impl Floor {
    /// All `*.safetensors` in these folders, and an output of `written_bytes`: as large as the first input if `None`.
    ///
    /// # Errors
    /// Kind `Input`: a folder that cannot be read, or has no such file.
    pub fn new(dirs: &[PathBuf], written_bytes: Option<u64>) -> Result<Self> {
        let open = |dir: &PathBuf| FloorInput::open(dir).map_err(|cause| Error::reading(dir, &cause));
        let inputs = dirs.iter().map(open).collect::<Result<Vec<_>>>()?;
        let blocks = blocks(&inputs);
        let written_bytes = written_bytes.or(inputs.first().map(FloorInput::bytes)).unwrap_or(0);
        Ok(Self { inputs, blocks, written_bytes })
    }

    /// Bytes that a run reads.
    pub fn read_bytes(&self) -> u64 {
        self.inputs.iter().map(FloorInput::bytes).sum()
    }

    /// Bytes that a run writes.
    pub fn written_bytes(&self) -> u64 {
        self.written_bytes
    }

    /// The time from creating the file `output` to its last byte written (with `fsync`: stored). The file is removed
    /// after that. `stop` is asked now and then.
    ///
    /// # Errors
    /// Kind `Output`: an input cannot be read or the output not be written. Kind `Device`: so many threads cannot be started.
    /// Kind `Interrupted`.
    pub fn run(
        &self,
        output: &Path,
        fsync: bool,
        threads: usize,
        stop: &(dyn Fn() -> bool + Sync),
    ) -> Result<Duration> {
        let _removed = Removed(output);
        let start = Instant::now();
        let working = self.pump_all(output, fsync, threads, stop).map_err(|cause| match cause.kind() {
            io::ErrorKind::Interrupted => Error::interrupted(),
            _ => Error::writing(output, &cause),
        })?;
        let taken = start.elapsed();
        if working < threads {
            return Err(Error::device(format!("only {working} of {threads} threads can be started"))
                .hint("use fewer --threads, or allow more of them (`ulimit -u`, `ulimit -v`)"));
        }
        Ok(taken)
    }

    /// How many threads there were.
    fn pump_all(
        &self,
        output: &Path,
        fsync: bool,
        threads: usize,
        stop: &(dyn Fn() -> bool + Sync),
    ) -> io::Result<usize> {
        let file = File::create(output)?;
        file.set_len(self.written_bytes)?;
        let next = AtomicUsize::new(0);
        let failure = Mutex::new(None);
        let working = share(threads, |_| {
            if let Err(cause) = self.pump(&next, &file, stop) {
                failure.lock().expect("no worker panics").get_or_insert(cause);
            }
        });
        failure.into_inner().expect("no worker panicked").map_or(Ok(()), Err)?;
        if fsync {
            file.sync_all()?;
            #[cfg(unix)]
            File::open(output.parent().unwrap_or(Path::new(".")))?.sync_all()?;
        }
        Ok(working)
    }

    /// One thread: takes blocks until none is left, and writes each one's share of the output.
    fn pump(&self, next: &AtomicUsize, output: &File, stop: &dyn Fn() -> bool) -> io::Result<()> {
        let mut buffer = vec![0; BLOCK_BYTES as usize];
        loop {
            let turn = next.fetch_add(1, Ordering::Relaxed);
            let Some(block) = self.blocks.get(turn) else { return Ok(()) };
            if stop() {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let (file, _) = &self.inputs[block.input].0[block.file];
            read_exact_at(file, &mut buffer[..block.bytes as usize], block.offset)?;
            let (mut at, end) = part(turn, self.blocks.len(), self.written_bytes);
            while at < end {
                let bytes = BLOCK_BYTES.min(end - at);
                write_all_at(output, &buffer[..bytes as usize], at)?;
                at += bytes;
            }
        }
    }

    /// Makes the next reads of the inputs cold: what the page cache holds of them is dropped.
    ///
    /// # Errors
    /// Kind `Input`: the system cannot do that.
    pub fn drop_cached(&self) -> Result<()> {
        let files = || self.inputs.iter().flat_map(|input| &input.0);
        let failed = |cause: io::Error| Error::input(format!("cannot empty the page cache: {cause}"));
        files().try_for_each(|(file, _)| drop_cached(file)).map_err(failed)
    }
}

/// What is not yet stored cannot be dropped, so it is stored first.
#[cfg(target_os = "linux")]
fn drop_cached(file: &File) -> io::Result<()> {
    file.sync_all()?;
    Ok(rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed)?)
}

#[cfg(not(target_os = "linux"))]
fn drop_cached(_file: &File) -> io::Result<()> {
    Err(io::Error::other("only Linux lets a program do that"))
}

/// A file that is not to stay.
struct Removed<'a>(&'a Path);

impl Drop for Removed<'_> {
    fn drop(&mut self) {
        // What was never created cannot be removed; a failure to create it is reported.
        let _ = fs::remove_file(self.0);
    }
}

/// The files of one checkpoint and their sizes.
#[derive(Debug)]
struct FloorInput(Vec<(File, u64)>);

impl FloorInput {
    fn open(dir: &Path) -> io::Result<Self> {
        let mut paths = fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "safetensors"));
        paths.sort();
        if paths.is_empty() {
            return Err(io::Error::other("it has no *.safetensors"));
        }
        let open = |path: &PathBuf| {
            let file = File::open(path)?;
            let bytes = file.metadata()?.len();
            Ok((file, bytes))
        };
        paths.iter().map(open).collect::<io::Result<_>>().map(Self)
    }

    fn bytes(&self) -> u64 {
        self.0.iter().map(|(_, bytes)| bytes).sum()
    }
}

/// One read: of which input, which file, and where.
#[derive(Debug, PartialEq)]
struct Block {
    input: usize,
    file: usize,
    offset: u64,
    bytes: u64,
}

/// Every byte of every input once, a block of each input in turn.
fn blocks(inputs: &[FloorInput]) -> Vec<Block> {
    let mut ordered: Vec<(usize, Block)> = Vec::new();
    for (input, FloorInput(files)) in inputs.iter().enumerate() {
        let of_input = files.iter().enumerate().flat_map(|(file, &(_, size))| {
            (0..size).step_by(BLOCK_BYTES as usize).map(move |offset| Block {
                input,
                file,
                offset,
                bytes: BLOCK_BYTES.min(size - offset),
            })
        });
        ordered.extend(of_input.enumerate());
    }
    ordered.sort_by_key(|(turn, block)| (*turn, block.input));
    ordered.into_iter().map(|(_, block)| block).collect()
}

/// The part of the output that belongs to a block: equal shares, together all of it, cut between pages so that no two
/// threads write one page.
fn part(turn: usize, blocks: usize, written_bytes: u64) -> (u64, u64) {
    let edge = |turn: usize| match (u128::from(written_bytes) * turn as u128 / blocks as u128) as u64 {
        edge if edge == written_bytes => edge,
        edge => edge / PAGE_BYTES * PAGE_BYTES,
    };
    (edge(turn), edge(turn + 1))
}

/// Times `repeat` plain copies of `bytes` from one buffer to another by each thread. No merge on this machine can stream
/// faster than that. Far more bytes than any cache holds are a fair measure. Where not all threads can be started, the others
/// do their copies, as the workers of a merge do.
pub fn copies(threads: usize, bytes: usize, repeat: usize) -> Vec<Duration> {
    let pair = |_| Mutex::new((vec![1_u8; bytes], vec![2_u8; bytes]));
    let pairs: Vec<_> = (0..threads.max(1)).map(pair).collect();
    let once = || {
        let (start, next) = (Instant::now(), AtomicUsize::new(0));
        share(pairs.len(), |_| {
            while let Some(pair) = pairs.get(next.fetch_add(1, Ordering::Relaxed)) {
                let (from, to) = &mut *pair.lock().expect("no thread panics");
                black_box(to).copy_from_slice(black_box(from));
            }
        });
        start.elapsed()
    };
    (0..repeat).map(|_| once()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(dir: &Path, sizes: &[usize]) -> FloorInput {
        for (file, &size) in sizes.iter().enumerate() {
            fs::write(dir.join(format!("{file}.safetensors")), vec![0; size]).unwrap();
        }
        FloorInput::open(dir).unwrap()
    }

    #[test]
    fn every_byte_is_read_once_and_inputs_take_turns() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mib = BLOCK_BYTES as usize;
        let inputs = [input(a.path(), &[mib + 1, 5]), input(b.path(), &[2 * mib])];
        let block = |input, file, offset, bytes| Block { input, file, offset, bytes };
        let expected = [
            block(0, 0, 0, BLOCK_BYTES),
            block(1, 0, 0, BLOCK_BYTES),
            block(0, 0, BLOCK_BYTES, 1),
            block(1, 0, BLOCK_BYTES, BLOCK_BYTES),
            block(0, 1, 0, 5),
        ];
        assert_eq!(blocks(&inputs), expected);
    }

    #[test]
    fn shares_make_up_the_output() {
        for (blocks, bytes) in [(7, 100), (7, 3), (1, 5), (3, 0), (5000, u64::from(u32::MAX) * 4)] {
            let shares: Vec<_> = (0..blocks).map(|turn| part(turn, blocks, bytes)).collect();
            assert!(shares.windows(2).all(|pair| pair[0].1 == pair[1].0));
            assert_eq!((shares[0].0, shares[blocks - 1].1), (0, bytes));
        }
    }

    #[test]
    fn a_run_leaves_nothing_behind() {
        let (a, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        input(a.path(), &[3 << 20]);
        let floor = Floor::new(&[a.path().into()], Some(5 << 20)).unwrap();
        assert_eq!((floor.read_bytes(), floor.written_bytes()), (3 << 20, 5 << 20));
        floor.run(&out.path().join("floor"), true, 2, &|| false).unwrap();
        floor.run(&out.path().join("floor"), false, 2, &|| true).unwrap_err();
        assert_eq!(fs::read_dir(out.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_folder_without_weights_is_named() {
        let empty = tempfile::tempdir().unwrap();
        let error = Floor::new(&[empty.path().into()], None).unwrap_err();
        assert!(error.message.contains(&*empty.path().display().to_string()), "{error}");
    }
}

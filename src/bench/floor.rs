//! The floor of a machine: what a merge would take if arithmetic, hashing and scheduling were free. A merge is graded as
//! a share of this.
//!
//! Threads read every input by position into buffers of 1 MiB, reused so that they stay in cache, while they write the
//! output's size. Each MiB read is followed by its share of the output, so that reading and writing overlap as they do
//! in a merge. Inputs are read side by side, a MiB of each in turn. The output has the files of the merge's, written in the way in
//! which a merge writes them, and at the same pace, so that threads seldom meet at one.

use std::fs::{self, File};
use std::hint::black_box;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::too_few_threads;
use crate::checkpoint::{OutFile, Storing};
use crate::error::{Error, Result};
use crate::files;
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
    /// Bytes of each file of the output.
    shards: Vec<u64>,
    parts: Vec<Part>,
}

impl Floor {
    /// All `*.safetensors` in these folders, and the sizes of the output's files.
    ///
    /// # Errors
    /// Kind `Input`: a folder that cannot be read, or has no such file.
    pub fn new(dirs: &[PathBuf], shards: Vec<u64>) -> Result<Self> {
        let open = |dir: &PathBuf| FloorInput::open(dir).map_err(|cause| Error::reading(dir, &cause));
        let inputs = dirs.iter().map(open).collect::<Result<Vec<_>>>()?;
        let blocks = blocks(&inputs);
        let parts = parts(&shards, blocks.len());
        Ok(Self { inputs, blocks, shards, parts })
    }

    /// Bytes that a run reads.
    pub fn read_bytes(&self) -> u64 {
        self.inputs.iter().map(FloorInput::bytes).sum()
    }

    /// Bytes that a run writes.
    pub fn written_bytes(&self) -> u64 {
        self.shards.iter().sum()
    }

    /// The time from creating the folder `output` to its last byte written (with `fsync`: stored). The folder is removed
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
            return Err(too_few_threads(working, threads));
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
        fs::create_dir(output)?;
        let file = |(shard, bytes): (usize, &u64)| {
            let path = output.join(shard.to_string());
            let file = File::options().read(true).write(true).create_new(true).open(&path)?;
            OutFile::new(path, file.into(), *bytes)
        };
        let files = Arc::new(self.shards.iter().enumerate().map(file).collect::<io::Result<Vec<_>>>()?);
        let storing = fsync.then(|| Storing::begin(&files, None));
        let next = AtomicUsize::new(0);
        let failure = Mutex::new(None);
        let working = share(threads, |_| {
            if let Err(cause) = self.pump(&next, &files, stop) {
                failure.lock().expect("no worker panics").get_or_insert(cause);
            }
        });
        failure.into_inner().expect("no worker panicked").map_or(Ok(()), Err)?;
        drop(storing);
        if fsync {
            files.iter().try_for_each(OutFile::sync)?;
            #[cfg(unix)]
            File::open(output)?.sync_all()?;
        }
        Ok(working)
    }

    /// One thread: takes blocks until none is left, and writes each one's share of the output.
    fn pump(&self, next: &AtomicUsize, files: &[OutFile], stop: &dyn Fn() -> bool) -> io::Result<()> {
        let mut buffer = vec![0; BLOCK_BYTES as usize];
        loop {
            let turn = next.fetch_add(1, Ordering::Relaxed);
            let Some(block) = self.blocks.get(turn) else { return Ok(()) };
            if stop() {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let (file, _) = &self.inputs[block.input].0[block.file];
            file.read_exact_at(&mut buffer[..block.bytes as usize], block.offset)?;
            for Part { shard, offset, bytes } in share_of(&self.parts, turn, self.blocks.len()) {
                for at in (0..*bytes).step_by(BLOCK_BYTES as usize) {
                    let written = BLOCK_BYTES.min(bytes - at);
                    files[*shard].write_at(&buffer[..written as usize], offset + at)?;
                }
            }
        }
    }

    /// Makes the next reads of the inputs cold: what the page cache holds of them is dropped.
    ///
    /// # Errors
    /// Kind `Input`: the system cannot do that.
    pub fn drop_cached(&self) -> Result<()> {
        let open = || self.inputs.iter().flat_map(|input| &input.0);
        let failed = |cause: io::Error| Error::input(format!("cannot empty the page cache: {cause}"));
        open().try_for_each(|(file, _)| drop_cached(file)).map_err(failed)
    }
}

/// What is not yet stored cannot be dropped, so it is stored first.
#[cfg(target_os = "linux")]
fn drop_cached(file: &files::File) -> io::Result<()> {
    file.sync_all()?;
    Ok(rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed)?)
}

#[cfg(not(target_os = "linux"))]
fn drop_cached(_file: &files::File) -> io::Result<()> {
    Err(io::Error::other("only Linux lets a program do that"))
}

/// A file that is not to stay.
struct Removed<'a>(&'a Path);

impl Drop for Removed<'_> {
    fn drop(&mut self) {
        // What was never created cannot be removed; a failure to create it is reported.
        let _ = fs::remove_dir_all(self.0);
    }
}

/// The files of one checkpoint and their sizes.
#[derive(Debug)]
struct FloorInput(Vec<(files::File, u64)>);

impl FloorInput {
    fn open(dir: &Path) -> io::Result<Self> {
        let mut paths = fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
        // Whoever opens a pipe waits.
        paths.retain(|path| {
            path.extension().is_some_and(|extension| extension == "safetensors") && path.is_file()
        });
        paths.sort();
        if paths.is_empty() {
            return Err(io::Error::other("it has no *.safetensors"));
        }
        let open = |path: &PathBuf| {
            let file = File::open(path)?;
            let bytes = file.metadata()?.len();
            Ok((file.into(), bytes))
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

/// A write: into which file of the output, and where.
#[derive(Debug, PartialEq)]
struct Part {
    shard: usize,
    offset: u64,
    bytes: u64,
}

/// The output in about as many equal parts as there are blocks, cut between pages so that no two threads write one page. All
/// files are written at the same pace.
fn parts(shards: &[u64], blocks: usize) -> Vec<Part> {
    let whole: u64 = shards.iter().sum();
    let step = whole.div_ceil(blocks.max(1) as u64).next_multiple_of(PAGE_BYTES).max(PAGE_BYTES);
    let of_shard = |(shard, &size): (usize, &u64)| {
        let part = move |offset| Part { shard, offset, bytes: step.min(size - offset) };
        (0..size).step_by(step as usize).map(part)
    };
    let mut parts: Vec<Part> = shards.iter().enumerate().flat_map(of_shard).collect();
    parts.sort_by_key(|part| (part.offset, part.shard));
    parts
}

/// Those that belong to a block: equal shares, together all of them.
fn share_of(parts: &[Part], turn: usize, blocks: usize) -> &[Part] {
    let edge = |turn: usize| (parts.len() as u128 * turn as u128 / blocks as u128) as usize;
    &parts[edge(turn)..edge(turn + 1)]
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
    fn shares_make_up_the_output_and_neighbours_go_to_different_files() {
        let large = u64::from(u32::MAX) * 4;
        let cases: [(usize, &[u64]); 6] = [
            (7, &[100]),
            (7, &[3, 0, 9000]),
            (1, &[5, 5]),
            (3, &[]),
            (5000, &[large]),
            (64, &[1 << 20, 1 << 20]),
        ];
        for (blocks, shards) in cases {
            let parts = parts(shards, blocks);
            let shares: Vec<&Part> = (0..blocks).flat_map(|turn| share_of(&parts, turn, blocks)).collect();
            for (shard, &bytes) in shards.iter().enumerate() {
                let mut end = 0;
                for part in shares.iter().filter(|part| part.shard == shard) {
                    assert_eq!(part.offset, end, "{blocks} blocks, {shards:?}");
                    end += part.bytes;
                }
                assert_eq!(end, bytes, "{blocks} blocks, {shards:?}");
            }
            if shards == [1 << 20, 1 << 20] {
                assert!(shares.windows(2).all(|pair| pair[0].shard != pair[1].shard));
            }
        }
    }

    #[test]
    fn a_run_leaves_nothing_behind() {
        let (a, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        input(a.path(), &[3 << 20]);
        let floor = Floor::new(&[a.path().into()], vec![2 << 20, 3 << 20]).unwrap();
        assert_eq!((floor.read_bytes(), floor.written_bytes()), (3 << 20, 5 << 20));
        floor.run(&out.path().join("floor"), true, 2, &|| false).unwrap();
        floor.run(&out.path().join("floor"), false, 2, &|| true).unwrap_err();
        assert_eq!(fs::read_dir(out.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_folder_without_weights_is_named() {
        let empty = tempfile::tempdir().unwrap();
        let error = Floor::new(&[empty.path().into()], Vec::new()).unwrap_err();
        assert!(error.message.contains(&*empty.path().display().to_string()), "{error}");
    }
}

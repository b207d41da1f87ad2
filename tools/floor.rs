//! The floor of a merge: what it would take if arithmetic were free. A merge is graded as a share of this.
//!
//! `cargo run --release --example floor -- --out DIR INPUT_DIR…` lets the threads read every input by position into
//! buffers of 1 MiB, reused so that they stay in cache, while they write as many bytes as one input holds. Each MiB
//! read is followed by its share of the output, so that reading and writing overlap as they do in a merge. Inputs are
//! read side by side, a MiB of each in turn.
//!
//! `--copy` measures host memory instead: plain copies between two large buffers a thread, each byte counted once as
//! read and once as written. No merge on this machine can stream faster than that.

use std::fs::{self, File};
use std::hint::black_box;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use clap::Parser;
use serde_json::json;

/// Bytes of a read: the size that DESIGN names, small enough for a second-level cache.
const PIECE_BYTES: u64 = 1 << 20;

/// Pages of the page cache.
const PAGE_BYTES: u64 = 4096;

/// Each thread copies from and to this many bytes: far more than any cache holds.
const COPY_BYTES: usize = 512 << 20;

#[derive(Parser)]
#[command(
    name = "floor",
    about = "Measure how fast inputs can be read and an output written, with no arithmetic"
)]
struct Args {
    /// Folder that the output is written in; the file is removed after each run.
    #[arg(long, required_unless_present = "copy")]
    out: Option<PathBuf>,
    /// End a run only when the output is on the disk.
    #[arg(long)]
    fsync: bool,
    /// [default: all cores]
    #[arg(long)]
    threads: Option<usize>,
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    repeat: u32,
    /// Bytes to write [default: as many as the first input holds]
    #[arg(long)]
    output_bytes: Option<u64>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    /// Measure plain copies in memory, and no files.
    #[arg(long)]
    copy: bool,
    /// Checkpoints; every *.safetensors file in them is read whole.
    #[arg(required_unless_present = "copy")]
    input_dirs: Vec<PathBuf>,
}

fn main() -> io::Result<()> {
    let args = Args::parse();
    let threads =
        args.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from)).max(1);
    let figures = if args.copy { measure_copy(threads, args.repeat) } else { measure_files(&args, threads)? };
    figures.print(threads, args.json);
    Ok(())
}

/// What the runs took, and the bytes that each of them moved.
struct Figures {
    what: &'static str,
    seconds: Vec<f64>,
    read_bytes: u64,
    written_bytes: u64,
}

impl Figures {
    fn print(&self, threads: usize, as_json: bool) {
        let (median, min) = (self.median(), self.seconds.iter().copied().fold(f64::INFINITY, f64::min));
        let gb = (self.read_bytes + self.written_bytes) as f64 / 1e9;
        let (what, runs) = (self.what, self.seconds.len());
        if as_json {
            let figures = json!({
                "what": what, "threads": threads, "seconds": self.seconds, "seconds_median": median, "seconds_min": min,
                "read_bytes": self.read_bytes, "written_bytes": self.written_bytes, "gb_per_s_median": gb / median,
                "gb_per_s_best": gb / min,
            });
            println!("{figures}");
        } else {
            println!(
                "{what}: median {median:.3} s, min {min:.3} s of {runs}; {:.2} GB/s read + written ({:.2} best); \
                 {:.2} GB read, {:.2} GB written, {threads} threads",
                gb / median,
                gb / min,
                self.read_bytes as f64 / 1e9,
                self.written_bytes as f64 / 1e9,
            );
        }
    }

    fn median(&self) -> f64 {
        let mut sorted = self.seconds.clone();
        sorted.sort_by(f64::total_cmp);
        f64::midpoint(sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2])
    }
}

fn measure_files(args: &Args, threads: usize) -> io::Result<Figures> {
    let inputs = args.input_dirs.iter().map(|dir| Input::open(dir)).collect::<io::Result<Vec<_>>>()?;
    let pieces = pieces(&inputs);
    let written_bytes = args.output_bytes.unwrap_or(inputs[0].bytes());
    let out = args.out.as_deref().expect("clap asks for it");
    fs::create_dir_all(out)?;
    let mut seconds = Vec::new();
    for _ in 0..args.repeat {
        seconds.push(run(&inputs, &pieces, written_bytes, out, args.fsync, threads)?);
    }
    let what = if args.fsync { "floor with fsync" } else { "floor" };
    Ok(Figures { what, seconds, read_bytes: inputs.iter().map(Input::bytes).sum(), written_bytes })
}

/// The files of one checkpoint and their sizes.
struct Input(Vec<(File, u64)>);

impl Input {
    fn open(dir: &Path) -> io::Result<Self> {
        let mut paths = fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "safetensors"));
        paths.sort();
        if paths.is_empty() {
            return Err(io::Error::other(format!("no *.safetensors in {}", dir.display())));
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
struct Piece {
    input: usize,
    file: usize,
    offset: u64,
    bytes: u64,
}

/// Every byte of every input once, a piece of each input in turn.
fn pieces(inputs: &[Input]) -> Vec<Piece> {
    let mut ordered: Vec<(usize, Piece)> = Vec::new();
    for (input, Input(files)) in inputs.iter().enumerate() {
        let of_input = files.iter().enumerate().flat_map(|(file, &(_, size))| {
            (0..size).step_by(PIECE_BYTES as usize).map(move |offset| Piece {
                input,
                file,
                offset,
                bytes: PIECE_BYTES.min(size - offset),
            })
        });
        ordered.extend(of_input.enumerate());
    }
    ordered.sort_by_key(|(turn, piece)| (*turn, piece.input));
    ordered.into_iter().map(|(_, piece)| piece).collect()
}

/// Seconds from creating the output to its last byte written (with `fsync`: stored).
fn run(
    inputs: &[Input],
    pieces: &[Piece],
    written_bytes: u64,
    out: &Path,
    fsync: bool,
    threads: usize,
) -> io::Result<f64> {
    let start = Instant::now();
    let output = tempfile::Builder::new().prefix("floor-").suffix(".partial").tempfile_in(out)?;
    output.as_file().set_len(written_bytes)?;
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let work = || pump(inputs, pieces, &next, output.as_file(), written_bytes);
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("no worker panics"))
    })?;
    if fsync {
        output.as_file().sync_all()?;
        File::open(out)?.sync_all()?;
    }
    Ok(start.elapsed().as_secs_f64())
}

/// One thread: takes pieces until none is left, and writes each one's share of the output.
fn pump(
    inputs: &[Input],
    pieces: &[Piece],
    next: &AtomicUsize,
    output: &File,
    written_bytes: u64,
) -> io::Result<()> {
    let mut buffer = vec![0; PIECE_BYTES as usize];
    loop {
        let turn = next.fetch_add(1, Ordering::Relaxed);
        let Some(piece) = pieces.get(turn) else { return Ok(()) };
        let (file, _) = &inputs[piece.input].0[piece.file];
        file.read_exact_at(&mut buffer[..piece.bytes as usize], piece.offset)?;
        let (mut at, end) = share(turn, pieces.len(), written_bytes);
        while at < end {
            let bytes = PIECE_BYTES.min(end - at);
            output.write_all_at(&buffer[..bytes as usize], at)?;
            at += bytes;
        }
    }
}

/// The part of the output that belongs to a piece: equal shares, together all of it, cut between pages so that no two
/// threads write one page.
fn share(turn: usize, pieces: usize, written_bytes: u64) -> (u64, u64) {
    let edge = |turn: usize| match (u128::from(written_bytes) * turn as u128 / pieces as u128) as u64 {
        edge if edge == written_bytes => edge,
        edge => edge / PAGE_BYTES * PAGE_BYTES,
    };
    (edge(turn), edge(turn + 1))
}

fn measure_copy(threads: usize, repeat: u32) -> Figures {
    let mut buffers: Vec<_> =
        (0..threads).map(|_| (vec![1_u8; COPY_BYTES], vec![2_u8; COPY_BYTES])).collect();
    let mut seconds = Vec::new();
    for _ in 0..repeat {
        let start = Instant::now();
        std::thread::scope(|scope| {
            for (from, to) in &mut buffers {
                scope.spawn(|| black_box(to).copy_from_slice(black_box(from)));
            }
        });
        seconds.push(start.elapsed().as_secs_f64());
    }
    let bytes = (threads * COPY_BYTES) as u64;
    Figures { what: "memory copy", seconds, read_bytes: bytes, written_bytes: bytes }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(dir: &Path, sizes: &[usize]) -> Input {
        for (file, &size) in sizes.iter().enumerate() {
            fs::write(dir.join(format!("{file}.safetensors")), vec![0; size]).unwrap();
        }
        Input::open(dir).unwrap()
    }

    #[test]
    fn every_byte_is_read_once_and_inputs_take_turns() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mib = PIECE_BYTES as usize;
        let inputs = [input(a.path(), &[mib + 1, 5]), input(b.path(), &[2 * mib])];
        let piece = |input, file, offset, bytes| Piece { input, file, offset, bytes };
        let expected = [
            piece(0, 0, 0, PIECE_BYTES),
            piece(1, 0, 0, PIECE_BYTES),
            piece(0, 0, PIECE_BYTES, 1),
            piece(1, 0, PIECE_BYTES, PIECE_BYTES),
            piece(0, 1, 0, 5),
        ];
        assert_eq!(pieces(&inputs), expected);
    }

    #[test]
    fn shares_make_up_the_output() {
        for (pieces, bytes) in [(7, 100), (7, 3), (1, 5), (3, 0), (5000, u64::from(u32::MAX) * 4)] {
            let shares: Vec<_> = (0..pieces).map(|turn| share(turn, pieces, bytes)).collect();
            assert!(shares.windows(2).all(|pair| pair[0].1 == pair[1].0));
            assert_eq!((shares[0].0, shares[pieces - 1].1), (0, bytes));
        }
    }

    #[test]
    fn a_run_leaves_nothing_behind() {
        let (a, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let inputs = [input(a.path(), &[3 << 20])];
        run(&inputs, &pieces(&inputs), 5 << 20, out.path(), true, 2).unwrap();
        assert_eq!(fs::read_dir(out.path()).unwrap().count(), 0);
    }
}

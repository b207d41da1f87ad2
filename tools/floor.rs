//! The floor of a machine, as `mergeforge bench merge` measures it (`src/bench/floor.rs`), for any checkpoints.
//!
//! `cargo run --release --example floor -- --out DIR INPUT_DIR…` reads every input and writes as many bytes as the first
//! one holds. `--copy` measures host memory instead: plain copies between two large buffers a thread, each byte counted
//! once as read and once as written.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use mergeforge::bench::floor::{Floor, copies};
use mergeforge::error::{Error, Result};
use serde_json::json;

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

fn main() -> ExitCode {
    let args = Args::parse();
    let threads =
        args.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from)).max(1);
    let figures =
        if args.copy { Ok(measure_copy(threads, args.repeat)) } else { measure_files(&args, threads) };
    match figures {
        Ok(figures) => {
            figures.print(threads, args.json);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(error.exit_code())
        }
    }
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

fn measure_files(args: &Args, threads: usize) -> Result<Figures> {
    let floor = Floor::new(&args.input_dirs, args.output_bytes)?;
    let out = args.out.as_deref().expect("clap asks for it");
    std::fs::create_dir_all(out).map_err(|cause| Error::writing(out, &cause))?;
    let output = out.join(format!("floor-{}.partial", std::process::id()));
    let mut seconds = Vec::new();
    for _ in 0..args.repeat {
        seconds.push(floor.run(&output, args.fsync, threads, &|| false)?.as_secs_f64());
    }
    let what = if args.fsync { "floor with fsync" } else { "floor" };
    Ok(Figures { what, seconds, read_bytes: floor.read_bytes(), written_bytes: floor.written_bytes() })
}

fn measure_copy(threads: usize, repeat: u32) -> Figures {
    let runs = copies(threads, COPY_BYTES, repeat as usize);
    let bytes = (threads * COPY_BYTES) as u64;
    let seconds = runs.iter().map(std::time::Duration::as_secs_f64).collect();
    Figures { what: "memory copy", seconds, read_bytes: bytes, written_bytes: bytes }
}

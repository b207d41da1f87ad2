//! Synthetic checkpoints, as `mergeforge bench merge` makes them (`src/bench/synth.rs`), in any folder.
//!
//! `cargo run --release --example synth -- --shape tinyllama-1.1b --models 4 --dtype bf16 --seed 1 DIR` writes DIR/base,
//! DIR/model-1, … . A folder that is complete is left as it is.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::{Parser, ValueEnum};
use mergeforge::bench::shapes::Shape;
use mergeforge::bench::synth::{self, Spec};
use mergeforge::dtype::Float;
use mergeforge::error::Result;

#[derive(Parser)]
#[command(name = "synth", about = "Write synthetic checkpoints: DIR/base, DIR/model-1, …")]
struct Args {
    /// tiny, tinyllama-1.1b, llama-2-7b, llama-3-8b, mixtral-8x7b or llama-3-70b
    #[arg(long, default_value = "tiny")]
    shape: String,
    /// Fine-tunes beside the base.
    #[arg(long, default_value_t = 2)]
    models: usize,
    #[arg(long, value_enum, default_value = "bf16")]
    dtype: Dtype,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Cut the shape down to so many layers.
    #[arg(long)]
    layers: Option<usize>,
    /// Largest size of a shard.
    #[arg(long, default_value_t = 5_000_000_000)]
    shard_bytes: u64,
    /// [default: all cores]
    #[arg(long)]
    threads: Option<usize>,
    dir: PathBuf,
}

#[derive(Clone, Copy, ValueEnum)]
enum Dtype {
    Bf16,
    F16,
    F32,
}

fn main() -> ExitCode {
    let start = Instant::now();
    match write(&Args::parse()) {
        Ok(bytes) => {
            let (gb, seconds) = (bytes as f64 / 1e9, start.elapsed().as_secs_f64());
            eprintln!("{gb:.2} GB in {seconds:.2} s, {:.2} GB/s", gb / seconds);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}\n{}", error.hint.as_deref().unwrap_or_default());
            ExitCode::from(error.exit_code())
        }
    }
}

fn write(args: &Args) -> Result<u64> {
    let float = match args.dtype {
        Dtype::Bf16 => Float::BF16,
        Dtype::F16 => Float::F16,
        Dtype::F32 => Float::F32,
    };
    let shape = Shape::find(&args.shape, args.layers)?;
    let spec = Spec { shape, float, seed: args.seed, shard_bytes: args.shard_bytes };
    let models: Vec<usize> = (0..=args.models).collect();
    let missing = spec.missing(&args.dir, &models);
    for &model in models.iter().filter(|model| !missing.contains(model)) {
        eprintln!("{} is complete", synth::folder(&args.dir, model).display());
    }
    let threads = args.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    synth::write(&spec, &args.dir, &models, threads, &|| false)
}

//! `mergeforge bench writes`: its flags, and what it prints.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Value as Json, json};

use super::progress::Progress;
use super::{count, show, size};
use crate::bench::writes::{BLOCK_BYTES, Setup, Way, WriteTimes, run};
use crate::error::Result;
use crate::stream::Watch;
use crate::text::bytes;

/// The flags.
#[derive(Debug, Args)]
pub(super) struct BenchWritesArgs {
    /// The folder to write in, made if it is not there; no files are left in it
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Numbers of threads
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "1,2,4,8,16,32", value_parser = count)]
    threads: Vec<usize>,
    /// Numbers of files
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "1,2,4,8", value_parser = count)]
    files: Vec<usize>,
    /// Bytes of all files of a run together
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "512MiB")]
    bytes: u64,
    /// Bytes that a thread writes at a time, a multiple of 4096; those of a merge's chunk of bfloat16 on the CPU by default
    #[arg(long, value_name = "SIZE", value_parser = piece, default_value = "256KiB")]
    piece: u64,
    /// Rounds that count, after one that does not
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = count)]
    repeat: usize,
    /// End a run when all is stored on the disk
    #[arg(long)]
    stored: bool,
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

fn piece(text: &str) -> std::result::Result<u64, String> {
    let bytes = size(text)?;
    let whole = bytes > 0 && bytes.is_multiple_of(BLOCK_BYTES as u64);
    if whole { Ok(bytes) } else { Err(format!("expected a multiple of {BLOCK_BYTES} bytes")) }
}

/// Measures and reports.
pub(super) fn measure(args: &BenchWritesArgs) -> Result<()> {
    let progress = Progress::new(true)?;
    let setup = Setup {
        dir: args.dir.clone(),
        bytes: args.bytes,
        piece_bytes: args.piece,
        threads: args.threads.clone(),
        files: args.files.clone(),
        repeat: args.repeat,
        stored: args.stored,
    };
    let times = run(&setup, &|| progress.stop())?;
    if args.json {
        show::json(&measured_json(&setup, &times));
    } else {
        table(&setup, &times);
    }
    Ok(())
}

fn table(setup: &Setup, times: &[WriteTimes]) {
    let until = if setup.stored { "until all is stored" } else { "until the last byte is written" };
    show::line(&format!(
        "{} in {}, {} at a time, {until}; GB/s of the median of {}, and of the fastest",
        bytes(setup.bytes),
        setup.dir.display(),
        bytes(setup.piece_bytes),
        setup.repeat
    ));
    for way in Way::ALL {
        for allocated in [false, true] {
            let rows = || times.iter().filter(move |row| (row.way, row.allocated) == (way, allocated));
            let named = if allocated { format!("{}, allocated", way.name()) } else { way.name().into() };
            if rows().all(|row| row.seconds.is_empty()) {
                show::line(&format!("  {named}: not on this file system"));
                continue;
            }
            let heads = setup.files.iter().map(|files| match files {
                1 => format!("{:>16}", "1 file"),
                _ => format!("{:>16}", format!("{files} files")),
            });
            show::line(&format!("  {named:<24}{}", heads.collect::<String>()));
            for &threads in &setup.threads {
                let cells = rows().filter(|row| row.threads == threads).map(|row| {
                    let cell = row.rates(setup).map_or("-".into(), |(fastest, median)| {
                        format!("{:.2} ({:.2})", median / 1e9, fastest / 1e9)
                    });
                    format!("{cell:>16}")
                });
                let threads = if threads == 1 { "1 thread".into() } else { format!("{threads} threads") };
                show::line(&format!("  {threads:>24}{}", cells.collect::<String>()));
            }
        }
    }
}

fn measured_json(setup: &Setup, times: &[WriteTimes]) -> Json {
    let row = |row: &WriteTimes| {
        let rates = row.rates(setup);
        json!({
            "way": row.way.name(),
            "allocated": row.allocated,
            "threads": row.threads,
            "files": row.files,
            "seconds_all": row.seconds,
            "gb_per_s": rates.map(|(_, median)| median / 1e9),
            "gb_per_s_fastest": rates.map(|(fastest, _)| fastest / 1e9),
        })
    };
    json!({
        "mergeforge": env!("CARGO_PKG_VERSION"),
        "bytes": setup.bytes,
        "piece_bytes": setup.piece_bytes,
        "stored": setup.stored,
        "repeat": setup.repeat,
        "writes": times.iter().map(row).collect::<Vec<Json>>(),
    })
}

//! Flags that several commands have, and values of flags: counts, sizes, and places of pages.

use std::path::Path;

use clap::Args;

use super::cores;
use super::hub::HubArgs;
use crate::error::{Error, Result};

/// The group of the options that name files of texts: what means something to these alone needs one of them.
pub(super) const SETS: &str = "sets";

/// How what makes no model of its own works, and what it prints.
#[derive(Debug, Args)]
pub(super) struct WorkArgs {
    /// Worker threads [default: one per core]
    #[arg(long, short = 'j', visible_alias = "num-threads", value_name = "N", value_parser = count)]
    threads: Option<usize>,
    #[command(flatten)]
    pub(super) hub: HubArgs,
    /// Show no progress
    #[arg(long, short)]
    pub(super) quiet: bool,
    /// Print what was found as JSON
    #[arg(long)]
    pub(super) json: bool,
}

impl WorkArgs {
    /// Worker threads.
    pub(super) fn threads(&self) -> usize {
        self.threads.unwrap_or_else(cores)
    }
}

/// Refuses a place where a page could not be written: at the end the work would have been for nothing.
pub(super) fn check_page(file: &Path, flag: &str) -> Result<()> {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if file.is_dir() || !folder.is_dir() {
        let refusal = format!("the page {} cannot be written", file.display());
        return Err(Error::output(refusal).hint(format!("{flag} takes a file in a folder that exists")));
    }
    Ok(())
}

/// A count of threads, rounds and the like.
pub(super) fn count(text: &str) -> std::result::Result<usize, String> {
    const MOST: usize = 4096;
    let count = text.parse().ok().filter(|count| (1..=MOST).contains(count));
    count.ok_or_else(|| format!("expected a whole number from 1 to {MOST}"))
}

/// A size where mergekit's `B` is a billion, as in its `5B`: that of a shard.
pub(super) fn shard_size(text: &str) -> std::result::Result<u64, String> {
    let billions = text.trim().strip_suffix(['b', 'B']).map(str::trim_end);
    match billions.filter(|number| number.ends_with(|c: char| c.is_ascii_digit() || c == '.')) {
        Some(number) => size(&format!("{number}GB")),
        None => size(text),
    }
}

/// Bytes, with a decimal (kB, MB, GB) or binary (KiB, MiB, GiB) unit.
pub(super) fn size(text: &str) -> std::result::Result<u64, String> {
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number: f64 = text[..split].parse().map_err(|_| "expected a size like 512MiB or 5GB".to_string())?;
    let unit: f64 = match text[split..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kb" => 1e3,
        "m" | "mb" => 1e6,
        "g" | "gb" => 1e9,
        "t" | "tb" => 1e12,
        "kib" => 1024.0,
        "mib" => 1_048_576.0,
        "gib" => 1_073_741_824.0,
        "tib" => 1_099_511_627_776.0,
        other => return Err(format!("there is no unit `{other}`: use kB, MB, GB, KiB, MiB or GiB")),
    };
    match number * unit {
        bytes if (1.0..1e18).contains(&bytes) => Ok(bytes as u64),
        _ => Err("expected a size of at least one byte".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_take_decimal_and_binary_units() {
        for (text, bytes) in
            [("1.5GiB", 3 << 29), ("100", 100), ("64 KiB", 65_536), ("5GB", 5_000_000_000), ("5 kB", 5000)]
        {
            assert_eq!((size(text), shard_size(text)), (Ok(bytes), Ok(bytes)), "{text}");
        }
        for text in ["", "B", "5X", "-1", "0", "1e400GB", "nan"] {
            assert!(size(text).is_err() && shard_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_b_is_a_byte_but_in_the_size_of_a_shard() {
        for (text, bytes, of_shard) in [("512B", 512, 512_000_000_000), ("5b", 5, 5_000_000_000)] {
            assert_eq!((size(text), shard_size(text)), (Ok(bytes), Ok(of_shard)), "{text}");
        }
    }
}

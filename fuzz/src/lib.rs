//! Runs targets for fuzzers.

mod targets;

use std::sync::OnceLock;

use tempfile::TempDir;

pub use targets::*;

/// Runs a target on what a fuzzer made up, in a folder that this process has.
pub fn run(target: Target, bytes: &[u8]) {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        // Else what the program catches would count as found.
        drop(std::panic::take_hook());
        TempDir::with_prefix("mergeforge-fuzz-").expect("there is a folder for temporary files")
    });
    target(bytes, folder.path());
}

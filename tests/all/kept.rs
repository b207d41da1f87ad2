//! What is kept of the fuzzers: where they begin, and the least that showed each fault they found. It goes through the same targets,
//! as it is and with a few bytes changed.

#[path = "../../fuzz/src/targets.rs"]
mod targets;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use targets::TARGETS;

use crate::command::ROOT;
use crate::hostile::checkpoints::mutated;
use crate::models::Random;

/// Changed copies of each file: the fuzzers make millions.
const CHANGED: u64 = 24;

fn names(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).unwrap_or_else(|cause| panic!("{}: {cause}", folder.display()));
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn kept() -> PathBuf {
    Path::new(ROOT).join("fuzz/kept")
}

#[test]
fn all_that_is_kept_is_read_or_refused() {
    for (name, target) in TARGETS {
        let folder = tempfile::tempdir().unwrap();
        for file in names(&kept().join(name)) {
            let bytes = fs::read(kept().join(name).join(&file)).unwrap();
            println!("{name}/{file}");
            target(&bytes, folder.path());
            for seed in 0..CHANGED {
                target(&mutated(&bytes, &mut Random(seed)), folder.path());
            }
        }
    }
}

/// Each target has a fuzzer, and something to begin with.
#[test]
fn targets_fuzzers_and_what_is_kept_belong_together() {
    let all: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names(&kept()), all);
    let of_files: BTreeSet<String> = names(&Path::new(ROOT).join("fuzz/fuzz_targets"));
    assert_eq!(of_files, all.iter().map(|name| format!("{name}.rs")).collect());
    let manifest = fs::read_to_string(Path::new(ROOT).join("fuzz/Cargo.toml")).unwrap();
    for name in &all {
        assert!(
            manifest.contains(&format!("name = \"{name}\"\npath = \"fuzz_targets/{name}.rs\"")),
            "{name}"
        );
        let fuzzer = Path::new(ROOT).join(format!("fuzz/fuzz_targets/{name}.rs"));
        assert!(fs::read_to_string(fuzzer).unwrap().contains(&format!("mergeforge_fuzz::{name}, bytes")));
        assert!(!names(&kept().join(name)).is_empty(), "{name} has nothing to begin with");
    }
}

/// A target that cannot fail would find nothing.
#[test]
fn targets_judge_what_they_get() {
    let accepted = |target: &str, bytes: &[u8]| {
        let folder = tempfile::tempdir().unwrap();
        let (_, run) = TARGETS.iter().find(|(name, _)| *name == target).unwrap();
        run(bytes, folder.path());
        targets::ACCEPTED.take()
    };
    for (name, _) in TARGETS {
        let good = fs::read(kept().join(name).join("good")).unwrap();
        assert!(accepted(name, &good) > 0, "{name}: the good one is refused");
        assert_eq!(accepted(name, b"\x01\xff"), 0, "{name}: anything is accepted");
    }
}

//! What is compiled for a merge on a GPU: the entries that it needs, once each, and before it begins.
//!
//! The driver of `tests/cuda/` keeps the images that it gets.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::cuda::{bfloat16_case, bfloat16_case_with, merge};
use crate::command::{self, Ended, assert_nothing_left};
use crate::cuda_driver::Driver;
use crate::tools::printed;

/// PTX by the name of its only entry.
type Images = BTreeMap<String, String>;

fn images(folder: &Path) -> Images {
    let mut images = Images::new();
    for file in fs::read_dir(folder).unwrap() {
        let text = fs::read_to_string(file.unwrap().path()).unwrap();
        let entries: Vec<&str> =
            text.lines().filter_map(|line| line.strip_prefix(".visible .entry ")).collect();
        let [entry] = entries[..] else { panic!("an image has the entries {entries:?}") };
        let entry = entry.trim_end_matches('(').to_string();
        assert!(!images.contains_key(&entry), "{entry} was compiled twice");
        images.insert(entry, text);
    }
    images
}

/// What the driver compiles in a merge of `folder/config.yml`.
fn compiled(folder: &Path, settings: &[(&str, &str)], more: &[&str]) -> Images {
    let kept = tempfile::tempdir().unwrap();
    let settings = [settings, &[("IMAGES", kept.path().to_str().unwrap())]].concat();
    merge(&Driver::new(), &settings, folder, &[&["--device", "cuda"], more].concat()).succeeded();
    fs::remove_dir_all(folder.join("out")).unwrap();
    images(kept.path())
}

/// A config of the method over the models of `bfloat16_case`.
pub fn method_config(folder: &Path, method: &str) {
    let at = |model: &str| folder.join(model).display().to_string();
    let (base, first, second) = (at("m0"), at("m1"), at("m2"));
    let rest = match method {
        "linear" => format!(
            "models:\n{}",
            [&base, &first, &second]
                .map(|model| format!("  - {{model: {model}, parameters: {{weight: 1}}}}\n"))
                .concat()
        ),
        "slerp" => format!("base_model: {base}\nparameters: {{t: 0.4}}\nmodels:\n  - model: {first}\n"),
        _ => format!(
            "base_model: {base}\nmodels:\n{}",
            [&first, &second]
                .map(|model| format!("  - {{model: {model}, parameters: {{weight: 0.5, density: 0.3}}}}\n"))
                .concat()
        ),
    };
    command::config(folder, &format!("merge_method: {method}\n{rest}"));
}

/// By name and to the byte what `tools/build_kernels.py` assembles and times for these merges.
#[test]
fn a_merge_compiles_the_entries_that_it_needs() {
    let cuts = tempfile::tempdir().unwrap();
    printed("build_kernels.py", &["--cuts", cuts.path().to_str().unwrap()]);
    let folder = bfloat16_case(2, 1 << 16, "ties");
    for method in ["ties", "dare_ties", "linear", "slerp"] {
        method_config(folder.path(), method);
        let expected = images(&cuts.path().join(method));
        assert!(!expected.is_empty(), "{method}");
        let found = compiled(folder.path(), &[], &["--threads", "2", "--chunk-tiles", "16"]);
        assert!(found.keys().eq(expected.keys()), "{method}: {:?}, not {:?}", found.keys(), expected.keys());
        for (entry, text) in &expected {
            assert!(found[entry] == *text, "{method}: {entry} is cut otherwise by the tool");
        }
    }
}

/// Keys, levels and magnitudes find thresholds; where they are known from another merge, nothing is counted.
#[test]
fn known_thresholds_need_no_kernels_that_count() {
    // One model: of two that are written at the same moment, the cache may not tell which is which.
    let folder = bfloat16_case(1, 1 << 16, "ties");
    let cache = folder.path().join("cache");
    let merge = || {
        let kept = tempfile::tempdir().unwrap();
        let mut command = command::mergeforge();
        command
            .args(["merge", "--device", "cuda"])
            .arg(folder.path().join("config.yml"))
            .arg(folder.path().join("out"));
        command.env("MERGEFORGE_CACHE", &cache).env("FAKE_CUDA_IMAGES", kept.path());
        Ended::from(Driver::new().apply(&mut command).output().unwrap()).succeeded();
        fs::remove_dir_all(folder.path().join("out")).unwrap();
        images(kept.path()).into_keys().collect::<Vec<_>>()
    };
    let all = ["consensus_1_bfloat16", "keys_bfloat16", "levels_1_bfloat16", "magnitudes_1_bfloat16"];
    assert_eq!(merge(), all);
    assert_eq!(merge(), ["consensus_1_bfloat16"]);
}

/// The sample misleads for one of two models, so that this one alone is counted in bins: for that no kernel was compiled
/// before. All workers want it at once.
#[test]
fn what_was_not_foreseen_is_compiled_once_when_it_is_launched() {
    const ELEMENTS: usize = 1 << 19;
    let models = std::cell::Cell::new(0);
    let misleading = |values: &mut [f32]| {
        models.set(models.get() + 1);
        if models.get() == 1 {
            // So many magnitudes that no few of them are likely.
            values.iter_mut().enumerate().for_each(|(i, value)| *value *= 1.0 + (i % 1009) as f32 / 1009.0);
            for tile in (0..ELEMENTS / 1024).step_by(ELEMENTS / 1024 / 32) {
                values[tile * 1024..][..1024].iter_mut().for_each(|value| *value += 0.5);
            }
        }
    };
    let folder = bfloat16_case_with(2, ELEMENTS, "ties", &misleading);
    let more = ["--threads", "4", "--chunk-tiles", "16"];
    let found = compiled(folder.path(), &[("LOAD_MS", "50")], &more);
    let foreseen = [
        "consensus_2_bfloat16",
        "keys_bfloat16",
        "levels_1_bfloat16",
        "levels_2_bfloat16",
        "magnitudes_2_bfloat16",
    ];
    let others: Vec<&String> = found.keys().filter(|entry| !foreseen.contains(&entry.as_str())).collect();
    assert_eq!(others, ["magnitudes_1_bfloat16"]);
    refused(folder.path(), "magnitudes_1_bfloat16", &more);
}

/// A kernel that the driver cannot compile, whenever it is wanted.
#[test]
fn a_kernel_that_cannot_be_compiled_is_named() {
    let folder = bfloat16_case(2, 1 << 16, "ties");
    refused(folder.path(), "levels_2_bfloat16", &[]);
}

/// A driver is installed without its compiler, as in many containers, or is told not to use it.
#[test]
fn a_driver_without_its_compiler_is_a_clear_error() {
    let folder = bfloat16_case(2, 1 << 16, "linear");
    method_config(folder.path(), "linear");
    for (code, says) in [
        (
            "221",
            [
                "JIT_COMPILER_NOT_FOUND",
                "hint: install libnvidia-ptxjitcompiler",
                "NVIDIA_DRIVER_CAPABILITIES",
            ],
        ),
        ("223", ["JIT_COMPILATION_DISABLED", "hint: unset", "CUDA_DISABLE_PTX_JIT"]),
    ] {
        let settings = [("REFUSED", "weighted_sum_bfloat16"), ("FAIL_CODE", code)];
        merge(&Driver::new(), &settings, folder.path(), &["--device", "cuda"]).failed(5, &says);
        assert_nothing_left(folder.path());
    }
}

fn refused(folder: &Path, entry: &str, more: &[&str]) {
    let arguments = [&["--device", "cuda"], more].concat();
    let ended = merge(&Driver::new(), &[("REFUSED", entry)], folder, &arguments);
    let named = format!("cannot load the kernel {entry}: ");
    ended.failed(
        5,
        &[&named, "CUDA_ERROR_INVALID_PTX", "ptx input, line 5; fatal", "hint: update the NVIDIA driver"],
    );
    assert_nothing_left(folder);
}

/// Whoever waits for the driver hears why, if he wants to hear anything.
#[test]
fn a_driver_that_compiles_for_long_is_reported() {
    const NOTE: &str = "note: the GPU's driver compiles the kernels of this merge";
    let folder = bfloat16_case(2, 1 << 16, "linear");
    method_config(folder.path(), "linear");
    for quiet in [false, true] {
        let arguments: &[&str] = if quiet { &["--device", "cuda", "--quiet"] } else { &["--device", "cuda"] };
        // Twice as long as it takes until somebody should hear of it.
        let ended = merge(&Driver::new(), &[("LOAD_MS", "1000")], folder.path(), arguments).succeeded();
        assert_eq!(ended.stderr.contains(NOTE), !quiet, "{}", ended.stderr);
        fs::remove_dir_all(folder.path().join("out")).unwrap();
    }
}

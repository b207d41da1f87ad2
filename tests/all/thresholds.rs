//! Thresholds kept for the next merge of the same models: they save sweeps and never change a byte.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use safetensors::Dtype;

use crate::command::{self, Ended, mergeforge};
use crate::models::{self, PLAIN, Tensors, stored, tuned, weights};

const ELEMENTS: usize = 300 * 1024 + 77;

/// A base and two models with a large tensor and a small one.
fn checkpoints() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    write_models(folder.path(), 1);
    folder
}

fn write_models(folder: &Path, seed: u64) {
    let bases = [weights(ELEMENTS, 5), weights(5000, 6)];
    for model in 0..3 {
        let mut tensors = Tensors::new();
        for (name, base) in ["model.layers.0.mlp.weight", "model.norm.weight"].into_iter().zip(&bases) {
            let values = if model == 0 { base.clone() } else { tuned(base, 10 * seed + model) };
            tensors.insert(name.to_string(), stored(Dtype::BF16, &[values.len()], &values));
        }
        let folder = folder.join(format!("m{model}"));
        models::write(&folder, &tensors, PLAIN);
        // Files of one size are told apart by their times, of which a fast machine gives out few.
        let file = fs::File::options().append(true).open(folder.join("model.safetensors")).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(10 * seed + model)).unwrap();
    }
}

fn config(folder: &Path, density: f64, weight: f64) -> PathBuf {
    let model = |model: u32| {
        format!(
            "  - model: {}/m{model}\n    parameters: {{weight: {weight}, density: {density}}}\n",
            folder.display()
        )
    };
    let text =
        format!("merge_method: ties\nbase_model: {}/m0\nmodels:\n{}{}", folder.display(), model(1), model(2));
    command::config(folder, &text)
}

/// Merges; the tensors, and how many bytes were read.
fn merge(folder: &Path, cache: &Path, density: f64, weight: f64, more: &[&str]) -> (Tensors, u64) {
    let out = folder.join("out");
    let mut command = mergeforge();
    command.env("MERGEFORGE_CACHE", cache).args(["merge", "--json", "--host-memory", "6MB"]).args(more);
    let ended =
        Ended::from(command.arg(config(folder, density, weight)).arg(&out).output().unwrap()).succeeded();
    let manifest: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    let stages = manifest["run"]["stages"].as_array().unwrap();
    let read = stages.iter().find(|stage| stage["stage"] == "read").unwrap()["bytes"].as_u64().unwrap();
    let tensors = models::read(&out);
    fs::remove_dir_all(&out).unwrap();
    (tensors, read)
}

/// The bytes of all inputs.
const ONCE: u64 = 3 * 2 * (ELEMENTS as u64 + 5000);

#[test]
fn a_second_merge_reads_its_inputs_once() {
    let (folder, cache) = (checkpoints(), tempfile::tempdir().unwrap());
    let (_, read) = merge(folder.path(), cache.path(), 0.3, 0.5, &[]);
    assert!(read > ONCE, "{read} of {ONCE} bytes: nothing was counted");
    for weight in [0.5, 0.8] {
        let (expected, _) = merge(folder.path(), cache.path(), 0.3, weight, &["--no-cache"]);
        let (found, read) = merge(folder.path(), cache.path(), 0.3, weight, &[]);
        assert_eq!(read, ONCE, "weight {weight}");
        assert!(found == expected, "weight {weight}");
    }
    // Another density is another selection, and the first one stays.
    assert!(merge(folder.path(), cache.path(), 0.6, 0.5, &[]).1 > ONCE);
    for density in [0.3, 0.6] {
        assert_eq!(merge(folder.path(), cache.path(), density, 0.5, &[]).1, ONCE, "density {density}");
    }
}

fn files(cache: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(cache.join("thresholds")) else { return Vec::new() };
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// How many elements are kept, the key, and the index of the cut.
type Record = (u64, u32, u64);

type Change = dyn Fn(&mut Record);

/// Changes every record of every file.
fn change(cache: &Path, change: impl Fn(&mut Record)) {
    let files = files(cache);
    assert_eq!(files.len(), 2, "a file for each model");
    for file in files {
        let mut stored: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        let mut tensors: Vec<((String, String), Vec<Record>)> =
            serde_json::from_value(stored["tensors"].take()).unwrap();
        assert_eq!(tensors.len(), 2, "both tensors");
        tensors.iter_mut().flat_map(|(_, densities)| densities).for_each(&change);
        stored["tensors"] = serde_json::to_value(&tensors).unwrap();
        fs::write(&file, serde_json::to_vec(&stored).unwrap()).unwrap();
    }
}

#[test]
fn wrong_thresholds_are_found_out() {
    let (folder, cache) = (checkpoints(), tempfile::tempdir().unwrap());
    let (expected, _) = merge(folder.path(), cache.path(), 0.3, 0.5, &[]);
    let changes: [&Change; 8] = [
        &|(_, key, _)| *key += 1,
        &|(_, key, _)| *key -= 1,
        &|(_, _, cut)| *cut = 0,
        &|(_, _, cut)| *cut = cut.saturating_sub(3000),
        &|(_, _, cut)| *cut = u64::MAX,
        &|(_, key, _)| *key = u32::MAX,
        &|(_, key, cut)| (*key, *cut) = (0, 0),
        &|(_, key, cut)| (*key, *cut) = (0, ELEMENTS as u64),
    ];
    for (number, wrong) in changes.into_iter().enumerate() {
        change(cache.path(), wrong);
        let (found, read) = merge(folder.path(), cache.path(), 0.3, 0.5, &[]);
        assert!(found == expected, "change {number}");
        assert!(read > ONCE, "change {number}: {read} of {ONCE} bytes, nothing was found out");
        // What was wrong is replaced.
        assert_eq!(merge(folder.path(), cache.path(), 0.3, 0.5, &[]).1, ONCE, "change {number}");
    }
    for file in files(cache.path()) {
        fs::write(file, "no thresholds").unwrap();
    }
    assert!(merge(folder.path(), cache.path(), 0.3, 0.5, &[]).0 == expected);
}

/// With rescale the norms are measured before the thresholds are proven: they must be measured again.
#[test]
fn wrong_thresholds_leave_no_trace_in_norms() {
    let (folder, cache) = (checkpoints(), tempfile::tempdir().unwrap());
    let rescaled = |cache: &Path| {
        let config = config(folder.path(), 0.3, 0.5);
        let text = fs::read_to_string(&config).unwrap() + "parameters: {rescale: true}\n";
        fs::write(&config, text).unwrap();
        let out = folder.path().join("out");
        let mut command = mergeforge();
        command.env("MERGEFORGE_CACHE", cache).arg("merge").arg(config).arg(&out);
        Ended::from(command.output().unwrap()).succeeded();
        let tensors = models::read(&out);
        fs::remove_dir_all(&out).unwrap();
        tensors
    };
    let expected = rescaled(cache.path());
    change(cache.path(), |(_, key, _)| *key += 1000);
    assert!(rescaled(cache.path()) == expected);
}

#[test]
fn other_models_are_not_confused() {
    let (folder, cache) = (checkpoints(), tempfile::tempdir().unwrap());
    merge(folder.path(), cache.path(), 0.3, 0.5, &[]);
    write_models(folder.path(), 2);
    let (expected, _) = merge(folder.path(), cache.path(), 0.3, 0.5, &["--no-cache"]);
    assert!(merge(folder.path(), cache.path(), 0.3, 0.5, &[]).0 == expected);
    assert_eq!(merge(folder.path(), cache.path(), 0.3, 0.5, &[]).1, ONCE);
}

#[test]
fn nothing_is_kept_where_nothing_should_or_can_be() {
    let (folder, cache) = (checkpoints(), tempfile::tempdir().unwrap());
    let (expected, _) = merge(folder.path(), cache.path(), 0.3, 0.5, &["--no-cache"]);
    assert!(files(cache.path()).is_empty());
    let file = cache.path().join("file");
    fs::write(&file, "in the way").unwrap();
    for cache in [Path::new(""), &file, Path::new("/proc/nowhere")] {
        assert!(merge(folder.path(), cache, 0.3, 0.5, &[]).0 == expected);
    }
    assert_eq!(fs::read(&file).unwrap(), b"in the way");
}

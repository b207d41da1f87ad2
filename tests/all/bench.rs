//! `bench merge`, from outside. Times differ from run to run and machine to machine, so only what they must fulfil is
//! tested; and that nothing stays but the checkpoints.

use std::fs;
use std::path::Path;

use serde_json::Value as Json;
use tempfile::TempDir;

use crate::command::{Ended, run};

const METHODS: [(&str, u64); 6] =
    [("linear", 2), ("slerp", 2), ("task_arithmetic", 3), ("ties", 3), ("dare_linear", 3), ("dare_ties", 3)];

/// Bytes of the tensors of a `tiny` in bfloat16.
const TINY_BYTES: u64 = 500_864;

fn bench(dir: &Path, more: &[&str]) -> Ended {
    let flags = ["bench", "merge", "--device", "cpu", "--repeat", "1", "--threads", "2", "--dir"];
    let shape: &[&str] = if more.contains(&"--shape") { &[] } else { &["--shape", "tiny"] };
    run([&flags[..], &[dir.to_str().unwrap()], shape, more].concat())
}

fn measured(dir: &Path, more: &[&str]) -> Json {
    let ended = bench(dir, &[&["--json"], more].concat()).succeeded();
    serde_json::from_str(&ended.stdout).unwrap()
}

/// Every file and folder below one, sorted.
fn below(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            found.push(path.strip_prefix(folder).unwrap().to_str().unwrap().replace('\\', "/"));
            folders.extend(path.is_dir().then_some(path));
        }
    }
    found.sort();
    found
}

fn number(json: &Json, name: &str) -> f64 {
    json[name].as_f64().unwrap_or_else(|| panic!("{name} is no number: {}", json[name]))
}

/// What figures must fulfil on any machine.
fn sane(json: &Json, inputs: u64) {
    assert_eq!(json["input_bytes"], inputs * TINY_BYTES);
    let output = json["output_bytes"].as_u64().unwrap();
    assert!((TINY_BYTES..TINY_BYTES + 10_000).contains(&output), "{output}");
    assert_eq!(json["parameters"], TINY_BYTES / 2);
    for name in [
        "seconds",
        "gb_per_s",
        "streaming_seconds",
        "finishing_seconds",
        "share_of_floor",
        "streaming_share_of_floor",
        "copy_gb_per_s",
    ] {
        assert!(number(json, name) > 0.0, "{name}: {}", json[name]);
    }
    assert!(number(json, "streaming_seconds") + number(json, "finishing_seconds") < number(json, "seconds"));
    assert_eq!(json["seconds_all"].as_array().unwrap().len(), 1);
    for timed in [json, &json["floor"]] {
        let fastest = number(timed, "seconds_fastest");
        assert!(fastest > 0.0 && fastest <= number(timed, "seconds"), "{timed}");
        let all = timed["seconds_all"].as_array().unwrap();
        assert!(all.iter().all(|seconds| seconds.as_f64().unwrap() >= fastest), "{timed}");
    }
    assert_eq!(json["floor_stored"].is_null(), json["place"] == "memory");
    let stored = if json["floor_stored"].is_null() { &json["floor"] } else { &json["floor_stored"] };
    let share = number(stored, "seconds") / number(json, "seconds");
    assert!((share / number(json, "share_of_floor") - 1.0).abs() < 1e-9);
    let stages = json["stages"].as_array().unwrap();
    assert!(stages.iter().any(|stage| stage["stage"] == "compute"));
    assert!(stages.iter().all(|stage| (0.0..=1.0).contains(&number(stage, "share"))));
    assert!((0.0..=1.0).contains(&number(json, "waiting")));
    let is_bottleneck = |stage: &Json| stage["stage"] == json["bottleneck"];
    assert!(json["bottleneck"].is_null() || stages.iter().any(is_bottleneck), "{}", json["bottleneck"]);
    if cfg!(target_os = "linux") {
        let peak = json["peak_bytes"].as_u64().unwrap();
        assert!((1 << 20..1 << 30).contains(&peak), "{peak}");
        assert!(number(json, "cpu_seconds") > 0.0);
    }
}

#[test]
fn every_method_runs_and_says_all_of_it() {
    let dir = tempfile::tempdir().unwrap();
    for (method, inputs) in METHODS {
        let json = measured(dir.path(), &["--method", method]);
        assert_eq!(json["method"], method);
        assert_eq!((&json["shape"], &json["device"]), (&Json::from("tiny"), &Json::from("cpu")));
        assert_eq!((&json["layers"], &json["models"]), (&Json::from(4), &Json::from(2)));
        assert_eq!((&json["cold"], &json["timeline"]), (&Json::from(false), &Json::Null));
        sane(&json, inputs);
    }
}

#[test]
fn checkpoints_stay_and_are_used_again_and_nothing_else_stays() {
    let dir = tempfile::tempdir().unwrap();
    let first = measured(dir.path(), &["--method", "linear", "--models", "3", "--seed", "5"]);
    assert!(first["made_bytes"].as_u64().unwrap() > 3 * TINY_BYTES);
    let made = below(dir.path());
    let set = "tiny-bfloat16-seed-5";
    let mut expected = vec![set.to_string()];
    for model in ["model-1", "model-2", "model-3"] {
        expected.push(format!("{set}/{model}"));
        let files = ["config.json", "model.safetensors", "synth.json"];
        expected.extend(files.map(|file| format!("{set}/{model}/{file}")));
    }
    assert_eq!(made, expected);
    // Ties needs the base beside them, and only that.
    let second = measured(dir.path(), &["--models", "3", "--seed", "5"]);
    let made = second["made_bytes"].as_u64().unwrap();
    assert!((TINY_BYTES..TINY_BYTES + 10_000).contains(&made), "{made}");
    let third = measured(dir.path(), &["--models", "3", "--seed", "5"]);
    assert_eq!(third["made_bytes"], 0);
    assert_eq!(below(dir.path()).len(), expected.len() + 4);
}

#[test]
fn a_table_tells_the_figures_and_cut_shapes_have_a_folder_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let ended = bench(dir.path(), &["--layers", "2", "--dtype", "f16"]).succeeded();
    for part in [
        "copy in memory",
        "fastest",
        "floor",
        "merge",
        "share of floor",
        "compute",
        "waiting",
        "tiny (2 layers)",
    ] {
        assert!(ended.stdout.contains(part), "no `{part}` in\n{}", ended.stdout);
    }
    assert!(ended.stderr.contains("making 3 checkpoints"), "{}", ended.stderr);
    assert!(dir.path().join("tiny-2-layers-float16-seed-0/base/config.json").is_file());
}

#[test]
fn a_set_without_room_is_refused_with_its_bytes_and_nothing_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let ended = bench(dir.path(), &["--shape", "llama-3-70b", "--dtype", "f32", "--models", "12"]);
    // Twelve fine-tunes, the base and an output, of 282 GB each; headers come on top: 3.95 TB.
    ended.failed(4, &["need 395", " bytes)", "has room for", "--layers", "--dir"]);
    assert!(below(dir.path()).is_empty(), "{:?}", below(dir.path()));
}

#[test]
fn what_cannot_be_measured_is_refused_before_anything_is_made() {
    let dir = tempfile::tempdir().unwrap();
    for (flags, code, says) in [
        (&["--method", "slerp", "--models", "3"][..], 2, "slerp merges 2 fine-tunes"),
        (&["--method", "tie"], 2, "possible values: linear"),
        (&["--shape", "gpt-5"], 2, "tinyllama-1.1b"),
        (&["--models", "13"], 2, "from 1 to 12"),
        (&["--density", "0"], 2, "above 0"),
        (&["--report", "/nowhere/page.html"], 4, "/nowhere/page.html cannot be written"),
    ] {
        bench(dir.path(), flags).failed(code, &[says]);
    }
    let memory = Path::new("/dev/shm/mergeforge-no-such-folder");
    if cfg!(target_os = "linux") && memory.parent().unwrap().is_dir() {
        bench(memory, &["--cold"]).failed(2, &["--cold", "in memory", "--dir"]);
        assert!(!memory.exists());
    }
    assert!(below(dir.path()).is_empty());
}

#[test]
fn a_merge_that_fails_is_reported_in_its_own_words() {
    let dir = tempfile::tempdir().unwrap();
    bench(dir.path(), &["--host-memory", "1kB"]).failed(2, &["--host-memory 1000 bytes", "give it more"]);
    let work: Vec<String> = below(dir.path()).into_iter().filter(|path| path.contains("work")).collect();
    assert!(work.is_empty(), "{work:?}");
}

/// Folders in which tests run may be on a disk or in memory; only on a disk is anything cold.
#[test]
fn a_cold_bench_runs_on_a_disk_or_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let ended = bench(dir.path(), &["--cold", "--json"]);
    if ended.code == Some(0) {
        let json: Json = serde_json::from_str(&ended.stdout).unwrap();
        assert_eq!((&json["cold"], &json["place"]), (&Json::from(true), &Json::from("disk")));
        sane(&json, 3);
    } else {
        assert!(ended.stderr.contains("--cold"), "{}", ended.stderr);
    }
}

fn page(dir: &TempDir) -> (Json, String) {
    let file = dir.path().join("page.html");
    let json = measured(&dir.path().join("models"), &["--report", file.to_str().unwrap()]);
    (json, fs::read_to_string(file).unwrap())
}

#[test]
fn a_page_is_whole_by_itself_and_well_formed() {
    let dir = tempfile::tempdir().unwrap();
    let (json, page) = page(&dir);
    let left = page.replace("http://www.w3.org/2000/svg", "");
    for part in ["http", "<script", "<link", "<img", "src=", "href=", "@import", "url("] {
        assert!(!left.contains(part), "the page has {part}");
    }
    assert_eq!(page.matches("<svg").count(), 2);
    for part in
        ["Roofline", "What happened when", "arithmetic alone", "this merge", "copy in memory", "compute"]
    {
        assert!(page.contains(part), "no {part}");
    }
    assert!(!dir.path().to_str().is_some_and(|path| page.contains(path)), "a path of the machine");
    well_formed(&page);
    // The timeline is in the data too: a row per stage, shares of equal parts of the time.
    let rows = json["timeline"]["rows"].as_array().unwrap();
    // They are of two merges, in each of which threads may meet at a file, or not.
    let of = |stages: &[Json]| {
        let all = stages.iter().map(|stage| stage["stage"].as_str().unwrap().to_owned());
        all.filter(|stage| stage != "write wait").collect::<Vec<_>>()
    };
    assert_eq!(of(rows), of(json["stages"].as_array().unwrap()));
    for row in rows {
        let shares: Vec<f64> =
            row["shares"].as_array().unwrap().iter().map(|share| share.as_f64().unwrap()).collect();
        assert!(shares.iter().all(|share| (0.0..=1.0).contains(share)) && shares.iter().sum::<f64>() > 0.0);
    }
}

/// Every tag is closed in its turn, as in XML; so HTML's own tags must be too.
pub fn well_formed(page: &str) {
    let body = page.strip_prefix("<!DOCTYPE html>").unwrap();
    let mut open: Vec<&str> = Vec::new();
    let mut rest = body;
    while let Some(start) = rest.find('<') {
        assert!(
            !rest[..start].contains('>'),
            "a stray > before {}",
            &rest[start..rest.len().min(start + 40)]
        );
        let end = start + rest[start..].find('>').expect("every tag ends");
        let tag = &rest[start + 1..end];
        let name = tag.trim_start_matches('/').split([' ', '\n', '/']).next().unwrap();
        assert!(name.chars().all(|c| c.is_ascii_alphanumeric()), "<{tag}>");
        assert_eq!(tag.matches('"').count() % 2, 0, "<{tag}>");
        if tag.starts_with('/') {
            assert_eq!(open.pop(), Some(name), "</{name}>");
        } else if !tag.ends_with('/') {
            open.push(name);
        }
        rest = &rest[end + 1..];
    }
    assert!(open.is_empty(), "never closed: {open:?}");
}

#[test]
fn help_lists_what_can_be_chosen() {
    let help = run(["bench", "merge", "--help"]).succeeded().stdout;
    for part in
        ["--shape", "mixtral-8x7b", "--layers", "--method", "dare_ties", "--models", "--density", "--cold"]
    {
        assert!(help.contains(part), "{part}");
    }
    for part in ["--dir", "--repeat", "--report", "--json", "--device", "--threads", "--host-memory"] {
        assert!(help.contains(part), "{part}");
    }
    // Between the bench and its merges.
    assert!(!help.contains("--round ") && !help.contains("--records"));
}

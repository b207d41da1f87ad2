//! Traces and shares, from outside: what `--trace` writes and where it may not, and what manifest and summary say of the
//! stages. Times differ from run to run, so only what they must fulfil is tested.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use serde_json::Value as Json;
use tempfile::TempDir;

use crate::command::{Ended, assert_nothing_left, merge};
use crate::models::{self, PLAIN, Tensors, stored, tuned, weights};

/// Chunks of one tile, so that there is something to share out.
const CUT: [&str; 4] = ["--chunk-tiles=1", "--threads=2", "--device=cpu", "--out-shard-size=5GB"];

const ELEMENTS: usize = 20_000;

/// A folder with two models, and a config that merges them into `out`.
struct Case {
    folder: TempDir,
}

impl Case {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let base = weights(ELEMENTS, 1);
        for (seed, name) in (1..).zip(["a", "b"]) {
            let values = tuned(&base, seed);
            let tensors: Tensors =
                [("w.weight".to_string(), stored(Dtype::BF16, &[ELEMENTS], &values))].into_iter().collect();
            models::write(&folder.path().join(name), &tensors, PLAIN);
        }
        Self { folder }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn merge(&self, more: &[&str]) -> Ended {
        let text =
            "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: DIR/a}, {model: DIR/b}]\n";
        let text = text.replace("DIR", self.folder.path().to_str().unwrap());
        merge(self.folder.path(), &text, &[&CUT, more].concat())
    }

    fn merge_tracing(&self, file: &Path, more: &[&str]) -> Ended {
        self.merge(&[&["--trace", file.to_str().unwrap()], more].concat())
    }
}

/// How a merge with `--json` went.
fn run_of(ended: &Ended) -> Json {
    serde_json::from_str::<Json>(&ended.stdout).unwrap()["run"].clone()
}

fn json(file: &Path) -> Json {
    serde_json::from_slice(&fs::read(file).unwrap()).unwrap()
}

/// The lanes of a trace by their names: of each event its name, beginning and end in microseconds, and bytes.
type Lanes = BTreeMap<String, Vec<(String, f64, f64, u64)>>;

fn lanes(trace: &Json) -> Lanes {
    let mut names = BTreeMap::new();
    let mut lanes = Lanes::new();
    for event in trace["traceEvents"].as_array().unwrap() {
        let lane = (event["pid"].as_u64().unwrap(), event["tid"].as_u64().unwrap());
        let name = event["name"].as_str().unwrap();
        if event["ph"] == "M" {
            names.insert(lane, event["args"]["name"].as_str().unwrap().to_string());
            continue;
        }
        assert_eq!(event["ph"], "X");
        let (ts, dur) = (event["ts"].as_f64().unwrap(), event["dur"].as_f64().unwrap());
        let bytes = event["args"]["bytes"].as_u64().unwrap();
        lanes.entry(names[&lane].clone()).or_default().push((name.to_string(), ts, ts + dur, bytes));
    }
    lanes
}

/// Bytes and number of a stage's events in all lanes.
fn moved(lanes: &Lanes, stage: &str) -> (u64, usize) {
    let of_stage = || lanes.values().flatten().filter(|(name, ..)| name == stage);
    (of_stage().map(|(.., bytes)| bytes).sum(), of_stage().count())
}

#[test]
fn a_trace_has_every_piece_of_work_in_the_lane_of_its_worker() {
    let case = Case::new();
    let file = case.at("trace.json");
    fs::write(&file, "an older one").unwrap();
    let ended = case.merge_tracing(&file, &["--json"]).succeeded();
    assert!(ended.stderr.contains(&format!("trace written to {}", file.display())), "{}", ended.stderr);
    let trace = json(&file);
    assert_eq!(trace["otherData"]["left_out"], 0);
    let lanes = lanes(&trace);
    assert!(lanes.keys().all(|name| ["worker 0", "worker 1"].contains(&name.as_str())), "{:?}", lanes.keys());
    let (bytes, chunks) = (2 * ELEMENTS as u64, ELEMENTS.div_ceil(1024));
    assert_eq!(moved(&lanes, "read"), (2 * bytes, 2 * chunks));
    assert_eq!(moved(&lanes, "compute"), (3 * bytes, chunks));
    assert_eq!(moved(&lanes, "hash"), (bytes, chunks));
    assert_eq!(moved(&lanes, "write"), (bytes, chunks));
    for (name, events) in &lanes {
        for pair in events.windows(2) {
            // A nanosecond for the decimals.
            assert!(pair[0].2 <= pair[1].1 + 1e-3, "{name}: {pair:?} overlap");
        }
    }
    let end = lanes.values().flatten().map(|(_, _, to, _)| *to).fold(0.0, f64::max);
    let seconds = run_of(&ended)["seconds"].as_f64().unwrap();
    assert!(end / 1e6 <= seconds + 1e-3, "{end} µs of {seconds} s");
}

#[test]
fn json_and_summary_tell_the_shares() {
    let case = Case::new();
    let ended = case.merge(&["--json"]).succeeded();
    let messages = ended.stderr.lines().map(|line| serde_json::from_str::<Json>(line).unwrap());
    let mut messages = messages.filter_map(|told| Some(told["message"].as_str()?.to_owned()));
    let reported = messages.find(|message| message.starts_with("stages: ")).expect("a line of stages");
    let run = run_of(&ended);
    let stages = run["stages"].as_array().unwrap();
    let names: Vec<&str> = stages.iter().map(|stage| stage["stage"].as_str().unwrap()).collect();
    // Two workers may meet at the one file, or not.
    let others: Vec<&str> = names.iter().copied().filter(|name| *name != "write wait").collect();
    assert_eq!(others, ["read", "compute", "hash", "write"]);
    names.iter().for_each(|name| assert!(reported.contains(&format!("{name} ")), "{reported}"));
    let held_back = match run["bottleneck"].as_str() {
        Some(stage) => format!("; {stage} holds it back"),
        None => "; nothing is busy most of the time".into(),
    };
    assert!(reported.contains("waiting ") && reported.ends_with(&held_back), "{reported}");
    assert!(run["bottleneck"].is_null() || names.iter().any(|name| run["bottleneck"] == *name));
    let number = |stage: &Json, key: &str| stage[key].as_f64().unwrap();
    let all: f64 = stages.iter().map(|stage| number(stage, "share")).sum();
    assert!((0.0..=1.01).contains(&all), "{all}");
    assert_eq!(run["threads"], 2);
    assert!(stages.iter().all(|stage| stage["by"] == "threads" && number(stage, "gb_per_s") >= 0.0));
    let write = stages.iter().find(|stage| stage["stage"] == "write").expect("a stage of writes");
    assert_eq!(write["bytes"], 2 * ELEMENTS);
}

#[test]
fn quiet_is_quiet_with_a_trace_too() {
    let case = Case::new();
    let file = case.at("trace.json");
    let ended = case.merge_tracing(&file, &["--quiet"]).succeeded();
    assert_eq!((ended.stdout.as_str(), ended.stderr.as_str()), ("", ""));
    assert!(!lanes(&json(&file)).is_empty());
}

#[test]
fn a_trace_is_refused_where_it_could_not_be_written_or_would_harm() {
    let case = Case::new();
    fs::create_dir(case.at("folder")).unwrap();
    let weights = case.at("a/model.safetensors");
    let before = fs::read(&weights).unwrap();
    for (file, says) in [
        ("nowhere/trace.json", "its folder does not exist"),
        ("config.yml/trace.json", "its folder does not exist"),
        ("folder", "that is a folder"),
        ("trace.json/", "that is a folder"),
        ("out", "the output goes there"),
        ("folder/../out", "the output goes there"),
        ("out.partial", "the output goes there"),
        ("a/trace.json", "a model lies there"),
        ("a/model.safetensors", "a model lies there"),
    ] {
        let file = case.at(file);
        let named = format!("error: the trace {} cannot be written: {says}", file.display());
        case.merge_tracing(&file, &[]).failed(2, &[&named, "hint: --trace"]);
        assert_nothing_left(case.folder.path());
    }
    assert_eq!(fs::read(&weights).unwrap(), before);
    // An output folder that is there and empty.
    fs::create_dir(case.at("out")).unwrap();
    case.merge_tracing(&case.at("out/trace.json"), &[]).failed(2, &["the output goes there"]);
}

#[cfg(unix)]
#[test]
fn symlinks_do_not_hide_where_a_trace_would_go() {
    use std::os::unix::fs::symlink;
    let case = Case::new();
    symlink(case.at("a"), case.at("link")).unwrap();
    symlink(case.at("a/config.json"), case.at("trace.json")).unwrap();
    for file in ["link/trace.json", "trace.json"] {
        case.merge_tracing(&case.at(file), &[]).failed(2, &["a model lies there"]);
    }
}

#[test]
fn a_merge_that_fails_writes_no_trace() {
    let case = Case::new();
    let file = case.at("trace.json");
    fs::create_dir(case.at("out.partial")).unwrap();
    fs::write(case.at("out.partial/mine"), "precious").unwrap();
    case.merge_tracing(&file, &[]).failed(4, &["out.partial is in the way"]);
    assert!(!file.exists());
}

#[cfg(target_os = "linux")]
#[test]
fn a_trace_that_cannot_be_written_leaves_the_merge_complete() {
    let case = Case::new();
    let full = Path::new("/dev/full");
    let reported = [r#""message":"the merge is complete, but cannot write the trace /dev/full: "#];
    case.merge_tracing(full, &["--json"]).failed(4, &reported);
    assert!(full.exists(), "what is no file is not removed");
    assert_eq!(models::read(&case.at("out"))["w.weight"].shape, [ELEMENTS]);
}

//! How outputs are written: workers keep out of each other's way, and where they cannot, the time is counted. And `bench writes`
//! from outside.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::thread::{self, ThreadId};
use std::time::Duration;

use mergeforge::backend::devices::processor;
use mergeforge::checkpoint::Reads;
use mergeforge::error::Error;
use mergeforge::plan::Choices;
use mergeforge::report::Report;
use mergeforge::stream::{Budget, Watch};
use mergeforge::timeline::Stage;
use mergeforge::{Options, Stopped, merge, prepare};
use safetensors::Dtype;
use serde_json::Value as Json;

use crate::command::{self, run};
use crate::models::{self, PLAIN, Quiet, Tensors, stored, weights};

/// Elements of the tensors b and c below: chunks for many workers; and of a: one chunk.
const ELEMENTS: usize = 1 << 19;
const FEW: usize = 64;

/// Bytes of the two in a file that is to hold both.
const SHARD_BYTES: u64 = 2 * (FEW + ELEMENTS) as u64;

/// Merges two models of the tensors a, b and c into `out`.
fn merge_two(folder: &Path, out: PathBuf, threads: usize, shard_bytes: u64, watch: &dyn Watch) -> Report {
    let tensor = |elements, seed| stored(Dtype::BF16, &[elements], &weights(elements, seed));
    let name = |model: &str| folder.join(model).display().to_string();
    if !folder.join("b").exists() {
        for (model, seed) in [("a", 1), ("b", 3)] {
            let tensors = [("a", FEW), ("b", ELEMENTS), ("c", ELEMENTS)];
            let tensors: Tensors =
                tensors.map(|(name, elements)| (name.to_string(), tensor(elements, seed))).into();
            models::write(&folder.join(model), &tensors, PLAIN);
        }
    }
    let parameters = "parameters: {weight: 1}";
    let text = format!(
        "merge_method: linear\nmodels: [{{model: {}, {parameters}}}, {{model: {}, {parameters}}}]\n",
        name("a"),
        name("b")
    );
    let config = command::config(folder, &text);
    let prepared =
        prepare(&config, &Choices { seed: 0, shard_bytes: Some(shard_bytes), ..Choices::USUAL }).unwrap();
    let options = Options {
        out,
        device: processor(),
        budget: Budget { threads, host_bytes: 64 << 20, device_bytes: 0, chunk_tiles: Some(16) },
        copy_tokenizer: false,
        model_card: false,
        inputs_hashed: false,
        reads: Reads::Copied,
        cache: None,
        recall: false,
        stopped: Stopped::LeavesNothing,
    };
    merge(&prepared, &options, watch).unwrap()
}

/// Two workers and two files: the first file has a and b, the second one c. Who has written a looks for more work when the other one
/// is busy with c, and finds units of c, and b, which is not open yet.
struct Meeting {
    partial: PathBuf,
    state: Mutex<MeetingState>,
    changed: Condvar,
}

#[derive(Default)]
struct MeetingState {
    readers: HashSet<ThreadId>,
    wrote_a: Option<ThreadId>,
    /// Whether b was begun by then.
    then_wrote_b: Option<bool>,
}

impl Meeting {
    fn wait(&self, state: MutexGuard<'_, MeetingState>, until: impl Fn(&MeetingState) -> bool) {
        let (_state, waited) =
            self.changed.wait_timeout_while(state, Duration::from_mins(1), |state| !until(state)).unwrap();
        assert!(!waited.timed_out(), "both workers have work");
    }

    fn b_is_begun(&self) -> bool {
        let bytes = fs::read(self.partial.join("model-00001-of-00002.safetensors")).unwrap();
        bytes[bytes.len() - 2 * ELEMENTS..].iter().any(|byte| *byte != 0)
    }
}

impl Watch for Meeting {
    fn compiling(&self) {}
    fn less_memory(&self, _: &Error, _: u64, _: u64) {}

    fn moved(&self, _read: u64, written: u64) {
        let own = thread::current().id();
        let mut state = self.state.lock().unwrap();
        if written == 0 {
            state.readers.insert(own);
        } else if written == 2 * FEW as u64 {
            state.wrote_a = Some(own);
            self.wait(state, |state| state.readers.iter().any(|reader| *reader != own));
        } else if state.wrote_a == Some(own) {
            state.then_wrote_b.get_or_insert_with(|| self.b_is_begun());
        } else {
            self.wait(state, |state| state.then_wrote_b.is_some());
        }
        self.changed.notify_all();
    }

    fn stop(&self) -> bool {
        false
    }
}

#[test]
fn a_worker_opens_a_tensor_of_another_file_rather_than_meet_one_that_writes() {
    let folder = tempfile::tempdir().unwrap();
    let partial = folder.path().join("out.partial");
    let meeting = Meeting { partial, state: Mutex::default(), changed: Condvar::new() };
    merge_two(folder.path(), folder.path().join("out"), 2, SHARD_BYTES, &meeting);
    assert_eq!(meeting.state.into_inner().unwrap().then_wrote_b, Some(true));
}

#[test]
fn the_time_that_workers_wait_for_each_others_writes_is_a_stage() {
    let folder = tempfile::tempdir().unwrap();
    let waits = |attempt: usize| {
        let out = folder.path().join(attempt.to_string());
        let report = merge_two(folder.path(), out.clone(), 8, 1 << 30, &Quiet);
        fs::remove_dir_all(out).unwrap();
        let waited = report.shares.stages.iter().find(|stage| stage.stage == Stage::WriteWait);
        let written = report.shares.stages.iter().find(|stage| stage.stage == Stage::Write).unwrap();
        assert_eq!(written.bytes, 2 * (FEW + 2 * ELEMENTS) as u64);
        waited.is_some_and(|waited| {
            waited.times.is_some_and(|times| times.busy > Duration::ZERO) && waited.bytes == 0
        })
    };
    // Threads may happen to take turns, but not every time.
    assert!((0..100).any(waits), "eight workers write to one file");
}

fn bench(dir: &Path, more: &[&str]) -> command::Ended {
    let flags = [
        "bench",
        "writes",
        "--bytes",
        "1MiB",
        "--repeat",
        "1",
        "--threads",
        "1,3",
        "--files",
        "1,2",
        "--dir",
    ];
    run([&flags[..], &[dir.to_str().unwrap()], more].concat())
}

#[test]
fn every_way_of_writing_is_timed_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    for stored in [&[][..], &["--stored"]] {
        let ended = bench(dir.path(), &[&["--json"], stored].concat()).succeeded();
        let json: Json = serde_json::from_str(&ended.stdout).unwrap();
        assert_eq!(
            (&json["bytes"], &json["stored"]),
            (&Json::from(1 << 20), &Json::from(!stored.is_empty()))
        );
        let rows = json["writes"].as_array().unwrap();
        assert_eq!(rows.len(), 3 * 2 * 2 * 2);
        for row in rows {
            let timed = row["seconds_all"].as_array().unwrap();
            if row["way"] == "positioned" && row["allocated"] == false {
                assert_eq!(timed.len(), 1);
            }
            let rates = ["gb_per_s", "gb_per_s_fastest"].map(|name| row[name].as_f64());
            assert!(rates.iter().all(|rate| rate.map_or(timed.is_empty(), |rate| rate > 0.0)), "{row}");
        }
    }
    let table = bench(dir.path(), &[]).succeeded().stdout;
    for part in ["positioned ", "mapped", "direct", "1 file", "2 files", "1 thread", "3 threads"] {
        assert!(table.contains(part), "no `{part}` in\n{table}");
    }
    bench(dir.path(), &["--piece", "5000"]).failed(2, &["a multiple of 4096 bytes"]);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

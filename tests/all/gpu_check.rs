//! `tools/gpu_check.py`, rehearsed: on the driver that runs kernels on the CPU, without CUDA's tools. What cannot be
//! tried there must be told as not run, and everything else must work before somebody takes it to a GPU.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use serde_json::Value as Json;

use crate::command::ROOT;
use crate::cuda_driver::Driver;

fn driver() -> &'static Driver {
    static DRIVER: OnceLock<Driver> = OnceLock::new();
    DRIVER.get_or_init(Driver::new)
}

/// Python itself: `python3` may be a script that needs the path which the tool is run without.
fn python() -> &'static Path {
    static PYTHON: OnceLock<PathBuf> = OnceLock::new();
    PYTHON.get_or_init(|| {
        let asked =
            Command::new("python3").args(["-c", "import sys; print(sys.executable)"]).output().unwrap();
        String::from_utf8(asked.stdout).unwrap().trim().into()
    })
}

/// Runs a part as a rehearsal into `folder/results`; its exit code and what it wrote.
fn rehearsed(part: &str, folder: &Path, more: &[&str]) -> (Option<i32>, Json) {
    // Where there are torch and CUDA's tools, they must not meet this driver.
    std::fs::write(folder.join("torch.py"), "raise ImportError('hidden')\n").unwrap();
    let results = folder.join("results");
    let mut command = Command::new(python());
    driver().apply(&mut command);
    command.arg(Path::new(ROOT).join("tools/gpu_check.py")).args([part, "--tiny", "--no-sweep"]);
    command.args(["--binary", env!("CARGO_BIN_EXE_mergeforge"), "--out"]).arg(&results);
    command.arg("--dir").arg(folder.join("models")).args(more);
    command.env("PATH", "/nowhere").env("CUDA_HOME", "/nowhere").env("PYTHONPATH", folder);
    let ended = command.output().expect("Python starts");
    let written = std::fs::read_to_string(results.join(format!("{part}.json")));
    let written =
        written.unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&ended.stderr)));
    assert!(!folder.join("models").exists(), "models are left behind");
    let told = std::fs::read_to_string(results.join(format!("{part}.md"))).unwrap();
    assert_eq!(String::from_utf8(ended.stdout).unwrap().trim(), told.trim());
    (ended.status.code(), serde_json::from_str(&written).unwrap())
}

/// The steps by name: what became of each, and why.
fn steps(written: &Json) -> Vec<(&str, &str, &str)> {
    let word = |step: &'_ Json, key| step[key].as_str().unwrap_or_default().to_string().leak() as &str;
    let steps = written["steps"].as_array().unwrap();
    steps.iter().map(|step| (word(step, "step"), word(step, "status"), word(step, "why"))).collect()
}

#[track_caller]
fn assert_steps(written: &Json, expected: &[(&str, &str)]) {
    let found = steps(written);
    for (name, ended) in expected {
        let (_, status, why) =
            found.iter().find(|(step, ..)| step == name).unwrap_or_else(|| panic!("no {name}"));
        let told = if why.is_empty() { (*status).to_string() } else { format!("{status}: {why}") };
        assert!(told.starts_with(ended), "{name}: {told}");
    }
}

#[test]
fn kernels_are_checked_and_timed_and_what_has_no_tool_is_not_run() {
    let folder = tempfile::tempdir().unwrap();
    // The kernels themselves are checked in `cuda.rs`; the CPU as a GPU takes its time.
    let (code, written) = rehearsed("kernels", folder.path(), &["--skip", "check cuda|bench kernels cpu"]);
    assert_steps(
        &written,
        &[
            ("version", "ok"),
            ("nvidia-smi", "not run: there is no nvidia-smi"),
            ("devices", "ok"),
            ("check cuda:0", "not run: left out"),
            ("check cpu", "ok"),
            ("bench kernels cuda:0", "ok"),
            ("bench kernels cpu", "not run: left out"),
            ("memcheck of check", "not run: there is no compute-sanitizer"),
            ("memcheck of a merge", "not run: there is no compute-sanitizer"),
            ("racecheck of check", "not run: there is no compute-sanitizer"),
        ],
    );
    assert_eq!(code, Some(0));
}

#[test]
fn merges_are_measured_and_compared_with_the_cpu() {
    let folder = tempfile::tempdir().unwrap();
    let (code, written) = rehearsed("stream", folder.path(), &[]);
    let torch = "copies to, from and on the GPU (torch)";
    let mut expected =
        vec![("models", "ok"), ("host memory copy, all cores", "ok"), (torch, "not run: there is no")];
    for step in [
        "ties: first run, watched",
        "ties: round 1",
        "ties: the CPU's bytes",
        "linear: the CPU's bytes",
        "dare_ties: the CPU's bytes",
    ] {
        expected.push((step, "ok"));
    }
    assert_steps(&written, &expected);
    assert_eq!(code, Some(0));
    let tables = written["tables"].as_array().unwrap();
    let merges = tables.iter().find(|table| table["title"] == "Merges in memory").unwrap();
    assert_eq!(merges["rows"].as_array().unwrap().len(), 3);
}

#[test]
fn a_step_that_fails_is_noted_and_the_others_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let (code, written) = rehearsed("stream", folder.path(), &["--flags=--no-such-flag"]);
    assert_steps(
        &written,
        &[
            ("models", "ok"),
            ("ties: first run, watched", "failed: merge ties on cuda: exit code 2"),
            ("ties: round 1", "not run: its first run did not succeed"),
            ("linear: first run, watched", "failed"),
        ],
    );
    assert_eq!(code, Some(1));
}

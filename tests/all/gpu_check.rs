//! `tools/gpu_check.py`, rehearsed: on the driver that runs kernels on the CPU, without CUDA's tools, and on lavapipe, which
//! must be there. What cannot be tried there must be told as not run, and everything else must work before somebody takes it
//! to a GPU.

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
    rehearsed_with(part, folder, more, &[])
}

/// The same, with more of the environment.
fn rehearsed_with(
    part: &str,
    folder: &Path,
    more: &[&str],
    environment: &[(&str, &str)],
) -> (Option<i32>, Json) {
    // Where there are torch and CUDA's tools, they must not meet this driver.
    std::fs::write(folder.join("torch.py"), "raise ImportError('hidden')\n").unwrap();
    let results = folder.join("results");
    let mut command = Command::new(python());
    driver().apply(&mut command);
    command.arg(Path::new(ROOT).join("tools/gpu_check.py")).args([part, "--tiny", "--no-sweep"]);
    command.args(["--binary", env!("CARGO_BIN_EXE_mergeforge"), "--out"]).arg(&results);
    command.arg("--dir").arg(folder.join("models")).args(more);
    command.env("PATH", "/nowhere").env("CUDA_HOME", "/nowhere").env("PYTHONPATH", folder);
    command.envs(environment.iter().copied());
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

/// The rows of a table.
#[track_caller]
fn rows<'a>(written: &'a Json, title: &str) -> &'a [Json] {
    let tables = written["tables"].as_array().unwrap();
    let found = tables.iter().find(|table| table["title"].as_str().unwrap().starts_with(title));
    found.unwrap_or_else(|| panic!("no {title}"))["rows"].as_array().unwrap()
}

#[test]
fn kernels_are_checked_and_timed_and_what_has_no_tool_is_not_run() {
    let folder = tempfile::tempdir().unwrap();
    // The kernels themselves are checked in `cuda.rs` and `wgpu.rs`; the CPU as a GPU takes its time.
    let skipped = "check (cuda|wgpu)|bench kernels cpu";
    let (code, written) = rehearsed("kernels", folder.path(), &["--skip", skipped]);
    assert_steps(
        &written,
        &[
            ("version", "ok"),
            ("nvidia-smi", "not run: there is no nvidia-smi"),
            ("devices", "ok"),
            ("check cuda:0", "not run: left out"),
            ("check wgpu:0", "not run: left out"),
            ("check cpu", "ok"),
            ("bench kernels cuda:0", "ok"),
            ("bench kernels wgpu:0", "ok"),
            ("bench kernels cpu", "not run: left out"),
            ("wgpu beside CUDA", "ok"),
            ("memcheck of check", "not run: there is no compute-sanitizer"),
            ("memcheck of a merge", "not run: there is no compute-sanitizer"),
            ("racecheck of check", "not run: there is no compute-sanitizer"),
        ],
    );
    assert_eq!(code, Some(0));
    assert_eq!(rows(&written, "wgpu beside CUDA").len(), rows(&written, "Kernels on wgpu:0").len());
    let facts = written["facts"]["wgpu:0"].as_str().unwrap();
    assert!(facts.contains("backend vulkan") && facts.contains("binding"), "{facts}");
}

#[test]
fn where_there_is_no_adapter_nothing_of_wgpu_is_run() {
    let folder = tempfile::tempdir().unwrap();
    // What the loader of Vulkan is to take for all drivers that there are.
    let without = [("VK_DRIVER_FILES", "/nowhere"), ("VK_ICD_FILENAMES", "/nowhere")];
    let skipped = "check c|bench kernels";
    let (code, written) = rehearsed_with("kernels", folder.path(), &["--skip", skipped], &without);
    assert_steps(&written, &[("check wgpu", "not run: the driver has no device")]);
    assert_eq!(code, Some(0));
}

#[test]
fn merges_are_measured_and_compared_with_the_cpu() {
    let folder = tempfile::tempdir().unwrap();
    let (code, written) = rehearsed("stream", folder.path(), &["--skip", "(linear|dare_ties) on wgpu"]);
    let torch = "copies to, from and on the GPU (torch)";
    let mut expected =
        vec![("models", "ok"), ("host memory copy, all cores", "ok"), (torch, "not run: there is no")];
    for step in [
        "ties: first run, watched",
        "ties: round 1",
        "ties: the CPU's bytes",
        "linear: the CPU's bytes",
        "dare_ties: the CPU's bytes",
        "ties on wgpu:0: first run, watched",
        "ties on wgpu:0: round 1",
        "ties on wgpu:0: the CPU's bytes",
    ] {
        expected.push((step, "ok"));
    }
    expected.push(("linear on wgpu:0: round 1", "not run: left out"));
    assert_steps(&written, &expected);
    assert_eq!(code, Some(0));
    assert_eq!(rows(&written, "Merges in memory").len(), 3);
    let beside = rows(&written, "Merges on wgpu:0 beside CUDA");
    assert_eq!(beside.len(), 1);
    assert!(beside[0][4].as_str().unwrap().ends_with("another card"), "{}", beside[0]);
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
            ("ties on wgpu:0: first run, watched", "failed: merge ties on wgpu:0: exit code 2"),
            ("ties on wgpu:0: round 1", "not run: its first run did not succeed"),
        ],
    );
    assert_eq!(code, Some(1));
}

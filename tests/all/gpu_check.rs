//! `tools/gpu_check.py`, rehearsed: on the driver that runs kernels on the CPU, and on lavapipe, which must be there. All
//! must work before somebody takes it to a GPU; what cannot be tried must be reported as not run.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use serde_json::Value as Json;

use crate::command::ROOT;
use crate::cuda_driver::Driver;

/// Answers for a GPU that it does not know everything about.
const NVIDIA_SMI: &str = r#"#!/bin/sh
case "$*" in
*memory.used*) echo "1024, [N/A], 16, 1980" ;;
*) echo "A GPU, 580.1, 143771, 9.0, 5, 16" ;;
esac
"#;

/// Runs the program and finds nothing.
const COMPUTE_SANITIZER: &str = r#"#!/bin/sh
shift 4
"$@" && echo "========= ERROR SUMMARY: 0 errors"
"#;

/// Has a GPU on which nothing works.
const BROKEN_MERGEFORGE: &str = r#"#!/bin/sh
case $1 in
--version) echo "mergeforge 0" ;;
devices) echo '{"devices": [{"id": "cuda:0", "name": "broken", "facts": {}}], "absent": {"wgpu": "none here"}}' ;;
check) echo '[{"kernels": [{"kernel": "gram", "inputs": "mixed", "launches": 1, "chunks": 1, "by_cpu": 0,
    "wrong": "error: a span differs"}]}]'; exit 5 ;;
*) echo "error: it is broken" >&2; exit 5 ;;
esac
"#;

/// A rehearsal of the tool in a folder that holds all programs it can find.
struct Rehearsal {
    folder: tempfile::TempDir,
    command: Command,
}

impl Rehearsal {
    fn new(binary: &Path) -> Self {
        // On a disk: cold reads are tried there.
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        // Where there is a torch, it must not meet this driver.
        fs::write(folder.path().join("torch.py"), "raise ImportError('hidden')\n").unwrap();
        let mut command = Command::new(python());
        command.arg(Path::new(ROOT).join("tools/gpu_check.py")).args(["--tiny", "--binary"]).arg(binary);
        command.arg("--out").arg(folder.path().join("results.tar.gz"));
        command.env("PATH", folder.path()).env("CUDA_HOME", "/nowhere").env("PYTHONPATH", folder.path());
        command.env("PYTHONDONTWRITEBYTECODE", "1");
        Self { folder, command }
    }

    /// Puts a program into the folder.
    fn program(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    /// Runs it: the exit code, and what the archive holds.
    fn run(mut self) -> (Option<i32>, Results) {
        let ended = self.command.output().expect("Python starts");
        let said = String::from_utf8_lossy(&ended.stderr);
        let unpacked = self.folder.path().join("unpacked");
        fs::create_dir(&unpacked).unwrap();
        let archive = self.folder.path().join("results.tar.gz");
        let tar = Command::new("tar").arg("-xzf").arg(archive).arg("-C").arg(&unpacked).status();
        assert!(tar.unwrap().success(), "{said}");
        let read = |name| fs::read_to_string(unpacked.join(name)).unwrap();
        assert_eq!(String::from_utf8(ended.stdout).unwrap().trim(), read("results.md").trim());
        let mut files: Vec<String> = fs::read_dir(&unpacked)
            .unwrap()
            .map(|file| file.unwrap().file_name().into_string().unwrap())
            .collect();
        files.sort();
        (ended.status.code(), Results { json: serde_json::from_str(&read("results.json")).unwrap(), files })
    }
}

struct Results {
    json: Json,
    files: Vec<String>,
}

impl Results {
    fn steps(&self) -> &[Json] {
        self.json["steps"].as_array().unwrap()
    }

    /// How a step ended, and why.
    #[track_caller]
    fn ended(&self, name: &str) -> String {
        let step = self.steps().iter().find(|step| step["step"] == name);
        let step = step.unwrap_or_else(|| panic!("no {name} in {:#}", self.json));
        [&step["status"], &step["why"]].map(|word| word.as_str().unwrap_or_default()).join(" ")
    }

    /// A figure of a step.
    #[track_caller]
    fn figure(&self, name: &str, key: &str) -> f64 {
        let step = self.steps().iter().find(|step| step["step"] == name).unwrap();
        step["figures"][key].as_f64().unwrap_or_else(|| panic!("{name} has no {key}: {step:#}"))
    }
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

#[test]
fn every_step_works_where_the_gpus_are_the_cpu() {
    let mut rehearsal = Rehearsal::new(Path::new(env!("CARGO_BIN_EXE_mergeforge")));
    rehearsal.program("nvidia-smi", NVIDIA_SMI);
    rehearsal.program("compute-sanitizer", COMPUTE_SANITIZER);
    Driver::new().with_cublas().apply(&mut rehearsal.command);
    let disk = rehearsal.folder.path().join("disk");
    // The kernels themselves are checked in `cuda.rs` and `wgpu.rs`; what runs them again shows nothing new here.
    let skipped = "^(check wgpu|(init|mem|race)check of check|(linear|dare_ties) on wgpu)|direct";
    rehearsal.command.args(["--all", "--skip", skipped, "--disk"]).arg(disk);
    let (code, results) = rehearsal.run();
    for step in results.steps() {
        let name = step["step"].as_str().unwrap();
        let ended = results.ended(name);
        let expected = match name {
            _ if name.starts_with("mergekit") => "not run ImportError: hidden",
            _ if ended.ends_with("left out by --skip") => "not run",
            // Folders in which tests run may be in memory.
            "ties, cold, --reads copied" if ended.contains("in memory") => "not run",
            _ => "ok",
        };
        assert!(ended.starts_with(expected), "{name}: {ended}");
    }
    assert_eq!(code, Some(0));
    assert!(results.steps().len() > 40, "{} steps", results.steps().len());
    for (step, figure) in [
        ("ties on cuda", "seconds"),
        ("ties with no kernels", "seconds"),
        ("plain copies", "both_each_way"),
        ("write-combined memory", "read_all_threads"),
        ("ties, watched", "memory.used"),
    ] {
        assert!(results.figure(step, figure) > 0.0, "{step}");
    }
    assert!(results.figure("first use", "wait_seconds").is_finite());
    let kept = ["results.json", "results.md", "ties-cuda.html", "ties-cuda.trace.json.gz", "ties-wgpu.html"];
    assert!(kept.iter().all(|file| results.files.iter().any(|found| found == file)), "{:?}", results.files);
}

#[test]
fn without_a_gpu_nothing_fails_and_nothing_passes() {
    let mut rehearsal = Rehearsal::new(Path::new(env!("CARGO_BIN_EXE_mergeforge")));
    // The loaders take these for all drivers and devices that there are.
    for name in ["VK_DRIVER_FILES", "VK_ICD_FILENAMES", "CUDA_VISIBLE_DEVICES"] {
        rehearsal.command.env(name, "/nowhere");
    }
    let (code, results) = rehearsal.run();
    for step in results.steps() {
        let name = step["step"].as_str().unwrap();
        let expected = if ["version", "devices"].contains(&name) { "ok" } else { "not run" };
        assert_eq!(step["status"], expected, "{step:#}");
    }
    assert_eq!(results.ended("nvidia-smi"), "not run there is no nvidia-smi");
    assert_eq!(results.ended("check wgpu"), "not run the driver has no device");
    assert_eq!((code, results.json["targets"].as_array().unwrap().len()), (Some(0), 0));
}

#[test]
fn a_step_that_fails_is_noted_and_the_others_go_on() {
    let mut rehearsal = Rehearsal::new(Path::new("/nowhere"));
    let broken = rehearsal.program("broken", BROKEN_MERGEFORGE);
    rehearsal.command.arg("--binary").arg(broken);
    let (code, results) = rehearsal.run();
    let starts =
        |name: &str, with: &str| assert!(results.ended(name).starts_with(with), "{}", results.ended(name));
    starts("check cuda", "failed error: a span differs");
    starts("check wgpu", "not run none here");
    starts("kernels cuda", "failed");
    starts("ties on cuda", "failed");
    starts("first use", "failed");
    starts("one file or many", "not run there are no models");
    assert!(results.ended("ties on cuda").ends_with("error: it is broken"));
    assert_eq!(code, Some(1));
}

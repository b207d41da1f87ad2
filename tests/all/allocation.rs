//! Memory and threads that cannot be had: a merge ends with an error and leaves nothing, a bench does with the threads that
//! there are or says that they are too few.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use mergeforge::bench::floor::{Floor, copies};
use mergeforge::bench::shapes::Shape;
use mergeforge::bench::synth::{Spec, write};
use mergeforge::bench::tensors;
use mergeforge::dtype::Float;
use mergeforge::error::Kind;

use crate::command::{self, Ended, assert_nothing_left, mergeforge};

/// A stack for which no machine has room. `RUST_MIN_STACK` is what threads get that ask for no other.
const NO_STACK: &str = "70368744177664";

/// A model of one tensor of 64 Mi bfloat16 elements, all of them holes in the file.
fn sparse_model(folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("config.json"), r#"{"architectures": ["LlamaForCausalLM"]}"#).unwrap();
    let header = r#"{"w":{"dtype":"BF16","shape":[16384,4096],"data_offsets":[0,134217728]}}"#;
    let path = folder.join("model.safetensors");
    fs::write(&path, [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat()).unwrap();
    let len = 8 + header.len() as u64 + (128 << 20);
    File::options().write(true).open(path).unwrap().set_len(len).unwrap();
}

/// Merges in one chunk, in a process that is given so much memory.
fn merge_within(folder: &Path, config: &str, limit_kib: u32) -> Ended {
    let config = command::config(folder, config);
    let program = mergeforge();
    let mut limited = Command::new("sh");
    limited.args(["-c", &format!("ulimit -v {limit_kib}; exec \"$@\""), "sh"]).arg(program.get_program());
    for (name, value) in program.get_envs() {
        value.map(|value| limited.env(name, value));
    }
    // Else the C library keeps 64 MB of addresses for each thread, where it can.
    limited.env("MALLOC_ARENA_MAX", "1");
    limited.arg("merge").args([&config, &folder.join("out")]);
    limited.args(["--device", "cpu", "--threads", "1", "--chunk-tiles", "65536", "--host-memory", "4GiB"]);
    limited.args(["--no-cache", "--quiet"]).output().unwrap().into()
}

#[test]
fn memory_that_cannot_be_had_is_an_error_that_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["base", "a", "b"] {
        sparse_model(&folder.path().join(name));
    }
    let model = |name| folder.path().join(name).display().to_string();
    let (base, a, b) = (model("base"), model("a"), model("b"));
    let linear = format!(
        "merge_method: linear\nparameters: {{weight: 0.5}}\nmodels: [{{model: {a}}}, {{model: {b}}}]\n"
    );
    let ties = format!(
        "merge_method: ties\nbase_model: {base}\nparameters: {{density: 0.3, weight: 0.5}}\n\
         models: [{{model: {a}}}, {{model: {b}}}]\n"
    );
    // The program by itself takes less than 60 MB, and an input of the chunk 134 MB: what is asked for in vain is far more
    // than what is left, so that all that is small can be had.
    let cases = [
        ("an input", &linear, 120_000),
        ("an input that is held", &ties, 120_000),
        ("the results", &format!("{linear}out_dtype: float32\n"), 440_000),
    ];
    for (what, config, limit_kib) in cases {
        let ended = merge_within(folder.path(), config, limit_kib);
        let hint = "hint: give the merge less with --host-memory, or use fewer --threads";
        let megabytes = if what == "the results" { "268.4 MB" } else { "134.2 MB" };
        ended.failed(5, &[&format!("error: cannot get {megabytes} of the machine's memory"), hint]);
        assert_nothing_left(folder.path());
    }
    merge_within(folder.path(), &linear, 4_000_000).succeeded();
}

#[test]
fn kernels_are_timed_although_no_thread_can_be_started() {
    let arguments = ["bench", "kernels", "--device", "cpu", "--mebi-elements", "1", "--repeat", "1"];
    let ended: Ended = mergeforge().env("RUST_MIN_STACK", NO_STACK).args(arguments).output().unwrap().into();
    assert!(ended.succeeded().stdout.contains("weighted_sum"));
}

/// Says that this process is one in which no thread can be started.
const WITHOUT_THREADS: &str = "MERGEFORGE_TEST_WITHOUT_THREADS";

#[test]
fn a_bench_knows_how_many_threads_it_has() {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "allocation::inside_benches_without_threads", "--nocapture"])
        .env("RUST_MIN_STACK", NO_STACK)
        .env(WITHOUT_THREADS, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
    assert!(said.contains("all was tried"), "{said}");
}

/// Runs in the process of the test above, and is empty elsewhere.
#[test]
fn inside_benches_without_threads() {
    if std::env::var_os(WITHOUT_THREADS).is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (one, three) = (folder.path().join("one"), folder.path().join("three"));
    let shape = Shape::find("tiny", None).unwrap();
    let spec = Spec { shape, float: Float::BF16, seed: 1, shard_bytes: Some(5_000_000_000) };
    for (folder, threads) in [(&one, 1), (&three, 3)] {
        write(&spec, folder, &[0], threads, &|| false).unwrap();
    }
    let weights = |folder: &Path| fs::read(folder.join("base/model.safetensors")).unwrap();
    assert!(weights(&one) == weights(&three), "fewer threads gave other bytes");

    let floor = Floor::new(&[one.join("base")], spec.file_bytes()).unwrap();
    let output = folder.path().join("floor");
    floor.run(&output, false, 1, &|| false).unwrap();
    let error = floor.run(&output, false, 3, &|| false).unwrap_err();
    assert_eq!((error.kind, error.message.as_str()), (Kind::Device, "only 1 of 3 threads can be started"));
    assert!(!output.exists());

    assert_eq!(copies(3, 1 << 20, 2).len(), 2);
    assert!(tensors(1 << 16).iter().all(|tensor| tensor.len() == 1 << 16));
    println!("all was tried");
}

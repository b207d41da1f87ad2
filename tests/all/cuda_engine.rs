//! The CUDA driver of `tests/cuda/` itself: that kernels and streams do there what they do on a device, and
//! that each kind of mistake is found.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use crate::command::ROOT;
use crate::cuda_driver::{Driver, Sanitizer};

fn selftest() -> PathBuf {
    Path::new(ROOT).join("tests/cuda/selftest")
}

fn plain() -> &'static Driver {
    static DRIVER: OnceLock<Driver> = OnceLock::new();
    DRIVER.get_or_init(|| Driver::with_kernels(&selftest()))
}

/// `host.cpp`, ready to run a scenario.
fn host(driver: &Driver, scenario: &str) -> Command {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    let program = PROGRAM.get_or_init(|| plain().program(&selftest().join("host.cpp")));
    let mut command = Command::new(program);
    driver.apply(&mut command).arg(scenario);
    command
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[track_caller]
fn assert_right(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(
        output.status.success() && stdout(&output).contains("all right") && output.stderr.is_empty(),
        "{command:?}: {}: {}{}",
        output.status,
        stdout(&output),
        stderr(&output)
    );
}

/// That a scenario ends with this code and says all of this, on stdout or stderr.
#[track_caller]
fn assert_fails(command: &mut Command, code: i32, says: &[&str]) {
    let output = command.output().unwrap();
    let said = stdout(&output) + &stderr(&output);
    assert_eq!(output.status.code(), Some(code), "{command:?}: {said}");
    for part in says {
        assert!(said.contains(part), "{command:?}: no `{part}` in {said}");
    }
}

/// How many of a hundred seeds give a scenario wrong values; however else it fails, the test fails.
fn wrong_seeds(scenario: &str, ignore_waits: &str) -> usize {
    let wrong = |seed: &u32| {
        let mut command = host(plain(), scenario);
        command.env("FAKE_CUDA_SEED", seed.to_string()).env("FAKE_CUDA_IGNORE_WAITS", ignore_waits);
        let output = command.output().unwrap();
        match output.status.code() {
            Some(0) => false,
            Some(1) if stdout(&output).contains("wrong: what ") => true,
            _ => panic!("{scenario}, seed {seed}: {}{}", stdout(&output), stderr(&output)),
        }
    };
    (0..100).filter(wrong).count()
}

#[test]
fn threads_meet_as_on_a_device() {
    for scenario in ["barriers", "warps", "atomics", "scale", "poison"] {
        for seed in 0..10 {
            assert_right(host(plain(), scenario).env("FAKE_CUDA_SEED", seed.to_string()));
        }
    }
}

/// Kernel, atomic instructions of warps in shared memory, lanes, passes.
#[test]
fn lanes_that_wait_for_each_other_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    for seed in 0..4 {
        let log = folder.path().join(seed.to_string());
        let mut atomics = host(plain(), "atomics");
        assert_right(atomics.env("FAKE_CUDA_SEED", seed.to_string()).env("FAKE_CUDA_CONFLICTS", &log));
        // 4 blocks of 8 warps, whose lanes change 16 words; 2 blocks of 2 warps in 4 rounds, half of the lanes each time.
        let expected = ["total 0 0 0", "histogram 32 1024 64", "in_turns 16 256 256"];
        assert_eq!(std::fs::read_to_string(&log).unwrap().lines().collect::<Vec<_>>(), expected);
    }
}

#[test]
fn streams_that_wait_are_right_under_every_seed() {
    assert_eq!(wrong_seeds("pipeline", "0"), 0);
    assert_eq!(wrong_seeds("reuse", "0"), 0);
}

#[test]
fn a_missing_wait_is_wrong_under_some_seeds() {
    for scenario in
        ["pipeline without the kernel's event", "pipeline without the slot's event", "reuse without waiting"]
    {
        let wrong = wrong_seeds(scenario, "0");
        assert!(wrong >= 25, "{scenario}: only {wrong} of 100 seeds show it");
    }
    let wrong = wrong_seeds("pipeline", "1");
    assert!(wrong >= 25, "only {wrong} of 100 seeds show that waits are ignored");
}

#[test]
fn threads_that_cannot_go_on_fail_the_launch() {
    let launch_failed = "CUDA_ERROR_LAUNCH_FAILED";
    for (kernel, says) in [
        ("half_at_a_barrier", "wait at different barriers: wrong.cu:"),
        ("lane_waits_for_ended", "names lanes that have ended"),
        ("lane_not_in_its_mask", "whose mask does not name it"),
        ("lane_never_comes", "have ended"),
        ("barrier_against_shuffle", "deadlock in kernel barrier_against_shuffle"),
        ("different_operations", "different warp operations"),
    ] {
        assert_fails(&mut host(plain(), kernel), 3, &[launch_failed, says]);
    }
}

#[test]
fn a_barrier_that_is_missing_is_found() {
    let watched = Driver::build(&selftest(), Some(Sanitizer::Thread));
    for scenario in ["barriers", "warps", "atomics", "scale"] {
        assert_right(&mut host(&watched, scenario));
    }
    for (kernel, says) in [
        ("no_barrier_before_reading", "shared memory"),
        ("no_barrier_before_writing", "shared memory"),
        ("warp_without_syncwarp", "shared memory"),
        ("shuffle_for_a_barrier", "shared memory"),
        ("count_without_atomics", "device memory"),
        ("atomic_and_plain", "device memory"),
        ("blocks_write_the_same", "device memory"),
        ("neighbours_in_a_word", "device memory"),
    ] {
        assert_fails(&mut host(&watched, kernel), 134, &["race in ", says, kernel, "(wrong.cu:"]);
    }
    assert_right(&mut host(&watched, "warp_with_syncwarp"));
}

#[test]
fn an_access_out_of_bounds_is_found() {
    let watched = Driver::build(&selftest(), Some(Sanitizer::Address));
    for scenario in ["barriers", "warps", "atomics", "scale"] {
        assert_right(&mut host(&watched, scenario));
    }
    for kernel in [
        "write_past_the_end",
        "read_far_away",
        "shared_past_the_end",
        "shared_by_pointer",
        "shared_of_a_template",
        "local_index",
    ] {
        assert_fails(&mut host(&watched, kernel), 134, &["out of bounds", kernel, "(wrong.cu:"]);
    }
    // Without a watch, the system still tells of addresses that are none, and the guard zones of a write.
    assert_fails(&mut host(plain(), "follow_an_address"), 134, &["no memory", "follow_an_address"]);
    assert_fails(&mut host(plain(), "write_past_the_end"), 134, &["out of bounds", "device memory"]);
}

#[test]
fn host_threads_and_events_are_as_on_a_device() {
    for seed in 0..20 {
        assert_right(host(plain(), "host threads").env("FAKE_CUDA_SEED", seed.to_string()));
    }
    assert_right(&mut host(plain(), "events"));
    assert_fails(&mut host(plain(), "without context"), 3, &["CUDA_ERROR_INVALID_CONTEXT"]);
}

#[test]
fn copies_stay_within_their_memory() {
    let says = ["101 bytes at offset 0 of an allocation of 100 bytes", "CUDA_ERROR_INVALID_VALUE"];
    assert_fails(&mut host(plain(), "copy too far"), 3, &says);
}

#[test]
fn calls_fail_as_planned() {
    let folder = tempfile::tempdir().unwrap();
    let (count, log) = (folder.path().join("count"), folder.path().join("launches"));
    let mut counted = host(plain(), "pipeline");
    assert_right(counted.env("FAKE_CUDA_COUNT_FILE", &count).env("FAKE_CUDA_LAUNCH_LOG", &log));
    let calls: u64 = std::fs::read_to_string(&count).unwrap().trim().parse().unwrap();
    assert!(calls > 100, "{calls} calls");
    let launches = std::fs::read_to_string(&log).unwrap();
    assert_eq!(launches, "add_one 2 1 1 128 1 1\n".repeat(12));

    for call in [1, 2, 7, 50, calls] {
        let call = call.to_string();
        let mut once = host(plain(), "pipeline");
        assert_fails(once.env("FAKE_CUDA_FAIL_CALL", &call), 3, &["CUDA_ERROR_UNKNOWN"]);
        let mut memory = host(plain(), "pipeline");
        memory.env("FAKE_CUDA_FAIL_CALL", &call).env("FAKE_CUDA_FAIL_CODE", "2");
        assert_fails(&mut memory, 3, &["CUDA_ERROR_OUT_OF_MEMORY"]);
        let mut lost = host(plain(), "pipeline");
        assert_fails(lost.env("FAKE_CUDA_LOST_AFTER", &call), 3, &["CUDA_ERROR_LAUNCH_FAILED"]);
    }
    let after = (calls + 1).to_string();
    assert_right(host(plain(), "pipeline").env("FAKE_CUDA_FAIL_CALL", &after));
    let mut little = host(plain(), "pipeline");
    assert_fails(little.env("FAKE_CUDA_MEMORY", "1000"), 3, &["cuMemAlloc", "CUDA_ERROR_OUT_OF_MEMORY"]);
    let mut little = host(plain(), "pipeline");
    assert_fails(little.env("FAKE_CUDA_HOST_MEMORY", "1000"), 3, &["cuMemHostAlloc", "OUT_OF_MEMORY"]);
    let mut none = host(plain(), "pipeline");
    assert_fails(none.env("FAKE_CUDA_DEVICES", "0"), 3, &["CUDA_ERROR_NO_DEVICE"]);
}

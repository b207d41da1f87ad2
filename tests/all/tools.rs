//! The other tools that measure and count: that they run, on the smallest models, and fill their tables. `gpu_check.rs` has the
//! one for GPUs.

use std::path::Path;
use std::process::Command;

use crate::command::ROOT;

/// What a tool in Python prints.
#[track_caller]
pub fn printed(tool: &str, arguments: &[&str]) -> String {
    let mut command = Command::new("python3");
    command.arg(Path::new(ROOT).join("tools").join(tool)).args(arguments).env("PYTHONDONTWRITEBYTECODE", "1");
    let ended = command.output().expect("Python starts");
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    String::from_utf8(ended.stdout).unwrap()
}

#[test]
fn compare_measures_every_merge_beside_the_floor() {
    let folder = tempfile::tempdir().unwrap();
    let (program, models) = (env!("CARGO_BIN_EXE_mergeforge"), folder.path().to_str().unwrap());
    let flags = ["--shape", "tiny", "--rounds", "1", "--dir", models, "--mergeforge", program];
    let page = printed("compare.py", &flags);
    for merge in ["linear", "slerp", "ties", "dare_ties", "ties_4"] {
        let row = page.lines().find(|line| line.starts_with(&format!("| {merge} |")));
        assert!(row.is_some_and(|row| row.contains(" % |")), "{page}");
    }
}

#[test]
fn instructions_of_planted_code_are_counted() {
    assert_eq!(printed("kernel_cost.py", &["--self-test"]), "planted changes found\n");
}

/// Numbers that mean nothing are refused by their options.
#[test]
fn the_simulation_refuses_what_it_cannot_divide_by() {
    for (option, value) in
        [("--nodes", "0"), ("--nodes", "-1"), ("--cores", "x"), ("--store-read", "0"), ("--shard-gb", "nan")]
    {
        let mut command = Command::new("python3");
        let ended =
            command.arg(Path::new(ROOT).join("tools/scale.py")).args([option, value]).output().unwrap();
        let talk = String::from_utf8(ended.stderr).unwrap();
        let refusal = format!("error: argument {option}: {value} is not a ");
        assert!(ended.status.code() == Some(2) && talk.contains(&refusal), "{talk}");
    }
    assert!(printed("scale.py", &["--check-page", "docs/scale.md"]).is_empty());
}

#[test]
fn the_pictures_of_methods_are_what_merges_give() {
    assert_eq!(
        printed("method_pictures.py", &["--mergeforge", env!("CARGO_BIN_EXE_mergeforge"), "--check"]),
        ""
    );
}

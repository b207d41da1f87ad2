//! `cargo fast` leaves out what needs g++ or lavapipe, and nothing else.

use std::collections::BTreeSet;
use std::path::Path;

use crate::command::ROOT;

/// What a file says that needs g++ or lavapipe.
const SAYS: [&str; 2] = ["use crate::cuda_driver::", "wgpu:llvm"];

/// The module that holds them, as `main.rs` has it and as `.cargo/config.toml` names it.
const LEFT_OUT: &str = "\nmod accelerators {\n";

#[test]
fn fast_tests_need_neither_gpp_nor_lavapipe() {
    let read = |path: &str| std::fs::read_to_string(Path::new(ROOT).join(path)).unwrap();
    let alias = read(".cargo/config.toml");
    assert!(alias.contains("\nfast = \"test --lib --test all -- --skip accelerators::\"\n"), "{alias}");
    let main = read("tests/all/main.rs");
    let (_, left_out) = main.split_once(LEFT_OUT).expect("main.rs has the module");
    let (left_out, _) = left_out.split_once("\n}").unwrap();
    let left_out: BTreeSet<String> = left_out
        .lines()
        .map(|line| line.trim().strip_prefix("mod ").and_then(|rest| rest.strip_suffix(';')).unwrap().into())
        .collect();
    let mut needy = BTreeSet::new();
    for entry in std::fs::read_dir(Path::new(ROOT).join("tests/all")).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() && !path.ends_with(file!().rsplit('/').next().unwrap()) {
            let text = std::fs::read_to_string(&path).unwrap();
            if SAYS.iter().any(|says| text.contains(says)) {
                needy.insert(path.file_stem().unwrap().to_str().unwrap().to_string());
            }
        }
    }
    assert_eq!(left_out, needy);
}

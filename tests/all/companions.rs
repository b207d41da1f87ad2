//! The files beside the weights: every file of the donor is in the output, made anew, or listed in the plan as left out.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::Value as Json;

use crate::command::{self, assert_nothing_left, merge};
use crate::faults::Case;

/// A sentence-embedding model as sentence-transformers saves it, and what people keep beside it.
const COPIED: &[&str] = &[
    "1_Pooling/config.json",
    "2_Dense/config.json",
    "2_Dense/model.safetensors",
    "3_Normalize/nested/config.json",
    "LICENSE",
    "config_sentence_transformers.json",
    "modules.json",
    "sentence_bert_config.json",
    "tokenizer.json",
    "vocab.txt",
];
const LEFT_OUT: &[&str] = &[
    ".gitattributes",
    "2_Dense/pytorch_model.bin",
    "README.md",
    "id_rsa",
    "onnx/model.onnx",
    "onnx/ort_config.json",
    "openvino/openvino_model.bin",
    "optimizer.pt",
    "pytorch_model.bin",
];

fn sentence_model() -> Case {
    let case = Case::new();
    for name in COPIED.iter().chain(LEFT_OUT) {
        let path = case.path().join("a").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("{name}\r\n\0 of the donor")).unwrap();
    }
    case
}

/// The files below a folder, by their paths in it.
fn files(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    entries
        .flat_map(|entry| {
            let name = entry.file_name().into_string().unwrap();
            if entry.path().is_dir() {
                files(&entry.path()).into_iter().map(|file| format!("{name}/{file}")).collect()
            } else {
                vec![name]
            }
        })
        .collect()
}

#[test]
fn every_file_of_the_donor_is_copied_or_listed() {
    let case = sentence_model();
    let plan: Json =
        serde_json::from_str(&command::plan(case.path(), &case.config(), &["--json"]).succeeded().stdout)
            .unwrap();
    let listed = |key: &str| -> Vec<String> {
        let files = plan["files"][key].as_array().unwrap().iter();
        files.map(|file| file["file"].as_str().unwrap().to_owned()).collect()
    };
    let (copied, left) = (listed("copied"), listed("left_out"));
    assert_eq!(copied, COPIED);
    assert!(plan["files"]["left_out"].as_array().unwrap().iter().all(|file| file["reason"].is_string()));
    let merged = merge(case.path(), &case.config(), &[]).succeeded();
    let (donor, out) = (case.path().join("a"), case.path().join("out"));
    for name in COPIED {
        assert_eq!(fs::read(out.join(name)).unwrap(), fs::read(donor.join(name)).unwrap(), "{name}");
    }
    let made = ["README.md", "config.json", "mergeforge.json", "mergekit_config.yml", "model.safetensors"];
    let expected: BTreeSet<String> = made.iter().chain(COPIED).map(|name| (*name).to_owned()).collect();
    assert_eq!(files(&out), expected);
    for file in files(&donor) {
        let is_listed =
            left.iter().any(|left| *left == file || left.ends_with('/') && file.starts_with(left));
        assert!(is_listed || COPIED.contains(&&*file) || made.contains(&&*file), "{file} got lost");
    }
    for says in
        ["2_Dense/model.safetensors: weights of modules of their own", "that are left out: .gitattributes, "]
    {
        assert!(merged.stderr.contains(says), "no `{says}` in {}", merged.stderr);
    }
}

#[test]
fn a_plan_has_few_lines_for_many_files() {
    let case = sentence_model();
    let lines =
        |case: &Case| command::plan(case.path(), &case.config(), &[]).succeeded().stdout.lines().count();
    let before = lines(&case);
    let pictures = case.path().join("a/figures");
    fs::create_dir(&pictures).unwrap();
    for i in 0..300 {
        fs::write(pictures.join(format!("{i}.png")), "").unwrap();
        fs::write(case.path().join(format!("a/{i}.png")), "").unwrap();
        fs::write(case.path().join(format!("a/{i}.json")), "{}").unwrap();
    }
    assert_eq!(lines(&case), before);
    let plan = command::plan(case.path(), &case.config(), &[]).succeeded().stdout;
    let says = |parts: &[&str]| plan.lines().any(|line| parts.iter().all(|part| line.contains(part)));
    assert!(says(&["copied   310 file(s)", " and 304 more"]), "{plan}");
    assert!(says(&["left out", "/a: ", ".png", " more (nothing that models are loaded with)"]), "{plan}");
    assert!(says(&["left out", "onnx/, openvino/", "(weights that are not merged)"]), "{plan}");
}

#[test]
fn files_that_cannot_be_copied_are_refused_by_the_plan() {
    let case = sentence_model();
    fs::remove_file(case.path().join("a/1_Pooling/config.json")).unwrap();
    fs::create_dir(case.path().join("secrets")).unwrap();
    let refused = |name: &str, says: &str| {
        let link = case.path().join("a").join(name);
        std::os::unix::fs::symlink(case.path().join("secrets"), &link).unwrap();
        command::plan(case.path(), &case.config(), &[]).failed(3, &[name, says, "hint: "]);
        merge(case.path(), &case.config(), &["-q"]).failed(3, &[name, says]);
        assert_nothing_left(case.path());
        fs::remove_file(link).unwrap();
    };
    refused("1_Pooling/config.json", "outside of the model's folder");
    refused("modeling_x.py", "outside of the model's folder");
    // What no model needs does no harm.
    std::os::unix::fs::symlink(case.path().join("secrets"), case.path().join("a/data")).unwrap();
    merge(case.path(), &case.config(), &["-q"]).succeeded();
    assert!(!case.path().join("out/data").exists());
}

#[test]
fn what_a_killed_merge_copied_is_cleared_and_nothing_else() {
    let case = sentence_model();
    let (partial, out) = (case.path().join("out.partial"), case.path().join("out"));
    // As a merge leaves it that was killed after its last file: the output, its lock still there.
    let leftover = || {
        merge(case.path(), &case.config(), &["-q"]).succeeded();
        fs::rename(&out, &partial).unwrap();
        let mark = "A merge by mergeforge writes here. What is left when it has ended is cleared by the next merge, or taken over.\n";
        let names = files(&partial).into_iter().filter(|name| name != "model.safetensors");
        let lines: String = names.map(|name| name + "\n").collect();
        fs::write(partial.join(".lock"), format!("{mark}{lines}")).unwrap();
    };
    leftover();
    merge(case.path(), &case.config(), &["-q"]).succeeded();
    assert!(!partial.exists() && !out.join(".lock").exists());
    fs::remove_dir_all(&out).unwrap();
    for mine in ["notes.txt", "tokenizer_config.json", "2_Dense/notes.json", "3_Normalize/nested/deep"] {
        leftover();
        let mine = partial.join(mine);
        fs::write(&mine, "mine").unwrap();
        merge(case.path(), &case.config(), &["-q"])
            .failed(4, &["out.partial is in the way", "no merge wrote"]);
        assert_eq!(fs::read_to_string(&mine).unwrap(), "mine");
        assert!(partial.join("1_Pooling/config.json").exists());
        fs::remove_dir_all(&partial).unwrap();
    }
}

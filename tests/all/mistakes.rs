//! Mistakes that people make in configs, and all that `mergeforge plan` says of each: `mistakes.txt` has them side by side. What
//! mergekit takes is taken, with a warning where it means something else than it seems to.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use crate::command::{Ended, ROOT, mergeforge};

/// Cases as `== what it is`, the config, and below `=>` the exit code and what is said.
const CASES: &str = include_str!("mistakes.txt");

/// Plans a config beside the example models, which go by the names of their folders.
fn plan(config: &[u8]) -> Ended {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("c.yml");
    fs::write(&file, config).unwrap();
    let models = Path::new(ROOT).join("examples/models");
    let ended = Ended::from(mergeforge().current_dir(models).arg("plan").arg(&file).output().unwrap());
    let said = ended.stderr.replace(&format!("{}/", folder.path().display()), "");
    Ended { stderr: said, ..ended }
}

fn said(config: &[u8]) -> String {
    let ended = plan(config);
    format!("exit code {}\n{}", ended.code.unwrap_or(-1), ended.stderr)
}

#[test]
fn every_mistake_is_named_with_the_way_out() {
    let (mut found, mut differ) = (String::new(), Vec::new());
    let cases = format!("\n{CASES}");
    for case in cases.split("\n== ").skip(1) {
        let (name, case) = case.split_once('\n').unwrap();
        let (config, expected) = case.split_once("=>\n").unwrap();
        let said = said(config.as_bytes());
        if said.trim_end() != expected.trim_end() {
            differ.push(name);
        }
        found += &format!("== {name}\n{config}=>\n{said}\n");
    }
    if !differ.is_empty() {
        let file = std::env::temp_dir().join("mistakes.txt");
        fs::write(&file, found).unwrap();
        panic!("{differ:?}: what is said now is in {}", file.display());
    }
    assert!(cases.split("\n== ").count() > 100, "the cases are read");
}

/// Ways to save the same config that change nothing.
#[test]
fn line_ends_and_marks_of_editors_change_nothing() {
    let config = fs::read_to_string(Path::new(ROOT).join("examples/ties.yml")).unwrap();
    let config = config.replace("examples/models/", "");
    let plain = plan(config.as_bytes()).succeeded();
    for same in [config.replace('\n', "\r\n"), format!("\u{feff}{config}"), format!("---\n{config}...\n")] {
        assert_eq!(plan(same.as_bytes()).succeeded().stdout, plain.stdout, "{same:?}");
    }
}

#[test]
fn text_in_another_encoding_is_named_where_it_begins() {
    let latin = "# F\u{fc}r\nmerge_method: linear\n".chars().map(|c| u8::try_from(c).unwrap());
    let expected = "exit code 2\nerror: c.yml:1:4: from here on this is not text in UTF-8\n\
                    hint: save it as UTF-8; comments with `ü` or `é` are often the reason\n";
    assert_eq!(said(&latin.collect::<Vec<u8>>()), expected);
    let wide: Vec<u8> = "\u{feff}merge_method: linear\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let expected = "exit code 2\nerror: c.yml:1:1: this is text in UTF-16\n\
                    hint: save it as UTF-8, as the editor's `Save as` offers\n";
    assert_eq!(said(&wide), expected);
}

/// Of many things the first few are named on a terminal, and all of them in JSON.
#[test]
fn json_names_every_key_that_is_ignored() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("c.yml");
    let keys = (0..9).map(|i| format!("k{i}: 1\n")).collect::<Vec<_>>().concat();
    let models = "models:\n- {model: medical, a: 1, parameters: {weight: 1}}\n- {model: chat, a: 1}\n";
    let rest = "parameters: {weight: 1, wieght: 2}\ntokeniser_source: base\n";
    let config = format!("merge_method: linear\n{keys}{models}{rest}");
    fs::write(&file, config).unwrap();
    let models = Path::new(ROOT).join("examples/models");
    let plan = mergeforge().current_dir(models).args(["plan", "--json"]).arg(&file).output().unwrap();
    let plan = Ended::from(plan).succeeded();
    let json: serde_json::Value = serde_json::from_str(&plan.stdout).unwrap();
    let warnings: Vec<_> = json["warnings"].as_array().unwrap().iter().map(|w| w.as_str().unwrap()).collect();
    let has = |words: &str| warnings.iter().any(|warning| warning.ends_with(words));
    assert!(has("c.yml:15:1: unknown key `tokeniser_source` (did you mean `tokenizer_source`?) is ignored"));
    assert!(has("c.yml:12:20: unknown key `a` (twice) is ignored"), "{warnings:?}");
    assert!(
        (0..9).all(|i| has(&format!("c.yml:{}:1: unknown key `k{i}` is ignored", i + 2))),
        "{warnings:?}"
    );
    assert!(has("linear has no parameter `wieght`: it is ignored"), "{warnings:?}");
    assert_eq!(warnings.len(), 12, "{warnings:?}");
}

#[test]
fn a_folder_whose_name_reads_as_a_model_and_an_adapter_is_named_in_the_long_form() {
    let folder = TempDir::new().unwrap();
    let said = |config: &str| {
        fs::write(folder.path().join("c.yml"), config).unwrap();
        Ended::from(mergeforge().current_dir(&folder).args(["plan", "c.yml"]).output().unwrap()).stderr
    };
    let config = "merge_method: passthrough\nmodels: [{model: x+y}]\n";
    assert!(said(config).contains("hint: run it where the Hub can be reached"), "{}", said(config));
    fs::create_dir(folder.path().join("x+y")).unwrap();
    let hint = "hint: there is x+y: a path that contains `+` or `@` is written {model: {path: x+y}}";
    assert!(said(config).contains(hint), "{}", said(config));
    let long = config.replace("x+y", "{model: {path: x+y}}");
    assert!(!said(&long).contains("hint: there is"), "{}", said(&long));
    assert!(said(&long).contains("x+y"), "{}", said(&long));
}

#[test]
fn the_commands_of_mergekit_are_known_by_their_names() {
    let help = |command: &str| {
        Ended::from(mergeforge().args([command, "--help"]).output().unwrap()).succeeded().stdout
    };
    for (theirs, ours) in [
        ("mergekit-yaml", "merge"),
        ("mergekit-pytorch", "merge"),
        ("mergekit-moe", "moe"),
        ("mergekit-multi", "multi"),
        ("mergekit-extract-lora", "extract-lora"),
    ] {
        assert_eq!(help(theirs), help(ours));
    }
}

//! Outputs made in parts: whatever their number, order, threads and accidents, what is put together has the bytes of one merge.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use mergeforge::error::{Error, Kind};
use mergeforge::parts::finish;
use mergeforge::stream::Watch;
use safetensors::Dtype;
use serde_json::Value;
use tempfile::TempDir;

use crate::adapters;
use crate::command::{self, Ended, ROOT, assert_nothing_left, mergeforge};
use crate::models::{self, PLAIN, Random, Tensors, stored, weights};

/// A merge: the words of its command, in which OUT stands for the output.
struct Case {
    folder: TempDir,
    words: Vec<String>,
}

/// The files of a folder, by their paths from it on.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let (mut found, mut folders) = (BTreeMap::new(), vec![folder.to_path_buf()]);
    while let Some(inside) = folders.pop() {
        for entry in fs::read_dir(&inside).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.insert(path.strip_prefix(folder).unwrap().to_path_buf(), fs::read(&path).unwrap());
            }
        }
    }
    found
}

impl Case {
    fn new(config: &str, flags: &[&str]) -> Self {
        Self::of("merge", config, flags)
    }

    /// By a config in which DIR stands for the folder.
    fn of(command: &str, config: &str, flags: &[&str]) -> Self {
        Self::with(tempfile::tempdir().unwrap(), command, config, flags)
    }

    fn with(folder: TempDir, command: &str, config: &str, flags: &[&str]) -> Self {
        let dir = folder.path().display().to_string();
        let config = command::config(folder.path(), &config.replace("DIR", &dir)).display().to_string();
        let words = [command, &config, "OUT"].iter().chain(flags).map(|word| (*word).to_owned()).collect();
        Self { folder, words }
    }

    /// Models of the repository, in some ten files.
    fn example(method: &str, flags: &[&str]) -> Self {
        let text = fs::read_to_string(Path::new(ROOT).join("examples").join(method)).unwrap();
        Self::new(&text, &[&["--out-shard-size", "120kB"], flags].concat())
    }

    /// A merge that takes a while.
    fn slow() -> Self {
        Self::example("ties.yml", &["-j1", "--chunk-tiles", "1"])
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn out(&self) -> PathBuf {
        self.path().join("out")
    }

    fn part_folder(&self, part: &str) -> PathBuf {
        self.path().join("out.parts").join(part.replace('/', "-of-"))
    }

    fn command(&self, out: &Path, more: &[&str]) -> Command {
        let mut command = mergeforge();
        let out = out.display().to_string();
        command.args(self.words.iter().map(|word| if word == "OUT" { &out } else { word })).args(more);
        command
    }

    fn part_with(&self, part: &str, more: &[&str]) -> Ended {
        self.command(&self.out(), &[&["--part", part], more].concat()).output().unwrap().into()
    }

    fn part(&self, part: &str) -> Ended {
        self.part_with(part, &[])
    }

    fn all_parts(&self, of: usize) {
        for number in 1..=of {
            self.part(&format!("{number}/{of}")).succeeded();
        }
    }

    fn finish(&self, more: &[&str]) -> Ended {
        mergeforge().arg("finish").arg(self.out()).args(more).output().unwrap().into()
    }

    /// The files of the merge in one. The card is called like its folder.
    fn whole(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        Ended::from(self.command(&out, &[]).output().unwrap()).succeeded();
        files(&out)
    }

    /// That the output is there, with these files, and nothing else; it is removed.
    #[track_caller]
    fn assert_is(&self, whole: &BTreeMap<PathBuf, Vec<u8>>, what: &str) {
        let found = files(&self.out());
        let names = |files: &BTreeMap<PathBuf, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&found), names(whole), "{what}");
        for (name, bytes) in whole {
            assert!(found[name] == *bytes, "{what}: {} differs", name.display());
        }
        fs::remove_dir_all(self.out()).unwrap();
        assert_nothing_left(self.path());
    }
}

/// Models whose merge has NaN, infinities, an overflow and remarks.
fn odd() -> Case {
    let folder = tempfile::tempdir().unwrap();
    for (seed, name) in (1..).zip(["base", "a", "b"]) {
        let tensor = |i: u64| {
            let mut values = weights(3000, 10 * seed + i);
            if i % 2 == 1 && name == "a" {
                (values[5], values[6]) = (f32::NAN, f32::INFINITY);
            }
            (format!("model.layers.{i}.w.weight"), stored(Dtype::BF16, &[30, 100], &values))
        };
        let tensors: Tensors = (0..6).map(tensor).collect();
        models::write(&folder.path().join(name), &tensors, PLAIN);
    }
    let config = "merge_method: dare_ties\nbase_model: DIR/base\nmodels:\n- {model: DIR/a, parameters: {weight: 0.5, density: 0.5}}\n\
                  - {model: DIR/b, parameters: {weight: 0.5, density: 0.5}}\n";
    Case::with(folder, "merge", config, &["--out-shard-size", "7kB", "--seed", "3"])
}

fn adapted() -> Case {
    let folder = tempfile::tempdir().unwrap();
    let config = adapters::write_merge(folder.path(), "dare_ties");
    Case::with(folder, "merge", &config, &["--out-shard-size", "20kB"])
}

const UNION: &str = "merge_method: linear\nmodels:\n- {model: examples/models/medical, parameters: {weight: 0.5}}\n\
                     - {model: examples/models/chat, parameters: {weight: 0.5}}\ntokenizer_source: union\n";

const MIXTURE: &str = "base_model: examples/models/base\ngate_mode: random\nexperts: [{source_model: examples/models/chat}, \
                       {source_model: examples/models/medical}]\n";

/// The first document is merged while it is read.
const FUSED: &str = "name: first\nmerge_method: linear\nmodels:\n- {model: examples/models/medical, parameters: {weight: 0.5}}\n\
                     - {model: examples/models/chat, parameters: {weight: 0.5}}\n---\nmerge_method: linear\nmodels:\n\
                     - {model: first, parameters: {weight: 0.5}}\n- {model: examples/models/base, parameters: {weight: 0.5}}\n";

#[test]
fn any_number_of_parts_in_any_order_gives_the_bytes_of_one_merge() {
    let shards = ["--out-shard-size", "120kB"];
    let cases: [(&str, Case, &[usize]); 9] = [
        ("ties", Case::example("ties.yml", &[]), &[1, 2, 3, 7, 40]),
        ("random masks", Case::example("dare_ties.yml", &["--seed", "7"]), &[3]),
        (
            "one file",
            Case::new(&fs::read_to_string(Path::new(ROOT).join("examples/slerp.yml")).unwrap(), &[]),
            &[1, 2],
        ),
        ("odd values", odd(), &[2, 5]),
        ("adapters", adapted(), &[2]),
        ("vocabularies", Case::new(UNION, &shards), &[3]),
        ("experts", Case::of("moe", MIXTURE, &shards), &[4]),
        ("documents", Case::new(FUSED, &shards), &[2]),
        (
            "no files beside",
            Case::example("linear.yml", &["--no-copy-tokenizer", "--no-write-model-card"]),
            &[2],
        ),
    ];
    command::each(&cases, |(what, case, numbers)| {
        let whole = case.whole();
        let mut random = Random(11);
        for of in *numbers {
            let mut left: Vec<usize> = (1..=*of).collect();
            while !left.is_empty() {
                let number = left.swap_remove(random.next() as usize % left.len());
                // Each in its own way.
                let more: &[&str] =
                    [&["-j1"][..], &["-j3", "--chunk-tiles", "1"], &["--reads", "copied"]][number % 3];
                let ended = case.part_with(&format!("{number}/{of}"), more).succeeded();
                assert!(ended.stderr.contains(&format!("part {number}/{of} is made")), "{}", ended.stderr);
                assert!(!case.out().exists(), "{what}");
            }
            let ended = case.finish(&[]).succeeded();
            assert!(ended.stderr.contains(&format!("of {of} part(s)")), "{}", ended.stderr);
            let ended = case.part(&format!("{of}/{of}")).succeeded();
            assert!(ended.stderr.contains("is made already, and lies in "), "{what}: {}", ended.stderr);
            case.assert_is(&whole, &format!("{what} in {of} parts"));
        }
    });
}

#[test]
fn hashes_of_inputs_are_those_of_one_merge() {
    let case = Case::example("ties.yml", &["--hash-inputs"]);
    let whole = case.whole();
    // Only the first part reads the inputs whole; to the others they are the same.
    case.all_parts(2);
    case.finish(&["--verify"]).succeeded();
    case.assert_is(&whole, "with hashes");
    assert!(String::from_utf8_lossy(&whole[Path::new("mergeforge.json")]).contains("sha256_verified"));
    // Neither are they left out in silence, nor is more said than all parts were asked for.
    case.all_parts(2);
    let mut without = case;
    without.words.retain(|word| word != "--hash-inputs");
    for part in ["1/2", "2/2"] {
        without.part(part).failed(2, &["holds a part of a different merge (changed: --hash-inputs)"]);
    }
    for (one, other) in [("1/2", "2/2"), ("2/2", "1/2")] {
        without.part_with(one, &["--restart"]).succeeded();
        without.part_with(other, &["--restart", "--hash-inputs"]).succeeded();
        without.finish(&[]).failed(2, &["are parts of different merges (changed: --hash-inputs)"]);
    }
}

#[test]
fn a_part_that_lacks_a_file_beside_its_weights_is_made_again() {
    let case = Case::example("ties.yml", &[]);
    let whole = case.whole();
    case.all_parts(3);
    let beside = case.part_folder("1/3").join("beside");
    let lacks = |what: &str| {
        let ended = case.finish(&[]).failed(7, &["out: part 1 of 3 is not whole: ", what]);
        assert!(ended.stderr.contains("hint: make it, and finish then: `mergeforge "), "{}", ended.stderr);
        assert!(ended.stderr.contains("--part 1/3`"), "{}", ended.stderr);
        let ended = case.part("1/3").succeeded();
        assert!(ended.stderr.contains("part 1/3 is made: "), "{}", ended.stderr);
    };
    fs::remove_file(beside.join("tokenizer.json")).unwrap();
    lacks("it lacks beside/tokenizer.json");
    fs::write(beside.join("config.json"), "").unwrap();
    lacks("beside/config.json has 0 bytes, not ");
    fs::remove_dir_all(&beside).unwrap();
    lacks("it lacks beside/");
    case.finish(&[]).succeeded();
    case.assert_is(&whole, "with the files made again");
}

#[test]
fn a_part_without_its_record_is_made_again_and_nothing_foreign_is_removed() {
    let case = Case::example("ties.yml", &[]);
    let whole = case.whole();
    case.all_parts(3);
    for (part, restart) in [("1/3", &[][..]), ("2/3", &["--restart"])] {
        let (folder, number) = (case.part_folder(part), &part[..1]);
        let unread = format!("part {number} of 3 is there without a record that can be read: ");
        for broken in [None, Some("{}")] {
            let record = folder.join("part.json");
            match broken {
                None => fs::remove_file(&record).unwrap(),
                Some(text) => fs::write(&record, text).unwrap(),
            }
            let ended = case.finish(&[]).failed(7, &[&unread, "part.json", "hint: make it"]);
            assert!(ended.stderr.contains(&format!("--part {part}`")), "{}", ended.stderr);
            for foreign in ["mine.txt", "model-00099-of-00099.safetensors", "beside/mine.txt"] {
                fs::create_dir_all(folder.join("beside")).unwrap();
                fs::write(folder.join(foreign), "mine").unwrap();
                let before = files(&folder);
                for flags in [&[][..], &["--restart"]] {
                    let ended = case.part_with(part, flags).failed(4, &["-of-3 is in the way: it holds "]);
                    assert!(ended.stderr.contains("hint: move that away; or remove "), "{}", ended.stderr);
                }
                assert!(files(&folder) == before, "{part}, {foreign}: something was removed");
                fs::remove_file(folder.join(foreign)).unwrap();
            }
            if part != "1/3" {
                fs::remove_dir(folder.join("beside")).unwrap();
            }
            case.part_with(part, restart).succeeded();
        }
    }
    // Nor is it with a record: before, and not once all others are gone.
    let foreign = case.part_folder("3/3").join("mine.txt");
    fs::write(&foreign, "mine").unwrap();
    let before = files(&case.part_folder("3/3"));
    case.part_with("3/3", &["--restart"]).failed(4, &["3-of-3 is in the way: it holds \"mine.txt\""]);
    assert!(files(&case.part_folder("3/3")) == before, "something was removed");
    let ended = case.finish(&[]).succeeded();
    let says = "3-of-3 stays, with what is none of its files: mine.txt";
    assert!(ended.stderr.contains(says), "{}", ended.stderr);
    fs::remove_dir_all(case.path().join("out.parts")).unwrap();
    case.assert_is(&whole, "with the parts made again");
}

#[test]
fn a_part_goes_once_it_can_be_made_anew() {
    let case = Case::example("ties.yml", &[]);
    let whole = case.whole();
    case.all_parts(2);
    let before = files(&case.path().join("out.parts"));
    // Another process is at work, or something foreign is in the way.
    let partial = case.path().join("out.parts/1-of-2.partial");
    fs::create_dir(&partial).unwrap();
    fs::write(partial.join("x"), "").unwrap();
    case.part_with("1/2", &["--restart"]).failed(4, &["1-of-2.partial is in the way"]);
    fs::remove_dir_all(&partial).unwrap();
    assert!(files(&case.path().join("out.parts")) == before, "it is gone");
    case.part_with("1/2", &["--restart"]).succeeded();
    // Which people go on writing.
    fs::write(case.part_folder("1/2").join("beside/README.md"), "mine").unwrap();
    case.finish(&[]).succeeded();
    assert_eq!(fs::read(case.out().join("README.md")).unwrap(), b"mine");
    fs::write(case.out().join("README.md"), &whole[Path::new("README.md")]).unwrap();
    case.assert_is(&whole, "but for the card");
}

#[test]
fn all_odd_parts_are_named_before_missing_ones() {
    let case = Case::example("ties.yml", &[]);
    case.all_parts(6);
    fs::remove_dir_all(case.part_folder("6/6")).unwrap();
    for part in ["1/6", "3/6"] {
        case.part_with(part, &["--restart", "--seed", "7"]).succeeded();
    }
    // That it is not whole either is no matter yet.
    fs::remove_file(models::safetensors_files(&case.part_folder("3/6")).remove(0)).unwrap();
    let says = "2-of-6 and 1-of-6, 3-of-6 are parts of different merges (changed: the seed)";
    let ended = case.finish(&[]).failed(2, &[says, "hint: make 1-of-6, 3-of-6 again as 2-of-6 was made: "]);
    for command in ["--part 1/6 --restart`", "--part 3/6 --restart`"] {
        assert!(ended.stderr.contains(command), "{}", ended.stderr);
    }
    assert!(!ended.stderr.contains("--seed"), "as the others: {}", ended.stderr);
}

#[test]
fn what_is_begun_is_said_to_be_and_commands_work_from_another_folder() {
    let case = Case::example("ties.yml", &[]);
    let parts = case.path().join("out.parts");
    fs::create_dir_all(parts.join("1-of-2.partial")).unwrap();
    let says = ["out: part 2 of 2 is missing; part 1 of 2 is begun and not finished", "--part 1/2`"];
    case.finish(&[]).failed(7, &says);
    case.part("2/3").succeeded();
    fs::create_dir(parts.join("3-of-3.partial")).unwrap();
    let says = "out: part 1 of 3 is missing; part 3 of 3 is begun and not finished";
    let here = case.finish(&[]).failed(7, &[says, "then: `mergeforge merge "]);
    assert!(!here.stderr.contains("cd "), "{}", here.stderr);
    let elsewhere = mergeforge().arg("finish").arg(case.out()).current_dir(case.path()).output().unwrap();
    Ended::from(elsewhere).failed(7, &[says, &format!("`cd {ROOT} && mergeforge merge ")]);
}

#[test]
fn what_is_in_the_way_of_parts_and_what_stays_of_them_is_said() {
    let case = Case::example("ties.yml", &[]);
    let whole = case.whole();
    let parts = case.path().join("out.parts");
    let in_the_way = |says: &str| {
        case.part("1/2").failed(4, &[says, "hint: move or delete it"]);
        case.finish(&[]).failed(4, &[says, "hint: move or delete it"]);
    };
    fs::write(&parts, "").unwrap();
    in_the_way("out.parts is in the way: it is no folder");
    fs::remove_file(&parts).unwrap();
    fs::create_dir(&parts).unwrap();
    fs::write(parts.join("1-of-2"), "").unwrap();
    in_the_way("1-of-2 is in the way: it is no folder");
    fs::remove_dir_all(&parts).unwrap();
    case.all_parts(3);
    case.part("1/2").succeeded();
    fs::create_dir(parts.join("2-of-8.partial")).unwrap();
    let ended = case.finish(&[]).succeeded();
    let stays = "out.parts stays, with 1-of-2, 2-of-8.partial: `mergeforge finish ";
    assert!(ended.stderr.contains(stays), "{}", ended.stderr);
    let ended = case.finish(&[]).succeeded();
    let removed = "out is there already: what was left of its parts is removed: 1-of-2\n";
    assert!(ended.stderr.contains(removed), "{}", ended.stderr);
    let stays = "out.parts stays, with 2-of-8.partial, where no whole part of ";
    assert!(ended.stderr.contains(stays), "{}", ended.stderr);
    assert_eq!(case.finish(&["--quiet"]).succeeded().stderr, "");
    fs::remove_dir_all(&parts).unwrap();
    // Of what is whole nothing is in the way, and no part is made anew.
    fs::write(&parts, "").unwrap();
    case.finish(&[]).succeeded();
    case.part_with("1/2", &["--json"]).succeeded();
    fs::remove_file(&parts).unwrap();
    let whole_already = ["out is whole already, and no part of it is made again", "leave --restart out"];
    case.part_with("1/2", &["--restart"]).failed(2, &whole_already);
    case.part("1/2").succeeded();
    case.assert_is(&whole, "with all that was in the way");
}

#[test]
fn what_is_made_is_not_made_again() {
    let case = Case::example("ties.yml", &[]);
    let whole = case.whole();
    case.all_parts(2);
    let made = files(&case.part_folder("2/2"));
    let before = fs::metadata(case.part_folder("2/2").join("part.json")).unwrap().modified().unwrap();
    let ended = case.part("2/2").succeeded();
    assert!(ended.stderr.contains("part 2/2 is made already, and lies in "), "{}", ended.stderr);
    let listed = |ended: Ended, made_before: bool, folder: PathBuf| {
        let said: Value = serde_json::from_str(&ended.succeeded().stdout).unwrap();
        let (part, before, tensors) = (&said["part"], &said["made_before"], &said["tensors"]);
        assert_eq!((part.as_str(), before.as_bool()), (Some("2/2"), Some(made_before)), "{said}");
        assert!(tensors.as_u64() > Some(0) && said["run"].is_object() != made_before, "{said}");
        let listed = said["files"].as_object().unwrap().iter();
        let listed = listed.map(|(file, bytes)| (PathBuf::from(file), bytes.as_u64().unwrap() as usize));
        let shards = made.iter().filter(|(file, _)| file.extension().is_some_and(|end| end == "safetensors"));
        assert!(listed.eq(shards.map(|(file, bytes)| (file.clone(), bytes.len()))), "{said}");
        assert_eq!(said["folder"].as_str().map(PathBuf::from), Some(folder));
    };
    listed(case.part_with("2/2", &["--json"]), true, case.part_folder("2/2"));
    let after = fs::metadata(case.part_folder("2/2").join("part.json")).unwrap().modified().unwrap();
    assert_eq!(before, after);
    listed(case.part_with("2/2", &["--restart", "--json"]), false, case.part_folder("2/2"));
    assert!(files(&case.part_folder("2/2")) == made);
    assert_ne!(fs::metadata(case.part_folder("2/2").join("part.json")).unwrap().modified().unwrap(), after);
    case.finish(&["--json"]).succeeded();
    for ended in [case.part("1/2"), case.part("2/2")] {
        assert!(ended.succeeded().stderr.contains("is made already, and lies in "));
    }
    listed(case.part_with("2/2", &["--json"]), true, case.out());
    let ended = case.finish(&[]).succeeded();
    assert!(ended.stderr.contains("out is there already: there is nothing left to do"), "{}", ended.stderr);
    let again = case.finish(&["--json", "--verify"]).succeeded();
    let manifest: Value = serde_json::from_str(&again.stdout).unwrap();
    let written: Value =
        serde_json::from_slice(&fs::read(case.out().join("mergeforge.json")).unwrap()).unwrap();
    assert_eq!(manifest, written);
    assert!(again.stderr.contains("verify "), "{}", again.stderr);
    // Another merge is not taken for it, nor are its parts.
    let other =
        Case { words: case.words.iter().map(|word| word.replace("120kB", "300kB")).collect(), ..case };
    other.part("1/2").failed(2, &["exists and is not empty"]);
    let text = fs::read_to_string(&other.words[1]).unwrap();
    fs::write(&other.words[1], text.replace("weight: 0.5", "weight: 0.7").replace("ties", "task_arithmetic"))
        .unwrap();
    let elsewhere = other.command(&other.path().join("x"), &["--part", "1/2"]).output().unwrap();
    Ended::from(elsewhere).succeeded();
    fs::rename(other.path().join("x.parts"), other.path().join("out.parts")).unwrap();
    other.finish(&[]).failed(2, &["is there already, and ", "1-of-2 is no part of it"]);
    assert!(
        other.out().join("config.json").is_file() && other.part_folder("1/2").join("part.json").is_file()
    );
    fs::remove_dir_all(other.path().join("out.parts")).unwrap();
    other.assert_is(&whole, "after all of that");
}

#[test]
fn missing_parts_are_named_with_their_commands() {
    let mut case = Case::example("ties.yml", &[]);
    let whole = case.whole();
    case.finish(&[]).failed(7, &["there are no parts of ", "hint: "]);
    // A word that a shell would take apart.
    case.words.extend(["--trace".into(), case.path().join("it's a trace").display().to_string()]);
    case.part("3/4").succeeded();
    case.part("1/4").succeeded();
    fs::create_dir(case.path().join("out.parts/notes")).unwrap();
    let ended = case.finish(&[]).failed(7, &["out: parts 2, 4 of 4 are missing", "hint: make them"]);
    fs::remove_dir(case.path().join("out.parts/notes")).unwrap();
    let commands: Vec<&str> =
        ended.stderr.split('`').filter(|part| part.starts_with("mergeforge ")).collect();
    assert_eq!(commands.len(), 2, "{}", ended.stderr);
    for command in commands {
        let command = command.replacen("mergeforge ", &format!("{} ", env!("CARGO_BIN_EXE_mergeforge")), 1);
        let mut shell = Command::new("sh");
        let ended =
            shell.args(["-c", &command]).current_dir(ROOT).env("MERGEFORGE_CACHE", "").output().unwrap();
        Ended::from(ended).succeeded();
    }
    case.finish(&[]).succeeded();
    fs::remove_file(case.path().join("it's a trace")).unwrap();
    case.assert_is(&whole, "by the commands");
}

#[test]
fn parts_of_different_merges_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["base", "chat", "medical"] {
        let from = Path::new(ROOT).join("examples/models").join(name);
        fs::create_dir(folder.path().join(name)).unwrap();
        for file in fs::read_dir(from).unwrap().map(|entry| entry.unwrap().path()) {
            fs::copy(&file, folder.path().join(name).join(file.file_name().unwrap())).unwrap();
        }
    }
    let text = fs::read_to_string(Path::new(ROOT).join("examples/ties.yml")).unwrap();
    let text = text.replace("examples/models", "DIR");
    let mut case = Case::with(folder, "merge", &text, &["--out-shard-size", "120kB"]);
    case.part("1/2").succeeded();
    // Another content of the same size and header.
    let input = case.path().join("chat/model.safetensors");
    let mut bytes = fs::read(&input).unwrap();
    let last = bytes.len() - 2;
    bytes[last] ^= 1;
    fs::write(&input, bytes).unwrap();
    let changed = format!("(changed: the input {})", case.path().join("chat").display());
    case.part("1/2").failed(2, &["1-of-2 holds a part of a different merge", &changed, "--restart"]);
    case.part("2/2").succeeded();
    let before = files(case.path());
    case.finish(&[]).failed(2, &["are parts of different merges", &changed, "--restart"]);
    assert!(files(case.path()) == before, "nothing is lost");
    for (flags, changed) in [
        (&["--seed", "5"][..], "the seed"),
        (&["--out-shard-size", "300kB"], "the tensors or the sizes of shards"),
        (&["--no-write-model-card"], "the files beside the tensors"),
    ] {
        let words = case.words.clone();
        if flags[0] == "--out-shard-size" {
            case.words.truncate(3);
        }
        case.part_with("2/2", flags).failed(2, &[&format!("(changed: {changed}")]);
        case.words = words;
    }
    case.part_with("1/2", &["--restart"]).succeeded();
    case.finish(&[]).succeeded();
    let whole = case.whole();
    case.assert_is(&whole, "of the other input");
}

#[test]
fn damaged_parts_are_found_and_made_again() {
    let case = Case::example("ties.yml", &[]);
    let whole = case.whole();
    let shard = || models::safetensors_files(&case.part_folder("2/2")).remove(0);
    let flip = |path: &Path, at: usize| {
        let mut bytes = fs::read(path).unwrap();
        let at = if at == usize::MAX { bytes.len() - 1 } else { at };
        bytes[at] ^= 1;
        fs::write(path, bytes).unwrap();
    };
    case.all_parts(2);
    flip(&shard(), usize::MAX);
    let ended =
        case.finish(&["--verify"]).failed(3, &["has other bytes than were written", "make part 2 again"]);
    assert!(ended.stderr.contains("tensor \"model."), "by its name: {}", ended.stderr);
    assert!(ended.stderr.contains("--part 2/2`"), "{}", ended.stderr);
    // As the hint says.
    let lost = shard();
    fs::remove_file(&lost).unwrap();
    let lost = lost.file_name().unwrap().display().to_string();
    case.finish(&[]).failed(7, &["out: part 2 of 2 is not whole: it lacks ", &lost, "hint: make it"]);
    case.part("2/2").succeeded();
    flip(&shard(), 20);
    case.finish(&[]).failed(3, &["its header is not the one that was written", "make part 2 again"]);
    File::options().write(true).open(shard()).unwrap().set_len(100).unwrap();
    case.finish(&[]).failed(7, &["part 2 of 2 is not whole: ", " has 100 bytes, not "]);
    case.part("2/2").succeeded();
    let config = case.part_folder("1/2").join("beside/config.json");
    flip(&config, 3);
    let ended =
        case.finish(&[]).failed(3, &["config.json was changed after the merge", "make the first part again"]);
    assert!(ended.stderr.contains("--part 1/2 --restart`"), "{}", ended.stderr);
    case.part_with("1/2", &["--restart"]).succeeded();
    let record = case.part_folder("2/2").join("part.json");
    let text = fs::read_to_string(&record).unwrap();
    for (from, to, code, says) in [
        ("{\"format\":2", "{\"format\":9,\"new\":0", 3, "another version of mergeforge made this part"),
        ("\"first_shard\":", "\"first_shard\":1", 3, "leave shards out, or have some twice"),
        ("\"shape\":[", "\"shape\":[1,", 3, "have tensors in other places than were planned"),
        ("\"shape\":[", "\"shape\":[9223372036854775807,9,", 3, "cannot be understood"),
        ("\"blake3\":\"", "\"blake3\":\"x", 3, "cannot be understood"),
        ("\"part\":[2,2]", "\"part\":[1,2]", 3, "holds part 1 of 2"),
        (
            "{\"format\"",
            "{\"for",
            7,
            "is there without a record that can be read: part.json is no record of a part",
        ),
    ] {
        assert!(text.contains(from), "{from}");
        fs::write(&record, text.replacen(from, to, 1)).unwrap();
        case.finish(&[]).failed(code, &[says, "hint: "]);
    }
    fs::write(&record, text).unwrap();
    case.finish(&["--verify"]).succeeded();
    case.assert_is(&whole, "after all of that");
}

#[test]
fn what_was_moved_is_proven_before_it_is_taken() {
    let case = Case::example("ties.yml", &[]);
    let whole = case.whole();
    case.all_parts(2);
    let stopped = finish(&case.out(), false, 1, &Stopping { left: AtomicUsize::new(12) });
    assert_eq!(stopped.unwrap_err().kind, Kind::Interrupted);
    let moved = models::safetensors_files(&case.path().join("out.partial")).remove(0);
    let bytes = fs::read(&moved).unwrap();
    let mut other = bytes.clone();
    *other.last_mut().unwrap() ^= 1;
    fs::write(&moved, other).unwrap();
    let ended = case.finish(&[]).failed(3, &["has other bytes than were written", "and make part 1 again: "]);
    assert!(ended.stderr.contains(&format!("remove {}", moved.display())), "{}", ended.stderr);
    fs::remove_file(moved).unwrap();
    case.part("1/2").succeeded();
    case.finish(&[]).succeeded();
    case.assert_is(&whole, "with the part made again");
}

/// Stops at its `left`th question.
struct Stopping {
    left: AtomicUsize,
}

impl Watch for Stopping {
    fn moved(&self, _: u64, _: u64) {}
    fn stop(&self) -> bool {
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_err()
    }
    fn compiling(&self) {}
    fn less_memory(&self, _: &Error, _: u64, _: u64) {}
}

#[test]
fn who_is_stopped_while_parts_are_put_together_goes_on() {
    let case = Case::example("ties.yml", &[]);
    let whole = case.whole();
    let (mut stops, mut moved_before) = (0, 0);
    for questions in 0.. {
        case.all_parts(3);
        let watch = Stopping { left: AtomicUsize::new(questions) };
        let stopped = match finish(&case.out(), questions % 2 == 0, 1, &watch) {
            Ok(done) => {
                assert!(done.made.is_some() && done.left.is_none(), "it was not done before");
                false
            }
            Err(error) => {
                assert_eq!(error.kind, Kind::Interrupted, "{error}");
                assert!(error.hint.unwrap().contains("the same command goes on from there"));
                true
            }
        };
        if stopped {
            stops += 1;
            assert!(!case.out().exists());
            let moved = case.path().join("out.partial");
            if moved.exists() {
                moved_before += models::safetensors_files(&moved).len();
            }
            // Parts that are being put together are there.
            assert!(case.part("2/3").succeeded().stderr.contains("is made already"));
            case.finish(&[]).succeeded();
        }
        case.assert_is(&whole, &format!("stopped at question {questions}"));
        if !stopped && questions > 1 {
            break;
        }
    }
    assert!(stops > 20 && moved_before > 20, "{stops} stops, {moved_before} files moved before");
}

#[test]
fn who_is_killed_goes_on() {
    let case = Case::slow();
    let whole = case.whole();
    let (mut random, mut kills) = (Random(5), 0);
    let mut until_done = |start: &dyn Fn() -> Child, longest: u64| {
        for tries in 1.. {
            let mut child = start();
            std::thread::sleep(Duration::from_micros(random.next() % (longest * tries)));
            let _ = child.kill();
            let ended = Ended::from(child.wait_with_output().unwrap());
            match ended.code {
                Some(0) => break,
                None => kills += 1,
                Some(code) => panic!("{code}: {}", ended.stderr),
            }
        }
    };
    for _ in 0..3 {
        for part in ["2/2", "1/2"] {
            until_done(&|| case.command(&case.out(), &["--part", part]).spawn().unwrap(), 30_000);
        }
        until_done(&|| mergeforge().arg("finish").arg(case.out()).spawn().unwrap(), 3_000);
        // Killed once all was done, it had not come to remove the lock.
        case.finish(&[]).succeeded();
        case.assert_is(&whole, "after kills");
    }
    println!("{kills} kills");
    assert!(kills > 5, "only {kills} kills");
}

#[test]
fn two_at_once_make_a_part_once() {
    let case = Case::slow();
    let whole = case.whole();
    let mut met = 0;
    for _ in 0..4 {
        for part in ["1/2", "2/2"] {
            let start =
                || case.command(&case.out(), &["--part", part]).stdout(Stdio::null()).spawn().unwrap();
            let both = [start(), start()];
            let ended = both.map(|child| Ended::from(child.wait_with_output().unwrap()));
            assert!(ended.iter().any(|ended| ended.code == Some(0)), "{ended:?}");
            for ended in ended {
                match ended.code {
                    Some(0) => {}
                    Some(4) => {
                        assert!(ended.stderr.contains("another process is writing"), "{}", ended.stderr);
                        met += 1;
                    }
                    code => panic!("{code:?}: {}", ended.stderr),
                }
            }
        }
        let start = || mergeforge().arg("finish").arg(case.out()).spawn().unwrap();
        let both = [start(), start()].map(|child| Ended::from(child.wait_with_output().unwrap()));
        assert!(both.iter().any(|ended| ended.code == Some(0)), "{both:?}");
        // One that comes too late finds all done.
        assert!(both.iter().all(|ended| [Some(0), Some(4)].contains(&ended.code)), "{both:?}");
        case.finish(&[]).succeeded();
        case.assert_is(&whole, "made by two at once");
    }
    println!("{met} met another");
}

#[test]
fn a_merge_in_one_goes_on_where_putting_parts_together_stopped() {
    let case = Case::example("ties.yml", &[]);
    let whole = case.whole();
    case.all_parts(3);
    let questions = 12;
    let stopped = finish(&case.out(), false, 1, &Stopping { left: AtomicUsize::new(questions) });
    assert_eq!(stopped.unwrap_err().kind, Kind::Interrupted);
    let moved = models::safetensors_files(&case.path().join("out.partial")).len();
    assert!(moved > 2, "{moved}");
    let ended = Ended::from(case.command(&case.out(), &[]).output().unwrap()).succeeded();
    assert!(ended.stderr.contains("this merge goes on from there"), "{}", ended.stderr);
    // What is left of the parts is of it.
    case.finish(&[]).succeeded();
    case.assert_is(&whole, "merged in one in the end");
}

/// `finish` under a limit of the shell, such as `-n 18`.
fn finish_within(case: &Case, limit: &str) -> Ended {
    let mut shell = Command::new("sh");
    let text = format!("ulimit {limit}; exec \"$0\" finish \"$1\"");
    shell.args(["-c", &text, env!("CARGO_BIN_EXE_mergeforge")]).arg(case.out()).output().unwrap().into()
}

#[test]
fn nothing_is_moved_that_is_not_noted() {
    let case = Case::example("ties.yml", &[]);
    let whole = case.whole();
    let manifest: Value = serde_json::from_slice(&whole[Path::new("mergeforge.json")]).unwrap();
    let tensors = manifest["tensors"].as_object().unwrap().len();
    case.all_parts(3);
    let partial = case.path().join("out.partial");
    let (mut unmoved, mut moved) = (0, 0);
    // Files may have so many blocks: the disk is full in the middle of the journal, or of what is written after it.
    for blocks in 1..60 {
        finish_within(&case, &format!("-f {blocks}")).failed(4, &["cannot write "]);
        if partial.exists() && !models::safetensors_files(&partial).is_empty() {
            let journal = fs::read_to_string(partial.join(".journal")).unwrap();
            assert_eq!(journal.lines().count(), 1 + tensors, "{blocks} blocks");
            moved += 1;
        } else {
            unmoved += 1;
        }
    }
    println!("{unmoved} times unmoved, {moved} times moved");
    assert!(unmoved > 3 && moved > 3, "{unmoved} times unmoved, {moved} times moved");
    case.finish(&[]).succeeded();
    case.assert_is(&whole, "after full disks");
}

#[test]
fn too_few_open_files_are_noticed_before_anything_is_moved() {
    let case = Case::example("ties.yml", &[]);
    let whole = case.whole();
    case.all_parts(2);
    let before = files(case.path());
    finish_within(&case, "-n 18").failed(2, &["files at once, and the system permits 18", "ulimit -n"]);
    assert!(files(case.path()) == before);
    case.finish(&[]).succeeded();
    case.assert_is(&whole, "with more files");
}

#[test]
fn what_cannot_be_removed_is_no_failure() {
    let case = Case::example("ties.yml", &[]);
    let whole = case.whole();
    case.all_parts(2);
    // As NFS has where another process still reads a file.
    let left = case.part_folder("1/2").join(".nfs0001");
    fs::write(&left, "").unwrap();
    let ended = case.finish(&[]).succeeded();
    assert!(
        ended.stderr.contains("out is whole, but not all of its parts are removed: "),
        "{}",
        ended.stderr
    );
    assert!(!case.part_folder("2/2").exists());
    case.finish(&[]).succeeded();
    fs::remove_file(left).unwrap();
    case.finish(&[]).succeeded();
    case.assert_is(&whole, "with something left");
}

#[test]
fn what_else_is_half_made_is_seen_before_a_part_is_made() {
    let mut case = Case::example("ties.yml", &[]);
    case.all_parts(2);
    let stopped = finish(&case.out(), false, 1, &Stopping { left: AtomicUsize::new(12) });
    assert_eq!(stopped.unwrap_err().kind, Kind::Interrupted);
    let partial = case.path().join("out.partial");
    let before = files(&partial);
    assert!(!models::safetensors_files(&partial).is_empty());
    // What is there is of one seed, and parts of another are to be put together.
    fs::remove_dir_all(case.path().join("out.parts")).unwrap();
    case.words.extend(["--seed".into(), "5".into()]);
    let says = ["out.partial holds part of a different merge (changed: the seed)", "or remove "];
    for ended in [case.part("1/2"), case.part_with("1/2", &["--restart"])] {
        let ended = ended.failed(2, &says);
        assert!(!ended.stderr.contains("give --restart"), "{}", ended.stderr);
    }
    let aside = case.path().join("aside");
    fs::rename(&partial, &aside).unwrap();
    case.all_parts(2);
    fs::rename(&aside, &partial).unwrap();
    let ended = case.finish(&[]).failed(2, &says);
    assert!(!ended.stderr.contains("--restart"), "{}", ended.stderr);
    assert!(files(&partial) == before);
    // As the hint says.
    fs::remove_dir_all(&partial).unwrap();
    case.finish(&[]).succeeded();
    let whole = case.whole();
    case.assert_is(&whole, "of the other seed");
}

#[test]
fn the_environment_says_the_part() {
    let case = Case::example("ties.yml", &[]);
    let whole = case.whole();
    let slurm = |id: &str| {
        [("ID", id), ("MIN", "0"), ("MAX", "1"), ("COUNT", "2")]
            .map(|(name, value)| (format!("SLURM_ARRAY_TASK_{name}"), value.to_owned()))
    };
    let auto = || case.command(&case.out(), &["--part", "auto"]);
    Ended::from(auto().output().unwrap()).failed(2, &["--part auto: the environment says nothing of parts"]);
    let ended = Ended::from(auto().envs(slurm("0")).output().unwrap()).succeeded();
    assert!(ended.stderr.contains("part 1/2, by SLURM_ARRAY_TASK_ID=0 of 0 to 1"), "{}", ended.stderr);
    let contradicted = auto().envs(slurm("1")).env("RANK", "0").env("WORLD_SIZE", "2").output().unwrap();
    Ended::from(contradicted).failed(2, &["the environment contradicts itself", "--part I/N"]);
    let indexed = auto().env("JOB_COMPLETION_INDEX", "1").env("JOB_COMPLETIONS", "2").output().unwrap();
    Ended::from(indexed).succeeded();
    case.finish(&[]).succeeded();
    case.assert_is(&whole, "by the environment");
}

#[test]
fn what_has_no_parts_says_so() {
    let case = Case::new(
        &FUSED.replacen("merge_method: linear", "merge_method: ties\nbase_model: examples/models/base", 1),
        &[],
    );
    case.part("1/2").failed(2, &["documents have to be merged first that every part reads", "hint: "]);
    let several: Vec<&str> = case.words.iter().skip(1).take(1).map(String::as_str).collect();
    let folder = case.path().display().to_string();
    let multi = [&["multi"], &several[..], &["-I", &folder, "--part", "1/2"]].concat();
    command::run(multi).failed(2, &["--part means nothing here"]);
    let usage = case.part("5/4");
    assert_eq!(usage.code, Some(2));
    assert!(usage.stderr.contains("expected I/N"), "{}", usage.stderr);
    assert_nothing_left(case.path());
    // An input may not lie where parts go.
    let folder = tempfile::tempdir().unwrap();
    let inside = folder.path().join("out.parts/1-of-1/model");
    fs::create_dir_all(&inside).unwrap();
    for file in fs::read_dir(Path::new(ROOT).join("examples/models/base")).unwrap() {
        let file = file.unwrap().path();
        fs::copy(&file, inside.join(file.file_name().unwrap())).unwrap();
    }
    let config = "merge_method: passthrough\nmodels:\n- model: DIR/out.parts/1-of-1/model\n";
    let case = Case::with(folder, "merge", config, &[]);
    case.part("1/1").failed(2, &["overlap"]);
    // Nor may one be taken for a part that lost its record, by its files.
    let Case { folder, .. } = case;
    let weights = folder.path().join("out.parts/1-of-1/model.safetensors");
    fs::rename(inside.join("model.safetensors"), &weights).unwrap();
    fs::remove_dir_all(inside).unwrap();
    let config = "merge_method: passthrough\nmodels:\n- model: DIR/out.parts/1-of-1\n";
    let case = Case::with(folder, "merge", config, &[]);
    for flags in [&[][..], &["--restart"]] {
        case.part_with("1/1", flags).failed(2, &["overlap"]);
        assert!(weights.is_file(), "an input is removed");
    }
}

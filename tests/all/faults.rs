//! Whatever goes wrong ends in an error that names it, and leaves neither the output nor a trace of it: damaged and
//! hostile inputs, files that change under the merge, full disks, signals, and other merges.
//!
//! Inputs are never modified: every failing merge here is followed by a look at them.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, SystemTime};

use mergeforge::backend::devices::processor;
use mergeforge::checkpoint::Reads;
use mergeforge::error::{Error, Kind};
use mergeforge::plan::Choices;
use mergeforge::stream::{Budget, Watch};
use mergeforge::{Options, Stopped, prepare};
use rustix::process::{Pid, Signal, kill_process};
use safetensors::Dtype;
use serde_json::{Value as Json, json};
use tempfile::TempDir;

use crate::command::{self, Ended, assert_nothing_left, merge, mergeforge};
use crate::models::{self, Form, PLAIN, Random, Stored, Tensors, stored, tuned, weights};

const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";

/// A merge that never ends fails its test after this.
const PATIENCE: Duration = Duration::from_mins(1);

/// A folder with the models `a` and `b`, and a config that merges them.
pub struct Case {
    folder: TempDir,
}

pub fn tensors(seed: u64) -> Tensors {
    let tensor = |i: u64| {
        let base = weights(5000, i + 1);
        (format!("model.layers.{i}.w"), stored(Dtype::BF16, &[50, 100], &tuned(&base, 10 * seed + i)))
    };
    (0..4).map(tensor).collect()
}

impl Case {
    pub fn new() -> Self {
        Self::of(&tensors(1), &tensors(2), PLAIN)
    }

    pub fn of(a: &Tensors, b: &Tensors, form: Form) -> Self {
        let folder = tempfile::tempdir().unwrap();
        models::write(&folder.path().join("a"), a, form);
        models::write(&folder.path().join("b"), b, form);
        Self { folder }
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A file of the model `b`, where all the damage is done.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path().join("b").join(name)
    }

    pub fn config(&self) -> String {
        let model = |name| self.path().join(name).display().to_string();
        let (a, b) = (model("a"), model("b"));
        format!(
            "merge_method: linear\nparameters: {{weight: 0.5}}\nmodels: [{{model: {a}}}, {{model: {b}}}]\n"
        )
    }

    /// That a merge is refused with this code, saying all of this, leaving nothing and changing nothing.
    #[track_caller]
    pub fn refused(&self, code: i32, says: &[&str]) {
        let before = fingerprint(self.path());
        merge(self.path(), &self.config(), &["-q"]).failed(code, says);
        assert_nothing_left(self.path());
        assert_unchanged(&before, self.path());
    }
}

/// What the files under a folder hold, and when they were written.
pub type Fingerprint = BTreeMap<PathBuf, (blake3::Hash, Option<SystemTime>)>;

pub fn fingerprint(folder: &Path) -> Fingerprint {
    let mut found = Fingerprint::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(fingerprint(&path));
        } else if path.is_file() && path.file_name().unwrap() != "config.yml" {
            let modified = fs::metadata(&path).unwrap().modified().ok();
            // One that may not be read is known by its time.
            found.insert(path.clone(), (blake3::hash(&fs::read(&path).unwrap_or_default()), modified));
        }
    }
    found
}

#[track_caller]
pub fn assert_unchanged(before: &Fingerprint, folder: &Path) {
    assert!(*before == fingerprint(folder), "an input was modified");
}

#[test]
fn inputs_stay_as_they_are() {
    let case = Case::new();
    let before = fingerprint(case.path());
    merge(case.path(), &case.config(), &[]).succeeded();
    fs::remove_dir_all(case.path().join("out")).unwrap();
    assert_unchanged(&before, case.path());
}

#[test]
fn a_truncated_file_is_reported() {
    let case = Case::new();
    let whole = fs::read(case.file(SINGLE)).unwrap();
    let data_start = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    for (bytes, says) in [
        (0, "the file is empty"),
        (5, "too short for a header"),
        (8, "the header is cut short"),
        (data_start - 1, "the header is cut short"),
        (data_start, "the file is cut short"),
        (whole.len() / 2, "the file is cut short"),
        (whole.len() - 1, "the file is cut short"),
    ] {
        fs::write(case.file(SINGLE), &whole[..bytes]).unwrap();
        case.refused(3, &["b/model.safetensors: ", says, "hint: download the file again"]);
    }
    fs::write(case.file(SINGLE), [whole.as_slice(), b"x"].concat()).unwrap();
    case.refused(3, &["b/model.safetensors: ", "bytes after its end"]);
}

/// A safetensors file with this header and so many bytes of data.
fn raw(header: &str, data_bytes: usize) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.resize(file.len() + data_bytes, 1);
    file
}

fn entry(name: &str, dtype: &str, shape: &str, offsets: (u64, u64)) -> String {
    format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{},{}]}}"#, offsets.0, offsets.1)
}

#[test]
fn a_header_that_lies_is_reported() {
    let two = |a, b| format!("{{{},{}}}", entry("t", "BF16", "[4]", a), entry("u", "BF16", "[4]", b));
    let one = |dtype, shape, offsets| format!("{{{}}}", entry("t", dtype, shape, offsets));
    let cases = [
        ("overlap", two((0, 8), (4, 12)), 12, "overlaps \"t\""),
        ("hole", two((0, 8), (10, 18)), 18, "leaving a hole from 8"),
        ("late start", one("BF16", "[4]", (2, 10)), 10, "leaving a hole from 0"),
        ("wrong size", one("BF16", "[4]", (0, 6)), 6, "takes 8 bytes, not those from 0 to 6"),
        ("backwards", one("BF16", "[4]", (8, 0)), 8, "takes 8 bytes, not those from 8 to 0"),
        ("beyond the end", one("BF16", "[400]", (0, 800)), 8, "the file is cut short"),
        ("overflow", one("BF16", "[9223372036854775807,8]", (0, 8)), 8, "a shape beyond any file"),
        ("negative", one("BF16", "[-4]", (0, 8)), 8, "the header is not what it should be"),
        ("foreign type", one("BF17", "[4]", (0, 8)), 8, "the header is not what it should be"),
        (
            "twice",
            format!("{{{},{}}}", entry("t", "BF16", "[4]", (0, 8)), entry("t", "BF16", "[4]", (8, 16))),
            16,
            "\"t\" is listed twice",
        ),
        ("no JSON", "{\"t\":".into(), 0, "the header is not what it should be"),
        ("no object", "[1, 2]".into(), 0, "the header is not what it should be"),
        (
            "control characters",
            format!("{{{}}}", entry("\\u001b[2Jt", "BF16", "[4]", (0, 6))),
            6,
            "\\u{1b}[2Jt",
        ),
    ];
    let case = Case::new();
    for (what, header, data_bytes, says) in cases {
        println!("{what}");
        fs::write(case.file(SINGLE), raw(&header, data_bytes)).unwrap();
        case.refused(3, &["b/model.safetensors: ", says]);
    }
    // Such a length must neither be believed nor allocated.
    for length in [u64::MAX, 1 << 62, 100_000_001, 1 << 20] {
        let mut file = raw("{}", 8);
        file[..8].copy_from_slice(&length.to_le_bytes());
        fs::write(case.file(SINGLE), file).unwrap();
        case.refused(3, &["b/model.safetensors: "]);
    }
}

#[test]
fn an_index_may_name_files_of_its_folder_alone() {
    let case = Case::of(&tensors(1), &tensors(2), Form { shards: 2, ..PLAIN });
    // What the entries could lead to is there: they are refused by their spelling.
    fs::copy(case.file("part-1.safetensors"), case.path().join("part-1.safetensors")).unwrap();
    fs::copy(case.file("part-1.safetensors"), case.file("part.bin")).unwrap();
    let absolute = case.path().join("part-1.safetensors").display().to_string();
    for hostile in [
        &absolute,
        "../part-1.safetensors",
        "..\\\\part-1.safetensors",
        "C:part-1.safetensors",
        "part.bin",
        "./part-1.safetensors",
    ] {
        let index = format!(r#"{{"metadata":{{}},"weight_map":{{"model.layers.0.w":"{hostile}"}}}}"#);
        fs::write(case.file(INDEX), index).unwrap();
        case.refused(
            3,
            &[
                "b/model.safetensors.index.json: ",
                "\"model.layers.0.w\"",
                "no plain name of a file of weights",
            ],
        );
    }
}

#[test]
fn a_shard_that_is_missing_is_named() {
    let case = Case::of(&tensors(1), &tensors(2), Form { shards: 2, ..PLAIN });
    fs::remove_file(case.file("part-1.safetensors")).unwrap();
    case.refused(3, &["has no part-1.safetensors", "hint: run the download again"]);
}

#[test]
fn what_is_no_file_is_not_read() {
    let case = Case::new();
    fs::remove_file(case.file(SINGLE)).unwrap();
    fs::create_dir(case.file(SINGLE)).unwrap();
    case.refused(3, &["b/model.safetensors is not a regular file"]);
    fs::remove_dir(case.file(SINGLE)).unwrap();
    // Opening a pipe that nobody writes to would wait for ever.
    if Command::new("mkfifo").arg(case.file(SINGLE)).status().is_ok_and(|status| status.success()) {
        let mut command = mergeforge();
        command.arg("plan").arg(command::config(case.path(), &case.config()));
        ends(command).failed(3, &["b/model.safetensors is not a regular file"]);
    }
}

#[test]
fn a_file_that_may_not_be_read_is_named() {
    use std::os::unix::fs::PermissionsExt;
    if rustix::process::geteuid().is_root() {
        return eprintln!("not run: root may read everything");
    }
    let case = Case::new();
    fs::set_permissions(case.file(SINGLE), fs::Permissions::from_mode(0o000)).unwrap();
    case.refused(3, &["cannot read", "b/model.safetensors", "ermission denied"]);
}

#[test]
fn integers_that_differ_are_refused_by_name() {
    let with = |seed, last| {
        let mut tensors = tensors(seed);
        let mut bytes = vec![7; 80_000];
        bytes[79_999] = last;
        tensors.insert("steps".into(), Stored { dtype: Dtype::I64, shape: vec![10_000], bytes });
        tensors
    };
    let case = Case::of(&with(1, 0), &with(2, 1), PLAIN);
    case.refused(3, &["tensor steps: ", "/a and ", "/b hold different values", "hint: "]);
    let same = Case::of(&with(1, 0), &with(2, 0), PLAIN);
    merge(same.path(), &same.config(), &[]).succeeded();
    assert_eq!(models::read(&same.path().join("out"))["steps"], with(1, 0)["steps"]);
}

#[test]
fn outputs_that_would_harm_something_are_refused() {
    let case = Case::new();
    let config = command::config(case.path(), &case.config());
    let before = fingerprint(case.path());
    let into = |out: &str, says: &str| {
        let out = case.path().join(out);
        let ended = mergeforge().arg("merge").args([&config, &out]).output().unwrap();
        Ended::from(ended).failed(2, &[says]);
        assert_unchanged(&before, case.path());
    };
    into("a", "overlap");
    into("a/deep/in", "overlap");
    into("b/../a", "overlap");
    into("", "overlap");
    into("a/config.json", "overlap");
    into("config.yml", "exists and is no folder");
    into("config.yml/out", "cannot be reached");
    fs::create_dir(case.path().join("full")).unwrap();
    fs::create_dir(case.path().join("full/something")).unwrap();
    into("full", "exists and is not empty");
}

/// After what a trap springs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Step {
    Read,
    Write,
}

/// A watch that does something once, when the first bytes have been read or written.
struct Trap<F: Fn() + Sync> {
    after: Step,
    sprung: AtomicBool,
    act: F,
}

impl<F: Fn() + Sync> Trap<F> {
    fn new(after: Step, act: F) -> Self {
        Self { after, sprung: AtomicBool::new(false), act }
    }
}

impl<F: Fn() + Sync> Watch for Trap<F> {
    fn moved(&self, _read: u64, written: u64) {
        if (self.after == Step::Read || written > 0) && !self.sprung.swap(true, Ordering::Relaxed) {
            (self.act)();
        }
    }

    fn stop(&self) -> bool {
        false
    }

    fn compiling(&self) {}
    fn less_memory(&self, _: &Error, _: u64, _: u64) {}
}

/// Merges a config through the library, in the smallest steps, and does something when the first of a kind has been taken.
pub fn merge_trapped(config: &Path, out: &Path, after: Step, act: impl Fn() + Sync) -> Error {
    let prepared =
        prepare(config, &Choices { seed: 0, shard_bytes: Some(5_000_000_000), ..Choices::USUAL }).unwrap();
    let budget = Budget { threads: 1, host_bytes: 64 << 20, device_bytes: 0, chunk_tiles: Some(1) };
    let (device, out, reads) = (processor(), out.into(), Reads::Mapped);
    let options = Options {
        out,
        device,
        budget,
        copy_tokenizer: true,
        model_card: true,
        inputs_hashed: false,
        reads,
        cache: None,
        recall: false,
        stopped: Stopped::LeavesNothing,
    };
    mergeforge::merge(&prepared, &options, &Trap::new(after, act)).expect_err("something happened on the way")
}

impl Case {
    fn fails_when(&self, act: impl Fn() + Sync) -> Error {
        let config = command::config(self.path(), &self.config());
        let error = merge_trapped(&config, &self.path().join("out"), Step::Read, act);
        assert_nothing_left(self.path());
        error
    }
}

/// The first sweep of slerp and ties leaves its pages in memory. Cut off under the second one, they are not there any more:
/// that must neither end the process nor pass for zeros, nor for a device that counts wrong.
#[test]
fn a_file_that_is_truncated_under_its_map_is_an_error() {
    let model =
        |seed| Tensors::from([("w".into(), stored(Dtype::BF16, &[200_000], &weights(200_000, seed)))]);
    for (method, model_cut) in [("slerp", "a"), ("slerp", "b"), ("ties", "a"), ("ties", "b")] {
        let case = Case::of(&model(1), &model(2), PLAIN);
        let name = |model| case.path().join(model).display().to_string();
        let (a, b) = (name("a"), name("b"));
        let text = format!(
            "merge_method: {method}\nbase_model: {a}\nparameters: {{t: 0.3, weight: 1, density: 0.4}}\nmodels: [{{model: {a}}}, {{model: {b}}}]\n"
        );
        let config = command::config(case.path(), &text);
        let file = case.path().join(model_cut).join(SINGLE);
        let cut = || OpenOptions::new().write(true).open(&file).unwrap().set_len(3000).unwrap();
        let error = merge_trapped(&config, &case.path().join("out"), Step::Write, cut);
        assert_nothing_left(case.path());
        assert_eq!(error.kind, Kind::Input, "{error}");
        let reported =
            format!("{model_cut}/model.safetensors was truncated while it was read, or its disk fails");
        assert!(error.message.contains(&reported), "{error}");
    }
}

#[test]
fn a_file_that_is_truncated_while_it_is_read_is_an_error() {
    let case = Case::new();
    let file = case.file(SINGLE);
    let error =
        case.fails_when(|| OpenOptions::new().write(true).open(&file).unwrap().set_len(3000).unwrap());
    assert_eq!(error.kind, Kind::Input, "{error}");
    // A truncation that comes before the file's first read is noticed when it is opened.
    let reported =
        ["was truncated while it was read (tensor \"model.layers.0.w\")", "changed while it was read"];
    assert!(error.message.contains("b/model.safetensors"), "{error}");
    assert!(reported.iter().any(|part| error.message.contains(part)), "{error}");
    let file = case.path().join("a").join(SINGLE);
    fs::copy(&file, case.file(SINGLE)).unwrap();
    let error =
        case.fails_when(|| OpenOptions::new().write(true).open(&file).unwrap().set_len(3000).unwrap());
    assert_eq!(error.kind, Kind::Input);
    assert!(error.message.contains("a/model.safetensors") && error.message.contains(reported[0]), "{error}");
}

#[test]
fn a_file_that_changes_during_the_merge_is_an_error() {
    let changes: [fn(&Path); 4] = [
        // The same size at another time.
        |file| {
            OpenOptions::new().write(true).open(file).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
        },
        |file| OpenOptions::new().append(true).open(file).unwrap().write_all(b"more").unwrap(),
        // Another file in its place, as an editor or a download would put it.
        |file| {
            let other = file.with_extension("new");
            fs::write(&other, raw("{}", 0)).unwrap();
            fs::rename(other, file).unwrap();
        },
        |file| fs::remove_file(file).unwrap(),
    ];
    for (i, change) in changes.iter().enumerate() {
        for model in ["a", "b"] {
            let case = Case::new();
            let file = case.path().join(model).join(SINGLE);
            let error = case.fails_when(|| change(&file));
            assert_eq!(error.kind, Kind::Input, "change {i}: {error}");
            assert!(error.message.contains(&format!("{model}/model.safetensors")), "change {i}: {error}");
        }
    }
}

/// Values with this many NaN, infinities and large numbers among them, one after the other from an odd place on.
fn odd(elements: usize, seed: u64, nan: usize, infinite: usize, large: usize) -> Vec<f32> {
    let mut values = weights(elements, seed);
    // Apart between models, so that no sum is odd for two reasons.
    let mut places = (0..).map(|i| (seed as usize * 61 + i * 7) % elements);
    places
        .by_ref()
        .take(nan)
        .for_each(|at| values[at] = f32::NAN.copysign(if at % 2 == 0 { -1.0 } else { 1.0 }));
    places.by_ref().take(infinite).for_each(|at| values[at] = f32::INFINITY);
    places.by_ref().take(large).for_each(|at| values[at] = 65_000.0);
    values
}

#[test]
fn odd_values_are_counted_and_reported_by_tensor() {
    let model = |seed: u64, nan, infinite, large| -> Tensors {
        let tensor = |name: &str, values: &[f32]| (name.to_string(), stored(Dtype::F32, &[3000], values));
        [
            tensor("clean", &weights(3000, seed)),
            tensor("nan", &odd(3000, seed, nan, 0, 0)),
            tensor("both", &odd(3000, seed, nan, infinite, 0)),
            tensor("large", &odd(3000, seed, 0, 0, large)),
        ]
        .into()
    };
    let case = Case::of(&model(1, 3, 1, 4), &model(2, 2, 5, 6), PLAIN);
    let model = |name| case.path().join(name).display().to_string();
    let (a, b) = (model("a"), model("b"));
    // A factor of 3 takes 65,000, as a value or as a distance from 0, beyond the largest f16.
    let linear = format!(
        "merge_method: linear\ndtype: float16\nparameters: {{weight: 3, normalize: false}}\nmodels: [{{model: {a}}}, {{model: {b}}}]\n"
    );
    // With a base that is one of the models every input is still read once for the output.
    let ties = format!(
        "merge_method: ties\ndtype: float16\nbase_model: {a}\nparameters: {{weight: 1, density: 0.5, lambda: 3}}\nmodels: [{{model: {a}}}, {{model: {b}}}]\n"
    );
    for config in [linear, ties] {
        let ended = merge(case.path(), &config, &["--chunk-tiles", "1"]).succeeded();
        let manifest: Json =
            serde_json::from_slice(&fs::read(case.path().join("out/mergeforge.json")).unwrap()).unwrap();
        let expected = json!({
            "nan": { "nan": 5, "infinite": 0, "overflowed": 0 },
            "both": { "nan": 5, "infinite": 6, "overflowed": 0 },
            "large": { "nan": 0, "infinite": 0, "overflowed": 10 },
        });
        assert_eq!(manifest["odd_values"], expected);
        for reported in [
            "tensor nan: 5 NaN read",
            "tensor both: 5 NaN read, 6 infinities read",
            "tensor large: 10 results overflowed",
        ] {
            assert!(ended.stderr.contains(&format!("warning: {reported}\n")), "{}", ended.stderr);
        }
        assert!(!ended.stderr.contains("clean"));
        fs::remove_dir_all(case.path().join("out")).unwrap();
    }
}

#[test]
fn copied_odd_values_are_counted_too_and_many_are_summed_up() {
    let all: Tensors =
        (0..12).map(|i| (format!("t{i:02}"), stored(Dtype::BF16, &[2000], &odd(2000, i, 2, 1, 0)))).collect();
    let case = Case::of(&all, &all, PLAIN);
    let config =
        format!("merge_method: passthrough\nmodels: [{{model: {}}}]\n", case.path().join("a").display());
    let ended = merge(case.path(), &config, &["-q"]).succeeded();
    assert_eq!(ended.stderr.matches(": 2 NaN read, 1 infinities read\n").count(), 8, "{}", ended.stderr);
    assert!(ended.stderr.contains("… and 4 more tensors with odd values: see mergeforge.json"));
    assert_eq!(models::read(&case.path().join("out")), all);
}

/// Runs a command that must end by itself.
pub fn ends(mut command: Command) -> Ended {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // A program that was just written is busy for as long as a process that another test starts has the file from this one.
    let child = loop {
        match command.spawn() {
            Err(cause) if cause.kind() == std::io::ErrorKind::ExecutableFileBusy => {
                std::thread::sleep(Duration::from_millis(20));
            }
            started => break started.unwrap(),
        }
    };
    let pid = Pid::from_child(&child);
    let (send, receive) = mpsc::channel();
    std::thread::spawn(move || send.send(child.wait_with_output()));
    if let Ok(output) = receive.recv_timeout(PATIENCE) {
        output.unwrap().into()
    } else {
        let _ = kill_process(pid, Signal::KILL);
        panic!("{command:?} did not end");
    }
}

#[test]
fn a_yaml_bomb_ends_in_an_error() {
    let mut laughs = String::from("a: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    (1..30).for_each(|i| {
        let aliases = vec![format!("*a{}", i - 1); 10].join(", ");
        laughs += &format!("b{i}: &a{i} [{aliases}]\n");
    });
    let deep =
        |open: &str, close: &str| format!("merge_method: {}{}", open.repeat(200_000), close.repeat(200_000));
    let models = (0..200_000).map(|i| format!("  - model: m{i}")).collect::<Vec<_>>().join("\n");
    let bombs = [
        format!("{laughs}merge_method: linear\nmodels: *a29\n"),
        format!("{laughs}merge_method: *a29\n"),
        deep("[", "]"),
        deep("{a: ", "}"),
        format!("merge_method: {}", "- ".repeat(100_000)),
        format!("merge_method: linear\nmodels:\n{models}"),
    ];
    let folder = tempfile::tempdir().unwrap();
    for (i, bomb) in bombs.iter().enumerate() {
        let config = command::config(folder.path(), bomb);
        // What a bomb wants is memory.
        let mut limited = Command::new("sh");
        limited
            .args(["-c", "ulimit -v 1000000; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_mergeforge"), "plan"])
            .arg(config);
        let ended = ends(limited).failed(2, &["error: "]);
        assert!(ended.stderr.len() < 5000, "bomb {i}: {} bytes of message", ended.stderr.len());
    }
}

/// Runs the test below in a process of its own, where limits may be changed, started by a shell line that
/// ends in `"$@"`. `None` where the shell line cannot do its part.
fn on_a_disk(case: &Case, trap: &str, disk: &Path, shell: &str) -> Output {
    let test = "faults::inside_merge_while_the_disk_fills";
    Command::new("sh")
        .args(["-c", shell, "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env("MERGEFORGE_TEST_TRAP", trap)
        .env("MERGEFORGE_TEST_DISK", disk)
        .env("MERGEFORGE_TEST_CONFIG", command::config(case.path(), &case.config()))
        .output()
        .unwrap()
}

#[track_caller]
fn assert_passed(output: &Output) {
    let reported = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && reported.contains("1 passed"),
        "{reported}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// The part of the tests below that needs a process, and perhaps a disk, of its own; by itself it does nothing.
#[test]
fn inside_merge_while_the_disk_fills() {
    let variable = |name: &str| std::env::var_os(format!("MERGEFORGE_TEST_{name}")).map(PathBuf::from);
    let (Some(config), Some(disk), Some(trap)) = (variable("CONFIG"), variable("DISK"), variable("TRAP"))
    else {
        return eprintln!("the tests of full disks start this one");
    };
    let error = merge_trapped(&config, &disk.join("out"), Step::Read, || match trap.to_str() {
        Some("full") => fill(&disk.join("fill")),
        _ => limit_files(),
    });
    assert_eq!(error.kind, Kind::Output, "{error}");
    let reported = if trap.to_str() == Some("full") { "disk full: cannot write " } else { "File too large" };
    assert!(
        error.message.contains(reported) && error.message.contains("out.partial/model.safetensors"),
        "{error}"
    );
    assert!(error.hint.is_some());
    assert_nothing_left(&disk);
}

/// Writes until nothing more fits.
fn fill(path: &Path) {
    let mut file = fs::File::create(path).unwrap();
    while file.write_all(&[1; 4096]).is_ok() {}
}

/// Lets this process write no file beyond its first page.
fn limit_files() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    setrlimit(Resource::Fsize, Rlimit { current: Some(4096), maximum: Some(4096) }).unwrap();
}

#[test]
fn a_write_that_fails_in_the_middle_leaves_nothing() {
    let case = Case::new();
    // Beyond the limit the system sends a signal, unless it is ignored.
    let shell = "trap '' XFSZ; exec \"$@\"";
    assert_passed(&on_a_disk(&case, "limit", case.path(), shell));
}

#[test]
fn a_disk_that_fills_during_the_merge_is_reported() {
    if !Command::new("unshare").args(["-rm", "true"]).status().is_ok_and(|status| status.success()) {
        return eprintln!("not run: this system gives no mount namespace");
    }
    let case = Case::new();
    let disk = tempfile::tempdir().unwrap();
    let shell = "exec unshare -rm sh -c 'mount -t tmpfs -o size=1m tmpfs \"$MERGEFORGE_TEST_DISK\" && exec \"$@\"' sh \"$@\"";
    assert_passed(&on_a_disk(&case, "full", disk.path(), shell));
}

#[test]
fn a_disk_that_is_too_small_is_reported_by_the_plan() {
    if !Command::new("unshare").args(["-rm", "true"]).status().is_ok_and(|status| status.success()) {
        return eprintln!("not run: this system gives no mount namespace");
    }
    let case = Case::new();
    let disk = tempfile::tempdir().unwrap();
    let mut command = Command::new("unshare");
    command
        .args([
            "-rm",
            "sh",
            "-c",
            "mount -t tmpfs -o size=16k tmpfs \"$0\" && \"$@\"; code=$?; ls -A \"$0\" >&2; exit $code",
        ])
        .arg(disk.path())
        .args([env!("CARGO_BIN_EXE_mergeforge"), "merge"])
        .args([command::config(case.path(), &case.config()), disk.path().join("out")]);
    let ended = ends(command).failed(4, &["the output needs 5", "only 16.4 kB are free", "hint: "]);
    assert!(!ended.stderr.contains("out.partial"), "{}", ended.stderr);
}

/// 120 MB of checkpoints: a merge of them lasts long enough to be interrupted at any moment.
pub fn large_case() -> Case {
    let model = |seed: u64| -> Tensors {
        let mut random = Random(seed);
        let mut tensor = |i: u32| {
            let elements = 1 << 20;
            // Any bits but those of NaN and infinity.
            let bytes = (0..elements / 4)
                .flat_map(|_| (random.next() & 0xbfff_bfff_bfff_bfff).to_le_bytes())
                .collect();
            (format!("model.layers.{i}.w"), Stored { dtype: Dtype::BF16, shape: vec![elements], bytes })
        };
        (0..20).map(&mut tensor).collect()
    };
    let case = Case::of(&model(1), &model(2), Form { shards: 3, ..PLAIN });
    models::write(&case.path().join("base"), &model(3), PLAIN);
    case
}

impl Case {
    /// A merge that reads its inputs several times.
    pub fn slow_config(&self) -> String {
        let model = |name| self.path().join(name).display().to_string();
        let (base, a, b) = (model("base"), model("a"), model("b"));
        format!(
            "merge_method: ties\nbase_model: {base}\nparameters: {{weight: 0.5, density: 0.5}}\nmodels: [{{model: {a}}}, {{model: {b}}}]\n"
        )
    }

    /// Starts a slow merge into `out`, on one thread and in small steps.
    pub fn start(&self) -> Child {
        let config = command::config(self.path(), &self.slow_config());
        let mut command = mergeforge();
        command.arg("merge").args([config, self.path().join("out")]).args([
            "-q",
            "-j1",
            "--chunk-tiles",
            "1",
        ]);
        command.spawn().unwrap()
    }

    /// How much of the output is on its way: files have their length from the start, blocks as they are written.
    fn written_bytes(&self) -> Option<u64> {
        use std::os::unix::fs::MetadataExt;
        let files = fs::read_dir(self.path().join("out.partial")).ok()?;
        Some(files.flatten().filter_map(|file| file.metadata().ok()).map(|file| file.blocks() * 512).sum())
    }

    /// Waits until so many bytes are written, or the merge is over.
    pub fn wait_for(&self, bytes: u64, child: &mut Child) {
        while self.written_bytes().is_none_or(|written| written < bytes)
            && child.try_wait().unwrap().is_none()
        {
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}

const LARGE_OUTPUT_BYTES: u64 = 40 << 20;

/// One after the other, because they share inputs that take a while to make.
#[test]
fn an_interrupted_merge_leaves_nothing_and_a_killed_one_is_taken_over() {
    let case = large_case();
    let before = fingerprint(case.path());
    merge(case.path(), &case.slow_config(), &["-q"]).succeeded();
    let expected = blake3::hash(&fs::read(case.path().join("out").join(SINGLE)).unwrap());
    fs::remove_dir_all(case.path().join("out")).unwrap();
    for signal in [Signal::INT, Signal::TERM] {
        interrupt_at_several_moments(&case, signal);
    }
    kill_and_merge_again(&case, expected);
    assert_unchanged(&before, case.path());
}

fn interrupt_at_several_moments(case: &Case, signal: Signal) {
    let mut random = Random(signal.as_raw() as u64);
    let mut interrupted = 0;
    for share in [0.0, random.unit() * 0.2, 0.2 + random.unit() * 0.3, 0.5 + random.unit() * 0.4] {
        let mut child = case.start();
        case.wait_for((share * LARGE_OUTPUT_BYTES as f64) as u64, &mut child);
        // It may be over already on a machine that is busy with something else.
        let _ = kill_process(Pid::from_child(&child), signal);
        let ended = Ended::from(child.wait_with_output().unwrap());
        if ended.code == Some(0) {
            fs::remove_dir_all(case.path().join("out")).unwrap();
            continue;
        }
        ended.failed(130, &["error: interrupted: no output was made"]);
        assert_nothing_left(case.path());
        interrupted += 1;
    }
    println!("{interrupted} of 4 came in time");
    assert!(interrupted > 0, "no signal came in time");
}

fn kill_and_merge_again(case: &Case, expected: blake3::Hash) {
    let mut child = case.start();
    case.wait_for(LARGE_OUTPUT_BYTES / 4, &mut child);
    child.kill().unwrap();
    assert_eq!(Ended::from(child.wait_with_output().unwrap()).code, None, "killed in the middle");
    assert!(case.path().join("out.partial").is_dir() && !case.path().join("out").exists());
    // Of another merge, longer than what comes: nothing of it may show.
    fs::write(case.path().join("out.partial/model-00009-of-00009.safetensors"), "old").unwrap();
    merge(case.path(), &case.slow_config(), &["-q"]).succeeded();
    let out = case.path().join("out");
    assert_eq!(models::safetensors_files(&out), [out.join(SINGLE)]);
    assert_eq!(blake3::hash(&fs::read(out.join(SINGLE)).unwrap()), expected);
    assert!(!out.join(".lock").exists() && !case.path().join("out.partial").exists());
    fs::remove_dir_all(out).unwrap();
}

#[test]
fn of_two_merges_to_one_place_one_is_refused() {
    let case = Case::new();
    let config = command::config(case.path(), &case.config());
    let out = case.path().join("out");
    for round in 0..20 {
        let start = |_| mergeforge().arg("merge").args([&config, &out]).spawn().unwrap();
        let children: Vec<Child> = (0..2).map(start).collect();
        let ended: Vec<Ended> =
            children.into_iter().map(|child| child.wait_with_output().unwrap().into()).collect();
        let codes: Vec<i32> = ended.iter().filter_map(|ended| ended.code).collect();
        assert_eq!(codes.iter().filter(|code| **code == 0).count(), 1, "round {round}: {ended:?}");
        // The other one came while the first was at work, or after it.
        assert!(codes.iter().all(|code| [0, 2, 4].contains(code)), "round {round}: {ended:?}");
        assert_eq!(models::read(&out).len(), 4, "round {round}");
        assert!(!case.path().join("out.partial").exists(), "round {round}: {ended:?}");
        fs::remove_dir_all(&out).unwrap();
    }
}

#[test]
fn a_merge_needs_nobody_who_hears_of_it() {
    let case = Case::new();
    let config = command::config(case.path(), &case.config());
    let out = case.path().join("out");
    let start = || {
        let mut command = mergeforge();
        command.arg("merge").args([&config, &out]);
        command
    };
    let merged = || {
        let merged = fingerprint(&out).into_iter().map(|(file, (hash, _))| (file, hash));
        let merged: BTreeMap<PathBuf, blake3::Hash> = merged.collect();
        fs::remove_dir_all(&out).unwrap();
        merged
    };
    assert!(start().output().unwrap().status.success());
    let expected = merged();
    let full = || OpenOptions::new().write(true).open("/dev/full").unwrap();
    // A pipe that nobody reads, and that has no room left.
    let stuck = || {
        let (reader, mut writer) = std::io::pipe().unwrap();
        rustix::io::ioctl_fionbio(&writer, true).unwrap();
        while writer.write(&[b'x'; 4096]).is_ok() {}
        (reader, writer)
    };
    for more in [&[][..], &["--json"]] {
        let mut child = start().args(more).spawn().unwrap();
        drop((child.stderr.take(), more.is_empty().then(|| child.stdout.take())));
        assert!(child.wait_with_output().unwrap().status.success(), "closed, {more:?}");
        assert!(merged() == expected, "closed, {more:?}");
        let output = start().args(more).stderr(full()).output().unwrap();
        assert!(output.status.success(), "full, {more:?}");
        assert!(merged() == expected, "full, {more:?}");
        let (_reader, writer) = stuck();
        let output = start().args(more).stderr(writer).output().unwrap();
        assert!(output.status.success(), "stuck, {more:?}");
        assert!(merged() == expected, "stuck, {more:?}");
    }
    let output = start().arg("--json").stdout(full()).output().unwrap();
    let said = [
        "cannot write to standard output: No space left",
        "all that the command writes elsewhere is complete",
    ];
    Ended::from(output).failed(4, &said);
    assert!(merged() == expected, "full standard output");
}

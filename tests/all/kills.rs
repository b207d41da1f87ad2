//! Merges that are killed at random moments and go on, on every kind of device: the output is that of a merge that was never killed.
//!
//! `MERGEFORGE_FAULTS=all` kills a hundred merges of each kind, in place of ten. A seed that fails is named; `MERGEFORGE_KILLS=SEED` begins
//! with that one.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::command::{self, Ended, assert_nothing_left, mergeforge};
use crate::models::{self, PLAIN, Random, Stored, Tensors};
use safetensors::Dtype;

/// Merges that are killed, unless all is tried.
const KILLS: usize = 10;
const ALL_KILLS: usize = 100;

/// Tensors of a model, and elements of each: chunks enough to be killed in between.
const TENSORS: usize = 12;

/// A merge goes on at most so often before it is left alone: else one that is killed early each time has no end.
const TIMES: usize = 4;

/// Whether all is tried.
fn all() -> bool {
    std::env::var_os("MERGEFORGE_FAULTS").is_some_and(|value| value == "all")
}

/// Three models with a tokenizer, and a merge of them.
pub struct Case {
    folder: tempfile::TempDir,
    config: PathBuf,
}

impl Case {
    pub fn new(elements: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut models = Vec::new();
        for (seed, name) in ["base", "a", "b"].into_iter().enumerate() {
            let mut random = Random(seed as u64 + 1);
            // Any bits but those of NaN and infinity.
            let mut bytes = || {
                let number = |_| (random.next() & 0xbfff_bfff_bfff_bfff).to_le_bytes();
                (0..elements / 4).flat_map(number).collect::<Vec<u8>>()
            };
            let stored = |bytes| Stored { dtype: Dtype::BF16, shape: vec![elements], bytes };
            let tensors: Tensors =
                (0..TENSORS).map(|i| (format!("layers.{i:02}.w"), stored(bytes()))).collect();
            let place = folder.path().join(name);
            models::write(&place, &tensors, PLAIN);
            fs::write(place.join("LICENSE"), "Do what you like.\n").unwrap();
            models.push(place.display().to_string());
        }
        let [base, a, b] = &models[..] else { unreachable!("there are three") };
        let text = format!(
            "merge_method: ties\nbase_model: {base}\nparameters: {{weight: 0.5, density: 0.6}}\nmodels: [{{model: {a}}}, {{model: {b}}}]\n"
        );
        let config = command::config(folder.path(), &text);
        Self { folder, config }
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    fn out(&self) -> PathBuf {
        self.path().join("out")
    }

    /// Starts a merge by a command that is the program as it is, or on some driver.
    fn start(&self, program: &dyn Fn() -> Command, flags: &[&str]) -> Child {
        let out_shard = ["-j1", "--chunk-tiles", "1", "--out-shard-size", "1MB"];
        let mut command = program();
        command.arg("merge").args([&self.config, &self.out()]).args(out_shard).args(flags).spawn().unwrap()
    }

    fn merge(&self, program: &dyn Fn() -> Command, flags: &[&str]) -> Ended {
        self.start(program, flags).wait_with_output().unwrap().into()
    }

    /// The files of the output, which is taken away.
    fn taken(&self) -> BTreeMap<String, Vec<u8>> {
        let mut files = BTreeMap::new();
        for file in fs::read_dir(self.out()).unwrap().map(|entry| entry.unwrap().path()) {
            let name = file.file_name().unwrap().to_str().unwrap().to_owned();
            // A merge that is killed right after it gave the folder its name leaves these.
            if ![".lock", ".journal"].contains(&name.as_str()) {
                files.insert(name, fs::read(file).unwrap());
            }
        }
        fs::remove_dir_all(self.out()).unwrap();
        files
    }
}

/// Kills merges by a command with these flags at random moments, lets them go on, and compares what comes of them with a merge that was
/// never killed.
#[track_caller]
pub fn survives(name: &str, elements: usize, program: &dyn Fn() -> Command, flags: &[&str]) {
    let case = Case::new(elements);
    // The first one compiles kernels and fills caches.
    case.merge(program, flags).succeeded();
    let whole = case.taken();
    let began = Instant::now();
    case.merge(program, flags).succeeded();
    let took = began.elapsed();
    assert!(case.taken() == whole, "{name}: two merges differ");
    let first = std::env::var("MERGEFORGE_KILLS").map_or(0, |seed| seed.parse().expect("a number"));
    let wanted = if all() { ALL_KILLS } else { KILLS };
    let (mut kills, mut equal, mut went_on, mut seed) = (0, 0, 0, first);
    // Whether a kill comes late enough for something to be taken over is chance: it is tried until one has.
    while kills < wanted || went_on == 0 && kills < 10 * wanted {
        let mut random = Random(seed);
        let mut times = 0;
        while !case.out().exists() {
            let mut child = case.start(program, flags);
            if times < TIMES {
                let moment = random.next() % took.as_micros() as u64;
                std::thread::sleep(Duration::from_micros(moment));
                kills += usize::from(child.try_wait().unwrap().is_none());
                let _ = child.kill();
            }
            let ended = Ended::from(child.wait_with_output().unwrap());
            assert!(
                matches!(ended.code, None | Some(0)),
                "{name}, seed {seed}, after {times} kills: {}",
                ended.stderr
            );
            went_on += usize::from(ended.stderr.contains("this merge goes on from there"));
            times += 1;
        }
        assert!(case.taken() == whole, "{name}, seed {seed}, after {times} kills: the bytes differ");
        assert_nothing_left(case.path());
        (equal, seed) = (equal + 1, seed + 1);
    }
    println!(
        "{name}: {kills} kills, {equal} merges with equal bytes, {went_on} times something was taken over"
    );
    assert!(went_on > 0, "{name}: nothing was ever taken over");
}

#[test]
fn a_merge_on_the_cpu_survives_kills_at_any_moment() {
    survives("cpu", 60_000, &mergeforge, &["--device", "cpu"]);
}

#[test]
fn a_merge_that_is_asked_to_end_while_it_compares_goes_on_to_the_same_bytes() {
    // 80 MB: comparing them takes a while.
    let case = Case::new(TENSORS.div_ceil(3) * 1_000_000);
    let flags = ["--out-shard-size", "20MB"];
    let start = || {
        let out = case.out();
        mergeforge()
            .arg("merge")
            .args([&case.config, &out])
            .args(["-j1", "--chunk-tiles", "16"])
            .args(flags)
            .spawn()
            .unwrap()
    };
    let ended: Ended = start().wait_with_output().unwrap().into();
    ended.succeeded();
    let whole = case.taken();
    let noted = || {
        let journal = fs::read(case.path().join("out.partial/.journal")).unwrap_or_default();
        journal.split(|byte| *byte == b'\n').count().saturating_sub(2)
    };
    for signal in [Signal::TERM, Signal::INT, Signal::KILL] {
        let mut child = start();
        while noted() < TENSORS - 2 {
            assert!(child.try_wait().unwrap().is_none(), "it ended before it was killed");
            std::thread::sleep(Duration::from_micros(100));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let finished = noted();
        let mut child = start();
        let mut said = String::new();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        while !said.contains("comparing the ") {
            assert_ne!(stderr.read_line(&mut said).unwrap(), 0, "{said}");
        }
        kill_process(Pid::from_child(&child), signal).unwrap();
        std::io::Read::read_to_string(&mut stderr, &mut said).unwrap();
        let status = child.wait().unwrap();
        let expected = (signal != Signal::KILL).then_some(130);
        assert_eq!(status.code(), expected, "{said}");
        assert_eq!(noted(), finished, "what was finished stays: {said}");
        let ended: Ended = start().wait_with_output().unwrap().into();
        assert!(ended.succeeded().stderr.contains("this merge goes on from there"));
        assert!(case.taken() == whole, "after {signal:?} the bytes differ");
    }
}

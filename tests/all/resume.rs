//! Merges that were stopped and go on: what is finished is taken over if its bytes are those that were noted, everything else is made
//! again, and the output is that of a merge that was never stopped.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::command::{self, Ended, assert_nothing_left, mergeforge};
use crate::models::{self, PLAIN, Random, Stored, Tensors};

/// Tensors of an output, and elements of each: enough to be stopped in between.
const TENSORS: usize = 24;
const ELEMENTS: usize = 100_000;

/// Three models, and a merge of them that takes a while.
struct Case {
    folder: tempfile::TempDir,
    config: String,
}

impl Case {
    fn new(elements: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut entries = Vec::new();
        for (seed, name) in ["base", "a", "b"].into_iter().enumerate() {
            let mut random = Random(seed as u64 + 1);
            // Any bits but those of NaN and infinity.
            let mut bytes = || {
                let number = |_| (random.next() & 0xbfff_bfff_bfff_bfff).to_le_bytes();
                (0..elements / 4).flat_map(number).collect::<Vec<u8>>()
            };
            let mut tensor = |i: usize| {
                let dtype = safetensors::Dtype::BF16;
                (format!("layers.{i:02}.w"), Stored { dtype, shape: vec![elements], bytes: bytes() })
            };
            let tensors: Tensors = (0..TENSORS).map(&mut tensor).collect();
            let place = folder.path().join(name);
            models::write(&place, &tensors, PLAIN);
            entries.push(place.display().to_string());
        }
        let [base, a, b] = &entries[..] else { unreachable!("there are three") };
        let models = format!(
            "  - {{model: {a}, parameters: {{weight: 0.5, density: 0.5}}}}\n  - {{model: {b}, parameters: {{weight: 0.3, density: 0.7}}}}\n"
        );
        let config = format!("merge_method: ties\nbase_model: {base}\nmodels:\n{models}");
        Self { folder, config }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn partial(&self) -> PathBuf {
        self.path().join("out.partial")
    }

    fn start(&self, more: &[&str]) -> Child {
        let config = command::config(self.path(), &self.config);
        let slowly = ["-j1", "--chunk-tiles", "1"];
        let sharded = ["--out-shard-size", "2MB"];
        let sharded = if more.contains(&sharded[0]) { &[][..] } else { &sharded[..] };
        let out = self.path().join("out");
        mergeforge().arg("merge").args([config, out]).args(slowly).args(sharded).args(more).spawn().unwrap()
    }

    fn merge(&self, more: &[&str]) -> Ended {
        Ended::from(self.start(more).wait_with_output().unwrap())
    }

    /// How many tensors the journal has.
    fn noted(&self) -> usize {
        let journal = fs::read(self.partial().join(".journal")).unwrap_or_default();
        journal.split(|byte| *byte == b'\n').count().saturating_sub(2)
    }

    /// Starts a merge and ends it when so many tensors are finished.
    fn stopped_at(&self, tensors: usize, signal: Signal) -> Ended {
        self.stopped_after(tensors, || {}, signal)
    }

    /// The same, after something else was done then.
    fn stopped_after(&self, tensors: usize, done: impl Fn(), signal: Signal) -> Ended {
        const TRIES: usize = 20;
        for _ in 0..TRIES {
            let mut child = self.start(&[]);
            while self.noted() < tensors && child.try_wait().unwrap().is_none() {
                std::thread::sleep(Duration::from_micros(100));
            }
            // Held, so that it does not end meanwhile.
            let pid = Pid::from_child(&child);
            let _ = kill_process(pid, Signal::STOP);
            if self.partial().is_dir() {
                done();
                let _ = kill_process(pid, signal);
            }
            let _ = kill_process(pid, Signal::CONT);
            let ended = Ended::from(child.wait_with_output().unwrap());
            if ended.code != Some(0) {
                return ended;
            }
            // It was over before.
            fs::remove_dir_all(self.path().join("out")).unwrap();
        }
        panic!("{TRIES} merges were over before the signal");
    }

    /// The files of the output.
    fn output(&self) -> Vec<(String, Vec<u8>)> {
        let out = self.path().join("out");
        let mut files: Vec<(String, Vec<u8>)> = fs::read_dir(&out)
            .unwrap()
            .map(|file| file.unwrap().path())
            .map(|file| (file.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(file).unwrap()))
            .collect();
        files.sort();
        files
    }

    /// The output of a merge that is not stopped; none is left.
    fn whole(&self) -> Vec<(String, Vec<u8>)> {
        self.merge(&[]).succeeded();
        let whole = self.output();
        fs::remove_dir_all(self.path().join("out")).unwrap();
        whole
    }
}

#[test]
fn a_killed_merge_goes_on_at_any_moment_to_the_same_bytes() {
    let case = Case::new(ELEMENTS);
    let whole = case.whole();
    let (mut random, mut total) = (Random(20), 0);
    for round in 0..6 {
        let mut kills = 0;
        // Whether it is killed before or after the rename, the output is whole.
        while !case.path().join("out").exists() {
            let mut child = case.start(&[]);
            // The later it is, the more it may have done: on a busy machine it takes long to begin.
            std::thread::sleep(Duration::from_millis(random.next() % (20 * (kills + 2))));
            let _ = child.kill();
            let ended = Ended::from(child.wait_with_output().unwrap());
            assert!(matches!(ended.code, None | Some(0)), "after {kills} kills: {}", ended.stderr);
            kills += 1;
        }
        total += kills;
        for left in [".lock", ".journal"] {
            let _ = fs::remove_file(case.path().join("out").join(left));
        }
        assert_eq!(case.output(), whole, "round {round}, after {kills} kills");
        fs::remove_dir_all(case.path().join("out")).unwrap();
        assert_nothing_left(case.path());
    }
    println!("{total} kills");
    assert!(total > 20, "only {total} kills");
}

/// How much a merge says it has read.
fn read_megabytes(stderr: &str) -> f64 {
    let number = stderr.split(" MB read").next().unwrap().rsplit(' ').next().unwrap();
    number.parse().unwrap_or_else(|_| panic!("{stderr}"))
}

#[test]
fn what_is_finished_is_not_merged_again() {
    let case = Case::new(ELEMENTS);
    let whole_read = read_megabytes(&case.merge(&[]).succeeded().stderr);
    let whole = case.output();
    fs::remove_dir_all(case.path().join("out")).unwrap();
    case.stopped_at(TENSORS / 2, Signal::KILL);
    let noted = case.noted();
    assert!(noted >= TENSORS / 2 && case.partial().is_dir());
    let ended = case.merge(&[]).succeeded();
    assert!(read_megabytes(&ended.stderr) < 0.8 * whole_read, "{}", ended.stderr);
    let bytes = mergeforge::text::bytes((noted * 2 * ELEMENTS) as u64);
    let goes_on = format!("{bytes} of 4.8 MB are finished, and this merge goes on from there");
    let rest = mergeforge::text::bytes(((TENSORS - noted) * 2 * ELEMENTS) as u64);
    let written = format!(", {rest} written, {bytes} were there)");
    assert!(ended.stderr.contains(&goes_on) && ended.stderr.contains(&written), "{}", ended.stderr);
    assert_eq!(case.output(), whole);
}

/// What is done to what a stopped merge left, in words.
type Damage<'a> = (&'a str, &'a dyn Fn(&Case));

#[test]
fn what_has_other_bytes_than_noted_is_merged_again() {
    let case = Case::new(ELEMENTS);
    let whole = case.whole();
    let shards = |case: &Case| models::safetensors_files(&case.partial());
    let damages: [Damage; 6] = [
        ("a byte", &|case| {
            let shard = &shards(case)[0];
            let mut bytes = fs::read(shard).unwrap();
            let at = bytes.len() - 1;
            bytes[at] ^= 1;
            fs::write(shard, bytes).unwrap();
        }),
        ("a header", &|case| {
            let shard = &shards(case)[0];
            let mut bytes = fs::read(shard).unwrap();
            bytes[20] ^= 1;
            fs::write(shard, bytes).unwrap();
        }),
        ("a file that is cut short", &|case| {
            File::options().write(true).open(&shards(case)[0]).unwrap().set_len(1000).unwrap();
        }),
        ("a file that is gone", &|case| fs::remove_file(&shards(case)[0]).unwrap()),
        ("a file too many", &|case| {
            fs::write(case.partial().join("model-00009-of-00009.safetensors"), "old").unwrap();
        }),
        ("a line cut off", &|case| {
            let mut journal = File::options().append(true).open(case.partial().join(".journal")).unwrap();
            journal.write_all(b"0123456789abcdef {\"tensor\":0").unwrap();
        }),
    ];
    for (what, damage) in damages {
        case.stopped_at(TENSORS / 2, Signal::KILL);
        damage(&case);
        case.merge(&[]).succeeded();
        assert_eq!(case.output(), whole, "{what}");
        fs::remove_dir_all(case.path().join("out")).unwrap();
    }
}

#[test]
fn another_merge_is_refused_by_what_differs() {
    let mut case = Case::new(ELEMENTS);
    case.stopped_at(TENSORS / 2, Signal::KILL);
    let before = fs::read(case.partial().join(".journal")).unwrap();
    let refused = |case: &Case, what: &str, more: &[&str]| {
        let says = [
            "out.partial holds part of a different merge",
            "(changed: ",
            what,
            "hint: give --restart to begin anew",
        ];
        case.merge(more).failed(2, &says);
        assert_eq!(fs::read(case.partial().join(".journal")).unwrap(), before, "{what}");
    };
    let config = case.config.clone();
    case.config = config.replace("0.3", "0.4");
    refused(&case, "the config", &[]);
    case.config = config;
    refused(&case, "the seed", &["--random-seed", "7"]);
    refused(&case, "the tensors or the sizes of shards", &["--out-shard-size", "1MB"]);
    let a = case.path().join("a");
    let input = models::safetensors_files(&a).remove(0);
    let this_input = format!("(changed: the input {})", a.display());
    let times = fs::metadata(&input).unwrap().modified().unwrap();
    let file = File::options().write(true).open(&input).unwrap();
    file.set_modified(times + Duration::from_secs(5)).unwrap();
    refused(&case, &this_input, &[]);
    // Another content of the same size, header and time.
    let content = fs::read(&input).unwrap();
    let other: Vec<u8> = content
        .iter()
        .enumerate()
        .map(|(at, byte)| if at > content.len() / 2 { !byte } else { *byte })
        .collect();
    fs::write(&input, other).unwrap();
    file.set_modified(times).unwrap();
    refused(&case, &this_input, &[]);
    fs::write(&input, content).unwrap();
    file.set_modified(times).unwrap();
    // Of what is planned alone, too.
    let planned = mergeforge()
        .arg("plan")
        .args([
            command::config(case.path(), &case.config.replace("0.3", "0.4")),
            "--out".into(),
            case.path().join("out"),
        ])
        .output()
        .unwrap();
    Ended::from(planned).failed(2, &["part of a different merge"]);
    case.config = case.config.replace("0.3", "0.4");
    let ended = case.merge(&["--restart"]).succeeded();
    assert!(!ended.stderr.contains("an earlier merge"), "{}", ended.stderr);
    let restarted = case.output();
    fs::remove_dir_all(case.path().join("out")).unwrap();
    assert_eq!(restarted, case.whole());
}

#[test]
fn hashes_of_inputs_make_no_other_merge() {
    let case = Case::new(ELEMENTS);
    let hashing = ["--hash-inputs"];
    case.merge(&hashing).succeeded();
    let whole = case.output();
    fs::remove_dir_all(case.path().join("out")).unwrap();
    let mut child = case.start(&hashing);
    while case.noted() < TENSORS / 2 && child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_micros(100));
    }
    let _ = child.kill();
    assert_eq!(child.wait_with_output().unwrap().status.code(), None, "it was over before the signal");
    let ended = case.merge(&hashing).succeeded();
    assert!(ended.stderr.contains("this merge goes on from there"), "{}", ended.stderr);
    assert_eq!(case.output(), whole);
}

#[test]
fn who_stops_a_merge_keeps_what_is_worth_it_and_hears_how_to_go_on() {
    let small = Case::new(ELEMENTS);
    small.stopped_at(TENSORS / 2, Signal::INT).failed(130, &["interrupted"]);
    assert_nothing_left(small.path());
    // 96 MB.
    let large = Case::new(20 * ELEMENTS);
    // Nothing stays where somebody has taken it away.
    let elsewhere = large.path().join("elsewhere");
    let take_away = || fs::rename(large.partial(), &elsewhere).unwrap();
    let ended = large.stopped_after(TENSORS - 4, take_away, Signal::TERM).failed(130, &["interrupted"]);
    assert!(!ended.stderr.contains("are finished"), "{}", ended.stderr);
    fs::remove_dir_all(elsewhere).unwrap();
    for signal in [Signal::INT, Signal::TERM] {
        let _ = fs::remove_dir_all(large.partial());
        let ended =
            large.stopped_at(TENSORS - 4, signal).failed(130, &["interrupted", " are finished and stay in "]);
        let says =
            "out.partial: the same command goes on from there, and who removes that folder begins anew";
        assert!(ended.stderr.contains(says), "{}", ended.stderr);
        assert!(large.noted() >= TENSORS - 4);
    }
    large.merge(&[]).succeeded();
    let resumed = large.output();
    fs::remove_dir_all(large.path().join("out")).unwrap();
    assert_eq!(resumed, large.whole());
}

#[test]
fn what_a_merge_left_half_removed_is_no_hindrance() {
    let case = Case::new(ELEMENTS);
    let whole = case.whole();
    let gone: [&[&str]; 3] = [
        &[".journal"],
        &["model-00001-of-00003.safetensors"],
        &["model-00001-of-00003.safetensors", ".journal"],
    ];
    for names in gone {
        case.stopped_at(TENSORS / 2, Signal::KILL);
        names.iter().for_each(|name| fs::remove_file(case.partial().join(name)).unwrap());
        case.merge(&[]).succeeded();
        assert_eq!(case.output(), whole, "without {names:?}");
        fs::remove_dir_all(case.path().join("out")).unwrap();
    }
}

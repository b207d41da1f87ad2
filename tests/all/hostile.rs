//! Malformed checkpoints and configs by the hundred. Each one ends soon, in little memory and with few words; a refused one
//! leaves nothing behind, and no input is touched.
//!
//! Every case is a process of its own, `mergeforge merge --device cpu --quiet`, in a folder of its own. The cases are the
//! same in every run: written by hand, or made from seeds.

pub mod checkpoints;
mod companions;
mod configs;
mod files;
mod floods;
mod headers;
mod pickles;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Seek};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use safetensors::Dtype;

use crate::command::{ROOT, mergeforge};
use crate::models::{self, PLAIN, Tensors, stored, weights};

/// Processor time, of user and system: the clock on the wall says more about what else runs.
const CPU_MAX: Duration = Duration::from_secs(2);

/// The largest resident set.
const PEAK_BYTES_MAX: u64 = 200_000_000;

/// An error, and a hint or two.
const LINES_MAX: usize = 3;

/// Eight errors, and how many more there are. Of several, each has a hint at most.
const ERRORS_MAX: usize = 9;

/// A message has 1000 characters, before them stands its kind.
const LINE_CHARS_MAX: usize = 1100;

/// A run that never ends fails its case after this.
const PATIENCE: Duration = Duration::from_mins(1);

/// Cases that run at the same time.
const RUNNERS: usize = 2;

/// How a case may end.
#[derive(Debug, Clone, Copy)]
pub enum Ends {
    /// The checkpoint is damaged, and nothing else is wrong: exit code 3.
    Damaged,
    /// Refused by whoever sees it first: the plan (2), the reader of the checkpoint (3), or the check of the disk (4).
    Refused,
    /// Odd, but perhaps meant: merged, or refused like others.
    Open,
    /// Odd, and right.
    Merged,
}

impl Ends {
    fn codes(self) -> &'static [i32] {
        match self {
            Ends::Damaged => &[3],
            Ends::Refused => &[2, 3, 4],
            Ends::Open => &[0, 2, 3, 4],
            Ends::Merged => &[0],
        }
    }
}

/// What is done to a folder before the merge.
type Make = Box<dyn Fn(&Path) + Send + Sync>;

/// Something malformed.
pub struct Case {
    /// What is wrong with it.
    name: String,
    ends: Ends,
    /// Fills the case's folder: `config.yml`, and the models that it names but `../a` and `../b`, which are intact.
    make: Make,
}

impl Case {
    fn new(name: String, ends: Ends, make: impl Fn(&Path) + Send + Sync + 'static) -> Self {
        Self { name, ends, make: Box::new(make) }
    }
}

/// A small model of two layers, an embedding and a norm.
fn tensors(seed: u64) -> Tensors {
    let tensor = |(i, (name, shape)): (usize, (&str, &[usize]))| {
        let values = weights(shape.iter().product(), 10 * seed + i as u64);
        (name.to_string(), stored(Dtype::BF16, shape, &values))
    };
    let shapes: [(&str, &[usize]); 4] = [
        ("model.embed_tokens.weight", &[8, 4]),
        ("model.layers.0.w", &[4, 4]),
        ("model.layers.1.w", &[4, 4]),
        ("model.norm.weight", &[4]),
    ];
    shapes.into_iter().enumerate().map(tensor).collect()
}

/// Writes the model whole, with a tokenizer.
fn write_model(folder: &Path, seed: u64, shards: usize) {
    models::write(folder, &tensors(seed), models::Form { shards, ..PLAIN });
    fs::write(folder.join("tokenizer.json"), r#"{"version":"1.0"}"#).unwrap();
}

/// What lies in a folder: links are not followed, and small files are known by what they hold.
type Listing = BTreeMap<PathBuf, (u32, u64, Option<SystemTime>, Option<blake3::Hash>)>;

fn list(folder: &Path, into: &mut Listing) {
    const HASHED_BYTES_MAX: u64 = 1 << 16;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let found = path.symlink_metadata().unwrap();
        if found.is_dir() {
            into.insert(path.clone(), (found.mode(), 0, None, None));
            list(&path, into);
            continue;
        }
        let hashed = found.is_file() && (1..=HASHED_BYTES_MAX).contains(&found.len());
        let hash = hashed.then(|| blake3::hash(&fs::read(&path).unwrap()));
        into.insert(path, (found.mode(), found.len(), found.modified().ok(), hash));
    }
}

fn listing(folder: &Path) -> Listing {
    let mut found = Listing::new();
    list(folder, &mut found);
    found
}

/// How a process ended, and what it took.
struct Taken {
    status: ExitStatus,
    wall: Duration,
    cpu: Duration,
    peak_bytes: u64,
}

/// Waits for a child, by `wait4`, which also says what it took; `None` while it runs.
fn waited(child: &Child, wall: Duration) -> Option<Taken> {
    let (mut status, mut usage) = (0, std::mem::MaybeUninit::<libc::rusage>::zeroed());
    // SAFETY: both pointers lead to variables of this function, and all zeros are a `rusage` too.
    let (pid, usage) = unsafe {
        let pid = libc::wait4(child.id().cast_signed(), &raw mut status, libc::WNOHANG, usage.as_mut_ptr());
        (pid, usage.assume_init())
    };
    assert!(pid >= 0, "a child can be waited for: {}", std::io::Error::last_os_error());
    let time = |time: libc::timeval| Duration::new(time.tv_sec as u64, time.tv_usec as u32 * 1000);
    let unit = if cfg!(target_vendor = "apple") { 1 } else { 1024 };
    (pid > 0).then(|| Taken {
        status: ExitStatus::from_raw(status),
        wall,
        cpu: time(usage.ru_utime) + time(usage.ru_stime),
        peak_bytes: usage.ru_maxrss as u64 * unit,
    })
}

/// Waits for a child; one that does not end is killed, and `None`.
fn wait(child: &mut Child) -> Option<Taken> {
    let started = Instant::now();
    loop {
        if let Some(taken) = waited(child, started.elapsed()) {
            return Some(taken);
        }
        if started.elapsed() > PATIENCE {
            child.kill().unwrap();
            child.wait().unwrap();
            return None;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The text that a process wrote, and how long it was: the first megabyte is more than enough to judge.
fn written(mut file: File) -> (Vec<u8>, u64) {
    let bytes = file.metadata().unwrap().len();
    let mut text = Vec::new();
    file.rewind().unwrap();
    file.take(1 << 20).read_to_end(&mut text).unwrap();
    (text, bytes)
}

/// A program that copies what has no end shall not fill the disk that the test runs on.
fn limit_files(child: &Child) {
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{Pid, Resource, Rlimit, prlimit};
        let bytes = Some(1 << 30);
        // One that has ended already needs none.
        let limit = Rlimit { current: bytes, maximum: bytes };
        let _ = prlimit(Some(Pid::from_child(child)), Resource::Fsize, limit);
    }
    let _ = child;
}

/// Merges in a folder and returns what was wrong with how that ended, with what it took.
fn merge(folder: &Path, ends: Ends) -> (Vec<String>, Option<Taken>) {
    judged(folder, &["merge", "--device", "cpu", "--quiet", "config.yml", "out"], ends, false)
}

/// The same of any command, which may answer on standard output or not.
fn judged(folder: &Path, words: &[&str], ends: Ends, answers: bool) -> (Vec<String>, Option<Taken>) {
    let (out, err) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    let mut command = mergeforge();
    command.args(words).current_dir(folder);
    command.env("HOME", "/nowhere");
    command.stdout(Stdio::from(out.try_clone().unwrap())).stderr(Stdio::from(err.try_clone().unwrap()));
    let mut child = command.spawn().unwrap();
    limit_files(&child);
    let Some(taken) = wait(&mut child) else {
        return (vec![format!("does not end within {PATIENCE:?}")], None);
    };
    let mut wrong = wrong_end(&taken, ends);
    if !answers && written(out).1 > 0 {
        wrong.push("says something on standard output".into());
    }
    let (text, bytes) = written(err);
    wrong.extend(wrong_words(&text, bytes, taken.status.code() != Some(0)));
    if !wrong.is_empty() {
        let shown: String = String::from_utf8_lossy(&text).chars().take(400).collect();
        wrong.push(format!("it said {shown:?}"));
    }
    (wrong, Some(taken))
}

/// What is wrong with how a process ended and what it took.
fn wrong_end(taken: &Taken, ends: Ends) -> Vec<String> {
    let mut wrong = Vec::new();
    match taken.status.code() {
        None => wrong.push(format!("{}", taken.status)),
        Some(code) if !ends.codes().contains(&code) => {
            wrong.push(format!("exit code {code}, not one of {:?}", ends.codes()));
        }
        Some(_) => {}
    }
    if taken.cpu > CPU_MAX {
        wrong.push(format!("{:.1} s of processor time", taken.cpu.as_secs_f64()));
    }
    if taken.peak_bytes > PEAK_BYTES_MAX {
        wrong.push(format!("{} MB of memory", taken.peak_bytes / 1_000_000));
    }
    wrong
}

/// What is wrong with what was said.
fn wrong_words(text: &[u8], bytes: u64, refused: bool) -> Vec<String> {
    let mut wrong = Vec::new();
    let Ok(text) = std::str::from_utf8(text) else { return vec!["the message is not UTF-8".into()] };
    let lines = text.lines().count();
    let longest = text.lines().map(|line| line.chars().count()).max().unwrap_or(0);
    let errors = text.lines().filter(|line| line.starts_with("error: ")).count();
    if errors > ERRORS_MAX {
        wrong.push(format!("{errors} errors"));
    }
    if lines > LINES_MAX.max(2 * errors) || bytes > text.len() as u64 {
        wrong.push(format!("{lines} lines or more"));
    }
    if longest > LINE_CHARS_MAX {
        wrong.push(format!("a line of {longest} characters or more"));
    }
    if let Some(c) = text.chars().find(|c| steers(*c)) {
        wrong.push(format!("{c:?} in the message"));
    }
    if ["panicked", "RUST_BACKTRACE", "overflowed its stack", "memory allocation"]
        .iter()
        .any(|w| text.contains(w))
    {
        wrong.push("a panic".into());
    }
    if refused && errors == 0 {
        wrong.push("no error is reported".into());
    }
    wrong
}

/// Whether a character has no place in a message: it steers a terminal, or changes the order of what is read.
fn steers(c: char) -> bool {
    const DIRECTIONS: &str =
        "\u{61c}\u{200e}\u{200f}\u{202a}\u{202b}\u{202c}\u{202d}\u{202e}\u{2066}\u{2067}\u{2068}\u{2069}";
    (c.is_control() && c != '\n') || DIRECTIONS.contains(c) || matches!(c, '\u{2028}' | '\u{2029}')
}

/// What is in a folder that was not there before, and what is no longer as it was.
fn changed(before: &Listing, folder: &Path, merged: bool) -> Vec<String> {
    if merged {
        fs::remove_dir_all(folder.join("out")).unwrap();
    }
    let after = listing(folder);
    let named =
        |what: &str, path: &Path| format!("{what} {}", path.strip_prefix(folder).unwrap_or(path).display());
    let left =
        after.keys().filter(|path| !before.contains_key(*path)).map(|path| named("left behind:", path));
    let touched = before.iter().filter(|(path, was)| after.get(*path) != Some(was));
    left.chain(touched.map(|(path, _)| named("changed:", path))).take(5).collect()
}

/// Runs a case in a folder that it makes and takes away.
fn run(case: &Case, folder: &Path) -> (Vec<String>, Option<Taken>) {
    fs::create_dir(folder).unwrap();
    (case.make)(folder);
    let before = listing(folder);
    let (mut wrong, taken) = merge(folder, case.ends);
    let merged = taken.as_ref().is_some_and(|taken| taken.status.code() == Some(0));
    wrong.extend(changed(&before, folder, merged));
    fs::remove_dir_all(folder).unwrap();
    (wrong, taken)
}

/// Runs all cases and reports those that ended otherwise than they should, together.
fn run_all(cases: &[Case]) {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    write_model(&root.join("a"), 1, 1);
    write_model(&root.join("b"), 2, 1);
    files::write_elsewhere(&root.join("elsewhere"));
    let intact = listing(root);
    let (next, results) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    let started = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..RUNNERS {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let Some(case) = cases.get(i) else { break };
                    let result = run(case, &root.join(format!("case-{i}")));
                    results.lock().unwrap().insert(i, result);
                }
            });
        }
    });
    let results = results.into_inner().unwrap();
    assert_eq!(results.len(), cases.len());
    let least = results.values().filter_map(|(_, taken)| Some(taken.as_ref()?.peak_bytes)).min();
    assert!(
        least < Some(PEAK_BYTES_MAX / 4),
        "no child has less than {least:?}: it is this process that is measured"
    );
    assert!(intact == listing(root), "the intact models were modified");
    summary(cases, &results, started.elapsed());
    let failed: Vec<String> = results
        .iter()
        .filter(|(_, (wrong, _))| !wrong.is_empty())
        .map(|(i, (wrong, _))| format!("{}: {}", cases[*i].name, wrong.join("; ")))
        .collect();
    assert!(failed.is_empty(), "{} of {} cases:\n{}", failed.len(), cases.len(), failed.join("\n"));
}

/// What the cases took, for those who read along.
fn summary(cases: &[Case], results: &BTreeMap<usize, (Vec<String>, Option<Taken>)>, wall: Duration) {
    let taken = || results.iter().filter_map(|(i, (_, taken))| Some((&cases[*i].name, taken.as_ref()?)));
    let merged = taken().filter(|(_, taken)| taken.status.success()).count();
    println!("{} cases in {:.1} s, {merged} of them merged", cases.len(), wall.as_secs_f64());
    if let Some((name, most)) = taken().max_by_key(|(_, taken)| taken.wall) {
        println!("most time: {:.2} s, {name}", most.wall.as_secs_f64());
    }
    if let Some((name, most)) = taken().max_by_key(|(_, taken)| taken.cpu) {
        println!("most processor time: {:.2} s, {name}", most.cpu.as_secs_f64());
    }
    let refused = taken().filter(|(_, taken)| !taken.status.success());
    if let Some((name, most)) = refused.max_by_key(|(_, taken)| taken.cpu) {
        println!("most processor time of those refused: {:.2} s, {name}", most.cpu.as_secs_f64());
    }
    if let Some((name, most)) = taken().max_by_key(|(_, taken)| taken.peak_bytes) {
        println!("most memory: {} MB, {name}", most.peak_bytes / 1_000_000);
    }
}

/// Runs a test of this module in a process of its own, where `ALONE` says that it is there.
///
/// Linux counts what a process had before it became another program, so that a child's largest resident set is at least its
/// parent's: beside other tests, which merge large models, it would say nothing.
fn alone(test: &str, body: impl FnOnce()) {
    const ALONE: &str = "MERGEFORGE_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return body();
    }
    let path = format!("hostile::{test}");
    let mut command = Command::new(std::env::current_exe().unwrap());
    let output = command.args(["--exact", &path, "--nocapture"]).env(ALONE, "1").output().unwrap();
    let reported = String::from_utf8_lossy(&output.stdout);
    println!("{reported}");
    let passed = output.status.success() && reported.contains("1 passed");
    assert!(passed, "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn malformed_checkpoints_end_soon_in_little_memory_with_few_words() {
    alone("malformed_checkpoints_end_soon_in_little_memory_with_few_words", || run_all(&checkpoints::all()));
}

#[test]
fn malformed_configs_end_soon_in_little_memory_with_few_words() {
    alone("malformed_configs_end_soon_in_little_memory_with_few_words", || run_all(&configs::all()));
}

#[test]
fn malformed_tokenizers_and_templates_end_an_evaluation_with_few_words() {
    alone("malformed_tokenizers_and_templates_end_an_evaluation_with_few_words", || {
        let root = Path::new(ROOT);
        let mut refused = 0;
        for (kept, file, flags) in [
            ("runner", "tokenizer.json", &["--text", "t.txt"][..]),
            ("template", "chat_template.jinja", &["--chat", "--qa", "q.jsonl"]),
        ] {
            for entry in fs::read_dir(root.join("fuzz/kept").join(kept)).unwrap() {
                let entry = entry.unwrap();
                let folder = tempfile::tempdir().unwrap();
                let model = folder.path().join("m");
                fs::create_dir(&model).unwrap();
                for entry in fs::read_dir(root.join("examples/models/base")).unwrap() {
                    let entry = entry.unwrap();
                    fs::copy(entry.path(), model.join(entry.file_name())).unwrap();
                }
                fs::copy(entry.path(), model.join(file)).unwrap();
                fs::write(folder.path().join("t.txt"), "It is 12 °C: don't go out.").unwrap();
                fs::write(folder.path().join("q.jsonl"), r#"{"question": "It is", "answer": "12"}"#).unwrap();
                let words = [&["eval", "m", "--device", "cpu", "--quiet"], flags].concat();
                let (wrong, taken) = judged(folder.path(), &words, Ends::Open, true);
                assert!(wrong.is_empty(), "{kept}/{:?}: {}", entry.file_name(), wrong.join("; "));
                refused += usize::from(!taken.unwrap().status.success());
            }
        }
        assert!(refused > 5, "{refused} are refused");
    });
}

/// A judge that sees nothing would pass everything.
#[test]
fn what_is_wrong_with_an_end_is_seen() {
    let words = |text: &str, refused| wrong_words(text.as_bytes(), text.len() as u64, refused).join("; ");
    assert_eq!(words("error: x\nhint: y\n", true), "");
    assert_eq!(words("", false), "");
    assert_eq!(words("", true), "no error is reported");
    assert_eq!(words("error: a\nb\nc\nd\n", true), "4 lines or more");
    assert_eq!(words(&"error: a\nhint: b\n".repeat(9), true), "");
    assert_eq!(words(&"error: a\n".repeat(10), true), "10 errors");
    assert_eq!(words("error: a\nhint: b\nc\nerror: d\nhint: e\n", true), "5 lines or more");
    assert_eq!(words(&format!("error: {}\n", "x".repeat(1100)), true), "a line of 1107 characters or more");
    assert_eq!(words("error: \u{1b}[2J\n", true), "'\\u{1b}' in the message");
    assert_eq!(words("error: \u{202e}\n", true), "'\\u{202e}' in the message");
    assert_eq!(words("error: it panicked\n", true), "a panic");
    let taken = |raw, seconds, megabytes: u64| Taken {
        status: ExitStatus::from_raw(raw),
        wall: Duration::ZERO,
        cpu: Duration::from_secs(seconds),
        peak_bytes: megabytes * 1_000_000,
    };
    assert_eq!(wrong_end(&taken(3 << 8, 2, 200), Ends::Damaged), [""; 0]);
    assert_eq!(wrong_end(&taken(2 << 8, 0, 0), Ends::Damaged), ["exit code 2, not one of [3]"]);
    let all = ["exit code 101, not one of [0, 2, 3, 4]", "3.0 s of processor time", "201 MB of memory"];
    assert_eq!(wrong_end(&taken(101 << 8, 3, 201), Ends::Open), all);
    assert_eq!(wrong_end(&taken(6, 0, 0), Ends::Open), ["signal: 6 (SIGABRT)"]);
}

#[test]
fn what_a_run_leaves_or_touches_is_seen() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::create_dir(path("out")).unwrap();
    fs::write(path("config.yml"), "x").unwrap();
    let before = listing(folder.path());
    assert_eq!(changed(&before, folder.path(), false), [""; 0]);
    fs::write(path("config.yml"), "y").unwrap();
    fs::create_dir(path("out.partial")).unwrap();
    assert_eq!(changed(&before, folder.path(), false), ["left behind: out.partial", "changed: config.yml"]);
}

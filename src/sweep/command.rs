//! What candidates are measured by: any program that gets a folder with the merged model, and gives JSON.

use std::fs::{self, DirBuilder, File};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, geteuid, kill_process_group, test_kill_process_group};
use serde_json::{Map, Value as Json};

use super::candidate::of_candidate;
use super::objective::{Measured, Objective};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::plan::Choices;
use crate::stream::Watch;
use crate::text::{cut_to, escaped, quoted, shell_word};
use crate::{Options, merge, prepare_config};

/// Which way is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Lower numbers: losses and perplexities.
    Minimize,
    /// Higher numbers: accuracies.
    Maximize,
}

impl Direction {
    /// What numbers are multiplied with so that lower ones are better, and back.
    pub fn sign(self) -> f64 {
        match self {
            Self::Minimize => 1.0,
            Self::Maximize => -1.0,
        }
    }

    /// Its name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Minimize => "minimize",
            Self::Maximize => "maximize",
        }
    }
}

/// A command of the user's.
pub struct ByCommand<'o> {
    /// As it is typed: `{model}` stands for the candidate's folder, `{out}` for a file or folder that the program may write JSON to.
    command: String,
    /// What of its JSON counts.
    metrics: Vec<String>,
    direction: Direction,
    /// The longest time that it may take.
    timeout: Option<Duration>,
    choices: Choices,
    /// How candidates are merged; below `out` they are for a while.
    options: Options,
    /// Where, from the first one on.
    folder: Option<Folder>,
    watch: &'o dyn Watch,
}

impl<'o> ByCommand<'o> {
    /// A command. Candidates are written below the folder `options.out`, one after the other, and taken away again.
    ///
    /// # Errors
    /// The command does not say where the model goes.
    pub fn new(
        command: &str,
        metrics: Vec<String>,
        direction: Direction,
        timeout: Option<Duration>,
        choices: Choices,
        options: Options,
        watch: &'o dyn Watch,
    ) -> Result<Self> {
        if !command.contains(MODEL) {
            return Err(Error::config("--objective-cmd does not say where the model goes").hint(
                "write {model} for the folder of the candidate: 'lm_eval … --model_args pretrained={model}'",
            ));
        }
        let (command, folder) = (command.to_owned(), None);
        Ok(Self { command, metrics, direction, timeout, choices, options, folder, watch })
    }

    /// What the program makes of a candidate.
    fn given(&mut self, config: Config, seed: u64) -> Result<Given> {
        let prepared = prepare_config(config, &Choices { seed, ..self.choices })?;
        let folder = match self.folder.take() {
            Some(folder) => folder,
            None => Folder::make(&self.options.out)?,
        };
        let (model, out) = (folder.path.join("model"), folder.path.join("out.json"));
        let folder = self.folder.insert(folder);
        folder.clear();
        let merged = merge(&prepared, &Options { out: model.clone(), ..self.options.clone() }, self.watch);
        let given = merged.and_then(|_| self.run(&model, &out));
        self.folder.iter().for_each(Folder::clear);
        given
    }

    /// What counts of that.
    fn score(&self, given: &Given) -> Result<Measured> {
        let of = |metric: &String| Ok(self.direction.sign() * metric_of(&given.numbers, metric)?.0);
        let values = self.metrics.iter().map(of).collect::<Result<Vec<f64>>>()?;
        let errors = vec![f64::NAN; values.len()];
        Ok(Measured { values, errors })
    }

    /// Refuses numbers that the program says are better the other way: the best would be the worst.
    ///
    /// # Errors
    /// Kind `Config`.
    fn check_direction(&self, given: &Given) -> Result<()> {
        let wanted = self.direction == Direction::Maximize;
        for metric in &self.metrics {
            let Ok((_, names)) = metric_of(&given.numbers, metric) else { continue };
            if names.iter().any(|name| given.is_higher_better(name) == Some(!wanted)) {
                let (is, way_out) = if wanted {
                    ("lower numbers are better, and --maximize looks for the highest", "leave out --maximize")
                } else {
                    ("higher numbers are better, and the lowest would be looked for", "add --maximize")
                };
                let message =
                    format!("--objective-cmd says of {} (higher_is_better) that {is}", quoted(metric));
                return Err(Error::config(message).hint(way_out));
            }
        }
        Ok(())
    }

    /// Runs the program, and returns what it gave.
    fn run(&self, model: &Path, out: &Path) -> Result<Given> {
        let place = |path: &Path| shell_word(&path.to_string_lossy());
        let command = self.command.replace(MODEL, &place(model)).replace(OUT, &place(out));
        let failed = |why: &str| {
            Error::config(format!("--objective-cmd {why}: {}", escaped(&cut_to(&command, 400))))
                .hint("run it by itself with the folder of a model in the place of {model}")
        };
        let log = out.with_file_name("stdout");
        let stdout = File::create(&log).map_err(|cause| Error::writing(&log, &cause))?;
        let mut child = Command::new("sh")
            .args(["-c", &command])
            .stdin(Stdio::null())
            .stdout(stdout)
            // What the shell starts ends with it.
            .process_group(0)
            .spawn()
            .map_err(|cause| failed(&format!("cannot be started ({cause})")))?;
        let begun = Instant::now();
        let status = loop {
            if self.watch.stop() {
                end_group(&mut child);
                return Err(Error::interrupted());
            }
            if let Some(timeout) = self.timeout.filter(|timeout| begun.elapsed() > *timeout) {
                end_group(&mut child);
                let why = format!("took longer than {} s", timeout.as_secs());
                return Err(failed(&why).hint("give it more time with --objective-timeout"));
            }
            match child.try_wait().map_err(|cause| failed(&cause.to_string()))? {
                Some(status) => break status,
                None => sleep(Duration::from_millis(20)),
            }
        };
        if !status.success() {
            return Err(failed(&format!("ended with {status}")));
        }
        let text = |file: &Path| fs::read(file).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        let printed = text(&log).unwrap_or_default();
        let written = newest_json(out).and_then(|file| text(&file).ok());
        let json = written.as_deref().and_then(parsed).or_else(|| parsed(&printed));
        let json = json.ok_or_else(|| failed("gave no JSON, neither as its last line nor in {out}"))?;
        let mut numbers = Vec::new();
        collect(&json, "", &mut numbers);
        if numbers.is_empty() {
            return Err(failed("gave JSON without numbers"));
        }
        Ok(Given { numbers, higher: json["higher_is_better"].clone() })
    }
}

/// What a program gave.
struct Given {
    /// Its numbers, by name.
    numbers: Vec<(String, f64)>,
    /// Of each task and metric whether higher is better, as lm-eval says it.
    higher: Json,
}

impl Given {
    /// Whether a higher number of this name is better, where the program says so.
    fn is_higher_better(&self, name: &str) -> Option<bool> {
        let (task, metric) = name.rsplit_once('.')?;
        // Behind a comma stands the filter of the answers.
        let metric = metric.split(',').next().unwrap_or(metric);
        self.higher.get(task)?.get(metric)?.as_bool()
    }
}

/// Asks a program and all that it has started to end, and makes them end if they do not within five seconds.
fn end_group(child: &mut Child) {
    let group = Pid::from_child(child);
    for (signal, tries) in [(Signal::TERM, 100), (Signal::KILL, 10)] {
        let _ = kill_process_group(group, signal);
        for _ in 0..tries {
            // The shell may end at once, and leave a program that does not: the group is gone when its last process is, and the
            // shell counts until it is waited for.
            let _ = child.try_wait();
            if test_kill_process_group(group).is_err() {
                return;
            }
            sleep(Duration::from_millis(50));
        }
    }
}

/// The metric where none is asked for: the only number, or one of this name.
pub const ANY: &str = "score";

const MODEL: &str = "{model}";
const OUT: &str = "{out}";

/// A folder of this process alone, which goes when it is no longer used.
///
/// It is locked: one that is not is left by a process that was killed.
struct Folder {
    path: PathBuf,
    _lock: File,
}

/// What stands around the numbers in the name of such a folder.
const FOLDER: [&str; 2] = ["mergeforge-sweep-", ".d"];

impl Folder {
    /// Makes one in a folder, and takes away those there whose processes have ended.
    fn make(within: &Path) -> Result<Self> {
        clear_left(within);
        let [prefix, suffix] = FOLDER;
        let process = std::process::id();
        for number in 0..100 {
            let path = within.join(format!("{prefix}{process}-{number}{suffix}"));
            match DirBuilder::new().mode(0o700).create(&path) {
                Err(cause) if cause.kind() == ErrorKind::AlreadyExists => continue,
                made => made.map_err(|cause| Error::writing(&path, &cause))?,
            }
            let failed = |cause: &std::io::Error| Error::writing(&path, cause);
            // Before it is locked, somebody may take it for one that was left, and take it away.
            let Ok(lock) = File::open(&path) else { continue };
            lock.lock().map_err(|cause| failed(&cause))?;
            let own = lock.metadata().map_err(|cause| failed(&cause))?;
            if fs::metadata(&path).is_ok_and(|there| (there.dev(), there.ino()) == (own.dev(), own.ino())) {
                return Ok(Self { path, _lock: lock });
            }
        }
        Err(Error::output(format!("no folder for candidates can be made in {}", within.display())))
    }

    /// Takes away what is in it.
    fn clear(&self) {
        for entry in fs::read_dir(&self.path).into_iter().flatten().filter_map(std::result::Result::ok) {
            let path = entry.path();
            let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Takes away the folders of this user's processes that have ended without doing so: a second Ctrl-C ends them at once. What cannot
/// be taken away stays.
fn clear_left(within: &Path) {
    let [prefix, suffix] = FOLDER;
    let is_ours = |path: &Path| {
        let name = name_of(path);
        let own = fs::symlink_metadata(path).is_ok_and(|of| of.is_dir() && of.uid() == geteuid().as_raw());
        own && name.starts_with(prefix) && name.ends_with(suffix)
    };
    for entry in fs::read_dir(within).into_iter().flatten().filter_map(std::result::Result::ok) {
        let path = entry.path();
        if !is_ours(&path) {
            continue;
        }
        // It stays locked until it is gone.
        if let Ok(lock) = File::open(&path)
            && lock.try_lock().is_ok()
        {
            let _ = fs::remove_dir_all(&path);
        }
    }
}

/// The file itself, or the newest JSON file below a folder of that name, as lm-eval writes it.
fn newest_json(out: &Path) -> Option<PathBuf> {
    if out.is_file() {
        return Some(out.to_owned());
    }
    let mut folders = vec![out.to_owned()];
    // lm-eval puts the time behind the name that it was given.
    let stem = out.file_stem()?.to_string_lossy().into_owned();
    let beside = fs::read_dir(out.parent()?).ok()?.filter_map(std::result::Result::ok);
    let mut files: Vec<PathBuf> = beside
        .map(|entry| entry.path())
        .filter(|path| path.is_file() && name_of(path).starts_with(&stem))
        .collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().filter_map(std::result::Result::ok) {
            let path = entry.path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    files.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    files.into_iter().max_by_key(|path| fs::metadata(path).and_then(|file| file.modified()).ok())
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// A text as JSON: all of it, or its last line.
fn parsed(text: &str) -> Option<Json> {
    let last = text.lines().rev().find(|line| !line.trim().is_empty())?;
    serde_json::from_str(text).or_else(|_| serde_json::from_str(last)).ok()
}

/// The numbers of some JSON by the names on the way to them. Of lm-eval's results only those are taken that it has found.
fn collect(json: &Json, name: &str, into: &mut Vec<(String, f64)>) {
    let below = |key: &str| if name.is_empty() { key.to_owned() } else { format!("{name}.{key}") };
    let each = |of: &Map<String, Json>, into: &mut Vec<(String, f64)>| {
        of.iter().for_each(|(key, value)| collect(value, &below(key), into));
    };
    match json {
        Json::Number(number) => into.extend(number.as_f64().map(|number| (name.to_owned(), number))),
        Json::Object(of) if name.is_empty() => match of.get("results").and_then(Json::as_object) {
            Some(results) => {
                // What belongs to a group is in the group's number.
                let inner: Vec<&str> = of
                    .get("group_subtasks")
                    .and_then(Json::as_object)
                    .into_iter()
                    .flat_map(Map::values)
                    .filter_map(Json::as_array)
                    .flatten()
                    .filter_map(Json::as_str)
                    .collect();
                let own = results.iter().filter(|(task, _)| !inner.contains(&task.as_str()));
                own.for_each(|(task, value)| collect(value, task, into));
            }
            None => each(of, into),
        },
        Json::Object(of) => each(of, into),
        Json::Array(items) => {
            items
                .iter()
                .enumerate()
                .for_each(|(place, item)| collect(item, &below(&place.to_string()), into));
        }
        _ => {}
    }
}

/// The number that a metric means, and the names of what it is the mean of: by its whole name, or by the end of some, without lm-eval's
/// `,none`.
fn metric_of<'g>(given: &'g [(String, f64)], metric: &str) -> Result<(f64, Vec<&'g str>)> {
    if let [(name, only)] = given
        && (name.is_empty() || metric == ANY)
    {
        return Ok((*only, vec![name]));
    }
    let bare = |name: &str| name.strip_suffix(",none").unwrap_or(name).to_owned();
    let exact = given.iter().find(|(name, _)| name == metric || bare(name) == metric);
    let ends = |name: &str| bare(name).rsplit('.').next() == Some(metric);
    // The same of several tasks counts alike.
    let found: Vec<&(String, f64)> = match exact {
        Some(exact) => vec![exact],
        None => given.iter().filter(|(name, _)| ends(name)).collect(),
    };
    let mean = found.iter().map(|(_, value)| value).sum::<f64>() / found.len() as f64;
    let names = found.iter().map(|(name, _)| &**name).collect();
    Some((mean, names)).filter(|_| mean.is_finite()).ok_or_else(|| {
        let names: Vec<&str> = given.iter().map(|(name, _)| name.as_str()).collect();
        let meant = crate::error::did_you_mean(metric, names.iter().copied());
        let hint = match meant {
            Some(name) => format!("did you mean `{}`?", escaped(name)),
            None => format!("it gave {}", cut_to(&escaped(&names.join(", ")), 400)),
        };
        Error::config(format!("--objective-cmd gave no number {}", quoted(metric))).hint(hint)
    })
}

impl Objective for ByCommand<'_> {
    /// A run may take an hour: each is kept as soon as it is known.
    fn together(&self) -> usize {
        1
    }

    fn tries_are_whole(&self) -> bool {
        true
    }

    fn measure(&mut self, configs: Vec<(Config, u64)>, _: bool) -> Result<Vec<Result<Measured>>> {
        let mut measured = Vec::new();
        for (config, seed) in configs {
            let given = of_candidate(self.given(config, seed))?;
            given.iter().try_for_each(|given| self.check_direction(given))?;
            measured.push(given.and_then(|given| self.score(&given)));
        }
        Ok(measured)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn folders_of_processes_that_have_ended_are_taken_away() {
        let within = tempfile::tempdir().unwrap();
        let [left, foreign] =
            ["mergeforge-sweep-1-0.d", "mergeforge-sweeps.d"].map(|name| within.path().join(name));
        [&left, &foreign].iter().for_each(|folder| fs::create_dir_all(folder.join("model")).unwrap());
        let own = Folder::make(within.path()).unwrap();
        assert!(!left.exists() && foreign.exists());
        assert_eq!(fs::metadata(&own.path).unwrap().mode() & 0o777, 0o700);
        fs::create_dir(own.path.join("model")).unwrap();
        let other = Folder::make(within.path()).unwrap();
        assert!(own.path.join("model").exists() && other.path.exists(), "what is in use stays");
        own.clear();
        assert!(own.path.exists() && !own.path.join("model").exists());
        let paths = [own.path.clone(), other.path.clone()];
        drop((own, other));
        assert!(paths.iter().all(|path| !path.exists()));
        // A link is none of ours, whatever it leads to.
        std::os::unix::fs::symlink(&foreign, &left).unwrap();
        clear_left(within.path());
        assert!(left.exists() && foreign.join("model").exists());
    }

    fn numbers(json: &Json) -> Vec<(String, f64)> {
        let mut numbers = Vec::new();
        collect(json, "", &mut numbers);
        numbers
    }

    #[test]
    fn numbers_of_lm_eval_are_found() {
        let given = numbers(&json!({
            "results": {
                "medqa_4options": { "alias": "medqa", "acc,none": 0.25, "acc_stderr,none": 0.01, "acc_norm,none": 0.3 },
                "arc_challenge": { "acc,none": 0.35 },
                "mmlu_law": { "acc,none": 0.9 },
            },
            "group_subtasks": { "mmlu": ["mmlu_law"], "arc_challenge": [] },
            "config": { "batch_size": 8 },
        }));
        assert_eq!(metric_of(&given, "medqa_4options.acc").unwrap().0, 0.25);
        assert_eq!(metric_of(&given, "medqa_4options.acc,none").unwrap().0, 0.25);
        assert_eq!(metric_of(&given, "acc_norm").unwrap().0, 0.3);
        let (mean, names) = metric_of(&given, "acc").unwrap();
        assert!((mean - 0.3).abs() < 1e-12);
        assert_eq!(names, ["medqa_4options.acc,none", "arc_challenge.acc,none"]);
        let missing = metric_of(&given, "medqa_4option.acc").unwrap_err();
        assert!(missing.hint.unwrap().contains("medqa_4options.acc"));
        assert!(metric_of(&given, "batch_size").is_err(), "only results count");
    }

    #[test]
    fn the_last_line_may_be_the_answer() {
        assert_eq!(parsed("loading…\n{\"score\": 1.5}\n\n"), Some(json!({ "score": 1.5 })));
        assert_eq!(numbers(&parsed("3.25").unwrap()), [(String::new(), 3.25)]);
        assert_eq!(parsed("done\n"), None);
    }
}

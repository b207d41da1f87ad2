//! Sweeps: what candidates are made of in memory is what a merge writes, what they read is what `eval` finds, and the best is found.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use mergeforge::backend::devices::processor;
use mergeforge::config::{Config, Space};
use mergeforge::decoder::{Processor, Sums};
use mergeforge::eval::{Cut, Form, Listen, Losses, Model, Plan, Prompt, Texts, Windows, losses};
use mergeforge::hub::Remote;
use mergeforge::plan::Choices;
use mergeforge::prepare_model;
use mergeforge::stream::Budget;
use mergeforge::sweep::{
    ByTexts, Candidate, Engine, Journal, Objective, Outcome, Request, Search, Set, Tried, measure, run,
};
use mergeforge::tokenizer::Runner;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::command;
use crate::models::{Quiet, safetensors_files};

pub fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/models")
}

/// A config of the example models.
pub fn config(method: &str, parameters: &str, weights: [&str; 2]) -> String {
    let root = models();
    let root = root.display();
    let base = if method == "linear" { String::new() } else { format!("base_model: {root}/base\n") };
    format!(
        "merge_method: {method}\n{base}models:\n  - model: {root}/medical\n    parameters: {{weight: {}}}\n  - model: {root}/chat\n    \
         parameters: {{weight: {}}}\nparameters: {{{parameters}}}\ndtype: bfloat16\n",
        weights[0], weights[1]
    )
}

const MEMORY: u64 = 1 << 30;

fn engine(memory: u64) -> Engine {
    let budget = Budget { threads: 2, host_bytes: 64 << 20, device_bytes: 0, chunk_tiles: None };
    Engine::new(processor(), budget, memory, Box::new(Processor::new(Sums::Fastest, 2)))
}

fn candidate(text: &str, seed: u64, engine: &Engine) -> Candidate {
    let config = Config::parse("c.yml", text).unwrap();
    Candidate::open(config, &Choices { seed, ..Choices::USUAL }, engine, &Quiet).unwrap()
}

/// Nobody listens.
struct Deaf;

impl Listen for Deaf {
    fn advanced(&self, _: usize) {}

    fn stop(&self) -> bool {
        false
    }
}

fn windows(file: &str, lines: usize) -> Windows {
    let form = Form::Text { by_line: true };
    let mut texts =
        Texts::read(&models().join("texts").join(file), form, &Prompt::usual(form, false)).unwrap();
    texts.rows.truncate(lines);
    let model =
        Model::new(prepare_model(models().join("base").to_str().unwrap(), Remote::Offline).unwrap()).unwrap();
    let runner = Runner::open(model.folder()).unwrap();
    let cut = Cut { window: 96, stride: 96, packed: true, framed: true };
    Windows::of(&texts, &runner, None, cut, model.decoder.vocabulary).unwrap()
}

/// The tensors of a folder, as they are stored.
fn stored(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut tensors = BTreeMap::new();
    for file in safetensors_files(folder) {
        let bytes = fs::read(file).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        tensors.extend(file.tensors().into_iter().map(|(name, view)| (name, view.data().to_vec())));
    }
    tensors
}

#[test]
fn candidates_have_the_bytes_and_the_losses_of_their_merges() {
    let folder = TempDir::new().unwrap();
    let (engine, mut reading) = (engine(MEMORY), engine(MEMORY));
    let windows = windows("medical_valid.txt", 40).windows;
    for (number, (method, parameters)) in [
        ("linear", ""),
        ("task_arithmetic", "lambda: 0.7"),
        ("ties", "density: 0.3"),
        ("dare_ties", "density: 0.6"),
        ("breadcrumbs", "density: 0.8, gamma: 0.05"),
        ("sce", "select_topk: 0.4"),
    ]
    .into_iter()
    .enumerate()
    {
        let text = config(method, parameters, ["0.8", "0.45"]);
        let candidate = candidate(&text, 7, &engine);
        let made: BTreeMap<String, Vec<u8>> =
            candidate.tensors(&engine, &Quiet).unwrap().into_iter().collect();
        let out = format!("out-{number}");
        let file = command::config(folder.path(), &text);
        let out = folder.path().join(out);
        command::run(["merge".as_ref(), file.as_os_str(), out.as_os_str(), "--seed=7".as_ref()]).succeeded();
        assert!(made == stored(&out), "{method}");
        let found = measure(&[candidate], &windows, &mut reading, &Quiet, &Deaf).unwrap().remove(0).unwrap();
        assert!(found == read(&out, &windows), "{method}");
    }
}

/// What a folder's model makes of windows.
fn read(model: &Path, windows: &[mergeforge::eval::Window]) -> Losses {
    let model = Model::new(prepare_model(model.to_str().unwrap(), Remote::Offline).unwrap()).unwrap();
    let mut processor = Processor::new(Sums::Fastest, 2);
    let plan = Plan::of(&model.decoder, windows, &processor, MEMORY).unwrap();
    losses("model", &model.decoder, windows, &plan, &mut model.reader(2, &Deaf), &mut processor, &Deaf)
        .unwrap()
}

/// Together or one by one, at once or in several passes.
#[test]
fn company_and_memory_do_not_show_in_losses() {
    let windows = windows("medical_valid.txt", 60).windows;
    let of = |memory: u64| {
        let mut engine = engine(memory);
        let texts = [("ties", "0.3"), ("ties", "1.2"), ("task_arithmetic", "0.9")];
        let candidates: Vec<Candidate> = texts
            .iter()
            .map(|(method, weight)| candidate(&config(method, "density: 0.5", [weight, "0.4"]), 0, &engine))
            .collect();
        let mut measured = |candidates: &[Candidate]| -> Vec<Losses> {
            let found = measure(candidates, &windows, &mut engine, &Quiet, &Deaf).unwrap();
            found.into_iter().map(Result::unwrap).collect()
        };
        let together = measured(&candidates);
        // Thresholds that were found for one are known to the next, and change nothing.
        let again: Vec<Losses> = candidates.chunks(1).flat_map(measured).collect();
        assert!(together == again, "company shows");
        together
    };
    let found = of(MEMORY);
    assert!(found[0] != found[1] && found[1] != found[2]);
    // The merge's 64 MiB, and little more than one window's states.
    assert!(found == of((64 << 20) + 9_000_000), "passes show");
    let mut engine = engine((64 << 20) + 100_000);
    let candidate = candidate(&config("linear", "", ["1", "1"]), 0, &engine);
    let refused = measure(&[candidate], &windows, &mut engine, &Quiet, &Deaf).unwrap_err();
    assert!(refused.hint.unwrap().contains("--host-memory"), "{}", refused.message);
}

/// Stops an objective after some candidates.
struct Counted<'o> {
    inner: ByTexts<'o>,
    left: &'o AtomicUsize,
}

impl Objective for Counted<'_> {
    fn together(&self) -> usize {
        self.inner.together()
    }

    fn tries_are_whole(&self) -> bool {
        self.inner.tries_are_whole()
    }

    fn measure(
        &mut self,
        configs: Vec<(Config, u64)>,
        whole: bool,
    ) -> mergeforge::error::Result<Vec<mergeforge::error::Result<mergeforge::sweep::Measured>>> {
        let count = configs.len();
        if self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(count))
            .is_err()
        {
            return Err(mergeforge::error::Error::interrupted());
        }
        self.inner.measure(configs, whole)
    }
}

fn request() -> Request {
    let range = "{range: [0, 1.5]}";
    Request {
        space: Space::read("c.yml", &config("task_arithmetic", "", [range, range])).unwrap(),
        seed: 0,
        weights: vec![("medical".into(), 1.0), ("general".into(), 0.5)],
        tries: 8,
        together: 4,
        confirm: 3,
        seeds: 1,
    }
}

/// A sweep that ends after so many candidates.
fn swept(folder: &Path, candidates: usize) -> mergeforge::error::Result<Outcome> {
    let request = request();
    let sets = ["medical_valid.txt", "general_valid.txt"]
        .map(|file| Set { name: file.into(), windows: windows(file, 60) });
    let left = AtomicUsize::new(candidates);
    let inner = ByTexts::new(&sets, 1500, Choices::USUAL, engine(MEMORY), &Quiet, &Deaf);
    let mut objective = Counted { inner, left: &left };
    let mut journal = Journal::open(&folder.join("sweep.jsonl"), &json!({ "test": 1 }), false)?;
    run(&request, &mut Search::new(&request.space.knobs), &mut objective, &mut journal)
}

#[test]
fn an_interrupted_sweep_goes_on_and_the_best_merge_is_found() {
    let folder = TempDir::new().unwrap();
    let [whole, parts] = ["whole", "parts"].map(|name| folder.path().join(name));
    [&whole, &parts].iter().for_each(|folder| fs::create_dir(folder).unwrap());
    let found = swept(&whole, usize::MAX).unwrap();
    assert_eq!(found.points.iter().filter(|point| point.tried.is_some()).count(), 8);
    // Two rounds of tries at four each, then what is confirmed.
    for ended in [3, 4, 5] {
        assert_eq!(swept(&parts, ended).unwrap_err().exit_code(), 130);
    }
    let again = swept(&parts, usize::MAX).unwrap();
    assert_eq!(again.points, found.points);
    assert_eq!((again.best, &again.front), (found.best, &found.front));
    assert!(again.measured.0 < found.measured.0);
    // Nothing of a grid is much better than what eight tries found.
    let request = request();
    let sets = ["medical_valid.txt", "general_valid.txt"]
        .map(|file| Set { name: file.into(), windows: windows(file, 60) });
    let mut objective = ByTexts::new(&sets, 0, Choices::USUAL, engine(MEMORY), &Quiet, &Deaf);
    let grid = (0..5).flat_map(|x| (0..5).map(move |y| [f64::from(x) * 0.375, f64::from(y) * 0.375]));
    let configs = grid.map(|point| (request.config(&point).unwrap(), 0)).collect();
    let scores = objective.measure(configs, true).unwrap();
    let scores = scores.into_iter().map(|of| request.score(&of.unwrap().values));
    let lowest = scores.fold(f64::MAX, f64::min);
    let best = found.points[found.best].whole.as_ref().unwrap();
    assert!(
        best.score < lowest + 0.005,
        "{} of {:?}, {lowest} on the grid",
        best.score,
        found.points[found.best]
    );
    assert!(found.front.contains(&found.best), "nothing beats the best on every set");
}

/// A program as the objective, with its lowest point where it was planted.
#[test]
fn a_planted_optimum_is_found_by_any_program() {
    let folder = TempDir::new().unwrap();
    let text = config("task_arithmetic", "", ["{range: [0, 1.5]}", "{range: [0, 1.5]}"]);
    let file = command::config(folder.path(), &text);
    // The merge's own config says what it was made of.
    let program = "grep -o 'weight: [0-9.]*' {model}/mergekit_config.yml | tr -dc '0-9.\\n' | tr '\\n' ' ' | awk '{x=$1-0.3; \
                   y=$2-0.9; print \"{\\\"score\\\": \" 2 + x*x + 0.5*y*y + 0.2*x*y \"}\"}'";
    let out = folder.path().join("out");
    let sweep = |more: &[&str]| {
        let mut words = vec!["sweep", file.to_str().unwrap(), out.to_str().unwrap(), "--quiet", "--json"];
        words.extend(["--tries=10", "--together=5", "--confirm=2", "--objective-cmd", program]);
        words.extend(more);
        command::run(words)
    };
    let found: Value = serde_json::from_str(&sweep(&[]).succeeded().stdout).unwrap();
    let best = &found["points"][found["best"].as_u64().unwrap() as usize];
    let (medical, chat) = (&best["values"]["medical weight"], &best["values"]["chat weight"]);
    let near = |value: &Value, planted: f64| (value.as_f64().unwrap() - planted).abs() < 0.05;
    assert!(near(medical, 0.3) && near(chat, 0.9), "{best}");
    let config = fs::read_to_string(out.join("best.yml")).unwrap();
    assert!(config.contains(&format!("parameters: {{weight: {medical}}}")), "{config}");
    let page = fs::read_to_string(out.join("sweep.html")).unwrap();
    assert!(page.contains("Score over medical weight") && !page.contains("http"));
    // All is known: nothing is measured again, and the result is the same.
    let again: Value = serde_json::from_str(&sweep(&[]).succeeded().stdout).unwrap();
    assert_eq!((&again["points"], &again["candidates_measured"]), (&found["points"], &json!(0)));
    // Another program is another sweep.
    sweep(&["--metric", "loss"]).failed(2, &["of another sweep: metrics changed", "--restart"]);
    sweep(&["--metric", "loss", "--restart"]).failed(2, &["gave no number", "loss"]);
}

#[test]
fn what_cannot_be_swept_is_refused_with_the_way_out() {
    let folder = TempDir::new().unwrap();
    let open = config("task_arithmetic", "", ["{range: [0, 1.5]}", "0.5"]);
    let text = models().join("texts/medical_valid.txt");
    let text = text.to_str().unwrap();
    let refused = |config: &str, more: &[&str], says: &[&str]| {
        let file = command::config(folder.path(), config);
        let out = folder.path().join("out");
        let mut words = vec!["sweep", file.to_str().unwrap(), out.to_str().unwrap(), "--quiet"];
        words.extend(more);
        command::run(words).failed(2, says);
        assert!(!out.exists(), "nothing is left of it");
    };
    refused(&open, &[], &["there is nothing to read", "--text FILE"]);
    refused(
        &config("linear", "", ["1", "1"]),
        &["--text", text],
        &["no value is left open", "{range: [0, 1.5]}"],
    );
    refused(&open, &["--text", text, "--weight", "other=1"], &["nothing is called so", "medical_valid.txt"]);
    refused(&open, &["--text", text, "--weight", "medical_valid=0"], &["nothing counts"]);
    refused(&open, &["--objective-cmd", "true"], &["where the model goes", "{model}"]);
    refused(&open.replace("dtype", "dtyp"), &["--text", "/nowhere"], &["cannot read /nowhere"]);
    let memory = ["--text", text, "--device", "cpu", "--host-memory"];
    let with = |size| [&memory[..], &[size]].concat();
    refused(&open, &with("1MB"), &["--host-memory 1.0 MB: this sweep needs more than 5.", "give it more"]);
    refused(&open, &with("5MB"), &["--host-memory 5.0 MB: this sweep needs more than 5."]);
    // What means something to texts alone, and what cannot be.
    for option in [&["--text", text][..], &["--window=64"], &["--lines", "--text", text], &["--try-tokens=9"]]
    {
        let words = [&["--objective-cmd", "echo {model} 1"], option].concat();
        refused(&open, &words, &["--objective-cmd", "cannot be used with"]);
    }
    // A plain merge says where ranges belong.
    let file = command::config(folder.path(), &open);
    let out = folder.path().join("merged");
    command::run(["merge".as_ref(), file.as_os_str(), out.as_os_str()]).failed(2, &["mergeforge sweep"]);
}

/// Each method of a list as if it stood alone: none is left out without a word, and no warning either.
#[test]
fn all_methods_of_a_list_are_looked_at_first() {
    let folder = TempDir::new().unwrap();
    let text = models().join("texts/medical_valid.txt");
    let open = config("task_arithmetic", "", ["{range: [0, 1.5]}", "0.5"]);
    let by =
        |methods: &str| open.replace("merge_method: task_arithmetic", &format!("merge_method: {methods}"));
    let ended = |config: &str, more: &[&str]| {
        let (file, out) = (command::config(folder.path(), config), folder.path().join("out"));
        let [file, out, text] = [&file, &out, &text].map(|path| path.to_str().unwrap());
        let plan = command::run([&["plan", file], more].concat());
        let sweep = command::run([&["sweep", file, out, "--quiet", "--text", text], more].concat());
        assert!(!Path::new(out).exists(), "nothing is made");
        [plan, sweep]
    };
    for (alone, list) in [
        ("no_such", "[task_arithmetic, no_such]"),
        ("linear", "[ties, linear]"),
        ("linear", "[ties, task_arithmetic, linear]"),
        ("slerp", "{choice: [ties, slerp]}"),
    ] {
        let [ended_alone, _] = ended(&by(alone), &[]);
        assert_eq!(ended_alone.code, Some(2));
        for refused in ended(&by(list), &["--strict"]) {
            refused.failed(2, &[ended_alone.stderr.split(": ").last().unwrap().trim()]);
        }
    }
    let slip = by("[task_arithmetic, ties]").replace("parameters: {}", "parameters: {densty: 0.5}");
    for refused in ended(&slip, &["--strict"]) {
        assert_eq!(refused.stderr.matches("has no parameter `densty`").count(), 2, "{}", refused.stderr);
        refused.failed(2, &["task_arithmetic has no", "ties has no", "2 in all: --strict makes them errors"]);
    }
}

/// What a user keeps in a folder stays as it is.
#[test]
fn a_folder_of_something_else_is_refused() {
    let folder = TempDir::new().unwrap();
    let file = command::config(folder.path(), &config("task_arithmetic", "", ["{choice: [0.5, 1]}", "0.5"]));
    let at = |name: &str| folder.path().join(name);
    let sweep = |out: &Path, more: &[&str]| {
        let program = ["--objective-cmd", "echo {model} >&2; echo 1", "--tries=1", "--confirm=1", "--quiet"];
        let words = ["sweep", file.to_str().unwrap(), out.to_str().unwrap()];
        command::run([&words[..], &program, more].concat())
    };
    for name in ["empty", "mine", "mine/sweep.jsonl"] {
        fs::create_dir(at(name)).unwrap();
    }
    fs::write(at("mine/best.yml"), "precious").unwrap();
    for more in [&[][..], &["--restart"]] {
        sweep(&at("mine"), more).failed(2, &["mine is not empty, and has no sweep.jsonl", "new or empty"]);
    }
    sweep(&file, &[]).failed(2, &["exists and is no folder", "new or empty"]);
    assert_eq!(fs::read_to_string(at("mine/best.yml")).unwrap(), "precious");
    for out in ["empty", "new/below", "empty"] {
        let talk = sweep(&at(out), &[]).succeeded().stdout;
        assert!(at(out).join("best.yml").exists() && talk.contains("candidate"), "{talk}");
    }
}

#[test]
fn what_was_measured_before_an_interruption_is_kept() {
    let folder = TempDir::new().unwrap();
    let file = command::config(folder.path(), &config("task_arithmetic", "", ["{range: [0, 1.5]}", "0.5"]));
    let (out, begun) = (folder.path().join("out"), folder.path().join("begun"));
    // The second one takes until it is ended.
    let program =
        format!("echo {{model}} >> {0}; [ $(wc -l < {0}) = 1 ] || sleep 240; echo 1", begun.display());
    let mut sweep = command::mergeforge();
    sweep.args([
        "sweep",
        file.to_str().unwrap(),
        out.to_str().unwrap(),
        "--quiet",
        "--objective-cmd",
        &program,
    ]);
    let child = sweep.spawn().unwrap();
    let asked = Instant::now();
    while fs::read_to_string(&begun).unwrap_or_default().lines().count() < 2 {
        assert!(asked.elapsed() < Duration::from_secs(200), "it has not come to the second");
        std::thread::sleep(Duration::from_millis(50));
    }
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::INT)
        .unwrap();
    let kept = format!("error: interrupted: 1 measurement is kept in {}\n", out.display());
    command::Ended::from(child.wait_with_output().unwrap()).failed(130, &[&kept, "the same command goes on"]);
}

/// The best by a flag that was forgotten would be the worst.
#[test]
fn a_programs_word_on_what_is_better_counts() {
    let folder = TempDir::new().unwrap();
    let file = command::config(folder.path(), &config("task_arithmetic", "", ["{choice: [0.5, 1]}", "0.5"]));
    let results = r#"{"results": {"a": {"acc,none": 0.5, "acc_stderr,none": 0.1, "word_perplexity,none": 9}, "b": {"acc,none": 0.7}},
        "higher_is_better": {"a": {"acc": true, "word_perplexity": false}, "b": {"acc": true}}}"#;
    let given = folder.path().join("results.json");
    fs::write(&given, results.replace('\n', "")).unwrap();
    let program = format!("echo {{model}} >&2; cat {}", given.display());
    let sweep = |name: &str, more: &[&str]| {
        let out = folder.path().join(name);
        let words = ["sweep", file.to_str().unwrap(), out.to_str().unwrap(), "--objective-cmd", &program];
        command::run([&words[..], &["--tries=1", "--confirm=1", "--quiet"], more].concat())
    };
    for (metric, more, says) in [
        ("acc", &[][..], ["higher numbers are better", "add --maximize"]),
        ("a.acc", &[], ["says of \"a.acc\"", "add --maximize"]),
        ("word_perplexity", &["--maximize"], ["lower numbers are better", "leave out --maximize"]),
    ] {
        let ended = sweep("refused", &[&["--restart", "--metric", metric], more].concat());
        assert!(!ended.stderr.contains("candidates failed"), "{}", ended.stderr);
        ended.failed(2, &says);
    }
    for (name, more) in [
        ("acc", &["--metric=acc", "--maximize"][..]),
        ("perplexity", &["--metric=word_perplexity"]),
        ("stderr", &["--metric=acc_stderr"]),
    ] {
        sweep(name, more).succeeded();
    }
}

/// Points that make no merge, methods that cannot be predicted, a single try, higher numbers that are better.
#[test]
fn odd_spaces_are_swept_all_the_same() {
    let folder = TempDir::new().unwrap();
    let text = models().join("texts/medical_valid.txt");
    let swept = |name: &str, config: &str, more: &[&str]| {
        let (file, out) = (command::config(folder.path(), config), folder.path().join(name));
        let mut words = vec!["sweep", file.to_str().unwrap(), out.to_str().unwrap(), "--quiet", "--json"];
        words.extend(more);
        let ended = command::run(words).succeeded();
        (serde_json::from_str::<Value>(&ended.stdout).unwrap(), ended.stderr)
    };
    let by_text = |name: &str, config: &str, more: &[&str]| {
        let mut words = vec!["--text", text.to_str().unwrap(), "--lines", "--window=64", "--try-tokens=600"];
        words.extend(["--together=2", "--confirm=1", "--device=cpu"]);
        words.extend(more);
        swept(name, config, &words)
    };
    let range = "{range: [0, 1]}";
    // The corner in which all weights are 0 is no merge.
    let (found, talk) = by_text("corner", &config("linear", "", [range, range]), &["--tries=2"]);
    assert!(found["points"][0]["predicted"].is_number() && talk.is_empty(), "{talk}");
    let methods = config("task_arithmetic", "density: 0.5", [range, "0.5"])
        .replace("merge_method: task_arithmetic", "merge_method: [task_arithmetic, ties]");
    let neither = methods.replace("[task_arithmetic, ties]", "[dare_ties, ties]");
    let (found, talk) = by_text("methods", &neither, &["--tries=2"]);
    assert!(found["points"][0]["predicted"].is_null() && talk.contains("no prediction, so"), "{talk}");
    // One method is a sum, the other is tried beside it.
    let (found, talk) = by_text("mixed", &methods, &["--tries=4"]);
    assert!(talk.contains("no prediction for") && talk.contains("which are tried without"), "{talk}");
    let points = found["points"].as_array().unwrap();
    for point in points {
        assert_eq!(
            point["predicted"].is_number(),
            point["values"]["merge_method"] == "task_arithmetic",
            "{point}"
        );
    }
    assert!(
        ["ties", "task_arithmetic"]
            .iter()
            .all(|method| points.iter().any(|point| point["values"]["merge_method"] == *method))
    );
    let one = config("task_arithmetic", "", [range, "0.5"]);
    let (found, _) = by_text("one", &one, &["--tries=1", "--no-predict"]);
    assert!(found["points"].as_array().unwrap().len() <= 2);
    let journal = fs::read_to_string(folder.path().join("one/sweep.jsonl")).unwrap();
    assert!(journal.lines().next().unwrap().contains(r#""read on":"cpu""#), "{journal}");
    // What was measured to be low is not taken for high.
    let program = "sed -n 's/.*weight: \\([0-9.]*\\)}.*/\\1/p' {model}/mergekit_config.yml | head -n 1";
    let by_program = |more: &[&str]| {
        let mut words = vec!["--objective-cmd", program, "--tries=3", "--together=1", "--confirm=1"];
        words.extend(more);
        let (found, _) = swept("program", &one, &words);
        let best = &found["points"][found["best"].as_u64().unwrap() as usize];
        (best["values"]["medical weight"].as_f64().unwrap(), best["all"]["score"].as_f64().unwrap())
    };
    let (lowest, score) = by_program(&[]);
    assert!(lowest == score && lowest < 0.2, "{lowest} {score}");
    let (highest, score) = by_program(&["--maximize", "--restart"]);
    assert!(highest == score && highest > 0.8, "{highest} {score}");
    let best = fs::read_to_string(folder.path().join("program/best.yml")).unwrap();
    assert!(best.contains(&format!("# score {score:.4}")), "{best}");
}

/// A program that fails where a weight is large: that is noted, and the best of the rest is found.
#[test]
fn a_candidate_that_fails_is_noted_and_the_sweep_goes_on() {
    let folder = TempDir::new().unwrap();
    let file = command::config(folder.path(), &config("task_arithmetic", "", ["{range: [0, 1.5]}", "0.5"]));
    let out = folder.path().join("out");
    // What the merge was made of; of weights beyond a limit no more than that it failed.
    let program = |limit: f64| {
        format!(
            "w=$(sed -n 's/.*weight: \\([0-9.]*\\)}}.*/\\1/p' {{model}}/mergekit_config.yml | head -n 1); \
             awk \"BEGIN {{ if ($w > {limit}) exit 9; print ($w - 0.4) * ($w - 0.4) }}\""
        )
    };
    let sweep = |limit: f64, more: &[&str]| {
        let program = program(limit);
        let mut words = vec!["sweep", file.to_str().unwrap(), out.to_str().unwrap(), "--quiet"];
        words.extend(["--objective-cmd", &program, "--tries=6", "--together=3", "--confirm=2"]);
        words.extend(more);
        command::run(words)
    };
    let found: Value = serde_json::from_str(&sweep(1.0, &["--json"]).succeeded().stdout).unwrap();
    let points = found["points"].as_array().unwrap();
    let weight = |point: &Value| point["values"]["medical weight"].as_f64().unwrap();
    for point in points {
        let fails = weight(point) > 1.0;
        assert_eq!(point["failed"].is_string(), fails, "{point}");
        assert_eq!((point["try"].is_null(), point["all"].is_null()), (fails, fails), "{point}");
    }
    let failed = points.iter().filter(|point| weight(point) > 1.0).count();
    assert!((1..4).contains(&failed), "what is near to a failure is left alone: {points:?}");
    assert!((weight(&points[found["best"].as_u64().unwrap() as usize]) - 0.4).abs() < 0.1, "{points:?}");
    let page = fs::read_to_string(out.join("sweep.html")).unwrap();
    assert!(page.contains("failed because") && page.contains("ended with exit status: 9"));
    let journal = fs::read_to_string(out.join("sweep.jsonl")).unwrap();
    assert_eq!(journal.matches("ended with exit status: 9").count(), failed);
    // The same command tries those again, whose reason may be gone, and nothing else.
    let again = sweep(1.0, &[]).succeeded().stdout;
    assert_eq!(
        again.matches("    failed: --objective-cmd ended with exit status: 9").count(),
        failed,
        "{again}"
    );
    assert!(again.contains(&format!("\n{failed} measurement")), "{again}");
    let counts = format!("{} candidates, {failed} of them failed\n", points.len());
    assert!(again.contains(&counts) && page.contains(counts.trim_end()), "{again}");
    // Where nothing goes well, it is no use to go on.
    sweep(-1.0, &["--restart"]).failed(2, &["all 3 candidates failed", "exit status: 9", "run it by itself"]);
    let journal = fs::read_to_string(out.join("sweep.jsonl")).unwrap();
    assert_eq!(journal.lines().count(), 1 + 3, "{journal}");
}

/// What the shell has started ends with it, though it does not hear, and the shell is gone before.
#[test]
fn a_program_that_ignores_the_end_of_its_time_is_ended() {
    let folder = TempDir::new().unwrap();
    let file = command::config(folder.path(), &config("task_arithmetic", "", ["{choice: [0.5, 1]}", "0.5"]));
    let out = folder.path().join("out");
    let program = "(trap '' TERM; sleep 240); echo {model} 1";
    let words = ["sweep", file.to_str().unwrap(), out.to_str().unwrap(), "--quiet", "--tries=1"];
    let begun = Instant::now();
    // It has this run's standard error too, which is read until nobody can write to it.
    command::run(words.into_iter().chain(["--objective-timeout=1", "--objective-cmd", program]))
        .failed(2, &["took longer than 1 s", "--objective-timeout"]);
    assert!(begun.elapsed() < Duration::from_secs(200), "it was waited for");
}

/// In memory as well: one of several that go through the models together has losses that are no numbers.
#[test]
fn losses_that_are_not_finite_are_one_candidates_failure() {
    let request = Request {
        space: Space::read("c.yml", &config("task_arithmetic", "", ["{range: [0, 1.0e+39]}", "0.5"]))
            .unwrap(),
        weights: vec![("medical".into(), 1.0)],
        ..request()
    };
    let sets = [Set { name: "medical".into(), windows: windows("medical_valid.txt", 20) }];
    let mut objective = ByTexts::new(&sets, 0, Choices::USUAL, engine(MEMORY), &Quiet, &Deaf);
    let mut measured = |weights: &[f64]| -> Vec<Option<f64>> {
        let config = |weight: &f64| (request.config(&[*weight]).unwrap(), 0);
        let found = objective.measure(weights.iter().map(config).collect(), true).unwrap();
        let value = |of: mergeforge::error::Result<mergeforge::sweep::Measured>| match of {
            Ok(of) => Some(of.values[0]),
            Err(why) => {
                assert!(why.message.contains("losses are NaN or infinite"), "{}", why.message);
                None
            }
        };
        found.into_iter().map(value).collect()
    };
    let alone = [measured(&[0.5])[0], measured(&[0.9])[0]];
    assert!(alone[0].is_some() && alone[0] != alone[1]);
    assert_eq!(measured(&[0.5, 1e38, 0.9]), [alone[0], None, alone[1]]);
}

/// Files of one name in two folders, and files beside the weights that change.
#[test]
fn sets_are_told_apart_and_other_files_are_another_sweep() {
    let folder = TempDir::new().unwrap();
    let copy = folder.path().join("chat");
    fs::create_dir(&copy).unwrap();
    for file in fs::read_dir(models().join("chat")).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), copy.join(file.file_name())).unwrap();
    }
    let text = config("task_arithmetic", "", ["{range: [0, 1.5]}", "0.5"])
        .replace(&format!("{}/chat", models().display()), copy.to_str().unwrap());
    let file = command::config(folder.path(), &text);
    let texts = ["a", "b"].map(|name| folder.path().join(name).join("texts.txt"));
    for (number, text) in texts.iter().enumerate() {
        fs::create_dir(text.parent().unwrap()).unwrap();
        let all = fs::read_to_string(models().join("texts/medical_valid.txt")).unwrap();
        let lines: Vec<&str> = all.lines().skip(10 * number).take(10).collect();
        fs::write(text, lines.join("\n")).unwrap();
    }
    let [a, b] = texts.each_ref().map(|text| text.to_str().unwrap());
    let out = folder.path().join("out");
    let sweep = |texts: &[&str], more: &[&str]| {
        let mut words = vec!["sweep", file.to_str().unwrap(), out.to_str().unwrap(), "--quiet", "--text"];
        words.extend(texts);
        words.extend(["--lines", "--window=64", "--json", "--tries=1", "--confirm=1", "--no-predict"]);
        words.extend(more);
        command::run(words)
    };
    sweep(&[a, a], &[]).failed(2, &["is given twice", a]);
    sweep(&[a, b], &["--weight", "texts=2"])
        .failed(2, &["--weight texts: several are called so", "a/texts.txt, b/texts.txt"]);
    sweep(&[a, b], &["--weight", "texts.txt=2"]).failed(2, &["several are called so"]);
    let found = sweep(&[a, b], &["--weight", &format!("{b}=2")]).succeeded().stdout;
    let found: Value = serde_json::from_str(&found).unwrap();
    let weighted = |name: &str, weight: f64| json!({ "name": name, "weight": weight });
    assert_eq!(found["measured"], json!([weighted("a/texts.txt", 1.0), weighted("b/texts.txt", 2.0)]));
    sweep(&[b, a], &["--weight", "b/texts.txt=2"])
        .failed(2, &["of another sweep: the order of texts changed"]);
    sweep(&[a, b], &["--stride=32"]).failed(2, &["of another sweep: --stride changed"]);
    let settings = copy.join("tokenizer_config.json");
    let changed = fs::read_to_string(&settings).unwrap() + "\n";
    fs::write(&settings, changed).unwrap();
    sweep(&[a, b], &[]).failed(2, &["of another sweep: files beside the weights changed", "--restart"]);
}

/// The search alone, where the score is what it believes it to be.
#[test]
fn points_are_spelled_in_few_digits() {
    let request = request();
    let search = Search::new(&request.space.knobs);
    let tried = [Tried { point: vec![0.5, 0.5], score: 1.0 }];
    for point in search.next(&tried, 6) {
        let text = request.space.fill(&point);
        assert!(text.lines().all(|line| line.matches(|c: char| c.is_ascii_digit()).count() < 60), "{text}");
        assert!(Config::parse("c.yml", &text).is_ok());
        assert!(point.iter().all(|value| format!("{value}").len() <= 5), "{point:?}");
    }
}

//! Sweeps whose points another program chooses: what it is answered is what a sweep finds and `eval` reads.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::command;
use crate::sweep::{config, models};

/// A sweep that waits for questions.
struct Served {
    process: Child,
    questions: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Served {
    /// Starts it, and reads its first line.
    fn start(words: &[&str]) -> (Self, Value) {
        let mut command = command::mergeforge();
        command.args(words).args(["--serve", "--quiet"]);
        let process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut process = process.unwrap();
        let answers = BufReader::new(process.stdout.take().unwrap());
        let mut served = Self { questions: process.stdin.take(), process, answers };
        let first = served.next().expect("a first line");
        (served, first)
    }

    /// The next line, if there is one.
    fn next(&mut self) -> Option<Value> {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        (!line.is_empty()).then(|| serde_json::from_str(&line).expect("standard output has nothing but JSON"))
    }

    fn ask(&mut self, question: &str) -> Value {
        writeln!(self.questions.as_mut().unwrap(), "{question}").unwrap();
        self.next().expect("an answer")
    }

    /// Ends the questions: what else is said, the exit code, and standard error.
    fn end(mut self) -> (Option<Value>, Option<i32>, String) {
        self.questions = None;
        let last = self.next();
        assert!(self.next().is_none(), "nothing comes after the last line");
        let ended = self.process.wait_with_output().unwrap();
        (last, ended.status.code(), String::from_utf8(ended.stderr).unwrap())
    }
}

/// A sweep of two weights on two sets of texts, of which tries read a part.
fn words<'w>(file: &'w Path, out: &'w Path, texts: &'w [PathBuf]) -> Vec<&'w str> {
    let mut words = vec!["sweep", file.to_str().unwrap(), out.to_str().unwrap(), "--text"];
    words.extend(texts.iter().map(|text| text.to_str().unwrap()));
    words.extend(["--lines", "--packed", "--frame", "--window=96", "--try-tokens=900", "--together=2"]);
    words.extend(["--confirm=2", "--weight", "general_valid=0.5"]);
    words
}

#[test]
fn who_asks_is_answered_what_a_sweep_finds_and_eval_reads() {
    let folder = TempDir::new().unwrap();
    let file = command::config(folder.path(), &config("task_arithmetic", "", ["{range: [0, 1.5]}"; 2]));
    let texts = ["medical_valid.txt", "general_valid.txt"].map(|text| models().join("texts").join(text));
    let [swept, asked] = ["swept", "asked"].map(|name| folder.path().join(name));
    let mut searching = words(&file, &swept, &texts);
    searching.extend(["--json", "--quiet", "--tries=4"]);
    let found: Value = serde_json::from_str(&command::run(searching).succeeded().stdout).unwrap();
    let tried: Vec<&Value> =
        found["points"].as_array().unwrap().iter().filter(|point| !point["try"].is_null()).collect();
    assert_eq!(tried.len(), 4);

    let asking = words(&file, &asked, &texts);
    let (mut served, first) = Served::start(&asking);
    let range = |name| json!({ "name": name, "kind": "range", "from": 0.0, "to": 1.5 });
    assert_eq!(first["space"], json!([range("medical weight"), range("chat weight")]));
    assert_eq!(first["objectives"][1], json!({ "name": "general_valid.txt", "weight": 0.5 }));
    assert_eq!((&first["direction"], &first["known"]), (&json!("minimize"), &json!([])));
    let same = |answer: &Value, point: &Value, is_known: bool| {
        let tried = &point["try"];
        assert_eq!(answer["values"], point["values"]);
        assert_eq!(answer["score"], tried["score"], "{answer}");
        assert_eq!(answer["objectives"]["medical_valid.txt"], tried["values"][0]);
        assert_eq!(answer["objectives"]["general_valid.txt"], tried["values"][1]);
        assert_eq!(answer["standard_errors"]["general_valid.txt"], tried["standard_errors"][1]);
        assert_eq!(answer["predicted"], point["predicted"]);
        assert_eq!(answer["from_journal"], json!(is_known));
    };
    let one = |point: &Value| json!({ "point": point["values"] }).to_string();
    same(&served.ask(&one(tried[0])), tried[0], false);
    same(&served.ask(&one(tried[0])), tried[0], true);
    // What is wrong is answered, and the next line is read as if nothing had been.
    for (question, error, hint) in [
        ("{\"point\": ", "no JSON", "{\"points\": ["),
        ("{\"ask\": 1}", "ask is no question", "{\"best\": true}"),
        ("{\"best\": false}", "best is not true", "{\"best\": true}"),
        ("{\"point\": {\"medical weight\": 1}}", "chat weight is missing", "each of the open values"),
        (
            "{\"point\": {\"medical weight\": 1, \"chat wight\": 1}}",
            "chat wight",
            "did you mean `chat weight`?",
        ),
        ("{\"point\": {\"medical weight\": 2, \"chat weight\": 1}}", "2 is outside of 0 … 1.5", ""),
        ("{\"point\": {\"medical weight\": \"1\", \"chat weight\": 1}}", "is no number", ""),
        ("{\"point\": 3}", "a point is no object", "{\"point\": {"),
    ] {
        let answer = served.ask(question);
        assert!(answer["error"].as_str().unwrap().contains(error), "{answer}");
        assert!(answer["hint"].as_str().unwrap_or_default().contains(hint), "{answer}");
    }
    // A wrong one among others says nothing of them.
    let several = json!({ "points": [tried[1]["values"], { "chat weight": 0 }, tried[2]["values"], tried[1]["values"]] });
    let answers = served.ask(&several.to_string());
    let answers = answers["points"].as_array().unwrap();
    [(0, 1), (2, 2), (3, 1)].iter().for_each(|(answer, point)| same(&answers[*answer], tried[*point], false));
    assert!(answers[1]["error"].as_str().unwrap().contains("medical weight is missing"), "{}", answers[1]);
    assert_eq!(answers[1]["values"], json!({ "chat weight": 0 }));
    // A point that no search would choose has its own prediction, not a neighbour's.
    let odd = served.ask("{\"point\": {\"medical weight\": 0.612345678, \"chat weight\": 0.3}}");
    let near = served.ask("{\"point\": {\"medical weight\": 0.612, \"chat weight\": 0.3}}");
    let apart = (odd["predicted"].as_f64().unwrap() - near["predicted"].as_f64().unwrap()).abs();
    assert!(apart > 0.0 && apart < 1e-3, "{odd} {near}");
    let (last, code, talk) = served.end();
    assert_eq!(code, Some(0), "{talk}");
    let last = last.unwrap();

    // The best is confirmed on all texts: its merge reads them so.
    let best = asked.join("best.yml");
    assert_eq!(last["config"], json!(best));
    let text = fs::read_to_string(&best).unwrap();
    let weight = &last["best"]["values"]["medical weight"];
    assert!(text.contains(&format!("parameters: {{weight: {weight}}}")), "{text}");
    let merged = folder.path().join("merged");
    command::run(["merge".as_ref(), best.as_os_str(), merged.as_os_str()]).succeeded();
    let mut reading = vec!["eval", merged.to_str().unwrap(), "--json", "--quiet", "--text"];
    reading.extend(texts.iter().map(|text| text.to_str().unwrap()));
    reading.extend(["--lines", "--packed", "--frame", "--window=96"]);
    let read: Value = serde_json::from_str(&command::run(reading).succeeded().stdout).unwrap();
    let read = |set: usize| &read["models"][0]["sets"][set]["loss"];
    assert_eq!(last["best"]["all"]["values"], json!([read(0), read(1)]));

    // Begun again it knows all of that, and a search goes on with it.
    let (mut served, first) = Served::start(&asking);
    assert_eq!(first["known"].as_array().unwrap().len(), 5);
    same(&first["known"][0], tried[0], true);
    same(&served.ask(&one(tried[2])), tried[2], true);
    let again = served.ask("{\"best\": true}");
    assert_eq!(again["best"], last["best"]);
    let (rest, code, _) = served.end();
    assert_eq!((rest, code), (None, Some(0)));
    let mut searching = words(&file, &asked, &texts);
    searching.extend(["--json", "--quiet", "--tries=4"]);
    let both: Value = serde_json::from_str(&command::run(searching).succeeded().stdout).unwrap();
    assert_eq!(both["points"][3]["try"], found["points"][3]["try"]);
    assert!(both["candidates_measured"].as_u64() < found["candidates_measured"].as_u64(), "{both}");
}

/// The program of the user's fails for some points, and takes too long for others.
#[test]
fn candidates_that_fail_are_answered_so_and_the_questions_go_on() {
    let folder = TempDir::new().unwrap();
    let text = config("task_arithmetic", "", ["{range: [0, 1.5]}", "0.5"])
        .replace("merge_method: task_arithmetic", "merge_method: [task_arithmetic, ties]");
    let file = command::config(folder.path(), &text);
    let out = folder.path().join("out");
    let program = "w=$(sed -n 's/.*weight: \\([0-9.]*\\)}.*/\\1/p' {model}/mergekit_config.yml | head -n 1); \
                   case $w in 1.*) echo no >&2; exit 3;; 0.75) sleep 60;; *) echo $w;; esac";
    let words = ["sweep", file.to_str().unwrap(), out.to_str().unwrap(), "--objective-cmd", program];
    let words: Vec<&str> =
        words.into_iter().chain(["--maximize", "--objective-timeout=2", "--confirm=1"]).collect();
    let (mut served, first) = Served::start(&words);
    let method = json!({ "name": "merge_method", "kind": "choice", "values": ["task_arithmetic", "ties"] });
    assert_eq!((&first["space"][0], &first["direction"]), (&method, &json!("maximize")));
    // Nothing was measured yet.
    assert!(served.ask("{\"best\": true}")["error"].as_str().unwrap().contains("no candidate was measured"));
    let mut ask = |method: &str, weight: f64| {
        served.ask(&json!({ "point": { "merge_method": method, "medical weight": weight } }).to_string())
    };
    let failed = ask("ties", 1.25);
    assert!(failed["error"].as_str().unwrap().contains("ended with exit status: 3"), "{failed}");
    assert_eq!(failed["values"]["medical weight"], json!(1.25));
    let late = ask("task_arithmetic", 0.75);
    assert!(late["error"].as_str().unwrap().contains("took longer than 2 s"), "{late}");
    assert!(late["hint"].as_str().unwrap().contains("--objective-timeout"), "{late}");
    for method in ["ties", "linear"] {
        let answer = ask(method, 0.5);
        match method {
            "ties" => assert_eq!((&answer["score"], &answer["predicted"]), (&json!(0.5), &Value::Null)),
            _ => assert!(
                answer["error"].as_str().unwrap().contains("none of task_arithmetic, ties"),
                "{answer}"
            ),
        }
    }
    assert_eq!(ask("task_arithmetic", 0.25)["objectives"], json!({ "score": 0.25 }));
    let (last, code, talk) = served.end();
    assert_eq!(code, Some(0), "{talk}");
    let best = &last.unwrap()["best"];
    assert!(best["all"]["score"].as_f64().unwrap() >= 0.5, "{best}");
    let journal = fs::read_to_string(out.join("sweep.jsonl")).unwrap();
    for why in ["ended with exit status: 3", "took longer than 2 s"] {
        assert!(journal.contains(&format!("\"failed\":\"--objective-cmd {why}")), "{journal}");
    }
}

/// Lower is better, and nothing is better than 0.4321.
const PLANTED: &str = "w=$(sed -n 's/.*weight: \\([0-9.]*\\)}.*/\\1/p' {model}/mergekit_config.yml | head -n 1); \
                       awk \"BEGIN { print ($w - 0.4321) * ($w - 0.4321) }\"";

/// Whoever asked has crashed: nothing is confirmed for nobody, and what was measured is kept.
#[test]
fn nothing_is_confirmed_for_nobody() {
    let folder = TempDir::new().unwrap();
    let file = command::config(folder.path(), &config("task_arithmetic", "", ["{range: [0, 1.5]}", "0.5"]));
    let out = folder.path().join("out");
    let words = ["sweep", file.to_str().unwrap(), out.to_str().unwrap(), "--objective-cmd", PLANTED];
    // Both ends are closed, or nobody reads while it is still asked.
    for (number, closes_both) in [true, false].into_iter().enumerate() {
        let (mut served, first) = Served::start(&words);
        assert_eq!(first["known"].as_array().unwrap().len(), number);
        let weight = [0.5, 1.0][number];
        assert!(served.ask(&format!("{{\"point\": {{\"medical weight\": {weight}}}}}"))["error"].is_null());
        let Served { process, questions, answers } = served;
        let questions = questions.filter(|_| !closes_both);
        drop(answers);
        let ended = process.wait_with_output().unwrap();
        drop(questions);
        let talk = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(4), "{talk}");
        assert!(talk.contains("nobody reads the answers") && talk.contains("goes on with it"), "{talk}");
        let journal = fs::read_to_string(out.join("sweep.jsonl")).unwrap();
        assert_eq!(journal.lines().count(), 1 + number + 1, "{journal}");
    }
}

/// A search goes on with what another program has asked for, and the best of all that is known stays the best.
#[test]
fn what_is_known_counts_whoever_chose_it() {
    let folder = TempDir::new().unwrap();
    let file = command::config(folder.path(), &config("task_arithmetic", "", ["{range: [0, 1.5]}", "0.5"]));
    let words = |out: &str, more: &[&str]| -> Vec<String> {
        let out = folder.path().join(out);
        let words = ["sweep", file.to_str().unwrap(), out.to_str().unwrap(), "--objective-cmd", PLANTED];
        words.iter().chain(more).chain(&["--confirm=1"]).map(|word| (*word).to_owned()).collect()
    };
    let swept = |out: &str, more: &[&str]| -> Value {
        let more: Vec<&str> = more.iter().chain(&["--json", "--quiet"]).copied().collect();
        serde_json::from_str(&command::run(words(out, &more)).succeeded().stdout).unwrap()
    };
    let weight_of = |point: &Value| point["values"]["medical weight"].as_f64().unwrap();
    let best = |found: &Value| found["points"][found["best"].as_u64().unwrap() as usize].clone();
    let asking = words("asked", &[]);
    let asking: Vec<&str> = asking.iter().map(String::as_str).collect();
    let (mut served, _) = Served::start(&asking);
    for weight in ["0.4321", "1.25"] {
        assert!(served.ask(&format!("{{\"point\": {{\"medical weight\": {weight}}}}}"))["error"].is_null());
    }
    assert_eq!(served.end().1, Some(0));
    let found = swept("asked", &["--tries=4", "--together=2"]);
    let weights: Vec<f64> = found["points"].as_array().unwrap().iter().map(weight_of).collect();
    assert!([0.4321, 1.25].iter().all(|asked| weights.contains(asked)), "{found}");
    assert_eq!(weight_of(&best(&found)), 0.4321, "{found}");
    // Two of four tries were known, and what is confirmed may be one more.
    assert!((1..=3).contains(&found["candidates_measured"].as_u64().unwrap()), "{found}");
    // A shorter search chooses less, and forgets nothing.
    let score = |found: &Value| best(found)["all"]["score"].as_f64().unwrap();
    let long = score(&swept("short", &["--tries=6", "--together=1"]));
    let short = score(&swept("short", &["--tries=1", "--together=1"]));
    assert!(short <= long, "{short} {long}");
}

#[test]
fn who_waits_for_questions_can_be_interrupted() {
    let folder = TempDir::new().unwrap();
    let file = command::config(folder.path(), &config("task_arithmetic", "", ["{range: [0, 1.5]}", "0.5"]));
    let out = folder.path().join("out");
    let words = ["sweep", file.to_str().unwrap(), out.to_str().unwrap(), "--objective-cmd", "echo {model} 1"];
    let (mut served, _) = Served::start(&words);
    let killed = Command::new("kill").args(["-TERM", &served.process.id().to_string()]).status().unwrap();
    assert!(killed.success());
    assert!(served.next().is_none());
    let ended = served.process.wait_with_output().unwrap();
    let talk = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(130), "{talk}");
    assert!(talk.contains("interrupted"), "{talk}");
    // Nothing was asked for, so there is no best.
    let (served, _) = Served::start(&words);
    let (last, code, talk) = served.end();
    assert_eq!((last, code), (None, Some(2)));
    assert!(talk.contains("no candidate was measured"), "{talk}");
}

/// However few were asked for: what is confirmed is the best of them, and nothing that nobody asked for.
#[test]
fn the_best_of_what_was_asked_for_is_confirmed() {
    let folder = TempDir::new().unwrap();
    let ranges = ["{range: [0, 1.5]}", "{range: [0, 1.5]}"];
    let file = command::config(folder.path(), &config("task_arithmetic", "", ranges));
    let (out, text) = (folder.path().join("out"), folder.path().join("some.txt"));
    fs::write(&text, "The heart pumps blood through the body.\nFever is a high temperature.\n".repeat(4))
        .unwrap();
    let texts = [text];
    let mut words = vec!["sweep", file.to_str().unwrap(), out.to_str().unwrap(), "--no-predict"];
    words.extend(["--text", texts[0].to_str().unwrap(), "--lines", "--try-tokens=20", "--confirm=1"]);
    let (mut served, _) = Served::start(&words);
    served.ask("{\"points\": [{\"medical weight\": 0.9, \"chat weight\": 0.3}, {\"medical weight\": 1.5, \"chat weight\": 1.5}]}");
    let (best, code, said) = served.end();
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(best.unwrap()["best"]["values"], json!({ "medical weight": 0.9, "chat weight": 0.3 }));
}

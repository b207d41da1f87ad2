//! Configs with several documents: the same bytes as the merges one by one, whichever way is taken, and nothing left behind.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use mergeforge::config::parse_all;
use mergeforge::stages::Stages;
use safetensors::Dtype;
use serde_json::{Value as Json, json};
use tempfile::TempDir;

use crate::adapters;
use crate::command::{self, Ended, merge, mergeforge, plan};
use crate::models::{self, Form, PLAIN, Tensors, stored, tuned, weights};

/// A base in bfloat16, and tuned models: `a`, `b` and `c` in bfloat16, `wide` in f32. Their tensors are larger than what is
/// computed at once, and no multiple of it.
struct Models(TempDir);

const SHAPES: [(&str, &[usize]); 6] = [
    ("model.embed_tokens.weight", &[300, 301]),
    ("model.layers.0.w.weight", &[40, 100]),
    ("model.layers.1.w.weight", &[40, 100]),
    ("model.layers.2.w.weight", &[40, 100]),
    ("model.norm.weight", &[100]),
    ("lm_head.weight", &[300, 301]),
];

impl Models {
    fn new() -> Self {
        let models = Self(tempfile::tempdir().unwrap());
        for (seed, name) in (0..).zip(["base", "a", "b", "c", "wide"]) {
            let dtype = if name == "wide" { Dtype::F32 } else { Dtype::BF16 };
            let tensor = |(i, (name, shape)): (u64, &(&str, &[usize]))| {
                let base = weights(shape.iter().product(), i + 1);
                let mut values = if seed == 0 { base } else { tuned(&base, 100 * seed + i) };
                values[0] = -0.0;
                ((*name).to_string(), stored(dtype, shape, &values))
            };
            let tensors: Tensors = (0..).zip(&SHAPES).map(tensor).collect();
            let folder = models.path().join(name);
            models::write(&folder, &tensors, Form { shards: 1 + seed as usize % 2, ..PLAIN });
            fs::write(folder.join("tokenizer.json"), format!("{{\"of\": \"{name}\"}}")).unwrap();
            let config = folder.join("config.json");
            let mut json: Json = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
            json["num_hidden_layers"] = json!(3);
            json["torch_dtype"] = json!(if name == "wide" { "float32" } else { "bfloat16" });
            json["text_config"] = json!({ "num_hidden_layers": 3, "of": name });
            fs::write(config, json.to_string()).unwrap();
        }
        models
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn out(&self) -> PathBuf {
        self.path().join("out")
    }

    fn text(&self, config: &str) -> String {
        config.replace("DIR", self.path().to_str().unwrap())
    }

    fn merge(&self, config: &str, more: &[&str]) -> Ended {
        merge(self.path(), &self.text(config), more)
    }

    /// Merges each document by itself, with the results of those before it by their folders. The last one's result.
    fn one_by_one(&self, config: &str) -> PathBuf {
        let text = marked(config);
        let stages = Stages::of(parse_all("c.yml", &text).unwrap(), &text).unwrap();
        let folder = self.path().join("singly");
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir(&folder).unwrap();
        let names: Vec<Option<String>> =
            stages.configs().iter().map(|config| Some(config.name.as_ref()?.value.clone())).collect();
        for name in &names {
            let line = name.as_ref().map_or(String::new(), |name| format!("name: {name}\n"));
            let mut documents = config.split("---\n");
            let is_it =
                |document: &&str| name.is_none() != document.contains("name:") && document.contains(&line);
            let document = documents.find(is_it).expect("every document is there");
            let mut text = self.text(&document.replace(&line, ""));
            let name = name.as_deref().unwrap_or("out");
            for name in names.iter().flatten() {
                text = text.replace(&format!("{name}!"), folder.join(name).to_str().unwrap());
            }
            let file = folder.join(format!("{name}.yml"));
            fs::write(&file, text).unwrap();
            let merged = mergeforge().arg("merge").args([&file, &folder.join(name)]).output().unwrap();
            Ended::from(merged).succeeded();
        }
        folder.join("out")
    }
}

/// Names of stages are marked with a `!` in these configs, so that the merges one by one find them.
fn marked(config: &str) -> String {
    config.replace('!', "")
}

/// The files that make a checkpoint a model.
fn model_files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let about_the_merge = ["mergeforge.json", "mergekit_config.yml", "README.md"];
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .filter(|(name, _)| !about_the_merge.contains(&name.as_str()))
        .collect();
    files.sort();
    files
}

#[track_caller]
fn assert_same_files(one: &Path, other: &Path) {
    let (one, other) = (model_files(one), model_files(other));
    let names = |files: &[(String, Vec<u8>)]| files.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&one), names(&other));
    for ((name, one), (_, other)) in one.iter().zip(&other) {
        assert!(one == other, "{name} differs");
    }
}

/// Merges a staged config, expects the notes about ways, and compares the result with the merges one by one.
#[track_caller]
fn assert_as_one_by_one(models: &Models, config: &str, says: &[&str]) {
    let ended = models.merge(&marked(config), &[]).succeeded();
    for part in says {
        assert!(ended.stderr.contains(part), "no `{part}` in\n{}", ended.stderr);
    }
    // The card and the manifest of a result on the way are nothing that is lost.
    assert!(!ended.stderr.contains("mergeforge.json"), "{}", ended.stderr);
    assert_same_files(&models.out(), &models.one_by_one(config));
    assert_eq!(
        fs::read_to_string(models.out().join("mergekit_config.yml")).unwrap(),
        models.text(&marked(config))
    );
    assert!(!models.path().join("out.stages").exists());
    fs::remove_dir_all(models.out()).unwrap();
}

const READ: &str = ": merged while it is read, and written nowhere, because ";

/// What a stage can be: its document, and whether it is merged while it is read.
const STAGES: &[(&str, bool)] = &[
    (
        "merge_method: linear\nmodels:\n- {model: DIR/a, parameters: {weight: 0.3}}\n- {model: DIR/b, parameters: {weight: [0.2, 0.9]}}\n",
        true,
    ),
    (
        "merge_method: linear\ndtype: float16\nmodels:\n- {model: DIR/a, parameters: {weight: 1}}\n- {model: DIR/wide, parameters: {weight: -0.5}}\n",
        true,
    ),
    (
        "merge_method: task_arithmetic\nbase_model: DIR/base\nmodels:\n- {model: DIR/a, parameters: {weight: 0.7}}\n- {model: DIR/b, parameters: {weight: 0.4}}\n",
        true,
    ),
    (
        "merge_method: passthrough\nslices:\n- sources: [{model: DIR/b, layer_range: [1, 3]}]\n- sources: [{model: DIR/a, layer_range: [0, 1]}]\n",
        true,
    ),
    ("merge_method: passthrough\ndtype: float16\nmodels: [{model: DIR/a}]\n", true),
    (
        "merge_method: passthrough\nparameters: {scale: 0.5}\nmodels: [{model: DIR/wide}]\nout_dtype: bfloat16\n",
        true,
    ),
    (
        "merge_method: slerp\nbase_model: DIR/a\nparameters: {t: 0.3}\nmodels: [{model: DIR/a}, {model: DIR/b}]\n",
        false,
    ),
    (
        "merge_method: ties\nbase_model: DIR/base\nparameters: {weight: 1, density: 0.5}\nmodels: [{model: DIR/a}, {model: DIR/b}]\n",
        false,
    ),
];

/// What can be made of a stage.
const RESULTS: [&str; 5] = [
    "merge_method: linear\nparameters: {weight: 0.5}\nmodels: [{model: one!}, {model: DIR/c}]\n",
    "merge_method: task_arithmetic\nbase_model: one!\nparameters: {weight: 0.5}\nmodels: [{model: DIR/c}]\n",
    "merge_method: slerp\nbase_model: DIR/c\nparameters: {t: 0.4}\nmodels: [{model: one!}, {model: DIR/c}]\n",
    "merge_method: ties\nbase_model: DIR/c\nparameters: {weight: 1, density: 0.4}\nmodels: [{model: one!}]\n",
    "merge_method: passthrough\nslices:\n- sources: [{model: one!, layer_range: [1, 3]}]\n- sources: [{model: DIR/c, layer_range: [0, 2]}]\n",
];

#[test]
fn every_stage_gives_what_the_merges_one_by_one_give() {
    let models = Models::new();
    for (stage, is_read) in STAGES {
        let way = if *is_read { format!("one{READ}") } else { "one: merged into ".into() };
        for result in RESULTS {
            assert_as_one_by_one(&models, &format!("name: one\n{stage}---\n{result}"), &[&way]);
        }
    }
}

/// Three deep, one of them read twice, both ways in one file, and in an order that is not that of merging.
#[test]
fn stages_are_made_of_stages() {
    let models = Models::new();
    let config = "\
merge_method: linear
parameters: {weight: 0.5}
models: [{model: three!}, {model: one!}]
---
name: three
merge_method: task_arithmetic
base_model: one!
dtype: bfloat16
models:
- {model: two!, parameters: {weight: 0.8}}
- {model: DIR/c, parameters: {weight: 0.5}}
---
name: one
merge_method: linear
models:
- {model: DIR/a, parameters: {weight: 0.6}}
- {model: DIR/b, parameters: {weight: 0.6}}
---
name: two
merge_method: METHOD
base_model: DIR/base
parameters: {weight: 0.5}
models: [{model: one!}, {model: DIR/b}]
";
    let read = ["one", "two", "three"].map(|name| format!("{name}{READ}"));
    let fused = config.replace("METHOD", "task_arithmetic");
    assert_as_one_by_one(&models, &fused, &read.each_ref().map(String::as_str));
    let folders = config.replace("METHOD", "ties");
    assert_as_one_by_one(
        &models,
        &folders,
        &[&read[0], "two: merged into ", "because ties measures", &read[2]],
    );
}

/// What a stage reads may be made itself: adapted weights, and averages that the processor computes by files of importance.
#[test]
fn stages_of_made_inputs_are_read_too() {
    let folder = tempfile::tempdir().unwrap();
    let adapted = adapters::write_merge(folder.path(), "linear");
    let models = Models(folder);
    fs::create_dir(models.path().join("importance")).unwrap();
    let mut importance = models::read(&models.path().join("other"));
    for (seed, tensor) in (30..).zip(importance.values_mut()) {
        let values: Vec<f32> = weights(70 * 130, seed).iter().map(|value| value.abs()).collect();
        *tensor = stored(Dtype::F32, &[70, 130], &values);
    }
    models::write(&models.path().join("importance"), &importance, PLAIN);
    let fisher = "merge_method: fisher\nmodels:\n- {model: DIR/base, importance: DIR/importance}\n- {model: DIR/other, \
                  importance: DIR/importance}\n";
    let result = "merge_method: ties\nbase_model: DIR/base\nparameters: {weight: 1, density: 0.4}\nmodels: [{model: one!}]\n";
    for stage in [adapted.as_str(), fisher] {
        let config = format!("name: one\n{stage}---\n{result}");
        assert_as_one_by_one(&models, &config, &[&format!("one{READ}")]);
    }
    // An adapter on top of a stage takes a folder.
    let on_top = format!("name: one\n{stage}---\n{result}", stage = adapted.replace("density", "dens"));
    let on_top = on_top.replace("{model: one!}", &format!("{{model: one!+{}/two}}", models.path().display()));
    assert_as_one_by_one(&models, &on_top, &["because an adapter is added to it"]);
}

/// A chain of `name`s: each document is the linear merge of those before it that `of` gives, and of a model.
fn chain(count: usize, of: impl Fn(usize) -> Vec<usize>) -> String {
    let document = |number: usize| {
        let name = if number + 1 == count { String::new() } else { format!("name: s{number}\n") };
        let mut models: Vec<String> = of(number).iter().map(|of| format!("{{model: s{of}!}}")).collect();
        models.push(format!("{{model: DIR/{}}}", ["a", "b", "c"][number % 3]));
        let models = models.join(", ");
        format!("{name}merge_method: linear\nparameters: {{weight: 0.5}}\nmodels: [{models}]\n")
    };
    (0..count).map(document).collect::<Vec<_>>().join("---\n")
}

/// However many merges are made of each other, few are carried out within each other.
#[test]
fn a_long_chain_of_stages_is_cut_by_folders() {
    let models = Models::new();
    let config = chain(150, |number| number.checked_sub(1).into_iter().collect());
    let planned = plan(models.path(), &models.text(&marked(&config)), &[]).succeeded();
    let cuts = planned.stdout.matches("because 9 merges would be carried out").count();
    assert_eq!(cuts, 149 / 9, "{}", planned.stdout);
    let config = chain(20, |number| number.checked_sub(1).into_iter().collect());
    assert_as_one_by_one(&models, &config, &["s7: merged while", "s8: merged into", "s17: merged into"]);
}

/// However many ways lead from a merge to a model, it is not read that often.
#[test]
fn stages_that_read_each_other_are_not_read_by_every_path() {
    let models = Models::new();
    let two = |number: usize| (number.saturating_sub(2)..number).collect();
    let says =
        ["s2: merged into", "because 2 documents read it, each of which would read ", "s1: merged while"];
    assert_as_one_by_one(&models, &chain(20, two), &says);
    let all = |number: usize| (0..number).collect();
    let one = |number: usize| number.checked_sub(1).into_iter().collect();
    for (count, of) in [(26, &all as &dyn Fn(usize) -> Vec<usize>), (20, &two), (20, &one), (5, &all)] {
        let planned = plan(models.path(), &models.text(&marked(&chain(count, of))), &["--json"]);
        let plan: Json = serde_json::from_str(&planned.succeeded().stdout).unwrap();
        let stages = plan["stages"].as_array().unwrap();
        assert_eq!(stages.len(), count - 1);
        let bytes = |of: &Json| of["read_bytes"].as_u64().unwrap();
        let (folders, fused): (Vec<&Json>, Vec<&Json>) =
            stages.iter().partition(|stage| stage["way"] == "folder");
        assert!(!fused.is_empty());
        let read = bytes(&plan) + folders.iter().map(|stage| bytes(stage)).sum::<u64>();
        let size = plan["write_bytes"].as_u64().unwrap();
        let moved = read + (folders.len() as u64 + 1) * size;
        // As if all were in folders: what each names is read once, and each is written.
        let from_folders: u64 = (0..count).map(|number| (of(number).len() as u64 + 2) * size).sum();
        assert!(moved <= from_folders, "{count}: {moved} bytes are moved, and with folders {from_folders}");
    }
}

/// The folder that gives a stage its files is no model of the merge.
#[test]
fn a_stage_is_not_the_folder_of_its_files() {
    let models = Models::new();
    let config = format!("name: one\n{}---\n{}", STAGES[0].0, RESULTS[0].replace("DIR/c", "DIR/a"));
    let ended = models.merge(&marked(&config), &["--strict"]).succeeded();
    assert!(ended.stderr.contains(READ) && !ended.stderr.contains("same folder"), "{}", ended.stderr);
}

/// What is wrong with a stage shows whichever way it takes.
#[test]
fn warnings_of_stages_are_shown_and_refused() {
    let models = Models::new();
    for (stage, _) in [STAGES[0], STAGES[6]] {
        let config = marked(&format!("name: one\n{stage}---\n{}", RESULTS[0]));
        let config = config
            .replace(
                "merge_method: linear\nmodels:",
                "merge_method: linear\nparameters: {densty: 3}\nmodels:",
            )
            .replace("{t: 0.3}", "{t: 0.3, densty: 3}");
        let planned = plan(models.path(), &models.text(&config), &[]).succeeded();
        assert_eq!(planned.stdout.matches("stage    one: merged").count(), 1, "{}", planned.stdout);
        assert_eq!(planned.stderr.matches("warning: ").count(), 1, "{}", planned.stderr);
        models.merge(&config, &["--strict"]).failed(2, &["refused for its warnings, 1 in all"]);
    }
}

/// What comes through a pipe can be read once alone, of whatever kind it is.
#[cfg(unix)]
#[test]
fn a_plan_reads_its_config_from_a_pipe() {
    let models = Models::new();
    let config = models.text(&marked(&format!("name: one\n{}---\n{}", STAGES[0].0, RESULTS[0])));
    let mut planned = mergeforge();
    planned.args(["plan", "/dev/stdin"]).current_dir(models.path());
    planned.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut planned = planned.spawn().unwrap();
    planned.stdin.take().unwrap().write_all(config.as_bytes()).unwrap();
    let ended = planned.wait_with_output().unwrap();
    let said = String::from_utf8(ended.stdout).unwrap();
    assert!(ended.status.success() && said.contains(READ), "{said}");
}

/// However the work is cut and spread.
#[test]
fn the_cut_of_the_work_does_not_show() {
    let models = Models::new();
    let config = marked(&format!("name: one\n{}---\n{}", STAGES[2].0, RESULTS[3]));
    models.merge(&config, &[]).succeeded();
    let expected = model_files(&models.out());
    for more in [&["--threads", "1", "--chunk-tiles", "1"][..], &["--threads", "5", "--host-memory", "9MB"]] {
        fs::remove_dir_all(models.out()).unwrap();
        models.merge(&config, more).succeeded();
        assert!(model_files(&models.out()) == expected, "{more:?}");
    }
}

/// Integers that models must agree on are compared before anything is made of them.
#[test]
fn what_models_must_agree_on_is_compared_first() {
    let models = Models::new();
    for (name, ids) in [("a", 7), ("b", 7), ("c", 7)] {
        let mut tensors = models::read(&models.path().join(name));
        let ids = models::Stored { dtype: Dtype::I64, shape: vec![3], bytes: vec![ids; 24] };
        tensors.insert("model.ids".into(), ids);
        fs::remove_dir_all(models.path().join(name)).unwrap();
        models::write(&models.path().join(name), &tensors, PLAIN);
    }
    let linear = "name: one\nmerge_method: linear\nparameters: {weight: 0.5}\nmodels: [{model: DIR/a}, {model: DIR/b}]\n";
    let result = RESULTS[0];
    assert_as_one_by_one(
        &models,
        &format!("{linear}---\n{result}"),
        &["because model.ids is copied once all models agree"],
    );
}

#[test]
fn config_and_tokenizer_are_those_of_the_stage() {
    let models = Models::new();
    // More layers than any model has, of another type, and the tokenizer of a third model.
    let config = "\
name: one
merge_method: passthrough
base_model: DIR/b
dtype: float16
slices:
- sources: [{model: DIR/b, layer_range: [0, 3]}]
- sources: [{model: DIR/b, layer_range: [1, 3]}]
---
merge_method: linear
base_model: one!
parameters: {weight: 0.5}
models: [{model: one!}]
";
    models.merge(&marked(config), &[]).succeeded();
    let out: Json = serde_json::from_slice(&fs::read(models.out().join("config.json")).unwrap()).unwrap();
    assert_eq!((&out["num_hidden_layers"], &out["torch_dtype"]), (&json!(5), &json!("float16")));
    assert_eq!(out["text_config"], json!({ "num_hidden_layers": 5, "of": "b" }));
    assert_eq!(fs::read_to_string(models.out().join("tokenizer.json")).unwrap(), "{\"of\": \"b\"}");
    assert_same_files(&models.out(), &models.one_by_one(config));
    let manifest: Json =
        serde_json::from_slice(&fs::read(models.out().join("mergeforge.json")).unwrap()).unwrap();
    let inputs: Vec<&str> =
        manifest["inputs"].as_array().unwrap().iter().map(|input| input["model"].as_str().unwrap()).collect();
    assert_eq!(inputs[0], "one");
    assert!(inputs[1].ends_with("/b"), "{inputs:?}");
    assert_eq!(manifest["inputs"][0].get("files"), None, "nothing of a stage is on the disk");
}

const TWO: &str = "\
name: one
merge_method: ties
base_model: DIR/base
parameters: {weight: 1, density: 0.5}
models: [{model: DIR/a}, {model: DIR/b}]
---
merge_method: linear
parameters: {weight: 0.5}
models: [{model: one!}, {model: DIR/c}]
";

/// Whichever way the documents take, the manifest says which files they were made of, and the card which models.
#[test]
fn the_manifest_and_the_card_go_back_to_the_models_on_disk() {
    let models = Models::new();
    let dir = models.path().to_str().unwrap().to_string();
    // Two stages, the second of them made of the first.
    let config = "\
name: one
merge_method: METHOD
base_model: DIR/base
parameters: {weight: 1, density: 0.5}
models: [{model: DIR/a}, {model: DIR/b}]
---
name: two
merge_method: METHOD
base_model: one!
parameters: {weight: 1, density: 0.5}
models: [{model: DIR/b}, {model: one!}]
---
merge_method: linear
base_model: two!
parameters: {weight: 0.5}
models: [{model: two!}, {model: DIR/c}]
";
    for (method, is_in_folder) in [("ties", true), ("task_arithmetic", false)] {
        models.merge(&marked(config).replace("METHOD", method), &[]).succeeded();
        let manifest = fs::read(models.out().join("mergeforge.json")).unwrap();
        let manifest: Json = serde_json::from_slice(&manifest).unwrap();
        let inputs = manifest["inputs"].as_array().unwrap();
        for model in ["base", "a", "b", "c"] {
            let of: Vec<&Json> =
                inputs.iter().filter(|input| input["model"] == format!("{dir}/{model}")).collect();
            assert_eq!(of.len(), 1, "{method}, {model}: {inputs:?}");
            assert!(!of[0]["files"].as_array().unwrap().is_empty() && of[0].get("merged").is_none());
        }
        for stage in ["one", "two"] {
            let of: Vec<&Json> = inputs.iter().filter(|input| input["model"] == stage).collect();
            assert_eq!(of.len(), 1, "{method}, {stage}: {inputs:?}");
            assert_eq!((&of[0]["merged"], of[0].get("files").is_some()), (&json!(true), is_in_folder));
        }
        let card = fs::read_to_string(models.out().join("README.md")).unwrap();
        let listed = format!(
            "Base model: `two`, merged on the way\n\nMerged models:\n\n- `two`, merged on the way\n- `{dir}/c`\n"
        );
        assert!(card.contains(&listed), "{card}");
        for model in ["base", "a", "b"] {
            assert_eq!(card.matches(&format!("- `{dir}/{model}`\n")).count(), 1, "{method}, {model}: {card}");
        }
        fs::remove_dir_all(models.out()).unwrap();
    }
}

#[test]
fn intermediate_results_can_be_kept() {
    let models = Models::new();
    let kept = models.path().join("kept");
    let dir = kept.to_str().unwrap();
    let linear = TWO.replace("ties", "linear").replace(", density: 0.5", "");
    let unread = format!("{linear}---\nname: more\nmerge_method: passthrough\nmodels: [{{model: DIR/a}}]\n");
    let ended = models.merge(&marked(&unread), &["-I", dir]).succeeded();
    assert!(
        ended.stderr.contains("one: merged into") && ended.stderr.contains("because it is kept"),
        "{}",
        ended.stderr
    );
    let expected = models.one_by_one(&linear);
    assert_same_files(&models.out(), &expected);
    assert_same_files(&kept.join("one"), &expected.with_file_name("one"));
    assert!(kept.join("more/model.safetensors").is_file());
    fs::remove_dir_all(models.out()).unwrap();
    // What is there is taken.
    let ended = models.merge(&marked(&linear), &["--intermediate-dir", dir, "--strict"]).succeeded();
    assert!(ended.stderr.contains("note: "), "{}", ended.stderr);
    assert!(ended.stderr.contains("kept/one is there already: it is taken as it is"), "{}", ended.stderr);
    assert_same_files(&models.out(), &expected);
    // Without a folder for it, what nobody reads is left out.
    fs::remove_dir_all(models.out()).unwrap();
    let ended = models.merge(&marked(&unread), &[]).succeeded();
    assert!(ended.stderr.contains("note: more: no other document reads it"), "{}", ended.stderr);
    // And what only such a document reads.
    fs::remove_dir_all(models.out()).unwrap();
    let deep = "---\nname: deep\nmerge_method: slerp\nbase_model: DIR/a\nparameters: {t: 0.5}\nmodels: [{model: DIR/a}, {model: DIR/b}]\n";
    let ended = models.merge(
        &format!("{}{deep}", marked(&unread).replace("models: [{model: DIR/a}]", "models: [{model: deep}]")),
        &[],
    );
    let ended = ended.succeeded();
    assert!(
        ended.stderr.contains("note: deep: only documents that are left out read it, and it is left out"),
        "{}",
        ended.stderr
    );
    assert!(!ended.stderr.contains("deep: merged"), "{}", ended.stderr);
    assert_same_files(&models.out(), &expected);
}

/// A result that is there already stands for the merge only if that would make it again.
#[test]
fn what_is_kept_is_compared_with_what_would_be_merged() {
    let models = Models::new();
    let kept = models.path().join("kept");
    let dir = kept.to_str().unwrap().to_string();
    let config = marked(&TWO.replace("ties", "dare_ties"));
    models.merge(&config, &["-I", &dir]).succeeded();
    fs::remove_dir_all(models.out()).unwrap();
    let again =
        |config: &str, more: &[&str]| models.merge(config, &[&["-I", &dir, "--strict"], more].concat());
    let is_refused = |ended: Ended, says: &str| {
        let ended =
            ended.failed(2, &["kept/one is there already, and is not what would be merged now: ", says]);
        assert!(ended.stderr.contains("hint: it is taken as it is; remove it") && !models.out().exists());
        assert_eq!(ended.stderr.matches("warning: ").count(), 1, "{}", ended.stderr);
    };
    is_refused(again(&config.replace("name: one\n", "name: one\ndtype: float32\n"), &[]), "its recipe");
    is_refused(again(&config, &["--seed", "7"]), "its seed is 0, not 7");
    is_refused(again(&config, &["-u"]), "its tensors_of_some_models is \"copied\", not \"merged\"");
    is_refused(
        again(&config, &["--unsafe-truncate-embeddings"]),
        "its truncated_embeddings is false, not true",
    );
    is_refused(again(&config, &["--out-shard-size", "200kB"]), "model-00001-of-");
    // Each change that shows in the result, and back.
    let manifest = kept.join("one/mergeforge.json");
    let written = fs::read_to_string(&manifest).unwrap();
    for (from, to, says) in [
        ("\"mergeforge\":\"", "\"mergeforge\":\"9", "mergeforge 9"),
        ("\"options\"", "\"option\"", "does not say what its truncated_embeddings is"),
        ("\"model.norm.weight\"", "\"model.norm\"", "it has other tensors"),
        ("{", "", "it has no mergeforge.json that says"),
    ] {
        fs::write(&manifest, written.replacen(from, to, 1)).unwrap();
        is_refused(again(&config, &[]), says);
    }
    fs::write(&manifest, written).unwrap();
    let (file, aside) = (kept.join("one/tokenizer.json"), kept.join("aside"));
    fs::rename(&file, &aside).unwrap();
    is_refused(again(&config, &[]), "files are missing or hold something else: tokenizer.json");
    again(&config, &["--no-copy-tokenizer"]).succeeded();
    fs::remove_dir_all(models.out()).unwrap();
    fs::rename(&aside, &file).unwrap();
    is_refused(again(&config, &["--no-copy-tokenizer"]), "files are there that would not be: tokenizer.json");
    let tokens = fs::read_to_string(&file).unwrap();
    fs::write(&file, tokens.replacen('{', " {", 1)).unwrap();
    is_refused(again(&config, &[]), "files are missing or hold something else: tokenizer.json");
    fs::write(&file, tokens).unwrap();
    // What a model says of itself may change what is merged.
    let own = models.path().join("b/config.json");
    let says = fs::read_to_string(&own).unwrap();
    fs::write(&own, says.replacen('{', "{\"x\": 1, ", 1)).unwrap();
    is_refused(again(&config, &[]), "inputs are not those that it was made of: ");
    fs::write(&own, says).unwrap();
    again(&config, &[]).succeeded();
    fs::remove_dir_all(models.out()).unwrap();
    // An input of other bytes.
    let mut changed = models::read(&models.path().join("b"));
    changed.get_mut("model.norm.weight").unwrap().bytes[0] ^= 1;
    let tokenizer = fs::read(models.path().join("b/tokenizer.json")).unwrap();
    let settings = fs::read(models.path().join("b/config.json")).unwrap();
    fs::remove_dir_all(models.path().join("b")).unwrap();
    models::write(&models.path().join("b"), &changed, Form { shards: 1, ..PLAIN });
    fs::write(models.path().join("b/tokenizer.json"), tokenizer).unwrap();
    fs::write(models.path().join("b/config.json"), settings).unwrap();
    is_refused(again(&config, &[]), "inputs are not those that it was made of: ");
    // Without --strict it is taken, and said.
    let ended = models.merge(&config, &["-I", &dir]).succeeded();
    assert!(
        ended.stderr.contains("warning: ") && ended.stderr.contains("/b; ") | ended.stderr.contains("/b\n"),
        "{}",
        ended.stderr
    );
}

#[test]
fn the_command_line_of_mergekit_multi_works_as_pasted() {
    let models = Models::new();
    let file = models.path().join("multi.yml");
    fs::write(&file, models.text(&marked(TWO))).unwrap();
    let (kept, out) = (models.path().join("kept"), models.out());
    let multi = |more: &[&str]| {
        let mut command = mergeforge();
        command.arg("multi").arg(&file).arg("-I").arg(&kept).args(more);
        Ended::from(command.output().unwrap())
    };
    multi(&[]).failed(2, &["has no name, and --out-path is missing"]);
    let out_path = ["--out-path", out.to_str().unwrap()];
    let done =
        multi(&[&out_path[..], &["--lazy", "--cuda", "--device", "cpu", "--json"]].concat()).succeeded();
    let mut manifest: Json =
        serde_json::from_str(&done.stdout).expect("the manifest of what was asked for alone");
    assert_eq!(manifest["method"], "linear");
    // How a merge went is known when it was made.
    assert!(manifest.as_object_mut().unwrap().shift_remove("run").is_some());
    let expected = models.one_by_one(TWO);
    assert_same_files(&out, &expected);
    assert_same_files(&kept.join("one"), &expected.with_file_name("one"));
    multi(&[&out_path[..], &["--no-lazy"]].concat())
        .failed(2, &["kept/one exists and is not empty", "out exists"]);
    // A second time all is left out that is there already.
    let again = multi(&[&out_path[..], &["--strict", "--json"]].concat()).succeeded();
    assert_eq!(serde_json::from_str::<Json>(&again.stdout).unwrap(), manifest, "{}", again.stderr);
    for there in ["kept/one", "out"] {
        assert!(
            again.stderr.contains(&format!("{there} is there already: it is taken as it is")),
            "{}",
            again.stderr
        );
    }
    assert!(!again.stderr.contains("merged into"), "{}", again.stderr);
    multi(&[&out_path[..], &["--strict", "--seed", "1"]].concat()).failed(
        2,
        &["out is there already, and is not what would be merged now: its seed is 0, not 1", "2 in all"],
    );
    // What is missing is merged, and what was made of it is said to be made of another.
    fs::remove_dir_all(kept.join("one")).unwrap();
    let again = multi(&out_path).succeeded();
    assert!(
        again.stderr.contains(
            "out is there already, and is not what would be merged now: inputs are not those that it was made of: one\n"
        ),
        "{}",
        again.stderr
    );
    assert_same_files(&kept.join("one"), &expected.with_file_name("one"));
    // Documents that all have names go into the folder together.
    fs::remove_dir_all(&kept).unwrap();
    fs::write(&file, models.text(&marked(TWO)).replace("---\n", "---\nname: two\n")).unwrap();
    multi(&[]).succeeded();
    assert_same_files(&kept.join("two"), &expected);
}

#[test]
fn nothing_is_left_of_a_merge_that_fails() {
    let models = Models::new();
    let check = |config: &str, code: i32, says: &[&str]| {
        models.merge(&marked(config), &[]).failed(code, says);
        let left = ["out", "out.stages", "out.partial"].map(|name| models.path().join(name).exists());
        assert_eq!(left, [false; 3]);
    };
    // The last document is wrong: nothing is merged before that is known.
    check(&TWO.replace("DIR/c", "DIR/nothing"), 2, &["config.yml:9:32: there is no model folder"]);
    check(
        &TWO.replace("models: [{model: one!}, ", "base_model: nobody\nmodels: [{model: one!}, "),
        2,
        &["nobody"],
    );
    // A file is damaged in a way that only reading it shows.
    let file = models.path().join("a/part-1.safetensors");
    let length = fs::metadata(&file).unwrap().len();
    fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(length - 1).unwrap();
    check(TWO, 3, &["part-1.safetensors"]);
}

/// All that can be known of any document is known before the first is merged.
#[test]
fn every_destination_is_checked_before_the_first_merge() {
    let models = Models::new();
    let (kept, dir) = (models.path().join("kept"), models.path().to_str().unwrap().to_string());
    let config = marked(TWO);
    let refused = |more: &[&str], config: &str, code: i32, says: &[&str]| {
        let ended = models.merge(config, more).failed(code, says);
        assert!(!ended.stderr.contains("merged into"), "{}", ended.stderr);
        assert!(!kept.join("one").is_dir() && !models.path().join("out.stages").exists());
    };
    let keep = ["-I", kept.to_str().unwrap()];
    // The output is in the way, or the result that is kept.
    fs::create_dir_all(models.out().join("x")).unwrap();
    for more in [&[][..], &keep] {
        refused(more, &config, 2, &["out exists and is not empty"]);
    }
    fs::remove_dir_all(models.out()).unwrap();
    fs::create_dir(&kept).unwrap();
    fs::write(kept.join("one"), "x").unwrap();
    refused(&keep, &config, 2, &["kept/one exists and is no folder"]);
    fs::remove_dir_all(&kept).unwrap();
    // Results overlap with each other, or with what another document reads.
    refused(&["-I", models.out().to_str().unwrap()], &config, 2, &["the results ", "/out overlap"]);
    let inside = config.replace("name: one", "name: a/one").replace("{model: one}", "{model: a/one}");
    refused(&["-I", &dir], &inside, 2, &["the output folder ", "/a/one and the input ", "/a overlap"]);
    // A trace where another document reads.
    let trace = format!("{dir}/a/trace.json");
    refused(&["--trace", &trace], &config, 2, &["the trace ", "a model lies there"]);
    // Too little memory for the first document, which alone measures.
    refused(&["--host-memory", "1kB"], &config, 2, &["config.yml:1:7: in `one`: --host-memory"]);
    // The plan says the same.
    fs::create_dir_all(models.out().join("x")).unwrap();
    let out = models.out();
    plan(models.path(), &models.text(&config), &["--out", out.to_str().unwrap()])
        .failed(2, &["exists and is not empty"]);
}

/// What a later document asks of a result that is not there yet is answered as it will be.
#[test]
fn a_result_that_is_kept_without_its_tokenizer_has_none_for_others() {
    let models = Models::new();
    let config = marked(&format!("{TWO}tokenizer_source: one!\n"));
    for model in ["base", "a", "b", "c"] {
        let tokenizer =
            r#"{"model": {"type": "WordLevel", "vocab": {"x": 0}, "unk_token": "x"}, "added_tokens": []}"#;
        fs::write(models.path().join(model).join("tokenizer.json"), tokenizer).unwrap();
    }
    let kept = models.path().join("kept");
    let keep = ["-I", kept.to_str().unwrap(), "--no-copy-tokenizer"];
    let ended = models.merge(&config, &keep).failed(3, &["one has no tokenizer"]);
    assert!(!ended.stderr.contains("merged into") && !kept.exists(), "{}", ended.stderr);
    // One that is removed again has all.
    models.merge(&config, &["--no-copy-tokenizer"]).succeeded();
    models.merge(&config, &["-I", kept.to_str().unwrap()]).failed(2, &["out exists"]);
    fs::remove_dir_all(models.out()).unwrap();
    models.merge(&config, &["-I", kept.to_str().unwrap()]).succeeded();
}

#[test]
fn what_a_killed_merge_left_is_cleared_by_the_next() {
    let models = Models::new();
    let config = marked(TWO);
    models.merge(&config, &[]).succeeded();
    let expected = model_files(&models.out());
    fs::remove_dir_all(models.out()).unwrap();
    let left = models.path().join("out.stages");
    let file = command::config(models.path(), &models.text(&config));
    // It may be over before it is killed.
    let killed = (0..50).any(|_| {
        let _ = fs::remove_dir_all(models.out());
        let mut child = mergeforge()
            .arg("merge")
            .args([&file, &models.out()])
            .args(["--chunk-tiles", "1", "-j1"])
            .spawn()
            .unwrap();
        while !left.join("merged").exists() && child.try_wait().unwrap().is_none() {
            std::thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        left.join("merged").exists() && !models.out().exists()
    });
    assert!(killed, "no merge was killed in time");
    let _ = fs::remove_dir_all(models.path().join("out.partial"));
    let ended = models.merge(&config, &[]).succeeded();
    assert!(ended.stderr.contains("out.stages was left by a merge that was ended"), "{}", ended.stderr);
    assert!(model_files(&models.out()) == expected && !left.exists());
    fs::remove_dir_all(models.out()).unwrap();
    // Where another merge is at work, or somebody else's files lie, nothing is touched.
    fs::create_dir(&left).unwrap();
    fs::write(left.join("mine"), "x").unwrap();
    models.merge(&config, &[]).failed(4, &["out.stages is in the way", "it is not empty"]);
    fs::rename(left.join("mine"), left.join(".lock")).unwrap();
    let held = fs::File::open(left.join(".lock")).unwrap();
    held.lock().unwrap();
    models.merge(&config, &[]).failed(4, &["another process is writing", "out.stages"]);
    assert!(left.join(".lock").is_file());
}

/// Each with its place; of those that read a broken one what shows without it.
#[test]
fn the_mistakes_of_all_documents_are_reported_at_once() {
    let models = Models::new();
    let mut tensors = models::read(&models.path().join("c"));
    let norm = models::Stored { dtype: Dtype::BF16, shape: vec![50], bytes: vec![0; 100] };
    tensors.insert("model.norm.weight".into(), norm);
    models::write(&models.path().join("short"), &tensors, PLAIN);
    let config = "\
name: one
merge_method: linear
parameters: {weight: 1}
models: [{model: DIR/a}, {model: DIR/nothing}]
---
name: two
merge_method: linear
parameters: {weight: 1}
models: [{model: DIR/short}, {model: DIR/a}]
---
name: three
merge_method: tise
models: [{model: one}, {model: DIR/a}]
---
name: four
merge_method: tise
models: [{model: DIR/a}, {model: DIR/b}]
---
merge_method: linear
parameters: {weight: 1}
models: [{model: one}, {model: two}, {model: three}, {model: four}]
";
    for ended in [models.merge(config, &[]), plan(models.path(), &models.text(config), &[])] {
        let says = [
            "config.yml:4:46: there is no model folder",
            "config.yml:6:7: in `two`: tensor model.norm.weight",
            "config.yml:12:15: there is no merge method `tise`",
            "config.yml:16:15: there is no merge method `tise`",
        ];
        let ended = ended.failed(2, &says);
        assert_eq!(ended.stderr.matches("error: ").count(), 4, "{}", ended.stderr);
    }
    assert!(!models.path().join("out.stages").exists());
}

#[test]
fn a_plan_shows_every_document() {
    let models = Models::new();
    let shown = plan(models.path(), &models.text(&marked(TWO)), &[]).succeeded();
    let dir = models.path().to_str().unwrap();
    let paragraph = format!(
        "stage    one: merged into a folder of its own first, because ties measures whole tensors before it combines them\n         \
         ties of {dir}/a, {dir}/b, {dir}/base: 6 tensors, 386.0 kB; reads "
    );
    assert!(shown.stdout.starts_with(&paragraph), "{}", shown.stdout);
    assert!(shown.stdout.contains("\n\nmethod   linear: "), "{}", shown.stdout);
    let linear = TWO.replace("ties", "linear").replace(", density: 0.5", "");
    let linear = models.text(&marked(&linear));
    let shown = plan(models.path(), &linear, &[]).succeeded();
    assert!(shown.stdout.contains(&format!("one{READ}")), "{}", shown.stdout);
    assert!(!shown.stdout.contains("left out"), "{}", shown.stdout);
    for (config, way, why) in [
        (&models.text(&marked(TWO)), "folder", "ties measures whole tensors before it combines them"),
        (&linear, "fused", "linear takes every element by itself"),
    ] {
        let shown = plan(models.path(), config, &["--json"]).succeeded();
        let shown: Json = serde_json::from_str(&shown.stdout).unwrap();
        let stage = &shown["stages"][0];
        assert_eq!(shown["stages"].as_array().unwrap().len(), 1);
        assert_eq!((&stage["name"], &stage["way"], &stage["why"]), (&json!("one"), &json!(way), &json!(why)));
        assert_eq!((&stage["tensors"], shown["tensors"].as_array().unwrap().len()), (&json!(6), 6));
        // The result has the same tensors in the same types, and so the same size.
        assert_eq!(stage["bytes"], shown["write_bytes"]);
        assert_eq!(shown["method"], "linear");
    }
    assert_eq!(fs::read_dir(models.path()).unwrap().count(), 6, "five models and a config");
}

/// Nothing at all is written for a plan, wherever temporary files go.
#[test]
fn a_plan_of_results_that_are_not_there_writes_nothing() {
    let models = Models::new();
    let temporary = tempfile::tempdir().unwrap();
    fs::set_permissions(temporary.path(), std::os::unix::fs::PermissionsExt::from_mode(0o555)).unwrap();
    let file = command::config(models.path(), &models.text(&marked(TWO)));
    let mut planned = mergeforge();
    planned.arg("plan").arg(&file).env("TMPDIR", temporary.path()).current_dir(models.path());
    Ended::from(planned.output().unwrap()).succeeded();
    assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 0);
    let mut planned = mergeforge();
    planned.arg("plan").arg(&file).env("TMPDIR", "/nowhere").current_dir(models.path());
    Ended::from(planned.output().unwrap()).succeeded();
    assert_eq!(fs::read_dir(models.path()).unwrap().count(), 6, "five models and a config");
    // A file of such a result goes by its name. (The donor's is no tokenizer.)
    let config = models.text(&marked(&format!("{TWO}tokenizer_source: union\n")));
    plan(models.path(), &config, &[]).failed(3, &["config.yml:7:1: one/tokenizer.json"]);
}

/// Which rows of embeddings are whose is in the tokenizers of all models.
#[test]
fn a_kept_union_is_of_the_tokenizers_that_it_was_made_of() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["base", "chat"] {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/models").join(name);
        fs::create_dir(folder.path().join(name)).unwrap();
        for file in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
            fs::copy(from.join(file), folder.path().join(name).join(file)).unwrap();
        }
    }
    let config = "\
name: one
merge_method: linear
parameters: {weight: 1}
models: [{model: DIR/base}, {model: DIR/chat}]
tokenizer_source: union
---
merge_method: karcher
models: [{model: one}, {model: DIR/base}]
"
    .replace("DIR", folder.path().to_str().unwrap());
    let kept = folder.path().join("kept");
    let again = || {
        let out = folder.path().join("out");
        if out.exists() {
            fs::remove_dir_all(out).unwrap();
        }
        merge(folder.path(), &config, &["--strict", "-I", kept.to_str().unwrap()])
    };
    again().succeeded();
    again().succeeded();
    let file = folder.path().join("chat/tokenizer.json");
    let mut tokens: Json = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    let vocabulary = tokens["model"]["vocab"].as_object_mut().unwrap();
    let two: Vec<String> = vocabulary
        .iter()
        .filter(|(_, id)| [600, 601].contains(&id.as_u64().unwrap()))
        .map(|(token, _)| token.clone())
        .collect();
    let ids = [&two[0], &two[1]].map(|token| vocabulary[token.as_str()].clone());
    vocabulary[&two[0]] = ids[1].clone();
    vocabulary[&two[1]] = ids[0].clone();
    fs::write(&file, tokens.to_string()).unwrap();
    again().failed(2, &["one is there already, and is not what would be merged now: inputs are not those"]);
}

#[test]
fn the_folder_that_one_is_in_can_be_the_output() {
    let models = Models::new();
    let config = command::config(models.path(), &models.text(&marked(TWO)));
    let out = models.path().join("here");
    fs::create_dir(&out).unwrap();
    let mut merge = mergeforge();
    merge.current_dir(&out).arg("merge").arg(config).arg(".");
    let ended = merge.output().unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    models.merge(&marked(TWO), &[]).succeeded();
    assert_same_files(&out, &models.out());
    assert!(!models.path().join("here.stages").exists() && !out.join(".stages").exists());
}

/// However long the chain, putting it in order takes no stack for each document.
#[test]
fn a_thousand_documents_are_put_in_order() {
    const COUNT: usize = 1000;
    let document = |number: usize, of: &str| {
        format!("name: s{number}\nmerge_method: linear\nmodels: [{{model: {of}}}]\n")
    };
    let chain = |first: &str| {
        // The last is written first.
        let of = |number: usize| if number == 0 { first.into() } else { format!("s{}", number - 1) };
        (0..COUNT).rev().map(|number| document(number, &of(number))).collect::<Vec<_>>().join("---\n")
    };
    let order = |text: String| {
        let configs = parse_all("c.yml", &text).unwrap();
        let small = std::thread::Builder::new().stack_size(64 << 10);
        small.spawn(move || Stages::of(configs, &text)).unwrap().join().unwrap()
    };
    let stages = order(chain("a")).unwrap();
    let names = stages.configs().iter().map(|config| config.name.as_ref().unwrap().value.clone());
    assert!(names.eq((0..COUNT).map(|number| format!("s{number}"))));
    let error = order(chain(&format!("s{}", COUNT - 1))).unwrap_err();
    assert!(error.message.contains("merges are made of each other: `s999` reads `s998`"), "{error}");
    assert!(error.message.chars().count() < 1100, "{} characters", error.message.len());
}

#[test]
fn documents_that_do_not_fit_together_are_refused_with_their_places() {
    let one =
        |name: &str, model: &str| format!("{name}merge_method: karcher\nmodels: [{{model: {model}}}]\n");
    let refused = |documents: &[String], message: &str, hint: &str| {
        let text = documents.join("---\n");
        let stages = parse_all("c.yml", &text).and_then(|configs| Stages::of(configs, &text));
        let error = stages.and_then(|stages| stages.check_result()).unwrap_err();
        assert_eq!(error.message, message);
        assert!(error.hint.as_deref().unwrap_or_default().contains(hint), "{error:?}");
    };
    refused(
        &[one("name: x\n", "a"), one("name: x\n", "b"), one("", "x")],
        "c.yml:5:7: two merges are named `x`, at 1:7 and at 5:7",
        "another name",
    );
    refused(
        &[one("", "a"), one("", "b")],
        "c.yml:4:1: two merges have no name, those at 1:1 and at 4:1",
        "`name:`",
    );
    refused(
        &[one("name: x\n", "y"), one("name: y\n", "x"), one("", "x")],
        "c.yml:7:18: merges are made of each other: `x` reads `y` reads `x`",
        "models alone",
    );
    refused(&[one("name: x\n", "x"), one("", "x")], "c.yml:3:18: `x` is made of itself", "models alone");
    refused(
        &[one("name: x\n", "a"), one("name: y\n", "b")],
        "c.yml:1:1: several merges are read by no other: `x` at 1:7, `y` at 5:7",
        "mergeforge multi",
    );
    refused(
        &[one("name: x.partial\n", "a"), one("name: x\n", "b"), one("", "x")],
        "c.yml:1:7: `x.partial` is what `x`, the merge at 5:7, is called while it is made",
        "another name",
    );
    let long = "x".repeat(201);
    for name in ["../x", "/x", "''", "a@b", "\"a\\nb\"", "x/.", "x/", "x//y", "./x", &long] {
        let text = one(&format!("name: {name}\n"), "a");
        let alone = Stages::of(parse_all("c.yml", &text).unwrap(), &text).unwrap();
        assert!(alone.single().is_ok(), "a document by itself may be called anything");
        let text = format!("{text}---\n{}", one("", "a"));
        let error = Stages::of(parse_all("c.yml", &text).unwrap(), &text).unwrap_err();
        assert!(
            error.message.starts_with("c.yml:1:7: ") && error.message.contains("cannot be the name"),
            "{error}"
        );
    }
    refused(
        &[one("name: x/y\n", "a"), one("name: x\n", "b"), one("", "x")],
        "c.yml:1:7: `x/y` would be a folder in `x`, the merge at 5:7",
        "another name",
    );
    let tokenizer = one("tokenizer_source: x\n", "a");
    let text = [tokenizer, one("name: x\n", "b")].join("---\n");
    let stages = Stages::of(parse_all("c.yml", &text).unwrap(), &text).unwrap();
    let names: Vec<bool> = stages.configs().iter().map(|config| config.name.is_some()).collect();
    assert_eq!(names, [true, false], "the one that gives the tokenizer comes first");
}

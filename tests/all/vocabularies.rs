//! Models of different vocabularies: the merge is that of checkpoints whose rows were aligned by hand, and the files beside the
//! weights say the same vocabulary.

use std::fs;
use std::path::Path;

use mergeforge::backend::cpu::CHUNK_TILES;
use mergeforge::input::{self, Input};
use mergeforge::plan::{Action, Choices};
use mergeforge::stream::Budget;
use mergeforge::{Prepared, prepare};
use safetensors::Dtype;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::command::{self, Ended};
use crate::models::{self, PLAIN, RUN, Run, Stored, Tensors, stored, tuned, weights};

const COLUMNS: usize = 300;

/// A tokenizer of words; the special ones stand behind the others.
pub fn tokenizer(words: &[&str], special: &[&str]) -> Value {
    let vocabulary: serde_json::Map<String, Value> =
        words.iter().zip(0..).map(|(word, id)| ((*word).into(), json!(id))).collect();
    let added = |(word, id): (&&str, usize)| {
        json!({"id": id, "content": word, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            "special": true})
    };
    let added: Vec<Value> = special.iter().zip(words.len()..).map(added).collect();
    json!({"version": "1.0", "added_tokens": added, "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": words[0]}})
}

/// The tensors of a model: of `rows` rows each that go over the vocabulary, and one that does not.
fn tensors(rows: usize, dtype: Dtype, seed: u64) -> Tensors {
    let matrix = |seed| stored(dtype, &[rows, COLUMNS], &weights(rows * COLUMNS, seed));
    Tensors::from([
        ("model.embed_tokens.weight".into(), matrix(seed)),
        ("lm_head.weight".into(), matrix(seed + 1)),
        ("lm_head.bias".into(), stored(dtype, &[rows], &weights(rows, seed + 2))),
        ("model.layers.0.w.weight".into(), stored(dtype, &[5, 7], &tuned(&weights(35, 0), seed + 3))),
    ])
}

pub fn write(folder: &Path, tensors: &Tensors, tokenizer: &Value, config: &Value) {
    models::write(folder, tensors, PLAIN);
    fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let mut whole: Value = serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap();
    whole.as_object_mut().unwrap().extend(config.as_object().unwrap().clone());
    fs::write(folder.join("config.json"), serde_json::to_string_pretty(&whole).unwrap()).unwrap();
}

/// What the models' tokens are: `a` has rows without a token, and `c` a token without a row.
const A: &[&str] = &["?", "one", "two", "three"];
const B: &[&str] = &["three", "?", "four", "one"];
const C: &[&str] = &["?", "four", "five", "six"];

/// Three models whose vocabularies overlap, and the same aligned by hand with the union: the tokens of `b`, `two`, `five`, `<s>`,
/// `<new>`, and three rows to fill up.
fn folders() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let [a, b, c] = [tensors(7, Dtype::BF16, 10), tensors(5, Dtype::BF16, 20), tensors(3, Dtype::BF16, 30)];
    let at = |name: &str| folder.path().join(name);
    write(&at("a"), &a, &tokenizer(A, &["<s>"]), &json!({"vocab_size": 7, "eos_token_id": 4}));
    write(&at("b"), &b, &tokenizer(B, &["<b>"]), &json!({"vocab_size": 5, "eos_token_id": 4}));
    write(&at("c"), &c, &tokenizer(C, &[]), &json!({"vocab_size": 3}));
    // By model, for each id of the union, the model and row it comes from: `b` is the base.
    let (ones, twos, threes) = ([(0, 1), (1, 3), (1, 3)], [(0, 2); 3], [(0, 3), (1, 0), (1, 0)]);
    let (unknown, fours, fives) = ([(0, 0), (1, 1), (2, 0)], [(1, 2), (1, 2), (2, 1)], [(2, 2); 3]);
    let (starts, bs, news) = ([(0, 4); 3], [(1, 4); 3], [(0, 6); 3]);
    let aligned = [threes, unknown, fours, ones, bs, twos, fives, starts, news];
    let sources = [&a, &b, &c];
    for (model, name) in ["a", "b", "c"].into_iter().enumerate() {
        let align = |(name, tensor): (&String, &Stored)| {
            let columns = if name == "lm_head.bias" { 1 } else { COLUMNS };
            if name.starts_with("model.layers") {
                return (name.clone(), tensor.clone());
            }
            let row =
                |(of, row): (usize, usize)| &sources[of][name].bytes[row * columns * 2..][..columns * 2];
            let mut bytes: Vec<u8> = aligned.iter().flat_map(|of| row(of[model])).copied().collect();
            let whole = Stored { dtype: Dtype::BF16, shape: vec![9, columns], bytes: bytes.clone() };
            let values = models::values(&whole);
            let mean = |column: usize| {
                let sum: f64 = (0..9).map(|row| f64::from(values[row * columns + column])).sum();
                (sum / 9.0) as f32
            };
            let filler = stored(Dtype::BF16, &[columns], &(0..columns).map(mean).collect::<Vec<_>>());
            (0..3).for_each(|_| bytes.extend(&filler.bytes));
            let shape = if columns == 1 { vec![12] } else { vec![12, columns] };
            (name.clone(), Stored { dtype: Dtype::BF16, shape, bytes })
        };
        let aligned: Tensors = sources[model].iter().map(align).collect();
        models::write(&at(&format!("aligned-{name}")), &aligned, PLAIN);
    }
    folder
}

const UNION: &str = "tokenizer:\n  source: union\n  pad_to_multiple_of: 4\n  tokens:\n    <new>: {source: {kind: model_token, model: DIR/a, token_id: 6}}\n";

/// A config over three folders, `{}` being what stands before their names.
fn config(folder: &Path, method: &str, before: &str, more: &str) -> String {
    let text = format!(
        "merge_method: {method}\nbase_model: DIR/{before}b\nparameters: {{weight: 0.4, density: 0.6}}\n\
         models:\n  - model: DIR/{before}a\n  - model: DIR/{before}c\n{more}"
    );
    text.replace("DIR", &folder.display().to_string())
}

/// A merge with rows of every kind, for devices.
pub fn case(method: &str) -> TempDir {
    let folder = folders();
    let text = config(folder.path(), method, "", UNION);
    fs::write(folder.path().join("config.yml"), text).unwrap();
    folder
}

#[test]
fn a_union_merges_as_checkpoints_aligned_by_hand() {
    let folder = folders();
    for method in ["linear", "task_arithmetic", "ties", "dare_ties", "model_stock"] {
        let by_hand = config(folder.path(), method, "aligned-", "");
        models::run(folder.path(), &by_hand, "by-hand", RUN).unwrap();
        let expected = models::read(&folder.path().join("by-hand"));
        let union = config(folder.path(), method, "", UNION);
        for (threads, chunk_tiles) in [(1, 1), (2, CHUNK_TILES), (3, 2)] {
            let budget = Budget { threads, chunk_tiles: Some(chunk_tiles), ..RUN.budget };
            models::run(folder.path(), &union, "out", Run { budget, ..RUN }).unwrap();
            let found = models::read(&folder.path().join("out"));
            assert!(found == expected, "{method}, {threads} threads, chunks of {chunk_tiles} tiles");
            fs::remove_dir_all(folder.path().join("out")).unwrap();
        }
        fs::remove_dir_all(folder.path().join("by-hand")).unwrap();
    }
}

fn planned(folder: &Path, text: &str) -> Prepared {
    let file = command::config(folder, text);
    prepare(&file, &Choices::USUAL).unwrap()
}

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Whether an output's tokenizer has these tokens in the order of their ids.
#[track_caller]
fn assert_tokens(out: &Path, tokens: &[&str]) {
    let read = tokenizers::Tokenizer::from_file(out.join("tokenizer.json")).unwrap();
    let found: Vec<String> =
        (0..read.get_vocab_size(true) as u32).map(|id| read.id_to_token(id).unwrap()).collect();
    assert_eq!(found, tokens);
}

#[test]
fn the_files_beside_the_weights_say_the_same_vocabulary() {
    let folder = folders();
    let (a, b, out) = (folder.path().join("a"), folder.path().join("b"), folder.path().join("out"));
    let base = |source: &str| format!("tokenizer_source: {source}\n");
    for (name, text) in
        [("vocab.json", "{}"), ("merges.txt", ""), ("generation_config.json", r#"{"eos_token_id":[4, 0]}"#)]
    {
        fs::write(b.join(name), text).unwrap();
    }
    fs::write(a.join("generation_config.json"), r#"{"pad_token_id": 0}"#).unwrap();
    fs::write(a.join("tokenizer_config.json"), r#"{"eos_token" : "<s>", "chat_template":"of a"}"#).unwrap();
    let merge = |more: &str| {
        let _ = fs::remove_dir_all(&out);
        let ended =
            command::merge(folder.path(), &config(folder.path(), "linear", "", more), &[]).succeeded();
        (ended, json_of(&out.join("config.json")))
    };

    let (_, settings) = merge(UNION);
    assert_tokens(&out, &["three", "?", "four", "one", "<b>", "two", "five", "<s>", "<new>"]);
    assert_eq!((&settings["vocab_size"], &settings["eos_token_id"]), (&json!(12), &json!(4)));
    assert!(!out.join("vocab.json").exists() && !out.join("merges.txt").exists());
    assert_eq!(fs::read_to_string(out.join("generation_config.json")).unwrap(), r#"{"eos_token_id":[4, 0]}"#);

    // Of another model: its files, byte for byte, and its special tokens.
    let (_, settings) = merge(&base("DIR/a").replace("DIR", &folder.path().display().to_string()));
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        assert_eq!(fs::read(out.join(name)).unwrap(), fs::read(a.join(name)).unwrap(), "{name}");
    }
    assert_eq!((&settings["vocab_size"], &settings["eos_token_id"]), (&json!(5), &json!(4)));
    // What the donor's file has no id of is set as the leading model has it.
    let generation = json_of(&out.join("generation_config.json"));
    assert_eq!(generation["pad_token_id"], 0);
    // The donor's end of a text is no token of `a`, and its generation_config.json does not say which is.
    let plan =
        planned(folder.path(), &config(folder.path(), "linear", "", &base(&a.display().to_string()))).plan;
    assert!(plan.warnings[0].message.contains("no token for eos_token_id"), "{:?}", plan.warnings);

    let (_, settings) = merge(&(base("base") + "chat_template: chatml\n"));
    assert_eq!(fs::read(out.join("tokenizer.json")).unwrap(), fs::read(b.join("tokenizer.json")).unwrap());
    assert!(out.join("vocab.json").exists() && settings["vocab_size"] == 5);
    assert!(fs::read_to_string(out.join("chat_template.jinja")).unwrap().contains("<|im_start|>"));

    // Where the tokenizer keeps a template, it is replaced there too.
    let text = base("DIR/a").replace("DIR", &folder.path().display().to_string());
    let literal = "{{ messages[0].content }} of the merge";
    merge(&format!("{text}chat_template: \"{literal}\"\n"));
    assert_eq!(fs::read_to_string(out.join("chat_template.jinja")).unwrap(), literal);
    let expected = format!(r#"{{"eos_token" : "<s>", "chat_template":"{literal}"}}"#);
    assert_eq!(fs::read_to_string(out.join("tokenizer_config.json")).unwrap(), expected);
    let (ended, _) = merge(&(base("base") + "chat_template: auto\n"));
    assert_eq!(fs::read_to_string(out.join("chat_template.jinja")).unwrap(), "of a", "{}", ended.stderr);
}

#[test]
fn what_stays_is_not_made_anew_and_rows_without_a_token_are_cut() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let of = tokenizer(A, &["<s>"]);
    for (name, rows, seed) in [("a", 5, 1), ("b", 5, 2), ("c", 8, 3), ("d", 8, 4)] {
        write(&at(name), &tensors(rows, Dtype::F32, seed), &of, &json!({"vocab_size": rows}));
    }
    let text = |models: [&str; 2], more: &str| {
        let [one, two] = models.map(|name| at(name).display().to_string());
        format!(
            "merge_method: linear\nparameters: {{weight: 1}}\nmodels: [{{model: {one}}}, {{model: {two}}}]\n{more}"
        )
    };
    let made = |prepared: &Prepared| {
        prepared.plan.inputs.iter().filter(|input| matches!(input, Input::Made(_))).count()
    };
    let rows = |prepared: &Prepared| {
        prepared.plan.tensors.iter().find(|tensor| &*tensor.name == "lm_head.weight").unwrap().shape[0]
    };
    for (models, more, expected) in [
        (["a", "b"], "tokenizer_source: union\n", (0, 5)),
        (["a", "b"], "tokenizer_source: base\n", (0, 5)),
        (["c", "d"], "", (0, 8)),
        // Rows that are there are kept where as many are asked for.
        (["c", "d"], "tokenizer: {source: union, pad_to_multiple_of: 8}\n", (0, 8)),
        (["c", "d"], "tokenizer_source: union\n", (6, 5)),
        (["a", "d"], "tokenizer_source: base\n", (3, 5)),
        // Where one model's are made, so are those of the other, by the same rule.
        (["a", "d"], "tokenizer: {source: union, pad_to_multiple_of: 8}\n", (6, 8)),
        (["a", "b"], "tokenizer: {source: union, tokens: {<new>: {}}}\n", (6, 6)),
    ] {
        let prepared = planned(folder.path(), &text(models, more));
        assert_eq!((made(&prepared), rows(&prepared)), expected, "{models:?} {more}");
    }
    let plan = planned(folder.path(), &text(["c", "d"], "tokenizer_source: union\n")).plan;
    let notes = plan.notes.join("\n");
    assert!(
        notes.contains("vocabulary: 5 tokens") && notes.contains("5 its own; 3 of its 8 are left out"),
        "{notes}"
    );
    let ended =
        command::plan(folder.path(), &text(["c", "d"], "tokenizer_source: union\n"), &["--json"]).succeeded();
    let plan: Value = serde_json::from_str(&ended.stdout).unwrap();
    let vocabulary = &plan["vocabulary"];
    assert_eq!((&vocabulary["tokens"], &vocabulary["rows"]), (&json!(5), &json!(5)));
    let tensor = &vocabulary["tensors"][0];
    assert_eq!(tensor["rows"], json!({"own": 5, "others": 0, "averaged": 0, "zeros": 0, "fillers": 0}));
    // Only one of them shows it.
    let ended = command::plan(folder.path(), &text(["a", "d"], ""), &[]);
    ended.failed(2, &["it is [5] in", "`tokenizer_source: union` aligns them"]);
}

/// What may have a row for each token, by its name or its height, is aligned or spoken of.
#[test]
fn every_tensor_over_the_vocabulary_is_aligned_or_warned_of() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let of = tokenizer(A, &["<s>"]);
    let per_layer = "model.embed_tokens_per_layer.weight";
    for (name, seed, height, strange) in [("a", 1, 8, 3), ("b", 4, 8, 3), ("c", 1, 7, 8), ("d", 4, 7, 8)] {
        let mut all = tensors(8, Dtype::F32, seed);
        all.remove("lm_head.bias");
        if seed == 4 {
            // A tied model: its embedding has its note all the same.
            all.remove("lm_head.weight");
        }
        all.insert(per_layer.into(), stored(Dtype::F32, &[height, 4], &weights(height * 4, seed)));
        all.insert("strange.weight".into(), stored(Dtype::F32, &[strange, 4], &weights(strange * 4, seed)));
        write(&at(name), &all, &of, &json!({"vocab_size": 8, "tie_word_embeddings": null}));
    }
    let plan = |models: [&str; 2]| {
        let [one, two] = models.map(|name| at(name).display().to_string());
        planned(
            folder.path(),
            &format!(
                "merge_method: linear\nparameters: {{weight: 1}}\nmodels: [{{model: {one}}}, {{model: {two}}}]\n\
                 tokenizer_source: union\n"
            ),
        )
        .plan
    };
    let whole = plan(["a", "b"]);
    let height = |name: &str| whole.tensors.iter().find(|tensor| &*tensor.name == name).unwrap().shape[0];
    assert_eq!((height(per_layer), height("strange.weight")), (5, 3));
    let said = |warnings: &[mergeforge::error::Error]| {
        warnings.iter().filter(|warning| warning.message.contains("may have a row for each token")).count()
    };
    assert_eq!(said(&whole.warnings), 0);
    for name in ["a", "b"] {
        let note = format!("rows of {}: 5 its own", at(name).display());
        assert_eq!(whole.notes.iter().filter(|of| of.starts_with(&note)).count(), 1, "{:?}", whole.notes);
    }
    let odd = plan(["c", "d"]);
    assert_eq!(said(&odd.warnings), 2, "{:?}", odd.warnings);
    let first = odd.warnings.iter().find(|warning| warning.message.contains("stays as it is")).unwrap();
    assert!(first.message.contains("and 1 more may have"), "{}", first.message);
}

#[test]
fn wishes_that_cannot_be_granted_are_refused_at_their_place() {
    let folder = folders();
    let refused = |more: &str, says: &[&str]| {
        let text =
            config(folder.path(), "linear", "", &more.replace("DIR", &folder.path().display().to_string()));
        let ended: Ended = command::plan(folder.path(), &text, &[]);
        assert!([Some(2), Some(3)].contains(&ended.code), "{}", ended.stderr);
        says.iter().for_each(|part| assert!(ended.stderr.contains(part), "no `{part}` in\n{}", ended.stderr));
    };
    let token = |setting: &str| format!("tokenizer:\n  source: union\n  tokens:\n    {setting}\n");
    refused(
        &token("six: {source: DIR/c}"),
        &["config.yml:10:", "\"six\" is to come from", "no row for \"six\""],
    );
    refused(&token("x: {source: {kind: model_token, model: DIR/a, token_id: 7}}"), &["no row for the id 7"]);
    refused(&token("x: {source: {kind: model_token, model: DIR/a, token: y}}"), &["no row for \"y\""]);
    refused(&token("x: {source: DIR/aligned-a}"), &["which is not merged", "name one of the models"]);
    refused(
        "tokenizer: {source: union, pad_to_multiple_of: 100000}\n",
        &["is 100000, and 65536 is the most"],
    );
    refused(
        "chat_template: chatlm\n",
        &["config.yml:7:16", "\"chatlm\" is no template", "did you mean `chatml`?"],
    );
    fs::write(folder.path().join("c/tokenizer.json"), "{}").unwrap();
    refused("tokenizer_source: union\n", &["c/tokenizer.json has no `model`"]);
    refused("tokenizer_source: unoin\n", &["\"unoin\" not found", "did you mean `union`?"]);
    fs::remove_file(folder.path().join("c/tokenizer.json")).unwrap();
    refused("tokenizer_source: union\n", &["c has no tokenizer"]);
    fs::write(folder.path().join("c/tokenizer.model"), "").unwrap();
    refused("tokenizer_source: union\n", &["has tokenizer.model but no tokenizer.json", "AutoTokenizer"]);
}

#[test]
fn a_plan_says_whose_files_and_template_are_taken_and_what_does_not_fit_them() {
    let folder = folders();
    let at = |name: &str| folder.path().join(name).display().to_string();
    let [a, b, d, e] = ["a", "b", "d", "e"].map(at);
    let no_ids = json!({});
    write(Path::new(&d), &tensors(5, Dtype::BF16, 40), &tokenizer(A, &["<s>"]), &no_ids);
    write(Path::new(&e), &tensors(6, Dtype::BF16, 50), &tokenizer(B, &["<b>", "<e>"]), &no_ids);
    let file = |folder: &str, name: &str, text: &str| fs::write(Path::new(folder).join(name), text).unwrap();
    file(&d, "chat_template.jinja", "{{ '<|end|>' }}<s>");
    file(&d, "tokenizer_config.json", r#"{"eos_token": {"content": "<s>"}}"#);
    file(&b, "tokenizer_config.json", r#"{"eos_token": "<b>"}"#);
    file(&b, "generation_config.json", "{}");
    let plan = |text: &str| -> Value {
        let ended = command::plan(folder.path(), text, &["--json"]).succeeded();
        serde_json::from_str(&ended.stdout).unwrap()
    };
    let says = |plan: &Value, key: &str, words: &str| {
        plan[key].as_array().unwrap().iter().any(|text| text.as_str().unwrap().contains(words))
    };

    // Of a model that is not merged, but gives the tokenizer.
    let text = config(folder.path(), "linear", "", "tokenizer_source: DIR/d\nchat_template: auto\n");
    let planned = plan(&text);
    assert_eq!(planned["chat_template"], json!({"from": "model", "name": d}));
    let models: Vec<_> = planned["files"]["copied"]
        .as_array()
        .unwrap()
        .iter()
        .map(|file| (file["file"].as_str().unwrap(), file["model"].as_str().unwrap()))
        .collect();
    let expected = [("generation_config.json", &*b), ("tokenizer.json", &d), ("tokenizer_config.json", &d)];
    assert_eq!(models, expected);
    assert_eq!(planned["files"]["written"][0]["file"], "chat_template.jinja");
    assert!(says(&planned, "warnings", "has <|end|>, which the output's vocabulary"), "{planned}");
    let human = command::plan(folder.path(), &text, &[]).succeeded().stdout;
    for line in [
        format!("copied   1 file(s) of {b}: generation_config.json"),
        format!("copied   2 file(s) of {d}: tokenizer.json, tokenizer_config.json"),
        "written  chat_template.jinja".into(),
        format!("template of {d}"),
    ] {
        assert!(human.lines().any(|said| said == line), "no `{line}` in\n{human}");
    }
    let merged = command::merge(folder.path(), &text, &[]).succeeded().stderr;
    assert!(
        merged.contains(&format!("chat template of {d}")) && merged.contains("weights: chat_template.jinja")
    );

    // The end of a text stays that of the leading tokenizer, and what a union adds beside special tokens is counted.
    file(&a, "chat_template.jinja", "{{ '<s>' }}, <s> and <b>");
    file(&a, "tokenizer_config.json", r#"{"eos_token": "<s>"}"#);
    let planned =
        plan(&config(folder.path(), "linear", "", "tokenizer_source: union\nchat_template: auto\n"));
    assert!(
        says(&planned, "notes", "whose texts end with <s>, and those of the output with <b>"),
        "{planned}"
    );
    assert!(!says(&planned, "warnings", "output's vocabulary"), "{planned}");
    let warning = format!("the union adds 2 ordinary tokens of {a} and 1 more, ");
    assert!(says(&planned, "warnings", &warning), "{planned}");

    let special = format!(
        "merge_method: linear\nparameters: {{weight: 1}}\nmodels: [{{model: {b}}}, {{model: {e}}}]\n"
    );
    let planned = plan(&format!("{special}tokenizer_source: union\nchat_template: llama3\n"));
    assert_eq!(planned["chat_template"], json!({"from": "packaged", "name": "llama3"}));
    assert!(!says(&planned, "warnings", "ordinary tokens"), "{planned}");
    // Without another vocabulary, words are looked up in the tokenizer that is copied.
    fs::remove_dir_all(&e).unwrap();
    write(Path::new(&e), &tensors(5, Dtype::BF16, 50), &tokenizer(B, &["<b>"]), &no_ids);
    let planned = plan(&format!("{special}chat_template: llama3\n"));
    assert!(says(&planned, "warnings", "(packaged: llama3) has <|"), "{planned}");
}

/// An embedding of 150,000 rows of 8192 that is filled up: what its rows take while they are read, and what they keep.
#[test]
fn a_large_embedding_is_remapped_in_little_memory() {
    const ROWS: usize = 150_000;
    const WIDE: usize = 8192;
    let folder = tempfile::tempdir().unwrap();
    let words: Vec<String> = (0..ROWS).map(|id| format!("w{id}")).collect();
    for (name, reversed) in [("a", false), ("b", true)] {
        let mut words: Vec<&str> = words.iter().map(String::as_str).collect();
        if reversed {
            words.reverse();
            words[0] = "other";
        }
        let none = stored(Dtype::BF16, &[0], &[]);
        write(
            &folder.path().join(name),
            &Tensors::from([("none".into(), none)]),
            &tokenizer(&words, &[]),
            &json!({}),
        );
        let bytes = ROWS * WIDE * 2;
        let header = json!({"model.embed_tokens.weight": {"dtype": "BF16", "shape": [ROWS, WIDE], "data_offsets": [0, bytes]}});
        let header = header.to_string();
        let file = folder.path().join(name).join("model.safetensors");
        fs::write(&file, [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat()).unwrap();
        // A hole: nothing of it is on the disk.
        fs::File::options()
            .write(true)
            .open(&file)
            .unwrap()
            .set_len((8 + header.len() + bytes) as u64)
            .unwrap();
    }
    let text = "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: DIR/a}, {model: DIR/b}]\n\
                tokenizer: {source: union, pad_to_multiple_of: 64}\n";
    let plan = planned(folder.path(), &text.replace("DIR", &folder.path().display().to_string())).plan;
    assert_eq!(plan.tensors[0].shape[0], (ROWS + 1).next_multiple_of(64));
    let Action::Merge(merge) = &plan.tensors[0].action else { panic!("it is merged") };
    for number in &merge.inputs {
        let Input::Made(_) = &plan.inputs[*number] else { panic!("it is made of rows") };
        assert!(input::working_bytes(&plan.inputs, *number, 1 << 20) < 2 << 20);
        assert_eq!(input::kept_bytes(&plan.inputs, *number), 4 * WIDE as u64);
    }
}

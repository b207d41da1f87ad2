//! Perplexities of our forward pass against those that torch and transformers gave: of the example models as their README records
//! them, and of every way to cut texts as `tools/eval_losses.py` has recorded it.

use std::fs;
use std::path::Path;

use mergeforge::decoder::{Processor, Sums};
use mergeforge::eval::{Chat, Cut, Form, Listen, Losses, Model, Plan, Prompt, Score, Texts, Windows, losses};
use mergeforge::hub::Remote;
use mergeforge::prepare_model;
use mergeforge::tokenizer::Runner;

/// Nobody listens.
pub struct Quiet;

impl Listen for Quiet {
    fn advanced(&self, _: usize) {}

    fn stop(&self) -> bool {
        false
    }
}

/// The windows of a set, and the losses of what counts in it.
fn read(model_dir: &Path, texts: &Texts, cut: Cut, chat: bool, memory: u64) -> (Windows, Losses) {
    let model = Model::new(prepare_model(model_dir.to_str().unwrap(), Remote::Offline).unwrap()).unwrap();
    let runner = Runner::open(model.folder()).unwrap();
    let chat = chat.then(|| Chat::of(model.folder(), &runner).unwrap());
    let windows = Windows::of(texts, &runner, chat.as_ref(), cut, model.decoder.vocabulary).unwrap();
    let mut processor = Processor::new(Sums::Fastest, 2);
    let plan = Plan::of(&model.decoder, &windows.windows, &processor, memory).unwrap();
    assert_eq!(plan.passes.len() > 1, memory == LITTLE);
    let mut reader = model.reader(2, &Quiet);
    let found = losses("model", &model.decoder, &windows.windows, &plan, &mut reader, &mut processor, &Quiet)
        .unwrap();
    (windows, found)
}

const MEMORY: u64 = 1 << 30;

/// Too little for all windows at once.
const LITTLE: u64 = 16_000_000;

/// As `examples/models/README.md` has it: windows of 96 tokens, and what is left over at the end is dropped.
const RECIPE: Cut = Cut { window: 96, stride: 96, packed: true, framed: true };

/// Perplexity per token of the checkpoint in `model_dir` on a validation set, `.txt` (a text a line) or `.jsonl` (a
/// question and its answer a line, all of which counts).
pub fn perplexity(model_dir: &Path, set: &Path) -> f64 {
    let form = Form::Text { by_line: true };
    let turns = Prompt::parse("<|user|>{question}<|assistant|>{answer}").unwrap();
    let mut texts = match set.extension() {
        Some(extension) if extension == "jsonl" => Texts::read(set, Form::Qa, &turns).unwrap(),
        _ => Texts::read(set, form, &Prompt::usual(form, false)).unwrap(),
    };
    texts.form = form;
    texts.rows.iter_mut().for_each(|(before, counts)| counts.insert_str(0, before));
    let (windows, mut found) = read(model_dir, &texts, RECIPE, false, MEMORY);
    found.windows.retain(|window| window.len() == RECIPE.window - 1);
    Score::of(&windows, &found).perplexity()
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::f16;
    use safetensors::tensor::TensorView;
    use safetensors::{Dtype, SafeTensors};
    use serde::Deserialize;
    use std::collections::HashMap;
    use std::path::PathBuf;

    /// The tables name all apart, and options are refused that mean nothing.
    #[test]
    fn what_is_typed_is_read_as_it_is_meant() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for (name, of) in [("a", "base"), ("b", "chat")] {
            fs::create_dir(at(name)).unwrap();
            std::os::unix::fs::symlink(models().join(of), at(name).join("final")).unwrap();
            fs::write(at(name).join("lines.txt"), "A trinket; a jewel.\n").unwrap();
        }
        fs::write(at("c.yml"), "merge_method: linear\n").unwrap();
        fs::write(at("broken.jsonl"), "{\"question\": \"q\", \"answer\": \"a\"}\n{\"question\": x}\n")
            .unwrap();
        fs::create_dir(at("bare")).unwrap();
        fs::copy(models().join("base/model.safetensors"), at("bare/model.safetensors")).unwrap();
        let run = |words: &[&str]| {
            let mut program = crate::command::mergeforge();
            program.args(words).args(["--quiet"]).current_dir(folder.path());
            crate::command::Ended::from(program.output().unwrap())
        };
        let texts = ["--text", "a/lines.txt", "b/lines.txt"];
        let words = ["eval", "a/final", "b/final", "--device", "cpu", "--window", "4", "--stride", "1"];
        let table = run(&[&words[..], &texts].concat()).succeeded().stdout;
        for label in [
            "\na/final: windows of 4 tokens",
            "\n  b/final ",
            "a/lines.txt (1 text)",
            "\nb/lines.txt (1 text)",
        ] {
            assert!(table.contains(label), "no {label:?} in {table}");
        }
        let last = "hint: --text takes all words up to the next option: options of several values come last";
        for (words, says) in [
            (
                &["eval", "--text", "a/lines.txt", "a/final"][..],
                &["mergeforge eval <MODEL>... [OPTIONS] --text", last][..],
            ),
            (&["eval", "--qa", "x", "a/final"], &["--qa takes all words"]),
            (
                &["predict", "--text", "a/lines.txt", "c.yml"],
                &["mergeforge predict <CONFIG>... [OPTIONS] --text", last],
            ),
            (
                &["sweep", "c.yml", "--text", "a/lines.txt", "out"],
                &["mergeforge sweep <CONFIG> <OUT> [OPTIONS] --text", last],
            ),
            (
                &["eval", "a/final", "--text", "x", "--qa-prompt", "{question}{answer}"],
                &["not provided", "--qa <FILE>"],
            ),
            (&["eval", "a/final", "--qa", "x", "--packed"], &["not provided", "--text <FILE>"]),
            (&["analyze", "c.yml", "--lines"], &["not provided", "--text <FILE>"]),
            (
                &["analyze", "c.yml", "--device", "cpu"],
                &["not provided", "--text <FILE>", "--abstract <FILE>"],
            ),
            (
                &["eval", "a/final", "--qa", "x", "--qa-prompt", "Q: {question}"],
                &["it has one field", "the one that counts last"],
            ),
            (
                &["eval", "a/final", "--qa", "broken.jsonl"],
                &["broken.jsonl:2: it is no JSON: expected value at character 14\n"],
            ),
            (&["eval", "c.yml", "--text", "x"], &["cannot read x"]),
            (
                &["eval", "c.yml", "--text", "a/lines.txt"],
                &["c.yml is a config, and no model's folder", "mergeforge predict c.yml"],
            ),
            (
                &["eval", "bare", "--text", "a/lines.txt"],
                &["bare: it has no config.json", "give the folder that holds config.json"],
            ),
            (
                &["eval", "bare/model.safetensors", "--text", "a/lines.txt"],
                &["it has no config.json", "give the folder"],
            ),
        ] {
            let ended = run(words);
            assert_eq!(
                ended.stderr.contains("up to the next option"),
                says.iter().any(|says| says.contains("takes all words")),
                "{}",
                ended.stderr
            );
            ended.failed(2, says);
        }
    }

    const SETS: [&str; 4] =
        ["general_valid.txt", "medical_valid.txt", "chat_valid.jsonl", "medqa_valid.jsonl"];

    /// Measured with torch and transformers; `examples/models/README.md` has the table.
    const RECORDED: [(&str, [f64; 4]); 3] = [
        ("base", [35.28, 38.28, 111.99, 106.37]),
        ("medical", [37.46, 29.89, 116.01, 87.18]),
        ("chat", [41.72, 43.82, 18.29, 21.00]),
    ];

    fn models() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/models")
    }

    #[test]
    fn parents_have_their_recorded_perplexities() {
        for (model, recorded) in RECORDED {
            for (set, recorded) in SETS.into_iter().zip(recorded) {
                let found = perplexity(&models().join(model), &models().join("texts").join(set));
                assert!(
                    (found / recorded - 1.0).abs() < 0.001,
                    "{model} on {set}: {found:.3}, not {recorded}"
                );
            }
        }
    }

    /// What `tools/eval_losses.py` wrote.
    #[derive(Deserialize)]
    #[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command")]
    struct Case {
        name: String,
        model: String,
        file: String,
        form: String,
        prompt: Option<String>,
        window: usize,
        stride: usize,
        by_line: bool,
        packed: bool,
        framed: bool,
        chat: bool,
        /// Texts of the file that are read.
        texts: usize,
        windows: usize,
        counted: usize,
        loss: f64,
        words: u64,
        bytes: u64,
    }

    #[test]
    fn every_way_to_cut_texts_gives_the_losses_of_transformers() {
        let cases: Vec<Case> = serde_json::from_str(include_str!("eval_losses.json")).unwrap();
        assert!(cases.len() >= 8);
        for case in cases {
            let form = match &case.form[..] {
                "text" => Form::Text { by_line: case.by_line },
                "qa" => Form::Qa,
                other => panic!("{other}"),
            };
            let prompt = case.prompt.as_deref().map(|prompt| Prompt::parse(prompt).unwrap());
            let prompt = prompt.unwrap_or_else(|| Prompt::usual(form, case.chat));
            let mut texts = Texts::read(&models().join("texts").join(&case.file), form, &prompt).unwrap();
            texts.rows.truncate(case.texts);
            let Case { window, stride, packed, framed, .. } = case;
            let cut = Cut { window, stride, packed, framed };
            let (windows, found) = read(&models().join(&case.model), &texts, cut, case.chat, MEMORY);
            let score = Score::of(&windows, &found);
            let counts = (windows.windows.len(), score.counted, windows.words, windows.bytes);
            assert_eq!(counts, (case.windows, case.counted, case.words, case.bytes), "{}", case.name);
            let apart = (score.loss / case.loss - 1.0).abs();
            assert!(apart < 1e-5, "{}: {} is {apart} from {}", case.name, score.loss, case.loss);
            // The same in many passes, and threads do not show.
            if case.name == "lines packed" {
                let (_, again) = read(&models().join(&case.model), &texts, cut, case.chat, LITTLE);
                assert_eq!(found, again);
            }
        }
    }

    /// A copy of the base whose head is its embedding, spelt out or tied, in f32 or f16, in one file or two.
    #[test]
    fn a_tied_head_other_types_and_shards_change_nothing() {
        let text = models().join("texts/medical_valid.txt");
        let dir = tempfile::tempdir().unwrap();
        let written = |dtype, tied, shards| {
            write_variant(dir.path(), dtype, tied, shards);
            perplexity(dir.path(), &text)
        };
        let untied = written(Dtype::F32, false, 1);
        assert_eq!(untied, written(Dtype::F32, true, 1));
        assert_eq!(untied, written(Dtype::F32, true, 2));
        // A head that is stored beside a tied embedding is not looked at, as transformers has it; one that is missing is missed.
        write_variant(dir.path(), Dtype::F32, false, 1);
        let config = dir.path().join("config.json");
        let untied_config = fs::read_to_string(&config).unwrap();
        write_variant(dir.path(), Dtype::F32, true, 1);
        let mut stored = load(&models().join("base"));
        let (shape, head) = stored.remove("lm_head.weight").unwrap();
        let halved: Vec<u8> = head.iter().flat_map(|x| (0.5 * x).to_le_bytes()).collect();
        let view = TensorView::new(Dtype::F32, shape, &halved).unwrap();
        safetensors::serialize_to_file(
            [("lm_head.weight", view)],
            None,
            &dir.path().join("head.safetensors"),
        )
        .unwrap();
        let index = dir.path().join("model.safetensors.index.json");
        let own = fs::read_to_string(&index).unwrap();
        let mut other: serde_json::Value = serde_json::from_str(&own).unwrap();
        other["weight_map"]["lm_head.weight"] = "head.safetensors".into();
        fs::write(
            &config,
            untied_config.replace("\"tie_word_embeddings\":false", "\"tie_word_embeddings\":true"),
        )
        .unwrap();
        fs::write(&index, other.to_string()).unwrap();
        assert_eq!(untied, perplexity(dir.path(), &text));
        write_variant(dir.path(), Dtype::F32, true, 1);
        fs::write(&config, untied_config).unwrap();
        let opened = prepare_model(dir.path().to_str().unwrap(), Remote::Offline).unwrap();
        assert!(Model::new(opened).unwrap_err().message.contains("has no lm_head.weight"));
        // bf16 values below 2^-14 lose bits in f16, too few to matter.
        assert!((written(Dtype::F16, true, 1) / untied - 1.0).abs() < 1e-4);
    }

    fn write_variant(dir: &Path, dtype: Dtype, tied: bool, shards: usize) {
        for entry in fs::read_dir(dir).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
        let base = models().join("base");
        let mut config: serde_json::Value =
            serde_json::from_slice(&fs::read(base.join("config.json")).unwrap()).unwrap();
        config["tie_word_embeddings"] = tied.into();
        fs::write(dir.join("config.json"), config.to_string()).unwrap();
        for file in ["tokenizer.json", "tokenizer_config.json"] {
            fs::copy(base.join(file), dir.join(file)).unwrap();
        }
        let tensors = load(&base);
        let mut encoded: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
            .iter()
            .filter(|(name, _)| *name != "lm_head.weight")
            .map(|(name, (shape, values))| (name.clone(), shape.clone(), encode(dtype, values)))
            .collect();
        if !tied {
            let (shape, values) = &tensors["model.embed_tokens.weight"];
            encoded.push(("lm_head.weight".into(), shape.clone(), encode(dtype, values)));
        }
        let mut index = serde_json::Map::new();
        for (shard, tensors) in encoded.chunks(encoded.len().div_ceil(shards)).enumerate() {
            let file = format!("model-{shard}.safetensors");
            let views = tensors.iter().map(|(name, shape, bytes)| {
                index.insert(name.clone(), file.clone().into());
                (name, TensorView::new(dtype, shape.clone(), bytes).unwrap())
            });
            safetensors::serialize_to_file(views, None, &dir.join(&file)).unwrap();
        }
        let index = serde_json::json!({ "weight_map": index });
        fs::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
    }

    fn encode(dtype: Dtype, values: &[f32]) -> Vec<u8> {
        match dtype {
            Dtype::F16 => values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
            Dtype::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
            other => panic!("no test writes {other:?}"),
        }
    }

    /// All tensors of a checkpoint in f32, by name.
    fn load(model_dir: &Path) -> HashMap<String, (Vec<usize>, Vec<f32>)> {
        let bytes = fs::read(model_dir.join("model.safetensors")).unwrap();
        let stored = SafeTensors::deserialize(&bytes).unwrap();
        let of = |(name, view): (String, TensorView<'_>)| {
            assert_eq!(view.dtype(), Dtype::BF16);
            let pairs = view.data().as_chunks().0.iter();
            let values = pairs.map(|bytes| half::bf16::from_le_bytes(*bytes).to_f32()).collect();
            (name, (view.shape().to_vec(), values))
        };
        stored.tensors().into_iter().map(of).collect()
    }
}

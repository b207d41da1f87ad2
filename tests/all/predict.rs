//! Predictions against the truth: parents against `eval`, merges against merges that are really read, and what is kept of the
//! vocabulary against all of it.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use mergeforge::decoder::{Processor, Sums, Weights};
use mergeforge::error::Result;
use mergeforge::eval::{Cut, Form, Model, Plan, Prompt, Reader, Score, Texts, Windows, losses};
use mergeforge::hub::Remote;
use mergeforge::predict::{Groups, Options, Parents, Reading};
use mergeforge::prepare_model;
use mergeforge::tokenizer::Runner;
use serde_json::Value as Json;

use crate::command::{config, run};
use crate::eval::Quiet;
use crate::models::{self, PLAIN, Random, Tensors, stored, values};

const CUT: Cut = Cut { window: 96, stride: 96, packed: true, framed: true };

const OPTIONS: Options = Options { groups: 1, top: 1024, memory: 1 << 30, threads: 2 };

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/models").join(name)
}

/// So many texts of a set of the examples.
fn texts(set: &str, count: usize) -> Texts {
    let is_rows = Path::new(set).extension().is_some_and(|extension| extension == "jsonl");
    let form = if is_rows { Form::Qa } else { Form::Text { by_line: true } };
    let prompt = match form {
        Form::Qa => Prompt::parse("<|user|>{question}<|assistant|>{answer}").unwrap(),
        _ => Prompt::usual(form, false),
    };
    let mut texts = Texts::read(&example("texts").join(set), form, &prompt).unwrap();
    texts.rows.truncate(count);
    texts
}

/// A model, and the sets as it reads them.
fn opened(folder: &Path, sets: &[Texts]) -> (Model, Vec<Windows>) {
    let model = Model::new(prepare_model(folder.to_str().unwrap(), Remote::Offline).unwrap()).unwrap();
    let runner = Runner::open(model.folder()).unwrap();
    let of = |texts: &Texts| Windows::of(texts, &runner, None, CUT, model.decoder.vocabulary).unwrap();
    let windows = sets.iter().map(of).collect();
    (model, windows)
}

fn measure(models: &[(Model, Vec<Windows>)], options: Options) -> Result<Parents> {
    let readings: Vec<Reading<'_>> = models.iter().map(|(model, sets)| Reading { model, sets }).collect();
    let names: Vec<String> = (0..readings[0].sets.len()).map(|set| format!("set {set}")).collect();
    let mut processor = Processor::new(Sums::Fastest, options.threads);
    Parents::measure(&readings, &names, &options, &mut processor, &Quiet)
}

/// The example models on some texts.
fn family(sets: &[Texts]) -> Vec<(Model, Vec<Windows>)> {
    ["base", "medical", "chat"].iter().map(|name| opened(&example(name), sets)).collect()
}

/// The weights of a merge, added up while they are read: no file is written, and nothing is rounded.
struct Merged<'m> {
    readers: Vec<Reader<'m>>,
    /// The coefficient of each task vector, by the name of a tensor.
    of: &'m dyn Fn(&str) -> Vec<f64>,
}

impl Weights for Merged<'_> {
    fn has(&self, name: &str) -> bool {
        self.readers[0].has(name)
    }

    fn read(&mut self, name: &str, first: u64, into: &mut [f32]) -> Result<()> {
        self.readers[0].read(name, first, into)?;
        let base = into.to_vec();
        let mut tuned = vec![0.0; into.len()];
        for (reader, c) in self.readers[1..].iter_mut().zip((self.of)(name)) {
            reader.read(name, first, &mut tuned)?;
            for ((into, tuned), base) in into.iter_mut().zip(&tuned).zip(&base) {
                *into += c as f32 * (tuned - base);
            }
        }
        Ok(())
    }
}

/// The score of a merge on a set, which is really read.
fn truth(models: &[(Model, Vec<Windows>)], set: usize, of: &dyn Fn(&str) -> Vec<f64>) -> Score {
    let (first, sets) = &models[0];
    let windows = &sets[set];
    let mut processor = Processor::new(Sums::Fastest, 2);
    let plan = Plan::of(&first.decoder, &windows.windows, &processor, 1 << 30).unwrap();
    let readers = models.iter().map(|(model, _)| model.reader(2, &Quiet)).collect();
    let mut weights = Merged { readers, of };
    let found =
        losses("merge", &first.decoder, &windows.windows, &plan, &mut weights, &mut processor, &Quiet)
            .unwrap();
    Score::of(windows, &found)
}

#[track_caller]
fn near(found: f64, expected: f64, within: f64) {
    assert!((found - expected).abs() <= within, "{found} is {:e} from {expected}", found - expected);
}

/// A copy of an example model with other tensors.
fn variant(folder: &Path, of: &str, edit: impl FnOnce(&mut Tensors)) -> PathBuf {
    let mut tensors = models::read(&example(of));
    edit(&mut tensors);
    models::write(folder, &tensors, PLAIN);
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        fs::copy(example(of).join(file), folder.join(file)).unwrap();
    }
    folder.to_owned()
}

/// Adds noise to a tensor, relative to its own spread.
fn disturb(tensors: &mut Tensors, name: &str, by: f32, seed: u64) {
    let tensor = &tensors[name];
    let mut random = Random(seed);
    let own = values(tensor);
    let spread = (own.iter().map(|x| x * x).sum::<f32>() / own.len() as f32).sqrt();
    let disturbed: Vec<f32> = own.iter().map(|x| x + by * spread * random.normal() as f32).collect();
    let new = stored(safetensors::Dtype::F32, &tensor.shape, &disturbed);
    tensors.insert(name.to_owned(), new);
}

#[test]
fn parents_have_the_losses_of_eval() {
    let sets = [texts("medical_valid.txt", 60), texts("medqa_valid.jsonl", 30)];
    let models = family(&sets);
    for top in [1024, 48] {
        let parents = measure(&models, Options { top, ..OPTIONS }).unwrap();
        assert_eq!(parents.facts.top, top);
        for (set, (parent, (model, windows))) in
            (0..2).flat_map(|set| models.iter().enumerate().map(move |one| (set, one)))
        {
            let windows = &windows[set];
            let mut processor = Processor::new(Sums::Fastest, 2);
            let plan = Plan::of(&model.decoder, &windows.windows, &processor, 1 << 30).unwrap();
            let mut reader = model.reader(2, &Quiet);
            let read =
                losses("", &model.decoder, &windows.windows, &plan, &mut reader, &mut processor, &Quiet)
                    .unwrap();
            let score = Score::of(windows, &read);
            let own = parents.loss_of_parent(set, parent);
            near(own.loss, score.loss, 2e-6);
            near(own.error, score.error, 2e-6);
            // A merge that is this parent alone is predicted to be it.
            let c: Vec<f64> = (1..3).map(|other| f64::from(u8::from(other == parent))).collect();
            let predicted = parents.loss(set, &c, 2);
            near(predicted.loss, score.loss, 1e-5);
            near(predicted.error, score.error, 1e-5);
        }
    }
}

/// Logits of merged heads are merged logits, so that nothing but roundings may separate prediction and truth, anywhere.
#[test]
fn merges_of_heads_alone_are_predicted_exactly() {
    let folder = tempfile::tempdir().unwrap();
    let sets = [texts("medical_valid.txt", 25)];
    let head = |name: &str, seed| {
        variant(&folder.path().join(name), "base", |tensors| disturb(tensors, "lm_head.weight", 0.3, seed))
    };
    let folders = [example("base"), head("a", 1), head("b", 2)];
    let models: Vec<_> = folders.iter().map(|folder| opened(folder, &sets)).collect();
    let parents = measure(&models, OPTIONS).unwrap();
    for c in [[0.5, 0.5], [0.3, 0.1], [1.5, -0.5], [1.2, 1.3]] {
        let score = truth(&models, 0, &|_| c.to_vec());
        let predicted = parents.loss(0, &c, 2);
        near(predicted.loss, score.loss, 1e-5);
        near(predicted.error, score.error, 1e-5);
    }
    // Threads do not show, nor does what else is computed with it.
    let merges = vec![vec![0.3, 0.1], vec![0.0, 0.7]];
    assert_eq!(parents.losses(0, &merges, 1), parents.losses(0, &merges, 3));
    assert_eq!(parents.losses(0, &merges, 1)[1], parents.loss(0, &merges[1], 2));
}

#[test]
fn few_kept_tokens_predict_nearly_what_all_do() {
    let sets = [texts("medical_valid.txt", 60), texts("chat_valid.jsonl", 40)];
    let models = family(&sets);
    let whole = measure(&models, OPTIONS).unwrap();
    let grid: Vec<Vec<f64>> =
        (0..4).flat_map(|a| (0..4).map(move |b| vec![f64::from(a) / 2.0, f64::from(b) / 2.0])).collect();
    for (top, within) in [(256, 1e-3), (64, 4e-3), (16, 2e-2)] {
        let few = measure(&models, Options { top, ..OPTIONS }).unwrap();
        assert!(few.facts.share < 0.99 && few.facts.share > 0.5, "{}", few.facts.share);
        for set in 0..2 {
            let found = few.losses(set, &grid, 2).into_iter().zip(whole.losses(set, &grid, 2));
            for ((few, whole), c) in found.zip(&grid) {
                let apart = few.loss - whole.loss;
                // Far beyond the parents less is known of the rest.
                let within = if c.iter().all(|c| *c <= 1.0) { within } else { 3.0 * within };
                assert!(apart.abs() < within, "{top} at {c:?} of set {set}: {apart}");
            }
        }
        // Agreement too comes out of what is kept.
        for pair in [(0, 1), (1, 2), (2, 1)] {
            let (all, own) = (whole.agreement(0, pair, 2), few.agreement(0, pair, 2));
            near(own.divergence / all.divergence, 1.0, 0.02);
            assert_eq!(own.same_first, all.same_first);
        }
    }
}

#[test]
fn agreement_is_that_of_probabilities() {
    let sets = [texts("medical_valid.txt", 30)];
    let parents = measure(&family(&sets), OPTIONS).unwrap();
    let own = parents.agreement(0, (1, 1), 2);
    assert_eq!((own.divergence, own.same_first), (0.0, 1.0));
    // Not symmetric, and larger for the model that has moved farther (examples/models/README.md: norms 2.71 and 7.00).
    let [medical, back, chat] = [(0, 1), (1, 0), (0, 2)].map(|pair| parents.agreement(0, pair, 2));
    assert!(medical.divergence > 0.0 && medical.divergence < chat.divergence, "{medical:?} {chat:?}");
    assert!((medical.divergence - back.divergence).abs() > 1e-4 * back.divergence);
    assert!([medical, chat].iter().all(|pair| (0.5..0.9).contains(&pair.same_first)), "{medical:?} {chat:?}");
}

#[test]
fn a_model_that_differs_in_one_group_is_its_parent_of_that_group() {
    let folder = tempfile::tempdir().unwrap();
    let sets = [texts("medical_valid.txt", 20)];
    let cases = [
        ("model.embed_tokens.weight", 0),
        ("model.layers.1.mlp.up_proj.weight", 0),
        ("model.layers.2.self_attn.q_proj.weight", 1),
        ("model.norm.weight", 0),
        ("lm_head.weight", 0),
    ];
    for (case, (tensor, group)) in cases.into_iter().enumerate() {
        let other =
            variant(&folder.path().join(case.to_string()), "base", |all| disturb(all, tensor, 0.5, 7));
        let models = [opened(&example("base"), &sets), opened(&other, &sets)];
        let whole = measure(&models, OPTIONS).unwrap();
        let parents = measure(&models, Options { groups: 2, ..OPTIONS }).unwrap();
        assert_eq!((parents.count(), parents.coefficients()), (4, 2));
        let [base, tuned] = [0, 1].map(|parent| whole.loss_of_parent(0, parent));
        assert!((tuned.loss - base.loss).abs() > 1e-4, "{tensor} changes something");
        assert_eq!(parents.loss_of_parent(0, 0), base);
        assert_eq!(parents.loss_of_parent(0, 1 + group), tuned, "{tensor}");
        assert_eq!(parents.loss_of_parent(0, 2 - group), base, "{tensor}");
        assert_eq!(parents.loss_of_parent(0, 3), tuned, "the whole model is there as well");
        // Together they are the model.
        near(parents.loss(0, &[1.0, 1.0], 2).loss, tuned.loss, 1e-5);
    }
}

/// Where each layer has its own weights, their mean is a worse prediction than parents by layer.
#[test]
fn groups_of_layers_follow_weights_that_differ_by_layer() {
    let sets = [texts("medical_valid.txt", 40)];
    let models = family(&sets);
    let groups = Groups::of(4, 4);
    let by_layer = measure(&models, Options { groups: 4, ..OPTIONS }).unwrap();
    assert_eq!((by_layer.count(), by_layer.coefficients(), &by_layer.groups), (11, 8, &groups));
    let whole = measure(&models, OPTIONS).unwrap();
    let mut random = Random(3);
    let mut errors = [0.0; 2];
    for _ in 0..4 {
        let c: Vec<f64> = (0..8).map(|_| random.unit()).collect();
        let of = |name: &str| vec![c[groups.of_tensor(name)], c[4 + groups.of_tensor(name)]];
        let score = truth(&models, 0, &of);
        let means: Vec<f64> = c.chunks(4).map(|c| c.iter().sum::<f64>() / 4.0).collect();
        errors[0] += (by_layer.loss(0, &c, 2).loss - score.loss).abs();
        errors[1] += (whole.loss(0, &means, 2).loss - score.loss).abs();
    }
    assert!(errors[0] < 0.7 * errors[1], "{errors:?}");
    // Where all layers have one weight, groups predict what whole models do.
    for [a, b] in [[0.25, 0.5], [1.0, 0.0], [0.7, 0.6]] {
        let by_layer = by_layer.loss(0, &[[a; 4], [b; 4]].concat(), 2);
        near(by_layer.loss, whole.loss(0, &[a, b], 2).loss, 1e-5);
    }
}

fn ranks(values: &[f64]) -> Vec<f64> {
    let below = |value: &f64| values.iter().filter(|other| *other < value).count() as f64;
    values.iter().map(below).collect()
}

/// Of different values each.
fn spearman(a: &[f64], b: &[f64]) -> f64 {
    let squares: f64 = ranks(a).iter().zip(ranks(b)).map(|(a, b)| (a - b).powi(2)).sum();
    let n = a.len() as f64;
    1.0 - 6.0 * squares / (n * (n * n - 1.0))
}

#[test]
fn predictions_rank_merges_as_they_are() {
    let sets = [texts("medical_valid.txt", 40), texts("chat_valid.jsonl", 30)];
    let models = family(&sets);
    let parents = measure(&models, Options { top: 64, ..OPTIONS }).unwrap();
    let grid: Vec<Vec<f64>> =
        (0..4).flat_map(|a| (0..4).map(move |b| vec![f64::from(a) / 2.0, f64::from(b) / 2.0])).collect();
    for set in 0..2 {
        let predicted: Vec<f64> =
            parents.losses(set, &grid, 2).iter().map(|estimate| estimate.loss).collect();
        let read: Vec<f64> = grid.iter().map(|c| truth(&models, set, &|_| c.clone()).loss).collect();
        assert_eq!(read.iter().map(|loss| loss.to_bits()).collect::<HashSet<_>>().len(), read.len());
        let rank = spearman(&predicted, &read);
        assert!(rank > 0.95, "set {set}: {rank} of {predicted:?} and {read:?}");
        // Between the parents losses are right too.
        let between =
            grid.iter().zip(predicted.iter().zip(&read)).filter(|(c, _)| c.iter().sum::<f64>() <= 1.0);
        for (c, (predicted, read)) in between {
            assert!((predicted / read - 1.0).abs() < 0.03, "{c:?} of set {set}: {predicted}, not {read}");
        }
    }
}

#[test]
fn a_damaged_parent_makes_predictions_worse() {
    let folder = tempfile::tempdir().unwrap();
    let sets = [texts("medical_valid.txt", 30)];
    let damaged = variant(&folder.path().join("damaged"), "medical", |tensors| {
        (0..4).for_each(|layer| {
            disturb(tensors, &format!("model.layers.{layer}.mlp.down_proj.weight"), 2.0, 5);
        });
    });
    let models = [example("base"), example("medical"), damaged].map(|folder| opened(&folder, &sets));
    let parents = measure(&models, OPTIONS).unwrap();
    let [sound, damaged] = [[0.5, 0.0], [0.0, 0.5]].map(|c| parents.loss(0, &c, 2).loss);
    assert!(damaged > sound + 0.05, "{sound} {damaged}");
}

#[test]
fn memory_is_kept_to_and_passes_change_nothing() {
    let sets = [texts("medical_valid.txt", 120), texts("general_valid.txt", 60)];
    let models = family(&sets);
    let merges = vec![vec![0.5, 0.5], vec![1.2, 0.1]];
    let one = measure(&models, Options { top: 64, ..OPTIONS }).unwrap();
    let many = measure(&models, Options { top: 64, memory: 24_000_000, ..OPTIONS }).unwrap();
    assert!(one.facts.passes == 1 && many.facts.passes > 1, "{:?} {:?}", one.facts, many.facts);
    assert!(many.facts.bytes <= 24_000_000 && one.facts.bytes <= 1 << 30, "{:?}", many.facts);
    assert_eq!(many.facts.top, 64);
    for set in 0..2 {
        for (one, many) in one.losses(set, &merges, 2).iter().zip(many.losses(set, &merges, 2)) {
            near(many.loss, one.loss, 1e-6);
        }
    }
    // What is kept gives way.
    let little = measure(&models, Options { memory: 24_000_000, ..OPTIONS }).unwrap();
    assert!((64..1024).contains(&little.facts.top), "{:?}", little.facts);
    assert!(
        2 * little.facts.kept_bytes <= 24_000_000 && little.facts.bytes <= 24_000_000,
        "{:?}",
        little.facts
    );
    // And leaves less to a pass.
    assert!(little.facts.passes > many.facts.passes, "{:?} {:?}", little.facts, many.facts);
    let Err(refused) = measure(&models, Options { memory: 6_000_000, ..OPTIONS }) else {
        panic!("so little memory is refused")
    };
    assert!(refused.message.contains("take at least") && refused.hint.is_some(), "{refused:?}");
}

#[test]
fn what_does_not_belong_together_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let sets = [texts("medical_valid.txt", 10)];
    let refused = |other: &Path, options: Options| {
        let models = [opened(&example("base"), &sets), opened(other, &sets)];
        let Err(error) = measure(&models, options) else { panic!("{other:?} is refused") };
        error
    };
    // The same size, other tokens.
    let other = variant(&folder.path().join("other"), "base", |_| ());
    let tokenizer = fs::read_to_string(other.join("tokenizer.json")).unwrap();
    let mut tokenizer: Json = serde_json::from_str(&tokenizer).unwrap();
    let vocabulary = tokenizer["model"]["vocab"].as_object_mut().unwrap();
    let [a, e] = ["a", "e"].map(|letter| vocabulary[letter].clone());
    vocabulary.extend([("a".to_owned(), e), ("e".to_owned(), a)]);
    fs::write(other.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let error = refused(&other, OPTIONS);
    assert!(error.message.contains("set 0") && error.message.contains("other"), "{error:?}");
    assert!(error.hint.unwrap().contains("--window"));
    // Another size.
    let longer = variant(&folder.path().join("longer"), "base", |tensors| {
        for name in ["lm_head.weight", "model.embed_tokens.weight"] {
            let mut more = values(&tensors[name]);
            more.extend([0.0; 96]);
            let tensor = stored(safetensors::Dtype::F32, &[1025, 96], &more);
            tensors.insert(name.into(), tensor);
        }
    });
    let error = refused(&longer, OPTIONS);
    assert!(error.message.contains("1024") && error.message.contains("1025"), "{error:?}");
    // Not a number.
    let odd = variant(&folder.path().join("odd"), "base", |tensors| {
        let infinite = stored(safetensors::Dtype::F32, &[96], &[f32::INFINITY; 96]);
        tensors.insert("model.norm.weight".into(), infinite);
    });
    let error = refused(&odd, OPTIONS);
    assert!(error.message.contains("odd") && error.message.contains("NaN"), "{error:?}");
}

/// What `mergeforge predict` prints of a config, on few texts.
fn predicted(text: &str, flags: &[&str]) -> crate::command::Ended {
    let folder = tempfile::tempdir().unwrap();
    let (file, lines) = (config(folder.path(), text), folder.path().join("lines.txt"));
    let all = fs::read_to_string(example("texts/medical_valid.txt")).unwrap();
    fs::write(&lines, all.lines().take(12).collect::<Vec<_>>().join("\n")).unwrap();
    let [file, lines] = [&file, &lines].map(|path| path.to_str().unwrap());
    let texts = ["predict", file, "--text", lines, "--window", "96", "--lines", "--packed", "--quiet"];
    run(texts.iter().chain(flags))
}

/// Two models with parameters each, by a method.
fn two(method: &str, medical: &str, chat: &str, others: &str) -> String {
    format!(
        "merge_method: {method}\nmodels:\n  - model: examples/models/medical\n    parameters: {{{medical}}}\n  - model: examples/models/chat\n    parameters: {{{chat}}}\n{others}\n"
    )
}

/// Coefficients mean what `merge` means by the weights.
#[test]
fn coefficients_are_those_of_the_plan() {
    const BASE: &str = "base_model: examples/models/base";
    let short = ["--json", "--top", "64"];
    let coefficients = |text: &str, flags: &[&str]| -> (Vec<String>, Vec<f64>, f64) {
        let found = predicted(text, &[&short[..], flags].concat()).succeeded();
        let found: Json = serde_json::from_str(&found.stdout).unwrap();
        let names = found["parents"].as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned());
        let merge = &found["merges"][0];
        let numbers = merge["coefficients"].as_array().unwrap().iter().map(|number| number.as_f64().unwrap());
        (names.collect(), numbers.collect(), merge["weights_differ_by"].as_f64().unwrap())
    };
    let close = |found: &[f64], expected: &[f64]| {
        assert_eq!(found.len(), expected.len());
        found.iter().zip(expected).for_each(|(found, expected)| near(*found, *expected, 1e-5));
    };
    // Shares of an average; the first model is what task vectors start from.
    let (names, c, _) = coefficients(&two("linear", "weight: 1", "weight: 3", ""), &[]);
    assert!(names[0].ends_with("medical") && names[1].ends_with("chat") && names.len() == 2, "{names:?}");
    close(&c, &[0.75]);
    // Weights times lambda.
    let factor = format!("{BASE}\nparameters: {{lambda: 0.5}}");
    let (names, c, apart) = coefficients(&two("task_arithmetic", "weight: 0.8", "weight: 1.2", &factor), &[]);
    assert!(names[0].ends_with("base") && names.len() == 3, "{names:?}");
    close(&c, &[0.4, 0.6]);
    assert_eq!(apart, 0.0);
    // A gradient, by groups of layers.
    let gradient = two("task_arithmetic", "weight: [0, 0.9]", "weight: 0.5", BASE);
    let (names, c, _) = coefficients(&gradient, &["--groups", "4"]);
    assert!(names[2].ends_with("medical in layer 1"), "{names:?}");
    close(&c, &[0.0, 0.3, 0.6, 0.9, 0.5, 0.5, 0.5, 0.5]);
    let (_, c, apart) = coefficients(&gradient, &[]);
    assert!(c.len() == 2 && (0.30..0.31).contains(&c[0]) && apart > 0.5, "{c:?} {apart}");
    // By the kind of tensors.
    let filter = "weight: [{filter: mlp, value: 1}, {value: 0}]";
    let text =
        predicted(&two("task_arithmetic", filter, "weight: 0.5", BASE), &["--groups", "4"]).succeeded();
    assert!(text.stderr.contains("the kind of a tensor is not followed"), "{}", text.stderr);
}

#[test]
fn configs_that_are_no_weighted_sums_are_refused_with_the_way_out() {
    const BASE: &str = "base_model: examples/models/base";
    let ties = two("ties", "weight: 1, density: 0.5", "weight: 1, density: 0.5", BASE);
    predicted(&ties, &[]).failed(2, &["config.yml", "by ties", "counts as one more parent"]);
    let scaled = two("linear", "weight: 0.5", "weight: 0.4", "parameters: {normalize: false}");
    predicted(&scaled, &[]).failed(2, &["config.yml", "add up to 0.9000", "normalize: false"]);
    let slice = |model: &str, range: &str| {
        format!("  - sources: [{{model: examples/models/{model}, layer_range: {range}}}]\n")
    };
    let stacked = format!(
        "merge_method: passthrough\nslices:\n{}{}",
        slice("medical", "[0, 3]"),
        slice("chat", "[2, 4]")
    );
    predicted(&stacked, &[]).failed(2, &["config.yml", "counts as one more parent"]);
    // Not normalised, but a mixture all the same.
    let mixture = two("linear", "weight: 0.5", "weight: 0.5", "parameters: {normalize: false}");
    predicted(&mixture, &[]).succeeded();
}

#[test]
fn what_is_beyond_the_parents_is_flagged() {
    const BASE: &str = "base_model: examples/models/base";
    for (medical, chat, flag) in [
        ("weight: 0.6", "weight: 0.4", None),
        ("weight: 0.7", "weight: 0.6", Some("add up to 1.30")),
        ("weight: 1.4", "weight: -0.5", Some("a weight of -0.50")),
        ("weight: 1.4", "weight: -0.2", Some("a weight of 1.40")),
    ] {
        let text = two("task_arithmetic", medical, chat, BASE);
        let found = predicted(&text, &[]).succeeded();
        assert_eq!(found.stdout.contains("beyond"), flag.is_some(), "{}", found.stdout);
        assert_eq!(found.stderr.contains("beyond"), flag.is_some(), "{}", found.stderr);
        assert!(found.stdout.contains(flag.unwrap_or("predicted")), "{}", found.stdout);
    }
}

/// Configs and models of one name in several folders.
#[test]
fn rows_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let lines = folder.path().join("lines.txt");
    fs::write(&lines, "A trinket; a jewel.\nWonder or inquiry.").unwrap();
    let files = ["a", "b"].map(|name| {
        fs::create_dir(folder.path().join(name)).unwrap();
        let file = folder.path().join(name).join("sum.yml");
        fs::write(&file, two("linear", "weight: 1", &format!("weight: {}", name.len()), "")).unwrap();
        file.display().to_string()
    });
    let words = ["predict", &files[0], &files[1], "--quiet", "--text", lines.to_str().unwrap()];
    let table = run(words).succeeded().stdout;
    assert!(
        ["\n  a/sum.yml ", "\n  b/sum.yml ", "\n  medical "].iter().all(|row| table.contains(row)),
        "{table}"
    );
}

/// Several configs are predicted by one measurement: a base of any of them comes first, and a model is read once, whatever it is called.
#[test]
fn configs_share_their_models() {
    let folder = tempfile::tempdir().unwrap();
    let linear = two("linear", "weight: 1", "weight: 1", "")
        .replace("examples/models/chat", "examples/models/../models/chat");
    fs::write(folder.path().join("linear.yml"), linear).unwrap();
    let base = "base_model: examples/models/base";
    fs::write(folder.path().join("sum.yml"), two("task_arithmetic", "weight: 0.5", "weight: 0.5", base))
        .unwrap();
    fs::write(folder.path().join("lines.txt"), "A trinket; a jewel.\nWonder or inquiry.").unwrap();
    let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let [linear, sum, lines] = ["linear.yml", "sum.yml", "lines.txt"].map(file);
    let found = run(["predict", &linear, &sum, "--text", &lines, "--lines", "--json", "--quiet"]).succeeded();
    let found: Json = serde_json::from_str(&found.stdout).unwrap();
    let parents = found["parents"].as_array().unwrap();
    assert!(parents.len() == 3 && parents[0].as_str().unwrap().ends_with("base"), "{parents:?}");
    // Both are the same merge.
    let merges = found["sets"][0]["merges"].as_array().unwrap();
    near(merges[0]["loss"].as_f64().unwrap(), merges[1]["loss"].as_f64().unwrap(), 1e-6);
    assert_eq!(merges.iter().filter(|merge| merge["beyond_parents"].is_null()).count(), 2, "{merges:?}");
}

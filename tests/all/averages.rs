//! Averages of many checkpoints of one run: weights by position, folders found by a pattern, few files open at once.

use std::fs;
use std::path::Path;

use mergeforge::stream::Budget;
use safetensors::Dtype;

use crate::command::{Ended, mergeforge};
use crate::models::{self, Form, PLAIN, RUN, Tensors, stored, tuned, values, weights};
use crate::oracle;

const SHAPES: [(&str, &[usize]); 4] = [
    ("model.embed_tokens.weight", &[9, 5]),
    ("model.layers.0.w.weight", &[37, 61]),
    ("model.layers.1.w.weight", &[1025]),
    ("model.norm.weight", &[]),
];

/// Checkpoints of a run at these steps, in this many shards each, of one type or of several; oldest first.
fn write_run(folder: &Path, steps: &[u32], shards: usize, mixed: bool) -> Vec<Tensors> {
    let base: Vec<Vec<f32>> =
        (0..).zip(SHAPES).map(|(i, (_, s))| weights(s.iter().product(), 50 + i)).collect();
    let mut all = Vec::new();
    for (place, step) in (0..).zip(steps) {
        let dtype = [Dtype::BF16, Dtype::F32, Dtype::F16][if mixed { place as usize % 3 } else { 0 }];
        let mut tensors = Tensors::new();
        for (i, ((name, shape), base)) in (0..).zip(SHAPES.iter().zip(&base)) {
            let values = tuned(base, 1000 * (place + 1) + i);
            tensors.insert((*name).into(), stored(dtype, shape, &values));
        }
        let form = Form { shards, reversed: false, tied: false };
        models::write(&folder.join(format!("checkpoint-{step}")), &tensors, form);
        all.push(tensors);
    }
    all
}

fn merged_as(folder: &Path, parameters: &str, out: &str) -> Tensors {
    let config = format!(
        "merge_method: average\nmodels: {{glob: {}/checkpoint-*}}\nparameters: {{{parameters}}}\ndtype: float32\n",
        folder.display()
    );
    models::run(folder, &config, out, RUN).unwrap();
    models::read(&folder.join(out))
}

/// The weights of N checkpoints, from the definitions and not as the method does it: schedules by their decay factors, moving
/// averages step by step.
fn weights_of(kind: &str, n: usize, decay: f64) -> Vec<f64> {
    let by_factors = |factor: &dyn Fn(f64) -> f64| {
        let factors: Vec<f64> = (0..=n).map(|i| factor(i as f64 / n as f64)).collect();
        factors.windows(2).map(|pair| pair[0] - pair[1]).collect::<Vec<f64>>()
    };
    match kind {
        "uniform" => by_factors(&|at| 1.0 - at),
        "1-sqrt" => by_factors(&|at| 1.0 - at.sqrt()),
        "cosine" => by_factors(&|at| 0.5 + 0.5 * (std::f64::consts::PI * at).cos()),
        "linear" => (1..=n).map(|i| i as f64 / (n * (n + 1) / 2) as f64).collect(),
        "exponential" => {
            let mut all = vec![1.0];
            for _ in 1..n {
                all.iter_mut().for_each(|weight| *weight *= decay);
                all.push(1.0 - decay);
            }
            all
        }
        other => panic!("{other}"),
    }
}

/// In an order that is not that of their names, so that their positions are seen in the values.
const STEPS: [u32; 7] = [50, 200, 900, 1000, 1100, 2000, 10_000];

#[test]
fn averages_are_those_of_the_published_weights() {
    let folder = tempfile::tempdir().unwrap();
    let run = write_run(folder.path(), &STEPS, 1, true);
    let ways: [(&str, &str, usize, f64); 9] = [
        ("uniform", "", 7, 0.0),
        ("uniform", "window: 1", 1, 0.0),
        ("linear", "weights: linear", 7, 0.0),
        ("1-sqrt", "weights: 1-sqrt, window: 0", 7, 0.0),
        ("cosine", "weights: cosine, window: 5", 5, 0.0),
        ("exponential", "weights: exponential", 7, 0.8),
        ("exponential", "weights: exponential, decay: 0.5, window: 3", 3, 0.5),
        ("exponential", "weights: exponential, decay: 0", 7, 0.0),
        ("linear", "weights: linear, window: 99", 7, 0.0),
    ];
    for (place, (kind, parameters, window, decay)) in ways.into_iter().enumerate() {
        let merged = merged_as(folder.path(), parameters, &format!("out{place}"));
        let weights = weights_of(kind, window, decay);
        assert!((weights.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        for (name, tensor) in &merged {
            let inputs: Vec<Vec<f32>> =
                run[STEPS.len() - window..].iter().map(|m| values(&m[name])).collect();
            let inputs: Vec<&[f32]> = inputs.iter().map(Vec::as_slice).collect();
            let expected = oracle::linear(&inputs, &weights, true);
            for (i, found) in values(tensor).iter().enumerate() {
                // Rounding of the weights, of the sum, and of the output.
                let slack = 2.0 * expected.slack[i] + 2f64.powi(-24) * expected.exact[i].abs();
                let off = (f64::from(*found) - expected.exact[i]).abs();
                assert!(off <= slack, "{parameters}: {name} {i}: {found} is {off} off");
            }
        }
    }
}

#[test]
fn an_average_is_spelled_out_as_a_linear_merge_of_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    write_run(folder.path(), &STEPS, 2, false);
    for (place, parameters) in
        ["", "weights: cosine, window: 4", "weights: exponential, decay: 0.37"].iter().enumerate()
    {
        let out = format!("out{place}");
        let merged = merged_as(folder.path(), parameters, &out);
        let read = |name: &str| fs::read_to_string(folder.path().join(&out).join(name)).unwrap();
        let linear = read("mergekit_linear.yml");
        assert!(linear.contains("merge_method: linear\n") && linear.contains("dtype: float32\n"), "{linear}");
        assert!(read("README.md").contains(linear.trim_end()), "the card has it too");
        models::run(folder.path(), &linear, &format!("again{place}"), RUN).unwrap();
        assert!(models::read(&folder.path().join(format!("again{place}"))) == merged, "{parameters}");
        let manifest: serde_json::Value = serde_json::from_str(&read("mergeforge.json")).unwrap();
        assert_eq!(manifest["weights"].as_array().unwrap().len(), STEPS.len());
    }
    // Weights that differ from tensor to tensor have no such config.
    merged_as(folder.path(), "window: [{filter: embed, value: 2}, {value: 3}]", "filtered");
    assert!(!folder.path().join("filtered/mergekit_linear.yml").exists());
}

fn planned(folder: &Path, config: &str, more: &[&str]) -> Ended {
    crate::command::plan(folder, &config.replace("DIR", folder.to_str().unwrap()), more)
}

#[test]
fn a_plan_lists_what_a_pattern_found_in_order_with_weights() {
    let folder = tempfile::tempdir().unwrap();
    write_run(folder.path(), &[900, 1000, 100], 1, false);
    fs::create_dir(folder.path().join("checkpoint-logs")).unwrap();
    let config = "merge_method: average\nmodels:\n- {glob: 'DIR/checkpoint-*00'}\n- {glob: DIR/checkpoint-1???*}\nparameters: {weights: linear}\n";
    planned(folder.path(), config, &[]).failed(2, &[":4:10: ", "checkpoint-1000 is listed twice"]);
    let expected = [
        "checkpoint-100  weight 0.166667  (gives config and tokenizer)",
        "checkpoint-900  weight 0.333333",
        "checkpoint-1000  weight 0.5",
    ];
    let config = "merge_method: average\nmodels: {glob: DIR/checkpoint-*}\nparameters: {weights: linear}\n";
    let ended = planned(folder.path(), config, &[]).succeeded();
    let models: Vec<&str> = ended.stdout.lines().filter_map(|line| line.strip_prefix("model    ")).collect();
    assert!(
        models.iter().zip(expected).all(|(model, expected)| model.ends_with(expected)),
        "{}",
        ended.stdout
    );
    assert_eq!(models.len(), 3);
    assert!(ended.stdout.contains("checkpoint-logs matches"), "{}", ended.stdout);
    let json = planned(folder.path(), config, &["--json"]).succeeded().stdout;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["weights"], serde_json::json!([1.0, 2.0, 3.0]));
}

#[test]
fn patterns_go_beside_models_and_with_any_method() {
    let folder = tempfile::tempdir().unwrap();
    let run = write_run(folder.path(), &[1, 2, 3, 4], 1, false);
    models::write(&folder.path().join("other"), &run[0], PLAIN);
    let dir = folder.path().display();
    let listed = |models: &str, out: &str| {
        models::run(folder.path(), &format!("merge_method: linear\nmodels:\n{models}"), out, RUN).unwrap();
        models::read(&folder.path().join(out))
    };
    let by_pattern = listed(
        &format!(
            "- {{model: {dir}/other, parameters: {{weight: 0.5}}}}\n- {{glob: '{dir}/checkpoint-[2-4]', parameters: {{weight: 0.25}}}}\n\
             - {{model: {dir}/checkpoint-1, parameters: {{weight: 1}}}}\n"
        ),
        "by-pattern",
    );
    let one =
        |name: &str, weight: f64| format!("- {{model: {dir}/{name}, parameters: {{weight: {weight}}}}}\n");
    let names = [
        ("other", 0.5),
        ("checkpoint-2", 0.25),
        ("checkpoint-3", 0.25),
        ("checkpoint-4", 0.25),
        ("checkpoint-1", 1.0),
    ];
    let by_name = listed(&names.map(|(name, weight)| one(name, weight)).concat(), "by-name");
    assert!(by_pattern == by_name);
}

#[test]
fn mistakes_in_averages_are_refused_with_the_way_out() {
    let folder = tempfile::tempdir().unwrap();
    write_run(folder.path(), &[1, 2], 1, false);
    let glob = "models: {glob: DIR/checkpoint-*}\n";
    let average = |more: &str| format!("merge_method: average\n{glob}{more}");
    let words = "`weights` takes one word: uniform, linear, 1-sqrt, cosine, exponential";
    let cases: [(String, &[&str]); 8] = [
        (average("parameters: {weights: unifrom}\n"), &[words, "did you mean `uniform`?"]),
        (average("parameters: {weights: [1, 2]}\n"), &[words, "`merge_method: linear`"]),
        (average("parameters: {weights: 3}\n"), &[words]),
        (
            average("parameters: {weights: exponential, decay: 1}\n"),
            &["decay 1 is not from 0 up and below 1"],
        ),
        (average("parameters: {window: 1.5}\n"), &["a whole number from 0 up"]),
        (
            average("base_model: DIR/other\n"),
            &["average weighs models by their places", "list it under `models:`"],
        ),
        ("merge_method: average\nmodels: [{glob: 'DIR/step-*'}]\n".into(), &[":2:", "no folder matches"]),
        (
            "merge_method: average\nmodels: [{glob: 'DIR/checkpoint-*'}, {model: DIR/checkpoint-1}]\n".into(),
            &["checkpoint-1 is listed twice"],
        ),
    ];
    for (config, says) in cases {
        planned(folder.path(), &config, &[]).failed(2, says);
    }
    // What matches and is broken is an error, and not left out.
    fs::create_dir(folder.path().join("checkpoint-3")).unwrap();
    fs::write(folder.path().join("checkpoint-3/config.json"), "{}").unwrap();
    planned(folder.path(), &average(""), &[]).failed(3, &["checkpoint-3 holds no weights"]);
}

/// A run of many checkpoints: more than any table of a fixed size in the kernels had.
const MANY: usize = 70;

pub fn many() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let steps: Vec<u32> = (1..=MANY as u32).map(|place| 250 * place).collect();
    write_run(folder.path(), &steps, 2, false);
    folder
}

pub fn config_of_many(folder: &Path, method: &str) -> String {
    format!("merge_method: {method}\nmodels: {{glob: {}/checkpoint-*}}\n", folder.display())
}

#[test]
fn many_checkpoints_are_merged_with_few_files_open() {
    let folder = many();
    let config = config_of_many(folder.path(), "average");
    models::run(folder.path(), &config, "expected", RUN).unwrap();
    let expected = models::read(&folder.path().join("expected"));
    let file = crate::command::config(folder.path(), &config);
    for (limit, more) in
        [(48, &["-j2"][..]), (48, &["-j2", "--reads", "direct"]), (64, &["-j3", "--chunk-tiles", "1"])]
    {
        let program = mergeforge();
        let mut limited = std::process::Command::new("sh");
        limited.args(["-c", &format!("ulimit -n {limit}; exec \"$@\""), "sh"]).arg(program.get_program());
        limited.env("MERGEFORGE_CACHE", "").arg("merge").args([&file, &folder.path().join("out")]).args(more);
        let ended: Ended = limited.args(["--device", "cpu"]).output().unwrap().into();
        ended.succeeded();
        assert!(models::read(&folder.path().join("out")) == expected, "{limit} {more:?}");
        fs::remove_dir_all(folder.path().join("out")).unwrap();
    }
}

/// Chunks shrink with the number of inputs, and the bytes stay.
#[test]
fn many_checkpoints_fit_into_little_memory() {
    let folder = many();
    let config = config_of_many(folder.path(), "average");
    models::run(folder.path(), &config, "expected", RUN).unwrap();
    let expected = models::read(&folder.path().join("expected"));
    let budgets = [(1, 8 << 20, None), (3, 24 << 20, None), (2, 64 << 20, Some(1)), (8, 256 << 20, Some(2))];
    for (threads, host_bytes, chunk_tiles) in budgets {
        let budget = Budget { threads, host_bytes, device_bytes: 0, chunk_tiles };
        let out = format!("out-{threads}");
        models::run(folder.path(), &config, &out, models::Run { budget, ..RUN }).unwrap();
        assert!(models::read(&folder.path().join(out)) == expected, "{threads} {host_bytes} {chunk_tiles:?}");
    }
}

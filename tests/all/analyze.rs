//! What `mergeforge analyze` measures: planted structure is found, every number is what plain sums in f64 give, and none depends on
//! the threads.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use mergeforge::analyze::{Analysis, Request, analyze};
use mergeforge::decoder::{Processor, Sums};
use mergeforge::error::{Error, Kind};
use mergeforge::eval::{Cut, Form, Model, Prompt, Texts, Windows};
use mergeforge::hub::Remote;
use mergeforge::plan::Choices;
use mergeforge::predict::{Agreement, Options, Parents, Reading};
use mergeforge::stream::Watch;
use mergeforge::tokenizer::Runner;
use mergeforge::{prepare, prepare_model};
use safetensors::Dtype;
use serde_json::{Value as Json, json};
use tempfile::TempDir;

use crate::adapters::write_adapter;
use crate::bench::well_formed;
use crate::command::{self, Ended, ROOT};
use crate::models::{self, PLAIN, Quiet, Random, Tensors, stored, values};

/// Writes a model of float32 tensors.
fn model(folder: &Path, name: &str, dtype: Dtype, tensors: &[(&str, &[usize], Vec<f32>)]) {
    let tensor = |(name, shape, values): &(&str, &[usize], Vec<f32>)| {
        ((*name).to_owned(), stored(dtype, shape, values))
    };
    models::write(&folder.join(name), &tensors.iter().map(tensor).collect(), PLAIN);
}

/// Runs the program on a config that names models of the folder.
fn run(folder: &Path, config: &str, flags: &[&str]) -> Ended {
    let config = command::config(folder, &config.replace("DIR", folder.to_str().unwrap()));
    command::run([&["analyze", config.to_str().unwrap(), "--quiet"], flags].concat())
}

fn measured(folder: &Path, config: &str, flags: &[&str]) -> Json {
    let ended = run(folder, config, &[&["--json"], flags].concat()).succeeded();
    serde_json::from_str(&ended.stdout).unwrap()
}

fn finding<'a>(json: &'a Json, about: &str) -> &'a Json {
    let all = json["findings"].as_array().unwrap();
    all.iter().find(|finding| finding["about"] == about).unwrap_or_else(|| panic!("no finding {about}"))
}

#[track_caller]
fn near(found: &Json, expected: f64, tolerance: f64) {
    let found = found.as_f64().unwrap_or_else(|| panic!("{found} for {expected}"));
    assert!((found - expected).abs() <= tolerance * expected.abs(), "{found} for {expected}");
}

const TIES: &str = "merge_method: ties\nbase_model: DIR/base\nparameters: {density: 0.25, weight: 0.5}\nmodels:\n- model: DIR/a\n- \
                    model: DIR/b\n";

/// Two task vectors of known shape: of every 16 elements each is large at 4, at 3 of them together; they differ in sign at 5, of
/// these at one that is large in both; one has 2 zeros, and the other is 2.6 times as large.
fn planted(elements: usize) -> [Vec<f32>; 2] {
    let mut random = Random(7);
    let mut tasks = [vec![0.0; elements], vec![0.0; elements]];
    for run in 0..elements / 16 {
        // The places change, so that no pattern of rows helps.
        let mut places: Vec<usize> = (0..16).collect();
        places.sort_by_cached_key(|_| random.next());
        for (place, role) in places.into_iter().enumerate() {
            let (large, small) = ((0..3).contains(&role), 0.01);
            let sign = if random.next().is_multiple_of(2) { 1.0 } else { -1.0 };
            let a = if large || role == 3 { 1.0 } else { small };
            let b = if large || role == 4 { 2.6 } else { 2.6 * small };
            let differ = matches!(role, 0 | 5..=8);
            tasks[0][16 * run + place] = if role >= 14 { 0.0 } else { sign * a };
            tasks[1][16 * run + place] = if differ { -sign * b } else { sign * b };
        }
    }
    tasks
}

/// The numbers that follow from how the task vectors were made, in a tensor that is looked at whole, and in one that is cut into
/// parts and sampled.
#[test]
fn planted_structure_is_found() {
    for shape in [[512, 1024], [2112, 2048]] {
        let folder = tempfile::tempdir().unwrap();
        let elements: usize = shape.iter().product();
        // The base is coarse enough that every difference is exact.
        let mut random = Random(3);
        let base: Vec<f32> = (0..elements).map(|_| (random.next() % 512) as f32 / 16.0 - 16.0).collect();
        let tasks = planted(elements)
            .map(|task| task.iter().map(|value| (value * 65536.0).round() / 65536.0).collect::<Vec<f32>>());
        let added =
            |task: &[f32]| base.iter().zip(task).map(|(base, task)| base + task).collect::<Vec<f32>>();
        let name = "model.layers.0.mlp.up_proj.weight";
        model(folder.path(), "base", Dtype::F32, &[(name, &shape, base.clone())]);
        model(folder.path(), "a", Dtype::F32, &[(name, &shape, added(&tasks[0]))]);
        model(folder.path(), "b", Dtype::F32, &[(name, &shape, added(&tasks[1]))]);
        let json = measured(folder.path(), TIES, &[]);
        let whole = &json["whole"];
        // Of 16 elements: 3 large together, one of these with differing signs, 4 small ones too.
        let (one, other) = (4.0 + 10.0 * 1e-4, 4.0 + 12.0 * 1e-4);
        let dot = (2.0 - 1.0) + 0.02 + (5.0 - 4.0) * 1e-4;
        let [a, b] = [0, 1].map(|task| &whole["task_vectors"][task]);
        near(&a["norm"], (one * elements as f64 / 16.0).sqrt(), 1e-4);
        near(&b["norm"], 2.6 * (other * elements as f64 / 16.0).sqrt(), 1e-4);
        near(&a["zeros"], 2.0 / 16.0, 1e-9);
        assert_eq!(b["zeros"], 0.0);
        let pair = &whole["task_vector_pairs"][0];
        near(&pair["cosine"], dot / (one * other).sqrt(), 1e-3);
        near(&pair["both_changed"], 14.0 / 16.0, 1e-9);
        near(&pair["signs_differ"], 5.0 / 16.0, 1e-9);
        let mass = (4.0 + 0.10) + 2.6 * (4.0 + 0.12);
        near(&pair["mass_where_signs_differ"], (1.0 + 0.04) * 3.6 / mass, 1e-3);
        near(&whole["vote"]["outvoted"], (1.0 + 0.04) / mass, 1e-3);
        // What is large is kept: 3 of 5 together, and of that a 16th in conflict.
        near(&pair["kept_by_both"], 3.0 / 5.0, 0.01);
        near(&pair["kept_by_both_by_chance"], 1.0 / 7.0, 0.01);
        near(&pair["kept_too"][0], 3.0 / 4.0, 0.01);
        near(&whole["vote"]["outvoted_of_kept"], 1.0 / (4.0 + 2.6 * 4.0), 0.01);
        near(&a["quantiles"]["0.5"], 0.01, 0.01);
        near(&a["quantiles"]["0.9"], 1.0, 0.01);
        near(&b["quantiles"]["0.99"], 2.6, 0.01);
        near(&finding(&json, "norms")["value"], 2.6 * (other / one).sqrt(), 0.01);
        let pull = 2.6 * 2.6 * other + 2.6 * dot;
        near(&b["share_of_merge"], pull / (pull + one + 2.6 * dot), 0.01);
        let sampled = json["tensors"][0]["sample"].as_u64().unwrap();
        assert_eq!(sampled as usize == elements, elements <= 1 << 20, "{sampled} of {elements}");
    }
}

/// A matrix with so many singular values of a kind: all equal, or each half as large as the one before.
fn of_rank(rows: usize, columns: usize, rank: usize, factor: f64) -> Vec<f32> {
    // Columns of a cosine transform are orthonormal.
    let basis = |size: usize, row: usize, vector: usize| {
        let angle = std::f64::consts::PI * (row as f64 + 0.5) * (vector as f64 + 1.0) / size as f64;
        (2.0 / size as f64).sqrt() * angle.cos()
    };
    let value = |row: usize, column: usize| -> f64 {
        (0..rank).map(|k| factor.powi(k as i32) * basis(rows, row, k) * basis(columns, column, k)).sum()
    };
    (0..rows * columns).map(|i| value(i / columns, i % columns) as f32).collect()
}

#[test]
fn the_rank_of_task_vectors_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let names = ["model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.weight"];
    let shape = [96, 160];
    let zeros = vec![0.0; 96 * 160];
    let with =
        |first: Vec<f32>, second: Vec<f32>| [(names[0], &shape[..], first), (names[1], &shape[..], second)];
    model(folder.path(), "base", Dtype::F32, &with(zeros.clone(), zeros.clone()));
    model(folder.path(), "a", Dtype::F32, &with(of_rank(96, 160, 20, 1.0), zeros.clone()));
    model(folder.path(), "b", Dtype::F32, &with(of_rank(96, 160, 12, 0.5), of_rank(96, 160, 60, 1.0)));
    let json = measured(folder.path(), TIES, &["--rank", "q_proj", "--rank", r"\.k_proj\.weight$"]);
    let ranks = json["ranks"].as_array().unwrap();
    let of = |tensor: &str, model: &str| {
        let found = ranks.iter().find(|rank| {
            rank["tensor"].as_str().unwrap().contains(tensor)
                && rank["model"].as_str().unwrap().ends_with(model)
        });
        found.unwrap_or_else(|| panic!("{ranks:?}"))
    };
    assert_eq!(ranks.len(), 4);
    near(&of("q_proj", "/a")["effective_rank"], 20.0, 0.01);
    near(&of("q_proj", "/a")["stable_rank"], 20.0, 0.01);
    assert_eq!(of("q_proj", "/a")["rank_of_90_percent"], 18);
    // Squares of 1, 1/4, 1/16, … add up to 4/3, and two of them to 15/16 of that.
    near(&of("q_proj", "/b")["stable_rank"], 4.0 / 3.0, 0.01);
    // Their shares are 1/2, 1/4, 1/8, …, whose entropy is 2 ln 2.
    near(&of("q_proj", "/b")["effective_rank"], 4.0, 0.01);
    assert_eq!(of("q_proj", "/b")["rank_of_90_percent"], 2);
    near(&of("k_proj", "/b")["effective_rank"], 60.0, 0.01);
    near(&of("k_proj", "/b")["stable_rank"], 60.0, 0.01);
    assert_eq!(of("k_proj", "/b")["rank_of_90_percent"], 54);
    assert_eq!(of("k_proj", "/a")["effective_rank"], Json::Null);
    assert_eq!(
        (&of("k_proj", "/a")["stable_rank"], &of("k_proj", "/a")["rank_of_90_percent"]),
        (&Json::Null, &json!(0))
    );
    run(folder.path(), TIES, &["--rank", "o_proj"])
        .failed(2, &["--rank \"o_proj\"", "names are like \"model.layers.0.self_attn."]);
    let linear = "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: DIR/a}, {model: DIR/b}]\n";
    run(folder.path(), linear, &["--rank", "q_proj"]).failed(2, &["no base model", "base_model"]);
}

/// Three models and a base, with weights and densities of their own.
fn several(folder: &Path) -> (Vec<Tensors>, String) {
    let shapes: [(&str, &[usize]); 5] = [
        ("model.embed_tokens.weight", &[50, 24]),
        ("model.layers.0.self_attn.q_proj.weight", &[24, 24]),
        ("model.layers.1.self_attn.q_proj.weight", &[24, 24]),
        ("model.layers.1.input_layernorm.weight", &[24]),
        ("lm_head.weight", &[50, 24]),
    ];
    let mut all = Vec::new();
    for name in ["base", "a", "b", "c"] {
        let mut tensors = Tensors::new();
        for (tensor, shape) in shapes {
            let count = shape.iter().product();
            let own = models::weights(count, (all.len() * 100 + tensors.len()) as u64);
            let values = match all.first() {
                None => own,
                Some(base) => {
                    let base: &Tensors = base;
                    // A tenth stays as it was.
                    let own = values(&base[tensor]).into_iter().zip(own).enumerate();
                    own.map(|(i, (base, own))| if i % 10 == 3 { base } else { base + 0.2 * own }).collect()
                }
            };
            tensors.insert(tensor.to_owned(), stored(Dtype::BF16, shape, &values));
        }
        models::write(&folder.join(name), &tensors, PLAIN);
        all.push(tensors);
    }
    let config = "merge_method: ties\nbase_model: DIR/base\nmodels:\n- {model: DIR/a, parameters: {weight: 0.5, density: 0.3}}\n- \
                  {model: DIR/b, parameters: {weight: 1.5, density: 0.6}}\n- {model: DIR/c, parameters: {weight: -0.25, density: \
                  1}}\n";
    (all, config.to_owned())
}

/// Plain sums in f64 over some tensors.
struct Oracle {
    models: Vec<Vec<f64>>,
    tasks: Vec<Vec<f64>>,
    kept: Vec<Vec<bool>>,
}

const WEIGHTS: [f64; 3] = [0.5, 1.5, -0.25];

impl Oracle {
    fn of(all: &[Tensors], names: &[String]) -> Self {
        let (mut models, mut tasks, mut kept) = (vec![vec![]; 4], vec![vec![]; 3], vec![vec![]; 3]);
        for name in names {
            let of: Vec<Vec<f64>> = all
                .iter()
                .map(|tensors| values(&tensors[name]).into_iter().map(f64::from).collect())
                .collect();
            for (task, density) in [0.3, 0.6, 1.0].into_iter().enumerate() {
                let differences: Vec<f64> =
                    of[task + 1].iter().zip(&of[0]).map(|(x, base)| f64::from((x - base) as f32)).collect();
                let mut order: Vec<usize> = (0..differences.len()).collect();
                order.sort_by(|i, j| differences[*j].abs().total_cmp(&differences[*i].abs()).then(i.cmp(j)));
                let largest: BTreeSet<usize> =
                    order.into_iter().take((density * differences.len() as f64) as usize).collect();
                kept[task].extend((0..differences.len()).map(|i| largest.contains(&i)));
                tasks[task].extend(differences);
            }
            models.iter_mut().zip(of).for_each(|(all, of)| all.extend(of));
        }
        Self { models, tasks, kept }
    }

    fn check(&self, json: &Json) {
        let exact = 1e-9;
        let dot = |a: &[f64], b: &[f64]| -> f64 { a.iter().zip(b).map(|(a, b)| a * b).sum() };
        let cosine = |a: &[f64], b: &[f64]| dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
        let count = self.models[0].len() as f64;
        // The models are in the order of the config, and the base comes last.
        let place = |model: usize| (model + 1) % 4;
        let share =
            |which: &dyn Fn(usize) -> bool| (0..count as usize).filter(|i| which(*i)).count() as f64 / count;
        assert_eq!(json["elements"].as_f64().unwrap(), count);
        for model in 0..4 {
            let own = &self.models[place(model)];
            near(&json["models"][model]["norm"], dot(own, own).sqrt(), exact);
        }
        let pairs = [(0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)];
        for (number, (a, b)) in pairs.into_iter().enumerate() {
            let found = &json["pairs"][number];
            near(&found["cosine"], cosine(&self.models[place(a)], &self.models[place(b)]), exact);
        }
        let base = dot(&self.models[0], &self.models[0]).sqrt();
        let merged: Vec<f64> = (0..count as usize)
            .map(|i| (0..3).map(|task| WEIGHTS[task] * self.tasks[task][i]).sum())
            .collect();
        for task in 0..3 {
            let (own, found) = (&self.tasks[task], &json["task_vectors"][task]);
            near(&found["norm"], dot(own, own).sqrt(), exact);
            near(&found["relative"], dot(own, own).sqrt() / base, exact);
            near(&found["zeros"], share(&|i| own[i] == 0.0), exact);
            near(&found["mean_magnitude"], own.iter().map(|x| x.abs()).sum::<f64>() / count, exact);
            near(&found["largest"], own.iter().fold(0.0, |most, x| most.max(x.abs())), 1e-6);
            near(&found["share_of_merge"], WEIGHTS[task] * dot(own, &merged) / dot(&merged, &merged), 1e-8);
            near(&found["kept"], share(&|i| self.kept[task][i]), exact);
        }
        for (number, (a, b)) in pairs[..3].iter().copied().enumerate() {
            let (found, [one, other]) =
                (&json["task_vector_pairs"][number], [&self.tasks[a], &self.tasks[b]]);
            near(&found["cosine"], cosine(one, other), exact);
            near(&found["both_changed"], share(&|i| one[i] * other[i] != 0.0), exact);
            near(&found["signs_differ"], share(&|i| one[i] * other[i] < 0.0), exact);
            let mass = |which: &dyn Fn(usize) -> bool| -> f64 {
                (0..count as usize).filter(|i| which(*i)).map(|i| one[i].abs() + other[i].abs()).sum()
            };
            near(
                &found["mass_where_signs_differ"],
                mass(&|i| one[i] * other[i] < 0.0) / mass(&|_| true),
                exact,
            );
            let (both, either) = (
                share(&|i| self.kept[a][i] && self.kept[b][i]),
                share(&|i| self.kept[a][i] || self.kept[b][i]),
            );
            near(&found["kept_by_both"], both / either, exact);
            near(&found["kept_too"][1], both / share(&|i| self.kept[b][i]), exact);
        }
        let vote = |votes: &dyn Fn(usize, usize) -> f64| {
            let (mut mass, mut outvoted, mut differ, mut in_conflict) = (0.0, 0.0, 0.0, 0.0);
            for i in 0..count as usize {
                let votes = [votes(0, i), votes(1, i), votes(2, i)];
                let up: f64 = votes.iter().filter(|vote| **vote > 0.0).sum();
                let down: f64 = votes.iter().filter(|vote| **vote < 0.0).map(|vote| -vote).sum();
                mass += up + down;
                outvoted += up.min(down);
                if up.min(down) > 0.0 {
                    differ += 1.0;
                    in_conflict += up + down;
                }
            }
            [differ / count, in_conflict / mass, outvoted / mass]
        };
        let found = &json["vote"];
        let [differ, in_conflict, outvoted] = vote(&|task, i| self.tasks[task][i]);
        near(&found["signs_differ"], differ, exact);
        // Sides of more than two are added up in f32.
        near(&found["mass_where_signs_differ"], in_conflict, 1e-6);
        near(&found["outvoted"], outvoted, 1e-6);
        let kept =
            vote(&|task, i| if self.kept[task][i] { WEIGHTS[task] * self.tasks[task][i] } else { 0.0 });
        near(&found["outvoted_of_kept"], kept[2], 1e-6);
    }
}

#[test]
fn every_number_is_what_plain_sums_give() {
    let folder = tempfile::tempdir().unwrap();
    let (all, config) = several(folder.path());
    let json = measured(folder.path(), &config, &[]);
    let names = |which: &dyn Fn(&Json) -> bool| -> Vec<String> {
        let tensors = json["tensors"].as_array().unwrap().iter().filter(|tensor| which(tensor));
        tensors.map(|tensor| tensor["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&|_| true).len(), 5);
    Oracle::of(&all, &names(&|_| true)).check(&json["whole"]);
    for tensor in json["tensors"].as_array().unwrap() {
        Oracle::of(&all, &[tensor["name"].as_str().unwrap().to_owned()]).check(tensor);
    }
    for (groups, key, expected) in
        [("layers", "layer", &["0", "1"][..]), ("kinds", "kind", &["embeddings", "q_proj", "norms", "head"])]
    {
        let groups = json[groups].as_array().unwrap();
        let found: BTreeSet<&str> = groups.iter().map(|group| group["name"].as_str().unwrap()).collect();
        assert_eq!(found, expected.iter().copied().collect());
        for group in groups {
            Oracle::of(&all, &names(&|tensor| tensor[key] == group["name"])).check(group);
        }
    }
}

/// One thread and three, and a tensor that several of them share.
#[test]
fn numbers_do_not_depend_on_threads() {
    let folder = tempfile::tempdir().unwrap();
    for (seed, name) in ["base", "a", "b"].into_iter().enumerate() {
        let shapes: [(&str, &[usize]); 2] =
            [("lm_head.weight", &[4200, 2048]), ("model.norm.weight", &[2048])];
        let tensors: Vec<_> = shapes
            .iter()
            .map(|(name, shape)| (*name, *shape, models::weights(shape.iter().product(), seed as u64)))
            .collect();
        model(folder.path(), name, Dtype::BF16, &tensors);
    }
    let outputs = ["1", "3"]
        .map(|threads| run(folder.path(), TIES, &["--json", "--threads", threads]).succeeded().stdout);
    assert!(outputs[0] == outputs[1]);
}

/// SLERP and the line between two models, at the config's t, with the base on either side of it.
#[test]
fn interpolations_are_compared_where_the_config_has_them() {
    let folder = tempfile::tempdir().unwrap();
    let angle = 1.1f64;
    let (one, other) = (vec![3.0, 0.0], vec![2.0 * angle.cos() as f32, 2.0 * angle.sin() as f32]);
    model(folder.path(), "a", Dtype::F32, &[("model.norm.weight", &[2], one)]);
    model(folder.path(), "b", Dtype::F32, &[("model.norm.weight", &[2], other)]);
    let expected = |t: f64| {
        let arc = [((1.0 - t) * angle).sin() / angle.sin(), (t * angle).sin() / angle.sin()];
        let norm = |[a, b]: [f64; 2]| (a * a * 9.0 + 2.0 * a * b * 6.0 * angle.cos() + b * b * 4.0).sqrt();
        norm([arc[0] - (1.0 - t), arc[1] - t]) / norm(arc)
    };
    let slerp = |base: &str, models: &str| {
        let config = format!(
            "merge_method: slerp\nbase_model: DIR/{base}\nparameters: {{t: 0.3}}\nmodels: {models}\n"
        );
        measured(folder.path(), &config, &[])
    };
    let (forth, back) = ("[{model: DIR/a}, {model: DIR/b}]", "[{model: DIR/b}, {model: DIR/a}]");
    for (base, models, t) in [("a", forth, 0.3), ("a", back, 0.3), ("b", forth, 0.7), ("b", back, 0.7)] {
        let json = slerp(base, models);
        near(&json["whole"]["pairs"][0]["slerp_from_linear"], expected(t), 1e-6);
        near(&json["whole"]["pairs"][0]["cosine"], angle.cos(), 1e-6);
        assert_eq!(finding(&json, "collinear")["holds"], false);
        // The other model's way from the base is one task vector, which has no other to be compared with.
        assert_eq!(json["whole"]["task_vector_pairs"], json!([]));
        assert_eq!(json["whole"]["vote"], Json::Null);
    }
    let linear = "merge_method: linear\nmodels:\n- {model: DIR/a, parameters: {weight: 1}}\n- {model: DIR/b, parameters: {weight: \
                  4}}\n";
    let json = measured(folder.path(), linear, &[]);
    near(&json["whole"]["pairs"][0]["slerp_from_linear"], expected(0.8), 1e-6);
    assert_eq!(json["t"], json!({ "least": 0.8, "most": 0.8 }));
    assert!(finding(&json, "base")["text"].as_str().unwrap().contains("no task vectors"));
    assert_eq!(json["whole"]["task_vectors"], json!([]));
}

#[test]
fn elements_that_are_not_finite_are_left_out_and_named() {
    let folder = tempfile::tempdir().unwrap();
    let (all, config) = several(folder.path());
    let name = "model.layers.1.self_attn.q_proj.weight";
    let clean = measured(folder.path(), &config, &[]);
    let mut odd = all[2].clone();
    let mut changed = values(&odd[name]);
    (changed[5], changed[77]) = (f32::NAN, f32::NEG_INFINITY);
    odd.insert(name.to_owned(), stored(Dtype::BF16, &[24, 24], &changed));
    models::write(&folder.path().join("b"), &odd, PLAIN);
    let json = measured(folder.path(), &config, &[]);
    let text = finding(&json, "not_finite")["text"].as_str().unwrap();
    assert!(text.contains("b has 2 in 1 of its tensors") && text.contains(name), "{text}");
    assert_eq!(json["whole"]["models"][1]["not_finite"], 2);
    // Everything else is what it is of the other elements.
    let of = |json: &Json| {
        json["tensors"].as_array().unwrap().iter().find(|tensor| tensor["name"] == name).unwrap().clone()
    };
    let own = [5, 77].map(|i| f64::from(values(&all[1][name])[i]).powi(2));
    let norm = of(&clean)["models"][0]["norm"].as_f64().unwrap();
    near(&of(&json)["models"][0]["norm"], (norm * norm - own[0] - own[1]).sqrt(), 1e-9);
    let zeros = |json: &Json| of(json)["task_vectors"][0]["zeros"].as_f64().unwrap();
    near(&json!(zeros(&json) * 574.0), zeros(&clean) * 576.0, 1e-9);
    let rank = run(folder.path(), &config, &["--rank", "q_proj"]);
    rank.failed(3, &["NaN or infinity", name, "leave it out of --rank"]);
}

/// Adapters, layers that a merge stacks, and tied heads are what the plan has them to be.
#[test]
fn models_are_measured_as_the_plan_has_them() {
    let folder = tempfile::tempdir().unwrap();
    let (all, _) = several(folder.path());
    let module = "model.layers.0.self_attn.q_proj";
    let (a, b) = (format!("{module}.lora_A.weight"), format!("{module}.lora_B.weight"));
    let factors: [(&str, &[usize]); 2] = [(&a, &[2, 24]), (&b, &[24, 2])];
    let own = write_adapter(&folder.path().join("lora"), json!({ "target_modules": ["q_proj"] }), &factors);
    let product =
        |i: usize| (0..2).map(|k| own[&b][i / 24 * 2 + k] * own[&a][k * 24 + i % 24]).sum::<f32>() * 1.5;
    let product: Vec<f32> = (0..24 * 24).map(product).collect();
    let config = "merge_method: ties\nbase_model: DIR/base\nparameters: {weight: 1, density: 1}\nmodels: [{model: DIR/base+DIR/lora}, \
                  {model: DIR/b}]\n";
    let json = measured(folder.path(), config, &["--rank", "layers.0.*q_proj"]);
    let norm = product.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
    // The sum with the base is rounded to bfloat16 nowhere.
    near(&json["whole"]["task_vectors"][0]["norm"], norm, 1e-5);
    assert!(json["ranks"][0]["stable_rank"].as_f64().unwrap() <= 2.001, "{}", json["ranks"]);
    // No density below 1: what trimming would keep is looked at as in the paper.
    assert_eq!(json["density"], json!({ "least": 0.2, "most": 0.2, "of_config": false }));
    // One model's first layer and the other's second one.
    let stacked = "merge_method: linear\nparameters: {weight: 1}\nslices:\n- sources: [{model: DIR/a, layer_range: [0, 1]}, {model: \
                   DIR/b, layer_range: [1, 2]}]\n";
    let norm = "model.layers.0.input_layernorm.weight";
    let mut tensors = all[1].clone();
    tensors.insert(norm.into(), stored(Dtype::BF16, &[24], &[1.0; 24]));
    models::write(&folder.path().join("a"), &tensors, PLAIN);
    let json = measured(folder.path(), stacked, &[]);
    let of_b = values(&all[2][&norm.replace('0', "1")]);
    let found = json["tensors"].as_array().unwrap().iter().find(|tensor| tensor["name"] == norm).unwrap();
    let sum = |value: fn(f64) -> f64| of_b.iter().map(|x| value(f64::from(*x))).sum::<f64>();
    near(&found["pairs"][0]["cosine"], sum(|x| x) / (24.0 * sum(|x| x * x)).sqrt(), 1e-9);
}

#[test]
fn what_cannot_be_compared_is_refused_with_the_way_out() {
    let folder = tempfile::tempdir().unwrap();
    let (_, config) = several(folder.path());
    let fails = |config: &str, flags: &[&str], code, says: &[&str]| {
        drop(run(folder.path(), config, flags).failed(code, says));
    };
    fails(
        "merge_method: linear\nmodels: [{model: DIR/a, parameters: {weight: 1}}]\n",
        &[],
        2,
        &["one model", "hint"],
    );
    fails(
        "merge_method: passthrough\nslices:\n- sources: [{model: DIR/a, layer_range: [0, 1]}]\n- sources: [{model: DIR/b, layer_range: \
         [1, 2]}]\n",
        &[],
        2,
        &["no tensor of this config is merged of two models", "linear"],
    );
    fails(
        "name: x\nmerge_method: linear\nparameters: {weight: 1}\nmodels: [{model: DIR/a}, {model: DIR/b}]\n---\nmerge_method: \
         linear\nparameters: {weight: 1}\nmodels: [{model: x}, {model: DIR/b}]\n",
        &[],
        2,
        &["several documents", "multi"],
    );
    fails(
        "base_model: DIR/base\ngate_mode: random\nexperts: [{source_model: DIR/a}, {source_model: DIR/b}]\n",
        &[],
        2,
        &["mixture of experts", "task_arithmetic"],
    );
    fails(&config, &["--out", "/nowhere/page.html"], 4, &["/nowhere/page.html cannot be written", "--out"]);
    fails(&config, &["--rank", "("], 2, &["--rank"]);
    fails("merge_method: linear\nmodels: [{model: DIR/none, parameters: {weight: 1}}]\n", &[], 2, &["none"]);
    let file = folder.path().join("b/model.safetensors");
    let whole = std::fs::read(&file).unwrap();
    std::fs::write(&file, &whole[..whole.len() - 9]).unwrap();
    fails(&config, &[], 3, &["b"]);
}

/// A watch that wants to stop once so many bytes were measured.
struct Impatient(u64, std::sync::atomic::AtomicU64);

impl Watch for Impatient {
    fn moved(&self, read: u64, _: u64) {
        self.1.fetch_add(read, std::sync::atomic::Ordering::Relaxed);
    }
    fn stop(&self) -> bool {
        self.1.load(std::sync::atomic::Ordering::Relaxed) >= self.0
    }
    fn compiling(&self) {}
    fn less_memory(&self, _: &Error, _: u64, _: u64) {}
}

#[test]
fn the_user_is_heard() {
    let folder = tempfile::tempdir().unwrap();
    let (_, config) = several(folder.path());
    let config = command::config(folder.path(), &config.replace("DIR", folder.path().to_str().unwrap()));
    let prepared = prepare(&config, &Choices::USUAL).unwrap();
    let request = |rank: &[&str]| Request {
        rank: rank.iter().map(|rank| rank.parse().unwrap()).collect(),
        threads: 2,
        ..Request::default()
    };
    let whole = Impatient(u64::MAX, 0.into());
    analyze(&prepared, &request(&[]), &whole).unwrap();
    let all = whole.1.into_inner();
    assert_eq!(all, mergeforge::analyze::measured_bytes(&prepared).unwrap());
    for (stop, rank) in [(0, &[][..]), (all / 2, &[]), (all, &["q_proj"])] {
        let error = analyze(&prepared, &request(rank), &Impatient(stop, 0.into())).unwrap_err();
        assert_eq!(error.kind, Kind::Interrupted, "{error:?}");
    }
    let _: Analysis = analyze(&prepared, &request(&["q_proj"]), &Quiet).unwrap();
}

/// The names of all values, with one of each list.
fn keys(json: &Json, before: &str, into: &mut BTreeSet<String>) {
    match json {
        Json::Object(object) => {
            object.iter().for_each(|(key, value)| keys(value, &format!("{before}.{key}"), into));
        }
        Json::Array(values) if values.iter().any(Json::is_object) => {
            values.iter().for_each(|value| keys(value, &format!("{before}[]"), into));
        }
        _ => drop(into.insert(before.to_owned())),
    }
}

#[test]
fn the_examples_have_what_the_documents_say() {
    let json = example(&[]);
    let mut found = BTreeSet::new();
    keys(&json, "", &mut found);
    // The whole, kinds, layers and tensors have the same measures.
    let groups = [".whole", ".kinds[]", ".layers[]", ".tensors[]"];
    let found = found.iter().map(|key| match groups.iter().find_map(|group| key.strip_prefix(group)) {
        Some(rest) => format!(".*{rest}"),
        None => key.clone(),
    });
    let found: BTreeSet<String> = found.collect();
    insta::assert_snapshot!(found.into_iter().collect::<Vec<_>>().join("\n"), @r#"
    .*.elements
    .*.kind
    .*.layer
    .*.models[].model
    .*.models[].norm
    .*.models[].not_finite
    .*.name
    .*.pairs[].cosine
    .*.pairs[].models
    .*.pairs[].slerp_from_linear
    .*.sample
    .*.task_vector_pairs[].both_changed
    .*.task_vector_pairs[].cosine
    .*.task_vector_pairs[].kept_by_both
    .*.task_vector_pairs[].kept_by_both_by_chance
    .*.task_vector_pairs[].kept_too
    .*.task_vector_pairs[].mass_where_signs_differ
    .*.task_vector_pairs[].models
    .*.task_vector_pairs[].signs_differ
    .*.task_vectors[].kept
    .*.task_vectors[].largest
    .*.task_vectors[].mean_magnitude
    .*.task_vectors[].model
    .*.task_vectors[].norm
    .*.task_vectors[].quantiles.0.1
    .*.task_vectors[].quantiles.0.5
    .*.task_vectors[].quantiles.0.9
    .*.task_vectors[].quantiles.0.99
    .*.task_vectors[].relative
    .*.task_vectors[].share_of_merge
    .*.task_vectors[].zeros
    .*.tensors
    .*.vote.mass_where_signs_differ
    .*.vote.outvoted
    .*.vote.outvoted_of_kept
    .*.vote.signs_differ
    .density.least
    .density.most
    .density.of_config
    .findings[].about
    .findings[].holds
    .findings[].text
    .findings[].threshold
    .findings[].value
    .method
    .models[].base
    .models[].name
    .models[].short
    .not_compared
    .predictions
    .ranks[].effective_rank
    .ranks[].model
    .ranks[].rank_of_90_percent
    .ranks[].shape
    .ranks[].stable_rank
    .ranks[].tensor
    .t.least
    .t.most
    "#);
    // What the case study found by hand: collinear weights, orthogonal task vectors, one of them larger.
    for (about, low, high, holds) in
        [("collinear", 0.98, 1.0, true), ("orthogonal", 0.02, 0.03, true), ("norms", 2.5, 2.7, true)]
    {
        let finding = finding(&json, about);
        assert!((low..high).contains(&finding["value"].as_f64().unwrap()), "{finding}");
        assert_eq!(finding["holds"], holds);
    }
    let text = command::run(["analyze", "examples/ties.yml", "--quiet"]).succeeded().stdout;
    let findings = json["findings"].as_array().unwrap();
    let lines = findings.iter().map(|finding| format!("- {}\n", finding["text"].as_str().unwrap()));
    assert!(text.starts_with(&lines.collect::<String>()), "{text}");
    let slerp = command::run(["analyze", "examples/slerp.yml", "--quiet"]).succeeded().stdout;
    assert!(slerp.contains("nearly collinear") && slerp.contains("t = 0.5"), "{slerp}");
    // What trimming by magnitude keeps is not what masks at random keep.
    let folder = tempfile::tempdir().unwrap();
    let ties = std::fs::read_to_string(Path::new(ROOT).join("examples/ties.yml")).unwrap();
    for (method, says) in [
        ("dare_ties", 2, "dare_ties drops elements at random, large or small."),
        ("della", 2, "della drops elements at random, small ones more often than large ones."),
        ("breadcrumbs_ties", 0, "at random"),
    ]
    .map(|(method, times, says)| (method, (times, says)))
    {
        let file = command::config(
            folder.path(),
            &ties.replace("merge_method: ties", &format!("merge_method: {method}")),
        );
        let text = command::run(["analyze", file.to_str().unwrap(), "--quiet"]).succeeded().stdout;
        assert_eq!(text.matches(says.1).count(), says.0, "{method}: {text}");
    }
}

/// The numbers of the example, with ranks.
fn example(flags: &[&str]) -> Json {
    let fixed = ["analyze", "examples/ties.yml", "--json", "--quiet", "--rank", "q_proj"];
    let ended = command::run([&fixed, flags].concat()).succeeded();
    serde_json::from_str(&ended.stdout).unwrap()
}

/// How far the predictions of models for the texts of the test below agree, with the whole vocabulary kept.
fn agreements(models: &[&str]) -> HashMap<(usize, usize), Agreement> {
    let cut = Cut { window: 128, stride: 128, packed: false, framed: false };
    let form = Form::Text { by_line: true };
    let file = Path::new(ROOT).join("examples/models/texts/medical_valid.txt");
    let texts = Texts::read(&file, form, &Prompt::usual(form, false)).unwrap();
    let opened = |name: &&str| {
        let model =
            Model::new(prepare_model(Path::new(ROOT).join(name).to_str().unwrap(), Remote::Offline).unwrap())
                .unwrap();
        let runner = Runner::open(model.folder()).unwrap();
        let windows = Windows::of(&texts, &runner, None, cut, model.decoder.vocabulary).unwrap();
        (model, vec![windows])
    };
    let opened: Vec<_> = models.iter().map(opened).collect();
    let readings: Vec<_> = opened.iter().map(|(model, sets)| Reading { model, sets }).collect();
    let options = Options { groups: 1, top: 1024, memory: 1 << 30, threads: 2 };
    let mut processor = Processor::new(Sums::Fastest, 2);
    let sets = ["set".into()];
    let parents = Parents::measure(&readings, &sets, &options, &mut processor, &crate::eval::Quiet).unwrap();
    let pairs = (0..models.len()).flat_map(|of| (0..models.len()).map(move |to| (of, to)));
    pairs.map(|pair| (pair, parents.agreement(0, pair, 2))).collect()
}

/// What models make of texts is what `eval` and `predict` find.
#[test]
fn predictions_stand_beside_the_weights() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("page.html");
    let texts = ["--text", "examples/models/texts/medical_valid.txt", "--window", "128", "--lines"];
    let json = example(&[&texts[..], &["--out", file.to_str().unwrap()]].concat());
    let models: Vec<&str> =
        json["models"].as_array().unwrap().iter().map(|model| model["name"].as_str().unwrap()).collect();
    let eval = [&["eval"], &models[..], &texts, &["--json", "--quiet"]].concat();
    let eval: Json = serde_json::from_str(&command::run(eval).succeeded().stdout).unwrap();
    let [set] = &json["predictions"].as_array().unwrap()[..] else { panic!("one set was given") };
    for (place, model) in eval["models"].as_array().unwrap().iter().enumerate() {
        let [theirs, ours] =
            [&model["sets"][0]["loss"], &set["losses"][place]].map(|loss| loss.as_f64().unwrap());
        assert!((theirs - ours).abs() < 1e-4, "{model}");
    }
    let pairs = set["pairs"].as_array().unwrap();
    assert_eq!(pairs.len(), 6, "every two, each way round");
    let expected = agreements(&models);
    for pair in pairs {
        let [divergence, same] =
            [&pair["divergence"], &pair["same_most_likely"]].map(|of| of.as_f64().unwrap());
        assert!((0.05..1.0).contains(&divergence) && (0.3..0.9).contains(&same), "{pair}");
        let place = |key: &str| models.iter().position(|model| pair[key] == **model).unwrap();
        let expected = &expected[&(place("of"), place("to"))];
        near(&pair["divergence"], expected.divergence, 0.01);
        near(&pair["same_most_likely"], expected.same_first, 0.01);
    }
    let page = std::fs::read_to_string(file).unwrap();
    assert!(page.contains("What the models make of texts"));
    assert!(
        page.contains("What is said of texts was measured on them, all else follows from the weights alone.")
    );
    well_formed(&page);
    let refused = command::run(["analyze", "examples/ties.yml", "--quiet", "--text", "/nowhere"]);
    refused.failed(2, &["cannot read /nowhere"]);
}

#[test]
fn a_page_is_whole_by_itself_and_well_formed() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("page.html");
    let json = example(&["--out", file.to_str().unwrap()]);
    let page = std::fs::read_to_string(file).unwrap();
    for part in ["http", "<script", "<link", "<img", "src=", "href=", "@import", "url(", "NaN", "null", ROOT]
    {
        assert!(!page.contains(part), "the page has {part}");
    }
    well_formed(&page);
    for part in [
        "Findings",
        "Layers and modules",
        "Over the layers",
        "Ranks",
        "By tensor",
        "prefers-color-scheme:dark",
    ] {
        assert!(page.contains(part), "no {part}");
    }
    for finding in json["findings"].as_array().unwrap() {
        let text = finding["text"].as_str().unwrap().replace('<', "&lt;").replace('>', "&gt;");
        assert!(page.contains(&text), "{text}");
    }
    // A map of layers and kinds for each task vector and three for the pair, and three charts.
    assert_eq!(page.matches("<svg").count(), 2 + 3 + 3);
    well_formed_page_of("examples/linear.yml", &folder);
}

fn well_formed_page_of(config: &str, folder: &TempDir) {
    let file = folder.path().join("other.html");
    command::run(["analyze", config, "--quiet", "--out", file.to_str().unwrap()]).succeeded();
    well_formed(&std::fs::read_to_string(file).unwrap());
}

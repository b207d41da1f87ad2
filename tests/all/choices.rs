//! The methods that choose elements, against formulas written a second time: `choices_oracle.rs`.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use safetensors::Dtype;

use crate::choices_oracle as formulas;
use crate::methods::{Case, check};
use crate::models::{self, PLAIN, RUN, Random, Tensors, stored, tuned, values, weights};
use crate::oracle::{self, Expected, Family, Model, Thinning};

/// Merges made models with a method, and compares every tensor with what a formula gives of the base and the models.
fn agrees(
    method: &str,
    shared: &str,
    models: RangeInclusive<usize>,
    expected: impl Fn(&Case, &str, &[f32], &[Vec<f32>]) -> Expected,
) {
    for seed in 0..16 {
        let folder = tempfile::tempdir().unwrap();
        let mut case = Case::new(seed);
        case.models.truncate(*models.end());
        case.weights.truncate(*models.end());
        if case.models.len() < *models.start() {
            continue;
        }
        // Probabilities that leave room for an epsilon.
        case.densities =
            (0..case.models.len()).map(|m| [0.5, 1.0, 0.3, 0.0, 0.7][(m + seed as usize) % 5]).collect();
        case.write(folder.path(), seed);
        let config = case.config(folder.path(), method, shared, true);
        models::run(folder.path(), &config, method, models::Run { seed: 9, ..RUN }).unwrap();
        let merged = models::read(&folder.path().join(method));
        assert_eq!(merged.len(), case.base.len());
        for (name, tensor) in &merged {
            let of = |tensors: &Tensors| values(&tensors[name]);
            let models: Vec<Vec<f32>> = case.models.iter().map(of).collect();
            let expected = expected(&case, name, &of(&case.base), &models);
            assert_eq!(tensor.dtype, case.stored_as(name, true), "{name}");
            check(&format!("{method} {{{shared}}} seed {seed}: {name}"), tensor, &expected);
        }
    }
}

/// The vectors that della ranks: how many elements each has, and how far apart they lie.
fn vectors(shape: &[usize]) -> (usize, usize) {
    match shape {
        [] => (1, 1),
        [len] => (*len, 1),
        [_, len, rest @ ..] => (*len, rest.iter().product()),
    }
}

#[test]
fn della_merges_as_the_oracle_does() {
    for (method, vote, normalize) in [("della", true, true), ("della_linear", false, false)] {
        for (shared, lambda, epsilon) in
            [("", 1.0, 0.15), ("lambda: 0.75, epsilon: 0.2999", 0.75, 0.2999), ("epsilon: 0", 1.0, 0.0)]
        {
            agrees(method, shared, 1..=12, |case, name, base, models| {
                let (len, stride) = vectors(&case.base[name].shape);
                let thinning = Thinning::Ranked { seed: 9, epsilon, len, stride };
                let family = Family { thinning, vote, normalize, rescale: true, lambda };
                let model = |(m, values): (usize, &Vec<f32>)| Model {
                    values: values.clone(),
                    weight: case.weights[m],
                    density: case.densities[m],
                };
                let models: Vec<Model> = models.iter().enumerate().map(model).collect();
                oracle::task_vectors(base, &models, &family, name)
            });
        }
    }
}

#[test]
fn sce_merges_as_the_oracle_does() {
    for share in [1.0, 0.5, 0.01, 0.0] {
        let shared = format!("select_topk: {share}");
        agrees("sce", &shared, 1..=12, |_, _, base, models| formulas::sce(base, models, share));
    }
}

#[test]
fn ram_merges_as_the_oracle_does() {
    for epsilon in [1e-5, 0.003] {
        let shared = format!("epsilon: {epsilon}");
        agrees("ram", &shared, 1..=12, |_, _, base, models| formulas::ram(base, models, epsilon, None));
        for alpha in [0.75, -0.5] {
            let shared = format!("epsilon: {epsilon}, r: 0.5, alpha: {alpha}");
            agrees("ramplus_tl", &shared, 1..=12, |_, _, base, models| {
                formulas::ram(base, models, epsilon, Some((0.5, alpha)))
            });
        }
    }
}

#[test]
fn ram_refuses_what_would_make_a_change_of_none() {
    let folder = tempfile::tempdir().unwrap();
    let case = Case::new(1);
    case.write(folder.path(), 1);
    for method in ["ram", "ramplus_tl"] {
        let config = case.config(folder.path(), method, "epsilon: -1e-9", true);
        let error = models::run(folder.path(), &config, method, models::RUN).unwrap_err().to_string();
        assert!(
            error.contains("with epsilon -0.000000001, what no model has changed would count"),
            "{error}"
        );
    }
}

#[test]
fn nearswap_merges_as_the_oracle_does() {
    for t in [0.0, 1e-7, 0.002, 0.5, -1.0] {
        let shared = format!("t: {t}");
        agrees("nearswap", &shared, 1..=1, |_, _, base, models| formulas::nearswap(base, &models[0], t));
    }
}

#[test]
fn arcee_fusion_merges_as_the_oracle_does() {
    agrees("arcee_fusion", "", 1..=1, |case, name, base, models| {
        let columns = case.base[name].shape.last().copied().unwrap_or(1);
        formulas::arcee_fusion(base, &models[0], columns)
    });
}

#[test]
fn the_elected_merge_as_the_oracle_does() {
    let shared = "lambda: 0.8";
    agrees("magmax", shared, 1..=12, |case, _, base, models| {
        formulas::magmax(base, models, &case.weights, 0.8)
    });
    agrees("emr", shared, 1..=12, |case, _, base, models| formulas::emr(base, models, &case.weights, 0.8));
    for agree in [1, 2, 3] {
        let shared = format!("lambda: 0.8, tall: 0.3, agree: {agree}");
        agrees("consensus", &shared, agree..=12, |case, _, base, models| {
            formulas::consensus(base, models, &case.weights, (0.8, 0.3, agree))
        });
    }
}

/// The value of an element's task vector: `i` counts elements, `m` models.
type Delta = fn(random: &mut Random, i: usize, m: usize) -> f32;

/// What task vectors are like that selections have trouble with.
const AWKWARD: [(&str, Delta); 8] = [
    ("alike", |_, _, _| 0.25),
    ("two", |_, i, m| if (i + m).is_multiple_of(3) { 0.5 } else { -0.25 }),
    ("zeros", |_, _, _| 0.0),
    ("rare", |random, i, _| if i.is_multiple_of(50) { random.normal() as f32 } else { 0.0 }),
    ("tiny", |random, _, _| random.normal() as f32 * 1e-20),
    ("steps", |random, _, _| (random.normal() * 2.0).round() as f32 / 64.0),
    ("any", |random, _, _| random.normal() as f32),
    ("odd", |random, i, m| match (i + 7 * m) % 97 {
        0 => f32::NAN,
        1 => f32::INFINITY,
        2 => f32::NEG_INFINITY,
        _ => random.normal() as f32,
    }),
];

/// One element, none, odd rows, three dimensions, one huge row, and rows on both sides of a tile.
const SHAPES: [&[usize]; 9] =
    [&[1], &[], &[1, 1], &[3, 7], &[2, 5, 9], &[70_001], &[5, 1025], &[1024, 3], &[40, 1, 33]];

const WEIGHTS: [f64; 3] = [0.5, 1.0, -0.25];

/// What a formula gives of the base, the models, a tensor's name and its shape.
type Formula = Box<dyn Fn(&[f32], &[Vec<f32>], &str, &[usize]) -> Expected>;

fn of_family(
    density: f64,
    thinning: impl Fn(&[usize]) -> Thinning + 'static,
    (vote, normalize): (bool, bool),
) -> Formula {
    Box::new(move |base, models, name, shape| {
        let family = Family { thinning: thinning(shape), vote, normalize, rescale: false, lambda: 1.0 };
        let model =
            |(m, values): (usize, &Vec<f32>)| Model { values: values.clone(), weight: WEIGHTS[m], density };
        oracle::task_vectors(base, &models.iter().enumerate().map(model).collect::<Vec<_>>(), &family, name)
    })
}

fn banded(density: f64, gamma: f64, vote: bool) -> Formula {
    of_family(density, move |_| Thinning::Outliers { gamma }, (vote, false))
}

/// Methods with parameters, how many models they merge, and their formulas.
fn selections() -> Vec<(&'static str, &'static str, usize, Formula)> {
    let ranked = |shape: &[usize]| {
        let (len, stride) = vectors(shape);
        Thinning::Ranked { seed: 0, epsilon: 0.4, len, stride }
    };
    let sce = || -> Formula { Box::new(|base, models, _, _| formulas::sce(base, models, 0.3)) };
    let ram = || -> Formula { Box::new(|base, models, _, _| formulas::ram(base, models, 0.1, None)) };
    let ramplus =
        || -> Formula { Box::new(|base, models, _, _| formulas::ram(base, models, 0.1, Some((0.1, 0.2)))) };
    let fusion = || -> Formula {
        Box::new(|base, models, _, shape| {
            formulas::arcee_fusion(base, &models[0], shape.last().copied().unwrap_or(1))
        })
    };
    vec![
        ("breadcrumbs", "density: 0.5, gamma: 0.1", 3, banded(0.5, 0.1, false)),
        ("breadcrumbs_ties", "density: 0.5, gamma: 0.1", 3, banded(0.5, 0.1, true)),
        ("breadcrumbs_ties", "density: 0.9, gamma: 0.3", 3, banded(0.9, 0.3, true)),
        ("breadcrumbs", "density: 0.02, gamma: 0.9", 3, banded(0.02, 0.9, false)),
        ("della", "density: 0.5, rescale: false, epsilon: 0.4", 3, of_family(0.5, ranked, (true, true))),
        ("sce", "select_topk: 0.3", 3, sce()),
        ("sce", "select_topk: 0.3", 1, sce()),
        ("ram", "epsilon: 0.1", 3, ram()),
        ("ramplus_tl", "epsilon: 0.1", 3, ramplus()),
        ("arcee_fusion", "", 1, fusion()),
    ]
}

/// Three models around a base of zeros, where differences are what they were made as: every kind of task vector in every shape.
fn awkward_models() -> (Tensors, Vec<Tensors>) {
    let (mut base, mut models) = (Tensors::new(), vec![Tensors::new(); 3]);
    for (kind, (kind_name, delta)) in AWKWARD.iter().enumerate() {
        for (at, shape) in SHAPES.iter().enumerate() {
            let elements: usize = shape.iter().product();
            let name = format!("model.layers.{kind}.{kind_name}{at}");
            base.insert(name.clone(), stored(Dtype::F32, shape, &vec![0.0; elements]));
            for (m, model) in models.iter_mut().enumerate() {
                let mut random = Random((100 * kind + 10 * at + m) as u64);
                let values: Vec<f32> = (0..elements).map(|i| delta(&mut random, i, m)).collect();
                model.insert(name.clone(), stored(Dtype::F32, shape, &values));
            }
        }
    }
    (base, models)
}

/// Merges models (their folders and tensors, the base first) in all of these ways. Elements of which an input is not finite come
/// out not finite; the others are those of the oracle.
fn merge_as_the_oracle_says(models: &[(PathBuf, Tensors)]) {
    let folder = tempfile::tempdir().unwrap();
    let ((base_folder, base), tuned) = models.split_first().unwrap();
    for (at, (method, parameters, most, formula)) in selections().into_iter().enumerate() {
        let tuned = &tuned[..most.min(tuned.len())];
        let model = |(m, (path, _)): (usize, &(PathBuf, Tensors))| {
            format!("  - {{model: {}, parameters: {{weight: {}}}}}\n", path.display(), WEIGHTS[m])
        };
        let config = format!(
            "merge_method: {method}\nbase_model: {}\ndtype: float32\nparameters: {{{parameters}}}\nmodels:\n{}",
            base_folder.display(),
            tuned.iter().enumerate().map(model).collect::<String>()
        );
        let out = format!("out{at}");
        models::run(folder.path(), &config, &out, RUN).unwrap();
        for (name, tensor) in models::read(&folder.path().join(&out)) {
            let inputs: Vec<Vec<f32>> = tuned.iter().map(|(_, model)| values(&model[&name])).collect();
            let merged = values(&tensor);
            let (finite, odd): (Vec<usize>, Vec<usize>) =
                (0..merged.len()).partition(|i| inputs.iter().all(|input| input[*i].is_finite()));
            // A model of which nothing is kept is not read: of few elements 2 % are none, and one model has no variance.
            let is_read = merged.len() >= 50 && (method, tuned.len()) != ("sce", 1);
            for i in odd.iter().filter(|_| is_read) {
                assert!(!merged[*i].is_finite(), "{method} {name}[{i}]: {}", merged[*i]);
            }
            // The sums of all others are lost with one element.
            if !odd.is_empty() && method == "sce" {
                continue;
            }
            let expected = formula(&values(&base[&name]), &inputs, &name, &tensor.shape);
            let pick = |all: &[f64]| finite.iter().map(|i| all[*i]).collect();
            let expected = Expected { exact: pick(&expected.exact), slack: pick(&expected.slack) };
            let part: Vec<f32> = finite.iter().map(|i| merged[*i]).collect();
            let part = stored(Dtype::F32, &[part.len()], &part);
            check(&format!("{method} {{{parameters}}} {name}"), &part, &expected);
        }
    }
}

#[test]
fn awkward_task_vectors_merge_as_the_oracle_says() {
    let folder = tempfile::tempdir().unwrap();
    let (base, tuned) = awkward_models();
    let written = |(m, tensors): (usize, Tensors)| {
        let path = folder.path().join(format!("m{m}"));
        models::write(&path, &tensors, PLAIN);
        (path, tensors)
    };
    let all: Vec<_> = std::iter::once(base).chain(tuned).enumerate().map(written).collect();
    merge_as_the_oracle_says(&all);
}

#[test]
fn the_examples_merge_as_the_oracle_says() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/models");
    let all =
        ["base", "medical", "chat"].map(|name| (examples.join(name), models::read(&examples.join(name))));
    merge_as_the_oracle_says(&all);
}

/// `lines_alpha` scales by the layer, and balanced weights are in inverse proportion to the task vectors' norms.
#[test]
fn layers_are_scaled_and_weights_balanced() {
    let folder = tempfile::tempdir().unwrap();
    let layers = 5;
    let name = |layer: usize| format!("model.layers.{layer}.w");
    let base: Tensors =
        (0..layers).map(|l| (name(l), stored(Dtype::F32, &[40, 50], &weights(2000, l as u64)))).collect();
    let moved = |m: usize, of: &Tensors| -> Tensors {
        let far = |values: &[f32], near: Vec<f32>| -> Vec<f32> {
            values.iter().zip(near).map(|(b, x)| b + (x - b) * (1 + 3 * m) as f32).collect()
        };
        let tensor = |(l, (name, tensor)): (usize, (&String, &models::Stored))| {
            let values = values(tensor);
            let near = tuned(&values, (10 * l + m) as u64);
            (name.clone(), stored(Dtype::F32, &[40, 50], &far(&values, near)))
        };
        of.iter().enumerate().map(tensor).collect()
    };
    let tuned: Vec<Tensors> = (0..2).map(|m| moved(m, &base)).collect();
    models::write(&folder.path().join("base"), &base, PLAIN);
    tuned
        .iter()
        .enumerate()
        .for_each(|(m, model)| models::write(&folder.path().join(format!("m{m}")), model, PLAIN));
    for (at, (method, parameters, balance, lines)) in [
        ("task_arithmetic", "balance: 1", 1.0, None),
        ("task_arithmetic", "balance: 0.5, lines_alpha: 0.2, lines_beta: 0.5", 0.5, Some((0.2, 0.5))),
        ("ties", "balance: 1, lines_alpha: 0.3", 1.0, Some((0.3, 0.7))),
        ("breadcrumbs_ties", "lines_alpha: 0.3, gamma: 0", 0.0, Some((0.3, 0.7))),
    ]
    .into_iter()
    .enumerate()
    {
        let model = |m: usize| format!("  - {{model: {}}}\n", folder.path().join(format!("m{m}")).display());
        let config = format!(
            "merge_method: {method}\nbase_model: {}\nparameters: {{weight: 0.6, {parameters}}}\nmodels:\n{}{}",
            folder.path().join("base").display(),
            model(0),
            model(1)
        );
        let out = format!("out{at}");
        models::run(folder.path(), &config, &out, RUN).unwrap();
        for (layer, (name, tensor)) in models::read(&folder.path().join(&out)).iter().enumerate() {
            let base = values(&base[name]);
            let models: Vec<Vec<f32>> = tuned.iter().map(|model| values(&model[name])).collect();
            let norm = |x: &Vec<f32>| {
                x.iter().zip(&base).map(|(x, b)| (x - b) * (x - b)).map(f64::from).sum::<f64>().sqrt()
            };
            let factors: Vec<f64> = models.iter().map(|x| norm(x).powf(-balance)).collect();
            let mean = factors.iter().sum::<f64>() / 2.0;
            let depth = layer as f64 / (layers - 1) as f64;
            let lambda = lines.map_or(1.0, |(alpha, beta)| alpha + beta * depth);
            let model = |(m, values): (usize, &Vec<f32>)| Model {
                values: values.clone(),
                weight: 0.6 * factors[m] / mean,
                density: 1.0,
            };
            let (vote, normalize) = (method != "task_arithmetic", method == "ties");
            let family = Family { thinning: Thinning::None, vote, normalize, rescale: false, lambda };
            let models: Vec<Model> = models.iter().enumerate().map(model).collect();
            let mut expected = oracle::task_vectors(&base, &models, &family, name);
            // Norms are sums of squares in f32.
            expected.slack.iter_mut().for_each(|slack| *slack *= 4.0);
            check(&format!("{method} {{{parameters}}} {name}"), tensor, &expected);
        }
    }
}

/// A model that is left out has its part of the divisor still, with balanced weights as without.
#[test]
fn balance_changes_nothing_where_one_model_takes_part() {
    let folder = tempfile::tempdir().unwrap();
    let base = Tensors::from([("w".into(), stored(Dtype::F32, &[30, 40], &weights(1200, 1)))]);
    let moved = Tensors::from([("w".into(), stored(Dtype::F32, &[30, 40], &tuned(&values(&base["w"]), 2)))]);
    for (name, tensors) in [("base", &base), ("a", &moved), ("b", &moved)] {
        models::write(&folder.path().join(name), tensors, PLAIN);
    }
    let path = |name: &str| folder.path().join(name).display().to_string();
    let merged = |out: &str, more: &str| {
        let config = format!(
            "merge_method: breadcrumbs\nbase_model: {}\nparameters: {{weight: 1, normalize: true{more}}}\nmodels:\n  - {{model: {}, parameters: {{density: 0}}}}\n  - {{model: {}, parameters: {{density: 1}}}}\n",
            path("base"),
            path("a"),
            path("b")
        );
        models::run(folder.path(), &config, out, RUN).unwrap();
        models::read(&folder.path().join(out))
    };
    assert_eq!(merged("with", ", balance: 1"), merged("without", ""));
}

#[test]
fn what_would_do_nothing_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let base = Tensors::from([("w".into(), stored(Dtype::F32, &[8], &weights(8, 1)))]);
    for name in ["base", "a"] {
        models::write(&folder.path().join(name), &base, PLAIN);
    }
    for (method, parameters, says) in [
        ("consensus", "agree: 2", "agree is 2, and the number of models besides the base is 1"),
        ("consensus", "agree: 0", "agree is 0"),
        ("ties", "weight: 1, lines_beta: 0.5", "lines_beta does nothing without lines_alpha"),
        ("della", "weight: 1, density: 0.5, epsilon: -0.1", "/a: epsilon -0.1 is below 0"),
        ("della", "weight: 1, density: 0.5, epsilon: 0.5", "have to be above 0 and below 1"),
    ] {
        let config = format!(
            "merge_method: {method}\nbase_model: {}\nparameters: {{{parameters}}}\nmodels:\n  - model: {}\n",
            folder.path().join("base").display(),
            folder.path().join("a").display()
        );
        let error = models::run(folder.path(), &config, "out", RUN).unwrap_err();
        assert!(error.message.contains(says), "{method} {{{parameters}}}: {}", error.message);
    }
}

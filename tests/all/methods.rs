//! Every method against the oracle, in two parts: decisions are equal, values are within the contract's bound.

use std::path::Path;

use mergeforge::error::Kind;
use mergeforge::kernel::thinning::Keep;
use mergeforge::kernel::{Job, Outcome, TILE, Target};
use mergeforge::method::{self, METHODS, Settings, Value};
use mergeforge::recipe::{Measured, Pass, Recipe, TileCounts};
use safetensors::Dtype;

use crate::eval;
use crate::models::{self, Form, PLAIN, RUN, Random, Stored, Tensors, stored, tuned, values, weights};
use crate::oracle::{self, Expected, Family, Model, Thinning};

/// Runs a recipe on tensors in memory and returns the combining pass, which holds every decision.
fn solve(settings: &Settings, name: &str, inputs: &[&[f32]]) -> (Vec<usize>, Job) {
    let Ok(Recipe::Passes(passes)) = (method::find(name).unwrap().recipe)(settings) else {
        panic!("{name} makes passes")
    };
    let mut machine = passes.begin();
    let mut measured = Measured::Nothing;
    loop {
        match machine.next(measured).unwrap().expect("the last pass combines") {
            Pass::Combine { reads, job } => return (reads, job),
            Pass::Mend { .. } => unreachable!("what was not guessed is not mended"),
            Pass::Measure { reads, job, over, .. } => {
                let inputs: Vec<&[f32]> = reads.iter().map(|i| inputs[*i]).collect();
                measured = measure(&job, &inputs, over.into_iter().flatten());
            }
        }
    }
}

/// Measures tile by tile, each tile a record of its own.
fn measure(job: &Job, inputs: &[&[f32]], tiles: impl Iterator<Item = u64>) -> Measured {
    let (mut totals, mut records, mut all) = (Vec::new(), Vec::new(), Vec::new());
    for tile in tiles {
        let first = tile as usize * TILE;
        let len = TILE.min(inputs[0].len() - first);
        let x: Vec<&[f32]> = inputs.iter().map(|input| &input[first..first + len]).collect();
        match job.outcome() {
            Outcome::Sums { words } => {
                let mut sums = vec![0.0; words];
                job.plain(tile, &x, Target::Sums(&mut sums));
                totals.resize(words, 0.0);
                totals.iter_mut().zip(sums).for_each(|(total, sum): (&mut f64, _)| *total += f64::from(sum));
            }
            Outcome::Counts { words } => {
                let mut counts = vec![0; words];
                job.plain(tile, &x, Target::Words(&mut counts));
                records.push(TileCounts { tiles: tile..tile + 1, counts });
            }
            Outcome::Words { words } => {
                let mut own = vec![0; words * len];
                job.plain(tile, &x, Target::Words(&mut own));
                all.extend(own);
            }
            Outcome::Values | Outcome::Room => panic!("{} does not measure", job.kernel()),
        }
    }
    match job.outcome() {
        Outcome::Sums { .. } => Measured::Sums(totals),
        Outcome::Counts { .. } => Measured::Counts(records),
        _ => Measured::Words(all),
    }
}

fn settings(
    inputs: usize,
    elements: usize,
    shared: &[(&'static str, Value)],
    per_input: &[Vec<(&'static str, Value)>],
) -> Settings {
    Settings {
        tensor: "t".into(),
        seed: 5,
        depth: 0.0,
        shape: [elements].into(),
        elements: elements as u64,
        inputs,
        base: Some(0),
        shared: shared.to_vec().into(),
        per_input: std::iter::once(Vec::new()).chain(per_input.iter().cloned()).collect::<Vec<_>>().into(),
    }
}

fn family(normalize: bool, rescale: bool, lambda: f64) -> [(&'static str, Value); 7] {
    [
        ("normalize", Value::Flag(normalize)),
        ("rescale", Value::Flag(rescale)),
        ("lambda", Value::Number(lambda)),
        ("int8_mask", Value::Flag(false)),
        ("balance", Value::Null),
        ("lines_alpha", Value::Null),
        ("lines_beta", Value::Null),
    ]
}

/// Task vectors of every kind of magnitude distribution that has caused trouble.
fn deltas(kind: usize, elements: usize, seed: u64) -> Vec<f32> {
    let mut random = Random(seed);
    let mut delta = move || match kind {
        0 => random.normal() as f32,
        1 => (random.normal() * 2.0).round() as f32 * 2f32.powi(-12),
        2 => 0.0,
        3 => {
            if random.next().is_multiple_of(10) {
                random.normal() as f32
            } else {
                0.0
            }
        }
        4 => 0.25f32.copysign(random.normal() as f32),
        5 => f32::from_bits(random.next() as u32 & 0x807f_ffff | (random.next() as u32 % 256) << 23),
        6 => f32::from_bits(random.next() as u32 % 3),
        _ => {
            2f32.powi(random.next() as i32 % 60)
                * if random.next().is_multiple_of(2) { 1.0 } else { 1.000_000_1 }
        }
    };
    (0..elements).map(|_| delta()).collect()
}

#[test]
fn selection_keeps_exactly_the_largest_with_ties_from_the_lowest_index() {
    for elements in [1, 2, 7, 1023, 1024, 1025, 16 * 1024, 16 * 1024 + 1, 40_000, 300_000] {
        for kind in 0..8 {
            let delta = deltas(kind, elements, 11 + kind as u64);
            let base = vec![0.0; elements];
            for density in [1e-9, 0.01, 0.1, 0.5, 0.77, 0.999] {
                let own = vec![vec![("weight", Value::Number(1.0)), ("density", Value::Number(density))]];
                let settings = settings(2, elements, &family(true, false, 1.0), &own);
                let (_, job) = solve(&settings, "ties", &[&base, &delta]);
                let Job::Consensus(job) = job else { panic!("ties votes") };
                let Keep::Trim(trim) = job.models[0].keep else { panic!("ties trims") };
                let expected = oracle::largest(&delta, density);
                let cut = u64::from(trim.cut_tile) * TILE as u64 + u64::from(trim.cut_lane);
                for (i, (delta, expected)) in delta.iter().zip(&expected).enumerate() {
                    let key = mergeforge::kernel::key(*delta);
                    let kept = key > trim.threshold || (key == trim.threshold && (i as u64) < cut);
                    // Where the k-th magnitude is 0 the tie rule does not matter: zeros add nothing.
                    assert!(
                        kept == *expected || *delta == 0.0,
                        "kind {kind}, {elements} at {density}: element {i}"
                    );
                }
            }
        }
    }
}

/// The k-th magnitude is one that the sample has not shown, next to one that it has.
#[test]
fn selection_finds_a_rare_magnitude_between_common_ones() {
    let elements = 300_000;
    let base = vec![0.0; elements];
    let mut delta: Vec<f32> = (0..elements).map(|i| if i % 2 == 0 { 1.0 } else { 0.5 }).collect();
    for rare in [0.5f32.next_up(), 0.75, 1.0f32.next_down()] {
        delta[77_777] = rare;
        let density = (elements / 2 + 1) as f64 / elements as f64;
        let own = vec![vec![("weight", Value::Number(1.0)), ("density", Value::Number(density))]];
        let settings = settings(2, elements, &family(true, false, 1.0), &own);
        let (_, job) = solve(&settings, "ties", &[&base, &delta]);
        let Job::Consensus(job) = job else { panic!("ties votes") };
        let Keep::Trim(trim) = job.models[0].keep else { panic!("ties trims") };
        assert_eq!(f32::from_bits(trim.threshold), rare);
    }
}

#[test]
fn masks_and_scales_are_those_of_the_oracle() {
    let elements = 10_000;
    let base = weights(elements, 1);
    let models: Vec<Model> = [(0.3, 0.5), (1.0, 0.9), (-0.7, 0.25)]
        .iter()
        .zip(2..)
        .map(|(&(weight, density), seed)| Model { values: tuned(&base, seed), weight, density })
        .collect();
    let rule = Family {
        thinning: Thinning::Random { seed: 5 },
        vote: true,
        normalize: false,
        rescale: true,
        lambda: 1.0,
    };
    let expected = oracle::thinned(&base, &models, &rule, "t");
    let own: Vec<_> = models
        .iter()
        .map(|m| vec![("weight", Value::Number(m.weight)), ("density", Value::Number(m.density))])
        .collect();
    let inputs: Vec<&[f32]> =
        std::iter::once(base.as_slice()).chain(models.iter().map(|m| m.values.as_slice())).collect();
    let (_, job) = solve(&settings(4, elements, &family(false, true, 1.0), &own), "dare_ties", &inputs);
    let Job::Consensus(job) = job else { panic!("dare_ties votes") };
    for (model, (keep, coefficient)) in job.models.iter().zip(expected) {
        assert_eq!(model.coefficient, coefficient as f32);
        let Keep::Random(mask_rule) = model.keep else { panic!("dare drops") };
        for (tile, keep) in keep.chunks(TILE).enumerate() {
            let mask = mask_rule.draw(tile as u64);
            let kept: Vec<bool> = (0..keep.len()).map(|i| mask[i % 32] >> (i / 32) & 1 == 1).collect();
            assert_eq!(kept, keep);
        }
    }
}

#[test]
fn slerp_takes_the_branch_and_the_coefficients_of_the_oracle() {
    let base = weights(5000, 1);
    let far = weights(5000, 2);
    let opposite: Vec<f32> = base.iter().map(|b| -b).collect();
    let near_threshold: Vec<f32> = base.iter().zip(&far).map(|(b, f)| b + 0.0316 * f).collect();
    let zero = vec![0.0; 5000];
    for other in [&far, &opposite, &near_threshold, &base, &zero] {
        for t in [0.0, 0.3, 0.5, 1.0, 1.5, -0.5] {
            let shared = [("t", Value::Number(t))];
            let (reads, job) = solve(&settings(2, 5000, &shared, &[Vec::new()]), "slerp", &[&base, other]);
            let Job::WeightedSum(job) = job else { panic!("slerp adds") };
            let (linear, coefficients) = oracle::slerp_coefficients(&base, other, t);
            assert_eq!(job.anchored, linear, "t {t}");
            let anchor_needed = linear && coefficients[1] != 1.0;
            let used: Vec<usize> =
                (0..2).filter(|i| coefficients[*i] as f32 != 0.0 || (*i == 0 && anchor_needed)).collect();
            assert_eq!(reads, used, "t {t}: an input with coefficient 0 is not read");
            for (c, i) in job.coefficients.iter().zip(used) {
                assert!((f64::from(*c) - coefficients[i]).abs() <= 1e-6 * coefficients[i].abs(), "t {t}");
            }
        }
    }
}

/// Compares a merged tensor with what the oracle expects, element by element.
pub fn check(name: &str, merged: &Stored, expected: &Expected) {
    for (i, ((value, exact), slack)) in
        values(merged).iter().zip(&expected.exact).zip(&expected.slack).enumerate()
    {
        let error = (f64::from(*value) - exact).abs();
        let bound = half_ulp(merged.dtype, *exact) + slack;
        assert!(error <= bound, "{name}[{i}]: {value}, exactly {exact}; off by {error:e}, allowed {bound:e}");
    }
}

/// Half the distance of neighbouring values of a type around `x`.
fn half_ulp(dtype: Dtype, x: f64) -> f64 {
    let (bits, lowest) = match dtype {
        Dtype::F32 => (23, -126),
        Dtype::F16 => (10, -14),
        _ => (7, -126),
    };
    let exponent = if x == 0.0 { lowest } else { (x.abs().log2().floor() as i32).max(lowest) };
    2f64.powi(exponent - bits - 1)
}

/// A merge of made models: shapes, types, forms and numbers drawn from a seed.
pub struct Case {
    pub base: Tensors,
    pub models: Vec<Tensors>,
    pub weights: Vec<f64>,
    pub densities: Vec<f64>,
    dtype: Option<Dtype>,
}

const DTYPES: [Dtype; 3] = [Dtype::BF16, Dtype::F16, Dtype::F32];

impl Case {
    pub fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let mut pick = |n: usize| (random.next() % n as u64) as usize;
        let models = 1 + pick(5);
        let shapes: [&[usize]; 8] = [&[1], &[], &[3, 5], &[1024], &[33, 61], &[20, 1111], &[7], &[4, 6, 50]];
        let mixed = pick(2) == 0;
        let plain = DTYPES[pick(3)];
        let mut dtypes = |_: usize| if mixed { DTYPES[pick(3)] } else { plain };
        let mut case = Self {
            base: Tensors::new(),
            models: vec![Tensors::new(); models],
            weights: Vec::new(),
            densities: Vec::new(),
            dtype: None,
        };
        for (i, shape) in shapes.iter().enumerate() {
            let name = if i < 4 { format!("model.layers.{}.t{i}", i % 2) } else { format!("loose{i}") };
            let elements = shape.iter().product::<usize>();
            let base = weights_of(i, elements, seed);
            case.base.insert(name.clone(), stored(dtypes(i), shape, &base));
            for (m, model) in case.models.iter_mut().enumerate() {
                // One tensor is the base's own in every model: zero deltas.
                let moved = if i == 4 { base.clone() } else { tuned(&base, seed * 31 + m as u64) };
                model.insert(name.clone(), stored(dtypes(i), shape, &moved));
            }
        }
        case.weights = (0..models).map(|_| [0.5, 1.0, -0.3, 0.0, 0.25][pick(5)]).collect();
        case.densities = (0..models).map(|_| [0.0, 0.01, 0.5, 1.0, 0.3][pick(5)]).collect();
        case.dtype = [None, Some(Dtype::BF16), Some(Dtype::F16), Some(Dtype::F32)][pick(4)];
        case
    }

    pub fn write(&self, folder: &Path, seed: u64) {
        let form = |i: u64| Form {
            shards: 1 + ((seed + i) % 3) as usize,
            reversed: (seed + i) % 2 == 1,
            tied: false,
        };
        models::write(&folder.join("base"), &self.base, form(0));
        for (i, model) in self.models.iter().enumerate() {
            models::write(&folder.join(format!("m{i}")), model, form(i as u64 + 1));
        }
    }

    fn dtype_line(&self) -> String {
        match self.dtype {
            None => String::new(),
            Some(Dtype::BF16) => "dtype: bfloat16\n".into(),
            Some(Dtype::F16) => "dtype: float16\n".into(),
            Some(_) => "dtype: float32\n".into(),
        }
    }

    pub fn config(&self, folder: &Path, method: &str, shared: &str, base: bool) -> String {
        let mut config = format!("merge_method: {method}\n{}parameters: {{{shared}}}\n", self.dtype_line());
        if base {
            config += &format!("base_model: {}\n", folder.join("base").display());
        }
        config += "models:\n";
        for (i, (weight, density)) in self.weights.iter().zip(&self.densities).enumerate() {
            config += &format!(
                "  - model: {}\n    parameters: {{weight: {weight}, density: {density}}}\n",
                folder.join(format!("m{i}")).display()
            );
        }
        config
    }

    /// The type the contract stores a tensor in.
    pub fn stored_as(&self, name: &str, with_base: bool) -> Dtype {
        let base = with_base.then(|| self.base[name].dtype);
        let all: Vec<Dtype> = base.into_iter().chain(self.models.iter().map(|m| m[name].dtype)).collect();
        let promoted = if all.iter().all(|dtype| *dtype == all[0]) { all[0] } else { Dtype::F32 };
        self.dtype.unwrap_or(promoted)
    }
}

fn weights_of(i: usize, elements: usize, seed: u64) -> Vec<f32> {
    weights(elements, seed * 7 + i as u64)
}

#[test]
fn the_family_of_task_arithmetic_merges_as_the_oracle_does() {
    let members = [
        ("task_arithmetic", Thinning::None, false, false, false),
        ("ties", Thinning::Magnitude, true, true, false),
        ("dare_linear", Thinning::Random { seed: 9 }, false, false, true),
        ("dare_ties", Thinning::Random { seed: 9 }, true, false, true),
        ("breadcrumbs", Thinning::Outliers { gamma: 0.03 }, false, false, false),
        ("breadcrumbs_ties", Thinning::Outliers { gamma: 0.6 }, true, false, false),
    ];
    for seed in 0..24 {
        let folder = tempfile::tempdir().unwrap();
        let case = Case::new(seed);
        case.write(folder.path(), seed);
        for (method, thinning, vote, mut normalize, mut rescale) in members {
            let mut shared = String::new();
            let mut lambda = 1.0;
            if seed % 3 == 1 {
                (normalize, rescale, lambda) = (!normalize, !rescale, 0.75);
                shared = format!("normalize: {normalize}, rescale: {rescale}, lambda: {lambda}");
            }
            if let Thinning::Outliers { gamma } = thinning {
                shared += &format!("{}gamma: {gamma}", if shared.is_empty() { "" } else { ", " });
            }
            let rule = Family { thinning, vote, normalize, rescale, lambda };
            let config = case.config(folder.path(), method, &shared, true);
            models::run(folder.path(), &config, method, models::Run { seed: 9, ..RUN }).unwrap();
            let merged = models::read(&folder.path().join(method));
            assert_eq!(merged.len(), case.base.len());
            for (name, tensor) in &merged {
                let own = |(m, tensors): (usize, &Tensors)| Model {
                    values: values(&tensors[name]),
                    weight: case.weights[m],
                    density: case.densities[m],
                };
                let models: Vec<Model> = case.models.iter().enumerate().map(own).collect();
                let expected = oracle::task_vectors(&values(&case.base[name]), &models, &rule, name);
                assert_eq!(tensor.dtype, case.stored_as(name, true), "{name}");
                assert_eq!(tensor.shape, case.base[name].shape);
                check(&format!("{method} seed {seed}: {name}"), tensor, &expected);
            }
        }
    }
}

#[test]
fn linear_merges_as_the_oracle_does() {
    for seed in 0..24 {
        let folder = tempfile::tempdir().unwrap();
        let mut case = Case::new(seed);
        case.weights[0] = 0.4;
        case.write(folder.path(), seed);
        for normalize in [true, false] {
            let sum: f64 = case.weights.iter().sum();
            if normalize && sum.abs() < 1e-6 {
                continue;
            }
            let out = format!("linear-{normalize}");
            let config = case.config(folder.path(), "linear", &format!("normalize: {normalize}"), false);
            models::run(folder.path(), &config, &out, RUN).unwrap();
            for (name, tensor) in models::read(&folder.path().join(&out)) {
                let inputs: Vec<Vec<f32>> = case.models.iter().map(|m| values(&m[&name])).collect();
                let inputs: Vec<&[f32]> = inputs.iter().map(Vec::as_slice).collect();
                assert_eq!(tensor.dtype, case.stored_as(&name, false), "{name}");
                check(
                    &format!("linear seed {seed}: {name}"),
                    &tensor,
                    &oracle::linear(&inputs, &case.weights, normalize),
                );
            }
        }
    }
}

#[test]
fn slerp_merges_as_the_oracle_does() {
    for seed in 0..12 {
        let folder = tempfile::tempdir().unwrap();
        let mut case = Case::new(seed);
        if seed % 2 == 0 {
            // Far apart, so that the interpolation is spherical.
            for tensor in case.models[0].values_mut() {
                *tensor = stored(
                    tensor.dtype,
                    &tensor.shape.clone(),
                    &weights(tensor.shape.iter().product(), seed + 500),
                );
            }
        }
        case.write(folder.path(), seed);
        let t = [0.0, 0.5, 1.0, 0.3, 1.5][seed as usize % 5];
        let config = format!(
            "merge_method: slerp\n{}base_model: {base}\nparameters: {{t: {t}}}\nmodels:\n  - model: {}\n  - model: {base}\n",
            case.dtype_line(),
            folder.path().join("m0").display(),
            base = folder.path().join("base").display(),
        );
        models::run(folder.path(), &config, "slerp", RUN).unwrap();
        for (name, tensor) in models::read(&folder.path().join("slerp")) {
            let (base, other) = (values(&case.base[&name]), values(&case.models[0][&name]));
            check(&format!("slerp seed {seed}: {name}"), &tensor, &oracle::slerp(&base, &other, t));
        }
    }
}

#[test]
fn passthrough_copies_bytes_or_scales() {
    let folder = tempfile::tempdir().unwrap();
    let mut tensors = Case::new(3).base;
    tensors.insert("buffer".into(), Stored { dtype: Dtype::I64, shape: vec![3], bytes: (0..24).collect() });
    let odd = [f32::NAN, -0.0, f32::INFINITY, 1e-40];
    tensors.insert("odd".into(), stored(Dtype::F32, &[4], &odd));
    models::write(&folder.path().join("m"), &tensors, PLAIN);
    let config = |more: &str| {
        format!(
            "merge_method: passthrough\nmodels:\n  - model: {}\n{more}",
            folder.path().join("m").display()
        )
    };
    models::run(folder.path(), &config(""), "copy", RUN).unwrap();
    assert_eq!(models::read(&folder.path().join("copy")), tensors);
    models::run(
        folder.path(),
        &config("    parameters: {scale: [{filter: loose, value: -2.5}, {value: null}]}\n"),
        "scaled",
        RUN,
    )
    .unwrap();
    for (name, tensor) in models::read(&folder.path().join("scaled")) {
        if name.contains("loose") {
            check(&name, &tensor, &oracle::weighted_sum(&[&values(&tensors[&name])], &[-2.5], false));
        } else {
            assert_eq!(tensor, tensors[&name], "{name}");
        }
    }
    models::run(folder.path(), &config("dtype: float32\n"), "wide", RUN).unwrap();
    for (name, tensor) in models::read(&folder.path().join("wide")) {
        let from = &tensors[&name];
        if from.dtype == Dtype::I64 {
            assert_eq!(tensor, *from);
        } else if name != "odd" {
            assert_eq!(tensor.dtype, Dtype::F32);
            assert_eq!(values(&tensor), values(from), "{name}");
        }
    }
}

#[test]
fn a_model_merged_with_itself_comes_back_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let case = Case::new(4);
    for name in ["base", "m0", "m1", "m2"] {
        models::write(&folder.path().join(name), &case.base, PLAIN);
    }
    let path = |name: &str| folder.path().join(name).display().to_string();
    // What reads importance is tried with its files.
    let others = METHODS.iter().filter(|method| !method.reads_importance()).map(|method| method.name);
    for method in others.filter(|method| *method != "passthrough") {
        let models = match method {
            "slerp" | "nearswap" | "arcee_fusion" => 1,
            "nuslerp" => 2,
            _ => 3,
        };
        let mut config = format!(
            "merge_method: {method}\nbase_model: {}\nparameters: {{weight: 0.3, density: 0.5, t: 0.3}}\nmodels:\n",
            path("base")
        );
        (0..models).for_each(|i| config += &format!("  - model: {}\n", path(&format!("m{i}"))));
        if method == "average" {
            config += &format!("  - model: {}\n", path("base"));
        }
        models::run(folder.path(), &config, method, RUN).unwrap();
        assert_eq!(models::read(&folder.path().join(method)), case.base, "{method}");
    }
}

/// A tensor of 300 MB whose elements follow from their places, so that nobody has to hold three of them.
mod large {
    use super::*;

    const SHAPE: [usize; 2] = [12_207, 12_288];
    const ELEMENTS: usize = SHAPE[0] * SHAPE[1];
    const WEIGHTS: [f64; 2] = [0.5, 1.0];
    const DENSITY: f64 = 0.5;
    /// Elements that the oracle looks at in one go.
    const BLOCK: usize = 16 << 10;

    /// The bits of element `i` of the base, or of a model tuned from it: moved by whole ulps, or not at all.
    fn bits(model: Option<usize>, i: usize) -> u16 {
        let mut random = Random(i as u64).next();
        let base = 0x3c00 | (random & 0x81ff) as u16;
        let Some(model) = model else { return base };
        random >>= 16 * (model + 1);
        // Over the base's four binades these are some ten magnitudes, so the median is shared by millions.
        let ulps = [0, 0, 0, 1, 1, 1, 2, 8][random as usize % 8];
        if random & 8 == 0 { base + ulps } else { base - ulps }
    }

    fn value(model: Option<usize>, i: usize) -> f32 {
        half::bf16::from_bits(bits(model, i)).to_f32()
    }

    fn delta(model: usize, i: usize) -> f32 {
        value(Some(model), i) - value(None, i)
    }

    /// What a model keeps: magnitudes above the threshold, and those equal to it before the cut.
    struct Kept {
        threshold: u16,
        cut: usize,
    }

    /// The upper half of a magnitude's bits, which is all there is in differences of neighbouring bfloat16.
    fn magnitude(model: usize, i: usize) -> u16 {
        let bits = delta(model, i).abs().to_bits();
        assert_eq!(bits & 0xffff, 0);
        (bits >> 16) as u16
    }

    impl Kept {
        fn of(model: usize) -> Self {
            let mut all: Vec<u16> = (0..ELEMENTS).map(|i| magnitude(model, i)).collect();
            let k = (DENSITY * ELEMENTS as f64) as usize;
            let (_, threshold, above) = all.select_nth_unstable(ELEMENTS - k);
            let threshold = *threshold;
            let above = above.iter().filter(|magnitude| **magnitude > threshold).count();
            let mut equal = (0..ELEMENTS).filter(|i| magnitude(model, *i) == threshold);
            let last = equal.nth(k - above - 1).expect("the k-th has this magnitude");
            assert!(threshold > 0 && equal.next().is_some(), "the cut goes through a class of equals");
            Self { threshold, cut: last + 1 }
        }

        fn keeps(&self, model: usize, i: usize) -> bool {
            let magnitude = magnitude(model, i);
            magnitude > self.threshold || (magnitude == self.threshold && i < self.cut)
        }
    }

    fn write(folder: &Path, model: Option<usize>) {
        let bytes = (0..ELEMENTS).flat_map(|i| bits(model, i).to_le_bytes()).collect();
        let tensor = Stored { dtype: Dtype::BF16, shape: SHAPE.to_vec(), bytes };
        models::write(folder, &[("large".to_string(), tensor)].into(), PLAIN);
    }

    /// Compares one block with the oracle. A trimmed element is one that did not move, so the oracle need not trim.
    fn check_block(merged: &Stored, first: usize, kept: &[Kept; 2]) {
        let places = first..ELEMENTS.min(first + BLOCK);
        let values = |model: usize| {
            let value = |i| value(kept[model].keeps(model, i).then_some(model), i);
            places.clone().map(value).collect()
        };
        let base: Vec<f32> = places.clone().map(|i| value(None, i)).collect();
        let model = |m: usize| Model { values: values(m), weight: WEIGHTS[m], density: 1.0 };
        let rule =
            Family { thinning: Thinning::None, vote: true, normalize: true, rescale: false, lambda: 1.0 };
        let expected = oracle::task_vectors(&base, &[model(0), model(1)], &rule, "large");
        let bytes = merged.bytes[2 * first..2 * places.end].to_vec();
        let part = Stored { dtype: Dtype::BF16, shape: vec![places.len()], bytes };
        check(&format!("from {first}"), &part, &expected);
    }

    /// Where no model keeps its difference the base stays, bit for bit: a wrong mask shows wherever it is wrong.
    fn check_unmoved(merged: &Stored, places: std::ops::Range<usize>, kept: &[Kept; 2]) {
        for i in places {
            let moved = (0..2).any(|model| kept[model].keeps(model, i));
            let out = u16::from_le_bytes([merged.bytes[2 * i], merged.bytes[2 * i + 1]]);
            assert!(moved || out == bits(None, i), "element {i} should be the base's");
        }
    }

    #[test]
    fn a_tensor_of_300_mb_is_merged_as_a_small_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let kept = std::thread::scope(|scope| {
            let searches = [0, 1].map(|model| scope.spawn(move || Kept::of(model)));
            write(&path("base"), None);
            (0..2).for_each(|model| write(&path(&format!("m{model}")), Some(model)));
            searches.map(|search| search.join().unwrap())
        });
        let model = |m: usize| {
            format!(
                "  - {{model: {}, parameters: {{weight: {}}}}}\n",
                path(&format!("m{m}")).display(),
                WEIGHTS[m]
            )
        };
        let config = format!(
            "merge_method: ties\nbase_model: {}\nparameters: {{density: {DENSITY}}}\nmodels:\n{}{}",
            path("base").display(),
            model(0),
            model(1)
        );
        models::run(folder.path(), &config, "out", RUN).unwrap();
        let merged = &models::read(&path("out"))["large"];
        assert_eq!(merged.bytes.len(), 2 * ELEMENTS);
        // Every 64th block, the last one, and those with a cut.
        let cuts = kept.iter().map(|kept| kept.cut / BLOCK);
        let blocks: Vec<usize> =
            (0..ELEMENTS / BLOCK).step_by(64).chain(cuts).chain([ELEMENTS / BLOCK]).collect();
        let (kept, blocks) = (&kept, &blocks);
        std::thread::scope(|scope| {
            for half in 0..2 {
                scope.spawn(move || {
                    check_unmoved(merged, half * ELEMENTS / 2..(half + 1) * ELEMENTS / 2, kept);
                    let mine = blocks.iter().skip(half).step_by(2);
                    mine.for_each(|block| check_block(merged, block * BLOCK, kept));
                });
            }
        });
    }
}

/// Writes models with these tensors, merges them (`base` is the base, if there is one), and reads what comes out.
fn merged(
    folder: &Path,
    method: &str,
    models: &[(&str, &Tensors, bool)],
) -> mergeforge::error::Result<Tensors> {
    let mut config = format!("merge_method: {method}\nparameters: {{weight: 0.5}}\nmodels:\n");
    for (name, tensors, tied) in models {
        models::write(&folder.join(name), tensors, Form { tied: *tied, ..PLAIN });
        let path = folder.join(name).display().to_string();
        config += &if *name == "base" { String::new() } else { format!("  - model: {path}\n") };
    }
    if models.iter().any(|(name, ..)| *name == "base") {
        config += &format!("base_model: {}\n", folder.join("base").display());
    }
    models::run(folder, &config, "out", RUN)?;
    Ok(models::read(&folder.join("out")))
}

const HEAD: &str = "lm_head.weight";
const EMBEDDING: &str = "model.embed_tokens.weight";

#[test]
fn a_tied_head_is_merged_as_the_embedding_it_is() {
    let embedding = |seed| stored(Dtype::BF16, &[30, 50], &weights(1500, seed));
    let tied = |seed| Tensors::from([(EMBEDDING.into(), embedding(seed))]);
    let untied = Tensors::from([(EMBEDDING.into(), embedding(1)), (HEAD.into(), embedding(2))]);
    for models in [
        [("base", &untied, false), ("a", &tied(3), true), ("b", &tied(4), true)],
        [("base", &tied(3), true), ("a", &untied, false), ("b", &tied(4), true)],
        [("base", &tied(3), true), ("a", &tied(4), true), ("b", &untied, false)],
    ] {
        let folder = tempfile::tempdir().unwrap();
        let out = merged(folder.path(), "task_arithmetic", &models).unwrap();
        let head = |tensors: &Tensors| values(tensors.get(HEAD).unwrap_or(&tensors[EMBEDDING]));
        let inputs = models.map(|(_, tensors, _)| head(tensors));
        let inputs: Vec<&[f32]> = inputs.iter().map(Vec::as_slice).collect();
        check(HEAD, &out[HEAD], &oracle::weighted_sum(&inputs, &[1.0, 0.5, 0.5], true));
        let config = std::fs::read(folder.path().join("out/config.json")).unwrap();
        let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
        assert_eq!(config["tie_word_embeddings"], false, "the head is written, so it must be read");
    }
}

#[test]
fn a_tensor_that_some_models_lack_is_copied_where_that_is_clear() {
    let common = |seed| ("w".to_string(), stored(Dtype::BF16, &[20], &weights(20, seed)));
    let extra = |seed| ("extra".to_string(), stored(Dtype::BF16, &[30], &weights(30, seed)));
    let with = |seed, own| Tensors::from([common(seed), extra(own)]);
    let without = |seed| Tensors::from([common(seed)]);
    let folder = || tempfile::tempdir().unwrap();
    let merge = |folder: &Path, base: Tensors, a: Tensors, b: Tensors| {
        merged(folder, "task_arithmetic", &[("base", &base, false), ("a", &a, false), ("b", &b, false)])
    };
    for (base, a, b, copied) in [
        // Only the base has it; two that agree have it, the base among them or not.
        (with(1, 7), without(2), without(3), 7),
        (with(1, 7), with(2, 7), without(3), 7),
        (without(1), with(2, 8), with(3, 8), 8),
    ] {
        let folder = folder();
        let out = merge(folder.path(), base, a, b).unwrap();
        assert_eq!(out["extra"], extra(copied).1);
        let prepared = mergeforge::prepare(
            &folder.path().join("out.yml"),
            &mergeforge::plan::Choices {
                seed: 0,
                shard_bytes: Some(5_000_000_000),
                ..mergeforge::plan::Choices::USUAL
            },
        );
        let notes = prepared.unwrap().plan.notes;
        assert!(notes.len() == 1 && notes[0].starts_with("extra: copied from "), "{notes:?}");
    }
    // Two that differ, whether the base is one of them or not; and one that is not the base.
    for (base, a, b, kind) in [
        (with(1, 7), with(2, 8), without(3), Kind::Input),
        (without(1), with(2, 7), with(3, 8), Kind::Input),
        (without(1), with(2, 7), without(3), Kind::Config),
    ] {
        let folder = folder();
        let error = merge(folder.path(), base, a, b).unwrap_err();
        assert!(error.kind == kind && error.message.contains("tensor extra: "), "{error:?}");
        assert!(!folder.path().join("out").exists() && !folder.path().join("out.partial").exists());
    }
}

/// Merges an example and asks whether it speaks as well as the same merge by torch did: `examples/models/README.md`.
fn speaks(example: &str, recorded: [f64; 4]) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = std::fs::read_to_string(root.join("examples").join(format!("{example}.yml"))).unwrap();
    let folder = tempfile::tempdir().unwrap();
    models::run(folder.path(), &config, "out", RUN).unwrap();
    let sets = ["general_valid.txt", "medical_valid.txt", "chat_valid.jsonl", "medqa_valid.jsonl"];
    for (set, recorded) in sets.iter().zip(recorded) {
        let found =
            eval::perplexity(&folder.path().join("out"), &root.join("examples/models/texts").join(set));
        println!("{example} on {set}: {found:.2}, recorded {recorded:.2}");
        assert!((found / recorded - 1.0).abs() < 0.005, "{example} on {set}: {found:.3}, not {recorded}");
    }
}

#[test]
fn an_even_average_speaks_as_recorded() {
    speaks("linear", [34.88, 31.84, 27.00, 26.01]);
}

#[test]
fn an_average_of_3_to_7_speaks_as_recorded() {
    speaks("linear_3_7", [36.01, 34.82, 19.99, 20.92]);
}

#[test]
fn task_arithmetic_speaks_as_recorded() {
    speaks("task_arithmetic", [43.50, 38.48, 18.65, 18.72]);
}

//! Methods that see models as vectors, in two parts: the coefficients they solve for give what the formulas give on whole
//! vectors in f64, and merged values are within the contract's bound of what these coefficients give.

use std::sync::Arc;

use mergeforge::error::Kind;
use mergeforge::kernel::segment_sum::Per;
use mergeforge::kernel::{Job, Outcome, TILE, Target};
use mergeforge::method::{self, Settings, Value};
use mergeforge::recipe::{Measured, Pass, Recipe, Segments};
use safetensors::Dtype;

use crate::methods::check;
use crate::models::{self, PLAIN, RUN, Tensors, stored, tuned, values, weights};
use crate::oracle::{self, Expected};

type Values = Vec<(&'static str, Value)>;

/// One way to merge: a method with its settings.
struct Way {
    method: &'static str,
    /// As in a config.
    shared: &'static str,
    /// The same, resolved.
    resolved: Values,
    with_base: bool,
    models: usize,
}

const NUMBER: fn(f64) -> Value = Value::Number;
const WEIGHTS: [f64; 4] = [0.3, 0.9, 0.5, -0.2];

fn ways() -> Vec<Way> {
    let nuslerp = |flatten, row_wise| {
        vec![("nuslerp_flatten", Value::Flag(flatten)), ("nuslerp_row_wise", Value::Flag(row_wise))]
    };
    let multislerp = |normalize| vec![("normalize_weights", Value::Flag(normalize)), ("eps", NUMBER(1e-8))];
    let karcher = |steps: f64| vec![("max_iter", NUMBER(steps)), ("tol", NUMBER(1e-5))];
    let way =
        |method, shared, resolved, with_base, models| Way { method, shared, resolved, with_base, models };
    let (rows, columns) = ("nuslerp_flatten: false", "nuslerp_flatten: false, nuslerp_row_wise: true");
    vec![
        way("nuslerp", "", nuslerp(true, false), false, 2),
        way("nuslerp", "", nuslerp(true, false), true, 2),
        way("nuslerp", rows, nuslerp(false, false), false, 2),
        way("nuslerp", rows, nuslerp(false, false), true, 2),
        way("nuslerp", columns, nuslerp(false, true), false, 2),
        way("nuslerp", columns, nuslerp(false, true), true, 2),
        way("multislerp", "", multislerp(true), false, 3),
        way("multislerp", "normalize_weights: false", multislerp(false), true, 4),
        way("karcher", "", karcher(10.0), false, 2),
        way("karcher", "max_iter: 3", karcher(3.0), false, 4),
        way("model_stock", "", vec![("filter_wise", Value::Flag(false))], true, 3),
        way("model_stock", "filter_wise: true", vec![("filter_wise", Value::Flag(true))], true, 2),
    ]
}

impl Way {
    /// The inputs, the base first where there is one: near each other as fine-tunes are, or far apart.
    fn inputs(&self, elements: usize, far: bool, seed: u64) -> Vec<Vec<f32>> {
        let base = weights(elements, seed);
        let other = |i: u64| if far { weights(elements, seed + i) } else { tuned(&base, seed + i) };
        let models = (1..=self.models as u64).map(other);
        if self.with_base { std::iter::once(base.clone()).chain(models).collect() } else { models.collect() }
    }

    fn settings(&self, shape: &[usize]) -> Settings {
        let own = |i: usize| match self.method {
            "nuslerp" | "multislerp" => vec![("weight", NUMBER(WEIGHTS[i]))],
            _ => Vec::new(),
        };
        let of_base = self.with_base.then(Vec::new);
        Settings {
            tensor: "t".into(),
            seed: 0,
            depth: 0.0,
            shape: shape.into(),
            elements: shape.iter().product::<usize>() as u64,
            inputs: self.models + usize::from(self.with_base),
            base: self.with_base.then_some(0),
            shared: self.resolved.clone().into(),
            per_input: Arc::new(of_base.into_iter().chain((0..self.models).map(own)).collect()),
        }
    }

    fn flag(&self, name: &str) -> bool {
        self.resolved.contains(&(name_of(name), Value::Flag(true)))
    }

    /// Where the vectors of a tensor lie: the flat indices of each.
    fn vectors(&self, shape: &[usize]) -> Vec<Vec<usize>> {
        let elements: usize = shape.iter().product();
        let by_rows =
            self.flag("filter_wise") || self.resolved.contains(&("nuslerp_flatten", Value::Flag(false)));
        if shape.len() < 2 || !by_rows {
            return vec![(0..elements).collect()];
        }
        if self.flag("nuslerp_row_wise") {
            let columns = elements / shape[0];
            return (0..columns).map(|column| (column..elements).step_by(columns).collect()).collect();
        }
        let last = shape[shape.len() - 1];
        (0..elements).collect::<Vec<_>>().chunks(last).map(<[usize]>::to_vec).collect()
    }

    /// How steady the result is: opposite vectors have no way between them, so near it small changes turn it around. And without
    /// a base the second vector is measured by its difference to the first, which leaves few digits of one that is far shorter.
    fn steadiness(&self, x: &[Vec<f64>]) -> f64 {
        if self.method != "nuslerp" {
            return 1.0;
        }
        let [a, b] = if self.with_base {
            [add(&x[1], -1.0, &x[0]), add(&x[2], -1.0, &x[0])]
        } else {
            [x[0].clone(), x[1].clone()]
        };
        let cosine = dot(&a, &b) / (length(&a) * length(&b));
        let turn = if cosine < 0.0 { (1.0 - cosine * cosine).max(1e-12) } else { 1.0 };
        let shorter = if self.with_base { 1.0 } else { (length(&b) / length(&a)).clamp(1e-6, 1.0) };
        turn * shorter * shorter
    }

    /// What the formulas give for vectors in f64.
    fn formula(&self, x: &[Vec<f64>]) -> Vec<f64> {
        let (base, models) = if self.with_base { (Some(&x[0]), &x[1..]) } else { (None, x) };
        let deltas: Vec<Vec<f64>> = models
            .iter()
            .map(|model| base.map_or_else(|| model.clone(), |base| add(model, -1.0, base)))
            .collect();
        let merged = match self.method {
            "nuslerp" => spherical(&deltas[0], &deltas[1], WEIGHTS[1] / (WEIGHTS[0] + WEIGHTS[1])),
            "multislerp" => in_one_step(&deltas, self.flag("normalize_weights")),
            "karcher" => mean_direction(&deltas, if self.shared.is_empty() { 10 } else { 3 }),
            _ => drawn_to_zero(&deltas),
        };
        base.map_or(merged.clone(), |base| add(base, 1.0, &merged))
    }
}

/// The same name with a life of its own.
fn name_of(name: &str) -> &'static str {
    ["filter_wise", "nuslerp_row_wise", "normalize_weights"].into_iter().find(|known| *known == name).unwrap()
}

fn add(a: &[f64], factor: f64, b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + factor * b).collect()
}

fn times(factor: f64, a: &[f64]) -> Vec<f64> {
    a.iter().map(|a| factor * a).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn length(a: &[f64]) -> f64 {
    dot(a, a).sqrt()
}

fn spherical(a: &[f64], b: &[f64], t: f64) -> Vec<f64> {
    let (unit_a, unit_b) = (times(1.0 / length(a).max(1e-7), a), times(1.0 / length(b).max(1e-7), b));
    let cosine = dot(&unit_a, &unit_b);
    // The sine from the part of one that lies across the other: an angle close to 0 has a cosine of 1. What is no unit has none.
    let sine = if length(a).min(length(b)) < 1e-7 {
        (1.0 - cosine * cosine).sqrt()
    } else {
        length(&add(&unit_b, -cosine, &unit_a))
    };
    // What sums in f32 can tell from 0.
    if sine <= 1.0 / 4096.0 {
        return add(&times(1.0 - t, a), t, b);
    }
    let theta = sine.atan2(cosine);
    add(&times(((1.0 - t) * theta).sin() / theta.sin(), a), (t * theta).sin() / theta.sin(), b)
}

fn in_one_step(x: &[Vec<f64>], normalize: bool) -> Vec<f64> {
    let weights = &WEIGHTS[..x.len()];
    let sum = if normalize { weights.iter().sum::<f64>() } else { 1.0 };
    let weighted = |x: &[Vec<f64>]| {
        x.iter().zip(weights).fold(vec![0.0; x[0].len()], |all, (x, w)| add(&all, w / sum, x))
    };
    let units: Vec<Vec<f64>> = x.iter().map(|x| times(1.0 / (length(x) + 1e-8), x)).collect();
    let mean = weighted(&units);
    let mean = times(1.0 / length(&mean), &mean);
    let tangents: Vec<Vec<f64>> = units.iter().map(|unit| add(unit, -dot(unit, &mean), &mean)).collect();
    let tangent = weighted(&tangents);
    let angle = length(&tangent) + 1e-8;
    let scale: f64 = x.iter().zip(weights).map(|(x, w)| w / sum * length(x)).sum();
    times(scale, &add(&times(angle.cos(), &mean), angle.sin() / angle, &tangent))
}

fn mean_direction(x: &[Vec<f64>], steps: usize) -> Vec<f64> {
    let share = 1.0 / x.len() as f64;
    let units: Vec<Vec<f64>> = x.iter().map(|x| times(1.0 / length(x), x)).collect();
    let mut mean = units.iter().fold(vec![0.0; x[0].len()], |all, unit| add(&all, share, unit));
    mean = times(1.0 / length(&mean), &mean);
    for _ in 0..steps {
        let mut tangent = vec![0.0; mean.len()];
        for unit in &units {
            let across = add(unit, -dot(unit, &mean), &mean);
            let theta = length(&across).atan2(dot(unit, &mean));
            if theta >= 1e-5 {
                tangent = add(&tangent, share * theta / theta.sin(), &across);
            }
        }
        let step = length(&tangent);
        if step < 1e-5 {
            break;
        }
        mean = add(&times(step.cos(), &mean), step.sin() / step, &tangent);
        mean = times(1.0 / length(&mean), &mean);
    }
    times(share * x.iter().map(|x| length(x)).sum::<f64>(), &mean)
}

fn drawn_to_zero(deltas: &[Vec<f64>]) -> Vec<f64> {
    let count = deltas.len() as f64;
    let pairs = (0..deltas.len()).flat_map(|a| (a + 1..deltas.len()).map(move |b| (a, b)));
    let cosine = |(a, b): (usize, usize)| {
        let lengths = (length(&deltas[a]) * length(&deltas[b])).max(1e-6);
        (dot(&deltas[a], &deltas[b]) / lengths).clamp(-1.0, 1.0)
    };
    let cosines: Vec<f64> = pairs.map(cosine).collect();
    let c = cosines.iter().sum::<f64>() / cosines.len() as f64;
    let t = if (1.0 + (count - 1.0) * c).abs() < 1e-6 { 0.0 } else { count * c / (1.0 + (count - 1.0) * c) };
    deltas.iter().fold(vec![0.0; deltas[0].len()], |all, delta| add(&all, t / count, delta))
}

/// The passes of a recipe over tensors in memory, each segment measured by itself; the last one combines.
fn solve(
    settings: &Settings,
    method: &str,
    inputs: &[Vec<f32>],
) -> mergeforge::error::Result<(Vec<usize>, Job)> {
    let Recipe::Passes(passes) = (method::find(method).unwrap().recipe)(settings)? else { panic!("passes") };
    let mut machine = passes.begin();
    let mut measured = Measured::Nothing;
    loop {
        match machine.next(measured)?.expect("the last pass combines") {
            Pass::Combine { reads, job } => return Ok((reads, job)),
            Pass::Mend { .. } => unreachable!("what was not guessed is not mended"),
            Pass::Measure { reads, job, by, .. } => {
                let x: Vec<&Vec<f32>> = reads.iter().map(|read| &inputs[*read]).collect();
                measured = Measured::Sums(sums(&job, &x, by));
            }
        }
    }
}

fn sums(job: &Job, x: &[&Vec<f32>], by: Segments) -> Vec<f64> {
    let elements = x[0].len();
    let segment: Vec<Vec<usize>> = match by {
        Segments::Whole => vec![(0..elements).collect()],
        Segments::Rows { columns } => {
            (0..elements).collect::<Vec<_>>().chunks(columns as usize).map(<[usize]>::to_vec).collect()
        }
        Segments::Columns { columns } => {
            let columns = columns as usize;
            (0..columns).map(|column| (column..elements).step_by(columns).collect()).collect()
        }
    };
    let Outcome::Sums { words } = job.outcome() else { panic!("{} sums up", job.kernel()) };
    let of_segment = |places: &Vec<usize>| {
        let mut totals = vec![0.0; words];
        for tile in places.chunks(TILE) {
            let x: Vec<Vec<f32>> = x.iter().map(|x| tile.iter().map(|place| x[*place]).collect()).collect();
            let x: Vec<&[f32]> = x.iter().map(Vec::as_slice).collect();
            let mut sums = vec![0.0; words];
            job.plain(0, &x, Target::Sums(&mut sums));
            totals.iter_mut().zip(sums).for_each(|(total, sum)| *total += f64::from(sum));
        }
        totals
    };
    segment.iter().flat_map(of_segment).collect()
}

/// What a combining job gives, exactly, and what f32 may add to it.
fn combined(reads: &[usize], job: &Job, inputs: &[Vec<f32>]) -> Expected {
    let x: Vec<&[f32]> = reads.iter().map(|read| inputs[*read].as_slice()).collect();
    let (segments, by, of): (usize, Per, Vec<f64>) = match job {
        Job::WeightedSum(job) => {
            let coefficients: Vec<f64> = job.coefficients.iter().map(|c| f64::from(*c)).collect();
            return oracle::weighted_sum(&x, &coefficients, job.anchored);
        }
        Job::SegmentSum(job) => {
            let of: Vec<f64> = job.coefficients.iter().map(|c| f64::from(*c)).collect();
            (of.len() / x.len(), job.by, of)
        }
        other => panic!("{} does not add up", other.kernel()),
    };
    let (mut exact, mut slack) = (Vec::new(), Vec::new());
    for i in 0..x[0].len() {
        let segment = match by {
            Per::Whole => 0,
            Per::Rows(columns) => i / columns as usize,
            Per::Columns(columns) => i % columns as usize,
        };
        let value = |input: usize| f64::from(x[input][i]);
        let c = |input: usize| of[input * segments + segment];
        let terms: Vec<f64> = std::iter::once(c(0) * value(0))
            .chain((1..x.len()).map(|input| c(input) * (value(input) - value(0))))
            .collect();
        let magnitude: f64 = terms.iter().map(|term| term.abs()).sum::<f64>()
            + (1..x.len()).map(|input| (c(input) * value(input)).abs()).sum::<f64>();
        exact.push(value(0) + terms.iter().sum::<f64>());
        slack.push((x.len() as f64 + 4.0) * 2f64.powi(-24) * (value(0).abs() + magnitude));
    }
    Expected { exact, slack }
}

const SHAPES: [&[usize]; 7] = [&[40, 33], &[1100, 7], &[7, 2100], &[5], &[3, 4, 6], &[1, 50], &[64, 64]];

#[test]
fn coefficients_give_what_the_formulas_give() {
    for way in ways() {
        for (seed, (shape, far)) in (0..).zip(SHAPES.iter().flat_map(|shape| [(shape, false), (shape, true)]))
        {
            let inputs = way.inputs(shape.iter().product(), far, seed * 100 + 7);
            let (reads, job) = solve(&way.settings(shape), way.method, &inputs).unwrap();
            let found = combined(&reads, &job, &inputs);
            for places in way.vectors(shape) {
                let of = |x: &Vec<f32>| places.iter().map(|place| f64::from(x[*place])).collect();
                let x: Vec<Vec<f64>> = inputs.iter().map(of).collect();
                // Sums are f32 inside of a tile, and what is across a vector is a small part of it.
                let scale = x.iter().flatten().fold(0.0f64, |most, x| most.max(x.abs())) / way.steadiness(&x);
                for (place, exact) in places.iter().zip(way.formula(&x)) {
                    let error = (found.exact[*place] - exact).abs();
                    let what = (way.method, way.shared, way.with_base);
                    assert!(error <= 3e-5 * scale, "{what:?} {shape:?} far {far}: {exact}, off by {error:e}");
                }
            }
        }
    }
}

#[test]
fn merged_values_are_within_the_bound_of_their_coefficients() {
    for (seed, way) in (0..).zip(ways()) {
        let folder = tempfile::tempdir().unwrap();
        let dtypes = [Dtype::F32, Dtype::BF16, Dtype::F16];
        let names = SHAPES.iter().enumerate().map(|(i, _)| format!("t{i}"));
        let mut models: Vec<Tensors> = Vec::new();
        for (i, (name, shape)) in names.zip(SHAPES).enumerate() {
            let inputs = way.inputs(shape.iter().product(), i % 2 == 0, seed * 31 + i as u64);
            models.resize_with(inputs.len(), Tensors::new);
            for (tensors, x) in models.iter_mut().zip(&inputs) {
                tensors.insert(name.clone(), stored(dtypes[(i + seed as usize) % 3], shape, x));
            }
        }
        let path = |i: usize| folder.path().join(format!("m{i}")).display().to_string();
        models.iter().enumerate().for_each(|(i, tensors)| models::write(path(i).as_ref(), tensors, PLAIN));
        let mut config =
            format!("merge_method: {}\nparameters: {{{}}}\ndtype: float32\n", way.method, way.shared);
        if way.with_base {
            config += &format!("base_model: {}\n", path(0));
        }
        config += "models:\n";
        for (i, weight) in (usize::from(way.with_base)..models.len()).zip(WEIGHTS) {
            let own = if ["nuslerp", "multislerp"].contains(&way.method) {
                format!("{{weight: {weight}}}")
            } else {
                "{}".into()
            };
            config += &format!("  - {{model: {}, parameters: {own}}}\n", path(i));
        }
        models::run(folder.path(), &config, "out", RUN).unwrap();
        for (name, merged) in models::read(&folder.path().join("out")) {
            let inputs: Vec<Vec<f32>> = models.iter().map(|tensors| values(&tensors[&name])).collect();
            let (reads, job) = solve(&way.settings(&merged.shape), way.method, &inputs).unwrap();
            let expected = combined(&reads, &job, &inputs);
            check(&format!("{} {} {name}", way.method, way.shared), &merged, &expected);
        }
    }
}

/// A way with two elements a vector, whose result can be worked out by hand.
fn by_hand(method: &str, shared: Values, base: bool, weights: Option<&[f64]>, x: &[[f32; 2]]) -> Vec<f64> {
    let inputs: Vec<Vec<f32>> = x.iter().map(|x| x.to_vec()).collect();
    let of_models = |i: usize| weights.map_or(Vec::new(), |w| vec![("weight", NUMBER(w[i]))]);
    let models = inputs.len() - usize::from(base);
    let per_input = base.then(Vec::new).into_iter().chain((0..models).map(of_models)).collect();
    let settings = Settings {
        tensor: "t".into(),
        seed: 0,
        depth: 0.0,
        shape: [2].into(),
        elements: 2,
        inputs: inputs.len(),
        base: base.then_some(0),
        shared: shared.into(),
        per_input: Arc::new(per_input),
    };
    let (reads, job) = solve(&settings, method, &inputs).unwrap();
    combined(&reads, &job, &inputs).exact
}

fn assert_close(found: &[f64], expected: [f64; 2]) {
    let close = found.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 1e-5);
    assert!(close, "{found:?}, expected {expected:?}");
}

#[test]
fn what_has_no_direction_and_what_is_opposite_is_worked_out_by_hand() {
    let stock = || vec![("filter_wise", Value::Flag(false))];
    // 1 and −1 make an angle whose cosine takes t far out; two opposite ones keep the base.
    let out = by_hand("model_stock", stock(), true, None, &[[0.0, 0.0], [1.0, 0.0], [-1.0, 1.0]]);
    assert_close(&out, [0.0, -2.414_213_5]);
    assert_close(
        &by_hand("model_stock", stock(), true, None, &[[1.0, 2.0], [2.0, 2.0], [0.0, 2.0]]),
        [1.0, 2.0],
    );
    let karcher = || vec![("max_iter", NUMBER(10.0)), ("tol", NUMBER(1e-5))];
    // A zero has no direction and shortens the mean; of opposite ones the first counts; of nothing comes nothing.
    assert_close(&by_hand("karcher", karcher(), false, None, &[[0.0, 0.0], [3.0, 0.0]]), [1.5, 0.0]);
    assert_close(&by_hand("karcher", karcher(), false, None, &[[2.0, 0.0], [-4.0, 0.0]]), [3.0, 0.0]);
    assert_close(&by_hand("karcher", karcher(), false, None, &[[0.0, 0.0], [0.0, 0.0]]), [0.0, 0.0]);
    let half = 2.0f64.sqrt();
    assert_close(&by_hand("karcher", karcher(), false, None, &[[2.0, 0.0], [0.0, 2.0]]), [half, half]);
    let nuslerp = || vec![("nuslerp_flatten", Value::Flag(true)), ("nuslerp_row_wise", Value::Flag(false))];
    // One that is zero is at a right angle; weights that cancel are even; what is parallel is averaged.
    let quarter = by_hand("nuslerp", nuslerp(), false, Some(&[0.75, 0.25]), &[[0.0, 0.0], [1.0, 0.0]]);
    assert_close(&quarter, [0.382_683_4, 0.0]);
    let even = by_hand("nuslerp", nuslerp(), false, Some(&[1.0, -1.0]), &[[1.0, 0.0], [0.0, 1.0]]);
    assert_close(&even, [half / 2.0, half / 2.0]);
    let parallel =
        by_hand("nuslerp", nuslerp(), true, Some(&[1.0, 1.0]), &[[1.0, 1.0], [2.0, 1.0], [4.0, 1.0]]);
    assert_close(&parallel, [3.0, 1.0]);
    let multislerp = || vec![("normalize_weights", Value::Flag(true)), ("eps", NUMBER(1e-8))];
    // Two that cancel are added up; a single one comes back.
    let two = by_hand("multislerp", multislerp(), false, Some(&[0.5, 0.5]), &[[2.0, 0.0], [-1.0, 0.0]]);
    assert_close(&two, [0.5, 0.0]);
    assert_close(
        &by_hand("multislerp", multislerp(), true, Some(&[7.0]), &[[9.0, 9.0], [2.0, 1.0]]),
        [2.0, 1.0],
    );
}

/// Three directions of a star cancel out: there is none between them, and the merge says of which tensor.
#[test]
fn directions_that_cancel_out_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = String::from("merge_method: multislerp\nmodels:\n");
    for (i, x) in [[2.0f32, 0.0, 0.0, 0.0], [-1.0, 0.0, 0.0, 0.0], [-1.0, 0.0, 0.0, 0.0]].iter().enumerate() {
        let path = folder.path().join(format!("m{i}"));
        models::write(&path, &Tensors::from([("w".into(), stored(Dtype::F32, &[4], x))]), PLAIN);
        let weight = [2.0, 1.0, 1.0][i];
        config += &format!("  - {{model: {}, parameters: {{weight: {weight}}}}}\n", path.display());
    }
    let error = models::run(folder.path(), &config, "out", RUN).unwrap_err();
    assert_eq!(error.kind, Kind::Config);
    assert_eq!(error.message, "tensor w: multislerp: the weighted directions of the models cancel out");
    assert!(!folder.path().join("out").exists() && !folder.path().join("out.partial").exists());
}

/// What is not a number, or too large for its square, spreads as the formulas say. It is not taken for a vector of length 0.
#[test]
fn odd_values_spread_and_are_not_taken_for_nothing() {
    for odd in [f32::NAN, f32::INFINITY, 1e20] {
        for way in ways() {
            let shape: &[usize] = &[4, 6];
            let mut inputs = way.inputs(24, true, 5);
            inputs[1][7] = odd;
            let (reads, job) = solve(&way.settings(shape), way.method, &inputs).unwrap();
            let found = combined(&reads, &job, &inputs).exact;
            // Every element of the vector that has the odd one, which is all of the tensor, a row or a column.
            for places in way.vectors(shape).iter().filter(|places| places.contains(&7)) {
                let what = (way.method, way.shared, way.with_base, odd);
                let lost = places.iter().filter(|place| found[**place] == 0.0).count();
                assert_eq!(lost, 0, "{what:?}: zeros");
                if odd.is_nan() {
                    assert!(places.iter().all(|place| found[*place].is_nan()), "{what:?}: {found:?}");
                }
            }
        }
    }
}

#[test]
fn numbers_that_make_no_sense_are_refused() {
    for (method, parameter) in [("karcher", "tol: -1"), ("multislerp", "eps: -1e-8")] {
        let folder = tempfile::tempdir().unwrap();
        let mut config = format!("merge_method: {method}\nparameters: {{weight: 1, {parameter}}}\nmodels:\n");
        for i in 0..3 {
            let path = folder.path().join(format!("m{i}"));
            let tensor = stored(Dtype::F32, &[4], &weights(4, i));
            models::write(&path, &Tensors::from([("w".into(), tensor)]), PLAIN);
            config += &format!("  - model: {}\n", path.display());
        }
        let error = models::run(folder.path(), &config, "out", RUN).unwrap_err();
        assert!(error.kind == Kind::Config && error.message.contains("is less than 0"), "{error:?}");
    }
}

/// A tensor with more vectors than can be measured at once, and one that is long and single.
#[test]
fn too_many_vectors_are_refused_and_a_single_one_is_none_by_itself() {
    let way = |shape: &[usize]| {
        let nuslerp = ways().into_iter().find(|way| way.shared.contains("row_wise")).unwrap();
        let settings = nuslerp.settings(shape);
        (method::find("nuslerp").unwrap().recipe)(&settings)
    };
    for shape in [&[2, 1 << 32][..], &[3, 1 << 24]] {
        let error = way(shape).unwrap_err();
        assert!(error.message.contains("too many to measure each by itself"), "{error:?}");
    }
    let Ok(Recipe::Passes(passes)) = way(&[1 << 33, 1]) else { panic!("one column is one vector") };
    assert_eq!(passes.by, Segments::Whole);
}

//! slerp: spherical interpolation between the base and one other model, each tensor as one vector.
//!
//! ```text
//! cos θ = x₀·x₁ / (‖x₀‖ ‖x₁‖)
//! out = sin((1−t)θ)/sin θ · x₀ + sin(tθ)/sin θ · x₁        (|cos θ| > 0.9995: (1−t)·x₀ + t·x₁)
//! ```
//!
//! Measured are the inner products of `(x₀, x₁ − x₀)`; the rest is arithmetic on three numbers. Nearly
//! parallel tensors are interpolated linearly around x₀, so that equal models give themselves exactly.

use super::{Base, Method, Paper, Parameter, Scope, Sensible, Settings};
use crate::error::Result;
use crate::kernel::{Job, gram, weighted_sum};
use crate::recipe::{Foreseen, Measured, Pass, Recipe, Segments, everything};

pub(super) const SLERP: Method = Method {
    name: "slerp",
    summary: "spherical interpolation from the base to one other model",
    formula: "out = sin((1−t)θ)/sin θ · base + sin(tθ)/sin θ · other   (nearly parallel: (1−t)·base + t·other)",
    paper: Some(Paper {
        title: "Shoemake, Animating rotation with quaternion curves (SIGGRAPH 1985)",
        url: "https://doi.org/10.1145/325165.325242",
    }),
    evidence: None,
    by_processor: None,
    base: Base::Required,
    models: 2..=2,
    parameters: &[Parameter {
        sensible: Some(Sensible {
            least: 0.0,
            most: 1.0,
            beyond: "0 is the base and 1 the other model: the result then lies beyond one of them",
        }),
        ..Parameter::required("t", Scope::Shared, "0 is the base, 1 the other model; not limited to [0, 1]")
    }],
    recipe,
};

/// Above this |cos θ| the interpolation is linear.
const PARALLEL_COSINE: f64 = 0.9995;

/// Vectors shorter than this count as zero and are not normalised.
const SHORTEST: f64 = 1e-8;

fn recipe(settings: &Settings) -> Result<Recipe> {
    let t = settings.number("t");
    let base = settings.base_input();
    let inputs: Vec<usize> = std::iter::once(base).chain(settings.non_base()).collect();
    let over = everything(settings.elements);
    let foreseen = vec![
        Foreseen::new(&inputs, gram::Job { inputs: 2 }),
        Foreseen::new(&inputs, weighted_sum::Job { anchored: false, coefficients: vec![0.0; 2] }),
    ];
    Ok(Recipe::steps(2, Segments::Whole, foreseen, move |measured: Measured| {
        Ok(match measured {
            Measured::Nothing => Some(Pass::Measure {
                reads: inputs.clone(),
                job: Job::Gram(gram::Job { inputs: 2 }),
                by: Segments::Whole,
                over: over.clone(),
            }),
            Measured::Kept(_) => None,
            measured => Some(combine(t, &inputs, &measured.sums())),
        })
    }))
}

/// Solves for the two coefficients; `gram` is (x₀·x₀, x₀·d, d·d) with d = x₁ − x₀.
fn combine(t: f64, inputs: &[usize], gram: &[f64]) -> Pass {
    let cosine = cosine(gram);
    if cosine.abs() > PARALLEL_COSINE {
        return pass(inputs, true, [1.0 - t, t]);
    }
    let theta = libm::acos(cosine);
    let sine = libm::sin(theta);
    pass(inputs, false, [libm::sin((1.0 - t) * theta) / sine, libm::sin(t * theta) / sine])
}

fn cosine(gram: &[f64]) -> f64 {
    let length = |square: f64| match square.max(0.0).sqrt() {
        length if length <= SHORTEST => 1.0,
        length => length,
    };
    let first = length(gram[0]);
    let second = length(gram[0] + 2.0 * gram[1] + gram[2]);
    ((gram[0] + gram[1]) / (first * second)).clamp(-1.0, 1.0)
}

fn pass(inputs: &[usize], anchored: bool, coefficients: [f64; 2]) -> Pass {
    let coefficients = coefficients.map(|c| c as f32);
    // A coefficient of exactly 0 leaves its model out; the anchor stays, because it carries the other's rest.
    let needed = |i: usize| coefficients[i] != 0.0 || (anchored && i == 0 && coefficients[1] != 1.0);
    let kept: Vec<usize> = (0..2).filter(|i| needed(*i)).collect();
    Pass::Combine {
        reads: kept.iter().map(|i| inputs[*i]).collect(),
        job: Job::WeightedSum(weighted_sum::Job {
            anchored,
            coefficients: kept.iter().map(|i| coefficients[*i]).collect(),
        }),
    }
}

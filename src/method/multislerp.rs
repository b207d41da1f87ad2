//! multislerp: several models, or their differences to a base, interpolated on the sphere in one step.
//!
//! ```text
//! dᵢ = xᵢ − base, or xᵢ;  uᵢ = dᵢ / (‖dᵢ‖ + ε);  m = Σ wᵢ·uᵢ / ‖Σ wᵢ·uᵢ‖
//! T = Σ wᵢ·(uᵢ − (uᵢ·m)·m);  n = ‖T‖ + ε;  out = (m·cos n + T·sin n / n) · Σ wᵢ·‖dᵢ‖  (+ base)
//! ```

use super::geometry::{self, Space, Vector, plus, times};
use super::{Base, Method, Paper, Parameter, Scope, Settings, vanishes};
use crate::error::{Error, Result};
use crate::kernel::weighted_sum;
use crate::recipe::{Recipe, Segments};

pub(super) const MULTISLERP: Method = Method {
    name: "multislerp",
    summary: "spherical interpolation of several models, or of their differences to a base, in one step",
    formula: "out = ‖d‖·exp(m, T)   (with a base: base + …), m the direction of Σ wᵢ·dᵢ/‖dᵢ‖, T = Σ wᵢ·(uᵢ − (uᵢ·m)·m), ‖d‖ = Σ wᵢ·‖dᵢ‖",
    paper: Some(Paper {
        title: "Buss and Fillmore, Spherical averages and applications to spherical splines and interpolation (2001)",
        url: "https://doi.org/10.1145/502122.502124",
    }),
    evidence: None,
    by_processor: None,
    base: Base::Optional,
    models: 1..=geometry::MODELS_MAX - 1,
    parameters: &[
        Parameter::required("weight", Scope::NonBase, "the model's share"),
        Parameter::flag("normalize_weights", true, "divide the weights by their sum"),
        Parameter::number("eps", Scope::Shared, 1e-8, "added to lengths that are divided by"),
    ],
    recipe,
};

fn recipe(settings: &Settings) -> Result<Recipe> {
    let models: Vec<usize> = settings.non_base().collect();
    if let [only] = models[..] {
        return Ok(Recipe::combine(
            vec![only],
            weighted_sum::Job { anchored: false, coefficients: vec![1.0] },
        ));
    }
    let mut weights: Vec<f64> = models.iter().map(|model| settings.number_of(*model, "weight")).collect();
    if settings.flag("normalize_weights") {
        let sum: f64 = weights.iter().sum();
        if vanishes(sum, weights.iter().map(|weight| weight.abs()).sum()) {
            let refusal = "multislerp: the weights add up to 0, and normalize_weights divides by their sum";
            return Err(
                Error::config(refusal).hint("set normalize_weights: false, or give weights with another sum")
            );
        }
        weights.iter_mut().for_each(|weight| *weight /= sum);
    }
    let (eps, with_base) = (settings.number("eps"), settings.base.is_some());
    if eps < 0.0 {
        return Err(
            Error::config(format!("multislerp: eps {eps} is less than 0")).hint("the default is 1e-8")
        );
    }
    let inputs = settings.base.into_iter().chain(models).collect();
    let solve = move |space: &Space<'_>| solve(space, &weights, eps, with_base);
    Ok(geometry::recipe(settings, inputs, Segments::Whole, solve))
}

fn solve(space: &Space<'_>, weights: &[f64], eps: f64, with_base: bool) -> Result<Vector> {
    let vector = |i: usize| if with_base { space.difference(i + 1) } else { space.model(i) };
    let vectors: Vec<Vector> = (0..weights.len()).map(vector).collect();
    let base = if with_base { space.difference(0) } else { space.zero() };
    let lengths: Vec<f64> = vectors.iter().map(|vector| space.length(vector)).collect();
    // What is zero has no direction, whatever eps is.
    let unit = |(vector, length): (&Vector, &f64)| {
        if *length == 0.0 { space.zero() } else { times(1.0 / (length + eps), vector) }
    };
    let units: Vec<Vector> = vectors.iter().zip(&lengths).map(unit).collect();
    let weighted = |vectors: &[Vector]| {
        vectors.iter().zip(weights).fold(space.zero(), |sum, (vector, weight)| plus(&sum, *weight, vector))
    };
    let mean = weighted(&units);
    let length = space.length(&mean);
    let shares: f64 = weights.iter().map(|weight| weight.abs()).sum();
    // The direction of a mean that is all but rounding means nothing.
    if length < eps.max(geometry::RESOLUTION * shares) {
        // Two are added up, and so is what no model has changed.
        if weights.len() == 2 || lengths.iter().all(|length| *length == 0.0) {
            return Ok(plus(&base, 1.0, &weighted(&vectors)));
        }
        return Err(Error::config("multislerp: the weighted directions of the models cancel out")
            .hint("give the models other weights, or merge this tensor by another method"));
    }
    let mean = times(1.0 / length, &mean);
    let tangents: Vec<Vector> = units.iter().map(|unit| plus(unit, -space.dot(unit, &mean), &mean)).collect();
    let tangent = weighted(&tangents);
    let angle = space.length(&tangent) + eps;
    let direction = plus(&times(libm::cos(angle), &mean), libm::sin(angle) / angle, &tangent);
    let scale: f64 = lengths.iter().zip(weights).map(|(length, weight)| weight * length).sum();
    Ok(plus(&base, scale, &direction))
}

//! nuslerp: spherical interpolation between two models, or between their differences to a base, by their weights.
//!
//! ```text
//! t = w₂ / (w₁ + w₂);  out = S(x₁, x₂), or base + S(x₁ − base, x₂ − base)
//! S(a, b) = sin((1−t)θ)/sin θ · a + sin(tθ)/sin θ · b        (parallel: (1−t)·a + t·b)
//! ```
//!
//! The vectors are whole tensors, or what lies along their last dimension, or along their first. In mergekit the names of
//! rows and columns are the other way round than one would think; configs mean what they mean there.

use super::geometry::{self, Space, Vector, plus, slerp};
use super::{Base, Method, Paper, Parameter, Scope, Settings, vanishes};
use crate::error::Result;
use crate::recipe::{Recipe, Segments};

pub(super) const NUSLERP: Method = Method {
    name: "nuslerp",
    summary: "spherical interpolation between two models, or between their differences to a base",
    formula: "out = S(x₁, x₂)   (with a base: base + S(x₁ − base, x₂ − base)), S as in slerp with t = w₂ / (w₁ + w₂)",
    paper: Some(Paper {
        title: "Shoemake, Animating rotation with quaternion curves (SIGGRAPH 1985)",
        url: "https://doi.org/10.1145/325165.325242",
    }),
    evidence: None,
    by_processor: None,
    base: Base::Optional,
    models: 2..=2,
    parameters: &[
        Parameter::required("weight", Scope::NonBase, "the model's share"),
        Parameter::flag("nuslerp_flatten", true, "each tensor is one vector"),
        Parameter::flag(
            "nuslerp_row_wise",
            false,
            "if not flattened: vectors along the first dimension instead of the last",
        ),
    ],
    recipe,
};

/// Shorter vectors are divided by this instead of their length.
const SHORTEST: f64 = 1e-7;

fn recipe(settings: &Settings) -> Result<Recipe> {
    let by = if settings.flag("nuslerp_flatten") {
        Segments::Whole
    } else {
        geometry::segments(settings, NUSLERP.name, settings.flag("nuslerp_row_wise"))?
    };
    let weights: Vec<f64> = settings.non_base().map(|input| settings.number_of(input, "weight")).collect();
    let (sum, magnitude) = (weights[0] + weights[1], weights[0].abs() + weights[1].abs());
    let t = if vanishes(sum, magnitude) { 0.5 } else { weights[1] / sum };
    let with_base = settings.base.is_some();
    let inputs = settings.base.into_iter().chain(settings.non_base()).collect();
    Ok(geometry::recipe(settings, inputs, by, move |space| Ok(solve(space, t, with_base))))
}

fn solve(space: &Space<'_>, t: f64, with_base: bool) -> Vector {
    if with_base {
        let moved = slerp(space, &space.difference(1), &space.difference(2), t, SHORTEST);
        plus(&space.difference(0), 1.0, &moved)
    } else {
        slerp(space, &space.model(0), &space.model(1), t, SHORTEST)
    }
}

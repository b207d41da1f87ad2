//! linear: the weighted average of models, a "model soup".
//!
//! `out = Σ wᵢ xᵢ / Σ wᵢ`, or `Σ wᵢ xᵢ` with `normalize: false`. The average is taken around the first model
//! with a weight: `x₀ + Σ (wᵢ / Σ w) (xᵢ − x₀)`, so that equal models average to themselves exactly.

use super::{Base, Method, Paper, Parameter, Scope, Settings, vanishes};
use crate::error::{Error, Result};
use crate::kernel::weighted_sum;
use crate::recipe::Recipe;

pub(super) const LINEAR: Method = Method {
    name: "linear",
    summary: "weighted average of the models",
    formula: "out = Σ wᵢ·xᵢ / Σ wᵢ   (normalize: false: Σ wᵢ·xᵢ)",
    paper: Some(Paper {
        title: "Wortsman et al., Model soups (ICML 2022)",
        url: "https://arxiv.org/abs/2203.05482",
    }),
    evidence: None,
    by_processor: None,
    base: Base::Ignored,
    models: 1..=usize::MAX,
    parameters: &[
        Parameter::required("weight", Scope::Input, "the model's share"),
        Parameter::flag("normalize", true, "divide by the sum of the weights"),
    ],
    recipe,
};

fn recipe(settings: &Settings) -> Result<Recipe> {
    let weights: Vec<f64> = (0..settings.inputs).map(|i| settings.number_of(i, "weight")).collect();
    if settings.flag("normalize") {
        return normalised(&weights);
    }
    let coefficients: Vec<f32> = weights.iter().map(|w| *w as f32).collect();
    Ok(weighted_sum(&coefficients, false))
}

/// `Σ wᵢ xᵢ / Σ wᵢ`, around the first model with a weight.
pub(super) fn normalised(weights: &[f64]) -> Result<Recipe> {
    let sum: f64 = weights.iter().sum();
    if vanishes(sum, weights.iter().map(|w| w.abs()).sum()) {
        return Err(Error::config("linear: the weights add up to 0, and normalize divides by their sum")
            .hint("set normalize: false, or give weights with another sum"));
    }
    let coefficients: Vec<f32> = weights.iter().map(|w| (w / sum) as f32).collect();
    Ok(weighted_sum(&coefficients, true))
}

/// A weighted sum that leaves inputs with coefficient 0 unread.
fn weighted_sum(coefficients: &[f32], anchored: bool) -> Recipe {
    let mut reads: Vec<usize> = (0..coefficients.len()).filter(|i| coefficients[*i] != 0.0).collect();
    if reads.is_empty() {
        reads.push(0);
    }
    let coefficients = reads.iter().map(|i| coefficients[*i]).collect();
    Recipe::combine(reads, weighted_sum::Job { anchored, coefficients })
}

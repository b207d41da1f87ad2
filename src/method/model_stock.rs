//! `model_stock`: an average of fine-tuned models, drawn towards the base by the angle between them.
//!
//! ```text
//! oᵢ = xᵢ − base;  c = mean over pairs of cos(oᵢ, oⱼ);  t = N·c / (1 + (N − 1)·c)
//! out = base + t · mean(oᵢ)
//! ```

use super::geometry::{self, Space, Vector, plus};
use super::{Base, Method, Paper, Parameter, Settings};
use crate::error::Result;
use crate::recipe::{Recipe, Segments};

pub(super) const MODEL_STOCK: Method = Method {
    name: "model_stock",
    summary: "average of the models, drawn towards the base by the angle between their task vectors",
    formula: "out = base + t·mean(xᵢ − base), t = N·c / (1 + (N−1)·c), c = mean cosine of the pairs of xᵢ − base",
    paper: Some(Paper {
        title: "Jang et al., Model Stock (ECCV 2024)",
        url: "https://arxiv.org/abs/2403.19522",
    }),
    evidence: None,
    by_processor: None,
    base: Base::Required,
    models: 3..=geometry::MODELS_MAX,
    parameters: &[Parameter::flag(
        "filter_wise",
        false,
        "an angle for each row instead of one for the tensor",
    )],
    recipe,
};

/// The product of two lengths is not taken to be smaller.
const SMALLEST_PRODUCT: f64 = 1e-6;

/// Where 1 + (N − 1)·c is smaller, the base is kept.
const SINGULAR: f64 = 1e-6;

fn recipe(settings: &Settings) -> Result<Recipe> {
    let by = if settings.flag("filter_wise") {
        geometry::segments(settings, MODEL_STOCK.name, false)?
    } else {
        Segments::Whole
    };
    let inputs = std::iter::once(settings.base_input()).chain(settings.non_base()).collect();
    Ok(geometry::recipe(settings, inputs, by, |space| Ok(solve(space))))
}

fn solve(space: &Space<'_>) -> Vector {
    let base = space.difference(0);
    let models = 1..base.len();
    let lengths: Vec<f64> = (0..base.len()).map(|model| space.product(model, model).sqrt()).collect();
    let (mut cosines, mut pairs) = (0.0, 0.0);
    for a in models.clone() {
        for b in a + 1..models.end {
            // Not `max`, which would lose NaN.
            let both = lengths[a] * lengths[b];
            let both = if both < SMALLEST_PRODUCT { SMALLEST_PRODUCT } else { both };
            cosines += (space.product(a, b) / both).clamp(-1.0, 1.0);
            pairs += 1.0;
        }
    }
    let (count, cosine) = (models.len() as f64, cosines / pairs);
    let divisor = 1.0 + (count - 1.0) * cosine;
    let t = if divisor.abs() < SINGULAR { 0.0 } else { count * cosine / divisor };
    models.fold(base, |out, model| plus(&out, t / count, &space.difference(model)))
}

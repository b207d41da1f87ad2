//! fisher: an average of models in which every element of every model has a weight of its own, read from a file.
//!
//! `out = Σ wᵢ·Fᵢ·xᵢ / Σ wᵢ·Fᵢ`, taken around the first model with a weight: `x₀ + Σ wᵢ·Fᵢ·(xᵢ − x₀) / Σ wᵢ·Fᵢ`, so that equal
//! models average to themselves exactly. Devices do not divide by data: the processor makes the average, they store it.

use super::{Base, Method, Paper, Parameter, Scope, Settings, ValueKind};
use crate::error::{Error, Result};
use crate::kernel::weighted_sum;
use crate::recipe::{Making, Recipe};

pub(super) const FISHER: Method = Method {
    name: "fisher",
    summary: "average of the models, each element weighted by its importance to each model, which files say (beyond mergekit)",
    formula: "out = Σ wᵢ·Fᵢ·xᵢ / Σ wᵢ·Fᵢ, Fᵢ: the importance of each element to model i, at least floor",
    paper: Some(Paper {
        title: "Matena and Raffel, Merging models with Fisher-weighted averaging (NeurIPS 2022)",
        url: "https://arxiv.org/abs/2111.09832",
    }),
    evidence: Some(
        "the paper gained over plain averages with BERT and RoBERTa; in the TIES paper (arXiv 2306.01708) it came out ahead of plain averages and behind task arithmetic with T5. Neither tried today's large language models",
    ),
    by_processor: Some(
        "computes the average, whichever device merges, because it divides by data: the device stores it",
    ),
    base: Base::Ignored,
    models: 1..=usize::MAX,
    parameters: &[
        Parameter {
            name: "importance",
            scope: Scope::Input,
            kind: ValueKind::File,
            default: None,
            sensible: None,
            meaning: "the path of the file, beside `model:`: tensors of the model's names and shapes, numbers from 0 up",
        },
        Parameter::number("weight", Scope::Input, 1.0, "a factor for all of the model's importance"),
        Parameter::number(
            "floor",
            Scope::Shared,
            1e-6,
            "no importance counts as less; the default is that of the authors' code, and large for language models, whose squared gradients are often smaller",
        ),
    ],
    recipe,
};

fn recipe(settings: &Settings) -> Result<Recipe> {
    let floor = settings.number("floor") as f32;
    let weights: Vec<f32> = (0..settings.inputs).map(|i| settings.number_of(i, "weight") as f32).collect();
    if let Some(weight) = weights.iter().find(|weight| **weight < 0.0) {
        return Err(Error::config(format!("fisher: the weight {weight} is less than 0"))
            .hint("an average is of weights from 0 up; task_arithmetic takes a model away"));
    }
    if floor <= 0.0 {
        return Err(Error::config(format!("fisher: floor {floor:e} is not more than 0")).hint(
            "where nothing matters to any model, the floor is what is divided by: 1e-6 is the usual one",
        ));
    }
    if weights.iter().all(|weight| weight * floor <= 0.0) {
        return Err(Error::config(
            "fisher: all weights are 0, or vanish beside the floor, and their sum divides",
        )
        .hint("give at least one model a weight of about 1"));
    }
    // What weighs nothing is left out, unread.
    let models = weights.into_iter().enumerate().filter(|(_, weight)| *weight > 0.0).collect();
    let job = weighted_sum::Job { anchored: false, coefficients: vec![1.0] };
    let made = vec![Making::Fisher { models, floor }];
    Ok(Recipe::combine(vec![settings.inputs], job).reading(made))
}

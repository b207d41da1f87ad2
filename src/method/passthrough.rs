//! passthrough: one model's tensors as they are, or scaled. With slices it stacks layers of several models.

use super::{Base, Method, Parameter, Scope, Settings, Value, ValueKind};
use crate::error::Result;
use crate::kernel::{Job, weighted_sum};
use crate::recipe::Recipe;

pub(super) const PASSTHROUGH: Method = Method {
    name: "passthrough",
    summary: "one model's tensors as they are; with slices, layers stacked from several models",
    formula: "out = x   (with scale: out = scale·x)",
    paper: None,
    evidence: None,
    by_processor: None,
    base: Base::Ignored,
    models: 1..=1,
    parameters: &[Parameter {
        name: "scale",
        scope: Scope::Input,
        kind: ValueKind::NumberOrNull,
        default: Some(Value::Null),
        sensible: None,
        meaning: "a factor for every element",
    }],
    recipe,
};

fn recipe(settings: &Settings) -> Result<Recipe> {
    Ok(match settings.number_or_null_of(0, "scale") {
        None => Recipe::Copy,
        Some(scale) => {
            let job = weighted_sum::Job { anchored: false, coefficients: vec![scale as f32] };
            Recipe::combine(vec![0], Job::WeightedSum(job))
        }
    })
}

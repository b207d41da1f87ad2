//! `nearswap`: the base drawn towards another model where the two are near each other.
//!
//! `weight = clamp(t / max(|x − base|, 1e-6), 0, 1)`, `out = weight·x + (1 − weight)·base`. No division is needed: where the models
//! are further apart than `t`, `weight·(x − base)` is `t` with the sign of the difference; where they are not, the weight is 1;
//! and where they are nearer than 1e-6, it is one and the same number.

use super::{Base, Method, Parameter, Scope, Settings};
use crate::error::Result;
use crate::kernel::nearswap;
use crate::recipe::Recipe;

pub(super) const NEARSWAP: Method = Method {
    name: "nearswap",
    summary: "the base, drawn towards the other model where the two are near each other",
    formula: "out = w·x + (1 − w)·base, w = clamp(t / max(|x − base|, 1e-6), 0, 1)",
    paper: None,
    evidence: None,
    by_processor: None,
    base: Base::Required,
    models: 2..=2,
    parameters: &[Parameter::required(
        "t",
        Scope::Shared,
        "the difference up to which the other model's element is taken",
    )],
    recipe,
};

/// Differences count as no smaller.
const NEAR: f64 = 1e-6;

#[expect(clippy::unnecessary_wraps, reason = "a method may refuse")]
fn recipe(settings: &Settings) -> Result<Recipe> {
    let t = settings.number("t").max(0.0);
    let other = settings.non_base().next().expect("the plan counts models");
    let job = nearswap::Job { t: t as f32, near: NEAR as f32, factor: (t / NEAR).min(1.0) as f32 };
    Ok(Recipe::combine(vec![settings.base_input(), other], job))
}

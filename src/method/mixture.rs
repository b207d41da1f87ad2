//! Dense models as the experts of one model: no method of a merge, but the name under which a plan of experts goes.

use super::{Base, Method};
use crate::recipe::Recipe;

pub(super) const MIXTURE: Method = Method {
    name: "moe",
    summary: "dense models become the experts of one model",
    formula: "out = x   (experts: out = (x + noise_scale·z)·residual_scale)",
    paper: None,
    evidence: None,
    by_processor: None,
    base: Base::Ignored,
    models: 1..=usize::MAX,
    parameters: &[],
    recipe: |_| Ok(Recipe::Copy),
};

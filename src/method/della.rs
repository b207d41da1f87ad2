//! `della` and `della_linear`: task vectors thinned out at random, the small magnitudes of a row more than the large ones.
//!
//! An element's probability of being kept grows with the rank of its magnitude in its row, from `density − epsilon` to
//! `density + epsilon`. Ranks are awkward on a device: the processor draws the mask, and every device reads it.

use super::task_vectors::{Thinning, parameters_and, recipe};
use super::{Base, Method, Paper, Parameter, RELIABLE, Scope};
use crate::kernel::VOTERS_MAX;

const DELLA_PAPER: Paper = Paper {
    title: "Deep et al., DELLA-Merging: magnitude-based sampling (2024)",
    url: "https://arxiv.org/abs/2406.11617",
};

const EPSILON: Parameter = Parameter::share(
    "epsilon",
    Scope::NonBase,
    0.15,
    "how far the probabilities of the smallest and the largest magnitude of a row are from the density",
);

const BY_PROCESSOR: Option<&str> = Some(
    "ranks magnitudes within rows and draws the masks, whichever device merges: it hands over one bit an element and model",
);

pub(super) const DELLA: Method = Method {
    name: "della",
    summary: "task vectors thinned out at random, small magnitudes more than large ones, a sign elected per element, the agreeing averaged",
    formula: "vᵢ = wᵢ·rᵢ·mᵢ·(xᵢ − base), mᵢ ~ Bernoulli(density − ε + 2ε·rank), rank of |xᵢ − base| in its row from 0 to 1; s = sign Σ vᵢ; out = base + λ·Σ_{sign vᵢ = s} vᵢ / Σ_{sign vᵢ = s} wᵢ",
    paper: Some(DELLA_PAPER),
    evidence: RELIABLE,
    by_processor: BY_PROCESSOR,
    base: Base::Required,
    models: 1..=VOTERS_MAX + 1,
    parameters: &const { parameters_and(true, true, EPSILON) },
    recipe: |settings| recipe(settings, Thinning::Ranked, true),
};

pub(super) const DELLA_LINEAR: Method = Method {
    name: "della_linear",
    summary: "task vectors thinned out at random, small magnitudes more than large ones, rescaled, weighted and added to the base",
    formula: "out = base + λ·Σ wᵢ·rᵢ·mᵢ·(xᵢ − base), mᵢ ~ Bernoulli(density − ε + 2ε·rank), rank of |xᵢ − base| in its row from 0 to 1",
    paper: Some(DELLA_PAPER),
    evidence: RELIABLE,
    by_processor: BY_PROCESSOR,
    base: Base::Required,
    models: 1..=usize::MAX,
    parameters: &const { parameters_and(false, true, EPSILON) },
    recipe: |settings| recipe(settings, Thinning::Ranked, false),
};

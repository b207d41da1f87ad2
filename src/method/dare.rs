//! `dare_linear` and `dare_ties`: task vectors thinned out at random, then added, or voted on as in TIES.
//!
//! What is kept is scaled so that the task vector keeps its L1 norm. The masks come from a counter-based
//! generator, keyed by seed, tensor name and model: the same on every device and schedule.

use super::task_vectors::{Thinning, parameters, recipe};
use super::{Base, Method, Paper, RELIABLE};
use crate::kernel::VOTERS_MAX;

const DARE: Paper = Paper {
    title: "Yu et al., Language models are Super Mario (DARE, ICML 2024)",
    url: "https://arxiv.org/abs/2311.03099",
};

pub(super) const DARE_LINEAR: Method = Method {
    name: "dare_linear",
    summary: "task vectors thinned out at random, rescaled, weighted and added to the base",
    formula: "out = base + λ·Σ wᵢ·rᵢ·mᵢ·(xᵢ − base), mᵢ ~ Bernoulli(density), rᵢ = Σ|δᵢ| / Σ|mᵢ·δᵢ|",
    paper: Some(DARE),
    evidence: RELIABLE,
    by_processor: None,
    base: Base::Required,
    models: 1..=usize::MAX,
    parameters: &const { parameters(false, true) },
    recipe: |settings| recipe(settings, Thinning::Random, false),
};

pub(super) const DARE_TIES: Method = Method {
    name: "dare_ties",
    summary: "task vectors thinned out at random and rescaled, a sign elected per element, the agreeing added",
    formula: "vᵢ = wᵢ·rᵢ·mᵢ·(xᵢ − base), mᵢ ~ Bernoulli(density); s = sign Σ vᵢ; out = base + λ·Σ_{sign vᵢ = s} vᵢ",
    paper: Some(DARE),
    evidence: RELIABLE,
    by_processor: None,
    base: Base::Required,
    models: 1..=VOTERS_MAX + 1,
    parameters: &const { parameters(false, true) },
    recipe: |settings| recipe(settings, Thinning::Random, true),
};

//! `dare_linear` and `dare_ties`: task vectors thinned out at random, then added, or voted on as in TIES.
//!
//! What is kept is scaled so that the task vector keeps its L1 norm. The masks come from a counter-based
//! generator, keyed by seed, tensor name and model: the same on every device and schedule.

use super::task_vectors::{Thinning, parameters, recipe};
use super::{Base, Method, Paper};
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
    base: Base::Required,
    models: 1..=VOTERS_MAX + 1,
    parameters: &const { parameters(false, true) },
    recipe: |settings| recipe(settings, Thinning::Random, true),
};

/// A density in (0, 1) as a probability in units of 2^-32.
pub(super) fn probability(density: f64) -> u32 {
    (density * 4_294_967_296.0).round().min(f64::from(u32::MAX)) as u32
}

/// The generator's key for one model's mask of one tensor: the first 64 bits of a BLAKE3 hash.
///
/// `position` counts the non-base models in the order listed.
pub(super) fn mask_key(seed: u64, tensor: &str, position: usize) -> [u32; 2] {
    let mut hasher = blake3::Hasher::new_derive_key("mergeforge 2026 random mask");
    hasher.update(&seed.to_le_bytes()).update(&(position as u32).to_le_bytes()).update(tensor.as_bytes());
    let hash = hasher.finalize();
    let word = |i: usize| u32::from_le_bytes(hash.as_bytes()[4 * i..][..4].try_into().expect("four bytes"));
    [word(0), word(1)]
}

//! ties: trim each task vector to its largest magnitudes, elect a sign per element, average who agrees.
//!
//! The sign is that of the weighted sum, and the average is weighted: with equal weights it is the paper's.

use super::task_vectors::{Thinning, parameters, recipe};
use super::{Base, Method, Paper, RELIABLE};
use crate::kernel::VOTERS_MAX;

pub(super) const TIES: Method = Method {
    name: "ties",
    summary: "task vectors trimmed to their largest magnitudes, a sign elected per element, the agreeing averaged",
    formula: "vᵢ = wᵢ·top_k(xᵢ − base); s = sign Σ vᵢ; out = base + λ·Σ_{sign vᵢ = s} vᵢ / Σ_{sign vᵢ = s} wᵢ",
    paper: Some(Paper {
        title: "Yadav et al., TIES-Merging (NeurIPS 2023)",
        url: "https://arxiv.org/abs/2306.01708",
    }),
    evidence: RELIABLE,
    by_processor: None,
    base: Base::Required,
    models: 1..=VOTERS_MAX + 1,
    parameters: &const { parameters(true, false) },
    recipe: |settings| recipe(settings, Thinning::Magnitude, true),
};

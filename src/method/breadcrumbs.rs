//! `breadcrumbs` and `breadcrumbs_ties`: task vectors without their largest and smallest magnitudes.

use super::task_vectors::{Thinning, parameters_and, recipe};
use super::{Base, Method, Paper, Parameter, RELIABLE, Scope};
use crate::kernel::VOTERS_MAX;

const BREADCRUMBS_PAPER: Paper = Paper {
    title: "Davari and Belilovsky, Model Breadcrumbs (ECCV 2024)",
    url: "https://arxiv.org/abs/2312.06795",
};

const GAMMA: Parameter =
    Parameter::share("gamma", Scope::NonBase, 0.01, "the share of the largest magnitudes that is dropped");

pub(super) const BREADCRUMBS: Method = Method {
    name: "breadcrumbs",
    summary: "task vectors without their largest and smallest magnitudes, weighted and added to the base",
    formula: "out = base + λ·Σ wᵢ·bᵢ·(xᵢ − base), bᵢ keeps density·n elements below the gamma·n largest magnitudes",
    paper: Some(BREADCRUMBS_PAPER),
    evidence: RELIABLE,
    by_processor: None,
    base: Base::Required,
    models: 1..=usize::MAX,
    parameters: &const { parameters_and(false, false, GAMMA) },
    recipe: |settings| recipe(settings, Thinning::Outliers, false),
};

pub(super) const BREADCRUMBS_TIES: Method = Method {
    name: "breadcrumbs_ties",
    summary: "task vectors without their largest and smallest magnitudes, a sign elected per element, the agreeing added",
    formula: "vᵢ = wᵢ·bᵢ·(xᵢ − base), bᵢ keeps density·n elements below the gamma·n largest magnitudes; s = sign Σ vᵢ; out = base + λ·Σ_{sign vᵢ = s} vᵢ",
    paper: Some(BREADCRUMBS_PAPER),
    evidence: RELIABLE,
    by_processor: None,
    base: Base::Required,
    models: 1..=VOTERS_MAX + 1,
    parameters: &const { parameters_and(false, false, GAMMA) },
    recipe: |settings| recipe(settings, Thinning::Outliers, true),
};

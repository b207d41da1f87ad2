//! `ram` and `ramplus_tl`: changes that several models share are averaged, those of one model are taken whole.
//!
//! A model holds a change of an element where its task vector there is larger than `epsilon`.

use super::{Base, Method, Paper, Parameter, Scope, Settings};
use crate::error::{Error, Result};
use crate::kernel::choice::Choice;
use crate::kernel::elect::{self, Part, Rule};
use crate::kernel::thinning::Trim;
use crate::kernel::{VOTERS_MAX, holders};
use crate::recipe::{Foreseen, Measured, Pass, Recipe, Segments, everything};

const RAM_PAPER: Paper = Paper {
    title: "Yuan et al., Behavior knowledge merge in reinforced agentic models (2026)",
    url: "https://arxiv.org/abs/2601.13572",
};

const AGENTS: Option<&str> = Some(
    "made for models trained by reinforcement learning, whose task vectors are sparse; of others nearly all changes are shared",
);

const EPSILON: Parameter = Parameter::number("epsilon", Scope::Shared, 1e-5, "changes up to this are none");

pub(super) const RAM: Method = Method {
    name: "ram",
    summary: "changes that several models share averaged, those of one model taken whole",
    formula: "out = base + Σ_{i in H} (xᵢ − base) / |H|, H: the models with |xᵢ − base| > epsilon",
    paper: Some(RAM_PAPER),
    evidence: AGENTS,
    by_processor: None,
    base: Base::Required,
    models: 1..=VOTERS_MAX + 1,
    parameters: &[EPSILON],
    recipe: |settings| {
        let merge = Ram::of(settings)?;
        let job = merge.combination(&vec![1.0; merge.models.len()]);
        Ok(Recipe::combine(merge.reads(), job))
    },
};

pub(super) const RAMPLUS_TL: Method = Method {
    name: "ramplus_tl",
    summary: "as ram, with the changes of one model enlarged the more of its changes are shared",
    formula: "as ram, but out = base + λᵢ·(xᵢ − base) where H = {i}; λᵢ = 1 + r·clamp(sharedᵢ / uniqueᵢ, 0, alpha), counted in the tensor",
    paper: Some(RAM_PAPER),
    evidence: AGENTS,
    by_processor: None,
    base: Base::Required,
    models: 1..=VOTERS_MAX + 1,
    parameters: &[
        Parameter::number("r", Scope::Shared, 0.1, "how much changes of one model are enlarged"),
        Parameter::number(
            "alpha",
            Scope::Shared,
            0.2,
            "the largest ratio of shared changes to others that counts",
        ),
        EPSILON,
    ],
    recipe: enlarging,
};

/// What both methods know of a tensor.
#[derive(Debug, Clone)]
struct Ram {
    elements: u64,
    base: usize,
    models: Vec<usize>,
    /// The key of `epsilon`: what is above is held.
    threshold: u32,
}

impl Ram {
    fn of(settings: &Settings) -> Result<Self> {
        let epsilon = settings.number("epsilon");
        if epsilon < 0.0 {
            let problem =
                format!("with epsilon {epsilon}, what no model has changed would count as a change");
            return Err(Error::config(problem).hint("with epsilon 0, the smallest change counts"));
        }
        Ok(Self {
            elements: settings.elements,
            base: settings.base_input(),
            models: settings.non_base().collect(),
            // Not the bits of −0.
            threshold: (epsilon.abs() as f32).to_bits(),
        })
    }

    fn reads(&self) -> Vec<usize> {
        std::iter::once(self.base).chain(self.models.iter().copied()).collect()
    }

    /// The merge, with a factor for what each model alone holds.
    fn combination(&self, alone: &[f64]) -> elect::Job {
        let choice = Choice::Trim(Trim::new(self.threshold, 0));
        let part = Part { coefficient: 1.0, share: 1.0, choice };
        let of_set = |set: usize| match set.count_ones() {
            1 => alone[set.trailing_zeros() as usize],
            holders => 1.0 / f64::from(holders.max(1)),
        };
        let scale = (0..1usize << self.models.len()).map(|set| of_set(set) as f32).collect();
        elect::Job { models: vec![part; self.models.len()], selectors: 0, rule: Rule::Kept(scale) }
    }

    fn counting(&self) -> holders::Job {
        holders::Job { models: vec![self.threshold; self.models.len()] }
    }
}

fn enlarging(settings: &Settings) -> Result<Recipe> {
    let merge = Ram::of(settings)?;
    let (r, alpha) = (settings.number("r"), settings.number("alpha"));
    let epsilon = settings.number("epsilon");
    let foreseen = vec![
        Foreseen::new(&merge.reads(), merge.counting()),
        Foreseen::new(&merge.reads(), merge.combination(&vec![1.0; merge.models.len()])),
    ];
    Ok(Recipe::steps(2, Segments::Whole, foreseen, move |measured: Measured| {
        let reads = merge.reads();
        Ok(match measured {
            Measured::Nothing => {
                let (job, over) = (merge.counting().into(), everything(merge.elements));
                Some(Pass::Measure { reads, job, by: Segments::Whole, over })
            }
            Measured::Counts(records) => {
                let count =
                    |word: usize| records.iter().map(|r| u64::from(r.counts[word])).sum::<u64>() as f64;
                let factor = |model: usize| {
                    let (held, alone) = (count(2 * model), count(2 * model + 1));
                    1.0 + r * ((held - alone) / alone.max(epsilon)).max(0.0).min(alpha)
                };
                let alone: Vec<f64> = (0..merge.models.len()).map(factor).collect();
                Some(Pass::Combine { reads, job: merge.combination(&alone).into() })
            }
            _ => None,
        })
    }))
}

//! sce: select the elements in which models differ most, calculate weights, erase the minority.
//!
//! Weights are each task vector's mean square, after the selection. Where these add up to less than 1e-6 they are equal, as in
//! mergekit: fine-tunes that move weights by less than 0.001 come to that, and a remark says so.

use super::top_k::{self, COUNTING_SWEEPS_MAX, TopK};
use super::{Base, Method, Paper, Parameter, Scope, Settings};
use crate::error::{Error, Result};
use crate::kernel::choice::{Choice, NOTHING};
use crate::kernel::elect::{self, Part, Rule};
use crate::kernel::thinning::Trim;
use crate::kernel::{Job, VOTERS_MAX, chosen_sums, levels, weighted_sum};
use crate::recipe::{
    Foreseen, Machine, Making, Measured, Pass, Recipe, Remark, Segments, TileCounts, everything,
};

pub(super) const SCE: Method = Method {
    name: "sce",
    summary: "the elements in which task vectors differ most, weighted by their squares, those of the minority's sign erased",
    formula: "δᵢ = xᵢ − base where the variance over the models is among the select_topk largest, else 0; s = sign Σ δᵢ; aᵢ ∝ mean δᵢ²; out = base + Σ_{sign δᵢ = s} aᵢ·δᵢ / Σ_{sign δᵢ = s} aᵢ",
    paper: Some(Paper { title: "Wan et al., FuseChat (2024)", url: "https://arxiv.org/abs/2408.07990" }),
    evidence: Some(
        "FuseChat merged chat models of different sources with it. With task vectors below about 0.001 the weights are equal (a remark says so)",
    ),
    by_processor: Some(
        "computes the variance over the models, where select_topk is below 1, and hands it over as one more input",
    ),
    base: Base::Required,
    models: 1..=VOTERS_MAX + 1,
    parameters: &[
        Parameter::share(
            "select_topk",
            Scope::Shared,
            1.0,
            "the share of the elements with a variance that is kept: those with the largest",
        ),
        Parameter::flag("int8_mask", false, "accepted for mergekit's sake; it never changed a result"),
    ],
    recipe,
};

/// Weights that add up to less are equal instead, and a sum of agreeing weights is not taken to be smaller.
const SMALLEST_WEIGHT: f64 = 1e-6;

const EQUAL_WEIGHTS: &str =
    "sce: the task vectors' mean squares add up to less than 0.000001, so the models weigh alike";

fn recipe(settings: &Settings) -> Result<Recipe> {
    let merge = Sce::of(settings);
    let share = merge.share;
    if merge.models.is_empty() || share <= 0.0 || (share < 1.0 && merge.models.len() == 1) {
        // One model has no variance.
        let job = weighted_sum::Job { anchored: true, coefficients: vec![0.0] };
        return Ok(Recipe::combine(vec![merge.base], job));
    }
    if share >= 1.0 {
        return Ok(Recipe::passes(2, Segments::Whole, merge));
    }
    let made = vec![Making::Zeros, Making::Spread { base: merge.base, models: merge.models.clone() }];
    Ok(Recipe::passes(3 + COUNTING_SWEEPS_MAX, Segments::Whole, merge).reading(made))
}

/// The merge of one tensor.
#[derive(Clone)]
struct Sce {
    elements: u64,
    base: usize,
    models: Vec<usize>,
    /// The share of the elements with a variance that is selected; 1: all elements, unseen.
    share: f64,
    /// Inputs that are made: zeros, and the variance.
    zeros: usize,
    spread: usize,
    /// How many elements are selected, and where.
    selected: u64,
    trim: Option<Trim>,
    is_equal: bool,
    stage: Step,
}

/// What the pass under way is for.
#[derive(Clone)]
enum Step {
    Beginning,
    Counting,
    Selecting(TopK),
    Weighing,
    Combining,
}

impl Sce {
    fn of(settings: &Settings) -> Self {
        Self {
            elements: settings.elements,
            base: settings.base_input(),
            models: settings.non_base().collect(),
            share: settings.number("select_topk"),
            zeros: settings.inputs,
            spread: settings.inputs + 1,
            selected: settings.elements,
            trim: None,
            is_equal: false,
            stage: Step::Beginning,
        }
    }

    fn selects(&self) -> bool {
        self.share < 1.0
    }

    /// The base, the models, and the variance where it decides.
    fn reads(&self) -> Vec<usize> {
        let spread = self.selects().then_some(self.spread);
        std::iter::once(self.base).chain(self.models.iter().copied()).chain(spread).collect()
    }

    fn choice(&self) -> Choice {
        match self.trim {
            Some(trim) => Choice::By { selector: 0, trim, dropped: NOTHING },
            None => Choice::All,
        }
    }

    fn measure(&self, reads: Vec<usize>, job: impl Into<Job>) -> Pass {
        Pass::Measure { reads, job: job.into(), by: Segments::Whole, over: everything(self.elements) }
    }

    /// Counts the elements with a variance: those above 0.
    fn count(&mut self) -> Pass {
        self.stage = Step::Counting;
        self.measure(vec![self.zeros, self.spread], levels::Job { models: vec![vec![1]] })
    }

    /// How many of so many are selected. The product is one of f32, as mergekit's is.
    fn take_count(&mut self, records: &[TileCounts]) {
        let with_variance: u64 = records.iter().map(|record| u64::from(record.counts[0])).sum();
        // Which may be rounded up.
        self.selected = ((with_variance as f32 * self.share as f32) as u64).min(with_variance);
    }

    fn selection(&self) -> TopK {
        TopK::new(self.elements, self.zeros, std::iter::once((self.spread, self.selected.max(1))))
    }

    fn select(&mut self, mut selection: TopK, measured: Measured) -> Pass {
        if let Some(pass) = selection.next(measured) {
            self.stage = Step::Selecting(selection);
            return pass;
        }
        self.trim = selection.trims().next();
        self.weigh()
    }

    fn sums(&self) -> chosen_sums::Job {
        chosen_sums::Job {
            models: vec![self.choice(); self.models.len()],
            selectors: usize::from(self.selects()),
        }
    }

    fn weigh(&mut self) -> Pass {
        self.stage = Step::Weighing;
        self.measure(self.reads(), self.sums())
    }

    fn combine(&mut self, sums: &[f64]) -> Pass {
        let squares: Vec<f64> = sums.chunks_exact(3).map(|sums| sums[2] / self.elements as f64).collect();
        let total: f64 = squares.iter().sum();
        self.is_equal = total < SMALLEST_WEIGHT && self.models.len() > 1;
        let weight = |square: f64| {
            if total < SMALLEST_WEIGHT { 1.0 / squares.len() as f64 } else { square / total }
        };
        let weights: Vec<f32> = squares.iter().map(|square| weight(*square) as f32).collect();
        self.stage = Step::Combining;
        Pass::Combine { reads: self.reads(), job: self.combination(&weights).into() }
    }

    fn combination(&self, weights: &[f32]) -> elect::Job {
        let part = |share: &f32| Part { coefficient: 1.0, share: *share, choice: self.choice() };
        let of_set = |set: usize| {
            let agreeing = weights.iter().enumerate().filter(|(i, _)| set >> i & 1 == 1);
            1.0 / agreeing.map(|(_, weight)| f64::from(*weight)).sum::<f64>().max(SMALLEST_WEIGHT)
        };
        elect::Job {
            models: weights.iter().map(part).collect(),
            selectors: usize::from(self.selects()),
            rule: Rule::Signs((0..1usize << weights.len()).map(|set| of_set(set) as f32).collect()),
        }
    }

    /// The base as it is: nothing is selected.
    fn keep_the_base(&mut self) -> Pass {
        (self.stage, self.trim) = (Step::Combining, None);
        let job = weighted_sum::Job { anchored: true, coefficients: vec![0.0] };
        Pass::Combine { reads: vec![self.base], job: job.into() }
    }
}

impl Machine for Sce {
    fn fresh(&self) -> Box<dyn Machine> {
        Box::new(self.clone())
    }

    fn foreseen(&self) -> Vec<Foreseen> {
        let mut foreseen = Vec::new();
        if self.selects() {
            foreseen.push(Foreseen::new(&[self.zeros, self.spread], levels::Job { models: vec![vec![1]] }));
            foreseen.extend(self.selection().foreseen());
        }
        foreseen.push(Foreseen::new(&self.reads(), self.sums()));
        foreseen.push(Foreseen::new(&self.reads(), self.combination(&vec![0.0; self.models.len()])));
        foreseen
    }

    fn next(&mut self, measured: Measured) -> Result<Option<Pass>> {
        Ok(Some(match std::mem::replace(&mut self.stage, Step::Beginning) {
            Step::Beginning if self.selects() => self.count(),
            Step::Beginning => self.weigh(),
            Step::Counting => {
                self.take_count(&measured.counts());
                if self.selected == 0 {
                    self.keep_the_base()
                } else {
                    self.select(self.selection(), Measured::Nothing)
                }
            }
            Step::Selecting(selection) => self.select(selection, measured),
            Step::Weighing => self.combine(&measured.sums()),
            Step::Combining => {
                let kept = measured.kept()[0];
                return match self.trim {
                    Some(trim) if !top_k::proves(kept, self.selected, trim) => Err(Error::device(format!(
                        "{kept} elements were selected and not the {} of the largest variance: the device contradicts itself",
                        self.selected
                    ))
                    .hint("`mergeforge check` tests the device; please report this")),
                    _ => Ok(None),
                };
            }
        }))
    }

    fn remark(&self) -> Option<Remark> {
        self.is_equal.then_some(Remark::Borrowed(EQUAL_WEIGHTS))
    }
}

//! `arcee_fusion`: the elements of a model that matter most, the base elsewhere.
//!
//! An element matters by its change times the divergence of its row's softmax from the base's. Those that are outliers by the
//! quartiles are taken over.

use super::top_k::{COUNTING_SWEEPS_MAX, TopK};
use super::{Base, Method, Settings};
use crate::error::Result;
use crate::kernel::choice::{Choice, EVERYTHING, NOTHING};
use crate::kernel::elect::{self, Part, Rule};
use crate::kernel::thinning::Trim;
use crate::kernel::{KEY_MAX, key};
use crate::recipe::{Foreseen, Machine, Making, Measured, Pass, Recipe, Segments};

pub(super) const ARCEE_FUSION: Method = Method {
    name: "arcee_fusion",
    summary: "the other model's elements where their change matters most, the base elsewhere",
    formula: "out = base + [I ≥ median + 1.5·(q₃ − q₁)]·(x − base), I = |x − base|·KL(softmax(x) ‖ softmax(base)) by rows, q: the quartiles of I in the tensor",
    paper: None,
    evidence: None,
    by_processor: Some(
        "computes softmax, divergence and importance in f64, whichever device merges, and hands the importance over as one more input",
    ),
    base: Base::Required,
    models: 2..=2,
    parameters: &[],
    recipe,
};

#[expect(clippy::unnecessary_wraps, reason = "a method may refuse")]
fn recipe(settings: &Settings) -> Result<Recipe> {
    let merge = Fusion {
        elements: settings.elements,
        base: settings.base_input(),
        other: settings.non_base().next().expect("the plan counts models"),
        zeros: settings.inputs,
        importance: settings.inputs + 1,
        stage: Step::Beginning,
    };
    let made = vec![Making::Zeros, Making::Importance { base: merge.base, model: merge.other }];
    Ok(Recipe::passes(1 + COUNTING_SWEEPS_MAX, Segments::Whole, merge).reading(made))
}

/// The merge of one tensor.
#[derive(Clone)]
struct Fusion {
    elements: u64,
    base: usize,
    other: usize,
    /// Inputs that are made.
    zeros: usize,
    importance: usize,
    stage: Step,
}

/// What the pass under way is for.
#[derive(Clone)]
enum Step {
    Beginning,
    Selecting(TopK),
    Combining,
}

impl Fusion {
    /// A search for the three quartiles: of the importances in order, number `trunc(q·(n − 1))`.
    fn selection(&self) -> TopK {
        let rank = |quartile: u64| self.elements - quartile * self.elements.saturating_sub(1) / 4;
        let ranks = [1, 2, 3].map(|quartile| (self.importance, rank(quartile)));
        TopK::new(self.elements, self.zeros, ranks.into_iter())
    }

    fn select(&mut self, mut selection: TopK, measured: Measured) -> Result<Pass> {
        if let Some(pass) = selection.next(measured) {
            self.stage = Step::Selecting(selection);
            return Ok(pass);
        }
        selection.check()?;
        self.stage = Step::Combining;
        let mut quartiles = selection.trims().map(|trim| f64::from(f32::from_bits(trim.threshold)));
        let mut next = || quartiles.next().expect("three quartiles");
        let (first, median, third) = (next(), next(), next());
        let job = Self::combination(least_kept(first, median, third)).into();
        Ok(Pass::Combine { reads: self.reads(), job })
    }

    fn reads(&self) -> Vec<usize> {
        vec![self.base, self.other, self.importance]
    }

    fn combination(trim: Trim) -> elect::Job {
        let part = Part {
            coefficient: 1.0,
            share: 1.0,
            choice: Choice::By { selector: 0, trim, dropped: NOT_A_NUMBER },
        };
        elect::Job { models: vec![part], selectors: 1, rule: Rule::Sum }
    }
}

/// An importance that is none is the largest key, and at least as large as nothing.
const NOT_A_NUMBER: Trim = Trim { threshold: KEY_MAX - 1, cut_tile: 0, cut_lane: 0 };

/// Keeps what is at least `median + 1.5·(q₃ − q₁)`; nothing, where that is no number.
fn least_kept(first: f64, median: f64, third: f64) -> Trim {
    let threshold = (median + 1.5 * (third - first)) as f32;
    match key(threshold) {
        _ if threshold.is_nan() => NOTHING,
        0 => EVERYTHING,
        // All equal ones are kept: they are above the key before.
        key => Trim::new(key - 1, 0),
    }
}

impl Machine for Fusion {
    fn fresh(&self) -> Box<dyn Machine> {
        Box::new(self.clone())
    }

    fn foreseen(&self) -> Vec<Foreseen> {
        let mut foreseen = self.selection().foreseen();
        foreseen.push(Foreseen::new(&self.reads(), Self::combination(Trim::new(0, 0))));
        foreseen
    }

    fn next(&mut self, measured: Measured) -> Result<Option<Pass>> {
        Ok(match std::mem::replace(&mut self.stage, Step::Beginning) {
            Step::Beginning => {
                let selection = self.selection();
                Some(self.select(selection, measured)?)
            }
            Step::Selecting(selection) => Some(self.select(selection, measured)?),
            Step::Combining => None,
        })
    }
}

//! What candidates are measured by: texts that they read in memory.

use super::candidate::{Candidate, Engine, measure};
use crate::config::Config;
use crate::decoder::Machine;
use crate::error::Result;
use crate::eval::{Listen, Mean, Window, Windows};
use crate::plan::Choices;
use crate::stream::Watch;

/// Measures candidates.
pub trait Objective {
    /// Whether tries are measured as whole as the most promising are.
    fn tries_are_whole(&self) -> bool;

    /// How many candidates are worth measuring together.
    fn together(&self) -> usize;

    /// What these configs come to, each with a seed of random masks; `whole` says whether on everything, or on the part that tries get.
    ///
    /// # Errors
    /// One cannot be merged or measured.
    fn measure(&mut self, configs: Vec<(Config, u64)>, whole: bool) -> Result<Vec<Measured>>;
}

/// What was measured of a candidate.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// By name, in their order; lower is better.
    pub values: Vec<f64>,
    /// Their standard errors; NaN where they are not known.
    pub errors: Vec<f64>,
}

/// A set of texts.
#[derive(Debug)]
pub struct Set {
    /// Its name.
    pub name: String,
    /// Its windows, as the donor's tokenizer makes them.
    pub windows: Windows,
}

/// The mean loss of each of some sets of texts.
pub struct ByTexts<'o> {
    part: Texts,
    whole: Texts,
    choices: Choices,
    engine: Engine,
    watch: &'o dyn Watch,
    listen: &'o dyn Listen,
}

/// Windows of all sets one behind the other, and where those of each end.
struct Texts {
    windows: Vec<Window>,
    ends: Vec<usize>,
}

impl Texts {
    /// Of each set every so many windows.
    fn of(sets: &[Set], step: usize) -> Self {
        let (mut windows, mut ends) = (Vec::new(), Vec::new());
        for set in sets {
            windows.extend(set.windows.windows.iter().step_by(step).cloned());
            ends.push(windows.len());
        }
        Self { windows, ends }
    }

    fn tokens(&self) -> usize {
        self.windows.iter().map(|window| window.tokens.len()).sum()
    }

    fn by_set<'a, T>(&'a self, of_windows: &'a [T]) -> impl Iterator<Item = &'a [T]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, end)| &of_windows[start..*end])
    }
}

impl<'o> ByTexts<'o> {
    /// Sets of texts, of which tries read so many tokens together, or a few more; 0: all.
    pub fn new(
        sets: &[Set],
        tokens: usize,
        choices: Choices,
        engine: Engine,
        watch: &'o dyn Watch,
        listen: &'o dyn Listen,
    ) -> Self {
        let whole = Texts::of(sets, 1);
        let step = if tokens == 0 { 1 } else { whole.tokens().div_ceil(tokens).max(1) };
        Self { part: Texts::of(sets, step), whole, choices, engine, watch, listen }
    }

    /// Tokens that a try reads, and all.
    pub fn tokens(&self) -> [usize; 2] {
        [self.part.tokens(), self.whole.tokens()]
    }

    /// Leaves so many bytes of the memory to others.
    pub fn leave(&mut self, bytes: u64) {
        self.engine.memory = self.engine.memory.saturating_sub(bytes);
    }

    /// What reads the texts.
    pub fn machine(&mut self) -> &mut dyn Machine {
        &mut *self.engine.machine
    }

    /// The windows of tries, by set: what a prediction has to read.
    pub fn windows_of_tries(&self) -> Vec<Vec<Window>> {
        self.part.by_set(&self.part.windows).map(<[Window]>::to_vec).collect()
    }
}

impl Objective for ByTexts<'_> {
    fn tries_are_whole(&self) -> bool {
        self.part.windows.len() == self.whole.windows.len()
    }

    fn together(&self) -> usize {
        usize::MAX
    }

    fn measure(&mut self, configs: Vec<(Config, u64)>, whole: bool) -> Result<Vec<Measured>> {
        let texts = if whole { &self.whole } else { &self.part };
        let open = |(config, seed)| {
            Candidate::open(config, &Choices { seed, ..self.choices }, &self.engine, self.watch)
        };
        let candidates = configs.into_iter().map(open).collect::<Result<Vec<_>>>()?;
        let losses = measure(&candidates, &texts.windows, &mut self.engine, self.watch, self.listen)?;
        let of = |losses: crate::eval::Losses| {
            let means: Vec<Mean> = texts.by_set(&losses.windows).map(Mean::of).collect();
            let values = means.iter().map(|mean| mean.loss).collect();
            Measured { values, errors: means.iter().map(|mean| mean.error).collect() }
        };
        Ok(losses.into_iter().map(of).collect())
    }
}

//! What candidates are measured by: texts that they read in memory.

use super::candidate::{Candidate, Engine, measure, of_candidate};
use crate::config::Config;
use crate::decoder::Machine;
use crate::error::Result;
use crate::eval::{Listen, Losses, Mean, Window, Windows};
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
    /// Within: why a candidate failed, by which the others are not affected.
    ///
    /// # Errors
    /// What the next candidates would meet as well: an input that cannot be read, a full disk, the user's wish to stop.
    fn measure(&mut self, configs: Vec<(Config, u64)>, whole: bool) -> Result<Vec<Result<Measured>>>;
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

    /// The most memory of which half may be kept for good, in bytes, so that the rest is enough for a candidate.
    ///
    /// # Errors
    /// The memory is too small even for that.
    pub fn shared_memory(&self, first: &Candidate) -> Result<u64> {
        let memory = self.engine.memory;
        let least = self.engine.least_bytes(first, &self.whole.windows)?;
        Ok(memory.min(2 * memory.saturating_sub(least)))
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

    fn measure(&mut self, configs: Vec<(Config, u64)>, whole: bool) -> Result<Vec<Result<Measured>>> {
        let texts = if whole { &self.whole } else { &self.part };
        let (mut candidates, mut found) = (Vec::new(), Vec::new());
        for (config, seed) in configs {
            let choices = Choices { seed, ..self.choices };
            let opened = of_candidate(Candidate::open(config, &choices, &self.engine, self.watch))?;
            found.push(opened.map(|candidate| candidates.push(candidate)));
        }
        let losses = measure(&candidates, &texts.windows, &mut self.engine, self.watch, self.listen)?;
        let mut losses = losses.into_iter();
        let of = |losses: Losses| {
            let means: Vec<Mean> = texts.by_set(&losses.windows).map(Mean::of).collect();
            let values = means.iter().map(|mean| mean.loss).collect();
            Measured { values, errors: means.iter().map(|mean| mean.error).collect() }
        };
        let found = found.into_iter();
        Ok(found
            .map(|opened| opened.and_then(|()| losses.next().expect("each was measured").map(of)))
            .collect())
    }
}

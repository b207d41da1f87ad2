//! Counts of task-vector magnitudes at a few given keys: one sweep of the exact selection, for data with ties.
//!
//! Deltas of bfloat16 weights take few values, and the k-th largest is usually one that a sample has shown.
//! For each such level the sweep counts the keys at or above it and those equal to it, which needs no
//! histogram: nothing is serialised on one counter, however equal the data are.

use super::{Inputs, TILE, key};

/// The most levels of a model.
pub const LEVELS_MAX: usize = 16;

/// Counters per model: at or above the first level, equal to it, at or above the second, …
pub const WORDS: usize = 2 * LEVELS_MAX;

/// The numbers of one tensor: input 0 is the base, then one list of at most [`LEVELS_MAX`] keys per further input.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// The levels of each non-base model.
    pub models: Vec<Vec<u32>>,
}

/// The job's words: per model how many levels, then room for [`LEVELS_MAX`] keys.
pub fn pack(job: &Job, words: &mut Vec<u32>) {
    for levels in &job.models {
        words.push(levels.len() as u32);
        words.extend(levels.iter().copied().chain(std::iter::repeat(0)).take(LEVELS_MAX));
    }
}

/// Adds one tile to the counters: [`WORDS`] per model.
#[inline(always)]
pub fn tile(job: &Job, inputs: &Inputs<'_>, counts: &mut [u32]) {
    let base = inputs.of(0);
    for (model, (levels, counts)) in job.models.iter().zip(counts.chunks_exact_mut(WORDS)).enumerate() {
        let mut keys = [0; TILE];
        let x = inputs.of(model + 1);
        keys.iter_mut().zip(x).zip(base).for_each(|((slot, x), base)| *slot = key(x - base));
        for (level, [at_or_above, equal]) in levels.iter().zip(counts.as_chunks_mut::<2>().0) {
            let keys = keys[..x.len()].iter();
            *at_or_above += keys.clone().map(|key| u32::from(key >= level)).sum::<u32>();
            *equal += keys.map(|key| u32::from(key == level)).sum::<u32>();
        }
    }
}

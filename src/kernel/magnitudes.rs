//! Counts of task-vector magnitudes around the k-th largest: one sweep of the exact selection.
//!
//! Each model has a bracket of [`BINS`] bins of 2^shift keys from `lowest` up. The sweep counts the keys
//! in each bin and above the bracket. A bin holds one distinct key when `shift` is 0, or when no key of the
//! bracket has any of its low bits set, as is the rule for deltas of bfloat16 weights.

pub use super::packed::Bracket;
use super::packed::append;
use super::{Inputs, TILE, key};

/// Bins of a bracket; with the counters of four models they fit 32 KiB of on-chip memory.
pub const BINS: usize = 2048;

/// Counters per model: the bins, then [`ABOVE`], then [`UNEVEN`].
pub const WORDS: usize = BINS + 2;

/// The counter of keys above the bracket.
pub const ABOVE: usize = BINS;

/// The counter of keys inside the bracket with low bits set, so that their bin may hold several keys.
pub const UNEVEN: usize = BINS + 1;

/// The numbers of one tensor: input 0 is the base, then one bracket per further input.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// One bracket per non-base model.
    pub models: Vec<Bracket>,
}

/// The job's words: the models' brackets.
pub fn pack(job: &Job, words: &mut Vec<u32>) {
    job.models.iter().for_each(|bracket| append(words, bracket));
}

/// Adds one tile to the counters: [`WORDS`] per model.
#[inline(always)]
pub fn tile(job: &Job, inputs: &Inputs<'_>, counts: &mut [u32]) {
    let base = inputs.of(0);
    for (model, (bracket, counts)) in job.models.iter().zip(counts.chunks_exact_mut(WORDS)).enumerate() {
        count(*bracket, inputs.of(model + 1), base, counts);
    }
}

#[inline(always)]
fn count(bracket: Bracket, x: &[f32], base: &[f32], counts: &mut [u32]) {
    let Bracket { lowest, shift } = bracket;
    let low_bits = (1u32 << shift) - 1;
    let mut keys = [0; TILE];
    keys.iter_mut().zip(x).zip(base).for_each(|((slot, x), base)| *slot = key(x - base));
    let keys = &keys[..x.len()];
    let bin = |key: u32| key.wrapping_sub(lowest) >> shift;
    let inside = |key: u32| key >= lowest && bin(key) < BINS as u32;
    let above = |key: u32| key >= lowest && bin(key) >= BINS as u32;
    counts[ABOVE] += keys.iter().map(|key| u32::from(above(*key))).sum::<u32>();
    counts[UNEVEN] += keys.iter().map(|key| u32::from(inside(*key) && key & low_bits != 0)).sum::<u32>();
    // Few keys are inside, and where is not to be foreseen: they are gathered without a branch, then counted.
    let mut bins = [0u16; TILE];
    let mut found = 0;
    for key in keys {
        bins[found % TILE] = bin(*key) as u16;
        found += usize::from(inside(*key));
    }
    let bin_counts: &mut [u32; BINS] = counts[..BINS].as_mut_array().expect("the bins come first");
    for bin in &bins[..found] {
        bin_counts[usize::from(*bin) % BINS] += 1;
    }
}

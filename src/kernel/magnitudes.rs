//! Counts of task-vector magnitudes around the k-th largest: one sweep of the exact selection.
//!
//! Each model has a bracket of [`BINS`] bins of 2^shift keys from `lowest` up. The sweep counts the keys
//! in each bin and above the bracket. A bin holds one distinct key when `shift` is 0, or when no key of the
//! bracket has any of its low bits set, as is the rule for deltas of bfloat16 weights.

pub use super::packed::Bracket;
use super::packed::append;
use super::{Inputs, TILE, key};
use crate::dtype::Element;

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
pub fn tile<E: Element>(job: &Job, inputs: &Inputs<'_, E>, counts: &mut [u32]) {
    let base = inputs.of(0);
    for (model, (bracket, counts)) in job.models.iter().zip(counts.chunks_exact_mut(WORDS)).enumerate() {
        count(*bracket, inputs.of(model + 1), base, counts);
    }
}

#[inline(always)]
fn count<E: Element>(bracket: Bracket, x: &[E], base: &[E], counts: &mut [u32]) {
    const OUTSIDE: u16 = BINS as u16;
    let Bracket { lowest, shift } = bracket;
    let low_bits = (1u32 << shift) - 1;
    let len = x.len().min(TILE);
    let (x, base) = (&x[..len], &base[..len]);
    let mut bins = [OUTSIDE; TILE];
    let (mut above, mut uneven) = (0u32, 0u32);
    for i in 0..len {
        let key = key(x[i].value() - base[i].value());
        let bin = key.wrapping_sub(lowest) >> shift;
        let not_below = key >= lowest;
        let inside = not_below && bin < BINS as u32;
        above += u32::from(not_below) - u32::from(inside);
        uneven += u32::from(inside && key & low_bits != 0);
        bins[i] = if inside { bin as u16 } else { OUTSIDE };
    }
    counts[ABOVE] += above;
    counts[UNEVEN] += uneven;
    // Few keys are inside, and where is not to be foreseen: they are gathered without a branch, then counted.
    let mut gathered = [0u16; TILE];
    let mut found = 0;
    for bin in &bins[..len] {
        gathered[found % TILE] = *bin;
        found += usize::from(*bin < OUTSIDE);
    }
    let bin_counts: &mut [u32; BINS] = counts[..BINS].as_mut_array().expect("the bins come first");
    for bin in &gathered[..found] {
        bin_counts[usize::from(*bin) % BINS] += 1;
    }
}

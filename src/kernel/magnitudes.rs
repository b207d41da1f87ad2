//! Counts of task-vector magnitudes around the k-th largest: one sweep of the exact selection.
//!
//! Each model has a bracket of [`BINS`] bins of 2^shift keys from `lowest` up. The sweep counts the keys
//! in each bin and above the bracket. A bin holds one distinct key when `shift` is 0, or when no key of the
//! bracket has any of its low bits set, as is the rule for deltas of bfloat16 weights.

use super::{Inputs, key};

/// Bins of a bracket; with the counters of four models they fit 32 KiB of on-chip memory.
pub const BINS: usize = 2048;

/// Counters per model: the bins, then [`ABOVE`], then [`UNEVEN`].
pub const WORDS: usize = BINS + 2;

/// The counter of keys above the bracket.
pub const ABOVE: usize = BINS;

/// The counter of keys inside the bracket with low bits set, so that their bin may hold several keys.
pub const UNEVEN: usize = BINS + 1;

/// One model's bracket.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Bracket {
    /// The first key of the first bin, a multiple of 2^shift.
    pub lowest: u32,
    /// Each bin holds 2^shift keys.
    pub shift: u32,
}

/// The numbers of one tensor: input 0 is the base, then one bracket per further input.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// One bracket per non-base model.
    pub models: Vec<Bracket>,
}

/// Adds one tile to the counters: [`WORDS`] per model.
#[inline]
pub fn tile(job: &Job, inputs: &Inputs<'_>, counts: &mut [u32]) {
    let base = inputs.of(0);
    for (model, (bracket, counts)) in job.models.iter().zip(counts.chunks_exact_mut(WORDS)).enumerate() {
        let (mut above, mut uneven) = (0, 0);
        let low_bits = (1 << bracket.shift) - 1;
        for (x, base) in inputs.of(model + 1).iter().zip(base) {
            let key = key(x - base);
            let bin = key.wrapping_sub(bracket.lowest) >> bracket.shift;
            if key >= bracket.lowest {
                if (bin as usize) < BINS {
                    counts[bin as usize] += 1;
                    uneven += u32::from(key & low_bits != 0);
                } else {
                    above += 1;
                }
            }
        }
        counts[ABOVE] += above;
        counts[UNEVEN] += uneven;
    }
}

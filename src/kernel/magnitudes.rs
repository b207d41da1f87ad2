//! Counts of task-vector magnitudes around the k-th largest: one sweep of the exact selection.
//!
//! Each model has a bracket of [`BINS`] bins of 2^shift keys from `lowest` up. The sweep counts the keys
//! in each bin and above the bracket. A bin holds one distinct key when `shift` is 0, or when no key of the
//! bracket has any of its low bits set, as is the rule for deltas of bfloat16 weights.

use std::ops::Range;

use super::packed::{append, packed};
use super::{CaseNumbers, Compiled, Kernel, Needs, Numbers, Outcome, TILE, Target, TileInputs, VOTERS_MAX, Widest, key};
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

packed! {
    /// One model's bracket of bins.
    pub struct Bracket as Bracket {
        /// The first key of the first bin, a multiple of 2^shift.
        lowest: u32,
        /// Each bin holds 2^shift keys.
        shift: u32,
    }
}

impl Bracket {
    /// The bin of a key in the bracket.
    pub fn bin(&self, key: u32) -> Option<usize> {
        let bin = (key.checked_sub(self.lowest)? >> self.shift) as usize;
        (bin < BINS).then_some(bin)
    }
}

/// The record.
pub(super) const KERNEL: Kernel = Kernel {
    name: "magnitudes",
    ptx: Compiled { text: include_str!("../../kernels/ptx/magnitudes.ptx"), models: 2 },
    wgsl: Compiled { text: include_str!("../../shaders/magnitudes.wgsl"), models: 0 },
    group_words: WORDS,
    needs: |widest, chunk_tiles| Needs {
        record_words: widest.counted() * WORDS,
        job_words: Widest::spans_of(chunk_tiles) * widest.counted() * Bracket::WORDS,
        ..Needs::default()
    },
    structs: &[Bracket::STRUCT],
    constants: &[
        ("BINS", BINS as u32),
        ("ABOVE", ABOVE as u32),
        ("UNEVEN", UNEVEN as u32),
        ("MAGNITUDES_WORDS", WORDS as u32),
    ],
    cases,
    benches,
};

fn cases(drawn: &CaseNumbers) -> Vec<super::Job> {
    if drawn.models > VOTERS_MAX {
        return Vec::new();
    }
    // In the midst of the deltas, with zero, below infinity, and half of all keys: the last two end where NaN begins.
    let usual = [(0.01f32.to_bits(), 15), (0, 0), (0.01f32.to_bits(), 12), (0x7f00_0000, 12), (0, 19)];
    // One bin further; all keys; more bins than there are keys.
    let with_nan = [(0x7f00_1000, 12), (0, 20), (0, 30)];
    let bracket = |&(key, shift): &(u32, u32)| Bracket { lowest: key >> shift << shift, shift };
    let first = |count: usize| usual.iter().cycle().take(count).map(bracket);
    // One such bracket is enough for a block to count otherwise.
    let rest = |last: &(u32, u32)| first(drawn.models - 1).chain(std::iter::once(bracket(last))).collect();
    let all = std::iter::once(first(drawn.models).collect()).chain(with_nan.iter().map(rest));
    all.map(|models| Job { models }.into()).collect()
}

fn benches(keys: &[u32]) -> Vec<(&'static str, super::Job)> {
    let bracket = |i: usize| Bracket { lowest: keys[i] >> 12 << 12, shift: 12 };
    let job = |models: usize| Job { models: (0..models).map(bracket).collect() }.into();
    vec![("selection without ties, base + 2", job(2)), ("selection without ties, base + 4", job(4))]
}

impl Numbers for Job {
    fn inputs(&self) -> usize {
        1 + self.models.len()
    }

    fn outcome(&self) -> Outcome {
        Outcome::Counts { words: self.models.len() * WORDS }
    }

    fn models(&self) -> usize {
        self.models.len()
    }

    /// The models' brackets.
    fn pack(&self, _: &Range<u64>, words: &mut Vec<u32>) {
        self.models.iter().for_each(|bracket| append(words, bracket));
    }

    fn plain(&self, _: u64, x: &[&[f32]], target: Target<'_>) {
        let counts = target.words();
        for (model, bracket) in self.models.iter().enumerate() {
            let counts = &mut counts[model * WORDS..];
            for (x, base) in x[model + 1].iter().zip(x[0]) {
                let key = key(x - base);
                if let Some(bin) = bracket.bin(key) {
                    counts[bin] += 1;
                    counts[UNEVEN] += u32::from(!key.is_multiple_of(1 << bracket.shift));
                } else if key >= bracket.lowest {
                    counts[ABOVE] += 1;
                }
            }
        }
    }

    #[inline(always)]
    fn tile<E: Element>(&self, _: u64, inputs: &TileInputs<'_, E>, _: &mut Vec<f32>, target: Target<'_>) {
        fast(self, inputs, target.words());
    }
}

/// The fast path: adds one tile to the counters, [`WORDS`] per model.
#[inline(always)]
fn fast<E: Element>(job: &Job, inputs: &TileInputs<'_, E>, counts: &mut [u32]) {
    let base = inputs.of(0);
    for (model, (bracket, counts)) in job.models.iter().zip(counts.chunks_exact_mut(WORDS)).enumerate() {
        count(*bracket, inputs.of(model + 1), base, counts);
    }
}

#[inline(always)]
fn count<E: Element>(bracket: Bracket, x: &[E], base: &[E], counts: &mut [u32]) {
    const OUTSIDE: u16 = BINS as u16;
    /// Elements that are looked through together.
    const ROW: usize = 32;
    let Bracket { lowest, shift } = bracket;
    let low_bits = (1u32 << shift) - 1;
    let len = x.len().min(TILE);
    let (x, base) = (&x[..len], &base[..len]);
    let mut bins = [OUTSIDE; TILE];
    let (mut above, mut uneven, mut first) = (0u32, 0u32, 0u32);
    for i in 0..len {
        let key = key(x[i].value() - base[i].value());
        let bin = key.wrapping_sub(lowest) >> shift;
        let not_below = key >= lowest;
        let inside = not_below && bin < BINS as u32;
        above += u32::from(not_below) - u32::from(inside);
        uneven += u32::from(inside && key & low_bits != 0);
        // Zeros are often many: one counter after the other would wait for itself.
        first += u32::from(not_below && bin == 0);
        bins[i] = if inside && bin != 0 { bin as u16 } else { OUTSIDE };
    }
    counts[ABOVE] += above;
    counts[UNEVEN] += uneven;
    counts[0] += first;
    // Few keys are inside, and where is not to be foreseen: rows with none are passed over, those of the others are gathered
    // without a branch, then counted.
    let mut gathered = [0u16; TILE];
    let mut found = 0;
    for row in bins.as_chunks::<ROW>().0 {
        if row.iter().fold(OUTSIDE, |least, bin| least.min(*bin)) == OUTSIDE {
            continue;
        }
        for bin in row {
            gathered[found % TILE] = *bin;
            found += usize::from(*bin < OUTSIDE);
        }
    }
    let bin_counts: &mut [u32; BINS] = counts[..BINS].as_mut_array().expect("the bins come first");
    for bin in &gathered[..found] {
        bin_counts[usize::from(*bin) % BINS] += 1;
    }
}

//! Counts of task-vector magnitudes at a few given keys: one sweep of the exact selection, for data with ties.
//!
//! Deltas of bfloat16 weights take few values, and the k-th largest is usually one that a sample has shown.
//! For each such level the sweep counts the keys at or above it and those equal to it, which needs no
//! histogram: nothing is serialised on one counter, however equal the data are.

use std::ops::Range;

use super::{
    CaseNumbers, Compiled, KEY_MAX, Kernel, Needs, Numbers, Outcome, TILE, Target, TileInputs, VOTERS_MAX,
    Widest, key,
};
use crate::dtype::{Element, INFINITY_BITS};

/// The most levels of a model.
pub const LEVELS_MAX: usize = 16;

/// Counters per model: at or above the first level, equal to it, at or above the second, …
pub const WORDS: usize = 2 * LEVELS_MAX;

/// The numbers of one tensor: input 0 is the base, then one list of at most [`LEVELS_MAX`] keys per further input.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// The levels of each non-base model, ascending, each once.
    pub models: Vec<Vec<u32>>,
}

/// The record.
pub(super) const KERNEL: Kernel = Kernel {
    name: "levels",
    ptx: Compiled { text: include_str!("../../kernels/ptx/levels.ptx"), models: 2 },
    wgsl: Compiled { text: include_str!("../../shaders/levels.wgsl"), models: 0 },
    group_words: 0,
    needs: |widest, chunk_tiles| Needs {
        record_words: widest.counted() * WORDS,
        job_words: Widest::spans_of(chunk_tiles) * widest.counted() * (1 + LEVELS_MAX),
        ..Needs::default()
    },
    structs: &[],
    constants: &[("LEVELS_MAX", LEVELS_MAX as u32), ("LEVELS_WORDS", WORDS as u32)],
    cases,
    benches,
};

fn cases(drawn: &CaseNumbers) -> Vec<super::Job> {
    if drawn.models > VOTERS_MAX {
        return Vec::new();
    }
    let quarter = 0.25f32.to_bits();
    // Keys that are frequent, rare and none; one alone, and 0; as many as there may be, up to infinity.
    let usual = |i: usize| {
        let mut levels = match i % 5 {
            0 => vec![drawn.threshold, quarter, 2 * quarter, 0.5f32.to_bits() + i as u32],
            1 => vec![quarter],
            2 => vec![0],
            4 => vec![INFINITY_BITS],
            _ => (1..LEVELS_MAX as u32)
                .map(|step| quarter + ((step * step) << 18) - (16 << 18))
                .chain([INFINITY_BITS])
                .collect(),
        };
        levels.sort_unstable();
        levels.dedup();
        levels
    };
    // One model whose levels end with NaN is enough for a block to count otherwise.
    let with_nan =
        |i: usize| if i + 1 == drawn.models { vec![quarter, INFINITY_BITS, KEY_MAX] } else { usual(i) };
    let job = |levels: &dyn Fn(usize) -> Vec<u32>| Job { models: (0..drawn.models).map(levels).collect() }.into();
    vec![job(&usual), job(&with_nan)]
}

fn benches(keys: &[u32]) -> Vec<(&'static str, super::Job)> {
    // The threshold and six keys above it, in units of a bfloat16 delta.
    let levels = |i: usize| (0..7).map(|step| keys[i] + (step << 16)).collect();
    let job = |models: usize| Job { models: (0..models).map(levels).collect() }.into();
    vec![("selection, base + 2", job(2)), ("selection, base + 4", job(4))]
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

    /// Per model how many levels, then room for [`LEVELS_MAX`] keys.
    fn pack(&self, _: &Range<u64>, words: &mut Vec<u32>) {
        for levels in &self.models {
            debug_assert!(levels.is_sorted_by(|a, b| a < b), "{levels:?} ascend");
            words.push(levels.len() as u32);
            words.extend(levels.iter().copied().chain(std::iter::repeat(0)).take(LEVELS_MAX));
        }
    }

    fn plain(&self, _: u64, x: &[&[f32]], target: Target<'_>) {
        let counts = target.words();
        for (model, levels) in self.models.iter().enumerate() {
            let counts = &mut counts[model * WORDS..];
            for (x, base) in x[model + 1].iter().zip(x[0]) {
                for (place, level) in levels.iter().enumerate() {
                    counts[2 * place] += u32::from(key(x - base) >= *level);
                    counts[2 * place + 1] += u32::from(key(x - base) == *level);
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
    for (model, (levels, counts)) in job.models.iter().zip(counts.chunks_exact_mut(WORDS)).enumerate() {
        let x = inputs.of(model + 1);
        let counts = counts.as_chunks_mut::<2>().0;
        if levels.iter().all(|level| level.trailing_zeros() >= 16) {
            let mut halves = [0; TILE];
            halves.iter_mut().zip(x).zip(base).for_each(|((slot, x), base)| {
                *slot = half_of(key(x.value() - base.value()));
            });
            let levels = levels.iter().map(|level| half_of(*level));
            // A tile's counts fit 16 bits.
            levels.zip(counts).for_each(|(level, counts)| count(&halves[..x.len()], level, counts));
        } else {
            let mut keys = [0; TILE];
            keys.iter_mut().zip(x).zip(base).for_each(|((slot, x), base)| {
                *slot = key(x.value() - base.value());
            });
            levels.iter().zip(counts).for_each(|(level, counts)| {
                let keys = keys[..x.len()].iter();
                counts[0] += keys.clone().map(|key| u32::from(key >= level)).sum::<u32>();
                counts[1] += keys.map(|key| u32::from(key == level)).sum::<u32>();
            });
        }
    }
}

/// A key's upper half, and in the lowest bit whether there is anything in the lower one. So it compares with a key that has
/// no lower half as the whole key does, and twice as many are compared at once.
#[inline(always)]
fn half_of(key: u32) -> u16 {
    (key >> 16 << 1) as u16 | u16::from(key & 0xffff != 0)
}

/// Counts the keys at or above a level, and equal to it.
#[inline(always)]
fn count(halves: &[u16], level: u16, [at_or_above, equal]: &mut [u32; 2]) {
    let (mut above, mut same) = (0u16, 0u16);
    for half in halves {
        above += u16::from(*half >= level);
        same += u16::from(*half == level);
    }
    *at_or_above += u32::from(above);
    *equal += u32::from(same);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keys and levels around every border of the upper half, and some in between.
    #[test]
    fn halves_compare_as_whole_keys_do() {
        let levels = (0..=KEY_MAX >> 16).step_by(97).map(|upper| upper << 16);
        for level in levels.chain([KEY_MAX >> 16 << 16]) {
            let below = level.saturating_sub(1);
            for key in [0, below, level, level + 1, level + 0xffff, level + 0x1_0000, KEY_MAX] {
                let key = key.min(KEY_MAX);
                let (half, of_level) = (half_of(key), half_of(level));
                assert_eq!(half >= of_level, key >= level, "{key:08x} and {level:08x}");
                assert_eq!(half == of_level, key == level, "{key:08x} and {level:08x}");
            }
        }
    }
}

//! How many elements of a task vector are more than next to nothing, and in how many of them it is alone with that among all
//! models.
//!
//! A model holds an element where its magnitude is above the model's threshold.

use std::ops::Range;

use super::{
    CaseNumbers, Compiled, KEY_MAX, Kernel, Needs, Numbers, Outcome, TILE, Target, TileInputs, VOTERS_MAX,
    Widest, key,
};
use crate::dtype::Element;

/// Counters per model: elements that it holds, and those that it alone holds.
pub const WORDS: usize = 2;

/// The numbers of one tensor: input 0 is the base, then one model per further input.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// The threshold key of each non-base model, of which there are at most [`VOTERS_MAX`].
    pub models: Vec<u32>,
}

/// The record.
pub(super) const KERNEL: Kernel = Kernel {
    name: "holders",
    ptx: Compiled { text: include_str!("../../kernels/ptx/holders.ptx"), models: 0 },
    wgsl: Compiled { text: include_str!("../../shaders/holders.wgsl"), models: 0 },
    group_words: 0,
    needs: |widest, chunk_tiles| Needs {
        record_words: widest.counted() * WORDS,
        job_words: Widest::spans_of(chunk_tiles) * widest.counted(),
        ..Needs::default()
    },
    structs: &[],
    constants: &[("HOLDERS_WORDS", WORDS as u32)],
    cases,
    benches,
};

fn cases(drawn: &CaseNumbers) -> Vec<super::Job> {
    if drawn.models > VOTERS_MAX {
        return Vec::new();
    }
    // Where many have the same magnitude, where none have, at the least magnitudes, and one that no key is above.
    let mixed = [0.25f32.to_bits(), drawn.threshold, 0, 0.5f32.to_bits(), 1e-5f32.to_bits(), KEY_MAX];
    let job = |threshold: &dyn Fn(usize) -> u32| Job { models: (0..drawn.models).map(threshold).collect() }.into();
    vec![
        job(&|i| mixed[i % mixed.len()]),
        job(&|i| mixed[(i + 1) % 2]),
        // High ones, so that of many models few hold an element.
        job(&|i| (1.25f32 + i as f32 / 8.0).to_bits()),
    ]
}

fn benches(keys: &[u32]) -> Vec<(&'static str, super::Job)> {
    let job = |models: usize| Job { models: keys[..models].to_vec() }.into();
    vec![("holders, base + 2", job(2)), ("holders, base + 4", job(4))]
}

impl Numbers for Job {
    fn inputs(&self) -> usize {
        1 + self.models.len()
    }

    fn outcome(&self) -> Outcome {
        Outcome::Counts { words: WORDS * self.models.len() }
    }

    /// The thresholds.
    fn pack(&self, _: &Range<u64>, words: &mut Vec<u32>) {
        words.extend(&self.models);
    }

    fn plain(&self, _: u64, x: &[&[f32]], target: Target<'_>) {
        let counts = target.words();
        for (i, base) in x[0].iter().enumerate() {
            let holds = |m: &usize| key(x[m + 1][i] - base) > self.models[*m];
            let holders: Vec<usize> = (0..self.models.len()).filter(holds).collect();
            for m in &holders {
                counts[WORDS * m] += 1;
                counts[WORDS * m + 1] += u32::from(holders.len() == 1);
            }
        }
    }

    #[inline(always)]
    fn tile<E: Element>(&self, _: u64, inputs: &TileInputs<'_, E>, _: &mut Vec<f32>, target: Target<'_>) {
        fast(self, inputs, target.words());
    }
}

/// The fast path: adds one tile to the counters.
#[inline(always)]
fn fast<E: Element>(job: &Job, inputs: &TileInputs<'_, E>, counts: &mut [u32]) {
    let (base, len) = (inputs.of(0), inputs.len);
    // Of each element, a bit for each model that holds it.
    let mut holders = [0u16; TILE];
    for (m, threshold) in job.models.iter().enumerate() {
        let x = &inputs.of(m + 1)[..len];
        for i in 0..len {
            holders[i] |= u16::from(key(x[i].value() - base[i].value()) > *threshold) << m;
        }
    }
    for (m, counts) in counts.as_chunks_mut::<WORDS>().0.iter_mut().enumerate() {
        let (mut held, mut alone) = (0u16, 0u16);
        for holders in &holders[..len] {
            held += holders >> m & 1;
            alone += u16::from(*holders == 1 << m);
        }
        counts[0] += u32::from(held);
        counts[1] += u32::from(alone);
    }
}

/// A bit for each model.
const _: () = assert!(VOTERS_MAX <= 16);

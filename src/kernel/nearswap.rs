//! A model drawn to the base where they are near each other, and kept by the base where they are not.
//!
//! With `d = x − base` it is `weight · x + (1 − weight) · base` for `weight = clamp(t / max(|d|, near), 0, 1)`, without a
//! division:
//!
//! ```text
//! |d| < near   out = base + factor · d           factor = min(t / near, 1)
//! |d| ≤ t      out = x
//! else         out = base ± t                    the sign of d
//! ```
//!
//! `0 · d` is added to each, so that NaN and infinity spread.

use std::ops::Range;

use super::packed::{PLAIN, append, packed};
use super::{CaseNumbers, Compiled, Kernel, Needs, Numbers, Outcome, Target, TileInputs, Widest};
use crate::dtype::Element;

/// The numbers of one tensor: input 0 is the base, input 1 the model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Job {
    /// The distance up to which the model is taken as it is, 0 or more.
    pub t: f32,
    /// Distances below this count as this one, 0 or more.
    pub near: f32,
    /// What is left of them: `min(t / near, 1)`.
    pub factor: f32,
}

/// The record.
pub(super) const KERNEL: Kernel = Kernel {
    name: "nearswap",
    ptx: Compiled { text: include_str!("../../kernels/ptx/nearswap.ptx"), models: 0 },
    wgsl: Compiled { text: include_str!("../../shaders/nearswap.wgsl"), models: 0 },
    group_words: 0,
    needs: |_, chunk_tiles| Needs {
        job_words: Widest::spans_of(chunk_tiles) * PackedNearness::WORDS,
        ..Needs::default()
    },
    structs: &[PackedNearness::STRUCT],
    constants: &[],
    cases,
    benches,
};

fn cases(drawn: &CaseNumbers) -> Vec<super::Job> {
    let t = f32::from_bits(drawn.threshold);
    let jobs = [
        Job { t, near: 1e-8, factor: 1.0 },
        Job { t: 0.25, near: 0.25, factor: 1.0 },
        Job { t: 0.125, near: 0.5, factor: 0.25 },
        Job { t: 0.0, near: 1e-8, factor: 0.0 },
    ];
    jobs.map(Into::into).into()
}

fn benches(_: &[u32]) -> Vec<(&'static str, super::Job)> {
    vec![("nearswap, base + 1", Job { t: 1e-3, near: 1e-8, factor: 1.0 }.into())]
}

impl Numbers for Job {
    fn inputs(&self) -> usize {
        2
    }

    fn outcome(&self) -> Outcome {
        Outcome::Values
    }

    /// The distance is only added: all numbers will do that inputs may be.
    fn factors(&self, _: &Range<u64>) -> Vec<f32> {
        let plain = self.t == 0.0 || PLAIN.contains(&self.t);
        vec![self.factor, if plain { 1.0 } else { self.t }]
    }

    fn pack(&self, _: &Range<u64>, words: &mut Vec<u32>) {
        append(words, &PackedNearness { t: self.t, near: self.near, factor: self.factor });
    }

    fn plain(&self, _: u64, x: &[&[f32]], target: Target<'_>) {
        for (i, out) in target.values().0.iter_mut().enumerate() {
            *out = self.swapped(x[0][i], x[1][i]);
        }
    }

    #[inline(always)]
    fn tile<E: Element>(&self, _: u64, inputs: &TileInputs<'_, E>, _: &mut Vec<f32>, target: Target<'_>) {
        let (base, x) = (inputs.of(0), &inputs.of(1)[..inputs.len]);
        for ((out, base), x) in target.values().0.iter_mut().zip(base).zip(x) {
            let (base, x) = (base.value(), x.value());
            let d = x - base;
            // Without branches, and so by vectors.
            let swapped = if d.abs() <= self.t { x } else { base + self.t.copysign(d) };
            let nearest = base + self.factor * d;
            *out = if d.abs() < self.near { nearest } else { swapped } + 0.0 * d;
        }
    }
}

impl Job {
    /// The plain rule.
    fn swapped(&self, base: f32, x: f32) -> f32 {
        let d = x - base;
        let out = if d.abs() < self.near {
            base + self.factor * d
        } else if d.abs() <= self.t {
            x
        } else if d > 0.0 {
            base + self.t
        } else {
            base - self.t
        };
        out + 0.0 * d
    }
}

packed! {
    /// See [`Job`].
    pub struct PackedNearness as Nearness {
        /// The distance up to which the model is taken.
        t: f32,
        /// Distances below this count as this one.
        near: f32,
        /// What is left of them.
        factor: f32,
    }
}

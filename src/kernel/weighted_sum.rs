//! `out = Σ cᵢ xᵢ`, or around an anchor `out = x₀ + Σ cᵢ (xᵢ − x₀)`.
//!
//! With the anchor, merging a model with itself returns it bit for bit: every difference is zero.

use std::ops::Range;

use super::packed::{FACTORS, append_floats};
use super::{CaseNumbers, Compiled, Kernel, Needs, Numbers, Outcome, Target, TileInputs, Widest};
use crate::dtype::Element;

/// The numbers of one tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// Whether input 0 is the anchor; its coefficient is then not used.
    pub anchored: bool,
    /// One coefficient per input.
    pub coefficients: Vec<f32>,
}

/// The record.
pub(super) const KERNEL: Kernel = Kernel {
    name: "weighted_sum",
    ptx: Compiled { text: include_str!("../../kernels/ptx/weighted_sum.ptx"), models: 0 },
    wgsl: Compiled { text: include_str!("../../shaders/weighted_sum.wgsl"), models: 0 },
    group_words: 0,
    needs: |widest, chunk_tiles| Needs {
        job_words: Widest::spans_of(chunk_tiles) * (1 + widest.inputs),
        ..Needs::default()
    },
    structs: &[],
    constants: &[],
    cases,
    benches,
};

fn cases(drawn: &CaseNumbers) -> Vec<super::Job> {
    let coefficients = || drawn.coefficients.clone();
    // Terms near the least numbers that no device flushes.
    let tiny = drawn.coefficients.iter().map(|c| (c.abs() + 1.0) * FACTORS.start()).collect();
    let jobs = [
        Job { anchored: false, coefficients: coefficients() },
        Job { anchored: true, coefficients: coefficients() },
        Job { anchored: true, coefficients: tiny },
    ];
    jobs.map(Into::into).into()
}

fn benches(_: &[u32]) -> Vec<(&'static str, super::Job)> {
    let job = |inputs: usize| Job { anchored: true, coefficients: vec![0.3; inputs] }.into();
    vec![
        ("linear, 2 models", job(2)),
        ("linear, 3 models", job(3)),
        ("task arithmetic, base + 4", job(5)),
    ]
}

impl Numbers for Job {
    fn inputs(&self) -> usize {
        self.coefficients.len()
    }

    fn outcome(&self) -> Outcome {
        Outcome::Values
    }

    fn factors(&self, _: &Range<u64>) -> Vec<f32> {
        self.coefficients.clone()
    }

    /// Whether the sum is anchored, then the coefficients.
    fn pack(&self, _: &Range<u64>, words: &mut Vec<u32>) {
        words.push(self.anchored.into());
        append_floats(words, &self.coefficients);
    }

    fn plain(&self, _: u64, x: &[&[f32]], target: Target<'_>) {
        for (i, out) in target.values().0.iter_mut().enumerate() {
            let anchor = if self.anchored { x[0][i] } else { 0.0 };
            let mut sum = 0.0;
            for (x, c) in x.iter().zip(&self.coefficients).skip(self.anchored.into()) {
                sum += c * (x[i] - anchor);
            }
            *out = sum + anchor;
        }
    }

    #[inline(always)]
    fn tile<E: Element>(&self, _: u64, inputs: &TileInputs<'_, E>, _: &mut Vec<f32>, target: Target<'_>) {
        fast(self, inputs, target.values().0);
    }
}

/// The fast path.
#[inline(always)]
fn fast<E: Element>(job: &Job, inputs: &TileInputs<'_, E>, out: &mut [f32]) {
    match job.coefficients.len() {
        2 => few::<2, E>(job, inputs, out),
        3 => few::<3, E>(job, inputs, out),
        4 => few::<4, E>(job, inputs, out),
        5 => few::<5, E>(job, inputs, out),
        _ => many(job, inputs, out),
    }
}

/// So few inputs that each element is read, summed up and stored at once.
#[inline(always)]
fn few<const N: usize, E: Element>(job: &Job, inputs: &TileInputs<'_, E>, out: &mut [f32]) {
    // Slices of one length, and indices: the compiler needs no checks, and uses vectors.
    let coefficients: [f32; N] = *job.coefficients.as_array().expect("N coefficients");
    let x: [&[E]; N] = inputs.several(0);
    let out = &mut out[..inputs.len];
    if job.anchored {
        for i in 0..inputs.len {
            let (mut sum, first) = (0.0, x[0][i].value());
            for input in 1..N {
                sum += coefficients[input] * (x[input][i].value() - first);
            }
            out[i] = sum + first;
        }
    } else {
        for i in 0..inputs.len {
            let mut sum = coefficients[0] * x[0][i].value();
            for input in 1..N {
                sum += coefficients[input] * x[input][i].value();
            }
            out[i] = sum;
        }
    }
}

/// The inputs one after the other.
#[inline(always)]
fn many<E: Element>(job: &Job, inputs: &TileInputs<'_, E>, out: &mut [f32]) {
    let first = inputs.of(0);
    if !job.anchored {
        for (sum, x) in out.iter_mut().zip(first) {
            *sum = job.coefficients[0] * x.value();
        }
        for (i, c) in job.coefficients.iter().enumerate().skip(1) {
            for (sum, x) in out.iter_mut().zip(inputs.of(i)) {
                *sum += c * x.value();
            }
        }
        return;
    }
    out.fill(0.0);
    for (i, c) in job.coefficients.iter().enumerate().skip(1) {
        for ((sum, x), anchor) in out.iter_mut().zip(inputs.of(i)).zip(first) {
            *sum += c * (x.value() - anchor.value());
        }
    }
    for (sum, anchor) in out.iter_mut().zip(first) {
        *sum += anchor.value();
    }
}

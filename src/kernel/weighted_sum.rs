//! `out = Σ cᵢ xᵢ`, or around an anchor `out = x₀ + Σ cᵢ (xᵢ − x₀)`.
//!
//! With the anchor, merging a model with itself returns it bit for bit: every difference is zero.

use super::Inputs;
use super::packed::append_floats;

/// The numbers of one tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// Whether input 0 is the anchor; its coefficient is then not used.
    pub anchored: bool,
    /// One coefficient per input.
    pub coefficients: Vec<f32>,
}

/// The job's words: whether it is anchored, then the coefficients.
pub fn pack(job: &Job, words: &mut Vec<u32>) {
    words.push(job.anchored.into());
    append_floats(words, &job.coefficients);
}

/// Merges one tile.
#[inline(always)]
pub fn tile(job: &Job, inputs: &Inputs<'_>, out: &mut [f32]) {
    let first = inputs.of(0);
    if !job.anchored {
        for (sum, x) in out.iter_mut().zip(first) {
            *sum = job.coefficients[0] * x;
        }
        for (i, c) in job.coefficients.iter().enumerate().skip(1) {
            for (sum, x) in out.iter_mut().zip(inputs.of(i)) {
                *sum += c * x;
            }
        }
        return;
    }
    out.fill(0.0);
    for (i, c) in job.coefficients.iter().enumerate().skip(1) {
        for ((sum, x), anchor) in out.iter_mut().zip(inputs.of(i)).zip(first) {
            *sum += c * (x - anchor);
        }
    }
    for (sum, anchor) in out.iter_mut().zip(first) {
        *sum += anchor;
    }
}

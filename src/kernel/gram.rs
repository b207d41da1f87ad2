//! All pairwise inner products of `(x₀, x₁ − x₀, x₂ − x₀, …)`, tile by tile.
//!
//! The differences are measured instead of the models, so that nearly parallel models do not cancel; the
//! host changes to the basis it wants.

use super::{Inputs, TILE, fold_tile};

/// The numbers of one tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// How many tensors; the sums are the upper triangle row by row: (0,0), (0,1), …, (1,1), …
    pub inputs: usize,
}

/// How many inner products `inputs` vectors have.
pub const fn pairs(inputs: usize) -> usize {
    inputs * (inputs + 1) / 2
}

/// Writes the tile's [`pairs`] inner products.
#[inline(always)]
pub fn tile(job: &Job, inputs: &Inputs<'_>, scratch: &mut Vec<f32>, sums: &mut [f32]) {
    scratch.resize(job.inputs * TILE, 0.0);
    let anchor = inputs.of(0);
    scratch[..inputs.len].copy_from_slice(anchor);
    for (input, vector) in scratch.chunks_exact_mut(TILE).enumerate().skip(1) {
        for ((difference, x), anchor) in vector.iter_mut().zip(inputs.of(input)).zip(anchor) {
            *difference = x - anchor;
        }
    }
    let vector = |input: usize| scratch[input * TILE..][..inputs.len].iter();
    let mut next = sums.iter_mut();
    for a in 0..job.inputs {
        for (b, sum) in (a..job.inputs).zip(&mut next) {
            *sum = fold_tile(vector(a).zip(vector(b)).map(|(a, b)| a * b));
        }
    }
}

//! All pairwise inner products of `(x₀, x₁ − x₀, x₂ − x₀, …)`, tile by tile.
//!
//! The differences are measured instead of the models, so that nearly parallel models do not cancel; the
//! host changes to the basis it wants.

use super::{Inputs, TILE, fold_terms};

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
#[inline]
pub fn tile(job: &Job, inputs: &Inputs<'_>, sums: &mut [f32]) {
    let anchor = inputs.of(0);
    let vector = |input: usize, i: usize| match input {
        0 => anchor[i],
        _ => inputs.of(input)[i] - anchor[i],
    };
    let mut terms = [0.0; TILE];
    let mut next = sums.iter_mut();
    for a in 0..job.inputs {
        for (b, sum) in (a..job.inputs).zip(&mut next) {
            *sum = fold_terms(&mut terms, inputs.len, |i| vector(a, i) * vector(b, i));
        }
    }
}

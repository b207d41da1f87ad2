//! The keys of all task vectors, element by element: `|xᵢ − base|` as integers.
//!
//! Run on small pieces only: whole small tensors, a sample of a large one, or the stretch that holds the
//! last kept value of a tie.

use super::{Inputs, key};
use crate::dtype::Element;

/// The numbers of one tensor: input 0 is the base.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// How many non-base models.
    pub models: usize,
}

/// Writes `models` keys per element: all of the first model's tile, then the second's.
#[inline(always)]
pub fn tile<E: Element>(job: &Job, inputs: &Inputs<'_, E>, words: &mut [u32]) {
    let base = inputs.of(0);
    for (model, words) in (1..=job.models).zip(words.chunks_exact_mut(inputs.len)) {
        for ((word, x), base) in words.iter_mut().zip(inputs.of(model)).zip(base) {
            *word = key(x.value() - base.value());
        }
    }
}

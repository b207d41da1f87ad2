//! The keys of all task vectors, element by element: `|xᵢ − base|` as integers.
//!
//! It runs over small parts only: whole small tensors, a sample of a large one, or the stretch that holds the
//! last kept value of a tie.

use super::{CaseNumbers, Compiled, Kernel, Needs, Numbers, Outcome, Target, TileInputs, VOTERS_MAX, key};
use crate::dtype::Element;

/// The numbers of one tensor: input 0 is the base.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// How many non-base models.
    pub models: usize,
}

/// The record.
pub(super) const KERNEL: Kernel = Kernel {
    name: "keys",
    ptx: Compiled { text: include_str!("../../kernels/ptx/keys.ptx"), models: 0 },
    wgsl: Compiled { text: include_str!("../../shaders/keys.wgsl"), models: 0 },
    group_words: 0,
    needs: |widest, _| Needs { element_words: widest.counted(), ..Needs::default() },
    structs: &[],
    constants: &[],
    cases,
    benches,
};

fn cases(drawn: &CaseNumbers) -> Vec<super::Job> {
    if drawn.models > VOTERS_MAX {
        return Vec::new();
    }
    vec![Job { models: drawn.models }.into()]
}

fn benches(_: &[u32]) -> Vec<(&'static str, super::Job)> {
    vec![("keys of a sample, base + 2", Job { models: 2 }.into())]
}

impl Numbers for Job {
    fn inputs(&self) -> usize {
        1 + self.models
    }

    fn outcome(&self) -> Outcome {
        Outcome::Words { words: self.models }
    }

    fn plain(&self, _: u64, x: &[&[f32]], target: Target<'_>) {
        let (words, len) = (target.words(), x[0].len());
        for model in 0..self.models {
            for i in 0..len {
                words[model * len + i] = key(x[model + 1][i] - x[0][i]);
            }
        }
    }

    /// Writes all keys of the first model's tile, then the second's.
    #[inline(always)]
    fn tile<E: Element>(&self, _: u64, inputs: &TileInputs<'_, E>, _: &mut Vec<f32>, target: Target<'_>) {
        let (words, base) = (target.words(), inputs.of(0));
        for (model, words) in (1..=self.models).zip(words.chunks_exact_mut(inputs.len)) {
            for ((word, x), base) in words.iter_mut().zip(inputs.of(model)).zip(base) {
                *word = key(x.value() - base.value());
            }
        }
    }
}

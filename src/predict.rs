//! How well merges will read texts, without merging: out of what their parents make of the same texts.
//!
//! A merge `W₀ + Σ cᵢ (Wᵢ − W₀)` of models with a common past has nearly the logits `L₀ + Σ cᵢ (Lᵢ − L₀)` (Zhou et al., On the
//! emergence of cross-task linearity, arXiv 2402.03660). [`Parents`] read the texts once; the loss of any merge of them then takes
//! milliseconds. Of each token that counts it keeps the tokens that any parent expects most, and of all others what they come to.
//!
//! A parent may be a whole model, or the first one with another's tensors in a group of layers, so that merges with weights by layer
//! are between parents too.

mod blend;
mod estimate;
mod gathering;
mod measure;

pub use blend::{Beyond, Blend, Coefficients};
pub use estimate::{Agreement, Estimate};
pub use measure::{Options, Reading};

use std::ops::Range;

use crate::decoder::Decoder;
use gathering::Shape;

/// Models that have read some sets of texts, and what is kept of that.
#[derive(Debug)]
pub struct Parents {
    /// What each of them is: the first model; of each other model its groups of layers, one after the other, if there is more than one;
    /// and the other models.
    pub names: Vec<String>,
    /// The groups of layers.
    pub groups: Groups,
    /// The sets, by name.
    pub sets: Vec<String>,
    /// What is kept, and what it took.
    pub facts: Facts,
    shape: Shape,
    /// Where the windows of each set are among all.
    windows: Vec<Range<usize>>,
    /// Where the tokens of each window are among all that count.
    tokens: Vec<Range<usize>>,
    /// Of each token that counts what is kept of it.
    values: Vec<f32>,
}

/// What is kept of the parents' logits.
#[derive(Debug, Clone, PartialEq)]
pub struct Facts {
    /// Tokens of the vocabulary whose logits are kept, of each token of the texts that counts.
    pub top: usize,
    /// The vocabulary.
    pub vocabulary: usize,
    /// The share of probability that the kept tokens have, in the mean over parents and tokens of the texts.
    pub share: f64,
    /// What is kept takes so many bytes.
    pub kept_bytes: u64,
    /// The most memory that was used.
    pub bytes: u64,
    /// Of them, those of a device with its own memory.
    pub device_bytes: u64,
    /// How often the models were read.
    pub passes: usize,
}

/// Groups of neighbouring layers. What is outside of layers (embedding, last norm, head) belongs to the first, as in gradients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Groups {
    layers: usize,
    count: usize,
}

impl Groups {
    /// So many groups of so many layers, nearly alike in size; no more than there are layers.
    pub fn of(layers: usize, count: usize) -> Self {
        Self { layers, count: count.clamp(1, layers.max(1)) }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The layers of one.
    pub fn layers(&self, group: usize) -> Range<usize> {
        let start = |group: usize| group * self.layers / self.count;
        start(group)..start(group + 1)
    }

    /// The group of a tensor, by its name.
    pub fn of_tensor(&self, name: &str) -> usize {
        let layer = Decoder::layer_of(name).unwrap_or(0);
        (0..self.count).find(|group| layer < self.layers(*group).end).unwrap_or(self.count - 1)
    }
}

/// Bytes that are kept of each token of the texts that counts, of so many parents and where memory does not ask for less; `top` as in
/// [`Options`].
pub fn kept_bytes(parents: usize, vocabulary: usize, top: usize) -> u64 {
    (Shape::of(parents, measure::kept_tokens(vocabulary, top), vocabulary).stride() * size_of::<f32>()) as u64
}

impl Parents {
    /// How many there are, the first included.
    pub fn count(&self) -> usize {
        self.names.len()
    }

    /// How many coefficients a merge has: one for each group of layers of each model but the first.
    pub fn coefficients(&self) -> usize {
        let groups = self.groups.count();
        if groups == 1 { self.count() - 1 } else { (self.count() - 1) / (groups + 1) * groups }
    }

    /// What a merge takes of each parent but the first. The effects of groups do not quite add up to that of their model. So of a model
    /// whose groups have different coefficients the mean of these is taken of the whole model, and the rest of its groups.
    fn of_parents(&self, c: &[f64]) -> Vec<f64> {
        assert_eq!(c.len(), self.coefficients(), "a merge has a coefficient for each group of each model");
        let groups = self.groups.count();
        if groups == 1 {
            return c.to_vec();
        }
        let mean = |of_groups: &[f64]| of_groups.iter().sum::<f64>() / groups as f64;
        let means: Vec<f64> = c.chunks_exact(groups).map(mean).collect();
        let rest =
            c.chunks_exact(groups).zip(&means).flat_map(|(own, mean)| own.iter().map(move |c| c - mean));
        rest.chain(means.iter().copied()).collect()
    }

    /// Tokens of a set that count.
    pub fn counted(&self, set: usize) -> usize {
        self.windows(set).iter().map(ExactSizeIterator::len).sum()
    }

    /// The tokens of each window of a set.
    fn windows(&self, set: usize) -> &[Range<usize>] {
        &self.tokens[self.windows[set].clone()]
    }

    /// What is kept of a token.
    fn token(&self, token: usize) -> &[f32] {
        &self.values[token * self.shape.stride()..][..self.shape.stride()]
    }
}

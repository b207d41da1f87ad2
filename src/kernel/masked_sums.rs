//! `Σ |xᵢ − base|` and the same of what is kept of it, for every model: what `rescale` needs.
//!
//! The two L1 norms stand side by side per tile: all, then kept. A dropped term is multiplied by 0.

use super::consensus::{Keep, Model, weighted_delta};
use super::packed::{self, append};
use super::{Inputs, TILE, fold_tile};

/// The numbers of one tensor: input 0 is the base, then one rule per further input.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// What is kept, per non-base model.
    pub models: Vec<Keep>,
}

/// The job's words: the models, with coefficient 1.
pub fn pack(job: &Job, words: &mut Vec<u32>) {
    let model = |keep: &Keep| packed::Model::from(Model { coefficient: 1.0, keep: *keep });
    job.models.iter().for_each(|keep| append(words, &model(keep)));
}

/// Writes the tile's sums: two per model.
#[inline(always)]
pub fn tile(job: &Job, tile: u64, inputs: &Inputs<'_>, sums: &mut [f32]) {
    let base = inputs.of(0);
    let (mut kept, mut sum) = ([0.0; TILE], [0.0; TILE]);
    for (model, (keep, sums)) in job.models.iter().zip(sums.chunks_exact_mut(2)).enumerate() {
        let x = inputs.of(model + 1);
        weighted_delta(&Model { coefficient: 1.0, keep: *keep }, tile, x, base, &mut kept, &mut sum);
        sums[0] = fold_tile(x.iter().zip(base).map(|(x, base)| (x - base).abs()));
        sums[1] = fold_tile(kept[..inputs.len].iter().map(|kept| kept.abs()));
    }
}

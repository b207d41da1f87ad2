//! `Σ |xᵢ − base|` and the same of what is kept of it, for every model: what `rescale` needs.
//!
//! The two L1 norms stand side by side per tile: all, then kept. A dropped term is multiplied by 0.

use super::consensus::{Keep, Model, factors};
use super::packed::{self, append};
use super::{Inputs, TILE, fold_tile};
use crate::dtype::Element;

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

/// Writes the tile's sums: two per model. `scratch` is room that outlives the call; what it holds does not matter.
#[inline(always)]
pub fn tile<E: Element>(
    job: &Job,
    tile: u64,
    inputs: &Inputs<'_, E>,
    scratch: &mut Vec<f32>,
    sums: &mut [f32],
) {
    scratch.resize(scratch.len().max(3 * TILE), 0.0);
    let [all, kept, room] = scratch.as_chunks_mut::<TILE>().0.first_chunk_mut().expect("three tiles");
    let (base, len) = (inputs.of(0), inputs.len);
    for (model, (keep, sums)) in job.models.iter().zip(sums.chunks_exact_mut(2)).enumerate() {
        let x = inputs.of(model + 1);
        factors(&Model { coefficient: 1.0, keep: *keep }, tile, x, base, kept);
        for (((all, kept), x), base) in all.iter_mut().zip(kept.iter_mut()).zip(x).zip(base) {
            let delta = x.value() - base.value();
            (*all, *kept) = (delta.abs(), (*kept * delta).abs());
        }
        all[len..].fill(0.0);
        kept[len..].fill(0.0);
        sums[0] = fold_tile(all, room);
        sums[1] = fold_tile(kept, room);
    }
}

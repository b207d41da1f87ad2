//! `Σ |xᵢ − base|` and the same of what is kept of it, for every model: what `rescale` needs.
//!
//! The two L1 norms stand side by side per tile: all, then kept. A dropped term is multiplied by 0.

use std::ops::Range;

use super::packed::append;
use super::sums::{fold_tile, tile_sum};
use super::thinning::{Keep, Mask, Model, PackedModel, bench_mask, factors, random_masks};
use super::{CaseNumbers, Compiled, Kernel, Needs, Numbers, Outcome, TILE, Target, TileInputs, Widest};
use crate::dtype::Element;

/// The numbers of one tensor: input 0 is the base, then one rule per further input.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// What is kept, per non-base model.
    pub models: Vec<Keep>,
}

/// The record.
pub(super) const KERNEL: Kernel = Kernel {
    name: "masked_sums",
    ptx: Compiled { text: include_str!("../../kernels/ptx/masked_sums.ptx"), models: 4 },
    wgsl: Compiled { text: include_str!("../../shaders/masked_sums.wgsl"), models: 0 },
    group_words: 0,
    needs: |widest, chunk_tiles| Needs {
        sum_words: 2 * widest.measured,
        job_words: Widest::spans_of(chunk_tiles) * widest.measured * PackedModel::WORDS,
        ..Needs::default()
    },
    structs: &[PackedModel::STRUCT],
    constants: &[],
    cases,
    benches,
};

fn cases(drawn: &CaseNumbers) -> Vec<super::Job> {
    let job = |keep: &dyn Fn(usize) -> Keep| Job { models: (0..drawn.models).map(keep).collect() };
    let mixed = [2, 3].map(|shift| job(&|i| drawn.keep(i + shift)));
    let random = [drawn.word, !drawn.word].map(|word| job(&|i| random_masks(word, i)));
    mixed.into_iter().chain(random).map(Into::into).collect()
}

fn benches(_: &[u32]) -> Vec<(&'static str, super::Job)> {
    vec![("dare's norms, base + 2", Job { models: (0..2).map(bench_mask).collect() }.into())]
}

impl Numbers for Job {
    fn inputs(&self) -> usize {
        1 + self.models.len()
    }

    fn outcome(&self) -> Outcome {
        Outcome::Sums { words: 2 * self.models.len() }
    }

    fn models(&self) -> usize {
        self.models.len()
    }

    fn masks(&self) -> Vec<Option<Mask>> {
        self.models.iter().map(Keep::mask).collect()
    }

    /// The models, with coefficient 1.
    fn pack(&self, _: &Range<u64>, words: &mut Vec<u32>) {
        let model = |keep: &Keep| PackedModel::from(Model { coefficient: 1.0, keep: *keep });
        self.models.iter().for_each(|keep| append(words, &model(keep)));
    }

    fn plain(&self, tile: u64, x: &[&[f32]], target: Target<'_>) {
        let sums = target.sums();
        for (model, keep) in self.models.iter().enumerate() {
            let delta = |i: usize| x[model + 1][i] - x[0][i];
            let keeps = |i: usize| keep.keeps(tile * TILE as u64 + i as u64, delta(i));
            let kept = |i: usize| if keeps(i) { 1.0 } else { 0.0 } * delta(i);
            sums[2 * model] = tile_sum((0..x[0].len()).map(|i| delta(i).abs()));
            sums[2 * model + 1] = tile_sum((0..x[0].len()).map(|i| kept(i).abs()));
        }
    }

    #[inline(always)]
    fn tile<E: Element>(&self, tile: u64, inputs: &TileInputs<'_, E>, scratch: &mut Vec<f32>, target: Target<'_>) {
        fast(self, tile, inputs, scratch, target.sums());
    }
}

/// The fast path: writes two sums per model.
#[inline(always)]
fn fast<E: Element>(
    job: &Job,
    tile: u64,
    inputs: &TileInputs<'_, E>,
    scratch: &mut Vec<f32>,
    sums: &mut [f32],
) {
    scratch.resize(scratch.len().max(3 * TILE), 0.0);
    let [all, kept, room] = scratch.as_chunks_mut::<TILE>().0.first_chunk_mut().expect("three tiles");
    let (base, len) = (inputs.of(0), inputs.len);
    for (model, (keep, sums)) in job.models.iter().zip(sums.chunks_exact_mut(2)).enumerate() {
        let x = inputs.of(model + 1);
        factors(&Model { coefficient: 1.0, keep: *keep }, model, tile, inputs, kept);
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

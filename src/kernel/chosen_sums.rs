//! `Σ |xᵢ − base|`, and the first and second moments of what is kept of it, for every model.
//!
//! The three sums stand side by side per tile: the L1 norm of all, that of what is kept, and the sum of its squares. A dropped
//! term is multiplied by 0.

use std::ops::Range;

use super::choice::{Choice, PackedChoice, choice_of_case};
use super::packed::append;
use super::sums::{fold_tile, tile_sum};
use super::thinning::Trim;
use super::{CaseNumbers, Compiled, Kernel, Needs, Numbers, Outcome, TILE, Target, TileInputs, Widest};
use crate::dtype::Element;

/// Sums per model and tile.
pub const SUMS: usize = 3;

/// The numbers of one tensor: input 0 is the base, then one model per further input, then the selectors.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// What is kept, per non-base model.
    pub models: Vec<Choice>,
    /// How many selectors.
    pub selectors: usize,
}

/// The record.
pub(super) const KERNEL: Kernel = Kernel {
    name: "chosen_sums",
    ptx: Compiled { text: include_str!("../../kernels/ptx/chosen_sums.ptx"), models: 0 },
    wgsl: Compiled { text: include_str!("../../shaders/chosen_sums.wgsl"), models: 0 },
    group_words: 0,
    needs: |widest, chunk_tiles| Needs {
        sum_words: SUMS * widest.measured,
        job_words: Widest::spans_of(chunk_tiles) * (1 + widest.measured * PackedChoice::WORDS),
        ..Needs::default()
    },
    structs: &[PackedChoice::STRUCT],
    constants: &[("CHOSEN_SUMS", SUMS as u32)],
    cases,
    benches,
};

fn cases(drawn: &CaseNumbers) -> Vec<super::Job> {
    let job = |shift: usize, selectors: usize| {
        let models = (0..drawn.models).map(|i| choice_of_case(drawn.threshold, selectors, i + shift)).collect();
        Job { models, selectors }.into()
    };
    vec![job(0, 2), job(2, 1), job(3, 0), job(5, 2)]
}

fn benches(keys: &[u32]) -> Vec<(&'static str, super::Job)> {
    let trim = |i: usize| Trim { threshold: keys[i], cut_tile: 7, cut_lane: 11 };
    let models = (0..2).map(|i| Choice::Trim(trim(i))).collect();
    vec![("moments of what is kept, base + 2", Job { models, selectors: 0 }.into())]
}

impl Numbers for Job {
    fn inputs(&self) -> usize {
        self.merged() + self.selectors
    }

    fn merged(&self) -> usize {
        1 + self.models.len()
    }

    fn outcome(&self) -> Outcome {
        Outcome::Sums { words: SUMS * self.models.len() }
    }

    /// How many selectors, then what the models keep.
    fn pack(&self, _: &Range<u64>, words: &mut Vec<u32>) {
        words.push(self.selectors as u32);
        self.models.iter().for_each(|choice| append(words, &PackedChoice::from(*choice)));
    }

    fn plain(&self, tile: u64, x: &[&[f32]], target: Target<'_>) {
        let (models, selectors) = x[1..].split_at(self.models.len());
        for ((choice, of), sums) in self.models.iter().zip(models).zip(target.sums().chunks_exact_mut(SUMS)) {
            let delta = |i: usize| of[i] - x[0][i];
            let kept = |i: usize| {
                let element = tile * TILE as u64 + i as u64;
                let keeps = choice.keeps(element, delta(i), |selector| selectors[selector][i]);
                if keeps { delta(i) } else { 0.0 * delta(i) }
            };
            sums[0] = tile_sum((0..of.len()).map(|i| delta(i).abs()));
            sums[1] = tile_sum((0..of.len()).map(|i| kept(i).abs()));
            sums[2] = tile_sum((0..of.len()).map(|i| kept(i) * kept(i)));
        }
    }

    #[inline(always)]
    fn tile<E: Element>(&self, tile: u64, inputs: &TileInputs<'_, E>, scratch: &mut Vec<f32>, target: Target<'_>) {
        fast(self, tile, inputs, scratch, target.sums());
    }
}

/// The fast path: writes three sums per model.
#[inline(always)]
fn fast<E: Element>(
    job: &Job,
    tile: u64,
    inputs: &TileInputs<'_, E>,
    scratch: &mut Vec<f32>,
    sums: &mut [f32],
) {
    scratch.resize(scratch.len().max((SUMS + 1) * TILE), 0.0);
    let [all, kept, squares, room] = scratch.as_chunks_mut::<TILE>().0.first_chunk_mut().expect("four tiles");
    let (base, len, models) = (inputs.of(0), inputs.len, job.models.len());
    let mut flags = [0; TILE];
    for (m, (choice, sums)) in job.models.iter().zip(sums.chunks_exact_mut(SUMS)).enumerate() {
        choice.flags(m, models, tile, inputs, 0..len, &mut flags);
        let sums_of = all.iter_mut().zip(kept.iter_mut()).zip(squares.iter_mut());
        let inputs_of = flags.iter().zip(inputs.of(m + 1)).zip(base);
        for (((all, kept), square), ((flag, x), base)) in sums_of.zip(inputs_of) {
            let delta = x.value() - base.value();
            let own = delta * if *flag != 0 { 1.0 } else { 0.0 };
            (*all, *kept, *square) = (delta.abs(), own.abs(), own * own);
        }
        for (sum, terms) in sums.iter_mut().zip([&mut *all, &mut *kept, &mut *squares]) {
            terms[len..].fill(0.0);
            *sum = fold_tile(terms, room);
        }
    }
}

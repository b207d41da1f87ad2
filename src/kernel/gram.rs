//! All pairwise inner products of `(x₀, x₁ − x₀, x₂ − x₀, …)`, tile by tile.
//!
//! The differences are measured instead of the models, so that nearly parallel models do not cancel; the
//! host changes to the basis it wants.

use super::sums::{fold_tile, tile_sum};
use super::{CaseNumbers, Compiled, Kernel, Needs, Numbers, Outcome, TILE, Target, TileInputs};
use crate::dtype::Element;

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

/// The record.
pub(super) const KERNEL: Kernel = Kernel {
    name: "gram",
    ptx: Compiled { text: include_str!("../../kernels/ptx/gram.ptx"), models: 0 },
    wgsl: Compiled { text: include_str!("../../shaders/gram.wgsl"), models: 0 },
    group_words: 0,
    needs: |widest, _| {
        let pairs = if widest.measured > 0 { pairs(widest.inputs) } else { 0 };
        Needs { sum_words: pairs, ..Needs::default() }
    },
    structs: &[],
    constants: &[],
    cases,
    benches,
};

fn cases(drawn: &CaseNumbers) -> Vec<super::Job> {
    vec![Job { inputs: drawn.models + 1 }.into()]
}

fn benches(_: &[u32]) -> Vec<(&'static str, super::Job)> {
    vec![("slerp's angle", Job { inputs: 2 }.into())]
}

impl Numbers for Job {
    fn inputs(&self) -> usize {
        self.inputs
    }

    fn outcome(&self) -> Outcome {
        Outcome::Sums { words: pairs(self.inputs) }
    }

    fn plain(&self, _: u64, x: &[&[f32]], target: Target<'_>) {
        let vector = |input: usize, i: usize| if input == 0 { x[0][i] } else { x[input][i] - x[0][i] };
        let mut sums = target.sums().iter_mut();
        for a in 0..self.inputs {
            for (b, sum) in (a..self.inputs).zip(&mut sums) {
                *sum = tile_sum((0..x[0].len()).map(|i| vector(a, i) * vector(b, i)));
            }
        }
    }

    #[inline(always)]
    fn tile<E: Element>(&self, _: u64, inputs: &TileInputs<'_, E>, scratch: &mut Vec<f32>, target: Target<'_>) {
        fast(self, inputs, scratch, target.sums());
    }
}

/// The fast path.
#[inline(always)]
fn fast<E: Element>(job: &Job, inputs: &TileInputs<'_, E>, scratch: &mut Vec<f32>, sums: &mut [f32]) {
    scratch.resize(scratch.len().max((job.inputs + 2) * TILE), 0.0);
    let (tiles, _) = scratch.as_chunks_mut::<TILE>();
    let (room, tiles) = tiles.split_first_mut().expect("room for a fold");
    if job.inputs == 2 {
        return two(inputs, tiles.first_chunk_mut().expect("room for three products"), room, sums);
    }
    let (products, vectors) = tiles.split_first_mut().expect("room for products");
    let anchor = inputs.of(0);
    for (input, vector) in vectors.iter_mut().enumerate().take(job.inputs) {
        vector[inputs.len..].fill(0.0);
        for ((difference, x), anchor) in vector.iter_mut().zip(inputs.of(input)).zip(anchor) {
            let anchor = if input == 0 { 0.0 } else { anchor.value() };
            *difference = x.value() - anchor;
        }
    }
    let mut next = sums.iter_mut();
    for a in 0..job.inputs {
        for (b, sum) in (a..job.inputs).zip(&mut next) {
            for ((product, a), b) in products.iter_mut().zip(&vectors[a]).zip(&vectors[b]) {
                *product = a * b;
            }
            *sum = fold_tile(products, room);
        }
    }
}

/// An anchor and one more, in one pass.
#[inline(always)]
fn two<E: Element>(
    inputs: &TileInputs<'_, E>,
    products: &mut [[f32; TILE]; 3],
    room: &mut [f32; TILE],
    sums: &mut [f32],
) {
    let len = inputs.len;
    let [anchor, x]: [&[E]; 2] = inputs.several(0);
    let [first, mixed, second] = products.each_mut().map(|products| {
        products[len..].fill(0.0);
        &mut products[..len]
    });
    for i in 0..len {
        let anchor = anchor[i].value();
        let difference = x[i].value() - anchor;
        first[i] = anchor * anchor;
        mixed[i] = anchor * difference;
        second[i] = difference * difference;
    }
    for (sum, products) in sums.iter_mut().zip(products) {
        *sum = fold_tile(products, room);
    }
}

//! All pairwise inner products of `(x₀, x₁ − x₀, x₂ − x₀, …)`, tile by tile.
//!
//! The differences are measured instead of the models, so that nearly parallel models do not cancel; the
//! host changes to the basis it wants.

use super::{Inputs, TILE, fold_tile};
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

/// Writes the tile's [`pairs`] inner products. `scratch` is room that outlives the call; what it holds does not matter.
#[inline(always)]
pub fn tile<E: Element>(job: &Job, inputs: &Inputs<'_, E>, scratch: &mut Vec<f32>, sums: &mut [f32]) {
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
    inputs: &Inputs<'_, E>,
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

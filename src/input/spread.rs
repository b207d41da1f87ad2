//! How far models differ from each other, element by element: what `sce` selects by (Wan et al., `FuseChat`, 2024,
//! <https://arxiv.org/abs/2408.07990>).

use std::fmt;
use std::ops::Range;

use super::{Floats, Made, ReadElements, fit, pieces};
use crate::dtype::{Float, decode, encode};
use crate::error::Result;
use crate::instructions::for_each_instruction_set;
use crate::kernel::TILE;

/// The variance of the task vectors over the models, as f32.
///
/// Of the task vectors `δᵢ = xᵢ − base` of `N` models it is that of `eᵢ = δᵢ − δ₁`, with the mean `(e₁ + … + e_N) · (1/N)`:
/// `((e₁ − mean)² + … + (e_N − mean)²) · (1/N)`, sums from the first to the last model, `1/N` rounded once. Task vectors that are
/// equal and finite so have a variance of 0, whatever the mean of theirs would be rounded to: `sce` counts those that have one.
#[derive(Debug, Clone, PartialEq)]
pub struct Spread {
    base: Floats,
    models: Vec<Floats>,
}

/// The most elements of an input that are in memory at a time.
const PIECE: u64 = 1 << 15;

impl Spread {
    /// The variance over `models`.
    ///
    /// # Panics
    /// There are no models.
    pub fn new(base: Floats, models: Vec<Floats>) -> Self {
        assert!(!models.is_empty(), "a variance is of something");
        Self { base, models }
    }

    fn inputs(&self) -> impl Iterator<Item = &Floats> {
        std::iter::once(&self.base).chain(&self.models)
    }
}

impl Made for Spread {
    fn of(&self) -> Vec<usize> {
        self.inputs().map(|of| of.input).collect()
    }

    fn float(&self) -> Float {
        Float::F32
    }

    /// A piece of every input as it is stored, and a tile of every task vector.
    fn working_bytes(&self, elements: u64) -> u64 {
        let piece: u64 = self.inputs().map(|of| of.float.bytes_of(elements.min(PIECE))).sum();
        piece + (self.models.len() * TILE * size_of::<f32>()) as u64
    }

    fn read(&self, range: Range<u64>, mut into: &mut [u8], from: &mut dyn ReadElements) -> Result<()> {
        let mut stored: Vec<Vec<u8>> = self.inputs().map(|_| Vec::new()).collect();
        let mut deltas = vec![[0.0; TILE]; self.models.len()];
        for piece in pieces(range, PIECE) {
            let elements = piece.end - piece.start;
            for (of, bytes) in self.inputs().zip(&mut stored) {
                fit(bytes, of.float.bytes_of(elements) as usize);
                of.stored(piece.start, bytes, from)?;
            }
            let (own, rest) = into.split_at_mut(Float::F32.bytes_of(elements) as usize);
            for (tile, own) in own.chunks_mut(TILE * Float::F32.bytes()).enumerate() {
                self.tile(&stored, tile, &mut deltas, own);
            }
            into = rest;
        }
        Ok(())
    }
}

impl Spread {
    /// One tile of a piece.
    fn tile(&self, stored: &[Vec<u8>], tile: usize, deltas: &mut [[f32; TILE]], into: &mut [u8]) {
        let len = into.len() / Float::F32.bytes();
        let part = |of: &Floats, bytes: &'_ [u8]| {
            let start = of.float.bytes() * TILE * tile;
            start..(start + of.float.bytes() * len).min(bytes.len())
        };
        let base = &stored[0][part(&self.base, &stored[0])];
        for ((of, bytes), deltas) in self.models.iter().zip(&stored[1..]).zip(&mut *deltas) {
            task_vector(self.base.float, base, of.float, &bytes[part(of, bytes)], &mut deltas[..len]);
        }
        variance(deltas, into);
    }
}

for_each_instruction_set! {
    fn task_vector(base_float: Float, base: &[u8], float: Float, x: &[u8], into: &mut [f32]) {
        let mut values = [0.0; TILE];
        let values = &mut values[..into.len()];
        decode(base_float, base, values);
        decode(float, x, into);
        into.iter_mut().zip(&*values).for_each(|(x, base)| *x -= base);
    }

    fn variance(deltas: &[[f32; TILE]], into: &mut [u8]) {
        let share = 1.0 / deltas.len() as f32;
        let first = &deltas[0];
        let mut means = [0.0; TILE];
        for deltas in deltas {
            for ((mean, delta), first) in means.iter_mut().zip(deltas).zip(first) {
                *mean += delta - first;
            }
        }
        means.iter_mut().for_each(|mean| *mean *= share);
        let mut variances = [0.0; TILE];
        for deltas in deltas {
            for (((variance, delta), first), mean) in variances.iter_mut().zip(deltas).zip(first).zip(&means) {
                let deviation = (delta - first) - mean;
                *variance += deviation * deviation;
            }
        }
        variances.iter_mut().for_each(|variance| *variance *= share);
        encode(Float::F32, &variances[..into.len() / Float::F32.bytes()], into);
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let models: Vec<String> = self.models.iter().map(|of| format!("input {}", of.input)).collect();
        write!(f, "variance of {} around input {}", models.join(", "), self.base.input)
    }
}

//! A weight with a low-rank adapter added: `W + s · B · A` (Hu et al., `LoRA`, ICLR 2022, <https://arxiv.org/abs/2106.09685>).

use std::fmt;
use std::ops::Range;

use super::{Floats, Made, READ_MAX, ReadElements, by_rows, fit};
use crate::dtype::{Float, encode};
use crate::error::Result;

/// A weight of `rows × columns` with an adapter of some rank, as f32.
///
/// Each element is `W + s · Σ B·A`, its terms added up in f32 from the first to the last rank, each product and sum rounded.
#[derive(Debug, Clone, PartialEq)]
pub struct Adapted {
    /// The weight, `rows × columns`.
    pub weight: Floats,
    /// The adapter's `A`, `rank × columns`.
    pub a: Floats,
    /// The adapter's `B`, `rows × rank`.
    pub b: Floats,
    /// The columns of the weight, at least 1.
    pub columns: u64,
    /// The adapter's rank.
    pub rank: u64,
    /// What the product is multiplied with: α / rank, or what the adapter's kind makes of it.
    pub scale: f32,
}

impl Made for Adapted {
    fn of(&self) -> Vec<usize> {
        [self.weight, self.a, self.b].map(|of| of.input).into()
    }

    fn float(&self) -> Float {
        Float::F32
    }

    fn working_bytes(&self, elements: u64) -> u64 {
        let rows = (elements / self.columns + 2).min((BLOCK / self.rank.max(1)).max(1));
        let (a, b) = (self.columns.min(BLOCK), rows * self.rank);
        let parts = elements / self.columns.min(BLOCK) + 2;
        // The weight, the sums, and the room for bytes, each in f32 at the most.
        let values = a + b + 2 * elements + a.max(b).max(elements);
        values * Float::F32.bytes() as u64 + parts * size_of::<(u64, Range<u64>)>() as u64
    }

    /// Of `A` and of `B` at most a block is in memory at a time.
    fn read(&self, range: Range<u64>, mut into: &mut [u8], from: &mut dyn ReadElements) -> Result<()> {
        let long = self.columns > BLOCK;
        let parts: Vec<(u64, Range<u64>)> = by_rows(range, self.columns)
            .flat_map(|(row, columns)| cut(&columns).map(move |part| (row, part)))
            .collect();
        // Rows together read each row of `A` once; parts of long rows need no more of it than their own columns.
        let rows = if long { 1 } else { (BLOCK / self.rank.max(1)).max(1) as usize };
        let mut room = Room::default();
        for parts in parts.chunks(rows) {
            let elements: usize = parts.iter().map(|(_, part)| (part.end - part.start) as usize).sum();
            let (own, rest) = into.split_at_mut(elements * Float::F32.bytes());
            self.rows(parts, elements, own, &mut room, from)?;
            into = rest;
        }
        Ok(())
    }
}

/// The most elements of a row of `A`, and of rows of `B`, in memory: 4 MiB.
const BLOCK: u64 = READ_MAX;

/// Columns in parts of at most a block.
fn cut(columns: &Range<u64>) -> impl Iterator<Item = Range<u64>> + use<> {
    let Range { start, end } = *columns;
    (start..end).step_by(BLOCK as usize).map(move |first| first..end.min(first + BLOCK))
}

/// What is computed in.
#[derive(Default)]
struct Room {
    bytes: Vec<u8>,
    a: Vec<f32>,
    b: Vec<f32>,
    sums: Vec<f32>,
    weight: Vec<f32>,
}

impl Adapted {
    /// Neighbouring rows, whole but for the first and the last, or a part of one.
    fn rows(
        &self,
        parts: &[(u64, Range<u64>)],
        elements: usize,
        into: &mut [u8],
        room: &mut Room,
        from: &mut dyn ReadElements,
    ) -> Result<()> {
        let (first_row, first) = &parts[0];
        let columns = if parts.len() == 1 { first.clone() } else { 0..self.columns };
        let Room { bytes, a, b, sums, weight } = room;
        fit(b, parts.len() * self.rank as usize);
        self.b.values(first_row * self.rank, b, bytes, from)?;
        fit(a, (columns.end - columns.start) as usize);
        sums.clear();
        fit(sums, elements);
        for rank in 0..self.rank {
            self.a.values(rank * self.columns + columns.start, a, bytes, from)?;
            let mut rest = &mut sums[..];
            for ((_, part), b) in parts.iter().zip(b.chunks_exact(self.rank as usize)) {
                let (own, behind) = rest.split_at_mut((part.end - part.start) as usize);
                let (b, a) = (b[rank as usize], &a[(part.start - columns.start) as usize..]);
                own.iter_mut().zip(a).for_each(|(sum, a)| *sum += b * a);
                rest = behind;
            }
        }
        fit(weight, elements);
        self.weight.values(first_row * self.columns + first.start, weight, bytes, from)?;
        weight.iter_mut().zip(&*sums).for_each(|(weight, sum)| *weight += self.scale * sum);
        encode(Float::F32, weight, into);
        Ok(())
    }
}

impl fmt::Display for Adapted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { weight, a, b, rank, scale, .. } = self;
        let (weight, a, b) = (weight.input, a.input, b.input);
        write!(f, "input {weight} + {scale} · input {b} · input {a}, of rank {rank}")
    }
}

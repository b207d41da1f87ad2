//! A weight with a low-rank product added: `W + s · B · A` (Hu et al., `LoRA`, ICLR 2022, <https://arxiv.org/abs/2106.09685>).

use std::fmt;
use std::ops::Range;

use super::{Floats, Made, READ_MAX, ReadElements, fit, pieces};
use crate::dtype::{Float, encode};
use crate::error::Result;
use crate::products::{LANES, add_product};

/// A weight of `rows × columns`, or one such matrix for each of several experts, with an adapter of some rank, as f32.
///
/// Each element is `W + s · Σ B·A`, its terms added up in f32 from the first to the last rank, each product and sum rounded.
#[derive(Debug, Clone, PartialEq)]
pub struct Adapted {
    /// The weight: `experts × rows × columns`.
    pub weight: Floats,
    /// The adapter's `A`: `experts × rank` rows, as long as what goes in.
    pub a: Floats,
    /// The adapter's `B`: as many rows as come out, of `rank × experts`.
    pub b: Floats,
    /// The matrices, at least 1.
    pub experts: u64,
    /// The rows of one.
    pub rows: u64,
    /// The columns of one, at least 1.
    pub columns: u64,
    /// The adapter's rank, from 1 to 65,536.
    pub rank: u64,
    /// What the product is multiplied with: α / rank, or what the adapter's kind makes of it.
    pub scale: f32,
    /// Whether the weight has a row for each of what goes in, and not of what comes out: embeddings, and GPT-2.
    pub transposed: bool,
}

/// The most elements of each operand in memory: 4 MiB.
const BLOCK: u64 = READ_MAX;

/// The elements of the right operand that rows are multiplied with in turn, so that they stay in the innermost caches.
const NEAR: usize = 1 << 14;

impl Made for Adapted {
    fn of(&self) -> Vec<usize> {
        [self.weight, self.a, self.b].map(|of| of.input).into()
    }

    fn float(&self) -> Float {
        Float::F32
    }

    fn working_bytes(&self, elements: u64) -> u64 {
        let rows = elements / self.columns + 2;
        let left = rows.min(self.rows_at_once()) * self.rank;
        let right = (self.columns + LANES as u64).min(self.columns_at_once()) * self.rank;
        let values = elements.min(self.rows_at_once() * self.columns);
        // What is decoded on the way: parts of the factors, or of the weight, in f32 and as bytes.
        let decoded = self.factor_piece().max(values);
        (left + right + values + 2 * decoded) * Float::F32.bytes() as u64
    }

    fn read(&self, range: Range<u64>, mut into: &mut [u8], from: &mut dyn ReadElements) -> Result<()> {
        let mut room = Room::default();
        let mut next = range.start;
        while next < range.end {
            let block = self.block_at(next, range.end);
            let (own, rest) = into.split_at_mut(block.elements() as usize * Float::F32.bytes());
            self.block(&block, own, &mut room, from)?;
            next += block.elements();
            into = rest;
        }
        Ok(())
    }
}

/// Rows of an expert: whole ones, or a part of one.
struct Block {
    expert: u64,
    rows: Range<u64>,
    columns: Range<u64>,
}

impl Block {
    fn elements(&self) -> u64 {
        (self.rows.end - self.rows.start) * (self.columns.end - self.columns.start)
    }
}

/// What is computed in.
#[derive(Default)]
struct Room {
    bytes: Vec<u8>,
    decoded: Vec<f32>,
    /// Of the left operand the block's rows, one behind the other.
    left: Vec<f32>,
    /// Of the right operand columns, [`LANES`] at a time: for those all ranks, one behind the other.
    right: Vec<[f32; LANES]>,
    values: Vec<f32>,
}

impl Adapted {
    /// Rows that are computed together, so that each operand stays within a block.
    fn rows_at_once(&self) -> u64 {
        (BLOCK / self.columns.max(self.rank)).max(1)
    }

    /// Columns whose right operand is in memory together.
    fn columns_at_once(&self) -> u64 {
        let lanes = LANES as u64;
        (BLOCK / self.rank / lanes).max(1) * lanes
    }

    /// The elements of a factor that are decoded at once: of `B` never less than what it has of a row.
    fn factor_piece(&self) -> u64 {
        BLOCK.min((self.rows.max(self.columns)) * self.rank * self.experts).max(self.rank * self.experts)
    }

    /// What is computed next: up to the end of a row, or whole rows of an expert.
    fn block_at(&self, start: u64, end: u64) -> Block {
        let (row, column) = (start / self.columns, start % self.columns);
        let (expert, row) = (row / self.rows, row % self.rows);
        let (left, whole) = (end - start, (end - start) / self.columns);
        if column > 0 || whole == 0 || self.columns > BLOCK {
            let most = left.min(self.columns - column).min(BLOCK);
            return Block { expert, rows: row..row + 1, columns: column..column + most };
        }
        let rows = whole.min(self.rows - row).min(self.rows_at_once());
        Block { expert, rows: row..row + rows, columns: 0..self.columns }
    }

    fn block(
        &self,
        block: &Block,
        into: &mut [u8],
        room: &mut Room,
        from: &mut dyn ReadElements,
    ) -> Result<()> {
        let Block { expert, rows, columns } = block;
        let (rank, count) = (self.rank as usize, (rows.end - rows.start) as usize);
        let Room { bytes, decoded, left, right, values } = room;
        fit(values, block.elements() as usize);
        let first = (expert * self.rows + rows.start) * self.columns + columns.start;
        self.weight.values(first, values, bytes, from)?;
        fit(left, count * rank);
        self.factor(!self.transposed, *expert, rows, (bytes, decoded), from, |row, k, values| {
            let own = left[row * rank + k..].iter_mut().step_by(rank);
            own.zip(values).for_each(|(own, value)| *own = *value);
        })?;
        let width = (columns.end - columns.start) as usize;
        for part in pieces(0..width as u64, self.columns_at_once()) {
            let (start, len) = (part.start as usize, (part.end - part.start) as usize);
            fit(right, len.div_ceil(LANES) * rank);
            let part = columns.start + part.start..columns.start + part.end;
            self.factor(self.transposed, *expert, &part, (bytes, decoded), from, |column, k, values| {
                place_in_lanes(&mut right[k..], rank, column, values);
            })?;
            for (number, near) in right.chunks((NEAR / LANES / rank).max(1) * rank).enumerate() {
                let at = start + number * (NEAR / LANES / rank).max(1) * LANES;
                add_product(left, near, rank, self.scale, values, (at, (start + len).min(width), width));
            }
        }
        encode(Float::F32, values, into);
        Ok(())
    }

    /// Gives the elements of `B` (or `A`) that belong to some of what comes out (or goes in): the first of these, the rank, and the
    /// values of neighbours from there on.
    fn factor(
        &self,
        is_b: bool,
        expert: u64,
        places: &Range<u64>,
        (bytes, decoded): (&mut Vec<u8>, &mut Vec<f32>),
        from: &mut dyn ReadElements,
        mut put: impl FnMut(usize, usize, &[f32]),
    ) -> Result<()> {
        let (rank, experts) = (self.rank, self.experts);
        if is_b {
            let row = rank * experts;
            for some in pieces(places.clone(), (BLOCK / row).max(1)) {
                fit(decoded, ((some.end - some.start) * row) as usize);
                self.b.values(some.start * row, decoded, bytes, from)?;
                for (place, row) in (some.start - places.start..).zip(decoded.chunks_exact(row as usize)) {
                    let own = row.iter().skip(expert as usize).step_by(experts as usize);
                    own.enumerate()
                        .for_each(|(k, value)| put(place as usize, k, std::slice::from_ref(value)));
                }
            }
            return Ok(());
        }
        let long = if self.transposed { self.rows } else { self.columns };
        for k in 0..rank {
            for some in pieces(places.clone(), BLOCK) {
                fit(decoded, (some.end - some.start) as usize);
                self.a.values((expert * rank + k) * long + some.start, decoded, bytes, from)?;
                put((some.start - places.start) as usize, k as usize, decoded);
            }
        }
        Ok(())
    }
}

/// Puts values of one rank where their columns are: [`LANES`] neighbours together, and those of the next rank behind them.
fn place_in_lanes(right: &mut [[f32; LANES]], rank: usize, first: usize, values: &[f32]) {
    let (lane, head) = (first % LANES, (LANES - first % LANES).min(values.len()));
    let (head, rest) = values.split_at(head);
    let mut tiles = right[first / LANES * rank..].iter_mut().step_by(rank);
    tiles.next().expect("there is room")[lane..lane + head.len()].copy_from_slice(head);
    for (tile, values) in tiles.zip(rest.chunks(LANES)) {
        tile[..values.len()].copy_from_slice(values);
    }
}

impl fmt::Display for Adapted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { weight, a, b, rank, scale, experts, .. } = self;
        let (weight, a, b) = (weight.input, a.input, b.input);
        let (a, b) = if self.transposed { (b, a) } else { (a, b) };
        let each = if *experts > 1 { format!(" for each of {experts} experts") } else { String::new() };
        write!(f, "input {weight} + {scale} · input {b} · input {a}, of rank {rank}{each}")
    }
}

#[cfg(test)]
mod tests;

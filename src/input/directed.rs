//! A weight of which magnitude and direction are kept apart: `m · V / ‖V‖` (Liu et al., `DoRA`, ICML 2024,
//! <https://arxiv.org/abs/2402.09353>).

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use super::{Floats, Made, ReadElements, by_rows, fit, pieces};
use crate::dtype::{Float, encode};
use crate::error::Result;
use crate::instructions::for_each_instruction_set;

/// A matrix whose rows, or columns, have the norms that a vector says, as f32.
///
/// Each element is multiplied with `m / ‖·‖` of its row or column: a quotient in f64, rounded once, of the norm of the decoded
/// elements, whose squares are added up in f64 in a fixed order. What is all zeros stays so.
#[derive(Debug)]
pub struct Directed {
    /// The matrix.
    pub direction: Floats,
    /// The norms: one for each row, or for each column.
    pub magnitude: Floats,
    /// The rows.
    pub rows: u64,
    /// The columns, at least 1.
    pub columns: u64,
    /// Whether the norms are those of columns.
    pub by_column: bool,
    factors: Mutex<Option<Arc<[f32]>>>,
}

/// The most elements in memory at a time.
const PIECE: u64 = 1 << 16;

/// Sums that go on side by side: element `i` of a row belongs to number `i % LANES`.
const LANES: usize = 8;

impl Directed {
    /// The matrix `direction` with the norms `magnitude`.
    pub fn new(direction: Floats, magnitude: Floats, rows: u64, columns: u64, by_column: bool) -> Self {
        Self { direction, magnitude, rows, columns, by_column, factors: Mutex::new(None) }
    }

    /// What rows or columns are multiplied with. All of it is computed when the first of it is needed; who else needs it waits.
    fn factors(&self, from: &mut dyn ReadElements) -> Result<Arc<[f32]>> {
        let mut known = self.factors.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(factors) = &*known {
            return Ok(Arc::clone(factors));
        }
        let mut magnitudes = vec![0.0; self.norms() as usize];
        let mut bytes = Vec::new();
        self.magnitude.values(0, &mut magnitudes, &mut bytes, from)?;
        let squares = self.squares(&mut bytes, from)?;
        let factor = |(magnitude, squares): (&f32, &f64)| {
            if *squares == 0.0 { 0.0 } else { (f64::from(*magnitude) / squares.sqrt()) as f32 }
        };
        let factors: Arc<[f32]> = magnitudes.iter().zip(&squares).map(factor).collect();
        Ok(Arc::clone(known.insert(factors)))
    }

    fn norms(&self) -> u64 {
        if self.by_column { self.columns } else { self.rows }
    }

    /// The sums of squares, of rows or columns.
    fn squares(&self, bytes: &mut Vec<u8>, from: &mut dyn ReadElements) -> Result<Vec<f64>> {
        let mut squares = vec![0.0; self.norms() as usize];
        let mut lanes = [0.0; LANES];
        let mut values = Vec::new();
        // Pieces of a long row end at multiples of the lanes.
        let rows_at_once = (PIECE / self.columns).max(1);
        for rows in pieces(0..self.rows, rows_at_once) {
            let columns_at_once = if self.columns > PIECE { PIECE } else { self.columns };
            for columns in pieces(0..self.columns, columns_at_once) {
                let width = (columns.end - columns.start) as usize;
                fit(&mut values, (rows.end - rows.start) as usize * width);
                self.direction.values(rows.start * self.columns + columns.start, &mut values, bytes, from)?;
                for (row, values) in rows.clone().zip(values.chunks_exact(width)) {
                    if self.by_column {
                        add_squares(values, &mut squares[columns.start as usize..][..width]);
                        continue;
                    }
                    add_to_lanes(values, &mut lanes);
                    if columns.end == self.columns {
                        squares[row as usize] = fold(std::mem::take(&mut lanes));
                    }
                }
            }
        }
        Ok(squares)
    }
}

fn fold(sums: [f64; LANES]) -> f64 {
    let half = |at: usize| (sums[at] + sums[at + 1]) + (sums[at + 2] + sums[at + 3]);
    half(0) + half(4)
}

for_each_instruction_set! {
    fn add_squares(values: &[f32], squares: &mut [f64]) {
        for (value, square) in values.iter().zip(squares) {
            *square += f64::from(*value) * f64::from(*value);
        }
    }

    fn add_to_lanes(values: &[f32], lanes: &mut [f64; LANES]) {
        let (whole, rest) = values.as_chunks::<LANES>();
        for values in whole {
            for (lane, value) in lanes.iter_mut().zip(values) {
                *lane += f64::from(*value) * f64::from(*value);
            }
        }
        for (lane, value) in lanes.iter_mut().zip(rest) {
            *lane += f64::from(*value) * f64::from(*value);
        }
    }
}

impl Made for Directed {
    fn of(&self) -> Vec<usize> {
        vec![self.direction.input, self.magnitude.input]
    }

    fn float(&self) -> Float {
        Float::F32
    }

    /// A piece as stored and in f32, and what the factors are made of.
    fn working_bytes(&self, _: u64) -> u64 {
        let piece = PIECE.max(self.columns.min(PIECE))
            * (Float::F32.bytes() as u64 + self.direction.float.bytes() as u64);
        let norms = size_of::<f64>() + size_of::<f32>() + self.magnitude.float.bytes();
        piece + self.norms() * norms as u64
    }

    fn kept_bytes(&self) -> u64 {
        self.norms() * Float::F32.bytes() as u64
    }

    fn release(&self) {
        *self.factors.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn read(&self, range: Range<u64>, mut into: &mut [u8], from: &mut dyn ReadElements) -> Result<()> {
        let factors = self.factors(from)?;
        let (mut bytes, mut values) = (Vec::new(), Vec::new());
        for piece in pieces(range, PIECE) {
            fit(&mut values, (piece.end - piece.start) as usize);
            self.direction.values(piece.start, &mut values, &mut bytes, from)?;
            let mut rest = &mut values[..];
            for (row, columns) in by_rows(piece, self.columns) {
                let (own, behind) = rest.split_at_mut((columns.end - columns.start) as usize);
                if self.by_column {
                    let factors = &factors[columns.start as usize..];
                    own.iter_mut().zip(factors).for_each(|(value, factor)| *value *= factor);
                } else {
                    let factor = factors[row as usize];
                    own.iter_mut().for_each(|value| *value *= factor);
                }
                rest = behind;
            }
            let (own, rest) = into.split_at_mut(values.len() * Float::F32.bytes());
            encode(Float::F32, &values, own);
            into = rest;
        }
        Ok(())
    }
}

impl fmt::Display for Directed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = if self.by_column { "columns" } else { "rows" };
        write!(f, "input {} with {of} of the norms of input {}", self.direction.input, self.magnitude.input)
    }
}

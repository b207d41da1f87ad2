//! Matrices of codes of 4 bits with a power of two for each 32 of a row (MXFP4), transposed: experts as gpt-oss stores them.
//!
//! ```text
//! stored   [experts, rows, columns]      what a model multiplies by   [experts, columns, rows]
//! ```
//!
//! A code has a sign, two bits of exponent and one of mantissa (OCP Microscaling Formats, 2023); of the two in a byte, the first
//! is the lower half.

use std::fmt;
use std::ops::Range;

use super::scaled::power_of_two;
use super::{Made, ReadElements, fit, pieces};
use crate::dtype::{Float, encode};
use crate::error::Result;

/// How many codes of a row have a scale in common.
const BLOCK: u64 = 32;

const VALUES: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// Such matrices, as f32: each element is its code times its scale.
#[derive(Debug, Clone, PartialEq)]
pub struct Microscaled {
    codes: usize,
    exponents: usize,
    /// Of a matrix as it is stored.
    rows: u64,
    columns: u64,
}

impl Microscaled {
    /// Of codes and exponents, both as bytes, in matrices that are stored with so many rows and columns.
    ///
    /// # Panics
    /// A matrix has no elements, or rows that are no whole blocks.
    pub fn new(codes: usize, exponents: usize, rows: u64, columns: u64) -> Self {
        assert!(rows > 0 && columns > 0 && columns.is_multiple_of(BLOCK), "rows are whole blocks");
        Self { codes, exponents, rows, columns }
    }

    /// Writes what of one matrix, its elements counted from `first` on, `range` wants.
    fn matrix(
        &self,
        first: u64,
        range: &Range<u64>,
        into: &mut [u8],
        from: &mut dyn ReadElements,
    ) -> Result<()> {
        let (start, end) = (range.start - first, range.end - first);
        // Which columns are wanted, as they are stored: those of whole bytes and blocks.
        let (low, high) = (start / self.rows, (end - 1) / self.rows);
        let (mut codes, mut exponents) = (Vec::new(), Vec::new());
        fit(&mut codes, (high / 2 - low / 2 + 1) as usize);
        fit(&mut exponents, (high / BLOCK - low / BLOCK + 1) as usize);
        for row in 0..self.rows {
            let wanted = |column: &u64| (start..end).contains(&(column * self.rows + row));
            let mut columns = (low..=high).filter(wanted).peekable();
            if columns.peek().is_none() {
                continue;
            }
            let place = first + row * self.columns + low;
            from.bytes(self.codes, place / 2, &mut codes)?;
            from.bytes(self.exponents, place / BLOCK, &mut exponents)?;
            for column in columns {
                let byte = codes[(column / 2 - low / 2) as usize];
                let code = if column % 2 == 0 { byte & 15 } else { byte >> 4 };
                let scale = power_of_two(exponents[(column / BLOCK - low / BLOCK) as usize]);
                let at = (column * self.rows + row - start) as usize * Float::F32.bytes();
                encode(
                    Float::F32,
                    &[VALUES[usize::from(code)] * scale],
                    &mut into[at..at + Float::F32.bytes()],
                );
            }
        }
        Ok(())
    }
}

impl Made for Microscaled {
    fn of(&self) -> Vec<usize> {
        vec![self.codes, self.exponents]
    }

    fn float(&self) -> Float {
        Float::F32
    }

    /// A part of a row's codes, and their exponents.
    fn working_bytes(&self, elements: u64) -> u64 {
        2 * (elements / self.rows + 2)
    }

    fn read(&self, range: Range<u64>, mut into: &mut [u8], from: &mut dyn ReadElements) -> Result<()> {
        let matrix = self.rows * self.columns;
        for piece in pieces(range, matrix) {
            let (own, rest) = into.split_at_mut((piece.end - piece.start) as usize * Float::F32.bytes());
            self.matrix(piece.start / matrix * matrix, &piece, own, from)?;
            into = rest;
        }
        Ok(())
    }
}

impl fmt::Display for Microscaled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { codes, exponents, rows, columns } = self;
        write!(f, "input {codes} (F4) · input {exponents}, each {rows} × {columns} transposed")
    }
}

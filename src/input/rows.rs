//! Rows of other inputs, picked, averaged or filled: what an embedding looks like when its vocabulary has changed.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use super::{Floats, Made, ReadElements, by_rows, decode_all, fit};
use crate::dtype::{Float, encode};
use crate::error::Result;

/// A matrix whose rows come from others with as many columns.
///
/// Averages are added up in f32 in the order written, divided once, and rounded once to the type that the matrix has; rows
/// that are picked are rounded to it, which changes nothing where it holds the inputs' types. What fills the matrix up is the
/// average of all its other rows, as they are rounded: added up in f64 in their order, and kept once it is known.
#[derive(Debug)]
pub struct Rows {
    of: Vec<Floats>,
    columns: u64,
    float: Float,
    /// Runs of rows that are alike, each with the number of its first.
    runs: Vec<(u64, Row)>,
    count: u64,
    /// The row that fills up, once one was read.
    filler: Mutex<Option<Arc<[f32]>>>,
}

/// The most elements that are looked at together for the average of all rows, if a row has no more.
const PIECE: u64 = 1 << 17;

/// One row; in a run of neighbours that were neighbours before, the first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Row {
    /// That of one of the inputs, in the order in which they are listed.
    Picked {
        /// Which of the inputs.
        of: usize,
        /// Which of its rows.
        row: u64,
    },
    /// The average of several: input and row of each.
    Mean(Vec<(usize, u64)>),
    /// Zeros.
    Zero,
    /// The average of all rows that are not of this kind.
    Filler,
}

impl Rows {
    /// A matrix of rows, of the type `float`.
    ///
    /// # Panics
    /// A row averages nothing, or there are no columns.
    pub fn new(of: Vec<Floats>, columns: u64, float: Float, rows: impl IntoIterator<Item = Row>) -> Self {
        assert!(columns > 0, "rows have columns");
        let mut made = Self { of, columns, float, runs: Vec::new(), count: 0, filler: Mutex::default() };
        for row in rows {
            assert!(row != Row::Mean(Vec::new()), "an average is of something");
            let goes_on = made.runs.last().is_some_and(|(first, run)| match (run, &row) {
                (Row::Picked { of, row: from }, Row::Picked { of: next_of, row: next }) => {
                    of == next_of && from + (made.count - first) == *next
                }
                (Row::Zero, Row::Zero) | (Row::Filler, Row::Filler) => true,
                _ => false,
            });
            if !goes_on {
                made.runs.push((made.count, row));
            }
            made.count += 1;
        }
        made
    }

    /// A matrix of runs, of the type `float`: each the first of its rows, and how many there are, of which those that are picked
    /// follow each other.
    ///
    /// # Panics
    /// A row averages nothing, or there are no columns.
    pub fn of_runs(
        of: Vec<Floats>,
        columns: u64,
        float: Float,
        runs: impl IntoIterator<Item = (Row, u64)>,
    ) -> Self {
        let mut made = Self::new(of, columns, float, []);
        for (row, rows) in runs.into_iter().filter(|(_, rows)| *rows > 0) {
            assert!(row != Row::Mean(Vec::new()), "an average is of something");
            made.runs.push((made.count, row));
            made.count += rows;
        }
        made
    }

    /// The run that a row belongs to, and how many rows lie between its first and this one.
    fn run_of(&self, row: u64) -> (&Row, u64) {
        let (first, run) = &self.runs[self.runs.partition_point(|(first, _)| *first <= row) - 1];
        (run, row - first)
    }

    /// Writes a part of a row.
    fn part(
        &self,
        row: u64,
        columns: Range<u64>,
        into: &mut [u8],
        room: &mut RowRoom,
        from: &mut dyn ReadElements,
    ) -> Result<()> {
        let place = |row: u64| row * self.columns + columns.start;
        let elements = (columns.end - columns.start) as usize;
        match self.run_of(row) {
            (Row::Zero, _) => into.fill(0),
            (Row::Filler, _) => {
                let filler = self.filler(from)?;
                encode(self.float, &filler[columns.start as usize..columns.end as usize], into);
            }
            (Row::Picked { of, row }, further) => {
                let Floats { input, float } = self.of[*of];
                let first = place(row + further);
                if float == self.float {
                    return from.bytes(input, first * float.bytes() as u64, into);
                }
                fit(&mut room.sum, elements);
                self.of[*of].values(first, &mut room.sum, &mut room.bytes, from)?;
                encode(self.float, &room.sum, into);
            }
            (Row::Mean(holders), _) => {
                room.sum.clear();
                fit(&mut room.sum, elements);
                fit(&mut room.term, elements);
                for (of, row) in holders {
                    self.of[*of].values(place(*row), &mut room.term, &mut room.bytes, from)?;
                    room.sum.iter_mut().zip(&room.term).for_each(|(sum, term)| *sum += term);
                }
                room.sum.iter_mut().for_each(|sum| *sum /= holders.len() as f32);
                encode(self.float, &room.sum, into);
            }
        }
        Ok(())
    }

    /// The average of the rows that do not fill up; zeros where there are none.
    fn filler(&self, from: &mut dyn ReadElements) -> Result<Arc<[f32]>> {
        // Others that need it wait for the one that makes it.
        let mut known = self.filler.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(filler) = &*known {
            return Ok(Arc::clone(filler));
        }
        let mut sums = vec![0.0; self.columns as usize];
        let (mut bytes, mut values) = (Vec::new(), Vec::new());
        let ends = self.runs.iter().skip(1).map(|(first, _)| *first).chain([self.count]);
        let mut count = 0_u64;
        for ((first, _), end) in self.runs.iter().zip(ends).filter(|((_, run), _)| *run != Row::Filler) {
            count += end - first;
            for rows in super::pieces(*first..end, self.rows_in_piece()) {
                let part = rows.start * self.columns..rows.end * self.columns;
                fit(&mut bytes, self.float.bytes_of(part.end - part.start) as usize);
                fit(&mut values, (part.end - part.start) as usize);
                self.read(part, &mut bytes, from)?;
                decode_all(self.float, &bytes, &mut values);
                for row in values.chunks_exact(self.columns as usize) {
                    sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += f64::from(*value));
                }
            }
        }
        let filler: Arc<[f32]> = sums.iter().map(|sum| (sum / count.max(1) as f64) as f32).collect();
        *known = Some(Arc::clone(&filler));
        Ok(filler)
    }

    fn fills_up(&self) -> bool {
        self.runs.iter().any(|(_, run)| *run == Row::Filler)
    }

    fn rows_in_piece(&self) -> u64 {
        (PIECE / self.columns).max(1)
    }
}

/// What rows are computed in.
#[derive(Default)]
struct RowRoom {
    sum: Vec<f32>,
    term: Vec<f32>,
    bytes: Vec<u8>,
}

impl Made for Rows {
    fn of(&self) -> Vec<usize> {
        self.of.iter().map(|of| of.input).collect()
    }

    fn reads(&self) -> Vec<(usize, Option<u64>)> {
        let mut rows = vec![0; self.of.len()];
        let ends = self.runs.iter().skip(1).map(|(first, _)| *first).chain([self.count]);
        for ((first, run), end) in self.runs.iter().zip(ends) {
            match run {
                Row::Picked { of, .. } => rows[*of] += end - first,
                Row::Mean(holders) => holders.iter().for_each(|(of, _)| rows[*of] += end - first),
                Row::Zero | Row::Filler => {}
            }
        }
        // The average of all rows reads them once more.
        let times = if self.runs.iter().any(|(_, run)| *run == Row::Filler) { 2 } else { 1 };
        self.of.iter().zip(rows).map(|(of, rows)| (of.input, Some(times * rows * self.columns))).collect()
    }

    fn float(&self) -> Float {
        self.float
    }

    /// A sum, a term, and the term's bytes; for the average of all rows, its sums, and some rows as stored and decoded.
    fn working_bytes(&self, elements: u64) -> u64 {
        let row = 3 * elements.min(self.columns) * Float::F32.bytes() as u64;
        if !self.fills_up() {
            return row;
        }
        let rows = self.rows_in_piece() * self.columns * (self.float.bytes() + size_of::<f32>()) as u64;
        3 * self.columns * Float::F32.bytes() as u64 + rows + self.columns * size_of::<f64>() as u64
    }

    fn kept_bytes(&self) -> u64 {
        if self.fills_up() { self.columns * size_of::<f32>() as u64 } else { 0 }
    }

    fn release(&self) {
        *self.filler.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn read(&self, range: Range<u64>, mut into: &mut [u8], from: &mut dyn ReadElements) -> Result<()> {
        let mut room = RowRoom::default();
        let mut parts = by_rows(range, self.columns).peekable();
        while let Some((row, mut columns)) = parts.next() {
            let mut rows = 1;
            // Neighbours that were neighbours before, in the same type, are read at once.
            if let (Row::Picked { of, .. }, further) = self.run_of(row)
                && self.of[*of].float == self.float
            {
                while let Some((next, more)) = parts.next_if(|(next, _)| {
                    let (run, next_further) = self.run_of(*next);
                    std::ptr::eq(run, self.run_of(row).0) && next_further == further + rows
                }) {
                    debug_assert!(next == row + rows && more.start == 0);
                    columns.end += more.end;
                    rows += 1;
                }
            }
            let bytes = (columns.end - columns.start) as usize * self.float.bytes();
            let (own, rest) = into.split_at_mut(bytes);
            self.part(row, columns, own, &mut room, from)?;
            into = rest;
        }
        Ok(())
    }
}

impl fmt::Display for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inputs: Vec<String> = self.of.iter().map(|of| format!("input {}", of.input)).collect();
        let Self { count, columns, float, .. } = self;
        write!(f, "{count} rows of {columns} {} from {}", float.name(), inputs.join(", "))
    }
}

//! How much an element's change matters: what `arcee_fusion` selects by.

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::elementary::{NEAR, artanh_rest, exp, ln};
use super::{Floats, Made, ReadElements, by_rows, decode_all, fit, pieces};
use crate::dtype::{Float, INFINITY_BITS, encode, magnitude_bits};
use crate::error::Result;
use crate::instructions::for_each_instruction_set;
use crate::kernel::TILE;

/// `|x − base| · K` with one `K` for each row, as f32: both factors are f32, and so is the product.
///
/// `K` is the divergence of Kullback and Leibler, `Σ P·ln(P/Q)`, of `P = softmax(x) + 10⁻⁸` from `Q = softmax(base) + 10⁻⁸` over the
/// row, in f64 and rounded once. It is computed as `Σ P·ln(P/Q) − P + Q`, which is the same, since the sums of `P` and of `Q` are
/// equal; but no term of it is below 0, so that nothing cancels where the rows are nearly equal, as those of fine-tunes are. A row
/// with NaN or infinity has NaN for `K`, and so for every element.
#[derive(Debug)]
pub struct Importance {
    base: Floats,
    model: Floats,
    columns: u64,
    elements: u64,
    /// The bits of each row's `K`, once something was read.
    known: Mutex<Option<Arc<[AtomicU32]>>>,
}

/// In place of a `K` that is not known yet: a NaN that none is.
const UNKNOWN: u32 = u32::MAX;

/// The most elements of an input that are in memory at a time.
const PIECE: u64 = 1 << 15;

/// Sums that go on side by side: element `i` of a row belongs to number `i % LANES`.
const LANES: usize = 8;

type Sums = [f64; LANES];

/// Elements that are added up before a look at how far they are from each other, in units of [`LANES`].
const STRETCH: usize = 64;

impl Importance {
    /// The importance in a tensor of so many elements, in rows of `columns`: the last dimension.
    ///
    /// # Panics
    /// They are no whole rows.
    pub fn new(base: Floats, model: Floats, columns: u64, elements: u64) -> Self {
        assert!(columns > 0 && elements.is_multiple_of(columns), "a tensor has whole rows");
        Self { base, model, columns, elements, known: Mutex::new(None) }
    }

    fn rows(&self) -> u64 {
        self.elements / self.columns
    }

    fn known(&self) -> Arc<[AtomicU32]> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let unknown = || (0..self.rows()).map(|_| AtomicU32::new(UNKNOWN)).collect();
        Arc::clone(known.get_or_insert_with(unknown))
    }

    /// A row's divergence.
    fn divergence(&self, row: u64, room: &mut Room, from: &mut dyn ReadElements) -> Result<f32> {
        let row = row * self.columns..(row + 1) * self.columns;
        let parts =
            || pieces(0..self.columns, PIECE).map(|part| row.start + part.start..row.start + part.end);
        let mut largest = [Largest::NONE; 2];
        for part in parts() {
            for (largest, values) in largest.iter_mut().zip(room.values(self, part, from)?) {
                look(values, largest);
            }
        }
        if largest.iter().any(|largest| largest.magnitude >= INFINITY_BITS) {
            return Ok(f32::NAN);
        }
        let largest = largest.map(|largest| f64::from(largest.value));
        let mut sums = [[0.0; LANES]; 2];
        for part in parts() {
            room.powers(self, part, largest, from)?;
            add(&room.powers[0], &mut sums[0]);
            add(&room.powers[1], &mut sums[1]);
        }
        let shares = sums.map(|sums| 1.0 / fold(sums));
        let mut terms = [0.0; LANES];
        for part in parts() {
            room.powers(self, part, largest, from)?;
            add_divergence(&room.powers, shares, &mut terms);
        }
        Ok(fold(terms).max(0.0) as f32)
    }
}

impl Made for Importance {
    fn of(&self) -> Vec<usize> {
        vec![self.base.input, self.model.input]
    }

    fn float(&self) -> Float {
        Float::F32
    }

    /// Of both inputs a piece or a row, as stored, in f32, and as powers in f64.
    fn working_bytes(&self, _: u64) -> u64 {
        let bytes = self.base.float.bytes() + self.model.float.bytes() + 2 * size_of::<f32>();
        PIECE * (bytes + 2 * size_of::<f64>()) as u64
    }

    fn kept_bytes(&self) -> u64 {
        self.rows() * size_of::<AtomicU32>() as u64
    }

    fn release(&self) {
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn read(&self, range: Range<u64>, mut into: &mut [u8], from: &mut dyn ReadElements) -> Result<()> {
        let known = self.known();
        let mut room = Room::default();
        let rows = range.start / self.columns..range.end.div_ceil(self.columns);
        for rows in pieces(rows, (PIECE / self.columns).max(1)) {
            let whole = rows.start * self.columns..rows.end * self.columns;
            let wanted = whole.start.max(range.start)..whole.end.min(range.end);
            let is_unknown = |row: &u64| known[*row as usize].load(Ordering::Relaxed) == UNKNOWN;
            if rows.clone().any(|row| is_unknown(&row)) && self.columns <= PIECE {
                // All of them at once.
                room.values(self, whole, from)?;
            }
            for row in rows.filter(is_unknown) {
                let divergence = self.divergence(row, &mut room, from)?;
                known[row as usize].store(divergence.to_bits(), Ordering::Relaxed);
            }
            for part in pieces(wanted, PIECE) {
                let (own, rest) = into.split_at_mut(Float::F32.bytes_of(part.end - part.start) as usize);
                let [base, x] = room.values(self, part.clone(), from)?;
                let mut first = 0;
                for (row, columns) in by_rows(part, self.columns) {
                    let len = (columns.end - columns.start) as usize;
                    let divergence = f32::from_bits(known[row as usize].load(Ordering::Relaxed));
                    let own = &mut own[first * Float::F32.bytes()..][..len * Float::F32.bytes()];
                    weigh(&base[first..][..len], &x[first..][..len], divergence, own);
                    first += len;
                }
                into = rest;
            }
        }
        Ok(())
    }
}

/// What is computed in.
#[derive(Default)]
struct Room {
    /// Which elements are here of base and model.
    loaded: Range<u64>,
    values: [Vec<f32>; 2],
    bytes: [Vec<u8>; 2],
    /// Of which elements the powers are here, e^(value − largest).
    raised: Range<u64>,
    powers: [Vec<f64>; 2],
}

impl Room {
    /// The values of base and model. They are read if they are not here.
    fn values(
        &mut self,
        of: &Importance,
        range: Range<u64>,
        from: &mut dyn ReadElements,
    ) -> Result<[&[f32]; 2]> {
        if range.start < self.loaded.start || range.end > self.loaded.end {
            self.loaded = 0..0;
            for ((of, values), bytes) in [of.base, of.model].iter().zip(&mut self.values).zip(&mut self.bytes)
            {
                fit(bytes, of.float.bytes_of(range.end - range.start) as usize);
                of.stored(range.start, bytes, from)?;
                fit(values, (range.end - range.start) as usize);
                decode_all(of.float, bytes, values);
            }
            self.loaded = range.clone();
        }
        let part = (range.start - self.loaded.start) as usize..(range.end - self.loaded.start) as usize;
        Ok(self.values.each_ref().map(|values| &values[part.clone()]))
    }

    /// Raises a part of a row, if that is not done.
    fn powers(
        &mut self,
        of: &Importance,
        range: Range<u64>,
        largest: [f64; 2],
        from: &mut dyn ReadElements,
    ) -> Result<()> {
        if self.raised != range {
            let mut powers = std::mem::take(&mut self.powers);
            let values = self.values(of, range.clone(), from)?;
            for ((values, powers), largest) in values.iter().zip(&mut powers).zip(largest) {
                fit(powers, values.len());
                raise(values, largest, powers);
            }
            (self.powers, self.raised) = (powers, range);
        }
        Ok(())
    }
}

/// The largest value, and the bits of the largest magnitude.
#[derive(Clone, Copy)]
struct Largest {
    value: f32,
    magnitude: u32,
}

impl Largest {
    const NONE: Self = Self { value: f32::NEG_INFINITY, magnitude: 0 };
}

/// Adds up what lanes have.
fn fold(sums: Sums) -> f64 {
    let pair = |i: usize| sums[i] + sums[i + 1];
    (pair(0) + pair(2)) + (pair(4) + pair(6))
}

for_each_instruction_set! {
    /// In lanes, since a maximum of one after the other would wait for each comparison.
    fn look(values: &[f32], largest: &mut Largest) {
        const WIDE: usize = 32;
        let (mut most, mut magnitudes) = ([largest.value; WIDE], [largest.magnitude; WIDE]);
        let (whole, rest) = values.as_chunks::<WIDE>();
        let mut take = |values: &[f32]| {
            for ((most, magnitude), x) in most.iter_mut().zip(&mut magnitudes).zip(values) {
                *most = if *x > *most { *x } else { *most };
                *magnitude = (*magnitude).max(magnitude_bits(*x));
            }
        };
        whole.iter().for_each(|values| take(values));
        take(rest);
        let value = most.into_iter().fold(largest.value, |value, x| if x > value { x } else { value });
        let magnitude = magnitudes.into_iter().fold(largest.magnitude, u32::max);
        *largest = Largest { value, magnitude };
    }

    fn raise(values: &[f32], largest: f64, powers: &mut [f64]) {
        powers.iter_mut().zip(values).for_each(|(power, value)| *power = exp(f64::from(*value) - largest));
    }

    /// Adds numbers to the sums of their lanes. The first one belongs to the first lane: parts of rows start at whole pieces.
    fn add(values: &[f64], sums: &mut Sums) {
        let (whole, rest) = values.as_chunks::<LANES>();
        for values in whole {
            sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
        }
        sums.iter_mut().zip(rest).for_each(|(sum, value)| *sum += value);
    }

    /// Adds the terms of the divergence in the same way.
    fn add_divergence(powers: &[Vec<f64>; 2], shares: [f64; 2], sums: &mut Sums) {
        let (base, base_rest) = powers[0].as_chunks::<LANES>();
        let (x, x_rest) = powers[1].as_chunks::<LANES>();
        // Few stretches have an element that changes by a large factor: a look at each group would take longer than all else.
        for (base, x) in base.chunks(STRETCH).zip(x.chunks(STRETCH)) {
            let before = *sums;
            let groups = || base.iter().zip(x);
            let far = groups().fold(false, |far, (base, x)| far | add_terms(*base, *x, shares, sums, false));
            if far {
                *sums = before;
                groups().for_each(|(base, x)| _ = add_terms(*base, *x, shares, sums, true));
            }
        }
        if !x_rest.is_empty() {
            let (mut base, mut x, mut terms) = ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
            base[..base_rest.len()].copy_from_slice(base_rest);
            x[..x_rest.len()].copy_from_slice(x_rest);
            add_terms(base, x, shares, &mut terms, true);
            sums.iter_mut().zip(&terms[..x_rest.len()]).for_each(|(sum, term)| *sum += term);
        }
    }

    fn weigh(base: &[f32], x: &[f32], divergence: f32, into: &mut [u8]) {
        let mut tile = [0.0; TILE];
        let tiles = into.chunks_mut(TILE * Float::F32.bytes());
        for ((into, base), x) in tiles.zip(base.chunks(TILE)).zip(x.chunks(TILE)) {
            let tile = &mut tile[..x.len()];
            for ((value, x), base) in tile.iter_mut().zip(x).zip(base) {
                *value = (x - base).abs() * divergence;
            }
            encode(Float::F32, tile, into);
        }
    }
}

/// Adds `P·ln(P/Q) − P + Q` of each lane; whether one has a `P/Q` far from 1, for which `any` must be set.
///
/// With `s = (P − Q) / (P + Q)` that is `(P − Q)·(s + (1 + s)·r)`, where `r = (artanh s − s) / s` has a short polynomial while
/// `P/Q` is near 1.
#[inline(always)]
fn add_terms(base: Sums, x: Sums, shares: [f64; 2], sums: &mut Sums, any: bool) -> bool {
    let mut far = false;
    for i in 0..LANES {
        let p = x[i] * shares[1] + 1e-8;
        let q = base[i] * shares[0] + 1e-8;
        let s = (p - q) / (p + q);
        let near = (p - q) * (s + (1.0 + s) * artanh_rest(s));
        let whole = if any { p * ln(p / q) - (p - q) } else { near };
        sums[i] += if s.abs() > NEAR { whole } else { near };
        far |= s.abs() > NEAR;
    }
    far
}

impl fmt::Display for Importance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { base, model, columns, .. } = self;
        let (base, model) = (base.input, model.input);
        write!(f, "importance of input {model} − input {base}, in rows of {columns}")
    }
}

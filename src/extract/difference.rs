//! The difference of a tensor of two models, read by rows.

use std::cell::Cell;

use super::products::{Panels, add_product, dot};
use super::svd::{ByRows, transposed};
use super::{Listen, Pair};
use crate::checkpoint::Reads;
use crate::dtype::{Float, decode, float_bytes};
use crate::error::{Error, Result};
use crate::instructions::for_each_instruction_set;
use crate::plan::{Compared, ComparedTensor};
use crate::text::quoted;

/// The elements that are read at once where nobody asks for whole rows.
const PIECE: usize = 1 << 18;

/// Fills `into` with a tensor's elements from number `first` on, in the type in which they are read.
pub(super) fn read(
    models: &Compared,
    tensor: &ComparedTensor,
    first: usize,
    into: &mut [u8],
    listen: &dyn Listen,
) -> Result<()> {
    let start = (first * float_bytes(tensor.read_as)) as u64;
    models.read(tensor, start, into, Reads::Copied, &|bytes| listen.read(bytes), &|| listen.stop())
}

/// The difference of two tensors, by rows.
pub(super) struct Difference<'a> {
    pair: Pair<'a>,
    rows: usize,
    columns: usize,
    listen: &'a dyn Listen,
    /// How many bytes of the model's tensor were said to be done.
    done: Cell<u64>,
    bytes: Vec<u8>,
    values: Vec<f32>,
}

impl<'a> Difference<'a> {
    pub(super) fn new(pair: Pair<'a>, listen: &'a dyn Listen) -> Self {
        let columns = pair.of_tuned.shape.last().copied().unwrap_or(1);
        let rows = pair.of_tuned.elements() / columns.max(1);
        Self { pair, rows, columns, listen, done: Cell::new(0), bytes: Vec::new(), values: Vec::new() }
    }

    /// Says that so many bytes of the model's tensor are done, if that is news.
    pub(super) fn done(&self, bytes: u64) {
        let before = self.done.get();
        if bytes > before {
            self.done.set(bytes);
            self.listen.done(bytes - before);
        }
    }

    /// The square of its norm; not finite where NaN or infinity are in it.
    pub(super) fn squares(&mut self) -> Result<f64> {
        let elements = self.rows * self.columns;
        (self.rows, self.columns) = (elements, 1);
        let (mut values, mut squares) = (vec![0.0; elements.min(PIECE)], 0.0);
        for first in (0..elements).step_by(PIECE) {
            let values = &mut values[..PIECE.min(elements - first)];
            self.fill(first, values)?;
            squares += dot(values, values);
            self.go_on((first + values.len()) as f64 / elements as f64)?;
        }
        Ok(squares)
    }

    /// Fills `into` with the difference from a row on. NaN and infinity that both models have are no difference.
    fn fill(&mut self, row: usize, into: &mut [f64]) -> Result<()> {
        let Pair { of_tuned, of_base, .. } = self.pair;
        let first = row * self.columns;
        into.fill(0.0);
        self.add(of_tuned, first, 1.0, into)?;
        self.add(of_base, first, -1.0, into)?;
        if dot(into, into).is_finite() {
            return Ok(());
        }
        // Nothing added to -0 is what it was.
        let [mut tuned, mut base] = [vec![-0.0; into.len()], vec![-0.0; into.len()]];
        self.add(of_tuned, first, 1.0, &mut tuned)?;
        self.add(of_base, first, 1.0, &mut base)?;
        for (into, (tuned, base)) in into.iter_mut().zip(tuned.iter().zip(&base)) {
            if tuned.to_bits() == base.to_bits() {
                *into = 0.0;
            }
        }
        Ok(())
    }

    /// Adds elements of a tensor to `into`, with a sign.
    fn add(&mut self, tensor: &ComparedTensor, first: usize, sign: f64, into: &mut [f64]) -> Result<()> {
        self.bytes.resize(into.len() * float_bytes(tensor.read_as), 0);
        read(self.pair.models, tensor, first, &mut self.bytes, self.listen)?;
        let Some(float) = Float::of(tensor.read_as) else {
            let (values, _) = self.bytes.as_chunks::<8>();
            into.iter_mut().zip(values).for_each(|(into, value)| *into += sign * f64::from_le_bytes(*value));
            return Ok(());
        };
        self.values.resize(into.len(), 0.0);
        decode_all(float, &self.bytes, &mut self.values);
        into.iter_mut().zip(&self.values).for_each(|(into, value)| *into += sign * f64::from(*value));
        Ok(())
    }

    /// The square of the norm of what is left without `scale · leftᵀ · right`.
    pub(super) fn without(&mut self, left: &[f64], right: &[f64], scale: f64) -> Result<f64> {
        let (rows, columns) = (self.rows, self.columns);
        let rank = left.len() / rows;
        let left: Vec<f64> = transposed(left, rank, rows).iter().map(|value| -scale * value).collect();
        let right = Panels::of(right, columns);
        let at_once = (PIECE / columns).clamp(1, rows);
        let (mut rest, mut squares) = (vec![0.0; at_once * columns], 0.0);
        for first in (0..rows).step_by(at_once) {
            let count = at_once.min(rows - first);
            let rest = &mut rest[..count * columns];
            self.read(first, rest)?;
            add_product(&left[first * rank..][..count * rank], &right, rest);
            squares += dot(rest, rest);
        }
        Ok(squares)
    }
}

impl ByRows for Difference<'_> {
    fn rows(&self) -> usize {
        self.rows
    }

    fn columns(&self) -> usize {
        self.columns
    }

    fn read(&mut self, first: usize, into: &mut [f64]) -> Result<()> {
        self.go_on(0.0)?;
        self.fill(first, into)?;
        if dot(into, into).is_finite() {
            return Ok(());
        }
        let Pair { models, name, .. } = self.pair;
        let (name, tuned, base) = (quoted(name), &models.tuned.name, &models.base.name);
        Err(Error::input(format!("tensor {name} has NaN or infinity in {tuned} or {base}"))
            .hint("leave its module out with --exclude, or mend the model"))
    }

    fn go_on(&self, done: f64) -> Result<()> {
        self.done((done * self.pair.bytes() as f64) as u64);
        if self.listen.stop() { Err(Error::interrupted()) } else { Ok(()) }
    }
}

for_each_instruction_set! {
    fn decode_all(float: Float, bytes: &[u8], into: &mut [f32]) {
        decode(float, bytes, into);
    }
}

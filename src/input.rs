//! What a merge reads: tensors as they are stored, and tensors that are made of others while they are read.
//!
//! A plan has a list of inputs, and refers to them by number: whoever reads the same tensor reads the same input. An input
//! yields any range of its elements by itself, in bounded memory, and its values do not depend on how it is cut. What is
//! computed is f32, in a fixed order, so that made inputs too are the same on every device. A new kind is one file and a
//! line here.

mod adapted;
mod rows;
mod scaled;

use std::fmt;
use std::ops::Range;

pub use adapted::Adapted;
pub use rows::{Row, Rows};
pub use scaled::Scaled;

use crate::dtype::{Float, decode};
use crate::error::Result;

/// An input of a merge.
#[derive(Debug)]
pub enum Input {
    /// A tensor of a checkpoint: bytes of a file, the only ones that can be mapped.
    Stored(At),
    /// A tensor made of other inputs.
    Made(Box<dyn Made>),
}

/// A tensor of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct At {
    /// Which source.
    pub source: usize,
    /// Which of its tensors.
    pub tensor: usize,
}

impl Input {
    /// The numbers of the inputs that it is made of.
    pub fn of(&self) -> Vec<usize> {
        match self {
            Self::Stored(_) => Vec::new(),
            Self::Made(made) => made.of(),
        }
    }
}

/// The tensors of checkpoints that an input comes from, the principal one first.
pub fn stored(inputs: &[Input], input: usize) -> Vec<At> {
    match &inputs[input] {
        Input::Stored(at) => vec![*at],
        Input::Made(made) => made.of().into_iter().flat_map(|of| stored(inputs, of)).collect(),
    }
}

/// A tensor that is made of other inputs while it is read. It prints what it is.
pub trait Made: fmt::Debug + fmt::Display + Send + Sync {
    /// The numbers of the inputs that it is made of; all are smaller than its own.
    fn of(&self) -> Vec<usize>;

    /// The type that its elements have.
    fn float(&self) -> Float;

    /// Its elements, encoded: `into` has room for those of `range` and no more.
    ///
    /// # Errors
    /// Those of `from`.
    fn read(&self, range: Range<u64>, into: &mut [u8], from: &mut dyn ReadElements) -> Result<()>;
}

/// Reads the inputs that others are made of.
pub trait ReadElements {
    /// Fills `into` with an input's bytes from `start` on.
    ///
    /// # Errors
    /// They cannot be read.
    fn bytes(&mut self, input: usize, start: u64, into: &mut [u8]) -> Result<()>;
}

/// An input of floats, as those that are made of it know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Floats {
    /// Its number.
    pub input: usize,
    /// The type of its elements.
    pub float: Float,
}

impl Floats {
    /// Its decoded elements from number `first` on. `bytes` is room that outlives the call.
    fn values(
        self,
        first: u64,
        into: &mut [f32],
        bytes: &mut Vec<u8>,
        from: &mut dyn ReadElements,
    ) -> Result<()> {
        bytes.resize(into.len() * self.float.bytes(), 0);
        from.bytes(self.input, first * self.float.bytes() as u64, bytes)?;
        decode(self.float, bytes, into);
        Ok(())
    }
}

/// The parts of a range of elements that lie in one row each: the row, and which of its columns.
fn by_rows(range: Range<u64>, columns: u64) -> impl Iterator<Item = (u64, Range<u64>)> {
    assert!(columns > 0, "rows have columns");
    let mut next = range.start;
    std::iter::from_fn(move || {
        let (row, first) = (next / columns, next % columns);
        let len = (columns - first).min(range.end - next);
        next += len;
        (len > 0).then_some((row, first..first + len))
    })
}

#[cfg(test)]
mod tests;

//! What a merge reads: tensors as they are stored, and tensors that are made of others while they are read.
//!
//! A plan has a list of inputs, and refers to them by number: whoever reads the same tensor reads the same input. An input
//! yields any range of its elements by itself, in bounded memory, and its values do not depend on how it is cut. What is
//! computed is f32, in a fixed order, so that made inputs too are the same on every device. A new kind is one file and a
//! line here.

mod adapted;
mod directed;
mod drawn;
mod elementary;
mod fisher;
mod gates;
mod hidden;
mod importance;
mod masked;
mod merged;
mod microscaled;
mod narrowed;
mod noisy;
mod ranks;
mod rows;
mod scaled;
mod shifted;
mod spread;
mod zeros;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::ops::Range;

pub use adapted::Adapted;
pub use directed::Directed;
pub use drawn::{Drawn, Law, draw_key};
pub use fisher::{Fisher, Stated, Weighed};
pub use gates::{Gates, PromptTokens};
pub use hidden::{Hidden, HiddenGates, OfText};
pub use importance::Importance;
pub use masked::Masked;
pub use merged::{Merged, Renumbered};
pub use microscaled::Microscaled;
pub use narrowed::Narrowed;
pub use noisy::Noisy;
pub use ranks::{Ranks, Vectors};
pub use rows::{Row, Rows};
pub use scaled::{Scaled, Scales};
pub use shifted::Shifted;
pub use spread::Spread;
pub use zeros::Zeros;

use crate::dtype::{Float, decode};
use crate::error::{Error, Result};
use crate::instructions::for_each_instruction_set;

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

/// An input and all that it is made of, each once, in the order in which they are met: the principal one of each first.
fn behind(inputs: &[Input], input: usize) -> Vec<usize> {
    let (mut met, mut order, mut next) = (HashSet::new(), Vec::new(), vec![input]);
    while let Some(input) = next.pop() {
        if met.insert(input) {
            order.push(input);
            next.extend(inputs[input].of().into_iter().rev());
        }
    }
    order
}

/// A number for an input, of those for what it is made of: each is found once, however many ways lead to it.
fn fold(inputs: &[Input], input: usize, number: impl Fn(&Input, &dyn Fn(usize) -> u64) -> u64) -> u64 {
    let mut order = behind(inputs, input);
    // What an input is made of has smaller numbers.
    order.sort_unstable();
    let mut known = HashMap::new();
    for input in order {
        let found = number(&inputs[input], &|of| known[&of]);
        known.insert(input, found);
    }
    known[&input]
}

/// The tensors of checkpoints that an input comes from, each once, the principal one first.
pub fn stored(inputs: &[Input], input: usize) -> Vec<At> {
    let at = |input: usize| match &inputs[input] {
        Input::Stored(at) => Some(*at),
        Input::Made(_) => None,
    };
    behind(inputs, input).into_iter().filter_map(at).collect()
}

/// The bytes of checkpoints that are read where an input is read once, as often as they are read for it. `bytes` has those of
/// a tensor, or of so many of its elements.
pub fn read_bytes(inputs: &[Input], input: usize, bytes: impl Fn(At, Option<u64>) -> u64) -> u64 {
    fold(inputs, input, |input, known| match input {
        Input::Stored(at) => bytes(*at, None),
        Input::Made(made) => {
            let of = made.reads().into_iter().map(|(of, elements)| match &inputs[of] {
                Input::Stored(at) => bytes(*at, elements),
                Input::Made(_) => known(of),
            });
            of.fold(0, u64::saturating_add)
        }
    })
}

/// The model that an input comes from: that of its principal tensor, if it has one.
pub fn source(inputs: &[Input], input: usize) -> Option<usize> {
    stored(inputs, input).first().map(|at| at.source)
}

/// A tensor that is made of other inputs while it is read. It prints what it is.
pub trait Made: fmt::Debug + fmt::Display + Send + Sync {
    /// The numbers of the inputs that it is made of; all are smaller than its own.
    fn of(&self) -> Vec<usize>;

    /// The same with how many of their elements are read for all of its own, where those are not all.
    fn reads(&self) -> Vec<(usize, Option<u64>)> {
        self.of().into_iter().map(|of| (of, None)).collect()
    }

    /// The type that its elements have.
    fn float(&self) -> Float;

    /// Its elements, encoded: `into` has room for those of `range` and no more. Of bits, `range` starts at a multiple of eight.
    ///
    /// # Errors
    /// Those of `from`.
    fn read(&self, range: Range<u64>, into: &mut [u8], from: &mut dyn ReadElements) -> Result<()>;

    /// The most bytes of memory that a read of so many elements takes while it goes on, but for those that inputs take which it
    /// reads on its way.
    fn working_bytes(&self, elements: u64) -> u64;

    /// The most bytes of memory that it keeps from one read to the next, until it is released.
    fn kept_bytes(&self) -> u64 {
        0
    }

    /// Frees what it keeps, because a tensor that reads it is done. A read that comes later makes it anew.
    fn release(&self) {}

    /// Itself, if it is an input of another plan: whoever numbers it again needs no second layer around it.
    fn as_renumbered(&self) -> Option<&Renumbered> {
        None
    }
}

/// The most bytes of memory that a read of so many elements of an input takes while it goes on.
pub fn working_bytes(inputs: &[Input], input: usize, elements: u64) -> u64 {
    let Input::Made(made) = &inputs[input] else { return 0 };
    let asked = elements.max(READ_MAX);
    let inner = |of: usize| {
        fold(inputs, of, |input, known| {
            let Input::Made(made) = input else { return 0 };
            let inner = made.of().into_iter().map(known).max();
            made.working_bytes(asked).saturating_add(inner.unwrap_or(0))
        })
    };
    made.working_bytes(elements).saturating_add(made.of().into_iter().map(inner).max().unwrap_or(0))
}

/// The most bytes of memory that an input keeps until it is released, with those that it is made of.
pub fn kept_bytes(inputs: &[Input], input: usize) -> u64 {
    made_behind(inputs, input).fold(0, |sum, made| sum.saturating_add(made.kept_bytes()))
}

/// Frees what an input keeps, and those that it is made of.
pub fn release(inputs: &[Input], input: usize) {
    made_behind(inputs, input).for_each(Made::release);
}

/// An input, if it is made, and all made ones that it is made of.
fn made_behind(inputs: &[Input], input: usize) -> impl Iterator<Item = &dyn Made> {
    behind(inputs, input).into_iter().filter_map(|input| match &inputs[input] {
        Input::Made(made) => Some(&**made),
        Input::Stored(_) => None,
    })
}

/// The most elements that an input asks another one for at once, if it is not asked for more itself.
const READ_MAX: u64 = 1 << 20;

/// Reads the inputs that others are made of.
pub trait ReadElements {
    /// Fills `into` with an input's bytes from `start` on: whole elements, of at least a byte.
    ///
    /// # Errors
    /// They cannot be read.
    fn bytes(&mut self, input: usize, start: u64, into: &mut [u8]) -> Result<()>;

    /// The threads that long work may have.
    fn threads(&self) -> usize {
        1
    }

    /// Asks, in long work that reads nothing for a while, whether to go on.
    ///
    /// # Errors
    /// The user wishes to stop.
    fn go_on(&mut self) -> Result<()> {
        Ok(())
    }
}

/// The inputs of a list. Tensors of checkpoints are read by `stored`: of which one, from which byte on.
pub struct Parts<'a, S> {
    /// All inputs.
    pub inputs: &'a [Input],
    /// Fills bytes of a stored tensor.
    pub stored: S,
    /// The threads that long work may have.
    pub threads: usize,
    /// Whether the user wishes to stop: some inputs are made of whole models, which takes longer than anyone waits.
    pub stop: &'a dyn Fn() -> bool,
}

impl<S: FnMut(At, u64, &mut [u8]) -> Result<()>> ReadElements for Parts<'_, S> {
    fn bytes(&mut self, input: usize, start: u64, into: &mut [u8]) -> Result<()> {
        match &self.inputs[input] {
            Input::Stored(at) => {
                self.go_on()?;
                (self.stored)(*at, start, into)
            }
            Input::Made(made) => {
                let element_bytes = made.float().bytes() as u64;
                let range = start / element_bytes..(start + into.len() as u64) / element_bytes;
                made.read(range, into, self)
            }
        }
    }

    fn threads(&self) -> usize {
        self.threads
    }

    fn go_on(&mut self) -> Result<()> {
        if (self.stop)() { Err(Error::interrupted()) } else { Ok(()) }
    }
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
    /// Its elements from number `first` on, as they are stored.
    fn stored(self, first: u64, into: &mut [u8], from: &mut dyn ReadElements) -> Result<()> {
        from.bytes(self.input, first * self.float.bytes() as u64, into)
    }

    /// Its decoded elements from number `first` on. `bytes` is room that outlives the call.
    ///
    /// # Errors
    /// Those of `from`.
    pub fn values(
        self,
        first: u64,
        into: &mut [f32],
        bytes: &mut Vec<u8>,
        from: &mut dyn ReadElements,
    ) -> Result<()> {
        fit(bytes, into.len() * self.float.bytes());
        self.stored(first, bytes, from)?;
        decode_all(self.float, bytes, into);
        Ok(())
    }
}

for_each_instruction_set! {
    fn decode_all(float: Float, bytes: &[u8], into: &mut [f32]) {
        decode(float, bytes, into);
    }
}

/// Gives a vector so many elements, with no room for more: what it holds is written anew.
fn fit<T: Copy + Default>(room: &mut Vec<T>, elements: usize) {
    if room.capacity() < elements {
        *room = Vec::new();
        room.reserve_exact(elements);
    }
    room.resize(elements, T::default());
}

/// A range in pieces of at most so many elements; all but the first and the last end at multiples of that.
fn pieces(range: Range<u64>, most: u64) -> impl Iterator<Item = Range<u64>> {
    let Range { mut start, end } = range;
    std::iter::from_fn(move || {
        let next = (start / most + 1) * most;
        let piece = start..next.min(end);
        start = piece.end;
        (piece.start < end).then_some(piece)
    })
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

//! A tensor with a multiple of another one added: a bias that an adapter moved.

use std::fmt;
use std::ops::Range;

use super::{Floats, Made, READ_MAX, ReadElements, fit, pieces};
use crate::dtype::{Float, encode};
use crate::error::Result;

/// `x + s · d`, element by element, as f32: product and sum are rounded.
#[derive(Debug, Clone, PartialEq)]
pub struct Shifted {
    /// What is moved.
    pub of: Floats,
    /// What is added, in the same shape.
    pub by: Floats,
    /// How much of that.
    pub scale: f32,
}

impl Made for Shifted {
    fn of(&self) -> Vec<usize> {
        vec![self.of.input, self.by.input]
    }

    fn float(&self) -> Float {
        Float::F32
    }

    /// Both in f32, and the bytes of one.
    fn working_bytes(&self, elements: u64) -> u64 {
        3 * elements.min(READ_MAX) * Float::F32.bytes() as u64
    }

    fn read(&self, range: Range<u64>, mut into: &mut [u8], from: &mut dyn ReadElements) -> Result<()> {
        let (mut bytes, mut values, mut by) = (Vec::new(), Vec::new(), Vec::new());
        for piece in pieces(range, READ_MAX) {
            let elements = (piece.end - piece.start) as usize;
            fit(&mut values, elements);
            fit(&mut by, elements);
            self.of.values(piece.start, &mut values, &mut bytes, from)?;
            self.by.values(piece.start, &mut by, &mut bytes, from)?;
            values.iter_mut().zip(&by).for_each(|(value, by)| *value += self.scale * by);
            let (own, rest) = into.split_at_mut(elements * Float::F32.bytes());
            encode(Float::F32, &values, own);
            into = rest;
        }
        Ok(())
    }
}

impl fmt::Display for Shifted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "input {} + {} · input {}", self.of.input, self.scale, self.by.input)
    }
}

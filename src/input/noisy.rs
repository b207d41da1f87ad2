//! A tensor with noise and a factor: an expert that is to differ from others of the same origin.

use std::fmt;
use std::ops::Range;

use super::{Drawn, Floats, Law, Made, ReadElements, fit};
use crate::dtype::{Float, encode};
use crate::error::Result;

/// Each element as `(x + deviation · z) · factor` in f32, where `z` is drawn from the standard normal distribution; without
/// noise, `x · factor`.
#[derive(Debug, Clone, PartialEq)]
pub struct Noisy {
    /// The tensor.
    pub of: Floats,
    /// The noise's standard deviation and the key that it is drawn with, if there is noise.
    pub noise: Option<(f32, [u32; 2])>,
    /// What the sum is multiplied with.
    pub factor: f32,
}

impl Made for Noisy {
    fn of(&self) -> Vec<usize> {
        vec![self.of.input]
    }

    fn float(&self) -> Float {
        Float::F32
    }

    fn read(&self, range: Range<u64>, into: &mut [u8], from: &mut dyn ReadElements) -> Result<()> {
        let elements = (range.end - range.start) as usize;
        let (mut values, mut bytes) = (Vec::new(), Vec::new());
        fit(&mut values, elements);
        self.of.values(range.start, &mut values, &mut bytes, from)?;
        if let Some((deviation, key)) = self.noise {
            let mut drawn = Vec::new();
            fit(&mut drawn, elements);
            Drawn { key, law: Law::Normal }.fill(range.start, &mut drawn);
            values.iter_mut().zip(&drawn).for_each(|(value, drawn)| *value += deviation * drawn);
        }
        values.iter_mut().for_each(|value| *value *= self.factor);
        encode(Float::F32, &values, into);
        Ok(())
    }

    /// The values, their bytes, and the noise.
    fn working_bytes(&self, elements: u64) -> u64 {
        3 * elements * Float::F32.bytes() as u64
    }
}

impl fmt::Display for Noisy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { of: Floats { input, .. }, noise, factor } = self;
        match noise {
            Some((deviation, _)) => write!(f, "(input {input} + {deviation} · noise) · {factor}"),
            None => write!(f, "input {input} · {factor}"),
        }
    }
}

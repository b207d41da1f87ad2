//! A tensor of float64, read as f32.

use std::fmt;
use std::ops::Range;

use super::{Made, ReadElements};
use crate::dtype::{F64_BYTES, Float, narrow};
use crate::error::Result;

/// Elements of float64, each rounded to f32, to nearest even. Those beyond f32's range are infinite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Narrowed {
    /// The number of the input.
    pub of: usize,
}

/// Elements that are read at once: 256 KiB.
const PIECE: usize = 32 << 10;

/// The one NaN that is handed on: payloads differ between processors.
const NAN_BITS: u32 = 0x7fc0_0000;

impl Made for Narrowed {
    fn of(&self) -> Vec<usize> {
        vec![self.of]
    }

    fn float(&self) -> Float {
        Float::F32
    }

    fn working_bytes(&self, elements: u64) -> u64 {
        elements.min(PIECE as u64) * (F64_BYTES + size_of::<f32>()) as u64
    }

    fn read(&self, range: Range<u64>, into: &mut [u8], from: &mut dyn ReadElements) -> Result<()> {
        let most = into.len().min(PIECE * Float::F32.bytes()) / Float::F32.bytes();
        let (mut bytes, mut values) = (vec![0; most * F64_BYTES], vec![0.0; most]);
        let mut first = range.start;
        for piece in into.chunks_mut(PIECE * Float::F32.bytes()) {
            let len = piece.len() / Float::F32.bytes();
            let (bytes, values) = (&mut bytes[..len * F64_BYTES], &mut values[..len]);
            from.bytes(self.of, first * F64_BYTES as u64, bytes)?;
            narrow(bytes, values);
            for (own, value) in piece.as_chunks_mut::<4>().0.iter_mut().zip(values) {
                let bits = if value.is_nan() { NAN_BITS } else { value.to_bits() };
                *own = bits.to_le_bytes();
            }
            first += len as u64;
        }
        Ok(())
    }
}

impl fmt::Display for Narrowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "input {} (float64) as float32", self.of)
    }
}

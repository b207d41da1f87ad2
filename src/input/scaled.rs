//! A quantised matrix with a scale for each block: `W = code · scale`, as checkpoints in FP8 have it, or without any scale.

use std::fmt;
use std::ops::Range;
use std::sync::LazyLock;

use super::{Floats, Made, ReadElements, by_rows, fit, pieces};
use crate::dtype::{Dtype, Float, encode};
use crate::error::Result;

/// A matrix of 8-bit codes, with one scale for each block of `block_rows × block_columns`, as f32: each element is its code,
/// which f32 holds exactly, times its scale, rounded once.
#[derive(Debug, Clone, PartialEq)]
pub struct Scaled {
    codes: usize,
    format: Dtype,
    scales: Scales,
    columns: u64,
    block: [u64; 2],
}

/// What codes are multiplied by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scales {
    /// Nothing: a code is its value.
    One,
    /// Floats.
    Floats(Floats),
    /// Powers of two, as bytes of an input: an exponent with a bias of 127 each (E8M0).
    Exponents(usize),
}

impl From<Floats> for Scales {
    fn from(floats: Floats) -> Self {
        Self::Floats(floats)
    }
}

impl Scales {
    fn input(self) -> Option<usize> {
        match self {
            Self::One => None,
            Self::Floats(floats) => Some(floats.input),
            Self::Exponents(input) => Some(input),
        }
    }

    /// Those from number `first` on. `bytes` is room that outlives the call.
    fn values(
        self,
        first: u64,
        into: &mut [f32],
        bytes: &mut Vec<u8>,
        from: &mut dyn ReadElements,
    ) -> Result<()> {
        match self {
            Self::One => into.fill(1.0),
            Self::Floats(floats) => floats.values(first, into, bytes, from)?,
            Self::Exponents(input) => {
                fit(bytes, into.len());
                from.bytes(input, first, bytes)?;
                into.iter_mut().zip(bytes).for_each(|(scale, exponent)| *scale = power_of_two(*exponent));
            }
        }
        Ok(())
    }
}

/// The value of a scale in E8M0 (OCP Microscaling Formats, 2023): `2^(exponent − 127)`, and NaN where all bits are set.
pub(super) fn power_of_two(exponent: u8) -> f32 {
    match exponent {
        0 => f32::from_bits(1 << 22),
        0xff => f32::NAN,
        _ => f32::from_bits(u32::from(exponent) << 23),
    }
}

impl Scaled {
    /// Codes of `format` (float8 with 4 or 5 bits of exponent, or int8) with `columns` columns, and scales in rows of
    /// `columns / block[1]`, rounded up. `None` for another format.
    ///
    /// # Panics
    /// There are no columns, or a block is empty.
    pub fn new(
        codes: usize,
        format: Dtype,
        scales: impl Into<Scales>,
        columns: u64,
        block: [u64; 2],
    ) -> Option<Self> {
        let scales = scales.into();
        assert!(columns > 0 && block.iter().all(|side| *side > 0), "blocks and rows have elements");
        table(format).map(|_| Self { codes, format, scales, columns, block })
    }
}

/// The values of all codes.
type CodeValues = [f32; 256];

fn table(format: Dtype) -> Option<&'static CodeValues> {
    static E4M3: LazyLock<CodeValues> = LazyLock::new(|| std::array::from_fn(|code| float8(code as u8, 4)));
    static E5M2: LazyLock<CodeValues> = LazyLock::new(|| std::array::from_fn(|code| float8(code as u8, 5)));
    static INT8: LazyLock<CodeValues> =
        LazyLock::new(|| std::array::from_fn(|code| f32::from(code as u8 as i8)));
    match format {
        Dtype::F8_E4M3 => Some(&E4M3),
        Dtype::F8_E5M2 => Some(&E5M2),
        Dtype::I8 => Some(&INT8),
        _ => None,
    }
}

/// The value of a float8 with so many bits of exponent (Micikevicius et al., FP8 formats for deep learning, 2022,
/// <https://arxiv.org/abs/2209.05433>). That with 4 bits has no infinity, and NaN where all bits are set; the other one has
/// both as IEEE 754 does.
fn float8(code: u8, exponent_bits: u32) -> f32 {
    let mantissa_bits = 7 - exponent_bits;
    let (exponent, mantissa) = ((code & 0x7f) >> mantissa_bits, code & ((1 << mantissa_bits) - 1));
    let bias = (1 << (exponent_bits - 1)) - 1;
    let magnitude = match (exponent_bits, code & 0x7f) {
        (4, 0x7f) | (5, 0x7d..) => f32::NAN,
        (5, 0x7c) => f32::INFINITY,
        _ => {
            let whole = if exponent == 0 { 0 } else { 1 << mantissa_bits };
            let power = i32::from(exponent.max(1)) - bias - mantissa_bits as i32;
            f32::from(whole + mantissa) * f32::from_bits(((127 + power) as u32) << 23)
        }
    };
    if code & 0x80 != 0 { -magnitude } else { magnitude }
}

impl Made for Scaled {
    fn of(&self) -> Vec<usize> {
        [Some(self.codes), self.scales.input()].into_iter().flatten().collect()
    }

    fn float(&self) -> Float {
        Float::F32
    }

    /// A row's codes and values, and its scales with their bytes.
    fn working_bytes(&self, elements: u64) -> u64 {
        elements.min(self.columns) * (1 + 3 * Float::F32.bytes()) as u64
    }

    fn read(&self, range: Range<u64>, mut into: &mut [u8], from: &mut dyn ReadElements) -> Result<()> {
        let table = table(self.format).expect("the format was looked at when this was made");
        let [block_rows, block_columns] = self.block;
        let scales_of_row = self.columns.div_ceil(block_columns);
        let (mut codes, mut scales, mut values, mut bytes) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (row, columns) in by_rows(range, self.columns) {
            fit(&mut codes, (columns.end - columns.start) as usize);
            from.bytes(self.codes, row * self.columns + columns.start, &mut codes)?;
            let first = columns.start / block_columns;
            fit(&mut scales, (columns.end.div_ceil(block_columns) - first) as usize);
            let place = row / block_rows * scales_of_row + first;
            self.scales.values(place, &mut scales, &mut bytes, from)?;
            values.clear();
            let mut codes = &codes[..];
            for (scale, block) in scales.iter().zip(pieces(columns, block_columns)) {
                let (own, rest) = codes.split_at((block.end - block.start) as usize);
                values.extend(own.iter().map(|code| table[usize::from(*code)] * scale));
                codes = rest;
            }
            let (own, rest) = into.split_at_mut(values.len() * Float::F32.bytes());
            encode(Float::F32, &values, own);
            into = rest;
        }
        Ok(())
    }
}

impl fmt::Display for Scaled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { codes, format, scales, block: [rows, columns], .. } = self;
        write!(f, "input {codes} ({format:?})")?;
        match scales.input() {
            Some(scales) => write!(f, " · input {scales} in blocks of {rows} × {columns}"),
            None => Ok(()),
        }
    }
}

//! A model where a mask says so, the base elsewhere.

use std::fmt;
use std::ops::Range;

use super::{Floats, Made, ReadElements, fit, pieces};
use crate::dtype::{Dtype, Float, encode};
use crate::error::Result;
use crate::instructions::for_each_instruction_set;

/// A model's tensor where a mask is not 0, and the base's where it is.
///
/// It has the type of both, and f32 where they differ. Where the mask is 0, an element is `base + 0 · (model − base)`: NaN and
/// infinity spread, as they do when a mask is multiplied with.
#[derive(Debug, Clone, PartialEq)]
pub struct Masked {
    base: Floats,
    model: Floats,
    mask: usize,
    /// The mask's type: truth values, whole numbers or floats.
    dtype: Dtype,
}

/// The most elements that are in memory at a time.
const PIECE: u64 = 1 << 15;

impl Masked {
    /// What the mask, input number `mask`, takes of `model`. `None` if its type is neither truth values, whole numbers nor floats.
    pub fn new(base: Floats, model: Floats, mask: usize, dtype: Dtype) -> Option<Self> {
        last_byte(dtype).map(|_| Self { base, model, mask, dtype })
    }

    fn mask_bytes(&self) -> usize {
        self.dtype.bitsize() / 8
    }
}

impl Made for Masked {
    fn of(&self) -> Vec<usize> {
        vec![self.model.input, self.base.input, self.mask]
    }

    fn float(&self) -> Float {
        self.base.float.promote(self.model.float)
    }

    /// The values of base and model, their bytes, and the mask.
    fn working_bytes(&self, elements: u64) -> u64 {
        elements.min(PIECE) * (3 * Float::F32.bytes() + self.mask_bytes()) as u64
    }

    fn read(&self, range: Range<u64>, mut into: &mut [u8], from: &mut dyn ReadElements) -> Result<()> {
        let last = last_byte(self.dtype).expect("the type was looked at when this was made");
        let (mut base, mut model, mut mask, mut bytes) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for piece in pieces(range, PIECE) {
            let elements = (piece.end - piece.start) as usize;
            fit(&mut base, elements);
            self.base.values(piece.start, &mut base, &mut bytes, from)?;
            fit(&mut model, elements);
            self.model.values(piece.start, &mut model, &mut bytes, from)?;
            fit(&mut mask, elements * self.mask_bytes());
            from.bytes(self.mask, piece.start * self.mask_bytes() as u64, &mut mask)?;
            choose(&mut base, &model, &mask, last);
            let (own, rest) = into.split_at_mut(elements * self.float().bytes());
            encode(self.float(), &base, own);
            into = rest;
        }
        Ok(())
    }
}

/// What of an element's last byte says that it is not 0: of floats, not the sign. `None` of types that no mask has.
fn last_byte(dtype: Dtype) -> Option<u8> {
    use Dtype::{BF16, BOOL, F8_E4M3, F8_E5M2, F16, F32, F64, I8, I16, I32, I64, U8, U16, U32, U64};
    match dtype {
        BOOL | U8 | I8 | U16 | I16 | U32 | I32 | U64 | I64 => Some(0xff),
        F8_E4M3 | F8_E5M2 | F16 | BF16 | F32 | F64 => Some(0x7f),
        _ => None,
    }
}

for_each_instruction_set! {
    /// Puts the elements that are wanted in place of the base's.
    fn choose(base: &mut [f32], model: &[f32], mask: &[u8], last: u8) {
        let size = mask.len() / base.len();
        for ((base, x), mask) in base.iter_mut().zip(model).zip(mask.chunks_exact(size)) {
            let wanted = mask[..size - 1].iter().fold(mask[size - 1] & last, |any, byte| any | byte) != 0;
            let dropped = *base + 0.0 * (x - *base);
            *base = if wanted { *x } else { dropped };
        }
    }
}

impl fmt::Display for Masked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { base, model, mask, dtype } = self;
        let (base, model) = (base.input, model.input);
        write!(f, "input {model} where input {mask} ({dtype:?}) is not 0, else input {base}")
    }
}

//! Random numbers as a tensor: routers that have learned nothing yet, and the noise that tells equal experts apart.
//!
//! They come from a counter-based generator: an element depends on the key and its number alone, however the tensor is cut.

use std::f64::consts::TAU;
use std::fmt;
use std::ops::Range;

use super::{Made, ReadElements, fit};
use crate::dtype::{Float, encode};
use crate::error::Result;
use crate::kernel::philox::philox4x32;

/// A tensor of any size, as f32, whose elements are drawn independently. It is made of nothing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Drawn {
    /// The generator's key.
    pub key: [u32; 2],
    /// How its elements are distributed.
    pub law: Law,
}

/// A distribution.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Law {
    /// The standard normal one.
    Normal,
    /// All numbers between −`bound` and `bound` alike.
    Uniform {
        /// The largest magnitude.
        bound: f64,
    },
}

/// The key of the numbers that are drawn for a tensor of this name.
pub fn draw_key(seed: u64, tensor: &str) -> [u32; 2] {
    let mut hasher = blake3::Hasher::new_derive_key("mergeforge 2026 random tensor");
    hasher.update(&seed.to_le_bytes()).update(tensor.as_bytes());
    let hash = hasher.finalize();
    let word = |i: usize| u32::from_le_bytes(hash.as_bytes()[4 * i..][..4].try_into().expect("four bytes"));
    [word(0), word(1)]
}

/// Elements that one call of the generator is good for.
const DRAWS: u64 = 4;

/// 2³², the number of words that there are.
const WORDS: f64 = 4_294_967_296.0;

impl Law {
    /// The elements that the four words of a call become.
    ///
    /// Normal ones come in pairs (Box and Muller, "A note on the generation of random normal deviates", 1958): √(−2 ln u) times
    /// cosine and sine of 2πv, where u is the middle of the first word's step in (0, 1), and v the second word in [0, 1).
    fn elements(self, words: [u32; 4]) -> [f32; DRAWS as usize] {
        let share = |word: u32| (f64::from(word) + 0.5) / WORDS;
        match self {
            Self::Normal => {
                let pair = |u: u32, v: u32| {
                    let radius = (-2.0 * libm::log(share(u))).sqrt();
                    let (sine, cosine) = libm::sincos(TAU * (f64::from(v) / WORDS));
                    [radius * cosine, radius * sine].map(|element| element as f32)
                };
                let ([a, b], [c, d]) = (pair(words[0], words[1]), pair(words[2], words[3]));
                [a, b, c, d]
            }
            Self::Uniform { bound } => words.map(|word| ((2.0 * share(word) - 1.0) * bound) as f32),
        }
    }
}

impl Drawn {
    /// Elements from number `first` on.
    pub(super) fn fill(self, first: u64, into: &mut [f32]) {
        let mut rest = into;
        let (mut block, mut skipped) = (first / DRAWS, (first % DRAWS) as usize);
        while !rest.is_empty() {
            let words = philox4x32([block as u32, (block >> 32) as u32, 0, 0], self.key);
            let elements = &self.law.elements(words)[skipped..];
            let (own, behind) = rest.split_at_mut(elements.len().min(rest.len()));
            own.copy_from_slice(&elements[..own.len()]);
            (rest, block, skipped) = (behind, block + 1, 0);
        }
    }
}

impl Made for Drawn {
    fn of(&self) -> Vec<usize> {
        Vec::new()
    }

    fn float(&self) -> Float {
        Float::F32
    }

    fn read(&self, range: Range<u64>, into: &mut [u8], _: &mut dyn ReadElements) -> Result<()> {
        let mut values = Vec::new();
        fit(&mut values, (range.end - range.start) as usize);
        self.fill(range.start, &mut values);
        encode(Float::F32, &values, into);
        Ok(())
    }

    fn working_bytes(&self, elements: u64) -> u64 {
        elements * Float::F32.bytes() as u64
    }
}

impl fmt::Display for Drawn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.law {
            Law::Normal => f.write_str("random numbers, normally distributed"),
            Law::Uniform { bound } => write!(f, "random numbers between -{bound} and {bound}"),
        }
    }
}

#[cfg(test)]
mod tests;

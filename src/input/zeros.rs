//! Nothing but 0: the base of a difference whose magnitudes are the other input's own.

use std::fmt;
use std::ops::Range;

use super::{Made, ReadElements};
use crate::dtype::Float;
use crate::error::Result;

/// A tensor of any size that is 0 everywhere, at a bit an element. It is made of nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Zeros;

impl Made for Zeros {
    fn of(&self) -> Vec<usize> {
        Vec::new()
    }

    fn float(&self) -> Float {
        Float::Bit
    }

    fn read(&self, _: Range<u64>, into: &mut [u8], _: &mut dyn ReadElements) -> Result<()> {
        into.fill(0);
        Ok(())
    }

    fn working_bytes(&self, _: u64) -> u64 {
        0
    }
}

impl fmt::Display for Zeros {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("zeros")
    }
}

//! Outside of tests nobody comes between a merge and its files.

use std::io;

use super::{Done, On, Op};

#[inline(always)]
pub(super) fn asked(_: Op, _: On<'_>, bytes: usize) -> io::Result<usize> {
    Ok(bytes)
}

#[inline(always)]
pub(super) fn now() -> usize {
    0
}

#[inline(always)]
pub(super) fn done(_: &Done<'_>) {}

//! Products of matrices, in one order on every processor.

use std::ops::{AddAssign, Mul};

use crate::instructions::for_each_instruction_set;

/// Columns whose sums are computed together: they are in registers from the first to the last term.
pub(crate) const LANES: usize = 16;

/// Rows whose sums are computed together.
pub(crate) const ROWS: usize = 4;

for_each_instruction_set! {
    /// Adds `scale · left · right` to columns `at..end` of values in rows of `width`; `right` begins at column `at`. It holds
    /// columns [`LANES`] at a time: for those all of `inner`, one behind the other. Each element's terms are added up from the
    /// first to the last, and then, scaled, to what is there.
    pub(crate) fn add_product(
        left: &[f32],
        right: &[[f32; LANES]],
        inner: usize,
        scale: f32,
        values: &mut [f32],
        columns: (usize, usize, usize),
    ) {
        let (at, end, width) = columns;
        for (left, values) in left.chunks(ROWS * inner).zip(values.chunks_mut(ROWS * width)) {
            for (tile, right) in right.chunks_exact(inner).enumerate() {
                let first = at + tile * LANES;
                let own = first..end.min(first + LANES);
                if left.len() == ROWS * inner {
                    let sums = sums::<f32, LANES, ROWS>(left, right, inner);
                    for (values, sums) in values.chunks_exact_mut(width).zip(&sums) {
                        add_scaled(&mut values[own.clone()], sums, scale);
                    }
                } else {
                    for (left, values) in left.chunks_exact(inner).zip(values.chunks_exact_mut(width)) {
                        let [sums] = sums::<f32, LANES, 1>(left, right, inner);
                        add_scaled(&mut values[own.clone()], &sums, scale);
                    }
                }
            }
        }
    }
}

/// `Σ left · right` over all of `inner`, of a few rows and `LANES` columns, in floats of any size.
#[inline(always)]
pub(crate) fn sums<T, const LANES: usize, const ROWS: usize>(
    left: &[T],
    right: &[[T; LANES]],
    inner: usize,
) -> [[T; LANES]; ROWS]
where
    T: Copy + Default + AddAssign + Mul<Output = T>,
{
    let left: [&[T]; ROWS] = std::array::from_fn(|row| &left[row * inner..][..inner]);
    let mut sums = [[T::default(); LANES]; ROWS];
    for (k, right) in right[..inner].iter().enumerate() {
        for (sums, left) in sums.iter_mut().zip(left) {
            sums.iter_mut().zip(right).for_each(|(sum, right)| *sum += left[k] * *right);
        }
    }
    sums
}

#[inline(always)]
fn add_scaled(values: &mut [f32], sums: &[f32; LANES], scale: f32) {
    values.iter_mut().zip(sums).for_each(|(value, sum)| *value += scale * sum);
}

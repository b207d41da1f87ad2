//! Products of matrices and vectors in f64, in one order on every processor.

use crate::instructions::for_each_instruction_set;
use crate::products::sums;

/// Columns whose sums are computed together, in registers; and sums of a dot product that go on side by side.
pub(super) const LANES: usize = 8;

/// Rows whose sums are computed together.
const ROWS: usize = 4;

/// A matrix by columns, [`LANES`] at a time: for those all rows, one behind the other.
pub(super) struct Panels {
    values: Vec<[f64; LANES]>,
    rows: usize,
    columns: usize,
}

impl Panels {
    /// Those of a matrix with so many columns.
    pub(super) fn of(matrix: &[f64], columns: usize) -> Self {
        let rows = matrix.len() / columns;
        let mut all = vec![[0.0; LANES]; columns.div_ceil(LANES) * rows];
        for (row, values) in matrix.chunks_exact(columns).enumerate() {
            for (panel, values) in values.chunks(LANES).enumerate() {
                all[panel * rows + row][..values.len()].copy_from_slice(values);
            }
        }
        Self { values: all, rows, columns }
    }

    /// Those of the transposed matrix, whose columns are the rows, of so many elements, of the one that is given.
    pub(super) fn of_transposed(matrix: &[f64], elements: usize) -> Self {
        let columns = matrix.len() / elements;
        let mut all = vec![[0.0; LANES]; columns.div_ceil(LANES) * elements];
        for (vectors, panel) in matrix.chunks(LANES * elements).zip(all.chunks_exact_mut(elements)) {
            for (lane, vector) in vectors.chunks_exact(elements).enumerate() {
                panel.iter_mut().zip(vector).for_each(|(values, value)| values[lane] = *value);
            }
        }
        Self { values: all, rows: elements, columns }
    }
}

/// Adds `left · right` to `into`. Each element's terms are added up from the first to the last, and then to what is there.
pub(super) fn add_product(left: &[f64], right: &Panels, into: &mut [f64]) {
    let Panels { values, rows, columns } = right;
    assert_eq!(
        left.len() / rows * columns,
        into.len(),
        "a product has the rows of one and the columns of the other"
    );
    add_panels(left, values, *rows, into, *columns);
}

/// Adds rows of `left · right` to those of a symmetric matrix, the first of which is its row `first`: what is left of the diagonal,
/// and perhaps a little of what is right of it.
pub(super) fn add_symmetric(left: &[f64], right: &Panels, first: usize, into: &mut [f64]) {
    let Panels { values, rows: inner, columns } = right;
    for (number, (left, into)) in left.chunks(LANES * inner).zip(into.chunks_mut(LANES * columns)).enumerate()
    {
        let panels = (first + (number + 1) * LANES).min(*columns).div_ceil(LANES);
        add_panels(left, &values[..panels * inner], *inner, into, *columns);
    }
}

for_each_instruction_set! {
    fn add_panels(left: &[f64], right: &[[f64; LANES]], inner: usize, into: &mut [f64], columns: usize) {
        // A panel stays in the cache while all rows go past it.
        for (number, right) in right.chunks_exact(inner).enumerate() {
            let own = number * LANES..columns.min((number + 1) * LANES);
            for (left, into) in left.chunks(ROWS * inner).zip(into.chunks_mut(ROWS * columns)) {
                if left.len() == ROWS * inner {
                    let sums = sums::<f64, LANES, ROWS>(left, right, inner);
                    for (into, sums) in into.chunks_exact_mut(columns).zip(&sums) {
                        into[own.clone()].iter_mut().zip(sums).for_each(|(into, sum)| *into += sum);
                    }
                } else {
                    for (left, into) in left.chunks_exact(inner).zip(into.chunks_exact_mut(columns)) {
                        let [sums] = sums::<f64, LANES, 1>(left, right, inner);
                        into[own.clone()].iter_mut().zip(&sums).for_each(|(into, sum)| *into += sum);
                    }
                }
            }
        }
    }

    /// The sum of products: element `i` belongs to sum `i % LANES`.
    pub(super) fn dot(one: &[f64], other: &[f64]) -> f64 {
        let ((one, one_rest), (other, other_rest)) = (one.as_chunks::<LANES>(), other.as_chunks::<LANES>());
        let mut sums = [0.0; LANES];
        for (one, other) in one.iter().zip(other) {
            for (sum, (one, other)) in sums.iter_mut().zip(one.iter().zip(other)) {
                *sum += one * other;
            }
        }
        for (sum, (one, other)) in sums.iter_mut().zip(one_rest.iter().zip(other_rest)) {
            *sum += one * other;
        }
        let half = |at: usize| (sums[at] + sums[at + 1]) + (sums[at + 2] + sums[at + 3]);
        half(0) + half(4)
    }

    /// Takes `factor · other` away.
    pub(super) fn subtract(from: &mut [f64], factor: f64, other: &[f64]) {
        from.iter_mut().zip(other).for_each(|(from, other)| *from -= factor * other);
    }

    pub(super) fn scale(values: &mut [f64], factor: f64) {
        values.iter_mut().for_each(|value| *value *= factor);
    }
}

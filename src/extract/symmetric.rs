//! Eigenvalues and eigenvectors of a symmetric matrix in f64: Householder's reflections make it tridiagonal, the implicit QL
//! iteration diagonal (Golub and Van Loan, "Matrix Computations", 8.3).
//!
//! Written here, and not taken from a library: those that are fast choose fused operations by the processor, which would give other
//! bytes on another machine, and none can be stopped while it computes. Vectors are turned in panels that stay in the cache, by many
//! rotations at a time, so that all of it takes about as long as a few products of such matrices.

use super::products::{dot, scale, subtract};
use crate::error::Result;
use crate::instructions::for_each_instruction_set;

/// Elements of all vectors that are turned together.
const WIDTH: usize = 16;

/// Rotations that are collected before vectors are turned by them, for each row.
const ROTATIONS: usize = 64;

/// Iterations for one eigenvalue: two are usual.
const ITERATIONS_MAX: usize = 60;

/// The eigenvalues of a symmetric matrix, the largest first, and its eigenvectors as rows. Of the matrix, `count × count`, the lower
/// half is read. Between steps of less than a second `go_on` is asked, with the share of the work that is done.
///
/// # Errors
/// Those of `go_on`.
pub(super) fn eigen(
    mut matrix: Vec<f64>,
    count: usize,
    go_on: &dyn Fn(f64) -> Result<()>,
) -> Result<(Vec<f64>, Vec<f64>)> {
    let Some(largest) = scaled(&mut matrix) else {
        let mut vectors = vec![0.0; count * count];
        (0..count).for_each(|i| vectors[i * count + i] = 1.0);
        return Ok((vec![0.0; count], vectors));
    };
    let mut tridiagonal = Tridiagonal::of(&mut matrix, count, &|done| go_on(0.25 * done))?;
    let mut vectors = Vectors::of_reflections(&matrix, &tridiagonal.halves, go_on)?;
    drop(matrix);
    let mut rotations = Vec::new();
    tridiagonal.diagonalise(&mut |run, done| {
        rotations.push(run);
        if rotations.len() < ROTATIONS {
            return Ok(());
        }
        vectors.turn(&rotations, &|| go_on(0.5 + 0.5 * (1.0 - (1.0 - done).powi(2))))?;
        rotations.clear();
        Ok(())
    })?;
    vectors.turn(&rotations, &|| go_on(1.0))?;
    let values = tridiagonal.diagonal;
    let mut order: Vec<usize> = (0..count).collect();
    order.sort_by(|one, other| values[*other].total_cmp(&values[*one]));
    let sorted = order.iter().map(|i| values[*i] * largest).collect();
    Ok((sorted, vectors.rows(&order)))
}

/// The eigenvalues alone, as of [`eigen`], in a fraction of the time: reducing the matrix is nearly all of the work.
///
/// # Errors
/// Those of `go_on`.
pub(super) fn eigenvalues(
    mut matrix: Vec<f64>,
    count: usize,
    go_on: &dyn Fn(f64) -> Result<()>,
) -> Result<Vec<f64>> {
    let Some(largest) = scaled(&mut matrix) else { return Ok(vec![0.0; count]) };
    let mut tridiagonal = Tridiagonal::of(&mut matrix, count, go_on)?;
    drop(matrix);
    tridiagonal.diagonalise(&mut |_, _| Ok(()))?;
    let mut values = tridiagonal.diagonal;
    values.sort_by(|one, other| other.total_cmp(one));
    scale(&mut values, largest);
    Ok(values)
}

/// Divides a matrix by its largest magnitude, so that squares of squares neither overflow nor vanish, and returns that; of zeros there
/// is none.
fn scaled(matrix: &mut [f64]) -> Option<f64> {
    let largest = matrix.iter().fold(0.0, |largest: f64, value| largest.max(value.abs()));
    if largest == 0.0 {
        return None;
    }
    scale(matrix, 1.0 / largest);
    Some(largest)
}

/// A tridiagonal matrix.
struct Tridiagonal {
    diagonal: Vec<f64>,
    /// Element `i` stands between `i` and `i + 1` of the diagonal; the last one is 0.
    beside: Vec<f64>,
    /// Half the square of the length of each reflection's vector; 0 where there is none.
    halves: Vec<f64>,
}

impl Tridiagonal {
    /// Reduces a matrix from its last row to its first, and asks `go_on` with the share of that. The vector of the reflection that empties row `i` replaces that row's
    /// elements before the diagonal.
    fn of(matrix: &mut [f64], count: usize, go_on: &dyn Fn(f64) -> Result<()>) -> Result<Self> {
        let mut own = Self { diagonal: vec![0.0; count], beside: vec![0.0; count], halves: vec![0.0; count] };
        // What the reflection before takes away of all rows: `one · otherᵀ + other · oneᵀ`.
        let (mut one, mut other) = (vec![0.0; count], vec![0.0; count]);
        for row in (0..count).rev() {
            go_on(1.0 - (row as f64 / count as f64).powi(3))?;
            let (rest, own_row) = matrix[..(row + 1) * count].split_at_mut(row * count);
            let own_row = &mut own_row[..=row];
            take_away(own_row, &one, &other, row);
            own.diagonal[row] = own_row[row];
            let reflected = &mut own_row[..row];
            let squares = dot(reflected, reflected);
            let Some(last) = reflected.last_mut().filter(|_| squares > 0.0) else {
                // The reflection before is due all the same.
                for (row, values) in rest.chunks_exact_mut(count).enumerate() {
                    take_away(&mut values[..=row], &one, &other, row);
                }
                (one, other) = (vec![0.0; count], vec![0.0; count]);
                continue;
            };
            let length = squares.sqrt();
            let signed = if *last < 0.0 { -length } else { length };
            own.beside[row - 1] = -signed;
            let half = squares + signed * *last;
            *last += signed;
            own.halves[row] = half;
            let mut product = vec![0.0; row];
            reflect(rest, count, (&one, &other), reflected, &mut product);
            scale(&mut product, 1.0 / half);
            let along = dot(&product, reflected) / (2.0 * half);
            subtract(&mut product, along, reflected);
            one.truncate(row);
            one.copy_from_slice(reflected);
            other = product;
        }
        Ok(own)
    }

    /// Rotates until nothing is left beside the diagonal. `turned` gets all rotations, with the share of rows that are done.
    fn diagonalise(&mut self, turned: &mut dyn FnMut(Run, f64) -> Result<()>) -> Result<()> {
        let Self { diagonal, beside, .. } = self;
        let count = diagonal.len();
        let largest = diagonal.iter().chain(&*beside).fold(0.0, |most: f64, value| most.max(value.abs()));
        let nothing = f64::EPSILON * largest;
        for first in 0..count {
            for _ in 0..ITERATIONS_MAX {
                let is_cut = |at: &usize| *at + 1 == count || beside[*at].abs() <= nothing;
                let last = (first..count).find(is_cut).expect("it ends with the matrix");
                if last == first {
                    break;
                }
                let run = rotate((&mut diagonal[..], &mut beside[..]), first, last);
                turned(run, first as f64 / count as f64)?;
            }
        }
        Ok(())
    }
}

/// Takes away of a row what a reflection of all rows takes away of it.
fn take_away(values: &mut [f64], one: &[f64], other: &[f64], row: usize) {
    let (of_one, of_other) = (one[row], other[row]);
    subtract(values, of_one, other);
    subtract(values, of_other, one);
}

for_each_instruction_set! {
    /// Takes away of the lower half of a matrix what the reflection before takes away, and adds to `product` the matrix times the
    /// vector of the next one: rows are read once for both.
    fn reflect(
        matrix: &mut [f64],
        count: usize,
        before: (&[f64], &[f64]),
        vector: &[f64],
        product: &mut [f64],
    ) {
        let (one, other) = before;
        for (row, values) in matrix.chunks_exact_mut(count).enumerate() {
            let (of_one, of_other, factor) = (one[row], other[row], vector[row]);
            let (values, rest) = values.split_at_mut(row);
            let (one, other, vector) = (&one[..row], &other[..row], &vector[..row]);
            let (before, own) = product.split_at_mut(row);
            for (value, (one, other)) in values.iter_mut().zip(one.iter().zip(other)) {
                *value = *value - of_one * other - of_other * one;
            }
            for (before, value) in before.iter_mut().zip(&*values) {
                *before += factor * value;
            }
            rest[0] = rest[0] - of_one * of_other - of_other * of_one;
            own[0] += dot(values, vector) + factor * rest[0];
        }
    }
}

/// Rotations of neighbouring rows, from the last pair to the first: cosine and sine of each.
struct Run {
    first: usize,
    turns: Vec<[f64; 2]>,
}

/// One iteration of the implicit QL method on the block from `first` to `last`.
fn rotate((diagonal, beside): (&mut [f64], &mut [f64]), first: usize, last: usize) -> Run {
    // The eigenvalue of the upper two that is nearer to the first.
    let half = (diagonal[first + 1] - diagonal[first]) / (2.0 * beside[first]);
    let root = (half * half + 1.0).sqrt();
    let shift = diagonal[first] - beside[first] / (half + root.copysign(half));
    let (mut sine, mut cosine, mut moved) = (1.0, 1.0, 0.0);
    let mut along = diagonal[last] - shift;
    let mut turns = vec![[1.0, 0.0]; last - first];
    for at in (first..last).rev() {
        let (across, left) = (sine * beside[at], cosine * beside[at]);
        let length = (across * across + along * along).sqrt();
        beside[at + 1] = length;
        if length == 0.0 {
            // Nothing is left to turn: what is above goes on in the next iteration.
            diagonal[at + 1] -= moved;
            beside[last] = 0.0;
            return Run { first, turns };
        }
        (sine, cosine) = (across / length, along / length);
        let rest = diagonal[at + 1] - moved;
        let twice = (diagonal[at] - rest) * sine + 2.0 * cosine * left;
        moved = sine * twice;
        diagonal[at + 1] = rest + moved;
        along = cosine * twice - left;
        turns[at - first] = [cosine, sine];
    }
    diagonal[first] -= moved;
    beside[first] = along;
    beside[last] = 0.0;
    Run { first, turns }
}

/// Vectors, which are rows, in panels of [`WIDTH`] of their elements: for those all vectors, one behind the other.
struct Vectors {
    panels: Vec<[f64; WIDTH]>,
    count: usize,
}

impl Vectors {
    /// The rows of the product of all reflections, transposed.
    fn of_reflections(matrix: &[f64], halves: &[f64], go_on: &dyn Fn(f64) -> Result<()>) -> Result<Self> {
        let count = halves.len();
        let mut panels = vec![[0.0; WIDTH]; count.div_ceil(WIDTH) * count];
        for (number, panel) in panels.chunks_exact_mut(count).enumerate() {
            go_on(0.25 + 0.25 * (number * WIDTH) as f64 / count as f64)?;
            for lane in 0..WIDTH.min(count - number * WIDTH) {
                panel[number * WIDTH + lane][lane] = 1.0;
            }
            for row in (0..count).rev().filter(|row| halves[*row] > 0.0) {
                reflect_panel(&mut panel[..row], &matrix[row * count..][..row], halves[row]);
            }
        }
        Ok(Self { panels, count })
    }

    /// Turns neighbouring vectors in their planes.
    fn turn(&mut self, runs: &[Run], go_on: &dyn Fn() -> Result<()>) -> Result<()> {
        for panel in self.panels.chunks_exact_mut(self.count) {
            go_on()?;
            runs.iter().for_each(|run| turn_panel(panel, run.first, &run.turns));
        }
        Ok(())
    }

    /// The vectors in this order.
    fn rows(&self, order: &[usize]) -> Vec<f64> {
        let mut rows = vec![0.0; self.count * self.count];
        for (row, vector) in rows.chunks_exact_mut(self.count).zip(order) {
            for (values, panel) in row.chunks_mut(WIDTH).zip(self.panels.chunks_exact(self.count)) {
                values.copy_from_slice(&panel[*vector][..values.len()]);
            }
        }
        rows
    }
}

for_each_instruction_set! {
    fn reflect_panel(panel: &mut [[f64; WIDTH]], vector: &[f64], half: f64) {
        let mut along = [0.0; WIDTH];
        for (values, factor) in panel.iter().zip(vector) {
            along.iter_mut().zip(values).for_each(|(along, value)| *along += factor * value);
        }
        along.iter_mut().for_each(|along| *along /= half);
        for (values, factor) in panel.iter_mut().zip(vector) {
            values.iter_mut().zip(&along).for_each(|(value, along)| *value -= factor * along);
        }
    }

    fn turn_panel(panel: &mut [[f64; WIDTH]], first: usize, turns: &[[f64; 2]]) {
        let panel = &mut panel[first..=first + turns.len()];
        let mut below = panel[turns.len()];
        for (at, [cosine, sine]) in turns.iter().enumerate().rev() {
            let above = panel[at];
            let mut turned = [0.0; WIDTH];
            for lane in 0..WIDTH {
                turned[lane] = sine * above[lane] + cosine * below[lane];
                below[lane] = cosine * above[lane] - sine * below[lane];
            }
            panel[at + 1] = turned;
        }
        panel[0] = below;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    /// A symmetric matrix with these eigenvalues, whose eigenvectors two reflections make of the axes.
    fn with_eigenvalues(values: &[f64]) -> Vec<f64> {
        let count = values.len();
        let mut vectors: Vec<f64> =
            (0..count * count).map(|i| f64::from(u8::from(i % (count + 1) == 0))).collect();
        for turn in 1..3 {
            let axis: Vec<f64> =
                (0..count).map(|i| ((i * i * turn + 3 * i + turn) % 17) as f64 - 7.5).collect();
            for vector in vectors.chunks_exact_mut(count.max(1)) {
                let along = 2.0 * dot(vector, &axis) / dot(&axis, &axis);
                subtract(vector, along, &axis);
            }
        }
        let element = |i: usize| {
            let (row, column) = (i / count, i % count);
            (0..count).map(|k| values[k] * vectors[k * count + row] * vectors[k * count + column]).sum()
        };
        (0..count * count).map(element).collect()
    }

    #[test]
    fn values_and_vectors_are_those_of_the_matrix() {
        let falling: Vec<f64> = (0..150).map(|k| 0.85f64.powi(k)).collect();
        let grouped: Vec<f64> = (0..70).map(|k| f64::from(k / 10) - 3.0).collect();
        let few = [vec![5.0, 1.0, 1e-9], vec![0.0; 60]].concat();
        let cases = [vec![], vec![-2.0], vec![3.0, 1.0], vec![0.0; 5], falling, grouped, few, vec![7.0; 33]];
        for (values, factor) in
            cases.iter().flat_map(|values| [1.0, 1e140, 1e-140].map(|factor| (values, factor)))
        {
            let count = values.len();
            let matrix: Vec<f64> = with_eigenvalues(values).iter().map(|value| value * factor).collect();
            let (found, vectors) = eigen(matrix.clone(), count, &|_| Ok(())).unwrap();
            let mut expected = values.clone();
            expected.sort_by(|one, other| other.total_cmp(one));
            let near = 1e-13 * expected.iter().fold(1.0, |most: f64, value| most.max(value.abs()));
            let alone = eigenvalues(matrix.clone(), count, &|_| Ok(())).unwrap();
            for (found, expected) in found.iter().zip(&expected) {
                assert!((found / factor - expected).abs() < near, "{found} in place of {expected}");
            }
            assert_eq!(alone, found);
            for (one, value) in vectors.chunks_exact(count.max(1)).zip(&found) {
                for (row, element) in matrix.chunks_exact(count).zip(one) {
                    assert!((dot(row, one) - value * element).abs() <= near * factor, "{count}: {value}");
                }
                for (number, other) in vectors.chunks_exact(count).enumerate() {
                    let expected = if std::ptr::eq(one.as_ptr(), other.as_ptr()) { 1.0 } else { 0.0 };
                    assert!((dot(one, other) - expected).abs() < 1e-13, "{count}: {number}");
                }
            }
        }
    }

    /// Only the lower half counts.
    #[test]
    fn the_upper_half_is_not_read() {
        let values: Vec<f64> = (0..40).map(f64::from).collect();
        let matrix = with_eigenvalues(&values);
        let mut lower = matrix.clone();
        (0..40).for_each(|row| lower[row * 40 + row + 1..(row + 1) * 40].fill(0.5));
        let [found, expected] = [lower, matrix].map(|matrix| eigen(matrix, 40, &|_| Ok(())).unwrap());
        assert_eq!(found, expected);
    }

    #[test]
    fn it_can_be_stopped() {
        let matrix = with_eigenvalues(&[4.0, 3.0, 2.0, 1.0]);
        assert!(eigen(matrix.clone(), 4, &|_| Err(Error::interrupted())).is_err());
        assert!(eigenvalues(matrix, 4, &|_| Err(Error::interrupted())).is_err());
    }
}

//! The largest singular values of a matrix that is only read by rows, with their vectors.
//!
//! The randomised method of Halko, Martinsson and Tropp, "Finding structure with randomness" (SIAM Review 2011,
//! <https://arxiv.org/abs/0909.4061>): the matrix times a few random vectors spans what is large in it, all the more after some
//! power iterations; within that span the rest is small and exact. The matrix itself is never in memory: every product is one sweep
//! over its rows. All of it is f64, in one order whatever the threads and the processor, so that it has the same bytes everywhere.

use super::products::{LANES, Panels, add_product, dot, scale, subtract};
use crate::error::Result;
use crate::kernel::philox::philox4x32;

/// A matrix that is read by rows.
pub(super) trait ByRows {
    /// How many it has.
    fn rows(&self) -> usize;
    /// How long they are.
    fn columns(&self) -> usize;
    /// Fills `into` with whole rows from number `first` on.
    ///
    /// # Errors
    /// They cannot be read, or the user wants to stop.
    fn read(&mut self, first: usize, into: &mut [f64]) -> Result<()>;
}

/// Which singular values are wanted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Wanted {
    /// No more than so many.
    pub(super) rank: usize,
    /// No more than are needed to lose no more than this share of the Frobenius norm.
    pub(super) error: f64,
}

/// The largest singular values, in descending order. Vectors are rows.
#[derive(Debug, Default)]
pub(super) struct Svd {
    /// The left vectors, `rank × rows`.
    pub(super) left: Vec<f64>,
    /// The right vectors, each multiplied with its singular value: `rank × columns`.
    pub(super) right: Vec<f64>,
    /// The singular values.
    pub(super) values: Vec<f64>,
    /// The square of the matrix's Frobenius norm.
    pub(super) squares: f64,
}

/// Random vectors beyond those wanted, so that the span holds these whole.
const OVERSAMPLES: usize = 16;

/// Times that the matrix and its transpose are applied to the span. Singular values of task vectors fall off slowly.
const ITERATIONS: usize = 2;

/// Vectors to begin with where an error is wanted and the rank is not known.
const FIRST: usize = 64;

/// The elements of the matrix in memory at a time.
const BLOCK: usize = 1 << 18;

/// What is left of a vector, as a share, when it is taken for one that the others span.
const SPANNED: f64 = 1e-12;

/// Singular values that are smaller, as a share of the largest, are noise of the arithmetic: they are roots of eigenvalues.
const NOISE: f64 = 1e-7;

/// Decomposes a matrix; of one that is all zeros there is nothing.
///
/// # Errors
/// Those of the matrix.
pub(super) fn decompose(matrix: &mut dyn ByRows, wanted: Wanted) -> Result<Svd> {
    let most = matrix.rows().min(matrix.columns());
    let asked = wanted.rank.min(most);
    let mut vectors = if wanted.error > 0.0 { asked.min(FIRST) } else { asked };
    loop {
        let found = within_span(matrix, (vectors + OVERSAMPLES).min(most))?;
        let rank = found.rank(wanted);
        // Values beyond those asked for are less exact, as are those at the end of a span.
        if rank <= vectors || vectors == asked {
            return Ok(found.cut(rank.min(asked)));
        }
        vectors = (2 * vectors).min(asked);
    }
}

impl Svd {
    /// How many values lose no more than is wanted.
    fn rank(&self, wanted: Wanted) -> usize {
        let mut lost = self.squares;
        let enough = wanted.error * wanted.error * self.squares;
        let worth = self.values.iter().take_while(|value| **value > NOISE * self.values[0]).count();
        for (rank, value) in self.values[..worth].iter().enumerate() {
            if lost <= enough {
                return rank;
            }
            lost -= value * value;
        }
        // What arithmetic leaves of a matrix that is found whole.
        if worth < self.values.len() || lost <= enough { worth } else { usize::MAX }
    }

    fn cut(mut self, rank: usize) -> Self {
        let worth = self.values.iter().take_while(|value| **value > NOISE * self.values[0]).count();
        let (rank, all) = (rank.min(worth), self.values.len().max(1));
        let (rows, columns) = (self.left.len() / all, self.right.len() / all);
        self.values.truncate(rank);
        self.left.truncate(rank * rows);
        self.right.truncate(rank * columns);
        self
    }
}

/// The singular values of what lies within the span of so many random combinations of the columns.
fn within_span(matrix: &mut dyn ByRows, vectors: usize) -> Result<Svd> {
    let (rows, columns) = (matrix.rows(), matrix.columns());
    let (mut left, squares) = times(matrix, &random(columns, vectors), vectors)?;
    if squares == 0.0 {
        return Ok(Svd::default());
    }
    orthonormalise(&mut left, rows);
    for _ in 0..ITERATIONS {
        let mut right = transposed_times(matrix, &left, vectors)?;
        orthonormalise(&mut right, columns);
        left = times(matrix, &transposed(&right, vectors, columns), vectors)?.0;
        orthonormalise(&mut left, rows);
    }
    let right = transposed_times(matrix, &left, vectors)?;
    // Within the span the matrix is `leftᵀ · right`, and the eigenvectors of `right · rightᵀ` turn both to singular vectors.
    let mut gram = vec![0.0; vectors * vectors];
    for one in 0..vectors {
        for other in 0..=one {
            let product = dot(&right[one * columns..][..columns], &right[other * columns..][..columns]);
            gram[one * vectors + other] = product;
            gram[other * vectors + one] = product;
        }
    }
    let (eigenvalues, turn) = eigen(gram, vectors);
    let values = eigenvalues.iter().map(|value| value.max(0.0).sqrt()).collect();
    Ok(Svd {
        left: turned(&turn, &left, vectors, rows),
        right: turned(&turn, &right, vectors, columns),
        values,
        squares,
    })
}

/// Numbers uniform in [−1, 1), `rows × columns`.
fn random(rows: usize, columns: usize) -> Vec<f64> {
    let calls = (0..(rows * columns).div_ceil(4) as u64)
        .flat_map(|call| philox4x32([call as u32, (call >> 32) as u32, 0, 0], [0x5bd1_e995, 0]));
    let numbers = calls.map(|word| f64::from(word.cast_signed()) / 2_147_483_648.0);
    numbers.take(rows * columns).collect()
}

/// Rows of the matrix that are read at once.
fn block_rows(matrix: &dyn ByRows) -> usize {
    (BLOCK / matrix.columns()).clamp(1, matrix.rows())
}

/// The matrix times `columns × vectors`; the product's vectors are rows. With it the sum of the matrix's squares.
fn times(matrix: &mut dyn ByRows, with: &[f64], vectors: usize) -> Result<(Vec<f64>, f64)> {
    let (rows, columns, at_once) = (matrix.rows(), matrix.columns(), block_rows(matrix));
    let panels = Panels::of(with, vectors);
    let (mut product, mut squares) = (vec![0.0; vectors * rows], 0.0);
    let (mut block, mut own) = (vec![0.0; at_once * columns], vec![0.0; at_once * vectors]);
    for first in (0..rows).step_by(at_once) {
        let count = at_once.min(rows - first);
        let (block, own) = (&mut block[..count * columns], &mut own[..count * vectors]);
        matrix.read(first, block)?;
        squares += dot(block, block);
        own.fill(0.0);
        add_product(block, &panels, own);
        for (row, own) in own.chunks_exact(vectors).enumerate() {
            own.iter().enumerate().for_each(|(vector, value)| product[vector * rows + first + row] = *value);
        }
    }
    Ok((product, squares))
}

/// The transposed matrix times vectors, which are rows of `with`; the product's are rows too.
fn transposed_times(matrix: &mut dyn ByRows, with: &[f64], vectors: usize) -> Result<Vec<f64>> {
    let (rows, columns, at_once) = (matrix.rows(), matrix.columns(), block_rows(matrix));
    let mut product = vec![0.0; columns * vectors];
    let mut block = vec![0.0; at_once * columns];
    for first in (0..rows).step_by(at_once) {
        let count = at_once.min(rows - first);
        let block = &mut block[..count * columns];
        matrix.read(first, block)?;
        let with: Vec<f64> = (first..first + count)
            .flat_map(|row| (0..vectors).map(move |vector| with[vector * rows + row]))
            .collect();
        add_product(&transposed(block, count, columns), &Panels::of(&with, vectors), &mut product);
    }
    Ok(transposed(&product, columns, vectors))
}

/// A matrix of `rows × columns` the other way round.
pub(super) fn transposed(matrix: &[f64], rows: usize, columns: usize) -> Vec<f64> {
    let mut turned = vec![0.0; matrix.len()];
    // In squares that stay in the cache.
    for rows_from in (0..rows).step_by(LANES) {
        for (column, row) in
            (0..columns).flat_map(|c| (rows_from..rows.min(rows_from + LANES)).map(move |r| (c, r)))
        {
            turned[column * rows + row] = matrix[row * columns + column];
        }
    }
    turned
}

/// Makes vectors of so many elements orthonormal, in their order (Gram and Schmidt, twice: Giraud, Langou and Rozložník, 2005). One
/// that the others span becomes 0.
fn orthonormalise(vectors: &mut [f64], elements: usize) {
    for number in 0..vectors.len() / elements {
        let (before, rest) = vectors.split_at_mut(number * elements);
        let own = &mut rest[..elements];
        let length = dot(own, own).sqrt();
        for _ in 0..2 {
            for other in before.chunks_exact(elements) {
                subtract(own, dot(own, other), other);
            }
        }
        let left = dot(own, own).sqrt();
        if left > SPANNED * length { scale(own, 1.0 / left) } else { own.fill(0.0) }
    }
}

/// Combinations of vectors: row `i` is the sum of all, each times its element of row `i` of `turn`.
fn turned(turn: &[f64], vectors: &[f64], count: usize, elements: usize) -> Vec<f64> {
    let mut out = vec![0.0; count * elements];
    for (out, turn) in out.chunks_exact_mut(elements).zip(turn.chunks_exact(count)) {
        for (vector, factor) in vectors.chunks_exact(elements).zip(turn) {
            subtract(out, -factor, vector);
        }
    }
    out
}

/// Sweeps over all pairs that turn a matrix until it is diagonal: each squares what is left, and 8 are usual.
const SWEEPS_MAX: usize = 40;

/// The eigenvalues of a symmetric matrix, the largest first, and its eigenvectors as rows (Jacobi's method, by rows of pairs).
fn eigen(mut matrix: Vec<f64>, count: usize) -> (Vec<f64>, Vec<f64>) {
    let mut vectors = vec![0.0; count * count];
    (0..count).for_each(|i| vectors[i * count + i] = 1.0);
    let all = dot(&matrix, &matrix);
    for _ in 0..SWEEPS_MAX {
        let outside: f64 = (0..count)
            .flat_map(|i| (0..i).map(move |j| (i, j)))
            .map(|(i, j)| matrix[i * count + j].powi(2))
            .sum();
        if outside <= 1e-30 * all {
            break;
        }
        for one in 0..count {
            for other in one + 1..count {
                let off = matrix[one * count + other];
                if off == 0.0 {
                    continue;
                }
                let half = (matrix[other * count + other] - matrix[one * count + one]) / (2.0 * off);
                let tangent = half.signum() / (half.abs() + (half * half + 1.0).sqrt());
                let cosine = 1.0 / (tangent * tangent + 1.0).sqrt();
                let (cosine, sine) = (cosine, tangent * cosine);
                for row in matrix.chunks_exact_mut(count) {
                    (row[one], row[other]) =
                        (cosine * row[one] - sine * row[other], sine * row[one] + cosine * row[other]);
                }
                rotate(&mut matrix, count, (one, other), (cosine, sine));
                rotate(&mut vectors, count, (one, other), (cosine, sine));
            }
        }
    }
    let mut order: Vec<usize> = (0..count).collect();
    let value = |i: &usize| matrix[i * count + i];
    order.sort_by(|one, other| value(other).total_cmp(&value(one)));
    let turned = order.iter().flat_map(|i| vectors[i * count..][..count].to_vec()).collect();
    (order.iter().map(value).collect(), turned)
}

/// Turns two rows of a matrix in their plane.
fn rotate(matrix: &mut [f64], count: usize, (one, other): (usize, usize), (cosine, sine): (f64, f64)) {
    let (before, rest) = matrix.split_at_mut(other * count);
    let (one, other) = (&mut before[one * count..][..count], &mut rest[..count]);
    for (one, other) in one.iter_mut().zip(other) {
        (*one, *other) = (cosine * *one - sine * *other, sine * *one + cosine * *other);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Dense(Vec<f64>, usize, usize);

    impl ByRows for Dense {
        fn rows(&self) -> usize {
            self.1
        }

        fn columns(&self) -> usize {
            self.2
        }

        fn read(&mut self, first: usize, into: &mut [f64]) -> Result<()> {
            into.copy_from_slice(&self.0[first * self.2..][..into.len()]);
            Ok(())
        }
    }

    /// A matrix with these singular values: their vectors are orthonormal.
    fn with_values(rows: usize, columns: usize, values: &[f64]) -> Dense {
        let mut left = random(values.len(), rows);
        let mut right: Vec<f64> = random(values.len() + 1, columns)[columns..].to_vec();
        orthonormalise(&mut left, rows);
        orthonormalise(&mut right, columns);
        let element = |i: usize| {
            let (row, column) = (i / columns, i % columns);
            (0..values.len()).map(|k| values[k] * left[k * rows + row] * right[k * columns + column]).sum()
        };
        Dense((0..rows * columns).map(element).collect(), rows, columns)
    }

    fn lost(matrix: &Dense, svd: &Svd) -> f64 {
        let (rows, columns) = (matrix.1, matrix.2);
        let rest = |i: usize| {
            let (row, column) = (i / columns, i % columns);
            let sum: f64 = (0..svd.values.len())
                .map(|k| svd.left[k * rows + row] * svd.right[k * columns + column])
                .sum();
            (matrix.0[i] - sum).powi(2)
        };
        ((0..rows * columns).map(rest).sum::<f64>() / svd.squares).sqrt()
    }

    #[test]
    fn values_and_vectors_are_those_of_the_matrix() {
        for (rows, columns) in [(150, 90), (90, 150), (1000, 7), (6, 1000)] {
            let values: Vec<f64> = (0..rows.min(columns)).map(|k| 0.8f64.powi(k as i32)).collect();
            let mut matrix = with_values(rows, columns, &values);
            let svd = decompose(&mut matrix, Wanted { rank: 5, error: 0.0 }).unwrap();
            for (found, value) in svd.values.iter().zip(&values) {
                assert!((found - value).abs() < 1e-9, "{rows} × {columns}: {:?}", svd.values);
            }
            let squares: f64 = values.iter().map(|value| value * value).sum();
            assert!((svd.squares - squares).abs() < 1e-12 * squares);
            let best = (values[5..].iter().map(|value| value * value).sum::<f64>() / squares).sqrt();
            assert!((lost(&matrix, &svd) - best).abs() < 1e-9, "{rows} × {columns}");
        }
    }

    #[test]
    fn the_rank_is_the_smallest_that_loses_no_more() {
        let values: Vec<f64> = (0..200).map(|k| 1.0 / f64::from(k + 1)).collect();
        let mut matrix = with_values(220, 210, &values);
        let squares: f64 = values.iter().map(|value| value * value).sum();
        for (error, most) in [(0.5, 200), (0.1, 200), (0.02, 200), (0.1, 7)] {
            let mut left = squares;
            let rank = values.iter().take_while(|value| {
                let more = left > error * error * squares;
                left -= **value * **value;
                more
            });
            let rank = rank.count().min(most);
            let svd = decompose(&mut matrix, Wanted { rank: most, error }).unwrap();
            assert_eq!(svd.values.len(), rank, "{error}");
            assert!(rank == most || lost(&matrix, &svd) <= error, "{error}");
        }
    }

    #[test]
    fn ranks_end_with_the_matrix() {
        let mut matrix = with_values(80, 60, &[3.0, 2.0, 1.0]);
        for wanted in [Wanted { rank: 50, error: 0.0 }, Wanted { rank: 50, error: 1e-6 }] {
            let svd = decompose(&mut matrix, wanted).unwrap();
            assert_eq!(svd.values.len(), 3);
            assert!(lost(&matrix, &svd) < 1e-12);
        }
        let zeros = decompose(&mut Dense(vec![0.0; 60], 6, 10), Wanted { rank: 4, error: 0.0 }).unwrap();
        assert!(zeros.values.is_empty() && zeros.squares == 0.0);
        let one = decompose(&mut Dense(vec![-2.0], 1, 1), Wanted { rank: 4, error: 0.0 }).unwrap();
        assert_eq!((one.values, one.squares), (vec![2.0], 4.0));
    }

    /// Blocks of rows, of which a large matrix has several.
    #[test]
    fn large_matrices_are_read_in_blocks() {
        let mut matrix = with_values(3000, 400, &[5.0, 1.0]);
        assert!(block_rows(&matrix) < 3000);
        let svd = decompose(&mut matrix, Wanted { rank: 8, error: 0.0 }).unwrap();
        assert!(
            (svd.values[0] - 5.0).abs() < 1e-9 && (svd.values[1] - 1.0).abs() < 1e-9 && svd.values.len() == 2
        );
    }
}

//! The largest singular values of a matrix that is only read by rows, with their vectors.
//!
//! Few of them are found by the randomised method of Halko, Martinsson and Tropp, "Finding structure with randomness" (SIAM Review
//! 2011, <https://arxiv.org/abs/0909.4061>): the matrix times a few random vectors spans what is large in it, all the more after some
//! power iterations; within that span the rest is small and exact. Where the rank is not known but what may be lost, the span grows
//! by blocks, each of what it does not hold yet, until no more is left than that. Where many are needed all of them are computed, as
//! roots of eigenvalues of the matrix times its transpose. The matrix itself is never in memory: every product is one sweep over its
//! rows. All of it is f64, in one order whatever the threads and the processor, so that it has the same bytes everywhere.

use super::products::{LANES, Panels, add_product, add_symmetric, dot, scale, subtract};
use super::symmetric::{eigen, eigenvalues};
use crate::error::Result;
use crate::kernel::philox::philox4x32;

/// A matrix that is read by rows.
pub(crate) trait ByRows {
    /// How many it has.
    fn rows(&self) -> usize;
    /// How long they are.
    fn columns(&self) -> usize;
    /// Fills `into` with whole rows from number `first` on.
    ///
    /// # Errors
    /// They cannot be read, or the user wants to stop.
    fn read(&mut self, first: usize, into: &mut [f64]) -> Result<()>;
    /// Asked at least once a second where nothing is read, with the share of all work that is done; less than before says nothing.
    ///
    /// # Errors
    /// The user wants to stop.
    fn go_on(&self, done: f64) -> Result<()>;
}

/// Which singular values are wanted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Wanted {
    /// No more than so many.
    pub(crate) rank: usize,
    /// No more than are needed to lose no more than this share of the Frobenius norm.
    pub(crate) error: f64,
}

/// The largest singular values, in descending order. Vectors are rows.
#[derive(Debug, Default)]
pub(crate) struct Svd {
    /// The left vectors, `rank × rows`.
    pub(crate) left: Vec<f64>,
    /// The right vectors, each multiplied with its singular value: `rank × columns`.
    pub(crate) right: Vec<f64>,
    /// The singular values.
    pub(crate) values: Vec<f64>,
    /// The square of the matrix's Frobenius norm.
    pub(crate) squares: f64,
}

/// Random vectors beyond those wanted, so that the span holds these whole.
const OVERSAMPLES: usize = 16;

/// Times that the matrix and its transpose are applied to the span. Singular values of task vectors fall off slowly.
const ITERATIONS: usize = 2;

/// Vectors by which a span grows where the rank is not known, and that are made orthonormal together.
const GROWTH: usize = 64;

/// A span of this share of the smaller side takes as long as all singular values do.
const SPAN_MAX: f64 = 0.4;

/// Inner products are about this share of the work where all singular values are computed.
const GRAM_SHARE: f64 = 0.2;

/// The elements of the matrix in memory at a time.
const BLOCK: usize = 1 << 18;

/// The same where each block is multiplied with all others, which are read again for it.
const LARGE_BLOCK: usize = 1 << 24;

/// Rows of a product that are computed before the user is heard again: half a second, where matrices are as large as they get.
const AT_ONCE: usize = 16;

/// What is left of a vector, as a share, when it is taken for one that the others span.
const SPANNED: f64 = 1e-12;

/// Singular values that are smaller, as a share of the largest, are noise of the arithmetic: they are roots of eigenvalues.
const NOISE: f64 = 1e-7;

/// Decomposes a matrix; of one that is all zeros there is nothing.
///
/// # Errors
/// Those of the matrix.
pub(crate) fn decompose(matrix: &mut dyn ByRows, wanted: Wanted) -> Result<Svd> {
    let most = matrix.rows().min(matrix.columns());
    let asked = wanted.rank.min(most);
    let step = if wanted.error > 0.0 { GROWTH } else { asked };
    let (mut span, mut needed) = (Span::default(), step.min(asked));
    while (needed + OVERSAMPLES) as f64 <= SPAN_MAX * most as f64 {
        let more = step.min(asked - span.vectors);
        // Of an error the first vectors show how many are needed.
        let is_first = wanted.error > 0.0 && span.vectors == 0;
        let share = if is_first { 0.0 } else { 0.8 / (needed + OVERSAMPLES) as f64 };
        let held = span.grow(matrix, more, share)?;
        let enough = wanted.enough(span.squares);
        if span.squares_left <= enough || span.vectors == asked {
            // Values at the end of a span are less exact.
            span.grow(matrix, OVERSAMPLES, share)?;
            return span.decompose(matrix, wanted);
        }
        // A vector more holds no more than the last ones did.
        let vectors = ((span.squares_left - enough) / (held / more as f64)).ceil() as usize;
        needed = span.vectors.saturating_add(vectors.max(step)).min(asked);
    }
    whole(matrix, wanted)
}

impl Wanted {
    /// The squares that may be lost of so many.
    fn enough(self, squares: f64) -> f64 {
        self.error.max(NOISE).powi(2) * squares
    }

    /// How many of these values are wanted, the largest first.
    fn rank(self, values: &[f64], squares: f64) -> usize {
        let worth = values.iter().take_while(|value| **value > NOISE * values[0]).count().min(self.rank);
        let (enough, mut left) = (self.enough(squares), squares);
        let is_missing = |value: &&f64| {
            let is_missing = left > enough;
            left -= **value * **value;
            is_missing
        };
        if self.error > 0.0 { values[..worth].iter().take_while(is_missing).count() } else { worth }
    }
}

/// Singular values without their vectors.
#[derive(Debug, Default)]
pub(crate) struct Spectrum {
    /// In descending order, those that are noise of the arithmetic left out.
    pub(crate) values: Vec<f64>,
    /// The square of the matrix's Frobenius norm.
    pub(crate) squares: f64,
}

/// All singular values of a matrix; of one that is all zeros there are none. Where a span of few vectors holds the matrix up to so
/// little that `is_enough` of the values and of the squares beside them, they are the span's.
///
/// # Errors
/// Those of the matrix.
pub(crate) fn spectrum(matrix: &mut dyn ByRows, is_enough: &dyn Fn(&[f64], f64) -> bool) -> Result<Spectrum> {
    let most = matrix.rows().min(matrix.columns());
    if GROWTH as f64 <= SPAN_MAX * most as f64 {
        let mut span = Span::default();
        span.grow(matrix, GROWTH, 0.0)?;
        let left = span.squares_left.max(0.0);
        let Svd { values, squares, .. } = span.decompose(matrix, Wanted { rank: GROWTH, error: 0.0 })?;
        if is_enough(&values, left) {
            return Ok(Spectrum { values, squares });
        }
    }
    let gram = gram(matrix)?;
    let squares = trace(&gram, most);
    let mut values = eigenvalues(gram, most, &|done| matrix.go_on(GRAM_SHARE + (1.0 - GRAM_SHARE) * done))?;
    roots(&mut values);
    let worth = Wanted { rank: most, error: 0.0 }.rank(&values, squares);
    values.truncate(if squares > 0.0 { worth } else { 0 });
    Ok(Spectrum { values, squares })
}

/// The inner products of all pairs of rows or columns, whichever are fewer: the lower half.
fn gram(matrix: &mut dyn ByRows) -> Result<Vec<f64>> {
    if matrix.rows() >= matrix.columns() {
        gram_of_columns(matrix)
    } else {
        gram_of_rows(matrix, LARGE_BLOCK)
    }
}

/// The sum of the diagonal.
fn trace(matrix: &[f64], count: usize) -> f64 {
    (0..count).map(|i| matrix[i * count + i]).sum()
}

/// All of the singular values, and of their vectors those that are wanted.
fn whole(matrix: &mut dyn ByRows, wanted: Wanted) -> Result<Svd> {
    let (rows, columns) = (matrix.rows(), matrix.columns());
    let (is_tall, most) = (rows >= columns, rows.min(columns));
    let gram = gram(matrix)?;
    let squares = trace(&gram, most);
    if squares == 0.0 {
        return Ok(Svd::default());
    }
    let (mut values, mut vectors) =
        eigen(gram, most, &|done| matrix.go_on(GRAM_SHARE + (0.9 - GRAM_SHARE) * done))?;
    roots(&mut values);
    let rank = wanted.rank(&values, squares);
    values.truncate(rank);
    vectors.truncate(rank * most);
    if !is_tall {
        let right = transposed_times(matrix, &vectors, rank)?;
        return Ok(Svd { left: vectors, right, values, squares });
    }
    let (mut left, _) = times(matrix, &transposed(&vectors, rank, columns), rank)?;
    for (number, value) in values.iter().enumerate() {
        scale(&mut left[number * rows..][..rows], 1.0 / value);
        scale(&mut vectors[number * columns..][..columns], *value);
    }
    Ok(Svd { left, right: vectors, values, squares })
}

/// Singular values from their squares.
fn roots(squares: &mut [f64]) {
    squares.iter_mut().for_each(|square| *square = square.max(0.0).sqrt());
}

/// What some orthonormal vectors hold of a matrix, which within their span is `leftᵀ · right`.
#[derive(Debug, Default)]
struct Span {
    vectors: usize,
    /// The vectors, as rows.
    left: Vec<f64>,
    /// Each of them times the matrix.
    right: Vec<f64>,
    /// The squares of the matrix, and of what it has beside the span.
    squares: f64,
    squares_left: f64,
}

impl Span {
    /// Adds vectors that hold much of what the span does not: the squares of it. Each vector is such a share of all work.
    fn grow(&mut self, matrix: &mut dyn ByRows, vectors: usize, share: f64) -> Result<f64> {
        let (rows, columns) = (matrix.rows(), matrix.columns());
        let (mut left, squares) = times(matrix, &random(columns, vectors, self.vectors), vectors)?;
        if self.vectors == 0 {
            (self.squares, self.squares_left) = (squares, squares);
        }
        orthonormalise(&mut left, rows, &self.left, &|| matrix.go_on(0.0))?;
        for iteration in 0..ITERATIONS {
            let done = (2 * iteration + 1) as f64 / (2 * ITERATIONS + 2) as f64;
            matrix.go_on(share * (self.vectors as f64 + done * vectors as f64))?;
            let mut right = transposed_times(matrix, &left, vectors)?;
            orthonormalise(&mut right, columns, &[], &|| matrix.go_on(0.0))?;
            left = times(matrix, &transposed(&right, vectors, columns), vectors)?.0;
            orthonormalise(&mut left, rows, &self.left, &|| matrix.go_on(0.0))?;
        }
        let right = transposed_times(matrix, &left, vectors)?;
        let held = dot(&right, &right);
        self.vectors += vectors;
        self.squares_left -= held;
        self.left.extend(left);
        self.right.extend(right);
        Ok(held)
    }

    /// The singular values within the span: the eigenvectors of `right · rightᵀ` turn both sides to singular vectors.
    fn decompose(self, matrix: &dyn ByRows, wanted: Wanted) -> Result<Svd> {
        let Self { vectors, left, right, squares, .. } = self;
        if squares == 0.0 {
            return Ok(Svd::default());
        }
        let (rows, columns, go_on) = (matrix.rows(), matrix.columns(), |done| matrix.go_on(done));
        let mut gram = vec![0.0; vectors * vectors];
        let panels = Panels::of_transposed(&right, columns);
        let chunks = right.chunks(AT_ONCE * columns).zip(gram.chunks_mut(AT_ONCE * vectors));
        for (number, (right, gram)) in chunks.enumerate() {
            go_on(0.8)?;
            add_symmetric(right, &panels, number * AT_ONCE, gram);
        }
        let (mut values, turn) = eigen(gram, vectors, &|done| go_on(0.8 + 0.1 * done))?;
        roots(&mut values);
        let rank = wanted.rank(&values, squares);
        values.truncate(rank);
        let turned = |vectors: &[f64], elements: usize| {
            let (panels, mut turned) = (Panels::of(vectors, elements), vec![0.0; rank * elements]);
            let count = vectors.len() / elements;
            for (turn, turned) in turn.chunks(AT_ONCE * count).zip(turned.chunks_mut(AT_ONCE * elements)) {
                go_on(0.9)?;
                add_product(&turn[..turned.len() / elements * count], &panels, turned);
            }
            Ok(turned)
        };
        Ok(Svd { left: turned(&left, rows)?, right: turned(&right, columns)?, values, squares })
    }
}

/// Numbers uniform in [−1, 1), `rows × columns`; others for each `first`.
fn random(rows: usize, columns: usize, first: usize) -> Vec<f64> {
    let calls = (0..(rows * columns).div_ceil(4) as u64)
        .flat_map(|call| philox4x32([call as u32, (call >> 32) as u32, first as u32, 0], [0x5bd1_e995, 0]));
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

/// The inner products of all pairs of columns: the lower half.
fn gram_of_columns(matrix: &mut dyn ByRows) -> Result<Vec<f64>> {
    let (rows, columns, at_once) = (matrix.rows(), matrix.columns(), block_rows(matrix));
    let mut gram = vec![0.0; columns * columns];
    let mut block = vec![0.0; at_once * columns];
    for first in (0..rows).step_by(at_once) {
        let count = at_once.min(rows - first);
        let block = &mut block[..count * columns];
        matrix.read(first, block)?;
        matrix.go_on(GRAM_SHARE * first as f64 / rows as f64)?;
        add_symmetric(&transposed(block, count, columns), &Panels::of(block, columns), 0, &mut gram);
    }
    Ok(gram)
}

/// The inner products of all pairs of rows: the lower half. So many elements of the matrix are in memory at a time.
fn gram_of_rows(matrix: &mut dyn ByRows, elements: usize) -> Result<Vec<f64>> {
    let (rows, columns, at_once) = (matrix.rows(), matrix.columns(), block_rows(matrix));
    let mut gram = vec![0.0; rows * rows];
    let large = (elements / columns).clamp(1, rows);
    let (mut kept, mut block) = (vec![0.0; large * columns], vec![0.0; at_once * columns]);
    for first in (0..rows).step_by(large) {
        let last = rows.min(first + large);
        let kept = &mut kept[..(last - first) * columns];
        for (number, kept) in kept.chunks_mut(at_once * columns).enumerate() {
            matrix.read(first + number * at_once, kept)?;
        }
        for other in (0..last).step_by(at_once) {
            let count = at_once.min(last - other);
            let block = &mut block[..count * columns];
            matrix.read(other, block)?;
            matrix.go_on(GRAM_SHARE * (first as f64 / rows as f64).powi(2))?;
            let mut products = vec![0.0; (last - first) * count];
            add_product(kept, &Panels::of_transposed(block, columns), &mut products);
            for (row, products) in products.chunks_exact(count).enumerate() {
                gram[(first + row) * rows + other..][..count].copy_from_slice(products);
            }
        }
    }
    Ok(gram)
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

/// Makes vectors of so many elements orthonormal, in their order, and to `others`, which are (Gram and Schmidt, twice: Giraud, Langou
/// and Rozložník, 2005). One that those before it span becomes 0.
fn orthonormalise(
    vectors: &mut [f64],
    elements: usize,
    others: &[f64],
    go_on: &dyn Fn() -> Result<()>,
) -> Result<()> {
    let length = |vector: &[f64]| dot(vector, vector).sqrt();
    for first in (0..vectors.len()).step_by(GROWTH * elements) {
        let (before, own) = vectors.split_at_mut(first);
        let end = own.len().min(GROWTH * elements);
        let own = &mut own[..end];
        for _ in 0..2 {
            let lengths: Vec<f64> = own.chunks_exact(elements).map(length).collect();
            for others in [others, before].into_iter().flat_map(|all| all.chunks(GROWTH * elements)) {
                go_on()?;
                let mut along = vec![0.0; own.len() / elements * (others.len() / elements)];
                add_product(own, &Panels::of_transposed(others, elements), &mut along);
                along.iter_mut().for_each(|along| *along = -*along);
                add_product(&along, &Panels::of(others, elements), own);
            }
            for (number, before) in lengths.iter().enumerate() {
                let (done, rest) = own.split_at_mut(number * elements);
                let own = &mut rest[..elements];
                for other in done.chunks_exact(elements) {
                    subtract(own, dot(own, other), other);
                }
                let left = length(own);
                if left > SPANNED * before { scale(own, 1.0 / left) } else { own.fill(0.0) }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

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

        fn go_on(&self, _done: f64) -> Result<()> {
            Ok(())
        }
    }

    /// A matrix with these singular values: their vectors are orthonormal.
    fn with_values(rows: usize, columns: usize, values: &[f64]) -> Dense {
        let mut left = random(values.len(), rows, 0);
        let mut right = random(values.len(), columns, 1);
        orthonormalise(&mut left, rows, &[], &|| Ok(())).unwrap();
        orthonormalise(&mut right, columns, &[], &|| Ok(())).unwrap();
        let element = |i: usize| {
            let (row, column) = (i / columns, i % columns);
            (0..values.len()).map(|k| values[k] * left[k * rows + row] * right[k * columns + column]).sum()
        };
        Dense((0..rows * columns).map(element).collect(), rows, columns)
    }

    /// Where a span of few vectors is enough its values are those of the whole, and what it leaves out is told.
    #[test]
    fn spectra_of_few_values_come_from_a_span() {
        let falling: Vec<f64> = (0..40).map(|k| 0.8f64.powi(k)).collect();
        for (rows, columns) in [(200, 170), (170, 200)] {
            let mut matrix = with_values(rows, columns, &falling);
            let asked = Cell::new(f64::NAN);
            let by_span = spectrum(&mut matrix, &|values, left| {
                asked.set(left);
                values.len() == 40
            });
            let whole = spectrum(&mut matrix, &|_, _| false).unwrap();
            for found in [by_span.unwrap(), whole] {
                assert_eq!(found.values.len(), 40);
                found.values.iter().zip(&falling).for_each(|(found, value)| {
                    assert!((found - value).abs() < 1e-7, "{found} in place of {value}");
                });
                assert!(
                    (found.squares - falling.iter().map(|value| value * value).sum::<f64>()).abs() < 1e-9
                );
            }
            assert!(asked.get() < 1e-9, "{asked:?}");
            // Of 100 equal values a span of 64 leaves 36.
            spectrum(&mut with_values(rows, columns, &[1.0; 100]), &|_, left| {
                asked.set(left);
                false
            })
            .unwrap();
            assert!((asked.get() - 36.0).abs() < 1e-6, "{asked:?}");
        }
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

    /// Random numbers and a few large values, as task vectors have them: nearly all values are needed, or few.
    fn noisy(rows: usize, columns: usize) -> Dense {
        let Dense(mut values, ..) = with_values(rows, columns, &[30.0, 20.0, 15.0, 12.0]);
        values.iter_mut().zip(random(rows, columns, 2)).for_each(|(value, noise)| *value += 0.1 * noise);
        Dense(values, rows, columns)
    }

    /// A span that has grown holds what one of its size does that was made at once, and both what is computed in full.
    #[test]
    fn spans_and_the_whole_agree() {
        for (rows, columns) in [(420, 300), (300, 420)] {
            let mut matrix = noisy(rows, columns);
            let all = whole(&mut matrix, Wanted { rank: 300, error: 0.0 }).unwrap();
            assert_eq!(all.values.len(), 300);
            assert!(lost(&matrix, &all) < 1e-12, "{rows} × {columns}");
            for error in [0.5, 0.3, 0.1] {
                let [some, exact] =
                    [decompose, whole].map(|how| how(&mut matrix, Wanted { rank: 300, error }).unwrap());
                assert!((some.squares / exact.squares - 1.0).abs() < 1e-12);
                assert_eq!(some.values.len(), exact.values.len(), "{rows} × {columns}, {error}");
                assert!(lost(&matrix, &some) <= error);
            }
            // Of noise the last values of a span are a little too small; what it loses hardly differs.
            let [some, exact] =
                [decompose, whole].map(|how| how(&mut matrix, Wanted { rank: 90, error: 0.0 }).unwrap());
            assert_eq!(some.values.len(), 90);
            let more = lost(&matrix, &some) / lost(&matrix, &exact);
            assert!((1.0..1.03).contains(&more), "{rows} × {columns}: {more}");
        }
    }

    /// Vectors, however they are found, are orthonormal, but for the right ones, which have their values.
    #[test]
    fn vectors_are_orthonormal() {
        let mut matrix = noisy(200, 260);
        for wanted in [
            Wanted { rank: 200, error: 0.0 },
            Wanted { rank: 40, error: 0.0 },
            Wanted { rank: 200, error: 0.6 },
        ] {
            let svd = decompose(&mut matrix, wanted).unwrap();
            for (one, value) in svd.values.iter().enumerate() {
                for other in 0..=one {
                    let product = |vectors: &[f64], elements: usize| {
                        dot(&vectors[one * elements..][..elements], &vectors[other * elements..][..elements])
                    };
                    let expected = if one == other { 1.0 } else { 0.0 };
                    assert!((product(&svd.left, 200) - expected).abs() < 1e-9, "left {one}, {other}");
                    let of_right = product(&svd.right, 260) / (value * svd.values[other]);
                    assert!((of_right - expected).abs() < 1e-9, "right {one}, {other}: {of_right}");
                }
            }
        }
    }

    /// A matrix whose reader stops after some time.
    struct Stopping(Dense, Cell<usize>, Cell<f64>);

    impl ByRows for Stopping {
        fn rows(&self) -> usize {
            self.0.rows()
        }

        fn columns(&self) -> usize {
            self.0.columns()
        }

        fn read(&mut self, first: usize, into: &mut [f64]) -> Result<()> {
            self.go_on(0.0)?;
            self.0.read(first, into)
        }

        fn go_on(&self, done: f64) -> Result<()> {
            self.2.set(self.2.get().max(done));
            self.1.set(self.1.get().checked_sub(1).ok_or_else(crate::error::Error::interrupted)?);
            Ok(())
        }
    }

    /// Every step can be stopped, and there are many: at least one for each row that is made tridiagonal. What is said to be done
    /// grows, and not all at once, but for spans of which the first vectors are enough.
    #[test]
    fn the_user_is_heard_within_long_computations() {
        for (rank, error, steps_min, jump_max) in
            [(240, 0.0, 240, 0.3), (70, 0.0, 40, 0.4), (240, 0.6, 40, 0.8)]
        {
            let wanted = Wanted { rank, error };
            let mut matrix = Stopping(noisy(240, 250), Cell::new(1_000_000), Cell::new(0.0));
            decompose(&mut matrix, wanted).unwrap();
            let steps = 1_000_000 - matrix.1.get();
            assert!(steps > steps_min, "{steps}");
            let mut before = 0.0;
            for after in (0..steps).step_by(steps / 23) {
                (matrix.1, matrix.2) = (Cell::new(after), Cell::new(0.0));
                assert!(decompose(&mut matrix, wanted).is_err(), "after {after} of {steps}");
                let done = matrix.2.get();
                assert!((before..=0.9).contains(&done) && done <= before + jump_max, "{done} after {before}");
                before = done;
            }
            assert!(before > 0.7, "{before}");
        }
    }

    /// Blocks of rows, of which a large matrix has several.
    #[test]
    fn large_matrices_are_read_in_blocks() {
        let mut matrix = with_values(3000, 400, &[5.0, 1.0]);
        assert!(block_rows(&matrix) < 3000);
        for how in [decompose, whole] {
            let svd = how(&mut matrix, Wanted { rank: 8, error: 0.0 }).unwrap();
            assert!((svd.values[0] - 5.0).abs() < 1e-9 && (svd.values[1] - 1.0).abs() < 1e-9);
            assert_eq!(svd.values.len(), 2);
            assert!(lost(&matrix, &svd) < 1e-9);
        }
        let mut wide = with_values(70, 9000, &[5.0, 1.0]);
        assert!(block_rows(&wide) < 30);
        let found = gram_of_rows(&mut wide, 32 * 9000).unwrap();
        for (row, found) in found.chunks_exact(70).enumerate() {
            for (other, found) in found[..=row].iter().enumerate() {
                let expected = dot(&wide.0[row * 9000..][..9000], &wide.0[other * 9000..][..9000]);
                assert!((found - expected).abs() < 1e-12, "{row}, {other}");
            }
        }
    }
}

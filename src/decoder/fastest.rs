//! The work of a layer as fast as the processor can do it: products by matrixmultiply, with fused operations where there are any,
//! and exponentials in vectors. The last bits of what comes out depend on the processor, never on threads.

use ndarray::linalg::general_mat_mul;
use ndarray::{ArrayView2, ArrayViewMut2, ShapeBuilder, s};

use super::machine::Heads;
use crate::instructions::for_each_instruction_set;

/// The most tokens that a thread takes at a time: enough that packing the matrix's rows is a small part of a product.
pub(super) const TOKENS: usize = 1024;

/// Adds `x · rowsᵀ` to columns `first..end` of values in rows of `width`. Rows have `inputs` elements.
pub(super) fn add_product(
    x: &[f32],
    rows: &[f32],
    inputs: usize,
    y: &mut [f32],
    (first, end, width): (usize, usize, usize),
) {
    let tokens = x.len() / inputs;
    let x = matrix(x, tokens, inputs, inputs);
    let rows = matrix(rows, end - first, inputs, inputs);
    let mut y = ArrayViewMut2::from_shape((tokens, width), y).expect("rows are whole");
    general_mat_mul(1.0, &x, &rows.t(), 1.0, &mut y.slice_mut(s![.., first..end]));
}

/// A matrix whose rows begin so many elements apart.
fn matrix(values: &[f32], rows: usize, columns: usize, apart: usize) -> ArrayView2<'_, f32> {
    ArrayView2::from_shape((rows, columns).strides((apart, 1)), values)
        .expect("rows lie within what there is")
}

/// What all heads of some tokens attend to: `first` is the place of the first of them in their text, which has these keys and values.
pub(super) fn attend(q: &[f32], k: &[f32], v: &[f32], out: &mut [f32], first: usize, sizes: &Heads) {
    let Heads { queries: heads, shared_by, width, window } = *sizes;
    let (queries, keys) = (sizes.query_columns(), sizes.key_columns());
    let tokens = q.len() / queries;
    let from = window.map_or(0, |window| (first + 1).saturating_sub(window));
    let seen = first + tokens - from;
    let mut out = ArrayViewMut2::from_shape((tokens, queries), out).expect("rows are whole");
    // One room for all heads: a new one for each would be new pages each time.
    let mut room = vec![0.0; tokens * seen];
    for number in 0..heads {
        let at = from * keys + number / shared_by * width;
        let [k, v] = [k, v].map(|of| matrix(&of[at..], seen, width, keys));
        let q = matrix(&q[number * width..], tokens, width, queries);
        let mut scores = ArrayViewMut2::from_shape((tokens, seen), &mut room[..]).expect("it has that size");
        general_mat_mul(1.0 / (width as f32).sqrt(), &q, &k.t(), 0.0, &mut scores);
        for (token, scores) in room.chunks_exact_mut(seen).enumerate() {
            let last = first + token - from;
            let since = window.map_or(0, |window| (last + 1).saturating_sub(window));
            scores[..since].fill(0.0);
            soften(&mut scores[since..=last]);
            scores[last + 1..].fill(0.0);
        }
        let scores = matrix(&room, tokens, seen, seen);
        let mut own = out.slice_mut(s![.., number * width..(number + 1) * width]);
        general_mat_mul(1.0, &scores, &v, 0.0, &mut own);
    }
}

/// Numbers that are added up side by side.
const LANES: usize = 16;

for_each_instruction_set! {
    /// Softmax.
    fn soften(scores: &mut [f32]) {
        let mut most = [f32::NEG_INFINITY; LANES];
        let (whole, rest) = scores.as_chunks::<LANES>();
        for scores in whole {
            most.iter_mut().zip(scores).for_each(|(most, score)| *most = if score > most { *score } else { *most });
        }
        let max = most.iter().chain(rest).fold(f32::NEG_INFINITY, |max, score| max.max(*score));
        scores.iter_mut().for_each(|score| *score = exp(*score - max));
        let scale = 1.0 / sum(scores);
        scores.iter_mut().for_each(|score| *score *= scale);
    }

    /// Multiplies `up` with the gate's `SiLU`, in place of the gate.
    pub(super) fn gate(gate: &mut [f32], up: &[f32]) {
        gate.iter_mut().zip(up).for_each(|(gate, up)| *gate = *gate / (1.0 + exp(-*gate)) * up);
    }

    /// Their exponentials, once the largest is subtracted, in place of numbers.
    pub fn exponentials(numbers: &mut [f32], max: f32) {
        numbers.iter_mut().for_each(|number| *number = exp(*number - max));
    }

    /// The largest of some numbers, and the sum of their exponentials once it is subtracted. NaN is in the sum.
    pub fn max_and_sum(logits: &[f32]) -> (f32, f64) {
        let mut most = [f32::NEG_INFINITY; LANES];
        let (whole, rest) = logits.as_chunks::<LANES>();
        for logits in whole {
            most.iter_mut().zip(logits).for_each(|(most, logit)| *most = if logit > most { *logit } else { *most });
        }
        let max = most.iter().chain(rest).fold(f32::NEG_INFINITY, |max, logit| max.max(*logit));
        let mut sums = [0.0f32; LANES];
        let mut all = 0.0;
        for logits in whole.chunks(LANES) {
            for logits in logits {
                sums.iter_mut().zip(logits).for_each(|(sum, logit)| *sum += exp(*logit - max));
            }
            all += f64::from(sum(&sums));
            sums.fill(0.0);
        }
        (max, rest.iter().fold(all, |all, logit| all + f64::from(exp(*logit - max))))
    }
}

/// A sum of few numbers.
#[inline(always)]
fn sum(values: &[f32]) -> f32 {
    let (whole, rest) = values.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for values in whole {
        sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
    }
    sums.into_iter().chain(rest.iter().copied()).fold(0.0, |all, value| all + value)
}

/// Added to a number of small magnitude, it leaves the nearest whole number in the lowest bits.
const ROUND: f32 = 12_582_912.0;

/// ln 2 in two parts, the upper of which has few bits, so that small multiples of it are exact.
const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];

/// The Taylor series of eʳ from its second term on: for |r| ≤ ½ ln 2 the rest is below 2⁻²⁵.
const EXP: [f32; 6] = [0.5, 1.0 / 6.0, 1.0 / 24.0, 1.0 / 120.0, 1.0 / 720.0, 1.0 / 5040.0];

/// eˣ, within 2⁻²² of it, relatively; below −87 and above 88 its value there. NaN stays NaN.
#[inline(always)]
fn exp(x: f32) -> f32 {
    let x = if x < -87.0 { -87.0 } else { x };
    let x = if x > 88.0 { 88.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let whole = shifted - ROUND;
    let r = (x - whole * LN_2[0]) - whole * LN_2[1];
    let mut series = EXP[EXP.len() - 1];
    for term in EXP[..EXP.len() - 1].iter().rev() {
        series = series * r + term;
    }
    let power = 1.0 + (r + r * r * series);
    power * f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0f32.to_bits()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_are_those_of_libm() {
        for x in (-870_000..=880_000).map(|x| x as f32 / 10_000.0) {
            let (ours, exact) = (f64::from(exp(x)), libm::exp(f64::from(x)));
            assert!((ours - exact).abs() <= exact / f64::from(1 << 22), "exp {x} = {ours:e}, not {exact:e}");
        }
        assert_eq!((exp(0.0), exp(-1e9)), (1.0, exp(-87.0)));
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn sums_of_exponentials_are_whole() {
        for len in [1, 15, 16, 17, 300, 1000] {
            let logits: Vec<f32> = (0..len).map(|i| ((i * 7919) % 2003) as f32 / 100.0 - 10.0).collect();
            let (max, sum) = max_and_sum(&logits);
            let exact: f64 = logits.iter().map(|logit| libm::exp(f64::from(*logit - max))).sum();
            assert_eq!(max, logits.iter().copied().fold(f32::MIN, f32::max));
            assert!((sum / exact - 1.0).abs() < 1e-6, "{len}: {sum} {exact}");
        }
        assert!(max_and_sum(&[1.0, f32::NAN]).1.is_nan());
    }
}

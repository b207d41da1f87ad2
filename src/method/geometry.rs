//! Methods that see a tensor's models as vectors: what they share.
//!
//! The vectors' inner products say all that such a method needs. They are measured in one sweep, of the whole tensor or of
//! each row or column; a small function solves for coefficients, in f64; and one more sweep adds the models up:
//!
//! ```text
//! out = r₀·x₀ + Σ rᵢ·(xᵢ − x₀)
//! ```
//!
//! Measured are the inner products of `(x₀, x₁ − x₀, …)`, and vectors are written as sums of these: so nearly parallel models
//! do not cancel, and where all models are equal the differences are 0 and the model itself comes out.

use super::Settings;
use crate::error::{Error, Result};
use crate::kernel::segment_sum::Per;
use crate::kernel::{gram, segment_sum, weighted_sum};
use crate::recipe::{Foreseen, Measured, Pass, Recipe, Segments, everything};

/// The most models of such a method, the base included: it measures the inner products of all pairs.
pub(super) const MODELS_MAX: usize = 64;

/// The most sums of a tensor that are measured by rows or columns, all of which are in memory at once: 128 MiB. The rows of a
/// vocabulary of 256,000 with a base and eight models are within it.
const SUMS_MAX: u64 = 1 << 24;

/// The most elements of a row: places in it have 32 bits on a GPU, with room for a launch behind its end.
const ROW_ELEMENTS_MAX: u64 = 1 << 31;

/// The smallest sine of an angle that inner products of f32 can tell from 0: what is below is rounding.
pub(super) const RESOLUTION: f64 = 1.0 / 4096.0;

/// A vector, as a sum of the measured ones: what each is multiplied with.
pub(super) type Vector = Vec<f64>;

/// The space that `(x₀, x₁ − x₀, …)` span, by their inner products.
#[derive(Debug, Clone, Copy)]
pub(super) struct Space<'a> {
    vectors: usize,
    /// The upper triangle of the Gram matrix, row by row.
    upper: &'a [f64],
}

impl Space<'_> {
    /// One of the measured vectors: the first model, or a difference to it.
    pub(super) fn difference(&self, input: usize) -> Vector {
        (0..self.vectors).map(|i| f64::from(u8::from(i == input))).collect()
    }

    /// One of the models.
    pub(super) fn model(&self, input: usize) -> Vector {
        (0..self.vectors).map(|i| f64::from(u8::from(i == 0 || i == input))).collect()
    }

    pub(super) fn zero(&self) -> Vector {
        vec![0.0; self.vectors]
    }

    pub(super) fn dot(&self, a: &Vector, b: &Vector) -> f64 {
        let mut upper = self.upper.iter();
        let mut sum = 0.0;
        for i in 0..self.vectors {
            for (j, product) in (i..self.vectors).zip(&mut upper) {
                let factor = if i == j { a[i] * b[i] } else { a[i] * b[j] + a[j] * b[i] };
                sum += factor * product;
            }
        }
        sum
    }

    /// NaN where the models hold some: that must not look like a length of 0.
    pub(super) fn length(&self, a: &Vector) -> f64 {
        let square = self.dot(a, a);
        if square < 0.0 { 0.0 } else { square.sqrt() }
    }

    /// The inner product of two of the measured vectors.
    pub(super) fn product(&self, a: usize, b: usize) -> f64 {
        let (low, high) = (a.min(b), a.max(b));
        self.upper[low * self.vectors - low * low.saturating_sub(1) / 2 + high - low]
    }
}

/// `a + factor · b`.
pub(super) fn plus(a: &Vector, factor: f64, b: &Vector) -> Vector {
    a.iter().zip(b).map(|(a, b)| a + factor * b).collect()
}

/// `factor · a`.
pub(super) fn times(factor: f64, a: &Vector) -> Vector {
    a.iter().map(|a| factor * a).collect()
}

/// Spherical interpolation from `a` (t = 0) to `b`, both as they are and not normalised; linear where they are parallel.
///
/// `shortest` is the length that shorter vectors are divided by instead of their own.
pub(super) fn slerp(space: &Space<'_>, a: &Vector, b: &Vector, t: f64, shortest: f64) -> Vector {
    let (length_a, length_b) = (space.length(a), space.length(b));
    let product = space.dot(a, b);
    let (sine, theta) = if length_a >= shortest && length_b >= shortest {
        // |a|²|b|² − (a·b)², taken with the difference of both, which does not cancel where they are close.
        let difference = plus(b, -1.0, a);
        let along = space.dot(a, &difference);
        let square = space.dot(a, a) * space.dot(&difference, &difference) - along * along;
        let area = if square < 0.0 { 0.0 } else { square.sqrt() };
        (area / (length_a * length_b), libm::atan2(area, product))
    } else {
        let cosine = (product / (length_a.max(shortest) * length_b.max(shortest))).clamp(-1.0, 1.0);
        ((1.0 - cosine * cosine).sqrt(), libm::acos(cosine))
    };
    if sine <= RESOLUTION {
        return plus(a, t, &plus(b, -1.0, a));
    }
    let sine = libm::sin(theta);
    plus(&times(libm::sin((1.0 - t) * theta) / sine, a), libm::sin(t * theta) / sine, b)
}

/// The tensor's vectors along its last dimension, or with `across` along its first; the tensor itself where it has one
/// dimension, or one vector.
///
/// # Errors
/// There are too many.
pub(super) fn segments(settings: &Settings, method: &str, across: bool) -> Result<Segments> {
    let Settings { shape, elements, tensor, .. } = settings;
    let (Some(first), Some(last)) = (shape.first(), shape.last()) else { return Ok(Segments::Whole) };
    if shape.len() < 2 || *elements == 0 {
        return Ok(Segments::Whole);
    }
    let by = if across {
        Segments::Columns { columns: elements / *first as u64 }
    } else {
        Segments::Rows { columns: *last as u64 }
    };
    let (count, of_each) = (by.count(*elements), by.elements(*elements));
    if count == 1 {
        return Ok(Segments::Whole);
    }
    let sums = count.saturating_mul(gram::pairs(settings.inputs) as u64);
    let longest = if across { count } else { of_each };
    if sums > SUMS_MAX || longest > ROW_ELEMENTS_MAX {
        let problem = format!(
            "{method}: tensor {tensor} of {shape:?} has {count} vectors of {of_each} elements, too many to measure each by itself"
        );
        return Err(Error::config(problem).hint("let the method see each tensor as one vector"));
    }
    Ok(by)
}

/// The recipe of a method that measures inner products of inputs, the first of which is the anchor, and adds up.
pub(super) fn recipe<F>(settings: &Settings, inputs: Vec<usize>, by: Segments, solve: F) -> Recipe
where
    F: Fn(&Space<'_>) -> Result<Vector> + Clone + Send + Sync + 'static,
{
    let over = everything(by.elements(settings.elements));
    let foreseen = foreseen(&inputs, by);
    Recipe::steps(2, by, foreseen, move |measured: Measured| {
        let vectors = inputs.len();
        Ok(match measured {
            Measured::Nothing => {
                let job = gram::Job { inputs: vectors }.into();
                Some(Pass::Measure { reads: inputs.clone(), job, by, over: over.clone() })
            }
            Measured::Kept(_) => None,
            measured => {
                let (sums, pairs) = (measured.sums(), gram::pairs(vectors));
                let mut solved = Solved::new(vectors, sums.len() / pairs);
                for (segment, upper) in sums.chunks_exact(pairs).enumerate() {
                    solved.set(segment, &solve(&Space { vectors, upper })?);
                }
                Some(solved.combine(&inputs, by))
            }
        })
    })
}

/// The measuring pass, and those that may add up: of a whole tensor, the first coefficient may turn out to be 0.
fn foreseen(inputs: &[usize], by: Segments) -> Vec<Foreseen> {
    let count = inputs.len();
    let segment_sum = segment_sum::Job { inputs: count, by: per(by), coefficients: Vec::new().into() };
    let mut foreseen =
        vec![Foreseen::new(inputs, gram::Job { inputs: count }), Foreseen::new(inputs, segment_sum)];
    if by == Segments::Whole {
        let weighted_sum = weighted_sum::Job { anchored: true, coefficients: vec![0.0; count] };
        foreseen.push(Foreseen::new(inputs, weighted_sum));
    }
    foreseen
}

/// What has coefficients of its own, as the kernel says it.
fn per(by: Segments) -> Per {
    match by {
        Segments::Whole => Per::Whole,
        Segments::Rows { columns } => Per::Rows(columns),
        Segments::Columns { columns } => Per::Columns(columns),
    }
}

/// What was solved for: coefficients as the kernel takes them.
struct Solved {
    segments: usize,
    /// Those of the first input for all segments, then those of the second, …
    coefficients: Vec<f32>,
}

impl Solved {
    fn new(vectors: usize, segments: usize) -> Self {
        Self { segments, coefficients: vec![0.0; vectors * segments] }
    }

    fn set(&mut self, segment: usize, vector: &Vector) {
        for (input, coefficient) in vector.iter().enumerate() {
            // What the first model is multiplied with beside 1.
            let coefficient = if input == 0 { coefficient - 1.0 } else { *coefficient };
            let negligible = if input == 0 { segment_sum::SMALLEST } else { 0.0 };
            // NaN stays.
            self.coefficients[input * self.segments + segment] =
                if coefficient.abs() < negligible { 0.0 } else { coefficient as f32 };
        }
    }

    fn combine(self, inputs: &[usize], by: Segments) -> Pass {
        if by == Segments::Whole && self.coefficients[0] == 0.0 {
            // A coefficient of exactly 0 leaves its model out.
            let used = (1..inputs.len()).filter(|input| self.coefficients[*input] != 0.0);
            let of = |input: usize| (inputs[input], self.coefficients[input]);
            let (reads, coefficients) = std::iter::once(0).chain(used).map(of).unzip();
            return Pass::Combine { reads, job: weighted_sum::Job { anchored: true, coefficients }.into() };
        }
        let job = segment_sum::Job::new(inputs.len(), per(by), self.coefficients.into());
        Pass::Combine { reads: inputs.to_vec(), job: job.into() }
    }
}

//! `out = Σ cᵢ xᵢ`, or around an anchor `out = x₀ + Σ cᵢ (xᵢ − x₀)`.
//!
//! With the anchor, merging a model with itself returns it bit for bit: every difference is zero.

use super::Inputs;
use super::packed::append_floats;
use crate::dtype::Element;

/// The numbers of one tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// Whether input 0 is the anchor; its coefficient is then not used.
    pub anchored: bool,
    /// One coefficient per input.
    pub coefficients: Vec<f32>,
}

/// The job's words: whether it is anchored, then the coefficients.
pub fn pack(job: &Job, words: &mut Vec<u32>) {
    words.push(job.anchored.into());
    append_floats(words, &job.coefficients);
}

/// Merges one tile.
#[inline(always)]
pub fn tile<E: Element>(job: &Job, inputs: &Inputs<'_, E>, out: &mut [f32]) {
    match job.coefficients.len() {
        2 => few::<2, E>(job, inputs, out),
        3 => few::<3, E>(job, inputs, out),
        4 => few::<4, E>(job, inputs, out),
        5 => few::<5, E>(job, inputs, out),
        _ => many(job, inputs, out),
    }
}

/// So few inputs that each element is read, summed up and stored at once.
#[inline(always)]
fn few<const N: usize, E: Element>(job: &Job, inputs: &Inputs<'_, E>, out: &mut [f32]) {
    // Slices of one length, and indices: the compiler needs no checks, and uses vectors.
    let coefficients: [f32; N] = *job.coefficients.as_array().expect("N coefficients");
    let x: [&[E]; N] = inputs.several(0);
    let out = &mut out[..inputs.len];
    if job.anchored {
        for i in 0..inputs.len {
            let (mut sum, first) = (0.0, x[0][i].value());
            for input in 1..N {
                sum += coefficients[input] * (x[input][i].value() - first);
            }
            out[i] = sum + first;
        }
    } else {
        for i in 0..inputs.len {
            let mut sum = coefficients[0] * x[0][i].value();
            for input in 1..N {
                sum += coefficients[input] * x[input][i].value();
            }
            out[i] = sum;
        }
    }
}

/// The inputs one after the other.
#[inline(always)]
fn many<E: Element>(job: &Job, inputs: &Inputs<'_, E>, out: &mut [f32]) {
    let first = inputs.of(0);
    if !job.anchored {
        for (sum, x) in out.iter_mut().zip(first) {
            *sum = job.coefficients[0] * x.value();
        }
        for (i, c) in job.coefficients.iter().enumerate().skip(1) {
            for (sum, x) in out.iter_mut().zip(inputs.of(i)) {
                *sum += c * x.value();
            }
        }
        return;
    }
    out.fill(0.0);
    for (i, c) in job.coefficients.iter().enumerate().skip(1) {
        for ((sum, x), anchor) in out.iter_mut().zip(inputs.of(i)).zip(first) {
            *sum += c * (x.value() - anchor.value());
        }
    }
    for (sum, anchor) in out.iter_mut().zip(first) {
        *sum += anchor.value();
    }
}

//! The ranks of task vectors: how many directions a change has.
//!
//! ```text
//! effective rank = exp(−Σ pᵢ ln pᵢ) with pᵢ = σᵢ / Σ σ    (Roy and Vetterli, EUSIPCO 2007)
//! stable rank    = ‖δ‖² / σ₁²                             (Rudelson and Vershynin, J. ACM 2007)
//! rank90         = the fewest singular values whose squares add up to 90 % of ‖δ‖²
//! ```
//!
//! All singular values are computed, as roots of eigenvalues, without their vectors. Where a change has few directions a randomised
//! decomposition has them sooner; it is used if what it leaves out, however that may lie, cannot move the effective rank.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use regex::Regex;

use super::Columns;
use super::pass::{Job, Pass};
use crate::error::{Error, Result};
use crate::extract::svd::{ByRows, Spectrum, spectrum};
use crate::plan::Plan;
use crate::text::quoted;
use crate::threads;

/// The share of a matrix's squares that the larger singular values hold.
const HELD: f64 = 0.9;

/// What a randomised decomposition may leave out: no more than can move the logarithm of the effective rank by this.
const MOVED_MAX: f64 = 1e-3;

/// The ranks of a matrix of a task vector.
#[derive(Debug, Clone, PartialEq)]
pub struct Rank {
    /// The tensor's name.
    pub tensor: String,
    /// Whose task vector it is.
    pub column: usize,
    /// Rows and columns; of a tensor with more dimensions, all but the last are rows.
    pub shape: (usize, usize),
    /// The exponential of the entropy of the singular values, as shares of their sum; nothing where all is 0.
    pub effective: Option<f64>,
    /// The square of the norm over that of the largest singular value; nothing where all is 0.
    pub stable: Option<f64>,
    /// The fewest singular values that hold 90 % of the squares.
    pub of_90_percent: usize,
}

/// A matrix of a task vector whose rank is wanted: which job, and which of its models.
pub(super) type Ranked = (usize, usize);

/// The matrices that are wanted.
///
/// # Errors
/// There is no base, or an expression fits no matrix.
pub(super) fn wanted(plan: &Plan, columns: &Columns, jobs: &[Job], wanted: &[Regex]) -> Result<Vec<Ranked>> {
    if !wanted.is_empty() && columns.base.is_none() {
        let problem = "--rank is of task vectors, and this config has no base model to take them from";
        return Err(
            Error::config(problem).hint("add base_model: to the config, with a method that takes one")
        );
    }
    let is_matrix = |job: &&Job| {
        let shape = &plan.tensors[job.tensor].shape;
        job.base.is_some() && shape.len() > 1 && shape.iter().all(|side| *side > 0)
    };
    let name = |job: &Job| &*plan.tensors[job.tensor].name;
    for expression in wanted {
        if !jobs.iter().filter(is_matrix).any(|job| expression.is_match(name(job))) {
            let problem =
                format!("--rank {}: no matrix that is merged has such a name", quoted(expression.as_str()));
            let example = jobs.iter().find(|job| is_matrix(job)).map(name);
            let error = Error::config(problem);
            return Err(match example {
                Some(example) => error.hint(format!("names are like {}", quoted(example))),
                None => error,
            });
        }
    }
    let fits = |job: &Job| wanted.iter().any(|expression| expression.is_match(name(job)));
    let numbered = jobs.iter().enumerate().filter(|(_, job)| is_matrix(job) && fits(job));
    Ok(numbered.flat_map(|(number, job)| job.tasks().into_iter().map(move |model| (number, model))).collect())
}

/// Those of these matrices, in their order.
///
/// # Errors
/// An input cannot be read or has NaN or infinity in these matrices, or the user wants to stop.
pub(super) fn ranks(pass: &Pass, wanted: &[Ranked], threads: usize) -> Result<Vec<Rank>> {
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let found: Mutex<Vec<Option<Result<Rank>>>> = Mutex::new(wanted.iter().map(|_| None).collect());
    threads::share(threads.min(wanted.len()).max(1), |_| {
        while !failed.load(Ordering::Relaxed) {
            let place = next.fetch_add(1, Ordering::Relaxed);
            let Some(ranked) = wanted.get(place) else { return };
            let rank = rank(pass, *ranked);
            failed.fetch_or(rank.is_err(), Ordering::Relaxed);
            found.lock().expect("no thread panics with it")[place] = Some(rank);
        }
    });
    found.into_inner().expect("no thread panics with it").into_iter().flatten().collect()
}

fn rank(pass: &Pass, (number, model): Ranked) -> Result<Rank> {
    let job = &pass.jobs[number];
    let tensor = &pass.plan.tensors[job.tensor];
    let columns = tensor.shape[tensor.shape.len() - 1];
    let shape = (tensor.elements as usize / columns, columns);
    let mut matrix = TaskVector { pass, job, model, shape, bytes: Vec::new(), values: Default::default() };
    let most = shape.0.min(shape.1);
    let is_enough = |values: &[f64], left: f64| moved_most(values, left, most) <= MOVED_MAX;
    let Spectrum { values, squares } = spectrum(&mut matrix, &is_enough)?;
    let largest = values.first();
    Ok(Rank {
        tensor: tensor.name.to_string(),
        column: job.columns[model],
        shape,
        effective: largest.map(|_| entropy(&values).exp()),
        stable: largest.map(|largest| squares / (largest * largest)),
        of_90_percent: holding(&values, HELD * squares),
    })
}

/// The entropy of values as shares of their sum.
fn entropy(values: &[f64]) -> f64 {
    let sum: f64 = values.iter().sum();
    let of = |value: &f64| if *value > 0.0 { -value / sum * (value / sum).ln() } else { 0.0 };
    values.iter().map(of).sum()
}

/// How far the entropy of all `most` singular values may be from that of these, which a projection of the matrix has, where the squares
/// of what the projection leaves out add up to `left`. Singular values differ by no more than those of what is left out, in sum (Mirsky
/// 1960), and that sum is largest where they are equal; by no more than that do shares differ, and entropies as in Audenaert, J. Phys. A
/// 2007.
fn moved_most(values: &[f64], left: f64, most: usize) -> f64 {
    let apart = (most as f64 * left).sqrt() / values.iter().sum::<f64>();
    if apart < 0.5 { entropy(&[apart, 1.0 - apart]) + apart * (most as f64).ln() } else { f64::INFINITY }
}

/// The fewest values whose squares add up to so much.
fn holding(values: &[f64], squares: f64) -> usize {
    let mut sum = 0.0;
    let is_missing = |value: &&f64| {
        let is_missing = sum < squares;
        sum += **value * **value;
        is_missing
    };
    values.iter().take_while(is_missing).count()
}

/// A task vector as a matrix, read by rows.
struct TaskVector<'a> {
    pass: &'a Pass<'a>,
    job: &'a Job,
    model: usize,
    shape: (usize, usize),
    bytes: Vec<u8>,
    values: [Vec<f32>; 2],
}

impl ByRows for TaskVector<'_> {
    fn rows(&self) -> usize {
        self.shape.0
    }

    fn columns(&self) -> usize {
        self.shape.1
    }

    fn read(&mut self, first: usize, into: &mut [f64]) -> Result<()> {
        let base = self.job.base.expect("what has a task vector has a base");
        for (model, values) in [self.model, base].into_iter().zip(&mut self.values) {
            values.resize(into.len(), 0.0);
            let input = (self.job.inputs[model], self.job.floats[model]);
            self.pass.read(input, (first * self.shape.1) as u64, &mut self.bytes, values)?;
        }
        let [model, base] = &self.values;
        into.iter_mut()
            .zip(model)
            .zip(base)
            .for_each(|((into, model), base)| *into = f64::from(model - base));
        if into.iter().all(|value| value.is_finite()) {
            return Ok(());
        }
        let name = quoted(&self.pass.plan.tensors[self.job.tensor].name);
        let models =
            [self.model, base_of(self.job)].map(|model| self.pass.columns.name(self.job.columns[model]));
        Err(Error::input(format!("tensor {name} has NaN or infinity in {} or {}", models[0], models[1]))
            .hint("leave it out of --rank, or mend the model"))
    }

    fn go_on(&self, _done: f64) -> Result<()> {
        // A line of progress may be due, though nothing moves.
        self.pass.watch.moved(0, 0);
        if self.pass.watch.stop() { Err(Error::interrupted()) } else { Ok(()) }
    }
}

fn base_of(job: &Job) -> usize {
    job.base.expect("what has a task vector has a base")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_have_the_rank_of_their_number() {
        for count in [1, 2, 20, 3000] {
            assert!((entropy(&vec![0.25; count]).exp() / count as f64 - 1.0).abs() < 1e-9, "{count}");
        }
        // Of 1/2, 1/4, 1/8, … the entropy is 2 ln 2.
        let halves: Vec<f64> = (0..60).map(|k| 0.5f64.powi(k)).collect();
        assert!((entropy(&halves).exp() - 4.0).abs() < 1e-9);
        assert_eq!((holding(&[2.0, 1.0, 1.0], 4.0), holding(&[2.0, 1.0, 1.0], 4.1)), (1, 2));
    }

    /// Whatever is left out, the bound holds; and where that is many equal values it is not idle.
    #[test]
    fn what_is_left_out_moves_the_entropy_by_no_more_than_is_said() {
        let values: Vec<f64> = (0..40).map(|k| 1.0 + f64::from(k)).rev().collect();
        let most = 500;
        for (size, others) in [(0.001, 460), (0.01, 460), (0.02, 3), (0.9, 40), (0.0, 100)] {
            let all = [values.clone(), vec![size; others]].concat();
            let bound = moved_most(&values, size * size * others as f64, most);
            let moved = (entropy(&all) - entropy(&values)).abs();
            assert!(moved <= bound, "{size} × {others}: {moved} > {bound}");
            assert!(others < 460 || bound <= 6.0 * moved, "{size} × {others}: {moved}, and {bound}");
        }
    }
}

//! The effective rank of task vectors: how many directions a change has.
//!
//! ```text
//! stable rank = ‖δ‖² / σ₁²                   (Rudelson and Vershynin, J. ACM 2007)
//! rank90 = the fewest singular values whose squares add up to 90 % of ‖δ‖²
//! ```
//!
//! The singular values come from a randomised decomposition as far as that is enough, else from all of them.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use regex::Regex;

use super::Columns;
use super::pass::{Job, Pass};
use crate::error::{Error, Result};
use crate::extract::svd::{ByRows, Wanted, decompose};
use crate::plan::Plan;
use crate::text::quoted;
use crate::threads;

/// The share of a matrix's squares that the larger singular values hold.
const HELD: f64 = 0.9;

/// The effective rank of a matrix of a task vector.
#[derive(Debug, Clone, PartialEq)]
pub struct Rank {
    /// The tensor's name.
    pub tensor: String,
    /// Whose task vector it is.
    pub column: usize,
    /// Rows and columns; of a tensor with more dimensions, all but the last are rows.
    pub shape: (usize, usize),
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

/// The ranks of these matrices, in their order.
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
    let found = decompose(&mut matrix, Wanted { rank: usize::MAX, error: (1.0 - HELD).sqrt() })?;
    let stable = found.values.first().map(|largest| found.squares / (largest * largest));
    Ok(Rank {
        tensor: tensor.name.to_string(),
        column: job.columns[model],
        shape,
        stable,
        of_90_percent: found.values.len(),
    })
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

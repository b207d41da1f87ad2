//! What a merge method asks for, pass by pass: measure → solve → combine.
//!
//! A recipe is a small machine. The stream hands it what the last pass measured and carries out the pass it
//! answers with, until the output is right. The solving between passes is host arithmetic in f64, shared by
//! every backend: given the same measurements they all go on with the same numbers.

use std::fmt;
use std::ops::Range;

use crate::error::Result;
use crate::kernel::consensus::Trim;
use crate::kernel::{Job, Kept, tiles};

/// How one tensor is merged.
pub enum Recipe {
    /// The only input as it stands: no arithmetic, the bytes are copied.
    Copy,
    /// Passes over the inputs.
    Passes {
        /// How often the inputs are read, as the plan counts bytes.
        sweeps: Sweeps,
        /// The machine that asks for them.
        machine: Box<dyn Machine>,
    },
}

impl Recipe {
    /// A recipe of passes.
    pub fn passes(sweeps: Sweeps, machine: impl Machine + 'static) -> Self {
        Self::Passes { sweeps, machine: Box::new(machine) }
    }

    /// A recipe that combines at once.
    pub fn combine(reads: Vec<usize>, job: Job) -> Self {
        let mut pass = Some(Pass::Combine { reads, job });
        Self::passes(Sweeps { usual: 1, most: 1 }, move |_: Measured| Ok(pass.take()))
    }
}

impl fmt::Debug for Recipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Copy => f.write_str("Copy"),
            Self::Passes { sweeps, .. } => {
                f.debug_struct("Passes").field("sweeps", sweeps).finish_non_exhaustive()
            }
        }
    }
}

/// How many times a recipe sweeps over its whole inputs, the combining one included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sweeps {
    /// On ordinary data.
    pub usual: u32,
    /// On any data; a try with thresholds of an earlier merge, which turn out to be wrong, is not counted.
    pub most: u32,
}

/// The state of one tensor's merge.
pub trait Machine: Send {
    /// The next pass, given what the last one measured; none when the output is right.
    ///
    /// # Errors
    /// Kind `Device`: what was measured cannot be.
    fn next(&mut self, measured: Measured) -> Result<Option<Pass>>;
    /// Before the first pass: what earlier merges found. It may be wrong, and is proven or given up.
    fn recall(&mut self, _thresholds: &[Threshold]) {}
    /// After the last pass: thresholds that are proven.
    fn thresholds(&self) -> Vec<Threshold> {
        Vec::new()
    }
}

impl<F: FnMut(Measured) -> Result<Option<Pass>> + Send> Machine for F {
    fn next(&mut self, measured: Measured) -> Result<Option<Pass>> {
        self(measured)
    }
}

/// Where the task vector of one input is trimmed, if so many elements are to be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Threshold {
    /// Which of the tensor's inputs.
    pub input: usize,
    /// How many elements are kept.
    pub kept: u64,
    /// The threshold, and the cut among those equal to it.
    pub trim: Trim,
}

/// One pass over (a part of) the tensor's inputs.
#[derive(Debug, Clone, PartialEq)]
pub enum Pass {
    /// Numbers for the next step.
    Measure {
        /// Which inputs the job reads, in the job's order.
        reads: Vec<usize>,
        /// The kernel and its numbers.
        job: Job,
        /// Which tiles, in order and apart from each other.
        over: Vec<Range<u64>>,
    },
    /// The output, over the whole tensor. The last pass, if what it kept is what should be kept.
    Combine {
        /// Which inputs the job reads, in the job's order.
        reads: Vec<usize>,
        /// The kernel and its numbers.
        job: Job,
    },
}

/// What a pass measured.
#[derive(Debug, Clone, PartialEq)]
pub enum Measured {
    /// Nothing yet: the first call.
    Nothing,
    /// Sums over the tensor, one per word of the kernel's result.
    Sums(Vec<f64>),
    /// Counters of consecutive stretches of tiles.
    Counts(Vec<Record>),
    /// Words per tile, in order.
    Words(Vec<u32>),
    /// Of a combining pass: how much was kept of each model of its job.
    Kept(Kept),
}

impl Measured {
    /// The sums of a measuring pass.
    pub fn sums(self) -> Vec<f64> {
        match self {
            Self::Sums(sums) => sums,
            other => panic!("the pass measured {other:?}, not sums"),
        }
    }

    /// The counters of a counting pass.
    pub fn counts(self) -> Vec<Record> {
        match self {
            Self::Counts(records) => records,
            other => panic!("the pass measured {other:?}, not counts"),
        }
    }

    /// What a combining pass kept.
    pub fn kept(self) -> Kept {
        match self {
            Self::Kept(kept) => kept,
            other => panic!("the pass measured {other:?}, and did not combine"),
        }
    }

    /// The words of a pass that keeps them.
    pub fn words(self) -> Vec<u32> {
        match self {
            Self::Words(words) => words,
            other => panic!("the pass measured {other:?}, not words"),
        }
    }
}

/// The counters of one stretch of tiles.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Which tiles.
    pub tiles: Range<u64>,
    /// The kernel's counters.
    pub counts: Vec<u32>,
}

/// Every tile of a tensor.
pub fn everything(elements: u64) -> Vec<Range<u64>> {
    std::iter::once(0..tiles(elements)).collect()
}

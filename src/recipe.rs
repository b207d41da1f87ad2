//! What a merge method asks for, pass by pass: measure → solve → combine.
//!
//! A recipe is a small machine. The stream hands it what the last pass measured and carries out the pass it
//! answers with, until the output is right. The solving between passes is host arithmetic in f64, shared by
//! every backend: given the same measurements they all go on with the same numbers.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;

use crate::error::Result;
use crate::kernel::thinning::Trim;
use crate::kernel::{Job, Kept, tiles};

/// How one tensor is merged.
#[derive(Debug)]
pub enum Recipe {
    /// The only input as it stands: no arithmetic, the bytes are copied.
    Copy,
    /// Passes over the inputs.
    Passes(Passes),
}

/// A recipe of passes, made once with the plan; each merge carries it out with a machine of its own.
pub struct Passes {
    /// How often it sweeps over its whole inputs at the most, on any data. All that are usual are one or two.
    pub sweeps_most: u32,
    /// What is measured by itself, and has coefficients of its own.
    pub by: Segments,
    /// What it reads beside the models.
    pub made: Vec<Making>,
    machine: Box<dyn Machine>,
}

impl Passes {
    /// The machine that asks for the passes.
    pub fn begin(&self) -> Box<dyn Machine> {
        self.machine.fresh()
    }

    /// The inputs that it reads, unless it does on unusual data.
    pub fn reads(&self) -> BTreeSet<usize> {
        self.begin().foreseen().into_iter().flat_map(|pass| pass.reads).collect()
    }

    /// A single pass that combines.
    pub fn combine(reads: Vec<usize>, job: impl Into<Job>) -> Self {
        let job = job.into();
        let foreseen = vec![Foreseen::new(&reads, job.clone())];
        let mut pass = Some(Pass::Combine { reads, job });
        let machine = Box::new(Steps { next: move |_: Measured| Ok(pass.take()), foreseen });
        Self { sweeps_most: 1, by: Segments::Whole, made: Vec::new(), machine }
    }
}

impl Recipe {
    /// A recipe of passes, whose machine begins as it is now.
    pub fn passes(sweeps_most: u32, by: Segments, machine: impl Machine + 'static) -> Self {
        Self::Passes(Passes { sweeps_most, by, made: Vec::new(), machine: Box::new(machine) })
    }

    /// The same recipe, which reads inputs that are made for it too: it counts them behind the models.
    #[must_use]
    pub fn reading(self, made: Vec<Making>) -> Self {
        match self {
            Self::Copy => Self::Copy,
            Self::Passes(passes) => Self::Passes(Passes { made, ..passes }),
        }
    }

    /// A recipe of passes that a function gives, one after the other; `foreseen` are those that it may give.
    pub fn steps<F>(sweeps_most: u32, by: Segments, foreseen: Vec<Foreseen>, next: F) -> Self
    where
        F: FnMut(Measured) -> Result<Option<Pass>> + Clone + Send + Sync + 'static,
    {
        Self::passes(sweeps_most, by, Steps { next, foreseen })
    }

    /// A recipe that combines at once.
    pub fn combine(reads: Vec<usize>, job: impl Into<Job>) -> Self {
        Self::Passes(Passes::combine(reads, job))
    }
}

/// An input that the processor makes of the models while it is read: where a decision is awkward on a device, the device reads it.
/// Models are named by their places among the recipe's inputs.
#[derive(Debug, Clone, PartialEq)]
pub enum Making {
    /// Nothing but 0. To kernels that measure differences to a base, what a quantity itself is the difference to.
    Zeros,
    /// How much the models' task vectors differ from each other, element by element: their variance.
    Spread {
        /// The base model.
        base: usize,
        /// The others.
        models: Vec<usize>,
    },
    /// How much a model's change of an element matters: its magnitude, times the divergence of the row's softmax from the base's.
    Importance {
        /// The base model.
        base: usize,
        /// The other model.
        model: usize,
    },
    /// The models' average, each element weighted by its importance, which the plan knows files for.
    Fisher {
        /// Models with their weights, from 0 up.
        models: Vec<(usize, f32)>,
        /// No importance counts as less.
        floor: f32,
    },
    /// A random mask, one bit an element, which the more likely keeps an element the larger its task vector is among those of
    /// the row.
    Ranks {
        /// The base model.
        base: usize,
        /// The other model.
        model: usize,
        /// The mean probability of being kept.
        density: f64,
        /// How far the probabilities of the smallest and the largest are from it.
        epsilon: f64,
        /// The key of the random generator.
        key: [u32; 2],
    },
}

impl fmt::Debug for Passes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Passes").field("sweeps_most", &self.sweeps_most).finish_non_exhaustive()
    }
}

/// The state of one tensor's merge.
pub trait Machine: Send + Sync {
    /// The next pass, given what the last one measured; none when the output is right.
    ///
    /// # Errors
    /// Kind `Config`: these tensors cannot be merged so. Kind `Device`: what was measured cannot be.
    fn next(&mut self, measured: Measured) -> Result<Option<Pass>>;
    /// The same state once more.
    fn fresh(&self) -> Box<dyn Machine>;
    /// Before the first pass: the passes that are likely to be asked for. Others may be, on unusual data.
    fn foreseen(&self) -> Vec<Foreseen>;
    /// Before the first pass: what earlier merges found. It may be wrong, and is proven or given up.
    fn recall(&mut self, _thresholds: &[Threshold]) {}
    /// Before the first pass: parts of the inputs can be read again at little cost. A good guess, and mending what it got
    /// wrong, then takes less time than making sure before.
    fn guess(&mut self) {}
    /// After the last pass: what a user should know about this tensor.
    fn remark(&self) -> Option<Remark> {
        None
    }
    /// After the last pass: thresholds that are proven.
    fn thresholds(&self) -> Vec<Threshold> {
        Vec::new()
    }
}

/// What a merge found out about a tensor, in words that are the same for all tensors of which it is true.
pub type Remark = Cow<'static, str>;

/// A pass that a recipe is likely to ask for. It says which kernel will run on what; its numbers are not known yet.
#[derive(Debug, Clone, PartialEq)]
pub struct Foreseen {
    /// Which inputs the job reads, in the job's order.
    pub reads: Vec<usize>,
    /// The kernel, of so many models, with any numbers.
    pub job: Job,
}

impl Foreseen {
    /// A pass that reads these inputs.
    pub fn new(reads: &[usize], job: impl Into<Job>) -> Self {
        Self { reads: reads.to_vec(), job: job.into() }
    }
}

/// A function that gives pass after pass.
#[derive(Clone)]
struct Steps<F> {
    next: F,
    foreseen: Vec<Foreseen>,
}

impl<F> Machine for Steps<F>
where
    F: FnMut(Measured) -> Result<Option<Pass>> + Clone + Send + Sync + 'static,
{
    fn next(&mut self, measured: Measured) -> Result<Option<Pass>> {
        (self.next)(measured)
    }

    fn fresh(&self) -> Box<dyn Machine> {
        Box::new(self.clone())
    }

    fn foreseen(&self) -> Vec<Foreseen> {
        self.foreseen.clone()
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
        /// What is measured by itself: the tensor, its rows, or its columns.
        by: Segments,
        /// Which tiles of a segment, in order and apart from each other; of rows and columns all.
        over: Vec<Range<u64>>,
    },
    /// The output, over the whole tensor. The last pass, if what it kept is what should be kept.
    Combine {
        /// Which inputs the job reads, in the job's order.
        reads: Vec<usize>,
        /// The kernel and its numbers.
        job: Job,
    },
    /// The output of some tiles once more. What was combined before is right everywhere else.
    Mend {
        /// Which inputs the job reads, in the job's order.
        reads: Vec<usize>,
        /// The kernel and its numbers.
        job: Job,
        /// Which tiles, in order and apart from each other; more of them may be combined again.
        over: Vec<Range<u64>>,
    },
}

/// The parts of a tensor that are measured each by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Segments {
    /// All of it.
    Whole,
    /// Rows of so many elements, one behind the other.
    Rows {
        /// Elements of a row.
        columns: u64,
    },
    /// So many columns, each taking every `columns`-th element.
    Columns {
        /// Elements of a row.
        columns: u64,
    },
}

impl Segments {
    /// How many there are in a tensor of so many elements.
    pub fn count(self, elements: u64) -> u64 {
        match self {
            Self::Whole => 1,
            Self::Rows { columns } => elements / columns.max(1),
            Self::Columns { columns } => columns,
        }
    }

    /// How many elements each has.
    pub fn elements(self, elements: u64) -> u64 {
        match self {
            Self::Whole => elements,
            Self::Rows { columns } => columns,
            Self::Columns { columns } => elements / columns.max(1),
        }
    }
}

/// What a pass measured.
#[derive(Debug, Clone, PartialEq)]
pub enum Measured {
    /// Nothing yet: the first call.
    Nothing,
    /// Sums over each segment, one per word of the kernel's result.
    Sums(Vec<f64>),
    /// Counters of consecutive stretches of tiles.
    Counts(Vec<TileCounts>),
    /// Words per tile, in order.
    Words(Vec<u32>),
    /// Of a pass that combines or mends: how much of each model of its job is kept in the whole output.
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
    pub fn counts(self) -> Vec<TileCounts> {
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
pub struct TileCounts {
    /// Which tiles.
    pub tiles: Range<u64>,
    /// The kernel's counters.
    pub counts: Vec<u32>,
}

/// Every tile of a tensor.
pub fn everything(elements: u64) -> Vec<Range<u64>> {
    std::iter::once(0..tiles(elements)).collect()
}

//! What a device must be able to do: run kernels over spans of tiles. It knows no method and no file.
//!
//! A worker owns a [`Lane`] and puts launches through it: `submit` has the inputs read straight into the
//! device's slots and starts the kernel, `collect` waits for the oldest launch and shows its results. On the
//! CPU a lane is one launch deep and computes in `submit`; a GPU overlaps copies and kernels in between.
//! Inputs that later sweeps need again may be held by the device, within its budget; a lane reads only
//! what is not held, so whether something was held changes the speed and nothing else.

pub mod cpu;

use std::ops::Range;
use std::sync::Arc;

use crate::dtype::Float;
use crate::error::Result;
use crate::kernel::{Job, TILE};

/// A device that runs kernels.
pub trait Backend: Sync {
    /// The device's name, for reports.
    fn name(&self) -> String;
    /// A lane for one worker thread.
    fn lane(&self) -> Box<dyn Lane + '_>;
    /// Lets go of what is still held of a tensor.
    fn forget(&self, tensor: usize);
}

/// One worker's way through the device.
pub trait Lane {
    /// How many launches may be under way at once.
    fn depth(&self) -> usize;
    /// Reads the inputs of a launch, through `read`, and starts it.
    ///
    /// # Errors
    /// Those of `read`, and of the device.
    fn submit(&mut self, launch: Launch, read: &mut Read<'_>) -> Result<()>;
    /// Waits for the oldest launch and hands its results to `take`, span by span.
    ///
    /// # Errors
    /// Those of `take`, and of the device.
    fn collect(&mut self, take: &mut dyn FnMut(usize, Output<'_>) -> Result<()>) -> Result<()>;
}

/// Fills a slot with (span, input): the elements of that span in that one of the launch's inputs.
pub type Read<'a> = dyn FnMut(usize, usize, &mut [u8]) -> Result<()> + 'a;

/// Work for a device: jobs of one kernel, over spans of their tensors.
#[derive(Debug, Clone)]
pub struct Launch {
    /// The jobs, all of one kernel and with the same number of inputs.
    pub jobs: Vec<Arc<Job>>,
    /// The pieces to work on.
    pub spans: Vec<Span>,
    /// Which of the tensor's inputs the jobs read, in the jobs' order.
    pub reads: Vec<usize>,
    /// The element types of those inputs.
    pub floats: Vec<Float>,
    /// The element type that merged values are stored in.
    pub output: Float,
    /// What becomes of the inputs afterwards.
    pub hold: Hold,
}

/// Whether inputs are held for the next sweep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// Hold what fits the budget: another sweep will come.
    Keep,
    /// Use what is held, hold nothing new.
    Peek,
    /// The last use of what is held.
    Take,
}

/// A piece of one tensor: whole tiles, but for the tensor's end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// Which job of the launch.
    pub job: usize,
    /// Which tensor of the merge; held inputs are known by it.
    pub tensor: usize,
    /// Which tiles of the tensor.
    pub tiles: Range<u64>,
    /// How many elements those tiles have.
    pub elements: usize,
}

impl Span {
    /// The flat index of the first element.
    pub fn first_element(&self) -> u64 {
        self.tiles.start * TILE as u64
    }
}

/// What a launch left behind for one span.
#[derive(Debug)]
pub struct Output<'a> {
    /// The kernel's result.
    pub result: SpanResult<'a>,
    /// Odd values met; counted by combining kernels only, which see every element once.
    pub odd: OddValues,
}

/// A kernel's result for one span; see [`crate::kernel::Result`].
#[derive(Debug)]
pub enum SpanResult<'a> {
    /// The merged elements, encoded.
    Values(&'a [u8]),
    /// Sums, tile after tile.
    Sums(&'a [f32]),
    /// The span's counters.
    Counts(&'a [u32]),
    /// Words, tile after tile.
    Words(&'a [u32]),
}

/// Values that a merge carries on but a user should know of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OddValues {
    /// NaN in the inputs that were read.
    pub nan: u64,
    /// Infinities in the inputs that were read.
    pub infinite: u64,
    /// Results that are infinite or NaN though no input of their tile was: they were too large for f32 or for the
    /// stored type.
    pub overflowed: u64,
}

impl OddValues {
    /// Whether there were any.
    pub fn any(&self) -> bool {
        *self != Self::default()
    }

    /// Counts the NaN and infinities among decoded inputs.
    #[inline(always)]
    pub fn count(&mut self, values: &[f32]) {
        use crate::dtype::{INFINITY_BITS, magnitude_bits};
        // One pass that vectorises finds the rule; the exception may take its time.
        if values.iter().map(|v| magnitude_bits(*v)).max().unwrap_or(0) >= INFINITY_BITS {
            self.nan += values.iter().filter(|v| v.is_nan()).count() as u64;
            self.infinite += values.iter().filter(|v| v.is_infinite()).count() as u64;
        }
    }
}

impl OddValues {
    /// Counts the results that are not finite, if the counts of inputs are those of `before`, the tile's beginning.
    #[inline(always)]
    pub fn count_overflow(&mut self, before: Self, results: &[f32]) {
        let largest = results.iter().map(|v| crate::dtype::magnitude_bits(*v)).max().unwrap_or(0);
        if largest >= crate::dtype::INFINITY_BITS
            && (self.nan, self.infinite) == (before.nan, before.infinite)
        {
            self.overflowed += results.iter().filter(|v| !v.is_finite()).count() as u64;
        }
    }
}

impl std::ops::AddAssign for OddValues {
    fn add_assign(&mut self, other: Self) {
        self.nan += other.nan;
        self.infinite += other.infinite;
        self.overflowed += other.overflowed;
    }
}

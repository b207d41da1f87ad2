//! What a device must be able to do: run kernels over spans of tiles. It knows no method and no file.
//!
//! A worker owns a [`Lane`] and puts launches through it: `submit` has the inputs read straight into the
//! device's slots and starts the kernel, `collect` waits for the oldest launch and shows its results. On the
//! CPU a lane is one launch deep and computes in `submit`; a GPU overlaps copies and kernels in between.
//! Inputs that later sweeps need again may be held by the device, within its budget; a lane reads only
//! what is not held, so whether something was held changes the speed and nothing else.

pub mod cpu;
pub mod cuda;
pub mod device;
mod held;
pub mod libraries;
pub mod memory;
mod table;
pub mod wgpu;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use crate::dtype::{Float, INFINITY_BITS, magnitude_bits};
use crate::error::Result;
use crate::kernel::{Job, Kept, TILE, Widest};
use crate::timeline::Timeline;

/// A device that runs kernels.
pub trait Backend: Sync {
    /// The device's name, for reports.
    fn name(&self) -> String;
    /// A lane for the worker thread of this number, which records its work on the timeline.
    ///
    /// # Errors
    /// The device has no room for it, or fails.
    fn lane<'a>(&'a self, worker: usize, timeline: &'a Timeline) -> Result<Box<dyn Lane + 'a>>;
    /// Lets go of what is still held of a tensor. Whether parts that were brought are among it: they are the caller's.
    fn forget(&self, tensor: usize) -> bool;
    /// Runs what kernels are measured against, on tensors of so many 2-byte elements, and tells how long it took.
    ///
    /// # Errors
    /// The device fails.
    fn yardstick(&self, yardstick: Yardstick, elements: u64) -> Result<Duration>;
}

/// What kernels are measured against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Yardstick {
    /// The fastest copy there is, of one tensor.
    Copy,
    /// A plain kernel that reads some tensors and, if `writes`, writes one.
    Stream {
        /// How many are read.
        inputs: usize,
        /// Whether an output is written.
        writes: bool,
    },
}

impl Yardstick {
    /// Bytes read and written.
    pub fn bytes(self, elements: u64) -> u64 {
        let tensors = match self {
            Self::Copy => 2,
            Self::Stream { inputs, writes } => inputs + usize::from(writes),
        };
        tensors as u64 * 2 * elements
    }
}

/// How the work is cut and spread. None of it changes a byte of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Worker threads, each with a lane.
    pub threads: usize,
    /// Tiles in a chunk, a power of two.
    pub chunk_tiles: u64,
    /// Bytes of inputs that the device may hold between sweeps.
    pub hold_bytes: u64,
    /// The launches that lanes must have room for.
    pub widest: Widest,
    /// Whether kernels run. Without them the same bytes are read, copied and written, and mean nothing: the floor that a
    /// merge is measured against.
    pub kernels: bool,
}

impl Limits {
    /// Of `hold_bytes`, what parts that were brought may still take after their tensor is done: they are let go of together.
    pub fn behind_bytes(&self) -> u64 {
        const MOST: u64 = 64 << 20;
        (self.hold_bytes / 8).min(MOST)
    }
}

/// One worker's way through the device.
pub trait Lane {
    /// How many launches may be under way at once.
    fn depth(&self) -> usize;
    /// Reads the inputs of a launch, through `read`, and starts it.
    ///
    /// # Errors
    /// Those of `read`, and of the device.
    fn submit(&mut self, launch: Launch, read: &mut dyn Read) -> Result<()>;
    /// Waits for the oldest launch and hands its results to `take`, span by span.
    ///
    /// # Errors
    /// Those of `take`, and of the device.
    fn collect(&mut self, take: &mut dyn FnMut(usize, Output<'_>) -> Result<()>) -> Result<()>;
}

/// Where a lane gets the elements of a launch's spans, in each of the launch's inputs.
pub trait Read {
    /// Fills a slot with a span's elements in one input.
    ///
    /// # Errors
    /// They cannot be read.
    fn read(&mut self, span: usize, input: usize, into: &mut [u8]) -> Result<()>;
    /// Brings the same to where [`Read::mapped`] finds it from now on, without a copy; false where it has to be read.
    ///
    /// # Errors
    /// They cannot be read.
    fn bring(&mut self, _span: usize, _input: usize) -> Result<bool> {
        Ok(false)
    }
    /// What was brought.
    fn mapped(&self, _span: usize, _input: usize) -> &[u8] {
        &[]
    }
}

impl<F: FnMut(usize, usize, &mut [u8]) -> Result<()>> Read for F {
    fn read(&mut self, span: usize, input: usize, into: &mut [u8]) -> Result<()> {
        self(span, input, into)
    }
}

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
    /// Of kernels that count: each span has counters for every so many of its tiles, and for what is left of them.
    pub record_tiles: u64,
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
    /// How many records of so many tiles it has.
    pub fn records(&self, record_tiles: u64) -> u64 {
        (self.tiles.end - self.tiles.start).div_ceil(record_tiles)
    }

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
    /// What combining kernels count, which see every element once.
    pub tally: Tally,
    /// Whether the CPU computed it, because the device promises nothing about values of its inputs.
    pub redone: bool,
}

/// What a combining kernel counts beside its results.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Odd values met.
    pub odd: OddValues,
    /// How much was kept of each model that is trimmed.
    pub kept: Kept,
}

/// A kernel's result for one span; see [`crate::kernel::Result`].
#[derive(Debug)]
pub enum SpanResult<'a> {
    /// The merged elements, encoded.
    Values(&'a [u8]),
    /// Sums, tile after tile.
    Sums(&'a [f32]),
    /// The span's counters, record after record.
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
    pub fn count(&mut self, values: &[f32]) {
        self.nan += values.iter().filter(|v| v.is_nan()).count() as u64;
        self.infinite += values.iter().filter(|v| v.is_infinite()).count() as u64;
    }

    /// Counts the results of a tile that overflowed: those that become infinite when they are stored and, if no inputs of
    /// the tile are counted here as odd, those that are not finite.
    pub fn count_overflow(&mut self, results: &[f32], finite_max: u32) {
        let inputs_are_finite = self.nan + self.infinite == 0;
        let overflowed = |value: &&f32| match magnitude_bits(**value) {
            INFINITY_BITS.. => inputs_are_finite,
            magnitude => magnitude > finite_max,
        };
        self.overflowed += results.iter().filter(overflowed).count() as u64;
    }
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.odd += other.odd;
        self.kept.iter_mut().zip(other.kept).for_each(|(total, kept)| *total += kept);
    }
}

impl std::ops::AddAssign for OddValues {
    fn add_assign(&mut self, other: Self) {
        self.nan += other.nan;
        self.infinite += other.infinite;
        self.overflowed += other.overflowed;
    }
}

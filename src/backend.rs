//! What a device must be able to do: run kernels over spans of tiles. It knows no method and no file.
//!
//! A worker owns a [`Lane`] and puts launches through it: `submit` has the inputs read straight into the
//! device's slots and starts the kernel, `collect` waits for the oldest launch and shows its results. On the
//! CPU a lane is one launch deep and computes in `submit`; a GPU overlaps copies and kernels in between.
//! Inputs that will be used again may be held by the device, within its budget; a lane reads only
//! what is not held, so whether something was held changes the speed and nothing else.

pub mod cpu;
mod cuda;
pub mod device;
pub mod devices;
mod gpu;
mod held;
pub mod libraries;
pub mod memory;
pub mod spans;
mod table;
pub mod wgpu;

pub use cuda::algebra;

use std::ops::Range;
use std::sync::Arc;

use crate::dtype::{Float, INFINITY_BITS, magnitude_bits};
use crate::error::Result;
use crate::kernel::{Job, Kept, Kernel, TILE, Widest};
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
    /// Frees what is held of an input that will not be used again.
    fn forget(&self, input: usize);
    /// Compiles what launches like these run, so that no lane has to wait for it; calls `slow` if that takes a while. Other
    /// launches may come, and wait. A device that compiles nothing, or only what is launched, leaves this out.
    ///
    /// # Errors
    /// Kind `Device`: a kernel cannot be compiled.
    fn prepare(&self, _launches: &[LaunchKind], _slow: &(dyn Fn() + Sync)) -> Result<()> {
        Ok(())
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
    /// Bytes that inputs which are made for open tensors may keep.
    pub kept_bytes: u64,
    /// The launches that lanes must have room for.
    pub widest: Widest,
}

/// One worker's way through the device.
pub trait Lane {
    /// How many launches may be under way at once.
    fn depth(&self) -> usize;
    /// Reads the inputs of a launch, through `read`, and starts it.
    ///
    /// # Errors
    /// Those of `read`, and of the device.
    fn submit(&mut self, launch: Launch, read: &mut dyn ReadInputs) -> Result<()>;
    /// Waits for the oldest launch and hands its results to `take`, span by span.
    ///
    /// # Errors
    /// Those of `take`, and of the device.
    fn collect(&mut self, take: &mut dyn FnMut(usize, Output<'_>) -> Result<()>) -> Result<()>;
}

/// Where a lane gets the elements of a launch's spans, in each of the launch's inputs.
pub trait ReadInputs {
    /// Fills a slot with a span's elements in one input.
    ///
    /// # Errors
    /// They cannot be read.
    fn read(&mut self, span: usize, input: usize, into: &mut [u8]) -> Result<()>;
    /// Whether the same can be brought to where [`ReadInputs::mapped`] finds it, without a copy.
    ///
    /// # Errors
    /// The input cannot be read.
    fn is_mapped(&self, _span: usize, _input: usize) -> Result<bool> {
        Ok(false)
    }
    /// Brings it there; false where it has to be read after all.
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

impl<F: FnMut(usize, usize, &mut [u8]) -> Result<()>> ReadInputs for F {
    fn read(&mut self, span: usize, input: usize, into: &mut [u8]) -> Result<()> {
        self(span, input, into)
    }
}

/// Work for a device: jobs of one kernel, over spans of their tensors.
#[derive(Debug, Clone)]
pub struct Launch {
    /// The jobs, all of one kernel and with the same number of inputs.
    pub jobs: Vec<Arc<Job>>,
    /// The parts of tensors to work on.
    pub spans: Vec<Span>,
    /// The element types of the inputs, in the jobs' order.
    pub floats: Vec<Float>,
    /// The element type that merged values are stored in.
    pub output: Float,
    /// Whether inputs that are read, and will be used again, are held where there is room.
    pub hold: bool,
    /// Of kernels that count: each span has counters for every so many of its tiles, and for what is left of them.
    pub record_tiles: u64,
}

/// What there is to know of a launch before its numbers are: it decides what is compiled for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaunchKind {
    /// The kernel.
    pub kernel: &'static Kernel,
    /// The number of models that decides which entry of the kernel runs; 0 for the one that takes any.
    pub models: usize,
    /// The element types of the inputs, in the jobs' order.
    pub floats: Vec<Float>,
}

impl LaunchKind {
    /// A launch of such jobs over such inputs.
    pub fn of(job: &Job, floats: Vec<Float>) -> Self {
        Self { kernel: job.kernel(), models: job.models(), floats }
    }
}

/// A part of one segment of a tensor: whole tiles, but for the segment's end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// Which job of the launch.
    pub job: usize,
    /// The inputs, in the job's order.
    pub inputs: Vec<SpanInput>,
    /// Where the segment's elements are.
    pub segment: Segment,
    /// Which tiles of the segment.
    pub tiles: Range<u64>,
    /// How many elements those tiles have.
    pub elements: usize,
}

/// An input of a span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpanInput {
    /// Its number among all inputs of the merge; what is held is known by it.
    pub input: usize,
    /// Whether these elements will be used again after this launch.
    pub again: bool,
}

/// Elements of a tensor that are summed up by themselves: all of it, a row, or a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Segment {
    /// The flat index of the first one.
    pub first: u64,
    /// From one to the next: 1, or the length of a row.
    pub stride: u64,
}

impl Segment {
    /// A whole tensor.
    pub const WHOLE: Self = Self { first: 0, stride: 1 };
}

impl Span {
    /// How many records of so many tiles it has.
    pub fn records(&self, record_tiles: u64) -> u64 {
        (self.tiles.end - self.tiles.start).div_ceil(record_tiles)
    }

    /// The flat index of the first element.
    pub fn first_element(&self) -> u64 {
        self.segment.first + self.tiles.start * TILE as u64 * self.segment.stride
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

/// A kernel's result for one span; see [`crate::kernel::Outcome`].
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

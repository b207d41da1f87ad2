//! How fast a machine is. Here are the kernels by themselves, which `mergeforge bench kernels` times; [`merge`] runs whole
//! merges beside the [`floor`] of the machine.
//!
//! Inputs lie on the device as they do between the sweeps of a merge, so what is timed is the kernel and nothing else: by
//! the device's own clock, where it has one. Each time stands beside two yardsticks of the same run, both by the kernel
//! `stream`, which has next to no arithmetic: tensors copied, and as many inputs read and outputs written. The data is like that of real
//! models. All tensors are copied, one after the other: of a single one, the device's cache would keep a good part from one run to
//! the next, more than of the inputs of a merge.

pub mod floor;
pub mod merge;
pub mod page;
pub mod shapes;
pub mod synth;
pub mod writes;

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use self::synth::values::{base_values, tuned_values};
use crate::backend::device::Device;
use crate::backend::{Backend, Lane, Launch, Limits, Segment, Span, SpanInput};
use crate::dtype::{Float, decode};
use crate::error::{Error, Result};
use crate::kernel::thinning::BENCH_DENSITY;
use crate::kernel::{Job, KERNELS, Outcome, RECORDS_MAX, TILE, WORDS_TILES_MAX, Widest, key, stream, tiles};
use crate::threads;
use crate::timeline::{Stage, Timeline};

/// The base and four models.
const INPUTS: usize = 5;

/// Fills so much memory of the page cache, or of a file system in memory, and frees it again, by writing `file` and removing it:
/// what is written next does not wait for pages that a virtual machine has to ask its host for. `stop` is asked now and then.
///
/// # Errors
/// Kind `Output`: it cannot be written. Kind `Interrupted`.
fn at_hand(file: &Path, bytes: u64, stop: &dyn Fn() -> bool) -> Result<()> {
    const PIECE_BYTES: u64 = 1 << 20;
    let piece = vec![1; PIECE_BYTES as usize];
    let failed = |cause: io::Error| Error::writing(file, &cause);
    let write = || {
        let mut touched = fs::File::create(file).map_err(failed)?;
        for _ in 0..bytes.div_ceil(PIECE_BYTES) {
            if stop() {
                return Err(Error::interrupted());
            }
            touched.write_all(&piece).map_err(failed)?;
        }
        Ok(())
    };
    let written = write();
    // What was not made cannot be removed; a failure to make it is reported.
    let _ = fs::remove_file(file);
    written
}

/// What a bench says that was to have so many threads and got fewer.
fn too_few_threads(working: usize, threads: usize) -> Error {
    Error::device(format!("only {working} of {threads} threads can be started"))
        .hint("use fewer --threads, or allow more of them (`ulimit -u`, `ulimit -v`)")
}

/// What was measured on a device.
#[derive(Debug)]
pub struct KernelTimes {
    /// Bytes a second of a plain copy, each counted once as read and once as written.
    pub copy_rate: f64,
    /// One row per kernel and number of inputs.
    pub rows: Vec<KernelTime>,
}

/// One kernel's time.
#[derive(Debug, Clone, PartialEq)]
pub struct KernelTime {
    /// The kernel.
    pub kernel: &'static str,
    /// What it did, in a few words.
    pub what: &'static str,
    /// Input tensors.
    pub inputs: usize,
    /// Elements of each.
    pub elements: u64,
    /// The median of the runs.
    pub time: Duration,
    /// Bytes of the device's memory that a run read and wrote, as the launch counts them.
    pub bytes: u64,
    /// Bytes a second of the stream with as many inputs, and an output where the kernel writes one.
    pub stream_rate: f64,
}

impl KernelTime {
    /// Bytes a second.
    pub fn rate(&self) -> f64 {
        self.bytes as f64 / self.time.as_secs_f64()
    }

    /// Bytes moved per element of the output.
    pub fn bytes_per_parameter(&self) -> f64 {
        self.bytes as f64 / self.elements as f64
    }
}

/// Times every kernel on tensors of so many bfloat16 elements (rounded up to a power of two), `repeat` times each.
///
/// # Errors
/// Kind `Device`: the device fails, or has not the memory.
pub fn kernels(device: &Device, elements: u64, repeat: usize) -> Result<KernelTimes> {
    let mut elements = elements.max(WORDS_TILES_MAX * TILE as u64).next_power_of_two();
    let widest = |elements: u64| Widest {
        inputs: INPUTS,
        input_bytes: 2 * INPUTS,
        output_bytes: 2,
        copied_bytes: 0,
        wide_bytes: 0,
        measured: INPUTS,
        questions: 0,
        spans: 1,
        row_elements: 0,
        columns: 4096,
        segment_bytes: 0,
        kept_bytes: 0,
        tiles: tiles(elements),
        held_bytes: elements * (2 * INPUTS) as u64,
    };
    let binding = |elements| (device.family.lane_bytes)(&widest(elements), tiles(elements)).binding;
    while binding(elements) > device.binding_bytes && elements > WORDS_TILES_MAX * TILE as u64 {
        elements /= 2;
    }
    let (widest, bytes) = (widest(elements), elements * (2 * INPUTS) as u64);
    let chunk_tiles = (device.family.bench_tiles)(tiles(elements));
    let limits = Limits { threads: 1, chunk_tiles, hold_bytes: 2 * bytes, kept_bytes: 0, widest };
    let backend = device.open(&limits)?;
    let (timeline, tensors) = (Timeline::keeping(), tensors(elements as usize));
    KernelBench { backend: &*backend, timeline, tensors, elements, chunk_tiles, repeat }.run()
}

/// What every job of [`jobs`] finds its inputs in: the bfloat16 weights of a base and of the models tuned from it, as bits.
pub fn tensors(elements: usize) -> Vec<Vec<u16>> {
    let base = base_values(elements, 1);
    let bits = |values: &[f32]| values.iter().map(|value| (value.to_bits() >> 16) as u16).collect();
    let (tuned, next) = ([const { OnceLock::new() }; INPUTS - 1], AtomicUsize::new(0));
    threads::share(tuned.len(), |_| {
        while let Some((model, seed)) = tuned.iter().zip(2..).nth(next.fetch_add(1, Ordering::Relaxed)) {
            model.get_or_init(|| bits(&tuned_values(&base, seed)));
        }
    });
    let tuned = tuned.into_iter().map(|model| model.into_inner().expect("every model was made"));
    std::iter::once(bits(&base)).chain(tuned).collect()
}

struct KernelBench<'a> {
    backend: &'a dyn Backend,
    timeline: Timeline,
    tensors: Vec<Vec<u16>>,
    elements: u64,
    chunk_tiles: u64,
    repeat: usize,
}

impl KernelBench<'_> {
    fn run(&self) -> Result<KernelTimes> {
        let mut lane = self.backend.lane(0, &self.timeline)?;
        // Brings all inputs to the device, where they stay.
        self.once(&mut *lane, &yardstick(INPUTS, true), 0, true)?;
        let copy_rate = self.copy(&mut *lane)?;
        let mut rows = Vec::new();
        for (what, job) in jobs(&self.tensors) {
            let (time, bytes) = self.median(&mut *lane, &job)?;
            let (inputs, writes) = (job.inputs(), job.outcome() == Outcome::Values);
            let stream_rate = self.yardstick(&mut *lane, inputs, writes)?;
            let (kernel, elements) = (job.kernel().name, self.elements_of(&job));
            rows.push(KernelTime { kernel, what, inputs, elements, time, bytes, stream_rate });
        }
        Ok(KernelTimes { copy_rate, rows })
    }

    /// Bytes a second of copies of all tensors, one after the other.
    fn copy(&self, lane: &mut dyn Lane) -> Result<f64> {
        let job = yardstick(1, true);
        let mut run =
            || (0..INPUTS).map(|input| Ok(self.once(lane, &job, input, false)?.0)).sum::<Result<Duration>>();
        let mut runs = (0..self.repeat.max(1)).map(|_| run()).collect::<Result<Vec<_>>>()?;
        runs.sort_unstable();
        let bytes = INPUTS as u64 * 2 * 2 * self.elements;
        Ok(bytes as f64 / runs[runs.len() / 2].as_secs_f64())
    }

    /// Bytes a second of a kernel that reads some tensors and, if `writes`, writes one.
    fn yardstick(&self, lane: &mut dyn Lane, inputs: usize, writes: bool) -> Result<f64> {
        let bytes = (inputs + usize::from(writes)) as u64 * 2 * self.elements;
        Ok(bytes as f64 / self.median(lane, &yardstick(inputs, writes))?.0.as_secs_f64())
    }

    /// The median time of several runs, and the bytes that each moved.
    fn median(&self, lane: &mut dyn Lane, job: &Job) -> Result<(Duration, u64)> {
        let mut runs =
            (0..self.repeat.max(1)).map(|_| self.once(lane, job, 0, false)).collect::<Result<Vec<_>>>()?;
        runs.sort_unstable();
        Ok(runs[runs.len() / 2])
    }

    /// Kernels that keep words run over small parts only.
    fn elements_of(&self, job: &Job) -> u64 {
        match job.outcome() {
            Outcome::Words { .. } => WORDS_TILES_MAX * TILE as u64,
            _ => self.elements,
        }
    }

    /// Runs a job over the whole tensors, from this one on: the kernel's time, and the bytes that it moved.
    fn once(&self, lane: &mut dyn Lane, job: &Job, from: usize, hold: bool) -> Result<(Duration, u64)> {
        let all = tiles(self.elements_of(job));
        let job = Arc::new(job.clone());
        let before = self.timeline.records(Stage::Compute).len();
        for first in (0..all).step_by(self.chunk_tiles as usize) {
            let chunk = first..all.min(first + self.chunk_tiles);
            let start = first as usize * TILE;
            let elements = (chunk.end - chunk.start) as usize * TILE;
            let inputs = (from..from + job.inputs()).map(|input| SpanInput { input, again: true }).collect();
            let span = Span { job: 0, inputs, segment: Segment::WHOLE, tiles: chunk, elements };
            let launch = Launch {
                jobs: vec![Arc::clone(&job)],
                spans: vec![span],
                floats: vec![Float::BF16; job.inputs()],
                output: Float::BF16,
                hold,
                record_tiles: all.div_ceil(RECORDS_MAX),
            };
            let mut read = |_: usize, input: usize, into: &mut [u8]| {
                let elements = &self.tensors[from + input][start..start + into.len() / 2];
                into.copy_from_slice(bytemuck::cast_slice(elements));
                Ok(())
            };
            lane.submit(launch, &mut read)?;
            lane.collect(&mut |_, _| Ok(()))?;
        }
        let records = self.timeline.records(Stage::Compute);
        let run = records[before..].iter();
        Ok((run.clone().map(|run| run.busy).sum(), run.map(|run| run.bytes).sum()))
    }
}

/// The kernel that others are measured against.
fn yardstick(inputs: usize, writes: bool) -> Job {
    stream::Job { inputs, touched: inputs, writes }.into()
}

/// What is timed: every kernel, with the numbers of models that it is made for. Thresholds are those of these tensors, of
/// which there are as many as [`tensors`] makes.
pub fn jobs(tensors: &[Vec<u16>]) -> Vec<(&'static str, Job)> {
    let keys: Vec<u32> = tensors[1..].iter().map(|model| threshold(&tensors[0], model)).collect();
    KERNELS.iter().flat_map(|kernel| (kernel.benches)(&keys)).collect()
}

/// A model's key at the share that is kept, from a sample.
fn threshold(base: &[u16], tuned: &[u16]) -> u32 {
    const SAMPLE: usize = 1 << 16;
    let values = |tensor: &[u16]| {
        let mut values = vec![0.0; SAMPLE];
        decode(Float::BF16, bytemuck::cast_slice(&tensor[..SAMPLE]), &mut values);
        values
    };
    let (base, tuned) = (values(base), values(tuned));
    let mut keys: Vec<u32> = tuned.iter().zip(&base).map(|(x, base)| key(x - base)).collect();
    keys.sort_unstable();
    keys[((1.0 - BENCH_DENSITY) * SAMPLE as f64) as usize]
}

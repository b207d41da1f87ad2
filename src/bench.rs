//! How fast a machine is. Here are the kernels by themselves, which `mergeforge bench kernels` times; [`merge`] runs whole
//! merges beside the [`floor`] of the machine.
//!
//! Inputs lie on the device as they do between the sweeps of a merge, so what is timed is the kernel and nothing else: by
//! the device's own clock, where it has one. Each time stands beside two yardsticks of the same run: a plain copy, and a
//! stream that reads as many inputs and writes as many outputs with next to no arithmetic. The data is like that of real
//! models and much larger than any cache, so every run starts cold.

pub mod floor;
pub mod merge;
pub mod page;
pub mod shapes;
pub mod synth;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::backend::device::{Device, Family};
use crate::backend::{Backend, Hold, Lane, Launch, Limits, Span, Yardstick};
use crate::check::data::{base_weights, tuned_weights};
use crate::dtype::{Float, decode};
use crate::error::Result;
use crate::kernel::consensus::{self, Drop, Keep, Model, Trim};
use crate::kernel::{Job, RECORDS_MAX, Result as Shape, TILE, WORDS_TILES_MAX, Widest, key, tiles};
use crate::kernel::{gram, keys, levels, magnitudes, masked_sums, weighted_sum};
use crate::threads;
use crate::timeline::{Stage, Timeline};

/// The base and four models.
const INPUTS: usize = 5;

/// The share of a task vector that is kept.
const DENSITY: f64 = 0.3;

/// What was measured on a device.
#[derive(Debug)]
pub struct Kernels {
    /// Bytes a second of a plain copy, each counted once as read and once as written.
    pub copy_rate: f64,
    /// One row per kernel and number of inputs.
    pub rows: Vec<Row>,
}

/// One kernel's time.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
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

impl Row {
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
pub fn kernels(device: &Device, elements: u64, repeat: usize) -> Result<Kernels> {
    let mut elements = elements.max(WORDS_TILES_MAX * TILE as u64).next_power_of_two();
    let widest = |elements: u64| Widest {
        inputs: INPUTS,
        input_bytes: 2 * INPUTS,
        output_bytes: 2,
        copied_bytes: 0,
        measured: INPUTS,
        tiles: tiles(elements),
        held_bytes: elements * (2 * INPUTS) as u64,
    };
    let binding = |elements| device.family.lane_bytes(&widest(elements), tiles(elements)).binding;
    while binding(elements) > device.binding_bytes && elements > WORDS_TILES_MAX * TILE as u64 {
        elements /= 2;
    }
    let (widest, bytes) = (widest(elements), elements * (2 * INPUTS) as u64);
    // A GPU works on all of it at once; the CPU as in a merge, whose results stay in its cache until they are written.
    let chunk_tiles = match device.family {
        Family::Cpu => device.family.chunk_tiles(),
        _ => tiles(elements),
    };
    let limits = Limits { threads: 1, chunk_tiles, hold_bytes: 2 * bytes, widest, kernels: true };
    let backend = device.open(&limits)?;
    let (timeline, tensors) = (Timeline::keeping(), tensors(elements as usize));
    Bench { backend: &*backend, timeline, tensors, elements, chunk_tiles, repeat }.run()
}

/// What every job of [`jobs`] finds its inputs in: the bfloat16 weights of a base and of the models tuned from it, as bits.
pub fn tensors(elements: usize) -> Vec<Vec<u16>> {
    let base = base_weights(elements, 1);
    let (tuned, next) = ([const { OnceLock::new() }; INPUTS - 1], AtomicUsize::new(0));
    threads::share(tuned.len(), |_| {
        while let Some((model, seed)) = tuned.iter().zip(2..).nth(next.fetch_add(1, Ordering::Relaxed)) {
            model.get_or_init(|| tuned_weights(&base, seed));
        }
    });
    let tuned = tuned.into_iter().map(|model| model.into_inner().expect("every model was made"));
    std::iter::once(base).chain(tuned).collect()
}

struct Bench<'a> {
    backend: &'a dyn Backend,
    timeline: Timeline,
    tensors: Vec<Vec<u16>>,
    elements: u64,
    chunk_tiles: u64,
    repeat: usize,
}

impl Bench<'_> {
    fn run(&self) -> Result<Kernels> {
        // Brings all inputs to the device, where they stay.
        let mut lane = self.backend.lane(0, &self.timeline)?;
        let all = Job::WeightedSum(weighted_sum::Job { anchored: false, coefficients: vec![0.2; INPUTS] });
        self.once(&mut *lane, &all, Hold::Keep)?;
        let copy = self.yardstick(Yardstick::Copy)?;
        let mut rows = Vec::new();
        for (what, job) in jobs(&self.tensors) {
            let mut times = Vec::new();
            let mut bytes = 0;
            for _ in 0..self.repeat.max(1) {
                let (time, moved) = self.once(&mut *lane, &job, Hold::Peek)?;
                times.push(time);
                bytes = moved;
            }
            let inputs = job.inputs();
            let writes = job.result() == Shape::Values;
            let stream_rate = self.yardstick(Yardstick::Stream { inputs, writes })?;
            let (kernel, elements, time) = (job.kernel(), self.elements_of(&job), median(times));
            rows.push(Row { kernel, what, inputs, elements, time, bytes, stream_rate });
        }
        Ok(Kernels { copy_rate: copy, rows })
    }

    /// Bytes a second.
    fn yardstick(&self, yardstick: Yardstick) -> Result<f64> {
        let run = |_| self.backend.yardstick(yardstick, self.elements);
        let times = (0..self.repeat.max(1)).map(run).collect::<Result<Vec<_>>>()?;
        Ok(yardstick.bytes(self.elements) as f64 / median(times).as_secs_f64())
    }

    /// Kernels that keep words run over small pieces only.
    fn elements_of(&self, job: &Job) -> u64 {
        match job.result() {
            Shape::Words { .. } => WORDS_TILES_MAX * TILE as u64,
            _ => self.elements,
        }
    }

    /// Runs a job over the whole tensors: the kernel's time, and the bytes that it moved.
    fn once(&self, lane: &mut dyn Lane, job: &Job, hold: Hold) -> Result<(Duration, u64)> {
        let all = tiles(self.elements_of(job));
        let job = Arc::new(job.clone());
        let before = self.timeline.records(Stage::Compute).len();
        for first in (0..all).step_by(self.chunk_tiles as usize) {
            let chunk = first..all.min(first + self.chunk_tiles);
            let start = first as usize * TILE;
            let span =
                Span { job: 0, tensor: 0, elements: (chunk.end - chunk.start) as usize * TILE, tiles: chunk };
            let launch = Launch {
                jobs: vec![Arc::clone(&job)],
                spans: vec![span],
                reads: (0..job.inputs()).collect(),
                floats: vec![Float::BF16; job.inputs()],
                output: Float::BF16,
                hold,
                record_tiles: all.div_ceil(RECORDS_MAX),
            };
            let mut read = |_: usize, input: usize, into: &mut [u8]| {
                let elements = &self.tensors[input][start..start + into.len() / 2];
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

/// What is timed: every kernel, with the numbers of models that it is made for. Thresholds are those of these tensors, of
/// which there are as many as [`tensors`] makes.
pub fn jobs(tensors: &[Vec<u16>]) -> Vec<(&'static str, Job)> {
    let thresholds: Vec<u32> = tensors[1..].iter().map(|model| threshold(&tensors[0], model)).collect();
    let trim = |i: usize| Keep::Trim(Trim { threshold: thresholds[i], cut_tile: 7, cut_lane: 11 });
    let drop = |i: usize| Keep::Drop(Drop { keep: (DENSITY * 4_294_967_296.0) as u32, key: [3, i as u32] });
    let consensus = |models: usize, keep: &dyn Fn(usize) -> Keep| {
        let models: Vec<Model> = (0..models).map(|i| Model { coefficient: 0.6, keep: keep(i) }).collect();
        let scale = (0..1u32 << models.len()).map(|set| 1.0 / f64::from(set.count_ones().max(1)) as f32);
        Job::Consensus(consensus::Job { scale: scale.collect(), models })
    };
    // The threshold and three keys on each side of it, in units of a bfloat16 delta.
    let around = |i: usize| (0..7).map(|step| thresholds[i] + (step << 16)).collect::<Vec<u32>>();
    let levels = |models: usize| Job::Levels(levels::Job { models: (0..models).map(around).collect() });
    let bracket = |i: usize| magnitudes::Bracket { lowest: thresholds[i] >> 12 << 12, shift: 12 };
    let magnitudes =
        |models: usize| Job::Magnitudes(magnitudes::Job { models: (0..models).map(bracket).collect() });
    let weighted = |inputs: usize, anchored| {
        Job::WeightedSum(weighted_sum::Job { anchored, coefficients: vec![0.3; inputs] })
    };
    vec![
        ("linear, 2 models", weighted(2, true)),
        ("linear, 3 models", weighted(3, true)),
        ("task arithmetic, base + 4", weighted(5, true)),
        ("ties, base + 1", consensus(1, &trim)),
        ("ties, base + 2", consensus(2, &trim)),
        ("ties, base + 4", consensus(4, &trim)),
        ("dare_ties, base + 2", consensus(2, &drop)),
        ("slerp's angle", Job::Gram(gram::Job { inputs: 2 })),
        ("selection, base + 2", levels(2)),
        ("selection, base + 4", levels(4)),
        ("selection without ties, base + 2", magnitudes(2)),
        ("selection without ties, base + 4", magnitudes(4)),
        ("dare's norms, base + 2", Job::MaskedSums(masked_sums::Job { models: (0..2).map(drop).collect() })),
        ("keys of a sample, base + 2", Job::Keys(keys::Job { models: 2 })),
    ]
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
    keys[((1.0 - DENSITY) * SAMPLE as f64) as usize]
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

//! Every kernel on every device against its plain twin, bit for bit.
//!
//! The twin is the kernel's own tile function, compiled for the oldest processor that the build targets; a device
//! is whatever [`devices`] lists. The CPU device is compiled for newer instruction sets as well, which must not
//! change a bit. Sizes are ragged, types mixed, values tied and odd.

use std::sync::Arc;

use mergeforge::backend::cpu::Cpu;
use mergeforge::backend::{Backend, Hold, Launch, OddValues, Span, SpanResult};
use mergeforge::dtype::{Float, decode, encode};
use mergeforge::kernel::consensus::{self, Drop, Keep, Model, Trim};
use mergeforge::kernel::magnitudes::Bracket;
use mergeforge::kernel::{Inputs, Job, Result as Shape, TILE, Target, VOTERS_MAX};
use mergeforge::kernel::{gram, keys, levels, magnitudes, masked_sums, tiles, weighted_sum};

use crate::models::Random;

fn devices() -> Vec<Box<dyn Backend>> {
    vec![Box::new(Cpu::new(0)), Box::new(Cpu::new(64 << 20))]
}

const FLOATS: [Float; 3] = [Float::F32, Float::F16, Float::BF16];

/// One tensor of a launch: its inputs, encoded.
struct Tensor {
    elements: usize,
    inputs: Vec<Vec<u8>>,
}

impl Tensor {
    /// Values with ties, zeros, subnormals and, now and then, NaN and infinities.
    fn new(elements: usize, floats: &[Float], random: &mut Random) -> Self {
        let mut value = || match random.next() % 64 {
            0 => 0.0,
            1 => -0.0,
            2 => f32::from_bits(random.next() as u32 % 1000),
            3 if random.next().is_multiple_of(50) => f32::NAN,
            4 if random.next().is_multiple_of(50) => f32::NEG_INFINITY,
            5..20 => 0.25,
            _ => random.normal() as f32,
        };
        let mut input = |float: &Float| {
            let values: Vec<f32> = (0..elements).map(|_| value()).collect();
            let mut bytes = vec![0; elements * float.bytes()];
            encode(*float, &values, &mut bytes);
            bytes
        };
        Self { elements, inputs: floats.iter().map(&mut input).collect() }
    }
}

/// Every bit that a span's result has.
#[derive(Debug, PartialEq)]
struct Bits {
    bytes: Vec<u8>,
    odd: OddValues,
}

fn of_device(device: &dyn Backend, launch: &Launch, tensors: &[Tensor]) -> Vec<Bits> {
    let mut lane = device.lane();
    let spans = launch.spans.clone();
    let floats = launch.floats.clone();
    let mut results = Vec::new();
    let mut read = |span: usize, input: usize, into: &mut [u8]| {
        let span: &Span = &spans[span];
        let start = span.first_element() as usize * floats[input].bytes();
        into.copy_from_slice(&tensors[span.tensor].inputs[input][start..start + into.len()]);
        Ok(())
    };
    lane.submit(launch.clone(), &mut read).unwrap();
    let mut take = |span: usize, output: mergeforge::backend::Output<'_>| {
        assert_eq!(span, results.len(), "spans come in order");
        let bytes = match output.result {
            SpanResult::Values(bytes) => bytes.to_vec(),
            SpanResult::Sums(sums) => sums.iter().flat_map(|sum| canonical(*sum).to_le_bytes()).collect(),
            SpanResult::Counts(words) | SpanResult::Words(words) => {
                words.iter().flat_map(|w| w.to_le_bytes()).collect()
            }
        };
        results.push(Bits { bytes, odd: output.odd });
        Ok(())
    };
    lane.collect(&mut take).unwrap();
    results
}

/// NaN differ between processors in bits that nothing depends on.
fn canonical(sum: f32) -> u32 {
    if sum.is_nan() { 0x7fc0_0000 } else { sum.to_bits() }
}

fn of_twin(launch: &Launch, tensors: &[Tensor]) -> Vec<Bits> {
    launch.spans.iter().map(|span| of_twin_span(launch, span, &tensors[span.tensor])).collect()
}

fn of_twin_span(launch: &Launch, span: &Span, tensor: &Tensor) -> Bits {
    let job = &launch.jobs[span.job];
    let mut bits = Bits { bytes: Vec::new(), odd: OddValues::default() };
    let mut counters = match job.result() {
        Shape::Counts { words } => vec![0u32; words],
        _ => Vec::new(),
    };
    for tile in span.tiles.clone() {
        let first = tile as usize * TILE;
        let len = TILE.min(tensor.elements - first);
        let mut finite = true;
        let mut decoded = vec![f32::NAN; launch.floats.len() * TILE];
        for ((float, bytes), room) in launch.floats.iter().zip(&tensor.inputs).zip(decoded.chunks_mut(TILE)) {
            decode(*float, &bytes[first * float.bytes()..][..len * float.bytes()], &mut room[..len]);
            finite &= room[..len].iter().all(|v| v.is_finite());
            if job.result() == Shape::Values {
                bits.odd.nan += room[..len].iter().filter(|v| v.is_nan()).count() as u64;
                bits.odd.infinite += room[..len].iter().filter(|v| v.is_infinite()).count() as u64;
            }
        }
        let inputs = Inputs { values: &decoded, len };
        let mut scratch = Vec::new();
        match job.result() {
            Shape::Values => {
                let mut merged = vec![0.0; len];
                job.run_tile(tile, &inputs, &mut scratch, Target::Values(&mut merged));
                if finite {
                    bits.odd.overflowed += merged.iter().filter(|v| !v.is_finite()).count() as u64;
                }
                let start = bits.bytes.len();
                bits.bytes.resize(start + len * launch.output.bytes(), 0);
                bits.odd.overflowed += encode(launch.output, &merged, &mut bits.bytes[start..]);
            }
            Shape::Sums { words } => {
                let mut sums = vec![0.0; words];
                job.run_tile(tile, &inputs, &mut scratch, Target::Sums(&mut sums));
                bits.bytes.extend(sums.iter().flat_map(|sum| canonical(*sum).to_le_bytes()));
            }
            Shape::Counts { .. } => job.run_tile(tile, &inputs, &mut scratch, Target::Words(&mut counters)),
            Shape::Words { words } => {
                let mut own = vec![0; words * len];
                job.run_tile(tile, &inputs, &mut scratch, Target::Words(&mut own));
                bits.bytes.extend(own.iter().flat_map(|word| word.to_le_bytes()));
            }
        }
    }
    bits.bytes.extend(counters.iter().flat_map(|count| count.to_le_bytes()));
    bits
}

/// A job of every kernel for a number of models.
fn jobs(models: usize, random: &mut Random) -> Vec<Job> {
    let mut number = |low: f64, high: f64| (low + (high - low) * random.unit()) as f32;
    let coefficients: Vec<f32> = (0..=models).map(|_| number(-1.0, 1.5)).collect();
    let threshold = number(0.05, 0.3).to_bits();
    let keep = |i: usize| match i % 4 {
        0 => Keep::All,
        1 => Keep::Trim(Trim { threshold, cut_tile: 1, cut_lane: 17 }),
        2 => Keep::Trim(Trim { threshold: 0.25f32.to_bits(), cut_tile: 0, cut_lane: 500 }),
        _ => Keep::Drop(Drop { keep: 0x8000_1234, key: [7, i as u32] }),
    };
    let voting =
        || (0..models).map(|i| Model { coefficient: coefficients[i], keep: keep(i) }).collect::<Vec<_>>();
    let scale = (0..1usize << models).map(|set| 1.0 / (1.0 + set as f32)).collect();
    let bracket = |i: usize| Bracket { lowest: 0.01f32.to_bits() >> 12 << 12, shift: 12 + i as u32 % 4 };
    let level = |i: usize| vec![threshold, 0.25f32.to_bits(), 0.5f32.to_bits() + i as u32];
    vec![
        Job::WeightedSum(weighted_sum::Job { anchored: false, coefficients: coefficients.clone() }),
        Job::WeightedSum(weighted_sum::Job { anchored: true, coefficients: coefficients.clone() }),
        Job::Consensus(consensus::Job { models: voting(), scale }),
        Job::Consensus(consensus::Job { models: voting(), scale: Vec::new() }),
        Job::Gram(gram::Job { inputs: models + 1 }),
        Job::Keys(keys::Job { models }),
        Job::Levels(levels::Job { models: (0..models).map(level).collect() }),
        Job::Magnitudes(magnitudes::Job { models: (0..models).map(bracket).collect() }),
        Job::MaskedSums(masked_sums::Job { models: (0..models).map(keep).collect() }),
    ]
}

/// A launch over several tensors, each in up to two spans.
fn launch(job: &Job, floats: Vec<Float>, output: Float, tensors: &[Tensor]) -> Launch {
    let mut spans = Vec::new();
    for (index, tensor) in tensors.iter().enumerate() {
        let all = tiles(tensor.elements as u64);
        let half = all.div_ceil(2);
        for part in [0..half, half..all].into_iter().filter(|part| !part.is_empty()) {
            let elements = tensor.elements.min(part.end as usize * TILE) - part.start as usize * TILE;
            spans.push(Span { job: index % 2, tensor: index, tiles: part, elements });
        }
    }
    let job = Arc::new(job.clone());
    Launch {
        jobs: vec![Arc::clone(&job), job],
        spans,
        reads: (0..floats.len()).collect(),
        floats,
        output,
        hold: Hold::Keep,
    }
}

#[test]
fn every_kernel_gives_the_bits_of_its_twin_on_every_device() {
    let mut random = Random(77);
    for models in [1, 2, 3, 4, 5, VOTERS_MAX] {
        for (i, job) in jobs(models, &mut random).iter().enumerate() {
            for mixed in [false, true] {
                let float = |input: usize| FLOATS[(i + if mixed { input } else { models }) % 3];
                let floats: Vec<Float> = (0..=models).map(float).collect();
                let sizes = [1, 1023, 1024, 1025, 5000];
                let tensors: Vec<Tensor> =
                    sizes.iter().map(|n| Tensor::new(*n, &floats, &mut random)).collect();
                let launch = launch(job, floats, FLOATS[(i + models) % 3], &tensors);
                let expected = of_twin(&launch, &tensors);
                for device in devices() {
                    let name = format!("{} of {models} models on {}", job.kernel(), device.name());
                    assert_eq!(of_device(&*device, &launch, &tensors), expected, "{name}");
                    // Once more: what a device holds must not change anything, however it is used.
                    for hold in [Hold::Peek, Hold::Take, Hold::Take] {
                        let again = Launch { hold, ..launch.clone() };
                        assert_eq!(of_device(&*device, &again, &tensors), expected, "{name}, {hold:?}");
                    }
                }
            }
        }
    }
}

/// What a wrong kernel would do, by way of a job that differs a little; `None` where there is nothing to change.
fn planted(job: &Job, fault: usize) -> Option<Job> {
    let next_up = |x: f32| f32::from_bits(x.to_bits() + 1);
    let mut wrong = job.clone();
    match (&mut wrong, fault) {
        (Job::WeightedSum(job), 0) => job.coefficients[1] = next_up(job.coefficients[1]),
        (Job::WeightedSum(job), 1) => job.anchored = !job.anchored,
        (Job::Consensus(job), 0) => job.models[0].coefficient = next_up(job.models[0].coefficient),
        (Job::Consensus(job), 1) => job.scale.iter_mut().for_each(|scale| *scale = next_up(*scale)),
        (Job::Consensus(job), _) => {
            for model in &mut job.models {
                match &mut model.keep {
                    Keep::Trim(trim) if fault == 2 => trim.threshold += 1,
                    Keep::Trim(trim) if fault == 3 => trim.cut_lane += 100,
                    Keep::Drop(drop) if fault == 4 => drop.key[0] += 1,
                    _ => {}
                }
            }
        }
        (Job::Levels(job), 0) => job.models[0][1] += 1,
        (Job::Magnitudes(job), 0) => job.models[0].shift += 1,
        (Job::MaskedSums(job), 0) => job.models.iter_mut().for_each(|keep| *keep = Keep::All),
        _ => {}
    }
    (wrong != *job).then_some(wrong)
}

#[test]
fn wrong_kernels_are_caught() {
    let mut random = Random(78);
    let models = 4;
    let floats = vec![Float::BF16; models + 1];
    let tensors = [Tensor::new(5000, &floats, &mut random), Tensor::new(777, &floats, &mut random)];
    let mut caught = 0;
    for job in jobs(models, &mut random) {
        let expected = of_twin(&launch(&job, floats.clone(), Float::F32, &tensors), &tensors);
        for fault in 0..5 {
            let Some(wrong) = planted(&job, fault) else { continue };
            let got =
                of_device(&Cpu::new(0), &launch(&wrong, floats.clone(), Float::F32, &tensors), &tensors);
            assert_ne!(got, expected, "{}, fault {fault}", job.kernel());
            caught += 1;
        }
    }
    assert!(caught >= 12, "only {caught} faults were planted");
}

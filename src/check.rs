//! Every kernel on a device against its plain twin, bit for bit: what `mergeforge check` runs.
//!
//! The twin is the kernel's own tile function, compiled for the oldest processor that the build targets. Cases have ragged
//! sizes, ties, odd values, 1 to 12 models, all element types and mixtures of them; several tensors share a launch, and
//! inputs are held on the device and used again.

pub mod data;
mod first_use;

use std::sync::Arc;

use crate::backend::{Backend, Hold, Launch, Limits, OddValues, Output, Span, SpanResult, Tally};
use crate::dtype::{Float, decode, encode};
use crate::error::{Error, Result};
use crate::kernel::consensus::{self, Drop, Keep, Model, Trim};
use crate::kernel::magnitudes::Bracket;
use crate::kernel::{Inputs, Job, Result as Shape, TILE, Target, VOTERS_MAX, Widest};
use crate::kernel::{gram, keys, levels, magnitudes, masked_sums, packed, tiles, weighted_sum};
use crate::timeline::Timeline;
use data::Random;

pub use first_use::before_first_use;

/// Numbers of models besides the base: each that a kernel is compiled for apart, more than that, the most of a vote, and more.
pub const MODELS: [usize; 7] = [1, 2, 3, 4, 5, VOTERS_MAX, MODELS_MAX];

/// More than a vote may have, for kernels that have none.
const MODELS_MAX: usize = VOTERS_MAX + 2;

/// Elements of the tensors of a launch: on both sides of a tile's end, one, and so many tiles that a block on a GPU is full.
const SIZES: [usize; 5] = [1, 1023, 1024, 1025, 9000];

const FLOATS: [Float; 3] = [Float::F32, Float::F16, Float::BF16];

/// Which element types the inputs of a case have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Types {
    /// All the same.
    All(Float),
    /// One after the other.
    Mixed,
}

impl Types {
    /// Each type, and a mixture.
    pub const ALL: [Self; 4] =
        [Self::All(Float::F32), Self::All(Float::F16), Self::All(Float::BF16), Self::Mixed];

    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::All(float) => float.name(),
            Self::Mixed => "mixed",
        }
    }

    fn floats(self, inputs: usize) -> Vec<Float> {
        let of = |input: usize| match self {
            Self::All(float) => float,
            Self::Mixed => FLOATS[input % FLOATS.len()],
        };
        (0..inputs).map(of).collect()
    }
}

/// What checking one kernel with one kind of inputs gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The kernel.
    pub kernel: &'static str,
    /// The inputs' types.
    pub types: Types,
    /// Launches compared.
    pub launches: usize,
    /// Spans of them.
    pub spans: usize,
    /// Spans that the CPU computed, because the device promises nothing about some of their values.
    pub redone: usize,
    /// The first launch that differed, in words.
    pub wrong: Option<String>,
}

/// What a device needs to be checked.
pub fn limits() -> Limits {
    let inputs = MODELS_MAX + 1;
    let chunk_tiles = 16;
    let widest = Widest {
        inputs,
        input_bytes: 4 * inputs,
        output_bytes: 4,
        copied_bytes: 0,
        measured: inputs,
        tiles: chunk_tiles,
        held_bytes: 4 << 20,
    };
    Limits { threads: 1, chunk_tiles, hold_bytes: 64 << 20, widest, kernels: true }
}

/// How much is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Every number of models that kernels are compiled for, and every way to hold inputs.
    All,
    /// Each kernel that is compiled apart, once: before a device is used for the first time.
    First,
    /// Each kernel once for few models and once for many: for tools that watch a device and slow it down.
    Quick,
}

impl Depth {
    fn models(self) -> &'static [usize] {
        match self {
            Self::All => &MODELS,
            // More models than one round of sums, and than a vote, have room for.
            Self::First => &[1, 2, 3, 4, 7, MODELS_MAX],
            Self::Quick => &[2, 5],
        }
    }

    fn holds(self) -> &'static [Hold] {
        match self {
            Self::All => &[Hold::Keep, Hold::Peek, Hold::Take, Hold::Take],
            Self::First | Self::Quick => &[Hold::Take],
        }
    }
}

/// Checks all kernels on a device that was opened with [`limits`]; `seen` hears of each row as it is done.
///
/// # Errors
/// The device fails. Results that differ are no error of this function: rows tell them.
pub fn run(device: &dyn Backend, depth: Depth, mut seen: impl FnMut(&Row)) -> Result<Vec<Row>> {
    let mut random = Random(77);
    let mut rows: Vec<Row> = Vec::new();
    for types in Types::ALL {
        for models in depth.models().iter().copied() {
            for job in jobs(models, &mut random) {
                let own = |row: &Row| (row.kernel, row.types) == (job.kernel(), types);
                let row = rows.iter().position(own).unwrap_or_else(|| {
                    let kernel = job.kernel();
                    rows.push(Row { kernel, types, launches: 0, spans: 0, redone: 0, wrong: None });
                    rows.len() - 1
                });
                let output = FLOATS[(models + rows[row].launches) % FLOATS.len()];
                let case =
                    Case::new(&job, types.floats(models + 1), output, &SIZES, &Values::ALL, &mut random);
                case.check(device, depth, &mut rows[row])?;
            }
        }
        rows.iter().filter(|row| row.types == types).for_each(&mut seen);
    }
    Ok(rows)
}

/// The error of a device that failed its check.
pub fn refusal(name: &str, rows: &[Row]) -> Option<Error> {
    let wrong: Vec<String> = rows.iter().filter_map(|row| row.wrong.clone()).collect();
    let first = wrong.first()?;
    Some(
        Error::device(format!(
            "{name}: {} of {} checks differ from the CPU; {first}",
            wrong.len(),
            rows.len()
        ))
        .hint("merge on another device, and report this with the device's driver version"),
    )
}

/// A launch with the tensors that it reads.
#[derive(Debug)]
pub struct Case {
    /// The launch.
    pub launch: Launch,
    tensors: Vec<Tensor>,
}

/// One tensor of a launch: its inputs, encoded.
#[derive(Debug)]
struct Tensor {
    elements: usize,
    inputs: Vec<Vec<u8>>,
}

/// Every bit that a span's result has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bits {
    bytes: Vec<u8>,
    tally: Tally,
}

/// Which values a tensor has, beside ties, zeros and float16's subnormals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Values {
    /// Now and then subnormals, NaN, infinities and magnitudes that overflow, which some devices leave to the CPU.
    Odd,
    /// Among others, the least and the greatest numbers that no device leaves to the CPU.
    Extreme,
    /// Nothing else.
    Ordinary,
    /// All so small that their products are the least.
    Tiny,
}

impl Values {
    const ALL: [Self; 4] = [Self::Odd, Self::Extreme, Self::Ordinary, Self::Tiny];
}

/// What a device gave.
#[derive(Debug)]
pub struct Found {
    /// The results, span after span.
    pub bits: Vec<Bits>,
    /// How many of the spans the CPU computed.
    pub redone: usize,
}

impl Case {
    /// A job over tensors of these sizes, each in up to two spans, with values of these kinds at random.
    pub fn new(
        job: &Job,
        floats: Vec<Float>,
        output: Float,
        sizes: &[usize],
        kinds: &[Values],
        random: &mut Random,
    ) -> Self {
        let mut tensor = |size: &usize| {
            let kind = kinds[random.next() as usize % kinds.len()];
            Tensor::new(*size, &floats, kind, random)
        };
        let tensors: Vec<Tensor> = sizes.iter().map(&mut tensor).collect();
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
        let jobs = vec![Arc::clone(&job), job];
        let reads = (0..floats.len()).collect();
        let record_tiles = 2 + 3 * (random.next() % 2);
        Self {
            launch: Launch { jobs, spans, reads, floats, output, hold: Hold::Keep, record_tiles },
            tensors,
        }
    }

    /// The same inputs under another job.
    #[must_use]
    pub fn with(mut self, job: &Job) -> Self {
        let job = Arc::new(job.clone());
        self.launch.jobs = vec![Arc::clone(&job), job];
        self
    }

    /// Runs it however inputs may be held, and notes in the row what differs.
    fn check(&self, device: &dyn Backend, depth: Depth, row: &mut Row) -> Result<()> {
        let expected = self.of_twin();
        // What a device holds must not change anything, however it is used.
        for hold in depth.holds().iter().copied() {
            let Found { bits: found, redone } = self.on(device, hold)?;
            row.launches += 1;
            row.spans += found.len();
            row.redone += redone;
            if found != expected && row.wrong.is_none() {
                row.wrong = Some(self.difference(&expected, &found, hold));
            }
        }
        Ok(())
    }

    fn difference(&self, expected: &[Bits], found: &[Bits], hold: Hold) -> String {
        let Launch { jobs, spans, floats, output, .. } = &self.launch;
        let span = (0..spans.len()).find(|span| found.get(*span) != expected.get(*span)).unwrap_or(0);
        let byte = |(at, (a, b)): (usize, (&u8, &u8))| (a != b).then_some(at);
        let place = expected
            .get(span)
            .zip(found.get(span))
            .and_then(|(expected, found)| expected.bytes.iter().zip(&found.bytes).enumerate().find_map(byte));
        let place = place
            .map_or("what is counted beside its results".into(), |at| format!("byte {at} of its results"));
        let kernel = jobs[0].kernel();
        format!(
            "{kernel} of {} inputs ({floats:?} to {output:?}, {hold:?}): span {span} of {} elements differs at {place}",
            floats.len(),
            spans[span].elements,
        )
    }

    /// The results on a device.
    ///
    /// # Errors
    /// Those of the device.
    pub fn on(&self, device: &dyn Backend, hold: Hold) -> Result<Found> {
        let timeline = Timeline::new();
        let mut lane = device.lane(0, &timeline)?;
        let Launch { spans, floats, .. } = &self.launch;
        let mut read = |span: usize, input: usize, into: &mut [u8]| {
            let span: &Span = &spans[span];
            let start = span.first_element() as usize * floats[input].bytes();
            into.copy_from_slice(&self.tensors[span.tensor].inputs[input][start..start + into.len()]);
            Ok(())
        };
        lane.submit(Launch { hold, ..self.launch.clone() }, &mut read)?;
        let (mut results, mut redone) = (Vec::new(), 0);
        let mut take = |span: usize, output: Output<'_>| {
            assert_eq!(span, results.len(), "spans come in order");
            redone += usize::from(output.redone);
            results.push(Bits { bytes: bits_of(&output.result), tally: output.tally });
            Ok(())
        };
        lane.collect(&mut take)?;
        Ok(Found { bits: results, redone })
    }

    /// The results that there should be.
    pub fn of_twin(&self) -> Vec<Bits> {
        let of_span = |span: &Span| self.span_of_twin(span, &self.tensors[span.tensor]);
        self.launch.spans.iter().map(of_span).collect()
    }

    fn span_of_twin(&self, span: &Span, tensor: &Tensor) -> Bits {
        let job = &self.launch.jobs[span.job];
        let mut bits = Bits { bytes: Vec::new(), tally: Tally::default() };
        let mut counters = Vec::new();
        for tile in span.tiles.clone() {
            if let Shape::Counts { words } = job.result()
                && (tile - span.tiles.start).is_multiple_of(self.launch.record_tiles)
            {
                bits.bytes.extend(words_to_bytes(&std::mem::replace(&mut counters, vec![0; words])));
            }
            let decoded = tensor.decoded(tile, &self.launch.floats);
            let pieces: Vec<&[f32]> = decoded.chunks(TILE).collect();
            let inputs = Inputs { pieces: &pieces, first: 0, len: tensor.tile_len(tile) };
            self.tile_of_twin(job, tile, &inputs, &mut bits, &mut counters);
        }
        bits.bytes.extend(words_to_bytes(&counters));
        bits
    }

    fn tile_of_twin(&self, job: &Job, tile: u64, inputs: &Inputs<'_>, bits: &mut Bits, counters: &mut [u32]) {
        let mut scratch = Vec::new();
        match job.result() {
            Shape::Values => {
                let all = || (0..self.launch.floats.len()).flat_map(|input| inputs.of(input));
                let (nan, infinite) =
                    (all().filter(|v| v.is_nan()).count(), all().filter(|v| v.is_infinite()).count());
                let mut merged = vec![0.0; inputs.len];
                let target = Target::Values(&mut merged, &mut bits.tally.kept);
                job.run_tile(tile, inputs, &mut scratch, target);
                let lost = merged.iter().filter(|v| !v.is_finite()).count() as u64;
                let output = self.launch.output;
                let start = bits.bytes.len();
                bits.bytes.resize(start + inputs.len * output.bytes(), 0);
                let beyond = encode(output, &merged, &mut bits.bytes[start..]);
                bits.tally.odd += OddValues {
                    nan: nan as u64,
                    infinite: infinite as u64,
                    overflowed: beyond + if nan + infinite == 0 { lost } else { 0 },
                };
            }
            Shape::Sums { words } => {
                let mut sums = vec![0.0; words];
                job.run_tile(tile, inputs, &mut scratch, Target::Sums(&mut sums));
                bits.bytes.extend(bits_of(&SpanResult::Sums(&sums)));
            }
            Shape::Counts { .. } => job.run_tile(tile, inputs, &mut scratch, Target::Words(counters)),
            Shape::Words { words } => {
                let mut own = vec![0; words * inputs.len];
                job.run_tile(tile, inputs, &mut scratch, Target::Words(&mut own));
                bits.bytes.extend(words_to_bytes(&own));
            }
        }
    }
}

impl Tensor {
    fn new(elements: usize, floats: &[Float], kind: Values, random: &mut Random) -> Self {
        let small = if random.next().is_multiple_of(2) { packed::PLAIN } else { packed::PLAIN_IN_PRODUCTS };
        let mut value = |float: Float| match (random.next() % 64, kind) {
            // So many equal ones that a cut a few lanes off shows.
            (0..5, _) => 0.0,
            (5, _) => -0.0,
            (6, Values::Odd) => f32::from_bits(random.next() as u32 % 1000),
            (7, Values::Odd) if random.next().is_multiple_of(50) => f32::NAN,
            (8, Values::Odd) if random.next().is_multiple_of(50) => f32::NEG_INFINITY,
            (9, Values::Odd) if random.next().is_multiple_of(50) => 3e38,
            (6 | 7, Values::Extreme) => {
                f32::from_bits(packed::PLAIN.start().to_bits() + random.next() as u32 % 4)
            }
            (8, Values::Extreme) => -packed::PLAIN.start(),
            (9, Values::Extreme) if float != Float::F16 => *packed::PLAIN.end(),
            // Multiples, so that differences are no smaller.
            (place, Values::Tiny) => small.start() * [1.0, -1.0, 2.0, 3.0, -5.0][place as usize % 5],
            (10..17, _) => 0.25,
            (17..24, _) => -0.25,
            // float16's subnormals.
            (24..28, _) => random.normal() as f32 * 1e-5,
            _ => random.normal() as f32,
        };
        let mut input = |float: &Float| {
            let values: Vec<f32> = (0..elements).map(|_| value(*float)).collect();
            let mut bytes = vec![0; elements * float.bytes()];
            encode(*float, &values, &mut bytes);
            bytes
        };
        Self { elements, inputs: floats.iter().map(&mut input).collect() }
    }

    fn tile_len(&self, tile: u64) -> usize {
        TILE.min(self.elements - tile as usize * TILE)
    }

    /// A tile of every input; past its end NaN, which nobody may use.
    fn decoded(&self, tile: u64, floats: &[Float]) -> Vec<f32> {
        let (first, len) = (tile as usize * TILE, self.tile_len(tile));
        let mut decoded = vec![f32::NAN; floats.len() * TILE];
        for ((float, bytes), room) in floats.iter().zip(&self.inputs).zip(decoded.chunks_mut(TILE)) {
            decode(*float, &bytes[first * float.bytes()..][..len * float.bytes()], &mut room[..len]);
        }
        decoded
    }
}

fn bits_of(result: &SpanResult<'_>) -> Vec<u8> {
    match result {
        SpanResult::Values(bytes) => bytes.to_vec(),
        SpanResult::Sums(sums) => sums.iter().flat_map(|sum| canonical(*sum).to_le_bytes()).collect(),
        SpanResult::Counts(words) | SpanResult::Words(words) => words_to_bytes(words).collect(),
    }
}

fn words_to_bytes(words: &[u32]) -> impl Iterator<Item = u8> + '_ {
    words.iter().flat_map(|word| word.to_le_bytes())
}

/// NaN differ between processors in bits that nothing depends on.
fn canonical(sum: f32) -> u32 {
    if sum.is_nan() { 0x7fc0_0000 } else { sum.to_bits() }
}

/// A job of every kernel for a number of models besides the base.
pub fn jobs(models: usize, random: &mut Random) -> Vec<Job> {
    let draws = random.next() as u32;
    let mut number = |low: f64, high: f64| (low + (high - low) * random.unit()) as f32;
    let coefficients: Vec<f32> = (0..=models).map(|_| number(-1.0, 1.5)).collect();
    let tiny = coefficients.iter().map(|c| (c.abs() + 1.0) * packed::FACTORS.start()).collect();
    let threshold = number(0.05, 0.3).to_bits();
    let keep = |i: usize| match i % 4 {
        0 => Keep::All,
        1 => Keep::Trim(Trim { threshold, cut_tile: 1, cut_lane: 17 }),
        2 => Keep::Trim(Trim { threshold: 0.25f32.to_bits(), cut_tile: 0, cut_lane: 500 }),
        _ => Keep::Drop(Drop { keep: 0x8000_1234, key: [draws, i as u32] }),
    };
    // Pairs of models weigh the same, so that votes come out even; few models would not come to the last kinds of the list.
    let voting = |shift: usize| {
        let model = |i: usize| Model { coefficient: coefficients[i - i % 2], keep: keep(i + shift) };
        (0..models).map(model).collect::<Vec<_>>()
    };
    let scale = || (0..1usize << models).map(|set| 1.0 / (1.0 + set as f32)).collect::<Vec<_>>();
    let consensus = |shift, scale| Job::Consensus(consensus::Job { models: voting(shift), scale });
    let bracket = |i: usize| Bracket { lowest: 0.01f32.to_bits() >> 12 << 12, shift: 12 + i as u32 % 4 };
    let level = |i: usize| vec![threshold, 0.25f32.to_bits(), 0.5f32.to_bits() + i as u32];
    let mut jobs = vec![
        Job::WeightedSum(weighted_sum::Job { anchored: false, coefficients: coefficients.clone() }),
        Job::WeightedSum(weighted_sum::Job { anchored: true, coefficients: coefficients.clone() }),
        // Terms near the least numbers that no device flushes.
        Job::WeightedSum(weighted_sum::Job { anchored: true, coefficients: tiny }),
        consensus(0, scale()),
        consensus(1, scale()),
        consensus(2, scale()),
        consensus(3, scale()),
        consensus(2, Vec::new()),
        Job::Gram(gram::Job { inputs: models + 1 }),
        Job::Keys(keys::Job { models }),
        Job::Levels(levels::Job { models: (0..models).map(level).collect() }),
        Job::Magnitudes(magnitudes::Job { models: (0..models).map(bracket).collect() }),
        Job::MaskedSums(masked_sums::Job { models: (0..models).map(|i| keep(i + 2)).collect() }),
        Job::MaskedSums(masked_sums::Job { models: (0..models).map(|i| keep(i + 3)).collect() }),
    ];
    let for_many = |job: &Job| match job {
        Job::WeightedSum(_) | Job::MaskedSums(_) => true,
        Job::Consensus(job) => job.scale.is_empty(),
        _ => false,
    };
    jobs.retain(|job| models <= VOTERS_MAX || for_many(job));
    jobs
}

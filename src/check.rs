//! Every kernel on a device against its plain twin, bit for bit: what `mergeforge check` runs.
//!
//! Cases have ragged sizes, ties, odd values, 1 to 12 models, all element types and mixtures of them; several tensors share a launch, and
//! inputs are held on the device and used again.

pub mod data;
mod first_use;

use std::sync::Arc;

use crate::backend::{
    Backend, Launch, LaunchKind, Limits, OddValues, Output, Segment, Span, SpanInput, SpanResult, Tally,
};
use crate::dtype::{Float, decode, encode};
use crate::error::{Error, Result};
use crate::kernel::{
    CaseNumbers, Job, KERNELS, Kernel, Outcome, SPANS_MAX, TILE, Target, VOTERS_MAX, Widest, packed, tiles,
};
use crate::timeline::Timeline;
use data::Random;

pub use first_use::before_first_use;

/// Numbers of models besides the base: each that a kernel is compiled for apart, more than that, the most of a vote, and more.
pub const MODELS: [usize; 7] = [1, 2, 3, 4, 5, VOTERS_MAX, MODELS_MAX];

/// More than a vote may have, for kernels that have none.
const MODELS_MAX: usize = VOTERS_MAX + 2;

/// Inputs besides base and models that jobs of the check have at the most.
const SELECTORS_MAX: usize = 3;

/// Elements of the tensors of a launch: on both sides of a tile's end, one, and so many tiles that a block on a GPU is full.
/// Among any kinds of values that follow each other, whole tiles have both odd and ordinary ones.
const SIZES: [usize; 6] = [1, 1023, 1024, 1025, 9000, 2048];

/// The inputs' numbers in turn: differences to the first input are 0, or have bits in all places.
const ALIKE: [f32; 2] = [0.25, 0.3];

/// What values are drawn from, with a kernel's name.
const SEED: u64 = 77;

const FLOATS: [Float; 3] = [Float::F32, Float::F16, Float::BF16];

/// Tiles before a tensor, so that one of its first blocks has elements on both sides of the 2^35th: those behind it have one
/// more word of the random generator's counter.
const FAR_TILES: u64 = (1 << 25) - 3;

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

    /// The inputs' types of a job. In a mixture, inputs that only choose are bits now and then, and so is the base of what is
    /// measured.
    fn floats(self, job: &Job) -> Vec<Float> {
        let (inputs, selectors) = (job.inputs(), job.inputs() - job.merged());
        let measured = !matches!(job.outcome(), Outcome::Values | Outcome::Room);
        let is_bits = |input: usize| match input {
            0 => measured && inputs.is_multiple_of(2),
            _ => input >= job.merged() && (input + selectors).is_multiple_of(2),
        };
        let of = |input: usize| match self {
            Self::All(float) => float,
            Self::Mixed if is_bits(input) => Float::Bit,
            Self::Mixed => FLOATS[input % FLOATS.len()],
        };
        (0..inputs).map(of).collect()
    }
}

/// What checking one kernel with one kind of inputs gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckRow {
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
    let inputs = 1 + MODELS_MAX + SELECTORS_MAX;
    let chunk_tiles = 16;
    let widest = Widest {
        inputs,
        input_bytes: 4 * inputs,
        output_bytes: 4,
        copied_bytes: 0,
        wide_bytes: 0,
        measured: inputs,
        questions: 0,
        spans: SPANS_MAX,
        row_elements: 3,
        columns: 1500,
        segment_bytes: 0,
        kept_bytes: 0,
        tiles: chunk_tiles,
        held_bytes: 4 << 20,
    };
    Limits { threads: 1, chunk_tiles, hold_bytes: 64 << 20, kept_bytes: 0, widest }
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

    fn uses(self) -> &'static [Use] {
        match self {
            Self::All => &[Use::Hold, Use::Again, Use::Last, Use::Last],
            Self::First | Self::Quick => &[Use::Last],
        }
    }
}

/// Kernels that the check has cases of: all but `stream`, whose results mean nothing.
pub fn kernels() -> Vec<&'static Kernel> {
    let mut random = Random(SEED);
    let jobs: Vec<Job> = MODELS.into_iter().flat_map(|models| jobs(models, &mut random)).collect();
    KERNELS.iter().copied().filter(|kernel| jobs.iter().any(|job| job.kernel() == *kernel)).collect()
}

/// Checks all kernels, or only one, on a device that was opened with [`limits`]; `seen` hears of each row as it is done. A kernel has the
/// same cases, whether it is checked with others or alone.
///
/// # Errors
/// The device fails. Results that differ are no error of this function: rows report them.
pub fn run(
    device: &dyn Backend,
    depth: Depth,
    only: Option<&Kernel>,
    mut seen: impl FnMut(&CheckRow),
) -> Result<Vec<CheckRow>> {
    let is_wanted = |job: &Job| only.is_none_or(|only| job.kernel() == only);
    device.prepare(&kinds(depth, &is_wanted), &|| {})?;
    let mut random = Random(77);
    let mut of_kernels: Vec<Random> = KERNELS.iter().map(|kernel| values_of(kernel)).collect();
    let mut rows: Vec<CheckRow> = Vec::new();
    for (number, types) in Types::ALL.into_iter().enumerate() {
        for models in depth.models().iter().copied() {
            for job in jobs(models, &mut random).into_iter().filter(&is_wanted) {
                let own = |row: &CheckRow| (row.kernel, row.types) == (job.kernel().name, types);
                let row = rows.iter().position(own).unwrap_or_else(|| {
                    let kernel = job.kernel().name;
                    rows.push(CheckRow { kernel, types, launches: 0, spans: 0, redone: 0, wrong: None });
                    rows.len() - 1
                });
                // Each output type for every job: with other types of its inputs.
                let output = FLOATS[(models + rows[row].launches + number) % FLOATS.len()];
                let mut values = CaseValues::of(&job);
                let turn = rows[row].launches % values.len();
                values.rotate_left(turn);
                let own =
                    KERNELS.iter().position(|kernel| *kernel == job.kernel()).expect("a kernel of the list");
                let random = &mut of_kernels[own];
                let case = Case::new(&job, types.floats(&job), output, &SIZES, &values, random);
                case.check(device, depth.uses(), &mut rows[row])?;
                if job.masks().iter().any(Option::is_some) {
                    case.behind(FAR_TILES).check(device, &[Use::Last], &mut rows[row])?;
                }
            }
        }
        rows.iter().filter(|row| row.types == types).for_each(&mut seen);
    }
    Ok(rows)
}

/// A kernel's own values, which stay the same when others are added to the list: tests count on rare ones among them.
fn values_of(kernel: &Kernel) -> Random {
    Random(kernel.name.bytes().fold(SEED, |seed, byte| seed.wrapping_mul(31).wrapping_add(byte.into())))
}

/// The launches of a check, which are of the same kinds whatever numbers are drawn.
fn kinds(depth: Depth, is_wanted: &dyn Fn(&Job) -> bool) -> Vec<LaunchKind> {
    let mut random = Random(0);
    let mut kinds = Vec::new();
    for models in depth.models() {
        for job in jobs(*models, &mut random).iter().filter(|job| is_wanted(job)) {
            kinds.extend(Types::ALL.map(|types| LaunchKind::of(job, types.floats(job))));
        }
    }
    kinds
}

/// How a launch uses its inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// They are held, if there is room.
    Hold,
    /// They will be used again, but nothing more is held.
    Again,
    /// They will not be used again.
    Last,
}

/// The error of a device that failed its check.
pub fn refusal(name: &str, rows: &[CheckRow]) -> Option<Error> {
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
    tensors: Vec<CaseTensor>,
    /// Tiles of each tensor that are not there, before all others.
    missing: u64,
}

/// One tensor of a launch: its inputs, encoded.
#[derive(Debug)]
struct CaseTensor {
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
pub enum CaseValues {
    /// Now and then subnormals, NaN, infinities and magnitudes that overflow, which some devices leave to the CPU.
    Odd,
    /// Now and then magnitudes that hardly fit.
    Huge,
    /// Among others, the least and the greatest numbers that no device leaves to the CPU.
    Extreme,
    /// Nothing else.
    Ordinary,
    /// All so small that their products are the least.
    Tiny,
    /// Mostly one number in each input, so that most differences are the same.
    Alike,
}

impl CaseValues {
    /// Those that say the most about a job: what hardly fits matters where it is merged, what is equal where it is counted.
    fn of(job: &Job) -> [Self; 5] {
        match job.outcome() {
            Outcome::Counts { .. } => [Self::Odd, Self::Extreme, Self::Ordinary, Self::Tiny, Self::Alike],
            _ => [Self::Odd, Self::Huge, Self::Extreme, Self::Ordinary, Self::Tiny],
        }
    }
}

/// What a device gave.
#[derive(Debug)]
pub struct DeviceResults {
    /// The results, span after span.
    pub bits: Vec<Bits>,
    /// How many of the spans the CPU computed.
    pub redone: usize,
}

impl Case {
    /// A job over tensors of these sizes, each in up to two spans, with values of these kinds in turn.
    pub fn new(
        job: &Job,
        floats: Vec<Float>,
        output: Float,
        sizes: &[usize],
        kinds: &[CaseValues],
        random: &mut Random,
    ) -> Self {
        let tensor = |(size, kind): (&usize, &CaseValues)| CaseTensor::new(*size, &floats, *kind, random);
        let tensors: Vec<CaseTensor> = sizes.iter().zip(kinds.iter().cycle()).map(tensor).collect();
        let mut spans = Vec::new();
        for (index, tensor) in tensors.iter().enumerate() {
            let all = tiles(tensor.elements as u64);
            let half = all.div_ceil(2);
            for part in [0..half, half..all].into_iter().filter(|part| !part.is_empty()) {
                let elements = tensor.elements.min(part.end as usize * TILE) - part.start as usize * TILE;
                let input = |input: usize| SpanInput { input: index * floats.len() + input, again: true };
                let inputs = (0..floats.len()).map(input).collect();
                spans.push(Span { job: index % 2, inputs, segment: Segment::WHOLE, tiles: part, elements });
            }
        }
        let job = Arc::new(job.clone());
        let jobs = vec![Arc::clone(&job), job];
        let record_tiles = 2 + 3 * (random.next() % 2);
        Self { launch: Launch { jobs, spans, floats, output, hold: true, record_tiles }, tensors, missing: 0 }
    }

    /// The same inputs, so many tiles behind the beginning of their tensors.
    fn behind(mut self, tiles: u64) -> Self {
        for span in &mut self.launch.spans {
            span.tiles = span.tiles.start + tiles..span.tiles.end + tiles;
        }
        self.missing += tiles;
        self
    }

    /// The same inputs under another job.
    #[must_use]
    pub fn with(mut self, job: &Job) -> Self {
        let job = Arc::new(job.clone());
        self.launch.jobs = vec![Arc::clone(&job), job];
        self
    }

    /// Runs it however inputs may be held, and notes in the row what differs.
    fn check(&self, device: &dyn Backend, uses: &[Use], row: &mut CheckRow) -> Result<()> {
        let expected = self.of_twin();
        // What a device holds must not change anything, however it is used.
        for way in uses.iter().copied() {
            let DeviceResults { bits: found, redone } = self.on(device, way)?;
            row.launches += 1;
            row.spans += found.len();
            row.redone += redone;
            if found != expected && row.wrong.is_none() {
                row.wrong = Some(self.difference(&expected, &found, way));
            }
        }
        Ok(())
    }

    fn difference(&self, expected: &[Bits], found: &[Bits], way: Use) -> String {
        let Launch { jobs, spans, floats, output, .. } = &self.launch;
        let span = (0..spans.len()).find(|span| found.get(*span) != expected.get(*span)).unwrap_or(0);
        let byte = |(at, (a, b)): (usize, (&u8, &u8))| (a != b).then_some(at);
        let place = expected
            .get(span)
            .zip(found.get(span))
            .and_then(|(expected, found)| expected.bytes.iter().zip(&found.bytes).enumerate().find_map(byte));
        let place = place
            .map_or("what is counted beside its results".into(), |at| format!("byte {at} of its results"));
        let kernel = jobs[0].kernel().name;
        format!(
            "{kernel} of {} inputs ({floats:?} to {output:?}, {way:?}): span {span} of {} elements differs at {place}",
            floats.len(),
            spans[span].elements,
        )
    }

    /// The results on a device.
    ///
    /// # Errors
    /// Those of the device.
    pub fn on(&self, device: &dyn Backend, way: Use) -> Result<DeviceResults> {
        let timeline = Timeline::new();
        let mut lane = device.lane(0, &timeline)?;
        let Launch { spans, floats, .. } = &self.launch;
        let mut read = |span: usize, input: usize, into: &mut [u8]| {
            let span: &Span = &spans[span];
            let start = floats[input].bytes_of(span.first_element() - self.missing * TILE as u64) as usize;
            into.copy_from_slice(&self.tensor_of(span).inputs[input][start..start + into.len()]);
            Ok(())
        };
        let mut launch = Launch { hold: way == Use::Hold, ..self.launch.clone() };
        let inputs = launch.spans.iter_mut().flat_map(|span| &mut span.inputs);
        inputs.for_each(|input| input.again = way != Use::Last);
        lane.submit(launch, &mut read)?;
        let (mut results, mut redone) = (Vec::new(), 0);
        let mut take = |span: usize, output: Output<'_>| {
            assert_eq!(span, results.len(), "spans come in order");
            redone += usize::from(output.redone);
            results.push(Bits { bytes: bits_of(&output.result), tally: output.tally });
            Ok(())
        };
        lane.collect(&mut take)?;
        Ok(DeviceResults { bits: results, redone })
    }

    /// The results that there should be.
    pub fn of_twin(&self) -> Vec<Bits> {
        let of_span = |span: &Span| self.span_of_twin(span, self.tensor_of(span));
        self.launch.spans.iter().map(of_span).collect()
    }

    /// The tensor that a span is a part of.
    fn tensor_of(&self, span: &Span) -> &CaseTensor {
        &self.tensors[span.inputs[0].input / self.launch.floats.len()]
    }

    fn span_of_twin(&self, span: &Span, tensor: &CaseTensor) -> Bits {
        let job = &self.launch.jobs[span.job];
        let mut bits = Bits { bytes: Vec::new(), tally: Tally::default() };
        let mut counters = Vec::new();
        for tile in span.tiles.clone() {
            if let Outcome::Counts { words } = job.outcome()
                && (tile - span.tiles.start).is_multiple_of(self.launch.record_tiles)
            {
                bits.bytes.extend(words_to_bytes(&std::mem::replace(&mut counters, vec![0; words])));
            }
            let decoded = tensor.decoded(tile - self.missing, &self.launch.floats);
            let x: Vec<&[f32]> = decoded.iter().map(Vec::as_slice).collect();
            self.tile_of_twin(job, tile, &x, &mut bits, &mut counters);
        }
        bits.bytes.extend(words_to_bytes(&counters));
        bits
    }

    fn tile_of_twin(&self, job: &Job, tile: u64, x: &[&[f32]], bits: &mut Bits, counters: &mut [u32]) {
        let len = x[0].len();
        match job.outcome() {
            Outcome::Values => {
                let all = || x[..job.merged()].iter().copied().flatten();
                let (nan, infinite) =
                    (all().filter(|v| v.is_nan()).count(), all().filter(|v| v.is_infinite()).count());
                let mut merged = vec![0.0; len];
                let target = Target::Values(&mut merged, &mut bits.tally.kept);
                job.plain(tile, x, target);
                let lost = merged.iter().filter(|v| !v.is_finite()).count() as u64;
                let output = self.launch.output;
                let start = bits.bytes.len();
                bits.bytes.resize(start + len * output.bytes(), 0);
                let beyond = encode(output, &merged, &mut bits.bytes[start..]);
                bits.tally.odd += OddValues {
                    nan: nan as u64,
                    infinite: infinite as u64,
                    overflowed: beyond + if nan + infinite == 0 { lost } else { 0 },
                };
            }
            Outcome::Sums { words } => {
                let mut sums = vec![0.0; words];
                job.plain(tile, x, Target::Sums(&mut sums));
                bits.bytes.extend(bits_of(&SpanResult::Sums(&sums)));
            }
            Outcome::Counts { .. } => job.plain(tile, x, Target::Words(counters)),
            Outcome::Words { words } => {
                let mut own = vec![0; words * len];
                job.plain(tile, x, Target::Words(&mut own));
                bits.bytes.extend(words_to_bytes(&own));
            }
            Outcome::Room => unreachable!("what means nothing is not checked"),
        }
    }
}

impl CaseTensor {
    fn new(elements: usize, floats: &[Float], kind: CaseValues, random: &mut Random) -> Self {
        let small = if random.next().is_multiple_of(2) { packed::PLAIN } else { packed::PLAIN_IN_PRODUCTS };
        // One tile of three is ordinary whatever the others are, so that a GPU's block of one tile is too.
        let kind_of = |i: usize| if i / TILE % 3 == 1 { CaseValues::Ordinary } else { kind };
        let mut value = |i: usize, float: Float, alike: f32| match (random.next() % 64, kind_of(i)) {
            // So many equal ones that a cut a few lanes off shows.
            (0..5, _) => 0.0,
            (5, _) => -0.0,
            (6, CaseValues::Odd) => f32::from_bits(random.next() as u32 % 1000),
            (7, CaseValues::Odd) if random.next().is_multiple_of(50) => f32::NAN,
            (8, CaseValues::Odd) if random.next().is_multiple_of(50) => f32::NEG_INFINITY,
            (9, CaseValues::Odd) | (6, CaseValues::Huge) if random.next().is_multiple_of(50) => 3e38,
            (6 | 7, CaseValues::Extreme) => {
                f32::from_bits(packed::PLAIN.start().to_bits() + random.next() as u32 % 4)
            }
            (8, CaseValues::Extreme) => -packed::PLAIN.start(),
            (9, CaseValues::Extreme) if float != Float::F16 => *packed::PLAIN.end(),
            // Multiples, so that differences are no smaller.
            (place, CaseValues::Tiny) => small.start() * [1.0, -1.0, 2.0, 3.0, -5.0][place as usize % 5],
            (10.., CaseValues::Alike) => alike,
            (10..17, _) => 0.25,
            (17..24, _) => -0.25,
            // float16's subnormals.
            (24..28, _) => random.normal() as f32 * 1e-5,
            // Few bits: results are often right between two numbers of the output's type.
            (28..44, _) => ((random.normal() * 512.0).round() / 512.0) as f32,
            _ => random.normal() as f32,
        };
        let mut input = |(input, float): (usize, &Float)| {
            let alike = ALIKE[input % ALIKE.len()];
            let mut values: Vec<f32> = (0..elements).map(|i| value(i, *float, alike)).collect();
            let mut bytes = vec![0; float.bytes_of(elements as u64) as usize];
            if *float == Float::Bit {
                // As many of one kind as of the other.
                values.iter_mut().for_each(|value| *value = value.max(0.0));
                encode(*float, &values, &mut bytes);
                return bytes;
            }
            encode(*float, &values, &mut bytes);
            // Files may hold −0, which no output does.
            for (value, bytes) in values.iter().zip(bytes.chunks_exact_mut(float.bytes())) {
                let last = bytes.last_mut().expect("an element has bytes");
                *last |= u8::from(*value == 0.0 && value.is_sign_negative()) << 7;
            }
            bytes
        };
        Self { elements, inputs: floats.iter().enumerate().map(&mut input).collect() }
    }

    fn tile_len(&self, tile: u64) -> usize {
        TILE.min(self.elements - tile as usize * TILE)
    }

    /// A tile of every input.
    fn decoded(&self, tile: u64, floats: &[Float]) -> Vec<Vec<f32>> {
        let (first, len) = (tile as usize * TILE, self.tile_len(tile));
        let of_input = |(float, bytes): (&Float, &Vec<u8>)| {
            let mut decoded = vec![0.0; len];
            let place = |element: usize| float.bytes_of(element as u64) as usize;
            decode(*float, &bytes[place(first)..place(first + len)], &mut decoded);
            decoded
        };
        floats.iter().zip(&self.inputs).map(of_input).collect()
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

/// Jobs of every kernel for a number of models besides the base.
pub fn jobs(models: usize, random: &mut Random) -> Vec<Job> {
    let word = random.next() as u32;
    let mut number = |low: f64, high: f64| (low + (high - low) * random.unit()) as f32;
    let coefficients = (0..=models).map(|_| number(-1.0, 1.5)).collect();
    let drawn = CaseNumbers { models, coefficients, threshold: number(0.05, 0.3).to_bits(), word };
    KERNELS.iter().flat_map(|kernel| (kernel.cases)(&drawn)).collect()
}

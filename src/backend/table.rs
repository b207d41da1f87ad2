//! A launch in the form that a GPU's kernels read: header, element types, blocks, spans with the places of inputs, jobs.

use std::sync::Arc;

use super::memory::reserve;
use super::{Hold, Launch, OddValues, Span, SpanResult, Tally};
use crate::dtype::Float;
use crate::error;
use crate::kernel::packed::{
    self, Block, Header, TALLY_INFINITE, TALLY_KEPT, TALLY_NAN, TALLY_OVERFLOWED, TALLY_WORDS, THREADS,
    append, float_code,
};
use crate::kernel::{
    Job, RECORD_TILES_MIN, Result as Shape, SPANS_MAX, TILE, VOTERS_MAX, Widest, levels, weighted_sum,
};

/// Tiles that a block works through: enough to make up for finding out what to do.
const BLOCK_TILES: u64 = 4;

/// `consensus` counts a thread's elements of a block in a byte.
const _: () = assert!(BLOCK_TILES as usize * TILE / THREADS <= 255);

/// Tiles of a block that counts: its counters are cleared and added up once.
const COUNTING_BLOCK_TILES: u64 = 16;

/// A vector of 16 bytes: the unit that places are counted in.
const VECTOR_BYTES: u64 = 16;

/// The device memory that places of 32 bits reach.
pub(super) const PLACES_BYTES: u64 = VECTOR_BYTES << 32;

/// Models that a `consensus` of its own is compiled for.
const CONSENSUS_MODELS: usize = 4;

/// What differs between the kernels of the families.
#[derive(Debug, Clone, Copy)]
pub(super) struct Dialect {
    /// Models that a `magnitudes` of its own is compiled for.
    pub(super) magnitudes_own: usize,
    /// Models whose counters the others keep at once; the grid's second dimension walks over more.
    pub(super) magnitudes_models: usize,
    /// Where results begin: at a multiple of this behind the tallies, from where their places count. `None`: tallies and
    /// results are one, and places count from the beginning of both.
    pub(super) results_apart: Option<u64>,
}

impl Dialect {
    /// The bytes in front of the place that results are counted from.
    pub(super) fn results_from(&self, spans: usize) -> u64 {
        self.results_apart.map_or(0, |multiple| tallies_bytes(spans).next_multiple_of(multiple))
    }
}

fn tallies_bytes(spans: usize) -> u64 {
    (4 * TALLY_WORDS * spans) as u64
}

/// A packed launch.
pub(super) struct Table {
    pub(super) words: Vec<u32>,
    /// The kernel's file, and its entry there.
    pub(super) entry: Entry,
    pub(super) grid: (u32, u32),
    pub(super) threads: u32,
    /// Of each span, where its results start and how many bytes they have.
    pub(super) spans: Vec<(usize, usize)>,
    /// Bytes of the tallies and all results, and what lies between.
    pub(super) result_bytes: u64,
    /// Bytes that the kernel reads of its inputs, and writes.
    pub(super) read_bytes: u64,
    pub(super) written_bytes: u64,
}

/// Which kernel: the file stem, and what it is compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Entry {
    pub(super) file: &'static str,
    /// The number of models that it is compiled for; 0: any. Of the yardstick `stream`: whether it writes.
    pub(super) models: usize,
    /// The element type of all inputs, if they have the same.
    pub(super) float: Option<Float>,
}

impl Entry {
    fn of(job: &Job, floats: &[Float], dialect: &Dialect) -> Self {
        let models = floats.len() - 1;
        let own = match job {
            Job::Consensus(_) => CONSENSUS_MODELS,
            Job::Magnitudes(_) => dialect.magnitudes_own,
            _ => 0,
        };
        let alike = floats.iter().all(|float| *float == floats[0]);
        Self {
            file: job.kernel(),
            models: if models <= own { models } else { 0 },
            float: alike.then_some(floats[0]),
        }
    }
}

impl Table {
    /// The table of the stream that benches compare with: over one span, like a weighted sum of as many inputs.
    pub(super) fn stream(
        dialect: &Dialect,
        inputs: usize,
        writes: bool,
        elements: usize,
        places: &[u64],
    ) -> error::Result<Self> {
        let job = weighted_sum::Job { anchored: false, coefficients: vec![0.0; inputs] };
        let tiles = 0..crate::kernel::tiles(elements as u64);
        let launch = Launch {
            jobs: vec![Arc::new(Job::WeightedSum(job))],
            spans: vec![Span { job: 0, tensor: 0, tiles, elements }],
            reads: (0..inputs).collect(),
            floats: vec![Float::BF16; inputs],
            output: Float::BF16,
            hold: Hold::Peek,
            record_tiles: 1,
        };
        let entry = Entry { file: "stream", models: writes.into(), float: Some(Float::BF16) };
        Ok(Self { entry, ..Self::new(dialect, &launch, places)? })
    }

    /// Packs a launch; `places` are those of its inputs in device memory, in bytes, span after span.
    ///
    /// # Errors
    /// There is no memory for it.
    pub(super) fn new(dialect: &Dialect, launch: &Launch, places: &[u64]) -> error::Result<Self> {
        let (inputs, job) = (launch.reads.len(), &*launch.jobs[0]);
        let blocks: Vec<Vec<Block>> = launch.spans.iter().map(|span| blocks_of(span, launch)).collect();
        let block_count = blocks.iter().map(Vec::len).sum::<usize>();
        // The parts in their order; each place follows from the sizes before it.
        let blocks_at = Header::WORDS;
        let floats_at = blocks_at + block_count * Block::WORDS;
        let spans_at = floats_at + inputs;
        let span_words = packed::Span::WORDS + inputs;
        let jobs_at = spans_at + launch.spans.len() * span_words;
        let mut jobs = Vec::new();
        let mut job_places = Vec::with_capacity(launch.jobs.len());
        for job in &launch.jobs {
            job_places.push((jobs_at + jobs.len()) as u32);
            job.pack(&mut jobs);
        }
        let mut words = Vec::new();
        reserve(&mut words, jobs_at + jobs.len())?;
        let header = Header {
            blocks: blocks_at as u32,
            floats: floats_at as u32,
            inputs: inputs as u32,
            output: float_code(launch.output),
        };
        append(&mut words, &header);
        for (index, blocks) in blocks.iter().enumerate() {
            let span = (spans_at + index * span_words) as u32;
            blocks.iter().for_each(|block| append(&mut words, &Block { span, ..*block }));
        }
        words.extend(launch.floats.iter().map(|float| float_code(*float)));
        let results_from = dialect.results_from(launch.spans.len());
        let mut end = results_from.max(tallies_bytes(launch.spans.len()));
        let mut spans = Vec::with_capacity(launch.spans.len());
        for ((index, span), places) in launch.spans.iter().enumerate().zip(places.chunks_exact(inputs)) {
            let start = end.next_multiple_of(VECTOR_BYTES);
            let (used, taken) = result_bytes(job.result(), launch, span);
            end = start + taken;
            spans.push((start as usize, used as usize));
            append(
                &mut words,
                &packed::Span {
                    job: job_places[span.job],
                    first_tile: span.tiles.start as u32,
                    elements: span.elements as u32,
                    results: ((start - results_from) / VECTOR_BYTES) as u32,
                    tally: (index * TALLY_WORDS) as u32,
                },
            );
            words.extend(places.iter().map(|place| (place / VECTOR_BYTES) as u32));
        }
        words.extend(jobs);
        let element_bytes: usize = launch.floats.iter().map(|float| float.bytes()).sum();
        let elements: usize = launch.spans.iter().map(|span| span.elements).sum();
        let groups = match job {
            Job::Magnitudes(job) if job.models.len() > dialect.magnitudes_own => {
                job.models.len().div_ceil(dialect.magnitudes_models)
            }
            _ => 1,
        };
        Ok(Self {
            words,
            entry: Entry::of(job, &launch.floats, dialect),
            grid: (block_count as u32, groups as u32),
            threads: THREADS as u32,
            result_bytes: end,
            // Each further group of models reads the base again.
            read_bytes: (elements * (element_bytes + (groups - 1) * launch.floats[0].bytes())) as u64,
            written_bytes: spans.iter().map(|(_, used)| *used as u64).sum(),
            spans,
        })
    }

    /// Bytes at the beginning of the results that have to be zero: tallies, and counters.
    pub(super) fn cleared_bytes(&self, launch: &Launch) -> u64 {
        match launch.jobs[0].result() {
            Shape::Counts { .. } => self.result_bytes,
            _ => tallies_bytes(launch.spans.len()),
        }
    }
}

/// Cuts a span into the tiles of blocks, none of which adds to two records; where the span is, is filled in later.
fn blocks_of(span: &Span, launch: &Launch) -> Vec<Block> {
    let tiles = span.tiles.end - span.tiles.start;
    let (block_tiles, record_tiles) = match launch.jobs[0].result() {
        Shape::Counts { .. } => (COUNTING_BLOCK_TILES, launch.record_tiles.min(tiles)),
        _ => (BLOCK_TILES, tiles),
    };
    let mut blocks = Vec::new();
    for (record, record_first) in (0..tiles).step_by(record_tiles as usize).enumerate() {
        let end = tiles.min(record_first + record_tiles);
        for first in (record_first..end).step_by(block_tiles as usize) {
            let own = block_tiles.min(end - first) as u32;
            blocks.push(Block { span: 0, first: first as u32, tiles: own, record: record as u32 });
        }
    }
    blocks
}

/// The bytes of a span's results, and what they take: kernels write values by whole tiles.
fn result_bytes(shape: Shape, launch: &Launch, span: &Span) -> (u64, u64) {
    let tiles = span.tiles.end - span.tiles.start;
    let exact = |words: u64| (4 * words, 4 * words);
    match shape {
        Shape::Values => {
            let bytes = launch.output.bytes() as u64;
            (span.elements as u64 * bytes, tiles * TILE as u64 * bytes)
        }
        Shape::Sums { words } => exact(tiles * words as u64),
        Shape::Counts { words } => exact(span.records(launch.record_tiles) * words as u64),
        Shape::Words { words } => exact((words * span.elements) as u64),
    }
}

/// A span's results, which a kernel left in these bytes.
pub(super) fn result_of(shape: Shape, bytes: &[u8]) -> SpanResult<'_> {
    match shape {
        Shape::Values => SpanResult::Values(bytes),
        Shape::Sums { .. } => SpanResult::Sums(bytemuck::cast_slice(bytes)),
        Shape::Counts { .. } => SpanResult::Counts(bytemuck::cast_slice(bytes)),
        Shape::Words { .. } => SpanResult::Words(bytemuck::cast_slice(bytes)),
    }
}

/// A span's tally, from a kernel's words.
pub(super) fn tally_of(words: &[u32; TALLY_WORDS]) -> Tally {
    let count = |word: usize| u64::from(words[word]);
    Tally {
        odd: OddValues {
            nan: count(TALLY_NAN),
            infinite: count(TALLY_INFINITE),
            overflowed: count(TALLY_OVERFLOWED),
        },
        kept: std::array::from_fn(|model| count(TALLY_KEPT + model)),
    }
}

/// The most words that the table of any launch has.
pub(super) fn words_max(widest: &Widest, chunk_tiles: u64) -> usize {
    let spans = SPANS_MAX.min(chunk_tiles as usize);
    let inputs = widest.inputs;
    let blocks = (chunk_tiles / BLOCK_TILES + chunk_tiles / RECORD_TILES_MIN) as usize + spans;
    let factors = 1 << (inputs - 1).min(VOTERS_MAX);
    // A level job has the most words per model.
    let job = 1 + inputs * (1 + levels::LEVELS_MAX) + factors;
    Header::WORDS + blocks * Block::WORDS + inputs + spans * (packed::Span::WORDS + inputs + job)
}

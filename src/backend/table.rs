//! A launch in the form that a GPU's kernels read: header, element types, blocks, spans with the places of inputs, jobs.

use super::memory::reserve;
use super::{Launch, LaunchKind, OddValues, Span, SpanResult, Tally};
use crate::dtype::Float;
use crate::error;
use crate::kernel::packed::{
    self, TALLY_INFINITE, TALLY_KEPT, TALLY_NAN, TALLY_OVERFLOWED, TALLY_WORDS, THREADS, TableBlock,
    TableHeader, append, float_code,
};
use crate::kernel::{Compiled, Kernel, Outcome, RECORD_TILES_MIN, TILE, Widest};

/// Tiles that a block works through: enough to make up for finding out what to do.
const BLOCK_TILES: u64 = 4;

/// `consensus` counts a thread's elements of a block in a byte.
const _: () = assert!(BLOCK_TILES as usize * TILE / THREADS <= 255);

/// Tiles of a block that counts: its counters are cleared and added up once.
const COUNTING_BLOCK_TILES: u64 = 16;

/// Kernels add up ones as f32, which are exact so far.
const _: () = assert!(COUNTING_BLOCK_TILES as usize * TILE / THREADS <= 1 << 24);

/// A vector of 16 bytes: the unit that places are counted in.
const VECTOR_BYTES: u64 = 16;

/// The device memory that places of 32 bits reach.
pub(super) const PLACES_BYTES: u64 = VECTOR_BYTES << 32;

/// What differs between the kernels of the families.
#[derive(Debug, Clone, Copy)]
pub(super) struct Dialect {
    /// The text of a kernel in the family's language.
    pub(super) compiled: fn(&Kernel) -> &Compiled,
    /// Models whose counters a block keeps at once; the grid's second dimension walks over more.
    pub(super) group_models: usize,
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

/// Which kernel, and what it is compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Entry {
    pub(super) kernel: &'static Kernel,
    /// The number of models that it is compiled for; 0: any.
    pub(super) models: usize,
    /// The element type of all inputs, if they have the same.
    pub(super) float: Option<Float>,
}

impl Entry {
    /// The entry for a kind of launch.
    pub(super) fn of(LaunchKind { kernel, models, floats }: &LaunchKind, dialect: &Dialect) -> Self {
        let models = Some(*models).filter(|models| *models <= (dialect.compiled)(kernel).models);
        // No kernel is compiled for bits alone.
        let alike = floats.iter().all(|float| *float == floats[0] && *float != Float::Bit);
        Self { kernel, models: models.unwrap_or(0), float: alike.then_some(floats[0]) }
    }
}

impl Table {
    /// Packs a launch; `places` are those of its inputs in device memory, in bytes, span after span.
    ///
    /// # Errors
    /// There is no memory for it.
    pub(super) fn new(dialect: &Dialect, launch: &Launch, places: &[u64]) -> error::Result<Self> {
        let job = &*launch.jobs[0];
        let results = Results::of(dialect, launch);
        let (words, blocks) = pack(launch, places, &results)?;
        let entry = Entry::of(&LaunchKind::of(job, launch.floats.clone()), dialect);
        let groups = match job.models() {
            models if entry.kernel.group_words > 0 && entry.models == 0 => {
                models.div_ceil(dialect.group_models)
            }
            _ => 1,
        };
        let elements: usize = launch.spans.iter().map(|span| span.elements).sum();
        let bytes = |float: &Float| float.bytes_of(elements as u64);
        Ok(Self {
            words,
            entry,
            grid: (blocks as u32, groups as u32),
            threads: THREADS as u32,
            result_bytes: results.end,
            // Each further group of models reads the base again.
            read_bytes: launch.floats.iter().map(bytes).sum::<u64>()
                + (groups - 1) as u64 * bytes(&launch.floats[0]),
            written_bytes: results.spans.iter().map(|(_, used)| *used as u64).sum(),
            spans: results.spans,
        })
    }

    /// Bytes at the beginning of the results that have to be zero: tallies, and counters.
    pub(super) fn cleared_bytes(&self, launch: &Launch) -> u64 {
        match launch.jobs[0].outcome() {
            Outcome::Counts { .. } => self.result_bytes,
            _ => tallies_bytes(launch.spans.len()),
        }
    }
}

/// The results of a launch's spans in the memory for results.
struct Results {
    /// Of each span: the byte that its results begin at, and the bytes that they use.
    spans: Vec<(usize, usize)>,
    /// The byte that the kernel counts places from.
    from: u64,
    /// Bytes of them all, with what stands before them.
    end: u64,
}

impl Results {
    fn of(dialect: &Dialect, launch: &Launch) -> Self {
        let count = launch.spans.len();
        let from = dialect.results_from(count);
        let mut end = from.max(tallies_bytes(count));
        let mut spans = Vec::with_capacity(count);
        for span in &launch.spans {
            let start = end.next_multiple_of(VECTOR_BYTES);
            let (used, taken) = result_bytes(launch.jobs[0].outcome(), launch, span);
            end = start + taken;
            spans.push((start as usize, used as usize));
        }
        Self { spans, from, end }
    }
}

/// The words of a launch's table, and the number of its blocks: header, blocks, element types, spans with the places of their
/// inputs, jobs.
fn pack(launch: &Launch, places: &[u64], results: &Results) -> error::Result<(Vec<u32>, usize)> {
    let inputs = launch.floats.len();
    let blocks: Vec<Vec<TableBlock>> = launch.spans.iter().map(|span| blocks_of(span, launch)).collect();
    let block_count = blocks.iter().map(Vec::len).sum::<usize>();
    // The parts in their order; each place follows from the sizes before it.
    let blocks_at = TableHeader::WORDS;
    let floats_at = blocks_at + block_count * TableBlock::WORDS;
    let spans_at = floats_at + inputs;
    let span_words = packed::TableSpan::WORDS + inputs;
    let jobs_at = spans_at + launch.spans.len() * span_words;
    let (jobs, job_places) = pack_jobs(launch, jobs_at);
    let mut words = Vec::new();
    reserve(&mut words, jobs_at + jobs.len())?;
    let header = TableHeader {
        blocks: blocks_at as u32,
        floats: floats_at as u32,
        inputs: inputs as u32,
        output: float_code(launch.output),
    };
    append(&mut words, &header);
    for (index, blocks) in blocks.iter().enumerate() {
        let span = (spans_at + index * span_words) as u32;
        blocks.iter().for_each(|block| append(&mut words, &TableBlock { span, ..*block }));
    }
    words.extend(launch.floats.iter().map(|float| float_code(*float)));
    for ((index, span), places) in launch.spans.iter().enumerate().zip(places.chunks_exact(inputs)) {
        let (start, _) = results.spans[index];
        let packed = packed::TableSpan {
            job: job_places[index],
            first_tile: span.tiles.start as u32,
            elements: span.elements as u32,
            results: ((start as u64 - results.from) / VECTOR_BYTES) as u32,
            tally: (index * TALLY_WORDS) as u32,
        };
        append(&mut words, &packed);
        words.extend(places.iter().map(|place| (place / VECTOR_BYTES) as u32));
    }
    words.extend(jobs);
    Ok((words, block_count))
}

/// The words of a launch's jobs, which begin at a place, and where the job of each span is.
fn pack_jobs(launch: &Launch, jobs_at: usize) -> (Vec<u32>, Vec<u32>) {
    let mut words = Vec::new();
    let mut packed: Vec<Option<u32>> = vec![None; launch.jobs.len()];
    let place_of = |span: &Span| {
        let job = &launch.jobs[span.job];
        if let Some(place) = packed[span.job] {
            return place;
        }
        let place = (jobs_at + words.len()) as u32;
        let first = span.first_element();
        job.pack(&(first..first + span.elements as u64), &mut words);
        packed[span.job] = (!job.packs_parts()).then_some(place);
        place
    };
    let places = launch.spans.iter().map(place_of).collect();
    (words, places)
}

/// Cuts a span into the tiles of blocks, none of which adds to two records; where the span is, is filled in later.
fn blocks_of(span: &Span, launch: &Launch) -> Vec<TableBlock> {
    let tiles = span.tiles.end - span.tiles.start;
    let (block_tiles, record_tiles) = match launch.jobs[0].outcome() {
        Outcome::Counts { .. } => (COUNTING_BLOCK_TILES, launch.record_tiles.min(tiles)),
        _ => (BLOCK_TILES, tiles),
    };
    let mut blocks = Vec::new();
    for (record, record_first) in (0..tiles).step_by(record_tiles as usize).enumerate() {
        let end = tiles.min(record_first + record_tiles);
        for first in (record_first..end).step_by(block_tiles as usize) {
            let own = block_tiles.min(end - first) as u32;
            blocks.push(TableBlock { span: 0, first: first as u32, tiles: own, record: record as u32 });
        }
    }
    blocks
}

/// The bytes of a span's results, and what they take: kernels write values by whole tiles.
fn result_bytes(outcome: Outcome, launch: &Launch, span: &Span) -> (u64, u64) {
    let tiles = span.tiles.end - span.tiles.start;
    let exact = |words: u64| (4 * words, 4 * words);
    match outcome {
        Outcome::Values | Outcome::Room => {
            let bytes = launch.output.bytes() as u64;
            (span.elements as u64 * bytes, tiles * TILE as u64 * bytes)
        }
        Outcome::Sums { words } => exact(tiles * words as u64),
        Outcome::Counts { words } => exact(span.records(launch.record_tiles) * words as u64),
        Outcome::Words { words } => exact((words * span.elements) as u64),
    }
}

/// A span's results, which a kernel left in these bytes.
pub(super) fn result_of(outcome: Outcome, bytes: &[u8]) -> SpanResult<'_> {
    match outcome {
        Outcome::Values | Outcome::Room => SpanResult::Values(bytes),
        Outcome::Sums { .. } => SpanResult::Sums(bytemuck::cast_slice(bytes)),
        Outcome::Counts { .. } => SpanResult::Counts(bytemuck::cast_slice(bytes)),
        Outcome::Words { .. } => SpanResult::Words(bytemuck::cast_slice(bytes)),
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
    let spans = widest.spans.min(chunk_tiles as usize);
    let inputs = widest.inputs;
    let blocks = (chunk_tiles / BLOCK_TILES + chunk_tiles / RECORD_TILES_MIN) as usize + spans;
    let jobs = widest.needs(chunk_tiles).job_words;
    TableHeader::WORDS
        + blocks * TableBlock::WORDS
        + inputs
        + spans * (packed::TableSpan::WORDS + inputs)
        + jobs
}

//! A pass of one tensor, cut into units of work.
//!
//! Units are cut as workers ask for them, so that waiting work costs no memory.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use super::copies::units;
use crate::backend::{Launch, Segment, Span, SpanInput};
use crate::dtype::{Float, float_bytes};
use crate::kernel::{Job, Outcome, RECORD_TILES_MIN, RECORDS_MAX, SPANS_MAX, TILE, WORDS_TILES_MAX, tiles};
use crate::plan::{Copied, Merge, Tensor};
use crate::recipe::{Pass, Segments, everything};

/// Where a span's result belongs.
#[derive(Debug, Clone)]
pub(super) struct Destination {
    /// The tensor's place in the plan.
    pub(super) tensor: usize,
    /// Where the span's bytes go in the output tensor.
    pub(super) offset: u64,
    /// The tensor's place in its group.
    pub(super) member: usize,
    /// The span's number in the tensor's pass, and that of its first record.
    pub(super) ordinal: usize,
    pub(super) first_record: usize,
    /// The number of its segment.
    pub(super) segment: u64,
    pub(super) tiles: Range<u64>,
}

/// What a unit does; one destination per span says where its result belongs.
pub(super) enum Unit {
    /// Copies a part of one tensor.
    Copy { span: Span, destination: Destination },
    /// Runs a kernel.
    Launch { launch: Launch, destinations: Vec<Destination> },
}

/// How units are cut.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    /// The most tiles of a launch, a power of two.
    pub(super) chunk_tiles: u64,
    /// The most spans of a launch over segments.
    pub(super) spans: usize,
}

/// A pass of one tensor, and how far it is cut.
pub(super) struct Cut {
    member: usize,
    tensor: usize,
    /// Bytes of an element in the output, or of a unit that is copied.
    output_bytes: u64,
    inputs: Vec<SpanInput>,
    work: PassWork,
    left: Left,
    ordinal: usize,
}

enum PassWork {
    Copy,
    Kernel(KernelPass),
}

/// What a launch is made of.
struct KernelPass {
    job: Arc<Job>,
    floats: Vec<Float>,
    output: Float,
    hold: bool,
    record_tiles: u64,
    first_record: usize,
}

impl Cut {
    /// A copy of a whole tensor.
    pub(super) fn copy(member: usize, index: usize, tensor: &Tensor, copied: &Copied) -> Self {
        let (elements, _) = units(tensor, copied.from);
        let input = |input: &usize| SpanInput { input: *input, again: false };
        Self {
            member,
            tensor: index,
            output_bytes: copied.to.map_or(1, |to| float_bytes(to) as u64),
            inputs: copied.holders.iter().map(input).collect(),
            work: PassWork::Copy,
            left: Left::new(Segments::Whole, elements, everything(elements)),
            ordinal: 0,
        }
    }

    /// A pass of a merge; `shared` says of an input whether other tensors are still to be merged from it. What is mended is
    /// mended in whole chunks, because digests and odd values are known by chunk.
    pub(super) fn merge(
        member: usize,
        index: usize,
        tensor: &Tensor,
        merge: &Merge,
        pass: Pass,
        chunk_tiles: u64,
        shared: impl Fn(usize) -> bool,
    ) -> Self {
        let all = everything(tensor.elements);
        let (last, reads, job, by, over) = match pass {
            Pass::Combine { reads, job } => (true, reads, job, Segments::Whole, all.clone()),
            Pass::Mend { reads, job, over } => {
                (true, reads, job, Segments::Whole, whole_chunks(&over, chunk_tiles, tiles(tensor.elements)))
            }
            Pass::Measure { reads, job, by, over } => (false, reads, job, by, over),
        };
        debug_assert_eq!(reads.len(), job.inputs(), "{} reads what it names", job.kernel());
        let whole = by == Segments::Whole && over == all;
        let input = |read: &usize| {
            let input = merge.inputs[*read];
            SpanInput { input, again: !last || shared(input) }
        };
        // Parts of a tensor are counted one by one, as the recipe has cut them, and are too small to be held.
        let record_tiles =
            if whole { tiles(tensor.elements).div_ceil(RECORDS_MAX).max(RECORD_TILES_MIN) } else { u64::MAX };
        Self {
            member,
            tensor: index,
            // Of what is stored, to which the kernel's results may have to be widened.
            output_bytes: float_bytes(tensor.dtype) as u64,
            inputs: reads.iter().map(input).collect(),
            work: PassWork::Kernel(KernelPass {
                job: Arc::new(job),
                floats: reads.iter().map(|read| merge.floats[*read]).collect(),
                output: merge.output,
                hold: whole,
                record_tiles,
                first_record: 0,
            }),
            left: Left::new(by, tensor.elements, over),
            ordinal: 0,
        }
    }

    /// What the pass leaves behind, and how many records and tiles of a record it has where it counts.
    pub(super) fn outcome(&self, chunk_tiles: u64) -> (Outcome, usize, u64) {
        match &self.work {
            PassWork::Copy => (Outcome::Values, 0, u64::MAX),
            PassWork::Kernel(kernel) => {
                let records = self.left.records(chunk_tiles, kernel.record_tiles);
                (kernel.job.outcome(), records, kernel.record_tiles)
            }
        }
    }

    /// How many segments the pass measures.
    pub(super) fn segments(&self) -> u64 {
        self.left.count
    }

    /// Cuts the next span, of at most so many tiles, as job number `job` of its launch.
    fn next_span(&mut self, chunk_tiles: u64, most: u64, job: usize) -> Option<(Span, Destination)> {
        let (number, tiles) = self.left.next(chunk_tiles, most)?;
        let segment = self.left.segment(number);
        let first = tiles.start * TILE as u64;
        let elements = (self.left.elements.min(tiles.end * TILE as u64) - first) as usize;
        let span = Span { job, inputs: self.inputs.clone(), segment, tiles: tiles.clone(), elements };
        let mut destination = Destination {
            tensor: self.tensor,
            offset: span.first_element() * self.output_bytes,
            member: self.member,
            ordinal: self.ordinal,
            first_record: 0,
            segment: number,
            tiles,
        };
        if let PassWork::Kernel(kernel) = &mut self.work {
            destination.first_record = kernel.first_record;
            kernel.first_record += span.records(kernel.record_tiles) as usize;
        }
        self.ordinal += 1;
        Some((span, destination))
    }

    /// Moves spans into a launch while they fit, if this pass can share it; how many tiles that was.
    fn fill(
        &mut self,
        launch: &mut Launch,
        destinations: &mut Vec<Destination>,
        sizes: Sizes,
        room: u64,
    ) -> Option<u64> {
        let PassWork::Kernel(kernel) = &self.work else { return None };
        let first = launch.jobs.first();
        let joins = first.is_none_or(|job| job.kernel() == kernel.job.kernel())
            && (&launch.floats, launch.hold, launch.record_tiles)
                == (&kernel.floats, kernel.hold, kernel.record_tiles);
        if !joins {
            return None;
        }
        let spans = if self.left.segments == Segments::Whole { SPANS_MAX } else { sizes.spans };
        let (job, number) = (Arc::clone(&kernel.job), launch.jobs.len());
        let mut taken = 0;
        while launch.spans.len() < spans {
            let next = self.next_span(sizes.chunk_tiles, room - taken, number);
            let Some((span, destination)) = next else { break };
            taken += span.tiles.end - span.tiles.start;
            launch.spans.push(span);
            destinations.push(destination);
        }
        if taken > 0 {
            launch.jobs.push(job);
        }
        Some(taken)
    }

    /// A launch with nothing in it yet, and the most tiles that it may have.
    fn launch(kernel: &KernelPass, chunk_tiles: u64) -> (Launch, u64) {
        let room = match kernel.job.outcome() {
            Outcome::Words { .. } => chunk_tiles.min(WORDS_TILES_MAX),
            _ => chunk_tiles,
        };
        let launch = Launch {
            jobs: Vec::with_capacity(1),
            spans: Vec::with_capacity(1),
            floats: kernel.floats.clone(),
            output: kernel.output,
            hold: kernel.hold,
            record_tiles: kernel.record_tiles,
        };
        (launch, room)
    }
}

/// The next unit: at most a chunk of tiles, of as many tensors as share the kernel.
pub(super) fn next_unit(left: &mut VecDeque<Cut>, sizes: Sizes) -> Option<Unit> {
    let first = left.front_mut()?;
    let PassWork::Kernel(kernel) = &first.work else {
        let (span, destination) = first
            .next_span(sizes.chunk_tiles, sizes.chunk_tiles, 0)
            .expect("what has nothing left is not in the queue");
        if first.left.is_empty() {
            left.pop_front();
        }
        return Some(Unit::Copy { span, destination });
    };
    let (mut launch, mut room) = Cut::launch(kernel, sizes.chunk_tiles);
    let mut destinations = Vec::with_capacity(1);
    while let Some(next) = left.front_mut() {
        let Some(taken) = next.fill(&mut launch, &mut destinations, sizes, room) else { break };
        room -= taken;
        if !next.left.is_empty() {
            break;
        }
        left.pop_front();
    }
    Some(Unit::Launch { launch, destinations })
}

/// The chunks that have some of these tiles, neighbours as one.
fn whole_chunks(over: &[Range<u64>], chunk_tiles: u64, all: u64) -> Vec<Range<u64>> {
    let mut chunks: Vec<Range<u64>> = Vec::with_capacity(over.len());
    for part in over {
        let start = part.start / chunk_tiles * chunk_tiles;
        let end = part.end.next_multiple_of(chunk_tiles).min(all);
        match chunks.last_mut() {
            Some(last) if start <= last.end => last.end = last.end.max(end),
            _ => chunks.push(start..end),
        }
    }
    chunks
}

/// What of a pass is not cut yet.
struct Left {
    segments: Segments,
    /// How many segments there are, and the elements and tiles of each.
    count: u64,
    elements: u64,
    tiles: u64,
    /// The segment that comes next, and which of its tiles.
    next: u64,
    over: VecDeque<Range<u64>>,
}

impl Left {
    /// `over` are the tiles of a whole tensor; of rows and columns it is all of them.
    fn new(segments: Segments, elements: u64, over: Vec<Range<u64>>) -> Self {
        let (count, of_segment) = (segments.count(elements), segments.elements(elements));
        let tiles = tiles(of_segment);
        let over = match segments {
            Segments::Whole => over.into(),
            Segments::Rows { .. } => std::iter::once(0..tiles).collect(),
            Segments::Columns { .. } => std::iter::once(0..1).collect(),
        };
        Self { segments, count, elements: of_segment, tiles, next: 0, over }
    }

    fn is_empty(&self) -> bool {
        self.over.is_empty()
    }

    /// Where the elements of a segment are.
    fn segment(&self, number: u64) -> Segment {
        match self.segments {
            Segments::Whole => Segment::WHOLE,
            Segments::Rows { columns } => Segment { first: number * columns, stride: 1 },
            Segments::Columns { columns } => Segment { first: number, stride: columns },
        }
    }

    /// The next tiles of one segment, if they are at most `most`. They end where chunks of the segment end, so that every
    /// pass has the same ones. Of columns one tile at a time, so that neighbours have the same rows.
    fn next(&mut self, chunk_tiles: u64, most: u64) -> Option<(u64, Range<u64>)> {
        let range = self.over.front_mut()?;
        let end = range.end.min((range.start / chunk_tiles + 1) * chunk_tiles);
        if end - range.start > most {
            return None;
        }
        let (part, segment) = (range.start..end, self.next);
        range.start = end;
        if range.is_empty() {
            self.over.pop_front();
        }
        if self.over.is_empty() {
            self.go_on(&part);
        }
        Some((segment, part))
    }

    /// Goes on with the next segment, if one is left.
    fn go_on(&mut self, done: &Range<u64>) {
        self.next += 1;
        let more = self.next < self.count;
        match self.segments {
            Segments::Rows { .. } if more => self.over.push_back(0..self.tiles),
            Segments::Columns { .. } if more => self.over.push_back(done.clone()),
            Segments::Columns { .. } if done.end < self.tiles => {
                self.next = 0;
                self.over.push_back(done.end..done.end + 1);
            }
            _ => {}
        }
    }

    /// How many records of so many tiles there are, if spans are cut as [`Left::next`] does.
    fn records(&self, chunk_tiles: u64, record_tiles: u64) -> usize {
        let of_span = |tiles: Range<u64>| (tiles.end - tiles.start).div_ceil(record_tiles);
        let of_range = |range: &Range<u64>| {
            let chunks = range.start / chunk_tiles..range.end.div_ceil(chunk_tiles);
            let span =
                |chunk: u64| range.start.max(chunk * chunk_tiles)..range.end.min((chunk + 1) * chunk_tiles);
            chunks.map(|chunk| of_span(span(chunk))).sum::<u64>()
        };
        self.over.iter().map(of_range).sum::<u64>() as usize
    }
}

//! The CPU: the reference for every other device, and a product of its own.
//!
//! A worker takes a span of tiles from read to result while it stays in its core's cache: run the kernel's twin on a tile,
//! as it is stored or decoded to f32, and encode. Inputs that another sweep needs stay in memory up to a budget: where they lie
//! anyway, or copied.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use multiversion::multiversion;

use super::device::LaneBytes;
use super::memory::{lengthen, reserve};
use super::{Backend, Hold, Lane, Launch, OddValues, Output, Read, Span, SpanResult, Tally, Yardstick};
use crate::dtype::{Float, StoredBf16, decode, encode_all, finite_max};
use crate::error::Result;
use crate::kernel::{
    Inputs, Job, RECORDS_MAX, Result as Shape, TILE, Target, VOTERS_MAX, Widest, magnitudes,
};
use crate::timeline::{By, Stage, Timeline};

/// 128 Ki elements: 256 KiB of bfloat16 per input stay in a core's second-level cache.
pub(super) const CHUNK_TILES: u64 = 128;

/// What one lane takes: chunks of inputs and output; beside them a few tiles of f32 per input, the keys that a search
/// looks through, and the counters of a group, once as they come in and once as they are looked at.
pub(super) fn lane_bytes(widest: &Widest, chunk_tiles: u64) -> LaneBytes {
    let counters = 2 * RECORDS_MAX * (4 * magnitudes::WORDS * widest.measured.min(VOTERS_MAX)) as u64;
    let element_bytes = (widest.input_bytes + widest.output_bytes).max(16);
    let chunk_bytes = chunk_tiles * (TILE * element_bytes) as u64;
    LaneBytes {
        host: chunk_bytes + (widest.inputs as u64 + 2) * (64 << 10) + (1 << 20) + counters,
        device: 0,
        binding: 0,
    }
}

/// The CPU as a device.
#[derive(Debug)]
pub struct Cpu {
    held: Mutex<Held>,
    /// Whether kernels are run; see [`super::Limits::kernels`].
    kernels_run: bool,
}

impl Cpu {
    /// A CPU that holds at most `hold_bytes` of inputs between sweeps.
    pub fn new(hold_bytes: u64) -> Self {
        Self {
            held: Mutex::new(Held {
                chunks: HashMap::new(),
                brought: HashMap::new(),
                spare: Vec::new(),
                budget_bytes: hold_bytes,
            }),
            kernels_run: true,
        }
    }

    /// A CPU that reads inputs and leaves room for results, and computes nothing: the floor of a merge.
    pub fn idle() -> Self {
        Self { kernels_run: false, ..Self::new(0) }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().expect("no worker panics while it holds this lock")
    }
}

impl Backend for Cpu {
    fn name(&self) -> String {
        "cpu".into()
    }

    fn lane<'a>(&'a self, worker: usize, timeline: &'a Timeline) -> Result<Box<dyn Lane + 'a>> {
        let (slots, room) = (Vec::new(), Room::default());
        Ok(Box::new(CpuLane { cpu: self, worker, timeline, slots, room, finished: None }))
    }

    fn yardstick(&self, kind: Yardstick, elements: u64) -> Result<Duration> {
        yardstick(kind, elements as usize)
    }

    fn forget(&self, tensor: usize) -> bool {
        let mut held = self.held();
        let chunks: Vec<_> = held.chunks.extract_if(|key, _| key.tensor == tensor).collect();
        chunks.into_iter().for_each(|(_, chunk)| held.recycle(chunk));
        let brought: Vec<_> = held.brought.extract_if(|key, _| key.tensor == tensor).collect();
        held.budget_bytes += brought.iter().map(|(_, bytes)| *bytes as u64).sum::<u64>();
        !brought.is_empty()
    }
}

/// One thread's copy from memory to memory, or its xor of several tensors, whose results stay in its cache as those of
/// kernels do.
fn yardstick(yardstick: Yardstick, elements: usize) -> Result<Duration> {
    let words = elements / 4;
    let tensor = |i: usize| -> Result<Vec<u64>> {
        let mut tensor = Vec::new();
        reserve(&mut tensor, words)?;
        tensor.extend(i as u64..(i + words) as u64);
        Ok(tensor)
    };
    let inputs = match yardstick {
        Yardstick::Copy => {
            let (from, mut to) = (tensor(0)?, tensor(1)?);
            let started = Instant::now();
            std::hint::black_box(&mut to).copy_from_slice(std::hint::black_box(&from));
            return Ok(started.elapsed());
        }
        Yardstick::Stream { inputs, .. } => inputs,
    };
    let tensors: Vec<Vec<u64>> = (0..inputs).map(tensor).collect::<Result<_>>()?;
    let mut out = vec![1u64; TILE * CHUNK_TILES as usize / 4];
    let started = Instant::now();
    for first in (0..words).step_by(TILE / 4) {
        let end = words.min(first + TILE / 4);
        let out_first = first % out.len();
        let out = &mut out[out_first..out_first + end - first];
        out.copy_from_slice(&tensors[0][first..end]);
        for tensor in &tensors[1..] {
            out.iter_mut().zip(&tensor[first..end]).for_each(|(out, word)| *out ^= word);
        }
        std::hint::black_box(&out);
    }
    Ok(started.elapsed())
}

/// Inputs held between sweeps.
#[derive(Debug)]
struct Held {
    chunks: HashMap<Key, Arc<Vec<u8>>>,
    /// Parts that lie elsewhere in memory until their tensor is forgotten, and their bytes.
    brought: HashMap<Key, usize>,
    /// Buffers to use again: fresh memory costs a page fault every 4 KiB.
    spare: Vec<Vec<u8>>,
    budget_bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    tensor: usize,
    first_tile: u64,
    input: usize,
}

impl Held {
    /// A buffer to be lengthened for something to hold, while the budget lasts.
    fn buffer(&mut self, bytes: usize) -> Option<Vec<u8>> {
        // What was used last may still be in a cache.
        if let Some(at) = self.spare.iter().rposition(|spare| spare.capacity() >= bytes) {
            let mut buffer = self.spare.swap_remove(at);
            buffer.truncate(bytes);
            return Some(buffer);
        }
        while self.budget_bytes < bytes as u64 {
            self.budget_bytes += self.spare.pop()?.capacity() as u64;
        }
        self.budget_bytes -= bytes as u64;
        Some(Vec::new())
    }

    /// Whether a part was brought and is there.
    fn has_brought(&self, key: &Key, bytes: usize) -> bool {
        self.brought.get(key).is_some_and(|there| *there >= bytes)
    }

    /// Takes so many bytes of the budget, while it lasts.
    fn reserve(&mut self, bytes: usize) -> bool {
        let fits = self.budget_bytes >= bytes as u64;
        self.budget_bytes -= if fits { bytes as u64 } else { 0 };
        fits
    }

    /// Notes that a part was brought, and stays until its tensor is forgotten; or gives its bytes back.
    fn use_reserved(&mut self, key: Key, bytes: usize, brought: bool) {
        if brought {
            self.brought.insert(key, bytes);
        } else {
            self.budget_bytes += bytes as u64;
        }
    }

    fn recycle(&mut self, chunk: Arc<Vec<u8>>) {
        if let Some(buffer) = Arc::into_inner(chunk) {
            self.spare.push(buffer);
        }
    }
}

/// One worker's buffers.
struct CpuLane<'a> {
    cpu: &'a Cpu,
    worker: usize,
    timeline: &'a Timeline,
    /// A buffer per input, for what is not held.
    slots: Vec<Vec<u8>>,
    room: Room,
    finished: Option<Finished>,
}

/// Where spans are computed and their results stay until they are collected.
#[derive(Default)]
struct Room {
    /// A tile of every input as f32.
    decoded: Vec<f32>,
    /// A kernel's own room.
    scratch: Vec<f32>,
    values: Values,
    sums: Vec<f32>,
    words: Vec<u32>,
}

/// A launch that waits to be collected.
struct Finished {
    shape: Shape,
    /// Of each span, where its results end in the room's vector of that shape, and its tally.
    ends: Vec<(usize, Tally)>,
}

impl Lane for CpuLane<'_> {
    fn depth(&self) -> usize {
        1
    }

    fn submit(&mut self, launch: Launch, read: &mut dyn Read) -> Result<()> {
        assert!(self.finished.is_none(), "a CPU lane is one launch deep");
        self.room.clear();
        let shape = launch.jobs[0].result();
        let mut ends = Vec::with_capacity(launch.spans.len());
        for (index, span) in launch.spans.iter().enumerate() {
            let pieces = self.inputs(&launch, index, span, read)?;
            let floats = launch.floats.iter();
            let bytes: Vec<&[u8]> = pieces
                .iter()
                .zip(&self.slots)
                .zip(floats)
                .enumerate()
                .map(|(place, ((piece, slot), float))| {
                    let bytes = match piece {
                        Piece::Brought => read.mapped(index, place),
                        Piece::Held(chunk) => chunk,
                        Piece::Read => slot,
                    };
                    &bytes[..span.elements * float.bytes()]
                })
                .collect();
            self.room.reserve(shape, span, &launch)?;
            let job = &launch.jobs[span.job];
            let written = if shape == Shape::Values { span.elements * launch.output.bytes() } else { 0 };
            let moved = written + bytes.iter().map(|bytes| bytes.len()).sum::<usize>();
            let tally = self.timeline.time(Stage::Compute, By::Worker(self.worker), moved as u64, || {
                if self.cpu.kernels_run {
                    run_span(&mut self.room, job, span, &launch, &bytes)
                } else {
                    self.room.values.room_for(written);
                    Tally::default()
                }
            });
            ends.push((self.room.len(shape), tally));
            if launch.hold == Hold::Take {
                let mut store = self.cpu.held();
                for piece in pieces {
                    if let Piece::Held(chunk) = piece {
                        store.recycle(chunk);
                    }
                }
            }
        }
        self.finished = Some(Finished { shape, ends });
        Ok(())
    }

    fn collect(&mut self, take: &mut dyn FnMut(usize, Output<'_>) -> Result<()>) -> Result<()> {
        let finished = self.finished.take().expect("collect follows submit");
        let mut start = 0;
        for (span, (end, tally)) in finished.ends.into_iter().enumerate() {
            let result = self.room.result(finished.shape, start..end);
            take(span, Output { result, tally, redone: false })?;
            start = end;
        }
        Ok(())
    }
}

/// Where a span's elements in one input are.
enum Piece {
    /// Where they lie anyway.
    Brought,
    /// Held.
    Held(Arc<Vec<u8>>),
    /// In the lane's slot.
    Read,
}

impl CpuLane<'_> {
    /// Brings in a span's inputs.
    fn inputs(
        &mut self,
        launch: &Launch,
        index: usize,
        span: &Span,
        read: &mut dyn Read,
    ) -> Result<Vec<Piece>> {
        self.slots.resize_with(self.slots.len().max(launch.reads.len()), Vec::new);
        let mut pieces = Vec::with_capacity(launch.reads.len());
        for (place, input) in launch.reads.iter().enumerate() {
            let key = Key { tensor: span.tensor, first_tile: span.tiles.start, input: *input };
            let bytes = span.elements * launch.floats[place].bytes();
            if self.cpu.held().has_brought(&key, bytes) {
                pieces.push(Piece::Brought);
                continue;
            }
            // What is read once is read, not brought: the copy is then in the cache, which pays for it.
            if launch.hold == Hold::Keep && self.cpu.held().reserve(bytes) {
                let brought = read.bring(index, place)?;
                self.cpu.held().use_reserved(key, bytes, brought);
                if brought {
                    pieces.push(Piece::Brought);
                    continue;
                }
            }
            let (found, buffer) = self.cpu.find(&key, bytes, launch.hold);
            pieces.push(match (found, buffer) {
                (Some(chunk), _) => Piece::Held(chunk),
                (None, Some(mut buffer)) => {
                    lengthen(&mut buffer, bytes)?;
                    read.read(index, place, &mut buffer)?;
                    let chunk = Arc::new(buffer);
                    self.cpu.held().chunks.insert(key, Arc::clone(&chunk));
                    Piece::Held(chunk)
                }
                (None, None) => {
                    let slot = &mut self.slots[place];
                    lengthen(slot, bytes)?;
                    read.read(index, place, &mut slot[..bytes])?;
                    Piece::Read
                }
            });
        }
        Ok(pieces)
    }
}

impl Cpu {
    /// A held chunk, or else a buffer to hold one in.
    fn find(&self, key: &Key, bytes: usize, hold: Hold) -> (Option<Arc<Vec<u8>>>, Option<Vec<u8>>) {
        let mut store = self.held();
        let long_enough = store.chunks.get(key).is_some_and(|chunk| chunk.len() >= bytes);
        match hold {
            Hold::Take if long_enough => (store.chunks.remove(key), None),
            _ if long_enough => (store.chunks.get(key).cloned(), None),
            Hold::Keep => (None, store.buffer(bytes)),
            Hold::Peek | Hold::Take => (None, None),
        }
    }
}

/// Compiles functions for several instruction sets, the best of which is chosen at run time. None of them fuses or
/// reorders arithmetic, so they all give the same bytes.
macro_rules! for_each_instruction_set {
    ($($(#[$about:meta])* $vis:vis fn $name:ident($($argument:ident: $kind:ty),*) $(-> $out:ty)? $body:block)*) => {$(
        $(#[$about])*
        #[multiversion(targets(
            "x86_64+avx512f+avx512bw+avx512cd+avx512dq+avx512vl+avx2+bmi1+bmi2+lzcnt+popcnt",
            "x86_64+avx2+bmi1+bmi2+lzcnt+popcnt",
            "aarch64+neon",
        ))]
        $vis fn $name($($argument: $kind),*) $(-> $out)? $body
    )*};
}

for_each_instruction_set! {
    /// Runs a job on a tile of decoded inputs.
    fn run_tile(job: &Job, tile: u64, inputs: &Inputs<'_>, scratch: &mut Vec<f32>, target: Target<'_>) {
        job.tile(tile, inputs, scratch, target);
    }

    /// Runs a job on a tile of bfloat16, as it is stored.
    fn run_tile_of_bf16(
        job: &Job,
        tile: u64,
        inputs: &Inputs<'_, StoredBf16>,
        scratch: &mut Vec<f32>,
        target: Target<'_>
    ) {
        job.tile(tile, inputs, scratch, target);
    }

    /// Decodes a tile of one input.
    pub fn decode_tile(float: Float, bytes: &[u8], decoded: &mut [f32]) {
        decode(float, bytes, decoded);
    }

    /// Encodes a tile of results; the bits of the largest magnitude.
    pub fn encode_tile(output: Float, merged: &[f32], encoded: &mut [u8]) -> u32 {
        encode_all(output, merged, encoded)
    }
}

/// The inputs of a span, as kernels read them.
enum Pieces<'a> {
    /// All of them bfloat16, in which models are stored: not decoded before they are in a register.
    Bf16(Vec<&'a [StoredBf16]>),
    /// Of any types: decoded tile by tile.
    Any { inputs: &'a [&'a [u8]], floats: &'a [Float] },
}

impl<'a> Pieces<'a> {
    fn new(inputs: &'a [&'a [u8]], floats: &'a [Float]) -> Self {
        if floats.iter().all(|float| *float == Float::BF16) {
            Self::Bf16(inputs.iter().map(|input| bytemuck::cast_slice(input)).collect())
        } else {
            Self::Any { inputs, floats }
        }
    }

    /// Runs a job on tile number `tile` of the tensor, which is this part of the span.
    fn run(
        &self,
        job: &Job,
        tile: u64,
        part: &Range<usize>,
        (decoded, scratch): (&mut Vec<f32>, &mut Vec<f32>),
        target: Target<'_>,
    ) {
        let len = part.len();
        match self {
            Self::Bf16(pieces) => {
                let inputs = Inputs { pieces, first: part.start, len };
                run_tile_of_bf16(job, tile, &inputs, scratch, target);
            }
            Self::Any { floats, .. } => {
                decoded.resize(decoded.len().max(floats.len() * TILE), 0.0);
                for (input, decoded) in (0..floats.len()).zip(decoded.chunks_exact_mut(TILE)) {
                    self.decode(input, part, decoded);
                }
                let pieces: Vec<&[f32]> = decoded.chunks_exact(TILE).collect();
                run_tile(job, tile, &Inputs { pieces: &pieces, first: 0, len }, scratch, target);
            }
        }
    }

    /// Decodes a part of one input.
    fn decode(&self, input: usize, part: &Range<usize>, decoded: &mut [f32]) {
        let decoded = &mut decoded[..part.len()];
        match self {
            Self::Bf16(pieces) => {
                decode_tile(Float::BF16, bytemuck::cast_slice(&pieces[input][part.clone()]), decoded);
            }
            Self::Any { inputs, floats } => {
                let (float, bytes) = (floats[input], floats[input].bytes());
                decode_tile(float, &inputs[input][part.start * bytes..part.end * bytes], decoded);
            }
        }
    }

    /// What is odd about the part of the inputs.
    fn odd(&self, part: &Range<usize>, decoded: &mut [f32]) -> OddValues {
        let mut odd = OddValues::default();
        let inputs = match self {
            Self::Bf16(pieces) => pieces.len(),
            Self::Any { floats, .. } => floats.len(),
        };
        for input in 0..inputs {
            self.decode(input, part, decoded);
            odd.count(&decoded[..part.len()]);
        }
        odd
    }
}

/// Runs a job over a span, tile by tile. Results are appended to the room's vector of the job's shape, which has been
/// reserved.
fn run_span(room: &mut Room, job: &Job, span: &Span, launch: &Launch, inputs: &[&[u8]]) -> Tally {
    let (pieces, output) = (Pieces::new(inputs, &launch.floats), launch.output);
    let mut tally = Tally::default();
    let shape = job.result();
    let mut counters = room.words.len();
    let mut merged = [0.0; TILE];
    for (tile, first) in span.tiles.clone().zip((0..span.elements).step_by(TILE)) {
        let part = first..span.elements.min(first + TILE);
        let own = (&mut room.decoded, &mut room.scratch);
        match shape {
            Shape::Values => {
                let merged = &mut merged[..part.len()];
                pieces.run(job, tile, &part, own, Target::Values(merged, &mut tally.kept));
                let encoded = room.values.room_for(part.len() * output.bytes());
                // An input that is not finite makes its result so: only where there is one, inputs are looked at.
                if encode_tile(output, merged, encoded) > finite_max(output) {
                    let mut odd = pieces.odd(&part, &mut [0.0; TILE]);
                    odd.count_overflow(merged, finite_max(output));
                    tally.odd += odd;
                }
            }
            Shape::Sums { words } => {
                let end = room.sums.len();
                room.sums.resize(end + words, 0.0);
                pieces.run(job, tile, &part, own, Target::Sums(&mut room.sums[end..]));
            }
            Shape::Counts { words } => {
                if (tile - span.tiles.start).is_multiple_of(launch.record_tiles) {
                    counters = room.words.len();
                    room.words.resize(counters + words, 0);
                }
                pieces.run(job, tile, &part, own, Target::Words(&mut room.words[counters..]));
            }
            Shape::Words { words } => {
                let end = room.words.len();
                room.words.resize(end + words * part.len(), 0);
                pieces.run(job, tile, &part, own, Target::Words(&mut room.words[end..]));
            }
        }
    }
    tally
}

impl Room {
    fn clear(&mut self) {
        self.values.used = 0;
        self.sums.clear();
        self.words.clear();
    }

    /// Makes room for the results of a span.
    fn reserve(&mut self, shape: Shape, span: &Span, launch: &Launch) -> Result<()> {
        let tiles = (span.tiles.end - span.tiles.start) as usize;
        match shape {
            Shape::Values => {
                let end = self.values.used + span.elements * launch.output.bytes();
                lengthen(&mut self.values.bytes, end)
            }
            Shape::Sums { words } => reserve(&mut self.sums, words * tiles),
            Shape::Counts { words } => {
                reserve(&mut self.words, words * span.records(launch.record_tiles) as usize)
            }
            Shape::Words { words } => reserve(&mut self.words, words * span.elements),
        }
    }

    /// A part of a shape's results.
    fn result(&self, shape: Shape, part: Range<usize>) -> SpanResult<'_> {
        match shape {
            Shape::Values => SpanResult::Values(&self.values.bytes[part]),
            Shape::Sums { .. } => SpanResult::Sums(&self.sums[part]),
            Shape::Counts { .. } => SpanResult::Counts(&self.words[part]),
            Shape::Words { .. } => SpanResult::Words(&self.words[part]),
        }
    }

    /// How much there is of a shape's results.
    fn len(&self, shape: Shape) -> usize {
        match shape {
            Shape::Values => self.values.used,
            Shape::Sums { .. } => self.sums.len(),
            Shape::Counts { .. } | Shape::Words { .. } => self.words.len(),
        }
    }
}

/// Runs single spans for devices that cannot.
#[derive(Default)]
pub(super) struct Engine(Room);

impl Engine {
    /// Runs one span of a launch; `inputs` are its elements, as stored.
    ///
    /// # Errors
    /// There is no memory for its results.
    pub(super) fn run(&mut self, launch: &Launch, span: &Span, inputs: &[&[u8]]) -> Result<Output<'_>> {
        let (job, room) = (&launch.jobs[span.job], &mut self.0);
        room.clear();
        room.reserve(job.result(), span, launch)?;
        let tally = run_span(room, job, span, launch, inputs);
        let shape = job.result();
        Ok(Output { result: room.result(shape, 0..room.len(shape)), tally, redone: true })
    }
}

/// Encoded values; the vector only grows, because clearing what is overwritten anyway would cost a pass.
#[derive(Default)]
struct Values {
    bytes: Vec<u8>,
    used: usize,
}

impl Values {
    fn room_for(&mut self, bytes: usize) -> &mut [u8] {
        let start = self.used;
        self.used += bytes;
        &mut self.bytes[start..self.used]
    }
}

//! Spans computed by the processor: for the CPU, and for devices that make no promises about some values.
//!
//! A span goes from its inputs to its results while it stays in a core's cache: run the kernel's fast path on a tile, as it
//! is stored or decoded to f32, and encode.

use std::ops::Range;

use super::memory::{lengthen, reserve};
use super::{Launch, OddValues, Span, SpanResult, Tally};
use crate::dtype::{Float, StoredBf16, decode, encode_all, finite_max};
use crate::error::Result;
use crate::instructions::for_each_instruction_set;
use crate::kernel::philox::TileMask;
use crate::kernel::thinning::Mask;
use crate::kernel::{Job, Outcome, TILE, Target, TileInputs};

/// Where spans are computed, and where their results stay until they are looked at, span after span.
#[derive(Default)]
pub(super) struct Room {
    /// A tile of every input as f32, and a kernel's own room.
    own: Own,
    values: EncodedValues,
    sums: Vec<f32>,
    words: Vec<u32>,
}

#[derive(Default)]
struct Own {
    decoded: Vec<f32>,
    scratch: Vec<f32>,
}

impl Room {
    /// Forgets all results.
    pub(super) fn clear(&mut self) {
        self.values.used = 0;
        self.sums.clear();
        self.words.clear();
    }

    /// Runs a span of a launch; `inputs` are its elements, as stored, and `masks` what was drawn for it. The results stand
    /// behind those of the spans before it.
    ///
    /// # Errors
    /// There is no memory for the results.
    pub(super) fn run(
        &mut self,
        launch: &Launch,
        span: &Span,
        inputs: &[&[u8]],
        masks: &SpanMasks,
    ) -> Result<Tally> {
        let job = &*launch.jobs[span.job];
        self.reserve(job.outcome(), span, launch)?;
        let elements = Elements { stored: Stored::new(inputs, &launch.floats), masks };
        match job.outcome() {
            Outcome::Values => return Ok(self.merge(job, launch.output, span, &elements)),
            Outcome::Sums { words } => self.sum(job, words, span, &elements),
            Outcome::Counts { words } => self.count(job, words, launch.record_tiles, span, &elements),
            Outcome::Words { words } => self.keep_words(job, words, span, &elements),
            Outcome::Room => job.fill(inputs, self.values.room_for(span.elements * launch.output.bytes())),
        }
        Ok(Tally::default())
    }

    /// Merges tile by tile, and encodes while the values are at hand.
    fn merge(&mut self, job: &Job, output: Float, span: &Span, elements: &Elements<'_>) -> Tally {
        let mut tally = Tally::default();
        let mut merged = [0.0; TILE];
        for (tile, part) in tiles_of(span) {
            let merged = &mut merged[..part.len()];
            elements.run(job, tile, &part, &mut self.own, Target::Values(merged, &mut tally.kept));
            let encoded = self.values.room_for(part.len() * output.bytes());
            // An input that is not finite makes its result so: only where there is one, inputs are looked at.
            if encode_tile(output, merged, encoded) > finite_max(output) {
                let mut odd = elements.stored.odd(job.merged(), &part, &mut [0.0; TILE]);
                odd.count_overflow(merged, finite_max(output));
                tally.odd += odd;
            }
        }
        tally
    }

    fn sum(&mut self, job: &Job, words: usize, span: &Span, elements: &Elements<'_>) {
        for (tile, part) in tiles_of(span) {
            let end = self.sums.len();
            self.sums.resize(end + words, 0.0);
            elements.run(job, tile, &part, &mut self.own, Target::Sums(&mut self.sums[end..]));
        }
    }

    fn count(&mut self, job: &Job, words: usize, record_tiles: u64, span: &Span, elements: &Elements<'_>) {
        let mut counters = self.words.len();
        for (tile, part) in tiles_of(span) {
            if (tile - span.tiles.start).is_multiple_of(record_tiles) {
                counters = self.words.len();
                self.words.resize(counters + words, 0);
            }
            elements.run(job, tile, &part, &mut self.own, Target::Words(&mut self.words[counters..]));
        }
    }

    fn keep_words(&mut self, job: &Job, words: usize, span: &Span, elements: &Elements<'_>) {
        for (tile, part) in tiles_of(span) {
            let end = self.words.len();
            self.words.resize(end + words * part.len(), 0);
            elements.run(job, tile, &part, &mut self.own, Target::Words(&mut self.words[end..]));
        }
    }

    /// Makes room for the results of a span.
    fn reserve(&mut self, outcome: Outcome, span: &Span, launch: &Launch) -> Result<()> {
        let tiles = (span.tiles.end - span.tiles.start) as usize;
        match outcome {
            Outcome::Values | Outcome::Room => {
                let end = self.values.used + span.elements * launch.output.bytes();
                lengthen(&mut self.values.bytes, end)
            }
            Outcome::Sums { words } => reserve(&mut self.sums, words * tiles),
            Outcome::Counts { words } => {
                reserve(&mut self.words, words * span.records(launch.record_tiles) as usize)
            }
            Outcome::Words { words } => reserve(&mut self.words, words * span.elements),
        }
    }

    /// A part of the results of one kind.
    pub(super) fn result(&self, outcome: Outcome, part: Range<usize>) -> SpanResult<'_> {
        match outcome {
            Outcome::Values | Outcome::Room => SpanResult::Values(&self.values.bytes[part]),
            Outcome::Sums { .. } => SpanResult::Sums(&self.sums[part]),
            Outcome::Counts { .. } => SpanResult::Counts(&self.words[part]),
            Outcome::Words { .. } => SpanResult::Words(&self.words[part]),
        }
    }

    /// How much there is of the results of one kind.
    pub(super) fn len(&self, outcome: Outcome) -> usize {
        match outcome {
            Outcome::Values | Outcome::Room => self.values.used,
            Outcome::Sums { .. } => self.sums.len(),
            Outcome::Counts { .. } | Outcome::Words { .. } => self.words.len(),
        }
    }
}

/// The tiles of a span, and which of its elements each has.
fn tiles_of(span: &Span) -> impl Iterator<Item = (u64, Range<usize>)> {
    let (first, elements) = (span.tiles.start, span.elements);
    let part = move |start: usize| (first + (start / TILE) as u64, start..elements.min(start + TILE));
    (0..elements).step_by(TILE).map(part)
}

for_each_instruction_set! {
    /// Draws a random mask for the tiles from number `first` on.
    fn draw(mask: Mask, first: u64, drawn: &mut [TileMask]) {
        for (tile, drawn) in (first..).zip(drawn) {
            *drawn = mask.draw(tile);
        }
    }

    /// Runs a job on a tile of decoded inputs.
    fn run_tile(job: &Job, tile: u64, inputs: &TileInputs<'_>, scratch: &mut Vec<f32>, target: Target<'_>) {
        job.tile(tile, inputs, scratch, target);
    }

    /// Runs a job on a tile of bfloat16, as it is stored.
    fn run_tile_of_bf16(
        job: &Job,
        tile: u64,
        inputs: &TileInputs<'_, StoredBf16>,
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

/// What the random masks of a span keep, model by model: tile after tile, nothing where no chance is in it.
pub(super) type SpanMasks = Vec<Vec<TileMask>>;

/// Draws the random mask of a model for a span.
///
/// # Errors
/// There is no memory for it.
pub(super) fn drawn(mask: Mask, span: &Span) -> Result<Vec<TileMask>> {
    let mut drawn = Vec::new();
    lengthen(&mut drawn, (span.tiles.end - span.tiles.start) as usize)?;
    draw(mask, span.tiles.start, &mut drawn);
    Ok(drawn)
}

/// Draws all random masks of a span.
///
/// # Errors
/// There is no memory for them.
pub(super) fn draw_all(job: &Job, span: &Span) -> Result<SpanMasks> {
    job.masks().into_iter().map(|mask| mask.map_or(Ok(Vec::new()), |mask| drawn(mask, span))).collect()
}

/// What kernels read of a span.
struct Elements<'a> {
    stored: Stored<'a>,
    masks: &'a SpanMasks,
}

impl Elements<'_> {
    /// Runs a job on tile number `tile` of the tensor, which is this part of the span.
    fn run(
        &self,
        job: &Job,
        tile: u64,
        part: &Range<usize>,
        Own { decoded, scratch }: &mut Own,
        target: Target<'_>,
    ) {
        let (len, masks, ordinal) = (part.len(), self.masks.as_slice(), part.start / TILE);
        match &self.stored {
            Stored::Bf16(inputs) => {
                let tile_of = TileInputs { chunks: inputs, first: part.start, len, masks, ordinal };
                run_tile_of_bf16(job, tile, &tile_of, scratch, target);
            }
            Stored::Any { floats, .. } => {
                decoded.resize(decoded.len().max(floats.len() * TILE), 0.0);
                for (input, decoded) in (0..floats.len()).zip(decoded.chunks_exact_mut(TILE)) {
                    self.stored.decode(input, part, decoded);
                }
                let chunks: Vec<&[f32]> = decoded.chunks_exact(TILE).collect();
                let tile_of = TileInputs { chunks: &chunks, first: 0, len, masks, ordinal };
                run_tile(job, tile, &tile_of, scratch, target);
            }
        }
    }
}

/// The inputs of a span.
enum Stored<'a> {
    /// All of them bfloat16, in which models are stored: not decoded before they are in a register.
    Bf16(Vec<&'a [StoredBf16]>),
    /// Of any types: decoded tile by tile.
    Any { inputs: &'a [&'a [u8]], floats: &'a [Float] },
}

impl<'a> Stored<'a> {
    fn new(inputs: &'a [&'a [u8]], floats: &'a [Float]) -> Self {
        if floats.iter().all(|float| *float == Float::BF16) {
            Self::Bf16(inputs.iter().map(|input| bytemuck::cast_slice(input)).collect())
        } else {
            Self::Any { inputs, floats }
        }
    }

    /// Decodes a part of one input.
    fn decode(&self, input: usize, part: &Range<usize>, decoded: &mut [f32]) {
        let decoded = &mut decoded[..part.len()];
        match self {
            Self::Bf16(inputs) => {
                decode_tile(Float::BF16, bytemuck::cast_slice(&inputs[input][part.clone()]), decoded);
            }
            Self::Any { inputs, floats } => {
                let float = floats[input];
                // Parts begin with tiles, which are whole bytes of any type.
                let place = |element: usize| float.bytes_of(element as u64) as usize;
                decode_tile(float, &inputs[input][place(part.start)..place(part.end)], decoded);
            }
        }
    }

    /// What is odd about the part of the first inputs.
    fn odd(&self, inputs: usize, part: &Range<usize>, decoded: &mut [f32]) -> OddValues {
        let mut odd = OddValues::default();
        for input in 0..inputs {
            self.decode(input, part, decoded);
            odd.count(&decoded[..part.len()]);
        }
        odd
    }
}

/// Encoded values; the vector only grows, because clearing what is overwritten anyway would cost a pass.
#[derive(Default)]
struct EncodedValues {
    bytes: Vec<u8>,
    used: usize,
}

impl EncodedValues {
    fn room_for(&mut self, bytes: usize) -> &mut [u8] {
        let start = self.used;
        self.used += bytes;
        &mut self.bytes[start..self.used]
    }
}

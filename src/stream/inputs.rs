//! Where a launch's inputs come from, and when memory that they lie in is let go of.

use std::ops::Range;
use std::sync::PoisonError;

use super::Stream;
use crate::backend::{Read, Span};
use crate::checkpoint::Reads;
use crate::dtype::Float;
use crate::error::Result;
use crate::plan::{Action, At};
use crate::timeline::{By, Stage};

/// Where a launch's inputs come from.
pub(super) struct Reader<'a> {
    pub(super) stream: &'a Stream<'a>,
    pub(super) by: By,
    pub(super) spans: Vec<Span>,
    pub(super) reads: Vec<usize>,
    pub(super) floats: Vec<Float>,
}

impl Reader<'_> {
    /// The tensor that a span has as this input, and which bytes of it.
    fn part(&self, span: usize, input: usize) -> (At, Range<u64>) {
        let (span, element) = (&self.spans[span], self.floats[input].bytes() as u64);
        let at = self.stream.plan.tensors[span.tensor].input(self.reads[input]);
        let start = span.first_element() * element;
        (at, start..start + span.elements as u64 * element)
    }

    fn brought(&self, span: usize, input: usize, absent: bool) -> Result<Option<&[u8]>> {
        let (at, part) = self.part(span, input);
        let source = &self.stream.sources[at.source];
        source.bring(source.tensor_at(at.tensor), &part, absent)
    }
}

impl Read for Reader<'_> {
    fn read(&mut self, span: usize, input: usize, into: &mut [u8]) -> Result<()> {
        let Stream { sources, timeline, watch, reads, .. } = self.stream;
        let (at, part) = self.part(span, input);
        let (source, bytes) = (&sources[at.source], into.len() as u64);
        let read = || source.read_at(source.tensor_at(at.tensor), part.start, into, *reads);
        timeline.time(Stage::Read, self.by, bytes, read)?;
        watch.moved(bytes, 0);
        Ok(())
    }

    fn bring(&mut self, span: usize, input: usize) -> Result<bool> {
        let Stream { timeline, watch, reads, .. } = self.stream;
        if *reads != Reads::Mapped {
            return Ok(false);
        }
        if self.brought(span, input, false)?.is_none() {
            return Ok(false);
        }
        let (_, part) = self.part(span, input);
        let bytes = part.end - part.start;
        let brought =
            timeline.time(Stage::Read, self.by, bytes, || self.brought(span, input, true))?.is_some();
        watch.moved(if brought { bytes } else { 0 }, 0);
        Ok(brought)
    }

    fn mapped(&self, span: usize, input: usize) -> &[u8] {
        let brought = self.brought(span, input, false).ok().flatten();
        brought.expect("what was brought once stays mapped")
    }
}

/// Parts of inputs that were brought and are behind all workers. Many are let go of at once, because that interrupts all
/// threads.
pub(super) struct Behind {
    parts: Vec<Part>,
    bytes: u64,
    most_bytes: u64,
}

struct Part {
    source: usize,
    file: usize,
    /// In the file.
    bytes: Range<u64>,
}

impl Behind {
    pub(super) fn new(most_bytes: u64) -> Self {
        Self { parts: Vec::new(), bytes: 0, most_bytes }
    }

    /// Adds parts; all that there are, neighbours put together, if they are enough.
    fn add(&mut self, parts: impl Iterator<Item = Part>) -> Vec<Part> {
        for part in parts {
            self.bytes += part.bytes.end - part.bytes.start;
            self.parts.push(part);
        }
        if self.bytes < self.most_bytes {
            return Vec::new();
        }
        self.bytes = 0;
        let mut parts = std::mem::take(&mut self.parts);
        parts.sort_by_key(|part| (part.source, part.file, part.bytes.start));
        parts.dedup_by(|next, part| {
            let touch =
                (next.source, next.file) == (part.source, part.file) && next.bytes.start <= part.bytes.end;
            if touch {
                part.bytes.end = part.bytes.end.max(next.bytes.end);
            }
            touch
        });
        parts
    }
}

impl Stream<'_> {
    /// Lets go of all inputs of a tensor that were brought, once there are enough such tensors.
    pub(super) fn release(&self, tensor: usize) {
        let Action::Merge(merge) = &self.plan.tensors[tensor].action else { return };
        let part = |at: &At| {
            let tensor = self.sources[at.source].tensor_at(at.tensor);
            let bytes = tensor.offset..tensor.offset + tensor.bytes;
            Part { source: at.source, file: tensor.file, bytes }
        };
        let parts = merge.inputs.iter().map(part);
        let behind = self.behind.lock().unwrap_or_else(PoisonError::into_inner).add(parts);
        for Part { source, file, bytes } in behind {
            self.sources[source].release(file, &bytes);
        }
    }
}

//! Where the inputs of a launch or a copy come from: the only place beside the plan that knows which kinds there are.

use std::ops::Range;

use super::Stream;
use crate::backend::{ReadInputs, Span};
use crate::checkpoint::Reads;
use crate::error::Result;
use crate::input::{At, Input, Parts};
use crate::timeline::{By, Stage};

/// Reads the inputs of spans.
pub(super) struct Reader<'a> {
    stream: &'a Stream<'a>,
    by: By,
    spans: &'a [Span],
    /// Bytes of an element of each input.
    element_bytes: Vec<usize>,
    /// Of each input, the columns that were read last.
    columns: Vec<Columns>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(stream: &'a Stream<'a>, by: By, spans: &'a [Span], element_bytes: Vec<usize>) -> Self {
        let columns = element_bytes.iter().map(|_| Columns::default()).collect();
        Self { stream, by, spans, element_bytes, columns }
    }

    /// Reads so many elements of an input, whatever it is, from number `first` on.
    fn read_from(&mut self, input: usize, first: u64, elements: u64, into: &mut [u8]) -> Result<()> {
        let (bytes, stream) = (into.len() as u64, self.stream);
        stream.timeline.time(Stage::Read, self.by, bytes, || match &stream.plan.inputs[input] {
            Input::Stored(at) => stream.bytes(*at, first * (bytes / elements.max(1)), into),
            Input::Made(made) => {
                let stored = |at: At, start: u64, into: &mut [u8]| stream.bytes(at, start, into);
                let (inputs, threads, stop) = (&*stream.plan.inputs, stream.threads, &|| stream.watch.stop());
                made.read(first..first + elements, into, &mut Parts { inputs, stored, threads, stop })
            }
        })
    }

    /// Of a span whose elements lie one behind the other, and where that is a tensor of a checkpoint: which, and which bytes.
    fn stored(&self, span: usize, input: usize) -> Option<(At, Range<u64>)> {
        let (span, element_bytes) = (&self.spans[span], self.element_bytes[input] as u64);
        let Input::Stored(at) = &self.stream.plan.inputs[span.inputs[input].input] else { return None };
        let start = span.first_element() * element_bytes;
        (span.segment.stride == 1).then(|| (*at, start..start + span.elements as u64 * element_bytes))
    }

    fn brought(&self, span: usize, input: usize, absent: bool) -> Result<Option<&[u8]>> {
        let Some((at, part)) = self.stored(span, input) else { return Ok(None) };
        let source = &self.stream.sources[at.source];
        source.bring(source.tensor_at(at.tensor), &part, absent)
    }

    /// Reads a part of a column. With it come its neighbours that the launch wants too, so that whole stretches of rows are
    /// read and not single elements.
    fn read_column(&mut self, span: usize, input: usize, into: &mut [u8]) -> Result<()> {
        let (element_bytes, first) = (self.element_bytes[input], &self.spans[span]);
        let number = first.inputs[input].input;
        if !self.columns[input].has(number, first) {
            let neighbour = |(further, next): (u64, &Span)| {
                next.segment.first == first.segment.first + further
                    && (next.segment.stride, &next.tiles) == (first.segment.stride, &first.tiles)
            };
            let width = (0..).zip(&self.spans[span..]).take_while(|next| neighbour(*next)).count();
            let mut columns = std::mem::take(&mut self.columns[input]);
            columns.prepare(number, first, width, element_bytes);
            let mut row = vec![0; width * element_bytes];
            for place in 0..first.elements {
                let element = first.first_element() + place as u64 * first.segment.stride;
                self.read_from(number, element, width as u64, &mut row)?;
                columns.put(place, &row);
            }
            self.columns[input] = columns;
        }
        into.copy_from_slice(self.columns[input].column(&self.spans[span]));
        Ok(())
    }
}

impl ReadInputs for Reader<'_> {
    fn read(&mut self, span: usize, input: usize, into: &mut [u8]) -> Result<()> {
        let part = &self.spans[span];
        if part.segment.stride > 1 {
            return self.read_column(span, input, into);
        }
        self.read_from(part.inputs[input].input, part.first_element(), part.elements as u64, into)
    }

    fn is_mapped(&self, span: usize, input: usize) -> Result<bool> {
        Ok(self.stream.reads == Reads::Mapped && self.brought(span, input, false)?.is_some())
    }

    fn bring(&mut self, span: usize, input: usize) -> Result<bool> {
        let Stream { timeline, watch, .. } = self.stream;
        let (_, part) = self.stored(span, input).expect("what can be brought is stored");
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

impl Stream<'_> {
    /// Fills `into` with bytes of a stored tensor from `start` on, which then count as moved.
    fn bytes(&self, at: At, start: u64, into: &mut [u8]) -> Result<()> {
        let source = &self.sources[at.source];
        source.read_at(source.tensor_at(at.tensor), start, into, self.reads)?;
        self.watch.moved(into.len() as u64, 0);
        Ok(())
    }
}

/// Neighbouring columns of one input, one behind the other.
#[derive(Default)]
struct Columns {
    input: usize,
    first: u64,
    first_tile: u64,
    width: usize,
    /// Bytes of a column, and of an element.
    column_bytes: usize,
    element_bytes: usize,
    bytes: Vec<u8>,
}

impl Columns {
    fn has(&self, input: usize, span: &Span) -> bool {
        (self.input, self.first_tile) == (input, span.tiles.start)
            && (self.first..self.first + self.width as u64).contains(&span.segment.first)
            && self.column_bytes == span.elements * self.element_bytes
    }

    fn prepare(&mut self, input: usize, span: &Span, width: usize, element_bytes: usize) {
        (self.input, self.first, self.first_tile) = (input, span.segment.first, span.tiles.start);
        (self.width, self.element_bytes) = (width, element_bytes);
        self.column_bytes = span.elements * element_bytes;
        self.bytes.resize(width * self.column_bytes, 0);
    }

    /// Takes in a row's elements.
    fn put(&mut self, place: usize, row: &[u8]) {
        let at = place * self.element_bytes;
        for (column, element) in
            self.bytes.chunks_exact_mut(self.column_bytes).zip(row.chunks_exact(self.element_bytes))
        {
            column[at..at + self.element_bytes].copy_from_slice(element);
        }
    }

    fn column(&self, span: &Span) -> &[u8] {
        &self.bytes[(span.segment.first - self.first) as usize * self.column_bytes..][..self.column_bytes]
    }
}

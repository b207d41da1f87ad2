//! Inputs that stay with a device between their uses.
//!
//! What is held is known by (input, first element): whoever uses an input again, another sweep or another output, finds it.
//! Chunks lie on one grid in all passes, so a chunk is found by where it begins. What is never asked for again is given up
//! as it is used for the last time, or when the input is forgotten.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Launch, ReadInputs, Segment, Span, SpanInput};
use crate::dtype::Float;
use crate::error::Result;
use crate::kernel::TILE;

/// Held chunks of all inputs. `S` is where the device has them; a chunk keeps it alive, and so does who uses the chunk.
#[derive(Debug)]
pub(super) struct Held<S>(Mutex<HashMap<usize, HashMap<Start, Chunk<S>>>>);

/// Where a chunk begins: its segment and first tile.
type Start = (Segment, u64);

#[derive(Debug)]
struct Chunk<S> {
    slot: Arc<S>,
    /// Where it begins in the slot, in bytes.
    offset: u64,
    elements: usize,
}

/// Where one input of one span is.
#[derive(Debug)]
pub(super) struct FoundInput<S> {
    /// Which span of the launch.
    pub(super) span: usize,
    /// Which of the launch's inputs.
    pub(super) place: usize,
    /// The slot that holds it; `None`: it was read.
    pub(super) held: Option<Arc<S>>,
    /// Bytes from the beginning of that slot, or of what was read.
    pub(super) offset: u64,
}

/// The inputs of a launch.
#[derive(Debug)]
pub(super) struct Gathered<S> {
    /// Span after span, input after input.
    pub(super) found: Vec<FoundInput<S>>,
    /// Bytes that were read, which have to be copied to the device.
    pub(super) read_bytes: u64,
}

impl<S> Default for Held<S> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<S> Held<S> {
    fn inputs(&self) -> MutexGuard<'_, HashMap<usize, HashMap<Start, Chunk<S>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks up a launch's inputs, and reads those that are not held into `slot`, one after the other.
    ///
    /// # Errors
    /// Those of `read`.
    pub(super) fn gather(
        &self,
        launch: &Launch,
        slot: &mut [u8],
        read: &mut dyn ReadInputs,
    ) -> Result<Gathered<S>> {
        let mut found = Vec::with_capacity(launch.spans.len() * launch.floats.len());
        let mut read_bytes = 0;
        for (index, span) in launch.spans.iter().enumerate() {
            for (place, float) in launch.floats.iter().enumerate() {
                if let Some((slot, offset)) = self.find(span, place) {
                    self.give_up_last(span, place);
                    found.push(FoundInput { span: index, place, held: Some(slot), offset });
                    continue;
                }
                let room = padded(span, *float);
                let slot = &mut slot[read_bytes as usize..][..room as usize];
                let (input, padding) = slot.split_at_mut(float.bytes_of(span.elements as u64) as usize);
                read.read(index, place, input)?;
                // NaN, so that a kernel which counts what lies past the end is noticed.
                padding.fill(0xff);
                found.push(FoundInput { span: index, place, held: None, offset: read_bytes });
                read_bytes += room;
            }
        }
        Ok(Gathered { found, read_bytes })
    }

    /// A span's elements in one input, if they are held: the slot, and where in it.
    pub(super) fn find(&self, span: &Span, place: usize) -> Option<(Arc<S>, u64)> {
        let inputs = self.inputs();
        let chunks = inputs.get(&span.inputs[place].input)?;
        let chunk =
            chunks.get(&(span.segment, span.tiles.start)).filter(|chunk| chunk.elements >= span.elements)?;
        Some((Arc::clone(&chunk.slot), chunk.offset))
    }

    /// Gives up a span's elements in one input, if they will not be used again.
    pub(super) fn give_up_last(&self, span: &Span, place: usize) {
        let SpanInput { input, again } = span.inputs[place];
        if !again {
            let mut inputs = self.inputs();
            let before =
                inputs.get_mut(&input).and_then(|chunks| chunks.remove(&(span.segment, span.tiles.start)));
            drop(inputs);
            drop(before);
        }
    }

    /// Remembers that a span's elements in one input lie in `slot`.
    pub(super) fn keep(&self, span: &Span, place: usize, slot: &Arc<S>, offset: u64) {
        let chunk = Chunk { slot: Arc::clone(slot), offset, elements: span.elements };
        let mut inputs = self.inputs();
        let before = inputs
            .entry(span.inputs[place].input)
            .or_default()
            .insert((span.segment, span.tiles.start), chunk);
        // Slots go back to where they came from when the lock is free again.
        drop(inputs);
        drop(before);
    }

    /// The same for all of a launch that was read and will be used again.
    pub(super) fn keep_read(&self, launch: &Launch, found: &[FoundInput<S>], slot: &Arc<S>) {
        for FoundInput { span, place, offset, .. } in found.iter().filter(|found| found.held.is_none()) {
            let span = &launch.spans[*span];
            if span.inputs[*place].again {
                self.keep(span, *place, slot, *offset);
            }
        }
    }

    /// Frees what is held of an input.
    pub(super) fn forget(&self, input: usize) {
        let forgotten = self.inputs().remove(&input);
        drop(forgotten);
    }
}

/// The bytes that a span of an input takes in a slot.
pub(super) fn padded(span: &Span, float: Float) -> u64 {
    float.bytes_of(span.elements.next_multiple_of(TILE) as u64)
}

//! Inputs that stay in a GPU's memory between sweeps, and where the inputs of a launch are.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Hold, Launch, Read, Span};
use crate::error::Result;
use crate::kernel::TILE;

/// Held chunks of all tensors. `S` is a slot of the device's memory, which chunks keep alive.
#[derive(Debug)]
pub(super) struct Held<S>(Mutex<HashMap<usize, HashMap<Name, Chunk<S>>>>);

/// A chunk of one input of a tensor, by its first tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Name {
    first_tile: u64,
    input: usize,
}

#[derive(Debug)]
struct Chunk<S> {
    slot: Arc<S>,
    offset: u64,
    elements: usize,
}

/// Where one input of one span is.
#[derive(Debug)]
pub(super) struct Part<S> {
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
    pub(super) parts: Vec<Part<S>>,
    /// Bytes that were read, which have to be copied to the device.
    pub(super) read_bytes: u64,
}

impl<S> Default for Held<S> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<S> Held<S> {
    fn tensors(&self) -> MutexGuard<'_, HashMap<usize, HashMap<Name, Chunk<S>>>> {
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
        read: &mut dyn Read,
    ) -> Result<Gathered<S>> {
        let mut parts = Vec::with_capacity(launch.spans.len() * launch.reads.len());
        let mut read_bytes = 0;
        for (index, span) in launch.spans.iter().enumerate() {
            for (place, input) in launch.reads.iter().enumerate() {
                if let Some((slot, offset)) = self.find(span, *input, launch.hold) {
                    parts.push(Part { span: index, place, held: Some(slot), offset });
                    continue;
                }
                let element_bytes = launch.floats[place].bytes();
                let room = padded(span, element_bytes);
                let slot = &mut slot[read_bytes as usize..][..room as usize];
                let (input, padding) = slot.split_at_mut(span.elements * element_bytes);
                read.read(index, place, input)?;
                // NaN, so that a kernel which counts what lies past the end is seen to.
                padding.fill(0xff);
                parts.push(Part { span: index, place, held: None, offset: read_bytes });
                read_bytes += room;
            }
        }
        Ok(Gathered { parts, read_bytes })
    }

    /// A chunk that is held, and long enough.
    fn find(&self, span: &Span, input: usize, hold: Hold) -> Option<(Arc<S>, u64)> {
        let mut tensors = self.tensors();
        let chunks = tensors.get_mut(&span.tensor)?;
        let name = Name { first_tile: span.tiles.start, input };
        let found = chunks.get(&name).filter(|chunk| chunk.elements >= span.elements)?;
        let found = (Arc::clone(&found.slot), found.offset);
        if hold == Hold::Take {
            chunks.remove(&name);
        }
        Some(found)
    }

    /// Remembers that what was read for a launch stays in `slot`. Later passes ask for it when the launch is collected, so
    /// it is there by then.
    pub(super) fn keep(&self, launch: &Launch, parts: &[Part<S>], slot: &Arc<S>) {
        let mut tensors = self.tensors();
        for Part { span, place, offset, .. } in parts.iter().filter(|part| part.held.is_none()) {
            let Span { tensor, tiles, elements, .. } = &launch.spans[*span];
            let name = Name { first_tile: tiles.start, input: launch.reads[*place] };
            let chunk = Chunk { slot: Arc::clone(slot), offset: *offset, elements: *elements };
            tensors.entry(*tensor).or_default().insert(name, chunk);
        }
    }

    /// Lets go of what is still held of a tensor.
    pub(super) fn forget(&self, tensor: usize) {
        // Slots go back to where they came from when the lock is free again.
        let forgotten = self.tensors().remove(&tensor);
        drop(forgotten);
    }
}

/// The bytes that a span of an input takes in a slot.
pub(super) fn padded(span: &Span, element_bytes: usize) -> u64 {
    (span.elements.next_multiple_of(TILE) * element_bytes) as u64
}

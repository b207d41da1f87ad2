//! What lanes of all GPUs share: sizes of slots, slots to hold inputs in, and results handed over span by span.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::device::LaneBytes;
use super::table;
use super::{Launch, Limits, Output};
use crate::kernel::packed::{TALLY_REDO, TALLY_WORDS};
use crate::kernel::{Outcome, TILE, Widest};

/// Chunks of 2 Mi elements: 4 MiB of bfloat16 per input are read and copied at full speed.
pub(super) const CHUNK_TILES: u64 = 2048;

/// Launches of a lane that may be under way: one is read while the device works on the other.
pub(super) const DEPTH: usize = 2;

/// A GPU wants large chunks, and many under way: this leaves room for the program under 4 GiB.
pub(super) const HOST_BYTES: u64 = 3 << 30;

/// Slots, inputs in slots and bindings begin at multiples of this: WebGPU's default limit, and whole lines of caches.
pub(super) const ALIGNMENT: u64 = 256;

/// The bytes that a flight's slots need at the least.
#[derive(Debug, Clone, Copy)]
pub(super) struct SlotBytes {
    /// Inputs: each span of each is padded to whole tiles.
    pub(super) inputs: u64,
    /// The launch's table.
    pub(super) table: u64,
    /// Tallies and results, with what lies between.
    pub(super) results: u64,
}

impl SlotBytes {
    pub(super) fn of(widest: &Widest, chunk_tiles: u64) -> Self {
        // Each has a tile at least.
        let spans = widest.spans.min(chunk_tiles as usize);
        let tallies = (4 * spans * TALLY_WORDS) as u64;
        // A span's results begin at a multiple of a vector, and values are followed by less than a tile.
        let padding = (spans as u64 + 1) * ALIGNMENT;
        let aligned = |bytes: u64| bytes.next_multiple_of(ALIGNMENT);
        Self {
            // A plan of nothing but copies has no inputs.
            inputs: aligned(chunk_tiles * (TILE * widest.input_bytes) as u64).max(ALIGNMENT),
            table: aligned((4 * table::words_max(widest, chunk_tiles)) as u64),
            results: aligned(tallies + widest.result_bytes(chunk_tiles) + padding),
        }
    }

    pub(super) fn all(self) -> u64 {
        self.inputs + self.table + self.results
    }
}

/// What one lane takes: its flights on the device and as much of the machine, and what else the worker needs.
pub(super) fn lane_bytes(widest: &Widest, chunk_tiles: u64) -> LaneBytes {
    let device = DEPTH as u64 * SlotBytes::of(widest, chunk_tiles).all();
    // What is copied without a kernel goes through three buffers of the worker.
    let copied = 3 * chunk_tiles * (TILE * widest.copied_bytes) as u64;
    // Reads past the page cache come in whole blocks.
    let blocks = 4 * chunk_tiles * TILE as u64;
    LaneBytes {
        host: device + copied + blocks + gathered(widest, chunk_tiles) + (1 << 20),
        device,
        binding: 0,
    }
}

/// The bytes of columns that are gathered as they are read.
pub(super) fn gathered(widest: &Widest, chunk_tiles: u64) -> u64 {
    if widest.columns > 0 { chunk_tiles * (TILE * widest.input_bytes) as u64 } else { 0 }
}

/// How many slots of so many bytes are of use to hold inputs in, within the limits.
pub(super) fn spare_slots(limits: &Limits, slot_bytes: u64) -> u64 {
    // More than all that is ever held would be of no use; chunks that end early, and small tensors, leave gaps.
    let useful = match limits.widest.held_bytes {
        0 => 0,
        held => 2 * held.div_ceil(slot_bytes) + 2 * (limits.threads * DEPTH) as u64,
    };
    (limits.hold_bytes / slot_bytes).min(useful)
}

/// What belongs to nobody at the moment: flights, or slots that belong to no flight. Of slots `P` is where one is on the device.
#[derive(Debug)]
pub(super) struct Spares<P>(Mutex<Vec<P>>);

impl<P> Spares<P> {
    pub(super) fn new(places: Vec<P>) -> Arc<Self> {
        Arc::new(Self(Mutex::new(places)))
    }

    pub(super) fn take(&self) -> Option<P> {
        lock(&self.0).pop()
    }

    pub(super) fn give_back(&self, spares: impl IntoIterator<Item = P>) {
        lock(&self.0).extend(spares);
    }
}

/// A slot for inputs. A spare one goes back when it is no longer used.
#[derive(Debug)]
pub(super) struct Slot<P: Clone> {
    pub(super) place: P,
    spares: Option<Arc<Spares<P>>>,
}

impl<P: Clone> Slot<P> {
    /// A flight's own.
    pub(super) fn of_flight(place: P) -> Arc<Self> {
        Arc::new(Self { place, spares: None })
    }

    /// One to hold inputs in.
    pub(super) fn spare(place: P, spares: &Arc<Spares<P>>) -> Arc<Self> {
        Arc::new(Self { place, spares: Some(Arc::clone(spares)) })
    }
}

impl<P: Clone> Drop for Slot<P> {
    fn drop(&mut self) {
        if let Some(spares) = &self.spares {
            spares.give_back([self.place.clone()]);
        }
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a launch's inputs may be used again, so that it is worth a spare slot.
pub(super) fn holds(launch: &Launch) -> bool {
    launch.hold && launch.spans.iter().flat_map(|span| &span.inputs).any(|input| input.again)
}

/// A launch's results, span after span, and whether a span has to be computed elsewhere; `bytes` are tallies and results as
/// the kernel left them, `spans` where those of each span are.
pub(super) fn outputs<'a>(
    outcome: Outcome,
    spans: &'a [(usize, usize)],
    bytes: &'a [u8],
) -> impl Iterator<Item = (Output<'a>, bool)> {
    let tallies: &[u32] = bytemuck::cast_slice(&bytes[..4 * TALLY_WORDS * spans.len()]);
    spans.iter().zip(tallies.as_chunks::<TALLY_WORDS>().0).map(move |((start, len), tally)| {
        let result = table::result_of(outcome, &bytes[*start..start + len]);
        (Output { result, tally: table::tally_of(tally), redone: false }, tally[TALLY_REDO] != 0)
    })
}

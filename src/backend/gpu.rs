//! What lanes of all GPUs share: sizes of slots, slots to hold inputs in, and results handed over span by span.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::device::LaneBytes;
use super::table;
use super::{Launch, Limits, Output};
use crate::kernel::packed::{TALLY_REDO, TALLY_WORDS};
use crate::kernel::{Outcome, TILE, Widest};

/// What one thread copies out of the page cache, in bytes a microsecond.
const READ_BYTES_PER_US: u64 = 6_000;

/// What the fastest link of today moves each way, in bytes a microsecond: PCI Express 5.0 with 16 lanes.
const LINK_BYTES_PER_US: u64 = 64_000;

/// What the calls of a launch take its worker, in microseconds: seven calls of the driver, at some five each.
const CALLS_US: u64 = 35;

/// What a launch takes beside copies and kernel until its worker has the results, in microseconds: the way from one engine of the
/// device to the next, and a thread that wakes up.
const LATENCY_US: u64 = 100;

/// The inputs of a launch, in bytes: what is read in fifty times as long as the calls take, which are then 2 % of a worker's time.
const LAUNCH_BYTES: u64 = 50 * CALLS_US * READ_BYTES_PER_US;

/// While one launch waits, another one keeps the link busy.
const _: () = assert!(LAUNCH_BYTES >= LATENCY_US * LINK_BYTES_PER_US);

/// What a lane reads while it waits for a launch.
const READ_MEANWHILE_BYTES: u64 = LATENCY_US * READ_BYTES_PER_US;

/// More launches of a lane would only take memory: where they are that small, they are few, or memory is short.
const DEPTH_MAX: u64 = 4;

/// The chunk that suits launches over such inputs: the smallest that has the bytes of a launch. A merge with more workers than its
/// memory has room for gets smaller ones.
pub(super) fn chunk_tiles(widest: &Widest) -> u64 {
    LAUNCH_BYTES.div_ceil(tile_bytes(widest)).next_power_of_two()
}

/// Launches of a lane that may be under way: one that is read, and those that the device has meanwhile. Large ones are read for
/// longer than the device takes for another; of small ones it takes several.
pub(super) fn depth(widest: &Widest, chunk_tiles: u64) -> usize {
    let meanwhile = READ_MEANWHILE_BYTES.div_ceil(chunk_tiles * tile_bytes(widest));
    (1 + meanwhile).min(DEPTH_MAX) as usize
}

/// A tile of all inputs, or of all holders of what is copied, in bytes.
fn tile_bytes(widest: &Widest) -> u64 {
    (TILE * widest.input_bytes.max(widest.copied_bytes).max(1)) as u64
}

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
    let device = depth(widest, chunk_tiles) as u64 * SlotBytes::of(widest, chunk_tiles).all();
    // What is copied without a kernel goes through three buffers of the worker.
    let copied = chunk_tiles * (TILE * (3 * widest.copied_bytes + widest.wide_bytes)) as u64;
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

/// The flights of all lanes.
pub(super) fn flights(limits: &Limits) -> usize {
    limits.threads * depth(&limits.widest, limits.chunk_tiles)
}

/// How many slots of so many bytes are of use to hold inputs in, within the limits.
pub(super) fn spare_slots(limits: &Limits, slot_bytes: u64) -> u64 {
    // More than all that is ever held would be of no use; chunks that end early, and small tensors, leave gaps.
    let useful = match limits.widest.held_bytes {
        0 => 0,
        held => 2 * held.div_ceil(slot_bytes) + 2 * flights(limits) as u64,
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

#[cfg(test)]
mod tests {
    use super::*;

    fn widest(input_bytes: usize) -> Widest {
        Widest { input_bytes, ..Widest::default() }
    }

    #[test]
    fn a_launch_has_the_bytes_that_make_up_for_its_calls() {
        // bfloat16: a base and two models, one and four; float32: a base and two; 13 inputs; nothing but copies.
        for (input_bytes, tiles) in [(6, 2048), (4, 4096), (10, 2048), (12, 1024), (26, 512)] {
            let widest = widest(input_bytes);
            assert_eq!(chunk_tiles(&widest), tiles, "{input_bytes} bytes");
            let bytes = tiles * tile_bytes(&widest);
            assert!((LAUNCH_BYTES..2 * LAUNCH_BYTES).contains(&bytes), "{input_bytes} bytes");
            assert_eq!(depth(&widest, tiles), 2);
        }
        let copies = Widest { copied_bytes: 8, ..widest(0) };
        assert!(chunk_tiles(&copies) * (TILE * 8) as u64 <= 2 * LAUNCH_BYTES);
    }

    #[test]
    fn small_launches_are_under_way_together() {
        let widest = widest(6);
        for (tiles, launches) in [(128, 2), (64, 3), (32, 4), (1, 4)] {
            assert_eq!(depth(&widest, tiles), launches, "{tiles} tiles");
        }
        // Half as large chunks never take more memory.
        let lane = |tiles| depth(&widest, tiles) as u64 * tiles;
        (1..12).for_each(|power| assert!(lane(1 << (power - 1)) <= lane(1 << power)));
    }
}

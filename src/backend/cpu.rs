//! The CPU: a product of its own, and what every other device is compared with once the plain twins have proven it.
//!
//! A worker takes a span of tiles from read to result while it stays in its core's cache. Inputs that will be used again stay
//! in memory up to a budget: where they lie anyway, or copied.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::device::{Device, Family, LaneBytes};
use super::gpu::gathered;
use super::held::Held;
use super::memory::lengthen;
use super::spans::Room;
use super::{Backend, Lane, Launch, Output, ReadInputs, Span, Tally};
use crate::error::Result;
use crate::kernel::{Needs, Outcome, RECORDS_MAX, TILE, Widest};
use crate::timeline::{By, Stage, Timeline};

/// The processor.
pub(super) const FAMILY: Family = Family {
    name: "cpu",
    numbered: false,
    chunk_tiles: CHUNK_TILES,
    // As in a merge, whose results stay in the cache until they are written.
    bench_tiles: |_| CHUNK_TILES,
    lane_bytes,
    // Leaves room for the program itself under 1 GiB.
    host_bytes: 768 << 20,
    device_bytes: |_, _| Ok(0),
    devices: || Ok(vec![device()]),
    free_bytes: |_| Ok(None),
    open: |_, limits| Ok(Box::new(Cpu::new(limits.hold_bytes))),
};

/// 128 Ki elements: 256 KiB of bfloat16 per input stay in a core's second-level cache.
pub const CHUNK_TILES: u64 = 128;

/// What one lane takes: chunks of inputs and output; beside them a few tiles of f32 per input, the keys that a search
/// looks through, and the counters of a group, once as they come in and once as they are looked at.
fn lane_bytes(widest: &Widest, chunk_tiles: u64) -> LaneBytes {
    let Needs { record_words, sum_words, .. } = widest.needs(chunk_tiles);
    let counters = 2 * RECORDS_MAX * 4 * record_words as u64;
    let element_bytes = (widest.input_bytes + widest.output_bytes).max(16);
    let chunk_bytes = chunk_tiles * (TILE * element_bytes) as u64;
    let sums = chunk_tiles * 4 * sum_words as u64;
    let columns = gathered(widest, chunk_tiles);
    LaneBytes {
        host: chunk_bytes + (widest.inputs as u64 + 2) * (64 << 10) + (1 << 20) + counters + sums + columns,
        device: 0,
        binding: 0,
    }
}

/// The processor, which is always there.
pub(super) fn device() -> Device {
    let about = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = about.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    Device {
        family: &FAMILY,
        index: 0,
        name: name.map_or("CPU", |(_, name)| name.trim()).into(),
        memory_bytes: None,
        binding_bytes: u64::MAX,
        software: false,
        identity: None,
        facts: vec![("threads", threads.to_string())],
        unusable: None,
    }
}

/// The CPU as a device.
#[derive(Debug)]
pub struct Cpu {
    held: Held<HeldChunk>,
    budget: Arc<Mutex<HoldBudget>>,
}

impl Cpu {
    /// A CPU that holds at most `hold_bytes` of inputs between their uses.
    pub fn new(hold_bytes: u64) -> Self {
        let budget = HoldBudget { spare: Vec::new(), left_bytes: hold_bytes };
        Self { held: Held::default(), budget: Arc::new(Mutex::new(budget)) }
    }

    /// A slot of so many bytes to hold, while the budget lasts.
    fn slot(&self, bytes: usize) -> Option<HeldChunk> {
        let buffer = lock(&self.budget).buffer(bytes)?;
        Some(HeldChunk { bytes: Bytes::Copied(buffer), budget: Arc::clone(&self.budget) })
    }

    /// The same for bytes that lie elsewhere in memory.
    fn slot_elsewhere(&self, bytes: usize) -> Option<HeldChunk> {
        let reserved = lock(&self.budget).reserve(bytes);
        reserved.then(|| HeldChunk { bytes: Bytes::Brought(bytes), budget: Arc::clone(&self.budget) })
    }
}

fn lock(budget: &Mutex<HoldBudget>) -> MutexGuard<'_, HoldBudget> {
    budget.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Backend for Cpu {
    fn name(&self) -> String {
        FAMILY.name.into()
    }

    fn lane<'a>(&'a self, worker: usize, timeline: &'a Timeline) -> Result<Box<dyn Lane + 'a>> {
        let (buffers, room) = (Vec::new(), Room::default());
        Ok(Box::new(CpuLane { cpu: self, worker, timeline, buffers, room, finished: None }))
    }

    fn forget(&self, input: usize) {
        self.held.forget(input);
    }
}

/// What may still be held.
#[derive(Debug)]
struct HoldBudget {
    /// Buffers to use again: fresh memory costs a page fault every 4 KiB.
    spare: Vec<Vec<u8>>,
    left_bytes: u64,
}

impl HoldBudget {
    /// A buffer to be lengthened for something to hold, while the budget lasts.
    fn buffer(&mut self, bytes: usize) -> Option<Vec<u8>> {
        // What was used last may still be in a cache.
        if let Some(at) = self.spare.iter().rposition(|spare| spare.capacity() >= bytes) {
            let mut buffer = self.spare.swap_remove(at);
            buffer.truncate(bytes);
            return Some(buffer);
        }
        while self.left_bytes < bytes as u64 {
            self.left_bytes += self.spare.pop()?.capacity() as u64;
        }
        self.left_bytes -= bytes as u64;
        Some(Vec::new())
    }

    /// Takes so many bytes, while they last.
    fn reserve(&mut self, bytes: usize) -> bool {
        let fits = self.left_bytes >= bytes as u64;
        self.left_bytes -= if fits { bytes as u64 } else { 0 };
        fits
    }
}

/// A chunk that is held, within the budget.
#[derive(Debug)]
struct HeldChunk {
    bytes: Bytes,
    budget: Arc<Mutex<HoldBudget>>,
}

#[derive(Debug)]
enum Bytes {
    Copied(Vec<u8>),
    /// Where they lie anyway: so many.
    Brought(usize),
}

impl Drop for HeldChunk {
    fn drop(&mut self) {
        let mut budget = lock(&self.budget);
        match &mut self.bytes {
            Bytes::Copied(buffer) => budget.spare.push(std::mem::take(buffer)),
            Bytes::Brought(bytes) => budget.left_bytes += *bytes as u64,
        }
    }
}

/// One worker's buffers.
struct CpuLane<'a> {
    cpu: &'a Cpu,
    worker: usize,
    timeline: &'a Timeline,
    /// A buffer per input, for what is not held.
    buffers: Vec<Vec<u8>>,
    room: Room,
    finished: Option<Finished>,
}

/// A launch that waits to be collected.
struct Finished {
    outcome: Outcome,
    /// Of each span, where its results end in the room, and its tally.
    ends: Vec<(usize, Tally)>,
}

impl Lane for CpuLane<'_> {
    fn depth(&self) -> usize {
        1
    }

    fn submit(&mut self, launch: Launch, read: &mut dyn ReadInputs) -> Result<()> {
        assert!(self.finished.is_none(), "a CPU lane is one launch deep");
        self.room.clear();
        self.buffers.resize_with(self.buffers.len().max(launch.floats.len()), Vec::new);
        let outcome = launch.jobs[0].outcome();
        let mut ends = Vec::with_capacity(launch.spans.len());
        for (index, span) in launch.spans.iter().enumerate() {
            let places = 0..launch.floats.len();
            let held =
                places.map(|place| self.bring_in(&launch, index, place, read)).collect::<Result<Vec<_>>>()?;
            let bytes: Vec<&[u8]> = held
                .iter()
                .enumerate()
                .map(|(place, held)| {
                    let bytes = match held.as_deref() {
                        Some(HeldChunk { bytes: Bytes::Brought(_), .. }) => read.mapped(index, place),
                        Some(HeldChunk { bytes: Bytes::Copied(buffer), .. }) => buffer,
                        None => &self.buffers[place],
                    };
                    &bytes[..bytes_of(&launch, span, place)]
                })
                .collect();
            let written = if outcome == Outcome::Values { span.elements * launch.output.bytes() } else { 0 };
            let moved = written + bytes.iter().map(|bytes| bytes.len()).sum::<usize>();
            let run = || self.room.run(&launch, span, &bytes);
            let tally = self.timeline.time(Stage::Compute, By::Worker(self.worker), moved as u64, run)?;
            ends.push((self.room.len(outcome), tally));
        }
        self.finished = Some(Finished { outcome, ends });
        Ok(())
    }

    fn collect(&mut self, take: &mut dyn FnMut(usize, Output<'_>) -> Result<()>) -> Result<()> {
        let finished = self.finished.take().expect("collect follows submit");
        let mut start = 0;
        for (span, (end, tally)) in finished.ends.into_iter().enumerate() {
            let result = self.room.result(finished.outcome, start..end);
            take(span, Output { result, tally, redone: false })?;
            start = end;
        }
        Ok(())
    }
}

impl CpuLane<'_> {
    /// Brings in one input of a span. `None`: it is in the lane's buffer.
    fn bring_in(
        &mut self,
        launch: &Launch,
        index: usize,
        place: usize,
        read: &mut dyn ReadInputs,
    ) -> Result<Option<Arc<HeldChunk>>> {
        let (cpu, span) = (self.cpu, &launch.spans[index]);
        let bytes = bytes_of(launch, span, place);
        if let Some((slot, _)) = cpu.held.find(span, place) {
            // What lies elsewhere stays until its input is forgotten: so long it takes memory.
            if matches!(slot.bytes, Bytes::Copied(_)) {
                cpu.held.give_up_last(span, place);
            }
            return Ok(Some(slot));
        }
        if launch.hold && span.inputs[place].again {
            // What is read once is read, not brought: the copy is then in the cache, which pays for it.
            let elsewhere = match cpu.slot_elsewhere(bytes) {
                Some(slot) if read.bring(index, place)? => Some(slot),
                _ => None,
            };
            let slot = match elsewhere.or_else(|| cpu.slot(bytes)) {
                Some(mut slot) => {
                    if let Bytes::Copied(buffer) = &mut slot.bytes {
                        lengthen(buffer, bytes)?;
                        read.read(index, place, buffer)?;
                    }
                    Some(Arc::new(slot))
                }
                None => None,
            };
            if let Some(slot) = slot {
                cpu.held.keep(span, place, &slot, 0);
                return Ok(Some(slot));
            }
        }
        let buffer = &mut self.buffers[place];
        lengthen(buffer, bytes)?;
        read.read(index, place, &mut buffer[..bytes])?;
        Ok(None)
    }
}

/// The bytes of a span in one input.
fn bytes_of(launch: &Launch, span: &Span, place: usize) -> usize {
    span.elements * launch.floats[place].bytes()
}

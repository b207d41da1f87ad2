//! The CPU: a product of its own, and what every other device is compared with once the plain twins have proven it.
//!
//! A worker takes a span of tiles from read to result while it stays in its core's cache. Inputs that will be used again stay
//! in memory up to a budget: where they lie anyway, or copied.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::device::{Device, Family, LaneBytes};
use super::gpu::gathered;
use super::held::Held;
use super::memory::lengthen;
use super::spans::{Room, SpanMasks, drawn};
use super::{Backend, Lane, Launch, Output, ReadInputs, Span, Tally};
use crate::error::Result;
use crate::kernel::philox::TileMask;
use crate::kernel::thinning::Mask;
use crate::kernel::{Job, Needs, Outcome, RECORDS_MAX, TILE, Widest};
use crate::timeline::{By, Stage, Timeline};

/// The processor.
pub(super) const FAMILY: Family = Family {
    name: "cpu",
    numbered: false,
    chunk_tiles: |_| CHUNK_TILES,
    // As in a merge, whose results stay in the cache until they are written.
    bench_tiles: |_| CHUNK_TILES,
    lane_bytes,
    // Leaves room for the program itself under 1 GiB.
    host_bytes: 768 << 20,
    device_bytes: |_, _| Ok(0),
    reads_again: true,
    devices: || Ok(vec![device()]),
    open: |_, limits| Ok(Box::new(Cpu::new(limits.hold_bytes))),
};

/// 128 Ki elements: 256 KiB of bfloat16 per input stay in a core's second-level cache.
pub const CHUNK_TILES: u64 = 128;

/// What one lane takes: chunks of inputs and output; beside them a few tiles of f32 per input, the keys that a search
/// looks through, and the counters of a group, once as they come in and once as they are looked at.
fn lane_bytes(widest: &Widest, chunk_tiles: u64) -> LaneBytes {
    let Needs { record_words, sum_words, .. } = widest.needs(chunk_tiles);
    let counters = 2 * RECORDS_MAX * 4 * record_words as u64;
    let element_bytes = (widest.input_bytes + widest.output_bytes + widest.wide_bytes).max(16);
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
        others: Vec::new(),
    }
}

/// Inputs that are held in mapped pages, at most. They count as memory of this program and are the page cache's: more of them would
/// say nothing about what a merge needs, and what is read once more comes from the same cache.
const MAPPED_BYTES: u64 = 96 << 20;

/// What remembering a chunk takes, in a table that doubles where it is full: it counts where chunks are as small as memory is short.
const MAPPED_NOTE_BYTES: usize = 256;

/// The CPU as a device.
#[derive(Debug)]
pub struct Cpu {
    held: Held<HeldChunk>,
    masks: Mutex<HashMap<(Mask, u64), HeldMask>>,
    budget: Arc<Mutex<HoldBudget>>,
}

impl Cpu {
    /// A CPU that holds at most `hold_bytes` of inputs between their uses.
    pub fn new(hold_bytes: u64) -> Self {
        let budget =
            HoldBudget { spare: Vec::new(), left_bytes: hold_bytes, left_mapped_bytes: MAPPED_BYTES };
        Self { held: Held::default(), masks: Mutex::default(), budget: Arc::new(Mutex::new(budget)) }
    }

    /// A slot of so many bytes to hold, while the budget lasts.
    fn slot(&self, bytes: usize) -> Option<HeldChunk> {
        let buffer = lock(&self.budget).buffer(bytes)?;
        Some(HeldChunk { bytes: Bytes::Copied(buffer), budget: Arc::clone(&self.budget) })
    }

    /// Room for bytes that lie elsewhere in this program's memory, in the same budget.
    fn slot_elsewhere(&self, bytes: usize) -> Option<HeldChunk> {
        let reserved = lock(&self.budget).reserve(bytes);
        reserved.then(|| HeldChunk { bytes: Bytes::Elsewhere(bytes), budget: Arc::clone(&self.budget) })
    }

    /// Room for bytes of the page cache.
    fn slot_mapped(&self, bytes: usize) -> Option<HeldChunk> {
        let reserved = lock(&self.budget).reserve_mapped(bytes);
        reserved.then(|| HeldChunk { bytes: Bytes::Mapped(bytes), budget: Arc::clone(&self.budget) })
    }

    /// The random masks of a span: for what is merged those that the sweep before has drawn, where they were held, else drawn now.
    fn masks(&self, job: &Job, span: &Span) -> Result<SpanMasks> {
        let merges = job.outcome() == Outcome::Values;
        let mask = |mask: Option<Mask>| {
            let Some(mask) = mask else { return Ok(Vec::new()) };
            let held = if merges { lock(&self.masks).remove(&(mask, span.tiles.start)) } else { None };
            let tiles = (span.tiles.end - span.tiles.start) as usize;
            let whole = held.filter(|held| held.tiles.len() == tiles);
            whole.map_or_else(|| drawn(mask, span), |held| Ok(held.tiles))
        };
        job.masks().into_iter().map(mask).collect()
    }

    /// Holds the masks of a span for the sweep that combines, while the budget lasts: drawing them takes longer than reading
    /// the models does.
    fn keep(&self, job: &Job, span: &Span, masks: SpanMasks) {
        for (mask, tiles) in job.masks().into_iter().zip(masks) {
            if let Some(mask) = mask
                && let Some(room) = self.slot_elsewhere(size_of_val(tiles.as_slice()))
            {
                lock(&self.masks).insert((mask, span.tiles.start), HeldMask { tiles, _room: room });
            }
        }
    }
}

/// What a random mask keeps of a chunk, in the budget for what is held.
#[derive(Debug)]
struct HeldMask {
    tiles: Vec<TileMask>,
    _room: HeldChunk,
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
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
    /// Of pages that the system's page cache has anyway.
    left_mapped_bytes: u64,
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
        self.reserve(bytes).then(Vec::new)
    }

    /// Takes so many bytes, while they last; spare buffers are given up for them.
    fn reserve(&mut self, bytes: usize) -> bool {
        while self.left_bytes < bytes as u64 {
            let Some(spare) = self.spare.pop() else { return false };
            self.left_bytes += spare.capacity() as u64;
        }
        self.left_bytes -= bytes as u64;
        true
    }

    /// Takes so many bytes of mapped pages, while they last, and room to remember them in.
    fn reserve_mapped(&mut self, bytes: usize) -> bool {
        let Some(left) = self.left_mapped_bytes.checked_sub(bytes as u64) else { return false };
        if !self.reserve(MAPPED_NOTE_BYTES) {
            return false;
        }
        self.left_mapped_bytes = left;
        true
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
    /// Elsewhere in this program's memory: so many.
    Elsewhere(usize),
    /// In mapped pages: so many.
    Mapped(usize),
}

impl Drop for HeldChunk {
    fn drop(&mut self) {
        let mut budget = lock(&self.budget);
        match &mut self.bytes {
            Bytes::Copied(buffer) => budget.spare.push(std::mem::take(buffer)),
            Bytes::Elsewhere(bytes) => budget.left_bytes += *bytes as u64,
            Bytes::Mapped(bytes) => {
                budget.left_mapped_bytes += *bytes as u64;
                budget.left_bytes += MAPPED_NOTE_BYTES as u64;
            }
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
                        Some(HeldChunk { bytes: Bytes::Copied(buffer), .. }) => buffer,
                        Some(_) => read.mapped(index, place),
                        None => &self.buffers[place],
                    };
                    &bytes[..bytes_of(&launch, span, place)]
                })
                .collect();
            let written = if outcome == Outcome::Values { span.elements * launch.output.bytes() } else { 0 };
            let moved = written + bytes.iter().map(|bytes| bytes.len()).sum::<usize>();
            let run = || {
                let job = &launch.jobs[span.job];
                let masks = self.cpu.masks(job, span)?;
                let tally = self.room.run(&launch, span, &bytes, &masks)?;
                if outcome != Outcome::Values {
                    self.cpu.keep(job, span, masks);
                }
                Ok(tally)
            };
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
            let slot = if read.is_mapped(index, place)? {
                match cpu.slot_mapped(bytes) {
                    Some(slot) if read.bring(index, place)? => Some(slot),
                    _ => None,
                }
            } else if let Some(mut slot) = cpu.slot(bytes) {
                if let Bytes::Copied(buffer) = &mut slot.bytes {
                    lengthen(buffer, bytes)?;
                    read.read(index, place, buffer)?;
                }
                Some(slot)
            } else {
                None
            };
            if let Some(slot) = slot.map(Arc::new) {
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
    launch.floats[place].bytes_of(span.elements as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{Segment, SpanInput, SpanResult};
    use crate::dtype::Float;
    use crate::kernel::thinning::{Keep, Model};
    use crate::kernel::{consensus, masked_sums};

    const MASK: Mask = Mask { keep: 1 << 31, key: [1, 2] };

    const BUDGET: u64 = 1000;

    /// Runs a job of a base and a model over three tiles; what is merged.
    fn run(cpu: &Cpu, job: impl Into<Job>) -> Vec<u8> {
        let timeline = Timeline::new();
        let mut lane = cpu.lane(0, &timeline).unwrap();
        let launch = Launch {
            jobs: vec![Arc::new(job.into())],
            spans: vec![Span {
                job: 0,
                inputs: (0..2).map(|input| SpanInput { input, again: false }).collect(),
                segment: Segment::WHOLE,
                tiles: 3..6,
                elements: 2 * TILE + 5,
            }],
            floats: vec![Float::F32; 2],
            output: Float::F32,
            hold: false,
            record_tiles: u64::MAX,
        };
        let mut read = |_: usize, input: usize, into: &mut [u8]| {
            let value = |i: usize| ((i * input) as f32).to_ne_bytes();
            into.chunks_exact_mut(4).enumerate().for_each(|(i, stored)| stored.copy_from_slice(&value(i)));
            Ok(())
        };
        lane.submit(launch, &mut read).unwrap();
        let mut merged = Vec::new();
        let mut take = |_: usize, output: Output<'_>| {
            if let SpanResult::Values(values) = output.result {
                merged = values.to_vec();
            }
            Ok(())
        };
        lane.collect(&mut take).unwrap();
        merged
    }

    fn combine() -> consensus::Job {
        let model = Model { coefficient: 1.5, keep: Keep::Random(MASK) };
        consensus::Job { models: vec![model], scale: Vec::new() }
    }

    #[test]
    fn a_mask_is_held_from_the_sweep_that_measures_to_the_one_that_combines() {
        let cpu = Cpu::new(BUDGET);
        run(&cpu, masked_sums::Job { models: vec![Keep::Random(MASK)] });
        let held_bytes = 3 * size_of::<TileMask>() as u64;
        assert_eq!(lock(&cpu.budget).left_bytes, BUDGET - held_bytes);
        let merged = run(&cpu, combine());
        assert_eq!(lock(&cpu.budget).left_bytes, BUDGET, "it is given up as it is used");
        assert_eq!(merged, run(&Cpu::new(0), combine()));
        // A sweep that measures draws, however often it comes.
        let nothing = HeldMask { tiles: vec![TileMask::default(); 3], _room: cpu.slot_elsewhere(0).unwrap() };
        lock(&cpu.masks).insert((MASK, 3), nothing);
        run(&cpu, masked_sums::Job { models: vec![Keep::Random(MASK)] });
        assert_eq!(merged, run(&cpu, combine()));

        // What is held is what is used, if it is of the same tiles.
        for (tiles, used) in [(3, true), (2, false)] {
            let room = cpu.slot_elsewhere(held_bytes as usize).unwrap();
            let nothing = HeldMask { tiles: vec![TileMask::default(); tiles], _room: room };
            lock(&cpu.masks).insert((MASK, 3), nothing);
            assert_eq!(run(&cpu, combine()) != merged, used);
        }
    }
}

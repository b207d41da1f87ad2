//! Any GPU, through WebGPU: Vulkan, Metal or DX12.
//!
//! ```text
//! worker's thread     read ──> upload                                      download ──> hash, write
//! the device's queue             └──> slot ──> kernel ──> results ──────────┘
//! ```
//!
//! A lane has some flights, each with buffers of its own, so that one is read while the device works on another; a
//! device has one queue, so there is nothing more to overlap. A launch reads one buffer, whatever the limit of bindings:
//! chunks are cut so that they fit. Inputs that a later sweep needs again stay where they were copied to, and a launch
//! whose inputs are all in one such slot reads them there; where they are in several, they are copied together first.
//!
//! WebGPU promises nothing about NaN, infinities and numbers that a device may flush to zero. The shaders look for them,
//! and a span that has any is computed by the CPU.

mod driver;
pub mod shaders;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::device::{Device, Family, LaneBytes};
use super::gpu::{self, ALIGNMENT, HOST_BYTES, Slot, SlotBytes, Spares, lock};
use super::held::{Gathered, Held, padded};
use super::spans::{self, Room};
use super::table::{Dialect, Table};
use super::{Backend, Lane, Launch, Limits, Output, ReadInputs};
use crate::error::{Error, Result};
use crate::kernel::Widest;
use crate::kernel::packed::FACTORS;
use crate::timeline::{By, Stage, Timeline};
use driver::{Download, Gpu, Upload};
use shaders::Bound;
use wgpu::BufferUsages;

/// Any GPU, through Vulkan, Metal or DX12.
pub(super) const FAMILY: Family = Family {
    name: "wgpu",
    numbered: true,
    chunk_tiles: gpu::chunk_tiles,
    // A GPU works on all of it at once.
    bench_tiles: |all| all,
    lane_bytes,
    host_bytes: HOST_BYTES,
    device_bytes: |_, physical_bytes| {
        // WebGPU does not say what is free, and the memory may be the machine's.
        const UNKNOWN: u64 = 2 << 30;
        Ok(UNKNOWN.min(physical_bytes / 4))
    },
    reads_again: false,
    devices: driver::devices,
    open: |device, limits| Ok(Box::new(Wgpu::new(device, limits)?)),
};

/// Tiles of a launch that need no more than the 65,535 workgroups that WebGPU allows, with room for ends of spans and records.
const GROUPS_TILES_MAX: u64 = 1 << 17;

/// Flights whose launches are timed by the device's clock. Metal has 32 places for that, and a device that is asked for more is
/// lost. Launches of others are missing in the shares of stages, and nowhere else.
const TIMED_FLIGHTS: usize = 24;

/// Moments of a launch that the device's clock is asked for: at the beginning, before and after the kernel, at the end.
const MOMENTS: u32 = 4;

/// What one lane takes.
fn lane_bytes(widest: &Widest, chunk_tiles: u64) -> LaneBytes {
    let slots = SlotBytes::of(widest, chunk_tiles);
    let LaneBytes { host, device, .. } = gpu::lane_bytes(widest, chunk_tiles);
    // A span that is left to the CPU comes back with its inputs, and has results.
    let redone = slots.inputs + slots.results;
    let largest = slots.inputs.max(slots.table).max(slots.results);
    LaneBytes {
        host: host + redone,
        device,
        binding: if chunk_tiles > GROUPS_TILES_MAX { u64::MAX } else { largest },
    }
}

/// A WebGPU device.
#[derive(Debug)]
struct Wgpu {
    name: String,
    gpu: Arc<Gpu>,
    dialect: Dialect,
    slots: SlotBytes,
    depth: usize,
    /// The flights that no lane has. They are all made when the device is opened, so that it shows at once whether it has room for them.
    flights: Arc<Spares<Flight>>,
    spares: Arc<Spares<wgpu::Buffer>>,
    /// How many more may be made.
    unmade: Mutex<u64>,
    held: Held<InputSlot>,
    clock: Option<Clock>,
}

/// The device's clock.
#[derive(Debug)]
struct Clock {
    /// Seconds of a tick.
    tick: f64,
    /// A moment that both clocks know.
    origin: (u64, Instant),
    /// Whether copies can be timed too, or passes alone.
    everywhere: bool,
}

impl Clock {
    fn instant(&self, ticks: u64) -> Instant {
        self.origin.1 + self.between(self.origin.0, ticks)
    }

    fn between(&self, from: u64, to: u64) -> Duration {
        Duration::from_secs_f64(to.saturating_sub(from) as f64 * self.tick)
    }
}

/// A device buffer for inputs.
type InputSlot = Slot<wgpu::Buffer>;

const SLOT: BufferUsages = BufferUsages::STORAGE.union(BufferUsages::COPY_DST).union(BufferUsages::COPY_SRC);

impl Wgpu {
    /// Opens a device for lanes and held inputs of `limits`.
    ///
    /// # Errors
    /// Kind `DeviceMemory`: it has not the memory. Kind `Device`: it cannot be used.
    fn new(device: &Device, limits: &Limits) -> Result<Self> {
        let gpu = Gpu::of(device)?;
        let slots = SlotBytes::of(&limits.widest, limits.chunk_tiles);
        let dialect = Dialect {
            compiled: |kernel| &kernel.wgsl,
            group_models: gpu.group_models,
            results_apart: Some(ALIGNMENT),
        };
        let clock = clock(&gpu)?;
        let timed = if clock.is_some() { TIMED_FLIGHTS } else { 0 };
        let flight = |number| Flight::new(&gpu, slots, number < timed);
        let flights = || (0..gpu::flights(limits)).rev().map(flight).collect::<Result<_>>();
        Ok(Self {
            name: format!("{} {}", device.id(), device.name),
            dialect,
            slots,
            depth: gpu::depth(&limits.widest, limits.chunk_tiles),
            flights: Spares::new(gpu.all_or_nothing(flights)?),
            spares: Spares::new(Vec::new()),
            unmade: Mutex::new(gpu::spare_slots(limits, slots.inputs)),
            held: Held::default(),
            clock,
            gpu,
        })
    }

    /// A slot to hold inputs in, while there are any. A device that has no room for more holds no more.
    fn spare_slot(&self) -> Option<Arc<InputSlot>> {
        let buffer = self.spares.take().or_else(|| {
            let mut unmade = lock(&self.unmade);
            *unmade = unmade.checked_sub(1)?;
            let made = self.gpu.buffer("held inputs", self.slots.inputs, SLOT, false);
            made.inspect_err(|_| *unmade = 0).ok()
        })?;
        Some(Slot::spare(buffer, &self.spares))
    }

    /// Sees to it that a launch's inputs are in one slot: which one, where in it, and whether it is to be held from then on that
    /// the launch is submitted. All are in one that is held, or all were read (into `own`, or into one that will be held), or
    /// what is held is copied into `own`, behind what was read.
    fn bring_together(
        &self,
        launch: &Launch,
        Gathered { found, read_bytes }: &Gathered<InputSlot>,
        own: &Arc<InputSlot>,
        commands: &mut wgpu::CommandEncoder,
    ) -> (Arc<InputSlot>, Vec<u64>, bool) {
        let mut places: Vec<u64> = found.iter().map(|input| input.offset).collect();
        let first = found.first().expect("a launch has inputs").held.as_ref();
        let together = found.iter().all(|input| match (first, &input.held) {
            (Some(first), Some(held)) => Arc::ptr_eq(first, held),
            (first, held) => first.is_none() && held.is_none(),
        });
        match first {
            Some(slot) if together => return (Arc::clone(slot), places, false),
            None if together && gpu::holds(launch) => {
                if let Some(spare) = self.spare_slot() {
                    return (spare, places, true);
                }
            }
            _ => {}
        }
        let mut end = *read_bytes;
        for (input, place) in found.iter().zip(&mut places) {
            if let Some(slot) = &input.held {
                let bytes = padded(&launch.spans[input.span], launch.floats[input.place]);
                commands.copy_buffer_to_buffer(&slot.place, input.offset, &own.place, end, bytes);
                *place = end;
                end += bytes;
            }
        }
        (Arc::clone(own), places, false)
    }

    fn encoder(&self) -> wgpu::CommandEncoder {
        self.gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default())
    }

    /// Puts a kernel's pass behind the commands.
    fn pass(
        &self,
        commands: &mut wgpu::CommandEncoder,
        table: &Table,
        bound: &Bound<'_>,
        queries: Option<&wgpu::QuerySet>,
        runs: bool,
    ) -> Result<()> {
        let pipeline = self.gpu.pipelines.get(&self.gpu, &table.entry)?;
        let group = self.gpu.pipelines.bind(&self.gpu.device, bound);
        let timestamp_writes = queries.map(|query_set| wgpu::ComputePassTimestampWrites {
            query_set,
            beginning_of_pass_write_index: Some(1),
            end_of_pass_write_index: Some(2),
        });
        let mut pass =
            commands.begin_compute_pass(&wgpu::ComputePassDescriptor { label: None, timestamp_writes });
        if runs {
            pass.set_pipeline(&pipeline);
            pass.set_bind_group(0, &group, &[]);
            pass.dispatch_workgroups(table.grid.0, table.grid.1, 1);
        }
        Ok(())
    }

    /// Notes a moment between commands, where the device can.
    fn note(&self, commands: &mut wgpu::CommandEncoder, queries: Option<&wgpu::QuerySet>, moment: u32) {
        if let (Some(queries), Some(Clock { everywhere: true, .. })) = (queries, &self.clock) {
            commands.write_timestamp(queries, moment);
        }
    }
}

fn query_set(gpu: &Gpu) -> wgpu::QuerySet {
    gpu.device.create_query_set(&wgpu::QuerySetDescriptor {
        label: None,
        ty: wgpu::QueryType::Timestamp,
        count: MOMENTS,
    })
}

fn moments_buffer(gpu: &Gpu) -> Result<wgpu::Buffer> {
    let usage = BufferUsages::QUERY_RESOLVE | BufferUsages::COPY_SRC;
    gpu.buffer("moments", 8 * u64::from(MOMENTS), usage, false)
}

/// Reads the device's clock beside the host's.
fn clock(gpu: &Gpu) -> Result<Option<Clock>> {
    let (passes, everywhere) = gpu.timing();
    if !passes {
        return Ok(None);
    }
    let (queries, moments) = (query_set(gpu), moments_buffer(gpu)?);
    let mut download = Download::new(gpu, 8 * u64::from(MOMENTS))?;
    let mut commands = gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    drop(commands.begin_compute_pass(&wgpu::ComputePassDescriptor {
        label: None,
        timestamp_writes: Some(wgpu::ComputePassTimestampWrites {
            query_set: &queries,
            beginning_of_pass_write_index: Some(0),
            end_of_pass_write_index: Some(1),
        }),
    }));
    commands.resolve_query_set(&queries, 0..2, &moments, 0);
    commands.copy_buffer_to_buffer(&moments, 0, download.buffer(), 0, 16);
    download.map_after(&commands);
    gpu.wait(gpu.submit(commands)?)?;
    let now = Instant::now();
    let ticks = download.read(gpu, |bytes| Ok(ticks_of(bytes)[1]))?;
    let tick = f64::from(gpu.queue.get_timestamp_period()) * 1e-9;
    Ok(Some(Clock { tick, origin: (ticks, now), everywhere }))
}

fn ticks_of(bytes: &[u8]) -> Vec<u64> {
    bytes.as_chunks::<8>().0.iter().map(|ticks| u64::from_le_bytes(*ticks)).collect()
}

impl Backend for Wgpu {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn lane<'a>(&'a self, worker: usize, timeline: &'a Timeline) -> Result<Box<dyn Lane + 'a>> {
        let lost = || Error::device("a flight was lost with a launch that failed");
        let ready = (0..self.depth).map(|_| self.flights.take().ok_or_else(lost)).collect::<Result<_>>()?;
        let (flying, redo) = (VecDeque::new(), Redo::default());
        Ok(Box::new(WgpuLane { wgpu: self, worker, timeline, ready, flying, redo }))
    }

    fn forget(&self, input: usize) {
        self.held.forget(input);
    }
}

/// Everything that one launch needs while it is under way.
#[derive(Debug)]
struct Flight {
    upload: Upload,
    download: Download,
    slot: Arc<InputSlot>,
    table: wgpu::Buffer,
    results: wgpu::Buffer,
    queries: Option<(wgpu::QuerySet, wgpu::Buffer)>,
}

impl Flight {
    /// Copies what was read into `memory`, and the table behind it; how many bytes that is.
    fn copy_in(
        &mut self,
        table: &Table,
        read_bytes: u64,
        memory: &wgpu::Buffer,
        commands: &mut wgpu::CommandEncoder,
    ) -> u64 {
        let words: &[u8] = bytemuck::cast_slice(&table.words);
        let copied_in = read_bytes + words.len() as u64;
        self.upload.bytes_mut()[read_bytes as usize..copied_in as usize].copy_from_slice(words);
        let upload = self.upload.hand_over();
        if read_bytes > 0 {
            commands.copy_buffer_to_buffer(upload, 0, memory, 0, read_bytes);
        }
        commands.copy_buffer_to_buffer(upload, read_bytes, &self.table, 0, words.len() as u64);
        copied_in
    }

    /// Copies the moments that were noted behind the results.
    fn copy_moments(&self, wgpu: &Wgpu, commands: &mut wgpu::CommandEncoder) {
        let (Some((queries, moments)), Some(clock)) = (&self.queries, &wgpu.clock) else { return };
        let noted = if clock.everywhere { 0..MOMENTS } else { 1..3 };
        commands.resolve_query_set(queries, noted.clone(), moments, 0);
        let bytes = 8 * u64::from(noted.end - noted.start);
        commands.copy_buffer_to_buffer(moments, 0, self.download.buffer(), wgpu.slots.results, bytes);
    }

    fn new(gpu: &Gpu, slots: SlotBytes, timed: bool) -> Result<Self> {
        let queries = if timed { Some((query_set(gpu), moments_buffer(gpu)?)) } else { None };
        Ok(Self {
            upload: Upload::new(gpu, slots.inputs + slots.table)?,
            download: Download::new(gpu, slots.results + 8 * u64::from(MOMENTS))?,
            slot: Slot::of_flight(gpu.buffer("inputs", slots.inputs, SLOT, false)?),
            table: gpu.buffer("table", slots.table, SLOT, false)?,
            results: gpu.buffer("results", slots.results, SLOT, false)?,
            queries,
        })
    }
}

/// One worker's way through the device.
struct WgpuLane<'a> {
    wgpu: &'a Wgpu,
    worker: usize,
    timeline: &'a Timeline,
    ready: Vec<Flight>,
    flying: VecDeque<Flying>,
    redo: Redo,
}

/// What a lane needs to compute spans on the CPU.
#[derive(Default)]
struct Redo {
    room: Room,
    /// For inputs that come back from the device; made when the first do.
    inputs: Option<Download>,
}

impl Drop for WgpuLane<'_> {
    /// Where others failed, launches of this lane may still be under way: their flights end with them.
    fn drop(&mut self) {
        self.wgpu.flights.give_back(self.ready.drain(..));
    }
}

/// A launch under way.
struct Flying {
    flight: Flight,
    launch: Launch,
    /// Where its inputs are, and their places there.
    memory: Arc<InputSlot>,
    places: Vec<u64>,
    /// Whether the device computes nothing of it that can be used.
    redo_all: bool,
    table: Table,
    copied_in: u64,
    submitted: Instant,
    index: wgpu::SubmissionIndex,
}

impl Lane for WgpuLane<'_> {
    fn depth(&self) -> usize {
        self.wgpu.depth
    }

    fn submit(&mut self, launch: Launch, read: &mut dyn ReadInputs) -> Result<()> {
        let wgpu = self.wgpu;
        let mut flight = self.ready.pop().expect("no more launches than the lane is deep");
        let gathered = wgpu.held.gather(&launch, flight.upload.bytes_mut(), read)?;
        let mut commands = wgpu.encoder();
        let queries = flight.queries.as_ref().map(|(queries, _)| queries);
        wgpu.note(&mut commands, queries, 0);
        let (memory, places, held) = wgpu.bring_together(&launch, &gathered, &flight.slot, &mut commands);
        let table = Table::new(&wgpu.dialect, &launch, &places)?;
        let copied_in = flight.copy_in(&table, gathered.read_bytes, &memory.place, &mut commands);
        commands.clear_buffer(&flight.results, 0, Some(table.cleared_bytes(&launch)));
        let bound = Bound {
            table: &flight.table,
            memory: &memory.place,
            results: &flight.results,
            results_from: wgpu.dialect.results_from(launch.spans.len()),
        };
        let queries = flight.queries.as_ref().map(|(queries, _)| queries);
        let redo_all = !has_plain_factors(&launch);
        wgpu.pass(&mut commands, &table, &bound, queries, !redo_all)?;
        let results = table.result_bytes.next_multiple_of(4);
        commands.copy_buffer_to_buffer(&flight.results, 0, flight.download.buffer(), 0, results);
        wgpu.note(&mut commands, queries, 3);
        flight.copy_moments(wgpu, &mut commands);
        flight.upload.map_after(&commands);
        flight.download.map_after(&commands);
        let submitted = Instant::now();
        let index = wgpu.gpu.submit(commands)?;
        // Whoever finds it now comes behind these commands in the device's queue.
        if held {
            wgpu.held.keep_read(&launch, &gathered.found, &memory);
        }
        self.flying.push_back(Flying {
            flight,
            launch,
            memory,
            places,
            redo_all,
            table,
            copied_in,
            submitted,
            index,
        });
        Ok(())
    }

    fn collect(&mut self, take: &mut dyn FnMut(usize, Output<'_>) -> Result<()>) -> Result<()> {
        let Flying { mut flight, launch, memory, places, redo_all, table, copied_in, submitted, index } =
            self.flying.pop_front().expect("collect follows submit");
        let Self { wgpu, worker, timeline, redo, .. } = self;
        let device = &*wgpu.gpu;
        timeline.time(Stage::DeviceWait, By::Worker(*worker), 0, || device.wait(index))?;
        let done = Instant::now();
        flight.upload.take_back(device)?;
        let outcome = launch.jobs[0].outcome();
        flight.download.read(device, |bytes| {
            if wgpu.clock.is_none() || flight.queries.is_some() {
                let moments = ticks_of(&bytes[wgpu.slots.results as usize..]);
                wgpu.record(timeline, &moments, (submitted, done), &table, copied_in);
            }
            for (index, (output, odd)) in gpu::outputs(outcome, &table.spans, bytes).enumerate() {
                if redo_all || odd {
                    let span = InputsOf { launch: &launch, index, memory: &memory, places: &places };
                    let result_bytes = table.spans[index].1 as u64;
                    redo.run(wgpu, &span, result_bytes, (timeline, By::Worker(*worker)), take)?;
                } else {
                    take(index, output)?;
                }
            }
            Ok(())
        })?;
        self.ready.push(flight);
        Ok(())
    }
}

/// A span of a launch, and where its inputs are.
struct InputsOf<'a> {
    launch: &'a Launch,
    index: usize,
    memory: &'a InputSlot,
    places: &'a [u64],
}

impl Redo {
    /// Brings the inputs of a span back from the device, and computes it on the CPU.
    fn run(
        &mut self,
        wgpu: &Wgpu,
        span: &InputsOf<'_>,
        result_bytes: u64,
        (timeline, by): (&Timeline, By),
        take: &mut dyn FnMut(usize, Output<'_>) -> Result<()>,
    ) -> Result<()> {
        let InputsOf { launch, index, memory, places } = *span;
        let (gpu, span) = (&*wgpu.gpu, &launch.spans[index]);
        let bytes: Vec<u64> =
            launch.floats.iter().map(|float| float.bytes_of(span.elements as u64)).collect();
        let places = &places[index * bytes.len()..][..bytes.len()];
        let inputs = match &mut self.inputs {
            Some(inputs) => inputs,
            none => none.insert(Download::new(gpu, wgpu.slots.inputs)?),
        };
        let mut commands = wgpu.encoder();
        let mut parts = Vec::with_capacity(bytes.len());
        let mut end = 0;
        for (place, bytes) in places.iter().zip(bytes) {
            // Copies are of whole words, and inputs are padded to tiles.
            let copied = bytes.next_multiple_of(4);
            commands.copy_buffer_to_buffer(&memory.place, *place, inputs.buffer(), end, copied);
            parts.push(end as usize..(end + bytes) as usize);
            end += copied.next_multiple_of(8);
        }
        inputs.map_after(&commands);
        gpu.wait(gpu.submit(commands)?)?;
        inputs.read(gpu, |all| {
            let parts: Vec<&[u8]> = parts.into_iter().map(|part| &all[part]).collect();
            let moved = parts.iter().map(|part| part.len() as u64).sum::<u64>() + result_bytes;
            self.room.clear();
            let masks = || spans::draw_all(&launch.jobs[span.job], span);
            let run = || self.room.run(launch, span, &parts, &masks()?);
            let tally = timeline.time(Stage::Compute, by, moved, run)?;
            let outcome = launch.jobs[span.job].outcome();
            let result = self.room.result(outcome, 0..self.room.len(outcome));
            take(index, Output { result, tally, redone: true })
        })
    }
}

impl Wgpu {
    /// Puts the device's stages on the timeline. Without a clock of the device all of the time goes to the kernel.
    fn record(
        &self,
        timeline: &Timeline,
        moments: &[u64],
        (submitted, done): (Instant, Instant),
        table: &Table,
        copied_in: u64,
    ) {
        let computed = table.read_bytes + table.written_bytes;
        let note = |stage, from: Instant, to: Instant, bytes| {
            timeline.record(stage, By::Device, from, to.max(from), bytes);
        };
        match &self.clock {
            None => note(Stage::Compute, submitted, done, computed),
            Some(clock) => {
                let at = |moment: usize| clock.instant(moments[moment]);
                let (begun, ended) = if clock.everywhere { (1, 2) } else { (0, 1) };
                note(Stage::Compute, at(begun), at(ended), computed);
                if clock.everywhere {
                    note(Stage::CopyIn, at(0), at(1), copied_in);
                    note(Stage::CopyOut, at(2), at(3), table.result_bytes);
                }
            }
        }
    }
}

/// Whether all numbers that a launch multiplies with are such that nothing leaves the range that WebGPU is exact in.
fn has_plain_factors(launch: &Launch) -> bool {
    let plain = |factor: &f32| *factor == 0.0 || FACTORS.contains(&factor.abs());
    launch.spans.iter().all(|span| {
        let first = span.first_element();
        let part = first..first + span.elements as u64;
        launch.jobs[span.job].factors(&part).iter().all(plain)
    })
}

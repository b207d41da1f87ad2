//! Any GPU, through WebGPU: Vulkan, Metal or DX12.
//!
//! ```text
//! worker's thread     read ──> upload                                      download ──> hash, write
//! the device's queue             └──> slot ──> kernel ──> results ──────────┘
//! ```
//!
//! A lane has `DEPTH` flights, each with buffers of its own, so that one is read while the device works on another; a
//! device has one queue, so there is nothing more to overlap. A launch reads one buffer, whatever the limit of bindings:
//! chunks are cut so that they fit. Inputs that a later sweep needs again stay where they were copied to, and a launch
//! whose inputs are all in one such slot reads them there; where they are in several, they are copied together first.
//!
//! WebGPU promises nothing about NaN, infinities and numbers that a device may flush to zero. The shaders look for them,
//! and a span that has any is computed by the CPU.

mod driver;
pub mod shaders;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::cpu::Engine;
use super::device::{Device, LaneBytes};
use super::held::{Gathered, Held, padded};
use super::table::{self, Dialect, Table};
use super::{Backend, Hold, Lane, Launch, Limits, Output, Read, Yardstick};
use crate::error::Result;
use crate::kernel::packed::{FACTORS, TALLY_REDO, TALLY_WORDS};
use crate::kernel::{Job, SPANS_MAX, TILE, Widest};
use crate::timeline::{By, Stage, Timeline};
use driver::{Download, Gpu, Upload};
use shaders::Bound;
use wgpu::BufferUsages;

/// Chunks of 2 Mi elements, as for CUDA.
pub(super) const CHUNK_TILES: u64 = 2048;

/// Launches of a lane that may be under way: one is read while the device works on the other.
const DEPTH: usize = 2;

/// Tiles of a launch that need no more than the 65,535 workgroups that WebGPU allows, with room for ends of spans and records.
const GROUPS_TILES_MAX: u64 = 1 << 17;

/// Workers whose launches are timed by the device's clock. Metal has 32 places for that, two go to each worker, and a device
/// that is asked for more is lost. Launches of others are missing in the shares of stages, and nowhere else.
const TIMED_WORKERS: usize = 12;

/// Bindings begin at multiples of this: WebGPU's default limit.
const ALIGNMENT: u64 = 256;

/// Moments of a launch that the device's clock is asked for: at the beginning, before and after the kernel, at the end.
const MOMENTS: u32 = 4;

/// The bytes of a flight's buffers.
#[derive(Debug, Clone, Copy)]
struct SlotBytes {
    input: u64,
    table: u64,
    /// Tallies and results.
    result: u64,
}

impl SlotBytes {
    fn of(widest: &Widest, chunk_tiles: u64) -> Self {
        let tallies = (4 * SPANS_MAX * TALLY_WORDS) as u64;
        // Results of a span begin at a multiple of a vector.
        let padding = SPANS_MAX as u64 * 16 + ALIGNMENT;
        Self {
            // A plan of nothing but copies has no inputs.
            input: (chunk_tiles * (TILE * widest.input_bytes) as u64).max(ALIGNMENT),
            table: ((4 * table::words_max(widest, chunk_tiles)) as u64).next_multiple_of(ALIGNMENT),
            result: (tallies + widest.result_bytes(chunk_tiles) + padding).next_multiple_of(ALIGNMENT),
        }
    }

    fn all(self) -> u64 {
        self.input + self.table + self.result
    }

    fn download(self) -> u64 {
        self.result + 8 * u64::from(MOMENTS)
    }
}

/// What one lane takes.
pub(super) fn lane_bytes(widest: &Widest, chunk_tiles: u64) -> LaneBytes {
    let slots = SlotBytes::of(widest, chunk_tiles);
    let device = DEPTH as u64 * slots.all();
    // What is copied without a kernel goes through three buffers of the worker.
    let copied = 3 * chunk_tiles * (TILE * widest.copied_bytes) as u64;
    // Reads past the page cache come in whole blocks.
    let blocks = 4 * chunk_tiles * TILE as u64;
    // A span that is left to the CPU comes back with its inputs, and has results.
    let redone = slots.input + slots.result;
    let too_many_groups = chunk_tiles > GROUPS_TILES_MAX;
    LaneBytes {
        host: device + copied + blocks + redone + (1 << 20),
        device,
        binding: if too_many_groups { u64::MAX } else { slots.input.max(slots.table).max(slots.result) },
    }
}

/// The adapters of this machine.
pub(super) fn devices() -> Result<Vec<Device>> {
    driver::devices()
}

/// A WebGPU device.
#[derive(Debug)]
pub struct Wgpu {
    name: String,
    gpu: Arc<Gpu>,
    dialect: Dialect,
    /// Whether kernels run; see [`Limits::kernels`].
    kernels_run: bool,
    slots: SlotBytes,
    spare: Arc<Spare>,
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

/// Device slots that belong to no flight.
#[derive(Debug)]
struct Spare {
    free: Mutex<Vec<wgpu::Buffer>>,
    /// How many more may be made.
    left: Mutex<u64>,
}

/// A device buffer for inputs. A spare one goes back when it is dropped.
#[derive(Debug)]
struct InputSlot {
    buffer: wgpu::Buffer,
    spare: Option<Arc<Spare>>,
}

impl Drop for InputSlot {
    fn drop(&mut self) {
        if let Some(spare) = &self.spare {
            lock(&spare.free).push(self.buffer.clone());
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const SLOT: BufferUsages = BufferUsages::STORAGE.union(BufferUsages::COPY_DST).union(BufferUsages::COPY_SRC);

impl Wgpu {
    /// Opens a device for lanes and held inputs of `limits`.
    ///
    /// # Errors
    /// Kind `Device`: it cannot be used.
    pub fn new(device: &Device, limits: &Limits) -> Result<Self> {
        let gpu = Gpu::of(device)?;
        let slots = SlotBytes::of(&limits.widest, limits.chunk_tiles);
        // More than all that is ever held would be of no use; chunks that end early, and small tensors, leave gaps.
        let useful = match limits.widest.held_bytes {
            0 => 0,
            held => 2 * held.div_ceil(slots.input) + 2 * (limits.threads * DEPTH) as u64,
        };
        let spares = (limits.hold_bytes / slots.input).min(useful);
        let dialect = Dialect {
            magnitudes_own: 0,
            magnitudes_models: gpu.magnitudes_models,
            results_apart: Some(ALIGNMENT),
        };
        Ok(Self {
            name: format!("{} {}", device.id(), device.name),
            dialect,
            kernels_run: limits.kernels,
            slots,
            spare: Arc::new(Spare { free: Mutex::default(), left: Mutex::new(spares) }),
            held: Held::default(),
            clock: clock(&gpu)?,
            gpu,
        })
    }

    /// A slot to hold inputs in, while there are any. A device that has no room for more holds no more.
    fn spare_slot(&self) -> Option<Arc<InputSlot>> {
        let free = lock(&self.spare.free).pop();
        let buffer = free.or_else(|| {
            let mut left = lock(&self.spare.left);
            *left = left.checked_sub(1)?;
            let made = self.gpu.buffer("held inputs", self.slots.input, SLOT, false);
            made.inspect_err(|_| *left = 0).ok()
        })?;
        Some(Arc::new(InputSlot { buffer, spare: Some(Arc::clone(&self.spare)) }))
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
        let timed = worker < TIMED_WORKERS;
        let ready = (0..DEPTH).map(|_| Flight::new(self, timed)).collect::<Result<_>>()?;
        let (flying, redo) = (VecDeque::new(), Redo::default());
        Ok(Box::new(WgpuLane { wgpu: self, worker, timeline, ready, flying, redo }))
    }

    fn forget(&self, tensor: usize) -> bool {
        self.held.forget(tensor);
        false
    }

    fn yardstick(&self, yardstick: Yardstick, elements: u64) -> Result<Duration> {
        let gpu = &*self.gpu;
        let bytes = 2 * elements;
        let inputs = match yardstick {
            Yardstick::Copy => 1,
            Yardstick::Stream { inputs, .. } => inputs,
        };
        let memory = gpu.buffer("yardstick", inputs as u64 * bytes, SLOT, false)?;
        let results = gpu.buffer("yardstick", bytes + ALIGNMENT, SLOT, false)?;
        let queries = self.clock.as_ref().map(|_| query_set(gpu));
        let mut commands = self.encoder();
        // What was never used is zeros, which are filled in when it first is: that is not to be timed.
        commands.clear_buffer(&memory, 0, None);
        commands.clear_buffer(&results, 0, None);
        let places: Vec<u64> = (0..inputs as u64).map(|input| input * bytes).collect();
        let writes = matches!(yardstick, Yardstick::Stream { writes: true, .. });
        let table = Table::stream(&self.dialect, inputs, writes, elements as usize, &places)?;
        let mut upload = Upload::new(gpu, (4 * table.words.len()) as u64)?;
        let words: &[u8] = bytemuck::cast_slice(&table.words);
        upload.bytes_mut()[..words.len()].copy_from_slice(words);
        let table_bytes = words.len() as u64;
        let table_buffer = gpu.buffer("table", table_bytes, SLOT, false)?;
        commands.copy_buffer_to_buffer(upload.hand_over(), 0, &table_buffer, 0, table_bytes);
        gpu.wait(gpu.submit(commands)?)?;
        let mut commands = self.encoder();
        // Two moments, one behind the other, around what is timed.
        let moments = if yardstick == Yardstick::Copy {
            self.note(&mut commands, queries.as_ref(), 0);
            commands.copy_buffer_to_buffer(&memory, 0, &results, 0, bytes);
            self.note(&mut commands, queries.as_ref(), 1);
            0..2
        } else {
            let bound =
                Bound { table: &table_buffer, memory: &memory, results: &results, results_from: ALIGNMENT };
            self.pass(&mut commands, &table, &bound, queries.as_ref(), true)?;
            1..3
        };
        let mut download = Download::new(gpu, 16)?;
        let timed = self.clock.as_ref().filter(|clock| clock.everywhere || yardstick != Yardstick::Copy);
        if let Some(queries) = queries.as_ref().filter(|_| timed.is_some()) {
            let buffer = moments_buffer(gpu)?;
            commands.resolve_query_set(queries, moments, &buffer, 0);
            commands.copy_buffer_to_buffer(&buffer, 0, download.buffer(), 0, 16);
        }
        download.map_after(&commands);
        let started = Instant::now();
        gpu.wait(gpu.submit(commands)?)?;
        let waited = started.elapsed();
        let ticks = download.read(gpu, |bytes| Ok(ticks_of(bytes)))?;
        Ok(timed.map_or(waited, |clock| clock.between(ticks[0], ticks[1])))
    }
}

/// Everything that one launch needs while it is under way.
struct Flight {
    upload: Upload,
    download: Download,
    slot: Arc<InputSlot>,
    table: wgpu::Buffer,
    results: wgpu::Buffer,
    queries: Option<(wgpu::QuerySet, wgpu::Buffer)>,
}

impl Flight {
    fn new(wgpu: &Wgpu, timed: bool) -> Result<Self> {
        let (gpu, slots) = (&*wgpu.gpu, wgpu.slots);
        let queries =
            if timed && wgpu.clock.is_some() { Some((query_set(gpu), moments_buffer(gpu)?)) } else { None };
        Ok(Self {
            upload: Upload::new(gpu, slots.input + slots.table)?,
            download: Download::new(gpu, slots.download())?,
            slot: Arc::new(InputSlot {
                buffer: gpu.buffer("inputs", slots.input, SLOT, false)?,
                spare: None,
            }),
            table: gpu.buffer("table", slots.table, SLOT, false)?,
            results: gpu.buffer("results", slots.result, SLOT, false)?,
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
    engine: Engine,
    /// For inputs that come back from the device; made when the first do.
    inputs: Option<Download>,
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
        DEPTH
    }

    fn submit(&mut self, launch: Launch, read: &mut dyn Read) -> Result<()> {
        let wgpu = self.wgpu;
        let mut flight = self.ready.pop().expect("no more launches than the lane is deep");
        let Gathered { parts, read_bytes } = wgpu.held.gather(&launch, flight.upload.bytes_mut(), read)?;
        let mut commands = wgpu.encoder();
        let queries = flight.queries.as_ref().map(|(queries, _)| queries);
        wgpu.note(&mut commands, queries, 0);
        // All in one slot, or all read, or both: then what is held is copied behind what was read.
        let mut of_held = parts.iter().map(|part| part.held.as_ref());
        let first = of_held.next().expect("a launch has inputs");
        let together = of_held.all(|held| match (first, held) {
            (Some(first), Some(held)) => Arc::ptr_eq(first, held),
            (first, held) => first.is_none() && held.is_none(),
        });
        let mut places: Vec<u64> = parts.iter().map(|part| part.offset).collect();
        let memory = match first {
            Some(slot) if together => Arc::clone(slot),
            None if together && launch.hold == Hold::Keep => {
                let spare = wgpu.spare_slot();
                if let Some(spare) = &spare {
                    wgpu.held.keep(&launch, &parts, spare);
                }
                spare.unwrap_or_else(|| Arc::clone(&flight.slot))
            }
            _ => Arc::clone(&flight.slot),
        };
        let mut end = read_bytes;
        for (part, place) in parts.iter().zip(&mut places).filter(|_| !together) {
            if let Some(slot) = &part.held {
                let bytes = padded(&launch.spans[part.span], launch.floats[part.place].bytes());
                commands.copy_buffer_to_buffer(&slot.buffer, part.offset, &memory.buffer, end, bytes);
                *place = end;
                end += bytes;
            }
        }
        let table = Table::new(&wgpu.dialect, &launch, &places)?;
        let words: &[u8] = bytemuck::cast_slice(&table.words);
        let copied_in = read_bytes + words.len() as u64;
        flight.upload.bytes_mut()[read_bytes as usize..copied_in as usize].copy_from_slice(words);
        let upload = flight.upload.hand_over();
        if read_bytes > 0 {
            commands.copy_buffer_to_buffer(upload, 0, &memory.buffer, 0, read_bytes);
        }
        commands.copy_buffer_to_buffer(upload, read_bytes, &flight.table, 0, words.len() as u64);
        commands.clear_buffer(&flight.results, 0, Some(table.cleared_bytes(&launch)));
        let bound = Bound {
            table: &flight.table,
            memory: &memory.buffer,
            results: &flight.results,
            results_from: wgpu.dialect.results_from(launch.spans.len()),
        };
        let redo_all = !launch.jobs.iter().all(|job| has_plain_factors(job));
        wgpu.pass(&mut commands, &table, &bound, queries, wgpu.kernels_run && !redo_all)?;
        let results = table.result_bytes.next_multiple_of(4);
        commands.copy_buffer_to_buffer(&flight.results, 0, flight.download.buffer(), 0, results);
        wgpu.note(&mut commands, queries, 3);
        if let (Some((queries, moments)), Some(clock)) = (&flight.queries, &wgpu.clock) {
            let noted = if clock.everywhere { 0..MOMENTS } else { 1..3 };
            commands.resolve_query_set(queries, noted.clone(), moments, 0);
            let bytes = 8 * u64::from(noted.end - noted.start);
            commands.copy_buffer_to_buffer(moments, 0, flight.download.buffer(), wgpu.slots.result, bytes);
        }
        flight.upload.map_after(&commands);
        flight.download.map_after(&commands);
        let submitted = Instant::now();
        let index = wgpu.gpu.submit(commands)?;
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
        let gpu = &*wgpu.gpu;
        gpu.wait(index)?;
        let done = Instant::now();
        flight.upload.take_back(gpu)?;
        let shape = launch.jobs[0].result();
        flight.download.read(gpu, |bytes| {
            if wgpu.clock.is_none() || flight.queries.is_some() {
                let moments = ticks_of(&bytes[wgpu.slots.result as usize..]);
                wgpu.record(timeline, &moments, (submitted, done), &table, copied_in);
            }
            let tallies: &[u32] = bytemuck::cast_slice(&bytes[..4 * TALLY_WORDS * launch.spans.len()]);
            let tallies = tallies.as_chunks::<TALLY_WORDS>().0;
            for (index, ((start, len), tally)) in table.spans.iter().zip(tallies).enumerate() {
                if wgpu.kernels_run && (redo_all || tally[TALLY_REDO] != 0) {
                    let span = InputsOf { launch: &launch, index, memory: &memory, places: &places };
                    redo.run(wgpu, &span, *len as u64, (timeline, By::Worker(*worker)), take)?;
                    continue;
                }
                let result = table::result_of(shape, &bytes[*start..start + len]);
                take(index, Output { result, tally: table::tally_of(tally), redone: false })?;
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
            launch.floats.iter().map(|float| (span.elements * float.bytes()) as u64).collect();
        let places = &places[index * bytes.len()..][..bytes.len()];
        let inputs = match &mut self.inputs {
            Some(inputs) => inputs,
            none => none.insert(Download::new(gpu, wgpu.slots.input)?),
        };
        let mut commands = wgpu.encoder();
        let mut parts = Vec::with_capacity(bytes.len());
        let mut end = 0;
        for (place, bytes) in places.iter().zip(bytes) {
            // Copies are of whole words, and inputs are padded to tiles.
            let copied = bytes.next_multiple_of(4);
            commands.copy_buffer_to_buffer(&memory.buffer, *place, inputs.buffer(), end, copied);
            parts.push(end as usize..(end + bytes) as usize);
            end += copied.next_multiple_of(8);
        }
        inputs.map_after(&commands);
        gpu.wait(gpu.submit(commands)?)?;
        inputs.read(gpu, |all| {
            let parts: Vec<&[u8]> = parts.into_iter().map(|part| &all[part]).collect();
            let moved = parts.iter().map(|part| part.len() as u64).sum::<u64>() + result_bytes;
            let output =
                timeline.time(Stage::Compute, by, moved, || self.engine.run(launch, span, &parts))?;
            take(index, output)
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

/// Whether all numbers that a job multiplies with are such that nothing leaves the range that WebGPU is exact in.
fn has_plain_factors(job: &Job) -> bool {
    job.factors().iter().all(|factor| *factor == 0.0 || FACTORS.contains(&factor.abs()))
}

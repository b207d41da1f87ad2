//! NVIDIA GPUs, through CUDA: reads land in pinned slots, and copies in, kernels and copies out overlap.
//!
//! ```text
//! worker's thread     read ──> pinned slot                                        pinned slot ──> hash, write
//! a flight's stream                └──> device slot ──> kernel ──> results ──────────┘
//! ```
//!
//! A lane has some flights, each with slots and a stream of its own for a launch: so whoever has read can always go on, in
//! whatever order the launches of all lanes come, and nothing can deadlock. Streams do not wait for each other, so the
//! device copies in, computes and copies out at the same time.
//! Inputs that a later sweep needs again stay in device memory: such a launch goes to a spare slot, which is free again
//! when the last chunk in it has been used. Others find them there when the launch has been collected, and so need not
//! wait for its stream.

pub mod algebra;
mod blas;
mod driver;
mod flights;
mod kernels;
mod numbers;
mod ptx;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::device::{Device, Family};
use super::gpu::{self, HOST_BYTES, Slot, SlotBytes, Spares};
use super::held::{FoundInput, Gathered, Held};
use super::table::{self, Dialect, Entry, Table};
use super::{Backend, Lane, Launch, LaunchKind, Limits, Output, ReadInputs};
use crate::error::{Error, Result};
use crate::kernel::packed::GROUP_MODELS;
use crate::timeline::{By, Stage, Timeline};
use driver::{Context, CudaStream, DeviceMemory, Event};
use flights::{Flight, Flights, Moments};
use kernels::LoadedKernels;

/// NVIDIA's GPUs.
pub(super) const FAMILY: Family = Family {
    name: "cuda",
    numbered: true,
    chunk_tiles: gpu::chunk_tiles,
    // A GPU works on all of it at once.
    bench_tiles: |all| all,
    lane_bytes: gpu::lane_bytes,
    host_bytes: HOST_BYTES,
    device_bytes: |device, _| {
        // Holds the largest tensors of all inputs, and leaves room for the driver under 8 GiB; devices shared with others keep a
        // tenth of what is free.
        const DEFAULT: u64 = 7 << 30;
        Ok(DEFAULT.min(free_bytes(device)? / 10 * 9))
    },
    reads_again: false,
    devices,
    open: |device, limits| Ok(Box::new(Cuda::new(device, limits)?)),
};

/// What the kernels are like.
const DIALECT: Dialect =
    Dialect { compiled: |kernel| &kernel.ptx, group_models: GROUP_MODELS, results_apart: None };

/// Bytes behind the results of a launch that no kernel may touch.
const GUARD_BYTES: u64 = 256;

/// What the guard holds.
const GUARD: u8 = 0xa5;

/// The devices of this machine; one that gives no answer hides no other.
fn devices() -> Result<Vec<Device>> {
    let count = driver::device_count()?;
    let version = driver::version()?;
    let device = |index| {
        let about = driver::about(index);
        let unusable = about.as_ref().map_or_else(|failure| Some(failure.clone()), driver::too_old);
        let about = about.ok();
        let mut facts = vec![("driver", format!("CUDA {}.{}", version / 1000, version % 1000 / 10))];
        if let Some(driver::About { capability: (major, minor), multiprocessors, .. }) = &about {
            facts.push(("compute capability", format!("{major}.{minor}")));
            facts.push(("multiprocessors", multiprocessors.to_string()));
        }
        Device {
            family: &FAMILY,
            index,
            memory_bytes: about.as_ref().map(|about| about.total_bytes),
            name: about.map_or_else(|| "an NVIDIA GPU".into(), |about| about.name),
            binding_bytes: u64::MAX,
            software: false,
            identity: None,
            facts,
            unusable,
            others: Vec::new(),
        }
    };
    Ok((0..count).map(device).collect())
}

/// The free memory of a device, in bytes. Only a context knows it.
fn free_bytes(device: &Device) -> Result<u64> {
    context_of(device)?.free_bytes()
}

/// The device's context; errors name the device.
fn context_of(device: &Device) -> Result<Arc<Context>> {
    Context::of(device.index)
        .map_err(|error| Error { message: format!("{}: {}", device.id(), error.message), ..error })
}

/// A CUDA device.
#[derive(Debug)]
struct Cuda {
    name: String,
    kernels: LoadedKernels,
    depth: usize,
    slots: SlotBytes,
    flights: Flights,
    spares: Arc<Spares<u64>>,
    held: Held<InputSlot>,
    memory: DeviceMemory,
    context: Arc<Context>,
}

/// A moment that both clocks know.
#[derive(Debug)]
struct Origin {
    event: Event,
    instant: Instant,
}

impl Origin {
    fn new() -> Result<Self> {
        let (event, stream) = (Event::timed()?, CudaStream::new()?);
        event.record(&stream)?;
        event.synchronize()?;
        Ok(Self { event, instant: Instant::now() })
    }
}

/// A slot for inputs: bytes from the start of the device's memory.
type InputSlot = Slot<u64>;

impl Cuda {
    /// Opens a device with memory for the lanes and the held inputs of `limits`.
    ///
    /// # Errors
    /// Kind `DeviceMemory`: it has not the memory. Kind `Device`: it cannot be used.
    fn new(device: &Device, limits: &Limits) -> Result<Self> {
        let context = context_of(device)?;
        let slots = SlotBytes::of(&limits.widest, limits.chunk_tiles);
        let flights = gpu::flights(limits) as u64;
        let flights_bytes = flights * slots.all();
        let input_bytes = slots.inputs + slots.table;
        let reachable = table::PLACES_BYTES.saturating_sub(flights_bytes) / input_bytes;
        let spares = gpu::spare_slots(limits, input_bytes).min(reachable);
        if flights_bytes > table::PLACES_BYTES {
            return Err(Error::device(format!(
                "{} threads with chunks of {} tiles take more than 64 GiB of the device's memory",
                limits.threads, limits.chunk_tiles
            ))
            .hint("use fewer --threads"));
        }
        let memory = DeviceMemory::new(flights_bytes + spares * input_bytes)?;
        let free = (0..spares).rev().map(|i| flights_bytes + i * input_bytes).collect();
        Ok(Self {
            name: format!("{} {}", device.id(), device.name),
            kernels: LoadedKernels::default(),
            depth: gpu::depth(&limits.widest, limits.chunk_tiles),
            slots,
            flights: Flights::new(&context, flights, slots),
            spares: Spares::new(free),
            held: Held::default(),
            memory,
            context,
        })
    }

    /// Waits for all that is under way. Where that fails the device has failed, and does nothing any more.
    fn drain(&self) {
        // The failure that may have brought us here is the one to report.
        let _ = self.context.synchronize();
    }

    /// A slot to hold inputs in, while there are any.
    fn spare_slot(&self) -> Option<Arc<InputSlot>> {
        Some(Slot::spare(self.spares.take()?, &self.spares))
    }
}

impl Drop for Cuda {
    /// Frees nothing that is in use, even if a lane was never dropped.
    fn drop(&mut self) {
        self.drain();
    }
}

impl Backend for Cuda {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn lane<'a>(&'a self, worker: usize, timeline: &'a Timeline) -> Result<Box<dyn Lane + 'a>> {
        self.context.bind()?;
        let origin = if timeline.times_device() { Some(Origin::new()?) } else { None };
        let (ready, flying) = (Vec::new(), VecDeque::new());
        Ok(Box::new(CudaLane { cuda: self, worker, timeline, origin, ready, flying }))
    }

    fn forget(&self, input: usize) {
        self.held.forget(input);
    }

    fn prepare(&self, launches: &[LaunchKind], slow: &(dyn Fn() + Sync)) -> Result<()> {
        let mut entries: Vec<Entry> = Vec::new();
        for entry in launches.iter().map(|launch| Entry::of(launch, &DIALECT)) {
            if !entries.contains(&entry) {
                entries.push(entry);
            }
        }
        self.kernels.prepare(entries, &self.context, slow)
    }
}

/// One worker's way through the device.
struct CudaLane<'a> {
    cuda: &'a Cuda,
    worker: usize,
    timeline: &'a Timeline,
    /// Where the device's stages are timed.
    origin: Option<Origin>,
    ready: Vec<Flight>,
    flying: VecDeque<Flying>,
}

/// A launch under way.
struct Flying {
    flight: Flight,
    launch: Launch,
    found: Vec<FoundInput<InputSlot>>,
    /// The slot that it was read into. Like those in `found` it must not be used again before the kernel is done.
    target: Arc<InputSlot>,
    /// Whether what was read is to be held.
    holds: bool,
    /// Of each span, where its results are in the flight's, and how many bytes.
    spans: Vec<(usize, usize)>,
    bytes: Moved,
}

/// Bytes that a launch moves.
#[derive(Debug, Clone, Copy, Default)]
struct Moved {
    copied_in: u64,
    /// Read and written by the kernel.
    computed: u64,
    copied_out: u64,
    /// Of what is copied out, the bytes before the guard.
    used: u64,
}

impl Lane for CudaLane<'_> {
    fn depth(&self) -> usize {
        self.cuda.depth
    }

    fn submit(&mut self, launch: Launch, read: &mut dyn ReadInputs) -> Result<()> {
        // A lane takes its flights one by one, so that its first launch does not wait for the second one's.
        let mut flight = self.ready.pop().map_or_else(|| self.cuda.flights.take(), Ok)?;
        let Gathered { found, read_bytes } =
            self.cuda.held.gather(&launch, flight.pinned.bytes_mut(), read)?;
        let spare = if gpu::holds(&launch) && read_bytes > 0 { self.cuda.spare_slot() } else { None };
        let holds = spare.is_some();
        let target = spare.unwrap_or_else(|| Arc::clone(&flight.slot));
        let places: Vec<u64> =
            found.iter().map(|input| input.held.as_ref().unwrap_or(&target).place + input.offset).collect();
        let table = Table::new(&DIALECT, &launch, &places)?;
        let table_bytes: &[u8] = bytemuck::cast_slice(&table.words);
        let copied_in = read_bytes + table_bytes.len() as u64;
        flight.pinned.bytes_mut()[read_bytes as usize..copied_in as usize].copy_from_slice(table_bytes);
        let bytes = Moved {
            copied_in,
            computed: table.read_bytes + table.written_bytes,
            copied_out: table.result_bytes + GUARD_BYTES,
            used: table.result_bytes,
        };
        if self.origin.is_some() && flight.moments.is_none() {
            flight.moments = Some(Moments::new()?);
        }
        // SAFETY: flight and slots stay in `flying` until the launch is collected; who drops a lane before that, or ends
        // here, waits for the device first.
        unsafe { self.start(&mut flight, &launch, &table, target.place, read_bytes, bytes) }
            .map_err(|failure| self.drain(failure))?;
        self.flying.push_back(Flying { flight, launch, found, target, holds, spans: table.spans, bytes });
        Ok(())
    }

    fn collect(&mut self, take: &mut dyn FnMut(usize, Output<'_>) -> Result<()>) -> Result<()> {
        let flying = self.flying.pop_front().expect("collect follows submit");
        let done = || flying.flight.done.synchronize();
        let waited = self.timeline.time(Stage::DeviceWait, By::Worker(self.worker), 0, done);
        waited.and_then(|()| self.record(&flying)).map_err(|failure| self.drain(failure))?;
        if flying.holds {
            self.cuda.held.keep_read(&flying.launch, &flying.found, &flying.target);
        }
        let bytes = flying.flight.results.bytes();
        let guard = &bytes[flying.bytes.used as usize..flying.bytes.copied_out as usize];
        if guard.iter().any(|byte| *byte != GUARD) {
            return Err(Error::device(format!("{}: a kernel wrote behind its results", self.cuda.name))
                .hint("`mergeforge check --device cuda` tests the device; please report this"));
        }
        let outcome = flying.launch.jobs[0].outcome();
        for (index, (output, _)) in gpu::outputs(outcome, &flying.spans, bytes).enumerate() {
            take(index, output)?;
        }
        self.ready.push(flying.flight);
        Ok(())
    }
}

impl CudaLane<'_> {
    /// Puts a launch into its flight's stream.
    ///
    /// # Safety
    /// The table is the launch's, and its inputs are in slots of this device, `target` among them. Until the launch is
    /// collected or, after a failure, until the device has been waited for, the flight is neither changed nor dropped, and
    /// the slots are not given to others.
    unsafe fn start(
        &self,
        flight: &mut Flight,
        launch: &Launch,
        table: &Table,
        target: u64,
        table_offset: u64,
        bytes: Moved,
    ) -> Result<()> {
        let Cuda { kernels, memory, .. } = self.cuda;
        let kernel = kernels.get(&table.entry)?;
        let slots = self.cuda.slots;
        let fits = bytes.copied_in <= slots.inputs + slots.table && bytes.copied_out <= slots.results;
        assert!(fits, "a launch fits its flight");
        let inputs = memory.region(target, bytes.copied_in);
        let packed = memory.region(target + table_offset, bytes.copied_in - table_offset);
        let results = memory.region(flight.result_place, bytes.copied_out);
        let cleared = memory.region(flight.result_place, table.cleared_bytes(launch));
        let guard = memory.region(flight.result_place + bytes.used, GUARD_BYTES);
        // From here on nothing panics, which would free what is in use: all of it has been seen to fit.
        let Flight { pinned, results: results_pinned, stream, done, moments, .. } = flight;
        let note = |event: fn(&Moments) -> &Event| {
            moments.as_ref().map_or(Ok(()), |moments| event(moments).record(stream))
        };
        note(|moments| &moments.copy_in[0])?;
        // SAFETY: the caller keeps the flight; the device's memory is dropped after all work was waited for.
        unsafe { stream.copy_in(pinned, inputs) }?;
        note(|moments| &moments.copy_in[1])?;
        // SAFETY: as above.
        unsafe { stream.fill(cleared, 0) }?;
        // SAFETY: as above.
        unsafe { stream.fill(guard, GUARD) }?;
        let parameters = [memory.all(), packed, results];
        // Behind the fills, which are no part of a kernel.
        note(|moments| &moments.kernel[0])?;
        // SAFETY: kernel, grid and threads are the table's, which has been copied when the stream goes on; it names
        // slots that the caller keeps, and places in `results`. Modules are dropped as late as the memory.
        unsafe { stream.launch(&kernel, table.grid, table.threads, parameters) }?;
        note(|moments| &moments.kernel[1])?;
        // SAFETY: as above.
        unsafe { stream.copy_out(results, results_pinned) }?;
        note(|moments| &moments.copied_out)?;
        done.record(stream)
    }

    /// After a failure: waits for what is under way, which uses slots that are about to be freed.
    fn drain(&self, failure: Error) -> Error {
        self.cuda.drain();
        failure
    }

    /// Puts the device's stages on the timeline.
    fn record(&self, flying: &Flying) -> Result<()> {
        let Moved { copied_in, computed, copied_out, .. } = flying.bytes;
        let bytes = [(Stage::CopyIn, copied_in), (Stage::Compute, computed), (Stage::CopyOut, copied_out)];
        let (Some(origin), Some(moments)) = (&self.origin, &flying.flight.moments) else {
            bytes.into_iter().for_each(|(stage, bytes)| self.timeline.record_untimed(stage, bytes));
            return Ok(());
        };
        let Moments { copy_in, kernel, copied_out } = moments;
        let stages = [[&copy_in[0], &copy_in[1]], [&kernel[0], &kernel[1]], [&kernel[1], copied_out]];
        // The device's clock counts in f32: what is long ago is coarse, so what is near is counted from the launch's beginning.
        let begun = origin.instant + milliseconds(copy_in[0].milliseconds_since(&origin.event)?);
        for ((stage, bytes), [from, to]) in bytes.into_iter().zip(stages) {
            let from = begun + milliseconds(from.milliseconds_since(&copy_in[0])?);
            let to = begun + milliseconds(to.milliseconds_since(&copy_in[0])?);
            self.timeline.record(stage, By::Device, from, to, bytes);
        }
        Ok(())
    }
}

impl Drop for CudaLane<'_> {
    /// Where others failed, launches of this lane may still be under way.
    fn drop(&mut self) {
        if !self.flying.is_empty() {
            self.cuda.drain();
        }
        let flying = self.flying.drain(..).map(|flying| flying.flight);
        self.cuda.flights.give_back(flying.chain(self.ready.drain(..)));
    }
}

fn milliseconds(count: f32) -> Duration {
    Duration::from_secs_f64(f64::from(count.max(0.0)) / 1e3)
}

//! The scheduler: every tensor in chunks through read → compute → write, all workers busy.
//!
//! Consecutive tensors of the plan form groups: many small ones, or one large one. A group's recipes go pass
//! by pass; a pass is cut into units of at most a chunk of tiles, and workers take units, those of open groups
//! first. A worker with nothing to do opens the next group of the plan. An open group holds only small
//! numbers while it waits (buffers belong to lanes, held inputs to the device), so groups never wait for
//! each other's memory and nothing can deadlock, whatever the order of tensors in the files.

mod fold;
mod group;
mod inputs;

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::backend::device::{Device, LaneBytes};
use crate::backend::{Backend, Lane, Launch, Limits, Output, SpanResult};
use crate::checkpoint::{Reads, Sink, Source};
use crate::error::{Error, Result};
use crate::plan::Plan;
use crate::recipe::Threshold;
use crate::threads;
use crate::timeline::{By, Stage, Timeline};
use group::{Group, Place, Task};
use inputs::{Behind, Reader};

pub use group::Merged;

/// What a merge may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Worker threads.
    pub threads: usize,
    /// Memory for buffers and, on the CPU, held inputs, in bytes.
    pub host_bytes: u64,
    /// Memory of the device for buffers and held inputs, in bytes.
    pub device_bytes: u64,
    /// The most tiles in a chunk, rounded up to a power of two: chunks are subtrees of a digest.
    pub chunk_tiles: u64,
}

impl Budget {
    /// Cuts the work so that the buffers of all workers fit, and gives the rest to held inputs.
    ///
    /// # Errors
    /// Not even one worker with chunks of one tile fits.
    pub fn limits(&self, plan: &Plan, on: &Device) -> Result<Limits> {
        let widest = plan.widest();
        let lane = |chunk_tiles: u64| on.family.lane_bytes(&widest, chunk_tiles);
        let fits = |threads: u64, LaneBytes { host, device, binding }: LaneBytes| {
            threads * host <= self.host_bytes
                && threads * device <= self.device_bytes
                && binding <= on.binding_bytes
        };
        // A chunk beyond the largest tensor would only cost memory.
        let mut chunk_tiles = self.chunk_tiles.clamp(1, widest.tiles).next_power_of_two();
        // Many threads with tiny chunks would do more calls than work.
        let comfortable = lane(chunk_tiles.min(CHUNK_TILES_COMFORTABLE));
        let affordable = |given: u64, each: u64| given.checked_div(each).unwrap_or(THREADS_MAX);
        let threads = affordable(self.host_bytes, comfortable.host)
            .min(affordable(self.device_bytes, comfortable.device))
            .clamp(1, THREADS_MAX)
            .min(self.threads.max(1) as u64);
        while !fits(threads, lane(chunk_tiles)) {
            if chunk_tiles == 1 {
                return Err(self.too_little_memory(lane(1), on));
            }
            chunk_tiles /= 2;
        }
        let LaneBytes { host, device, .. } = lane(chunk_tiles);
        // A device with memory of its own holds inputs there.
        let hold_bytes = match device {
            0 => self.host_bytes - threads * host,
            device => self.device_bytes - threads * device,
        };
        Ok(Limits { threads: threads as usize, chunk_tiles, hold_bytes, widest, kernels: true })
    }

    fn too_little_memory(&self, needed: LaneBytes, on: &Device) -> Error {
        if needed.binding > on.binding_bytes {
            return Error::device(format!(
                "{}: its kernels can use {} bytes at once, and this merge needs {}",
                on.id(),
                on.binding_bytes,
                needed.binding
            ))
            .hint("merge fewer models at a time, or use --device cpu");
        }
        let (flag, given, needed) = if self.host_bytes < needed.host {
            ("--host-memory", self.host_bytes, needed.host)
        } else {
            ("--device-memory", self.device_bytes, needed.device)
        };
        Error::config(format!("{flag} {given} bytes: this merge needs at least {needed}"))
            .hint("give it more; the default is a good choice")
    }
}

/// Where memory is short, threads are given up before chunks get smaller than this.
const CHUNK_TILES_COMFORTABLE: u64 = 16;

/// More threads than this only wait for each other.
const THREADS_MAX: u64 = 256;

/// Who looks on while the merge runs.
pub trait Watch: Sync {
    /// So many bytes more were read and written.
    fn moved(&self, read: u64, written: u64);
    /// Whether the merge should stop.
    fn stop(&self) -> bool;
}

/// Everything the workers share.
struct Stream<'a> {
    plan: &'a Plan,
    sources: &'a [Source],
    backend: &'a dyn Backend,
    sink: &'a Sink,
    watch: &'a dyn Watch,
    timeline: &'a Timeline,
    /// See [`Work::recalled`].
    recalled: &'a [Vec<Threshold>],
    reads: Reads,
    kernels: bool,
    chunk_tiles: u64,
    behind: Mutex<Behind>,
    groups: Vec<std::ops::Range<usize>>,
    queue: Mutex<Queue>,
    changed: Condvar,
}

/// What is to be done next.
struct Queue {
    /// Open groups whose pass has units left, perhaps.
    ready: VecDeque<Arc<Group>>,
    /// The next group of the plan to open.
    next: usize,
    /// Groups opened and not finished.
    open: usize,
    failure: Option<Error>,
    stopped: bool,
    merged: Vec<Option<Merged>>,
}

/// What is to be done.
#[derive(Debug, Clone, Copy)]
pub struct Work<'a> {
    /// The plan.
    pub plan: &'a Plan,
    /// Its models.
    pub sources: &'a [Source],
    /// Of each tensor, what earlier merges found; nothing, or as many as there are tensors. It may be wrong: that costs
    /// time and changes no byte.
    pub recalled: &'a [Vec<Threshold>],
    /// How the inputs are read.
    pub reads: Reads,
}

/// What came of it.
#[derive(Debug)]
pub struct Streamed {
    /// Of every tensor of the plan: the digest of what was written, the odd values met, and thresholds.
    pub merged: Vec<Merged>,
    /// The worker threads that there were.
    pub workers: usize,
}

/// Carries out a plan: reads from the sources, computes on `backend`, writes to `sink`.
///
/// Where the system does not start all worker threads, those that there are do the work.
///
/// # Errors
/// The first failure of any worker: an input that cannot be read, a disk that is full, a copy whose holders
/// differ, or the user's wish to stop.
pub fn run(
    work: Work<'_>,
    backend: &dyn Backend,
    sink: &Sink,
    limits: &Limits,
    watch: &dyn Watch,
    timeline: &Timeline,
) -> Result<Streamed> {
    let Work { plan, sources, recalled, reads } = work;
    let queue = Queue {
        ready: VecDeque::new(),
        next: 0,
        open: 0,
        failure: None,
        stopped: false,
        merged: vec![None; plan.tensors.len()],
    };
    let stream = Stream {
        plan,
        sources,
        backend,
        sink,
        watch,
        timeline,
        recalled,
        reads,
        kernels: limits.kernels,
        chunk_tiles: limits.chunk_tiles,
        behind: Mutex::new(Behind::new(limits.behind_bytes())),
        groups: group::plan_groups(plan, limits.chunk_tiles),
        queue: Mutex::new(queue),
        changed: Condvar::new(),
    };
    let workers = threads::share(limits.threads, |worker| stream.work(worker));
    let queue = stream.queue.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some(failure) = queue.failure {
        return Err(failure);
    }
    let merged = queue.merged.into_iter().map(|merged| merged.expect("every group finished")).collect();
    Ok(Streamed { merged, workers })
}

impl Stream<'_> {
    /// One worker: keeps its lane full, and collects the oldest launch when it is.
    fn work(&self, worker: usize) {
        // A worker that panics must not leave the others waiting for it.
        let _stop_on_panic = StopOnPanic(self);
        if let Err(failure) = self.pump(worker) {
            self.stop(Some(failure));
        }
    }

    fn pump(&self, worker: usize) -> Result<()> {
        let by = By::Worker(worker);
        let mut lane = self.backend.lane(worker, self.timeline)?;
        let mut flying: VecDeque<(Arc<Group>, Vec<Place>)> = VecDeque::new();
        let mut bytes = Vec::new();
        loop {
            while flying.len() < lane.depth() {
                let Some((group, task)) = self.take(flying.is_empty())? else { break };
                match task {
                    Task::Copy { range } => {
                        group.copy(self, by, range, &mut bytes)?;
                        self.finish_unit(&group)?;
                    }
                    Task::Launch { launch, places } => {
                        self.submit(&mut *lane, by, launch)?;
                        flying.push_back((group, places));
                    }
                }
            }
            let Some((group, places)) = flying.pop_front() else { return Ok(()) };
            lane.collect(&mut |span, output| self.deliver(by, &group, &places[span], &output))?;
            self.finish_unit(&group)?;
        }
    }

    /// Reads a launch's inputs into the device and starts it.
    fn submit(&self, lane: &mut dyn Lane, by: By, launch: Launch) -> Result<()> {
        let spans = launch.spans.clone();
        let (reads, floats) = (launch.reads.clone(), launch.floats.clone());
        lane.submit(launch, &mut Reader { stream: self, by, spans, reads, floats })
    }

    /// Takes in one span's result: merged values are written, measurements folded.
    fn deliver(&self, by: By, group: &Group, place: &Place, output: &Output<'_>) -> Result<()> {
        if let SpanResult::Values(bytes) = output.result {
            let write = || self.sink.write_at(place.tensor, place.offset, bytes);
            self.timeline.time(Stage::Write, by, bytes.len() as u64, write)?;
            self.watch.moved(0, bytes.len() as u64);
        }
        group.take(place, output, self.timeline, by);
        Ok(())
    }

    /// The next unit; `None` when there is none, for good or, without `wait`, for now.
    fn take(&self, wait: bool) -> Result<Option<(Arc<Group>, Task)>> {
        let mut queue = self.queue();
        loop {
            if self.watch.stop() {
                return Err(Error::interrupted());
            }
            if queue.stopped {
                return Ok(None);
            }
            while let Some(group) = queue.ready.front() {
                if let Some(task) = group.next_task(self.chunk_tiles) {
                    return Ok(Some((Arc::clone(group), task)));
                }
                queue.ready.pop_front();
            }
            if let Some(range) = self.groups.get(queue.next).cloned() {
                queue.next += 1;
                queue.open += 1;
                drop(queue);
                let group = Arc::new(Group::new(self, range));
                self.advance(&group)?;
                queue = self.queue();
                continue;
            }
            if queue.open == 0 || !wait {
                return Ok(None);
            }
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Notes that one of the group's units is done; the last one of a pass starts the next pass.
    fn finish_unit(&self, group: &Arc<Group>) -> Result<()> {
        if group.finish_unit() { self.advance(group) } else { Ok(()) }
    }

    /// Starts the group's next pass, or closes it.
    fn advance(&self, group: &Arc<Group>) -> Result<()> {
        let goes_on = group.next_pass(self.plan, self.chunk_tiles)?;
        let done = if goes_on { Vec::new() } else { group.merged() };
        // Before the queue is locked, for which the others wait.
        for (tensor, _) in &done {
            if self.backend.forget(*tensor) {
                self.release(*tensor);
            }
        }
        let mut queue = self.queue();
        if goes_on {
            // What is under way goes first: what it holds is the sooner free again.
            queue.ready.push_front(Arc::clone(group));
        } else {
            for (tensor, merged) in done {
                queue.merged[tensor] = Some(merged);
            }
            queue.open -= 1;
        }
        drop(queue);
        self.changed.notify_all();
        Ok(())
    }

    fn stop(&self, failure: Option<Error>) {
        let mut queue = self.queue();
        queue.stopped = true;
        queue.failure = queue.failure.take().or(failure);
        drop(queue);
        self.changed.notify_all();
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct StopOnPanic<'a, 'b>(&'a Stream<'b>);

impl Drop for StopOnPanic<'_, '_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.stop(None);
        }
    }
}

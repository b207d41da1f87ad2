//! The scheduler: every tensor in chunks through read → compute → write, all workers busy.
//!
//! Consecutive tensors of the plan form groups: many small ones, or one large one. A group's recipes go pass
//! by pass; a pass is cut into units of at most a chunk of tiles, and workers take units, those of open groups
//! first. A worker with nothing to do opens the next group of the plan. An open group holds only small
//! numbers while it waits (buffers belong to lanes, held inputs to the device), so groups never wait for
//! each other's memory and nothing can deadlock, whatever the order of tensors in the files.

mod fold;
mod group;

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::backend::{Backend, Lane, Launch, Output, SpanResult};
use crate::checkpoint::{Sink, Source};
use crate::error::{Error, Result};
use crate::kernel::{TILE, VOTERS_MAX, magnitudes};
use crate::plan::Plan;
use crate::recipe::RECORDS_MAX;
use group::{Group, Place, Task};

pub use group::Merged;

/// What a merge may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Worker threads.
    pub threads: usize,
    /// Memory for buffers and held inputs, in bytes.
    pub host_bytes: u64,
    /// The most tiles in a chunk, rounded up to a power of two: chunks are subtrees of a digest.
    pub chunk_tiles: u64,
}

/// How the work is cut and spread. None of it changes a byte of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Worker threads.
    pub threads: usize,
    /// Tiles in a chunk, a power of two.
    pub chunk_tiles: u64,
    /// Bytes of inputs that may be held between sweeps.
    pub hold_bytes: u64,
}

impl Budget {
    /// 128 Ki elements: 256 KiB of bfloat16 per input stay in a core's second-level cache.
    pub const CHUNK_TILES: u64 = 128;

    /// Cuts the work so that the buffers of all workers fit, and gives the rest to held inputs.
    ///
    /// # Errors
    /// Not even one worker with chunks of one tile fits.
    pub fn limits(&self, plan: &Plan) -> Result<Limits> {
        let (inputs, element_bytes) = plan.widest();
        // Beside chunks of inputs and output: a few tiles of f32 per input, the keys that a search looks through, and
        // the counters of the group that the lane works on, once as they come in and once as they are looked at.
        let counters = if plan.measures() { inputs.min(VOTERS_MAX) as u64 } else { 0 };
        let counter_bytes = 2 * RECORDS_MAX * 4 * magnitudes::WORDS as u64 * counters;
        let fixed_bytes = (inputs as u64 + 2) * (64 << 10) + (1 << 20) + counter_bytes;
        let lane_bytes = |chunk_tiles: u64| chunk_tiles * (TILE * element_bytes) as u64 + fixed_bytes;
        // A chunk beyond the largest tensor would only cost memory.
        let mut chunk_tiles = self.chunk_tiles.clamp(1, plan.largest_tiles()).next_power_of_two();
        // Many threads with tiny chunks would do more calls than work.
        let comfortable = lane_bytes(chunk_tiles.min(CHUNK_TILES_COMFORTABLE));
        let threads = (self.host_bytes / comfortable).clamp(1, THREADS_MAX).min(self.threads.max(1) as u64);
        while threads * lane_bytes(chunk_tiles) > self.host_bytes {
            if chunk_tiles == 1 {
                return Err(too_little_memory(self.host_bytes, lane_bytes(1)));
            }
            chunk_tiles /= 2;
        }
        let hold_bytes = self.host_bytes - threads * lane_bytes(chunk_tiles);
        Ok(Limits { threads: threads as usize, chunk_tiles, hold_bytes })
    }
}

/// Where memory is short, threads are given up before chunks get smaller than this.
const CHUNK_TILES_COMFORTABLE: u64 = 16;

/// More threads than this only wait for each other.
const THREADS_MAX: u64 = 256;

fn too_little_memory(given: u64, needed: u64) -> Error {
    Error::config(format!("--host-memory {given} bytes: this merge needs at least {needed}"))
        .hint("give it more; the default is a good choice")
}

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
    chunk_tiles: u64,
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

/// Carries out a plan: reads from `sources`, computes on `backend`, writes to `sink`.
///
/// Returns, for every tensor of the plan, the digest of what was written and the odd values met.
///
/// # Errors
/// The first failure of any worker: an input that cannot be read, a disk that is full, a copy whose holders
/// differ, or the user's wish to stop.
pub fn run(
    plan: &Plan,
    sources: &[Source],
    backend: &dyn Backend,
    sink: &Sink,
    limits: &Limits,
    watch: &dyn Watch,
) -> Result<Vec<Merged>> {
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
        chunk_tiles: limits.chunk_tiles,
        groups: group::plan_groups(plan, limits.chunk_tiles),
        queue: Mutex::new(queue),
        changed: Condvar::new(),
    };
    std::thread::scope(|scope| {
        for _ in 0..limits.threads {
            scope.spawn(|| stream.work());
        }
    });
    let queue = stream.queue.into_inner().unwrap_or_else(PoisonError::into_inner);
    match queue.failure {
        Some(failure) => Err(failure),
        None => Ok(queue.merged.into_iter().map(|merged| merged.expect("every group finished")).collect()),
    }
}

impl Stream<'_> {
    /// One worker: keeps its lane full, and collects the oldest launch when it is.
    fn work(&self) {
        // A worker that panics must not leave the others waiting for it.
        let _stop_on_panic = StopOnPanic(self);
        if let Err(failure) = self.pump() {
            self.stop(Some(failure));
        }
    }

    fn pump(&self) -> Result<()> {
        let mut lane = self.backend.lane();
        let mut flying: VecDeque<(Arc<Group>, Vec<Place>)> = VecDeque::new();
        let mut bytes = Vec::new();
        loop {
            while flying.len() < lane.depth() {
                let Some((group, task)) = self.take(flying.is_empty())? else { break };
                match task {
                    Task::Copy { range } => {
                        group.copy(self, range, &mut bytes)?;
                        self.finish_unit(&group);
                    }
                    Task::Launch { launch, places } => {
                        self.submit(&mut *lane, launch)?;
                        flying.push_back((group, places));
                    }
                }
            }
            let Some((group, places)) = flying.pop_front() else { return Ok(()) };
            lane.collect(&mut |span, output| self.deliver(&group, &places[span], &output))?;
            self.finish_unit(&group);
        }
    }

    /// Reads a launch's inputs into the device and starts it.
    fn submit(&self, lane: &mut dyn Lane, launch: Launch) -> Result<()> {
        let spans = launch.spans.clone();
        let (reads, floats) = (launch.reads.clone(), launch.floats.clone());
        lane.submit(launch, &mut |span, place, into| {
            let at = self.plan.tensors[spans[span].tensor].input(reads[place]);
            let offset = spans[span].first_element() * floats[place].bytes() as u64;
            let source = &self.sources[at.source];
            source.read_at(source.tensor_at(at.tensor), offset, into)?;
            self.watch.moved(into.len() as u64, 0);
            Ok(())
        })
    }

    /// Takes in one span's result: merged values are written, measurements folded.
    fn deliver(&self, group: &Group, place: &Place, output: &Output<'_>) -> Result<()> {
        if let SpanResult::Values(bytes) = output.result {
            self.sink.write_at(place.tensor, place.offset, bytes)?;
            self.watch.moved(0, bytes.len() as u64);
        }
        group.take(place, output);
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
                let group = Arc::new(Group::new(self.plan, range, self.chunk_tiles));
                self.advance(&group);
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
    fn finish_unit(&self, group: &Arc<Group>) {
        if group.finish_unit() {
            self.advance(group);
        }
    }

    /// Starts the group's next pass, or closes it.
    fn advance(&self, group: &Arc<Group>) {
        let goes_on = group.next_pass(self.plan, self.chunk_tiles);
        let mut queue = self.queue();
        if goes_on {
            // What is under way goes first: what it holds is the sooner free again.
            queue.ready.push_front(Arc::clone(group));
        } else {
            for (tensor, merged) in group.merged() {
                self.backend.forget(tensor);
                queue.merged[tensor] = Some(merged);
            }
            queue.open -= 1;
        }
        drop(queue);
        self.changed.notify_all();
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

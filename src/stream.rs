//! The scheduler: every tensor in chunks through read → compute → write, all workers busy.
//!
//! Consecutive tensors of the plan form groups: many small ones, or one large one. A group's recipes go pass
//! by pass; a pass is cut into units of at most a chunk of tiles, and workers take units, those of open groups
//! first. A worker with nothing to do opens the next group of the plan; so does one that would only meet others at a file, since
//! one thread at a time writes to it. An open group holds only small numbers while it waits (buffers belong to lanes, held inputs
//! to the device), so groups never wait for each other's memory and nothing can deadlock, whatever the order of tensors in the
//! files.

mod budget;
mod copies;
mod cut;
mod fold;
mod group;
mod memory;
mod reader;

use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::backend::{Backend, Lane, Launch, LaunchKind, Limits, Output, Span, SpanResult};
use crate::checkpoint::{Reads, Sink, Source};
use crate::dtype::{Dtype, widen_encoded};
use crate::error::{Error, Result};
use crate::input::{self, Input};
use crate::kernel::{self, tiles};
use crate::plan::{Action, Merge, Plan};
use crate::recipe::{Foreseen, Machine, Passes, Threshold};
use crate::threads;
use crate::timeline::{By, Stage, Timeline};
pub use copies::check_beginnings;
use copies::{Copier, units};
use cut::{Destination, Sizes, Unit};
use group::{Group, Planned};
use reader::Reader;

pub use budget::Budget;
pub use group::Merged;
pub use memory::InMemory;

/// Who looks on while the merge runs.
pub trait Watch: Sync {
    /// So many bytes more were read and written.
    fn moved(&self, read: u64, written: u64);
    /// Whether the merge should stop.
    fn stop(&self) -> bool;
    /// Before the first bytes: the device's driver compiles kernels, and that takes a while.
    fn compiling(&self);
    /// The device has not the memory that the merge may use, as `why` says: so many bytes of it are used in place of those.
    fn less_memory(&self, why: &Error, asked: u64, used: u64);
    /// A merge that was stopped has left something: so many tensors of it are now compared with what was noted.
    fn compares(&self, _tensors: usize) {}
    /// So many bytes of the output, of so many, were finished by it.
    fn goes_on(&self, _finished: u64, _all: u64) {}
    /// The merge is stopped, and so many bytes of the output, of so many, are finished and stay in a folder.
    fn leaves(&self, _partial: &Path, _finished: u64, _all: u64) {}
}

/// Where tensors go: a folder, or memory.
pub trait Deposit: Sync {
    /// Writes `bytes` into a tensor of the plan from byte `offset` of it on. Any thread may call it. Returns when that began, if it had
    /// to wait for another thread's write before.
    ///
    /// # Errors
    /// They cannot be written.
    fn write_at(&self, tensor: usize, offset: u64, bytes: &[u8]) -> Result<Option<Instant>>;

    /// All of a tensor is written.
    fn finished(&self, _tensor: usize, _merged: &Merged) {}
}

impl Deposit for Sink {
    fn write_at(&self, tensor: usize, offset: u64, bytes: &[u8]) -> Result<Option<Instant>> {
        Sink::write_at(self, tensor, offset, bytes)
    }

    fn finished(&self, tensor: usize, merged: &Merged) {
        Sink::finished(self, &merged.noted(tensor));
    }
}

/// Everything the workers share.
struct Stream<'a> {
    plan: &'a Plan,
    sources: &'a [Source],
    backend: &'a dyn Backend,
    sink: &'a dyn Deposit,
    watch: &'a dyn Watch,
    timeline: &'a Timeline,
    work: Work<'a>,
    reads: Reads,
    sizes: Sizes,
    /// Worker threads.
    threads: usize,
    /// Of each input, how many tensors are still to be merged from it.
    uses: Vec<AtomicU32>,
    groups: Vec<Planned>,
    /// Of each file of the output, the units under way of tensors that go to it. Those that measure count too: what they measure
    /// for is written next.
    busy: Vec<AtomicUsize>,
    /// Bytes of inputs that the device can hold.
    hold_bytes: u64,
    /// Bytes that made inputs may keep: those of two tensors.
    kept_bytes_max: u64,
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
    /// Bytes of inputs that are worth holding for them.
    held_bytes: u128,
    /// Bytes that inputs keep which are made for them.
    kept_bytes: u64,
    failure: Option<Error>,
    stopped: bool,
    merged: Vec<Option<Merged>>,
}

/// What is to be done.
#[derive(Debug, Clone, Copy)]
pub struct Work<'a> {
    /// The plan.
    pub plan: &'a Plan,
    /// The tensors that are merged, by their places in the plan, ascending; none: all.
    pub chosen: Option<&'a [usize]>,
    /// Its models.
    pub sources: &'a [Source],
    /// Of each tensor, what earlier merges found; nothing, or as many as there are tensors. It may be wrong: that costs
    /// time and changes no byte.
    pub recalled: &'a [Vec<Threshold>],
    /// How the inputs are read.
    pub reads: Reads,
    /// Whether nothing is computed: every input is read once and what is written means nothing. The floor of a merge.
    pub idle: bool,
    /// Whether inputs can be read again at little cost: see [`crate::recipe::Machine::guess`].
    pub guess: bool,
}

impl Work<'_> {
    /// How many of the tensors that are merged each input is read for.
    fn uses(&self) -> Vec<u32> {
        match self.chosen {
            Some(chosen) => self.plan.uses_by(chosen.iter().map(|tensor| &self.plan.tensors[*tensor])),
            None => self.plan.uses(),
        }
    }

    /// What asks for the passes over a tensor. In a merge that is idle, every tensor is read once and written.
    fn machine(&self, tensor: usize, merge: &Merge) -> Box<dyn Machine> {
        let mut machine = if self.idle { idle(merge.settings.inputs).begin() } else { merge.recipe.begin() };
        if self.guess && tiles(self.plan.tensors[tensor].elements) >= GUESSED_TILES {
            machine.guess();
        }
        machine.recall(self.recalled.get(tensor).map_or(&[], Vec::as_slice));
        machine
    }
}

/// The least tensor whose merge may guess: of a smaller one, the chunks that have to be mended are a large part.
const GUESSED_TILES: u64 = 1024;

/// One pass that reads every input and computes nothing: what any merge of them has to do at least.
fn idle(inputs: usize) -> Passes {
    Passes::combine((0..inputs).collect(), kernel::stream::Job { inputs, touched: 0, writes: false })
}

/// The result of a stream.
#[derive(Debug)]
pub struct Streamed {
    /// Of every chosen tensor of the plan: the digest of what was written, the odd values met, and thresholds.
    pub merged: Vec<Merged>,
    /// The worker threads that there were.
    pub workers: usize,
}

/// Has the device compile what a plan is likely to launch, before any worker waits for it.
///
/// # Errors
/// Kind `Device`: a kernel cannot be compiled.
pub fn prepare(work: &Work<'_>, backend: &dyn Backend, watch: &dyn Watch) -> Result<()> {
    let mut kinds: Vec<LaunchKind> = Vec::new();
    for (tensor, planned) in work.plan.tensors.iter().enumerate() {
        let Action::Merge(merge) = &planned.action else { continue };
        if planned.elements == 0 {
            continue;
        }
        for Foreseen { reads, job } in work.machine(tensor, merge).foreseen() {
            let kind = LaunchKind::of(&job, reads.iter().map(|read| merge.floats[*read]).collect());
            if !kinds.contains(&kind) {
                kinds.push(kind);
            }
        }
    }
    backend.prepare(&kinds, &|| watch.compiling())
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
    sink: &dyn Deposit,
    limits: &Limits,
    watch: &dyn Watch,
    timeline: &Timeline,
) -> Result<Streamed> {
    let Work { plan, sources, reads, .. } = work;
    let queue = Queue {
        ready: VecDeque::new(),
        next: 0,
        open: 0,
        held_bytes: 0,
        kept_bytes: 0,
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
        work,
        reads,
        sizes: Sizes { chunk_tiles: limits.chunk_tiles, spans: limits.widest.spans },
        threads: limits.threads,
        uses: work.uses().into_iter().map(AtomicU32::new).collect(),
        groups: group::plan_groups(plan, work.chosen, limits.chunk_tiles),
        busy: plan.layout.shards.iter().map(|_| AtomicUsize::new(0)).collect(),
        hold_bytes: limits.hold_bytes,
        kept_bytes_max: limits.kept_bytes,
        queue: Mutex::new(queue),
        changed: Condvar::new(),
    };
    let nodes = threads::Nodes::of_machine();
    let workers = threads::share(limits.threads, |worker| {
        let _stay = nodes.stay(worker);
        stream.work(worker);
    });
    let queue = stream.queue.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some(failure) = queue.failure {
        return Err(failure);
    }
    let mut merged = queue.merged;
    let merged = match work.chosen {
        Some(chosen) => chosen.iter().map(|tensor| merged[*tensor].take()).collect(),
        None => merged,
    };
    let merged =
        merged.into_iter().map(|merged: Option<Merged>| merged.expect("every group finished")).collect();
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
        let mut flying: VecDeque<(Arc<Group>, Vec<Destination>)> = VecDeque::new();
        let mut copier = Copier::default();
        let mut wide = Vec::new();
        loop {
            while flying.len() < lane.depth() {
                let Some((group, unit)) = self.take(flying.is_empty())? else { break };
                match unit {
                    Unit::Copy { span, destination } => {
                        self.copy(&mut copier, by, &group, span, &destination)?;
                        self.finish_unit(&group)?;
                    }
                    Unit::Launch { launch, destinations } => {
                        self.submit(&mut *lane, by, launch)?;
                        flying.push_back((group, destinations));
                    }
                }
            }
            let Some((group, destinations)) = flying.pop_front() else { return Ok(()) };
            lane.collect(&mut |span, output| {
                let to = &destinations[span];
                self.deliver(by, &group, to, &self.widened(to, output, &mut wide, by))
            })?;
            self.finish_unit(&group)?;
        }
    }

    /// Reads a launch's inputs into the device and starts it.
    fn submit(&self, lane: &mut dyn Lane, by: By, launch: Launch) -> Result<()> {
        let spans = launch.spans.clone();
        let element_bytes = launch.floats.iter().map(|float| float.bytes()).collect();
        lane.submit(launch, &mut Reader::new(self, by, &spans, element_bytes))
    }

    /// Copies a span.
    fn copy(&self, copier: &mut Copier, by: By, group: &Group, span: Span, to: &Destination) -> Result<()> {
        let tensor = &self.plan.tensors[to.tensor];
        let Action::Copy(copy) = &tensor.action else { unreachable!("only copies are copied") };
        let (_, unit_bytes) = units(tensor, copy.from);
        let (bytes, spans) = (span.elements * unit_bytes, [span]);
        let mut reader = Reader::new(self, by, &spans, vec![unit_bytes; copy.holders.len()]);
        let name_of = |input| {
            let at = input::stored(&self.plan.inputs, input).into_iter().next();
            at.map_or_else(|| format!("input {input}"), |at| self.sources[at.source].name.clone())
        };
        let output = copier.copy((tensor, copy), bytes, &mut reader, name_of, (self.timeline, by))?;
        self.deliver(by, group, to, &output)
    }

    /// A kernel's result as it is stored: kernels write no float64.
    fn widened<'a>(&self, to: &Destination, output: Output<'a>, wide: &'a mut Vec<u8>, by: By) -> Output<'a> {
        match output.result {
            SpanResult::Values(bytes) if self.plan.tensors[to.tensor].dtype == Dtype::F64 => {
                self.timeline.time(Stage::Compute, by, bytes.len() as u64, || widen_encoded(bytes, wide));
                Output { result: SpanResult::Values(wide), ..output }
            }
            _ => output,
        }
    }

    /// Takes in one span's result: values are written, measurements folded.
    fn deliver(&self, by: By, group: &Group, to: &Destination, output: &Output<'_>) -> Result<()> {
        if let SpanResult::Values(bytes) = output.result {
            self.write(by, to, bytes)?;
        }
        group.take(to, self, output, by);
        Ok(())
    }

    fn write(&self, by: By, to: &Destination, bytes: &[u8]) -> Result<()> {
        let asked = Instant::now();
        let delayed = self.sink.write_at(to.tensor, to.offset, bytes)?;
        let (began, written) = (delayed.unwrap_or(asked), bytes.len() as u64);
        if delayed.is_some() {
            self.timeline.record(Stage::WriteWait, by, asked, began, 0);
        }
        self.timeline.record(Stage::Write, by, began, Instant::now(), written);
        self.watch.moved(0, written);
        Ok(())
    }

    /// Whether other tensors than the one that asks are still to be merged from an input.
    fn is_shared(&self, input: usize) -> bool {
        self.uses[input].load(Ordering::Relaxed) > 1
    }

    /// Notes that a tensor is done. What is held of inputs that will not be used again is freed, and what made ones keep: the few
    /// that others read too keep it anew, since room for it is counted for those that are open.
    fn done_with(&self, tensor: usize) {
        let tensor = &self.plan.tensors[tensor];
        tensor.inputs().iter().for_each(|input| input::release(&self.plan.inputs, *input));
        let Action::Merge(merge) = &tensor.action else { return };
        for input in &merge.inputs {
            if self.uses[*input].fetch_sub(1, Ordering::Relaxed) > 1 {
                continue;
            }
            self.backend.forget(*input);
            if let (Reads::Mapped, Input::Stored(at)) = (self.reads, &self.plan.inputs[*input]) {
                self.sources[at.source].release(at.tensor);
            }
        }
    }

    /// The next unit; `None` when there is none, for good or, without `wait`, for now.
    fn take(&self, wait: bool) -> Result<Option<(Arc<Group>, Unit)>> {
        let mut queue = self.queue();
        loop {
            if self.watch.stop() {
                return Err(Error::interrupted());
            }
            if queue.stopped {
                return Ok(None);
            }
            let place = self.least_busy(&queue);
            if let Some(planned) = self.next_to_open(&queue, place).cloned() {
                queue.next += 1;
                queue.open += 1;
                queue.held_bytes += u128::from(planned.held_bytes);
                queue.kept_bytes += planned.kept_bytes;
                drop(queue);
                let group = Arc::new(Group::new(self, planned));
                self.advance(&group)?;
                queue = self.queue();
                continue;
            }
            if let Some(place) = place {
                let group = Arc::clone(&queue.ready[place]);
                let (unit, last) = group.next_unit(self.sizes).expect("a group that is ready has units left");
                // Its next pass is solved for under the group's own lock, which must not be waited for here.
                if last {
                    queue.ready.remove(place);
                }
                self.busy[group.shard].fetch_add(1, Ordering::Relaxed);
                return Ok(Some((group, unit)));
            }
            if queue.open == 0 || !wait {
                return Ok(None);
            }
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The open group whose file the fewest workers are busy with; the first among equals.
    fn least_busy(&self, queue: &Queue) -> Option<usize> {
        let busy = |place: &usize| self.busy[queue.ready[*place].shard].load(Ordering::Relaxed);
        (0..queue.ready.len()).min_by_key(busy)
    }

    /// The next group of the plan, if it is time to open it: where no group is ready, or where the worker would meet others at the
    /// files of those that are (`place` is the best one) and not at this one's, and the device can hold its inputs too.
    fn next_to_open(&self, queue: &Queue, place: Option<usize>) -> Option<&Planned> {
        let next = self.groups.get(queue.next)?;
        let is_idle = |shard: usize| self.busy[shard].load(Ordering::Relaxed) == 0;
        // What is read again from the page cache needs no room.
        let fits = || {
            let held_bytes = queue.held_bytes + u128::from(next.held_bytes);
            (self.work.guess && self.reads == Reads::Mapped) || held_bytes <= u128::from(self.hold_bytes)
        };
        let wants =
            place.is_none_or(|place| !is_idle(queue.ready[place].shard) && is_idle(next.shard) && fits());
        // Open groups may have nothing left to take, and still keep what the next one has no room beside.
        let opens = wants && queue.kept_bytes + next.kept_bytes <= self.kept_bytes_max;
        opens.then_some(next)
    }

    /// Notes that one of the group's units is done; the last one of a pass starts the next pass.
    fn finish_unit(&self, group: &Arc<Group>) -> Result<()> {
        self.busy[group.shard].fetch_sub(1, Ordering::Relaxed);
        if group.finish_unit() { self.advance(group) } else { Ok(()) }
    }

    /// Starts the group's next pass, or closes it.
    fn advance(&self, group: &Arc<Group>) -> Result<()> {
        let goes_on = group.next_pass(self)?;
        let done = if goes_on { Vec::new() } else { group.merged() };
        // Before the queue is locked, for which the others wait.
        for (tensor, merged) in &done {
            self.done_with(*tensor);
            self.sink.finished(*tensor, merged);
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
            queue.held_bytes -= u128::from(group.held_bytes);
            queue.kept_bytes -= group.kept_bytes;
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

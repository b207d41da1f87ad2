//! What is planned is carried out: a device is opened, the stream runs, what a stopped merge left is taken over, and what came of it
//! is reported.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::backend::device::Device;
use crate::backend::{Backend, Limits};
use crate::checkpoint::{Access, Finished, Layout, Reads, Sink, Source, share};
use crate::error::{self, Error, Result};
use crate::parts::{self, Part};
use crate::plan::Plan;
use crate::report::{self, Report};
use crate::stream::{self, Budget, Deposit, Merged, Streamed, Watch, Work};
use crate::timeline::{Shares, Timeline};
use crate::{Options, Prepared, check, check_room, threads, thresholds};

/// Carries out a plan. The output folder appears whole, under its final name, or not at all.
///
/// # Errors
/// An input that cannot be read or changes, an output that cannot be written, or the user's wish to stop.
pub fn merge(prepared: &Prepared, options: &Options, watch: &dyn Watch) -> Result<Report> {
    merge_recording(prepared, options, watch, Timeline::new())
}

/// As [`merge`], with the timeline that is to be in the report: one that keeps single records, for a trace.
///
/// # Errors
/// Those of [`merge`].
pub fn merge_recording(
    prepared: &Prepared,
    options: &Options,
    watch: &dyn Watch,
    timeline: Timeline,
) -> Result<Report> {
    check_room(prepared, options)?;
    let layout = &prepared.plan.layout;
    let goal = Goal { out: &options.out, layout, making: report::making(prepared)?, part: None };
    carry_out(prepared, options, &goal, watch, timeline)
}

/// Carries out a part of a plan: its shards, into [a folder of the part's own](Part::folder), which appears whole or not at all. `command`
/// are the words that make any part of it, but for the part.
///
/// # Errors
/// Those of [`merge`], and kind `Config` where a part of something else is there.
pub fn merge_part(
    prepared: &Prepared,
    options: &Options,
    (part, command): (Part, &[String]),
    watch: &dyn Watch,
    timeline: Timeline,
) -> Result<Report> {
    parts::check_room(prepared, options, part)?;
    let layout = &prepared.plan.layout;
    let (out, layout) = (part.folder(&options.out)?, layout.part(&part.shards(layout)));
    let making = parts::making(prepared, options)?;
    let goal = Goal { out: &out, layout: &layout, making, part: Some((part, command)) };
    carry_out(prepared, options, &goal, watch, timeline)
}

/// What of a plan is made, and where.
struct Goal<'a> {
    out: &'a Path,
    layout: &'a Layout,
    /// All that the bytes depend on.
    making: Value,
    /// Which part it is, if it is one, and the command for any.
    part: Option<(Part, &'a [String])>,
}

fn carry_out(
    prepared: &Prepared,
    options: &Options,
    goal: &Goal<'_>,
    watch: &dyn Watch,
    timeline: Timeline,
) -> Result<Report> {
    let Prepared { sources, plan, .. } = prepared;
    let devices = options.device.all();
    devices.clone().try_for_each(|device| check::before_first_use(device, options.cache.as_deref()))?;
    let budget = options.budget.shared(devices.clone().count());
    let engines: Vec<Engine> =
        devices.map(|device| open_device(plan, device, &budget, watch)).collect::<Result<_>>()?;
    let making = options.stopped.making(&goal.making);
    let free = || match goal.part {
        Some((part, _)) => parts::clear(prepared, options, part),
        None => Ok(()),
    };
    let (sink, left) = Sink::create_for(goal.out, goal.layout, access(sources), making, &free)?;
    let (partial, kept) = sink.kept();
    let outcome = merge_to((sink, left), prepared, options, goal, &engines, watch, timeline);
    outcome.inspect_err(|_| {
        if let Some(finished) = kept.and_then(|kept| kept.bytes()) {
            watch.leaves(&partial, finished, goal.layout.total_bytes);
        }
    })
}

/// Carries out a plan into a sink, of whose tensors some may be finished.
fn merge_to(
    (sink, left): (Sink, Vec<Finished>),
    prepared: &Prepared,
    options: &Options,
    goal: &Goal<'_>,
    engines: &[Engine],
    watch: &dyn Watch,
    timeline: Timeline,
) -> Result<Report> {
    let Prepared { sources, plan, .. } = prepared;
    let threads = engines.iter().map(|(_, limits)| limits.threads).sum();
    let known = proven(&sink, left, (plan, goal.layout.total_bytes), threads, watch)?;
    let wanted = match goal.part {
        Some((part, _)) => plan.layout.tensors_in(&part.shards(&plan.layout)),
        None => 0..plan.tensors.len(),
    };
    let is_all = known.is_empty() && wanted.len() == plan.tensors.len();
    let rest: Vec<usize> = wanted.filter(|tensor| !known.contains_key(tensor)).collect();
    let cache = options.cache.as_deref().filter(|_| options.recall);
    let recalled = cache.map_or_else(Vec::new, |cache| thresholds::recall(cache, plan, sources));
    let guess = options.device.family.reads_again;
    let chosen = (!is_all).then_some(rest.as_slice());
    let work = Work { plan, chosen, sources, recalled: &recalled, reads: options.reads, idle: false, guess };
    engines.iter().try_for_each(|(backend, _)| stream::prepare(&work, &**backend, watch))?;
    // Opening a device and compiling kernels take a moment, in which no stage could be busy.
    let timeline = timeline.begun_now();
    let merged = match engines {
        [(backend, limits)] => stream::run(work, &**backend, &sink, limits, watch, &timeline),
        several => run_on(several, work, &rest, &sink, watch, &timeline),
    };
    let Streamed { merged, workers } = verified(sources, merged).inspect_err(|_| {
        // Part of it is of other inputs. What could not be read may be read another time.
        if sources.iter().any(|source| source.verify_unchanged().is_err()) {
            sink.keep_nothing();
        }
    })?;
    let merged = rest.into_iter().zip(merged).chain(known).collect::<BTreeMap<_, _>>();
    let shares = timeline.shares(timeline.origin().elapsed(), workers);
    let names: Vec<String> = engines.iter().map(|(backend, _)| backend.name()).collect();
    let mut report = Report::new(prepared, names.join(", "), merged, timeline, shares)?;
    report.threads_missing = threads - workers;
    let streamed = Instant::now();
    let sidecars = match goal.part {
        Some(part) => parts::sidecars(&mut report, prepared, options, part)?,
        None => report.sidecars(prepared, options)?,
    };
    sink.finish(&sidecars, &|| watch.stop())?;
    report.finishing = streamed.elapsed();
    if let Some(cache) = cache {
        thresholds::remember(cache, plan, sources, report.placed());
    }
    Ok(report)
}

/// A device that was opened, and what it may use.
type Engine = (Box<dyn Backend>, Limits);

/// Carries out a plan's tensors on several devices at once, each of which has its share of their bytes.
fn run_on(
    engines: &[Engine],
    work: Work<'_>,
    tensors: &[usize],
    sink: &Sink,
    watch: &dyn Watch,
    timeline: &Timeline,
) -> Result<Streamed> {
    let sizes: Vec<u64> = tensors.iter().map(|tensor| work.plan.tensors[*tensor].bytes).collect();
    let watch = Together { watch, has_failed: AtomicBool::new(false) };
    let run = |place: usize| {
        let (backend, limits) = &engines[place];
        let share = share(&sizes, place + 1, engines.len());
        let work = Work { chosen: Some(&tensors[share]), ..work };
        let streamed = stream::run(work, &**backend, sink, limits, &watch, timeline);
        streamed.inspect_err(|_| watch.has_failed.store(true, Ordering::Relaxed))
    };
    let (mut all, mut failures) = (Streamed { merged: Vec::new(), workers: 0 }, Vec::new());
    for streamed in threads::each(engines.len(), engines.len(), run) {
        match streamed {
            Ok(Streamed { merged, workers }) => {
                all.merged.extend(merged);
                all.workers += workers;
            }
            Err(failure) => failures.push(failure),
        }
    }
    // Who was stopped by another one's failure says nothing of it.
    failures.sort_by_key(|failure| failure.kind == error::Kind::Interrupted);
    failures.into_iter().next().map_or(Ok(all), Err)
}

/// Whoever looks on while several devices compute: where one fails, all stop.
struct Together<'a> {
    watch: &'a dyn Watch,
    has_failed: AtomicBool,
}

impl Watch for Together<'_> {
    fn moved(&self, read: u64, written: u64) {
        self.watch.moved(read, written);
    }

    fn stop(&self) -> bool {
        self.has_failed.load(Ordering::Relaxed) || self.watch.stop()
    }

    fn compiling(&self) {
        self.watch.compiling();
    }

    fn less_memory(&self, why: &Error, asked: u64, used: u64) {
        self.watch.less_memory(why, asked, used);
    }
}

/// What of an output a stopped merge had finished, by the places of its tensors.
fn proven(
    sink: &Sink,
    left: Vec<Finished>,
    (plan, all_bytes): (&Plan, u64),
    threads: usize,
    watch: &dyn Watch,
) -> Result<BTreeMap<usize, Merged>> {
    if !left.is_empty() {
        watch.compares(left.len());
    }
    let proven = sink.proven(left, threads, &|| watch.stop())?;
    let known = proven.iter().filter_map(|one| Some((one.tensor, Merged::from_noted(one)?)));
    let known: BTreeMap<usize, Merged> = known.collect();
    if !known.is_empty() {
        let bytes = known.keys().map(|tensor| plan.tensors[*tensor].bytes).sum();
        watch.goes_on(bytes, all_bytes);
    }
    Ok(known)
}

/// Carries out a plan into `deposit`, and writes nothing else.
///
/// # Errors
/// An input that cannot be read or changes, a device that fails, or the user's wish to stop.
pub fn merge_tensors(
    prepared: &Prepared,
    (device, budget): (&Device, &Budget),
    reads: Reads,
    deposit: &dyn Deposit,
    watch: &dyn Watch,
) -> Result<Vec<Merged>> {
    let Prepared { sources, plan, .. } = prepared;
    let (backend, limits) = open_device(plan, device, budget, watch)?;
    let guess = device.family.reads_again;
    let work = Work { plan, chosen: None, sources, recalled: &[], reads, idle: false, guess };
    stream::prepare(&work, &*backend, watch)?;
    let merged = stream::run(work, &*backend, deposit, &limits, watch, &Timeline::timing());
    verified(sources, merged).map(|streamed| streamed.merged)
}

/// What came of a merge, if no input changed meanwhile. Those that change can look like a device that contradicts itself: they are
/// then the error.
pub(crate) fn verified(sources: &[Source], merged: Result<Streamed>) -> Result<Streamed> {
    if merged.as_ref().map_or_else(|failure| failure.kind == error::Kind::Device, |_| true) {
        sources.iter().try_for_each(Source::verify_unchanged)?;
    }
    merged
}

/// Opens the device with the memory that a merge may use; where it has not so much, with half of that, and so on, as far as the
/// merge gets by with it.
///
/// # Errors
/// Not even one chunk of the smallest size fits into the budget; or what the device reports, of the smallest that was tried.
pub(crate) fn open_device(
    plan: &Plan,
    device: &Device,
    asked: &Budget,
    watch: &dyn Watch,
) -> Result<(Box<dyn Backend>, Limits)> {
    let (mut budget, mut limits) = (*asked, asked.limits(plan, device)?);
    let mut refusal = None;
    loop {
        let failure = match device.open(&limits) {
            Ok(backend) => {
                if let Some(refusal) = refusal {
                    watch.less_memory(&refusal, asked.device_bytes, budget.device_bytes);
                }
                return Ok((backend, limits));
            }
            Err(failure) => failure,
        };
        budget.device_bytes /= 2;
        match budget.limits(plan, device) {
            Ok(less) if failure.kind == error::Kind::DeviceMemory => limits = less,
            _ => return Err(failure),
        }
        // What was asked for at first.
        refusal.get_or_insert(failure);
    }
}

/// What a merge takes at the least on this device: the same reads, copies, digests and writes through the same scheduler,
/// every input once and no arithmetic. What is written means nothing and is taken away. Returns the time, and what the stages
/// did in it.
///
/// # Errors
/// Those of [`merge`].
pub fn floor(prepared: &Prepared, options: &Options, watch: &dyn Watch) -> Result<(Duration, Shares)> {
    let Prepared { sources, plan, .. } = prepared;
    check_room(prepared, options)?;
    let (backend, limits) = open_device(plan, &options.device, &options.budget, watch)?;
    let (sink, _) = Sink::create(&options.out, &plan.layout, access(sources), None)?;
    let work =
        Work { plan, chosen: None, sources, recalled: &[], reads: options.reads, idle: true, guess: false };
    stream::prepare(&work, &*backend, watch)?;
    let timeline = Timeline::timing();
    let Streamed { workers, .. } = stream::run(work, &*backend, &sink, &limits, watch, &timeline)?;
    let wall = timeline.origin().elapsed();
    Ok((wall, timeline.shares(wall, workers)))
}

/// Who may read all inputs.
fn access(sources: &[Source]) -> Access {
    sources.iter().fold(Access::ANY, |access, source| access.and(source.access))
}

#[cfg(all(test, target_os = "linux"))]
pub(crate) mod tests;

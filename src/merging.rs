//! What is planned is carried out: a device is opened, the stream runs, what a stopped merge left is taken over, and what came of it
//! is reported.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::backend::device::Device;
use crate::backend::{Backend, Limits};
use crate::checkpoint::{Access, Finished, Reads, Sink, Source};
use crate::error::{self, Result};
use crate::plan::Plan;
use crate::report::{self, Report};
use crate::stream::{self, Budget, Deposit, Merged, Streamed, Watch, Work};
use crate::timeline::{Shares, Timeline};
use crate::{Options, Prepared, check, check_room, thresholds};

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
    let Prepared { sources, plan, .. } = prepared;
    check_room(prepared, options)?;
    check::before_first_use(&options.device, options.cache.as_deref())?;
    let (backend, limits) = open_device(plan, &options.device, &options.budget, watch)?;
    let making = report::making(prepared);
    let making = options.stopped.making(&making);
    let (sink, left) = Sink::create(&options.out, &plan.layout, access(sources), making)?;
    let (partial, kept) = sink.kept();
    let outcome = merge_to((sink, left), prepared, options, (&*backend, &limits), watch, timeline);
    outcome.inspect_err(|_| {
        if let Some(finished) = kept.and_then(|kept| kept.bytes()) {
            watch.leaves(&partial, finished, plan.layout.total_bytes);
        }
    })
}

/// Carries out a plan into a sink, of whose tensors some may be finished.
fn merge_to(
    (sink, left): (Sink, Vec<Finished>),
    prepared: &Prepared,
    options: &Options,
    (backend, limits): (&dyn Backend, &Limits),
    watch: &dyn Watch,
    timeline: Timeline,
) -> Result<Report> {
    let Prepared { sources, plan, .. } = prepared;
    let known = proven(&sink, left, plan, limits, watch)?;
    let rest: Vec<usize> = (0..plan.tensors.len()).filter(|tensor| !known.contains_key(tensor)).collect();
    let cache = options.cache.as_deref().filter(|_| options.recall);
    let recalled = cache.map_or_else(Vec::new, |cache| thresholds::recall(cache, plan, sources));
    let guess = options.device.family.reads_again;
    let chosen = (!known.is_empty()).then_some(rest.as_slice());
    let work = Work { plan, chosen, sources, recalled: &recalled, reads: options.reads, idle: false, guess };
    stream::prepare(&work, backend, watch)?;
    // Opening a device and compiling kernels take a moment, in which no stage could be busy.
    let timeline = timeline.begun_now();
    let merged = stream::run(work, backend, &sink, limits, watch, &timeline);
    let Streamed { merged, workers } = verified(sources, merged).inspect_err(|_| {
        // Part of it is of other inputs. What could not be read may be read another time.
        if sources.iter().any(|source| source.verify_unchanged().is_err()) {
            sink.keep_nothing();
        }
    })?;
    let merged =
        rest.into_iter().zip(merged).chain(known).collect::<BTreeMap<_, _>>().into_values().collect();
    let shares = timeline.shares(timeline.origin().elapsed(), workers);
    let mut report = Report::new(prepared, backend, merged, timeline, shares);
    report.threads_missing = limits.threads - workers;
    let streamed = Instant::now();
    let sidecars = report.sidecars(prepared, options)?;
    sink.finish(&sidecars, &|| watch.stop())?;
    report.finishing = streamed.elapsed();
    if let Some(cache) = cache {
        thresholds::remember(cache, plan, sources, &report.merged);
    }
    Ok(report)
}

/// What of an output a stopped merge had finished, by the places of its tensors.
fn proven(
    sink: &Sink,
    left: Vec<Finished>,
    plan: &Plan,
    limits: &Limits,
    watch: &dyn Watch,
) -> Result<BTreeMap<usize, Merged>> {
    if !left.is_empty() {
        watch.compares(left.len());
    }
    let proven = sink.proven(left, limits.threads, &|| watch.stop())?;
    let known = proven.iter().filter_map(|one| Some((one.tensor, Merged::from_noted(one)?)));
    let known: BTreeMap<usize, Merged> = known.collect();
    if !known.is_empty() {
        let bytes = known.keys().map(|tensor| plan.tensors[*tensor].bytes).sum();
        watch.goes_on(bytes, plan.layout.total_bytes);
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

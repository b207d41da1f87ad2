//! What the stages of a merge took, and when: the report's shares and the trace are made from it.
//!
//! Threads read, hash and write; a device copies in, computes and copies out. All such work is recorded, each stretch with
//! its beginning and end, so that what overlaps and what holds the merge back is seen and not guessed.
//!
//! Totals are always there, and workers add to them without a lock. A device's own clock is asked only where somebody wants to
//! know its stages apart ([`Timeline::timing`]); else its bytes are counted, and what is known of its time is how long workers
//! wait for it. Single records are kept only for a trace, or for a bench that looks at each launch ([`Timeline::keeping`]).

mod busy;
mod kept;
mod shares;
mod trace;

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use busy::Busy;
use kept::KeptRecords;

pub use shares::{Bottleneck, Shares, StageShare, StageTimes, Who};

/// The stages that a chunk goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Reading inputs, on a worker's thread.
    Read,
    /// Copying to the device.
    CopyIn,
    /// A kernel: on the CPU, on the worker's thread.
    Compute,
    /// Copying from the device.
    CopyOut,
    /// Waiting until the device is done with a launch, on a worker's thread.
    DeviceWait,
    /// Digests of the output, on a worker's thread.
    Hash,
    /// Waiting until another worker has written to the same file.
    WriteWait,
    /// Writing the output, on a worker's thread.
    Write,
}

/// How many stages there are.
const STAGES: usize = Stage::ALL.len();

impl Stage {
    /// All of them, in the order that a chunk takes.
    pub const ALL: [Self; 8] = [
        Self::Read,
        Self::CopyIn,
        Self::Compute,
        Self::CopyOut,
        Self::DeviceWait,
        Self::Hash,
        Self::WriteWait,
        Self::Write,
    ];

    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::CopyIn => "copy in",
            Self::Compute => "compute",
            Self::CopyOut => "copy out",
            Self::DeviceWait => "device wait",
            Self::Hash => "hash",
            Self::WriteWait => "write wait",
            Self::Write => "write",
        }
    }
}

/// Who did some work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum By {
    /// A worker's thread, by its number.
    Worker(usize),
    /// The device, which does one thing of a stage at a time.
    Device,
}

/// A single stretch of work, of a timeline that keeps them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// Who did it.
    pub by: By,
    /// When it began, from the timeline's beginning on.
    pub from: Duration,
    /// How long it took.
    pub busy: Duration,
    /// The bytes that it moved.
    pub bytes: u64,
}

/// Records of one merge. All threads write to it.
#[derive(Debug)]
pub struct Timeline {
    origin: Instant,
    workers: [WorkersTotal; STAGES],
    device: [Mutex<DeviceTotal>; STAGES],
    times_device: bool,
    kept: Option<KeptRecords>,
}

/// One stage of all workers, added up.
#[derive(Debug, Default)]
struct WorkersTotal {
    nanoseconds: AtomicU64,
    bytes: AtomicU64,
    count: AtomicU64,
}

/// One stage of the device. Locked three times a launch, which takes long beside it.
#[derive(Debug, Default)]
struct DeviceTotal {
    busy: Busy,
    bytes: u64,
    count: u64,
    /// Pieces of work whose time is not in `busy`.
    untimed: u64,
}

impl Timeline {
    /// A timeline of totals that begins now.
    pub fn new() -> Self {
        Self {
            origin: Instant::now(),
            workers: Default::default(),
            device: Default::default(),
            times_device: false,
            kept: None,
        }
    }

    /// The same, with the times of a device's stages.
    pub fn timing() -> Self {
        Self { times_device: true, ..Self::new() }
    }

    /// The same again, with single records too, 32 bytes each, up to 64 MiB of them.
    pub fn keeping() -> Self {
        Self { kept: Some(KeptRecords::default()), ..Self::timing() }
    }

    /// The same, beginning now.
    #[must_use]
    pub fn begun_now(self) -> Self {
        Self { origin: Instant::now(), ..self }
    }

    /// When it began.
    pub fn origin(&self) -> Instant {
        self.origin
    }

    /// Whether a device whose clock costs something is to be asked for the times of its stages.
    pub fn times_device(&self) -> bool {
        self.times_device
    }

    /// Notes that the device moved `bytes` in a stage whose time nobody measured.
    pub fn record_untimed(&self, stage: Stage, bytes: u64) {
        let mut total = lock(&self.device[stage as usize]);
        total.bytes += bytes;
        total.untimed += 1;
    }

    /// Notes that `by` was busy with `stage` and moved `bytes`.
    pub fn record(&self, stage: Stage, by: By, from: Instant, to: Instant, bytes: u64) {
        let from = self.nanoseconds_at(from);
        let to = self.nanoseconds_at(to).max(from);
        match by {
            By::Worker(_) => self.workers[stage as usize].add(to - from, bytes),
            By::Device => lock(&self.device[stage as usize]).add(from, to, bytes),
        }
        if let Some(kept) = &self.kept {
            kept.add(stage, by, from, to, bytes);
        }
    }

    /// Carries out `work` and records what it took.
    pub fn time<T>(&self, stage: Stage, by: By, bytes: u64, work: impl FnOnce() -> T) -> T {
        let from = Instant::now();
        let done = work();
        self.record(stage, by, from, Instant::now(), bytes);
        done
    }

    /// How many records there are of a stage, of workers and device together: of [`Stage::Compute`], the launches of
    /// a device, or the spans of the CPU.
    pub fn count(&self, stage: Stage) -> u64 {
        let workers = self.workers[stage as usize].count.load(Ordering::Relaxed);
        workers + lock(&self.device[stage as usize]).read().count
    }

    /// What share of `wall` each stage was busy, for so many worker threads.
    pub fn shares(&self, wall: Duration, threads: usize) -> Shares {
        let workers = |stage| (stage, Who::Workers, self.workers[stage as usize].read());
        let device = |stage| (stage, Who::Device, lock(&self.device[stage as usize]).read());
        Shares::new(wall, threads, Stage::ALL.into_iter().flat_map(|stage| [workers(stage), device(stage)]))
    }

    /// The single records of a stage, by their beginning; none where they are not kept.
    pub fn records(&self, stage: Stage) -> Vec<Record> {
        self.kept.as_ref().map_or_else(Vec::new, |kept| kept.records(stage))
    }

    /// How many single records were one too many to be kept: the latest ones.
    pub fn left_out(&self) -> u64 {
        self.kept.as_ref().map_or(0, KeptRecords::left_out)
    }

    /// Writes the single records in Chrome's trace format: JSON that Perfetto and `chrome://tracing` show. Times are
    /// microseconds from the timeline's beginning. `device` is the name to give the device's lanes.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write_trace(&self, device: &str, out: &mut dyn io::Write) -> io::Result<()> {
        trace::write(self.kept.as_ref(), device, out)
    }

    fn nanoseconds_at(&self, instant: Instant) -> u64 {
        instant.saturating_duration_since(self.origin).as_nanos() as u64
    }
}

impl Default for Timeline {
    fn default() -> Self {
        Self::new()
    }
}

/// A stage added up: time, if it was measured, bytes, and how many records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Total {
    busy: Option<Duration>,
    bytes: u64,
    count: u64,
}

impl WorkersTotal {
    fn add(&self, nanoseconds: u64, bytes: u64) {
        self.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    fn read(&self) -> Total {
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Total {
            busy: Some(Duration::from_nanos(value(&self.nanoseconds))),
            bytes: value(&self.bytes),
            count: value(&self.count),
        }
    }
}

impl DeviceTotal {
    fn add(&mut self, from: u64, to: u64, bytes: u64) {
        self.busy.add(from, to);
        self.bytes += bytes;
        self.count += 1;
    }

    fn read(&self) -> Total {
        let busy = (self.untimed == 0).then(|| Duration::from_nanos(self.busy.total()));
        Total { busy, bytes: self.bytes, count: self.count + self.untimed }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn records_are_kept_where_they_are_wanted_and_sorted() {
        for (timeline, kept) in [(Timeline::new(), 0), (Timeline::keeping(), 2)] {
            let at = |ms: u32| timeline.origin() + ms * MS;
            timeline.record(Stage::Compute, By::Device, at(5), at(7), 10);
            timeline.record(Stage::Compute, By::Device, at(1), at(2), 20);
            timeline.record(Stage::Read, By::Worker(3), at(0), at(1), 5);
            let records = timeline.records(Stage::Compute);
            assert_eq!(records.len(), kept);
            if let [first, second] = &records[..] {
                assert_eq!(*first, Record { by: By::Device, from: MS, busy: MS, bytes: 20 });
                assert_eq!((second.from, second.busy, second.bytes), (5 * MS, 2 * MS, 10));
                assert_eq!(timeline.records(Stage::Read)[0].by, By::Worker(3));
            }
            assert_eq!((timeline.count(Stage::Compute), timeline.count(Stage::Write)), (2, 0));
            assert_eq!(timeline.left_out(), 0);
        }
    }

    #[test]
    fn what_began_before_the_timeline_counts_from_its_beginning() {
        let timeline = Timeline::keeping().begun_now();
        let begin = timeline.origin();
        let before = begin.checked_sub(MS).unwrap_or(begin);
        timeline.record(Stage::CopyIn, By::Device, before, begin + MS, 1);
        // A clock that runs backwards.
        timeline.record(Stage::Read, By::Worker(0), begin + MS, begin, 1);
        assert_eq!(timeline.records(Stage::CopyIn)[0].busy, MS);
        assert_eq!(timeline.records(Stage::Read)[0].busy, Duration::ZERO);
    }

    #[test]
    fn all_threads_record_at_once() {
        let timeline = Timeline::keeping();
        std::thread::scope(|scope| {
            for worker in 0..8 {
                let timeline = &timeline;
                scope.spawn(move || {
                    for _ in 0..100 {
                        timeline.time(Stage::Hash, By::Worker(worker), 1, || ());
                        timeline.time(Stage::CopyOut, By::Device, 2, || ());
                    }
                });
            }
        });
        assert_eq!((timeline.count(Stage::Hash), timeline.records(Stage::Hash).len()), (800, 800));
        let shares = timeline.shares(Duration::from_secs(1), 8);
        let bytes: Vec<u64> = shares.stages.iter().map(|stage| stage.bytes).collect();
        assert_eq!(bytes, [1600, 800]);
    }
}

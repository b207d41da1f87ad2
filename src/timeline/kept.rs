//! Single records, where they are wanted. Each worker, and each of the device's stages, has a list of its own, so
//! hardly anyone waits for a lock.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::{By, Record, STAGES, Stage, lock};

/// Lists of workers. Where there are more workers, some share one.
const LISTS: usize = 64;

/// Records beyond this are left out: a list of 64 MiB makes a trace of 200 MB, and viewers hardly open larger ones.
const EVENTS_MAX: u64 = 1 << 21;

/// A record as it is kept. Times are nanoseconds from the timeline's beginning.
#[derive(Debug, Clone, Copy)]
pub(super) struct TraceEvent {
    pub from: u64,
    pub to: u64,
    pub bytes: u64,
    /// The device's stages by their number, then the workers.
    lane: u16,
    pub stage: Stage,
}

const _: () = assert!(size_of::<TraceEvent>() == 32);

impl TraceEvent {
    pub fn by(&self) -> By {
        self.lane().checked_sub(STAGES).map_or(By::Device, By::Worker)
    }

    /// A number that the events of one lane of a trace share.
    pub fn lane(&self) -> usize {
        usize::from(self.lane)
    }
}

/// All records of a timeline.
#[derive(Debug)]
pub(super) struct KeptRecords {
    lists: Vec<Mutex<Vec<TraceEvent>>>,
    /// How many came, kept or not.
    count: AtomicU64,
}

impl Default for KeptRecords {
    fn default() -> Self {
        Self { lists: (0..STAGES + LISTS).map(|_| Mutex::default()).collect(), count: AtomicU64::new(0) }
    }
}

impl KeptRecords {
    pub fn add(&self, stage: Stage, by: By, from: u64, to: u64, bytes: u64) {
        if self.count.fetch_add(1, Ordering::Relaxed) >= EVENTS_MAX {
            return;
        }
        let (list, lane) = match by {
            By::Device => (stage as usize, stage as usize),
            By::Worker(worker) => (STAGES + worker % LISTS, STAGES + worker),
        };
        let lane = u16::try_from(lane).unwrap_or(u16::MAX);
        lock(&self.lists[list]).push(TraceEvent { from, to, bytes, lane, stage });
    }

    pub fn left_out(&self) -> u64 {
        self.count.load(Ordering::Relaxed).saturating_sub(EVENTS_MAX)
    }

    pub fn records(&self, stage: Stage) -> Vec<Record> {
        let mut records = Vec::new();
        for list in &self.lists {
            let of_stage = |event: &&TraceEvent| event.stage == stage;
            records.extend(lock(list).iter().filter(of_stage).map(record));
        }
        records.sort_by_key(|record: &Record| record.from);
        // A device does one thing of a stage at a time, in the order in which it was asked: what comes next waits for that.
        let mut free = Duration::ZERO;
        for record in records.iter_mut().filter(|record| record.by == By::Device) {
            let to = record.from + record.busy;
            record.from = record.from.max(free);
            record.busy = to.saturating_sub(record.from);
            free = free.max(to);
        }
        records
    }

    /// Shows every record: lane by lane, those of a lane by their beginning.
    ///
    /// # Errors
    /// Those of `show`.
    pub fn each<E>(&self, mut show: impl FnMut(&TraceEvent) -> Result<(), E>) -> Result<(), E> {
        for list in &self.lists {
            let mut events = lock(list);
            // Sorted in place: a copy could take as much memory again.
            events.sort_unstable_by_key(|event| (event.lane, event.from, event.to));
            events.iter().try_for_each(&mut show)?;
        }
        Ok(())
    }
}

fn record(event: &TraceEvent) -> Record {
    Record {
        by: event.by(),
        from: Duration::from_nanos(event.from),
        busy: Duration::from_nanos(event.to - event.from),
        bytes: event.bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_come_one_after_the_other() {
        let kept = KeptRecords::default();
        for (by, from) in [
            (By::Worker(70), 5),
            (By::Worker(6), 9),
            (By::Worker(70), 1),
            (By::Device, 3),
            (By::Worker(6), 2),
        ] {
            kept.add(Stage::Compute, by, from, from + 1, 0);
        }
        let mut seen = Vec::new();
        kept.each(|event| {
            seen.push((event.by(), event.from));
            Ok::<_, ()>(())
        })
        .unwrap();
        let of = |worker, from| (By::Worker(worker), from);
        assert_eq!(seen, [(By::Device, 3), of(6, 2), of(6, 9), of(70, 1), of(70, 5)]);
    }

    #[test]
    fn a_device_does_one_thing_of_a_stage_at_a_time() {
        let kept = KeptRecords::default();
        for (by, from, to) in [
            (By::Device, 0, 40),
            (By::Device, 5, 30),
            (By::Device, 10, 70),
            (By::Device, 90, 95),
            (By::Worker(0), 0, 50),
            (By::Worker(1), 10, 60),
        ] {
            kept.add(Stage::CopyIn, by, from, to, 0);
        }
        let busy = |by| -> Vec<u128> {
            let records = kept.records(Stage::CopyIn).into_iter().filter(|record| record.by == by);
            records.map(|record| record.busy.as_nanos()).collect()
        };
        assert_eq!(busy(By::Device), [40, 0, 30, 5]);
        assert_eq!((busy(By::Worker(0)), busy(By::Worker(1))), (vec![50], vec![50]));
    }

    #[test]
    fn what_is_too_much_is_counted() {
        let kept = KeptRecords::default();
        kept.count.store(EVENTS_MAX - 1, Ordering::Relaxed);
        (0..3).for_each(|i| kept.add(Stage::Read, By::Worker(0), i, i + 1, 1));
        assert_eq!((kept.records(Stage::Read).len(), kept.left_out()), (1, 2));
    }
}

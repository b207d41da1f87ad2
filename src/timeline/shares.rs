//! What share of a merge's time each stage was busy, and so what holds the merge back.
//!
//! Workers' threads share out their time among their stages and waiting. A device works on its stages side by side, each
//! of which may be busy all the time. Where its stages were not timed, what workers waited for it shows whether it held them
//! back: who is slower always has work waiting, so those who are faster wait.

use std::cmp::Ordering;
use std::fmt;
use std::time::Duration;

use super::{Stage, Total};

/// Whose time a share is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// All worker threads together.
    Workers,
    /// The device.
    Device,
}

/// What one stage took.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StageShare {
    /// The stage.
    pub stage: Stage,
    /// Who carried it out.
    pub who: Who,
    /// Its times; none of a device that was not asked for them.
    pub times: Option<StageTimes>,
    /// The bytes that it moved.
    pub bytes: u64,
    /// How many records it came in.
    pub count: u64,
}

/// How long a stage took.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StageTimes {
    /// How long it was busy: all threads added up, or, of a device, what overlaps counted once.
    pub busy: Duration,
    /// The busy part of the time that there was, from 0 to 1: of all threads, or of the device.
    pub share: f64,
    /// Bytes by busy time, in 10⁹ bytes a second: the pace of one thread, or of the device, while at it.
    pub gb_per_s: f64,
}

impl StageShare {
    /// The busy part of the time that there was, from 0 to 1, where it was measured.
    fn share(&self) -> Option<f64> {
        self.times.map(|times| times.share)
    }
}

/// What all stages took.
#[derive(Debug, Clone, PartialEq)]
pub struct Shares {
    /// From the first to the last.
    pub wall: Duration,
    /// Worker threads.
    pub threads: usize,
    /// The stages that did something, in the order that a chunk takes.
    pub stages: Vec<StageShare>,
}

/// A merge is held back by what is busy for more than this share of the time. Where nothing is, it was too short, or its
/// stretches of work wait for each other.
const BUSY_LEAST: f64 = 0.5;

/// What holds a merge back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bottleneck {
    /// One stage: of the device, or where nothing but threads is at work, the one that takes most of their time. Waiting for
    /// the device stands for it where its stages were not timed.
    Stage(Stage),
    /// The threads beside a device; this stage takes most of their time.
    Threads(Stage),
    /// Nothing is busy most of the time.
    Nothing,
}

impl Bottleneck {
    /// The stage that holds a merge back, if one does.
    pub const fn stage(self) -> Option<Stage> {
        match self {
            Self::Stage(stage) | Self::Threads(stage) => Some(stage),
            Self::Nothing => None,
        }
    }
}

impl Shares {
    pub(super) fn new(
        wall: Duration,
        threads: usize,
        totals: impl Iterator<Item = (Stage, Who, Total)>,
    ) -> Self {
        let threads = threads.max(1);
        let share = |(stage, who, Total { busy, bytes, count })| {
            let there_was = match who {
                Who::Workers => wall.as_secs_f64() * threads as f64,
                Who::Device => wall.as_secs_f64(),
            };
            let times = busy.map(|busy: Duration| StageTimes {
                busy,
                share: ratio(busy.as_secs_f64(), there_was).min(1.0),
                gb_per_s: ratio(bytes as f64 / 1e9, busy.as_secs_f64()),
            });
            StageShare { stage, who, times, bytes, count }
        };
        let stages = totals.filter(|(_, _, total)| total.count > 0).map(share).collect();
        Self { wall, threads, stages }
    }

    /// The stages of the workers, or of the device.
    pub fn of(&self, who: Who) -> impl Iterator<Item = &StageShare> {
        self.stages.iter().filter(move |stage| stage.who == who)
    }

    /// The part of the threads' time in which they did nothing of all this, from 0 to 1.
    pub fn waiting(&self) -> f64 {
        (1.0 - self.of(Who::Workers).filter_map(StageShare::share).sum::<f64>()).max(0.0)
    }

    /// The stages of the device, or of the workers but for their waits for it, and what share of the time each takes.
    fn busy(&self, who: Who) -> impl Iterator<Item = (Stage, f64)> {
        let of = self.of(who).filter_map(|stage| Some((stage.stage, stage.share()?)));
        of.filter(|(stage, _)| *stage != Stage::DeviceWait)
    }

    /// The share of the busiest stage of the device; where its stages were not timed, that of waits for it.
    fn device(&self) -> Option<(Stage, f64)> {
        let waited = self.of(Who::Workers).find(|stage| stage.stage == Stage::DeviceWait);
        let waited = waited.and_then(|stage| Some((stage.stage, stage.share()?)));
        self.busy(Who::Device).max_by(by_share).or(waited)
    }

    /// What holds the merge back: the busiest stage of the device, or the threads where they are busier.
    pub fn bottleneck(&self) -> Bottleneck {
        let working = self.busy(Who::Workers).map(|(_, share)| share).sum::<f64>();
        let device = self.device();
        if device.map_or(0.0, |(_, share)| share).max(working) < BUSY_LEAST {
            return Bottleneck::Nothing;
        }
        match (device, self.busy(Who::Workers).max_by(by_share)) {
            (Some((stage, share)), _) if share >= working => Bottleneck::Stage(stage),
            (Some(_), Some((stage, _))) => Bottleneck::Threads(stage),
            (_, Some((stage, _))) => Bottleneck::Stage(stage),
            (_, None) => Bottleneck::Nothing,
        }
    }
}

fn by_share((_, one): &(Stage, f64), other: &(Stage, f64)) -> Ordering {
    one.total_cmp(&other.1)
}

/// 0 where nothing is divided.
fn ratio(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

impl fmt::Display for Bottleneck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stage(Stage::DeviceWait) => f.write_str("the device holds it back"),
            Self::Stage(stage) => write!(f, "{} holds it back", stage.name()),
            Self::Threads(stage) => write!(f, "the threads hold it back, with {} above all", stage.name()),
            Self::Nothing => f.write_str("nothing is busy most of the time"),
        }
    }
}

/// The shares in one line: `read 41 %, compute 39 %, write 15 %, waiting 5 %`; with a device, what is whose.
impl fmt::Display for Shares {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |name: &str, share: f64| format!("{name} {:.0} %", share * 100.0);
        let of = |who| self.of(who).filter_map(|stage| Some(percent(stage.stage.name(), stage.share()?)));
        let workers: Vec<String> = of(Who::Workers).chain([percent("waiting", self.waiting())]).collect();
        let device: Vec<String> = of(Who::Device).collect();
        if device.is_empty() {
            f.write_str(&workers.join(", "))
        } else {
            write!(f, "threads {}; device {}", workers.join(", "), device.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timeline::{By, Timeline};

    const SECOND: Duration = Duration::from_secs(1);

    /// Shares of ten seconds and two threads, from who did what for how many seconds, one after the other.
    fn shares(work: StageWork<'_>) -> Shares {
        let timeline = Timeline::new();
        let mut now = timeline.origin();
        for (stage, by, seconds) in work {
            timeline.record(*stage, *by, now, now + *seconds * SECOND, 10_000_000_000);
            now += *seconds * SECOND;
        }
        timeline.shares(10 * SECOND, 2)
    }

    const WORKER: By = By::Worker(0);

    type StageWork<'a> = &'a [(Stage, By, u32)];

    #[test]
    fn threads_share_out_their_time_and_stages_of_a_device_have_all_of_it() {
        let shares = shares(&[
            (Stage::Read, WORKER, 4),
            (Stage::Read, By::Worker(1), 4),
            (Stage::Compute, WORKER, 1),
            (Stage::CopyIn, By::Device, 5),
            (Stage::Compute, By::Device, 2),
        ]);
        let found: Vec<_> = shares.stages.iter().map(|s| (s.stage, s.who, s.share().unwrap())).collect();
        assert_eq!(
            found,
            [
                (Stage::Read, Who::Workers, 0.4),
                (Stage::CopyIn, Who::Device, 0.5),
                (Stage::Compute, Who::Workers, 0.05),
                (Stage::Compute, Who::Device, 0.2),
            ]
        );
        let read = shares.stages[0];
        assert_eq!((read.bytes, read.count), (20_000_000_000, 2));
        assert_eq!(read.times, Some(StageTimes { busy: 8 * SECOND, share: 0.4, gb_per_s: 2.5 }));
        assert!((shares.waiting() - 0.55).abs() < 1e-12);
        assert_eq!(
            shares.to_string(),
            "threads read 40 %, compute 5 %, waiting 55 %; device copy in 50 %, compute 20 %"
        );
    }

    #[test]
    fn what_is_busiest_holds_back() {
        let cases: [(StageWork<'_>, Bottleneck, &str); 8] = [
            (&[], Bottleneck::Nothing, "nothing is busy most of the time"),
            (
                &[(Stage::Read, WORKER, 9), (Stage::Compute, By::Worker(1), 10)],
                Bottleneck::Stage(Stage::Compute),
                "compute holds it back",
            ),
            (
                &[(Stage::Read, WORKER, 9), (Stage::CopyIn, By::Device, 8), (Stage::Compute, By::Device, 1)],
                Bottleneck::Stage(Stage::CopyIn),
                "copy in holds it back",
            ),
            (
                &[(Stage::Read, WORKER, 9), (Stage::Write, WORKER, 8), (Stage::CopyIn, By::Device, 8)],
                Bottleneck::Threads(Stage::Read),
                "the threads hold it back, with read above all",
            ),
            (
                &[(Stage::Read, WORKER, 4), (Stage::CopyIn, By::Device, 4)],
                Bottleneck::Nothing,
                "nothing is busy most of the time",
            ),
            (
                &[(Stage::CopyOut, By::Device, 10)],
                Bottleneck::Stage(Stage::CopyOut),
                "copy out holds it back",
            ),
            // Waits are no work, and say less than the device's own times.
            (
                &[(Stage::DeviceWait, WORKER, 19), (Stage::Read, WORKER, 1), (Stage::CopyIn, By::Device, 9)],
                Bottleneck::Stage(Stage::CopyIn),
                "copy in holds it back",
            ),
            (
                &[(Stage::DeviceWait, WORKER, 7), (Stage::Read, WORKER, 10), (Stage::Hash, WORKER, 3)],
                Bottleneck::Threads(Stage::Read),
                "the threads hold it back, with read above all",
            ),
        ];
        for (work, expected, words) in cases {
            let found = shares(work).bottleneck();
            assert_eq!((found, found.to_string().as_str()), (expected, words), "{work:?}");
        }
    }

    #[test]
    fn a_device_that_is_not_timed_is_known_by_who_waits_for_it() {
        for (waited, working, held_back) in [
            (12, 4, "the device holds it back"),
            (5, 12, "the threads hold it back, with read above all"),
            (5, 5, "nothing is busy most of the time"),
        ] {
            let timeline = Timeline::new();
            let begin = timeline.origin();
            timeline.record(Stage::Read, WORKER, begin, begin + working * SECOND, 3);
            timeline.record(Stage::DeviceWait, WORKER, begin, begin + waited * SECOND, 0);
            timeline.record_untimed(Stage::CopyIn, 40);
            timeline.record_untimed(Stage::CopyIn, 2);
            let shares = timeline.shares(10 * SECOND, 2);
            let copied = shares.of(Who::Device).next().unwrap();
            assert_eq!(
                (copied.stage, copied.times, copied.bytes, copied.count),
                (Stage::CopyIn, None, 42, 2)
            );
            assert_eq!(shares.bottleneck().to_string(), held_back);
            let shown = shares.to_string();
            assert!(shown.contains("device wait ") && !shown.contains("copy in"), "{shown}");
        }
    }

    #[test]
    fn no_time_has_no_shares() {
        let timeline = Timeline::new();
        timeline.record(Stage::Read, WORKER, timeline.origin(), timeline.origin() + SECOND, 1);
        let shares = timeline.shares(Duration::ZERO, 0);
        assert_eq!(
            (shares.stages[0].share(), shares.threads, shares.bottleneck()),
            (Some(0.0), 1, Bottleneck::Nothing)
        );
    }
}

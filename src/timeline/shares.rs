//! What share of a merge's time each stage was busy, and so what holds the merge back.
//!
//! Workers' threads share out their time among their stages and waiting. A device works on its stages side by side, each
//! of which may be busy all the time.

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
    /// How long it was busy: all threads added up, or, of a device, what overlaps counted once.
    pub busy: Duration,
    /// The busy part of the time that there was, from 0 to 1: of all threads, or of the device.
    pub share: f64,
    /// The bytes that it moved.
    pub bytes: u64,
    /// Bytes by busy time, in 10⁹ bytes a second: the pace of one thread, or of the device, while at it.
    pub gb_per_s: f64,
    /// How many records it came in.
    pub count: u64,
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
    /// One stage: of the device, or where nothing but threads is at work, the one that takes most of their time.
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
            let share = ratio(busy.as_secs_f64(), there_was).min(1.0);
            let gb_per_s = ratio(bytes as f64 / 1e9, busy.as_secs_f64());
            StageShare { stage, who, busy, share, bytes, gb_per_s, count }
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
        (1.0 - self.working()).max(0.0)
    }

    fn working(&self) -> f64 {
        self.of(Who::Workers).map(|stage| stage.share).sum()
    }

    fn busiest(&self, who: Who) -> Option<&StageShare> {
        self.of(who).max_by(|a, b| a.share.total_cmp(&b.share))
    }

    /// What holds the merge back: the busiest stage of the device, or the threads where they are busier.
    pub fn bottleneck(&self) -> Bottleneck {
        let device = self.busiest(Who::Device);
        let device_share = device.map_or(0.0, |stage| stage.share);
        if device_share.max(self.working()) < BUSY_LEAST {
            return Bottleneck::Nothing;
        }
        match (device, self.busiest(Who::Workers)) {
            (Some(stage), _) if stage.share >= self.working() => Bottleneck::Stage(stage.stage),
            (Some(_), Some(stage)) => Bottleneck::Threads(stage.stage),
            (_, Some(stage)) => Bottleneck::Stage(stage.stage),
            (_, None) => Bottleneck::Nothing,
        }
    }
}

/// 0 where nothing is divided.
fn ratio(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

impl fmt::Display for Bottleneck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
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
        let of = |who| self.of(who).map(|stage| percent(stage.stage.name(), stage.share));
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
        let found: Vec<_> = shares.stages.iter().map(|s| (s.stage, s.who, s.share)).collect();
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
        assert_eq!((read.busy, read.bytes, read.gb_per_s, read.count), (8 * SECOND, 20_000_000_000, 2.5, 2));
        assert!((shares.waiting() - 0.55).abs() < 1e-12);
        assert_eq!(
            shares.to_string(),
            "threads read 40 %, compute 5 %, waiting 55 %; device copy in 50 %, compute 20 %"
        );
    }

    #[test]
    fn what_is_busiest_holds_back() {
        let cases: [(StageWork<'_>, Bottleneck, &str); 6] = [
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
        ];
        for (work, expected, words) in cases {
            let found = shares(work).bottleneck();
            assert_eq!((found, found.to_string().as_str()), (expected, words), "{work:?}");
        }
    }

    #[test]
    fn no_time_has_no_shares() {
        let timeline = Timeline::new();
        timeline.record(Stage::Read, WORKER, timeline.origin(), timeline.origin() + SECOND, 1);
        let shares = timeline.shares(Duration::ZERO, 0);
        assert_eq!(
            (shares.stages[0].share, shares.threads, shares.bottleneck()),
            (0.0, 1, Bottleneck::Nothing)
        );
    }
}

//! One merge of a bench, in a process of its own, and what it says of itself.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::place::{OUT, WORK};
use crate::error::Result;
use crate::machine::kilobytes;
use crate::report::{Report, stages_json};
use crate::stream::Watch;
use crate::timeline::{By, Record, Stage, Timeline};
use crate::{Options, Prepared, merge_recording};

/// In that one, the config,
pub(super) const CONFIG: &str = "config.yml";

/// How many parts of the time a strip has.
const PARTS: usize = 200;

/// What a merge says of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Round {
    /// The device that computed.
    pub device: String,
    /// Worker threads.
    pub threads: usize,
    /// Bytes of the inputs' tensors that the merge needs.
    pub input_bytes: u64,
    /// Bytes of the output's safetensors files.
    pub output_bytes: u64,
    /// Elements of the output.
    pub parameters: u64,
    /// From the first read to the last write.
    pub streaming_seconds: f64,
    /// After that, until all is stored and in its place.
    pub finishing_seconds: f64,
    /// Processor time of all threads up to here, where the system reports it.
    pub cpu_seconds: Option<f64>,
    /// The most memory that this process had at once, where the system reports it.
    pub peak_bytes: Option<u64>,
    /// What the stages took, as `merge --json` has it.
    pub stages: Value,
    /// The part of the threads' time in which they did nothing.
    pub waiting: f64,
    /// The stage that held the merge back, if one did.
    pub bottleneck: Option<String>,
    /// The same in words.
    pub held_back: String,
    /// What happened when.
    pub strip: Option<Strip>,
}

/// How busy the stages were in each of equal parts of the time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Strip {
    /// The length of a part.
    pub part_seconds: f64,
    /// The stages that did something, in the order that a chunk takes.
    pub rows: Vec<StripRow>,
}

/// A stage of a strip.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StripRow {
    /// Its name.
    pub stage: String,
    /// `threads` or `device`.
    pub by: String,
    /// The busy share of each part, from 0 to 1: of all threads, or of the device.
    pub shares: Vec<f64>,
}

/// Where a merge of a bench finds its config and makes its output, seen from the set's folder.
pub fn places() -> (PathBuf, PathBuf) {
    let work = Path::new(WORK);
    (work.join(CONFIG), work.join(OUT))
}

/// Merges once and reports; with `records`, also what happened when, which takes memory.
///
/// # Errors
/// Those of a merge.
pub fn round(prepared: &Prepared, options: &Options, watch: &dyn Watch, records: bool) -> Result<Round> {
    let timeline = if records { Timeline::keeping() } else { Timeline::timing() };
    let report = merge_recording(prepared, options, watch, timeline)?;
    let (plan, shares) = (&prepared.plan, &report.shares);
    Ok(Round {
        device: report.device.clone(),
        threads: shares.threads,
        input_bytes: plan.read_bytes(&prepared.sources).0,
        output_bytes: plan.layout.file_bytes,
        parameters: plan.tensors.iter().map(|tensor| tensor.elements).sum(),
        streaming_seconds: shares.wall.as_secs_f64(),
        finishing_seconds: report.finishing.as_secs_f64(),
        cpu_seconds: cpu_seconds(),
        peak_bytes: peak_bytes(),
        stages: stages_json(shares),
        waiting: shares.waiting(),
        bottleneck: shares.bottleneck().stage().map(|stage| stage.name().into()),
        held_back: shares.bottleneck().to_string(),
        strip: records.then(|| Strip::new(&report)),
    })
}

/// Processor time of this process so far.
fn cpu_seconds() -> Option<f64> {
    #[cfg(unix)]
    {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        Some(time.tv_sec as f64 + time.tv_nsec as f64 / 1e9)
    }
    #[cfg(not(unix))]
    None
}

/// Linux counts a process's largest resident set from its start, which `ru_maxrss` does not quite: that begins with what the
/// parent had.
fn peak_bytes() -> Option<u64> {
    kilobytes(&std::fs::read_to_string("/proc/self/status").ok()?, "VmHWM:")
}

impl Strip {
    fn new(report: &Report) -> Self {
        let (wall, threads) = (report.shares.wall, report.shares.threads);
        let of_stage = |stage: Stage| {
            let records = report.timeline.records(stage);
            let row = |by: &str, device: bool, lanes: usize| {
                let of = records.iter().filter(|record| (record.by == By::Device) == device);
                let row = || StripRow {
                    stage: stage.name().into(),
                    by: by.into(),
                    shares: parts(of.clone(), wall, lanes),
                };
                of.clone().next().is_some().then(row)
            };
            [row("threads", false, threads), row("device", true, 1)].into_iter().flatten()
        };
        let rows = Stage::ALL.into_iter().flat_map(of_stage).collect();
        Self { part_seconds: wall.as_secs_f64() / PARTS as f64, rows }
    }
}

/// The share of `lanes` that records fill in each part of `wall`.
fn parts<'a>(records: impl Iterator<Item = &'a Record>, wall: Duration, lanes: usize) -> Vec<f64> {
    let part = (wall.as_secs_f64() / PARTS as f64).max(1e-9);
    let mut busy = vec![0.0; PARTS];
    for record in records {
        let (from, to) = (record.from.as_secs_f64() / part, (record.from + record.busy).as_secs_f64() / part);
        let last = (to as usize).min(PARTS - 1);
        for (at, busy) in busy.iter_mut().enumerate().take(last + 1).skip(from as usize) {
            *busy += (to.min(at as f64 + 1.0) - from.max(at as f64)).max(0.0);
        }
    }
    // Four digits are what a picture shows; stretches of a device may overlap.
    let rounded = |busy: f64| (busy / lanes.max(1) as f64 * 1e4).round().min(1e4) / 1e4;
    busy.into_iter().map(rounded).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_add_up_to_what_was_recorded() {
        let wall = Duration::from_millis(PARTS as u64);
        let record = |from: u64, busy: u64| Record {
            by: By::Worker(0),
            from: Duration::from_micros(from),
            busy: Duration::from_micros(busy),
            bytes: 0,
        };
        let records = [record(500, 2000), record(198_000, 9000)];
        let shares = parts(records.iter(), wall, 2);
        assert_eq!(shares[..4], [0.25, 0.5, 0.25, 0.0]);
        assert_eq!(shares[196..], [0.0, 0.0, 0.5, 0.5]);
        assert!((peak_bytes().unwrap_or(1 << 20), cpu_seconds().unwrap_or(1.0)) > (1 << 16, 0.0));
    }
}

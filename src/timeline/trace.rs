//! Single records in Chrome's trace format, as Perfetto and `chrome://tracing` read it: a lane for every worker, and one
//! for each of the device's stages.
//!
//! ```json
//! {"traceEvents":[
//! {"ph":"M","pid":1,"tid":17,"name":"thread_name","args":{"name":"worker 0"}},
//! {"ph":"X","pid":1,"tid":17,"name":"read","ts":12.345,"dur":67.890,"args":{"bytes":262144}}
//! ]}
//! ```
//!
//! The format: "Trace Event Format", Google, <https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU>.

use std::io::{Result, Write};

use serde_json::Value;

use super::By;
use super::kept::{KeptRecords, TraceEvent};

/// Processes are how viewers group lanes.
const WORKERS: usize = 1;
const DEVICE: usize = 2;

/// Threads are numbered from here on: one with its process's number would be taken for the main thread.
const THREADS_FROM: usize = 10;

/// Writes the trace.
///
/// # Errors
/// Those of `out`.
pub(super) fn write(kept: Option<&KeptRecords>, device: &str, out: &mut dyn Write) -> Result<()> {
    let left_out = kept.map_or(0, KeptRecords::left_out);
    let program = concat!("mergeforge ", env!("CARGO_PKG_VERSION"));
    let device = Value::from(device);
    write!(out, "{{\"displayTimeUnit\":\"ms\",\"otherData\":{{\"program\":\"{program}\",")?;
    writeln!(out, "\"device\":{device},\"left_out\":{left_out}}},\"traceEvents\":[")?;
    // Every event after the first begins with the comma between them.
    write!(out, "{}", named("process_name", WORKERS, None, &Value::from("workers")))?;
    write!(out, ",\n{}", named("process_name", DEVICE, None, &device))?;
    let mut lane = TraceLane::default();
    kept.map_or(Ok(()), |kept| kept.each(|event| lane.write(event, out)))?;
    out.write_all(b"\n]}\n")
}

/// The lane that is being written.
#[derive(Default)]
struct TraceLane {
    thread: usize,
    /// Where its last event ended, in nanoseconds.
    end: u64,
}

impl TraceLane {
    fn write(&mut self, event: &TraceEvent, out: &mut dyn Write) -> Result<()> {
        let process = process(event);
        let thread = THREADS_FROM + event.lane();
        if self.thread != thread {
            *self = Self { thread, end: 0 };
            write!(
                out,
                ",\n{}",
                named("thread_name", process, Some(thread), &Value::from(lane_name(event)))
            )?;
        }
        // Events of one lane may not overlap, and a device's clock is coarser than its events are close.
        let from = event.from.max(self.end);
        let to = event.to.max(from);
        self.end = to;
        let (name, bytes) = (event.stage.name(), event.bytes);
        let (ts, dur) = (microseconds(from), microseconds(to - from));
        write!(
            out,
            ",\n{{\"ph\":\"X\",\"pid\":{process},\"tid\":{thread},\"name\":\"{name}\",\"ts\":{ts},\"dur\":{dur},\
             \"args\":{{\"bytes\":{bytes}}}}}"
        )
    }
}

fn process(event: &TraceEvent) -> usize {
    match event.by() {
        By::Worker(_) => WORKERS,
        By::Device => DEVICE,
    }
}

fn lane_name(event: &TraceEvent) -> String {
    match event.by() {
        By::Worker(worker) => format!("worker {worker}"),
        By::Device => event.stage.name().into(),
    }
}

/// An event that names a process or a thread.
fn named(what: &str, process: usize, thread: Option<usize>, name: &Value) -> String {
    let thread = thread.unwrap_or(0);
    format!(
        "{{\"ph\":\"M\",\"pid\":{process},\"tid\":{thread},\"name\":\"{what}\",\"args\":{{\"name\":{name}}}}}"
    )
}

fn microseconds(nanoseconds: u64) -> String {
    format!("{}.{:03}", nanoseconds / 1000, nanoseconds % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timeline::{Stage, Timeline};
    use serde_json::json;
    use std::time::Duration;

    fn written(timeline: &Timeline) -> Value {
        let mut text = Vec::new();
        timeline.write_trace("a \"device\"\n", &mut text).unwrap();
        serde_json::from_slice(&text).unwrap()
    }

    #[test]
    fn lanes_are_named_and_events_have_times_and_bytes() {
        let timeline = Timeline::keeping();
        let at = |nanoseconds| timeline.origin() + Duration::from_nanos(nanoseconds);
        timeline.record(Stage::Read, By::Worker(1), at(1_500), at(4_001_507), 42);
        timeline.record(Stage::CopyIn, By::Device, at(5_000), at(7_000), 7);
        let trace = written(&timeline);
        assert_eq!(trace["otherData"]["device"], "a \"device\"\n");
        let meta = |what: &str, pid: usize, tid: usize, name: &str| json!({ "ph": "M", "pid": pid, "tid": tid, "name": what, "args": { "name": name } });
        let expected = json!([
            meta("process_name", 1, 0, "workers"),
            meta("process_name", 2, 0, "a \"device\"\n"),
            meta("thread_name", 2, 11, "copy in"),
            { "ph": "X", "pid": 2, "tid": 11, "name": "copy in", "ts": 5.0, "dur": 2.0, "args": { "bytes": 7 } },
            meta("thread_name", 1, 19, "worker 1"),
            { "ph": "X", "pid": 1, "tid": 19, "name": "read", "ts": 1.5, "dur": 4000.007, "args": { "bytes": 42 } },
        ]);
        assert_eq!(trace["traceEvents"], expected);
    }

    #[test]
    fn events_of_a_lane_do_not_overlap() {
        let timeline = Timeline::keeping();
        let at = |microseconds| timeline.origin() + Duration::from_micros(microseconds);
        for (from, to) in [(4, 6), (0, 5), (1, 2), (9, 10)] {
            timeline.record(Stage::Compute, By::Device, at(from), at(to), 0);
        }
        let trace = written(&timeline);
        let events = trace["traceEvents"].as_array().unwrap();
        let times: Vec<_> =
            events.iter().skip(3).map(|e| (e["ts"].as_f64().unwrap(), e["dur"].as_f64().unwrap())).collect();
        assert_eq!(times, [(0.0, 5.0), (5.0, 0.0), (5.0, 1.0), (9.0, 1.0)]);
    }

    #[test]
    fn a_trace_without_events_is_json_too() {
        for timeline in [Timeline::new(), Timeline::keeping()] {
            assert_eq!(written(&timeline)["traceEvents"].as_array().unwrap().len(), 2);
        }
    }
}

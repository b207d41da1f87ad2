//! What reading texts with a merge's result on the processor takes, as a plan states it: `eval` of it, predictions, and a sweep over
//! open values. (A GPU has states in its own memory.)

use serde_json::{Value as Json, json};

use super::eval::{memory, usual_window};
use super::predict::TOP;
use super::progress::Progress;
use super::sweep::{MERGE_MEMORY, TOP as TOP_OF_SWEEP};
use super::{CommonArgs, cores};
use crate::Prepared;
use crate::backend::devices::processor;
use crate::config::{Config, Knob, Space, Values};
use crate::decoder::{Decoder, Processor, Sums};
use crate::error::{Kind, Result};
use crate::eval::{Plan, Window};
use crate::predict::{Blend, kept_bytes};
use crate::stream::Budget;
use crate::sweep::{Candidate, Engine, forward};
use crate::text::bytes;

/// What it takes. All of it keeps to `--host-memory` of the command that reads.
pub(super) struct Reading {
    /// The tokens of a window, where nothing else is asked for.
    window: usize,
    /// The least memory of `eval`: one window.
    eval_bytes: u64,
    predict: Option<Predict>,
    sweep: Option<Sweep>,
    memory_bytes: u64,
}

/// A sweep over the values that are open.
enum Sweep {
    /// On texts: the least memory, of one window and one candidate.
    Bytes(u64),
    /// By a program only: why candidates cannot read texts here.
    ByCommand(String),
}

/// A merge that can be predicted.
struct Predict {
    parents: usize,
    /// What is kept of each token that counts.
    token_bytes: u64,
}

impl Reading {
    /// Nothing, if the result has no forward pass here.
    ///
    /// # Errors
    /// Those of a sweep's first candidate that a sweep by a program would meet as well.
    pub(super) fn of(
        prepared: &Prepared,
        space: Option<&Space>,
        common: &CommonArgs,
    ) -> Result<Option<Self>> {
        let Ok((decoder, _)) = forward(prepared) else { return Ok(None) };
        let window = usual_window(&decoder);
        let threads = common.run.threads.unwrap_or_else(cores);
        let windows = [Window { tokens: vec![0; window], counts_from: 1 }];
        let plan = Plan::of(&decoder, &windows, &Processor::new(Sums::Fastest, threads), u64::MAX)?;
        let top = if space.is_some() { TOP_OF_SWEEP } else { TOP };
        let sweep = space.map(|space| Sweep::of(space, common, threads, &windows)).transpose()?;
        Ok(Some(Self {
            window,
            eval_bytes: plan.bytes,
            predict: Predict::of(prepared, &decoder, top),
            sweep,
            memory_bytes: memory(None),
        }))
    }

    /// In lines of a plan.
    pub(super) fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!(
            "eval     of the result on the CPU takes {} of memory for a window of {} tokens; for more at a time up to --host-memory",
            bytes(self.eval_bytes),
            self.window
        )];
        lines.extend(self.predict.as_ref().map(|Predict { parents, token_bytes }| {
            format!(
                "predict  {parents} models keep {} for each token that counts, and less where that is more than half of --host-memory",
                bytes(*token_bytes)
            )
        }));
        lines.extend(self.sweep.as_ref().map(|sweep| match sweep {
            Sweep::Bytes(least) => format!(
                "sweep    on the CPU takes {} of memory for one candidate and one window; for more at a time up to --host-memory",
                bytes(*least)
            ),
            Sweep::ByCommand(why) => format!("sweep    only with --objective-cmd: {why}"),
        }));
        lines
    }

    pub(super) fn json(&self) -> Json {
        let predict = self.predict.as_ref().map(
            |Predict { parents, token_bytes }| json!({ "parents": parents, "bytes_per_token": token_bytes }),
        );
        let (sweep_bytes, by_command) = match &self.sweep {
            None => (None, None),
            Some(Sweep::Bytes(least)) => (Some(least), None),
            Some(Sweep::ByCommand(why)) => (None, Some(why)),
        };
        json!({
            "window": self.window, "memory_bytes_most": self.memory_bytes,
            "eval_memory_bytes_least": self.eval_bytes, "predict": predict,
            "sweep_memory_bytes_least": sweep_bytes, "sweep_by_command_only": by_command,
        })
    }
}

impl Predict {
    /// Nothing, if the merge is no weighted sum.
    fn of(prepared: &Prepared, decoder: &Decoder, top: usize) -> Option<Self> {
        let Prepared { plan, sources, .. } = prepared;
        let parents = Blend::of(plan, sources).ok()?.models.len();
        Some(Self { parents, token_bytes: kept_bytes(parents, decoder.vocabulary, top) })
    }
}

impl Sweep {
    /// What the candidate in the middle of a space takes, or why it is none that reads texts.
    fn of(space: &Space, common: &CommonArgs, threads: usize, windows: &[Window]) -> Result<Self> {
        match sweep_bytes(space, common, threads, windows) {
            Ok(least) => Ok(Self::Bytes(least)),
            Err(why) if why.kind == Kind::Config => Ok(Self::ByCommand(why.message)),
            Err(why) => Err(why),
        }
    }
}

fn sweep_bytes(space: &Space, common: &CommonArgs, threads: usize, windows: &[Window]) -> Result<u64> {
    let config = Config::parse(&space.file, &space.fill(&space.middle()))?;
    let budget = Budget { host_bytes: MERGE_MEMORY, threads, device_bytes: 0, chunk_tiles: None };
    let reader = Box::new(Processor::new(Sums::Fastest, threads));
    let engine = Engine::new(processor(), budget, u64::MAX, reader);
    let candidate = Candidate::open(config, &common.choices(), &engine, &Progress::new(true)?)?;
    // The merge has a quarter of the memory, where that is less.
    let beside = engine.least_bytes(&candidate, windows)? - MERGE_MEMORY;
    Ok((beside + MERGE_MEMORY).min(4 * beside.div_ceil(3)))
}

/// What a config leaves open, in lines of a plan.
pub(super) fn open_lines(space: &Space) -> Vec<String> {
    let values = |knob: &Knob| match &knob.values {
        Values::Between(from, to) => format!("open     {}: from {from} to {to}", knob.name),
        Values::Among(of) => format!("open     {}: {}", knob.name, of.join(", ")),
    };
    let points = match space.points() {
        Some(1) => "1 point".into(),
        Some(points) => format!("{points} points"),
        None => "ranges have any number of points".into(),
    };
    let middle = space.words(&space.middle());
    let planned = format!("space    {points}; this is the plan of one in the middle: {middle}");
    space.knobs.iter().map(values).chain([planned]).collect()
}

/// The same as JSON; `points` is null where a range is open.
pub(super) fn open_json(space: &Space) -> Json {
    let middle = space.middle();
    let of = |(knob, planned): (&Knob, &f64)| {
        let mut json = json!({ "name": knob.name, "planned": knob.json(*planned) });
        match &knob.values {
            Values::Between(from, to) => json["range"] = json!([from, to]),
            Values::Among(of) => {
                json["choice"] = (0..of.len()).map(|place| knob.json(place as f64)).collect();
            }
        }
        json
    };
    let values: Vec<Json> = space.knobs.iter().zip(&middle).map(of).collect();
    json!({ "points": space.points(), "values": values })
}

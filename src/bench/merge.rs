//! Whole merges beside the floor of the machine, on synthetic checkpoints: what `mergeforge bench merge` measures.
//!
//! A round is a floor and a merge, which take turns in going first, so that both meet the same machine; medians of the
//! rounds count, after one that does not, and the fastest stands beside them. Before each run the memory that it will write into
//! is at hand: on a virtual machine whose host takes free memory back, whoever came first would wait for it. Each merge is a
//! process of its own: its peak memory and its time are those of a merge and not of the bench. On a disk the floor is measured
//! twice, and the one that ends when the output is stored is what a whole merge is held against; the other one is for the part
//! before that.

mod place;
mod round;

use std::ffi::OsString;
use std::fs;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::at_hand;
use super::floor::{Floor, copies};
use super::synth::{self, Spec};
use crate::error::{Error, Kind, Result};
use crate::method::{Base, METHODS, Method, Scope};
use crate::stream::Watch;
use place::in_memory;

pub(super) use place::HeldFolder;
pub use place::{choose, folder_name};
pub use round::{Round, Strip, StripRow, places, round};

/// A thread copies from and to at most so many bytes, and all of them together no more than `COPY_BYTES_ALL`.
const COPY_BYTES: u64 = 512 << 20;
const COPY_BYTES_ALL: u64 = 4 << 30;

/// What is merged, and how often.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The checkpoints.
    pub spec: Spec,
    /// Any. A copy, as passthrough makes, is what the floor is already.
    pub method: &'static Method,
    /// Fine-tunes that are merged.
    pub models: usize,
    /// What of each task vector is kept, by methods that leave something out.
    pub density: f64,
    /// The folder of these checkpoints: [`choose`] finds a good one.
    pub dir: PathBuf,
    /// Whether the inputs are taken out of the page cache before each run.
    pub cold: bool,
    /// Counted rounds.
    pub repeat: usize,
    /// Threads of the floor and of what makes the checkpoints.
    pub threads: usize,
    /// Whether one more merge is run to see what happens when.
    pub strip: bool,
}

/// A program with arguments that merges `config.yml` of the folder in which it is started into `out`, and prints a
/// [`Round`] as JSON; with `--records` among the arguments, one that has a strip.
#[derive(Debug, Clone)]
pub struct Child {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
}

/// What was measured.
#[derive(Debug)]
pub struct MergeTimes {
    /// What was asked for.
    pub setup: Setup,
    /// Whether inputs and output lie in memory.
    pub in_memory: bool,
    /// Bytes of checkpoints that had to be made first.
    pub made_bytes: u64,
    /// Bytes a second of plain copies in memory by all threads, each byte counted once as read and once as written.
    pub copy_rate: f64,
    /// The counted rounds.
    pub turns: Vec<Turn>,
    /// What happened when in one more merge.
    pub strip: Option<Strip>,
}

/// A floor and a merge.
#[derive(Debug)]
pub struct Turn {
    /// Seconds of the floor, until the last byte is written.
    pub floor: f64,
    /// On a disk: until it is stored.
    pub stored: Option<f64>,
    /// Seconds of the merge's process, from its start to its end.
    pub wall: f64,
    /// What it says of itself.
    pub round: Round,
}

impl Setup {
    /// The models that the method reads; 0 is the base.
    pub fn inputs(&self) -> Vec<usize> {
        (usize::from(!uses_base(self.method))..=self.models).collect()
    }

    /// Refuses what the method cannot do, before anything is made.
    ///
    /// # Errors
    /// Kind `Config`: a method takes so many models and no others; only a disk can be cold.
    pub fn check(&self) -> Result<()> {
        if self.method.reads_importance() {
            let refusal = format!("{} reads importance, and no files of it are made here", self.method.name);
            return Err(Error::config(refusal).hint("choose another --method"));
        }
        let tuned = tuned(self.method);
        if !tuned.contains(&self.models) {
            let takes = match (*tuned.start(), *tuned.end()) {
                (least, most) if least == most => format!("{least}"),
                (least, usize::MAX) => format!("{least} or more"),
                (least, most) => format!("{least} to {most}"),
            };
            return Err(Error::config(format!(
                "{} merges {takes} fine-tunes, not {}",
                self.method.name, self.models
            ))
            .hint("leave --models away, or choose another --method"));
        }
        if self.cold && in_memory(&self.dir) {
            let refusal = format!("--cold: {} lies in memory, where nothing is cold", self.dir.display());
            return Err(Error::config(refusal).hint("name a folder on a disk with --dir"));
        }
        Ok(())
    }

    /// The merge as a config. JSON is YAML, and needs no thought about what to quote.
    fn config(&self) -> String {
        let names: Vec<String> = self.inputs().iter().map(|&model| name(model)).collect();
        // slerp has no base beside the two models.
        let base = match self.method.base {
            Base::Required if !uses_base(self.method) => Some(name(1)),
            _ if uses_base(self.method) => Some(name(0)),
            _ => None,
        };
        let (mut own, mut shared) = (serde_json::Map::new(), serde_json::Map::new());
        for parameter in self.method.parameters {
            let value: Value = match parameter.name {
                "weight" => (1.0 / self.models as f64).into(),
                "density" if self.method.name != "task_arithmetic" => self.density.into(),
                "t" => if self.method.name == "nearswap" { 0.001 } else { 0.5 }.into(),
                "select_topk" => self.density.into(),
                _ => continue,
            };
            let of = if parameter.scope == Scope::Shared { &mut shared } else { &mut own };
            of.insert(parameter.name.into(), value);
        }
        let is_tuned = |name: &&String| !uses_base(self.method) || Some(*name) != base.as_ref();
        let model = |name: &String| {
            if own.is_empty() {
                json!({ "model": name })
            } else {
                json!({ "model": name, "parameters": own })
            }
        };
        let mut config = json!({
            "merge_method": self.method.name,
            "models": names.iter().filter(is_tuned).map(model).collect::<Vec<Value>>(),
            "dtype": self.spec.float.name(),
        });
        if let Some(base) = base {
            config["base_model"] = base.into();
        }
        if !shared.is_empty() {
            config["parameters"] = shared.into();
        }
        format!("{config:#}\n")
    }
}

/// Whether a method reads the base beside the fine-tunes. slerp's base is one of two models, which are fine-tunes here.
fn uses_base(method: &Method) -> bool {
    method.base != Base::Ignored && method.name != "slerp"
}

/// How many fine-tunes a method can merge.
fn tuned(method: &Method) -> RangeInclusive<usize> {
    let bases = usize::from(method.base == Base::Required && uses_base(method));
    let most = method.models.end();
    (method.models.start() - bases).max(1)..=if *most == usize::MAX { *most } else { most - bases }
}

/// The methods that can be measured: all but those that read files beside the models.
pub fn measured() -> impl Iterator<Item = &'static str> {
    METHODS.iter().filter(|method| !method.reads_importance()).map(|method| method.name)
}

/// How many fine-tunes a method merges if nothing is said: two, or as near to that as it can.
pub fn usual_models(method: &Method) -> usize {
    let tuned = tuned(method);
    2.clamp(*tuned.start(), *tuned.end())
}

/// A model as the config names it: its folder, seen from the folder of the set.
fn name(model: usize) -> String {
    let folder = synth::folder(Path::new(""), model);
    folder.display().to_string()
}

/// Makes the checkpoints that are not there, and measures.
///
/// # Errors
/// Kind `Config`: too little room, or what the method cannot do. Those of making the checkpoints, and of a merge.
pub fn run(setup: &Setup, child: &Child, watch: &dyn Watch) -> Result<MergeTimes> {
    setup.check()?;
    let stop = || watch.stop();
    let held = HeldFolder::take(&setup.dir)?;
    place::check_room(&setup.spec, &setup.dir, &setup.inputs())?;
    let made_bytes = synth::write(&setup.spec, &setup.dir, &setup.inputs(), setup.threads, &stop)?;
    let config = held.work.join(round::CONFIG);
    fs::write(&config, setup.config()).map_err(|cause| Error::writing(&config, &cause))?;
    let folders: Vec<PathBuf> =
        setup.inputs().iter().map(|&model| synth::folder(&setup.dir, model)).collect();
    let floor = Floor::new(&folders, setup.spec.file_bytes())?;
    let on_disk = !in_memory(&setup.dir);
    let bench = Bench { setup, child, held: &held, floor, on_disk, watch };
    let mut turns = Vec::new();
    // The first round meets memory that the system has not handed out yet, and counts for nothing.
    for turn in 0..=setup.repeat {
        let measured = bench.turn(turn % 2 == 0)?;
        turns.extend((turn > 0).then_some(measured));
    }
    let strip = if setup.strip { bench.merge(true)?.1.strip } else { None };
    let copy_rate = bench.copy_rate();
    Ok(MergeTimes { setup: setup.clone(), in_memory: !on_disk, made_bytes, copy_rate, turns, strip })
}

struct Bench<'a> {
    setup: &'a Setup,
    child: &'a Child,
    held: &'a HeldFolder,
    floor: Floor,
    on_disk: bool,
    watch: &'a dyn Watch,
}

impl Bench<'_> {
    fn turn(&self, floor_first: bool) -> Result<Turn> {
        if floor_first {
            let (floor, stored) = self.floors(floor_first)?;
            let (wall, round) = self.merge(false)?;
            return Ok(Turn { floor, stored, wall, round });
        }
        let (wall, round) = self.merge(false)?;
        let (floor, stored) = self.floors(floor_first)?;
        Ok(Turn { floor, stored, wall, round })
    }

    /// Seconds until all is written and, on a disk, until it is stored; they take turns too.
    fn floors(&self, stored_first: bool) -> Result<(f64, Option<f64>)> {
        let run = |fsync| {
            self.settle()?;
            let output = self.held.work.join("floor");
            let took = self.floor.run(&output, fsync, self.setup.threads, &|| self.watch.stop())?;
            Ok::<f64, Error>(took.as_secs_f64())
        };
        if self.on_disk && stored_first {
            let stored = run(true)?;
            return Ok((run(false)?, Some(stored)));
        }
        Ok((run(false)?, self.on_disk.then(|| run(true)).transpose()?))
    }

    /// What earlier runs left to be written must not be waited for by the next one, nor the memory that it will write into.
    fn settle(&self) -> Result<()> {
        let touched = self.held.work.join("touched");
        at_hand(&touched, self.floor.written_bytes(), &|| self.watch.stop())?;
        if self.on_disk {
            #[cfg(unix)]
            rustix::fs::sync();
        }
        if self.setup.cold { self.floor.drop_cached() } else { Ok(()) }
    }

    /// Merges in a process of its own: seconds from its start to its end, and what it says. The output is removed.
    fn merge(&self, records: bool) -> Result<(f64, Round)> {
        self.settle()?;
        let mut command = Command::new(&self.child.program);
        command.args(&self.child.arguments).args(records.then_some("--records"));
        command.current_dir(&self.setup.dir).stdin(Stdio::null());
        let started = Instant::now();
        let ended = command.output().map_err(|cause| Error::reading(&self.child.program, &cause))?;
        let wall = started.elapsed().as_secs_f64();
        self.held.clear_output()?;
        if self.watch.stop() {
            return Err(Error::interrupted());
        }
        if !ended.status.success() {
            return Err(failure(ended.status.code(), &String::from_utf8_lossy(&ended.stderr)));
        }
        let round = serde_json::from_slice(&ended.stdout).map_err(|cause| {
            Error::config(format!("a merge of the bench did not say what it did: {cause}"))
        })?;
        Ok((wall, round))
    }

    /// Copies no more than the merge moves: of tiny shapes all figures are worth little.
    fn copy_rate(&self) -> f64 {
        let threads = self.setup.threads.max(1) as u64;
        let moved = self.floor.read_bytes() + self.floor.written_bytes();
        let bytes = COPY_BYTES.min(COPY_BYTES_ALL / 2 / threads).min(moved / threads).max(1);
        let seconds = copies(threads as usize, bytes as usize, self.setup.repeat);
        2.0 * (threads * bytes) as f64 / median(seconds.iter().map(Duration::as_secs_f64))
    }
}

/// A merge's own words, as our error.
fn failure(code: Option<i32>, said: &str) -> Error {
    let kind = match code {
        Some(3) => Kind::Input,
        Some(4) => Kind::Output,
        Some(5) => Kind::Device,
        Some(130) => Kind::Interrupted,
        _ => Kind::Config,
    };
    let said = said.trim();
    let said = if said.is_empty() { "the merge ended without a word" } else { said };
    let one = |said: &str| {
        let (message, hint) = said.split_once("\nhint: ").unwrap_or((said, ""));
        let error = Error { kind, ..Error::config(message) };
        if hint.is_empty() { error } else { error.hint(hint) }
    };
    Error::all(said.strip_prefix("error: ").unwrap_or(said).split("\nerror: ").map(one).collect())
}

impl MergeTimes {
    /// Bytes of all inputs and of the output, each counted once, whatever a method reads again.
    pub fn bytes(&self) -> u64 {
        let round = &self.typical().round;
        round.input_bytes + round.output_bytes
    }

    /// The round whose merge took the median time.
    pub fn typical(&self) -> &Turn {
        let mut turns: Vec<&Turn> = self.turns.iter().collect();
        turns.sort_by(|a, b| a.wall.total_cmp(&b.wall));
        turns[(turns.len() - 1) / 2]
    }

    /// The median of a figure.
    pub fn median(&self, figure: impl Fn(&Turn) -> f64) -> f64 {
        median(self.turns.iter().map(figure))
    }

    /// The smallest of a figure.
    pub fn fastest(&self, figure: impl Fn(&Turn) -> f64) -> f64 {
        self.turns.iter().map(figure).fold(f64::INFINITY, f64::min)
    }

    /// Seconds of the floor that ends when the output is stored; `None` in memory.
    pub fn stored(&self) -> Option<f64> {
        (!self.in_memory).then(|| self.median(|turn| turn.stored.unwrap_or(turn.floor)))
    }

    /// The floor by the merge, both from nothing to the stored output.
    pub fn share_of_floor(&self) -> f64 {
        self.median(|turn| turn.stored.unwrap_or(turn.floor) / turn.wall)
    }

    /// The floor by the merge, both until the last byte is written, and without the merge's start.
    pub fn streaming_share(&self) -> f64 {
        self.median(|turn| turn.floor / turn.round.streaming_seconds)
    }

    /// The most memory that a merge took.
    pub fn peak_bytes(&self) -> Option<u64> {
        self.turns.iter().filter_map(|turn| turn.round.peak_bytes).max()
    }

    /// Processor seconds of all threads.
    pub fn cpu_seconds(&self) -> Option<f64> {
        let all: Option<Vec<f64>> = self.turns.iter().map(|turn| turn.round.cpu_seconds).collect();
        all.map(|all| median(all.into_iter()))
    }
}

/// Of an even number, the mean of the two in the middle.
fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    f64::midpoint(values[(values.len() - 1) / 2], values[values.len() / 2])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::shapes::Shape;
    use crate::config::Config;
    use crate::dtype::Float;
    use crate::method;

    fn setup(method: &'static Method, models: usize) -> Setup {
        let shape = Shape::find("tiny", None).unwrap();
        let spec = Spec { shape, float: Float::BF16, seed: 1, shard_bytes: None };
        let dir = PathBuf::from("somewhere");
        Setup { spec, method, models, density: 0.5, dir, cold: false, repeat: 1, threads: 1, strip: false }
    }

    #[test]
    fn every_config_is_one_and_names_the_inputs() {
        for method in METHODS.iter().filter(|method| !method.reads_importance()) {
            let setup = setup(method, usual_models(method));
            setup.check().unwrap();
            let config = Config::parse("config.yml", &setup.config()).unwrap();
            assert!(config.warnings.is_empty(), "{}: {:?}", method.name, config.warnings);
            let mut named: Vec<String> =
                crate::plan::references(&config).iter().map(|model| model.value.to_string()).collect();
            named.sort();
            let inputs: Vec<String> = setup.inputs().into_iter().map(name).collect();
            assert_eq!(named, inputs, "{}", method.name);
        }
    }

    #[test]
    fn what_a_method_cannot_do_here_is_refused() {
        for (method, models) in
            [("slerp", 3), ("nearswap", 2), ("model_stock", 1), ("ties", 13), ("fisher", 2)]
        {
            let method = method::find(method).unwrap();
            assert_eq!(setup(method, models).check().unwrap_err().kind, Kind::Config, "{}", method.name);
        }
    }

    #[test]
    fn what_a_merge_says_of_its_failure_is_reported_with_its_kind() {
        let error = failure(Some(5), "error: no driver\nhint: --device cpu\n");
        assert_eq!(error, Error::device("no driver").hint("--device cpu"));
        assert!(failure(None, "").message.contains("without a word"));
    }

    #[test]
    fn medians_of_even_numbers_are_in_the_middle() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), 2.0);
        assert_eq!(median([4.0, 1.0].into_iter()), 2.5);
    }
}

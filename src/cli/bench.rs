//! `mergeforge bench`: its commands; of `bench merge` the flags, and what it prints; the floor of a merge.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value as Json, json};

use super::progress::Progress;
use super::values::check_page;
use super::{CommonArgs, RunArgs, STARTED, Started, cores, count, devices, prepared, show, writes};
use crate::bench::merge::{self, Child, MergeTimes, Setup};
use crate::bench::page;
use crate::bench::shapes::{SHAPES, Shape};
use crate::bench::synth::Spec;
use crate::cache;
use crate::dtype::Float;
use crate::error::{Error, Result};
use crate::method;
use crate::text::bytes;
use crate::{Options, Stopped, check_room, prepare_config, read_config};

#[derive(Debug, Subcommand)]
pub(super) enum BenchCommand {
    /// Time whole merges of synthetic checkpoints beside the floor of the machine; no model is needed
    Merge(Box<BenchMergeArgs>),
    /// Time what a merge takes at the least: all of its reads, copies and writes, and no kernels
    Floor {
        /// The config: a mergekit YAML
        config: PathBuf,
        /// The folder that a merge would make; nothing is left there
        out: PathBuf,
        #[command(flatten)]
        common: CommonArgs,
        /// Print as JSON
        #[arg(long)]
        json: bool,
    },
    /// Time writing to files: by one thread and by many, into one file and into several, in every way that the system has
    Writes(writes::BenchWritesArgs),
    /// Time every kernel against a copy and a plain stream of the same bytes, measured in the same run
    Kernels {
        /// The device
        #[arg(long, value_name = "DEVICE", default_value = "auto")]
        device: String,
        /// Elements of each tensor, in millions of 1,048,576
        #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=1024))]
        mebi_elements: u64,
        /// Times that each kernel is run; the median counts
        #[arg(long, value_name = "N", default_value_t = 9, value_parser = count)]
        repeat: usize,
        /// Print as JSON
        #[arg(long)]
        json: bool,
    },
}

/// `mergeforge bench`.
pub(super) fn run(command: BenchCommand) -> Result<()> {
    match command {
        BenchCommand::Merge(args) => merge(&args),
        BenchCommand::Writes(args) => writes::measure(&args),
        BenchCommand::Floor { config, out, common, json } => floor(&config, out, &common, json),
        BenchCommand::Kernels { device, mebi_elements, repeat, json } => {
            devices::bench(&device, mebi_elements << 20, repeat, json)
        }
    }
}

/// The folder that is read and written is chosen by `--dir`; `--seed` gives the checkpoints' values too.
#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub(super) struct BenchMergeArgs {
    /// The models' shape
    #[arg(long, value_name = "NAME", default_value = "tinyllama-1.1b", value_parser = PossibleValuesParser::new(SHAPES.map(|shape| shape.name)))]
    shape: String,
    /// Cut the shape down to so many layers
    #[arg(long, value_name = "N", value_parser = count)]
    layers: Option<usize>,
    /// The merge method
    #[arg(long, value_name = "NAME", default_value = "ties", value_parser = PossibleValuesParser::new(merge::measured()))]
    method: String,
    /// Fine-tunes that are merged, beside the base where the method has one [default: 2, or as many as the method takes]
    #[arg(long, value_name = "N", value_parser = models)]
    models: Option<usize>,
    /// What methods keep that leave something out
    #[arg(long, value_name = "SHARE", default_value_t = 0.5, value_parser = share)]
    density: f64,
    /// The type of all tensors; a config's names (bfloat16) do too
    #[arg(long, default_value = "bf16")]
    dtype: Type,
    /// Where checkpoints and output go [default: mergeforge-bench in memory (/dev/shm) where there is room, else in the
    /// folder of temporary files]; the checkpoints stay for the next time
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Take the inputs out of the page cache before each run; needs a disk
    #[arg(long)]
    cold: bool,
    /// Rounds that count, after one that does not
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = count)]
    repeat: usize,
    /// Write a page with all figures, a roofline and a timeline of the stages
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
    /// Print as JSON
    #[arg(long)]
    json: bool,
    /// Be one merge of a bench, for the process that measures it
    #[arg(long, hide = true)]
    round: bool,
    /// Keep single records in that merge
    #[arg(long, hide = true)]
    records: bool,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Type {
    #[value(alias = "bfloat16")]
    Bf16,
    #[value(alias = "float16")]
    F16,
    #[value(alias = "float32")]
    F32,
}

/// ties and dare vote with up to 12 models.
fn models(text: &str) -> std::result::Result<usize, String> {
    let count = text.parse().ok().filter(|count| (1..=12).contains(count));
    count.ok_or_else(|| "expected a whole number from 1 to 12".into())
}

fn share(text: &str) -> std::result::Result<f64, String> {
    let share = text.parse().ok().filter(|share| *share > 0.0 && *share <= 1.0);
    share.ok_or_else(|| "expected a number above 0, and 1 at most".into())
}

/// Measures and reports, or is one of the merges that are measured.
fn merge(args: &BenchMergeArgs) -> Result<()> {
    let progress = Progress::new(true)?;
    if args.round {
        return round(args, &progress);
    }
    // A device that is not there is reported before anything is made.
    let (device, passed_over) = super::choose(&args.run.device)?;
    if !args.json {
        RunArgs::report_choice(&device, passed_over);
    }
    args.report.as_deref().map_or(Ok(()), |file| check_page(file, "--report"))?;
    let setup = args.setup()?;
    setup.check()?;
    let missing = setup.spec.missing(&setup.dir, &setup.inputs()).len() as u64;
    if missing > 0 && !args.json {
        let size = bytes(missing * setup.spec.model_bytes());
        let many = if missing == 1 { "a checkpoint".into() } else { format!("{missing} checkpoints") };
        show::note(&format!("making {many}, {size}, in {}", setup.dir.display()));
    }
    let measured = merge::run(&setup, &child()?, &progress)?;
    if let Some(file) = &args.report {
        std::fs::write(file, page::html(&measured)).map_err(|cause| Error::writing(file, &cause))?;
    }
    if args.json {
        show::json(&measured_json(&measured));
    } else {
        table(&measured);
        args.report.iter().for_each(|file| show::note(&format!("page written to {}", file.display())));
    }
    Ok(())
}

impl BenchMergeArgs {
    fn setup(&self) -> Result<Setup> {
        let float = match self.dtype {
            Type::Bf16 => Float::BF16,
            Type::F16 => Float::F16,
            Type::F32 => Float::F32,
        };
        let shape = Shape::find(&self.shape, self.layers)?;
        let method = method::find(&self.method)?;
        let (seed, shard_bytes) = (self.run.random_seed, self.run.out_shard_size);
        let setup = Setup {
            spec: Spec { shape, float, seed, shard_bytes },
            method,
            models: self.models.unwrap_or_else(|| merge::usual_models(method)),
            density: self.density,
            dir: PathBuf::new(),
            cold: self.cold,
            repeat: self.repeat,
            threads: self.run.threads.unwrap_or_else(cores),
            strip: self.report.is_some(),
        };
        let dir = match &self.dir {
            Some(dir) => dir.join(merge::folder_name(&setup.spec)),
            None => merge::choose(&setup.spec, &setup.inputs(), self.cold),
        };
        Ok(Setup { dir, ..setup })
    }
}

/// This program with these arguments, as one merge.
fn child() -> Result<Child> {
    let lost = || Error::config("this program cannot find itself");
    let Started { program, arguments } = STARTED.get().ok_or_else(lost)?;
    let (program, before) = program.split_first().ok_or_else(lost)?;
    // Behind `bench merge`.
    let (command, rest) = arguments.split_at(2);
    let round = [OsString::from("--round")];
    Ok(Child { program: program.into(), arguments: [before, command, &round, rest].concat() })
}

/// One merge, in the folder where the process was started.
fn round(args: &BenchMergeArgs, progress: &Progress) -> Result<()> {
    let (config, out) = merge::places();
    let choices = args.run.choices();
    let (device, budget) = args.run.device(false, &|_| Ok(()))?;
    let prepared = prepare_config(read_config(&config)?, &choices)?;
    let options = Options {
        out,
        budget,
        device,
        copy_tokenizer: true,
        model_card: true,
        inputs_hashed: false,
        reads: args.run.reads(&prepared),
        cache: cache::folder(),
        // Thresholds of an earlier round would leave out half of the work.
        recall: false,
        stopped: Stopped::LeavesNothing,
    };
    let round = merge::round(&prepared, &options, progress, args.records)?;
    show::json(&serde_json::to_value(round).expect("numbers and text are JSON"));
    Ok(())
}

/// `mergeforge bench floor`.
fn floor(config: &Path, out: PathBuf, common: &CommonArgs, json: bool) -> Result<()> {
    let (device, budget) = common.run.device(true, &|_| Ok(()))?;
    let progress = Progress::new(true)?;
    let prepared = prepared(read_config(config)?, common)?;
    let reads = common.run.reads(&prepared);
    let options = Options {
        out,
        device,
        budget,
        copy_tokenizer: false,
        model_card: false,
        inputs_hashed: false,
        reads,
        cache: None,
        recall: false,
        stopped: Stopped::LeavesNothing,
    };
    check_room(&prepared, &options)?;
    common.run.hub.bring(&prepared, &progress)?;
    let (wall, shares) = crate::floor(&prepared, &options, &progress)?;
    let (read, written) = progress.moved_bytes();
    show::floor(&options.device, wall, &shares, (read, written), json);
    Ok(())
}

fn where_it_lies(measured: &MergeTimes) -> &'static str {
    match (measured.in_memory, measured.setup.cold) {
        (true, _) => "in memory",
        (false, false) => "on a disk, page cache warm",
        (false, true) => "on a disk, page cache cold",
    }
}

fn table(measured: &MergeTimes) {
    let (setup, round) = (&measured.setup, &measured.typical().round);
    show::line(&format!(
        "{} of {} models, {} ({} layers) in {}, on {} ({} threads); {}; medians of {}, and the fastest",
        setup.method.name,
        setup.models,
        setup.spec.shape.name,
        setup.spec.shape.layers,
        setup.spec.float.name(),
        round.device,
        round.threads,
        where_it_lies(measured),
        setup.repeat
    ));
    show::line(&format!("  {} in, {} out", bytes(round.input_bytes), bytes(round.output_bytes)));
    show::line(&format!(
        "  {:<32} {:>9} {:>9} {:>9} {:>15}",
        "", "seconds", "fastest", "GB/s", "share of floor"
    ));
    let gb = measured.bytes() as f64 / 1e9;
    let timed = |what: &str, figure: &dyn Fn(&merge::Turn) -> f64, share: Option<f64>| {
        let share = share.map_or(String::new(), |share| format!("{:.0} %", 100.0 * share));
        let (seconds, fastest) = (measured.median(figure), measured.fastest(figure));
        show::line(&format!("  {what:<32} {seconds:>9.3} {fastest:>9.3} {:>9.2} {share:>15}", gb / seconds));
    };
    show::line(&format!("  {:<32} {:>9} {:>9} {:>9.2}", "copy in memory", "", "", measured.copy_rate / 1e9));
    timed("floor", &|turn| turn.floor, None);
    if !measured.in_memory {
        timed("floor, stored", &|turn| turn.stored.unwrap_or(turn.floor), None);
    }
    timed("merge", &|turn| turn.wall, Some(measured.share_of_floor()));
    let streaming = |turn: &merge::Turn| turn.round.streaming_seconds;
    timed("  from first read to last write", &streaming, Some(measured.streaming_share()));
    let percent = |stage: &Json| {
        let by = if stage["by"] == "device" { "device " } else { "" };
        let share = stage["share"].as_f64().unwrap_or(0.0);
        format!("{by}{} {:.0} %", stage["stage"].as_str().unwrap_or_default(), 100.0 * share)
    };
    let mut stages: Vec<String> = round.stages.as_array().into_iter().flatten().map(percent).collect();
    stages.push(format!("waiting {:.0} %", 100.0 * round.waiting));
    show::line(&format!("  stages: {}; {}", stages.join(", "), round.held_back));
    let peak = measured.peak_bytes().map(|peak| format!("{} of memory at most", bytes(peak)));
    let cpu = measured.cpu_seconds().map(|cpu| format!("{cpu:.2} CPU seconds"));
    let process: Vec<String> = peak.into_iter().chain(cpu).collect();
    if !process.is_empty() {
        show::line(&format!("  {}", process.join(", ")));
    }
}

fn measured_json(measured: &MergeTimes) -> Json {
    let (setup, round) = (&measured.setup, &measured.typical().round);
    let gb = measured.bytes() as f64 / 1e9;
    let all = |figure: &dyn Fn(&merge::Turn) -> f64| measured.turns.iter().map(figure).collect::<Vec<f64>>();
    let floor = |figure: &dyn Fn(&merge::Turn) -> f64| {
        let median = measured.median(figure);
        json!({
            "seconds": median,
            "seconds_fastest": measured.fastest(figure),
            "seconds_all": all(figure),
            "gb_per_s": gb / median,
        })
    };
    let wall = measured.median(|turn| turn.wall);
    json!({
        "mergeforge": env!("CARGO_PKG_VERSION"),
        "shape": setup.spec.shape.name,
        "layers": setup.spec.shape.layers,
        "dtype": setup.spec.float.name(),
        "seed": setup.spec.seed,
        "method": setup.method.name,
        "models": setup.models,
        "density": setup.density,
        "device": round.device,
        "threads": round.threads,
        "floor_threads": setup.threads,
        "place": if measured.in_memory { "memory" } else { "disk" },
        "cold": setup.cold,
        "repeat": setup.repeat,
        "made_bytes": measured.made_bytes,
        "parameters": round.parameters,
        "input_bytes": round.input_bytes,
        "output_bytes": round.output_bytes,
        "seconds": wall,
        "seconds_fastest": measured.fastest(|turn| turn.wall),
        "seconds_all": all(&|turn| turn.wall),
        "gb_per_s": gb / wall,
        "streaming_seconds": measured.median(|turn| turn.round.streaming_seconds),
        "finishing_seconds": measured.median(|turn| turn.round.finishing_seconds),
        "floor": floor(&|turn| turn.floor),
        "floor_stored": (!measured.in_memory).then(|| floor(&|turn| turn.stored.unwrap_or(turn.floor))),
        "share_of_floor": measured.share_of_floor(),
        "streaming_share_of_floor": measured.streaming_share(),
        "copy_gb_per_s": measured.copy_rate / 1e9,
        "stages": round.stages,
        "waiting": round.waiting,
        "bottleneck": round.bottleneck,
        "peak_bytes": measured.peak_bytes(),
        "cpu_seconds": measured.cpu_seconds(),
        "timeline": measured.strip,
    })
}

//! The command line: flags, progress, reports and hints. The only place that prints.
//!
//! Data goes to standard output, talk to standard error, under `--json` as an object a line. Exit codes: 0 done, 1 the compared models
//! differ, 2 the command, the config or the plan is wrong, or a model is not there, 3 a file of an input is missing or damaged (or
//! `verify` found one of an output), 4 the
//! output cannot be written, 5 the device is missing or failed, 6 the Hub cannot be reached, 7 parts are missing, 130 interrupted.

mod analyze;
mod bench;
pub mod call;
mod convert;
mod devices;
mod diff;
mod eval;
mod extract;
mod files;
mod host;
mod hub;
mod info;
mod init;
mod kinds;
mod machine;
mod mergekit;
mod moe;
mod parts;
mod predict;
mod progress;
mod reading;
mod resources;
mod shell;
mod show;
mod signals;
mod staged;
mod sweep;
mod values;
mod verify;
mod warnings;
mod writes;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::OnceLock;
use std::time::Instant;

use clap::{Args, Parser, Subcommand, ValueEnum};

use self::values::{count, shard_size, size};
use crate::backend::device::Device;
use crate::backend::devices::{self as known_devices, Candidate};
use crate::cache;
use crate::check;
use crate::checkpoint::MANIFEST;
use crate::config::{Config, Space};
use crate::error::Result;
use crate::parts::Part;
use crate::plan::{Choices, PartlyHeldPolicy};
use crate::report::Report;
use crate::stream::Budget;
use crate::timeline::Timeline;
use crate::{
    AnyConfig, Options, Prepared, Stopped, Written, check_absent, check_room, hash_inputs, prepare_config,
    report, unhashed_bytes,
};
pub use host::Host;
use hub::HubArgs;
use mergekit::MergekitArgs;
use progress::Progress;
use reading::Reading;
use resources::{cores, default_host_bytes, limits_on};
use show::Moved;
use warnings::{Warnings, checked, checked_space};

/// Merge large model checkpoints: fast, exact, the same bytes everywhere.
#[derive(Debug, Parser)]
#[command(name = "mergeforge", version, about, max_term_width = 100, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 done; 1 `diff` found differences; 2 the command, the config or the plan is wrong, or a model is not there; 3 a file of an \
                          input, or of an output that `verify` reads, is missing or damaged; 4 the output cannot be written; 5 the device is missing or failed; 6 the Hub cannot be reached; 7 `finish` misses parts; 8 the system failed to read an input; 130 interrupted. \
                          After 2 and 3 the same command ends in the same way; after 4 to 8 and 130, or a signal, it may succeed when it is tried again. \
                          NO_COLOR is respected. MERGEFORGE_CACHE names the folder \
                          of what merges remember (by default mergeforge/ in ~/.cache; empty: nowhere).";

#[derive(Debug, Subcommand)]
enum Command {
    /// Merge models as a mergekit YAML says, into a new checkpoint folder
    #[command(aliases = ["mergekit-yaml", "mergekit-pytorch"])]
    Merge(MergeArgs),
    /// Carry out all merges of a config with several documents, as mergekit-multi does
    #[command(alias = "mergekit-multi")]
    Multi(staged::MultiArgs),
    /// Make a mixture of experts of dense models, as a mergekit-moe YAML says
    #[command(alias = "mergekit-moe")]
    Moe(moe::MoeArgs),
    /// Put the parts of an output together that merges with --part have made
    Finish(parts::FinishArgs),
    /// Copy a model with floats of another type, in other shards, as safetensors, or with its adapter added
    Convert(Box<convert::ConvertArgs>),
    /// Show what a merge would do, from the config and the checkpoints' headers alone
    Plan(PlanArgs),
    /// Show what models have: tensors, types, parameters, layers, tokenizer; from headers alone
    Info(info::InfoArgs),
    /// Compare two models tensor by tensor; the exit code is 0 where all are equal, and 1 where some differ
    Diff(diff::DiffArgs),
    /// Read a merged folder again, and compare it with its manifest: every file, every tensor; perhaps make tensors again
    Verify(verify::VerifyArgs),
    /// Measure, before a merge is made, how its models differ and what the method can do with that
    Analyze(Box<analyze::AnalyzeArgs>),
    /// Make a low-rank adapter, as PEFT reads it, of a fine-tuned model and its base
    #[command(visible_alias = "mergekit-extract-lora")]
    ExtractLora(Box<extract::ExtractArgs>),
    /// Measure how well models read texts: perplexity of texts, answers and abstracts
    Eval(Box<eval::EvalArgs>),
    /// Predict how well merges will read texts, without merging: from what their models make of the same texts
    Predict(Box<predict::PredictArgs>),
    /// Find the best coefficients of a config with ranges in it, by trying merges in memory
    Sweep(Box<sweep::SweepArgs>),
    /// List the merge methods, or explain one
    Methods {
        /// The method to explain
        name: Option<String>,
        /// Print as JSON
        #[arg(long)]
        json: bool,
    },
    /// Print a config for a method and models, with comments and a schema for editors
    Init(init::InitArgs),
    /// Print what a shell needs to complete commands
    Completions(shell::CompletionsArgs),
    /// Print the manual page, or write the pages of all commands into a folder
    Man(shell::ManArgs),
    /// Print the JSON Schema of configs, for editors
    Schema,
    /// List the devices that can compute, and what `--device auto` takes
    Devices {
        /// Print as JSON
        #[arg(long)]
        json: bool,
    },
    /// Verify every kernel on a device against its plain definition, bit for bit
    Check(devices::CheckArgs),
    /// Measure how fast this machine is
    #[command(subcommand)]
    Bench(bench::BenchCommand),
}

#[derive(Debug, Args)]
struct MergeArgs {
    /// The config: a mergekit YAML
    config: PathBuf,
    /// The folder to make; it must not exist, or be empty
    out: PathBuf,
    #[command(flatten)]
    options: MergeOptions,
}

#[derive(Debug, Args)]
struct MergeOptions {
    /// Of a config with several documents: keep the results of those with a name, each in a folder of its name in this one
    #[arg(long, short = 'I', value_name = "DIR")]
    intermediate_dir: Option<PathBuf>,
    #[command(flatten)]
    flags: MergeFlags,
}

/// What both ways to merge take.
#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
struct MergeFlags {
    #[command(flatten)]
    common: CommonArgs,
    /// Copy the tokenizer files of the base model (or of the first one)
    #[arg(long, overrides_with = "no_copy_tokenizer")]
    copy_tokenizer: bool,
    /// Leave out the tokenizer files, and what else goes beside the weights: generation and processor configs, templates,
    /// code, licences, the modules of sentence-transformers
    #[arg(long)]
    no_copy_tokenizer: bool,
    /// Write the model card README.md
    #[arg(long, overrides_with = "no_write_model_card")]
    write_model_card: bool,
    /// Leave the model card README.md out
    #[arg(long)]
    no_write_model_card: bool,
    /// Neither use nor keep thresholds that merges of the same models found
    #[arg(long)]
    no_cache: bool,
    /// Remove what a merge into the same folder that was stopped has left, in place of going on with it
    #[arg(long)]
    restart: bool,
    /// Make a part of the output's files, for `mergeforge finish`: part I, from 1, of N; `auto` takes it from Slurm, Kubernetes or ranks
    #[arg(long, value_name = "I/N", value_parser = parts::asked)]
    part: Option<parts::Asked>,
    /// Show no progress and no summary
    #[arg(long, short, overrides_with = "no_quiet")]
    quiet: bool,
    #[arg(long, hide = true)]
    no_quiet: bool,
    /// Print the manifest as JSON when done, and with it, as `run`, how the merge went; of a part, which it is, where it lies and its files
    #[arg(long)]
    json: bool,
    /// Read every input file whole before the merge, so that the manifest says its SHA-256
    #[arg(long, conflicts_with = "stream")]
    hash_inputs: bool,
    /// Write what each thread and the device did when, as a trace that Perfetto and Chrome show
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    #[command(flatten)]
    mergekit: MergekitArgs,
}

#[derive(Debug, Args)]
struct PlanArgs {
    /// The config: a mergekit YAML, or one of mergekit-moe
    config: PathBuf,
    #[command(flatten)]
    options: PlanOptions,
}

#[derive(Debug, Args)]
struct PlanOptions {
    /// The folder that the merge would make: checks that it is free and its disk large enough
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    #[command(flatten)]
    common: CommonArgs,
    #[command(flatten)]
    untrained: moe::Untrained,
    /// Show every tensor
    #[arg(long, short)]
    verbose: bool,
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

/// What all that carries out or foresees a merge of a user's takes.
#[derive(Debug, Args)]
struct CommonArgs {
    #[command(flatten)]
    fit: FitArgs,
    #[command(flatten)]
    run: RunArgs,
}

/// What is done about models that do not quite fit, and about warnings.
#[derive(Debug, Args)]
#[allow(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
struct FitArgs {
    /// Treat warnings as errors
    #[arg(long)]
    strict: bool,
    /// Merge models of different architectures too, where names and shapes of their tensors fit
    #[arg(long, overrides_with = "no_allow_crimes")]
    allow_crimes: bool,
    #[arg(long, hide = true)]
    no_allow_crimes: bool,
    /// Cut embeddings of different numbers of rows to the fewest, whatever their tokens are
    #[arg(long = "unsafe-truncate-embeddings", overrides_with = "keep_embeddings")]
    truncate_embeddings: bool,
    #[arg(long = "no-unsafe-truncate-embeddings", hide = true)]
    keep_embeddings: bool,
    /// Leave out tensors that only some of the models have
    #[arg(long, short = 'i', alias = "intersection", conflicts_with = "tensor_union")]
    tensor_intersection: bool,
    /// Merge tensors that only some of the models have from those alone
    #[arg(long, short = 'u', alias = "union")]
    tensor_union: bool,
}

/// How a merge is done, whatever is merged.
#[derive(Debug, Args)]
struct RunArgs {
    /// The most tensor data in a shard, like 5GB or mergekit's 5B [default: an eighth of all, from 1GB to 5GB: a file takes
    /// one writer at a time]
    #[arg(long, value_name = "SIZE", value_parser = shard_size)]
    out_shard_size: Option<u64>,
    /// The seed of random masks (DARE, DELLA)
    #[arg(long, visible_alias = "seed", value_name = "N", default_value_t = 0)]
    random_seed: u64,
    /// Worker threads [default: one per core]
    #[arg(long, short = 'j', visible_alias = "num-threads", value_name = "N", value_parser = count)]
    threads: Option<usize>,
    /// Memory for buffers and held inputs, like 512MiB or 2GB [default: 768MiB, for a GPU 3GiB; at most half of the
    /// machine's]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    host_memory: Option<u64>,
    /// Where to compute: auto, or a device that `mergeforge devices` lists; merges also on all of a family, like cuda:all
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    device: String,
    /// Memory of the device for buffers and held inputs [default: 7GiB, at most 90 % of what is free; 2GiB
    /// where the device does not say]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    device_memory: Option<u64>,
    #[command(flatten)]
    hub: HubArgs,
    /// How inputs are read: used where the system's page cache has them (mapped; on the CPU and Linux), copied out of it, or
    /// read past it (direct); auto is direct where they are larger than the memory, and would not stay in the cache for
    /// the next merge, else mapped
    #[arg(long, value_name = "HOW", default_value = "auto")]
    reads: How,
    /// Tiles of 1024 elements in a chunk; for experiments
    #[arg(long, hide = true)]
    chunk_tiles: Option<u64>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum How {
    Auto,
    Mapped,
    Copied,
    Direct,
}

impl MergeFlags {
    /// What a merge that is stopped leaves.
    fn stopped(&self) -> Stopped {
        if self.restart { Stopped::Restarts } else { Stopped::GoesOn }
    }

    /// The device that computes, and what may be used of it.
    fn device(&self) -> Result<(Device, Budget)> {
        let cache = cache::folder();
        let works = |device: &Device| check::before_first_use(device, cache.as_deref());
        self.common.run.device(!self.quiet, &works)
    }

    /// Refuses a place for the trace that a plan needs, or that could not be written.
    fn check_trace(&self, out: &Path, prepared: &Prepared) -> Result<()> {
        let config = Path::new(&prepared.config.file);
        self.trace.as_ref().map_or(Ok(()), |file| report::check_trace(file, config, out, prepared))
    }
}

impl CommonArgs {
    fn choices(&self) -> Choices {
        self.fit.choices(self.run.choices())
    }
}

impl FitArgs {
    /// Choices with these among them.
    fn choices(&self, others: Choices) -> Choices {
        Choices {
            allow_crimes: self.allow_crimes,
            truncate_embeddings: self.truncate_embeddings,
            partly_held: match (self.tensor_intersection, self.tensor_union) {
                (true, _) => PartlyHeldPolicy::LeftOut,
                (_, true) => PartlyHeldPolicy::Merged,
                _ => PartlyHeldPolicy::Copied,
            },
            ..others
        }
    }
}

impl RunArgs {
    fn choices(&self) -> Choices {
        let (seed, shard_bytes, remote) = (self.random_seed, self.out_shard_size, self.hub.remote());
        Choices { seed, shard_bytes, remote, ..Choices::USUAL }
    }
}

/// How this program was started.
#[derive(Debug)]
struct Started {
    /// What starts it again.
    program: Vec<OsString>,
    /// What followed.
    arguments: Vec<OsString>,
}

static STARTED: OnceLock<Started> = OnceLock::new();

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let program = std::env::current_exe().into_iter().map(OsString::from).collect();
    ExitCode::from(run(std::env::args_os().collect(), program))
}

/// Runs a command line, whose first word is the program's name, and returns the exit code. Signals, standard output and standard error
/// are the process's. `program` is what starts this program again, when arguments follow; nothing where that is not known.
pub fn run(words: Vec<OsString>, program: Vec<OsString>) -> u8 {
    crate::backend::libraries::prepare();
    signals::survive_file_limits();
    // By the words alone, since what is wrong with them is said in JSON too. The process that measures reads a round's text.
    let given = |flag: &str| words.iter().any(|word| word == flag);
    if given("--json") && !given("--round") {
        show::talk_json();
    }
    let command = match Cli::try_parse_from(&words) {
        Ok(cli) => cli.command,
        Err(answer) => return usage(&answer, &words),
    };
    let _ = STARTED.set(Started { program, arguments: words.into_iter().skip(1).collect() });
    let outcome = match command {
        Command::Merge(MergeArgs { config, out, options }) => {
            run_merge(|| Written::in_file(&config), &out, &options)
        }
        Command::Multi(args) => staged::multi(&args),
        Command::Moe(args) => moe::run(&args),
        Command::Finish(args) => parts::finish(&args),
        Command::Convert(args) => convert::run(*args),
        Command::Plan(PlanArgs { config, options }) => {
            Written::in_file(&config).and_then(|config| run_plan(&config, &options))
        }
        Command::Info(args) => info::run(&args),
        Command::Diff(args) => return diff::ended(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Analyze(args) => analyze::run(&args),
        Command::ExtractLora(args) => extract::run(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Predict(args) => predict::run(&args),
        Command::Sweep(args) => sweep::run(&args),
        Command::Methods { name, json } => show::methods(name.as_deref(), json),
        Command::Init(args) => init::run(&args),
        Command::Completions(args) => shell::completions(&args),
        Command::Man(args) => shell::man(&args),
        Command::Schema => {
            shell::print_schema();
            Ok(())
        }
        Command::Devices { json } => devices::list(json),
        Command::Check(args) => devices::check(&args),
        Command::Bench(command) => bench::run(command),
    };
    let delivered = || {
        let is_done =
            "all that the command writes elsewhere is complete: only what goes to standard output is missing";
        show::delivered().map_err(|error| error.hint(is_done))
    };
    end(outcome.and_then(|()| delivered()))
}

fn end(outcome: Result<()>) -> u8 {
    match outcome {
        Ok(()) => 0,
        Err(error) => {
            show::error(&error);
            error.exit_code()
        }
    }
}

/// The help that was asked for, or what is wrong with the command.
fn usage(answer: &clap::Error, words: &[OsString]) -> u8 {
    show::usage(answer, shell::taken(answer, words));
    match u8::try_from(answer.exit_code()) {
        Ok(0) => end(show::delivered()),
        code => code.unwrap_or(2),
    }
}

/// Merges what `config` says, once it was asked for.
fn run_merge(config: impl FnOnce() -> Result<Written>, out: &Path, options: &MergeOptions) -> Result<()> {
    let MergeOptions { intermediate_dir, flags } = options;
    let progress = Progress::new(flags.quiet)?;
    flags.mergekit.notes.iter().for_each(|note| show::note(note));
    match (config()?.stages()?.single(), intermediate_dir) {
        (Ok(config), None) => merge_one(&prepared(config, &flags.common)?, out, flags, &progress),
        (Ok(config), Some(_)) => {
            show::note("--intermediate-dir: the config has one document, and so no other results to keep");
            merge_one(&prepared(config, &flags.common)?, out, flags, &progress)
        }
        (Err(stages), kept) => {
            stages.check_result()?;
            let (again, out_stays) = (false, false);
            let places = staged::Places { out: Some(out), kept: kept.as_deref(), again, out_stays };
            staged::merge(&stages, &places, flags, &progress)
        }
    }
}

/// Carries out the plan whose result was asked for.
fn merge_one(prepared: &Prepared, out: &Path, flags: &MergeFlags, progress: &Progress) -> Result<()> {
    flags.check_trace(out, prepared)?;
    let on = flags.device()?;
    let mut warnings = Warnings::default();
    warnings.of_memory(&on.1);
    warnings.refuse(flags.common.fit.strict)?;
    merge_on(prepared, out, flags, &on, progress)
}

/// The same on a device that was chosen.
fn merge_on(
    prepared: &Prepared,
    out: &Path,
    flags: &MergeFlags,
    on: &(Device, Budget),
    progress: &Progress,
) -> Result<()> {
    let timeline = if flags.trace.is_some() { Timeline::keeping() } else { Timeline::new() };
    if !flags.quiet {
        show::folders_to_make(out);
    }
    let part = flags.part.map(|asked| asked.part(flags.quiet)).transpose()?;
    let ends = (!flags.no_copy_tokenizer, flags.stopped(), part);
    let report = merge_into(prepared, out, ends, flags, on, progress, timeline)?;
    if let (Some(file), Some(report)) = (&flags.trace, &report) {
        report.write_trace(file, prepared)?;
        if !flags.quiet {
            show::traced(file, report);
        }
    }
    match (part, report) {
        (Some(part), report) if flags.json => {
            show::json(&parts::json(prepared, out, part, report.as_ref())?);
        }
        (None, Some(report)) if flags.json => show::json(&report.json()),
        _ => {}
    }
    Ok(())
}

/// Carries out a plan, and says what it did. Said are whether the donor's files are copied, what a merge that is stopped leaves, and
/// which part is made; nothing is done where that is there.
fn merge_into(
    prepared: &Prepared,
    out: &Path,
    (copies, stopped, part): (bool, Stopped, Option<Part>),
    flags: &MergeFlags,
    (device, budget): &(Device, Budget),
    progress: &Progress,
    timeline: Timeline,
) -> Result<Option<Report>> {
    let started = Instant::now();
    let cache = cache::folder();
    limits_on(&prepared.plan, budget, device)?;
    if !flags.quiet {
        show::summary(prepared, copies);
    }
    let options = Options {
        out: out.to_path_buf(),
        budget: *budget,
        device: device.clone(),
        copy_tokenizer: copies,
        model_card: !flags.no_write_model_card,
        inputs_hashed: flags.hash_inputs,
        reads: flags.common.run.reads(prepared),
        cache,
        recall: !flags.no_cache,
        stopped,
    };
    if !parts::check(prepared, &options, part, flags.quiet)? {
        return Ok(None);
    }
    flags.common.run.hub.bring(prepared, progress)?;
    if flags.hash_inputs && part.is_none_or(Part::is_first) {
        let hashing = progress.another(unhashed_bytes(&prepared.sources), "hashed");
        let hashed = hash_inputs(&prepared.sources, budget.threads, &hashing);
        hashing.finish();
        hashed?;
    }
    progress.expect(parts::amount(prepared, part).1, "written");
    let before = progress.moved_since(Moved::default());
    let outcome = parts::merge(prepared, &options, part, progress, timeline);
    progress.finish();
    let Some(report) = outcome? else { return Ok(None) };
    show::odd_values(&prepared.plan, report.placed(), Some(MANIFEST));
    show::remarks(&report);
    if !flags.quiet {
        parts::done(out, prepared, part, progress.moved_since(before), started.elapsed())?;
        show::shares(&report);
    }
    Ok(Some(report))
}

fn run_plan(config: &Written, args: &PlanOptions) -> Result<()> {
    let (space, config) = config.any_or_space()?;
    match config {
        AnyConfig::Mixture(config) => {
            show_plan(&moe::prepared(&config, &args.common, &args.untrained)?, None, &[], args)
        }
        AnyConfig::Merges(stages) => match stages.single() {
            Ok(config) => {
                let prepared = match &space {
                    Some(space) => checked_space(space, args.common.fit.strict, &args.common.choices())?,
                    None => prepared(config, &args.common)?,
                };
                show_plan(&prepared, space.as_ref(), &[], args)
            }
            Err(stages) => staged::plan(&stages, args),
        },
    }
}

/// Shows a plan, below those of documents whose results it reads, and what it leaves open.
fn show_plan(
    prepared: &Prepared,
    space: Option<&Space>,
    stages: &[staged::Stage],
    args: &PlanOptions,
) -> Result<()> {
    let (device, budget) = args.common.run.device(false, &|_| Ok(()))?;
    let limits = limits_on(&prepared.plan, &budget, &device)?;
    let reads = args.common.run.reads(prepared);
    if let Some(out) = &args.out {
        let (copy_tokenizer, model_card, inputs_hashed, cache) = (true, true, false, None);
        let (out, device, recall, stopped) = (out.clone(), device.clone(), false, Stopped::GoesOn);
        check_room(
            prepared,
            &Options {
                out,
                device,
                budget,
                copy_tokenizer,
                model_card,
                inputs_hashed,
                reads,
                cache,
                recall,
                stopped,
            },
        )?;
    }
    check_absent(prepared)?;
    let reading = Reading::of(prepared, space, &args.common)?;
    if args.json {
        let mut plan = show::plan_json(prepared, &budget, &limits);
        plan["needs"] = resources::needs_json(prepared, reads, &budget, &device);
        plan["stages"] = stages.iter().map(staged::Stage::json).collect();
        plan["reading"] = reading.as_ref().map(Reading::json).into();
        plan["open"] = space.map(reading::open_json).into();
        plan["downloads"] = hub::as_json(prepared, args.common.run.hub)?;
        show::json(&plan);
    } else {
        stages.iter().for_each(staged::Stage::show);
        space.into_iter().flat_map(reading::open_lines).for_each(|line| show::line(&line));
        let lines = reading.iter().flat_map(Reading::lines);
        let mut lines: Vec<String> = lines.chain(hub::lines(prepared, args.common.run.hub)?).collect();
        lines.extend(
            args.out.as_deref().map(|out| resources::needs_line(prepared, reads, (&budget, &device), out)),
        );
        show::plan(prepared, &budget, &limits, &lines, args.verbose);
    }
    Ok(())
}

/// Plans, and reports the warnings or refuses them.
fn prepared(config: Config, common: &CommonArgs) -> Result<Prepared> {
    checked(&config.warnings.clone(), common.fit.strict, || prepare_config(config, &common.choices()))
}

/// As [`known_devices::choose`], with a hint for mergekit's words.
fn choose(word: &str) -> Result<(Device, Option<String>)> {
    mergekit::foreign_device(word).map_or_else(|| known_devices::choose(word), Err)
}

/// As [`known_devices::candidates`], with the same.
fn candidates(word: &str) -> Result<(Vec<Candidate>, Device)> {
    mergekit::foreign_device(word).map_or_else(|| known_devices::candidates(word), Err)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_flags_are_consistent() {
        Cli::command().debug_assert();
    }
}

//! mergeforge merges large model checkpoints: a mergekit YAML in, a Hugging Face checkpoint out.
//!
//! The way of the data is one way: [`config`] (what was written) and [`checkpoint`] headers make a [`plan`]
//! (what it means), which the [`stream`] carries out: chunks of tensors through a [`backend`] that knows
//! [`kernel`]s, as the [`recipe`]s of a [`method`] ask for them. `prepare` and `merge` below are the whole story.
//!
//! The same config, seed and inputs give the same bytes on every device, whatever the chunk size, the number
//! of threads and the memory.

pub mod backend;
pub mod bench;
pub mod check;
pub mod checkpoint;
pub mod cli;
pub mod config;
pub mod dtype;
pub mod error;
pub mod kernel;
pub mod method;
pub mod plan;
pub mod recipe;
pub mod report;
pub mod stream;
pub mod thresholds;
pub mod timeline;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use backend::Limits;
use backend::device::Device;
use checkpoint::{Reads, Sink, Source};
use config::Config;
use error::{Error, Result};
use plan::{Choices, Plan};
use report::Report;
use stream::{Budget, Watch, Work};
use timeline::{Shares, Timeline};

/// A config with its models' headers and the plan made from them.
#[derive(Debug)]
pub struct Prepared {
    /// The config as written.
    pub config: Config,
    /// The models, in the plan's order.
    pub sources: Vec<Source>,
    /// What will happen.
    pub plan: Plan,
}

/// Reads a config.
///
/// # Errors
/// It cannot be read, or is no config.
pub fn read_config(file: &Path) -> Result<Config> {
    let failed = |cause| {
        Error::config(format!("cannot read {}: {cause}", file.display()))
            .hint("the first argument is a merge config in YAML, as mergekit takes it")
    };
    let mut source = Vec::new();
    // One byte more than a config may have is enough to refuse it.
    let limit = config::SOURCE_BYTES_MAX as u64 + 1;
    File::open(file).and_then(|file| file.take(limit).read_to_end(&mut source)).map_err(failed)?;
    let source = String::from_utf8(source)
        .map_err(|_| Error::config(format!("{}: this is not text in UTF-8", file.display())))?;
    Config::parse(&file.display().to_string(), &source)
}

/// Reads the headers of a config's models, and plans the merge. No tensor data is read.
///
/// # Errors
/// Everything that is wrong with the config or the headers.
pub fn prepare_config(config: Config, choices: &Choices) -> Result<Prepared> {
    plan::method_of(&config)?;
    let sources = open(&config)?;
    let plan = Plan::new(&config, &sources, choices)?;
    Ok(Prepared { config, sources, plan })
}

/// Reads and plans: [`read_config`], then [`prepare_config`].
///
/// # Errors
/// Those of both.
pub fn prepare(file: &Path, choices: &Choices) -> Result<Prepared> {
    prepare_config(read_config(file)?, choices)
}

/// Opens every model that a config refers to.
fn open(config: &Config) -> Result<Vec<Source>> {
    let open = |model: &config::Located<config::ModelRef>| {
        let name = model.value.to_string();
        checkpoint::locate(&model.value.path, model.value.revision.as_deref())
            .and_then(|folder| Source::open(&name, &folder))
            .map_err(|error| Error { message: config.error_at(model.at, error.message).message, ..error })
    };
    let models = plan::references(config);
    std::thread::scope(|scope| {
        let opening: Vec<_> = models.iter().map(|model| scope.spawn(move || open(model))).collect();
        opening.into_iter().map(|model| model.join().expect("opening a model does not panic")).collect()
    })
}

/// What a merge may use and what it leaves beside the tensors.
#[derive(Debug, Clone)]
pub struct Options {
    /// The folder to make.
    pub out: PathBuf,
    /// Where to compute.
    pub device: Device,
    /// Threads, memory and chunks.
    pub budget: Budget,
    /// Whether the donor's tokenizer files are copied.
    pub copy_tokenizer: bool,
    /// Whether a README.md is written.
    pub model_card: bool,
    /// How the inputs are read.
    pub reads: Reads,
    /// A folder for what later merges can use. It changes no byte.
    pub cache: Option<PathBuf>,
    /// Whether thresholds of earlier merges are used, and those of this one kept, in that folder.
    pub recall: bool,
}

/// Carries out a plan. The output folder appears whole, under its final name, or not at all.
///
/// # Errors
/// An input that cannot be read or changes, an output that cannot be written, or the user's wish to stop.
pub fn merge(prepared: &Prepared, options: &Options, watch: &dyn Watch) -> Result<Report> {
    merge_recording(prepared, options, watch, Timeline::new())
}

/// As [`merge`], with the timeline that is to be in the report: one that keeps single records, for a trace.
///
/// # Errors
/// Those of [`merge`].
pub fn merge_recording(
    prepared: &Prepared,
    options: &Options,
    watch: &dyn Watch,
    timeline: Timeline,
) -> Result<Report> {
    let Prepared { sources, plan, .. } = prepared;
    check_room(prepared, options)?;
    let limits = options.budget.limits(plan, &options.device)?;
    check::before_first_use(&options.device, options.cache.as_deref())?;
    let backend = options.device.open(&limits)?;
    let sink = Sink::create(&options.out, &plan.layout)?;
    let cache = options.cache.as_deref().filter(|_| options.recall);
    let recalled = cache.map_or_else(Vec::new, |cache| thresholds::recall(cache, plan, sources));
    // Opening a device takes a moment, in which no stage could be busy.
    let timeline = timeline.begun_now();
    let work = Work { plan, sources, recalled: &recalled, reads: options.reads };
    let merged = stream::run(work, &*backend, &sink, &limits, watch, &timeline);
    // Inputs that change can look like a device that contradicts itself: they are then the error.
    if merged.as_ref().map_or_else(|failure| failure.kind == error::Kind::Device, |_| true) {
        sources.iter().try_for_each(Source::verify_unchanged)?;
    }
    let merged = merged?;
    let shares = timeline.shares(timeline.origin().elapsed(), limits.threads);
    let mut report = Report::new(prepared, &*backend, merged, timeline, shares);
    let streamed = Instant::now();
    sink.finish(&report.sidecars(prepared, options)?, &|| watch.stop())?;
    report.finishing = streamed.elapsed();
    if let Some(cache) = cache {
        thresholds::remember(cache, plan, sources, &report.merged);
    }
    Ok(report)
}

/// What a merge takes at the least on this device: the same reads, copies, digests and writes through the same scheduler,
/// every input once and no kernel. What is written means nothing and is taken away. Returns the time, and what the stages
/// did in it.
///
/// # Errors
/// Those of [`merge`].
pub fn floor(prepared: &Prepared, options: &Options, watch: &dyn Watch) -> Result<(Duration, Shares)> {
    let Prepared { sources, plan, .. } = prepared;
    check_room(prepared, options)?;
    let limits = Limits { kernels: false, ..options.budget.limits(plan, &options.device)? };
    let backend = options.device.open(&limits)?;
    let sink = Sink::create(&options.out, &plan.layout)?;
    let timeline = Timeline::new();
    let work = Work { plan, sources, recalled: &[], reads: options.reads };
    stream::run(work, &*backend, &sink, &limits, watch, &timeline)?;
    let wall = timeline.origin().elapsed();
    Ok((wall, timeline.shares(wall, limits.threads)))
}

/// Refuses an output folder that is not free, or a disk that is too small, before anything is read.
///
/// # Errors
/// What is wrong with the folder or the disk.
pub fn check_room(prepared: &Prepared, options: &Options) -> Result<()> {
    let inputs: Vec<&Path> = prepared.sources.iter().map(|source| source.folder.as_path()).collect();
    checkpoint::check_out(&options.out, &inputs)?;
    // What is copied at the end had better be there at the beginning.
    checkpoint::check_companions(&prepared.sources[prepared.plan.donor].folder)?;
    let needed = prepared.plan.layout.file_bytes;
    match checkpoint::free_bytes(&options.out) {
        Some(free) if free < needed => Err(Error::output(format!(
            "the output needs {}, and only {} are free where {} goes",
            report::bytes(needed),
            report::bytes(free),
            options.out.display()
        ))
        .hint("free some space, or choose another disk")),
        _ => Ok(()),
    }
}

//! mergeforge merges large model checkpoints: a mergekit YAML in, a Hugging Face checkpoint out.
//!
//! The way of the data is one way: [`config`] (what was written) and [`checkpoint`] headers make a [`plan`]
//! (what it means), which the [`stream`] carries out: chunks of tensors through a [`backend`] that knows
//! [`kernel`]s, as the [`recipe`]s of a [`method`] ask for them. [`prepare`] and [`merge`] are the whole story.
//!
//! The same config, seed and inputs give the same bytes on every device, whatever the chunk size, the number
//! of threads and the memory.

pub mod analyze;
pub mod backend;
pub mod bench;
pub mod cache;
pub mod check;
pub mod checkpoint;
pub mod cli;
pub mod config;
pub mod decoder;
pub mod diff;
pub mod dtype;
pub mod error;
pub mod eval;
pub mod extract;
pub mod files;
pub mod hub;
pub mod input;
mod instructions;
pub mod kernel;
mod limits;
pub mod machine;
mod merging;
pub mod method;
pub mod page;
pub mod parts;
pub mod plan;
pub mod predict;
pub mod preflight;
mod products;
pub mod recipe;
pub mod report;
pub mod schema;
pub mod stages;
pub mod stream;
pub mod sweep;
pub mod text;
pub mod threads;
pub mod thresholds;
pub mod timeline;
pub mod tokenizer;
pub mod verify;
mod written;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use backend::device::Device;
use checkpoint::{ADAPTER_CONFIG, Companions, Destination, MODEL_CONFIG, Making, Reads, Source};
use config::moe::MoeConfig;
use config::{Config, Position};
use dtype::{Dtype, float_name};
use error::{Error, Result};
use hub::{Remote, Wanted};
use indexmap::IndexMap;
use input::At;
pub use merging::{floor, merge, merge_part, merge_recording, merge_tensors};
pub(crate) use merging::{open_device, verified};
use plan::{Choices, Compared, Place, Plan, Readable};
use report::Intermediate;
use serde_json::{Value as Json, json};
use stages::{FusedStage, Outcomes, Way};
use stream::{Budget, Watch};
pub use written::{
    AnyConfig, Written, read_any, read_any_or_space, read_config, read_moe, read_space, read_stages,
};

/// A config with its models' headers and the plan made from them.
#[derive(Debug)]
pub struct Prepared {
    /// The config as written.
    pub config: Config,
    /// What is on disk: models' folders, and the files that say something of their elements.
    pub sources: Vec<Source>,
    /// What will happen.
    pub plan: Plan,
    /// What becomes of the files beside the donor's weights.
    pub companions: Companions,
    /// What each source is: what the config refers to, and behind that what documents read that are merged on the way.
    pub(crate) opened: Vec<Place>,
    /// How many of them the config itself refers to.
    own: usize,
    /// Which of the sources stand for results of other documents.
    pub(crate) results: HashMap<usize, Arc<Intermediate>>,
    /// What else the plan was made with.
    choices: Choices,
}

impl Prepared {
    /// The folder of each model.
    pub fn models(&self) -> impl Iterator<Item = &Source> {
        self.plan.models.iter().map(|model| &self.sources[model.source])
    }

    /// The plan of another config of the same models.
    ///
    /// # Errors
    /// As of [`prepare_config`].
    pub fn planned(&self, config: &Config) -> Result<Plan> {
        Plan::new(config, &self.sources, &self.choices)
    }

    /// The models that are read for others, by their sources: those that documents merge on the way to this one.
    pub fn models_of_stages(&self) -> impl Iterator<Item = usize> {
        let behind = self.opened.iter().enumerate().skip(self.own);
        behind.filter(|(_, place)| matches!(place, Place::Model(_))).map(|(source, _)| source)
    }

    /// The files of the Hub that the plan reads and that are not here. They are read from there, unless they are [fetched](fetch()).
    pub fn absent(&self) -> Vec<Wanted> {
        if self.sources.iter().all(|source| source.folder.snapshot().is_none()) {
            return Vec::new();
        }
        let stored = self.plan.stored();
        let of = |(source, opened): (usize, &Source)| {
            opened.absent(|tensor| stored.contains(&At { source, tensor }))
        };
        self.sources.iter().enumerate().flat_map(of).collect()
    }

    /// The files that say something of models' elements.
    pub fn element_files(&self) -> impl Iterator<Item = &Source> {
        self.plan.element_files.iter().map(|file| &self.sources[*file])
    }

    /// The source that gives config.json, the tokenizer and the other files beside the weights.
    pub fn donor(&self) -> &Source {
        &self.sources[self.plan.models[self.plan.donor].source]
    }
}

/// Reads the headers of a config's models, and plans the merge. No tensor data is read.
///
/// # Errors
/// Everything that is wrong with the config or the headers.
pub fn prepare_config(config: Config, choices: &Choices) -> Result<Prepared> {
    prepare_among(config, &Outcomes::new(), choices)
}

/// The same where some models are there already: checkpoints in memory, which the config means by their names.
///
/// # Errors
/// Those of [`prepare_config`], and a checkpoint that the config does not name.
pub fn prepare_given(config: Config, given: Vec<Source>, choices: &Choices) -> Result<Prepared> {
    plan::check_given(&config, given.iter().map(|source| source.name.as_str()))?;
    prepare_among(config, &stages::given(given), choices)
}

/// The same of a document that may name the results of others.
fn prepare_among(config: Config, made: &Outcomes, choices: &Choices) -> Result<Prepared> {
    plan::check_counts(&config)?;
    let (mut config, notes) = plan::with_found_models(config);
    let unread = std::mem::take(&mut config.problems);
    let mut places = plan::places(&config);
    let own = places.len();
    let mut fused = Vec::new();
    for place in 0..own {
        let (opened, at) = places.get_index(place).expect("there are so many");
        let Some((name, outcome)) = opened.among(made) else { continue };
        let Way::Fused(stage) = &outcome.way else { continue };
        let (at, name) = (*at, name.clone());
        for leaf in &stage.opened {
            places.entry(leaf.clone()).or_insert(at);
        }
        fused.push((name, Arc::clone(stage)));
    }
    let opened = open(&config, &places, made, plan::problems_of(&config), choices.remote);
    let sources = match opened {
        Ok(sources) if unread.is_empty() || config.is_whole && config.has_all_parameters => sources,
        opened => return Err(together(unread, opened.err())),
    };
    let numbers = |stage: &FusedStage| -> Vec<Option<usize>> {
        stage.opened.iter().map(|place| places.get_index_of(place)).collect()
    };
    let numbers: Vec<_> = fused.iter().map(|(_, stage)| numbers(stage)).collect();
    let stages: Vec<_> =
        fused.iter().zip(&numbers).map(|((name, stage), numbers)| stage.among(name, numbers)).collect();
    let planned = Plan::with_stages(&config, &sources, &stages, choices);
    let mut plan = match planned {
        Ok(plan) if unread.is_empty() => plan,
        planned => return Err(together(unread, planned.err())),
    };
    plan.notes.extend(notes);
    let mut companions = companions(&plan, &sources)?;
    let result = |(source, place): (usize, &Place)| Some((source, Arc::clone(&place.among(made)?.1.known)));
    let results: HashMap<usize, Arc<Intermediate>> = places.keys().enumerate().filter_map(result).collect();
    let donor = &sources[plan.models[plan.donor].source].folder.path;
    // What is merged while it is read has the folder of its donor, which may be such a result.
    if results.iter().any(|(source, known)| known.is_in_folder && sources[*source].folder.path == *donor) {
        companions = companions.of_result();
    }
    let opened = places.into_keys().collect();
    Ok(Prepared { config, sources, plan, companions, opened, own, results, choices: *choices })
}

/// What could not be read of a config, and what is wrong beyond that.
fn together(unread: Vec<Error>, beyond: Option<Error>) -> Error {
    Error::all(unread.into_iter().chain(beyond.into_iter().flat_map(Error::one_by_one)).collect())
}

/// Reads the headers of the models that become experts, and plans their mixture. No tensor data is read. `untrained` says that
/// experts which do the same are wanted, because the mixture will be trained.
///
/// # Errors
/// Everything that is wrong with the config or the headers.
pub fn prepare_moe(moe: &MoeConfig, untrained: bool, choices: &Choices) -> Result<Prepared> {
    let config = moe.listed();
    plan::check_counts(&config)?;
    let places = plan::places(&config);
    // What seems to be wrong with a config that could not be read whole may follow from that.
    let problems = match &moe.problems[..] {
        [] => plan::check_moe(moe, untrained).err().map_or_else(Vec::new, Error::one_by_one),
        unread => unread.to_vec(),
    };
    let sources = open(&config, &places, &Outcomes::new(), problems, choices.remote)?;
    let plan = Plan::moe(moe, &config, &sources, choices)?;
    let companions = companions(&plan, &sources)?;
    let (own, results, choices) = (places.len(), HashMap::new(), *choices);
    let opened = places.into_keys().collect();
    Ok(Prepared { config, sources, plan, companions, opened, own, results, choices })
}

/// A model as a config would name it: what is there by that name is meant, whatever signs are in it.
fn written(name: &str) -> Json {
    if files::exists(Path::new(name)) { json!({ "model": { "path": name } }) } else { json!(name) }
}

/// The config of a model by itself, which is named as in a config.
fn config_of(name: &str) -> Result<Config> {
    let models = json!([{ "model": written(name), "parameters": { "weight": 1 } }]);
    Config::parse("", &json!({ "merge_method": "linear", "models": models }).to_string())
}

/// A model as it is stored.
#[derive(Debug)]
pub struct StoredModel {
    /// Its folder or file; none where an adapter was named by itself.
    pub model: Option<Source>,
    /// Its adapter.
    pub adapter: Option<Source>,
}

/// Reads the headers of a model as it is stored, which is named as in a config, or of the folder of an adapter. No tensor data is
/// read.
///
/// # Errors
/// It is not there, or damaged.
pub fn open_model(name: &str, remote: Remote) -> Result<StoredModel> {
    let config = config_of(name)?;
    let places = plan::places(&config);
    if let (1, Some((Place::Model(model), _))) = (places.len(), places.first()) {
        let located = checkpoint::locate(&model.path, model.revision.as_deref(), remote)?;
        if located.has(ADAPTER_CONFIG) && !located.has(MODEL_CONFIG) {
            return Ok(StoredModel { model: None, adapter: Some(Source::open_adapter(name, located)?) });
        }
    }
    let (mut model, mut adapter) = (None, None);
    for (place, source) in places.keys().zip(open(&config, &places, &Outcomes::new(), Vec::new(), remote)?) {
        *(if matches!(place, Place::Model(_)) { &mut model } else { &mut adapter }) = Some(source);
    }
    Ok(StoredModel { model, adapter })
}

/// Reads the headers of a model, which is named as in a config. No tensor data is read.
///
/// # Errors
/// It is not there, or cannot be read.
pub fn prepare_model(name: &str, remote: Remote) -> Result<Readable> {
    let config = config_of(name)?;
    let places = plan::places(&config);
    let sources = open(&config, &places, &Outcomes::new(), Vec::new(), remote)?;
    Readable::new(&config, sources)
}

/// Reads the headers of a model and its base, which are named as in a config, and makes them comparable. No tensor data is read.
///
/// # Errors
/// One of them is not there, or they cannot be read as floats.
pub fn prepare_comparison(tuned: &str, base: &str, remote: Remote) -> Result<Compared> {
    let config = json!({
        "merge_method": "linear",
        "models": [{ "model": written(tuned), "parameters": { "weight": 1 } }],
        "base_model": written(base),
    });
    let config = Config::parse("", &config.to_string())?;
    let places = plan::places(&config);
    let sources = open(&config, &places, &Outcomes::new(), Vec::new(), remote)?;
    Compared::new(&config, sources)
}

/// Reads the headers of a model, which is named as in a config, and plans a copy of it, with floats of another type if one is
/// given and with its adapter added. The model's own card is copied too, if `card` says so and no adapter makes another model of
/// it. No tensor data is read.
///
/// # Errors
/// It is not there, or cannot be copied, or not as floats of that type.
pub fn prepare_conversion(
    name: &str,
    dtype: Option<Dtype>,
    card: bool,
    choices: &Choices,
) -> Result<Prepared> {
    let key = dtype.map_or(String::new(), |dtype| format!("dtype: {}\n", float_name(dtype)));
    let text = format!("merge_method: passthrough\nmodels:\n- model: {}\n{key}", written(name));
    let mut prepared = prepare_config(Config::parse("", &text)?, choices)?;
    if dtype.is_some() {
        plan::check_without_codes(&prepared.plan, &prepared.sources)?;
    }
    if card && prepared.plan.models.iter().all(|model| model.adapter.is_none()) {
        let companions = std::mem::take(&mut prepared.companions);
        prepared.companions = companions.with_card_of(prepared.donor());
    }
    Ok(prepared)
}

/// The files beside the weights, as the plan has them.
fn companions(plan: &Plan, sources: &[Source]) -> Result<Companions> {
    let of = |source: usize| checkpoint::companions(&sources[source]);
    let of_donor = of(plan.models[plan.donor].source)?;
    let chosen = match plan.tokenizer.source {
        Some(source) => of_donor.with_tokenizer_of(of(source)?),
        None => of_donor,
    };
    Ok(chosen.revised(&plan.tokenizer.revision))
}

/// Reads and plans: [`read_config`], then [`prepare_config`].
///
/// # Errors
/// Those of both.
pub fn prepare(file: &Path, choices: &Choices) -> Result<Prepared> {
    prepare_config(read_config(file)?, choices)
}

/// Threads that open models: their headers come from a disk that serves few at a time.
const OPENERS_MAX: usize = 16;

/// What to write where a model was read as one with an adapter or a revision, and what is there is of its whole name.
fn meant_path(config: &Config, at: Position) -> Option<String> {
    let model = plan::written_at(config, at)?;
    let is_cut = model.lora.is_some() || model.revision.is_some();
    let written = is_cut.then(|| model.to_string()).filter(|written| files::exists(Path::new(written)))?;
    Some(format!(
        "there is {written}: a path that contains `+` or `@` is written {{model: {{path: {written}}}}}"
    ))
}

/// Opens all that a config refers to, if nothing else is wrong with it. All is opened even so: who has to download models, and to
/// correct the config, wants to know all of it.
fn open(
    config: &Config,
    places: &IndexMap<Place, Position>,
    made: &Outcomes,
    mut problems: Vec<Error>,
    remote: Remote,
) -> Result<Vec<Source>> {
    let open = |place: usize| {
        let (place, at) = places.get_index(place).expect("there are so many");
        let opened = match place {
            Place::Model(model) => match place.among(made) {
                Some((name, outcome)) => outcome.way.open(name),
                None => checkpoint::locate(&model.path, model.revision.as_deref(), remote)
                    .map_err(|error| match config.meant_document(&model.path) {
                        Some(name) => {
                            error.hint(format!("did you mean `{name}`, the name of another document?"))
                        }
                        None => error,
                    })
                    .and_then(|located| Source::open(&model.to_string(), located)),
            },
            Place::Adapter(adapter) => {
                let located = checkpoint::locate(&adapter.path, adapter.revision.as_deref(), remote);
                located.and_then(|located| Source::open_adapter(&adapter.to_string(), located))
            }
            Place::Tensors(path) => {
                checkpoint::locate_tensors(path).and_then(|place| Source::open_tensors(path, &place))
            }
        };
        opened.map_err(|error| {
            let meant = config.meant_tokenizer_source(*at).or_else(|| meant_path(config, *at));
            let hint = meant.or(error.hint);
            if config.file.is_empty() && error.file.is_some() {
                // Where the config's places mean nothing, what is known is the file that is wrong.
                return Error { hint, ..error };
            }
            let Error { kind, cause, message, .. } = error;
            Error { kind, hint, cause, ..config.error_at(*at, message) }
        })
    };
    let mut sources = Vec::new();
    for opened in threads::each(places.len().min(OPENERS_MAX), places.len(), open) {
        match opened {
            Ok(source) => sources.push(source),
            Err(failure) => problems.push(failure),
        }
    }
    if problems.is_empty() { Ok(sources) } else { Err(Error::all(problems)) }
}

/// Where files of the Hub go, and how many bytes are free there. `beside` is what will be written too, where and how much.
///
/// # Errors
/// Kind `Output`: they would not fit.
pub fn free_for(wanted: &[Wanted], beside: &[(&Path, u64)]) -> Result<Option<(PathBuf, u64)>> {
    let Some(first) = wanted.first() else { return Ok(None) };
    let folder = first.snapshot.folder();
    let folder = folder.ancestors().nth(3).unwrap_or(&folder).to_path_buf();
    let Some(free) = checkpoint::free_bytes(&folder) else { return Ok(None) };
    let of_outputs =
        beside.iter().filter(|(out, _)| checkpoint::same_disk(out, &folder)).map(|(_, bytes)| *bytes);
    let (missing, written): (u64, u64) = (hub::missing_bytes(wanted), of_outputs.sum());
    if missing.saturating_add(written) > free {
        let what = if written > 0 { "the models and what is made of them need" } else { "the models need" };
        let needed = text::bytes(missing.saturating_add(written));
        let (free, folder) = (text::bytes(free), folder.display());
        return Err(Error::output(format!("{what} {needed}, and only {free} are free in {folder}")).hint(
            "free some space, name another folder by HF_HUB_CACHE, or read the models without keeping them: --stream",
        ));
    }
    Ok(Some((folder, free)))
}

/// Looks at what a plan can know of tensors on the Hub before they are fetched whole: that those which can only be copied begin alike.
///
/// # Errors
/// They do not, or cannot be read.
pub fn check_absent(prepared: &Prepared) -> Result<()> {
    stream::check_beginnings(&prepared.plan, &prepared.sources)
}

/// Fetches the files that go beside the weights: once the merge is done it is late to miss one.
///
/// # Errors
/// One cannot be had, or not be kept.
pub fn bring_companions(prepared: &Prepared) -> Result<()> {
    prepared.companions.copied.iter().try_for_each(|companion| companion.original.bring())
}

/// Fetches files of the Hub into the cache, from where sources read them then.
///
/// # Errors
/// They do not fit on the disk, cannot be had, are not what the Hub lists, or the user wants to stop.
pub fn fetch(sources: &[&Source], wanted: &[Wanted], watch: &dyn hub::Watch) -> Result<()> {
    free_for(wanted, &[])?;
    hub::fetch(wanted, watch)?;
    sources.iter().try_for_each(|source| source.arrive())
}

/// The bytes that [`hash_inputs`] reads: files whose SHA-256 is known for certain are not among them.
pub fn unhashed_bytes(sources: &[Source]) -> u64 {
    sources.iter().flat_map(Source::unhashed_bytes).sum()
}

/// Reads every file of weights whole, several at a time, so that the manifest can say their SHA-256.
///
/// # Errors
/// One cannot be read, changed, or is not what the Hugging Face cache calls it; or the user wants to stop.
pub fn hash_inputs(sources: &[Source], threads: usize, watch: &dyn Watch) -> Result<()> {
    let unhashed = |(place, bytes): (usize, u64)| (bytes > 0).then_some(place);
    let files: Vec<(&Source, usize)> = sources
        .iter()
        .flat_map(|source| {
            let places = source.unhashed_bytes().into_iter().enumerate().filter_map(unhashed);
            places.map(move |place| (source, place)).collect::<Vec<_>>()
        })
        .collect();
    let go_on = |bytes: u64| {
        watch.moved(0, bytes);
        if watch.stop() { Err(Error::interrupted()) } else { Ok(()) }
    };
    let hash = |file: usize| files[file].0.hash_file(files[file].1, &go_on);
    threads::each(threads, files.len(), hash).into_iter().collect()
}

/// What a merge may use and what it leaves beside the tensors.
#[derive(Debug, Clone)]
#[allow(clippy::struct_excessive_bools, reason = "each is a choice of the user's")]
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
    /// Whether inputs were, or will be, [hashed](hash_inputs) before the merge. Parts of one output agree in it.
    pub inputs_hashed: bool,
    /// How the inputs are read.
    pub reads: Reads,
    /// A folder for what later merges can use. It changes no byte.
    pub cache: Option<PathBuf>,
    /// Whether thresholds of earlier merges are used, and those of this one kept, in that folder.
    pub recall: bool,
    /// What a merge that is stopped leaves, and what is done with what such a one has left.
    pub stopped: Stopped,
}

/// What becomes of what is finished of an output when its merge is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// It stays, and the next merge goes on with it.
    GoesOn,
    /// It stays, and this merge begins anew nevertheless.
    Restarts,
    /// It is removed.
    LeavesNothing,
}

impl Stopped {
    /// How a sink is to be made, of what [`report::making`] says.
    fn making(self, what: &Json) -> Option<Making<'_>> {
        (self != Self::LeavesNothing).then_some(Making { what, anew: self == Self::Restarts })
    }
}

/// Refuses an output folder beside which a stopped merge has left part of another output, as far as that can be known by now.
///
/// # Errors
/// Kind `Config`, with what differs.
pub fn check_left(prepared: &Prepared, out: &Path) -> Result<()> {
    checkpoint::check_left(out, || report::making(prepared))
}

/// Refuses an output folder that is not free, a disk that is too small, and more memory or open files than the system gives, before
/// anything is written.
///
/// # Errors
/// What is wrong with the folder, the disk or the system.
pub fn check_room(prepared: &Prepared, options: &Options) -> Result<()> {
    let destination = Destination {
        out: options.out.clone(),
        bytes: output_bytes(prepared, options.copy_tokenizer),
        on_the_way_bytes: 0,
    };
    let beside = (options.out.as_path(), destination.bytes);
    checkpoint::check_destinations(&[destination], &places_of_inputs(prepared).collect::<Vec<_>>())?;
    preflight::check(prepared, prepared.plan.layout.shards.len(), options)?;
    if options.stopped == Stopped::GoesOn {
        check_left(prepared, &options.out)?;
    }
    if prepared.choices.remote != Remote::Streamed {
        free_for(&prepared.absent(), &[beside])?;
    }
    Ok(())
}

/// The bytes that a plan's output takes on the disk, with the files beside the weights; `copied` says whether the donor's files
/// are among them.
pub fn output_bytes(prepared: &Prepared, copied: bool) -> u64 {
    let of_donor = if copied { prepared.companions.bytes() } else { 0 };
    prepared.plan.layout.file_bytes + of_donor + report::other_bytes(prepared)
}

/// Where what a plan reads lies, as far as it is there.
pub fn places_of_inputs(prepared: &Prepared) -> impl Iterator<Item = PathBuf> {
    prepared.sources.iter().filter(|source| !source.is_planned()).map(Source::place)
}

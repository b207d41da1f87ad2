//! `mergeforge sweep`: flags, and what is measured how.

mod found;
mod serve;

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf, absolute};
use std::time::Duration;

use clap::Args;
use serde_json::{Value as Json, json};

use self::found::Found;
use self::serve::Served;
use super::eval::{Heard, MEMORY, TextArgs, names_of};
use super::machine;
use super::progress::Progress;
use super::resources::half_of_memory;
use super::values::count;
use super::warnings::checked_space;
use super::{CommonArgs, show};
use crate::backend::device::Device;
use crate::checkpoint::{InputFile, OTHER_VOCABULARIES, Source, TOKENIZER};
use crate::error::{Error, Kind, Result};
use crate::eval::{Chat, Model, Texts, Windows};
use crate::hub::Remote;
use crate::plan::{Choices, PartlyHeldPolicy};
use crate::predict::{self, Parents, Reading};
use crate::stream::{Budget, Watch};
use crate::sweep::{
    ANY, ByCommand, ByTexts, Candidate, Direction, Engine, Journal, Merges, Objective, Outcome, Predictions,
    Request, Search, Set, Sweeping, TEXTS, TOKENS,
};
use crate::text::{bytes, escaped};
use crate::tokenizer::Runner;
use crate::{Options, Prepared, Stopped, output_bytes, prepare_model, read_space};

#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
#[command(
    mut_arg("host_memory", |arg| arg.help("Memory for states, logits and merges [default: 2GiB, at most half of what is free]")),
    mut_arg("out_shard_size", |arg| arg.hide(true)),
    override_usage = "mergeforge sweep <CONFIG> <OUT> [OPTIONS] --text <FILE>...\n       \
                      mergeforge sweep <CONFIG> <OUT> [OPTIONS] --objective-cmd <COMMAND>"
)]
pub(super) struct SweepArgs {
    /// The config: a mergekit YAML with `{range: [0, 1.5]}` or `{choice: [0.2, 0.5]}` in the places of numbers, or a list as
    /// `merge_method`
    config: PathBuf,
    /// The folder for what is found: configs, a page, and what was measured; the same command goes on with what is there
    out: PathBuf,
    #[command(flatten)]
    texts: TextArgs,
    /// How much a set counts in the score, by its file's name, or a metric; may be given several times [default: 1 each]
    #[arg(long = "weight", value_name = "NAME=WEIGHT", value_parser = weight)]
    weights: Vec<(String, f64)>,
    /// Score candidates by a program, in the place of texts: {model} stands for the candidate's folder, {out} for a file or folder
    /// for its JSON, which may be its last line as well
    #[arg(long, value_name = "COMMAND", conflicts_with_all = OF_TEXTS)]
    objective_cmd: Option<String>,
    /// What of the program's JSON counts, like `medqa_4options.acc`; may be given several times [default: score, or the only number]
    #[arg(long = "metric", value_name = "NAME", requires = "objective_cmd")]
    metrics: Vec<String>,
    /// Higher numbers of the program are better: accuracies
    #[arg(long, requires = "objective_cmd")]
    maximize: bool,
    /// Seconds that the program may take for a candidate; one that takes longer is ended, and its candidate has failed
    #[arg(long, value_name = "SECONDS", requires = "objective_cmd", value_parser = clap::value_parser!(u64).range(1..))]
    objective_timeout: Option<u64>,
    /// Try the points that another program asks for: a line of JSON on standard input for each question, one on standard output for
    /// each answer
    #[arg(long, conflicts_with_all = ["json", "tries"])]
    serve: bool,
    /// Candidates to try, besides those that are confirmed
    #[arg(long, value_name = "N", value_parser = count, default_value = "8")]
    tries: usize,
    /// Candidates that go through the models in one pass: the next ones know what these came to
    #[arg(long, value_name = "N", value_parser = count, default_value = "4")]
    together: usize,
    /// The most promising candidates, measured on all texts
    #[arg(long, value_name = "N", value_parser = count, default_value = "3")]
    confirm: usize,
    /// Tokens that a try reads, of all sets together; 0: all
    #[arg(long, value_name = "TOKENS", default_value = "8192")]
    try_tokens: usize,
    /// Seeds to try of each candidate whose masks are drawn at random (DARE, DELLA)
    #[arg(long, value_name = "N", value_parser = count, default_value = "2")]
    seeds: usize,
    /// Try without a prediction from the models' own logits
    #[arg(long)]
    no_predict: bool,
    /// Begin anew, whatever was measured in that folder
    #[arg(long)]
    restart: bool,
    /// Show no progress
    #[arg(long, short)]
    quiet: bool,
    /// Print what was found as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    common: CommonArgs,
}

/// What means something only where texts are read.
const OF_TEXTS: [&str; 13] = [
    "text",
    "qa",
    "abstracts",
    "window",
    "stride",
    "lines",
    "packed",
    "frame",
    "chat",
    "qa_prompt",
    "abstract_prompt",
    "try_tokens",
    "no_predict",
];

fn weight(text: &str) -> std::result::Result<(String, f64), String> {
    let (name, number) = text.rsplit_once('=').unwrap_or((text, ""));
    match number.parse::<f64>() {
        Ok(number) if number.is_finite() && number >= 0.0 => Ok((name.to_owned(), number)),
        _ => Err("expected a name and a weight, like general.txt=0.5".into()),
    }
}

/// The file of what was measured.
const JOURNAL: &str = "sweep.jsonl";

/// Memory of the merge of a layer.
pub(super) const MERGE_MEMORY: u64 = 256 << 20;

/// Of the memory, what part merges have where that is less.
const MERGES_PART: u64 = 4;

/// The same of a device, for each candidate.
const DEVICE_MERGE_MEMORY: u64 = 512 << 20;

/// Tokens of the vocabulary that are kept of each parent's predictions.
pub(super) const TOP: usize = 64;

/// Sweeps, writes and reports.
pub(super) fn run(args: &SweepArgs) -> Result<()> {
    // How much there is to do, another program knows.
    let progress = Progress::new(args.quiet || args.serve)?;
    let mut request = args.request()?;
    check_folder(&args.out)?;
    let first = checked_space(&request.space, args.common.fit.strict, &args.common.choices())?;
    let (device, budget) = args.common.run.device(!args.quiet, &|_| Ok(()))?;
    let found = match &args.objective_cmd {
        Some(command) => by_command(args, command, &mut request, &first, (device, budget), &progress),
        None => by_texts(args, &mut request, first, (device, budget), &progress),
    };
    progress.finish();
    let found = found.map_err(|why| what_is_kept(&args.out, why))?;
    found.write(&args.out, &args.config, &request)?;
    if args.serve {
        show::json_line(&serve::last(&args.out, &request, &found));
    } else if args.json {
        show::json(&found.json(&request));
    } else {
        found.table(&args.out, &request);
    }
    Ok(())
}

/// Refuses a folder with anything but a sweep in it: what is found would be put beside it, or in its place.
fn check_folder(out: &Path) -> Result<()> {
    let refused =
        |why: &str| Err(Error::config(format!("the folder {} {why}", out.display())).hint(NEW_FOLDER));
    match fs::read_dir(out) {
        Err(cause) if cause.kind() == ErrorKind::NotFound => Ok(()),
        Err(cause) if cause.kind() == ErrorKind::NotADirectory => refused("exists and is no folder"),
        Err(cause) => refused(&format!("cannot be looked into: {cause}")),
        Ok(mut inside) => match inside.next() {
            Some(_) if !out.join(JOURNAL).is_file() => {
                refused(&format!("is not empty, and has no {JOURNAL}: no sweep made it"))
            }
            _ => Ok(()),
        },
    }
}

const NEW_FOLDER: &str = "give a folder that is new or empty, or that of an earlier sweep";

/// Why a sweep ended. Where that was the user's wish, what was measured until then is of use.
fn what_is_kept(out: &Path, why: Error) -> Error {
    match Journal::count(&out.join(JOURNAL)) {
        count if count > 0 && why.kind == Kind::Interrupted => {
            let are = if count == 1 { "measurement is" } else { "measurements are" };
            let message = format!("interrupted: {count} {are} kept in {}", out.display());
            Error { message: escaped(&message), ..why }.hint("the same command goes on with what is there")
        }
        _ => why,
    }
}

/// Tries what the search chooses, or what another program asks for.
fn sweep(
    args: &SweepArgs,
    served: &Served<'_>,
    objective: &mut dyn Objective,
    search: &mut Search,
    journal: &mut Journal,
    progress: &Progress,
) -> Result<Outcome> {
    let mut sweeping = Sweeping::new(served.request, search, objective, journal);
    if args.serve {
        serve::serve(&mut sweeping, served, progress)?;
    } else {
        sweeping.search(&|points| served.predicted(points))?;
    }
    sweeping.finish()
}

impl SweepArgs {
    /// The flags with which a merge makes what was measured.
    fn merge_flags(&self) -> String {
        let Choices { seed, allow_crimes, truncate_embeddings, partly_held, .. } = self.common.choices();
        let flags = [
            (seed != 0, format!(" --random-seed {seed}")),
            (allow_crimes, " --allow-crimes".into()),
            (truncate_embeddings, " --unsafe-truncate-embeddings".into()),
            (partly_held == PartlyHeldPolicy::LeftOut, " --tensor-intersection".into()),
            (partly_held == PartlyHeldPolicy::Merged, " --tensor-union".into()),
        ];
        flags.into_iter().filter(|(is_set, _)| *is_set).map(|(_, flag)| flag).collect()
    }

    /// What is asked for, but for the names of what is measured.
    fn request(&self) -> Result<Request> {
        Ok(Request {
            space: read_space(&self.config)?,
            seed: self.common.choices().seed,
            weights: Vec::new(),
            tries: self.tries,
            together: self.together,
            confirm: self.confirm,
            seeds: self.seeds,
        })
    }

    /// The weight of each of what is measured: its name, and its file or the name again.
    fn weights<'n>(&self, measured: impl Iterator<Item = [&'n str; 2]>) -> Result<Vec<(String, f64)>> {
        let (names, files): (Vec<&str>, Vec<&str>) = measured.map(|[name, file]| (name, file)).unzip();
        let mut weights: Vec<(String, f64)> = names.iter().map(|name| ((*name).to_owned(), 1.0)).collect();
        for (name, weight) in &self.weights {
            // The name, the file's path, that without its folder, or without its ending too.
            let ways: [&dyn Fn(usize) -> bool; 4] = [
                &|place| names[place] == name,
                &|place| files[place] == name,
                &|place| file_of(names[place]) == name,
                &|place| file_of(names[place]).split('.').next() == Some(name),
            ];
            let meant = |is: &&dyn Fn(usize) -> bool| -> Vec<usize> {
                (0..names.len()).filter(|place| is(*place)).collect()
            };
            let meant = ways.iter().map(meant).find(|found| !found.is_empty()).unwrap_or_default();
            let [place] = meant[..] else {
                let hint = format!("what is measured: {}", escaped(&names.join(", ")));
                let what = if meant.is_empty() { "nothing is called so" } else { "several are called so" };
                return Err(Error::config(format!("--weight {}: {what}", escaped(name))).hint(hint));
            };
            weights[place].1 = *weight;
        }
        if weights.iter().all(|(_, weight)| *weight == 0.0) {
            return Err(Error::config("nothing counts").hint("give a --weight above 0"));
        }
        Ok(weights)
    }

    /// What of the flags changes candidates.
    fn fit_words(&self) -> String {
        let Choices { allow_crimes, truncate_embeddings, partly_held, .. } = self.common.choices();
        format!("{allow_crimes} {truncate_embeddings} {partly_held:?}")
    }

    /// Opens the journal, for measurements that depend on this.
    fn journal(&self, setup: &Json) -> Result<Journal> {
        fs::create_dir_all(&self.out).map_err(|cause| Error::writing(&self.out, &cause))?;
        Journal::open(&self.out.join(JOURNAL), setup, self.restart)
    }
}

/// The last part of a path.
fn file_of(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

fn by_texts(
    args: &SweepArgs,
    request: &mut Request,
    first: Prepared,
    (device, mut budget): (Device, Budget),
    progress: &Progress,
) -> Result<Found> {
    let choices = args.common.choices();
    let memory = args.common.run.host_memory.unwrap_or_else(|| half_of_memory(MEMORY));
    budget.host_bytes = MERGE_MEMORY.min(memory / MERGES_PART);
    let threads = budget.threads;
    let run = &args.common.run;
    // Each candidate of those that are read together has memory of a device for its merge; half is for reading.
    budget.device_bytes = DEVICE_MERGE_MEMORY.min(budget.device_bytes / 2 / request.together.max(1) as u64);
    let left = budget.device_bytes * request.together as u64;
    check_memory(&budget, &first, &device, memory)?;
    let machine = machine::beside_merges(&run.device, (run.device_memory, left), threads)?;
    let engine = Engine::new(device, budget, memory, machine);
    let first = Candidate::of(first, &engine, progress)?;
    run.hub.bring(&first.prepared, progress)?;
    first.prepared.plan.notes.iter().for_each(|note| show::note(note));
    let texts = args.texts.read()?;
    let sets = sets(&args.texts, &texts, &first)?;
    request.weights = args.weights(sets.iter().zip(&texts).map(|(set, of)| [&*set.name, &*of.file]))?;
    let by = measured_by(args, &texts, &sets, &engine.machine.id());
    let (heard, silent) = (Heard(progress), Silent(progress));
    let mut objective = ByTexts::new(&sets, args.try_tokens, choices, engine, &silent, &heard);
    // What is kept for predictions stays until the end, beside each candidate.
    let shared = objective.shared_memory(&first)?;
    let mut journal = args.journal(&setup(args, request, &first.prepared, &by)?)?;
    let mut search = Search::new(&request.space.knobs);
    let merges = Merges::of(request, search.pool(), &first.prepared, threads, progress)?;
    search.keep(merges.points.clone());
    let models =
        if args.no_predict { None } else { Opened::new(&merges, &sets, &objective, choices.remote)? };
    let options = predict::Options { groups: 1, top: TOP, memory: shared, threads };
    let readings = models.as_ref().map(Opened::readings);
    let tokens = objective.tokens();
    // Each seed is a candidate of its own.
    let [part, whole] = tokens.map(|tokens| merges.seeds * (tokens * (first.decoder().layers + 1)) as f64);
    let steps = part * request.tries as f64 + whole * request.confirm as f64;
    progress.expect_steps(steps as u64 + readings.as_ref().map_or(0, |of| Parents::steps(of, &options)));
    let prepared = first.into_prepared();
    let mut predictions = None;
    if let (Some(models), Some(readings)) = (&models, &readings) {
        let names: Vec<String> = sets.iter().map(|set| set.name.clone()).collect();
        match Parents::measure(readings, &names, &options, objective.machine(), &heard) {
            Ok(parents) => {
                objective.leave(parents.facts.kept_bytes);
                predictions = Some(Predictions::new(parents, models.names.clone(), prepared, threads));
            }
            Err(why) if why.exit_code() == 130 => return Err(why),
            Err(why) => show::note(&no_prediction(&why)),
        }
    }
    let predicted = predictions.as_ref().map_or_else(Vec::new, |of| of.of_merges(&merges.sums));
    if predictions.is_some() {
        let score = |losses: &Option<Vec<f64>>| losses.as_ref().map(|losses| request.score(losses));
        search.expect(&predicted.iter().map(score).collect::<Vec<_>>());
    }
    let (tokens, direction) = (Some(tokens), Direction::Minimize);
    let served = Served { request, predictions: predictions.as_ref(), tokens, direction };
    let outcome = sweep(args, &served, &mut objective, &mut search, &mut journal, progress)?;
    let flags = args.merge_flags();
    Ok(Found { search, outcome, predictions, predicted, tokens, direction, flags })
}

/// Refuses memory of which the part for merges is too small for one.
///
/// # Errors
/// Kind `Config`, with the memory that would be enough.
fn check_memory(budget: &Budget, first: &Prepared, device: &Device, memory: u64) -> Result<()> {
    let with = |host_bytes: u64| Budget { host_bytes, ..*budget }.limits(&first.plan, device);
    let (Err(why), Ok(_)) = (with(budget.host_bytes), with(MERGE_MEMORY)) else { return Ok(()) };
    let (mut least, mut enough) = (budget.host_bytes, MERGE_MEMORY);
    while enough - least > 1 {
        let middle = least.midpoint(enough);
        if with(middle).is_ok() { enough = middle } else { least = middle }
    }
    let (given, needed) = (bytes(memory), bytes(MERGES_PART * enough));
    let message =
        format!("--host-memory {given}: this sweep needs more than {needed}, a quarter of it for merges");
    Err(Error { message, ..why }
        .hint("give it more: by default a sweep has 2GiB, at most half of what is free"))
}

fn by_command(
    args: &SweepArgs,
    command: &str,
    request: &mut Request,
    first: &Prepared,
    (device, budget): (Device, Budget),
    progress: &Progress,
) -> Result<Found> {
    let choices = args.common.choices();
    args.common.run.hub.bring(first, progress)?;
    first.plan.notes.iter().for_each(|note| show::note(note));
    let metrics = if args.metrics.is_empty() { vec![ANY.to_owned()] } else { args.metrics.clone() };
    request.weights = args.weights(metrics.iter().map(|name| [&**name; 2]))?;
    let options = Options {
        out: folder_of_candidates(&args.out, output_bytes(first, true))?,
        device,
        budget,
        copy_tokenizer: true,
        model_card: false,
        inputs_hashed: false,
        reads: args.common.run.reads(first),
        cache: None,
        recall: false,
        stopped: Stopped::LeavesNothing,
    };
    let threads = options.budget.threads;
    let direction = if args.maximize { Direction::Maximize } else { Direction::Minimize };
    let silent = Silent(progress);
    let by = json!({ "command": command, "metrics": metrics, "maximize": args.maximize });
    let timeout = args.objective_timeout.map(Duration::from_secs);
    let mut objective = ByCommand::new(command, metrics, direction, timeout, choices, options, &silent)?;
    let mut search = Search::new(&request.space.knobs);
    let merges = Merges::of(request, search.pool(), first, threads, progress)?;
    search.keep(merges.points);
    // Each is tried on all that the program measures, so the most promising ones need no second look.
    let mut journal = args.journal(&setup(args, request, first, &by)?)?;
    let served = Served { request, predictions: None, tokens: None, direction };
    let outcome = sweep(args, &served, &mut objective, &mut search, &mut journal, progress)?;
    let (predictions, predicted, tokens, flags) = (None, Vec::new(), None, args.merge_flags());
    Ok(Found { search, outcome, predictions, predicted, tokens, direction, flags })
}

/// Where candidates of so many bytes lie while a program reads them: in memory, where that has room for one.
fn folder_of_candidates(out: &Path, bytes: u64) -> Result<PathBuf> {
    const MEMORY: &str = "/dev/shm";
    let free = rustix::fs::statvfs(MEMORY).map_or(0, |fs| fs.f_bavail.saturating_mul(fs.f_frsize));
    if free / 2 > bytes {
        return Ok(MEMORY.into());
    }
    // The program may work in another folder than this one.
    absolute(out).map_err(|cause| Error::writing(out, &cause))
}

/// What a merge in memory moves is no progress of its own.
struct Silent<'p>(&'p Progress);

impl Watch for Silent<'_> {
    fn moved(&self, _: u64, _: u64) {}

    fn stop(&self) -> bool {
        self.0.stop()
    }

    fn compiling(&self) {
        self.0.compiling();
    }

    fn less_memory(&self, why: &Error, asked: u64, used: u64) {
        self.0.less_memory(why, asked, used);
    }
}

/// The sets of texts, as the merge's tokenizer has them.
fn sets(args: &TextArgs, texts: &[Texts], first: &Candidate) -> Result<Vec<Set>> {
    let donor = first.prepared.donor();
    let runner = Runner::open(donor)?;
    let chat = args.chat.then(|| Chat::of(donor, &runner)).transpose()?;
    let cut = args.cut("the merge", first.decoder())?;
    let vocabulary = first.decoder().vocabulary;
    let of = |((place, set), name): ((usize, &Texts), String)| {
        if texts[..place].iter().any(|other| other.file == set.file) {
            return Err(Error::config(format!("{} is given twice", escaped(&set.file)))
                .hint("give each file once; --weight makes one count more"));
        }
        Ok(Set { name, windows: Windows::of(set, &runner, chat.as_ref(), cut, vocabulary)? })
    };
    texts.iter().enumerate().zip(names_of(texts)).map(of).collect()
}

/// The parents of merges, opened, with the windows that tries read.
struct Opened {
    names: Vec<String>,
    models: Vec<Model>,
    sets: Vec<Windows>,
}

impl Opened {
    /// Nothing where no merge is a sum of models; some note says why.
    fn new(merges: &Merges, sets: &[Set], objective: &ByTexts<'_>, remote: Remote) -> Result<Option<Self>> {
        let all = merges.sums.len();
        match merges.why_no_sum() {
            Some((why, count)) if count == all => {
                show::note(&no_prediction(why));
                return Ok(None);
            }
            Some((why, count)) => {
                let why = &why.message;
                show::note(&format!(
                    "no prediction for {count} of {all} points, which are tried without: {why}"
                ));
            }
            None => {}
        }
        let names = merges.models();
        let models =
            names.iter().map(|name| Model::new(prepare_model(name, remote)?)).collect::<Result<_>>()?;
        let of = |(set, windows): (&Set, Vec<_>)| Windows { windows, ..set.windows.clone() };
        let sets = sets.iter().zip(objective.windows_of_tries()).map(of).collect();
        Ok(Some(Self { names, models, sets }))
    }

    fn readings(&self) -> Vec<Reading<'_>> {
        self.models.iter().map(|model| Reading { model, sets: &self.sets }).collect()
    }
}

fn no_prediction(why: &Error) -> String {
    format!("no prediction, so that more tries are needed: {}", why.message)
}

/// All that a measurement depends on.
///
/// # Errors
/// Kind `Input`: a file cannot be read.
fn setup(args: &SweepArgs, request: &Request, first: &Prepared, by: &Json) -> Result<Json> {
    let identities: Vec<Json> = first.sources.iter().map(Source::identity).collect();
    Ok(json!({
        "fit": args.fit_words(),
        "mergeforge": env!("CARGO_PKG_VERSION"),
        "config": request.space.text(),
        "seed": request.seed,
        "models": identities,
        "files beside the weights": files_beside(first)?,
        "measured by": by,
    }))
}

/// The digests of the files beside the weights that merges or their measurements depend on: tokenizers of all models, and what a
/// candidate has from its donor.
fn files_beside(first: &Prepared) -> Result<Json> {
    let mut digests = serde_json::Map::new();
    let mut add = |called: String, file: &InputFile| {
        let mut hasher = blake3::Hasher::new();
        let read = hasher.update_reader(file.open()?.0).map(|_| ());
        read.map_err(|cause| Error::reading(&file.path(), &cause))?;
        digests.insert(called, hasher.finalize().to_hex().as_str().into());
        Ok(())
    };
    let names = [TOKENIZER, "tokenizer_config.json"];
    let names: Vec<&str> = names.iter().chain(OTHER_VOCABULARIES).copied().collect();
    for (number, source) in first.sources.iter().enumerate().filter(|(_, source)| source.is_folder()) {
        for name in names.iter().filter(|name| source.folder.has(name)) {
            add(format!("{name} of model {number}"), &source.folder.file(*name))?;
        }
    }
    for copied in &first.companions.copied {
        add(format!("{} of {}", copied.file, copied.model), &copied.original)?;
    }
    Ok(digests.into())
}

/// What texts are, how they are cut, and what reads them, so that others are noticed: losses differ in their last digits between
/// devices.
fn measured_by(args: &SweepArgs, texts: &[Texts], sets: &[Set], machine: &str) -> Json {
    let digest = |hasher: blake3::Hasher| hasher.finalize().to_hex().to_string();
    let of = |(texts, set): (&Texts, &Set)| {
        let mut hasher = blake3::Hasher::new();
        for part in texts.rows.iter().flat_map(|(before, counts)| [before, counts]) {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        json!({ "name": set.name, "blake3": digest(hasher) })
    };
    let mut tokens = blake3::Hasher::new();
    for window in sets.iter().flat_map(|set| &set.windows.windows) {
        tokens.update(&(window.tokens.len() as u64).to_le_bytes());
        tokens.update(&(window.counts_from as u64).to_le_bytes());
        for token in &window.tokens {
            tokens.update(&token.to_le_bytes());
        }
    }
    let mut by = args.texts.how();
    by.insert(TEXTS.into(), texts.iter().zip(sets).map(of).collect());
    by.insert(TOKENS.into(), digest(tokens).into());
    by.insert("--try-tokens".into(), args.try_tokens.into());
    by.insert("read on".into(), machine.into());
    by.into()
}

//! `mergeforge sweep`: flags, a table, JSON.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value as Json, json};

use super::eval::{Heard, MEMORY, TextArgs, figure};
use super::machine;
use super::progress::Progress;
use super::values::count;
use super::{CommonArgs, physical_bytes, show};
use crate::backend::device::Device;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::eval::{Chat, Model, Texts, Windows};
use crate::plan::{Choices, PartlyHeldPolicy};
use crate::predict::{self, Blend, Parents, Reading};
use crate::stream::{Budget, Watch};
use crate::sweep::{
    ANY, ByCommand, ByTexts, Candidate, Direction, Engine, Journal, Outcome, Page, Request, Round, Scores,
    Search, Set, run as sweep,
};
use crate::text::{cut_to, escaped};
use crate::tokenizer::Runner;
use crate::{Options, Prepared, output_bytes, prepare_config, prepare_model, read_space};

#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
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
    #[arg(long, value_name = "COMMAND")]
    objective_cmd: Option<String>,
    /// What of the program's JSON counts, like `medqa_4options.acc`; may be given several times [default: score, or the only number]
    #[arg(long = "metric", value_name = "NAME", requires = "objective_cmd")]
    metrics: Vec<String>,
    /// Higher numbers of the program are better: accuracies
    #[arg(long, requires = "objective_cmd")]
    maximize: bool,
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

fn weight(text: &str) -> std::result::Result<(String, f64), String> {
    let (name, number) = text.rsplit_once('=').unwrap_or((text, ""));
    match number.parse::<f64>() {
        Ok(number) if number.is_finite() && number >= 0.0 => Ok((name.to_owned(), number)),
        _ => Err("expected a name and a weight, like general.txt=0.5".into()),
    }
}

/// The file of what was measured.
const JOURNAL: &str = "sweep.jsonl";

/// The config of the winner.
const BEST: &str = "best.yml";

/// The page.
const PAGE: &str = "sweep.html";

/// Memory of the merge of a layer.
const MERGE_MEMORY: u64 = 256 << 20;

/// The same of a device, for each candidate.
const DEVICE_MERGE_MEMORY: u64 = 512 << 20;

/// Tokens of the vocabulary that are kept of each parent's predictions.
const TOP: usize = 64;

/// Sweeps, writes and reports.
pub(super) fn run(args: &SweepArgs) -> Result<()> {
    let progress = Progress::new(args.quiet)?;
    let mut request = args.request()?;
    let (device, budget) = args.common.run.device(!args.quiet, &|_| Ok(()))?;
    let found = match &args.objective_cmd {
        Some(command) => by_command(args, command, &mut request, device, budget, &progress),
        None => by_texts(args, &mut request, device, budget, &progress),
    };
    progress.finish();
    let found = found?;
    write_configs(&args.out, &request, &found, args)?;
    write_page(&args.out, &request, &found)?;
    if args.json {
        show::json(&as_json(&request, &found));
    } else {
        table(&args.out, &request, &found);
    }
    Ok(())
}

/// What came out.
struct Found {
    search: Search,
    outcome: Outcome,
    parents: Option<Parents>,
    /// Of each of the search's points the parents' coefficients, where they are predicted.
    merges: Vec<Vec<f64>>,
    threads: usize,
    /// Tokens that a try read, and all.
    tokens: Option<[usize; 2]>,
    direction: Direction,
    /// The flags with which a merge makes what was measured.
    flags: String,
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

    /// The weight of each of what is measured.
    fn weights(&self, names: impl Iterator<Item = String>) -> Result<Vec<(String, f64)>> {
        let mut weights: Vec<(String, f64)> = names.map(|name| (name, 1.0)).collect();
        for (name, weight) in &self.weights {
            let is_meant = |known: &String| known == name || known.split('.').next() == Some(name);
            let Some(known) = weights.iter_mut().find(|(known, _)| is_meant(known)) else {
                let known: Vec<&str> = weights.iter().map(|(known, _)| known.as_str()).collect();
                let hint = format!("what is measured: {}", escaped(&known.join(", ")));
                let message = format!("--weight {}: nothing is called so", escaped(name));
                return Err(Error::config(message).hint(hint));
            };
            known.1 = *weight;
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

/// The config in the middle of the space: what is wrong with any candidate is most likely wrong with that.
fn middle(request: &Request) -> Result<Config> {
    let middle: Vec<f64> = request.space.knobs.iter().map(crate::config::Knob::middle).collect();
    request.config(&middle)
}

fn by_texts(
    args: &SweepArgs,
    request: &mut Request,
    device: Device,
    mut budget: Budget,
    progress: &Progress,
) -> Result<Found> {
    let choices = args.common.choices();
    let memory = args.common.run.host_memory.unwrap_or_else(|| MEMORY.min(physical_bytes() / 2));
    budget.host_bytes = MERGE_MEMORY.min(memory / 4);
    let threads = budget.threads;
    let run = &args.common.run;
    // Each candidate of those that are read together has memory of a device for its merge; half is for reading.
    budget.device_bytes = DEVICE_MERGE_MEMORY.min(budget.device_bytes / 2 / request.together.max(1) as u64);
    let left = budget.device_bytes * request.together as u64;
    let machine = machine::open(&run.device, (run.device_memory, left), threads)?;
    let engine = Engine::new(device, budget, memory, machine);
    let first = Candidate::open(middle(request)?, &choices, &engine, progress)?;
    first.prepared.plan.notes.iter().for_each(|note| show::note(note));
    let sets = sets(&args.texts, &first)?;
    request.weights = args.weights(sets.iter().map(|set| set.name.clone()))?;
    for set in &sets {
        engine.plan(&first, &set.windows.windows, request.together)?;
    }
    let mut journal =
        args.journal(&setup(args, request, &first.prepared, &texts_of(&sets, args.try_tokens)))?;
    let (heard, silent) = (Heard(progress), Silent(progress));
    let mut objective = ByTexts::new(&sets, args.try_tokens, choices, engine, &silent, &heard);
    let mut search = Search::new(&request.space.knobs);
    let blends = feasible(request, &mut search, &first.prepared, progress)?;
    let models = match blends.as_ref().map(|blends| Opened::new(blends, &sets, objective.windows_of_tries()))
    {
        _ if args.no_predict => None,
        Ok(models) => Some(models?),
        Err(why) => {
            show::note(&no_prediction(why));
            None
        }
    };
    let options = predict::Options { groups: 1, top: TOP, memory, threads };
    let readings = models.as_ref().map(Opened::readings);
    let [part, whole] = objective.tokens().map(|tokens| tokens * (first.decoder().layers + 1));
    let steps = part * request.tries + whole * request.confirm;
    progress.expect_steps(steps as u64 + readings.as_ref().map_or(0, |of| Parents::steps(of, &options)));
    let mut merges = Vec::new();
    let mut parents = None;
    if let (Some(models), Some(readings), Ok(blends)) = (&models, &readings, &blends) {
        let names: Vec<String> = sets.iter().map(|set| set.name.clone()).collect();
        match Parents::measure(readings, &names, &options, objective.machine(), &heard) {
            Ok(measured) => {
                let of = |blend: &Blend| blend.coefficients(&models.names, &measured.groups).values;
                merges = blends.iter().map(of).collect();
                search.expect(scores(request, &losses(&measured, &merges, threads)));
                objective.leave(measured.facts.kept_bytes);
                parents = Some(measured);
            }
            Err(why) if why.exit_code() == 130 => return Err(why),
            Err(why) => show::note(&no_prediction(&why)),
        }
    }
    drop(first);
    let outcome = sweep(request, &search, &mut objective, &mut journal)?;
    let tokens = Some(objective.tokens());
    Ok(Found {
        search,
        outcome,
        parents,
        merges,
        threads,
        tokens,
        direction: Direction::Minimize,
        flags: args.merge_flags(),
    })
}

fn by_command(
    args: &SweepArgs,
    command: &str,
    request: &mut Request,
    device: Device,
    budget: Budget,
    progress: &Progress,
) -> Result<Found> {
    let choices = args.common.choices();
    let first = prepare_config(middle(request)?, &choices)?;
    first.plan.notes.iter().for_each(|note| show::note(note));
    let metrics = if args.metrics.is_empty() { vec![ANY.to_owned()] } else { args.metrics.clone() };
    request.weights = args.weights(metrics.iter().cloned())?;
    let options = Options {
        out: candidate_folder(&args.out, output_bytes(&first, true)),
        device,
        budget,
        copy_tokenizer: true,
        model_card: false,
        reads: args.common.run.reads(&first),
        cache: None,
        recall: false,
    };
    let direction = if args.maximize { Direction::Maximize } else { Direction::Minimize };
    let silent = Silent(progress);
    let by = json!({ "command": command, "metrics": metrics, "maximize": args.maximize });
    let mut objective = ByCommand::new(command, metrics, direction, choices, options, &silent)?;
    // Each is tried on all that the program measures, so the most promising ones need no second look.
    let mut journal = args.journal(&setup(args, request, &first, &by))?;
    let search = Search::new(&request.space.knobs);
    let outcome = sweep(request, &search, &mut objective, &mut journal)?;
    Ok(Found {
        search,
        outcome,
        parents: None,
        merges: Vec::new(),
        threads: 1,
        tokens: None,
        direction,
        flags: args.merge_flags(),
    })
}

/// Where a candidate of so many bytes lies while a program reads it: in memory, where that has room for it.
fn candidate_folder(out: &Path, bytes: u64) -> PathBuf {
    const MEMORY: &str = "/dev/shm";
    let free = rustix::fs::statvfs(MEMORY).map_or(0, |fs| fs.f_bavail.saturating_mul(fs.f_frsize));
    if free / 2 > bytes {
        Path::new(MEMORY).join(format!("mergeforge-sweep-{}", std::process::id()))
    } else {
        out.join("candidate")
    }
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
fn sets(args: &TextArgs, first: &Candidate) -> Result<Vec<Set>> {
    let texts = args.read()?;
    let donor = first.prepared.donor();
    let runner = Runner::open(donor)?;
    let chat = args.chat.then(|| Chat::of(donor, &runner)).transpose()?;
    let cut = args.cut("the merge", first.decoder())?;
    let vocabulary = first.decoder().vocabulary;
    let of = |texts: &Texts| {
        let windows = Windows::of(texts, &runner, chat.as_ref(), cut, vocabulary)?;
        Ok(Set { name: texts.name.clone(), windows })
    };
    texts.iter().map(of).collect()
}

/// The parents of merges, opened, with the windows that tries read.
struct Opened {
    names: Vec<String>,
    models: Vec<Model>,
    sets: Vec<Windows>,
}

impl Opened {
    fn new(blends: &[Blend], sets: &[Set], tries: Vec<Vec<crate::eval::Window>>) -> Result<Self> {
        let mut names: Vec<String> = Vec::new();
        for name in blends.iter().flat_map(|blend| &blend.models) {
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
        let models = names.iter().map(|name| Model::new(prepare_model(name)?)).collect::<Result<_>>()?;
        let of = |(set, windows): (&Set, Vec<_>)| Windows { windows, ..set.windows.clone() };
        let sets = sets.iter().zip(tries).map(of).collect();
        Ok(Self { names, models, sets })
    }

    fn readings(&self) -> Vec<Reading<'_>> {
        self.models.iter().map(|model| Reading { model, sets: &self.sets }).collect()
    }
}

fn no_prediction(why: &Error) -> String {
    format!("no prediction, so that more tries are needed: {}", why.message)
}

/// Leaves out points that make no merge, and finds what the others are as sums of their models.
///
/// # Errors
/// None of them makes one, or the user wishes to stop. Within: why some are no sums.
fn feasible(
    request: &Request,
    search: &mut Search,
    first: &Prepared,
    progress: &Progress,
) -> Result<std::result::Result<Vec<Blend>, Error>> {
    let (mut kept, mut blends, mut refused) = (Vec::new(), Ok(Vec::new()), None);
    for point in search.pool() {
        if Watch::stop(progress) {
            return Err(Error::interrupted());
        }
        let plan = request.config(point).and_then(|config| first.planned(&config));
        match plan {
            Ok(plan) => {
                kept.push(point.clone());
                if let Ok(known) = &mut blends {
                    match Blend::of(&plan, &first.sources) {
                        Ok(blend) => known.push(blend),
                        Err(why) => blends = Err(why),
                    }
                }
            }
            Err(why) => refused = Some(why),
        }
    }
    match refused {
        Some(why) if kept.is_empty() => return Err(why),
        _ => search.keep(kept),
    }
    Ok(blends)
}

/// What is predicted for merges, by set.
fn losses(parents: &Parents, merges: &[Vec<f64>], threads: usize) -> Vec<Vec<f64>> {
    let of = |set| parents.losses(set, merges, threads).into_iter().map(|estimate| estimate.loss).collect();
    (0..parents.sets.len()).map(of).collect()
}

/// The scores of losses by set.
fn scores(request: &Request, losses: &[Vec<f64>]) -> Vec<f64> {
    let count = losses.first().map_or(0, Vec::len);
    let of = |merge: usize| request.score(&losses.iter().map(|of| of[merge]).collect::<Vec<f64>>());
    (0..count).map(of).collect()
}

/// All that a measurement depends on.
fn setup(args: &SweepArgs, request: &Request, first: &Prepared, by: &Json) -> Json {
    let identities: Vec<Json> =
        first.sources.iter().map(|source| source.identity()["files"].clone()).collect();
    json!({
        "fit": args.fit_words(),
        "mergeforge": env!("CARGO_PKG_VERSION"),
        "config": request.space.text(),
        "seed": request.seed,
        "models": identities,
        "measured by": by,
    })
}

/// What texts are, so that others are noticed.
fn texts_of(sets: &[Set], try_tokens: usize) -> Json {
    let of = |set: &Set| {
        let mut hasher = blake3::Hasher::new();
        for window in &set.windows.windows {
            hasher.update(&(window.tokens.len() as u64).to_le_bytes());
            hasher.update(&(window.counts_from as u64).to_le_bytes());
            for token in &window.tokens {
                hasher.update(&token.to_le_bytes());
            }
        }
        json!({ "name": set.name, "blake3": hasher.finalize().to_hex().as_str() })
    };
    json!({ "texts": sets.iter().map(of).collect::<Vec<_>>(), "try_tokens": try_tokens })
}

/// Writes the configs of the winner and of the front.
fn write_configs(out: &Path, request: &Request, found: &Found, args: &SweepArgs) -> Result<()> {
    let outcome = &found.outcome;
    let sign = if found.direction == Direction::Maximize { -1.0 } else { 1.0 };
    let write = |name: &str, text: &str| {
        let path = out.join(name);
        fs::write(&path, text).map_err(|cause| Error::writing(&path, &cause))
    };
    let config = |place: usize| {
        let point = &outcome.points[place];
        let scores = point.whole.as_ref().expect("it was measured on all texts");
        let named = request.weights.iter().zip(&scores.losses);
        let losses: Vec<String> =
            named.map(|((name, _), loss)| format!("{name} {:.4}", sign * loss)).collect();
        format!(
            "# {}: {}\n# {}\n{}",
            args.config.display(),
            request.space.words(&point.values),
            losses.join(", "),
            request.space.fill(&point.values)
        )
    };
    write(BEST, &config(outcome.best))?;
    // Those of an earlier, longer front would look like this one's.
    for number in 1.. {
        let path = out.join(front(number));
        if fs::remove_file(&path).is_err() {
            break;
        }
    }
    if request.weights.len() > 1 {
        for (number, place) in outcome.front.iter().enumerate() {
            write(&front(number + 1), &config(*place))?;
        }
    }
    Ok(())
}

/// The file of a config that no other beats on every set.
fn front(number: usize) -> String {
    format!("front-{number}.yml")
}

/// Writes the page.
fn write_page(out: &Path, request: &Request, found: &Found) -> Result<()> {
    let Found { search, outcome, parents, merges, threads, tokens, direction, .. } = found;
    let predicted = parents.as_ref().map_or_else(Vec::new, |parents| losses(parents, merges, *threads));
    let (candidates, seconds) = outcome.measured;
    let mut notes = Vec::new();
    if let Some([part, all]) = tokens {
        notes.push(format!("A try reads {part} tokens, the most promising candidates read all {all}."));
    }
    if candidates > 0 {
        notes.push(format!("{candidates} candidates were measured in {seconds:.1} s."));
    }
    let maximize = *direction == Direction::Maximize;
    let page = Page {
        request,
        search,
        outcome,
        what: if tokens.is_some() { "loss, nats a token" } else { "score" },
        sign: if maximize { -1.0 } else { 1.0 },
        predicted,
        round: parents.as_ref().map_or_else(Round::default, |parents| round(parents, *threads)),
        notes,
    };
    let path = out.join(PAGE);
    fs::write(&path, page.html()).map_err(|cause| Error::writing(&path, &cause))
}

/// Steps from one model to the next.
const STEPS: usize = 20;

/// What is predicted on the way from the first parent to the second, the third and back.
fn round(parents: &Parents, threads: usize) -> Round {
    if parents.count() < 3 {
        return Round::default();
    }
    // The coefficients of the second and the third; the first has what is left.
    let corner = |number: usize| [f64::from(u8::from(number == 1)), f64::from(u8::from(number == 2))];
    let at = |step: usize| {
        let ([a, b], [c, d]) = (corner(step / STEPS % 3), corner((step / STEPS + 1) % 3));
        let share = (step % STEPS) as f64 / STEPS as f64;
        let mut merge = vec![0.0; parents.count() - 1];
        (merge[0], merge[1]) = (a + share * (c - a), b + share * (d - b));
        merge
    };
    let merges: Vec<Vec<f64>> = (0..=3 * STEPS).map(at).collect();
    let points = |losses: Vec<f64>| {
        losses.into_iter().enumerate().map(|(step, loss)| (step as f64 / STEPS as f64, loss)).collect()
    };
    let sets = parents.sets.iter().cloned().zip(losses(parents, &merges, threads).into_iter().map(points));
    let short = |name: &String| super::eval::short(name).to_owned();
    let names = parents.names.iter().take(3).chain(&parents.names[..1]).map(short).collect();
    Round { names, sets: sets.collect() }
}

/// A row of the table.
fn row(words: &str, numbers: [Option<f64>; 3], losses: &[f64]) -> String {
    let number = |number: Option<f64>| number.map_or_else(String::new, |number| format!("{number:.4}"));
    let [predicted, tried, whole] = numbers.map(number);
    let mut row = format!("{:<52} {predicted:>9} {tried:>9} {whole:>9}", cut_to(words, 52));
    losses.iter().for_each(|loss| row += &format!(" {loss:>14.4}"));
    row
}

fn table(out: &Path, request: &Request, found: &Found) {
    let Found { search, outcome, parents, tokens, direction, .. } = found;
    let sign = if *direction == Direction::Maximize { -1.0 } else { 1.0 };
    let signed = |losses: &[f64]| losses.iter().map(|loss| sign * loss).collect::<Vec<f64>>();
    let what = if tokens.is_some() { "loss in nats a token" } else { "" };
    let mut head = format!("{what:<52} {:>9} {:>9} {:>9}", "predicted", "try", "all");
    request.weights.iter().for_each(|(name, _)| head += &format!(" {:>14}", cut_to(&escaped(name), 14)));
    show::line(&head);
    for parent in 0..parents.as_ref().map_or(0, Parents::count) {
        let parents = parents.as_ref().expect("there are some");
        let of = |set| parents.loss_of_parent(set, parent).loss;
        let losses: Vec<f64> = (0..request.weights.len()).map(of).collect();
        show::line(&row(
            &escaped(&parents.names[parent]),
            [None, Some(request.score(&losses)), None],
            &losses,
        ));
    }
    for (place, point) in outcome.points.iter().enumerate() {
        let mark = if place == outcome.best { "* " } else { "  " };
        let words = mark.to_owned() + &request.space.words(&point.values);
        let predicted = parents.as_ref().map(|_| search.prior(&point.values));
        let score = |scores: &Option<Scores>| scores.as_ref().map(|scores| sign * scores.score);
        let losses =
            point.whole.as_ref().or(point.tried.as_ref()).map_or(Vec::new(), |of| signed(&of.losses));
        show::line(&row(&words, [predicted, score(&point.tried), score(&point.whole)], &losses));
    }
    let (candidates, seconds) = outcome.measured;
    let pace = figure(candidates as f64 / seconds.max(1e-9) * 3600.0);
    let read = tokens.map_or_else(String::new, |[part, all]| format!("a try reads {part} tokens of {all}; "));
    if candidates > 0 {
        show::line(&format!("{read}{candidates} candidates measured in {seconds:.1} s, {pace} an hour"));
    }
    let best = request.space.words(&outcome.points[outcome.best].values);
    show::line(&format!(
        "the best: {best} (mergeforge merge {} OUT{} makes it)",
        out.join(BEST).display(),
        found.flags
    ));
}

fn as_json(request: &Request, found: &Found) -> Json {
    let Found { search, outcome, parents, tokens, direction, .. } = found;
    let sign = if *direction == Direction::Maximize { -1.0 } else { 1.0 };
    let signed = |losses: &[f64]| losses.iter().map(|loss| sign * loss).collect::<Vec<f64>>();
    let scores = |scores: &Option<Scores>| {
        scores.as_ref().map(|scores| {
            json!({
                "score": sign * scores.score,
                "values": signed(&scores.losses),
                "standard_errors": scores.errors,
                "spread_over_seeds": scores.spread,
            })
        })
    };
    let points = outcome.points.iter().enumerate().map(|(place, point)| {
        let knobs = request.space.knobs.iter().zip(&point.values);
        let values: serde_json::Map<String, Json> =
            knobs.map(|(knob, value)| (knob.name.clone(), knob.json(*value))).collect();
        json!({
            "values": values,
            "predicted": parents.as_ref().map(|_| search.prior(&point.values)),
            "try": scores(&point.tried),
            "all": scores(&point.whole),
            "on_front": outcome.front.contains(&place),
        })
    });
    let (candidates, seconds) = outcome.measured;
    let measured = request.weights.iter().map(|(name, weight)| json!({ "name": name, "weight": weight }));
    json!({
        "measured": measured.collect::<Vec<_>>(),
        "points": points.collect::<Vec<_>>(),
        "best": outcome.best,
        "try_tokens": tokens.map(|[part, _]| part),
        "tokens": tokens.map(|[_, all]| all),
        "candidates_measured": candidates,
        "seconds": seconds,
        "candidates_an_hour": candidates as f64 / seconds.max(1e-9) * 3600.0,
    })
}

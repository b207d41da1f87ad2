//! `mergeforge eval`: flags, a table, JSON.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::{ArgGroup, Args};
use serde_json::{Map, Value as Json, json};

use super::machine::MachineArgs;
use super::progress::Progress;
use super::resources::half_of_memory;
use super::show;
use super::values::{SETS, WorkArgs, size};
use crate::decoder::{Decoder, Machine};
use crate::error::{Error, Result};
use crate::eval::{Chat, Cut, Form, Listen, Model, Plan, Prompt, Score, Texts, Windows, losses};
use crate::hub::Remote;
use crate::prepare_model;
use crate::stream::Watch;
use crate::text::{bytes, cut_to, escaped, labels};
use crate::tokenizer::Runner;

#[derive(Debug, Args)]
#[command(override_usage = "mergeforge eval <MODEL>... [OPTIONS] --text <FILE>...")]
pub(super) struct EvalArgs {
    /// The models, as in a config: folders, or names on the Hugging Face Hub, perhaps with @revision and +ADAPTER
    #[arg(required = true, value_name = "MODEL")]
    models: Vec<String>,
    #[command(flatten)]
    texts: TextArgs,
    #[command(flatten)]
    machine: MachineArgs,
    /// Memory for states and logits [default: 2GiB, at most half of what is free]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    host_memory: Option<u64>,
    #[command(flatten)]
    work: WorkArgs,
}

/// What is read, and how.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new(SETS).args(["text", "qa", "abstracts"]).multiple(true))]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub(super) struct TextArgs {
    /// A file of text (.txt), or with an object {"text": …} a line (.jsonl); may be given several times
    #[arg(long, value_name = "FILE", num_args = 1..)]
    text: Vec<PathBuf>,
    /// Questions with answers, {"question": …, "answer": …} a line: only the answers count
    #[arg(long, value_name = "FILE", num_args = 1..)]
    qa: Vec<PathBuf>,
    /// Texts with their abstracts, {"text": …, "abstract": …} a line: only the abstracts count
    #[arg(long = "abstract", value_name = "FILE", num_args = 1..)]
    abstracts: Vec<PathBuf>,
    /// The most tokens that are read together [default: 2048, or fewer where the model was made for fewer]
    #[arg(long, value_name = "TOKENS", value_parser = window, requires = SETS)]
    window: Option<usize>,
    /// The tokens from one window of a text to the next; where they overlap, tokens count once, with more before them [default:
    /// the window]
    #[arg(long, value_name = "TOKENS", value_parser = stride, requires = "text")]
    stride: Option<usize>,
    /// Take each line of a .txt file as a text of its own
    #[arg(long, requires = "text")]
    lines: bool,
    /// Read all texts of a file of --text as one, so that windows are full
    #[arg(long, requires = "text")]
    packed: bool,
    /// Put the tokens that begin and end a text around each of --text, where the tokenizer does not
    #[arg(long, requires = "text")]
    frame: bool,
    /// Ask as the model's chat template has it
    #[arg(long, requires = SETS)]
    pub(super) chat: bool,
    /// What is made of a line of --qa: its fields in braces, the one that counts at the end [default: "Question: {question}\nAnswer:
    /// {answer}", with --chat "{question}{answer}"]
    #[arg(long, value_name = "TEXT", value_parser = prompt, requires = "qa")]
    qa_prompt: Option<Prompt>,
    /// The same of --abstract [default: "{text}\n\nAbstract: {abstract}", with --chat "Write an abstract of this text.\n\n{text}{abstract}"]
    #[arg(long, value_name = "TEXT", value_parser = prompt, requires = "abstracts")]
    abstract_prompt: Option<Prompt>,
}

/// At least a token, and another that it leads to.
fn window(text: &str) -> std::result::Result<usize, String> {
    tokens(text, 2)
}

fn stride(text: &str) -> std::result::Result<usize, String> {
    tokens(text, 1)
}

fn tokens(text: &str, least: usize) -> std::result::Result<usize, String> {
    const MOST: usize = 1 << 20;
    let tokens = text.parse().ok().filter(|tokens| (least..=MOST).contains(tokens));
    tokens.ok_or_else(|| format!("expected a number of tokens from {least} to {MOST}"))
}

/// A prompt as it is typed, where `\n` is a new line.
fn prompt(text: &str) -> std::result::Result<Prompt, String> {
    let prompt = Prompt::parse(&text.replace("\\n", "\n")).map_err(|error| error.message)?;
    match prompt.fields() {
        1 => {
            Err("it has one field, of which all would count: give two or more, and the one that counts last"
                .into())
        }
        _ => Ok(prompt),
    }
}

/// The window where neither the user nor the model asks for a smaller one.
const WINDOW: usize = 2048;

/// The window of a model where the user asks for none.
pub(super) fn usual_window(decoder: &Decoder) -> usize {
    decoder.positions.map_or(WINDOW, |longest| WINDOW.min(longest))
}

impl TextArgs {
    /// Whether there is nothing to read.
    pub(super) fn is_empty(&self) -> bool {
        [&self.text, &self.qa, &self.abstracts].iter().all(|files| files.is_empty())
    }

    /// The sets, read.
    pub(super) fn read(&self) -> Result<Vec<Texts>> {
        let of = |files: &[PathBuf], form: Form, own: &Option<Prompt>| {
            let prompt = own.clone().unwrap_or_else(|| Prompt::usual(form, self.chat));
            files.iter().map(|file| Texts::read(file, form, &prompt)).collect::<Result<Vec<_>>>()
        };
        let plain = of(&self.text, Form::Text { by_line: self.lines }, &None)?;
        let qa = of(&self.qa, Form::Qa, &self.qa_prompt)?;
        let abstracts = of(&self.abstracts, Form::Abstract, &self.abstract_prompt)?;
        let all: Vec<Texts> = plain.into_iter().chain(qa).chain(abstracts).collect();
        if all.is_empty() {
            let hint = "give --text FILE, --qa FILE.jsonl or --abstract FILE.jsonl, each as often as wanted";
            return Err(Error::config("there is nothing to read").hint(hint));
        }
        Ok(all)
    }

    /// How texts are read, as the flags say it, by their names.
    pub(super) fn how(&self) -> Map<String, Json> {
        let prompt = |of: &Option<Prompt>| of.as_ref().map(Prompt::written).map(str::to_owned);
        let how: [(&str, Json); 8] = [
            ("--window", self.window.into()),
            ("--stride", self.stride.into()),
            ("--lines", self.lines.into()),
            ("--packed", self.packed.into()),
            ("--frame", self.frame.into()),
            ("--chat", self.chat.into()),
            ("--qa-prompt", prompt(&self.qa_prompt).into()),
            ("--abstract-prompt", prompt(&self.abstract_prompt).into()),
        ];
        how.into_iter().map(|(flag, value)| (flag.to_owned(), value)).collect()
    }

    /// How texts are cut for a model, and what is to say of that.
    pub(super) fn cut(&self, name: &str, decoder: &Decoder) -> Result<Cut> {
        let longest = decoder.positions.unwrap_or(WINDOW);
        let window = self.window.unwrap_or_else(|| usual_window(decoder));
        if let Some(most) = decoder.longest_text().filter(|most| window > *most) {
            let message = format!(
                "--window {window}: {name} turns texts of more than {most} tokens by positions that change"
            );
            return Err(Error::config(message).hint(format!("set --window {most} or less")));
        }
        if window > longest {
            let note = format!("{name} was made for texts of {longest} tokens, fewer than --window {window}");
            show::note(&note);
        }
        let stride = self.stride.unwrap_or(window);
        if stride > window {
            let message = format!(
                "--stride {stride} is more than the window of {window} tokens: texts would have gaps"
            );
            return Err(Error::config(message).hint("set a --stride of at most the window"));
        }
        Ok(Cut { window, stride, packed: self.packed, framed: self.frame })
    }
}

/// Shows progress, and hears of the request to stop.
pub(super) struct Heard<'p>(pub(super) &'p Progress);

impl Listen for Heard<'_> {
    fn advanced(&self, tokens: usize) {
        self.0.moved(0, tokens as u64);
    }

    fn stop(&self) -> bool {
        self.0.stop()
    }
}

/// A set as a model reads it.
struct Read {
    windows: Windows,
    score: Score,
}

/// A model, and what it made of all sets.
struct Evaluated {
    name: String,
    cut: Cut,
    sets: Vec<Read>,
    memory: u64,
    passes: usize,
    took: Duration,
}

impl Evaluated {
    fn tokens_per_s(&self) -> f64 {
        self.sets.iter().map(|set| set.score.tokens).sum::<usize>() as f64 / self.took.as_secs_f64()
    }
}

/// Reads all sets with all models, and reports.
pub(super) fn run(args: &EvalArgs) -> Result<()> {
    let progress = Progress::new(args.work.quiet)?;
    let texts = args.texts.read()?;
    // All models are opened before the first is read.
    let open = |name: &String| open(name, &texts, &args.texts, args.work.hub.remote());
    let models = args.models.iter().map(open).collect::<Result<Vec<_>>>()?;
    let threads = args.work.threads();
    let memory = memory(args.host_memory);
    let mut machine = args.machine.open(threads)?;
    let planned = |machine: &dyn Machine| -> Result<Vec<Vec<Plan>>> {
        let of = |(model, _, windows): &(Model, Cut, Vec<Windows>)| {
            windows.iter().map(|set| Plan::of(&model.decoder, &set.windows, machine, memory)).collect()
        };
        models.iter().map(of).collect()
    };
    let plans = match planned(&*machine) {
        Ok(plans) => plans,
        Err(why) => {
            machine = args.machine.instead_of(&*machine, why, threads)?;
            planned(&*machine)?
        }
    };
    args.work.hub.bring_all(models.iter().flat_map(|(model, ..)| &model.sources), &progress)?;
    let steps = models.iter().zip(&plans).flat_map(|((model, _, windows), plans)| {
        windows.iter().zip(plans).map(|(set, plan)| plan.steps(&model.decoder, &set.windows))
    });
    progress.expect_steps(steps.sum());
    let mut found = Vec::new();
    for ((model, cut, windows), plans) in models.into_iter().zip(plans) {
        model.notes.iter().for_each(|note| show::note(note));
        let begun = Instant::now();
        let heard = Heard(&progress);
        let mut sets = Vec::new();
        for (windows, plan) in windows.into_iter().zip(&plans) {
            let mut reader = model.reader(threads, &heard);
            let (decoder, windows_of) = (&model.decoder, &windows.windows);
            let losses = losses(&model.name, decoder, windows_of, plan, &mut reader, &mut *machine, &heard)?;
            let score = Score::of(&windows, &losses);
            sets.push(Read { windows, score });
        }
        let memory = plans.iter().map(|plan| plan.bytes).max().unwrap_or(0);
        let passes = plans.iter().map(|plan| plan.passes.len()).sum();
        found.push(Evaluated { name: model.name, cut, sets, memory, passes, took: begun.elapsed() });
    }
    progress.finish();
    if args.work.json {
        show::json(&as_json(&texts, &found, &args.texts, &machine.id()));
    } else {
        table(&texts, &found, &machine.id());
    }
    Ok(())
}

/// What reading texts may take where nothing else is asked for.
pub(super) const MEMORY: u64 = 2 << 30;

/// What reading texts may take, in bytes.
pub(super) fn memory(given: Option<u64>) -> u64 {
    given.unwrap_or_else(|| half_of_memory(MEMORY))
}

/// Whether it is a file of YAML.
fn is_config(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending == "yml" || ending == "yaml") && path.is_file()
}

/// A model, how texts are cut for it, and its windows of each set.
pub(super) fn open(
    name: &str,
    texts: &[Texts],
    args: &TextArgs,
    remote: Remote,
) -> Result<(Model, Cut, Vec<Windows>)> {
    if is_config(Path::new(name)) {
        let called = escaped(name);
        let hint = format!(
            "`mergeforge merge {called} OUT` makes one; of sums of models `mergeforge predict {called}` needs none"
        );
        return Err(Error::config(format!("{called} is a config, and no model's folder")).hint(hint));
    }
    let model = Model::new(prepare_model(name, remote)?)?;
    let runner = Runner::open(model.folder())?;
    let chat = args.chat.then(|| Chat::of(model.folder(), &runner)).transpose()?;
    let cut = args.cut(&model.name, &model.decoder)?;
    let of = |texts: &Texts| Windows::of(texts, &runner, chat.as_ref(), cut, model.decoder.vocabulary);
    let windows = texts.iter().map(of).collect::<Result<Vec<_>>>()?;
    Ok((model, cut, windows))
}

/// What sets are called: by their files' names, and where these are the same by more of the paths.
pub(super) fn names_of(texts: &[Texts]) -> Vec<String> {
    labels(&texts.iter().map(|texts| &*texts.file).collect::<Vec<_>>())
}

/// The column of names, in characters: longer ones are cut, where what tells them apart may be.
pub(super) fn wide(names: &[String]) -> usize {
    names.iter().map(|name| name.chars().count()).max().unwrap_or(0).clamp(32, 72)
}

fn table(texts: &[Texts], models: &[Evaluated], machine: &str) {
    let names: Vec<&str> = models.iter().map(|model| &*model.name).collect();
    let names: Vec<String> = labels(&names).iter().map(|name| escaped(name)).collect();
    let wide = wide(&names);
    for ((number, texts), called) in texts.iter().enumerate().zip(names_of(texts)) {
        let set = &models[0].sets[number].windows;
        let counts = match texts.form {
            Form::Text { .. } => "",
            Form::Qa => ", answers count",
            Form::Abstract => ", abstracts count",
        };
        show::line(&format!(
            "{} ({} {}{counts})",
            escaped(&called),
            set.texts,
            if set.texts == 1 { "text" } else { "texts" }
        ));
        show::line(&format!(
            "  {:<wide$} {:>9} {:>11} {:>8} {:>11} {:>9}",
            "model", "tokens", "perplexity", "±", "per word", "bits/byte"
        ));
        for (model, name) in models.iter().zip(&names) {
            let Read { score, windows } = &model.sets[number];
            let spread = score.perplexity() * score.error;
            show::line(&format!(
                "  {:<wide$} {:>9} {:>11} {:>8} {:>11} {:>9.4}",
                cut_to(name, wide),
                score.counted,
                figure(score.perplexity()),
                if spread.is_finite() { figure(spread) } else { "–".into() },
                figure(score.word_perplexity()),
                score.bits_per_byte(),
            ));
            if windows.shortened > 0 {
                show::line(&format!(
                    "  {:<wide$} {} texts are longer than a window and were cut",
                    "", windows.shortened
                ));
            }
        }
    }
    for (model, name) in models.iter().zip(&names) {
        let Cut { window, stride, packed, framed } = model.cut;
        let overlap = if stride < window {
            format!("a new one every {stride} tokens")
        } else {
            "which do not overlap".into()
        };
        let packed = if packed { ", texts of a file as one" } else { "" };
        let framed = if framed { ", framed" } else { "" };
        show::line(&format!(
            "{}: windows of {window} tokens, {overlap}{packed}{framed}; {} of memory, {} pass{} over the weights, {:.0} tokens/s on {machine}",
            name,
            bytes(model.memory),
            model.passes,
            if model.passes == 1 { "" } else { "es" },
            model.tokens_per_s(),
        ));
    }
}

/// A number of about four digits.
pub(super) fn figure(number: f64) -> String {
    match number.abs() {
        1e9.. => format!("{number:.3e}"),
        1000.0.. => format!("{number:.0}"),
        100.0.. => format!("{number:.1}"),
        10.0.. => format!("{number:.2}"),
        _ => format!("{number:.3}"),
    }
}

fn as_json(texts: &[Texts], models: &[Evaluated], args: &TextArgs, machine: &str) -> Json {
    let of_model = |model: &Evaluated| {
        let sets = texts.iter().zip(&model.sets).map(|(texts, Read { windows, score })| {
            let mut set = json!({
                "name": texts.name,
                "file": texts.file,
                "kind": texts.form.name(),
                "texts": windows.texts,
                "windows": windows.windows.len(),
                "shortened_texts": windows.shortened,
                "counted_words": windows.words,
                "counted_bytes": windows.bytes,
            });
            let scores = score.json();
            let into = set.as_object_mut().expect("it is an object");
            into.extend(scores.as_object().expect("it is an object").clone());
            set
        });
        json!({
            "model": model.name,
            "window": model.cut.window,
            "stride": model.cut.stride,
            "packed": model.cut.packed,
            "framed": model.cut.framed,
            "chat": args.chat,
            "device": machine,
            "memory_bytes": model.memory,
            "passes": model.passes,
            "seconds": model.took.as_secs_f64(),
            "tokens_per_second": model.tokens_per_s(),
            "sets": sets.collect::<Vec<_>>(),
        })
    };
    json!({ "models": models.iter().map(of_model).collect::<Vec<_>>() })
}

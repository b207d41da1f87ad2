//! Words and JSON for people and programs.

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value as Json, json};

use super::{files, host, kinds};
use crate::Prepared;
use crate::backend::Limits;
use crate::backend::device::Device;
use crate::error::{Error, Result};
use crate::input::Input;
use crate::method::{self, Base, METHODS, Method, Parameter, Scope, Settings, Value, ValueKind, Values};
use crate::plan::{Action, LeftOut, Plan, RowCounts, Tensor, Vocabulary};
use crate::report::Report;
use crate::stream::{Budget, Merged};
use crate::text::{bytes, escaped, is_escaped, one_line};
use crate::timeline::Shares;
use crate::tokenizer::Counts;

/// The first failure of standard output.
static UNWRITTEN: Mutex<Option<io::Error>> = Mutex::new(None);

/// Prints a line of data.
macro_rules! out {
    ($($arg:tt)*) => { put(&escaped(&format!($($arg)*))) };
}

/// Prints to standard output, or gives it to the host. A reader that went away wanted no more; any other failure is reported by
/// [`delivered`].
fn put(text: &str) {
    if let Some(host) = host::current() {
        return host.found(text);
    }
    if let Err(cause) = writeln!(io::stdout(), "{text}") {
        undelivered(cause);
    }
}

fn undelivered(cause: io::Error) {
    if cause.kind() != io::ErrorKind::BrokenPipe {
        UNWRITTEN.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(cause);
    }
}

/// What is wrong with a command, as clap words it, in a line.
pub(super) fn wrong_usage(answer: &clap::Error) -> Error {
    // The usage and where to find help come in paragraphs of their own.
    let words = answer.to_string();
    let words = words.strip_prefix("error: ").unwrap_or(&words).split("\n\n").next().unwrap_or_default();
    Error::config(words.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// The help, or what is wrong with the command, as clap words it.
pub(super) fn usage(answer: &clap::Error, hint: Option<String>) {
    if AS_JSON.load(Ordering::Relaxed) && answer.use_stderr() {
        let wrong = wrong_usage(answer);
        return error(&Error { hint: hint.or(wrong.hint.clone()), ..wrong });
    }
    if let Err(cause) = answer.print()
        && !answer.use_stderr()
    {
        undelivered(cause);
    }
    hint.iter().for_each(|hint| put_hint(hint));
}

/// Whether all that was printed to standard output got there.
///
/// # Errors
/// Kind `Output`: a disk is full, for instance.
pub(super) fn delivered() -> Result<()> {
    io::stdout().flush().unwrap_or_else(undelivered);
    match UNWRITTEN.lock().unwrap_or_else(PoisonError::into_inner).take() {
        Some(cause) => Err(Error::output(format!("cannot write to standard output: {cause}"))),
        None => Ok(()),
    }
}

/// Whether what goes to standard error is JSON, an object a line.
static AS_JSON: AtomicBool = AtomicBool::new(false);

/// From now on, messages are for programs: `{"level":"warning","message":"…","hint":"…"}`.
pub(super) fn talk_json() {
    AS_JSON.store(true, Ordering::Relaxed);
}

/// Prints to standard error, whose failures could be reported nowhere.
fn put_message(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// A line that is no warning, for people alone.
fn talk(text: &str) {
    if host::current().is_some() {
        return;
    }
    if AS_JSON.load(Ordering::Relaxed) {
        put_message(&plain_json(&json!({ "level": "info", "message": text }).to_string()));
    } else {
        put_message(text);
    }
}

/// A word in colour, where that helps and is wanted.
fn coloured(code: &str, word: &str) -> String {
    let wanted =
        io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    if wanted { format!("\x1b[{code}m{word}\x1b[0m") } else { word.into() }
}

/// The line of an error is escaped already. What ends the command has its exit code.
fn report(code: &str, word: &str, error: &Error, exit_code: Option<u8>) {
    if let Some(host) = host::current() {
        return host.said(word, error);
    }
    if AS_JSON.load(Ordering::Relaxed) {
        let mut object = json!({ "level": word, "message": error.message });
        if let Some(hint) = &error.hint {
            object["hint"] = hint.as_str().into();
        }
        if let Some(exit_code) = exit_code {
            object["kind"] = error.kind.name().into();
            object["exit_code"] = exit_code.into();
        }
        return put_message(&plain_json(&object.to_string()));
    }
    put_message(&format!("{}: {}", coloured(code, word), error.message));
    error.hint.iter().for_each(|hint| put_hint(hint));
}

fn put_hint(hint: &str) {
    put_message(&format!("{}: {hint}", coloured("1;36", "hint")));
}

/// Everything that is wrong, and each with its hint.
pub(super) fn error(error: &Error) {
    let exit_code = Some(error.exit_code());
    error.clone().one_by_one().iter().for_each(|error| report("1;31", "error", error, exit_code));
}

pub(super) fn warning(warning: &Error) {
    report("1;33", "warning", warning, None);
}

pub(super) fn note(note: &str) {
    report("1", "note", &Error::config(note), None);
}

/// How far a merge is.
pub(super) fn progress(line: &str) {
    talk(line);
}

/// A line of data.
pub(super) fn line(text: &str) {
    out!("{text}");
}

/// Data of several lines, as it is.
pub(super) fn text(text: &str) {
    put(text.trim_end());
}

pub(super) fn json(value: &Json) {
    put(&plain_json(&format!("{value:#}")));
}

/// The same in one line.
pub(super) fn json_line(value: &Json) {
    put(&plain_json(&value.to_string()));
}

/// JSON in which nothing steers a terminal.
fn plain_json(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for c in text.chars() {
        // JSON's own line ends stay; the others can only stand in its texts, where they may be written as numbers.
        if is_escaped(c) && c != '\n' { plain += &format!("\\u{:04x}", u32::from(c)) } else { plain.push(c) }
    }
    plain
}

/// What will be read.
pub(super) fn reads(prepared: &Prepared) -> String {
    let plan = &prepared.plan;
    let (once, most) = plan.read_bytes(&prepared.sources);
    let again = if most > once { ", some of it again where it does not stay in memory" } else { "" };
    format!("{} of inputs{again}", bytes(once))
}

/// So many models are named where a merge is told of in a line: the plan has them all.
const NAMED_MAX: usize = 16;

/// What a merge is about to do, in a few lines; `copies` says whether files are copied beside the weights.
pub(super) fn summary(prepared: &Prepared, copies: bool) {
    let written = bytes(prepared.plan.layout.file_bytes);
    talk(&one_line(&format!("{}, {written} to write; reads {}", tensors_of(prepared), reads(prepared))));
    notes(prepared).iter().for_each(|n| note(n));
    if copies {
        files::noted(prepared).iter().for_each(|n| note(n));
    }
}

/// The method, the models, and how many tensors they give.
pub(super) fn tensors_of(prepared: &Prepared) -> String {
    let plan = &prepared.plan;
    let named: Vec<&str> = plan.models.iter().take(NAMED_MAX).map(|model| &*model.name).collect();
    let more = match plan.models.len() - named.len() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("{} of {}{more}: {} tensors", plan.method.name, named.join(", "), plan.tensors.len())
}

/// What a plan notes, and what it leaves out.
pub(super) fn notes(prepared: &Prepared) -> Vec<String> {
    let Plan { notes, left_out, .. } = &prepared.plan;
    let left_out = left_out.iter().map(|left_out| format!("left out: {}", left(left_out)));
    notes.iter().cloned().chain(left_out).collect()
}

/// The folders on the way to the output that are not there: one may be a slip.
pub(super) fn folders_to_make(out: &Path) {
    let absolute = std::path::absolute(out).unwrap_or_else(|_| out.into());
    let missing = absolute.ancestors().skip(1).take_while(|folder| !folder.exists());
    let missing: Vec<&Path> = missing.collect();
    if let (Some(inner), Some(outer)) = (missing.first(), missing.last()) {
        let (outer, inner) = (outer.display().to_string(), inner.display().to_string());
        let made = if outer == inner { "it" } else { &inner };
        note(&format!("{outer} does not exist: {made} is made for the output"));
    }
}

fn left(out: &LeftOut) -> String {
    let LeftOut { model, what, tensors } = out;
    if *tensors == 1 { format!("{model}: {what}") } else { format!("{model}: {what} ({tensors} tensors)") }
}

/// Bytes that merges have moved.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Moved {
    pub read: u64,
    /// Chunks that were mended are written twice.
    pub written: u64,
    /// Those of the output that earlier merges had finished.
    pub found: u64,
}

/// The end of a merge of so many tensors, with so many bytes.
pub(super) fn done(
    out: &Path,
    prepared: &Prepared,
    (tensors, bytes_of_all): (usize, u64),
    Moved { read, written, found }: Moved,
    elapsed: Duration,
) {
    let plan = &prepared.plan;
    let (inputs, _) = plan.read_bytes(&prepared.sources);
    // Samples are read before the sweeps, and what was not held is read again.
    let again = if read > inputs { format!(" from inputs of {}", bytes(inputs)) } else { String::new() };
    let seconds = elapsed.as_secs_f64();
    let and_there = if found > 0 { format!(", {} were there", bytes(found)) } else { String::new() };
    talk(&one_line(&format!(
        "{tensors} tensors written to {} in {seconds:.2} s ({:.2} GB/s: {} read{again}, {} written{and_there})",
        out.display(),
        (read + written) as f64 / 1e9 / seconds,
        bytes(read),
        bytes(bytes_of_all.saturating_sub(found)),
    )));
}

/// What merging found out about tensors.
pub(super) fn remarks(report: &Report) {
    for (remark, tensors) in report.remarks() {
        note(&format!("{remark} ({tensors} of {} tensors)", report.merged.len()));
    }
}

/// How busy the stages were, and what holds the merge back.
pub(super) fn shares(report: &Report) {
    let shares = &report.shares;
    talk(&format!("stages: {shares}; {}", shares.bottleneck()));
    if report.threads_missing > 0 {
        note(&format!(
            "{} of {} threads could not be started (a limit on processes or memory): the others did their work",
            report.threads_missing,
            shares.threads + report.threads_missing
        ));
    }
    match report.redone() {
        0 => {}
        count => talk(&format!(
            "{count} chunks have values that {} makes no promises about (NaN, infinities, the very small or very large, or weights beyond a million): the CPU computed them",
            report.device
        )),
    }
    let (stages, finishing) = (shares.wall.as_secs_f64(), report.finishing.as_secs_f64());
    // What the system had not yet put on the disk is no stage's, and can take longer than all of them.
    if finishing > (0.1 * stages).max(0.1) {
        talk(&format!("then {finishing:.2} s, after {stages:.2} s, to put the files on the disk"));
    }
}

/// Where the trace is.
pub(super) fn traced(file: &Path, report: &Report) {
    talk(&one_line(&format!("trace written to {}", file.display())));
    let left_out = report.timeline.left_out();
    if left_out > 0 {
        note(&format!("the trace is of the merge's beginning: {left_out} records more had no room in it"));
    }
}

/// What a merge takes at the least.
pub(super) fn floor(device: &Device, wall: Duration, shares: &Shares, moved: (u64, u64), as_json: bool) {
    let (read, written) = moved;
    if as_json {
        return json(&json!({
            "device": device.id(), "name": device.name, "seconds": wall.as_secs_f64(),
            "read_bytes": read, "written_bytes": written, "stages": crate::report::stages_json(shares),
        }));
    }
    line(&format!(
        "{}: {:.2} s for {} read and {} written, with no kernels",
        device.id(),
        wall.as_secs_f64(),
        bytes(read),
        bytes(written)
    ));
    line(&shares.to_string());
}

/// Odd values of tensors by their places in the plan, of the first few; `others` says where those of all are, if anywhere.
pub(super) fn odd_values<'a>(
    plan: &Plan,
    merged: impl Iterator<Item = (usize, &'a Merged)> + Clone,
    others: Option<&str>,
) {
    const SHOWN_MAX: usize = 8;
    let odd = merged.filter(|(_, merged)| merged.odd.any());
    let tensors = odd.clone().count();
    for (tensor, merged) in odd.take(SHOWN_MAX) {
        let (tensor, odd) = (&plan.tensors[tensor], merged.odd);
        let parts = [
            (odd.nan, "NaN read"),
            (odd.infinite, "infinities read"),
            (odd.overflowed, "results overflowed"),
        ];
        let parts: Vec<String> =
            parts.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")).collect();
        warning(&Error::input(format!("tensor {}: {}", tensor.name, parts.join(", "))));
    }
    if tensors > SHOWN_MAX {
        warning(&Error::input(format!(
            "… and {} more tensors with odd values{}",
            tensors - SHOWN_MAX,
            others.map_or_else(String::new, |file| format!(": see {file}"))
        )));
    }
}

/// The plan, for people; `reading` says what reading texts takes.
pub(super) fn plan(prepared: &Prepared, budget: &Budget, limits: &Limits, reading: &[String], verbose: bool) {
    let plan = &prepared.plan;
    out!("method   {}: {}", plan.method.name, plan.method.summary);
    for (i, model) in plan.models.iter().enumerate() {
        let roles = [(plan.base == Some(i), "base"), (plan.donor == i, "gives config and tokenizer")];
        let roles: Vec<&str> = roles.iter().filter(|(yes, _)| *yes).map(|(_, role)| *role).collect();
        let weight = plan.weights.as_ref().map_or(String::new(), |weights| {
            let share = weights[i] / weights.iter().sum::<f64>();
            format!("  weight {}", (share * 1e6).round() / 1e6)
        });
        out!(
            "model    {}{weight}{}",
            model.name,
            if roles.is_empty() { String::new() } else { format!("  ({})", roles.join(", ")) }
        );
    }
    let copied = plan.tensors.iter().filter(|t| matches!(t.action, Action::Copy(_))).count();
    prepared.element_files().for_each(|file| out!("file     {}", file.name));
    out!("tensors  {} merged, {copied} copied", plan.tensors.len() - copied);
    out!("read     {}", reads(prepared));
    out!("write    {} in {} file(s)", bytes(plan.layout.file_bytes), plan.layout.shards.len());
    let held = match limits.hold_bytes.min(limits.widest.held_bytes) {
        0 => String::new(),
        held => format!(", up to {} of inputs held between sweeps", bytes(held)),
    };
    out!(
        "memory   at most {} beside the program: {} threads{held}",
        bytes(budget.host_bytes),
        limits.threads
    );
    reading.iter().for_each(|line| out!("{line}"));
    plan.left_out.iter().for_each(|l| out!("left out {}", left(l)));
    files::lines(prepared).iter().for_each(|line| out!("{line}"));
    plan.notes.iter().for_each(|note| out!("note     {note}"));
    out!("");
    if verbose {
        for tensor in &plan.tensors {
            out!("{}  {}", shape(tensor), tensor.name);
            out!("    {}", action(prepared, tensor));
        }
    } else {
        let tensors = plan.tensors.iter();
        let described = tensors.map(|tensor| (&*tensor.name, shape(tensor), action(prepared, tensor)));
        kinds::lines(described).iter().for_each(|line| out!("{line}"));
    }
}

fn shape(tensor: &Tensor) -> String {
    format!("{:?} {:?}", tensor.dtype, tensor.shape)
}

fn action(prepared: &Prepared, tensor: &Tensor) -> String {
    let plan = &prepared.plan;
    let name_of = |place: usize| &*plan.models[tensor.models()[place]].name;
    match &tensor.action {
        Action::Copy(copy) if copy.models.is_empty() => {
            copy.holders.iter().filter_map(|input| made_of(plan, *input)).collect::<Vec<_>>().join("; ")
        }
        Action::Copy(_) => format!("copied from {}", name_of(0)),
        Action::Merge(merge) => {
            let shared = set(&merge.settings.shared).map(|(name, value)| format!("{name} {}", shown(*value)));
            let own = merge
                .inputs
                .iter()
                // What the processor makes for the method stands behind the models.
                .take(merge.settings.inputs)
                .enumerate()
                .map(|(place, input)| {
                    of_input(&merge.settings, place, name_of(place), mask_of(prepared, *input))
                });
            // Their weights are listed with the models, once.
            let own = if plan.weights.is_some() { vec!["all models".into()] } else { own.collect() };
            own.into_iter().chain(shared).collect::<Vec<_>>().join("; ")
        }
    }
}

fn of_input(settings: &Settings, place: usize, model: &str, mask: Option<&str>) -> String {
    let values = set(&settings.per_input[place]).map(|(name, value)| format!("{name} {}", shown(*value)));
    let role = (settings.base == Some(place)).then(|| "base".to_string());
    let mask = mask.map(|mask| format!("mask {mask}"));
    let words = role.into_iter().chain(values).chain(mask).collect::<Vec<_>>().join(" ");
    format!("{model}{}{words}", if words.is_empty() { "" } else { ": " })
}

/// The mask of a model's input, if it has one.
fn mask_of(prepared: &Prepared, input: usize) -> Option<&str> {
    let Prepared { plan, sources, .. } = prepared;
    let stored = crate::input::stored(&plan.inputs, input);
    let mask = stored.iter().find(|at| plan.element_files.contains(&at.source))?;
    Some(&sources[mask.source].name)
}

/// The name of the stored tensor that an input mainly comes from, or what it is if it comes from none.
fn input_name(prepared: &Prepared, input: usize) -> String {
    let Prepared { plan, sources, .. } = prepared;
    match (crate::input::stored(&plan.inputs, input).first(), &plan.inputs[input]) {
        (Some(at), _) => sources[at.source].tensor_at(at.tensor).name.clone(),
        (None, Input::Made(made)) => made.to_string(),
        (None, Input::Stored(_)) => unreachable!("a stored tensor comes from itself"),
    }
}

/// What an input is made of, if it is made.
fn made_of(plan: &Plan, input: usize) -> Option<String> {
    match &plan.inputs[input] {
        Input::Stored(_) => None,
        Input::Made(made) => Some(made.to_string()),
    }
}

/// The values that are set to something.
fn set(values: &Values) -> impl Iterator<Item = &(&'static str, Value)> {
    values.iter().filter(|(_, value)| *value != Value::Null)
}

fn shown(value: Value) -> String {
    match value {
        Value::Number(number) => format!("{number}"),
        Value::Flag(flag) => format!("{flag}"),
        Value::Word(word) => word.into(),
        Value::Null => "none".into(),
    }
}

fn value_json(value: Value) -> Json {
    match value {
        Value::Number(number) => json!(number),
        Value::Flag(flag) => json!(flag),
        Value::Word(word) => json!(word),
        Value::Null => Json::Null,
    }
}

/// The plan, for programs.
pub(super) fn plan_json(prepared: &Prepared, budget: &Budget, limits: &Limits) -> Json {
    let plan = &prepared.plan;
    let (read, most) = plan.read_bytes(&prepared.sources);
    let values = |values: &[(&'static str, Value)]| {
        values
            .iter()
            .map(|(name, value)| ((*name).to_string(), value_json(*value)))
            .collect::<serde_json::Map<_, _>>()
    };
    let tensor = |(tensor, place): (&Tensor, &crate::checkpoint::Place)| {
        let name_of = |place: usize| &*plan.models[tensor.models()[place]].name;
        let action = match &tensor.action {
            Action::Copy(copy) if copy.models.is_empty() => {
                json!({ "made": copy.holders.iter().filter_map(|input| made_of(plan, *input)).collect::<Vec<_>>() })
            }
            Action::Copy(copy) => {
                let holder = |(i, input): (usize, &usize)| json!({ "model": name_of(i), "tensor": input_name(prepared, *input) });
                json!({ "copy": copy.holders.iter().enumerate().map(holder).collect::<Vec<_>>() })
            }
            Action::Merge(merge) => {
                let input = |(i, input): (usize, &usize)| {
                    let tensor = input_name(prepared, *input);
                    let mask = mask_of(prepared, *input);
                    let parameters = values(merge.settings.per_input.get(i).map_or(&[], Vec::as_slice));
                    let mut of = json!({ "model": name_of(i), "tensor": tensor, "base": merge.settings.base == Some(i),
                            "parameters": parameters });
                    if let Some(mask) = mask {
                        of["mask"] = mask.into();
                    }
                    of
                };
                let (models, made) = merge.inputs.split_at(merge.settings.inputs.min(merge.inputs.len()));
                let mut action = json!({ "merge": models.iter().enumerate().map(input).collect::<Vec<_>>(),
                        "parameters": values(&merge.settings.shared), "sweeps_most": merge.recipe.sweeps_most });
                if !made.is_empty() {
                    action["made"] = made.iter().filter_map(|input| made_of(plan, *input)).collect();
                }
                action
            }
        };
        json!({ "name": &*tensor.name, "dtype": format!("{:?}", tensor.dtype), "shape": &*tensor.shape,
                "file": plan.layout.shards[place.shard].file, "action": action })
    };
    let of_plan = plan.warnings.iter().map(|warning| &warning.message);
    let warnings = prepared.config.warnings.iter().flat_map(|warning| &warning.each).chain(of_plan);
    let left_out = |l: &LeftOut| json!({ "model": l.model, "what": l.what, "tensors": l.tensors });
    json!({
        "method": plan.method.name, "seed": plan.seed,
        "models": plan.models.iter().map(|model| &model.name).collect::<Vec<_>>(),
        "base_model": plan.base.map(|base| &plan.models[base].name), "donor": plan.models[plan.donor].name,
        "read_bytes": read, "read_bytes_most": most, "write_bytes": plan.layout.file_bytes,
        "memory_bytes": budget.host_bytes, "threads": limits.threads,
        "weights": plan.weights, "notes": plan.notes, "warnings": warnings.collect::<Vec<_>>(),
        "vocabulary": plan.tokenizer.vocabulary.as_ref().map(|vocabulary| vocabulary_json(plan, vocabulary)),
        "left_out": plan.left_out.iter().map(left_out).collect::<Vec<_>>(), "files": files::json(&prepared.companions),
        "chat_template": plan.tokenizer.chat_template.as_ref().map(files::template_json),
        "tensors": plan.tensors.iter().zip(&plan.layout.places).map(tensor).collect::<Vec<_>>(),
    })
}

fn vocabulary_json(plan: &Plan, vocabulary: &Vocabulary) -> Json {
    let tensor = |of: &RowCounts| {
        let Counts { own, others, averaged, zeros, fillers } = of.rows;
        json!({ "tensor": of.tensor, "model": plan.models[of.model].name, "rows_before": of.before,
                "rows": { "own": own, "others": others, "averaged": averaged, "zeros": zeros, "fillers": fillers } })
    };
    json!({
        "from": vocabulary.leader, "tokens": vocabulary.tokens, "rows": vocabulary.rows, "added": vocabulary.added,
        "removed": vocabulary.removed, "tensors": vocabulary.tensors.iter().map(tensor).collect::<Vec<_>>(),
    })
}

/// `mergeforge methods [NAME]`.
pub(super) fn methods(name: Option<&str>, as_json: bool) -> Result<()> {
    let chosen: Vec<&Method> = match name {
        None => METHODS.to_vec(),
        Some(name) => vec![method::find(name)?],
    };
    if as_json {
        json(&chosen.iter().map(|method| method_json(method)).collect());
    } else if name.is_some() {
        chosen.iter().for_each(|method| explain(method));
    } else {
        let width = chosen.iter().map(|method| method.name.len()).max().unwrap_or(0);
        chosen.iter().for_each(|method| out!("{:width$}  {}", method.name, method.summary));
    }
    Ok(())
}

fn explain(method: &Method) {
    out!("{}: {}", method.name, method.summary);
    out!("");
    method.formula.lines().for_each(|line| out!("    {line}"));
    out!("");
    if let Some(paper) = method.paper {
        out!("paper       {} <{}>", paper.title, paper.url);
    }
    if let Some(evidence) = method.evidence {
        out!("evidence    {evidence}");
    }
    if let Some(decided) = method.by_processor {
        out!("processor   {decided}");
    }
    out!(
        "base_model  {}",
        match base(method) {
            OPTIONAL => "optional: the models' differences to it are merged instead of the models",
            LISTED =>
                "one of the models, which are weighted by their places in the list; gives config and tokenizer",
            ONE_MORE =>
                "one more model, merged like the others, where it is not listed; gives config and tokenizer",
            NOT_NEEDED => {
                "not needed; with slices it gives config and tokenizer, else it can only be the model listed"
            }
            required => required,
        }
    );
    out!("models      {}", models(method));
    if !method.parameters.is_empty() {
        out!("");
        out!("parameters");
    }
    let width = method.parameters.iter().map(|parameter| parameter.name.len()).max().unwrap_or(0);
    for parameter in method.parameters {
        let words = match parameter.kind {
            ValueKind::Word(words) => format!(": {}", words.join(", ")),
            _ => String::new(),
        };
        out!("  {:width$}  {:30} {}{words}", parameter.name, describe(parameter), parameter.meaning);
    }
}

/// What a method does with a `base_model` that it does not need.
const ONE_MORE: &str = "one more model";
const LISTED: &str = "one of the models";
const NOT_NEEDED: &str = "not needed";
const OPTIONAL: &str = "optional";

/// What a method does with `base_model`, in a word or two.
fn base(method: &Method) -> &'static str {
    match (method.base, *method.models.end()) {
        (Base::Required, _) => "required",
        (Base::Optional, _) => OPTIONAL,
        (_, 1) => NOT_NEEDED,
        _ if method.weighs_by_position() => LISTED,
        _ => ONE_MORE,
    }
}

fn models(method: &Method) -> String {
    match (*method.models.start(), *method.models.end()) {
        (low, high) if low == high => format!("{low}"),
        (low, usize::MAX) => format!("{low} or more"),
        (low, high) => format!("{low} to {high}"),
    }
}

fn describe(parameter: &Parameter) -> String {
    let scope = match parameter.scope {
        Scope::Input => "per model",
        Scope::NonBase => "per model but base",
        Scope::Shared => "shared",
    };
    let default = parameter.default.map_or("required".into(), |value| format!("default {}", shown(value)));
    format!("({scope}, {default})")
}

fn method_json(method: &Method) -> Json {
    let parameter = |p: &Parameter| {
        let words = match p.kind {
            ValueKind::Word(words) => json!(words),
            _ => Json::Null,
        };
        let kind = match p.kind {
            ValueKind::Number => "number",
            ValueKind::Count => "whole number",
            ValueKind::NumberOrNull => "number or null",
            ValueKind::Flag => "flag",
            ValueKind::File => "file",
            ValueKind::Word(_) => "word",
        };
        let scope = match p.scope {
            Scope::Input => "every model",
            Scope::NonBase => "every model but the base",
            Scope::Shared => "all models together",
        };
        json!({ "name": p.name, "kind": kind, "words": words, "scope": scope, "per_model": p.scope != Scope::Shared, "required": p.default.is_none(),
                "default": p.default.map_or(Json::Null, value_json), "meaning": p.meaning })
    };
    json!({ "name": method.name, "summary": method.summary, "formula": method.formula,
            "paper": method.paper.map(|paper| json!({ "title": paper.title, "url": paper.url })),
            "evidence": method.evidence, "by_processor": method.by_processor,
            "base_model": base(method), "base_model_required": method.base == Base::Required,
            "models_least": method.models.start(), "models_most": Some(method.models.end()).filter(|most| **most < usize::MAX),
            "parameters": method.parameters.iter().map(parameter).collect::<Vec<_>>() })
}

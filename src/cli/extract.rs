//! `mergeforge extract-lora`: flags, a table, JSON.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use regex::Regex;
use serde_json::{Value as Json, json};

use super::mergekit::MergekitArgs;
use super::progress::Progress;
use super::values::WorkArgs;
use super::{count, show};
use crate::checkpoint::{CARD, Source, check_out};
use crate::dtype::Float;
use crate::error::{Error, Result};
use crate::extract::{Extracted, Listen, Remark, Request, by_kind, extract, write};
use crate::prepare_comparison;
use crate::stream::Watch;
use crate::text::escaped;

#[derive(Debug, Args)]
pub(super) struct ExtractArgs {
    /// The fine-tuned model, as in a config: a folder, or a name on the Hugging Face Hub, perhaps with @revision and +ADAPTER
    #[arg(required_unless_present = "given_model")]
    model: Option<String>,
    /// The model that it was trained from, in the same way
    #[arg(required_unless_present = "given_base")]
    base: Option<String>,
    /// The folder to make; it must not exist, or be empty
    #[arg(required_unless_present = "given_out")]
    out: Option<PathBuf>,
    #[arg(long = "model", id = "given_model", value_name = "MODEL", hide = true)]
    given_model: Option<String>,
    #[arg(long = "base-model", id = "given_base", value_name = "MODEL", hide = true)]
    given_base: Option<String>,
    #[arg(long = "out-path", id = "given_out", value_name = "DIR", hide = true)]
    given_out: Option<PathBuf>,
    /// The rank of each module; with --error the largest [default: 32, with --error none]
    #[arg(long, alias = "max-rank", value_name = "N", value_parser = count)]
    rank: Option<usize>,
    /// Take for each module the smallest rank that loses no more than this share of the change (of its Frobenius norm)
    #[arg(long, value_name = "SHARE", value_parser = share)]
    error: Option<f64>,
    /// The adapter's alpha [default: its rank, so that its product is added as it is]
    #[arg(long, value_name = "ALPHA", value_parser = positive, conflicts_with = "error")]
    alpha: Option<f64>,
    /// Take the modules whose names this expression fits (any part of them), and no others; may be given several times
    #[arg(long, short = 'i', alias = "include-regex", value_name = "REGEX")]
    modules: Vec<Regex>,
    /// Leave out the modules whose names this expression fits; may be given several times
    #[arg(long, short = 'e', alias = "exclude-regex", value_name = "REGEX")]
    exclude: Vec<Regex>,
    /// Make products for embeddings too
    #[arg(long, alias = "embed-lora")]
    embeddings: bool,
    /// Save these modules whole, by the last part of their names, like `embed_tokens`; may be given several times
    #[arg(long = "save-module", value_name = "NAME")]
    save_modules: Vec<String>,
    /// Save what changed and is no matrix whole: norms and biases
    #[arg(long)]
    save_changed: bool,
    /// The type of the adapter's numbers [default: that of the model]
    #[arg(long, value_name = "TYPE")]
    dtype: Option<Stored>,
    #[command(flatten)]
    work: WorkArgs,
    #[command(flatten)]
    pasted: Pasted,
    #[command(flatten)]
    mergekit: MergekitArgs,
}

/// Flags of `mergekit-extract-lora` that people paste along, and that mean nothing here.
#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
struct Pasted {
    #[arg(long, hide = true)]
    skip_undecomposable: bool,
    #[arg(long, hide = true, value_parser = ["0", "0.0"])]
    sv_epsilon: Option<String>,
    #[arg(long, hide = true)]
    device: Option<String>,
    #[arg(long, hide = true)]
    random_seed: Option<String>,
    #[arg(long, hide = true)]
    distribute_scale: bool,
    #[arg(long, hide = true)]
    no_distribute_scale: bool,
    #[arg(long, hide = true)]
    no_embed_lora: bool,
    #[arg(long, hide = true)]
    no_quiet: bool,
    #[arg(long, hide = true)]
    allow_crimes: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Stored {
    Float32,
    Float16,
    Bfloat16,
}

fn share(text: &str) -> std::result::Result<f64, String> {
    let share = text.parse().ok().filter(|share| 0.0 < *share && *share < 1.0);
    share.ok_or_else(|| "expected a number between 0 and 1, like 0.1".into())
}

fn positive(text: &str) -> std::result::Result<f64, String> {
    let number = text.parse().ok().filter(|number: &f64| number.is_finite() && *number > 0.0);
    number.ok_or_else(|| "expected a number above 0".into())
}

/// The rank where neither it nor an error is given, and that of mergekit's command line.
const USUAL_RANK: usize = 32;
const MERGEKITS_RANK: usize = 128;

impl ExtractArgs {
    /// Whether the command is one of mergekit's, whose defaults then hold.
    fn is_mergekits(&self) -> bool {
        self.given_model.is_some() && self.given_base.is_some() && self.given_out.is_some()
    }

    fn request(&self) -> Request {
        let usual = if self.is_mergekits() { MERGEKITS_RANK } else { USUAL_RANK };
        Request {
            rank: self.rank.unwrap_or(if self.error.is_some() { usize::MAX } else { usual }),
            error: self.error.unwrap_or(0.0),
            alpha: self.alpha,
            modules: self.modules.clone(),
            exclude: self.exclude.clone(),
            embeddings: self.embeddings,
            save_modules: self.save_modules.clone(),
            save_embeddings: self.is_mergekits() && !self.embeddings,
            save_changed: self.save_changed || self.is_mergekits() && !self.pasted.skip_undecomposable,
            dtype: self.dtype.map(|dtype| match dtype {
                Stored::Float32 => Float::F32,
                Stored::Float16 => Float::F16,
                Stored::Bfloat16 => Float::BF16,
            }),
            threads: self.work.threads(),
        }
    }
}

impl Listen for Progress {
    fn expect(&self, bytes: u64) {
        self.expect(bytes, "decomposed");
    }

    fn read(&self, bytes: u64) {
        self.moved(bytes, 0);
    }

    fn done(&self, bytes: u64) {
        self.moved(0, bytes);
    }

    fn stop(&self) -> bool {
        // A line may be due, though nothing moves while a large matrix is decomposed.
        self.moved(0, 0);
        Watch::stop(self)
    }
}

/// Extracts, writes and reports.
pub(super) fn run(args: &ExtractArgs) -> Result<()> {
    // Mergekit's flags take the places of what is missing, from the first on.
    let mut places = [&args.model, &args.base].into_iter().flatten();
    let mut given = |flag: &Option<String>| flag.clone().or_else(|| places.next().cloned());
    let (Some(model), Some(base)) = (given(&args.given_model), given(&args.given_base)) else {
        return Err(Error::config("a fine-tuned model and its base are needed").hint(USAGE));
    };
    let Some(out) = args.given_out.as_ref().or(args.out.as_ref()) else {
        return Err(Error::config("a folder for the adapter is needed").hint(USAGE));
    };
    let progress = Progress::new(args.work.quiet)?;
    args.mergekit.notes.iter().for_each(|note| show::note(note));
    let models = prepare_comparison(&model, &base, args.work.hub.remote())?;
    models.warnings.iter().for_each(show::warning);
    models.notes.iter().for_each(|note| show::note(note));
    let places: Vec<PathBuf> = models.sources.iter().map(Source::place).collect();
    check_out(out, &places)?;
    args.work.hub.bring_all(&models.sources, &progress)?;
    let request = args.request();
    let extracted = extract(&models, &request, &progress);
    progress.finish();
    let extracted = extracted?;
    write(out, &models, &request, &extracted, &progress)?;
    if let Some(what) = extracted.of_adapted_base(&models) {
        show::note(&format!("the adapter belongs to {}: {what}", models.base.name));
    }
    for Remark { what, warns, names } in &extracted.remarks {
        let text = format!("{what}: {}", listed(names));
        if *warns {
            show::warning(&Error::config(text));
        } else {
            show::note(&text);
        }
    }
    if args.work.json {
        show::json(&as_json(&extracted));
    } else {
        table(out, &extracted);
    }
    Ok(())
}

const USAGE: &str = "mergeforge extract-lora MODEL BASE OUT";

fn table(out: &Path, extracted: &Extracted) {
    show::line(&format!("{:<24} {:>7} {:>12} {:>8}", "modules", "number", "rank", "lost"));
    for (kind, of) in extracted.kinds() {
        show::line(&format!("{kind:<24} {:>7} {:>12} {:>8.4}", of.modules, of.ranks(), of.error()));
    }
    if !extracted.saved.is_empty() {
        show::line(&format!("saved whole: {}", listed(&extracted.saved)));
    }
    if !extracted.lost.is_empty() {
        let names: Vec<String> = extracted.lost.iter().map(|lost| lost.name.clone()).collect();
        show::line(&format!("changed, and not in the adapter: {}", listed(&names)));
        show::line("  (--save-changed saves norms and biases, --embeddings and --save-module embeddings)");
    }
    show::line(&format!(
        "{}: of the change {:.4} is lost (Frobenius norm, all tensors that are not saved whole)",
        out.display(),
        extracted.error()
    ));
}

/// So many kinds of tensors are named.
const NAMED_MAX: usize = 4;

/// Tensors in few words, those together that differ in numbers alone. The card of the adapter has them all.
fn listed(names: &[String]) -> String {
    let kinds = by_kind(names.iter().map(String::as_str));
    let more = kinds.len().saturating_sub(NAMED_MAX);
    let kind = |(kind, of): (&String, &Vec<usize>)| {
        if of.len() > 1 { format!("{} × {}", of.len(), escaped(kind)) } else { escaped(kind) }
    };
    let first: Vec<String> = kinds.iter().take(NAMED_MAX).map(kind).collect();
    let more = if more > 0 { format!(" and {more} more kinds (all in {CARD})") } else { String::new() };
    first.join(", ") + &more
}

fn as_json(extracted: &Extracted) -> Json {
    let kinds = extracted.kinds().into_iter().map(|(kind, of)| {
        let (least, most) = of.ranks;
        json!({ "kind": kind, "modules": of.modules, "ranks": [least, most], "error": of.error() })
    });
    let modules = extracted.modules.iter().map(|module| {
        json!({ "name": module.name, "rank": module.a.0[0], "norm": module.squares.sqrt(), "error": module.error() })
    });
    let remarks =
        extracted.remarks.iter().map(|Remark { what, names, .. }| json!({ "what": what, "tensors": names }));
    let lost = extracted
        .lost
        .iter()
        .map(|lost| json!({ "name": lost.name, "norm": lost.squares.sqrt(), "why": lost.why }));
    json!({
        "error": extracted.error(),
        "kinds": kinds.collect::<Vec<_>>(),
        "modules": modules.collect::<Vec<_>>(),
        "saved": extracted.saved,
        "lost": lost.collect::<Vec<_>>(),
        "unchanged": extracted.unchanged,
        "remarks": remarks.collect::<Vec<_>>(),
    })
}

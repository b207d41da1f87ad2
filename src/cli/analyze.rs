//! `mergeforge analyze`: flags, findings and a table, JSON, a page.

use std::path::{Path, PathBuf};

use clap::Args;
use regex::Regex;
use serde_json::{Map, Value as Json, json};

use super::eval::{Heard, TextArgs, memory, names_of, open};
use super::machine::MachineArgs;
use super::progress::Progress;
use super::values::{SETS, WorkArgs, check_page, size};
use super::warnings::checked;
use super::{FitArgs, show};
use crate::analyze::{
    Agreed, Analysis, Column, Group, Predictions, QUANTILES, Request, Sums, Tensor, analyze, findings, html,
    measured_bytes, pair,
};
use crate::checkpoint::Reads;
use crate::decoder::Machine;
use crate::error::{Error, Result};
use crate::eval::{Cut, Model, Texts, Windows};
use crate::hub::Remote;
use crate::machine::physical_bytes;
use crate::page::digits;
use crate::plan::Choices;
use crate::predict::{self, Agreement, Parents, Reading};
use crate::text::{cut_to, escaped};
use crate::{AnyConfig, Prepared, prepare_config, read_any};

/// What is measured of a merge before it is made.
#[derive(Debug, Args)]
#[command(after_help = MEMORY, override_usage = "mergeforge analyze <CONFIG> [OPTIONS] [--text <FILE>...]")]
pub(super) struct AnalyzeArgs {
    /// The config: a mergekit YAML of one merge
    config: PathBuf,
    /// Write a page with the findings, heat maps and profiles, and the tables behind them
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Compute the ranks (effective, stable, of 90 %) of the task vectors of matrices whose names this expression fits (any part of them); may be
    /// given several times
    #[arg(long, value_name = "REGEX")]
    rank: Vec<Regex>,
    #[command(flatten)]
    work: WorkArgs,
    /// Memory for reading texts, where some are given [default: 2GiB, at most half of what is free]
    #[arg(long, value_name = "SIZE", value_parser = size, requires = SETS)]
    host_memory: Option<u64>,
    #[command(flatten)]
    texts: TextArgs,
    #[command(flatten)]
    machine: MachineArgs,
    #[command(flatten)]
    fit: FitArgs,
}

const MEMORY: &str = "Inputs are read once, but for matrices that --rank names. Memory: up to 100 MiB for each thread, and some kilobytes \
                      for each tensor. A matrix that --rank names takes 8 bytes for each element of a square with its smaller side, and up to 128 MiB.";

/// Measures and reports.
pub(super) fn run(args: &AnalyzeArgs) -> Result<()> {
    let progress = Progress::new(args.work.quiet)?;
    args.out.as_deref().map_or(Ok(()), |file| check_page(file, "--out"))?;
    let prepared = planned(args)?;
    let is_large = prepared.plan.read_bytes(&prepared.sources).0 > physical_bytes();
    let request = Request {
        rank: args.rank.clone(),
        threads: args.work.threads(),
        reads: if is_large { Reads::Direct } else { Reads::Copied },
    };
    // What cannot be read is refused before anything is measured.
    let readers = || {
        Ok((
            Readers::of(&prepared, &args.texts, args.work.hub.remote())?,
            args.machine.open(request.threads)?,
        ))
    };
    let mut readers = (!args.texts.is_empty()).then(readers).transpose()?;
    args.work.hub.bring(&prepared, &progress)?;
    if let Some((readers, _)) = &readers {
        args.work.hub.bring_all(readers.models.iter().flat_map(|(model, ..)| &model.sources), &progress)?;
    }
    progress.expect(measured_bytes(&prepared)?, "measured");
    let mut analysis = analyze(&prepared, &request, &progress)?;
    if let Some((readers, machine)) = &mut readers {
        let memory = memory(args.host_memory);
        analysis.predictions =
            readers.predictions(&analysis, (&mut **machine, memory, request.threads), &progress)?;
    }
    progress.finish();
    if let Some(file) = &args.out {
        std::fs::write(file, html(&analysis)).map_err(|cause| Error::writing(file, &cause))?;
    }
    if args.work.json {
        show::json(&as_json(&analysis));
    } else {
        table(&analysis);
        args.out.iter().for_each(|file| show::note(&format!("page written to {}", file.display())));
    }
    Ok(())
}

/// The models of a merge, with the texts as each of them has them.
struct Readers {
    names: Vec<String>,
    texts: Vec<Texts>,
    models: Vec<(Model, Cut, Vec<Windows>)>,
}

impl Readers {
    fn of(prepared: &Prepared, args: &TextArgs, remote: Remote) -> Result<Self> {
        let texts = args.read()?;
        let names: Vec<String> = prepared.plan.models.iter().map(|model| model.name.clone()).collect();
        let models = names.iter().map(|name| open(name, &texts, args, remote)).collect::<Result<_>>()?;
        Ok(Self { names, texts, models })
    }

    /// What they make of the texts.
    fn predictions(
        &self,
        analysis: &Analysis,
        (machine, memory, threads): (&mut dyn Machine, u64, usize),
        progress: &Progress,
    ) -> Result<Vec<Predictions>> {
        let reading = |column: &Column| {
            let place = self.names.iter().position(|name| *name == column.name).expect("columns are models");
            let (model, _, sets) = &self.models[place];
            Reading { model, sets }
        };
        let readings: Vec<Reading<'_>> = analysis.columns.iter().map(reading).collect();
        let sets = names_of(&self.texts);
        let options = predict::Options { groups: 1, top: TOP, memory, threads };
        let parents = Parents::measure(&readings, &sets, &options, machine, &Heard(progress))?;
        let of_set = |(set, name): (usize, String)| {
            let losses = (0..readings.len()).map(|model| parents.loss_of_parent(set, model).loss).collect();
            let every =
                (0..readings.len()).flat_map(|one| (0..readings.len()).map(move |other| (one, other)));
            let agreed = |models: (usize, usize)| {
                let Agreement { divergence, same_first } = parents.agreement(set, models, threads);
                Agreed { models, divergence, same_first }
            };
            let pairs = every.filter(|(one, other)| one != other).map(agreed).collect();
            Predictions { set: name, losses, pairs }
        };
        Ok(sets.iter().cloned().enumerate().map(of_set).collect())
    }
}

/// Tokens of the vocabulary whose logits are kept of each token of the texts.
const TOP: usize = 128;

/// The plan of the one merge that the config has.
fn planned(args: &AnalyzeArgs) -> Result<Prepared> {
    let stages = match read_any(&args.config)? {
        AnyConfig::Merges(stages) => stages,
        AnyConfig::Mixture(_) => {
            let problem = "a mixture of experts puts models side by side, and merges no tensor of two";
            return Err(Error::config(format!("{}: {problem}", shown(&args.config)))
                .hint("for analyze, list the experts in a config with `merge_method: task_arithmetic` and their base_model"));
        }
    };
    let config = stages.single().map_err(|_| {
        Error::config(format!("{}: there are several documents, and analyze measures one merge", shown(&args.config)))
            .hint("write the document to measure into a file of its own; `mergeforge multi` makes the models that it takes from others")
    })?;
    checked(&config.warnings.clone(), args.fit.strict, || {
        let remote = args.work.hub.remote();
        prepare_config(config, &args.fit.choices(Choices { remote, ..Choices::USUAL }))
    })
}

fn shown(file: &Path) -> String {
    escaped(&file.display().to_string())
}

/// Findings, and a table of the kinds of modules.
fn table(analysis: &Analysis) {
    findings(analysis).iter().for_each(|finding| show::line(&format!("- {}", finding.text)));
    show::line("");
    let (tasks, task_pairs) = (analysis.columns.tasks(), analysis.columns.task_pairs());
    let name = |column: usize| cut_to(&escaped(analysis.columns.short(column)), 14);
    let mut head = format!("{:<20} {:>12}", "module", "elements");
    for column in tasks.iter().take(COLUMNS_MAX) {
        head += &format!(" {:>16}", format!("|δ| {}", name(*column)));
    }
    let with_pairs = tasks.len() > 1;
    head += if with_pairs { "   cosine  signs differ  outvoted" } else { "   cosine" };
    show::line(&head);
    let row = |group: &Group| {
        let sums = &group.sums;
        let mut line = format!("{:<20} {:>12}", cut_to(&escaped(&group.name), 20), sums.elements);
        for column in tasks.iter().take(COLUMNS_MAX) {
            line += &format!(" {:>16}", percent(sums.tasks[*column].relative()));
        }
        if with_pairs {
            let cosines = task_pairs.iter().filter_map(|(a, b)| sums.task_pairs[pair(*a, *b)].cosine());
            let most = cosines.max_by(|one, other| one.abs().total_cmp(&other.abs()));
            line += &format!(" {:>8}", most.map_or("–".into(), |cosine| format!("{cosine:.3}")));
            line += &format!(" {:>13}", percent(sums.vote.disagree_share()));
            line += &format!(" {:>9}", percent(sums.vote.kept_outvoted_share()));
        } else {
            let pairs = analysis.columns.pairs();
            let cosines = pairs.iter().filter_map(|(a, b)| sums.pairs[pair(*a, *b)].cosine());
            let least = cosines.min_by(f64::total_cmp);
            line += &format!(" {:>8}", least.map_or("–".into(), |cosine| format!("{cosine:.4}")));
        }
        show::line(&line);
    };
    analysis.kinds.iter().chain([&analysis.whole]).for_each(row);
    if !tasks.is_empty() {
        let more = tasks.len().saturating_sub(COLUMNS_MAX);
        let more = if more > 0 { format!("; {more} more models are in --json") } else { String::new() };
        show::line(&format!("|δ|: the norm of the task vector over that of the base{more}"));
    }
    if with_pairs {
        let which = if task_pairs.len() > 1 {
            "of the two task vectors that are least orthogonal"
        } else {
            "of the task vectors"
        };
        show::line(&format!(
            "cosine: {which}; outvoted: of the magnitudes that trimming keeps at {}",
            analysis.density_in_words()
        ));
    } else {
        show::line("cosine: of the weights");
    }
    for rank in &analysis.ranks {
        let (rows, columns) = rank.shape;
        show::line(&format!(
            "{} of {}, {rows} × {columns}: effective rank {}, stable rank {}, {} singular values hold 90 % of the squares",
            escaped(&rank.tensor),
            name(rank.column),
            rank.effective.map_or("–".into(), digits),
            rank.stable.map_or("–".into(), digits),
            rank.of_90_percent
        ));
    }
}

/// Task vectors that have room in a table.
const COLUMNS_MAX: usize = 4;

fn percent(share: Option<f64>) -> String {
    share.map_or("–".into(), |share| format!("{:.1} %", 100.0 * share))
}

/// All numbers. Shares are from 0 to 1; what is not defined, as a cosine with a vector of zeros, is null.
fn as_json(analysis: &Analysis) -> Json {
    let Analysis { columns, tensors, layers, kinds, whole, densities, places, .. } = analysis;
    let column = |number: usize| columns.name(number);
    let models = columns.iter().enumerate().map(|(number, column)| {
        json!({ "name": column.name, "short": column.short, "base": Some(number) == columns.base })
    });
    let findings = findings(analysis).into_iter().map(|found| {
        json!({
            "about": found.about, "value": found.value, "threshold": found.threshold, "holds": found.holds, "text": found.text,
        })
    });
    let group = |group: &Group| {
        let mut json = measures(analysis, &group.sums, &group.members);
        json.insert("name".into(), json!(group.name));
        json
    };
    let of_tensor = |(number, tensor): (usize, &Tensor)| {
        let mut json = measures(analysis, &tensor.sums, &[number]);
        json.insert("name".into(), json!(tensor.name));
        json.insert("layer".into(), json!(tensor.layer.map(|layer| &layers[layer].name)));
        json.insert("kind".into(), json!(kinds[tensor.kind].name));
        json.insert("sample".into(), json!(tensor.sample));
        json
    };
    let predictions = analysis.predictions.iter().map(|Predictions { set, losses, pairs }| {
        let pairs = pairs.iter().map(|Agreed { models: (of, to), divergence, same_first }| {
            json!({ "of": column(*of), "to": column(*to), "divergence": divergence, "same_most_likely": same_first })
        });
        json!({ "set": set, "losses": losses, "pairs": pairs.collect::<Vec<_>>() })
    });
    let ranks = analysis.ranks.iter().map(|rank| {
        json!({
            "tensor": rank.tensor, "model": column(rank.column), "shape": [rank.shape.0, rank.shape.1],
            "effective_rank": rank.effective, "stable_rank": rank.stable, "rank_of_90_percent": rank.of_90_percent,
        })
    });
    json!({
        "predictions": predictions.collect::<Vec<_>>(),
        "method": analysis.method.name,
        "models": models.collect::<Vec<_>>(),
        "density": { "least": densities.0, "most": densities.1, "of_config": densities.2 },
        "t": { "least": places.0, "most": places.1 },
        "not_compared": analysis.not_compared,
        "findings": findings.collect::<Vec<_>>(),
        "whole": group(whole),
        "kinds": kinds.iter().map(group).collect::<Vec<_>>(),
        "layers": layers.iter().map(group).collect::<Vec<_>>(),
        "tensors": tensors.iter().enumerate().map(of_tensor).collect::<Vec<_>>(),
        "ranks": ranks.collect::<Vec<_>>(),
    })
}

/// The measures of tensors.
fn measures(analysis: &Analysis, sums: &Sums, members: &[usize]) -> Map<String, Json> {
    let columns = &analysis.columns;
    let models = (0..columns.len()).map(|column| {
        let of = &sums.models[column];
        json!({ "model": columns.name(column), "norm": of.norm(), "not_finite": of.not_finite })
    });
    let tasks = columns.tasks().into_iter().map(|column| {
        let of = &sums.tasks[column];
        let quantiles = analysis.quantiles(members, column);
        let named = QUANTILES.iter().zip(quantiles).map(|(share, value)| (share.to_string(), json!(value)));
        json!({
            "model": columns.name(column), "norm": of.one.norm(), "relative": of.relative(), "zeros": of.zero_share(),
            "mean_magnitude": of.mass / of.one.elements.max(1) as f64, "largest": of.largest,
            "quantiles": named.collect::<Map<_, _>>(), "share_of_merge": sums.pull(column),
            "kept": of.kept / of.one.elements.max(1) as f64,
        })
    });
    // Nothing lies between a model and a base that only task vectors are taken from.
    let interpolated = columns.pairs();
    let pairs = columns.all_pairs().map(|(a, b)| {
        let of = &sums.pairs[pair(a, b)];
        let slerp = of.slerp_from_lerp().filter(|_| interpolated.contains(&(a, b)));
        json!({ "models": [columns.name(a), columns.name(b)], "cosine": of.cosine(), "slerp_from_linear": slerp })
    });
    let task_pairs = columns.task_pairs().into_iter().map(|(a, b)| {
        let of = &sums.task_pairs[pair(a, b)];
        json!({
            "models": [columns.name(a), columns.name(b)], "cosine": of.cosine(), "both_changed": of.both_share(),
            "signs_differ": of.disagree_share(), "mass_where_signs_differ": of.mass_disagree_share(),
            "kept_by_both": of.overlap(), "kept_by_both_by_chance": of.overlap_by_chance(),
            "kept_too": [of.kept_too(0), of.kept_too(1)],
        })
    });
    let vote = (columns.tasks().len() > 1).then(|| {
        json!({
            "signs_differ": sums.vote.disagree_share(), "mass_where_signs_differ": sums.vote.mass_disagree_share(),
            "outvoted": sums.vote.outvoted_share(), "outvoted_of_kept": sums.vote.kept_outvoted_share(),
        })
    });
    let object = json!({
        "name": null, "tensors": sums.tensors, "elements": sums.elements, "models": models.collect::<Vec<_>>(),
        "pairs": pairs.collect::<Vec<_>>(), "task_vectors": tasks.collect::<Vec<_>>(),
        "task_vector_pairs": task_pairs.collect::<Vec<_>>(), "vote": vote,
    });
    match object {
        Json::Object(object) => object,
        _ => Map::new(),
    }
}

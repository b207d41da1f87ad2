//! `mergeforge predict`: flags, a table, JSON.

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use indexmap::IndexMap;
use serde_json::{Value as Json, json};

use super::eval::{Heard, TextArgs, figure, memory, names_of, open, wide};
use super::machine::MachineArgs;
use super::progress::Progress;
use super::show;
use super::values::{WorkArgs, count, size};
use crate::error::{Error, Result};
use crate::eval::{Texts, Windows};
use crate::hub::Remote;
use crate::plan::{Choices, PlannedModel};
use crate::predict::{Blend, Coefficients, Estimate, Options, Parents, Reading};
use crate::text::{bytes, cut_to, escaped, labels};
use crate::{Prepared, prepare_config, read_config};

#[derive(Debug, Args)]
#[command(override_usage = "mergeforge predict <CONFIG>... [OPTIONS] --text <FILE>...")]
pub(super) struct PredictArgs {
    /// The configs: mergekit YAMLs whose merges are weighted sums (`linear`, `task_arithmetic`, `average`), of models that mostly are the
    /// same
    #[arg(required = true, value_name = "CONFIG")]
    configs: Vec<PathBuf>,
    #[command(flatten)]
    texts: TextArgs,
    #[command(flatten)]
    machine: MachineArgs,
    /// Groups of layers whose weights count each by themselves: models are read once for each and once more, and where weights
    /// differ from layer to layer losses are predicted better
    #[arg(long, value_name = "N", value_parser = count, default_value_t = 1)]
    groups: usize,
    /// Tokens of the vocabulary to keep for each token of the texts; a vocabulary of up to twice as many is kept whole
    #[arg(long, value_name = "K", value_parser = count, default_value_t = TOP)]
    top: usize,
    /// Memory for states and logits [default: 2GiB, at most half of what is free]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    host_memory: Option<u64>,
    #[command(flatten)]
    work: WorkArgs,
}

/// With so many, what the rest comes to hardly shows.
pub(super) const TOP: usize = 512;

/// A config, and the merge that it stands for.
struct Candidate {
    file: String,
    /// Which of its models is the base, if it names one.
    base: Option<usize>,
    /// The folders of each model: its own, and that of its adapter.
    folders: Vec<[Option<PathBuf>; 2]>,
    blend: Blend,
}

impl Candidate {
    fn of(config: &Path, remote: Remote) -> Result<Self> {
        let file = config.display().to_string();
        let config = read_config(config)?;
        config.warnings.iter().for_each(|warning| show::warning(&Error::config(warning.message.as_str())));
        let Prepared { plan, sources, .. } = prepare_config(config, &Choices { remote, ..Choices::USUAL })?;
        plan.warnings.iter().for_each(show::warning);
        let blend = Blend::of(&plan, &sources).map_err(|mut error| {
            error.message = format!("{}: {}", escaped(&file), error.message);
            error
        })?;
        let folder = |source: usize| {
            let path = &sources[source].folder.path;
            path.canonicalize().unwrap_or_else(|_| path.clone())
        };
        let of_model = |model: &PlannedModel| [Some(folder(model.source)), model.adapter.map(folder)];
        let folders = plan.models.iter().map(of_model).collect();
        Ok(Self { file, base: plan.base, folders, blend })
    }
}

/// The models of all configs, each once, whatever it is called. A base comes first, if there is one: the others' task vectors are
/// differences to it. Merges get these names.
fn models_of(candidates: &mut [Candidate]) -> Vec<String> {
    let mut names = IndexMap::new();
    let with_base = candidates.iter().find_map(|candidate| Some((candidate, candidate.base?)));
    let (first, anchor) = with_base.unwrap_or((&candidates[0], 0));
    names.insert(first.folders[anchor].clone(), first.blend.models[anchor].clone());
    for Candidate { folders, blend, .. } in candidates {
        for (folders, name) in folders.iter().zip(&mut blend.models) {
            *name = names.entry(folders.clone()).or_insert_with(|| name.clone()).clone();
        }
    }
    names.into_values().collect()
}

/// Reads all sets with all models, predicts all merges, and reports.
pub(super) fn run(args: &PredictArgs) -> Result<()> {
    let progress = Progress::new(args.work.quiet)?;
    let texts = args.texts.read()?;
    let mut candidates = args
        .configs
        .iter()
        .map(|config| Candidate::of(config, args.work.hub.remote()))
        .collect::<Result<Vec<_>>>()?;
    let names = models_of(&mut candidates);
    let open = |name: &String| open(name, &texts, &args.texts, args.work.hub.remote());
    let models = names.iter().map(open).collect::<Result<Vec<_>>>()?;
    args.work.hub.bring_all(models.iter().flat_map(|(model, ..)| &model.sources), &progress)?;
    models.iter().flat_map(|(model, ..)| &model.notes).for_each(|note| show::note(note));
    let readings: Vec<Reading<'_>> = models.iter().map(|(model, _, sets)| Reading { model, sets }).collect();
    let options = Options {
        groups: args.groups,
        top: args.top,
        memory: memory(args.host_memory),
        threads: args.work.threads(),
    };
    let mut machine = args.machine.open(options.threads)?;
    progress.expect_steps(Parents::steps(&readings, &options));
    let sets: Vec<String> = texts.iter().map(|texts| texts.name.clone()).collect();
    let begun = Instant::now();
    let parents = Parents::measure(&readings, &sets, &options, &mut *machine, &Heard(&progress))?;
    let measured_s = begun.elapsed().as_secs_f64();
    progress.finish();
    let merges: Vec<Coefficients> =
        candidates.iter().map(|candidate| candidate.blend.coefficients(&names, &parents.groups)).collect();
    let of_merges: Vec<Vec<f64>> = merges.iter().map(|merge| merge.values.clone()).collect();
    let begun = Instant::now();
    let predicted: Vec<Vec<Estimate>> =
        (0..sets.len()).map(|set| parents.losses(set, &of_merges, options.threads)).collect();
    let found = Found {
        texts: &texts,
        windows: &models[0].2,
        parents: &parents,
        files: candidates.iter().map(|candidate| candidate.file.clone()).collect(),
        merges,
        predicted,
        measured_s,
        predicted_s: begun.elapsed().as_secs_f64() / of_merges.len() as f64,
    };
    for (file, merge) in found.files.iter().zip(&found.merges).filter(|(_, merge)| merge.apart > 0.0) {
        let note = format!(
            "{}: within a group of layers weights differ by up to {:.3} from their mean, which is used; {}",
            escaped(file),
            merge.apart,
            if parents.groups.count() < models[0].0.decoder.layers {
                "more --groups follow weights that differ by layer"
            } else {
                "what differs by the kind of a tensor is not followed"
            }
        );
        show::note(&note);
    }
    if args.work.json {
        show::json(&found.as_json());
    } else {
        found.table();
    }
    Ok(())
}

/// All that is reported.
struct Found<'a> {
    texts: &'a [Texts],
    windows: &'a [Windows],
    parents: &'a Parents,
    files: Vec<String>,
    merges: Vec<Coefficients>,
    /// Of each set the estimate for each merge.
    predicted: Vec<Vec<Estimate>>,
    measured_s: f64,
    predicted_s: f64,
}

impl Found<'_> {
    /// Why a merge is less sure.
    fn beyond(&self, merge: usize) -> Option<String> {
        self.merges[merge].beyond(&self.parents.groups).map(|beyond| beyond.to_string())
    }

    fn table(&self) {
        let parents = self.parents;
        let files = labels(&self.files);
        let names = [labels(&parents.names), files].map(|of| of.iter().map(|name| escaped(name)).collect());
        let [models, files]: [Vec<String>; 2] = names;
        let wide = wide(&models).max(wide(&files));
        for ((number, _), called) in self.texts.iter().enumerate().zip(names_of(self.texts)) {
            let windows = &self.windows[number];
            let form = if windows.texts == 1 { "text" } else { "texts" };
            show::line(&format!(
                "{} ({} {form}, {} tokens count)",
                escaped(&called),
                windows.texts,
                parents.counted(number)
            ));
            let titles = ("model or merge", "perplexity", "±", "loss");
            show::line(&format!("  {:<wide$} {:>11} {:>8} {:>8}", titles.0, titles.1, titles.2, titles.3));
            for (parent, name) in models.iter().enumerate() {
                row((name, wide), parents.loss_of_parent(number, parent), "measured");
            }
            for (merge, (file, estimate)) in files.iter().zip(&self.predicted[number]).enumerate() {
                let remark =
                    self.beyond(merge).map(|beyond| format!("predicted, beyond the parents: {beyond}"));
                row((file, wide), *estimate, remark.as_deref().unwrap_or("predicted"));
            }
        }
        let facts = &parents.facts;
        show::line(&format!(
            "{} of {} tokens of the vocabulary kept, with {:.2} % of the probability, in {}; {} of memory, {} pass{} over the weights in {:.1} s; {:.2} ms a merge",
            facts.top,
            facts.vocabulary,
            100.0 * facts.share,
            bytes(facts.kept_bytes),
            bytes(facts.bytes),
            facts.passes,
            if facts.passes == 1 { "" } else { "es" },
            self.measured_s,
            1e3 * self.predicted_s,
        ));
        if (0..self.files.len()).any(|merge| self.beyond(merge).is_some()) {
            show::note(
                "beyond the parents (a weight above 1 or below 0, or weights that add up to more than 1) predictions are less sure (docs/predict.md): merge and evaluate the best of these",
            );
        }
    }

    fn as_json(&self) -> Json {
        let estimate = |estimate: &Estimate| {
            json!({
                "loss": estimate.loss,
                "loss_standard_error": estimate.error,
                "perplexity": estimate.perplexity(),
            })
        };
        let parents = self.parents;
        let of_set = |set: usize| {
            let measured = parents.names.iter().enumerate().map(|(parent, name)| {
                let mut found = estimate(&parents.loss_of_parent(set, parent));
                found["parent"] = name.as_str().into();
                found
            });
            let predicted =
                self.predicted[set].iter().zip(&self.files).enumerate().map(|(merge, (own, file))| {
                    let mut found = estimate(own);
                    found["config"] = file.as_str().into();
                    found["beyond_parents"] = self.beyond(merge).into();
                    found
                });
            json!({
                "name": self.texts[set].name,
                "file": self.texts[set].file,
                "kind": self.texts[set].form.name(),
                "counted_tokens": parents.counted(set),
                "parents": measured.collect::<Vec<_>>(),
                "merges": predicted.collect::<Vec<_>>(),
            })
        };
        let merges = self.files.iter().zip(&self.merges).map(|(file, merge)| {
            json!({ "config": file, "coefficients": merge.values, "weights_differ_by": merge.apart })
        });
        json!({
            "parents": parents.names,
            "groups": parents.groups.count(),
            "merges": merges.collect::<Vec<_>>(),
            "sets": (0..self.texts.len()).map(of_set).collect::<Vec<_>>(),
            "kept_tokens": parents.facts.top,
            "vocabulary": parents.facts.vocabulary,
            "kept_probability": parents.facts.share,
            "kept_bytes": parents.facts.kept_bytes,
            "memory_bytes": parents.facts.bytes,
            "device_memory_bytes": parents.facts.device_bytes,
            "passes": parents.facts.passes,
            "seconds": self.measured_s,
            "seconds_per_merge": self.predicted_s,
        })
    }
}

fn row((name, wide): (&str, usize), estimate: Estimate, remark: &str) {
    let spread = estimate.perplexity() * estimate.error;
    show::line(&format!(
        "  {:<wide$} {:>11} {:>8} {:>8.4}  {remark}",
        cut_to(name, wide),
        figure(estimate.perplexity()),
        if spread.is_finite() { figure(spread) } else { "–".into() },
        estimate.loss,
    ));
}

//! What can be known of a merge before it is made, from the weights alone: how far its models are from each other and from their base,
//! in what they agree, and what the method can do with that.
//!
//! One pass over the inputs adds up, for every tensor, inner products of models and of task vectors, masses, signs and zeros; what needs
//! single elements is asked of a sample of large tensors, and of all elements of others. Sums of layers, of kinds of modules and of the
//! whole follow. [`findings`] puts into sentences what the numbers carry, each with its threshold; that a merge will be good is not
//! among it.
//!
//! ```text
//! plan ──> pass (a job for each tensor) ──> tensors ──> groups ──> findings ──> page, JSON
//! ```

mod chosen;
mod elements;
mod findings;
mod pass;
mod predictions;
mod rank;
mod report;
mod sums;

use indexmap::{IndexMap, IndexSet};
use regex::Regex;

use crate::Prepared;
use crate::checkpoint::names::{is_head, is_looked_up, is_over_vocabulary, is_token_embedding};
use crate::checkpoint::{Reads, Source};
use crate::error::{Error, Result};
use crate::method::{Method, Scope, Settings, Value, ValueKind};
use crate::plan::{Action, Merge, Plan, layered};
use crate::stream::Watch;
use crate::text::labels;

pub use findings::{Finding, findings};
use pass::{Found, Job, Pass};
pub use predictions::{Agreed, Predictions};
pub use rank::Rank;
pub use report::html;
pub use sums::{One, Pair, Sums, Task, TaskPair, Vote, pair, pairs};

/// What trimming is looked at with where the config has no density below 1: that of the TIES paper (arXiv 2306.01708).
pub const USUAL_DENSITY: f64 = 0.2;

/// The shares at which quantiles of magnitudes are given.
pub const QUANTILES: [f64; 4] = [0.1, 0.5, 0.9, 0.99];

/// What is wanted beyond the usual.
#[derive(Debug, Default)]
pub struct Request {
    /// The matrices of whose task vectors the ranks are computed: any part of their names fits one of these.
    pub rank: Vec<Regex>,
    /// Worker threads.
    pub threads: usize,
    /// How the inputs are read.
    pub reads: Reads,
}

/// A model of the merge, as a column of all tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// As the config has it.
    pub name: String,
    /// As much of its end as tells the models apart.
    pub short: String,
}

/// Models beside each other.
fn as_columns(names: &[String]) -> Vec<Column> {
    let of = |(name, short): (&String, String)| Column { name: name.clone(), short };
    names.iter().zip(labels(names)).map(of).collect()
}

/// The columns, and which of them is the base.
#[derive(Debug)]
pub struct Columns {
    columns: Vec<Column>,
    /// The base, if the config names one and its tensors are read.
    pub base: Option<usize>,
}

/// The numbers of a config that matter for a tensor.
#[derive(Debug, Clone, PartialEq)]
struct Settled {
    /// The density of each task vector.
    densities: Vec<f64>,
    /// The weight of each task vector.
    weights: Vec<f64>,
    /// What each model counts in an interpolation of any two.
    shares: Vec<f64>,
}

/// What was found.
#[derive(Debug)]
pub struct Analysis {
    /// The method of the config.
    pub method: &'static Method,
    /// The models.
    pub columns: Columns,
    /// Every tensor that is merged of two models or more, in the order of the output.
    pub tensors: Vec<Tensor>,
    /// Tensors by layer, in the order in which they are met; those of no layer are not among them.
    pub layers: Vec<Group>,
    /// Tensors by the kind of their module.
    pub kinds: Vec<Group>,
    /// All of them.
    pub whole: Group,
    /// Ranks of task vectors, where they are wanted.
    pub ranks: Vec<Rank>,
    /// The densities that trimming is looked at with: the least and the largest, and whether they are the config's.
    pub densities: (f64, f64, bool),
    /// The places between two models at which interpolations are compared: the least and the largest.
    pub places: (f64, f64),
    /// What the models make of texts, where that was asked for: whoever can run them fills it in.
    pub predictions: Vec<Predictions>,
    /// Tensors of the output that are not compared, because they come from one model.
    pub not_compared: usize,
}

/// A tensor.
#[derive(Debug)]
pub struct Tensor {
    /// Its name in the output.
    pub name: String,
    /// The group of its layer, if it has one.
    pub layer: Option<usize>,
    /// The group of its kind.
    pub kind: usize,
    /// What was added up.
    pub sums: Sums,
    /// How many elements the sample has for quantiles and trimming: all, of a small tensor.
    pub sample: u64,
    /// Of the task vector of each column, magnitudes that stand for all.
    points: Vec<Vec<f32>>,
}

/// Tensors that are looked at together.
#[derive(Debug)]
pub struct Group {
    /// What they have in common.
    pub name: String,
    /// What was added up.
    pub sums: Sums,
    /// Their numbers.
    pub members: Vec<usize>,
}

impl Columns {
    /// How many there are.
    #[expect(clippy::len_without_is_empty, reason = "there are at least two")]
    pub fn len(&self) -> usize {
        self.columns.len()
    }

    /// The columns, in their order.
    pub fn iter(&self) -> impl Iterator<Item = &Column> {
        self.columns.iter()
    }

    /// The name of a column.
    pub fn name(&self, column: usize) -> &str {
        &self.columns[column].name
    }

    /// Its short name.
    pub fn short(&self, column: usize) -> &str {
        &self.columns[column].short
    }

    /// The columns that have task vectors: all but the base, where there is one.
    pub fn tasks(&self) -> Vec<usize> {
        self.base.map_or_else(Vec::new, |base| (0..self.len()).filter(|column| *column != base).collect())
    }

    /// All pairs of models, the base among them.
    pub fn all_pairs(&self) -> impl Iterator<Item = (usize, usize)> {
        pairs(self.len())
    }

    /// The pairs of models that a merge is about: of those that are not the base, or of the base and the only other one.
    pub fn pairs(&self) -> Vec<(usize, usize)> {
        let others = |(a, b): &(usize, usize)| self.base.is_none_or(|base| ![*a, *b].contains(&base));
        match pairs(self.len()).filter(others).collect::<Vec<_>>() {
            none if none.is_empty() => pairs(self.len()).collect(),
            found => found,
        }
    }

    /// The pairs of task vectors.
    pub fn task_pairs(&self) -> Vec<(usize, usize)> {
        let base = self.base;
        pairs(self.len()).filter(|(a, b)| base.is_some_and(|base| ![*a, *b].contains(&base))).collect()
    }
}

/// What of a plan is compared.
struct Compared {
    columns: Columns,
    /// Whether the config leaves something of a task vector out.
    trims: bool,
    jobs: Vec<Job>,
}

/// The tensors that are compared, and the models as columns.
fn compared(plan: &Plan) -> Result<Compared> {
    let mut columns = IndexSet::new();
    let mut merges = Vec::new();
    for (number, tensor) in plan.tensors.iter().enumerate() {
        let Action::Merge(merge) = &tensor.action else { continue };
        if merge.models.len() < 2 || tensor.elements == 0 {
            continue;
        }
        let places = merge.models.iter().map(|model| columns.insert_full(*model).0).collect();
        merges.push((number, &**merge, places));
    }
    if merges.is_empty() {
        let what = match plan.models.len() {
            0 | 1 => "there is one model in this config, and nothing to compare it with",
            _ => {
                "no tensor of this config is merged of two models: each comes from one, and there is nothing to compare"
            }
        };
        return Err(Error::config(what)
            .hint("name the models that a merge would have, with a method that merges them, like `linear`"));
    }
    let base = plan.base.and_then(|base| columns.get_index_of(&base));
    let names: Vec<String> = columns.iter().map(|model| plan.models[*model].name.clone()).collect();
    let columns = Columns { columns: as_columns(&names), base };
    let job = |(tensor, merge, places): (usize, &Merge, Vec<usize>)| {
        let count = places.len();
        let own_base = places.iter().position(|column| Some(*column) == columns.base);
        Job {
            tensor,
            inputs: merge.inputs[..count].to_vec(),
            floats: merge.floats[..count].to_vec(),
            settled: Settled::of(merge, own_base, count),
            base: own_base,
            columns: places,
        }
    };
    let mut jobs: Vec<Job> = merges.into_iter().map(job).collect();
    let trims = jobs.iter().any(|job| job.settled.densities.iter().any(|density| *density < 1.0));
    if !trims {
        jobs.iter_mut().for_each(|job| job.settled.densities.fill(USUAL_DENSITY));
    }
    Ok(Compared { columns, trims, jobs })
}

/// The values of a parameter that each model has, where the method has such a number.
fn of_models(method: &Method, settings: &Settings, name: &str, count: usize) -> Option<Vec<f64>> {
    let has = method.parameters.iter().any(|parameter| {
        parameter.name == name && parameter.scope != Scope::Shared && parameter.kind == ValueKind::Number
    });
    let value = |input: usize| {
        let values = settings.per_input.get(input)?;
        match values.iter().find(|(parameter, _)| *parameter == name)?.1 {
            Value::Number(number) => Some(number),
            _ => None,
        }
    };
    // The base of some methods has no value.
    has.then(|| (0..count).map(|input| value(input).unwrap_or(0.0)).collect())
}

impl Settled {
    fn of(merge: &Merge, base: Option<usize>, count: usize) -> Self {
        let Merge { method, settings, .. } = merge;
        let weights = of_models(method, settings, "weight", count);
        let of_tasks = |values: &[f64]| -> Vec<f64> {
            (0..count).filter(|model| Some(*model) != base).map(|model| values[model]).collect()
        };
        let densities = of_models(method, settings, "density", count).map(|values| of_tasks(&values));
        let between = method.parameters.iter().any(|parameter| {
            parameter.name == "t" && parameter.scope == Scope::Shared && parameter.kind == ValueKind::Number
        });
        let t = settings.shared.iter().find_map(|(name, value)| match value {
            Value::Number(t) if *name == "t" && between && count == 2 => Some(*t),
            _ => None,
        });
        let shares = match (t, base) {
            (Some(t), Some(base)) => (0..2).map(|model| if model == base { 1.0 - t } else { t }).collect(),
            _ => weights.clone().unwrap_or_else(|| vec![1.0; count]),
        };
        let tasks = count - usize::from(base.is_some());
        Self {
            densities: densities.unwrap_or_else(|| vec![1.0; tasks]),
            weights: weights.map_or_else(|| vec![1.0; tasks], |weights| of_tasks(&weights)),
            shares,
        }
    }

    /// Where between two models an interpolation is.
    fn place(&self, first: usize, second: usize) -> f64 {
        let both = self.shares[first] + self.shares[second];
        if both > 0.0 { self.shares[second] / both } else { 0.5 }
    }
}

/// The bytes that [`analyze`] goes over, once each; ranks read theirs again.
///
/// # Errors
/// Those of [`analyze`] that the plan shows.
pub fn measured_bytes(prepared: &Prepared) -> Result<u64> {
    Ok(pass::bytes(&prepared.plan, &compared(&prepared.plan)?.jobs))
}

/// Measures the models of a merge.
///
/// # Errors
/// There is nothing to compare, no matrix fits what is wanted of ranks, an input cannot be read or changes, or the user wants to stop.
pub fn analyze(prepared: &Prepared, request: &Request, watch: &dyn Watch) -> Result<Analysis> {
    let Prepared { plan, sources, .. } = prepared;
    let Compared { columns, trims, jobs } = compared(plan)?;
    let wanted = rank::wanted(plan, &columns, &jobs, &request.rank)?;
    let pass = Pass { plan, sources, columns: &columns, jobs: &jobs, reads: request.reads, watch };
    let measured = pass.run(request.threads).and_then(|found| {
        let ranks = rank::ranks(&pass, &wanted, request.threads)?;
        Ok((found, ranks))
    });
    // Inputs that change are the error, whatever came of them.
    sources.iter().try_for_each(Source::verify_unchanged)?;
    let (found, ranks) = measured?;
    Ok(grouped(plan, Compared { columns, trims, jobs }, found, ranks))
}

/// Puts the tensors in their groups.
fn grouped(plan: &Plan, compared: Compared, found: Vec<Found>, ranks: Vec<Rank>) -> Analysis {
    let Compared { columns, trims, jobs } = compared;
    let names: Vec<&str> = jobs.iter().map(|job| &*plan.tensors[job.tensor].name).collect();
    let kinds = kinds(&names);
    let stacks: Vec<&str> = names.iter().filter_map(|name| layered(name)).map(|layer| layer.stack).collect();
    let is_one_stack = stacks.windows(2).all(|pair| pair[0] == pair[1]);
    let (mut by_layer, mut by_kind) = (IndexMap::new(), IndexMap::new());
    let group = |name: String| Group { name, sums: Sums::new(columns.len()), members: Vec::new() };
    let mut whole = group("all".into());
    let mut tensors = Vec::new();
    for ((number, Found { sums, points, sample }), kind) in found.into_iter().enumerate().zip(kinds) {
        let name = names[number];
        let layer = layered(name).map(|layer| {
            if is_one_stack { layer.layer.to_string() } else { format!("{}.{}", layer.stack, layer.layer) }
        });
        let entry = |groups: &mut IndexMap<String, Group>, name: &str| {
            let entry = groups.entry(name.to_owned());
            let place = entry.index();
            let group = entry.or_insert_with(|| group(name.to_owned()));
            group.sums.add(&sums);
            group.members.push(number);
            place
        };
        let layer = layer.map(|layer| entry(&mut by_layer, &layer));
        let kind = entry(&mut by_kind, &kind);
        whole.sums.add(&sums);
        whole.members.push(number);
        tensors.push(Tensor { name: name.to_owned(), layer, kind, sums, sample, points });
    }
    let all = |values: &mut dyn Iterator<Item = f64>| {
        values.fold((f64::MAX, f64::MIN), |(least, most), value| (least.min(value), most.max(value)))
    };
    let (least, most) = all(&mut jobs.iter().flat_map(|job| job.settled.densities.iter().copied()));
    let place = |job: &Job| {
        let own = |column: usize| job.columns.iter().position(|own| *own == column);
        let of = |(a, b): (usize, usize)| Some(job.settled.place(own(a)?, own(b)?));
        columns.pairs().into_iter().filter_map(of).collect::<Vec<_>>()
    };
    let places = all(&mut jobs.iter().flat_map(place));
    Analysis {
        method: plan.method,
        tensors,
        layers: by_layer.into_values().collect(),
        kinds: by_kind.into_values().collect(),
        whole,
        ranks,
        densities: (least, most, trims),
        places,
        predictions: Vec::new(),
        not_compared: plan.tensors.len() - jobs.len(),
        columns,
    }
}

/// The kind of module that each tensor belongs to: the last part of its name, and the one before it where that alone would put
/// different modules together; embeddings, heads and norms under these words.
fn kinds(names: &[&str]) -> Vec<String> {
    /// The last parts of a name that are no numbers, without `.weight`.
    fn parts(name: &str) -> Vec<&str> {
        let name = name.strip_suffix(".weight").unwrap_or(name);
        let parts =
            name.split('.').filter(|part| !part.is_empty() && !part.bytes().all(|b| b.is_ascii_digit()));
        let parts: Vec<&str> = parts.collect();
        let own = if parts.last() == Some(&"bias") { 3 } else { 2 };
        parts[parts.len().saturating_sub(own)..].to_vec()
    }
    let word = |name: &str| {
        let is_norm = |part: &&str| part.contains("norm") || part.starts_with("ln_") || *part == "ln";
        if is_head(name) || is_over_vocabulary(name) && !is_token_embedding(name) {
            Some("head")
        } else if is_looked_up(name) {
            Some("embeddings")
        } else if parts(name).iter().rev().take(2).any(is_norm) {
            Some("norms")
        } else {
            None
        }
    };
    let short = |parts: &[&str]| parts[1.min(parts.len() - 1)..].join(".");
    let mut before: IndexMap<String, Vec<&str>> = IndexMap::new();
    for parts in names.iter().filter(|name| word(name).is_none()).map(|name| parts(name)) {
        if parts.len() > 1 {
            let known = before.entry(short(&parts)).or_default();
            if !known.contains(&parts[0]) {
                known.push(parts[0]);
            }
        }
    }
    let kind = |name: &&str| {
        let parts = parts(name);
        match word(name) {
            Some(word) => word.to_owned(),
            None if parts.is_empty() => (*name).to_owned(),
            None if before.get(&short(&parts)).is_some_and(|before| before.len() > 1) => parts.join("."),
            None => short(&parts),
        }
    };
    names.iter().map(kind).collect()
}

impl Analysis {
    /// Quantiles of the magnitudes of a column's task vector, at [`QUANTILES`]; of many tensors together they are as exact as 200 points
    /// of each tensor's distribution are.
    pub fn quantiles(&self, members: &[usize], column: usize) -> [f32; QUANTILES.len()] {
        let points = members.iter().flat_map(|member| {
            let tensor = &self.tensors[*member];
            let points = &tensor.points[column];
            let weight = tensor.sums.tasks[column].one.elements as f64 / points.len().max(1) as f64;
            points.iter().map(move |point| (*point, weight))
        });
        chosen::quantiles(points.collect(), QUANTILES)
    }

    /// The densities that trimming is looked at with, in words.
    pub fn density_in_words(&self) -> String {
        let (least, most, configured) = self.densities;
        let of = if configured { "of the config" } else { "as in the TIES paper: the config trims nothing" };
        if least == most {
            format!("density {least} ({of})")
        } else {
            format!("densities {least} to {most} ({of})")
        }
    }

    /// Where interpolations are compared, in words.
    pub fn place_in_words(&self) -> String {
        let rounded = |t: f64| (t * 1e4).round() / 1e4;
        let (least, most) = (rounded(self.places.0), rounded(self.places.1));
        if least == most { format!("t = {least}") } else { format!("t from {least} to {most}") }
    }

    /// Elements that are NaN or infinite, by column.
    pub fn not_finite(&self) -> impl Iterator<Item = (usize, u64)> {
        let models = self.whole.sums.models.iter().enumerate();
        models.map(|(column, of)| (column, of.not_finite)).filter(|(_, count)| *count > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_the_last_parts_of_names_where_these_tell_modules_apart() {
        let names = [
            "model.embed_tokens.weight",
            "model.layers.0.self_attn.q_proj.weight",
            "model.layers.0.self_attn.q_proj.bias",
            "model.layers.0.input_layernorm.weight",
            "model.layers.0.self_attn.q_norm.weight",
            "model.layers.0.mlp.experts.3.w1.weight",
            "model.layers.0.mlp.shared.w1.weight",
            "h.0.attn.c_proj.weight",
            "h.0.mlp.c_proj.weight",
            "h.0.ln_1.bias",
            "model.norm.weight",
            "lm_head.weight",
            "3.weight",
            "x",
        ];
        let expected = [
            "embeddings",
            "q_proj",
            "q_proj.bias",
            "norms",
            "norms",
            "experts.w1",
            "shared.w1",
            "attn.c_proj",
            "mlp.c_proj",
            "norms",
            "norms",
            "head",
            "3.weight",
            "x",
        ];
        assert_eq!(kinds(&names), expected);
    }
}

//! Which tensors the output has, and which input tensors belong to each.

use indexmap::IndexSet;

use super::{At, Base, LeftOut, Planner, Tensor, names};
use crate::checkpoint::Source;
use crate::config::{Inputs, Parameters, Slice};
use crate::error::Error;

/// One tensor of the output.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    pub(super) name: String,
    /// Where its layer stands in its slice, from 0 to 1; loose tensors stand at 0.
    pub(super) position: f64,
    pub(super) inputs: Vec<Want<'a>>,
    /// Which input is the base.
    pub(super) base: Option<usize>,
    /// The parameters that hold for all inputs, from the innermost outward.
    pub(super) outer: Vec<&'a Parameters>,
}

/// One model's tensor.
#[derive(Debug, Clone)]
pub(super) struct Want<'a> {
    pub(super) source: usize,
    pub(super) name: String,
    /// The parameters written under this model.
    pub(super) own: Option<&'a Parameters>,
}

/// A model in a list of models or a slice.
struct Member<'a> {
    source: usize,
    own: Option<&'a Parameters>,
}

impl<'a> Planner<'a> {
    /// Every tensor of the output. What is wrong with the models goes to the problems.
    pub(super) fn wanted(&mut self) -> Vec<Wanted<'a>> {
        let config = self.config;
        if self.method.base == Base::Required && config.base_model.is_none() && !self.every_slice_has_a_base()
        {
            let problem =
                config.error_at(config.merge_method.at, format!("{} needs a base_model", self.method.name));
            self.problems
                .add(problem.hint("add `base_model:`, the checkpoint that the others were trained from"));
        }
        match &config.inputs {
            Inputs::Models(models) => {
                let mut members: Vec<_> = models
                    .iter()
                    .map(|input| Member {
                        source: self.source_of(&input.model.value),
                        own: Some(&input.parameters),
                    })
                    .collect();
                for (i, input) in models.iter().enumerate() {
                    if models[..i].iter().any(|other| other.model.value == input.model.value) {
                        let problem =
                            config.error_at(input.model.at, format!("{} is listed twice", input.model.value));
                        self.problems.add(problem.hint("list each model once"));
                    }
                }
                let base = config.base_model.as_ref().map(|base| self.source_of(&base.value));
                if let Some(base) = base.filter(|base| members.iter().all(|member| member.source != *base)) {
                    members.push(Member { source: base, own: None });
                }
                self.check_count(members.len(), config.merge_method.at);
                self.of_models(&members, base)
            }
            Inputs::Slices(slices) => self.of_slices(slices),
        }
    }

    fn every_slice_has_a_base(&self) -> bool {
        match &self.config.inputs {
            Inputs::Models(_) => false,
            Inputs::Slices(slices) => slices.iter().all(|slice| slice.base_model.is_some()),
        }
    }

    fn check_count(&mut self, count: usize, at: crate::config::Position) {
        let (low, high) = (*self.method.models.start(), *self.method.models.end());
        if (low..=high).contains(&count) {
            return;
        }
        let takes = match (low, high) {
            (low, high) if low == high => format!("exactly {low}"),
            (low, usize::MAX) => format!("at least {low}"),
            (low, high) => format!("{low} to {high}"),
        };
        let with_base = if self.method.base == Base::Required { " (the base included)" } else { "" };
        let name = self.method.name;
        let problem =
            self.config.error_at(at, format!("{name} merges {takes} models{with_base}, not {count}"));
        self.problems.add(problem.hint("a base_model that is not listed counts as one more"));
    }

    /// The tensors of whole models: all names, the donor's in its order first.
    fn of_models(&mut self, members: &[Member<'a>], base: Option<usize>) -> Vec<Wanted<'a>> {
        let layers = self.common_layers(members);
        let donor = base.unwrap_or(members[0].source);
        let in_order = std::iter::once(donor).chain(members.iter().map(|member| member.source));
        let sources = self.sources;
        let all: IndexSet<&str> = in_order
            .flat_map(|source| sources[source].tensors().map(|tensor| tensor.name.as_str()))
            .collect();
        let wanted = |name: &str| {
            let position = names::layered(name).map_or(0.0, |l| position(l.layer, layers[l.stack]));
            let want =
                |member: &Member<'a>| Want { source: member.source, name: name.into(), own: member.own };
            Wanted {
                name: name.into(),
                position,
                inputs: members.iter().map(want).collect(),
                base: members.iter().position(|member| Some(member.source) == base),
                outer: vec![&self.config.parameters],
            }
        };
        all.into_iter().map(wanted).collect()
    }

    /// How many layers each stack has; models with different numbers are a problem.
    fn common_layers(&mut self, members: &[Member<'_>]) -> indexmap::IndexMap<&'a str, usize> {
        let mut common: indexmap::IndexMap<&str, usize> = indexmap::IndexMap::new();
        for member in members {
            let source = &self.sources[member.source];
            for (stack, layers) in names::stacks(source.tensors().map(|tensor| tensor.name.as_str())) {
                let known = *common.entry(stack).or_insert(layers);
                if known != layers {
                    let first = self.name_of(members[0].source);
                    let problem =
                        format!("{} has {layers} layers in {stack}, {first} has {known}", source.name);
                    self.problems.add(
                        Error::config(problem)
                            .hint("pick the layers to merge with `slices:` and `layer_range`"),
                    );
                }
            }
        }
        common
    }

    /// The tensors of stacked slices: loose ones before, the layers renumbered, loose ones after.
    fn of_slices(&mut self, slices: &'a [Slice]) -> Vec<Wanted<'a>> {
        let stacks: Vec<Option<Stack>> = self.sources.iter().map(Stack::of).collect();
        let mut stacked = Vec::new();
        let mut next_layer = 0;
        for slice in slices {
            self.check_count(slice.sources.len(), slice.at);
            let Some(parts) = self.parts(slice, &stacks) else { continue };
            let layers = parts[0].layers;
            for i in 0..layers {
                stacked.extend(self.layer(slice, &parts, i, next_layer + i));
            }
            next_layer += layers;
        }
        let (first, last) = (&slices[0], &slices[slices.len() - 1]);
        let mut all = self.loose(first, true);
        all.extend(stacked);
        all.extend(self.loose(last, false));
        all
    }

    /// Which layers of which models a slice takes; `None` with a problem.
    fn parts<'s>(&mut self, slice: &'a Slice, stacks: &'s [Option<Stack<'a>>]) -> Option<Vec<Part<'a, 's>>> {
        let mut parts: Vec<Part<'a, 's>> = Vec::new();
        for written in &slice.sources {
            let source = self.source_of(&written.model.value);
            let name = self.name_of(source);
            if parts.iter().any(|part| part.source == source) {
                let problem = self.config.error_at(written.model.at, format!("{name} is twice in one slice"));
                self.problems.add(problem.hint("put its layers into slices of their own"));
                return None;
            }
            let Some(stack) = &stacks[source] else {
                let problem =
                    format!("slices need models with one stack of layers, and {name} has another number");
                self.problems
                    .add(self.config.error_at(written.model.at, problem).hint("use `models:` instead"));
                return None;
            };
            let had = stack.layers.len();
            let range = written.layer_range.as_ref().map_or(0..had, |range| range.value.clone());
            if range.end > had {
                let at = written.layer_range.as_ref().map_or(slice.at, |range| range.at);
                let problem = format!(
                    "layer_range [{}, {}] goes past the end: {name} has {had} layers",
                    range.start, range.end
                );
                self.problems
                    .add(self.config.error_at(at, problem).hint(format!("the last range can end at {had}")));
                return None;
            }
            parts.push(Part {
                source,
                own: &written.parameters,
                stack,
                first: range.start,
                layers: range.len(),
            });
        }
        if parts.iter().any(|part| part.layers != parts[0].layers) {
            self.problems.add(
                self.config.error_at(slice.at, "the sources of this slice have different numbers of layers"),
            );
            return None;
        }
        Some(parts)
    }

    /// The base's place among a slice's sources. A method that needs one and finds none is a problem.
    fn base_in(&mut self, slice: &'a Slice) -> Option<usize> {
        let base = slice.base_model.as_ref().or(self.config.base_model.as_ref())?;
        let place = slice.sources.iter().position(|source| source.model.value == base.value);
        if place.is_none() && self.method.base == Base::Required {
            let problem = format!("the base model {} is not among the sources of this slice", base.value);
            self.problems.add(
                self.config
                    .error_at(slice.at, problem)
                    .hint("list it as a source, with the same number of layers"),
            );
        }
        place
    }

    /// The tensors of one layer of a slice.
    fn layer(
        &mut self,
        slice: &'a Slice,
        parts: &[Part<'a, '_>],
        i: usize,
        out_layer: usize,
    ) -> Vec<Wanted<'a>> {
        let base = self.base_in(slice);
        let donor = base.unwrap_or(0);
        let outer = vec![&slice.parameters, &self.config.parameters];
        let rests = |part: &Part<'a, '_>| part.stack.layers[part.first + i].clone();
        let all: IndexSet<&str> = std::iter::once(&parts[donor]).chain(parts).flat_map(rests).collect();
        let wanted = |rest: &str| {
            let named = |stack, layer| names::Layered { stack, layer, rest }.named(layer);
            let want = |part: &Part<'a, '_>| Want {
                source: part.source,
                name: named(part.stack.name, part.first + i),
                own: Some(part.own),
            };
            Wanted {
                name: named(parts[donor].stack.name, out_layer),
                position: position(i, parts[0].layers),
                inputs: parts.iter().map(want).collect(),
                base,
                outer: outer.clone(),
            }
        };
        all.into_iter().map(wanted).collect()
    }

    /// The loose tensors of a slice's models, those before the layers or those after.
    fn loose(&mut self, slice: &'a Slice, before: bool) -> Vec<Wanted<'a>> {
        let base = self.base_in(slice);
        let members: Vec<_> = slice
            .sources
            .iter()
            .map(|source| Member {
                source: self.source_of(&source.model.value),
                own: Some(&source.parameters),
            })
            .collect();
        let sources = self.sources;
        let donor = members[base.unwrap_or(0)].source;
        let in_order = std::iter::once(donor).chain(members.iter().map(|member| member.source));
        let all: IndexSet<&str> = in_order
            .flat_map(|source| sources[source].tensors().map(|tensor| tensor.name.as_str()))
            .filter(|name| names::layered(name).is_none() && names::before_layers(name) == before)
            .collect();
        let wanted = |name: &str| Wanted {
            name: name.into(),
            position: 0.0,
            inputs: members
                .iter()
                .map(|m| Want { source: m.source, name: name.into(), own: m.own })
                .collect(),
            base,
            outer: vec![&slice.parameters, &self.config.parameters],
        };
        all.into_iter().map(wanted).collect()
    }
}

/// The only stack of a model.
struct Stack<'a> {
    name: &'a str,
    /// The tensors of each layer, by their names within it.
    layers: Vec<Vec<&'a str>>,
}

impl<'a> Stack<'a> {
    fn of(source: &'a Source) -> Option<Self> {
        let mut stack: Option<Self> = None;
        for tensor in source.tensors().filter_map(|tensor| names::layered(&tensor.name)) {
            let stack = stack.get_or_insert(Self { name: tensor.stack, layers: Vec::new() });
            if stack.name != tensor.stack {
                return None;
            }
            stack.layers.resize(stack.layers.len().max(tensor.layer + 1), Vec::new());
            stack.layers[tensor.layer].push(tensor.rest);
        }
        stack
    }
}

/// One model's layers in a slice.
struct Part<'a, 's> {
    source: usize,
    own: &'a Parameters,
    stack: &'s Stack<'a>,
    first: usize,
    layers: usize,
}

/// Where layer `layer` of `layers` stands; the only layer of a slice stands at its end.
fn position(layer: usize, layers: usize) -> f64 {
    if layers < 2 { 1.0 } else { layer as f64 / (layers - 1) as f64 }
}

/// Whether a model's config.json says that its head is tied; models with several parts say it of the text's.
pub(super) fn says_tied(source: &Source) -> Option<bool> {
    let key = "tie_word_embeddings";
    let in_text = || source.config.get("text_config").and_then(|text| text.get(key));
    source.config.get(key).or_else(in_text).and_then(serde_json::Value::as_bool)
}

/// The input embedding of a model whose head is tied to it, when `name` is that head.
pub(super) fn tied_embedding(source: &Source, name: &str) -> Option<usize> {
    if !names::is_head(name) || says_tied(source) == Some(false) {
        return None;
    }
    let mut embeddings = source.tensors().enumerate().filter(|(_, tensor)| names::is_embedding(&tensor.name));
    let (only, _) = embeddings.next()?;
    embeddings.next().is_none().then_some(only)
}

/// Input tensors that no tensor of the output comes from, by model: layers together, loose ones by name.
pub(super) fn left_out(sources: &[Source], tensors: &[Tensor]) -> Vec<LeftOut> {
    let mut used: Vec<Vec<bool>> =
        sources.iter().map(|source| vec![false; source.tensors().count()]).collect();
    for tensor in tensors {
        let inputs: &[At] = match &tensor.action {
            super::Action::Copy(copy) => &copy.holders,
            super::Action::Merge(merge) => &merge.inputs,
        };
        inputs.iter().for_each(|at| used[at.source][at.tensor] = true);
    }
    let mut all = Vec::new();
    for (source, used) in sources.iter().zip(used) {
        let unused =
            source.tensors().zip(used).filter(|(_, used)| !used).map(|(tensor, _)| tensor.name.as_str());
        let (layered, loose): (Vec<&str>, Vec<&str>) =
            unused.partition(|name| names::layered(name).is_some());
        let mut entry =
            |what: String, tensors: usize| all.push(LeftOut { model: source.name.clone(), what, tensors });
        let layers: std::collections::BTreeSet<usize> =
            layered.iter().filter_map(|n| names::layered(n)).map(|l| l.layer).collect();
        if !layers.is_empty() {
            let word = if layers.len() == 1 { "layer" } else { "layers" };
            entry(format!("{word} {}", runs(layers.into_iter())), layered.len());
        }
        loose.iter().for_each(|name| entry((*name).into(), 1));
    }
    all
}

/// Ascending numbers as runs: `0–3, 7`.
fn runs(numbers: impl Iterator<Item = usize>) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for number in numbers {
        match runs.last_mut() {
            Some((_, end)) if *end + 1 == number => *end = number,
            _ => runs.push((number, number)),
        }
    }
    let run = |(start, end): &(usize, usize)| {
        if start == end { format!("{start}") } else { format!("{start}–{end}") }
    };
    runs.iter().map(run).collect::<Vec<_>>().join(", ")
}

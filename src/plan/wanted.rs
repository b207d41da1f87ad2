//! Which tensors the output has, and which input tensors belong to each.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use indexmap::{IndexMap, IndexSet};

use super::{Base, LeftOut, Planner, names};
use crate::checkpoint::Source;
use crate::checkpoint::layout::TENSORS_MAX;
use crate::config::{ElementFiles, Inputs, Parameters, Slice, SliceSource};
use crate::error::Error;
use crate::input::Input;
use crate::text::runs;

/// One tensor of the output.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    pub(super) name: Cow<'a, str>,
    /// Where its layer stands in its slice, from 0 to 1; loose tensors stand at 0.
    pub(super) position: f64,
    /// The models that it is made from.
    pub(super) members: Rc<Members<'a>>,
    /// Of a tensor of a slice's layers: the layer, counted in the slice, and the name within it. All others have one name in
    /// all models.
    layer: Option<(usize, &'a str)>,
}

/// The models of a list of models, or of a slice.
#[derive(Debug)]
pub(super) struct Members<'a> {
    all: Vec<Member<'a>>,
    /// Which of them is the base.
    pub(super) base: Option<usize>,
    /// The parameters of the slice.
    pub(super) slice: Option<&'a Parameters>,
}

/// A model in a list of models or a slice.
#[derive(Debug)]
struct Member<'a> {
    source: usize,
    own: Option<&'a Parameters>,
    files: Option<&'a ElementFiles>,
    /// Of a slice's layers: the stack they come from, and the first of them.
    from: Option<(&'a str, usize)>,
}

/// One model's tensor.
#[derive(Debug)]
pub(super) struct Want<'w, 'a> {
    pub(super) source: usize,
    pub(super) name: Cow<'w, str>,
    /// The parameters written under this model.
    pub(super) own: Option<&'a Parameters>,
    /// The files beside it that say something of its elements.
    pub(super) files: Option<&'a ElementFiles>,
}

impl<'a> Wanted<'a> {
    /// The tensors that it is made from, one of each model.
    pub(super) fn inputs(&self) -> Vec<Want<'_, 'a>> {
        let want = |member: &Member<'a>| {
            let name = match (self.layer, member.from) {
                (Some((layer, rest)), Some((stack, first))) => {
                    names::Layered { stack, layer, rest }.named(first + layer).into()
                }
                _ => Cow::Borrowed(&*self.name),
            };
            Want { source: member.source, name, own: member.own, files: member.files }
        };
        self.members.all.iter().map(want).collect()
    }
}

impl<'a> Planner<'a> {
    /// Every tensor of the output. What is wrong with the models goes to the problems.
    pub(super) fn wanted(&mut self) -> Vec<Wanted<'a>> {
        match &self.config.inputs {
            Inputs::Models(models) => {
                let mut members: Vec<_> = models
                    .iter()
                    .map(|input| Member {
                        source: self.source_of(&input.model.value),
                        own: Some(&input.parameters),
                        files: Some(&input.files),
                        from: None,
                    })
                    .collect();
                let base = self.config.base_model.as_ref().map(|base| self.source_of(&base.value));
                if let Some(base) = base.filter(|base| members.iter().all(|member| member.source != *base)) {
                    members.push(Member { source: base, own: None, files: None, from: None });
                }
                let base = members.iter().position(|member| Some(member.source) == base);
                self.of_models(Members { all: members, base, slice: None })
            }
            Inputs::Slices(slices) => self.of_slices(slices),
        }
    }

    /// The tensors of whole models: all names, the donor's in its order first.
    fn of_models(&mut self, members: Members<'a>) -> Vec<Wanted<'a>> {
        let layers = self.common_layers(&members.all);
        let names = self.names(&members, |_| true);
        let members = Rc::new(members);
        let wanted = |name: &'a str| {
            let position = names::layered(name).map_or(0.0, |l| position(l.layer, layers[l.stack]));
            Wanted { name: name.into(), position, members: Rc::clone(&members), layer: None }
        };
        names.into_iter().map(wanted).collect()
    }

    /// The names of all members' tensors that are wanted, the donor's first. Too many are a problem, and none.
    fn names(&mut self, members: &Members<'a>, wanted: impl Fn(&str) -> bool) -> IndexSet<&'a str> {
        let donor = &members.all[members.base.unwrap_or(0)];
        let mut names = IndexSet::new();
        for member in std::iter::once(donor).chain(&members.all) {
            let own = self.sources[member.source].tensors().map(|tensor| tensor.name.as_str());
            names.extend(own.filter(|name| wanted(name)));
            if self.has_too_many(names.len()) {
                return IndexSet::new();
            }
        }
        names
    }

    /// Whether these are more tensors than any checkpoint has, which is then a problem.
    fn has_too_many(&mut self, tensors: usize) -> bool {
        if tensors > TENSORS_MAX {
            let message = format!("the output would have more than {TENSORS_MAX} tensors");
            self.problems.add(Error::config(message).hint("no checkpoint of so many can be read again"));
        }
        tensors > TENSORS_MAX
    }

    /// How many layers each stack has; models with different numbers are a problem.
    fn common_layers(&mut self, members: &[Member<'_>]) -> IndexMap<&'a str, usize> {
        let mut common: IndexMap<&str, usize> = IndexMap::new();
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
        let stacks: Vec<Option<Stack>> = self.models.iter().map(Stack::of).collect();
        let (first, last) = (&slices[0], &slices[slices.len() - 1]);
        let mut all = self.loose(first, true);
        let mut next_layer = 0;
        for slice in slices {
            let Some(parts) = self.parts(slice, &stacks) else { continue };
            all.extend(self.layers(slice, &parts, next_layer));
            next_layer += parts[0].layers;
            if self.has_too_many(all.len()) || self.has_too_many_layers(next_layer) {
                return Vec::new();
            }
        }
        all.extend(self.loose(last, false));
        all
    }

    /// Whether these are more layers than any model has, which is then a problem.
    fn has_too_many_layers(&mut self, layers: usize) -> bool {
        if layers > names::LAYERS_MAX {
            let message = format!("the slices have more than {} layers together", names::LAYERS_MAX);
            self.problems.add(Error::config(message).hint("no model has so many"));
        }
        layers > names::LAYERS_MAX
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
            let had = stack.len();
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
                files: &written.files,
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
        if place.is_none() && self.method.base != Base::Ignored {
            let problem = format!("the base model {} is not among the sources of this slice", base.value);
            self.problems.add(
                self.config
                    .error_at(slice.at, problem)
                    .hint("list it as a source, with the same number of layers"),
            );
        }
        place
    }

    /// The tensors of a slice's layers, which become layers of the output from `first` on.
    fn layers(&mut self, slice: &'a Slice, parts: &[Part<'a, '_>], first: usize) -> Vec<Wanted<'a>> {
        let base = self.base_in(slice);
        let donor = &parts[base.unwrap_or(0)];
        let members = Rc::new(Members {
            all: parts.iter().map(Part::member).collect(),
            base,
            slice: Some(&slice.parameters),
        });
        let layer = |i: usize| {
            let rests = std::iter::once(donor).chain(parts).flat_map(move |part| part.tensors(i));
            let wanted = |rest: &'a str| Wanted {
                name: names::Layered { stack: donor.stack.name, layer: i, rest }.named(first + i).into(),
                position: position(i, donor.layers),
                members: Rc::clone(&members),
                layer: Some((i, rest)),
            };
            rests.collect::<IndexSet<_>>().into_iter().map(wanted).collect::<Vec<_>>()
        };
        // Numbers that no tensor has cost nothing, however many a config or a name makes of them.
        let held: BTreeSet<usize> = parts.iter().flat_map(Part::held).collect();
        held.into_iter().flat_map(layer).collect()
    }

    /// The loose tensors of a slice's models, those before the layers or those after.
    fn loose(&mut self, slice: &'a Slice, before: bool) -> Vec<Wanted<'a>> {
        let member = |source: &'a SliceSource| Member {
            source: self.source_of(&source.model.value),
            own: Some(&source.parameters),
            files: Some(&source.files),
            from: None,
        };
        let all = slice.sources.iter().map(member).collect();
        let members = Members { all, base: self.base_in(slice), slice: Some(&slice.parameters) };
        let loose = |name: &str| names::layered(name).is_none() && names::before_layers(name) == before;
        let names = self.names(&members, loose);
        let members = Rc::new(members);
        let wanted = |name: &'a str| Wanted {
            name: name.into(),
            position: 0.0,
            members: Rc::clone(&members),
            layer: None,
        };
        names.into_iter().map(wanted).collect()
    }
}

/// The only stack of a model.
struct Stack<'a> {
    name: &'a str,
    /// The tensors of each layer that has any, by their names within it.
    layers: BTreeMap<usize, Vec<&'a str>>,
}

impl<'a> Stack<'a> {
    fn of(source: &'a Source) -> Option<Self> {
        let mut stack: Option<Self> = None;
        for tensor in source.tensors().filter_map(|tensor| names::layered(&tensor.name)) {
            let stack = stack.get_or_insert(Self { name: tensor.stack, layers: BTreeMap::new() });
            if stack.name != tensor.stack {
                return None;
            }
            stack.layers.entry(tensor.layer).or_default().push(tensor.rest);
        }
        stack
    }

    /// How many layers there are, empty ones before the last included.
    fn len(&self) -> usize {
        self.layers.last_key_value().map_or(0, |(last, _)| last + 1)
    }
}

/// One model's layers in a slice.
struct Part<'a, 's> {
    source: usize,
    own: &'a Parameters,
    files: &'a ElementFiles,
    stack: &'s Stack<'a>,
    first: usize,
    layers: usize,
}

impl<'a> Part<'a, '_> {
    fn member(&self) -> Member<'a> {
        let from = Some((self.stack.name, self.first));
        Member { source: self.source, own: Some(self.own), files: Some(self.files), from }
    }

    /// The layers that have tensors, counted from the first of the slice.
    fn held(&self) -> impl Iterator<Item = usize> {
        let range = self.first..self.first + self.layers;
        self.stack.layers.range(range).map(|(layer, _)| layer - self.first)
    }

    /// The tensors of one layer of the slice, by their names within it.
    fn tensors(&self, layer: usize) -> impl Iterator<Item = &'a str> {
        self.stack.layers.get(&(self.first + layer)).into_iter().flatten().copied()
    }
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

/// The input embedding of a model whose head may be tied to it: its only one.
pub(super) fn tied_embedding(source: &Source) -> Option<usize> {
    if says_tied(source) == Some(false) {
        return None;
    }
    let mut embeddings = source.tensors().enumerate().filter(|(_, tensor)| names::is_embedding(&tensor.name));
    let (only, _) = embeddings.next()?;
    embeddings.next().is_none().then_some(only)
}

/// Tensors of models that no tensor of the output comes from, by model: layers together, loose ones by name where they are few.
pub(super) fn left_out(sources: &[Source], inputs: &[Input]) -> Vec<LeftOut> {
    let mut used: Vec<Vec<bool>> = sources.iter().map(|source| vec![false; source.tensors().len()]).collect();
    for input in inputs {
        if let Input::Stored(at) = input
            && let Some(used) = used.get_mut(at.source)
        {
            used[at.tensor] = true;
        }
    }
    sources.iter().zip(&used).flat_map(|(source, used)| left_out_of(source, used)).collect()
}

fn left_out_of(source: &Source, used: &[bool]) -> Vec<LeftOut> {
    let unused =
        source.tensors().zip(used).filter(|(_, used)| !**used).map(|(tensor, _)| tensor.name.as_str());
    let (mut layers, mut layered, mut loose) = (BTreeSet::new(), 0, Vec::new());
    for name in unused {
        match names::layered(name) {
            Some(tensor) => {
                layers.insert(tensor.layer);
                layered += 1;
            }
            None => loose.push(name),
        }
    }
    let entry = |what: String, tensors: usize| LeftOut { model: source.name.clone(), what, tensors };
    let mut all = Vec::new();
    if !layers.is_empty() {
        let word = if layers.len() == 1 { "layer" } else { "layers" };
        all.push(entry(format!("{word} {}", runs(&layers)), layered));
    }
    if loose.len() > NAMED_MAX {
        all.push(entry(format!("{} and {} more", loose[..3].join(", "), loose.len() - 3), loose.len()));
    } else {
        all.extend(loose.into_iter().map(|name| entry(name.into(), 1)));
    }
    all
}

/// So many tensors that are left out of a model have a line each.
const NAMED_MAX: usize = 8;

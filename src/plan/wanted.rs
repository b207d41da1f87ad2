//! Which tensors the output has, and which input tensors belong to each.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use indexmap::{IndexMap, IndexSet};
use serde_json::{Map, Value as Json};

use super::views::{Model, Origin, View};
use super::{Base, LeftOut, Planner, Tensor, names};
use crate::checkpoint::layout::TENSORS_MAX;
use crate::checkpoint::{CAUSAL_LM, Source, TensorInfo, peft_task};
use crate::config::{ElementFiles, Inputs, Parameters, Slice, SliceSource};
use crate::error::{Error, Result};
use crate::input::{At, Input};
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
    /// The parameters of the slice, and those of the module.
    pub(super) slice: Option<&'a Parameters>,
    pub(super) module: Option<&'a Parameters>,
    /// Whether their tensors are copied, whatever the method does.
    pub(super) copied: bool,
}

impl Members<'_> {
    /// The donor alone, whose tensors are copied.
    pub(super) fn donor(model: usize) -> Self {
        let all = vec![Member { model, own: None, files: None, from: None }];
        Self { all, base: None, slice: None, module: None, copied: true }
    }
}

/// The part of the models that is merged.
pub(super) struct Within<'w, 'a> {
    /// Its own parameters.
    pub(super) scope: Option<&'a Parameters>,
    /// Whether a tensor belongs to it.
    pub(super) is_in: &'w dyn Fn(&str) -> bool,
}

/// A model in a list of models or a slice.
#[derive(Debug)]
struct Member<'a> {
    model: usize,
    own: Option<&'a Parameters>,
    files: Option<&'a ElementFiles>,
    /// Of a slice's layers: the stack they come from, and the first of them.
    from: Option<(&'a str, usize)>,
}

/// One model's tensor.
#[derive(Debug)]
pub(super) struct Want<'w, 'a> {
    pub(super) model: usize,
    pub(super) name: Cow<'w, str>,
    /// The parameters written under this model.
    pub(super) own: Option<&'a Parameters>,
    /// The files beside it that say something of its elements.
    pub(super) files: Option<&'a ElementFiles>,
}

impl<'a> Wanted<'a> {
    /// A tensor that has one name in all models and stands in no layer.
    pub(super) fn loose(name: &'a str, members: &Rc<Members<'a>>) -> Self {
        Wanted { name: name.into(), position: 0.0, members: Rc::clone(members), layer: None }
    }

    /// The tensors that it is made from, one of each model.
    pub(super) fn inputs(&self) -> Vec<Want<'_, 'a>> {
        let want = |member: &Member<'a>| {
            let name = match (self.layer, member.from) {
                (Some((layer, rest)), Some((stack, first))) => {
                    names::Layered { stack, layer, rest }.named(first + layer).into()
                }
                _ => Cow::Borrowed(&*self.name),
            };
            Want { model: member.model, name, own: member.own, files: member.files }
        };
        self.members.all.iter().map(want).collect()
    }
}

impl<'a> Planner<'a> {
    /// Tensors of models that no tensor of the output comes from, by model: layers together, loose ones by name where they are
    /// few.
    pub(super) fn left_out(&self, tensors: &[Tensor]) -> Vec<LeftOut> {
        let mut used: Vec<Vec<bool>> =
            self.sources.iter().map(|source| vec![false; source.tensors().len()]).collect();
        let mut seen = vec![false; self.inputs.inputs.len()];
        let mut mark = |from: Vec<Origin>, used: &mut Vec<Vec<bool>>| {
            mark_read(from, &self.inputs.inputs, &mut seen, used);
        };
        mark(tensors.iter().flat_map(Tensor::inputs).map(|input| Origin::Made(*input)).collect(), &mut used);
        // What is replaced is accounted for where the other tensor is read, which may itself be replaced later.
        for (replaced, by) in self.models.iter().flat_map(|model| model.replaced.iter().rev()) {
            if used[by.source][by.tensor] {
                mark(vec![*replaced], &mut used);
            }
        }
        // A stage that is merged while it is read stands in with its donor's tensors, which nobody means to read.
        let is_of_model = |source: usize| {
            let mut models = self.models.iter().filter(|of| !of.is_merged);
            models.any(|of| of.source == source || of.adapter == Some(source))
        };
        let models = self.sources.iter().zip(&used).enumerate().filter(|(source, _)| is_of_model(*source));
        models.flat_map(|(_, (source, used))| left_out_of(source, used)).collect()
    }

    /// Every tensor of the output. What is wrong with the models goes to the problems.
    ///
    /// # Errors
    /// Modules whose names do not fit, and what was wrong before.
    pub(super) fn wanted(&mut self) -> Result<Vec<Wanted<'a>>> {
        if let Inputs::Modules(written) = &self.config.inputs {
            let modules = Rc::new(self.find_modules(written)?);
            self.modules = Some(Rc::clone(&modules));
            return Ok(self.of_modules(&modules));
        }
        Ok(self.of_inputs(&self.config.inputs, &Within { scope: None, is_in: &|_| true }))
    }

    /// The tensors of models, or of slices, that belong to a part.
    pub(super) fn of_inputs(&mut self, inputs: &'a Inputs, within: &Within<'_, 'a>) -> Vec<Wanted<'a>> {
        match inputs {
            Inputs::Models(models) => {
                let mut members: Vec<_> = models
                    .iter()
                    .map(|input| Member {
                        model: self.model_of(&input.model.value),
                        own: Some(&input.parameters),
                        files: Some(&input.files),
                        from: None,
                    })
                    .collect();
                let base = self.config.base_model.as_ref().map(|base| self.model_of(&base.value));
                // Of modules it is the donor in any case.
                let takes_base = within.scope.is_none() || *self.method.models.end() > 1;
                let unlisted = |base: &usize| members.iter().all(|member| member.model != *base);
                if let Some(base) = base.filter(|base| takes_base && unlisted(base)) {
                    members.push(Member { model: base, own: None, files: None, from: None });
                }
                let base = members.iter().position(|member| Some(member.model) == base);
                let members =
                    Members { all: members, base, slice: None, module: within.scope, copied: false };
                self.of_models(members, within)
            }
            Inputs::Slices(slices) => self.of_slices(slices, within),
            Inputs::Modules(_) => unreachable!("a module has models or slices"),
        }
    }

    /// The tensors of whole models: all names, the donor's in its order first.
    fn of_models(&mut self, members: Members<'a>, within: &Within<'_, 'a>) -> Vec<Wanted<'a>> {
        let layers = self.common_layers(&members.all, within);
        let names = self.names(&members, within.is_in);
        let members = Rc::new(members);
        let wanted = |name: &'a str| {
            let position = names::layered(name).map_or(0.0, |l| position(l.layer, layers[l.stack]));
            Wanted { position, ..Wanted::loose(name, &members) }
        };
        names.into_iter().map(wanted).collect()
    }

    /// The names of all members' tensors that are wanted, the donor's first. Too many are a problem, and none.
    fn names(&mut self, members: &Members<'a>, wanted: impl Fn(&str) -> bool) -> IndexSet<&'a str> {
        let donor = &members.all[members.base.unwrap_or(0)];
        let mut names = IndexSet::new();
        for member in std::iter::once(donor).chain(&members.all) {
            names.extend(self.models[member.model].names().filter(|name| wanted(name)));
            if self.has_too_many(names.len()) {
                return IndexSet::new();
            }
        }
        names
    }

    /// Whether these are more tensors than any checkpoint has, which is then a problem.
    pub(super) fn has_too_many(&mut self, tensors: usize) -> bool {
        if tensors > TENSORS_MAX {
            let message = format!("the output would have more than {TENSORS_MAX} tensors");
            self.problems.add(Error::config(message).hint("no checkpoint of so many can be read again"));
        }
        tensors > TENSORS_MAX
    }

    /// How many layers each stack has; models with different numbers are a problem.
    fn common_layers(&mut self, members: &[Member<'_>], within: &Within<'_, 'a>) -> IndexMap<&'a str, usize> {
        let mut common: IndexMap<&str, usize> = IndexMap::new();
        for member in members {
            let model = &self.models[member.model];
            for (stack, layers) in names::stacks(model.names().filter(|name| (within.is_in)(name))) {
                let known = *common.entry(stack).or_insert(layers);
                if known != layers {
                    let first = self.name_of(members[0].model);
                    let problem =
                        format!("{} has {layers} layers in {stack}, {first} has {known}", model.name);
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
    fn of_slices(&mut self, slices: &'a [Slice], within: &Within<'_, 'a>) -> Vec<Wanted<'a>> {
        let stack = |model: &'a Model<'a>| Stack::of(model.names().filter(|name| (within.is_in)(name)));
        let stacks: Vec<Option<Stack>> = self.models.iter().map(stack).collect();
        let (first, last) = (&slices[0], &slices[slices.len() - 1]);
        let mut all = self.loose(first, true, within);
        let mut next_layer = 0;
        for slice in slices {
            let Some(parts) = self.parts(slice, &stacks, within) else { continue };
            all.extend(self.layers(slice, &parts, next_layer, within.scope));
            next_layer += parts[0].layers;
            if self.has_too_many(all.len()) || self.has_too_many_layers(next_layer) {
                return Vec::new();
            }
        }
        all.extend(self.loose(last, false, within));
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
    fn parts<'s>(
        &mut self,
        slice: &'a Slice,
        stacks: &'s [Option<Stack<'a>>],
        within: &Within<'_, 'a>,
    ) -> Option<Vec<Part<'a, 's>>> {
        let mut parts: Vec<Part<'a, 's>> = Vec::new();
        for written in &slice.sources {
            let model = self.model_of(&written.model.value);
            let name = self.name_of(model);
            if parts.iter().any(|part| part.model == model) {
                let problem = self.config.error_at(written.model.at, format!("{name} is twice in one slice"));
                self.problems.add(problem.hint("put its layers into slices of their own"));
                return None;
            }
            let Some(stack) = &stacks[model] else {
                let problem =
                    match names::stacks(self.models[model].names().filter(|name| (within.is_in)(name))).len()
                    {
                        0 => format!("slices need models with layers, and {name} has none"),
                        several => {
                            format!(
                                "slices need models with one stack of layers, and {name} has {several} stacks"
                            )
                        }
                    };
                let hint = self.hint_of_stacks(model);
                self.problems.add(self.config.error_at(written.model.at, problem).hint(hint));
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
                model,
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
    fn layers(
        &mut self,
        slice: &'a Slice,
        parts: &[Part<'a, '_>],
        first: usize,
        module: Option<&'a Parameters>,
    ) -> Vec<Wanted<'a>> {
        let base = self.base_in(slice);
        let donor = &parts[base.unwrap_or(0)];
        let members = Rc::new(Members {
            all: parts.iter().map(Part::member).collect(),
            base,
            slice: Some(&slice.parameters),
            module,
            copied: false,
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
    fn loose(&mut self, slice: &'a Slice, before: bool, within: &Within<'_, 'a>) -> Vec<Wanted<'a>> {
        let member = |source: &'a SliceSource| Member {
            model: self.model_of(&source.model.value),
            own: Some(&source.parameters),
            files: Some(&source.files),
            from: None,
        };
        let all = slice.sources.iter().map(member).collect();
        let (base, slice) = (self.base_in(slice), Some(&slice.parameters));
        let members = Members { all, base, slice, module: within.scope, copied: false };
        let loose = |name: &str| {
            names::layered(name).is_none() && names::before_layers(name) == before && (within.is_in)(name)
        };
        let names = self.names(&members, loose);
        let members = Rc::new(members);
        names.into_iter().map(|name| Wanted::loose(name, &members)).collect()
    }
}

/// The only stack of a model.
struct Stack<'a> {
    name: &'a str,
    /// The tensors of each layer that has any, by their names within it.
    layers: BTreeMap<usize, Vec<&'a str>>,
}

impl<'a> Stack<'a> {
    fn of(names: impl Iterator<Item = &'a str>) -> Option<Self> {
        let mut stack: Option<Self> = None;
        for tensor in names.filter_map(names::layered) {
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
    model: usize,
    own: &'a Parameters,
    files: &'a ElementFiles,
    stack: &'s Stack<'a>,
    first: usize,
    layers: usize,
}

impl<'a> Part<'a, '_> {
    fn member(&self) -> Member<'a> {
        let from = Some((self.stack.name, self.first));
        Member { model: self.model, own: Some(self.own), files: Some(self.files), from }
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
pub(super) fn says_tied(config: &Map<String, Json>) -> Option<bool> {
    let key = "tie_word_embeddings";
    let in_text = || config.get("text_config").and_then(|text| text.get(key));
    config.get(key).or_else(in_text).and_then(Json::as_bool)
}

/// The input embedding of a model whose head may be tied to it: its only one.
pub(super) fn tied_embedding(model: &Model<'_>) -> Option<usize> {
    if says_tied(&model.config) == Some(false) {
        return None;
    }
    let mut embeddings = model.names().enumerate().filter(|(_, name)| names::is_embedding(name));
    let (only, _) = embeddings.next()?;
    embeddings.next().is_none().then_some(only)
}

/// The embedding that is a model's head too, where it has no other: as its config.json says, or, where that says nothing, as its
/// architecture does.
pub(super) fn embedding_as_head(model: &Model<'_>) -> Option<usize> {
    let says = says_tied(&model.config).unwrap_or_else(|| peft_task(&model.config) == Some(CAUSAL_LM));
    tied_embedding(model).filter(|_| says && !model.names().any(names::is_head))
}

/// What the head is called that is tied to an embedding: it lies beside the model that the embedding is in.
pub(super) fn head_beside(embedding: &str) -> String {
    // A model that is part of another, as `model.language_model` is, has its head at the top.
    let outer = embedding.strip_suffix("model.embed_tokens.weight");
    let outer = outer.filter(|outer| outer.is_empty() || outer.ends_with('.'));
    format!("{}lm_head.weight", outer.unwrap_or_default())
}

/// Hides a head that is the model's embedding under another name, the same bytes of one file: so files of torch have tied ones.
pub(super) fn hide_tied_head(model: &mut Model<'_>, sources: &[Source]) {
    let Some(embedding) = tied_embedding(model) else { return };
    let stored = |view: &View<'_>| match view.from {
        Origin::Stored(at) => Some((at, sources[at.source].tensor_at(at.tensor))),
        Origin::Made(_) => None,
    };
    let Some((of_embedding, embedding)) = stored(&model.tensors[embedding]) else { return };
    let (tensors, replaced) = (&mut model.tensors, &mut model.replaced);
    tensors.retain(|name, view| {
        let place = |info: &TensorInfo| (info.file, info.offset, info.bytes, info.shape.clone());
        let is_twin = |(at, head): &(At, &TensorInfo)| {
            at.source == of_embedding.source && head.bytes > 0 && place(head) == place(embedding)
        };
        let twin = stored(view).filter(|_| names::is_head(name)).filter(is_twin);
        // Who reads the embedding has read the head.
        replaced.extend(twin.map(|(at, _)| (Origin::Stored(at), of_embedding)));
        twin.is_none()
    });
}

/// Marks the tensors of sources that are read, themselves or through what is made of them. Inputs that are `seen` were marked before.
fn mark_read(from: Vec<Origin>, inputs: &[Input], seen: &mut [bool], used: &mut [Vec<bool>]) {
    let mut next = from;
    while let Some(origin) = next.pop() {
        let input = match origin {
            Origin::Stored(at) => {
                used[at.source][at.tensor] = true;
                continue;
            }
            Origin::Made(input) => input,
        };
        if std::mem::replace(&mut seen[input], true) {
            continue;
        }
        match &inputs[input] {
            Input::Stored(at) => next.push(Origin::Stored(*at)),
            Input::Made(made) => next.extend(made.of().into_iter().map(Origin::Made)),
        }
    }
}

fn left_out_of(source: &Source, used: &[bool]) -> Vec<LeftOut> {
    let unused =
        source.tensors().zip(used).filter(|(_, used)| !**used).map(|(tensor, _)| tensor.name.as_str());
    let mut layers: BTreeMap<&str, (BTreeSet<usize>, usize)> = BTreeMap::new();
    let mut loose = Vec::new();
    for name in unused {
        match names::layered(name) {
            Some(tensor) => {
                let (layers, tensors) = layers.entry(tensor.stack).or_default();
                layers.insert(tensor.layer);
                *tensors += 1;
            }
            None => loose.push(name),
        }
    }
    let entry = |what: String, tensors: usize| LeftOut { model: source.name.clone(), what, tensors };
    let layers_of = |layers: &BTreeSet<usize>| {
        format!("{} {}", if layers.len() == 1 { "layer" } else { "layers" }, runs(layers))
    };
    let stacks = names::stacks(source.tensors().map(|tensor| tensor.name.as_str())).len();
    let mut all = Vec::new();
    if stacks > 1 && layers.len() <= NAMED_MAX {
        let of_stack = |(stack, (layers, tensors)): (&&str, &(BTreeSet<usize>, usize))| {
            entry(format!("{} of {stack}", layers_of(layers)), *tensors)
        };
        all.extend(layers.iter().map(of_stack));
    } else if !layers.is_empty() {
        let numbers = layers.values().flat_map(|(layers, _)| layers).copied().collect();
        all.push(entry(layers_of(&numbers), layers.values().map(|(_, tensors)| tensors).sum()));
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

//! Models as a merge sees them: tables of tensors, each with the input that it is read from.
//!
//! A checkpoint on disk is a [`Source`]. What is planned is a view of it, which may be more: a tensor can be made of several
//! stored ones, renamed or hidden. Features that change what a model is change its table before any tensor is planned, and
//! nothing behind them knows which those are.

use std::borrow::Cow;
use std::collections::HashMap;
use std::num::NonZeroU32;

use indexmap::IndexMap;
use serde_json::{Map, Value as Json};

use super::problems::Problems;
use super::{Place, PlannedModel, places, references};
use crate::checkpoint::Source;
use crate::config::{Config, Located, ModelRef};
use crate::dtype::Dtype;
use crate::error::Error;
use crate::input::{At, Input, Made, Narrowed};

/// A model of a merge.
#[derive(Debug)]
pub(super) struct Model<'a> {
    /// As the config has it.
    pub(super) name: String,
    /// The source whose folder it is, which gives its files.
    pub(super) source: usize,
    /// The source of its adapter, if it has one.
    pub(super) adapter: Option<usize>,
    /// Tensors in whose place others are read, and which those are: a head that is the embedding, and what an adapter has whole. The
    /// later entry counts first.
    pub(super) replaced: Vec<(Origin, At)>,
    /// Whether it is the result of another document, merged while it is read.
    pub(super) is_merged: bool,
    /// What its config.json says.
    pub(super) config: Cow<'a, Map<String, Json>>,
    /// Its tensors by name, in file order.
    pub(super) tensors: IndexMap<Cow<'a, str>, View<'a>>,
    /// What has to change in its config.json, since its tensors are not those that are stored.
    pub(super) edits: IndexMap<String, Option<Json>>,
}

/// The models of a plan, before any tensor is planned: what [`super::Plan::new`] opens, changes step by step, and hands on.
#[derive(Debug)]
pub(super) struct Views<'a> {
    pub(super) config: &'a Config,
    pub(super) sources: &'a [Source],
    /// In the order of the config's references.
    pub(super) models: Vec<Model<'a>>,
    pub(super) inputs: InputList,
    pub(super) problems: Problems,
    pub(super) notes: Vec<String>,
    pub(super) warnings: Vec<Error>,
}

impl<'a> Views<'a> {
    /// Each model as it is stored.
    ///
    /// # Errors
    /// Those of [`places`].
    pub(super) fn stored(config: &'a Config, sources: &'a [Source]) -> Self {
        let opened = places(config);
        let view = |Located { value: model, .. }: Located<ModelRef>| {
            let name = model.to_string();
            let source =
                opened.get_index_of(&Place::Model(model.base())).expect("what is referred to is opened");
            Model::of(name, source, sources)
        };
        let models = references(config).into_iter().map(view).collect();
        let inputs = InputList::new(sources);
        let problems = Problems::default();
        Self { config, sources, models, inputs, problems, notes: Vec::new(), warnings: Vec::new() }
    }

    /// Which of the models a reference of the config is.
    pub(super) fn place_of(&self, model: &ModelRef) -> Option<usize> {
        references(self.config).iter().position(|known| known.value == *model)
    }

    /// The base, if there is one.
    pub(super) fn base(&self) -> Option<usize> {
        let base = &self.config.base_model.as_ref()?.value;
        Some(self.place_of(base).expect("the base is one of the references"))
    }

    /// The model that gives config.json and the tokenizer: the base, or else the first.
    pub(super) fn donor(&self) -> usize {
        self.base().unwrap_or(0)
    }
}

/// A tensor of a model.
#[derive(Debug, Clone)]
pub(super) struct View<'a> {
    /// The type that it counts as: what is stored where no type is asked for. What is read may be wider.
    pub(super) dtype: Dtype,
    /// Its dimensions.
    pub(super) shape: Cow<'a, [usize]>,
    /// Where its elements come from.
    pub(super) from: Origin,
}

/// Where the elements of a view come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// A tensor of a source, which becomes an input when it is first wanted.
    Stored(At),
    /// A made input, by its number in the plan.
    Made(usize),
}

/// A tensor that a model has: which model, and its place in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Held {
    pub(super) model: usize,
    pub(super) place: usize,
}

impl<'a> Model<'a> {
    /// The model that a source is by itself.
    pub(super) fn of(name: String, source: usize, sources: &'a [Source]) -> Self {
        let own = &sources[source];
        let view = |(tensor, info): (usize, &'a crate::checkpoint::TensorInfo)| {
            let from = Origin::Stored(At { source, tensor });
            let shape = Cow::Borrowed(info.shape.as_slice());
            (Cow::Borrowed(info.name.as_str()), View { dtype: info.dtype, shape, from })
        };
        let tensors = own.tensors().enumerate().map(view).collect();
        let config = Cow::Borrowed(&own.config);
        Self {
            name,
            source,
            adapter: None,
            replaced: Vec::new(),
            is_merged: false,
            config,
            tensors,
            edits: IndexMap::new(),
        }
    }

    /// What the plan says of it.
    pub(super) fn planned(&self) -> PlannedModel {
        PlannedModel { name: self.name.clone(), source: self.source, adapter: self.adapter }
    }

    /// The names of its tensors.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> + Clone {
        self.tensors.keys().map(|name| &**name)
    }
}

impl View<'_> {
    /// How many elements it has.
    pub(super) fn elements(&self) -> u64 {
        self.shape.iter().map(|side| *side as u64).product()
    }
}

/// The inputs of a plan under construction.
#[derive(Debug)]
pub(super) struct InputList {
    pub(super) inputs: Vec<Input>,
    /// Of each source the numbers that its tensors have among the inputs, from 1 up.
    numbers: Vec<Vec<Option<NonZeroU32>>>,
    /// Of inputs of float64, the numbers of the same as f32.
    as_f32: HashMap<usize, usize>,
}

impl InputList {
    pub(super) fn new(sources: &[Source]) -> Self {
        let numbers = sources.iter().map(|source| vec![None; source.tensors().len()]).collect();
        Self { inputs: Vec::new(), numbers, as_f32: HashMap::new() }
    }

    /// The number of a stored tensor.
    pub(super) fn stored(&mut self, at: At) -> usize {
        let number = self.numbers[at.source][at.tensor].get_or_insert_with(|| {
            self.inputs.push(Input::Stored(at));
            NonZeroU32::new(self.inputs.len() as u32).expect("there is an input now")
        });
        number.get() as usize - 1
    }

    /// The number of a new input that is made of others.
    pub(super) fn make(&mut self, made: impl Made + 'static) -> usize {
        self.inputs.push(Input::Made(Box::new(made)));
        self.inputs.len() - 1
    }

    /// The number of what a view is read from, as it is stored.
    pub(super) fn of(&mut self, view: &View<'_>) -> usize {
        match view.from {
            Origin::Stored(at) => self.stored(at),
            Origin::Made(number) => number,
        }
    }

    /// The number of a view's elements that kernels can read: of float64 those as f32.
    pub(super) fn as_floats(&mut self, view: &View<'_>) -> usize {
        let (of, dtype) = (self.of(view), self.read_as(view));
        self.narrowed(of, dtype)
    }

    /// The same of a stored tensor that is no model's.
    pub(super) fn floats_at(&mut self, at: At, dtype: Dtype) -> usize {
        let of = self.stored(at);
        self.narrowed(of, dtype)
    }

    fn narrowed(&mut self, of: usize, dtype: Dtype) -> usize {
        if dtype != Dtype::F64 {
            return of;
        }
        if let Some(known) = self.as_f32.get(&of) {
            return *known;
        }
        let number = self.make(Narrowed { of });
        self.as_f32.insert(of, number);
        number
    }

    /// The type in which a view's elements are read; not always the one that it counts as.
    pub(super) fn read_as(&self, view: &View<'_>) -> Dtype {
        match view.from {
            Origin::Stored(_) => view.dtype,
            Origin::Made(number) => match &self.inputs[number] {
                Input::Made(made) => made.float().dtype(),
                Input::Stored(_) => unreachable!("made views are of made inputs"),
            },
        }
    }

    /// Whether a stored tensor is an input.
    pub(super) fn is_read(&self, at: At) -> bool {
        self.numbers[at.source][at.tensor].is_some()
    }
}

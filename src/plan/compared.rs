//! A model and its base as a merge sees them, for whoever compares them tensor by tensor: with their adapters, in floats, and under
//! the names of the base.

use std::borrow::Cow;

use indexmap::IndexMap;
use serde_json::{Map, Value as Json};

use super::views::{InputList, Model, View, Views};
use super::{compatible, method_of, settle, wanted};
use crate::checkpoint::{Reads, Source};
use crate::config::{Config, ModelRef};
use crate::dtype::{Dtype, computed_as};
use crate::error::{Error, Result};
use crate::input::{At, Floats, Input, Parts, ReadElements};

/// Two models, and what their tensors are read from.
#[derive(Debug)]
pub struct Compared {
    /// What is on disk.
    pub sources: Vec<Source>,
    /// What is read.
    pub inputs: Vec<Input>,
    /// The model.
    pub tuned: ComparedModel,
    /// Its base.
    pub base: ComparedModel,
    /// The base's embedding, where that is its head too, and what the head would be called.
    pub tied: Option<(String, String)>,
    /// What the user should know.
    pub notes: Vec<String>,
    /// Probable mistakes.
    pub warnings: Vec<Error>,
}

/// One of them.
#[derive(Debug)]
pub struct ComparedModel {
    /// As the user wrote it.
    pub name: String,
    /// The same in its parts.
    pub reference: ModelRef,
    /// What its config.json says.
    pub config: Map<String, Json>,
    /// Its tensors by name.
    pub tensors: IndexMap<String, ComparedTensor>,
}

/// A tensor of one of them.
#[derive(Debug, Clone)]
pub struct ComparedTensor {
    /// The type that it counts as.
    pub dtype: Dtype,
    /// The type in which it is read.
    pub read_as: Dtype,
    /// Its dimensions.
    pub shape: Vec<usize>,
    /// Its number among the inputs.
    pub input: usize,
}

impl ComparedTensor {
    /// How many elements it has.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

impl Compared {
    /// The only listed model of a config, and its base. `sources` are those of [`super::places`], in order.
    ///
    /// # Errors
    /// Their headers, an adapter or a quantisation do not let them be read.
    pub fn new(config: &Config, sources: Vec<Source>) -> Result<Self> {
        let Views { mut models, mut inputs, mut notes, warnings, .. } = readable(config, &sources)?;
        notes.extend(sources.iter().flat_map(|source| source.warnings().iter().cloned()));
        // The same model twice is listed once.
        let (tuned, base) = (0, models.len() - 1);
        if tuned != base {
            give_head(&mut models, tuned, base);
            give_head(&mut models, base, tuned);
        }
        let tied = wanted::embedding_as_head(&models[base]).map(|embedding| {
            let name = models[base].names().nth(embedding).expect("it is one of them").to_owned();
            let head = wanted::head_beside(&name);
            (name, head)
        });
        let listed = super::references(config);
        let mut of = |model: usize| ComparedModel::of(&models[model], &listed[model].value, &mut inputs);
        let (tuned, base) = (of(tuned), of(base));
        let inputs = inputs.inputs;
        drop(models);
        Ok(Self { sources, inputs, tuned, base, tied, notes, warnings })
    }

    /// Fills `into` with a tensor's bytes from number `start` on, in the type in which it is read: whole elements. `heard` hears how
    /// many bytes of files that took, and `stop` whether the user wants to stop.
    ///
    /// # Errors
    /// They cannot be read, or the user wants to stop.
    pub fn read(
        &self,
        tensor: &ComparedTensor,
        start: u64,
        into: &mut [u8],
        reads: Reads,
        heard: &dyn Fn(u64),
        stop: &dyn Fn() -> bool,
    ) -> Result<()> {
        let stored = |at: At, start: u64, into: &mut [u8]| {
            let source = &self.sources[at.source];
            source.read_at(source.tensor_at(at.tensor), start, into, reads)?;
            heard(into.len() as u64);
            Ok(())
        };
        Parts { inputs: &self.inputs, stored, threads: 1, stop }.bytes(tensor.input, start, into)
    }
}

impl ComparedModel {
    fn of(model: &Model<'_>, reference: &ModelRef, inputs: &mut InputList) -> Self {
        Self {
            name: model.name.clone(),
            reference: reference.clone(),
            config: model.config.clone().into_owned(),
            tensors: tensors(model, inputs),
        }
    }
}

/// A model by itself, as a merge of it would see it.
#[derive(Debug)]
pub struct Readable {
    /// As the user wrote it.
    pub name: String,
    /// What is on disk: its folder, and that of its adapter.
    pub sources: Vec<Source>,
    /// Which of them is the model's own folder.
    pub source: usize,
    /// What is read.
    pub inputs: Vec<Input>,
    /// What its config.json says.
    pub config: Map<String, Json>,
    /// Its tensors by name.
    pub tensors: IndexMap<String, ReadTensor>,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// A tensor of a model that is read.
#[derive(Debug, Clone)]
pub struct ReadTensor {
    /// Its dimensions.
    pub shape: Vec<usize>,
    /// What it is read from, of float64 as float32; none where its elements are no floats.
    pub floats: Option<Floats>,
}

impl Readable {
    /// The only model of a config. `sources` are those of [`super::places`], in order.
    ///
    /// # Errors
    /// Its headers, its adapter or its quantisation do not let it be read.
    pub fn new(config: &Config, sources: Vec<Source>) -> Result<Self> {
        let Views { models, mut inputs, mut notes, warnings, .. } = readable(config, &sources)?;
        notes.extend(sources.iter().flat_map(|source| source.warnings().iter().cloned()));
        notes.extend(warnings.iter().map(ToString::to_string));
        let model = &models[0];
        let (name, source, own) = (model.name.clone(), model.source, model.config.clone().into_owned());
        let read = |(name, view): (&Cow<'_, str>, &View<'_>)| {
            let float = computed_as(inputs.read_as(view));
            let floats = float.map(|float| Floats { input: inputs.as_floats(view), float });
            (name.to_string(), ReadTensor { shape: view.shape.to_vec(), floats })
        };
        let tensors = model.tensors.iter().map(read).collect();
        let inputs = inputs.inputs;
        drop(models);
        Ok(Self { name, sources, source, inputs, config: own, tensors, notes })
    }
}

/// The models of a config as a merge sees them, all of whose tensors can be read as floats.
fn readable<'a>(config: &'a Config, sources: &'a [Source]) -> Result<Views<'a>> {
    let mut views = Views::stored(config, sources);
    settle(&mut views, method_of(config)?);
    for model in views.models.iter().filter(|model| compatible::holds_quantised(model)) {
        views.problems.add(compatible::quantised(model));
    }
    views.problems.stop()?;
    Ok(views)
}

/// Gives a model whose head is its embedding a head by itself, where the other has one.
fn give_head(models: &mut [Model<'_>], to: usize, other: usize) {
    let head = models[other].names().find(|name| super::names::is_head(name)).map(str::to_owned);
    if let (Some(head), Some(embedding)) = (head, wanted::embedding_as_head(&models[to])) {
        let view = models[to].tensors[embedding].clone();
        models[to].tensors.insert(head.into(), view);
    }
}

fn tensors(model: &Model<'_>, inputs: &mut InputList) -> IndexMap<String, ComparedTensor> {
    let compared = |view: &View<'_>, inputs: &mut InputList| ComparedTensor {
        dtype: view.dtype,
        read_as: inputs.read_as(view),
        shape: view.shape.to_vec(),
        input: inputs.of(view),
    };
    model.tensors.iter().map(|(name, view)| (name.to_string(), compared(view, inputs))).collect()
}

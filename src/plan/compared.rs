//! A model and its base as a merge sees them, for whoever compares them tensor by tensor: with their adapters, in floats, and under
//! the names of the base.

use indexmap::IndexMap;
use serde_json::{Map, Value as Json};

use super::views::{InputList, Model, View, Views};
use super::{compatible, method_of, settle, wanted};
use crate::checkpoint::Source;
use crate::config::{Config, ModelRef};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::input::Input;

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
        let mut views = Views::stored(config, &sources);
        settle(&mut views, method_of(config)?);
        for model in views.models.iter().filter(|model| compatible::holds_quantised(model)) {
            views.problems.add(compatible::quantised(model));
        }
        views.problems.stop()?;
        let Views { mut models, mut inputs, mut notes, warnings, .. } = views;
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
        let mut of = |model: usize| ComparedModel {
            name: models[model].name.clone(),
            reference: listed[model].value.clone(),
            config: models[model].config.clone().into_owned(),
            tensors: tensors(&models[model], &mut inputs),
        };
        let (tuned, base) = (of(tuned), of(base));
        let inputs = inputs.inputs;
        drop(models);
        Ok(Self { sources, inputs, tuned, base, tied, notes, warnings })
    }
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

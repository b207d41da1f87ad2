//! The merge methods: one record each in [`METHODS`], one file per family.
//!
//! A record says everything about a method: its parameters with their defaults, its formula and paper, and
//! how to make the recipe of a tensor. The parser's warnings, the plan, `mergeforge methods` and the
//! README's table are derived from it. A new method is one file and a line here.

mod arcee_fusion;
mod average;
mod breadcrumbs;
mod dare;
mod della;
mod elected;
mod fisher;
mod geometry;
mod karcher;
mod linear;
mod masks;
mod mixture;
mod model_stock;
mod multislerp;
mod nearswap;
mod nuslerp;
mod passthrough;
mod ram;
mod sce;
mod slerp;
mod task_vectors;
mod ties;
mod top_k;

use std::ops::RangeInclusive;
use std::sync::Arc;

use crate::error::{Error, Result, did_you_mean};
use crate::recipe::Recipe;

/// Every method, in the order in which they are listed to the user.
pub const METHODS: &[&Method] = &[
    &linear::LINEAR,
    &average::AVERAGE,
    &fisher::FISHER,
    &slerp::SLERP,
    &nuslerp::NUSLERP,
    &multislerp::MULTISLERP,
    &karcher::KARCHER,
    &model_stock::MODEL_STOCK,
    &task_vectors::TASK_ARITHMETIC,
    &ties::TIES,
    &dare::DARE_LINEAR,
    &dare::DARE_TIES,
    &breadcrumbs::BREADCRUMBS,
    &breadcrumbs::BREADCRUMBS_TIES,
    &della::DELLA,
    &della::DELLA_LINEAR,
    &sce::SCE,
    &ram::RAM,
    &ram::RAMPLUS_TL,
    &nearswap::NEARSWAP,
    &arcee_fusion::ARCEE_FUSION,
    &elected::MAGMAX,
    &elected::EMR,
    &elected::CONSENSUS,
    &passthrough::PASSTHROUGH,
];

/// What a mixture of experts is made by. No merge has it, and so it is none of [`METHODS`].
pub const MIXTURE: &Method = &mixture::MIXTURE;

/// What a comparison of methods on language models found, for methods that it speaks of.
const RELIABLE: Option<&str> = Some(
    "on language models plain task arithmetic was the most reliable method of a comparison (arXiv 2511.21437): compare with it",
);

/// Whether a method draws masks at random, so that another seed gives another merge.
pub fn draws_masks(name: &str) -> bool {
    masks::DRAWN_BY.contains(&name)
}

/// The method of a `merge_method` key.
///
/// # Errors
/// There is none of this name.
pub fn find(name: &str) -> Result<&'static Method> {
    let names = METHODS.iter().map(|method| method.name);
    let all = || format!("the methods are {}", names.clone().collect::<Vec<_>>().join(", "));
    if let Some(method) = METHODS.iter().find(|method| method.name == name) {
        return Ok(method);
    }
    let meant = meant(name).map(|meant| format!("did you mean `{}`?", meant.name));
    Err(Error::config(format!("there is no merge method `{name}`")).hint(meant.unwrap_or_else(all)))
}

/// The method that was probably meant by a name that no method has.
pub fn meant(name: &str) -> Option<&'static Method> {
    let meant = did_you_mean(name, METHODS.iter().map(|method| method.name))?;
    METHODS.iter().find(|method| method.name == meant).copied()
}

impl Method {
    /// Whether models say in files how much their elements matter.
    pub fn reads_importance(&self) -> bool {
        self.parameters.iter().any(|parameter| parameter.kind == ValueKind::File)
    }
}

/// One merge method.
#[derive(Debug)]
pub struct Method {
    /// As written in `merge_method`.
    pub name: &'static str,
    /// What it is, in one sentence.
    pub summary: &'static str,
    /// What it computes, in the field's symbols.
    pub formula: &'static str,
    /// Where it was published: title and address.
    pub paper: Option<Paper>,
    /// What studies with language models found, where that is known and a user should know it.
    pub evidence: Option<&'static str>,
    /// What the processor decides for every device, where that is awkward on one.
    pub by_processor: Option<&'static str>,
    /// Whether it needs a base model.
    pub base: Base,
    /// How many models it takes: the base included where one is required, and not counted where it is optional.
    pub models: RangeInclusive<usize>,
    /// The parameters it reads.
    pub parameters: &'static [Parameter],
    /// Makes the recipe of one tensor. An error is the reason why these values cannot be merged.
    pub recipe: fn(&Settings) -> Result<Recipe>,
}

/// A publication.
#[derive(Debug, Clone, Copy)]
pub struct Paper {
    /// Authors and title.
    pub title: &'static str,
    /// Where it can be read.
    pub url: &'static str,
}

/// What a method does with `base_model`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// The method works on differences to it.
    Required,
    /// The method works on differences to it where there is one, and else on the models themselves.
    Optional,
    /// The method treats all models alike: the base is one of them, listed or not, and gives config and tokenizer.
    Ignored,
}

/// One parameter of a method.
#[derive(Debug, Clone, Copy)]
pub struct Parameter {
    /// The YAML key.
    pub name: &'static str,
    /// Whether every model has its own value.
    pub scope: Scope,
    /// What values it takes.
    pub kind: ValueKind,
    /// The value when none is configured; `None`: one must be.
    pub default: Option<Value>,
    /// The values that make sense; others are warned of.
    pub sensible: Option<Sensible>,
    /// What it does.
    pub meaning: &'static str,
}

/// Values of a parameter that make sense.
#[derive(Debug, Clone, Copy)]
pub struct Sensible {
    /// The least of them.
    pub least: f64,
    /// The largest of them.
    pub most: f64,
    /// What others do.
    pub beyond: &'static str,
}

/// Who has a value of a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Every model.
    Input,
    /// Every model but the base.
    NonBase,
    /// The output tensor.
    Shared,
}

/// The type of a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueKind {
    /// A number.
    Number,
    /// A whole number from 0 up.
    Count,
    /// A number, or null for none.
    NumberOrNull,
    /// true or false.
    Flag,
    /// The path of a file of tensors, which stands beside `model:` and not among the parameters. No value: the plan opens it.
    File,
    /// One of these words.
    Word(&'static [&'static str]),
}

/// A resolved parameter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value {
    /// A finite number.
    Number(f64),
    /// true or false.
    Flag(bool),
    /// A word of the parameter's list.
    Word(&'static str),
    /// Configured as none.
    Null,
}

/// Everything that decides how one tensor is merged, resolved.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// The output tensor's name: random masks depend on it.
    pub tensor: Arc<str>,
    /// The merge's random seed.
    pub seed: u64,
    /// Where its layer stands among those of its slice: 0 for the first, and for tensors of no layer, up to 1 for the last.
    pub depth: f64,
    /// Its shape.
    pub shape: Arc<[usize]>,
    /// How many elements it has.
    pub elements: u64,
    /// How many models are merged.
    pub inputs: usize,
    /// Which of them is the base, for a method that has one.
    pub base: Option<usize>,
    /// The values of shared parameters, by name; many tensors have the same.
    pub shared: Arc<Values>,
    /// The values of per-model parameters, by input.
    pub per_input: Arc<Vec<Values>>,
}

/// Parameter values by name.
pub type Values = Vec<(&'static str, Value)>;

fn value(values: &Values, name: &str) -> Value {
    let found = values.iter().find(|(parameter, _)| *parameter == name);
    found.unwrap_or_else(|| panic!("the method has no parameter {name}")).1
}

fn number(values: &Values, name: &str) -> f64 {
    match value(values, name) {
        Value::Number(number) => number,
        other => panic!("{name} is {other:?}, not a number"),
    }
}

fn flag(values: &Values, name: &str) -> bool {
    value(values, name) == Value::Flag(true)
}

impl Settings {
    /// A shared number.
    pub fn number(&self, name: &str) -> f64 {
        number(&self.shared, name)
    }

    /// A shared flag.
    pub fn flag(&self, name: &str) -> bool {
        flag(&self.shared, name)
    }

    /// A shared word.
    pub fn word(&self, name: &str) -> &'static str {
        match value(&self.shared, name) {
            Value::Word(word) => word,
            other => panic!("{name} is {other:?}, not a word"),
        }
    }

    /// A number of one input.
    pub fn number_of(&self, input: usize, name: &str) -> f64 {
        number(&self.per_input[input], name)
    }

    /// A shared number, where one is configured.
    pub fn number_or_null(&self, name: &str) -> Option<f64> {
        (value(&self.shared, name) != Value::Null).then(|| self.number(name))
    }

    /// A number of one input, where one is configured.
    pub fn number_or_null_of(&self, input: usize, name: &str) -> Option<f64> {
        (value(&self.per_input[input], name) != Value::Null).then(|| self.number_of(input, name))
    }

    /// The base's place among the inputs.
    pub fn base_input(&self) -> usize {
        self.base.expect("the plan refuses a method that needs a base and has none")
    }

    /// The inputs other than the base, in the order listed.
    pub fn non_base(&self) -> impl Iterator<Item = usize> + Clone + '_ {
        (0..self.inputs).filter(|input| Some(*input) != self.base)
    }
}

impl Method {
    /// Whether models have their weights by their places in the list: then a base has to stand in it.
    pub fn weighs_by_position(&self) -> bool {
        self.parameters.iter().any(|parameter| parameter.name == average::WEIGHTS)
    }

    /// The weights with which mergekit's `linear` does the same, of a method that mergekit has not.
    pub fn weights_for_linear(&self, settings: &Settings) -> Option<Vec<f64>> {
        self.weighs_by_position().then(|| average::weights(settings).ok()).flatten()
    }
}

impl Parameter {
    const fn required(name: &'static str, scope: Scope, meaning: &'static str) -> Self {
        Self { name, scope, kind: ValueKind::Number, default: None, sensible: None, meaning }
    }

    const fn number(name: &'static str, scope: Scope, default: f64, meaning: &'static str) -> Self {
        Self {
            name,
            scope,
            kind: ValueKind::Number,
            default: Some(Value::Number(default)),
            sensible: None,
            meaning,
        }
    }

    const fn share(name: &'static str, scope: Scope, default: f64, meaning: &'static str) -> Self {
        let beyond = "more than 1 acts as 1, less than 0 as 0";
        let sensible = Some(Sensible { least: 0.0, most: 1.0, beyond });
        Self {
            name,
            scope,
            kind: ValueKind::Number,
            default: Some(Value::Number(default)),
            sensible,
            meaning,
        }
    }

    const fn or_null(name: &'static str, meaning: &'static str) -> Self {
        Self {
            name,
            scope: Scope::Shared,
            kind: ValueKind::NumberOrNull,
            default: Some(Value::Null),
            sensible: None,
            meaning,
        }
    }

    const fn flag(name: &'static str, default: bool, meaning: &'static str) -> Self {
        Self {
            name,
            scope: Scope::Shared,
            kind: ValueKind::Flag,
            default: Some(Value::Flag(default)),
            sensible: None,
            meaning,
        }
    }
}

/// A sum of weights as a divisor: one that is lost in rounding counts as 0, and dividing by 0 as by 1.
fn divisor(weights: impl Iterator<Item = f64> + Clone) -> f64 {
    let sum: f64 = weights.clone().sum();
    if vanishes(sum, weights.map(f64::abs).sum()) { 1.0 } else { sum }
}

/// Whether a sum of terms whose magnitudes add up to `magnitude` is 0 but for rounding.
fn vanishes(sum: f64, magnitude: f64) -> bool {
    const NEGLIGIBLE: f64 = 1.0 / (1 << 20) as f64;
    sum.abs() <= NEGLIGIBLE * magnitude
}

//! Models that are results of other documents of the file, and that are merged while they are read: one sweep over everything,
//! and nothing of them on the disk.
//!
//! That takes a merge whose every tensor is a copy or one weighted sum, whose elements need nothing but the same elements of its
//! inputs. What measures whole tensors first cannot be read from anywhere in the middle.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use super::views::{InputList, Origin, View, Views};
use super::{Action, Plan, Tensor, references};
use crate::checkpoint::Source;
use crate::config::ModelRef;
use crate::dtype::{Dtype, Float};
use crate::error::{Error, Result};
use crate::input::{At, Floats, Input, Merged, Renumbered};
use crate::kernel::Job;
use crate::recipe::{Measured, Pass, Segments};

/// The plan of a document, which others read.
#[derive(Debug)]
pub struct Stage {
    /// What is called by its name.
    pub plan: Plan,
    /// The plan's inputs, which outlive it.
    inputs: Arc<Vec<Input>>,
}

/// A stage among the models of a plan.
#[derive(Debug, Clone, Copy)]
pub struct Fused<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its plan.
    pub stage: &'a Stage,
    /// What its plan was made with.
    pub sources: &'a [Source],
    /// The number of each of these among the sources of the plan that reads it, if it is one.
    pub numbers: &'a [Option<usize>],
}

impl Stage {
    /// The stage of a plan that [`why_not_fused`] has nothing against.
    pub fn new(mut plan: Plan) -> Self {
        let inputs = Arc::new(std::mem::take(&mut plan.inputs));
        Self { plan, inputs }
    }
}

/// Why a plan cannot be carried out while its result is read; nothing where it can.
pub fn why_not_fused(plan: &Plan) -> Option<String> {
    let why = |tensor: &Tensor| match &tensor.action {
        Action::Copy(copy) if copy.holders.len() > 1 => {
            Some(format!("{} is copied once all models agree on it", tensor.name))
        }
        Action::Copy(copy) => {
            let is_wide = copy.from != copy.to && [copy.from, copy.to].contains(&Some(Dtype::F64));
            is_wide.then(|| format!("{} is converted from or to float64", tensor.name))
        }
        Action::Merge(_) if tensor.dtype == Dtype::F64 => {
            Some(format!("{} is stored as float64", tensor.name))
        }
        Action::Merge(merge) => single_sum(tensor)
            .is_none()
            .then(|| format!("{} measures whole tensors before it combines them", merge.method.name)),
    };
    plan.tensors.iter().find_map(why)
}

/// The weighted sum that a merged tensor is, and what it reads, if it is one.
fn single_sum(tensor: &Tensor) -> Option<(Vec<usize>, Job)> {
    let Action::Merge(merge) = &tensor.action else { return None };
    if merge.recipe.sweeps_most > 1 || merge.recipe.by != Segments::Whole {
        return None;
    }
    match merge.recipe.begin().next(Measured::Nothing) {
        Ok(Some(Pass::Combine { reads, job: job @ Job::WeightedSum(_) })) => Some((reads, job)),
        _ => None,
    }
}

/// Gives models that are stages the tensors of those.
///
/// # Errors
/// A checkpoint is not what it was when the stage was planned.
pub(super) fn fuse(views: &mut Views<'_>, fused: &[Fused<'_>]) -> Result<()> {
    for (model, reference) in references(views.config).into_iter().enumerate() {
        let ModelRef { path, revision: None, lora: None } = &reference.value else { continue };
        let Some(stage) = fused.iter().find(|stage| stage.name == path) else { continue };
        let mut fusing =
            Fusing { stage, inputs: &mut views.inputs, into: views.sources, numbers: HashMap::new() };
        let tensors = stage.stage.plan.tensors.iter().map(|tensor| {
            let shape = Cow::Owned(tensor.shape.to_vec());
            let view = View { dtype: tensor.dtype, shape, from: fusing.origin(tensor)? };
            Ok((Cow::Owned(tensor.name.to_string()), view))
        });
        views.models[model].tensors = tensors.collect::<Result<_>>()?;
        views.models[model].is_merged = true;
    }
    Ok(())
}

/// A stage on its way into the inputs of another plan.
struct Fusing<'f, 'a> {
    stage: &'f Fused<'f>,
    inputs: &'f mut InputList,
    into: &'a [Source],
    /// Of the stage's inputs, the numbers that they have here.
    numbers: HashMap<usize, usize>,
}

impl Fusing<'_, '_> {
    /// Where the elements of a stage's tensor come from.
    fn origin(&mut self, tensor: &Tensor) -> Result<Origin> {
        let (of, job, output) = match &tensor.action {
            Action::Copy(copy) if copy.from == copy.to => {
                return match &self.stage.stage.inputs[copy.holders[0]] {
                    Input::Stored(at) => Ok(Origin::Stored(self.stored(*at)?)),
                    Input::Made(_) => Ok(Origin::Made(self.number(copy.holders[0])?)),
                };
            }
            Action::Copy(copy) => {
                let float = |dtype: Option<Dtype>| dtype.and_then(Float::of).expect("floats are converted");
                let of = Floats { input: self.number(copy.holders[0])?, float: float(copy.from) };
                (vec![of], None, float(copy.to))
            }
            Action::Merge(merge) => {
                let (reads, job) = single_sum(tensor).expect("a stage is fused if all of it are sums");
                let read = |place: &usize| {
                    let input = self.number(merge.inputs[*place])?;
                    Ok(Floats { input, float: merge.floats[*place] })
                };
                (reads.iter().map(read).collect::<Result<Vec<_>>>()?, Some(job), merge.output)
            }
        };
        Ok(Origin::Made(self.inputs.make(Merged { of, job, output })))
    }

    /// The number that an input of the stage has in the plan that reads it.
    fn number(&mut self, input: usize) -> Result<usize> {
        if let Some(known) = self.numbers.get(&input) {
            return Ok(*known);
        }
        let inputs = Arc::clone(&self.stage.stage.inputs);
        let number = match &inputs[input] {
            Input::Stored(at) => {
                let at = self.stored(*at)?;
                self.inputs.stored(at)
            }
            Input::Made(made) => {
                let of = made.of().into_iter().map(|of| Ok((of, self.number(of)?)));
                let numbers = of.collect::<Result<HashMap<_, _>>>()?;
                self.inputs.make(Renumbered::new(&inputs, input, numbers))
            }
        };
        self.numbers.insert(input, number);
        Ok(number)
    }

    /// The place of a stored tensor among the sources of the plan that reads it.
    fn stored(&self, at: At) -> Result<At> {
        let own = &self.stage.sources[at.source];
        let info = own.tensor_at(at.tensor);
        let source = self.stage.numbers[at.source].expect("what a stage reads is opened");
        let place = self.into[source].place_of(&info.name);
        let tensor = place.filter(|place| {
            let now = self.into[source].tensor_at(*place);
            (now.dtype, &now.shape) == (info.dtype, &info.shape)
        });
        let tensor = tensor
            .ok_or_else(|| Error::input(format!("{}: it changed while merges were planned", own.name)))?;
        Ok(At { source, tensor })
    }
}

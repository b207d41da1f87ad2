//! The weights of a merge as shares of its models, tensor by tensor: what its plan says, whatever the config's words for it.

use std::fmt;

use super::Groups;
use crate::checkpoint::Source;
use crate::decoder::Decoder;
use crate::error::{Error, Result};
use crate::input;
use crate::kernel::{Job, weighted_sum};
use crate::plan::{Action, Merge, Plan, Tensor};

/// A merge that is a weighted sum of its models.
#[derive(Debug, Clone, PartialEq)]
pub struct Blend {
    /// The models, as the config has them.
    pub models: Vec<String>,
    tensors: Vec<Part>,
}

/// A tensor, and the share of each model in it.
#[derive(Debug, Clone, PartialEq)]
struct Part {
    name: String,
    elements: f64,
    shares: Vec<f64>,
}

/// A merge by the coefficients of its parents.
#[derive(Debug, Clone, PartialEq)]
pub struct Coefficients {
    /// That of each parent but the first.
    pub values: Vec<f64>,
    /// How far a share of any tensor is from what its group has in the mean, which is used.
    pub apart: f64,
}

/// Why a merge is not between its parents, where predictions are less sure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Beyond {
    /// The parents' coefficients add up to so much, more than 1.
    Sum(f64),
    /// One is more than 1.
    Above(f64),
    /// One is less than 0.
    Negative(f64),
}

/// Weights that differ by less are the same: they were rounded.
const SAME: f64 = 1e-5;

const AS_PARENT: &str =
    "merge it once, then name its folder as a model of a `linear` config: it counts as one more parent";

impl Blend {
    /// The merge that a plan makes.
    ///
    /// # Errors
    /// It is no weighted sum of its models, with weights that add up to 1; or layers are not where the models have them.
    pub fn of(plan: &Plan, sources: &[Source]) -> Result<Self> {
        if let Some(left_out) = plan.left_out.first() {
            let message = format!(
                "{} of {} are left out: its parents have other layers",
                left_out.what, left_out.model
            );
            return Err(Error::config(message).hint(AS_PARENT));
        }
        let altered = plan.tokenizer.vocabulary.as_ref().filter(|new| new.added + new.removed > 0);
        if altered.is_some() {
            let message = "its vocabulary is not that of its models, so it has other logits";
            return Err(Error::config(message).hint(AS_PARENT));
        }
        let mut tensors = Vec::new();
        for tensor in &plan.tensors {
            in_place(tensor, plan, sources)?;
            let mut shares = vec![0.0; plan.models.len()];
            match &tensor.action {
                // Equal in all of its holders, so that any share is true; or no weight.
                Action::Copy(copy) if copy.holders.len() > 1 || !is_weight(&tensor.name) => continue,
                Action::Copy(copy) => shares[copy.models[0]] = 1.0,
                Action::Merge(merge) => {
                    for (place, share) in shares_of(merge, &tensor.name)? {
                        shares[merge.models[place]] += share;
                    }
                }
            }
            tensors.push(Part { name: tensor.name.to_string(), elements: tensor.elements as f64, shares });
        }
        Ok(Self { models: plan.models.iter().map(|model| model.name.clone()).collect(), tensors })
    }

    /// Its coefficients for parents that were made of these models, the merge's own among them.
    ///
    /// # Panics
    /// One of its models is not among them.
    pub fn coefficients(&self, models: &[String], groups: &Groups) -> Coefficients {
        let place =
            |model: &String| models.iter().position(|other| other == model).expect("all are measured");
        let places: Vec<usize> = self.models.iter().map(place).collect();
        let mut means = vec![vec![0.0; models.len()]; groups.count()];
        let mut elements = vec![0.0; groups.count()];
        for part in &self.tensors {
            let group = groups.of_tensor(&part.name);
            elements[group] += part.elements;
            for (place, share) in places.iter().zip(&part.shares) {
                means[group][*place] += share * part.elements;
            }
        }
        for (means, elements) in means.iter_mut().zip(&elements) {
            means.iter_mut().for_each(|mean| *mean /= elements.max(1.0));
        }
        let distance = |part: &Part| {
            let means = &means[groups.of_tensor(&part.name)];
            let each = places.iter().zip(&part.shares).map(|(place, share)| (share - means[*place]).abs());
            each.fold(0.0, f64::max)
        };
        let apart = self.tensors.iter().map(distance).fold(0.0, f64::max);
        let values = (1..models.len()).flat_map(|model| means.iter().map(move |means| means[model]));
        Coefficients { values: values.collect(), apart: if apart < SAME { 0.0 } else { apart } }
    }
}

impl Coefficients {
    /// Why the merge is beyond its parents, if it is.
    pub fn beyond(&self, groups: &Groups) -> Option<Beyond> {
        beyond(&self.values, groups)
    }
}

/// Why a merge with these coefficients is beyond its parents, if it is: what is farthest from being between them.
pub(super) fn beyond(values: &[f64], groups: &Groups) -> Option<Beyond> {
    let sum = |group: usize| values.iter().skip(group).step_by(groups.count()).sum::<f64>();
    let sum = (0..groups.count()).map(sum).fold(0.0, f64::max);
    let (least, most) =
        values.iter().fold((0.0f64, 0.0f64), |(least, most), c| (least.min(*c), most.max(*c)));
    let reasons =
        [(-least, Beyond::Negative(least)), (most - 1.0, Beyond::Above(most)), (sum - 1.0, Beyond::Sum(sum))];
    let farthest = reasons.into_iter().max_by(|a, b| a.0.total_cmp(&b.0));
    farthest.filter(|(by, _)| *by > SAME).map(|(_, reason)| reason)
}

impl fmt::Display for Beyond {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sum(sum) => write!(f, "weights add up to {sum:.2}"),
            Self::Above(most) => write!(f, "a weight of {most:.2}"),
            Self::Negative(least) => write!(f, "a weight of {least:.2}"),
        }
    }
}

/// Whether a tensor takes part in a forward pass: buffers and the like do not.
fn is_weight(name: &str) -> bool {
    name.rsplit('.').next().is_some_and(|kind| ["weight", "bias"].contains(&kind))
}

/// A layer is predicted only where its parents have it.
fn in_place(tensor: &Tensor, plan: &Plan, sources: &[Source]) -> Result<()> {
    let made_of = tensor.inputs().iter().take(tensor.models().len());
    for at in made_of.filter_map(|input| input::stored(&plan.inputs, *input).first().copied()) {
        let own = &sources[at.source].tensor_at(at.tensor).name;
        if Decoder::layer_of(own) != Decoder::layer_of(&tensor.name) {
            let message =
                format!("tensor {} comes from {own}: its parents have other layers there", tensor.name);
            return Err(Error::config(message).hint(AS_PARENT));
        }
    }
    Ok(())
}

/// The share of each input of a merge that has one, by its place.
fn shares_of(merge: &Merge, name: &str) -> Result<Vec<(usize, f64)>> {
    let mut foreseen = merge.recipe.begin().foreseen();
    let only =
        if merge.recipe.sweeps_most == 1 && merge.recipe.made.is_empty() { foreseen.pop() } else { None };
    let (Some(pass), []) = (only, &foreseen[..]) else { return Err(no_sum(merge)) };
    let Job::WeightedSum(weighted_sum::Job { anchored, coefficients }) = pass.job else {
        return Err(no_sum(merge));
    };
    let mut shares: Vec<f64> = coefficients.iter().map(|c| f64::from(*c)).collect();
    if anchored {
        shares[0] = 1.0 - shares[1..].iter().sum::<f64>();
    }
    let sum: f64 = shares.iter().sum();
    if (sum - 1.0).abs() > SAME {
        let message = format!(
            "tensor {name}: the weights add up to {sum:.4}, so that the merge is not among its parents"
        );
        return Err(
            Error::config(message).hint("give weights that add up to 1, or leave out `normalize: false`")
        );
    }
    Ok(pass.reads.into_iter().zip(shares).collect())
}

fn no_sum(merge: &Merge) -> Error {
    let message =
        format!("merges by {} are no weighted sums, which alone can be predicted", merge.method.name);
    Error::config(message).hint(AS_PARENT)
}

//! Tensors that only some of the models have: copied, left out, or merged of their holders.

use indexmap::IndexMap;

use super::views::Held;
use super::wanted::{Want, Wanted};
use super::{Planner, Tensor};
use crate::error::{Error, Result};
use crate::method::Base;

/// What becomes of tensors that only some of the models have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PartlyHeldPolicy {
    /// They are copied where the donor has them or their holders agree, and refused otherwise.
    #[default]
    Copied,
    /// They are left out.
    LeftOut,
    /// Their holders are merged.
    Merged,
}

/// Tensors that only some models have: those that are copied, by which models have them, and how many are merged.
#[derive(Debug, Default)]
pub(super) struct PartlyHeld {
    groups: IndexMap<Holders, (String, usize)>,
    /// Tensors that belong to none of the groups.
    others: usize,
    /// Tensors that are merged of those models alone that have them.
    merged: usize,
}

/// The sources that have a tensor, and those that have not.
type Holders = (Vec<usize>, Vec<usize>);

impl PartlyHeld {
    /// So many groups are listed.
    const GROUPS_MAX: usize = 8;

    fn add(&mut self, tensor: &str, holders: Holders) {
        if self.groups.len() == Self::GROUPS_MAX && !self.groups.contains_key(&holders) {
            self.others += 1;
            return;
        }
        self.groups.entry(holders).or_insert_with(|| (tensor.into(), 0)).1 += 1;
    }

    /// One note for each group: its first tensor, how many more there are, and the models.
    pub(super) fn notes(self, names: impl Fn(&[usize]) -> String) -> Vec<String> {
        let note = |((with, without), (first, count)): (Holders, (String, usize))| {
            let more = if count > 1 { format!(" and {} more tensors", count - 1) } else { String::new() };
            format!("{first}{more}: copied from {}, because {} has none", names(&with), names(&without))
        };
        let mut notes: Vec<String> = self.groups.into_iter().map(note).collect();
        if self.others > 0 {
            let others = self.others;
            notes.push(format!(
                "{others} more tensors are copied from the models that have them, because others have none"
            ));
        }
        if self.merged > 0 {
            let count = self.merged;
            notes.push(format!(
                "{count} tensors are merged of the models that have them, without those that have not"
            ));
        }
        notes
    }
}

impl<'a> Planner<'a> {
    /// Leaves out what not all models have, and says so.
    pub(super) fn leave_out_partly_held(&mut self, wanted: &mut Vec<Wanted<'a>>) {
        let all = wanted.len();
        wanted.retain(|wanted| wanted.inputs().iter().all(|want| self.find(want).is_some()));
        let left_out = all - wanted.len();
        if left_out > 0 {
            self.notes
                .push(format!("{left_out} of {all} tensors are left out, because not all models have them"));
        }
        if wanted.is_empty() && all > 0 {
            let problem = Error::config("no tensor is in all models");
            self.problems.add(problem.hint("--tensor-union merges the tensors that some of them have"));
        }
    }

    /// Whether the models that have a tensor are merged without the others.
    pub(super) fn merges_some(
        &self,
        base: Option<usize>,
        found: &[(usize, Option<Held>)],
        holders: &[Held],
    ) -> bool {
        let has_base = match (self.method.base, base) {
            (Base::Ignored, _) | (Base::Optional, None) => true,
            (_, Some(base)) => found[base].1.is_some(),
            (Base::Required, None) => false,
        };
        self.choices.partly_held == PartlyHeldPolicy::Merged
            && holders.len() > 1
            && self.method.models.contains(&holders.len())
            && has_base
    }

    /// Takes the models that lack a tensor out of its merge; returns which of the others is the base.
    pub(super) fn merge_holders(
        &mut self,
        wants: &mut Vec<Want<'_, 'a>>,
        base: Option<usize>,
        found: &[(usize, Option<Held>)],
    ) -> Option<usize> {
        self.partly_held.merged += 1;
        let mut is_held = found.iter().map(|(_, held)| held.is_some());
        wants.retain(|_| is_held.next() == Some(true));
        let before = |base: usize| found[..base].iter().filter(|(_, held)| held.is_some()).count();
        base.filter(|base| found[*base].1.is_some()).map(before)
    }

    /// A tensor that only some of the models have.
    pub(super) fn held_by_some(
        &mut self,
        wanted: &Wanted<'_>,
        found: &[(usize, Option<Held>)],
        holders: &[Held],
    ) -> Result<Tensor> {
        let models = |is_held: bool| {
            found.iter().filter(move |(_, held)| held.is_some() == is_held).map(|(model, _)| *model)
        };
        let (with, without): (Vec<_>, Vec<_>) = (models(true).collect(), models(false).collect());
        let donor = self.donor;
        let is_doubtful = holders.len() < 2 && holders.iter().all(|held| held.model != donor);
        if is_doubtful && self.choices.partly_held == PartlyHeldPolicy::Copied {
            let (with, without) = (self.names_of(&with), self.names_of(&without));
            let problem = format!("tensor {}: {with} has it, {without} has not", wanted.name);
            return Err(Error::config(problem).hint(
                "a tensor that some models lack is copied if the base model has it, or if several have it and agree; \
                 --tensor-union copies it all the same, and --tensor-intersection leaves it out; check that the models have \
                 the same architecture",
            ));
        }
        self.partly_held.add(&wanted.name, (with, without));
        self.copied(wanted, holders)
    }
}

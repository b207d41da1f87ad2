//! Warnings of a config and of its plan: shown where they come up, and refused where that is wanted.

use std::collections::HashSet;

use super::show;
use crate::config::{self, Space, Warning};
use crate::error::{Error, Result};
use crate::plan::Choices;
use crate::preflight::{self, Capacity};
use crate::stream::Budget;
use crate::{Prepared, prepare_config};

/// Plans, and reports the warnings, those of the config too, or refuses them if `strict`.
pub(super) fn checked(
    of_config: &[Warning],
    strict: bool,
    prepare: impl FnOnce() -> Result<Prepared>,
) -> Result<Prepared> {
    let mut warnings = Warnings::default();
    // Reported before the plan is made: a slip of a key is often why it fails.
    warnings.of_config(of_config);
    let prepared = prepare()?;
    warnings.of_plan(&prepared);
    warnings.refuse(strict)?;
    Ok(prepared)
}

/// Plans the merge in the middle of what a config leaves open, which is returned, and the same with each other method that it lists:
/// one that cannot merge these models would be left out without a word.
pub(super) fn checked_space(space: &Space, strict: bool, choices: &Choices) -> Result<Prepared> {
    let mut warnings = Warnings::default();
    let mut first = None;
    for point in space.middles() {
        let config = config::read(&space.file, &space.fill(&point))?;
        warnings.of_config(&config.warnings);
        let prepared = prepare_config(config, choices)?;
        warnings.of_plan(&prepared);
        first.get_or_insert(prepared);
    }
    warnings.refuse(strict)?;
    Ok(first.expect("a space has a middle"))
}

/// The warnings so far, each reported once.
#[derive(Debug, Default)]
pub(super) struct Warnings {
    reported: HashSet<String>,
}

impl Warnings {
    pub(super) fn of_config(&mut self, warnings: &[Warning]) {
        self.add(warnings.iter().map(|warning| Error::config(warning.message.as_str())));
    }

    pub(super) fn of_plan(&mut self, prepared: &Prepared) {
        self.add(prepared.plan.warnings.iter().cloned());
    }

    /// Of memory that a merge may take and others have now.
    pub(super) fn of_memory(&mut self, budget: &Budget) {
        self.add(preflight::doubt(budget.host_bytes, &Capacity::now()).into_iter());
    }

    pub(super) fn of_result(&mut self, warning: Error) {
        self.add(std::iter::once(warning));
    }

    fn add(&mut self, warnings: impl Iterator<Item = Error>) {
        for warning in warnings {
            if self.reported.insert(warning.message.clone()) {
                show::warning(&warning);
            }
        }
    }

    /// Makes them an error, if there are any and that is wanted.
    pub(super) fn refuse(&self, strict: bool) -> Result<()> {
        let count = self.reported.len();
        if !strict || count == 0 {
            return Ok(());
        }
        let refusal =
            Error::config(format!("refused for its warnings, {count} in all: --strict makes them errors"));
        Err(refusal.hint("correct what they name, or leave out --strict"))
    }
}

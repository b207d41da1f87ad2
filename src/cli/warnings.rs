//! Warnings of a config and of its plan: shown where they come up, and refused where that is wanted.

use super::show;
use crate::Prepared;
use crate::config::Warning;
use crate::error::{Error, Result};
use crate::preflight::{self, There};
use crate::stream::Budget;

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

/// The warnings so far.
#[derive(Debug, Default)]
pub(super) struct Warnings {
    count: usize,
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
        self.add(preflight::doubt(budget.host_bytes, &There::now()).into_iter());
    }

    pub(super) fn of_result(&mut self, warning: Error) {
        self.add(std::iter::once(warning));
    }

    fn add(&mut self, warnings: impl Iterator<Item = Error>) {
        warnings.for_each(|warning| {
            show::warning(&warning);
            self.count += 1;
        });
    }

    /// Makes them an error, if there are any and that is wanted.
    pub(super) fn refuse(&self, strict: bool) -> Result<()> {
        if !strict || self.count == 0 {
            return Ok(());
        }
        let refusal = Error::config(format!(
            "refused for its warnings, {} in all: --strict makes them errors",
            self.count
        ));
        Err(refusal.hint("correct what they name, or leave out --strict"))
    }
}

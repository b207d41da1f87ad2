//! Collects what is wrong, so that the user sees all of it at once.

use std::collections::HashSet;

use crate::error::{Error, Result};

/// How many problems are told in full.
const TOLD_MAX: usize = 12;

/// Everything wrong so far.
#[derive(Debug, Default)]
pub(super) struct Problems {
    found: Vec<Error>,
    messages: HashSet<String>,
}

impl Problems {
    /// Adds a problem, once: tensors often share one.
    pub(super) fn add(&mut self, problem: Error) {
        if self.messages.insert(problem.message.clone()) {
            self.found.push(problem);
        }
    }

    /// Fails if anything is wrong.
    pub(super) fn stop(&mut self) -> Result<()> {
        let found = std::mem::take(&mut self.found);
        let Some(first) = found.first() else { return Ok(()) };
        if found.len() == 1 {
            return Err(first.clone());
        }
        let mut lines: Vec<&str> =
            found.iter().take(TOLD_MAX).map(|problem| problem.message.as_str()).collect();
        let more = format!("… and {} more", found.len().saturating_sub(TOLD_MAX));
        if found.len() > TOLD_MAX {
            lines.push(&more);
        }
        let mut hints: Vec<&str> = found.iter().filter_map(|problem| problem.hint.as_deref()).collect();
        hints.dedup();
        let error = Error { kind: first.kind, message: lines.join("\n"), hint: None };
        Err(if hints.is_empty() { error } else { error.hint(hints[..hints.len().min(3)].join("\nhint: ")) })
    }
}

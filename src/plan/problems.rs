//! Collects what is wrong, so that the user sees all of it at once.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};

use indexmap::IndexMap;

use crate::error::{Error, Result};

/// So many problems have a line each. More are often one mistake that shows in every tensor.
const TOLD_MAX: usize = 2;

/// How many kinds of problems are listed, where there are more.
const KINDS_MAX: usize = 8;

/// Everything wrong so far. A mistake can show in every one of many tensors, so of each kind only the first is kept whole.
#[derive(Debug, Default)]
pub(super) struct Problems {
    /// The first few.
    first: Vec<Error>,
    /// The first message of each kind, and how many there are. Problems that one hint helps against are of a kind.
    kinds: IndexMap<Option<String>, (String, usize)>,
    /// Hashes of the messages so far.
    seen: HashSet<u64>,
    hasher: RandomState,
}

impl Problems {
    /// Adds a problem, once: tensors often share one.
    pub(super) fn add(&mut self, problem: Error) {
        if !self.seen.insert(self.hasher.hash_one(&problem.message)) {
            return;
        }
        if self.first.len() < TOLD_MAX {
            self.first.push(problem.clone());
        }
        self.kinds.entry(problem.hint).or_insert_with(|| (problem.message, 0)).1 += 1;
    }

    /// Fails if anything is wrong: few problems have a line each, of many each kind has one.
    pub(super) fn stop(&mut self) -> Result<()> {
        let Self { first, kinds, seen, .. } = std::mem::take(self);
        let Some(kind) = first.first().map(|problem| problem.kind) else { return Ok(()) };
        let mut lines: Vec<String> = if seen.len() <= TOLD_MAX {
            first.into_iter().map(|problem| problem.message).collect()
        } else {
            kinds.values().take(KINDS_MAX).map(|(message, count)| one_of(message, *count)).collect()
        };
        if kinds.len() > KINDS_MAX {
            lines.push(format!("… and {} other kinds of problems", kinds.len() - KINDS_MAX));
        }
        let hints: Vec<&str> = kinds.keys().flatten().take(3).map(String::as_str).collect();
        // Each line is one already.
        let hint = (!hints.is_empty()).then(|| hints.join("\nhint: "));
        Err(Error { kind, message: lines.join("\n"), hint })
    }
}

fn one_of(message: &str, count: usize) -> String {
    match count {
        1 => message.into(),
        count => format!("{message} (and {} more like it)", count - 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(problems: &[(&str, &str)]) -> (String, Option<String>) {
        let mut all = Problems::default();
        for (message, hint) in problems {
            let problem = Error::config(*message);
            all.add(if hint.is_empty() { problem } else { problem.hint(*hint) });
        }
        let error = all.stop().unwrap_err();
        (error.message, error.hint)
    }

    #[test]
    fn few_problems_are_reported_one_by_one_and_many_by_kind() {
        let few = message(&[("a", "do x"), ("b", "do x"), ("a", "do x")]);
        assert_eq!(few, ("a\nb".into(), Some("do x".into())));
        let many = message(&[("a", "do x"), ("b", "do x"), ("c", "do y"), ("d", ""), ("e", "do x")]);
        assert_eq!(many, ("a (and 2 more like it)\nc\nd".into(), Some("do x\nhint: do y".into())));
        Problems::default().stop().unwrap();
    }
}

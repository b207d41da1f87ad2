//! Collects what is wrong, so that the user sees all of it at once.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};

use indexmap::IndexMap;

use crate::error::{Error, Result};

/// Of each kind so many problems are reported one by one. More are often one mistake that shows in every tensor.
const FEW_MAX: usize = 2;

/// Everything wrong so far. A mistake can show in every one of many tensors, so of each kind only the first few are kept.
#[derive(Debug, Default)]
pub(super) struct Problems {
    /// The first few of each kind, and how many there are. Problems that one hint helps against are of a kind.
    kinds: IndexMap<Option<String>, (Vec<Error>, usize)>,
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
        let (first, count) = self.kinds.entry(problem.hint.clone()).or_default();
        if first.len() < FEW_MAX {
            first.push(problem);
        }
        *count += 1;
    }

    /// What was added: of each kind few problems one by one, of many the first and how many there are.
    pub(super) fn take(&mut self) -> Vec<Error> {
        let few = |(mut first, count): (Vec<Error>, usize)| {
            if count > FEW_MAX {
                first.truncate(1);
                first[0].message += &format!(" (and {} more like it)", count - 1);
            }
            first
        };
        std::mem::take(self).kinds.into_values().flat_map(few).collect()
    }

    /// Fails if anything is wrong.
    pub(super) fn stop(&mut self) -> Result<()> {
        let problems = self.take();
        if problems.is_empty() { Ok(()) } else { Err(Error::all(problems)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reported(problems: &[(&str, &str)]) -> Vec<String> {
        let mut all = Problems::default();
        for (message, hint) in problems {
            let problem = Error::config(*message);
            all.add(if hint.is_empty() { problem } else { problem.hint(*hint) });
        }
        let problems = all.stop().unwrap_err().one_by_one();
        let line = |problem: Error| format!("{} -> {}", problem.message, problem.hint.unwrap_or_default());
        problems.into_iter().map(line).collect()
    }

    #[test]
    fn few_problems_of_a_kind_are_reported_one_by_one_and_many_by_the_first() {
        let few = [("a", "do x"), ("b", "do y"), ("a", "do x"), ("c", ""), ("d", "do x")];
        assert_eq!(reported(&few), ["a -> ", "d -> do x", "b -> do y", "c -> "]);
        let many = [("a", "do x"), ("b", "do x"), ("c", "do y"), ("d", ""), ("e", "do x")];
        assert_eq!(reported(&many), ["a (and 2 more like it) -> do x", "c -> do y", "d -> "]);
        let kinds: Vec<String> = (0..20).map(|i| format!("k{i}")).collect();
        let kinds: Vec<(&str, &str)> = kinds.iter().map(|kind| (kind.as_str(), kind.as_str())).collect();
        assert_eq!(reported(&kinds).last().unwrap(), "… and 12 more -> ");
        Problems::default().stop().unwrap();
    }
}

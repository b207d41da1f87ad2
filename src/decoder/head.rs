//! What a decoder makes of its last states: logits, of several models side by side.

use std::sync::{Mutex, PoisonError};

use super::machine::{Head, Machine, Room};
use super::{EMBEDDING, States, Weights};
use crate::error::Result;

/// The weight of the norm after the last layer.
pub const NORM: &str = "model.norm.weight";

/// The matrix that logits are made by; models without it take their embedding.
pub const HEAD: &str = "lm_head.weight";

/// The states behind the last layer of some tokens, ready for the head.
#[derive(Debug)]
pub struct Final {
    hidden: usize,
    /// `tokens × hidden`.
    values: Room,
}

impl Final {
    /// Of these tokens of some texts, counted through all of them.
    ///
    /// # Errors
    /// Those of `weights` and of the machine.
    pub fn of(
        states: &States<'_>,
        tokens: &[usize],
        weights: &mut dyn Weights,
        machine: &mut dyn Machine,
    ) -> Result<Self> {
        let hidden = states.decoder.hidden;
        let mut weight = vec![0.0; hidden];
        weights.read(NORM, 0, &mut weight)?;
        let mut values = machine.lasting_room(tokens.len() * hidden)?;
        let mut at = 0;
        for run in tokens.chunk_by(|token, next| token + 1 == *next) {
            let len = run.len() * hidden;
            machine.copy((&states.values, run[0] * hidden), (&mut values, at), len)?;
            at += len;
        }
        machine.norm(&mut values, &weight, states.decoder.epsilon)?;
        Ok(Self { hidden, values })
    }

    /// How many tokens there are.
    pub fn len(&self) -> usize {
        self.values.len() / self.hidden
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }
}

/// Computes the logits of tokens in some models with the same vocabulary, some of the vocabulary at a time.
///
/// Each token has something of its own in `kept`; `take` gets that, the first row of the vocabulary that is meant, and of each model
/// the logits from there on.
///
/// # Errors
/// Those of the weights and of the machine.
///
/// # Panics
/// The models have different numbers of tokens.
pub fn logits<K: Send>(
    models: &mut [(&Final, &mut dyn Weights)],
    vocabulary: usize,
    machine: &mut dyn Machine,
    kept: &mut [K],
    take: impl Fn(&mut K, usize, &[&[f32]]) + Sync,
) -> Result<()> {
    assert!(models.iter().all(|(last, _)| last.len() == kept.len()), "all have the same tokens");
    // What layers left is not needed any more.
    machine.clear()?;
    let widest = models.iter().map(|(last, _)| last.hidden).max().unwrap_or(1);
    let at_once = machine.logits_rows(widest);
    let mut rows = vec![Vec::new(); models.len()];
    let part = machine.logits_part(kept.len()).max(1);
    let parts: Vec<Mutex<&mut [K]>> = kept.chunks_mut(part).map(Mutex::new).collect();
    for first in (0..vocabulary).step_by(at_once) {
        let count = at_once.min(vocabulary - first);
        for ((last, weights), rows) in models.iter_mut().zip(&mut rows) {
            weights.go_on()?;
            let name = if weights.has(HEAD) { HEAD } else { EMBEDDING };
            rows.resize(count * last.hidden, 0.0);
            weights.read(name, (first * last.hidden) as u64, rows)?;
        }
        let heads = models.iter().zip(&rows);
        let heads: Vec<Head<'_>> =
            heads.map(|((last, _), rows)| Head { states: &last.values, rows, inputs: last.hidden }).collect();
        machine.logits(&heads, &|number, logits| {
            let mut kept = parts[number].lock().unwrap_or_else(PoisonError::into_inner);
            for (token, kept) in kept.iter_mut().enumerate() {
                let own: Vec<&[f32]> = logits.iter().map(|of| &of[token * count..][..count]).collect();
                take(kept, first, &own);
            }
        })?;
    }
    Ok(())
}

//! What a decoder makes of its last states: logits, of several models side by side.

use super::states::{Product, each, norm, rows_at_once};
use super::{Decoder, EMBEDDING, States, Sums, Weights};
use crate::error::Result;

/// The weight of the norm after the last layer.
pub const NORM: &str = "model.norm.weight";

/// The matrix that logits are made by; models without it take their embedding.
pub const HEAD: &str = "lm_head.weight";

/// The states behind the last layer of some tokens, ready for the head: `tokens × hidden`.
#[derive(Debug)]
pub struct Final {
    hidden: usize,
    values: Vec<f32>,
}

impl Final {
    /// The most bytes that [`logits`] take of a model, but for those of the tokens themselves.
    pub fn working_bytes(decoder: &Decoder, threads: usize) -> u64 {
        let rows = rows_at_once(decoder.hidden).min(decoder.vocabulary);
        ((rows * decoder.hidden + threads * TOKENS * rows) * size_of::<f32>()) as u64
    }

    /// Of these tokens of some texts, counted through all of them.
    ///
    /// # Errors
    /// Those of `weights`.
    pub fn of(states: &States<'_>, tokens: &[usize], weights: &mut dyn Weights) -> Result<Self> {
        let hidden = states.decoder.hidden;
        let mut weight = vec![0.0; hidden];
        weights.read(NORM, 0, &mut weight)?;
        let of = |token: &usize| &states.values[token * hidden..][..hidden];
        let mut values: Vec<f32> = tokens.iter().flat_map(of).copied().collect();
        norm(&mut values, &weight, states.decoder.epsilon);
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
/// Those of the weights.
///
/// # Panics
/// The models have different numbers of tokens.
pub fn logits<K: Send>(
    models: &mut [(&Final, &mut dyn Weights)],
    vocabulary: usize,
    threads: usize,
    kept: &mut [K],
    take: impl Fn(&mut K, usize, &[&[f32]]) + Sync,
) -> Result<()> {
    assert!(models.iter().all(|(last, _)| last.len() == kept.len()), "all have the same tokens");
    let widest = models.iter().map(|(last, _)| last.hidden).max().unwrap_or(1);
    let at_once = rows_at_once(widest);
    let mut rows = vec![Vec::new(); models.len()];
    let mut products: Vec<Product> = models.iter().map(|_| Product::new(Sums::Fastest)).collect();
    for first in (0..vocabulary).step_by(at_once) {
        let count = at_once.min(vocabulary - first);
        for (((last, weights), rows), product) in models.iter_mut().zip(&mut rows).zip(&mut products) {
            weights.go_on()?;
            let name = if weights.has(HEAD) { HEAD } else { EMBEDDING };
            rows.resize(count * last.hidden, 0.0);
            weights.read(name, (first * last.hidden) as u64, rows)?;
            product.take(rows, last.hidden);
        }
        let lasts: Vec<&Final> = models.iter().map(|(last, _)| *last).collect();
        let tokens = kept.len().div_ceil(threads).clamp(1, TOKENS);
        each(threads, kept.chunks_mut(tokens).enumerate(), |(part, kept)| {
            let of_model = |((last, rows), product): ((&&Final, &Vec<f32>), &Product)| {
                let x = &last.values[part * tokens * last.hidden..][..kept.len() * last.hidden];
                let mut y = vec![0.0; kept.len() * count];
                product.add(x, &mut y, rows, (0, count, count));
                y
            };
            let logits: Vec<Vec<f32>> = lasts.iter().zip(&rows).zip(&products).map(of_model).collect();
            for (token, kept) in kept.iter_mut().enumerate() {
                let own: Vec<&[f32]> = logits.iter().map(|of| &of[token * count..][..count]).collect();
                take(kept, first, &own);
            }
        });
    }
    Ok(())
}

/// The most tokens whose logits a thread has in memory.
const TOKENS: usize = 512;

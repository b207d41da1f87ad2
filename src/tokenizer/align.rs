//! Where each row of an embedding comes from once models share a vocabulary.
//!
//! A model that has a token keeps its own row for it. The others take, for the same token: what the config says; else the row of
//! the only model that has it; else the base model's; else the average of all that have it. A token that no model has is zeros.
//! Rows that no token has are the average of those that tokens have, so that they say nothing of their own
//! ([Hewitt 2021](https://nlp.stanford.edu/~johnhew/vocab-expansion.html)).

use std::collections::HashMap;
use std::sync::Arc;

use super::merge::{Merged, Party};

/// Where a row comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RowFrom {
    /// A row of a model.
    Model {
        /// Which model.
        model: usize,
        /// Which row.
        row: u32,
    },
    /// The average of models: model and row of each.
    Mean(Vec<(usize, u32)>),
    /// Nothing: zeros.
    Zero,
    /// The average of the rows that tokens have.
    Filler,
}

/// What the config says of a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chosen {
    /// Where its row comes from in models that have none, if it says so.
    pub from: Option<RowFrom>,
    /// Whether models that have a row take that one too.
    pub force: bool,
}

/// The rows of every model, in the order of a merged vocabulary.
#[derive(Debug)]
pub struct Aligned {
    /// By model and id, the row of the token; models with the same tokenizer and as many rows share theirs.
    rows: Vec<Arc<[Option<u32>]>>,
    /// By id, whether a token has it.
    taken: Vec<bool>,
    base: Option<usize>,
    chosen: HashMap<u32, Chosen>,
    height: usize,
}

/// How many rows of one matrix come from where.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// From the model itself.
    pub own: usize,
    /// From another one.
    pub others: usize,
    /// From several, averaged.
    pub averaged: usize,
    /// From none: zeros.
    pub zeros: usize,
    /// The average of the rest.
    pub fillers: usize,
}

impl Aligned {
    /// Aligns models with a vocabulary. `base` is one of them; `chosen` goes by ids; the rows are filled up to a multiple of
    /// `multiple`.
    pub fn new(
        merged: &Merged,
        parties: &[Party],
        base: Option<usize>,
        chosen: HashMap<u32, Chosen>,
        multiple: usize,
    ) -> Self {
        let mut rows: Vec<Arc<[Option<u32>]>> = Vec::with_capacity(parties.len());
        for party in parties {
            let is_same =
                |other: &Party| std::ptr::eq(other.tokenizer, party.tokenizer) && other.rows == party.rows;
            let known = parties[..rows.len()].iter().position(is_same);
            rows.push(known.map_or_else(|| merged.rows_of(party).into(), |known| Arc::clone(&rows[known])));
        }
        let taken = (0..merged.ids() as u32).map(|id| merged.token(id).is_some()).collect();
        Self { rows, taken, base, chosen, height: merged.ids().next_multiple_of(multiple) }
    }

    /// How many rows a matrix has.
    pub fn height(&self) -> usize {
        self.height
    }

    /// Whether the rows of a model are already those.
    pub fn is_identity(&self, model: usize, rows: u64) -> bool {
        self.height as u64 == rows
            && self.rows(model, &[model]).enumerate().all(|(id, from)| match from {
                RowFrom::Model { model: of, row } => of == model && row as usize == id,
                RowFrom::Filler => true,
                RowFrom::Mean(_) | RowFrom::Zero => false,
            })
    }

    /// The rows of one model, where the models `among` have the matrix.
    pub fn rows<'a>(&'a self, model: usize, among: &'a [usize]) -> impl Iterator<Item = RowFrom> + 'a {
        (0..self.height).map(move |id| self.row(model, id, among))
    }

    fn row(&self, model: usize, id: usize, among: &[usize]) -> RowFrom {
        if !self.taken.get(id).is_some_and(|taken| *taken) {
            return RowFrom::Filler;
        }
        let chosen = self.chosen.get(&(id as u32));
        match self.rows[model][id] {
            Some(row) if !chosen.is_some_and(|chosen| chosen.force) => RowFrom::Model { model, row },
            _ => chosen.and_then(|chosen| chosen.from.clone()).unwrap_or_else(|| self.elsewhere(id, among)),
        }
    }

    /// The row of a token for models that do not have it.
    fn elsewhere(&self, id: usize, among: &[usize]) -> RowFrom {
        let row = |model: usize| self.rows[model][id].map(|row| (model, row));
        let mut holders: Vec<(usize, u32)> = among.iter().filter_map(|model| row(*model)).collect();
        let base = self.base.filter(|base| among.contains(base)).and_then(row);
        match (holders.len(), base) {
            (0, _) => RowFrom::Zero,
            (1, _) => holders.pop().map_or(RowFrom::Zero, |(model, row)| RowFrom::Model { model, row }),
            (_, Some((model, row))) => RowFrom::Model { model, row },
            (_, None) => RowFrom::Mean(holders),
        }
    }

    /// Counts the rows of one model, as [`Self::rows`] gives them.
    pub fn counts(&self, model: usize, among: &[usize]) -> Counts {
        let mut counts = Counts::default();
        for from in self.rows(model, among) {
            *match from {
                RowFrom::Model { model: of, .. } if of == model => &mut counts.own,
                RowFrom::Model { .. } => &mut counts.others,
                RowFrom::Mean(_) => &mut counts.averaged,
                RowFrom::Zero => &mut counts.zeros,
                RowFrom::Filler => &mut counts.fillers,
            } += 1;
        }
        counts
    }
}

//! A router's weights from prompts: the direction of the tokens that each expert is meant for.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use super::{Floats, Made, ReadElements, by_rows, fit};
use crate::dtype::{Float, encode};
use crate::error::Result;

/// A matrix with a row for each expert, as f32: what mergekit calls `cheap_embed`.
///
/// The embeddings of all tokens of an expert's prompts are added up, and the sum is brought to length 1. Where there are
/// negative prompts too, theirs is subtracted, and the difference brought to length 1 again. All of it is f64, added up from
/// the smallest token to the largest, and rounded once.
#[derive(Debug, Clone, PartialEq)]
pub struct Gates {
    /// The input embedding, `vocabulary × columns`.
    pub embedding: Floats,
    /// Its columns, at least 1.
    pub columns: u64,
    /// Of each expert the tokens of its prompts.
    pub experts: Vec<PromptTokens>,
}

/// The tokens of an expert's prompts, and how often each of them occurs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PromptTokens {
    /// Of what it is meant for.
    pub positive: BTreeMap<u64, u32>,
    /// Of what it is not meant for.
    pub negative: BTreeMap<u64, u32>,
}

/// Shorter sums are not made longer than they are by more than its reciprocal.
const LENGTH_MIN: f64 = 1e-8;

/// What a row is computed in.
#[derive(Default)]
struct Room {
    term: Vec<f32>,
    bytes: Vec<u8>,
}

impl Gates {
    /// The direction of the sum of some tokens' embeddings.
    fn direction(
        &self,
        tokens: &BTreeMap<u64, u32>,
        room: &mut Room,
        from: &mut dyn ReadElements,
    ) -> Result<Vec<f64>> {
        let mut sum = vec![0.0; self.columns as usize];
        fit(&mut room.term, sum.len());
        for (token, times) in tokens {
            self.embedding.values(token * self.columns, &mut room.term, &mut room.bytes, from)?;
            let times = f64::from(*times);
            sum.iter_mut().zip(&room.term).for_each(|(sum, term)| *sum += times * f64::from(*term));
        }
        unit(&mut sum);
        Ok(sum)
    }

    /// The weights of one expert.
    fn row(&self, expert: usize, room: &mut Room, from: &mut dyn ReadElements) -> Result<Vec<f32>> {
        let PromptTokens { positive, negative } = &self.experts[expert];
        let mut row = self.direction(positive, room, from)?;
        if !negative.is_empty() {
            let other = self.direction(negative, room, from)?;
            row.iter_mut().zip(other).for_each(|(row, other)| *row -= other);
            unit(&mut row);
        }
        Ok(row.into_iter().map(|value| value as f32).collect())
    }
}

/// Brings a vector to length 1.
pub(super) fn unit(vector: &mut [f64]) {
    let length = vector.iter().fold(0.0, |sum, x| sum + x * x).sqrt().max(LENGTH_MIN);
    vector.iter_mut().for_each(|x| *x /= length);
}

impl Made for Gates {
    fn of(&self) -> Vec<usize> {
        vec![self.embedding.input]
    }

    fn reads(&self) -> Vec<(usize, Option<u64>)> {
        let rows: usize =
            self.experts.iter().map(|expert| expert.positive.len() + expert.negative.len()).sum();
        vec![(self.embedding.input, Some(rows as u64 * self.columns))]
    }

    fn float(&self) -> Float {
        Float::F32
    }

    fn read(&self, range: Range<u64>, mut into: &mut [u8], from: &mut dyn ReadElements) -> Result<()> {
        let mut room = Room::default();
        for (expert, columns) in by_rows(range, self.columns) {
            let row = self.row(expert as usize, &mut room, from)?;
            let part = &row[columns.start as usize..columns.end as usize];
            let (own, rest) = into.split_at_mut(part.len() * Float::F32.bytes());
            encode(Float::F32, part, own);
            into = rest;
        }
        Ok(())
    }

    /// Two directions in f64, a row of the result, an embedding and its bytes, whatever part of a row is asked for.
    fn working_bytes(&self, _: u64) -> u64 {
        self.columns * (2 * size_of::<f64>() + 3 * Float::F32.bytes()) as u64
    }
}

impl fmt::Display for Gates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a router for {} experts, from the embeddings of their prompts' tokens", self.experts.len())
    }
}

//! A router's weights from hidden states: what the base model makes of the prompts that each expert is meant for.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use super::gates::unit;
use super::{Floats, Made, ReadElements, by_rows};
use crate::decoder::{self, Decoder, Machine, Processor, States, Sums, Weights};
use crate::dtype::{Float, encode};
use crate::error::Result;

/// Mean hidden states of groups of texts, before each of a decoder's first layers: `layers × groups × hidden`, as f32.
///
/// All of them are computed when the first is read, in one pass over the weights, and kept from then on: routers of all layers
/// are made of them.
#[derive(Debug)]
pub struct Hidden {
    /// The model that reads the texts.
    decoder: Decoder,
    /// How many layers' states are wanted, at least 1: the weights of all but the last are read.
    layers: usize,
    /// Its weights by their names.
    weights: HashMap<String, Floats>,
    /// The tokens of each text, at least one.
    texts: Vec<Vec<u64>>,
    /// The texts of each group, at least one.
    groups: Vec<Vec<usize>>,
    /// Which of a text's states count.
    of_text: OfText,
    known: Mutex<Option<Arc<[f32]>>>,
}

/// Which hidden states stand for a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OfText {
    /// That of its last token, which has seen all others.
    Last,
    /// Those of all its tokens, averaged.
    Mean,
}

impl Hidden {
    /// The mean states of these groups of texts.
    ///
    /// # Panics
    /// A text or a group is empty, or no layer is wanted.
    pub fn new(
        decoder: Decoder,
        layers: usize,
        weights: HashMap<String, Floats>,
        texts: Vec<Vec<u64>>,
        groups: Vec<Vec<usize>>,
        of_text: OfText,
    ) -> Self {
        assert!(layers > 0 && texts.iter().all(|text| !text.is_empty()), "there is something to read");
        assert!(groups.iter().all(|group| !group.is_empty()), "means are of something");
        Self { decoder, layers, weights, texts, groups, of_text, known: Mutex::new(None) }
    }

    fn elements(&self) -> usize {
        self.layers * self.groups.len() * self.decoder.hidden
    }

    /// All of its elements.
    fn compute(&self, from: &mut dyn ReadElements) -> Result<Arc<[f32]>> {
        let machine = &mut Processor::new(Sums::Ordered, from.threads());
        let mut weights = Read { weights: &self.weights, bytes: Vec::new(), from };
        let mut states = States::of(&self.decoder, &self.texts, &mut weights, machine)?;
        let mut found = Vec::with_capacity(self.elements());
        self.put_means(&states, machine, &mut found)?;
        for layer in 0..self.layers - 1 {
            states.advance(layer, &mut weights, machine)?;
            self.put_means(&states, machine, &mut found)?;
        }
        Ok(found.into())
    }

    /// Appends the mean state of each group: over texts, in f64.
    fn put_means(&self, states: &States<'_>, machine: &mut dyn Machine, found: &mut Vec<f32>) -> Result<()> {
        let hidden = self.decoder.hidden;
        let of_text = |states: &[f32]| match self.of_text {
            OfText::Last => mean(states.rchunks_exact(hidden).take(1), hidden),
            OfText::Mean => mean(states.chunks_exact(hidden), hidden),
        };
        let mut of_texts: Vec<Vec<f64>> = Vec::with_capacity(self.texts.len());
        states.texts(machine, |states| of_texts.push(of_text(states)))?;
        for group in &self.groups {
            let mut sum = vec![0.0; hidden];
            for text in group {
                sum.iter_mut().zip(&of_texts[*text]).for_each(|(sum, x)| *sum += x);
            }
            found.extend(sum.into_iter().map(|sum| (sum / group.len() as f64) as f32));
        }
        Ok(())
    }
}

/// Threads whose weights of attention count.
const THREADS: usize = 64;

/// The mean of states of so many elements, in f64.
fn mean<'s>(states: impl ExactSizeIterator<Item = &'s [f32]>, hidden: usize) -> Vec<f64> {
    let (mut sum, count) = (vec![0.0; hidden], states.len() as f64);
    for state in states {
        sum.iter_mut().zip(state).for_each(|(sum, x)| *sum += f64::from(*x));
    }
    sum.iter_mut().for_each(|sum| *sum /= count);
    sum
}

/// Weights of a decoder that are inputs.
struct Read<'r> {
    weights: &'r HashMap<String, Floats>,
    bytes: Vec<u8>,
    from: &'r mut dyn ReadElements,
}

impl Weights for Read<'_> {
    fn has(&self, name: &str) -> bool {
        self.weights.contains_key(name)
    }

    fn read(&mut self, name: &str, first: u64, into: &mut [f32]) -> Result<()> {
        self.weights[name].values(first, into, &mut self.bytes, self.from)
    }

    fn go_on(&mut self) -> Result<()> {
        self.from.go_on()
    }
}

impl Made for Hidden {
    /// In the order of their numbers, so that it is the same every time.
    fn of(&self) -> Vec<usize> {
        let inputs: BTreeSet<usize> = self.weights.values().map(|weight| weight.input).collect();
        inputs.into_iter().collect()
    }

    fn reads(&self) -> Vec<(usize, Option<u64>)> {
        let tokens: usize = self.texts.iter().map(Vec::len).sum();
        let embedding = self.weights[decoder::EMBEDDING].input;
        let part = |input| (input == embedding).then_some((tokens * self.decoder.hidden) as u64);
        self.of().into_iter().map(|input| (input, part(input))).collect()
    }

    fn float(&self) -> Float {
        Float::F32
    }

    fn read(&self, range: Range<u64>, into: &mut [u8], from: &mut dyn ReadElements) -> Result<()> {
        // Whoever comes meanwhile waits: there is nothing to do before these are known.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let values = match &*known {
            Some(values) => Arc::clone(values),
            None => Arc::clone(known.insert(self.compute(from)?)),
        };
        drop(known);
        encode(Float::F32, &values[range.start as usize..range.end as usize], into);
        Ok(())
    }

    fn working_bytes(&self, _: u64) -> u64 {
        let lens = self.texts.iter().map(|text| text.len() as u64);
        let (tokens, longest) = (lens.clone().sum(), lens.max().unwrap_or(0));
        let machine = Processor::new(Sums::Ordered, THREADS);
        let stored = machine.asked_max(&self.decoder) * Float::F32.bytes() as u64;
        let of_text = longest * (self.decoder.hidden * size_of::<f32>()) as u64;
        let means = (self.texts.len() * self.decoder.hidden * size_of::<f64>()) as u64;
        machine.states_bytes(&self.decoder, tokens, longest) + stored + means + of_text
    }

    fn kept_bytes(&self) -> u64 {
        (self.elements() * Float::F32.bytes()) as u64
    }
}

impl fmt::Display for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hidden states of {} texts before {} layers", self.texts.len(), self.layers)
    }
}

/// A matrix with a row for each expert, as f32: the router of a layer by hidden states.
///
/// The mean state of an expert's prompts, less that of its negative prompts if it has any, is brought to length 1, in f64.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HiddenGates {
    /// The number of [`Hidden`] among the inputs.
    pub states: usize,
    /// How many groups of texts that has.
    pub groups: u64,
    /// Its hidden size.
    pub columns: u64,
    /// The layer, from 0.
    pub layer: u64,
    /// Whether what is read for the states counts for this router: it is read once for all of them.
    pub counts: bool,
    /// Of each expert the group of its prompts, and that of its negative prompts.
    pub experts: Vec<(u64, Option<u64>)>,
}

impl HiddenGates {
    fn group(&self, group: u64, bytes: &mut [u8], from: &mut dyn ReadElements) -> Result<Vec<f64>> {
        let start = (self.layer * self.groups + group) * self.columns * Float::F32.bytes() as u64;
        from.bytes(self.states, start, bytes)?;
        Ok(bytes.as_chunks().0.iter().map(|bytes| f64::from(f32::from_le_bytes(*bytes))).collect())
    }
}

impl Made for HiddenGates {
    fn of(&self) -> Vec<usize> {
        vec![self.states]
    }

    fn reads(&self) -> Vec<(usize, Option<u64>)> {
        if self.counts { vec![(self.states, None)] } else { Vec::new() }
    }

    fn float(&self) -> Float {
        Float::F32
    }

    fn read(&self, range: Range<u64>, mut into: &mut [u8], from: &mut dyn ReadElements) -> Result<()> {
        let mut bytes = vec![0; self.columns as usize * Float::F32.bytes()];
        for (expert, columns) in by_rows(range, self.columns) {
            let (positive, negative) = self.experts[expert as usize];
            let mut row = self.group(positive, &mut bytes, from)?;
            if let Some(negative) = negative {
                let other = self.group(negative, &mut bytes, from)?;
                row.iter_mut().zip(other).for_each(|(row, other)| *row -= other);
            }
            unit(&mut row);
            let part = &row[columns.start as usize..columns.end as usize];
            let part: Vec<f32> = part.iter().map(|value| *value as f32).collect();
            let (own, rest) = into.split_at_mut(part.len() * Float::F32.bytes());
            encode(Float::F32, &part, own);
            into = rest;
        }
        Ok(())
    }

    fn working_bytes(&self, _: u64) -> u64 {
        self.columns * (2 * size_of::<f64>() + 2 * Float::F32.bytes()) as u64
    }
}

impl fmt::Display for HiddenGates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a router for {} experts, from the hidden states of their prompts", self.experts.len())
    }
}

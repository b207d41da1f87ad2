//! A merge that is read: the result of another document of the config, computed while it is read and written nowhere.
//!
//! Its elements are those that its checkpoint would hold, in the type that would be stored there, rounded once.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use super::{Floats, Input, Made, ReadElements, fit, pieces};
use crate::dtype::{Float, encode};
use crate::error::Result;
use crate::instructions::for_each_instruction_set;
use crate::kernel::{Job, Kept, TILE, Target, TileInputs};

/// Elements that are combined together: a few of each input fit into a core's cache.
const PIECE: u64 = 64 * TILE as u64;

/// A sum of inputs by a kernel that takes every element by itself; or, of one input, its elements in another type.
#[derive(Debug, Clone, PartialEq)]
pub struct Merged {
    /// What is combined, in the kernel's order.
    pub of: Vec<Floats>,
    /// The kernel and its numbers; none where only the type changes.
    pub job: Option<Job>,
    /// The type in which the result would be stored.
    pub output: Float,
}

impl Made for Merged {
    fn of(&self) -> Vec<usize> {
        self.of.iter().map(|of| of.input).collect()
    }

    fn float(&self) -> Float {
        self.output
    }

    fn working_bytes(&self, elements: u64) -> u64 {
        let values = (self.of.len() as u64 + 2) * elements.min(PIECE);
        values * Float::F32.bytes() as u64
    }

    fn read(&self, range: Range<u64>, mut into: &mut [u8], from: &mut dyn ReadElements) -> Result<()> {
        let (mut bytes, mut scratch, mut merged) = (Vec::new(), Vec::new(), Vec::new());
        let mut values = vec![Vec::new(); self.of.len()];
        for piece in pieces(range, PIECE) {
            let len = (piece.end - piece.start) as usize;
            for (of, values) in self.of.iter().zip(&mut values) {
                fit(values, len);
                of.values(piece.start, values, &mut bytes, from)?;
            }
            let result = match &self.job {
                Some(job) => {
                    fit(&mut merged, len);
                    let chunks: Vec<&[f32]> = values.iter().map(Vec::as_slice).collect();
                    combine(job, &chunks, &mut scratch, &mut merged);
                    &merged
                }
                None => &values[0],
            };
            let (own, rest) = into.split_at_mut(len * self.output.bytes());
            encode(self.output, result, own);
            into = rest;
        }
        Ok(())
    }
}

for_each_instruction_set! {
    fn combine(job: &Job, chunks: &[&[f32]], scratch: &mut Vec<f32>, merged: &mut [f32]) {
        for (ordinal, merged) in merged.chunks_mut(TILE).enumerate() {
            let first = ordinal * TILE;
            let inputs = TileInputs { chunks, first, len: merged.len(), masks: &[], ordinal };
            job.tile(ordinal as u64, &inputs, scratch, Target::Values(merged, &mut Kept::default()));
        }
    }
}

impl fmt::Display for Merged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.job {
            Some(job) => write!(f, "{} of {} inputs, as {:?}", job.kernel(), self.of.len(), self.output),
            None => write!(f, "as {:?}", self.output),
        }
    }
}

/// A made input of another plan, whose inputs have other numbers in this one.
pub struct Renumbered {
    /// That plan's inputs.
    inputs: Arc<Vec<Input>>,
    /// Which of them it is.
    made: usize,
    /// This plan's numbers of those that it is made of.
    numbers: HashMap<usize, usize>,
}

impl Renumbered {
    /// The made input of a number among a plan's inputs, with other numbers of what it is made of.
    pub fn new(inputs: &Arc<Vec<Input>>, input: usize, numbers: HashMap<usize, usize>) -> Self {
        let known = match &inputs[input] {
            Input::Made(made) => made.as_renumbered(),
            Input::Stored(_) => None,
        };
        match known {
            Some(inner) => {
                let numbers = inner.numbers.iter().map(|(theirs, old)| (*theirs, numbers[old])).collect();
                Self { inputs: Arc::clone(&inner.inputs), made: inner.made, numbers }
            }
            None => Self { inputs: Arc::clone(inputs), made: input, numbers },
        }
    }

    fn made(&self) -> &dyn Made {
        match &self.inputs[self.made] {
            Input::Made(made) => &**made,
            Input::Stored(_) => unreachable!("a stored input has a number of its own"),
        }
    }
}

impl Made for Renumbered {
    fn of(&self) -> Vec<usize> {
        self.made().of().iter().map(|of| self.numbers[of]).collect()
    }

    fn reads(&self) -> Vec<(usize, Option<u64>)> {
        self.made().reads().into_iter().map(|(of, elements)| (self.numbers[&of], elements)).collect()
    }

    fn as_renumbered(&self) -> Option<&Renumbered> {
        Some(self)
    }

    fn float(&self) -> Float {
        self.made().float()
    }

    fn working_bytes(&self, elements: u64) -> u64 {
        self.made().working_bytes(elements)
    }

    fn kept_bytes(&self) -> u64 {
        self.made().kept_bytes()
    }

    fn release(&self) {
        self.made().release();
    }

    fn read(&self, range: Range<u64>, into: &mut [u8], from: &mut dyn ReadElements) -> Result<()> {
        self.made().read(range, into, &mut Translated { numbers: &self.numbers, from })
    }
}

impl fmt::Debug for Renumbered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Renumbered({:?})", self.made())
    }
}

impl fmt::Display for Renumbered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self.made(), f)
    }
}

/// Reads by the numbers of another plan.
struct Translated<'a> {
    numbers: &'a HashMap<usize, usize>,
    from: &'a mut dyn ReadElements,
}

impl ReadElements for Translated<'_> {
    fn bytes(&mut self, input: usize, start: u64, into: &mut [u8]) -> Result<()> {
        self.from.bytes(self.numbers[&input], start, into)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Memory, decoded, encoded, numbers, read};
    use super::super::{At, Row, Rows};
    use super::*;
    use crate::kernel::weighted_sum;

    /// More than a piece, and no multiple of a tile.
    const ELEMENTS: usize = 70_001;

    fn inputs() -> (Memory, Vec<Floats>, [Vec<f32>; 2]) {
        let values = [numbers(ELEMENTS, 1), numbers(ELEMENTS, 2)];
        let memory = Memory(vec![encoded(Float::BF16, &values[0]), encoded(Float::F32, &values[1])]);
        let of = [(0, Float::BF16), (1, Float::F32)].map(|(input, float)| Floats { input, float });
        (memory, of.into(), values)
    }

    fn stored(float: Float, values: &[f32]) -> Vec<f32> {
        decoded(float, &encoded(float, values), values.len())
    }

    #[test]
    fn sums_are_rounded_to_what_would_be_stored() {
        let (memory, of, [first, second]) = inputs();
        for anchored in [false, true] {
            let job = weighted_sum::Job { anchored, coefficients: vec![0.3, 0.7] };
            let sum = |(a, b): (&f32, &f32)| if anchored { 0.7 * (b - a) + a } else { 0.3 * a + 0.7 * b };
            let sums: Vec<f32> = first.iter().zip(&second).map(sum).collect();
            for output in [Float::F32, Float::F16, Float::BF16] {
                let merged = Merged { of: of.clone(), job: Some(job.clone().into()), output };
                assert_eq!(read(&merged, ELEMENTS as u64, &memory), stored(output, &sums));
            }
        }
        let recast = Merged { of: vec![of[1]], job: None, output: Float::F16 };
        assert_eq!(read(&recast, ELEMENTS as u64, &memory), stored(Float::F16, &second));
        assert_eq!((recast.of(), recast.float()), (vec![1], Float::F16));
    }

    /// Input 0 of the other plan is input 1 here.
    #[test]
    fn inputs_of_another_plan_are_read_by_their_numbers_here() {
        let (memory, of, [_, second]) = inputs();
        let made = Merged { of: vec![Floats { input: 0, ..of[1] }], job: None, output: Float::BF16 };
        let inputs = vec![Input::Stored(At { source: 0, tensor: 0 }), Input::Made(Box::new(made))];
        let renumbered = Renumbered::new(&Arc::new(inputs), 1, HashMap::from([(0, 1)]));
        assert_eq!((Made::of(&renumbered), renumbered.reads()), (vec![1], vec![(1, None)]));
        // Where not all is read, that is known here too.
        let few =
            Rows::new(vec![Floats { input: 0, ..of[1] }], 5, Float::F32, [Row::Picked { of: 0, row: 3 }]);
        let inputs = vec![Input::Stored(At { source: 0, tensor: 0 }), Input::Made(Box::new(few))];
        let few = Renumbered::new(&Arc::new(inputs), 1, HashMap::from([(0, 1)]));
        assert_eq!(few.reads(), [(1, Some(5))]);
        assert_eq!(read(&renumbered, ELEMENTS as u64, &memory), stored(Float::BF16, &second));
        // Once more, as a third plan reads it: input 5 of the second is input 1 there.
        let first = Renumbered { numbers: HashMap::from([(0, 5)]), ..renumbered };
        let unread = || Input::Stored(At { source: 0, tensor: 0 });
        let mut inputs: Vec<Input> = (0..6).map(|_| unread()).collect();
        inputs.push(Input::Made(Box::new(first)));
        let again = Renumbered::new(&Arc::new(inputs), 6, HashMap::from([(5, 1)]));
        assert_eq!((again.made, &again.numbers), (1, &HashMap::from([(0, 1)])), "no layer around a layer");
        assert_eq!(read(&again, ELEMENTS as u64, &memory), stored(Float::BF16, &second));
    }
}

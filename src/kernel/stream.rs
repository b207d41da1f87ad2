//! The yardstick of benches, and the floor of a merge: inputs are read and room for an output is left, with next to no
//! arithmetic.
//!
//! With all inputs touched and an output written it has the bytes of a merge of 16-bit elements and the memory accesses of
//! the kernels beside it, so a kernel's time over this one's says what its arithmetic costs. With nothing touched it does
//! nothing: what is left of a merge are reads, copies, digests and writes. Results are the exclusive or of the inputs' bits
//! in vectors of 16 bytes, or whatever was in their place; nothing depends on them.

use std::ops::Range;

use super::{CaseNumbers, Compiled, Kernel, Needs, Numbers, Outcome, Target, TileInputs, Widest};
use crate::dtype::Element;

/// The numbers of one tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// How many tensors are brought to the device.
    pub inputs: usize,
    /// How many of them the kernel reads.
    pub touched: usize,
    /// Whether it writes.
    pub writes: bool,
}

/// The record.
pub(super) const KERNEL: Kernel = Kernel {
    name: "stream",
    ptx: Compiled { text: include_str!("../../kernels/ptx/stream.ptx"), models: 1 },
    wgsl: Compiled { text: include_str!("../../shaders/stream.wgsl"), models: 1 },
    group_words: 0,
    needs: |_, chunk_tiles| Needs { job_words: Widest::spans_of(chunk_tiles), ..Needs::default() },
    structs: &[],
    constants: &[],
    cases,
    benches,
};

/// What it leaves means nothing, so nothing can be compared.
fn cases(_: &CaseNumbers) -> Vec<super::Job> {
    Vec::new()
}

/// It stands beside the rows of the others.
fn benches(_: &[u32]) -> Vec<(&'static str, super::Job)> {
    Vec::new()
}

impl Numbers for Job {
    fn inputs(&self) -> usize {
        self.inputs
    }

    fn outcome(&self) -> Outcome {
        Outcome::Room
    }

    /// Writing has an entry of its own.
    fn models(&self) -> usize {
        self.writes.into()
    }

    /// How many inputs are read.
    fn pack(&self, _: &Range<u64>, words: &mut Vec<u32>) {
        words.push(self.touched as u32);
    }

    /// The inputs' bytes into the room, word by word.
    fn fill(&self, inputs: &[&[u8]], room: &mut [u8]) {
        let mut mixed = [0u64; 8];
        for (i, input) in inputs.iter().take(self.touched).enumerate() {
            if self.writes {
                let words = room.as_chunks_mut::<8>().0.iter_mut().zip(input.as_chunks().0);
                words.for_each(|(out, word)| {
                    let word = u64::from_le_bytes(*word);
                    let before = if i == 0 { 0 } else { u64::from_le_bytes(*out) };
                    *out = (before ^ word).to_le_bytes();
                });
            } else {
                for words in input.as_chunks::<64>().0 {
                    let words = words.as_chunks::<8>().0;
                    mixed.iter_mut().zip(words).for_each(|(mixed, word)| *mixed ^= u64::from_le_bytes(*word));
                }
            }
        }
        // The compiler must not see that what is read is not used.
        std::hint::black_box(mixed);
        std::hint::black_box(room);
    }

    fn plain(&self, _: u64, _: &[&[f32]], target: Target<'_>) {
        unreachable!("nobody asks for the room as {target:?}")
    }

    #[inline(always)]
    fn tile<E: Element>(&self, _: u64, _: &TileInputs<'_, E>, _: &mut Vec<f32>, target: Target<'_>) {
        unreachable!("nobody asks for the room as {target:?}")
    }
}

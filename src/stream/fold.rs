//! Puts the results of a pass together, whatever order its units finish in.

use std::collections::BTreeMap;
use std::ops::Range;

use blake3::hazmat::{ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};

use super::cut::Destination;
use crate::backend::{Output, SpanResult};
use crate::kernel::{Kept, Outcome, RECORDS_MAX};
use crate::recipe::{Measured, TileCounts};

/// What one tensor's pass has measured so far.
#[derive(Debug)]
pub(super) enum Fold {
    /// No pass is under way.
    Nothing,
    /// Values are written: what was kept is known by chunk.
    Values,
    /// f32 sums per tile, so many words each, added in f64 and in tile order, of each segment by itself.
    Sums { words: usize, totals: Vec<f64>, order: InOrder<(u64, Vec<f32>)> },
    /// Counters, added up per record: so many come in, and neighbours are put together where that is too many.
    Counts { records: Vec<TileCounts>, incoming: usize, record_tiles: u64 },
    /// Words, one after the other.
    Words { all: Vec<u32>, order: InOrder<Vec<u32>> },
}

impl Fold {
    /// A fold of the results of a pass over so many segments, which come with `incoming` records of `record_tiles` tiles where
    /// it counts.
    pub(super) fn new(outcome: Outcome, segments: u64, incoming: usize, record_tiles: u64) -> Self {
        match outcome {
            Outcome::Values | Outcome::Room => Self::Values,
            Outcome::Sums { words } => {
                let totals = vec![0.0; words * segments as usize];
                Self::Sums { words, totals, order: InOrder::default() }
            }
            Outcome::Counts { words } => {
                let record = TileCounts { tiles: 0..0, counts: vec![0; words] };
                let records = incoming.min(RECORDS_MAX as usize);
                Self::Counts { records: vec![record; records], incoming, record_tiles }
            }
            Outcome::Words { .. } => Self::Words { all: Vec::new(), order: InOrder::default() },
        }
    }

    /// Takes in the result of a span.
    pub(super) fn add(&mut self, of: &Destination, output: &Output<'_>) {
        let Destination { ordinal, first_record, segment, tiles, .. } = of;
        match (self, &output.result) {
            (Self::Values, SpanResult::Values(_)) => {}
            (Self::Sums { words, totals, order }, SpanResult::Sums(sums)) => {
                order.push(*ordinal, (*segment, sums.to_vec()), |(segment, sums)| {
                    let totals = &mut totals[segment as usize * *words..][..*words];
                    for tile in sums.chunks_exact(*words) {
                        totals.iter_mut().zip(tile).for_each(|(total, sum)| *total += f64::from(*sum));
                    }
                });
            }
            (Self::Counts { records, incoming, record_tiles }, SpanResult::Counts(counts)) => {
                let words = records[0].counts.len();
                let starts = tiles.clone().step_by(*record_tiles as usize);
                for ((record, start), counts) in (*first_record..).zip(starts).zip(counts.chunks_exact(words))
                {
                    let end = tiles.end.min(start.saturating_add(*record_tiles));
                    let place = record * records.len() / *incoming;
                    records[place].add(&(start..end), counts);
                }
            }
            (Self::Words { all, order }, SpanResult::Words(words)) => {
                order.push(*ordinal, words.to_vec(), |words| all.extend(words));
            }
            (fold, result) => unreachable!("{result:?} does not belong to {fold:?}"),
        }
    }

    /// What the pass measured; `kept` is what all chunks have kept.
    pub(super) fn finish(self, kept: impl FnOnce() -> Kept) -> Measured {
        match self {
            Self::Nothing => Measured::Nothing,
            Self::Values => Measured::Kept(kept()),
            Self::Sums { totals, .. } => Measured::Sums(totals),
            Self::Counts { records, .. } => Measured::Counts(records),
            Self::Words { all, .. } => Measured::Words(all),
        }
    }
}

impl TileCounts {
    fn add(&mut self, tiles: &Range<u64>, counts: &[u32]) {
        let empty = self.tiles.is_empty();
        self.tiles.start = if empty { tiles.start } else { self.tiles.start.min(tiles.start) };
        self.tiles.end = self.tiles.end.max(tiles.end);
        self.counts.iter_mut().zip(counts).for_each(|(total, count)| *total += count);
    }
}

/// Gives back in order what arrives out of order.
#[derive(Debug)]
pub(super) struct InOrder<T> {
    next: usize,
    waiting: BTreeMap<usize, T>,
}

impl<T> Default for InOrder<T> {
    fn default() -> Self {
        Self { next: 0, waiting: BTreeMap::new() }
    }
}

impl<T> InOrder<T> {
    fn push(&mut self, ordinal: usize, value: T, mut take: impl FnMut(T)) {
        self.waiting.insert(ordinal, value);
        while let Some(value) = self.waiting.remove(&self.next) {
            take(value);
            self.next += 1;
        }
    }
}

/// The BLAKE3 digest of a tensor whose chunks are hashed apart, in any order.
///
/// Chunks are a power of two bytes, so each is a subtree of BLAKE3's tree.
#[derive(Debug)]
pub(super) struct Digest {
    bytes: u64,
    subtrees: Vec<Option<ChainingValue>>,
    whole: Option<blake3::Hash>,
}

/// The digest of one chunk.
#[derive(Debug, Clone, Copy)]
pub(super) enum Subtree {
    /// The chunk is the whole tensor.
    Whole(blake3::Hash),
    /// The chunk is a part of it.
    Part(ChainingValue),
}

impl Digest {
    /// A digest of a tensor of `bytes` bytes in `chunks` chunks.
    pub(super) fn new(bytes: u64, chunks: usize) -> Self {
        let whole = (bytes == 0).then(|| blake3::hash(b""));
        Self { bytes, subtrees: vec![None; chunks], whole }
    }

    /// Hashes one chunk. It takes no lock: call it where the bytes are hot.
    pub(super) fn subtree(tensor_bytes: u64, offset: u64, chunk: &[u8]) -> Subtree {
        if chunk.len() as u64 == tensor_bytes {
            return Subtree::Whole(blake3::hash(chunk));
        }
        let mut hasher = blake3::Hasher::new();
        hasher.set_input_offset(offset).update(chunk);
        Subtree::Part(hasher.finalize_non_root())
    }

    /// Takes in the digest of chunk number `chunk`, in place of an earlier one; whether there was one.
    pub(super) fn add(&mut self, chunk: usize, subtree: Subtree) -> bool {
        match subtree {
            Subtree::Whole(hash) => self.whole.replace(hash).is_some(),
            Subtree::Part(value) => self.subtrees[chunk].replace(value).is_some(),
        }
    }

    /// The digest of the tensor.
    pub(super) fn finish(&self) -> blake3::Hash {
        if let Some(hash) = self.whole {
            return hash;
        }
        let values: Vec<_> =
            self.subtrees.iter().map(|value| value.expect("every chunk was written")).collect();
        assert!(values.len() > 1, "{} bytes in one part", self.bytes);
        let (left, right) = values.split_at(left_len(values.len()));
        merge_subtrees_root(&merged(left), &merged(right), Mode::Hash)
    }
}

/// BLAKE3's tree is left-balanced: the left part is the largest power of two below the whole.
fn left_len(subtrees: usize) -> usize {
    subtrees.next_power_of_two() / 2
}

fn merged(subtrees: &[ChainingValue]) -> ChainingValue {
    match subtrees {
        [one] => *one,
        several => {
            let (left, right) = several.split_at(left_len(several.len()));
            merge_subtrees_non_root(&merged(left), &merged(right), Mode::Hash)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Tally;

    fn output(result: SpanResult<'_>) -> Output<'_> {
        Output { result, tally: Tally::default(), redone: false }
    }

    fn of(ordinal: usize, first_record: usize, segment: u64, tiles: Range<u64>) -> Destination {
        Destination { tensor: 0, offset: 0, member: 0, ordinal, first_record, segment, tiles }
    }

    #[test]
    fn segments_are_summed_up_by_themselves() {
        let mut fold = Fold::new(Outcome::Sums { words: 2 }, 2, 0, 1);
        for (ordinal, segment, sums) in
            [(2, 0, vec![1.0, 2.0]), (0, 0, vec![10.0, 20.0, 100.0, 200.0]), (1, 1, vec![5.0, 7.0])]
        {
            fold.add(&of(ordinal, 0, segment, 0..1), &output(SpanResult::Sums(&sums)));
        }
        assert_eq!(fold.finish(Kept::default), Measured::Sums(vec![111.0, 222.0, 5.0, 7.0]));
    }

    #[test]
    fn chunks_hashed_apart_give_the_digest_of_the_whole() {
        let data: Vec<u8> = (0..70_001u32).map(|i| (i * 7 % 251) as u8).collect();
        for chunk_bytes in [1024, 4096, 65_536, 131_072] {
            for len in [0, 1, 1024, 4096, 4097, 65_536, 70_001] {
                let bytes = &data[..len];
                let chunks: Vec<_> = bytes.chunks(chunk_bytes).enumerate().collect();
                let mut digest = Digest::new(len as u64, chunks.len());
                for (i, chunk) in chunks.into_iter().rev() {
                    digest.add(i, Digest::subtree(len as u64, (i * chunk_bytes) as u64, chunk));
                }
                assert_eq!(digest.finish(), blake3::hash(bytes), "{len} bytes by {chunk_bytes}");
            }
        }
    }

    #[test]
    fn neighbouring_records_are_put_together_where_there_are_too_many() {
        // 100 records of 3 tiles, the last of which ends early, in two spans that come in the wrong order.
        let mut fold = Fold::new(Outcome::Counts { words: 1 }, 1, 100, 3);
        let counts: Vec<u32> = (1..=100).collect();
        fold.add(&of(1, 40, 0, 120..299), &output(SpanResult::Counts(&counts[40..])));
        fold.add(&of(0, 0, 0, 0..120), &output(SpanResult::Counts(&counts[..40])));
        let records = fold.finish(Kept::default).counts();
        assert_eq!(records.len(), 64);
        assert_eq!((records[0].tiles.clone(), records[0].counts[0]), (0..6, 1 + 2));
        assert_eq!(records[63].tiles.end, 299);
        assert!(records.windows(2).all(|pair| pair[0].tiles.end == pair[1].tiles.start));
        assert_eq!(records.iter().map(|record| record.counts[0]).sum::<u32>(), 5050);
    }

    #[test]
    fn sums_are_added_in_tile_order() {
        let mut fold = Fold::new(Outcome::Sums { words: 1 }, 1, 0, 1);
        // In f64, 1e30 − 1e30 + 1 is 1 and 1 + 1e30 − 1e30 is 0: the order shows.
        for (ordinal, sum) in [(2, 1.0f32), (1, -1e30), (0, 1e30)] {
            fold.add(&of(ordinal, 0, 0, 0..1), &output(SpanResult::Sums(&[sum])));
        }
        assert_eq!(fold.finish(Kept::default), Measured::Sums(vec![1.0]));
    }
}

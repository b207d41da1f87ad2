//! A random mask that favours large changes: what `della` prunes by (Deep et al., DELLA-Merging, 2024,
//! <https://arxiv.org/abs/2406.11617>).

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use super::{Floats, Made, ReadElements, fit, pieces};
use crate::dtype::Float;
use crate::error::Result;
use crate::instructions::for_each_instruction_set;
use crate::kernel::key;
use crate::kernel::philox::{keeps, probability, upper_draws};

/// A bit for each element: 1 where it is kept.
///
/// In every vector of `n` elements those of the task vector `x − base` are ranked by magnitude, from 0 for the smallest, equal ones
/// by their flat index. The element of rank `r` is kept with probability `(density − ε) + 2ε · r / (n − 1)` (of a single element,
/// `density`), in f64, as it is rounded to a multiple of 2⁻³²; its draw is that of [`keeps`] with its flat index.
///
/// Most draws lie below all probabilities of their vector or above them, and most others are decided by where about the rank is.
/// So ranks are counted in bins of magnitudes, in which most are exact: task vectors in bfloat16 have few different magnitudes.
/// Whoever wants to read a mask computes some of its vectors, for all: it is kept until it is released.
#[derive(Debug)]
pub struct Ranks {
    base: Floats,
    model: Floats,
    vectors: Vectors,
    elements: u64,
    density: f64,
    epsilon: f64,
    key: [u32; 2],
    mask: Mutex<Option<Arc<Mask>>>,
    /// Long vectors take much memory: they are computed one at a time.
    long: Mutex<()>,
}

/// How the elements of a tensor lie in the vectors within which they are ranked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vectors {
    /// Elements of a vector.
    pub len: u64,
    /// How far its neighbours are apart in the tensor. The vectors that begin in as many elements make a slab of `len · stride`.
    pub stride: u64,
}

impl Vectors {
    /// The vectors along the second dimension, which are the rows of a matrix; a tensor of one dimension is one vector.
    pub fn of(shape: &[usize]) -> Self {
        let (len, stride) = match shape {
            [] => (1, 1),
            [len] => (*len, 1),
            [_, len, inner @ ..] => (*len, inner.iter().product()),
        };
        Self { len: len.max(1) as u64, stride: stride.max(1) as u64 }
    }
}

/// What is known of a mask.
#[derive(Debug)]
struct Mask {
    bits: Box<[AtomicU32]>,
    /// Of each batch, whether its bits are there. Who computes them holds the lock.
    done: Box<[Mutex<bool>]>,
    /// The upper half of the probability of each rank.
    upper: Box<[u16]>,
}

/// Elements of neighbouring vectors that are computed together, if a vector is not longer than that.
const BATCH: u64 = 1 << 15;

/// The same where vectors cross each other's rows: the more of them, the longer the stretches that are read.
const CROSSING_BATCH: u64 = 1 << 20;

/// The most elements that are read at a time.
const PIECE: u64 = 1 << 15;

/// Longer vectors are computed by one worker at a time.
const LONG: u64 = 1 << 18;

/// The most ranks of a vector that are looked for one by one; where it would be more, all are sorted.
const SCANS_MAX: usize = 512;

/// The most bins of a vector.
const BINS_MAX: usize = 1 << 16;

impl Ranks {
    /// A mask for a tensor of so many elements, drawn with this key.
    ///
    /// # Panics
    /// The vectors do not fill the tensor or are longer than 2³² elements, or a larger rank would be less likely.
    pub fn new(
        [base, model]: [Floats; 2],
        vectors: Vectors,
        elements: u64,
        density: f64,
        epsilon: f64,
        key: [u32; 2],
    ) -> Self {
        let slab = vectors.len * vectors.stride;
        assert!(slab > 0 && elements.is_multiple_of(slab), "vectors fill the tensor");
        assert!(u32::try_from(vectors.len).is_ok(), "ranks have 32 bits");
        assert!(epsilon >= 0.0, "a larger change is not less likely to be kept");
        let (mask, long) = Default::default();
        Self { base, model, vectors, elements, density, epsilon, key, mask, long }
    }

    /// The probability of a rank in units of 2⁻³².
    fn probability(&self, rank: usize) -> u32 {
        let last = self.vectors.len - 1;
        let share = if last == 0 { 0.5 } else { rank as f64 / last as f64 };
        probability((self.density - self.epsilon) + 2.0 * self.epsilon * share)
    }

    fn keeps(&self, element: u64, rank: usize) -> bool {
        keeps(element, self.key, self.probability(rank))
    }

    /// How many vectors a batch has.
    fn batch_vectors(&self) -> u64 {
        let Vectors { len, stride } = self.vectors;
        if stride == 1 { (BATCH / len).max(1) } else { (CROSSING_BATCH / len).clamp(1, stride) }
    }

    /// How many batches a slab has; of rows, how many rows a batch has.
    fn batches(&self) -> u64 {
        let Vectors { len, stride } = self.vectors;
        match stride {
            1 => (self.elements / len).div_ceil(self.batch_vectors()),
            _ => self.elements / (len * stride) * stride.div_ceil(self.batch_vectors()),
        }
    }

    /// The batches that a range of elements needs.
    fn batches_of(&self, range: &Range<u64>) -> Range<u64> {
        let Vectors { len, stride } = self.vectors;
        let (unit, batches) = match stride {
            1 => (len * self.batch_vectors(), 1),
            _ => (len * stride, stride.div_ceil(self.batch_vectors())),
        };
        range.start / unit * batches..range.end.div_ceil(unit) * batches
    }

    /// The first element of a batch, how far its vectors' first elements are apart, and how many vectors it has.
    fn batch(&self, batch: u64) -> (u64, u64, u64) {
        let (Vectors { len, stride }, most) = (self.vectors, self.batch_vectors());
        if stride == 1 {
            let first = batch * most;
            return (first * len, len, most.min(self.elements / len - first));
        }
        let in_slab = stride.div_ceil(most);
        let first = batch % in_slab * most;
        (batch / in_slab * len * stride + first, 1, most.min(stride - first))
    }

    /// Bytes that a batch is computed in.
    fn batch_bytes(&self) -> u64 {
        let len = self.vectors.len;
        let elements = len * self.batch_vectors();
        // Where vectors cross, a row of what is kept.
        let row = if self.vectors.stride == 1 { 0 } else { self.batch_vectors() };
        let of_element = size_of::<u32>() + size_of::<u16>() + size_of::<u8>();
        let of_rank = 2 * size_of::<u32>() + size_of::<u64>();
        let of_bin = size_of::<u32>() + size_of::<bool>();
        let of_piece = 3 * size_of::<f32>() + size_of::<u32>() + size_of::<u16>();
        elements * of_element as u64
            + len * of_rank as u64
            + (bins_of(len as usize) * of_bin + 2 * SCANS_MAX * size_of::<u32>()) as u64
            + row
            + PIECE * of_piece as u64
    }

    fn mask(&self) -> Arc<Mask> {
        let mut mask = lock(&self.mask);
        Arc::clone(mask.get_or_insert_with(|| {
            Arc::new(Mask {
                bits: (0..self.elements.div_ceil(32)).map(|_| AtomicU32::new(0)).collect(),
                done: (0..self.batches()).map(|_| Mutex::new(false)).collect(),
                upper: (0..self.vectors.len as usize)
                    .map(|rank| (self.probability(rank) >> 16) as u16)
                    .collect(),
            })
        }))
    }

    /// Computes what of a range is not there: first what nobody works at, then what others did not finish.
    fn complete(&self, mask: &Mask, range: &Range<u64>, from: &mut dyn ReadElements) -> Result<()> {
        let mut room = Room::default();
        let batches = self.batches_of(range);
        for waits in [false, true] {
            for batch in batches.clone() {
                let done = &mask.done[batch as usize];
                let mut done = match done.try_lock() {
                    Ok(done) => done,
                    Err(TryLockError::Poisoned(done)) => done.into_inner(),
                    Err(TryLockError::WouldBlock) if waits => lock(done),
                    Err(TryLockError::WouldBlock) => continue,
                };
                if !*done {
                    if self.vectors.len > LONG {
                        let _alone = lock(&self.long);
                        self.compute(batch, mask, &mut Room::default(), from)?;
                    } else {
                        self.compute(batch, mask, &mut room, from)?;
                    }
                    *done = true;
                }
            }
        }
        Ok(())
    }

    fn compute(&self, batch: u64, mask: &Mask, room: &mut Room, from: &mut dyn ReadElements) -> Result<()> {
        let (first, step, vectors) = self.batch(batch);
        let Vectors { len, stride } = self.vectors;
        let elements = (vectors * len) as usize;
        fit(&mut room.keys, elements);
        fit(&mut room.draws, elements);
        fit(&mut room.kept, elements);
        if stride == 1 {
            for piece in pieces(first..first + elements as u64, PIECE) {
                let part = (piece.start - first) as usize..(piece.end - first) as usize;
                let mut keys = std::mem::take(&mut room.keys);
                self.keys(piece, &mut keys[part], room, from)?;
                room.keys = keys;
            }
            draw(first, self.key, &mut room.draws);
        } else {
            self.cross(first, vectors, room, from)?;
        }
        let mut ranking = std::mem::take(&mut room.ranking);
        let vectors_of = room.keys.chunks_exact(len as usize).zip(room.draws.chunks_exact(len as usize));
        for (i, ((keys, draws), kept)) in (0..).zip(vectors_of.zip(room.kept.chunks_exact_mut(len as usize)))
        {
            let keeps =
                |place: usize, rank: usize| self.keeps(first + i * step + place as u64 * stride, rank);
            ranking.decide(keys, draws, &mask.upper, kept, keeps);
        }
        room.ranking = ranking;
        if stride == 1 {
            mask.put(first, &room.kept);
            return Ok(());
        }
        let mut row = Vec::with_capacity(vectors as usize);
        for place in 0..len {
            row.clear();
            row.extend((0..vectors).map(|vector| room.kept[(vector * len + place) as usize]));
            mask.put(first + place * stride, &row);
        }
        Ok(())
    }

    /// The keys of neighbouring elements.
    fn keys(
        &self,
        range: Range<u64>,
        keys: &mut [u32],
        room: &mut Room,
        from: &mut dyn ReadElements,
    ) -> Result<()> {
        fit(&mut room.base, keys.len());
        fit(&mut room.x, keys.len());
        self.base.values(range.start, &mut room.base, &mut room.bytes, from)?;
        self.model.values(range.start, &mut room.x, &mut room.bytes, from)?;
        keys_of(&room.base, &room.x, keys);
        Ok(())
    }

    /// Keys and draws of vectors that are not rows: they are read row by row.
    fn cross(&self, first: u64, vectors: u64, room: &mut Room, from: &mut dyn ReadElements) -> Result<()> {
        let Vectors { len, stride } = self.vectors;
        let (mut keys, mut draws) =
            (vec![0; vectors.min(PIECE) as usize], vec![0; vectors.min(PIECE) as usize]);
        for place in 0..len {
            for piece in pieces(0..vectors, PIECE) {
                let start = first + place * stride + piece.start;
                let (keys, draws) = (
                    &mut keys[..(piece.end - piece.start) as usize],
                    &mut draws[..(piece.end - piece.start) as usize],
                );
                self.keys(start..start + keys.len() as u64, keys, room, from)?;
                draw(start, self.key, draws);
                for ((vector, key), draw) in piece.zip(keys).zip(draws) {
                    let at = (vector * len + place) as usize;
                    (room.keys[at], room.draws[at]) = (*key, *draw);
                }
            }
        }
        Ok(())
    }
}

impl Mask {
    /// Writes what is kept of neighbouring elements, a byte for each. Words that others write to at the same time get their bits
    /// added.
    fn put(&self, first: u64, kept: &[u8]) {
        let head = (first.next_multiple_of(32) - first).min(kept.len() as u64) as usize;
        let (head, rest) = kept.split_at(head);
        let (words, tail) = rest.as_chunks::<32>();
        let place = first.div_ceil(32) as usize;
        self.add(first, head);
        pack(words, &self.bits[place..place + words.len()]);
        self.add(first + (head.len() + 32 * words.len()) as u64, tail);
    }

    /// A part of a word.
    fn add(&self, first: u64, kept: &[u8]) {
        let word = kept.iter().rev().fold(0, |word, kept| word << 1 | u32::from(*kept));
        if word != 0 {
            self.bits[(first / 32) as usize].fetch_or(word << (first % 32), Ordering::Relaxed);
        }
    }
}

impl Made for Ranks {
    fn of(&self) -> Vec<usize> {
        vec![self.base.input, self.model.input]
    }

    fn float(&self) -> Float {
        Float::Bit
    }

    /// A batch; that of long vectors is counted once, and not for each worker.
    fn working_bytes(&self, _: u64) -> u64 {
        if self.vectors.len > LONG { 0 } else { self.batch_bytes() }
    }

    fn kept_bytes(&self) -> u64 {
        let long = if self.vectors.len > LONG { self.batch_bytes() } else { 0 };
        self.elements.div_ceil(32) * size_of::<AtomicU32>() as u64
            + self.batches() * size_of::<Mutex<bool>>() as u64
            + self.vectors.len * size_of::<u16>() as u64
            + long
    }

    fn release(&self) {
        *lock(&self.mask) = None;
    }

    fn read(&self, range: Range<u64>, into: &mut [u8], from: &mut dyn ReadElements) -> Result<()> {
        assert!(range.start.is_multiple_of(8), "bits are read from whole bytes on");
        let mask = self.mask();
        self.complete(&mask, &range, from)?;
        for (place, byte) in (range.start / 8..).zip(&mut *into) {
            let word = mask.bits[(place / 4) as usize].load(Ordering::Relaxed);
            *byte = (word >> (8 * (place % 4))) as u8;
        }
        if let (Some(byte), ends @ 1..) = (into.last_mut(), range.end % 8) {
            *byte &= (1 << ends) - 1;
        }
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is computed in.
#[derive(Default)]
struct Room {
    base: Vec<f32>,
    x: Vec<f32>,
    bytes: Vec<u8>,
    /// Of all elements of a batch, vector by vector.
    keys: Vec<u32>,
    draws: Vec<u16>,
    kept: Vec<u8>,
    ranking: Ranking,
}

/// How the keys of a vector are cut into bins: 0 has one of its own.
#[derive(Clone, Copy)]
struct Cut {
    /// The smallest other key.
    least: u32,
    shift: u32,
}

impl Cut {
    fn of(keys: &[u32], bins: usize) -> Self {
        let (least, largest) = extent(keys);
        let mut shift = 0;
        while (largest.saturating_sub(least) >> shift) as usize + 2 > bins {
            shift += 1;
        }
        Self { least, shift }
    }

    #[inline(always)]
    fn bin(self, key: u32) -> u32 {
        if key < self.least { 0 } else { ((key - self.least) >> self.shift) + 1 }
    }

    /// What the bin does not tell of the key.
    #[inline(always)]
    fn lost(self, key: u32) -> u32 {
        if key < self.least { 0 } else { (key - self.least) & ((1 << self.shift) - 1) }
    }
}

/// The bins of a vector: twice as many as it has elements, where that is neither few nor many.
fn bins_of(len: usize) -> usize {
    (2 * len).next_power_of_two().clamp(64, BINS_MAX)
}

/// What a vector is ranked in.
#[derive(Default)]
struct Ranking {
    bins: Vec<u32>,
    ranks: Vec<u32>,
    /// Of each bin, the rank that the next of its elements has.
    next: Vec<u32>,
    /// Bins that may have different keys.
    mixed: Vec<bool>,
    undecided: Vec<u32>,
    sorted: Vec<u64>,
}

impl Ranking {
    /// Decides which elements of a vector are kept. `keeps` decides it for an element and its rank by the plain rule.
    fn decide(
        &mut self,
        keys: &[u32],
        draws: &[u16],
        upper: &[u16],
        kept: &mut [u8],
        keeps: impl Fn(usize, usize) -> bool,
    ) {
        let cut = Cut::of(keys, bins_of(keys.len()));
        fit(&mut self.bins, keys.len());
        fit(&mut self.ranks, keys.len());
        self.next.clear();
        fit(&mut self.next, bins_of(keys.len()));
        let lost = fill_bins(keys, cut, &mut self.bins);
        let equal = rank(&self.bins, &mut self.next, &mut self.ranks, draws, upper, kept);
        if equal {
            for (i, (draw, rank)) in draws.iter().zip(&self.ranks).enumerate() {
                if *draw == upper[*rank as usize] {
                    kept[i] = u8::from(keeps(i, *rank as usize));
                }
            }
        }
        if lost {
            self.settle(keys, cut, draws, upper, kept, keeps);
        }
    }

    /// Decides those elements whose bins have different keys, so that the bin does not tell their rank, while their draw lies among
    /// the probabilities of the bin's ranks.
    fn settle(
        &mut self,
        keys: &[u32],
        cut: Cut,
        draws: &[u16],
        upper: &[u16],
        kept: &mut [u8],
        keeps: impl Fn(usize, usize) -> bool,
    ) {
        self.mixed.clear();
        fit(&mut self.mixed, self.next.len());
        for (key, bin) in keys.iter().zip(&self.bins) {
            self.mixed[*bin as usize] |= cut.lost(*key) != 0;
        }
        self.undecided.clear();
        for (i, (bin, draw)) in self.bins.iter().zip(draws).enumerate() {
            let bin = *bin as usize;
            // All of a bin are ranked: the next rank is the next bin's first. The first bin has one key, 0.
            if self.mixed[bin] {
                let ranks = self.next[bin - 1]..self.next[bin];
                let (least, largest) = (upper[ranks.start as usize], upper[ranks.end as usize - 1]);
                // One comparison in place of two, of which nobody foresees how each comes out.
                if draw.wrapping_sub(least) <= largest - least && ranks.len() > 1 {
                    self.undecided.push(i as u32);
                    if self.undecided.len() > SCANS_MAX {
                        return self.sort(keys, draws, upper, kept, keeps);
                    }
                }
            }
        }
        for i in &self.undecided {
            let i = *i as usize;
            kept[i] = u8::from(keeps(i, exact_rank(keys, i)));
        }
    }

    /// Decides all elements by their ranks.
    fn sort(
        &mut self,
        keys: &[u32],
        draws: &[u16],
        upper: &[u16],
        kept: &mut [u8],
        keeps: impl Fn(usize, usize) -> bool,
    ) {
        self.sorted.clear();
        self.sorted.reserve_exact(keys.len());
        self.sorted.extend(keys.iter().zip(0..).map(|(key, i)| u64::from(*key) << 32 | i));
        self.sorted.sort_unstable();
        for (rank, element) in self.sorted.iter().enumerate() {
            let i = *element as u32 as usize;
            kept[i] = u8::from(draws[i] < upper[rank] || (draws[i] == upper[rank] && keeps(i, rank)));
        }
    }
}

for_each_instruction_set! {
    fn draw(first: u64, key: [u32; 2], into: &mut [u16]) {
        upper_draws(first, key, into);
    }

    fn keys_of(base: &[f32], x: &[f32], keys: &mut [u32]) {
        keys.iter_mut().zip(x).zip(base).for_each(|((into, x), base)| *into = key(x - base));
    }

    /// The smallest key but for 0, and the largest one.
    fn extent(keys: &[u32]) -> (u32, u32) {
        // 0 becomes the largest number.
        let least = keys.iter().fold(u32::MAX, |least, key| least.min(key.wrapping_sub(1)));
        (least.saturating_add(1), keys.iter().fold(0, |largest, key| largest.max(*key)))
    }

    /// The bins of all keys; whether keys that are different may share one.
    fn fill_bins(keys: &[u32], cut: Cut, bins: &mut [u32]) -> bool {
        let mut lost = 0;
        for (bin, key) in bins.iter_mut().zip(keys) {
            *bin = cut.bin(*key);
            lost |= cut.lost(*key);
        }
        lost != 0
    }

    /// Ranks all elements by bins, those of a bin in their order, and compares their draws with the upper halves of the ranks'
    /// probabilities; whether one is equal to it. Of `next`, which is all 0 before, each becomes the number of elements in the bins
    /// up to its own.
    fn rank(
        bins: &[u32],
        next: &mut [u32],
        ranks: &mut [u32],
        draws: &[u16],
        upper: &[u16],
        kept: &mut [u8],
    ) -> bool {
        for bin in bins {
            next[*bin as usize] += 1;
        }
        let mut before = 0;
        for next in next.iter_mut() {
            before += std::mem::replace(next, before);
        }
        let mut equal = false;
        for (((bin, rank), draw), kept) in bins.iter().zip(ranks).zip(draws).zip(kept) {
            let next = &mut next[*bin as usize];
            *rank = *next;
            *next += 1;
            let upper = upper[*rank as usize];
            *kept = u8::from(*draw < upper);
            equal |= *draw == upper;
        }
        equal
    }

    /// How many keys are smaller than that of element `i`, or equal to it and before it.
    fn exact_rank(keys: &[u32], i: usize) -> usize {
        let key = keys[i];
        let before = keys[..i].iter().fold(0, |rank, other| rank + u32::from(*other <= key));
        let behind = keys[i..].iter().fold(0, |rank, other| rank + u32::from(*other < key));
        (before + behind) as usize
    }

    /// Words of bits from bytes that are 0 or 1.
    fn pack(kept: &[[u8; 32]], words: &[AtomicU32]) {
        for (kept, word) in kept.iter().zip(words) {
            let bits = (0..32).fold(0, |bits, i| bits | u32::from(kept[i]) << i);
            word.store(bits, Ordering::Relaxed);
        }
    }
}

impl fmt::Display for Ranks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { base, model, vectors: Vectors { len, stride }, density, epsilon, .. } = self;
        let (base, model) = (base.input, model.input);
        write!(
            f,
            "mask of input {model} − input {base} by ranks in {len} at stride {stride}, {density} ± {epsilon}"
        )
    }
}

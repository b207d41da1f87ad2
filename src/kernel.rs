//! The kernels: what a backend can do to a tile of elements, and the CPU twin of each.
//!
//! A kernel works on tiles of [`TILE`] elements, computes in f32 (types are decoded on the way in) and knows neither
//! methods nor files. A launch is a list of jobs and spans of tiles; jobs are plain
//! numbers, which every backend packs in its own way. The arithmetic is f32 in the written order, never fused.

pub mod consensus;
pub mod gram;
pub mod keys;
pub mod levels;
pub mod magnitudes;
pub mod masked_sums;
pub mod packed;
pub mod philox;
pub mod weighted_sum;

use crate::dtype::Element;

/// Elements in a tile: the unit of sums, of tables and of scheduling. Tiles start anew with each tensor.
pub const TILE: usize = 1024;

/// The most non-base models in a sign vote: the table of divisors has 2^N entries.
pub const VOTERS_MAX: usize = 12;

/// The most tiles that kernels which keep words run over at once: their results are larger than their inputs.
pub const WORDS_TILES_MAX: u64 = 128;

/// The most spans of a launch: their counters have to fit beside its results.
pub const SPANS_MAX: usize = 64;

/// The most records that the counters of a pass are folded into: what a later search must scan again is at
/// most this fraction of the tensor, and the counters of a 2 GB tensor stay in a few MB.
pub const RECORDS_MAX: u64 = 64;

/// The fewest tiles of a record: fewer would make more counters than their search saves.
pub const RECORD_TILES_MIN: u64 = 32;

/// The widest launches of a merge: what lanes must have room for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Widest {
    /// Input tensors.
    pub inputs: usize,
    /// Bytes of one element of every input, added up.
    pub input_bytes: usize,
    /// Bytes of one element of the output.
    pub output_bytes: usize,
    /// Bytes per element of what is copied without a kernel: 0 where nothing is.
    pub copied_bytes: usize,
    /// Models whose task vectors are measured: 0 where nothing is.
    pub measured: usize,
    /// Tiles of the largest tensor.
    pub tiles: u64,
    /// Bytes of all inputs that are read more than once.
    pub held_bytes: u64,
}

impl Widest {
    /// The most bytes that a launch over `chunk_tiles` tiles leaves behind: values, words, sums, or counters.
    pub const fn result_bytes(&self, chunk_tiles: u64) -> u64 {
        let counted = if self.measured < VOTERS_MAX { self.measured } else { VOTERS_MAX } as u64;
        let values = chunk_tiles * (TILE * self.output_bytes) as u64;
        let words_tiles = if chunk_tiles < WORDS_TILES_MAX { chunk_tiles } else { WORDS_TILES_MAX };
        let words = words_tiles * (4 * TILE) as u64 * counted;
        let pairs = if self.measured > 0 { gram::pairs(self.inputs) } else { 0 } as u64;
        let sums = chunk_tiles * 4 * max(2 * counted, pairs);
        let spans = if chunk_tiles < SPANS_MAX as u64 { chunk_tiles } else { SPANS_MAX as u64 };
        let records = spans + chunk_tiles / RECORD_TILES_MIN;
        let counters = records * 4 * magnitudes::WORDS as u64 * counted;
        max(max(values, words), max(sums, counters))
    }
}

const fn max(a: u64, b: u64) -> u64 {
    if a > b { a } else { b }
}

/// How many tiles `elements` fill, the last one perhaps in part.
pub const fn tiles(elements: u64) -> u64 {
    elements.div_ceil(TILE as u64)
}

/// What a kernel leaves behind for the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Result {
    /// One f32 per element: the merged values.
    Values,
    /// `words` f32 per tile, added up by the host in f64 and in tile order.
    Sums {
        /// f32 words per tile.
        words: usize,
    },
    /// `words` u32 counters per record, added up by the host.
    Counts {
        /// u32 words per record.
        words: usize,
    },
    /// `words` u32 per element, element by element within a tile, kept in order.
    Words {
        /// u32 words per element.
        words: usize,
    },
}

/// One job: a kernel with its numbers. A tensor has one job per launch.
#[derive(Debug, Clone, PartialEq)]
pub enum Job {
    /// Σ cᵢ xᵢ, perhaps around an anchor.
    WeightedSum(weighted_sum::Job),
    /// Task vectors trimmed or dropped, voted on and averaged.
    Consensus(consensus::Job),
    /// All pairwise inner products.
    Gram(gram::Job),
    /// Counts of |delta| at given keys.
    Levels(levels::Job),
    /// Counts of |delta| in bins.
    Magnitudes(magnitudes::Job),
    /// |delta| as integers, element by element.
    Keys(keys::Job),
    /// L1 norms of task vectors before and after a random mask.
    MaskedSums(masked_sums::Job),
}

/// Of each model of a merge, how many elements were kept by their magnitudes: 0 where a random choice decides, and for
/// what weighs all alike. It proves a selection, because only the right one keeps so many.
pub type Kept = [u64; VOTERS_MAX];

/// Where a kernel's twin writes.
#[derive(Debug)]
pub enum Target<'a> {
    /// One value per element of the tile, and what was kept, added to what is there.
    Values(&'a mut [f32], &'a mut Kept),
    /// This tile's sums.
    Sums(&'a mut [f32]),
    /// This span's counters, or this tile's words.
    Words(&'a mut [u32]),
}

impl Job {
    /// The kernel's name: its file stem in `src/kernel/`.
    pub fn kernel(&self) -> &'static str {
        match self {
            Self::WeightedSum(_) => "weighted_sum",
            Self::Consensus(_) => "consensus",
            Self::Gram(_) => "gram",
            Self::Levels(_) => "levels",
            Self::Magnitudes(_) => "magnitudes",
            Self::Keys(_) => "keys",
            Self::MaskedSums(_) => "masked_sums",
        }
    }

    /// How many tensors the job reads.
    pub fn inputs(&self) -> usize {
        match self {
            Self::WeightedSum(job) => job.coefficients.len(),
            Self::Consensus(job) => 1 + job.models.len(),
            Self::Gram(job) => job.inputs,
            Self::Levels(job) => 1 + job.models.len(),
            Self::Magnitudes(job) => 1 + job.models.len(),
            Self::Keys(job) => 1 + job.models,
            Self::MaskedSums(job) => 1 + job.models.len(),
        }
    }

    /// What the job leaves behind.
    pub fn result(&self) -> Result {
        match self {
            Self::WeightedSum(_) | Self::Consensus(_) => Result::Values,
            Self::Gram(job) => Result::Sums { words: gram::pairs(job.inputs) },
            Self::Levels(job) => Result::Counts { words: job.models.len() * levels::WORDS },
            Self::Magnitudes(job) => Result::Counts { words: job.models.len() * magnitudes::WORDS },
            Self::Keys(job) => Result::Words { words: job.models },
            Self::MaskedSums(job) => Result::Sums { words: 2 * job.models.len() },
        }
    }

    /// The numbers that values are multiplied with.
    pub fn factors(&self) -> Vec<f32> {
        match self {
            Self::WeightedSum(job) => job.coefficients.clone(),
            Self::Consensus(job) => {
                job.models.iter().map(|model| model.coefficient).chain(job.scale.iter().copied()).collect()
            }
            Self::Gram(_) | Self::Levels(_) | Self::Magnitudes(_) | Self::Keys(_) | Self::MaskedSums(_) => {
                Vec::new()
            }
        }
    }

    /// Appends the job's numbers as words of 4 bytes, as the kernels of GPUs read them.
    pub fn pack(&self, words: &mut Vec<u32>) {
        match self {
            Self::WeightedSum(job) => weighted_sum::pack(job, words),
            Self::Consensus(job) => consensus::pack(job, words),
            Self::Levels(job) => levels::pack(job, words),
            Self::Magnitudes(job) => magnitudes::pack(job, words),
            Self::MaskedSums(job) => masked_sums::pack(job, words),
            // How many inputs there are says all.
            Self::Gram(_) | Self::Keys(_) => {}
        }
    }

    /// Runs the CPU twin on tile number `tile` of the tensor; `inputs` are its decoded elements. Compiled for the oldest
    /// processor that the build targets: what every device is compared with.
    pub fn run_tile(&self, tile: u64, inputs: &Inputs<'_>, scratch: &mut Vec<f32>, target: Target<'_>) {
        self.tile(tile, inputs, scratch, target);
    }

    /// The same, to be compiled into the caller and for its instruction set.
    #[inline(always)]
    pub(crate) fn tile<E: Element>(
        &self,
        tile: u64,
        inputs: &Inputs<'_, E>,
        scratch: &mut Vec<f32>,
        target: Target<'_>,
    ) {
        match (self, target) {
            (Self::WeightedSum(job), Target::Values(out, _)) => weighted_sum::tile(job, inputs, out),
            (Self::Consensus(job), Target::Values(out, kept)) => {
                consensus::tile(job, tile, inputs, scratch, out, kept);
            }
            (Self::Gram(job), Target::Sums(out)) => gram::tile(job, inputs, scratch, out),
            (Self::Levels(job), Target::Words(out)) => levels::tile(job, inputs, out),
            (Self::Magnitudes(job), Target::Words(out)) => magnitudes::tile(job, inputs, out),
            (Self::Keys(job), Target::Words(out)) => keys::tile(job, inputs, out),
            (Self::MaskedSums(job), Target::Sums(out)) => masked_sums::tile(job, tile, inputs, scratch, out),
            (job, target) => unreachable!("{} does not write {target:?}", job.kernel()),
        }
    }
}

/// A tile of every input: `inputs.of(i)` are the elements of input `i`.
#[derive(Debug)]
pub struct Inputs<'a, E = f32> {
    /// Elements of each input, the tile's from `first` on.
    pub pieces: &'a [&'a [E]],
    /// Where the tile begins.
    pub first: usize,
    /// How many elements of the tile exist: [`TILE`] but at the tensor's end.
    pub len: usize,
}

impl<'a, E> Inputs<'a, E> {
    /// The elements of one input.
    #[inline(always)]
    pub fn of(&self, input: usize) -> &'a [E] {
        &self.pieces[input][self.first..][..self.len]
    }

    /// The elements of the first `N` inputs from number `from` on.
    #[inline(always)]
    fn several<const N: usize>(&self, from: usize) -> [&'a [E]; N] {
        std::array::from_fn(|input| self.of(from + input))
    }
}

/// |delta| of one element as an integer key: the order of keys is the order of magnitudes.
///
/// All NaN share the largest key, because their payloads differ between processors.
#[inline(always)]
pub fn key(delta: f32) -> u32 {
    crate::dtype::magnitude_bits(delta).min(KEY_MAX)
}

/// The largest key: that of NaN.
pub const KEY_MAX: u32 = crate::dtype::INFINITY_BITS + 1;

/// Sums `TILE` products or magnitudes in the contract's order: groups of eight as
/// ((0+1)+(2+3))+((4+5)+(6+7)), then the 128 group sums by halves. The elements past the end are to be zero. What is in
/// `room` does not matter.
#[inline(always)]
fn fold_tile(terms: &[f32; TILE], room: &mut [f32; TILE]) -> f32 {
    let (half, rest) = room.split_at_mut(TILE / 2);
    let (quarter, rest) = rest.split_at_mut(TILE / 4);
    let groups = &mut rest[..TILE / 8];
    add_neighbours(terms, half);
    add_neighbours(half, quarter);
    add_neighbours(quarter, groups);
    let mut half = TILE / 16;
    while half > 0 {
        let (low, high) = groups[..2 * half].split_at_mut(half);
        for i in 0..half {
            low[i] += high[i];
        }
        half /= 2;
    }
    groups[0]
}

/// One level of the fold: 0+1, 2+3, …
#[inline(always)]
fn add_neighbours(terms: &[f32], sums: &mut [f32]) {
    for (sum, [a, b]) in sums.iter_mut().zip(terms.as_chunks().0) {
        *sum = a + b;
    }
}

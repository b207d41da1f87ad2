//! The kernels: what a backend can do to a tile of elements.
//!
//! A kernel works on tiles of [`TILE`] elements, computes in f32 (types are decoded on the way in) and knows neither
//! methods nor files. Each is one file here, with its numbers (a `Job`), its record, its plain twin and the CPU's fast path,
//! one `.cu` and one `.wgsl` of the same name, and one line below. Everything else walks [`KERNELS`]: dispatch, packing, the
//! check, benches, PTX and WGSL, and the tests.
//!
//! The arithmetic is f32 in the written order, never fused. The plain twin says what that is, element by element, and is
//! what all devices are compared with, the CPU's fast path among them.

pub mod choice;
mod header;
pub mod packed;
pub mod philox;
mod sums;
pub mod thinning;
mod widest;

use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Range;

pub use header::{cuda_header, wgsl_header};
pub use widest::{
    Needs, RECORD_TILES_MIN, RECORDS_MAX, SEGMENT_SPANS_MAX, SPANS_MAX, VOTERS_MAX, WORDS_TILES_MAX, Widest,
    tiles,
};

use crate::dtype::Element;
use packed::Struct;
use philox::TileMask;
use thinning::{Keep, Mask, Trim};

/// Elements in a tile: the unit of sums, of tables and of scheduling. Tiles start anew with each segment.
pub const TILE: usize = 1024;

/// The list of kernels: the modules, the record of each, and a job of any of them.
macro_rules! kernels {
    ($($(#[$about:meta])* $module:ident $name:ident;)*) => {
        $(pub mod $module;)*

        /// Every kernel.
        pub const KERNELS: &[&Kernel] = &[$(&$module::KERNEL),*];

        /// A kernel with its numbers. A tensor has one job per launch.
        #[derive(Debug, Clone, PartialEq)]
        pub enum Job {
            $($(#[$about])* $name($module::Job)),*
        }

        $(impl From<$module::Job> for Job {
            fn from(job: $module::Job) -> Self {
                Self::$name(job)
            }
        })*

        impl Job {
            /// The kernel's record.
            pub fn kernel(&self) -> &'static Kernel {
                match self { $(Self::$name(_) => &$module::KERNEL),* }
            }

            fn numbers(&self) -> &dyn Numbers {
                match self { $(Self::$name(job) => job),* }
            }

            /// The CPU's fast path on a tile, to be compiled into the caller and for its instruction set.
            #[inline(always)]
            pub(crate) fn tile<E: Element>(
                &self,
                tile: u64,
                inputs: &TileInputs<'_, E>,
                scratch: &mut Vec<f32>,
                target: Target<'_>,
            ) {
                match self { $(Self::$name(job) => job.tile(tile, inputs, scratch, target)),* }
            }
        }
    };
}

kernels! {
    /// Σ cᵢ xᵢ, perhaps around an anchor.
    weighted_sum WeightedSum;
    /// The same around the first input, with coefficients for each row or column.
    segment_sum SegmentSum;
    /// Task vectors trimmed or dropped, voted on and averaged.
    consensus Consensus;
    /// All pairwise inner products.
    gram Gram;
    /// Counts of |delta| at given keys.
    levels Levels;
    /// Counts of |delta| in bins.
    magnitudes Magnitudes;
    /// |delta| as integers, element by element.
    keys Keys;
    /// L1 norms of task vectors before and after a random mask.
    masked_sums MaskedSums;
    /// Task vectors of any choice, combined by any rule.
    elect Elect;
    /// Norms and squares of what is chosen of task vectors.
    chosen_sums ChosenSums;
    /// Counts of what models hold, and hold alone.
    holders Holders;
    /// A model near the base, and the base elsewhere.
    nearswap Nearswap;
    /// The yardstick of benches.
    stream Stream;
}

/// What there is to know of a kernel, whatever its numbers.
#[derive(Debug)]
pub struct Kernel {
    /// One word: the stem of its files, its entry point, its row in reports.
    pub name: &'static str,
    /// The PTX in the program.
    pub ptx: Compiled,
    /// The WGSL in the program, which stands behind what all shaders share.
    pub wgsl: Compiled,
    /// Words of counters that a block keeps for each model, of a few only, so that the grid walks over groups of models; 0: none.
    pub group_words: usize,
    /// What it needs at the most for launches over so many tiles.
    pub needs: fn(&Widest, u64) -> Needs,
    /// Its structs in a launch's table, for other languages.
    pub structs: &'static [Struct],
    /// Its constants, for other languages.
    pub constants: &'static [(&'static str, u32)],
    /// Jobs for the check, of so many models as were drawn. None where a kernel has no job for so many.
    pub cases: fn(&CaseNumbers) -> Vec<Job>,
    /// Jobs for the bench, with what each does in a few words. The bench has a base and four models, whose keys at the share
    /// that is kept are given.
    pub benches: fn(&[u32]) -> Vec<(&'static str, Job)>,
}

/// Records are equal that stand for one kernel.
impl PartialEq for Kernel {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Kernel {}

impl Hash for Kernel {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.name.hash(hasher);
    }
}

/// A kernel in another language.
#[derive(Debug)]
pub struct Compiled {
    /// Its text.
    pub text: &'static str,
    /// Up to so many models have entries of their own (see `Numbers::models`); more share one.
    pub models: usize,
}

/// Random numbers that cases of the check are made of.
#[derive(Debug, Clone, PartialEq)]
pub struct CaseNumbers {
    /// Models besides the base.
    pub models: usize,
    /// One coefficient per input, −1 to 1.5.
    pub coefficients: Vec<f32>,
    /// A key in the midst of the deltas.
    pub threshold: u32,
    /// The first word of a random generator's key.
    pub word: u32,
}

impl CaseNumbers {
    /// Which elements number `i` of the models keeps: each kind in turn.
    pub fn keep(&self, i: usize) -> Keep {
        match i % 4 {
            0 => Keep::All,
            1 => Keep::Trim(Trim { threshold: self.threshold, cut_tile: 1, cut_lane: 17 }),
            2 => Keep::Trim(Trim { threshold: 0.25f32.to_bits(), cut_tile: 0, cut_lane: 500 }),
            _ => Keep::Random(Mask { keep: 0x8000_1234, key: [self.word, i as u32] }),
        }
    }
}

/// What the numbers of every kernel can do.
trait Numbers {
    /// How many tensors the job reads.
    fn inputs(&self) -> usize;

    /// How many of them have values that the result is made of. What stands behind them only chooses among elements: a value
    /// there that is not finite need not show in what is merged.
    fn merged(&self) -> usize {
        self.inputs()
    }

    /// What it leaves behind.
    fn outcome(&self) -> Outcome;

    /// The number of models that decides which entry of the kernel runs; 0 for the one that takes any.
    fn models(&self) -> usize {
        0
    }

    /// The random masks of the models; `None` where no chance is in it. The fast path wants them drawn.
    fn masks(&self) -> Vec<Option<Mask>> {
        Vec::new()
    }

    /// The numbers that values of a part of the tensor are multiplied with, by its flat indices.
    fn factors(&self, _part: &Range<u64>) -> Vec<f32> {
        Vec::new()
    }

    /// Whether parts of a tensor are packed each by itself.
    fn packs_parts(&self) -> bool {
        false
    }

    /// Appends the numbers as words of 4 bytes, as the kernels of GPUs read them, for a part of the tensor: its flat indices.
    /// How many inputs there are need not be said.
    fn pack(&self, _part: &Range<u64>, _words: &mut Vec<u32>) {}

    /// Of a kernel that leaves [`Outcome::Room`], the CPU's way to leave it.
    fn fill(&self, _inputs: &[&[u8]], _room: &mut [u8]) {}

    /// The plain twin: what the kernel is, on tile number `tile` of the tensor. `x` are the tile's elements in each input.
    fn plain(&self, tile: u64, x: &[&[f32]], target: Target<'_>);

    /// The CPU's fast path, to be compiled into the caller and for its instruction set. `scratch` is room that outlives the
    /// call; what it holds does not matter.
    fn tile<E: Element>(
        &self,
        tile: u64,
        inputs: &TileInputs<'_, E>,
        scratch: &mut Vec<f32>,
        target: Target<'_>,
    ) where
        Self: Sized;
}

/// What a kernel leaves behind for the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
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
    /// As many bytes as merged values take, which mean nothing.
    Room,
}

/// Of each model of a merge, how many elements were kept by their magnitudes: 0 where a random choice decides, and for
/// what weighs all alike. It proves a selection, because only the right one keeps so many.
pub type Kept = [u64; VOTERS_MAX];

/// Where a kernel writes.
#[derive(Debug)]
pub enum Target<'a> {
    /// One value per element of the tile, and what was kept, added to what is there.
    Values(&'a mut [f32], &'a mut Kept),
    /// This tile's sums.
    Sums(&'a mut [f32]),
    /// This span's counters, or this tile's words.
    Words(&'a mut [u32]),
}

impl<'a> Target<'a> {
    #[inline(always)]
    fn values(self) -> (&'a mut [f32], &'a mut Kept) {
        match self {
            Self::Values(values, kept) => (values, kept),
            other => other.of_another_kernel(),
        }
    }

    #[inline(always)]
    fn sums(self) -> &'a mut [f32] {
        match self {
            Self::Sums(sums) => sums,
            other => other.of_another_kernel(),
        }
    }

    #[inline(always)]
    fn words(self) -> &'a mut [u32] {
        match self {
            Self::Words(words) => words,
            other => other.of_another_kernel(),
        }
    }

    #[cold]
    #[inline(never)]
    fn of_another_kernel(self) -> ! {
        panic!("a kernel was given {self:?} to write to")
    }
}

impl Job {
    /// How many tensors the job reads.
    pub fn inputs(&self) -> usize {
        self.numbers().inputs()
    }

    /// How many of them have values that the result is made of; those behind them only choose.
    pub fn merged(&self) -> usize {
        self.numbers().merged()
    }

    /// What the job leaves behind.
    pub fn outcome(&self) -> Outcome {
        self.numbers().outcome()
    }

    /// The number of models that decides which entry of the kernel runs; 0 for the one that takes any.
    pub fn models(&self) -> usize {
        self.numbers().models()
    }

    /// The random masks of the models; `None` where no chance is in it.
    pub fn masks(&self) -> Vec<Option<Mask>> {
        self.numbers().masks()
    }

    /// The numbers that values of a part of the tensor are multiplied with, by its flat indices.
    pub fn factors(&self, part: &Range<u64>) -> Vec<f32> {
        self.numbers().factors(part)
    }

    /// Whether parts of a tensor are packed each by itself.
    pub fn packs_parts(&self) -> bool {
        self.numbers().packs_parts()
    }

    /// Appends the job's numbers as words of 4 bytes, as the kernels of GPUs read them, for a part of the tensor: its flat
    /// indices.
    pub fn pack(&self, part: &Range<u64>, words: &mut Vec<u32>) {
        self.numbers().pack(part, words);
    }

    /// Of a kernel that leaves [`Outcome::Room`], the CPU's way to leave it.
    pub fn fill(&self, inputs: &[&[u8]], room: &mut [u8]) {
        self.numbers().fill(inputs, room);
    }

    /// The plain twin on tile number `tile` of the tensor; `x` are the tile's elements in each input.
    pub fn plain(&self, tile: u64, x: &[&[f32]], target: Target<'_>) {
        self.numbers().plain(tile, x, target);
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name)
    }
}

/// A tile of every input: `inputs.of(i)` are the elements of input `i`.
#[derive(Debug)]
pub struct TileInputs<'a, E = f32> {
    /// Elements of each input, the tile's from `first` on.
    pub chunks: &'a [&'a [E]],
    /// Where the tile begins.
    pub first: usize,
    /// How many elements of the tile exist: [`TILE`] but at the segment's end.
    pub len: usize,
    /// Of each model with a random mask, what it keeps: tile after tile of the chunk.
    pub masks: &'a [Vec<TileMask>],
    /// Which tile of the chunk this is.
    pub ordinal: usize,
}

impl<'a, E> TileInputs<'a, E> {
    /// The elements of one input.
    #[inline(always)]
    pub fn of(&self, input: usize) -> &'a [E] {
        &self.chunks[input][self.first..][..self.len]
    }

    /// What a model's random mask keeps of the tile.
    #[inline(always)]
    fn mask(&self, model: usize) -> &'a TileMask {
        &self.masks[model][self.ordinal]
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

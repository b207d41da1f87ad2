//! The widest launches of a merge, and the limits that keep them small.

use super::{KERNELS, TILE};

/// The most non-base models in a sign vote: the table of divisors has 2^N entries.
pub const VOTERS_MAX: usize = 12;

/// The most tiles that kernels which keep words run over at once: their results are larger than their inputs.
pub const WORDS_TILES_MAX: u64 = 128;

/// The most spans of a launch: their counters have to fit beside its results.
pub const SPANS_MAX: usize = 64;

/// The same of launches over rows or columns, which are many and count nothing.
pub const SEGMENT_SPANS_MAX: usize = 1024;

/// The most records that the counters of a pass are folded into: what a later search must scan again is at
/// most this fraction of the tensor, and the counters of a 2 GB tensor stay in a few MB.
pub const RECORDS_MAX: u64 = 64;

/// The fewest tiles of a record: fewer would make more counters than their search saves.
pub const RECORD_TILES_MIN: u64 = 32;

/// What the widest launches of a merge are: lanes must have room for them.
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
    /// Bytes per element of what is stored as float64, which is made or copied beside the kernels: 0 where nothing is.
    pub wide_bytes: usize,
    /// Models whose task vectors are measured: 0 where nothing is.
    pub measured: usize,
    /// Questions about models that are counted at once: there may be two about a model.
    pub questions: usize,
    /// Spans of a launch.
    pub spans: usize,
    /// Of tensors whose rows have coefficients of their own, the elements of the shortest row; 0 where there are none.
    pub row_elements: u64,
    /// Of tensors whose columns have, the most columns; 0 where there are none.
    pub columns: u64,
    /// Bytes of the sums and coefficients of all rows or columns of a tensor.
    pub segment_bytes: u64,
    /// Bytes that the made inputs of a tensor keep until it is done.
    pub kept_bytes: u64,
    /// Tiles of the largest tensor.
    pub tiles: u64,
    /// Bytes of all inputs that are read more than once.
    pub held_bytes: u64,
}

/// What a kernel leaves behind at the most, and what its jobs take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Needs {
    /// Sums of a tile.
    pub sum_words: usize,
    /// Counters of a record.
    pub record_words: usize,
    /// Words of an element.
    pub element_words: usize,
    /// Words of all jobs of a launch.
    pub job_words: usize,
}

impl Widest {
    /// What the kernels need at the most for launches over `chunk_tiles` tiles.
    pub fn needs(&self, chunk_tiles: u64) -> Needs {
        let all = KERNELS.iter().map(|kernel| (kernel.needs)(self, chunk_tiles));
        all.fold(Needs::default(), |most, own| Needs {
            sum_words: most.sum_words.max(own.sum_words),
            record_words: most.record_words.max(own.record_words),
            element_words: most.element_words.max(own.element_words),
            job_words: most.job_words.max(own.job_words),
        })
    }

    /// The most bytes that a launch over `chunk_tiles` tiles leaves behind: values, sums, counters, or words.
    pub fn result_bytes(&self, chunk_tiles: u64) -> u64 {
        let Needs { sum_words, record_words, element_words, .. } = self.needs(chunk_tiles);
        let records = Self::spans_of(chunk_tiles) as u64 + chunk_tiles / RECORD_TILES_MIN;
        let values = chunk_tiles * (TILE * self.output_bytes) as u64;
        let sums = chunk_tiles * 4 * sum_words as u64;
        let counters = records * 4 * record_words as u64;
        let words = chunk_tiles.min(WORDS_TILES_MAX) * (4 * TILE * element_words) as u64;
        values.max(sums).max(counters).max(words)
    }

    /// Models whose magnitudes are counted.
    pub(super) fn counted(&self) -> usize {
        self.measured.min(VOTERS_MAX).max(self.questions)
    }

    /// The most spans of a launch over so many tiles that is no launch over rows or columns.
    pub(super) fn spans_of(chunk_tiles: u64) -> usize {
        SPANS_MAX.min(chunk_tiles as usize)
    }
}

/// How many tiles `elements` fill, the last one perhaps in part.
pub const fn tiles(elements: u64) -> u64 {
    elements.div_ceil(TILE as u64)
}

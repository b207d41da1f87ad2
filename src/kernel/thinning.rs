//! Which elements of a task vector take part in a merge: all, the largest magnitudes, or a random choice.

use std::cmp::Ordering;

use super::packed::packed;
use super::philox::TileMask;
use super::{TILE, TileInputs, key, philox};
use crate::dtype::Element;

/// One model's part in the merge.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Model {
    /// The weight, with everything that scales the whole task vector folded in.
    pub coefficient: f32,
    /// Which elements are kept.
    pub keep: Keep,
}

/// Which elements of a task vector take part.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Keep {
    /// All of them.
    All,
    /// The largest magnitudes.
    Trim(Trim),
    /// A random choice.
    Random(Mask),
}

/// Keeps keys above the threshold, and keys equal to it before the cut.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Trim {
    /// The k-th largest key.
    pub threshold: u32,
    /// The tile of the first dropped element among those equal to the threshold.
    pub cut_tile: u32,
    /// That element's place in its tile.
    pub cut_lane: u32,
}

/// Keeps each element with probability `keep / 2^32`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Mask {
    /// The probability in units of 2^-32.
    pub keep: u32,
    /// The key of the random generator.
    pub key: [u32; 2],
}

impl Keep {
    /// Whether the element with this flat index takes part, by the plain rule; `delta` is its task vector's value.
    pub(super) fn keeps(&self, element: u64, delta: f32) -> bool {
        match self {
            Self::All => true,
            Self::Trim(trim) => trim.keeps(element, key(delta)),
            Self::Random(mask) => philox::keeps(element, mask.key, mask.keep),
        }
    }

    /// The mask of a random choice.
    pub(super) fn mask(&self) -> Option<Mask> {
        match self {
            Self::Random(mask) => Some(*mask),
            _ => None,
        }
    }

    /// Whether what is kept is counted: not what a random choice keeps.
    pub(super) fn counts(&self) -> bool {
        !matches!(self, Self::Random(_))
    }
}

impl Mask {
    /// What it keeps of a tile.
    #[inline(always)]
    pub fn draw(&self, tile: u64) -> TileMask {
        philox::choose(tile * philox::BLOCKS as u64, self.key, self.keep)
    }
}

impl Trim {
    /// Keeps keys above the threshold, and those equal to it at flat indices below `cut`.
    pub fn new(threshold: u32, cut: u64) -> Self {
        Self { threshold, cut_tile: (cut / TILE as u64) as u32, cut_lane: (cut % TILE as u64) as u32 }
    }

    /// The flat index of the first dropped element among those equal to the threshold.
    pub fn cut(&self) -> u64 {
        u64::from(self.cut_tile) * TILE as u64 + u64::from(self.cut_lane)
    }

    /// Whether the element with this flat index is kept, by the plain rule.
    pub(super) fn keeps(&self, element: u64, key: u32) -> bool {
        key > self.threshold || (key == self.threshold && element < self.cut())
    }

    /// How many of the tile's elements stand before the cut.
    #[inline(always)]
    pub(super) fn before_cut(&self, tile: u64) -> usize {
        match tile.cmp(&u64::from(self.cut_tile)) {
            Ordering::Less => TILE,
            Ordering::Equal => self.cut_lane as usize,
            Ordering::Greater => 0,
        }
    }
}

/// Writes what each element of non-base model `m` is multiplied with: the coefficient where it is kept, else 0. How many were
/// kept, where magnitudes decide.
#[inline(always)]
pub(super) fn factors<E: Element>(
    model: &Model,
    m: usize,
    tile: u64,
    inputs: &TileInputs<'_, E>,
    factors: &mut [f32; TILE],
) -> usize {
    let (c, base, x) = (model.coefficient, inputs.of(0), inputs.of(m + 1));
    match model.keep {
        Keep::All => {
            factors.fill(c);
            x.len()
        }
        Keep::Random(_) => {
            let mut mask = *inputs.mask(m);
            for factors in factors.chunks_exact_mut(mask.len()) {
                for (factor, word) in factors.iter_mut().zip(&mut mask) {
                    *factor = f32::from_bits(c.to_bits() & (*word & 1).wrapping_neg());
                    *word >>= 1;
                }
            }
            0
        }
        Keep::Trim(trim) => {
            let cut = trim.before_cut(tile).min(x.len());
            let mut kept = 0u32;
            for (i, ((factor, x), base)) in factors.iter_mut().zip(x).zip(base).enumerate() {
                let keep = key(x.value() - base.value()) >= trim.threshold + u32::from(i >= cut);
                kept += u32::from(keep);
                *factor = if keep { c } else { 0.0 };
            }
            kept as usize
        }
    }
}

/// What a model of a bench keeps at random.
pub(super) fn bench_mask(i: usize) -> Keep {
    Keep::Random(Mask { keep: (BENCH_DENSITY * 4_294_967_296.0) as u32, key: [3, i as u32] })
}

/// For cases of the check: a random choice of which the second draw decides for one of the tensor's elements. Of all elements one
/// in 65,536 would come to it.
fn undecided_mask(word: u32, element: u32) -> Keep {
    let key = [word, element];
    let draw = |call: u32| {
        let words = philox::philox4x32([element / 8, 0, call, 0], key);
        words[element as usize % 8 / 2] >> (16 * (element % 2)) & 0xffff
    };
    Keep::Random(Mask { keep: draw(0) << 16 | draw(1).saturating_add(1).min(0xffff), key })
}

/// For cases of the check: random choices for all models, which none of them shares.
pub(super) fn random_masks(word: u32, model: usize) -> Keep {
    match model {
        // Of different threads, and of both halves of a word.
        0 => undecided_mask(word, 0),
        1 => undecided_mask(word, 9),
        _ => Keep::Random(Mask { keep: 0x8000_1234, key: [word, model as u32] }),
    }
}

/// The share of a task vector that benches keep.
pub const BENCH_DENSITY: f64 = 0.3;

packed! {
    /// One model's part in a merge; see [`Model`].
    pub struct PackedModel as Model {
        /// The weight, with everything that scales the task vector folded in.
        coefficient: f32,
        /// `KEEP_TRIM` or `KEEP_DROP`.
        keep: u32,
        /// The threshold key (all ones: −1, below every key), or the probability in units of 2^-32.
        limit: u32,
        /// The tile of the cut, or the first word of the generator's key.
        first: u32,
        /// The cut's place in its tile, or the second word of the key.
        second: u32,
    }
}

/// A value of [`PackedModel::keep`]: the largest magnitudes, or all.
pub const KEEP_TRIM: u32 = 0;

/// A value of [`PackedModel::keep`]: a random choice.
pub const KEEP_DROP: u32 = 1;

impl From<Model> for PackedModel {
    fn from(Model { coefficient, keep }: Model) -> Self {
        let (keep, [limit, first, second]) = match keep {
            // Every key is above −1.
            Keep::All => (KEEP_TRIM, [u32::MAX, 0, 0]),
            Keep::Trim(trim) => (KEEP_TRIM, [trim.threshold, trim.cut_tile, trim.cut_lane]),
            Keep::Random(mask) => (KEEP_DROP, [mask.keep, mask.key[0], mask.key[1]]),
        };
        Self { coefficient, keep, limit, first, second }
    }
}

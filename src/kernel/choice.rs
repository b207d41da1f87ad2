//! Which elements of a task vector take part, where more than magnitudes from above decides: a band of them, or the
//! magnitudes of another tensor.
//!
//! Every choice is a [`Trim`] without what another one keeps, which is how GPUs read it: there is a trim for everything, and one
//! for nothing.

use std::ops::Range;

use super::packed::packed;
use super::thinning::Trim;
use super::{KEY_MAX, TileInputs, key};
use crate::dtype::{Element, magnitude_bits};

/// Which elements of a task vector take part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// All of them.
    All,
    /// The largest magnitudes: keys above the threshold, and equal ones before the cut.
    Trim(Trim),
    /// A band of magnitudes.
    Band {
        /// The band, and what lies above it.
        kept: Trim,
        /// What lies above the band.
        dropped: Trim,
    },
    /// Where another tensor has its largest magnitudes.
    By {
        /// The number of the selector: inputs that stand behind those of the models.
        selector: usize,
        /// What is kept of the selector's own magnitudes, which are no differences.
        trim: Trim,
        /// What of it is dropped all the same.
        dropped: Trim,
    },
}

/// The trim that keeps everything: its threshold counts as −1, below every key.
pub const EVERYTHING: Trim = Trim { threshold: u32::MAX, cut_tile: 0, cut_lane: 0 };

/// The trim that keeps nothing, not even NaN.
pub const NOTHING: Trim = Trim { threshold: KEY_MAX, cut_tile: 0, cut_lane: 0 };

impl Choice {
    /// Whether the element with this flat index takes part, by the plain rule; `delta` is its task vector's value, and
    /// `selector` gives that of a selector.
    pub(super) fn keeps(&self, element: u64, delta: f32, selector: impl Fn(usize) -> f32) -> bool {
        match self {
            Self::All => true,
            Self::Trim(trim) => trim.keeps(element, key(delta)),
            Self::Band { kept, dropped } => {
                kept.keeps(element, key(delta)) && !dropped.keeps(element, key(delta))
            }
            Self::By { selector: number, trim, dropped } => {
                let key = key(selector(*number));
                trim.keeps(element, key) && !dropped.keeps(element, key)
            }
        }
    }

    /// The selector that decides, if it is not the task vector itself.
    pub(super) fn selector(&self) -> Option<usize> {
        match self {
            Self::By { selector, .. } => Some(*selector),
            _ => None,
        }
    }

    /// What is kept, and what is dropped of it.
    #[inline(always)]
    fn trims(&self) -> [Trim; 2] {
        match *self {
            Self::All => [EVERYTHING, NOTHING],
            Self::Trim(trim) => [trim, NOTHING],
            Self::Band { kept, dropped } | Self::By { trim: kept, dropped, .. } => [kept, dropped],
        }
    }

    /// Where within a tile the choice changes among equal magnitudes.
    #[inline(always)]
    pub(super) fn cuts(&self, tile: u64) -> [usize; 2] {
        self.trims().map(|trim| trim.before_cut(tile))
    }

    /// What is kept of the elements behind a place in a tile, up to the next cut.
    #[inline(always)]
    pub(super) fn interval(&self, tile: u64, place: usize) -> Interval {
        let [kept, dropped] = self.trims().map(|trim| {
            let equal_ones_are_out = place >= trim.before_cut(tile);
            trim.threshold.wrapping_add(u32::from(equal_ones_are_out))
        });
        match (kept, dropped) {
            // Not even NaN, whose bits are above their key.
            (KEY_BEYOND.., _) => Interval { least: 0, width: 0 },
            (_, KEY_BEYOND..) => Interval { least: kept, width: u32::MAX - kept },
            _ => Interval { least: kept, width: dropped.saturating_sub(kept) },
        }
    }

    /// Writes all ones where an element of model number `m` is kept, and zeros where it is not, for a part of a tile; how many
    /// are kept.
    #[inline(always)]
    pub(super) fn flags<E: Element>(
        &self,
        m: usize,
        models: usize,
        tile: u64,
        inputs: &TileInputs<'_, E>,
        part: Range<usize>,
        flags: &mut [u32],
    ) -> usize {
        let (mut kept, first) = (0, part.start);
        for part in parts(self.cuts(tile).into_iter(), part) {
            let interval = self.interval(tile, part.start);
            // Slices of one length: the compiler needs no checks, and uses vectors.
            let (start, len) = (part.start, part.len());
            let flags = &mut flags[start - first..][..len];
            kept += match self.selector() {
                None => {
                    let (base, x) = (&inputs.of(0)[start..][..len], &inputs.of(m + 1)[start..][..len]);
                    mark(interval, flags, &Delta { base, x })
                }
                Some(selector) => mark(interval, flags, &inputs.of(1 + models + selector)[start..][..len]),
            };
        }
        kept
    }
}

/// The first key that there is none of.
const KEY_BEYOND: u32 = KEY_MAX + 1;

/// The parts of a part of a tile between these places.
#[inline(always)]
pub(super) fn parts(
    cuts: impl Iterator<Item = usize> + Clone,
    Range { mut start, end: last }: Range<usize>,
) -> impl Iterator<Item = Range<usize>> {
    std::iter::from_fn(move || {
        let end = cuts.clone().filter(|cut| *cut > start).min().unwrap_or(last).min(last);
        let part = start..end;
        start = end;
        (!part.is_empty()).then_some(part)
    })
}

/// Bits of magnitudes that are kept: those from `least` on, so many.
#[derive(Debug, Clone, Copy)]
pub(super) struct Interval {
    least: u32,
    width: u32,
}

impl Interval {
    /// Whether a value's magnitude lies in it.
    #[inline(always)]
    pub(super) fn holds(self, value: f32) -> bool {
        magnitude_bits(value).wrapping_sub(self.least) < self.width
    }
}

/// Values whose magnitudes decide. Not closures: those the compiler may leave as calls, and then uses no vectors.
trait Deciding {
    fn of(&self, i: usize) -> f32;
}

/// A task vector.
struct Delta<'a, E> {
    base: &'a [E],
    x: &'a [E],
}

impl<E: Element> Deciding for Delta<'_, E> {
    #[inline(always)]
    fn of(&self, i: usize) -> f32 {
        self.x[i].value() - self.base[i].value()
    }
}

/// A selector.
impl<E: Element> Deciding for [E] {
    #[inline(always)]
    fn of(&self, i: usize) -> f32 {
        self[i].value()
    }
}

/// Marks the elements whose deciding values lie in an interval; how many there are.
#[inline(always)]
fn mark(interval: Interval, flags: &mut [u32], deciding: &(impl Deciding + ?Sized)) -> usize {
    let mut kept = 0u32;
    for (i, flag) in flags.iter_mut().enumerate() {
        let keep = u32::from(interval.holds(deciding.of(i)));
        kept += keep;
        *flag = keep.wrapping_neg();
    }
    kept as usize
}

packed! {
    /// See [`Choice`].
    pub struct PackedChoice as Choice {
        /// The number of the selector that decides, or `OWN_MAGNITUDE`.
        selector: u32,
        /// The threshold key of what is kept (all ones: −1, below every key).
        kept: u32,
        /// The tile of its cut.
        kept_tile: u32,
        /// The cut's place in that tile.
        kept_lane: u32,
        /// The same of what is dropped of it.
        dropped: u32,
        /// Its cut.
        dropped_tile: u32,
        /// The place of that.
        dropped_lane: u32,
    }
}

/// A value of [`PackedChoice::selector`]: the task vector's own magnitudes decide.
pub const OWN_MAGNITUDE: u32 = u32::MAX;

impl From<Choice> for PackedChoice {
    fn from(choice: Choice) -> Self {
        let [kept, dropped] = choice.trims();
        Self {
            selector: choice.selector().map_or(OWN_MAGNITUDE, |selector| selector as u32),
            kept: kept.threshold,
            kept_tile: kept.cut_tile,
            kept_lane: kept.cut_lane,
            dropped: dropped.threshold,
            dropped_tile: dropped.cut_tile,
            dropped_lane: dropped.cut_lane,
        }
    }
}

/// For cases of the check: choices of every kind in turn, with cuts within tiles and at their ends. What is kept by a
/// selector has few selectors, which models share.
pub(super) fn choice_of_case(threshold: u32, selectors: usize, i: usize) -> Choice {
    let quarter = 0.25f32.to_bits();
    let trim = |threshold: u32, cut_tile: u32, cut_lane: u32| Trim { threshold, cut_tile, cut_lane };
    let band = |kept: Trim, dropped: Trim| Choice::Band { kept, dropped };
    let by = |selector: usize, trim: Trim| match selectors {
        0 => Choice::Trim(trim),
        // One selector drops its own NaN.
        _ if selector == 1 => {
            Choice::By { selector: selector % selectors, trim, dropped: Trim::new(KEY_MAX - 1, 0) }
        }
        _ => Choice::By { selector: selector % selectors, trim, dropped: NOTHING },
    };
    match i % 8 {
        0 => Choice::Trim(trim(quarter, 0, 500)),
        // Equal magnitudes of both ends of the band, cut in one tile; the same key at both ends; and a band upside down.
        1 => band(trim(quarter, 1, 900), trim(0.5f32.to_bits(), 1, 100)),
        2 => by(0, trim(quarter, 1, 17)),
        3 => Choice::All,
        4 => band(trim(threshold, 1, 17), trim(quarter, 0, 333)),
        5 => by(1, trim(threshold, 2, 0)),
        6 => band(trim(quarter, 3, 1), trim(quarter, 0, 600)),
        _ => band(trim(quarter, 2, 9), trim(threshold, 1, 5)),
    }
}

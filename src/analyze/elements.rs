//! The innermost loops over elements, each in one order on every processor. Sums are f64: a product of two f32 is exact in it.

use crate::dtype::{Float, decode};
use crate::instructions::for_each_instruction_set;

/// Sums that go on side by side.
const LANES: usize = 8;

/// The sum of the lanes.
#[inline(always)]
fn folded(lanes: [f64; LANES]) -> f64 {
    let halves = [0, 1, 2, 3].map(|lane| lanes[lane] + lanes[lane + 4]);
    (halves[0] + halves[2]) + (halves[1] + halves[3])
}

/// What is left beside whole lanes, and zeros, which add nothing: it goes through the same loop, once more. (An iterator over both is
/// not made vectors of.)
#[inline(always)]
fn padded(rest: &[f32]) -> [f32; LANES] {
    let mut lanes = [0.0; LANES];
    lanes[..rest.len()].copy_from_slice(rest);
    lanes
}

/// What one task vector is by itself.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Magnitudes {
    pub(super) mass: f64,
    pub(super) zeros: u64,
    pub(super) largest: f32,
}

/// How the signs of two task vectors, or the two sides of a vote, go together. Masses are sums of magnitudes.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Signs {
    /// Elements at which neither is 0.
    pub(super) both: u64,
    /// Elements at which the signs differ.
    pub(super) disagree: u64,
    /// The mass of both, at all elements.
    pub(super) mass: f64,
    /// The mass at the elements at which they differ.
    pub(super) mass_disagree: f64,
    /// The mass of the smaller side at those.
    pub(super) outvoted: f64,
}

for_each_instruction_set! {
    pub(super) fn decode_all(float: Float, bytes: &[u8], into: &mut [f32]) {
        decode(float, bytes, into);
    }

    pub(super) fn all_finite(values: &[f32]) -> bool {
        // All bits of the exponent are set in what is not finite, and in nothing else.
        values.iter().fold(true, |all, value| all & (value.to_bits() & 0x7f80_0000 != 0x7f80_0000))
    }

    pub(super) fn dot(a: &[f32], b: &[f32]) -> f64 {
        let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
        let rests = [[padded(a_rest)], [padded(b_rest)]];
        let mut sums = [0.0; LANES];
        for (a, b) in [(a, b), (&rests[0], &rests[1])] {
            for (a, b) in a.iter().zip(b) {
                for lane in 0..LANES {
                    sums[lane] += f64::from(a[lane]) * f64::from(b[lane]);
                }
            }
        }
        folded(sums)
    }

    /// A task vector as merges have it: the difference in f32.
    pub(super) fn subtract(model: &[f32], base: &[f32], into: &mut [f32]) {
        for ((into, model), base) in into.iter_mut().zip(model).zip(base) {
            *into = model - base;
        }
    }

    pub(super) fn magnitudes(task: &[f32]) -> Magnitudes {
        let (lanes, rest) = task.as_chunks::<LANES>();
        let (mut sums, mut zeros, mut largest) = ([0.0; LANES], [0u32; LANES], [0.0f32; LANES]);
        for lanes in [lanes, &[padded(rest)]] {
            for values in lanes {
                for lane in 0..LANES {
                    let magnitude = values[lane].abs();
                    sums[lane] += f64::from(magnitude);
                    zeros[lane] = zeros[lane].wrapping_add(u32::from(magnitude == 0.0));
                    largest[lane] = if magnitude > largest[lane] { magnitude } else { largest[lane] };
                }
            }
        }
        let padding = (LANES - rest.len()) as u64;
        Magnitudes {
            mass: folded(sums),
            zeros: zeros.iter().map(|zeros| u64::from(*zeros)).sum::<u64>() - padding,
            largest: largest.into_iter().fold(0.0, f32::max),
        }
    }

    /// Of two task vectors.
    pub(super) fn signs(a: &[f32], b: &[f32]) -> Signs {
        let (mut both, mut disagree) = ([0u32; LANES], [0u32; LANES]);
        let (mut mass, mut in_conflict, mut outvoted) = ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
        let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
        let rests = [[padded(a_rest)], [padded(b_rest)]];
        for (a, b) in [(a, b), (&rests[0], &rests[1])] {
            for (a, b) in a.iter().zip(b) {
                for lane in 0..LANES {
                    let (one, other) = (a[lane].abs(), b[lane].abs());
                    let less = if one < other { one } else { other };
                    // As integers, since what branches is not made vectors of; a chunk has far fewer elements than they count.
                    let are_both = u32::from(one != 0.0) & u32::from(other != 0.0);
                    let differ = are_both & ((a[lane].to_bits() ^ b[lane].to_bits()) >> 31);
                    let where_differ = |value: f32| f64::from(f32::from_bits(value.to_bits() & differ.wrapping_neg()));
                    both[lane] = both[lane].wrapping_add(are_both);
                    disagree[lane] = disagree[lane].wrapping_add(differ);
                    mass[lane] += f64::from(one) + f64::from(other);
                    in_conflict[lane] += where_differ(one) + where_differ(other);
                    outvoted[lane] += where_differ(less);
                }
            }
        }
        Signs {
            both: both.iter().map(|count| u64::from(*count)).sum(),
            disagree: disagree.iter().map(|count| u64::from(*count)).sum(),
            mass: folded(mass),
            mass_disagree: folded(in_conflict),
            outvoted: folded(outvoted),
        }
    }

    /// Adds what a task vector, times a weight, has of each sign: to `up` and, negative, to `down`.
    pub(super) fn add_votes(task: &[f32], weight: f32, up: &mut [f32], down: &mut [f32]) {
        for ((value, up), down) in task.iter().zip(up).zip(down) {
            let value = value * weight;
            *up += if value > 0.0 { value } else { 0.0 };
            *down += if value < 0.0 { value } else { 0.0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::philox::philox4x32;

    fn values(count: usize, seed: u32) -> Vec<f32> {
        let value = |i: usize| {
            let [word, other, ..] = philox4x32([i as u32, 0, 0, 0], [seed, 1]);
            if other % 5 == 0 { 0.0 } else { (word as f32 / u32::MAX as f32 - 0.5) * 3.0 }
        };
        (0..count).map(value).collect()
    }

    #[test]
    fn loops_do_what_plain_sums_do() {
        for count in [0, 1, 7, 8, 9, 1000, 4099] {
            let (a, b) = (values(count, 1), values(count, 2));
            let pairs = || a.iter().map(|a| f64::from(*a)).zip(b.iter().map(|b| f64::from(*b)));
            let close = |found: f64, expected: f64| {
                assert!((found - expected).abs() <= 1e-12 * expected.abs().max(1.0));
            };
            close(dot(&a, &b), pairs().map(|(a, b)| a * b).sum());
            let Magnitudes { mass, zeros, largest } = magnitudes(&a);
            close(mass, a.iter().map(|a| f64::from(a.abs())).sum());
            assert_eq!(zeros, a.iter().filter(|a| **a == 0.0).count() as u64);
            assert_eq!(largest, a.iter().fold(0.0, |most: f32, a| most.max(a.abs())));
            let found = signs(&a, &b);
            assert_eq!(found.both, pairs().filter(|(a, b)| a * b != 0.0).count() as u64);
            assert_eq!(found.disagree, pairs().filter(|(a, b)| a * b < 0.0).count() as u64);
            let masses = |chosen: fn(f64) -> bool, mass: fn(f64, f64) -> f64| -> f64 {
                pairs().filter(|(a, b)| chosen(a * b)).map(|(a, b)| mass(a.abs(), b.abs())).sum()
            };
            close(found.mass, masses(|_| true, |a, b| a + b));
            close(found.mass_disagree, masses(|product| product < 0.0, |a, b| a + b));
            close(found.outvoted, masses(|product| product < 0.0, f64::min));
        }
    }

    #[test]
    fn signs_of_the_smallest_numbers_count() {
        let tiny = f32::from_bits(1);
        let found = signs(&[tiny, -tiny, 0.0, -0.0], &[-tiny, -tiny, -tiny, tiny]);
        assert_eq!((found.both, found.disagree), (2, 1));
    }

    #[test]
    fn what_is_not_finite_is_found_anywhere() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for place in [0, 5, 16, 20] {
                let mut values = [f32::MAX; 21];
                assert!(all_finite(&values));
                values[place] = bad;
                assert!(!all_finite(&values), "{bad} at {place}");
            }
        }
    }

    #[test]
    fn votes_are_added_by_their_sides() {
        let (mut up, mut down) = (vec![1.0; 3], vec![-1.0; 3]);
        add_votes(&[2.0, -4.0, 0.0], 0.5, &mut up, &mut down);
        assert_eq!((up, down), (vec![2.0, 1.0, 1.0], vec![-1.0, -3.0, -1.0]));
    }
}

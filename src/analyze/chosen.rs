//! What is asked of single elements of task vectors: quantiles, and what trimming keeps.
//!
//! A tensor of few elements is looked at whole. Of a larger one a sample stands for it: it is cut into runs of equally many elements,
//! and of each run one element is taken, which the run's number draws. So the sample is the same in every run of the program, and no
//! pattern of rows and columns falls into step with it.

use std::ops::Range;

use super::elements::{Signs, add_votes, signs};
use crate::kernel::philox::philox4x32;

/// The most elements of a tensor that is looked at whole.
pub(super) const EXACT_MAX: u64 = 1 << 20;
/// The most elements of a sample of a larger one, which has at least half as many: the standard error of a share of elements is
/// ½ / √131072, or 0.14 %, at the worst.
pub(super) const SAMPLE_MAX: u64 = 1 << 18;
/// The most elements of all task vectors of a tensor that are kept for it: with many models samples are smaller.
pub(super) const KEPT_MAX: u64 = 1 << 23;

/// Values that are sorted for quantiles; of more, equally spaced ones are taken.
const SORTED_MAX: usize = 1 << 16;
/// Points that stand for the distribution of a tensor's magnitudes.
const POINTS: usize = 200;

/// How many elements of a tensor with so many a sample has one of, with so many task vectors.
pub(super) fn run_elements(elements: u64, tasks: usize) -> u64 {
    let most = (KEPT_MAX / tasks.max(1) as u64).min(EXACT_MAX);
    if elements <= most { 1 } else { elements.div_ceil(most.min(SAMPLE_MAX)) }
}

/// The elements of a range that are in the sample.
pub(super) fn sampled(range: Range<u64>, run: u64) -> impl Iterator<Item = u64> {
    let chosen = move |number: u64| {
        let drawn = |number: u64| {
            let [low, high, ..] = philox4x32([number as u32, (number >> 32) as u32, 0, 0], [0x616e_616c, 0]);
            (u64::from(high) << 32 | u64::from(low)) % run
        };
        number * run + if run == 1 { 0 } else { drawn(number) }
    };
    (range.start / run..range.end.div_ceil(run)).map(chosen).filter(move |element| range.contains(element))
}

/// Magnitudes of a task vector that stand for all: few, in ascending order, each for equally many.
pub(super) fn points(task: &[f32]) -> Vec<f32> {
    let step = task.len().div_ceil(SORTED_MAX).max(1);
    let mut values: Vec<f32> = task.iter().step_by(step).map(|value| value.abs()).collect();
    values.sort_unstable_by(f32::total_cmp);
    let count = values.len();
    if count <= POINTS {
        return values;
    }
    (0..POINTS).map(|point| values[(2 * point + 1) * count / (2 * POINTS)]).collect()
}

/// Quantiles of magnitudes, from the points of tensors and how many elements each point stands for.
pub(super) fn quantiles<const N: usize>(mut points: Vec<(f32, f64)>, at: [f64; N]) -> [f32; N] {
    points.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
    let all: f64 = points.iter().map(|(_, weight)| weight).sum();
    at.map(|share| {
        let (mut below, mut before) = (0.0, None);
        for &(value, weight) in &points {
            let middle = (below + 0.5 * weight) / all;
            if middle >= share {
                let Some((last_middle, last)) = before else { return value };
                let part: f64 = (share - last_middle) / (middle - last_middle);
                return (f64::from(last) + part * (f64::from(value) - f64::from(last))) as f32;
            }
            below += weight;
            before = Some((middle, value));
        }
        before.map_or(0.0, |(_, value)| value)
    })
}

/// What trimming to a density keeps of a task vector: of equal magnitudes the first ones, as `ties` does.
pub(super) fn kept(task: &[f32], density: f64) -> Vec<bool> {
    let count = task.len();
    if density >= 1.0 || count == 0 {
        return vec![true; count];
    }
    if density <= 0.0 {
        return vec![false; count];
    }
    let most = ((density * count as f64) as usize).clamp(1, count);
    // Magnitudes as integers have their order.
    let key = |value: &f32| value.to_bits() & 0x7fff_ffff;
    let mut keys: Vec<u32> = task.iter().map(key).collect();
    let (_, threshold, above) = keys.select_nth_unstable(count - most);
    let threshold = *threshold;
    let mut cut = most - above.iter().filter(|key| **key > threshold).count();
    let is_kept = |value: &f32| {
        let key = key(value);
        let is_first = key == threshold && cut > 0;
        cut -= usize::from(is_first);
        key > threshold || is_first
    };
    task.iter().map(is_kept).collect()
}

/// The vote of what is kept of each task vector, with its weight.
pub(super) fn vote(tasks: &[Vec<f32>], kept: &[Vec<bool>], weights: &[f64]) -> Signs {
    let count = tasks.first().map_or(0, Vec::len);
    let (mut up, mut down, mut trimmed) = (vec![0.0; count], vec![0.0; count], vec![0.0; count]);
    for ((task, kept), weight) in tasks.iter().zip(kept).zip(weights) {
        for ((trimmed, value), kept) in trimmed.iter_mut().zip(task).zip(kept) {
            *trimmed = if *kept { *value } else { 0.0 };
        }
        add_votes(&trimmed, *weight as f32, &mut up, &mut down);
    }
    signs(&up, &down)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_has_one_of_each_run_however_it_is_cut() {
        for (elements, run) in [(100, 1), (100, 7), (101, 7), (6, 7)] {
            let whole: Vec<u64> = sampled(0..elements, run).collect();
            let parts = [0..elements / 3, elements / 3..elements / 2, elements / 2..elements];
            let cut: Vec<u64> = parts.into_iter().flat_map(|part| sampled(part, run)).collect();
            assert_eq!(whole, cut);
            let full = (elements / run) as usize;
            assert!(whole.iter().take(full).zip(0..).all(|(element, number)| element / run == number));
            assert!((full..=full + 1).contains(&whole.len()));
        }
        assert_eq!(sampled(3..6, 1).collect::<Vec<_>>(), [3, 4, 5]);
    }

    #[test]
    fn samples_are_as_large_as_is_said() {
        assert_eq!((run_elements(EXACT_MAX, 8), run_elements(EXACT_MAX + 1, 8)), (1, 5));
        assert_eq!(run_elements(EXACT_MAX, 16), 4);
        for elements in [EXACT_MAX + 1, 3 << 20, 1 << 32] {
            let sample = elements / run_elements(elements, 2);
            assert!((SAMPLE_MAX / 2..=SAMPLE_MAX).contains(&sample), "{elements}: {sample}");
        }
    }

    #[test]
    fn trimming_keeps_the_largest_and_of_equals_the_first() {
        let task = [1.0, -3.0, 2.0, 2.0, -2.0, 0.5];
        for (density, expected) in [
            (0.5, [false, true, true, true, false, false]),
            (0.7, [false, true, true, true, true, false]),
            (0.01, [false, true, false, false, false, false]),
            (1.0, [true; 6]),
            (0.0, [false; 6]),
        ] {
            assert_eq!(kept(&task, density), expected, "{density}");
        }
        assert_eq!(kept(&[0.0, -0.0, 0.0], 0.67), [true, true, false]);
    }

    #[test]
    fn quantiles_of_tensors_together_are_weighted() {
        let points: Vec<(f32, f64)> = (0..100).map(|i| (i as f32, 1.0)).collect();
        assert_eq!(quantiles(points, [0.005, 0.5, 0.995]), [0.0, 49.5, 99.0]);
        // Nine tenths of the elements are 1.
        let [low, high] = quantiles(vec![(5.0, 10.0), (1.0, 90.0)], [0.1, 0.95]);
        assert_eq!((low, high), (1.0, 5.0));
        assert_eq!(quantiles(Vec::new(), [0.5]), [0.0]);
    }

    #[test]
    fn points_stand_for_equally_many() {
        let task: Vec<f32> = (0..1000).rev().map(|i| -(i as f32)).collect();
        let points = points(&task);
        assert_eq!((points.len(), points[0], points[POINTS - 1]), (POINTS, 2.0, 997.0));
        assert_eq!(super::points(&[-2.0, 1.0]), [1.0, 2.0]);
    }

    #[test]
    fn the_vote_is_of_what_is_kept() {
        let tasks = [vec![1.0, -2.0, 3.0], vec![-4.0, -1.0, -1.0]];
        let kept = [vec![true, true, true], vec![true, true, false]];
        let found = vote(&tasks, &kept, &[1.0, 0.5]);
        assert_eq!((found.mass, found.outvoted), (1.0 + 2.0 + 3.0 + 2.0 + 0.5, 1.0));
    }
}

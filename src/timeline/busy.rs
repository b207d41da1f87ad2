//! How long something was busy, from intervals that may overlap and may come out of order: what overlaps counts once.
//!
//! Lanes record their launches when they collect them, each its own oldest, so an interval comes late by a few hundred
//! others at most. So many stay apart; older ones are only a sum, and a merge of any length takes the same memory.

use std::collections::VecDeque;

/// Intervals that stay apart. More than the launches that can be under way: 256 lanes, each a few launches deep.
const APART_MAX: usize = 1024;

/// A union of intervals, in nanoseconds.
#[derive(Debug, Default)]
pub(super) struct Busy {
    /// The length of those that are only a sum.
    summed: u64,
    /// Where they end; what comes later and begins before is cut off here.
    summed_to: u64,
    /// The others: in order, with gaps between them.
    apart: VecDeque<(u64, u64)>,
}

impl Busy {
    /// Adds `from..to`.
    pub fn add(&mut self, from: u64, to: u64) {
        let (mut from, mut to) = (from.max(self.summed_to), to);
        if from >= to {
            return;
        }
        let first = self.apart.partition_point(|(_, end)| *end < from);
        let last = self.apart.partition_point(|(begin, _)| *begin <= to);
        for (begin, end) in self.apart.drain(first..last) {
            (from, to) = (from.min(begin), to.max(end));
        }
        self.apart.insert(first, (from, to));
        if self.apart.len() > APART_MAX {
            self.sum_oldest();
        }
    }

    fn sum_oldest(&mut self) {
        if let Some((begin, end)) = self.apart.pop_front() {
            self.summed += end - begin;
            self.summed_to = end;
        }
    }

    /// The length of the union.
    pub fn total(&self) -> u64 {
        self.summed + self.apart.iter().map(|(begin, end)| end - begin).sum::<u64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn total(intervals: &[(u64, u64)]) -> u64 {
        let mut busy = Busy::default();
        intervals.iter().for_each(|(from, to)| busy.add(*from, *to));
        busy.total()
    }

    #[test]
    fn what_overlaps_counts_once_in_any_order() {
        let cases: [(&[(u64, u64)], u64); 7] = [
            (&[], 0),
            (&[(3, 3), (5, 4)], 0),
            (&[(0, 2), (2, 4)], 4),
            (&[(10, 20), (0, 5)], 15),
            (&[(0, 10), (2, 3), (9, 12)], 12),
            (&[(0, 1), (4, 5), (8, 9), (1, 8)], 9),
            (&[(5, 6), (0, 20), (30, 31)], 21),
        ];
        for (intervals, expected) in cases {
            assert_eq!(total(intervals), expected, "{intervals:?}");
            let reversed: Vec<_> = intervals.iter().rev().copied().collect();
            assert_eq!(total(&reversed), expected, "{reversed:?}");
        }
    }

    #[test]
    fn old_intervals_are_summed_and_late_ones_still_counted() {
        let mut busy = Busy::default();
        let count = 10 * APART_MAX as u64;
        // Pairs come in the wrong order.
        for i in (0..count).map(|i| i ^ 1) {
            busy.add(10 * i, 10 * i + 3);
        }
        assert_eq!((busy.total(), busy.apart.len()), (3 * count, APART_MAX));
        busy.add(0, 10 * count);
        // Where only the sum is known, what comes too late cannot be separated from what was there.
        assert_eq!(busy.total(), busy.summed + 10 * count - busy.summed_to);
        assert_eq!(busy.apart.len(), 1);
    }
}

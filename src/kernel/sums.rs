//! The sum of a tile, in the contract's order.
//!
//! Groups of eight neighbours are ((0+1)+(2+3))+((4+5)+(6+7)); then the 128 group sums are folded by halves, the second half
//! onto the first. Elements past the end count as 0. The tree is fixed, so every device has the same sum.

use super::TILE;

/// The plain twin of the sum.
pub(super) fn tile_sum(terms: impl IntoIterator<Item = f32>) -> f32 {
    let mut all: Vec<f32> = terms.into_iter().collect();
    all.resize(TILE, 0.0);
    let group = |t: &[f32]| ((t[0] + t[1]) + (t[2] + t[3])) + ((t[4] + t[5]) + (t[6] + t[7]));
    let mut sums: Vec<f32> = all.chunks(8).map(group).collect();
    while sums.len() > 1 {
        let half = sums.len() / 2;
        sums = (0..half).map(|i| sums[i] + sums[half + i]).collect();
    }
    sums[0]
}

/// The same for the fast path, whose terms past the end are zeros already. What is in `room` does not matter.
#[inline(always)]
pub(super) fn fold_tile(terms: &[f32; TILE], room: &mut [f32; TILE]) -> f32 {
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

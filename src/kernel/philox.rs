//! Philox4x32-10, the counter-based generator of Salmon, Moraes, Dror and Shaw, "Parallel random numbers:
//! as easy as 1, 2, 3" (SC 2011), and the masks drawn from it.
//!
//! A draw depends on (key, element) alone, so a mask is the same on every device and schedule.

use super::TILE;

/// Elements that share one call of the generator.
pub const DRAWS: usize = 8;

/// Calls of the generator for a tile.
pub const BLOCKS: usize = TILE / DRAWS;

/// The generator's multipliers.
pub const MULTIPLIERS: [u32; 2] = [0xd251_1f53, 0xcd9e_8d57];

/// What its key grows by every round.
pub const WEYL: [u32; 2] = [0x9e37_79b9, 0xbb67_ae85];

/// The ten rounds of one counter.
///
/// Words stay in the 64 bits that their products have, of whose upper halves nothing is used: halves that are taken apart
/// and put together again in every round cost as much as the products.
#[inline(always)]
pub fn philox4x32(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    const LOW: u64 = u32::MAX as u64;
    let [mut w0, mut w1, mut w2, mut w3] = counter.map(u64::from);
    let [mut k0, mut k1] = key;
    for _ in 0..10 {
        let product0 = u64::from(MULTIPLIERS[0]) * (w0 & LOW);
        let product1 = u64::from(MULTIPLIERS[1]) * (w2 & LOW);
        (w0, w1) = ((product1 >> 32) ^ w1 ^ u64::from(k0), product1);
        (w2, w3) = ((product0 >> 32) ^ w3 ^ u64::from(k1), product0);
        k0 = k0.wrapping_add(WEYL[0]);
        k1 = k1.wrapping_add(WEYL[1]);
    }
    [w0 as u32, w1 as u32, w2 as u32, w3 as u32]
}

/// Whether the element with this flat index is kept, with probability `keep / 2^32`: the plain rule.
///
/// Element `i` uses 16 bits of the call with counter `i / 8`: the low half of word `i % 8 / 2` when even, the high half when
/// odd. The same 16 bits of a second call stand behind them, so that the probability is exact to 2^-32.
pub fn keeps(element: u64, key: [u32; 2], keep: u32) -> bool {
    let draw = |call: u32| {
        let block = element / DRAWS as u64;
        let words = philox4x32([block as u32, (block >> 32) as u32, call, 0], key);
        words[element as usize % DRAWS / 2] >> (16 * (element % 2)) & 0xffff
    };
    (draw(0) << 16 | draw(1)) < keep
}

/// A density from 0 to 1 as a probability in units of 2^-32.
pub fn probability(density: f64) -> u32 {
    (density * 4_294_967_296.0).round().min(f64::from(u32::MAX)) as u32
}

/// The draws of a tile's elements, one after the other, as two words of 64 bits per call.
type Draws = [[u64; 2]; BLOCKS];

/// Draws for a tile, or for less of it.
#[inline(always)]
fn draw(first_block: u64, call: u32, key: [u32; 2], draws: &mut [[u64; 2]]) {
    for (block, draws) in (first_block..).zip(draws) {
        let [w0, w1, w2, w3] = philox4x32([block as u32, (block >> 32) as u32, call, 0], key).map(u64::from);
        *draws = [(w1 << 32 | w0).to_le(), (w3 << 32 | w2).to_le()];
    }
}

/// The same in parts of 16 bits, little-endian.
#[inline(always)]
fn halves(draws: &Draws) -> &[u16; TILE] {
    bytemuck::cast_ref(draws)
}

/// The upper 16 of the 32 bits that elements from number `first` on draw. Where they equal the upper half of a probability,
/// [`keeps`] decides.
#[inline(always)]
pub fn upper_draws(first: u64, key: [u32; 2], into: &mut [u16]) {
    let mut skipped = (first % DRAWS as u64) as usize;
    let (mut block, mut next) = (first / DRAWS as u64, 0);
    let mut draws = [[0; 2]; BLOCKS];
    while next < into.len() {
        let blocks = (skipped + into.len() - next).div_ceil(DRAWS).min(BLOCKS);
        draw(block, 0, key, &mut draws[..blocks]);
        let ours = &halves(&draws)[skipped..blocks * DRAWS];
        let len = ours.len().min(into.len() - next);
        into[next..next + len].iter_mut().zip(ours).for_each(|(into, draw)| *into = u16::from_le(*draw));
        (block, next, skipped) = (block + blocks as u64, next + len, 0);
    }
}

/// The elements of a tile that are kept: bit `i / 32` of word `i % 32` is element `i`, so that neighbours have the same bit of
/// neighbouring words, as vectors want them.
pub type TileMask = [u32; TILE / 32];

/// The same for a tile whose first counter is `first_block`. The second call is made only where a draw equals the upper half
/// of `keep`.
#[inline(always)]
pub fn choose(first_block: u64, key: [u32; 2], keep: u32) -> TileMask {
    let (upper, lower) = ((keep >> 16) as u16, keep as u16);
    let mut first = [[0; 2]; BLOCKS];
    draw(first_block, 0, key, &mut first);
    let mut mask = [0; TILE / 32];
    // Bits move into place with the rounds: the compiler makes better vectors of it than of places that differ by round.
    for draws in halves(&first).chunks_exact(mask.len()) {
        for (word, draw) in mask.iter_mut().zip(draws) {
            *word = *word >> 1 | u32::from(u16::from_le(*draw) < upper) << 31;
        }
    }
    let undecided = halves(&first).iter().fold(0, |any, draw| any | u16::from(u16::from_le(*draw) == upper));
    // Rare: one tile in 64.
    if undecided != 0 {
        let mut second = [[0; 2]; BLOCKS];
        draw(first_block, 1, key, &mut second);
        for (i, (first, second)) in halves(&first).iter().zip(halves(&second)).enumerate() {
            if u16::from_le(*first) == upper {
                let keeps = u16::from_le(*second) < lower;
                mask[i % mask.len()] |= u32::from(keeps) << (i / mask.len());
            }
        }
    }
    mask
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers published with the Random123 library.
    #[test]
    fn known_answers() {
        for (counter, key, words) in [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([!0; 4], [!0; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ] {
            assert_eq!(philox4x32(counter, key), words);
        }
    }

    fn kept(tiles: u64, key: [u32; 2], keep: u32) -> u64 {
        let one = |tile: u64| {
            let mask = choose(tile * BLOCKS as u64, key, keep);
            mask.iter().map(|word| u64::from(word.count_ones())).sum::<u64>()
        };
        (0..tiles).map(one).sum()
    }

    #[test]
    fn the_share_kept_is_the_probability() {
        for keep in [0u32, 1 << 16, 1 << 31, 0xc000_8000, u32::MAX] {
            let tiles = 1500;
            let draws = (tiles * TILE as u64) as f64;
            let p = f64::from(keep) / 4_294_967_296.0;
            let sigma = (draws * p * (1.0 - p)).sqrt();
            let kept = kept(tiles, [7, 9], keep);
            assert!((kept as f64 - p * draws).abs() <= 4.5 * sigma + 1.0, "{keep:08x}: {kept}");
        }
    }

    #[test]
    fn upper_draws_are_those_of_the_plain_rule() {
        for (first, len) in [(0, 1), (3, 3), (7, 2), (8, 16), (1021, 2077), ((8 << 32) - 5, 40)] {
            let mut draws = vec![0; len];
            upper_draws(first, [5, 6], &mut draws);
            for (element, draw) in (first..).zip(draws) {
                let keep = u32::from(draw) << 16;
                assert!(!keeps(element, [5, 6], keep), "{element}");
                assert!(keep == 0xffff << 16 || keeps(element, [5, 6], keep + 0x1_0000), "{element}");
            }
        }
    }

    /// A draw equal to the upper half must be settled by the lower half: one in 65,536 is.
    #[test]
    fn the_second_call_settles_equal_draws() {
        let settled = kept(16_000, [1, 2], 0x8000_ffff) - kept(16_000, [1, 2], 0x8000_0000);
        assert!((150..350).contains(&settled), "{settled}");
    }
}

//! Philox4x32-10, the counter-based generator of Salmon, Moraes, Dror and Shaw, "Parallel random numbers:
//! as easy as 1, 2, 3" (SC 2011), and the masks drawn from it.
//!
//! A draw depends on (key, element) alone, so a mask is the same on every device and schedule.

/// The ten-round Philox of four 32-bit words.
#[inline]
pub fn philox4x32(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    const MULTIPLIERS: [u32; 2] = [0xd251_1f53, 0xcd9e_8d57];
    const WEYL: [u32; 2] = [0x9e37_79b9, 0xbb67_ae85];
    let [mut c0, mut c1, mut c2, mut c3] = counter;
    let [mut k0, mut k1] = key;
    for _ in 0..10 {
        let product0 = u64::from(MULTIPLIERS[0]) * u64::from(c0);
        let product1 = u64::from(MULTIPLIERS[1]) * u64::from(c2);
        [c0, c1, c2, c3] = [
            (product1 >> 32) as u32 ^ c1 ^ k0,
            product1 as u32,
            (product0 >> 32) as u32 ^ c3 ^ k1,
            product0 as u32,
        ];
        k0 = k0.wrapping_add(WEYL[0]);
        k1 = k1.wrapping_add(WEYL[1]);
    }
    [c0, c1, c2, c3]
}

/// Elements that share one call of the generator.
pub const DRAWS: usize = 8;

/// Which of the eight elements `8·block …` are kept, each with probability `keep / 2^32`: a bit per element.
///
/// Element `i` uses 16 bits: the low half of word `i / 2` when even, the high half when odd. Where they
/// equal the upper half of `keep`, the same 16 bits of a second call decide, so that the probability is
/// exact to 2^-32.
#[inline]
pub fn kept(block: u64, key: [u32; 2], keep: u32) -> u8 {
    let draws = |call: u32| philox4x32([block as u32, (block >> 32) as u32, call, 0], key);
    let halves = |words: [u32; 4]| -> [u32; DRAWS] {
        std::array::from_fn(|i| (words[i / 2] >> (16 * (i % 2) as u32)) & 0xffff)
    };
    let first = halves(draws(0));
    let (upper, lower) = (keep >> 16, keep & 0xffff);
    let mut bits = 0;
    let mut undecided = 0;
    for (i, draw) in first.iter().enumerate() {
        bits |= u8::from(*draw < upper) << i;
        undecided |= u8::from(*draw == upper) << i;
    }
    if undecided != 0 {
        for (i, draw) in halves(draws(1)).iter().enumerate() {
            bits |= (u8::from(*draw < lower) << i) & undecided;
        }
    }
    bits
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers published with the Random123 library.
    #[test]
    fn known_answers() {
        assert_eq!(philox4x32([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox4x32([!0; 4], [!0; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox4x32([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn the_share_kept_is_the_probability() {
        for keep in [0u32, 1 << 16, 1 << 31, 0xc000_8000, u32::MAX] {
            let blocks = 200_000u64;
            let kept: u64 = (0..blocks).map(|b| u64::from(kept(b, [7, 9], keep).count_ones())).sum();
            let draws = (blocks * 8) as f64;
            let p = f64::from(keep) / 4_294_967_296.0;
            let sigma = (draws * p * (1.0 - p)).sqrt();
            assert!((kept as f64 - p * draws).abs() <= 4.5 * sigma + 1.0, "{keep:08x}: {kept}");
        }
    }

    /// A draw equal to the upper half must be settled by the lower half: by 2^-16 of all draws, half of them kept.
    #[test]
    fn the_second_call_settles_equal_draws() {
        let key = [1, 2];
        let (mut low, mut high) = (0u64, 0u64);
        for block in 0..2_000_000 {
            low += u64::from(kept(block, key, 0x8000_0000).count_ones());
            high += u64::from(kept(block, key, 0x8000_ffff).count_ones());
        }
        let settled = high - low;
        assert!((150..350).contains(&settled), "{settled}");
    }
}

//! Numbers for checks and benches: repeatable from a seed, and like those of real models.

/// A small, fast and repeatable source of numbers (`SplitMix64`: Steele, Lea and Flood, OOPSLA 2014).
#[derive(Debug, Clone)]
pub struct Random(pub u64);

impl Random {
    /// The next 64 bits.
    #[expect(clippy::should_implement_trait, reason = "it has no end")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in [0, 1).
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Roughly normal, with deviation 1.
    pub fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.unit()).sum::<f64>() - 6.0
    }

    /// Roughly normal with deviation 1, from the bits of a single draw: for many numbers.
    fn quick_normal(&mut self) -> f32 {
        let bits = self.next();
        let sum: u32 = (0..4).map(|i| (bits >> (16 * i)) as u32 & 0xffff).sum();
        // Four uniform numbers have the mean 2 and the variance 1/3.
        (sum as f32 / 65_536.0 - 2.0) * 1.732
    }
}

/// bfloat16 weights of a base model, as bits.
pub fn base_weights(elements: usize, seed: u64) -> Vec<u16> {
    let mut random = Random(seed);
    (0..elements).map(|_| ((random.quick_normal() * 0.02).to_bits() >> 16) as u16).collect()
}

/// A fine-tuned model's weights: half of them unmoved, most of the others by a few units in the last place, a few by a
/// lot. So the magnitudes of their differences take few values, many of them equal, as those of real models do.
pub fn tuned_weights(base: &[u16], seed: u64) -> Vec<u16> {
    let mut random = Random(seed);
    let tuned = |base: &u16| {
        // Nobody's zeros become the smallest of numbers.
        if base << 1 == 0 {
            return *base;
        }
        let draw = random.next() % 100;
        let units = match draw {
            0..50 => 0,
            50..98 => (random.quick_normal() * 2.0) as i32,
            _ => (random.quick_normal() * 40.0) as i32,
        };
        let magnitude = (i32::from(base & 0x7fff) + units).clamp(0, 0x7f00) as u16;
        magnitude | (base & 0x8000)
    };
    base.iter().map(tuned).collect()
}

//! Element types, and bit-exact conversions between them and f32.
//!
//! Decoding is exact. Encoding rounds once, to nearest even, writes one NaN per type and +0 for every
//! zero, so that the stored bytes do not depend on the device. The code is
//! integer code but for two exact steps with subnormals of binary16, so that devices cannot differ.

mod float64;

pub use float64::{
    F64_BYTES, computed_as, encode_narrowed, float_bytes, float_name, float_named, is_float, narrow,
    narrow_to_odd, promote, widen, widen_encoded,
};
pub use safetensors::Dtype;

/// The floating-point types that can be merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Float {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// bfloat16: the upper half of a binary32.
    BF16,
    /// One bit, 0 or 1: what a mask that is made while it is read has. Element `i` is bit `i % 8` of byte `i / 8`; no checkpoint
    /// stores it, and no result has it.
    Bit,
}

impl Float {
    /// The mergeable type of a tensor, if it has one.
    pub fn of(dtype: Dtype) -> Option<Self> {
        match dtype {
            Dtype::F32 => Some(Self::F32),
            Dtype::F16 => Some(Self::F16),
            Dtype::BF16 => Some(Self::BF16),
            _ => None,
        }
    }

    /// The type in a safetensors header.
    pub fn dtype(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::F16 => Dtype::F16,
            Self::BF16 => Dtype::BF16,
            Self::Bit => Dtype::BOOL,
        }
    }

    /// Bytes per element; of bits, one, which is more than they take.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Bit => 1,
        }
    }

    /// Bytes of so many elements, one behind the other from the beginning of a byte.
    pub const fn bytes_of(self, elements: u64) -> u64 {
        match self {
            Self::Bit => elements.div_ceil(8),
            _ => elements * self.bytes() as u64,
        }
    }

    /// The name in a mergekit YAML and in config.json.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::BF16 => "bfloat16",
            Self::Bit => "bit",
        }
    }

    /// The smallest type that holds both exactly (torch's promotion rule).
    #[must_use]
    pub fn promote(self, other: Self) -> Self {
        if self == other { self } else { Self::F32 }
    }
}

/// An element as a kernel reads it: decoded, or as it is stored, which is decoded on the way into a register.
pub trait Element: Copy {
    /// The value, exactly.
    fn value(self) -> f32;
}

impl Element for f32 {
    #[inline(always)]
    fn value(self) -> f32 {
        self
    }
}

/// A stored bfloat16, at any address.
#[repr(transparent)]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub struct StoredBf16([u8; 2]);

impl Element for StoredBf16 {
    #[inline(always)]
    fn value(self) -> f32 {
        bf16_to_f32(u16::from_le_bytes(self.0))
    }
}

/// Decodes little-endian elements of type `float` to f32, exactly.
///
/// `bytes` holds `out.len()` elements.
#[inline(always)]
pub fn decode(float: Float, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(bytes.len() as u64, float.bytes_of(out.len() as u64), "decode: one element in, one out");
    match float {
        Float::F32 => each(bytes, out, |raw: [u8; 4]| f32::from_le_bytes(raw)),
        Float::F16 => each(bytes, out, |raw: [u8; 2]| f16_to_f32(u16::from_le_bytes(raw))),
        Float::BF16 => each(bytes, out, |raw: [u8; 2]| bf16_to_f32(u16::from_le_bytes(raw))),
        Float::Bit => {
            for (byte, out) in bytes.iter().zip(out.chunks_mut(8)) {
                out.iter_mut().enumerate().for_each(|(i, out)| *out = f32::from(byte >> i & 1));
            }
        }
    }
}

/// Encodes f32 values as little-endian elements of type `float`, each rounded once.
///
/// Returns how many finite values became infinite.
#[inline(always)]
pub fn encode(float: Float, values: &[f32], out: &mut [u8]) -> u64 {
    let beyond = finite_max(float) + 1..INFINITY_BITS;
    if encode_all(float, values, out) < beyond.start {
        return 0;
    }
    values.iter().filter(|value| beyond.contains(&magnitude_bits(**value))).count() as u64
}

/// The same; returns the bits of the largest magnitude.
#[inline(always)]
pub fn encode_all(float: Float, values: &[f32], out: &mut [u8]) -> u32 {
    assert_eq!(out.len() as u64, float.bytes_of(values.len() as u64), "encode: one element in, one out");
    match float {
        Float::F32 => each_back(values, out, |value| f32_to_f32(value).to_le_bytes()),
        Float::F16 => each_back(values, out, |value| f32_to_f16(value).to_le_bytes()),
        Float::BF16 => {
            // NaN are rare: they are looked for once all is done.
            let largest = each_back(values, out, |value| not_nan_to_bf16(value).to_le_bytes());
            if largest > INFINITY_BITS {
                each_back(values, out, |value| f32_to_bf16(value).to_le_bytes());
            }
            largest
        }
        Float::Bit => {
            for (values, out) in values.chunks(8).zip(&mut *out) {
                *out = values.iter().rev().fold(0, |byte, value| byte << 1 | u8::from(*value != 0.0));
            }
            values.iter().fold(0, |largest, value| largest.max(magnitude_bits(*value)))
        }
    }
}

/// The bits of the largest magnitude that still is finite when it is stored.
pub const fn finite_max(float: Float) -> u32 {
    match float {
        Float::F16 => F16_FINITE_MAX,
        Float::BF16 => BF16_FINITE_MAX,
        // Nothing overflows to a bit.
        Float::F32 | Float::Bit => INFINITY_BITS - 1,
    }
}

/// The bits of |x| as an integer: ordered as the magnitudes are.
#[inline(always)]
pub fn magnitude_bits(x: f32) -> u32 {
    x.to_bits() & 0x7fff_ffff
}

/// The bits of the largest magnitude that still rounds to a finite binary16.
pub const F16_FINITE_MAX: u32 = 0x477f_efff;

/// The bits of the largest magnitude that still rounds to a finite bfloat16.
pub const BF16_FINITE_MAX: u32 = 0x7f7f_7fff;

/// The bits of +infinity; larger magnitudes are NaN.
pub const INFINITY_BITS: u32 = 0x7f80_0000;

#[inline(always)]
fn each<const B: usize>(bytes: &[u8], out: &mut [f32], convert: impl Fn([u8; B]) -> f32) {
    let (raw, _) = bytes.as_chunks::<B>();
    out.iter_mut().zip(raw).for_each(|(value, raw)| *value = convert(*raw));
}

/// Converts each element; the bits of the largest magnitude, which cost little while the value is at hand.
#[inline(always)]
fn each_back<const B: usize>(values: &[f32], out: &mut [u8], convert: impl Fn(f32) -> [u8; B]) -> u32 {
    let (raw, _) = out.as_chunks_mut::<B>();
    let mut largest = 0;
    for (raw, value) in raw.iter_mut().zip(values) {
        *raw = convert(*value);
        largest = largest.max(magnitude_bits(*value));
    }
    largest
}

#[inline(always)]
fn bf16_to_f32(half: u16) -> f32 {
    f32::from_bits(u32::from(half) << 16)
}

/// binary16 to binary32, branch-free so that it vectorises.
///
/// Subnormals are whole multiples of 2^-24, converted as integers: nothing here meets an f32 subnormal, which
/// some devices flush.
#[inline(always)]
fn f16_to_f32(half: u16) -> f32 {
    const TWO_POW_MINUS_24: f32 = f32::from_bits((127 - 24) << 23);
    let sign = u32::from(half & 0x8000) << 16;
    let magnitude = u32::from(half & 0x7fff);
    let subnormal = (magnitude as f32 * TWO_POW_MINUS_24).to_bits();
    let normal = (magnitude << 13) + (112 << 23);
    let finite = if magnitude < 0x400 { subnormal } else { normal };
    let special = 0x7f80_0000 | ((magnitude & 0x3ff) << 13);
    f32::from_bits(sign | if magnitude >= 0x7c00 { special } else { finite })
}

#[inline(always)]
fn f32_to_f32(value: f32) -> u32 {
    let bits = value.to_bits();
    let magnitude = bits & 0x7fff_ffff;
    let canonical = if magnitude > INFINITY_BITS { 0x7fc0_0000 } else { bits };
    if magnitude == 0 { 0 } else { canonical }
}

#[inline(always)]
fn f32_to_bf16(value: f32) -> u16 {
    if magnitude_bits(value) > INFINITY_BITS { 0x7fc0 } else { not_nan_to_bf16(value) }
}

#[inline(always)]
fn not_nan_to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    // Adding just under half an ulp, and one more when the kept part is odd, rounds to nearest even.
    let rounded = (bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16) as u16;
    if rounded == 0x8000 { 0 } else { rounded }
}

#[inline(always)]
fn f32_to_f16(value: f32) -> u16 {
    let bits = value.to_bits();
    let sign = (bits >> 16) & 0x8000;
    let magnitude = bits & 0x7fff_ffff;
    // Normal results: re-bias the exponent by 112 and round to nearest even in the integer.
    let normal = magnitude.wrapping_sub(112 << 23).wrapping_add(0xfff + ((magnitude >> 13) & 1)) >> 13;
    // Subnormal results: below 2^-14 the units are 2^-24, and adding 0.5 makes the f32 adder round to them.
    let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
    let rounded = if magnitude < 0x3880_0000 { subnormal } else { normal };
    let finite = if magnitude > F16_FINITE_MAX { 0x7c00 } else { rounded };
    let signed = if finite == 0 { 0 } else { sign | finite };
    (if magnitude > INFINITY_BITS { 0x7e00 } else { signed }) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(float: Float, half: u16) -> f32 {
        let mut out = [0.0];
        decode(float, &half.to_le_bytes(), &mut out);
        out[0]
    }

    fn encoded(float: Float, value: f32) -> u16 {
        let mut out = [0; 2];
        encode(float, &[value], &mut out);
        u16::from_le_bytes(out)
    }

    /// What storing must give, by the `half` crate's conversion with our rule for NaN and zero on top.
    fn expected(float: Float, value: f32) -> u16 {
        let (bits, nan) = match float {
            Float::F16 => (half::f16::from_f32_const(value).to_bits(), 0x7e00),
            _ => (half::bf16::from_f32_const(value).to_bits(), 0x7fc0),
        };
        match bits {
            _ if value.is_nan() => nan,
            0x8000 => 0,
            bits => bits,
        }
    }

    #[test]
    fn bits_begin_with_the_lowest_of_each_byte() {
        let values = [0.0, 2.0, 0.0, 0.0, -1.0, 0.0, 0.0, 1.0, 1.0, 0.0, f32::NAN];
        let mut bytes = [0; 2];
        encode(Float::Bit, &values, &mut bytes);
        assert_eq!(bytes, [0b1001_0010, 0b101]);
        let mut decoded = [9.0; 11];
        decode(Float::Bit, &bytes, &mut decoded);
        assert_eq!(decoded, values.map(|value| f32::from(value != 0.0)));
        assert_eq!((Float::Bit.bytes_of(0), Float::Bit.bytes_of(9), Float::BF16.bytes_of(9)), (0, 2, 18));
    }

    #[test]
    fn every_half_decodes_exactly() {
        for bits in 0..=u16::MAX {
            let f16 = half::f16::from_bits(bits).to_f32_const();
            let bf16 = half::bf16::from_bits(bits).to_f32_const();
            for (ours, theirs) in [(decoded(Float::F16, bits), f16), (decoded(Float::BF16, bits), bf16)] {
                assert!(
                    ours.to_bits() == theirs.to_bits() || (ours.is_nan() && theirs.is_nan()),
                    "{bits:04x}"
                );
            }
        }
    }

    /// All 2^32 values take minutes; the upper 20 bits with every kind of lower part meet every rounding case.
    #[test]
    fn every_rounding_case_encodes_to_nearest_even() {
        let lower = [0u32, 1, 2, 0x7ff, 0x800, 0x801, 0xffe, 0xfff];
        for upper in 0..1u32 << 20 {
            for bits in lower.map(|low| upper << 12 | low) {
                let value = f32::from_bits(bits);
                assert_eq!(encoded(Float::F16, value), expected(Float::F16, value), "f16 {bits:08x}");
                assert_eq!(encoded(Float::BF16, value), expected(Float::BF16, value), "bf16 {bits:08x}");
            }
        }
    }

    #[test]
    fn every_half_survives_a_round_trip() {
        for float in [Float::F16, Float::BF16] {
            for bits in 0..=u16::MAX {
                let value = decoded(float, bits);
                assert_eq!(encoded(float, value), expected(float, value), "{float:?} {bits:04x}");
            }
        }
    }

    #[test]
    fn f32_keeps_its_bits_but_for_nan_and_negative_zero() {
        for (value, bits) in [
            (1.5f32, 1.5f32.to_bits()),
            (-0.0, 0),
            (f32::from_bits(1), 1),
            (f32::NEG_INFINITY, 0xff80_0000),
            (f32::from_bits(0xffc0_0001), 0x7fc0_0000),
        ] {
            let mut out = [0; 4];
            assert_eq!(encode(Float::F32, &[value], &mut out), 0);
            assert_eq!(u32::from_le_bytes(out), bits);
        }
    }

    #[test]
    fn only_finite_values_that_become_infinite_count_as_overflow() {
        let values = [65504.0, 65519.99, 65520.0, -1e30, f32::INFINITY, f32::NAN, 0.0];
        let mut out = [0; 14];
        assert_eq!(encode(Float::F16, &values, &mut out), 2);
        let values = [f32::MAX, f32::from_bits(0x7f7f_7fff), f32::from_bits(0x7f7f_8000), f32::INFINITY];
        let mut out = [0; 8];
        assert_eq!(encode(Float::BF16, &values, &mut out), 2);
    }
}

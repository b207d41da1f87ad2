//! Binary64, which is stored and never computed with: arithmetic is f32.
//!
//! What is merged is rounded to f32 as it is read; results are widened as they are written, which is exact. What is only copied
//! keeps its bits, or is rounded once to the type that is stored.

use super::{Dtype, Float, INFINITY_BITS, encode, magnitude_bits};

/// Bytes of an element.
pub const F64_BYTES: usize = 8;

/// The one NaN that is stored.
const NAN_BITS: u64 = 0x7ff8 << 48;

/// Whether a type is one of floats that can be merged, as it is or rounded to f32.
pub fn is_float(dtype: Dtype) -> bool {
    computed_as(dtype).is_some()
}

/// The type that elements of a stored type are computed as: their own, or f32 for float64; none where they are no floats.
pub fn computed_as(dtype: Dtype) -> Option<Float> {
    if dtype == Dtype::F64 { Some(Float::F32) } else { Float::of(dtype) }
}

/// The name of a type of floats in a mergekit YAML and in config.json.
pub fn float_name(dtype: Dtype) -> &'static str {
    Float::of(dtype).map_or("float64", Float::name)
}

/// The type of floats that has this name there.
pub fn float_named(name: &str) -> Option<Dtype> {
    [Dtype::BF16, Dtype::F16, Dtype::F32, Dtype::F64].into_iter().find(|dtype| float_name(*dtype) == name)
}

/// Bytes of an element of a type of floats.
pub fn float_bytes(dtype: Dtype) -> usize {
    Float::of(dtype).map_or(F64_BYTES, Float::bytes)
}

/// The smallest type of floats that holds both exactly (torch's promotion rule).
pub fn promote(a: Dtype, b: Dtype) -> Dtype {
    match (Float::of(a), Float::of(b)) {
        (Some(a), Some(b)) => a.promote(b).dtype(),
        _ => Dtype::F64,
    }
}

/// Rounds elements to f32, to nearest even. `bytes` holds `out.len()` elements.
pub fn narrow(bytes: &[u8], out: &mut [f32]) {
    each(bytes, out, |value| value as f32);
}

/// Rounds elements to f32, the inexact ones to the neighbour with an odd last bit. What is rounded from that to a type with two
/// bits of precision less is as if it had been rounded at once (Boldo and Melquiond, Emulation of FMA and correctly rounded
/// sums, 2008). Finite values stay finite.
pub fn narrow_to_odd(bytes: &[u8], out: &mut [f32]) {
    each(bytes, out, |value| {
        let nearest = value as f32;
        let wide = f64::from(nearest);
        if wide == value || value.is_nan() || nearest.to_bits() & 1 == 1 {
            return nearest;
        }
        // Bits of a float are ordered as its magnitude is: the other neighbour is the one before or after.
        let bits = nearest.to_bits();
        f32::from_bits(if wide.abs() > value.abs() { bits - 1 } else { bits + 1 })
    });
}

fn each(bytes: &[u8], out: &mut [f32], convert: impl Fn(f64) -> f32) {
    assert_eq!(bytes.len(), out.len() * F64_BYTES, "one element in, one out");
    let (raw, _) = bytes.as_chunks::<F64_BYTES>();
    out.iter_mut().zip(raw).for_each(|(value, raw)| *value = convert(f64::from_le_bytes(*raw)));
}

/// Encodes elements of float64 as elements of `float`, each rounded once. `odd` are these elements as [`narrow_to_odd`] leaves
/// them. Returns how many finite values became infinite.
pub fn encode_narrowed(float: Float, bytes: &[u8], odd: &mut [f32], out: &mut [u8]) -> u64 {
    if float != Float::F32 {
        return encode(float, odd, out);
    }
    let infinite =
        |values: &[f32]| values.iter().filter(|v| magnitude_bits(**v) == INFINITY_BITS).count() as u64;
    let read = infinite(odd);
    narrow(bytes, odd);
    encode(float, odd, out);
    infinite(odd) - read
}

/// Encodes f32 values as float64, exactly, with one NaN, and +0 for every zero.
pub fn widen(values: impl Iterator<Item = f32>, out: &mut [u8]) {
    let (raw, _) = out.as_chunks_mut::<F64_BYTES>();
    for (raw, value) in raw.iter_mut().zip(values) {
        let bits = match value {
            value if value.is_nan() => NAN_BITS,
            0.0 => 0,
            value => f64::from(value).to_bits(),
        };
        *raw = bits.to_le_bytes();
    }
}

/// The same of encoded f32.
pub fn widen_encoded(bytes: &[u8], out: &mut Vec<u8>) {
    let (raw, _) = bytes.as_chunks::<4>();
    out.resize(raw.len() * F64_BYTES, 0);
    widen(raw.iter().map(|raw| f32::from_le_bytes(*raw)), out);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a type with so many bits of precision and such exponents makes of a value, found by integer arithmetic on its bits.
    fn rounded(value: f64, precision: i32, exponent_min: i32, largest: f64) -> f64 {
        if value == 0.0 || !value.is_finite() {
            return value;
        }
        let (_, exponent) = libm::frexp(value);
        let unit = libm::ldexp(1.0, (exponent - precision).max(exponent_min));
        let rounded = libm::rint(value / unit) * unit;
        if rounded.abs() > largest { f64::INFINITY.copysign(value) } else { rounded }
    }

    fn stored(float: Float, value: f64) -> (f64, u64) {
        let (bytes, mut odd, mut out) = (value.to_le_bytes(), [0.0], [0; 4]);
        narrow_to_odd(&bytes, &mut odd);
        assert!(value.is_infinite() || !odd[0].is_infinite());
        let overflowed = encode_narrowed(float, &bytes, &mut odd, &mut out[..float.bytes()]);
        let mut back = [0.0];
        super::super::decode(float, &out[..float.bytes()], &mut back);
        (f64::from(back[0]), overflowed)
    }

    #[test]
    fn every_type_is_rounded_to_once() {
        let types = [
            (Float::BF16, 8, -133, f64::from(f32::from_bits(0x7f7f_0000))),
            (Float::F16, 11, -24, 65504.0),
            (Float::F32, 24, -149, f64::from(f32::MAX)),
        ];
        let mut random = crate::check::data::Random(5);
        for (float, precision, exponent_min, largest) in types {
            let halves =
                [largest * (1.0 + 0.25 * libm::ldexp(1.0, -precision)), largest * 1.1, f64::MAX, 1e-300];
            let mut values = halves.to_vec();
            for i in 0..200_000 {
                let exponent = (i % 320) - 165;
                let base = f64::from_bits(random.next() >> 12 | 0x3ff << 52);
                // Near to a half of an ulp of the type, and on both sides of it.
                let coarse = libm::rint(base * libm::ldexp(1.0, precision)) * libm::ldexp(1.0, -precision);
                let near = coarse + [0.0, 1e-16, -1e-16, 1e-9, -1e-9][random.next() as usize % 5] * coarse;
                values.extend([base, near].map(|value| libm::ldexp(value, exponent)));
            }
            for value in values.iter().flat_map(|value| [*value, -*value]) {
                let expected = rounded(value, precision, exponent_min, largest);
                let overflows = u64::from(expected.is_infinite());
                assert_eq!(stored(float, value), (expected, overflows), "{float:?} {value:e}");
            }
            assert_eq!(stored(float, f64::INFINITY), (f64::INFINITY, 0));
            assert!(stored(float, f64::NAN).0.is_nan());
        }
    }

    #[test]
    fn widening_is_exact_with_one_nan_and_one_zero() {
        let values = [1.5, -0.0, f32::NEG_INFINITY, f32::from_bits(0xffc0_0001), f32::from_bits(1), f32::MAX];
        let mut out = [0; 48];
        widen(values.into_iter(), &mut out);
        let bits: Vec<u64> = out.as_chunks::<8>().0.iter().map(|raw| u64::from_le_bytes(*raw)).collect();
        let exact = [
            1.5,
            0.0,
            f64::NEG_INFINITY,
            f64::from_bits(NAN_BITS),
            libm::ldexp(1.0, -149),
            f64::from(f32::MAX),
        ];
        assert_eq!(bits, exact.map(f64::to_bits));
    }

    #[test]
    fn types_are_promoted_to_the_one_that_holds_both() {
        use Dtype::{BF16, F16, F32, F64};
        for (a, b, both) in
            [(BF16, BF16, BF16), (BF16, F16, F32), (F16, F64, F64), (F64, F32, F64), (F64, F64, F64)]
        {
            assert_eq!(promote(a, b), both);
        }
    }
}

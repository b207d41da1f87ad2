//! The exponential function and the natural logarithm in f64, of + − × ÷ and integers alone: the compiler makes vectors of
//! them, and they give the same bits on every processor.
//!
//! Their polynomials interpolate at Chebyshev's nodes of the reduced range, in sixty digits, and are rounded once.
//! Both stay within 2⁻⁵² of the true value, relatively.

use std::f64::consts::LOG2_E;

/// Below it `exp` gives what it gives there: 10⁻³⁰⁴.
const EXPONENT_MIN: f64 = -700.0;

/// ln 2 in two parts, the upper of which has 32 bits, so that a few thousand times it is exact.
const LN_2: [f64; 2] = [f64::from_bits(0x3fe6_2e42_fee0_0000), f64::from_bits(0x3dea_39ef_3579_3c76)];

/// Added to a number of small magnitude, it leaves the nearest whole number in the lowest bits.
const ROUND: f64 = 6_755_399_441_055_744.0;

/// (eʳ − 1 − r) / r² for |r| ≤ ½ ln 2, to 2⁻⁵⁵ of eʳ once it is multiplied with r².
const EXP: [f64; 10] = [
    0.500_000_000_000_000_1,
    0.166_666_666_666_666_69,
    0.041_666_666_666_624_13,
    0.008_333_333_333_330_062,
    0.001_388_888_891_721_371_7,
    0.000_198_412_698_630_536_18,
    2.480_152_129_595_437_6e-5,
    2.755_726_845_999_706_4e-6,
    2.762_008_844_540_974_6e-7,
    2.510_038_549_551_032e-8,
];

/// (artanh s − s) / s³ as a polynomial in s² for |s| ≤ [`NEAR`], to 2⁻⁵⁷ once it is multiplied with s².
const ARTANH: [f64; 7] = [
    0.333_333_333_333_333_5,
    0.199_999_999_999_491_36,
    0.142_857_143_132_678_1,
    0.111_111_055_218_884_29,
    0.090_914_478_750_595_97,
    0.076_657_508_055_726_64,
    0.073_095_830_674_439_85,
];

/// (√2 − 1) / (√2 + 1), rounded up: (x − 1) / (x + 1) of an x from √½ to √2.
pub(super) const NEAR: f64 = 0.171_573;

/// Horner's scheme.
#[inline(always)]
fn polynomial<const N: usize>(coefficients: [f64; N], x: f64) -> f64 {
    let mut sum = coefficients[N - 1];
    for coefficient in coefficients[..N - 1].iter().rev() {
        sum = sum * x + coefficient;
    }
    sum
}

/// eˣ, of x up to 700; below −700 its value there. NaN stays NaN.
#[inline(always)]
pub(super) fn exp(x: f64) -> f64 {
    let x = if x < EXPONENT_MIN { EXPONENT_MIN } else { x };
    let shifted = x * LOG2_E + ROUND;
    let whole = shifted - ROUND;
    let r = (x - whole * LN_2[0]) - whole * LN_2[1];
    let power = 1.0 + (r + r * r * polynomial(EXP, r));
    power * f64::from_bits((shifted.to_bits() << 52).wrapping_add(1.0f64.to_bits()))
}

/// (artanh s − s) / s for |s| ≤ [`NEAR`].
#[inline(always)]
pub(super) fn artanh_rest(s: f64) -> f64 {
    let square = s * s;
    square * polynomial(ARTANH, square)
}

/// The natural logarithm of a number that is normal, positive and finite.
#[inline(always)]
pub(super) fn ln(x: f64) -> f64 {
    /// √½.
    const LEAST: u64 = 0x3fe6_a09e_667f_3bcd;
    const EXPONENT: u64 = 0xfff << 52;
    let exponent = x.to_bits().wrapping_sub(LEAST) & EXPONENT;
    let part = f64::from_bits(x.to_bits().wrapping_sub(exponent));
    // The exponent's upper bits as a whole number, without a conversion that vectors lack.
    let whole = f64::from_bits(((exponent as i64 >> 52) as u64).wrapping_add(ROUND.to_bits())) - ROUND;
    let difference = part - 1.0;
    let s = difference / (2.0 + difference);
    // 2 artanh s = 2s + 2s·rest, and 2s = d − s·d.
    let rest = s * (2.0 * artanh_rest(s) - difference) + whole * LN_2[1];
    whole * LN_2[0] + (difference + rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(ours: f64, exact: f64) -> bool {
        (ours - exact).abs() <= exact.abs() * f64::EPSILON
    }

    /// Numbers spread over an interval, and those beside zero and beside its ends.
    fn over(from: f64, to: f64) -> impl Iterator<Item = f64> {
        const STEPS: u32 = 1_000_000;
        let near = (1..60).flat_map(|power| [-(0.5f64.powi(power)), 0.5f64.powi(power)]);
        let even = (0..=STEPS).map(move |i| from + (to - from) * (f64::from(i) / f64::from(STEPS)));
        even.chain(near.filter(move |x| (from..=to).contains(x)))
    }

    #[test]
    fn exponentials_are_those_of_libm() {
        for x in over(-700.0, 700.0).chain(over(-1.0, 1.0)).chain(over(-0.001, 0.0)) {
            assert!(close(exp(x), libm::exp(x)), "exp {x:e} = {:e}", exp(x));
        }
        assert_eq!((exp(0.0), exp(-0.0)), (1.0, 1.0));
        assert_eq!((exp(-1e30), exp(f64::NEG_INFINITY)), (exp(-700.0), exp(-700.0)));
        assert!(exp(f64::NAN).is_nan());
    }

    #[test]
    fn logarithms_are_those_of_libm() {
        let wide = (-1000..1000).flat_map(|power| [1.0, 1.3, 1.999].map(|x| x * 2f64.powi(power)));
        let near_one = over(-0.3, 0.5).map(|x| 1.0 + x);
        for x in wide.chain(near_one).chain(over(1e-8, 2.0)).chain(over(0.5, 1e9)) {
            assert!(close(ln(x), libm::log(x)), "ln {x:e} = {:e}", ln(x));
        }
        assert_eq!(ln(1.0), 0.0);
    }

    #[test]
    fn the_rest_of_artanh_is_that_of_libm() {
        for s in over(-NEAR, NEAR).filter(|s| s.abs() > 0.01) {
            let exact = 0.5 * libm::log1p(2.0 * s / (1.0 - s)) / s - 1.0;
            assert!((artanh_rest(s) - exact).abs() <= 2.0 * f64::EPSILON, "{s}");
        }
        assert_eq!(artanh_rest(0.0), 0.0);
    }
}

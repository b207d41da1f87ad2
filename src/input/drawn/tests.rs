//! The tests of drawn numbers, and of what mixtures of experts make of them.

use super::super::tests::*;
use super::super::*;
use crate::kernel::philox;

#[test]
fn drawn_numbers_are_distributed_as_they_should_be() {
    let count = 100_000;
    let drawn = |law, key| read(&Drawn { key, law }, count, &Memory(Vec::new()));
    let mean = |values: &[f32], of: fn(f64) -> f64| {
        values.iter().map(|value| of(f64::from(*value))).sum::<f64>() / values.len() as f64
    };
    let normal = drawn(Law::Normal, [1, 2]);
    // Moments of the normal distribution: 0, 1, 0, 3, within five standard errors.
    for (moment, expected, error) in [(1, 0.0, 1.0), (2, 1.0, 1.5), (3, 0.0, 3.9), (4, 3.0, 9.8)] {
        let found = normal.iter().map(|value| f64::from(*value).powi(moment)).sum::<f64>() / count as f64;
        assert!((found - expected).abs() < 5.0 * error / (count as f64).sqrt(), "{moment}: {found}");
    }
    // Neighbours are independent, also the two of a pair.
    for further in [1, 2, 3, 4] {
        let products = normal.iter().zip(&normal[further..]).map(|(a, b)| f64::from(a * b));
        let mean = products.sum::<f64>() / count as f64;
        assert!(mean.abs() < 5.0 / (count as f64).sqrt(), "{further}: {mean}");
    }
    let bound = 0.125;
    let uniform = drawn(Law::Uniform { bound }, [1, 2]);
    assert!(uniform.iter().all(|value| value.abs() <= 0.125));
    assert!(mean(&uniform, |value| value).abs() < 5.0 * bound / (3.0 * count as f64).sqrt());
    let variance = mean(&uniform, |value| value * value);
    assert!((variance / (bound * bound / 3.0) - 1.0).abs() < 0.02, "{variance}");
    assert_ne!(normal, drawn(Law::Normal, [1, 3]));
    assert_ne!(draw_key(1, "a"), draw_key(2, "a"));
    assert_ne!(draw_key(1, "a"), draw_key(1, "b"));
}

/// The formula a second time, by another order of its steps.
#[test]
fn normal_numbers_are_those_of_box_and_muller() {
    let drawn = read(&Drawn { key: [7, 8], law: Law::Normal }, 12, &Memory(Vec::new()));
    for (block, four) in (0..).zip(drawn.chunks_exact(4)) {
        let words = philox::philox4x32([block, 0, 0, 0], [7, 8]);
        for (pair, words) in four.chunks_exact(2).zip(words.chunks_exact(2)) {
            let (x, y) = (f64::from(pair[0]), f64::from(pair[1]));
            let u = (-(x * x + y * y) / 2.0).exp();
            assert!((u - f64::from(words[0]) / 2f64.powi(32)).abs() < 1e-6, "{words:?}");
            let turn = (y.atan2(x) / std::f64::consts::TAU).rem_euclid(1.0);
            assert!((turn - f64::from(words[1]) / 2f64.powi(32)).abs() < 1e-6, "{words:?}");
        }
    }
}

#[test]
fn noise_is_added_before_the_factor() {
    let values = numbers(1000, 4);
    let memory = Memory(vec![encoded(Float::BF16, &values)]);
    let of = Floats { input: 0, float: Float::BF16 };
    let drawn = read(&Drawn { key: [3, 4], law: Law::Normal }, 1000, &memory);
    let noisy = Noisy { of, noise: Some((0.01, [3, 4])), factor: 0.5 };
    let expected: Vec<f32> = values.iter().zip(&drawn).map(|(x, z)| (x + 0.01 * z) * 0.5).collect();
    assert_eq!(read(&noisy, 1000, &memory), expected);
    let scaled = Noisy { of, noise: None, factor: 3.0 };
    assert_eq!(read(&scaled, 1000, &memory), values.iter().map(|x| x * 3.0).collect::<Vec<_>>());
}

#[test]
fn gates_are_the_directions_of_their_tokens() {
    let columns = 7;
    let table = numbers(20 * columns, 5);
    let memory = Memory(vec![encoded(Float::BF16, &table)]);
    let tokens = |tokens: &[(u64, u32)]| tokens.iter().copied().collect();
    let experts = vec![
        PromptTokens { positive: tokens(&[(3, 1), (7, 2)]), negative: tokens(&[]) },
        PromptTokens { positive: tokens(&[(0, 4)]), negative: tokens(&[(19, 1), (3, 1)]) },
        PromptTokens::default(),
    ];
    let embedding = Floats { input: 0, float: Float::BF16 };
    let made = Gates { embedding, columns: columns as u64, experts: experts.clone() };
    let unit = |vector: Vec<f64>| -> Vec<f64> {
        let length = vector.iter().map(|x| x * x).sum::<f64>().sqrt().max(1e-8);
        vector.iter().map(|x| x / length).collect()
    };
    let direction = |tokens: &std::collections::BTreeMap<u64, u32>| {
        let column = |c: usize| {
            let term = |(t, n): (&u64, &u32)| f64::from(*n) * f64::from(table[*t as usize * columns + c]);
            tokens.iter().map(term).sum()
        };
        unit((0..columns).map(column).collect())
    };
    let expected: Vec<f64> = experts
        .iter()
        .flat_map(|expert| {
            let positive = direction(&expert.positive);
            if expert.negative.is_empty() {
                return positive;
            }
            let negative = direction(&expert.negative);
            unit(positive.iter().zip(negative).map(|(p, n)| p - n).collect())
        })
        .collect();
    let found = read(&made, 3 * columns as u64, &memory);
    for (found, expected) in found.iter().zip(&expected) {
        assert!((f64::from(*found) - expected).abs() <= 1e-7 * expected.abs() + 1e-12, "{found} {expected}");
    }
}

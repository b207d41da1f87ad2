//! The tests of adapters, added and directed, and of what they move.

use super::super::tests::*;
use super::super::*;

/// An adapter's parts and the elements that it makes, from the definition: experts, rows, columns and rank.
fn adapted([experts, rows, columns, rank]: [usize; 4], transposed: bool) -> (Adapted, Memory, Vec<f32>) {
    let (inward, outward) = if transposed { (rows, columns) } else { (columns, rows) };
    let (weight, scale) = (numbers(experts * rows * columns, 1), 0.3);
    let (a, b) = (numbers(experts * rank * inward, 2), numbers(outward * rank * experts, 3));
    let floats = |input, float| Floats { input, float };
    let made = Adapted {
        weight: floats(0, Float::BF16),
        a: floats(1, Float::F32),
        b: floats(2, Float::F16),
        experts: experts as u64,
        rows: rows as u64,
        columns: columns as u64,
        rank: rank as u64,
        scale,
        transposed,
    };
    let memory =
        Memory(vec![encoded(Float::BF16, &weight), encoded(Float::F32, &a), encoded(Float::F16, &b)]);
    let element = |i: usize| {
        let (expert, row, column) = (i / columns / rows, i / columns % rows, i % columns);
        let (out, into) = if transposed { (column, row) } else { (row, column) };
        let terms = (0..rank)
            .map(|k| b[(out * rank + k) * experts + expert] * a[(expert * rank + k) * inward + into]);
        weight[i] + scale * terms.fold(0.0, |sum, term| sum + term)
    };
    let expected = (0..experts * rows * columns).map(element).collect();
    (made, memory, expected)
}

#[test]
fn adapters_are_added_in_the_order_of_their_ranks() {
    for transposed in [false, true] {
        for sizes in [[1, 7, 9, 4], [1, 1, 1, 1], [1, 13, 70, 9], [1, 5, 16, 33], [3, 6, 19, 2]] {
            let (made, memory, expected) = adapted(sizes, transposed);
            assert_eq!(read(&made, expected.len() as u64, &memory), expected, "{sizes:?} {transposed}");
        }
    }
    let [made, other] = [false, true].map(|transposed| adapted([1, 7, 9, 4], transposed).0.to_string());
    assert_eq!(made, "input 0 + 0.3 · input 2 · input 1, of rank 4");
    assert_eq!(other, "input 0 + 0.3 · input 1 · input 2, of rank 4");
    let experts = adapted([3, 6, 19, 2], true).0.to_string();
    assert!(experts.ends_with("of rank 2 for each of 3 experts"), "{experts}");
}

/// Operands go past what is in memory at a time: long rows, columns whose factor is no single block, and many rows.
#[test]
fn large_operands_are_cut() {
    for (sizes, transposed) in [
        ([1, 2, (1 << 20) + 37, 1], false),
        ([1, 3, 70_001, 17], false),
        ([1, 70_001, 3, 17], true),
        ([1, 300_001, 4, 5], false),
    ] {
        let (made, memory, expected) = adapted(sizes, transposed);
        let mut bytes = vec![0; expected.len() * 4];
        made.read(0..expected.len() as u64, &mut bytes, &mut &memory).unwrap();
        let values = decoded(Float::F32, &bytes, expected.len());
        let wrong = values.iter().zip(&expected).position(|(value, expected)| value != expected);
        assert_eq!(wrong, None, "{sizes:?} {transposed}");
    }
}

#[test]
fn directions_get_their_magnitudes() {
    for (rows, columns) in [(7usize, 9usize), (1, 1), (3, 70_001), (40_000, 3)] {
        for by_column in [false, true] {
            let mut direction = numbers(rows * columns, 5);
            let norms = if by_column { columns } else { rows };
            // A row or column of zeros.
            (0..rows * columns)
                .filter(|i| (if by_column { i % columns } else { i / columns }) == norms / 2)
                .for_each(|i| direction[i] = 0.0);
            let magnitude: Vec<f32> = (0..norms).map(|i| i as f32 * 0.5 - 1.0).collect();
            let mut squares = vec![0.0f64; norms];
            for (i, value) in direction.iter().enumerate() {
                let norm = if by_column { i % columns } else { i / columns };
                squares[norm] += f64::from(*value) * f64::from(*value);
            }
            let element = |i: usize| {
                let norm = if by_column { i % columns } else { i / columns };
                // Squares of these numbers are added up exactly, in any order.
                let factor = f64::from(magnitude[norm]) / squares[norm].sqrt();
                if squares[norm] == 0.0 { 0.0 } else { direction[i] * factor as f32 }
            };
            let expected: Vec<f32> = (0..rows * columns).map(element).collect();
            let memory = Memory(vec![encoded(Float::BF16, &direction), encoded(Float::F32, &magnitude)]);
            let floats = |input, float| Floats { input, float };
            let (direction, magnitude) = (floats(0, Float::BF16), floats(1, Float::F32));
            let made = Directed::new(direction, magnitude, rows as u64, columns as u64, by_column);
            assert_eq!(read(&made, (rows * columns) as u64, &memory), expected, "{rows} × {columns}");
            assert_eq!(made.kept_bytes(), 4 * norms as u64);
        }
    }
}

#[test]
fn biases_are_moved() {
    let (of, by) = (numbers(100, 1), numbers(100, 2));
    let memory = Memory(vec![encoded(Float::F16, &of), encoded(Float::BF16, &by)]);
    let [of_floats, by_floats] =
        [(0, Float::F16), (1, Float::BF16)].map(|(input, float)| Floats { input, float });
    let made = Shifted { of: of_floats, by: by_floats, scale: 0.7 };
    let expected: Vec<f32> = of.iter().zip(&by).map(|(of, by)| of + 0.7 * by).collect();
    assert_eq!(read(&made, 100, &memory), expected);
    assert_eq!(made.to_string(), "input 0 + 0.7 · input 1");
}

//! Every kind of input against its formula, however it is cut.

use super::*;
use crate::dtype::{Dtype, encode};

/// Inputs in memory, of any types.
struct Memory(Vec<Vec<u8>>);

impl ReadElements for Memory {
    fn bytes(&mut self, input: usize, start: u64, into: &mut [u8]) -> Result<()> {
        into.copy_from_slice(&self.0[input][start as usize..][..into.len()]);
        Ok(())
    }
}

fn encoded(float: Float, values: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0; values.len() * float.bytes()];
    encode(float, values, &mut bytes);
    bytes
}

fn decoded(float: Float, bytes: &[u8]) -> Vec<f32> {
    let mut values = vec![0.0; bytes.len() / float.bytes()];
    decode(float, bytes, &mut values);
    values
}

/// Numbers that bfloat16 holds.
fn numbers(count: usize, seed: u32) -> Vec<f32> {
    let number = |i: u32| ((i * 37 + seed * 11) % 101) as f32 * 0.25 - 12.0;
    (0..count as u32).map(number).collect()
}

/// All elements at once, which every way to cut them must give too.
fn read(made: &dyn Made, elements: u64, from: &mut Memory) -> Vec<f32> {
    let float = made.float();
    let mut whole = vec![0; elements as usize * float.bytes()];
    made.read(0..elements, &mut whole, from).unwrap();
    for step in [1, 2, 3, 5, 7, 16, elements.max(2) - 1] {
        let mut first = 0;
        while first < elements {
            let end = elements.min(first + step);
            let mut part = vec![0xa5; (end - first) as usize * float.bytes()];
            made.read(first..end, &mut part, from).unwrap();
            assert!(part == whole[first as usize * float.bytes()..][..part.len()], "{made}: {first}..{end}");
            first = end;
        }
    }
    decoded(float, &whole)
}

#[test]
fn rows_are_picked_averaged_and_filled() {
    let columns = 5;
    let (first, second) = (numbers(6 * columns, 1), numbers(4 * columns, 2));
    let mut memory = Memory(vec![encoded(Float::BF16, &first), encoded(Float::F32, &second)]);
    let of = vec![Floats { input: 0, float: Float::BF16 }, Floats { input: 1, float: Float::F32 }];
    let rows = [
        Row::Picked { of: 0, row: 2 },
        Row::Picked { of: 0, row: 3 },
        Row::Picked { of: 0, row: 4 },
        Row::Zero,
        Row::Zero,
        Row::Picked { of: 1, row: 0 },
        Row::Picked { of: 0, row: 0 },
        Row::Mean(vec![(0, 5), (1, 3), (0, 1)]),
        Row::Picked { of: 0, row: 1 },
        Row::Picked { of: 0, row: 1 },
    ];
    let row = |of: usize, row: usize| &[&first, &second][of][row * columns..][..columns];
    let expected: Vec<f32> = rows
        .iter()
        .flat_map(|each| match each {
            Row::Picked { of, row: from } => row(*of, *from as usize).to_vec(),
            Row::Zero => vec![0.0; columns],
            Row::Mean(holders) => {
                let sum =
                    |i: usize| holders.iter().fold(0.0, |sum, (of, from)| sum + row(*of, *from as usize)[i]);
                (0..columns).map(|i| sum(i) / holders.len() as f32).collect()
            }
        })
        .collect();
    let elements = (rows.len() * columns) as u64;
    for float in [Float::F32, Float::BF16] {
        let made = Rows::new(of.clone(), columns as u64, float, rows.clone());
        assert_eq!(made.of(), [0, 1]);
        let rounded = decoded(float, &encoded(float, &expected));
        assert_eq!(read(&made, elements, &mut memory), rounded, "{float:?}");
        let name = float.name();
        assert_eq!(made.to_string(), format!("10 rows of 5 {name} from input 0, input 1"));
    }
}

#[test]
fn neighbouring_rows_are_read_at_once() {
    struct Counting(Memory, usize);
    impl ReadElements for Counting {
        fn bytes(&mut self, input: usize, start: u64, into: &mut [u8]) -> Result<()> {
            self.1 += 1;
            self.0.bytes(input, start, into)
        }
    }
    let of = vec![Floats { input: 0, float: Float::BF16 }];
    let rows = (10..90).map(|row| Row::Picked { of: 0, row }).chain([Row::Picked { of: 0, row: 3 }]);
    let made = Rows::new(of, 8, Float::BF16, rows);
    let mut counting = Counting(Memory(vec![encoded(Float::BF16, &numbers(100 * 8, 3))]), 0);
    let mut bytes = vec![0; 2 * 81 * 8 - 6];
    made.read(3..81 * 8, &mut bytes, &mut counting).unwrap();
    assert_eq!(counting.1, 2);
    assert_eq!(bytes[..2 * 80 * 8 - 6], counting.0.0[0][2 * (10 * 8 + 3)..2 * 90 * 8]);
}

#[test]
fn adapters_are_added_in_the_order_of_their_ranks() {
    let (rows, columns, rank) = (7, 9, 4);
    let (weight, scale) = (numbers(rows * columns, 1), 0.3);
    let (a, b) = (numbers(rank * columns, 2), numbers(rows * rank, 3));
    let floats = |input, float| Floats { input, float };
    let made = Adapted {
        weight: floats(0, Float::BF16),
        a: floats(1, Float::F32),
        b: floats(2, Float::F16),
        columns: columns as u64,
        rank: rank as u64,
        scale,
    };
    let mut memory =
        Memory(vec![encoded(Float::BF16, &weight), encoded(Float::F32, &a), encoded(Float::F16, &b)]);
    let element = |i: usize| {
        let (row, column) = (i / columns, i % columns);
        let terms = (0..rank).map(|k| b[row * rank + k] * a[k * columns + column]);
        weight[i] + scale * terms.fold(0.0, |sum, term| sum + term)
    };
    let expected: Vec<f32> = (0..rows * columns).map(element).collect();
    assert_eq!(read(&made, (rows * columns) as u64, &mut memory), expected);
    assert_eq!(made.to_string(), "input 0 + 0.3 · input 2 · input 1, of rank 4");
}

#[test]
fn blocks_have_their_scales() {
    let (rows, columns, block) = (5usize, 7usize, [2u64, 3]);
    let codes: Vec<u8> = (0..(rows * columns) as u32).map(|i| (i * 7) as u8).collect();
    let scales = [0.5f32, 1.0, 2.0, 0.25, 3.0, 1.5, 7.0, 0.125, 4.0];
    let mut memory = Memory(vec![codes.clone(), encoded(Float::F32, &scales)]);
    let of = Floats { input: 1, float: Float::F32 };
    let made = Scaled::new(0, Dtype::I8, of, columns as u64, block).unwrap();
    let expected: Vec<f32> = (0..rows * columns)
        .map(|i| f32::from(codes[i] as i8) * scales[i / columns / 2 * 3 + i % columns / 3])
        .collect();
    assert_eq!(read(&made, (rows * columns) as u64, &mut memory), expected);
    assert_eq!(made.to_string(), "input 0 (I8) · input 1 in blocks of 2 × 3");
    assert!(Scaled::new(0, Dtype::U32, of, 4, block).is_none());
}

/// Corners of both formats, from their definition.
#[test]
fn codes_of_float8_have_their_values() {
    let value = |format, code: u8| {
        let of = Floats { input: 1, float: Float::F32 };
        let made = Scaled::new(0, format, of, 1, [1, 1]).unwrap();
        read(&made, 1, &mut Memory(vec![vec![code], encoded(Float::F32, &[1.0])]))[0]
    };
    for (code, expected) in
        [(0x00, 0.0), (0x01, 0.001_953_125), (0x08, 0.015_625), (0x38, 1.0), (0x7e, 448.0), (0xbc, -1.5)]
    {
        assert_eq!(value(Dtype::F8_E4M3, code), expected, "{code:02x}");
    }
    for (code, expected) in [
        (0x01, 2f32.powi(-16)),
        (0x04, 2f32.powi(-14)),
        (0x3c, 1.0),
        (0x7b, 57344.0),
        (0xfc, f32::NEG_INFINITY),
    ] {
        assert_eq!(value(Dtype::F8_E5M2, code), expected, "{code:02x}");
    }
    assert!(value(Dtype::F8_E4M3, 0x7f).is_nan() && value(Dtype::F8_E5M2, 0x7d).is_nan());
}

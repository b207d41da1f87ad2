//! Every kind of input against its formula, however it is cut.

use super::*;
use crate::dtype::{Dtype, encode};
use crate::kernel::philox;

/// Inputs in memory, of any types.
pub(super) struct Memory(pub(super) Vec<Vec<u8>>);

impl ReadElements for &Memory {
    fn bytes(&mut self, input: usize, start: u64, into: &mut [u8]) -> Result<()> {
        into.copy_from_slice(&self.0[input][start as usize..][..into.len()]);
        Ok(())
    }
}

pub(super) fn encoded(float: Float, values: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0; values.len() * float.bytes()];
    encode(float, values, &mut bytes);
    bytes
}

pub(super) fn decoded(float: Float, bytes: &[u8], elements: usize) -> Vec<f32> {
    let mut values = vec![0.0; elements];
    decode(float, bytes, &mut values);
    values
}

/// Numbers that bfloat16 holds.
pub(super) fn numbers(count: usize, seed: u32) -> Vec<f32> {
    let number = |i: u32| ((i * 37 + seed * 11) % 101) as f32 * 0.25 - 12.0;
    (0..count as u32).map(number).collect()
}

/// All elements at once, which every way to cut them must give too, and threads that read at the same time.
pub(super) fn read(made: &dyn Made, elements: u64, from: &Memory) -> Vec<f32> {
    let float = made.float();
    let part = |range: Range<u64>| {
        let mut part = vec![0xa5; float.bytes_of(range.end - range.start) as usize];
        made.read(range, &mut part, &mut &*from).unwrap();
        part
    };
    let cut_by = |step: u64| -> Vec<u8> {
        let starts = (0..elements).step_by(step as usize);
        starts.flat_map(|start| part(start..elements.min(start + step))).collect()
    };
    let whole = part(0..elements);
    made.release();
    // Ranges of bits start at whole bytes.
    let unit = if float == Float::Bit { 8 } else { 1 };
    let fits = |step: &u64| elements / step < 20_000;
    for step in [1, 2, 3, 5, 7, 16, 1000, 33_000].map(|step| step * unit).into_iter().filter(fits) {
        assert!(cut_by(step) == whole, "{made}: by {step}");
        if step % 3 != 0 {
            made.release();
        }
    }
    let last = (elements.max(2) - 1) / unit * unit;
    assert!(part(last..elements) == whole[float.bytes_of(last) as usize..], "{made}: the last ones");
    made.release();
    std::thread::scope(|scope| {
        let steps = [elements, elements / 2 + 1, elements / 5 + 1, elements / 100 + 1];
        let read = steps.map(|step| scope.spawn(move || cut_by(step.next_multiple_of(unit))));
        read.into_iter().for_each(|read| assert!(read.join().unwrap() == whole, "{made}: by threads"));
    });
    decoded(float, &whole, elements as usize)
}

#[test]
fn rows_are_picked_averaged_and_filled() {
    let columns = 5;
    let (first, second) = (numbers(6 * columns, 1), numbers(4 * columns, 2));
    let memory = Memory(vec![encoded(Float::BF16, &first), encoded(Float::F32, &second)]);
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
        Row::Filler,
        Row::Zero,
        Row::Filler,
        Row::Filler,
    ];
    let row = |of: usize, row: usize| &[&first, &second][of][row * columns..][..columns];
    let elsewhere = |each: &Row| -> Vec<f32> {
        match each {
            Row::Picked { of, row: from } => row(*of, *from as usize).to_vec(),
            Row::Zero => vec![0.0; columns],
            Row::Mean(holders) => {
                let sum =
                    |i: usize| holders.iter().fold(0.0, |sum, (of, from)| sum + row(*of, *from as usize)[i]);
                (0..columns).map(|i| sum(i) / holders.len() as f32).collect()
            }
            Row::Filler => Vec::new(),
        }
    };
    let elements = (rows.len() * columns) as u64;
    for float in [Float::F32, Float::BF16] {
        // What is averaged over all is what is stored.
        let real: Vec<Vec<f32>> = rows.iter().map(elsewhere).filter(|row| !row.is_empty()).collect();
        let real: Vec<Vec<f32>> =
            real.iter().map(|row| decoded(float, &encoded(float, row), columns)).collect();
        let mean = |i: usize| real.iter().map(|row| f64::from(row[i])).sum::<f64>() / real.len() as f64;
        let filler: Vec<f32> = (0..columns).map(|i| mean(i) as f32).collect();
        let or_filler = |row: Vec<f32>| if row.is_empty() { filler.clone() } else { row };
        let expected: Vec<f32> = rows.iter().map(elsewhere).flat_map(or_filler).collect();
        let made = Rows::new(of.clone(), columns as u64, float, rows.clone());
        assert_eq!(made.of(), [0, 1]);
        // Eight rows of the first and two of the second, and once more for those that fill up.
        assert_eq!(made.reads(), [(0, Some(2 * 8 * 5)), (1, Some(2 * 2 * 5))]);
        let rounded = decoded(float, &encoded(float, &expected), expected.len());
        assert_eq!(read(&made, elements, &memory), rounded, "{float:?}");
        let name = float.name();
        assert_eq!(made.to_string(), format!("14 rows of 5 {name} from input 0, input 1"));
    }
}

#[test]
fn neighbouring_rows_are_read_at_once() {
    struct Counting(Memory, usize);
    impl ReadElements for Counting {
        fn bytes(&mut self, input: usize, start: u64, into: &mut [u8]) -> Result<()> {
            self.1 += 1;
            (&self.0).bytes(input, start, into)
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
fn runs_of_rows_are_the_rows_one_by_one() {
    let of = vec![Floats { input: 0, float: Float::BF16 }, Floats { input: 1, float: Float::BF16 }];
    let memory = Memory(vec![encoded(Float::BF16, &numbers(60, 1)), encoded(Float::BF16, &numbers(60, 2))]);
    let runs = [(0, 4, 5), (1, 0, 12), (0, 0, 0), (0, 9, 1), (0, 10, 2)];
    let by_runs = Rows::of_runs(
        of.clone(),
        5,
        Float::BF16,
        runs.map(|(of, row, rows)| (Row::Picked { of, row }, rows)),
    );
    let one_by_one = runs
        .into_iter()
        .flat_map(|(of, row, rows)| (row..row + rows).map(move |row| Row::Picked { of, row }));
    let one_by_one = Rows::new(of, 5, Float::BF16, one_by_one);
    assert_eq!(read(&by_runs, 20 * 5, &memory), read(&one_by_one, 20 * 5, &memory));
}

#[test]
fn blocks_have_their_scales() {
    let (rows, columns, block) = (5usize, 7usize, [2u64, 3]);
    let codes: Vec<u8> = (0..(rows * columns) as u32).map(|i| (i * 7) as u8).collect();
    let scales = [0.5f32, 1.0, 2.0, 0.25, 3.0, 1.5, 7.0, 0.125, 4.0];
    let memory = Memory(vec![codes.clone(), encoded(Float::F32, &scales)]);
    let of = Floats { input: 1, float: Float::F32 };
    let made = Scaled::new(0, Dtype::I8, of, columns as u64, block).unwrap();
    let expected: Vec<f32> = (0..rows * columns)
        .map(|i| f32::from(codes[i] as i8) * scales[i / columns / 2 * 3 + i % columns / 3])
        .collect();
    assert_eq!(read(&made, (rows * columns) as u64, &memory), expected);
    assert_eq!(made.to_string(), "input 0 (I8) · input 1 in blocks of 2 × 3");
    assert!(Scaled::new(0, Dtype::U32, of, 4, block).is_none());
}

#[test]
fn scales_may_be_exponents_or_missing() {
    let codes: Vec<u8> = (0..12).map(|i| i * 17).collect();
    let exponents = vec![127, 128, 0, 255, 1, 254];
    let memory = Memory(vec![codes.clone(), exponents]);
    let made = Scaled::new(0, Dtype::I8, Scales::Exponents(1), 4, [1, 2]).unwrap();
    let scales = [1.0, 2.0, 2f32.powi(-127), f32::NAN, 2f32.powi(-126), 2f32.powi(127)];
    let expected: Vec<f32> = (0..12).map(|i| f32::from(codes[i] as i8) * scales[i / 2]).collect();
    assert_same(&read(&made, 12, &memory), &expected);
    let bare = Scaled::new(0, Dtype::F8_E4M3, Scales::One, 4, [3, 4]).unwrap();
    let memory = Memory(vec![vec![0x38; 12]]);
    assert_eq!(read(&bare, 12, &memory), [1.0; 12]);
    assert_eq!((bare.of(), bare.to_string()), (vec![0], "input 0 (F8_E4M3)".into()));
}

/// Every code of four bits, in two matrices of three rows and 64 columns, against the definition.
#[test]
fn microscaled_codes_are_read_across() {
    let (experts, rows, columns) = (2_usize, 3_usize, 64_usize);
    let codes: Vec<u8> = (0..experts * rows * columns / 2).map(|i| (i * 37 + i / 7) as u8).collect();
    let exponents: Vec<u8> = (0..experts * rows * columns / 32).map(|i| 120 + i as u8).collect();
    let memory = Memory(vec![codes.clone(), exponents.clone()]);
    let magnitudes = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    let mut expected = Vec::new();
    for expert in 0..experts {
        for column in 0..columns {
            for row in 0..rows {
                let at = (expert * rows + row) * columns + column;
                let code = codes[at / 2] >> (at % 2 * 4) & 15;
                let sign = if code & 8 == 0 { 1.0 } else { -1.0 };
                let scale = 2f32.powi(i32::from(exponents[at / 32]) - 127);
                expected.push(sign * magnitudes[usize::from(code & 7)] * scale);
            }
        }
    }
    let made = Microscaled::new(0, 1, rows as u64, columns as u64);
    assert_same(&read(&made, expected.len() as u64, &memory), &expected);
    assert_eq!(made.to_string(), "input 0 (F4) · input 1, each 3 × 64 transposed");
}

/// Corners of both formats, from their definition.
#[test]
fn codes_of_float8_have_their_values() {
    let value = |format, code: u8| {
        let of = Floats { input: 1, float: Float::F32 };
        let made = Scaled::new(0, format, of, 1, [1, 1]).unwrap();
        read(&made, 1, &Memory(vec![vec![code], encoded(Float::F32, &[1.0])]))[0]
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

/// Numbers of any magnitude, and some that are none or not finite.
pub(super) fn odd_numbers(count: usize, seed: u32) -> Vec<f32> {
    let number = |i: u32| match (i * 7 + seed) % 23 {
        0 => f32::NAN,
        1 => f32::INFINITY,
        2 => f32::NEG_INFINITY,
        3 => f32::MAX,
        4 => -0.0,
        _ => ((i * 29 + seed * 31) % 97) as f32 * 0.01 - 0.5,
    };
    (0..count as u32).map(number).collect()
}

pub(super) fn floats(input: usize, float: Float) -> Floats {
    Floats { input, float }
}

/// Equal bits, but for the kind of NaN and the sign of zero.
pub(super) fn assert_same(ours: &[f32], expected: &[f32]) {
    assert_eq!(ours.len(), expected.len());
    for (i, (ours, expected)) in ours.iter().zip(expected).enumerate() {
        let same = *ours == *expected || (ours.is_nan() && expected.is_nan());
        assert!(same, "element {i}: {ours:e} is not {expected:e}");
    }
}

#[test]
fn zeros_are_zero() {
    assert!(read(&Zeros, 1001, &Memory(Vec::new())).iter().all(|x| *x == 0.0));
    assert_eq!((Zeros.to_string().as_str(), Zeros.float(), Zeros.of()), ("zeros", Float::Bit, Vec::new()));
}

#[test]
fn the_variance_is_taken_over_the_models() {
    let elements = 5003;
    let types = [Float::BF16, Float::F32, Float::F16, Float::BF16];
    let values: Vec<Vec<f32>> = (0..4).map(|i| numbers(elements, i * i)).collect();
    let memory = Memory(types.iter().zip(&values).map(|(float, x)| encoded(*float, x)).collect());
    for count in 1..4 {
        let models = (1..=count).map(|i| floats(i, types[i])).collect();
        let made = Spread::new(floats(0, types[0]), models);
        let element = |i: usize| {
            let deltas: Vec<f32> = (1..=count).map(|model| values[model][i] - values[0][i]).collect();
            let share = 1.0 / count as f32;
            let apart = || deltas.iter().map(|delta| delta - deltas[0]);
            let mean = apart().fold(0.0, |sum, apart| sum + apart) * share;
            let squares = apart().map(|apart| (apart - mean) * (apart - mean));
            let exact_mean = deltas.iter().map(|delta| f64::from(*delta)).sum::<f64>() / count as f64;
            let exact = deltas.iter().map(|delta| (f64::from(*delta) - exact_mean).powi(2)).sum::<f64>();
            let variance = squares.fold(0.0, |sum, square| sum + square) * share;
            assert!((f64::from(variance) - exact / count as f64).abs() < 1e-4);
            variance
        };
        let expected: Vec<f32> = (0..elements).map(element).collect();
        assert_same(&read(&made, elements as u64, &memory), &expected);
        assert_eq!(expected.iter().all(|x| *x == 0.0), count == 1);
    }
    let made = Spread::new(floats(0, Float::BF16), vec![floats(2, Float::F16), floats(1, Float::F32)]);
    assert_eq!(made.to_string(), "variance of input 2, input 1 around input 0");
}

/// The mean of three or seven equal numbers is not always that number in f32.
#[test]
fn equal_task_vectors_have_no_variance() {
    let elements = 5003;
    let base = vec![0.0; elements];
    let x: Vec<f32> = (0..elements).map(|i| (1.0 + i as f32 / elements as f32).sqrt()).collect();
    let memory = Memory([base, x].iter().map(|values| encoded(Float::F32, values)).collect());
    for count in 1..=12 {
        let made = Spread::new(floats(0, Float::F32), vec![floats(1, Float::F32); count]);
        assert!(read(&made, elements as u64, &memory).iter().all(|x| *x == 0.0), "{count} models");
    }
}

#[test]
fn a_mask_takes_the_model_or_the_base() {
    let elements = 777;
    let (base, x) = (odd_numbers(elements, 3), odd_numbers(elements, 14));
    let bits: Vec<bool> = (0..elements).map(|i| i * i % 7 < 3).collect();
    // Each type with a number in its last byte, one in its first, and what is 0 in spite of a bit.
    let ones = |one: &[u8], zero: &[u8]| {
        bits.iter().flat_map(|bit| if *bit { one } else { zero }.to_vec()).collect()
    };
    let masks: [(Dtype, Vec<u8>); 7] = [
        (Dtype::BOOL, ones(&[1], &[0])),
        (Dtype::I8, ones(&[0x80], &[0])),
        (Dtype::I64, ones(&[0, 0, 0, 0, 0, 1, 0, 0], &[0; 8])),
        (Dtype::BF16, ones(&[0, 0x3f], &[0, 0x80])),
        (Dtype::F16, ones(&[1, 0x80], &[0, 0x80])),
        (Dtype::F32, ones(&[0, 0, 0x80, 0], &[0, 0, 0, 0x80])),
        (Dtype::F8_E5M2, ones(&[0x81], &[0x80])),
    ];
    for (dtype, mask) in masks {
        for types in [[Float::F32, Float::F32], [Float::BF16, Float::BF16], [Float::BF16, Float::F32]] {
            let stored: [Vec<u8>; 2] = [encoded(types[0], &base), encoded(types[1], &x)];
            let values = [decoded(types[0], &stored[0], elements), decoded(types[1], &stored[1], elements)];
            let [base_bytes, x_bytes] = stored;
            let memory = Memory(vec![base_bytes, x_bytes, mask.clone()]);
            let made = Masked::new(floats(0, types[0]), floats(1, types[1]), 2, dtype).unwrap();
            let dropped = |i: usize| values[0][i] + 0.0 * (values[1][i] - values[0][i]);
            let choose = |i: usize| if bits[i] { values[1][i] } else { dropped(i) };
            let expected: Vec<f32> = (0..elements).map(choose).collect();
            assert!(expected.iter().zip(&bits).any(|(x, bit)| x.is_nan() && !bit));
            assert_same(&read(&made, elements as u64, &memory), &expected);
            assert_eq!(made.float(), if types[0] == types[1] { types[0] } else { Float::F32 });
        }
    }
    let made = Masked::new(floats(0, Float::F32), floats(1, Float::F32), 2, Dtype::BOOL).unwrap();
    assert_eq!(made.to_string(), "input 1 where input 2 (BOOL) is not 0, else input 0");
    let refused = Masked::new(floats(0, Float::F32), floats(1, Float::F32), 2, Dtype::C64);
    assert!(refused.is_none());
}

#[test]
fn averages_by_importance_go_around_the_first_model() {
    let elements = 3 * (1 << 15) + 77;
    let types = [Float::BF16, Float::F32, Float::F16];
    let importance_types = [Float::F32, Float::BF16, Float::F32];
    let (weights, floor) = ([0.3, 1.0, 0.7f32], 0.05f32);
    let important = |seed| numbers(elements, seed).into_iter().map(f32::abs).collect::<Vec<f32>>();
    let models: Vec<Vec<u8>> =
        (0..).zip(types).map(|(i, float)| encoded(float, &odd_numbers(elements, i + 3))).collect();
    let mut files: Vec<Vec<u8>> =
        (0..).zip(importance_types).map(|(i, float)| encoded(float, &important(i + 9))).collect();
    let x: Vec<_> = models.iter().zip(types).map(|(x, float)| decoded(float, x, elements)).collect();
    let f: Vec<_> =
        files.iter().zip(importance_types).map(|(f, float)| decoded(float, f, elements)).collect();
    assert!(f[0].iter().any(|f| *f < floor) && f[0].iter().any(|f| *f > floor));
    let average = |p: &dyn Fn(usize, usize) -> f32| -> Vec<f32> {
        let element = |i: usize| {
            let others = || (1..3).map(|m| p(m, i));
            let sum = others().zip(1..).fold(0.0, |sum, (p, m)| sum + p * (x[m][i] - x[0][i]));
            x[0][i] + sum / others().fold(p(0, i), |sum, p| sum + p)
        };
        (0..elements).map(element).collect()
    };
    let weighed = |with: bool| {
        let of = |m: usize| Weighed {
            model: floats(m, types[m]),
            weight: weights[m],
            importance: with.then(|| Stated {
                values: floats(3 + m, importance_types[m]),
                name: format!("file {m}").into(),
            }),
        };
        Fisher::new((0..3).map(of).collect(), floor)
    };
    let memory = Memory(models.iter().chain(&files).cloned().collect());
    let expected = average(&|m, i| weights[m] * f[m][i].max(floor));
    assert_same(&read(&weighed(true), elements as u64, &memory), &expected);
    assert_same(&read(&weighed(false), elements as u64, &memory), &average(&|m, _| weights[m]));
    let shown = "average of input 0 by 0.3 · input 3, input 1 by 1 · input 4, input 2 by 0.7 · input 5";
    assert_eq!(weighed(true).to_string(), shown);
    assert_eq!(weighed(true).of(), [0, 1, 2, 3, 4, 5]);
    // What is no importance is refused wherever it stands.
    for wrong in [-1e-30, f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        files[2][4 * 40_000..][..4].copy_from_slice(&wrong.to_le_bytes());
        let memory = Memory(models.iter().chain(&files).cloned().collect());
        let mut into = vec![0; 4 * 20_000];
        let refusal = weighed(true).read(30_000..50_000, &mut into, &mut &memory).unwrap_err();
        assert!(refusal.message.contains("file 2: element 40000 is "), "{refusal}");
        weighed(true).read(0..20_000, &mut into, &mut &memory).unwrap();
    }
}

/// The divergence of a row from its formula, plainly; or by its series, which holds where the rows are nearly equal.
fn divergence(base: &[f32], x: &[f32], near: bool) -> f64 {
    if base.iter().chain(x).any(|x| !x.is_finite()) {
        return f64::NAN;
    }
    let softmax = |row: &[f32]| {
        let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let powers: Vec<f64> = row.iter().map(|x| libm::exp(f64::from(*x) - f64::from(largest))).collect();
        let sum: f64 = powers.iter().sum();
        powers.into_iter().map(|power| power / sum + 1e-8).collect::<Vec<f64>>()
    };
    let terms = softmax(x).into_iter().zip(softmax(base)).map(|(p, q)| {
        let t = (p - q) / q;
        let series = q * t * t * (1.0 / 2.0 - t / 6.0 + t * t / 12.0 - t * t * t / 20.0);
        if near { series } else { p * libm::log(p / q) }
    });
    terms.sum::<f64>().max(0.0)
}

fn assert_importance(types: [Float; 2], columns: usize, base: &[f32], x: &[f32], near: bool) {
    let stored = [encoded(types[0], base), encoded(types[1], x)];
    let base = decoded(types[0], &stored[0], base.len());
    let x = decoded(types[1], &stored[1], base.len());
    let made = Importance::new(floats(0, types[0]), floats(1, types[1]), columns as u64, base.len() as u64);
    let read = read(&made, base.len() as u64, &Memory(stored.into()));
    let rows = base.chunks(columns).zip(x.chunks(columns));
    for (row, ((base, x), read)) in rows.zip(read.chunks(columns)).enumerate() {
        let divergence = divergence(base, x, near);
        for ((base, x), read) in base.iter().zip(x).zip(read) {
            let exact = f64::from((x - base).abs()) * divergence;
            let read = f64::from(*read);
            let slack = if near { 0.0 } else { 1e-13 * f64::from((x - base).abs()) };
            let close = (read - exact).abs() <= exact * 3e-7 + slack;
            let odd = (read.is_nan() && exact.is_nan()) || (read == f64::INFINITY && exact > 3e38);
            assert!(close || odd, "row {row} of {columns}: {read:e}, not {exact:e}");
        }
    }
}

#[test]
fn importance_is_the_change_times_the_rows_divergence() {
    let (base, x) = (numbers(9 * 1001, 3), numbers(9 * 1001, 8));
    let scaled = |x: &[f32], by: f32| x.iter().map(|x| x * by).collect::<Vec<f32>>();
    for columns in [1, 3, 7, 9, 13, 77, 1001, 9 * 1001] {
        assert_importance([Float::BF16, Float::BF16], columns, &base, &x, false);
        assert_importance([Float::F32, Float::BF16], columns, &scaled(&base, 0.01), &scaled(&x, 0.02), false);
        // Of differences so large that only a few elements of a row count.
        assert_importance([Float::F32, Float::F32], columns, &scaled(&base, 60.0), &scaled(&x, 60.0), false);
        assert_importance(
            [Float::F32, Float::F32],
            columns,
            &odd_numbers(9009, 2),
            &odd_numbers(9009, 9),
            false,
        );
    }
    let row = numbers(40_000 * 2, 5);
    assert_importance([Float::BF16, Float::F16], 40_000, &row, &scaled(&row, 0.9), false);
}

/// Rows that differ by little, whose terms of the divergence cancel in the formula as it is written.
#[test]
fn importance_of_small_changes_does_not_cancel() {
    let base: Vec<f32> = numbers(6000, 3).iter().map(|x| x * 0.003).collect();
    for change in [3e-3, 1e-4, 1e-5] {
        let x: Vec<f32> = base.iter().zip(numbers(6000, 77)).map(|(base, by)| base + by * change).collect();
        assert_importance([Float::F32, Float::F32], 3000, &base, &x, true);
        assert_importance([Float::F32, Float::F32], 6000, &base, &x, true);
    }
    assert_importance([Float::BF16, Float::BF16], 1500, &base, &base, true);
}

/// A row of which no worker can hold all, with its largest elements at its ends.
#[test]
fn importance_of_a_huge_row_is_the_same_in_pieces() {
    let columns = 3_000_001;
    let mut base: Vec<f32> = numbers(columns, 3).iter().map(|x| x * 0.05).collect();
    (base[0], base[columns - 1]) = (9.0, 10.0);
    let x: Vec<f32> = base.iter().zip(numbers(columns, 4)).map(|(base, by)| base + by * 0.002).collect();
    assert_importance([Float::F32, Float::F32], columns, &base, &x, false);
}

/// What a mask by ranks keeps, by sorting every vector and drawing for each element.
fn kept_by_ranks(
    base: &[f32],
    x: &[f32],
    vectors: Vectors,
    (density, epsilon): (f64, f64),
    key: [u32; 2],
) -> Vec<f32> {
    let (len, stride) = (vectors.len as usize, vectors.stride as usize);
    // NaN is above infinity.
    let magnitude = |(x, base): (&f32, &f32)| if (x - base).is_nan() { f32::NAN } else { (x - base).abs() };
    let magnitudes: Vec<f32> = x.iter().zip(base).map(magnitude).collect();
    let mut kept = vec![0.0; x.len()];
    for slab in 0..x.len() / (len * stride) {
        for first in 0..stride {
            let mut order: Vec<usize> = (0..len).map(|i| (slab * len + i) * stride + first).collect();
            order.sort_by(|a, b| magnitudes[*a].total_cmp(&magnitudes[*b]).then(a.cmp(b)));
            for (rank, i) in order.into_iter().enumerate() {
                let q = if len == 1 { 0.5 } else { rank as f64 / (len - 1) as f64 };
                let p = (density - epsilon) + 2.0 * epsilon * q;
                let limit = (p * 4_294_967_296.0).round().min(f64::from(u32::MAX)) as u32;
                kept[i] = f32::from(u8::from(philox::keeps(i as u64, key, limit)));
            }
        }
    }
    kept
}

fn assert_ranks(float: Float, base: &[f32], x: &[f32], vectors: Vectors, shares: (f64, f64)) {
    let stored = [encoded(float, base), encoded(float, x)];
    let [base, x] = stored.each_ref().map(|stored| decoded(float, stored, base.len()));
    let key = [vectors.len as u32, base.len() as u32];
    let both = [floats(0, float), floats(1, float)];
    let made = Ranks::new(both, vectors, base.len() as u64, shares.0, shares.1, key);
    let expected = kept_by_ranks(&base, &x, vectors, shares, key);
    let read = read(&made, base.len() as u64, &Memory(stored.into()));
    let differ = read.iter().zip(&expected).position(|(read, expected)| read != expected);
    assert_eq!(differ, None, "{made}");
}

/// Numbers of normal distribution, nearly.
pub(super) fn random(count: usize, seed: u32) -> Vec<f32> {
    let uniform = |i: usize| {
        let words = philox::philox4x32([i as u32, 0, 0, 77], [seed, 5]);
        words.iter().map(|word| f64::from(*word) / 2f64.powi(32) - 0.5).sum::<f64>() as f32
    };
    (0..count).map(uniform).collect()
}

#[test]
fn masks_by_ranks_are_those_of_sorted_vectors() {
    // 15,015 = 3 · 5 · 7 · 11 · 13.
    let elements = 15_015;
    let shapes: [&[usize]; 9] = [
        &[15_015],
        &[15_015, 1],
        &[5005, 3],
        &[143, 105],
        &[3, 5005],
        &[1, 15_015],
        &[5, 7, 429],
        &[3, 455, 11],
        &[3, 5, 11, 91],
    ];
    let small = |x: &[f32], by: &[f32], scale: f32| -> Vec<f32> {
        x.iter().zip(by).map(|(x, by)| x + by * scale).collect()
    };
    let base: Vec<f32> = random(elements, 1).iter().map(|x| x * 0.05).collect();
    let by = random(elements, 2);
    let sparse: Vec<f32> = by.iter().map(|x| if x.abs() < 0.3 { 0.0 } else { *x }).collect();
    let two: Vec<f32> = by.iter().map(|x| if *x < 0.1 { 1.0 } else { -2.0 }).collect();
    // All in one bin but for one.
    let mut close: Vec<f32> = by.iter().map(|x| 1.0 + x * 1e-5).collect();
    (close[100], close[9000]) = (1e30, 1e-30);
    let zero = vec![0.0; elements];
    let cases: [(Float, Vec<f32>, Vec<f32>); 9] = [
        (Float::BF16, base.clone(), small(&base, &by, 0.001)),
        (Float::F16, base.clone(), small(&base, &sparse, 0.001)),
        (Float::BF16, base.clone(), small(&base, &by, 0.5)),
        (Float::F32, base.clone(), small(&base, &by, 0.001)),
        (Float::F32, zero.clone(), sparse),
        (Float::F32, zero.clone(), two),
        (Float::F32, zero, close),
        (Float::F32, odd_numbers(elements, 1), odd_numbers(elements, 5)),
        (Float::BF16, base.clone(), base),
    ];
    for shape in shapes {
        for (float, base, x) in &cases {
            assert_ranks(*float, base, x, Vectors::of(shape), (0.5, 0.15));
        }
        assert_ranks(Float::F32, &cases[3].1, &cases[3].2, Vectors::of(shape), (0.3, 0.0));
        assert_ranks(Float::F32, &cases[3].1, &cases[3].2, Vectors::of(shape), (0.6, 0.39));
    }
    for x in [1.0, 0.0, f32::NAN] {
        assert_ranks(Float::F32, &[0.0], &[x], Vectors::of(&[]), (0.5, 0.1));
    }
}

#[test]
fn vectors_lie_along_the_second_dimension() {
    let of = |shape: &[usize]| (Vectors::of(shape).len, Vectors::of(shape).stride);
    assert_eq!([of(&[]), of(&[9]), of(&[4, 9])], [(1, 1), (9, 1), (9, 1)]);
    assert_eq!([of(&[4, 9, 5]), of(&[4, 9, 5, 2]), of(&[4, 0])], [(9, 5), (9, 10), (1, 1)]);
}

/// One row that is computed by one worker at a time, and matrices that are computed in many batches.
#[test]
fn masks_of_large_tensors_are_the_same_in_pieces() {
    let elements = 1_200_000;
    let base = random(elements, 3);
    let x: Vec<f32> = base.iter().zip(random(elements, 4)).map(|(x, by)| x + by * 0.01).collect();
    for (float, shape) in [
        (Float::F32, &[elements][..]),
        (Float::BF16, &[1000, 1200]),
        (Float::F32, &[1, 2, 600_000]),
        (Float::F32, &[1, 300_000, 4]),
    ] {
        assert_ranks(float, &base, &x, Vectors::of(shape), (0.4, 0.2));
    }
}

/// By tenths of the ranks, as many are kept as their probabilities say.
#[test]
fn kept_shares_grow_with_ranks() {
    let (rows, columns) = (500, 1000);
    let x: Vec<f32> = (0..rows * columns).map(|i| (i % columns * 7919 % columns + 1) as f32).collect();
    let memory = Memory(vec![encoded(Float::F32, &vec![0.0; x.len()]), encoded(Float::F32, &x)]);
    let vectors = Vectors { len: columns as u64, stride: 1 };
    let both = [floats(0, Float::F32), floats(1, Float::F32)];
    let made = Ranks::new(both, vectors, x.len() as u64, 0.4, 0.3, [8, 9]);
    let (mut kept, mut expected) = ([0.0; 10], [0.0; 10]);
    for (x, bit) in x.iter().zip(read(&made, x.len() as u64, &memory)) {
        let rank = *x as usize - 1;
        kept[rank * 10 / columns] += f64::from(bit);
        expected[rank * 10 / columns] += 0.1 + 0.6 * rank as f64 / (columns - 1) as f64;
    }
    let draws = (rows * columns / 10) as f64;
    for (kept, expected) in kept.into_iter().zip(expected) {
        let share: f64 = expected / draws;
        let sigma = (draws * share * (1.0 - share)).sqrt();
        assert!((kept - expected).abs() < 5.0 * sigma, "{kept} of {draws}, not {expected}");
    }
    assert_eq!(made.to_string(), "mask of input 1 − input 0 by ranks in 1000 at stride 1, 0.4 ± 0.3");
}

//! Values like those of a base and of models trained from it. Each is a hash of (seed, model, tensor, position): any
//! thread can make any part.

use std::sync::LazyLock;

use crate::checkpoint::OutTensor;
use crate::dtype::{Float, decode, encode};

/// Elements that a thread makes at a time: a tile of f32 and its encoded bytes stay in the second-level cache.
pub(super) const TILE_ELEMENTS: usize = 64 << 10;

/// Standard deviation of the base's matrices, as Llama is initialised.
pub(super) const WEIGHT_STD: f64 = 0.02;

/// Spread of the norms around 1.
const NORM_STD: f64 = 0.05;

/// Scale of a fine-tune's steps: in bf16, half an ulp at the quartile of the base, so that half of the elements stay.
const STEP_SCALE: f32 = 5e-5;

/// Steps of a tensor are longer or shorter by up to this factor than another's, so that a top-k is cut now inside a
/// large class of equal magnitudes, now between two.
const STEP_SPREAD: f32 = 1.5;

/// Norms lie near 1, where an ulp is this many times the ulp of a typical weight.
const NORM_STEP: f32 = 64.0;

/// Heaviness of the tail of the steps: z·exp(h·z²/2) of a normal z (Tukey's h distribution).
const TAIL: f64 = 0.2;

/// One input channel in so many moves by `OUTLIER_SCALE` times more than its neighbours.
const OUTLIER_EVERY: usize = 512;
const OUTLIER_SCALE: f32 = 16.0;

/// Values by equal shares of probability: a draw is an index, so a random value costs a hash and a load.
pub(super) struct Tables {
    weights: Vec<f32>,
    norms: Vec<f32>,
    /// Fewer than the others, to stay in the first-level cache.
    steps: Vec<f32>,
}

const WEIGHT_DRAW_BITS: u32 = 16;
const STEP_DRAW_BITS: u32 = 12;

impl Tables {
    pub fn new(float: Float) -> Self {
        let normal = normal_quantiles(1 << WEIGHT_DRAW_BITS);
        let stored = |value: &dyn Fn(f64) -> f64| {
            let values: Vec<f32> = normal.iter().map(|&z| value(z) as f32).collect();
            let (mut bytes, mut rounded) = (vec![0; values.len() * float.bytes()], vec![0.0; values.len()]);
            encode(float, &values, &mut bytes);
            decode(float, &bytes, &mut rounded);
            rounded
        };
        let step = |z: f64| z * libm::exp(TAIL * z * z / 2.0);
        let quantiles = normal_quantiles(1 << STEP_DRAW_BITS);
        Self {
            weights: stored(&|z| WEIGHT_STD * z),
            norms: stored(&|z| 1.0 + NORM_STD * z),
            steps: quantiles.iter().map(|&z| STEP_SCALE * step(z) as f32).collect(),
        }
    }
}

/// The normal distribution at (i + ½) / count, by Newton's method from one point to the next. `libm` is compiled in, so
/// the table does not depend on the system.
fn normal_quantiles(count: usize) -> Vec<f64> {
    let half = count / 2;
    let mut upper = Vec::with_capacity(half);
    let mut z = 0.0;
    for i in half..count {
        // Survival, not the distribution itself, keeps its digits in the tail.
        let survival = (count as f64 - i as f64 - 0.5) / count as f64;
        for _ in 0..6 {
            let density = libm::exp(-z * z / 2.0) / std::f64::consts::TAU.sqrt();
            z += (libm::erfc(z * std::f64::consts::FRAC_1_SQRT_2) / 2.0 - survival) / density;
        }
        upper.push(z);
    }
    upper.iter().rev().map(|z| -z).chain(upper.iter().copied()).collect()
}

/// One thread's scratch, and what it reads.
pub(super) struct Maker<'a> {
    seed: u64,
    float: Float,
    tables: &'a Tables,
    base: Vec<f32>,
    moved: Vec<f32>,
    bytes: Vec<u8>,
}

impl<'a> Maker<'a> {
    pub fn new(seed: u64, float: Float, tables: &'a Tables) -> Self {
        Self { seed, float, tables, base: Vec::new(), moved: Vec::new(), bytes: Vec::new() }
    }

    /// Makes a tile of the base, from which the models' tiles are made.
    pub fn begin(&mut self, tensor: &OutTensor, first: usize) {
        let table = if is_norm(tensor) { &self.tables.norms } else { &self.tables.weights };
        self.base.resize(TILE_ELEMENTS.min(elements(tensor) - first), 0.0);
        fill(&mut self.base, stream_key(self.seed, 0, &tensor.name), first, table, WEIGHT_DRAW_BITS);
        if self.float == Float::F32 {
            // 65,536 distinct values would be few for f32: new low bits for each element.
            let key = stream_key(self.seed, 0, &tensor.name) ^ 1;
            for (i, x) in self.base.iter_mut().enumerate() {
                *x = f32::from_bits(x.to_bits() & !0xfff | hash(key, first + i) as u32 & 0xfff);
            }
        }
    }

    /// The tile of a model as it is stored; 0 is the base.
    pub fn tile(&mut self, tensor: &OutTensor, first: usize, model: usize) -> &[u8] {
        if model > 0 {
            self.make_moved(tensor, first, model);
        }
        let values = if model == 0 { &self.base } else { &self.moved };
        self.bytes.resize(values.len() * self.float.bytes(), 0);
        encode(self.float, values, &mut self.bytes);
        &self.bytes
    }

    fn make_moved(&mut self, tensor: &OutTensor, first: usize, model: usize) {
        self.moved.resize(self.base.len(), 0.0);
        let key = stream_key(self.seed, model, &tensor.name);
        let columns = columns(tensor);
        let outliers = outlier_channels(self.seed, columns)
            .map(|channel| ((channel + columns - first % columns) % columns, columns));
        let scale = if is_norm(tensor) { NORM_STEP } else { 1.0 };
        make_moved(&mut self.moved, &self.base, self.tables, key, first, outliers, scale);
    }
}

/// Moves a part of a tensor that begins at element `first`; outliers are every so many of its elements from one on.
fn make_moved(
    moved: &mut [f32],
    base: &[f32],
    tables: &Tables,
    key: u64,
    first: usize,
    outliers: impl Iterator<Item = (usize, usize)>,
    scale: f32,
) {
    fill(moved, key, first, &tables.steps, STEP_DRAW_BITS);
    for (from, every) in outliers {
        moved.iter_mut().skip(from).step_by(every).for_each(|step| *step *= OUTLIER_SCALE);
    }
    let spread = f32::from(hash(key ^ 1, 0) as u16) / 32_768.0 - 1.0;
    let scale = scale * libm::powf(STEP_SPREAD, spread);
    for (step, base) in moved.iter_mut().zip(base) {
        *step = base + scale * *step;
    }
}

static BF16_TABLES: LazyLock<Tables> = LazyLock::new(|| Tables::new(Float::BF16));

/// Values of a matrix of a base, of bfloat16.
pub fn base_values(elements: usize, seed: u64) -> Vec<f32> {
    let mut values = vec![0.0; elements];
    fill(&mut values, hash(seed, 0), 0, &BF16_TABLES.weights, WEIGHT_DRAW_BITS);
    values
}

/// The same of a model trained from that base, rounded to bfloat16.
pub fn tuned_values(base: &[f32], seed: u64) -> Vec<f32> {
    let mut values = vec![0.0; base.len()];
    let outliers = std::iter::once((hash(seed, 0) as usize % OUTLIER_EVERY, OUTLIER_EVERY));
    make_moved(&mut values, base, &BF16_TABLES, hash(seed, 1), 0, outliers, 1.0);
    let mut bytes = vec![0; base.len() * Float::BF16.bytes()];
    encode(Float::BF16, &values, &mut bytes);
    decode(Float::BF16, &bytes, &mut values);
    values
}

pub(super) fn elements(tensor: &OutTensor) -> usize {
    tensor.shape.iter().product()
}

fn is_norm(tensor: &OutTensor) -> bool {
    tensor.shape.len() == 1
}

/// Width of a row: elements a multiple of it apart belong to the same input channel.
fn columns(tensor: &OutTensor) -> usize {
    *tensor.shape.last().expect("no tensor here is a scalar")
}

/// The same channels stand out in all tensors of a width and in all models, as in trained ones.
fn outlier_channels(seed: u64, columns: usize) -> impl Iterator<Item = usize> {
    (0..columns.div_ceil(OUTLIER_EVERY)).map(move |i| hash(seed ^ columns as u64, i) as usize % columns)
}

/// Looks up elements `first`.. of a stream; `first` is a multiple of 4, as tiles are, and a hash serves four.
fn fill(values: &mut [f32], key: u64, first: usize, table: &[f32], draw_bits: u32) {
    assert!(first.is_multiple_of(4) && table.len() == 1 << draw_bits && draw_bits <= 16);
    for (i, values) in values.chunks_mut(4).enumerate() {
        let draws = hash(key, first / 4 + i);
        for (lane, value) in values.iter_mut().enumerate() {
            let draw = (draws >> (16 * lane)) as u16 >> (16 - draw_bits);
            *value = table[usize::from(draw)];
        }
    }
}

/// A key for each tensor of each model, by name, so that a cut shape keeps the values of what is left.
fn stream_key(seed: u64, model: usize, tensor: &str) -> u64 {
    tensor.bytes().fold(hash(seed, model), |key, byte| hash(key, usize::from(byte)))
}

/// `SplitMix64` (Steele, Lea and Flood, 2014) at a position, rather than in a sequence.
fn hash(key: u64, position: usize) -> u64 {
    let mut z = key.wrapping_add((position as u64).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

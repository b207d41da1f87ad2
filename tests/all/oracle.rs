//! A second implementation of the methods, written from the contract with no regard for speed.
//!
//! It shares no code with the engine but the types: it sorts where the engine counts, holds whole tensors
//! where the engine streams, and computes values in f64. Decisions (what is kept, how the vote goes, which branch
//! slerp takes) must be equal; values given those decisions must be within the contract's bound.

/// One model's part in a merge.
#[derive(Debug, Clone)]
pub struct Model {
    pub values: Vec<f32>,
    pub weight: f64,
    pub density: f64,
}

/// What the family of task arithmetic needs to know.
#[derive(Debug, Clone, Copy)]
pub struct Family {
    pub thinning: Thinning,
    pub vote: bool,
    pub normalize: bool,
    pub rescale: bool,
    pub lambda: f64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Thinning {
    None,
    Magnitude,
    Random {
        seed: u64,
    },
    /// A band of magnitudes: the share `gamma` of the largest goes.
    Outliers {
        gamma: f64,
    },
    /// By ranks in vectors of `len` elements, which lie `stride` apart.
    Ranked {
        seed: u64,
        epsilon: f64,
        len: usize,
        stride: usize,
    },
}

/// An exact result with what an f32 engine may differ from it by, before the output is rounded.
#[derive(Debug, Clone)]
pub struct Expected {
    pub exact: Vec<f64>,
    pub slack: Vec<f64>,
}

/// The contract's bound on f32 arithmetic: of N models and a base, with all magnitudes added up.
pub fn slack_of(models: usize, magnitude: f64) -> f64 {
    slack(models, magnitude)
}

/// The contract's bound on f32 arithmetic: (N + 4) · 2^-24 · (|base| + Σ |c·x|).
fn slack(models: usize, magnitude: f64) -> f64 {
    (models as f64 + 4.0) * 2f64.powi(-24) * magnitude
}

/// Σ c·x, or around the first input.
pub fn weighted_sum(inputs: &[&[f32]], coefficients: &[f64], anchored: bool) -> Expected {
    let element = |i: usize| {
        let x = |m: usize| f64::from(inputs[m][i]);
        let mut exact = if anchored { x(0) } else { coefficients[0] * x(0) };
        let mut magnitude = exact.abs();
        for (m, c) in coefficients.iter().enumerate().skip(1) {
            let term = c * if anchored { x(m) - x(0) } else { x(m) };
            exact += term;
            magnitude += term.abs().max((c * x(m)).abs());
        }
        (exact, slack(inputs.len(), magnitude))
    };
    let (exact, slack) = (0..inputs[0].len()).map(element).unzip();
    Expected { exact, slack }
}

/// linear.
pub fn linear(inputs: &[&[f32]], weights: &[f64], normalize: bool) -> Expected {
    let sum: f64 = weights.iter().sum();
    let used: Vec<usize> = (0..weights.len()).filter(|m| weights[*m] != 0.0).collect();
    let inputs: Vec<&[f32]> = used.iter().map(|m| inputs[*m]).collect();
    let coefficients: Vec<f64> =
        used.iter().map(|m| weights[*m] / if normalize { sum } else { 1.0 }).collect();
    weighted_sum(&inputs, &coefficients, normalize)
}

/// The sum of a tile in the contract's order.
fn tile_sum(terms: &[f32]) -> f32 {
    let mut padded = terms.to_vec();
    padded.resize(1024, 0.0);
    let mut groups: Vec<f32> =
        padded.chunks(8).map(|t| ((t[0] + t[1]) + (t[2] + t[3])) + ((t[4] + t[5]) + (t[6] + t[7]))).collect();
    while groups.len() > 1 {
        let half = groups.len() / 2;
        groups = (0..half).map(|i| groups[i] + groups[i + half]).collect();
    }
    groups[0]
}

/// A sum over a tensor: tiles in f32, the tiles in f64.
pub fn sum(terms: impl Iterator<Item = f32>) -> f64 {
    terms.collect::<Vec<_>>().chunks(1024).map(|tile| f64::from(tile_sum(tile))).sum()
}

/// The two coefficients of slerp, and whether the interpolation is linear.
pub fn slerp_coefficients(base: &[f32], other: &[f32], t: f64) -> (bool, [f64; 2]) {
    let delta: Vec<f32> = other.iter().zip(base).map(|(x, b)| x - b).collect();
    let dot = |a: &[f32], b: &[f32]| sum(a.iter().zip(b).map(|(a, b)| a * b));
    let (bb, bd, dd) = (dot(base, base), dot(base, &delta), dot(&delta, &delta));
    let length = |square: f64| if square.max(0.0).sqrt() <= 1e-8 { 1.0 } else { square.max(0.0).sqrt() };
    let cosine = ((bb + bd) / (length(bb) * length(bb + 2.0 * bd + dd))).clamp(-1.0, 1.0);
    if cosine.abs() > 0.9995 {
        return (true, [1.0 - t, t]);
    }
    let theta = cosine.acos();
    (false, [((1.0 - t) * theta).sin() / theta.sin(), (t * theta).sin() / theta.sin()])
}

/// slerp.
pub fn slerp(base: &[f32], other: &[f32], t: f64) -> Expected {
    let (linear, coefficients) = slerp_coefficients(base, other, t);
    weighted_sum(&[base, other], &coefficients, linear)
}

fn key(delta: f32) -> u32 {
    if delta.is_nan() { u32::MAX } else { delta.abs().to_bits() }
}

/// The places of values from the largest magnitude down, of equal ones the first before the others.
pub fn descending(values: &[f32]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    // A stable sort keeps equal magnitudes in their order.
    order.sort_by_key(|i| std::cmp::Reverse(key(values[*i])));
    order
}

/// Which elements of a task vector stay: the k largest magnitudes, of equal ones the first.
pub fn largest(delta: &[f32], density: f64) -> Vec<bool> {
    let k = ((density * delta.len() as f64).trunc() as usize).max(1);
    first(descending(delta).into_iter().take(k), delta.len())
}

fn first(kept: impl Iterator<Item = usize>, elements: usize) -> Vec<bool> {
    let mut keep = vec![false; elements];
    kept.for_each(|i| keep[i] = true);
    keep
}

/// Which elements of a task vector are in the band of magnitudes, counted from the smallest up.
pub fn band(delta: &[f32], density: f64, gamma: f64) -> Vec<bool> {
    let n = delta.len();
    let target = (density * n as f64).trunc() as usize;
    let top = (gamma * n as f64).trunc() as usize;
    let bottom = (n as i64 - target as i64 - top as i64).max(0) as usize;
    let ascending = descending(delta).into_iter().rev();
    first(ascending.skip(bottom).take(target), n)
}

/// Which elements a mask keeps whose probabilities grow with the ranks of magnitudes in vectors.
pub fn ranked(delta: &[f32], density: f64, by: Thinning, tensor: &str, position: usize) -> Vec<bool> {
    let Thinning::Ranked { seed, epsilon, len, stride } = by else { panic!("{by:?} has no ranks") };
    let mut keep = vec![false; delta.len()];
    for vector in 0..delta.len() / len.max(1) {
        let start = vector / stride * stride * len + vector % stride;
        let places: Vec<usize> = (0..len).map(|i| start + i * stride).collect();
        let mut ranked: Vec<usize> = (0..len).collect();
        ranked.sort_by_key(|i| key(delta[places[*i]]));
        for (rank, i) in ranked.into_iter().enumerate() {
            let share = if len == 1 { 0.5 } else { rank as f64 / (len - 1) as f64 };
            let probability = (density - epsilon) + 2.0 * epsilon * share;
            keep[places[i]] = drawn(places[i], probability, seed, tensor, position);
        }
    }
    keep
}

fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let (mut c, mut k) = (counter, key);
    for round in 0..10 {
        if round > 0 {
            k = [k[0].wrapping_add(0x9E37_79B9), k[1].wrapping_add(0xBB67_AE85)];
        }
        let (a, b) = (0xD251_1F53u64 * u64::from(c[0]), 0xCD9E_8D57u64 * u64::from(c[2]));
        c = [(b >> 32) as u32 ^ c[1] ^ k[0], b as u32, (a >> 32) as u32 ^ c[3] ^ k[1], a as u32];
    }
    c
}

/// Which elements a random mask keeps.
pub fn chosen(elements: usize, density: f64, seed: u64, tensor: &str, position: usize) -> Vec<bool> {
    let key = mask_key(seed, tensor, position);
    (0..elements).map(|i| draw(i, key) < limit(density)).collect()
}

/// Whether one element is drawn.
fn drawn(element: usize, probability: f64, seed: u64, tensor: &str, position: usize) -> bool {
    draw(element, mask_key(seed, tensor, position)) < limit(probability)
}

fn limit(probability: f64) -> u32 {
    ((probability * 2f64.powi(32)).round() as u64).min(u64::from(u32::MAX)) as u32
}

/// Two 16-bit draws, one after the other, are one of 32 bits.
fn draw(element: usize, key: [u32; 2]) -> u32 {
    let half = |call: u32| {
        let words = philox([(element / 8) as u32, 0, call, 0], key);
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        u32::from(u16::from_le_bytes([bytes[2 * (element % 8)], bytes[2 * (element % 8) + 1]]))
    };
    half(0) << 16 | half(1)
}

fn mask_key(seed: u64, tensor: &str, position: usize) -> [u32; 2] {
    let mut name = seed.to_le_bytes().to_vec();
    name.extend((position as u32).to_le_bytes());
    name.extend(tensor.as_bytes());
    let hash = blake3::derive_key("mergeforge 2026 random mask", &name);
    let key = u64::from_le_bytes(hash[..8].try_into().unwrap());
    [key as u32, (key >> 32) as u32]
}

fn divisor(weights: &[f64]) -> f64 {
    let sum: f64 = weights.iter().sum();
    let magnitude: f64 = weights.iter().map(|w| w.abs()).sum();
    if sum.abs() <= magnitude * 2f64.powi(-20) { 1.0 } else { sum }
}

/// What the family decides before any value is merged: per model the elements kept and the coefficient.
pub fn thinned(base: &[f32], models: &[Model], family: &Family, tensor: &str) -> Vec<(Vec<bool>, f64)> {
    let all = vec![true; base.len()];
    let none = vec![false; base.len()];
    let one = |(position, model): (usize, &Model)| {
        let delta: Vec<f32> = model.values.iter().zip(base).map(|(x, b)| x - b).collect();
        let keep = match family.thinning {
            Thinning::None => all.clone(),
            _ if model.density >= 1.0 => all.clone(),
            _ if model.density <= 0.0 => none.clone(),
            Thinning::Magnitude => largest(&delta, model.density),
            Thinning::Random { seed } => chosen(base.len(), model.density, seed, tensor, position),
            Thinning::Outliers { gamma } => band(&delta, model.density, gamma),
            Thinning::Ranked { .. } => ranked(&delta, model.density, family.thinning, tensor, position),
        };
        let mut scale = 1.0;
        if family.rescale && model.density < 1.0 && model.density > 0.0 && family.thinning != Thinning::None {
            let norm = sum(delta.iter().map(|d| d.abs()));
            let kept =
                sum(delta.iter().zip(&keep).map(|(d, keep)| if *keep { d.abs() } else { 0.0 * d.abs() }));
            if !(norm < 1e-7 || kept < 1e-7) {
                scale = norm / kept;
            }
        }
        (keep, model.weight * scale)
    };
    models.iter().enumerate().map(one).collect()
}

/// The family of task arithmetic.
pub fn task_vectors(base: &[f32], models: &[Model], family: &Family, tensor: &str) -> Expected {
    let thinned = thinned(base, models, family, tensor);
    let weights: Vec<f64> = models.iter().map(|model| model.weight).collect();
    let element = |i: usize| {
        let b = f64::from(base[i]);
        let term = |m: usize| f64::from(models[m].values[i]) - b;
        let taking: Vec<usize> = (0..models.len()).filter(|m| thinned[*m].0[i]).collect();
        let (agreeing, scale) = if family.vote {
            // The vote is a decision: it is taken in the contract's own f32 arithmetic.
            let v = |m: usize| (thinned[m].1 as f32) * (models[m].values[i] - base[i]);
            let sum = taking.iter().fold(0.0f32, |sum, m| sum + v(*m));
            let agrees = |m: &usize| if sum >= 0.0 { v(*m) > 0.0 } else { v(*m) < 0.0 };
            let agreeing: Vec<usize> = taking.into_iter().filter(agrees).collect();
            let of_agreeing: Vec<f64> = agreeing.iter().map(|m| f64::from(weights[*m] as f32)).collect();
            (agreeing, family.lambda / if family.normalize { divisor(&of_agreeing) } else { 1.0 })
        } else {
            (taking, family.lambda / if family.normalize { divisor(&weights) } else { 1.0 })
        };
        let terms = agreeing.iter().map(|m| scale * thinned[*m].1 * term(*m));
        let magnitude: f64 = terms.clone().map(f64::abs).sum();
        (b + terms.sum::<f64>(), slack(models.len(), b.abs() + magnitude))
    };
    let (exact, slack) = (0..base.len()).map(element).unzip();
    Expected { exact, slack }
}

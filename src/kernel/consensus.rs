//! The fused merge of task vectors: subtract, trim or drop, weight, elect the sign, average, add the base.
//!
//! ```text
//! vᵢ   = (kept ? cᵢ : 0) · (xᵢ − base)
//! sign = Σ vᵢ ≥ 0 ? + : −                        (ties, and an exact 0, go to +)
//! out  = base + scale[agreeing] · Σ (vᵢ agrees ? vᵢ : 0 · vᵢ)
//! ```
//!
//! Trimming is TIES' (Yadav et al., arXiv:2306.01708), dropping is DARE's (Yu et al., arXiv:2311.03099).
//! `scale` has an entry for every set of agreeing models. An excluded term is multiplied by 0, so that NaN
//! and infinity spread as the formula says.

use std::cmp::Ordering;

use super::packed::{self, append, append_floats};
use super::{Inputs, Kept, TILE, key, philox};

/// The numbers of one tensor: input 0 is the base, then one model per further input.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// One entry per non-base model.
    pub models: Vec<Model>,
    /// 2^models factors, by the set of agreeing models (bit i: model i). Empty: no vote, all agree, factor 1.
    pub scale: Vec<f32>,
}

/// One model's part in the merge.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Model {
    /// The weight, with everything that scales the whole task vector folded in.
    pub coefficient: f32,
    /// Which elements are kept.
    pub keep: Keep,
}

/// Which elements of a task vector take part.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Keep {
    /// All of them.
    All,
    /// The largest magnitudes.
    Trim(Trim),
    /// A random choice.
    Drop(Drop),
}

/// Keeps keys above the threshold, and keys equal to it before the cut.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Trim {
    /// The k-th largest key.
    pub threshold: u32,
    /// The tile of the first dropped element among those equal to the threshold.
    pub cut_tile: u32,
    /// That element's place in its tile.
    pub cut_lane: u32,
}

/// Keeps each element with probability `keep / 2^32`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Drop {
    /// The probability in units of 2^-32.
    pub keep: u32,
    /// The key of the random generator.
    pub key: [u32; 2],
}

impl Drop {
    /// Writes `coefficient` for kept elements of the tile and 0 for the others.
    #[inline(always)]
    pub fn mask(&self, tile: u64, coefficient: f32, mask: &mut [f32; TILE]) {
        philox::choose(tile * philox::BLOCKS as u64, self.key, self.keep, coefficient, mask);
    }
}

impl Trim {
    /// Keeps keys above the threshold, and those equal to it at flat indices below `cut`.
    pub fn new(threshold: u32, cut: u64) -> Self {
        Self { threshold, cut_tile: (cut / TILE as u64) as u32, cut_lane: (cut % TILE as u64) as u32 }
    }

    /// The flat index of the first dropped element among those equal to the threshold.
    pub fn cut(&self) -> u64 {
        u64::from(self.cut_tile) * TILE as u64 + u64::from(self.cut_lane)
    }

    /// How many of the tile's elements stand before the cut.
    #[inline(always)]
    fn before_cut(&self, tile: u64) -> usize {
        match tile.cmp(&u64::from(self.cut_tile)) {
            Ordering::Less => TILE,
            Ordering::Equal => self.cut_lane as usize,
            Ordering::Greater => 0,
        }
    }
}

/// Writes `vᵢ` of one model and adds it to the sum; how many elements were kept, where magnitudes decide.
#[inline(always)]
pub(super) fn weighted_delta(
    model: &Model,
    tile: u64,
    x: &[f32],
    base: &[f32],
    v: &mut [f32; TILE],
    sum: &mut [f32; TILE],
) -> usize {
    let c = model.coefficient;
    let lanes = v.iter_mut().zip(&mut *sum).zip(x).zip(base);
    match model.keep {
        Keep::All => {
            lanes.for_each(|(((v, sum), x), base)| {
                *v = c * (x - base);
                *sum += *v;
            });
            x.len()
        }
        Keep::Drop(drop) => {
            let mut mask = [0.0; TILE];
            drop.mask(tile, c, &mut mask);
            lanes.zip(&mask).for_each(|((((v, sum), x), base), c)| {
                *v = c * (x - base);
                *sum += *v;
            });
            0
        }
        Keep::Trim(trim) => {
            let (smallest, cut) = (trim.threshold, trim.before_cut(tile).min(x.len()));
            let mut kept = 0u32;
            let mut trimmed = |smallest: u32, delta: f32| {
                let keep = key(delta) >= smallest;
                kept += u32::from(keep);
                if keep { c * delta } else { 0.0 * delta }
            };
            let (v, sum) = (v.split_at_mut(cut), sum.split_at_mut(cut));
            for (((v, sum), x), base) in v.0.iter_mut().zip(sum.0).zip(&x[..cut]).zip(&base[..cut]) {
                *v = trimmed(smallest, x - base);
                *sum += *v;
            }
            for (((v, sum), x), base) in v.1.iter_mut().zip(sum.1).zip(&x[cut..]).zip(&base[cut..]) {
                *v = trimmed(smallest + 1, x - base);
                *sum += *v;
            }
            kept as usize
        }
    }
}

/// The job's words: whether there is a vote, then the models, then the factors.
pub fn pack(job: &Job, words: &mut Vec<u32>) {
    words.push((!job.scale.is_empty()).into());
    job.models.iter().for_each(|model| append(words, &packed::Model::from(*model)));
    append_floats(words, &job.scale);
}

/// Merges one tile. `scratch` is room for `vᵢ` that outlives the call, because clearing it costs as much
/// as the merge; what it holds does not matter.
#[inline(always)]
pub fn tile(
    job: &Job,
    tile: u64,
    inputs: &Inputs<'_>,
    scratch: &mut Vec<f32>,
    out: &mut [f32],
    kept: &mut Kept,
) {
    let base = inputs.of(0);
    let len = inputs.len;
    scratch.resize(job.models.len() * TILE, 0.0);
    let (v, _) = scratch.as_chunks_mut::<TILE>();
    let mut sum = [0.0; TILE];
    for (i, (model, v)) in job.models.iter().zip(v.iter_mut()).enumerate() {
        let of_model = weighted_delta(model, tile, inputs.of(i + 1), base, v, &mut sum);
        if let Some(kept) = kept.get_mut(i) {
            *kept += of_model as u64;
        }
    }
    if job.scale.is_empty() {
        for ((out, base), sum) in out.iter_mut().zip(base).zip(&sum) {
            *out = base + sum;
        }
        return;
    }
    match v.len() {
        1 => return vote::<1>(v, &job.scale, &sum, base, out),
        2 => return vote::<2>(v, &job.scale, &sum, base, out),
        3 => return vote::<3>(v, &job.scale, &sum, base, out),
        4 => return vote::<4>(v, &job.scale, &sum, base, out),
        _ => {}
    }
    let mut mixed = [0.0f32; TILE];
    let mut agreeing = [0u32; TILE];
    for (i, v) in v.iter().enumerate() {
        let lanes = mixed.iter_mut().zip(&mut agreeing).zip(v).zip(&sum);
        for (((mixed, agreeing), v), sum) in lanes.take(len) {
            let agrees = if *sum >= 0.0 { *v > 0.0 } else { *v < 0.0 };
            *mixed += if agrees { *v } else { 0.0 * v };
            *agreeing |= u32::from(agrees) << i;
        }
    }
    for (((out, base), mixed), set) in out.iter_mut().zip(base).zip(&mixed).zip(&agreeing) {
        *out = base + mixed * job.scale[*set as usize];
    }
}

/// The vote of so few models that all of an element's terms are at hand at once.
#[inline(always)]
fn vote<const N: usize>(v: &[[f32; TILE]], scale: &[f32], sum: &[f32; TILE], base: &[f32], out: &mut [f32]) {
    let v: &[[f32; TILE]; N] = v.as_array().expect("N models");
    let mut table = [0.0; 16];
    table[..scale.len()].copy_from_slice(scale);
    for (i, (out, base)) in out.iter_mut().zip(base).enumerate().take(TILE) {
        // The factors of the sets that agree with the models looked at so far: half as many after each.
        let mut factors = table;
        let mut mixed = 0.0f32;
        for (model, v) in v.iter().enumerate() {
            let (v, sum) = (v[i], sum[i]);
            let agrees = if sum >= 0.0 { v > 0.0 } else { v < 0.0 };
            mixed += if agrees { v } else { 0.0 * v };
            for set in 0..1 << (N - 1 - model) {
                factors[set] = if agrees { factors[2 * set + 1] } else { factors[2 * set] };
            }
        }
        *out = base + mixed * factors[0];
    }
}

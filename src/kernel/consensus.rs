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
use std::ops::Range;

use super::packed::{self, append, append_floats};
use super::{Inputs, KEY_MAX, Kept, TILE, key, philox};
use crate::dtype::{Element, magnitude_bits};

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

/// The job's words: whether there is a vote, then the models, then the factors.
pub fn pack(job: &Job, words: &mut Vec<u32>) {
    words.push((!job.scale.is_empty()).into());
    job.models.iter().for_each(|model| append(words, &packed::Model::from(*model)));
    append_floats(words, &job.scale);
}

/// Writes what each element of one model is multiplied with: the coefficient where it is kept, else 0. How many were kept,
/// where magnitudes decide.
#[inline(always)]
pub(super) fn factors<E: Element>(
    model: &Model,
    tile: u64,
    x: &[E],
    base: &[E],
    factors: &mut [f32; TILE],
) -> usize {
    let c = model.coefficient;
    match model.keep {
        Keep::All => {
            factors.fill(c);
            x.len()
        }
        Keep::Drop(drop) => {
            drop.mask(tile, c, factors);
            0
        }
        Keep::Trim(trim) => {
            let cut = trim.before_cut(tile).min(x.len());
            let mut kept = 0u32;
            for (i, ((factor, x), base)) in factors.iter_mut().zip(x).zip(base).enumerate() {
                let keep = key(x.value() - base.value()) >= trim.threshold + u32::from(i >= cut);
                kept += u32::from(keep);
                *factor = if keep { c } else { 0.0 };
            }
            kept as usize
        }
    }
}

/// Merges one tile. `scratch` is room that outlives the call, because clearing it costs as much as the merge; what it
/// holds does not matter.
#[inline(always)]
pub fn tile<E: Element>(
    job: &Job,
    tile: u64,
    inputs: &Inputs<'_, E>,
    scratch: &mut Vec<f32>,
    out: &mut [f32],
    kept: &mut Kept,
) {
    scratch.resize(scratch.len().max(job.models.len() * TILE), 0.0);
    let (scratch, _) = scratch.as_chunks_mut::<TILE>();
    match job.models.len() {
        1 => few::<1, E>(job, tile, inputs, scratch, out, kept),
        2 => few::<2, E>(job, tile, inputs, scratch, out, kept),
        3 => few::<3, E>(job, tile, inputs, scratch, out, kept),
        4 => few::<4, E>(job, tile, inputs, scratch, out, kept),
        _ => many(job, tile, inputs, scratch, out, kept),
    }
}

/// Of so many models the terms of an element are at hand at once.
const FEW: usize = 4;

/// So few models that all of an element's terms are at hand at once.
#[inline(always)]
fn few<const N: usize, E: Element>(
    job: &Job,
    tile: u64,
    inputs: &Inputs<'_, E>,
    scratch: &mut [[f32; TILE]],
    out: &mut [f32],
    kept: &mut Kept,
) {
    let models: &[Model; N] = job.models.as_array().expect("N models");
    let merge = Few::<'_, N, E> { base: inputs.of(0), x: inputs.several(1), scale: &job.scale };
    if models.iter().any(|model| matches!(model.keep, Keep::Drop(_))) {
        let scratch: &mut [[f32; TILE]; N] = scratch.first_chunk_mut().expect("room for N tiles");
        for (m, model) in models.iter().enumerate() {
            kept[m] += factors(model, tile, merge.x[m], merge.base, &mut scratch[m]) as u64;
        }
        let known: [&[f32]; N] = std::array::from_fn(|m| &scratch[m][..inputs.len]);
        return merge.part(0..inputs.len, out, known);
    }
    // Everything is at or above the least key.
    let trims = models.map(|Model { keep, .. }| match keep {
        Keep::Trim(trim) => trim,
        _ => Trim { threshold: 0, cut_tile: u32::MAX, cut_lane: 0 },
    });
    let coefficients = models.map(|model| model.coefficient);
    let cuts = trims.map(|trim| trim.before_cut(tile).min(inputs.len));
    let mut start = 0;
    while start < inputs.len {
        // Up to the next cut all elements of a model are kept or dropped alike.
        let end = cuts.into_iter().filter(|cut| *cut > start).min().unwrap_or(inputs.len);
        let smallest = std::array::from_fn(|m| match trims[m].threshold + u32::from(start >= cuts[m]) {
            smallest @ ..=KEY_MAX => smallest,
            // Not even NaN, whose bits are above their key.
            _ => u32::MAX,
        });
        let mut trimmed = Trimmed { coefficients, smallest, kept: [0; FEW] };
        merge.part(start..end, out, &mut trimmed);
        kept.iter_mut().zip(trimmed.kept).for_each(|(kept, count)| *kept += u64::from(count));
        start = end;
    }
}

/// A tile of `N` models.
struct Few<'a, const N: usize, E> {
    base: &'a [E],
    x: [&'a [E]; N],
    scale: &'a [f32],
}

impl<const N: usize, E: Element> Few<'_, N, E> {
    /// Merges a part of the tile.
    #[inline(always)]
    fn part(&self, part: Range<usize>, out: &mut [f32], mut factors: impl Factors) {
        // Slices of one length, and indices: the compiler needs no checks, and uses vectors to the end.
        let (start, len) = (part.start, part.len());
        let base = &self.base[start..][..len];
        let x: [&[E]; N] = std::array::from_fn(|m| &self.x[m][start..][..len]);
        let out = &mut out[start..][..len];
        if self.scale.is_empty() {
            for i in 0..len {
                let base = base[i].value();
                let (_, sum) = terms(base, &x, i, &mut factors);
                out[i] = base + sum;
            }
            return;
        }
        let scale = Scale::new(self.scale);
        for i in 0..len {
            let base = base[i].value();
            let (v, sum) = terms(base, &x, i, &mut factors);
            let elected = elected(sum);
            let mut agreeing = [false; FEW];
            let mut mixed = 0.0f32;
            for m in 0..N {
                agreeing[m] = agrees(v[m], elected);
                mixed += v[m] * if agreeing[m] { 1.0 } else { 0.0 };
            }
            out[i] = base + mixed * scale.of(agreeing);
        }
    }
}

/// What the elements of `N` models are multiplied with.
trait Factors {
    /// For element `i` of a model, which differs so much from the base. Not a closure: those the compiler may leave as calls,
    /// and then uses no vectors.
    fn of(&mut self, model: usize, i: usize, delta: f32) -> f32;
}

/// They are known.
impl<const N: usize> Factors for [&[f32]; N] {
    #[inline(always)]
    fn of(&mut self, model: usize, i: usize, _: f32) -> f32 {
        self[model][i]
    }
}

/// Magnitudes decide.
struct Trimmed<const N: usize> {
    coefficients: [f32; N],
    /// The smallest bits that are kept.
    smallest: [u32; N],
    /// Of the first N: how many were kept.
    kept: [u32; FEW],
}

impl<const N: usize> Factors for &mut Trimmed<N> {
    #[inline(always)]
    fn of(&mut self, model: usize, _: usize, delta: f32) -> f32 {
        let keep = magnitude_bits(delta) >= self.smallest[model];
        self.kept[model] += u32::from(keep);
        if keep { self.coefficients[model] } else { 0.0 }
    }
}

/// Each v of an element, and their sum.
#[inline(always)]
fn terms<const N: usize, E: Element>(
    base: f32,
    x: &[&[E]; N],
    i: usize,
    factors: &mut impl Factors,
) -> ([f32; N], f32) {
    let (mut v, mut sum) = ([0.0; N], 0.0);
    for m in 0..N {
        let delta = x[m][i].value() - base;
        v[m] = factors.of(m, i, delta) * delta;
        sum += v[m];
    }
    (v, sum)
}

/// The factors of all sets of models in pairs: without the first model, and the bits that change with it.
struct Scale([(u32, u32); 1 << (FEW - 1)]);

impl Scale {
    #[inline(always)]
    fn new(scale: &[f32]) -> Self {
        let bits = |set: usize| scale.get(set).map_or(0, |factor| factor.to_bits());
        Self(std::array::from_fn(|pair| (bits(2 * pair), bits(2 * pair) ^ bits(2 * pair + 1))))
    }

    /// The factor of a set of models, by choices alone: so small a table fits registers. The compiler would choose among
    /// addresses and then load, which takes longer, but for the first choice being none between two loads; and it would not
    /// always unroll inner loops before it makes the outer one a loop of vectors.
    #[inline(always)]
    fn of(&self, [one, two, four, eight]: [bool; FEW]) -> f32 {
        let pair = |pair: usize| self.0[pair].0 ^ (self.0[pair].1 & u32::from(one).wrapping_neg());
        let (p0, p1, p2, p3) = (pair(0), pair(1), pair(2), pair(3));
        let (p4, p5, p6, p7) = (pair(4), pair(5), pair(6), pair(7));
        let (q0, q1, q2, q3) = if two { (p1, p3, p5, p7) } else { (p0, p2, p4, p6) };
        let (h0, h1) = if four { (q1, q3) } else { (q0, q2) };
        f32::from_bits(if eight { h1 } else { h0 })
    }
}

/// The sign bit that is elected.
#[inline(always)]
fn elected(sum: f32) -> u32 {
    if sum >= 0.0 { 0 } else { 1 << 31 }
}

/// Whether a term has the elected sign.
#[inline(always)]
fn agrees(v: f32, elected: u32) -> bool {
    f32::from_bits(v.to_bits() ^ elected) > 0.0
}

/// The models one after the other.
#[inline(always)]
fn many<E: Element>(
    job: &Job,
    tile: u64,
    inputs: &Inputs<'_, E>,
    v: &mut [[f32; TILE]],
    out: &mut [f32],
    kept: &mut Kept,
) {
    let base = inputs.of(0);
    let mut sum = [0.0; TILE];
    for (i, (model, v)) in job.models.iter().zip(v.iter_mut()).enumerate() {
        let x = inputs.of(i + 1);
        let of_model = factors(model, tile, x, base, v);
        for (((v, sum), x), base) in v.iter_mut().zip(&mut sum).zip(x).zip(base) {
            *v *= x.value() - base.value();
            *sum += *v;
        }
        if let Some(kept) = kept.get_mut(i) {
            *kept += of_model as u64;
        }
    }
    if job.scale.is_empty() {
        for ((out, base), sum) in out.iter_mut().zip(base).zip(&sum) {
            *out = base.value() + sum;
        }
        return;
    }
    let mut mixed = [0.0f32; TILE];
    let mut agreeing = [0u32; TILE];
    for (i, v) in v.iter().enumerate().take(job.models.len()) {
        for (((mixed, agreeing), v), sum) in mixed.iter_mut().zip(&mut agreeing).zip(v).zip(&sum) {
            let agrees = agrees(*v, elected(*sum));
            *mixed += if agrees { *v } else { 0.0 * v };
            *agreeing |= u32::from(agrees) << i;
        }
    }
    for (((out, base), mixed), set) in out.iter_mut().zip(base).zip(&mixed).zip(&agreeing) {
        *out = base.value() + mixed * job.scale[*set as usize];
    }
}

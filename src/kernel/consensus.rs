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

use std::ops::Range;

use super::packed::{append, append_floats};
use super::thinning::{Keep, Mask, Model, PackedModel, Trim, bench_mask, factors, random_masks};
use super::{CaseNumbers, Compiled, KEY_MAX, Kept, Kernel, Needs, Numbers, Outcome, TILE, Target, TileInputs, VOTERS_MAX, Widest};
use crate::dtype::{Element, magnitude_bits};

/// The numbers of one tensor: input 0 is the base, then one model per further input.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// One entry per non-base model.
    pub models: Vec<Model>,
    /// 2^models factors, by the set of agreeing models (bit i: model i). Empty: no vote, all agree, factor 1.
    pub scale: Vec<f32>,
}

/// The record.
pub(super) const KERNEL: Kernel = Kernel {
    name: "consensus",
    ptx: Compiled { text: include_str!("../../kernels/ptx/consensus.ptx"), models: FEW },
    wgsl: Compiled { text: include_str!("../../shaders/consensus.wgsl"), models: FEW },
    group_words: 0,
    needs: |widest, chunk_tiles| {
        let models = widest.inputs.saturating_sub(1);
        let job = 1 + models * PackedModel::WORDS + (1 << models.min(VOTERS_MAX));
        Needs { job_words: Widest::spans_of(chunk_tiles) * job, ..Needs::default() }
    },
    structs: &[PackedModel::STRUCT],
    constants: &[],
    cases,
    benches,
};

/// Votes of every kind, and one merge without; pairs of models weigh the same, so that votes come out even.
fn cases(drawn: &CaseNumbers) -> Vec<super::Job> {
    let job = |coefficient: &dyn Fn(usize) -> f32, keep: &dyn Fn(usize) -> Keep, voting: bool| {
        let model = |i: usize| Model { coefficient: coefficient(i), keep: keep(i) };
        let scale = |set: usize| 1.0 / (1.0 + set as f32);
        let sets = if voting { 1usize << drawn.models } else { 0 };
        Job { models: (0..drawn.models).map(model).collect(), scale: (0..sets).map(scale).collect() }
    };
    let paired = |i: usize| drawn.coefficients[i - i % 2];
    // Few models would not come to the last kinds of the lists without a shift.
    let mixed = (0..4).map(|shift| job(&paired, &|i| drawn.keep(i + shift), true));
    // With halves, results are often right between two numbers of the output's type.
    // In an order in which a quick check meets huge values with two models that have no NaN for a threshold, in bfloat16.
    let whole = [1, 0, 2].map(|shift| job(&|_| 0.5, &|i| trim_of_blocks(i + shift), true));
    let random = job(&paired, &|i| random_masks(drawn.word, i), true);
    let votes = mixed.chain(whole).chain([random]).filter(|_| drawn.models <= VOTERS_MAX);
    votes.chain([job(&paired, &|i| drawn.keep(i + 2), false)]).map(Into::into).collect()
}

/// Thresholds that a GPU's blocks of tiles need not look for a cut with: it is behind the first block or where the second one
/// begins; and one that NaN alone reaches, which no float is above.
fn trim_of_blocks(i: usize) -> Keep {
    let cut = |cut_tile: u32, cut_lane: u32| Trim { threshold: 0.25f32.to_bits(), cut_tile, cut_lane };
    Keep::Trim([cut(4, 0), cut(6, 17), Trim { threshold: KEY_MAX, ..cut(6, 17) }][i % 3])
}

fn benches(keys: &[u32]) -> Vec<(&'static str, super::Job)> {
    let trim = |i: usize| Keep::Trim(Trim { threshold: keys[i], cut_tile: 7, cut_lane: 11 });
    let job = |models: usize, keep: &dyn Fn(usize) -> Keep| {
        let scale = |set: u32| 1.0 / f64::from(set.count_ones().max(1)) as f32;
        let models: Vec<Model> = (0..models).map(|i| Model { coefficient: 0.6, keep: keep(i) }).collect();
        super::Job::from(Job { scale: (0..1u32 << models.len()).map(scale).collect(), models })
    };
    vec![
        ("ties, base + 1", job(1, &trim)),
        ("ties, base + 2", job(2, &trim)),
        ("ties, base + 4", job(4, &trim)),
        ("dare_ties, base + 2", job(2, &bench_mask)),
    ]
}

impl Numbers for Job {
    fn inputs(&self) -> usize {
        1 + self.models.len()
    }

    fn outcome(&self) -> Outcome {
        Outcome::Values
    }

    fn models(&self) -> usize {
        self.models.len()
    }

    fn masks(&self) -> Vec<Option<Mask>> {
        self.models.iter().map(|model| model.keep.mask()).collect()
    }

    fn factors(&self, _: &Range<u64>) -> Vec<f32> {
        self.models.iter().map(|model| model.coefficient).chain(self.scale.iter().copied()).collect()
    }

    /// Whether there is a vote, then the models, then the factors.
    fn pack(&self, _: &Range<u64>, words: &mut Vec<u32>) {
        words.push((!self.scale.is_empty()).into());
        self.models.iter().for_each(|model| append(words, &PackedModel::from(*model)));
        append_floats(words, &self.scale);
    }

    fn plain(&self, tile: u64, x: &[&[f32]], target: Target<'_>) {
        let (out, kept) = target.values();
        for (i, out) in out.iter_mut().enumerate() {
            let (base, element) = (x[0][i], tile * TILE as u64 + i as u64);
            let mut v = Vec::new();
            for (m, Model { coefficient, keep }) in self.models.iter().enumerate() {
                let delta = x[m + 1][i] - base;
                let keeps = keep.keeps(element, delta);
                v.push(if keeps { *coefficient } else { 0.0 } * delta);
                if m < VOTERS_MAX && keeps && keep.counts() {
                    kept[m] += 1;
                }
            }
            let sum = v.iter().fold(0.0, |sum, v| sum + v);
            if self.scale.is_empty() {
                *out = base + sum;
                continue;
            }
            let (mut mixed, mut set) = (0.0, 0);
            for (m, v) in v.iter().enumerate() {
                let agrees = if sum >= 0.0 { *v > 0.0 } else { *v < 0.0 };
                mixed += if agrees { *v } else { 0.0 * v };
                set |= usize::from(agrees) << m;
            }
            *out = base + mixed * self.scale[set];
        }
    }

    #[inline(always)]
    fn tile<E: Element>(&self, tile: u64, inputs: &TileInputs<'_, E>, scratch: &mut Vec<f32>, target: Target<'_>) {
        let (out, kept) = target.values();
        fast(self, tile, inputs, scratch, out, kept);
    }
}

/// The fast path. Clearing `scratch` would cost as much as the merge.
#[inline(always)]
fn fast<E: Element>(
    job: &Job,
    tile: u64,
    inputs: &TileInputs<'_, E>,
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
pub(super) const FEW: usize = 4;

/// So few models that all of an element's terms are at hand at once.
#[inline(always)]
fn few<const N: usize, E: Element>(
    job: &Job,
    tile: u64,
    inputs: &TileInputs<'_, E>,
    scratch: &mut [[f32; TILE]],
    out: &mut [f32],
    kept: &mut Kept,
) {
    let models: &[Model; N] = job.models.as_array().expect("N models");
    let merge = Few::<'_, N, E> { base: inputs.of(0), x: inputs.several(1), scale: &job.scale };
    if models.iter().any(|model| matches!(model.keep, Keep::Random(_))) {
        let scratch: &mut [[f32; TILE]; N] = scratch.first_chunk_mut().expect("room for N tiles");
        for (m, model) in models.iter().enumerate() {
            kept[m] += factors(model, m, tile, inputs, &mut scratch[m]) as u64;
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
pub(super) struct Scale([(u32, u32); 1 << (FEW - 1)]);

impl Scale {
    #[inline(always)]
    pub(super) fn new(scale: &[f32]) -> Self {
        let bits = |set: usize| scale.get(set).map_or(0, |factor| factor.to_bits());
        Self(std::array::from_fn(|pair| (bits(2 * pair), bits(2 * pair) ^ bits(2 * pair + 1))))
    }

    /// The factor of a set of models, by choices alone: so small a table fits registers. The compiler would choose among
    /// addresses and then load, which takes longer, but for the first choice being none between two loads; and it would not
    /// always unroll inner loops before it makes the outer one a loop of vectors.
    #[inline(always)]
    pub(super) fn of(&self, [one, two, four, eight]: [bool; FEW]) -> f32 {
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
pub(super) fn elected(sum: f32) -> u32 {
    if sum >= 0.0 { 0 } else { 1 << 31 }
}

/// Whether a term has the elected sign.
#[inline(always)]
pub(super) fn agrees(v: f32, elected: u32) -> bool {
    f32::from_bits(v.to_bits() ^ elected) > 0.0
}

/// The models one after the other.
#[inline(always)]
fn many<E: Element>(
    job: &Job,
    tile: u64,
    inputs: &TileInputs<'_, E>,
    v: &mut [[f32; TILE]],
    out: &mut [f32],
    kept: &mut Kept,
) {
    let base = inputs.of(0);
    let mut sum = [0.0; TILE];
    for (i, (model, v)) in job.models.iter().zip(v.iter_mut()).enumerate() {
        let x = inputs.of(i + 1);
        let of_model = factors(model, i, tile, inputs, v);
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

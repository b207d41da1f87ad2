//! The merge of task vectors with any choice of elements and any rule that combines what is kept of one.
//!
//! ```text
//! δᵢ  = xᵢ − base
//! vᵢ  = (kept ? coefficientᵢ : 0) · δᵢ
//! out = base + what the rule makes of all vᵢ
//! ```
//!
//! It goes where `consensus` does not: bands of magnitudes, masks and other selectors, terms that count for more where they
//! agree, the largest term alone, and what many models change alike. An excluded term is multiplied by 0 and added, so that
//! NaN and infinity spread whatever the rule.

use std::ops::Range;

use super::choice::{Choice, Interval, NOTHING, PackedChoice, choice_of_case, parts};
use super::consensus::{FEW, Scale, agrees, elected};
use super::packed::{append, append_floats, packed};
use super::thinning::Trim;
use super::{CaseNumbers, Compiled, Kept, Kernel, Needs, Numbers, Outcome, TILE, Target, TileInputs, VOTERS_MAX, Widest, key};
use crate::dtype::Element;

/// The numbers of one tensor: input 0 is the base, then one model per further input, then the selectors.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// One entry per non-base model.
    pub models: Vec<Part>,
    /// How many selectors.
    pub selectors: usize,
    /// What is made of the terms of an element.
    pub rule: Rule,
}

/// One model's part in the merge.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Part {
    /// The weight, with everything that scales the whole task vector folded in.
    pub coefficient: f32,
    /// What a term is multiplied with where it agrees, beside everything else; for [`Rule::Signs`] alone.
    pub share: f32,
    /// Which elements are kept.
    pub choice: Choice,
}

/// What is made of the terms of an element: `out = base +` this. A sign is that of `Σ vᵢ`, and + for 0; a term agrees that has
/// this sign and is not 0. Sets have bit i for model i.
#[derive(Debug, Clone, PartialEq)]
pub enum Rule {
    /// `Σ vᵢ`.
    Sum,
    /// `scale[set of those that agree] · Σ (vᵢ agrees ? shareᵢ · vᵢ : 0 · vᵢ)`, with an entry for each set.
    Signs(Vec<f32>),
    /// `scale[set of those that keep the element] · Σ vᵢ`, with an entry for each set.
    Kept(Vec<f32>),
    /// `scale · vᵢ` of the largest magnitude, the first among equals.
    Largest(f32),
    /// The same among those that agree, or 0 where none does; the others are added times 0.
    Elected(f32),
    /// `scale · Σ vᵢ` where at least so many models hold on to the element, else 0 times the sum. A model does that keeps it, and
    /// whose `|δᵢ| ≥ toleranceᵢ · |Σ v − δᵢ|` (the masks of Wang et al., arXiv:2405.07813).
    Common {
        /// What the sum is multiplied with.
        scale: f32,
        /// How many models it takes.
        least: u32,
        /// One per model.
        tolerances: Vec<f32>,
    },
}

/// The record.
pub(super) const KERNEL: Kernel = Kernel {
    name: "elect",
    ptx: Compiled { text: include_str!("../../kernels/ptx/elect.ptx"), models: 0 },
    wgsl: Compiled { text: include_str!("../../shaders/elect.wgsl"), models: 0 },
    group_words: 0,
    needs: |widest, chunk_tiles| {
        let models = widest.inputs.saturating_sub(1);
        let of_models = models * (PackedPart::WORDS + PackedChoice::WORDS);
        let job = PackedElection::WORDS + of_models + (1 << models.min(VOTERS_MAX));
        Needs { job_words: Widest::spans_of(chunk_tiles) * job, ..Needs::default() }
    },
    structs: &[PackedElection::STRUCT, PackedPart::STRUCT, PackedChoice::STRUCT],
    constants: &[
        ("RULE_SUM", RULE_SUM),
        ("RULE_SIGNS", RULE_SIGNS),
        ("RULE_KEPT", RULE_KEPT),
        ("RULE_LARGEST", RULE_LARGEST),
        ("RULE_ELECTED", RULE_ELECTED),
        ("RULE_COMMON", RULE_COMMON),
        ("OWN_MAGNITUDE", super::choice::OWN_MAGNITUDE),
    ],
    cases,
    benches,
};

/// Every rule, with choices of all kinds; pairs of models weigh the same, so that votes come out even and magnitudes equal.
fn cases(drawn: &CaseNumbers) -> Vec<super::Job> {
    let models = drawn.models;
    let job = |shift: usize, selectors: usize, rule: Rule| {
        let part = |i: usize| Part {
            coefficient: if shift == 0 { 0.5 } else { drawn.coefficients[i - i % 2] },
            share: [1.0, -0.75, 2.5, 1.0][(i + shift) % 4],
            choice: choice_of_case(drawn.threshold, selectors, i + shift),
        };
        Job { models: (0..models).map(part).collect(), selectors, rule }
    };
    let table = || (0..1usize << models).map(|set| 1.0 / (1.0 + set as f32)).collect();
    let common = |least: u32| {
        let tolerances = (0..models).map(|i| [0.4, 0.0, 1.0, 0.25][i % 4]).collect();
        Rule::Common { scale: 1.25, least, tolerances }
    };
    let half = models.div_ceil(2) as u32;
    let mut jobs = vec![
        job(1, 2, Rule::Sum),
        job(4, 0, Rule::Sum),
        job(2, 1, Rule::Largest(1.5)),
        job(0, 2, Rule::Elected(0.75)),
        job(3, 2, common(half)),
        job(5, 1, common(1)),
    ];
    if models <= VOTERS_MAX {
        jobs.extend([0, 3, 6].map(|shift| job(shift, shift % 4, Rule::Signs(table()))));
        jobs.extend([1, 4].map(|shift| job(shift, shift % 3, Rule::Kept(table()))));
    }
    jobs.into_iter().map(Into::into).collect()
}

fn benches(keys: &[u32]) -> Vec<(&'static str, super::Job)> {
    let trim = |threshold: u32| Trim { threshold, cut_tile: 7, cut_lane: 11 };
    let job = |models: usize, selectors: usize, choice: &dyn Fn(usize) -> Choice, rule: Rule| {
        let part = |i: usize| Part { coefficient: 0.6, share: 1.0, choice: choice(i) };
        super::Job::from(Job { models: (0..models).map(part).collect(), selectors, rule })
    };
    let band = |i: usize| Choice::Band { kept: trim(keys[i]), dropped: trim(keys[i] + (4 << 23)) };
    let by = |_: usize| Choice::By { selector: 0, trim: trim(keys[0]), dropped: NOTHING };
    let signs = |models: usize| Rule::Signs((0..1u32 << models).map(|set| 1.0 / set.count_ones().max(1) as f32).collect());
    vec![
        ("breadcrumbs, base + 2", job(2, 0, &band, Rule::Sum)),
        ("breadcrumbs_ties, base + 2", job(2, 0, &band, signs(2))),
        ("sce, base + 2", job(2, 1, &by, signs(2))),
        ("the largest, base + 4", job(4, 0, &|_| Choice::All, Rule::Largest(1.0))),
    ]
}

impl Numbers for Job {
    fn inputs(&self) -> usize {
        self.merged() + self.selectors
    }

    fn merged(&self) -> usize {
        1 + self.models.len()
    }

    fn outcome(&self) -> Outcome {
        Outcome::Values
    }

    fn factors(&self, _: &Range<u64>) -> Vec<f32> {
        let of_models = self.models.iter().flat_map(|part| [part.coefficient, part.share]);
        of_models.chain(self.rule.factors()).collect()
    }

    /// The rule, then the models, what they keep, and the factors of all sets.
    fn pack(&self, _: &Range<u64>, words: &mut Vec<u32>) {
        append(words, &self.rule.packed(self.selectors));
        for (m, Part { coefficient, share, .. }) in self.models.iter().enumerate() {
            let tolerance = self.rule.tolerances().get(m).copied().unwrap_or(0.0);
            append(words, &PackedPart { coefficient: *coefficient, share: *share, tolerance });
        }
        self.models.iter().for_each(|part| append(words, &PackedChoice::from(part.choice)));
        append_floats(words, self.rule.scales());
    }

    fn plain(&self, tile: u64, x: &[&[f32]], target: Target<'_>) {
        let (out, kept) = target.values();
        let (models, selectors) = x[1..].split_at(self.models.len());
        for (i, out) in out.iter_mut().enumerate() {
            let (base, element) = (x[0][i], tile * TILE as u64 + i as u64);
            let mut terms = Vec::new();
            for (m, part) in self.models.iter().enumerate() {
                let delta = models[m][i] - base;
                let keeps = part.choice.keeps(element, delta, |selector| selectors[selector][i]);
                let v = if keeps { part.coefficient } else { 0.0 } * delta;
                terms.push(Term { delta, keeps, v, share: part.share });
                if m < VOTERS_MAX {
                    kept[m] += u64::from(keeps);
                }
            }
            *out = base + self.rule.of_terms(&terms);
        }
    }

    #[inline(always)]
    fn tile<E: Element>(&self, tile: u64, inputs: &TileInputs<'_, E>, scratch: &mut Vec<f32>, target: Target<'_>) {
        let (out, kept) = target.values();
        fast(self, tile, inputs, scratch, out, kept);
    }
}

/// One model's term, for the plain twin.
struct Term {
    delta: f32,
    keeps: bool,
    v: f32,
    share: f32,
}

impl Rule {
    /// The plain rule.
    fn of_terms(&self, terms: &[Term]) -> f32 {
        let sum = terms.iter().fold(0.0, |sum, term| sum + term.v);
        let agrees = |v: f32| if sum >= 0.0 { v > 0.0 } else { v < 0.0 };
        match self {
            Self::Sum => sum,
            Self::Signs(scale) => {
                let (mut mixed, mut set) = (0.0, 0);
                for (m, Term { v, share, .. }) in terms.iter().enumerate() {
                    mixed += if agrees(*v) { share * v } else { 0.0 * v };
                    set |= usize::from(agrees(*v)) << m;
                }
                scale[set] * mixed
            }
            Self::Kept(scale) => {
                let bit = |(m, term): (usize, &Term)| usize::from(term.keeps) << m;
                scale[terms.iter().enumerate().map(bit).sum::<usize>()] * sum
            }
            Self::Largest(scale) => scale * largest(terms.iter().map(|term| term.v)),
            Self::Elected(scale) => {
                let chosen = largest(terms.iter().map(|term| if agrees(term.v) { term.v } else { 0.0 }));
                let others = terms.iter().filter(|term| !agrees(term.v));
                scale * others.fold(chosen, |all, term| all + 0.0 * term.v)
            }
            Self::Common { scale, least, tolerances } => {
                let holds = |(term, tolerance): &(&Term, &f32)| {
                    term.keeps && term.delta.abs() >= *tolerance * (sum - term.delta).abs()
                };
                let holders = terms.iter().zip(tolerances).filter(holds).count();
                if holders >= *least as usize { *scale * sum } else { 0.0 * sum }
            }
        }
    }

    /// The factors of all sets, where it has them.
    fn scales(&self) -> &[f32] {
        match self {
            Self::Signs(scale) | Self::Kept(scale) => scale,
            _ => &[],
        }
    }

    fn tolerances(&self) -> &[f32] {
        match self {
            Self::Common { tolerances, .. } => tolerances,
            _ => &[],
        }
    }

    /// What values are multiplied with.
    fn factors(&self) -> Vec<f32> {
        let one = match self {
            Self::Largest(scale) | Self::Elected(scale) | Self::Common { scale, .. } => Some(*scale),
            _ => None,
        };
        one.into_iter().chain(self.scales().iter().chain(self.tolerances()).copied()).collect()
    }

    fn packed(&self, selectors: usize) -> PackedElection {
        let (rule, scale, least) = match self {
            Self::Sum => (RULE_SUM, 1.0, 0),
            Self::Signs(_) => (RULE_SIGNS, 1.0, 0),
            Self::Kept(_) => (RULE_KEPT, 1.0, 0),
            Self::Largest(scale) => (RULE_LARGEST, *scale, 0),
            Self::Elected(scale) => (RULE_ELECTED, *scale, 0),
            Self::Common { scale, least, .. } => (RULE_COMMON, *scale, *least),
        };
        PackedElection { rule, selectors: selectors as u32, scale, least }
    }
}

/// The first of those with the largest key.
fn largest(v: impl Iterator<Item = f32>) -> f32 {
    v.reduce(|first, v| if key(v) > key(first) { v } else { first }).unwrap_or(0.0)
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
    let merge = Few { job, tile, inputs };
    match (&job.rule, job.models.len()) {
        (Rule::Sum | Rule::Signs(_), 1) => merge.tile::<1>(out, kept),
        (Rule::Sum | Rule::Signs(_), 2) => merge.tile::<2>(out, kept),
        (Rule::Sum | Rule::Signs(_), 3) => merge.tile::<3>(out, kept),
        (Rule::Sum | Rule::Signs(_), 4) => merge.tile::<4>(out, kept),
        _ => {
            scratch.resize(scratch.len().max(job.models.len() * PART), 0.0);
            for (number, out) in out.chunks_mut(PART).enumerate() {
                let part = number * PART..number * PART + out.len();
                many(job, tile, inputs, part, scratch.as_chunks_mut().0, out, kept);
            }
        }
    }
}

/// A tile of so few models that all of an element's terms are at hand at once, for rules that only add them.
struct Few<'a, 'b, E> {
    job: &'a Job,
    tile: u64,
    inputs: &'a TileInputs<'b, E>,
}

impl<E: Element> Few<'_, '_, E> {
    #[inline(always)]
    fn tile<const N: usize>(&self, out: &mut [f32], kept: &mut Kept) {
        let models: &[Part; N] = self.job.models.as_array().expect("N models");
        let len = self.inputs.len;
        let cuts: [[usize; 2]; N] = models.map(|part| part.choice.cuts(self.tile));
        // Up to the next cut all elements of a model are kept or dropped alike.
        for part in parts(cuts.iter().flatten().copied(), 0..len) {
            let intervals = models.map(|model| model.choice.interval(self.tile, part.start));
            let (x, coefficients) = (self.inputs.several(1), models.map(|model| model.coefficient));
            let mut of_part = Chosen { x, coefficients, intervals, kept: [0; N] };
            if self.job.selectors == 0 {
                self.part(part, out, &mut of_part);
            } else {
                let deciding = std::array::from_fn(|m| match models[m].choice.selector() {
                    Some(selector) => self.inputs.of(1 + N + selector),
                    None => of_part.x[m],
                });
                let by_selector = models.map(|model| model.choice.selector().is_some());
                let mut selected = Selected { chosen: of_part, deciding, by_selector };
                self.part(part, out, &mut selected);
                of_part = selected.chosen;
            }
            kept.iter_mut().zip(of_part.kept).for_each(|(kept, count)| *kept += u64::from(count));
        }
    }

    /// Merges a part of the tile.
    #[inline(always)]
    fn part<const N: usize>(&self, part: Range<usize>, out: &mut [f32], terms: &mut impl Terms<N>) {
        terms.narrow(part.start, part.len());
        let (base, out) = (&self.inputs.of(0)[part.clone()], &mut out[part]);
        let models: &[Part; N] = self.job.models.as_array().expect("N models");
        match &self.job.rule {
            Rule::Signs(scale) if models.iter().all(|model| model.share == 1.0) => {
                agreeing(base, terms, None, &Scale::new(scale), out);
            }
            Rule::Signs(scale) => {
                agreeing(base, terms, Some(models.map(|model| model.share)), &Scale::new(scale), out);
            }
            _ => {
                // Slices of one length, and indices: the compiler needs no checks, and uses vectors to the end.
                let base = &base[..out.len()];
                for i in 0..out.len() {
                    let base = base[i].value();
                    out[i] = base + terms_of(terms, i, base).1;
                }
            }
        }
    }
}

/// [`Rule::Signs`]. Shares that are all 1 are none: with a number more for each model, four would not fit registers.
#[inline(always)]
fn agreeing<const N: usize, E: Element>(
    base: &[E],
    terms: &mut impl Terms<N>,
    shares: Option<[f32; N]>,
    scale: &Scale,
    out: &mut [f32],
) {
    let base = &base[..out.len()];
    for i in 0..out.len() {
        let base = base[i].value();
        let (v, sum) = terms_of(terms, i, base);
        let elected = elected(sum);
        let mut agreeing = [false; FEW];
        let mut mixed = 0.0f32;
        for m in 0..N {
            agreeing[m] = agrees(v[m], elected);
            mixed += v[m] * if agreeing[m] { shares.map_or(1.0, |shares| shares[m]) } else { 0.0 };
        }
        out[i] = base + mixed * scale.of(agreeing);
    }
}

/// Each v of an element, and their sum.
#[inline(always)]
fn terms_of<const N: usize>(terms: &mut impl Terms<N>, i: usize, base: f32) -> ([f32; N], f32) {
    let (mut v, mut sum) = ([0.0; N], 0.0);
    for (m, v) in v.iter_mut().enumerate() {
        *v = terms.of(m, i, base);
        sum += *v;
    }
    (v, sum)
}

/// The terms of `N` models in a part of a tile.
trait Terms<const N: usize> {
    /// Goes on to a part of the tile.
    fn narrow(&mut self, start: usize, len: usize);

    /// That of a model for element `i` of the part. Not a closure: those the compiler may leave as calls, and then uses no
    /// vectors.
    fn of(&mut self, m: usize, i: usize, base: f32) -> f32;
}

/// The task vectors' own magnitudes decide.
struct Chosen<'a, const N: usize, E> {
    x: [&'a [E]; N],
    coefficients: [f32; N],
    intervals: [Interval; N],
    /// How many elements of each were kept.
    kept: [u32; N],
}

impl<const N: usize, E> Chosen<'_, N, E> {
    /// A term, and whether it is kept, by the value that decides.
    #[inline(always)]
    fn term(&mut self, m: usize, delta: f32, deciding: f32) -> f32 {
        let keep = self.intervals[m].holds(deciding);
        self.kept[m] += u32::from(keep);
        (if keep { self.coefficients[m] } else { 0.0 }) * delta
    }
}

impl<const N: usize, E: Element> Terms<N> for Chosen<'_, N, E> {
    #[inline(always)]
    fn narrow(&mut self, start: usize, len: usize) {
        self.x = self.x.map(|x| &x[start..][..len]);
    }

    #[inline(always)]
    fn of(&mut self, m: usize, i: usize, base: f32) -> f32 {
        let delta = self.x[m][i].value() - base;
        self.term(m, delta, delta)
    }
}

/// Selectors decide for some models.
struct Selected<'a, const N: usize, E> {
    chosen: Chosen<'a, N, E>,
    /// The selector, or what will do as well where there is none.
    deciding: [&'a [E]; N],
    by_selector: [bool; N],
}

impl<const N: usize, E: Element> Terms<N> for Selected<'_, N, E> {
    #[inline(always)]
    fn narrow(&mut self, start: usize, len: usize) {
        self.chosen.narrow(start, len);
        self.deciding = self.deciding.map(|deciding| &deciding[start..][..len]);
    }

    #[inline(always)]
    fn of(&mut self, m: usize, i: usize, base: f32) -> f32 {
        let delta = self.chosen.x[m][i].value() - base;
        let deciding = if self.by_selector[m] { self.deciding[m][i].value() } else { delta };
        self.chosen.term(m, delta, deciding)
    }
}

/// So many elements go through all models at once that what is kept of each stays in the nearest cache.
const PART: usize = TILE / 4;

/// The models one after the other, for a part of a tile.
#[inline(always)]
fn many<E: Element>(
    job: &Job,
    tile: u64,
    inputs: &TileInputs<'_, E>,
    part: Range<usize>,
    v: &mut [[f32; PART]],
    out: &mut [f32],
    kept: &mut Kept,
) {
    let (base, models) = (&inputs.of(0)[part.clone()], job.models.len());
    let (mut sum, mut set) = ([0.0f32; PART], [0u32; PART]);
    for (m, (model, v)) in job.models.iter().zip(v.iter_mut()).enumerate() {
        // Flags first, in the place of the terms.
        let flags: &mut [u32] = bytemuck::cast_slice_mut(&mut v[..part.len()]);
        let of_model = model.choice.flags(m, models, tile, inputs, part.clone(), flags);
        if matches!(job.rule, Rule::Kept(_)) {
            set.iter_mut().zip(flags).for_each(|(set, flag)| *set |= *flag & 1 << m);
        }
        if let Some(kept) = kept.get_mut(m) {
            *kept += of_model as u64;
        }
        let (x, coefficient) = (&inputs.of(m + 1)[part.clone()], model.coefficient.to_bits());
        for (((v, sum), x), base) in v.iter_mut().zip(&mut sum).zip(x).zip(base) {
            *v = f32::from_bits(coefficient & v.to_bits()) * (x.value() - base.value());
            *sum += *v;
        }
    }
    let v = &v[..models];
    match &job.rule {
        Rule::Sum => {}
        Rule::Signs(scale) => add_agreeing(&job.models, scale, v, &mut sum),
        Rule::Kept(scale) => scale_by_set(scale, &set, &mut sum),
        Rule::Largest(scale) => {
            let mut best = [0.0f32; PART];
            for v in v {
                for (best, v) in best.iter_mut().zip(v) {
                    *best = if key(*v) > key(*best) { *v } else { *best };
                }
            }
            sum = best.map(|best| best * scale);
        }
        Rule::Elected(scale) => elect(*scale, v, &mut sum),
        Rule::Common { scale, least, tolerances } => {
            let mut holders = [0u32; PART];
            for (m, (model, tolerance)) in job.models.iter().zip(tolerances).enumerate() {
                let mut flags = [0; PART];
                model.choice.flags(m, models, tile, inputs, part.clone(), &mut flags);
                let deltas = inputs.of(m + 1)[part.clone()].iter().zip(base);
                for (((holders, flag), sum), (x, base)) in holders.iter_mut().zip(&flags).zip(&sum).zip(deltas) {
                    let delta = x.value() - base.value();
                    let holds = delta.abs() >= tolerance * (sum - delta).abs();
                    *holders += flag & u32::from(holds);
                }
            }
            for (sum, holders) in sum.iter_mut().zip(&holders) {
                *sum *= if *holders >= *least { *scale } else { 0.0 };
            }
        }
    }
    for ((out, base), sum) in out.iter_mut().zip(base).zip(&sum) {
        *out = base.value() + sum;
    }
}

/// [`Rule::Signs`], in the place of the sums.
#[inline(always)]
fn add_agreeing(models: &[Part], scale: &[f32], v: &[[f32; PART]], sum: &mut [f32; PART]) {
    let (mut mixed, mut set) = ([0.0f32; PART], [0u32; PART]);
    for (m, (v, model)) in v.iter().zip(models).enumerate() {
        let share = model.share;
        for (((mixed, set), v), sum) in mixed.iter_mut().zip(&mut set).zip(v).zip(&*sum) {
            let agrees = agrees(*v, elected(*sum));
            *mixed += v * if agrees { share } else { 0.0 };
            *set |= u32::from(agrees) << m;
        }
    }
    scale_by_set(scale, &set, &mut mixed);
    *sum = mixed;
}

/// [`Rule::Elected`], in the place of the sums.
#[inline(always)]
fn elect(scale: f32, v: &[[f32; PART]], sum: &mut [f32; PART]) {
    let (mut best, mut others) = ([0.0f32; PART], [0.0f32; PART]);
    for v in v {
        for (((best, others), v), sum) in best.iter_mut().zip(&mut others).zip(v).zip(&*sum) {
            let agrees = agrees(*v, elected(*sum));
            *best = if agrees && key(*v) > key(*best) { *v } else { *best };
            *others += if agrees { 0.0 } else { 0.0 * v };
        }
    }
    for ((sum, best), others) in sum.iter_mut().zip(&best).zip(&others) {
        *sum = scale * (best + others);
    }
}

/// Multiplies each element with the factor of its set.
#[inline(always)]
fn scale_by_set(scale: &[f32], set: &[u32; PART], mixed: &mut [f32; PART]) {
    for (mixed, set) in mixed.iter_mut().zip(set) {
        *mixed *= scale[*set as usize];
    }
}

packed! {
    /// What is made of the terms of an element.
    pub struct PackedElection as Election {
        /// One of the rules.
        rule: u32,
        /// Inputs behind those of the models.
        selectors: u32,
        /// What the result is multiplied with, where that is the same for all sets.
        scale: f32,
        /// Models that have to hold on to an element.
        least: u32,
    }

    /// One model's part in it; see [`Part`].
    pub struct PackedPart as Part {
        /// The weight.
        coefficient: f32,
        /// What a term is multiplied with where it agrees.
        share: f32,
        /// How much of the others' sum the model's own difference has to be.
        tolerance: f32,
    }
}

/// A value of [`PackedElection::rule`].
const RULE_SUM: u32 = 0;

/// The same.
const RULE_SIGNS: u32 = 1;

/// The same.
const RULE_KEPT: u32 = 2;

/// The same.
const RULE_LARGEST: u32 = 3;

/// The same.
const RULE_ELECTED: u32 = 4;

/// The same.
const RULE_COMMON: u32 = 5;

#[cfg(test)]
mod tests;

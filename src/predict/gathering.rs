//! What is kept of the logits of one token of the texts, while they come block by block.
//!
//! Kept are those tokens of the vocabulary to which any parent gives most probability. Of all others it has to be known what they
//! come to in a merge: `R(c) = Σ exp(ℓ₀ + Σ cᵢ (ℓᵢ − ℓ₀))`, with ℓ the parents' log-probabilities. Its logarithm is a convex function
//! of c, known at each parent and at the parents' mean, and its curvature at the mean is the covariance of the differences. A quadratic
//! with that curvature goes through all of these points.

use crate::decoder::{exponentials, max_and_sum};
use crate::instructions::for_each_instruction_set;

/// What is kept of a token, as numbers one behind the other: the log-probability of what really follows in the first parent, and its
/// differences in the others; then, unless the whole vocabulary is kept, the rest's logarithms and covariances; then the kept tokens,
/// those of each parent together: log-probabilities in the first, and the differences in the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    /// The parents.
    pub parents: usize,
    /// The kept tokens.
    pub top: usize,
    /// Whether these are all.
    pub whole: bool,
}

impl Shape {
    /// That of so many parents, with so many tokens of a vocabulary kept.
    pub fn of(parents: usize, top: usize, vocabulary: usize) -> Self {
        Self { parents, top, whole: top == vocabulary }
    }

    /// The numbers of the rest: a logarithm for each parent, and a covariance for each pair of differences.
    fn rest(self) -> usize {
        if self.whole { 0 } else { self.parents + covariances(self.parents - 1) }
    }

    /// All numbers of a token.
    pub fn stride(self) -> usize {
        self.parents + self.rest() + self.top * self.parents
    }

    /// The target, the logarithms of the rest and their covariances, and the kept tokens.
    pub fn parts(self, token: &[f32]) -> (&[f32], &[f32], &[f32], &[f32]) {
        let (target, others) = token.split_at(self.parents);
        let (rest, kept) = others.split_at(self.rest());
        let (logs, covariances) = rest.split_at(if self.whole { 0 } else { self.parents });
        (target, logs, covariances, kept)
    }

    /// Bytes that a token takes besides while its logits come.
    pub fn gathering_bytes(self) -> u64 {
        let numbers = 4 * self.parents + covariances(self.parents - 1);
        (size_of::<Gathering<'_>>() + 2 * size_of::<f64>() * numbers) as u64
    }
}

/// Pairs of so many differences, each with itself too.
pub(super) fn covariances(differences: usize) -> usize {
    differences * (differences + 1) / 2
}

/// A token of the texts while its logits come.
#[derive(Debug)]
pub(super) struct Gathering<'k> {
    shape: Shape,
    into: &'k mut [f32],
    target: usize,
    filled: usize,
    /// The least score among the kept, once there are as many as are kept.
    least: f32,
    /// Of each parent the largest logit, and the sum of exponentials once it is subtracted.
    max: Vec<f32>,
    sum: Vec<f64>,
    rest: Rest,
}

/// What the tokens that are not kept come to.
#[derive(Debug, Default)]
struct Rest {
    /// In each parent, by its largest logit.
    masses: Vec<f64>,
    /// In the parents' mean, by the largest mean logit; and moments of the differences there.
    max: f32,
    mass: f64,
    first: Vec<f64>,
    second: Vec<f64>,
}

/// No logarithm of the rest is less: what is less likely does not count, and infinities would not do in sums.
const LOG_MIN: f64 = -100.0;

/// The curvature as measured may be this many times too small or too large, and is scaled to what the rest comes to at the mean.
const SCALE_MAX: f64 = 4.0;

impl<'k> Gathering<'k> {
    pub(super) fn new(shape: Shape, into: &'k mut [f32], target: usize) -> Self {
        let (parents, differences) = (shape.parents, shape.parents - 1);
        let rest = if shape.whole {
            Rest::default()
        } else {
            Rest {
                masses: vec![0.0; parents],
                max: f32::NEG_INFINITY,
                mass: 0.0,
                first: vec![0.0; differences],
                second: vec![0.0; covariances(differences)],
            }
        };
        let (max, sum) = (vec![f32::NEG_INFINITY; parents], vec![0.0; parents]);
        Self { shape, into, target, filled: 0, least: f32::NEG_INFINITY, max, sum, rest }
    }

    /// Takes the logits of all parents from this row of the vocabulary on.
    pub(super) fn take(&mut self, first: usize, logits: &[&[f32]]) {
        if let Some(at) = self.target.checked_sub(first).filter(|at| *at < logits[0].len()) {
            self.into.iter_mut().zip(logits).for_each(|(into, logits)| *into = logits[at]);
        }
        for (parent, logits) in logits.iter().enumerate() {
            let (max, sum) = max_and_sum(logits);
            let both = self.max[parent].max(max);
            let scale =
                |from: f32| if from == f32::NEG_INFINITY { 0.0 } else { f64::from(from - both).exp() };
            let (of_old, of_new) = (scale(self.max[parent]), scale(max));
            self.sum[parent] = self.sum[parent] * of_old + sum * of_new;
            if !self.shape.whole {
                self.rest.masses[parent] *= of_old;
            }
            self.max[parent] = both;
        }
        if self.shape.whole {
            let (top, kept) = (self.shape.top, kept_of(self.shape, self.into));
            for (row, logits) in kept.chunks_exact_mut(top).zip(logits) {
                row[first..first + logits.len()].copy_from_slice(logits);
            }
            self.filled += logits[0].len();
        } else {
            self.choose(logits);
        }
    }

    /// Log-sum-exp of each parent so far.
    fn log_sums(&self) -> Vec<f64> {
        self.max.iter().zip(&self.sum).map(|(max, sum)| f64::from(*max) + sum.ln()).collect()
    }

    /// Keeps what is likelier than what is kept, and adds everything else to the rest.
    fn choose(&mut self, logits: &[&[f32]]) {
        let (top, count) = (self.shape.top, logits[0].len());
        let offsets: Vec<f32> = self.log_sums().iter().map(|log_sum| *log_sum as f32).collect();
        let mut scores = vec![f32::NEG_INFINITY; count];
        for (logits, offset) in logits.iter().zip(&offsets) {
            raise(&mut scores, logits, *offset);
        }
        let mut counts = vec![1.0f32; count];
        let likely = (0..count).filter(|at| self.filled < top || scores[*at] > self.least);
        let mut candidates: Vec<(f32, usize)> = likely.map(|at| (scores[at], top + at)).collect();
        if !candidates.is_empty() {
            let kept = kept_of(self.shape, self.into);
            let score = |at: usize| {
                let of_parent = |(row, offset): (&[f32], &f32)| row[at] - offset;
                kept.chunks_exact(top).zip(&offsets).map(of_parent).fold(f32::NEG_INFINITY, f32::max)
            };
            candidates.extend((0..self.filled).map(|at| (score(at), at)));
            let mut dropped = Vec::new();
            if candidates.len() > top {
                candidates.select_nth_unstable_by(top - 1, |a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
                self.least = candidates[top - 1].0;
                let places = candidates.split_off(top).into_iter().map(|(_, place)| place);
                dropped = places.filter(|place| *place < top).collect();
            }
            // Of those that lose their place the logits are needed once more.
            let columns: Vec<Vec<f32>> =
                kept.chunks_exact(top).map(|row| dropped.iter().map(|place| row[*place]).collect()).collect();
            let mut free = dropped.iter().copied().chain(self.filled..top);
            for at in candidates.iter().filter_map(|(_, place)| place.checked_sub(top)) {
                let place = free.next().expect("no more are chosen than there are places");
                kept.chunks_exact_mut(top).zip(logits).for_each(|(row, logits)| row[place] = logits[at]);
                counts[at] = 0.0;
            }
            self.filled = candidates.len();
            let columns: Vec<&[f32]> = columns.iter().map(Vec::as_slice).collect();
            self.rest.add(&columns, &vec![1.0; dropped.len()], &self.max);
        }
        self.rest.add(logits, &counts, &self.max);
    }

    /// Makes what is kept of what came. Returns the share of probability that the kept tokens have in each parent.
    pub(super) fn finish(self) -> Vec<f64> {
        let Shape { parents, top, whole } = self.shape;
        let log_sums = self.log_sums();
        // Of each parent a logit, so far apart: a log-probability in the first, and differences to it.
        let settle = |numbers: &mut [f32], apart: usize| {
            let first = f64::from(numbers[0]) - log_sums[0];
            for (number, log_sum) in numbers.iter_mut().step_by(apart).zip(&log_sums).skip(1) {
                *number = (f64::from(*number) - log_sum - first) as f32;
            }
            numbers[0] = first as f32;
        };
        let Self { into, rest, .. } = self;
        settle(&mut into[..parents], 1);
        let shares = if whole {
            vec![1.0; parents]
        } else {
            let logs = rest.logs(&self.max, &log_sums);
            let shares = logs.iter().map(|log| 1.0 - log.exp()).collect();
            let numbers = logs.iter().copied().chain(rest.covariances(&logs, &log_sums));
            into[parents..].iter_mut().zip(numbers).for_each(|(into, number)| *into = number as f32);
            shares
        };
        let kept = kept_of(self.shape, into);
        for at in 0..top {
            settle(&mut kept[at..], top);
        }
        shares
    }
}

/// The part of a token's numbers that is for the kept tokens.
fn kept_of(shape: Shape, into: &mut [f32]) -> &mut [f32] {
    &mut into[shape.stride() - shape.top * shape.parents..]
}

impl Rest {
    /// Adds tokens of the vocabulary, each as often as it counts: once or not at all.
    fn add(&mut self, logits: &[&[f32]], counts: &[f32], max: &[f32]) {
        for ((mass, logits), max) in self.masses.iter_mut().zip(logits).zip(max) {
            let mut weights = logits.to_vec();
            exponentials(&mut weights, *max);
            *mass += dot(&weights, counts);
        }
        let mut weights = vec![0.0; counts.len()];
        let share = 1.0 / logits.len() as f32;
        logits.iter().for_each(|logits| add_scaled(&mut weights, logits, share));
        let counted = weights.iter().zip(counts).filter(|(_, counts)| **counts > 0.0);
        let most = counted.fold(self.max, |most, (mean, _)| most.max(*mean));
        if most == f32::NEG_INFINITY {
            return;
        }
        let scale = f64::from(self.max - most).exp();
        let sums = std::iter::once(&mut self.mass).chain(&mut self.first).chain(&mut self.second);
        sums.for_each(|sum| *sum *= scale);
        self.max = most;
        exponentials(&mut weights, most);
        weights.iter_mut().zip(counts).for_each(|(weight, counts)| *weight *= counts);
        self.mass += weights.iter().map(|weight| f64::from(*weight)).sum::<f64>();
        let difference =
            |of: &&[f32]| -> Vec<f32> { of.iter().zip(logits[0]).map(|(x, base)| x - base).collect() };
        let differences: Vec<Vec<f32>> = logits[1..].iter().map(difference).collect();
        let mut pairs = self.second.iter_mut();
        for (a, of_a) in differences.iter().enumerate() {
            let weighted: Vec<f32> = of_a.iter().zip(&weights).map(|(x, weight)| x * weight).collect();
            self.first[a] += weighted.iter().map(|x| f64::from(*x)).sum::<f64>();
            for (of_b, second) in differences[..=a].iter().zip(&mut pairs) {
                *second += dot(&weighted, of_b);
            }
        }
    }

    /// The logarithm of the rest's probability in each parent.
    fn logs(&self, max: &[f32], log_sums: &[f64]) -> Vec<f64> {
        let of = |((mass, max), log_sum): ((&f64, &f32), &f64)| {
            (mass.ln() + f64::from(*max) - log_sum).max(LOG_MIN)
        };
        self.masses.iter().zip(max).zip(log_sums).map(of).collect()
    }

    /// The covariances of differences, scaled so that the quadratic is right at the parents' mean: each row up to its diagonal.
    fn covariances(&self, logs: &[f64], log_sums: &[f64]) -> Vec<f64> {
        let differences = self.first.len();
        let means: Vec<f64> = self.first.iter().map(|first| first / self.mass).collect();
        let pairs = (0..differences).flat_map(|a| (0..=a).map(move |b| (a, b)));
        let covariance = |((a, b), second): ((usize, usize), &f64)| {
            let found = second / self.mass - means[a] * means[b];
            if found.is_finite() { found } else { 0.0 }
        };
        let mut found: Vec<f64> = pairs.zip(&self.second).map(covariance).collect();
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let at_mean = self.mass.ln() + f64::from(self.max) - mean(log_sums);
        let centre = vec![1.0 / logs.len() as f64; differences];
        let (line, sag) = (mean(logs), sag(&found, &centre));
        let scale = (line - at_mean) / sag;
        if scale.is_finite() {
            found.iter_mut().for_each(|pair| *pair *= scale.clamp(1.0 / SCALE_MAX, SCALE_MAX));
        }
        found
    }
}

/// How far below the plane through the parents a function of this curvature is: `½ (Σ cᵢ Sᵢᵢ − cᵀ S c)`.
pub(super) fn sag<T: Copy + Into<f64>>(covariances: &[T], c: &[f64]) -> f64 {
    let (mut rows, mut sum) = (covariances, 0.0);
    for (a, of_a) in c.iter().enumerate() {
        let row;
        (row, rows) = rows.split_at(a + 1);
        for (b, covariance) in row.iter().enumerate() {
            let covariance: f64 = (*covariance).into();
            sum += covariance * if a == b { of_a - of_a * of_a } else { -2.0 * of_a * c[b] };
        }
    }
    sum / 2.0
}

/// The logarithm of the rest's probability in a merge, of a token of which this is kept.
pub(super) fn log_rest(logs: &[f32], covariances: &[f32], c: &[f64]) -> f64 {
    let first = 1.0 - c.iter().sum::<f64>();
    let shares = std::iter::once(&first).chain(c);
    let plane: f64 = logs.iter().zip(shares).map(|(log, share)| f64::from(*log) * share).sum();
    plane - sag(covariances, c)
}

/// Numbers that are added up side by side.
const LANES: usize = 16;

for_each_instruction_set! {
    /// Raises each to this model's, once the offset is subtracted.
    fn raise(scores: &mut [f32], logits: &[f32], offset: f32) {
        scores.iter_mut().zip(logits).for_each(|(score, logit)| {
            let own = logit - offset;
            *score = if own > *score { own } else { *score };
        });
    }

    /// Adds numbers times a factor.
    pub(super) fn add_scaled(into: &mut [f32], values: &[f32], factor: f32) {
        into.iter_mut().zip(values).for_each(|(into, value)| *into += value * factor);
    }

    /// The sum of products.
    fn dot(a: &[f32], b: &[f32]) -> f64 {
        let mut all = 0.0;
        for (a, b) in a.chunks(LANES * LANES).zip(b.chunks(LANES * LANES)) {
            let mut sums = [0.0f32; LANES];
            let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
            for (a, b) in a.iter().zip(b) {
                sums.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, (a, b))| *sum += a * b);
            }
            all += sums.iter().map(|sum| f64::from(*sum)).sum::<f64>();
            all += a_rest.iter().zip(b_rest).map(|(a, b)| f64::from(a * b)).sum::<f64>();
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::data::Random;

    const VOCABULARY: usize = 3000;

    const BLOCK: usize = 700;

    /// Logits of three parents, which differ by less than they spread, and by an offset each.
    fn logits(seed: u64) -> Vec<Vec<f32>> {
        let mut random = Random(seed);
        let mut normal =
            |scale: f32| -> Vec<f32> { (0..VOCABULARY).map(|_| scale * random.normal() as f32).collect() };
        let base = normal(3.0);
        let mut near =
            |offset: f32| base.iter().zip(normal(0.7)).map(|(base, d)| base + d + offset).collect();
        let others = [near(5.0), near(-40.0)];
        std::iter::once(base).chain(others).collect()
    }

    /// What is kept of them, and the shares of probability.
    fn gathered(logits: &[Vec<f32>], top: usize, target: usize) -> (Shape, Vec<f32>, Vec<f64>) {
        let shape = Shape { parents: logits.len(), top, whole: top == VOCABULARY };
        let mut into = vec![f32::NAN; shape.stride()];
        let mut gathering = Gathering::new(shape, &mut into, target);
        for first in (0..VOCABULARY).step_by(BLOCK) {
            let end = VOCABULARY.min(first + BLOCK);
            let rows: Vec<&[f32]> = logits.iter().map(|own| &own[first..end]).collect();
            gathering.take(first, &rows);
        }
        let shares = gathering.finish();
        (shape, into, shares)
    }

    fn log_probabilities(logits: &[f32]) -> Vec<f64> {
        let log_sum = logits.iter().map(|logit| f64::from(*logit).exp()).sum::<f64>().ln();
        logits.iter().map(|logit| f64::from(*logit) - log_sum).collect()
    }

    #[test]
    fn the_likeliest_are_kept_and_the_rest_is_known_at_the_parents_and_their_mean() {
        for (seed, top, target) in [(1, 64, 5), (2, 16, 2999), (3, 1500, 700)] {
            let logits = logits(seed);
            let exact: Vec<Vec<f64>> = logits.iter().map(|own| log_probabilities(own)).collect();
            let (shape, into, shares) = gathered(&logits, top, target);
            let (of_target, logs, covariances, kept) = shape.parts(&into);
            assert!((f64::from(of_target[0]) - exact[0][target]).abs() < 1e-5);
            assert!((f64::from(of_target[2]) - (exact[2][target] - exact[0][target])).abs() < 1e-5);
            // By what any parent gives them.
            let score = |at: usize| exact.iter().map(|own| own[at]).fold(f64::NEG_INFINITY, f64::max);
            let mut order: Vec<usize> = (0..VOCABULARY).collect();
            order.sort_by(|a, b| score(*b).total_cmp(&score(*a)));
            let mut expected: Vec<f64> = order[..top].iter().map(|at| exact[0][*at]).collect();
            let mut found: Vec<f64> = kept[..top].iter().map(|log| f64::from(*log)).collect();
            expected.sort_by(f64::total_cmp);
            found.sort_by(f64::total_cmp);
            // Until all has come sums are not known, so that a few at the end may be others.
            let missing =
                expected.iter().filter(|log| found.iter().all(|own| (own - *log).abs() > 1e-4)).count();
            assert!(missing * 20 <= top, "{missing} of {top} are missing");
            // Whatever was kept: it and the rest are all, at each parent and at the mean.
            let third = 1.0 / 3.0;
            for (c, shares_of) in [
                ([0.0, 0.0], [1.0, 0.0, 0.0]),
                ([1.0, 0.0], [0.0, 1.0, 0.0]),
                ([0.0, 1.0], [0.0, 0.0, 1.0]),
                ([third; 2], [third; 3]),
            ] {
                let merged =
                    |at: usize| exact.iter().zip(shares_of).map(|(own, share)| own[at] * share).sum::<f64>();
                let all = (0..VOCABULARY).map(|at| merged(at).exp()).sum::<f64>().ln();
                let of_kept = |at: usize| {
                    (1..3).fold(f64::from(kept[at]), |all, row| {
                        all + c[row - 1] * f64::from(kept[row * top + at])
                    })
                };
                let sum: f64 = (0..top).map(|at| of_kept(at).exp()).sum();
                let together = (sum + log_rest(logs, covariances, &c).exp()).ln();
                assert!((together - all).abs() < 2e-5, "{c:?}: {together}, not {all}");
            }
            let rest: f64 = logs[1].into();
            assert!((shares[1] - (1.0 - rest.exp())).abs() < 1e-5);
        }
    }

    #[test]
    fn the_rest_is_nearly_known_elsewhere() {
        let logits = logits(4);
        let exact: Vec<Vec<f64>> = logits.iter().map(|own| log_probabilities(own)).collect();
        let (shape, into, _) = gathered(&logits, 32, 0);
        let (_, logs, covariances, kept) = shape.parts(&into);
        for c in [[0.5, 0.0], [0.2, 0.7], [1.0, 1.0], [1.5, -0.3]] {
            let merged = |at: usize| {
                exact[0][at] + (1..3).map(|i| c[i - 1] * (exact[i][at] - exact[0][at])).sum::<f64>()
            };
            let all: f64 = (0..VOCABULARY).map(|at| merged(at).exp()).sum();
            let of_kept = |at: usize| {
                (1..3).fold(f64::from(kept[at]), |all, row| all + c[row - 1] * f64::from(kept[row * 32 + at]))
            };
            let rest = all - (0..32).map(|at| of_kept(at).exp()).sum::<f64>();
            let found = log_rest(logs, covariances, &c);
            assert!((found - rest.ln()).abs() < 0.05, "{c:?}: {found}, not {}", rest.ln());
        }
    }

    #[test]
    fn a_whole_vocabulary_has_no_rest() {
        let logits = logits(5);
        let (shape, into, shares) = gathered(&logits, VOCABULARY, 9);
        let (_, logs, covariances, kept) = shape.parts(&into);
        assert!(logs.is_empty() && covariances.is_empty() && shares == [1.0; 3]);
        let exact = log_probabilities(&logits[0]);
        assert!(kept.iter().zip(&exact).all(|(own, exact)| (f64::from(*own) - exact).abs() < 1e-5));
    }
}

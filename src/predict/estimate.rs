//! The losses of merges, out of what is kept of their parents; and how far the parents agree.

use std::sync::Mutex;

use super::Parents;
use super::gathering::{add_scaled, log_rest, sag};
use crate::decoder::max_and_sum;
use crate::threads::share;

/// How well a merge is thought to read a set.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// The mean loss of tokens, in nats.
    pub loss: f64,
    /// Its standard error over windows: how much another choice of texts like these would move it. It says nothing of how good the
    /// prediction is.
    pub error: f64,
}

impl Estimate {
    /// Perplexity per token.
    pub fn perplexity(&self) -> f64 {
        self.loss.exp()
    }
}

/// How far two parents agree on a set.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Agreement {
    /// The mean Kullback–Leibler divergence of the second's predictions from the first's, in nats.
    pub divergence: f64,
    /// The share of tokens for which both hold the same to be most likely.
    pub same_first: f64,
}

/// Losses by window, added up.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    sum: f64,
    squares: f64,
    by_count: f64,
}

/// Windows that a thread takes at a time.
const WINDOWS: usize = 4;

/// Candidates whose losses are computed together.
const CANDIDATES: usize = 256;

impl Parents {
    /// The losses of merges on a set. Each has a coefficient for every group of layers of every model but the first.
    ///
    /// # Panics
    /// A merge has another number of coefficients.
    pub fn losses(&self, set: usize, merges: &[Vec<f64>], threads: usize) -> Vec<Estimate> {
        let merges: Vec<Vec<f64>> = merges.iter().map(|c| self.of_parents(c)).collect();
        merges.chunks(CANDIDATES).flat_map(|merges| self.losses_of_few(set, merges, threads)).collect()
    }

    /// The loss of one.
    ///
    /// # Panics
    /// It has another number of coefficients.
    pub fn loss(&self, set: usize, c: &[f64], threads: usize) -> Estimate {
        self.losses(set, &[c.to_vec()], threads)[0]
    }

    /// The loss of a parent, as it is measured.
    ///
    /// # Panics
    /// There is no such parent.
    pub fn loss_of_parent(&self, set: usize, parent: usize) -> Estimate {
        assert!(parent < self.count(), "there are {} parents", self.count());
        let log_probability = |token: &[f32]| {
            let first = f64::from(token[0]);
            if parent == 0 { first } else { first + f64::from(token[parent]) }
        };
        let mut sums = Sums::default();
        for window in self.windows(set) {
            let loss: f64 = window.clone().map(|token| -log_probability(self.token(token))).sum();
            sums.add(loss, window.len());
        }
        self.estimate(set, &sums)
    }

    fn losses_of_few(&self, set: usize, merges: &[Vec<f64>], threads: usize) -> Vec<Estimate> {
        let found = self.by_windows(set, threads, |windows| {
            let mut sums = vec![Sums::default(); merges.len()];
            let mut scratch = vec![0.0; self.shape.top];
            let mut losses = vec![0.0; merges.len()];
            for window in windows {
                losses.fill(0.0);
                for token in window.clone() {
                    let token = self.token(token);
                    for (loss, c) in losses.iter_mut().zip(merges) {
                        *loss += self.loss_of_token(token, c, &mut scratch);
                    }
                }
                sums.iter_mut().zip(&losses).for_each(|(sums, loss)| sums.add(*loss, window.len()));
            }
            sums
        });
        let mut all = vec![Sums::default(); merges.len()];
        for part in found {
            all.iter_mut().zip(part).for_each(|(all, part)| all.join(&part));
        }
        all.iter().map(|sums| self.estimate(set, sums)).collect()
    }

    /// What a function makes of some windows after the other, in their order, whatever thread had them.
    fn by_windows<T: Send>(
        &self,
        set: usize,
        threads: usize,
        of: impl Fn(&[std::ops::Range<usize>]) -> T + Sync,
    ) -> Vec<T> {
        let parts = self.windows(set).chunks(WINDOWS);
        let found: Vec<Mutex<Option<T>>> = parts.clone().map(|_| Mutex::new(None)).collect();
        let next = Mutex::new(parts.zip(&found));
        let take = || next.lock().unwrap_or_else(std::sync::PoisonError::into_inner).next();
        share(threads, |_| {
            while let Some((windows, place)) = take() {
                let made = of(windows);
                *place.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(made);
            }
        });
        let of =
            |made: Mutex<Option<T>>| made.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        found.into_iter().map(|made| of(made).expect("every part was taken")).collect()
    }

    /// The loss of a merge on one token.
    fn loss_of_token(&self, token: &[f32], c: &[f64], scratch: &mut [f32]) -> f64 {
        let (target, logs, covariances, kept) = self.shape.parts(token);
        let mut rows = kept.chunks_exact(self.shape.top);
        scratch.copy_from_slice(rows.next().expect("there is a parent"));
        for (row, c) in rows.zip(c) {
            if *c != 0.0 {
                add_scaled(scratch, row, *c as f32);
            }
        }
        let (max, sum) = max_and_sum(scratch);
        let mut log_sum = f64::from(max) + sum.ln();
        if !self.shape.whole {
            let rest = log_rest(logs, covariances, c);
            let (more, less) = if rest > log_sum { (rest, log_sum) } else { (log_sum, rest) };
            log_sum = more + (less - more).exp().ln_1p();
        }
        let differences: f64 = target[1..].iter().zip(c).map(|(d, c)| f64::from(*d) * c).sum();
        log_sum - f64::from(target[0]) - differences
    }

    fn estimate(&self, set: usize, sums: &Sums) -> Estimate {
        let windows = self.windows(set);
        let (of, counted) = (windows.len() as f64, self.counted(set) as f64);
        let loss = sums.sum / counted;
        let counts: f64 = windows.iter().map(|window| (window.len() as f64).powi(2)).sum();
        // Of Σ (sum − loss · count)², over windows: they are nearly independent samples, which tokens are not.
        let squares = (sums.squares - 2.0 * loss * sums.by_count + loss * loss * counts).max(0.0);
        let error = if of > 1.0 { (squares * of / (of - 1.0)).sqrt() / counted } else { f64::NAN };
        Estimate { loss, error }
    }

    /// How far the second of two parents agrees with the first on a set.
    pub fn agreement(&self, set: usize, (first, second): (usize, usize), threads: usize) -> Agreement {
        let found = self.by_windows(set, threads, |windows| {
            let tokens = windows.iter().flat_map(Clone::clone);
            let each = tokens.map(|token| self.agreement_of_token(self.token(token), first, second));
            each.fold((0.0, 0), |(all, same), (own, is_same)| (all + own, same + usize::from(is_same)))
        });
        let counted = self.counted(set) as f64;
        let (divergence, same) =
            found.into_iter().fold((0.0, 0), |(all, same), (own, also)| (all + own, same + also));
        Agreement { divergence: divergence / counted, same_first: same as f64 / counted }
    }

    fn agreement_of_token(&self, token: &[f32], first: usize, second: usize) -> (f64, bool) {
        let (_, logs, covariances, kept) = self.shape.parts(token);
        let (base, differences) = kept.split_at(self.shape.top);
        let of = |parent: usize, at: usize| {
            let own = parent.checked_sub(1).map_or(0.0, |row| differences[row * self.shape.top + at]);
            f64::from(base[at] + own)
        };
        let (mut divergence, mut likeliest) = (0.0, [(f64::NEG_INFINITY, 0); 2]);
        for at in 0..self.shape.top {
            let both = [of(first, at), of(second, at)];
            divergence += both[0].exp() * (both[0] - both[1]);
            for (most, own) in likeliest.iter_mut().zip(both) {
                if own > most.0 {
                    *most = (own, at);
                }
            }
        }
        if !self.shape.whole {
            // Within the rest the divergence is half of the variance of the difference of both.
            let mut c = vec![0.0; self.count() - 1];
            let mut one = |parent: usize, share: f64| {
                if let Some(at) = parent.checked_sub(1) {
                    c[at] += share;
                }
            };
            one(first, 1.0);
            one(second, -1.0);
            let line: f64 = diagonal(covariances).zip(&c).map(|(own, c)| f64::from(own) * c).sum();
            let variance = line - 2.0 * sag(covariances, &c);
            let (own, other) = (f64::from(logs[first]), f64::from(logs[second]));
            divergence += own.exp() * (own - other + variance.max(0.0) / 2.0);
        }
        (divergence, likeliest[0].1 == likeliest[1].1)
    }
}

/// The variances among covariances, which are rows up to their diagonals.
fn diagonal(covariances: &[f32]) -> impl Iterator<Item = f32> {
    (1..).map_while(|row| covariances.get(row * (row + 1) / 2 - 1).copied())
}

impl Sums {
    fn add(&mut self, loss: f64, count: usize) {
        self.sum += loss;
        self.squares += loss * loss;
        self.by_count += loss * count as f64;
    }

    fn join(&mut self, other: &Self) {
        self.sum += other.sum;
        self.squares += other.squares;
        self.by_count += other.by_count;
    }
}

#[cfg(test)]
mod tests {
    use super::super::gathering::{Gathering, Shape};
    use super::super::{Facts, Groups};
    use super::*;
    use crate::check::data::Random;

    const VOCABULARY: usize = 400;

    /// Two parents on two windows of so many tokens, and the logits of each token in both.
    fn parents(top: usize, tokens: usize) -> (Parents, Vec<[Vec<f32>; 2]>) {
        let shape = Shape { parents: 2, top, whole: top == VOCABULARY };
        let mut random = Random(9);
        let mut normal =
            |scale: f64| -> Vec<f32> { (0..VOCABULARY).map(|_| (scale * random.normal()) as f32).collect() };
        let mut values = vec![0.0; 2 * tokens * shape.stride()];
        let mut all = Vec::new();
        for into in values.chunks_exact_mut(shape.stride()) {
            let first = normal(2.0);
            let second: Vec<f32> = first.iter().zip(normal(0.8)).map(|(x, d)| x + d).collect();
            let mut gathering = Gathering::new(shape, into, all.len());
            gathering.take(0, &[&first[..], &second[..]]);
            gathering.finish();
            all.push([first, second]);
        }
        let facts = Facts {
            top,
            vocabulary: VOCABULARY,
            share: 1.0,
            kept_bytes: 0,
            bytes: 0,
            device_bytes: 0,
            passes: 1,
        };
        let parents = Parents {
            names: vec!["first".into(), "second".into()],
            groups: Groups::of(1, 1),
            sets: vec!["set".into()],
            facts,
            shape,
            windows: std::iter::once(0..2).collect(),
            tokens: vec![0..tokens, tokens..2 * tokens],
            values,
        };
        (parents, all)
    }

    fn log_probabilities(logits: &[f32]) -> Vec<f64> {
        let log_sum = logits.iter().map(|logit| f64::from(*logit).exp()).sum::<f64>().ln();
        logits.iter().map(|logit| f64::from(*logit) - log_sum).collect()
    }

    #[test]
    fn agreement_is_that_of_the_probabilities() {
        let (whole, logits) = parents(VOCABULARY, 8);
        let (mut divergence, mut same) = (0.0, 0);
        for both in &logits {
            let [p, q] = [0, 1].map(|parent: usize| log_probabilities(&both[parent]));
            divergence += p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>() / logits.len() as f64;
            let most = |of: &[f64]| (0..VOCABULARY).max_by(|a, b| of[*a].total_cmp(&of[*b]));
            same += usize::from(most(&p) == most(&q));
        }
        let found = whole.agreement(0, (0, 1), 2);
        assert!((found.divergence - divergence).abs() < 1e-5 * divergence, "{found:?}, not {divergence}");
        assert_eq!(found.same_first, same as f64 / logits.len() as f64);
        assert!(same > 0 && same < logits.len());
        let few = parents(40, 8).0.agreement(0, (0, 1), 2);
        assert!((few.divergence / divergence - 1.0).abs() < 0.05, "{few:?}, not {divergence}");
        assert_eq!(few.same_first, found.same_first);
    }

    #[test]
    fn losses_and_their_errors_are_those_of_mixed_logits() {
        let (whole, logits) = parents(VOCABULARY, 8);
        for c in [0.0, 0.4, 1.0, 1.7] {
            let loss = |(target, [first, second]): (usize, &[Vec<f32>; 2])| {
                let mixed =
                    first.iter().zip(second).map(|(a, b)| (f64::from(*a) + c * f64::from(b - a)) as f32);
                -log_probabilities(&mixed.collect::<Vec<f32>>())[target]
            };
            let losses: Vec<f64> = logits.iter().enumerate().map(loss).collect();
            let [a, b] = [&losses[..8], &losses[8..]].map(|window| window.iter().sum::<f64>() / 8.0);
            let found = whole.loss(0, &[c], 1);
            assert!((found.loss - f64::midpoint(a, b)).abs() < 1e-5, "{c}: {found:?}, not of {a} and {b}");
            // Of two windows of one size, half of their distance.
            assert!((found.error - (a - b).abs() / 2.0).abs() < 1e-5, "{c}: {found:?}, not of {a} and {b}");
        }
    }
}

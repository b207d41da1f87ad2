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
    /// The losses of merges on a set. Each has a coefficient for every parent but the first.
    ///
    /// # Panics
    /// A merge has another number of coefficients.
    pub fn losses(&self, set: usize, merges: &[Vec<f64>], threads: usize) -> Vec<Estimate> {
        assert!(
            merges.iter().all(|c| c.len() + 1 == self.count()),
            "a merge has a coefficient for each parent"
        );
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
        drop(next);
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

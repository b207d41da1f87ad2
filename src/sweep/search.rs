//! What to try next.
//!
//! The score over the open values is taken for a prediction, if there is one, plus a quadratic; its coefficients are a Bayesian
//! linear regression on what was measured (Bishop, Pattern Recognition and Machine Learning, section 3.3), so that it is known
//! where nothing is known yet.

use super::linear_algebra::{backward, cholesky, forward};
use crate::config::{Knob, Values};

/// A point that was tried, and its score: lower is better.
#[derive(Debug, Clone, PartialEq)]
pub struct Tried {
    /// A number for each open value.
    pub point: Vec<f64>,
    /// What was measured.
    pub score: f64,
}

/// A search over open values.
#[derive(Debug, Clone)]
pub struct Search {
    values: Vec<Values>,
    /// Points among which the next are chosen, each rounded, in ascending order.
    pool: Vec<Vec<f64>>,
    /// What is known of them before anything is measured; nothing where nothing is predicted.
    prior: Vec<Prior>,
    /// Points that failed.
    failed: Vec<Vec<f64>>,
}

/// What is known of a point before anything is measured.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Prior {
    score: f64,
    /// Whether it is predicted, and not taken from the nearest point that is.
    is_predicted: bool,
}

/// Points to choose from.
const POOL: usize = 2048;

/// How many standard deviations below its mean a point's score is hoped to be, where the search looks around.
const HOPE: f64 = 1.0;

impl Search {
    /// A search among points that a config can spell.
    pub fn new(knobs: &[Knob]) -> Self {
        let values: Vec<Values> = knobs.iter().map(|knob| knob.values.clone()).collect();
        let mut pool: Vec<Vec<f64>> = Vec::new();
        let corners = 1u64 << values.len().min(6);
        for number in 0..corners + POOL as u64 {
            let at = |(dim, values): (usize, &Values)| {
                let share = match number.checked_sub(corners) {
                    // Ends first: the best is often there.
                    None => (number >> dim.min(6) & 1) as f64,
                    Some(0) => 0.5,
                    Some(number) => halton(number, dim),
                };
                knobs[dim].rounded(placed(values, share))
            };
            let point: Vec<f64> = values.iter().enumerate().map(at).collect();
            pool.push(point);
        }
        pool.sort_by(|a, b| a.partial_cmp(b).expect("points are numbers"));
        pool.dedup();
        Self { values, pool, prior: Vec::new(), failed: Vec::new() }
    }

    /// Leaves out all points but these, which are in their order.
    pub fn keep(&mut self, points: Vec<Vec<f64>>) {
        self.pool = points;
    }

    /// The points among which the next are chosen.
    pub fn pool(&self) -> &[Vec<f64>] {
        &self.pool
    }

    /// Whether anything is predicted.
    pub fn predicts(&self) -> bool {
        !self.prior.is_empty()
    }

    /// Takes what is predicted for the pool's points for what is known before anything is measured. A point that nothing is predicted
    /// for, as of a method that is no sum, is taken to be like the nearest that something is predicted for: the same weights under
    /// another method.
    ///
    /// # Panics
    /// There is not a prediction, or none, for each.
    pub fn expect(&mut self, predicted: &[Option<f64>]) {
        assert_eq!(predicted.len(), self.pool.len(), "there is one for each point");
        let known = |(point, score): (&Vec<f64>, &Option<f64>)| Some((self.place(point), (*score)?));
        let known: Vec<(Vec<f64>, f64)> = self.pool.iter().zip(predicted).filter_map(known).collect();
        let like_nearest = |point: &Vec<f64>| {
            let own = self.place(point);
            known
                .iter()
                .map(|(place, score)| (distance(place, &own), *score))
                .min_by(|a, b| a.0.total_cmp(&b.0))
        };
        let prior = |(point, score): (&Vec<f64>, &Option<f64>)| match score {
            Some(score) => Some(Prior { score: *score, is_predicted: true }),
            None => Some(Prior { score: like_nearest(point)?.1, is_predicted: false }),
        };
        // Where nothing is known of any, nothing is.
        self.prior = self.pool.iter().zip(predicted).filter_map(prior).collect();
    }

    /// Takes points in that the pool may not have, with what is predicted for them.
    ///
    /// # Panics
    /// There is not a prediction, or none, for each.
    pub fn include(&mut self, points: &[Vec<f64>], predicted: &[Option<f64>]) {
        assert_eq!(points.len(), predicted.len(), "there is one for each point");
        for (point, score) in points.iter().zip(predicted) {
            let Err(place) = self.find(point) else { continue };
            if self.predicts() {
                let is_predicted = score.is_some();
                let score = score.unwrap_or_else(|| self.before(point));
                self.prior.insert(place, Prior { score, is_predicted });
            }
            self.pool.insert(place, point.clone());
        }
    }

    /// Notes that a point failed. Neither it nor those near it are chosen from now on.
    pub fn avoid(&mut self, point: &[f64]) {
        self.failed.push(point.to_vec());
    }

    /// Forgets that points failed: they are tried again.
    pub fn forgive(&mut self, points: &[Vec<f64>]) {
        self.failed.retain(|failed| !points.contains(failed));
    }

    /// The place of a point in the pool, or that where it would be.
    fn find(&self, point: &[f64]) -> std::result::Result<usize, usize> {
        self.pool.binary_search_by(|known| known[..].partial_cmp(point).expect("points are numbers"))
    }

    /// The predicted score of a point, if there is one.
    pub fn prior(&self, point: &[f64]) -> Option<f64> {
        let known = self.prior.get(self.find(point).ok()?)?;
        known.is_predicted.then_some(known.score)
    }

    /// What is thought of a point's score before anything is measured.
    fn before(&self, point: &[f64]) -> f64 {
        if self.prior.is_empty() {
            return 0.0;
        }
        let near = |place: &usize| self.nearest(point, &[&self.pool[*place]]);
        let nearest =
            || (0..self.pool.len()).min_by(|a, b| near(a).total_cmp(&near(b))).expect("there are points");
        self.prior[self.find(point).unwrap_or_else(|_| nearest())].score
    }

    /// Whether a point may still be chosen.
    fn is_open(&self, point: &[f64], tried: &[Tried]) -> bool {
        let failed: Vec<&[f64]> = self.failed.iter().map(|point| &point[..]).collect();
        tried.iter().all(|tried| tried.point != point) && self.nearest(point, &failed) > AVOIDED
    }

    /// The next points to try, so many at once, none of them tried before.
    pub fn next(&self, tried: &[Tried], count: usize) -> Vec<Vec<f64>> {
        let mut open: Vec<&Vec<f64>> = self.pool.iter().filter(|point| self.is_open(point, tried)).collect();
        let mut chosen: Vec<Vec<f64>> = Vec::new();
        if tried.len() < self.features(&self.pool[0]).len().min(FIRST) {
            let predicted: Vec<f64> =
                open.iter().map(|point| self.prior(point).unwrap_or(f64::INFINITY)).collect();
            if let Some(best) = best(&predicted) {
                chosen.push(open[best].clone());
            }
            if self.predicts() {
                // Half of what is predicted to be worst is not worth a try.
                open.sort_by(|a, b| self.before(a).total_cmp(&self.before(b)));
                open.truncate(open.len().div_ceil(2));
            }
            while chosen.len() < count.min(open.len()) {
                let known: Vec<&[f64]> = tried
                    .iter()
                    .map(|tried| &tried.point[..])
                    .chain(self.failed.iter().chain(&chosen).map(|point| &point[..]))
                    .collect();
                // The middle first: nothing is far from it.
                let middle: Vec<f64> = self.values.iter().map(|values| placed(values, 0.5)).collect();
                let far = |point: &&Vec<f64>| match &known[..] {
                    [] => self.nearest(point, &[&middle]),
                    known => -self.nearest(point, known),
                };
                let far: Vec<f64> = open.iter().map(far).collect();
                let Some(farthest) = best(&far) else { break };
                chosen.push(open[farthest].clone());
            }
            return chosen;
        }
        // What is chosen is believed to come out as expected before the next is chosen.
        let mut believed = tried.to_vec();
        while chosen.len() < count.min(open.len()) {
            let fit = self.fit(&believed);
            let near: Vec<&[f64]> = chosen.iter().map(|point| &point[..]).collect();
            let hoped: Vec<f64> = open
                .iter()
                .map(|point| {
                    let (mean, deviation) = fit.at(self, point);
                    let taken = self.nearest(point, &near) <= APART;
                    if taken { f64::INFINITY } else { mean - HOPE * deviation }
                })
                .collect();
            let Some(next) = best(&hoped) else { break };
            let (score, _) = fit.at(self, open[next]);
            chosen.push(open[next].clone());
            believed.push(Tried { point: open[next].clone(), score });
        }
        chosen
    }

    /// The points whose scores are expected to be lowest, whether they were tried or not.
    pub fn most_promising(&self, tried: &[Tried], count: usize) -> Vec<Vec<f64>> {
        let fit = self.fit(tried);
        let open = self.pool.iter().filter(|point| self.is_open(point, tried));
        let mut expected: Vec<(f64, &Vec<f64>)> = open.map(|point| (fit.at(self, point).0, point)).collect();
        // What was measured need not be expected. It may have failed on all texts all the same.
        let measured = tried.iter().filter(|tried| !self.failed.contains(&tried.point));
        expected.extend(measured.map(|tried| (tried.score, &tried.point)));
        expected.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut chosen: Vec<Vec<f64>> = Vec::new();
        for (_, point) in expected {
            // Points that differ by nothing that matters say the same.
            let near: Vec<&[f64]> = chosen.iter().map(|point| &point[..]).collect();
            if chosen.len() < count && (near.is_empty() || self.nearest(point, &near) > APART) {
                chosen.push(point.clone());
            }
        }
        chosen
    }

    /// The expected score of a point, and its standard deviation, after what was tried.
    pub fn expected(&self, tried: &[Tried], points: &[Vec<f64>]) -> Vec<(f64, f64)> {
        let fit = self.fit(tried);
        points.iter().map(|point| fit.at(self, point)).collect()
    }

    /// A point in −1 … 1 for each range, and a 1 for each choice taken.
    fn units(&self, point: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let (mut units, mut taken) = (Vec::new(), Vec::new());
        for (values, value) in self.values.iter().zip(point) {
            match values {
                Values::Between(from, to) => units.push(2.0 * (value - from) / (to - from) - 1.0),
                Values::Among(of) => {
                    taken.extend((1..of.len()).map(|choice| f64::from(u8::from(*value as usize == choice))));
                }
            }
        }
        (units, taken)
    }

    /// 1, the units, their products, and the choices.
    fn features(&self, point: &[f64]) -> Vec<f64> {
        let (units, taken) = self.units(point);
        let products = (0..units.len()).flat_map(|i| (i..units.len()).map(move |j| (i, j)));
        let products: Vec<f64> = products.map(|(i, j)| units[i] * units[j]).collect();
        std::iter::once(1.0).chain(units).chain(products).chain(taken).collect()
    }

    /// A point as a place whose distances count: a whole range, or another choice, is 2.
    fn place(&self, point: &[f64]) -> Vec<f64> {
        let (units, taken) = self.units(point);
        units.into_iter().chain(taken.into_iter().map(|taken| 2.0 * taken)).collect()
    }

    /// The distance to the nearest of some points.
    fn nearest(&self, point: &[f64], known: &[&[f64]]) -> f64 {
        let own = self.place(point);
        known.iter().map(|other| distance(&self.place(other), &own)).fold(f64::MAX, f64::min)
    }

    fn fit(&self, tried: &[Tried]) -> Fit {
        let rows: Vec<Vec<f64>> = tried.iter().map(|tried| self.features(&tried.point)).collect();
        let mut rest: Vec<f64> = tried.iter().map(|tried| tried.score - self.before(&tried.point)).collect();
        let mean = rest.iter().sum::<f64>() / rest.len().max(1) as f64;
        rest.iter_mut().for_each(|rest| *rest -= mean);
        let n = self.features(&self.pool[0]).len();
        let spread = rest.iter().map(|rest| rest * rest).sum::<f64>() / rest.len().max(1) as f64;
        // Scores that are all alike say nothing of how they spread.
        let spread = spread.max(1e-12 * (1.0 + mean * mean));
        let (noise, width) = (spread * NOISE, spread);
        let mut a = vec![0.0; n * n];
        let mut b = vec![0.0; n];
        for (row, rest) in rows.iter().zip(&rest) {
            for i in 0..n {
                b[i] += row[i] * rest / noise;
                for j in 0..n {
                    a[i * n + j] += row[i] * row[j] / noise;
                }
            }
        }
        (0..n).for_each(|i| a[i * n + i] += 1.0 / width);
        let lower = cholesky(&a, n).expect("the diagonal is positive");
        let coefficients = backward(&lower, &forward(&lower, &b));
        Fit { mean, coefficients, lower }
    }
}

/// Points of a search's beginning, spread over the space.
const FIRST: usize = 4;

/// The part of the spread that no quadratic explains.
const NOISE: f64 = 1e-3;

/// Points nearer than that are one.
const APART: f64 = 0.05;

/// Points nearer than that to one that failed are likely to fail as well: a tenth of a range.
const AVOIDED: f64 = 0.2;

/// A quadratic, and how sure it is.
struct Fit {
    mean: f64,
    coefficients: Vec<f64>,
    /// Cholesky's triangle of the inverse of the coefficients' covariance.
    lower: Vec<f64>,
}

impl Fit {
    fn at(&self, search: &Search, point: &[f64]) -> (f64, f64) {
        let features = search.features(point);
        let sum: f64 = features.iter().zip(&self.coefficients).map(|(a, b)| a * b).sum();
        let half = forward(&self.lower, &features);
        let variance: f64 = half.iter().map(|x| x * x).sum();
        (self.mean + search.before(point) + sum, variance.sqrt())
    }
}

fn distance(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt()
}

/// The place of the smallest number.
fn best(numbers: &[f64]) -> Option<usize> {
    (0..numbers.len())
        .filter(|place| numbers[*place].is_finite())
        .min_by(|a, b| numbers[*a].total_cmp(&numbers[*b]))
}

/// A share of what an open value may be.
fn placed(values: &Values, share: f64) -> f64 {
    match values {
        Values::Between(from, to) => from + share * (to - from),
        Values::Among(of) => (share * of.len() as f64).floor().min((of.len() - 1) as f64),
    }
}

/// Halton's sequence: the digits of a number in a prime base, mirrored at the point.
fn halton(mut number: u64, dim: usize) -> f64 {
    const PRIMES: [u64; 24] =
        [2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89];
    let base = PRIMES[dim % PRIMES.len()];
    let (mut share, mut digit) = (0.0, 1.0 / base as f64);
    while number > 0 {
        share += (number % base) as f64 * digit;
        number /= base;
        digit /= base as f64;
    }
    share
}

/// The places of those that no other is better than in everything: Pareto's front, lower numbers being better.
pub fn pareto(scores: &[Vec<f64>]) -> Vec<usize> {
    let beats = |one: &[f64], other: &[f64]| {
        one.iter().zip(other).all(|(one, other)| one <= other)
            && one.iter().zip(other).any(|(one, other)| one < other)
    };
    (0..scores.len()).filter(|place| scores.iter().all(|one| !beats(one, &scores[*place]))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Space;

    fn knobs(text: &str) -> Vec<Knob> {
        Space::read("c.yml", text).unwrap().knobs
    }

    /// A bowl that is no quadratic, with its lowest point at 0.4 and 0.3.
    fn bowl(point: &[f64]) -> f64 {
        let (x, y) = (point[0] - 0.4, point[1] - 0.3);
        3.0 + (x * x + 0.5 * y * y + 0.3 * x * y).sqrt().powf(1.7)
    }

    fn search(predicted: Option<fn(&[f64]) -> f64>, rounds: usize) -> (Vec<f64>, f64) {
        let mut search = Search::new(&knobs("a: {range: [0, 1.5]}\nb: {range: [-1, 1]}\n"));
        if let Some(predicted) = predicted {
            let predicted: Vec<_> = search.pool().iter().map(|point| Some(predicted(point))).collect();
            search.expect(&predicted);
        }
        let mut tried: Vec<Tried> = Vec::new();
        for _ in 0..rounds {
            for point in search.next(&tried, 4) {
                assert!(tried.iter().all(|tried| tried.point != point), "nothing is tried twice");
                tried.push(Tried { score: bowl(&point), point });
            }
        }
        assert_eq!(tried.len(), 4 * rounds);
        let confirmed = search.most_promising(&tried, 3);
        let all = confirmed.into_iter().chain(tried.into_iter().map(|tried| tried.point));
        let best = all.min_by(|a, b| bowl(a).total_cmp(&bowl(b))).unwrap();
        let score = bowl(&best);
        (best, score)
    }

    #[test]
    fn the_lowest_point_is_found() {
        let (best, score) = search(None, 3);
        assert!(score < 3.0 + 0.02, "{best:?} {score}");
        // A prediction that is wrong by a slope is worth some tries.
        let (best, score) = search(Some(|point| bowl(point) + 0.2 * point[0]), 2);
        assert!(score < 3.0 + 0.004, "{best:?} {score}");
    }

    #[test]
    fn scores_that_are_all_alike_are_no_reason_to_stop() {
        let search = Search::new(&knobs("a: {range: [0, 1.5]}\nb: {range: [-1, 1]}\n"));
        for score in [0.0, 0.25, 1e6] {
            let mut tried: Vec<Tried> = Vec::new();
            for _ in 0..3 {
                tried.extend(search.next(&tried, 3).into_iter().map(|point| Tried { point, score }));
                assert_eq!(search.most_promising(&tried, 2).len(), 2);
            }
            assert_eq!(search.most_promising(&tried[..1], 2).len(), 2);
        }
    }

    #[test]
    fn choices_have_their_own_level() {
        let search = Search::new(&knobs("merge_method: [a, b, c]\nt: {range: [0, 1]}\n"));
        let score = |point: &[f64]| [0.3, 0.0, 0.5][point[0] as usize] + (point[1] - 0.7).powi(2);
        let mut tried = Vec::new();
        for _ in 0..3 {
            let next = search.next(&tried, 4).into_iter();
            tried.extend(next.map(|point| Tried { score: score(&point), point }));
        }
        let best = &search.most_promising(&tried, 1)[0];
        assert_eq!(best[0], 1.0);
        assert!((best[1] - 0.7).abs() < 0.05, "{best:?}");
    }

    /// One method is predicted, the other is like it but for its level, which only tries can tell.
    #[test]
    fn what_is_not_predicted_is_tried_beside_what_is() {
        let mut search = Search::new(&knobs("m: {choice: [a, b]}\nt: {range: [0, 1]}\n"));
        let score = |point: &[f64]| (point[1] - 0.7).powi(2) - 0.1 * point[0];
        let of = |point: &Vec<f64>| (point[0] == 0.0).then(|| score(point));
        search.expect(&search.pool().iter().map(of).collect::<Vec<_>>());
        assert_eq!((search.prior(&[0.0, 0.5]), search.prior(&[1.0, 0.5])), (Some(score(&[0.0, 0.5])), None));
        let first = search.next(&[], 4);
        assert!(
            (first[0][1] - 0.7).abs() < 1e-9 && first[0][0] == 0.0,
            "the best that is predicted: {first:?}"
        );
        assert!(first.iter().any(|point| point[0] == 1.0), "the other method too: {first:?}");
        let tried: Vec<Tried> =
            first.into_iter().map(|point| Tried { score: score(&point), point }).collect();
        let best = &search.most_promising(&tried, 1)[0];
        assert!(best[0] == 1.0 && (best[1] - 0.7).abs() < 0.02, "{best:?}");
        // Other points are taken in with what is predicted of them, or with what is thought of their neighbours.
        let new = [vec![0.0, 0.123_456], vec![1.0, 0.123_456]];
        search.include(&new, &[Some(7.0), None]);
        assert_eq!((search.prior(&new[0]), search.prior(&new[1])), (Some(7.0), None));
        assert!((search.before(&new[1]) - (0.123f64 - 0.7).powi(2)).abs() < 0.01);
        assert!(search.pool().is_sorted());
    }

    #[test]
    fn what_fails_is_avoided_with_what_is_near() {
        let mut search = Search::new(&knobs("a: {range: [0, 1]}\n"));
        let mut tried: Vec<Tried> = Vec::new();
        // All above a half fails, and nothing else is low.
        for _ in 0..9 {
            let point = search.next(&tried, 1).remove(0);
            if point[0] > 0.5 {
                search.avoid(&point);
            } else {
                tried.push(Tried { score: -point[0], point });
            }
        }
        assert!(search.failed.len() < 6, "{:?}", search.failed);
        let far = |point: &f64| search.failed.iter().all(|failed| (failed[0] - point).abs() > 0.1);
        let mut chosen = search.next(&tried, 9);
        chosen.extend(search.most_promising(&tried, 9));
        chosen.retain(|point| tried.iter().all(|tried| tried.point != *point));
        assert!(chosen.len() > 9 && chosen.iter().all(|point| far(&point[0])), "{chosen:?}");
        let best = tried.iter().map(|tried| tried.point[0]).fold(0.0, f64::max);
        assert!(best > 0.3, "{best}");
        // What went well in a try may fail later.
        let point = search.most_promising(&tried[..1], 1).remove(0);
        search.avoid(&point);
        assert!(!search.most_promising(&tried[..1], 1).contains(&point));
        search.forgive(std::slice::from_ref(&point));
        assert_eq!(search.most_promising(&tried[..1], 1), [point]);
    }

    #[test]
    fn fronts_hold_what_nothing_beats() {
        let scores = [[1.0, 5.0], [2.0, 2.0], [3.0, 3.0], [5.0, 1.0], [2.0, 2.0]].map(|of| of.to_vec());
        assert_eq!(pareto(&scores), [0, 1, 3, 4]);
    }
}

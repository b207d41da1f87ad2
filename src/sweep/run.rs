//! The way of a sweep: tries, on a part of the texts, then the most promising on all of them.

use std::time::Instant;

use super::journal::{Entry, Journal};
use super::objective::{Measured, Objective};
use super::search::{Search, Tried, pareto};
use crate::config::{Config, Space};
use crate::error::Result;
use crate::method::draws_masks;

/// What a sweep is to do.
#[derive(Debug)]
pub struct Request {
    /// The config with open values.
    pub space: Space,
    /// The first seed of random masks.
    pub seed: u64,
    /// What is measured of a candidate, by name, and how much it counts in the score.
    pub weights: Vec<(String, f64)>,
    /// How many candidates are tried.
    pub tries: usize,
    /// How many of them in one pass over the inputs; what they say is known for the next ones.
    pub together: usize,
    /// How many of the most promising are measured on all texts.
    pub confirm: usize,
    /// How many seeds are tried of methods that draw masks at random.
    pub seeds: usize,
}

/// What was measured of a point.
#[derive(Debug, Clone, PartialEq)]
pub struct Scores {
    /// The weighted mean of what was measured; lower is better.
    pub score: f64,
    /// What was measured, by name: of texts the mean loss in nats a token; the mean over seeds.
    pub losses: Vec<f64>,
    /// The standard error of each, over windows.
    pub errors: Vec<f64>,
    /// The standard deviation of the score over seeds, if there are several.
    pub spread: Option<f64>,
}

/// A point of the space, and what is known of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Point {
    /// A number for each open value.
    pub values: Vec<f64>,
    /// On the texts of tries.
    pub tried: Option<Scores>,
    /// On all texts.
    pub whole: Option<Scores>,
}

/// What a sweep found.
#[derive(Debug)]
pub struct Outcome {
    /// All points that were measured, in the order in which they were chosen.
    pub points: Vec<Point>,
    /// The one with the lowest score on all texts.
    pub best: usize,
    /// Those that no other beats on every set.
    pub front: Vec<usize>,
    /// Candidates that were measured now, and in how many seconds.
    pub measured: (usize, f64),
}

struct Sweeping<'s> {
    request: &'s Request,
    objective: &'s mut dyn Objective,
    journal: &'s mut Journal,
    measured: usize,
}

impl Sweeping<'_> {
    /// Measures points, on a part of the texts or on all, but for what the journal has.
    fn measure(&mut self, points: &[Vec<f64>], whole: bool) -> Result<()> {
        let mut open = Vec::new();
        for point in points {
            for seed in self.request.seeds(point)? {
                if self.journal.find(point, seed, whole).is_none() {
                    open.push((point.clone(), seed));
                }
            }
        }
        for open in open.chunks(self.request.together.min(self.objective.together())) {
            let begun = Instant::now();
            let configs = open.iter().map(|(point, seed)| Ok((self.request.config(point)?, *seed)));
            let found = self.objective.measure(configs.collect::<Result<_>>()?, whole)?;
            let seconds = begun.elapsed().as_secs_f64() / open.len() as f64;
            for ((point, seed), Measured { values, errors }) in open.iter().zip(found) {
                let errors = errors.into_iter().map(|error| Some(error).filter(|error| error.is_finite()));
                let (point, errors) = (point.clone(), errors.collect());
                self.journal.add(Entry { point, seed: *seed, whole, losses: values, errors, seconds })?;
            }
            self.measured += open.len();
        }
        Ok(())
    }

    /// What was measured of a point.
    fn scores(&self, point: &[f64], whole: bool) -> Result<Option<Scores>> {
        let seeds = self.request.seeds(point)?;
        let of_seed = |seed: &u64| self.journal.find(point, *seed, whole);
        let entries: Option<Vec<&Entry>> = seeds.iter().map(of_seed).collect();
        Ok(entries.map(|entries| self.request.scores(&entries)))
    }

    fn tried(&self, points: &[Vec<f64>], whole: bool) -> Result<Vec<Tried>> {
        let of = |point: &Vec<f64>| {
            let score = self.scores(point, whole)?.expect("it was measured").score;
            Ok(Tried { point: point.clone(), score })
        };
        points.iter().map(of).collect()
    }
}

impl Request {
    /// The config of a point.
    ///
    /// # Errors
    /// It is none.
    pub fn config(&self, point: &[f64]) -> Result<Config> {
        Config::parse(&self.space.file, &self.space.fill(point))
    }

    /// The seeds of a point: one, where nothing is drawn.
    fn seeds(&self, point: &[f64]) -> Result<Vec<u64>> {
        let draws = draws_masks(&self.config(point)?.merge_method.value);
        let count = if draws { self.seeds } else { 1 };
        Ok((0..count as u64).map(|more| self.seed.wrapping_add(more)).collect())
    }

    /// The weighted mean of what was measured.
    pub fn score(&self, losses: &[f64]) -> f64 {
        let weights: f64 = self.weights.iter().map(|(_, weight)| weight).sum();
        self.weights.iter().zip(losses).map(|((_, weight), loss)| weight * loss).sum::<f64>() / weights
    }

    fn scores(&self, entries: &[&Entry]) -> Scores {
        let count = entries.len() as f64;
        let mean = |of: &dyn Fn(&Entry) -> f64| entries.iter().map(|entry| of(entry)).sum::<f64>() / count;
        let losses: Vec<f64> = (0..self.weights.len()).map(|set| mean(&|entry| entry.losses[set])).collect();
        let errors = (0..self.weights.len()).map(|set| mean(&|entry| entry.errors[set].unwrap_or(f64::NAN)));
        let score = self.score(&losses);
        let squares: f64 = entries.iter().map(|entry| (self.score(&entry.losses) - score).powi(2)).sum();
        let spread = (count > 1.0).then(|| (squares / (count - 1.0)).sqrt());
        Scores { score, losses, errors: errors.collect(), spread }
    }
}

/// Sweeps. What the journal has is not measured again.
///
/// # Errors
/// A candidate cannot be merged or measured; the journal cannot be written; the user wishes to stop.
///
/// # Panics
/// There is nothing to try.
pub fn run(
    request: &Request,
    search: &Search,
    objective: &mut dyn Objective,
    journal: &mut Journal,
) -> Result<Outcome> {
    let begun = Instant::now();
    let tries_are_whole = objective.tries_are_whole();
    let mut sweeping = Sweeping { request, objective, journal, measured: 0 };
    let mut chosen: Vec<Vec<f64>> = Vec::new();
    while chosen.len() < request.tries {
        let tried = sweeping.tried(&chosen, tries_are_whole)?;
        let next = search.next(&tried, request.together.min(request.tries - chosen.len()));
        if next.is_empty() {
            break;
        }
        sweeping.measure(&next, tries_are_whole)?;
        chosen.extend(next);
    }
    let tried = sweeping.tried(&chosen, tries_are_whole)?;
    let promising = search.most_promising(&tried, request.confirm.max(1));
    sweeping.measure(&promising, true)?;
    chosen.extend(promising.into_iter().filter(|point| tried.iter().all(|tried| tried.point != *point)));
    let of = |values: Vec<f64>| {
        let (tried, whole) = (sweeping.scores(&values, tries_are_whole)?, sweeping.scores(&values, true)?);
        Ok(Point { values, tried, whole })
    };
    let points = chosen.into_iter().map(of).collect::<Result<Vec<_>>>()?;
    let on_all: Vec<(usize, &Scores)> =
        points.iter().enumerate().filter_map(|(place, point)| Some((place, point.whole.as_ref()?))).collect();
    let lowest = on_all.iter().min_by(|a, b| a.1.score.total_cmp(&b.1.score));
    let best = lowest.expect("something was measured on all texts").0;
    let losses: Vec<Vec<f64>> = on_all.iter().map(|(_, scores)| scores.losses.clone()).collect();
    let front = pareto(&losses).into_iter().map(|place| on_all[place].0).collect();
    let measured = (sweeping.measured, begun.elapsed().as_secs_f64());
    Ok(Outcome { points, best, front, measured })
}

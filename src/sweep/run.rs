//! The way of a sweep: tries, on a part of the texts, then the most promising on all of them.
//!
//! Which points are tried is up to the search, or to a program that gives one after the other. A candidate that fails is noted with
//! its reason, and the sweep goes on without it.

use std::time::Instant;

use super::candidate::of_candidate;
use super::journal::{Entry, Journal};
use super::objective::{Measured, Objective};
use super::search::{Search, Tried, pareto};
use crate::config::{Config, Space};
use crate::error::{Error, Result};
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
    /// Why it failed, if it did.
    pub failed: Option<String>,
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
    /// How many measurements were made now, those of each seed, and of tries and of all texts, counted, and in how many seconds.
    pub measured: (usize, f64),
}

impl Outcome {
    /// Whether some were measured on more than tries read.
    pub fn has_confirmed(&self) -> bool {
        // Errors that are not known are NaN, and equal to none.
        let score = |scores: &Option<Scores>| scores.as_ref().map(|of| of.score);
        self.points.iter().any(|point| point.whole.is_some() && score(&point.tried) != score(&point.whole))
    }

    /// How many candidates there are, and what became of them.
    pub fn counts(&self) -> String {
        let count = |is: &dyn Fn(&Point) -> bool| self.points.iter().filter(|point| is(point)).count();
        let all = self.points.len();
        let (failed, confirmed) =
            (count(&|point| point.failed.is_some()), count(&|point| point.whole.is_some()));
        let mut words = format!("{all} {}", if all == 1 { "candidate" } else { "candidates" });
        if failed > 0 {
            words += &format!(", {failed} of them failed");
        }
        if self.has_confirmed() {
            words += &format!(", {confirmed} of them measured on all texts");
        }
        words
    }
}

/// A sweep under way.
pub struct Sweeping<'s> {
    request: &'s Request,
    search: &'s mut Search,
    objective: &'s mut dyn Objective,
    journal: &'s mut Journal,
    /// The points of tries, in their order.
    chosen: Vec<Vec<f64>>,
    /// Whether somebody else has chosen some.
    is_asked: bool,
    /// Those that failed, and why.
    failed: Vec<(Vec<f64>, Error)>,
    /// Candidates that were measured, and the seconds that took.
    measured: (usize, f64),
}

/// What a point came to.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// What was measured.
    pub scores: Scores,
    /// Whether all of it was known already.
    pub is_known: bool,
}

/// The predicted scores of points, one for each; none where nothing is predicted.
pub type Predict<'p> = dyn Fn(&[Vec<f64>]) -> Vec<Option<f64>> + 'p;

/// So many failures before anything is measured end a search: the reason is not the candidates'.
const FAILURES_MAX: usize = 3;

impl<'s> Sweeping<'s> {
    /// Nothing is tried yet. What the journal has will not be measured again.
    pub fn new(
        request: &'s Request,
        search: &'s mut Search,
        objective: &'s mut dyn Objective,
        journal: &'s mut Journal,
    ) -> Self {
        let (chosen, failed) = (Vec::new(), Vec::new());
        Self { request, search, objective, journal, chosen, is_asked: false, failed, measured: (0, 0.0) }
    }

    /// Tries as many points as are asked for, which the search chooses. Those that the journal knows count, whoever chose them;
    /// `predicted` is what is predicted for points.
    ///
    /// # Errors
    /// What any candidate would meet; the first candidates all fail; the journal cannot be written; the user wishes to stop.
    pub fn search(&mut self, predicted: &Predict<'_>) -> Result<()> {
        let whole = self.objective.tries_are_whole();
        while self.chosen.len() < self.request.tries {
            let tried = self.tried();
            let left = self.request.tries - self.chosen.len();
            let next = self.search.next(&tried, self.request.together.min(left));
            if next.is_empty() {
                break;
            }
            // A search that was interrupted chooses anew what it has chosen before. Where that ends, all else that is known is
            // taken in.
            if next.iter().all(|point| self.scores(point, whole).is_none()) {
                let mut others = self.recalled();
                others.retain(|point| !self.chosen.contains(point));
                if !others.is_empty() {
                    self.search.include(&others, &predicted(&others));
                    self.chosen.extend(others);
                    continue;
                }
            }
            self.measure(&next, whole, true)?;
            self.chosen.extend(next);
        }
        Ok(())
    }

    /// The points that the journal has all of as tries.
    pub fn recalled(&self) -> Vec<Vec<f64>> {
        self.in_journal(self.objective.tries_are_whole())
    }

    /// The points that the journal has all of, on a part of the texts or on all.
    fn in_journal(&self, whole: bool) -> Vec<Vec<f64>> {
        let mut points: Vec<Vec<f64>> = Vec::new();
        for Entry { point, .. } in self.journal.entries.iter().filter(|entry| entry.whole == whole) {
            if !points.contains(point) && self.scores(point, whole).is_some() {
                points.push(point.clone());
            }
        }
        points
    }

    /// The points that were tried, those that failed left out.
    pub fn known(&self) -> Vec<(&[f64], Scores)> {
        let whole = self.objective.tries_are_whole();
        self.chosen.iter().filter_map(|point| Some((&point[..], self.scores(point, whole)?))).collect()
    }

    /// Tries the points that somebody asks for, who may know what is predicted for them. Within: why one failed.
    ///
    /// # Errors
    /// As of [`Self::search`], but for failures.
    ///
    /// # Panics
    /// There is not a prediction, or none, for each.
    pub fn answer(&mut self, points: &[Vec<f64>], predicted: &[Option<f64>]) -> Result<Vec<Result<Answer>>> {
        let whole = self.objective.tries_are_whole();
        self.search.include(points, predicted);
        self.is_asked = true;
        // Who asks again wants it tried again.
        self.failed.retain(|(point, _)| !points.contains(point));
        self.search.forgive(points);
        let known: Vec<bool> = points.iter().map(|point| self.scores(point, whole).is_some()).collect();
        self.measure(points, whole, false)?;
        for point in points {
            if !self.chosen.contains(point) {
                self.chosen.push(point.clone());
            }
        }
        let of = |(point, is_known): (&Vec<f64>, bool)| match self.why_failed(point) {
            Some(why) => Err(why.clone()),
            None => Ok(Answer { scores: self.scores(point, whole).expect("it was measured"), is_known }),
        };
        Ok(points.iter().zip(known).map(of).collect())
    }

    /// Measures the most promising points on all texts, and finds the best of all that were, earlier ones too.
    ///
    /// # Errors
    /// As of [`Self::search`]; nothing could be measured.
    pub fn finish(mut self) -> Result<Outcome> {
        let whole = self.objective.tries_are_whole();
        let tried = self.tried();
        // Who chooses points wants the best of them looked at, before any that nobody asked for.
        let mut asked = if self.is_asked { tried.clone() } else { Vec::new() };
        asked.sort_by(|one, other| one.score.total_cmp(&other.score));
        let (mut left, mut looked_at) = (self.request.confirm.max(1), Vec::<Vec<f64>>::new());
        while left > 0 {
            let others = self.search.most_promising(&tried, asked.len() + looked_at.len() + left);
            let mut promising: Vec<Vec<f64>> = Vec::new();
            for point in asked.iter().map(|tried| tried.point.clone()).chain(others) {
                if !looked_at.contains(&point) && !promising.contains(&point) {
                    promising.push(point);
                }
            }
            promising.truncate(left);
            if promising.is_empty() {
                break;
            }
            self.measure(&promising, true, true)?;
            // Others take the places of those that fail.
            left -= promising.iter().filter(|point| self.why_failed(point).is_none()).count();
            looked_at.extend(promising);
        }
        let mut points = self.chosen.clone();
        // What was measured on all texts before may be better than all of these.
        for point in looked_at.into_iter().chain(self.in_journal(true)) {
            if !points.contains(&point) {
                points.push(point);
            }
        }
        let of = |values: Vec<f64>| {
            let failed = self.why_failed(&values).map(|why| why.message.clone());
            Point { tried: self.scores(&values, whole), whole: self.scores(&values, true), values, failed }
        };
        let points: Vec<Point> = points.into_iter().map(of).collect();
        let measured = |(place, point): (usize, &'_ Point)| Some((place, point.whole.clone()?));
        let on_all: Vec<(usize, Scores)> = points.iter().enumerate().filter_map(measured).collect();
        let Some(best) = on_all.iter().min_by(|a, b| a.1.score.total_cmp(&b.1.score)) else {
            return Err(self.nothing_measured());
        };
        let losses: Vec<Vec<f64>> = on_all.iter().map(|(_, scores)| scores.losses.clone()).collect();
        let front = pareto(&losses).into_iter().map(|place| on_all[place].0).collect();
        Ok(Outcome { best: best.0, front, points, measured: self.measured })
    }

    /// Measures points, on a part of the texts or on all, but for what the journal has. With `gives_up` the first failures end it, if
    /// nothing was ever measured.
    fn measure(&mut self, points: &[Vec<f64>], whole: bool, gives_up: bool) -> Result<()> {
        let mut open: Vec<(Vec<f64>, u64)> = Vec::new();
        for point in points {
            match of_candidate(self.request.seeds(point))? {
                Ok(seeds) => {
                    let runs = seeds.into_iter().map(|seed| (point.clone(), seed));
                    for run in runs {
                        if self.journal.find(point, run.1, whole).is_none() && !open.contains(&run) {
                            open.push(run);
                        }
                    }
                }
                Err(why) => self.fail(point, why),
            }
        }
        while !open.is_empty() {
            let count = self.request.together.min(self.objective.together()).min(open.len());
            let runs: Vec<(Vec<f64>, u64)> = open.drain(..count).collect();
            let begun = Instant::now();
            let configs = runs.iter().map(|(point, seed)| Ok((self.request.config(point)?, *seed)));
            let found = self.objective.measure(configs.collect::<Result<_>>()?, whole)?;
            let seconds = begun.elapsed().as_secs_f64();
            self.measured.0 += runs.len();
            self.measured.1 += seconds;
            let seconds = seconds / runs.len() as f64;
            for ((point, seed), found) in runs.into_iter().zip(found) {
                let (losses, errors, failed) = match &found {
                    Ok(Measured { values, errors }) => (values.clone(), errors.clone(), None),
                    Err(why) => (Vec::new(), Vec::new(), Some(why.message.clone())),
                };
                let errors = errors.into_iter().map(|error| Some(error).filter(|error| error.is_finite()));
                let errors = errors.collect();
                let entry = Entry { point: point.clone(), seed, whole, losses, errors, seconds, failed };
                self.journal.add(entry)?;
                if let Err(why) = found {
                    // Its other seeds would say nothing more.
                    open.retain(|(other, _)| *other != point);
                    self.fail(&point, why);
                }
            }
            let nothing_yet = self.journal.entries.iter().all(|entry| entry.failed.is_some());
            if gives_up && nothing_yet && self.failed.len() >= FAILURES_MAX {
                return Err(self.nothing_measured());
            }
        }
        Ok(())
    }

    fn fail(&mut self, point: &[f64], why: Error) {
        if self.why_failed(point).is_none() {
            self.search.avoid(point);
            self.failed.push((point.to_vec(), why));
        }
    }

    fn why_failed(&self, point: &[f64]) -> Option<&Error> {
        self.failed.iter().find(|(failed, _)| failed == point).map(|(_, why)| why)
    }

    /// Why there is no best candidate.
    fn nothing_measured(&self) -> Error {
        let (point, why) = self.failed.first().expect("something is measured, or fails");
        let all = if self.failed.len() > 1 {
            format!("all {} candidates", self.failed.len())
        } else {
            "the only candidate".into()
        };
        let message = format!(
            "{all} failed, the first one ({}) because: {}",
            self.request.space.words(point),
            why.message
        );
        Error { message, others: Vec::new(), ..why.clone() }
    }

    /// What was measured of a point, with all seeds; nothing if it failed.
    fn scores(&self, point: &[f64], whole: bool) -> Option<Scores> {
        let seeds = self.request.seeds(point).ok()?;
        let of_seed = |seed: &u64| self.journal.find(point, *seed, whole);
        let entries: Option<Vec<&Entry>> = seeds.iter().map(of_seed).collect();
        Some(self.request.scores(&entries?))
    }

    /// What tries came to.
    fn tried(&self) -> Vec<Tried> {
        let known = self.known().into_iter();
        known.map(|(point, scores)| Tried { point: point.to_vec(), score: scores.score }).collect()
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
    ///
    /// # Errors
    /// It is no config.
    pub fn seeds(&self, point: &[f64]) -> Result<Vec<u64>> {
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
/// As of [`Sweeping::search`] and [`Sweeping::finish`].
pub fn run(
    request: &Request,
    search: &mut Search,
    objective: &mut dyn Objective,
    journal: &mut Journal,
) -> Result<Outcome> {
    let mut sweeping = Sweeping::new(request, search, objective, journal);
    sweeping.search(&|points| vec![None; points.len()])?;
    sweeping.finish()
}

//! The way of a sweep: tries on a part of the texts, then the most promising on all of them.

use std::time::Instant;

use super::candidate::{Candidate, Engine, measure};
use super::journal::{Entry, Journal};
use super::search::{Search, Tried, pareto};
use crate::config::{Config, Space};
use crate::error::Result;
use crate::eval::{Listen, Mean, Window, Windows};
use crate::plan::Choices;
use crate::stream::Watch;

/// A set of texts, and how much it counts.
#[derive(Debug)]
pub struct Set {
    /// Its name.
    pub name: String,
    /// How much its loss counts in the score.
    pub weight: f64,
    /// Its windows, as the donor's tokenizer makes them.
    pub windows: Windows,
}

/// What a sweep is to do.
#[derive(Debug)]
pub struct Request {
    /// The config with open values.
    pub space: Space,
    /// What configs do not say.
    pub choices: Choices,
    /// What candidates read.
    pub sets: Vec<Set>,
    /// How many candidates are tried.
    pub tries: usize,
    /// How many of them in one pass over the inputs; what they say is known for the next ones.
    pub together: usize,
    /// How many of the most promising are measured on all texts.
    pub confirm: usize,
    /// How many seeds are tried of methods that draw masks at random.
    pub seeds: usize,
    /// The most tokens that a try reads, of all sets together.
    pub tokens: usize,
}

/// What was measured of a point.
#[derive(Debug, Clone, PartialEq)]
pub struct Scores {
    /// The weighted mean of the losses, in nats a token.
    pub score: f64,
    /// The mean loss of each set; the mean over seeds.
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
    /// Tokens that a try reads, and all.
    pub tokens: [usize; 2],
    /// Candidates that were measured now, and in how many seconds.
    pub measured: (usize, f64),
}

/// Windows of all sets one behind the other, and which of them are whose.
struct Texts {
    windows: Vec<Window>,
    ends: Vec<usize>,
    is_whole: bool,
}

impl Texts {
    /// Of each set every so many windows, so that all of them have about so many tokens.
    fn of(sets: &[Set], tokens: usize) -> Self {
        let all: usize = sets.iter().map(|set| set.windows.tokens()).sum();
        let step = if tokens == 0 { 1 } else { all.div_ceil(tokens) };
        let (mut windows, mut ends) = (Vec::new(), Vec::new());
        for set in sets {
            windows.extend(set.windows.windows.iter().step_by(step).cloned());
            ends.push(windows.len());
        }
        Self { windows, ends, is_whole: step == 1 }
    }

    fn tokens(&self) -> usize {
        self.windows.iter().map(|window| window.tokens.len()).sum()
    }

    /// The mean loss of each set.
    fn means(&self, losses: &[Vec<f64>]) -> Vec<Mean> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, end)| Mean::of(&losses[start..*end])).collect()
    }
}

/// The windows of tries, by set, of the sets that a request has: what a prediction has to read.
pub fn windows_of_tries(sets: &[Set], tokens: usize) -> Vec<Vec<Window>> {
    let texts = Texts::of(sets, tokens);
    let starts = std::iter::once(0).chain(texts.ends.iter().copied());
    starts.zip(&texts.ends).map(|(start, end)| texts.windows[start..*end].to_vec()).collect()
}

/// Steps that are reported of, if nothing was measured before.
pub fn steps(request: &Request, layers: usize) -> u64 {
    let of = |texts: &Texts, candidates: usize| (texts.tokens() * (layers + 1) * candidates) as u64;
    let (tries, whole) = (Texts::of(&request.sets, request.tokens), Texts::of(&request.sets, 0));
    of(&tries, request.tries) + of(&whole, request.confirm)
}

struct Sweeping<'s> {
    request: &'s Request,
    engine: &'s mut Engine,
    journal: &'s mut Journal,
    watch: &'s dyn Watch,
    listen: &'s dyn Listen,
    measured: usize,
    begun: Instant,
}

impl Sweeping<'_> {
    /// The config of a point.
    fn config(&self, point: &[f64]) -> Result<Config> {
        let space = &self.request.space;
        Config::parse(&space.file, &space.fill(point))
    }

    /// The seeds of a point: one, where nothing is drawn.
    fn seeds(&self, point: &[f64]) -> Result<Vec<u64>> {
        let first = self.request.choices.seed;
        let draws = crate::method::draws_masks(&self.config(point)?.merge_method.value);
        let count = if draws { self.request.seeds } else { 1 };
        Ok((0..count as u64).map(|more| first.wrapping_add(more)).collect())
    }

    /// Measures points on some texts, but for what the journal has.
    fn measure(&mut self, points: &[Vec<f64>], texts: &Texts) -> Result<()> {
        let mut open = Vec::new();
        for point in points {
            for seed in self.seeds(point)? {
                if self.journal.find(point, seed, texts.is_whole).is_none() {
                    open.push((point.clone(), seed));
                }
            }
        }
        for open in open.chunks(self.request.together) {
            let begun = Instant::now();
            let opened = open.iter().map(|(point, seed)| {
                let choices = Choices { seed: *seed, ..self.request.choices };
                Candidate::open(self.config(point)?, &choices, self.engine, self.watch)
            });
            let candidates = opened.collect::<Result<Vec<_>>>()?;
            let losses = measure(&candidates, &texts.windows, self.engine, self.watch, self.listen)?;
            let seconds = begun.elapsed().as_secs_f64() / open.len() as f64;
            for ((point, seed), losses) in open.iter().zip(losses) {
                let means = texts.means(&losses.windows);
                self.journal.add(Entry {
                    point: point.clone(),
                    seed: *seed,
                    whole: texts.is_whole,
                    losses: means.iter().map(|mean| mean.loss).collect(),
                    errors: means.iter().map(|mean| Some(mean.error).filter(|error| error.is_finite())).collect(),
                    seconds,
                })?;
            }
            self.measured += open.len();
        }
        Ok(())
    }

    /// What was measured of a point.
    fn scores(&self, point: &[f64], whole: bool) -> Result<Option<Scores>> {
        let seeds = self.seeds(point)?;
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
    /// The weighted mean of the sets' losses.
    pub fn score(&self, losses: &[f64]) -> f64 {
        let weights: f64 = self.sets.iter().map(|set| set.weight).sum();
        self.sets.iter().zip(losses).map(|(set, loss)| set.weight * loss).sum::<f64>() / weights
    }

    fn scores(&self, entries: &[&Entry]) -> Scores {
        let count = entries.len() as f64;
        let mean = |of: &dyn Fn(&Entry) -> f64| entries.iter().map(|entry| of(entry)).sum::<f64>() / count;
        let losses: Vec<f64> = (0..self.sets.len()).map(|set| mean(&|entry| entry.losses[set])).collect();
        let errors = (0..self.sets.len()).map(|set| mean(&|entry| entry.errors[set].unwrap_or(f64::NAN)));
        let score = self.score(&losses);
        let squares: f64 = entries.iter().map(|entry| (self.score(&entry.losses) - score).powi(2)).sum();
        let spread = (count > 1.0).then(|| (squares / (count - 1.0)).sqrt());
        Scores { score, losses, errors: errors.collect(), spread }
    }
}

/// Sweeps. What the journal has is not measured again.
///
/// # Errors
/// A candidate cannot be merged or read; the journal cannot be written; the user wishes to stop.
///
/// # Panics
/// There is nothing to try.
pub fn run(
    request: &Request,
    search: &Search,
    engine: &mut Engine,
    journal: &mut Journal,
    watch: &dyn Watch,
    listen: &dyn Listen,
) -> Result<Outcome> {
    let (part, whole) = (Texts::of(&request.sets, request.tokens), Texts::of(&request.sets, 0));
    let tokens = [part.tokens(), whole.tokens()];
    let begun = Instant::now();
    let mut sweeping = Sweeping { request, engine, journal, watch, listen, measured: 0, begun };
    let mut chosen: Vec<Vec<f64>> = Vec::new();
    while chosen.len() < request.tries {
        let tried = sweeping.tried(&chosen, part.is_whole)?;
        let next = search.next(&tried, request.together.min(request.tries - chosen.len()));
        if next.is_empty() {
            break;
        }
        sweeping.measure(&next, &part)?;
        chosen.extend(next);
    }
    let tried = sweeping.tried(&chosen, part.is_whole)?;
    let promising = search.most_promising(&tried, request.confirm.max(1));
    sweeping.measure(&promising, &whole)?;
    chosen.extend(promising.into_iter().filter(|point| tried.iter().all(|tried| tried.point != *point)));
    let of = |values: Vec<f64>| {
        let (tried, whole) = (sweeping.scores(&values, part.is_whole)?, sweeping.scores(&values, true)?);
        Ok(Point { tried, whole, values })
    };
    let points = chosen.into_iter().map(of).collect::<Result<Vec<_>>>()?;
    let measured = (sweeping.measured, sweeping.begun.elapsed().as_secs_f64());
    let on_all: Vec<(usize, &Scores)> =
        points.iter().enumerate().filter_map(|(place, point)| Some((place, point.whole.as_ref()?))).collect();
    let lowest = on_all.iter().min_by(|a, b| a.1.score.total_cmp(&b.1.score));
    let best = lowest.expect("something was measured on all texts").0;
    let losses: Vec<Vec<f64>> = on_all.iter().map(|(_, scores)| scores.losses.clone()).collect();
    let front = pareto(&losses).into_iter().map(|place| on_all[place].0).collect();
    Ok(Outcome { points, best, front, tokens, measured })
}

//! What a sweep found: configs, a page, a table, JSON.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value as Json, json};

use crate::cli::eval::figure;
use crate::cli::show;
use crate::error::{Error, Result};
use crate::predict::Parents;
use crate::sweep::{Direction, Outcome, Page, Point, Predictions, Request, Round, Scores, Search};
use crate::text::{cut_to, escaped, labels};

/// The page.
const PAGE: &str = "sweep.html";

/// What came out.
pub(super) struct Found {
    pub(super) search: Search,
    pub(super) outcome: Outcome,
    pub(super) predictions: Option<Predictions>,
    /// The predicted losses of the search's points at first, by set; none of those that are no sums.
    pub(super) predicted: Vec<Option<Vec<f64>>>,
    /// Tokens that a try read, and all.
    pub(super) tokens: Option<[usize; 2]>,
    pub(super) direction: Direction,
    /// The flags with which a merge makes what was measured.
    pub(super) flags: String,
}

/// The config of the winner.
pub(super) fn best_config(out: &Path) -> PathBuf {
    out.join("best.yml")
}

/// The file of a config that no other beats on every set.
fn front_config(out: &Path, number: usize) -> PathBuf {
    out.join(format!("front-{number}.yml"))
}

impl Found {
    /// Writes the configs of the winner and of the front, and the page.
    ///
    /// # Errors
    /// Kind `Output`.
    pub(super) fn write(&self, out: &Path, config: &Path, request: &Request) -> Result<()> {
        let Self { outcome, .. } = self;
        let write =
            |path: &Path, text: &str| fs::write(path, text).map_err(|cause| Error::writing(path, &cause));
        let filled = |place: usize| {
            let point = &outcome.points[place];
            let scores = point.whole.as_ref().expect("it was measured on all texts");
            let named = request.weights.iter().zip(self.signed(&scores.losses));
            let losses: Vec<String> = named.map(|((name, _), loss)| format!("{name} {loss:.4}")).collect();
            let (words, text) = (request.space.words(&point.values), request.space.fill(&point.values));
            format!("# {}: {words}\n# {}\n{text}", config.display(), losses.join(", "))
        };
        write(&best_config(out), &filled(outcome.best))?;
        // Those of an earlier, longer front would look like this one's.
        for number in 1.. {
            if fs::remove_file(front_config(out, number)).is_err() {
                break;
            }
        }
        if request.weights.len() > 1 {
            for (number, place) in outcome.front.iter().enumerate() {
                write(&front_config(out, number + 1), &filled(*place))?;
            }
        }
        write(&out.join(PAGE), &self.page(request))
    }

    /// Numbers as the user calls them.
    fn signed(&self, losses: &[f64]) -> Vec<f64> {
        losses.iter().map(|loss| self.direction.sign() * loss).collect()
    }

    fn parents(&self) -> Option<&Parents> {
        self.predictions.as_ref().map(|predictions| &predictions.parents)
    }

    fn page(&self, request: &Request) -> String {
        let Self { search, outcome, predictions, predicted, tokens, direction, .. } = self;
        let (candidates, seconds) = outcome.measured;
        let mut notes = Vec::new();
        if let Some([part, all]) = tokens {
            notes.push(format!("A try reads {part} tokens, the most promising candidates read all {all}."));
        }
        if candidates > 0 {
            notes.push(format!("{} in {seconds:.1} s.", measurements(candidates)));
        }
        let predicted: Vec<&Vec<f64>> = predicted.iter().flatten().collect();
        let sets = predicted.first().map_or(0, |losses| losses.len());
        let page = Page {
            request,
            search,
            predictions: predictions.as_ref(),
            outcome,
            what: if tokens.is_some() { "loss, nats a token" } else { "score" },
            sign: direction.sign(),
            predicted: (0..sets).map(|set| predicted.iter().map(|losses| losses[set]).collect()).collect(),
            round: self.predictions.as_ref().map_or_else(Round::default, round),
            notes,
        };
        page.html()
    }

    /// Prints a table.
    pub(super) fn table(&self, out: &Path, request: &Request) {
        let Self { search, outcome, tokens, direction, flags, .. } = self;
        let what = if tokens.is_some() { "loss in nats a token" } else { "" };
        let mut head = format!("{what:<52} {:>9} {:>9} {:>9}", "predicted", "try", "all");
        let name = |name: &str| cut_to(&escaped(name), 14);
        request.weights.iter().for_each(|(of, _)| head += &format!(" {:>14}", name(of)));
        show::line(&head);
        let parents = self.parents().into_iter().flat_map(|of| (0..of.count()).map(move |at| (of, at)));
        for (parents, parent) in parents {
            let of = |set| parents.loss_of_parent(set, parent).loss;
            let losses: Vec<f64> = (0..request.weights.len()).map(of).collect();
            let score = Some(request.score(&losses));
            show::line(&row(&escaped(&parents.names[parent]), [None, score, None], &losses));
        }
        for (place, point) in outcome.points.iter().enumerate() {
            let mark = if place == outcome.best { "* " } else { "  " };
            let words = mark.to_owned() + &request.space.words(&point.values);
            let score = |scores: &Option<Scores>| scores.as_ref().map(|of| direction.sign() * of.score);
            let numbers = [search.prior(&point.values), score(&point.tried), score(&point.whole)];
            let losses = point.whole.as_ref().or(point.tried.as_ref());
            show::line(&row(&words, numbers, &losses.map_or(Vec::new(), |of| self.signed(&of.losses))));
            if let Some(why) = &point.failed {
                show::line(&format!("    failed: {}", cut_to(&escaped(why), 400)));
            }
        }
        let (candidates, seconds) = outcome.measured;
        let pace = figure(candidates as f64 / seconds.max(1e-9) * 3600.0);
        let counts = outcome.counts();
        let counts = match tokens {
            Some([part, all]) if part < all => format!("{counts}; a try reads {part} tokens of {all}"),
            _ => counts,
        };
        show::line(&counts);
        if candidates > 0 {
            show::line(&format!("{} in {seconds:.1} s, {pace} an hour", measurements(candidates)));
        }
        let best = request.space.words(&outcome.points[outcome.best].values);
        let config = best_config(out);
        let config = config.display();
        show::line(&format!("the best: {best} (mergeforge merge {config} OUT{flags} makes it)"));
    }

    /// What was measured, as JSON.
    pub(super) fn json(&self, request: &Request) -> Json {
        let Self { outcome, tokens, .. } = self;
        let points = (0..outcome.points.len()).map(|place| self.point_json(place, request));
        let (candidates, seconds) = outcome.measured;
        let measured = request.weights.iter().map(|(name, weight)| json!({ "name": name, "weight": weight }));
        json!({
            "measured": measured.collect::<Vec<_>>(),
            "points": points.collect::<Vec<_>>(),
            "best": outcome.best,
            "try_tokens": tokens.map(|[part, _]| part),
            "tokens": tokens.map(|[_, all]| all),
            "candidates_measured": candidates,
            "seconds": seconds,
            "candidates_an_hour": candidates as f64 / seconds.max(1e-9) * 3600.0,
        })
    }

    /// One of the points.
    pub(super) fn point_json(&self, place: usize, request: &Request) -> Json {
        let Point { values, tried, whole, failed } = &self.outcome.points[place];
        let scores = |scores: &Option<Scores>| {
            scores.as_ref().map(|scores| {
                json!({
                    "score": self.direction.sign() * scores.score,
                    "values": self.signed(&scores.losses),
                    "standard_errors": scores.errors,
                    "spread_over_seeds": scores.spread,
                })
            })
        };
        json!({
            "values": request.space.json(values),
            "predicted": self.search.prior(values),
            "try": scores(tried),
            "all": scores(whole),
            "failed": failed,
            "on_front": self.outcome.front.contains(&place),
        })
    }
}

/// Those of this run: of each try, each confirmation and each seed.
fn measurements(count: usize) -> String {
    format!("{count} {}", if count == 1 { "measurement" } else { "measurements" })
}

/// Steps from one model to the next.
const STEPS: usize = 20;

/// What is predicted on the way from the first parent to the second, the third and back.
fn round(predictions: &Predictions) -> Round {
    let parents = &predictions.parents;
    if parents.count() < 3 {
        return Round::default();
    }
    // The coefficients of the second and the third; the first has what is left.
    let corner = |number: usize| [f64::from(u8::from(number == 1)), f64::from(u8::from(number == 2))];
    let at = |step: usize| {
        let ([a, b], [c, d]) = (corner(step / STEPS % 3), corner((step / STEPS + 1) % 3));
        let share = (step % STEPS) as f64 / STEPS as f64;
        let mut merge = vec![0.0; parents.count() - 1];
        (merge[0], merge[1]) = (a + share * (c - a), b + share * (d - b));
        merge
    };
    let merges: Vec<Vec<f64>> = (0..=3 * STEPS).map(at).collect();
    let points = |set: usize| {
        let losses = predictions.losses(set, &merges).into_iter().enumerate();
        losses.map(|(step, loss)| (step as f64 / STEPS as f64, loss)).collect()
    };
    let sets = parents.sets.iter().cloned().enumerate().map(|(set, name)| (name, points(set)));
    let labels = labels(&parents.names);
    let names = labels.iter().take(3).chain(&labels[..1]).cloned().collect();
    Round { names, sets: sets.collect() }
}

/// A row of the table.
fn row(words: &str, numbers: [Option<f64>; 3], losses: &[f64]) -> String {
    let number = |number: Option<f64>| number.map_or_else(String::new, |number| format!("{number:.4}"));
    let [predicted, tried, whole] = numbers.map(number);
    let mut row = format!("{:<52} {predicted:>9} {tried:>9} {whole:>9}", cut_to(words, 52));
    losses.iter().for_each(|loss| row += &format!(" {loss:>14.4}"));
    row
}

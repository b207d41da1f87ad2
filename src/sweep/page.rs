//! What a sweep found, as a page: scores over each open value, over two of them, and what is gained in one set for what is lost in another.

use super::predictions::Predictions;
use super::run::{Outcome, Point, Request, Scores};
use super::search::{Search, Tried};
use crate::config::{Knob, Values};
use crate::page::{self, Axis, Chart, HeatMap, Mark, Scale, Series};

/// What a page shows.
pub struct Page<'p> {
    /// What was asked for.
    pub request: &'p Request,
    /// How it was searched.
    pub search: &'p Search,
    /// Predictions for any point, where there are any.
    pub predictions: Option<&'p Predictions>,
    /// What was found.
    pub outcome: &'p Outcome,
    /// What numbers are, like "loss, nats a token".
    pub what: &'p str,
    /// What numbers are multiplied with to be what the user calls them: −1 where higher is better.
    pub sign: f64,
    /// The predicted losses of the search's points, by set; empty where nothing is predicted.
    pub predicted: Vec<Vec<f64>>,
    /// The predicted loss of each set on the way from the base to one model, to another and back; empty where nothing is predicted.
    pub round: Round,
    /// In which circumstances.
    pub notes: Vec<String>,
}

/// Losses on the way from model to model.
#[derive(Debug, Default)]
pub struct Round {
    /// The models at the way's turns, the first one at its end again.
    pub names: Vec<String>,
    /// Of each set its name, and points: 0 is the first model, 1 the second.
    pub sets: Vec<(String, Vec<(f64, f64)>)>,
}

/// Steps of a curve, and of each side of a map.
const STEPS: usize = 41;
const SIDE: usize = 21;

impl Page<'_> {
    /// The page.
    pub fn html(&self) -> String {
        let Self { request, outcome, .. } = self;
        let best = &outcome.points[outcome.best];
        let mut body = page::paragraph(&format!(
            "{}. The best: {}.",
            outcome.counts(),
            request.space.words(&best.values)
        ));
        self.notes.iter().for_each(|note| body += &page::note(note));
        body += &page::heading("What was measured");
        body += &self.table();
        body += &self.over_each();
        body += &self.over_two();
        body += &self.between_sets();
        body += &self.between_models();
        body += &page::heading("The config with open values");
        body += &format!("<pre>{}</pre>\n", page::escaped(request.space.text()).replace("\\n", "\n"));
        page::document("mergeforge: a sweep", &body)
    }

    fn score(&self, scores: &Scores) -> f64 {
        self.sign * scores.score
    }

    fn table(&self) -> String {
        let knobs = &self.request.space.knobs;
        let mut head: Vec<String> = knobs.iter().map(|knob| knob.name.clone()).collect();
        head.extend(["score of the try", "score on all"].map(str::to_owned));
        head.extend(self.request.weights.iter().map(|(name, weight)| format!("{name} (counts {weight})")));
        let failed = self.outcome.points.iter().any(|point| point.failed.is_some());
        head.extend(failed.then(|| "failed because".to_owned()));
        let number = |number: Option<f64>| number.map_or_else(String::new, |number| format!("{number:.4}"));
        let row = |point: &Point| {
            let mut row: Vec<String> =
                knobs.iter().zip(&point.values).map(|(knob, value)| knob.spelled(*value)).collect();
            row.push(number(point.tried.as_ref().map(|scores| self.score(scores))));
            row.push(number(point.whole.as_ref().map(|scores| self.score(scores))));
            let shown = point.whole.as_ref().or(point.tried.as_ref());
            let loss = |set: usize| number(shown.map(|of| self.sign * of.losses[set]));
            row.extend((0..self.request.weights.len()).map(loss));
            row.extend(failed.then(|| point.failed.clone().unwrap_or_default()));
            row
        };
        let mut points: Vec<&Point> = self.outcome.points.iter().collect();
        let rank = |point: &Point| {
            let whole = point.whole.as_ref().map(|scores| scores.score);
            (
                whole.is_none(),
                whole.or(point.tried.as_ref().map(|scores| scores.score)).unwrap_or(f64::INFINITY),
            )
        };
        points.sort_by(|a, b| rank(a).partial_cmp(&rank(b)).expect("scores are numbers"));
        page::table(&head, points.into_iter().map(row))
    }

    /// What tries came to: the model of the search is fitted to these.
    fn tried(&self) -> Vec<Tried> {
        let of = |point: &Point| {
            let scores = point.tried.as_ref()?;
            Some(Tried { point: point.values.clone(), score: scores.score })
        };
        self.outcome.points.iter().filter_map(of).collect()
    }

    /// The search, with what is predicted for these points exactly.
    fn search_at(&self, points: &[Vec<f64>]) -> Search {
        let mut search = self.search.clone();
        if let Some(predictions) = self.predictions {
            search.include(points, &predictions.scores(self.request, points));
        }
        search
    }

    fn best(&self) -> &[f64] {
        &self.outcome.points[self.outcome.best].values
    }

    /// The score over each open value, the others being as in the best point.
    fn over_each(&self) -> String {
        let tried = self.tried();
        let mut html = String::new();
        for (dim, knob) in self.request.space.knobs.iter().enumerate() {
            let (places, names) = places(knob, STEPS);
            let line: Vec<Vec<f64>> =
                places.iter().map(|place| with(self.best(), &[(dim, *place)])).collect();
            let search = self.search_at(&line);
            let expected = search.expected(&tried, &line).into_iter().map(|(mean, _)| self.sign * mean);
            let dots = |scores: fn(&Point) -> Option<&Scores>| {
                let of = |point: &Point| Some((point.values[dim], self.score(scores(point)?)));
                self.outcome.points.iter().filter_map(of).collect::<Vec<_>>()
            };
            let joined = !matches!(knob.values, Values::Among(_));
            let mut series = vec![Series {
                name: "expected, all else as in the best",
                points: places.iter().copied().zip(expected).collect(),
                line: joined,
                dots: !joined,
            }];
            let predicted =
                |(place, point): (&f64, &Vec<f64>)| Some((*place, self.sign * search.prior(point)?));
            let predicted: Vec<(f64, f64)> = places.iter().zip(&line).filter_map(predicted).collect();
            if !predicted.is_empty() {
                series.push(Series { name: "predicted", points: predicted, line: joined, dots: !joined });
            }
            series.push(Series {
                name: "tries",
                points: dots(|point| point.tried.as_ref()),
                line: false,
                dots: true,
            });
            if self.outcome.has_confirmed() {
                let whole = dots(|point| point.whole.as_ref());
                series.push(Series { name: "on all texts", points: whole, line: false, dots: true });
            }
            html += &page::heading(&format!("Score over {}", knob.name));
            html += &page::chart(&Chart {
                x: Axis { what: &knob.name, names: &names, with: None },
                y: Axis { what: self.what, ..Axis::default() },
                series: &series,
            });
        }
        html + &page::note(
            "What is expected is the search's model after all tries, on the texts of tries. Texts of tries and all texts have different \
             losses, so their dots have different levels.",
        )
    }

    /// The score over the first two open numbers, the others being as in the best point.
    fn over_two(&self) -> String {
        let knobs = &self.request.space.knobs;
        let ranges: Vec<usize> =
            (0..knobs.len()).filter(|dim| matches!(knobs[*dim].values, Values::Between(..))).collect();
        let [across, up, ..] = ranges[..] else { return String::new() };
        let ((columns, _), (mut rows, _)) = (places(&knobs[across], SIDE), places(&knobs[up], SIDE));
        rows.reverse();
        let points: Vec<Vec<f64>> = rows
            .iter()
            .flat_map(|row| columns.iter().map(|column| with(self.best(), &[(across, *column), (up, *row)])))
            .collect();
        let expected: Vec<f64> = self
            .search_at(&points)
            .expected(&self.tried(), &points)
            .into_iter()
            .map(|(mean, _)| self.sign * mean)
            .collect();
        let (low, high) =
            expected.iter().fold((f64::MAX, f64::MIN), |(low, high), x| (low.min(*x), high.max(*x)));
        // Steep corners would take all shades.
        let mut sorted = expected.clone();
        sorted.sort_by(f64::total_cmp);
        let most = sorted[sorted.len() * 9 / 10];
        let names =
            |places: &[f64]| places.iter().map(|place| page::digits(*place).into_owned()).collect::<Vec<_>>();
        let at = |dim: usize, value: f64, side: usize| {
            let Values::Between(from, to) = knobs[dim].values else { return 0.0 };
            (value - from) / (to - from) * (side - 1) as f64
        };
        let mark = |(place, point): (usize, &Point)| Mark {
            column: at(across, point.values[across], SIDE),
            row: (SIDE - 1) as f64 - at(up, point.values[up], SIDE),
            title: self.request.space.words(&point.values),
            filled: place == self.outcome.best,
        };
        let is_measured = |(_, point): &(usize, &Point)| point.tried.is_some() || point.whole.is_some();
        let marks: Vec<Mark> = self.outcome.points.iter().enumerate().filter(is_measured).map(mark).collect();
        let values: Vec<Option<f64>> = expected.into_iter().map(Some).collect();
        let (rows, columns) = (names(&rows), names(&columns));
        let scale = if self.sign < 0.0 { Scale::From(low, high) } else { Scale::From(low, most) };
        let columns_are = format!("{} (rows: {})", knobs[across].name, knobs[up].name);
        page::heading(&format!("Score over {} and {}", knobs[across].name, knobs[up].name))
            + &page::heat_map(&HeatMap {
                what: self.what,
                rows: &rows,
                columns: &columns,
                columns_are: &columns_are,
                values: &values,
                scale,
                marks: &marks,
            })
            + &page::note("Rings are candidates that were measured, the filled one is the best.")
    }

    /// What lies between the models, by what is predicted.
    fn between_models(&self) -> String {
        let Round { names, sets } = &self.round;
        if sets.is_empty() {
            return String::new();
        }
        let of = |(name, points): &(String, Vec<(f64, f64)>)| (name.clone(), points.clone());
        let sets: Vec<(String, Vec<(f64, f64)>)> = sets.iter().map(of).collect();
        let series: Vec<Series<'_>> = sets
            .iter()
            .map(|(name, points)| Series { name, points: points.clone(), line: true, dots: false })
            .collect();
        page::heading(&format!("From {}", names.join(" to ")))
            + &page::chart(&Chart {
                x: Axis { what: "straight lines between the models' weights", names, with: None },
                y: Axis { what: "predicted loss, nats a token", ..Axis::default() },
                series: &series,
            })
            + &page::note(
                "Predicted from the models' logits on the texts of tries. Valleys are merges that read better than both ends.",
            )
    }

    /// What candidates come to in two sets, and what none other beats.
    fn between_sets(&self) -> String {
        let [(across, _), (up, _), ..] = &self.request.weights[..] else { return String::new() };
        let of = |scores: &Scores| (self.sign * scores.losses[0], self.sign * scores.losses[1]);
        let dots = |scores: fn(&Point) -> Option<&Scores>| {
            self.outcome.points.iter().filter_map(|point| scores(point).map(of)).collect::<Vec<_>>()
        };
        let mut front: Vec<(f64, f64)> = self
            .outcome
            .front
            .iter()
            .filter_map(|place| self.outcome.points[*place].whole.as_ref().map(of))
            .collect();
        front.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut series = vec![
            Series { name: "what nothing beats, on all texts", points: front, line: true, dots: true },
            Series {
                name: "on all texts",
                points: dots(|point| point.whole.as_ref()),
                line: false,
                dots: true,
            },
        ];
        if let [one, other, ..] = &self.predicted[..] {
            // Fewer points make the same line.
            let two: Vec<Vec<f64>> =
                one.iter().zip(other).step_by(4).map(|(one, other)| vec![*one, *other]).collect();
            let mut points: Vec<(f64, f64)> =
                super::pareto(&two).into_iter().map(|place| (two[place][0], two[place][1])).collect();
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            series.push(Series {
                name: "predicted front, on the texts of tries",
                points,
                line: true,
                dots: false,
            });
        }
        page::heading(&format!("{across} against {up}"))
            + &page::chart(&Chart {
                x: Axis { what: across, ..Axis::default() },
                y: Axis { what: up, ..Axis::default() },
                series: &series,
            })
    }
}

/// A point with other values in some places.
fn with(point: &[f64], values: &[(usize, f64)]) -> Vec<f64> {
    let mut point = point.to_vec();
    values.iter().for_each(|(dim, value)| point[*dim] = *value);
    point
}

/// What an open value may be, in even steps, and names where it is one of several.
fn places(knob: &Knob, steps: usize) -> (Vec<f64>, Vec<String>) {
    match &knob.values {
        Values::Between(from, to) => {
            let step = |step: usize| from + (to - from) * step as f64 / (steps - 1) as f64;
            ((0..steps).map(step).collect(), Vec::new())
        }
        Values::Among(of) => ((0..of.len()).map(|place| place as f64).collect(), of.clone()),
    }
}

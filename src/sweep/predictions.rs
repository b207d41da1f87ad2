//! What is predicted of points: the merge of each as a sum of its models, and what the models' logits say of that.

use super::run::Request;
use crate::Prepared;
use crate::error::{Error, Result};
use crate::predict::{Blend, Parents};
use crate::stream::Watch;
use crate::threads::each;

/// Predictions for any point of a space.
#[derive(Debug)]
pub struct Predictions {
    /// What is kept of the models that merges are sums of.
    pub parents: Parents,
    models: Vec<String>,
    prepared: Prepared,
    threads: usize,
}

/// Points that make a merge.
#[derive(Debug)]
pub struct Merges {
    /// The points, in their order.
    pub points: Vec<Vec<f64>>,
    /// Each as a sum of its models, or why it is none.
    pub sums: Vec<Result<Blend>>,
    /// The mean number of seeds with which they are tried.
    pub seeds: f64,
}

impl Merges {
    /// Plans the merges of points, leaving out those that make none.
    ///
    /// # Errors
    /// None of them makes one, or the user wishes to stop.
    pub fn of(
        request: &Request,
        points: &[Vec<f64>],
        prepared: &Prepared,
        threads: usize,
        watch: &dyn Watch,
    ) -> Result<Self> {
        let planned = each(threads, points.len(), |place| {
            if watch.stop() {
                return Err(Error::interrupted());
            }
            let point = &points[place];
            let plan = prepared.planned(&request.config(point)?)?;
            Ok((Blend::of(&plan, &prepared.sources), request.seeds(point)?.len()))
        });
        let (mut kept, mut sums, mut seeds, mut refused) = (Vec::new(), Vec::new(), 0, None);
        for (point, planned) in points.iter().zip(planned) {
            match planned {
                Ok((sum, count)) => {
                    kept.push(point.clone());
                    sums.push(sum);
                    seeds += count;
                }
                Err(why) if why.exit_code() == 130 => return Err(why),
                Err(why) => refused = Some(why),
            }
        }
        match refused {
            Some(why) if kept.is_empty() => Err(why),
            _ => Ok(Self { seeds: seeds as f64 / kept.len().max(1) as f64, points: kept, sums }),
        }
    }

    /// The models of all sums, as the config has them.
    pub fn models(&self) -> Vec<String> {
        let mut models: Vec<String> = Vec::new();
        for model in self.sums.iter().flatten().flat_map(|sum| &sum.models) {
            if !models.contains(model) {
                models.push(model.clone());
            }
        }
        models
    }

    /// Why one of them is no sum, and how many are none.
    pub fn why_no_sum(&self) -> Option<(&Error, usize)> {
        let mut none = self.sums.iter().filter_map(|sum| sum.as_ref().err());
        let first = none.next()?;
        Some((first, 1 + none.count()))
    }
}

impl Predictions {
    /// Predictions from models in their order, the configs' names of them; `prepared` is any merge of them.
    pub fn new(parents: Parents, models: Vec<String>, prepared: Prepared, threads: usize) -> Self {
        Self { parents, models, prepared, threads }
    }

    /// What is predicted for merges: the loss of each set in nats a token, where they are sums.
    pub fn of_merges(&self, sums: &[Result<Blend>]) -> Vec<Option<Vec<f64>>> {
        let known = |model: &String| self.models.contains(model);
        let is_known = |sum: &&Blend| sum.models.iter().all(known);
        let groups = &self.parents.groups;
        let coefficients: Vec<Option<Vec<f64>>> = sums
            .iter()
            .map(|sum| Some(sum.as_ref().ok().filter(is_known)?.coefficients(&self.models, groups).values))
            .collect();
        let merges: Vec<Vec<f64>> = coefficients.iter().flatten().cloned().collect();
        let by_set: Vec<Vec<f64>> =
            (0..self.parents.sets.len()).map(|set| self.losses(set, &merges)).collect();
        let mut number = 0;
        let mut next = || {
            number += 1;
            by_set.iter().map(|losses| losses[number - 1]).collect()
        };
        coefficients.iter().map(|known| known.as_ref().map(|_| next())).collect()
    }

    /// What is predicted on a set for merges by their parents' coefficients, in nats a token.
    pub fn losses(&self, set: usize, merges: &[Vec<f64>]) -> Vec<f64> {
        self.parents.losses(set, merges, self.threads).into_iter().map(|estimate| estimate.loss).collect()
    }

    /// The predicted scores of points; none where a point is no sum, or no merge.
    pub fn scores(&self, request: &Request, points: &[Vec<f64>]) -> Vec<Option<f64>> {
        let sums = each(self.threads, points.len(), |place| {
            let plan = self.prepared.planned(&request.config(&points[place])?)?;
            Blend::of(&plan, &self.prepared.sources)
        });
        let losses = self.of_merges(&sums).into_iter();
        losses.map(|losses| losses.map(|losses| request.score(&losses))).collect()
    }
}

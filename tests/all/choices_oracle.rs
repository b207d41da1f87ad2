//! The methods that choose elements by more than one model's magnitudes, a second time: from their formulas, in f64.
//!
//! As in `oracle.rs`, decisions are taken in the contract's own f32 arithmetic, with sorts where the engine counts.

use crate::oracle::{Expected, descending, slack_of, sum};

/// The difference of each model to the base.
fn deltas(base: &[f32], models: &[Vec<f32>]) -> Vec<Vec<f32>> {
    models.iter().map(|model| model.iter().zip(base).map(|(x, b)| x - b).collect()).collect()
}

/// A merge, element by element: the exact value's difference to the base, and the magnitudes that were added up.
fn around(base: &[f32], models: usize, element: impl Fn(usize) -> (f64, f64)) -> Expected {
    let of = |i: usize| {
        let (change, magnitude) = element(i);
        let b = f64::from(base[i]);
        (b + change, slack_of(models, b.abs() + magnitude))
    };
    let (exact, slack) = (0..base.len()).map(of).unzip();
    Expected { exact, slack }
}

/// The exact difference of a model to the base.
fn exact(base: &[f32], model: &[f32], i: usize) -> f64 {
    f64::from(model[i]) - f64::from(base[i])
}

/// nearswap.
pub fn nearswap(base: &[f32], other: &[f32], t: f64) -> Expected {
    around(base, 1, |i| {
        let d = exact(base, other, i);
        // What is near is a decision; where it changes, both ways give the same.
        let near = (other[i] - base[i]).abs().max(1e-6);
        let change = (f64::from(t as f32) / f64::from(near)).clamp(0.0, 1.0) * d;
        (change, d.abs())
    })
}

/// ram, and `ramplus_tl` with `r` and `alpha`.
pub fn ram(base: &[f32], models: &[Vec<f32>], epsilon: f64, enlarged: Option<(f64, f64)>) -> Expected {
    let deltas = deltas(base, models);
    let holders =
        |i: usize| (0..models.len()).filter(|m| deltas[*m][i].abs() > epsilon as f32).collect::<Vec<_>>();
    let factor = |model: usize| {
        let Some((r, alpha)) = enlarged else { return 1.0 };
        let mut held: Vec<usize> =
            (0..base.len()).map(&holders).filter(|h| h.contains(&model)).map(|h| h.len()).collect();
        held.sort_unstable();
        let alone = held.partition_point(|holders| *holders == 1);
        1.0 + r * ((held.len() - alone) as f64 / (alone as f64).max(epsilon)).max(0.0).min(alpha)
    };
    let factors: Vec<f64> = (0..models.len()).map(factor).collect();
    around(base, models.len(), |i| {
        let holders = holders(i);
        let terms = holders.iter().map(|m| exact(base, &models[*m], i));
        let magnitude = terms.clone().map(f64::abs).sum::<f64>();
        match holders.as_slice() {
            [] => (0.0, 0.0),
            [one] => (factors[*one] * terms.sum::<f64>(), 2.0 * magnitude),
            several => (terms.sum::<f64>() / several.len() as f64, magnitude),
        }
    })
}

/// Which elements sce selects: none, all, or those of the largest variance.
pub fn sce_selected(base: &[f32], models: &[Vec<f32>], share: f64) -> Vec<bool> {
    let (deltas, n) = (deltas(base, models), base.len());
    if share >= 1.0 {
        return vec![true; n];
    }
    let part = (1.0 / models.len() as f64) as f32;
    let variance = |i: usize| {
        let apart = || deltas.iter().map(|delta| delta[i] - deltas[0][i]);
        let mean = apart().fold(0.0f32, |sum, apart| sum + apart) * part;
        let squares = apart().fold(0.0f32, |sum, apart| sum + (apart - mean) * (apart - mean));
        squares * part
    };
    let variances: Vec<f32> = (0..n).map(variance).collect();
    let with_some = variances.iter().filter(|variance| **variance != 0.0).count();
    let k = if models.len() == 1 || share <= 0.0 { 0 } else { (with_some as f32 * share as f32) as usize };
    let mut selected = vec![false; n];
    descending(&variances).into_iter().take(k).for_each(|i| selected[i] = true);
    selected
}

/// sce.
pub fn sce(base: &[f32], models: &[Vec<f32>], share: f64) -> Expected {
    let selected = sce_selected(base, models, share);
    let mut deltas = deltas(base, models);
    for delta in &mut deltas {
        delta.iter_mut().zip(&selected).for_each(|(delta, selected)| *delta *= f32::from(*selected));
    }
    let squares: Vec<f64> =
        deltas.iter().map(|delta| sum(delta.iter().map(|d| d * d)) / base.len() as f64).collect();
    let total: f64 = squares.iter().sum();
    let weight = |square: &f64| if total < 1e-6 { 1.0 / models.len() as f64 } else { square / total };
    let weights: Vec<f64> = squares.iter().map(|square| f64::from(weight(square) as f32)).collect();
    around(base, models.len() + 2, |i| {
        if !selected[i] {
            return (0.0, 0.0);
        }
        let vote = deltas.iter().fold(0.0f32, |sum, delta| sum + delta[i]);
        let agrees = |m: &usize| if vote >= 0.0 { deltas[*m][i] > 0.0 } else { deltas[*m][i] < 0.0 };
        let agreeing: Vec<usize> = (0..models.len()).filter(agrees).collect();
        let divisor = agreeing.iter().map(|m| weights[*m]).sum::<f64>().max(1e-6);
        let terms = agreeing.iter().map(|m| weights[*m] * exact(base, &models[*m], i) / divisor);
        (terms.clone().sum(), terms.map(f64::abs).sum())
    })
}

/// The importance of every element to `arcee_fusion`; rows of so many elements.
pub fn importance(base: &[f32], other: &[f32], columns: usize) -> Vec<f32> {
    let softmax = |row: &[f32]| {
        let largest = row.iter().fold(f64::NEG_INFINITY, |largest, x| largest.max(f64::from(*x)));
        let powers: Vec<f64> = row.iter().map(|x| (f64::from(*x) - largest).exp()).collect();
        let sum: f64 = powers.iter().sum();
        powers.into_iter().map(|power| power / sum + 1e-8).collect::<Vec<f64>>()
    };
    let mut importance = Vec::new();
    for (base, other) in base.chunks(columns).zip(other.chunks(columns)) {
        let (p, q) = (softmax(other), softmax(base));
        // Both add up to the same, so Σ p·ln(p/q) = Σ q·((1 + r)·ln(1 + r) − r) with p = q·(1 + r), in which nothing cancels.
        let term = |(p, q): (&f64, &f64)| {
            let r = (p - q) / q;
            let series = || (2..20).map(|k| (-1f64).powi(k) * r.powi(k) / f64::from(k * (k - 1))).sum();
            q * if r.abs() < 0.01 { series() } else { (1.0 + r) * r.ln_1p() - r }
        };
        let divergence: f64 = p.iter().zip(&q).map(term).sum();
        // Rows with NaN or infinity have none.
        let is_odd = base.iter().chain(other).any(|x| !x.is_finite());
        let divergence = if is_odd { f64::NAN } else { divergence };
        let divergence = if divergence < 0.0 { 0.0 } else { divergence as f32 };
        importance.extend(other.iter().zip(base).map(|(x, b)| (x - b).abs() * divergence));
    }
    importance
}

/// Which elements `arcee_fusion` takes over, of these importances.
pub fn fused(importance: &[f32]) -> Vec<bool> {
    let mut ascending = importance.to_vec();
    // What is no number stands last, whatever its sign.
    ascending
        .sort_by(|a, b| (a.is_nan(), a).partial_cmp(&(b.is_nan(), b)).unwrap_or(std::cmp::Ordering::Equal));
    let quartile = |q: usize| f64::from(ascending[q * (ascending.len() - 1) / 4]);
    let threshold = (quartile(2) + 1.5 * (quartile(3) - quartile(1))) as f32;
    importance.iter().map(|importance| *importance >= threshold).collect()
}

/// `arcee_fusion`.
pub fn arcee_fusion(base: &[f32], other: &[f32], columns: usize) -> Expected {
    let taken = fused(&importance(base, other, columns));
    around(base, 1, |i| {
        let d = exact(base, other, i);
        (if taken[i] { d } else { 0.0 }, d.abs())
    })
}

/// What is merged with weights: `wᵢ·δᵢ` in f32, as it is compared, and exactly.
struct Weighted {
    rounded: Vec<f32>,
    exact: Vec<f64>,
}

fn weighted(base: &[f32], models: &[Vec<f32>], weights: &[f64], i: usize) -> Weighted {
    let weight = |m: usize| weights[m] as f32;
    Weighted {
        rounded: (0..models.len()).map(|m| weight(m) * (models[m][i] - base[i])).collect(),
        exact: (0..models.len()).map(|m| f64::from(weight(m)) * exact(base, &models[m], i)).collect(),
    }
}

/// The place of the largest magnitude among some, the first of equals.
fn largest(of: &[f32], among: impl Iterator<Item = usize>) -> Option<usize> {
    among.fold(None, |best: Option<usize>, m| match best {
        Some(best) if of[m].abs() <= of[best].abs() => Some(best),
        _ => Some(m),
    })
}

/// magmax.
pub fn magmax(base: &[f32], models: &[Vec<f32>], weights: &[f64], lambda: f64) -> Expected {
    around(base, models.len(), |i| {
        let v = weighted(base, models, weights, i);
        let change = lambda * v.exact[largest(&v.rounded, 0..models.len()).unwrap()];
        (change, change.abs())
    })
}

/// emr.
pub fn emr(base: &[f32], models: &[Vec<f32>], weights: &[f64], lambda: f64) -> Expected {
    around(base, models.len(), |i| {
        let v = weighted(base, models, weights, i);
        let vote = v.rounded.iter().fold(0.0f32, |sum, v| sum + v);
        let agrees = |m: &usize| if vote >= 0.0 { v.rounded[*m] > 0.0 } else { v.rounded[*m] < 0.0 };
        let change =
            largest(&v.rounded, (0..models.len()).filter(agrees)).map_or(0.0, |m| lambda * v.exact[m]);
        (change, change.abs())
    })
}

/// consensus.
pub fn consensus(
    base: &[f32],
    models: &[Vec<f32>],
    weights: &[f64],
    (lambda, tall, agree): (f64, f64, usize),
) -> Expected {
    around(base, models.len(), |i| {
        let v = weighted(base, models, weights, i);
        let sum = v.rounded.iter().fold(0.0f32, |sum, v| sum + v);
        let matters = |m: &usize| {
            let delta = models[*m][i] - base[i];
            delta.abs() >= tall as f32 * (sum - delta).abs()
        };
        let magnitude = lambda.abs() * v.exact.iter().map(|v| v.abs()).sum::<f64>();
        if (0..models.len()).filter(matters).count() < agree {
            return (0.0, magnitude);
        }
        (lambda * v.exact.iter().sum::<f64>(), magnitude)
    })
}

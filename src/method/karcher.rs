//! karcher: the mean of the models' directions on the sphere (Karcher's, by steps along the tangents), as long as they are
//! on average.
//!
//! ```text
//! uᵢ = xᵢ / ‖xᵢ‖;  m ← the direction of Σ uᵢ
//! T = 1/N · Σ θᵢ/sin θᵢ · (uᵢ − cos θᵢ·m), cos θᵢ = uᵢ·m;  m ← m·cos ‖T‖ + T·sin ‖T‖ / ‖T‖, until ‖T‖ < tol
//! out = m · 1/N · Σ ‖xᵢ‖
//! ```

use super::geometry::{self, Space, Vector, plus, times};
use super::{Base, Method, Paper, Parameter, Scope, Settings, Value, ValueKind};
use crate::error::{Error, Result};
use crate::recipe::{Recipe, Segments};

pub(super) const KARCHER: Method = Method {
    name: "karcher",
    summary: "mean of the models' directions on the sphere, with their mean length",
    formula: "out = m·mean ‖xᵢ‖, m the point on the sphere with the least sum of squared angles to xᵢ/‖xᵢ‖",
    paper: Some(Paper {
        title: "Karcher, Riemannian center of mass and mollifier smoothing (1977)",
        url: "https://doi.org/10.1002/cpa.3160300502",
    }),
    evidence: None,
    by_processor: None,
    base: Base::Ignored,
    models: 1..=geometry::MODELS_MAX,
    parameters: &[
        Parameter {
            name: "max_iter",
            scope: Scope::Shared,
            kind: ValueKind::Count,
            default: Some(Value::Number(10.0)),
            sensible: None,
            meaning: "the most steps",
        },
        Parameter::number("tol", Scope::Shared, 1e-5, "lengths and angles below it count as 0"),
    ],
    recipe,
};

fn recipe(settings: &Settings) -> Result<Recipe> {
    let (steps, tol) = (settings.number("max_iter"), settings.number("tol"));
    if tol < 0.0 {
        return Err(Error::config(format!("karcher: tol {tol} is less than 0")).hint("the default is 1e-5"));
    }
    let inputs = (0..settings.inputs).collect();
    Ok(geometry::recipe(settings, inputs, Segments::Whole, move |space| Ok(solve(space, steps as u32, tol))))
}

fn solve(space: &Space<'_>, steps: u32, tol: f64) -> Vector {
    let models: Vec<Vector> = (0..space.zero().len()).map(|input| space.model(input)).collect();
    let lengths: Vec<f64> = models.iter().map(|model| space.length(model)).collect();
    let length = lengths.iter().sum::<f64>() / models.len() as f64;
    // Vectors that are all but zero have no direction.
    let is_short = |length: f64| length <= tol;
    let with_direction = models.iter().zip(&lengths).filter(|(_, length)| !is_short(**length));
    let units: Vec<Vector> = with_direction.map(|(model, length)| times(1.0 / length, model)).collect();
    let Some(first) = units.first() else { return space.zero() };
    let share = 1.0 / units.len() as f64;
    let mut mean = units.iter().fold(space.zero(), |sum, unit| plus(&sum, share, unit));
    mean = match space.length(&mean) {
        short if is_short(short) => first.clone(),
        length => times(1.0 / length, &mean),
    };
    for _ in 0..steps {
        let tangent = units.iter().fold(space.zero(), |sum, unit| {
            let across = plus(unit, -space.dot(unit, &mean), &mean);
            let (sine, cosine) = (space.length(&across), space.dot(unit, &mean));
            let theta = libm::atan2(sine, cosine);
            // What is opposite lies in no direction, and what is near is there already.
            if theta <= tol || sine <= tol { sum } else { plus(&sum, share * theta / sine, &across) }
        });
        let step = space.length(&tangent);
        if is_short(step) {
            break;
        }
        mean = plus(&times(libm::cos(step), &mean), libm::sin(step) / step, &tangent);
        let length = space.length(&mean);
        if !is_short(length) {
            mean = times(1.0 / length, &mean);
        }
    }
    times(length, &mean)
}

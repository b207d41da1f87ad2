//! average: the mean of checkpoints of one training run, weighted by their places in it.
//!
//! A run that goes on at a constant learning rate, with the updates of stretch i scaled by a decay factor dᵢ afterwards, ends
//! at a weighted average of its checkpoints (WSM): θ₁ + Σ dᵢ (θᵢ₊₁ − θᵢ) = Σ cᵢ θᵢ, with cᵢ = dᵢ₋₁ − dᵢ, d₀ = 1 and 0
//! at the end. So a schedule of the learning rate gives weights, position 1 the oldest and N the newest:
//!
//! ```text
//! uniform      cᵢ = 1                                      a linear decay, dᵢ = 1 − i/N; the simple moving average of PMA
//! 1-sqrt       cᵢ = √(i/N) − √((i−1)/N)                    dᵢ = 1 − √(i/N)
//! cosine       cᵢ = (cos(π(i−1)/N) − cos(πi/N)) / 2        dᵢ = (1 + cos(πi/N)) / 2
//! linear       cᵢ = i                                      PMA's weighted moving average
//! exponential  c₁ = δ^(N−1), cᵢ = (1−δ)·δ^(N−i)            PMA's exponential one: mᵢ = δ·mᵢ₋₁ + (1−δ)·θᵢ, m₁ = θ₁
//! out = Σ cᵢ xᵢ / Σ cᵢ
//! ```
//!
//! WSM: Tian et al., 2025, <https://arxiv.org/abs/2507.17634>. PMA: Li et al., Model Merging in Pre-training of Large Language
//! Models, 2025, <https://arxiv.org/abs/2505.12082>.

use std::f64::consts::PI;

use super::{Base, Method, Paper, Parameter, Scope, Settings, Value, ValueKind, linear};
use crate::error::{Error, Result};
use crate::recipe::Recipe;

pub(super) const AVERAGE: Method = Method {
    name: "average",
    summary: "mean of checkpoints of one run, oldest first, weighted by position (beyond mergekit)",
    formula: FORMULA,
    paper: Some(Paper {
        title: "Tian et al., WSM: decay-free learning rate schedule via checkpoint merging (2025)",
        url: "https://arxiv.org/abs/2507.17634",
    }),
    evidence: Some(EVIDENCE),
    by_processor: None,
    base: Base::Ignored,
    models: 1..=usize::MAX,
    parameters: &[
        Parameter {
            name: WEIGHTS,
            scope: Scope::Shared,
            kind: ValueKind::Word(&["uniform", "linear", "1-sqrt", "cosine", "exponential"]),
            default: Some(Value::Word("uniform")),
            sensible: None,
            meaning: "how the weights change from the oldest model to the newest",
        },
        Parameter::number(
            "decay",
            Scope::Shared,
            0.8,
            "of exponential weights: what a step leaves of all older models, from 0 up and below 1",
        ),
        Parameter {
            name: "window",
            scope: Scope::Shared,
            kind: ValueKind::Count,
            default: Some(Value::Number(0.0)),
            sensible: None,
            meaning: "only so many models are averaged, the last ones listed; 0: all",
        },
    ],
    recipe,
};

const FORMULA: &str = "\
out = Σ cᵢ·xᵢ / Σ cᵢ over the last `window` models, i from 1, the oldest, to N, the newest
uniform      cᵢ = 1                          what a linear decay does (WSM); PMA's simple average
1-sqrt       cᵢ = √(i/N) − √((i−1)/N)        what a decay by 1 − √ does (WSM)
cosine       cᵢ = cos(π(i−1)/N) − cos(πi/N)  what a cosine decay does (WSM)
linear       cᵢ = i                          PMA's weighted moving average
exponential  mᵢ = decay·mᵢ₋₁ + (1−decay)·xᵢ  PMA's exponential moving average, from m₁ = x₁";

/// Of both papers, as far as they carry: they are about runs at a constant learning rate.
const EVIDENCE: &str = "WSM merges checkpoints of a constant learning rate in place of decaying it, and found the length of the merged stretch \
                        to matter most. PMA (Li et al., Model merging in pre-training, https://arxiv.org/abs/2505.12082) found averages \
                        to foretell what decay gives, and the kinds of averages to differ little late in training: so `uniform` is the \
                        default";

/// The parameter by which methods are known whose models have their weights by position.
pub(super) const WEIGHTS: &str = "weights";

fn recipe(settings: &Settings) -> Result<Recipe> {
    linear::normalised(&weights(settings)?)
}

/// The weight of every model, before they are normalised; 0 for those before the window.
pub(super) fn weights(settings: &Settings) -> Result<Vec<f64>> {
    let (decay, window) = (settings.number("decay"), settings.number("window") as usize);
    let averaged = if window == 0 { settings.inputs } else { window.min(settings.inputs) };
    let shape = settings.word(WEIGHTS);
    if shape == "exponential" && !(0.0..1.0).contains(&decay) {
        return Err(Error::config(format!("average: decay {decay} is not from 0 up and below 1"))
            .hint("the default is 0.8: each step leaves four fifths of what was averaged so far"));
    }
    let of = |position: usize| {
        let (i, n) = (position as f64, averaged as f64);
        match shape {
            "linear" => i,
            "1-sqrt" => (i / n).sqrt() - ((i - 1.0) / n).sqrt(),
            "cosine" => (libm::cos(PI * (i - 1.0) / n) - libm::cos(PI * i / n)) / 2.0,
            "exponential" if position == 1 => libm::pow(decay, n - 1.0),
            "exponential" => (1.0 - decay) * libm::pow(decay, n - i),
            _ => 1.0,
        }
    };
    let before = settings.inputs - averaged;
    Ok((0..settings.inputs).map(|place| if place < before { 0.0 } else { of(place - before + 1) }).collect())
}

//! Rotary position embeddings (Su et al., `RoFormer`, <https://arxiv.org/abs/2104.09864>), and the ways to stretch them over longer
//! texts that published models use.

use std::f64::consts::PI;

use serde_json::{Map, Value as Json};

/// How positions turn the pairs of a head: each by its own frequency.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Rope {
    /// Radians a token, of each pair.
    frequencies: Vec<f64>,
    /// What sines and cosines are multiplied with.
    amplitude: f64,
    /// The tokens of the longest text that is turned so; none: any.
    longest: Option<usize>,
}

impl Rope {
    /// That of a config.json, for heads of so many elements.
    ///
    /// # Errors
    /// Why it is not known.
    pub(super) fn of(config: &Map<String, Json>, head: usize) -> Result<Self, String> {
        let empty = Map::new();
        let object = |key: &str| config.get(key).and_then(Json::as_object);
        let own = object("rope_parameters").or(object("rope_scaling")).unwrap_or(&empty);
        let stated = |key: &str| own.get(key).or(config.get(key)).and_then(Json::as_f64);
        if let Some(part) = stated("partial_rotary_factor").filter(|part| *part != 1.0) {
            return Err(format!("no forward pass with a partial_rotary_factor of {part}"));
        }
        let theta = stated("rope_theta").unwrap_or(10_000.0);
        if !(theta.is_finite() && theta > 1.0) {
            return Err(format!("its config.json has a rope_theta of {theta}"));
        }
        let plain: Vec<f64> =
            (0..head / 2).map(|pair| libm::pow(theta, -2.0 * pair as f64 / head as f64)).collect();
        let kind = own.get("rope_type").or(own.get("type")).and_then(Json::as_str).unwrap_or("default");
        let number = |key: &str, default: Option<f64>| {
            let found = own.get(key).and_then(Json::as_f64).or(default).filter(|number| number.is_finite());
            found.ok_or_else(|| format!("its config.json has no number for {key} of {kind} rope"))
        };
        let context = || {
            let stated = config.get("max_position_embeddings").and_then(Json::as_f64);
            number("original_max_position_embeddings", stated)
        };
        let factor = || {
            let positive = number("factor", None).ok().filter(|factor| *factor > 0.0);
            positive.ok_or_else(|| format!("its config.json has no number above 0 for factor of {kind} rope"))
        };
        match kind {
            "default" => Ok(Self { frequencies: plain, amplitude: 1.0, longest: None }),
            // Longer texts have other frequencies, each its own.
            "dynamic" => Ok(Self { frequencies: plain, amplitude: 1.0, longest: Some(context()? as usize) }),
            "linear" => {
                let factor = factor()?;
                let frequencies = plain.into_iter().map(|plain| plain / factor).collect();
                Ok(Self { frequencies, amplitude: 1.0, longest: None })
            }
            "llama3" => {
                let (factor, context) = (factor()?, context()?);
                let [low, high] =
                    [number("low_freq_factor", Some(1.0))?, number("high_freq_factor", Some(4.0))?];
                let frequencies =
                    plain.into_iter().map(|plain| of_llama3(plain, factor, [low, high], context));
                Ok(Self { frequencies: frequencies.collect(), amplitude: 1.0, longest: None })
            }
            "yarn" => {
                let (factor, context) = (factor()?, context()?);
                let turns = [number("beta_fast", Some(32.0))?, number("beta_slow", Some(1.0))?];
                let whole = own.get("truncate").and_then(Json::as_bool).unwrap_or(true);
                let ramp = yarn_ramp(theta, head, context, turns, whole);
                let stretched = |(pair, plain): (usize, f64)| {
                    let share = ramp(pair);
                    plain / factor * share + plain * (1.0 - share)
                };
                let frequencies = plain.into_iter().enumerate().map(stretched).collect();
                Ok(Self { frequencies, amplitude: yarn_amplitude(own, factor), longest: None })
            }
            other => Err(format!("no forward pass with positions of type {other}")),
        }
    }

    /// The tokens of the longest text that it is known for; none: any.
    pub(super) fn longest(&self) -> Option<usize> {
        self.longest
    }

    /// Cosine and sine of each pair, at so many positions, one behind the other.
    pub(super) fn rotations(&self, positions: usize) -> Vec<(f32, f32)> {
        let at = |position: usize| {
            self.frequencies.iter().map(move |frequency| {
                let (sin, cos) = libm::sincos(position as f64 * frequency);
                ((cos * self.amplitude) as f32, (sin * self.amplitude) as f32)
            })
        };
        (0..positions).flat_map(at).collect()
    }
}

/// Llama 3.1's: slow pairs are stretched, fast ones are not, and those in between partly.
fn of_llama3(plain: f64, factor: f64, [low, high]: [f64; 2], context: f64) -> f64 {
    let turns = context * plain / (2.0 * PI);
    let share = ((turns - low) / (high - low)).clamp(0.0, 1.0);
    (1.0 - share) * plain / factor + share * plain
}

/// The share of each pair that is stretched by `YaRN` (Peng et al., <https://arxiv.org/abs/2309.00071>, section 3.2): none of pairs that
/// turn more than `turns[0]` times within the context, all of those that turn less than `turns[1]` times.
fn yarn_ramp(theta: f64, head: usize, context: f64, turns: [f64; 2], whole: bool) -> impl Fn(usize) -> f64 {
    let pair = |turns: f64| head as f64 * libm::log(context / (turns * 2.0 * PI)) / (2.0 * libm::log(theta));
    let [mut first, mut last] = turns.map(pair);
    if whole {
        (first, last) = (first.floor(), last.ceil());
    }
    let (first, last) = (first.max(0.0), last.min(head as f64 - 1.0));
    // Equal ends would divide by nothing.
    let width = if first == last { 0.001 } else { last - first };
    move |pair| ((pair as f64 - first) / width).clamp(0.0, 1.0)
}

/// What `YaRN` multiplies with, so that attention stays as sharp: `0.1 · ln(factor) + 1` (section 3.4), unless the model says otherwise.
fn yarn_amplitude(own: &Map<String, Json>, factor: f64) -> f64 {
    let number = |key: &str| own.get(key).and_then(Json::as_f64);
    if let Some(stated) = number("attention_factor") {
        return stated;
    }
    let of = |scale: f64| if factor > 1.0 { 0.1 * scale * libm::log(factor) + 1.0 } else { 1.0 };
    match (number("mscale"), number("mscale_all_dim")) {
        (Some(scale), Some(all)) if scale != 0.0 && all != 0.0 => of(scale) / of(all),
        _ => of(1.0),
    }
}

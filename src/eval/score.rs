//! What the losses of a set come to.

use serde_json::{Value as Json, json};

use super::{Losses, Windows};

/// How well a model reads a set.
#[derive(Debug, Clone, PartialEq)]
pub struct Score {
    /// Tokens that were read, each as often as it was.
    pub tokens: usize,
    /// Tokens that count.
    pub counted: usize,
    /// The mean of their losses, in nats.
    pub loss: f64,
    /// Its standard error over windows: how much another choice of texts like these would move it.
    pub error: f64,
    /// The losses together over words and bytes of what counts, in nats.
    pub per_word: f64,
    /// The same over bytes.
    pub per_byte: f64,
}

/// The mean of losses.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mean {
    /// In nats a token.
    pub loss: f64,
    /// Its standard error over windows; NaN of a single window.
    pub error: f64,
    /// How many tokens count.
    pub counted: usize,
}

impl Mean {
    /// Of the losses of windows.
    pub fn of(windows: &[Vec<f64>]) -> Self {
        let sums: Vec<(f64, f64)> =
            windows.iter().map(|window| (window.iter().sum(), window.len() as f64)).collect();
        let (sum, counted) = sums.iter().fold((0.0, 0.0), |(a, b), (sum, count)| (a + sum, b + count));
        let loss = sum / counted;
        // Tokens of one window are no independent samples, windows nearly are.
        let squares: f64 = sums.iter().map(|(sum, count)| (sum - loss * count).powi(2)).sum();
        let of = sums.len() as f64;
        let error = if of > 1.0 { (squares * of / (of - 1.0)).sqrt() / counted } else { f64::NAN };
        Self { loss, error, counted: counted as usize }
    }
}

impl Score {
    /// Of the losses of a set.
    pub fn of(windows: &Windows, losses: &Losses) -> Self {
        let Mean { loss, error, counted } = Mean::of(&losses.windows);
        let sum = loss * counted as f64;
        Self {
            tokens: windows.tokens(),
            counted,
            loss,
            error,
            per_word: sum / windows.words as f64,
            per_byte: sum / windows.bytes as f64,
        }
    }

    /// Perplexity per token.
    pub fn perplexity(&self) -> f64 {
        self.loss.exp()
    }

    /// Perplexity per word.
    pub fn word_perplexity(&self) -> f64 {
        self.per_word.exp()
    }

    /// Bits for each byte of UTF-8.
    pub fn bits_per_byte(&self) -> f64 {
        self.per_byte / std::f64::consts::LN_2
    }

    /// As JSON; what is not finite is null.
    pub fn json(&self) -> Json {
        json!({
            "tokens": self.tokens,
            "counted_tokens": self.counted,
            "loss": self.loss,
            "loss_standard_error": self.error,
            "perplexity": self.perplexity(),
            "word_perplexity": self.word_perplexity(),
            "bits_per_byte": self.bits_per_byte(),
        })
    }
}

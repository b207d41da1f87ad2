//! The loss of every token that counts, by one pass over the model for as many windows as fit in memory.

use std::borrow::Borrow;

use super::Window;
use crate::decoder::{Decoder, Final, Machine, States, Weights, logits, max_and_sum};
use crate::error::{Error, Result};
use crate::text::bytes;

/// Hears of the work, and can end it.
pub trait Listen: Sync {
    /// So many tokens more went through a layer.
    fn advanced(&self, tokens: usize);
    /// Whether the work should stop.
    fn stop(&self) -> bool;
}

/// The negative log-likelihood of each token that counts, by window, in nats.
#[derive(Debug, Clone, PartialEq)]
pub struct Losses {
    /// Of each window its own.
    pub windows: Vec<Vec<f64>>,
}

/// How windows are read: which of them together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The windows of each pass over the model.
    pub passes: Vec<std::ops::Range<usize>>,
    /// The most memory that a pass takes.
    pub bytes: u64,
}

/// The smallest sensible pass, in tokens: of fewer, reading the model would take most of the time.
const TOKENS_MIN: usize = 256;

impl Plan {
    /// Takes as many windows together as fit into the machine's own memory, or into so much of the host's.
    ///
    /// # Errors
    /// Not even the longest window fits.
    pub fn of(decoder: &Decoder, windows: &[Window], machine: &dyn Machine, memory: u64) -> Result<Self> {
        Self::of_many(decoder, windows, 1, machine, memory)
    }

    /// The same for several models of one shape, whose states go through each layer one after the other.
    ///
    /// # Errors
    /// Not even the longest window fits.
    pub fn of_many(
        decoder: &Decoder,
        windows: &[Window],
        models: usize,
        machine: &dyn Machine,
        memory: u64,
    ) -> Result<Self> {
        let longest = windows.iter().map(|window| window.tokens.len()).max().unwrap_or(0) as u64;
        let waiting = ((models - 1) * decoder.hidden * size_of::<f32>()) as u64;
        let needs =
            |tokens: usize| bytes_of(decoder, tokens as u64, longest, machine) + tokens as u64 * waiting;
        let (memory, flag) = machine
            .memory()
            .map_or((memory, "--host-memory"), |own| (own, "--device-memory, or --device cpu"));
        if needs(longest as usize) > memory {
            let message = format!(
                "windows of {longest} tokens take {} of memory, and it may take {}",
                bytes(needs(longest as usize)),
                bytes(memory)
            );
            return Err(Error::config(message).hint(format!("set a smaller --window, or more {flag}")));
        }
        let (passes, most) = passes(windows, |tokens| needs(tokens) <= memory);
        Ok(Self { passes, bytes: needs(most.max(TOKENS_MIN)) })
    }

    /// The tokens that all passes take through all layers.
    pub fn steps(&self, decoder: &Decoder, windows: &[Window]) -> u64 {
        let tokens: usize = windows.iter().map(|window| window.tokens.len()).sum();
        (tokens * (decoder.layers + 1)) as u64
    }
}

/// Windows in passes, each of as many as fit together or of one alone, and the most tokens of a pass.
pub fn passes<W: Borrow<Window>>(
    windows: &[W],
    fits: impl Fn(usize) -> bool,
) -> (Vec<std::ops::Range<usize>>, usize) {
    let (mut passes, mut first, mut tokens, mut most) = (Vec::new(), 0, 0, 0);
    for (number, window) in windows.iter().enumerate() {
        let own = window.borrow().tokens.len();
        if tokens > 0 && !fits(tokens + own) {
            passes.push(first..number);
            (first, tokens) = (number, 0);
        }
        tokens += own;
        most = most.max(tokens);
    }
    passes.push(first..windows.len());
    (passes, most)
}

/// What a pass over so many tokens takes of the machine's memory.
fn bytes_of(decoder: &Decoder, tokens: u64, longest: u64, machine: &dyn Machine) -> u64 {
    let kept = if machine.memory().is_none() { size_of::<Kept>() } else { 0 };
    // Behind the last layer there are the states and those that count.
    let of_head = tokens * (2 * decoder.hidden * size_of::<f32>() + kept) as u64
        + machine.logits_bytes(decoder, tokens, 1).own;
    machine.states_bytes(decoder, tokens, longest).max(of_head)
}

/// A token that counts, while its logits come.
#[derive(Debug, Clone, Copy)]
struct Kept {
    target: usize,
    logit: f32,
    max: f32,
    sum: f64,
}

impl Kept {
    fn take(&mut self, first: usize, logits: &[f32]) {
        if let Some(logit) = self.target.checked_sub(first).and_then(|at| logits.get(at)) {
            self.logit = *logit;
        }
        let (max, sum) = max_and_sum(logits);
        let both = self.max.max(max);
        let scaled = |sum: f64, max: f32| if sum == 0.0 { 0.0 } else { sum * f64::from(max - both).exp() };
        self.sum = scaled(self.sum, self.max) + scaled(sum, max);
        self.max = both;
    }

    fn loss(&self) -> f64 {
        f64::from(self.max) + self.sum.ln() - f64::from(self.logit)
    }
}

/// Windows on their way through a model.
#[derive(Debug)]
pub struct Running<'d, 'w> {
    decoder: &'d Decoder,
    windows: &'w [Window],
    states: States<'d>,
}

impl<'d, 'w> Running<'d, 'w> {
    /// Before the first layer.
    ///
    /// # Errors
    /// Those of the weights.
    pub fn begin(
        decoder: &'d Decoder,
        windows: &'w [Window],
        weights: &mut dyn Weights,
        machine: &mut dyn Machine,
    ) -> Result<Self> {
        let texts: Vec<&[u64]> = windows.iter().map(|window| &window.tokens[..]).collect();
        let states = States::of(decoder, &texts, weights, machine)?;
        Ok(Self { decoder, windows, states })
    }

    /// How many tokens there are.
    pub fn tokens(&self) -> usize {
        self.windows.iter().map(|window| window.tokens.len()).sum()
    }

    /// Through a layer.
    ///
    /// # Errors
    /// Those of the weights and of the machine, here and below.
    pub fn advance(
        &mut self,
        layer: usize,
        weights: &mut dyn Weights,
        machine: &mut dyn Machine,
    ) -> Result<()> {
        self.states.advance(layer, weights, machine)
    }

    /// The losses of each window.
    ///
    /// # Errors
    /// Those of the weights.
    pub fn finish(self, weights: &mut dyn Weights, machine: &mut dyn Machine) -> Result<Vec<Vec<f64>>> {
        let Self { decoder, windows, states } = self;
        let (mut wanted, mut kept, mut start) = (Vec::new(), Vec::new(), 0);
        for window in windows {
            // What a token makes predicts the next.
            wanted.extend(start + window.counts_from - 1..start + window.tokens.len() - 1);
            kept.extend(window.tokens[window.counts_from..].iter().map(|target| Kept {
                target: *target as usize,
                logit: f32::NAN,
                max: f32::NEG_INFINITY,
                sum: 0.0,
            }));
            start += window.tokens.len();
        }
        machine.clear()?;
        let last = Final::of(&states, &wanted, weights, machine)?;
        drop(states);
        let take = |kept: &mut Kept, first: usize, logits: &[&[f32]]| kept.take(first, logits[0]);
        logits(&mut [(&last, weights)], decoder.vocabulary, machine, &mut kept, take)?;
        let mut kept = kept.iter().map(Kept::loss);
        let of = |window: &Window| kept.by_ref().take(window.tokens.len() - window.counts_from).collect();
        Ok(windows.iter().map(of).collect())
    }
}

/// The losses of all windows.
///
/// # Errors
/// Those of the weights; a loss is not finite.
pub fn losses(
    name: &str,
    decoder: &Decoder,
    windows: &[Window],
    plan: &Plan,
    weights: &mut dyn Weights,
    machine: &mut dyn Machine,
    listen: &dyn Listen,
) -> Result<Losses> {
    let mut found = Vec::with_capacity(windows.len());
    for pass in &plan.passes {
        let mut running = Running::begin(decoder, &windows[pass.clone()], weights, machine)?;
        let tokens = running.tokens();
        for layer in 0..decoder.layers {
            running.advance(layer, weights, machine)?;
            listen.advanced(tokens);
        }
        found.extend(running.finish(weights, machine)?);
        listen.advanced(tokens);
    }
    Losses { windows: found }.checked(name)
}

impl Losses {
    /// Themselves, if all are finite; `name` is whose they are.
    ///
    /// # Errors
    /// Kind `Input`: some are not.
    pub fn checked(self, name: &str) -> Result<Self> {
        let odd = self.windows.iter().flatten().filter(|loss| !loss.is_finite()).count();
        if odd > 0 {
            let message = format!("{name}: {odd} losses are NaN or infinite");
            let hint = "its weights hold NaN or infinity, or states overflow: `mergeforge plan` and the merge's report name such tensors";
            return Err(Error::input(message).hint(hint));
        }
        Ok(self)
    }
}

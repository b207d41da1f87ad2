//! Which coefficients are best: candidates of a config with open values, tried without writing a checkpoint.
//!
//! A [`Space`](crate::config::Space) is a config with open values. [`Candidate`]s are what it becomes with some of them; [`measure`]
//! merges them in memory and reads texts with them, layer by layer, so that one pass over the inputs serves them all. [`Search`] says
//! what to try next: a quadratic is fitted to what was measured, or to what is left of it beyond a prediction. [`Journal`] keeps what was measured, so that a sweep that
//! was interrupted goes on.

mod candidate;
mod command;
mod journal;
mod linear_algebra;
mod objective;
mod page;
mod predictions;
mod run;
mod search;

pub use candidate::{Candidate, Engine, forward, measure};
pub use command::{ANY, ByCommand, Direction};
pub use journal::{Entry, Journal, TEXTS, TOKENS};
pub use objective::{ByTexts, Measured, Objective, Set};
pub use page::{Page, Round};
pub use predictions::{Merges, Predictions};
pub use run::{Answer, Outcome, Point, Predict, Request, Scores, Sweeping, run};
pub use search::{Search, Tried, pareto};

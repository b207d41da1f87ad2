//! What the models of a merge make of texts: how well each reads them, and how far their predictions agree.

use super::{Analysis, Finding};
use crate::page::{digits, heading, note, table};
use crate::text::escaped;

/// The models' predictions on a set of texts.
#[derive(Debug, Clone, PartialEq)]
pub struct Predictions {
    /// The set's name.
    pub set: String,
    /// The mean loss of each model, in nats a token.
    pub losses: Vec<f64>,
    /// Every two models, each way round.
    pub pairs: Vec<Agreed>,
}

/// How far two models agree.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Agreed {
    /// Which two, in the order of the divergence.
    pub models: (usize, usize),
    /// The mean Kullback–Leibler divergence of the second's predictions from the first's, in nats a token.
    pub divergence: f64,
    /// The share of tokens for which both hold the same to be most likely.
    pub same_first: f64,
}

/// The findings: numbers without a threshold, since no study gives one.
pub(super) fn findings(analysis: &Analysis) -> Vec<Finding> {
    let columns = &analysis.columns;
    let short = |column: usize| escaped(columns.short(column));
    let mut found = Vec::new();
    for Predictions { set, losses, pairs } in &analysis.predictions {
        let set = escaped(set);
        let each: Vec<String> =
            losses.iter().enumerate().map(|(column, loss)| format!("{} {loss:.3}", short(column))).collect();
        let best = (0..losses.len()).min_by(|a, b| losses[*a].total_cmp(&losses[*b])).unwrap_or(0);
        found.push(finding(
            "loss",
            losses[best],
            format!("On {set} {} reads best: {} (nats a token).", short(best), each.join(", ")),
        ));
        let is_once = |agreed: &&Agreed| agreed.models.0 < agreed.models.1;
        for Agreed { models: (one, other), divergence, same_first } in pairs.iter().filter(is_once) {
            let text = format!(
                "On {set} the predictions of {} diverge from those of {} by {divergence:.3} nats a token; the most likely token is the \
                 same at {:.0} % of the places.",
                short(*other),
                short(*one),
                100.0 * same_first
            );
            found.push(finding("agreement", *divergence, text));
        }
    }
    found
}

fn finding(about: &'static str, value: f64, text: String) -> Finding {
    Finding { about, value, threshold: None, holds: false, text }
}

/// The part of the page.
pub(super) fn html(analysis: &Analysis) -> String {
    if analysis.predictions.is_empty() {
        return String::new();
    }
    let columns = &analysis.columns;
    let mut head = vec!["set".to_owned()];
    head.extend(columns.iter().map(|column| format!("loss of {}", column.short)));
    let losses = analysis.predictions.iter().map(|of| {
        let mut row = vec![of.set.clone()];
        row.extend(of.losses.iter().map(|loss| format!("{loss:.4}")));
        row
    });
    let agreed = analysis.predictions.iter().flat_map(|of| {
        of.pairs.iter().map(|agreed| {
            let (one, other) = agreed.models;
            vec![
                of.set.clone(),
                columns.short(one).to_owned(),
                columns.short(other).to_owned(),
                digits(agreed.divergence).into_owned(),
                format!("{:.1} %", 100.0 * agreed.same_first),
            ]
        })
    });
    heading("What the models make of texts")
        + &table(&head, losses)
        + &table(&["set", "of", "to", "divergence, nats", "same most likely token"], agreed)
        + &note(
            "Divergence: mean Kullback–Leibler divergence over tokens, of the second model's predictions from the first's.",
        )
}

//! `--unsafe-truncate-embeddings`: embeddings and heads of different numbers of rows, cut to the fewest.
//!
//! Which token a row belongs to is not looked at. That is right only where one vocabulary is the beginning of the other.

use std::borrow::Cow;

use indexmap::IndexMap;

use super::views::{InputList, Origin, View, Views};
use super::{names, references, wanted};
use crate::config::{Config, Inputs};
use crate::dtype::computed_as;
use crate::error::Error;
use crate::input::{Floats, Row, Rows};
use crate::text::quoted;

/// Cuts each tensor with a row for each token to as many rows as all models have. With a tokenizer in the config rows go by token,
/// and nothing is left to cut.
pub(super) fn truncate(views: &mut Views<'_>) {
    if views.config.tokenizer.is_some() {
        return;
    }
    // Embeddings first, since they stand in for heads.
    for is_of_kind in [names::is_embedding, is_head] {
        let mut all: IndexMap<String, Vec<usize>> = IndexMap::new();
        for (number, model) in views.models.iter().enumerate() {
            for name in model.names().filter(|name| is_of_kind(name) && is_merged(views, number, name)) {
                all.entry(name.to_owned()).or_default().push(number);
            }
        }
        for (name, holders) in all {
            cut_all(views, &name, &holders);
        }
    }
}

/// Heads, and their biases.
fn is_head(name: &str) -> bool {
    name.strip_suffix(".bias")
        .map_or_else(|| names::is_head(name), |stem| names::is_head(&format!("{stem}.weight")))
}

/// Whether a model's tensor has a part in the output: of slices, only the outermost give loose tensors.
fn is_merged(views: &Views<'_>, model: usize, name: &str) -> bool {
    let Config { inputs: Inputs::Slices(slices), .. } = views.config else { return true };
    let slice = if names::before_layers(name) { slices.first() } else { slices.last() };
    let sources = slice.into_iter().flat_map(|slice| &slice.sources);
    let own = &references(views.config)[model].value;
    sources.into_iter().any(|source| source.model.value == *own)
}

fn cut_all(views: &mut Views<'_>, name: &str, holders: &[usize]) {
    let rows_of = |view: &View<'_>| view.shape.first().copied().unwrap_or(0);
    let own = holders.iter().map(|model| rows_of(&views.models[*model].tensors[name]));
    // A tied model's embedding is its head.
    let tied = views
        .models
        .iter()
        .enumerate()
        .filter(|(model, _)| names::is_head(name) && is_merged(views, *model, name));
    let tied = tied.filter(|(model, _)| !holders.contains(model));
    let tied = tied.filter_map(|(_, model)| Some(rows_of(&model.tensors[wanted::tied_embedding(model)?])));
    let Some(rows) = own.chain(tied).min() else { return };
    let mut lost = Vec::new();
    for holder in holders {
        let model = &mut views.models[*holder];
        let view = &model.tensors[name];
        let more = rows_of(view) - rows;
        if let Some(cut) = (more > 0).then(|| cut(view, rows, &mut views.inputs)).flatten() {
            lost.push(format!("{} {more} of {}", model.name, rows + more));
            model.tensors[name] = cut;
            model.edits.insert("vocab_size".into(), Some(rows.into()));
        }
    }
    if !lost.is_empty() {
        let message = format!("tensor {} is cut to {rows} rows: {} are lost", quoted(name), lost.join(", "));
        views.warnings.push(Error::config(message).hint(
            "rows are merged by number, whatever their tokens are; `tokenizer_source: union` keeps all of them and merges by token",
        ));
    }
}

/// The first rows of a tensor of floats.
fn cut<'a>(view: &View<'a>, rows: usize, inputs: &mut InputList) -> Option<View<'a>> {
    let float = computed_as(inputs.read_as(view))?;
    let columns = view.shape[1..].iter().product::<usize>();
    let of = Floats { input: inputs.as_floats(view), float };
    let picked = (0..rows as u64).map(|row| Row::Picked { of: 0, row });
    let made = (columns > 0).then(|| Rows::new(vec![of], columns as u64, float, picked))?;
    let mut shape = view.shape.to_vec();
    shape[0] = rows;
    Some(View { dtype: view.dtype, shape: Cow::Owned(shape), from: Origin::Made(inputs.make(made)) })
}

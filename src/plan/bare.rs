//! Models without a `config.json`: single files, and folders of nothing but weights. Their tensors are merged by name.
//!
//! Where no model has one there is none to write, and nothing says what a layer is. Where some have one, a folder without it is
//! more likely a download that was interrupted.

use super::views::Views;
use crate::config::Inputs;
use crate::error::Error;

/// Checks that models without a config are meant, and says what the output lacks.
pub(super) fn check(views: &mut Views<'_>) {
    let source = |model: usize| &views.sources[views.models[model].source];
    let (with, without): (Vec<usize>, Vec<usize>) =
        (0..views.models.len()).partition(|model| source(*model).has_config());
    if !with.is_empty() {
        for folder in without.iter().map(|model| source(*model)).filter(|source| source.is_folder()) {
            let what = format!("{} has no config.json", folder.place().display());
            let hint = "give the folder of a whole model; an interrupted download can be run again";
            views.problems.add(Error::input(what).hint(hint));
        }
    }
    if without.contains(&views.donor()) {
        if let Inputs::Slices(slices) = &views.config.inputs {
            let what = "slices need models with a config.json, which says how many layers the output has";
            let error = views.config.error_at(slices[0].at, what);
            views.problems.add(error.hint("list these under `models:`, or give the folders of whole models"));
        }
        let tokenizer = views.config.tokenizer.as_ref().map(|tokenizer| tokenizer.at);
        if let Some(at) = tokenizer.or(views.config.chat_template.as_ref().map(|template| template.at)) {
            let error = views.config.error_at(at, "a tokenizer belongs to a model with a config.json");
            views.problems.add(error.hint("remove the key, or give the folders of whole models"));
        }
        // Nothing says that an embedding is a head as well.
        for model in without {
            let config = views.models[model].config.to_mut();
            config.insert("tie_word_embeddings".into(), false.into());
        }
        let name = &views.models[views.donor()].name;
        views.notes.push(format!(
            "{name} has no config.json, and so the output has none: its tensors are merged by name"
        ));
    }
}

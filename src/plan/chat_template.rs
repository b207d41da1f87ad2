//! The chat template that the config asks for: found, put into its files, and compared with the output's vocabulary.

use super::data::ChatTemplate;
use super::views::Views;
use crate::checkpoint::Revision;
use crate::config::{Config, Located};
use crate::error::{Error, Result};
use crate::tokenizer::{self, Merged, Tokenizer, template};

/// So many of its words that are no tokens are named.
const NAMED_MAX: usize = 6;

/// What is wrong with a template that is written in the config, or named there and none of those that are known.
pub(super) fn check(config: &Config) -> Option<Error> {
    let written = config.chat_template.as_ref().filter(|written| written.value != template::AUTO)?;
    let Error { hint, message, .. } = template::named_or_literal(&written.value).err()?;
    Some(Error { hint, ..config.error_at(written.at, message) })
}

/// Puts the chat template into its files, and says where it comes from, if there is one. The tokenizer is of the source `from`, and
/// `merged` the vocabulary where that is another one.
///
/// # Errors
/// It is no template, which [`check`] says with its place, or a file cannot be read.
pub(super) fn set(
    views: &mut Views<'_>,
    written: &Located<String>,
    from: usize,
    merged: Option<&Merged>,
    revision: &mut Revision,
) -> Result<Option<ChatTemplate>> {
    let Some((text, chosen, source)) = find(views, written, from)? else {
        views.notes.push("chat_template: no model has a template, so the output has none".into());
        return Ok(None);
    };
    let folder = &views.sources[from].folder;
    for name in [tokenizer::TOKENIZER_CONFIG, template::OF_PROCESSOR] {
        let current = match revision.written(name) {
            Some(text) => Some(text.to_owned()),
            None => tokenizer::read_text(folder, name)?,
        };
        if let Some(edited) = current.and_then(|current| template::replace_in(&current, &text)) {
            revision.write(name, edited);
        }
    }
    let unknown = unknown_tokens(&text, views, from, merged);
    if !unknown.is_empty() {
        let named = unknown.iter().take(NAMED_MAX).copied().collect::<Vec<_>>().join(", ");
        let more = match unknown.len().saturating_sub(NAMED_MAX) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let warning = format!(
            "the chat template ({chosen}) has {named}{more}, which the output's vocabulary has no tokens for"
        );
        let hint = "take the tokenizer of a model that has them, or add them: docs/tokenizers.md";
        views.warnings.push(Error::config(warning).hint(hint));
    }
    if let (ChatTemplate::Model(model), Some(source)) = (&chosen, source) {
        let end = |source: usize| template::end_of(&views.sources[source].folder);
        if let (Some(its), Some(own)) = (end(source)?, end(from)?)
            && its != own
        {
            views.notes.push(format!(
                "the chat template is of {model}, whose texts end with {its}, and those of the output with {own}: \
                 docs/tokenizers.md says how to change that"
            ));
        }
    }
    revision.write(template::FILE, text);
    Ok(Some(chosen))
}

/// The text of the template, where it comes from, and the source of the model that has it.
fn find(
    views: &Views<'_>,
    written: &Located<String>,
    from: usize,
) -> Result<Option<(String, ChatTemplate, Option<usize>)>> {
    if written.value != template::AUTO {
        let text = template::named_or_literal(&written.value)?;
        let is_packaged = text != written.value;
        let chosen =
            if is_packaged { ChatTemplate::Packaged(written.value.clone()) } else { ChatTemplate::Literal };
        return Ok(Some((text.to_owned(), chosen, None)));
    }
    let models = views.models.iter().map(|model| (&*model.name, model.source));
    let mut models: Vec<(&str, usize)> = models.collect();
    // The model of the tokenizer counts too where it is none of those that are merged.
    if models.iter().all(|(_, source)| *source != from) {
        models.push((&views.sources[from].name, from));
    }
    let mut having = Vec::new();
    let mut templates = Vec::new();
    for (name, source) in models {
        if let Some(template) = template::of_model(&views.sources[source].folder)? {
            having.push((name, source));
            templates.push(template);
        }
    }
    let Some(most) = template::most_common(&templates) else { return Ok(None) };
    let first = templates.iter().position(|template| template.trim() == most).expect("it is one of them");
    let (name, source) = having[first];
    Ok(Some((most.to_owned(), ChatTemplate::Model(name.into()), Some(source))))
}

/// The words of a template that look like special tokens and are none of the output's.
fn unknown_tokens<'t>(
    text: &'t str,
    views: &Views<'_>,
    from: usize,
    merged: Option<&Merged>,
) -> Vec<&'t str> {
    let words = template::special_words(text);
    if words.is_empty() {
        return words;
    }
    // A tokenizer that is only copied need not be one that can be read.
    let read = || tokenizer::read(&views.sources[from].folder).ok().flatten();
    let own: Option<Tokenizer> = if merged.is_none() { read() } else { None };
    let is_known = |word: &str| match (merged, &own) {
        (Some(merged), _) => merged.id(word).is_some(),
        (None, Some(own)) => own.id(word).is_some(),
        (None, None) => true,
    };
    words.into_iter().filter(|word| !is_known(word)).collect()
}

//! Special tokens by id in `config.json` and `generation_config.json`: `eos_token_id` and its like follow their tokens.

use std::collections::HashMap;
use std::ops::Range;

use super::Tokenizer;
use super::json::{Items, replaced, within};
use super::merge::Merged;

/// What such keys end with.
const ID: &str = "_token_id";
/// Where a model of several modalities keeps the config of its language model.
const TEXT: &str = "text_config";
/// What stands for no id.
const NONE: &str = "null";

/// A config with the ids of another vocabulary. `text` goes with the tokenizer `own`; `leading` is the file of the same name of the
/// model whose tokenizer leads, and what it says of a key is taken over, also where `text` says nothing of it, because its ids are
/// those of the merge. Other ids follow their tokens. Returns the text, and the keys whose tokens the vocabulary has not.
pub fn follow_ids(
    text: &str,
    own: Option<&Tokenizer>,
    merged: &Merged,
    leading: Option<&str>,
) -> (String, Vec<String>) {
    let mut edits: Vec<(Range<usize>, String)> = Vec::new();
    let mut lost = Vec::new();
    let own = own.map(Tokenizer::by_id);
    let Ok(top) = Items::parse(text) else { return (text.into(), lost) };
    let inner = inner_of(&top);
    let leading = leading.and_then(|leading| Items::parse(leading).ok());
    let leading_text = leading.as_ref().and_then(inner_of);
    let mut follow = |items: &Items, leading: [Option<&Items>; 2], prefix: &str| {
        for (key, value) in items.iter().filter(|(key, _)| key.ends_with(ID)) {
            let says = || leading.iter().flatten().filter_map(|leading| leading.get(key));
            let taken = says().find(|id| *id != NONE).or_else(|| says().next()).map(str::to_owned);
            match taken.or_else(|| followed(value, own.as_ref()?, merged)) {
                Some(new) => edits.push((within(text, value), new)),
                None if value == NONE => {}
                None => lost.push(format!("{prefix}{key}")),
            }
        }
    };
    follow(&top, [leading.as_ref(), leading_text.as_ref()], "");
    if let Some(items) = &inner {
        follow(items, [leading_text.as_ref(), leading.as_ref()], "text_config.");
    }
    // Keys that stand nowhere yet go where the leading file has them, as far as there is such a place.
    let stands = |key: &str| top.get(key).or_else(|| inner.as_ref()?.get(key)).is_some();
    let mut edited = replaced(text, edits);
    for (of, is_inner) in [(&leading, false), (&leading_text, true)] {
        let ids = of.iter().flat_map(Items::iter).filter(|(key, id)| key.ends_with(ID) && *id != NONE);
        for (key, id) in ids.filter(|(key, _)| !stands(key)) {
            edited = with_id(&edited, key, id, is_inner);
        }
    }
    (edited, lost)
}

/// A config with an id more: in the config of its language model, if it is to be there and there is one.
fn with_id(text: &str, key: &str, id: &str, is_inner: bool) -> String {
    let top = Items::parse(text).expect("only values were replaced");
    match inner_of(&top).filter(|_| is_inner) {
        Some(inner) => replaced(text, vec![(inner.place(text), inner.with_value(key, id))]),
        None => top.with_value(key, id),
    }
}

/// The config of the language model within one of several modalities.
fn inner_of<'a>(config: &Items<'a>) -> Option<Items<'a>> {
    Items::parse(config.get(TEXT).filter(|inner| inner.starts_with('{'))?).ok()
}

/// A config of so many rows: `vocab_size` wherever it stands, and if it stands nowhere, in the config of the language model.
pub fn resized(text: &str, rows: usize) -> String {
    const SIZE: &str = "vocab_size";
    const SIZES: [&str; 2] = [SIZE, "padded_vocab_size"];
    let Ok(top) = Items::parse(text) else { return text.into() };
    let inner = inner_of(&top);
    let all = || std::iter::once(&top).chain(&inner);
    let stands = all().flat_map(|items| SIZES.iter().filter_map(|key| items.get(key)));
    let edits: Vec<_> = stands.map(|value| (within(text, value), rows.to_string())).collect();
    if edits.is_empty() {
        return match &inner {
            Some(inner) => {
                replaced(text, vec![(inner.place(text), inner.with_value(SIZE, &rows.to_string()))])
            }
            None => top.with_value(SIZE, &rows.to_string()),
        };
    }
    replaced(text, edits)
}

/// An id, or each of a list, in the merged vocabulary.
fn followed(value: &str, own: &HashMap<u32, &str>, merged: &Merged) -> Option<String> {
    let follow = |id: u32| merged.id(own.get(&id)?);
    if let Ok(id) = serde_json::from_str::<u32>(value) {
        return follow(id).map(|id| id.to_string());
    }
    let list: Vec<u32> = serde_json::from_str(value).ok()?;
    let ids: Option<Vec<String>> = list.into_iter().map(|id| follow(id).map(|id| id.to_string())).collect();
    Some(format!("[{}]", ids?.join(", ")))
}

//! Tokens by id in `config.json` and `generation_config.json`: `eos_token_id` and its like follow their tokens.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use indexmap::IndexMap;

use super::Tokenizer;
use super::json::{Items, replaced, within};
use super::merge::Merged;

/// What keys of special tokens end with.
const IDS: [&str; 3] = ["_token_id", "_token_ids", "_token_index"];
/// Keys of tokens that generation keeps out or wants, in lists or in lists of lists.
const LISTS: [&str; 4] = ["suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "force_words_ids"];
/// The same of tokens at positions: pairs of a position and an id.
const AT_POSITIONS: &str = "forced_decoder_ids";
/// The lists within each other that any of these has.
const DEEP_MAX: usize = 3;
/// Where a model of several modalities keeps the config of its language model.
const TEXT: &str = "text_config";
/// Keys, and ids as they are written.
type Ids = IndexMap<String, String>;

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
    let [leading, leading_text] =
        [&leading, &leading_text].map(|items| items.as_ref().map_or_else(IndexMap::new, ids_of));
    let mut follow = |items: &Items, leading: [&IndexMap<&str, &str>; 2], prefix: &str| {
        for (key, value) in items.iter().filter(|(key, _)| is_special(key) || is_listed(key)) {
            let says = || leading.iter().filter_map(|leading| leading.get(key).copied());
            let taken = || says().find(|id| *id != NONE).or_else(|| says().next()).map(str::to_owned);
            let followed = || followed(value, key == AT_POSITIONS, own.as_ref()?, merged, DEEP_MAX);
            // What generation keeps out is the donor's to say, whose files these are.
            let new = if is_special(key) { taken().or_else(followed) } else { followed().or_else(taken) };
            match new {
                Some(new) => edits.push((within(text, value), new)),
                None if value == NONE => {}
                None => lost.push(format!("{prefix}{key}")),
            }
        }
    };
    follow(&top, [&leading, &leading_text], "");
    if let Some(items) = &inner {
        follow(items, [&leading_text, &leading], "text_config.");
    }
    // Keys that stand nowhere yet go where the leading file has them, as far as there is such a place.
    let standing: HashSet<&str> = [Some(&top), inner.as_ref()]
        .into_iter()
        .flatten()
        .flat_map(|items| ids_of(items).into_keys())
        .collect();
    let missing = |of: &IndexMap<&'_ str, &'_ str>| -> Ids {
        let ids = of.iter().filter(|(key, id)| is_special(key) && **id != NONE && !standing.contains(*key));
        ids.map(|(key, id)| ((*key).into(), (*id).into())).collect()
    };
    let mut of_top: Ids = missing(&leading);
    let mut of_inner = Ids::new();
    (if inner.is_some() { &mut of_inner } else { &mut of_top }).extend(missing(&leading_text));
    (with_ids(replaced(text, edits), &of_top, &of_inner), lost)
}

/// The keys of ids in an object, with their values: of a key that stands twice the last one, as parsers have it.
fn ids_of<'i>(items: &'i Items) -> IndexMap<&'i str, &'i str> {
    items.iter().filter(|(key, _)| is_special(key) || is_listed(key)).collect()
}

/// A config with more ids at its end, and at that of the config of its language model.
fn with_ids(text: String, of_top: &Ids, of_inner: &Ids) -> String {
    let text = if of_top.is_empty() { text } else { whole(&text).with_keys(of_top) };
    let edit = inner_of(&whole(&text)).filter(|_| !of_inner.is_empty());
    let edit = edit.map(|inner| (inner.place(&text), inner.with_keys(of_inner)));
    replaced(&text, edit.into_iter().collect())
}

/// A config of which only values were replaced.
fn whole(text: &str) -> Items<'_> {
    Items::parse_up_to(text, usize::MAX).expect("it was JSON")
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

fn is_special(key: &str) -> bool {
    IDS.iter().any(|end| key.ends_with(end))
}

fn is_listed(key: &str) -> bool {
    LISTS.contains(&key) || key == AT_POSITIONS
}

/// An id, or each of a list or of lists, in the merged vocabulary; `at_positions` if the first of each innermost pair is none.
/// Lists within each other go so deep.
fn followed(
    value: &str,
    at_positions: bool,
    own: &HashMap<u32, &str>,
    merged: &Merged,
    deep: usize,
) -> Option<String> {
    let follow = |id: u32| merged.id(own.get(&id)?).map(|id| id.to_string());
    if let Ok(id) = serde_json::from_str::<u32>(value) {
        return follow(id);
    }
    let deep = deep.checked_sub(1)?;
    let list = Items::parse(value).ok().filter(|_| value.starts_with('['))?;
    let is_pair = at_positions && list.iter().all(|(_, item)| !item.starts_with('['));
    let item = |(place, (_, item)): (usize, (&str, &str))| match item {
        position if is_pair && place == 0 => Some(position.to_owned()),
        id => followed(id, at_positions, own, merged, deep),
    };
    let items: Option<Vec<String>> = list.iter().enumerate().map(item).collect();
    Some(format!("[{}]", items?.join(", ")))
}

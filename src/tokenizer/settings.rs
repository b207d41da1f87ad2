//! What stands beside `tokenizer.json` and counts as tokens too: `tokenizer_config.json`, `special_tokens_map.json` and
//! `added_tokens.json`.

use std::sync::Arc;

use indexmap::IndexMap;
use serde::Deserialize;

use super::json::Items;
use super::{Flags, damaged};
use crate::checkpoint::ModelFolder;
use crate::error::Result;
use crate::limits::COMPANION_BYTES_MAX;
use crate::text::quoted;

/// `tokenizer_config.json`.
pub const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
pub(super) const SPECIAL_TOKENS_MAP: &str = "special_tokens_map.json";
pub(super) const ADDED_TOKENS: &str = "added_tokens.json";
/// Tokens that were added after training, in `tokenizer_config.json`, by id.
pub(super) const DECODER: &str = "added_tokens_decoder";
/// The keys of special tokens, in the order in which transformers adds those that are missing.
const NAMED: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
/// The keys of lists of more.
const LISTS: [&str; 2] = ["additional_special_tokens", "extra_special_tokens"];

/// The files beside a tokenizer, as far as they name tokens.
#[derive(Debug, Default)]
pub(super) struct Settings {
    /// `tokenizer_config.json`, as it is written.
    pub(super) text: Option<String>,
    /// Tokens with the ids that the files give them, in the order of ids.
    pub(super) added: Vec<(u32, String, Flags)>,
    /// The special tokens, in the order in which they are added if they are missing, and their flags where they are given.
    pub(super) special: IndexMap<String, Option<Flags>>,
}

impl Settings {
    /// Reads the files that are there. As transformers has it, the older two count only where the first lists no added tokens.
    pub(super) fn read(folder: &Arc<ModelFolder>) -> Result<Self> {
        let mut settings = Self::default();
        let mut decoder = false;
        settings.text = with_object(folder, TOKENIZER_CONFIG, |file, wrong| {
            add_special_tokens(file, &mut settings.special, wrong)?;
            let Some(tokens) = file.get(DECODER) else { return Ok(()) };
            decoder = true;
            let tokens =
                Items::parse(tokens).map_err(|cause| wrong(&format!("has {DECODER} with {cause}")))?;
            for (id, token) in tokens.iter() {
                let read = || Some((id.parse().ok()?, serde_json::from_str(token).ok()?));
                let wrong = || wrong(&format!("{DECODER} has no token at {}", quoted(id)));
                let (id, token): (u32, Token) = read().ok_or_else(wrong)?;
                settings.added.push((id, token.content().into(), token.flags().unwrap_or(Flags::PLAIN)));
            }
            Ok(())
        })?;
        if !decoder {
            with_object(folder, SPECIAL_TOKENS_MAP, |file, wrong| {
                add_special_tokens(file, &mut settings.special, wrong)
            })?;
            with_object(folder, ADDED_TOKENS, |file, wrong| {
                for (token, id) in file.iter() {
                    let id = id.parse().map_err(|_| wrong(&format!("has no id for {}", quoted(token))))?;
                    let special = settings.special.contains_key(token);
                    settings.added.push((
                        id,
                        token.into(),
                        if special { Flags::SPECIAL } else { Flags::PLAIN },
                    ));
                }
                Ok(())
            })?;
        }
        settings.added.sort_by_key(|(id, _, _)| *id);
        Ok(settings)
    }
}

/// A small file of a folder, if it is there and a text.
///
/// # Errors
/// Kind `Input`: it cannot be read.
pub fn read_text(folder: &Arc<ModelFolder>, name: &str) -> Result<Option<String>> {
    if !folder.has(name) {
        return Ok(None);
    }
    Ok(String::from_utf8(folder.file(name).read(COMPANION_BYTES_MAX)?).ok())
}

/// Looks at a file that holds a JSON object, if it is there, and returns its text.
fn with_object(
    folder: &Arc<ModelFolder>,
    name: &str,
    look: impl FnOnce(&Items, &dyn Fn(&str) -> crate::error::Error) -> Result<()>,
) -> Result<Option<String>> {
    if !folder.has(name) {
        return Ok(None);
    }
    let file = folder.file(name);
    let wrong = |what: &str| damaged(&file.path().display().to_string(), what);
    let text = String::from_utf8(file.read(COMPANION_BYTES_MAX)?).map_err(|_| wrong("is not UTF-8"))?;
    let is_object = text.trim_start().starts_with('{');
    let items = Items::parse(&text).map_err(|cause| wrong(&format!("is no JSON: {cause}")))?;
    if !is_object {
        return Err(wrong("is no JSON object"));
    }
    look(&items, &wrong)?;
    Ok(Some(text))
}

/// Adds the special tokens that a file names.
fn add_special_tokens(
    file: &Items,
    tokens: &mut IndexMap<String, Option<Flags>>,
    wrong: &dyn Fn(&str) -> crate::error::Error,
) -> Result<()> {
    let mut add = |token: Token| {
        if !token.content().is_empty() {
            let flags = token.flags().map(|flags| Flags { special: true, ..flags });
            tokens.entry(token.content().into()).or_insert(flags);
        }
    };
    // What is no token there, as null, names none.
    NAMED
        .iter()
        .filter_map(|key| file.get(key))
        .filter_map(|token| serde_json::from_str(token).ok())
        .for_each(&mut add);
    for key in LISTS {
        let Some(list) = file.get(key).filter(|value| value.starts_with(['[', '{'])) else { continue };
        let list = Items::parse(list).map_err(|cause| wrong(&format!("has {key} with {cause}")))?;
        list.iter().filter_map(|(_, token)| serde_json::from_str(token).ok()).for_each(&mut add);
    }
    Ok(())
}

/// A token as it is given: by its text alone, or with its flags.
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum Token {
    Text(String),
    Full {
        content: String,
        #[serde(default)]
        single_word: bool,
        #[serde(default)]
        lstrip: bool,
        #[serde(default)]
        rstrip: bool,
        normalized: Option<bool>,
        #[serde(default)]
        special: bool,
    },
}

impl Token {
    pub(super) fn content(&self) -> &str {
        match self {
            Self::Text(content) | Self::Full { content, .. } => content,
        }
    }

    fn flags(&self) -> Option<Flags> {
        let Self::Full { single_word, lstrip, rstrip, normalized, special, .. } = *self else { return None };
        Some(Flags { single_word, lstrip, rstrip, normalized: normalized.unwrap_or(!special), special })
    }
}

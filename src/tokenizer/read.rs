//! `tokenizer.json` as a list of tokens with ids, the ids that loading it gives them.
//!
//! Loading gives a token that was added the id that it has in the vocabulary. One that is not in the vocabulary takes the next free
//! id, whatever is written beside it.

use std::fmt;
use std::sync::Arc;

use indexmap::IndexMap;
use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

use super::json::{Items, Text};
use super::settings::{ADDED_TOKENS, SPECIAL_TOKENS_MAP, Settings, TOKENIZER_CONFIG};
use super::{Added, Flags, Kind, Tokenizer, damaged};
use crate::checkpoint::{ModelFolder, OTHER_VOCABULARIES, TOKENIZER};
use crate::error::{Error, Result};
use crate::limits::{TOKEN_TEXT_BYTES_MAX, TOKENIZER_BYTES_MAX, TOKENIZER_READ_BYTES_MAX, TOKENS_MAX};
use crate::text::quoted;

/// Reads the tokenizer of a model; `None` where its folder holds no file of one.
///
/// # Errors
/// Kind `Input`: a file is damaged, or there is none of the form that is read.
pub fn read(folder: &Arc<ModelFolder>) -> Result<Option<Tokenizer>> {
    if !folder.has(TOKENIZER) {
        // What says that a model has a tokenizer, though not in the form that is read here.
        return match OTHER_VOCABULARIES.iter().chain([&TOKENIZER_CONFIG]).find(|name| folder.has(name)) {
            None => Ok(None),
            Some(name) => Err(other_form(folder, name)),
        };
    }
    let file = folder.file(TOKENIZER);
    let place = file.path().display().to_string();
    let text = String::from_utf8(file.read(TOKENIZER_READ_BYTES_MAX)?)
        .map_err(|_| damaged(&place, "is not UTF-8"))?;
    Tokenizer::parse(place, text, Settings::read(folder)?).map(Some)
}

/// Whether two folders have the same tokenizer, byte by byte, with all that counts as tokens beside it. Files that cannot be read are
/// other ones.
pub fn same_files(one: &Arc<ModelFolder>, other: &Arc<ModelFolder>) -> bool {
    [TOKENIZER, TOKENIZER_CONFIG, SPECIAL_TOKENS_MAP, ADDED_TOKENS].iter().all(|name| {
        let (mine, theirs) = (one.file(*name), other.file(*name));
        match (one.has(name), other.has(name)) {
            (false, false) => true,
            (true, true) => {
                mine == theirs || mine.same_content(&theirs, TOKENIZER_BYTES_MAX).unwrap_or(false)
            }
            _ => false,
        }
    })
}

fn other_form(folder: &Arc<ModelFolder>, name: &str) -> Error {
    let place = folder.path.display();
    let message = format!("{place} has {name} but no {TOKENIZER}, and tokens are only read from that");
    Error::input(message).hint(format!(
        "convert it once with transformers: python -c \"from transformers import AutoTokenizer as T; \
         T.from_pretrained('{place}').save_pretrained('{place}')\""
    ))
}

impl Tokenizer {
    /// A tokenizer from the text of its file.
    pub(super) fn parse(place: String, text: String, settings: Settings) -> Result<Self> {
        let wrong = |what: &str| damaged(&place, what);
        let not_json = |cause: serde_json::Error| damaged(&place, &format!("is no tokenizer: {cause}"));
        let top = Items::parse(&text).map_err(not_json)?;
        if let Some(key) = top.doubled() {
            return Err(wrong(&format!("has the key {} twice", quoted(key))));
        }
        let model = top.get("model").ok_or_else(|| wrong("has no `model`"))?;
        let model = Items::parse(model).map_err(not_json)?;
        if let Some(key) = model.doubled() {
            return Err(wrong(&format!("has the key {} twice in `model`", quoted(key))));
        }
        let vocabulary = model.get("vocab").ok_or_else(|| wrong("has no `vocab` in `model`"))?;
        let kind = kind(&model)
            .map_err(|found| wrong(&format!("has a model of the type {found}, which is not known")))?;
        let Vocabulary { ids, listed: listed_tokens } = serde_json::from_str(vocabulary).map_err(not_json)?;
        if (kind == Kind::Unigram) != vocabulary.starts_with('[') {
            return Err(wrong("has a vocabulary that does not fit its type of model"));
        }
        let listed = match top.get("added_tokens") {
            None => Vec::new(),
            Some(list) => serde_json::from_str::<Option<Listed>>(list)
                .map_err(not_json)?
                .map_or(Vec::new(), |list| list.0),
        };
        let tokens = |list: usize| list.saturating_add(ids.len());
        if tokens(listed.len() + settings.added.len() + settings.special.len()) > TOKENS_MAX {
            return Err(wrong(&format!("has more than {TOKENS_MAX} tokens with those beside it")));
        }
        let listed_texts = listed.iter().map(|token| &token.content);
        if ids.keys().chain(listed_texts).any(|token| token.len() > TOKEN_TEXT_BYTES_MAX) {
            return Err(wrong(&format!("has a token of more than {TOKEN_TEXT_BYTES_MAX} bytes")));
        }
        let normalizes = top.get("normalizer").is_some_and(|normalizer| normalizer != "null");
        drop((top, model));
        let mut read = Self {
            place,
            text,
            kind,
            model_tokens: ids.len(),
            listed_tokens,
            normalizes,
            ids,
            added: IndexMap::new(),
            settings: Settings::default(),
        };
        read.add_listed(listed);
        read.add_settings(&settings);
        read.settings = settings;
        Ok(read)
    }

    /// Adds the tokens that the file lists. What is written beside a token counts where releases of the `tokenizers` library differ:
    /// some count on from the largest id of an added token before it, some from the size of the vocabulary.
    fn add_listed(&mut self, listed: Vec<ListedToken>) {
        let size = self.listed_tokens;
        let mut from_size = size;
        let mut largest: Option<u32> = None;
        for ListedToken { id: written, content, flags } in listed {
            if content.is_empty() {
                continue;
            }
            let after_largest =
                largest.filter(|largest| *largest >= size).map_or(size, |largest| largest + 1);
            let id = *self.ids.entry(content.clone()).or_insert_with(|| {
                let id = if written == after_largest { written } else { from_size };
                from_size += 1;
                id
            });
            largest = largest.max(Some(id));
            self.added.insert(content, Added { flags, listed: true });
        }
    }

    /// Adds the tokens that the files beside it name.
    fn add_settings(&mut self, settings: &Settings) {
        let size = self.listed_tokens;
        let largest = self.added.keys().filter_map(|token| self.id(token)).max();
        let mut next = largest.filter(|largest| *largest >= size).map_or(size, |largest| largest + 1);
        let mut add = |content: &String, flags: Flags, replace: bool| {
            if content.is_empty() {
                return;
            }
            self.ids.entry(content.clone()).or_insert_with(|| {
                next += 1;
                next - 1
            });
            let known = self.added.entry(content.clone()).or_insert(Added { flags, listed: false });
            if replace {
                known.flags = flags;
            }
        };
        for (_, content, flags) in &settings.added {
            add(content, *flags, true);
        }
        for (content, flags) in &settings.special {
            add(content, flags.unwrap_or(Flags::SPECIAL), false);
        }
    }
}

/// The type of a model. The oldest files do not say it, and have what shows it.
fn kind(model: &Items) -> std::result::Result<Kind, String> {
    let has = |key: &str| model.get(key).is_some();
    match model.get("type") {
        Some("\"BPE\"") => Ok(Kind::Bpe),
        Some("\"Unigram\"") => Ok(Kind::Unigram),
        Some("\"WordPiece\"") => Ok(Kind::WordPiece),
        Some("\"WordLevel\"") => Ok(Kind::WordLevel),
        Some(other) => Err(crate::text::cut_to(other, 40)),
        None if model.get("vocab").is_some_and(|vocab| vocab.starts_with('[')) => Ok(Kind::Unigram),
        None if has("merges") => Ok(Kind::Bpe),
        None if has("max_input_chars_per_word") => Ok(Kind::WordPiece),
        None => Ok(Kind::WordLevel),
    }
}

/// A model's vocabulary: an object of ids, or a list of tokens with scores.
struct Vocabulary {
    ids: IndexMap<String, u32>,
    listed: u32,
}

impl<'de> Deserialize<'de> for Vocabulary {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Tokens;
        impl<'de> Visitor<'de> for Tokens {
            type Value = Vocabulary;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a vocabulary")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Vocabulary, A::Error> {
                let (mut ids, mut next) = (IndexMap::new(), 0);
                while let Some((Text(token), id)) = map.next_entry::<_, u32>()? {
                    // One that stands twice counts twice.
                    bounded(next)?;
                    next += 1;
                    ids.insert(token.into_owned(), bounded(id)?);
                }
                Ok(Vocabulary { listed: ids.len() as u32, ids })
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> std::result::Result<Vocabulary, A::Error> {
                let mut ids = IndexMap::new();
                let mut next = 0;
                while let Some((Text(token), _)) = list.next_element::<(Text, f64)>()? {
                    ids.insert(token.into_owned(), bounded(next)?);
                    next += 1;
                }
                Ok(Vocabulary { listed: next, ids })
            }
        }
        deserializer.deserialize_any(Tokens)
    }
}

fn bounded<E: de::Error>(id: u32) -> std::result::Result<u32, E> {
    if (id as usize) < TOKENS_MAX { Ok(id) } else { Err(E::custom(format!("a token has the id {id}"))) }
}

/// The tokens that a file lists as added.
#[derive(serde::Deserialize)]
struct Listed(Vec<ListedToken>);

#[derive(serde::Deserialize)]
struct ListedToken {
    id: u32,
    content: String,
    #[serde(flatten)]
    flags: Flags,
}

//! Tokenizers: which token has which id in a model, the vocabulary of a merge, and the files that say it.
//!
//! ```text
//! read      tokenizer.json and the files beside it   a model's tokens by id, as transformers would have them
//! merge     the tokens of one model, or of all       the output's tokens, and its tokenizer.json
//! align     id of the output -> row of a model       where each row of an embedding comes from
//! run       a text                                   its tokens
//! ```
//!
//! A tokenizer is edited as data: what a merge does not change is written as it stands in the file of the model that it comes from,
//! whose tokens all keep their ids. Only `run` runs a tokenizer, for those that read texts. It knows no config, no plan and no tensors: a model has so many
//! rows, and that is all.

mod align;
mod json;
mod merge;
mod read;
mod run;
mod settings;
mod special_ids;
pub mod template;

use std::collections::HashMap;

use indexmap::IndexMap;
use serde::Deserialize;

use crate::error::Error;

pub use crate::checkpoint::TOKENIZER as FILE;
pub use align::{Aligned, Chosen, Counts, RowFrom};
pub use merge::{Merged, Party, merge};
pub use read::{read, same_files};
pub use run::{Runner, Tokens};
pub use settings::{TOKENIZER_CONFIG, read_text};
pub use special_ids::{follow_ids, resized};

use settings::Settings;

/// The tokenizer of a model.
#[derive(Debug)]
pub struct Tokenizer {
    /// Where its file lies, for messages.
    place: String,
    /// Its `tokenizer.json`.
    text: String,
    kind: Kind,
    /// The id of each token: first those of the model's vocabulary, then those that were added to it.
    ids: IndexMap<String, u32>,
    /// How many of them belong to the vocabulary.
    model_tokens: usize,
    /// How many entries the vocabulary has: in a list, a token may stand twice.
    listed_tokens: u32,
    /// Whether texts are normalised before the vocabulary is asked.
    normalizes: bool,
    /// The tokens that are found in a text before the vocabulary is asked.
    added: IndexMap<String, Added>,
    settings: Settings,
}

/// How a tokenizer cuts words into tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Bpe,
    Unigram,
    WordPiece,
    WordLevel,
}

/// A token that was added to a vocabulary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Added {
    flags: Flags,
    /// Whether `tokenizer.json` lists it; others come with the files beside it.
    listed: bool,
}

/// Where an added token is found in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "the format has these five")]
struct Flags {
    single_word: bool,
    lstrip: bool,
    rstrip: bool,
    normalized: bool,
    special: bool,
}

impl Flags {
    /// Those of a token that is given as nothing but its text.
    const PLAIN: Self =
        Self { single_word: false, lstrip: false, rstrip: false, normalized: true, special: false };
    /// Those of a special token that is.
    const SPECIAL: Self = Self { normalized: false, special: true, ..Self::PLAIN };
}

impl Tokenizer {
    /// The id of a token.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.ids.get(token).copied()
    }

    /// The tokens by their ids; of several that have one, the first.
    pub fn by_id(&self) -> HashMap<u32, &str> {
        self.ids.iter().rev().map(|(token, id)| (*id, &**token)).collect()
    }

    /// Whether both give every token the same id.
    pub fn same_ids(&self, other: &Self) -> bool {
        self.ids.len() == other.ids.len() && self.ids.iter().all(|(token, id)| other.id(token) == Some(*id))
    }
}

fn damaged(place: &str, what: &str) -> Error {
    Error::input(format!("{place} {what}")).hint("the file is damaged: download it again")
}

#[cfg(test)]
mod tests;

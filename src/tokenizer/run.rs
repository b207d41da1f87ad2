//! Texts as tokens: a model's tokenizer at work, by the library that made its file.

use serde::Deserialize;
use serde_json::Value;
use tokenizers::Tokenizer;

use super::json::Items;
use super::settings::{Token, read_text};
use crate::checkpoint::{Source, TOKENIZER};
use crate::error::{Error, Result, without_panic};
use crate::limits::{NORMALIZER_GROWTH_MAX, TOKENIZER_READ_BYTES_MAX};

/// The tokenizer of a model at work.
#[derive(Debug)]
pub struct Runner {
    model: String,
    tokenizer: Tokenizer,
    /// The tokens that begin and end a text, by their names in the model's settings.
    framing: [Option<String>; 2],
}

/// A text as tokens.
#[derive(Debug)]
pub struct Tokens {
    /// Their numbers.
    pub ids: Vec<u64>,
    /// Where each ends in the text, in bytes; 0 for one that stands for none of it.
    pub ends: Vec<usize>,
}

/// Where a model says which of its tokens begins a text.
const SETTINGS: [&str; 2] = ["tokenizer_config.json", "special_tokens_map.json"];

impl Runner {
    /// Reads a model's tokenizer.
    ///
    /// # Errors
    /// It has none that can be used. The way out depends on what it was wanted for: none is given where there is none.
    pub fn open(source: &Source) -> Result<Self> {
        let model = source.name.as_str();
        if !source.folder.has(TOKENIZER) {
            let message = format!("{model} has no {TOKENIZER}, which turns texts into tokens");
            return Err(Error::config(message).hint(
                "load its tokenizer with transformers' AutoTokenizer and save it again, which writes tokenizer.json",
            ));
        }
        let text = source.folder.file(TOKENIZER).read(TOKENIZER_READ_BYTES_MAX)?;
        let steps: Steps =
            serde_json::from_slice(&text).map_err(|cause| unusable(model, &cause.to_string()))?;
        if growth(&steps.normalizer) > NORMALIZER_GROWTH_MAX {
            return Err(unusable(model, "its normalizer could make any text too long"));
        }
        let tokenizer = unbroken(model, || {
            let mut tokenizer =
                Tokenizer::from_bytes(&text).map_err(|cause| unusable(model, &cause.to_string()))?;
            // What a file says of batches is not meant for single texts.
            tokenizer.with_padding(None);
            tokenizer.with_truncation(None).map_err(|cause| unusable(model, &cause.to_string()))?;
            Ok(tokenizer)
        })?;
        let named = |key| SETTINGS.iter().find_map(|file| special(source, file, key));
        let framing = [named("bos_token"), named("eos_token")];
        Ok(Self { model: model.to_owned(), tokenizer, framing })
    }

    /// The text of the token that begins a text, and of the one that ends it.
    pub fn framing(&self) -> [Option<&str>; 2] {
        self.framing.each_ref().map(Option::as_deref)
    }

    /// The number of a token by its text.
    pub fn id(&self, token: &str) -> Option<u64> {
        self.tokenizer.token_to_id(token).map(u64::from)
    }

    /// A text as tokens; `whole` says whether those belong to it that the file puts around texts.
    ///
    /// # Errors
    /// The tokenizer cannot take it.
    pub fn encode(&self, text: &str, whole: bool) -> Result<Tokens> {
        let encoded = unbroken(&self.model, || {
            self.tokenizer.encode(text, whole).map_err(|cause| unusable(&self.model, &cause.to_string()))
        })?;
        let ids = encoded.get_ids().iter().map(|token| u64::from(*token)).collect();
        let ends = encoded.get_offsets().iter().map(|(_, end)| *end).collect();
        Ok(Tokens { ids, ends })
    }
}

/// The part of a tokenizer that changes a text before it is cut.
#[derive(Deserialize)]
struct Steps {
    #[serde(default)]
    normalizer: Value,
}

/// How many times as long a normalizer can make a text at the most: one step after the other may double it, and some dozen do. What a step
/// holds counts whatever its type is: the library goes by that where it does not know the type.
fn growth(normalizer: &Value) -> u64 {
    /// The longest that Unicode's own decompositions make of a character.
    const OF_UNICODE: u64 = 32;
    let own = match normalizer.get("type").and_then(Value::as_str) {
        None | Some("Lowercase" | "Prepend" | "Replace" | "Sequence" | "Strip" | "StripAccents") => 1,
        Some(_) => OF_UNICODE,
    };
    // What stands for nothing may stand between all characters.
    let content = normalizer.get("content").and_then(Value::as_str).map_or(0, str::len) as u64;
    let steps = normalizer.get("normalizers").and_then(Value::as_array);
    steps.into_iter().flatten().map(growth).fold((1 + content).saturating_mul(own), u64::saturating_mul)
}

fn unusable(model: &str, cause: &str) -> Error {
    Error::input(format!("{TOKENIZER} of {model} cannot be used: {cause}")).hint("download it again")
}

/// What `work` gives. The library that it calls takes some things that a tokenizer says for granted.
fn unbroken<T>(model: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    without_panic(work).unwrap_or_else(|| Err(unusable(model, "it contradicts itself")))
}

/// A special token, if this file of the model names it: as a text, or as an object that holds it.
fn special(source: &Source, file: &str, key: &str) -> Option<String> {
    let text = read_text(&source.folder, file).ok()??;
    let token: Token = serde_json::from_str(Items::parse(&text).ok()?.get(key)?).ok()?;
    Some(token.content().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn growth_is_bounded_by_the_steps() {
        let replace =
            |content: &str| json!({ "type": "Replace", "pattern": { "String": "e" }, "content": content });
        let sequence = |steps: Vec<Value>| json!({ "type": "Sequence", "normalizers": steps });
        assert_eq!(growth(&Value::Null), 1);
        // As Llama and Albert have it.
        assert_eq!(growth(&sequence(vec![json!({ "type": "Prepend", "prepend": "▁" }), replace("▁")])), 4);
        let albert = ["NFKD", "StripAccents", "Lowercase", "Precompiled"].map(|step| json!({ "type": step }));
        assert!(
            growth(&sequence([vec![replace("\""), replace("\"")], albert.to_vec()].concat()))
                <= NORMALIZER_GROWTH_MAX
        );
        assert!(growth(&sequence(vec![replace("ee"); 40])) > NORMALIZER_GROWTH_MAX);
        assert_eq!(growth(&sequence(vec![sequence(vec![replace("e"); 32]); 4])), u64::MAX);
        // The library reads these as it does the same with their types.
        let untyped = json!({ "pattern": { "Regex": "" }, "content": "eeeeeeee" });
        assert!(
            growth(&json!({ "type": "Sequ;nce", "normalizers": vec![untyped; 8] })) > NORMALIZER_GROWTH_MAX
        );
    }
}

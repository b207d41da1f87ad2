//! Chat templates: found, packaged and put in their places, and never rendered.

use std::sync::Arc;

use super::json::{Items, quoted as json_text, replaced};
use super::settings::{TOKENIZER_CONFIG, read_text};
use crate::checkpoint::ModelFolder;
use crate::error::{Error, Result};
use crate::limits::COMPANION_BYTES_MAX;
use crate::text::quoted;

/// Where current transformers keeps the template.
pub const FILE: &str = "chat_template.jinja";
/// Where processors kept theirs.
pub const OF_PROCESSOR: &str = "chat_template.json";
/// The key for it there, and in `tokenizer_config.json`, where older releases of transformers look.
const KEY: &str = "chat_template";
/// The name of the template, of several, that is used if none is asked for.
const DEFAULT: &str = "default";
/// What stands for the most common template of the models.
pub const AUTO: &str = "auto";
/// The fewest characters of a template.
const CHARS_MIN: usize = 20;

/// The templates that have a name.
const PACKAGED: [(&str, &str); 5] = [
    ("alpaca", include_str!("templates/alpaca.jinja")),
    ("chatml", include_str!("templates/chatml.jinja")),
    ("exaone", include_str!("templates/exaone.jinja")),
    ("llama3", include_str!("templates/llama3.jinja")),
    ("mistral", include_str!("templates/mistral.jinja")),
];

/// The template that a config names or spells out; not for [`AUTO`].
///
/// # Errors
/// Kind `Config`: it is neither.
pub fn named_or_literal(written: &str) -> Result<&str> {
    if let Some((_, template)) = PACKAGED.iter().find(|(name, _)| *name == written) {
        return Ok(template);
    }
    if written.contains('{') && written.chars().count() >= CHARS_MIN {
        return Ok(written);
    }
    let names = PACKAGED.map(|(name, _)| name).join(", ");
    let meant = crate::error::did_you_mean(written, PACKAGED.iter().map(|(name, _)| *name).chain([AUTO]));
    let hint = match meant {
        Some(name) => format!("did you mean `{name}`?"),
        None => format!("write `{AUTO}`, one of {names}, or the Jinja text of a template"),
    };
    Err(Error::config(format!("chat_template {} is no template", quoted(written))).hint(hint))
}

/// The template that most models have, without the space around it; of several equally common ones, the first model's.
pub fn most_common(templates: &[String]) -> Option<&str> {
    let trimmed = || templates.iter().map(|template| template.trim()).filter(|template| !template.is_empty());
    let count = |of: &str| trimmed().filter(|template| *template == of).count();
    trimmed().rev().max_by_key(|template| count(template))
}

/// The template of a model's tokenizer.
///
/// # Errors
/// Kind `Input`: a file cannot be read.
pub fn of_model(folder: &Arc<ModelFolder>) -> Result<Option<String>> {
    if folder.has(FILE) {
        return Ok(String::from_utf8(folder.file(FILE).read(COMPANION_BYTES_MAX)?).ok());
    }
    if !folder.has(TOKENIZER_CONFIG) {
        return Ok(None);
    }
    let text = String::from_utf8(folder.file(TOKENIZER_CONFIG).read(COMPANION_BYTES_MAX)?).ok();
    Ok(text.and_then(|text| {
        let file = Items::parse(&text).ok()?;
        let value = file.get(KEY)?;
        serde_json::from_str(value).ok().or_else(|| serde_json::from_str(default_of(value)?).ok())
    }))
}

/// The token that ends a text, as `tokenizer_config.json` has it.
///
/// # Errors
/// Kind `Input`: the file cannot be read.
pub fn end_of(folder: &Arc<ModelFolder>) -> Result<Option<String>> {
    let Some(text) = read_text(folder, TOKENIZER_CONFIG)? else { return Ok(None) };
    let token = || {
        let file = Items::parse(&text).ok()?;
        let token = file.get("eos_token")?;
        let full = |token| Items::parse(token).ok().and_then(|full| full.get("content"));
        serde_json::from_str(token).or_else(|_| serde_json::from_str(full(token).unwrap_or("null"))).ok()
    };
    Ok(token())
}

/// The words of a template that are spelled as special tokens are, `<|…|>`, each once.
pub fn special_words(text: &str) -> Vec<&str> {
    const CHARS_MAX: usize = 64;
    let mut words = Vec::new();
    for bar in ['|', '\u{ff5c}'] {
        let (open, close) = (format!("<{bar}"), format!("{bar}>"));
        for (start, _) in text.match_indices(&open) {
            let inner = &text[start + open.len()..];
            // What a template puts together from parts is no one word.
            let end = inner.find(|c: char| c == bar || c.is_whitespace() || "\"'{}<>".contains(c));
            let Some(end) = end.filter(|end| (1..=CHARS_MAX).contains(end)) else { continue };
            let word = &text[start..(start + open.len() + end + close.len()).min(text.len())];
            if inner[end..].starts_with(&close) && !words.contains(&word) {
                words.push(word);
            }
        }
    }
    words
}

/// Of a list of named templates, the text of the one that is used if none is asked for, as JSON.
fn default_of(list: &str) -> Option<&str> {
    let list = Items::parse(list).ok()?;
    let templates = list.iter().filter_map(|(_, named)| Items::parse(named).ok());
    let is_default =
        |named: &Items| named.get("name").and_then(|name| serde_json::from_str(name).ok()) == Some(DEFAULT);
    templates.filter(is_default).find_map(|named| named.get("template"))
}

/// A JSON file that keeps a template, with another one in its place; `None` where it keeps none.
pub fn replace_in(text: &str, template: &str) -> Option<String> {
    let file = Items::parse(text).ok()?;
    let value = file.get(KEY).filter(|value| *value != "null")?;
    let place = if value.starts_with('"') { value } else { default_of(value)? };
    Some(replaced(text, vec![(super::json::within(text, place), json_text(template))]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_is_named_or_spelled_out() {
        assert!(named_or_literal("chatml").unwrap().contains("<|im_start|>"));
        let literal = "{% for m in messages %}{{ m }}{% endfor %}";
        assert_eq!(named_or_literal(literal).unwrap(), literal);
        for wrong in ["chatlm", "a text without braces that is long", "{{ short }}", ""] {
            assert!(named_or_literal(wrong).is_err(), "{wrong}");
        }
        assert_eq!(named_or_literal("chatlm").unwrap_err().hint.unwrap(), "did you mean `chatml`?");
    }

    #[test]
    fn the_most_common_template_wins_and_the_first_among_equals() {
        let most = |templates: &[&str]| {
            let templates: Vec<String> = templates.iter().map(|text| (*text).into()).collect();
            most_common(&templates).map(str::to_owned)
        };
        assert_eq!(most(&["a", " b\n", "b"]).as_deref(), Some("b"));
        assert_eq!(most(&["a", "b"]).as_deref(), Some("a"));
        assert_eq!(most(&["b", "a", "a", "b"]).as_deref(), Some("b"));
        assert_eq!(most(&[" "]), None);
    }

    #[test]
    fn words_like_special_tokens_are_found() {
        let text = "{{'<|a|>' + m}}<|b c|><|' + role + '|><|a|><\u{ff5c}d\u{ff5c}><||><|e";
        assert_eq!(special_words(text), ["<|a|>", "<\u{ff5c}d\u{ff5c}>"]);
        assert_eq!(special_words("<|e\u{e9}"), [""; 0]);
    }

    #[test]
    fn a_template_is_replaced_where_it_stands() {
        assert_eq!(replace_in("{\"a\": 1}", "t"), None);
        let named = r#"{"chat_template":[{"name":"tool","template":"x"},{"name":"default","template":"y"}]}"#;
        assert_eq!(replace_in(named, "\"").unwrap(), named.replace("\"y\"", r#""\"""#));
        assert_eq!(replace_in(r#"{"chat_template" : "x"}"#, "y").unwrap(), r#"{"chat_template" : "y"}"#);
    }
}

//! YAML text to a tree in which every node knows its line and column.
//!
//! The config is walked by hand over this tree, because a derived or untagged `Deserialize` can say
//! neither what was expected nor where. serde-saphyr resolves aliases and merge keys, refuses duplicate
//! keys, and counts events, so that a YAML bomb ends at once.

use super::Position;
use super::broken::{self, Mistake};
use super::plain::{self, Plain};
use crate::error::{Error, Result};
use crate::limits::{YAML_BYTES_MAX, YAML_DEPTH_MAX, YAML_EVENTS_MAX};
use crate::text;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::options::{DuplicateKeyPolicy, NonFiniteFloatPolicy};
use serde_saphyr::{MessageFormatter, Spanned, Tagged, UserMessageFormatter};
use std::fmt;

const TOO_LARGE: &str = "the document is too large or too deeply nested (aliases count as if written out)";
const TOO_LARGE_HINT: &str =
    "a merge config needs no more than a few thousand values: write it without nested aliases";

/// A value and where it is written: for an alias, where its anchor is.
#[derive(Debug)]
pub struct Node {
    pub at: Position,
    pub kind: Yaml,
    /// Where in the source the text of a scalar stands.
    bytes: std::ops::Range<usize>,
    /// Whether a tag such as `!!str` says what it is.
    tagged: bool,
}

/// What a node holds. Plain scalars that are not strings keep their spelling, since a model can be
/// called `123` or `1e5`.
#[derive(Debug)]
pub enum Yaml {
    Null,
    Bool(bool, String),
    Number(f64, String),
    Text(String),
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

/// A key and where it is written.
#[derive(Debug)]
pub struct Key {
    pub name: String,
    pub at: Position,
}

/// A document of a text.
pub struct Document<'s> {
    pub root: Node,
    /// The part of the text that it is.
    pub text: &'s str,
}

/// Reads YAML documents: at least one, and none that is empty beside others.
///
/// # Errors
/// Whatever is not well-formed YAML of reasonable size, at its line and column.
pub fn parse<'s>(file: &str, source: &'s str) -> Result<Vec<Document<'s>>> {
    if source.len() > YAML_BYTES_MAX {
        let size = text::bytes(source.len() as u64);
        let message = format!("{file}:{}: {size} is too large for a merge config", Position::START);
        return Err(Error::config(message).hint("give the YAML config, not a checkpoint or a tokenizer"));
    }
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: YAML_EVENTS_MAX,
            max_depth: YAML_DEPTH_MAX,
            // One anchor shared by every slice of a deep stack is no bomb: replayed events are what counts.
            enforce_alias_anchor_ratio: false,
        },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: YAML_EVENTS_MAX },
        emit_comments: false,
        // They are refused by a reader who can name both places.
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        // Infinities are refused, where they are, by those who know what the number is for.
        non_finite_float_policy: NonFiniteFloatPolicy::PassThrough,
        with_snippet: false,
    };
    let mut roots: Vec<Node> = serde_saphyr::from_multiple_with_options(source, options)
        .map_err(|error| explain(file, source, &error))?;
    if roots.is_empty() {
        roots.push(Node { at: Position::START, kind: Yaml::Null, bytes: 0..0, tagged: false });
    }
    roots.iter_mut().for_each(|root| root.spell(source));
    let texts = parts(source, &roots);
    Ok(roots.into_iter().zip(texts).map(|(root, text)| Document { root, text }).collect())
}

/// The text of each document: up to the line that separates it from the next.
fn parts<'s>(source: &'s str, roots: &[Node]) -> Vec<&'s str> {
    let mut begins = 0;
    let mut parts = Vec::with_capacity(roots.len());
    for next in roots.iter().skip(1) {
        let next = next.bytes.start;
        // YAML has three ends of lines.
        let begins_line = |at: usize| source[..at].ends_with(['\n', '\r']);
        let found =
            source[begins..next].rmatch_indices("---").map(|(at, _)| begins + at).find(|at| begins_line(*at));
        let separator = found.unwrap_or(next);
        parts.push(&source[begins..separator]);
        let line = source[separator..].find(['\n', '\r']).map_or(source.len(), |end| separator + end);
        let end = if source[line..].starts_with("\r\n") { line + 2 } else { line + 1 };
        begins = end.min(next);
    }
    parts.push(&source[begins..]);
    parts
}

/// The library's error in our form: position first, then what is wrong, then the way out.
fn explain(file: &str, source: &str, error: &serde_saphyr::Error) -> Error {
    use serde_saphyr::Error as E;
    let at = error.location().map_or(Position::START, Position::from);
    let say = |message: &str| Error::config(format!("{file}:{at}: {message}"));
    match innermost(error) {
        E::Budget { .. }
        | E::AliasReplayCounterOverflow { .. }
        | E::AliasReplayLimitExceeded { .. }
        | E::AliasExpansionLimitExceeded { .. }
        | E::AliasReplayStackDepthExceeded { .. } => say(TOO_LARGE).hint(TOO_LARGE_HINT),
        E::UnknownAnchor { .. } => say("this alias (`*name`) has no anchor (`&name`) before it")
            .hint("a text that begins with `*` goes into quotes"),
        E::RecursiveReferencesRequireWeakTypes { .. } => say("this alias (`*name`) contains itself"),
        other => {
            let said = UserMessageFormatter.format_message(other);
            // The scanner has a limit of its own.
            if said.contains("recursion limit") {
                return say(TOO_LARGE).hint(TOO_LARGE_HINT);
            }
            let Mistake { at, message, hint } = broken::explain(source, at, &said);
            Error::config(format!("{file}:{at}: {message}")).hint(hint)
        }
    }
}

/// The error itself, without the frames that say through which alias it was reached.
fn innermost(error: &serde_saphyr::Error) -> &serde_saphyr::Error {
    match error.without_snippet() {
        serde_saphyr::Error::AliasError { error, .. } => innermost(error),
        other => other,
    }
}

impl Position {
    /// Where a document begins.
    pub const START: Self = Self { line: 1, column: 1 };
}

impl From<serde_saphyr::Location> for Position {
    fn from(location: serde_saphyr::Location) -> Self {
        Self { line: location.line() as usize, column: location.column() as usize }
    }
}

impl Node {
    /// Where in the source it begins.
    pub fn start(&self) -> usize {
        self.bytes.start
    }

    /// Resolves the plain scalars below this node by their spelling: the library has rules of its own for what is a number.
    fn spell(&mut self, source: &str) {
        let written = source.get(self.bytes.clone()).unwrap_or_default().trim();
        match &mut self.kind {
            Yaml::List(items) => items.iter_mut().for_each(|item| item.spell(source)),
            Yaml::Map(entries) => entries.iter_mut().for_each(|(_, value)| value.spell(source)),
            Yaml::Bool(_, text) | Yaml::Number(_, text) if self.tagged => *text = written.into(),
            // The text of a quoted scalar, or of a block, is not as it is written.
            Yaml::Text(text) if self.tagged || text != written => {}
            Yaml::Null if self.tagged || !written.eq_ignore_ascii_case("null") => {}
            _ => {
                self.kind = match plain::resolve(written) {
                    Plain::Null => Yaml::Null,
                    Plain::Bool(value) => Yaml::Bool(value, written.into()),
                    Plain::Number(value) => Yaml::Number(value, written.into()),
                    Plain::Text => Yaml::Text(written.into()),
                };
            }
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let Spanned { value: Tagged(kind, tag), defined, .. } =
            Spanned::<Tagged<Yaml>>::deserialize(deserializer)?;
        let start = defined.span().byte_offset().unwrap_or(0) as usize;
        let bytes = start..start + defined.span().byte_len().unwrap_or(0) as usize;
        Ok(Self { at: defined.into(), kind, bytes, tagged: tag.is_some() })
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let Spanned { value, defined, .. } = Spanned::<String>::deserialize(deserializer)?;
        Ok(Self { name: value, at: defined.into() })
    }
}

impl<'de> Deserialize<'de> for Yaml {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_any(YamlVisitor)
    }
}

struct YamlVisitor;

impl<'de> Visitor<'de> for YamlVisitor {
    type Value = Yaml;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> std::result::Result<Yaml, E> {
        Ok(Yaml::Null)
    }

    fn visit_bool<E>(self, value: bool) -> std::result::Result<Yaml, E> {
        Ok(Yaml::Bool(value, String::new()))
    }

    fn visit_i64<E>(self, value: i64) -> std::result::Result<Yaml, E> {
        Ok(Yaml::Number(value as f64, String::new()))
    }

    fn visit_u64<E>(self, value: u64) -> std::result::Result<Yaml, E> {
        Ok(Yaml::Number(value as f64, String::new()))
    }

    fn visit_f64<E>(self, value: f64) -> std::result::Result<Yaml, E> {
        Ok(Yaml::Number(value, String::new()))
    }

    fn visit_str<E>(self, value: &str) -> std::result::Result<Yaml, E> {
        Ok(Yaml::Text(value.to_string()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> std::result::Result<Yaml, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            items.push(item);
        }
        Ok(Yaml::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Yaml, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Yaml::Map(entries))
    }
}

//! YAML text to a tree in which every node knows its line and column.
//!
//! The config is walked by hand over this tree, because a derived or untagged `Deserialize` can say
//! neither what was expected nor where. serde-saphyr resolves aliases and merge keys, refuses duplicate
//! keys, and counts events, so that a YAML bomb ends at once.

use super::Position;
use super::plain::{self, Plain};
use crate::error::{Error, Result};
use crate::text;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::options::NonFiniteFloatPolicy;
use serde_saphyr::{MessageFormatter, Spanned, Tagged, UserMessageFormatter};
use std::fmt;

/// A config with a long chat template is some 50 kB: beyond this it is some other file.
pub(crate) const SOURCE_BYTES_MAX: usize = 4 << 20;
/// Parser events, and events replayed from aliases. The largest configs in the wild have a few thousand.
const EVENTS_MAX: usize = 200_000;
/// The schema itself nests eight deep.
const DEPTH_MAX: usize = 32;

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

/// Reads one YAML document.
///
/// # Errors
/// Whatever is not one well-formed YAML document of reasonable size, at its line and column.
pub fn parse(file: &str, source: &str) -> Result<Node> {
    if source.len() > SOURCE_BYTES_MAX {
        let size = text::bytes(source.len() as u64);
        let message = format!("{file}:{}: {size} is too large for a merge config", Position::START);
        return Err(Error::config(message).hint("give the YAML config, not a checkpoint or a tokenizer"));
    }
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: EVENTS_MAX,
            max_depth: DEPTH_MAX,
            // One anchor shared by every slice of a deep stack is no bomb: replayed events are what counts.
            enforce_alias_anchor_ratio: false,
        },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: EVENTS_MAX },
        emit_comments: false,
        // Infinities are refused, where they are, by those who know what the number is for.
        non_finite_float_policy: NonFiniteFloatPolicy::PassThrough,
        with_snippet: false,
    };
    let mut node: Node =
        serde_saphyr::from_str_with_options(source, options).map_err(|error| explain(file, &error))?;
    node.spell(source);
    Ok(node)
}

/// The library's error in our form: position first, then what is wrong, then the way out.
fn explain(file: &str, error: &serde_saphyr::Error) -> Error {
    use serde_saphyr::Error as E;
    let at = error.location().map_or(Position::START, Position::from);
    let say = |message: &str| Error::config(format!("{file}:{at}: {message}"));
    match innermost(error) {
        E::MultipleDocuments { .. } => {
            say("several documents; mergekit-multi files are not supported: give one")
                .hint("put each document into its own file and merge them one after the other")
        }
        E::Budget { .. }
        | E::AliasReplayCounterOverflow { .. }
        | E::AliasReplayLimitExceeded { .. }
        | E::AliasExpansionLimitExceeded { .. }
        | E::AliasReplayStackDepthExceeded { .. } => say(
            "the document is too large or too deeply nested (aliases count as if written out)",
        )
        .hint("a merge config needs no more than a few thousand values: write it without nested aliases"),
        E::DuplicateMappingKey { key: Some(key), .. } => {
            say(&format!("the key {} is given twice", super::quoted(key))).hint("remove one of the two")
        }
        E::UnknownAnchor { .. } => say("this alias (`*name`) has no anchor (`&name`) before it"),
        E::RecursiveReferencesRequireWeakTypes { .. } => say("this alias (`*name`) contains itself"),
        other => {
            let message = UserMessageFormatter.format_message(other);
            say(&format!("not valid YAML: {message}"))
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

//! JSON edited as data and otherwise kept byte by byte: order, spacing, and the spelling of numbers and escapes.
//!
//! An object or array is a list of items, each with its place in the text. An edit replaces a stretch of the text.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use serde::de::{self, Deserialize, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::limits::COMPANION_ENTRIES_MAX;

/// A text, borrowed where it has no escapes.
pub(super) struct Text<'a>(pub(super) Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Texts;
        impl<'de> Visitor<'de> for Texts {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a text")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Owned(text.into())))
            }
        }
        deserializer.deserialize_str(Texts)
    }
}

/// An object or an array as it is written.
pub(super) struct Items<'a> {
    text: &'a str,
    /// Where the text goes on behind its bracket.
    open: usize,
    all: Vec<Item<'a>>,
}

/// A value of an object, with its key, or of an array.
struct Item<'a> {
    key: Cow<'a, str>,
    value: &'a str,
}

impl<'a> Items<'a> {
    /// Takes an object or an array apart that has as many entries as a small file may have.
    pub(super) fn parse(text: &'a str) -> serde_json::Result<Self> {
        Self::parse_up_to(text, COMPANION_ENTRIES_MAX)
    }

    /// The same of one that has no more than these.
    pub(super) fn parse_up_to(text: &'a str, entries_max: usize) -> serde_json::Result<Self> {
        let mut json = serde_json::Deserializer::from_str(text);
        let all = Find { entries_max }.deserialize(&mut json)?;
        json.end()?;
        let open = text.find(['{', '[']).map_or(0, |bracket| bracket + 1);
        Ok(Self { text, open, all })
    }

    /// The value of a key: of the last one, as parsers have it.
    pub(super) fn get(&self, key: &str) -> Option<&'a str> {
        self.all.iter().rev().find(|item| item.key == key).map(|item| item.value)
    }

    /// A key that stands twice.
    pub(super) fn doubled(&self) -> Option<&str> {
        let mut keys: Vec<&str> = self.all.iter().map(|item| &*item.key).collect();
        keys.sort_unstable();
        keys.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| pair[0])
    }

    /// Keys and values, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &'a str)> {
        self.all.iter().map(|item| (&*item.key, item.value))
    }

    /// Where it lies in a text that it is a part of.
    pub(super) fn place(&self, text: &str) -> Range<usize> {
        within(text, self.text)
    }

    fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// The text without the items that are not to be kept.
    pub(super) fn kept(&self, mut keep: impl FnMut(&str, &str) -> bool) -> String {
        let mut out = String::from(&self.text[..self.open]);
        let (mut first, mut end) = (true, self.open);
        for item in &self.all {
            let value = within(self.text, item.value);
            let before = &self.text[end..value.start];
            if keep(&item.key, item.value) {
                let own = before.trim_start().strip_prefix(',').unwrap_or(before);
                if !first {
                    out.push(',');
                }
                out += own;
                out += item.value;
                first = false;
            }
            end = value.end;
        }
        out + &self.text[end..]
    }

    /// The text with further items, each with its key if it is an object, spaced as those that are there; where there are none,
    /// `spaces` are those before an item and before the end, each on a line of its own, and none where all is one line.
    pub(super) fn with(
        &self,
        more: impl IntoIterator<Item = String>,
        spaces: Option<(usize, usize)>,
    ) -> String {
        let end = self.all.last().map_or(self.open, |item| within(self.text, item.value).end);
        let mut out = String::from(&self.text[..end]);
        let before = match self.all.last() {
            Some(_) => self.space_before_last().to_owned(),
            None => spaces.map_or(String::new(), |(spaces, _)| format!("\n{}", " ".repeat(spaces))),
        };
        let mut comma = !self.is_empty();
        for item in more {
            if std::mem::replace(&mut comma, true) {
                out.push(',');
            }
            out += &before;
            out += &item;
        }
        let rest = &self.text[end..];
        if self.is_empty() && rest.trim().len() == rest.len() && comma {
            let outer = spaces.map_or(String::new(), |(_, spaces)| format!("\n{}", " ".repeat(spaces)));
            return out + &outer + rest;
        }
        out + rest
    }

    /// The spaces and line ends between the last item and what stands before it.
    fn space_before_last(&self) -> &str {
        let start = match self.all.len() {
            0 => return "",
            1 => self.open,
            many => within(self.text, self.all[many - 2].value).end,
        };
        let before = &self.text[start..within(self.text, self.all[self.all.len() - 1].value).start];
        let own = before.trim_start().strip_prefix(',').unwrap_or(before);
        &own[..own.len() - own.trim_start().len()]
    }

    /// How many spaces stand before the items, where each has a line of its own.
    pub(super) fn spaces(&self) -> Option<usize> {
        let (_, spaces) = self.space_before_last().rsplit_once('\n')?;
        Some(spaces.len())
    }

    /// The text with a value replaced, or the key added at the end.
    pub(super) fn with_value(&self, key: &str, value: &str) -> String {
        match self.get(key) {
            Some(old) => replaced(self.text, vec![(within(self.text, old), value.into())]),
            None => self.with_keys([(key, value)]),
        }
    }

    /// The text with keys added at the end, of which it has none.
    pub(super) fn with_keys<K: AsRef<str>>(&self, keys: impl IntoIterator<Item = (K, K)>) -> String {
        let is_dense = !self.is_empty() && self.spaces().is_none() && !self.text.contains("\": ");
        let colon = if is_dense { ":" } else { ": " };
        let keys =
            keys.into_iter().map(|(key, value)| format!("{}{colon}{}", quoted(key.as_ref()), value.as_ref()));
        self.with(keys, Some((2, 0)))
    }
}

/// Finds the items of an object or an array, if there are no more than these.
struct Find {
    entries_max: usize,
}

impl Find {
    fn keep<'de, E: de::Error>(&self, items: &mut Vec<Item<'de>>, item: Item<'de>) -> Result<(), E> {
        if items.len() == self.entries_max {
            return Err(E::custom(format!("more than {} entries in one object or list", self.entries_max)));
        }
        items.push(item);
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Find {
    type Value = Vec<Item<'de>>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Find {
    type Value = Vec<Item<'de>>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object or an array")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut items = Vec::new();
        while let Some((Text(key), value)) = map.next_entry::<_, &RawValue>()? {
            self.keep(&mut items, Item { key, value: value.get() })?;
        }
        Ok(items)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut items = Vec::new();
        while let Some(value) = list.next_element::<&RawValue>()? {
            self.keep(&mut items, Item { key: Cow::Borrowed(""), value: value.get() })?;
        }
        Ok(items)
    }
}

/// Where a part of a text lies in it.
///
/// # Panics
/// It is no part of it.
pub(super) fn within(text: &str, part: &str) -> Range<usize> {
    let start = (part.as_ptr() as usize).checked_sub(text.as_ptr() as usize).expect("a part of the text");
    assert!(start + part.len() <= text.len(), "a part of the text");
    start..start + part.len()
}

/// A text with stretches of it replaced, none of which overlap.
pub(super) fn replaced(text: &str, mut edits: Vec<(Range<usize>, String)>) -> String {
    edits.sort_unstable_by_key(|(range, _)| range.start);
    let more: usize = edits.iter().map(|(_, new)| new.len()).sum();
    let mut out = String::with_capacity(text.len() + more);
    let mut end = 0;
    for (range, new) in edits {
        out += &text[end..range.start];
        out += &new;
        end = range.end;
    }
    out + &text[end..]
}

/// A text as JSON.
pub(super) fn quoted(text: &str) -> String {
    serde_json::to_string(text).expect("a text is JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_are_taken_out_and_the_rest_keeps_its_spelling() {
        let text = "{ \"\\u0061\" : 1.0 ,\n  \"b\": [1,  2],\"c\":\"\\u00e9\" }";
        let items = Items::parse(text).unwrap();
        assert_eq!(items.kept(|_, _| true), text.replace(" ,\n", ",\n"));
        assert_eq!(items.kept(|key, _| key != "a"), "{\n  \"b\": [1,  2],\"c\":\"\\u00e9\" }");
        assert_eq!(items.kept(|key, _| key == "c"), "{\"c\":\"\\u00e9\" }");
        assert_eq!(items.kept(|_, _| false), "{ }");
        let list = Items::parse("[\n  1,\n  2,\n  3\n]").unwrap();
        assert_eq!(list.kept(|_, value| value != "3"), "[\n  1,\n  2\n]");
    }

    #[test]
    fn items_are_added_as_those_before_them() {
        let with = |text: &str| Items::parse(text).unwrap().with(["7".into(), "8".into()], Some((4, 2)));
        assert_eq!(with("[\n  1,\n  2\n]"), "[\n  1,\n  2,\n  7,\n  8\n]");
        assert_eq!(with("[1, 2]"), "[1, 2, 7, 8]");
        assert_eq!(with("[1,2]"), "[1,2,7,8]");
        assert_eq!(with("[]"), "[\n    7,\n    8\n  ]");
        let none = Items::parse("[]").unwrap();
        assert_eq!(none.with(["7".into()], None), "[7]");
        assert_eq!(none.with([], Some((4, 2))), "[]");
    }

    #[test]
    fn a_value_is_replaced_in_its_place_or_added() {
        let pretty = Items::parse("{\n  \"a\": 1e5,\n  \"b\": 2\n}\n").unwrap();
        assert_eq!(pretty.with_value("a", "3"), "{\n  \"a\": 3,\n  \"b\": 2\n}\n");
        assert_eq!(pretty.with_value("c", "3"), "{\n  \"a\": 1e5,\n  \"b\": 2,\n  \"c\": 3\n}\n");
        let compact = Items::parse("{\"a\":1}").unwrap();
        assert_eq!(compact.with_value("c", "3"), "{\"a\":1,\"c\":3}");
        assert_eq!(Items::parse("{}").unwrap().with_value("c", "3"), "{\n  \"c\": 3\n}");
        assert_eq!(Items::parse("{\"a\":1,\"a\":2}").unwrap().doubled(), Some("a"));
    }
}

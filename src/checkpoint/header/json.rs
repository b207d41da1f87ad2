//! The JSON of a header, and of an index: what is kept of it, and how much.
//!
//! Whatever it says, reading it takes memory for its longest string, and for the tensors up to the cap. So text is kept
//! only where it belongs and up to its cap, and no message is made of more than that.

use std::fmt;

use indexmap::IndexMap;
use indexmap::map::Entry;
use serde::Deserialize;
use serde::de::{
    DeserializeSeed, Deserializer, Error as _, IntoDeserializer, MapAccess, SeqAccess, Unexpected, Visitor,
};

use crate::dtype::Dtype;
use crate::limits::{
    DTYPE_BYTES_MAX, FILE_NAME_BYTES_MAX, METADATA_BYTES_MAX, NAME_BYTES_MAX, RANK_MAX, TENSORS_MAX,
};
use crate::text::quoted;

/// The entry of a header that names no tensor.
const METADATA: &str = "__metadata__";
const NAME: Text = Text { what: "the tensor name", bytes_max: NAME_BYTES_MAX };
const DTYPE: Text = Text { what: "the dtype", bytes_max: DTYPE_BYTES_MAX };
const FILE_NAME: Text = Text { what: "the file name", bytes_max: FILE_NAME_BYTES_MAX };

/// The records of a header in their order.
///
/// # Errors
/// What is wrong with it, and with which tensor.
pub fn parse_header(json: &str) -> serde_json::Result<IndexMap<String, HeaderEntry>> {
    let mut json = serde_json::Deserializer::from_str(json);
    let records = entries(&mut json, RecordSeed)?;
    json.end().map(|()| records)
}

/// The tensors of an index in their order, each with the name of its file.
///
/// # Errors
/// What is wrong with it, and with which tensor.
pub fn parse_index(json: &[u8]) -> serde_json::Result<IndexMap<String, String>> {
    #[derive(Deserialize)]
    #[serde(expecting = "an object with a weight_map")]
    struct Index {
        #[serde(deserialize_with = "weight_map")]
        weight_map: IndexMap<String, String>,
    }
    fn weight_map<'de, D: Deserializer<'de>>(json: D) -> Result<IndexMap<String, String>, D::Error> {
        entries(json, FILE_NAME)
    }
    serde_json::from_slice(json).map(|NoText(Index { weight_map })| weight_map)
}

/// What the header says of a tensor.
#[derive(Debug, Deserialize)]
#[serde(expecting = "an object of dtype, shape and data_offsets")]
pub struct HeaderEntry {
    #[serde(deserialize_with = "dtype")]
    pub dtype: Dtype,
    #[serde(deserialize_with = "shape")]
    pub shape: Vec<usize>,
    #[serde(deserialize_with = "data_offsets")]
    pub data_offsets: (usize, usize),
}

#[derive(Clone, Copy)]
struct RecordSeed;

impl<'de> DeserializeSeed<'de> for RecordSeed {
    type Value = HeaderEntry;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<HeaderEntry, D::Error> {
        HeaderEntry::deserialize(NoText(deserializer))
    }
}

fn dtype<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Dtype, D::Error> {
    deserializer.deserialize_any(DtypeVisitor)
}

fn shape<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<usize>, D::Error> {
    NoText(deserializer).deserialize_seq(ShapeVisitor)
}

fn data_offsets<'de, D: Deserializer<'de>>(deserializer: D) -> Result<(usize, usize), D::Error> {
    let (NoText(start), NoText(end)) = Deserialize::deserialize(NoText(deserializer))?;
    Ok((start, end))
}

struct DtypeVisitor;

impl<'de> Visitor<'de> for DtypeVisitor {
    type Value = Dtype;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a dtype")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Dtype, E> {
        Dtype::deserialize(DTYPE.capped(text)?.into_deserializer())
    }

    /// Serde's other way to write it: `{"F32": null}`.
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Dtype, A::Error> {
        let Some(name) = map.next_key_seed(DTYPE)? else {
            return Err(A::Error::invalid_length(0, &self));
        };
        let NoText(()) = map.next_value()?;
        self.visit_str(&name)
    }
}

struct ShapeVisitor;

impl<'de> Visitor<'de> for ShapeVisitor {
    type Value = Vec<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a shape")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<usize>, A::Error> {
        let (mut shape, mut rank) = ([0; RANK_MAX], 0);
        while let Some(NoText(length)) = list.next_element()? {
            let too_many = || beyond("the shape has too many dimensions", RANK_MAX, "dimensions");
            *shape.get_mut(rank).ok_or_else(too_many)? = length;
            rank += 1;
        }
        Ok(shape[..rank].to_vec())
    }
}

/// The entries of a JSON object in their order, refusing a name that stands twice (JSON parsers keep the last
/// one in silence, so two readers could see two models). `__metadata__` names no tensor and is dropped.
fn entries<'de, D: Deserializer<'de>, S: DeserializeSeed<'de> + Copy>(
    deserializer: D,
    value: S,
) -> Result<IndexMap<String, S::Value>, D::Error> {
    NoText(deserializer).deserialize_map(EntriesVisitor(value))
}

struct EntriesVisitor<S>(S);

impl<'de, S: DeserializeSeed<'de> + Copy> Visitor<'de> for EntriesVisitor<S> {
    type Value = IndexMap<String, S::Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with one entry per tensor")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let twice = |name: &str| A::Error::custom(format_args!("{} is listed twice", quoted(name)));
        let mut entries = IndexMap::new();
        let mut metadata_seen = false;
        while let Some(name) = map.next_key_seed(NAME)? {
            if name == METADATA {
                map.next_value_seed(Metadata).map_err(|e| in_entry(&name, &e))?;
                if std::mem::replace(&mut metadata_seen, true) {
                    return Err(twice(&name));
                }
                continue;
            }
            if entries.len() == TENSORS_MAX {
                let what = format!("{} is one tensor too many", quoted(&name));
                return Err(beyond(&what, TENSORS_MAX, "tensors"));
            }
            let value = map.next_value_seed(self.0).map_err(|e| in_entry(&name, &e))?;
            match entries.entry(name) {
                Entry::Occupied(entry) => return Err(twice(entry.key())),
                Entry::Vacant(entry) => entry.insert(value),
            };
        }
        Ok(entries)
    }
}

fn in_entry<E: serde::de::Error>(name: &str, cause: &E) -> E {
    E::custom(format_args!("{}: {cause}", quoted(name)))
}

/// What a header says of itself. It must be text by text, as for the crate, but nothing here asks for it.
struct Metadata;

impl<'de> DeserializeSeed<'de> for Metadata {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        NoText(deserializer).deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Metadata {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of texts")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut bytes = 0;
        while let Some((TextBytes(key), TextBytes(value))) = map.next_entry()? {
            bytes += key + value;
            if bytes > METADATA_BYTES_MAX {
                return Err(beyond("keys and values are too long", METADATA_BYTES_MAX, "bytes"));
            }
        }
        Ok(())
    }
}

/// The length of a text, which is not kept.
struct TextBytes(usize);

impl<'de> Deserialize<'de> for TextBytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct LengthVisitor;

        impl Visitor<'_> for LengthVisitor {
            type Value = TextBytes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_str<E>(self, text: &str) -> Result<TextBytes, E> {
                Ok(TextBytes(text.len()))
            }
        }
        deserializer.deserialize_str(LengthVisitor)
    }
}

/// Reads a text that is kept, of at most so many bytes.
#[derive(Clone, Copy)]
struct Text {
    what: &'static str,
    bytes_max: usize,
}

impl Text {
    fn capped<E: serde::de::Error>(self, text: &str) -> Result<&str, E> {
        if text.len() <= self.bytes_max {
            return Ok(text);
        }
        let what = format!("{} {} has {} bytes", self.what, quoted(text), text.len());
        Err(beyond(&what, self.bytes_max, "bytes"))
    }
}

impl<'de> DeserializeSeed<'de> for Text {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Text {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<String, E> {
        self.capped(text).map(str::to_owned)
    }
}

/// The refusal of what goes beyond a cap.
fn beyond<E: serde::de::Error>(what: &str, most: usize, unit: &str) -> E {
    E::custom(format_args!("{what} ({})", cap(most as u64, unit)))
}

/// A cap, as a refusal gives it.
pub fn cap(most: u64, unit: &str) -> String {
    format!("at most {most} {unit} are read; published models stay far below")
}

/// A value that is a list, an object, a whole number or nothing, and what reads one. Where a text stands instead,
/// `serde_json` would copy all of it into its message; this refuses it unquoted.
struct NoText<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for NoText<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        T::deserialize(NoText(deserializer)).map(Self)
    }
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for NoText<D> {
    type Error = D::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_any(NoText(visitor))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

impl<'de, V: Visitor<'de>> Visitor<'de> for NoText<V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.expecting(f)
    }

    fn visit_str<E: serde::de::Error>(self, _: &str) -> Result<V::Value, E> {
        Err(E::invalid_type(Unexpected::Other("a string"), &self))
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<V::Value, E> {
        self.0.visit_unit()
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<V::Value, E> {
        self.0.visit_u64(value)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<V::Value, A::Error> {
        self.0.visit_seq(list)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<V::Value, A::Error> {
        self.0.visit_map(map)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::tensor::Metadata as Theirs;

    /// The message for a header that is refused.
    fn refused(json: &str) -> String {
        parse_header(json).unwrap_err().to_string()
    }

    fn index_refused(json: &str) -> String {
        parse_index(json.as_bytes()).unwrap_err().to_string()
    }

    /// A header of one tensor without data.
    fn header(name: &str, dtype: &str, shape: &str) -> String {
        format!(r#"{{"{name}":{{"dtype":{dtype},"shape":{shape},"data_offsets":[0,0]}}}}"#)
    }

    fn metadata(key: &str, value_bytes: usize) -> String {
        format!(r#"{{"__metadata__":{{"{key}":"{}"}}}}"#, "v".repeat(value_bytes))
    }

    /// A list of zeros.
    fn zeros(count: usize) -> String {
        format!("[{}]", vec!["0"; count].join(","))
    }

    /// `count` empty tensors.
    fn empty_tensors(count: usize) -> String {
        let entry = |i| format!(r#""{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#);
        format!("{{{}}}", (0..count).map(entry).collect::<Vec<_>>().join(","))
    }

    /// An index of `count` tensors.
    fn index(count: usize, name: &str, file: &str) -> String {
        let entries: Vec<String> = (0..count).map(|i| format!(r#""{name}{i}":"{file}""#)).collect();
        format!(r#"{{"weight_map":{{{}}}}}"#, entries.join(","))
    }

    #[test]
    fn a_header_may_reach_every_cap() {
        let accepted = [
            metadata("key", METADATA_BYTES_MAX - 3),
            header("a", r#""U8""#, &zeros(RANK_MAX)),
            header(&"é".repeat(NAME_BYTES_MAX / 2), r#""U8""#, "[0]"),
            header(&"\\u0041".repeat(NAME_BYTES_MAX), r#""U8""#, "[0]"),
            empty_tensors(TENSORS_MAX),
        ];
        for json in accepted {
            assert!(parse_header(&json).is_ok(), "{:?}", parse_header(&json).err());
        }
        // No dtype is as long as its cap.
        let dtype = format!("{:?}", "D".repeat(DTYPE_BYTES_MAX));
        assert!(refused(&header("a", &dtype, "[0]")).contains("unknown variant"));
    }

    #[test]
    fn a_header_beyond_a_cap_is_refused_and_named() {
        let long = format!("{:?}", "D".repeat(DTYPE_BYTES_MAX + 1));
        let most = "at most 16777216 bytes are read; published models stay far below";
        let many_pairs = vec![r#""key":"value""#; METADATA_BYTES_MAX / 8 + 1].join(",");
        let refusals = [
            (metadata("key", METADATA_BYTES_MAX - 2), most),
            (metadata(&"k".repeat(METADATA_BYTES_MAX), 1), "\"__metadata__\": keys and values are too long"),
            (format!(r#"{{"__metadata__":{{{many_pairs}}}}}"#), most),
            (
                header("a", r#""U8""#, &zeros(RANK_MAX + 1)),
                "\"a\": the shape has too many dimensions (at most 64 dim",
            ),
            (
                header(&"n".repeat(NAME_BYTES_MAX + 1), r#""U8""#, "[0]"),
                "nnn\"… has 1025 bytes (at most 1024 bytes are",
            ),
            (header(&"\\u0041".repeat(NAME_BYTES_MAX + 1), r#""U8""#, "[0]"), "the tensor name \"AAA"),
            (header("a", &long, "[0]"), "\"a\": the dtype \"DDD"),
            (header("a", &format!("{{{long}:null}}"), "[0]"), "\" has 33 bytes (at most 32 bytes are"),
            (empty_tensors(TENSORS_MAX + 1), "\"262144\" is one tensor too many (at most 262144 tensors"),
        ];
        for (json, expected) in refusals {
            let message = refused(&json);
            assert!(message.contains(expected) && message.len() < 1000, "{message:.1000}");
        }
    }

    #[test]
    fn lists_are_read_no_further_than_they_may_go() {
        let ones = "1,".repeat(RANK_MAX);
        let endless_shape = format!(r#"{{"a":{{"dtype":"U8","data_offsets":[0,1],"shape":[{ones}1,1"#);
        assert!(refused(&endless_shape).contains("too many dimensions"));
        let endless_offsets = r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1,2"#;
        assert!(refused(endless_offsets).contains("trailing characters"));
    }

    #[test]
    fn an_index_may_reach_its_caps_and_not_go_beyond() {
        let file = "f".repeat(FILE_NAME_BYTES_MAX);
        let name = "n".repeat(NAME_BYTES_MAX - 1);
        assert_eq!(parse_index(index(1, &name, &file).as_bytes()).unwrap().len(), 1);
        assert_eq!(parse_index(index(TENSORS_MAX, "", "f").as_bytes()).unwrap().len(), TENSORS_MAX);
        let refusals = [
            (index(1, "a", &format!("{file}f")), "\"a0\": the file name \"fff"),
            (index(1, "a", &format!("{file}f")), "has 256 bytes (at most 255 bytes are"),
            (index(1, &format!("{name}n"), "f"), "the tensor name \"nnn"),
            (index(TENSORS_MAX + 1, "", "f"), "\"262144\" is one tensor too many"),
        ];
        for (json, expected) in refusals {
            let message = index_refused(&json);
            assert!(message.contains(expected) && message.len() < 1000, "{message:.1000}");
        }
    }

    #[test]
    fn text_in_a_wrong_place_is_not_copied_into_the_message() {
        for letter in ["t", "\\u0074", "\u{7f}"] {
            let text = format!(r#""{}""#, letter.repeat(100_000));
            let places = [
                text.clone(),
                format!(r#"{{"a":{text}}}"#),
                format!(r"{{{text}:1}}"),
                format!(r#"{{"__metadata__":{text}}}"#),
                header("a", &text, "[0]"),
                header("a", &format!("{{{text}:null}}"), "[0]"),
                header("a", &format!(r#"{{"U8":{text}}}"#), "[0]"),
                header("a", r#""U8""#, &text),
                header("a", r#""U8""#, &format!("[{text}]")),
                format!(r#"{{"a":{{"dtype":"U8","shape":[0],"data_offsets":{text}}}}}"#),
                format!(r#"{{"a":{{"dtype":"U8","shape":[0],"data_offsets":[0,{text}]}}}}"#),
                format!(r#"{{"a":[{text}]}}"#),
            ];
            for json in places {
                let message = refused(&json);
                assert!(message.len() < 2000, "{json:.50}: a message of {} bytes", message.len());
            }
            let map = |map: &str| format!(r#"{{"weight_map":{map}}}"#);
            let entry = [format!(r#"{{"a":{text}}}"#), format!(r#"{{{text}:"f"}}"#)];
            for json in [text.clone(), map(&text), map(&entry[0]), map(&entry[1])] {
                let message = index_refused(&json);
                assert!(message.len() < 2000, "{json:.50}: a message of {} bytes", message.len());
            }
        }
    }

    #[test]
    fn what_the_crate_accepts_is_accepted() {
        let (junk, deep) = ("junk".repeat(100_000), format!("{}{}", "[".repeat(100), "]".repeat(100)));
        let unusual = [
            r#"{"__metadata__":null}"#.to_owned(),
            r#"{"__metadata__":{"twice":"","twice":"\u0041"}}"#.to_owned(),
            r#"{"a":["U8",[0],[0,0]]}"#.to_owned(),
            r#"{"":{"data_offsets":[0,0],"shape":[0],"dtype":"U8"}} "#.to_owned(),
            header("a", r#""\u00558""#, "[ 0\n]"),
            header("a", r#"{"U8":null}"#, "[0]"),
            header("a", &format!(r#""U8","{junk}":"{junk}","deep":{deep},"more":{{"a":[1e9,null]}}"#), "[0]"),
        ];
        for json in unusual {
            let theirs = serde_json::from_str::<Theirs>(&json).map(|theirs| theirs.tensors().len());
            let ours = parse_header(&json).map(|ours| ours.len());
            assert_eq!(ours.unwrap(), theirs.unwrap(), "{json:.100}");
        }
    }
}

//! Configs with ranges: a config of which some values are left open, for `mergeforge sweep`.
//!
//! `{range: [0, 1.5]}` stands for any number between two, `{choice: [a, b]}` for one of several values, and a list of names as
//! `merge_method` for one of them. Filling them in changes nothing else of the text.

use std::collections::HashMap;
use std::ops::Range;

use serde_json::{Map, Value as Json};

use super::Position;
use super::keys::OPEN;
use super::yaml::{self, Document, Node, Yaml};
use crate::error::{Error, Result, did_you_mean};
use crate::text::{cut_to, escaped};

/// A config with open values.
#[derive(Debug, Clone)]
pub struct Space {
    /// The file that it was read from.
    pub file: String,
    text: String,
    /// The open values, in the order of the text.
    pub knobs: Vec<Knob>,
}

/// An open value.
#[derive(Debug, Clone, PartialEq)]
pub struct Knob {
    /// What it is called: by the model and the parameter.
    pub name: String,
    /// What it may be.
    pub values: Values,
    /// Where it stands in the text.
    bytes: Range<usize>,
}

/// What an open value may be.
#[derive(Debug, Clone, PartialEq)]
pub enum Values {
    /// Any number from the first to the last.
    Between(f64, f64),
    /// One of several, as they are spelled.
    Among(Vec<String>),
}

impl Knob {
    /// The value in the middle, or the first.
    pub fn middle(&self) -> f64 {
        match &self.values {
            Values::Between(from, to) => self.rounded(0.5 * (from + to)),
            Values::Among(_) => 0.0,
        }
    }

    /// Its value as JSON: a number, or as it is spelled.
    pub fn json(&self, value: f64) -> Json {
        match &self.values {
            Values::Between(..) => value.into(),
            Values::Among(_) => {
                let spelled = self.spelled(value);
                serde_json::from_str(&spelled).unwrap_or_else(|_| spelled.into())
            }
        }
    }

    /// The number for a value as a program gives it.
    ///
    /// # Errors
    /// Kind `Config`: it cannot be that.
    pub fn read(&self, value: &Json) -> Result<f64> {
        let refused = |why: String| {
            let found = cut_to(&escaped(&value.to_string()), 60);
            Err(Error::config(format!("{}: {found} {why}", self.name)))
        };
        match &self.values {
            Values::Between(from, to) => match value.as_f64() {
                // No −0, which another spelling of the same point would have.
                Some(number) if (*from..=*to).contains(&number) => Ok(number + 0.0),
                Some(_) => refused(format!("is outside of {from} … {to}")),
                None => refused("is no number".into()),
            },
            Values::Among(of) => {
                let is_meant = |place: &usize| match self.json(*place as f64) {
                    Json::Number(own) => own.as_f64() == value.as_f64(),
                    own => own == *value,
                };
                match (0..of.len()).find(is_meant) {
                    Some(place) => Ok(place as f64),
                    None => refused(format!("is none of {}", of.join(", "))),
                }
            }
        }
    }

    /// Its value by a number: that itself, or the place of one of several.
    pub fn spelled(&self, value: f64) -> String {
        match &self.values {
            Values::Between(..) => format!("{value}"),
            Values::Among(of) => of[value as usize].clone(),
        }
    }

    /// The nearest value that a config spells in few digits: a step is a thousandth of the range or less.
    pub fn rounded(&self, value: f64) -> f64 {
        match &self.values {
            Values::Between(from, to) => {
                let steps = 10f64.powf((1000.0 / (to - from)).log10().ceil());
                ((value * steps).round() / steps).clamp(*from, *to)
            }
            Values::Among(of) => value.round().clamp(0.0, (of.len() - 1) as f64),
        }
    }
}

impl Space {
    /// Reads a config of one document with open values.
    ///
    /// # Errors
    /// It is no YAML, has several documents or no open value, or one is not written as they are.
    pub fn read(file: &str, text: &str) -> Result<Self> {
        let documents = yaml::parse(file, text)?;
        let [document] = &documents[..] else {
            return Err(Error::config(format!("{file}: it has {} documents", documents.len()))
                .hint("give a config of one merge; name the results of others by their folders"));
        };
        Self::of(file, text, document)?.ok_or_else(|| {
            let message = format!("{file}: no value is left open");
            Error::config(message).hint("write `weight: {range: [0, 1.5]}` for what is to be tried")
        })
    }

    /// The same of any text: of no YAML, of several documents, or of one in which no value is left open, it is none.
    ///
    /// # Errors
    /// An open value is not written as they are.
    pub fn find(file: &str, text: &str) -> Result<Option<Self>> {
        match yaml::parse(file, text).as_deref() {
            Ok([document]) => Self::of(file, text, document),
            _ => Ok(None),
        }
    }

    fn of(file: &str, text: &str, document: &Document) -> Result<Option<Self>> {
        let mut found = Found { file, text, knobs: Vec::new() };
        found.look(&document.root, &mut Vec::new())?;
        let mut knobs = found.knobs;
        if knobs.is_empty() {
            return Ok(None);
        }
        // Behind an alias stands what its anchor has.
        knobs.sort_by_key(|knob| knob.bytes.start);
        knobs.dedup_by_key(|knob| knob.bytes.start);
        let mut times: HashMap<String, usize> = HashMap::new();
        for knob in &mut knobs {
            let times = times.entry(knob.name.clone()).or_insert(0);
            *times += 1;
            if *times > 1 {
                knob.name += &format!(" ({times})");
            }
        }
        Ok(Some(Self { file: file.to_owned(), text: text.to_owned(), knobs }))
    }

    /// The point in the middle of all ranges, with the first of all choices.
    pub fn middle(&self) -> Vec<f64> {
        self.knobs.iter().map(Knob::middle).collect()
    }

    /// That point with each of the methods, the first one first.
    pub fn middles(&self) -> Vec<Vec<f64>> {
        let middle = self.middle();
        let method = self.knobs.iter().zip(0..).find_map(|(knob, place)| match &knob.values {
            Values::Among(of) if knob.name == METHOD => Some((place, of.len())),
            _ => None,
        });
        let Some((place, count)) = method else { return vec![middle] };
        let with = |method: usize| {
            let mut point = middle.clone();
            point[place] = method as f64;
            point
        };
        (0..count).map(with).collect()
    }

    /// How many points there are, if no value is any of a range.
    pub fn points(&self) -> Option<u64> {
        let of = |knob: &Knob| match &knob.values {
            Values::Between(..) => None,
            Values::Among(of) => Some(of.len() as u64),
        };
        self.knobs.iter().map(of).try_fold(1u64, |all, of| all.checked_mul(of?))
    }

    /// The text with its open values.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The config with these values in the places of the open ones.
    pub fn fill(&self, point: &[f64]) -> String {
        let (mut filled, mut done) = (String::with_capacity(self.text.len()), 0);
        for (knob, value) in self.knobs.iter().zip(point) {
            filled += &self.text[done..knob.bytes.start];
            filled += &knob.spelled(*value);
            done = knob.bytes.end;
        }
        filled + &self.text[done..]
    }

    /// The point with these values by their names, as a program gives them.
    ///
    /// # Errors
    /// Kind `Config`: a name is unknown or missing, or a value cannot be that.
    pub fn point(&self, values: &Map<String, Json>) -> Result<Vec<f64>> {
        let names = || self.knobs.iter().map(|knob| knob.name.as_str());
        if let Some(unknown) = values.keys().find(|given| names().all(|name| name != given.as_str())) {
            let all = names().collect::<Vec<_>>().join(", ");
            let hint = did_you_mean(unknown, names()).map(|name| format!("did you mean `{name}`?"));
            let hint = hint.unwrap_or_else(|| format!("the open values are {all}"));
            let unknown = cut_to(&escaped(unknown), 60);
            return Err(Error::config(format!("no open value is called {unknown}")).hint(hint));
        }
        let of = |knob: &Knob| match values.get(&knob.name) {
            Some(value) => knob.read(value),
            None => Err(Error::config(format!("{} is missing", knob.name))
                .hint("a point has a value for each of the open values")),
        };
        self.knobs.iter().map(of).collect()
    }

    /// A point as JSON: its values by their names.
    pub fn json(&self, point: &[f64]) -> Map<String, Json> {
        let named = self.knobs.iter().zip(point);
        named.map(|(knob, value)| (knob.name.clone(), knob.json(*value))).collect()
    }

    /// A point in words.
    pub fn words(&self, point: &[f64]) -> String {
        let word = |(knob, value): (&Knob, &f64)| match &knob.name[..] {
            METHOD => knob.spelled(*value),
            name => format!("{name} {}", knob.spelled(*value)),
        };
        self.knobs.iter().zip(point).map(word).collect::<Vec<_>>().join(", ")
    }
}

struct Found<'t> {
    file: &'t str,
    text: &'t str,
    knobs: Vec<Knob>,
}

impl Found<'_> {
    fn refused(&self, at: Position, why: &str) -> Error {
        Error::config(format!("{}:{at}: {why}", self.file))
            .hint("an open value is written `{range: [0, 1.5]}`, or `{choice: [0.3, 0.5]}`, in braces")
    }

    /// Looks for open values below a node; `path` are the names above it.
    fn look(&mut self, node: &Node, path: &mut Vec<String>) -> Result<()> {
        match &node.kind {
            Yaml::Map(entries) => {
                if let [(key, values)] = &entries[..]
                    && OPEN.contains(&&*key.name)
                {
                    return self.add(node, &key.name, values, path);
                }
                let model = entries.iter().find_map(|(key, value)| match &value.kind {
                    Yaml::Text(name) if key.name == "model" => Some(short(name)),
                    _ => None,
                });
                let above = path.len();
                path.extend(model);
                for (key, value) in entries {
                    if path.is_empty() && key.name == METHOD && matches!(value.kind, Yaml::List(_)) {
                        self.add(value, "choice", value, &[METHOD.to_owned()])?;
                        continue;
                    }
                    path.push(key.name.clone());
                    self.look(value, path)?;
                    path.pop();
                }
                path.truncate(above);
            }
            Yaml::List(items) => items.iter().try_for_each(|item| self.look(item, path))?,
            _ => {}
        }
        Ok(())
    }

    fn add(&mut self, node: &Node, kind: &str, values: &Node, path: &[String]) -> Result<()> {
        let Yaml::List(items) = &values.kind else {
            return Err(self.refused(values.at, &format!("a {kind} is a list")));
        };
        let values = if kind == "range" {
            let ends: Option<Vec<f64>> = items.iter().map(number).collect();
            match ends.as_deref() {
                Some([from, to]) if from < to && (to - from).is_finite() => Values::Between(*from, *to),
                _ => return Err(self.refused(values.at, "a range has two numbers, the smaller one first")),
            }
        } else {
            let spelled: Option<Vec<String>> = items.iter().map(spelled).collect();
            match spelled {
                Some(spelled) if spelled.len() > 1 => Values::Among(spelled),
                _ => {
                    return Err(
                        self.refused(values.at, "a choice has two values or more, each a word or a number")
                    );
                }
            }
        };
        let start = node.start();
        let Some(len) = closed(&self.text[start.min(self.text.len())..]) else {
            return Err(self.refused(node.at, "an open value stands in braces"));
        };
        if let Some(place) = path.iter().find(|part| FIXED.contains(&part.as_str())) {
            return Err(Error::config(format!("{}:{}: {place} cannot be left open", self.file, node.at)).hint(
                "candidates are merges of the same models with the same layers: sweep each choice of those by itself",
            ));
        }
        let said = path.iter().filter(|part| !UNSAID.contains(&part.as_str()));
        let name = said.map(String::as_str).collect::<Vec<_>>().join(" ");
        self.knobs.push(Knob { name, values, bytes: start..start + len });
        Ok(())
    }
}

/// A scalar as it stands in the text.
fn spelled(node: &Node) -> Option<String> {
    match &node.kind {
        Yaml::Text(text) if text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') => Some(text.clone()),
        Yaml::Bool(_, text) | Yaml::Number(_, text) => Some(text.clone()),
        _ => None,
    }
}

/// The key whose values are a list of names.
const METHOD: &str = "merge_method";

/// Keys whose values make another model of a candidate.
const FIXED: &[&str] =
    &["model", "base_model", "layer_range", "lora", "tokenizer", "tokenizer_source", "dtype", "out_dtype"];

/// Keys that add nothing to a name.
const UNSAID: &[&str] = &["parameters", "models", "slices", "sources", "value"];

fn number(node: &Node) -> Option<f64> {
    match node.kind {
        Yaml::Number(value, _) => Some(value),
        _ => None,
    }
}

/// The last part of a model's path.
fn short(name: &str) -> String {
    escaped(name.trim_end_matches('/').rsplit('/').next().unwrap_or(name))
}

/// The bytes of the braces or brackets that a text begins with.
fn closed(text: &str) -> Option<usize> {
    if !text.starts_with(['{', '[']) {
        return None;
    }
    let (mut depth, mut quote) = (0, None);
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (Some(open), _) if c == open => quote = None,
            (None, '"' | '\'') => quote = Some(c),
            (None, '{' | '[') => depth += 1,
            (None, '}' | ']') => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(at + c.len_utf8());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# mine\nmerge_method: [ties, task_arithmetic]\nbase_model: a/base\nmodels:\n  - model: a/medical # first\n    parameters:\n      \
                        weight: {range: [0, 1.5]}\n      density: &d {choice: [0.2, 0.8]}\n  - model: a/chat\n    parameters: {weight: {range: \
                        [-1, 1]}, density: *d}\nparameters: {lambda: {range: [0.5, 1]}}\ndtype: bfloat16\n";

    #[test]
    fn open_values_are_found_and_filled_in() {
        let space = Space::read("c.yml", TEXT).unwrap();
        let names: Vec<&str> = space.knobs.iter().map(|knob| &*knob.name).collect();
        assert_eq!(names, ["merge_method", "medical weight", "medical density", "chat weight", "lambda"]);
        assert_eq!(space.knobs[2].values, Values::Among(vec!["0.2".into(), "0.8".into()]));
        let filled = space.fill(&[1.0, 0.25, 0.0, -0.5, 1.0]);
        let expected = TEXT
            .replace("[ties, task_arithmetic]", "task_arithmetic")
            .replace("{range: [0, 1.5]}", "0.25")
            .replace("{choice: [0.2, 0.8]}", "0.2")
            .replace("{range: [-1, 1]}", "-0.5")
            .replace("{range: [0.5, 1]}", "1");
        assert_eq!(filled, expected);
        assert!(space.words(&[0.0; 5]).starts_with("ties, medical weight 0, "));
        assert_eq!(space.middles(), [[0.0, 0.75, 0.0, 0.0, 0.75], [1.0, 0.75, 0.0, 0.0, 0.75]]);
        assert_eq!(space.knobs[1].rounded(0.123_456), 0.123);
        assert_eq!(space.knobs[1].rounded(9.0), 1.5);
    }

    #[test]
    fn points_are_read_as_programs_give_them() {
        let text = "merge_method: [ties, linear]\na: {range: [0, 1.5]}\nb: {choice: [0.2, 1, true]}\n";
        let space = Space::read("c.yml", text).unwrap();
        let point =
            |text: &str| space.point(serde_json::from_str::<Json>(text).unwrap().as_object().unwrap());
        let found = point(r#"{"a": 0.12345678901, "b": 0.20, "merge_method": "linear"}"#).unwrap();
        assert_eq!(found, [1.0, 0.123_456_789_01, 0.0]);
        assert_eq!(space.point(&space.json(&found)).unwrap(), found);
        let found = point(r#"{"a": -0.0, "b": 1.0, "merge_method": "ties"}"#).unwrap();
        assert_eq!((found[0], found[1].is_sign_negative(), found[2]), (0.0, false, 1.0));
        assert_eq!(point(r#"{"a": 1, "b": true, "merge_method": "ties"}"#).unwrap()[2], 2.0);
        for (given, why, way) in [
            (r#"{"a": 1, "b": 1}"#, "merge_method is missing", "each of the open values"),
            (r#"{"a": 1, "b": 1, "merge_method": "ties", "c": 1}"#, "called c", "are merge_method, a, b"),
            (r#"{"a": 1, "b": 1, "merge_methods": "ties"}"#, "merge_methods", "did you mean `merge_method`?"),
            (r#"{"a": 1.6, "b": 1, "merge_method": "ties"}"#, "a: 1.6 is outside of 0 … 1.5", ""),
            (r#"{"a": "1", "b": 1, "merge_method": "ties"}"#, "a: \"1\" is no number", ""),
            (r#"{"a": 1, "b": 0.3, "merge_method": "ties"}"#, "b: 0.3 is none of 0.2, 1, true", ""),
            (r#"{"a": 1, "b": 1, "merge_method": 0}"#, "merge_method: 0 is none of ties, linear", ""),
        ] {
            let refused = point(given).unwrap_err();
            assert!(refused.message.contains(why), "{}", refused.message);
            assert!(refused.hint.unwrap_or_default().contains(way), "{given}");
        }
    }

    #[test]
    fn what_is_not_written_so_is_refused() {
        for (text, why) in [
            ("merge_method: ties\n", "no value is left open"),
            ("models: [{model: {choice: [a, b]}}]\n", "c.yml:1:18: model cannot be left open"),
            ("a: {range: [-1e308, 1e308]}\n", "a range has two numbers"),
            ("a: {range: [1, 0]}\n", "c.yml:1:12: a range has two numbers"),
            ("a: {range: 3}\n", "a range is a list"),
            ("a: {choice: [1]}\n", "two values or more"),
            ("a:\n  range: [0, 1]\n", "stands in braces"),
            ("a: {range: [0, 1]}\n---\nb: 1\n", "2 documents"),
        ] {
            let refused = Space::read("c.yml", text).unwrap_err();
            assert!(refused.message.contains(why) && refused.hint.is_some(), "{}", refused.message);
        }
    }
}

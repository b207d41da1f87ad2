//! Configs with ranges: a config of which some values are left open, for `mergeforge sweep`.
//!
//! `{range: [0, 1.5]}` stands for any number between two, `{choice: [a, b]}` for one of several values, and a list of names as
//! `merge_method` for one of them. Filling them in changes nothing else of the text.

use std::collections::HashMap;
use std::ops::Range;

use super::Position;
use super::yaml::{self, Node, Yaml};
use crate::error::{Error, Result};
use crate::text::escaped;

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
    pub fn json(&self, value: f64) -> serde_json::Value {
        match &self.values {
            Values::Between(..) => value.into(),
            Values::Among(_) => {
                let spelled = self.spelled(value);
                serde_json::from_str(&spelled).unwrap_or_else(|_| spelled.into())
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
        let mut found = Found { file, text, knobs: Vec::new() };
        found.look(&document.root, &mut Vec::new())?;
        let mut knobs = found.knobs;
        if knobs.is_empty() {
            let message = format!("{file}: no value is left open");
            return Err(
                Error::config(message).hint("write `weight: {range: [0, 1.5]}` for what is to be tried")
            );
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
        Ok(Self { file: file.to_owned(), text: text.to_owned(), knobs })
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

/// The keys of open values.
pub(super) const OPEN: [&str; 2] = ["range", "choice"];

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
        assert_eq!(space.knobs[1].rounded(0.123_456), 0.123);
        assert_eq!(space.knobs[1].rounded(9.0), 1.5);
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

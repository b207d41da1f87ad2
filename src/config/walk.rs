//! The way from the YAML tree to a [`Config`]: the keys at the top, and what all parts of the way share.
//!
//! What cannot be read is collected, and the rest is read all the same: whoever has made several mistakes sees all of them. A
//! reader then returns nothing, and nothing is made of a config with problems.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use indexmap::IndexMap;

use super::broken::{self, Mistake};
use super::ignored::{self, Ignored};
use super::yaml::{self, Document, Key, Node, Yaml};
use super::{Config, Located, Position, Scalar, error_at, foreign, keys, moe, quoted};
use crate::error::{Error, Result};

/// Reads a config from its text.
pub fn read(file: &str, source: &str) -> Result<Config> {
    let mut configs = read_all(file, source)?;
    let Some(second) = configs.get(1) else { return Ok(configs.remove(0)) };
    let message = "several documents, and one is expected here";
    Err(error_at(file, second.at, message)
        .hint("put each document into its own file and merge them one after the other"))
}

/// Reads the configs of a text with one document or several.
pub fn read_all(file: &str, source: &str) -> Result<Vec<Config>> {
    let parsed = yaml::parse(file, source);
    let is_config =
        |document: &Document| ["merge_method", "experts"].iter().any(|key| document.root.has(key));
    if !parsed.as_ref().is_ok_and(|documents| documents.iter().any(is_config))
        && let Some(Mistake { at, message, hint }) = foreign::explain(source)
    {
        return Err(error_at(file, at, message).hint(hint));
    }
    let documents = parsed?;
    moe::refuse_among_merges(file, &documents)?;
    let read = documents.iter().map(|document| read_document(file, source, document));
    let (configs, problems): (Vec<Option<Config>>, Vec<Vec<Error>>) = read.unzip();
    match configs.into_iter().collect::<Option<Vec<_>>>() {
        Some(configs) => {
            let with = |(config, problems)| Config { problems, ..config };
            Ok(configs.into_iter().zip(problems).map(with).collect())
        }
        None => Err(Error::all(problems.concat())),
    }
}

/// What can be read of a document, and what is wrong with it.
fn read_document(file: &str, source: &str, document: &Document) -> (Option<Config>, Vec<Error>) {
    let mut walk = Walk::new(file);
    let config = walk.config(document);
    if let Some(Mistake { at, message, hint }) = broken::odd_indentation(source) {
        // A text that is read all the same may have it where it does no harm.
        if !walk.problems.is_empty() {
            let problem = error_at(file, at, message).hint(hint);
            // Where nothing can be made of the rest, the rest follows from it.
            if config.is_none() {
                return (None, vec![problem]);
            }
            walk.problems.push(problem);
        }
    }
    let warnings = ignored::warnings(file, walk.ignored);
    (config.map(|config| Config { warnings, ..config }), walk.problems)
}

impl Node {
    /// The text of a scalar as it is spelled: a model may be called 123.
    pub(super) fn text(&self) -> Option<&str> {
        match &self.kind {
            Yaml::Text(text) | Yaml::Bool(_, text) | Yaml::Number(_, text) => Some(text),
            Yaml::Null | Yaml::List(_) | Yaml::Map(_) => None,
        }
    }

    pub(super) fn scalar(&self) -> Option<Scalar> {
        match &self.kind {
            Yaml::Null => Some(Scalar::Null),
            Yaml::Bool(value, _) => Some(Scalar::Bool(*value)),
            Yaml::Number(value, _) => Some(Scalar::Number(*value)),
            Yaml::Text(text) => Some(Scalar::Text(text.clone())),
            Yaml::List(_) | Yaml::Map(_) => None,
        }
    }

    /// Whether a value in it is this text.
    pub(super) fn mentions(&self, text: &str) -> bool {
        match &self.kind {
            Yaml::List(items) => items.iter().any(|item| item.mentions(text)),
            Yaml::Map(entries) => entries.iter().any(|(_, value)| value.mentions(text)),
            _ => self.text() == Some(text),
        }
    }

    /// Whether it is a mapping with this key.
    fn has(&self, name: &str) -> bool {
        matches!(&self.kind, Yaml::Map(entries) if entries.iter().any(|(key, _)| key.name == name))
    }

    pub(super) fn is_null(&self) -> bool {
        matches!(self.kind, Yaml::Null)
    }

    /// Whether it holds nothing that could be read: mergekit takes an empty list of inputs as none.
    fn is_empty(&self) -> bool {
        match &self.kind {
            Yaml::List(items) => items.is_empty(),
            Yaml::Map(entries) => entries.is_empty(),
            _ => self.is_null(),
        }
    }
}

/// An opened mapping. A key that holds `null` is the same as one left out.
pub(super) struct Fields<'n> {
    pub at: Position,
    pub entries: &'n [(Key, Node)],
    known: &'static [&'static str],
}

impl<'n> Fields<'n> {
    pub fn entry(&self, name: &str) -> Option<&'n (Key, Node)> {
        self.entries.iter().find(|(key, _)| key.name == name)
    }

    pub fn get(&self, name: &str) -> Option<&'n Node> {
        let (_, node) = self.entry(name)?;
        (!node.is_null()).then_some(node)
    }

    /// What a key has, unless that is an empty list or mapping.
    pub fn filled(&self, name: &str) -> Option<&'n Node> {
        self.get(name).filter(|node| !node.is_empty())
    }

    /// The question whether a key that is not known here was meant to be this one.
    pub fn slip_of(&self, key: &str) -> Option<String> {
        ignored::slip_among(&self.beside(), key)
    }

    /// The keys that are not read.
    pub fn beside(&self) -> Vec<Located<String>> {
        let keys = self.entries.iter().map(|(key, _)| key);
        let unknown = keys.filter(|key| !self.known.contains(&key.name.as_str()));
        unknown.map(|key| Located { value: key.name.clone(), at: key.at }).collect()
    }

    /// Where a key that has a value is written.
    pub fn key_at(&self, name: &str) -> Option<Position> {
        self.get(name).and(self.entry(name)).map(|(key, _)| key.at)
    }
}

/// The way through the tree, collecting what is wrong and what is ignored.
pub(super) struct Walk<'a> {
    pub file: &'a str,
    pub problems: Vec<Error>,
    /// How many of these are about parameters.
    pub of_parameters: usize,
    /// The messages of these.
    reported: HashSet<String>,
    pub ignored: Vec<Located<Ignored>>,
}

impl<'a> Walk<'a> {
    pub fn new(file: &'a str) -> Self {
        Self { file, problems: Vec::new(), of_parameters: 0, reported: HashSet::new(), ignored: Vec::new() }
    }

    fn config(&mut self, document: &Document) -> Option<Config> {
        let top = self.top(&document.root)?;
        self.one_recipe(&top)?;
        self.no_mixture(&top)?;
        let before = self.problems.len();
        self.no_duplicates(&document.root);
        let (merge_method, inputs) = (self.merge_method(&top), self.inputs(&top));
        let base_model = self.optional(&top, "base_model", Self::model);
        let parameters = self.parameters(&top);
        let problems = self.problems.len() - before;
        let config = Config {
            file: self.file.to_string(),
            source: document.text.to_string(),
            at: top.at,
            name: self.name(&top),
            base_model,
            dtype: self.optional(&top, "dtype", Self::dtype),
            out_dtype: self.optional(&top, "out_dtype", Self::dtype),
            parameters,
            tokenizer: self.tokenizer(&top),
            // mergekit takes an empty text as none.
            chat_template: self
                .optional(&top, "chat_template", Self::text)
                .filter(|text| !text.value.is_empty()),
            merge_method: merge_method?,
            inputs: inputs.as_ref()?.0.clone(),
            globs: inputs?.1,
            warnings: Vec::new(),
            beside: top.beside(),
            documents: Arc::default(),
            problems: Vec::new(),
            is_whole: problems == self.of_parameters,
            has_all_parameters: self.of_parameters == 0,
        };
        Some(config)
    }

    pub fn error(&self, at: Position, message: impl fmt::Display) -> Error {
        error_at(self.file, at, message)
    }

    /// Collects a problem, once: aliases bring the same place up again. Nothing is read.
    pub fn refuse<T>(&mut self, problem: Error) -> Option<T> {
        if self.reported.insert(problem.message.clone()) {
            self.problems.push(problem);
        }
        None
    }

    pub fn ignore(&mut self, at: Position, value: Ignored) {
        self.ignored.push(Located { value, at });
    }

    fn top<'n>(&mut self, document: &'n Node) -> Option<Fields<'n>> {
        let hint = "the least is `merge_method: linear` and `models:` with a list of `- model: path`";
        let has_method = |node: &Node| node.has("merge_method");
        let (what, hint) = match &document.kind {
            Yaml::Null => return self.refuse(self.error(document.at, "the config is empty").hint(hint)),
            Yaml::Map(entries) => match entries.iter().find(|(_, node)| has_method(node)) {
                Some((key, node)) if !has_method(document) => {
                    let message = format!("the config stands below the key {}", quoted(&key.name));
                    let hint = "remove that line, and begin `merge_method` at the left";
                    return self.refuse(self.error(node.at, message).hint(hint));
                }
                _ => return self.fields(document, "a config", keys::TOP),
            },
            Yaml::List(items) if items.iter().any(has_method) => {
                ("a list", "remove the `- ` before it, and begin its keys at the left")
            }
            Yaml::List(_) => ("a list", hint),
            _ => ("a text", hint),
        };
        let message =
            format!("a config is a mapping with keys such as merge_method and models, and this is {what}");
        self.refuse(self.error(document.at, message).hint(hint))
    }

    /// Opens a mapping and warns of keys that will not be read.
    pub fn fields<'n>(
        &mut self,
        node: &'n Node,
        what: &str,
        known: &'static [&'static str],
    ) -> Option<Fields<'n>> {
        let Yaml::Map(entries) = &node.kind else {
            let message = format!("expected {what}: a mapping with the keys {}", known.join(", "));
            return self.refuse(self.error(node.at, message));
        };
        for (key, _) in entries.iter().filter(|(key, _)| !known.contains(&key.name.as_str())) {
            self.ignore(key.at, Ignored::Unknown { key: key.name.clone(), known });
        }
        Some(Fields { at: node.at, entries, known })
    }

    /// What a key has, if it is there; nothing as well where that is refused.
    pub fn optional<T>(
        &mut self,
        fields: &Fields,
        name: &str,
        read: impl FnOnce(&mut Self, &Node) -> Option<T>,
    ) -> Option<T> {
        read(self, fields.get(name)?)
    }

    pub fn text(&mut self, node: &Node) -> Option<Located<String>> {
        let Some(text) = node.text() else {
            return self.refuse(self.error(node.at, "expected a text, not a list or a mapping"));
        };
        Some(Located { value: text.to_string(), at: node.at })
    }

    /// What others call the result. mergekit takes whatever stands there in a document by itself.
    fn name(&mut self, top: &Fields) -> Option<Located<String>> {
        let node = top.get("name")?;
        let Some(text) = node.text() else {
            let what = "`name` is no text and is ignored";
            self.ignore(
                node.at,
                Ignored::Needless { what, why: "others would use the merge by it as a model" },
            );
            return None;
        };
        Some(Located { value: text.to_string(), at: node.at })
    }

    /// Refuses recipes pasted one after another.
    fn one_recipe(&mut self, top: &Fields) -> Option<()> {
        let given = |name: &str| {
            let keys = top.entries.iter().map(|(key, _)| key);
            keys.filter(|key| key.name == name).map(|key| key.at).collect::<Vec<_>>()
        };
        let methods = given("merge_method");
        let inputs = ["models", "slices", "modules"].iter().map(|way| given(way).len()).sum::<usize>();
        let &[first, .., last] = &methods[..] else { return Some(()) };
        if inputs < 2 {
            return Some(());
        }
        let count = methods.len();
        let message =
            format!("{count} recipes in one document: `merge_method` is given at {first} and at {last}");
        self.refuse(self.error(last, message).hint(
            "put each into a file of its own; or separate them by lines `---`, and give each but the last a `name:` that \
             others use as a model",
        ))
    }

    /// Refuses keys that a mapping has several times: which of them was meant?
    pub fn no_duplicates(&mut self, node: &Node) {
        match &node.kind {
            Yaml::Map(entries) => {
                let mut places: IndexMap<&str, Vec<Position>> = IndexMap::new();
                entries.iter().for_each(|(key, _)| places.entry(&key.name).or_default().push(key.at));
                for (name, mut at) in places {
                    // Aliases bring a place up again.
                    at.dedup();
                    let [first, second, ..] = at[..] else { continue };
                    let times = if at.len() == 2 { "twice".into() } else { format!("{} times", at.len()) };
                    let message =
                        format!("the key {} is given {times}, at {first} and at {second}", quoted(name));
                    let problem = self.error(second, message).hint("keep one of them");
                    self.refuse::<()>(problem);
                }
                entries.iter().for_each(|(_, value)| self.no_duplicates(value));
            }
            Yaml::List(items) => items.iter().for_each(|item| self.no_duplicates(item)),
            _ => {}
        }
    }

    /// Refuses what is not the config of a merge.
    fn no_mixture(&mut self, top: &Fields) -> Option<()> {
        if top.get("merge_method").is_some() {
            return Some(());
        }
        let is_of_moe = |(key, _): &&(Key, Node)| keys::OF_MIXTURE.contains(&key.name.as_str());
        let Some((key, _)) = top.entries.iter().find(is_of_moe) else { return Some(()) };
        let message = "this is a config of mergekit-moe, which makes one mixture of experts of dense models";
        self.refuse(self.error(key.at, message).hint("use `mergeforge moe`"))
    }

    fn merge_method(&mut self, top: &Fields) -> Option<Located<String>> {
        let Some(node) = top.get("merge_method") else {
            return self.missing(top, "merge_method", "for example `merge_method: linear`");
        };
        self.text(node)
    }

    /// Refuses a mapping without a key that it needs: a slip of it may be there, or the key with nothing behind it.
    pub fn missing<T>(&mut self, fields: &Fields, key: &str, hint: &str) -> Option<T> {
        if let Some((written, _)) = fields.entry(key) {
            let problem = self.error(written.at, format_args!("`{key}` has no value"));
            return self.refuse(problem.hint(hint));
        }
        let hint = fields.slip_of(key).unwrap_or_else(|| hint.into());
        self.refuse(self.error(fields.at, format_args!("`{key}` is missing")).hint(hint))
    }

    /// The entries of a list, without those that are refused.
    pub fn list<T>(
        &mut self,
        node: &Node,
        name: &str,
        mut each: impl FnMut(&mut Self, &Node) -> Option<T>,
    ) -> Option<Vec<T>> {
        match &node.kind {
            Yaml::List(items) if items.is_empty() => {
                self.refuse(self.error(node.at, format_args!("`{name}` is empty")).hint("list at least one"))
            }
            Yaml::List(items) => Some(items.iter().filter_map(|item| each(self, item)).collect()),
            _ => self.refuse(
                self.error(node.at, format_args!("`{name}` must be a list"))
                    .hint("begin each entry with `- `"),
            ),
        }
    }
}

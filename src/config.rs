//! mergekit's YAML as written: what was typed and where, before anyone asks what it means.
//!
//! ```yaml
//! merge_method: ties
//! base_model: org/base@v1.0
//! models:
//!   - model: org/math
//!     parameters: {weight: [0.2, 0.8], density: 0.5}   # a gradient over the layers, and a scalar
//! dtype: bfloat16
//! ```
//!
//! This is the only place that knows YAML. It opens no file and knows no method: `plan` resolves.

mod plain;
mod walk;
mod yaml;

use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::text::escaped;
use indexmap::IndexMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
pub(crate) use yaml::SOURCE_BYTES_MAX;

/// So many warnings of one kind have a line each; more of them are one warning.
pub(crate) const FEW_MAX: usize = 4;

/// A place in the YAML text; both count from 1, columns in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The line.
    pub line: usize,
    /// The character within the line.
    pub column: usize,
}

/// A value and the place where it is written; of a value behind an alias, the place of its anchor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located<T> {
    /// The value.
    pub value: T,
    /// Where it is written.
    pub at: Position,
}

/// A merge config, as written.
#[derive(Debug, Clone)]
pub struct Config {
    /// The file as named on the command line, for messages.
    pub file: String,
    /// The text, verbatim.
    pub source: String,
    /// The method's name, unchecked.
    pub merge_method: Located<String>,
    /// What is merged.
    pub inputs: Inputs,
    /// The models that are listed by a pattern, in the order of appearance.
    pub globs: Vec<ListedGlob>,
    /// The model that task vectors are taken against, or whose files lead.
    pub base_model: Option<Located<ModelRef>>,
    /// The type of floats to store in and, without `out_dtype`, to store.
    pub dtype: Option<Located<Dtype>>,
    /// The type to store.
    pub out_dtype: Option<Located<Dtype>>,
    /// Parameters of the whole merge.
    pub parameters: Parameters,
    /// From `tokenizer_source`, or `source` under `tokenizer`.
    pub tokenizer: Option<Located<TokenizerSource>>,
    /// `auto`, the name of a packaged template, or a Jinja template.
    pub chat_template: Option<Located<String>>,
    /// What was ignored, in order of appearance.
    pub warnings: Vec<Warning>,
}

/// The two ways to say what is merged. Neither is ever empty, but for a list of nothing but patterns.
#[derive(Debug, Clone)]
pub enum Inputs {
    /// Whole models.
    Models(Vec<ListedModel>),
    /// Stacks of layers, from bottom to top.
    Slices(Vec<Slice>),
}

/// An entry of `models`.
#[derive(Debug, Clone)]
pub struct ListedModel {
    /// The model.
    pub model: Located<ModelRef>,
    /// Files that say something of its elements.
    pub files: ElementFiles,
    /// Its parameters, which models that a pattern found share.
    pub parameters: Arc<Parameters>,
}

/// An entry of `models` for every folder that matches a pattern.
#[derive(Debug, Clone)]
pub struct ListedGlob {
    /// The pattern, unchecked.
    pub pattern: Located<String>,
    /// How many entries with a model stand before it.
    pub before: usize,
    /// The parameters of each.
    pub parameters: Arc<Parameters>,
}

/// Paths of files that say something of every element of a model, beside it in its entry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ElementFiles {
    /// Which of them count.
    pub mask: Option<Located<String>>,
    /// How much each matters.
    pub importance: Option<Located<String>>,
}

/// What an entry of `models`, or of a slice's `sources`, says of its model.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    /// The model.
    pub model: &'a Located<ModelRef>,
    /// Files that say something of its elements.
    pub files: &'a ElementFiles,
    /// The slice that it is in.
    pub slice: Option<&'a Slice>,
}

/// An entry of `slices`.
#[derive(Debug, Clone)]
pub struct Slice {
    /// Where the entry begins.
    pub at: Position,
    /// What is merged into these layers; never empty, and of equal lengths where layer ranges are given.
    pub sources: Vec<SliceSource>,
    /// Overrides the base model of the whole merge.
    pub base_model: Option<Located<ModelRef>>,
    /// Parameters of this slice.
    pub parameters: Parameters,
}

/// An entry of a slice's `sources`.
#[derive(Debug, Clone)]
pub struct SliceSource {
    /// The model.
    pub model: Located<ModelRef>,
    /// Its layers, end excluded; never empty, not checked against the model.
    pub layer_range: Option<Located<Range<usize>>>,
    /// Files that say something of the model's elements.
    pub files: ElementFiles,
    /// Parameters of this source.
    pub parameters: Parameters,
}

/// A model: a folder or a name on the hub, displayed as written, `path@revision`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModelRef {
    /// A local folder or `organisation/name`.
    pub path: String,
    /// A branch, tag or commit on the hub.
    pub revision: Option<String>,
}

/// Whose vocabulary the output gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenizerSource {
    /// Every token of every input.
    Union,
    /// The base model's.
    Base,
    /// That model's.
    Model(ModelRef),
}

/// Parameters by name. Names are unchecked: each method knows its own.
pub type Parameters = IndexMap<String, Located<ConfiguredParameter>>;

/// A parameter's value: the first entry whose filter fits a tensor counts. Never empty.
#[derive(Debug, Clone, PartialEq)]
pub struct ConfiguredParameter(pub Vec<Conditional>);

/// A value for the tensors that a filter picks.
#[derive(Debug, Clone, PartialEq)]
pub struct Conditional {
    /// A part of the tensor's name; `None` for every tensor, which is also written `*`.
    pub filter: Option<String>,
    /// The value.
    pub value: WrittenValue,
}

/// One value, or several spread over the layers.
#[derive(Debug, Clone, PartialEq)]
pub enum WrittenValue {
    /// The same everywhere.
    One(Scalar),
    /// Interpolated over the layers of a slice; never empty.
    Gradient(Vec<Scalar>),
}

/// A scalar; `Null` stands for "not set", as in mergekit.
#[derive(Debug, Clone, PartialEq)]
pub enum Scalar {
    /// `null`, `~`, or nothing.
    Null,
    /// `true`, `no`, `on` and the like, unquoted.
    Bool(bool),
    /// A number, infinities and NaN included.
    Number(f64),
    /// Anything else, and anything quoted.
    Text(String),
}

/// Something that was ignored and may be a slip.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// Begins with `file:line:column: `, and ends with what was probably meant.
    pub message: String,
}

impl Config {
    /// Every entry of a model, in order.
    pub fn entries(&self) -> Vec<Entry<'_>> {
        let mut entries = Vec::new();
        match &self.inputs {
            Inputs::Models(models) => entries.extend(models.iter().map(|listed| Entry {
                model: &listed.model,
                files: &listed.files,
                slice: None,
            })),
            Inputs::Slices(slices) => {
                for slice in slices {
                    entries.extend(slice.sources.iter().map(|source| Entry {
                        model: &source.model,
                        files: &source.files,
                        slice: Some(slice),
                    }));
                }
            }
        }
        entries
    }

    /// Every scope of parameters, and whether it belongs to one model.
    pub fn scopes(&self) -> Vec<(bool, &Parameters)> {
        let mut scopes = vec![(false, &self.parameters)];
        match &self.inputs {
            Inputs::Models(models) => {
                scopes.extend(models.iter().map(|input| (true, &*input.parameters)));
                scopes.extend(self.globs.iter().map(|glob| (true, &*glob.parameters)));
            }
            Inputs::Slices(slices) => {
                for slice in slices {
                    scopes.push((false, &slice.parameters));
                    scopes.extend(slice.sources.iter().map(|source| (true, &source.parameters)));
                }
            }
        }
        scopes
    }

    /// Reads a config from its text.
    ///
    /// # Errors
    /// The first thing that is not as mergekit's schema has it, at its line and column.
    pub fn parse(file: &str, source: &str) -> Result<Config> {
        walk::read(file, source)
    }

    /// A config error at a place in this file.
    pub fn error_at(&self, at: Position, message: impl fmt::Display) -> Error {
        error_at(&self.file, at, message)
    }
}

fn error_at(file: &str, at: Position, message: impl fmt::Display) -> Error {
    Error::config(format!("{file}:{at}: {message}"))
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

impl fmt::Display for ModelRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path)?;
        self.revision.iter().try_for_each(|revision| write!(f, "@{revision}"))
    }
}

impl Scalar {
    /// The number meant, as pydantic has it: true is 1, and text counts if it spells a number, `1e5` or `inf`, perhaps with
    /// single underscores.
    pub fn as_number(&self) -> Option<f64> {
        match self {
            Scalar::Null => None,
            Scalar::Bool(value) => Some(f64::from(u8::from(*value))),
            Scalar::Number(value) => Some(*value),
            Scalar::Text(text) => {
                text.trim().parse().ok().or_else(|| without_underscores(text)?.parse().ok())
            }
        }
    }

    /// The truth value meant, as pydantic has it: 0 and 1 count, and text such as "yes" or "off".
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Scalar::Bool(value) => Some(*value),
            Scalar::Number(value) if *value == 0.0 => Some(false),
            Scalar::Number(value) if *value == 1.0 => Some(true),
            Scalar::Null | Scalar::Number(_) => None,
            Scalar::Text(text) => match text.to_lowercase().as_str() {
                "true" | "t" | "yes" | "y" | "on" | "1" => Some(true),
                "false" | "f" | "no" | "n" | "off" | "0" => Some(false),
                _ => None,
            },
        }
    }
}

fn without_underscores(number: &str) -> Option<String> {
    let misplaced = number.starts_with('_') || number.ends_with('_') || number.contains("__");
    (!misplaced).then(|| number.replace('_', ""))
}

/// Text from the config, fit for a one-line message: in backticks and cut.
fn quoted(text: &str) -> String {
    let short: String = text.chars().take(80).collect();
    let more = if short.len() < text.len() { "…" } else { "" };
    format!("`{}{more}`", escaped(&short))
}

#[cfg(test)]
mod tests;

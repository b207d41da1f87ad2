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

mod broken;
mod foreign;
mod ignored;
mod inputs;
pub mod keys;
pub mod moe;
mod plain;
mod references;
mod space;
mod tokenizer;
mod values;
mod walk;
mod yaml;

pub use space::{Knob, Space, Values};

use crate::dtype::Dtype;
use crate::error::{About, Error, Result, slip_of};
use crate::text::escaped;
use indexmap::IndexMap;
use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

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
    /// The file as named on the command line, for messages; empty where the command line itself is the config.
    pub file: String,
    /// The text, verbatim; of several documents, this one's.
    pub source: String,
    /// Where it begins.
    pub at: Position,
    /// What other documents of the file call its result.
    pub name: Option<Located<String>>,
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
    /// From `tokenizer_source` or `tokenizer`.
    pub tokenizer: Option<Tokenizer>,
    /// `auto`, the name of a packaged template, or a Jinja template.
    pub chat_template: Option<Located<String>>,
    /// What was ignored, in order of appearance.
    pub warnings: Vec<Warning>,
    /// The keys at the top that are not read.
    pub beside: Vec<Located<String>>,
    /// The names of the documents of its file, where it has several.
    pub documents: Arc<Vec<String>>,
    /// What cannot be read and is left out. A config that has such problems is refused together with all that can be known to be
    /// wrong with the rest; [`Config::parse`] returns none.
    pub problems: Vec<Error>,
    /// Whether method, inputs and base are as written: none of the problems is one of theirs, or of a key that is given several
    /// times.
    pub is_whole: bool,
    /// Whether the same is true of all parameters.
    pub has_all_parameters: bool,
}

/// The three ways to say what is merged. None is ever empty, but for a list of nothing but patterns.
#[derive(Debug, Clone)]
pub enum Inputs {
    /// Whole models.
    Models(Vec<ListedModel>),
    /// Stacks of layers, from bottom to top.
    Slices(Vec<Slice>),
    /// Parts of models, such as a language model and a vision tower, each merged by itself.
    Modules(Vec<Module>),
}

/// An entry of `modules`.
#[derive(Debug, Clone)]
pub struct Module {
    /// Its name, unchecked.
    pub name: Located<String>,
    /// Where the entry's mapping begins.
    pub at: Position,
    /// Models or slices.
    pub inputs: Inputs,
    /// Parameters of this module.
    pub parameters: Parameters,
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
    /// What stands beside the model and not under `parameters`, and is not read.
    pub beside: Vec<Located<String>>,
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
    /// Its own parameters.
    pub parameters: &'a Parameters,
    /// What stands beside it and is not read.
    pub beside: &'a [Located<String>],
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
    /// What stands beside the model and not under `parameters`, and is not read.
    pub beside: Vec<Located<String>>,
}

/// A model: a folder or a name on the hub, perhaps with an adapter. Displayed as `path@revision+lora@revision`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModelRef {
    /// A local folder or `organisation/name`.
    pub path: String,
    /// A branch, tag or commit on the hub.
    pub revision: Option<String>,
    /// The `LoRA` adapter that is applied to it.
    pub lora: Option<AdapterRef>,
}

/// An adapter: a folder or a name on the hub, displayed as `path@revision`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AdapterRef {
    /// A local folder or `organisation/name`.
    pub path: String,
    /// A branch, tag or commit on the hub.
    pub revision: Option<String>,
}

/// What is asked for of the output's tokenizer.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    /// Where it is asked for.
    pub at: Position,
    /// Whose vocabulary the output gets.
    pub source: TokenizerSource,
    /// Settings of single tokens, in the order of appearance.
    pub tokens: IndexMap<String, Located<TokenSetting>>,
    /// The rows of embeddings are filled up to a multiple of this; at least 1.
    pub pad_to_multiple_of: Option<Located<u64>>,
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

/// What is asked for of one token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenSetting {
    /// The row of models that have none.
    pub source: Option<TokenRow>,
    /// Whether it is the row of all models, of those that have one too.
    pub force: bool,
}

/// A row of an embedding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenRow {
    /// The same token's, of that model.
    Model(ModelRef),
    /// That token's, of that model.
    ModelToken {
        /// The model.
        model: ModelRef,
        /// The token.
        token: Token,
    },
    /// Nothing but 0.
    Zero,
}

/// A token of a vocabulary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Token {
    /// By its text.
    Text(String),
    /// By its number.
    Id(u64),
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
    /// Begins with `file:line:column: `, and ends with what was probably meant. Of many things the first few are named.
    pub message: String,
    /// The same of each thing by itself, whose number only the length of the file limits.
    pub each: Vec<String>,
}

impl Inputs {
    /// Every entry of a model, in order.
    pub fn entries(&self) -> Vec<Entry<'_>> {
        match self {
            Inputs::Models(models) => models
                .iter()
                .map(|listed| Entry {
                    model: &listed.model,
                    files: &listed.files,
                    parameters: &listed.parameters,
                    beside: &listed.beside,
                    slice: None,
                })
                .collect(),
            Inputs::Slices(slices) => slices.iter().flat_map(Slice::entries).collect(),
            Inputs::Modules(modules) => modules.iter().flat_map(|module| module.inputs.entries()).collect(),
        }
    }

    /// The stacks of layers, of whichever module.
    pub fn slices(&self) -> Vec<&Slice> {
        match self {
            Inputs::Models(_) => Vec::new(),
            Inputs::Slices(slices) => slices.iter().collect(),
            Inputs::Modules(modules) => modules.iter().flat_map(|module| module.inputs.slices()).collect(),
        }
    }

    /// Every scope of parameters, and whether it belongs to one model.
    fn scopes(&self) -> Vec<(bool, &Parameters)> {
        match self {
            Inputs::Models(models) => models.iter().map(|input| (true, &*input.parameters)).collect(),
            Inputs::Slices(slices) => slices.iter().flat_map(Slice::scopes).collect(),
            Inputs::Modules(modules) => modules
                .iter()
                .flat_map(|module| [vec![(false, &module.parameters)], module.inputs.scopes()].concat())
                .collect(),
        }
    }
}

impl Slice {
    fn entries(&self) -> impl Iterator<Item = Entry<'_>> {
        self.sources.iter().map(|source| Entry {
            model: &source.model,
            files: &source.files,
            parameters: &source.parameters,
            beside: &source.beside,
            slice: Some(self),
        })
    }

    fn scopes(&self) -> impl Iterator<Item = (bool, &Parameters)> {
        let sources = self.sources.iter().map(|source| (true, &source.parameters));
        std::iter::once((false, &self.parameters)).chain(sources)
    }
}

impl Config {
    /// Every entry of a model, in order.
    pub fn entries(&self) -> Vec<Entry<'_>> {
        self.inputs.entries()
    }

    /// Every scope of parameters, and whether it belongs to one model.
    pub fn scopes(&self) -> Vec<(bool, &Parameters)> {
        let of_globs = self.globs.iter().map(|glob| (true, &*glob.parameters));
        std::iter::once((false, &self.parameters)).chain(self.inputs.scopes()).chain(of_globs).collect()
    }

    /// Reads a config from its text.
    ///
    /// # Errors
    /// All that is not as mergekit's schema has it, each at its line and column.
    pub fn parse(file: &str, source: &str) -> Result<Config> {
        walk::read(file, source)?.without_problems()
    }

    /// Itself, if all of it could be read.
    fn without_problems(self) -> Result<Self> {
        if self.problems.is_empty() { Ok(self) } else { Err(Error::all(self.problems)) }
    }

    /// The document of which a model's name is probably a slip.
    pub(crate) fn meant_document(&self, model: &str) -> Option<&str> {
        /// So many are compared with the name.
        const DOCUMENTS_MAX: usize = 256;
        slip_of(model, self.documents.iter().take(DOCUMENTS_MAX).map(String::as_str))
    }

    /// A config error at a place in this file.
    pub fn error_at(&self, at: Position, message: impl fmt::Display) -> Error {
        error_at(&self.file, at, message)
    }
}

/// Reads the configs of a text that has several documents.
///
/// # Errors
/// All that is not as mergekit's schema has it, each at its line and column.
pub fn parse_all(file: &str, source: &str) -> Result<Vec<Config>> {
    read_all(file, source)?.into_iter().map(Config::without_problems).collect()
}

/// Reads what can be read of such a text: what cannot is among the problems of its config.
///
/// # Errors
/// Nothing can be made of a document: all that is wrong with the text.
pub fn read_all(file: &str, source: &str) -> Result<Vec<Config>> {
    walk::read_all(file, source)
}

/// Reads what can be read of a text with one document, likewise.
///
/// # Errors
/// Those of [`read_all`], and that there are several.
pub fn read(file: &str, source: &str) -> Result<Config> {
    walk::read(file, source)
}

/// The text of a config from its bytes.
///
/// # Errors
/// They are not UTF-8, at the line and column where that ends.
pub fn decoded(file: &str, bytes: Vec<u8>) -> Result<String> {
    String::from_utf8(bytes).map_err(|error| {
        let known = String::from_utf8_lossy(&error.as_bytes()[..error.utf8_error().valid_up_to()]);
        let line = known.rsplit('\n').next().unwrap_or_default();
        let at = Position { line: known.matches('\n').count() + 1, column: line.chars().count() + 1 };
        let utf16 = [[0xff, 0xfe], [0xfe, 0xff]].iter().any(|mark| error.as_bytes().starts_with(mark));
        let (message, hint) = if utf16 {
            ("this is text in UTF-16", "save it as UTF-8, as the editor's `Save as` offers")
        } else {
            (
                "from here on this is not text in UTF-8",
                "save it as UTF-8; comments with `ü` or `é` are often the reason",
            )
        };
        error_at(file, at, message).hint(hint)
    })
}

fn error_at(file: &str, at: Position, message: impl fmt::Display) -> Error {
    // What a command line says has no place that could be named.
    if file.is_empty() {
        return Error::config(message.to_string()).about(About::Place(at.line, at.column));
    }
    let error = Error::config(format!("{file}:{at}: {message}")).in_file(Path::new(file));
    error.about(About::Place(at.line, at.column))
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

impl ModelRef {
    /// The model without its adapter.
    #[must_use]
    pub fn base(&self) -> Self {
        Self { lora: None, ..self.clone() }
    }

    /// Whether it is written as a name on the hub, `organisation/name`.
    pub fn is_on_hub(&self) -> bool {
        let mut parts = self.path.split('/');
        let plain = |part: &str| !part.is_empty() && !part.starts_with(['.', '~']) && !part.contains('\\');
        parts.next().is_some_and(plain) && parts.next().is_some_and(plain) && parts.next().is_none()
    }
}

impl fmt::Display for ModelRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        revisioned(f, &self.path, self.revision.as_deref())?;
        self.lora.iter().try_for_each(|lora| write!(f, "+{lora}"))
    }
}

impl fmt::Display for AdapterRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        revisioned(f, &self.path, self.revision.as_deref())
    }
}

fn revisioned(f: &mut fmt::Formatter<'_>, path: &str, revision: Option<&str>) -> fmt::Result {
    f.write_str(path)?;
    revision.iter().try_for_each(|revision| write!(f, "@{revision}"))
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

impl fmt::Display for Scalar {
    /// As it is quoted in a message.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Scalar::Null => f.write_str("null"),
            Scalar::Bool(value) => write!(f, "{value}"),
            Scalar::Number(value) if value.is_finite() && value.abs() >= 1e16 => write!(f, "{value:e}"),
            Scalar::Number(value) => write!(f, "{value}"),
            Scalar::Text(text) => f.write_str(&quoted(text)),
        }
    }
}

/// Text from the config, fit for a one-line message: in backticks and cut.
fn quoted(text: &str) -> String {
    let short: String = text.chars().take(80).collect();
    let more = if short.len() < text.len() { "…" } else { "" };
    format!("`{}{more}`", escaped(&short))
}

#[cfg(test)]
mod tests;

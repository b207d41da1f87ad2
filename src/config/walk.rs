//! The way from the YAML tree to a [`Config`]: which keys there are, and in which forms their values come.

use super::yaml::{self, Key, Node, Yaml};
use super::{
    Conditional, Config, ConfiguredParameter, ElementFiles, Inputs, ListedGlob, ListedModel, Located,
    ModelRef, Parameters, Position, Scalar, Slice, SliceSource, TokenizerSource, Warning, WrittenValue,
    error_at, quoted,
};
use crate::dtype::Dtype;
use crate::error::{Error, Result, did_you_mean};
use indexmap::IndexMap;
use std::fmt;
use std::ops::Range;

const TOP_KEYS: &[&str] = &[
    "merge_method",
    "models",
    "slices",
    "modules",
    "base_model",
    "dtype",
    "out_dtype",
    "parameters",
    "tokenizer_source",
    "tokenizer",
    "chat_template",
    // mergekit-multi names its documents; a single one may keep its name.
    "name",
];
/// Named in mergekit's README, but gone from its schema.
const LEGACY_KEYS: &[&str] = &["embed_slerp", "input_model_parameters"];
/// The parameters of mergekit's methods and of ours, which are often written beside `parameters` instead of under it.
const PARAMETERS: &[&str] = &[
    "agree",
    "alpha",
    "balance",
    "decay",
    "density",
    "eps",
    "epsilon",
    "filter_wise",
    "floor",
    "gamma",
    "int8_mask",
    "lambda",
    "lines_alpha",
    "lines_beta",
    "max_iter",
    "normalize",
    "normalize_weights",
    "nuslerp_flatten",
    "nuslerp_row_wise",
    "r",
    "rescale",
    "scale",
    "select_topk",
    "t",
    "tall",
    "tol",
    "weight",
    "weights",
    "window",
];
/// The keys of files that say something of a model's elements. Where they are not read, they stand in the wrong place.
const ELEMENT_FILES: &[&str] = &["mask", "importance"];
/// Keys of mergekit-moe's configs, whose `experts` become one model.
const MOE_KEYS: &[&str] = &["experts", "gate_mode"];
const PARAMETER_FORMS: &str =
    "expected a number, a list of numbers (a gradient over the layers) or a list of {filter, value}";
const DTYPES: &[&str] = &["bfloat16", "float16", "float32", "float64"];
/// So many unknown keys are named.
const NAMED_MAX: usize = 4;
const LITERAL_PATH_HINT: &str = "a path that contains `@` or `+` is written {model: {path: …}}";
/// Far beyond any model, and exact in `f64`.
const LAYERS_MAX: f64 = 1e6;

/// Reads a config from its text.
pub fn read(file: &str, source: &str) -> Result<Config> {
    let document = yaml::parse(file, source)?;
    let mut walk = Walk { file, ignored: Vec::new() };
    let top = walk.document(&document)?;
    let merge_method = walk.merge_method(&top)?;
    let (inputs, globs) = walk.inputs(&top)?;
    Ok(Config {
        file: file.to_string(),
        source: source.to_string(),
        merge_method,
        inputs,
        globs,
        base_model: walk.optional(&top, "base_model", Walk::model)?,
        dtype: walk.optional(&top, "dtype", |walk, node| walk.dtype(node))?,
        out_dtype: walk.optional(&top, "out_dtype", |walk, node| walk.dtype(node))?,
        parameters: walk.parameters(&top)?,
        tokenizer: walk.tokenizer(&top)?,
        chat_template: walk.optional(&top, "chat_template", Walk::text)?,
        warnings: walk.into_warnings(),
    })
}

impl Node {
    /// The text of a scalar as it is spelled: a model may be called 123.
    fn text(&self) -> Option<&str> {
        match &self.kind {
            Yaml::Text(text) | Yaml::Bool(_, text) | Yaml::Number(_, text) => Some(text),
            Yaml::Null | Yaml::List(_) | Yaml::Map(_) => None,
        }
    }

    fn scalar(&self) -> Option<Scalar> {
        match &self.kind {
            Yaml::Null => Some(Scalar::Null),
            Yaml::Bool(value, _) => Some(Scalar::Bool(*value)),
            Yaml::Number(value, _) => Some(Scalar::Number(*value)),
            Yaml::Text(text) => Some(Scalar::Text(text.clone())),
            Yaml::List(_) | Yaml::Map(_) => None,
        }
    }
}

/// An opened mapping. A key that holds `null` is the same as one left out.
struct Fields<'n> {
    at: Position,
    entries: &'n [(Key, Node)],
}

impl<'n> Fields<'n> {
    fn entry(&self, name: &str) -> Option<&'n (Key, Node)> {
        self.entries.iter().find(|(key, _)| key.name == name)
    }

    fn get(&self, name: &str) -> Option<&'n Node> {
        let (_, node) = self.entry(name)?;
        (!matches!(node.kind, Yaml::Null)).then_some(node)
    }

    /// The question whether a key that is not known here was meant to be this one.
    fn slip_of(&self, key: &str) -> Option<String> {
        let is_slip = |typed: &&Key| typed.name != key && near(&typed.name, &[key]).is_some();
        let slip = self.entries.iter().map(|(typed, _)| typed).find(is_slip)?;
        Some(format!("did you mean `{key}` by {}, at {}?", quoted(&slip.name), slip.at))
    }

    /// Where a key that has a value is written.
    fn key_at(&self, name: &str) -> Option<Position> {
        self.get(name).and(self.entry(name)).map(|(key, _)| key.at)
    }
}

/// Something that is ignored.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Ignored {
    /// A key that is not read, with those that are read in its place.
    Unknown { key: String, known: &'static [&'static str] },
    /// A key of mergekit's that changes nothing here: what is said of it, and why.
    Needless { what: &'static str, why: &'static str },
}

impl Ignored {
    /// What is ignored for one reason is of a kind: all unknown keys, or one key of mergekit's at several places.
    fn kind(&self) -> Option<&'static str> {
        match self {
            Self::Unknown { .. } => None,
            Self::Needless { what, .. } => Some(what),
        }
    }

    /// The key, and what was probably meant.
    fn key(&self) -> String {
        match self {
            Self::Unknown { key, known } => quoted(key) + &meant(key, known),
            Self::Needless { what, .. } => (*what).into(),
        }
    }
}

/// What was probably meant by an unknown key, in parentheses.
fn meant(key: &str, known: &[&str]) -> String {
    if LEGACY_KEYS.contains(&key) {
        return " (mergekit ignores it too)".into();
    }
    if ELEMENT_FILES.contains(&key) {
        return " (it belongs in a model's entry, beside `model:`)".into();
    }
    if known.contains(&"parameters") && PARAMETERS.contains(&key) {
        return " (it belongs under `parameters:`)".into();
    }
    near(key, known).map_or(String::new(), |near| format!(" (did you mean `{near}`?)"))
}

/// One line for all that is ignored for one reason.
fn listed(all: &[&Located<Ignored>]) -> String {
    let (first, others) = (all[0], &all[1..]);
    match &first.value {
        Ignored::Needless { what, why } if others.is_empty() => format!("{what} ({why})"),
        Ignored::Needless { what, why } => format!("{what} ({why}; and {} more like it)", others.len()),
        Ignored::Unknown { .. } if others.is_empty() => {
            format!("unknown key {} is ignored", first.value.key())
        }
        Ignored::Unknown { .. } => {
            let named =
                others.iter().take(NAMED_MAX - 1).map(|key| format!(", at {} {}", key.at, key.value.key()));
            let named: String = std::iter::once(first.value.key()).chain(named).collect();
            let more = match all.len().saturating_sub(NAMED_MAX) {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            format!("{} unknown keys are ignored: {named}{more}", all.len())
        }
    }
}

/// An entry of `models`.
enum Entry {
    Model(ListedModel),
    Glob(ListedGlob),
}

/// The way through the tree, collecting what is ignored.
struct Walk<'a> {
    file: &'a str,
    ignored: Vec<Located<Ignored>>,
}

impl Walk<'_> {
    fn error(&self, at: Position, message: impl fmt::Display) -> Error {
        error_at(self.file, at, message)
    }

    fn ignore(&mut self, at: Position, value: Ignored) {
        self.ignored.push(Located { value, at });
    }

    /// Aliases bring the same place up again: it is warned of once. All of a kind are one warning, at the first place.
    fn into_warnings(mut self) -> Vec<Warning> {
        self.ignored.sort_by_key(|ignored| ignored.at);
        self.ignored.dedup();
        let mut kinds: IndexMap<_, Vec<&Located<Ignored>>> = IndexMap::new();
        self.ignored.iter().for_each(|ignored| kinds.entry(ignored.value.kind()).or_default().push(ignored));
        let warning = |all: &Vec<&Located<Ignored>>| Warning {
            message: format!("{}:{}: {}", self.file, all[0].at, listed(all)),
        };
        kinds.values().map(warning).collect()
    }

    fn document<'n>(&mut self, document: &'n Node) -> Result<Fields<'n>> {
        let hint = "the least is `merge_method: linear` and `models:` with a list of `- model: path`";
        match &document.kind {
            Yaml::Null => Err(self.error(document.at, "the config is empty").hint(hint)),
            Yaml::Map(_) => self.fields(document, "a config", TOP_KEYS),
            _ => Err(self
                .error(document.at, "a config is a mapping with keys such as merge_method and models")
                .hint(hint)),
        }
    }

    /// Opens a mapping and warns of keys that will not be read.
    fn fields<'n>(
        &mut self,
        node: &'n Node,
        what: &str,
        known: &'static [&'static str],
    ) -> Result<Fields<'n>> {
        let Yaml::Map(entries) = &node.kind else {
            let message = format!("expected {what}: a mapping with the keys {}", known.join(", "));
            return Err(self.error(node.at, message));
        };
        for (key, _) in entries.iter().filter(|(key, _)| !known.contains(&key.name.as_str())) {
            self.ignore(key.at, Ignored::Unknown { key: key.name.clone(), known });
        }
        Ok(Fields { at: node.at, entries })
    }

    fn optional<T>(
        &mut self,
        fields: &Fields,
        name: &str,
        read: impl FnOnce(&mut Self, &Node) -> Result<T>,
    ) -> Result<Option<T>> {
        fields.get(name).map(|node| read(self, node)).transpose()
    }

    fn text(&mut self, node: &Node) -> Result<Located<String>> {
        let text =
            node.text().ok_or_else(|| self.error(node.at, "expected a text, not a list or a mapping"))?;
        Ok(Located { value: text.to_string(), at: node.at })
    }

    fn merge_method(&mut self, top: &Fields) -> Result<Located<String>> {
        let Some(node) = top.get("merge_method") else {
            if let Some((key, _)) = top.entries.iter().find(|(key, _)| MOE_KEYS.contains(&key.name.as_str()))
            {
                let message = "this is a config of mergekit-moe, which makes one mixture of experts of dense models: not supported";
                return Err(self.error(key.at, message).hint("a config of a merge has a `merge_method`"));
            }
            return Err(self.missing(top, "merge_method", "for example `merge_method: linear`"));
        };
        self.text(node)
    }

    /// The error of a required key that is not there: a slip of it may be.
    fn missing(&self, fields: &Fields, key: &str, hint: &str) -> Error {
        let hint = fields.slip_of(key).unwrap_or_else(|| hint.into());
        self.error(fields.at, format_args!("`{key}` is missing")).hint(hint)
    }

    fn inputs(&mut self, top: &Fields) -> Result<(Inputs, Vec<ListedGlob>)> {
        if let Some(at) = top.key_at("modules") {
            let message = "modules: (multi-module models) is not supported yet";
            return Err(self.error(at, message).hint("merge each module as a checkpoint of its own"));
        }
        let keys = (top.key_at("models"), top.key_at("slices"));
        match (keys, top.get("models"), top.get("slices")) {
            ((Some(models), Some(slices)), ..) => Err(self
                .error(models.max(slices), "`models` and `slices` exclude each other")
                .hint("`models` merges whole models, `slices` stacks layers: keep one")),
            (_, Some(node), None) => self.models(node),
            (_, None, Some(node)) => {
                Ok((Inputs::Slices(self.list(node, "slices", Self::slice)?), Vec::new()))
            }
            _ => {
                let slip = top.slip_of("models").or_else(|| top.slip_of("slices"));
                let hint = slip.unwrap_or("list the inputs under `models:`, each as `- model: path`".into());
                Err(self.error(top.at, "nothing to merge: `models` or `slices` is missing").hint(hint))
            }
        }
    }

    fn list<T>(
        &mut self,
        node: &Node,
        name: &str,
        each: impl Fn(&mut Self, &Node) -> Result<T>,
    ) -> Result<Vec<T>> {
        match &node.kind {
            Yaml::List(items) if items.is_empty() => {
                Err(self.error(node.at, format_args!("`{name}` is empty")).hint("list at least one"))
            }
            Yaml::List(items) => items.iter().map(|item| each(self, item)).collect(),
            _ => Err(self
                .error(node.at, format_args!("`{name}` must be a list"))
                .hint("begin each entry with `- `")),
        }
    }

    /// A list of models and patterns, or one pattern by itself.
    fn models(&mut self, node: &Node) -> Result<(Inputs, Vec<ListedGlob>)> {
        let entries = match &node.kind {
            Yaml::Map(entries) if entries.iter().any(|(key, _)| key.name == "glob") => {
                vec![self.input(node)?]
            }
            _ => self.list(node, "models", Self::input)?,
        };
        let (mut models, mut globs) = (Vec::new(), Vec::new());
        for entry in entries {
            match entry {
                Entry::Model(model) => models.push(model),
                Entry::Glob(glob) => globs.push(ListedGlob { before: models.len(), ..glob }),
            }
        }
        Ok((Inputs::Models(models), globs))
    }

    fn input(&mut self, node: &Node) -> Result<Entry> {
        let fields = self.entry(node, &["model", "glob", "mask", "importance", "parameters"])?;
        let Some(glob) = fields.get("glob") else {
            let (model, files) = (self.required_model(&fields)?, self.element_files(&fields)?);
            return Ok(Entry::Model(ListedModel {
                model,
                files,
                parameters: self.parameters(&fields)?.into(),
            }));
        };
        if let Some(at) = fields.key_at("model") {
            return Err(self
                .error(at, "`model` and `glob` exclude each other")
                .hint("give the model an entry of its own"));
        }
        if let Some((key, at)) = ELEMENT_FILES.iter().find_map(|key| Some((key, fields.key_at(key)?))) {
            let message =
                format!("`{key}` is about the elements of one model, and `glob` stands for several");
            return Err(self.error(at, message).hint("give the model an entry of its own, with `model`"));
        }
        let (pattern, parameters) = (self.text(glob)?, self.parameters(&fields)?.into());
        Ok(Entry::Glob(ListedGlob { pattern, before: 0, parameters }))
    }

    fn slice(&mut self, node: &Node) -> Result<Slice> {
        let known = &["sources", "base_model", "parameters", "residual_weight"];
        let fields = self.fields(node, "a slice", known)?;
        if let Some(at) = fields.key_at("residual_weight") {
            let what = "`residual_weight` has no effect";
            self.ignore(at, Ignored::Needless { what, why: "mergekit ignores it too" });
        }
        let at = fields.at;
        let Some(sources) = fields.get("sources") else {
            let hint = fields.slip_of("sources").unwrap_or("list at least one model there".into());
            return Err(self.error(at, "this slice has no `sources`").hint(hint));
        };
        let sources = self.list(sources, "sources", Self::slice_source)?;
        self.check_lengths(at, &sources)?;
        Ok(Slice {
            at,
            sources,
            base_model: self.optional(&fields, "base_model", Self::model)?,
            parameters: self.parameters(&fields)?,
        })
    }

    fn check_lengths(&self, at: Position, sources: &[SliceSource]) -> Result<()> {
        let length = |source: &SliceSource| Some(source.layer_range.as_ref()?.value.len());
        let Some(lengths) = sources.iter().map(length).collect::<Option<Vec<_>>>() else { return Ok(()) };
        if lengths.iter().all(|length| *length == lengths[0]) {
            return Ok(());
        }
        let lengths: Vec<_> = lengths.iter().map(usize::to_string).collect();
        let message =
            format!("the sources of this slice have different numbers of layers: {}", lengths.join(", "));
        Err(self.error(at, message).hint("every layer_range of a slice must be equally long"))
    }

    fn slice_source(&mut self, node: &Node) -> Result<SliceSource> {
        let fields = self.entry(node, &["model", "layer_range", "mask", "importance", "parameters"])?;
        Ok(SliceSource {
            model: self.required_model(&fields)?,
            layer_range: self.optional(&fields, "layer_range", |walk, node| walk.layer_range(node))?,
            files: self.element_files(&fields)?,
            parameters: self.parameters(&fields)?,
        })
    }

    /// The files that say something of a model's elements.
    fn element_files(&mut self, fields: &Fields) -> Result<ElementFiles> {
        Ok(ElementFiles {
            mask: self.optional(fields, "mask", Self::path)?,
            importance: self.optional(fields, "importance", Self::path)?,
        })
    }

    fn path(&mut self, node: &Node) -> Result<Located<String>> {
        let path = node.text().filter(|path| !path.trim().is_empty()).map(str::to_string);
        let path = path
            .ok_or_else(|| self.error(node.at, "expected the path of a safetensors file or of a folder"))?;
        Ok(Located { value: path, at: node.at })
    }

    /// An entry that names a model; the bare path is a slip worth a hint of its own.
    fn entry<'n>(&mut self, node: &'n Node, known: &'static [&'static str]) -> Result<Fields<'n>> {
        let hint = node.text().map(|text| format!("write {}", quoted(&format!("- model: {text}"))));
        let opened = self.fields(node, "an entry", known);
        opened.map_err(|error| if let Some(hint) = hint { error.hint(hint) } else { error })
    }

    fn layer_range(&self, node: &Node) -> Result<Located<Range<usize>>> {
        let ends = match &node.kind {
            Yaml::List(ends) => ends.iter().map(layer).collect::<Option<Vec<_>>>(),
            _ => None,
        };
        let Some(&[start, end]) = ends.as_deref() else {
            let message = "layer_range must be two layer numbers, [first, end]";
            return Err(self.error(node.at, message).hint("the end is not included: [0, 8] is 8 layers"));
        };
        match start.cmp(&end) {
            std::cmp::Ordering::Less => Ok(Located { value: start..end, at: node.at }),
            std::cmp::Ordering::Equal => Err(self
                .error(node.at, format_args!("layer_range [{start}, {end}] selects no layers"))
                .hint(format!("the end is not included: [{start}, {}] selects layer {start}", end + 1))),
            std::cmp::Ordering::Greater => Err(self
                .error(node.at, format_args!("layer_range [{start}, {end}] ends before it begins"))
                .hint(format!("did you mean [{end}, {start}]?"))),
        }
    }

    fn required_model(&mut self, fields: &Fields) -> Result<Located<ModelRef>> {
        let Some(node) = fields.get("model") else {
            return Err(self.missing(fields, "model", "write `model: path`"));
        };
        self.model(node)
    }

    /// `path[@revision]`, or the long form {model: {path, revision}}.
    fn model(&mut self, node: &Node) -> Result<Located<ModelRef>> {
        let at = node.at;
        let value = match node.text() {
            Some(text) if text.contains('+') => return Err(self.adapter(at, text)),
            Some(text) => self.revisioned(at, text)?,
            None => self.model_long_form(node)?,
        };
        Ok(Located { value, at })
    }

    fn model_long_form(&mut self, node: &Node) -> Result<ModelRef> {
        let at = node.at;
        if !matches!(node.kind, Yaml::Map(_)) {
            return Err(self.error(at, "expected a model: a path, or {model: {path, revision}}"));
        }
        let fields = self.fields(node, "a model", &["model", "lora", "override_architecture"])?;
        if let Some(lora) = fields.key_at("lora") {
            return Err(self.adapter(lora, "lora"));
        }
        if let Some(at) = fields.key_at("override_architecture") {
            let what = "`override_architecture` is not needed and is ignored";
            let why = "tensor names are read from the checkpoints themselves";
            self.ignore(at, Ignored::Needless { what, why });
        }
        let Some(model) = fields.get("model") else {
            return Err(self.error(at, "`model` is missing").hint("write {model: {path: …, revision: …}}"));
        };
        if let Some(text) = model.text() {
            return self.revisioned(model.at, text);
        }
        let fields = self.fields(model, "a model", &["path", "revision"])?;
        let Some(path) = self.optional(&fields, "path", Self::text)? else {
            return Err(self.error(fields.at, "`path` is missing"));
        };
        let revision = self.optional(&fields, "revision", Self::text)?;
        self.reference(path.at, &path.value, revision.as_ref().map(|revision| revision.value.as_str()))
    }

    /// `path[@revision]`.
    fn revisioned(&self, at: Position, text: &str) -> Result<ModelRef> {
        match text.split('@').collect::<Vec<_>>()[..] {
            [path] => self.reference(at, path, None),
            [path, revision] => self.reference(at, path, Some(revision)),
            _ => Err(self
                .error(at, format_args!("more than one `@` in the model {}", quoted(text)))
                .hint(LITERAL_PATH_HINT)),
        }
    }

    fn reference(&self, at: Position, path: &str, revision: Option<&str>) -> Result<ModelRef> {
        if path.trim().is_empty() {
            return Err(self.error(at, "the model's path is empty"));
        }
        if revision.is_some_and(|revision| revision.trim().is_empty()) {
            return Err(self.error(at, format_args!("the revision of {} is empty", quoted(path))));
        }
        Ok(ModelRef { path: path.to_string(), revision: revision.map(str::to_string) })
    }

    /// Why a model with a `+` in its name, or a `lora` key, is refused.
    fn adapter(&self, at: Position, text: &str) -> Error {
        if text.matches('+').count() > 1 {
            let message = format!("more than one `+` in the model {}", quoted(text));
            return self.error(at, message).hint(LITERAL_PATH_HINT);
        }
        let hint = "merge the adapter into a full checkpoint first, for example with peft's merge_and_unload";
        let hint = if text.contains('+') { format!("{hint}; {LITERAL_PATH_HINT}") } else { hint.to_string() };
        self.error(at, format_args!("LoRA adapters are not supported ({})", quoted(text))).hint(hint)
    }

    fn dtype(&self, node: &Node) -> Result<Located<Dtype>> {
        let Some(text) = node.text() else {
            return Err(self.error(node.at, "expected a type").hint(format!("one of {}", DTYPES.join(", "))));
        };
        let value = match text.strip_prefix("torch.").unwrap_or(text) {
            "bfloat16" => Dtype::BF16,
            "float16" => Dtype::F16,
            "float32" => Dtype::F32,
            "float64" => Dtype::F64,
            other => {
                return Err(self
                    .error(node.at, format_args!("{} is not a type to merge in", quoted(text)))
                    .hint(near_dtype(other)));
            }
        };
        Ok(Located { value, at: node.at })
    }

    fn tokenizer(&mut self, top: &Fields) -> Result<Option<Located<TokenizerSource>>> {
        if let (Some(one), Some(other)) = (top.key_at("tokenizer_source"), top.key_at("tokenizer")) {
            return Err(self
                .error(one.max(other), "`tokenizer_source` and `tokenizer` exclude each other")
                .hint("`tokenizer_source: union` is short for `tokenizer: {source: union}`"));
        }
        if let Some(node) = top.get("tokenizer_source") {
            return self.tokenizer_source(node).map(Some);
        }
        let Some(node) = top.get("tokenizer") else { return Ok(None) };
        let at = node.at;
        let fields = self.fields(node, "a tokenizer", &["source", "tokens", "pad_to_multiple_of"])?;
        for name in ["tokens", "pad_to_multiple_of"] {
            // Ignoring these would merge something else than what was asked for.
            if let Some(at) = fields.key_at(name) {
                return Err(self.error(at, format_args!("`{name}` under `tokenizer` is not supported yet")));
            }
        }
        let source = self.optional(&fields, "source", Self::tokenizer_source)?;
        Ok(Some(source.unwrap_or(Located { value: TokenizerSource::Union, at })))
    }

    fn tokenizer_source(&mut self, node: &Node) -> Result<Located<TokenizerSource>> {
        let at = node.at;
        let value = match node.text() {
            Some("union") => TokenizerSource::Union,
            Some("base") => TokenizerSource::Base,
            _ => TokenizerSource::Model(self.model(node)?.value),
        };
        Ok(Located { value, at })
    }

    /// The `parameters` of whatever these fields belong to.
    fn parameters(&mut self, fields: &Fields) -> Result<Parameters> {
        let Some(node) = fields.get("parameters") else { return Ok(Parameters::new()) };
        let Yaml::Map(entries) = &node.kind else {
            return Err(self
                .error(node.at, "`parameters` must be a mapping of names to values")
                .hint("for example `parameters: {weight: 0.5}`"));
        };
        let mut parameters = Parameters::new();
        for (key, node) in entries {
            let at = node.at;
            if let Some(value) = self.parameter(node)? {
                parameters.insert(key.name.clone(), Located { value, at });
            }
        }
        Ok(parameters)
    }

    /// A parameter in any of its forms; an empty list is the same as leaving it out.
    fn parameter(&mut self, node: &Node) -> Result<Option<ConfiguredParameter>> {
        let entries = match &node.kind {
            Yaml::List(items) if items.is_empty() => return Ok(None),
            Yaml::List(items) if items.iter().all(|item| matches!(item.kind, Yaml::Map(_))) => {
                items.iter().map(|item| self.conditional(item)).collect::<Result<_>>()?
            }
            Yaml::Map(_) => vec![self.conditional(node)?],
            _ => vec![Conditional { filter: None, value: self.value(node)? }],
        };
        Ok(Some(ConfiguredParameter(entries)))
    }

    fn conditional(&mut self, node: &Node) -> Result<Conditional> {
        let fields = self.fields(node, "a condition", &["filter", "value"])?;
        let Some((_, value)) = fields.entry("value") else {
            return Err(self.error(fields.at, PARAMETER_FORMS).hint("`value` is missing here"));
        };
        let filter = self.optional(&fields, "filter", Self::text)?.map(|filter| filter.value);
        Ok(Conditional { filter: filter.filter(|filter| filter != "*"), value: self.value(value)? })
    }

    fn value(&self, node: &Node) -> Result<WrittenValue> {
        match &node.kind {
            // Under a filter an empty list cannot be left out: the filter still ends the search.
            Yaml::List(items) if items.is_empty() => Ok(WrittenValue::One(Scalar::Null)),
            Yaml::List(items) => items
                .iter()
                .map(|item| match item.scalar() {
                    Some(Scalar::Null) | None => Err(self.error(item.at, PARAMETER_FORMS)),
                    Some(scalar) => Ok(scalar),
                })
                .collect::<Result<_>>()
                .map(WrittenValue::Gradient),
            _ => node.scalar().map(WrittenValue::One).ok_or_else(|| self.error(node.at, PARAMETER_FORMS)),
        }
    }
}

/// A layer number: like pydantic's `int`, 8.0 and "8" count; 8.5, true, and the text `1e1` do not.
fn layer(node: &Node) -> Option<usize> {
    let counts = |scalar: &Scalar| match scalar {
        Scalar::Text(text) => !text.contains(['e', 'E']),
        Scalar::Null | Scalar::Bool(_) => false,
        Scalar::Number(_) => true,
    };
    let number = node.scalar().filter(counts)?.as_number()?;
    ((0.0..=LAYERS_MAX).contains(&number) && number.fract() == 0.0).then_some(number as usize)
}

/// The nearest of the known words. The distance costs memory by length, and no slip is this long.
fn near<'a>(typed: &str, known: &[&'a str]) -> Option<&'a str> {
    if typed.len() > 64 { None } else { did_you_mean(typed, known.iter().copied()) }
}

/// What to write instead of a type that does not exist.
fn near_dtype(typed: &str) -> String {
    let near = match typed.to_lowercase().as_str() {
        "bf16" => Some("bfloat16"),
        "f16" | "fp16" | "half" => Some("float16"),
        "f32" | "fp32" | "float" => Some("float32"),
        "f64" | "fp64" | "double" => Some("float64"),
        _ => near(typed, DTYPES),
    };
    near.map_or_else(|| format!("use one of {}", DTYPES.join(", ")), |near| format!("did you mean `{near}`?"))
}

//! What is merged: models, slices or modules.

use std::ops::Range;

use super::broken::is_odd_dash;
use super::ignored::{ELEMENT_FILES, Ignored};
use super::walk::{Fields, Walk};
use super::yaml::{Node, Yaml};
use super::{
    ElementFiles, Inputs, ListedGlob, ListedModel, Located, Module, Position, Scalar, Slice, SliceSource,
    keys, quoted,
};

/// Far beyond any model, and exact in `f64`.
const LAYERS_MAX: f64 = 1e6;

/// An entry of `models`.
enum Entry {
    Model(ListedModel),
    Glob(ListedGlob),
}

impl Walk<'_> {
    /// What is merged, and the patterns among the models.
    pub(super) fn inputs(&mut self, fields: &Fields) -> Option<(Inputs, Vec<ListedGlob>)> {
        self.one_of_inputs(fields, keys::WAYS)
    }

    /// The same of a mapping in which only these of the ways are known.
    fn one_of_inputs(&mut self, fields: &Fields, ways: &[&str]) -> Option<(Inputs, Vec<ListedGlob>)> {
        let given: Vec<&str> = ways.iter().copied().filter(|way| fields.filled(way).is_some()).collect();
        match given[..] {
            ["models"] => self.models(fields.get("models")?),
            ["slices"] => {
                let slices = self.list(fields.get("slices")?, "slices", Self::slice)?;
                Some((Inputs::Slices(slices), Vec::new()))
            }
            ["modules"] => Some((Inputs::Modules(self.modules(fields.get("modules")?)?), Vec::new())),
            [first, .., last] => {
                let at = fields.key_at(first).max(fields.key_at(last))?;
                let message = format!("`{first}` and `{last}` exclude each other");
                self.refuse(self.error(at, message).hint(
                    "`models` merges whole models, `slices` stacks layers, `modules` merges parts of models: \
                     keep one",
                ))
            }
            _ => self.no_inputs(fields, ways),
        }
    }

    fn no_inputs<T>(&mut self, fields: &Fields, ways: &[&str]) -> Option<T> {
        if let Some((key, _)) =
            ways.iter().find_map(|way| fields.entry(way)).filter(|(_, node)| node.is_null())
        {
            let problem = self.error(key.at, format_args!("`{}` has nothing below it", key.name));
            return self.refuse(problem.hint("indent its entries further than the key"));
        }
        if let Some((way, node)) = ways.iter().find_map(|way| Some((way, fields.get(way)?))) {
            let problem = self.error(node.at, format_args!("`{way}` is empty"));
            return self.refuse(problem.hint("list at least one"));
        }
        let slip = ways.iter().find_map(|way| fields.slip_of(way));
        let hint = slip.unwrap_or("list the inputs under `models:`, each as `- model: path`".into());
        let problem = self.error(fields.at, "nothing to merge: `models` or `slices` is missing");
        self.refuse(problem.hint(hint))
    }

    /// A list of models and patterns, or one pattern by itself.
    fn models(&mut self, node: &Node) -> Option<(Inputs, Vec<ListedGlob>)> {
        let entries = match &node.kind {
            Yaml::Map(entries) if entries.iter().any(|(key, _)| key.name == "glob") => {
                vec![self.input(node)?]
            }
            Yaml::Map(entries) if entries.iter().all(|(key, _)| key.name != "model") => {
                let first = entries.first().map_or("path", |(key, _)| &key.name);
                let problem = self.error(node.at, "`models` must be a list");
                let hint = match first.chars().next() {
                    Some(dash) if is_odd_dash(dash) => {
                        format!("`{dash}` is another character than the `-` that each entry begins with")
                    }
                    _ => format!("begin each entry with {}", quoted(&format!("- model: {first}"))),
                };
                return self.refuse(problem.hint(hint));
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
        Some((Inputs::Models(models), globs))
    }

    fn input(&mut self, node: &Node) -> Option<Entry> {
        let fields = self.entry(node, keys::LISTED_MODEL)?;
        let Some(glob) = fields.get("glob") else {
            let (model, files) = (self.required_model(&fields), self.element_files(&fields));
            let parameters = self.parameters(&fields).into();
            let beside = fields.beside();
            return Some(Entry::Model(ListedModel { model: model?, files, parameters, beside }));
        };
        if let Some(at) = fields.key_at("model") {
            return self.refuse(
                self.error(at, "`model` and `glob` exclude each other")
                    .hint("give the model an entry of its own"),
            );
        }
        if let Some((key, at)) = ELEMENT_FILES.iter().find_map(|key| Some((key, fields.key_at(key)?))) {
            let message =
                format!("`{key}` is about the elements of one model, and `glob` stands for several");
            return self
                .refuse(self.error(at, message).hint("give the model an entry of its own, with `model`"));
        }
        let (pattern, parameters) = (self.text(glob), self.parameters(&fields).into());
        Some(Entry::Glob(ListedGlob { pattern: pattern?, before: 0, parameters }))
    }

    fn modules(&mut self, node: &Node) -> Option<Vec<Module>> {
        let Yaml::Map(entries) = &node.kind else {
            let problem = self.error(node.at, "`modules` must be a mapping of names to what is merged");
            return self
                .refuse(problem.hint("for example `modules: {text_decoder: {models: [{model: path}]}}`"));
        };
        let modules = entries.iter().filter_map(|(key, node)| {
            let fields = self.fields(node, "a module", keys::MODULE)?;
            let inputs = self.one_of_inputs(&fields, keys::WAYS_OF_MODULE);
            let parameters = self.parameters(&fields);
            let (inputs, globs) = inputs?;
            if let Some(glob) = globs.first() {
                let problem = self.error(glob.pattern.at, "a module's models cannot be listed by a pattern");
                return self.refuse(problem.hint("list each with `- model: path`"));
            }
            let name = Located { value: key.name.clone(), at: key.at };
            Some(Module { name, at: node.at, inputs, parameters })
        });
        Some(modules.collect())
    }

    fn slice(&mut self, node: &Node) -> Option<Slice> {
        let fields = self.fields(node, "a slice", keys::SLICE)?;
        if let Some(at) = fields.key_at("residual_weight") {
            let what = "`residual_weight` has no effect";
            self.ignore(at, Ignored::Needless { what, why: "mergekit ignores it too" });
        }
        let at = fields.at;
        let sources = if let Some(sources) = fields.get("sources") {
            self.list(sources, "sources", Self::slice_source)
        } else {
            let hint = match fields.entries.iter().find(|(key, _)| key.name == "model") {
                Some((key, _)) => {
                    format!("indent what begins at {} below `sources:`, as an entry `- model: …`", key.at)
                }
                None => fields.slip_of("sources").unwrap_or("list at least one model there".into()),
            };
            self.refuse(self.error(at, "this slice has no `sources`").hint(hint))
        };
        sources.iter().for_each(|sources| self.check_lengths(at, sources));
        let base_model = self.optional(&fields, "base_model", Self::model);
        let parameters = self.parameters(&fields);
        Some(Slice { at, sources: sources?, base_model, parameters })
    }

    fn check_lengths(&mut self, at: Position, sources: &[SliceSource]) {
        let length = |source: &SliceSource| Some(source.layer_range.as_ref()?.value.len());
        let Some(lengths) = sources.iter().map(length).collect::<Option<Vec<_>>>() else { return };
        if lengths.iter().all(|length| *length == lengths[0]) {
            return;
        }
        let lengths: Vec<_> = lengths.iter().map(usize::to_string).collect();
        let message =
            format!("the sources of this slice have different numbers of layers: {}", lengths.join(", "));
        let problem = self.error(at, message).hint("every layer_range of a slice must be equally long");
        self.refuse::<()>(problem);
    }

    fn slice_source(&mut self, node: &Node) -> Option<SliceSource> {
        let fields = self.entry(node, keys::SLICE_SOURCE)?;
        let model = self.required_model(&fields);
        let layer_range = self.optional(&fields, "layer_range", Self::layer_range);
        let (files, parameters) = (self.element_files(&fields), self.parameters(&fields));
        let beside = fields.beside();
        Some(SliceSource { model: model?, layer_range, files, parameters, beside })
    }

    /// The files that say something of a model's elements.
    fn element_files(&mut self, fields: &Fields) -> ElementFiles {
        ElementFiles {
            mask: self.optional(fields, "mask", Self::path),
            importance: self.optional(fields, "importance", Self::path),
        }
    }

    fn path(&mut self, node: &Node) -> Option<Located<String>> {
        let Some(path) = node.text().filter(|path| !path.trim().is_empty()) else {
            return self
                .refuse(self.error(node.at, "expected the path of a safetensors file or of a folder"));
        };
        Some(Located { value: path.to_string(), at: node.at })
    }

    /// An entry that names a model; the bare path is a slip worth a hint of its own.
    fn entry<'n>(&mut self, node: &'n Node, known: &'static [&'static str]) -> Option<Fields<'n>> {
        let Some(text) = node.text() else { return self.fields(node, "an entry", known) };
        let message = format!("expected an entry: a mapping with the keys {}", known.join(", "));
        let path = text.strip_prefix("model:").unwrap_or(text);
        let hint = format!("write {}", quoted(&format!("- model: {path}")));
        self.refuse(self.error(node.at, message).hint(hint))
    }

    fn layer_range(&mut self, node: &Node) -> Option<Located<Range<usize>>> {
        let ends = match &node.kind {
            Yaml::List(ends) => ends.iter().map(layer).collect::<Option<Vec<_>>>(),
            _ => None,
        };
        let Some(&[start, end]) = ends.as_deref() else {
            let message = "layer_range must be two layer numbers, [first, end]";
            return self.refuse(self.error(node.at, message).hint(meant_range(node)));
        };
        match start.cmp(&end) {
            std::cmp::Ordering::Less => Some(Located { value: start..end, at: node.at }),
            std::cmp::Ordering::Equal => self.refuse(
                self.error(node.at, format_args!("layer_range [{start}, {end}] selects no layers"))
                    .hint(format!("the end is not included: [{start}, {}] selects layer {start}", end + 1)),
            ),
            std::cmp::Ordering::Greater => self.refuse(
                self.error(node.at, format_args!("layer_range [{start}, {end}] ends before it begins"))
                    .hint(format!("did you mean [{end}, {start}]?")),
            ),
        }
    }
}

/// What to write instead of what is no range of layers.
fn meant_range(node: &Node) -> String {
    let text = node.text().unwrap_or_default();
    let numbers: Vec<&str> =
        text.split(|c: char| !c.is_ascii_digit()).filter(|number| !number.is_empty()).collect();
    match (&numbers[..], &node.kind) {
        ([first, end], _) if text.len() < 32 => {
            format!("did you mean [{first}, {end}]? the end is not included")
        }
        (_, Yaml::List(ends)) if ends.iter().filter_map(Node::text).any(|end| end.starts_with('-')) => {
            "layers are counted from 0 up, and not from the end".into()
        }
        _ => "the end is not included: [0, 8] is 8 layers".into(),
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

//! Config and headers → everything that will happen, resolved; no tensor data is read, no device opened.
//!
//! The plan is data: it prints, it counts its bytes, and the stream obeys it. Every error that the config or
//! the checkpoints' headers can show is found here, all of them at once where that is possible.

mod names;
mod parameters;
mod problems;
mod wanted;

use std::collections::HashMap;
use std::fmt::Display;

use indexmap::IndexMap;

use crate::checkpoint::{ConfigEdits, Layout, OutTensor, Source, TensorInfo, layout, per_layer_lists};
use crate::config::{Config, Inputs, Located, ModelRef};
use crate::dtype::{Dtype, Float};
use crate::error::{Error, Result};
use crate::kernel::{Widest, tiles};
use crate::method::{self, Base, Method, Scope, Settings, Value, Values};
use crate::recipe::{Machine, Recipe, Sweeps};
use problems::Problems;
use wanted::{Want, Wanted};

/// Everything that a merge will do.
#[derive(Debug)]
pub struct Plan {
    /// The method.
    pub method: &'static Method,
    /// The seed of random masks.
    pub seed: u64,
    /// The models, as named in the config, in the order of the sources.
    pub models: Vec<String>,
    /// Which of them is the base, if the config names one.
    pub base: Option<usize>,
    /// Which of them gives config.json and the tokenizer.
    pub donor: usize,
    /// What happens to every tensor of the output, in the order of writing.
    pub tensors: Vec<Tensor>,
    /// Where the output's tensors go.
    pub layout: Layout,
    /// What changes in config.json.
    pub config_edits: ConfigEdits,
    /// Input tensors that the config's layer ranges leave out.
    pub left_out: Vec<LeftOut>,
    /// What a user should know but need not change.
    pub notes: Vec<String>,
    /// What a user probably did not mean.
    pub warnings: Vec<Error>,
}

/// One tensor of the output.
#[derive(Debug)]
pub struct Tensor {
    /// Its name in the output.
    pub name: String,
    /// Its dimensions.
    pub shape: Vec<usize>,
    /// The stored type.
    pub dtype: Dtype,
    /// How many elements it has.
    pub elements: u64,
    /// How many bytes it has in the output.
    pub bytes: u64,
    /// Where it comes from.
    pub action: Action,
}

impl Tensor {
    /// Where input number `input` lies.
    pub fn input(&self, input: usize) -> At {
        match &self.action {
            Action::Copy(copy) => copy.holders[input],
            Action::Merge(merge) => merge.inputs[input],
        }
    }
}

/// Where a tensor of the output comes from.
#[derive(Debug)]
pub enum Action {
    /// One input's values, all holders agreeing.
    Copy(Copy),
    /// The method's arithmetic.
    Merge(Merge),
}

/// A tensor that is copied.
#[derive(Debug)]
pub struct Copy {
    /// The tensors that must all be equal; the first is copied.
    pub holders: Vec<At>,
    /// The float type it has, if it is one.
    pub from: Option<Float>,
    /// The float type it is stored in, if it is one.
    pub to: Option<Float>,
}

/// A tensor that is merged.
#[derive(Debug)]
pub struct Merge {
    /// The models' tensors, in the order that parameters and recipes count them.
    pub inputs: Vec<At>,
    /// Their element types.
    pub floats: Vec<Float>,
    /// The stored type.
    pub output: Float,
    /// Every number of the merge.
    pub settings: Settings,
    /// How often the inputs are read.
    pub sweeps: Sweeps,
}

impl Merge {
    /// The machine that asks for this tensor's passes.
    pub fn machine(&self, plan: &Plan) -> Box<dyn Machine> {
        match (plan.method.recipe)(&self.settings) {
            Ok(Recipe::Passes { machine, .. }) => machine,
            other => unreachable!("the plan has made a recipe of passes from these settings, not {other:?}"),
        }
    }
}

/// A tensor of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct At {
    /// Which source.
    pub source: usize,
    /// Which of its tensors.
    pub tensor: usize,
}

/// A part of a model that the config leaves out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    /// The model, as named in the config.
    pub model: String,
    /// Layers or tensors, in words.
    pub what: String,
    /// How many tensors that is.
    pub tensors: usize,
}

/// What a plan depends on besides config and headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choices {
    /// The seed of random masks.
    pub seed: u64,
    /// The largest shard, in bytes.
    pub shard_bytes: u64,
}

/// The models a config refers to, each once, in the order of appearance; a `base_model` not listed comes last.
pub fn references(config: &Config) -> Vec<Located<ModelRef>> {
    let mut all: Vec<Located<ModelRef>> = Vec::new();
    let mut add = |model: &Located<ModelRef>| {
        if !all.iter().any(|known| known.value == model.value) {
            all.push(model.clone());
        }
    };
    match &config.inputs {
        Inputs::Models(models) => models.iter().for_each(|input| add(&input.model)),
        Inputs::Slices(slices) => {
            slices.iter().flat_map(|slice| &slice.sources).for_each(|source| add(&source.model));
            slices.iter().filter_map(|slice| slice.base_model.as_ref()).for_each(&mut add);
        }
    }
    config.base_model.iter().for_each(add);
    all
}

/// The method that a config names.
///
/// # Errors
/// There is none of this name.
pub fn method_of(config: &Config) -> Result<&'static Method> {
    let Located { value: name, at } = &config.merge_method;
    method::find(name).map_err(|error| Error { hint: error.hint, ..config.error_at(*at, error.message) })
}

impl Plan {
    /// Resolves a config against the headers of its models; `sources` are those of [`references`], in order.
    ///
    /// # Errors
    /// All that is wrong with the config and the models together, as one error of kind `Config`.
    pub fn new(config: &Config, sources: &[Source], choices: &Choices) -> Result<Self> {
        let method = method_of(config)?;
        let mut planner = Planner {
            config,
            method,
            sources,
            models: references(config).into_iter().map(|model| model.value).collect(),
            choices,
            unread: parameters::unread(config, method),
            problems: Problems::default(),
            notes: Vec::new(),
            untied: false,
        };
        let wanted = planner.wanted();
        planner.check_tokenizer();
        // Without a list of tensors, or with wrong models, their tensors would repeat the same error.
        planner.problems.stop()?;
        let mut tensors = Vec::with_capacity(wanted.len());
        for wanted in &wanted {
            match planner.tensor(wanted) {
                Ok(tensor) => tensors.push(tensor),
                Err(problem) => planner.problems.add(problem),
            }
        }
        planner.problems.stop()?;
        planner.finish(tensors, &wanted)
    }

    /// Bytes read if every input is read once, and if every recipe needs all of its sweeps.
    pub fn read_bytes(&self, sources: &[Source]) -> (u64, u64) {
        let bytes = |at: &At| sources[at.source].tensor_at(at.tensor).bytes;
        let of = |tensor: &Tensor| match &tensor.action {
            Action::Copy(copy) => (copy.holders.iter().map(bytes).sum(), 1),
            Action::Merge(merge) => {
                (merge.inputs.iter().map(bytes).sum::<u64>(), u64::from(merge.sweeps.most))
            }
        };
        self.tensors
            .iter()
            .map(of)
            .fold((0, 0), |(once, most), (bytes, sweeps)| (once + bytes, most + bytes * sweeps))
    }

    /// The widest launches: of every number the largest that any tensor needs.
    pub fn widest(&self) -> Widest {
        let mut widest = Widest { inputs: 1, tiles: 1, ..Widest::default() };
        for tensor in &self.tensors {
            widest.tiles = widest.tiles.max(tiles(tensor.elements));
            match &tensor.action {
                Action::Copy(_) => widest.copied_bytes = 16,
                Action::Merge(merge) => {
                    let bytes: usize = merge.floats.iter().map(|float| float.bytes()).sum();
                    widest.inputs = widest.inputs.max(merge.inputs.len());
                    widest.input_bytes = widest.input_bytes.max(bytes);
                    widest.output_bytes = widest.output_bytes.max(merge.output.bytes());
                    if merge.sweeps.most > 1 {
                        widest.measured = widest.measured.max(merge.inputs.len());
                        widest.held_bytes += tensor.elements * bytes as u64;
                    }
                }
            }
        }
        widest
    }
}

/// The plan under construction.
struct Planner<'a> {
    config: &'a Config,
    method: &'static Method,
    sources: &'a [Source],
    models: Vec<ModelRef>,
    choices: &'a Choices,
    /// Warnings about parameters that the method does not read.
    unread: Vec<Error>,
    problems: Problems,
    notes: Vec<String>,
    /// Whether a tied embedding stands in for a head that is written.
    untied: bool,
}

impl<'a> Planner<'a> {
    fn source_of(&self, model: &ModelRef) -> usize {
        self.models.iter().position(|known| known == model).expect("every model of the config is a source")
    }

    /// The model that gives config.json and the tokenizer: the base, or else the first.
    fn donor(&self) -> usize {
        self.config.base_model.as_ref().map_or(0, |base| self.source_of(&base.value))
    }

    fn check_tokenizer(&mut self) {
        if let Some(template) = &self.config.chat_template {
            let problem = self.config.error_at(template.at, "chat_template is not supported yet");
            self.problems
                .add(problem.hint("remove the key, and edit chat_template in the output's tokenizer files"));
        }
        let file = |source: &Source| {
            let file = source.folder.join("tokenizer.json");
            // Anything but a file would perhaps never end.
            if file.is_file() { std::fs::read(file).ok() } else { None }
        };
        let donor = &self.sources[self.donor()];
        let own = file(donor);
        let other = self.sources.iter().find(|source| file(source) != own);
        let Some(wish) = &self.config.tokenizer else {
            if let Some(other) = other {
                self.notes.push(format!(
                    "{} has another tokenizer than {}, whose is copied",
                    other.name, donor.name
                ));
            }
            return;
        };
        if other.is_none() && own.is_some() {
            self.notes.push("all models have the same tokenizer: it is copied".into());
            return;
        }
        let problem = self
            .config
            .error_at(wish.at, "the models' tokenizers differ, and merging them is not supported yet");
        self.problems.add(problem.hint(
            "without this key the base model's tokenizer is copied, if all vocabularies have the same size",
        ));
    }

    /// What happens to one tensor, or why nothing can.
    fn tensor(&mut self, wanted: &Wanted<'a>) -> Result<Tensor> {
        let found: Vec<Option<At>> = wanted.inputs.iter().map(|want| self.find(want)).collect();
        let holders: Vec<At> = found.iter().flatten().copied().collect();
        self.check_shapes(wanted, &found)?;
        if holders.len() < found.len() {
            return self.held_by_some(wanted, &holders);
        }
        let dtypes: Vec<Dtype> = holders.iter().map(|at| self.info(*at).dtype).collect();
        let floats: Option<Vec<Float>> = dtypes.iter().map(|dtype| Float::of(*dtype)).collect();
        let settings = self.settings(wanted, self.info(holders[0]).elements())?;
        let recipe = (self.method.recipe)(&settings).map_err(|refusal| {
            let at = self.config.merge_method.at;
            Error { hint: refusal.hint, ..self.config.error_at(at, refusal.message) }
        })?;
        match (recipe, floats) {
            (Recipe::Copy, _) => self.copied(wanted, holders),
            (Recipe::Passes { sweeps, .. }, Some(floats)) => {
                let output = self.stored(&floats);
                let info = self.info(holders[0]);
                let (name, shape, elements) = (wanted.name.clone(), info.shape.clone(), info.elements());
                let merge = Merge { inputs: holders, floats, output, settings, sweeps };
                let (dtype, bytes) = (output.dtype(), elements * output.bytes() as u64);
                Ok(Tensor { name, shape, dtype, elements, bytes, action: Action::Merge(merge) })
            }
            (Recipe::Passes { .. }, None) => self.not_floats(wanted, holders, &dtypes),
        }
    }

    /// A tensor of integers or the like: copied when all agree.
    fn not_floats(&self, wanted: &Wanted<'_>, holders: Vec<At>, dtypes: &[Dtype]) -> Result<Tensor> {
        use Dtype::{BOOL, I8, I16, I32, I64, U8, U16, U32, U64};
        let dtype = dtypes[0];
        if dtypes.iter().any(|other| *other != dtype) {
            let all: Vec<String> = dtypes.iter().map(|dtype| format!("{dtype:?}")).collect();
            return Err(Error::config(format!(
                "tensor {}: the models store it as {}",
                wanted.name,
                all.join(", ")
            ))
            .hint("a tensor that is not of floats must have the same type in all models"));
        }
        match dtype {
            BOOL | U8 | I8 | I16 | U16 | I32 | U32 | I64 | U64 => self.copied(wanted, holders),
            other => {
                Err(Error::config(format!("tensor {}: merging {other:?} is not supported", wanted.name))
                    .hint("convert the checkpoints to bfloat16, float16 or float32 first"))
            }
        }
    }

    /// A tensor that only some of the models have.
    fn held_by_some(&mut self, wanted: &Wanted<'_>, holders: &[At]) -> Result<Tensor> {
        let (with, without): (Vec<_>, Vec<_>) =
            wanted.inputs.iter().partition(|want| self.find(want).is_some());
        let names =
            |wants: &[&Want<'_>]| wants.iter().map(|w| self.name_of(w.source)).collect::<Vec<_>>().join(", ");
        let (with, without) = (names(&with), names(&without));
        let donor = self.donor();
        if holders.len() < 2 && holders.iter().all(|at| at.source != donor) {
            let problem = format!("tensor {}: {with} has it, {without} has not", wanted.name);
            return Err(Error::config(problem).hint(
                "a tensor that some models lack is copied if the base model has it, or if several have it and agree; \
                 check that the models have the same architecture",
            ));
        }
        self.notes.push(format!("{}: copied from {with}, because {without} has none", wanted.name));
        self.copied(wanted, holders.to_vec())
    }

    /// A tensor that is copied, converted where it is a float and the config asks for another type.
    fn copied(&self, wanted: &Wanted<'_>, holders: Vec<At>) -> Result<Tensor> {
        let info = self.info(holders[0]);
        if let Some(other) = holders.iter().find(|at| self.info(**at).dtype != info.dtype) {
            let (a, b) = (info.dtype, self.info(*other).dtype);
            return Err(Error::config(format!(
                "tensor {}: it can only be copied, but has types {a:?} and {b:?}",
                wanted.name
            ))
            .hint("give it the same type in all models that have it"));
        }
        let from = Float::of(info.dtype);
        if from.is_none() && info.dtype == Dtype::F64 {
            return Err(Error::config(format!("tensor {}: float64 is not supported yet", wanted.name))
                .hint("convert the checkpoint to float32 first"));
        }
        let to = from.map(|float| self.stored(&[float]));
        let elements = info.elements();
        Ok(Tensor {
            name: wanted.name.clone(),
            shape: info.shape.clone(),
            dtype: to.map_or(info.dtype, Float::dtype),
            elements,
            bytes: to.map_or(info.bytes, |to| elements * to.bytes() as u64),
            action: Action::Copy(Copy { holders, from, to }),
        })
    }

    /// The type that floats are stored in: as asked, or else the one that holds all inputs.
    fn stored(&self, floats: &[Float]) -> Float {
        let asked = self.config.out_dtype.as_ref().or(self.config.dtype.as_ref());
        asked.map_or_else(
            || floats.iter().copied().reduce(Float::promote).expect("an input"),
            |float| float.value,
        )
    }

    fn info(&self, at: At) -> &'a TensorInfo {
        self.sources[at.source].tensor_at(at.tensor)
    }

    fn name_of(&self, source: usize) -> &'a str {
        &self.sources[source].name
    }

    /// A model's tensor; the input embedding where a tied head has none of its own.
    fn find(&self, want: &Want<'_>) -> Option<At> {
        let source = &self.sources[want.source];
        let tensor = source.place_of(&want.name).or_else(|| wanted::tied_embedding(source, &want.name));
        tensor.map(|tensor| At { source: want.source, tensor })
    }

    fn check_shapes(&mut self, wanted: &Wanted<'_>, found: &[Option<At>]) -> Result<()> {
        let mut shapes = found.iter().flatten().map(|at| (at.source, &self.info(*at).shape));
        let Some((first, shape)) = shapes.next() else { return Ok(()) };
        let Some((other, different)) = shapes.find(|(_, other)| *other != shape) else {
            // Which models' embeddings stand in is known from the names that were found.
            self.untied |= names::is_head(&wanted.name)
                && found.iter().flatten().any(|at| !names::is_head(&self.info(*at).name));
            return Ok(());
        };
        let problem = Error::config(format!(
            "tensor {}: it is {shape:?} in {} and {different:?} in {}",
            wanted.name,
            self.name_of(first),
            self.name_of(other)
        ));
        let vocabulary = names::is_head(&wanted.name) || names::is_embedding(&wanted.name);
        Err(problem.hint(if vocabulary {
            "the models' vocabularies differ: resize their embeddings to the same tokenizer first"
        } else {
            "only models of the same architecture and size can be merged"
        }))
    }

    /// Resolves every parameter for a tensor.
    fn settings(&self, wanted: &Wanted<'_>, elements: u64) -> Result<Settings> {
        let mut settings = Settings {
            tensor: wanted.name.clone(),
            seed: self.choices.seed,
            elements,
            inputs: wanted.inputs.len(),
            base: if self.method.base == Base::Required { wanted.base } else { None },
            shared: Values::new(),
            per_input: vec![Values::new(); wanted.inputs.len()],
        };
        for parameter in self.method.parameters {
            let resolve = |scopes: &[_], tensor: &str, of: &dyn Display, listed: bool| {
                parameters::resolve(self.config, parameter, scopes, tensor, wanted.position)?
                    .map(|value| (parameter.name, value))
                    .ok_or_else(|| self.missing(parameter.name, of, listed))
            };
            if parameter.scope == Scope::Shared {
                settings.shared.push(resolve(&wanted.outer, &wanted.name, &wanted.name, true)?);
                continue;
            }
            for (input, want) in wanted.inputs.iter().enumerate() {
                if parameter.scope == Scope::Input || settings.base != Some(input) {
                    let scopes: Vec<_> = want.own.into_iter().chain(wanted.outer.iter().copied()).collect();
                    let value = resolve(&scopes, &want.name, &self.name_of(want.source), want.own.is_some())?;
                    settings.per_input[input].push(value);
                }
            }
        }
        Ok(settings)
    }

    fn missing(&self, parameter: &str, of: &dyn Display, listed: bool) -> Error {
        let at = self.config.merge_method.at;
        let error =
            self.config.error_at(at, format!("{} needs `{parameter}`, and {of} has none", self.method.name));
        // The commonest reason is a slip of a key.
        let meant = format!("did you mean `{parameter}`?");
        let slip = parameters::unread(self.config, self.method)
            .into_iter()
            .find(|w| w.hint.as_ref() == Some(&meant));
        if !listed {
            return error.hint(
                "base_model is merged like the others: list it with its parameters, or remove base_model",
            );
        }
        error.hint(match slip {
            Some(slip) => format!("{}; {meant}", slip.message),
            None => format!(
                "add `parameters: {{{parameter}: …}}` to the model, or to the whole config for all models"
            ),
        })
    }

    fn finish(mut self, tensors: Vec<Tensor>, wanted: &[Wanted<'_>]) -> Result<Plan> {
        let donor = self.donor();
        let config_edits = self.config_edits(&tensors, wanted);
        let mut warnings = std::mem::take(&mut self.unread);
        if let (Inputs::Slices(_), Some(layers)) = (&self.config.inputs, config_edits.layers) {
            warnings.extend(self.stale_layer_lists(layers));
            warnings.extend(uneven_layers(&tensors));
        }
        let left_out = wanted::left_out(self.sources, &tensors);
        let out: Vec<OutTensor> = tensors
            .iter()
            .map(|t| OutTensor { name: t.name.clone(), dtype: t.dtype, shape: t.shape.clone() })
            .collect();
        self.notes.extend(self.sources.iter().flat_map(|source| source.warnings().iter().cloned()));
        warnings.extend(self.same_folders());
        warnings.extend(self.senseless_values(&tensors));
        self.notes.extend(self.values_of_the_base());
        Ok(Plan {
            method: self.method,
            seed: self.choices.seed,
            models: self.sources.iter().map(|source| source.name.clone()).collect(),
            base: self.config.base_model.as_ref().map(|base| self.source_of(&base.value)),
            donor,
            layout: layout(&out, self.choices.shard_bytes),
            tensors,
            config_edits,
            left_out,
            notes: self.notes,
            warnings,
        })
    }

    /// Two names of one folder are two models to the config, and probably not to the user.
    fn same_folders(&self) -> Vec<Error> {
        let folders: Vec<_> = self.sources.iter().map(|source| source.folder.canonicalize().ok()).collect();
        let same = |i: usize| folders[..i].iter().position(|other| other.is_some() && *other == folders[i]);
        let warning = |(i, j): (usize, usize)| {
            Error::config(format!(
                "{} and {} are the same folder",
                self.sources[j].name, self.sources[i].name
            ))
            .hint("name it the same way everywhere, or it is merged twice")
        };
        (0..folders.len()).filter_map(|i| Some((i, same(i)?))).map(warning).collect()
    }

    /// Values that a parameter takes but that make no sense, like a density of 50.
    fn senseless_values(&self, tensors: &[Tensor]) -> Vec<Error> {
        let mut warnings: IndexMap<String, Error> = IndexMap::new();
        let merges = tensors.iter().filter_map(|tensor| match &tensor.action {
            Action::Merge(merge) => Some(merge),
            Action::Copy(_) => None,
        });
        for merge in merges {
            let own = merge
                .settings
                .per_input
                .iter()
                .zip(&merge.inputs)
                .map(|(values, at)| (values, self.name_of(at.source)));
            for (values, model) in own {
                for (name, value) in values {
                    let parameter = self.method.parameters.iter().find(|parameter| parameter.name == *name);
                    let sensible = parameter.and_then(|parameter| parameter.sensible);
                    if let (Some((low, high)), Value::Number(number)) = (sensible, *value)
                        && !(low..=high).contains(&number)
                    {
                        let message = format!(
                            "{}: {name} {number} of {model} is not from {low} to {high}",
                            self.config.file
                        );
                        let hint = format!("more than {high} acts as {high}, less than {low} as {low}");
                        warnings.entry(message.clone()).or_insert_with(|| Error::config(message).hint(hint));
                    }
                }
            }
        }
        warnings.into_values().collect()
    }

    /// Parameters written under a base that has none: many configs have them, and they change nothing.
    fn values_of_the_base(&self) -> Vec<String> {
        let (Inputs::Models(models), Some(base), Base::Required) =
            (&self.config.inputs, &self.config.base_model, self.method.base)
        else {
            return Vec::new();
        };
        let of_base = models.iter().filter(|input| input.model.value == base.value);
        let names = of_base.flat_map(|input| input.parameters.keys()).filter(|name| {
            self.method.parameters.iter().any(|p| p.name == name.as_str() && p.scope == Scope::NonBase)
        });
        names.map(|name| format!("{name} of {} is not read: it is the base", base.value)).collect()
    }

    fn config_edits(&self, tensors: &[Tensor], wanted: &[Wanted<'_>]) -> ConfigEdits {
        let floats =
            |float: Float| tensors.iter().filter(|t| t.dtype == float.dtype()).map(|t| t.bytes).sum::<u64>();
        let most = [Float::BF16, Float::F16, Float::F32].into_iter().max_by_key(|float| floats(*float));
        let head = tensors.iter().any(|tensor| names::is_head(&tensor.name));
        let untied = head && (self.untied || wanted::says_tied(&self.sources[self.donor()]) == Some(true));
        let layers = matches!(self.config.inputs, Inputs::Slices(_)).then(|| {
            names::stacks(wanted.iter().map(|w| w.name.as_str())).values().copied().max().unwrap_or(0)
        });
        ConfigEdits { dtype: most.filter(|float| floats(*float) > 0), layers, tied: untied.then_some(false) }
    }

    /// config.json may list something for every layer of the donor; such lists are not cut to fit.
    fn stale_layer_lists(&self, layers: usize) -> Option<Error> {
        let donor = &self.sources[self.donor()];
        let names: Vec<&str> = donor.tensors().map(|tensor| tensor.name.as_str()).collect();
        let had = names::stacks(names.into_iter()).values().copied().max().unwrap_or(0);
        let lists = per_layer_lists(&donor.config, had);
        (had != layers && !lists.is_empty()).then(|| {
            Error::config(format!(
                "config.json has one entry per layer in {}: they stay as in {}",
                lists.join(", "),
                donor.name
            ))
            .hint("edit them in the output's config.json to match its layers")
        })
    }
}

/// Stacked layers of models that do not fit together: the same tensor has other dimensions in another layer.
fn uneven_layers(tensors: &[Tensor]) -> Option<Error> {
    let mut first: HashMap<&str, &Tensor> = HashMap::new();
    for tensor in tensors {
        let Some(layered) = names::layered(&tensor.name) else { continue };
        let other = *first.entry(layered.rest).or_insert(tensor);
        if other.shape != tensor.shape && other.input(0).source != tensor.input(0).source {
            let (a, b) = (&other.shape, &tensor.shape);
            let message =
                format!("{} is {a:?} and {} is {b:?}: layers of different models", other.name, tensor.name);
            return Some(
                Error::config(message).hint("layers can be stacked if their models have the same dimensions"),
            );
        }
    }
    None
}

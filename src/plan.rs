//! Config and headers → everything that will happen, resolved; no tensor data is read, no device opened.
//!
//! The plan is data: it prints, it counts its bytes, and the stream obeys it. Every error that the config or
//! the checkpoints' headers can show is found here, all of them at once where that is possible.

mod compatible;
mod data;
mod elements;
mod globs;
mod making;
mod models;
mod names;
mod parameters;
mod problems;
mod wanted;
mod warnings;

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Arc;

pub use data::{Action, Copied, LeftOut, Merge, Plan, Tensor};
pub use elements::element_files;
pub use globs::with_found_models;
pub use models::{MODELS_MAX, check_models, references};

use crate::checkpoint::layout::DATA_BYTES_MAX;
use crate::checkpoint::{ConfigEdits, InputFile, Source, TOKENIZER_BYTES_MAX, TensorInfo, layout};
use crate::config::{Config, Inputs, Located, ModelRef};
use crate::dtype::{Dtype, Float, computed_as, is_float, promote};
use crate::error::{Error, Result};
use crate::input::{At, Input, Narrowed};
use crate::method::{self, Base, Method, Parameter, Scope, Settings, Value, ValueKind, Values};
use crate::recipe::Recipe;
use elements::ElementsSeen;
use parameters::{Comparisons, Unread};
use problems::Problems;
use wanted::{Want, Wanted};
use warnings::PartlyHeld;

/// What a plan depends on besides config and headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choices {
    /// The seed of random masks.
    pub seed: u64,
    /// The most data in a shard, in bytes; none: [`crate::checkpoint::layout::usual_shard_bytes`].
    pub shard_bytes: Option<u64>,
    /// Whether models of different architectures are merged all the same.
    pub allow_crimes: bool,
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
    /// Resolves a config against the headers of its models; `sources` are those of [`references`], in order, and then those of
    /// [`element_files`].
    ///
    /// # Errors
    /// All that is wrong with the config and the models together, as one error of kind `Config`.
    pub fn new(config: &Config, sources: &[Source], choices: &Choices) -> Result<Self> {
        check_models(config)?;
        let method = method_of(config)?;
        let places: HashMap<_, _> =
            references(config).into_iter().map(|model| model.value).zip(0..).collect();
        let models = &sources[..places.len()];
        let files = element_files(config)?.into_iter().map(|file| file.value).zip(models.len()..);
        let mut planner = Planner {
            config,
            method,
            sources,
            models,
            places,
            files: files.collect(),
            elements: ElementsSeen::default(),
            inputs: Vec::new(),
            numbers: sources.iter().map(|source| vec![None; source.tensors().len()]).collect(),
            as_f32: HashMap::new(),
            embeddings: models.iter().map(wanted::tied_embedding).collect(),
            choices,
            unread: Unread::find(config, method),
            comparisons: Comparisons::default(),
            problems: Problems::default(),
            partly_held: PartlyHeld::default(),
            last_shared: Arc::default(),
            last_per_input: Arc::default(),
            notes: Vec::new(),
            untied: false,
            narrowed: false,
            widened: false,
        };
        parameters::check_gradients(config, method, &mut planner.problems);
        let wanted = planner.wanted();
        planner.check_tokenizer();
        planner.check_compatible();
        // Without a list of tensors, or with wrong models, their tensors would repeat the same error.
        planner.problems.stop()?;
        let mut tensors = Vec::with_capacity(wanted.len());
        for wanted in wanted {
            match planner.tensor(&wanted) {
                Ok(tensor) => tensors.push(tensor),
                Err(problem) => planner.problems.add(problem),
            }
        }
        planner.problems.stop()?;
        planner.finish(tensors)
    }
}

/// The plan under construction.
struct Planner<'a> {
    config: &'a Config,
    method: &'static Method,
    /// The models, and behind them the files that say something of their elements.
    sources: &'a [Source],
    models: &'a [Source],
    /// Which source each model is, and each of those files by its path.
    places: HashMap<ModelRef, usize>,
    files: HashMap<String, usize>,
    elements: ElementsSeen,
    /// What is read, and of each source the numbers that its tensors have in it, from 1 up.
    inputs: Vec<Input>,
    numbers: Vec<Vec<Option<NonZeroU32>>>,
    /// Of inputs of float64, the numbers of the same as f32.
    as_f32: HashMap<usize, usize>,
    /// Of each source the embedding that may stand in for its head.
    embeddings: Vec<Option<usize>>,
    choices: &'a Choices,
    unread: Unread,
    comparisons: Comparisons,
    problems: Problems,
    partly_held: PartlyHeld,
    /// The values of the last tensor, which are often those of the next.
    last_shared: Arc<Values>,
    last_per_input: Arc<Vec<Values>>,
    notes: Vec<String>,
    /// Whether a tied embedding stands in for a head that is written.
    untied: bool,
    /// Whether float64 is read, and stored, of what is merged.
    narrowed: bool,
    widened: bool,
}

impl<'a> Planner<'a> {
    fn source_of(&self, model: &ModelRef) -> usize {
        *self.places.get(model).expect("every model of the config is a source")
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
        let donor = &self.sources[self.donor()];
        let own = tokenizer(donor);
        let other = self.models.iter().find(|source| !same_file(own.as_ref(), tokenizer(source).as_ref()));
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
        let wants = wanted.inputs();
        let found: Vec<_> = wants.iter().map(|want| (want.source, self.find(want))).collect();
        let holders: Vec<At> = found.iter().filter_map(|(_, at)| *at).collect();
        self.check_shapes(wanted, &holders)?;
        if holders.len() < found.len() {
            return self.held_by_some(wanted, &found, &holders);
        }
        let dtypes: Vec<Dtype> = holders.iter().map(|at| self.info(*at).dtype).collect();
        let floats: Option<Vec<Float>> = dtypes.iter().map(|dtype| computed_as(*dtype)).collect();
        let settings = self.settings(wanted, &wants, holders[0])?;
        let recipe = (self.method.recipe)(&settings).map_err(|refusal| {
            let at = self.config.merge_method.at;
            Error { hint: refusal.hint, ..self.config.error_at(at, refusal.message) }
        })?;
        match (recipe, floats) {
            (Recipe::Copy, _) => self.copied(wanted, &holders),
            (Recipe::Passes(recipe), Some(floats)) => {
                let stored = self.stored(&dtypes);
                let output = computed_as(stored).expect("floats are stored as floats");
                self.narrowed |= dtypes.contains(&Dtype::F64);
                self.widened |= stored == Dtype::F64;
                let info = self.info(holders[0]);
                let (name, shape) = (Arc::clone(&settings.tensor), Arc::clone(&settings.shape));
                let elements = info.elements();
                let bytes = stored_bytes(&name, elements, stored)?;
                let (inputs, method) = (self.read_as_floats(&holders), self.method);
                let mut merge = Merge { inputs, floats, output, method, settings, recipe };
                self.mask(&wants, &holders, &mut merge)?;
                let importance = self.importance(&wants, &holders)?;
                making::make(&mut merge, &importance, &mut self.inputs);
                Ok(Tensor {
                    name,
                    shape,
                    dtype: stored,
                    elements,
                    bytes,
                    action: Action::Merge(Box::new(merge)),
                })
            }
            (Recipe::Passes(_), None) => self.not_floats(wanted, &holders, &dtypes),
        }
    }

    /// A tensor of integers or the like: copied when all agree.
    fn not_floats(&mut self, wanted: &Wanted<'_>, holders: &[At], dtypes: &[Dtype]) -> Result<Tensor> {
        match compatible::why_not_copied(self.sources, &wanted.name, holders, dtypes) {
            Some(refusal) => Err(refusal),
            None => self.copied(wanted, holders),
        }
    }

    /// A tensor that only some of the models have.
    fn held_by_some(
        &mut self,
        wanted: &Wanted<'_>,
        found: &[(usize, Option<At>)],
        holders: &[At],
    ) -> Result<Tensor> {
        let sources =
            |held: bool| found.iter().filter(move |(_, at)| at.is_some() == held).map(|(source, _)| *source);
        let (with, without): (Vec<_>, Vec<_>) = (sources(true).collect(), sources(false).collect());
        let donor = self.donor();
        if holders.len() < 2 && holders.iter().all(|at| at.source != donor) {
            let (with, without) = (self.names_of(&with), self.names_of(&without));
            let problem = format!("tensor {}: {with} has it, {without} has not", wanted.name);
            return Err(Error::config(problem).hint(
                "a tensor that some models lack is copied if the base model has it, or if several have it and agree; \
                 check that the models have the same architecture",
            ));
        }
        self.partly_held.add(&wanted.name, (with, without));
        self.copied(wanted, holders)
    }

    /// A tensor that is copied, converted where it is a float and the config asks for another type.
    fn copied(&mut self, wanted: &Wanted<'_>, holders: &[At]) -> Result<Tensor> {
        let info = self.info(holders[0]);
        if let Some(other) = holders.iter().find(|at| self.info(**at).dtype != info.dtype) {
            let (a, b) = (info.dtype, self.info(*other).dtype);
            return Err(Error::config(format!(
                "tensor {}: it can only be copied, but has types {a:?} and {b:?}",
                wanted.name
            ))
            .hint("give it the same type in all models that have it"));
        }
        let from = is_float(info.dtype).then_some(info.dtype);
        let to = from.map(|float| self.stored(&[float]));
        let dtype = to.unwrap_or(info.dtype);
        let elements = info.elements();
        Ok(Tensor {
            name: (*wanted.name).into(),
            shape: info.shape.as_slice().into(),
            dtype,
            elements,
            bytes: stored_bytes(&wanted.name, elements, dtype)?,
            action: Action::Copy(Copied { holders: self.numbered(holders), from, to }),
        })
    }

    /// The type that floats are stored in: as asked, or else the one that holds all inputs.
    fn stored(&self, floats: &[Dtype]) -> Dtype {
        let asked = self.config.out_dtype.as_ref().or(self.config.dtype.as_ref());
        asked.map_or_else(|| floats.iter().copied().reduce(promote).expect("an input"), |dtype| dtype.value)
    }

    /// The numbers among the inputs that kernels can read: of float64 those of its elements as f32.
    fn read_as_floats(&mut self, tensors: &[At]) -> Vec<usize> {
        let mut numbers = self.numbered(tensors);
        for (number, at) in numbers.iter_mut().zip(tensors) {
            if self.info(*at).dtype == Dtype::F64 {
                let (of, inputs) = (*number, &mut self.inputs);
                *number = *self.as_f32.entry(of).or_insert_with(|| {
                    inputs.push(Input::Made(Box::new(Narrowed { of })));
                    inputs.len() - 1
                });
            }
        }
        numbers
    }

    /// The numbers of stored tensors among the inputs.
    fn numbered(&mut self, tensors: &[At]) -> Vec<usize> {
        let number = |at: &At| {
            let number = self.numbers[at.source][at.tensor].get_or_insert_with(|| {
                self.inputs.push(Input::Stored(*at));
                NonZeroU32::new(self.inputs.len() as u32).expect("there is an input now")
            });
            number.get() as usize - 1
        };
        tensors.iter().map(number).collect()
    }

    fn info(&self, at: At) -> &'a TensorInfo {
        self.sources[at.source].tensor_at(at.tensor)
    }

    fn name_of(&self, source: usize) -> &'a str {
        &self.sources[source].name
    }

    /// Some models by name, and how many more there are.
    fn names_of(&self, sources: &[usize]) -> String {
        const NAMED_MAX: usize = 8;
        let named: Vec<&str> = sources.iter().take(NAMED_MAX).map(|source| self.name_of(*source)).collect();
        let more = sources.len() - named.len();
        named.join(", ") + &if more > 0 { format!(" and {more} more") } else { String::new() }
    }

    /// A model's tensor; the input embedding where a tied head has none of its own.
    fn find(&self, want: &Want<'_, '_>) -> Option<At> {
        let embedding = || self.embeddings[want.source].filter(|_| names::is_head(&want.name));
        let tensor = self.sources[want.source].place_of(&want.name).or_else(embedding);
        tensor.map(|tensor| At { source: want.source, tensor })
    }

    fn check_shapes(&mut self, wanted: &Wanted<'_>, holders: &[At]) -> Result<()> {
        let mut shapes = holders.iter().map(|at| (at.source, &self.info(*at).shape));
        let Some((first, shape)) = shapes.next() else { return Ok(()) };
        let Some((other, different)) = shapes.find(|(_, other)| *other != shape) else {
            // Which models' embeddings stand in is known from the names that were found.
            self.untied |= names::is_head(&wanted.name)
                && holders.iter().any(|at| !names::is_head(&self.info(*at).name));
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

    /// Resolves every parameter for a tensor; `first` is one of its inputs, which are all of one shape.
    fn settings(&mut self, wanted: &Wanted<'a>, wants: &[Want<'_, 'a>], first: At) -> Result<Settings> {
        let base = wanted.members.base.filter(|_| self.method.base != Base::Ignored);
        let (mut shared, mut per_input) = (Values::new(), vec![Values::new(); wants.len()]);
        for parameter in self.method.parameters {
            if parameter.kind == ValueKind::File {
                continue;
            }
            if parameter.scope == Scope::Shared {
                shared.push(self.value(parameter, wanted, None)?);
                continue;
            }
            for (input, want) in wants.iter().enumerate() {
                if parameter.scope == Scope::Input || base != Some(input) {
                    per_input[input].push(self.value(parameter, wanted, Some(want))?);
                }
            }
        }
        Ok(Settings {
            tensor: (*wanted.name).into(),
            seed: self.choices.seed,
            depth: wanted.position,
            shape: self.info(first).shape.as_slice().into(),
            elements: self.info(first).elements(),
            inputs: wants.len(),
            base,
            shared: kept(&mut self.last_shared, shared),
            per_input: kept(&mut self.last_per_input, per_input),
        })
    }

    /// A parameter's value for a tensor: of one model, or of all.
    fn value(
        &self,
        parameter: &Parameter,
        wanted: &Wanted<'a>,
        want: Option<&Want<'_, 'a>>,
    ) -> Result<(&'static str, Value)> {
        let own = want.and_then(|want| want.own);
        let scopes = own.into_iter().chain(wanted.members.slice).chain([&self.config.parameters]);
        let (tensor, at) = (want.map_or(&*wanted.name, |want| &*want.name), wanted.position);
        let value = parameters::resolve(self.config, parameter, scopes, tensor, at, &self.comparisons)?;
        value.map(|value| (parameter.name, value)).ok_or_else(|| match want {
            None => self.missing(parameter, &wanted.name, true),
            Some(want) => self.missing(parameter, self.name_of(want.source), want.own.is_some()),
        })
    }

    fn missing(&self, parameter: &Parameter, of: &str, listed: bool) -> Error {
        let Parameter { name, scope, .. } = parameter;
        let at = self.config.merge_method.at;
        let error =
            self.config.error_at(at, format!("{} needs `{name}`, and {of} has none", self.method.name));
        // The commonest reason is a slip of a key.
        let meant = format!("did you mean `{name}`?");
        if !listed {
            return error.hint(
                "base_model is merged like the others: list it with its parameters, or remove base_model",
            );
        }
        error.hint(match self.unread.slip_of(name) {
            Some(slip) => format!("{slip}; {meant}"),
            None if *scope == Scope::Shared => {
                format!("add `parameters: {{{name}: …}}` to the whole config: all models share it")
            }
            None => {
                format!("add `parameters: {{{name}: …}}` to the model, or to the whole config for all models")
            }
        })
    }

    fn finish(mut self, tensors: Vec<Tensor>) -> Result<Plan> {
        if let Some(refusal) = self.file_that_fits_nothing() {
            return Err(refusal);
        }
        check_total(&tensors)?;
        let donor = self.donor();
        let config_edits = self.config_edits(&tensors);
        let mut warnings = self.unread.warnings();
        if let (Inputs::Slices(_), Some(layers)) = (&self.config.inputs, config_edits.layers) {
            warnings.extend(self.stale_layer_lists(layers));
            warnings.extend(warnings::uneven_layers(&self.inputs, &tensors));
        }
        let left_out = wanted::left_out(self.models, &self.inputs);
        let partly_held = std::mem::take(&mut self.partly_held).notes(|sources| self.names_of(sources));
        self.notes.extend(partly_held);
        let of_sources = self.sources.iter().flat_map(|source| source.warnings().iter().cloned());
        self.notes.extend(warnings::few_notes(of_sources.collect()));
        warnings.extend(self.unread_importance());
        let (unread, known) = self.unread_elements();
        warnings.extend(unread);
        self.notes.extend(known);
        self.notes.extend(self.notes_of_float64());
        warnings.extend(self.same_folders());
        warnings.extend(self.differing_configs());
        warnings.extend(self.senseless_values(&tensors));
        self.notes.extend(self.values_of_the_base());
        self.notes.extend(self.work_of_the_processor(&tensors));
        let notes = self.element_notes();
        self.notes.extend(notes);
        let models = matches!(self.config.inputs, Inputs::Models(_)).then_some(self.models.len());
        Ok(Plan {
            weights: models.and_then(|models| data::weights(self.method, &tensors, models)),
            method: self.method,
            seed: self.choices.seed,
            models: self.models.iter().map(|source| source.name.clone()).collect(),
            element_files: self.sources[self.models.len()..]
                .iter()
                .map(|source| source.name.clone())
                .collect(),
            base: self.config.base_model.as_ref().map(|base| self.source_of(&base.value)),
            donor,
            layout: layout(&tensors, self.choices.shard_bytes),
            inputs: self.inputs,
            tensors,
            config_edits,
            left_out,
            notes: self.notes,
            warnings,
        })
    }

    /// What becomes of float64, since arithmetic is f32.
    fn notes_of_float64(&self) -> Vec<String> {
        let read = "float64 is rounded to float32 as it is read; what is larger than float32 can be is read as infinite";
        let stored = "what is stored as float64 is computed in float32, and has no more than its precision";
        let notes = [(self.narrowed, read), (self.widened, stored)];
        notes.into_iter().filter(|(applies, _)| *applies).map(|(_, note)| note.into()).collect()
    }

    fn config_edits(&self, tensors: &[Tensor]) -> ConfigEdits {
        let floats = |dtype: Dtype| tensors.iter().filter(|t| t.dtype == dtype).map(|t| t.bytes).sum::<u64>();
        let all = [Dtype::BF16, Dtype::F16, Dtype::F32, Dtype::F64];
        let most = all.into_iter().max_by_key(|float| floats(*float));
        let head = tensors.iter().any(|tensor| names::is_head(&tensor.name));
        let untied = head && (self.untied || wanted::says_tied(&self.sources[self.donor()]) == Some(true));
        let layers = matches!(self.config.inputs, Inputs::Slices(_))
            .then(|| names::stacks(tensors.iter().map(|t| &*t.name)).values().copied().max().unwrap_or(0));
        ConfigEdits { dtype: most.filter(|float| floats(*float) > 0), layers, tied: untied.then_some(false) }
    }
}

/// A model's tokenizer.json, if it has one.
fn tokenizer(source: &Source) -> Option<InputFile> {
    const TOKENIZER: &str = "tokenizer.json";
    source.folder.has(TOKENIZER).then(|| source.folder.file(TOKENIZER))
}

/// Whether both have none, or the same. One that cannot be read is another one: where it is needed, the merge says why.
fn same_file(one: Option<&InputFile>, other: Option<&InputFile>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => {
            one == other || one.same_content(other, TOKENIZER_BYTES_MAX).unwrap_or(false)
        }
        (None, None) => true,
        _ => false,
    }
}

/// The same values in one place: tensors that are alike share theirs.
fn kept<T: PartialEq>(last: &mut Arc<T>, values: T) -> Arc<T> {
    if **last != values {
        *last = Arc::new(values);
    }
    Arc::clone(last)
}

/// The bytes of a tensor in the output. One that no file can hold is refused: its input may be a hole in a file.
fn stored_bytes(tensor: &str, elements: u64, dtype: Dtype) -> Result<u64> {
    let bytes = u128::from(elements) * dtype.bitsize() as u128 / 8;
    u64::try_from(bytes).ok().filter(|bytes| *bytes <= DATA_BYTES_MAX).ok_or_else(|| {
        Error::config(format!(
            "tensor {tensor}: it takes {bytes} bytes as {dtype:?}, more than any file can hold"
        ))
        .hint("the checkpoint is damaged, or made to do damage")
    })
}

/// Refuses an output that would be larger than any file.
fn check_total(tensors: &[Tensor]) -> Result<()> {
    let bytes: u128 = tensors.iter().map(|tensor| u128::from(tensor.bytes)).sum();
    if bytes <= u128::from(DATA_BYTES_MAX) {
        return Ok(());
    }
    let message = format!("the output would take {bytes} bytes, more than any disk can hold");
    Err(Error::config(message).hint("a slice may repeat large layers too often"))
}

#[cfg(test)]
mod tests;

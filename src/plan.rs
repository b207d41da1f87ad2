//! Config and headers → everything that will happen, resolved; no tensor data is read, no device opened.
//!
//! The plan is data: it prints, it counts its bytes, and the stream obeys it. Every error that the config or
//! the checkpoints' headers can show is found here, all of them at once where that is possible.

mod adapters;
mod align;
mod bare;
mod buffers;
mod chat_template;
mod compared;
mod compatible;
mod data;
mod effects;
mod elements;
mod experts;
mod globs;
mod making;
mod models;
mod modules;
mod moe;
mod names;
mod parameters;
mod partly_held;
mod parts;
mod problems;
mod quantised;
mod staged;
mod truncated;
mod views;
mod vocabulary;
mod wanted;
mod warnings;

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

pub use compared::{Compared, ComparedModel, ComparedTensor, ReadTensor, Readable};
pub use compatible::check_without_codes;
pub use data::{
    Action, ChatTemplate, Copied, LeftOut, Merge, Plan, PlannedModel, RowCounts, Tensor, TokenizerPlan,
    Vocabulary,
};
pub use elements::element_files;
pub use globs::with_found_models;
pub use models::{Place, check, check_counts, check_given, places, problems_of, references, written_at};
pub use moe::check_moe;
pub use names::{Layered, layered};
pub use partly_held::PartlyHeldPolicy;
pub use staged::{Fused, Stage, why_not_fused};

use crate::checkpoint::layout::DATA_BYTES_MAX;
use crate::checkpoint::{ConfigEdits, LayerCount, Source, layout};
use crate::config::{Config, Inputs, Located, ModelRef};
use crate::dtype::{Dtype, Float, computed_as, is_float, promote};
use crate::error::{About, Error, Result};
use crate::hub::Remote;
use crate::method::{self, Base, Method, Parameter, Scope, Settings, Value, ValueKind, Values};
use crate::recipe::Recipe;
use elements::ElementsSeen;
use modules::Modules;
use parameters::{Comparisons, Unread};
use partly_held::PartlyHeld;
use problems::Problems;
use views::{Held, InputList, Model, View, Views};
use wanted::{Want, Wanted};

/// What a plan depends on besides config and headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choices {
    /// The seed of random masks.
    pub seed: u64,
    /// The most data in a shard, in bytes; none: [`crate::checkpoint::layout::usual_shard_bytes`].
    pub shard_bytes: Option<u64>,
    /// Whether models of different architectures are merged all the same.
    pub allow_crimes: bool,
    /// Whether embeddings of different numbers of rows are cut to the fewest.
    pub truncate_embeddings: bool,
    /// What becomes of tensors that only some of the models have.
    pub partly_held: PartlyHeldPolicy,
    /// What is done about models that are not on this machine.
    pub remote: Remote,
}

impl Choices {
    /// What is chosen where nothing is said.
    pub const USUAL: Self = Self {
        seed: 0,
        shard_bytes: None,
        allow_crimes: false,
        truncate_embeddings: false,
        partly_held: PartlyHeldPolicy::Copied,
        remote: Remote::Fetched,
    };
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
    /// Resolves a config against the headers of its models; `sources` are those of [`places`], in order.
    ///
    /// # Errors
    /// All that is wrong with the config and the models together, as one error of kind `Config`.
    pub fn new(config: &Config, sources: &[Source], choices: &Choices) -> Result<Self> {
        Self::with_stages(config, sources, &[], choices)
    }

    /// The same where some models are results of other documents, merged while they are read. What these read stands behind the
    /// sources of [`places`].
    ///
    /// # Errors
    /// As of [`Plan::new`].
    pub fn with_stages(
        config: &Config,
        sources: &[Source],
        fused: &[Fused<'_>],
        choices: &Choices,
    ) -> Result<Self> {
        check(config)?;
        let method = method_of(config)?;
        // What changes the models does so here.
        let (views, tokenizer) = views(config, method, sources, fused, choices)?;
        let donor = views.donor();
        let Views { models, inputs, problems, notes, warnings, .. } = views;
        let opened = places(config);
        let files = element_files(config).into_iter().map(|file| {
            let place = Place::Tensors(file.value.clone());
            (file.value, opened.get_index_of(&place).expect("what is referred to is opened"))
        });
        let mut planner = Planner {
            config,
            method,
            sources,
            models: &models,
            donor,
            places: references(config).into_iter().map(|model| model.value).zip(0..).collect(),
            files: files.collect(),
            elements: ElementsSeen::default(),
            modules: None,
            inputs,
            embeddings: models.iter().map(wanted::tied_embedding).collect(),
            choices,
            unread: Unread::find(config, method),
            comparisons: Comparisons::default(),
            problems,
            partly_held: PartlyHeld::default(),
            last_shared: Arc::default(),
            last_per_input: Arc::default(),
            last_models: Arc::default(),
            notes,
            warnings,
            untied: false,
            narrowed: false,
            widened: false,
        };
        let mut wanted = planner.wanted()?;
        if choices.partly_held == PartlyHeldPolicy::LeftOut {
            planner.leave_out_partly_held(&mut wanted);
        }
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
        planner.finish(tensors, tokenizer)
    }
}

/// The models as a merge sees them, after all that changes them, and what becomes of their tokenizers.
fn views<'a>(
    config: &'a Config,
    method: &Method,
    sources: &'a [Source],
    fused: &[Fused<'_>],
    choices: &Choices,
) -> Result<(Views<'a>, TokenizerPlan)> {
    let mut views = Views::stored(config, sources);
    staged::fuse(&mut views, fused)?;
    bare::check(&mut views);
    settle(&mut views, method);
    let tokenizer = vocabulary::align(&mut views);
    if choices.truncate_embeddings {
        truncated::truncate(&mut views);
    }
    views.problems.stop()?;
    Ok((views, tokenizer))
}

/// Makes the same of all models, however they are stored: floats, with their adapters, under the donor's names.
fn settle(views: &mut Views<'_>, method: &Method) {
    let sources = views.sources;
    views.models.iter_mut().for_each(|model| wanted::hide_tied_head(model, sources));
    buffers::settle(views);
    quantised::dequantise(views, method);
    // Adapters are of experts as their models store them.
    adapters::add(views);
    experts::align(views);
    align::align(views);
}

/// The plan under construction.
struct Planner<'a> {
    config: &'a Config,
    method: &'static Method,
    /// What is on disk: models' folders, and the files that say something of their elements.
    sources: &'a [Source],
    models: &'a [Model<'a>],
    /// As of [`Views::donor`].
    donor: usize,
    /// Which of the models each is, and which of the sources each of those files is, by its path.
    places: HashMap<ModelRef, usize>,
    files: HashMap<String, usize>,
    elements: ElementsSeen,
    /// What the config's modules are, where it has some and their names fit.
    modules: Option<Rc<Modules<'a>>>,
    /// What is read.
    inputs: InputList,
    /// Of each model the embedding that may stand in for its head.
    embeddings: Vec<Option<usize>>,
    choices: &'a Choices,
    unread: Unread,
    comparisons: Comparisons,
    problems: Problems,
    partly_held: PartlyHeld,
    /// The values of the last tensor, which are often those of the next.
    last_shared: Arc<Values>,
    last_per_input: Arc<Vec<Values>>,
    last_models: Arc<Vec<usize>>,
    notes: Vec<String>,
    warnings: Vec<Error>,
    /// Whether a tied embedding stands in for a head that is written.
    untied: bool,
    /// Whether float64 is read, and stored, of what is merged.
    narrowed: bool,
    widened: bool,
}

impl<'a> Planner<'a> {
    fn model_of(&self, model: &ModelRef) -> usize {
        *self.places.get(model).expect("every model of the config is one of its references")
    }

    /// What happens to one tensor, or why nothing can.
    fn tensor(&mut self, wanted: &Wanted<'a>) -> Result<Tensor> {
        let mut wants = wanted.inputs();
        let found: Vec<_> = wants.iter().map(|want| (want.model, self.find(want))).collect();
        let holders: Vec<Held> = found.iter().filter_map(|(_, held)| *held).collect();
        if wanted.members.copied {
            return self.copied(wanted, &holders);
        }
        self.check_shapes(wanted, &holders)?;
        let mut base = wanted.members.base;
        if holders.len() < found.len() {
            if !self.merges_some(base, &found, &holders) {
                return self.held_by_some(wanted, &found, &holders);
            }
            base = self.merge_holders(&mut wants, base, &found);
        }
        let dtypes: Vec<Dtype> = holders.iter().map(|held| self.view(*held).dtype).collect();
        let read = |held: &Held| computed_as(self.inputs.read_as(self.view(*held)));
        let floats: Option<Vec<Float>> = holders.iter().map(read).collect();
        let settings = self.settings(wanted, &wants, base, holders[0])?;
        let recipe = (self.method.recipe)(&settings).map_err(|refusal| {
            let (at, of) = match refusal.about {
                About::Input(input) => {
                    let model = wants[input].model;
                    (references(self.config)[model].at, format!("{}: ", self.name_of(model)))
                }
                About::All | About::Place(..) => (self.config.merge_method.at, String::new()),
            };
            Error { hint: refusal.hint, ..self.config.error_at(at, of + &refusal.message) }
        })?;
        match (recipe, floats) {
            (Recipe::Copy, _) => self.copied(wanted, &holders),
            (Recipe::Passes(recipe), Some(floats)) => {
                let stored = self.stored(&dtypes);
                let output = computed_as(stored).expect("floats are stored as floats");
                self.narrowed |= dtypes.contains(&Dtype::F64);
                self.widened |= stored == Dtype::F64;
                let (name, shape) = (Arc::clone(&settings.tensor), Arc::clone(&settings.shape));
                let elements = settings.elements;
                let bytes = stored_bytes(&name, elements, stored)?;
                let inputs = holders.iter().map(|held| self.inputs.as_floats(self.view(*held))).collect();
                let (models, method) = (self.models_of(&holders), self.method);
                let mut merge = Merge { inputs, models, floats, output, method, settings, recipe };
                self.mask(&wants, &holders, &mut merge)?;
                let importance = self.importance(&wants, &holders)?;
                making::make(&mut merge, &importance, &mut self.inputs.inputs);
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
    fn not_floats(&mut self, wanted: &Wanted<'_>, holders: &[Held], dtypes: &[Dtype]) -> Result<Tensor> {
        match compatible::why_not_copied(self.models, &wanted.name, holders, dtypes) {
            Some(refusal) => Err(refusal),
            None => self.copied(wanted, holders),
        }
    }

    /// A tensor that is copied, converted where it is a float and another type is stored: the one that the config asks for, or of
    /// what is made in a wider type the model's own.
    fn copied(&mut self, wanted: &Wanted<'_>, holders: &[Held]) -> Result<Tensor> {
        let view = self.view(holders[0]);
        let read: Vec<Dtype> = holders.iter().map(|held| self.inputs.read_as(self.view(*held))).collect();
        if let Some(other) = read.iter().find(|dtype| **dtype != read[0]) {
            let a = read[0];
            return Err(Error::config(format!(
                "tensor {}: it can only be copied, but has types {a:?} and {other:?}",
                wanted.name
            ))
            .hint("give it the same type in all models that have it"));
        }
        let from = is_float(read[0]).then_some(read[0]);
        let to = from.map(|_| self.stored(&[view.dtype]));
        let dtype = to.unwrap_or(view.dtype);
        let elements = view.elements();
        Ok(Tensor {
            name: (*wanted.name).into(),
            shape: view.shape.as_ref().into(),
            dtype,
            elements,
            bytes: stored_bytes(&wanted.name, elements, dtype)?,
            action: Action::Copy(Copied {
                holders: holders.iter().map(|held| self.inputs.of(self.view(*held))).collect(),
                models: self.models_of(holders),
                from,
                to,
            }),
        })
    }

    /// The type that floats are stored in: as asked, or else the one that holds all inputs.
    fn stored(&self, floats: &[Dtype]) -> Dtype {
        let asked = self.config.out_dtype.as_ref().or(self.config.dtype.as_ref());
        asked.map_or_else(|| floats.iter().copied().reduce(promote).expect("an input"), |dtype| dtype.value)
    }

    /// The models that hold a tensor, which are often those of the last one.
    fn models_of(&mut self, holders: &[Held]) -> Arc<Vec<usize>> {
        kept(&mut self.last_models, holders.iter().map(|held| held.model).collect())
    }

    fn view(&self, held: Held) -> &'a View<'a> {
        &self.models[held.model].tensors[held.place]
    }

    /// The name that a tensor has in its model.
    fn own_name(&self, held: Held) -> &'a str {
        self.models[held.model].tensors.get_index(held.place).expect("it is held").0
    }

    fn name_of(&self, model: usize) -> &'a str {
        &self.models[model].name
    }

    /// Some models by name, and how many more there are.
    fn names_of(&self, models: &[usize]) -> String {
        const NAMED_MAX: usize = 8;
        let named: Vec<&str> = models.iter().take(NAMED_MAX).map(|model| self.name_of(*model)).collect();
        let more = models.len() - named.len();
        named.join(", ") + &if more > 0 { format!(" and {more} more") } else { String::new() }
    }

    /// A model's tensor; the input embedding where a tied head has none of its own.
    fn find(&self, want: &Want<'_, '_>) -> Option<Held> {
        let embedding = || self.embeddings[want.model].filter(|_| names::is_head(&want.name));
        let place = self.models[want.model].tensors.get_index_of(&*want.name).or_else(embedding);
        place.map(|place| Held { model: want.model, place })
    }

    fn check_shapes(&mut self, wanted: &Wanted<'_>, holders: &[Held]) -> Result<()> {
        let mut shapes = holders.iter().map(|held| (held.model, &self.view(*held).shape));
        let Some((first, shape)) = shapes.next() else { return Ok(()) };
        let Some((other, different)) = shapes.find(|(_, other)| *other != shape) else {
            // Which models' embeddings stand in is known from the names that were found.
            self.untied |= names::is_head(&wanted.name)
                && holders.iter().any(|held| !names::is_head(self.own_name(*held)));
            return Ok(());
        };
        let problem = Error::config(format!(
            "tensor {}: it is {shape:?} in {} and {different:?} in {}",
            wanted.name,
            self.name_of(first),
            self.name_of(other)
        ));
        let vocabulary = names::is_over_vocabulary(&wanted.name);
        Err(problem.hint(if vocabulary {
            "the models' vocabularies differ: `tokenizer_source: union` aligns them by token, \
             --unsafe-truncate-embeddings cuts them to the fewest rows"
        } else {
            "only models of the same architecture and size can be merged"
        }))
    }

    /// Resolves every parameter for a tensor; `first` is one of its inputs, which are all of one shape.
    fn settings(
        &mut self,
        wanted: &Wanted<'a>,
        wants: &[Want<'_, 'a>],
        base: Option<usize>,
        first: Held,
    ) -> Result<Settings> {
        let base = base.filter(|_| self.method.base != Base::Ignored);
        let (mut shared, mut per_input) = (Values::new(), vec![Values::new(); wants.len()]);
        let mut problems = Vec::new();
        let mut put = |value, into: &mut Values| match value {
            Ok(value) => into.push(value),
            Err(problem) => problems.push(problem),
        };
        for parameter in self.method.parameters.iter().filter(|parameter| parameter.kind != ValueKind::File) {
            if parameter.scope == Scope::Shared {
                put(self.value(parameter, wanted, None), &mut shared);
                continue;
            }
            for (input, want) in wants.iter().enumerate() {
                if parameter.scope == Scope::Input || base != Some(input) {
                    put(self.value(parameter, wanted, Some(want)), &mut per_input[input]);
                }
            }
        }
        if let Some(last) = problems.pop() {
            problems.into_iter().for_each(|problem| self.problems.add(problem));
            return Err(last);
        }
        Ok(Settings {
            tensor: (*wanted.name).into(),
            seed: self.choices.seed,
            depth: wanted.position,
            shape: self.view(first).shape.as_ref().into(),
            elements: self.view(first).elements(),
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
        let scopes = own
            .into_iter()
            .chain(wanted.members.slice)
            .chain(wanted.members.module)
            .chain([&self.config.parameters]);
        let (tensor, at) = (want.map_or(&*wanted.name, |want| &*want.name), wanted.position);
        let value = parameters::resolve(self.config, parameter, scopes, tensor, at, &self.comparisons)?;
        value.map(|value| (parameter.name, value)).ok_or_else(|| {
            let of = want.map_or(&*wanted.name, |want| self.name_of(want.model));
            parameters::left_out_by_filters(self.config, self.method, parameter, of, tensor)
        })
    }

    fn finish(mut self, tensors: Vec<Tensor>, tokenizer: TokenizerPlan) -> Result<Plan> {
        if let Some(refusal) = self.file_that_fits_nothing() {
            return Err(refusal);
        }
        check_total(&tensors)?;
        let config_edits = self.config_edits(&tensors);
        let mut warnings = std::mem::take(&mut self.warnings);
        warnings.extend(self.unread.warnings());
        let text = config_edits.counts.iter().find(|count| ["text_decoder", "default"].contains(&count.part));
        warnings.extend(text.and_then(|text| self.stale_layer_lists(text.from, text.to)));
        if let Inputs::Slices(_) = &self.config.inputs {
            warnings.extend(warnings::uneven_layers(&tensors));
        }
        let left_out = self.left_out(&tensors);
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
        warnings.extend(self.without_effect(&tensors));
        self.notes.extend(self.values_of_the_base());
        self.notes.extend(self.work_of_the_processor(&tensors));
        let notes = self.element_notes();
        self.notes.extend(notes);
        let models = matches!(self.config.inputs, Inputs::Models(_)).then_some(self.models.len());
        Ok(Plan {
            weights: models.and_then(|models| data::weights(self.method, &tensors, models)),
            method: self.method,
            seed: self.choices.seed,
            models: self.models.iter().map(Model::planned).collect(),
            element_files: self.element_sources(),
            base: self.config.base_model.as_ref().map(|base| self.model_of(&base.value)),
            donor: self.donor,
            layout: layout(&tensors, self.choices.shard_bytes),
            inputs: self.inputs.inputs,
            tensors,
            tokenizer,
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
        let untied =
            head && (self.untied || wanted::says_tied(&self.models[self.donor].config) == Some(true));
        let keys = self.models[self.donor].edits.clone();
        let names = || tensors.iter().map(|tensor| &*tensor.name);
        let mut counts: Vec<_> =
            self.modules.iter().flat_map(|modules| self.layer_counts(modules, names())).collect();
        if let Inputs::Slices(_) = self.config.inputs {
            let from = highest_stack(self.models[self.donor].names());
            counts.push(LayerCount { part: "default", from, to: highest_stack(names()) });
        }
        ConfigEdits {
            counts,
            dtype: most.filter(|float| floats(*float) > 0),
            tied: untied.then_some(false),
            keys,
            ..ConfigEdits::default()
        }
    }
}

/// How many layers the highest stack has.
fn highest_stack<'n>(names: impl Iterator<Item = &'n str>) -> usize {
    names::stacks(names).values().copied().max().unwrap_or(0)
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

//! Masks and importance: files that say something of every element of a model, which stand beside it in its entry.
//!
//! Where a mask is 0, an element of the model counts as the base's: an input that is made of both stands in for the model's own.
//! Importance goes to the method that reads it. Both are looked up under the names that the model's tensors have in its own
//! files; for a head that a tied embedding stands in for, under the head's name first and then under the embedding's.

use std::collections::HashMap;

use indexmap::{IndexMap, IndexSet};

use super::problems::Problems;
use super::views::Held;
use super::wanted::Want;
use super::warnings::few;
use super::{Base, Merge, Method, Planner, method_of};
use crate::checkpoint::{Source, TensorInfo};
use crate::config::{Config, Entry, Located};
use crate::dtype::computed_as;
use crate::error::{Error, Result, slip_of};
use crate::input::{At, Floats, Input, Masked, Stated};
use crate::limits::MODELS_MAX;

/// The files of a config that say something of elements and are read, each once, in the order of appearance.
pub fn element_files(config: &Config) -> Vec<Located<String>> {
    let reads_importance = method_of(config).is_ok_and(Method::reads_importance);
    let mut files: IndexMap<&str, &Located<String>> = IndexMap::new();
    for Entry { files: own, .. } in config.entries() {
        let importance = own.importance.as_ref().filter(|_| reads_importance);
        for file in own.mask.iter().chain(importance) {
            files.entry(&file.value).or_insert(file);
        }
    }
    files.into_values().cloned().collect()
}

/// What can be known of these files without opening any.
pub(super) fn check(config: &Config, method: &Method, problems: &mut Problems) {
    for Entry { model, files, slice, .. } in config.entries() {
        let base = slice.and_then(|slice| slice.base_model.as_ref()).or(config.base_model.as_ref());
        if let Some(mask) = &files.mask
            && (base.is_some() || config.is_whole)
            && let Some((problem, hint)) = no_masks(method, base.map(|base| base.value == model.value))
        {
            problems.add(config.error_at(mask.at, problem).hint(hint));
        }
        if method.reads_importance() && files.importance.is_none() && config.is_whole {
            let problem =
                config.error_at(model.at, format!("{} needs the importance of {}", method.name, model.value));
            problems.add(problem.hint(
                "add `importance: FILE` beside `model:`, or merge with `linear`, which weighs all elements alike",
            ));
        }
    }
    if let Some(base) = config.base_model.as_ref().filter(|_| method.reads_importance() && config.is_whole)
        && config.entries().iter().all(|entry| entry.slice.is_none() && entry.model.value != base.value)
    {
        let problem = format!("{} needs the importance of {}", method.name, base.value);
        problems.add(
            config.error_at(base.at, problem).hint(
                "base_model is merged like the others: list it with its importance, or remove base_model",
            ),
        );
    }
}

/// More files than any merge has.
pub(super) fn too_many(config: &Config) -> Option<Error> {
    let count = element_files(config).len();
    let message = || format!("{count} files of masks and importance are more than {}", 2 * MODELS_MAX);
    (count > 2 * MODELS_MAX).then(|| {
        config.error_at(config.merge_method.at, message()).hint("one file can serve several entries")
    })
}

/// Why a model cannot have a mask, and the way out; `is_base` where there is a base.
fn no_masks(method: &Method, is_base: Option<bool>) -> Option<(String, &'static str)> {
    let name = method.name;
    match (method.base, is_base) {
        (Base::Ignored, _) => Some((
            format!("{name} knows no base, and a mask says where a model counts as the base"),
            "use a method that merges differences to a base_model, like task_arithmetic",
        )),
        (_, None) => Some((
            format!("{name} has no base_model here, and a mask says where a model counts as the base"),
            "add `base_model:`, the checkpoint that the models were trained from",
        )),
        (_, Some(true)) => Some((
            "the base model has a mask, and a mask says where a model counts as the base".into(),
            "write the mask beside one of the other models",
        )),
        (_, Some(false)) => None,
    }
}

/// What was found out about the files while tensors were planned.
#[derive(Debug, Default)]
pub(super) struct ElementsSeen {
    /// Inputs that are masked, by base, model and mask: outputs that read the same share one.
    masked: HashMap<[usize; 3], usize>,
    /// How many tensors are merged with masks.
    with_mask: usize,
    /// Merged tensors that a model's mask has not, by mask and model: the first, and how many.
    lacking: IndexMap<(usize, usize), (String, usize)>,
    /// Merged tensors that no importance file has.
    without_importance: usize,
    /// The models that each file belongs to.
    models: IndexMap<usize, IndexSet<usize>>,
}

impl<'a> Planner<'a> {
    /// Puts masked inputs in place of those of models that have masks.
    pub(super) fn mask(&mut self, wants: &[Want<'_, '_>], holders: &[Held], merge: &mut Merge) -> Result<()> {
        let mut is_masked = false;
        for (place, (want, model)) in wants.iter().zip(holders).enumerate() {
            let Some(file) = want.files.and_then(|files| files.mask.as_ref()) else { continue };
            let source = self.files[file.value.as_str()];
            let Some(mask) = self.of_elements(source, want, *model)? else {
                let lacking = self.elements.lacking.entry((source, want.model));
                lacking.or_insert_with(|| (want.name.to_string(), 0)).1 += 1;
                continue;
            };
            is_masked = true;
            let base = merge.settings.base_input();
            let of = |place: usize| Floats { input: merge.inputs[place], float: merge.floats[place] };
            let number = self.masked(of(base), of(place), mask)?;
            let Input::Made(made) = &self.inputs.inputs[number] else { unreachable!("it was made") };
            (merge.inputs[place], merge.floats[place]) = (number, made.float());
        }
        self.elements.with_mask += usize::from(is_masked);
        Ok(())
    }

    /// The number of a model's tensor with a mask.
    fn masked(&mut self, base: Floats, model: Floats, mask: At) -> Result<usize> {
        let (number, info) = (self.inputs.stored(mask), self.info(mask));
        let Some(made) = Masked::new(base, model, number, info.dtype) else {
            return Err(wrong_type(
                &self.sources[mask.source],
                info,
                "a mask is of truth values (BOOL), whole numbers or floats",
            ));
        };
        let inputs = &mut self.inputs;
        Ok(*self
            .elements
            .masked
            .entry([base.input, model.input, number])
            .or_insert_with(|| inputs.make(made)))
    }

    /// The importance of a tensor to every model; of none, where no file has it.
    pub(super) fn importance(
        &mut self,
        wants: &[Want<'_, '_>],
        holders: &[Held],
    ) -> Result<Vec<Option<Stated>>> {
        let mut all = vec![None; wants.len()];
        if !self.method.reads_importance() {
            return Ok(all);
        }
        let mut lacking = Vec::new();
        for ((want, model), importance) in wants.iter().zip(holders).zip(&mut all) {
            let file = want.files.and_then(|files| files.importance.as_ref());
            let source = self.files[file.expect("models without one are refused").value.as_str()];
            let Some(at) = self.of_elements(source, want, *model)? else {
                lacking.push(&*self.sources[source].name);
                continue;
            };
            let info = self.info(at);
            let Some(float) = computed_as(info.dtype) else {
                return Err(wrong_type(
                    &self.sources[source],
                    info,
                    "importance is stored as floats of 16, 32 or 64 bits",
                ));
            };
            let input = self.inputs.floats_at(at, info.dtype);
            let name = format!("tensor {} of {}", info.name, self.sources[source].name).into();
            *importance = Some(Stated { values: Floats { input, float }, name });
        }
        if lacking.len() == wants.len() {
            self.elements.without_importance += 1;
        } else if !lacking.is_empty() {
            let (name, lacking) = (&wants[0].name, lacking.join(", "));
            return Err(Error::config(format!("tensor {name}: {lacking} has no importance of it, others have"))
                .hint("write the same tensors to the files of all models; what is in none is averaged by weight alone"));
        }
        Ok(all)
    }

    /// Which sources are such files.
    pub(super) fn element_sources(&self) -> Vec<usize> {
        let mut sources: Vec<usize> = self.files.values().copied().collect();
        sources.sort_unstable();
        sources
    }

    fn info(&self, at: At) -> &'a TensorInfo {
        self.sources[at.source].tensor_at(at.tensor)
    }

    /// A file's tensor about one of a model's.
    fn of_elements(&mut self, file: usize, want: &Want<'_, '_>, model: Held) -> Result<Option<At>> {
        self.elements.models.entry(file).or_default().insert(want.model);
        let (own, source) = (self.view(model), &self.sources[file]);
        // Where an embedding stands in for a head, the two have different names.
        let found = source.place_of(&want.name).or_else(|| source.place_of(self.own_name(model)));
        let Some(tensor) = found else { return Ok(None) };
        let at = At { source: file, tensor };
        let info = self.info(at);
        if *info.shape != *own.shape {
            let (file, model) = (&source.name, self.name_of(want.model));
            let problem = format!(
                "tensor {}: it is {:?} in {file} and {:?} in {model}",
                info.name, info.shape, own.shape
            );
            return Err(
                Error::config(problem).hint("each element of the file is about one element of the model")
            );
        }
        Ok(Some(at))
    }

    /// What the files lack.
    pub(super) fn element_notes(&mut self) -> Vec<String> {
        let mut notes = Vec::new();
        let ElementsSeen { with_mask, lacking, without_importance, .. } = &self.elements;
        if *with_mask > 0 {
            notes.push(format!(
                "masks: the processor puts the base where they are 0, whichever device merges ({with_mask} tensors)"
            ));
        }
        for ((mask, model), (first, count)) in lacking {
            let (mask, model) = (&self.sources[*mask].name, self.name_of(*model));
            let what =
                if *count == 1 { first.clone() } else { format!("{first} and {} more tensors", count - 1) };
            notes.push(format!("{what} of {model}: not in {mask}, so all of their elements count"));
        }
        if *without_importance > 0 {
            notes.push(format!(
                "{}: {without_importance} tensors are in no importance file, and are averaged by weight alone",
                self.method.name
            ));
        }
        notes
    }

    /// A file of which no tensor is one of its models'.
    pub(super) fn file_that_fits_nothing(&self) -> Option<Error> {
        let fits = |file: usize| {
            let models = || self.elements.models.get(&file).into_iter().flatten();
            let known = |tensor: &TensorInfo| {
                models().any(|model| self.models[*model].tensors.contains_key(tensor.name.as_str()))
            };
            self.sources[file].tensors().any(known)
        };
        let file = self.element_sources().into_iter().find(|file| !fits(*file))?;
        let source = &self.sources[file];
        let first = source
            .tensors()
            .next()
            .map_or_else(|| "it has none".into(), |tensor| format!("its first is {}", tensor.name));
        let message =
            format!("{}: none of its tensors has the name of one of the model's; {first}", source.name);
        Some(Error::config(message).hint("give the tensors the names that they have in the model's files, without a prefix such as `module.`"))
    }

    /// Tensors of the files that nothing reads: a warning where they are of no tensor of the model, else a note.
    pub(super) fn unread_elements(&self) -> (Vec<Error>, Vec<String>) {
        let (mut warnings, mut notes) = (Vec::new(), Vec::new());
        for file in self.element_sources() {
            let source = &self.sources[file];
            let is_read = |tensor: usize| self.inputs.is_read(At { source: file, tensor });
            let unread =
                source.tensors().enumerate().filter(|(place, _)| !is_read(*place)).map(|(_, tensor)| tensor);
            let models = self.elements.models.get(&file);
            let of_model = |tensor: &&TensorInfo| {
                let mut models = models.into_iter().flatten();
                models.any(|model| self.models[*model].tensors.contains_key(tensor.name.as_str()))
            };
            let (known, unknown): (Vec<_>, Vec<_>) = unread.partition(of_model);
            if let Some(first) = known.first() {
                let what = counted(&first.name, known.len());
                notes.push(format!(
                    "{what} of {}: not read, since the model's are not merged with it",
                    source.name
                ));
            }
            if let Some(first) = unknown.first() {
                let names: Vec<&str> =
                    models.into_iter().flatten().map(|model| self.name_of(*model)).collect();
                let what = counted(&first.name, unknown.len());
                let message =
                    format!("{what} of {}: no tensor of {} has this name", source.name, names.join(", "));
                let all = models.into_iter().flatten().flat_map(|model| self.models[*model].names());
                let hint = slip_of(&first.name, all).map_or_else(
                    || "it is not read: tensors have the names that they have in the model's files".into(),
                    |meant| format!("it is not read: did you mean `{meant}`?"),
                );
                warnings.push(Error::config(message).hint(hint));
            }
        }
        (few(warnings), super::warnings::few_notes(notes))
    }

    /// Importance that the method does not read.
    pub(super) fn unread_importance(&self) -> Vec<Error> {
        if self.method.reads_importance() {
            return Vec::new();
        }
        let warning = |file: &Located<String>| {
            let message = format!("{} does not read `importance`: it is ignored", self.method.name);
            self.config.error_at(file.at, message).hint("`merge_method: fisher` reads it")
        };
        let written: IndexSet<_> = self
            .config
            .entries()
            .iter()
            .filter_map(|entry| entry.files.importance.as_ref())
            .map(|file| (file.at, &file.value))
            .collect();
        let warnings = written.into_iter().map(|(at, value)| warning(&Located { value: value.clone(), at }));
        few(warnings.collect())
    }
}

fn counted(first: &str, count: usize) -> String {
    if count == 1 { format!("tensor {first}") } else { format!("tensor {first} and {} more", count - 1) }
}

fn wrong_type(source: &Source, TensorInfo { name, dtype, .. }: &TensorInfo, expected: &str) -> Error {
    Error::config(format!("tensor {name}: it is of {dtype:?} in {}", source.name)).hint(expected)
}

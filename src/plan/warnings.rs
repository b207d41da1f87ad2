//! What a user should know about a plan, or probably did not mean. However many files and values there are, what is of a
//! kind is reported in a few lines.

use std::collections::{HashMap, HashSet};

use indexmap::IndexMap;

use super::{Action, Merge, Planner, Tensor, names};
use crate::checkpoint::per_layer_lists;
use crate::config::{FEW_MAX, Inputs, Located, ModelRef, Parameters, Position, Slice};
use crate::error::Error;
use crate::method::{Base, Scope, Sensible, Value};

/// Of a few warnings each; of more the first, and how many there are.
pub(super) fn few(mut warnings: Vec<Error>) -> Vec<Error> {
    if warnings.len() > FEW_MAX {
        let more = more_like_it(warnings.len());
        warnings.truncate(1);
        warnings[0].message += &more;
    }
    warnings
}

/// As [`few`], of notes.
pub(super) fn few_notes(mut notes: Vec<String>) -> Vec<String> {
    if notes.len() > FEW_MAX {
        let more = more_like_it(notes.len());
        notes.truncate(1);
        notes[0] += &more;
    }
    notes
}

fn more_like_it(count: usize) -> String {
    format!(" (and {} more like it)", count - 1)
}

impl Planner<'_> {
    /// Two names of one folder are two models to the config, and probably not to the user.
    pub(super) fn same_folders(&self) -> Vec<Error> {
        let mut known = HashMap::new();
        let mut warnings = Vec::new();
        // The folder of one that is merged on the way is that of a model it is made of.
        let stored = self.models.iter().filter(|model| !model.is_merged);
        let mut sources: Vec<usize> = stored.map(|model| model.source).collect();
        sources.dedup();
        for source in sources.into_iter().map(|source| &self.sources[source]) {
            let file = (!source.is_folder()).then(|| source.place());
            let first = *known.entry((source.folder.real(), file)).or_insert(&source.name);
            if first != &source.name {
                let message = format!("{first} and {} are the same folder", source.name);
                let hint = "name it the same way everywhere, or it is merged twice";
                warnings.push(Error::config(message).hint(hint));
            }
        }
        few(warnings)
    }

    /// Values that a parameter takes but that make no sense, like a density of 50: the first of each model.
    pub(super) fn senseless_values(&self, tensors: &[Tensor]) -> Vec<Error> {
        let ranged: Vec<_> =
            self.method.parameters.iter().filter_map(|p| Some((p.name, p.sensible?))).collect();
        let mut seen = HashSet::new();
        let mut warnings: IndexMap<&str, Vec<Error>> = IndexMap::new();
        for (name, value, model) in tensors.iter().filter_map(merge).flat_map(own_values) {
            let Some((_, Sensible { least, most, beyond })) =
                ranged.iter().find(|(ranged, _)| *ranged == name)
            else {
                continue;
            };
            if !(*least..=*most).contains(&value) && seen.insert((name, model)) {
                let message =
                    format!("{name} {value} of {} is not from {least} to {most}", self.name_of(model));
                let warning = self.config.error_at(self.written_at(name, model), message);
                warnings.entry(name).or_default().push(warning.hint(*beyond));
            }
        }
        let shared = tensors.iter().filter_map(merge).flat_map(|merge| merge.settings.shared.iter());
        for (name, value) in shared {
            let Some((_, Sensible { least, most, beyond })) =
                ranged.iter().find(|(ranged, _)| ranged == name)
            else {
                continue;
            };
            let Value::Number(number) = value else { continue };
            if !(*least..=*most).contains(number) && !warnings.contains_key(name) {
                let message = format!("{name} {number} is not from {least} to {most}");
                let written = self.config.parameters.get(*name).map_or(self.config.merge_method.at, |p| p.at);
                warnings.entry(name).or_default().push(self.config.error_at(written, message).hint(*beyond));
            }
        }
        warnings.into_values().flat_map(few).collect()
    }

    /// Where the innermost scope that has a parameter of a model has it.
    fn written_at(&self, parameter: &str, of: usize) -> Position {
        let config = self.config;
        let is_this = |model: &Located<ModelRef>| self.model_of(&model.value) == of;
        let scopes: Vec<&Parameters> = match &config.inputs {
            Inputs::Models(models) => {
                models.iter().filter(|input| is_this(&input.model)).map(|input| &*input.parameters).collect()
            }
            Inputs::Slices(_) | Inputs::Modules(_) => {
                let slices = config.inputs.slices();
                let own = slices.iter().flat_map(|slice| &slice.sources);
                let own = own.filter(|own| is_this(&own.model)).map(|own| &own.parameters);
                let has_this = |slice: &&&Slice| slice.sources.iter().any(|own| is_this(&own.model));
                own.chain(slices.iter().filter(has_this).map(|slice| &slice.parameters)).collect()
            }
        };
        let written = scopes.into_iter().chain([&config.parameters]).find_map(|scope| scope.get(parameter));
        written.map_or(config.merge_method.at, |written| written.at)
    }

    /// Parameters written under a base that has none: many configs have them, and they change nothing.
    pub(super) fn values_of_the_base(&self) -> Vec<String> {
        let (Inputs::Models(models), Some(base)) = (&self.config.inputs, &self.config.base_model) else {
            return Vec::new();
        };
        if self.method.base == Base::Ignored {
            return Vec::new();
        }
        let of_base = models.iter().filter(|input| input.model.value == base.value);
        let names = of_base.flat_map(|input| input.parameters.keys()).filter(|name| {
            self.method.parameters.iter().any(|p| p.name == name.as_str() && p.scope == Scope::NonBase)
        });
        names.map(|name| format!("{name} of {} is not read: it is the base", base.value)).collect()
    }

    /// What the processor does for whichever device merges, and for how many tensors.
    pub(super) fn work_of_the_processor(&self, tensors: &[Tensor]) -> Option<String> {
        let decided = self.method.by_processor?;
        let makes = |tensor: &&Tensor| matches!(&tensor.action, Action::Merge(merge) if !merge.recipe.made.is_empty());
        let count = tensors.iter().filter(makes).count();
        (count > 0).then(|| format!("{}: the processor {decided} ({count} tensors)", self.method.name))
    }

    /// config.json may list something for every layer of the donor; such lists are not cut to fit.
    pub(super) fn stale_layer_lists(&self, had: usize, layers: usize) -> Option<Error> {
        let donor = &self.models[self.donor];
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

fn merge(tensor: &Tensor) -> Option<&Merge> {
    match &tensor.action {
        Action::Merge(merge) => Some(merge),
        Action::Copy(_) => None,
    }
}

/// The numbers of a merge that belong to one model each: name, value and the model.
fn own_values(merge: &Merge) -> impl Iterator<Item = (&'static str, f64, usize)> {
    merge.settings.per_input.iter().zip(&*merge.models).flat_map(|(values, model)| {
        values.iter().filter_map(move |(name, value)| match value {
            Value::Number(number) => Some((*name, *number, *model)),
            Value::Flag(_) | Value::Word(_) | Value::Null => None,
        })
    })
}

/// Stacked layers of models that do not fit together: the same tensor has other dimensions in another layer.
pub(super) fn uneven_layers(tensors: &[Tensor]) -> Option<Error> {
    let first_model = |tensor: &Tensor| tensor.models()[0];
    let mut first: HashMap<&str, &Tensor> = HashMap::new();
    for tensor in tensors {
        let Some(layered) = names::layered(&tensor.name) else { continue };
        let other = *first.entry(layered.rest).or_insert(tensor);
        if other.shape != tensor.shape && first_model(other) != first_model(tensor) {
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

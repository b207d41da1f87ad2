//! `modules:`: parts of models, each merged by itself, and what no module names, which is copied from the donor.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use super::parts::{self, Anatomy, Selector};
use super::views::Model;
use super::wanted::{Members, Wanted, Within};
use super::{Planner, names};
use crate::checkpoint::LayerCount;
use crate::config::{Located, Module, Position};
use crate::error::{Error, Result};

/// The modules of a config. The largest models of all modalities have some ten parts.
const MODULES_MAX: usize = 64;

/// So many stacks are named in a hint.
const STACKS_SHOWN_MAX: usize = 8;

/// The modules of a config, and which tensors each is about.
#[derive(Debug)]
pub(super) struct Modules<'a> {
    pub(super) written: &'a [Module],
    anatomy: Anatomy,
    /// The place of each tensor's module among them.
    of: HashMap<&'a str, usize>,
}

impl Modules<'_> {
    /// The module that a tensor belongs to, if one names it.
    pub(super) fn of(&self, name: &str) -> Option<usize> {
        self.of.get(name).copied()
    }
}

impl<'a> Planner<'a> {
    /// The tensors that the modules of a config are about.
    ///
    /// # Errors
    /// Every name that fits nothing, or the same as another, with what was wrong before. Nothing can be known of the tensors then.
    pub(super) fn find_modules(&mut self, written: &'a [Module]) -> Result<Modules<'a>> {
        if let Some(beyond) = written.get(MODULES_MAX) {
            let problem = format!("more than {MODULES_MAX} modules");
            let problem = self.config.error_at(beyond.name.at, problem);
            self.problems.add(problem.hint("no model has so many parts: several can be one module"));
            self.problems.stop()?;
        }
        let anatomy = Anatomy::of(self.all_names());
        let mut found: Vec<(Selector, &str)> = Vec::new();
        for Module { name: Located { value: name, at }, .. } in written {
            let Some(selector) = Selector::of(name, anatomy, self.all_names()) else {
                let problem = self.no_module(name, *at, anatomy);
                self.problems.add(problem);
                continue;
            };
            if let Some((_, same)) = found.iter().find(|(other, _)| *other == selector) {
                let problem = format!("the modules `{same}` and `{name}` are about the same tensors");
                self.problems.add(self.config.error_at(*at, problem).hint("name each part once"));
                continue;
            }
            found.push((selector, name));
        }
        if found.len() < written.len() {
            self.problems.stop()?;
        }
        let selectors: Vec<Selector> = found.into_iter().map(|(selector, _)| selector).collect();
        let module = |name| Some((name, parts::module_of(&selectors, anatomy, name)?));
        Ok(Modules { written, anatomy, of: self.all_names().filter_map(module).collect() })
    }

    fn no_module(&self, name: &str, at: Position, anatomy: Anatomy) -> Error {
        let donor = &self.models[self.donor];
        let problem = self.config.error_at(at, format!("no module `{name}` in {}", donor.name));
        let described = parts::described(anatomy, donor.names());
        let can_be = "a module can also be what tensors' names begin with, such as `model.visual`";
        problem.hint(match parts::near(name, anatomy, self.all_names()) {
            Some(near) => format!("did you mean `{near}`? it has {described}"),
            None => format!("it has {described}; {can_be}"),
        })
    }

    /// The names of all models' tensors, the donor's first.
    fn all_names(&self) -> impl Iterator<Item = &'a str> + Clone + use<'a> {
        let (models, donor) = (self.models, self.donor);
        std::iter::once(&models[donor]).chain(models).flat_map(Model::names)
    }

    /// The tensors of modules, and those of the donor that are in none.
    pub(super) fn of_modules(&mut self, modules: &Modules<'a>) -> Vec<Wanted<'a>> {
        let mut all = Vec::new();
        for (i, module) in modules.written.iter().enumerate() {
            let is_in = |name: &str| modules.of(name) == Some(i);
            let within = Within { scope: Some(&module.parameters), is_in: &is_in };
            all.extend(self.of_inputs(&module.inputs, &within));
            if self.has_too_many(all.len()) {
                return Vec::new();
            }
        }
        let donor = self.donor;
        let members = Rc::new(Members::donor(donor));
        let copied = |name: &'a str| Wanted::loose(name, &members);
        let rest: Vec<&str> = self.models[donor].names().filter(|name| modules.of(name).is_none()).collect();
        if !rest.is_empty() {
            let (name, listed) = (self.name_of(donor), parts::listed(modules.anatomy, &rest));
            self.notes.push(format!("copied from {name}, since no module names it: {listed}"));
        }
        all.extend(rest.into_iter().map(copied));
        all
    }

    /// What to do where a model, or a module of it, has several stacks of layers.
    pub(super) fn hint_of_stacks(&self, model: usize) -> String {
        let names = || self.models[model].names();
        let anatomy = Anatomy::of(names());
        if self.modules.is_some() {
            let stacks: Vec<&str> = names::stacks(names()).into_keys().take(STACKS_SHOWN_MAX).collect();
            return format!("a module can be one stack of layers, by its name: {}", stacks.join(", "));
        }
        if anatomy == Anatomy::Single {
            return "use `models:` instead".into();
        }
        let described = parts::described(anatomy, names());
        format!("write `modules:`, with `slices:` in those whose layers are picked: it has {described}")
    }

    /// Where the donor's config.json counts the layers of modules that have other numbers of them in the output.
    pub(super) fn layer_counts<'n>(
        &self,
        modules: &Modules<'_>,
        output: impl Iterator<Item = &'n str>,
    ) -> Vec<LayerCount> {
        let has = names::stacks(output);
        let had: BTreeMap<&str, usize> = names::stacks(self.models[self.donor].names()).into_iter().collect();
        let changed = |(stack, to): (&str, usize)| {
            // The part says what the count is called.
            let part = modules.anatomy.part(&format!("{stack}.0.")).name();
            let from = *had.get(stack)?;
            (from != to).then_some(LayerCount { part, from, to })
        };
        has.into_iter().filter_map(changed).collect()
    }

    /// Whether a model has what a module of the donor has, in the same shapes: then the two are alike as far as they are merged,
    /// whatever they are called. Else the first tensor that it lacks.
    pub(super) fn lacks(&self, modules: &Modules<'_>, model: usize) -> Option<String> {
        let in_module = |module: &Module| {
            module.inputs.entries().iter().any(|entry| self.model_of(&entry.model.value) == model)
        };
        let listed: Vec<bool> = modules.written.iter().map(in_module).collect();
        let (own, donor) = (&self.models[model], &self.models[self.donor]);
        let first_layers = names::kinds(own.names());
        let is_held = |name: &str, shape: &[usize]| {
            let kind = names::kind(name);
            let place = first_layers.get(&kind).copied();
            let held = place.map(|place| &own.tensors[place].shape);
            // Rows of vocabularies are compared where they are merged.
            let sides = usize::from(names::is_head(name) || names::is_embedding(name));
            held.map_or(names::is_head(name), |held| held.get(sides..) == shape.get(sides..))
        };
        let of_modules = donor.tensors.iter().filter(|(name, _)| modules.of(name).is_some_and(|i| listed[i]));
        let mut lacking = of_modules.filter(|(name, view)| !is_held(name, &view.shape));
        lacking.next().map(|(name, _)| name.to_string())
    }
}

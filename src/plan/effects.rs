//! Values of a config that change nothing, or something else than they seem to: filters that fit no tensor, entries that are never
//! reached, lists that are gradients, and parameters that others make idle.

use std::collections::HashSet;

use super::warnings::few;
use super::{Action, Model, Planner, Tensor, names};
use crate::config::{Conditional, Inputs, Located, Position, Scalar, WrittenValue};
use crate::error::{Error, did_you_mean};
use crate::method::{Scope, Value};

/// How often filters are compared with names here. What takes more is not looked at.
const COMPARED_MAX: usize = 1 << 22;

impl Planner<'_> {
    /// All of these, few of each kind.
    pub(super) fn without_effect(&self, tensors: &[Tensor]) -> Vec<Error> {
        let mut warnings = few(self.idle_filters(tensors));
        warnings.extend(few(self.unreached_entries()));
        warnings.extend(self.lists_by_model());
        warnings.extend(self.idle_decay(tensors));
        warnings.extend(self.idle_gamma(tensors));
        warnings
    }

    /// Entries of a parameter behind one without a filter, which fits every tensor.
    fn unreached_entries(&self) -> Vec<Error> {
        let scopes = self.config.scopes();
        let read = scopes.iter().flat_map(|(_, scope)| scope.iter()).filter(|(name, _)| {
            self.method.parameters.iter().any(|parameter| parameter.name == name.as_str())
        });
        let unreached = read.filter(|(_, Located { value, .. })| {
            value.0.iter().rev().skip(1).any(|entry| entry.filter.is_none())
        });
        // Aliases bring the same place up again.
        let mut places: Vec<(Position, &str)> = unreached.map(|(name, value)| (value.at, &**name)).collect();
        places.sort_unstable();
        places.dedup();
        let warning = |(at, name): (Position, &str)| {
            let message = format!(
                "entries of `{name}` are never reached: the one without a filter before them fits all"
            );
            self.config
                .error_at(at, message)
                .hint("the first entry that fits a tensor counts: put the one without a filter last")
        };
        places.into_iter().map(warning).collect()
    }

    /// A parameter that models have each, given once for all of them as a list with a number for each.
    fn lists_by_model(&self) -> Vec<Error> {
        let Inputs::Models(models) = &self.config.inputs else { return Vec::new() };
        let own = self.method.parameters.iter().filter(|parameter| parameter.scope != Scope::Shared);
        let lists = own.filter_map(|parameter| {
            let Located { value, at } = self.config.parameters.get(parameter.name)?;
            let [Conditional { value: WrittenValue::Gradient(numbers), .. }] = &value.0[..] else { return None };
            let name = parameter.name;
            (numbers.len() == models.len() && models.len() > 1).then(|| {
                let message = format!("`{name}` is a list with as many numbers as there are models, and changes over the layers, \
                                       for all models alike");
                let hint = format!("for a number for each model, write `parameters: {{{name}: …}}` below each `model:`");
                self.config.error_at(*at, message).hint(hint)
            })
        });
        lists.collect()
    }

    /// Filters that are no part of any name, neither of the output's tensors nor of a model's.
    fn idle_filters(&self, tensors: &[Tensor]) -> Vec<Error> {
        let names: Vec<&str> = tensors
            .iter()
            .map(|tensor| &*tensor.name)
            .chain(self.models.iter().flat_map(Model::names))
            .collect();
        let scopes = self.config.scopes();
        let read = scopes.iter().flat_map(|(_, scope)| scope.iter()).filter(|(name, _)| {
            self.method.parameters.iter().any(|parameter| parameter.name == name.as_str())
        });
        let filters: HashSet<(&str, Position)> = read
            .flat_map(|(_, Located { value, at })| {
                value.0.iter().filter_map(|entry| Some((entry.filter.as_deref()?, *at)))
            })
            .collect();
        if filters.len() * names.len() > COMPARED_MAX {
            return Vec::new();
        }
        let mut idle: Vec<(&str, Position)> = filters
            .into_iter()
            // Many models have no head of their own, and one recipe serves both kinds.
            .filter(|(filter, _)| !names::is_head(filter) && !filter.contains("lm_head"))
            .filter(|(filter, _)| names.iter().all(|name| !name.contains(filter)))
            .collect();
        if idle.is_empty() {
            return Vec::new();
        }
        idle.sort_unstable_by_key(|(filter, at)| (*at, *filter));
        let parts: HashSet<&str> = names.iter().flat_map(|name| name.split('.')).collect();
        let mut parts: Vec<&str> = parts.into_iter().filter(|part| part.parse::<u32>().is_err()).collect();
        parts.sort_unstable();
        let warning = |(filter, at): (&str, Position)| {
            let warning = self
                .config
                .error_at(at, format_args!("the filter {filter:?} fits no tensor, and changes nothing"));
            let without_stars = filter.trim_matches('*');
            let fits =
                without_stars.len() < filter.len() && names.iter().any(|name| name.contains(without_stars));
            let meant = Some(without_stars).filter(|_| fits && !without_stars.is_empty());
            match meant.or_else(|| did_you_mean(filter, parts.iter().copied())) {
                Some(near) => warning.hint(format!("did you mean `{near}`?")),
                None => {
                    warning.hint("a filter is a part of tensors' names, such as `self_attn` or `layers.3.`")
                }
            }
        };
        idle.into_iter().map(warning).collect()
    }

    /// The decay of an average whose weights do not decay.
    fn idle_decay(&self, tensors: &[Tensor]) -> Option<Error> {
        let written = self.config.parameters.get("decay").filter(|_| self.method.weighs_by_position())?;
        let is_exponential = |tensor: &Tensor| match &tensor.action {
            Action::Merge(merge) => merge.settings.shared.contains(&("weights", Value::Word("exponential"))),
            Action::Copy(_) => false,
        };
        (!tensors.iter().any(is_exponential)).then(|| {
            let warning =
                self.config.error_at(written.at, "`decay` has no effect: the weights are not exponential");
            warning.hint("add `weights: exponential` to `parameters`")
        })
    }

    /// The share of the largest that is dropped, where all are kept.
    fn idle_gamma(&self, tensors: &[Tensor]) -> Option<Error> {
        let scopes = self.config.scopes();
        let is_zero = |value: &WrittenValue| *value == WrittenValue::One(Scalar::Number(0.0));
        let written = scopes
            .iter()
            .filter_map(|(_, scope)| scope.get("gamma"))
            .find(|gamma| !gamma.value.0.iter().all(|entry| is_zero(&entry.value)))?;
        self.method.parameters.iter().find(|parameter| parameter.name == "gamma")?;
        let mut densities = tensors
            .iter()
            .filter_map(|tensor| match &tensor.action {
                Action::Merge(merge) => Some(merge.settings.per_input.iter()),
                Action::Copy(_) => None,
            })
            .flatten()
            .flat_map(|values| values.iter().filter(|(name, _)| *name == "density"))
            .peekable();
        densities.peek()?;
        densities.all(|(_, density)| *density == Value::Number(1.0)).then(|| {
            let warning =
                self.config.error_at(written.at, "`gamma` has no effect: density 1 keeps all elements");
            warning.hint("give a `density` below 1, such as 0.9")
        })
    }
}

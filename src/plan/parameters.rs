//! Parameters as configured → the number that holds for one tensor of one model.
//!
//! Scopes are asked from the innermost outward; in each, the first entry whose filter is part of the tensor's name
//! decides. A gradient is interpolated over the layers of a slice. (METHODS: the same rules as mergekit's.)

use std::cell::Cell;
use std::collections::{HashMap, HashSet};

use super::problems::Problems;
use super::warnings::few;
use crate::config::{
    Conditional, Config, ConfiguredParameter, Located, Parameters, Position, Scalar, WrittenValue as Written,
};
use crate::error::{Error, Result, did_you_mean};
use crate::method::{Method, Parameter, Scope, Value, ValueKind};

/// How often filters are compared with names of tensors: a second of it. A model of 400 tensors takes more filters than a
/// config can hold, one of 200,000 some eighty.
const COMPARED_MAX: u64 = 1 << 24;

/// The comparisons of filters with names that are left.
#[derive(Debug)]
pub(super) struct Comparisons(Cell<u64>);

impl Default for Comparisons {
    fn default() -> Self {
        Self(Cell::new(COMPARED_MAX))
    }
}

impl Comparisons {
    /// The first entry that applies to a tensor, if one does.
    fn first<'a>(&self, entries: &'a [Conditional], tensor: &str) -> Option<&'a Conditional> {
        let place = entries.iter().position(|entry| applies(entry, tensor));
        self.0.set(self.0.get().saturating_sub(place.unwrap_or(entries.len()) as u64));
        place.map(|place| &entries[place])
    }

    fn are_spent(&self) -> bool {
        self.0.get() == 0
    }
}

/// Resolves one parameter: `scopes` from the innermost outward, `position` in [0, 1] over the layers.
///
/// `Ok(None)`: no scope has a value, and there is no default.
pub(super) fn resolve<'a>(
    config: &Config,
    parameter: &Parameter,
    scopes: impl Iterator<Item = &'a Parameters>,
    tensor: &str,
    position: f64,
    left: &Comparisons,
) -> Result<Option<Value>> {
    for scope in scopes {
        let Some(Located { value: ConfiguredParameter(entries), at }) = scope.get(parameter.name) else {
            continue;
        };
        if left.are_spent() {
            let message =
                format!("`{}` and others have too many filters for so many tensors", parameter.name);
            return Err(config
                .error_at(*at, message)
                .hint("one filter can pick many tensors, by a part of their names"));
        }
        let Some(entry) = left.first(entries, tensor) else { continue };
        let value = evaluate(parameter.kind, &entry.value, position)
            .map_err(|expected| wrong(config, parameter, *at, Some(&entry.value), expected))?;
        if value.is_some() {
            return Ok(value);
        }
    }
    Ok(parameter.default)
}

fn applies(entry: &Conditional, tensor: &str) -> bool {
    entry.filter.as_ref().is_none_or(|filter| tensor.contains(filter.as_str()))
}

/// The value at a position; `None` where the config says null for "not set". An error says what is expected.
fn evaluate(
    kind: ValueKind,
    written: &Written,
    position: f64,
) -> std::result::Result<Option<Value>, &'static str> {
    match (kind, written) {
        (ValueKind::NumberOrNull, Written::One(Scalar::Null)) => Ok(Some(Value::Null)),
        (ValueKind::File, _) => Err("a path beside `model:`"),
        (_, Written::One(Scalar::Null)) => Ok(None),
        (ValueKind::Number | ValueKind::NumberOrNull, Written::One(scalar)) => {
            Ok(Some(Value::Number(number(scalar)?)))
        }
        (ValueKind::Number | ValueKind::NumberOrNull, Written::Gradient(scalars)) => {
            interpolate(scalars, position).map(|value| Some(Value::Number(value)))
        }
        (ValueKind::Count, Written::One(scalar)) => Ok(Some(Value::Number(count(number(scalar)?)?))),
        (ValueKind::Count, Written::Gradient(scalars)) => {
            Ok(Some(Value::Number(count(interpolate(scalars, position)?)?)))
        }
        (ValueKind::Flag, Written::One(scalar)) => Ok(Some(Value::Flag(flag(scalar)?))),
        (ValueKind::Word(words), Written::One(scalar)) => Ok(Some(Value::Word(word(words, scalar)?))),
        (ValueKind::Word(_), Written::Gradient(_)) => Err(ONE_WORD),
        (ValueKind::Flag, Written::Gradient(scalars)) => {
            let at = (position * (scalars.len() - 1) as f64) as usize;
            Ok(Some(Value::Flag(flag(&scalars[at])?)))
        }
    }
}

/// What parameters take.
const FINITE_NUMBER: &str = "a finite number";
const TRUTH_VALUE: &str = "true or false";
const ONE_WORD: &str = "one word";

fn number(scalar: &Scalar) -> std::result::Result<f64, &'static str> {
    // Weights are used as f32.
    scalar.as_number().filter(|number| (*number as f32).is_finite()).ok_or(FINITE_NUMBER)
}

fn flag(scalar: &Scalar) -> std::result::Result<bool, &'static str> {
    scalar.as_bool().ok_or(TRUTH_VALUE)
}

/// A word of a list.
fn word(words: &[&'static str], scalar: &Scalar) -> std::result::Result<&'static str, &'static str> {
    let is_meant = |word: &&&str| matches!(scalar, Scalar::Text(text) if text.trim() == **word);
    words.iter().find(is_meant).copied().ok_or(ONE_WORD)
}

/// Linear interpolation between the two values around a position. The others are checked by [`check_gradients`], once and not
/// for every tensor.
fn interpolate(values: &[Scalar], position: f64) -> std::result::Result<f64, &'static str> {
    let place = position * (values.len() - 1) as f64;
    let below = place as usize;
    let above = (below + 1).min(values.len() - 1);
    let fraction = place - below as f64;
    let (low, high) = (number(&values[below])?, number(&values[above])?);
    Ok(if fraction == 0.0 { low } else { low * (1.0 - fraction) + high * fraction })
}

/// Gradients of the method's parameters that are not of numbers where they should be go to the problems.
pub(super) fn check_gradients(config: &Config, method: &Method, problems: &mut Problems) {
    for (_, scope) in config.scopes() {
        let is_number = |parameter: &&Parameter| {
            !matches!(parameter.kind, ValueKind::Flag | ValueKind::Word(_) | ValueKind::File)
        };
        let numbers = method.parameters.iter().filter(is_number);
        for (parameter, written) in numbers.filter_map(|p| Some((p, scope.get(p.name)?))) {
            let gradients = written.value.0.iter().filter_map(|entry| match &entry.value {
                Written::Gradient(scalars) => Some(scalars),
                Written::One(_) => None,
            });
            if let Some(expected) = gradients.flatten().find_map(|scalar| number(scalar).err()) {
                problems.add(wrong(config, parameter, written.at, None, expected));
            }
        }
    }
}

/// The error of a value that is not what a parameter takes.
fn wrong(
    config: &Config,
    parameter: &Parameter,
    at: Position,
    written: Option<&Written>,
    expected: &str,
) -> Error {
    let (parameter, kind) = (parameter.name, parameter.kind);
    let ValueKind::Word(words) = kind else {
        let example = match kind {
            _ if expected == TRUTH_VALUE => "true",
            ValueKind::Count => "2",
            _ => "0.5",
        };
        let hint = format!("for example `{parameter}: {example}`");
        return config.error_at(at, format!("`{parameter}` takes {expected}")).hint(hint);
    };
    let error = config.error_at(at, format!("`{parameter}` takes {expected}: {}", words.join(", ")));
    match written {
        // The distance costs memory by length, and no slip is this long.
        Some(Written::One(Scalar::Text(text))) if text.len() <= 64 => {
            let meant = did_you_mean(text, words.iter().copied());
            error.hint(
                meant
                    .map_or("for example the first of them".into(), |near| format!("did you mean `{near}`?")),
            )
        }
        Some(Written::Gradient(_)) => {
            error.hint("numbers of your own go to `merge_method: linear`, as the `weight` of each model")
        }
        _ => error,
    }
}

/// A number as a count.
fn count(number: f64) -> std::result::Result<f64, &'static str> {
    let whole = (0.0..=f64::from(u32::MAX)).contains(&number) && number.fract() == 0.0;
    if whole { Ok(number) } else { Err("a whole number from 0 up") }
}

/// Parameters that the method does not read where they stand.
#[derive(Debug, Default)]
pub(super) struct Unread {
    unknown: Vec<Error>,
    misplaced: Vec<Error>,
    /// Of a parameter of the method, the first warning of a name that is probably a slip of it.
    slips: HashMap<&'static str, String>,
}

impl Unread {
    pub(super) fn find(config: &Config, method: &Method) -> Self {
        let mut all = Self::default();
        let mut seen = HashSet::new();
        for (own, parameters) in config.scopes() {
            // Aliases bring the same place up again.
            for (name, Located { at, .. }) in parameters.iter().filter(|(name, p)| seen.insert((p.at, *name)))
            {
                let known = method.parameters.iter().find(|parameter| parameter.name == name);
                match known.filter(|parameter| parameter.kind != ValueKind::File) {
                    None => all.add_unknown(config, method, name, *at),
                    Some(parameter) if own && parameter.scope == Scope::Shared => {
                        all.misplaced.push(misplaced(config, method, name, *at));
                    }
                    Some(_) => {}
                }
            }
        }
        all
    }

    fn add_unknown(&mut self, config: &Config, method: &Method, name: &str, at: Position) {
        let values = method.parameters.iter().filter(|parameter| parameter.kind != ValueKind::File);
        let names = values.map(|parameter| parameter.name);
        let warning =
            config.error_at(at, format!("{} has no parameter `{name}`: it is ignored", method.name));
        if ["mask", "importance"].contains(&name) {
            let hint = format!("`{name}` is the path of a file, and stands beside `model:`");
            return self.unknown.push(warning.hint(hint));
        }
        let hint = match did_you_mean(name, names.clone()) {
            Some(meant) => {
                self.slips.entry(meant).or_insert_with(|| warning.message.clone());
                format!("did you mean `{meant}`?")
            }
            None => format!("its parameters are {}", names.collect::<Vec<_>>().join(", ")),
        };
        self.unknown.push(warning.hint(hint));
    }

    /// The warning of a name that is probably a slip of this parameter.
    pub(super) fn slip_of(&self, parameter: &str) -> Option<&str> {
        self.slips.get(parameter).map(String::as_str)
    }

    /// A few warnings of each kind, or one.
    pub(super) fn warnings(&mut self) -> Vec<Error> {
        let kinds = [&mut self.unknown, &mut self.misplaced];
        kinds.into_iter().flat_map(|kind| few(std::mem::take(kind))).collect()
    }
}

fn misplaced(config: &Config, method: &Method, name: &str, at: Position) -> Error {
    config
        .error_at(at, format!("`{name}` under a model's own parameters is not read"))
        .hint(format!("{} has one {name} for all models: move it to the outer `parameters`", method.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gradients_interpolate_between_their_values() {
        for (position, value) in [(0.0, 1.0), (0.25, 2.0), (0.5, 3.0), (0.75, 1.5), (1.0, 0.0)] {
            assert_eq!(interpolate(&[1.0, 3.0, 0.0].map(Scalar::Number), position), Ok(value));
        }
        assert_eq!(interpolate(&[Scalar::Number(7.0)], 0.6), Ok(7.0));
    }

    #[test]
    fn flags_pick_the_element_at_their_position() {
        let gradient = Written::Gradient(vec![Scalar::Bool(true), Scalar::Bool(false), Scalar::Number(1.0)]);
        for (position, value) in [(0.0, true), (0.49, true), (0.5, false), (0.99, false), (1.0, true)] {
            assert_eq!(
                evaluate(ValueKind::Flag, &gradient, position),
                Ok(Some(Value::Flag(value))),
                "{position}"
            );
        }
    }

    #[test]
    fn null_means_unset_but_for_parameters_that_take_it() {
        let null = Written::One(Scalar::Null);
        assert_eq!(evaluate(ValueKind::Number, &null, 0.0), Ok(None));
        assert_eq!(evaluate(ValueKind::NumberOrNull, &null, 0.0), Ok(Some(Value::Null)));
        assert_eq!(
            evaluate(ValueKind::Number, &Written::One(Scalar::Number(f64::NAN)), 0.0),
            Err("a finite number")
        );
    }
}

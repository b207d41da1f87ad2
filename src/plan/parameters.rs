//! Parameters as configured → the number that holds for one tensor of one model.
//!
//! Scopes are asked from the innermost outward; in each, the first entry whose filter is part of the tensor's name
//! decides. A gradient is interpolated over the layers of a slice. (METHODS: the same rules as mergekit's.)

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::rc::Rc;

use super::problems::Problems;
use super::warnings::few;
use crate::config::{
    Conditional, Config, ConfiguredParameter, Entry, Inputs, Located, Parameters, Position, Scalar,
    WrittenValue as Written,
};
use crate::error::{Error, Result, did_you_mean, slip_of};
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

/// Linear interpolation between the two values around a position. The others are checked by [`check`], once and not for every
/// tensor.
fn interpolate(values: &[Scalar], position: f64) -> std::result::Result<f64, &'static str> {
    let place = position * (values.len() - 1) as f64;
    let below = place as usize;
    let above = (below + 1).min(values.len() - 1);
    let fraction = place - below as f64;
    let (low, high) = (number(&values[below])?, number(&values[above])?);
    Ok(if fraction == 0.0 { low } else { low * (1.0 - fraction) + high * fraction })
}

/// Values that are not what the method's parameters take, and parameters that it needs and that are nowhere, go to the problems, as
/// far as no tensor has to be known for that: what a filter picks is looked at with the tensors.
pub(super) fn check(config: &Config, method: &Method, problems: &mut Problems) {
    check_values(config, method, problems);
    if config.is_whole
        && config.has_all_parameters
        && !matches!(config.inputs, Inputs::Modules(_))
        && config.globs.is_empty()
    {
        let mut unread = None;
        let mut unread = || Rc::clone(unread.get_or_insert_with(|| Rc::new(Unread::find(config, method))));
        for parameter in
            method.parameters.iter().filter(|parameter| is_value(parameter) && parameter.default.is_none())
        {
            check_given(config, method, parameter, &mut unread, problems);
        }
    }
}

/// Whether a parameter stands among the parameters.
fn is_value(parameter: &Parameter) -> bool {
    parameter.kind != ValueKind::File
}

/// The first half of [`check`]: of a value that nothing reads nothing is refused.
pub(super) fn check_values(config: &Config, method: &Method, problems: &mut Problems) {
    let wrong = read(config, method).into_iter().filter_map(|(p, scope)| wrong_value(config, p, scope));
    wrong.for_each(|problem| problems.add(problem));
}

/// The parameters that are read, each in the scopes that some tensor may have it from.
fn read<'a>(config: &'a Config, method: &Method) -> Vec<(&'static Parameter, &'a Parameters)> {
    let mut readers = readers(config, &config.inputs, &[&config.parameters]);
    let of_globs = config.globs.iter().map(|glob| (Of::Model, vec![&*glob.parameters, &config.parameters]));
    readers.extend(of_globs);
    if let (Inputs::Models(models), Some(base)) = (&config.inputs, &config.base_model)
        && models.iter().all(|input| input.model.value != base.value)
    {
        readers.push((Of::Base, vec![&config.parameters]));
    }
    let mut read = Vec::new();
    for parameter in method.parameters.iter().filter(|parameter| is_value(parameter)) {
        let reads = |of: Of| match parameter.scope {
            Scope::Shared => of == Of::All,
            Scope::Input => of != Of::All,
            Scope::NonBase => of == Of::Model,
        };
        let mut seen = HashSet::new();
        for (_, scopes) in readers.iter().filter(|(of, _)| reads(*of)) {
            for scope in scopes {
                // What is asked beyond a scope is the same for whoever asks that.
                if !seen.insert(std::ptr::from_ref(*scope)) {
                    break;
                }
                read.push((parameter, *scope));
                if decides(parameter, scope) {
                    break;
                }
            }
        }
    }
    read
}

/// Whose values are asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Of {
    /// All models together.
    All,
    /// One model, which is not the base.
    Model,
    /// The base.
    Base,
}

/// Whose values are asked for among these inputs, each with the scopes that are asked, from the innermost outward.
fn readers<'a>(
    config: &Config,
    inputs: &'a Inputs,
    outer: &[&'a Parameters],
) -> Vec<(Of, Vec<&'a Parameters>)> {
    let within = |scope: &'a Parameters, outer: &[&'a Parameters]| [&[scope], outer].concat();
    match inputs {
        Inputs::Models(_) | Inputs::Slices(_) => {
            let of_slices =
                inputs.slices().into_iter().map(|slice| (Of::All, within(&slice.parameters, outer)));
            let mut readers: Vec<_> = of_slices.collect();
            if readers.is_empty() {
                readers.push((Of::All, outer.to_vec()));
            }
            readers.extend(inputs.entries().into_iter().map(|entry| {
                let of = if is_base(config, &entry) { Of::Base } else { Of::Model };
                let outer = entry.slice.map_or(outer.to_vec(), |slice| within(&slice.parameters, outer));
                (of, within(entry.parameters, &outer))
            }));
            readers
        }
        Inputs::Modules(modules) => modules
            .iter()
            .flat_map(|module| readers(config, &module.inputs, &within(&module.parameters, outer)))
            .collect(),
    }
}

/// Whether a scope has a value for every tensor, so that none further out is asked.
fn decides(parameter: &Parameter, scope: &Parameters) -> bool {
    let Some(Located { value: ConfiguredParameter(entries), .. }) = scope.get(parameter.name) else {
        return false;
    };
    let sets = |entry: &Conditional| evaluate(parameter.kind, &entry.value, 0.0) != Ok(None);
    let all = entries.iter().position(|entry| entry.filter.is_none());
    all.is_some_and(|all| entries[..=all].iter().all(sets))
}

fn is_base(config: &Config, entry: &Entry<'_>) -> bool {
    let base = entry.slice.and_then(|slice| slice.base_model.as_ref()).or(config.base_model.as_ref());
    base.is_some_and(|base| base.value == entry.model.value)
}

/// What is wrong with a value in a scope that no tensor could have, or that all tensors have.
fn wrong_value(config: &Config, parameter: &Parameter, scope: &Parameters) -> Option<Error> {
    let Located { value: ConfiguredParameter(entries), at } = scope.get(parameter.name)?;
    if let [Conditional { filter: None, value: written @ Written::One(_) }, ..] = &entries[..]
        && let Err(expected) = evaluate(parameter.kind, written, 0.0)
    {
        return Some(wrong(config, parameter, *at, Some(written), expected));
    }
    if matches!(parameter.kind, ValueKind::Flag | ValueKind::Word(_)) {
        return None;
    }
    let gradients = entries.iter().filter_map(|entry| match &entry.value {
        Written::Gradient(scalars) => Some(scalars),
        Written::One(_) => None,
    });
    gradients.flatten().find_map(|scalar| {
        let expected = number(scalar).err()?;
        Some(wrong(config, parameter, *at, Some(&Written::One(scalar.clone())), expected))
    })
}

/// Refuses a config in which a parameter without a default has no value for any tensor, of one model or at all.
fn check_given(
    config: &Config,
    method: &Method,
    parameter: &Parameter,
    unread: &mut impl FnMut() -> Rc<Unread>,
    problems: &mut Problems,
) {
    let name = parameter.name;
    let has = |scope: &Parameters| scope.get(name).is_some_and(|written| !is_null(&written.value));
    let way_out = |beside: &[Located<String>], unread: &Unread| {
        let slip = || Some(format!("{}; did you mean `{name}`?", unread.slip_of(name)?));
        config.misplaced(name, beside).or_else(slip)
    };
    let needs = |at: Position, of: &dyn fmt::Display| {
        config.error_at(at, format_args!("{} needs `{name}`, and {of} has none", method.name))
    };
    if has(&config.parameters) {
        return;
    }
    if parameter.scope == Scope::Shared {
        if config.inputs.slices().iter().any(|slice| has(&slice.parameters)) {
            return;
        }
        let of_models = config.entries().into_iter().find_map(|entry| entry.parameters.get(name));
        let hint = way_out(&[], &unread()).unwrap_or_else(|| match of_models {
            Some(Located { at, .. }) => format!(
                "{}:{at}: move `{name}` out to the `parameters` of the whole config: all models share it",
                config.file
            ),
            None => format!("add `parameters: {{{name}: …}}` to the whole config: all models share it"),
        });
        problems.add(needs(config.merge_method.at, &"the config").hint(hint));
        return;
    }
    for entry in config.entries() {
        let not_read = parameter.scope == Scope::NonBase && is_base(config, &entry);
        if not_read || has(entry.parameters) || entry.slice.is_some_and(|slice| has(&slice.parameters)) {
            continue;
        }
        let hint = way_out(entry.beside, &unread()).unwrap_or_else(|| {
            format!("add `parameters: {{{name}: …}}` to the model, or to the whole config for all models")
        });
        problems.add(needs(entry.model.at, &entry.model.value).hint(hint));
    }
    if let (Inputs::Models(models), Some(base)) = (&config.inputs, &config.base_model)
        && parameter.scope == Scope::Input
        && models.iter().all(|input| input.model.value != base.value)
    {
        let hint = "base_model is merged like the others: list it with its parameters, or remove base_model";
        problems.add(needs(base.at, &base.value).hint(hint));
    }
}

fn is_null(written: &ConfiguredParameter) -> bool {
    written.0.iter().all(|entry| entry.value == Written::One(Scalar::Null))
}

/// The error of a parameter that has values, and for this tensor, of this model or of the whole config, none.
pub(super) fn left_out_by_filters(
    config: &Config,
    method: &Method,
    parameter: &Parameter,
    of: &str,
    tensor: &str,
) -> Error {
    let name = parameter.name;
    let written = config.scopes().into_iter().find_map(|(_, scope)| scope.get(name));
    let at = written.map_or(config.merge_method.at, |written| written.at);
    let what = if of == tensor { of.to_string() } else { format!("{tensor} of {of}") };
    let problem = config.error_at(at, format!("{} needs `{name}`, and {what} has none", method.name));
    problem.hint(match written {
        Some(written) if written.value.0.iter().all(|entry| entry.filter.is_some()) => {
            "add a last entry without a filter, for all other tensors: `- value: …`".to_string()
        }
        _ => format!("add `parameters: {{{name}: …}}` to the whole config, for whatever has none of its own"),
    })
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
    let text = match written {
        Some(Written::One(Scalar::Text(text))) => Some(text.trim()),
        _ => None,
    };
    let ValueKind::Word(words) = kind else {
        let not = match written {
            Some(Written::One(scalar)) => format!(", not {scalar}"),
            _ => String::new(),
        };
        let example = match kind {
            _ if expected == TRUTH_VALUE => "true",
            ValueKind::Count => "2",
            _ => "0.5",
        };
        let is_too_large = |number: f64| number.is_finite() && !(number as f32).is_finite();
        let hint = match written {
            Some(Written::One(scalar)) if scalar.as_number().is_some_and(is_too_large) => {
                Some("it is used as float32, whose largest number is about 3.4e38".into())
            }
            _ => text.and_then(|text| meant_value(parameter, text, expected)),
        };
        let hint = hint.unwrap_or_else(|| format!("for example `{parameter}: {example}`"));
        return config.error_at(at, format!("`{parameter}` takes {expected}{not}")).hint(hint);
    };
    let error = config.error_at(at, format!("`{parameter}` takes {expected}: {}", words.join(", ")));
    match (text, written) {
        (Some(text), _) => {
            let meant = did_you_mean(text, words.iter().copied());
            error.hint(
                meant
                    .map_or("for example the first of them".into(), |near| format!("did you mean `{near}`?")),
            )
        }
        (None, Some(Written::Gradient(_))) => {
            error.hint("numbers of your own go to `merge_method: linear`, as the `weight` of each model")
        }
        _ => error,
    }
}

/// What was probably meant by a text where a number or a truth value is due.
fn meant_value(parameter: &str, text: &str, expected: &str) -> Option<String> {
    let meant = |value: &dyn fmt::Display| Some(format!("did you mean `{parameter}: {value}`?"));
    let number = |text: &str| text.trim().parse::<f64>().ok().filter(|number| number.is_finite());
    if ["none", "nil", "nan", "undefined", "n/a"].contains(&text.to_lowercase().as_str()) {
        return Some(format!("where it is to have no value, leave `{parameter}` out"));
    }
    if expected == TRUTH_VALUE {
        return slip_of(text, ["true", "false"]).and_then(|near| meant(&near));
    }
    let list = text.trim_start_matches('[').trim_end_matches(']').split(',').map(number);
    if let Some(numbers) = list.collect::<Option<Vec<f64>>>()
        && (text.starts_with('[') || text.contains(", ") || numbers.len() > 2)
    {
        let numbers: Vec<String> = numbers.iter().map(f64::to_string).collect();
        return meant(&format_args!("[{}]", numbers.join(", ")));
    }
    if let Some(number) = number(&text.replacen(',', ".", 1)) {
        return meant(&number);
    }
    if let Some(percent) = text.strip_suffix('%').and_then(number) {
        return meant(&(percent / 100.0));
    }
    let (above, below) = text.split_once('/')?;
    let quotient = number(above)? / number(below)?;
    meant(&((quotient * 1e4).round() / 1e4)).filter(|_| quotient.is_finite())
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
    /// Values that would be refused if anything read them.
    wrong: Vec<Error>,
    /// Of a parameter of the method, the first warning of a name that is probably a slip of it.
    slips: HashMap<&'static str, String>,
}

impl Unread {
    pub(super) fn find(config: &Config, method: &Method) -> Self {
        let mut all = Self::default();
        let place =
            |parameter: &Parameter, scope: &Parameters| Some((parameter.name, scope.get(parameter.name)?.at));
        let read: HashSet<_> =
            read(config, method).into_iter().filter_map(|(p, scope)| place(p, scope)).collect();
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
                    Some(parameter) if !own && !read.contains(&(parameter.name, *at)) => {
                        all.wrong.extend(wrong_value(config, parameter, parameters).map(not_read));
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
        let kinds = [&mut self.unknown, &mut self.misplaced, &mut self.wrong];
        kinds.into_iter().flat_map(|kind| few(std::mem::take(kind))).collect()
    }
}

/// The warning of a wrong value that nothing reads.
fn not_read(mut wrong: Error) -> Error {
    wrong.message += "; nothing reads it";
    wrong.hint("whatever could read it has a value of its own: remove this one")
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

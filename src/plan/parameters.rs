//! Parameters as configured → the number that holds for one tensor of one model.
//!
//! Scopes are asked from the innermost outward; in each, the first entry whose filter is part of the tensor's name
//! decides. A gradient is interpolated over the layers of a slice. (METHODS: the same rules as mergekit's.)

use crate::config::{
    Conditional, Config, Located, Parameter as Configured, Parameters, Scalar, Value as Written,
};
use crate::error::{Error, Result, did_you_mean};
use crate::method::{Kind, Method, Parameter, Scope, Value};

/// Resolves one parameter: `scopes` from the innermost outward, `position` in [0, 1] over the layers.
///
/// `Ok(None)`: no scope has a value, and there is no default.
pub(super) fn resolve(
    config: &Config,
    parameter: &Parameter,
    scopes: &[&Parameters],
    tensor: &str,
    position: f64,
) -> Result<Option<Value>> {
    for scope in scopes {
        let Some(Located { value: Configured(entries), at }) = scope.get(parameter.name) else { continue };
        let Some(entry) = entries.iter().find(|entry| applies(entry, tensor)) else { continue };
        let value = evaluate(parameter.kind, &entry.value, position)
            .map_err(|expected| config.error_at(*at, format!("`{}` takes {expected}", parameter.name)))?;
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
    kind: Kind,
    written: &Written,
    position: f64,
) -> std::result::Result<Option<Value>, &'static str> {
    match (kind, written) {
        (Kind::NumberOrNull, Written::One(Scalar::Null)) => Ok(Some(Value::Null)),
        (_, Written::One(Scalar::Null)) => Ok(None),
        (Kind::Number | Kind::NumberOrNull, Written::One(scalar)) => Ok(Some(Value::Number(number(scalar)?))),
        (Kind::Number | Kind::NumberOrNull, Written::Gradient(scalars)) => {
            let numbers = scalars.iter().map(number).collect::<std::result::Result<Vec<_>, _>>()?;
            Ok(Some(Value::Number(interpolate(&numbers, position))))
        }
        (Kind::Flag, Written::One(scalar)) => Ok(Some(Value::Flag(flag(scalar)?))),
        (Kind::Flag, Written::Gradient(scalars)) => {
            let at = (position * (scalars.len() - 1) as f64) as usize;
            Ok(Some(Value::Flag(flag(&scalars[at])?)))
        }
    }
}

fn number(scalar: &Scalar) -> std::result::Result<f64, &'static str> {
    // Weights are used as f32.
    scalar.as_number().filter(|number| (*number as f32).is_finite()).ok_or("a finite number")
}

fn flag(scalar: &Scalar) -> std::result::Result<bool, &'static str> {
    scalar.as_bool().ok_or("true or false")
}

/// Linear interpolation between the two values around a position.
fn interpolate(values: &[f64], position: f64) -> f64 {
    let place = position * (values.len() - 1) as f64;
    let below = place as usize;
    let above = (below + 1).min(values.len() - 1);
    let fraction = place - below as f64;
    if fraction == 0.0 { values[below] } else { values[below] * (1.0 - fraction) + values[above] * fraction }
}

/// Warnings about parameters that the method does not read where they stand.
pub(super) fn unread(config: &Config, method: &Method) -> Vec<Error> {
    let mut warnings = Vec::new();
    for (own, parameters) in config.scopes() {
        for (name, located) in parameters {
            let known = method.parameters.iter().find(|parameter| parameter.name == name);
            match known {
                None => warnings.push(unknown(config, method, name, located)),
                Some(parameter) if own && parameter.scope == Scope::Shared => warnings.push(
                    config
                        .error_at(located.at, format!("`{name}` under a model's own parameters is not read"))
                        .hint(format!(
                            "{} has one {name} for all models: move it to the outer `parameters`",
                            method.name
                        )),
                ),
                Some(_) => {}
            }
        }
    }
    warnings
}

fn unknown(config: &Config, method: &Method, name: &str, located: &Located<Configured>) -> Error {
    let names = method.parameters.iter().map(|parameter| parameter.name);
    let warning =
        config.error_at(located.at, format!("{} has no parameter `{name}`: it is ignored", method.name));
    match did_you_mean(name, names.clone()) {
        Some(meant) => warning.hint(format!("did you mean `{meant}`?")),
        None => warning.hint(format!("its parameters are {}", names.collect::<Vec<_>>().join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gradients_interpolate_between_their_values() {
        for (position, value) in [(0.0, 1.0), (0.25, 2.0), (0.5, 3.0), (0.75, 1.5), (1.0, 0.0)] {
            assert_eq!(interpolate(&[1.0, 3.0, 0.0], position), value);
        }
        assert_eq!(interpolate(&[7.0], 0.6), 7.0);
    }

    #[test]
    fn flags_pick_the_element_at_their_position() {
        let gradient = Written::Gradient(vec![Scalar::Bool(true), Scalar::Bool(false), Scalar::Number(1.0)]);
        for (position, value) in [(0.0, true), (0.49, true), (0.5, false), (0.99, false), (1.0, true)] {
            assert_eq!(evaluate(Kind::Flag, &gradient, position), Ok(Some(Value::Flag(value))), "{position}");
        }
    }

    #[test]
    fn null_means_unset_but_for_parameters_that_take_it() {
        let null = Written::One(Scalar::Null);
        assert_eq!(evaluate(Kind::Number, &null, 0.0), Ok(None));
        assert_eq!(evaluate(Kind::NumberOrNull, &null, 0.0), Ok(Some(Value::Null)));
        assert_eq!(
            evaluate(Kind::Number, &Written::One(Scalar::Number(f64::NAN)), 0.0),
            Err("a finite number")
        );
    }
}

//! Parameters in all their forms, and the types of floats.

use super::ignored::near;
use super::keys::{self, DTYPES, OPEN};
use super::walk::{Fields, Walk};
use super::yaml::{Key, Node, Yaml};
use super::{Conditional, ConfiguredParameter, Located, Parameters, Scalar, WrittenValue, quoted};
use crate::dtype::{Dtype, float_named};

const PARAMETER_FORMS: &str =
    "expected a number, a list of numbers (a gradient over the layers) or a list of {filter, value}";

impl Walk<'_> {
    pub(super) fn dtype(&mut self, node: &Node) -> Option<Located<Dtype>> {
        let Some(text) = node.text() else {
            let hint = format!("one of {}", DTYPES.join(", "));
            return self.refuse(self.error(node.at, "expected a type").hint(hint));
        };
        let name = text.strip_prefix("torch.").unwrap_or(text);
        let Some(value) = float_named(name) else {
            let problem = self.error(node.at, format_args!("{} is not a type to merge in", quoted(text)));
            return self.refuse(problem.hint(near_dtype(name)));
        };
        Some(Located { value, at: node.at })
    }

    /// The `parameters` of whatever these fields belong to.
    pub(super) fn parameters(&mut self, fields: &Fields) -> Parameters {
        let before = self.problems.len();
        let parameters = self.named_values(fields);
        self.of_parameters += self.problems.len() - before;
        parameters
    }

    fn named_values(&mut self, fields: &Fields) -> Parameters {
        let Some(node) = fields.get("parameters") else { return Parameters::new() };
        let Yaml::Map(entries) = &node.kind else {
            let problem = self.error(node.at, "`parameters` must be a mapping of names to values");
            let hint = match &node.kind {
                Yaml::List(items) if items.iter().all(|item| matches!(item.kind, Yaml::Map(_))) => {
                    "write the names without `- `"
                }
                _ => "for example `parameters: {weight: 0.5}`",
            };
            self.refuse::<()>(problem.hint(hint));
            return Parameters::new();
        };
        let mut parameters = Parameters::new();
        for (place, (key, node)) in entries.iter().enumerate() {
            let at = node.at;
            if let Some((name, whole)) =
                place.checked_sub(1).and_then(|before| cut(&entries[before], key, node))
            {
                let problem =
                    self.error(key.at, format_args!("{} is no name of a parameter", quoted(&key.name)));
                let meant = format!("{name}: {whole}.{}", key.name);
                self.refuse::<()>(
                    problem.hint(format!("decimals stand behind a point: did you mean `{meant}`?")),
                );
                continue;
            }
            if let Some(value) = self.parameter(node) {
                parameters.insert(key.name.clone(), Located { value, at });
            }
        }
        parameters
    }

    /// A parameter in any of its forms; an empty list is the same as leaving it out.
    fn parameter(&mut self, node: &Node) -> Option<ConfiguredParameter> {
        let entries = match &node.kind {
            Yaml::List(items) if items.is_empty() => return None,
            Yaml::List(items) if items.iter().all(|item| matches!(item.kind, Yaml::Map(_))) => {
                items.iter().filter_map(|item| self.conditional(item)).collect()
            }
            Yaml::Map(_) => vec![self.conditional(node)?],
            _ => vec![Conditional { filter: None, value: self.value(node)? }],
        };
        Some(ConfiguredParameter(entries))
    }

    fn conditional(&mut self, node: &Node) -> Option<Conditional> {
        if let Yaml::Map(entries) = &node.kind
            && let [(key, _)] = &entries[..]
            && OPEN.contains(&&*key.name)
        {
            let problem = self.error(node.at, "an open value has to be chosen before a merge");
            return self.refuse(problem.hint("`mergeforge sweep` finds the best; or write a number"));
        }
        let fields = self.fields(node, "a condition", keys::CONDITION)?;
        let Some((_, value)) = fields.entry("value") else {
            return self.refuse(self.error(fields.at, PARAMETER_FORMS).hint("`value` is missing here"));
        };
        let filter = self.optional(&fields, "filter", Self::text).map(|filter| filter.value);
        Some(Conditional { filter: filter.filter(|filter| filter != "*"), value: self.value(value)? })
    }

    fn value(&mut self, node: &Node) -> Option<WrittenValue> {
        let value = match &node.kind {
            // Under a filter an empty list cannot be left out: the filter still ends the search.
            Yaml::List(items) if items.is_empty() => Some(WrittenValue::One(Scalar::Null)),
            Yaml::List(items) => {
                let number = |item: &Node| item.scalar().filter(|scalar| *scalar != Scalar::Null);
                if let Some(other) = items.iter().find(|item| number(item).is_none()) {
                    let problem = self.error(other.at, PARAMETER_FORMS);
                    return self.refuse(match other.kind {
                        Yaml::Null => problem.hint("a gradient has a number at each of its places"),
                        _ => problem,
                    });
                }
                Some(WrittenValue::Gradient(items.iter().filter_map(number).collect()))
            }
            _ => node.scalar().map(WrittenValue::One),
        };
        value.or_else(|| self.refuse(self.error(node.at, PARAMETER_FORMS)))
    }
}

/// The name and the whole part of a number that a comma cut in two: `{weight: 0,5}` is a weight of 0, and a key without a value.
fn cut<'n>((name, before): &'n (Key, Node), key: &Key, node: &Node) -> Option<(&'n str, &'n str)> {
    let Yaml::Number(_, whole) = &before.kind else { return None };
    let are_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let is_cut = are_digits(&key.name) && node.is_null() && are_digits(whole.trim_start_matches('-'));
    is_cut.then_some((&name.name, whole))
}

/// What to write instead of a type that does not exist.
fn near_dtype(typed: &str) -> String {
    if ["none", "auto", "null", ""].contains(&typed.to_lowercase().as_str()) {
        return "leave the key out: the type is then the one that holds the values of all models".into();
    }
    let near = match typed.to_lowercase().as_str() {
        "bf16" => Some("bfloat16"),
        "f16" | "fp16" | "half" => Some("float16"),
        "f32" | "fp32" | "float" => Some("float32"),
        "f64" | "fp64" | "double" => Some("float64"),
        _ => near(typed, DTYPES),
    };
    near.map_or_else(|| format!("use one of {}", DTYPES.join(", ")), |near| format!("did you mean `{near}`?"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::{assert_refused, everywhere, number, parameter, parse, scalar, with};

    #[test]
    fn dtypes() {
        for (written, float) in [
            ("bfloat16", Dtype::BF16),
            ("torch.bfloat16", Dtype::BF16),
            ("float16", Dtype::F16),
            ("'float32'", Dtype::F32),
            ("float64", Dtype::F64),
        ] {
            assert_eq!(parse(&with(&format!("dtype: {written}"))).dtype.unwrap().value, float);
        }
        assert_refused(
            &with("out_dtype: int64"),
            "c.yaml:1:12: `int64` is not a type",
            "one of bfloat16, float16",
        );
        assert_refused(
            &with("dtype: bflot16"),
            "c.yaml:1:8: `bflot16` is not a type",
            "did you mean `bfloat16`?",
        );
        assert_refused(&with("dtype: torch.fp16"), "c.yaml:1:8: `torch.fp16` is", "did you mean `float16`?");
        assert_refused(&with("dtype: [float16]"), "c.yaml:1:8: expected a type", "bfloat16");
    }

    #[test]
    fn parameters_take_four_forms() {
        let gradient = || WrittenValue::Gradient(vec![number(0.0), number(0.5), number(1.0)]);
        let one = |value: f64| WrittenValue::One(number(value));
        assert_eq!(parameter("0.5"), Some(everywhere(one(0.5))));
        assert_eq!(parameter("[0, .5, 1]"), Some(everywhere(gradient())));
        assert_eq!(parameter("{value: 0.5}"), Some(everywhere(one(0.5))));
        assert_eq!(parameter("{value: 0.5, filter: '*'}"), Some(everywhere(one(0.5))));
        assert_eq!(parameter("[{value: [0, .5, 1], filter: null}]"), Some(everywhere(gradient())));
        let expected = vec![
            Conditional { filter: Some("mlp".into()), value: gradient() },
            Conditional { filter: Some("7".into()), value: WrittenValue::One(Scalar::Text("sum".into())) },
            Conditional { filter: None, value: WrittenValue::One(Scalar::Null) },
        ];
        let written = "[{filter: mlp, value: [0, .5, 1]}, {filter: 7, value: sum}, {value: []}]";
        assert_eq!(parameter(written), Some(expected));
        assert_eq!(parameter("[]"), None);
        assert_eq!(scalar("null"), Scalar::Null);
    }

    #[test]
    fn parameters_in_other_forms_are_refused() {
        let refused = |written: &str, at: &str| {
            let begins =
                format!("c.yaml:{at}: expected a number, a list of numbers (a gradient over the layers)");
            assert_refused(&with(&format!("parameters: {{t: {written}}}")), &begins, "");
        };
        refused("[0, [1]]", "1:21");
        refused("[0, {value: 1}]", "1:21");
        refused("[{value: 1}, 0]", "1:18");
        refused("[0, null]", "1:21");
        refused("{filter: a}", "1:17");
        refused("[{value: {a: 1}}]", "1:26");
        refused("[{value: [[1]]}]", "1:27");
        assert_refused(&with("parameters: 1"), "c.yaml:1:13: `parameters` must be a mapping", "weight");
        assert_refused(&with("parameters: {t: {value: 1, filter: [a]}}"), "c.yaml:1:36: expected a text", "");
    }
}

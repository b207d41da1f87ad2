//! Models and adapters: `path[@revision][+lora[@revision]]`, or the long form of the same.

use super::ignored::Ignored;
use super::walk::{Fields, Walk};
use super::yaml::{Node, Yaml};
use super::{AdapterRef, Located, ModelRef, Position, keys, quoted};

const LITERAL_PATH_HINT: &str = "a path that contains `@` or `+` is written {model: {path: …}}";
const TWO_ADAPTERS_HINT: &str = "a model has one adapter: add the first in a document of its own with a `name:`, and the next to \
     that name (docs/staged.md); a path that contains `+` is written {model: {path: …}}";

/// A path and the revision of what is there.
struct Revisioned {
    path: String,
    revision: Option<String>,
}

impl Walk<'_> {
    pub(super) fn required_model(&mut self, fields: &Fields) -> Option<Located<ModelRef>> {
        match fields.get("model") {
            Some(node) => self.model(node),
            None if fields.entries.iter().all(|(key, _)| key.name == "parameters") => {
                let hint =
                    "`parameters` stand below the `model:` that they belong to, without a `- ` of their own";
                self.missing(fields, "model", hint)
            }
            None => self.missing(fields, "model", "write `model: path`"),
        }
    }

    /// A model in either form.
    pub(super) fn model(&mut self, node: &Node) -> Option<Located<ModelRef>> {
        let value = match node.text() {
            Some(text) => self.model_in_short(node.at, text),
            None => self.model_long_form(node),
        };
        Some(Located { value: value?, at: node.at })
    }

    /// `path[@revision][+lora[@revision]]`.
    pub(super) fn model_in_short(&mut self, at: Position, text: &str) -> Option<ModelRef> {
        let (model, lora) = match text.split('+').collect::<Vec<_>>()[..] {
            [model] => (model, None),
            [model, lora] => (model, Some(lora)),
            _ => {
                let message = format!("more than one `+` in the model {}", quoted(text));
                return self.refuse(self.error(at, message).hint(TWO_ADAPTERS_HINT));
            }
        };
        let model = self.in_short(at, model, "model");
        let lora = match lora {
            Some(lora) => Some(self.in_short(at, lora, "adapter")?),
            None => None,
        };
        Some(model?.with(lora))
    }

    /// `{model: {path, revision}, lora: {path, revision}}`, where each may be written in short too.
    fn model_long_form(&mut self, node: &Node) -> Option<ModelRef> {
        if !matches!(node.kind, Yaml::Map(_)) {
            let problem = self.error(node.at, "expected a model: a path, or {model: {path, revision}}");
            return self.refuse(match &node.kind {
                Yaml::List(models) if models.len() == 1 => {
                    problem.hint("write its path without a `- ` or brackets")
                }
                Yaml::List(_) => {
                    problem.hint("one model stands here: each of several has an entry of its own")
                }
                _ => problem,
            });
        }
        let fields = self.fields(node, "a model", keys::MODEL)?;
        if let Some(at) = fields.key_at("override_architecture") {
            let what = "`override_architecture` is not needed and is ignored";
            let why = "tensor names are read from the checkpoints themselves";
            self.ignore(at, Ignored::Needless { what, why });
        }
        let model = match fields.get("model") {
            Some(model) => self.revisioned(model, "model"),
            None => self.refuse(
                self.error(node.at, "`model` is missing").hint("write {model: {path: …, revision: …}}"),
            ),
        };
        let lora = match fields.get("lora") {
            Some(lora) => Some(self.revisioned(lora, "adapter")?),
            None => None,
        };
        Some(model?.with(lora))
    }

    /// `path[@revision]` or `{path, revision}`.
    fn revisioned(&mut self, node: &Node, what: &str) -> Option<Revisioned> {
        if let Some(text) = node.text() {
            return self.in_short(node.at, text, what);
        }
        let fields = self.fields(node, &format!("{} {what}", article(what)), keys::REVISIONED)?;
        let Some(path) = self.optional(&fields, "path", Self::text) else {
            return match fields.get("path") {
                Some(_) => None,
                None => self.refuse(self.error(fields.at, "`path` is missing")),
            };
        };
        let revision = self.optional(&fields, "revision", Self::text);
        let revision = revision.as_ref().map(|revision| revision.value.as_str());
        self.reference(path.at, &path.value, revision, what)
    }

    /// `path[@revision]`.
    fn in_short(&mut self, at: Position, text: &str, what: &str) -> Option<Revisioned> {
        match text.split('@').collect::<Vec<_>>()[..] {
            [path] => self.reference(at, path, None, what),
            [path, revision] => self.reference(at, path, Some(revision), what),
            _ => {
                let message = format!("more than one `@` in the {what} {}", quoted(text));
                self.refuse(self.error(at, message).hint(LITERAL_PATH_HINT))
            }
        }
    }

    fn reference(
        &mut self,
        at: Position,
        path: &str,
        revision: Option<&str>,
        what: &str,
    ) -> Option<Revisioned> {
        if path.trim().is_empty() {
            let problem = self.error(at, format_args!("the {what}'s path is empty"));
            return self.refuse(problem.hint("give a folder or `organisation/name`, or leave the key out"));
        }
        if path.contains(char::is_control) {
            let message = format!("the path {} has a character in it that no path has", quoted(path));
            let hint = if path.trim_end().contains(char::is_control) {
                "in double quotes a `\\` begins an escape: write a path of Windows in single quotes, or with `/`"
            } else {
                "a text behind `|` or `>` ends with a new line: write the path in the line of its key"
            };
            return self.refuse(self.error(at, message).hint(hint));
        }
        if revision.is_some_and(|revision| revision.trim().is_empty()) {
            return self.refuse(self.error(at, format_args!("the revision of {} is empty", quoted(path))));
        }
        Some(Revisioned { path: path.to_string(), revision: revision.map(str::to_string) })
    }
}

impl Revisioned {
    /// The model of this place, with the adapter of another.
    fn with(self, lora: Option<Self>) -> ModelRef {
        let lora = lora.map(|Self { path, revision }| AdapterRef { path, revision });
        ModelRef { path: self.path, revision: self.revision, lora }
    }
}

fn article(noun: &str) -> &'static str {
    if noun.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::{assert_refused, assert_warned, model, model_ref, with};

    #[test]
    fn models_are_paths_with_a_revision() {
        assert_eq!(model("org/a"), model_ref("org/a", None));
        assert_eq!(model("org/a@1.0"), model_ref("org/a", Some("1.0")));
        assert_eq!(model("{model: org/a@1.0}"), model_ref("org/a", Some("1.0")));
        assert_eq!(model("{model: {path: a@b+c}, lora: null}"), model_ref("a@b+c", None));
        for plain in ["123", "1e5", "1.50", "0x1F", "1_000", "yes", "y", "ü", "🦀"] {
            assert_eq!(model(plain), model_ref(plain, None));
        }
        assert_eq!(model("&é 1.50").path, "1.50");
        let source = |written: &str| with(&format!("base_model: {written}"));
        assert_refused(&source("a@b@c"), "c.yaml:1:13: more than one `@` in the model `a@b@c`", "{path: …}");
        assert_refused(
            &source("a+b+c"),
            "c.yaml:1:13: more than one `+` in the model `a+b+c`",
            "docs/staged.md",
        );
        assert_refused(&source("{path: b}"), "c.yaml:1:13: `model` is missing", "{path: …");
        assert_refused(&source("{model: {revision: b}}"), "c.yaml:1:21: `path` is missing", "");
        assert_refused(&source("[a]"), "c.yaml:1:13: expected a model", "");
        assert_refused(&source("'@main'"), "c.yaml:1:13: the model's path is empty", "");
        assert_refused(&source("a@"), "c.yaml:1:13: the revision of `a` is empty", "");
        assert_warned(
            &source("{model: a, override_architecture: Llama}"),
            "c.yaml:1:24: `override_architecture` is not needed and is ignored (tensor names are read from the checkpoints themselves)",
        );
    }

    #[test]
    fn models_may_have_an_adapter() {
        let adapted =
            |path: &str, revision: Option<&str>, lora: &str, lora_revision: Option<&str>| ModelRef {
                lora: Some(AdapterRef { path: lora.into(), revision: lora_revision.map(str::to_string) }),
                ..model_ref(path, revision)
            };
        assert_eq!(model("a+b"), adapted("a", None, "b", None));
        assert_eq!(model("org/a@v1+org/b@v2"), adapted("org/a", Some("v1"), "org/b", Some("v2")));
        assert_eq!(model("{model: a, lora: b@v2}"), adapted("a", None, "b", Some("v2")));
        let long =
            "{model: {path: a+c, revision: v1}, lora: {path: b, revision: v2}, override_architecture: null}";
        assert_eq!(model(long), adapted("a+c", Some("v1"), "b", Some("v2")));
        for written in ["a+b", "a@v1+b", "a+b@v2", "org/a@v1+org/b@v2"] {
            assert_eq!(model(written).to_string(), written);
        }
        let source = |written: &str| with(&format!("base_model: {written}"));
        assert_refused(
            &source("a+b@c@d"),
            "c.yaml:1:13: more than one `@` in the adapter `b@c@d`",
            "{path: …}",
        );
        assert_refused(&source("a+"), "c.yaml:1:13: the adapter's path is empty", "");
        assert_refused(&source("+b"), "c.yaml:1:13: the model's path is empty", "");
        assert_refused(&source("{model: a, lora: {revision: b}}"), "c.yaml:1:30: `path` is missing", "");
        assert_refused(&source("{model: a, lora: [b]}"), "c.yaml:1:30: expected an adapter: a mapping", "");
        let inner = "c.yaml:1:31: unknown key `rank` is ignored";
        assert_warned(&source("{model: a, lora: {rank: 1, path: b}}"), inner);
    }
}

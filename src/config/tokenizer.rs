//! What a config asks for of the tokenizer.

use indexmap::IndexMap;

use super::walk::{Fields, Walk};
use super::yaml::{Node, Yaml};
use super::{
    Config, Located, Position, Token, TokenRow, TokenSetting, Tokenizer, TokenizerSource, keys, quoted,
};
use crate::error::slip_of;

/// Beyond any vocabulary, and exact in `f64`.
const TOKENS_MAX: f64 = 4_294_967_296.0;

/// What a tokenizer's source may be beside a model.
const WORDS: [&str; 2] = ["union", "base"];

const ROW_FORMS: &str = "expected a model whose row it is, {kind: model_token, model, token} or {kind: zero}";

impl Config {
    /// A hint where the tokenizer's source, at that place, is no model and looks like one of the two words.
    pub(crate) fn meant_tokenizer_source(&self, at: Position) -> Option<String> {
        let TokenizerSource::Model(model) = &self.tokenizer.as_ref().filter(|wish| wish.at == at)?.source
        else {
            return None;
        };
        slip_of(&model.path, WORDS).map(|meant| format!("did you mean `{meant}`?"))
    }
}

impl Walk<'_> {
    pub(super) fn tokenizer(&mut self, top: &Fields) -> Option<Tokenizer> {
        if let (Some(one), Some(other)) = (top.key_at("tokenizer_source"), top.key_at("tokenizer")) {
            return self.refuse(
                self.error(one.max(other), "`tokenizer_source` and `tokenizer` exclude each other")
                    .hint("`tokenizer_source: union` is short for `tokenizer: {source: union}`"),
            );
        }
        let plain = |source: Located<TokenizerSource>| Tokenizer {
            at: source.at,
            source: source.value,
            tokens: IndexMap::new(),
            pad_to_multiple_of: None,
        };
        if let Some(node) = top.get("tokenizer_source") {
            return self.tokenizer_source(node).map(plain);
        }
        let node = top.get("tokenizer")?;
        let fields = self.fields(node, "a tokenizer", keys::TOKENIZER)?;
        let source = self.optional(&fields, "source", Self::tokenizer_source);
        let source = source.unwrap_or(Located { value: TokenizerSource::Union, at: node.at });
        let tokens = self.optional(&fields, "tokens", Self::tokens).unwrap_or_default();
        let pad_to_multiple_of = self.optional(&fields, "pad_to_multiple_of", Self::multiple);
        Some(Tokenizer { tokens, pad_to_multiple_of, ..plain(source) })
    }

    /// `union`, `base`, or a model, which was once written `model:path`.
    fn tokenizer_source(&mut self, node: &Node) -> Option<Located<TokenizerSource>> {
        let value = match node.text() {
            Some("union") => TokenizerSource::Union,
            Some("base") => TokenizerSource::Base,
            Some(text) => {
                let model = text.strip_prefix("model:").unwrap_or(text);
                TokenizerSource::Model(self.model_in_short(node.at, model)?)
            }
            None => TokenizerSource::Model(self.model(node)?.value),
        };
        Some(Located { value, at: node.at })
    }

    fn multiple(&mut self, node: &Node) -> Option<Located<u64>> {
        let Some(value) = whole_number(node).filter(|number| *number > 0) else {
            let problem = self.error(node.at, "pad_to_multiple_of must be a whole number from 1 up");
            return self.refuse(problem.hint("for example 64"));
        };
        Some(Located { value, at: node.at })
    }

    fn tokens(&mut self, node: &Node) -> Option<IndexMap<String, Located<TokenSetting>>> {
        let Yaml::Map(entries) = &node.kind else {
            let problem = self.error(node.at, "`tokens` must be a mapping of tokens to their sources");
            return self.refuse(problem.hint("for example `tokens: {\"<|im_start|>\": {source: path}}`"));
        };
        let settings = entries.iter().filter_map(|(key, node)| {
            let value = self.token_setting(node)?;
            Some((key.name.clone(), Located { value, at: key.at }))
        });
        Some(settings.collect())
    }

    fn token_setting(&mut self, node: &Node) -> Option<TokenSetting> {
        if matches!(node.kind, Yaml::Null) {
            return Some(TokenSetting { source: None, force: false });
        }
        let fields = self.fields(node, "a token's setting", keys::TOKEN)?;
        let source = self.optional(&fields, "source", Self::token_row);
        let force = self.optional(&fields, "force", |walk, node| {
            let force = node.scalar().and_then(|scalar| scalar.as_bool());
            force.or_else(|| walk.refuse(walk.error(node.at, "`force` must be true or false")))
        });
        Some(TokenSetting { source, force: force.unwrap_or(false) })
    }

    fn token_row(&mut self, node: &Node) -> Option<TokenRow> {
        let kind = match &node.kind {
            Yaml::Map(entries) => entries.iter().find(|(key, _)| key.name == "kind"),
            _ => None,
        };
        let Some((_, kind)) = kind else { return Some(TokenRow::Model(self.model(node)?.value)) };
        match kind.text() {
            Some("zero") => {
                self.fields(node, "a row of 0", keys::ROW_OF_ZEROS)?;
                Some(TokenRow::Zero)
            }
            Some("model_token") => self.model_token(node),
            _ => self.refuse(self.error(kind.at, ROW_FORMS)),
        }
    }

    fn model_token(&mut self, node: &Node) -> Option<TokenRow> {
        let fields = self.fields(node, "a model's token", keys::ROW_OF_TOKEN)?;
        let model = self.required_model(&fields);
        let token = match (fields.get("token"), fields.get("token_id")) {
            (Some(text), None) => self.text(text).map(|text| Token::Text(text.value)),
            (None, Some(id)) => whole_number(id).map(Token::Id).or_else(|| {
                let written = id.text().map_or(String::new(), |text| format!(", not {}", quoted(text)));
                self.refuse(self.error(id.at, format_args!("token_id must be a token's number{written}")))
            }),
            (Some(_), Some(_)) => {
                let problem = self.error(fields.at, "`token` and `token_id` exclude each other");
                self.refuse(problem.hint("name the token by its text or by its number"))
            }
            (None, None) => self.missing(&fields, "token", "write `token: text` or `token_id: number`"),
        };
        Some(TokenRow::ModelToken { model: model?.value, token: token? })
    }
}

/// Like pydantic's `int`: 64, 64.0 and "64".
fn whole_number(node: &Node) -> Option<u64> {
    let number = node.scalar()?.as_number()?;
    ((0.0..TOKENS_MAX).contains(&number) && number.fract() == 0.0).then_some(number as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::{assert_refused, model_ref, parse, with};

    #[test]
    fn tokenizers() {
        let source = |written: &str| parse(&with(written)).tokenizer.map(|tokenizer| tokenizer.source);
        assert_eq!(source("tokenizer_source: union"), Some(TokenizerSource::Union));
        assert_eq!(source("tokenizer_source: base"), Some(TokenizerSource::Base));
        assert_eq!(source("tokenizer: {}"), Some(TokenizerSource::Union));
        let expected = TokenizerSource::Model(model_ref("org/a", Some("v1")));
        assert_eq!(source("tokenizer_source: org/a@v1"), Some(expected.clone()));
        assert_eq!(source("tokenizer: {source: {model: {path: org/a, revision: v1}}}"), Some(expected));
        let both = with("tokenizer_source: base\ntokenizer: {}");
        assert_refused(&both, "c.yaml:2:1: `tokenizer_source` and `tokenizer` exclude", "short for");
        let old = Some(TokenizerSource::Model(model_ref("/a/b", None)));
        assert_eq!(source("tokenizer_source: model:/a/b"), old);
        assert_refused(&with("tokenizer: union"), "c.yaml:1:12: expected a tokenizer", "");
    }

    #[test]
    fn tokens_have_sources() {
        let config = parse(&with(
            "tokenizer:
  source: union
  pad_to_multiple_of: 64.0
  tokens:
    <|a|>: {source: org/a@v1}
    b: {source: {kind: model_token, model: m, token: <c>}, force: yes}
    10: {source: {kind: model_token, model: {model: {path: m}}, token_id: 7}}
    d: {source: {kind: zero}, force: false}
    e: {force: true}
    f:",
        ));
        let tokenizer = config.tokenizer.unwrap();
        assert_eq!(tokenizer.pad_to_multiple_of.unwrap().value, 64);
        let m = || model_ref("m", None);
        let expected = [
            ("<|a|>", Some(TokenRow::Model(model_ref("org/a", Some("v1")))), false),
            ("b", Some(TokenRow::ModelToken { model: m(), token: Token::Text("<c>".into()) }), true),
            ("10", Some(TokenRow::ModelToken { model: m(), token: Token::Id(7) }), false),
            ("d", Some(TokenRow::Zero), false),
            ("e", None, true),
            ("f", None, false),
        ];
        let expected =
            expected.map(|(token, source, force)| (token.to_string(), TokenSetting { source, force }));
        let tokens = tokenizer.tokens.into_iter().map(|(token, setting)| (token, setting.value));
        assert_eq!(tokens.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn tokens_in_other_forms_are_refused() {
        let refused = |written: &str, message: &str| {
            assert_refused(&with(&format!("tokenizer: {{tokens: {written}}}")), message, "");
        };
        refused("[a]", "c.yaml:1:21: `tokens` must be a mapping");
        refused("{a: b}", "c.yaml:1:25: expected a token's setting");
        refused("{a: {source: {kind: one}}}", "c.yaml:1:41: expected a model whose row it is");
        refused("{a: {force: maybe}}", "c.yaml:1:33: `force` must be true or false");
        let of = |rest: &str| format!("{{a: {{source: {{kind: model_token, model: m{rest}}}}}}}");
        refused(&of(""), "c.yaml:1:34: `token` is missing");
        refused(&of(", token: a, token_id: 1"), "c.yaml:1:34: `token` and `token_id` exclude");
        refused(&of(", token_id: -1"), "c.yaml:1:74: token_id must be a token's number, not `-1`");
        refused(&of(", token_id: 1.5"), "c.yaml:1:74: token_id must be a token's number");
        refused("{a: {source: {kind: model_token, token: b}}}", "c.yaml:1:34: `model` is missing");
        for wrong in ["0", "-8", "x", "1.5", "[8]"] {
            let says = "c.yaml:1:33: pad_to_multiple_of must be a whole number from 1 up";
            assert_refused(&with(&format!("tokenizer: {{pad_to_multiple_of: {wrong}}}")), says, "64");
        }
    }
}

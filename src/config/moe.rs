//! mergekit-moe's YAML as written: dense models that become the experts of one model.
//!
//! ```yaml
//! base_model: org/chat
//! gate_mode: hidden
//! experts:
//!   - source_model: org/code
//!     positive_prompts: ["a function that", "def "]
//! ```

use std::fmt;
use std::sync::Arc;

use super::ignored;
use super::walk::{Fields, Walk};
use super::yaml::{self, Document, Node};
use super::{
    Config, ElementFiles, Inputs, ListedModel, Located, ModelRef, Parameters, Position, Warning, error_at,
    keys, quoted,
};
use crate::dtype::Dtype;
use crate::error::{Error, Result};

/// What mergekit-moe takes where nothing is said.
const EXPERTS_PER_TOKEN: usize = 2;
/// Beyond any model, and exact in `f64`.
const EXPERTS_MAX: f64 = 65_536.0;

/// A config of a mixture of experts, as written.
#[derive(Debug, Clone)]
pub struct MoeConfig {
    /// The file as named on the command line, for messages.
    pub file: String,
    /// The text, verbatim.
    pub source: String,
    /// The model that gives all that is not an expert.
    pub base_model: Located<ModelRef>,
    /// The experts that a gate chooses from; never empty.
    pub experts: Vec<Expert>,
    /// Experts that every token goes through.
    pub shared_experts: Vec<Expert>,
    /// How the gates are made.
    pub gate_mode: Located<GateMode>,
    /// The type to store.
    pub dtype: Option<Located<Dtype>>,
    /// How many experts a token goes through; at least 1.
    pub experts_per_token: Located<usize>,
    /// The architecture asked for, unchecked.
    pub architecture: Option<Located<String>>,
    /// What was ignored, in order of appearance.
    pub warnings: Vec<Warning>,
    /// What cannot be read and is left out: as of [`Config::problems`], and [`parse`] returns none.
    pub problems: Vec<Error>,
}

/// An entry of `experts` or of `shared_experts`.
#[derive(Debug, Clone)]
pub struct Expert {
    /// Where the entry begins.
    pub at: Position,
    /// The model whose MLPs it has.
    pub source_model: Located<ModelRef>,
    /// Texts that are to be routed to it.
    pub positive_prompts: Vec<Located<String>>,
    /// Texts that are not.
    pub negative_prompts: Vec<Located<String>>,
    /// The share of noise that is added to its weights.
    pub noise_scale: Option<Located<f64>>,
    /// A factor of what it adds.
    pub residual_scale: Option<Located<f64>>,
}

/// How gates are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GateMode {
    /// The same as [`Self::HiddenLast`].
    Hidden,
    /// From the hidden states of the prompts, averaged over the tokens of each.
    HiddenAvg,
    /// From the hidden state of each prompt's last token.
    HiddenLast,
    /// From the embeddings of the prompts' tokens, the same in every layer.
    CheapEmbed,
    /// Random.
    Random,
    /// Random, as a linear layer that is not trained has it.
    UniformRandom,
}

impl GateMode {
    /// Whether gates are made of the experts' prompts.
    pub fn reads_prompts(self) -> bool {
        !matches!(self, Self::Random | Self::UniformRandom)
    }

    /// All of them by name.
    pub const ALL: &[(&str, Self)] = &[
        ("hidden", Self::Hidden),
        ("hidden_avg", Self::HiddenAvg),
        ("hidden_last", Self::HiddenLast),
        ("cheap_embed", Self::CheapEmbed),
        ("random", Self::Random),
        ("uniform_random", Self::UniformRandom),
    ];

    /// As it is written.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, mode)| *mode == self).expect("every mode has a name").0
    }
}

impl MoeConfig {
    /// A config error at a place in this file.
    pub fn error_at(&self, at: Position, message: impl fmt::Display) -> Error {
        error_at(&self.file, at, message)
    }

    /// Its models as the config of a merge lists them: to open them, to look at them, and to say which they are.
    pub fn listed(&self) -> Config {
        let listed = |expert: &Expert| ListedModel {
            model: expert.source_model.clone(),
            files: ElementFiles::default(),
            parameters: Arc::default(),
            beside: Vec::new(),
        };
        Config {
            file: self.file.clone(),
            source: self.source.clone(),
            at: self.base_model.at,
            name: None,
            // What each tensor of the mixture is.
            merge_method: Located { value: "passthrough".into(), at: self.base_model.at },
            inputs: Inputs::Models(self.experts.iter().chain(&self.shared_experts).map(listed).collect()),
            globs: Vec::new(),
            base_model: Some(self.base_model.clone()),
            dtype: self.dtype.clone(),
            out_dtype: None,
            parameters: Parameters::default(),
            tokenizer: None,
            chat_template: None,
            warnings: self.warnings.clone(),
            beside: Vec::new(),
            documents: Arc::default(),
            problems: Vec::new(),
            is_whole: true,
            has_all_parameters: true,
        }
    }
}

/// Whether a text is a config of experts, and none of a merge.
pub fn is_moe(source: &str) -> bool {
    let Ok(documents) = yaml::parse("", source) else { return false };
    documents.first().is_some_and(is_of_experts)
}

fn is_of_experts(document: &Document) -> bool {
    let top = Walk::new("").fields(&document.root, "a config", keys::MIXTURE);
    top.is_some_and(|top| top.get("experts").is_some() && top.get("merge_method").is_none())
}

/// Refuses a mixture of experts that stands among merges, with what to do instead.
pub(super) fn refuse_among_merges(file: &str, documents: &[Document]) -> Result<()> {
    let (mixtures, merges): (Vec<_>, Vec<_>) = documents.iter().partition(|document| is_of_experts(document));
    let (Some(mixture), Some(_)) = (mixtures.first(), merges.first()) else { return Ok(()) };
    let name = |document: &Document| {
        let top = Walk::new("").fields(&document.root, "a config", keys::MIXTURE)?;
        top.get("name")?.text().map(str::to_string)
    };
    let message = "a mixture of experts cannot be made in one go with merges";
    let read_by_merges = name(mixture).filter(|name| merges.iter().any(|merge| merge.root.mentions(name)));
    let hint = if let Some(name) = read_by_merges {
        format!(
            "put it into a file of its own and make it first (`mergeforge moe`); then name its folder as the model, in place \
             of {}",
            quoted(&name)
        )
    } else {
        let first = merges
            .iter()
            .find_map(|merge| name(merge))
            .map_or_else(|| "the others".into(), |name| quoted(&name));
        format!(
            "put it into a file of its own; merge {first} first (`mergeforge multi`), then name its folder as source_model"
        )
    };
    Err(error_at(file, mixture.root.at, message).hint(hint))
}

/// Reads a config of a mixture of experts from its text.
///
/// # Errors
/// All that is not as mergekit-moe's schema has it, each at its line and column.
pub fn parse(file: &str, source: &str) -> Result<MoeConfig> {
    let config = read(file, source)?;
    if config.problems.is_empty() { Ok(config) } else { Err(Error::all(config.problems)) }
}

/// Reads what can be read of such a text: what cannot is among the problems of the config.
///
/// # Errors
/// Nothing can be made of it: all that is wrong with the text.
pub fn read(file: &str, source: &str) -> Result<MoeConfig> {
    let documents = yaml::parse(file, source)?;
    refuse_among_merges(file, &documents)?;
    if let Some(second) = documents.get(1) {
        let problem = error_at(file, second.root.at, "several documents, and one is expected here");
        return Err(problem.hint("put each document into a file of its own"));
    }
    let mut walk = Walk::new(file);
    let config = walk.moe(&documents[0]);
    let Walk { problems, ignored, .. } = walk;
    match config {
        Some(config) => Ok(MoeConfig { warnings: ignored::warnings(file, ignored), problems, ..config }),
        None => Err(Error::all(problems)),
    }
}

impl Walk<'_> {
    fn moe(&mut self, document: &Document) -> Option<MoeConfig> {
        let top = self.fields(&document.root, "a config of experts", keys::MIXTURE)?;
        if let Some(at) = top.key_at("merge_method").filter(|_| top.get("experts").is_none()) {
            let problem = self.error(at, "this is the config of a merge, which has no experts");
            return self.refuse(problem.hint("use `mergeforge merge`"));
        }
        self.no_duplicates(&document.root);
        let base_model = match top.get("base_model") {
            Some(node) => self.model(node),
            None => self.missing(&top, "base_model", "the model that gives all but the experts"),
        };
        let experts = match top.get("experts") {
            Some(node) => self.list(node, "experts", Self::expert),
            None => self.missing(&top, "experts", "list them, each as `- source_model: path`"),
        };
        let shared_experts = top.filled("shared_experts");
        let shared_experts = shared_experts.and_then(|node| self.list(node, "shared_experts", Self::expert));
        let gate_mode = self.optional(&top, "gate_mode", Self::gate_mode);
        let experts_per_token = self.optional(&top, "experts_per_token", Self::experts_per_token);
        Some(MoeConfig {
            file: self.file.to_string(),
            source: document.text.to_string(),
            dtype: self.optional(&top, "dtype", Self::dtype),
            architecture: self.optional(&top, "architecture", Self::text),
            gate_mode: gate_mode.unwrap_or(Located { value: GateMode::Hidden, at: top.at }),
            experts_per_token: experts_per_token.unwrap_or(Located { value: EXPERTS_PER_TOKEN, at: top.at }),
            base_model: base_model?,
            experts: experts?,
            shared_experts: shared_experts.unwrap_or_default(),
            warnings: Vec::new(),
            problems: Vec::new(),
        })
    }

    fn expert(&mut self, node: &Node) -> Option<Expert> {
        let fields = self.fields(node, "an expert", keys::EXPERT)?;
        let source_model = match fields.get("source_model") {
            Some(node) => self.model(node),
            None => self.missing(&fields, "source_model", "write `source_model: path`"),
        };
        Some(Expert {
            at: fields.at,
            positive_prompts: self.prompts(&fields, "positive_prompts"),
            negative_prompts: self.prompts(&fields, "negative_prompts"),
            noise_scale: self.optional(&fields, "noise_scale", Self::number),
            residual_scale: self.optional(&fields, "residual_scale", Self::number),
            source_model: source_model?,
        })
    }

    fn prompts(&mut self, fields: &Fields, key: &str) -> Vec<Located<String>> {
        let Some(node) = fields.filled(key) else { return Vec::new() };
        self.list(node, key, Self::text).unwrap_or_default()
    }

    fn number(&mut self, node: &Node) -> Option<Located<f64>> {
        // Experts are computed in f32.
        let is_finite = |number: &f64| (*number as f32).is_finite();
        match node.scalar().and_then(|scalar| scalar.as_number()).filter(is_finite) {
            Some(value) => Some(Located { value, at: node.at }),
            None => self.refuse(self.error(node.at, "expected a number that is finite as float32")),
        }
    }

    fn gate_mode(&mut self, node: &Node) -> Option<Located<GateMode>> {
        let mode = self.text(node)?;
        if let Some((_, value)) = GateMode::ALL.iter().find(|(name, _)| *name == mode.value) {
            return Some(Located { value: *value, at: mode.at });
        }
        let names: Vec<&str> = GateMode::ALL.iter().map(|(name, _)| *name).collect();
        let hint = match ignored::near(&mode.value, &names) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("use one of {}", names.join(", ")),
        };
        self.refuse(
            self.error(mode.at, format_args!("there is no gate mode {}", quoted(&mode.value))).hint(hint),
        )
    }

    fn experts_per_token(&mut self, node: &Node) -> Option<Located<usize>> {
        let number = node.scalar().and_then(|scalar| scalar.as_number());
        let number = number.filter(|number| (1.0..=EXPERTS_MAX).contains(number) && number.fract() == 0.0);
        match number {
            Some(number) => Some(Located { value: number as usize, at: node.at }),
            None => self.refuse(self.error(node.at, "experts_per_token must be a whole number from 1 up")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::{assert_refused, assert_warned, model_ref, with};

    const MOE: &str =
        "base_model: a\ngate_mode: hidden\nexperts:\n  - {source_model: b, positive_prompts: [x]}\n";

    #[track_caller]
    fn assert_moe_refused(source: &str, begins: &str, hint: &str) {
        let error = parse("c.yaml", source).unwrap_err();
        assert!(error.message.starts_with(begins), "{error:?}");
        assert!(error.hint.as_deref().unwrap_or_default().contains(hint), "{error:?}");
    }

    #[test]
    fn a_merge_and_a_mixture_know_each_other() {
        let says = "this is a config of mergekit-moe, which makes one mixture of experts of dense models";
        assert_refused(MOE, &format!("c.yaml:2:1: {says}"), "use `mergeforge moe`");
        assert_refused("experts: [{source_model: b}]", &format!("c.yaml:1:1: {says}"), "mergeforge moe");
        assert_warned(&with("experts: []"), "c.yaml:1:1: unknown key `experts` is ignored");
        let says = "c.yaml:2:1: this is the config of a merge, which has no experts";
        assert_moe_refused(&with("base_model: b"), says, "use `mergeforge merge`");
        // Together they are refused alike, whoever reads them and in whatever order.
        let merge = with("name: m");
        for (text, line) in
            [(format!("{MOE}---\n{merge}"), 1), (format!("{merge}---\n{MOE}"), merge.lines().count() + 2)]
        {
            let says = format!("c.yaml:{line}:1: a mixture of experts cannot be made in one go with merges");
            assert_moe_refused(&text, &says, "merge `m` first (`mergeforge multi`)");
            let error = crate::config::parse_all("c.yaml", &text).unwrap_err();
            assert_eq!(error, parse("c.yaml", &text).unwrap_err());
        }
        let reads = merge.replace("model: a", "model: x");
        let says = "c.yaml:1:1: a mixture of experts cannot be made in one go with merges";
        let text = format!("name: x\n{MOE}---\n{reads}");
        assert_moe_refused(
            &text,
            says,
            "make it first (`mergeforge moe`); then name its folder as the model, in place of `x`",
        );
    }

    #[test]
    fn reads_a_whole_config() {
        let source = "\
base_model: org/a@v1
gate_mode: cheap_embed
dtype: bfloat16
experts_per_token: 4
architecture: qwen
experts:
  - source_model: b
    positive_prompts:
      - one
      - 2
    negative_prompts: [three]
    noise_scale: 1e-2
  - source_model: {model: {path: c}}
    residual_scale: 0.5
shared_experts:
  - source_model: d
";
        let config = parse("c.yaml", source).unwrap();
        assert_eq!(config.base_model.value, model_ref("org/a", Some("v1")));
        assert_eq!(config.gate_mode.value, GateMode::CheapEmbed);
        assert_eq!(config.dtype.unwrap().value, Dtype::BF16);
        assert_eq!(config.experts_per_token.value, 4);
        assert_eq!(config.architecture.unwrap().value, "qwen");
        let [first, second] = &config.experts[..] else { panic!("two experts") };
        assert_eq!(first.at, Position { line: 7, column: 5 });
        let texts = |prompts: &[Located<String>]| prompts.iter().map(|p| p.value.clone()).collect::<Vec<_>>();
        assert_eq!(texts(&first.positive_prompts), ["one", "2"]);
        assert_eq!(texts(&first.negative_prompts), ["three"]);
        assert_eq!(first.noise_scale.as_ref().unwrap().value, 0.01);
        assert_eq!(second.source_model.value, model_ref("c", None));
        assert_eq!(second.residual_scale.as_ref().unwrap().value, 0.5);
        assert!(second.positive_prompts.is_empty());
        assert_eq!(config.shared_experts[0].source_model.value, model_ref("d", None));
        assert!(config.warnings.is_empty());
        for (name, mode) in GateMode::ALL {
            let config = parse("c.yaml", &MOE.replace("hidden", name)).unwrap();
            assert_eq!((config.gate_mode.value, mode.name()), (*mode, *name));
        }
        let plain = parse("c.yaml", &MOE.replace("gate_mode: hidden\n", "")).unwrap();
        assert_eq!((plain.gate_mode.value, plain.experts_per_token.value), (GateMode::Hidden, 2));
    }

    #[test]
    fn what_is_wrong_is_reported_where_it_is() {
        assert_moe_refused(&MOE.replace("base_model: a\n", ""), "c.yaml:1:1: `base_model` is missing", "");
        assert_moe_refused("base_model: a", "c.yaml:1:1: `experts` is missing", "source_model");
        assert_moe_refused("base_model: a\nexperts: []", "c.yaml:2:10: `experts` is empty", "at least one");
        let slip = MOE.replace("source_model", "sourcemodel");
        assert_moe_refused(&slip, "c.yaml:4:5: `source_model` is missing", "by `sourcemodel`");
        let mode = MOE.replace("hidden", "hiden");
        assert_moe_refused(&mode, "c.yaml:2:12: there is no gate mode `hiden`", "did you mean `hidden`?");
        for wrong in ["0", "x", "1.5", "[2]"] {
            let says = "c.yaml:5:20: experts_per_token must be a whole number from 1 up";
            assert_moe_refused(&format!("{MOE}experts_per_token: {wrong}"), says, "");
        }
        for (key, column) in [("noise_scale", 59), ("residual_scale", 62)] {
            let scaled = |value: &str| MOE.replace("[x]", &format!("[x], {key}: {value}"));
            for wrong in [".inf", "1e39", "-1e39", "x"] {
                let says = format!("c.yaml:4:{column}: expected a number that is finite as float32");
                assert_moe_refused(&scaled(wrong), &says, "");
            }
            parse("c.yaml", &scaled("1e38")).unwrap();
        }
        let several = format!("{MOE}---\n{MOE}");
        assert_moe_refused(&several, "c.yaml:6:1: several documents", "file of its own");
        let warned = parse("c.yaml", &format!("{MOE}bogus: 1")).unwrap().warnings;
        assert_eq!(warned[0].message, "c.yaml:5:1: unknown key `bogus` is ignored");
    }
}

//! `adapter_config.json`: what is taken of it, and what is refused.

use std::collections::HashMap;

use regex::{RegexSet, RegexSetBuilder};
use serde_json::{Map, Value};

use super::super::names::ADAPTER_CONFIG;
use super::super::source::Source;
use super::{MERGE_FIRST, broken};
use crate::error::{Error, Result};
use crate::limits::{ADAPTER_RANK_MAX, PATTERN_BYTES_MAX, PATTERNS_MAX};
use crate::text::{cut_to, one_line, quoted};

/// The settings that matter for adding.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) base: Option<String>,
    pub(super) fan_in_fan_out: bool,
    pub(super) stays_tied: bool,
    pub(super) parameters: Vec<String>,
    pub(super) notes: Vec<String>,
    ranks: Patterns,
    alphas: Patterns,
    rank_stabilised: bool,
    tokens: Value,
}

/// What a trainer can switch on that makes an adapter depend on more than weights, or the base model on the adapter: the key, and
/// what it is.
const REFUSED: &[(&str, &str)] = &[
    ("layer_replication", "layers are repeated before it is added"),
    ("use_qalora", "QA-LoRA pools what goes in, by groups"),
    ("alora_invocation_tokens", "aLoRA is applied to some tokens only"),
    ("monteclora_config", "MonteCLoRA samples its weights"),
    ("arrow_config", "Arrow routes each token to other adapters"),
    ("kasa_config", "KaSA cuts the base model's weights"),
    ("use_bdlora", "BD-LoRA stores its matrices by blocks"),
];

/// Ways to begin the training that change the base model too, so that the adapter does not belong to the base as it is published.
const CHANGES_THE_BASE: &[&str] = &["pissa", "olora", "corda", "loftq", "lora_ga"];

/// Ways to begin it that do not.
const LEAVES_THE_BASE: &[&str] = &["gaussian", "eva", "orthogonal", "mica"];

/// Keys that are taken, and keys that say how an adapter was trained, which changes nothing of it.
#[rustfmt::skip]
const KNOWN: &[&str] = &[
    "peft_type", "base_model_name_or_path", "revision", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora",
    "use_dora", "fan_in_fan_out", "bias", "lora_bias", "modules_to_save", "trainable_token_indices", "target_parameters",
    "init_lora_weights", "alora_invocation_tokens", "arrow_config", "kasa_config", "layer_replication", "monteclora_config",
    "use_bdlora", "use_qalora", "qalora_group_size",
    "auto_mapping", "corda_config", "ensure_weight_tying", "enable_lora", "eva_config", "exclude_modules", "inference_mode",
    "layers_pattern", "layers_to_transform", "loftq_config", "lora_dropout", "lora_ga_config", "megatron_config",
    "megatron_core", "merge_weights", "peft_version", "runtime_config", "target_modules", "task_type", "velora_config",
];

/// The notes on unknown keys.
const NOTES_MAX: usize = 4;

impl Settings {
    pub(super) fn of(source: &Source) -> Result<Self> {
        let config = &source.config;
        check_kind(source, config)?;
        let number = |key: &str| config.get(key).and_then(Value::as_f64);
        let flag = |key: &str| config.get(key).is_some_and(|value| *value == Value::Bool(true));
        let (Some(rank), Some(alpha)) = (number("r"), number("lora_alpha")) else {
            return Err(broken(source, &format!("{ADAPTER_CONFIG} has no numbers for r and lora_alpha")));
        };
        let unknown = config.keys().filter(|key| !KNOWN.contains(&key.as_str()) && is_set(config, key));
        let notes = unknown.map(|key| {
            let key = quoted(&cut_to(&one_line(key), 40));
            format!(
                "the adapter {}: {ADAPTER_CONFIG} has {key}, which is not known and changes nothing",
                source.name
            )
        });
        Ok(Self {
            base: text(config, "base_model_name_or_path"),
            fan_in_fan_out: flag("fan_in_fan_out"),
            stays_tied: flag("ensure_weight_tying"),
            parameters: texts(config.get("target_parameters")),
            notes: notes.take(NOTES_MAX).collect(),
            ranks: Patterns::of(source, "rank_pattern", rank)?,
            alphas: Patterns::of(source, "alpha_pattern", alpha)?,
            rank_stabilised: flag("use_rslora"),
            tokens: config.get("trainable_token_indices").cloned().unwrap_or(Value::Null),
        })
    }

    /// The rank of a module, and what its product is multiplied with: α / r, or α / √r.
    pub(super) fn rank_and_scale(&self, source: &Source, module: &str) -> Result<(u64, f32)> {
        let (rank, alpha) = (self.ranks.of_module(module), self.alphas.of_module(module));
        if !(1.0..=ADAPTER_RANK_MAX as f64).contains(&rank) || rank.fract() != 0.0 {
            let module = quoted(module);
            return Err(broken(source, &format!("{ADAPTER_CONFIG} says rank {rank} of the module {module}")));
        }
        let by = if self.rank_stabilised { rank.sqrt() } else { rank };
        Ok((rank as u64, (alpha / by) as f32))
    }

    /// The rows of a module's weight that were trained: of a list, those of the only embedding.
    pub(super) fn token_rows(&self, source: &Source, module: &str) -> Result<Vec<u64>> {
        let ends_with =
            |end: &str| module == end || module.strip_suffix(end).is_some_and(|rest| rest.ends_with('.'));
        let rows = match &self.tokens {
            Value::Object(modules) => modules.iter().find(|(name, _)| ends_with(name)).map(|(_, rows)| rows),
            rows => Some(rows),
        };
        let rows: Option<Vec<u64>> =
            rows.and_then(Value::as_array).and_then(|rows| rows.iter().map(Value::as_u64).collect());
        rows.ok_or_else(|| {
            let module = quoted(module);
            broken(
                source,
                &format!("trainable_token_indices does not say which rows of {module} were trained"),
            )
        })
    }
}

/// Refuses what is no `LoRA`, and what a `LoRA` may be beyond a product that is added.
fn check_kind(source: &Source, config: &Map<String, Value>) -> Result<()> {
    let kind = text(config, "peft_type").unwrap_or_else(|| "nothing".to_owned());
    if kind != "LORA" {
        let kind = quoted(&cut_to(&one_line(&kind), 40));
        let refusal =
            broken(source, &format!("it is of PEFT's kind {kind}, and only LORA is added to weights"));
        return Err(refusal.hint(MERGE_FIRST));
    }
    if let Some((key, what)) = REFUSED.iter().find(|(key, _)| is_set(config, key)) {
        return Err(broken(source, &format!("it has {key}: {what}")).hint(MERGE_FIRST));
    }
    let Some(begun) = text(config, "init_lora_weights") else { return Ok(()) };
    if LEAVES_THE_BASE.contains(&begun.as_str()) || begun.eq_ignore_ascii_case("true") {
        return Ok(());
    }
    let changes = CHANGES_THE_BASE.iter().any(|way| begun.to_lowercase().starts_with(way));
    let what = if changes {
        "which changes the base model as well"
    } else {
        "of which it is not known whether it changes the base model"
    };
    let begun = quoted(&cut_to(&one_line(&begun), 40));
    Err(broken(source, &format!("its training began with init_lora_weights {begun}, {what}")).hint(
        "save it with PEFT's path_initial_model_for_weight_conversion, which makes a plain LoRA of it; or merge it first, and give that folder",
    ))
}

/// Whether a key says anything but no.
fn is_set(config: &Map<String, Value>, key: &str) -> bool {
    match config.get(key) {
        None | Some(Value::Null | Value::Bool(false)) => false,
        Some(Value::Array(list)) => !list.is_empty(),
        Some(Value::Object(keys)) => !keys.is_empty(),
        Some(_) => true,
    }
}

fn text(config: &Map<String, Value>, key: &str) -> Option<String> {
    config.get(key).and_then(Value::as_str).map(str::to_owned)
}

fn texts(value: Option<&Value>) -> Vec<String> {
    let list = value.and_then(Value::as_array).into_iter().flatten();
    list.filter_map(Value::as_str).map(str::to_owned).collect()
}

/// Numbers by patterns of modules' names, and the one for all others.
#[derive(Debug)]
struct Patterns {
    /// Patterns that are names, each with its place among all. A dot in them is a dot: no two modules differ in that sign alone.
    names: HashMap<String, usize>,
    /// The others.
    set: RegexSet,
    places: Vec<usize>,
    numbers: Vec<f64>,
    otherwise: f64,
}

impl Patterns {
    /// A pattern stands for the end of a name, behind a dot or all of it; of several the first counts.
    fn of(source: &Source, key: &str, otherwise: f64) -> Result<Self> {
        let given = source.config.get(key).and_then(Value::as_object);
        let (mut names, mut patterns, mut places, mut numbers) =
            (HashMap::new(), Vec::new(), Vec::new(), Vec::new());
        for (place, (pattern, number)) in given.into_iter().flatten().enumerate() {
            let Some(number) = number.as_f64() else {
                return Err(broken(source, &format!("{key} gives no number to {}", quoted(pattern))));
            };
            numbers.push(number);
            if pattern.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.".contains(&byte)) {
                names.insert(pattern.clone(), place);
            } else {
                patterns.push(format!(r"^(.*\.)?({pattern})$"));
                places.push(place);
            }
        }
        let refused = |what: &str| -> Error {
            broken(source, &format!("{key}: {what}")).hint("write out the names of the modules in its config")
        };
        if patterns.len() > PATTERNS_MAX {
            return Err(refused(&format!("more than {PATTERNS_MAX} patterns that are no names")));
        }
        let set = RegexSetBuilder::new(&patterns).size_limit(PATTERN_BYTES_MAX).build();
        let set = set.map_err(|e| refused(&cut_to(&one_line(&e.to_string()), 200)))?;
        Ok(Self { names, set, places, numbers, otherwise })
    }

    fn of_module(&self, module: &str) -> f64 {
        let ends = module.match_indices('.').map(|(dot, _)| &module[dot + 1..]);
        let named = ends.chain([module]).filter_map(|end| self.names.get(end)).copied().min();
        let matched = self.set.matches(module).iter().next().map(|first| self.places[first]);
        let first = named.into_iter().chain(matched).min();
        first.map_or(self.otherwise, |first| self.numbers[first])
    }
}

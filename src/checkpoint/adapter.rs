//! Adapters as PEFT saves them: `adapter_config.json` beside `adapter_model.safetensors`.
//!
//! The names of the tensors say what the adapter changes; the config adds what no tensor says: what a low-rank product is
//! multiplied with, and which rows a few trained tokens are. All that PEFT has beyond `LoRA` is refused by name, since what is not
//! understood cannot be added to a weight.

mod settings;

use std::collections::BTreeMap;

use indexmap::IndexMap;
use serde_json::{Map, Value as Json};

use self::settings::Settings;
use super::names::ADAPTER_PREFIX;
use super::source::Source;
use super::{Reads, TensorInfo};
use crate::dtype::is_float;
use crate::error::{Error, Result};
use crate::text::quoted;

/// What an adapter changes. Names are those that the model has, without PEFT's prefix; tensors are places in the adapter's source.
#[derive(Debug)]
pub struct Adapter {
    /// The model that it was trained on, as the adapter names it.
    pub base: Option<String>,
    /// Whether weights have a row for each of what goes in, where their shapes do not say.
    pub fan_in_fan_out: bool,
    /// Whether an embedding and the head that is tied to it were trained as one.
    pub stays_tied: bool,
    /// Parameters that are no module's weight, by the ends of their names: experts that are stored as one tensor.
    pub parameters: Vec<String>,
    /// Modules whose weight gets a product added. Those that lie around one another in PEFT have the outermost first.
    pub low_rank: IndexMap<String, Vec<LowRank>>,
    /// Tensors that it replaces.
    pub saved: IndexMap<String, usize>,
    /// Modules of whose weight it replaces some rows.
    pub tokens: IndexMap<String, Tokens>,
    /// What the user should know, though it stops nothing.
    pub notes: Vec<String>,
}

/// A product of low rank, `scale · B · A`.
#[derive(Debug, Clone, PartialEq)]
pub struct LowRank {
    /// `A`: `rank` rows for each of the experts, as long as what goes in.
    pub a: usize,
    /// `B`: a row for each of what comes out, `rank` long for each of the experts.
    pub b: usize,
    /// The rank.
    pub rank: u64,
    /// The matrices of the parameter: more than 1 where all experts are one tensor.
    pub experts: u64,
    /// What the product is multiplied with.
    pub scale: f32,
    /// Whether it belongs to an embedding, which stores a row for each of what goes in.
    pub embedding: bool,
    /// The magnitudes of `DoRA`: one for each of what comes out.
    pub magnitude: Option<usize>,
    /// What is added to the module's bias, multiplied with `scale` as well.
    pub bias: Option<usize>,
}

/// Rows that were trained by themselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tokens {
    /// Which rows of the weight, in the order in which they are stored.
    pub rows: Vec<u64>,
    /// The tensor that holds them.
    pub tensor: usize,
}

impl Adapter {
    /// What the adapter that a source was opened as changes.
    ///
    /// # Errors
    /// Kind `Input`: it is no `LoRA`, or one of a kind that cannot be added to weights; or its tensors do not fit its config.
    pub fn of(source: &Source) -> Result<Self> {
        let settings = Settings::of(source)?;
        let found = Found::of(source)?;
        let mut low_rank: IndexMap<String, Vec<LowRank>> = IndexMap::new();
        for ((module, _), parts) in &found.parts {
            low_rank.entry(module.clone()).or_default().push(product(source, &settings, module, parts)?);
        }
        let mut tokens = IndexMap::new();
        for (module, tensor) in found.tokens {
            let rows = settings.token_rows(source, &module)?;
            if source.tensor_at(tensor).shape.first() != Some(&rows.len()) {
                let name = quoted(&source.tensor_at(tensor).name);
                let what = format!(
                    "tensor {name} has other rows than the {} that trainable_token_indices lists",
                    rows.len()
                );
                return Err(broken(source, &what));
            }
            tokens.insert(module, Tokens { rows, tensor });
        }
        if low_rank.is_empty() && found.saved.is_empty() && tokens.is_empty() {
            return Err(broken(source, "no tensor of it belongs to an adapter"));
        }
        let Settings { base, fan_in_fan_out, stays_tied, parameters, notes, .. } = settings;
        Ok(Self { base, fan_in_fan_out, stays_tied, parameters, low_rank, saved: found.saved, tokens, notes })
    }
}

/// A tensor of a module's product by what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// `A`.
    A,
    /// `B`.
    B,
    /// `A` of an embedding.
    EmbeddingA,
    /// `B` of an embedding.
    EmbeddingB,
    /// The magnitudes of `DoRA`.
    Magnitude,
    /// What is added to the module's bias.
    Bias,
}

impl Part {
    /// Each with what stands behind the module's name: a word, and the parameter of the module that this names.
    const WORDS: [(Self, &str, &str); 6] = [
        (Self::A, "lora_A", ".weight"),
        (Self::B, "lora_B", ".weight"),
        (Self::EmbeddingA, "lora_embedding_A", ""),
        (Self::EmbeddingB, "lora_embedding_B", ""),
        (Self::Magnitude, "lora_magnitude_vector", ""),
        (Self::Bias, "lora_B", BIAS),
    ];

    /// The name that PEFT's `save_pretrained` gives it.
    pub fn of(self, module: &str) -> String {
        let (_, word, parameter) = Self::WORDS.into_iter().find(|(part, ..)| *part == self).expect("all are");
        format!("{ADAPTER_PREFIX}{module}.{word}{parameter}")
    }
}

/// The parameter of `B` that is no weight.
const BIAS: &str = ".bias";

/// What the name of a tensor says.
#[derive(Debug, PartialEq, Eq)]
enum Named {
    /// A part of the product of a module that lies so deep in what PEFT put around it.
    Part(String, usize, Part),
    /// A tensor of the model, saved whole.
    Saved(String),
    /// Rows of a module's weight.
    Tokens(String),
    /// The base model's own, as it was before.
    Original,
}

/// Takes a name apart: `base_model.model.MODULE.lora_A.ADAPTER.weight` and its like. The adapter's name is there in files that were
/// written without PEFT's `save_pretrained`. `None` for what no `LoRA` has.
fn named(name: &str) -> Option<Named> {
    let name = name.strip_prefix(ADAPTER_PREFIX).unwrap_or(name);
    let words: Vec<&str> = name.split('.').collect();
    let is_marker = |word: &&str| {
        word.starts_with("lora_") || ["modules_to_save", "original_module", "token_adapter"].contains(word)
    };
    let Some(at) = words.iter().position(is_marker) else {
        let own: Vec<&str> = words.into_iter().filter(|word| *word != "base_layer").collect();
        return Some(Named::Saved(own.join(".")));
    };
    let (module, rest) = (&words[..at], &words[at + 1..]);
    let depth = module.iter().rev().take_while(|word| **word == "base_layer").count();
    let module = module[..at - depth].join(".");
    match (words[at], rest) {
        ("original_module", _) => return Some(Named::Original),
        ("modules_to_save", [tensor] | [_, tensor]) => {
            return Some(Named::Saved(format!("{module}.{tensor}")));
        }
        ("token_adapter", ["trainable_tokens_delta"] | ["trainable_tokens_delta", _]) => {
            return Some(Named::Tokens(module));
        }
        ("token_adapter", ["base_layer" | "token_indices" | "trainable_tokens_original", ..]) => {
            return Some(Named::Original);
        }
        _ => {}
    }
    let is_bias = match rest {
        ["bias"] | [_, "bias"] => true,
        [] | [_] | [_, "weight"] => false,
        _ => return None,
    };
    let is_it =
        |(_, word, parameter): &(Part, &str, &str)| *word == words[at] && (*parameter == BIAS) == is_bias;
    let (part, ..) = Part::WORDS.into_iter().find(is_it)?;
    Some(Named::Part(module, depth, part))
}

/// The tensors of a file by what they are.
#[derive(Debug, Default)]
struct Found {
    /// By module and depth.
    parts: IndexMap<(String, usize), BTreeMap<Part, usize>>,
    saved: IndexMap<String, usize>,
    tokens: IndexMap<String, usize>,
}

impl Found {
    fn of(source: &Source) -> Result<Self> {
        let mut found = Self::default();
        for (place, tensor) in source.tensors().enumerate() {
            let name = quoted(&tensor.name);
            let Some(what) = named(&tensor.name) else {
                let refusal = broken(source, &format!("tensor {name} is nothing that a LoRA adapter has"));
                return Err(refusal.hint(MERGE_FIRST));
            };
            if what != Named::Original && !is_float(tensor.dtype) {
                return Err(broken(
                    source,
                    &format!("tensor {name} is {:?}, not floating point", tensor.dtype),
                ));
            }
            let earlier = match what {
                Named::Part(module, depth, part) => {
                    found.parts.entry((module, depth)).or_default().insert(part, place)
                }
                Named::Saved(tensor) => found.saved.insert(tensor, place),
                Named::Tokens(module) => found.tokens.insert(module, place),
                Named::Original => None,
            };
            // PEFT saves an embedding or a head under two names where it is among `modules_to_save` and was resized.
            let is_twin = |earlier: &usize| {
                let is_saved = found.saved.values().any(|saved| *saved == place);
                Ok::<_, Error>(is_saved && are_equal(source, [source.tensor_at(*earlier), tensor])?)
            };
            if let Some(earlier) = earlier
                && !is_twin(&earlier)?
            {
                let earlier = quoted(&source.tensor_at(earlier).name);
                let refusal =
                    broken(source, &format!("tensors {earlier} and {name} are the same part of it"));
                return Err(refusal.hint("two adapters in one file? Save each in a folder of its own"));
            }
        }
        found.parts.sort_keys();
        Ok(found)
    }
}

/// Whether two tensors are the same, bit for bit.
fn are_equal(source: &Source, [one, other]: [&TensorInfo; 2]) -> Result<bool> {
    /// Bytes that are compared at once.
    const PIECE: u64 = 1 << 20;
    if (one.dtype, &one.shape) != (other.dtype, &other.shape) {
        return Ok(false);
    }
    let mut pieces = [Vec::new(), Vec::new()];
    for first in (0..one.bytes).step_by(PIECE as usize) {
        for (tensor, piece) in [one, other].into_iter().zip(&mut pieces) {
            piece.resize(PIECE.min(one.bytes - first) as usize, 0);
            source.read_at(tensor, first, piece, Reads::Copied)?;
        }
        if pieces[0] != pieces[1] {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The product of a module.
fn product(
    source: &Source,
    settings: &Settings,
    module: &str,
    parts: &BTreeMap<Part, usize>,
) -> Result<LowRank> {
    let part = |part: Part| parts.get(&part).copied();
    let (plain, embedded) =
        ((part(Part::A), part(Part::B)), (part(Part::EmbeddingA), part(Part::EmbeddingB)));
    let (a, b, embedding) = match (plain, embedded) {
        ((Some(a), Some(b)), (None, None)) => (a, b, false),
        ((None, None), (Some(a), Some(b))) => (a, b, true),
        _ => {
            let what =
                format!("module {} has only one of lora_A and lora_B, or more than both", quoted(module));
            return Err(broken(source, &what).hint("save the adapter again, whole"));
        }
    };
    let (rank, scale) = settings.rank_and_scale(source, module)?;
    let rows = source.tensor_at(a).shape.first().map_or(0, |rows| *rows as u64);
    // Experts that are one tensor have their rows of A one behind the other.
    let experts = if settings.parameters.is_empty() { 1 } else { rows / rank };
    let columns = source.tensor_at(b).shape.get(1).map_or(0, |columns| *columns as u64);
    if rows != rank * experts || columns != rows || rows == 0 {
        let [a, b] = [a, b].map(|place| source.tensor_at(place));
        let (a, b) =
            (format!("{} {:?}", quoted(&a.name), a.shape), format!("{} {:?}", quoted(&b.name), b.shape));
        let refusal =
            broken(source, &format!("{a} and {b} do not have the rank {rank} that its config says"));
        return Err(refusal.hint("r and rank_pattern must be those that the adapter was trained with"));
    }
    let (magnitude, bias) = (part(Part::Magnitude), part(Part::Bias));
    Ok(LowRank { a, b, rank, experts, scale, embedding, magnitude, bias })
}

/// PEFT's word for models that predict the next token.
pub const CAUSAL_LM: &str = "CAUSAL_LM";

/// PEFT's word for what a model does, by the class that its config.json names.
pub fn peft_task(config: &Map<String, Json>) -> Option<&'static str> {
    const TASKS: [(&str, &str); 4] = [
        ("ForCausalLM", CAUSAL_LM),
        ("LMHeadModel", CAUSAL_LM),
        ("ForSequenceClassification", "SEQ_CLS"),
        ("ForTokenClassification", "TOKEN_CLS"),
    ];
    let class = config.get("architectures")?.get(0)?.as_str()?;
    TASKS.iter().find(|(end, _)| class.ends_with(end)).map(|(_, task)| *task)
}

/// The way out where an adapter is of a kind that is not added while it is read.
const MERGE_FIRST: &str =
    "merge it into its base model with PEFT (merge_and_unload, then save_pretrained), and give that folder";

/// An adapter that is not what it should be.
fn broken(source: &Source, what: &str) -> Error {
    Error::input(format!("the adapter {}: {what}", source.name))
}

#[cfg(test)]
mod tests;

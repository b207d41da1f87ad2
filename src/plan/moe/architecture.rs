//! The architectures that a mixture of experts can have: one record each, from which names, config and refusals follow.
//!
//! Experts are written one by one, in the names that each architecture was published with: everything that reads it takes
//! those, while fused tensors are known to newer transformers alone.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use indexmap::IndexMap;
use serde_json::{Map, Value as Json, json};

use crate::config::moe::{GateMode, MoeConfig};
use crate::error::{Error, Result};

/// An architecture of experts.
#[derive(Debug)]
pub(super) struct Architecture {
    /// As mergekit-moe has it; `architecture:` may be its beginning.
    pub(super) name: &'static str,
    /// The class that transformers has for it.
    class: &'static str,
    model_type: &'static str,
    /// The dense models that become its experts, by their `model_type`.
    dense: &'static [&'static str],
    /// How many experts every token may go through.
    shared: RangeInclusive<usize>,
    /// The block that stands in the place of a layer's MLP.
    pub(super) block: &'static str,
    /// What an expert's gate, up and down are called.
    pub(super) matrices: [&'static str; 3],
    /// What the shared expert is called.
    pub(super) shared_block: &'static str,
    /// The gate of the shared expert, where it has one.
    pub(super) shared_gate: Option<&'static str>,
    /// Whether its attention has biases, which are zeros where the base has none.
    pub(super) needs_biases: bool,
    /// Whether a head is as wide as the hidden size has it, whatever `head_dim` says.
    even_heads: bool,
    /// What a layer of the base may have beside [`ATTENTION`] and its MLP.
    further: &'static [&'static str],
    /// Its own keys in config.json.
    keys: fn(&Counts) -> Json,
}

/// What config.json says of the experts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Counts {
    pub(super) experts: usize,
    pub(super) per_token: usize,
    pub(super) shared: usize,
    /// Rows of an expert's gate.
    pub(super) inner: usize,
}

/// A dense model's gate, up and down.
pub(super) const DENSE: [&str; 3] = ["mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight"];

/// The router, within the block.
pub(super) const ROUTER: &str = "gate.weight";

/// What every layer has beside its MLP.
const ATTENTION: &[&str] = &[
    "input_layernorm.weight",
    "post_attention_layernorm.weight",
    "self_attn.q_proj.weight",
    "self_attn.k_proj.weight",
    "self_attn.v_proj.weight",
    "self_attn.o_proj.weight",
];

/// The tensors that belong to no layer.
const LOOSE: &[&str] = &["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"];

const OF_QWEN: [&str; 3] = ["gate_proj", "up_proj", "down_proj"];

/// All of them, the one to take first first.
const ARCHITECTURES: &[Architecture] = &[
    Architecture {
        name: "Mixtral",
        class: "MixtralForCausalLM",
        model_type: "mixtral",
        dense: &["llama", "mistral"],
        shared: 0..=0,
        block: "block_sparse_moe",
        matrices: ["w1", "w3", "w2"],
        shared_block: "",
        shared_gate: None,
        needs_biases: false,
        even_heads: false,
        further: &[],
        keys: |counts| {
            json!({
                "num_local_experts": counts.experts, "num_experts_per_tok": counts.per_token, "sliding_window": null,
            })
        },
    },
    Architecture {
        name: "DeepSeek MoE",
        class: "DeepseekForCausalLM",
        model_type: "deepseek",
        dense: &["llama", "mistral"],
        shared: 0..=1,
        block: "mlp",
        matrices: OF_QWEN,
        shared_block: "mlp.shared_experts",
        shared_gate: None,
        needs_biases: false,
        even_heads: true,
        further: &[],
        keys: |counts| {
            let code = |file: &str, class: &str| format!("deepseek-ai/deepseek-moe-16b-base--{file}.{class}");
            json!({
                "n_routed_experts": counts.experts, "n_shared_experts": Some(counts.shared).filter(|shared| *shared > 0),
                "num_experts_per_tok": counts.per_token, "first_k_dense_replace": 0, "moe_layer_freq": 1,
                "scoring_func": "softmax", "norm_topk_prob": true, "moe_intermediate_size": counts.inner,
                "auto_map": {
                    "AutoConfig": code("configuration_deepseek", "DeepseekConfig"),
                    "AutoModel": code("modeling_deepseek", "DeepseekModel"),
                    "AutoModelForCausalLM": code("modeling_deepseek", "DeepseekForCausalLM"),
                },
            })
        },
    },
    Architecture {
        name: "Qwen MoE",
        class: "Qwen2MoeForCausalLM",
        model_type: "qwen2_moe",
        dense: &["llama", "mistral", "qwen2"],
        shared: 1..=1,
        block: "mlp",
        matrices: OF_QWEN,
        shared_block: "mlp.shared_expert",
        shared_gate: Some("mlp.shared_expert_gate.weight"),
        needs_biases: true,
        even_heads: false,
        further: &["self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"],
        keys: |counts| {
            json!({
                "num_experts": counts.experts, "num_experts_per_tok": counts.per_token, "decoder_sparse_step": 1,
                "norm_topk_prob": true, "moe_intermediate_size": counts.inner,
                "shared_expert_intermediate_size": counts.inner, "sliding_window": null, "use_sliding_window": false,
            })
        },
    },
    Architecture {
        name: "Qwen3 MoE",
        class: "Qwen3MoeForCausalLM",
        model_type: "qwen3_moe",
        dense: &["qwen3"],
        shared: 0..=0,
        block: "mlp",
        matrices: OF_QWEN,
        shared_block: "",
        shared_gate: None,
        needs_biases: false,
        even_heads: false,
        further: &[
            "self_attn.q_norm.weight",
            "self_attn.k_norm.weight",
            "self_attn.q_proj.bias",
            "self_attn.k_proj.bias",
            "self_attn.v_proj.bias",
            "self_attn.o_proj.bias",
        ],
        keys: |counts| {
            json!({
                "num_experts": counts.experts, "num_experts_per_tok": counts.per_token, "decoder_sparse_step": 1,
                "norm_topk_prob": true, "moe_intermediate_size": counts.inner, "sliding_window": null,
                "use_sliding_window": false,
            })
        },
    },
];

const LACKS_PROMPTS: &str = "needs positive_prompts of its shared expert, which has a gate";

/// The architecture that is asked for, or else the first that takes the models. `dense` are their types, in words where there
/// are several.
///
/// # Errors
/// None takes them: why each does not.
pub(super) fn choose(
    moe: &MoeConfig,
    dense: &BTreeSet<&str>,
    base: &Map<String, Json>,
    allow_crimes: bool,
) -> Result<&'static Architecture> {
    let asked = moe.architecture.as_ref();
    let begins = |architecture: &&Architecture| {
        asked.is_none_or(|asked| architecture.name.to_lowercase().starts_with(&asked.value.to_lowercase()))
    };
    let at = asked.map_or(moe.base_model.at, |asked| asked.at);
    let mut reasons = Vec::new();
    for architecture in ARCHITECTURES.iter().filter(begins) {
        match architecture.why_not(moe, dense, base, allow_crimes) {
            None => return Ok(architecture),
            Some(reason) => reasons.push(format!("{} {reason}", architecture.name)),
        }
    }
    if reasons.is_empty() {
        let names: Vec<&str> = ARCHITECTURES.iter().map(|architecture| architecture.name).collect();
        return Err(moe
            .error_at(at, "there is no such architecture of experts")
            .hint(format!("use the beginning of {}", names.join(", "))));
    }
    let types = dense.iter().copied().collect::<Vec<_>>().join(", ");
    let message = format!("these models ({types}) cannot be experts of one model: {}", reasons.join("; "));
    let lacks_prompts = reasons.iter().any(|reason| reason.ends_with(LACKS_PROMPTS));
    let error = moe.error_at(at, message);
    if lacks_prompts {
        return Err(error.hint("add positive_prompts to the shared expert"));
    }
    Err(error.hint("change the models, shared_experts or architecture to what one of these takes"))
}

impl Architecture {
    /// Why it does not take the models.
    fn why_not(
        &self,
        moe: &MoeConfig,
        dense: &BTreeSet<&str>,
        base: &Map<String, Json>,
        allow_crimes: bool,
    ) -> Option<String> {
        if !dense.iter().all(|model_type| self.dense.contains(model_type)) {
            return Some(format!("takes {} models", self.dense.join(" or ")));
        }
        if dense.len() > 1 && !allow_crimes {
            return Some("takes models of one type (--allow-crimes: of several)".into());
        }
        let number = |key: &str| base.get(key).and_then(Json::as_u64);
        let sides = [number("head_dim"), number("num_attention_heads"), number("hidden_size")];
        if let [Some(head), Some(heads), Some(hidden)] = sides
            && self.even_heads
            && head.checked_mul(heads) != Some(hidden)
        {
            return Some(format!("has no heads of {head}: {heads} of them are to be {hidden} wide together"));
        }
        let (count, shared) = (moe.shared_experts.len(), &self.shared);
        if !shared.contains(&count) {
            return Some(match (shared.start(), shared.end()) {
                (_, 0) => "has no shared experts".into(),
                (1, 1) => format!("has exactly one shared expert, not {count}"),
                (_, most) => format!("has at most {most} shared expert"),
            });
        }
        let has_prompts = |expert: &crate::config::moe::Expert| {
            !expert.positive_prompts.is_empty() || !expert.negative_prompts.is_empty()
        };
        if self.shared_gate.is_none() && moe.shared_experts.iter().any(has_prompts) {
            return Some("has no gate for its shared expert, and so no use for its prompts".into());
        }
        let lacks = |expert: &crate::config::moe::Expert| expert.positive_prompts.is_empty();
        let by_prompts = moe.gate_mode.value == GateMode::CheapEmbed;
        if self.shared_gate.is_some() && by_prompts && moe.shared_experts.iter().any(lacks) {
            return Some(LACKS_PROMPTS.into());
        }
        None
    }

    /// Whether a tensor of the base goes where it was.
    pub(super) fn keeps(&self, rest: &str) -> bool {
        ATTENTION.contains(&rest) || self.further.contains(&rest)
    }

    /// Whether a tensor of no layer does.
    pub(super) fn keeps_loose(name: &str) -> bool {
        LOOSE.contains(&name)
    }

    /// The name of one of an expert's matrices, within its layer.
    pub(super) fn expert(&self, expert: usize, matrix: usize) -> String {
        format!("{}.experts.{expert}.{}.weight", self.block, self.matrices[matrix])
    }

    /// The name of one of the shared expert's.
    pub(super) fn of_shared(&self, matrix: usize) -> String {
        format!("{}.{}.weight", self.shared_block, self.matrices[matrix])
    }

    /// The keys of config.json that the output has, whatever the base's are, and those that are taken away. What the base leaves
    /// to the defaults of its own class is said, where those of another class differ.
    pub(super) fn config_keys(
        &self,
        base: &Map<String, Json>,
        counts: &Counts,
    ) -> (IndexMap<String, Json>, IndexMap<String, Option<Json>>) {
        let mut added = IndexMap::from([
            ("architectures".to_owned(), json!([self.class])),
            ("model_type".to_owned(), self.model_type.into()),
        ]);
        let said = |key: &str| base.get(key).is_some_and(|value| !value.is_null());
        let unsaid = defaults(base).into_iter().filter(|(key, _)| !said(key));
        added.extend(unsaid.map(|(key, default)| (key.to_owned(), default)));
        let Json::Object(own) = (self.keys)(counts) else { unreachable!("keys of an object") };
        added.extend(own);
        // The base's own code, and its attention layer by layer, are those of another class.
        let windows = base.get("use_sliding_window") == Some(&Json::Bool(true));
        let gone = [Some("auto_map"), windows.then_some("layer_types")].into_iter().flatten();
        let gone = gone.filter(|key| !added.contains_key(*key)).map(|key| (key.to_owned(), None)).collect();
        (added, gone)
    }
}

/// What transformers takes where a dense model's config.json says nothing (version 4 and 5 agree).
fn defaults(base: &Map<String, Json>) -> Vec<(&'static str, Json)> {
    let theta = base.get("rope_parameters").and_then(|rope| rope.get("rope_theta"));
    let mut all = vec![
        ("rope_theta", theta.cloned().unwrap_or_else(|| json!(10000.0))),
        ("rms_norm_eps", json!(1e-6)),
        ("hidden_act", "silu".into()),
    ];
    let heads = base.get("num_attention_heads").cloned();
    match base.get("model_type").and_then(Json::as_str) {
        Some("mistral") => all.extend([
            ("num_key_value_heads", json!(8)),
            ("max_position_embeddings", json!(131_072)),
            ("bos_token_id", json!(1)),
            ("eos_token_id", json!(2)),
        ]),
        Some("qwen2") => {
            all.extend([("num_key_value_heads", json!(32)), ("max_position_embeddings", json!(32_768))]);
        }
        Some("qwen3") => all.extend([
            ("num_key_value_heads", json!(32)),
            ("max_position_embeddings", json!(32_768)),
            ("head_dim", json!(128)),
        ]),
        _ => {
            all.extend([
                ("max_position_embeddings", json!(2048)),
                ("bos_token_id", json!(1)),
                ("eos_token_id", json!(2)),
            ]);
            all.extend(heads.map(|heads| ("num_key_value_heads", heads)));
        }
    }
    all
}

/// A tensor that has no place in the output.
pub(super) fn no_place(tensor: &str, model: &str, architecture: &Architecture) -> Error {
    Error::config(format!("tensor {tensor} of {model}: {} has no place for it", architecture.name)).hint(
        "without it the model would not be the same; give models without such tensors, or another `architecture:`",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(config: &str, dense: &[&str]) -> Result<&'static str> {
        let moe = crate::config::moe::parse("c.yaml", config).unwrap();
        let base = json!({ "head_dim": 128, "num_attention_heads": 32, "hidden_size": 4096 });
        chosen_for(&moe, dense, &base)
    }

    fn chosen_for(moe: &MoeConfig, dense: &[&str], base: &Json) -> Result<&'static str> {
        choose(moe, &dense.iter().copied().collect(), base.as_object().unwrap(), false)
            .map(|architecture| architecture.name)
    }

    const TWO: &str = "base_model: a\nexperts: [{source_model: b}, {source_model: c}]\ngate_mode: random\n";

    #[test]
    fn the_first_architecture_that_takes_the_models_is_chosen() {
        let shared = format!("{TWO}shared_experts: [{{source_model: d}}]\n");
        let asked = |architecture: &str| format!("{TWO}architecture: {architecture}\n");
        for (config, dense, name) in [
            (TWO.to_string(), "llama", "Mixtral"),
            (TWO.into(), "mistral", "Mixtral"),
            (TWO.into(), "qwen3", "Qwen3 MoE"),
            (shared.clone(), "llama", "DeepSeek MoE"),
            (shared.clone(), "qwen2", "Qwen MoE"),
            (format!("{shared}architecture: qwen\n"), "mistral", "Qwen MoE"),
            (asked("deepseek"), "llama", "DeepSeek MoE"),
            (asked("Qwen"), "qwen3", "Qwen3 MoE"),
        ] {
            assert_eq!(chosen(&config, &[dense]).unwrap(), name, "{config}");
        }
    }

    #[test]
    fn refusals_say_what_each_architecture_takes() {
        let error = chosen(TWO, &["phi3"]).unwrap_err();
        let says = "c.yaml:1:13: these models (phi3) cannot be experts of one model: Mixtral takes llama or mistral models; \
                    DeepSeek MoE takes llama or mistral models; Qwen MoE takes llama or mistral or qwen2 models; \
                    Qwen3 MoE takes qwen3 models";
        assert_eq!(error.message, says);
        let message = |config: &str, dense: &[&str]| chosen(config, dense).unwrap_err().message;
        assert!(message(TWO, &["qwen2"]).contains("Qwen MoE has exactly one shared expert, not 0"));
        assert!(message(TWO, &["llama", "mistral"]).contains("Mixtral takes models of one type"));
        let odd = format!("{TWO}architecture: olmo\n");
        assert_eq!(message(&odd, &["llama"]), "c.yaml:4:15: there is no such architecture of experts");
        let shared = "shared_experts: [{source_model: d, positive_prompts: [x]}]\narchitecture: deepseek\n";
        assert!(message(&format!("{TWO}{shared}"), &["llama"]).contains("no gate for its shared expert"));
        let shared = "shared_experts: [{source_model: d}]\narchitecture: qwen\n";
        let embedded = TWO.replace("random", "cheap_embed");
        assert!(message(&format!("{embedded}{shared}"), &["qwen2"]).contains("needs positive_prompts"));
        let two = "shared_experts: [{source_model: d}, {source_model: e}]\n";
        assert!(
            message(&format!("{TWO}{two}"), &["llama"]).contains("DeepSeek MoE has at most 1 shared expert")
        );
    }
}

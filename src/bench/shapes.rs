//! The shapes of well-known models: names and sizes of all tensors, with no model at hand.

use serde_json::{Value, json};

use crate::checkpoint::OutTensor;
use crate::dtype::Float;
use crate::error::{Error, Result, did_you_mean};

/// A named architecture with its sizes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shape {
    /// What it is asked for by.
    pub name: &'static str,
    /// Blocks.
    pub layers: usize,
    hidden: usize,
    inter: usize,
    heads: usize,
    kv_heads: usize,
    vocab: usize,
    rope_theta: f64,
    /// Experts of a mixture; 0 is a dense model.
    experts: usize,
}

/// All shapes, from the smallest to the largest.
pub const SHAPES: [Shape; 8] = [
    Shape { inter: 176, kv_heads: 2, ..shape("tiny", 4, 64, 4, 512) },
    Shape { inter: 3072, kv_heads: 12, ..shape("llama-68m", 2, 768, 12, 32_000) },
    // No model's: 20,001 tensors, most of them of some kilobytes, for what a tensor costs by itself.
    Shape { inter: 176, kv_heads: 2, ..shape("tiny-20k", 2222, 64, 4, 512) },
    Shape { inter: 5632, kv_heads: 4, ..shape("tinyllama-1.1b", 22, 2048, 32, 32_000) },
    Shape { inter: 11_008, kv_heads: 32, ..shape("llama-2-7b", 32, 4096, 32, 32_000) },
    Shape { inter: 14_336, rope_theta: 500_000.0, ..shape("llama-3-8b", 32, 4096, 32, 128_256) },
    Shape { inter: 14_336, rope_theta: 1e6, experts: 8, ..shape("mixtral-8x7b", 32, 4096, 32, 32_000) },
    Shape { inter: 28_672, rope_theta: 500_000.0, ..shape("llama-3-70b", 80, 8192, 64, 128_256) },
];

/// What stays as it is here unless a shape says otherwise.
const fn shape(name: &'static str, layers: usize, hidden: usize, heads: usize, vocab: usize) -> Shape {
    Shape { name, layers, hidden, inter: 0, heads, kv_heads: 8, vocab, rope_theta: 10_000.0, experts: 0 }
}

impl Shape {
    /// The shape of this name, cut down to `layers` where it has more.
    ///
    /// # Errors
    /// Kind `Config`: there is none.
    pub fn find(name: &str, layers: Option<usize>) -> Result<Self> {
        let names = || SHAPES.iter().map(|shape| shape.name);
        let found = SHAPES.into_iter().find(|shape| shape.name == name).ok_or_else(|| {
            let meant = did_you_mean(name, names()).map(|meant| format!("did you mean `{meant}`? "));
            Error::config(format!("there is no shape `{name}`")).hint(format!(
                "{}the shapes are {}",
                meant.unwrap_or_default(),
                names().collect::<Vec<_>>().join(", ")
            ))
        })?;
        Ok(Self { layers: layers.map_or(found.layers, |layers| layers.min(found.layers)), ..found })
    }

    /// Every tensor in the order of the forward pass.
    pub fn tensors(&self, float: Float) -> Vec<OutTensor> {
        let hidden = self.hidden;
        let tensor = |name: &str, shape: &[usize]| OutTensor {
            name: format!("{name}.weight"),
            dtype: float.dtype(),
            shape: shape.to_vec(),
        };
        let mut tensors = vec![tensor("model.embed_tokens", &[self.vocab, hidden])];
        for layer in 0..self.layers {
            let named = |(part, shape): (String, [usize; 2])| {
                let shape = if shape[0] == 0 { &shape[1..] } else { &shape[..] };
                tensor(&format!("model.layers.{layer}.{part}"), shape)
            };
            tensors.extend(self.attention().into_iter().chain(self.feed_forward()).map(named));
        }
        tensors.push(tensor("model.norm", &[hidden]));
        tensors.push(tensor("lm_head", &[self.vocab, hidden]));
        tensors
    }

    /// The first half of a block, with both norms; a norm has no rows.
    fn attention(&self) -> Vec<(String, [usize; 2])> {
        let hidden = self.hidden;
        let kv = hidden / self.heads * self.kv_heads;
        vec![
            ("input_layernorm".into(), [0, hidden]),
            ("self_attn.q_proj".into(), [hidden, hidden]),
            ("self_attn.k_proj".into(), [kv, hidden]),
            ("self_attn.v_proj".into(), [kv, hidden]),
            ("self_attn.o_proj".into(), [hidden, hidden]),
            ("post_attention_layernorm".into(), [0, hidden]),
        ]
    }

    fn feed_forward(&self) -> Vec<(String, [usize; 2])> {
        let (up, down) = ([self.inter, self.hidden], [self.hidden, self.inter]);
        if self.experts == 0 {
            return vec![
                ("mlp.gate_proj".into(), up),
                ("mlp.up_proj".into(), up),
                ("mlp.down_proj".into(), down),
            ];
        }
        let expert = |n: usize| {
            [("w1", up), ("w2", down), ("w3", up)]
                .map(|(part, shape)| (format!("block_sparse_moe.experts.{n}.{part}"), shape))
        };
        let gate = ("block_sparse_moe.gate".into(), [self.experts, self.hidden]);
        std::iter::once(gate).chain((0..self.experts).flat_map(expert)).collect()
    }

    /// The `config.json` of such a model.
    pub fn config(&self, float: Float) -> Value {
        let (architecture, model_type) =
            if self.experts == 0 { ("LlamaForCausalLM", "llama") } else { ("MixtralForCausalLM", "mixtral") };
        let mut config = json!({
            "architectures": [architecture],
            "attention_bias": false,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "initializer_range": 0.02,
            "intermediate_size": self.inter,
            "max_position_embeddings": 2048,
            "model_type": model_type,
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.kv_heads,
            "rms_norm_eps": 1e-5,
            "rope_theta": self.rope_theta,
            "tie_word_embeddings": false,
            "torch_dtype": float.name(),
            "vocab_size": self.vocab,
        });
        if self.experts > 0 {
            config["num_local_experts"] = self.experts.into();
            config["num_experts_per_tok"] = 2.into();
        }
        config
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The published counts of parameters.
    #[test]
    fn shapes_have_as_many_parameters_as_their_models() {
        for (name, parameters) in [
            ("llama-68m", 68_030_208),
            ("tinyllama-1.1b", 1_100_048_384),
            ("llama-2-7b", 6_738_415_616),
            ("llama-3-8b", 8_030_261_248),
            ("llama-3-70b", 70_553_706_496),
            ("mixtral-8x7b", 46_702_792_704),
        ] {
            let tensors = Shape::find(name, None).unwrap().tensors(Float::BF16);
            assert_eq!(tensors.iter().map(OutTensor::bytes).sum::<u64>() / 2, parameters, "{name}");
        }
    }

    #[test]
    fn a_cut_shape_is_named_in_its_config() {
        let cut = Shape::find("mixtral-8x7b", Some(1)).unwrap();
        assert_eq!(cut.config(Float::F16)["num_hidden_layers"], 1);
        assert_eq!(cut.config(Float::F16)["num_local_experts"], 8);
        let names: Vec<String> = cut.tensors(Float::F16).into_iter().map(|tensor| tensor.name).collect();
        assert!(names.contains(&"model.layers.0.block_sparse_moe.experts.7.w2.weight".to_string()));
        assert_eq!(Shape::find("tiny", Some(9)).unwrap().layers, 4);
    }

    #[test]
    fn an_unknown_shape_is_answered_with_those_there_are() {
        let error = Shape::find("llama-2-7B", None).unwrap_err();
        let hint = error.hint.unwrap();
        assert!(hint.contains("did you mean `llama-2-7b`?") && hint.contains("tinyllama-1.1b"), "{hint}");
    }
}

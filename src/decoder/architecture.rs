//! What config.json says of a decoder.

use serde_json::{Map, Value as Json};

use super::rope::Rope;

/// A decoder's sizes and options.
#[derive(Debug, Clone, PartialEq)]
pub struct Decoder {
    /// Its layers.
    pub layers: usize,
    /// The width of a hidden state.
    pub hidden: usize,
    /// The rows of its embedding that config.json states.
    pub vocabulary: usize,
    /// The tokens of the longest text that it was made for, as config.json states them.
    pub positions: Option<usize>,
    /// Whether its head is its embedding.
    pub tied: bool,
    /// The heads of queries, a multiple of those of keys and values.
    pub(super) heads: usize,
    /// The heads of keys and values.
    pub(super) key_heads: usize,
    /// The width of a head, an even number.
    pub(super) head: usize,
    /// The width within the MLP.
    pub(super) inner: usize,
    /// What is added to mean squares.
    pub(super) epsilon: f32,
    /// How positions turn queries and keys.
    pub(super) rope: Rope,
    /// Of each layer, how many tokens back a token sees, itself included; none: all of them.
    pub(super) windows: Vec<Option<usize>>,
    /// Whether each head of queries and keys is brought to one length.
    pub(super) normed_heads: bool,
}

/// A family of decoders.
struct Family {
    model_type: &'static str,
    normed_heads: bool,
    /// Which layers see a window only.
    window: Windows,
    /// What transformers takes `rms_norm_eps` to be where config.json is silent.
    epsilon: f64,
    /// The same of `head_dim`; none: what the hidden size leaves for each head.
    head: Option<usize>,
}

#[derive(Clone, Copy)]
enum Windows {
    Never,
    /// All layers, if there is a `sliding_window`.
    All,
    /// Layers from `max_window_layers` on, if `use_sliding_window` is set.
    Late,
}

const FAMILIES: [Family; 4] = [
    Family { model_type: "llama", normed_heads: false, window: Windows::Never, epsilon: 1e-6, head: None },
    Family { model_type: "mistral", normed_heads: false, window: Windows::All, epsilon: 1e-6, head: None },
    Family { model_type: "qwen2", normed_heads: false, window: Windows::Late, epsilon: 1e-6, head: None },
    Family { model_type: "qwen3", normed_heads: true, window: Windows::Late, epsilon: 1e-6, head: Some(128) },
];

/// Sides that no published model reaches; products of two of them are far from overflow.
const SIDE_MAX: u64 = 1 << 24;

impl Decoder {
    /// The decoder that a config.json describes.
    ///
    /// # Errors
    /// Why it has no forward pass here: in words that follow the model's name and a colon.
    pub fn of(config: &Map<String, Json>) -> Result<Self, String> {
        if config.is_empty() {
            return Err("it has no config.json, which says how its forward pass goes".into());
        }
        let Some(model_type) = config.get("model_type").and_then(Json::as_str) else {
            return Err("its config.json has no model_type, which says how its forward pass goes".into());
        };
        let family = FAMILIES.iter().find(|family| family.model_type == model_type).ok_or_else(|| {
            let known: Vec<&str> = FAMILIES.iter().map(|family| family.model_type).collect();
            format!("no forward pass for models of type {model_type}, only {}", known.join(", "))
        })?;
        let stated = |key: &str| config.get(key).filter(|value| !value.is_null());
        let side = |key: &str, default: Option<usize>| match (stated(key), default) {
            (None, Some(default)) => Ok(default),
            (None, None) => Err(format!("its config.json has no {key}")),
            (Some(value), _) => value
                .as_u64()
                .filter(|side| (1..=SIDE_MAX).contains(side))
                .map(|side| side as usize)
                .ok_or_else(|| format!("its config.json has {value} for {key}")),
        };
        if let Some(act) = stated("hidden_act").filter(|act| *act != "silu") {
            return Err(format!("no forward pass with the activation {act}"));
        }
        let hidden = side("hidden_size", None)?;
        let heads = side("num_attention_heads", None)?;
        let key_heads = side("num_key_value_heads", Some(heads))?;
        let head = side("head_dim", Some(family.head.unwrap_or((hidden / heads).max(1))))?;
        if heads % key_heads > 0 {
            return Err(format!("its {heads} heads cannot share {key_heads} of keys and values"));
        }
        if head % 2 > 0 {
            return Err(format!("its heads have {head} elements, which are no pairs"));
        }
        let layers = side("num_hidden_layers", None)?;
        let epsilon = stated("rms_norm_eps").map_or(Some(family.epsilon), Json::as_f64);
        Ok(Self {
            layers,
            hidden,
            vocabulary: side("vocab_size", None)?,
            tied: stated("tie_word_embeddings").and_then(Json::as_bool).unwrap_or(false),
            positions: stated("max_position_embeddings").and_then(Json::as_u64).map(|most| most as usize),
            heads,
            key_heads,
            head,
            inner: side("intermediate_size", None)?,
            epsilon: epsilon.ok_or("its config.json has no number for rms_norm_eps")? as f32,
            rope: Rope::of(config, head)?,
            windows: windows(config, family.window, layers)?,
            normed_heads: family.normed_heads,
        })
    }

    /// The tokens of the longest text that it can read; none: any.
    pub fn longest_text(&self) -> Option<usize> {
        self.rope.longest()
    }

    /// The layer that a tensor is of, by its name in a checkpoint.
    pub fn layer_of(name: &str) -> Option<usize> {
        name.strip_prefix(LAYERS)?.split('.').next()?.parse().ok()
    }

    /// The tensors that the first so many layers have besides biases, with their shapes.
    pub fn tensors(&self, layers: usize) -> Vec<(String, Vec<usize>)> {
        let Self { hidden, inner, head, .. } = *self;
        let (queries, keys) = (self.heads * head, self.key_heads * head);
        let mut parts = vec![
            ("input_layernorm", vec![hidden]),
            ("self_attn.q_proj", vec![queries, hidden]),
            ("self_attn.k_proj", vec![keys, hidden]),
            ("self_attn.v_proj", vec![keys, hidden]),
            ("self_attn.o_proj", vec![hidden, queries]),
            ("post_attention_layernorm", vec![hidden]),
            ("mlp.gate_proj", vec![inner, hidden]),
            ("mlp.up_proj", vec![inner, hidden]),
            ("mlp.down_proj", vec![hidden, inner]),
        ];
        if self.normed_heads {
            parts.extend(["q_norm", "k_norm"].map(|norm| match norm {
                "q_norm" => ("self_attn.q_norm", vec![head]),
                _ => ("self_attn.k_norm", vec![head]),
            }));
        }
        let of_layer = |layer: usize| {
            parts.iter().map(move |(part, shape)| (tensor_name(layer, part, "weight"), shape.clone()))
        };
        (0..layers).flat_map(of_layer).collect()
    }

    /// The biases that the first so many layers may have, with their shapes.
    pub fn biases(&self, layers: usize) -> Vec<(String, Vec<usize>)> {
        let of = |(name, shape): (String, Vec<usize>)| {
            let stem = name.strip_suffix("_proj.weight")?;
            Some((format!("{stem}_proj.bias"), vec![shape[0]]))
        };
        self.tensors(layers).into_iter().filter_map(of).collect()
    }
}

/// What stands before the number of a layer.
const LAYERS: &str = "model.layers.";

/// The name of a layer's tensor in a checkpoint.
pub(super) fn tensor_name(layer: usize, part: &str, kind: &str) -> String {
    format!("{LAYERS}{layer}.{part}.{kind}")
}

fn windows(config: &Map<String, Json>, kind: Windows, layers: usize) -> Result<Vec<Option<usize>>, String> {
    let number = |key: &str| config.get(key).and_then(Json::as_u64).map(|number| number as usize);
    let window = number("sliding_window").filter(|window| *window > 0);
    let in_use = config.get("use_sliding_window").and_then(Json::as_bool).unwrap_or(false);
    let types = config.get("layer_types").and_then(Json::as_array);
    // The others do not look at it.
    if let Some(types) = types.filter(|_| matches!(kind, Windows::Late)) {
        let of = |kind: &Json| match (kind.as_str(), window) {
            (Some("full_attention"), _) => Ok(None),
            (Some("sliding_attention"), Some(window)) => Ok(Some(window)),
            _ => Err(format!("no forward pass for a layer of type {kind}")),
        };
        if types.len() != layers {
            return Err(format!("its config.json has {} layer_types for {layers} layers", types.len()));
        }
        return types.iter().map(of).collect();
    }
    let first = match kind {
        Windows::All => 0,
        Windows::Late if in_use => number("max_window_layers").unwrap_or(28),
        Windows::Never | Windows::Late => layers,
    };
    Ok((0..layers).map(|layer| window.filter(|_| layer >= first)).collect())
}

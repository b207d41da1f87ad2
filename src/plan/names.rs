//! Layers, by the names of tensors alone: no architecture files.
//!
//! A layer's number is the first all-digit part of a name that another part follows; what stands before it
//! names the stack of layers. Every other tensor is loose. `model.layers.7.mlp.up_proj.weight` is layer 7 of the
//! stack `model.layers`, `lm_head.weight` is loose.

use indexmap::IndexMap;

pub(super) use crate::checkpoint::names::{
    is_embedding, is_head, is_over_vocabulary, is_token_embedding, loaded,
};

/// Far beyond any model: a larger number in a name counts no layers.
pub(super) const LAYERS_MAX: usize = 1 << 20;

/// A tensor of a layer: its stack, its layer and its name within the layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layered<'a> {
    /// What stands before the layer's number.
    pub stack: &'a str,
    /// The layer's number.
    pub layer: usize,
    /// What stands behind it.
    pub rest: &'a str,
}

/// Takes a name apart; `None` for a loose tensor.
pub fn layered(name: &str) -> Option<Layered<'_>> {
    let mut start = 0;
    for part in name.split('.') {
        let end = start + part.len();
        let digits = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        if digits && end < name.len() {
            let layer = part.parse().ok().filter(|layer| *layer < LAYERS_MAX)?;
            return Some(Layered { stack: &name[..start.saturating_sub(1)], layer, rest: &name[end + 1..] });
        }
        start = end + 1;
    }
    None
}

impl Layered<'_> {
    /// The tensor's name as layer `layer`.
    pub(super) fn named(&self, layer: usize) -> String {
        let dot = if self.stack.is_empty() { "" } else { "." };
        format!("{}{dot}{layer}.{}", self.stack, self.rest)
    }
}

/// Whether a loose tensor comes before the layers (embeddings do; norms and heads come after).
pub(super) fn before_layers(loose: &str) -> bool {
    ["embed", "wte", "wpe"].iter().any(|part| loose.contains(part))
}

/// The stacks of a model and how many layers each has.
pub(super) fn stacks<'a>(names: impl Iterator<Item = &'a str>) -> IndexMap<&'a str, usize> {
    let mut stacks = IndexMap::new();
    for layered in names.filter_map(layered) {
        let layers = stacks.entry(layered.stack).or_insert(0);
        *layers = (*layers).max(layered.layer + 1);
    }
    stacks
}

/// What tensors of all layers have in common: their name without the layer's number.
pub(super) fn kind(name: &str) -> String {
    layered(name).map_or_else(|| name.to_owned(), |tensor| format!("{}.*.{}", tensor.stack, tensor.rest))
}

/// The first place of each kind of tensor among names.
pub(super) fn kinds<'a>(names: impl Iterator<Item = &'a str>) -> IndexMap<String, usize> {
    let mut kinds = IndexMap::new();
    for (place, name) in names.enumerate() {
        kinds.entry(kind(name)).or_insert(place);
    }
    kinds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_number_with_something_behind_it_is_the_layer() {
        let parts = |name| layered(name).map(|l| (l.stack, l.layer, l.rest));
        assert_eq!(
            parts("model.layers.12.mlp.experts.3.w1.weight"),
            Some(("model.layers", 12, "mlp.experts.3.w1.weight"))
        );
        assert_eq!(parts("h.0.attn.bias"), Some(("h", 0, "attn.bias")));
        assert_eq!(parts("3.weight"), Some(("", 3, "weight")));
        for loose in ["lm_head.weight", "model.norm.weight", "codebook.0", "model.layers2.weight", "a..b"] {
            assert_eq!(parts(loose), None, "{loose}");
        }
        for huge in ["99999999999999999999999.x", "a.18446744073709551615.w", "a.4000000000000.w"] {
            assert_eq!(layered(huge), None, "{huge}");
        }
    }

    #[test]
    fn names_go_apart_and_together() {
        for name in ["model.layers.12.mlp.w", "3.weight", "h.0.b"] {
            let layered = layered(name).unwrap();
            assert_eq!(layered.named(layered.layer), name);
        }
    }

    #[test]
    fn embeddings_come_before_the_layers() {
        assert!(before_layers("model.embed_tokens.weight") && before_layers("transformer.wpe.weight"));
        assert!(!before_layers("model.norm.weight") && !before_layers("lm_head.weight"));
        assert!(is_embedding("model.embed_tokens.weight") && !is_embedding("pos_embed.weight"));
    }
}

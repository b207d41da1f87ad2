//! The small files beside the weights, as they are written.

use super::folder::InputFile;

/// A file beside the weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sidecar {
    /// Its name in the output folder; a `/` leads into a folder there.
    pub file: String,
    /// What it holds.
    pub content: Content,
}

/// What a sidecar holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// These bytes.
    Bytes(Vec<u8>),
    /// The bytes of this file.
    CopyOf(InputFile),
}

/// `mergeforge.json`.
pub const MANIFEST: &str = "mergeforge.json";
/// The config of the merge.
pub const MERGE_CONFIG: &str = "mergekit_config.yml";
/// The config of a mixture of experts.
pub const MOE_CONFIG: &str = "mergekit_moe_config.yml";
/// The same merge as one of mergekit's `linear`, of a method that only gives the weights for it.
pub const LINEAR_CONFIG: &str = "mergekit_linear.yml";
/// The model card.
pub const CARD: &str = "README.md";
/// The config of the model.
pub const MODEL_CONFIG: &str = "config.json";

//! Random masks of task vectors: how likely an element is kept, and what the generator is keyed by.

pub(super) use crate::kernel::philox::probability;

/// The methods that draw masks at random, so that another seed gives another merge.
pub(super) const DRAWN_BY: [&str; 4] = ["dare_linear", "dare_ties", "della", "della_linear"];

/// The generator's key for one model's mask of one tensor: the first 64 bits of a BLAKE3 hash.
///
/// `position` counts the non-base models in the order listed.
pub(super) fn mask_key(seed: u64, tensor: &str, position: usize) -> [u32; 2] {
    let mut hasher = blake3::Hasher::new_derive_key("mergeforge 2026 random mask");
    hasher.update(&seed.to_le_bytes()).update(&(position as u32).to_le_bytes()).update(tensor.as_bytes());
    let hash = hasher.finalize();
    let word = |i: usize| u32::from_le_bytes(hash.as_bytes()[4 * i..][..4].try_into().expect("four bytes"));
    [word(0), word(1)]
}

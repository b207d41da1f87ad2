//! mergeforge merges large model checkpoints.

pub mod error;
pub mod dtype;

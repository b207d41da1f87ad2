//! Element types.

pub use safetensors::Dtype;

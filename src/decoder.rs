//! The forward pass of dense decoders: Llama, Mistral, Qwen2 and Qwen3. One block with options serves all of them.
//!
//! A [`Decoder`] is what config.json says, [`States`] are the hidden states of some texts, and a [`Machine`] is what computes on
//! them: the [`Processor`], in a fixed order (the same on every machine) or as fast as it can ([`Sums`]), or a GPU. Weights come
//! from wherever a caller has them, a few rows at a time, and layer by layer: all texts go through a layer before the next one is
//! read, so that one pass over a model serves them all and no model has to fit in memory. All of it is f32.

mod architecture;
mod cuda;
mod fastest;
mod head;
mod machine;
mod processor;
mod rope;
mod states;

pub use architecture::Decoder;
pub use cuda::Cuda;
pub use fastest::{exponentials, max_and_sum};
pub use head::{Final, HEAD, NORM, logits};
pub use machine::{Attention, Head, Heads, LogitsBytes, Machine, Room, Rows, Take};
pub use processor::{Processor, Sums};
pub use states::{EMBEDDING, States, Weights};

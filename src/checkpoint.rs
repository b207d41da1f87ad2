//! Checkpoints in Hugging Face's form: a folder with `config.json`, safetensors files and companions.
//!
//! [`locate()`] turns a model reference into a folder, [`Source`] reads one, [`layout()`] says where every byte
//! of an output goes, [`Sink`] writes it, and the sidecars are the small files beside the weights. Whatever
//! a file says about itself is checked here, once, so that the rest of the program need not doubt it.

mod adapter;
mod card;
pub mod companions;
mod digest;
mod file;
mod folder;
pub mod globs;
mod handles;
pub mod header;
mod in_memory;
mod journal;
pub mod layout;
mod licence;
pub mod locate;
mod located;
mod model_config;
pub mod names;
mod out_file;
mod out_folder;
mod outline;
mod partial;
mod pickle;
mod remote;
pub mod sidecars;
pub mod sink;
pub mod source;
mod source_file;
mod weight_files;

pub use adapter::{Adapter, CAUSAL_LM, LowRank, Part as AdapterPart, Tokens, peft_task};
pub use card::{CardModel, ModelCard, model_card};
pub use companions::{Companion, Companions, LeftFile, OTHER_VOCABULARIES, Revision, TOKENIZER, companions};
pub use digest::{GoOn, sha256_of};
pub use file::{Access, ReadAt, Reads, open_files_max};
pub use folder::{InputFile, ModelFolder};
pub use handles::open_files_of_inputs_max;
pub use header::TensorInfo;
pub use in_memory::HeldTensors;
pub use journal::{Finished, Journal};
pub use layout::{Layout, OutTensor, Place, Shard, StoredTensor, laid_out, layout, share};
pub use licence::licence;
pub use locate::{locate, locate_tensors};
pub use located::Located;
pub use model_config::{ConfigEdits, LayerCount, config_json, per_layer_lists};
pub(crate) use names::{ADAPTER_CONFIG, ADAPTER_PREFIX, ADAPTER_WEIGHTS};
pub use out_file::{OutFile, Storing};
pub use out_folder::{
    Destination, check_apart, check_destinations, check_out, free_bytes, in_the_way, partial_path, parts_of,
    same_disk,
};
pub use partial::{Making, WorkFolder, check_left, check_only, remove_folder, remove_lock};
pub use sidecars::{CARD, Content, LINEAR_CONFIG, MANIFEST, MERGE_CONFIG, MODEL_CONFIG, MOE_CONFIG, Sidecar};
pub use sink::{InParts, Sink};
pub use source::Source;
pub use source_file::Elsewhere;
pub use weight_files::{is_weights, parse_index};

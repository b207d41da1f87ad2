//! Checkpoints in Hugging Face's form: a folder with `config.json`, safetensors files and companions.
//!
//! [`locate()`] turns a model reference into a folder, [`Source`] reads one, [`layout()`] says where every byte
//! of an output goes, [`Sink`] writes it, and the sidecars are the small files beside the weights. Whatever
//! a file says about itself is checked here, once, so that the rest of the program need not doubt it.

mod card;
mod file;
mod folder;
pub mod globs;
mod handles;
pub mod header;
pub mod layout;
mod licence;
mod limits;
pub mod locate;
mod mapped;
mod model_config;
mod out_file;
mod out_folder;
mod partial;
pub mod sidecars;
pub mod sink;
pub mod source;
mod source_file;

pub use card::{CardModel, ModelCard, model_card};
pub use file::{Access, Reads};
pub(crate) use file::{read_exact_at, read_small, write_all_at};
pub use folder::{InputFile, ModelFolder};
pub use header::TensorInfo;
pub use layout::{Layout, OutTensor, Place, Shard, layout};
pub use licence::licence;
pub use limits::TOKENIZER_BYTES_MAX;
pub use locate::{locate, locate_tensors};
pub(crate) use mapped::WritableMap;
pub use model_config::{ConfigEdits, config_json, per_layer_lists};
pub use out_file::{OutFile, Storing};
pub use out_folder::{check_out, free_bytes};
pub use sidecars::{
    CARD, Content, LINEAR_CONFIG, MANIFEST, MERGE_CONFIG, MODEL_CONFIG, Sidecar, check_companions,
    companion_files,
};
pub use sink::Sink;
pub use source::Source;

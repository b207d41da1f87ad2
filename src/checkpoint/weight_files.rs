//! Which files of a model's folder hold its weights.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use indexmap::IndexMap;

use super::folder::{InputFile, ModelFolder};
pub use super::header::parse_index;
use super::layout::{INDEX, SINGLE};
use crate::error::{Error, Result};
use crate::limits::INDEX_BYTES_MAX;
use crate::text::quoted;

/// The index and the single file of a model that torch has saved.
const TORCH_INDEX: &str = "pytorch_model.bin.index.json";
const TORCH_SINGLE: &str = "pytorch_model.bin";

/// What trainers save beside weights, by how the names begin.
const TRAINER_STATE: &[&str] =
    &["training_args", "optimizer", "scheduler", "scaler", "rng_state", "random_states"];

/// The index of a sharded checkpoint: tensor → file.
pub type TensorIndex = IndexMap<String, String>;

/// The files that hold the weights of a folder.
#[derive(Debug)]
pub struct WeightFiles {
    /// Their names, sorted.
    pub files: Vec<String>,
    /// The index if there is one, and its name.
    pub index: Option<(&'static str, TensorIndex)>,
}

impl WeightFiles {
    /// Those of a folder in which these files are: safetensors where there are any, else what torch has saved.
    ///
    /// # Errors
    /// Kind `Input`: there are none, or it is not known which.
    pub fn find(folder: &Arc<ModelFolder>, present: &BTreeSet<String>) -> Result<Self> {
        let loose = |is: fn(&str) -> bool| present.iter().filter(move |name| is(name)).collect::<Vec<_>>();
        let (safetensors, pickles) = (loose(is_safetensors), loose(is_pickled_weights));
        let single = |name: &str| Self { files: vec![name.to_owned()], index: None };
        if present.contains(INDEX) {
            Self::indexed(folder, present, INDEX, is_safetensors)
        } else if present.contains(SINGLE) {
            Ok(single(SINGLE))
        } else if let [only] = safetensors[..] {
            Ok(single(only))
        } else if present.contains(TORCH_INDEX) {
            Self::indexed(folder, present, TORCH_INDEX, is_pickle)
        } else if present.contains(TORCH_SINGLE) {
            Ok(single(TORCH_SINGLE))
        } else if let Some(first) = safetensors.first() {
            Err(index_missing(&folder.path, first, safetensors.len(), INDEX))
        } else if let [only] = pickles[..] {
            Ok(single(only))
        } else if let Some(first) = pickles.first() {
            Err(index_missing(&folder.path, first, pickles.len(), TORCH_INDEX))
        } else {
            Err(no_weights(&folder.path, present))
        }
    }

    fn indexed(
        folder: &Arc<ModelFolder>,
        present: &BTreeSet<String>,
        name: &'static str,
        is_shard: fn(&str) -> bool,
    ) -> Result<Self> {
        let index = read_index(&folder.file(name), is_shard)?;
        let files: BTreeSet<&String> = index.values().collect();
        if let Some(missing) = files.iter().find(|file| !present.contains(**file)) {
            let what = format!("{} has no {missing}, which {name} names", folder.path.display());
            return Err(Error::input(what).hint("run the download again: a shard is missing"));
        }
        Ok(Self { files: files.into_iter().cloned().collect(), index: Some((name, index)) })
    }

    /// A warning of the safetensors files beside those that were chosen: a leftover of another save, or weights that no index lists.
    pub fn unread(&self, model: &str, present: &BTreeSet<String>) -> Option<String> {
        // They are sorted.
        let read = |file: &String| self.files.binary_search(file).is_ok();
        let unread: Vec<&str> =
            present.iter().filter(|file| is_safetensors(file) && !read(file)).map(String::as_str).collect();
        let (first, more) = (unread.first()?, unread.len() - 1);
        let more = if more == 0 { String::new() } else { format!(" and {more} more") };
        Some(format!("{model}: {first}{more} is no part of the checkpoint that is read"))
    }
}

/// Whether a file is one of weights, by its name.
pub fn is_weights(name: &str) -> bool {
    is_safetensors(name) || is_pickled_weights(name)
}

pub(super) fn is_safetensors(name: &str) -> bool {
    has_extension(name, &["safetensors"])
}

/// Whether a file is one of `torch.save`, by its name.
fn is_pickle(name: &str) -> bool {
    has_extension(name, &["bin", "pt", "pth", "ckpt"])
}

fn is_pickled_weights(name: &str) -> bool {
    is_pickle(name) && !TRAINER_STATE.iter().any(|state| name.starts_with(state))
}

fn has_extension(name: &str, extensions: &[&str]) -> bool {
    name.rsplit_once('.').is_some_and(|(stem, extension)| !stem.is_empty() && extensions.contains(&extension))
}

fn index_missing(folder: &Path, first: &str, count: usize, index: &str) -> Error {
    let folder = folder.display();
    Error::input(format!("{folder} holds {count} files such as {first}, but no {index}: index missing"))
        .hint("download the index too, or keep one file of weights in the folder")
}

/// The index, its entries checked by their spelling alone, before any is opened.
fn read_index(file: &InputFile, is_shard: fn(&str) -> bool) -> Result<TensorIndex> {
    let path = &file.path();
    let parsed = parse_index(&file.read(INDEX_BYTES_MAX)?);
    let index = parsed.map_err(|e| contradiction(path, &format!("not the index of a checkpoint: {e}")))?;
    if index.is_empty() {
        return Err(contradiction(path, "weight_map lists no tensor"));
    }
    if let Some((tensor, file)) = index.iter().find(|(_, file)| !is_shard(file) || !is_plain(file)) {
        let (tensor, file) = (quoted(tensor), quoted(file));
        let what = format!("tensor {tensor} lies in {file}, which is no plain name of a file of weights");
        return Err(contradiction(path, &what));
    }
    Ok(index)
}

/// A checkpoint that says two things at once.
pub fn contradiction(path: &Path, what: &str) -> Error {
    let error = Error::input(format!("{}: {what}", path.display())).in_file(path);
    error.hint("download the model again, whole")
}

/// Whether a name is that of a file in the same folder, on any system: no separators of any kind, no drive letters, no control
/// characters.
fn is_plain(name: &str) -> bool {
    !name.contains(['/', '\\', ':']) && !name.chars().any(char::is_control)
}

/// Says which foreign format the folder holds, if it does.
fn no_weights(folder: &Path, present: &BTreeSet<String>) -> Error {
    let folder = folder.display();
    let format = |name: &str| {
        Some(match Path::new(name).extension()?.to_str()? {
            "gguf" => {
                ("GGUF", "GGUF files are quantised: give the model that they were made of, in safetensors")
            }
            "h5" | "msgpack" | "onnx" => (
                "TensorFlow, Flax or ONNX",
                "convert them first: load the model in transformers (with `from_tf` or `from_flax`) and `save_pretrained` it",
            ),
            "npz" => ("NumPy", "save the arrays with `safetensors.numpy.save_file`"),
            "distcp" => (
                "a distributed checkpoint",
                "convert it first: `python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER weights.pt`",
            ),
            _ => return None,
        })
    };
    match present.iter().find_map(|name| Some((name, format(name)?))) {
        Some((name, (format, way_out))) => {
            Error::input(format!("{folder} holds its weights as {format} ({name})")).hint(way_out)
        }
        None => {
            Error::input(format!("{folder} holds no weights: neither safetensors nor files of torch.save"))
                .hint("give the folder of a whole model; an interrupted download can be run again")
        }
    }
}

//! The manifest, `mergeforge.json`: what a merge was made of and what came out, as data that is written and read back. It says nothing
//! of when, where and how fast: two runs of a merge have the same, byte for byte. `docs/manifest.md` is its description for others.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::canonical;
use crate::checkpoint::{MANIFEST, ModelFolder, sha256_of};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::limits::MANIFEST_BYTES_MAX;

/// The format that this program writes, and reads.
pub const FORMAT: u64 = 1;

/// What `mergeforge.json` says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u64,
    /// The version that merged.
    pub mergeforge: String,
    /// The method that the config names.
    pub method: String,
    /// The file beside it that is the config, and its SHA-256.
    pub config: ConfigRecord,
    /// The seed of random masks.
    pub seed: u64,
    /// The options that change what is merged.
    pub options: OptionsRecord,
    /// Which bytes each model was, and what of it was read.
    pub inputs: Vec<InputRecord>,
    /// The same of the files that say something of models' elements.
    pub element_files: Vec<InputRecord>,
    /// What the config leaves out, in words.
    pub left_out: Vec<LeftOutRecord>,
    /// Of a method that weighs models by their places in the list: the weight of each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<Vec<f64>>,
    /// NaN, infinities and overflows, of the tensors that have some.
    pub odd_values: BTreeMap<String, OddRecord>,
    /// What was found out about tensors.
    pub remarks: Vec<RemarkRecord>,
    /// Bytes of tensor data.
    pub total_size: u64,
    /// The files of the output, but for the manifest and the card.
    pub files: BTreeMap<String, FileRecord>,
    /// The tensors of the output: there can be many, which are written one by one.
    #[serde(skip_serializing)]
    pub tensors: BTreeMap<String, TensorRecord>,
}

/// The config of a merge, which lies beside its manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfigRecord {
    /// Its name.
    pub file: String,
    /// In hexadecimal.
    pub sha256: String,
}

/// Which bytes an input was, and what of it was read: a model, an adapter, or a file that says something of elements.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputRecord {
    /// Of a model, the name that the config has for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Of a file that says something of elements, the path that the config has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Of a model its adapter, and of that its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<AdapterRecord>,
    /// Its files of weights; none of a result that was merged while it was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<Vec<InputFileRecord>>,
    /// The BLAKE3 hash of its config.json.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_blake3: Option<String>,
    /// The BLAKE3 hash of its tokenizer.json, where vocabularies became one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer_blake3: Option<String>,
    /// Its commit on the Hub.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Whether it is the result of another document.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merged: Option<bool>,
    /// What of it was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tensors: Option<CoverageRecord>,
}

/// An adapter, or its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum AdapterRecord {
    /// The name that the config has for it.
    Name(String),
    /// What a model's adapter is.
    Input(Box<InputRecord>),
}

/// A file of an input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputFileRecord {
    /// Its name.
    pub file: String,
    /// Its size, in bytes.
    pub bytes: u64,
    /// The BLAKE3 hash of its header.
    pub header_blake3: String,
    /// The SHA-256 of all of it, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Whether that was computed, or is what the file is called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256_verified: Option<bool>,
}

/// The tensors of an input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CoverageRecord {
    /// How many there are.
    pub all: usize,
    /// How many are read.
    pub read: usize,
    /// Those that the config leaves out, by name.
    pub left_out: Vec<String>,
    /// Those that nothing depends on, by name.
    pub unused: Vec<String>,
}

/// The key of [`Manifest::tensors`].
const TENSORS: &str = "tensors";

fn plain(record: &impl Serialize) -> Value {
    serde_json::to_value(record).expect("a manifest is plain JSON")
}

impl InputRecord {
    /// The name that the config has for it.
    pub fn name(&self) -> &str {
        let adapter = match &self.adapter {
            Some(AdapterRecord::Name(name)) => Some(name),
            _ => None,
        };
        self.model.as_ref().or(self.path.as_ref()).or(adapter).map_or("", String::as_str)
    }

    /// Its files, and those of its adapter.
    pub fn all_files(&self) -> Vec<&InputFileRecord> {
        let own = self.files.iter().flatten();
        match &self.adapter {
            Some(AdapterRecord::Input(adapter)) => own.chain(adapter.files.iter().flatten()).collect(),
            _ => own.collect(),
        }
    }
}

/// The options that change what is merged, beside the seed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptionsRecord {
    /// Whether embeddings of different numbers of rows were cut to the fewest.
    pub truncated_embeddings: bool,
    /// What became of tensors that only some of the models have.
    pub tensors_of_some_models: String,
}

/// Tensors of a model that the config leaves out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeftOutRecord {
    /// The model, as the config names it.
    pub model: String,
    /// Layers or tensors, in words.
    pub what: String,
    /// How many tensors that is.
    pub tensors: usize,
}

/// Odd values of a tensor, in elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OddRecord {
    /// Those that are no numbers.
    pub nan: u64,
    /// Those that are infinite.
    pub infinite: u64,
    /// Those that were finite, and too large for the stored type.
    pub overflowed: u64,
}

/// What was found out about tensors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemarkRecord {
    /// In words.
    pub remark: String,
    /// Of how many tensors it is true.
    pub tensors: usize,
}

/// A file of the output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum FileRecord {
    /// A safetensors file. All that lies behind its header are tensors, each with a hash of its own.
    #[serde(rename_all = "snake_case")]
    Weights {
        /// The size of the file, in bytes.
        bytes: u64,
        /// The size of the length and the header before the data, in bytes.
        header_bytes: u64,
        /// Their SHA-256, in hexadecimal.
        header_sha256: String,
    },
    /// Any other.
    Other {
        /// Its size, in bytes.
        bytes: u64,
        /// The SHA-256 of all of it, in hexadecimal.
        sha256: String,
    },
}

/// A tensor of the output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorRecord {
    /// The BLAKE3 hash of its data, in hexadecimal.
    pub blake3: String,
    /// The type of its elements, by its name in safetensors.
    pub dtype: Dtype,
    /// Its dimensions, in elements.
    pub shape: Vec<usize>,
    /// The file that holds it.
    pub file: String,
}

impl Manifest {
    /// As it is written: RFC 8785's canonical JSON.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let mut all = plain(self);
        // In its place among the keys.
        all[TENSORS] = Value::Null;
        let write = |value: Option<&Value>, into: &mut String| {
            if let Some(value) = value {
                return canonical::write(value, into);
            }
            let tensors = self.tensors.iter().map(|(name, record)| (name.as_str(), record));
            canonical::write_object(tensors, |record, into| canonical::write(&plain(record), into), into);
        };
        let entries = all.as_object().into_iter().flatten();
        let entries = entries.map(|(key, value)| (key.as_str(), (key != TENSORS).then_some(value)));
        canonical::write_object(entries, write, &mut text);
        text
    }

    /// The same as a value, without what it says of tensors.
    pub(crate) fn without_tensors(&self) -> Value {
        let none = (BTreeMap::new(), Vec::new(), BTreeMap::new());
        let (odd_values, remarks, tensors) = none;
        Self { odd_values, remarks, tensors, ..self.clone() }.value()
    }

    /// The same as a value.
    pub fn value(&self) -> Value {
        let mut value = plain(self);
        value[TENSORS] = plain(&self.tensors);
        value
    }

    /// That of a folder, and the SHA-256 of its file. A file that says the same in other words than this program wrote is refused:
    /// it was edited, and no signature of it holds.
    ///
    /// # Errors
    /// Kind `Input`: there is none, or it is not what a merge writes.
    pub fn of(folder: &Arc<ModelFolder>) -> Result<(Self, String)> {
        let (file, shown) = (folder.file(MANIFEST), folder.path.display());
        if !folder.has(MANIFEST) {
            return Err(Error::input(format!("{shown} has no {MANIFEST}, which says what has to be in it")).hint(
                "merge, multi, moe and convert write one; adapters of extract-lora have none, nor have models that something \
                 else made",
            ));
        }
        let text = file.read(MANIFEST_BYTES_MAX)?;
        Self::read(&text, &file.path()).map(|manifest| (manifest, sha256_of(&text)))
    }

    fn read(text: &[u8], path: &Path) -> Result<Self> {
        #[derive(Deserialize)]
        struct Format {
            #[serde(default)]
            format: u64,
            #[serde(default)]
            mergeforge: String,
        }
        let refused = |what: String| Error::input(format!("{}: {what}", path.display())).in_file(path);
        let edited = "it was edited, or damaged: take the one that the merge wrote, or merge again";
        let broken =
            |cause: serde_json::Error| refused(format!("no manifest of a merge: {cause}")).hint(edited);
        let Format { format, mergeforge } = serde_json::from_slice(text).map_err(broken)?;
        if format != FORMAT {
            let what = format!("its format is {format}, and this version of mergeforge knows {FORMAT} alone");
            let hint = format!("verify it with the version that made it ({mergeforge}), or merge again");
            return Err(refused(what).hint(hint));
        }
        let manifest: Self = serde_json::from_slice(text).map_err(broken)?;
        if manifest.text().as_bytes() != text {
            return Err(refused("it is not as a merge writes it, in canonical JSON".into()).hint(edited));
        }
        Ok(manifest)
    }
}

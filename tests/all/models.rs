//! Checkpoints made for tests, merges run through the public interface, and results read back.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use mergeforge::backend::cpu::CHUNK_TILES;
use mergeforge::backend::devices::processor;
pub use mergeforge::bench::synth::values::{base_values as weights, tuned_values as tuned};
pub use mergeforge::check::data::Random;
use mergeforge::checkpoint::Reads;
use mergeforge::error::{Error, Result};
use mergeforge::plan::Choices;
use mergeforge::report::Report;
use mergeforge::stream::{Budget, Watch};
use mergeforge::{Options, Stopped, merge, prepare};
use safetensors::{Dtype, SafeTensors, View};

/// A tensor as stored.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

impl View for &Stored {
    fn dtype(&self) -> Dtype {
        self.dtype
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> std::borrow::Cow<'_, [u8]> {
        self.bytes.as_slice().into()
    }
    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

/// Rounds values to a type and stores them. The `half` crate is the reference for rounding.
pub fn stored(dtype: Dtype, shape: &[usize], values: &[f32]) -> Stored {
    assert_eq!(shape.iter().product::<usize>(), values.len());
    let bytes = match dtype {
        Dtype::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Dtype::F16 => values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect(),
        Dtype::BF16 => values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect(),
        other => panic!("{other:?} is not a float of ours"),
    };
    Stored { dtype, shape: shape.to_vec(), bytes }
}

/// The values of a stored tensor.
pub fn values(tensor: &Stored) -> Vec<f32> {
    let halves = || tensor.bytes.as_chunks::<2>().0.iter().map(|raw| u16::from_le_bytes(*raw));
    match tensor.dtype {
        Dtype::F32 => tensor.bytes.as_chunks::<4>().0.iter().map(|raw| f32::from_le_bytes(*raw)).collect(),
        Dtype::F16 => halves().map(|bits| half::f16::from_bits(bits).to_f32()).collect(),
        Dtype::BF16 => halves().map(|bits| half::bf16::from_bits(bits).to_f32()).collect(),
        other => panic!("{other:?} is not a float of ours"),
    }
}

/// A model's tensors by name.
pub type Tensors = BTreeMap<String, Stored>;

/// How a checkpoint lies on the disk.
#[derive(Debug, Clone, Copy)]
pub struct Form {
    pub shards: usize,
    /// Whether the names are given out from the end.
    pub reversed: bool,
    pub tied: bool,
}

pub const PLAIN: Form = Form { shards: 1, reversed: false, tied: false };

/// Writes a checkpoint.
pub fn write(folder: &Path, tensors: &Tensors, form: Form) {
    std::fs::create_dir_all(folder).unwrap();
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16",
        "num_hidden_layers": 2, "tie_word_embeddings": form.tied,
    });
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let mut names: Vec<&String> = tensors.keys().collect();
    if form.reversed {
        names.reverse();
    }
    if form.shards == 1 {
        return shard(&folder.join("model.safetensors"), tensors, &names);
    }
    let mut map = serde_json::Map::new();
    for (i, part) in names.chunks(names.len().div_ceil(form.shards)).enumerate() {
        let file = format!("part-{}.safetensors", form.shards - i);
        part.iter().for_each(|name| drop(map.insert((*name).clone(), file.clone().into())));
        shard(&folder.join(&file), tensors, part);
    }
    let index = serde_json::json!({ "metadata": {}, "weight_map": map });
    std::fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

/// Writes the header by hand, because the crate's writer orders tensors its own way.
fn shard(path: &Path, tensors: &Tensors, names: &[&String]) {
    let mut header = serde_json::Map::new();
    let mut data: Vec<u8> = Vec::new();
    for name in names {
        let tensor = &tensors[*name];
        let start = data.len();
        data.extend(&tensor.bytes);
        let info = serde_json::json!({ "dtype": format!("{:?}", tensor.dtype), "shape": tensor.shape, "data_offsets": [start, data.len()] });
        header.insert((*name).clone(), info);
    }
    let header = serde_json::Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(data);
    std::fs::write(path, file).unwrap();
}

/// Reads every tensor of a checkpoint, with the safetensors crate.
pub fn read(folder: &Path) -> Tensors {
    let mut tensors = Tensors::new();
    for file in safetensors_files(folder) {
        let bytes = std::fs::read(&file).unwrap();
        for (name, view) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
            let stored =
                Stored { dtype: view.dtype(), shape: view.shape().to_vec(), bytes: view.data().to_vec() };
            assert!(tensors.insert(name, stored).is_none(), "a tensor is in two shards");
        }
    }
    tensors
}

pub fn safetensors_files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> =
        entries.filter(|path| path.extension().is_some_and(|e| e == "safetensors")).collect();
    files.sort();
    files
}

/// What the tests choose about a run.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    pub seed: u64,
    pub shard_bytes: u64,
    pub budget: Budget,
}

pub const RUN: Run = Run {
    seed: 0,
    shard_bytes: 5_000_000_000,
    budget: Budget { threads: 2, host_bytes: 256 << 20, device_bytes: 0, chunk_tiles: Some(CHUNK_TILES) },
};

/// A watch that only looks.
pub struct Quiet;

impl Watch for Quiet {
    fn moved(&self, _read: u64, _written: u64) {}
    fn stop(&self) -> bool {
        false
    }
    fn compiling(&self) {}
    fn less_memory(&self, _: &Error, _: u64, _: u64) {}
}

/// Writes the config and merges as it says.
pub fn run(folder: &Path, config: &str, out: &str, run: Run) -> Result<Report> {
    let file = folder.join(format!("{out}.yml"));
    std::fs::write(&file, config).unwrap();
    let prepared =
        prepare(&file, &Choices { seed: run.seed, shard_bytes: Some(run.shard_bytes), ..Choices::USUAL })?;
    let options = Options {
        out: folder.join(out),
        device: processor(),
        budget: run.budget,
        copy_tokenizer: true,
        model_card: true,
        inputs_hashed: false,
        reads: Reads::Copied,
        cache: None,
        recall: false,
        stopped: Stopped::LeavesNothing,
    };
    merge(&prepared, &options, &Quiet)
}

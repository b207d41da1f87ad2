//! Headers and plan of a merge over 20,000 small tensors, as a mixture of experts has them: what a user waits for before the
//! first weight is read.
//!
//! The weights are a hole in each file, because nothing here may read them.

use std::fs::{self, File};
use std::io::Write;
use std::iter;
use std::path::{Path, PathBuf};

use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use mergeforge::checkpoint::header;
use mergeforge::plan::{Choices, Plan};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

const LAYERS: usize = 50;
const EXPERTS: usize = 133;
const TENSORS: usize = LAYERS * (1 + 3 * EXPERTS);
const _: () = assert!(TENSORS == 20_000);

const SHAPE: [usize; 2] = [16, 16];
const TENSOR_BYTES: usize = 2 * SHAPE[0] * SHAPE[1];

const MODELS: [&str; 3] = ["base", "domain", "chat"];
const CHOICES: Choices = Choices { seed: 0, shard_bytes: Some(5_000_000_000), ..Choices::USUAL };

fn main() {
    divan::main();
}

/// The header of one file.
#[divan::bench]
fn read_header(bencher: Bencher) {
    let merge = Merge::new();
    let path = weights(&merge.model(MODELS[0]));
    let file = mergeforge::files::File::open(&path).unwrap();
    let file_bytes = file.metadata().unwrap().len();
    bencher
        .counter(BytesCount::new(merge.header_bytes))
        .counter(ItemsCount::new(TENSORS))
        .bench_local(|| header::read_header(&file, &path, file_bytes, 0).unwrap());
}

/// The plan alone, from headers that are read.
#[divan::bench]
fn plan(bencher: Bencher) {
    let merge = Merge::new();
    let prepared = mergeforge::prepare(&merge.config, &CHOICES).unwrap();
    bencher
        .counter(BytesCount::new(MODELS.len() * merge.header_bytes))
        .counter(ItemsCount::new(TENSORS))
        .bench_local(|| Plan::new(&prepared.config, &prepared.sources, &CHOICES).unwrap());
}

/// All of it: the config, the headers of all models side by side, the plan.
#[divan::bench]
fn prepare(bencher: Bencher) {
    let merge = Merge::new();
    bencher
        .counter(BytesCount::new(MODELS.len() * merge.header_bytes))
        .counter(ItemsCount::new(TENSORS))
        .bench_local(|| mergeforge::prepare(&merge.config, &CHOICES).unwrap());
}

/// A config and its models, in a folder that goes with it.
struct Merge {
    folder: TempDir,
    config: PathBuf,
    /// Of each model, its length included.
    header_bytes: usize,
}

impl Merge {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (config, header) = (folder.path().join("ties.yml"), header_of(names()));
        let merge = Self { folder, config, header_bytes: header.len() };
        MODELS.iter().for_each(|model| write_model(&merge.model(model), &header));
        let [base, domain, chat] = MODELS.map(|model| merge.model(model).display().to_string());
        let config = json!({
            "merge_method": "ties",
            "base_model": base,
            "models": [
                { "model": domain, "parameters": { "weight": [0.2, 0.8, 0.2], "density": 0.5 } },
                { "model": chat, "parameters": { "weight": 0.5, "density": 0.3 } },
            ],
        });
        fs::write(&merge.config, config.to_string()).unwrap();
        merge
    }

    fn model(&self, model: &str) -> PathBuf {
        self.folder.path().join(model)
    }
}

fn weights(model: &Path) -> PathBuf {
    model.join("model.safetensors")
}

fn write_model(folder: &Path, header: &[u8]) {
    fs::create_dir(folder).unwrap();
    let config = json!({ "model_type": "qwen3_moe", "num_hidden_layers": LAYERS, "torch_dtype": "bfloat16" });
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let mut file = File::create(weights(folder)).unwrap();
    file.write_all(header).unwrap();
    file.set_len((header.len() + TENSORS * TENSOR_BYTES) as u64).unwrap();
}

/// What stands before the data of a safetensors file with these tensors: the length of the JSON, and the JSON.
fn header_of(names: impl Iterator<Item = String>) -> Vec<u8> {
    let tensor = |(start, name)| {
        let offsets = [start, start + TENSOR_BYTES];
        (name, json!({ "dtype": "BF16", "shape": SHAPE, "data_offsets": offsets }))
    };
    let tensors: Map<String, Value> = (0..).step_by(TENSOR_BYTES).zip(names).map(tensor).collect();
    let json = serde_json::to_vec(&tensors).unwrap();
    [(json.len() as u64).to_le_bytes().as_slice(), &json].concat()
}

fn names() -> impl Iterator<Item = String> {
    (0..LAYERS).flat_map(|layer| {
        let expert = move |expert: usize| {
            let name = |what| format!("model.layers.{layer}.mlp.experts.{expert}.{what}_proj.weight");
            ["gate", "up", "down"].map(name)
        };
        let norm = format!("model.layers.{layer}.input_layernorm.weight");
        iter::once(norm).chain((0..EXPERTS).flat_map(expert))
    })
}

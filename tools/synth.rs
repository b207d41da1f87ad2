//! Checkpoints of any size with no model at hand: a base and fine-tunes of it, in the layout of Llama.
//!
//! `cargo run --release --example synth -- --shape tinyllama-1.1b --models 4 --dtype bf16 --seed 1 DIR` writes DIR/base,
//! DIR/model-1, … . Speed and memory of a merge depend on shapes, types and on how the values collide, not on what the
//! model has learnt. So base weights are N(0, 0.02), and a fine-tune adds heavy-tailed steps of about half an ulp and
//! rounds to the type again, as training in bf16 leaves them: about half of the elements have not moved, the others
//! by whole ulps, and many share the magnitude at which a top-k is cut.
//!
//! Every value is a hash of (seed, model, tensor, position): the same bytes for any number of threads. A folder that is
//! complete is left as it is, so a bench may call this first each time.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use clap::{Parser, ValueEnum};
use half::f16;
use serde_json::{Map, Value, json};

/// Changed when the same arguments would give other bytes, so that older output is made anew.
const GENERATOR_VERSION: u32 = 1;

/// Elements that a thread makes at a time: a tile of f32 and its encoded bytes stay in the second-level cache.
const TILE_ELEMENTS: usize = 64 << 10;

/// Standard deviation of the base's matrices, as Llama is initialised.
const WEIGHT_STD: f64 = 0.02;

/// Spread of the norms around 1.
const NORM_STD: f64 = 0.05;

/// Scale of a fine-tune's steps: in bf16, half an ulp at the quartile of the base, so that half of the elements stay.
const STEP_SCALE: f32 = 5e-5;

/// Steps of a tensor are longer or shorter by up to this factor than another's, so that a top-k is cut now inside a
/// large class of equal magnitudes, now between two.
const STEP_SPREAD: f32 = 1.5;

/// Norms lie near 1, where an ulp is this many times the ulp of a typical weight.
const NORM_STEP: f32 = 64.0;

/// Heaviness of the tail of the steps: z·exp(h·z²/2) of a normal z (Tukey's h distribution).
const TAIL: f64 = 0.2;

/// One input channel in so many moves by `OUTLIER_SCALE` times more than its neighbours.
const OUTLIER_EVERY: usize = 512;
const OUTLIER_SCALE: f32 = 16.0;

const STAMP: &str = "synth.json";

#[derive(Parser)]
#[command(name = "synth", about = "Write synthetic checkpoints: DIR/base, DIR/model-1, …")]
struct Args {
    #[arg(long, value_enum, default_value = "tiny")]
    shape: Shape,
    /// Fine-tunes beside the base.
    #[arg(long, default_value_t = 2)]
    models: usize,
    #[arg(long, value_enum, default_value = "bf16")]
    dtype: Dtype,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Cut the shape down to so many layers.
    #[arg(long)]
    layers: Option<usize>,
    /// Largest size of a shard.
    #[arg(long, default_value_t = 5_000_000_000)]
    shard_bytes: u64,
    /// [default: all cores]
    #[arg(long)]
    threads: Option<usize>,
    dir: PathBuf,
}

#[derive(Clone, Copy, ValueEnum)]
enum Shape {
    Tiny,
    #[value(name = "tinyllama-1.1b")]
    TinyLlama,
    #[value(name = "llama-2-7b")]
    Llama2,
    #[value(name = "llama-3-8b")]
    Llama3,
}

#[derive(Clone, Copy, ValueEnum)]
enum Dtype {
    Bf16,
    F16,
    F32,
}

fn main() -> io::Result<()> {
    let args = Args::parse();
    let start = Instant::now();
    let bytes = write_models(&args)?;
    let seconds = start.elapsed().as_secs_f64();
    eprintln!("{:.2} GB in {seconds:.2} s, {:.2} GB/s", bytes as f64 / 1e9, bytes as f64 / 1e9 / seconds);
    Ok(())
}

/// Writes what is not there yet; returns the bytes written.
fn write_models(args: &Args) -> io::Result<u64> {
    let sizes = Sizes::of(args.shape, args.layers);
    let layout = Layout::plan(sizes.tensors(), args.dtype, args.shard_bytes);
    let mut outputs = Vec::new();
    for model in 0..=args.models {
        let name = if model == 0 { "base".into() } else { format!("model-{model}") };
        let dir = args.dir.join(name);
        let stamp = stamp(args, &sizes, model);
        if is_complete(&dir, &stamp)? {
            eprintln!("{} is complete", dir.display());
        } else {
            outputs.push(Output::create(dir, model, stamp, &sizes, &layout, args.dtype)?);
        }
    }
    if !outputs.is_empty() {
        write_tensors(args, &layout, &outputs)?;
    }
    outputs.iter().try_for_each(Output::finish)?;
    Ok(layout.data_bytes() * outputs.len() as u64)
}

/// The sizes of a Llama that its tensors follow from.
struct Sizes {
    layers: usize,
    hidden: usize,
    inter: usize,
    heads: usize,
    kv_heads: usize,
    vocab: usize,
    rope_theta: f64,
}

impl Sizes {
    fn of(shape: Shape, layers: Option<usize>) -> Self {
        let [all_layers, hidden, inter, heads, kv_heads, vocab] = match shape {
            Shape::Tiny => [4, 64, 176, 4, 2, 512],
            Shape::TinyLlama => [22, 2048, 5632, 32, 4, 32_000],
            Shape::Llama2 => [32, 4096, 11_008, 32, 32, 32_000],
            Shape::Llama3 => [32, 4096, 14_336, 32, 8, 128_256],
        };
        let rope_theta = if matches!(shape, Shape::Llama3) { 500_000.0 } else { 10_000.0 };
        Self {
            layers: layers.map_or(all_layers, |n| n.min(all_layers)),
            hidden,
            inter,
            heads,
            kv_heads,
            vocab,
            rope_theta,
        }
    }

    /// Every tensor in the order of the forward pass.
    fn tensors(&self) -> Vec<Tensor> {
        let (hidden, inter) = (self.hidden, self.inter);
        let kv = hidden / self.heads * self.kv_heads;
        let parts: [(&str, &[usize]); 9] = [
            ("input_layernorm", &[hidden]),
            ("self_attn.q_proj", &[hidden, hidden]),
            ("self_attn.k_proj", &[kv, hidden]),
            ("self_attn.v_proj", &[kv, hidden]),
            ("self_attn.o_proj", &[hidden, hidden]),
            ("post_attention_layernorm", &[hidden]),
            ("mlp.gate_proj", &[inter, hidden]),
            ("mlp.up_proj", &[inter, hidden]),
            ("mlp.down_proj", &[hidden, inter]),
        ];
        let mut tensors = vec![Tensor::new("model.embed_tokens.weight".into(), &[self.vocab, hidden])];
        for layer in 0..self.layers {
            let named = |(part, shape): &(&str, &[usize])| {
                Tensor::new(format!("model.layers.{layer}.{part}.weight"), shape)
            };
            tensors.extend(parts.iter().map(named));
        }
        tensors.push(Tensor::new("model.norm.weight".into(), &[hidden]));
        tensors.push(Tensor::new("lm_head.weight".into(), &[self.vocab, hidden]));
        tensors
    }

    fn config(&self, dtype: Dtype) -> Value {
        json!({
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": false,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "initializer_range": WEIGHT_STD,
            "intermediate_size": self.inter,
            "max_position_embeddings": 2048,
            "model_type": "llama",
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.kv_heads,
            "rms_norm_eps": 1e-5,
            "rope_theta": self.rope_theta,
            "tie_word_embeddings": false,
            "torch_dtype": dtype.torch_name(),
            "vocab_size": self.vocab,
        })
    }
}

struct Tensor {
    name: String,
    shape: Vec<usize>,
}

impl Tensor {
    fn new(name: String, shape: &[usize]) -> Self {
        Self { name, shape: shape.to_vec() }
    }

    fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    fn is_norm(&self) -> bool {
        self.shape.len() == 1
    }

    /// Width of a row: elements a multiple of it apart belong to the same input channel.
    fn columns(&self) -> usize {
        *self.shape.last().expect("no tensor here is a scalar")
    }
}

impl Dtype {
    fn bytes(self) -> usize {
        match self {
            Self::Bf16 | Self::F16 => 2,
            Self::F32 => 4,
        }
    }

    fn header_name(self) -> &'static str {
        match self {
            Self::Bf16 => "BF16",
            Self::F16 => "F16",
            Self::F32 => "F32",
        }
    }

    fn torch_name(self) -> &'static str {
        match self {
            Self::Bf16 => "bfloat16",
            Self::F16 => "float16",
            Self::F32 => "float32",
        }
    }

    fn round(self, x: f32) -> f32 {
        match self {
            Self::Bf16 => f32::from_bits(u32::from(bf16_bits(x)) << 16),
            Self::F16 => f16::from_f32(x).to_f32(),
            Self::F32 => x,
        }
    }

    fn encode(self, values: &[f32], bytes: &mut Vec<u8>) {
        bytes.resize(values.len() * self.bytes(), 0);
        match self {
            Self::Bf16 => encode_as(values, bytes, |x| bf16_bits(x).to_le_bytes()),
            Self::F16 => encode_as(values, bytes, |x| f16::from_f32(x).to_le_bytes()),
            Self::F32 => encode_as(values, bytes, f32::to_le_bytes),
        }
    }
}

fn encode_as<const N: usize>(values: &[f32], bytes: &mut [u8], encode: impl Fn(f32) -> [u8; N]) {
    for (bytes, &x) in bytes.as_chunks_mut().0.iter_mut().zip(values) {
        *bytes = encode(x);
    }
}

/// To nearest even; all values here are finite, and without the test for NaN the loop becomes vector instructions.
fn bf16_bits(x: f32) -> u16 {
    let bits = x.to_bits();
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

/// Where every tensor lies: its shard, and its first byte in that file.
struct Layout {
    tensors: Vec<Tensor>,
    places: Vec<Place>,
    /// The head of each shard (length and JSON), and the size of the file.
    shards: Vec<(Vec<u8>, u64)>,
    dtype: Dtype,
}

struct Place {
    shard: usize,
    offset: u64,
}

impl Layout {
    fn plan(tensors: Vec<Tensor>, dtype: Dtype, shard_bytes: u64) -> Self {
        let mut places: Vec<Place> = Vec::new();
        let mut heads = vec![Map::new()];
        let mut sizes = vec![0];
        for tensor in &tensors {
            let bytes = (tensor.elements() * dtype.bytes()) as u64;
            if sizes[sizes.len() - 1] > 0 && sizes[sizes.len() - 1] + bytes > shard_bytes {
                heads.push(Map::new());
                sizes.push(0);
            }
            let shard = heads.len() - 1;
            let offset = sizes[shard];
            sizes[shard] += bytes;
            let entry = json!({"dtype": dtype.header_name(), "shape": tensor.shape, "data_offsets": [offset, offset + bytes]});
            heads[shard].insert(tensor.name.clone(), entry);
            places.push(Place { shard, offset });
        }
        let shards: Vec<_> = heads
            .into_iter()
            .zip(sizes)
            .map(|(head, size)| {
                let head = encode_head(head);
                let file_bytes = head.len() as u64 + size;
                (head, file_bytes)
            })
            .collect();
        for place in &mut places {
            place.offset += shards[place.shard].0.len() as u64;
        }
        Self { tensors, places, shards, dtype }
    }

    fn data_bytes(&self) -> u64 {
        self.tensors.iter().map(|tensor| (tensor.elements() * self.dtype.bytes()) as u64).sum()
    }

    fn file_name(&self, shard: usize) -> String {
        match self.shards.len() {
            1 => "model.safetensors".into(),
            count => format!("model-{:05}-of-{count:05}.safetensors", shard + 1),
        }
    }

    fn index(&self) -> Value {
        let map: Map<String, Value> = self
            .tensors
            .iter()
            .zip(&self.places)
            .map(|(tensor, place)| (tensor.name.clone(), self.file_name(place.shard).into()))
            .collect();
        json!({"metadata": {"total_size": self.data_bytes()}, "weight_map": map})
    }
}

/// Length, JSON, and spaces up to a multiple of 8, as the safetensors format asks.
fn encode_head(mut head: Map<String, Value>) -> Vec<u8> {
    head.insert("__metadata__".into(), json!({"format": "pt"}));
    let mut text = Value::Object(head).to_string();
    text.push_str(&" ".repeat(text.len().next_multiple_of(8) - text.len()));
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text.into_bytes());
    bytes
}

/// A model's folder while it is being written.
struct Output {
    dir: PathBuf,
    /// 0 is the base.
    model: usize,
    stamp: Value,
    files: Vec<File>,
}

impl Output {
    fn create(
        dir: PathBuf,
        model: usize,
        stamp: Value,
        sizes: &Sizes,
        layout: &Layout,
        dtype: Dtype,
    ) -> io::Result<Self> {
        clear(&dir)?;
        fs::create_dir_all(&dir)?;
        // From here on the folder is known as ours, and as unfinished.
        fs::write(dir.join(STAMP), "{}")?;
        fs::write(dir.join("config.json"), pretty(&sizes.config(dtype)))?;
        if layout.shards.len() > 1 {
            fs::write(dir.join("model.safetensors.index.json"), pretty(&layout.index()))?;
        }
        let mut files = Vec::new();
        for (shard, (head, file_bytes)) in layout.shards.iter().enumerate() {
            let file = File::create(dir.join(layout.file_name(shard)))?;
            file.set_len(*file_bytes)?;
            file.write_all_at(head, 0)?;
            files.push(file);
        }
        Ok(Self { dir, model, stamp, files })
    }

    fn finish(&self) -> io::Result<()> {
        fs::write(self.dir.join(STAMP), pretty(&self.stamp))
    }
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

/// All that decides a model's bytes.
fn stamp(args: &Args, sizes: &Sizes, model: usize) -> Value {
    json!({
        "generator": GENERATOR_VERSION,
        "config": sizes.config(args.dtype),
        "seed": args.seed,
        "model": model,
        "shard_bytes": args.shard_bytes,
    })
}

fn is_complete(dir: &Path, stamp: &Value) -> io::Result<bool> {
    match fs::read(dir.join(STAMP)) {
        Ok(bytes) => Ok(serde_json::from_slice::<Value>(&bytes).is_ok_and(|found| found == *stamp)),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(cause) => Err(cause),
    }
}

/// Removes the folder of an earlier run; a folder that another program wrote is not ours to remove.
fn clear(dir: &Path) -> io::Result<()> {
    if dir.join(STAMP).exists() {
        return fs::remove_dir_all(dir);
    }
    match fs::read_dir(dir).map(|mut entries| entries.next().is_some()) {
        Ok(true) => Err(io::Error::other(format!("{} holds files that synth did not write", dir.display()))),
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(cause),
        _ => Ok(()),
    }
}

/// Threads take tiles by a common counter; a tile of the base is made once for all models.
fn write_tensors(args: &Args, layout: &Layout, outputs: &[Output]) -> io::Result<()> {
    let tiles: Vec<(usize, usize)> = layout
        .tensors
        .iter()
        .enumerate()
        .flat_map(|(tensor, t)| (0..t.elements()).step_by(TILE_ELEMENTS).map(move |first| (tensor, first)))
        .collect();
    let tables = Tables::new(args.dtype);
    let next = AtomicUsize::new(0);
    let failure = Mutex::new(None);
    let threads = args.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                let mut worker = Worker::new(args.seed, &tables, layout);
                while let Some(&(tensor, first)) = tiles.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(cause) = worker.write_tile(tensor, first, outputs) {
                        *failure.lock().expect("no thread panics while it holds this") = Some(cause);
                        next.store(tiles.len(), Ordering::Relaxed);
                    }
                }
            });
        }
    });
    failure.into_inner().expect("no thread panicked").map_or(Ok(()), Err)
}

/// Values by equal shares of probability: a draw is an index, so a random value costs a hash and a load.
struct Tables {
    weights: Vec<f32>,
    norms: Vec<f32>,
    /// Fewer than the others, to stay in the first-level cache.
    steps: Vec<f32>,
}

const WEIGHT_DRAW_BITS: u32 = 16;
const STEP_DRAW_BITS: u32 = 12;

impl Tables {
    fn new(dtype: Dtype) -> Self {
        let normal = normal_quantiles(1 << WEIGHT_DRAW_BITS);
        let step = |z: f64| z * libm::exp(TAIL * z * z / 2.0);
        Self {
            weights: normal.iter().map(|&z| dtype.round((WEIGHT_STD * z) as f32)).collect(),
            norms: normal.iter().map(|&z| dtype.round((1.0 + NORM_STD * z) as f32)).collect(),
            steps: normal_quantiles(1 << STEP_DRAW_BITS)
                .iter()
                .map(|&z| STEP_SCALE * step(z) as f32)
                .collect(),
        }
    }
}

/// The normal distribution at (i + ½) / count, by Newton's method from one point to the next. `libm` is compiled in, so
/// the table does not depend on the system.
fn normal_quantiles(count: usize) -> Vec<f64> {
    let half = count / 2;
    let mut upper = Vec::with_capacity(half);
    let mut z = 0.0;
    for i in half..count {
        // Survival, not the distribution itself, keeps its digits in the tail.
        let survival = (count as f64 - i as f64 - 0.5) / count as f64;
        for _ in 0..6 {
            let density = libm::exp(-z * z / 2.0) / std::f64::consts::TAU.sqrt();
            z += (libm::erfc(z * std::f64::consts::FRAC_1_SQRT_2) / 2.0 - survival) / density;
        }
        upper.push(z);
    }
    upper.iter().rev().map(|z| -z).chain(upper.iter().copied()).collect()
}

/// One thread's scratch, and what it reads.
struct Worker<'a> {
    seed: u64,
    tables: &'a Tables,
    layout: &'a Layout,
    base: Vec<f32>,
    moved: Vec<f32>,
    bytes: Vec<u8>,
}

impl<'a> Worker<'a> {
    fn new(seed: u64, tables: &'a Tables, layout: &'a Layout) -> Self {
        Self { seed, tables, layout, base: Vec::new(), moved: Vec::new(), bytes: Vec::new() }
    }

    fn write_tile(&mut self, tensor: usize, first: usize, outputs: &[Output]) -> io::Result<()> {
        let (layout, place) = (self.layout, &self.layout.places[tensor]);
        let tensor = &layout.tensors[tensor];
        self.make_base(tensor, first);
        for output in outputs {
            if output.model == 0 {
                layout.dtype.encode(&self.base, &mut self.bytes);
            } else {
                self.make_moved(tensor, first, output.model);
                layout.dtype.encode(&self.moved, &mut self.bytes);
            }
            let offset = place.offset + (first * layout.dtype.bytes()) as u64;
            output.files[place.shard].write_all_at(&self.bytes, offset)?;
        }
        Ok(())
    }

    fn make_base(&mut self, tensor: &Tensor, first: usize) {
        let table = if tensor.is_norm() { &self.tables.norms } else { &self.tables.weights };
        self.base.resize(TILE_ELEMENTS.min(tensor.elements() - first), 0.0);
        fill(&mut self.base, stream_key(self.seed, 0, &tensor.name), first, table, WEIGHT_DRAW_BITS);
        if matches!(self.layout.dtype, Dtype::F32) {
            // 65,536 distinct values would be few for f32: new low bits for each element.
            let key = stream_key(self.seed, 0, &tensor.name) ^ 1;
            for (i, x) in self.base.iter_mut().enumerate() {
                *x = f32::from_bits(x.to_bits() & !0xfff | hash(key, first + i) as u32 & 0xfff);
            }
        }
    }

    fn make_moved(&mut self, tensor: &Tensor, first: usize, model: usize) {
        self.moved.resize(self.base.len(), 0.0);
        let key = stream_key(self.seed, model, &tensor.name);
        fill(&mut self.moved, key, first, &self.tables.steps, STEP_DRAW_BITS);
        for channel in outlier_channels(self.seed, tensor.columns()) {
            let columns = tensor.columns();
            let in_tile = (channel + columns - first % columns) % columns;
            for step in self.moved.iter_mut().skip(in_tile).step_by(columns) {
                *step *= OUTLIER_SCALE;
            }
        }
        let kind_scale = if tensor.is_norm() { NORM_STEP } else { 1.0 };
        let spread = f32::from(hash(key ^ 1, 0) as u16) / 32_768.0 - 1.0;
        let scale = kind_scale * libm::powf(STEP_SPREAD, spread);
        for (step, base) in self.moved.iter_mut().zip(&self.base) {
            *step = base + scale * *step;
        }
    }
}

/// The same channels stand out in all tensors of a width and in all models, as in trained ones.
fn outlier_channels(seed: u64, columns: usize) -> impl Iterator<Item = usize> {
    (0..columns.div_ceil(OUTLIER_EVERY)).map(move |i| hash(seed ^ columns as u64, i) as usize % columns)
}

/// Looks up elements `first`.. of a stream; `first` is a multiple of 4, as tiles are, and a hash serves four.
fn fill(values: &mut [f32], key: u64, first: usize, table: &[f32], draw_bits: u32) {
    assert!(first.is_multiple_of(4) && table.len() == 1 << draw_bits && draw_bits <= 16);
    for (i, values) in values.chunks_mut(4).enumerate() {
        let draws = hash(key, first / 4 + i);
        for (lane, value) in values.iter_mut().enumerate() {
            let draw = (draws >> (16 * lane)) as u16 >> (16 - draw_bits);
            *value = table[usize::from(draw)];
        }
    }
}

/// A key for each tensor of each model, by name, so that a cut shape keeps the values of what is left.
fn stream_key(seed: u64, model: usize, tensor: &str) -> u64 {
    tensor.bytes().fold(hash(seed, model), |key, byte| hash(key, usize::from(byte)))
}

/// `SplitMix64` (Steele, Lea and Flood, 2014) at a position, rather than in a sequence.
fn hash(key: u64, position: usize) -> u64 {
    let mut z = key.wrapping_add((position as u64).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::SafeTensors;

    fn tiny(dir: &Path, extra: &[&str]) -> Args {
        Args::parse_from(["synth", dir.to_str().unwrap()].iter().chain(extra))
    }

    fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
        let mut files: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(&path).unwrap()))
            .collect();
        files.sort();
        files
    }

    fn elements(bytes: &[u8], name: &str) -> Vec<f32> {
        let file = SafeTensors::deserialize(bytes).unwrap();
        let pairs = file.tensor(name).unwrap().data().as_chunks().0.to_vec();
        pairs.into_iter().map(|pair| half::bf16::from_le_bytes(pair).to_f32()).collect()
    }

    #[test]
    fn the_thread_count_changes_no_byte_and_a_complete_folder_is_kept() {
        let (one, three) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        write_models(&tiny(one.path(), &["--threads=1"])).unwrap();
        write_models(&tiny(three.path(), &["--threads=3"])).unwrap();
        for model in ["base", "model-1", "model-2"] {
            assert_eq!(files(&one.path().join(model)), files(&three.path().join(model)));
        }
        assert_eq!(write_models(&tiny(one.path(), &[])).unwrap(), 0);
        assert_ne!(write_models(&tiny(one.path(), &["--seed=2"])).unwrap(), 0);
        assert_ne!(files(&one.path().join("base")), files(&three.path().join("base")));
    }

    #[test]
    fn every_shard_is_valid_and_holds_what_one_file_would() {
        let (one, many) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for dtype in ["--dtype=f16", "--dtype=f32", "--dtype=bf16"] {
            write_models(&tiny(one.path(), &[dtype])).unwrap();
            write_models(&tiny(many.path(), &[dtype, "--shard-bytes=100000"])).unwrap();
            let whole = fs::read(one.path().join("model-1/model.safetensors")).unwrap();
            let whole = SafeTensors::deserialize(&whole).unwrap();
            let mut seen = 0;
            for (name, bytes) in files(&many.path().join("model-1")) {
                if name.ends_with(".safetensors") {
                    let shard = SafeTensors::deserialize(&bytes).unwrap();
                    assert!(shard.iter().all(|(name, view)| view == whole.tensor(name).unwrap()));
                    seen += shard.len();
                }
            }
            assert_eq!(seen, whole.len());
        }
    }

    #[test]
    fn values_collide_as_those_of_real_fine_tunes() {
        let dir = tempfile::tempdir().unwrap();
        write_models(&tiny(dir.path(), &["--models=1"])).unwrap();
        let name = "model.layers.0.mlp.gate_proj.weight";
        let read =
            |model| elements(&fs::read(dir.path().join(model).join("model.safetensors")).unwrap(), name);
        let (base, moved) = (read("base"), read("model-1"));
        let count = base.len() as f32;
        let std = f64::from(base.iter().map(|x| x * x).sum::<f32>() / count).sqrt();
        assert!((std / WEIGHT_STD - 1.0).abs() < 0.02, "standard deviation {std}");
        let mut steps: Vec<f32> = base.iter().zip(&moved).map(|(base, moved)| (moved - base).abs()).collect();
        steps.sort_by(|a, b| b.total_cmp(a));
        let share = |value: f32| steps.iter().filter(|&&step| step == value).count() as f32 / count;
        assert!((0.3..0.7).contains(&share(0.0)), "zero steps {}", share(0.0));
        let cuts = [0.05, 0.1, 0.15, 0.2, 0.25, 0.3].map(|density| share(steps[(density * count) as usize]));
        let tied = cuts.iter().filter(|cut| (0.01..0.2).contains(*cut)).count();
        assert!(tied >= 4, "ties at the cuts: {cuts:?}");
        let cut = steps[steps.len() / 5];
        assert!(steps[0] > 50.0 * cut, "no heavy tail: {} against {cut}", steps[0]);
    }

    #[test]
    fn a_folder_of_somebody_else_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("base")).unwrap();
        fs::write(dir.path().join("base/model.safetensors"), "precious").unwrap();
        assert!(write_models(&tiny(dir.path(), &[])).is_err());
        assert_eq!(fs::read(dir.path().join("base/model.safetensors")).unwrap(), b"precious");
    }
}

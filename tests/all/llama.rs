//! A small Llama, so that tests can ask whether a merged model still speaks: bytes that agree with a formula prove
//! little if the formula was given the wrong layer. Written for these tests: float32, whole windows at once, no cache
//! of keys and values.
//!
//! [`perplexity`] follows the recipe of `examples/models/README.md` to the letter; the numbers recorded there came from
//! torch and transformers, so this file is checked by an implementation that is not ours.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use half::{bf16, f16};
use multiversion::multiversion;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use tokenizers::Tokenizer;

/// Tokens in a window; what is left over at the end of a set is dropped.
const WINDOW_TOKENS: usize = 96;

/// Windows are independent, so threads share them out.
const THREADS: usize = 2;

/// Outputs that are computed side by side, as vector instructions.
const PANEL_OUTPUTS: usize = 16;

/// Tokens whose sums stay in registers while a panel's weights pass by: each weight is loaded once for all of them.
const PANEL_TOKENS: usize = 4;

const _: () =
    assert!(WINDOW_TOKENS.is_multiple_of(PANEL_TOKENS), "a window is made of whole groups of tokens");

/// Perplexity per token of the checkpoint in `model_dir` on a validation set, `.txt` (a text a line) or `.jsonl` (a
/// question and its answer a line).
pub fn perplexity(model_dir: &Path, texts: &Path) -> f64 {
    let model = Llama::load(model_dir);
    let tokens = token_stream(model_dir, texts);
    let windows: Vec<&[u32]> = tokens.chunks_exact(WINDOW_TOKENS).collect();
    assert!(!windows.is_empty(), "{} holds less than one window", texts.display());
    let model = &model;
    let sum: f64 = std::thread::scope(|scope| {
        let workers: Vec<_> = windows
            .chunks(windows.len().div_ceil(THREADS))
            .map(|share| scope.spawn(move || share.iter().map(|w| model.mean_nll(w)).sum::<f64>()))
            .collect();
        workers.into_iter().map(|worker| worker.join().expect("a forward pass panicked")).sum()
    });
    (sum / windows.len() as f64).exp()
}

/// Every line of the set as `<s>`, its tokens, `</s>`, one after the other.
fn token_stream(model_dir: &Path, texts: &Path) -> Vec<u32> {
    let config = Config::load(model_dir);
    let tokenizer = Tokenizer::from_file(model_dir.join("tokenizer.json")).expect("tokenizer.json");
    let turns = texts.extension().is_some_and(|extension| extension == "jsonl");
    let mut stream = Vec::new();
    for line in fs::read_to_string(texts).expect("the validation set").lines() {
        let text = if turns { as_turns(line) } else { line.to_owned() };
        let tokens = tokenizer.encode(text, false).expect("a line encodes");
        stream.push(config.bos_token_id);
        stream.extend(tokens.get_ids());
        stream.push(config.eos_token_id);
    }
    stream
}

/// A question and its answer as the chat model was taught them; both marks are tokens of their own.
fn as_turns(line: &str) -> String {
    #[derive(Deserialize)]
    struct Pair {
        question: String,
        answer: String,
    }
    let Pair { question, answer } = serde_json::from_str(line).expect("a line of the set is a pair");
    format!("<|user|>{question}<|assistant|>{answer}")
}

/// The keys of `config.json` that decide a number. Two generations of files put `rope_theta` in different places.
#[derive(Deserialize)]
struct Config {
    bos_token_id: u32,
    eos_token_id: u32,
    head_dim: Option<usize>,
    hidden_size: usize,
    intermediate_size: usize,
    num_attention_heads: usize,
    num_hidden_layers: usize,
    num_key_value_heads: Option<usize>,
    rms_norm_eps: f32,
    rope_parameters: Option<RopeParameters>,
    rope_theta: Option<f64>,
    #[serde(default)]
    tie_word_embeddings: bool,
    vocab_size: usize,
}

#[derive(Deserialize)]
struct RopeParameters {
    rope_theta: f64,
}

impl Config {
    fn load(model_dir: &Path) -> Self {
        let text = fs::read_to_string(model_dir.join("config.json")).expect("config.json");
        serde_json::from_str(&text).expect("config.json of a Llama")
    }

    fn head_dim(&self) -> usize {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads)
    }

    fn kv_heads(&self) -> usize {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    fn rope_theta(&self) -> f64 {
        self.rope_parameters.as_ref().map(|rope| rope.rope_theta).or(self.rope_theta).unwrap_or(10_000.0)
    }
}

/// All tensors of a checkpoint in f32, by name.
struct Tensors(HashMap<String, (Vec<usize>, Vec<f32>)>);

impl Tensors {
    /// Reads every shard; the index is not needed, since names are unique.
    fn load(model_dir: &Path) -> Self {
        let mut tensors = HashMap::new();
        for entry in fs::read_dir(model_dir).expect("the model's folder") {
            let path = entry.expect("an entry of the model's folder").path();
            if path.extension().is_none_or(|extension| extension != "safetensors") {
                continue;
            }
            let bytes = fs::read(&path).expect("a shard");
            let shard = SafeTensors::deserialize(&bytes).expect("a safetensors file");
            for (name, view) in shard.tensors() {
                let values = decode(view.dtype(), view.data());
                assert!(
                    tensors.insert(name, (view.shape().to_vec(), values)).is_none(),
                    "a tensor in two shards"
                );
            }
        }
        Self(tensors)
    }

    /// Takes out a tensor that must have exactly this shape.
    fn take(&mut self, name: &str, shape: &[usize]) -> Vec<f32> {
        let (found, values) = self.0.remove(name).unwrap_or_else(|| panic!("no tensor {name}"));
        assert_eq!(found, shape, "shape of {name}");
        values
    }

    fn matrix(&mut self, name: &str, outputs: usize, inputs: usize) -> Matrix {
        Matrix::pack(&self.take(name, &[outputs, inputs]), outputs, inputs)
    }
}

fn decode(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    let pairs = bytes.as_chunks().0.iter();
    match dtype {
        Dtype::BF16 => pairs.map(|&b| bf16::from_le_bytes(b).to_f32()).collect(),
        Dtype::F16 => pairs.map(|&b| f16::from_le_bytes(b).to_f32()).collect(),
        Dtype::F32 => bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
        other => panic!("a weight of type {other:?}"),
    }
}

/// A weight matrix in panels of `PANEL_OUTPUTS` rows, the last one padded with zeros. A panel lists its weights input by
/// input, so that the product runs along the outputs, and its inner loop becomes vector instructions.
struct Matrix {
    inputs: usize,
    outputs: usize,
    panels: Vec<f32>,
}

impl Matrix {
    fn pack(weights: &[f32], outputs: usize, inputs: usize) -> Self {
        let mut panels = vec![0.0; outputs.next_multiple_of(PANEL_OUTPUTS) * inputs];
        for (output, row) in weights.chunks_exact(inputs).enumerate() {
            let (panel, lane) = (output / PANEL_OUTPUTS, output % PANEL_OUTPUTS);
            for (input, &weight) in row.iter().enumerate() {
                panels[(panel * inputs + input) * PANEL_OUTPUTS + lane] = weight;
            }
        }
        Self { inputs, outputs, panels }
    }

    /// `x · Wᵀ` for a window of row vectors.
    fn apply(&self, x: &[f32]) -> Vec<f32> {
        let mut y = vec![0.0; x.len() / self.inputs * self.outputs];
        for (panel, weights) in self.panels.chunks_exact(self.inputs * PANEL_OUTPUTS).enumerate() {
            multiply_panel(x, weights, self.inputs, &mut y, self.outputs, panel * PANEL_OUTPUTS);
        }
        y
    }
}

/// The outputs of a panel for all tokens. Each is added up input by input, whatever the vectors' width, so that newer
/// instructions give the same bits. Written so that the compiler keeps the sums in registers: it is where the time goes.
#[multiversion(targets("x86_64+avx2"))]
fn multiply_panel(x: &[f32], weights: &[f32], inputs: usize, y: &mut [f32], outputs: usize, first: usize) {
    let width = PANEL_OUTPUTS.min(outputs - first);
    let weights = weights.as_chunks::<PANEL_OUTPUTS>().0;
    for (x, y) in x.chunks_exact(PANEL_TOKENS * inputs).zip(y.chunks_exact_mut(PANEL_TOKENS * outputs)) {
        let (x0, x) = x.split_at(inputs);
        let (x1, x) = x.split_at(inputs);
        let (x2, x3) = x.split_at(inputs);
        let mut sums = [[0.0; PANEL_OUTPUTS]; PANEL_TOKENS];
        for ((((weights, x0), x1), x2), x3) in weights.iter().zip(x0).zip(x1).zip(x2).zip(x3) {
            for (lane, weight) in weights.iter().enumerate() {
                sums[0][lane] += x0 * weight;
                sums[1][lane] += x1 * weight;
                sums[2][lane] += x2 * weight;
                sums[3][lane] += x3 * weight;
            }
        }
        for (sums, y) in sums.iter().zip(y.chunks_exact_mut(outputs)) {
            y[first..][..width].copy_from_slice(&sums[..width]);
        }
    }
}

fn row(x: &[f32], index: usize, width: usize) -> &[f32] {
    &x[index * width..][..width]
}

struct Layer {
    input_norm: Vec<f32>,
    q: Matrix,
    k: Matrix,
    v: Matrix,
    o: Matrix,
    post_norm: Vec<f32>,
    gate: Matrix,
    up: Matrix,
    down: Matrix,
}

impl Layer {
    fn load(tensors: &mut Tensors, config: &Config, index: usize) -> Self {
        let (hidden, inter) = (config.hidden_size, config.intermediate_size);
        let (q, kv) = (config.num_attention_heads * config.head_dim(), config.kv_heads() * config.head_dim());
        let name = |part: &str| format!("model.layers.{index}.{part}.weight");
        Self {
            input_norm: tensors.take(&name("input_layernorm"), &[hidden]),
            q: tensors.matrix(&name("self_attn.q_proj"), q, hidden),
            k: tensors.matrix(&name("self_attn.k_proj"), kv, hidden),
            v: tensors.matrix(&name("self_attn.v_proj"), kv, hidden),
            o: tensors.matrix(&name("self_attn.o_proj"), hidden, q),
            post_norm: tensors.take(&name("post_attention_layernorm"), &[hidden]),
            gate: tensors.matrix(&name("mlp.gate_proj"), inter, hidden),
            up: tensors.matrix(&name("mlp.up_proj"), inter, hidden),
            down: tensors.matrix(&name("mlp.down_proj"), hidden, inter),
        }
    }
}

struct Llama {
    config: Config,
    embedding: Vec<f32>,
    layers: Vec<Layer>,
    norm: Vec<f32>,
    head: Matrix,
    /// Cosine and sine of every position's rotation, `head_dim / 2` pairs a position.
    rotations: Vec<(f32, f32)>,
}

impl Llama {
    fn load(model_dir: &Path) -> Self {
        let config = Config::load(model_dir);
        let (vocab, hidden) = (config.vocab_size, config.hidden_size);
        let mut tensors = Tensors::load(model_dir);
        let embedding = tensors.take("model.embed_tokens.weight", &[vocab, hidden]);
        let head = if config.tie_word_embeddings {
            Matrix::pack(&embedding, vocab, hidden)
        } else {
            tensors.matrix("lm_head.weight", vocab, hidden)
        };
        let layers = (0..config.num_hidden_layers).map(|i| Layer::load(&mut tensors, &config, i)).collect();
        let norm = tensors.take("model.norm.weight", &[hidden]);
        // A tensor that this model has no use for is a tensor that a merge should not have written.
        assert!(tensors.0.is_empty(), "tensors with no use: {:?}", tensors.0.keys());
        let rotations = rotations(config.rope_theta(), config.head_dim());
        Self { config, embedding, layers, norm, head, rotations }
    }

    /// Mean negative log-likelihood of a window's tokens but the first, each given those before it.
    fn mean_nll(&self, window: &[u32]) -> f64 {
        let logits = self.logits(window);
        let next = &window[1..];
        let sum: f64 = logits
            .chunks_exact(self.config.vocab_size)
            .zip(next)
            .map(|(logits, &token)| log_sum_exp(logits) - f64::from(logits[token as usize]))
            .sum();
        sum / next.len() as f64
    }

    fn logits(&self, window: &[u32]) -> Vec<f32> {
        let hidden = self.config.hidden_size;
        let mut x: Vec<f32> =
            window.iter().flat_map(|&t| row(&self.embedding, t as usize, hidden)).copied().collect();
        for layer in &self.layers {
            let attended = self.attention(layer, &self.rms_norm(&x, &layer.input_norm));
            add(&mut x, &layer.o.apply(&attended));
            let normed = self.rms_norm(&x, &layer.post_norm);
            let gated = swiglu(layer.gate.apply(&normed), &layer.up.apply(&normed));
            add(&mut x, &layer.down.apply(&gated));
        }
        self.head.apply(&self.rms_norm(&x, &self.norm))
    }

    fn rms_norm(&self, x: &[f32], weight: &[f32]) -> Vec<f32> {
        let normed = x.chunks_exact(weight.len()).flat_map(|row| {
            let mean_square = row.iter().map(|x| x * x).sum::<f32>() / row.len() as f32;
            let scale = 1.0 / (mean_square + self.config.rms_norm_eps).sqrt();
            row.iter().zip(weight).map(move |(x, weight)| x * scale * weight)
        });
        normed.collect()
    }

    /// Causal attention; neighbouring query heads share a head of keys and values.
    fn attention(&self, layer: &Layer, x: &[f32]) -> Vec<f32> {
        let (dim, heads, kv_heads) =
            (self.config.head_dim(), self.config.num_attention_heads, self.config.kv_heads());
        let (mut q, mut k, v) = (layer.q.apply(x), layer.k.apply(x), layer.v.apply(x));
        self.rotate(&mut q, heads);
        self.rotate(&mut k, kv_heads);
        let mut out = vec![0.0; q.len()];
        for head in 0..heads {
            let kv_head = head / (heads / kv_heads);
            let keys = transposed_head(&k, kv_head, kv_heads, dim);
            let tokens = keys.len() / dim;
            for token in 0..tokens {
                let at = (token * heads + head) * dim;
                let weights = attention_weights(&q[at..][..dim], &keys, tokens, token);
                for (seen, weight) in weights.into_iter().enumerate() {
                    let value = row(&v, seen * kv_heads + kv_head, dim);
                    for (out, value) in out[at..][..dim].iter_mut().zip(value) {
                        *out += weight * value;
                    }
                }
            }
        }
        out
    }

    /// Turns every head by its token's position: the first half of a head pairs with the second (`rotate_half` of the
    /// Hugging Face layout), not each even element with the next odd one.
    fn rotate(&self, x: &mut [f32], heads: usize) {
        let half = self.config.head_dim() / 2;
        for (position, token) in x.chunks_exact_mut(heads * 2 * half).enumerate() {
            let rotations = &self.rotations[position * half..][..half];
            for head in token.chunks_exact_mut(2 * half) {
                let (first, second) = head.split_at_mut(half);
                for ((a, b), (cos, sin)) in first.iter_mut().zip(second).zip(rotations) {
                    (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                }
            }
        }
    }
}

/// `(cos, sin)` of position · theta^(−2i/dim), for the positions of a window.
fn rotations(theta: f64, head_dim: usize) -> Vec<(f32, f32)> {
    let angle =
        |position: usize, pair: usize| position as f64 * theta.powf(-2.0 * pair as f64 / head_dim as f64);
    (0..WINDOW_TOKENS)
        .flat_map(|position| (0..head_dim / 2).map(move |pair| angle(position, pair).sin_cos()))
        .map(|(sin, cos)| (cos as f32, sin as f32))
        .collect()
}

/// One head's keys, dimension by dimension, so that the scores of all tokens are computed side by side.
fn transposed_head(k: &[f32], head: usize, heads: usize, dim: usize) -> Vec<f32> {
    let tokens = k.len() / (heads * dim);
    (0..dim).flat_map(|d| (0..tokens).map(move |token| k[(token * heads + head) * dim + d])).collect()
}

/// The softmax of a query's scores against the tokens up to its own.
fn attention_weights(query: &[f32], keys: &[f32], tokens: usize, token: usize) -> Vec<f32> {
    let mut scores = vec![0.0; token + 1];
    for (q, keys) in query.iter().zip(keys.chunks_exact(tokens)) {
        for (score, key) in scores.iter_mut().zip(keys) {
            *score += q * key;
        }
    }
    let scale = 1.0 / (query.len() as f32).sqrt();
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for score in &mut scores {
        *score = ((*score - max) * scale).exp();
        sum += *score;
    }
    for score in &mut scores {
        *score /= sum;
    }
    scores
}

fn swiglu(mut gate: Vec<f32>, up: &[f32]) -> Vec<f32> {
    for (gate, up) in gate.iter_mut().zip(up) {
        *gate = *gate / (1.0 + (-*gate).exp()) * up;
    }
    gate
}

fn add(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from((logit - max).exp())).sum();
    f64::from(max) + sum.ln()
}

mod tests {
    use super::*;
    use safetensors::tensor::TensorView;
    use std::path::PathBuf;

    const SETS: [&str; 4] =
        ["general_valid.txt", "medical_valid.txt", "chat_valid.jsonl", "medqa_valid.jsonl"];

    /// Measured with torch and transformers; `examples/models/README.md` has the table.
    const RECORDED: [(&str, [f64; 4]); 3] = [
        ("base", [35.28, 38.28, 111.99, 106.37]),
        ("medical", [37.46, 29.89, 116.01, 87.18]),
        ("chat", [41.72, 43.82, 18.29, 21.00]),
    ];

    fn models() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/models")
    }

    #[test]
    fn parents_have_their_recorded_perplexities() {
        for (model, recorded) in RECORDED {
            for (set, recorded) in SETS.into_iter().zip(recorded) {
                let found = perplexity(&models().join(model), &models().join("texts").join(set));
                println!("{model} on {set}: {found:.2}, recorded {recorded:.2}");
                assert!(
                    (found / recorded - 1.0).abs() < 0.005,
                    "{model} on {set}: {found:.3}, not {recorded}"
                );
            }
        }
    }

    /// A copy of the base whose head is its embedding, spelt out or tied, in f32 or f16, in one file or two.
    #[test]
    fn a_tied_head_other_types_and_shards_change_nothing() {
        let text = models().join("texts/medical_valid.txt");
        let dir = tempfile::tempdir().unwrap();
        let written = |dtype, tied, shards| {
            write_variant(dir.path(), dtype, tied, shards);
            perplexity(dir.path(), &text)
        };
        let untied = written(Dtype::F32, false, 1);
        assert_eq!(untied, written(Dtype::F32, true, 1));
        assert_eq!(untied, written(Dtype::F32, true, 2));
        // bf16 values below 2^-14 lose bits in f16, too few to matter.
        assert!((written(Dtype::F16, true, 1) / untied - 1.0).abs() < 1e-4);
    }

    fn write_variant(dir: &Path, dtype: Dtype, tied: bool, shards: usize) {
        for entry in fs::read_dir(dir).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
        let base = models().join("base");
        let mut config: serde_json::Value =
            serde_json::from_slice(&fs::read(base.join("config.json")).unwrap()).unwrap();
        config["tie_word_embeddings"] = tied.into();
        fs::write(dir.join("config.json"), config.to_string()).unwrap();
        fs::copy(base.join("tokenizer.json"), dir.join("tokenizer.json")).unwrap();
        let tensors = Tensors::load(&base).0;
        let mut encoded: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
            .iter()
            .filter(|(name, _)| *name != "lm_head.weight")
            .map(|(name, (shape, values))| (name.clone(), shape.clone(), encode(dtype, values)))
            .collect();
        if !tied {
            let (shape, values) = &tensors["model.embed_tokens.weight"];
            encoded.push(("lm_head.weight".into(), shape.clone(), encode(dtype, values)));
        }
        for (shard, tensors) in encoded.chunks(encoded.len().div_ceil(shards)).enumerate() {
            let views = tensors
                .iter()
                .map(|(name, shape, bytes)| (name, TensorView::new(dtype, shape.clone(), bytes).unwrap()));
            let path = dir.join(format!("model-{shard}.safetensors"));
            safetensors::serialize_to_file(views, None, &path).unwrap();
        }
    }

    fn encode(dtype: Dtype, values: &[f32]) -> Vec<u8> {
        match dtype {
            Dtype::F16 => values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
            Dtype::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
            other => panic!("no test writes {other:?}"),
        }
    }
}

//! Hidden states of texts, taken from layer to layer.

use std::sync::Mutex;

use super::Decoder;
use super::architecture::tensor_name;
use super::fastest;
use crate::error::Result;
use crate::products::{LANES, ROWS, add_product};
use crate::threads;

/// How sums are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sums {
    /// In one order, without fused operations: the same bits on every machine.
    Ordered,
    /// As fast as this processor can: the last bits differ from machine to machine.
    Fastest,
}

/// Where the weights of a decoder come from.
pub trait Weights {
    /// Whether there is such a tensor.
    fn has(&self, name: &str) -> bool;

    /// A tensor's elements from number `first` on.
    ///
    /// # Errors
    /// They cannot be read.
    fn read(&mut self, name: &str, first: u64, into: &mut [f32]) -> Result<()>;

    /// Asks now and then whether to go on.
    ///
    /// # Errors
    /// The user wishes to stop.
    fn go_on(&mut self) -> Result<()> {
        Ok(())
    }
}

/// The hidden states of all tokens of some texts, before one of the layers.
#[derive(Debug, Clone)]
pub struct States<'d> {
    pub(super) decoder: &'d Decoder,
    sums: Sums,
    /// The tokens of each text.
    lens: Vec<usize>,
    /// `tokens × hidden`, the texts one behind the other.
    pub(super) values: Vec<f32>,
    /// Cosine and sine of each pair of a head, at each position of the longest text.
    rotations: Vec<(f32, f32)>,
    /// Memory that a layer's work leaves to the next: taking it from the system anew takes longer than many a product.
    rooms: Vec<Vec<f32>>,
}

/// The embedding of a decoder's tokens.
pub const EMBEDDING: &str = "model.embed_tokens.weight";

/// The most elements of a matrix that are in memory at a time: whole rows, [`LANES`] of them or more.
const BLOCK: usize = 1 << 20;

/// Parts of attention that each thread takes between two questions whether to go on: those at a text's end take longest.
const JOBS: usize = 16;

/// Tokens that one thread takes at a time. In a product all of them go past [`LANES`] rows of a matrix, which stay in the cache.
const TOKENS: usize = 16 * ROWS;

impl<'d> States<'d> {
    /// The states before the first layer: the embeddings of the texts' tokens.
    ///
    /// # Errors
    /// Those of `weights`.
    pub fn of(
        decoder: &'d Decoder,
        texts: &[impl AsRef<[u64]>],
        weights: &mut dyn Weights,
        sums: Sums,
    ) -> Result<Self> {
        let lens: Vec<usize> = texts.iter().map(|text| text.as_ref().len()).collect();
        let hidden = decoder.hidden;
        let mut values = vec![0.0; lens.iter().sum::<usize>() * hidden];
        let tokens = texts.iter().flat_map(AsRef::as_ref);
        for (token, state) in tokens.zip(values.chunks_exact_mut(hidden)) {
            weights.read(EMBEDDING, token * hidden as u64, state)?;
        }
        let rotations = decoder.rope.rotations(lens.iter().copied().max().unwrap_or(0));
        Ok(Self { decoder, sums, lens, values, rotations, rooms: Vec::new() })
    }

    /// The states of each text: `tokens × hidden`.
    pub fn texts(&self) -> impl Iterator<Item = &[f32]> {
        let mut rest = &self.values[..];
        self.lens.iter().map(move |len| {
            let (own, others) = rest.split_at(len * self.decoder.hidden);
            rest = others;
            own
        })
    }

    /// Takes memory for a layer's work from `rooms`, or leaves it there: several models that take turns need it once.
    pub fn swap_rooms(&mut self, rooms: &mut Vec<Vec<f32>>) {
        std::mem::swap(&mut self.rooms, rooms);
    }

    /// Takes all states through a layer.
    ///
    /// # Errors
    /// Those of `weights`.
    pub fn advance(&mut self, layer: usize, weights: &mut dyn Weights, threads: usize) -> Result<()> {
        let Decoder { hidden, inner, heads, key_heads, head, .. } = *self.decoder;
        let (queries, keys) = (heads * head, key_heads * head);
        let (rows, rooms) = (Vec::new(), std::mem::take(&mut self.rooms));
        let mut block = Block { layer, weights, threads, rows, rooms, product: Product::new(self.sums) };
        let normed = self.normed("input_layernorm", &mut block)?;
        let mut q = block.product("self_attn.q_proj", &normed, hidden, queries)?;
        let mut k = block.product("self_attn.k_proj", &normed, hidden, keys)?;
        let v = block.product("self_attn.v_proj", &normed, hidden, keys)?;
        block.rooms.push(normed);
        if self.decoder.normed_heads {
            let [of_q, of_k] =
                [block.vector("self_attn.q_norm", head)?, block.vector("self_attn.k_norm", head)?];
            norm(&mut q, &of_q, self.decoder.epsilon);
            norm(&mut k, &of_k, self.decoder.epsilon);
        }
        let attended = self.attention(layer, &mut q, &mut k, &v, &mut block)?;
        block.rooms.extend([q, k, v]);
        block.add_product("self_attn.o_proj", &attended, queries, &mut self.values, hidden)?;
        block.rooms.push(attended);
        let normed = self.normed("post_attention_layernorm", &mut block)?;
        let mut gate = block.product("mlp.gate_proj", &normed, hidden, inner)?;
        let up = block.product("mlp.up_proj", &normed, hidden, inner)?;
        let gated = match self.sums {
            Sums::Ordered => gate_ordered,
            Sums::Fastest => fastest::gate,
        };
        let parts = gate.chunks_mut(TOKENS * inner).zip(up.chunks(TOKENS * inner));
        each(threads, parts, |(gate, up)| gated(gate, up));
        block.add_product("mlp.down_proj", &gate, inner, &mut self.values, hidden)?;
        block.rooms.extend([normed, gate, up]);
        self.rooms = block.rooms;
        Ok(())
    }

    /// The most bytes that [`Self::of`] and [`Self::advance`] take for texts of so many tokens together, but for those of `weights`.
    pub fn working_bytes(decoder: &Decoder, tokens: u64, longest: u64, sums: Sums, threads: usize) -> u64 {
        let Decoder { hidden, inner, heads, key_heads, head, .. } = *decoder;
        let (queries, keys) = (heads * head, key_heads * head);
        let widest = hidden.max(queries);
        let rooms = widest + 2 * inner.max(widest) + 2 * keys;
        let attending = match sums {
            Sums::Ordered => 1,
            Sums::Fastest => TOKENS,
        };
        let floats = tokens * (hidden + rooms) as u64
            + longest * (head + threads * attending) as u64
            + 2 * Self::asked_max(decoder);
        floats * size_of::<f32>() as u64
    }

    /// The most elements of a tensor that are asked for at once.
    pub fn asked_max(decoder: &Decoder) -> u64 {
        let widest = decoder.hidden.max(decoder.heads * decoder.head).max(decoder.inner);
        BLOCK.max(widest * LANES) as u64
    }

    /// The states, each brought to one length and weighted.
    fn normed(&self, name: &str, block: &mut Block<'_>) -> Result<Vec<f32>> {
        let weight = block.vector(name, self.decoder.hidden)?;
        let mut normed = block.room(self.values.len());
        normed.copy_from_slice(&self.values);
        let tokens = normed.chunks_mut(TOKENS * self.decoder.hidden);
        each(block.threads, tokens, |tokens| norm(tokens, &weight, self.decoder.epsilon));
        Ok(normed)
    }

    /// Causal attention within each text; neighbouring heads of queries share one of keys and values.
    fn attention(
        &self,
        layer: usize,
        q: &mut [f32],
        k: &mut [f32],
        v: &[f32],
        block: &mut Block<'_>,
    ) -> Result<Vec<f32>> {
        let Decoder { heads, key_heads, head, .. } = *self.decoder;
        let window = self.decoder.windows[layer];
        let sizes = Heads { queries: heads, shared_by: heads / key_heads, width: head, window };
        let (queries, keys) = (heads * head, key_heads * head);
        let mut out = block.room(q.len());
        let mut jobs = Vec::new();
        let (mut q, mut k, mut v, mut rest) = (q, k, v, &mut out[..]);
        for len in &self.lens {
            let (own_q, own_k, own_v, own_out);
            (own_q, q) = q.split_at_mut(len * queries);
            (own_k, k) = k.split_at_mut(len * keys);
            (own_v, v) = v.split_at(len * keys);
            (own_out, rest) = rest.split_at_mut(len * queries);
            self.rotate(own_q, queries);
            self.rotate(own_k, keys);
            let (own_q, own_k) = (&*own_q, &*own_k);
            let parts = own_q.chunks(TOKENS * queries).zip(own_out.chunks_mut(TOKENS * queries));
            let firsts = (0..).step_by(TOKENS);
            jobs.extend(parts.zip(firsts).map(|((q, out), first)| (q, own_k, own_v, out, first)));
        }
        let mut jobs = jobs.into_iter().peekable();
        while jobs.peek().is_some() {
            block.weights.go_on()?;
            each(block.threads, jobs.by_ref().take(JOBS * block.threads), |(q, k, v, out, first)| match self
                .sums
            {
                Sums::Ordered => (0..heads).for_each(|number| attend(q, k, v, out, first, number, &sizes)),
                Sums::Fastest => fastest::attend(q, k, v, out, first, &sizes),
            });
        }
        Ok(out)
    }

    /// Turns every head by its token's position. The first half of a head pairs with the second, as checkpoints have it.
    fn rotate(&self, x: &mut [f32], width: usize) {
        let half = self.decoder.head / 2;
        for (token, rotations) in x.chunks_exact_mut(width).zip(self.rotations.chunks_exact(half)) {
            for head in token.chunks_exact_mut(2 * half) {
                let (first, second) = head.split_at_mut(half);
                for ((a, b), (cos, sin)) in first.iter_mut().zip(second).zip(rotations) {
                    (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                }
            }
        }
    }
}

/// The heads of a layer.
pub(super) struct Heads {
    /// Those of queries.
    pub(super) queries: usize,
    /// How many of them share one of keys and values.
    pub(super) shared_by: usize,
    /// Elements of one.
    pub(super) width: usize,
    pub(super) window: Option<usize>,
}

/// What one head of some tokens attends to: `first` is the place of the first of them in their text, which has these keys and values.
fn attend(q: &[f32], k: &[f32], v: &[f32], out: &mut [f32], first: usize, number: usize, sizes: &Heads) {
    let Heads { queries: heads, shared_by, width, window } = *sizes;
    let (queries, keys, shared) = (heads * width, heads / shared_by * width, number / shared_by);
    let scale = 1.0 / (width as f32).sqrt();
    let of = |token: usize| token * keys + shared * width..token * keys + (shared + 1) * width;
    let mut weights = Vec::new();
    for (token, (q, out)) in (first..).zip(q.chunks_exact(queries).zip(out.chunks_exact_mut(queries))) {
        let (q, out) = (&q[number * width..][..width], &mut out[number * width..][..width]);
        let seen = window.map_or(0, |window| (token + 1).saturating_sub(window))..token + 1;
        weights.clear();
        weights.extend(seen.clone().map(|token| dot(q, &k[of(token)]) * scale));
        soften(&mut weights);
        for (weight, token) in weights.iter().zip(seen) {
            out.iter_mut().zip(&v[of(token)]).for_each(|(out, value)| *out += weight * value);
        }
    }
}

/// The sum of products: element `i` belongs to sum `i % LANES`.
fn dot(one: &[f32], other: &[f32]) -> f32 {
    let ((one, one_rest), (other, other_rest)) = (one.as_chunks::<LANES>(), other.as_chunks::<LANES>());
    let mut sums = [0.0; LANES];
    for (one, other) in one.iter().zip(other) {
        for (sum, (one, other)) in sums.iter_mut().zip(one.iter().zip(other)) {
            *sum += one * other;
        }
    }
    let rest: f32 = one_rest.iter().zip(other_rest).map(|(one, other)| one * other).sum();
    sums.into_iter().fold(rest, |all, sum| all + sum)
}

/// Softmax.
fn soften(scores: &mut [f32]) {
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for score in &mut *scores {
        *score = libm::expf(*score - max);
        sum += *score;
    }
    scores.iter_mut().for_each(|score| *score /= sum);
}

/// Multiplies `up` with the gate's `SiLU`, in place of the gate.
fn gate_ordered(gate: &mut [f32], up: &[f32]) {
    gate.iter_mut().zip(up).for_each(|(gate, up)| *gate = silu(*gate) * up);
}

fn silu(x: f32) -> f32 {
    x / (1.0 + libm::expf(-x))
}

/// Brings rows as long as `weight` to a mean square of 1, and multiplies them with it (Zhang and Sennrich, `RMSNorm`,
/// <https://arxiv.org/abs/1910.07467>).
pub(super) fn norm(rows: &mut [f32], weight: &[f32], epsilon: f32) {
    for row in rows.chunks_exact_mut(weight.len()) {
        let squares = row.iter().fold(0.0, |sum, x| sum + f64::from(*x) * f64::from(*x));
        let scale = (1.0 / (squares / weight.len() as f64 + f64::from(epsilon)).sqrt()) as f32;
        row.iter_mut().zip(weight).for_each(|(x, weight)| *x = *x * scale * weight);
    }
}

/// The weights of a layer, some rows at a time.
struct Block<'w> {
    layer: usize,
    weights: &'w mut dyn Weights,
    threads: usize,
    rows: Vec<f32>,
    /// Memory that is free for what comes next.
    rooms: Vec<Vec<f32>>,
    product: Product,
}

impl Block<'_> {
    /// So many zeros, in memory that is there already if any of it is large enough.
    fn room(&mut self, len: usize) -> Vec<f32> {
        let size = |place: &usize| self.rooms[*place].capacity();
        let all = || 0..self.rooms.len();
        let place =
            all().filter(|place| size(place) >= len).min_by_key(size).or_else(|| all().max_by_key(size));
        let mut room = place.map_or_else(Vec::new, |place| self.rooms.swap_remove(place));
        room.clear();
        if room.capacity() < len {
            // No second copy of what is thrown away.
            room = Vec::new();
            room.reserve_exact(len);
        }
        room.resize(len, 0.0);
        room
    }

    fn vector(&mut self, part: &str, len: usize) -> Result<Vec<f32>> {
        let mut vector = vec![0.0; len];
        self.weights.read(&tensor_name(self.layer, part, "weight"), 0, &mut vector)?;
        Ok(vector)
    }

    /// `x · Wᵀ`, with the bias if there is one: `x` has rows of `inputs`, what is returned rows of `outputs`.
    fn product(&mut self, part: &str, x: &[f32], inputs: usize, outputs: usize) -> Result<Vec<f32>> {
        let mut y = self.room(x.len() / inputs * outputs);
        self.add_product(part, x, inputs, &mut y, outputs)?;
        Ok(y)
    }

    /// Adds the same to `y`.
    fn add_product(
        &mut self,
        part: &str,
        x: &[f32],
        inputs: usize,
        y: &mut [f32],
        outputs: usize,
    ) -> Result<()> {
        let name = tensor_name(self.layer, part, "weight");
        let at_once = rows_at_once(inputs);
        for first in (0..outputs).step_by(at_once) {
            let end = outputs.min(first + at_once);
            self.rows.resize((end - first) * inputs, 0.0);
            self.weights.read(&name, (first * inputs) as u64, &mut self.rows)?;
            self.product.take(&self.rows, inputs);
            let tokens = self.product.tokens(x.len() / inputs, self.threads);
            let parts = x.chunks(tokens * inputs).zip(y.chunks_mut(tokens * outputs));
            each(self.threads, parts, |(x, y)| self.product.add(x, y, &self.rows, (first, end, outputs)));
        }
        let bias = tensor_name(self.layer, part, "bias");
        if self.weights.has(&bias) {
            let mut values = vec![0.0; outputs];
            self.weights.read(&bias, 0, &mut values)?;
            for row in y.chunks_exact_mut(outputs) {
                row.iter_mut().zip(&values).for_each(|(y, bias)| *y += bias);
            }
        }
        Ok(())
    }
}

/// How many rows of a matrix with so many columns are in memory at a time.
pub(super) fn rows_at_once(columns: usize) -> usize {
    (BLOCK / columns / LANES).max(1) * LANES
}

/// Products with some rows of a matrix.
#[derive(Debug)]
pub(super) struct Product {
    sums: Sums,
    inputs: usize,
    /// The rows by [`LANES`], as [`add_product`] takes them.
    panels: Vec<[f32; LANES]>,
}

impl Product {
    pub(super) fn new(sums: Sums) -> Self {
        Self { sums, inputs: 1, panels: Vec::new() }
    }

    /// Makes rows of so many columns the right side of what follows.
    pub(super) fn take(&mut self, rows: &[f32], inputs: usize) {
        self.inputs = inputs;
        if self.sums == Sums::Fastest {
            return;
        }
        self.panels.clear();
        self.panels.resize((rows.len() / inputs).div_ceil(LANES) * inputs, [0.0; LANES]);
        for (row, values) in rows.chunks_exact(inputs).enumerate() {
            let panel = &mut self.panels[row / LANES * inputs..][..inputs];
            panel.iter_mut().zip(values).for_each(|(lanes, value)| lanes[row % LANES] = *value);
        }
    }

    /// Of so many tokens, how many a thread takes at a time.
    pub(super) fn tokens(&self, all: usize, threads: usize) -> usize {
        match self.sums {
            Sums::Ordered => TOKENS,
            Sums::Fastest => all.div_ceil(threads).clamp(TOKENS, fastest::TOKENS),
        }
    }

    /// Adds `x · rowsᵀ` to columns `first..end` of values in rows of `width`.
    pub(super) fn add(&self, x: &[f32], y: &mut [f32], rows: &[f32], columns: (usize, usize, usize)) {
        if self.sums == Sums::Fastest {
            return fastest::add_product(x, rows, self.inputs, y, columns);
        }
        let (first, end, width) = columns;
        for (panel, at) in self.panels.chunks_exact(self.inputs).zip((first..).step_by(LANES)) {
            add_product(x, panel, self.inputs, 1.0, y, (at, end, width));
        }
    }
}

/// Does all of some work, on several threads.
pub(super) fn each<T: Send>(threads: usize, work: impl Iterator<Item = T> + Send, job: impl Fn(T) + Sync) {
    let work = Mutex::new(work);
    let next = || work.lock().unwrap_or_else(std::sync::PoisonError::into_inner).next();
    threads::share(threads, |_| {
        while let Some(part) = next() {
            job(part);
        }
    });
}

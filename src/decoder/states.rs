//! Hidden states of texts, taken from layer to layer.

use super::Decoder;
use super::architecture::tensor_name;
use super::machine::{Attention, Heads, Machine, Room};
use crate::error::Result;

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

/// The hidden states of all tokens of some texts, before one of the layers, in a machine's memory.
#[derive(Debug)]
pub struct States<'d> {
    pub(super) decoder: &'d Decoder,
    /// The tokens of each text.
    lens: Vec<usize>,
    /// `tokens × hidden`, the texts one behind the other.
    pub(super) values: Room,
    /// Cosine and sine of each pair of a head, at each position of the longest text.
    rotations: Vec<(f32, f32)>,
}

/// The embedding of a decoder's tokens.
pub const EMBEDDING: &str = "model.embed_tokens.weight";

/// Tokens whose embeddings go to a machine at a time.
const TOKENS: usize = 256;

impl<'d> States<'d> {
    /// The states before the first layer: the embeddings of the texts' tokens.
    ///
    /// # Errors
    /// Those of `weights` and of the machine.
    pub fn of(
        decoder: &'d Decoder,
        texts: &[impl AsRef<[u64]>],
        weights: &mut dyn Weights,
        machine: &mut dyn Machine,
    ) -> Result<Self> {
        let lens: Vec<usize> = texts.iter().map(|text| text.as_ref().len()).collect();
        let hidden = decoder.hidden;
        let mut values = machine.lasting_room(lens.iter().sum::<usize>() * hidden)?;
        let (mut some, mut first) = (Vec::with_capacity(TOKENS * hidden), 0);
        let mut tokens = texts.iter().flat_map(AsRef::as_ref).peekable();
        while tokens.peek().is_some() {
            some.clear();
            for token in tokens.by_ref().take(TOKENS) {
                let at = some.len();
                some.resize(at + hidden, 0.0);
                weights.read(EMBEDDING, token * hidden as u64, &mut some[at..])?;
            }
            machine.put(&some, &mut values, first)?;
            first += some.len();
        }
        let rotations = decoder.rope.rotations(lens.iter().copied().max().unwrap_or(0));
        Ok(Self { decoder, lens, values, rotations })
    }

    /// The same states once more.
    ///
    /// # Errors
    /// Those of the machine.
    pub fn copy(&self, machine: &mut dyn Machine) -> Result<Self> {
        let mut values = machine.lasting_room(self.values.len())?;
        machine.copy((&self.values, 0), (&mut values, 0), self.values.len())?;
        let (lens, rotations) = (self.lens.clone(), self.rotations.clone());
        Ok(Self { decoder: self.decoder, lens, values, rotations })
    }

    /// The states of each text, `tokens × hidden`, one after the other.
    ///
    /// # Errors
    /// Those of the machine.
    pub fn texts(&self, machine: &mut dyn Machine, mut take: impl FnMut(&[f32])) -> Result<()> {
        let (mut text, mut first) = (Vec::new(), 0);
        for len in &self.lens {
            text.resize(len * self.decoder.hidden, 0.0);
            machine.get(&self.values, first, &mut text)?;
            take(&text);
            first += text.len();
        }
        Ok(())
    }

    /// Takes all states through a layer.
    ///
    /// # Errors
    /// Those of `weights` and of the machine.
    pub fn advance(
        &mut self,
        layer: usize,
        weights: &mut dyn Weights,
        machine: &mut dyn Machine,
    ) -> Result<()> {
        let Decoder { hidden, inner, heads, key_heads, head, .. } = *self.decoder;
        let (queries, keys) = (heads * head, key_heads * head);
        let window = self.decoder.windows[layer];
        let mut block = Block { layer, weights, machine };
        let normed = self.normed("input_layernorm", &mut block)?;
        let mut q = block.product("self_attn.q_proj", &normed, (hidden, queries))?;
        let mut k = block.product("self_attn.k_proj", &normed, (hidden, keys))?;
        let mut v = block.product("self_attn.v_proj", &normed, (hidden, keys))?;
        block.machine.leave(normed);
        if self.decoder.normed_heads {
            block.norm("self_attn.q_norm", &mut q, head, self.decoder.epsilon)?;
            block.norm("self_attn.k_norm", &mut k, head, self.decoder.epsilon)?;
        }
        let heads = Heads { queries: heads, shared_by: heads / key_heads, width: head, window };
        let attention = Attention { heads, lens: &self.lens, rotations: &self.rotations };
        let Block { weights, machine, .. } = &mut block;
        let found = machine.attend([&mut q, &mut k, &mut v], &attention, &mut || weights.go_on())?;
        [q, k, v].into_iter().for_each(|room| machine.leave(room));
        block.add_product("self_attn.o_proj", &found, &mut self.values, (queries, hidden))?;
        block.machine.leave(found);
        let normed = self.normed("post_attention_layernorm", &mut block)?;
        let mut gate = block.product("mlp.gate_proj", &normed, (hidden, inner))?;
        let up = block.product("mlp.up_proj", &normed, (hidden, inner))?;
        block.machine.leave(normed);
        block.machine.gate(&mut gate, &up)?;
        block.machine.leave(up);
        block.add_product("mlp.down_proj", &gate, &mut self.values, (inner, hidden))?;
        block.machine.leave(gate);
        Ok(())
    }

    /// The states, each brought to one length and weighted.
    fn normed(&self, name: &str, block: &mut Block<'_>) -> Result<Room> {
        let mut normed = block.machine.room(self.values.len())?;
        block.machine.copy((&self.values, 0), (&mut normed, 0), self.values.len())?;
        block.norm(name, &mut normed, self.decoder.hidden, self.decoder.epsilon)?;
        Ok(normed)
    }
}

/// A layer's weights, and what computes with them.
struct Block<'w> {
    layer: usize,
    weights: &'w mut dyn Weights,
    machine: &'w mut dyn Machine,
}

impl Block<'_> {
    fn norm(&mut self, part: &str, rows: &mut Room, width: usize, epsilon: f32) -> Result<()> {
        let mut weight = vec![0.0; width];
        self.weights.read(&tensor_name(self.layer, part, "weight"), 0, &mut weight)?;
        self.machine.norm(rows, &weight, epsilon)
    }

    /// `x · Wᵀ`, with the bias if there is one: `x` has rows of `inputs`, what is returned rows of `outputs`.
    fn product(&mut self, part: &str, x: &Room, (inputs, outputs): (usize, usize)) -> Result<Room> {
        let mut y = self.machine.room(x.len() / inputs * outputs)?;
        self.add_product(part, x, &mut y, (inputs, outputs))?;
        Ok(y)
    }

    /// Adds the same to `y`.
    fn add_product(
        &mut self,
        part: &str,
        x: &Room,
        y: &mut Room,
        (inputs, outputs): (usize, usize),
    ) -> Result<()> {
        let Self { layer, weights, machine } = self;
        let name = tensor_name(*layer, part, "weight");
        machine.add_product(x, y, (inputs, outputs), &mut |first, rows| {
            weights.read(&name, (first * inputs) as u64, rows)
        })?;
        let bias = tensor_name(*layer, part, "bias");
        if weights.has(&bias) {
            let mut values = vec![0.0; outputs];
            weights.read(&bias, 0, &mut values)?;
            machine.add_bias(y, &values)?;
        }
        Ok(())
    }
}

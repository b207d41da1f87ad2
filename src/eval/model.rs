//! A model that can read texts.

use std::collections::HashMap;

use indexmap::IndexMap;

use super::Listen;
use crate::checkpoint::{Reads, Source};
use crate::decoder::{Decoder, EMBEDDING, HEAD, NORM, Weights};
use crate::error::{Error, Result};
use crate::input::{At, Floats, Input, Parts};
use crate::plan::{ReadTensor, Readable};

/// A model with a forward pass.
#[derive(Debug)]
pub struct Model {
    /// As the user wrote it.
    pub name: String,
    /// What it is on disk: its folder, and that of its adapter.
    pub sources: Vec<Source>,
    /// What its config.json says.
    pub decoder: Decoder,
    /// What the user should know.
    pub notes: Vec<String>,
    /// Which of the sources has its tokenizer.
    own: usize,
    inputs: Vec<Input>,
    weights: HashMap<String, Floats>,
}

impl Model {
    /// A model as it was opened.
    ///
    /// # Errors
    /// It is none of the decoders that have a forward pass here, or its tensors are not those that its config.json asks for.
    pub fn new(opened: Readable) -> Result<Self> {
        let Readable { name, sources, source, inputs, config, tensors, notes } = opened;
        let decoder = Decoder::of(&config).map_err(|why| {
            let hint = if config.is_empty() {
                "give the folder that holds config.json, the tokenizer and the safetensors files"
            } else {
                "evaluate it with transformers or lm-eval; its merges are made here all the same"
            };
            Error::config(format!("{name}: {why}")).hint(hint)
        })?;
        let (decoder, weights) = fitting(&name, decoder, &tensors)?;
        Ok(Self { name, sources, decoder, notes, own: source, inputs, weights })
    }

    /// The folder with its tokenizer.
    pub fn folder(&self) -> &Source {
        &self.sources[self.own]
    }

    /// Whether it has this tensor.
    pub fn has(&self, name: &str) -> bool {
        self.weights.contains_key(name)
    }

    /// Its weights as they are read.
    pub fn reader<'m>(&'m self, threads: usize, listen: &'m dyn Listen) -> Reader<'m> {
        Reader { model: self, bytes: Vec::new(), threads, listen }
    }
}

/// The weights that a decoder needs, checked; its vocabulary is what is stored.
///
/// # Errors
/// One is missing, has another shape, or is none of floats.
pub fn fitting(
    name: &str,
    mut decoder: Decoder,
    tensors: &IndexMap<String, ReadTensor>,
) -> Result<(Decoder, HashMap<String, Floats>)> {
    let hint = "a checkpoint of its own family as transformers writes it has all of them; does config.json belong to it?";
    let (hidden, layers) = (decoder.hidden, decoder.layers);
    if let Some(ReadTensor { shape, .. }) = tensors.get(EMBEDDING)
        && let [rows, _] = shape[..]
    {
        decoder.vocabulary = rows;
    }
    let ends = [(EMBEDDING.to_owned(), vec![decoder.vocabulary, hidden]), (NORM.to_owned(), vec![hidden])];
    // A head that is tied is the embedding, whatever else is stored.
    let head = (!decoder.tied).then(|| (HEAD.to_owned(), vec![decoder.vocabulary, hidden]));
    let has = |(name, _): &(String, Vec<usize>)| tensors.contains_key(name);
    let biases = decoder.biases(layers).into_iter().filter(has);
    let needed = ends.into_iter().chain(head).chain(decoder.tensors(layers)).chain(biases);
    let mut weights = HashMap::new();
    for (tensor, shape) in needed {
        let Some(ReadTensor { shape: stored, floats }) = tensors.get(&tensor) else {
            return Err(
                Error::config(format!("{name} has no {tensor}, which its forward pass needs")).hint(hint)
            );
        };
        if *stored != shape {
            let message =
                format!("tensor {tensor}: it is {stored:?} in {name}, whose config.json asks for {shape:?}");
            return Err(Error::config(message).hint(hint));
        }
        let Some(floats) = floats else {
            return Err(Error::config(format!("tensor {tensor} of {name} is none of floats")).hint(hint));
        };
        weights.insert(tensor, *floats);
    }
    Ok((decoder, weights))
}

/// The weights of a model while it reads texts.
pub struct Reader<'m> {
    model: &'m Model,
    bytes: Vec<u8>,
    threads: usize,
    listen: &'m dyn Listen,
}

impl Weights for Reader<'_> {
    fn has(&self, name: &str) -> bool {
        self.model.has(name)
    }

    fn read(&mut self, name: &str, first: u64, into: &mut [f32]) -> Result<()> {
        let Self { model, bytes, threads, listen } = self;
        let stored = |at: At, start: u64, into: &mut [u8]| {
            let source = &model.sources[at.source];
            source.read_at(source.tensor_at(at.tensor), start, into, Reads::Copied)
        };
        let stop = &|| listen.stop();
        let mut parts = Parts { inputs: &model.inputs, stored, threads: *threads, stop };
        model.weights[name].values(first, into, bytes, &mut parts)
    }

    fn go_on(&mut self) -> Result<()> {
        if self.listen.stop() { Err(Error::interrupted()) } else { Ok(()) }
    }
}

//! How the routers of a mixture are made: drawn, or of the prompts that each expert is meant for.

use std::collections::{BTreeMap, HashMap, HashSet};

use indexmap::IndexSet;

use super::super::names;
use super::super::views::{InputList, Model};
use super::not_floats;
use crate::checkpoint::Source;
use crate::config::Located;
use crate::config::moe::{Expert, GateMode, MoeConfig};
use crate::decoder::{Decoder, EMBEDDING};
use crate::dtype::computed_as;
use crate::error::{Error, Result};
use crate::input::{Drawn, Floats, Gates, Hidden, HiddenGates, Law, OfText, PromptTokens, draw_key};
use crate::tokenizer::Runner;

/// What the routers of all layers are made of: those of the experts, and that of the shared one.
pub(super) enum Routers {
    Drawn(GateMode),
    /// The same inputs in every layer.
    Same([usize; 2]),
    /// Of hidden states before each layer: an input, and of each expert its groups of prompts.
    ByLayer {
        states: usize,
        groups: u64,
        experts: [Vec<(u64, Option<u64>)>; 2],
    },
}

impl Routers {
    /// Turns the prompts into tokens, where they make the routers. `gated` are the shared experts that have a gate.
    ///
    /// # Errors
    /// The base cannot read them.
    pub(super) fn of(
        config: &MoeConfig,
        base: &Model<'_>,
        sources: &[Source],
        gated: &[Expert],
        inputs: &mut InputList,
        notes: &mut Vec<String>,
    ) -> Result<Self> {
        let mode = config.gate_mode.value;
        if !mode.reads_prompts() {
            return Ok(Self::Drawn(mode));
        }
        let embedding = base.tensors.get(EMBEDDING);
        let Some((view, [rows, columns])) = embedding.and_then(|view| Some((view, *view.shape.as_array()?)))
        else {
            let message = format!("{} has no {EMBEDDING}, which makes the routers", base.name);
            return Err(Error::config(message).hint("set `gate_mode: random`"));
        };
        let runner = Runner::open(&sources[base.source]).map_err(without_prompts)?;
        let reads = Reads { moe: config, base, runner, rows: rows as u64 };
        if mode != GateMode::CheapEmbed {
            return reads.by_layer(mode, gated, columns, inputs, notes);
        }
        let tokens = |expert: &Expert| -> Result<PromptTokens> {
            let counted = |texts: Vec<Vec<u64>>| {
                let mut counts = BTreeMap::new();
                texts.into_iter().flatten().for_each(|token| *counts.entry(token).or_default() += 1);
                counts
            };
            let [positive, negative] = reads.texts(expert)?.map(counted);
            Ok(PromptTokens { positive, negative })
        };
        let all = |experts: &[Expert]| experts.iter().map(tokens).collect::<Result<Vec<_>>>();
        let experts = [all(&config.experts)?, all(gated)?];
        let Some(float) = computed_as(inputs.read_as(view)) else {
            return Err(not_floats(EMBEDDING, &base.name, view));
        };
        let embedding = Floats { input: inputs.as_floats(view), float };
        Ok(Self::Same(
            experts.map(|experts| inputs.make(Gates { embedding, columns: columns as u64, experts })),
        ))
    }

    /// The router of the experts (0) or of the shared one (1) in a layer; `name` is what it is called in the output.
    pub(super) fn input(
        &self,
        inputs: &mut InputList,
        seed: u64,
        layer: usize,
        which: usize,
        name: &str,
        hidden: usize,
    ) -> usize {
        match self {
            Self::Same(of) => of[which],
            Self::Drawn(mode) => {
                // What torch gives a linear layer that is not trained.
                let uniform = Law::Uniform { bound: (1.0 / hidden as f64).sqrt() };
                let law = if *mode == GateMode::Random { Law::Normal } else { uniform };
                inputs.make(Drawn { key: draw_key(seed, name), law })
            }
            Self::ByLayer { states, groups, experts } => inputs.make(HiddenGates {
                states: *states,
                groups: *groups,
                columns: hidden as u64,
                layer: layer as u64,
                counts: (layer, which) == (0, 0),
                experts: experts[which].clone(),
            }),
        }
    }
}

/// An error of a tokenizer, with another way out: to need none.
fn without_prompts(error: Error) -> Error {
    let hint = error.hint.clone().unwrap_or_default();
    error.hint(format!("{hint}; or set `gate_mode: random`, which needs no prompts"))
}

/// The base model as a reader of prompts.
struct Reads<'p, 'a> {
    moe: &'p MoeConfig,
    base: &'p Model<'a>,
    runner: Runner,
    /// The rows of its embedding.
    rows: u64,
}

impl Reads<'_, '_> {
    /// The prompts and negative prompts of an expert as tokens; those without any are left out.
    fn texts(&self, expert: &Expert) -> Result<[Vec<Vec<u64>>; 2]> {
        let of = |prompts: &[Located<String>]| {
            let begin = self.runner.framing()[0].unwrap_or_default();
            let tokens = |prompt: &Located<String>| {
                let text = format!("{begin}{}", prompt.value);
                self.runner.encode(&text, false).map(|tokens| tokens.ids).map_err(without_prompts)
            };
            let mut texts = prompts.iter().map(tokens).collect::<Result<Vec<_>>>()?;
            texts.retain(|text| !text.is_empty());
            let beyond = texts.iter().flatten().max().filter(|token| **token >= self.rows);
            beyond.map_or(Ok(()), |token| {
                let (name, rows) = (&self.base.name, self.rows);
                let message =
                    format!("{name}: its tokenizer has the token {token}, and its embedding {rows} rows");
                Err(Error::config(message).hint("give a base model whose tokenizer fits"))
            })?;
            Ok(texts)
        };
        let texts = [of(&expert.positive_prompts)?, of(&expert.negative_prompts)?];
        if texts[0].is_empty() {
            let message = "the tokenizer makes no tokens of these positive_prompts";
            return Err(self.moe.error_at(expert.at, message).hint("write prompts that are not empty"));
        }
        Ok(texts)
    }

    /// Routers of hidden states: an input for all of them.
    fn by_layer(
        &self,
        mode: GateMode,
        gated: &[Expert],
        columns: usize,
        inputs: &mut InputList,
        notes: &mut Vec<String>,
    ) -> Result<Routers> {
        let decoder = Decoder::of(&self.base.config).and_then(|decoder| {
            let hidden = decoder.hidden;
            let fits = hidden == columns;
            fits.then_some(decoder).ok_or_else(|| {
                format!("its config.json has a hidden_size of {hidden}, its embedding {columns}")
            })
        });
        let stored = names::stacks(self.base.names()).get("model.layers").copied().unwrap_or(0);
        let decoder = decoder.and_then(|decoder| {
            let layers = decoder.layers;
            let fits = layers == stored;
            fits.then_some(decoder).ok_or_else(|| {
                format!(
                    "its config.json has a num_hidden_layers of {layers}, and its tensors are of {stored}"
                )
            })
        });
        let decoder = decoder.map_err(|why| {
            let message = format!("gate_mode {} needs hidden states of {}: {why}", mode.name(), self.base.name);
            self.moe.error_at(self.moe.gate_mode.at, message).hint(
                "set `gate_mode: cheap_embed`, which takes the embeddings of the same prompts, or `random` or \
                 `uniform_random`, to train the routers",
            )
        })?;
        let weights = self.weights(&decoder, inputs)?;
        // One text that several experts have is read once.
        let (mut texts, mut groups) = (IndexSet::new(), Vec::new());
        let mut group = |own: Vec<Vec<u64>>| {
            groups.push(own.into_iter().map(|text| texts.insert_full(text).0).collect());
            groups.len() as u64 - 1
        };
        let mut of = |expert: &Expert| {
            let [positive, negative] = self.texts(expert)?;
            Ok((group(positive), (!negative.is_empty()).then(|| group(negative))))
        };
        let mut all = |experts: &[Expert]| experts.iter().map(&mut of).collect::<Result<Vec<_>>>();
        let experts = [all(&self.moe.experts)?, all(gated)?];
        let longest = texts.iter().map(Vec::len).max();
        if let (Some(most), Some(longest)) = (decoder.longest_text(), longest)
            && longest > most
        {
            let message = format!(
                "gate_mode {}: a prompt has {longest} tokens, and {} turns texts of more than {most} by positions that \
                 change (dynamic rope)",
                mode.name(),
                self.base.name
            );
            return Err(self.moe.error_at(self.moe.gate_mode.at, message).hint("write shorter prompts"));
        }
        let last: HashSet<Option<&u64>> = texts.iter().map(|text| text.last()).collect();
        if mode != GateMode::HiddenAvg && last.len() == 1 {
            notes.push(
                "all prompts end with the same token, so that the first layer's router does not tell experts apart: \
                 `gate_mode: hidden_avg` takes all tokens of a prompt"
                    .into(),
            );
        }
        let of_text = if mode == GateMode::HiddenAvg { OfText::Mean } else { OfText::Last };
        let (layers, number) = (decoder.layers, groups.len() as u64);
        let states = Hidden::new(decoder, layers, weights, texts.into_iter().collect(), groups, of_text);
        Ok(Routers::ByLayer { states: inputs.make(states), groups: number, experts })
    }

    /// The base's weights below the last layer, checked.
    fn weights(&self, decoder: &Decoder, inputs: &mut InputList) -> Result<HashMap<String, Floats>> {
        let (base, read) = (self.base, decoder.layers - 1);
        let has = |(name, _): &(String, Vec<usize>)| base.tensors.contains_key(name.as_str());
        let embedding = (EMBEDDING.to_owned(), vec![self.rows as usize, decoder.hidden]);
        let needed = std::iter::once(embedding).chain(decoder.tensors(read));
        let mut weights = HashMap::new();
        for (name, shape) in needed.chain(decoder.biases(read).into_iter().filter(has)) {
            let Some(view) = base.tensors.get(name.as_str()) else {
                let message = format!("{} has no {name}, which its hidden states need", base.name);
                return Err(Error::config(message).hint("set `gate_mode: cheap_embed`"));
            };
            if *view.shape != shape {
                let (stored, name_of) = (&view.shape, &base.name);
                let message = format!(
                    "tensor {name}: it is {stored:?} in {name_of}, whose config.json asks for {shape:?}"
                );
                return Err(
                    Error::config(message).hint("correct that config.json; or set `gate_mode: cheap_embed`")
                );
            }
            let Some(float) = computed_as(inputs.read_as(view)) else {
                return Err(not_floats(&name, &base.name, view));
            };
            let floats = Floats { input: inputs.as_floats(view), float };
            weights.insert(name, floats);
        }
        Ok(weights)
    }
}

//! Merges in memory, and what they make of texts.

use std::collections::HashMap;

use serde_json::{Map, Value as Json};

use crate::backend::device::Device;
use crate::backend::{Backend, Limits};
use crate::checkpoint::Reads;
use crate::config::Config;
use crate::decoder::{Decoder, EMBEDDING, HEAD, Machine, NORM, Weights};
use crate::dtype::{Float, decode};
use crate::error::{Error, Kind, Result};
use crate::eval::{Listen, Losses, Plan, Running, Window, fitting};
use crate::input::Floats;
use crate::plan::{Choices, ReadTensor};
use crate::recipe::Threshold;
use crate::stream::{self, Budget, InMemory, Merged, Watch, Work};
use crate::text::bytes;
use crate::timeline::Timeline;
use crate::{Prepared, open_device, prepare_config, report};

/// What candidates are merged and read with.
#[derive(Debug)]
pub struct Engine {
    /// Where they are merged.
    pub device: Device,
    /// Threads and memory of the merge of a layer.
    pub budget: Budget,
    /// Memory of all, the merge's and that of a layer's tensors included.
    pub memory: u64,
    /// What reads texts.
    pub machine: Box<dyn Machine>,
    /// What was found of the tensors of earlier candidates, by their places: thresholds do not depend on weights.
    found: HashMap<usize, Vec<Threshold>>,
}

/// A merge that is written nowhere.
pub struct Candidate {
    /// The merge.
    pub prepared: Prepared,
    decoder: Decoder,
    /// Of each weight that the forward pass needs, its tensor's place in the plan and its type.
    weights: HashMap<String, Floats>,
    backend: Box<dyn Backend>,
    limits: Limits,
    guess: bool,
}

/// The forward pass of a merge's result, and of each weight that it needs its tensor's place in the plan and its type.
///
/// # Errors
/// The result has no forward pass here.
pub fn forward(prepared: &Prepared) -> Result<(Decoder, HashMap<String, Floats>)> {
    let name = "the merge";
    let text = report::model_config(prepared).unwrap_or_default();
    let config: Map<String, Json> = serde_json::from_slice(&text).unwrap_or_default();
    let decoder = Decoder::of(&config).map_err(|why| {
        Error::config(format!("{name}: {why}"))
            .hint("give a program that scores candidates by --objective-cmd")
    })?;
    let tensors = prepared.plan.tensors.iter().enumerate().map(|(place, tensor)| {
        let floats = Float::of(tensor.dtype).map(|float| Floats { input: place, float });
        (tensor.name.to_string(), ReadTensor { shape: tensor.shape.to_vec(), floats })
    });
    fitting(name, decoder, &tensors.collect())
}

/// Tells what is wrong with one candidate, within, from what the next ones would meet as well.
pub(super) fn of_candidate<T>(result: Result<T>) -> Result<Result<T>> {
    match result {
        Err(why) if why.kind != Kind::Config => Err(why),
        own => Ok(own),
    }
}

/// What a pass reads of a model at a time.
#[derive(Debug, Clone, Copy)]
enum Part {
    Embedding,
    Layer(usize),
    Head,
}

impl Candidate {
    /// Reads the headers of a config's models and plans the merge.
    ///
    /// # Errors
    /// The config is wrong, or its result has no forward pass here.
    pub fn open(config: Config, choices: &Choices, engine: &Engine, watch: &dyn Watch) -> Result<Self> {
        Self::of(prepare_config(config, choices)?, engine, watch)
    }

    /// The same of a merge that is planned.
    ///
    /// # Errors
    /// Its result has no forward pass here.
    pub fn of(prepared: Prepared, engine: &Engine, watch: &dyn Watch) -> Result<Self> {
        let name = "the merge";
        if let Some(vocabulary) = &prepared.plan.tokenizer.vocabulary
            && vocabulary.leader != prepared.plan.models[prepared.plan.donor].name
        {
            let message = format!("{name} has another tokenizer than its donor: {}", vocabulary.leader);
            return Err(Error::config(message)
                .hint("merge once with that tokenizer and `eval` the result, or sweep without `tokenizer`"));
        }
        let (decoder, weights) = forward(&prepared)?;
        let (backend, limits) = open_device(&prepared.plan, &engine.device, &engine.budget, watch)?;
        let guess = engine.device.family.reads_again;
        Ok(Self { prepared, decoder, weights, backend, limits, guess })
    }

    /// The forward pass of the result.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// The merge, without the memory and the device that would carry it out.
    pub fn into_prepared(self) -> Prepared {
        self.prepared
    }

    /// The names of a part's tensors.
    fn names(&self, part: Part) -> Vec<String> {
        let decoder = &self.decoder;
        let all = match part {
            Part::Embedding => vec![EMBEDDING.to_owned()],
            Part::Layer(layer) => {
                let prefix = format!("model.layers.{layer}.");
                let own = self.weights.keys().filter(|name| name.starts_with(&prefix));
                own.cloned().collect()
            }
            Part::Head => {
                let head = if self.weights.contains_key(HEAD) { HEAD } else { EMBEDDING };
                vec![NORM.to_owned(), head.to_owned()]
            }
        };
        debug_assert!(decoder.layers > 0 && all.iter().all(|name| self.weights.contains_key(name)));
        all
    }

    fn parts(&self) -> impl Iterator<Item = Part> {
        let layers = (0..self.decoder.layers).map(Part::Layer);
        std::iter::once(Part::Embedding).chain(layers).chain([Part::Head])
    }

    /// The most bytes that a part's tensors have.
    fn part_bytes(&self) -> u64 {
        let bytes = |name: &String| self.prepared.plan.tensors[self.weights[name].input].bytes;
        self.parts().map(|part| self.names(part).iter().map(bytes).sum()).max().unwrap_or(0)
    }

    /// Merges a part into memory.
    fn merge(&self, part: Part, engine: &mut Engine, watch: &dyn Watch) -> Result<Held> {
        let names = self.names(part);
        let mut chosen: Vec<usize> = names.iter().map(|name| self.weights[name].input).collect();
        chosen.sort_unstable();
        let (held, merged) = self.merge_tensors(&chosen, engine, watch)?;
        for (tensor, merged) in chosen.iter().zip(merged) {
            let known = engine.found.entry(*tensor).or_default();
            for found in merged.thresholds {
                if !known.contains(&found) {
                    known.push(found);
                }
            }
        }
        let mut held = held.into_bytes();
        let tensors = names.into_iter().map(|name| {
            let Floats { input, float } = self.weights[&name];
            (name, (float, held.remove(&input).expect("it was merged")))
        });
        Ok(Held { tensors: tensors.collect() })
    }

    fn merge_tensors(
        &self,
        chosen: &[usize],
        engine: &Engine,
        watch: &dyn Watch,
    ) -> Result<(InMemory, Vec<Merged>)> {
        let Prepared { plan, sources, .. } = &self.prepared;
        let mut recalled = vec![Vec::new(); plan.tensors.len()];
        for tensor in chosen {
            recalled[*tensor] = engine.found.get(tensor).cloned().unwrap_or_default();
        }
        let work = Work {
            plan,
            chosen: Some(chosen),
            sources,
            recalled: &recalled,
            reads: Reads::Mapped,
            idle: false,
            guess: self.guess,
        };
        let held = InMemory::of(plan, chosen);
        let timeline = Timeline::timing();
        let streamed = stream::run(work, &*self.backend, &held, &self.limits, watch, &timeline)?;
        Ok((held, streamed.merged))
    }

    /// The bytes of all its tensors, by name: those that a merge of its config writes.
    ///
    /// # Errors
    /// Those of a merge.
    pub fn tensors(&self, engine: &Engine, watch: &dyn Watch) -> Result<HashMap<String, Vec<u8>>> {
        let chosen: Vec<usize> = (0..self.prepared.plan.tensors.len()).collect();
        let (held, _) = self.merge_tensors(&chosen, engine, watch)?;
        let name = |place: usize| self.prepared.plan.tensors[place].name.to_string();
        Ok(held.into_bytes().into_iter().map(|(place, bytes)| (name(place), bytes)).collect())
    }
}

/// Tensors of a part of a model.
struct Held {
    tensors: HashMap<String, (Float, Vec<u8>)>,
}

impl Weights for Held {
    fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    fn read(&mut self, name: &str, first: u64, into: &mut [f32]) -> Result<()> {
        let (float, held) = &self.tensors[name];
        let (first, len) = (first as usize * float.bytes(), into.len() * float.bytes());
        decode(*float, &held[first..first + len], into);
        Ok(())
    }
}

impl Engine {
    /// An engine that has merged nothing yet.
    pub fn new(device: Device, budget: Budget, memory: u64, machine: Box<dyn Machine>) -> Self {
        Self { device, budget, memory, machine, found: HashMap::new() }
    }

    /// The least of the host's memory that a candidate takes, in bytes: states of the longest window, where a device does not have
    /// them in its own, a layer's tensors, and what merges them.
    ///
    /// # Errors
    /// As of [`Self::plan`].
    pub fn least_bytes(&self, first: &Candidate, windows: &[Window]) -> Result<u64> {
        let longest = windows.iter().max_by_key(|window| window.tokens.len());
        let (_, plan) = self.plan(first, longest.map_or(&[], std::slice::from_ref), 1)?;
        let states = if self.machine.memory().is_some() { 0 } else { plan.bytes };
        Ok(self.budget.host_bytes + first.part_bytes() + states)
    }

    /// How many of so many candidates go through the model together, and in which passes.
    ///
    /// # Errors
    /// Not even one fits into the memory.
    pub fn plan(&self, first: &Candidate, windows: &[Window], candidates: usize) -> Result<(usize, Plan)> {
        let merging = self.budget.host_bytes + first.part_bytes();
        let left = self.memory.checked_sub(merging).ok_or_else(|| {
            let (needed, given) = (bytes(merging), bytes(self.memory));
            Error::config(format!(
                "the tensors of a layer and their merge take {needed} of memory, more than {given}"
            ))
            .hint("give more --host-memory")
        })?;
        let of = |together: usize| {
            let plan = Plan::of_many(&first.decoder, windows, together, &*self.machine, left)?;
            let reads = plan.passes.len() * candidates.div_ceil(together);
            Ok((reads, together, plan))
        };
        let mut best = of(1)?;
        for together in 2..=candidates {
            let Ok(more) = of(together) else { break };
            if more.0 < best.0 {
                best = more;
            }
        }
        Ok((best.1, best.2))
    }
}

/// The losses of candidates: of each its own, by window. Within: why one failed, by which the others are not affected.
///
/// All candidates have one shape. Of each part of the model all of them are merged, and take their states through it, before the
/// next part is read.
///
/// # Errors
/// Those of a merge that are not about one candidate alone; too little memory.
pub fn measure(
    candidates: &[Candidate],
    windows: &[Window],
    engine: &mut Engine,
    watch: &dyn Watch,
    listen: &dyn Listen,
) -> Result<Vec<Result<Losses>>> {
    let Some(first) = candidates.first() else { return Ok(Vec::new()) };
    let (together, plan) = engine.plan(first, windows, candidates.len())?;
    let mut found = Vec::new();
    for candidates in candidates.chunks(together) {
        let mut losses: Vec<Result<Vec<_>>> = candidates.iter().map(|_| Ok(Vec::new())).collect();
        for pass in &plan.passes {
            let windows = &windows[pass.clone()];
            let mut running: Vec<Option<Running<'_, '_>>> = candidates.iter().map(|_| None).collect();
            for part in first.parts() {
                for ((candidate, running), losses) in candidates.iter().zip(&mut running).zip(&mut losses) {
                    let Ok(known) = losses else { continue };
                    let mut step = || {
                        let mut held = candidate.merge(part, engine, watch)?;
                        match (part, running.as_mut()) {
                            (Part::Layer(layer), Some(running)) => {
                                running.advance(layer, &mut held, &mut *engine.machine)?;
                                listen.advanced(running.tokens());
                            }
                            (Part::Head, Some(_)) => {
                                let running = running.take().expect("it is there");
                                let tokens = running.tokens();
                                known.extend(running.finish(&mut held, &mut *engine.machine)?);
                                listen.advanced(tokens);
                            }
                            _ => {
                                let begun = Running::begin(
                                    &candidate.decoder,
                                    windows,
                                    &mut held,
                                    &mut *engine.machine,
                                )?;
                                *running = Some(begun);
                            }
                        }
                        Ok(())
                    };
                    let stepped = step();
                    if let Err(why) = of_candidate(stepped)? {
                        (*running, *losses) = (None, Err(why));
                    }
                }
            }
        }
        let checked = |windows| Losses { windows }.checked("a candidate");
        found.extend(losses.into_iter().map(|losses| losses.and_then(checked)));
    }
    Ok(found)
}

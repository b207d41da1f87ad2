//! Parents read texts: each model takes all windows of a pass through its layers, and the logits of all come side by side.

use std::ops::Range;

use super::gathering::{Gathering, Shape};
use super::{Facts, Groups, Parents};
use crate::decoder::{Decoder, Final, Machine, States, Weights, logits};
use crate::error::{Error, Result};
use crate::eval::{Listen, Model, Reader, Window, Windows, passes};
use crate::text::{bytes, escaped};

/// A model, and the sets of texts as its tokenizer has them.
#[derive(Debug, Clone, Copy)]
pub struct Reading<'m> {
    /// The model.
    pub model: &'m Model,
    /// The sets, in the same order for all models.
    pub sets: &'m [Windows],
}

/// How parents are measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Groups of layers that a model's task vector is cut into, each of which becomes a parent.
    pub groups: usize,
    /// The tokens of the vocabulary to keep for each token of the texts. A vocabulary of up to twice as many is kept whole.
    pub top: usize,
    /// The most memory to use, in bytes: fewer tokens of the vocabulary are kept, and texts are read in more passes, to stay within.
    pub memory: u64,
    /// Threads that read weights.
    pub threads: usize,
}

/// Fewer tokens of the vocabulary would leave too much to the rest.
const TOP_MIN: usize = 16;

/// The smallest sensible pass, in tokens: of fewer, reading the models would take most of the time.
const TOKENS_MIN: usize = 256;

impl Parents {
    /// How many steps [`Self::measure`] reports of: a token through a layer, or through a head.
    pub fn steps(readings: &[Reading<'_>], options: &Options) -> u64 {
        let Some((first, others)) = readings.split_first() else { return 0 };
        let groups = Groups::of(first.model.decoder.layers, options.groups);
        let of_group = |group: usize| {
            let of = |other: &Reading<'_>| other.model.decoder.layers - groups.layers(group).start + 1;
            others.iter().map(of).sum::<usize>()
        };
        let whole = others.iter().map(|other| other.model.decoder.layers + 1).sum::<usize>();
        let whole = if groups.count() > 1 { whole } else { 0 };
        let layers =
            first.model.decoder.layers + 1 + (0..groups.count()).map(of_group).sum::<usize>() + whole;
        let tokens: usize = first.sets.iter().map(Windows::tokens).sum();
        (layers * tokens) as u64
    }

    /// Has models read sets of texts. The first is what the others' task vectors are differences to. `sets` are the names of the sets.
    ///
    /// # Errors
    /// The models have different tokens, or other shapes where groups of layers are exchanged; the memory is too small for one window;
    /// those of the weights; a probability is not a number.
    ///
    /// # Panics
    /// There is no model, or one has not all sets.
    pub fn measure(
        readings: &[Reading<'_>],
        sets: &[String],
        options: &Options,
        machine: &mut dyn Machine,
        listen: &dyn Listen,
    ) -> Result<Self> {
        assert!(readings.iter().all(|reading| reading.sets.len() == sets.len()), "all models have all sets");
        let first = readings[0];
        let groups = Groups::of(first.model.decoder.layers, options.groups);
        for other in &readings[1..] {
            check_tokens(&first, other, sets)?;
            if groups.count() > 1 {
                check_shapes(first.model, other.model)?;
            }
        }
        let windows: Vec<&Window> = first.sets.iter().flat_map(|set| &set.windows).collect();
        let family =
            Family { models: readings.iter().map(|reading| reading.model).collect(), groups, listen };
        let plan = Plan::of(&family, &windows, options, machine)?;
        let mut values = vec![0.0; plan.shape.stride() * counted(&windows)];
        let names = family.names();
        let (mut rest, mut share) = (&mut values[..], 0.0);
        for pass in &plan.passes {
            let windows = &windows[pass.clone()];
            let own;
            (own, rest) = rest.split_at_mut(counted(windows) * plan.shape.stride());
            share += family.read(windows, plan.shape, own, (machine, options.threads), &names)?;
        }
        let (mut tokens, mut of_sets, mut at) = (Vec::with_capacity(windows.len()), Vec::new(), 0);
        for window in &windows {
            let end = at + window.tokens.len() - window.counts_from;
            tokens.push(at..end);
            at = end;
        }
        let mut window = 0;
        for set in first.sets {
            of_sets.push(window..window + set.windows.len());
            window += set.windows.len();
        }
        let facts = Facts {
            top: plan.shape.top,
            vocabulary: first.model.decoder.vocabulary,
            share: share / (at * plan.shape.parents) as f64,
            kept_bytes: size_of_val(&values[..]) as u64,
            bytes: plan.bytes,
            device_bytes: plan.device_bytes,
            passes: plan.passes.len(),
        };
        let Family { groups, .. } = family;
        let Plan { shape, .. } = plan;
        Ok(Self { names, groups, sets: sets.to_vec(), facts, shape, windows: of_sets, tokens, values })
    }
}

/// Tokens that count.
fn counted(windows: &[&Window]) -> usize {
    windows.iter().map(|window| window.tokens.len() - window.counts_from).sum()
}

/// Logits can be put side by side only if they are of the same tokens, before the same tokens.
fn check_tokens(first: &Reading<'_>, other: &Reading<'_>, sets: &[String]) -> Result<()> {
    let (name, of) = (&first.model.name, &other.model.name);
    let (rows, own) = (first.model.decoder.vocabulary, other.model.decoder.vocabulary);
    let hint = "only models with one tokenizer can be compared token by token; give both the same, for instance by a merge with `tokenizer`";
    if rows != own {
        let message =
            format!("{name} has {rows} tokens and {of} has {own}: their logits do not belong together");
        return Err(Error::config(message).hint(hint));
    }
    for ((ours, theirs), set) in first.sets.iter().zip(other.sets).zip(sets) {
        if ours.windows != theirs.windows {
            let message =
                format!("{}: {name} and {of} do not make the same windows of tokens of it", escaped(set));
            let hint =
                format!("{hint}; or set --window, where the models were made for texts of different lengths");
            return Err(Error::config(message).hint(hint));
        }
    }
    Ok(())
}

/// A layer can stand in another model only if all shapes are the same.
fn check_shapes(first: &Model, other: &Model) -> Result<()> {
    let (ours, theirs) = (&first.decoder, &other.decoder);
    if ours.layers == theirs.layers && ours.tensors(ours.layers) == theirs.tensors(theirs.layers) {
        return Ok(());
    }
    let message = format!("layers of {} do not fit into {}: their shapes differ", other.name, first.name);
    Err(Error::config(message).hint("leave out --groups: each model then reads by itself"))
}

/// Tokens of a vocabulary that are kept where memory does not ask for fewer.
pub(super) fn kept_tokens(vocabulary: usize, top: usize) -> usize {
    if vocabulary <= 2 * top { vocabulary } else { top.max(TOP_MIN) }
}

/// What a measurement is cut into.
struct Plan {
    shape: Shape,
    /// The windows of each pass over the models.
    passes: Vec<Range<usize>>,
    /// The most memory.
    bytes: u64,
    /// Of it, that of a device with its own.
    device_bytes: u64,
}

impl Plan {
    fn of(
        family: &Family<'_>,
        windows: &[&Window],
        options: &Options,
        machine: &dyn Machine,
    ) -> Result<Self> {
        let Options { top, memory, .. } = *options;
        let (parents, vocabulary) = (family.parents(), family.models[0].decoder.vocabulary);
        let longest = windows.iter().map(|window| window.tokens.len()).max().unwrap_or(0);
        let counted = counted(windows);
        let shape = |top: usize| Shape::of(parents, top, vocabulary);
        let kept = |top: usize| (counted * shape(top).stride() * size_of::<f32>()) as u64;
        let least = |top: usize| family.bytes(longest.max(TOKENS_MIN), longest, shape(top), machine);
        // What is kept has at most half of the memory, so that passes are few.
        let needed = |top: usize| (2 * kept(top)).max(kept(top) + least(top).host);
        let wanted = kept_tokens(vocabulary, top);
        let fitting = (TOP_MIN.min(wanted)..=wanted).rev().find(|top| needed(*top) <= memory);
        let top = fitting.ok_or_else(|| {
            let message = format!(
                "{parents} parents on {counted} tokens take at least {} of memory, and it may take {}",
                bytes(needed(TOP_MIN.min(wanted))),
                bytes(memory)
            );
            Error::config(message).hint("give fewer texts, set a smaller --window, or more --host-memory")
        })?;
        let shape = shape(top);
        let needs = |tokens: usize| family.bytes(tokens, longest, shape, machine);
        let own = machine.memory().unwrap_or(u64::MAX);
        if needs(longest).device > own {
            let (needed, given) = (bytes(needs(longest).device), bytes(own));
            let message = format!(
                "{parents} parents take at least {needed} of the device's memory, and they may take {given}"
            );
            return Err(
                Error::config(message).hint("set a smaller --window, more --device-memory, or --device cpu")
            );
        }
        let fits = |Needs { host, device }: Needs| kept(top) + host <= memory && device <= own;
        let (passes, most) = passes(windows, |tokens| fits(needs(tokens)));
        let Needs { host, device } = needs(most.max(longest));
        Ok(Self { shape, passes, bytes: kept(top) + host + device, device_bytes: device })
    }
}

/// Memory that a pass takes, in bytes.
struct Needs {
    host: u64,
    /// Of a device that has its own.
    device: u64,
}

/// The models, and how parents are made of them.
struct Family<'m> {
    models: Vec<&'m Model>,
    groups: Groups,
    listen: &'m dyn Listen,
}

impl<'m> Family<'m> {
    fn parents(&self) -> usize {
        self.origins().count()
    }

    fn names(&self) -> Vec<String> {
        let of = |Origin { model, group }: Origin| {
            let name = &self.models[model].name;
            let layers = group.map(|group| self.groups.layers(group));
            match layers.map(|layers| (layers.len(), layers)) {
                None => name.clone(),
                Some((1, layers)) => format!("{name} in layer {}", layers.start),
                Some((_, layers)) => format!("{name} in layers {} to {}", layers.start, layers.end - 1),
            }
        };
        self.origins().map(of).collect()
    }

    /// What a pass over so many tokens takes beside what is kept.
    fn bytes(&self, tokens: usize, longest: usize, shape: Shape, machine: &dyn Machine) -> Needs {
        let of_states = |decoder: &Decoder| (tokens * decoder.hidden * size_of::<f32>()) as u64;
        let decoders = || self.models.iter().map(|model| &model.decoder);
        let lasts: u64 = decoders().map(of_states).max().unwrap_or(0) * self.parents() as u64;
        let working = |decoder: &Decoder| machine.states_bytes(decoder, tokens as u64, longest as u64);
        let advancing = decoders().map(working).max().unwrap_or(0) + of_states(&self.models[0].decoder);
        let parents = self.parents() as u64;
        let logits = decoders().map(|decoder| machine.logits_bytes(decoder, tokens as u64, parents));
        let logits = logits.max_by_key(|logits| logits.own).expect("there is a model");
        let gathering = tokens as u64 * shape.gathering_bytes();
        match machine.memory() {
            None => Needs { host: lasts + advancing.max(logits.own + gathering), device: 0 },
            Some(_) => Needs { host: gathering + logits.host, device: lasts + advancing.max(logits.own) },
        }
    }

    /// The weights of a parent.
    fn weights(&self, Origin { model, group }: Origin, threads: usize) -> Grafted<'m, '_> {
        let reader = |model: usize| {
            let model: &'m Model = self.models[model];
            model.reader(threads, self.listen)
        };
        Grafted { first: reader(0), other: reader(model), groups: &self.groups, group, is_first: model == 0 }
    }

    /// Has all parents read some windows, and keeps what counts. Returns the sum of the shares of probability that are kept, over
    /// tokens and parents.
    fn read(
        &self,
        windows: &[&Window],
        shape: Shape,
        values: &mut [f32],
        (machine, threads): (&mut dyn Machine, usize),
        names: &[String],
    ) -> Result<f64> {
        let texts: Vec<&[u64]> = windows.iter().map(|window| &window.tokens[..]).collect();
        let (mut wanted, mut targets, mut start) = (Vec::new(), Vec::new(), 0);
        for window in windows {
            // What a token makes predicts the next.
            wanted.extend(start + window.counts_from - 1..start + window.tokens.len() - 1);
            targets.extend(window.tokens[window.counts_from..].iter().map(|target| *target as usize));
            start += window.tokens.len();
        }
        let lasts = self.lasts(&texts, &wanted, (machine, threads))?;
        let mut weights: Vec<_> = self.origins().map(|origin| self.weights(origin, threads)).collect();
        let sides = lasts.iter().zip(&mut weights);
        let mut sides: Vec<_> = sides.map(|(last, weights)| (last, weights as &mut dyn Weights)).collect();
        let of_tokens = values.chunks_exact_mut(shape.stride()).zip(&targets);
        let mut gatherings: Vec<_> =
            of_tokens.map(|(into, target)| Gathering::new(shape, into, *target)).collect();
        let vocabulary = self.models[0].decoder.vocabulary;
        logits(&mut sides, vocabulary, machine, &mut gatherings, Gathering::take)?;
        self.listen.advanced(start * shape.parents);
        let shares = gatherings.into_iter().flat_map(Gathering::finish).sum();
        let mut odd = vec![0; names.len()];
        for token in values.chunks_exact(shape.stride()) {
            odd.iter_mut().zip(token).for_each(|(odd, target)| *odd += usize::from(!target.is_finite()));
        }
        // What is wrong with the first shows in the differences of all.
        match odd.iter().position(|odd| *odd > 0) {
            None => Ok(shares),
            Some(parent) => {
                let message = format!("{}: {} probabilities are NaN or 0", names[parent], odd[parent]);
                let hint = "its weights hold NaN or infinity, or states overflow: `mergeforge plan` and the merge's report name such tensors";
                Err(Error::input(message).hint(hint))
            }
        }
    }

    /// What each parent is.
    fn origins(&self) -> impl Iterator<Item = Origin> {
        let groups = if self.groups.count() > 1 { self.groups.count() } else { 0 };
        let of_groups = (1..self.models.len())
            .flat_map(move |model| (0..groups).map(move |group| Origin { model, group: Some(group) }));
        let whole = (1..self.models.len()).map(|model| Origin { model, group: None });
        std::iter::once(Origin { model: 0, group: None }).chain(of_groups).chain(whole)
    }

    /// The last states of all parents, in their order.
    fn lasts(
        &self,
        texts: &[&[u64]],
        wanted: &[usize],
        (machine, threads): (&mut dyn Machine, usize),
    ) -> Result<Vec<Final>> {
        let tokens: usize = texts.iter().map(|text| text.len()).sum();
        let mut lasts: Vec<Option<Final>> = (0..self.parents()).map(|_| None).collect();
        let mut of_first = self.weights(Origin { model: 0, group: None }, threads);
        let mut common: Option<States<'_>> = None;
        for group in 0..self.groups.count() {
            let layers = self.groups.layers(group);
            // Whole models begin with the first group, and the others are the first model up to theirs.
            let begins =
                |(_, origin): &(usize, Origin)| origin.model > 0 && origin.group.unwrap_or(0) == group;
            for (parent, origin) in self.origins().enumerate().filter(begins) {
                let mut weights = self.weights(origin, threads);
                let decoder = &self.models[if origin.group.is_some() { 0 } else { origin.model }].decoder;
                let mut states = match &common {
                    Some(common) => common.copy(machine)?,
                    None => States::of(decoder, texts, &mut weights, machine)?,
                };
                for layer in layers.start..decoder.layers {
                    states.advance(layer, &mut weights, machine)?;
                    self.listen.advanced(tokens);
                }
                lasts[parent] = Some(Final::of(&states, wanted, &mut weights, machine)?);
            }
            let states = match &mut common {
                Some(states) => states,
                None => common.insert(States::of(&self.models[0].decoder, texts, &mut of_first, machine)?),
            };
            for layer in layers {
                states.advance(layer, &mut of_first, machine)?;
                self.listen.advanced(tokens);
            }
        }
        let common = common.expect("there is a group");
        lasts[0] = Some(Final::of(&common, wanted, &mut of_first, machine)?);
        Ok(lasts.into_iter().map(|last| last.expect("all parents were read")).collect())
    }
}

/// What a parent is: a model, or the first one with its tensors in a group of layers.
#[derive(Debug, Clone, Copy)]
struct Origin {
    model: usize,
    group: Option<usize>,
}

/// Weights of the first model, but for those of another: all, or a group of layers.
struct Grafted<'m, 'g> {
    first: Reader<'m>,
    other: Reader<'m>,
    groups: &'g Groups,
    group: Option<usize>,
    is_first: bool,
}

impl<'m> Grafted<'m, '_> {
    fn of(&mut self, name: &str) -> &mut Reader<'m> {
        if self.is_other(name) { &mut self.other } else { &mut self.first }
    }

    fn is_other(&self, name: &str) -> bool {
        !self.is_first && self.group.is_none_or(|group| self.groups.of_tensor(name) == group)
    }
}

impl Weights for Grafted<'_, '_> {
    fn has(&self, name: &str) -> bool {
        if self.is_other(name) { self.other.has(name) } else { self.first.has(name) }
    }

    fn read(&mut self, name: &str, first: u64, into: &mut [f32]) -> Result<()> {
        self.of(name).read(name, first, into)
    }

    fn go_on(&mut self) -> Result<()> {
        self.first.go_on()
    }
}

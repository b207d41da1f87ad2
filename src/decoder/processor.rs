//! The processor as what computes on hidden states: in one order, or as fast as it can.

use std::sync::Mutex;

use super::Decoder;
use super::fastest;
use super::machine::{
    Attention, Head, Heads, LogitsBytes, Machine, Room, Rows, Take, floats_per_token, widest,
};
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

/// The processor, with some threads.
#[derive(Debug)]
pub struct Processor {
    sums: Sums,
    threads: usize,
    /// Memory that is free for what comes next.
    rooms: Vec<Vec<f32>>,
    /// Some rows of a matrix.
    rows: Vec<f32>,
    /// The rows by [`LANES`], as [`add_product`] takes them.
    panels: Vec<[f32; LANES]>,
}

/// The most elements of a matrix that are in memory at a time: whole rows, [`LANES`] of them or more.
const BLOCK: usize = 1 << 20;

/// Parts of attention that each thread takes between two questions whether to go on: those at a text's end take longest.
const JOBS: usize = 16;

/// Tokens that one thread takes at a time. In a product all of them go past [`LANES`] rows of a matrix, which stay in the cache.
const TOKENS: usize = 16 * ROWS;

/// Elements of gates that a thread takes at a time.
const GATES: usize = 1 << 16;

/// The most tokens whose logits a thread has in memory.
const LOGITS_TOKENS: usize = 512;

impl Processor {
    /// With so many threads.
    pub fn new(sums: Sums, threads: usize) -> Self {
        Self { sums, threads, rooms: Vec::new(), rows: Vec::new(), panels: Vec::new() }
    }

    /// Of so many tokens, how many a thread takes at a time in a product.
    fn tokens(&self, all: usize) -> usize {
        match self.sums {
            Sums::Ordered => TOKENS,
            Sums::Fastest => all.div_ceil(self.threads).clamp(TOKENS, fastest::TOKENS),
        }
    }
}

/// The values of a room.
fn here(room: &Room) -> &[f32] {
    let Room::Here(values) = room else { unreachable!("the processor has no other rooms") };
    values
}

/// The same, to be changed.
fn here_mut(room: &mut Room) -> &mut [f32] {
    let Room::Here(values) = room else { unreachable!("the processor has no other rooms") };
    values
}

/// How many rows of a matrix with so many columns are in memory at a time.
fn rows_at_once(columns: usize) -> usize {
    (BLOCK / columns / LANES).max(1) * LANES
}

impl Machine for Processor {
    fn id(&self) -> String {
        "cpu".into()
    }

    fn memory(&self) -> Option<u64> {
        None
    }

    fn states_bytes(&self, decoder: &Decoder, tokens: u64, longest: u64) -> u64 {
        let attending = match self.sums {
            Sums::Ordered => 1,
            Sums::Fastest => TOKENS,
        };
        let floats = tokens * floats_per_token(decoder) as u64
            + longest * (decoder.head + self.threads * attending) as u64
            + 2 * self.asked_max(decoder);
        floats * size_of::<f32>() as u64
    }

    fn logits_bytes(&self, decoder: &Decoder, _: u64, models: u64) -> LogitsBytes {
        let rows = rows_at_once(decoder.hidden).min(decoder.vocabulary);
        let floats = rows * decoder.hidden + self.threads * LOGITS_TOKENS * rows;
        LogitsBytes { own: models * (floats * size_of::<f32>()) as u64, host: 0 }
    }

    fn asked_max(&self, decoder: &Decoder) -> u64 {
        BLOCK.max(widest(decoder) * LANES) as u64
    }

    fn room(&mut self, len: usize) -> Result<Room> {
        let size = |place: &usize| self.rooms[*place].capacity();
        let all = || 0..self.rooms.len();
        let place =
            all().filter(|place| size(place) >= len).min_by_key(size).or_else(|| all().max_by_key(size));
        let mut room = place.map_or_else(Vec::new, |place| self.rooms.swap_remove(place));
        if room.capacity() < len {
            // No second copy of what is thrown away.
            drop(room);
            return self.lasting_room(len);
        }
        room.clear();
        room.resize(len, 0.0);
        Ok(Room::Here(room))
    }

    fn lasting_room(&mut self, len: usize) -> Result<Room> {
        Ok(Room::Here(vec![0.0; len]))
    }

    fn leave(&mut self, room: Room) {
        let Room::Here(values) = room else { unreachable!("the processor has no other rooms") };
        self.rooms.push(values);
    }

    fn clear(&mut self) -> Result<()> {
        self.rooms = Vec::new();
        Ok(())
    }

    fn put(&mut self, values: &[f32], room: &mut Room, first: usize) -> Result<()> {
        here_mut(room)[first..][..values.len()].copy_from_slice(values);
        Ok(())
    }

    fn get(&mut self, room: &Room, first: usize, into: &mut [f32]) -> Result<()> {
        into.copy_from_slice(&here(room)[first..][..into.len()]);
        Ok(())
    }

    fn copy(
        &mut self,
        (from, first): (&Room, usize),
        (to, at): (&mut Room, usize),
        len: usize,
    ) -> Result<()> {
        here_mut(to)[at..][..len].copy_from_slice(&here(from)[first..][..len]);
        Ok(())
    }

    fn norm(&mut self, rows: &mut Room, weight: &[f32], epsilon: f32) -> Result<()> {
        let parts = here_mut(rows).chunks_mut(TOKENS * weight.len());
        each(self.threads, parts, |rows| norm(rows, weight, epsilon));
        Ok(())
    }

    fn add_product(
        &mut self,
        x: &Room,
        y: &mut Room,
        (inputs, outputs): (usize, usize),
        read: Rows<'_>,
    ) -> Result<()> {
        let (x, y) = (here(x), here_mut(y));
        let (at_once, tokens) = (rows_at_once(inputs), self.tokens(x.len() / inputs));
        for first in (0..outputs).step_by(at_once) {
            let end = outputs.min(first + at_once);
            self.rows.resize((end - first) * inputs, 0.0);
            read(first, &mut self.rows)?;
            let Self { sums, threads, rows, panels, .. } = &mut *self;
            let parts = x.chunks(tokens * inputs).zip(y.chunks_mut(tokens * outputs));
            match *sums {
                Sums::Fastest => each(*threads, parts, |(x, y)| {
                    fastest::add_product(x, rows, inputs, y, (first, end, outputs));
                }),
                Sums::Ordered => {
                    to_panels(rows, inputs, panels);
                    each(*threads, parts, |(x, y)| {
                        for (panel, at) in panels.chunks_exact(inputs).zip((first..).step_by(LANES)) {
                            add_product(x, panel, inputs, 1.0, y, (at, end, outputs));
                        }
                    });
                }
            }
        }
        Ok(())
    }

    fn add_bias(&mut self, rows: &mut Room, bias: &[f32]) -> Result<()> {
        for row in here_mut(rows).chunks_exact_mut(bias.len()) {
            row.iter_mut().zip(bias).for_each(|(x, bias)| *x += bias);
        }
        Ok(())
    }

    fn attend(
        &mut self,
        [q, k, v]: [&mut Room; 3],
        attention: &Attention<'_>,
        go_on: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Room> {
        let heads = &attention.heads;
        let (queries, keys) = (heads.query_columns(), heads.key_columns());
        let mut found = self.room(q.len())?;
        let mut jobs = Vec::new();
        let (mut q, mut k, mut v, mut rest) = (here_mut(q), here_mut(k), here(v), here_mut(&mut found));
        for len in attention.lens {
            let (own_q, own_k, own_v, own_found);
            (own_q, q) = q.split_at_mut(len * queries);
            (own_k, k) = k.split_at_mut(len * keys);
            (own_v, v) = v.split_at(len * keys);
            (own_found, rest) = rest.split_at_mut(len * queries);
            rotate(own_q, queries, heads.width, attention.rotations);
            rotate(own_k, keys, heads.width, attention.rotations);
            let (own_q, own_k) = (&*own_q, &*own_k);
            let parts = own_q.chunks(TOKENS * queries).zip(own_found.chunks_mut(TOKENS * queries));
            let firsts = (0..).step_by(TOKENS);
            jobs.extend(parts.zip(firsts).map(|((q, found), first)| (q, own_k, own_v, found, first)));
        }
        let mut jobs = jobs.into_iter().peekable();
        while jobs.peek().is_some() {
            go_on()?;
            let some = jobs.by_ref().take(JOBS * self.threads);
            each(self.threads, some, |(q, k, v, found, first)| match self.sums {
                Sums::Ordered => {
                    (0..heads.queries).for_each(|number| attend(q, k, v, found, first, number, heads));
                }
                Sums::Fastest => fastest::attend(q, k, v, found, first, heads),
            });
        }
        Ok(found)
    }

    fn gate(&mut self, gate: &mut Room, up: &Room) -> Result<()> {
        let gated = match self.sums {
            Sums::Ordered => gate_ordered,
            Sums::Fastest => fastest::gate,
        };
        let parts = here_mut(gate).chunks_mut(GATES).zip(here(up).chunks(GATES));
        each(self.threads, parts, |(gate, up)| gated(gate, up));
        Ok(())
    }

    fn logits_rows(&self, columns: usize) -> usize {
        rows_at_once(columns)
    }

    fn logits_part(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.threads).clamp(1, LOGITS_TOKENS)
    }

    fn logits(&mut self, models: &[Head<'_>], take: Take<'_>) -> Result<()> {
        let tokens = models.first().map_or(0, |model| model.states.len() / model.inputs);
        let part = self.logits_part(tokens);
        each(self.threads, 0..tokens.div_ceil(part), |number| {
            let of_model = |Head { states, rows, inputs }: &Head<'_>| {
                let states = here(states).chunks(part * inputs).nth(number).expect("the part is there");
                let (tokens, count) = (states.len() / inputs, rows.len() / inputs);
                let mut y = vec![0.0; tokens * count];
                fastest::add_product(states, rows, *inputs, &mut y, (0, count, count));
                y
            };
            let logits: Vec<Vec<f32>> = models.iter().map(of_model).collect();
            take(number, &logits.iter().map(|of| &of[..]).collect::<Vec<_>>());
        });
        Ok(())
    }
}

/// Turns every head by its token's position. The first half of a head pairs with the second, as checkpoints have it.
fn rotate(x: &mut [f32], columns: usize, width: usize, rotations: &[(f32, f32)]) {
    let half = width / 2;
    for (token, rotations) in x.chunks_exact_mut(columns).zip(rotations.chunks_exact(half)) {
        for head in token.chunks_exact_mut(width) {
            let (first, second) = head.split_at_mut(half);
            for ((a, b), (cos, sin)) in first.iter_mut().zip(second).zip(rotations) {
                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
            }
        }
    }
}

/// Puts rows of so many columns side by side, by [`LANES`].
fn to_panels(rows: &[f32], inputs: usize, panels: &mut Vec<[f32; LANES]>) {
    panels.clear();
    panels.resize((rows.len() / inputs).div_ceil(LANES) * inputs, [0.0; LANES]);
    for (row, values) in rows.chunks_exact(inputs).enumerate() {
        let panel = &mut panels[row / LANES * inputs..][..inputs];
        panel.iter_mut().zip(values).for_each(|(lanes, value)| lanes[row % LANES] = *value);
    }
}

/// What one head of some tokens attends to: `first` is the place of the first of them in their text, which has these keys and values.
fn attend(q: &[f32], k: &[f32], v: &[f32], out: &mut [f32], first: usize, number: usize, sizes: &Heads) {
    let Heads { shared_by, width, window, .. } = *sizes;
    let (queries, keys, shared) = (sizes.query_columns(), sizes.key_columns(), number / shared_by);
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
fn norm(rows: &mut [f32], weight: &[f32], epsilon: f32) {
    for row in rows.chunks_exact_mut(weight.len()) {
        let squares = row.iter().fold(0.0, |sum, x| sum + f64::from(*x) * f64::from(*x));
        let scale = (1.0 / (squares / weight.len() as f64 + f64::from(epsilon)).sqrt()) as f32;
        row.iter_mut().zip(weight).for_each(|(x, weight)| *x = *x * scale * weight);
    }
}

/// Does all of some work, on several threads.
fn each<T: Send>(threads: usize, work: impl Iterator<Item = T> + Send, job: impl Fn(T) + Sync) {
    let work = Mutex::new(work);
    let next = || work.lock().unwrap_or_else(std::sync::PoisonError::into_inner).next();
    threads::share(threads, |_| {
        while let Some(part) = next() {
            job(part);
        }
    });
}

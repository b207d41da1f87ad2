//! A GPU as what computes on hidden states.

use std::sync::{Mutex, PoisonError};

use super::Decoder;
use super::machine::{
    Attention, Head, Heads, LogitsBytes, Machine, Room, Rows, Take, floats_per_token, widest,
};
use crate::backend::algebra::{self, Algebra, HeadSizes, Numbers, Outgoing};
use crate::backend::device::Device;
use crate::error::Result;
use crate::threads;

/// An NVIDIA GPU, and threads that take what it gives.
#[derive(Debug)]
pub struct Cuda {
    algebra: Algebra,
    memory: u64,
    threads: usize,
    /// Cosines and sines as they were needed last, and where they are.
    turns: Option<(Vec<f32>, Numbers)>,
    /// Logits of each model: those that arrive, while threads take those that came before.
    arriving: [Vec<Outgoing>; 2],
}

/// The tokens whose logits a thread takes at a time, and the most rows of a head that they are of.
const LOGITS_TOKENS: usize = 128;
const LOGITS_ROWS: usize = 2048;

/// The tokens whose logits are on their way together: fewer in more models.
fn logits_tokens(models: usize) -> usize {
    LOGITS_TOKENS * (64 / models.max(1)).clamp(1, 16)
}

impl Cuda {
    /// The devices that may be opened.
    ///
    /// # Errors
    /// Kind `Device`: there is no driver.
    pub fn devices() -> Result<Vec<Device>> {
        Algebra::devices()
    }

    /// Opens a device, of whose memory so many bytes may be used (nothing said: nine tenths of what is free), but for those that are
    /// left to others.
    ///
    /// # Errors
    /// Kind `Device`: it is no NVIDIA GPU of compute capability 8.0, or there is no cuBLAS. Kind `DeviceMemory`: it is full.
    pub fn open(device: &Device, threads: usize, memory: Option<u64>, left: u64) -> Result<Self> {
        let algebra = Algebra::open(device)?;
        let memory = memory.map_or_else(|| algebra.free_bytes().map(|free| free / 10 * 9), Ok)?;
        let memory = memory.saturating_sub(left);
        Ok(Self { algebra, memory, threads, turns: None, arriving: Default::default() })
    }
}

/// The numbers of a room.
fn there(room: &Room) -> &Numbers {
    let Room::There(numbers) = room else { unreachable!("a device has no other rooms") };
    numbers
}

/// The same, to be changed.
fn there_mut(room: &mut Room) -> &mut Numbers {
    let Room::There(numbers) = room else { unreachable!("a device has no other rooms") };
    numbers
}

/// How many rows of a matrix with so many columns are in memory at a time.
fn rows_at_once(columns: usize) -> usize {
    (algebra::BLOCK / columns).max(1)
}

impl Heads {
    fn sizes(&self) -> HeadSizes {
        let Self { queries, shared_by, width, window } = *self;
        HeadSizes { keys: queries / shared_by, shared_by, width, window: window.unwrap_or(usize::MAX) }
    }
}

/// What numbers take, and their terms.
const NUMBER: u64 = size_of::<f32>() as u64;
const OF_TERMS: u64 = (algebra::TERMS * size_of::<u16>()) as u64;

impl Machine for Cuda {
    fn id(&self) -> String {
        self.algebra.id().to_owned()
    }

    fn memory(&self) -> Option<u64> {
        Some(self.memory)
    }

    fn states_bytes(&self, decoder: &Decoder, tokens: u64, longest: u64) -> u64 {
        let rows = self.asked_max(decoder) * (NUMBER + OF_TERMS);
        let Decoder { heads, key_heads, head, .. } = *decoder;
        let heads = Heads { queries: heads, shared_by: heads / key_heads, width: head, window: None };
        let scores = Algebra::scores(&heads.sizes(), longest as usize) as u64;
        // One room more than the processor has: what attention found is still there where terms took the place of another.
        let of_tokens =
            floats_per_token(decoder) as u64 * NUMBER + widest(decoder) as u64 * (NUMBER + OF_TERMS);
        tokens * of_tokens + (scores + longest * head as u64) * NUMBER + rows + algebra::OF_CUBLAS
    }

    fn logits_bytes(&self, decoder: &Decoder, tokens: u64, models: u64) -> LogitsBytes {
        let rows = self.logits_rows(decoder.hidden).min(decoder.vocabulary) as u64;
        let tokens = tokens.min(logits_tokens(models as usize) as u64);
        let hidden = decoder.hidden as u64;
        LogitsBytes {
            own: models * rows * hidden * OF_TERMS
                + rows * hidden * NUMBER
                + tokens * (hidden * OF_TERMS + rows * NUMBER)
                + algebra::OF_CUBLAS,
            host: models * rows * (hidden + 2 * tokens) * NUMBER,
        }
    }

    fn asked_max(&self, decoder: &Decoder) -> u64 {
        let largest = decoder.hidden * decoder.inner.max(decoder.heads * decoder.head);
        largest.min(algebra::BLOCK).max(widest(decoder)) as u64
    }

    fn room(&mut self, len: usize) -> Result<Room> {
        self.algebra.room(len).map(Room::There)
    }

    fn lasting_room(&mut self, len: usize) -> Result<Room> {
        self.algebra.lasting_room(len).map(Room::There)
    }

    fn leave(&mut self, room: Room) {
        // It goes back by itself.
        drop(room);
    }

    fn clear(&mut self) -> Result<()> {
        (self.turns, self.arriving) = (None, Default::default());
        self.algebra.clear()
    }

    fn put(&mut self, values: &[f32], room: &mut Room, first: usize) -> Result<()> {
        self.algebra.put(values, there_mut(room), first)
    }

    fn get(&mut self, room: &Room, first: usize, into: &mut [f32]) -> Result<()> {
        self.algebra.get(there(room), first, into)
    }

    fn copy(
        &mut self,
        (from, first): (&Room, usize),
        (to, at): (&mut Room, usize),
        len: usize,
    ) -> Result<()> {
        self.algebra.copy((there(from), first), (there_mut(to), at), len)
    }

    fn norm(&mut self, rows: &mut Room, weight: &[f32], epsilon: f32) -> Result<()> {
        self.algebra.norm(there_mut(rows), weight, epsilon)
    }

    fn add_product(
        &mut self,
        x: &Room,
        y: &mut Room,
        (inputs, outputs): (usize, usize),
        read: Rows<'_>,
    ) -> Result<()> {
        let x = self.algebra.terms_of(there(x), 0, x.len())?;
        let (at_once, mut rows) = (rows_at_once(inputs), Vec::new());
        for first in (0..outputs).step_by(at_once) {
            let end = outputs.min(first + at_once);
            rows.resize((end - first) * inputs, 0.0);
            read(first, &mut rows)?;
            let rows = self.algebra.terms_of_values(&rows)?;
            self.algebra.add_product(&x, &rows, inputs, there_mut(y), (first, end, outputs))?;
        }
        Ok(())
    }

    fn add_bias(&mut self, rows: &mut Room, bias: &[f32]) -> Result<()> {
        self.algebra.add_bias(there_mut(rows), bias)
    }

    fn attend(
        &mut self,
        [q, k, v]: [&mut Room; 3],
        attention: &Attention<'_>,
        go_on: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Room> {
        let (lens, sizes) = (attention.lens, attention.heads.sizes());
        let longest = lens.iter().copied().max().unwrap_or(0);
        let turns: Vec<f32> = attention.rotations.iter().flat_map(|(cos, sin)| [*cos, *sin]).collect();
        if self.turns.as_ref().is_none_or(|(known, _)| *known != turns) {
            let mut there = self.algebra.lasting_room(turns.len())?;
            self.algebra.put(&turns, &mut there, 0)?;
            self.turns = Some((turns, there));
        }
        let rotations = &self.turns.as_ref().expect("they are there").1;
        let (q, k, v) = (there_mut(q), there_mut(k), there(v));
        self.algebra.rotate(q, (attention.heads.queries, sizes.width), lens, rotations)?;
        self.algebra.rotate(k, (sizes.keys, sizes.width), lens, rotations)?;
        let mut found = self.algebra.room(q.len())?;
        let mut scores = self.algebra.room(Algebra::scores(&sizes, longest))?;
        let mut start = 0;
        for len in lens {
            for first in (0..*len).step_by(algebra::QUERIES) {
                go_on()?;
                let end = (*len).min(first + algebra::QUERIES);
                self.algebra.attend([q, k, v], &mut scores, &mut found, &sizes, (start, first, end))?;
            }
            start += len;
        }
        Ok(Room::There(found))
    }

    fn gate(&mut self, gate: &mut Room, up: &Room) -> Result<()> {
        self.algebra.gate(there_mut(gate), there(up))
    }

    fn logits_rows(&self, columns: usize) -> usize {
        rows_at_once(columns).min(LOGITS_ROWS)
    }

    fn logits_part(&self, _: usize) -> usize {
        LOGITS_TOKENS
    }

    fn logits(&mut self, models: &[Head<'_>], take: Take<'_>) -> Result<()> {
        let tokens = models.first().map_or(0, |model| model.states.len() / model.inputs);
        let at_once = logits_tokens(models.len());
        let most = models.iter().map(|Head { rows, inputs, .. }| rows.len() / inputs).max().unwrap_or(0);
        self.make_room_for_logits(models.len(), at_once.min(tokens) * most)?;
        let rows: Vec<_> =
            models.iter().map(|model| self.algebra.terms_of_values(model.rows)).collect::<Result<_>>()?;
        let mut before = None;
        for (turn, first) in (0..tokens).step_by(at_once).enumerate() {
            let some = at_once.min(tokens - first);
            for (number, (Head { states, rows: own, inputs }, rows)) in models.iter().zip(&rows).enumerate() {
                let count = own.len() / inputs;
                let x = self.algebra.terms_of(there(states), first * inputs, some * inputs)?;
                let mut y = self.algebra.room(some * count)?;
                self.algebra.add_product(&x, rows, *inputs, &mut y, (0, count, count))?;
                self.algebra.send_out(&y, &mut self.arriving[turn % 2][number])?;
            }
            // While these come, those before are taken.
            if let Some(before) = before.replace((turn, first, some)) {
                self.hand_over(models, before, take)?;
            }
        }
        before.map_or(Ok(()), |last| self.hand_over(models, last, take))
    }
}

impl Cuda {
    /// Memory for the logits of so many models, so many numbers each, twice.
    fn make_room_for_logits(&mut self, models: usize, numbers: usize) -> Result<()> {
        for side in &mut self.arriving {
            if side.len() != models || side.iter().any(|outgoing| outgoing.room() < numbers) {
                *side = Vec::new();
                *side = (0..models).map(|_| self.algebra.outgoing(numbers)).collect::<Result<_>>()?;
            }
        }
        Ok(())
    }

    /// Hands logits of some tokens over, part by part: those of a turn, from a token on.
    fn hand_over(
        &self,
        models: &[Head<'_>],
        (turn, first, some): (usize, usize, usize),
        take: Take<'_>,
    ) -> Result<()> {
        let logits = self.arriving[turn % 2]
            .iter()
            .zip(models)
            .map(|(outgoing, Head { rows, inputs, .. })| Ok((outgoing.numbers()?, rows.len() / inputs)));
        let logits = logits.collect::<Result<Vec<_>>>()?;
        let parts = Mutex::new(0..some.div_ceil(LOGITS_TOKENS));
        let next = || parts.lock().unwrap_or_else(PoisonError::into_inner).next();
        threads::share(self.threads, |_| {
            while let Some(part) = next() {
                let mut own: Vec<&[f32]> = Vec::with_capacity(logits.len());
                for (of, count) in &logits {
                    own.push(of.chunks(LOGITS_TOKENS * count).nth(part).expect("it is there"));
                }
                take(first / LOGITS_TOKENS + part, &own);
            }
        });
        Ok(())
    }
}

//! A GPU as what computes on hidden states.

use std::sync::Mutex;

use super::Decoder;
use super::machine::{Attention, Head, Heads, Machine, Room, Rows, Take, floats_per_token, widest};
use crate::backend::algebra::{self, Algebra, HeadSizes, Numbers};
use crate::backend::device::Device;
use crate::error::Result;
use crate::threads;

/// An NVIDIA GPU, and threads that take what it gives.
#[derive(Debug)]
pub struct Cuda {
    algebra: Algebra,
    memory: u64,
    threads: usize,
}

/// The tokens whose logits a thread takes at a time.
const LOGITS_TOKENS: usize = 512;

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
        Ok(Self { algebra, memory: memory.saturating_sub(left), threads })
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
        let of_tokens = floats_per_token(decoder) as u64 * NUMBER + widest(decoder) as u64 * OF_TERMS;
        tokens * of_tokens + (scores + longest * head as u64) * NUMBER + rows + algebra::OF_CUBLAS
    }

    fn logits_bytes(&self, decoder: &Decoder) -> u64 {
        let rows = rows_at_once(decoder.hidden).min(decoder.vocabulary);
        let tokens = self.threads * LOGITS_TOKENS;
        let of_rows = (rows * decoder.hidden) as u64 * (NUMBER + OF_TERMS);
        of_rows + (tokens * decoder.hidden) as u64 * OF_TERMS + (tokens * rows) as u64 * NUMBER
    }

    fn asked_max(&self, decoder: &Decoder) -> u64 {
        algebra::BLOCK.max(widest(decoder)) as u64
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
        let mut rotations = self.algebra.room(turns.len())?;
        self.algebra.put(&turns, &mut rotations, 0)?;
        let (q, k, v) = (there_mut(q), there_mut(k), there(v));
        self.algebra.rotate(q, (attention.heads.queries, sizes.width), lens, &rotations)?;
        self.algebra.rotate(k, (sizes.keys, sizes.width), lens, &rotations)?;
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
        rows_at_once(columns)
    }

    fn logits_part(&self, _: usize) -> usize {
        LOGITS_TOKENS
    }

    fn logits(&mut self, models: &[Head<'_>], take: Take<'_>) -> Result<()> {
        let tokens = models.first().map_or(0, |model| model.states.len() / model.inputs);
        let rows: Vec<_> =
            models.iter().map(|model| self.algebra.terms_of_values(model.rows)).collect::<Result<_>>()?;
        let at_once = self.threads * LOGITS_TOKENS;
        for first in (0..tokens).step_by(at_once) {
            let some = at_once.min(tokens - first);
            let mut logits = Vec::with_capacity(models.len());
            for (Head { states, rows: own, inputs }, rows) in models.iter().zip(&rows) {
                let count = own.len() / inputs;
                let x = self.algebra.terms_of(there(states), first * inputs, some * inputs)?;
                let mut y = self.algebra.room(some * count)?;
                self.algebra.add_product(&x, rows, *inputs, &mut y, (0, count, count))?;
                let mut found = vec![0.0; some * count];
                self.algebra.get(&y, 0, &mut found)?;
                logits.push((found, count));
            }
            let parts = Mutex::new(0..some.div_ceil(LOGITS_TOKENS));
            let next = || parts.lock().unwrap_or_else(std::sync::PoisonError::into_inner).next();
            threads::share(self.threads, |_| {
                while let Some(part) = next() {
                    let own: Vec<&[f32]> = logits
                        .iter()
                        .map(|(of, count)| of.chunks(LOGITS_TOKENS * count).nth(part).expect("it is there"))
                        .collect();
                    take(first / LOGITS_TOKENS + part, &own);
                }
            });
        }
        Ok(())
    }
}

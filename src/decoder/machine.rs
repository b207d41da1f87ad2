//! What computes on hidden states: the processor, or a device that has them in its own memory.

use std::fmt::Debug;

use super::Decoder;
use crate::backend::algebra::Numbers;
use crate::error::Result;

/// Memory of a machine for numbers in f32.
#[derive(Debug)]
pub enum Room {
    /// The processor's.
    Here(Vec<f32>),
    /// A device's.
    There(Numbers),
}

impl Room {
    /// How many numbers there are.
    pub fn len(&self) -> usize {
        match self {
            Self::Here(values) => values.len(),
            Self::There(numbers) => numbers.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Reads some rows of a matrix, from the row of this number on.
pub type Rows<'r> = &'r mut dyn FnMut(usize, &mut [f32]) -> Result<()>;

/// What computes on hidden states, which lie in its rooms row by row. A room of one machine is of no use to another.
pub trait Machine: Debug + Send {
    /// What it is, for reports: `cpu`, `cuda:0`.
    fn id(&self) -> String;

    /// The bytes of its own memory that it may use; none where it uses the host's.
    fn memory(&self) -> Option<u64>;

    /// The most bytes of memory that states of so many tokens take on their way through a layer, those of the longest text
    /// being so many.
    fn states_bytes(&self, decoder: &Decoder, tokens: u64, longest: u64) -> u64;

    /// What the logits of so many tokens take in so many models at a time, of which this is one.
    fn logits_bytes(&self, decoder: &Decoder, tokens: u64, models: u64) -> LogitsBytes;

    /// The most elements of a tensor that it asks for at once.
    fn asked_max(&self, decoder: &Decoder) -> u64;

    /// So many zeros, perhaps in memory of which there is more.
    ///
    /// # Errors
    /// There is no room for them.
    fn room(&mut self, len: usize) -> Result<Room>;

    /// The same for numbers that stay: memory of exactly that size.
    ///
    /// # Errors
    /// As [`Machine::room`].
    fn lasting_room(&mut self, len: usize) -> Result<Room>;

    /// Takes a room back, for what comes next: memory of the system takes longer to get than many a product.
    fn leave(&mut self, room: Room);

    /// Gives the memory of all rooms that were left back to the system.
    ///
    /// # Errors
    /// The device fails, here and below.
    fn clear(&mut self) -> Result<()>;

    /// Puts values into a room, from number `first` on.
    ///
    /// # Errors
    /// As [`Machine::clear`].
    fn put(&mut self, values: &[f32], room: &mut Room, first: usize) -> Result<()>;

    /// Gets values from a room, from number `first` on.
    ///
    /// # Errors
    /// As [`Machine::clear`].
    fn get(&mut self, room: &Room, first: usize, into: &mut [f32]) -> Result<()>;

    /// Copies so many numbers, between places of two rooms.
    ///
    /// # Errors
    /// As [`Machine::clear`].
    fn copy(&mut self, from: (&Room, usize), to: (&mut Room, usize), len: usize) -> Result<()>;

    /// Brings rows as long as `weight` to a mean square of 1, and multiplies them with it (Zhang and Sennrich, `RMSNorm`,
    /// <https://arxiv.org/abs/1910.07467>).
    ///
    /// # Errors
    /// As [`Machine::clear`].
    fn norm(&mut self, rows: &mut Room, weight: &[f32], epsilon: f32) -> Result<()>;

    /// Adds `x · Wᵀ` to `y`: of `columns`, `x` has rows of the first, and `y` of the second, as many as `W` has rows.
    ///
    /// # Errors
    /// As [`Machine::clear`]; those of `rows`.
    fn add_product(&mut self, x: &Room, y: &mut Room, columns: (usize, usize), rows: Rows<'_>) -> Result<()>;

    /// Adds a bias to each row.
    ///
    /// # Errors
    /// As [`Machine::clear`].
    fn add_bias(&mut self, rows: &mut Room, bias: &[f32]) -> Result<()>;

    /// Turns queries and keys by their positions, and gives what each query's causal attention within its text finds. Between parts
    /// of the work it asks whether to go on.
    ///
    /// # Errors
    /// As [`Machine::clear`]; those of `go_on`.
    fn attend(
        &mut self,
        qkv: [&mut Room; 3],
        attention: &Attention<'_>,
        go_on: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Room>;

    /// Multiplies `up` with the gate's `SiLU`, in place of the gate.
    ///
    /// # Errors
    /// As [`Machine::clear`].
    fn gate(&mut self, gate: &mut Room, up: &Room) -> Result<()>;

    /// How many rows of a matrix with so many columns logits are made with at a time.
    fn logits_rows(&self, columns: usize) -> usize;

    /// Of so many tokens, how many are a part in [`Machine::logits`].
    fn logits_part(&self, tokens: usize) -> usize;

    /// The products of last states of several models with as many rows of their heads. `take` gets them part by part: the number
    /// of the part, and of each model the products of the part's tokens. It may be called by several threads at once.
    ///
    /// # Errors
    /// As [`Machine::clear`].
    fn logits(&mut self, models: &[Head<'_>], take: Take<'_>) -> Result<()>;
}

/// Memory for logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogitsBytes {
    /// Of the machine's memory; that of one without its own is the host's.
    pub own: u64,
    /// Of the host's, beside that.
    pub host: u64,
}

/// Takes the logits of a part of the tokens: of each model its own.
pub type Take<'t> = &'t (dyn Fn(usize, &[&[f32]]) + Sync);

/// Last states of a model, and some rows of its head.
#[derive(Debug)]
pub struct Head<'h> {
    /// `tokens × inputs`.
    pub states: &'h Room,
    /// `count × inputs`.
    pub rows: &'h [f32],
    /// Columns of both.
    pub inputs: usize,
}

/// Attention within texts; neighbouring heads of queries share one of keys and values.
#[derive(Debug)]
pub struct Attention<'a> {
    /// The heads.
    pub heads: Heads,
    /// The tokens of each text, one behind the other.
    pub lens: &'a [usize],
    /// Cosine and sine of each pair of a head, at each position of the longest text.
    pub rotations: &'a [(f32, f32)],
}

/// The heads of a layer.
#[derive(Debug, Clone, Copy)]
pub struct Heads {
    /// Those of queries.
    pub queries: usize,
    /// How many of them share one of keys and values.
    pub shared_by: usize,
    /// Elements of one.
    pub width: usize,
    /// How many tokens back a token sees, itself included; none: all of them.
    pub window: Option<usize>,
}

impl Heads {
    /// The columns of queries.
    pub fn query_columns(&self) -> usize {
        self.queries * self.width
    }

    /// The columns of keys, and of values.
    pub fn key_columns(&self) -> usize {
        self.queries / self.shared_by * self.width
    }
}

/// The floats that states take on their way through a layer, a token: their own, and those of the rooms of a layer.
pub(super) fn floats_per_token(decoder: &Decoder) -> usize {
    let Decoder { hidden, inner, heads, key_heads, head, .. } = *decoder;
    let widest = hidden.max(heads * head);
    hidden + widest + 2 * inner.max(widest) + 2 * key_heads * head
}

/// The columns of the widest matrix.
pub(super) fn widest(decoder: &Decoder) -> usize {
    decoder.hidden.max(decoder.heads * decoder.head).max(decoder.inner)
}

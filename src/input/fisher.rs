//! Models averaged element by element, each as much as it says that the element matters to it: what `fisher` merges (Matena and
//! Raffel, Merging models with Fisher-weighted averaging, <https://arxiv.org/abs/2111.09832>).

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use super::{Floats, Made, ReadElements, fit, pieces};
use crate::dtype::{Float, encode};
use crate::error::{Error, Result};
use crate::instructions::for_each_instruction_set;

/// A weighted average of models `xᵢ` around the first, as f32.
///
/// With `pᵢ = wᵢ · max(Fᵢ, floor)` an element is `x₀ + (p₁·(x₁ − x₀) + p₂·(x₂ − x₀) + …) / (p₀ + p₁ + p₂ + …)`: sums from the first
/// to the last model, each operation rounded to f32. Without importance every `Fᵢ` is 1, and `pᵢ = wᵢ`.
#[derive(Debug, Clone, PartialEq)]
pub struct Fisher {
    models: Vec<Weighed>,
    floor: f32,
}

/// A model with its weight and what each element matters to it.
#[derive(Debug, Clone, PartialEq)]
pub struct Weighed {
    /// The model's tensor.
    pub model: Floats,
    /// Its weight, at least 0.
    pub weight: f32,
    /// The importance of its elements, at least 0 each.
    pub importance: Option<Stated>,
}

/// What a file states of a tensor's elements.
#[derive(Debug, Clone, PartialEq)]
pub struct Stated {
    /// The values.
    pub values: Floats,
    /// Which tensor of which file that is, for messages.
    pub name: Arc<str>,
}

/// The most elements of an input that are in memory at a time.
const PIECE: u64 = 1 << 15;

impl Fisher {
    /// The average of these models; no importance counts as less than `floor`.
    ///
    /// # Panics
    /// There are no models.
    pub fn new(models: Vec<Weighed>, floor: f32) -> Self {
        assert!(!models.is_empty(), "an average is of something");
        Self { models, floor }
    }
}

/// What is computed in.
#[derive(Default)]
struct Room {
    bytes: Vec<u8>,
    first: Vec<f32>,
    values: Vec<f32>,
    precisions: Vec<f32>,
    sum: Vec<f32>,
    divisor: Vec<f32>,
}

/// The vectors of f32 in it, with the bytes that one of them is read as.
const VECTORS: u64 = 6;

impl Made for Fisher {
    fn of(&self) -> Vec<usize> {
        let models = self.models.iter().map(|of| of.model.input);
        models.chain(self.models.iter().filter_map(|of| Some(of.importance.as_ref()?.values.input))).collect()
    }

    fn float(&self) -> Float {
        Float::F32
    }

    fn working_bytes(&self, elements: u64) -> u64 {
        VECTORS * Float::F32.bytes_of(elements.min(PIECE))
    }

    fn read(&self, range: Range<u64>, mut into: &mut [u8], from: &mut dyn ReadElements) -> Result<()> {
        let mut room = Room::default();
        for piece in pieces(range, PIECE) {
            let (own, rest) = into.split_at_mut(Float::F32.bytes_of(piece.end - piece.start) as usize);
            self.piece(&piece, &mut room, from)?;
            encode(Float::F32, &room.first, own);
            into = rest;
        }
        Ok(())
    }
}

impl Fisher {
    /// A piece of the average, in place of the first model.
    fn piece(&self, piece: &Range<u64>, room: &mut Room, from: &mut dyn ReadElements) -> Result<()> {
        let Room { bytes, first, values, precisions, sum, divisor } = room;
        let elements = (piece.end - piece.start) as usize;
        for vector in [&mut *first, &mut *values, &mut *precisions, &mut *sum, &mut *divisor] {
            fit(vector, elements);
        }
        sum.fill(0.0);
        for (place, Weighed { model, weight, importance }) in self.models.iter().enumerate() {
            match importance {
                None => precisions.fill(*weight),
                Some(importance) => {
                    importance.values.values(piece.start, precisions, bytes, from)?;
                    if !are_importance(precisions) {
                        return Err(no_importance(precisions, &importance.name, piece.start));
                    }
                    weigh(precisions, *weight, self.floor);
                }
            }
            if place == 0 {
                model.values(piece.start, first, bytes, from)?;
                divisor.copy_from_slice(precisions);
            } else {
                model.values(piece.start, values, bytes, from)?;
                add(sum, divisor, precisions, values, first);
            }
        }
        divide(first, sum, divisor);
        Ok(())
    }
}

for_each_instruction_set! {
    /// Whether all are numbers from 0 up.
    fn are_importance(values: &[f32]) -> bool {
        // Counted and not looked for, which makes a loop of vectors.
        let wrong = values.iter().map(|value| u32::from(!(0.0..f32::INFINITY).contains(value)));
        wrong.sum::<u32>() == 0
    }

    fn weigh(importance: &mut [f32], weight: f32, floor: f32) {
        for x in importance {
            *x = weight * if *x < floor { floor } else { *x };
        }
    }

    fn add(sum: &mut [f32], divisor: &mut [f32], precisions: &[f32], values: &[f32], first: &[f32]) {
        for ((((sum, divisor), p), x), first) in sum.iter_mut().zip(divisor).zip(precisions).zip(values).zip(first) {
            *sum += p * (x - first);
            *divisor += p;
        }
    }

    fn divide(first: &mut [f32], sum: &[f32], divisor: &[f32]) {
        for ((first, sum), divisor) in first.iter_mut().zip(sum).zip(divisor) {
            *first += sum / divisor;
        }
    }
}

/// The refusal of the first value that is none.
fn no_importance(values: &[f32], name: &str, start: u64) -> Error {
    let is_wrong = |value: &&f32| !(**value >= 0.0 && **value < f32::INFINITY);
    let (place, value) = (0..).zip(values).find(|(_, value)| is_wrong(value)).expect("there is one");
    let element: u64 = start + place;
    Error::input(format!("{name}: element {element} is {value}, and importance is a number from 0 up"))
        .hint("Fisher information is a mean of squared gradients: write that to the file, in a float type")
}

impl fmt::Display for Fisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = |Weighed { model, weight, importance }: &Weighed| match importance {
            Some(importance) => {
                format!("input {} by {weight} · input {}", model.input, importance.values.input)
            }
            None => format!("input {} by {weight}", model.input),
        };
        let models: Vec<String> = self.models.iter().map(of).collect();
        write!(f, "average of {}", models.join(", "))
    }
}

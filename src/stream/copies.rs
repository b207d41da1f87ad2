//! Tensors that are copied: bytes that need no arithmetic, and so no device. Whoever holds them has to agree.

use crate::backend::{OddValues, Output, ReadInputs, SpanResult, Tally};
use crate::checkpoint::Source;
use crate::dtype::{Dtype, Float, decode, encode, encode_narrowed, float_bytes, narrow_to_odd, widen};
use crate::error::{Error, Result};
use crate::input::{At, Input};
use crate::kernel::TILE;
use crate::plan::{Action, Copied, Plan, Tensor};
use crate::timeline::{By, Stage, Timeline};

/// What a worker copies through.
#[derive(Default)]
pub(super) struct Copier {
    first: Vec<u8>,
    other: Vec<u8>,
    encoded: Vec<u8>,
}

impl Copier {
    /// The bytes to store of a part of a tensor: those of the first holder, after all others were compared with it; converted
    /// where another type is stored. `name_of` gives the name of a holder's model.
    ///
    /// # Errors
    /// Those of `read`, and holders that differ.
    pub(super) fn copy(
        &mut self,
        (tensor, copied): (&Tensor, &Copied),
        bytes: usize,
        read: &mut dyn ReadInputs,
        name_of: impl Fn(usize) -> String,
        (timeline, by): (&Timeline, By),
    ) -> Result<Output<'_>> {
        self.first.resize(bytes, 0);
        self.other.resize(bytes, 0);
        read.read(0, 0, &mut self.first)?;
        for holder in 1..copied.holders.len() {
            read.read(0, holder, &mut self.other)?;
            if self.first != self.other {
                return Err(differ(tensor, &name_of(copied.holders[0]), &name_of(copied.holders[holder])));
            }
        }
        let mut odd = OddValues::default();
        let result = timeline.time(Stage::Compute, by, bytes as u64, || {
            convert(copied, &self.first, &mut self.encoded, &mut odd)
        });
        Ok(Output {
            result: SpanResult::Values(result),
            tally: Tally { odd, ..Tally::default() },
            redone: false,
        })
    }
}

/// The units that a copy is cut by, and the bytes of each: elements of the type where it is a float, else bytes.
pub(super) fn units(tensor: &Tensor, from: Option<Dtype>) -> (u64, usize) {
    match from {
        Some(float) => (tensor.elements, float_bytes(float)),
        None => (tensor.bytes, 1),
    }
}

/// The bytes to store: as they are when the type stays, else decoded and encoded, each element rounded once.
fn convert<'a>(copied: &Copied, bytes: &'a [u8], encoded: &'a mut Vec<u8>, odd: &mut OddValues) -> &'a [u8] {
    let (Some(from), Some(to)) = (copied.from, copied.to) else { return bytes };
    let (changes, from_bytes, to_bytes) = (from != to, float_bytes(from), float_bytes(to));
    let elements = bytes.len() / from_bytes;
    encoded.resize(if changes { elements * to_bytes } else { 0 }, 0);
    let mut values = [0.0; TILE];
    for first in (0..elements).step_by(TILE) {
        let len = TILE.min(elements - first);
        let (values, raw) = (&mut values[..len], &bytes[first * from_bytes..][..len * from_bytes]);
        match Float::of(from) {
            Some(float) => decode(float, raw, values),
            // Only what is infinite becomes so.
            None => narrow_to_odd(raw, values),
        }
        odd.count(values);
        if changes {
            let into = &mut encoded[first * to_bytes..][..len * to_bytes];
            odd.overflowed += match (Float::of(from), Float::of(to)) {
                (Some(_), Some(to)) => encode(to, values, into),
                (None, Some(to)) => encode_narrowed(to, raw, values, into),
                (_, None) => {
                    widen(values.iter().copied(), into);
                    0
                }
            };
        }
    }
    if changes { encoded } else { bytes }
}

/// Compares the beginnings of tensors that can only be copied where a holder is on the Hub, before all of it is fetched. A merge compares
/// them whole.
///
/// # Errors
/// Holders differ; one cannot be read.
pub fn check_beginnings(plan: &Plan, sources: &[Source]) -> Result<()> {
    /// What is compared of a tensor, and of how many.
    const BYTES: u64 = 4096;
    const TENSORS_MAX: usize = 64;
    let beginning = |input: &usize| -> Result<Option<Vec<u8>>> {
        let Input::Stored(At { source, tensor }) = &plan.inputs[*input] else { return Ok(None) };
        let tensor = sources[*source].tensor_at(*tensor);
        let mut bytes = vec![0; tensor.bytes.min(BYTES) as usize];
        sources[*source].peek(tensor, &mut bytes)?;
        Ok(Some(bytes))
    };
    let is_on_hub = |input: &usize| match &plan.inputs[*input] {
        Input::Stored(At { source, tensor }) => {
            sources[*source].is_on_hub(sources[*source].tensor_at(*tensor))
        }
        Input::Made(_) => false,
    };
    let copied = plan.tensors.iter().filter_map(|tensor| match &tensor.action {
        Action::Copy(copied) if copied.holders.len() > 1 && copied.holders.iter().any(is_on_hub) => {
            Some((tensor, copied))
        }
        _ => None,
    });
    for (tensor, copied) in copied.take(TENSORS_MAX) {
        let beginnings = copied.holders.iter().map(beginning).collect::<Result<Vec<_>>>()?;
        if let Some(other) = beginnings.iter().position(|bytes| *bytes != beginnings[0]) {
            let name = |holder: usize| plan.models[copied.models[holder]].name.as_str();
            return Err(differ(tensor, name(0), name(other)));
        }
    }
    Ok(())
}

fn differ(tensor: &Tensor, first: &str, other: &str) -> Error {
    Error::input(format!(
        "tensor {}: {first} and {other} hold different values of a tensor that can only be copied",
        tensor.name
    ))
    .hint("such a tensor is copied when all models agree on it; leave out the model that does not")
}

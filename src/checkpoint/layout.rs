//! Where every byte of an output goes, known before the first is written: the tensors, their shards and
//! headers. So any thread can write any piece at any time.

use std::cmp::Reverse;
use std::ops::Range;

use safetensors::tensor::TensorInfo as Record;
use serde_json::{Map, Value, json};

use crate::dtype::Dtype;

/// Data starts at a multiple of this, so that inside a file every element is aligned.
const ALIGNMENT_BYTES: usize = 8;

/// A tensor to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutTensor {
    /// Its name.
    pub name: String,
    /// The type of its elements.
    pub dtype: Dtype,
    /// Its shape, in elements; `[]` is a scalar.
    pub shape: Vec<usize>,
}

impl OutTensor {
    /// The bytes that its data takes.
    pub fn bytes(&self) -> u64 {
        self.shape.iter().map(|&length| length as u64).product::<u64>() * self.dtype.bitsize() as u64 / 8
    }
}

/// The files of an output checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// The safetensors files.
    pub shards: Vec<Shard>,
    /// Where each tensor goes, in the order in which they were given.
    pub places: Vec<Place>,
    /// The content of `model.safetensors.index.json`; one file needs none.
    pub index: Option<Vec<u8>>,
    /// Bytes of tensor data.
    pub total_bytes: u64,
    /// Bytes of the safetensors files, headers included.
    pub file_bytes: u64,
}

/// A safetensors file to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shard {
    /// Its name.
    pub file: String,
    /// Everything before the data: the length and the JSON, padded.
    pub header: Vec<u8>,
    /// Its size.
    pub bytes: u64,
}

/// Where a tensor goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Which shard.
    pub shard: usize,
    /// Where its data starts, from the start of the file.
    pub offset: u64,
    /// The bytes of its data.
    pub bytes: u64,
}

/// Lays tensors out in shards of at most `shard_bytes` of data (a larger tensor has a shard of its own).
///
/// Shards take the tensors in the given order (mergekit's rule). Inside a shard the widest types come first,
/// so that every tensor starts at a multiple of its element size.
pub fn layout(tensors: &[OutTensor], shard_bytes: u64) -> Layout {
    let sizes: Vec<u64> = tensors.iter().map(OutTensor::bytes).collect();
    let ranges = split(&sizes, shard_bytes);
    let mut places = vec![Place { shard: 0, offset: 0, bytes: 0 }; tensors.len()];
    let mut shards = Vec::with_capacity(ranges.len());
    for (shard, range) in ranges.iter().enumerate() {
        let mut order: Vec<usize> = range.clone().collect();
        order.sort_by_key(|&tensor| Reverse(tensors[tensor].dtype.bitsize()));
        let header = header(tensors, &order, &sizes);
        let mut end = header.len() as u64;
        for tensor in order {
            places[tensor] = Place { shard, offset: end, bytes: sizes[tensor] };
            end += sizes[tensor];
        }
        shards.push(Shard { file: file_name(shard, ranges.len()), header, bytes: end });
    }
    let total_bytes = sizes.iter().sum();
    let index = (shards.len() > 1).then(|| index(tensors, &places, &shards, total_bytes));
    let file_bytes = shards.iter().map(|shard| shard.bytes).sum();
    Layout { shards, places, index, total_bytes, file_bytes }
}

/// A tensor that would take a shard beyond the limit starts the next one. At least one shard.
fn split(sizes: &[u64], shard_bytes: u64) -> Vec<Range<usize>> {
    let mut ranges = Vec::new();
    let (mut first, mut filled) = (0, 0_u64);
    for (tensor, &bytes) in sizes.iter().enumerate() {
        if tensor > first && filled + bytes > shard_bytes {
            ranges.push(first..tensor);
            (first, filled) = (tensor, 0);
        }
        filled += bytes;
    }
    ranges.push(first..sizes.len());
    ranges
}

fn file_name(shard: usize, count: usize) -> String {
    if count == 1 {
        return "model.safetensors".into();
    }
    format!("model-{:05}-of-{count:05}.safetensors", shard + 1)
}

/// The length and the JSON of a file that holds these tensors in this order.
fn header(tensors: &[OutTensor], order: &[usize], sizes: &[u64]) -> Vec<u8> {
    let mut bytes = vec![0; ALIGNMENT_BYTES];
    bytes.extend(br#"{"__metadata__":{"format":"pt"}"#);
    let mut end = 0;
    for &tensor in order {
        let (start, OutTensor { name, dtype, shape }) = (end, &tensors[tensor]);
        end += sizes[tensor] as usize;
        let record = Record { dtype: *dtype, shape: shape.clone(), data_offsets: (start, end) };
        bytes.push(b',');
        write_json(&mut bytes, name);
        bytes.push(b':');
        write_json(&mut bytes, &record);
    }
    bytes.push(b'}');
    bytes.resize(bytes.len().next_multiple_of(ALIGNMENT_BYTES), b' ');
    let json_bytes = (bytes.len() - ALIGNMENT_BYTES) as u64;
    bytes[..ALIGNMENT_BYTES].copy_from_slice(&json_bytes.to_le_bytes());
    bytes
}

fn write_json(into: &mut Vec<u8>, value: &(impl serde::Serialize + ?Sized)) {
    serde_json::to_writer(into, value).expect("text and numbers in memory");
}

fn index(tensors: &[OutTensor], places: &[Place], shards: &[Shard], total_bytes: u64) -> Vec<u8> {
    let file_of = |place: &Place| Value::from(shards[place.shard].file.as_str());
    let weight_map: Map<String, Value> =
        tensors.iter().zip(places).map(|(tensor, place)| (tensor.name.clone(), file_of(place))).collect();
    let index = json!({ "metadata": { "total_size": total_bytes }, "weight_map": weight_map });
    format!("{index:#}\n").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(name: &str, dtype: Dtype, shape: &[usize]) -> OutTensor {
        OutTensor { name: name.into(), dtype, shape: shape.to_vec() }
    }

    #[test]
    fn shards_break_before_the_tensor_that_is_too_much() {
        let ranges = |sizes: &[u64], limit| -> Vec<(usize, usize)> {
            split(sizes, limit).into_iter().map(|range| (range.start, range.end)).collect()
        };
        assert_eq!(ranges(&[4, 4, 4], 8), [(0, 2), (2, 3)]);
        assert_eq!(ranges(&[9, 4, 4, 1], 8), [(0, 1), (1, 3), (3, 4)]);
        assert_eq!(ranges(&[1, 9], 8), [(0, 1), (1, 2)]);
        assert_eq!(ranges(&[0, 0, 1, 0], 0), [(0, 2), (2, 3), (3, 4)]);
        assert_eq!(ranges(&[], 8), [(0, 0)]);
        assert_eq!(ranges(&[1, 2, 3], u64::MAX / 2), [(0, 3)]);
    }

    #[test]
    fn wide_types_come_first_and_everything_is_aligned() {
        let tensors = [
            tensor("bytes", Dtype::U8, &[3]),
            tensor("half", Dtype::BF16, &[5]),
            tensor("long", Dtype::I64, &[1]),
            tensor("half2", Dtype::F16, &[]),
        ];
        let layout = layout(&tensors, 1000);
        let start = layout.shards[0].header.len() as u64;
        assert_eq!(start % 8, 0);
        let offsets: Vec<u64> = layout.places.iter().map(|place| place.offset - start).collect();
        assert_eq!(offsets, [20, 8, 0, 18]);
        assert_eq!((layout.total_bytes, layout.file_bytes), (23, start + 23));
        assert_eq!((layout.shards[0].file.as_str(), layout.index), ("model.safetensors", None));
    }

    #[test]
    fn several_shards_have_an_index() {
        let tensors = [tensor("b", Dtype::U8, &[3]), tensor("a", Dtype::U8, &[2])];
        let index = String::from_utf8(layout(&tensors, 4).index.unwrap()).unwrap();
        let expected = r#"{
  "metadata": {
    "total_size": 5
  },
  "weight_map": {
    "b": "model-00001-of-00002.safetensors",
    "a": "model-00002-of-00002.safetensors"
  }
}
"#;
        assert_eq!(index, expected);
    }

    #[test]
    fn nothing_is_one_empty_file() {
        let layout = layout(&[], 10);
        assert_eq!(layout.shards.len(), 1);
        assert_eq!(layout.shards[0].bytes, layout.shards[0].header.len() as u64);
    }
}

//! Where every byte of an output goes, known before the first is written: the tensors, their shards and
//! headers. So any thread can write any part at any time.

use std::cmp::Reverse;
use std::ops::Range;

use safetensors::tensor::TensorInfo as Record;

use crate::dtype::Dtype;

/// Where a sharded checkpoint says which tensor is in which file.
pub const INDEX: &str = "model.safetensors.index.json";

/// Where a checkpoint of one file has its weights.
pub const SINGLE: &str = "model.safetensors";

/// Data starts at a multiple of this, so that inside a file every element is aligned.
const ALIGNMENT_BYTES: usize = 8;

/// The tensors of an output: as many as an input may have.
pub const TENSORS_MAX: usize = crate::limits::TENSORS_MAX;

/// The data of an output. Files end at 2⁶³ − 1 bytes: half of that leaves room for headers, and sums of it are no overflow.
pub const DATA_BYTES_MAX: u64 = 1 << 62;

/// What is laid out: something with a name, a type and a shape.
pub trait StoredTensor {
    /// Its name.
    fn name(&self) -> &str;
    /// The type of its elements.
    fn dtype(&self) -> Dtype;
    /// Its shape, in elements; `[]` is a scalar.
    fn shape(&self) -> &[usize];
    /// The bytes that its data takes.
    fn bytes(&self) -> u64 {
        let elements: u64 = self.shape().iter().map(|&length| length as u64).product();
        // Bits can be too many for 64 bits where bytes are not.
        (u128::from(elements) * self.dtype().bitsize() as u128 / 8) as u64
    }
}

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
        StoredTensor::bytes(self)
    }
}

impl StoredTensor for OutTensor {
    fn name(&self) -> &str {
        &self.name
    }

    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
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

/// Lays tensors out in shards of at most `shard_bytes` of data, or as many as [`usual_shard_bytes`] has (a larger tensor has a
/// shard of its own).
///
/// Shards take the tensors in the given order (mergekit's rule). Inside a shard the widest types come first,
/// so that every tensor starts at a multiple of its element size.
pub fn layout<T: StoredTensor>(tensors: &[T], shard_bytes: impl Into<Option<u64>>) -> Layout {
    let sizes: Vec<u64> = tensors.iter().map(T::bytes).collect();
    let total_bytes = sizes.iter().sum();
    laid_out(tensors, &split(&sizes, shard_bytes.into().unwrap_or_else(|| usual_shard_bytes(total_bytes))))
}

/// Lays tensors out in shards, of which it is known which tensors each has.
pub fn laid_out<T: StoredTensor>(tensors: &[T], ranges: &[Range<usize>]) -> Layout {
    let sizes: Vec<u64> = tensors.iter().map(T::bytes).collect();
    let total_bytes = sizes.iter().sum();
    let mut places = vec![Place { shard: 0, offset: 0, bytes: 0 }; tensors.len()];
    let mut shards = Vec::with_capacity(ranges.len());
    for (shard, range) in ranges.iter().enumerate() {
        let mut order: Vec<usize> = range.clone().collect();
        order.sort_by_key(|&tensor| Reverse(tensors[tensor].dtype().bitsize()));
        let header = header(tensors, &order, &sizes);
        let mut end = header.len() as u64;
        for tensor in order {
            places[tensor] = Place { shard, offset: end, bytes: sizes[tensor] };
            end += sizes[tensor];
        }
        shards.push(Shard { file: file_name(shard, ranges.len()), header, bytes: end });
    }
    let index = (shards.len() > 1).then(|| index(tensors, &places, &shards, total_bytes));
    let file_bytes = shards.iter().map(|shard| shard.bytes).sum();
    Layout { shards, places, index, total_bytes, file_bytes }
}

impl Layout {
    /// The shards of part `number`, from 1, of `of`: those whose middle lies in that part of all bytes. A part then has at most a
    /// shard more than its share; where there are fewer shards than parts, some parts have none.
    pub fn share(&self, number: usize, of: usize) -> Range<usize> {
        let sizes: Vec<u64> = self.shards.iter().map(|shard| shard.bytes).collect();
        share(&sizes, number, of)
    }

    /// The places of the tensors in these shards, which lie one after the other.
    pub fn tensors_in(&self, shards: &Range<usize>) -> Range<usize> {
        self.places.partition_point(|place| place.shard < shards.start)
            ..self.places.partition_point(|place| place.shard < shards.end)
    }

    /// These shards alone, without an index. The other tensors have a place in none.
    #[must_use]
    pub fn part(&self, shards: &Range<usize>) -> Self {
        let place = |place: &Place| {
            if shards.contains(&place.shard) {
                Place { shard: place.shard - shards.start, ..*place }
            } else {
                Place { shard: usize::MAX, offset: 0, bytes: 0 }
            }
        };
        let places: Vec<Place> = self.places.iter().map(place).collect();
        let total_bytes = places.iter().map(|place| place.bytes).sum();
        let shards = self.shards[shards.clone()].to_vec();
        let file_bytes = shards.iter().map(|shard| shard.bytes).sum();
        Self { shards, places, index: None, total_bytes, file_bytes }
    }
}

/// Which of things of these sizes are the part `number`, from 1, of `of`: those whose middle lies in that part of all.
pub fn share(sizes: &[u64], number: usize, of: usize) -> Range<usize> {
    let all: u128 = sizes.iter().map(|size| u128::from(*size)).sum();
    let mut begun = 0;
    let part_of = |size: &u64| {
        let middle_twice = 2 * begun + u128::from(*size);
        begun += u128::from(*size);
        (middle_twice * of as u128 / (2 * all.max(1))).min(of as u128 - 1) as usize
    };
    let parts: Vec<usize> = sizes.iter().map(part_of).collect();
    parts.partition_point(|part| part + 1 < number)..parts.partition_point(|part| *part < number)
}

/// The most data in a shard where nobody says: an eighth of all, but no less than 1 GB, and no more than the 5 GB of other tools.
///
/// A file takes one writer at a time, at 2 to 3 GB/s; eight are as fast as most machines copy, and the size depends on nothing
/// but the output.
pub fn usual_shard_bytes(total_bytes: u64) -> u64 {
    (total_bytes / 8).clamp(1_000_000_000, 5_000_000_000)
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
        return SINGLE.into();
    }
    format!("model-{:05}-of-{count:05}.safetensors", shard + 1)
}

/// Whether a file of this name is one that a layout has: a shard or the index.
pub(super) fn is_weights_file(name: &str) -> bool {
    let numbers = name.strip_prefix("model-").and_then(|rest| rest.strip_suffix(".safetensors"));
    let is_number = |text: &str| text.len() >= 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    let of_shard = numbers.and_then(|numbers| numbers.split_once("-of-"));
    [SINGLE, INDEX].contains(&name)
        || of_shard.is_some_and(|(shard, count)| is_number(shard) && is_number(count))
}

/// The length and the JSON of a file that holds these tensors in this order.
fn header<T: StoredTensor>(tensors: &[T], order: &[usize], sizes: &[u64]) -> Vec<u8> {
    let mut bytes = vec![0; ALIGNMENT_BYTES];
    bytes.extend(br#"{"__metadata__":{"format":"pt"}"#);
    let mut end = 0;
    for &tensor in order {
        let (start, tensor, tensor_bytes) = (end, &tensors[tensor], sizes[tensor]);
        end += tensor_bytes as usize;
        let record =
            Record { dtype: tensor.dtype(), shape: tensor.shape().to_vec(), data_offsets: (start, end) };
        bytes.push(b',');
        write_json(&mut bytes, tensor.name());
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

fn index<T: StoredTensor>(tensors: &[T], places: &[Place], shards: &[Shard], total_bytes: u64) -> Vec<u8> {
    let metadata = format!("  \"metadata\": {{\n    \"total_size\": {total_bytes}\n  }}");
    let mut bytes = format!("{{\n{metadata},\n  \"weight_map\": {{").into_bytes();
    for (i, (tensor, place)) in tensors.iter().zip(places).enumerate() {
        bytes.extend(if i == 0 { &b"\n    "[..] } else { b",\n    " });
        write_json(&mut bytes, tensor.name());
        bytes.extend(b": ");
        write_json(&mut bytes, &*shards[place.shard].file);
    }
    bytes.extend(b"\n  }\n}\n");
    bytes
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
    fn shards_are_an_eighth_of_what_is_neither_little_nor_much() {
        const GB: u64 = 1_000_000_000;
        assert_eq!([0, 2, 8, 16, 40, 141].map(|gb| usual_shard_bytes(gb * GB) / GB), [1, 1, 1, 2, 5, 5]);
        let tensors: Vec<OutTensor> =
            (0..27).map(|i| tensor(&i.to_string(), Dtype::U8, &[500_000_000])).collect();
        // 13.5 GB, in shards of at most 1.69 GB.
        assert_eq!(layout(&tensors, None).shards.len(), 9);
        assert_eq!(layout(&tensors, 5 * GB).shards.len(), 3);
        assert_eq!(layout(&tensors[..2], None).shards.len(), 1);
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
    fn the_files_of_a_layout_are_known_by_their_names() {
        assert!([SINGLE, INDEX].into_iter().all(is_weights_file));
        assert!(
            [(0, 2), (11, 12), (99_999, 100_000)].iter().all(|(i, n)| is_weights_file(&file_name(*i, *n)))
        );
        for other in ["model-1-of-2.safetensors", "model-00001-of-00002.bin", "model.safetensors.bak", "x"] {
            assert!(!is_weights_file(other), "{other}");
        }
    }

    #[test]
    fn parts_have_every_shard_once_and_about_their_share() {
        for (sizes, limit) in [
            (vec![7; 10], 7),
            (vec![100, 1, 1, 100, 3], 4),
            (vec![1], 9),
            (vec![], 9),
            ((1..60).collect(), 70),
        ] {
            let tensors: Vec<OutTensor> = sizes
                .iter()
                .enumerate()
                .map(|(i, size)| tensor(&i.to_string(), Dtype::U8, &[*size]))
                .collect();
            let layout = layout(&tensors, limit);
            let largest = layout.shards.iter().map(|shard| shard.bytes).max().unwrap();
            for of in [1, 2, 3, 7, 100] {
                let (mut shards, mut tensors) = (0, 0);
                for number in 1..=of {
                    let share = layout.share(number, of);
                    let part = layout.part(&share);
                    let held = layout.tensors_in(&share);
                    assert_eq!((share.start, held.start), (shards, tensors), "{number} of {of}");
                    (shards, tensors) = (share.end, held.end);
                    assert!(part.file_bytes <= layout.file_bytes / of as u64 + largest, "{number} of {of}");
                    for (place, whole) in part.places.iter().zip(&layout.places) {
                        if share.contains(&whole.shard) {
                            assert_eq!(
                                (place.shard + share.start, place.offset),
                                (whole.shard, whole.offset)
                            );
                        } else {
                            assert_eq!((place.shard, place.bytes), (usize::MAX, 0));
                        }
                    }
                }
                assert_eq!((shards, tensors), (layout.shards.len(), layout.places.len()), "{of}");
            }
        }
        // As even as whole shards can be.
        let tensors: Vec<OutTensor> = (0..81).map(|i| tensor(&i.to_string(), Dtype::U8, &[5])).collect();
        let of_sixteen: Vec<usize> = (1..=16).map(|part| layout(&tensors, 5).share(part, 16).len()).collect();
        assert!(of_sixteen.iter().all(|shards| [5, 6].contains(shards)), "{of_sixteen:?}");
    }

    #[test]
    fn nothing_is_one_empty_file() {
        let layout = layout::<OutTensor>(&[], 10);
        assert_eq!(layout.shards.len(), 1);
        assert_eq!(layout.shards[0].bytes, layout.shards[0].header.len() as u64);
    }
}

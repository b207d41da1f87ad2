//! The header of a safetensors file, and every way that it can lie.
//!
//! A file is 8 bytes of header length N (little-endian), N bytes of JSON `{"name": {"dtype", "shape",
//! "data_offsets": [start, end]}, …}`, then the data. Accepted is what the `safetensors` crate accepts (a
//! test holds that), less names that stand twice and what goes beyond the caps in `limits`; refusals name the file and
//! the tensor.

mod json;

use std::fmt;
use std::io;
use std::path::Path;

use indexmap::IndexMap;

pub use json::parse_index;

use super::file::ReadAt;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::limits::HEADER_BYTES_MAX;
use crate::text::quoted;
use json::{HeaderEntry, cap, parse_header};

/// The header length that opens a file.
const LENGTH_BYTES: u64 = 8;
/// What stands in a file that Git LFS has not fetched.
const LFS_POINTER: &[u8] = b"version https://git-lfs";

/// A tensor in a file of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// The tensor's name.
    pub name: String,
    /// The type of its elements.
    pub dtype: Dtype,
    /// Its shape, in elements; `[]` is a scalar.
    pub shape: Vec<usize>,
    /// Which of the source's files holds it.
    pub file: usize,
    /// Where its data starts, from the start of the file.
    pub offset: u64,
    /// How many bytes its data takes.
    pub bytes: u64,
}

impl TensorInfo {
    /// How many elements it has; checked against overflow when the header was read.
    pub fn elements(&self) -> u64 {
        self.shape.iter().map(|&length| length as u64).product()
    }
}

/// What the first bytes of a file say.
#[derive(Debug)]
pub struct Header {
    /// The tensors, by offset.
    pub tensors: Vec<TensorInfo>,
    /// Hash of the length and the header itself.
    pub blake3: blake3::Hash,
}

/// Reads and checks the header of a file that is `file_bytes` long. The tensors get `file_index`.
///
/// # Errors
/// Kind `Input`: the file is no safetensors file, or damaged, or not whole.
pub fn read_header(file: &dyn ReadAt, path: &Path, file_bytes: u64, file_index: usize) -> Result<Header> {
    header_of(read_head(file, path, file_bytes)?, path, file_bytes, file_index)
}

/// As [`read_header`], of a header that was read, or that is to be written: the length and the JSON.
///
/// # Errors
/// Those of [`read_header`].
pub fn header_of(head: Vec<u8>, path: &Path, file_bytes: u64, file_index: usize) -> Result<Header> {
    let records =
        records(&head[LENGTH_BYTES as usize..]).map_err(|what| damaged(path, format_args!("{what}")))?;
    let (data_start, blake3) = (head.len() as u64, blake3::hash(&head));
    drop(head);
    let placed = place(records, file_index, data_start);
    let (tensors, end) = placed.map_err(|what| damaged(path, format_args!("{what}")))?;
    if end != file_bytes {
        let what = if file_bytes < end { "is cut short" } else { "has bytes after its end" };
        return Err(damaged(path, format_args!("the file {what}: expected {end} bytes, found {file_bytes}")));
    }
    Ok(Header { tensors, blake3 })
}

/// The length and the header, of plausible size and present in full.
fn read_head(file: &dyn ReadAt, path: &Path, file_bytes: u64) -> Result<Vec<u8>> {
    let read = |bytes: u64| -> Result<Vec<u8>> {
        let mut into = zeros(path, bytes)?;
        file.fill(&mut into, 0).map_err(|e| read_error(path, &e))?;
        Ok(into)
    };
    if is_lfs_pointer(&read(file_bytes.min(LFS_POINTER.len() as u64))?) {
        return Err(lfs_pointer(path));
    }
    if file_bytes < LENGTH_BYTES {
        let what = if file_bytes == 0 { "the file is empty" } else { "the file is too short for a header" };
        return Err(damaged(path, format_args!("{what}")));
    }
    let mut length = [0; LENGTH_BYTES as usize];
    file.fill(&mut length, 0).map_err(|e| read_error(path, &e))?;
    let header_bytes = u64::from_le_bytes(length);
    if header_bytes > HEADER_BYTES_MAX {
        let what = format!("this is no safetensors file: its header would have {header_bytes} bytes");
        return Err(damaged(path, format_args!("{what} ({})", cap(HEADER_BYTES_MAX, "bytes"))));
    }
    if LENGTH_BYTES + header_bytes > file_bytes {
        let needed = LENGTH_BYTES + header_bytes;
        return Err(damaged(
            path,
            format_args!("the header is cut short: it ends at byte {needed}, the file at {file_bytes}"),
        ));
    }
    read(LENGTH_BYTES + header_bytes)
}

/// So many bytes, of a length that a file claims.
fn zeros(path: &Path, bytes: u64) -> Result<Vec<u8>> {
    let mut zeros = Vec::new();
    let failed = |_| Error::input(format!("{}: no memory for a header of {bytes} bytes", path.display()));
    zeros.try_reserve_exact(bytes as usize).map_err(failed)?;
    zeros.resize(bytes as usize, 0);
    Ok(zeros)
}

/// The records of a header's JSON, or what is wrong with it.
fn records(json: &[u8]) -> std::result::Result<IndexMap<String, HeaderEntry>, String> {
    let json = std::str::from_utf8(json).map_err(|e| format!("the header is not UTF-8: {e}"))?;
    parse_header(json).map_err(|e| format!("the header is not what it should be: {e}"))
}

/// Puts the tensors in order of offset and checks that their data fills the file from `data_start` on, without
/// gap or overlap. Returns them and where the data ends.
fn place(
    records: IndexMap<String, HeaderEntry>,
    file: usize,
    data_start: u64,
) -> std::result::Result<(Vec<TensorInfo>, u64), String> {
    let mut tensors: Vec<TensorInfo> = Vec::with_capacity(records.len());
    let mut filled = 0;
    for (name, record) in records.sorted_by(|_, a, _, b| a.data_offsets.cmp(&b.data_offsets)) {
        let lie = |what: String| format!("tensor {} {what}", quoted(&name));
        let (start, end) = (record.data_offsets.0 as u64, record.data_offsets.1 as u64);
        let bytes = data_bytes(record.dtype, &record.shape).map_err(&lie)?;
        if end.checked_sub(start) != Some(bytes) {
            let (dtype, shape) = (record.dtype, shown_shape(&record.shape));
            return Err(lie(format!(
                "({dtype}, shape {shape}) takes {bytes} bytes, not those from {start} to {end}"
            )));
        }
        if start > filled {
            return Err(lie(format!("starts at byte {start} of the data, leaving a hole from {filled} on")));
        }
        if start < filled {
            let before = tensors.last().map_or(String::new(), |before| quoted(&before.name));
            return Err(lie(format!(
                "overlaps {before}: it starts at byte {start} of the data, not {filled}"
            )));
        }
        if data_start.checked_add(end).is_none() {
            return Err(lie("ends beyond any file".into()));
        }
        filled = end;
        let (dtype, offset) = (record.dtype, data_start + start);
        tensors.push(TensorInfo { name, dtype, shape: record.shape, file, offset, bytes });
    }
    Ok((tensors, data_start + filled))
}

/// The bytes that a shape takes, or what is wrong with it.
pub(super) fn data_bytes(dtype: Dtype, shape: &[usize]) -> std::result::Result<u64, String> {
    let elements = shape.iter().try_fold(1_u64, |product, &length| product.checked_mul(length as u64));
    let bits = elements.and_then(|elements| elements.checked_mul(dtype.bitsize() as u64));
    match bits {
        Some(bits) if bits % 8 == 0 => Ok(bits / 8),
        Some(bits) => Err(format!("takes {bits} bits, which is no whole number of bytes")),
        None => Err(format!("has a shape beyond any file: {}", shown_shape(shape))),
    }
}

pub(super) fn shown_shape(shape: &[usize]) -> String {
    if shape.len() > 16 {
        return format!("of {} dimensions", shape.len());
    }
    format!("{shape:?}")
}

pub(super) fn is_lfs_pointer(start: &[u8]) -> bool {
    start.starts_with(LFS_POINTER)
}

pub(super) fn lfs_pointer(path: &Path) -> Error {
    Error::input(format!("{} is a Git LFS pointer, not the file itself", path.display()))
        .in_file(path)
        .hint("run `git lfs pull` in its folder")
}

fn damaged(path: &Path, what: fmt::Arguments<'_>) -> Error {
    Error::input(format!("{}: {what}", path.display())).in_file(path).hint("download the file again")
}

fn read_error(path: &Path, cause: &io::Error) -> Error {
    if cause.kind() == io::ErrorKind::UnexpectedEof {
        return damaged(path, format_args!("the file was truncated while it was read"));
    }
    Error::reading(path, cause)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::File;
    use proptest::prelude::*;
    use safetensors::SafeTensors;
    use std::io::Write;

    /// Reads `bytes` as a file.
    fn read(bytes: &[u8]) -> Result<Header> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        read_header(&File::from(file), Path::new("x.safetensors"), bytes.len() as u64, 3)
    }

    /// A file with this header and so many bytes of data.
    fn file(json: &str, data_bytes: usize) -> Vec<u8> {
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend(json.as_bytes());
        bytes.resize(bytes.len() + data_bytes, 7);
        bytes
    }

    #[test]
    fn tensors_come_in_order_of_offset() {
        let json = r#"{"__metadata__":{"format":"pt"},
            "b":{"dtype":"F32","shape":[2],"data_offsets":[2,10]},
            "a":{"dtype":"BF16","shape":[],"data_offsets":[0,2]},
            "none":{"dtype":"F64","shape":[3,0],"data_offsets":[10,10]}}"#;
        let tensors = read(&file(json, 10)).unwrap().tensors;
        let start = 8 + json.len() as u64;
        let found: Vec<_> = tensors
            .iter()
            .map(|t| (t.name.as_str(), t.offset - start, t.bytes, t.elements(), t.file))
            .collect();
        assert_eq!(found, [("a", 0, 2, 1, 3), ("b", 2, 8, 2, 3), ("none", 10, 0, 0, 3)]);
        assert!(read(&file("{}", 0)).unwrap().tensors.is_empty());
    }

    /// Every line: a header, the bytes of data after it, and what the refusal must say.
    const LIES: &[(&str, usize, &str)] = &[
        // The JSON.
        ("", 0, "EOF"),
        ("[]", 0, "one entry per tensor"),
        ("{", 0, "EOF"),
        ("{} {}", 0, "trailing"),
        (r#"{"a":1}"#, 0, "\"a\": invalid type"),
        (r#"{"a":{"shape":[],"data_offsets":[0,1]}}"#, 1, "\"a\": missing field `dtype`"),
        (r#"{"a":{"dtype":"F7","shape":[],"data_offsets":[0,1]}}"#, 1, "\"a\": unknown variant `F7`"),
        (r#"{"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}}"#, 1, "-1"),
        (r#"{"a":{"dtype":"U8","shape":[1.0],"data_offsets":[0,1]}}"#, 1, "floating"),
        (r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0]}}"#, 1, "length 1"),
        (r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1,2]}}"#, 1, "trailing"),
        (r#"{"a":{"dtype":"U8","shape":[18446744073709551616],"data_offsets":[0,1]}}"#, 1, "\"a\""),
        (r#"{"\ud800":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#, 1, "hex escape"),
        (r#"{"__metadata__":{"a":1}}"#, 0, "expected a string"),
        // Twice.
        (
            r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#,
            1,
            "\"a\" is listed twice",
        ),
        (r#"{"__metadata__":{},"__metadata__":{}}"#, 0, "\"__metadata__\" is listed twice"),
        (
            r#"{"a":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}}"#,
            1,
            "duplicate field `dtype`",
        ),
        (
            r#"{"a":{"dtype":"U8","shape":[1],"shape":[1],"data_offsets":[0,1]}}"#,
            1,
            "duplicate field `shape`",
        ),
        // Sizes.
        (
            r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#,
            4,
            "\"a\" (F32, shape [2]) takes 8 bytes, not those from 0 to 4",
        ),
        (r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[1,0]}}"#, 1, "not those from 1 to 0"),
        (r#"{"a":{"dtype":"F4","shape":[3],"data_offsets":[0,1]}}"#, 1, "12 bits"),
        (
            r#"{"a":{"dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,0]}}"#,
            0,
            "beyond any file",
        ),
        (r#"{"a":{"dtype":"F64","shape":[4611686018427387904],"data_offsets":[0,0]}}"#, 0, "beyond any file"),
        (
            r#"{"a":{"dtype":"U8","shape":[18446744073709551615],"data_offsets":[0,18446744073709551615]}}"#,
            0,
            "\"a\" ",
        ),
        // Places.
        (r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#, 2, "hole from 0"),
        (
            r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}"#,
            3,
            "\"b\" overlaps \"a\"",
        ),
        (
            r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}"#,
            3,
            "is cut short: expected 65 bytes, found 64",
        ),
        (
            r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}"#,
            5,
            "after its end: expected 65 bytes, found 66",
        ),
        ("{}", 1, "after its end"),
    ];

    #[test]
    fn every_lie_is_refused_and_named() {
        for &(json, data_bytes, expected) in LIES {
            let error = read(&file(json, data_bytes)).expect_err(json);
            assert!(error.message.contains(expected), "{json}\n{}", error.message);
            assert!(error.message.starts_with("x.safetensors: ") && error.hint.is_some(), "{json}");
        }
    }

    #[test]
    fn files_that_are_no_safetensors_are_refused() {
        let message = |bytes: &[u8]| read(bytes).unwrap_err().message;
        assert!(message(b"").contains("empty"));
        assert!(message(b"1234567").contains("too short"));
        assert!(message(&[0; 8]).contains("EOF"));
        assert!(message(&u64::MAX.to_le_bytes()).contains("no safetensors file"));
        assert!(message(&(HEADER_BYTES_MAX + 1).to_le_bytes()).contains("at most 33554432 bytes are read"));
        assert!(message(&HEADER_BYTES_MAX.to_le_bytes()).contains("header is cut short"));
        assert!(message(b"PK\x03\x04 a zip file").contains("no safetensors file"));
        assert!(message(b"\x04\0\0\0\0\0\0\0{\xff\xff}").contains("not UTF-8"));
        let pointer =
            read(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n").unwrap_err();
        assert!(pointer.hint.unwrap().contains("git lfs pull"));
    }

    #[test]
    fn a_file_that_shrinks_is_refused() {
        let bytes = file("{}", 0);
        let empty = File::from(tempfile::tempfile().unwrap());
        let error = read_header(&empty, Path::new("x"), bytes.len() as u64, 0).unwrap_err();
        assert!(error.message.contains("truncated while it was read"));
    }

    #[test]
    fn a_header_may_be_as_large_as_its_cap() {
        let header = |bytes: u64| read(&file(&format!("{{}}{}", " ".repeat(bytes as usize - 2)), 0));
        assert!(header(HEADER_BYTES_MAX).unwrap().tensors.is_empty());
        let message = header(HEADER_BYTES_MAX + 1).unwrap_err().message;
        assert!(message.contains("its header would have 33554433 bytes (at most 33554432"), "{message}");
    }

    #[test]
    fn a_header_that_memory_cannot_hold_is_an_error() {
        let error = zeros(Path::new("x"), u64::MAX).unwrap_err();
        assert_eq!(error.kind, crate::error::Kind::Input);
        assert!(error.message.contains("no memory for"), "{error}");
    }

    #[test]
    fn sizes_that_overflow_only_together_are_refused() {
        let step = (1_u64 << 61) - 1;
        let entry = |i: u64| {
            let (start, end) = (i * step, (i + 1) * step);
            format!(r#""t{i}":{{"dtype":"U8","shape":[{step}],"data_offsets":[{start},{end}]}}"#)
        };
        let entries: Vec<String> = (0..8).map(entry).collect();
        let error = read(&file(&format!("{{{}}}", entries.join(",")), 0)).unwrap_err();
        assert!(error.message.contains("\"t7\" ends beyond any file"), "{}", error.message);
    }

    #[test]
    fn endless_names_are_cut_in_messages() {
        let name = "é".repeat(100_000);
        let error = read(&file(&format!(r#"{{"{name}":{{"dtype":"X"}}}}"#), 0)).unwrap_err();
        assert!(error.message.len() < 2000 && error.message.contains('…'));
    }

    /// A well-formed file: tensors of random types and shapes, one after the other.
    fn whole_file() -> impl Strategy<Value = Vec<u8>> {
        let dtype = prop::sample::select(vec![Dtype::BOOL, Dtype::BF16, Dtype::F32, Dtype::I64]);
        let tensor = (dtype, prop::collection::vec(0_usize..4, 0..4));
        prop::collection::vec(tensor, 0..6).prop_map(|tensors| {
            let mut end = 0;
            let entries: Vec<String> = tensors
                .iter()
                .enumerate()
                .map(|(i, (dtype, shape))| {
                    let start = end;
                    end += shape.iter().product::<usize>() * dtype.bitsize() / 8;
                    format!(
                        r#""t{i}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{start},{end}]}}"#
                    )
                })
                .collect();
            file(&format!("{{{}}}", entries.join(",")), end)
        })
    }

    /// Whatever is read here is read by the safetensors crate too, as the same tensors.
    fn agrees_with_the_crate(bytes: &[u8]) -> std::result::Result<(), TestCaseError> {
        if let Ok(header) = read(bytes) {
            let theirs = SafeTensors::deserialize(bytes).map_err(|e| TestCaseError::fail(e.to_string()))?;
            prop_assert_eq!(theirs.len(), header.tensors.len());
            for tensor in header.tensors {
                let view = theirs.tensor(&tensor.name).map_err(|e| TestCaseError::fail(e.to_string()))?;
                prop_assert_eq!(view.dtype(), tensor.dtype);
                prop_assert_eq!(view.shape(), &tensor.shape[..]);
                prop_assert_eq!(view.data(), &bytes[tensor.offset as usize..][..tensor.bytes as usize]);
            }
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&bytes);
        }

        #[test]
        fn noisy_json_never_panics(json in r#"[{}\[\]",:0-9a-z_]{0,80}"#, data in 0_usize..20) {
            agrees_with_the_crate(&file(&json, data))?;
        }

        #[test]
        fn whole_files_are_read(bytes in whole_file()) {
            prop_assert!(read(&bytes).is_ok());
            agrees_with_the_crate(&bytes)?;
        }

        #[test]
        fn damaged_files_never_panic(
            bytes in whole_file(),
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut bytes = bytes;
            for (index, value) in damage {
                let index = index.index(bytes.len());
                bytes[index] = value;
            }
            agrees_with_the_crate(&bytes)?;
            bytes.truncate(cut.index(bytes.len() + 1));
            agrees_with_the_crate(&bytes)?;
        }

        #[test]
        fn changed_digits_never_panic(bytes in whole_file(), at in any::<prop::sample::Index>(), digit in b'0'..=b'9') {
            let mut bytes = bytes;
            let digits: Vec<usize> = (8..bytes.len()).filter(|&i| bytes[i].is_ascii_digit()).collect();
            if !digits.is_empty() {
                bytes[digits[at.index(digits.len())]] = digit;
            }
            agrees_with_the_crate(&bytes)?;
        }
    }
}

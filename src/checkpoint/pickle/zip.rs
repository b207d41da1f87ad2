//! The zip archive around a pickle: `torch.save` stores its entries as they are, so an entry is a range of the file.
//!
//! (PKWARE, APPNOTE.TXT 6.3.) The file ends with a record that says where the directory is; the directory lists every
//! entry's name, size, and the place of its own header, behind which its data begins. Sizes and counts that do not fit
//! into 32 and 16 bits stand in further records (ZIP64).

use std::collections::HashMap;
use std::ops::Range;

use super::Refusal;
use crate::checkpoint::file::ReadAt;
use crate::limits::{ENTRIES_MAX, ENTRY_DIRECTORY_BYTES_MAX, NAME_BYTES_MAX};
use crate::text::quoted;

/// What a zip archive begins with: the header of an entry.
pub const ENTRY: [u8; 4] = *b"PK\x03\x04";
const ENTRY_BYTES: usize = 30;
const LISTED: [u8; 4] = *b"PK\x01\x02";
const LISTED_BYTES: usize = 46;
const END: [u8; 4] = *b"PK\x05\x06";
const END_BYTES: usize = 22;
const END_64: [u8; 4] = *b"PK\x06\x06";
const END_64_BYTES: usize = 56;
const LOCATOR_64: [u8; 4] = *b"PK\x06\x07";
const LOCATOR_64_BYTES: usize = 20;
/// The end may be followed by a comment of so many bytes.
const COMMENT_BYTES_MAX: usize = 0xffff;
/// The extra field with sizes of 64 bits.
const SIZES_64: u16 = 1;
const ENCRYPTED: u16 = 1;

/// A zip archive whose directory was read.
#[derive(Debug)]
pub struct Archive<'a> {
    file: &'a dyn ReadAt,
    entries: HashMap<String, Entry>,
    /// Where the entries end.
    directory_start: u64,
    /// Hash of the directory, which has a checksum of every entry.
    pub blake3: blake3::Hash,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    /// Where its own header is.
    header: u64,
    bytes: u64,
    method: u16,
}

type Result<T> = std::result::Result<T, Refusal>;

impl<'a> Archive<'a> {
    /// Reads the directory of an archive of `file_bytes`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn open(file: &'a dyn ReadAt, file_bytes: u64) -> Result<Self> {
        let Directory { place, entries: count } = find_directory(file, file_bytes)?;
        if count > ENTRIES_MAX as u64 || place.end - place.start > ENTRY_DIRECTORY_BYTES_MAX {
            return Err(Refusal::damaged(format!(
                "it lists {count} entries, and {ENTRIES_MAX} are the most that are read"
            )));
        }
        let directory = read(file, place.clone())?;
        let entries = entries(&directory, count, place.start)?;
        let blake3 = blake3::hash(&directory);
        Ok(Self { file, entries, directory_start: place.start, blake3 })
    }

    /// The names of all entries.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Where an entry lies in the file, from its header on, and its data in it; `None` where there is no such entry.
    ///
    /// # Errors
    /// It is compressed, or its header says something else than the directory.
    pub fn find(&self, name: &str) -> Result<Option<Found>> {
        let Some(entry) = self.entries.get(name) else { return Ok(None) };
        let lie = |what: &str| Refusal::damaged(format!("entry {} {what}", quoted(name)));
        if entry.method != 0 {
            let what = format!("entry {} is compressed (method {})", quoted(name), entry.method);
            return Err(Refusal::save_again(what));
        }
        let fixed_end = entry.header + ENTRY_BYTES as u64;
        if fixed_end > self.directory_start {
            return Err(lie("begins behind the last one"));
        }
        let fixed = read(self.file, entry.header..fixed_end)?;
        let (name_bytes, extra_bytes) = (u16_at(&fixed, 26), u16_at(&fixed, 28));
        let name_end = fixed_end + u64::from(name_bytes);
        if fixed[..4] != ENTRY || usize::from(name_bytes) != name.len() || u16_at(&fixed, 8) != 0 {
            return Err(lie("is not where the directory says"));
        }
        let data_start = name_end + u64::from(extra_bytes);
        let data_end = data_start.checked_add(entry.bytes).filter(|end| *end <= self.directory_start);
        let Some(data_end) = data_end else { return Err(lie("goes on behind the last one")) };
        if read(self.file, fixed_end..name_end)? != name.as_bytes() {
            return Err(lie("has another name in its own header"));
        }
        Ok(Some(Found { header: entry.header, data: data_start..data_end }))
    }

    /// All of an entry, if it has no more than `bytes_max`.
    ///
    /// # Errors
    /// As in [`Archive::find`], or it is larger.
    pub fn read(&self, name: &str, bytes_max: u64) -> Result<Option<Vec<u8>>> {
        let Some(Found { data, .. }) = self.find(name)? else { return Ok(None) };
        let bytes = data.end - data.start;
        if bytes > bytes_max {
            let what = format!(
                "entry {} has {bytes} bytes, and {bytes_max} are the most that is read of it",
                quoted(name)
            );
            return Err(Refusal::damaged(what));
        }
        read(self.file, data).map(Some)
    }
}

/// Where an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Where its header begins.
    pub header: u64,
    /// Its data.
    pub data: Range<u64>,
}

struct Directory {
    place: Range<u64>,
    entries: u64,
}

fn find_directory(file: &dyn ReadAt, file_bytes: u64) -> Result<Directory> {
    let tail_start = file_bytes.saturating_sub((END_BYTES + COMMENT_BYTES_MAX) as u64);
    let tail = read(file, tail_start..file_bytes)?;
    // A comment ends with the file; what looks like an end and does not is part of a comment.
    let is_end = |at: &usize| {
        tail[*at..].starts_with(&END) && at + END_BYTES + usize::from(u16_at(&tail, at + 20)) == tail.len()
    };
    let at = (0..(tail.len() + 1).saturating_sub(END_BYTES)).rev().find(is_end);
    let at =
        at.ok_or_else(|| Refusal::damaged("the zip archive has no end: the file is cut short".into()))?;
    let end = &tail[at..];
    let end_place = tail_start + at as u64;
    let mut disks = [u16_at(end, 4), u16_at(end, 6)].map(u32::from);
    let mut counts = [u16_at(end, 8), u16_at(end, 10)].map(u64::from);
    let (mut bytes, mut start, mut limit) =
        (u64::from(u32_at(end, 12)), u64::from(u32_at(end, 16)), end_place);
    let is_64 =
        disks.contains(&0xffff) || counts.contains(&0xffff) || bytes == 0xffff_ffff || start == 0xffff_ffff;
    // Some writers add the larger record where the smaller one would do: then they agree.
    if let Some(locator) = end_place.checked_sub(LOCATOR_64_BYTES as u64)
        && let locator = read(file, locator..end_place)?
        && locator.starts_with(&LOCATOR_64)
    {
        let place = u64_at(&locator, 8);
        let record_end = place.checked_add(END_64_BYTES as u64).filter(|end| *end <= end_place);
        let record = record_end.map(|end| read(file, place..end)).transpose()?;
        let record = record.filter(|record| record.starts_with(&END_64));
        let record = record
            .ok_or_else(|| Refusal::damaged("the end of the zip archive is not where it says".into()))?;
        disks = [u32_at(&record, 16), u32_at(&record, 20)];
        counts = [u64_at(&record, 24), u64_at(&record, 32)];
        (bytes, start, limit) = (u64_at(&record, 40), u64_at(&record, 48), place);
    } else if is_64 {
        return Err(Refusal::damaged("the end of the zip archive is incomplete".into()));
    }
    if disks != [0, 0] || counts[0] != counts[1] {
        return Err(Refusal::damaged("the zip archive has several parts".into()));
    }
    let place_end = start.checked_add(bytes).filter(|end| *end <= limit);
    let place_end = place_end
        .ok_or_else(|| Refusal::damaged("the zip archive's directory is not where it says".into()))?;
    Ok(Directory { place: start..place_end, entries: counts[0] })
}

fn entries(mut directory: &[u8], count: u64, directory_start: u64) -> Result<HashMap<String, Entry>> {
    let damaged = |what: &str| Refusal::damaged(format!("the zip archive's directory {what}"));
    let mut entries =
        HashMap::with_capacity(count.min(directory.len() as u64 / LISTED_BYTES as u64) as usize);
    for _ in 0..count {
        if directory.len() < LISTED_BYTES || directory[..4] != LISTED {
            return Err(damaged("is cut short"));
        }
        let lengths = [28, 30, 32].map(|at| usize::from(u16_at(directory, at)));
        let Some((record, rest)) = directory.split_at_checked(LISTED_BYTES + lengths.iter().sum::<usize>())
        else {
            return Err(damaged("is cut short"));
        };
        directory = rest;
        let name = &record[LISTED_BYTES..][..lengths[0]];
        let name = std::str::from_utf8(name).map_err(|_| damaged("has a name that is not UTF-8"))?;
        if name.len() > NAME_BYTES_MAX {
            return Err(damaged("has a name without end"));
        }
        if u16_at(record, 8) & ENCRYPTED != 0 {
            return Err(Refusal::save_again(format!("entry {} is encrypted", quoted(name))));
        }
        let entry = entry(record, &record[LISTED_BYTES + lengths[0]..][..lengths[1]])
            .filter(|entry| entry.header < directory_start)
            .ok_or_else(|| damaged(&format!("lies about entry {}", quoted(name))))?;
        if entries.insert(name.to_owned(), entry).is_some() {
            return Err(damaged(&format!("lists entry {} twice", quoted(name))));
        }
    }
    if directory.is_empty() { Ok(entries) } else { Err(damaged("has more entries than it says")) }
}

/// What a record says of its entry; sizes that do not fit into it stand in an extra field, in this order.
fn entry(record: &[u8], mut extra: &[u8]) -> Option<Entry> {
    let [packed, bytes, header] = [20, 24, 42].map(|at| u32_at(record, at));
    let mut wide: &[u8] = &[];
    while extra.len() >= 4 {
        let (kind, len) = (u16_at(extra, 0), usize::from(u16_at(extra, 2)));
        let field = extra.get(4..4 + len)?;
        if kind == SIZES_64 {
            wide = field;
        }
        extra = &extra[4 + len..];
    }
    let mut size = |narrow: u32| {
        if narrow != u32::MAX {
            return Some(u64::from(narrow));
        }
        let (first, rest) = wide.split_at_checked(8)?;
        wide = rest;
        Some(u64_at(first, 0))
    };
    let (bytes, packed, header) = (size(bytes)?, size(packed)?, size(header)?);
    let method = u16_at(record, 10);
    (method != 0 || packed == bytes).then_some(Entry { header, bytes, method })
}

fn read(file: &dyn ReadAt, place: Range<u64>) -> Result<Vec<u8>> {
    let mut into = vec![0; (place.end - place.start) as usize];
    file.fill(&mut into, place.start).map_err(|e| Refusal::damaged(format!("it cannot be read: {e}")))?;
    Ok(into)
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

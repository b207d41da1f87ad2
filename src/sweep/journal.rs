//! What a sweep has measured, line by line, so that one that was interrupted goes on.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::error::{Error, Result};
use crate::limits::JOURNAL_BYTES_MAX;
use crate::text::bytes;

/// One measurement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// A number for each open value.
    pub point: Vec<f64>,
    /// The seed of random masks.
    pub seed: u64,
    /// Whether it was measured on all texts.
    pub whole: bool,
    /// The mean loss of each set, or what the user's program gave; nothing of a candidate that failed.
    pub losses: Vec<f64>,
    /// The standard errors of these; nothing where they are not known.
    pub errors: Vec<Option<f64>>,
    /// What it took, in seconds; of candidates that were measured together each its part.
    pub seconds: f64,
    /// Why it failed, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
}

impl Entry {
    /// Whether it is a measurement, and this one.
    fn is(&self, point: &[f64], seed: u64, whole: bool) -> bool {
        self.failed.is_none() && self.point == point && self.seed == seed && self.whole == whole
    }
}

/// A file of measurements.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    /// What was measured, in its order.
    pub entries: Vec<Entry>,
}

impl Journal {
    /// Opens a journal, or begins one. `setup` is all that measurements depend on: only with the same do they count. `anew` forgets what
    /// was measured.
    ///
    /// # Errors
    /// Kind `Output`: it cannot be read or written. Kind `Config`: it is of another sweep.
    pub fn open(path: &Path, setup: &Json, anew: bool) -> Result<Self> {
        let failed = |cause: &std::io::Error| Error::writing(path, cause);
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .append(true)
            .open(path)
            .map_err(|cause| failed(&cause))?;
        // A pipe opens at once, and is waited for by whoever reads it.
        if !file.metadata().is_ok_and(|found| found.is_file()) {
            return Err(Error::output(format!("{} is not a regular file", path.display()))
                .hint("move it away, or give another folder"));
        }
        file.try_lock().map_err(|_| {
            Error::output(format!("{} is in use by another sweep", path.display()))
                .hint("wait for it, or give another folder")
        })?;
        if anew {
            file.set_len(0).map_err(|cause| failed(&cause))?;
        }
        let mut text = Vec::new();
        (&mut file).take(JOURNAL_BYTES_MAX + 1).read_to_end(&mut text).map_err(|cause| failed(&cause))?;
        if text.len() as u64 > JOURNAL_BYTES_MAX {
            let most = bytes(JOURNAL_BYTES_MAX);
            return Err(Error::output(format!("{} has more than {most}: no sweep wrote it", path.display()))
                .hint("move it away, or give another folder"));
        }
        // A line that a full disk cut may end within a character.
        let text = String::from_utf8_lossy(&text);
        let mut lines = text.lines();
        let mut journal = Self { path: path.to_owned(), file, entries: Vec::new() };
        match lines.next() {
            None => journal.append(setup)?,
            Some(first) => {
                let before: Json = serde_json::from_str(first).unwrap_or(Json::Null);
                if before != *setup {
                    return Err(other_sweep(path, &before, setup));
                }
                // The last line of a sweep that was killed may be half of one.
                journal.entries = lines.filter_map(|line| serde_json::from_str(line).ok()).collect();
                if !text.ends_with('\n') {
                    journal.write(b"\n")?;
                }
            }
        }
        Ok(journal)
    }

    /// How many measurements a file has; none where it cannot be read.
    pub fn count(path: &Path) -> usize {
        let text = std::fs::read(path).unwrap_or_default();
        let entries = text.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok());
        entries.filter(|entry: &Entry| entry.failed.is_none()).count()
    }

    /// What was measured at a point. What failed is as if it were not there: the reason may be gone.
    pub fn find(&self, point: &[f64], seed: u64, whole: bool) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.is(point, seed, whole))
    }

    /// Adds a measurement, and puts it on the disk.
    ///
    /// # Errors
    /// Kind `Output`.
    pub fn add(&mut self, entry: Entry) -> Result<()> {
        let line = serde_json::to_value(&entry).expect("numbers are JSON");
        self.append(&line)?;
        self.entries.push(entry);
        Ok(())
    }

    fn append(&mut self, line: &Json) -> Result<()> {
        self.write(format!("{line}\n").as_bytes())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let written = self.file.write_all(bytes).and_then(|()| self.file.sync_data());
        written.map_err(|cause| Error::writing(&self.path, &cause))
    }
}

/// Under which names a setup has the texts that are read, each with its digest, and the digest of all tokens that they become.
pub const TEXTS: &str = "texts";
/// See [`TEXTS`].
pub const TOKENS: &str = "tokens";

/// Whether they are the same things in another order.
fn reordered(before: &Json, now: &Json) -> bool {
    let sorted = |of: &Json| {
        let mut each: Vec<String> = of.as_array().into_iter().flatten().map(Json::to_string).collect();
        each.sort_unstable();
        each
    };
    before.is_array() && sorted(before) == sorted(now)
}

/// Why measurements of a journal do not count.
fn other_sweep(path: &Path, before: &Json, now: &Json) -> Error {
    let empty = serde_json::Map::new();
    let (before, now) = (before.as_object().unwrap_or(&empty), now.as_object().unwrap_or(&empty));
    // What measures is named by its parts: the texts, the command, what reads.
    let mut differs: Vec<&str> = Vec::new();
    for (key, value) in now.iter().filter(|(key, value)| before.get(*key) != Some(value)) {
        let parts = value.as_object().zip(before.get(key).and_then(Json::as_object));
        match parts {
            Some((now, before)) if key == "measured by" && now.keys().eq(before.keys()) => {
                let parts = now.iter().filter(|(part, value)| before.get(*part) != Some(value));
                let mut parts: Vec<&str> = parts
                    .map(|(part, value)| match &part[..] {
                        TEXTS if reordered(&before[TEXTS], value) => "the order of texts",
                        part => part,
                    })
                    .collect();
                // They follow from the rest, where that says why.
                let says_more = parts.iter().any(|part| *part != TOKENS);
                parts.retain(|part| *part != TOKENS || !says_more);
                differs.extend(parts);
            }
            _ => differs.push(key),
        }
    }
    let differs = if differs.is_empty() { "all of it".into() } else { differs.join(", ") };
    Error::config(format!("{} is of another sweep: {differs} changed", path.display()))
        .hint("give another folder, or --restart to begin anew in this one")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn entry(x: f64) -> Entry {
        Entry {
            point: vec![x],
            seed: 0,
            whole: false,
            losses: vec![3.25],
            errors: vec![None],
            seconds: 0.5,
            failed: None,
        }
    }

    #[test]
    fn what_was_measured_is_there_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sweep.jsonl");
        let setup = json!({ "config": "a", "texts": "b" });
        let mut journal = Journal::open(&path, &setup, false).unwrap();
        journal.add(entry(0.1)).unwrap();
        assert!(Journal::open(&path, &setup, false).unwrap_err().message.contains("in use"));
        journal.add(entry(0.2)).unwrap();
        drop(journal);
        // Killed in the middle of a line, and on a full disk in the middle of a character.
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"{\"point\": [0.3], \"se\n{\"failed\": \"\xe2\x80").unwrap();
        drop(file);
        let mut journal = Journal::open(&path, &setup, false).unwrap();
        assert_eq!(journal.entries, [entry(0.1), entry(0.2)]);
        assert!(journal.find(&[0.2], 0, false).is_some() && journal.find(&[0.2], 0, true).is_none());
        let failed =
            Entry { failed: Some("why".into()), losses: Vec::new(), errors: Vec::new(), ..entry(0.4) };
        journal.add(failed.clone()).unwrap();
        assert!(journal.find(&[0.4], 0, false).is_none(), "what failed is no measurement");
        journal.add(entry(0.4)).unwrap();
        drop(journal);
        let journal = Journal::open(&path, &setup, false).unwrap();
        assert_eq!(journal.entries[2..], [failed, entry(0.4)]);
        assert_eq!(journal.find(&[0.4], 0, false), Some(&entry(0.4)));
        assert_eq!((Journal::count(&path), Journal::count(folder.path())), (3, 0));
        drop(journal);
        let refused = Journal::open(&path, &json!({ "config": "a", "texts": "c" }), false).unwrap_err();
        assert!(refused.message.ends_with("another sweep: texts changed"), "{}", refused.message);
    }

    #[test]
    fn what_measures_otherwise_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sweep.jsonl");
        let setup = |by: Json| json!({ "config": "a", "measured by": by });
        let of = |machine: &str| setup(json!({ "texts": "b", "read on": machine }));
        drop(Journal::open(&path, &of("cpu"), false).unwrap());
        drop(Journal::open(&path, &of("cpu"), false).unwrap());
        let two = |texts: [&str; 2], window: u64, tokens: &str| {
            setup(json!({ "texts": texts, "--window": window, "tokens": tokens, "read on": "cpu" }))
        };
        for (other, what) in
            [(of("cuda:0"), "read on changed"), (two(["b", "c"], 8, "d"), "measured by changed")]
        {
            let refused = Journal::open(&path, &other, false).unwrap_err();
            assert!(refused.message.ends_with(&format!("another sweep: {what}")), "{}", refused.message);
        }
        drop(Journal::open(&path, &two(["b", "c"], 8, "d"), true).unwrap());
        for (other, what) in [
            (two(["c", "b"], 8, "e"), "the order of texts changed"),
            (two(["b", "e"], 8, "e"), "texts changed"),
            (two(["b", "c"], 16, "e"), "--window changed"),
            (two(["b", "c"], 8, "e"), "tokens changed"),
        ] {
            let refused = Journal::open(&path, &other, false).unwrap_err();
            assert!(refused.message.ends_with(&format!("another sweep: {what}")), "{}", refused.message);
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_pipe_and_what_is_vast_are_no_journals() {
        use rustix::fs::{CWD, FileType, Mode, mknodat};
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal.jsonl");
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let vast = folder.path().join("vast.jsonl");
        File::create(&vast).unwrap().set_len(JOURNAL_BYTES_MAX + 1).unwrap();
        for (path, why) in
            [(path, "is not a regular file"), (vast, "has more than 67.1 MB: no sweep wrote it")]
        {
            let refused = Journal::open(&path, &Json::Null, false).unwrap_err();
            assert!(refused.message.contains(why) && refused.hint.is_some(), "{refused}");
        }
    }
}

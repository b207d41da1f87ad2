//! What tests among faults share: what is tried with each call of the system, how long it may take, and small models for it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::io::Errno;
use serde_json::{Map, Value as Json, json};

use super::Op;
use super::disk::Random;
use super::hook::Fault;

/// What takes longer hangs.
const PATIENCE: Duration = Duration::from_mins(1);

/// Whether all is tried.
pub(crate) fn all() -> bool {
    std::env::var_os("MERGEFORGE_FAULTS").is_some_and(|value| value == "all")
}

/// The result of work that may take a minute.
pub(crate) fn in_time<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (ended, end) = mpsc::channel();
    let thread = thread::spawn(move || ended.send(work()).is_ok());
    let result = end.recv_timeout(PATIENCE).expect("it hangs, or panicked");
    assert!(thread.join().expect("it has ended"));
    result
}

/// What is tried with calls of a kind, whether it lasts, and whether all has to end well then.
pub(crate) fn faults(op: Op) -> Vec<(Fault, bool, bool)> {
    let error = |cause| (Fault::Error(cause), false, false);
    let lasting = |cause| (Fault::Error(cause), true, false);
    let mut faults = vec![error(Errno::IO), (Fault::Error(Errno::INTR), false, true)];
    if matches!(op, Op::Read | Op::Write) {
        faults.extend([(Fault::Short, false, true), (Fault::Short, true, true), lasting(Errno::IO)]);
    }
    if matches!(
        op,
        Op::Make
            | Op::MakeFolder
            | Op::Write
            | Op::SetSize
            | Op::TakeSpace
            | Op::Sync
            | Op::Rename
            | Op::Link
    ) {
        faults.extend([error(Errno::NOSPC), lasting(Errno::NOSPC)]);
    }
    if matches!(op, Op::Sync | Op::SyncFolder | Op::Remove) {
        faults.push(lasting(Errno::IO));
    }
    if matches!(
        op,
        Op::Open
            | Op::Make
            | Op::MakeFolder
            | Op::Rename
            | Op::Remove
            | Op::List
            | Op::Look
            | Op::SetMode
            | Op::Link
    ) {
        faults.push(error(Errno::ACCESS));
    }
    faults
}

/// Files by their names, with what they hold.
pub(crate) type Files = BTreeMap<String, Vec<u8>>;

/// The files below a folder, links followed; none where it is not there.
pub(crate) fn files(folder: &Path) -> Files {
    let mut found = Files::new();
    for entry in fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path()) {
        let name = entry.file_name().unwrap().to_str().unwrap().to_owned();
        if entry.is_dir() {
            let inside = files(&entry).into_iter().map(|(file, bytes)| (format!("{name}/{file}"), bytes));
            found.extend(inside);
        } else {
            use std::io::Read;
            let mut bytes = Vec::new();
            fs::OpenOptions::new().read(true).open(&entry).unwrap().read_to_end(&mut bytes).unwrap();
            found.insert(name, bytes);
        }
    }
    found
}

/// A file of safetensors.
pub(crate) fn shard(tensors: &[(String, Vec<u8>)]) -> Vec<u8> {
    let (mut header, mut data) = (Map::new(), Vec::new());
    for (name, bytes) in tensors {
        let end = data.len() + bytes.len();
        let entry = json!({ "dtype": "BF16", "shape": [bytes.len() / 2], "data_offsets": [data.len(), end] });
        header.insert(name.clone(), entry);
        data.extend(bytes);
    }
    let header = Json::Object(header).to_string();
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat()
}

/// Numbers in bfloat16 that look random, without NaN and infinity.
pub(crate) fn numbers(elements: usize, random: &mut Random) -> Vec<u8> {
    (0..elements).flat_map(|_| (random.below(1 << 16) as u16 & 0xbfff).to_le_bytes()).collect()
}

/// Makes a pipe that nobody writes to.
pub(crate) fn pipe(path: &Path) {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
}

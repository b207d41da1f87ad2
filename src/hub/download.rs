//! Large files into the cache: several at once, each by several ranges at once, written and hashed in order.
//!
//! What has come of a file is always its beginning, without holes, in the place where the Hub's clients keep such beginnings: so a
//! download that was cut off goes on from there, whoever began it, and the hash is computed while the file comes.

use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::Watch;
use super::cache::{make_parent, unwritable};
use super::file::{Entry, RemoteFile};
use super::hashes::Hasher;
use super::refusals::damaged;
use super::snapshot::Snapshot;
use crate::error::{Error, Kind, Result};
use crate::files::{self, File, TryLockError};
use crate::threads;

/// Connections at once.
const CONNECTIONS: usize = 8;

/// What is asked for at once.
const CHUNK_BYTES: u64 = 8 << 20;

/// Chunks that are on their way, or wait for those before them: what this takes of memory.
const CHUNKS_MAX: usize = 2 * CONNECTIONS;

/// Files that are written at once.
const OPEN_MAX: usize = 4;

/// What is hashed at once of a beginning that is there.
const HASHED_BYTES: usize = 1 << 20;

/// A file of a repository that is to lie in the cache.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The repository.
    pub snapshot: Arc<Snapshot>,
    /// The file.
    pub file: String,
}

impl Wanted {
    fn entry(&self) -> &Entry {
        self.snapshot.entry(&self.file).expect("what is wanted is listed")
    }

    /// The bytes that have to come.
    pub fn missing_bytes(&self) -> u64 {
        let Entry { bytes, hash } = self.entry();
        let repository = self.snapshot.repository();
        if repository.has_blob(hash, *bytes) {
            return 0;
        }
        let begun = files::metadata(&repository.incomplete(hash)).map_or(0, |metadata| metadata.len());
        if begun > *bytes { *bytes } else { bytes - begun }
    }
}

/// The bytes that have to come of all of them, each once.
pub fn missing_bytes(wanted: &[Wanted]) -> u64 {
    let by_blob =
        |wanted: &Wanted| (wanted.snapshot.repository().blob(&wanted.entry().hash), wanted.missing_bytes());
    wanted.iter().map(by_blob).collect::<BTreeMap<_, _>>().into_values().sum()
}

/// Fetches files into the cache. What has come of them stays there, whatever happens.
///
/// # Errors
/// Kind `Network`: one cannot be had, or is not what its repository lists. Kind `Output`: the cache cannot be written. Kind
/// `Interrupted`: the user wants to stop.
pub fn fetch(wanted: &[Wanted], watch: &dyn Watch) -> Result<()> {
    let mut by_blob = BTreeMap::new();
    for wanted in wanted {
        by_blob.entry(wanted.snapshot.repository().blob(&wanted.entry().hash)).or_insert_with(|| {
            (wanted.clone(), wanted.snapshot.remote(&wanted.file).expect("what is wanted is listed"))
        });
    }
    let by_folder: BTreeMap<_, _> =
        wanted.iter().map(|wanted| (wanted.snapshot.folder(), &wanted.snapshot)).collect();
    by_folder.into_values().try_for_each(|snapshot| snapshot.settle())?;
    let fetching = Fetching {
        files: by_blob.into_values().collect(),
        state: Mutex::default(),
        changed: Condvar::new(),
        watch,
    };
    fetching.state().stages.resize_with(fetching.files.len(), || Stage::Waiting);
    threads::share(CONNECTIONS, |_| fetching.work());
    let failure = fetching.state().failure.take();
    if let Some(failure) = failure {
        return Err(failure);
    }
    wanted.iter().try_for_each(|Wanted { snapshot, file }| {
        let hash = &snapshot.entry(file).expect("it is listed").hash;
        snapshot.repository().link(&snapshot.commit, file, hash)
    })
}

/// What the threads share.
struct Fetching<'a> {
    files: Vec<(Wanted, Arc<RemoteFile>)>,
    state: Mutex<State>,
    changed: Condvar,
    watch: &'a dyn Watch,
}

#[derive(Default)]
struct State {
    stages: Vec<Stage>,
    /// Chunks that were asked for and are not written yet.
    chunks: usize,
    failure: Option<Error>,
}

/// How far a file is.
enum Stage {
    /// Not begun, or somebody else is writing it.
    Waiting,
    /// A thread looks at what is there of it, or completes it.
    Busy,
    Coming(Coming),
    Done,
}

/// A file of which chunks come.
struct Coming {
    /// Up to where chunks were asked for.
    asked: u64,
    /// Up to where it is written.
    written: u64,
    /// Chunks that wait for those before them, by their places.
    pending: BTreeMap<u64, Vec<u8>>,
    /// None while a thread writes.
    sink: Option<Sink>,
}

/// Where a file is written to.
struct Sink {
    file: File,
    hasher: Hasher,
    /// Whether something of it was there before.
    was_begun: bool,
    /// Held until it is whole.
    _lock: Option<File>,
}

/// What a thread does next.
enum Job {
    Begin(usize),
    Bring(usize, Range<u64>),
    Wait,
    End,
}

impl Fetching<'_> {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        loop {
            let job = self.next();
            let outcome = match job {
                Job::Begin(file) => self.begin(file),
                Job::Bring(file, range) => self.bring(file, range),
                Job::Wait => {
                    let state = self.state();
                    // Not for ever: the lock of another process gives no sign.
                    let _ = self.changed.wait_timeout(state, Duration::from_millis(100));
                    Ok(())
                }
                Job::End => return,
            };
            if let Err(failure) = outcome {
                self.state().failure.get_or_insert(failure);
            }
            self.changed.notify_all();
        }
    }

    fn next(&self) -> Job {
        let mut state = self.state();
        if self.watch.stop() && state.failure.is_none() {
            state.failure = Some(interrupted());
        }
        let is_done = state.stages.iter().all(|stage| matches!(stage, Stage::Done));
        if is_done || state.failure.is_some() {
            return Job::End;
        }
        let is_open = |stage: &&Stage| matches!(stage, Stage::Busy | Stage::Coming(_));
        let may_open = state.stages.iter().filter(is_open).count() < OPEN_MAX;
        let may_ask = state.chunks < CHUNKS_MAX;
        for (file, stage) in state.stages.iter_mut().enumerate() {
            let bytes = self.files[file].1.bytes();
            match stage {
                Stage::Waiting if may_open => {
                    *stage = Stage::Busy;
                    return Job::Begin(file);
                }
                Stage::Coming(coming) if may_ask && coming.asked < bytes => {
                    let range = coming.asked..bytes.min(coming.asked + CHUNK_BYTES);
                    coming.asked = range.end;
                    state.chunks += 1;
                    return Job::Bring(file, range);
                }
                _ => {}
            }
        }
        Job::Wait
    }

    /// Looks at what is there of a file, unless somebody else is writing it.
    fn begin(&self, file: usize) -> Result<()> {
        let entry = self.files[file].0.entry();
        let repository = self.files[file].0.snapshot.repository();
        let is_there = || repository.has_blob(&entry.hash, entry.bytes);
        if is_there() {
            self.state().stages[file] = Stage::Done;
            return Ok(());
        }
        let lock = match repository.lock(&entry.hash).map(|lock| (lock.try_lock(), lock)) {
            Some((Ok(()), lock)) => Some(lock),
            Some((Err(TryLockError::WouldBlock), _)) => {
                // Whoever has it brings the file; or ends, and then it is ours.
                thread::sleep(Duration::from_millis(50));
                self.state().stages[file] = Stage::Waiting;
                return Ok(());
            }
            // Some file systems have no locks, or none that hold. Two that write at once put the same bytes at the same places.
            None | Some((Err(TryLockError::Error(_)), _)) => None,
        };
        // Another process may have brought it before the lock was ours.
        if is_there() {
            self.state().stages[file] = Stage::Done;
            return Ok(());
        }
        let path = repository.incomplete(&entry.hash);
        let failed = |cause| unwritten(&path, &cause);
        make_parent(&path)?;
        let mut begun = File::open_or_make(&path, 0o666).map_err(failed)?;
        let found = begun.metadata().map_err(failed)?;
        if !found.is_file() {
            return Err(failed(io::ErrorKind::AlreadyExists.into()));
        }
        let mut written = found.len();
        if written > entry.bytes {
            begun.set_len(0).map_err(failed)?;
            written = 0;
        }
        let mut hasher = entry.hasher();
        let mut room = vec![0; HASHED_BYTES];
        let mut left = written;
        while left > 0 {
            if self.watch.stop() {
                return Err(interrupted());
            }
            let most = room.len().min(left as usize);
            begun.read_exact(&mut room[..most]).map_err(failed)?;
            hasher.update(&room[..most]);
            left -= most as u64;
        }
        let sink = Sink { file: begun, hasher, was_begun: written > 0, _lock: lock };
        if written == entry.bytes {
            return self.complete(file, sink);
        }
        let coming = Coming { asked: written, written, pending: BTreeMap::new(), sink: Some(sink) };
        self.state().stages[file] = Stage::Coming(coming);
        Ok(())
    }

    /// Brings a chunk, and writes what can be written then.
    fn bring(&self, file: usize, range: Range<u64>) -> Result<()> {
        let mut chunk = Vec::with_capacity((range.end - range.start) as usize);
        let start = range.start;
        let stop = || self.watch.stop() || self.state().failure.is_some();
        let came = self.files[file].1.read(range, &stop, &mut |bytes| {
            chunk.extend_from_slice(bytes);
            self.watch.arrived(bytes.len() as u64);
            Ok(())
        });
        came.map_err(|failure| if failure.kind == Kind::Interrupted { interrupted() } else { failure })?;
        let mut state = self.state();
        let Stage::Coming(coming) = &mut state.stages[file] else { unreachable!("its chunks come") };
        coming.pending.insert(start, chunk);
        let Some(mut sink) = coming.sink.take() else { return Ok(()) };
        loop {
            let Stage::Coming(coming) = &mut state.stages[file] else { unreachable!("its chunks come") };
            let Some(chunk) = coming.pending.remove(&coming.written) else {
                if coming.written == self.files[file].1.bytes() {
                    state.stages[file] = Stage::Busy;
                    drop(state);
                    return self.complete(file, sink);
                }
                coming.sink = Some(sink);
                return Ok(());
            };
            let written = coming.written;
            drop(state);
            let path =
                || self.files[file].0.snapshot.repository().incomplete(&self.files[file].0.entry().hash);
            sink.file
                .seek(SeekFrom::Start(written))
                .and_then(|_| sink.file.write_all(&chunk))
                .map_err(|cause| unwritten(&path(), &cause))?;
            sink.hasher.update(&chunk);
            state = self.state();
            state.chunks -= 1;
            let Stage::Coming(coming) = &mut state.stages[file] else { unreachable!("its chunks come") };
            coming.written += chunk.len() as u64;
            self.changed.notify_all();
        }
    }

    /// Gives a file that has come whole its name, if it is what its repository lists.
    fn complete(&self, file: usize, sink: Sink) -> Result<()> {
        let Wanted { snapshot, file: name } = &self.files[file].0;
        let (entry, repository) = (self.files[file].0.entry(), snapshot.repository());
        let path = repository.incomplete(&entry.hash);
        let failed = |cause| unwritten(&path, &cause);
        let found = sink.hasher.finish();
        if found != entry.hash {
            files::remove_file(&path).map_err(failed)?;
            if !sink.was_begun {
                return Err(damaged(snapshot.name(), name, &found, &entry.hash));
            }
            // The beginning that was there may have been another file's, or damaged when a machine lost its power.
            self.state().stages[file] = Stage::Waiting;
            return Ok(());
        }
        sink.file.sync_all().map_err(failed)?;
        let blob = repository.blob(&entry.hash);
        match files::rename(&path, &blob) {
            // Another process without a lock was first.
            Err(cause) if cause.kind() == io::ErrorKind::NotFound && files::exists(&blob) => {}
            renamed => renamed.map_err(|cause| unwritten(&blob, &cause))?,
        }
        snapshot.keep_verified(&entry.hash);
        self.state().stages[file] = Stage::Done;
        Ok(())
    }
}

/// As [`unwritable`], of weights, which need not be kept.
fn unwritten(path: &Path, cause: &io::Error) -> Error {
    let error = unwritable(path, cause);
    match error.hint.clone().filter(|_| files::is_full(cause)) {
        Some(hint) => error.hint(format!("{hint}; or read weights without keeping them: --stream")),
        None => error,
    }
}

fn interrupted() -> Error {
    Error::interrupted().hint("what has come of the models is kept: the same command goes on from there")
}

//! A file of a repository, read by ranges.

use std::collections::VecDeque;
use std::io::Read;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::client::{Client, Failure, Refusal, Tries, broken, host, network};
use super::hashes::Hasher;
use super::refusals::explained;
use crate::error::{Error, Result};

/// What is read at once from a connection.
const READ_BYTES: usize = 128 << 10;

/// The least that is asked for: small pieces of a file stand beside each other and are wanted one after the other.
const WINDOW_BYTES: u64 = 4 << 20;

/// The same while headers are read: most have a tenth of this.
const HEAD_WINDOW_BYTES: u64 = 64 << 10;

/// What windows of all files may take together.
const WINDOWS_BYTES_MAX: usize = 64 << 20;

/// A part of a file: the file's number, where the part begins, what it holds.
type Window = (u64, u64, Arc<[u8]>);

/// Windows that are kept, the last one that came first.
static WINDOWS: Mutex<VecDeque<Window>> = Mutex::new(VecDeque::new());

/// Numbers of files.
static FILES: AtomicU64 = AtomicU64::new(0);

/// What a repository says of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) bytes: u64,
    /// What the cache calls its content: the SHA-256 of a large file, else git's own SHA-1.
    pub(super) hash: String,
}

impl Entry {
    /// Whether it is one of those whose SHA-256 is known.
    pub(super) fn is_large(&self) -> bool {
        self.hash.len() == 64
    }

    /// What computes the hash of its content.
    pub(super) fn hasher(&self) -> Hasher {
        Hasher::of(self.hash.len(), self.bytes)
    }
}

/// A file on the Hub, whose bytes are asked for as they are wanted.
#[derive(Debug)]
pub struct RemoteFile {
    client: Arc<Client>,
    /// Set when whoever reads should stop.
    stop: Arc<AtomicBool>,
    repository: String,
    commit: String,
    name: String,
    entry: Entry,
    /// Where the Hub has sent us for it: that holds for minutes, and spares the Hub a question for each range.
    direct: Mutex<Option<Direct>>,
    /// Its own among all that were opened.
    number: u64,
}

/// An address on another server, and what that called the content.
#[derive(Debug, Clone)]
struct Direct {
    url: String,
    etag: Option<String>,
}

impl RemoteFile {
    pub(super) fn new(
        client: Arc<Client>,
        stop: Arc<AtomicBool>,
        repository: &str,
        commit: &str,
        name: &str,
        entry: Entry,
    ) -> Self {
        Self {
            client,
            stop,
            repository: repository.to_owned(),
            commit: commit.to_owned(),
            name: name.to_owned(),
            entry,
            direct: Mutex::default(),
            number: FILES.fetch_add(1, Ordering::Relaxed),
        }
    }

    /// Its size in bytes.
    pub fn bytes(&self) -> u64 {
        self.entry.bytes
    }

    /// Its SHA-256 as the Hub has it, of a large file.
    pub fn sha256(&self) -> Option<&str> {
        self.entry.is_large().then_some(self.entry.hash.as_str())
    }

    /// Its name with that of its repository, for messages.
    pub(super) fn shown(&self) -> String {
        format!("{}/{}", self.repository, super::cache::shown(&self.name))
    }

    /// Fills `into` from byte `offset` on. Small pieces come out of windows that are kept. Any thread may call it.
    ///
    /// # Errors
    /// Kind `Network`: it cannot be had, or is not the file any more that the repository's list names.
    pub fn read_at(&self, into: &mut [u8], offset: u64) -> Result<()> {
        self.read_windows(into, offset, WINDOW_BYTES)
    }

    /// As [`Self::read_at`], of a header.
    ///
    /// # Errors
    /// As there.
    pub fn read_head(&self, into: &mut [u8], offset: u64) -> Result<()> {
        self.read_windows(into, offset, HEAD_WINDOW_BYTES)
    }

    /// As [`Self::read_at`], of a few bytes alone: what stands beside them is not wanted.
    ///
    /// # Errors
    /// As there.
    pub fn peek(&self, into: &mut [u8], offset: u64) -> Result<()> {
        self.read_windows(into, offset, 1)
    }

    fn read_windows(&self, into: &mut [u8], offset: u64, window: u64) -> Result<()> {
        let end = offset + into.len() as u64;
        assert!(end <= self.entry.bytes, "read inside of {}", self.name);
        let stopped = || self.stop.load(Ordering::Relaxed);
        if into.len() as u64 >= window {
            let mut filled = 0;
            return self.read(offset..end, &stopped, &mut |bytes| {
                into[filled..filled + bytes.len()].copy_from_slice(bytes);
                filled += bytes.len();
                Ok(())
            });
        }
        let holds = |(number, start, bytes): &&Window| {
            *number == self.number && *start <= offset && end <= start + bytes.len() as u64
        };
        let found = lock(&WINDOWS).iter().find(holds).map(|(_, start, bytes)| (*start, Arc::clone(bytes)));
        let (start, bytes) = if let Some(window) = found {
            window
        } else {
            let asked = offset..self.entry.bytes.min(offset + window);
            let mut bytes = Vec::with_capacity((asked.end - asked.start) as usize);
            self.read(asked, &stopped, &mut |more| {
                bytes.extend_from_slice(more);
                Ok(())
            })?;
            let bytes: Arc<[u8]> = bytes.into();
            let mut windows = lock(&WINDOWS);
            windows.push_front((self.number, offset, Arc::clone(&bytes)));
            let mut room = WINDOWS_BYTES_MAX;
            windows.retain(|(_, _, bytes)| {
                let fits = bytes.len() <= room;
                room -= bytes.len().min(room);
                fits
            });
            (offset, bytes)
        };
        let at = (offset - start) as usize;
        into.copy_from_slice(&bytes[at..at + into.len()]);
        Ok(())
    }

    /// Asks for a range, as often as it takes, and hands on what comes, in order.
    ///
    /// # Errors
    /// As of [`Self::read_at`]; the user wants to stop; those of `take`.
    pub(super) fn read(
        &self,
        range: Range<u64>,
        stop: &dyn Fn() -> bool,
        take: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let (mut wanted, mut tries) = (range, Tries::new(stop));
        let mut room = vec![0; READ_BYTES.min((wanted.end - wanted.start) as usize)];
        while !wanted.is_empty() {
            if stop() {
                return Err(Error::interrupted());
            }
            let before = wanted.start;
            let outcome = self.read_once(&mut wanted, stop, &mut room, take);
            if wanted.start > before {
                tries.progressed();
            }
            if let Err(failure) = outcome {
                tries.after(failure, &|refused| self.refusal(refused))?;
            }
        }
        Ok(())
    }

    /// Asks for a range once. `wanted` is then what is missing of it.
    fn read_once(
        &self,
        wanted: &mut Range<u64>,
        stop: &dyn Fn() -> bool,
        room: &mut [u8],
        take: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> std::result::Result<(), Failure> {
        let direct = lock(&self.direct).clone();
        let path = format!(
            "{}/resolve/{}/{}",
            self.repository,
            self.commit,
            self.name.split('/').map(super::client::encoded).collect::<Vec<_>>().join("/")
        );
        let url = direct.as_ref().map_or_else(|| self.client.url(&path), |direct| direct.url.clone());
        let is_all = *wanted == (0..self.entry.bytes);
        let answer = match self.client.get(&url, (!is_all).then_some(&*wanted)) {
            // What the Hub has sent us to holds for a while; then it is asked again.
            Err(Failure::Passing(what, after)) if direct.is_some() => {
                *lock(&self.direct) = None;
                return Err(Failure::Passing(what, Some(after.unwrap_or_default())));
            }
            answer => answer?,
        };
        let moved = |what: String| {
            Failure::Final(network(format!("{} on the Hub is not what it was: {what}", self.shown())).hint(
                "run it again; a commit in place of a branch (`name@COMMIT`) always means the same files",
            ))
        };
        if let Some(commit) = answer.commit.as_ref().filter(|commit| **commit != self.commit) {
            return Err(moved(format!("it comes from commit {commit}, and was listed in {}", self.commit)));
        }
        if let (Some(etag), true) = (&answer.etag, self.entry.is_large())
            && etag.len() == 64
            && *etag != self.entry.hash
        {
            return Err(moved(format!("its SHA-256 would be {etag}, and was listed as {}", self.entry.hash)));
        }
        match answer.content_range() {
            Some((start, total)) if start == wanted.start && total == self.entry.bytes => {}
            Some((_, total)) if total != self.entry.bytes => {
                return Err(moved(format!("it has {total} bytes, and was listed with {}", self.entry.bytes)));
            }
            None if wanted.start == 0 && answer.status() == 200 => {}
            _ => {
                return Err(Failure::Final(
                    network(format!("{} does not send parts of files", host(&answer.url)))
                        .hint("download the model with its own tools, and give the folder"),
                ));
            }
        }
        if answer.is_elsewhere {
            let etag = answer.header("etag").map(str::to_owned);
            let place = |url: &str| url.split('?').next().unwrap_or(url).to_owned();
            let mut direct = lock(&self.direct);
            if let Some(known) = &*direct
                && place(&known.url) == place(&answer.url)
                && known.etag.is_some()
                && known.etag != etag
            {
                return Err(moved("its content was exchanged meanwhile".into()));
            }
            *direct = Some(Direct { url: answer.url.clone(), etag });
        }
        let url = answer.url.clone();
        let mut reader = answer.reader();
        while !wanted.is_empty() {
            if stop() {
                return Err(Failure::Final(Error::interrupted()));
            }
            let most = room.len().min((wanted.end - wanted.start) as usize);
            match reader.read(&mut room[..most]) {
                Ok(0) => return Err(broken(&url, &std::io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => {
                    take(&room[..count]).map_err(Failure::Final)?;
                    wanted.start += count as u64;
                }
                Err(cause) if cause.kind() == std::io::ErrorKind::Interrupted => {}
                Err(cause) => return Err(broken(&url, &cause)),
            }
        }
        Ok(())
    }

    fn refusal(&self, refused: &Refusal) -> Error {
        if refused.code == "EntryNotFound" || refused.status == 404 && refused.code.is_empty() {
            return network(format!("{} is listed, but not there", self.shown())).hint("run it again");
        }
        explained(&self.client, &self.repository, &self.commit, refused)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

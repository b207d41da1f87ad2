//! Models on the Hugging Face Hub: what a repository has, its files in the local cache, and what of them is fetched when.
//!
//! A repository at a commit is a [`Snapshot`]: a list of files with their sizes and hashes, a folder of the cache where those lie
//! that are here, and ranges of the others. Small files are fetched when they are opened. Of weights the headers are read, so that
//! a merge is planned, and all that is wrong with it reported, before the weights themselves are [fetched](fetch()), or read range by
//! range where they are not to be kept.
//!
//! The cache is that of the Hub's own clients (`blobs/`, `refs/`, `snapshots/`, locks), so that each finds what the other has
//! downloaded. Nothing outside of this module knows HTTP.

mod cache;
mod client;
mod download;
mod environment;
mod file;
mod hashes;
mod refusals;
mod snapshot;

pub(crate) use cache::SHARED_BLOBS;
pub use cache::{Repository, is_hex, is_hub_name};
pub use download::{Wanted, fetch, missing_bytes};
pub use environment::Environment;
pub use file::RemoteFile;
pub(crate) use hashes::Hasher;
pub use snapshot::{Pieces, Snapshot, is_verified, suspect};

#[cfg(all(test, target_os = "linux"))]
#[allow(dead_code, reason = "other tests use the rest of it")]
#[path = "../tests/all/hub_server/mod.rs"]
mod hub_server;
#[cfg(all(test, target_os = "linux"))]
mod tests;

use std::sync::{Arc, Mutex, PoisonError};

use crate::error::{Error, Result};
use crate::threads;
use client::Client;

/// What is done about models that are not on this machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Remote {
    /// What a merge needs of them is fetched into the cache, once it is planned.
    #[default]
    Fetched,
    /// Their weights are read from the Hub while they are merged, and not kept.
    Streamed,
    /// They are refused: no connection is made.
    Offline,
}

/// Who waits for what is fetched.
pub trait Watch: Sync {
    /// So many bytes more have come.
    fn arrived(&self, bytes: u64);
    /// Whether it should stop.
    fn stop(&self) -> bool;
}

/// A repository of the Hub at a revision: a branch, a tag or a commit, `main` when absent. Asks the Hub unless both the commit and
/// the list of its files are known; where `is_offline`, nobody is asked for anything.
///
/// # Errors
/// Kind `Config`: there is no such repository or revision, or it may not be read. Kind `Network`: the Hub cannot be reached.
pub fn snapshot(
    environment: &Environment,
    name: &str,
    revision: Option<&str>,
    is_offline: bool,
) -> Result<Arc<Snapshot>> {
    let repository = environment.repository(name).ok_or_else(|| {
        Error::config(format!("there is no home folder to keep {name} in"))
            .hint("set HF_HUB_CACHE to a folder")
    })?;
    let client = client(environment, is_offline)?;
    let stop = threads::stop_sign();
    Snapshot::open(&client, repository, revision.unwrap_or("main"), environment.known(), stop).map(Arc::new)
}

/// Fetches a file of a repository into the cache, if it is not there.
///
/// # Errors
/// Kind `Network`: it cannot be had, or is not what the repository lists. Kind `Output`: the cache cannot be written.
pub fn bring(snapshot: &Arc<Snapshot>, file: &str) -> Result<()> {
    /// What is fetched through memory.
    const HELD_BYTES_MAX: u64 = 32 << 20;
    if snapshot.is_here(file) || snapshot.bytes(file).is_none_or(|bytes| bytes <= HELD_BYTES_MAX) {
        return snapshot.bring_small(file);
    }
    fetch(&[Wanted { snapshot: Arc::clone(snapshot), file: file.to_owned() }], &Unseen(snapshot))
}

/// Nobody sees what arrives.
struct Unseen<'a>(&'a Snapshot);

impl Watch for Unseen<'_> {
    fn arrived(&self, _bytes: u64) {}
    fn stop(&self) -> bool {
        self.0.is_stopped()
    }
}

/// The client of this process: its connections are used again.
fn client(environment: &Environment, is_offline: bool) -> Result<Arc<Client>> {
    static CLIENT: Mutex<Option<Arc<Client>>> = Mutex::new(None);
    let mut client = CLIENT.lock().unwrap_or_else(PoisonError::into_inner);
    match &*client {
        Some(client) if client.suits(environment, is_offline) => Ok(Arc::clone(client)),
        _ => Ok(Arc::clone(client.insert(Arc::new(Client::new(environment, is_offline)?)))),
    }
}

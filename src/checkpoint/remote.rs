//! Files of weights that lie on the Hub and not here: their headers, and their bytes where they are not fetched.

use std::cell::RefCell;
use std::io;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::file::ReadAt;
use super::source_file::Elsewhere;
use crate::error::{Error, Result};
use crate::hub::{Pieces, RemoteFile, Snapshot};

/// A file on the Hub that is read as one here, for its header.
#[derive(Debug)]
pub struct RemoteHead<'a> {
    file: &'a RemoteFile,
    /// What was read of it.
    pieces: RefCell<Pieces>,
    /// Why it could not be read. What the reader of a format makes of that says less.
    failure: RefCell<Option<Error>>,
}

impl<'a> RemoteHead<'a> {
    /// One of which these pieces are known.
    pub fn new(file: &'a RemoteFile, known: Pieces) -> Self {
        Self { file, pieces: RefCell::new(known), failure: RefCell::default() }
    }

    /// What a reader of it made; its own failure comes first.
    ///
    /// # Errors
    /// It could not be read, or `made` says what is wrong with it.
    pub fn settled<T>(&self, made: Result<T>) -> Result<T> {
        self.failure.take().map_or(made, Err)
    }

    /// The pieces that were read, and those that were known.
    pub fn into_pieces(self) -> Pieces {
        self.pieces.into_inner()
    }
}

impl ReadAt for RemoteHead<'_> {
    fn fill(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset.saturating_add(into.len() as u64);
        if end > self.file.bytes() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut pieces = self.pieces.borrow_mut();
        if let Some((start, piece)) = pieces.range(..=offset).next_back() {
            let at = (offset - start) as usize;
            if let Some(known) = piece.get(at..).and_then(|rest| rest.get(..into.len())) {
                into.copy_from_slice(known);
                return Ok(());
            }
        }
        self.file.read_head(into, offset).map_err(|failure| {
            let cause = io::Error::other(failure.message.clone());
            self.failure.replace(Some(failure));
            cause
        })?;
        pieces.insert(offset, into.to_vec());
        Ok(())
    }
}

/// A file that is read from the Hub while it is merged.
#[derive(Debug)]
pub struct Streamed {
    /// The repository.
    pub snapshot: Arc<Snapshot>,
    /// The file.
    pub file: Arc<RemoteFile>,
}

impl Elsewhere for Streamed {
    fn read_at(&self, into: &mut [u8], offset: u64) -> Result<()> {
        self.file.read_at(into, offset)
    }

    fn peek(&self, into: &mut [u8], offset: u64) -> Result<()> {
        self.file.peek(into, offset)
    }

    fn identity(&self) -> Map<String, Value> {
        let mut identity = Map::new();
        if let Some(sha256) = self.file.sha256() {
            identity.insert("sha256".into(), sha256.into());
            identity.insert("sha256_verified".into(), false.into());
        }
        identity
    }

    fn repository(&self) -> Option<&Arc<Snapshot>> {
        Some(&self.snapshot)
    }
}

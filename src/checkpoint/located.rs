//! Where a model is: here, on the Hub, or in part on both.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::Error;
use crate::files;
use crate::hub::Snapshot;

/// Where a model is.
#[derive(Debug, Clone)]
pub struct Located {
    /// Its folder or file, here.
    pub place: PathBuf,
    /// The repository of the Hub, where not all of it may be here.
    pub snapshot: Option<Arc<Snapshot>>,
    /// Why the Hub could not be asked for what seems to be missing.
    pub unreachable: Option<Error>,
}

impl Located {
    /// Whether it has a file of this name, here or on the Hub.
    pub fn has(&self, name: &str) -> bool {
        files::is_file(&self.place.join(name))
            || self.snapshot.as_ref().is_some_and(|snapshot| snapshot.has(name))
    }
}

impl<P: AsRef<Path>> From<P> for Located {
    fn from(place: P) -> Self {
        Self { place: place.as_ref().to_path_buf(), snapshot: None, unreachable: None }
    }
}

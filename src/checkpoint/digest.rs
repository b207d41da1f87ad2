//! The SHA-256 of files, which is what others call content by: of the small files beside the weights, and of all that a merge reads,
//! where somebody wants to know it.

use std::io::{self, Read};

use super::folder::InputFile;
use super::source::Source;
use super::source_file::SourceFile;
use crate::error::{Error, Result};
use crate::files::File;
use crate::hub::Hasher;

/// What is read at a time: little beside what a disk gives in the meantime.
const READ_BYTES: usize = 1 << 20;

/// Who hears of bytes that were hashed, and may end it with an error.
pub type GoOn<'a> = &'a (dyn Fn(u64) -> Result<()> + Sync);

/// The SHA-256 of bytes, in hexadecimal.
pub fn sha256_of(bytes: &[u8]) -> String {
    let mut hasher = Hasher::sha256();
    hasher.update(bytes);
    hasher.finish()
}

/// The length of what an open file holds from where it stands, and its SHA-256. Within: what the system says of a read that fails.
fn sha256_of_open(file: &mut File, go_on: GoOn<'_>) -> Result<io::Result<(u64, String)>> {
    let (mut hasher, mut bytes, mut buffer) = (Hasher::sha256(), 0, vec![0; READ_BYTES]);
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(Ok((bytes, hasher.finish()))),
            Ok(count) => {
                hasher.update(&buffer[..count]);
                bytes += count as u64;
                go_on(count as u64)?;
            }
            Err(cause) => return Ok(Err(cause)),
        }
    }
}

impl InputFile {
    /// How many bytes it has, and their SHA-256 in hexadecimal.
    ///
    /// # Errors
    /// Kind `Input`: it cannot be read; and those of `go_on`.
    pub fn sha256(&self, go_on: GoOn<'_>) -> Result<(u64, String)> {
        let (mut file, _) = self.open()?;
        sha256_of_open(&mut file, go_on)?.map_err(|cause| Error::reading(&self.path(), &cause))
    }
}

impl Source {
    /// Of each of its files of weights, the bytes that [`Self::hash_file`] would read: none where its SHA-256 is known.
    pub fn unhashed_bytes(&self) -> Vec<u64> {
        self.files.iter().map(SourceFile::unhashed_bytes).collect()
    }

    /// Reads a file of weights whole, by its place among them, and keeps its SHA-256 for [`Self::provenance`].
    ///
    /// # Errors
    /// Kind `Input`: it cannot be read, changed, or is not what the Hugging Face cache calls it; and those of `go_on`.
    pub fn hash_file(&self, place: usize, go_on: GoOn<'_>) -> Result<()> {
        self.files[place].hash(|file| sha256_of_open(file, go_on))
    }
}

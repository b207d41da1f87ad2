//! The hashes that content is called by.

use sha1::Sha1;
use sha2::{Digest, Sha256};

/// Computes what the cache calls content by, piece by piece.
pub enum Hasher {
    /// The SHA-256 of a large file.
    Sha256(Sha256),
    /// What git calls a small one.
    Git(Sha1),
}

impl Hasher {
    /// That of a large file.
    pub fn sha256() -> Self {
        Self::Sha256(Sha256::new())
    }

    /// That of a file in git, which has so many bytes.
    pub(super) fn git(bytes: u64) -> Self {
        Self::Git(Sha1::new().chain_update(format!("blob {bytes}\0")))
    }

    /// That of a hash of so many digits, of so many bytes.
    pub(super) fn of(digits: usize, bytes: u64) -> Self {
        if digits == 64 { Self::sha256() } else { Self::git(bytes) }
    }

    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Git(hasher) => hasher.update(bytes),
        }
    }

    /// The hash, in hexadecimal.
    pub fn finish(self) -> String {
        match self {
            Self::Sha256(hasher) => hex(&hasher.finalize()),
            Self::Git(hasher) => hex(&hasher.finalize()),
        }
    }
}

fn hex(digest: &[u8]) -> String {
    use std::fmt::Write;
    digest.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string takes all");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_git_and_lfs() {
        let of = |mut hasher: Hasher, pieces: &[&str]| {
            pieces.iter().for_each(|piece| hasher.update(piece.as_bytes()));
            hasher.finish()
        };
        assert_eq!(of(Hasher::git(6), &["hel", "lo\n"]), "ce013625030ba8dba906f756967f9e9ca394464a");
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(of(Hasher::sha256(), &["a", "bc"]), abc);
    }
}

//! The cache on disk, as the Hub's own clients lay it out.
//!
//! ```text
//! CACHE/models--ORG--NAME/refs/REVISION        a file that holds a commit
//!                         blobs/HASH           what files hold, once
//!                         blobs/HASH.incomplete  the beginning of one
//!                         snapshots/COMMIT/FILE  a link to ../../blobs/HASH
//! CACHE/.locks/models--ORG--NAME/HASH.lock     held while a blob is written
//! ```

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::cache::read_small;
use crate::error::{Error, Result};
use crate::files::{self, File};
use crate::limits::REFERENCE_BYTES_MAX;
use crate::text::quoted;

/// A commit may be shortened to this many characters, as git does.
const COMMIT_PREFIX_MIN: usize = 7;

/// The cache of one repository. It need not be there.
#[derive(Debug, Clone)]
pub struct Repository {
    /// The repository's name, `ORG/NAME` or `NAME`.
    pub name: String,
    /// `CACHE/models--ORG--NAME`.
    pub folder: PathBuf,
    locks: PathBuf,
}

impl Repository {
    /// That of a name in a cache.
    pub fn new(name: &str, cache: &Path) -> Self {
        let folder = format!("models--{}", name.replace('/', "--"));
        Self { name: name.to_owned(), locks: cache.join(".locks").join(&folder), folder: cache.join(folder) }
    }

    /// Whether anything of it is here.
    pub fn exists(&self) -> bool {
        files::is_folder(&self.folder)
    }

    /// The folder of a commit.
    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// What a file holds, by its hash.
    pub(super) fn blob(&self, hash: &str) -> PathBuf {
        self.folder.join("blobs").join(hash)
    }

    /// Whether a blob is here, whole. After a power failure it may have its name and nothing else.
    pub(super) fn has_blob(&self, hash: &str, bytes: u64) -> bool {
        files::metadata(&self.blob(hash)).is_ok_and(|blob| blob.is_file() && blob.len() == bytes)
    }

    /// The beginning of a blob.
    pub(super) fn incomplete(&self, hash: &str) -> PathBuf {
        self.folder.join("blobs").join(format!("{hash}.incomplete"))
    }

    /// The commits that are here, sorted. An unreadable folder holds none.
    pub fn commits(&self) -> Vec<String> {
        let entries = files::list(&self.folder.join("snapshots")).into_iter().flatten().flatten();
        let mut names: Vec<String> =
            entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        names
    }

    /// The commit that a branch, tag, commit or shortened commit stands for, as far as this cache knows.
    ///
    /// # Errors
    /// Kind `Config`: it is no revision, its entry is damaged, or more than one commit begins so.
    pub fn commit_of(&self, revision: &str) -> Result<Option<String>> {
        let name = &self.name;
        if !is_plain_revision(revision) {
            return Err(Error::config(format!("model {name:?}: {revision:?} is not a revision")));
        }
        if let Ok(commit) = read_small(&self.folder.join("refs").join(revision), REFERENCE_BYTES_MAX) {
            let commit = String::from_utf8_lossy(&commit).trim().to_owned();
            if is_hex(&commit) {
                return Ok(Some(commit));
            }
            return Err(Error::config(format!(
                "the cache entry of {name:?} for {revision:?} holds no commit"
            ))
            .hint(format!("remove {}", self.folder.join("refs").join(revision).display())));
        }
        let commits = self.commits();
        if commits.iter().any(|commit| commit == revision) {
            return Ok(Some(revision.to_owned()));
        }
        let long_enough = revision.len() >= COMMIT_PREFIX_MIN && is_hex(revision);
        let mut matches = commits.iter().filter(|commit| long_enough && commit.starts_with(revision));
        match (matches.next(), matches.next()) {
            (Some(_), Some(_)) => Err(Error::config(format!(
                "model {name:?}: several snapshots in the cache start with {revision:?}"
            ))
            .hint("write more of the commit")),
            (only, _) => Ok(only.cloned()),
        }
    }

    /// Remembers the commit of a branch or tag.
    pub(super) fn keep_reference(&self, revision: &str, commit: &str) -> Result<()> {
        if revision == commit {
            return Ok(());
        }
        let file = self.folder.join("refs").join(revision);
        let is_kept = read_small(&file, REFERENCE_BYTES_MAX).is_ok_and(|kept| kept == commit.as_bytes());
        if is_kept { Ok(()) } else { replace(&file, commit.as_bytes()) }
    }

    /// Lets a snapshot have a file: links it to its blob, or gives it the blob's content where the system has no such links.
    pub(super) fn link(&self, commit: &str, file: &str, hash: &str) -> Result<()> {
        let link = self.snapshot(commit).join(file);
        make_parent(&link)?;
        let mut target: PathBuf = file.split('/').map(|_| "..").chain([".."]).collect();
        target.extend(["blobs", hash]);
        let made = files::link(&target, &link);
        match made {
            Ok(()) => Ok(()),
            Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => {
                // A link to nothing, or one that another process has made meanwhile.
                if files::exists(&link) {
                    return Ok(());
                }
                files::remove_file(&link).map_err(|cause| unwritable(&link, &cause))?;
                self.link(commit, file, hash)
            }
            Err(cause)
                if matches!(cause.kind(), io::ErrorKind::Unsupported | io::ErrorKind::PermissionDenied) =>
            {
                files::link_or_copy(&self.blob(hash), &link).map_err(|cause| unwritable(&link, &cause))
            }
            Err(cause) => Err(unwritable(&link, &cause)),
        }
    }

    /// The file whose lock says that a blob is being written; none where it cannot be had.
    pub(super) fn lock(&self, hash: &str) -> Option<File> {
        let path = self.locks.join(format!("{hash}.lock"));
        make_parent(&path).ok()?;
        // As the Hub's own client makes them: a group may share a cache.
        File::open_or_make(&path, 0o664).ok()
    }
}

/// Makes the folder that a file is to lie in.
pub(super) fn make_parent(file: &Path) -> Result<()> {
    let folder = file.parent().expect("a file lies in a folder");
    files::make_folders(folder, 0o777).map_err(|cause| unwritable(folder, &cause))
}

/// Writes a small file, whole or not at all.
pub(super) fn replace(file: &Path, content: &[u8]) -> Result<()> {
    static WRITTEN: AtomicU64 = AtomicU64::new(0);
    make_parent(file)?;
    let name = file.file_name().and_then(|name| name.to_str()).unwrap_or("file");
    // Several processes and threads may write the same at once.
    let number = WRITTEN.fetch_add(1, Ordering::Relaxed);
    let unique = format!("{name}.{}-{number}.incomplete", std::process::id());
    let partial = file.with_file_name(unique);
    // One that is there is what a process of the same number left.
    let _ = files::remove_file(&partial);
    let written = File::make(&partial)
        .and_then(|mut made| made.write_all(content).and_then(|()| made.sync_all()))
        .and_then(|()| files::rename(&partial, file));
    written.map_err(|cause| {
        let _ = files::remove_file(&partial);
        unwritable(file, &cause)
    })
}

/// A file of the cache that cannot be written.
pub(super) fn unwritable(path: &Path, cause: &io::Error) -> Error {
    Error::writing(path, cause).hint("models from the Hub are kept there; HF_HUB_CACHE names another folder")
}

/// Whether a text is a number in base 16.
pub fn is_hex(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// `org/name` or `name` as the Hub allows them. Keeps `..` and separators out of the cache path.
pub fn is_hub_name(text: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty()
            && !part.starts_with(['.', '-'])
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
    };
    text.split('/').count() <= 2 && text.split('/').all(part) && !text.contains("--") && !text.contains("..")
}

/// Whether `revision` stays inside `refs/`; a pull request's is `refs/pr/7`, so slashes are allowed.
fn is_plain_revision(revision: &str) -> bool {
    revision.split('/').all(|part| !matches!(part, "" | "." | ".."))
        && !revision.contains(['\\', ':'])
        && !revision.chars().any(char::is_control)
}

/// Whether a file of a repository stays inside of its snapshot, on any system.
pub(super) fn is_plain_file(file: &str) -> bool {
    is_plain_revision(file) && file.split('/').all(|part| !part.ends_with(['.', ' ']))
}

/// A file's name in a message.
pub(super) fn shown(file: &str) -> String {
    if file.bytes().all(|byte| byte.is_ascii_graphic()) { file.to_owned() } else { quoted(file) }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn files_are_linked_from_their_snapshot_and_found_there() {
        let cache = tempfile::tempdir().unwrap();
        let repository = Repository::new("org/name", cache.path());
        assert!(!repository.exists());
        replace(&repository.blob("0f"), b"content").unwrap();
        for file in ["config.json", "a/b/deep.json"] {
            repository.link("c0ffee", file, "0f").unwrap();
            // Once more, as another process would.
            repository.link("c0ffee", file, "0f").unwrap();
            assert_eq!(fs::read(repository.snapshot("c0ffee").join(file)).unwrap(), b"content", "{file}");
        }
        let link = fs::read_link(repository.snapshot("c0ffee").join("a/b/deep.json")).unwrap();
        assert_eq!(link, Path::new("../../../../blobs/0f"));
        // A link to a blob that somebody has removed.
        fs::rename(repository.blob("0f"), repository.blob("1f")).unwrap();
        repository.link("c0ffee", "config.json", "1f").unwrap();
        assert_eq!(fs::read(repository.snapshot("c0ffee").join("config.json")).unwrap(), b"content");
        let left = fs::read_dir(repository.folder.join("blobs")).unwrap().count();
        assert_eq!(left, 1, "nothing incomplete is left");
    }

    #[test]
    fn references_are_kept_and_read() {
        let cache = tempfile::tempdir().unwrap();
        let repository = Repository::new("gpt2", cache.path());
        assert_eq!(repository.commit_of("main").unwrap(), None);
        let commit = "0123456789abcdef0123456789abcdef01234567";
        repository.keep_reference(commit, commit).unwrap();
        assert!(!repository.exists(), "a commit is no reference");
        for revision in ["main", "refs/pr/7"] {
            repository.keep_reference(revision, commit).unwrap();
            repository.keep_reference(revision, commit).unwrap();
            assert_eq!(repository.commit_of(revision).unwrap().as_deref(), Some(commit));
        }
        assert_eq!(fs::read_to_string(repository.folder.join("refs/main")).unwrap(), commit);
    }

    #[test]
    fn names_of_files_stay_in_their_snapshot() {
        for good in ["config.json", "a/b.c", "1_Pooling/config.json", ".gitattributes"] {
            assert!(is_plain_file(good), "{good}");
        }
        for bad in ["", "/etc/passwd", "../x", "a/../b", "a//b", "a\\b", "C:x", "a\0b", "a/", "x."] {
            assert!(!is_plain_file(bad), "{bad}");
        }
    }
}

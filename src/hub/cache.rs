//! The cache on disk, as the Hub's own clients lay it out.
//!
//! ```text
//! CACHE/models--ORG--NAME/refs/REVISION        a file that holds a commit
//!                         blobs/HASH           what files hold, once
//!                         blobs/HASH.incomplete  the beginning of one
//!                         snapshots/COMMIT/FILE  a link to ../../blobs/HASH
//! CACHE/.locks/models--ORG--NAME/HASH.lock     held while a blob is written
//! ```

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::hashes::Hasher;
use crate::cache::{open_regular, read_small};
use crate::error::{Error, Result};
use crate::files::{self, File};
use crate::limits::{HASHED_BYTES_MAX, REFERENCE_BYTES_MAX};
use crate::text::quoted;

/// The file in `CACHE/blobs` that says that repositories share what is there.
pub(crate) const SHARED_BLOBS: &str = ".huggingface-shared-blobs";

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

    /// Whether a blob is here, whole as far as [`condition`] says.
    pub(super) fn has_blob(&self, hash: &str, bytes: u64) -> bool {
        let blob = self.blob(hash);
        condition(&blob, hash, Some(bytes)) == Condition::Sound && !is_led_away(&blob)
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
            // One that a power cut has shortened is none, unless it is here.
            if is_digest(&commit) || is_hex(&commit) && files::is_folder(&self.snapshot(&commit)) {
                return Ok(Some(commit));
            }
            return Err(Error::config(format!(
                "the cache entry of {name:?} for {revision:?} holds no commit, but {}",
                quoted(&commit)
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
                let failed = |cause| unwritable(&link, &cause);
                let bytes = files::metadata(&self.blob(hash)).map_err(failed)?.len();
                let said = match files::link_target(&link) {
                    Ok(said) => Some(said),
                    Err(cause) if files::is_link(&link) => return Err(failed(cause)),
                    Err(_) => None,
                };
                let is_right = condition(&link, hash, Some(bytes)) == Condition::Sound
                    && said.as_ref().is_none_or(|said| *said == target);
                if is_right {
                    // Another process has made it meanwhile.
                    return Ok(());
                }
                if said.is_none() {
                    // It may be somebody's.
                    return Err(failed(cause));
                }
                files::remove_file(&link).map_err(failed)?;
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

/// What can be seen of a file that is called by a hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Condition {
    /// It is whole, as far as that shows without reading all of a large one.
    Sound,
    /// It has another hash, and no length is known that it should have: not everybody calls files by the same hash.
    Doubtful,
    /// It is no file, has another length than is known, or begins with what a power cut leaves of a file that nobody has put on the
    /// disk: nothing, or zeros.
    Damaged,
}

/// How a file is that is called by a hash and should have so many bytes, if that is known.
pub(super) fn condition(path: &Path, hash: &str, bytes: Option<u64>) -> Condition {
    /// No format of weights begins with so many zeros, and no text.
    const BEGINNING: usize = 8;
    let found = match files::metadata(path) {
        Ok(found) => found,
        Err(cause) if files::leads_nowhere(cause.kind()) || cause.kind() == io::ErrorKind::NotADirectory => {
            return Condition::Damaged;
        }
        // Whoever reads what cannot be read will say so.
        Err(_) => return Condition::Sound,
    };
    if !found.is_file() || bytes.is_some_and(|bytes| bytes != found.len()) {
        return Condition::Damaged;
    }
    let beginning = || {
        let mut beginning = Vec::new();
        open_regular(path)?.take(BEGINNING as u64).read_to_end(&mut beginning).map(|_| beginning)
    };
    let Ok(beginning) = beginning() else { return Condition::Sound };
    let is_blank = beginning.iter().all(|byte| *byte == 0);
    if found.len() > HASHED_BYTES_MAX {
        return if is_blank { Condition::Damaged } else { Condition::Sound };
    }
    if bytes.is_some() && !is_blank {
        return Condition::Sound;
    }
    match hash_of(path, hash.len(), found.len()) {
        Ok(found) if found != hash && is_blank => Condition::Damaged,
        Ok(found) if found != hash => Condition::Doubtful,
        _ => Condition::Sound,
    }
}

/// Whether a file of a snapshot is a link to what should be a blob and leads to somewhere else.
pub(super) fn leads_on(file: &Path) -> bool {
    let folder = file.parent().expect("a file lies in a folder");
    files::link_target(file).is_ok_and(|target| is_led_away(&folder.join(target)))
}

/// Whether a link is in the place of a blob, and not one to a blob that repositories share (`huggingface_hub` from version 2 on), which lies
/// in `CACHE/blobs/01/0123…`.
fn is_led_away(blob: &Path) -> bool {
    let is_shared = || -> io::Result<bool> {
        let all = blob.parent().unwrap_or(blob).join("../../blobs");
        let (all, real) = (files::real(&all)?, files::real(blob)?);
        Ok(real.ancestors().nth(2) == Some(&all) && files::is_file(&all.join(SHARED_BLOBS)))
    };
    files::is_link(blob) && !is_shared().unwrap_or(false)
}

/// The hash of so many digits that a file of this length is called by.
fn hash_of(path: &Path, digits: usize, bytes: u64) -> io::Result<String> {
    let (mut file, mut hasher, mut room) = (open_regular(path)?, Hasher::of(digits, bytes), vec![0; 1 << 16]);
    loop {
        match file.read(&mut room)? {
            0 => return Ok(hasher.finish()),
            count => hasher.update(&room[..count]),
        }
    }
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

/// A file or folder of the cache that cannot be written.
pub(super) fn unwritable(path: &Path, cause: &io::Error) -> Error {
    use io::ErrorKind::{AlreadyExists, IsADirectory, NotADirectory, NotFound};
    let is_taken = matches!(cause.kind(), AlreadyExists | IsADirectory | NotADirectory)
        || files::leads_nowhere(cause.kind()) && cause.kind() != NotFound;
    let hint = match in_the_way(path).filter(|_| is_taken) {
        Some(place) => {
            format!("{} is not what belongs there: move it away, and it is made anew", place.display())
        }
        None if files::is_full(cause) => {
            "the disk of the Hub's cache is full: free some space, or let HF_HOME or HF_HUB_CACHE name a folder on another disk"
                .into()
        }
        None => "models from the Hub are kept there; HF_HOME or HF_HUB_CACHE names another folder".into(),
    };
    Error::writing(path, cause).hint(hint)
}

/// What is in a place of the cache, or on the way there, where something else belongs.
fn in_the_way(path: &Path) -> Option<&Path> {
    let place = path.ancestors().find(|place| files::metadata_of_link(place).is_ok())?;
    let is_wrong = match files::metadata(place) {
        Ok(found) => !found.is_dir() || place == path,
        Err(cause) => files::leads_nowhere(cause.kind()),
    };
    is_wrong.then_some(place)
}

/// Whether a text is a number in base 16.
pub fn is_hex(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Whether a text is all of a hash, as that of a commit or of a blob.
pub(super) fn is_digest(text: &str) -> bool {
    // SHA-1, or SHA-256 where git is set to it.
    matches!(text.len(), 40 | 64) && is_hex(text)
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

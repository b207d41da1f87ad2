//! A repository at a commit: the list of its files, and those that are here.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde::Deserialize;
use serde_json::{Value, json};

use super::cache::{
    Condition, Repository, condition, is_digest, is_hex, is_plain_file, leads_on, make_parent, replace,
    unwritable,
};
use super::client::{Client, Refusal, encoded, network};
use super::environment::Environment;
use super::file::{Entry, RemoteFile};
use super::refusals::{damaged, explained};
use crate::cache::{make_private, read_small};
use crate::error::{Error, Result};
use crate::files;
use crate::limits::{KEPT_BYTES_MAX, REPOSITORY_FILES_MAX, REPOSITORY_PAGES_MAX};

/// Pieces of a file by their places.
pub type Pieces = BTreeMap<u64, Vec<u8>>;

/// Names and hashes of files, as they are kept: the next plan asks nobody.
const LIST: &str = "files.json";

/// A repository at a commit.
#[derive(Debug)]
pub struct Snapshot {
    /// The commit.
    pub commit: String,
    repository: Repository,
    client: Arc<Client>,
    files: BTreeMap<String, Entry>,
    /// Where lists of files and headers are kept, of all repositories.
    known: Option<PathBuf>,
    /// Set when whoever wanted it wants to stop.
    stop: Arc<AtomicBool>,
    /// The large files that were asked for, so that all who read one share its connections.
    remote: Mutex<BTreeMap<String, Arc<RemoteFile>>>,
}

/// What the Hub says of a revision.
#[derive(Deserialize)]
struct RevisionInfo {
    sha: String,
}

/// What it says of a file.
#[derive(Deserialize)]
struct TreeEntry {
    #[serde(rename = "type")]
    kind: String,
    path: String,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    oid: String,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    oid: String,
    size: u64,
}

impl Snapshot {
    /// A repository at a revision, whose list of files is asked for where it is not known.
    ///
    /// # Errors
    /// Those of [`super::snapshot`].
    pub(super) fn open(
        client: &Arc<Client>,
        repository: Repository,
        revision: &str,
        known: Option<&Path>,
        stop: Arc<AtomicBool>,
    ) -> Result<Self> {
        let stopped = || stop.load(Ordering::Relaxed);
        let name = repository.name.clone();
        let refusal = |refused: &Refusal| explained(client, &name, revision, refused);
        let path: String = name.split('/').map(encoded).collect::<Vec<_>>().join("/");
        let commit = match repository.commit_of(revision)? {
            Some(commit) => commit,
            None if is_digest(revision) => revision.to_owned(),
            None => {
                let url = client.url(&format!("api/models/{path}/revision/{}", encoded(revision)));
                let RevisionInfo { sha } = client.json(&url, &stopped, &refusal)?.0;
                if !is_digest(&sha) {
                    return Err(network(format!("{} names no commit for {name}", client.endpoint())));
                }
                sha
            }
        };
        let list = known.map(|known| known.join(&commit).join(LIST));
        let kept = list.as_ref().and_then(|list| kept_list(list));
        let files = if let Some(files) = kept {
            files
        } else {
            let url = client.url(&format!("api/models/{path}/tree/{commit}?recursive=true"));
            let files = listed(client, &name, url, &stopped, &refusal)?;
            if let Some(list) = &list {
                // It only spares the next question.
                let _ = keep(list, list_json(&files).to_string().as_bytes());
            }
            files
        };
        // All of it may be here, in a cache that nobody may write to. What cannot be written will say so.
        let _ = repository.keep_reference(revision, &commit);
        let made = make_parent(&repository.snapshot(&commit).join("file"));
        made.and_then(|()| make_parent(&repository.blob("file"))).or_else(|failure| {
            if files::is_folder(&repository.snapshot(&commit)) { Ok(()) } else { Err(failure) }
        })?;
        let is_offline = client.is_offline();
        let (client, known) = (Arc::clone(client), known.map(Path::to_path_buf));
        let mut snapshot = Self { commit, repository, client, files, known, stop, remote: Mutex::default() };
        if is_offline {
            // What can be had: that is here, or known by its header.
            let is_known = |file: &str| {
                snapshot.is_here(file) || snapshot.head_file(file).is_some_and(|head| files::is_file(&head))
            };
            let known: Vec<String> = snapshot.files.keys().filter(|file| is_known(file)).cloned().collect();
            snapshot.files.retain(|file, _| known.binary_search(file).is_ok());
        }
        Ok(snapshot)
    }

    /// The repository's name.
    pub fn name(&self) -> &str {
        &self.repository.name
    }

    /// The folder of the cache where its files are, as far as they are here.
    pub fn folder(&self) -> PathBuf {
        self.repository.snapshot(&self.commit)
    }

    pub(super) fn repository(&self) -> &Repository {
        &self.repository
    }

    pub(super) fn entry(&self, file: &str) -> Option<&Entry> {
        self.files.get(file)
    }

    /// Whether it has a file of this name, here or not.
    pub fn has(&self, file: &str) -> bool {
        self.files.contains_key(file)
    }

    /// Whether a folder of this name is in it.
    pub fn is_folder(&self, name: &str) -> bool {
        let is_above = |file: &String| file.strip_prefix(name).is_some_and(|rest| rest.starts_with('/'));
        self.files.keys().any(is_above)
    }

    /// What is in a folder of it; in itself, if that has no name.
    pub fn names(&self, below: &str) -> BTreeSet<String> {
        let below = if below.is_empty() { String::new() } else { format!("{below}/") };
        let inside = self.files.keys().filter_map(|file| file.strip_prefix(&below)?.split('/').next());
        inside.map(str::to_owned).collect()
    }

    /// Whether the Hub may be asked for what is not here.
    pub fn is_online(&self) -> bool {
        !self.client.is_offline()
    }

    /// The size of a file, in bytes.
    pub fn bytes(&self, file: &str) -> Option<u64> {
        Some(self.files.get(file)?.bytes)
    }

    /// Whether whoever wanted it wants to stop.
    pub(super) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Whether a file of it lies in the cache, sound as far as that shows without reading all of it.
    pub fn is_here(&self, file: &str) -> bool {
        let place = self.folder().join(file);
        let is_sound = |entry: &Entry| {
            condition(&place, &entry.hash, Some(entry.bytes)) == Condition::Sound && !leads_on(&place)
        };
        self.files.get(file).map_or_else(|| files::is_file(&place), is_sound)
    }

    /// Fetches a file into the cache through memory, if it is not there.
    ///
    /// # Errors
    /// Kind `Network`: it cannot be had, or is not what the list says. Kind `Output`: the cache cannot be written.
    pub(super) fn bring_small(&self, file: &str) -> Result<()> {
        let Some(entry) = self.files.get(file).filter(|_| !self.is_here(file)) else { return Ok(()) };
        let blob = self.repository.blob(&entry.hash);
        if !self.repository.has_blob(&entry.hash, entry.bytes) {
            let mut content = Vec::with_capacity(entry.bytes as usize);
            let stopped = || self.is_stopped();
            self.remote(file).expect("it is listed").read(0..entry.bytes, &stopped, &mut |more| {
                content.extend_from_slice(more);
                Ok(())
            })?;
            let mut hasher = entry.hasher();
            hasher.update(&content);
            let found = hasher.finish();
            if found != entry.hash {
                return Err(damaged(self.name(), file, &found, &entry.hash));
            }
            replace(&blob, &content)?;
        }
        self.repository.link(&self.commit, file, &entry.hash)
    }

    /// Puts on the disk which files are here. With its weights a model is taken for whole, so those come after all others.
    ///
    /// # Errors
    /// Kind `Output`: the disk fails.
    pub(super) fn settle(&self) -> Result<()> {
        let above = self.files.keys().flat_map(|file| Path::new(file).ancestors().skip(1));
        let mut folders: BTreeSet<PathBuf> = above.map(|above| self.folder().join(above)).collect();
        folders.extend(self.repository.blob("file").parent().map(Path::to_path_buf));
        folders.iter().filter(|folder| files::is_folder(folder)).try_for_each(|folder| {
            let synced = files::Folder::open(folder).and_then(|open| open.sync());
            synced.map_err(|cause| unwritable(folder, &cause))
        })
    }

    /// A file that is read by ranges.
    pub fn remote(&self, file: &str) -> Option<Arc<RemoteFile>> {
        let entry = self.files.get(file)?;
        let mut remote = self.remote.lock().unwrap_or_else(PoisonError::into_inner);
        let open = || {
            let (client, stop) = (Arc::clone(&self.client), Arc::clone(&self.stop));
            RemoteFile::new(client, stop, self.name(), &self.commit, file, entry.clone())
        };
        Some(Arc::clone(remote.entry(file.to_owned()).or_insert_with(|| Arc::new(open()))))
    }

    /// Pieces of a file that were kept, by their places: what its header was read from.
    pub fn kept_pieces(&self, file: &str) -> Pieces {
        let kept = self.head_file(file).and_then(|place| read_small(&place, KEPT_BYTES_MAX).ok());
        kept.and_then(|kept| pieces(&kept)).unwrap_or_default()
    }

    /// Keeps pieces of a file, so that the next plan asks nobody.
    pub fn keep_pieces(&self, file: &str, pieces: &Pieces) {
        let Some(place) = self.head_file(file) else { return };
        let mut content = Vec::new();
        for (offset, bytes) in pieces {
            content.extend(offset.to_le_bytes());
            content.extend((bytes.len() as u64).to_le_bytes());
            content.extend(bytes);
        }
        let hash = blake3::hash(&content);
        let _ = keep(&place, &[hash.as_bytes(), &content[..]].concat());
    }

    /// Forgets them: they were not those of the file.
    pub fn forget_pieces(&self, file: &str) {
        let _ = self.head_file(file).map(|head| files::remove_file(&head));
    }

    fn head_file(&self, file: &str) -> Option<PathBuf> {
        let hash = &self.files.get(file)?.hash;
        Some(self.known.as_ref()?.join(&self.commit).join(format!("{hash}.head")))
    }

    /// Notes that a blob was seen to have the SHA-256 that it is called by.
    pub(super) fn keep_verified(&self, hash: &str) {
        if let (Some(known), Some(stamp)) = (&self.known, stamp(&self.repository.blob(hash))) {
            let _ = keep(&verified_file(known, hash), stamp.as_bytes());
        }
    }
}

/// A file of a snapshot's folder whose blob is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suspect {
    /// The file.
    pub file: PathBuf,
    /// Whether it is damaged for certain; else the Hub would know.
    pub is_damaged: bool,
}

/// A file of a snapshot's folder whose blob is damaged, or may be, as far as that shows without reading all of large ones.
pub fn suspect(environment: &Environment, folder: &Path) -> Option<Suspect> {
    let list = environment.known().and_then(|known| kept_list(&known.join(folder.file_name()?).join(LIST)));
    let condition_of = |file: &Path| {
        let entry = list.as_ref().and_then(|list| list.get(file.file_name()?.to_str()?));
        let Ok(target) = files::link_target(file) else {
            // A copy, or somebody's own.
            let found = entry.map(|entry| condition(file, &entry.hash, Some(entry.bytes)))?;
            return Some(if found == Condition::Sound { found } else { Condition::Doubtful });
        };
        let hash = target.file_name()?.to_str().filter(|name| is_digest(name))?;
        // What was there once and is removed, or elsewhere, may be wanted.
        let is_gone = !files::exists(file) || leads_on(file);
        Some(if is_gone {
            Condition::Doubtful
        } else {
            condition(file, hash, entry.map(|entry| entry.bytes))
        })
    };
    let suspect = |file: PathBuf| match condition_of(&file)? {
        Condition::Sound => None,
        found => Some(Suspect { file, is_damaged: found == Condition::Damaged }),
    };
    let entries = files::list(folder).into_iter().flatten().flatten();
    let found = entries.filter_map(|entry| suspect(entry.path())).max_by_key(|suspect| suspect.is_damaged);
    // What somebody has removed, or a power cut: it was fetched once.
    let blobs = folder.ancestors().nth(2)?.join("blobs");
    let is_lost = |(name, entry): (&String, &Entry)| {
        let file = folder.join(name);
        let is_lost = files::metadata_of_link(&file).is_err() && files::exists(&blobs.join(&entry.hash));
        is_lost.then_some(Suspect { file, is_damaged: false })
    };
    found.or_else(|| list.iter().flatten().find_map(is_lost))
}

/// Whether a file was seen to have this SHA-256, and has not changed since.
pub fn is_verified(hash: &str, file: &Path) -> bool {
    let kept = Environment::of_this_process()
        .known()
        .and_then(|known| read_small(&verified_file(known, hash), 1024).ok());
    kept.is_some_and(|kept| stamp(file).is_some_and(|stamp| stamp.as_bytes() == kept))
}

fn verified_file(known: &Path, hash: &str) -> PathBuf {
    known.join("verified").join(hash)
}

/// What shows that a file has changed.
fn stamp(path: &Path) -> Option<String> {
    let metadata = files::metadata(path).ok()?;
    let modified = metadata.modified().ok()?.duration_since(std::time::UNIX_EPOCH).ok()?;
    Some(format!("{} {}", metadata.len(), modified.as_nanos()))
}

/// As [`replace`], in a folder for the user alone.
fn keep(file: &Path, content: &[u8]) -> Result<()> {
    let folder = file.parent().expect("a file lies in a folder");
    make_private(folder).map_err(|cause| Error::writing(folder, &cause))?;
    replace(file, content)
}

/// The list of a repository's files, page by page.
fn listed(
    client: &Client,
    name: &str,
    url: String,
    stopped: &dyn Fn() -> bool,
    refusal: &dyn Fn(&Refusal) -> Error,
) -> Result<BTreeMap<String, Entry>> {
    let (mut files, mut next, mut pages) = (BTreeMap::new(), Some(url), 0);
    while let Some(url) = next {
        pages += 1;
        let page: Vec<TreeEntry>;
        (page, next) = client.json(&url, stopped, refusal)?;
        for TreeEntry { kind, path, size, oid, lfs } in page {
            let (hash, bytes) = lfs.map_or((oid, size), |lfs| (lfs.oid, lfs.size));
            // Names that would lead out of the folder, and hashes that are none, are nothing that a client makes.
            if kind == "file" && is_plain_file(&path) && is_hex(&hash) {
                files.insert(path, Entry { bytes, hash });
            }
        }
        if files.len() > REPOSITORY_FILES_MAX || pages > REPOSITORY_PAGES_MAX {
            return Err(Error::input(format!(
                "{name} on the Hub has more than {REPOSITORY_FILES_MAX} files"
            )));
        }
    }
    Ok(files)
}

fn list_json(files: &BTreeMap<String, Entry>) -> Value {
    files.iter().map(|(file, Entry { bytes, hash })| (file.clone(), json!([bytes, hash]))).collect()
}

fn kept_list(file: &Path) -> Option<BTreeMap<String, Entry>> {
    let kept: BTreeMap<String, (u64, String)> =
        serde_json::from_slice(&read_small(file, KEPT_BYTES_MAX).ok()?).ok()?;
    let entry = |(file, (bytes, hash)): (String, (u64, String))| {
        (is_plain_file(&file) && is_hex(&hash)).then_some((file, Entry { bytes, hash }))
    };
    kept.into_iter().map(entry).collect()
}

/// Pieces as they were kept, if they are.
fn pieces(kept: &[u8]) -> Option<Pieces> {
    let (hash, mut rest) = kept.split_first_chunk::<32>()?;
    if blake3::hash(rest) != blake3::Hash::from_bytes(*hash) {
        return None;
    }
    let mut pieces = Pieces::new();
    while !rest.is_empty() {
        let (offset, after) = rest.split_first_chunk()?;
        let (len, after) = after.split_first_chunk()?;
        let (bytes, after) = after.split_at_checked(usize::try_from(u64::from_le_bytes(*len)).ok()?)?;
        pieces.insert(u64::from_le_bytes(*offset), bytes.to_vec());
        rest = after;
    }
    Some(pieces)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_that_was_kept_is_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a/files.json");
        let files: BTreeMap<_, _> = [("config.json", 7, "0f"), ("x/model.safetensors", 1 << 40, "1f")]
            .map(|(file, bytes, hash)| (file.to_owned(), Entry { bytes, hash: hash.into() }))
            .into();
        keep(&file, list_json(&files).to_string().as_bytes()).unwrap();
        assert_eq!(kept_list(&file).unwrap(), files);
        for damaged in ["{", r#"{"../x":[1,"0f"]}"#, r#"{"x":[1,"../../f"]}"#, r#"{"x":[-1,"0f"]}"#] {
            std::fs::write(&file, damaged).unwrap();
            assert_eq!(kept_list(&file), None, "{damaged}");
        }
    }
}

//! What lies on the Hub: repositories, the commits that their branches and tags name, and files, in git or as LFS.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::{fs, io};

use serde_json::{Value, json};
use sha1::{Digest as _, Sha1};
use sha2::Sha256;

/// Git takes no larger files on the Hub.
const GIT_BYTES_MAX: usize = 10_000_000;

/// Of what `.gitattributes` of a new repository gives to LFS, what models have.
const LFS_ENDINGS: &[&str] =
    &["bin", "ckpt", "gz", "h5", "model", "msgpack", "npz", "onnx", "pt", "pth", "safetensors", "zip"];

/// A commit may be shortened to this many characters.
const COMMIT_PREFIX_MIN: usize = 7;

/// One file at one commit.
#[derive(Clone)]
pub struct File {
    pub bytes: Arc<Vec<u8>>,
    /// What git calls it: by its bytes, or by those of the pointer in their place.
    pub oid: String,
    pub lfs: Option<Lfs>,
}

/// A file that git has only a pointer to.
#[derive(Clone)]
pub struct Lfs {
    pub sha256: String,
    /// What the CDN calls it: as long as a SHA-256, and none.
    pub cdn_tag: String,
    pub pointer_bytes: usize,
}

impl File {
    fn in_git(bytes: Vec<u8>) -> Self {
        Self { oid: git_oid(&bytes), bytes: bytes.into(), lfs: None }
    }

    fn in_lfs(bytes: Vec<u8>) -> Self {
        let sha256 = hex(&Sha256::digest(&bytes));
        let pointer = format!(
            "version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {}\n",
            bytes.len()
        );
        let cdn_tag = hex(&Sha256::digest(&pointer));
        let lfs = Lfs { sha256, cdn_tag, pointer_bytes: pointer.len() };
        Self { oid: git_oid(pointer.as_bytes()), bytes: bytes.into(), lfs: Some(lfs) }
    }

    /// What the Hub calls it, and so its blob in a cache.
    pub fn etag(&self) -> &str {
        self.lfs.as_ref().map_or(&self.oid, |lfs| &lfs.sha256)
    }
}

/// The files of one commit, by their paths.
#[derive(Clone, Default)]
pub struct Files(pub BTreeMap<String, File>);

impl Files {
    pub fn new() -> Self {
        Self::default()
    }

    /// Those of a folder and of the folders in it.
    ///
    /// # Errors
    /// One cannot be read.
    pub fn of(folder: &Path) -> io::Result<Self> {
        let mut files = Self::new();
        for entry in fs::read_dir(folder)? {
            let (path, name) = entry.map(|entry| (entry.path(), entry.file_name()))?;
            let name = name
                .into_string()
                .map_err(|name| io::Error::other(format!("the Hub has no names like {}", name.display())))?;
            if path.is_dir() {
                let inner = Self::of(&path)?;
                files.0.extend(inner.0.into_iter().map(|(below, file)| (format!("{name}/{below}"), file)));
            } else {
                files = files.with(&name, fs::read(&path)?);
            }
        }
        Ok(files)
    }

    /// And this file, in git or as LFS by its name and size.
    #[must_use]
    pub fn with(self, name: &str, bytes: impl Into<Vec<u8>>) -> Self {
        let bytes = bytes.into();
        let ending = Path::new(name).extension().and_then(|ending| ending.to_str());
        let is_large =
            bytes.len() > GIT_BYTES_MAX || ending.is_some_and(|ending| LFS_ENDINGS.contains(&ending));
        if is_large { self.with_lfs(name, bytes) } else { self.with_git(name, bytes) }
    }

    #[must_use]
    pub fn with_git(mut self, name: &str, bytes: impl Into<Vec<u8>>) -> Self {
        self.0.insert(name.into(), File::in_git(bytes.into()));
        self
    }

    #[must_use]
    pub fn with_lfs(mut self, name: &str, bytes: impl Into<Vec<u8>>) -> Self {
        self.0.insert(name.into(), File::in_lfs(bytes.into()));
        self
    }

    /// A commit of these files: nothing but their names and contents goes into it.
    pub fn commit(&self) -> String {
        self.digest("")
    }

    /// A hash of names and contents in a folder.
    fn digest(&self, folder: &str) -> String {
        let mut text = String::new();
        for (name, file) in self.0.iter().filter(|(name, _)| name.starts_with(folder)) {
            writeln!(text, "{} {name}", file.etag()).expect("a string takes all");
        }
        hex_of(&text)
    }

    /// What `/tree/` lists of a folder (`""` for all): folders first. `None`: there is no such folder.
    pub fn tree(&self, folder: &str, recursive: bool, expand: bool) -> Option<Vec<Value>> {
        let start = if folder.is_empty() { String::new() } else { format!("{folder}/") };
        let below: Vec<(&String, &File)> =
            self.0.iter().filter(|(name, _)| name.starts_with(&start)).collect();
        if below.is_empty() && !folder.is_empty() {
            return None;
        }
        let depth = |name: &str| name[start.len()..].matches('/').count();
        let ends = |name: &str| name.match_indices('/').map(|(at, _)| at).collect::<Vec<_>>();
        let mut folders = BTreeSet::new();
        for (name, _) in &below {
            folders.extend(ends(name).into_iter().filter(|at| *at > start.len()).map(|at| &name[..at]));
        }
        let folder = |path: &str| json!({"type": "directory", "oid": self.digest(&format!("{path}/")), "size": 0, "path": path});
        let shown = |name: &str| recursive || depth(name) == 0;
        let mut entries: Vec<Value> = folders.into_iter().filter(|path| shown(path)).map(folder).collect();
        entries.extend(below.iter().filter(|(name, _)| shown(name)).map(|(name, file)| entry(name, file)));
        if expand {
            let commit = self.commit();
            entries.iter_mut().for_each(|entry| expand_entry(entry, &commit));
        }
        Some(entries)
    }

    /// What a model's info lists; with sizes and hashes where `blobs` are asked for.
    pub fn siblings(&self, blobs: bool) -> Vec<Value> {
        let sibling = |(name, file): (&String, &File)| {
            let mut sibling = json!({"rfilename": name});
            if blobs {
                sibling["size"] = file.bytes.len().into();
                sibling["blobId"] = file.oid.as_str().into();
            }
            if let Some(lfs) = file.lfs.as_ref().filter(|_| blobs) {
                let (size, pointer_bytes) = (file.bytes.len(), lfs.pointer_bytes);
                sibling["lfs"] = json!({"sha256": lfs.sha256, "size": size, "pointerSize": pointer_bytes});
            }
            sibling
        };
        self.0.iter().map(sibling).collect()
    }
}

fn entry(path: &str, file: &File) -> Value {
    let mut entry = json!({"type": "file", "oid": file.oid, "size": file.bytes.len(), "path": path});
    if let Some(lfs) = &file.lfs {
        entry["lfs"] = json!({"oid": lfs.sha256, "size": file.bytes.len(), "pointerSize": lfs.pointer_bytes});
    }
    entry
}

fn expand_entry(entry: &mut Value, commit: &str) {
    entry["lastCommit"] = json!({"id": commit, "title": "Upload", "date": super::answers::DATE});
    if entry["type"] == "file" {
        let unscanned = json!({"status": "unscanned"});
        let status = json!({"status": "unscanned", "avScan": unscanned, "pickleImportScan": unscanned});
        entry["securityFileStatus"] = status;
    }
}

/// Who may read a repository.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub enum Access {
    #[default]
    Open,
    /// Only a member may know of it.
    Private,
    /// Everybody may know of it, and a member may read its files.
    Gated,
    /// Nobody may read its files any more.
    Disabled,
}

#[derive(Default)]
pub struct Repository {
    pub access: Access,
    commits: BTreeMap<String, Files>,
    /// Branches, tags and pull requests (`refs/pr/7`), and their commits.
    references: BTreeMap<String, String>,
}

impl Repository {
    /// Adds a commit, which a branch has from now on.
    pub fn publish(&mut self, revision: &str, files: Files) -> String {
        let commit = files.commit();
        self.commits.insert(commit.clone(), files);
        self.references.insert(revision.into(), commit.clone());
        commit
    }

    /// Names a commit that is there.
    pub fn tag(&mut self, name: &str, revision: &str) -> Option<String> {
        let commit = self.at(revision)?.0.to_owned();
        self.references.insert(name.into(), commit.clone());
        Some(commit)
    }

    /// The commit that a revision names, and its files: a branch, a tag, a pull request, a commit or the beginning of one.
    pub fn at(&self, revision: &str) -> Option<(&str, &Files)> {
        if let Some(commit) = self.references.get(revision) {
            return self.commits.get_key_value(commit).map(|(commit, files)| (commit.as_str(), files));
        }
        let mut found = self.commits.iter().filter(|(commit, _)| commit.starts_with(revision));
        match (found.next(), found.next()) {
            (Some((commit, files)), None) if revision.len() >= COMMIT_PREFIX_MIN => Some((commit, files)),
            _ => None,
        }
    }
}

/// What git calls a file with these bytes.
pub fn git_oid(bytes: &[u8]) -> String {
    let mut hash = Sha1::new();
    hash.update(format!("blob {}\0", bytes.len()));
    hash.update(bytes);
    hex(&hash.finalize())
}

/// A number for a text: 40 hexadecimal digits.
pub fn hex_of(text: &str) -> String {
    hex(&Sha1::digest(text))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string takes all");
        text
    })
}

//! A folder that was merged, read again: whether it holds what its manifest says, all of that, and nothing else that could be loaded.
//!
//! Every byte of every file that the manifest lists is read once, by as many threads as there are, a mebibyte at a time.

mod recompute;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;

pub use recompute::{inputs_changed, plan_again, recompute, sample};

use crate::checkpoint::header::read_header;
use crate::checkpoint::layout::INDEX;
use crate::checkpoint::{
    CARD, InputFile, MANIFEST, ModelFolder, ReadAt, TensorInfo, is_weights, parse_index, sha256_of,
};
use crate::error::{About, Error, Result};
use crate::files;
use crate::limits::INDEX_BYTES_MAX;
use crate::report::{FileRecord, Manifest, TensorRecord};
use crate::stream::Watch;
use crate::text::{bytes as size, quoted};
use crate::threads;

/// What is read at a time.
const READ_BYTES: u64 = 1 << 20;

/// Folders within each other that are looked into, as many as a merge makes and one more.
const FOLDERS_DEEP: usize = 4;

/// The way out of most.
const DAMAGED: &str = "it was changed or damaged after the merge: take a whole copy, or merge again";
/// What stays whole where nobody may look.
const FORBIDDEN: &str =
    "this user may not read it: give the permission (chmod, chown), or verify as a user who has it";
/// What may go well another time.
const AGAIN: &str =
    "it need not be damaged: verify again, and where that fails too look at the disk or the network";

/// A folder with the manifest in it.
#[derive(Debug)]
pub struct Output {
    /// The folder.
    pub folder: Arc<ModelFolder>,
    /// What its manifest says.
    pub manifest: Manifest,
    /// The SHA-256 of the manifest's file, in hexadecimal: what a signature is about.
    pub sha256: String,
}

/// What was found in a folder.
#[derive(Debug, Default)]
pub struct Findings {
    /// What is not as the manifest says.
    pub problems: Vec<Problem>,
    /// Files that the manifest does not list, and that nothing loads as weights.
    pub unlisted: Vec<String>,
    /// Of each tensor that could be read, the BLAKE3 hash of what the files hold, in hexadecimal.
    pub digests: HashMap<String, String>,
}

/// Something that is not as the manifest says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file, by its name in the folder; of what is not in there its path, or the name of the input. None where it is about no file.
    pub file: Option<String>,
    /// The tensor, where it is about one.
    pub tensor: Option<String>,
    /// What it is, in a line, and the way out.
    pub error: Error,
}

/// What is left to be read once the headers fit.
enum Job<'a> {
    /// All of a file.
    File(&'a str, &'a str),
    /// A tensor in a file.
    Tensor(&'a str, TensorInfo),
}

impl Output {
    /// Opens a folder, and reads its manifest.
    ///
    /// # Errors
    /// Kind `Config`: there is no such folder. Kind `Input`: it has no manifest, or one that no merge wrote.
    pub fn open(out: &Path) -> Result<Self> {
        if !files::is_folder(out) {
            let what = if files::exists(out) { "is no folder" } else { "is not there" };
            let refusal = Error::config(format!("{} {what}", out.display()));
            return Err(refusal.hint("verify takes the folder that a merge made"));
        }
        let folder = ModelFolder::open(out).map_err(way_out)?;
        let (manifest, sha256) = Manifest::of(&folder).map_err(way_out)?;
        Ok(Self { folder, manifest, sha256 })
    }

    /// The bytes of the files that the manifest lists, which [`Self::verify`] reads.
    pub fn bytes(&self) -> u64 {
        self.manifest.files.values().map(FileRecord::bytes).fold(0, u64::saturating_add)
    }

    /// Reads the folder, and compares it with the manifest.
    ///
    /// # Errors
    /// The folder cannot be listed, or the user wants to stop. All else is among what is found.
    pub fn verify(&self, threads: usize, watch: &dyn Watch) -> Result<Findings> {
        let mut findings = Findings::default();
        let present = self.present().map_err(way_out)?;
        self.check_names(&present, &mut findings);
        let mut jobs = Vec::new();
        let mut whole = true;
        for (name, record) in &self.manifest.files {
            if !present.contains(name) {
                whole = false;
                let what = format!("it is missing, and {MANIFEST} lists it");
                findings.problems.push(self.problem(name, None, &what));
                continue;
            }
            match record {
                FileRecord::Weights { .. } => match self.header(name, record) {
                    Ok((tensors, header_differs)) => {
                        let before = findings.problems.len();
                        jobs.extend(self.fitting(name, tensors, &mut findings.problems));
                        // Where no tensor shows it.
                        if header_differs && findings.problems.len() == before {
                            let what = "its header is not the one that was written, though its tensors are";
                            findings.problems.push(self.problem(name, None, what));
                        }
                    }
                    Err(error) => {
                        whole = false;
                        // Nobody downloaded it, as an input may be.
                        let error = if error.cause.is_none() { error.hint(DAMAGED) } else { error };
                        findings.problems.push(unread(name, None, error));
                    }
                },
                FileRecord::Other { sha256, .. } => jobs.push(Job::File(name, sha256)),
            }
        }
        self.check_manifest(whole, &jobs, &mut findings.problems);
        if present.contains(INDEX) {
            self.check_index(&mut findings.problems);
        }
        self.read(&jobs, threads, watch, &mut findings)?;
        Ok(findings)
    }

    /// The files that are there, by their names from the folder on.
    fn present(&self) -> Result<BTreeSet<String>> {
        let mut present = BTreeSet::new();
        let mut folders = vec![(String::new(), 0)];
        while let Some((folder, depth)) = folders.pop() {
            for name in self.folder.names(&folder)? {
                let is_hidden = name.starts_with('.');
                let name = if folder.is_empty() { name } else { format!("{folder}/{name}") };
                if !self.folder.is_folder(&name) {
                    present.insert(name);
                } else if is_hidden || depth == FOLDERS_DEEP {
                    // What other programs keep here: one name for all of it.
                    present.insert(name + "/");
                } else {
                    folders.push((name, depth + 1));
                }
            }
        }
        Ok(present)
    }

    /// Files that are not listed: of weights they could be loaded in the place of others.
    fn check_names(&self, present: &BTreeSet<String>, findings: &mut Findings) {
        // A signature of the manifest is called by it: `mergeforge.json.sig`.
        let is_signature = |name: &str| name.strip_prefix(MANIFEST).is_some_and(|rest| rest.starts_with('.'));
        let known = |name: &String| {
            self.manifest.files.contains_key(name)
                || [MANIFEST, CARD].contains(&name.as_str())
                || is_signature(name)
        };
        for name in present.iter().filter(|name| !known(name)) {
            let plain = name.rsplit('/').next().unwrap_or(name);
            if is_weights(plain) || plain.ends_with(".index.json") {
                let what = format!("a file of weights that {MANIFEST} does not list");
                let mut extra = self.problem(name, None, &what);
                extra.error.hint =
                    Some("remove it: readers may load it in the place of what was merged".into());
                findings.problems.push(extra);
            } else {
                findings.unlisted.push(name.clone());
            }
        }
    }

    /// The tensors of a file of weights by its header, which may be another one than was written.
    fn header(&self, name: &str, record: &FileRecord) -> Result<(Vec<TensorInfo>, bool)> {
        let FileRecord::Weights { bytes, header_bytes, header_sha256 } = record else {
            return Ok((Vec::new(), false));
        };
        let file = self.folder.file(name);
        let (opened, metadata) = file.open()?;
        let header = read_header(&opened, &file.path(), metadata.len(), 0)?;
        let read = header.tensors.iter().map(|tensor| tensor.offset).min().unwrap_or(metadata.len());
        let mut head = vec![0; usize::try_from(read).unwrap_or_default()];
        opened.fill(&mut head, 0).map_err(|cause| Error::reading(&file.path(), &cause))?;
        let differs = read != *header_bytes || metadata.len() != *bytes || sha256_of(&head) != *header_sha256;
        Ok((header.tensors, differs))
    }

    /// Of a file's tensors those that are what the manifest says, as far as the header shows.
    fn fitting<'a>(
        &self,
        file: &'a str,
        tensors: Vec<TensorInfo>,
        problems: &mut Vec<Problem>,
    ) -> Vec<Job<'a>> {
        let mut fitting = Vec::with_capacity(tensors.len());
        let held: HashSet<&str> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
        for (name, record) in &self.manifest.tensors {
            if record.file == file && !held.contains(name.as_str()) {
                problems.push(self.problem(file, Some(name), "it is missing there"));
            }
        }
        for tensor in tensors {
            let what = match self.manifest.tensors.get(&tensor.name) {
                None => format!("{MANIFEST} does not list it"),
                Some(record) if record.file != file => format!("{MANIFEST} has it in {}", record.file),
                Some(TensorRecord { dtype, shape, .. })
                    if *dtype != tensor.dtype || *shape != tensor.shape =>
                {
                    let (there, here) = ((tensor.dtype, &tensor.shape), (dtype, shape));
                    format!("it is {:?} {:?}, and {:?} {:?} by {MANIFEST}", there.0, there.1, here.0, here.1)
                }
                Some(_) => {
                    fitting.push(Job::Tensor(file, tensor));
                    continue;
                }
            };
            problems.push(self.problem(file, Some(&tensor.name), &what));
        }
        fitting
    }

    /// That the manifest agrees with itself, and where all files are `whole` with the bytes of tensors that they hold.
    fn check_manifest(&self, whole: bool, jobs: &[Job<'_>], problems: &mut Vec<Problem>) {
        let Manifest { files, tensors, config, total_size, .. } = &self.manifest;
        for (name, TensorRecord { file, .. }) in tensors {
            if !matches!(files.get(file), Some(FileRecord::Weights { .. })) {
                let what = format!("it should be in {file}, which is not listed as a file of weights");
                problems.push(self.problem(MANIFEST, Some(name), &what));
            }
        }
        if !matches!(files.get(&config.file), Some(FileRecord::Other { sha256, .. }) if *sha256 == config.sha256)
        {
            problems.push(self.problem(
                MANIFEST,
                None,
                "what it says of its config, it does not say of that file",
            ));
        }
        let shards = files.values().filter(|record| matches!(record, FileRecord::Weights { .. })).count();
        if shards > 1 && !files.contains_key(INDEX) {
            problems.push(self.problem(
                MANIFEST,
                None,
                &format!("it lists {shards} files of weights and no {INDEX}"),
            ));
        }
        let held = |job: &Job<'_>| if let Job::Tensor(_, tensor) = job { tensor.bytes } else { 0 };
        let held: u64 = jobs.iter().map(held).sum();
        if whole && problems.is_empty() && held != *total_size {
            let what = format!("its total_size is {total_size}, and its files hold {held} bytes of tensors");
            problems.push(self.problem(MANIFEST, None, &what));
        }
    }

    /// That the index says where each tensor is, and how large all are.
    fn check_index(&self, problems: &mut Vec<Problem>) {
        let read = || -> Result<_> {
            let file = self.folder.file(INDEX);
            let text = file.read(INDEX_BYTES_MAX)?;
            let broken = |cause: serde_json::Error| {
                Error::input(format!("{}: not the index of a checkpoint: {cause}", file.path().display()))
            };
            let sizes: Sizes = serde_json::from_slice(&text).map_err(broken)?;
            Ok((parse_index(&text).map_err(broken)?, sizes.metadata.total_size))
        };
        let (places, total_size) = match read() {
            Ok(read) => read,
            Err(error) => return problems.push(unread(INDEX, None, error)),
        };
        for (name, record) in &self.manifest.tensors {
            let what = match places.get(name) {
                Some(file) if *file == record.file => continue,
                Some(file) => format!("it should be in {}, and the index says {file}", record.file),
                None => "the index does not list it".into(),
            };
            problems.push(self.problem(INDEX, Some(name), &what));
        }
        for name in places.keys().filter(|name| !self.manifest.tensors.contains_key(*name)) {
            problems.push(self.problem(INDEX, Some(name), &format!("{MANIFEST} does not list it")));
        }
        if total_size != Some(self.manifest.total_size) {
            let found = total_size.map_or("missing".into(), |found| found.to_string());
            let what = format!("its total_size is {found}, and {} by {MANIFEST}", self.manifest.total_size);
            problems.push(self.problem(INDEX, None, &what));
        }
    }

    /// Reads and hashes.
    fn read(
        &self,
        jobs: &[Job<'_>],
        threads: usize,
        watch: &dyn Watch,
        findings: &mut Findings,
    ) -> Result<()> {
        let go_on = |bytes: u64| {
            watch.moved(0, bytes);
            if watch.stop() { Err(Error::interrupted()) } else { Ok(()) }
        };
        // Within: what cannot be read is a finding, and the wish to stop is not.
        let hash = |job: usize| -> Result<Result<String>> {
            let hashed = match &jobs[job] {
                Job::File(name, _) => self.folder.file(*name).sha256(&go_on).map(|(_, sha256)| sha256),
                Job::Tensor(file, tensor) => hash_tensor(&self.folder.file(*file), tensor, &go_on),
            };
            if watch.stop() { Err(Error::interrupted()) } else { Ok(hashed) }
        };
        let owners: HashMap<&str, &String> =
            self.manifest.tensors.iter().map(|(name, record)| (record.blake3.as_str(), name)).collect();
        for (job, hashed) in jobs.iter().zip(threads::each(threads, jobs.len(), hash)) {
            match (job, hashed?) {
                (Job::File(name, _), Err(error)) => findings.problems.push(unread(name, None, error)),
                (Job::Tensor(name, tensor), Err(error)) => {
                    findings.problems.push(unread(name, Some(&tensor.name), error));
                }
                (Job::File(name, sha256), Ok(found)) => {
                    if found != **sha256 {
                        let what = format!("it has the SHA-256 {}, not {}", short(&found), short(sha256));
                        findings.problems.push(self.problem(name, None, &what));
                    }
                }
                (Job::Tensor(file, tensor), Ok(found)) => {
                    let name = &tensor.name;
                    let expected = &self.manifest.tensors[name].blake3;
                    if found != *expected {
                        let what = match owners.get(found.as_str()) {
                            Some(other) => format!("it holds what tensor {} should hold", quoted(other)),
                            None => format!(
                                "its data has the BLAKE3 hash {}, not {}",
                                short(&found),
                                short(expected)
                            ),
                        };
                        findings.problems.push(self.problem(file, Some(name), &what));
                    }
                    findings.digests.insert(name.clone(), found);
                }
            }
        }
        Ok(())
    }

    /// What is wrong with the inputs, or with planning the merge again, each by itself.
    pub fn of_inputs(&self, error: Error) -> Vec<Problem> {
        let problem = |error: Error| {
            let file = error.file.as_deref().map(|file| {
                Path::new(file)
                    .strip_prefix(&self.folder.path)
                    .map_or(file.into(), |in_it| in_it.display().to_string())
            });
            // What is wrong with the folder comes before what its config names.
            Problem { file, tensor: None, error: error.about(About::All) }
        };
        error.one_by_one().into_iter().map(problem).collect()
    }

    fn problem(&self, file: &str, tensor: Option<&str>, what: &str) -> Problem {
        let path = self.folder.path.join(file);
        let about = tensor.map_or(String::new(), |tensor| format!(" tensor {}:", quoted(tensor)));
        let error = Error::input(format!("{}:{about} {what}", path.display())).in_file(&path);
        let error = error.hint(DAMAGED);
        Problem { file: Some(file.into()), tensor: tensor.map(str::to_owned), error }
    }
}

/// A file, or a tensor in it, that could not be read.
fn unread(file: &str, tensor: Option<&str>, error: Error) -> Problem {
    Problem { file: Some(file.into()), tensor: tensor.map(str::to_owned), error: way_out(error) }
}

/// What could not be read need not be damaged.
fn way_out(error: Error) -> Error {
    let hint = match error.cause {
        _ if error.hint.is_some() => return error,
        Some(io::ErrorKind::PermissionDenied) => FORBIDDEN,
        _ if error.may_be_read_again() => AGAIN,
        _ => DAMAGED,
    };
    error.hint(hint)
}

/// What an index says beside the places of tensors.
#[derive(Deserialize)]
struct Sizes {
    #[serde(default)]
    metadata: Metadata,
}

#[derive(Default, Deserialize)]
struct Metadata {
    total_size: Option<u64>,
}

impl FileRecord {
    /// The size of the file, in bytes.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Weights { bytes, .. } | Self::Other { bytes, .. } => *bytes,
        }
    }
}

/// The BLAKE3 hash of a tensor's data.
fn hash_tensor(file: &InputFile, tensor: &TensorInfo, go_on: &dyn Fn(u64) -> Result<()>) -> Result<String> {
    let (opened, _) = file.open()?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; tensor.bytes.min(READ_BYTES) as usize];
    let mut done = 0;
    while done < tensor.bytes {
        let count = (tensor.bytes - done).min(READ_BYTES) as usize;
        let part = &mut buffer[..count];
        opened.fill(part, tensor.offset + done).map_err(|cause| {
            let what =
                format!("cannot read tensor {} ({}): {cause}", quoted(&tensor.name), size(tensor.bytes));
            Error::input(format!("{}: {what}", file.path().display())).in_file(&file.path()).caused_by(&cause)
        })?;
        hasher.update(part);
        done += count as u64;
        go_on(count as u64)?;
    }
    Ok(hasher.finalize().to_hex().as_str().into())
}

/// So much of a hash as tells it from others.
fn short(hash: &str) -> String {
    format!("{}…", hash.get(..12).unwrap_or(hash))
}

//! An input checkpoint: its config, where every tensor lies, and reads by position.
//!
//! Opening reads headers only. Nothing is trusted twice: the files' sizes and times are kept, so that a
//! checkpoint that changes under a merge is noticed instead of merged.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use indexmap::IndexMap;
use serde_json::{Map, Value};

pub use super::header::TensorInfo;

use super::file::{Access, ReadAt, Reads, raise_open_file_limit};
use super::folder::{InputFile, ModelFolder};
use super::header::{Header, read_header};
use super::located::Located;
use super::names::{ADAPTER_CONFIG, ADAPTER_PREFIX, ADAPTER_WEIGHTS};
use super::pickle::{Format, read_torch};
use super::remote::{RemoteHead, Streamed};
use super::sidecars::MODEL_CONFIG as CONFIG;
use super::source_file::{Elsewhere, SourceFile, Stamp};
use super::weight_files::{TensorIndex, WeightFiles, contradiction};
use crate::error::{Error, Kind, Result};
use crate::files::{self, File, Metadata};
use crate::hub::{RemoteFile, Snapshot, Wanted, is_hex};
use crate::limits::{CONFIG_BYTES_MAX, TENSORS_MAX};
use crate::text::{cut_to, one_line, quoted};

/// An input checkpoint, opened: headers read and checked, no tensor data.
#[derive(Debug)]
pub struct Source {
    /// The model as the user wrote it.
    pub name: String,
    /// Its folder.
    pub folder: Arc<ModelFolder>,
    /// `config.json`.
    pub config: Map<String, Value>,
    /// The same, as it is written: numbers keep their digits.
    pub config_text: String,
    /// Who may read all of its files.
    pub access: Access,
    pub(super) tensors: IndexMap<String, TensorInfo>,
    pub(super) files: Vec<SourceFile>,
    pub(super) warnings: Vec<String>,
    /// The file's name, where it is one file and not all of the folder.
    pub(super) only: Option<String>,
}

impl Source {
    /// Opens the checkpoint in `place`, which the user called `name`: a folder, or a file of tensors.
    ///
    /// A folder without a `config.json` is one of tensors, if it is no adapter.
    ///
    /// Its weights are the shards of `model.safetensors.index.json`, else `model.safetensors`, else the only
    /// `*.safetensors` there; without any, the same of what torch has saved as `pytorch_model.bin`.
    ///
    /// # Errors
    /// Kind `Input`: something is missing, damaged, or contradicts itself.
    pub fn open(name: &str, place: impl Into<Located>) -> Result<Self> {
        let Located { place, snapshot, unreachable } = place.into();
        if files::is_file(&place) {
            return Self::open_tensors(name, &place);
        }
        raise_open_file_limit();
        let folder = opened(&place, snapshot)?;
        match (Self::of_model(name, folder), unreachable) {
            (Ok(mut source), Some(failure)) => {
                source.warnings.push(format!(
                    "{name}: not all of it seems to be in the cache, and the Hub could not be asked: {}",
                    failure.message
                ));
                Ok(source)
            }
            // What is missing is what the Hub would have given.
            (Err(Error { kind: Kind::Input, .. }), Some(failure)) => Err(failure),
            (opened, _) => opened,
        }
    }

    /// A model in its folder.
    fn of_model(name: &str, folder: Arc<ModelFolder>) -> Result<Self> {
        if !folder.has(CONFIG) && !folder.has(ADAPTER_CONFIG) {
            return Self::of_folder(name, folder, (Map::new(), String::new()));
        }
        let config = read_config(&folder, CONFIG, |error| no_model(&folder, name, error))?;
        let source = Self::of_folder(name, folder, config)?;
        if source.is_bare_adapter() {
            let what =
                format!("{} has the weights of an adapter, and no model's", source.folder.path.display());
            return Err(no_model(&source.folder, name, Error::input(what)));
        }
        Ok(source)
    }

    /// Whether what it holds is an adapter all the same, though a config.json lies beside it.
    fn is_bare_adapter(&self) -> bool {
        self.folder.has(ADAPTER_CONFIG)
            && (self.files.iter().all(|file| file.name.starts_with("adapter_model."))
                || !self.tensors.is_empty()
                    && self.tensors.keys().all(|name| name.starts_with(ADAPTER_PREFIX)))
    }

    /// Opens tensors that belong to a model: those of one file, or of a folder with the weights of a checkpoint and
    /// no need of a `config.json`.
    ///
    /// # Errors
    /// As of [`Source::open`].
    pub fn open_tensors(name: &str, place: &Path) -> Result<Self> {
        raise_open_file_limit();
        let no_config = (Map::new(), String::new());
        if files::is_folder(place) {
            return Self::of_folder(name, ModelFolder::open(place)?, no_config);
        }
        // A link that the user named is the user's own, as one on the way to a folder is.
        let place = if files::is_link(place) {
            files::real(place).map_err(|e| Error::reading(place, &e))?
        } else {
            place.to_path_buf()
        };
        let file = place.file_name().and_then(|file| file.to_str());
        let file = file.ok_or_else(|| Error::input(format!("{}: not a name in UTF-8", place.display())))?;
        let parent = place.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut source = Self::empty(name, ModelFolder::open(parent)?, no_config)?;
        source.add_file(file.to_owned())?;
        source.only = Some(file.to_owned());
        Ok(source)
    }

    /// Opens the folder of an adapter as PEFT saves it: [`Source::config`] is what its `adapter_config.json` says.
    ///
    /// # Errors
    /// As of [`Source::open`].
    pub fn open_adapter(name: &str, folder: impl Into<Located>) -> Result<Self> {
        let Located { place, snapshot, .. } = folder.into();
        raise_open_file_limit();
        let folder = opened(&place, snapshot)?;
        let config = read_config(&folder, ADAPTER_CONFIG, |error| {
            error.hint(
                "behind a + belongs an adapter as PEFT saves it: adapter_config.json beside its weights",
            )
        })?;
        let weights = ADAPTER_WEIGHTS.iter().find(|file| folder.has(file)).ok_or_else(|| {
            let path = folder.path.display();
            Error::input(format!("{path} has an {ADAPTER_CONFIG}, but no {}", ADAPTER_WEIGHTS[0]))
                .hint("the adapter's own weights are missing: download it again, or save it with PEFT")
        })?;
        let mut source = Self::empty(name, folder, config)?;
        source.add_file((*weights).to_owned())?;
        Ok(source)
    }

    fn of_folder(name: &str, folder: Arc<ModelFolder>, config: (Map<String, Value>, String)) -> Result<Self> {
        let present = folder.names("")?;
        let weights = WeightFiles::find(&folder, &present)?;
        let mut source = Self::empty(name, folder, config)?;
        source.warnings.extend(weights.unread(name, &present));
        for file in weights.files {
            source.add_file(file)?;
        }
        if let Some((index_name, index)) = weights.index {
            source.check_index(index_name, &index)?;
        }
        Ok(source)
    }

    pub(super) fn empty(
        name: &str,
        folder: Arc<ModelFolder>,
        (config, config_text): (Map<String, Value>, String),
    ) -> Result<Self> {
        Ok(Self {
            name: name.to_owned(),
            access: folder.access()?,
            folder,
            config,
            config_text,
            tensors: IndexMap::new(),
            files: Vec::new(),
            warnings: Vec::new(),
            only: None,
        })
    }

    /// Where it lies, as the user reaches it: a folder, or a file.
    pub fn place(&self) -> PathBuf {
        self.only.as_ref().map_or_else(|| self.folder.path.clone(), |file| self.folder.path.join(file))
    }

    /// Whether a config.json says what model it is.
    pub fn has_config(&self) -> bool {
        !self.config_text.is_empty()
    }

    /// Whether it is all of its folder, and not one file there.
    pub fn is_folder(&self) -> bool {
        self.only.is_none()
    }

    /// Whether the file of this name in its folder holds tensors of it.
    pub fn reads_file(&self, name: &str) -> bool {
        self.files.iter().any(|file| file.name == name)
    }

    /// The file of it that this is as well, under another name or through a link.
    pub fn file_behind(&self, file: &Metadata) -> Option<PathBuf> {
        let name = match &self.only {
            Some(only) => self.folder.is(only, file).then(|| only.clone()),
            None => self.folder.name_of(file),
        };
        name.map(|name| self.folder.path.join(name))
    }

    /// The tensors in file order: shards by name, inside a shard by offset.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = &TensorInfo> {
        self.tensors.values()
    }

    /// How many files of weights it has.
    pub fn file_count(&self) -> usize {
        self.files.len()
    }

    /// The tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    /// The tensor at a place in file order.
    pub fn tensor_at(&self, place: usize) -> &TensorInfo {
        &self.tensors[place]
    }

    /// A tensor's place in file order.
    pub fn place_of(&self, name: &str) -> Option<usize> {
        self.tensors.get_index_of(name)
    }

    /// What the user should know, though it stops nothing: tensors missing from the index, files not read.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Fills `into` with a tensor's data from byte `offset` of the tensor on. Any thread may call it.
    ///
    /// # Errors
    /// Kind `Input`: the file cannot be read, or is no longer as it was when it was opened.
    ///
    /// # Panics
    /// When more is asked for than the tensor holds.
    pub fn read_at(&self, tensor: &TensorInfo, offset: u64, into: &mut [u8], reads: Reads) -> Result<()> {
        let end = offset.checked_add(into.len() as u64);
        assert!(end.is_some_and(|end| end <= tensor.bytes), "read inside the tensor {}", tensor.name);
        self.files[tensor.file].read_at(tensor, offset, into, reads)
    }

    /// Fills `into` with the first bytes of a tensor, and fetches no others of one that is on the Hub.
    ///
    /// # Errors
    /// As of [`Self::read_at`].
    ///
    /// # Panics
    /// When more is asked for than the tensor holds.
    pub fn peek(&self, tensor: &TensorInfo, into: &mut [u8]) -> Result<()> {
        assert!(into.len() as u64 <= tensor.bytes, "read inside the tensor {}", tensor.name);
        self.files[tensor.file].peek(tensor, into)
    }

    /// Whether a tensor has to be read from the Hub, and can be.
    pub fn is_on_hub(&self, tensor: &TensorInfo) -> bool {
        self.files[tensor.file].absent().is_some_and(|snapshot| snapshot.is_online())
    }

    /// A part of a tensor where it lies in memory; `absent` says whether it may not be there yet. `None` where the file
    /// cannot be mapped.
    ///
    /// # Errors
    /// Kind `Input`: the file cannot be read, or is no longer as it was when it was opened.
    ///
    /// # Panics
    /// When more is asked for than the tensor holds.
    pub fn bring(&self, tensor: &TensorInfo, part: &Range<u64>, absent: bool) -> Result<Option<&[u8]>> {
        assert!(part.end <= tensor.bytes, "bring a part of the tensor {}", tensor.name);
        self.files[tensor.file].bring(tensor, part, absent)
    }

    /// Lets go of bytes of a file that were brought.
    pub fn release(&self, tensor: usize) {
        let TensorInfo { file, offset, bytes, .. } = self.tensor_at(tensor);
        self.files[*file].release(&(*offset..offset + bytes));
    }

    /// What has to be fetched from the Hub so that tensors are here, of those that `wanted` says by their places in file order.
    pub fn absent(&self, wanted: impl Fn(usize) -> bool) -> Vec<Wanted> {
        let mut files = vec![false; self.files.len()];
        for (place, tensor) in self.tensors.values().enumerate() {
            files[tensor.file] |= wanted(place);
        }
        let absent = self.files.iter().zip(files).filter(|(_, is_wanted)| *is_wanted);
        absent
            .filter_map(|(file, _)| {
                Some(Wanted { snapshot: Arc::clone(file.absent()?), file: file.name.clone() })
            })
            .collect()
    }

    /// What was fetched is from now on read from the disk.
    ///
    /// # Errors
    /// Kind `Input`: it cannot be read.
    pub fn arrive(&self) -> Result<()> {
        for (number, file) in self.files.iter().enumerate() {
            let Some(snapshot) = file.absent().filter(|snapshot| snapshot.is_here(&file.name)) else {
                continue;
            };
            // What was planned with came by itself.
            let read =
                |here: &File, path: &Path, bytes| Ok(header_of_file(here, path, bytes, number)?.0.blake3);
            if !file.arrive(read)? {
                snapshot.forget_pieces(&file.name);
                let shown = file.name.as_str();
                return Err(Error::network(format!(
                    "the header of {}/{shown} arrived damaged at first",
                    snapshot.name()
                ))
                .hint("run it again: the file itself is whole"));
            }
        }
        Ok(())
    }

    /// Checks that every file still has the size and time that it had when it was opened, and was there all the time.
    ///
    /// # Errors
    /// Kind `Input`: one has changed, so what was read may be a mixture of two states.
    pub fn verify_unchanged(&self) -> Result<()> {
        self.files.iter().try_for_each(SourceFile::verify_unchanged)
    }

    /// Which bytes this checkpoint is, for what is remembered on this machine: the hash of each file where the Hugging Face cache
    /// names it, else its time and the hash of its header; and the hash of its config. Neither a path nor a name.
    pub fn identity(&self) -> Value {
        self.known_by(self.files.iter().map(SourceFile::identity).collect())
    }

    /// Of each file a digest of a few places of it; none of those that lie elsewhere. Times can be put back, and fine-tunes of one model
    /// have the same headers.
    ///
    /// # Errors
    /// Kind `Input`: one cannot be read, or has changed.
    pub fn samples(&self) -> Result<Vec<Option<String>>> {
        self.files.iter().map(SourceFile::sample).collect()
    }

    /// The same for others, on any machine: without times, and with the SHA-256 of files that were [hashed](Self::hash_file).
    pub fn provenance(&self) -> Value {
        self.known_by(self.files.iter().map(SourceFile::provenance).collect())
    }

    /// Whether a file of it that no hash identifies was changed after that time.
    pub fn changed_after(&self, time: SystemTime) -> bool {
        self.files.iter().any(|file| file.changed_after(time))
    }

    fn known_by(&self, files: Value) -> Value {
        let mut identity = Map::from_iter([("files".to_owned(), files)]);
        if !self.config_text.is_empty() {
            let hash = blake3::hash(self.config_text.as_bytes()).to_hex();
            identity.insert("config_blake3".into(), hash.as_str().into());
        }
        if let Some(commit) = snapshot_commit(&self.folder.real()) {
            identity.insert("revision".into(), commit.into());
        }
        identity.into()
    }

    fn add_file(&mut self, name: String) -> Result<()> {
        let input = self.folder.file(name.as_str());
        let path = input.path();
        if let Some(snapshot) = self.folder.absent(&name).cloned()
            && let Some(file) = snapshot.remote(&name)
        {
            return self.add_remote(name, input, snapshot, file);
        }
        let (file, metadata) = input.open()?;
        self.access = self.access.and_file(&metadata);
        let stamp = Stamp::of(&metadata);
        let header = self.header(&name, &file, &path, stamp.bytes).map_err(|error| input.kept(error))?;
        self.add_tensors(name, input, stamp, header)
    }

    /// The header of the next file.
    fn header(&mut self, name: &str, file: &dyn ReadAt, path: &Path, bytes: u64) -> Result<Header> {
        let (header, notes) = header_of_file(file, path, bytes, self.files.len())?;
        self.warnings.extend(notes.iter().map(|note| format!("{}: in {name}, {note}", self.name)));
        if self.tensors.len() + header.tensors.len() > TENSORS_MAX {
            return Err(contradiction(path, &format!("the checkpoint has more than {TENSORS_MAX} tensors")));
        }
        Ok(header)
    }

    /// Adds a file that lies on the Hub. Of its header the next plan asks nobody.
    fn add_remote(
        &mut self,
        name: String,
        input: InputFile,
        snapshot: Arc<Snapshot>,
        file: Arc<RemoteFile>,
    ) -> Result<()> {
        let known = snapshot.kept_pieces(&name);
        let head = RemoteHead::new(&file, known.clone());
        let header = self.header(&name, &head, &input.path(), file.bytes());
        let header = head.settled(header)?;
        let pieces = head.into_pieces();
        if pieces != known {
            snapshot.keep_pieces(&name, &pieces);
        }
        let bytes = file.bytes();
        self.add_elsewhere(name, input, bytes, header, Arc::new(Streamed { snapshot, file }))
    }

    /// Adds a file, whose header says which tensors it has.
    pub(super) fn add_tensors(
        &mut self,
        name: String,
        input: InputFile,
        stamp: Stamp,
        header: Header,
    ) -> Result<()> {
        let hash = header.blake3;
        self.list_tensors(&input.path(), header)?;
        self.files.push(SourceFile::new(name, input, stamp, hash));
        Ok(())
    }

    /// Adds a file whose bytes come from somewhere else. Its header says which tensors it has.
    pub(super) fn add_elsewhere(
        &mut self,
        name: String,
        input: InputFile,
        bytes: u64,
        header: Header,
        elsewhere: Arc<dyn Elsewhere>,
    ) -> Result<()> {
        let hash = header.blake3;
        self.list_tensors(&input.path(), header)?;
        let file = SourceFile::new(name, input, Stamp::planned(bytes), hash);
        self.files.push(file.lying_elsewhere(elsewhere));
        Ok(())
    }

    fn list_tensors(&mut self, path: &Path, header: Header) -> Result<()> {
        for tensor in header.tensors {
            if let Some(other) = self.tensors.get(&tensor.name) {
                let other = self.files[other.file].name.as_str();
                let tensor = quoted(&tensor.name);
                return Err(contradiction(path, &format!("tensor {tensor} is in {other} as well")));
            }
            self.tensors.insert(tensor.name.clone(), tensor);
        }
        Ok(())
    }

    /// Every tensor of the index must be where it says. One that the index omits is taken, and noted.
    fn check_index(&mut self, index_name: &str, index: &TensorIndex) -> Result<()> {
        let path = self.folder.path.join(index_name);
        for (tensor, file) in index {
            let found = self.tensors.get(tensor).map(|info| self.files[info.file].name.as_str());
            if found != Some(file) {
                let instead = found.map_or("missing".to_owned(), |found| format!("in {found}"));
                let tensor = quoted(tensor);
                return Err(contradiction(
                    &path,
                    &format!("tensor {tensor} should be in {file} but is {instead}"),
                ));
            }
        }
        let mut omitted = self.tensors.keys().filter(|name| !index.contains_key(*name));
        if let Some(first) = omitted.next() {
            let more = match omitted.count() {
                0 => String::new(),
                count => format!(" and {count} more"),
            };
            let (name, first) = (&self.name, quoted(first));
            self.warnings.push(format!(
                "{name}: {index_name} omits tensor {first}{more}; the shards have it, so it is read"
            ));
        }
        Ok(())
    }
}

/// The header of a file of weights, whatever saved it, and what is notable of the rest.
fn header_of_file(
    file: &dyn ReadAt,
    path: &Path,
    bytes: u64,
    number: usize,
) -> Result<(Header, Vec<String>)> {
    match Format::of(file, path, bytes)? {
        Format::Safetensors => Ok((read_header(file, path, bytes, number)?, Vec::new())),
        Format::Torch => read_torch(file, path, bytes, number),
    }
}

/// A folder, with what the Hub has of it.
fn opened(place: &Path, snapshot: Option<Arc<Snapshot>>) -> Result<Arc<ModelFolder>> {
    match snapshot {
        Some(snapshot) => ModelFolder::of_snapshot(snapshot),
        None => ModelFolder::open(place),
    }
}

/// The commit, for a folder `…/snapshots/COMMIT` of the Hugging Face cache.
fn snapshot_commit(folder: &Path) -> Option<String> {
    let commit = folder.file_name()?.to_str()?;
    (folder.parent()?.file_name()? == "snapshots" && is_hex(commit)).then(|| commit.to_owned())
}

/// Says what a folder without a `config.json` is, and what to give instead; `name` is how it was asked for.
fn no_model(folder: &Arc<ModelFolder>, name: &str, error: Error) -> Error {
    if !folder.has(ADAPTER_CONFIG) {
        return error.hint("give the folder of a whole model; an interrupted download can be run again");
    }
    let config = read_config(folder, ADAPTER_CONFIG, |error| error).ok();
    let base = config.as_ref().and_then(|(config, _)| config.get("base_model_name_or_path"));
    let base = base.and_then(Value::as_str).filter(|base| !base.is_empty()).unwrap_or("BASE");
    let base = cut_to(&one_line(base), 200);
    error.hint(format!("this is an adapter: write {base}+{name} for the model that it makes of its base"))
}

/// A folder's JSON config, and its text; where it is missing, `missing` adds the way out.
fn read_config(
    folder: &Arc<ModelFolder>,
    name: &str,
    missing: impl FnOnce(Error) -> Error,
) -> Result<(Map<String, Value>, String)> {
    if !folder.has(name) {
        return Err(missing(Error::input(format!("{} has no {name}", folder.path.display()))));
    }
    let file = folder.file(name);
    let broken = |what: &dyn std::fmt::Display| {
        let path = file.path();
        file.kept(Error::input(format!("{}: not a JSON object: {what}", path.display())).in_file(&path))
    };
    let text = String::from_utf8(file.read(CONFIG_BYTES_MAX)?).map_err(|e| broken(&e))?;
    let config = serde_json::from_str(&text).map_err(|e| {
        if text.contains("Infinity") || text.contains("NaN") {
            return broken(&e)
                .hint("Python writes Infinity and NaN, which JSON does not have; replace them by numbers");
        }
        broken(&e)
    })?;
    Ok((config, text))
}

#[cfg(test)]
mod tests;

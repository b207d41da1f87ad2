//! An input checkpoint: its config, where every tensor lies, and reads by position.
//!
//! Opening reads headers only. Nothing is trusted twice: the files' sizes and times are kept, so that a
//! checkpoint that changes under a merge is noticed instead of merged.

use std::fs::Metadata;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use indexmap::IndexMap;
use serde_json::{Map, Value, json};

pub use super::header::TensorInfo;

use super::file::{Access, Reads, raise_open_file_limit};
use super::folder::{InputFile, ModelFolder};
use super::header::{Header, read_header};
use super::limits::{CONFIG_BYTES_MAX, TENSORS_MAX};
use super::names::{ADAPTER_CONFIG, ADAPTER_PREFIX, ADAPTER_WEIGHTS};
use super::pickle::{Format, read_torch};
use super::sidecars::MODEL_CONFIG as CONFIG;
use super::source_file::{SourceFile, Stamp, is_hex};
use super::weight_files::{TensorIndex, WeightFiles, contradiction};
use crate::error::{Error, Result};
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
    pub fn open(name: &str, place: &Path) -> Result<Self> {
        if place.is_file() {
            return Self::open_tensors(name, place);
        }
        raise_open_file_limit();
        let folder = ModelFolder::open(place)?;
        if !folder.has(CONFIG) && !folder.has(ADAPTER_CONFIG) {
            return Self::of_folder(name, folder, (Map::new(), String::new()));
        }
        let config = read_config(&folder, CONFIG, |error| no_model(&folder, name, error))?;
        let source = Self::of_folder(name, folder, config)?;
        if source.is_bare_adapter() {
            let what = format!("{} has the weights of an adapter, and no model's", place.display());
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
        if place.is_dir() {
            return Self::of_folder(name, ModelFolder::open(place)?, no_config);
        }
        // A link that the user named is the user's own, as one on the way to a folder is.
        let place = if place.is_symlink() {
            place.canonicalize().map_err(|e| Error::reading(place, &e))?
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
    pub fn open_adapter(name: &str, folder: &Path) -> Result<Self> {
        raise_open_file_limit();
        let folder = ModelFolder::open(folder)?;
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

    /// Checks that every file still has the size and time that it had when it was opened, and was there all the time.
    ///
    /// # Errors
    /// Kind `Input`: one has changed, so what was read may be a mixture of two states.
    pub fn verify_unchanged(&self) -> Result<()> {
        self.files.iter().try_for_each(SourceFile::verify_unchanged)
    }

    /// Which bytes this checkpoint is, for the manifest: the hash of each file where the Hugging Face cache
    /// names it, else its time and the hash of its header; and the hash of its config. Neither a path nor a name.
    pub fn identity(&self) -> Value {
        let files: Vec<Value> = self.files.iter().map(SourceFile::identity).collect();
        let mut identity = json!({ "files": files });
        if !self.config_text.is_empty() {
            identity["config_blake3"] = blake3::hash(self.config_text.as_bytes()).to_hex().as_str().into();
        }
        if let Some(commit) = snapshot_commit(&self.folder.real()) {
            identity["revision"] = commit.into();
        }
        identity
    }

    fn add_file(&mut self, name: String) -> Result<()> {
        let input = self.folder.file(name.as_str());
        let path = input.path();
        let (file, metadata) = input.open()?;
        self.access = self.access.and_file(&metadata);
        let stamp = Stamp::of(&metadata);
        let file_index = self.files.len();
        let header = match Format::of(&file, &path, stamp.bytes)? {
            Format::Safetensors => read_header(&file, &path, stamp.bytes, file_index)?,
            Format::Torch => {
                let (header, notes) = read_torch(&file, &path, stamp.bytes, file_index)?;
                self.warnings.extend(notes.iter().map(|note| format!("{}: in {name}, {note}", self.name)));
                header
            }
        };
        if self.tensors.len() + header.tensors.len() > TENSORS_MAX {
            return Err(contradiction(&path, &format!("the checkpoint has more than {TENSORS_MAX} tensors")));
        }
        self.add_tensors(name, input, stamp, header)
    }

    /// Adds a file, whose header says which tensors it has.
    pub(super) fn add_tensors(
        &mut self,
        name: String,
        input: InputFile,
        stamp: Stamp,
        header: Header,
    ) -> Result<()> {
        let path = input.path();
        for tensor in header.tensors {
            if let Some(other) = self.tensors.get(&tensor.name) {
                let other = self.files[other.file].name.as_str();
                let tensor = quoted(&tensor.name);
                return Err(contradiction(&path, &format!("tensor {tensor} is in {other} as well")));
            }
            self.tensors.insert(tensor.name.clone(), tensor);
        }
        self.files.push(SourceFile::new(name, input, stamp, header.blake3));
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
        Error::input(format!("{}: not a JSON object: {what}", file.path().display()))
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
mod tests {
    use super::*;
    use crate::checkpoint::layout::{INDEX, SINGLE};
    use crate::error::Kind;
    use std::fs;
    use tempfile::TempDir;

    /// A safetensors file of U8 tensors.
    fn shard(tensors: &[(&str, &[u8])]) -> Vec<u8> {
        let mut end = 0;
        let entries: Vec<String> = tensors
            .iter()
            .map(|(name, data)| {
                let start = end;
                end += data.len();
                format!(
                    r#""{name}":{{"dtype":"U8","shape":[{}],"data_offsets":[{start},{end}]}}"#,
                    data.len()
                )
            })
            .collect();
        let json = format!("{{{}}}", entries.join(","));
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend(json.as_bytes());
        bytes.extend(tensors.iter().flat_map(|(_, data)| *data));
        bytes
    }

    fn folder(files: &[(&str, &[u8])]) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(CONFIG), r#"{"z":1,"a":2}"#).unwrap();
        for (name, bytes) in files {
            fs::write(folder.path().join(name), bytes).unwrap();
        }
        folder
    }

    fn open(folder: &TempDir) -> Result<Source> {
        Source::open("me/model", folder.path())
    }

    fn refused(folder: &TempDir) -> String {
        let error = open(folder).unwrap_err();
        assert_eq!(error.kind, Kind::Input);
        format!("{} | {}", error.message, error.hint.unwrap_or_default())
    }

    fn index(entries: &str) -> Vec<u8> {
        format!(r#"{{"metadata":{{"total_size":0}},"weight_map":{{{entries}}}}}"#).into_bytes()
    }

    fn two_shards(entries: &str) -> TempDir {
        folder(&[
            ("m-2.safetensors", &shard(&[("b", &[4, 5]), ("a", &[6])])),
            ("m-1.safetensors", &shard(&[("c", &[1, 2, 3])])),
            (INDEX, &index(entries)),
        ])
    }

    const GOOD_INDEX: &str = r#""a":"m-2.safetensors","b":"m-2.safetensors","c":"m-1.safetensors""#;

    #[test]
    fn shards_are_read_by_name_and_tensors_by_offset() {
        let folder = two_shards(GOOD_INDEX);
        let source = open(&folder).unwrap();
        let names: Vec<_> = source.tensors().map(|tensor| tensor.name.as_str()).collect();
        assert_eq!(names, ["c", "b", "a"]);
        assert_eq!(source.config.keys().collect::<Vec<_>>(), ["z", "a"]);
        assert!(source.warnings().is_empty());
        assert!(source.tensor("d").is_none());
        let mut into = [0; 2];
        source.read_at(source.tensor("c").unwrap(), 1, &mut into, Reads::Copied).unwrap();
        assert_eq!(into, [2, 3]);
        source.read_at(source.tensor("b").unwrap(), 0, &mut into, Reads::Copied).unwrap();
        assert_eq!(into, [4, 5]);
        source.verify_unchanged().unwrap();
    }

    #[test]
    fn a_single_file_may_have_any_name() {
        let weights = shard(&[("a", &[1])]);
        assert_eq!(open(&folder(&[(SINGLE, &weights)])).unwrap().tensors().len(), 1);
        assert_eq!(open(&folder(&[("other.safetensors", &weights)])).unwrap().tensors().len(), 1);
        let two = folder(&[(SINGLE, &weights), ("consolidated.safetensors", &weights)]);
        assert!(open(&two).unwrap().warnings()[0].contains("consolidated.safetensors is no part"));
        let loose = folder(&[("x.safetensors", &weights), ("y.safetensors", &weights)]);
        assert!(refused(&loose).contains("index missing"));
    }

    #[test]
    fn foreign_formats_are_named() {
        assert!(refused(&folder(&[("model.gguf", b"")])).contains("GGUF"));
        assert!(refused(&folder(&[(SINGLE, b"GGUF\x03\0\0\0")])).contains("is in GGUF"));
        assert!(refused(&folder(&[("tf_model.h5", b"")])).contains("from_tf"));
        let before_1_6 = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80";
        assert!(refused(&folder(&[("pytorch_model.bin", before_1_6)])).contains("before 1.6"));
        assert!(refused(&folder(&[])).contains("no weights"));
        assert!(refused(&folder(&[("training_args.bin", b"")])).contains("no weights"));
    }

    #[test]
    fn a_config_is_needed() {
        let folder = folder(&[(SINGLE, &shard(&[]))]);
        let config = folder.path().join(CONFIG);
        for (text, expected) in
            [("{", "not a JSON object"), ("[]", "not a JSON object"), (r#"{"a":Infinity}"#, "Python")]
        {
            fs::write(&config, text).unwrap();
            assert!(refused(&folder).contains(expected), "{text}");
        }
        fs::remove_file(&config).unwrap();
        assert!(!open(&folder).unwrap().has_config(), "tensors alone");
        fs::write(folder.path().join("adapter_config.json"), "{}").unwrap();
        assert!(refused(&folder).contains("this is an adapter: write BASE+me/model for"));
        fs::create_dir(&config).unwrap();
        assert!(refused(&folder).contains("not a regular file"));
        // With a config.json it is no model either.
        fs::remove_dir(&config).unwrap();
        fs::write(&config, "{}").unwrap();
        assert!(open(&folder).is_ok(), "a model's weights");
        fs::rename(folder.path().join(SINGLE), folder.path().join("adapter_model.safetensors")).unwrap();
        assert!(refused(&folder).contains("this is an adapter: write BASE+"));
    }

    #[test]
    fn an_index_entry_must_be_a_plain_name() {
        for hostile in [
            "/etc/x.safetensors",
            "../x.safetensors",
            "sub/x.safetensors",
            "..\\\\x.safetensors",
            "C:x.safetensors",
            "x\\u0000.safetensors",
            "model.bin",
            ".safetensors",
            "",
        ] {
            let folder = folder(&[(INDEX, &index(&format!(r#""a":"{hostile}""#)))]);
            assert!(refused(&folder).contains("no plain name"), "{hostile}");
        }
    }

    #[test]
    fn an_index_must_agree_with_its_shards() {
        let wrong = |entries: &str, expected: &str| {
            let message = refused(&two_shards(entries));
            assert!(message.contains(expected), "{message}");
        };
        wrong(r#""a":"m-3.safetensors""#, "no m-3.safetensors");
        wrong(r#""a":"m-1.safetensors""#, "missing");
        wrong(r#""a":"m-1.safetensors","b":"m-2.safetensors""#, "should be in m-1.safetensors but is in m-2");
        wrong(r#""a":"m-2.safetensors","a":"m-2.safetensors""#, "\"a\" is listed twice");
        wrong(r#""a":1"#, "expected a string");
        wrong("", "lists no tensor");
        wrong(r#""a":"m-2.safetensors"},"weight_map":{"#, "duplicate field");
        let bare = folder(&[(INDEX, b"{}")]);
        assert!(refused(&bare).contains("missing field `weight_map`"));
    }

    #[test]
    fn a_tensor_outside_the_index_is_read_and_noted() {
        let source = open(&two_shards(r#""b":"m-2.safetensors","c":"m-1.safetensors""#)).unwrap();
        assert!(source.tensor("a").is_some());
        assert!(source.warnings()[0].contains("omits tensor \"a\";"));
    }

    #[test]
    fn a_tensor_in_two_shards_is_refused() {
        let folder = folder(&[
            ("m-1.safetensors", &shard(&[("a", &[1])])),
            ("m-2.safetensors", &shard(&[("a", &[1])])),
            (INDEX, &index(r#""a":"m-1.safetensors","b":"m-2.safetensors""#)),
        ]);
        assert!(refused(&folder).contains("\"a\" is in m-1.safetensors as well"));
    }

    #[test]
    fn pointers_of_git_lfs_are_recognised_everywhere() {
        let pointer = b"version https://git-lfs.github.com/spec/v1\n";
        assert!(refused(&folder(&[(SINGLE, pointer)])).contains("git lfs pull"));
        assert!(refused(&folder(&[(INDEX, pointer)])).contains("git lfs pull"));
        assert!(refused(&folder(&[(CONFIG, pointer)])).contains("git lfs pull"));
    }

    #[test]
    fn a_file_that_changes_is_noticed() {
        let folder = two_shards(GOOD_INDEX);
        let (source, late) = (open(&folder).unwrap(), open(&folder).unwrap());
        let tensor = source.tensor("c").unwrap();
        let mut into = [0; 3];
        source.read_at(tensor, 0, &mut into, Reads::Copied).unwrap();
        let file = fs::OpenOptions::new().write(true).open(folder.path().join("m-1.safetensors")).unwrap();
        file.set_len(tensor.offset + 1).unwrap();
        let message = |result: Result<()>| result.unwrap_err().message;
        let truncated = message(source.read_at(tensor, 0, &mut into, Reads::Copied));
        assert!(truncated.contains("truncated while it was read (tensor \"c\")"), "{truncated}");
        assert!(message(source.verify_unchanged()).contains("changed while it was read"));
        assert!(
            message(late.read_at(tensor, 0, &mut into, Reads::Copied)).contains("changed while it was read")
        );
    }

    #[test]
    fn a_file_rewritten_at_the_same_size_is_noticed() {
        let folder = two_shards(GOOD_INDEX);
        let source = open(&folder).unwrap();
        let file = fs::OpenOptions::new().write(true).open(folder.path().join("m-1.safetensors")).unwrap();
        file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        assert!(source.verify_unchanged().is_err());
    }

    #[test]
    fn a_file_that_is_exchanged_while_it_is_closed_is_noticed() {
        let folder = two_shards(GOOD_INDEX);
        let source = open(&folder).unwrap();
        let read = || source.read_at(source.tensor("c").unwrap(), 0, &mut [0; 3], Reads::Copied);
        let (path, new) = (folder.path().join("m-1.safetensors"), folder.path().join("new"));
        fs::copy(&path, &new).unwrap();
        read().unwrap();
        fs::rename(new, path).unwrap();
        crate::checkpoint::handles::make_room(1);
        assert!(read().unwrap_err().message.contains("changed while it was read"));
    }

    #[test]
    fn a_folder_that_is_exchanged_is_noticed() {
        let folder = two_shards(GOOD_INDEX);
        let inner = folder.path().join("inner");
        fs::create_dir(&inner).unwrap();
        for entry in fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_file() {
                fs::copy(&entry, inner.join(entry.file_name().unwrap())).unwrap();
            }
        }
        let source = Source::open("me/model", &inner).unwrap();
        fs::rename(&inner, folder.path().join("old")).unwrap();
        fs::create_dir(&inner).unwrap();
        for entry in fs::read_dir(folder.path().join("old")).unwrap().map(|entry| entry.unwrap().path()) {
            fs::rename(&entry, inner.join(entry.file_name().unwrap())).unwrap();
        }
        let read = source.read_at(source.tensor("c").unwrap(), 0, &mut [0; 3], Reads::Copied);
        assert!(read.unwrap_err().message.contains("was replaced while it was read"));
    }

    #[test]
    #[should_panic(expected = "read inside the tensor c")]
    fn reading_past_a_tensor_is_a_mistake() {
        let source = open(&two_shards(GOOD_INDEX)).unwrap();
        let _ = source.read_at(source.tensor("c").unwrap(), 2, &mut [0; 2], Reads::Copied);
    }

    #[test]
    fn a_plain_folder_is_identified_by_time_and_header() {
        let folder = folder(&[(SINGLE, &shard(&[("a", &[1])]))]);
        let identity = open(&folder).unwrap().identity();
        let file = &identity["files"][0];
        assert_eq!(file["file"], SINGLE);
        assert_eq!(file["header_blake3"].as_str().unwrap().len(), 64);
        assert!(file["modified"].as_str().unwrap().contains('.'));
        assert!(identity.get("revision").is_none());
        assert!(!identity.to_string().contains(folder.path().to_str().unwrap()));
    }

    #[test]
    fn tensors_of_a_model_are_a_file_or_a_folder_without_a_config() {
        let folder = folder(&[("mask.safetensors", &shard(&[("a", &[1])])), ("other.safetensors", b"")]);
        fs::remove_file(folder.path().join(CONFIG)).unwrap();
        let file = folder.path().join("mask.safetensors");
        let source = Source::open_tensors("the mask", &file).unwrap();
        assert_eq!((source.tensors().len(), source.place()), (1, file.clone()));
        assert!(source.warnings().is_empty());
        let behind = |name: &str| source.file_behind(&fs::metadata(folder.path().join(name)).unwrap());
        assert_eq!((behind("mask.safetensors"), behind("other.safetensors")), (Some(file.clone()), None));
        assert!(Source::open_tensors("both", folder.path()).unwrap_err().message.contains("index missing"));
        fs::remove_file(folder.path().join("other.safetensors")).unwrap();
        let source = Source::open_tensors("all", folder.path()).unwrap();
        assert_eq!((source.tensors().len(), source.place()), (1, folder.path().to_path_buf()));
        assert_eq!(source.file_behind(&fs::metadata(&file).unwrap()), Some(file));
    }

    #[cfg(unix)]
    #[test]
    fn a_file_of_tensors_may_be_a_link() {
        let (folder, elsewhere) = (folder(&[(SINGLE, &shard(&[("a", &[1])]))]), tempfile::tempdir().unwrap());
        let link = elsewhere.path().join("mask");
        std::os::unix::fs::symlink(folder.path().join(SINGLE), &link).unwrap();
        let source = Source::open_tensors("the mask", &link).unwrap();
        let mut byte = [0];
        source.read_at(source.tensor_at(0), 0, &mut byte, Reads::Copied).unwrap();
        assert_eq!(byte, [1]);
    }

    #[cfg(unix)]
    #[test]
    fn a_snapshot_of_the_cache_is_identified_by_its_hashes() {
        let cache = tempfile::tempdir().unwrap();
        let (blobs, snapshot) = (cache.path().join("blobs"), cache.path().join("snapshots/0123abcd"));
        fs::create_dir_all(&blobs).unwrap();
        fs::create_dir_all(&snapshot).unwrap();
        let sha256 = "0f".repeat(32);
        fs::write(blobs.join(&sha256), shard(&[("a", &[1])])).unwrap();
        std::os::unix::fs::symlink(format!("../../blobs/{sha256}"), snapshot.join(SINGLE)).unwrap();
        fs::write(snapshot.join(CONFIG), "{}").unwrap();
        let source = Source::open("org/name", &snapshot).unwrap();
        assert_eq!(source.identity()["revision"], "0123abcd");
        assert_eq!(source.identity()["files"][0]["sha256"], sha256);
        let mut into = [0];
        source.read_at(source.tensor("a").unwrap(), 0, &mut into, Reads::Copied).unwrap();
        assert_eq!(into, [1]);
    }
}

//! A model's folder, and what may be opened in it.
//!
//! A checkpoint is somebody else's, and what is merged is often published: a link in it must not carry a file of this machine
//! into the output. Links are followed within the folder, and from a snapshot of the Hugging Face cache into the blobs beside
//! it; any other is refused. Only regular files are opened, and nothing waits: not for a pipe, not for a device.
//!
//! Where a link leads is seen first; then the file is opened below a handle of the folder without following any link, so that
//! one that is exchanged in between leads nowhere (cap-std; `openat2` where the system has it).

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::file::{Access, with_limit_hint};
use super::header::{is_lfs_pointer, lfs_pointer};
use crate::error::{Error, Kind, Result};
use crate::files::{self, File, Folder, Metadata};
use crate::hub::{self, SHARED_BLOBS, Snapshot, is_hex};
use crate::limits::FILES_MAX;
use crate::text::bytes;

/// Bytes that are compared at once.
const COMPARED_BYTES: usize = 1 << 18;

/// A model's folder.
#[derive(Debug)]
pub struct ModelFolder {
    /// As the user reaches it.
    pub path: PathBuf,
    /// What no link leaves: the folder itself, or the repository in the cache whose snapshot it is. Without symlinks.
    root: PathBuf,
    /// The root's own numbers: it is opened anew for each file, since there may be hundreds of models.
    number: Option<(u64, u64)>,
    /// Where the folder lies below the root.
    within: PathBuf,
    /// Of a folder that is not made yet: what its files will hold.
    planned: Option<BTreeMap<String, Planned>>,
    /// Of a snapshot of the cache: what else the repository has.
    snapshot: Option<Arc<Snapshot>>,
}

/// What a file will hold.
#[derive(Debug, Clone)]
pub enum Planned {
    /// These bytes.
    Bytes(Arc<[u8]>),
    /// What this file holds.
    CopyOf(InputFile),
}

impl ModelFolder {
    /// Opens the folder at `path`; symlinks on the way to it are the user's own.
    ///
    /// # Errors
    /// Kind `Input`: it cannot be opened.
    pub fn open(path: &Path) -> Result<Arc<Self>> {
        Self::opened(path, None)
    }

    /// Opens the folder of a snapshot of the Hub: files of it that are not there are fetched when they are opened.
    ///
    /// # Errors
    /// As of [`ModelFolder::open`].
    pub fn of_snapshot(snapshot: Arc<Snapshot>) -> Result<Arc<Self>> {
        Self::opened(&snapshot.folder(), Some(snapshot))
    }

    fn opened(path: &Path, snapshot: Option<Arc<Snapshot>>) -> Result<Arc<Self>> {
        let failed = |e: io::Error| with_limit_hint(Error::reading(path, &e), &e);
        let real = files::real(path).map_err(failed)?;
        let (root, within) = match root_of(&real)? {
            Some(root) => (root.to_path_buf(), real.strip_prefix(root).unwrap_or(Path::new("")).into()),
            None => (real, PathBuf::new()),
        };
        let number = number_of(&Folder::open(&root).map_err(failed)?).map_err(failed)?;
        Ok(Arc::new(Self { path: path.into(), root, number, within, planned: None, snapshot }))
    }

    /// The folder that will be made at `path`, with these files in it. Of copies of what is not made yet either, the original is
    /// kept, so that no chain of folders is.
    pub fn planned(path: &Path, files: impl IntoIterator<Item = (String, Planned)>) -> Arc<Self> {
        let original = |(file, content): (String, Planned)| match &content {
            Planned::CopyOf(original) => (file, original.planned().unwrap_or(&content).clone()),
            Planned::Bytes(_) => (file, content),
        };
        let planned = Some(files.into_iter().map(original).collect());
        let (root, within) = (path.into(), PathBuf::new());
        Arc::new(Self { path: path.into(), root, number: None, within, planned, snapshot: None })
    }

    /// The repository whose snapshot it is, where files may have to be fetched.
    pub fn snapshot(&self) -> Option<&Arc<Snapshot>> {
        self.snapshot.as_ref()
    }

    /// The repository, if a file of it is not here.
    pub fn absent(&self, name: &str) -> Option<&Arc<Snapshot>> {
        self.snapshot.as_ref().filter(|snapshot| snapshot.has(name) && !snapshot.is_here(name))
    }

    /// Whether it is one that is not made yet.
    pub fn is_planned(&self) -> bool {
        self.planned.is_some()
    }

    /// A handle of the root: of the same folder as at first, wherever its path leads by now.
    fn handle(&self) -> Result<Folder> {
        let failed = |e: io::Error| with_limit_hint(Error::reading(&self.path, &e), &e);
        let handle = Folder::open(&self.root).map_err(failed)?;
        if number_of(&handle).map_err(failed)? == self.number {
            return Ok(handle);
        }
        Err(Error::input(format!("{} was replaced while it was read", self.path.display()))
            .hint("merge again when nothing changes it any more"))
    }

    /// The folder without symlinks.
    pub fn real(&self) -> PathBuf {
        // Components, since joining nothing would add a slash.
        self.root.components().chain(self.within.components()).collect()
    }

    /// Who may look into it.
    ///
    /// # Errors
    /// Kind `Input`: it is gone.
    pub fn access(&self) -> Result<Access> {
        if self.is_planned() {
            return Ok(Access::ANY);
        }
        let metadata = files::metadata(&self.path).map_err(|e| Error::reading(&self.path, &e))?;
        Ok(Access::ANY.and_folder(&metadata))
    }

    /// A file of this folder; a `/` in its name leads into a folder there.
    pub fn file(self: &Arc<Self>, name: impl Into<String>) -> InputFile {
        InputFile { folder: Arc::clone(self), name: name.into() }
    }

    /// Whether there is something of this name, be it a link to nothing.
    pub fn has(&self, name: &str) -> bool {
        if let Some(files) = &self.planned {
            return files.contains_key(name) || self.is_folder(name);
        }
        let found = files::metadata_of_link(&self.path.join(name)).map_err(|cause| cause.kind());
        // What cannot be looked at may be there: whoever opens it will say so.
        let is_absent = |cause| files::leads_nowhere(cause) || cause == io::ErrorKind::NotADirectory;
        let is_on_hub = |snapshot: &Arc<Snapshot>| snapshot.has(name) || snapshot.is_folder(name);
        !found.is_err_and(is_absent) || self.snapshot.as_ref().is_some_and(is_on_hub)
    }

    /// Whether a folder of this name is in it, be it through a link.
    pub fn is_folder(&self, name: &str) -> bool {
        let is_above = |file: &String| file.strip_prefix(name).is_some_and(|rest| rest.starts_with('/'));
        match &self.planned {
            Some(files) => files.keys().any(is_above),
            None => files::is_folder(&self.path.join(name)) || self.snapshot_has_folder(name),
        }
    }

    /// The same, where it counts whether that can be seen.
    ///
    /// # Errors
    /// Kind `Input`: the system does not say.
    pub fn leads_to_folder(&self, name: &str) -> Result<bool> {
        if self.is_planned() {
            return Ok(self.is_folder(name));
        }
        let path = self.path.join(name);
        match files::metadata(&path) {
            Ok(found) if found.is_dir() => Ok(true),
            Err(cause) if !files::leads_nowhere(cause.kind()) => {
                Err(with_limit_hint(Error::reading(&path, &cause), &cause))
            }
            _ => Ok(self.snapshot_has_folder(name)),
        }
    }

    fn snapshot_has_folder(&self, name: &str) -> bool {
        self.snapshot.as_ref().is_some_and(|snapshot| snapshot.is_folder(name))
    }

    /// The names of the files in this folder, or in a folder of it, sorted. Names that are not UTF-8 are none that this format
    /// knows.
    ///
    /// # Errors
    /// Kind `Input`: the folder cannot be listed, a link leads out of the model, or there are too many files.
    pub fn names(&self, below: &str) -> Result<BTreeSet<String>> {
        if let Some(files) = &self.planned {
            let below = if below.is_empty() { String::new() } else { format!("{below}/") };
            let inside = files.keys().filter_map(|file| file.strip_prefix(&below)?.split('/').next());
            return Ok(inside.map(str::to_owned).collect());
        }
        let path = self.path.join(below);
        let failed = |e: io::Error| with_limit_hint(Error::reading(&path, &e), &e);
        let mut names = self.snapshot.as_ref().map_or_else(BTreeSet::new, |snapshot| snapshot.names(below));
        if !names.is_empty() && !files::exists(&path) {
            return Ok(names);
        }
        let place = self.place_of(below)?;
        let place = if place.as_os_str().is_empty() { Path::new(".") } else { &place };
        for (count, entry) in self.handle()?.list(place).map_err(failed)?.enumerate() {
            if count == FILES_MAX {
                let refusal = format!("{} holds more than {FILES_MAX} files", path.display());
                return Err(Error::input(refusal).hint("give the folder of a model, with nothing else in it"));
            }
            names.extend(entry.map_err(failed)?.file_name().into_string().ok());
        }
        Ok(names)
    }

    /// The name of the file here that this is as well, under another name or through a link; none where there is no such file,
    /// or where the system does not number files.
    pub fn name_of(&self, file: &Metadata) -> Option<String> {
        self.names("").ok()?.into_iter().find(|name| self.is(name, file))
    }

    /// Whether the file of this name is that one as well.
    pub fn is(&self, name: &str, file: &Metadata) -> bool {
        let found = files::metadata(&self.path.join(name));
        !self.is_planned()
            && found.is_ok_and(|found| number(&found).is_some_and(|found| Some(found) == number(file)))
    }

    /// Where a name leads, below the root and without symlinks.
    fn place_of(&self, name: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        let real = files::real(&path).map_err(|e| self.unreachable(name, &e))?;
        let place = real.strip_prefix(&self.root).map_err(|_| self.leads_out(name))?;
        let is_blob = self.blobs().is_some_and(|blobs| place.parent() == Some(blobs.as_path()))
            || self.is_shared_blob(place);
        if place.starts_with(&self.within) || is_blob { Ok(place.into()) } else { Err(self.leads_out(name)) }
    }

    /// Of a snapshot: where the blobs of its repository lie below the root.
    fn blobs(&self) -> Option<PathBuf> {
        // `snapshots/COMMIT`, or `models--ORG--NAME/snapshots/COMMIT`.
        Some(self.within.parent()?.parent()?.join("blobs"))
    }

    /// Whether a place below the root is that of a blob which repositories share, `blobs/01/0123…`.
    fn is_shared_blob(&self, place: &Path) -> bool {
        let parts: Option<Vec<&str>> = place.iter().map(|part| part.to_str()).collect();
        self.within.iter().count() == 3
            && matches!(parts.as_deref(), Some(["blobs", start, hash])
                if start.len() == 2 && hash.len() == 64 && hash.starts_with(start) && is_hex(hash))
    }

    /// The first link on the way to a name, and where it leads.
    fn link_to(&self, name: &str) -> Option<(PathBuf, PathBuf)> {
        let mut path = self.path.clone();
        Path::new(name).components().find_map(|part| {
            path.push(part);
            Some((path.clone(), files::link_target(&path).ok()?))
        })
    }

    fn leads_out(&self, name: &str) -> Error {
        let message = match self.link_to(name) {
            Some((link, target)) => {
                format!("{} is a link to {}, outside of the model's folder", link.display(), target.display())
            }
            None => format!("{} lies outside of the model's folder", self.path.join(name).display()),
        };
        let hint = "links are followed within a model's folder, and from a snapshot of the Hugging Face cache into its blobs: \
                    if the file belongs to the model, put it there in place of the link";
        match self.blobs() {
            Some(_) => Error::input(message).hint(format!("{hint}; else {}", again(&self.path.join(name)))),
            None => Error::input(message).hint(hint),
        }
    }

    fn unreachable(&self, name: &str, cause: &io::Error) -> Error {
        let path = self.path.join(name);
        match self.link_to(name) {
            Some((link, target)) if cause.kind() == io::ErrorKind::NotFound => {
                let message =
                    format!("{} is a link to {}, which is not there", link.display(), target.display());
                Error::input(message).hint("an interrupted download can be run again")
            }
            _ => Error::reading(&path, cause),
        }
    }
}

/// As [`number`], of an open folder.
fn number_of(folder: &Folder) -> io::Result<Option<(u64, u64)>> {
    if cfg!(unix) { folder.found().map(|found| Some(found.number())) } else { Ok(None) }
}

/// What is one and the same file has the same numbers: device and inode.
#[cfg(unix)]
fn number(file: &Metadata) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    Some((file.dev(), file.ino()))
}

#[cfg(not(unix))]
fn number(_file: &Metadata) -> Option<(u64, u64)> {
    None
}

/// What no link leaves of the Hugging Face cache, for one of its `models--ORG--NAME/snapshots/COMMIT`: the repository; the whole
/// cache where repositories share blobs in it (`huggingface_hub` from version 2 on), which this marker says.
///
/// # Errors
/// Kind `Input`: the system does not say.
fn root_of(real: &Path) -> Result<Option<&Path>> {
    let snapshots = real.parent().filter(|folder| folder.ends_with("snapshots"));
    let Some(repository) = snapshots.and_then(Path::parent) else { return Ok(None) };
    let Some(cache) = repository.parent() else { return Ok(None) };
    if !leads_to(&repository.join("blobs"), Metadata::is_dir)? {
        return Ok(None);
    }
    let are_shared = leads_to(&cache.join("blobs").join(SHARED_BLOBS), Metadata::is_file)?;
    Ok(Some(if are_shared { cache } else { repository }))
}

/// Whether a path leads to something of a kind. What could not be looked at may be there the next time.
fn leads_to(path: &Path, is_kind: fn(&Metadata) -> bool) -> Result<bool> {
    match files::metadata(path) {
        Ok(found) => Ok(is_kind(&found)),
        Err(e) if files::leads_nowhere(e.kind()) || e.kind() == io::ErrorKind::NotADirectory => Ok(false),
        Err(e) => Err(Error::reading(path, &e)),
    }
}

/// A file of a model's folder.
#[derive(Debug, Clone)]
pub struct InputFile {
    folder: Arc<ModelFolder>,
    name: String,
}

impl PartialEq for InputFile {
    fn eq(&self, other: &Self) -> bool {
        self.path() == other.path()
    }
}

impl Eq for InputFile {}

impl InputFile {
    /// Its path, as the user reaches it.
    pub fn path(&self) -> PathBuf {
        self.folder.path.join(&self.name)
    }

    /// What it will hold, where its folder is not made yet.
    fn planned(&self) -> Option<&Planned> {
        self.folder.planned.as_ref()?.get(&self.name)
    }

    /// What it holds, and how many bytes that is.
    fn content(&self) -> Result<(Box<dyn Read + '_>, u64)> {
        if let Some(Planned::Bytes(bytes)) = self.planned() {
            return Ok((Box::new(&bytes[..]), bytes.len() as u64));
        }
        let (file, metadata) = self.open()?;
        Ok((Box::new(file), metadata.len()))
    }

    /// How long it is.
    ///
    /// # Errors
    /// As of [`InputFile::open`].
    pub fn bytes(&self) -> Result<u64> {
        let absent = self.folder.absent(&self.name).and_then(|snapshot| snapshot.bytes(&self.name));
        absent.map_or_else(|| self.content().map(|(_, bytes)| bytes), Ok)
    }

    /// Fetches it from the Hub, if it is not here.
    ///
    /// # Errors
    /// Kind `Network` or `Output`: it cannot be had, or not be kept.
    pub fn bring(&self) -> Result<()> {
        self.folder.absent(&self.name).map_or(Ok(()), |snapshot| hub::bring(snapshot, &self.name))
    }

    /// Opens it, with what the system says about it.
    ///
    /// # Errors
    /// Kind `Input`: it is missing, no regular file, may not be read, or a link leads out of the model.
    pub fn open(&self) -> Result<(File, Metadata)> {
        if let Some(Planned::CopyOf(original)) = self.planned() {
            return original.open();
        }
        let path = self.path();
        self.bring()?;
        let place = self.folder.place_of(&self.name).map_err(|e| self.kept(e))?;
        let handle = self.folder.handle()?;
        let opened = || {
            // Asked first, since opening a device can have effects.
            if !handle.look(&place)?.is_file() {
                return Ok(None);
            }
            let file = handle.open_to_read(&place)?;
            let metadata = file.metadata()?;
            Ok((metadata.is_file() && !file.is_of_the_system()).then_some((file, metadata)))
        };
        match opened() {
            Ok(Some(opened)) => Ok(opened),
            Ok(None) => Err(self.kept(irregular(&path))),
            Err(e) => Err(with_limit_hint(Error::reading(&path, &e), &e)),
        }
    }

    /// What is wrong with it, with the way out where it lies in the Hub's cache: there it can be had again.
    pub(super) fn kept(&self, error: Error) -> Error {
        let is_in_cache = self.folder.blobs().is_some();
        let is_of_file = error.kind == Kind::Input && error.cause.is_none_or(files::leads_nowhere);
        let can_help = error.hint.as_ref().is_none_or(|hint| hint.contains("download"));
        if is_in_cache && is_of_file && can_help { error.hint(again(&self.path())) } else { error }
    }

    /// All of it, if it has no more than `bytes_max`.
    ///
    /// # Errors
    /// Kind `Input`: as in [`InputFile::open`], or it is larger, or a Git LFS pointer.
    pub fn read(&self, bytes_max: u64) -> Result<Vec<u8>> {
        let (file, bytes) = self.content()?;
        self.check_size(bytes, bytes_max)?;
        let mut content = Vec::new();
        file.take(bytes_max + 1).read_to_end(&mut content).map_err(|e| Error::reading(&self.path(), &e))?;
        self.check_size(content.len() as u64, bytes_max)?;
        if is_lfs_pointer(&content) { Err(lfs_pointer(&self.path())) } else { Ok(content) }
    }

    /// The same of one that need not be there, or may be something that no such file is: then nothing.
    ///
    /// # Errors
    /// Kind `Input`: the system does not let it be read. Kind `Network` or `Output`: it cannot be had, or not be kept.
    pub fn read_if_sound(&self, bytes_max: u64) -> Result<Option<Vec<u8>>> {
        match self.read(bytes_max) {
            Ok(content) => Ok(Some(content)),
            Err(error) if error.kind == Kind::Input && error.cause.is_none_or(files::leads_nowhere) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Refuses a size that no file of this kind has.
    ///
    /// # Errors
    /// Kind `Input`, with both sizes.
    pub fn check_size(&self, size: u64, bytes_max: u64) -> Result<()> {
        if size <= bytes_max {
            return Ok(());
        }
        let message = format!(
            "{} has {}, and {} are the most that is read of such a file",
            self.path().display(),
            bytes(size),
            bytes(bytes_max)
        );
        Err(self.kept(
            Error::input(message).hint("no published model has one that large: download the file again"),
        ))
    }

    /// Whether two files of at most `bytes_max` hold the same bytes: seen by their sizes, else block by block.
    ///
    /// # Errors
    /// Kind `Input`: one of them cannot be read, or is larger.
    pub fn same_content(&self, other: &Self, bytes_max: u64) -> Result<bool> {
        if self.bytes()? != other.bytes()? {
            return Ok(false);
        }
        let ((mut mine, my_bytes), (mut theirs, their_bytes)) = (self.content()?, other.content()?);
        if my_bytes != their_bytes {
            return Ok(false);
        }
        self.check_size(my_bytes, bytes_max)?;
        let (mut left, mut right) = (Vec::new(), Vec::new());
        loop {
            fill(&mut mine, &mut left).map_err(|e| Error::reading(&self.path(), &e))?;
            fill(&mut theirs, &mut right).map_err(|e| Error::reading(&other.path(), &e))?;
            if left != right || left.is_empty() {
                return Ok(left == right);
            }
        }
    }
}

/// The way out where a file of the Hub's cache is not what it should be.
fn again(path: &Path) -> String {
    let blob = files::real(path).ok().filter(|blob| blob != path);
    let blob = blob.map_or_else(String::new, |blob| format!(" and {}", blob.display()));
    format!("remove {}{blob}: what the Hub's cache lacks of a model is fetched again", path.display())
}

/// The next bytes of a file; none at its end.
fn fill(file: &mut impl Read, into: &mut Vec<u8>) -> io::Result<usize> {
    into.clear();
    file.take(COMPARED_BYTES as u64).read_to_end(into)
}

/// What is wrong with what is there. That it could not be read is an error: another time it can, and the output would have another file.
pub(super) fn unless_unread(refusal: Error) -> Result<Error> {
    if refusal.cause.is_none_or(files::leads_nowhere) { Ok(refusal) } else { Err(refusal) }
}

/// The refusal of what is no regular file.
pub fn irregular(path: &Path) -> Error {
    Error::input(format!("{} is not a regular file", path.display()))
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use crate::error::Kind;
    use std::fs;
    use std::os::unix::fs::symlink;

    /// A model's folder `model` with a file `own`, and outside of it `secret`.
    fn model() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("model");
        fs::create_dir_all(folder.join("sub")).unwrap();
        fs::write(folder.join("own"), "own").unwrap();
        fs::write(folder.join("sub/deep"), "deep").unwrap();
        fs::write(dir.path().join("secret"), "secret").unwrap();
        (dir, folder)
    }

    fn read(folder: &Path, name: &str) -> Result<String> {
        let content = ModelFolder::open(folder)?.file(name).read(1000)?;
        Ok(String::from_utf8(content).unwrap())
    }

    #[track_caller]
    fn refused(folder: &Path, name: &str, says: &[&str]) {
        let error = read(folder, name).unwrap_err();
        assert_eq!(error.kind, Kind::Input);
        assert!(says.iter().all(|part| error.message.contains(part)), "{name}: {error}");
    }

    #[test]
    fn links_are_followed_within_the_folder() {
        let (_dir, folder) = model();
        symlink("own", folder.join("link")).unwrap();
        symlink("sub", folder.join("folder")).unwrap();
        symlink(folder.join("own"), folder.join("absolute")).unwrap();
        symlink("../own", folder.join("sub/up")).unwrap();
        for (name, content) in
            [("own", "own"), ("link", "own"), ("folder/deep", "deep"), ("absolute", "own"), ("sub/up", "own")]
        {
            assert_eq!(read(&folder, name).unwrap(), content, "{name}");
        }
        assert_eq!(ModelFolder::open(&folder).unwrap().names("folder").unwrap().len(), 2);
        // The folder itself may be reached by a link: the user wrote that.
        let link = folder.with_file_name("another-name");
        symlink(&folder, &link).unwrap();
        assert_eq!(read(&link, "link").unwrap(), "own");
    }

    #[test]
    fn links_out_of_the_folder_are_refused_with_their_target() {
        let (dir, folder) = model();
        let secret = dir.path().join("secret");
        symlink("../secret", folder.join("relative")).unwrap();
        symlink(&secret, folder.join("absolute")).unwrap();
        symlink("relative", folder.join("twice")).unwrap();
        symlink("..", folder.join("parent")).unwrap();
        symlink("/proc/self/environ", folder.join("environ")).unwrap();
        symlink("/dev/zero", folder.join("zero")).unwrap();
        symlink("nothing", folder.join("dangling")).unwrap();
        symlink("loop", folder.join("loop")).unwrap();
        refused(
            &folder,
            "relative",
            &["model/relative is a link to ../secret, outside of the model's folder"],
        );
        refused(&folder, "absolute", &["model/absolute is a link to /", "secret, outside"]);
        refused(&folder, "twice", &["model/twice is a link to relative, outside"]);
        refused(&folder, "parent/secret", &["model/parent is a link to .., outside"]);
        refused(&folder, "environ", &["environ is a link to /proc/self/environ, outside"]);
        refused(&folder, "zero", &["zero is a link to /dev/zero, outside"]);
        refused(&folder, "dangling", &["dangling is a link to nothing, which is not there"]);
        refused(&folder, "loop", &["cannot read ", "loop"]);
        refused(&folder, "../secret", &["lies outside of the model's folder"]);
        let listed = ModelFolder::open(&folder).unwrap().names("parent");
        assert!(listed.unwrap_err().message.contains("outside"));
    }

    #[test]
    fn a_snapshot_of_the_cache_leads_into_its_own_blobs_and_no_further() {
        let (dir, _) = model();
        let repository = |name: &str| {
            let repository = dir.path().join(name);
            fs::create_dir_all(repository.join("blobs")).unwrap();
            fs::create_dir_all(repository.join("snapshots/c0ffee")).unwrap();
            fs::write(repository.join("blobs/0f"), name).unwrap();
            repository
        };
        let (mine, _theirs) = (repository("models--a--b"), repository("models--c--d"));
        let snapshot = mine.join("snapshots/c0ffee");
        fs::create_dir_all(mine.join("snapshots/0ther")).unwrap();
        fs::write(mine.join("snapshots/0ther/file"), "").unwrap();
        fs::create_dir_all(mine.join("blobs/deep")).unwrap();
        fs::write(mine.join("blobs/deep/file"), "").unwrap();
        for (name, target) in [
            ("good", "../../blobs/0f"),
            ("theirs", "../../../models--c--d/blobs/0f"),
            ("secret", "../../../secret"),
            ("other", "../0ther/file"),
            ("deep", "../../blobs/deep/file"),
        ] {
            symlink(target, snapshot.join(name)).unwrap();
        }
        assert_eq!(read(&snapshot, "good").unwrap(), "models--a--b");
        for name in ["theirs", "secret", "other", "deep"] {
            refused(&snapshot, name, &["is a link to ..", "outside of the model's folder"]);
        }
        // Without blobs beside it, it is a folder like any other.
        fs::rename(mine.join("blobs"), mine.join("not-blobs")).unwrap();
        symlink("../../not-blobs/0f", snapshot.join("moved")).unwrap();
        refused(&snapshot, "moved", &["outside of the model's folder"]);
    }

    #[test]
    fn a_snapshot_leads_into_blobs_that_repositories_share() {
        let (dir, _) = model();
        let cache = dir.path().join("hub");
        let repository = cache.join("models--a--b");
        let snapshot = repository.join("snapshots/c0ffee");
        let hash = "0f".repeat(32);
        for folder in [&cache.join("blobs/0f"), &cache.join("blobs/ab"), &repository.join("blobs"), &snapshot]
        {
            fs::create_dir_all(folder).unwrap();
        }
        for place in [format!("0f/{hash}"), format!("ab/{hash}"), "0f/readme".into()] {
            fs::write(cache.join("blobs").join(place), "shared").unwrap();
        }
        for (name, target) in [
            ("good", format!("0f/{hash}")),
            ("elsewhere", format!("ab/{hash}")),
            ("other", "0f/readme".into()),
        ] {
            symlink(format!("../../blobs/{target}"), repository.join("blobs").join(name)).unwrap();
            symlink(format!("../../blobs/{name}"), snapshot.join(name)).unwrap();
        }
        symlink("../../../../secret", snapshot.join("secret")).unwrap();
        refused(&snapshot, "good", &["outside of the model's folder"]);
        fs::write(cache.join("blobs/.huggingface-shared-blobs"), "1\n").unwrap();
        assert_eq!(read(&snapshot, "good").unwrap(), "shared");
        for name in ["elsewhere", "other", "secret"] {
            refused(&snapshot, name, &["outside of the model's folder"]);
        }
    }

    #[test]
    fn only_regular_files_are_opened_and_none_is_waited_for() {
        let (_dir, folder) = model();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            folder.join("pipe"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
            0,
        )
        .unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(folder.join("socket")).unwrap();
        symlink("pipe", folder.join("link")).unwrap();
        for name in ["pipe", "socket", "sub", "link"] {
            refused(&folder, name, &["is not a regular file"]);
        }
        #[cfg(target_os = "linux")]
        for (folder, name) in [("/proc/self", "environ"), ("/sys/kernel", "notes"), ("/dev", "zero")] {
            refused(Path::new(folder), name, &["is not a regular file"]);
        }
    }

    #[test]
    fn files_are_compared_by_size_and_then_whole() {
        let (_dir, folder) = model();
        let content = |last: u8| [vec![7; 3 * COMPARED_BYTES + 1], vec![last]].concat();
        for (name, content) in [("a", content(1)), ("b", content(1)), ("c", content(2)), ("d", vec![7])] {
            fs::write(folder.join(name), content).unwrap();
        }
        let model = ModelFolder::open(&folder).unwrap();
        let same = |a: &str, b: &str| model.file(a).same_content(&model.file(b), 1 << 20);
        assert!(same("a", "b").unwrap() && !same("a", "c").unwrap() && !same("a", "d").unwrap());
        // A hole of a terabyte is not read.
        for name in ["vast", "vast too"] {
            fs::File::create(folder.join(name)).unwrap().set_len(1 << 40).unwrap();
        }
        assert!(same("vast", "vast too").unwrap_err().message.contains("has 1099.51 GB"));
        assert!(model.file("vast").read(1000).unwrap_err().message.contains("are the most that is read"));
    }
}

//! One file of an input checkpoint: read by position, past the page cache or mapped, as it was when its header was read.

use std::fmt;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use serde_json::{Map, Value, json};

use super::file::{Reads, read_exact_past_cache};
use super::folder::InputFile;
use super::handles::{Handles, Slot};
use super::header::TensorInfo;
use crate::error::{Error, Result};
use crate::files::{self, File, Mapped, Metadata};
use crate::hub::{Snapshot, is_hex, is_verified};
use crate::text::quoted;

/// The bytes of a file of weights that are not read from a disk here.
pub trait Elsewhere: fmt::Debug + Send + Sync {
    /// Fills `into` from byte `offset` of the file on. Any thread may call it.
    ///
    /// # Errors
    /// They cannot be had, or are no longer those of the file whose header was read.
    fn read_at(&self, into: &mut [u8], offset: u64) -> Result<()>;

    /// The same of a few bytes, where those beside them will not be wanted.
    ///
    /// # Errors
    /// The same.
    fn peek(&self, into: &mut [u8], offset: u64) -> Result<()> {
        self.read_at(into, offset)
    }

    /// Which bytes they are, for the manifest; without the file's name.
    fn identity(&self) -> Map<String, Value>;

    /// The repository of the Hub that has the file, if one has.
    fn repository(&self) -> Option<&Arc<Snapshot>> {
        None
    }
}

/// One file of weights as it was when its header was read.
#[derive(Debug)]
pub(super) struct SourceFile {
    pub(super) name: String,
    file: InputFile,
    /// Where it does not lie in its folder, or did not when its header was read.
    elsewhere: Option<Arc<dyn Elsewhere>>,
    stamp: Stamp,
    /// Of one from elsewhere, once it lies in its folder.
    arrived: OnceLock<Stamp>,
    header: blake3::Hash,
    /// Opened at the first read: a plan over hundreds of shards keeps none open. Closed where others need the room.
    handles: Arc<Slot>,
    /// In memory, where that is wanted and possible.
    mapped: OnceLock<Option<Mapped>>,
    /// The SHA-256 of all of it, where somebody wanted it.
    hashed: OnceLock<String>,
}

/// What shows that a file has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) bytes: u64,
    modified: Option<SystemTime>,
    /// Device, inode, and when that was changed: a time that was put back does not hide a change.
    #[cfg(unix)]
    inode: (u64, u64, i64, i64),
}

impl Stamp {
    pub(super) fn of(metadata: &Metadata) -> Self {
        #[cfg(unix)]
        use std::os::unix::fs::MetadataExt;
        Self {
            bytes: metadata.len(),
            modified: metadata.modified().ok(),
            #[cfg(unix)]
            inode: (metadata.dev(), metadata.ino(), metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// When it was changed last, be it its content or what the system says of it.
    fn newest(&self) -> Option<SystemTime> {
        #[cfg(unix)]
        {
            let (_, _, seconds, nanoseconds) = self.inode;
            let since =
                std::time::Duration::new(u64::try_from(seconds).ok()?, u32::try_from(nanoseconds).ok()?);
            let changed = SystemTime::UNIX_EPOCH.checked_add(since);
            changed.max(self.modified)
        }
        #[cfg(not(unix))]
        self.modified
    }

    /// That of a file which is not made yet: no file has it.
    pub(super) fn planned(bytes: u64) -> Self {
        Self {
            bytes,
            modified: None,
            #[cfg(unix)]
            inode: (0, 0, 0, 0),
        }
    }
}

impl SourceFile {
    /// A file as it was when its header, of this hash, was read.
    pub(super) fn new(name: String, file: InputFile, stamp: Stamp, header: blake3::Hash) -> Self {
        let (elsewhere, arrived, mapped, hashed) = (None, OnceLock::new(), OnceLock::new(), OnceLock::new());
        Self { name, file, elsewhere, stamp, arrived, header, handles: Arc::default(), mapped, hashed }
    }

    /// The same, whose bytes come from somewhere else.
    pub(super) fn lying_elsewhere(self, elsewhere: Arc<dyn Elsewhere>) -> Self {
        Self { elsewhere: Some(elsewhere), ..self }
    }

    /// The same file, as it was then, to be opened by itself.
    pub(super) fn again(&self) -> Self {
        let again = Self::new(self.name.clone(), self.file.clone(), self.stamp, self.header);
        let (elsewhere, hashed) = (self.elsewhere.clone(), self.hashed.clone());
        Self { elsewhere, arrived: self.arrived.clone(), hashed, ..again }
    }

    /// Where its bytes come from, if not from its folder.
    fn elsewhere(&self) -> Option<&dyn Elsewhere> {
        self.elsewhere.as_deref().filter(|_| self.arrived.get().is_none())
    }

    /// The repository of the Hub that it has to be fetched from.
    pub(super) fn absent(&self) -> Option<&Arc<Snapshot>> {
        self.elsewhere().and_then(Elsewhere::repository)
    }

    /// From now on it is read from its folder, where it lies by now; unless it has another header than it was planned with, whose hash
    /// `header` reads.
    pub(super) fn arrive(
        &self,
        header: impl FnOnce(&File, &Path, u64) -> Result<blake3::Hash>,
    ) -> Result<bool> {
        let (file, metadata) = self.file.open()?;
        let stamp = Stamp::of(&metadata);
        if stamp.bytes != self.stamp.bytes || header(&file, &self.file.path(), stamp.bytes)? != self.header {
            return Ok(false);
        }
        let _ = self.arrived.set(stamp);
        Ok(true)
    }

    /// As it was when its header was read, or when it came.
    fn stamp(&self) -> Stamp {
        *self.arrived.get().unwrap_or(&self.stamp)
    }

    fn handles(&self) -> Result<Arc<Handles>> {
        self.handles.get(|| {
            let (file, metadata) = self.file.open()?;
            self.verify(&metadata)?;
            Ok(file)
        })
    }

    /// What is mapped stays so when the file is closed.
    fn mapped(&self) -> Result<Option<&Mapped>> {
        if let Some(mapped) = self.mapped.get() {
            return Ok(mapped.as_ref());
        }
        if self.elsewhere().is_some() {
            return Ok(None);
        }
        let handles = self.handles()?;
        Ok(self.mapped.get_or_init(|| Mapped::new(&handles.file, self.stamp.bytes)).as_ref())
    }

    fn verify(&self, metadata: &Metadata) -> Result<()> {
        if Stamp::of(metadata) == self.stamp() { Ok(()) } else { Err(self.changed()) }
    }

    fn changed(&self) -> Error {
        let path = self.file.path();
        Error::input(format!("{} changed while it was read", path.display()))
            .in_file(&path)
            .hint("merge again when nothing writes to it any more")
    }

    pub(super) fn identity(&self) -> Value {
        let (file, bytes) = (&self.name, self.stamp.bytes);
        if let Some(elsewhere) = self.elsewhere() {
            let mut identity = elsewhere.identity();
            identity.insert("file".into(), file.as_str().into());
            identity.insert("bytes".into(), bytes.into());
            return identity.into();
        }
        if let Some(sha256) = blob_sha256(&self.file.path()) {
            // It is what the link is called. Whether the content is that was looked at if it was downloaded here.
            let verified = is_verified(&sha256, &self.file.path());
            return json!({ "file": file, "bytes": bytes, "sha256": sha256, "sha256_verified": verified });
        }
        let since_1970 =
            self.stamp().modified.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
        let modified = since_1970.map(|time| format!("{}.{:09}", time.as_secs(), time.subsec_nanos()));
        json!({ "file": file, "bytes": bytes, "modified": modified, "header_blake3": self.header.to_hex().as_str() })
    }

    /// A digest of a few places of it, if it is here.
    pub(super) fn sample(&self) -> Result<Option<String>> {
        const PLACES: u64 = 16;
        const PLACE_BYTES: u64 = 4096;
        if self.elsewhere().is_some() {
            return Ok(None);
        }
        let (file, metadata) = self.file.open()?;
        let (mut hasher, mut place) =
            (blake3::Hasher::new(), vec![0; metadata.len().min(PLACE_BYTES) as usize]);
        let last = metadata.len() - place.len() as u64;
        for number in 0..PLACES {
            let offset = (u128::from(last) * u128::from(number) / u128::from(PLACES - 1)) as u64;
            file.read_exact_at(&mut place, offset).map_err(|cause| match cause.kind() {
                // It has become shorter.
                ErrorKind::UnexpectedEof => self.changed(),
                _ => Error::reading(&self.file.path(), &cause),
            })?;
            hasher.update(&place);
        }
        Ok(Some(hasher.finalize().to_hex().to_string()))
    }

    /// The same without its time: what two copies of the file have in common.
    pub(super) fn provenance(&self) -> Value {
        let header = self.header.to_hex();
        let mut found =
            json!({ "file": self.name, "bytes": self.stamp.bytes, "header_blake3": header.as_str() });
        let (sha256, verified) = match (self.hashed.get(), self.elsewhere()) {
            (Some(sha256), _) => (Some(sha256.clone()), true),
            (None, Some(elsewhere)) => {
                (elsewhere.identity().get("sha256").and_then(Value::as_str).map(str::to_owned), false)
            }
            (None, None) => {
                let sha256 = blob_sha256(&self.file.path());
                let verified = sha256.as_ref().is_some_and(|sha256| is_verified(sha256, &self.file.path()));
                (sha256, verified)
            }
        };
        if let Some(sha256) = sha256 {
            found["sha256"] = sha256.into();
            found["sha256_verified"] = verified.into();
        }
        found
    }

    /// Whether it was changed after that time; never where its content is known by name, or not read from here.
    pub(super) fn changed_after(&self, time: SystemTime) -> bool {
        if self.elsewhere().is_some() || blob_sha256(&self.file.path()).is_some() {
            return false;
        }
        self.stamp().newest().is_some_and(|newest| newest > time)
    }

    /// The bytes to be read for its SHA-256; none where that is known for certain, or they do not lie here.
    pub(super) fn unhashed_bytes(&self) -> u64 {
        let path = self.file.path();
        let is_known = self.hashed.get().is_some()
            || self.elsewhere().is_some()
            || blob_sha256(&path).is_some_and(|sha256| is_verified(&sha256, &path));
        if is_known { 0 } else { self.stamp.bytes }
    }

    /// Reads it whole, by `hash`, and keeps the SHA-256 that this finds.
    pub(super) fn hash(
        &self,
        hash: impl FnOnce(&mut File) -> Result<io::Result<(u64, String)>>,
    ) -> Result<()> {
        let path = self.file.path();
        let (mut file, metadata) = self.file.open()?;
        self.verify(&metadata)?;
        let (bytes, sha256) = hash(&mut file)?.map_err(|cause| Error::reading(&path, &cause))?;
        if bytes != self.stamp.bytes {
            return Err(self.changed());
        }
        self.verify(&file.metadata().map_err(|cause| Error::reading(&path, &cause))?)?;
        if let Some(known) = blob_sha256(&path).filter(|known| *known != sha256) {
            let what = format!("{} has the SHA-256 {sha256}, and the cache calls it {known}", path.display());
            let error = Error::input(what).in_file(&path);
            return Err(
                error.hint("the download is damaged: delete the file that it links to, and fetch it again")
            );
        }
        let _ = self.hashed.set(sha256);
        Ok(())
    }

    /// Fills `into` from byte `offset` of a tensor on.
    pub(super) fn read_at(
        &self,
        tensor: &TensorInfo,
        offset: u64,
        into: &mut [u8],
        reads: Reads,
    ) -> Result<()> {
        /// What is smaller shares its blocks with its neighbours, which will be wanted too.
        const DIRECT_BYTES_MIN: usize = 64 << 10;
        if let Some(elsewhere) = self.elsewhere() {
            return elsewhere.read_at(into, tensor.offset + offset);
        }
        let (handles, offset) = (self.handles()?, tensor.offset + offset);
        let past_cache = reads == Reads::Direct && into.len() >= DIRECT_BYTES_MIN;
        let direct = if past_cache { handles.direct() } else { None };
        let read = match direct {
            Some(direct) => read_exact_past_cache(&handles.file, direct, into, offset),
            None => handles.file.read_exact_at(into, offset),
        };
        read.map_err(|e| self.read_error(tensor, &e))
    }

    /// Fills `into` from the first byte of a tensor on, and brings nothing else where it lies elsewhere.
    pub(super) fn peek(&self, tensor: &TensorInfo, into: &mut [u8]) -> Result<()> {
        match self.elsewhere() {
            Some(elsewhere) => elsewhere.peek(into, tensor.offset),
            None => self.read_at(tensor, 0, into, Reads::Copied),
        }
    }

    /// A part of a tensor where it lies in memory, if the file can be mapped.
    pub(super) fn bring(
        &self,
        tensor: &TensorInfo,
        part: &Range<u64>,
        absent: bool,
    ) -> Result<Option<&[u8]>> {
        let Some(mapped) = self.mapped()? else { return Ok(None) };
        let part = tensor.offset + part.start..tensor.offset + part.end;
        mapped.bring(&part, absent).map_err(|e| self.read_error(tensor, &e))
    }

    /// Lets go of bytes that were brought.
    pub(super) fn release(&self, bytes: &Range<u64>) {
        if let Some(Some(mapped)) = self.mapped.get() {
            mapped.release(bytes);
        }
    }

    /// That it still has the size and time that it had, and was there all the time.
    pub(super) fn verify_unchanged(&self) -> Result<()> {
        if self.elsewhere().is_some() {
            return Ok(());
        }
        let path = &self.file.path();
        if matches!(self.mapped.get(), Some(Some(mapped)) if mapped.broken()) {
            let what = format!("{} was truncated while it was read, or its disk fails", path.display());
            let error = Error::input(what).in_file(path);
            return Err(error.hint("merge again when nothing writes to it any more"));
        }
        self.verify(&files::metadata(path).map_err(|e| Error::reading(path, &e))?)
    }

    fn read_error(&self, tensor: &TensorInfo, cause: &io::Error) -> Error {
        let (path, name) = (self.file.path(), quoted(&tensor.name));
        let shown = path.display();
        if cause.kind() == io::ErrorKind::UnexpectedEof {
            let what = format!("{shown} was truncated while it was read (tensor {name})");
            let error = Error::input(what).in_file(&path);
            return error.hint("merge again when nothing writes to it any more");
        }
        Error::input(format!("cannot read tensor {name} from {shown}: {cause}"))
            .in_file(&path)
            .caused_by(cause)
    }
}

/// The Hugging Face cache names large files by their SHA-256 and links to them.
fn blob_sha256(path: &Path) -> Option<String> {
    let target = files::link_target(path).ok()?;
    let name = target.file_name()?.to_str()?;
    let in_blobs = target.parent()?.file_name()? == "blobs";
    (in_blobs && name.len() == 64 && is_hex(name)).then(|| name.to_owned())
}

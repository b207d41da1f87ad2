//! One file of an input checkpoint: read by position, past the page cache or mapped, as it was when its header was read.

use std::fs::{self, Metadata};
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use serde_json::{Value, json};

use super::file::{Reads, read_exact_at, read_exact_past_cache};
use super::folder::InputFile;
use super::handles::{Handles, Slot};
use super::header::TensorInfo;
use super::mapped::Mapped;
use crate::error::{Error, Result};
use crate::text::quoted;

/// One safetensors file as it was when its header was read.
#[derive(Debug)]
pub(super) struct SourceFile {
    pub(super) name: String,
    file: InputFile,
    stamp: Stamp,
    header: blake3::Hash,
    /// Opened at the first read: a plan over hundreds of shards keeps none open. Closed where others need the room.
    handles: Arc<Slot>,
    /// In memory, where that is wanted and possible.
    mapped: OnceLock<Option<Mapped>>,
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
        Self { name, file, stamp, header, handles: Arc::default(), mapped: OnceLock::new() }
    }

    /// The same file, as it was then, to be opened by itself.
    pub(super) fn again(&self) -> Self {
        Self::new(self.name.clone(), self.file.clone(), self.stamp, self.header)
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
        let handles = self.handles()?;
        Ok(self.mapped.get_or_init(|| Mapped::new(&handles.file, self.stamp.bytes)).as_ref())
    }

    fn verify(&self, metadata: &Metadata) -> Result<()> {
        if Stamp::of(metadata) == self.stamp {
            return Ok(());
        }
        Err(Error::input(format!("{} changed while it was read", self.file.path().display()))
            .hint("merge again when nothing writes to it any more"))
    }

    pub(super) fn identity(&self) -> Value {
        let (file, bytes) = (&self.name, self.stamp.bytes);
        if let Some(sha256) = blob_sha256(&self.file.path()) {
            // It is what the link is called. Whether the content is that was not looked at.
            return json!({ "file": file, "bytes": bytes, "sha256": sha256, "sha256_verified": false });
        }
        let since_1970 =
            self.stamp.modified.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
        let modified = since_1970.map(|time| format!("{}.{:09}", time.as_secs(), time.subsec_nanos()));
        json!({ "file": file, "bytes": bytes, "modified": modified, "header_blake3": self.header.to_hex().as_str() })
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
        let (handles, offset) = (self.handles()?, tensor.offset + offset);
        let past_cache = reads == Reads::Direct && into.len() >= DIRECT_BYTES_MIN;
        let direct = if past_cache { handles.direct() } else { None };
        let read = match direct {
            Some(direct) => read_exact_past_cache(&handles.file, direct, into, offset),
            None => read_exact_at(&handles.file, into, offset),
        };
        read.map_err(|e| self.read_error(tensor, &e))
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
        let path = &self.file.path();
        if matches!(self.mapped.get(), Some(Some(mapped)) if mapped.broken()) {
            let what = format!("{} was truncated while it was read, or its disk fails", path.display());
            return Err(Error::input(what).hint("merge again when nothing writes to it any more"));
        }
        self.verify(&fs::metadata(path).map_err(|e| Error::reading(path, &e))?)
    }

    fn read_error(&self, tensor: &TensorInfo, cause: &io::Error) -> Error {
        let (path, name) = (self.file.path(), quoted(&tensor.name));
        let path = path.display();
        if cause.kind() == io::ErrorKind::UnexpectedEof {
            return Error::input(format!("{path} was truncated while it was read (tensor {name})"))
                .hint("merge again when nothing writes to it any more");
        }
        Error::input(format!("cannot read tensor {name} from {path}: {cause}"))
    }
}

/// The Hugging Face cache names large files by their SHA-256 and links to them.
fn blob_sha256(path: &Path) -> Option<String> {
    let target = fs::read_link(path).ok()?;
    let name = target.file_name()?.to_str()?;
    let in_blobs = target.parent()?.file_name()? == "blobs";
    (in_blobs && name.len() == 64 && is_hex(name)).then(|| name.to_owned())
}

pub(super) fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

//! Files of `torch.save` (`.bin`, `.pt`, `.pth`, `.ckpt`), read without running anything of them.
//!
//! Such a file is a zip archive. Its `data.pkl` is a pickle, a program that puts the tensors together; each `data/N` is the bytes of
//! a storage, stored as they are. The pickle is followed by a machine that knows a short list of names, none of which runs
//! anything, and what comes out is what a safetensors header has as well: names, types, shapes, and ranges of the file.

mod globals;
mod machine;
mod state_dict;
mod zip;

use std::path::Path;

use super::file::ReadAt;
use super::header::{Header, TensorInfo};
use crate::error::{Error, Result};
use crate::limits::PICKLE_BYTES_MAX;
use machine::Pickled;
use zip::Archive;

/// Why a file is not read, and the way out.
#[derive(Debug)]
struct Refusal {
    what: String,
    way_out: &'static str,
}

impl Refusal {
    /// The file is not as it was written.
    fn damaged(what: String) -> Self {
        Self { what, way_out: "download the file again" }
    }

    /// The file is of a kind that is not read.
    fn save_again(what: String) -> Self {
        Self {
            what,
            way_out: "load it in Python and save it anew: `torch.save(torch.load(FILE), NEW)`, or, of a model in \
                      transformers, `model.save_pretrained(NEW, safe_serialization=True)`",
        }
    }

    /// The pickle wants more than tensors.
    fn harmful(what: &str) -> Self {
        Self {
            what: format!("its pickle {what}, which no tensor needs; nothing of it was run"),
            way_out: "loaded by Python such a file can run anything; if you trust its author, save its tensors alone: \
                      `torch.save(torch.load(FILE, weights_only=False)[\"state_dict\"], NEW)`",
        }
    }
}

/// What a file of tensors is, by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Or nothing that has a sign of its own.
    Safetensors,
    /// A zip archive of `torch.save`.
    Torch,
}

impl Format {
    /// What a file is. None of the signs can begin a safetensors file: its header would be longer than any that is read.
    ///
    /// # Errors
    /// Kind `Input`: it is of a format that is not read.
    pub fn of(file: &dyn ReadAt, path: &Path, file_bytes: u64) -> Result<Self> {
        const PICKLE: &[u8] = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19";
        const GGUF: &[u8] = b"GGUF";
        let mut start = [0; PICKLE.len()];
        let start = &mut start[..file_bytes.min(PICKLE.len() as u64) as usize];
        file.fill(start, 0).map_err(|e| Error::reading(path, &e))?;
        let refusal = if start.starts_with(&zip::ENTRY) {
            return Ok(Self::Torch);
        } else if start == PICKLE {
            Refusal::save_again("it is in the format that torch had before 1.6".into())
        } else if start.starts_with(GGUF) {
            Refusal {
                what: "it is in GGUF, whose weights are quantised".into(),
                way_out: "give the model that it was made of, in safetensors",
            }
        } else {
            return Ok(Self::Safetensors);
        };
        Err(refused(path, &refusal))
    }
}

/// Reads and checks what a file of `torch.save` holds: the tensors by offset, each of which gets `file_index`, and what the user
/// should know about the rest of the file.
///
/// # Errors
/// Kind `Input`: it is damaged, or wants something that is not read.
pub fn read_torch(
    file: &dyn ReadAt,
    path: &Path,
    file_bytes: u64,
    file_index: usize,
) -> Result<(Header, Vec<String>)> {
    let read = || {
        let archive = Archive::open(file, file_bytes)?;
        let folder = folder_of(&archive)?;
        check_byteorder(&archive, &folder)?;
        let pickle_entry = format!("{folder}data.pkl");
        let pickle = archive.read(&pickle_entry, PICKLE_BYTES_MAX)?;
        let pickle = pickle.expect("the folder is that of the pickle");
        let pickled = machine::read(&pickle)?;
        let (tensors, notes) = state_dict::tensors(&pickled, &archive, &folder, file_index)?;
        let blake3 = blake3::Hasher::new().update(archive.blake3.as_bytes()).update(&pickle).finalize();
        Ok((Header { tensors, blake3 }, notes))
    };
    read().map_err(|refusal| refused(path, &refusal))
}

fn refused(path: &Path, Refusal { what, way_out }: &Refusal) -> Error {
    Error::input(format!("{}: {what}", path.display())).in_file(path).hint(*way_out)
}

/// The folder of the archive that everything is in, with its slash.
fn folder_of(archive: &Archive<'_>) -> std::result::Result<String, Refusal> {
    let mut folders = archive.names().filter_map(|name| name.strip_suffix("data.pkl"));
    let folder = folders.by_ref().find(|folder| folder.is_empty() || folder.ends_with('/'));
    let Some(folder) = folder else {
        return Err(Refusal::damaged(
            "this zip archive was not written by `torch.save`: it has no data.pkl".into(),
        ));
    };
    let script = format!("{folder}constants.pkl");
    if archive.names().any(|name| name == script) {
        let way_out =
            "save the tensors alone in Python: `torch.save(torch.jit.load(FILE).state_dict(), NEW)`";
        return Err(Refusal { what: "it is a program in TorchScript, not only tensors".into(), way_out });
    }
    Ok(folder.to_owned())
}

fn check_byteorder(archive: &Archive<'_>, folder: &str) -> std::result::Result<(), Refusal> {
    /// `little` or `big`.
    const BYTES_MAX: u64 = 16;
    match archive.read(&format!("{folder}byteorder"), BYTES_MAX)?.as_deref() {
        None | Some(b"little") => Ok(()),
        Some(_) => {
            Err(Refusal::save_again("it was written by a computer with another order of bytes".into()))
        }
    }
}

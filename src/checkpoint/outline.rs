//! A checkpoint that is planned and not written yet, as far as other plans have to know it: everything but the data.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use super::layout::{INDEX, Layout};
use super::sidecars::{Content, Sidecar};
use crate::error::{Error, Result};

/// Makes a folder with the files of a checkpoint, in which all data is a hole.
///
/// # Errors
/// It cannot be written, or a file that belongs beside the weights cannot be read.
pub fn outline(folder: &Path, layout: &Layout, sidecars: &[Sidecar]) -> Result<()> {
    fs::create_dir_all(folder).map_err(|cause| Error::writing(folder, &cause))?;
    for shard in &layout.shards {
        write(&folder.join(&shard.file), |file| {
            file.write_all(&shard.header)?;
            file.set_len(shard.bytes)
        })?;
    }
    if let Some(index) = &layout.index {
        write(&folder.join(INDEX), |file| file.write_all(index))?;
    }
    for Sidecar { file, content } in sidecars {
        let path = folder.join(file);
        let parent = path.parent().unwrap_or(folder);
        fs::create_dir_all(parent).map_err(|cause| Error::writing(parent, &cause))?;
        match content {
            Content::Bytes(bytes) => write(&path, |file| file.write_all(bytes))?,
            Content::CopyOf(original) => {
                let (mut from, _) = original.open()?;
                write(&path, |file| io::copy(&mut from, file).map(|_| ()))?;
            }
        }
    }
    Ok(())
}

fn write(path: &Path, content: impl FnOnce(&mut File) -> io::Result<()>) -> Result<()> {
    File::create_new(path)
        .and_then(|mut file| content(&mut file))
        .map_err(|cause| Error::writing(path, &cause))
}

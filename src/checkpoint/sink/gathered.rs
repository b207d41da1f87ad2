//! An output whose shards are made already, each in a folder of its own: they are moved into `OUT.partial`, and the rest is as of any
//! output.
//!
//! The journal there lists all tensors before the first shard is moved. So whoever is killed on the way leaves what the next one goes on
//! with: shards that are in neither their own folder nor there are missing, and those that are there are taken if their tensors have the
//! digests that were noted.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{
    Finished, Layout, Making, OutFile, Partial, Shard, Sink, raise_open_file_limit, with_limit_hint,
};
use crate::checkpoint::file::Access;
use crate::checkpoint::layout::OutTensor;
use crate::error::{Error, Result};
use crate::files::{File, Folder};
use crate::text::quoted;
use crate::threads;

/// An output whose shards were made in parts.
#[derive(Debug)]
pub struct InParts<'a> {
    /// How they are laid out.
    pub layout: &'a Layout,
    /// The tensors, in the order of the layout.
    pub tensors: &'a [OutTensor],
    /// Of each shard the folder that it was made in.
    pub folders: &'a [PathBuf],
    /// Every tensor, in the order of the layout.
    pub finished: &'a [Finished],
    /// Who may read all of it.
    pub access: Access,
    /// All that the bytes of its tensors depend on.
    pub making: &'a serde_json::Value,
}

/// A shard, opened where it lies.
struct Found {
    file: OutFile,
    /// The folder that it was made in, if it is still there.
    from: Option<Arc<Folder>>,
}

impl Sink {
    /// Takes the shards into `OUT.partial`, each once it is seen to be whole: by its size and header, and by the digests of its tensors
    /// where it was moved before, or all are to be `read` again, by so many threads.
    ///
    /// # Errors
    /// Kind `Output`: another process is writing there, or the system refuses. Kind `Config`: something else is half made there, or the file
    /// system has no locks. Kind `Input`: a shard is damaged. Kind `Unready`: one is in neither place. No shard is lost by any of these.
    pub fn gathered(
        out: &Path,
        made: &InParts<'_>,
        (read, threads): (bool, usize),
        stop: &(dyn Fn() -> bool + Sync),
    ) -> Result<Self> {
        raise_open_file_limit();
        let InParts { layout, access, making, .. } = *made;
        let mut partial = Partial::create(out, access, Some(Making { what: making, anew: false }))?;
        let failed = |partial: &Partial, e| Error::writing(partial.path(), &e);
        let (journal, left) = partial.journal(making, layout).map_err(|e| failed(&partial, e))?;
        // Without a lock nobody could go on with what was moved.
        let Some(journal) = journal else { return Err(no_locks(&partial)) };
        if !left.is_empty() {
            partial.keep();
        }
        let shards: BTreeSet<&str> = layout.shards.iter().map(|shard| &*shard.file).collect();
        partial.keep_only(&shards).map_err(|e| failed(&partial, e))?;
        let mut folders: BTreeMap<&Path, Option<Arc<Folder>>> = BTreeMap::new();
        for folder in made.folders {
            if let Entry::Vacant(entry) = folders.entry(folder) {
                let opened = there(Folder::open(folder)).map_err(|e| not_opened(folder, &e))?;
                entry.insert(opened.map(Arc::new));
            }
        }
        let found = layout.shards.iter().zip(made.folders).map(|(shard, folder)| {
            Found::of(shard, (folder, folders[folder.as_path()].as_ref()), &partial, access)
        });
        let found: Vec<Found> = found.collect::<Result<_>>()?;
        let is_whole = |shard: usize| found[shard].check(shard, made, read, stop);
        threads::each(threads, found.len(), is_whole).into_iter().collect::<Result<()>>()?;
        let known: BTreeMap<usize, blake3::Hash> = left.iter().map(|one| (one.tensor, one.digest)).collect();
        let is_new = |one: &&Finished| known.get(&one.tensor) != Some(&one.digest);
        // Nothing is moved that whoever goes on would not know.
        let noted = journal.note_for_good(made.finished.iter().filter(is_new));
        noted.and_then(|()| partial.sync_names()).map_err(|e| failed(&partial, e))?;
        partial.keep();
        let mut shards = Vec::with_capacity(found.len());
        for (shard, Found { file, from }) in layout.shards.iter().zip(found) {
            if stop() {
                return Err(Error::interrupted());
            }
            if let Some(from) = from {
                partial.move_in(&shard.file, &from).map_err(|e| Error::writing(&file.path, &e))?;
            }
            shards.push(file);
        }
        Ok(Self {
            storing: None,
            shards: Arc::new(shards),
            places: layout.places.clone(),
            index: layout.index.clone(),
            file_bytes: layout.file_bytes,
            access,
            journal: Some(journal),
            partial,
        })
    }
}

impl Found {
    /// Opens a shard where it was made, or where it was moved.
    fn of(
        shard: &Shard,
        (folder, from): (&Path, Option<&Arc<Folder>>),
        partial: &Partial,
        access: Access,
    ) -> Result<Self> {
        let whole = |path: &Path, opened: io::Result<File>| -> Result<Option<File>> {
            let failed = |e| not_opened(path, &e);
            let Some(file) = there(opened).map_err(failed)? else { return Ok(None) };
            let found = file.metadata().map_err(failed)?;
            Ok((found.is_file() && found.len() == shard.bytes).then_some(file))
        };
        if let Some(from) = from {
            let path = folder.join(&shard.file);
            if let Some(file) = whole(&path, from.open_file(&shard.file))? {
                access.narrow(&file).map_err(|e| Error::writing(&path, &e))?;
                return Ok(Self { file: OutFile::as_it_is(path, file), from: Some(Arc::clone(from)) });
            }
        }
        let path = partial.path().join(&shard.file);
        let missing = || {
            let (folder, file) = (folder.display(), &shard.file);
            Error::unready(format!("{folder} has no {file} of {} bytes", shard.bytes))
        };
        let file = whole(&path, partial.kept_file(&shard.file, access))?.ok_or_else(missing)?;
        Ok(Self { file: OutFile::as_it_is(path, file), from: None })
    }

    /// Sees whether it is what was made.
    fn check(&self, shard: usize, made: &InParts<'_>, read: bool, stop: &dyn Fn() -> bool) -> Result<()> {
        let (path, InParts { layout, finished, .. }) = (&self.file.path, made);
        let damaged = |what: String| Err(Error::input(format!("{}: {what}", path.display())).in_file(path));
        if !self.file.begins_with(&layout.shards[shard].header).map_err(|e| Error::reading(path, &e))? {
            return damaged("its header is not the one that was written".into());
        }
        if !read && self.from.is_some() {
            return Ok(());
        }
        for tensor in layout.tensors_in(&(shard..shard + 1)) {
            let place = layout.places[tensor];
            let digest = &finished[tensor].digest;
            let is_same = self.file.has_digest(digest, (place.offset, place.bytes), stop);
            if stop() {
                return Err(Error::interrupted());
            }
            if !is_same.map_err(|e| Error::reading(path, &e))? {
                let name = quoted(&made.tensors[tensor].name);
                return damaged(format!("tensor {name} has other bytes than were written"));
            }
        }
        Ok(())
    }
}

/// What was opened, if it is there.
fn there<T>(opened: io::Result<T>) -> io::Result<Option<T>> {
    match opened {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(None),
        opened => opened.map(Some),
    }
}

/// What is there, but cannot be opened now. Another time it may be, so it is not damaged.
fn not_opened(path: &Path, cause: &io::Error) -> Error {
    with_limit_hint(Error::output(format!("cannot open {}: {cause}", path.display())), cause)
}

fn no_locks(partial: &Partial) -> Error {
    let refusal =
        format!("{}: its file system has no locks, and parts are moved under one", partial.path().display());
    Error::config(refusal).hint("mount it with locks (Lustre: `flock`; NFS: without `nolock`), or copy OUT.parts to another file system and finish there")
}

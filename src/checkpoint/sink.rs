//! Writing an output checkpoint: tensors by position, in any order, from any thread; then the small files;
//! then, all at once, its name.

mod gathered;

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use super::companions::companion_bytes_max;
use super::file::{Access, raise_open_file_limit, with_limit_hint};
use super::folder::InputFile;
use super::journal::{Finished, JOURNAL, Journal, Kept};
use super::layout::{INDEX, Layout, Place, Shard};
use super::out_file::{OutFile, Storing};
use super::out_folder::free_bytes;
use super::partial::{Making, Partial};
use super::sidecars::{Content, MODEL_CONFIG, Sidecar};
use crate::error::{Error, Result};
use crate::files::File;
use crate::text::bytes as size;
use crate::threads;

pub use gathered::InParts;

const COPY_BYTES: usize = 1 << 20;

/// An output checkpoint in the making. Dropped unfinished, it leaves nothing in its place, or what another merge can go on with.
#[derive(Debug)]
pub struct Sink {
    // The order matters: the thread that stores files ends before they are closed, and they are closed before the folder that holds
    // them is removed.
    storing: Option<Storing>,
    shards: Arc<Vec<OutFile>>,
    places: Vec<Place>,
    index: Option<Vec<u8>>,
    file_bytes: u64,
    access: Access,
    journal: Option<Arc<Journal>>,
    partial: Partial,
}

impl Sink {
    /// Makes `OUT.partial` beside `out` and in it every shard at its size, headers written. No file will be more readable than
    /// `access` says. Where it is said what is `made`, what is finished of it is noted, and returned if a merge that was stopped has
    /// noted it: it is to be [proven](Self::proven).
    ///
    /// # Errors
    /// Kind `Output`: another process is writing there, something foreign is in the way, or the system refuses. Kind `Config`: something
    /// else is half made there.
    pub fn create(
        out: &Path,
        layout: &Layout,
        access: Access,
        made: Option<Making<'_>>,
    ) -> Result<(Self, Vec<Finished>)> {
        Self::create_for(out, layout, access, made, &|| Ok(()))
    }

    /// The same; what is in `out` by then is for `free` to remove or to refuse, while nobody else makes `out`.
    ///
    /// # Errors
    /// Those too of `free`.
    pub fn create_for(
        out: &Path,
        layout: &Layout,
        access: Access,
        made: Option<Making<'_>>,
        free: &dyn Fn() -> Result<()>,
    ) -> Result<(Self, Vec<Finished>)> {
        raise_open_file_limit();
        let mut sink = Self {
            storing: None,
            shards: Arc::default(),
            places: layout.places.clone(),
            index: layout.index.clone(),
            file_bytes: layout.file_bytes,
            access,
            journal: None,
            partial: Partial::create_for(out, access, made, free)?,
        };
        let mut finished = Vec::new();
        if let Some(making) = made {
            let begun = sink.partial.journal(making.what, layout);
            (sink.journal, finished) =
                begun.map_err(|e| Error::writing(&sink.partial.path().join(JOURNAL), &e))?;
            let shards = layout.shards.iter().map(|shard| &*shard.file).collect();
            sink.partial.keep_only(&shards).map_err(|e| Error::writing(sink.partial.path(), &e))?;
        }
        let mut shards = Vec::with_capacity(layout.shards.len());
        for shard in &layout.shards {
            let file = sink.shard(shard, !finished.is_empty())?;
            file.write_at(&shard.header, 0).map_err(|e| sink.write_error(&file.path, &e))?;
            shards.push(file);
        }
        if sink.journal.is_some() {
            // Where that cannot be, a power cut takes more of what is finished.
            let _ = sink.partial.sync_names();
        }
        sink.shards = Arc::new(shards);
        sink.storing = Some(Storing::begin(&sink.shards, sink.journal.clone()));
        Ok((sink, finished))
    }

    /// A file of its size: the one that is there, if it may be and has it.
    fn shard(&self, shard: &Shard, may_be_there: bool) -> Result<OutFile> {
        if may_be_there {
            let path = self.partial.path().join(&shard.file);
            let kept = self.partial.kept_file(&shard.file, self.access);
            match kept.and_then(|file| file.metadata().map(|there| (file, there))) {
                Ok((file, there)) if there.is_file() && there.len() == shard.bytes => {
                    return Ok(OutFile::as_it_is(path, file));
                }
                Ok(_) => self.partial.remove_file(&shard.file).map_err(|e| self.write_error(&path, &e))?,
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                // What cannot be opened now may hold what is finished: another time it can be gone on with.
                Err(e) => return Err(self.write_error(&path, &e)),
            }
        }
        let (path, file) = self.create_file(&shard.file, self.access)?;
        OutFile::new(path.clone(), file, shard.bytes).map_err(|e| self.write_error(&path, &e))
    }

    /// Those of the tensors that were noted as finished which have the bytes that were noted, by `threads` threads. What cannot be read
    /// is not finished.
    ///
    /// # Errors
    /// Kind `Interrupted`, when `stop` says so.
    pub fn proven(
        &self,
        finished: Vec<Finished>,
        threads: usize,
        stop: &(dyn Fn() -> bool + Sync),
    ) -> Result<Vec<Finished>> {
        // Of two lines about one tensor the later one counts.
        let last: BTreeMap<usize, Finished> = finished.into_iter().map(|one| (one.tensor, one)).collect();
        let is_here =
            |one: &Finished| self.places.get(one.tensor).is_some_and(|place| place.shard < self.shards.len());
        let noted: Vec<Finished> = last.into_values().filter(is_here).collect();
        let is_proven = |number: usize| {
            let Finished { tensor, digest, .. } = &noted[number];
            let Place { shard, offset, bytes } = self.places[*tensor];
            self.shards[shard].has_digest(digest, (offset, bytes), stop).unwrap_or(false)
        };
        let proven = threads::each(threads, noted.len(), is_proven);
        if stop() {
            return Err(Error::interrupted());
        }
        Ok(noted.into_iter().zip(proven).filter_map(|(one, is_proven)| is_proven.then_some(one)).collect())
    }

    /// Notes that all of a tensor is written, for a merge that goes on if this one is stopped.
    pub fn finished(&self, finished: &Finished) {
        if let Some(journal) = &self.journal {
            journal.note(finished, self.places[finished.tensor].bytes);
        }
    }

    /// Where it lies until it is finished, and what stays there when it is dropped before.
    pub fn kept(&self) -> (PathBuf, Option<Arc<Kept>>) {
        (self.partial.path().to_path_buf(), self.journal.as_ref().map(|journal| Arc::clone(journal.kept())))
    }

    /// Nothing of it stays if it is not finished: with other inputs there would be nothing to go on with.
    pub fn keep_nothing(&self) {
        self.journal.iter().for_each(|journal| journal.drop_all());
    }

    /// Writes `bytes` into a tensor (its position in the layout) from byte `offset` of it on. Any thread may
    /// call it. Returns when that began, if it had to wait for another thread's write before.
    ///
    /// # Errors
    /// Kind `Output`: the disk is full or fails.
    ///
    /// # Panics
    /// When the bytes do not fit into the tensor.
    pub fn write_at(&self, tensor: usize, offset: u64, bytes: &[u8]) -> Result<Option<Instant>> {
        let place = self.places[tensor];
        let end = offset.checked_add(bytes.len() as u64);
        assert!(end.is_some_and(|end| end <= place.bytes), "write inside the tensor {tensor}");
        let shard = &self.shards[place.shard];
        shard.write_at(bytes, place.offset + offset).map_err(|e| self.write_error(&shard.path, &e))
    }

    /// Writes the sidecars and the index, puts everything on the disk, and gives the folder its name.
    /// `config.json` comes last: without it no reader takes the folder for a model. `stop` is asked on the way.
    ///
    /// # Errors
    /// Kind `Output`, `Input` where a file to be copied cannot be read, or `Interrupted`. Nothing is left behind but what another merge
    /// can go on with, unless only the rename failed, or what follows it: then the message says where the finished files are.
    pub fn finish(mut self, sidecars: &[Sidecar], stop: &dyn Fn() -> bool) -> Result<()> {
        let go_on = || if stop() { Err(Error::interrupted()) } else { Ok(()) };
        let index =
            self.index.take().map(|index| Sidecar { file: INDEX.into(), content: Content::Bytes(index) });
        let (last, first): (Vec<_>, Vec<_>) =
            sidecars.iter().partition(|sidecar| sidecar.file == MODEL_CONFIG);
        // A failure that is reported to its thread must not be missed here. What was gathered has no such thread: it is stored already, and is
        // all that there is of the parts.
        let is_gathered = self.storing.take().is_none();
        for shard in self.shards.iter() {
            go_on()?;
            shard.sync().map_err(|e| {
                if !is_gathered {
                    self.keep_nothing();
                }
                self.write_error(&shard.path, &e)
            })?;
        }
        let names = first.iter().chain(&last).map(|sidecar| &*sidecar.file);
        let listed = self.partial.expect(names.chain(index.as_ref().map(|_| INDEX)));
        listed.map_err(|e| self.write_error(&self.partial.lock_path(), &e))?;
        for sidecar in first.into_iter().chain(&index).chain(last) {
            self.write_sidecar(sidecar)?;
        }
        go_on()?;
        let Self { shards, partial, journal, .. } = self;
        drop((shards, journal));
        partial.publish()
    }

    fn create_file(&self, name: &str, access: Access) -> Result<(PathBuf, File)> {
        let path = self.partial.path().join(name);
        let file = self.partial.create_file(name, access).map_err(|e| self.write_error(&path, &e))?;
        Ok((path, file))
    }

    fn write_sidecar(&self, sidecar: &Sidecar) -> Result<()> {
        let (path, file) = match &sidecar.content {
            Content::Bytes(bytes) => {
                let (path, mut file) = self.create_file(&sidecar.file, self.access)?;
                file.write_all(bytes).map_err(|e| self.write_error(&path, &e))?;
                (path, file)
            }
            Content::CopyOf(original) => self.copy(original, &sidecar.file)?,
        };
        file.sync_all().map_err(|e| self.write_error(&path, &e))
    }

    /// Copies the bytes, and of the mode who may read them.
    fn copy(&self, original: &InputFile, name: &str) -> Result<(PathBuf, File)> {
        let (mut from, metadata) = original.open()?;
        let (path, mut made) = self.create_file(name, self.access.and_file(&metadata))?;
        let mut buffer = vec![0; COPY_BYTES];
        let mut copied = 0;
        loop {
            match from.read(&mut buffer) {
                Ok(0) => return Ok((path, made)),
                Ok(count) => {
                    // It may grow while it is copied.
                    copied += count as u64;
                    original.check_size(copied, companion_bytes_max(name))?;
                    made.write_all(&buffer[..count]).map_err(|e| self.write_error(&path, &e))?;
                }
                Err(e) => return Err(Error::reading(&original.path(), &e)),
            }
        }
    }

    fn write_error(&self, path: &Path, cause: &io::Error) -> Error {
        match cause.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                let needed = size(self.file_bytes);
                let left = free_bytes(path).map_or(String::new(), |bytes| format!(", {} left", size(bytes)));
                Error::output(format!(
                    "disk full: cannot write {} ({needed} needed in all{left})",
                    path.display()
                ))
                .hint("free some space, or choose an output folder on another disk")
            }
            io::ErrorKind::FileTooLarge => {
                Error::writing(path, cause).hint("write smaller shards: the system limits the size of a file")
            }
            _ => with_limit_hint(Error::writing(path, cause), cause),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::file::Reads;
    use super::*;
    use crate::checkpoint::ModelFolder;
    use crate::checkpoint::layout::{OutTensor, layout};
    use crate::checkpoint::source::Source;
    use crate::dtype::Dtype;
    use crate::error::Kind;
    use proptest::prelude::*;
    use safetensors::SafeTensors;
    use std::fs;

    fn tensor(name: &str, dtype: Dtype, shape: &[usize]) -> OutTensor {
        OutTensor { name: name.into(), dtype, shape: shape.to_vec() }
    }

    fn mixed() -> Vec<OutTensor> {
        vec![
            tensor("mask", Dtype::BOOL, &[3, 3]),
            tensor("ids", Dtype::I64, &[5]),
            tensor("scalar", Dtype::F32, &[]),
            tensor("none", Dtype::BF16, &[0, 7]),
            tensor("odd", Dtype::BF16, &[11]),
            tensor("\"quoted\" \\ \n ü", Dtype::F16, &[1]),
            tensor("byte", Dtype::U8, &[1]),
            tensor("pairs", Dtype::F4, &[6]),
            tensor("wide", Dtype::F64, &[2]),
        ]
    }

    /// Bytes that differ from tensor to tensor and from place to place.
    fn data(tensor: usize, bytes: u64) -> Vec<u8> {
        (0..bytes).map(|i| (i * 7 + tensor as u64 * 31 + 1) as u8).collect()
    }

    fn config() -> Sidecar {
        Sidecar { file: "config.json".into(), content: Content::Bytes(b"{}\n".to_vec()) }
    }

    /// Writes every tensor, last one first, each in two parts, the later part first.
    fn write(out: &Path, tensors: &[OutTensor], shard_bytes: u64, sidecars: &[Sidecar]) -> Layout {
        let layout = layout(tensors, shard_bytes);
        let sink = Sink::create(out, &layout, Access::ANY, None).unwrap().0;
        for (i, tensor) in tensors.iter().enumerate().rev() {
            let bytes = data(i, tensor.bytes());
            let (start, end) = bytes.split_at(bytes.len() / 2);
            sink.write_at(i, start.len() as u64, end).unwrap();
            sink.write_at(i, 0, start).unwrap();
        }
        sink.finish(sidecars, &|| false).unwrap();
        layout
    }

    /// Both readers, the safetensors crate and our Source, find what was written.
    fn check(out: &Path, tensors: &[OutTensor], layout: &Layout) {
        let files: Vec<Vec<u8>> =
            layout.shards.iter().map(|shard| fs::read(out.join(&shard.file)).unwrap()).collect();
        let source = Source::open("out", out).unwrap();
        assert!(source.warnings().is_empty());
        assert_eq!(source.tensors().len(), tensors.len());
        assert_eq!(files.iter().map(|file| file.len() as u64).sum::<u64>(), layout.file_bytes);
        for (i, tensor) in tensors.iter().enumerate() {
            let expected = data(i, tensor.bytes());
            let place = layout.places[i];
            let file = SafeTensors::deserialize(&files[place.shard]).unwrap();
            let view = file.tensor(&tensor.name).unwrap();
            assert_eq!(
                (view.dtype(), view.shape(), view.data()),
                (tensor.dtype, &tensor.shape[..], &expected[..])
            );
            assert_eq!(
                place.offset % (tensor.dtype.bitsize() as u64).div_ceil(8),
                0,
                "{} is aligned",
                tensor.name
            );
            let mut read = vec![0; expected.len()];
            source.read_at(source.tensor(&tensor.name).unwrap(), 0, &mut read, Reads::Copied).unwrap();
            assert_eq!(read, expected);
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        for shard_bytes in [1 << 30, 40, 1] {
            let dir = tempfile::tempdir().unwrap();
            let out = dir.path().join("deep/out");
            let layout = write(&out, &mixed(), shard_bytes, &[config()]);
            check(&out, &mixed(), &layout);
            assert_eq!(out.join(INDEX).exists(), layout.shards.len() > 1);
            assert_eq!(fs::read_dir(out.parent().unwrap()).unwrap().count(), 1, "no OUT.partial is left");
            assert!(!out.join(".lock").exists());
        }
    }

    #[test]
    fn an_empty_output_folder_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let layout = write(dir.path().join("").as_path(), &mixed(), 1 << 30, &[config()]);
        check(dir.path(), &mixed(), &layout);
    }

    #[test]
    fn sidecars_are_copied_byte_for_byte() {
        let dir = tempfile::tempdir().unwrap();
        let (original, out) = (dir.path().join("original"), dir.path().join("out"));
        let bytes = data(1, 3_000_001);
        fs::write(&original, &bytes).unwrap();
        let mut permissions = fs::metadata(&original).unwrap().permissions();
        permissions.set_readonly(true);
        fs::set_permissions(&original, permissions).unwrap();
        let folder = ModelFolder::open(dir.path()).unwrap();
        let copy =
            |file: &str| Sidecar { file: file.into(), content: Content::CopyOf(folder.file("original")) };
        write(
            &out,
            &[],
            1,
            &[config(), copy("tokenizer.json"), copy("additional_chat_templates/tool.jinja")],
        );
        assert_eq!(fs::read(out.join("tokenizer.json")).unwrap(), bytes);
        assert_eq!(fs::read(out.join("additional_chat_templates/tool.jinja")).unwrap(), bytes);
        assert!(!fs::metadata(out.join("tokenizer.json")).unwrap().permissions().readonly());
    }

    #[test]
    fn an_unfinished_output_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        drop(Sink::create(&out, &layout(&mixed(), 40), Access::ANY, None).unwrap().0);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let sink = Sink::create(&out, &layout(&mixed(), 40), Access::ANY, None).unwrap().0;
        let folder = ModelFolder::open(dir.path()).unwrap();
        let missing = Sidecar { file: "a/b".into(), content: Content::CopyOf(folder.file("none")) };
        assert_eq!(sink.finish(&[missing], &|| false).unwrap_err().kind, Kind::Input);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn threads_write_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let tensors: Vec<OutTensor> =
            (0..64).map(|i| tensor(&i.to_string(), Dtype::U8, &[1000 + i])).collect();
        let layout = layout(&tensors, 5000);
        let sink = Sink::create(&out, &layout, Access::ANY, None).unwrap().0;
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (sink, tensors) = (&sink, &tensors);
                scope.spawn(move || {
                    for i in (thread..tensors.len()).step_by(4) {
                        sink.write_at(i, 0, &data(i, tensors[i].bytes())).unwrap();
                    }
                });
            }
        });
        sink.finish(&[config()], &|| false).unwrap();
        check(&out, &tensors, &layout);
    }

    #[test]
    #[should_panic(expected = "write inside the tensor 1")]
    fn writing_past_a_tensor_is_a_mistake() {
        let dir = tempfile::tempdir().unwrap();
        let sink = Sink::create(&dir.path().join("out"), &layout(&mixed(), 40), Access::ANY, None).unwrap().0;
        let _ = sink.write_at(1, 39, &[0; 2]);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_shard_that_cannot_be_opened_for_a_moment_stays_and_the_cause_is_reported() {
        use crate::files::Op;
        use crate::files::hook::{Fault, Hooked, Planted};
        const BYTES: usize = 64 << 20; // so many stay
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let root = dir.path().canonicalize().unwrap();
        let (out, shard) = (root.join("out"), root.join("out.partial/model.safetensors"));
        let (layout, what) = (layout(&[tensor("w", Dtype::U8, &[BYTES])], 1 << 30), serde_json::json!({}));
        let making = Some(Making { what: &what, anew: false });
        let sink = Sink::create(&out, &layout, Access::ANY, making).unwrap().0;
        let digest = blake3::hash(&vec![0; BYTES]);
        sink.finished(&Finished { tensor: 0, digest, found: serde_json::Value::Null });
        drop(sink);
        let hooked = Hooked::on(&root);
        let mut reported = 0;
        for op in [Op::Open, Op::Look, Op::SetMode] {
            for call in 0.. {
                let fault = Fault::Error(rustix::io::Errno::IO);
                hooked.plant(Some(Planted { op, call, fault, lasts: false }));
                let result = Sink::create(&out, &layout, Access::ANY, making);
                let hits = hooked.hits();
                hooked.plant(None);
                if hits.is_empty() {
                    break;
                }
                assert!(shard.exists(), "{op:?} {call}: what is finished is gone");
                match result {
                    Ok((_, finished)) => assert_eq!(finished.len(), 1, "{op:?} {call}"),
                    Err(error) if hits == [shard.clone()] => {
                        let said = &error.message;
                        assert!(
                            said.contains("model.safetensors") && said.contains("os error 5"),
                            "{op:?} {call}: {said}"
                        );
                        reported += 1;
                    }
                    Err(_) => {}
                }
            }
        }
        assert!(reported > 1, "{reported}");
        assert_eq!(Sink::create(&out, &layout, Access::ANY, making).unwrap().1.len(), 1);
    }

    #[test]
    fn a_full_disk_is_reported_with_what_is_needed() {
        let dir = tempfile::tempdir().unwrap();
        let sink = Sink::create(&dir.path().join("out"), &layout(&mixed(), 40), Access::ANY, None).unwrap().0;
        let full = sink.write_error(&dir.path().join("x"), &io::ErrorKind::StorageFull.into());
        assert!(
            full.message.contains("disk full") && full.message.contains("needed in all"),
            "{}",
            full.message
        );
        let limit = sink.write_error(&dir.path().join("x"), &io::ErrorKind::FileTooLarge.into());
        assert!(limit.hint.unwrap().contains("smaller shards"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn any_checkpoint_round_trips(
            shapes in prop::collection::vec((0_usize..5, prop::collection::vec(0_usize..5, 0..4)), 0..12),
            shard_bytes in 0_u64..200,
        ) {
            let dtypes = [Dtype::BOOL, Dtype::BF16, Dtype::F32, Dtype::I64, Dtype::I8];
            let tensors: Vec<OutTensor> = shapes
                .iter()
                .enumerate()
                .map(|(i, (dtype, shape))| tensor(&format!("t.{i}"), dtypes[*dtype], shape))
                .collect();
            let dir = tempfile::tempdir().unwrap();
            let out = dir.path().join("out");
            let layout = write(&out, &tensors, shard_bytes, &[config()]);
            check(&out, &tensors, &layout);
        }
    }
}

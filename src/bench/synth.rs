//! Checkpoints of any size with no model at hand: a base and fine-tunes of it, in the layout of Llama or Mixtral.
//!
//! Speed and memory of a merge depend on shapes, types and on how the values collide, not on what the model has learnt.
//! So base weights are N(0, 0.02), and a fine-tune adds heavy-tailed steps of about half an ulp and rounds to the type
//! again, as training in bf16 leaves them: about half of the elements have not moved, the others by whole ulps, and many
//! share the magnitude at which a top-k is cut.
//!
//! The bytes are the same for any number of threads. A folder that is complete is left as it is, so a bench may call this
//! first each time.

pub mod values;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use super::shapes::Shape;
use crate::checkpoint::{Layout, OutTensor, layout};
use crate::dtype::Float;
use crate::error::{Error, Result};
use crate::files;
use crate::threads::share;
use values::{Maker, TILE_ELEMENTS, Tables, elements};

/// Changed when the same arguments would give other bytes, so that older output is made anew.
const GENERATOR_VERSION: u32 = 2;

/// Says what made a folder. While it is empty, the folder is ours and unfinished.
const STAMP: &str = "synth.json";

/// What is made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spec {
    /// The tensors.
    pub shape: Shape,
    /// Their type.
    pub float: Float,
    /// Other seeds give other values.
    pub seed: u64,
    /// The most tensor data in a file; none: as in an output.
    pub shard_bytes: Option<u64>,
}

impl Spec {
    /// All that decides a model's bytes; 0 is the base.
    fn stamp(&self, model: usize) -> Value {
        json!({
            "generator": GENERATOR_VERSION,
            "config": self.shape.config(self.float),
            "seed": self.seed,
            "model": model,
            "shard_bytes": self.shard_bytes,
        })
    }

    /// Bytes of one model's files.
    pub fn model_bytes(&self) -> u64 {
        self.file_bytes().iter().sum()
    }

    /// Bytes of each of a model's files.
    pub fn file_bytes(&self) -> Vec<u64> {
        let layout = layout(&self.shape.tensors(self.float), self.shard_bytes);
        layout.shards.iter().map(|shard| shard.bytes).collect()
    }

    /// Which of these models are not yet complete in their folders.
    pub fn missing(&self, dir: &Path, models: &[usize]) -> Vec<usize> {
        models
            .iter()
            .copied()
            .filter(|&model| !is_complete(&folder(dir, model), &self.stamp(model)))
            .collect()
    }
}

/// Where a model goes: `DIR/base`, `DIR/model-1`, …
pub fn folder(dir: &Path, model: usize) -> PathBuf {
    dir.join(if model == 0 { "base".into() } else { format!("model-{model}") })
}

/// Writes those of the models that are not complete, all of them in one go; `stop` is asked now and then. Returns the
/// bytes written.
///
/// # Errors
/// Kind `Output`: something cannot be written, or a folder holds files of somebody else. Kind `Interrupted`.
pub fn write(
    spec: &Spec,
    dir: &Path,
    models: &[usize],
    threads: usize,
    stop: &(dyn Fn() -> bool + Sync),
) -> Result<u64> {
    let missing = spec.missing(dir, models);
    if missing.is_empty() {
        return Ok(0);
    }
    let set = Set::new(spec);
    let failed = |cause: io::Error| match cause.kind() {
        io::ErrorKind::Interrupted => Error::interrupted(),
        _ => Error::output(format!("cannot write synthetic checkpoints to {}: {cause}", dir.display())),
    };
    let create = |&model: &usize| set.create(folder(dir, model), model);
    let outputs = missing.iter().map(create).collect::<io::Result<Vec<_>>>().map_err(failed)?;
    set.fill(&outputs, threads, stop).map_err(failed)?;
    outputs.iter().try_for_each(SynthFile::finish).map_err(failed)?;
    Ok(set.layout.file_bytes * outputs.len() as u64)
}

fn is_complete(dir: &Path, stamp: &Value) -> bool {
    let found = fs::read(dir.join(STAMP)).ok();
    found.is_some_and(|bytes| serde_json::from_slice::<Value>(&bytes).is_ok_and(|found| found == *stamp))
}

/// What the models of a set have in common.
struct Set<'a> {
    spec: &'a Spec,
    tensors: Vec<OutTensor>,
    layout: Layout,
}

/// A model's folder while it is being written.
struct SynthFile {
    dir: PathBuf,
    model: usize,
    stamp: Value,
    files: Vec<files::File>,
}

impl<'a> Set<'a> {
    fn new(spec: &'a Spec) -> Self {
        let tensors = spec.shape.tensors(spec.float);
        let layout = layout(&tensors, spec.shard_bytes);
        Self { spec, tensors, layout }
    }

    fn create(&self, dir: PathBuf, model: usize) -> io::Result<SynthFile> {
        clear(&dir)?;
        fs::create_dir_all(&dir)?;
        // From here on the folder is known as ours, and as unfinished.
        fs::write(dir.join(STAMP), "{}")?;
        fs::write(dir.join("config.json"), pretty(&self.spec.shape.config(self.spec.float)))?;
        if let Some(index) = &self.layout.index {
            fs::write(dir.join("model.safetensors.index.json"), index)?;
        }
        let mut files = Vec::new();
        for shard in &self.layout.shards {
            let file = files::File::from(File::create(dir.join(&shard.file))?);
            file.set_len(shard.bytes)?;
            file.write_all_at(&shard.header, 0)?;
            files.push(file);
        }
        Ok(SynthFile { dir, model, stamp: self.spec.stamp(model), files })
    }

    /// Threads take tiles by a common counter; a tile of the base is made once for all models.
    fn fill(
        &self,
        outputs: &[SynthFile],
        threads: usize,
        stop: &(dyn Fn() -> bool + Sync),
    ) -> io::Result<()> {
        let of_tensor = |(tensor, t): (usize, &OutTensor)| {
            (0..elements(t)).step_by(TILE_ELEMENTS).map(move |first| (tensor, first))
        };
        let tiles: Vec<(usize, usize)> = self.tensors.iter().enumerate().flat_map(of_tensor).collect();
        let tables = Tables::new(self.spec.float);
        let next = AtomicUsize::new(0);
        let failure = Mutex::new(None);
        share(threads, |_| {
            let mut maker = Maker::new(self.spec.seed, self.spec.float, &tables);
            while let Some(&(tensor, first)) = tiles.get(next.fetch_add(1, Ordering::Relaxed)) {
                let written = if stop() {
                    Err(io::ErrorKind::Interrupted.into())
                } else {
                    self.write_tile(&mut maker, tensor, first, outputs)
                };
                if let Err(cause) = written {
                    *failure.lock().expect("no thread panics while it holds this") = Some(cause);
                    next.store(tiles.len(), Ordering::Relaxed);
                }
            }
        });
        failure.into_inner().expect("no thread panicked").map_or(Ok(()), Err)
    }

    fn write_tile(
        &self,
        maker: &mut Maker,
        tensor: usize,
        first: usize,
        outputs: &[SynthFile],
    ) -> io::Result<()> {
        let place = &self.layout.places[tensor];
        let tensor = &self.tensors[tensor];
        maker.begin(tensor, first);
        for output in outputs {
            let bytes = maker.tile(tensor, first, output.model);
            let offset = place.offset + (first * self.spec.float.bytes()) as u64;
            output.files[place.shard].write_all_at(bytes, offset)?;
        }
        Ok(())
    }
}

impl SynthFile {
    fn finish(&self) -> io::Result<()> {
        fs::write(self.dir.join(STAMP), pretty(&self.stamp))
    }
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

/// Removes the folder of an earlier run; a folder that another program wrote is not ours to remove.
fn clear(dir: &Path) -> io::Result<()> {
    if dir.join(STAMP).exists() {
        return fs::remove_dir_all(dir);
    }
    match fs::read_dir(dir).map(|mut entries| entries.next().is_some()) {
        Ok(true) => Err(io::Error::other(format!("{} holds files that synth did not write", dir.display()))),
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(cause),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::values::WEIGHT_STD;
    use super::*;
    use crate::error::Kind;
    use safetensors::SafeTensors;

    fn tiny() -> Spec {
        let shape = Shape::find("tiny", None).unwrap();
        Spec { shape, float: Float::BF16, seed: 1, shard_bytes: None }
    }

    fn make(spec: &Spec, dir: &Path, threads: usize) -> Result<u64> {
        write(spec, dir, &[0, 1, 2], threads, &|| false)
    }

    fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
        let mut files: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(&path).unwrap()))
            .collect();
        files.sort();
        files
    }

    fn elements(bytes: &[u8], name: &str) -> Vec<f32> {
        let file = SafeTensors::deserialize(bytes).unwrap();
        let pairs = file.tensor(name).unwrap().data().as_chunks().0.to_vec();
        pairs.into_iter().map(|pair| half::bf16::from_le_bytes(pair).to_f32()).collect()
    }

    #[test]
    fn the_thread_count_changes_no_byte_and_a_complete_folder_is_kept() {
        let (one, three) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        make(&tiny(), one.path(), 1).unwrap();
        make(&tiny(), three.path(), 3).unwrap();
        for model in ["base", "model-1", "model-2"] {
            assert_eq!(files(&one.path().join(model)), files(&three.path().join(model)));
        }
        assert_eq!(make(&tiny(), one.path(), 2).unwrap(), 0);
        let other = Spec { seed: 2, ..tiny() };
        assert_eq!(other.missing(one.path(), &[0, 1, 2]), [0, 1, 2]);
        assert_eq!(make(&other, one.path(), 2).unwrap(), 3 * other.model_bytes());
        assert_ne!(files(&one.path().join("base")), files(&three.path().join("base")));
    }

    #[test]
    fn a_model_does_not_depend_on_those_made_beside_it() {
        let (all, one) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        make(&tiny(), all.path(), 2).unwrap();
        write(&tiny(), one.path(), &[2], 2, &|| false).unwrap();
        assert_eq!(files(&all.path().join("model-2")), files(&one.path().join("model-2")));
        assert!(!one.path().join("base").exists());
    }

    #[test]
    fn every_shard_is_valid_and_holds_what_one_file_would() {
        let (one, many) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for float in [Float::F16, Float::F32, Float::BF16] {
            let spec = Spec { float, ..tiny() };
            make(&spec, one.path(), 2).unwrap();
            make(&Spec { shard_bytes: Some(100_000), ..spec }, many.path(), 2).unwrap();
            let whole = fs::read(one.path().join("model-1/model.safetensors")).unwrap();
            let whole = SafeTensors::deserialize(&whole).unwrap();
            let mut seen = 0;
            for (name, bytes) in files(&many.path().join("model-1")) {
                if name.ends_with(".safetensors") {
                    let shard = SafeTensors::deserialize(&bytes).unwrap();
                    assert!(shard.iter().all(|(name, view)| view == whole.tensor(name).unwrap()));
                    seen += shard.len();
                }
            }
            assert_eq!(seen, whole.len());
        }
    }

    #[test]
    fn values_collide_as_those_of_real_fine_tunes() {
        let dir = tempfile::tempdir().unwrap();
        make(&tiny(), dir.path(), 2).unwrap();
        let name = "model.layers.0.mlp.gate_proj.weight";
        let read =
            |model| elements(&fs::read(dir.path().join(model).join("model.safetensors")).unwrap(), name);
        let (base, moved) = (read("base"), read("model-1"));
        let count = base.len() as f32;
        let std = f64::from(base.iter().map(|x| x * x).sum::<f32>() / count).sqrt();
        assert!((std / WEIGHT_STD - 1.0).abs() < 0.02, "standard deviation {std}");
        let mut steps: Vec<f32> = base.iter().zip(&moved).map(|(base, moved)| (moved - base).abs()).collect();
        steps.sort_by(|a, b| b.total_cmp(a));
        let share = |value: f32| steps.iter().filter(|&&step| step == value).count() as f32 / count;
        assert!((0.3..0.7).contains(&share(0.0)), "zero steps {}", share(0.0));
        let cuts = [0.05, 0.1, 0.15, 0.2, 0.25, 0.3].map(|density| share(steps[(density * count) as usize]));
        let tied = cuts.iter().filter(|cut| (0.01..0.2).contains(*cut)).count();
        assert!(tied >= 4, "ties at the cuts: {cuts:?}");
        let cut = steps[steps.len() / 5];
        assert!(steps[0] > 50.0 * cut, "no heavy tail: {} against {cut}", steps[0]);
    }

    #[test]
    fn a_folder_of_somebody_else_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("base")).unwrap();
        fs::write(dir.path().join("base/model.safetensors"), "precious").unwrap();
        assert_eq!(make(&tiny(), dir.path(), 1).unwrap_err().kind, Kind::Output);
        assert_eq!(fs::read(dir.path().join("base/model.safetensors")).unwrap(), b"precious");
    }

    #[test]
    fn what_is_interrupted_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let error = write(&tiny(), dir.path(), &[0], 2, &|| true).unwrap_err();
        assert_eq!(error.kind, Kind::Interrupted);
        assert_eq!(tiny().missing(dir.path(), &[0]), [0]);
        assert_ne!(make(&tiny(), dir.path(), 2).unwrap(), 0);
    }
}

//! A small merge with all that a merge does with files: shards, an index, a tokenizer, a licence, the journal, and the thresholds of an
//! earlier merge.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Map, json};

use crate::backend::devices::processor;
use crate::checkpoint::Reads;
use crate::error::{Error, Result};
use crate::files::disk::Random;
use crate::files::faulty::{Files, files, in_time, numbers, shard};
use crate::merging::{merge, merge_part};
use crate::parts::Part;
use crate::plan::Choices;
use crate::stream::{Budget, Watch};
use crate::timeline::Timeline;
use crate::{Options, Prepared, Stopped, prepare};

/// Who stops a merge once it has written so much, or never, and counts what is taken over.
#[derive(Debug, Default)]
pub(crate) struct Watching {
    stops_after: Option<u64>,
    written: AtomicU64,
    /// Bytes of what a stopped merge had finished.
    taken_over: AtomicU64,
}

impl Watching {
    /// One who stops a merge when it has written so many bytes.
    pub(crate) fn stopping_after(bytes: u64) -> Self {
        Self { stops_after: Some(bytes), ..Self::default() }
    }

    /// Whether something was taken over of what a stopped merge had finished.
    pub(crate) fn has_gone_on(&self) -> bool {
        self.taken_over.load(Ordering::Relaxed) > 0
    }
}

impl Watch for Watching {
    fn moved(&self, _read: u64, written: u64) {
        self.written.fetch_add(written, Ordering::Relaxed);
    }

    fn stop(&self) -> bool {
        self.stops_after.is_some_and(|bytes| self.written.load(Ordering::Relaxed) >= bytes)
    }

    fn compiling(&self) {}

    fn less_memory(&self, _why: &Error, _asked: u64, _used: u64) {}

    fn goes_on(&self, finished: u64, _all: u64) {
        self.taken_over.fetch_add(finished, Ordering::Relaxed);
    }
}

/// Three models in a folder, and what a merge of them makes.
pub(crate) struct Case {
    _folder: tempfile::TempDir,
    pub(crate) root: PathBuf,
    threads: usize,
    reads: Reads,
    pub(crate) expected: Files,
    pub(crate) inputs: Files,
}

impl Case {
    /// In memory, where nobody waits for a disk, unless the disk itself counts.
    pub(crate) fn new(threads: usize, reads: Reads, on_disk: bool) -> Self {
        let folder = if on_disk { tempfile::tempdir() } else { tempfile::tempdir_in("/dev/shm") }.unwrap();
        let root = folder.path().canonicalize().unwrap();
        let mut random = Random::new(1);
        for model in ["base-model", "first-model", "second-model"] {
            let place = root.join("models").join(model);
            fs::create_dir_all(&place).unwrap();
            let mut tensors: Vec<(String, Vec<u8>)> =
                (0..6).map(|i| (format!("layers.{i}.w"), numbers(1500 + i, &mut random))).collect();
            let second = tensors.split_off(3);
            let mut map = Map::new();
            for (file, tensors) in [("model-1.safetensors", tensors), ("model-2.safetensors", second)] {
                map.extend(tensors.iter().map(|(name, _)| (name.clone(), file.into())));
                fs::write(place.join(file), shard(&tensors)).unwrap();
            }
            let index = json!({ "metadata": { "total_size": 1 }, "weight_map": map });
            for (file, text) in [
                ("model.safetensors.index.json", index.to_string()),
                ("config.json", json!({ "architectures": ["X"], "model_type": "x" }).to_string()),
                ("tokenizer.json", json!({ "model": { "vocab": { "a": 0 } } }).to_string()),
                ("tokenizer_config.json", "{}".into()),
                ("LICENSE", "Do what you like.\n".repeat(100)),
                ("README.md", "---\nlicense: mit\n---\n".into()),
            ] {
                fs::write(place.join(file), text).unwrap();
            }
            fs::create_dir(place.join("additional_chat_templates")).unwrap();
            fs::write(place.join("additional_chat_templates/tool.jinja"), "{{ x }}").unwrap();
        }
        let model = |name: &str| root.join("models").join(name).display().to_string();
        let config = format!(
            "merge_method: ties\nbase_model: {}\nparameters: {{weight: 0.5, density: 0.4}}\nmodels:\n- model: {}\n- model: {}\n",
            model("base-model"),
            model("first-model"),
            model("second-model"),
        );
        fs::write(root.join("config.yml"), config).unwrap();
        fs::create_dir(root.join("disk")).unwrap();
        fs::create_dir(root.join("cache")).unwrap();
        let inputs = files(&root.join("models"));
        let mut case = Self { _folder: folder, root, threads, reads, expected: Files::new(), inputs };
        case.merge().unwrap();
        case.expected = files(&case.out());
        let shards = case.expected.keys().filter(|file| file.ends_with(".safetensors")).count();
        assert!(shards > 1 && case.expected.contains_key("LICENSE"), "{:?}", case.expected.keys());
        assert!(!files(&case.root.join("cache/thresholds")).is_empty());
        case.clear();
        case
    }

    /// What a cut of the power is tried on; nothing else is written to but the cache.
    pub(crate) fn disk(&self) -> PathBuf {
        self.root.join("disk")
    }

    pub(crate) fn out(&self) -> PathBuf {
        self.root.join("disk/new/out")
    }

    pub(crate) fn partial(&self) -> PathBuf {
        self.root.join("disk/new/out.partial")
    }

    pub(crate) fn clear(&self) {
        let _ = fs::remove_dir_all(self.disk());
        fs::create_dir(self.disk()).unwrap();
    }

    pub(crate) fn merge(&self) -> Result<()> {
        self.merge_with(Watching::default()).1
    }

    /// The same, with what came of who looks on.
    pub(crate) fn merge_with(&self, watching: Watching) -> (Arc<Watching>, Result<()>) {
        let watching = Arc::new(watching);
        let watch = Arc::clone(&watching);
        (watching, self.carry_out(move |prepared, options| merge(prepared, options, &*watch).map(drop)))
    }

    /// Makes a part of two.
    pub(crate) fn part(&self, number: usize) -> Result<()> {
        self.carry_out(move |prepared, options| {
            let part = Part::new(number, 2).unwrap();
            merge_part(prepared, options, (part, &[]), &Watching::default(), Timeline::new()).map(drop)
        })
    }

    fn carry_out(&self, work: impl FnOnce(&Prepared, &Options) -> Result<()> + Send + 'static) -> Result<()> {
        let (config, out, cache) = (self.root.join("config.yml"), self.out(), self.root.join("cache"));
        let (threads, reads) = (self.threads, self.reads);
        let merge = move || {
            let prepared = prepare(&config, &Choices { shard_bytes: Some(10_000), ..Choices::USUAL })?;
            let options = Options {
                out,
                device: processor(),
                budget: Budget { threads, host_bytes: 64 << 20, device_bytes: 0, chunk_tiles: Some(1) },
                copy_tokenizer: true,
                model_card: true,
                inputs_hashed: false,
                reads,
                cache: Some(cache),
                recall: true,
                stopped: Stopped::GoesOn,
            };
            work(&prepared, &options)
        };
        in_time(merge)
    }

    /// That OUT is not there or whole; whether it is there.
    pub(crate) fn whole(&self) -> std::result::Result<bool, String> {
        let mut found = files(&self.out());
        if !self.out().exists() {
            return Ok(false);
        }
        // A merge that ends while it gives the folder its name may leave these.
        found.retain(|file, _| file != ".lock" && file != ".journal");
        let differs = |file: &&String| found.get(*file) != self.expected.get(*file);
        let mut differing = self.expected.keys().chain(found.keys()).filter(differs);
        differing.next().map_or(Ok(true), |file| Err(format!("{file} is damaged, missing or unexpected")))
    }

    /// That the same merge ends with the same bytes.
    pub(crate) fn goes_on(&self) -> std::result::Result<(), String> {
        if self.whole()? { Ok(()) } else { self.ends_well(&|| self.merge()) }
    }

    /// That this ends with the same bytes, and leaves nothing beside them.
    pub(crate) fn ends_well(&self, make: &dyn Fn() -> Result<()>) -> std::result::Result<(), String> {
        make().map_err(|error| format!("it does not go on: {error}"))?;
        if !self.whole()? {
            return Err("what goes on ends well and leaves no output".into());
        }
        let mut beside =
            files(&self.root.join("disk/new")).into_keys().filter(|file| !file.starts_with("out/"));
        beside.next().map_or(Ok(()), |file| Err(format!("{file} is left")))
    }
}

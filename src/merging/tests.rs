//! Whole merges among faults: every call of the system fails in turn, and the power is cut at every moment.
//!
//! A small merge of three models, with all that a merge does with files: shards, an index, a tokenizer, a licence, the journal, and
//! the thresholds of an earlier merge. What is tried here by default is a part; `MERGEFORGE_FAULTS=all` tries all of it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use rustix::io::Errno;
use serde_json::{Map, Value as Json, json};

use super::{merge, merge_part};
use crate::backend::devices::processor;
use crate::checkpoint::Reads;
use crate::error::{Error, Kind, Result};
use crate::files::Op;
use crate::files::disk::{Disk, Random};
use crate::files::hook::{Event, Fault, Hooked, Planted, What};
use crate::parts::{self, Part};
use crate::plan::Choices;
use crate::stream::{Budget, Watch};
use crate::timeline::Timeline;
use crate::{Options, Prepared, Stopped, prepare};

/// A merge that takes longer hangs.
const PATIENCE: Duration = Duration::from_mins(1);

/// Whether all is tried.
fn all() -> bool {
    std::env::var_os("MERGEFORGE_FAULTS").is_some_and(|value| value == "all")
}

struct Quiet;

impl Watch for Quiet {
    fn moved(&self, _read: u64, _written: u64) {}

    fn stop(&self) -> bool {
        false
    }

    fn compiling(&self) {}

    fn less_memory(&self, _why: &Error, _asked: u64, _used: u64) {}
}

type Files = BTreeMap<String, Vec<u8>>;

/// The files below a folder; none where it is not there.
fn files(folder: &Path) -> Files {
    let mut found = Files::new();
    for entry in fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path()) {
        let name = entry.file_name().unwrap().to_str().unwrap().to_owned();
        if entry.is_dir() {
            let inside = files(&entry).into_iter().map(|(file, bytes)| (format!("{name}/{file}"), bytes));
            found.extend(inside);
        } else {
            found.insert(name, fs::read(&entry).unwrap());
        }
    }
    found
}

/// A file of safetensors.
fn shard(tensors: &[(String, Vec<u8>)]) -> Vec<u8> {
    let (mut header, mut data) = (Map::new(), Vec::new());
    for (name, bytes) in tensors {
        let end = data.len() + bytes.len();
        let entry = json!({ "dtype": "BF16", "shape": [bytes.len() / 2], "data_offsets": [data.len(), end] });
        header.insert(name.clone(), entry);
        data.extend(bytes);
    }
    let header = Json::Object(header).to_string();
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat()
}

/// Numbers that look random, without NaN and infinity.
fn numbers(elements: usize, random: &mut Random) -> Vec<u8> {
    (0..elements).flat_map(|_| (random.below(1 << 16) as u16 & 0xbfff).to_le_bytes()).collect()
}

/// Three models in a folder, and what a merge of them makes.
struct Case {
    _folder: tempfile::TempDir,
    root: PathBuf,
    threads: usize,
    reads: Reads,
    expected: Files,
    inputs: Files,
}

impl Case {
    /// In memory, where nobody waits for a disk, unless the disk itself counts.
    fn new(threads: usize, reads: Reads, on_disk: bool) -> Self {
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
    fn disk(&self) -> PathBuf {
        self.root.join("disk")
    }

    fn out(&self) -> PathBuf {
        self.root.join("disk/new/out")
    }

    fn partial(&self) -> PathBuf {
        self.root.join("disk/new/out.partial")
    }

    fn clear(&self) {
        let _ = fs::remove_dir_all(self.disk());
        fs::create_dir(self.disk()).unwrap();
    }

    fn merge(&self) -> Result<()> {
        self.carry_out(|prepared, options| merge(prepared, options, &Quiet).map(drop))
    }

    /// Makes a part of two.
    fn part(&self, number: usize) -> Result<()> {
        self.carry_out(move |prepared, options| {
            let part = Part::new(number, 2).unwrap();
            merge_part(prepared, options, (part, &[]), &Quiet, Timeline::new()).map(drop)
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
                reads,
                cache: Some(cache),
                recall: true,
                stopped: Stopped::GoesOn,
            };
            work(&prepared, &options)
        };
        let (ended, end) = mpsc::channel();
        let thread = std::thread::spawn(move || ended.send(merge()));
        let result = end.recv_timeout(PATIENCE).expect("a merge hangs, or panicked");
        thread.join().unwrap().unwrap();
        result
    }

    /// That OUT is not there or whole; whether it is there.
    fn whole(&self) -> std::result::Result<bool, String> {
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
    fn goes_on(&self) -> std::result::Result<(), String> {
        if !self.whole()? {
            self.merge().map_err(|error| format!("it does not go on: {error}"))?;
            if !self.whole()? {
                return Err("the merge that goes on ends well and leaves no output".into());
            }
            if self.partial().exists() {
                return Err("OUT.partial is left".into());
            }
        }
        Ok(())
    }
}

#[derive(Debug, Default)]
struct Counts {
    tried: usize,
    /// Merges that ended well all the same.
    succeeded: usize,
    /// Merges after which the same command gave the same bytes.
    equal: usize,
}

/// What is tried with calls of a kind, and whether a merge has to end well then.
fn faults(op: Op) -> Vec<(Fault, bool, bool)> {
    let error = |cause| (Fault::Error(cause), false, false);
    let lasting = |cause| (Fault::Error(cause), true, false);
    let mut faults = vec![error(Errno::IO), (Fault::Error(Errno::INTR), false, true)];
    if matches!(op, Op::Read | Op::Write) {
        faults.extend([(Fault::Short, false, true), (Fault::Short, true, true), lasting(Errno::IO)]);
    }
    if matches!(
        op,
        Op::Make | Op::MakeFolder | Op::Write | Op::SetSize | Op::TakeSpace | Op::Sync | Op::Rename
    ) {
        faults.extend([error(Errno::NOSPC), lasting(Errno::NOSPC)]);
    }
    if matches!(op, Op::Sync | Op::SyncFolder | Op::Remove) {
        faults.push(lasting(Errno::IO));
    }
    if matches!(
        op,
        Op::Open | Op::Make | Op::MakeFolder | Op::Rename | Op::Remove | Op::List | Op::Look | Op::SetMode
    ) {
        faults.push(error(Errno::ACCESS));
    }
    faults
}

impl Case {
    /// Lets a call go wrong, and looks at what is left.
    fn survives(
        &self,
        hooked: &Hooked,
        planted: Planted,
        must_succeed: bool,
        counts: &mut Counts,
    ) -> std::result::Result<(), String> {
        self.clear();
        hooked.plant(Some(planted));
        let result = self.merge();
        let hits = hooked.hits();
        hooked.plant(None);
        if hits.is_empty() {
            return Ok(());
        }
        counts.tried += 1;
        if files(&self.root.join("models")) != self.inputs {
            return Err("an input was changed".into());
        }
        let is_there = self.whole()?;
        match &result {
            Ok(()) if is_there => counts.succeeded += 1,
            Ok(()) => return Err("there is no output".into()),
            Err(error) if must_succeed => return Err(error.to_string()),
            Err(error) => {
                // A file by its own name, a folder by all of its path: its name may be a part of any message.
                let names = |hit: &PathBuf| {
                    let hit = &hit.components().collect::<PathBuf>();
                    let is_folder = hit.is_dir() || self.out().starts_with(hit) || *hit == self.partial();
                    let name = if is_folder { hit.to_str() } else { hit.file_name().unwrap().to_str() };
                    error.message.contains(name.unwrap())
                };
                if !hits.iter().any(names) {
                    return Err(format!("it is not named: {error}"));
                }
                if error.message.contains("the merge is complete, but") && !is_there {
                    // As the message says.
                    fs::rename(self.partial(), self.out()).unwrap();
                }
            }
        }
        self.goes_on()?;
        counts.equal += 1;
        Ok(())
    }
}

#[test]
fn no_call_that_fails_while_parts_are_put_together_loses_one() {
    let case = Case::new(1, Reads::Copied, false);
    (1..=2).for_each(|number| case.part(number).unwrap());
    let (parts, _) = Disk::read(&case.disk());
    let hooked = Hooked::on(&case.disk());
    let finish = || parts::finish(&case.out(), false, 1, &Quiet).map(drop);
    hooked.plant(None);
    finish().unwrap();
    let calls = hooked.calls();
    assert!(files(&case.out()) == case.expected, "parts have other bytes than one merge");
    let (mut counts, mut problems) = (Counts::default(), Vec::new());
    let mut survives = |planted: Planted, must_succeed: bool| -> std::result::Result<(), String> {
        parts.write(&case.disk());
        hooked.plant(Some(planted));
        let result = finish();
        let is_hit = !hooked.hits().is_empty();
        hooked.plant(None);
        counts.tried += usize::from(is_hit);
        match result {
            Ok(()) => counts.succeeded += usize::from(is_hit),
            Err(error) if must_succeed => return Err(error.to_string()),
            Err(error) if error.message.contains("the merge is complete, but") && !case.out().exists() => {
                // As the message says.
                fs::rename(case.partial(), case.out()).unwrap();
            }
            Err(error)
                if error.kind == Kind::Unready
                    || error.hint.as_ref().is_some_and(|hint| hint.contains("make part")) =>
            {
                return Err(format!("nothing is missing or damaged: {error}"));
            }
            Err(_) => {}
        }
        finish().map_err(|error| format!("it does not go on: {error}"))?;
        if files(&case.disk().join("new")).keys().any(|file| !file.starts_with("out/")) {
            return Err("something is left".into());
        }
        let is_whole = files(&case.out()) == case.expected;
        is_whole.then_some(()).ok_or_else(|| "it differs from one merge".into())
    };
    for (op, count) in calls {
        for (fault, lasts, must_succeed) in faults(op) {
            for call in 0..count {
                let planted = Planted { op, call, fault, lasts };
                if let Err(problem) = survives(planted, must_succeed) {
                    problems.push(format!("{planted:?}: {problem}"));
                }
            }
        }
    }
    println!("{counts:?}");
    assert!(problems.is_empty(), "{} problems:\n{}", problems.len(), problems.join("\n"));
    assert!(counts.tried > 300 && counts.succeeded < counts.tried, "{counts:?}");
}

#[test]
fn a_merge_survives_any_call_that_fails() {
    let (mut counts, mut problems) = (Counts::default(), Vec::new());
    // Space is taken on disks alone.
    for (threads, reads, on_disk) in
        [(1, Reads::Mapped, false), (2, Reads::Copied, false), (1, Reads::Direct, true)]
    {
        let case = Case::new(threads, reads, on_disk);
        let hooked = Hooked::on(&case.root);
        case.merge().unwrap();
        let calls = hooked.calls();
        let mut turn = 0;
        for (op, count) in calls.iter().filter(|(op, _)| !on_disk || **op == Op::TakeSpace) {
            for (fault, lasts, must_succeed) in faults(*op) {
                for call in 0..*count {
                    turn += 1;
                    if all() || on_disk || turn % 19 == 0 {
                        let planted = Planted { op: *op, call, fault, lasts };
                        let survived = case.survives(&hooked, planted, must_succeed, &mut counts);
                        let problem = |what| format!("{planted:?} of {:?}: {what}", hooked.last());
                        problems.extend(survived.err().map(problem));
                    }
                }
            }
        }
        println!("{threads} threads, {reads:?}, {calls:?}");
    }
    println!("{counts:?}");
    assert!(problems.is_empty(), "{} problems:\n{}", problems.len(), problems.join("\n"));
    assert!(counts.succeeded > 0 && counts.equal == counts.tried && counts.tried > counts.succeeded);
}

/// What happened on the disk during a merge, and what was there before.
fn recorded(case: &Case, hooked: &Hooked) -> (Disk, Vec<Event>) {
    let (before, numbers) = Disk::read(&case.disk());
    hooked.record(numbers);
    case.merge().unwrap();
    (before, hooked.recorded())
}

#[test]
fn a_merge_survives_a_power_cut_at_any_moment() {
    let case = Case::new(2, Reads::Copied, false);
    let hooked = Hooked::on(&case.root);
    let (before, events) = recorded(&case, &hooked);
    let seeds = if all() { 50 } else { 3 };
    let (mut whole, mut equal) = (0, 0);
    for end in 0..=events.len() {
        for seed in 0..seeds {
            let mut random = Random::new((end * 1000 + seed) as u64);
            let mut disk = before.cut(&events[..end], &mut random);
            // Every other time the merge that goes on meets a cut as well.
            for again in 0..=end % 2 {
                disk.write(&case.disk());
                let shown = format!("after {end} of {} events, seed {seed}, cut {again}", events.len());
                let is_there = case.whole().unwrap_or_else(|what| panic!("{shown}: {what}"));
                whole += usize::from(is_there);
                assert!(is_there || end < events.len() || again > 0, "{shown}: the output is gone");
                if is_there || again == end % 2 {
                    case.goes_on().unwrap_or_else(|what| panic!("{shown}: {what}"));
                    equal += 1;
                    break;
                }
                let (before, events) = recorded(&case, &hooked);
                disk = before.cut(&events[..random.below(events.len())], &mut random);
            }
        }
    }
    println!(
        "{} events, {equal} cuts after which the bytes are equal, {whole} with a whole output",
        events.len()
    );
    assert!(whole > 0 && equal == (events.len() + 1) * seeds);
}

/// A disk that only says that it has put something there is found out.
#[test]
fn the_model_of_power_cuts_finds_what_was_not_synced() {
    let case = Case::new(1, Reads::Copied, false);
    let hooked = Hooked::on(&case.root);
    let (before, events) = recorded(&case, &hooked);
    let folders: Vec<usize> = events
        .iter()
        .filter_map(|event| match &event.what {
            What::Made { node, is_folder: true, .. } => Some(*node),
            _ => None,
        })
        .chain([0])
        .collect();
    let damages = |is_lie: &dyn Fn(usize) -> bool| {
        let is_done = |event: &&Event| !matches!(&event.what, What::Synced { node, .. } if is_lie(*node));
        let events: Vec<Event> = events.iter().filter(is_done).cloned().collect();
        let mut random = Random::new(7);
        let mut damaged = |_| {
            let end = events.len() - random.below(events.len() / 2);
            before.cut(&events[..end], &mut random).write(&case.disk());
            case.whole().is_err()
        };
        (0..1000).map(&mut damaged).filter(|is_damaged| *is_damaged).count()
    };
    assert_eq!(damages(&|_| false), 0);
    let (files, folders) =
        (damages(&|node| !folders.contains(&node)), damages(&|node| folders.contains(&node)));
    println!(
        "of 1000 cuts each, {files} damage where files are not synced, and {folders} where folders are not"
    );
    assert!(files > 20 && folders > 2, "{files}, {folders}");
}

/// What is done to a cache, in words.
type Hostile<'a> = (&'a str, &'a dyn Fn(&Path));

#[test]
fn a_merge_needs_nothing_of_its_cache() {
    use std::os::unix::fs::symlink;
    let case = Case::new(1, Reads::Mapped, false);
    let (cache, precious) = (case.root.join("cache"), case.root.join("precious"));
    let kept = files(&cache);
    let in_place_of_files = |act: &dyn Fn(&Path)| {
        for file in fs::read_dir(cache.join("thresholds")).unwrap().map(|entry| entry.unwrap().path()) {
            fs::remove_file(&file).unwrap();
            act(&file);
        }
    };
    let pipe = |path: &Path| {
        use rustix::fs::{CWD, FileType, Mode, mknodat};
        mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    };
    let hostile: [Hostile; 9] = [
        ("a file in its place", &|cache| {
            fs::remove_dir_all(cache).unwrap();
            fs::write(cache, "x").unwrap();
        }),
        ("a link to nothing in its place", &|cache| {
            fs::remove_dir_all(cache).unwrap();
            symlink("nowhere", cache).unwrap();
        }),
        ("a file in the place of a folder", &|cache| {
            fs::remove_dir_all(cache.join("thresholds")).unwrap();
            fs::write(cache.join("thresholds"), "x").unwrap();
        }),
        ("folders", &|_| in_place_of_files(&|file| fs::create_dir(file).unwrap())),
        ("pipes", &|_| in_place_of_files(&pipe)),
        ("links to a device", &|_| in_place_of_files(&|file| symlink("/dev/zero", file).unwrap())),
        ("links to a file", &|_| in_place_of_files(&|file| symlink(&precious, file).unwrap())),
        ("holes of a terabyte", &|_| {
            in_place_of_files(&|file| fs::File::create(file).unwrap().set_len(1 << 40).unwrap());
        }),
        ("half of the bytes", &|_| {
            in_place_of_files(&|file| {
                let name = format!("thresholds/{}", file.file_name().unwrap().to_str().unwrap());
                fs::write(file, &kept[&name][..kept[&name].len() / 2]).unwrap();
            });
        }),
    ];
    for (what, act) in hostile {
        fs::write(&precious, "mine").unwrap();
        let _ = fs::remove_file(&cache);
        let _ = fs::remove_dir_all(&cache);
        fs::create_dir_all(cache.join("thresholds")).unwrap();
        kept.iter().for_each(|(file, bytes)| fs::write(cache.join(file), bytes).unwrap());
        act(&cache);
        case.clear();
        case.merge().unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(case.whole(), Ok(true), "{what}");
        assert_eq!(fs::read_to_string(&precious).unwrap(), "mine", "{what}");
    }
}

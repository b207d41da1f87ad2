//! Models of the Hub among faults: every call of the system fails in turn, the cache is full, read-only or a trap, and the power is cut
//! at every moment.
//!
//! A small model is fetched as a command does it, planned by headers first, and all of it is read. What is tried here by default is a
//! part; `MERGEFORGE_FAULTS=all` tries all of it.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use serde_json::{Map, json};

use super::hub_server::{self, Hub};
use super::{Environment, Hasher, Remote, SHARED_BLOBS, Watch};
use crate::checkpoint::locate::locate_in;
use crate::checkpoint::{Reads, Source};
use crate::error::{Error, Kind, Result};
use crate::files::Op;
use crate::files::disk::{Disk, Random};
use crate::files::faulty::{Files, all, faults, files, in_time, numbers, pipe, shard};
use crate::files::hook::{Event, Fault, Hooked, Planted};

const NAME: &str = "org/model";
const SHARDS: [&str; 2] = ["model-1.safetensors", "model-2.safetensors"];

struct Quiet;

impl Watch for Quiet {
    fn arrived(&self, _bytes: u64) {}

    fn stop(&self) -> bool {
        false
    }
}

/// The Hub with a model, and a disk for the cache.
struct Case {
    _folder: tempfile::TempDir,
    root: PathBuf,
    hub: Hub,
    environment: Environment,
    model: Files,
    commit: String,
    /// A disk with nothing on it.
    empty: Disk,
    /// One where the model lies, and all that is known of it.
    whole: Disk,
    /// One where the model is known, with half of a file that is right, and half of one that is not.
    begun: Disk,
}

impl Case {
    fn new() -> Self {
        Self::of(true)
    }

    /// Without a tokenizer a model may miss something, so that its list of files is looked at each time.
    fn of(has_tokenizer: bool) -> Self {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let root = folder.path().canonicalize().unwrap();
        for place in ["disk/cache", "disk/known", "outside"] {
            fs::create_dir_all(root.join(place)).unwrap();
        }
        let mut random = Random::new(1);
        let (mut model, mut map) = (Files::new(), Map::new());
        for file in SHARDS {
            let tensor = |number| (format!("{file}.{number}"), numbers(15_000, &mut random));
            let tensors: Vec<_> = (0..2).map(tensor).collect();
            map.extend(tensors.iter().map(|(name, _)| (name.clone(), file.into())));
            model.insert(file.into(), shard(&tensors));
        }
        let index = json!({ "metadata": { "total_size": 1 }, "weight_map": map });
        model.insert("model.safetensors.index.json".into(), index.to_string().into());
        model.insert("config.json".into(), r#"{"architectures":["X"],"model_type":"x"}"#.into());
        if has_tokenizer {
            model.insert("tokenizer.json".into(), r#"{"model":{"vocab":{"a":0}}}"#.into());
        }
        model.insert("LICENSE".into(), "Do what you like.\n".repeat(100).into());
        let hub = Hub::start();
        let on_hub =
            model.iter().fold(hub_server::Files::new(), |all, (file, bytes)| all.with(file, &bytes[..]));
        let commit = hub.publish(NAME, "main", on_hub);
        let environment = Environment::at(&root)
            .with("HF_ENDPOINT", hub.endpoint())
            .with("HF_HUB_CACHE", root.join("disk/cache"))
            .knowing(&root.join("disk/known"));
        let (empty, _) = Disk::read(&root.join("disk"));
        let (whole, begun) = (empty.clone(), empty.clone());
        let mut case = Self { _folder: folder, root, hub, environment, model, commit, empty, whole, begun };
        case.plan().unwrap();
        for (place, file) in SHARDS.into_iter().enumerate() {
            let bytes = &case.model[file];
            let mut half = bytes[..bytes.len() / 2].to_vec();
            half[place * 9_000] ^= place as u8;
            fs::write(case.incomplete(file), half).unwrap();
        }
        (case.begun, _) = Disk::read(&case.disk());
        case.fetch().unwrap();
        case.is_sound().unwrap();
        (case.whole, _) = Disk::read(&case.disk());
        case
    }

    /// What a cut of the power is tried on.
    fn disk(&self) -> PathBuf {
        self.root.join("disk")
    }

    fn repository(&self) -> PathBuf {
        self.root.join("disk/cache/models--org--model")
    }

    fn snapshot(&self) -> PathBuf {
        self.repository().join("snapshots").join(&self.commit)
    }

    /// What the cache calls a file.
    fn hash(&self, file: &str) -> String {
        let bytes = &self.model[file];
        hash(if SHARDS.contains(&file) { 64 } else { 40 }, bytes)
    }

    fn blob(&self, file: &str) -> PathBuf {
        self.repository().join("blobs").join(self.hash(file))
    }

    fn incomplete(&self, file: &str) -> PathBuf {
        self.blob(file).with_extension("incomplete")
    }

    /// Opens the model, and fetches no weights.
    fn plan(&self) -> Result<()> {
        self.obtain(Remote::Fetched, |_| Ok(()))
    }

    fn fetch(&self) -> Result<()> {
        self.take(Remote::Fetched)
    }

    /// Opens the model and its files beside the weights, and holds these against what the Hub has.
    fn obtain(
        &self,
        remote: Remote,
        more: impl FnOnce(&Source) -> Result<()> + Send + 'static,
    ) -> Result<()> {
        let (environment, model) = (self.environment.clone(), self.model.clone());
        in_time(move || {
            let source = Source::open(NAME, locate_in(&environment, NAME, None, remote)?)?;
            // As a merge does: once the weights are here, all is.
            for (file, bytes) in model.iter().filter(|(file, _)| !SHARDS.contains(&file.as_str())) {
                let read = source.folder.file(file.as_str()).read(1 << 20)?;
                assert!(read == *bytes, "{file} has other bytes");
            }
            more(&source)
        })
    }

    /// Reads all of the model, which is fetched if that is wanted.
    fn take(&self, remote: Remote) -> Result<()> {
        let model = self.model.clone();
        self.obtain(remote, move |source| {
            if remote == Remote::Fetched {
                crate::fetch(&[source], &source.absent(|_| true), &Quiet)?;
            }
            let mut found = BTreeSet::new();
            for tensor in source.tensors() {
                let mut read = vec![0; tensor.bytes as usize];
                source.read_at(tensor, 0, &mut read, Reads::Copied)?;
                let expected = &model[&tensor.name[..SHARDS[0].len()]];
                let start = tensor.offset as usize;
                assert!(read == expected[start..start + read.len()], "{} has other bytes", tensor.name);
                found.insert(tensor.name.clone());
            }
            assert_eq!(found.len(), 4);
            source.verify_unchanged()
        })
    }

    /// That the cache holds nothing that another program would take for what it is not.
    fn is_sound(&self) -> std::result::Result<(), String> {
        let blobs = fs::read_dir(self.repository().join("blobs"));
        for blob in blobs.into_iter().flatten().map(|entry| entry.unwrap().path()) {
            let name = blob.file_name().unwrap().to_str().unwrap();
            if !name.ends_with(".incomplete") && hash(name.len(), &read(&blob)) != name {
                return Err(format!("blob {name} is damaged"));
            }
        }
        for link in fs::read_dir(self.snapshot()).into_iter().flatten().map(|entry| entry.unwrap().path()) {
            let name = link.file_name().unwrap().to_str().unwrap();
            if link.exists() && read(&link) != self.model[name] {
                return Err(format!("{name} of the snapshot is damaged"));
            }
        }
        for (name, content) in files(&self.repository().join("refs")) {
            if !name.ends_with(".incomplete") && content != self.commit.as_bytes() {
                return Err(format!("{name} of refs is damaged"));
            }
        }
        let locks = self.root.join("disk/cache/.locks/models--org--model");
        for lock in fs::read_dir(locks).into_iter().flatten().map(|entry| entry.unwrap().path()) {
            if fs::File::open(&lock).unwrap().try_lock().is_err() {
                return Err(format!("{} is held", lock.display()));
            }
        }
        Ok(())
    }

    /// Whether a message is about a file or folder, by its own name or by those of a file whose blob it is.
    fn names(&self, message: &str, place: &Path) -> bool {
        let name = place.file_name().unwrap().to_str().unwrap();
        let is_blob_of = |file: &&String| name.starts_with(&self.hash(file));
        let path = place.display().to_string();
        let mut files = self.model.keys().filter(is_blob_of);
        message.contains(&path)
            || !place.is_dir() && message.contains(name)
            || files.any(|file| message.contains(file.as_str()) || message.contains(&self.hash(file)))
    }
}

/// What the cache calls these bytes, in so many digits.
fn hash(digits: usize, bytes: &[u8]) -> String {
    let mut hasher = Hasher::of(digits, bytes.len() as u64);
    hasher.update(bytes);
    hasher.finish()
}

fn read(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    fs::File::open(path).unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

#[derive(Debug, Default)]
struct Counts {
    tried: usize,
    /// Models that were had all the same.
    succeeded: usize,
    /// Faults after which the same command had the model.
    equal: usize,
}

impl Case {
    fn survives(
        &self,
        before: &Disk,
        hooked: &Hooked,
        planted: Planted,
        must_succeed: bool,
        counts: &mut Counts,
    ) -> std::result::Result<(), String> {
        before.write(&self.disk());
        hooked.plant([planted]);
        let result = self.fetch();
        let hits = hooked.hits();
        hooked.plant([]);
        if hits.is_empty() {
            return Ok(());
        }
        counts.tried += 1;
        self.is_sound()?;
        match result {
            Ok(()) => counts.succeeded += 1,
            Err(error) if must_succeed => return Err(error.to_string()),
            Err(error) => {
                if !hits.iter().any(|hit| self.names(&error.message, hit)) {
                    return Err(format!("it is not named: {error}"));
                }
                self.says_what_to_do(&error, planted.fault)?;
            }
        }
        self.fetch().map_err(|error| format!("it does not go on: {error}"))?;
        self.is_sound()?;
        counts.equal += 1;
        Ok(())
    }

    fn says_what_to_do(&self, error: &Error, fault: Fault) -> std::result::Result<(), String> {
        let hint = error.hint.as_deref().unwrap_or_default();
        let cache = self.disk().join("cache").display().to_string();
        let is_clear = match (error.kind, fault) {
            (Kind::Output, Fault::Error(Errno::NOSPC)) => {
                error.message.contains(&cache)
                    && error.message.contains("No space left")
                    && hint.contains("free some space")
                    && hint.contains("HF_HOME")
            }
            (Kind::Output, _) => error.message.contains(&cache) && hint.contains("HF_HOME"),
            (Kind::Input, fault) => fault != Fault::Error(Errno::NOSPC),
            _ => false,
        };
        if is_clear { Ok(()) } else { Err(format!("no way out: {error:?}")) }
    }
}

#[test]
fn a_model_is_had_after_any_call_that_fails() {
    let case = Case::new();
    let hooked = Hooked::on(&case.root);
    let (mut counts, mut problems, mut turn) = (Counts::default(), Vec::new(), 0);
    for before in [&case.empty, &case.begun] {
        before.write(&case.disk());
        hooked.plant([]);
        case.fetch().unwrap();
        let calls = hooked.calls();
        for (op, count) in &calls {
            for (fault, lasts, must_succeed) in faults(*op) {
                for call in 0..*count {
                    turn += 1;
                    if all() || turn % 19 == 0 {
                        let planted = Planted { op: *op, call, fault, lasts };
                        let survived = case.survives(before, &hooked, planted, must_succeed, &mut counts);
                        let problem = |what| format!("{planted:?} of {:?}: {what}", hooked.last());
                        problems.extend(survived.err().map(problem));
                    }
                }
            }
        }
        println!("{} calls: {calls:?}", calls.values().sum::<usize>());
    }
    println!("{counts:?}");
    assert!(problems.is_empty(), "{} problems:\n{}", problems.len(), problems.join("\n"));
    assert!(counts.succeeded > 0 && counts.equal == counts.tried && counts.tried > counts.succeeded);
}

/// All that changes something fails, from now on.
fn nothing_changes(cause: Errno) -> impl Iterator<Item = Planted> {
    let ops = [Op::Make, Op::MakeFolder, Op::Write, Op::SetSize, Op::Sync, Op::Rename, Op::Remove, Op::Link];
    // A full disk can be cleared.
    let ops = ops.into_iter().filter(move |op| cause != Errno::NOSPC || *op != Op::Remove);
    ops.map(move |op| Planted { op, call: 0, fault: Fault::Error(cause), lasts: true })
}

#[test]
fn a_cache_that_is_full_or_read_only_gives_what_it_has() {
    for case in [Case::new(), Case::of(false)] {
        let hooked = Hooked::on(&case.root);
        for cause in [Errno::NOSPC, Errno::DQUOT, Errno::ROFS, Errno::ACCESS] {
            let planted = || nothing_changes(cause);
            case.whole.write(&case.disk());
            let before = files(&case.disk());
            hooked.plant(planted());
            case.fetch().unwrap();
            // Also where nothing was remembered of it: the Hub is asked.
            fs::remove_dir_all(case.disk().join("known")).unwrap();
            fs::remove_dir_all(case.repository().join("refs")).unwrap();
            case.fetch().unwrap();
            hooked.plant([]);
            assert!(before.iter().all(|(file, bytes)| file.starts_with("known")
                || file.contains("/refs/")
                || read(&case.disk().join(file)) == *bytes));

            for (start, has_small_files) in [(&case.empty, false), (&case.begun, true)] {
                start.write(&case.disk());
                hooked.plant(planted());
                let refused = case.fetch().unwrap_err();
                let streamed = case.take(Remote::Streamed);
                hooked.plant([]);
                let shown = format!("{cause}: {refused:?}");
                assert_eq!((refused.exit_code(), refused.others.len()), (4, 0), "{shown}");
                assert!(refused.message.contains(case.disk().join("cache").to_str().unwrap()), "{shown}");
                assert!(refused.message.contains(&std::io::Error::from(cause).to_string()), "{shown}");
                let hint = refused.hint.unwrap();
                assert!(hint.contains("HF_HOME or HF_HUB_CACHE"), "{shown}");
                // Small files are kept in any case.
                let is_full = matches!(cause, Errno::NOSPC | Errno::DQUOT);
                assert_eq!(hint.contains("--stream"), has_small_files && is_full, "{shown}");
                assert_eq!(streamed.is_ok(), has_small_files, "{cause}: {streamed:?}");
            }
        }
    }
}

/// What is put in the place of something, in words.
type Trap<'a> = (&'a str, &'a dyn Fn(&Path));

fn remove(place: &Path) {
    match place.symlink_metadata() {
        Ok(found) if found.is_dir() => fs::remove_dir_all(place).unwrap(),
        Ok(_) => fs::remove_file(place).unwrap(),
        Err(_) => {}
    }
}

impl Case {
    fn outside(&self) -> PathBuf {
        self.root.join("outside")
    }

    /// A file that nobody may write to.
    fn precious(&self) -> PathBuf {
        self.outside().join("precious")
    }

    fn folders(&self) -> [PathBuf; 10] {
        let (disk, repository) = (self.disk(), self.repository());
        [
            disk.join("cache"),
            disk.join("cache/.locks"),
            disk.join("cache/.locks/models--org--model"),
            repository.clone(),
            repository.join("blobs"),
            repository.join("refs"),
            repository.join("snapshots"),
            self.snapshot(),
            disk.join("known"),
            disk.join("known").join(&self.commit),
        ]
    }

    fn kept_files(&self) -> [PathBuf; 12] {
        let (first, known) = (self.hash(SHARDS[0]), self.disk().join("known"));
        [
            self.repository().join("refs/main"),
            self.blob("config.json"),
            self.blob("LICENSE"),
            self.blob(SHARDS[0]),
            self.incomplete(SHARDS[0]),
            self.snapshot().join("LICENSE"),
            self.snapshot().join("config.json"),
            self.snapshot().join(SHARDS[1]),
            self.disk().join(format!("cache/.locks/models--org--model/{first}.lock")),
            known.join(&self.commit).join("files.json"),
            known.join(&self.commit).join(format!("{first}.head")),
            known.join("verified").join(&first),
        ]
    }

    /// Puts a trap where a file or folder of the cache is to be, and takes the model. What is wrong with what follows; none where the
    /// trap has no place.
    fn trapped(&self, start: &Disk, is_known: bool, place: &Path, (what, act): Trap) -> Option<Vec<String>> {
        start.write(&self.disk());
        if !is_known {
            fs::remove_dir_all(self.disk().join("known")).unwrap();
            fs::create_dir(self.disk().join("known")).unwrap();
        }
        let bytes = fs::metadata(place).map_or(0, |found| found.len());
        remove(place);
        if !place.parent().unwrap().is_dir() {
            return None;
        }
        act(place);
        // As long as what was there: by that alone nobody tells them apart.
        let precious = vec![b'm'; bytes as usize];
        fs::write(self.precious(), &precious).unwrap();
        let begun = Instant::now();
        let result = self.fetch();
        let mut problems = Vec::new();
        if begun.elapsed() > Duration::from_secs(20) {
            problems.push(format!("it took {:?}", begun.elapsed()));
        }
        if read(&self.precious()) != precious || fs::read_dir(self.outside()).unwrap().count() != 1 {
            problems.push("something outside was written to".into());
        }
        if let Err(error) = &result {
            let hint = error.hint.as_deref().unwrap_or_default();
            let is_named = self.names(&error.message, place) || self.names(hint, place);
            if !is_named || !["remove ", "move it away"].iter().any(|word| hint.contains(word)) {
                problems.push("no way out".into());
            }
            // As it says.
            remove(place);
            problems.extend(self.fetch().err().map(|error| format!("it does not help: {error}")));
        }
        let shown = |problem| format!("{what} in place of {}, {result:?}: {problem}", place.display());
        Some(problems.into_iter().map(shown).collect())
    }
}

#[test]
fn a_cache_that_is_a_trap_is_used_or_refused() {
    let case = Case::new();
    let link_to = |target: &Path, place: &Path| symlink(target, place).unwrap();
    let of_all: [Trap; 5] = [
        ("a pipe", &pipe),
        ("a link to a device", &|place| link_to(Path::new("/dev/zero"), place)),
        ("a link to a file outside", &|place| link_to(&case.precious(), place)),
        ("a link to nothing outside", &|place| link_to(&case.outside().join("nothing"), place)),
        ("a link to itself", &|place| link_to(place, place)),
    ];
    let of_folders: [Trap; 1] = [("a file", &|place| fs::write(place, "x").unwrap())];
    let mut problems = Vec::new();
    for (start, is_known) in [(&case.whole, true), (&case.whole, false), (&case.begun, true)] {
        for place in case.folders() {
            let traps = of_all.iter().chain(&of_folders);
            problems.extend(traps.filter_map(|trap| case.trapped(start, is_known, &place, *trap)));
        }
        for place in case.kept_files() {
            start.write(&case.disk());
            let right = if place.exists() { read(&place) } else { Vec::new() };
            let hole = |place: &Path| fs::File::create(place).unwrap().set_len(1 << 40).unwrap();
            let half = |place: &Path| fs::write(place, &right[..right.len() / 2]).unwrap();
            let zeros = |place: &Path| fs::write(place, vec![0; right.len()]).unwrap();
            let of_files: [Trap; 5] = [
                ("a folder", &|place| fs::create_dir(place).unwrap()),
                ("a hole of a terabyte", &hole),
                ("half of it", &half),
                ("zeros", &zeros),
                ("an empty file", &|place| fs::write(place, "").unwrap()),
            ];
            // A copy of which nobody has listed the length is taken for what it is.
            let is_copied = !is_known && place == case.snapshot().join("LICENSE");
            let traps = of_all.iter().chain(&of_files).filter(|_| !is_copied);
            problems.extend(traps.filter_map(|trap| case.trapped(start, is_known, &place, *trap)));
        }
    }
    let tried = problems.len();
    println!("{tried} traps");
    let problems = problems.concat();
    assert!(problems.is_empty(), "{} problems:\n{}", problems.len(), problems.join("\n"));
    assert!(tried > 300, "{tried}");
}

/// As `huggingface_hub` has it from version 2 on: a blob is a link to one that all repositories share.
#[test]
fn blobs_that_repositories_share_are_taken_as_they_are() {
    let case = Case::new();
    case.whole.write(&case.disk());
    let all = case.root.join("disk/cache/blobs");
    fs::create_dir(&all).unwrap();
    for shard in SHARDS {
        let hash = case.hash(shard);
        let shared = all.join(&hash[..2]).join(&hash);
        fs::create_dir_all(shared.parent().unwrap()).unwrap();
        fs::rename(case.blob(shard), shared).unwrap();
        symlink(format!("../../blobs/{}/{hash}", &hash[..2]), case.blob(shard)).unwrap();
    }
    fs::write(all.join(SHARED_BLOBS), "1\n").unwrap();
    for remote in [Remote::Fetched, Remote::Offline] {
        case.hub.forget();
        case.take(remote).unwrap();
        assert_eq!(case.hub.requests().len(), 0, "{remote:?}");
    }
    assert!(SHARDS.iter().all(|shard| case.blob(shard).is_symlink()));
    // A link to anything else is no blob.
    fs::remove_file(all.join(SHARED_BLOBS)).unwrap();
    case.fetch().unwrap();
    assert!(!SHARDS.iter().any(|shard| case.blob(shard).is_symlink()));
}

/// What happened on the disk while a model was fetched.
fn recorded(case: &Case, hooked: &Hooked) -> (Disk, Vec<Event>) {
    let (before, numbers) = Disk::read(&case.disk());
    hooked.record(numbers);
    case.fetch().unwrap();
    (before, hooked.recorded())
}

impl Case {
    /// That nothing which is damaged passes for whole on this disk, and that the model is had from it, be its list of files there or not.
    fn goes_on_from(&self, disk: &Disk, has_list: bool) -> std::result::Result<(), String> {
        disk.write(&self.disk());
        if !has_list {
            remove(&self.disk().join("known"));
        }
        self.is_sound()?;
        self.fetch().map_err(|error| format!("it does not go on: {error}"))?;
        self.is_sound()
    }
}

#[test]
fn a_power_cut_at_any_moment_leaves_no_damaged_model() {
    let case = Case::new();
    let hooked = Hooked::on(&case.root);
    let seeds = if all() { 50 } else { 1 };
    let (mut cuts, mut names, mut moments) = (0, 0, 0);
    for start in [&case.empty, &case.begun] {
        start.write(&case.disk());
        let (before, events) = recorded(&case, &hooked);
        moments += events.len() + 1;
        for end in 0..=events.len() {
            for seed in 0..seeds {
                let disk = before.cut(&events[..end], &mut Random::new((end * 1000 + seed) as u64));
                let shown = format!("after {end} of {} events, seed {seed}", events.len());
                case.goes_on_from(&disk, true).unwrap_or_else(|what| panic!("{shown}: {what}"));
                cuts += 1;
            }
        }
        for (lost, disk) in (0..events.len()).filter_map(|lost| Some((lost, before.without(&events, lost)?)))
        {
            for has_list in [true, false] {
                let what = case.goes_on_from(&disk, has_list);
                what.unwrap_or_else(|what| panic!("without {:?}: {what}", events[lost]));
            }
            names += 1;
        }
    }
    println!("{moments} moments, {cuts} cuts, {names} names lost alone");
    assert!(moments > 80 && cuts == moments * seeds && names > 10, "{moments}, {cuts}, {names}");
}

/// A disk that only says that it has put something there is found out.
#[test]
fn the_model_of_power_cuts_finds_models_that_were_not_synced() {
    let case = Case::new();
    let hooked = Hooked::on(&case.root);
    case.empty.write(&case.disk());
    let (before, events) = recorded(&case, &hooked);
    let lied = before.lie(&events, false);
    let mut random = Random::new(7);
    let is_damaged = |_: &usize| {
        before.cut(&lied, &mut random).write(&case.disk());
        case.is_sound().is_err()
    };
    let cuts = (0..200).filter(is_damaged).count();
    let lied = before.lie(&events, true);
    let lost = |lost| Some(case.goes_on_from(&before.without(&lied, lost)?, false));
    let names: Vec<_> = (0..lied.len()).filter_map(lost).filter(std::result::Result::is_err).collect();
    println!("{cuts} of 200 cuts damage where files are not synced; without syncs of folders: {names:?}");
    assert!(cuts > 20 && !names.is_empty(), "{cuts}, {names:?}");
}

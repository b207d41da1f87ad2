//! Whole merges among faults: every call of the system fails in turn, and the power is cut at every moment.
//!
//! What is tried here by default is a part; `MERGEFORGE_FAULTS=all` tries all of it.

pub(crate) mod case;
pub(crate) mod power;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;

use case::{Case, Watching};

use crate::checkpoint::Reads;
use crate::error::Kind;
use crate::files::Op;
use crate::files::disk::Disk;
use crate::files::faulty::{all, faults, files, pipe};
use crate::files::hook::{Fault, Hooked, Planted};
use crate::parts;

#[derive(Debug, Default)]
struct Counts {
    tried: usize,
    /// Merges that ended well all the same.
    succeeded: usize,
    /// Merges that went on with what an earlier one had left.
    gone_on: usize,
    /// Merges after which the same command gave the same bytes.
    equal: usize,
}

impl Case {
    /// Lets a call go wrong in a merge that finds what is on the disk, and looks at what is left.
    fn survives(
        &self,
        (hooked, before): (&Hooked, &Disk),
        planted: Planted,
        must_succeed: bool,
        counts: &mut Counts,
    ) -> std::result::Result<(), String> {
        before.write(&self.disk());
        hooked.plant(Some(planted));
        let (watching, result) = self.merge_with(Watching::default());
        let hits = hooked.hits();
        hooked.plant(None);
        if hits.is_empty() {
            return Ok(());
        }
        counts.tried += 1;
        counts.gone_on += usize::from(watching.has_gone_on());
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
                let models = self.root.join("models");
                if planted.fault == Fault::Error(Errno::IO)
                    && hits.iter().all(|hit| hit.starts_with(&models))
                    && error.exit_code() != 8
                {
                    return Err(format!("it would not be tried again: {error}"));
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
    let finish = || parts::finish(&case.out(), false, 1, &Watching::default()).map(drop);
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
        case.ends_well(&finish)
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

/// Who finds shards that were moved has to know that nobody is at work there.
#[test]
fn parts_stay_where_they_are_where_the_file_system_has_no_locks() {
    let case = Case::new(1, Reads::Copied, false);
    (1..=2).for_each(|number| case.part(number).unwrap());
    let before = files(&case.disk());
    let hooked = Hooked::on(&case.disk());
    hooked.plant(Some(Planted { op: Op::Lock, call: 0, fault: Fault::Error(Errno::NOTSUP), lasts: true }));
    let refusal = parts::finish(&case.out(), false, 1, &Watching::default()).map(drop).unwrap_err();
    hooked.plant(None);
    assert_eq!(refusal.exit_code(), 2);
    assert!(refusal.message.contains("out.partial: its file system has no locks"), "{refusal}");
    assert!(refusal.hint.unwrap().contains("mount it with locks"));
    assert!(files(&case.disk()) == before, "something was moved");
    parts::finish(&case.out(), false, 1, &Watching::default()).unwrap();
    assert!(files(&case.out()) == case.expected);
}

/// What a merge leaves that is stopped when it has written so many bytes.
fn stopped(case: &Case, bytes: u64) -> Disk {
    let leaves = || {
        case.clear();
        let (_, result) = case.merge_with(Watching::stopping_after(bytes));
        assert_eq!(result.unwrap_err().kind, Kind::Interrupted);
        case.partial().exists()
    };
    // With several threads less may be finished than is written.
    assert!((0..20).any(|_| leaves()), "nothing is left");
    assert!(case.partial().join("model-00001-of-00002.safetensors").exists());
    Disk::read(&case.disk()).0
}

#[test]
fn a_merge_survives_any_call_that_fails() {
    let (mut counts, mut problems) = (Counts::default(), Vec::new());
    // Space is taken on disks alone.
    for (threads, reads, on_disk, goes_on) in [
        (1, Reads::Mapped, false, false),
        (2, Reads::Copied, false, false),
        (1, Reads::Copied, false, true),
        (1, Reads::Direct, true, false),
    ] {
        let case = Case::new(threads, reads, on_disk);
        let before = if goes_on { stopped(&case, 12_000) } else { Disk::read(&case.disk()).0 };
        let hooked = Hooked::on(&case.root);
        before.write(&case.disk());
        case.merge().unwrap();
        let calls = hooked.calls();
        let mut turn = 0;
        for (op, count) in calls.iter().filter(|(op, _)| !on_disk || **op == Op::TakeSpace) {
            for (fault, lasts, must_succeed) in faults(*op) {
                for call in 0..*count {
                    turn += 1;
                    if all() || on_disk || turn % 19 == 0 {
                        let planted = Planted { op: *op, call, fault, lasts };
                        let on = (&hooked, &before);
                        let survived = case.survives(on, planted, must_succeed, &mut counts);
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
    assert!(counts.gone_on > 20, "{counts:?}");
}

/// How long a slow call takes: some hundred times what it takes in memory.
const SLOW: Duration = Duration::from_millis(2);

#[test]
fn on_a_slow_disk_nothing_but_the_time_differs() {
    let (mut tried, mut slow) = (0, 0);
    for goes_on in [false, true] {
        let case = Case::new(2, Reads::Copied, false);
        let before = if goes_on { stopped(&case, 12_000) } else { Disk::read(&case.disk()).0 };
        let hooked = Hooked::on(&case.root);
        before.write(&case.disk());
        case.merge().unwrap();
        for op in hooked.calls().into_keys() {
            before.write(&case.disk());
            hooked.plant(Some(Planted { op, call: 0, fault: Fault::Slow(SLOW), lasts: true }));
            case.merge().unwrap_or_else(|error| panic!("{op:?}: {error}"));
            slow += hooked.hits().len();
            hooked.plant(None);
            assert_eq!(case.whole(), Ok(true), "{op:?}");
            assert!(!case.partial().exists(), "{op:?}");
            tried += 1;
        }
    }
    println!("{tried} merges, {slow} slow calls");
    assert!(tried > 20 && slow > 500, "{tried}, {slow}");
}

#[test]
fn a_merge_that_is_stopped_waits_for_no_slow_disk() {
    let case = Case::new(2, Reads::Copied, false);
    let hooked = Hooked::on(&case.root.join("models"));
    // Of weights: how many other reads there are depends on no model's size.
    let reads = |run: &dyn Fn(), time: Duration| {
        case.clear();
        hooked.plant(Some(Planted { op: Op::Read, call: 0, fault: Fault::Slow(time), lasts: true }));
        run();
        hooked.hits().iter().filter(|hit| hit.extension().is_some_and(|end| end == "safetensors")).count()
    };
    let stop = |bytes| {
        let (_, result) = case.merge_with(Watching::stopping_after(bytes));
        assert_eq!(result.unwrap_err().kind, Kind::Interrupted);
    };
    let before = reads(&|| stop(0), Duration::ZERO);
    let all = reads(&|| case.merge().unwrap(), Duration::ZERO) - before;
    let stopped = reads(&|| stop(1), 5 * SLOW) - before;
    println!("{stopped} of {all} reads");
    assert!(stopped < all * 2 / 3, "{stopped} of {all}");
    assert!(!case.partial().exists() && !case.out().exists());
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

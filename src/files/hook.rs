//! What tests put between a merge and its files: faults, and a record of what was done.
//!
//! Tests run side by side in one process. So a hook belongs to a folder, and sees what happens in that alone.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use super::{Done, On, Op};

/// Those that are in use.
static HOOKS: RwLock<Vec<Arc<Hook>>> = RwLock::new(Vec::new());

/// How many there are: who has none to ask looks up no paths.
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// Orders what is recorded, over all hooks.
static CLOCK: AtomicUsize = AtomicUsize::new(0);

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The system says this.
    Error(rustix::io::Errno),
    /// Half of what is wanted is read or written.
    Short,
    /// It takes that long.
    Slow(Duration),
}

/// The calls of one kind that go wrong: from this one on, or this one alone.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Planted {
    pub(crate) op: Op,
    pub(crate) call: usize,
    pub(crate) fault: Fault,
    pub(crate) lasts: bool,
}

/// What comes between a merge and the files in a folder.
#[derive(Debug)]
pub(crate) struct Hook {
    folder: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    calls: BTreeMap<Op, usize>,
    planted: Vec<Planted>,
    /// What the calls that went wrong were about.
    hits: Vec<PathBuf>,
    /// The same of those before.
    last: Vec<PathBuf>,
    record: Option<Record>,
}

/// What changed what is on the disk, in order.
#[derive(Debug, Default)]
struct Record {
    /// What the numbers of the system stand for: they are given again to others.
    nodes: HashMap<u64, usize>,
    next: usize,
    events: Vec<Event>,
}

/// Something that changed what is on the disk.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    /// When.
    pub(crate) at: usize,
    pub(crate) what: What,
}

/// The same, by numbers of files and folders.
#[derive(Debug, Clone)]
pub(crate) enum What {
    Made {
        folder: usize,
        name: OsString,
        node: usize,
        kind: Made,
    },
    Wrote {
        file: usize,
        offset: u64,
        bytes: Vec<u8>,
    },
    SetSize {
        file: usize,
        bytes: u64,
    },
    /// All that happened before that time to a file, or to the entries of a folder, is on the disk.
    Synced {
        node: usize,
        before: usize,
    },
    /// From a name in one folder to a name in another, or in the same.
    Renamed {
        from: (usize, OsString),
        to: (usize, OsString),
        node: usize,
    },
    Removed {
        folder: usize,
        name: OsString,
    },
}

/// What was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Made {
    File,
    Folder,
    /// A link that says this.
    Link(PathBuf),
}

/// A hook in use, until this is dropped.
#[derive(Debug)]
pub(crate) struct Hooked(Arc<Hook>);

impl Hooked {
    /// Comes between a merge and the files in a folder, whose path has no links.
    pub(crate) fn on(folder: &Path) -> Self {
        let hook = Arc::new(Hook { folder: folder.into(), state: Mutex::default() });
        HOOKS.write().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&hook));
        COUNT.fetch_add(1, Ordering::SeqCst);
        Self(hook)
    }

    /// Lets calls go wrong, counted from now on.
    pub(crate) fn plant(&self, planted: impl IntoIterator<Item = Planted>) {
        let mut state = self.0.state();
        (state.calls, state.planted) = (BTreeMap::new(), planted.into_iter().collect());
        state.last = std::mem::take(&mut state.hits);
    }

    /// How many calls of each kind there were.
    pub(crate) fn calls(&self) -> BTreeMap<Op, usize> {
        self.0.state().calls.clone()
    }

    /// What the calls that went wrong were about.
    pub(crate) fn hits(&self) -> Vec<PathBuf> {
        self.0.state().hits.clone()
    }

    /// What the first call was about that went wrong before the last time that something was planted.
    pub(crate) fn last(&self) -> Option<PathBuf> {
        self.0.state().last.first().cloned()
    }

    /// Records what is done to these files and folders, which the system numbers so, and to what is made in them.
    pub(crate) fn record(&self, nodes: HashMap<u64, usize>) {
        let next = nodes.values().max().map_or(0, |last| last + 1);
        self.0.state().record = Some(Record { nodes, next, events: Vec::new() });
    }

    /// What was recorded.
    pub(crate) fn recorded(&self) -> Vec<Event> {
        self.0.state().record.take().map_or_else(Vec::new, |record| record.events)
    }
}

impl Drop for Hooked {
    fn drop(&mut self) {
        COUNT.fetch_sub(1, Ordering::SeqCst);
        HOOKS.write().unwrap_or_else(PoisonError::into_inner).retain(|hook| !Arc::ptr_eq(hook, &self.0));
    }
}

impl Hook {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where an open file or folder lies by now.
fn path_of(handle: BorrowedFd<'_>) -> Option<PathBuf> {
    let path = std::fs::read_link(format!("/proc/self/fd/{}", handle.as_raw_fd())).ok()?;
    let text = path.to_str()?;
    Some(text.strip_suffix(" (deleted)").unwrap_or(text).into())
}

impl On<'_> {
    fn path(&self) -> Option<PathBuf> {
        match self {
            On::Path(path) => Some((*path).to_path_buf()),
            On::In(folder, name) => Some(path_of(folder.0.as_fd())?.join(name)),
            On::Folder(folder) => path_of(folder.0.as_fd()),
            On::File(file) => path_of(file.as_fd()),
        }
    }
}

fn hook_of(on: On<'_>) -> Option<(Arc<Hook>, PathBuf)> {
    if COUNT.load(Ordering::SeqCst) == 0 {
        return None;
    }
    let path = on.path()?;
    let hooks = HOOKS.read().unwrap_or_else(PoisonError::into_inner);
    let hook = hooks.iter().find(|hook| path.starts_with(&hook.folder))?;
    Some((Arc::clone(hook), path))
}

/// Before something is asked of the system: about how many bytes it is asked, or what is said in its place.
pub(super) fn asked(op: Op, on: On<'_>, bytes: usize) -> io::Result<usize> {
    let Some((hook, path)) = hook_of(on) else { return Ok(bytes) };
    let mut state = hook.state();
    let calls = state.calls.entry(op).or_default();
    let call = *calls;
    *calls += 1;
    let goes_wrong = |planted: &Planted| {
        planted.op == op && (call == planted.call || planted.lasts && call > planted.call)
    };
    let Some(planted) = state.planted.iter().copied().find(goes_wrong) else { return Ok(bytes) };
    state.hits.push(path);
    // Others are not kept waiting.
    drop(state);
    match planted.fault {
        Fault::Error(cause) => Err(cause.into()),
        Fault::Short => Ok(bytes.div_ceil(2)),
        Fault::Slow(time) => {
            std::thread::sleep(time);
            Ok(bytes)
        }
    }
}

/// The time.
pub(super) fn now() -> usize {
    CLOCK.load(Ordering::SeqCst)
}

/// After something was done.
pub(super) fn done(done: &Done<'_>) {
    let on = match done {
        Done::Made(on) | Done::MadeFolder(on) | Done::Removed(on) | Done::Renamed(on, _) => *on,
        Done::Wrote(file, ..) | Done::SetSize(file, _) | Done::Synced(file, _) => On::File(file),
        Done::SyncedFolder(folder, _) => On::Folder(folder),
    };
    let Some((hook, path)) = hook_of(on) else { return };
    let mut state = hook.state();
    let Some(record) = &mut state.record else { return };
    if let Some(what) = record.what(done, &path) {
        let at = CLOCK.fetch_add(1, Ordering::SeqCst);
        record.events.push(Event { at, what });
    }
}

impl Record {
    fn known(&self, number: u64) -> Option<usize> {
        self.nodes.get(&number).copied()
    }

    fn of_file(&self, file: &std::fs::File) -> Option<usize> {
        self.known(file.metadata().ok()?.ino())
    }

    /// What was done, if it was done to something that is known.
    fn what(&mut self, done: &Done<'_>, path: &Path) -> Option<What> {
        let number = |path: &Path| Some(std::fs::symlink_metadata(path).ok()?.ino());
        let folder = |record: &Self| record.known(number(path.parent()?)?);
        let name = || Some(path.file_name()?.to_os_string());
        Some(match done {
            Done::Made(_) | Done::MadeFolder(_) => {
                let (folder, node) = (folder(self)?, self.next);
                self.nodes.insert(number(path)?, node);
                self.next += 1;
                let kind = match (done, std::fs::read_link(path)) {
                    (Done::MadeFolder(_), _) => Made::Folder,
                    (_, Ok(target)) => Made::Link(target),
                    _ => Made::File,
                };
                What::Made { folder, name: name()?, node, kind }
            }
            Done::Wrote(file, offset, bytes) => {
                use std::io::Seek;
                let behind = |mut file: &std::fs::File| file.stream_position().ok();
                let offset = match offset {
                    Some(offset) => *offset,
                    None => behind(file)? - bytes.len() as u64,
                };
                What::Wrote { file: self.of_file(file)?, offset, bytes: bytes.to_vec() }
            }
            Done::SetSize(file, bytes) => What::SetSize { file: self.of_file(file)?, bytes: *bytes },
            Done::Synced(file, before) => What::Synced { node: self.of_file(file)?, before: *before },
            Done::SyncedFolder(_, before) => {
                What::Synced { node: self.known(number(path)?)?, before: *before }
            }
            Done::Renamed(_, from) => {
                let from = from.path()?;
                let from_folder = self.known(number(from.parent()?)?)?;
                What::Renamed {
                    from: (from_folder, from.file_name()?.to_os_string()),
                    to: (folder(self)?, name()?),
                    node: self.known(number(path)?)?,
                }
            }
            Done::Removed(_) => What::Removed { folder: folder(self)?, name: name()? },
        })
    }
}

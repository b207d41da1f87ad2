//! The open files of all inputs, no more at once than leaves this process room for others.
//!
//! An average of many checkpoints reads from more files than some systems let a process open. Each file is opened when it is
//! read; where there is no room, the file whose last use is longest ago is closed, and opened again when it is read again. Who
//! opens it checks that it is the same one.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use super::file::open_files_max;
use crate::error::Result;
use crate::files::File;

/// A file that is open.
#[derive(Debug)]
pub(super) struct Handles {
    /// For reads through the page cache.
    pub(super) file: File,
    /// For reads past it, once they were wanted; `None` inside where they are not possible.
    direct: OnceLock<Option<File>>,
}

impl Handles {
    /// The handle for reads past the page cache, where they are possible.
    pub(super) fn direct(&self) -> Option<&File> {
        self.direct.get_or_init(|| self.file.direct()).as_ref()
    }
}

/// The handles of one file, while it is open.
#[derive(Debug, Default)]
pub(super) struct Slot {
    handles: Mutex<Option<Arc<Handles>>>,
    /// When it was used last, in uses of all files.
    used: AtomicU64,
}

/// Those that are open.
static OPEN: Mutex<Vec<Weak<Slot>>> = Mutex::new(Vec::new());

/// Uses of all files so far.
static USES: AtomicU64 = AtomicU64::new(0);

impl Slot {
    /// The handles of the file, which `open` opens where it is not open. They stay open while somebody has them.
    ///
    /// # Errors
    /// Those of `open`.
    pub(super) fn get(self: &Arc<Self>, open: impl FnOnce() -> Result<File>) -> Result<Arc<Handles>> {
        self.used.store(USES.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
        if let Some(handles) = &*lock(&self.handles) {
            return Ok(Arc::clone(handles));
        }
        make_room(most());
        let handles = Arc::new(Handles { file: open()?, direct: OnceLock::new() });
        let mut own = lock(&self.handles);
        // Where two threads came here at once, the handles of one stay.
        if let Some(others) = &*own {
            return Ok(Arc::clone(others));
        }
        *own = Some(Arc::clone(&handles));
        drop(own);
        lock(&OPEN).push(Arc::downgrade(self));
        Ok(handles)
    }
}

/// The most files that are open at once. Each may have two handles, and some are left for the output, devices and folders: half
/// of a small number, and not more than an output of many shards takes.
fn most() -> usize {
    /// What is left for others where the system permits many.
    const OTHERS_MAX: usize = 512;
    static MOST: OnceLock<usize> = OnceLock::new();
    *MOST.get_or_init(|| {
        let all = open_files_max();
        ((all - OTHERS_MAX.min(all / 2)) / 2).max(1)
    })
}

/// The most handles of inputs that are open at once.
pub fn open_files_of_inputs_max() -> usize {
    2 * most()
}

/// Closes the files that were not used for longest, until there is room for one more among so many.
pub(super) fn make_room(most: usize) {
    let mut open = lock(&OPEN);
    if open.len() < most {
        return;
    }
    open.retain(|slot| slot.strong_count() > 0);
    while open.len() >= most {
        let used = |slot: &Weak<Slot>| slot.upgrade().map_or(0, |slot| slot.used.load(Ordering::Relaxed));
        let oldest = (0..open.len()).min_by_key(|place| used(&open[*place])).expect("one is open");
        if let Some(slot) = open.swap_remove(oldest).upgrade() {
            *lock(&slot.handles) = None;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn a_file_is_opened_again_where_it_was_closed_for_others() {
        let file = || Ok(tempfile::tempfile().unwrap().into());
        let refused = || Err(Error::input("opened once more"));
        let (first, second): (Arc<Slot>, Arc<Slot>) = Default::default();
        let held = first.get(file).unwrap();
        second.get(file).unwrap();
        assert!(Arc::ptr_eq(&held, &first.get(refused).unwrap()), "it is open");
        // Of all tests that run beside this one too.
        make_room(1);
        assert!(first.get(refused).is_err() && second.get(refused).is_err());
        held.file.metadata().expect("whoever has a file keeps it open");
    }
}

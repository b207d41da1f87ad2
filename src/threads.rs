//! Work shared by as many threads as the system gives, each of which stays near its memory.

use std::cell::RefCell;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::Builder;

pub use nodes::{Nodes, Stay};

thread_local! {
    static STOP: RefCell<Arc<AtomicBool>> = RefCell::default();
}

/// From now on this thread works for somebody who sets this to stop it, and so do those that it [shares](share) its work with.
pub fn stop_with(sign: &Arc<AtomicBool>) {
    STOP.set(Arc::clone(sign));
}

/// What is set when this thread should stop: whoever may wait for long, like for a server, looks at it.
pub fn stop_sign() -> Arc<AtomicBool> {
    STOP.with_borrow(Arc::clone)
}

/// Runs `work(0)` on the calling thread, and `work(1)` to `work(workers - 1)` on threads of their own. Where a thread cannot be
/// started (a limit on processes or on memory), those that there are do the work. Returns how many there were, at least 1.
///
/// # Panics
/// When `work` does.
pub fn share(workers: usize, work: impl Fn(usize) + Sync) -> usize {
    let sign = &stop_sign();
    std::thread::scope(|scope| {
        let work = &work;
        let started = (1..workers)
            .take_while(|worker| {
                let worker = *worker;
                let own = move || {
                    stop_with(sign);
                    work(worker);
                };
                Builder::new().spawn_scoped(scope, own).is_ok()
            })
            .count();
        work(0);
        started + 1
    })
}

/// What a function makes of each number below `count`, in their order: as many threads as [`share`] gives take one after the other.
///
/// # Panics
/// When `of` does.
pub fn each<T: Send + Sync>(workers: usize, count: usize, of: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let made: Vec<OnceLock<T>> = (0..count).map(|_| OnceLock::new()).collect();
    let next = AtomicUsize::new(0);
    share(workers.min(count), |_| {
        loop {
            let place = next.fetch_add(1, Ordering::Relaxed);
            let Some(room) = made.get(place) else { return };
            room.get_or_init(|| of(place));
        }
    });
    made.into_iter().map(|room| room.into_inner().expect("every one was taken once")).collect()
}

impl Nodes {
    /// Those of this machine.
    pub fn of_machine() -> Self {
        Self::listed_in(Path::new("/sys/devices/system/node"))
    }
}

/// Machines with several sockets have memory on each: a thread that is moved to another one's processors leaves its buffers behind.
#[cfg(target_os = "linux")]
mod nodes {
    use std::fs;
    use std::path::Path;

    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

    /// The nodes of memory with processors that this process may use; none where there is but one.
    #[derive(Debug)]
    pub struct Nodes(Vec<CpuSet>);

    /// A thread that stays at a node until this is dropped.
    #[derive(Debug)]
    pub struct Stay(Option<CpuSet>);

    impl Nodes {
        /// Those of a folder like the system's, `nodeN/cpulist` for each.
        pub(super) fn listed_in(folder: &Path) -> Self {
            let Ok(allowed) = sched_getaffinity(None) else { return Self(Vec::new()) };
            let node = |number: usize| {
                let list = fs::read_to_string(folder.join(format!("node{number}/cpulist"))).ok()?;
                let mut own = CpuSet::new();
                processors(&list).filter(|cpu| allowed.is_set(*cpu)).for_each(|cpu| own.set(cpu));
                (own.count() > 0).then_some(own)
            };
            // Numbers may be left out.
            let nodes: Vec<CpuSet> = (0..NODES_MAX).filter_map(node).collect();
            Self(if nodes.len() > 1 { nodes } else { Vec::new() })
        }

        /// Keeps the calling thread to the processors of a node; workers take the nodes in turn. What it fills first then lies there.
        pub fn stay(&self, worker: usize) -> Stay {
            let before = || sched_getaffinity(None).ok();
            let stays = |own: &CpuSet| before().filter(|_| sched_setaffinity(None, own).is_ok());
            Stay(self.0.get(worker % self.0.len().max(1)).and_then(stays))
        }
    }

    impl Drop for Stay {
        fn drop(&mut self) {
            if let Some(before) = self.0 {
                // The thread goes on wherever it is.
                let _ = sched_setaffinity(None, &before);
            }
        }
    }

    /// More sockets than any machine has.
    const NODES_MAX: usize = 64;

    /// The numbers of a list like `0-3,8,10-11`.
    fn processors(list: &str) -> impl Iterator<Item = usize> {
        let range = |part: &str| {
            let (low, high) = part.split_once('-').unwrap_or((part, part));
            Some(low.parse().ok()?..=high.parse().ok()?)
        };
        list.trim().split(',').filter_map(range).flatten().filter(|cpu| *cpu < CpuSet::MAX_CPU)
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        fn allowed() -> Vec<usize> {
            let set = sched_getaffinity(None).unwrap();
            (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect()
        }

        fn nodes(lists: &[&str]) -> Nodes {
            let folder = tempfile::tempdir().unwrap();
            for (number, list) in lists.iter().enumerate() {
                // The second one has no memory, and is not listed.
                let node = folder.path().join(format!("node{}", number + usize::from(number > 0)));
                fs::create_dir(&node).unwrap();
                fs::write(node.join("cpulist"), format!("{list}\n")).unwrap();
            }
            Nodes::listed_in(folder.path())
        }

        #[test]
        fn threads_stay_at_nodes_in_turn_and_are_free_again() {
            let all = allowed();
            let texts: Vec<String> = all.iter().map(ToString::to_string).collect();
            let (first, others) = texts.split_first().unwrap();
            let nodes = nodes(&[first, &others.join(",")]);
            // A single processor makes a single node.
            assert_eq!(nodes.0.len(), if others.is_empty() { 0 } else { 2 });
            for (worker, expected) in [(0, &all[..1]), (1, &all[1..]), (2, &all[..1])] {
                let stay = nodes.stay(worker);
                assert_eq!(allowed(), if others.is_empty() { &all[..] } else { expected });
                drop(stay);
                assert_eq!(allowed(), all);
            }
        }

        #[test]
        fn one_node_and_processors_of_others_change_nothing() {
            let all = allowed();
            for lists in [&["0-1023"][..], &["0-1023", "9999"], &["0-1023", ""], &[], &["?", "1-"]] {
                let nodes = nodes(lists);
                assert!(nodes.0.is_empty(), "{lists:?}");
                let _stay = nodes.stay(3);
                assert_eq!(allowed(), all);
            }
            assert_eq!(processors("0-3,8,10-11\n").collect::<Vec<_>>(), [0, 1, 2, 3, 8, 10, 11]);
        }
    }
}

/// Elsewhere the system is left to it.
#[cfg(not(target_os = "linux"))]
mod nodes {
    use std::path::Path;

    /// None are known.
    #[derive(Debug)]
    pub struct Nodes;

    /// Nothing.
    #[derive(Debug)]
    pub struct Stay;

    impl Nodes {
        pub(super) fn listed_in(_folder: &Path) -> Self {
            Self
        }

        /// Changes nothing.
        pub fn stay(&self, _worker: usize) -> Stay {
            Stay
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[test]
    fn every_worker_works_once() {
        let seen = Mutex::new(Vec::new());
        assert_eq!(share(4, |worker| seen.lock().unwrap().push(worker)), 4);
        let mut seen = seen.into_inner().unwrap();
        seen.sort_unstable();
        assert_eq!(seen, [0, 1, 2, 3]);
        assert_eq!(share(0, |worker| assert_eq!(worker, 0)), 1);
    }

    #[test]
    fn who_shares_work_is_stopped_with_who_began_it() {
        let sign = Arc::default();
        stop_with(&sign);
        let others = each(3, 3, |_| stop_sign());
        assert!(others.iter().all(|other| Arc::ptr_eq(other, &sign)));
        std::thread::spawn(move || assert!(!Arc::ptr_eq(&sign, &stop_sign()))).join().unwrap();
    }

    #[test]
    fn what_is_made_of_each_number_is_in_its_place() {
        let asked = AtomicUsize::new(0);
        let squares = each(3, 100, |number| {
            asked.fetch_add(1, Ordering::Relaxed);
            number * number
        });
        assert_eq!(squares, (0..100).map(|number| number * number).collect::<Vec<_>>());
        assert_eq!(asked.into_inner(), 100);
        assert!(each(3, 0, |number| number).is_empty());
    }
}

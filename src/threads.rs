//! Work shared by as many threads as the system gives.

use std::thread::Builder;

/// Runs `work(0)` on the calling thread, and `work(1)` to `work(workers - 1)` on threads of their own. Where a thread cannot be
/// started (a limit on processes or on memory), those that there are do the work. Returns how many there were, at least 1.
///
/// # Panics
/// When `work` does.
pub fn share(workers: usize, work: impl Fn(usize) + Sync) -> usize {
    std::thread::scope(|scope| {
        let work = &work;
        let started = (1..workers)
            .take_while(|worker| {
                let worker = *worker;
                Builder::new().spawn_scoped(scope, move || work(worker)).is_ok()
            })
            .count();
        work(0);
        started + 1
    })
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
}

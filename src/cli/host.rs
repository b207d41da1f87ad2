//! Who hears of a command: the person who started the program, or a program that calls a command within its own process.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::error::Error;
use crate::threads;

/// A program that calls commands within its own process, where nothing is printed and Ctrl-C is its own.
pub trait Host: Send + Sync {
    /// A warning or a note, as `level` says.
    fn said(&self, level: &str, message: &Error);
    /// What would go to standard output.
    fn found(&self, data: &str);
    /// So many bytes of so many are downloaded or written. Any thread may call it.
    fn advanced(&self, done: u64, total: u64);
    /// What is set when the command should stop.
    fn stop_sign(&self) -> Arc<AtomicBool>;
}

thread_local! {
    static HOST: RefCell<Option<Arc<dyn Host>>> = const { RefCell::new(None) };
}

/// The program that calls the command which this thread carries out.
pub(super) fn current() -> Option<Arc<dyn Host>> {
    HOST.with_borrow(Clone::clone)
}

/// Carries out a command on this thread for a host.
pub(super) fn with<T>(host: &Arc<dyn Host>, command: impl FnOnce() -> T) -> T {
    /// Whoever was the host before is so again, also after a panic.
    struct Before(Option<Arc<dyn Host>>);
    impl Drop for Before {
        fn drop(&mut self) {
            HOST.set(self.0.take());
        }
    }
    let _before = Before(HOST.replace(Some(Arc::clone(host))));
    threads::stop_with(&host.stop_sign());
    command()
}

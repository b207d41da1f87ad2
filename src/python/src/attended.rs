//! Work that Python waits for: the work is done on a thread of its own, while the thread that asked for it hears signals, passes on
//! what is said, and calls the user's function of progress.

use std::any::Any;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Thread};
use std::time::Duration;

use mergeforge::cli::Host;
use mergeforge::error::{About, Error, Result};
use pyo3::prelude::*;

/// Time from one look at signals and progress to the next.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What was heard of the work and is not passed on yet.
#[derive(Debug, Default)]
struct Heard {
    said: Mutex<Vec<(String, Error)>>,
    found: Mutex<String>,
    done: AtomicU64,
    total: AtomicU64,
    stop: Arc<AtomicBool>,
}

/// What a lock protects is whole whoever panicked.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Host for Heard {
    fn said(&self, level: &str, message: &Error) {
        locked(&self.said).push((level.to_owned(), message.clone()));
    }

    fn found(&self, data: &str) {
        data.clone_into(&mut locked(&self.found));
    }

    fn advanced(&self, done: u64, total: u64) {
        self.total.store(total, Ordering::Relaxed);
        // Threads come in any order.
        self.done.fetch_max(done, Ordering::Relaxed);
    }

    fn stop_sign(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.stop)
    }
}

/// Wakes whoever waits, when the work is over however it ended.
struct Over<'a>(&'a AtomicBool, Thread);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
        self.1.unpark();
    }
}

/// Does the work with Python's lock released, and returns what came of it and what it found. `said` is called with each warning and
/// note (level, message, hint), `progress` with the bytes written and those to write.
///
/// # Errors
/// The work's own; or that of a signal's handler, of `said` or of `progress`, after which the work was asked to stop and has ended.
pub fn attended<T: Send>(
    py: Python<'_>,
    said: &Bound<'_, PyAny>,
    progress: Option<&Bound<'_, PyAny>>,
    work: impl FnOnce(&Arc<dyn Host>) -> Result<T> + Send,
) -> PyResult<(T, String)> {
    let heard = Arc::new(Heard::default());
    let host: Arc<dyn Host> = heard.clone();
    let over = AtomicBool::new(false);
    let mut reported = None;
    let mut attend = |py: Python<'_>| -> PyResult<()> {
        py.check_signals()?;
        let messages = std::mem::take(&mut *locked(&heard.said));
        for (level, Error { message, hint, .. }) in messages {
            said.call1((level, message, hint))?;
        }
        let now = (heard.done.load(Ordering::Relaxed), heard.total.load(Ordering::Relaxed));
        if let Some(progress) = progress.filter(|_| now.1 > 0 && reported != Some(now)) {
            reported = Some(now);
            progress.call1(now)?;
        }
        Ok(())
    };
    let (outcome, failure) = thread::scope(|scope| {
        let here = thread::current();
        let worker = scope.spawn(|| {
            let _over = Over(&over, here);
            work(&host)
        });
        let mut failure: Option<PyErr> = None;
        while !over.load(Ordering::Acquire) {
            py.detach(|| thread::park_timeout(LOOK_EVERY));
            if failure.is_none()
                && let Err(why) = attend(py)
            {
                failure = Some(why);
                heard.stop.store(true, Ordering::Relaxed);
            }
        }
        (py.detach(|| worker.join()), failure)
    });
    if let Some(failure) = failure {
        return Err(failure);
    }
    // What was said and done at the very end. A failure of the work counts more than one of whoever hears of it.
    let heard_of = attend(py);
    match outcome {
        Ok(Ok(value)) => heard_of.map(|()| (value, std::mem::take(&mut *locked(&heard.found)))),
        Ok(Err(error)) => Err(raised(py, error)),
        Err(panic) => Err(broken(py, &*panic)),
    }
}

/// A panic as the package's exception.
fn broken(py: Python<'_>, panic: &(dyn Any + Send)) -> PyErr {
    let message =
        panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref().copied());
    let made = || py.import("mergeforge._errors")?.getattr("broken")?.call1((message.unwrap_or("a panic"),));
    made().map_or_else(|failure| failure, PyErr::from_value)
}

/// An error as the package's exception of its kind.
pub fn raised(py: Python<'_>, error: Error) -> PyErr {
    let fields = |error: Error| {
        let exit_code = error.exit_code();
        let (line, column) = match error.about {
            // Of a config without a name, places are nobody's.
            About::Place(line, column) if error.file.is_some() => (Some(line), Some(column)),
            _ => (None, None),
        };
        (error.kind.name(), error.message, error.hint, error.file.map(String::from), line, column, exit_code)
    };
    let problems: Vec<_> = error.one_by_one().into_iter().map(fields).collect();
    let made = || py.import("mergeforge._errors")?.getattr("of")?.call1((problems,));
    match made() {
        Ok(error) => PyErr::from_value(error),
        Err(failure) => failure,
    }
}

//! The kernels that ship in the program, as PTX: text that the driver compiles for whatever device there is.
//!
//! It compiles entry by entry, because a whole file holds many more than a merge needs: of `consensus` one in twenty. Those
//! that a merge is known to need are compiled at once, by several threads, before it begins; others when they are first
//! launched. The driver remembers on disk what it has compiled.

use std::collections::HashMap;
use std::hash::Hash;
use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, Builder};
use std::time::Duration;

use super::driver::{Context, Function, Module};
use super::ptx;
use crate::backend::gpu::lock;
use crate::backend::table::Entry;
use crate::dtype::Float;
use crate::error::{Error, Result};
use crate::kernel::Kernel;
use crate::threads;

/// Kernels that the driver has on its disk take some milliseconds. A user who waits for longer hears why.
const SLOW_AFTER: Duration = Duration::from_millis(500);

/// Kernels that have been asked for.
#[derive(Debug, Default)]
pub(super) struct LoadedKernels(OncePerKey<Entry, Loaded>);

/// An entry, which lives as long as its module.
#[derive(Debug)]
struct Loaded {
    function: Function,
    _module: Module,
}

impl LoadedKernels {
    /// The kernel of an entry, compiled if it was not before.
    ///
    /// # Errors
    /// Kind `Device`: the driver cannot compile it.
    pub(super) fn get(&self, entry: &Entry) -> Result<Function> {
        self.0.get(entry, || Loaded::new(entry), |loaded| loaded.function)
    }

    /// Compiles entries, several at a time; calls `slow` if that takes a while.
    ///
    /// # Errors
    /// As [`LoadedKernels::get`].
    pub(super) fn prepare(
        &self,
        mut entries: Vec<Entry>,
        context: &Context,
        slow: &(dyn Fn() + Sync),
    ) -> Result<()> {
        // The longest first, so that no thread is left alone with it.
        entries.sort_by_cached_key(|entry| std::cmp::Reverse(text_of(entry).len()));
        let workers = thread::available_parallelism().map_or(1, NonZero::get).min(entries.len());
        let (next, failure) = (AtomicUsize::new(0), Mutex::new(None));
        let compile = || -> Result<()> {
            context.bind()?;
            while let Some(entry) = entries.get(next.fetch_add(1, Ordering::Relaxed)) {
                self.get(entry)?;
            }
            Ok(())
        };
        thread::scope(|scope| {
            let (_done, all_done) = channel::<()>();
            // Where the thread cannot be started nobody hears of it, and nothing else is lost.
            let _ = Builder::new().spawn_scoped(scope, move || {
                if all_done.recv_timeout(SLOW_AFTER) == Err(RecvTimeoutError::Timeout) {
                    slow();
                }
            });
            threads::share(workers, |_| {
                if let Err(failed) = compile() {
                    next.store(entries.len(), Ordering::Relaxed);
                    lock(&failure).get_or_insert(failed);
                }
            });
        });
        failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err::<(), Error>)
    }
}

impl Loaded {
    fn new(entry: &Entry) -> Result<Self> {
        let name = name_of(entry);
        let module = Module::new(&name, &text_of(entry))?;
        Ok(Self { function: module.kernel(&name)?, _module: module })
    }
}

/// The text that the driver gets for an entry.
fn text_of(entry: &Entry) -> String {
    let Entry { kernel: Kernel { ptx, .. }, .. } = entry;
    ptx::cut(ptx.text, &name_of(entry)).expect("a kernel has all its entries")
}

/// The name of an entry in its file.
fn name_of(Entry { kernel, models, float }: &Entry) -> String {
    let float = float.map_or("mixed", Float::name);
    match *models {
        0 => format!("{kernel}_{float}"),
        models => format!("{kernel}_{models}_{float}"),
    }
}

/// Values that are made when they are first asked for, once each. Who wants one that is being made waits for it, and for no
/// other.
#[derive(Debug)]
struct OncePerKey<K, V>(Mutex<HashMap<K, Arc<Mutex<Option<V>>>>>);

impl<K, V> Default for OncePerKey<K, V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash + Clone, V> OncePerKey<K, V> {
    /// What `show` gives of a key's value. One that could not be made is tried again.
    fn get<T>(&self, key: &K, make: impl FnOnce() -> Result<V>, show: impl FnOnce(&V) -> T) -> Result<T> {
        let place = Arc::clone(lock(&self.0).entry(key.clone()).or_default());
        let mut value = lock(&place);
        if let Some(value) = &*value {
            return Ok(show(value));
        }
        Ok(show(value.insert(make()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::KERNELS;

    /// All that a table can ask for.
    fn entries() -> impl Iterator<Item = Entry> {
        let floats = [Some(Float::F32), Some(Float::F16), Some(Float::BF16), None];
        KERNELS.iter().flat_map(move |kernel| {
            let models = 0..=kernel.ptx.models;
            models.flat_map(move |models| floats.map(|float| Entry { kernel, models, float }))
        })
    }

    #[test]
    fn every_entry_is_cut_with_all_that_it_calls() {
        let words =
            |line: &str| line.split([' ', '\t', ',', '(', ')', ';']).map(String::from).collect::<Vec<_>>();
        for entry in entries() {
            let (name, text) = (name_of(&entry), text_of(&entry));
            let of = |directive| -> Vec<Vec<String>> {
                text.lines().filter(|line| line.contains(directive)).map(words).collect()
            };
            let entries = of(".entry ");
            assert!(entries.len() == 1 && entries[0].contains(&name), "{name}: {entries:?}");
            let defined = of(".func ").concat();
            // A call names its function in the line after it, behind what it returns if it returns something.
            let called: Vec<String> = text
                .lines()
                .enumerate()
                .filter(|(_, line)| line.contains("call"))
                .flat_map(|(at, _)| text.lines().skip(at).take(3).flat_map(words))
                .filter(|word| word.starts_with("_Z"))
                .collect();
            assert!(called.iter().all(|called| defined.contains(called)), "{name} calls {called:?}");
        }
    }

    #[test]
    fn who_wants_the_same_waits_and_who_wants_another_does_not() {
        let (values, counted) = (OncePerKey::default(), AtomicUsize::new(0));
        let (begun, has_begun) = channel();
        let (other_done, is_other_done) = channel();
        thread::scope(|scope| {
            let (values, counted) = (&values, &counted);
            let first = scope.spawn(move || {
                let make = || {
                    begun.send(()).unwrap();
                    // Long before this, the other one is there.
                    is_other_done.recv_timeout(Duration::from_mins(1)).expect("another key waits for nobody");
                    counted.fetch_add(1, Ordering::Relaxed);
                    Ok(7)
                };
                values.get(&"slow", make, |value| *value).unwrap()
            });
            has_begun.recv().unwrap();
            let same = scope.spawn(move || {
                let make = || Ok(counted.fetch_add(1, Ordering::Relaxed));
                values.get(&"slow", make, |value| *value).unwrap()
            });
            assert_eq!(values.get(&"quick", || Ok(1), |value| *value), Ok(1));
            other_done.send(()).unwrap();
            assert_eq!((first.join().unwrap(), same.join().unwrap()), (7, 7));
        });
        assert_eq!(counted.into_inner(), 1);
        let failed = values.get(&"failing", || Err(Error::device("no")), |value| *value);
        assert_eq!(failed, Err(Error::device("no")));
        assert_eq!(values.get(&"failing", || Ok(3), |value| *value), Ok(3));
    }
}

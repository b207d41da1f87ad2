//! The kernels that ship in the program, as PTX: text that the driver compiles for whatever device there is.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use super::driver::{Function, Module};
use crate::backend::table::Entry;
use crate::dtype::Float;
use crate::error::Result;

/// Kernels that have been asked for. The driver compiles a file's when the first of them is, and remembers them on disk.
#[derive(Debug, Default)]
pub(super) struct LoadedKernels(Mutex<Loaded>);

#[derive(Debug, Default)]
struct Loaded {
    kernels: HashMap<Entry, Function>,
    modules: HashMap<&'static str, Module>,
}

impl LoadedKernels {
    pub(super) fn get(&self, entry: &Entry) -> Result<Function> {
        let mut loaded = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kernel) = loaded.kernels.get(entry) {
            return Ok(*kernel);
        }
        let name = entry.kernel.name;
        if !loaded.modules.contains_key(name) {
            loaded.modules.insert(name, Module::new(name, entry.kernel.ptx.text)?);
        }
        let kernel = loaded.modules[name].kernel(&name_of(entry))?;
        loaded.kernels.insert(*entry, kernel);
        Ok(kernel)
    }
}

/// The name of an entry in its file.
fn name_of(Entry { kernel, models, float }: &Entry) -> String {
    let float = float.map_or("mixed", Float::name);
    match *models {
        0 => format!("{kernel}_{float}"),
        models => format!("{kernel}_{models}_{float}"),
    }
}

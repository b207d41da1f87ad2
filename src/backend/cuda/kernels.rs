//! The kernels that ship in the program, as PTX: text that the driver compiles for whatever device there is.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use super::driver::{Kernel, Module};
use crate::backend::table::Entry;
use crate::dtype::Float;
use crate::error::Result;

/// A kernel's file stem and its PTX. A file that is missing does not build.
macro_rules! ptx {
    ($($stem:literal),*) => {
        &[$(($stem, include_str!(concat!("../../../kernels/ptx/", $stem, ".ptx")))),*]
    };
}

const PTX: &[(&str, &str)] =
    ptx!["weighted_sum", "consensus", "gram", "keys", "levels", "magnitudes", "masked_sums", "stream"];

/// Kernels that have been asked for. The driver compiles a file's when the first of them is, and remembers them on disk.
#[derive(Debug, Default)]
pub(super) struct Kernels(Mutex<Loaded>);

#[derive(Debug, Default)]
struct Loaded {
    kernels: HashMap<Entry, Kernel>,
    modules: HashMap<&'static str, Module>,
}

impl Kernels {
    pub(super) fn get(&self, entry: &Entry) -> Result<Kernel> {
        let mut loaded = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kernel) = loaded.kernels.get(entry) {
            return Ok(*kernel);
        }
        if !loaded.modules.contains_key(entry.file) {
            let ptx = PTX.iter().find(|(stem, _)| *stem == entry.file).expect("every kernel has its PTX").1;
            loaded.modules.insert(entry.file, Module::new(entry.file, ptx)?);
        }
        let kernel = loaded.modules[entry.file].kernel(&name_of(entry))?;
        loaded.kernels.insert(*entry, kernel);
        Ok(kernel)
    }
}

/// The name of an entry in its file.
fn name_of(entry: &Entry) -> String {
    let Entry { file, models, float } = entry;
    let float = float.map_or("mixed", Float::name);
    match (*file, *models) {
        ("stream", 0) => format!("stream_read_{float}"),
        ("stream", _) | (_, 0) => format!("{file}_{float}"),
        _ => format!("{file}_{models}_{float}"),
    }
}

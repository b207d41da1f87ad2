//! Devices whose kernels are checked before a merge uses them for the first time.
//!
//! A WebGPU device compiles the shaders with whatever its driver makes of them. What it compiled is compared with the CPU
//! once for each adapter, driver and text of the shaders, and then remembered in the cache folder: an empty file, whose
//! name is a hash of all of them. A file that cannot be written costs the next merge another check.

use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use super::{Depth, limits, refusal, run};
use crate::backend::device::Device;
use crate::error::Result;

/// Checks a device that has to be, and is not yet known to be right.
///
/// # Errors
/// Kind `Device`: it computes something else than the CPU, or fails.
pub fn before_first_use(device: &Device, cache: Option<&Path>) -> Result<()> {
    // Where nothing can be kept, one check still holds for this process.
    static CHECKED: Mutex<Vec<blake3::Hash>> = Mutex::new(Vec::new());
    let Some(identity) = &device.identity else { return Ok(()) };
    let hash = blake3::hash(identity.as_bytes());
    let known = cache.map(|cache| cache.join("checked").join(hash.to_hex().as_str()));
    let mut checked = CHECKED.lock().unwrap_or_else(PoisonError::into_inner);
    if checked.contains(&hash) || known.as_ref().is_some_and(|known| known.exists()) {
        return Ok(());
    }
    let rows = run(&*device.open(&limits())?, Depth::First, |_| {})?;
    if let Some(refusal) = refusal(&device.id(), &rows) {
        return Err(refusal);
    }
    checked.push(hash);
    if let Some(known) = known {
        let _ =
            fs::create_dir_all(known.parent().unwrap_or(Path::new(""))).and_then(|()| fs::write(known, ""));
    }
    Ok(())
}

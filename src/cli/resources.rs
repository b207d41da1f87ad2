//! What the machine has: cores, memory, and a folder for what merges remember.

use std::path::PathBuf;

use crate::backend::device::Device;

/// Where merges keep what helps the next one: `$MERGEFORGE_CACHE` (nowhere if that is empty), else a folder of our own
/// where programs keep such things.
pub(super) fn cache_folder() -> Option<PathBuf> {
    let folder = |name| std::env::var_os(name).map(PathBuf::from);
    let in_caches = |caches: PathBuf| caches.join("mergeforge");
    folder("MERGEFORGE_CACHE")
        // One that is empty or relative is to be ignored, by its specification.
        .or_else(|| folder("XDG_CACHE_HOME").filter(|caches| caches.is_absolute()).map(in_caches))
        .or_else(|| std::env::home_dir().map(|home| in_caches(home.join(".cache"))))
        .filter(|folder| folder.is_absolute() || folder.components().next().is_some())
}

pub(super) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// What suits the device; small machines keep half of their memory.
pub(super) fn default_host_bytes(device: &Device) -> u64 {
    device.family.host_bytes.min(physical_bytes() / 2)
}

/// The machine's memory, or the container's where that is less.
#[cfg(target_os = "linux")]
pub(super) fn physical_bytes() -> u64 {
    let info = rustix::system::sysinfo();
    let machine = info.totalram as u64 * u64::from(info.mem_unit);
    let container = std::fs::read_to_string("/sys/fs/cgroup/memory.max").unwrap_or_default();
    container.trim().parse().map_or(machine, |limit| machine.min(limit))
}

/// Elsewhere the default stands as it is.
#[cfg(not(target_os = "linux"))]
pub(super) fn physical_bytes() -> u64 {
    u64::MAX
}

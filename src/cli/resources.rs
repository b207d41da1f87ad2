//! What the machine has: cores and memory.

use crate::backend::device::Device;

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

//! What a merge may use, and how the work is cut so that it keeps to that.

use crate::backend::Limits;
use crate::backend::device::{Device, LaneBytes};
use crate::error::{Error, Result};
use crate::kernel::TILE;
use crate::plan::Plan;

/// What a merge may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Worker threads.
    pub threads: usize,
    /// Memory for buffers and, on the CPU, held inputs, in bytes.
    pub host_bytes: u64,
    /// Memory of the device for buffers and held inputs, in bytes.
    pub device_bytes: u64,
    /// The most tiles in a chunk, rounded up to a power of two: chunks are subtrees of a digest. `None`: what suits the device.
    pub chunk_tiles: Option<u64>,
}

impl Budget {
    /// What each of so many devices may use of it that merge together. Each has its own memory.
    #[must_use]
    pub fn shared(self, devices: usize) -> Self {
        let (threads, host_bytes) = ((self.threads / devices).max(1), self.host_bytes / devices as u64);
        Self { threads, host_bytes, ..self }
    }

    /// Cuts the work so that the buffers of all workers fit, and gives the rest to held inputs.
    ///
    /// # Errors
    /// Not even one worker with chunks of one tile fits.
    pub fn limits(&self, plan: &Plan, on: &Device) -> Result<Limits> {
        let widest = plan.widest();
        let lane = |chunk_tiles: u64| {
            let lane = (on.family.lane_bytes)(&widest, chunk_tiles);
            LaneBytes { host: lane.host + plan.working_bytes(chunk_tiles * TILE as u64), ..lane }
        };
        // A chunk beyond the largest tensor would only cost memory.
        let wanted = self.chunk_tiles.unwrap_or_else(|| (on.family.chunk_tiles)(&widest));
        let mut chunk_tiles = wanted.clamp(1, widest.tiles).next_power_of_two();
        // Smaller chunks take less by themselves, and more to be remembered.
        let sizes = std::iter::successors(Some(chunk_tiles), |tiles| (*tiles > 1).then_some(tiles / 2));
        let of_one = |tiles: u64| lane(tiles).host + noted_bytes(widest.tiles, tiles);
        let least = sizes.map(of_one).min().expect("there is one size");
        // Two tensors may be solved for at a time, and made inputs of two be kept; where memory is short, those of one.
        let solving = 2 * widest.segment_bytes;
        let two_fit = solving + 2 * widest.kept_bytes + least <= self.host_bytes;
        let kept_bytes = if two_fit { 2 * widest.kept_bytes } else { widest.kept_bytes };
        let kept = solving + kept_bytes;
        let host_bytes = self.host_bytes.saturating_sub(kept);
        let fits = |threads: u64, chunk_tiles: u64| {
            let LaneBytes { host, device, binding } = lane(chunk_tiles);
            threads * host + noted_bytes(widest.tiles, chunk_tiles) <= host_bytes
                && threads * device <= self.device_bytes
                && binding <= on.binding_bytes
        };
        // Many threads with tiny chunks would do more calls than work.
        let comfortable_tiles = chunk_tiles.min(CHUNK_TILES_COMFORTABLE);
        let comfortable = lane(comfortable_tiles);
        let for_lanes = host_bytes.saturating_sub(noted_bytes(widest.tiles, comfortable_tiles));
        let affordable = |given: u64, each: u64| given.checked_div(each).unwrap_or(THREADS_MAX);
        let threads = affordable(for_lanes, comfortable.host)
            .min(affordable(self.device_bytes, comfortable.device))
            .clamp(1, THREADS_MAX)
            .min(self.threads.max(1) as u64);
        while !fits(threads, chunk_tiles) {
            if chunk_tiles == 1 {
                let needed = LaneBytes { host: solving + widest.kept_bytes + least, ..lane(1) };
                return Err(self.too_little_memory(needed, kept_bytes > 0, on));
            }
            chunk_tiles /= 2;
        }
        let LaneBytes { host, device, .. } = lane(chunk_tiles);
        // A device with memory of its own holds inputs there.
        let hold_bytes = match device {
            0 => host_bytes - threads * host - noted_bytes(widest.tiles, chunk_tiles),
            device => self.device_bytes - threads * device,
        };
        Ok(Limits { threads: threads as usize, chunk_tiles, hold_bytes, kept_bytes, widest })
    }

    fn too_little_memory(&self, needed: LaneBytes, keeps: bool, on: &Device) -> Error {
        if needed.binding > on.binding_bytes {
            return Error::device(format!(
                "{}: its kernels can use {} bytes at once, and this merge needs {}",
                on.id(),
                on.binding_bytes,
                needed.binding
            ))
            .hint("merge fewer models at a time, or use --device cpu");
        }
        let (flag, given, needed) = if self.host_bytes < needed.host {
            ("--host-memory", self.host_bytes, needed.host)
        } else {
            ("--device-memory", self.device_bytes, needed.device)
        };
        Error::config(format!("{flag} {given} bytes: this merge needs at least {needed} bytes")).hint(if keeps {
            "give it more: what the processor decides of the largest tensor stays in memory until it is merged"
        } else {
            "give it more: by default it is half of the memory that is free"
        })
    }
}

/// What is noted of every chunk of two tensors until they are done: the digest, odd values, what was kept.
fn noted_bytes(tiles: u64, chunk_tiles: u64) -> u64 {
    const CHUNK_BYTES: u64 = 192;
    2 * CHUNK_BYTES * tiles.div_ceil(chunk_tiles)
}

/// Where memory is short, threads are given up before chunks get smaller than this.
const CHUNK_TILES_COMFORTABLE: u64 = 16;

/// More threads than this only wait for each other.
const THREADS_MAX: u64 = 256;

//! What of the machine a command uses where nothing is said.

use std::path::Path;

use serde_json::{Value as Json, json};

use super::{How, RunArgs, candidates, show};
use crate::backend::Limits;
use crate::backend::device::Device;
use crate::backend::devices::processor;
use crate::checkpoint::{Reads, free_bytes};
use crate::error::{Error, Result};
use crate::machine::{available_bytes, physical_bytes};
use crate::plan::Plan;
use crate::preflight::{Capacity, Requirements};
use crate::stream::Budget;
use crate::text::bytes;
use crate::{Prepared, output_bytes};

pub(super) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// What suits the device, and those that merge beside it; small machines keep half of their memory, and busy ones half of what is free.
pub(super) fn default_host_bytes(device: &Device) -> u64 {
    half_of_memory(device.family.host_bytes.saturating_mul(device.all().count() as u64))
}

/// So much, but no more than half of what this process can have now.
pub(super) fn half_of_memory(most: u64) -> u64 {
    let there = available_bytes().map_or_else(physical_bytes, |now| now.min(physical_bytes()));
    most.min(there / 2)
}

/// How the work of a plan is cut on a device, or on each of those that share it.
pub(super) fn limits_on(plan: &Plan, budget: &Budget, device: &Device) -> Result<Limits> {
    let devices = device.all().count();
    budget.shared(devices).limits(plan, device).map_err(|refusal| {
        if devices == 1 {
            return refusal;
        }
        let message =
            format!("{} (each of {devices} devices has its share of --host-memory)", refusal.message);
        Error { message, ..refusal }
    })
}

impl RunArgs {
    pub(super) fn reads(&self, prepared: &Prepared) -> Reads {
        match self.reads {
            How::Auto if prepared.plan.read_bytes(&prepared.sources).0 > physical_bytes() => Reads::Direct,
            How::Auto | How::Mapped => Reads::Mapped,
            How::Copied => Reads::Copied,
            How::Direct => Reads::Direct,
        }
    }

    pub(super) fn budget(&self, device: &Device) -> Result<Budget> {
        Ok(Budget {
            threads: self.threads.unwrap_or_else(cores).max(1),
            host_bytes: self.host_memory.unwrap_or_else(|| default_host_bytes(device)),
            device_bytes: match self.device_memory {
                Some(bytes) => bytes,
                None => (device.family.device_bytes)(device, physical_bytes())?,
            },
            chunk_tiles: self.chunk_tiles,
        })
    }

    /// The device, and what a merge may use of it. Of those that `auto` means, the first that can be opened and that `works`; with
    /// a line where it is not the best one, if that is wanted.
    pub(super) fn device(
        &self,
        notes: bool,
        works: &dyn Fn(&Device) -> Result<()>,
    ) -> Result<(Device, Budget)> {
        let opened = |device: Device| {
            // Whether it can be opened shows when it is asked for its memory, of which the budget may be given.
            (device.family.device_bytes)(&device, physical_bytes())?;
            works(&device)?;
            let budget = self.budget(&device)?;
            Ok((device, budget))
        };
        let (better, last) = candidates(&self.device)?;
        // Of what is not there the first is reported, of what fails each.
        let mut passed_over = Vec::new();
        let chosen = better.into_iter().find_map(|candidate| match candidate {
            Ok(device) => opened(device).map_err(|failure: Error| passed_over.push(failure.message)).ok(),
            Err(reason) => {
                if passed_over.is_empty() {
                    passed_over.push(reason);
                }
                None
            }
        });
        let (device, budget) = match chosen {
            Some(found) => found,
            None => self.budget(&last).map(|budget| (last, budget))?,
        };
        if notes {
            Self::report_choice(&device, passed_over);
        }
        Ok((device, budget))
    }

    /// Says what is notable of the choice of a device.
    pub(super) fn report_choice(device: &Device, passed_over: impl IntoIterator<Item = String>) {
        for reason in passed_over {
            let instead = if *device == processor() { "the CPU".into() } else { device.id() };
            show::note(&format!("{reason}: merging on {instead}"));
        }
        if device.software {
            let (id, name) = (device.id(), &device.name);
            show::note(&format!(
                "{id} ({name}) is software on the processor: --device cpu gives the same bytes, and sooner"
            ));
        }
    }
}

/// What a merge needs of the system, and what there is: for people, with the disk of the output.
pub(super) fn needs_line(
    prepared: &Prepared,
    reads: Reads,
    (budget, device): (&Budget, &Device),
    out: &Path,
) -> String {
    let (needs, there) = (
        Requirements::of(prepared, prepared.plan.layout.shards.len(), reads, budget, device),
        Capacity::now(),
    );
    let free = |free: Option<u64>| free.map_or(String::new(), |free| format!(" ({} free)", bytes(free)));
    let of_devices: u64 = device.all().filter_map(|one| one.memory_bytes).sum();
    let of_device = match needs.device_bytes {
        0 => String::new(),
        needed => format!(", {} of the device's {}", bytes(needed), bytes(of_devices)),
    };
    format!(
        "needs    {} on the disk{}, {} of memory{}{of_device}, {} open files ({} permitted)",
        bytes(output_bytes(prepared, true)),
        free(free_bytes(out)),
        bytes(needs.memory_bytes),
        free(there.free_memory_bytes),
        needs.open_files,
        there.open_files
    )
}

/// The same for programs.
pub(super) fn needs_json(prepared: &Prepared, reads: Reads, budget: &Budget, device: &Device) -> Json {
    let (needs, there) = (
        Requirements::of(prepared, prepared.plan.layout.shards.len(), reads, budget, device),
        Capacity::now(),
    );
    json!({
        "disk_bytes": output_bytes(prepared, true), "memory_bytes": needs.memory_bytes,
        "device_memory_bytes": needs.device_bytes, "open_files": needs.open_files,
        "there": {
            "memory_bytes": there.free_memory_bytes, "open_files": there.open_files,
            "device_memory_bytes": device.all().map(|one| one.memory_bytes).sum::<Option<u64>>(),
        },
    })
}

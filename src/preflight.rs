//! What a merge needs of the system against what there is, before anything is written. (Room on disks is `checkpoint`'s to check, and
//! memory of a device is taken before the output is made.)

use crate::backend::device::Device;
use crate::checkpoint::{Reads, open_files_of_inputs_max};
use crate::error::{Error, Result};
use crate::machine::{available_bytes, physical_bytes};
use crate::stream::Budget;
use crate::text::bytes;
use crate::{Options, Prepared, checkpoint};

/// Files that a merge has open beside those of its inputs and its weights: what it talks to, folders, the lock, the journal.
const OTHER_FILES: usize = 12;

/// What a merge needs at the most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Requirements {
    /// Memory beside the program, in bytes.
    pub memory_bytes: u64,
    /// Memory of the device, in bytes.
    pub device_bytes: u64,
    /// Files that are open at once.
    pub open_files: usize,
}

/// What there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Memory that this process may have in all, in bytes.
    pub memory_bytes: u64,
    /// Memory that can be had now, in bytes, where the system says it.
    pub free_memory_bytes: Option<u64>,
    /// Files that this process may have open.
    pub open_files: usize,
}

impl Requirements {
    /// Those of a plan of which so many shards are made, whose inputs are read so, with such a budget on that device and those that
    /// merge beside it.
    pub fn of(prepared: &Prepared, shards: usize, reads: Reads, budget: &Budget, device: &Device) -> Self {
        // What is read past the page cache is opened once more for that.
        let handles = if reads == Reads::Direct { 2 } else { 1 };
        let of_inputs: usize = prepared.sources.iter().map(|source| handles * source.file_count()).sum();
        let of_inputs = of_inputs.min(open_files_of_inputs_max());
        Self {
            memory_bytes: budget.host_bytes,
            device_bytes: device
                .all()
                .filter(|one| one.memory_bytes.is_some())
                .map(|_| budget.device_bytes)
                .sum(),
            open_files: of_inputs + shards + OTHER_FILES,
        }
    }

    /// Those of putting so many shards of so many parts together.
    pub fn of_parts(shards: usize, parts: usize) -> Self {
        Self { memory_bytes: 0, device_bytes: 0, open_files: shards + parts + OTHER_FILES }
    }

    /// Refuses what cannot be: more than the system can ever give.
    ///
    /// # Errors
    /// Kind `Config`, with what is needed and what there is.
    pub fn check(&self, there: &Capacity) -> Result<()> {
        let mut refusals = Vec::new();
        if self.memory_bytes > there.memory_bytes {
            let (asked, all) = (bytes(self.memory_bytes), bytes(there.memory_bytes));
            let refusal =
                format!("--host-memory {asked}: this machine, or this job's share of it, has {all}");
            refusals
                .push(Error::config(refusal).hint("leave it out: the default serves every size of model"));
        }
        if self.open_files > there.open_files {
            let (needed, most) = (self.open_files, there.open_files);
            let refusal = format!("this merge opens {needed} files at once, and the system permits {most}");
            refusals.push(
                Error::config(refusal)
                    .hint("permit more (`ulimit -n`), or make larger shards (--out-shard-size)"),
            );
        }
        if refusals.is_empty() { Ok(()) } else { Err(Error::all(refusals)) }
    }
}

/// Refuses to make so many shards of a plan where the system can never give what that needs.
///
/// # Errors
/// Those of [`Requirements::check`].
pub(crate) fn check(prepared: &Prepared, shards: usize, options: &Options) -> Result<()> {
    let Options { reads, budget, device, .. } = options;
    Requirements::of(prepared, shards, *reads, budget, device).check(&Capacity::now())
}

/// What is doubtful of so much memory: others have it now, and may give it back.
pub fn doubt(memory_bytes: u64, there: &Capacity) -> Option<Error> {
    let free = there.free_memory_bytes.filter(|free| memory_bytes > *free)?;
    let doubt = format!(
        "this merge may take {} of memory, and {} are free now: the system may end it",
        bytes(memory_bytes),
        bytes(free)
    );
    Some(Error::config(doubt).hint("end other programs, or give less with --host-memory"))
}

impl Capacity {
    /// What there is now.
    pub fn now() -> Self {
        let memory_bytes = physical_bytes();
        Self { memory_bytes, free_memory_bytes: available_bytes(), open_files: checkpoint::open_files_max() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const THERE: Capacity = Capacity { memory_bytes: 1000, free_memory_bytes: Some(500), open_files: 100 };

    #[test]
    fn what_cannot_be_is_refused_and_what_may_not_be_is_doubted() {
        let fits = Requirements { memory_bytes: 500, device_bytes: 1 << 40, open_files: 100 };
        fits.check(&THERE).unwrap();
        assert!(doubt(500, &THERE).is_none());
        assert!(doubt(501, &THERE).unwrap().message.contains("501"));
        assert!(doubt(501, &Capacity { free_memory_bytes: None, ..THERE }).is_none());
        let both = Requirements { memory_bytes: 1001, open_files: 101, ..fits }
            .check(&THERE)
            .unwrap_err()
            .to_string();
        assert!(both.contains("--host-memory") && both.contains("101 files"), "{both}");
    }
}

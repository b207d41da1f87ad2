//! What texts are read on: the flags, and the choice.

use clap::Args;

use super::show;
use super::values::{SETS, size};
use crate::backend::device::Device;
use crate::backend::devices::{candidates, processor};
use crate::decoder::{Cuda, Machine, Processor, Sums};
use crate::error::{Error, Result};

/// Flags of commands that read texts.
#[derive(Debug, Args)]
pub(super) struct MachineArgs {
    /// Where texts are read: auto (an NVIDIA GPU with cuBLAS, or else the CPU), cpu, or a device that `mergeforge devices` lists as
    /// cuda
    #[arg(long, value_name = "DEVICE", default_value = "auto", requires = SETS)]
    device: String,
    /// Memory of the device for states and logits [default: 90 % of what is free]
    #[arg(long, value_name = "SIZE", value_parser = size, requires = SETS)]
    device_memory: Option<u64>,
}

impl MachineArgs {
    /// Opens it.
    ///
    /// # Errors
    /// What is named cannot be used.
    pub(super) fn open(&self, threads: usize) -> Result<Box<dyn Machine>> {
        open(&self.device, (self.device_memory, 0), threads)
    }

    /// What reads in place of a device that was not asked for by name, and that is too small.
    ///
    /// # Errors
    /// `why`, where the device was named or is the processor.
    pub(super) fn instead_of(
        &self,
        machine: &dyn Machine,
        why: Error,
        threads: usize,
    ) -> Result<Box<dyn Machine>> {
        if self.device != "auto" || machine.memory().is_none() {
            return Err(why);
        }
        show::note(&format!("{}: {}: reading texts on the CPU", machine.id(), why.message));
        open("cpu", (None, 0), threads)
    }
}

/// Opens what `--device` means; with `auto`, says why an NVIDIA GPU is not used. Of its memory, what may be used and what of that is
/// left to merges.
///
/// # Errors
/// What is named cannot be used.
pub(super) fn open(
    word: &str,
    (memory, left): (Option<u64>, u64),
    threads: usize,
) -> Result<Box<dyn Machine>> {
    let (better, last): (Vec<Device>, Device) = if word == "auto" {
        // Where there is no driver, nothing was expected of it.
        let found = Cuda::devices().unwrap_or_default();
        (found.into_iter().filter(|device| device.unusable.is_none()).collect(), processor())
    } else {
        let (better, last) = candidates(word)?;
        (better.into_iter().flatten().collect(), last)
    };
    for device in better {
        match Cuda::open(&device, threads, memory, left) {
            Ok(machine) => return Ok(Box::new(machine)),
            Err(why) => show::note(&format!("{}: reading texts on {}", why.message, another(&last))),
        }
    }
    if last == processor() {
        return Ok(Box::new(Processor::new(Sums::Fastest, threads)));
    }
    Ok(Box::new(Cuda::open(&last, threads, memory, left)?))
}

/// The same beside merges, for which the device is in the first place: where it cannot read, the CPU does, and a line says why.
pub(super) fn beside_merges(
    word: &str,
    memory: (Option<u64>, u64),
    threads: usize,
) -> Result<Box<dyn Machine>> {
    // Whether there is such a device at all was asked before.
    open(word, memory, threads).or_else(|why| {
        show::note(&format!("{}: reading texts on the CPU", why.message));
        open("cpu", memory, threads)
    })
}

fn another(device: &Device) -> String {
    if *device == processor() { "the CPU".into() } else { device.id() }
}

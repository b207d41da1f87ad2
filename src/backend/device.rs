//! What there is to know of a device, and of a family of devices.

use super::{Backend, Limits};
use crate::error::{Error, Result};
use crate::kernel::Widest;

/// A kind of devices: everything that the rest of the program asks of it.
#[derive(Debug)]
pub struct Family {
    /// The name in `--device`.
    pub name: &'static str,
    /// Whether there may be several, which are numbered.
    pub numbered: bool,
    /// The chunk that suits it for launches over such inputs, in tiles.
    pub chunk_tiles: fn(&Widest) -> u64,
    /// The chunk that suits a bench of single kernels on tensors of so many tiles.
    pub bench_tiles: fn(u64) -> u64,
    /// What one lane takes for chunks of so many tiles.
    pub lane_bytes: fn(&Widest, u64) -> LaneBytes,
    /// The memory of the machine that a merge uses where nothing is said, in bytes.
    pub host_bytes: u64,
    /// The memory of the device that a merge uses where nothing is said, of a machine with so many bytes.
    ///
    /// # Errors
    /// Kind `Device`: it cannot be used.
    pub device_bytes: fn(&Device, u64) -> Result<u64>,
    /// Whether reading parts of an input again costs little, so that it pays to guess and to mend what was wrong.
    pub reads_again: bool,
    /// The devices of this machine. None is opened: that takes memory of each, and can fail.
    ///
    /// # Errors
    /// Kind `Device`: why there is none.
    pub devices: fn() -> Result<Vec<Device>>,
    /// Opens a device.
    ///
    /// # Errors
    /// Kind `DeviceMemory`: it has not the memory. Kind `Device`: it cannot be used.
    pub open: fn(&Device, &Limits) -> Result<Box<dyn Backend>>,
}

/// There is one record of each family.
impl PartialEq for Family {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Family {}

/// Memory of one lane, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaneBytes {
    /// Of the machine's memory.
    pub host: u64,
    /// Of the device's own memory; 0 where it has none.
    pub device: u64,
    /// The largest part that a kernel uses as one; 0 where that does not matter.
    pub binding: u64,
}

/// A device of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// What kind of device.
    pub family: &'static Family,
    /// Its number among those of the family.
    pub index: usize,
    /// The maker's name for it.
    pub name: String,
    /// Its own memory, in bytes, where it has some.
    pub memory_bytes: Option<u64>,
    /// The most that a kernel can use as one.
    pub binding_bytes: u64,
    /// Whether it only looks like a device, and computes on the processor.
    pub software: bool,
    /// What a check of its kernels holds for, where they have to be checked before they are used.
    pub identity: Option<String>,
    /// What else can be said of it: name and value.
    pub facts: Vec<(&'static str, String)>,
    /// Why it cannot be used, if it cannot.
    pub unusable: Option<Error>,
    /// The devices that a merge computes on beside it.
    pub others: Vec<Self>,
}

impl Device {
    /// It, and those beside it.
    pub fn all(&self) -> impl Iterator<Item = &Self> + Clone {
        std::iter::once(self).chain(&self.others)
    }

    /// What `--device` takes for it: `cpu`, `cuda:0`.
    pub fn id(&self) -> String {
        let Family { name, numbered, .. } = self.family;
        if *numbered { format!("{name}:{}", self.index) } else { (*name).into() }
    }

    /// Opens it.
    ///
    /// # Errors
    /// Kind `DeviceMemory`: it has not the memory. Kind `Device`: it cannot be used.
    pub fn open(&self, limits: &Limits) -> Result<Box<dyn Backend>> {
        (self.family.open)(self, limits)
    }
}

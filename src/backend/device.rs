//! The devices that a machine has, and which of them to use.

use super::{Backend, Limits, cpu, cuda, wgpu};
use crate::error::{Error, Result};
use crate::kernel::Widest;

/// The kinds of devices, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// NVIDIA's GPUs.
    Cuda,
    /// Any GPU, through Vulkan, Metal or DX12.
    Wgpu,
    /// The processor.
    Cpu,
}

impl Family {
    /// All of them, best first.
    pub const ALL: [Self; 3] = [Self::Cuda, Self::Wgpu, Self::Cpu];

    /// The name in `--device`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cuda => "cuda",
            Self::Wgpu => "wgpu",
            Self::Cpu => "cpu",
        }
    }

    /// The chunk that suits the family, in tiles.
    pub const fn chunk_tiles(self) -> u64 {
        match self {
            Self::Cuda => cuda::CHUNK_TILES,
            Self::Wgpu => wgpu::CHUNK_TILES,
            Self::Cpu => cpu::CHUNK_TILES,
        }
    }

    /// What one lane takes for chunks of so many tiles.
    pub fn lane_bytes(self, widest: &Widest, chunk_tiles: u64) -> LaneBytes {
        match self {
            Self::Cuda => cuda::lane_bytes(widest, chunk_tiles),
            Self::Wgpu => wgpu::lane_bytes(widest, chunk_tiles),
            Self::Cpu => cpu::lane_bytes(widest, chunk_tiles),
        }
    }
}

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
    pub family: Family,
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
    pub unusable: Option<String>,
}

impl Device {
    /// The processor, which is always there.
    pub fn cpu() -> Self {
        let about = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let name = about.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            family: Family::Cpu,
            index: 0,
            name: name.map_or("CPU", |(_, name)| name.trim()).into(),
            memory_bytes: None,
            binding_bytes: u64::MAX,
            software: false,
            identity: None,
            facts: vec![("threads", threads.to_string())],
            unusable: None,
        }
    }

    /// What `--device` takes for it: `cpu`, `cuda:0`.
    pub fn id(&self) -> String {
        match self.family {
            Family::Cpu => self.family.name().into(),
            Family::Cuda | Family::Wgpu => format!("{}:{}", self.family.name(), self.index),
        }
    }

    /// What of its own memory is free, in bytes, where it has some and tells.
    ///
    /// # Errors
    /// Kind `Device`: it cannot be used.
    pub fn free_bytes(&self) -> Result<Option<u64>> {
        match self.family {
            Family::Cuda => cuda::free_bytes(self.index).map(Some),
            Family::Wgpu | Family::Cpu => Ok(None),
        }
    }

    /// Opens it.
    ///
    /// # Errors
    /// Kind `Device`: it cannot be used, or has not the memory.
    pub fn open(&self, limits: &Limits) -> Result<Box<dyn Backend>> {
        match self.family {
            Family::Cuda => Ok(Box::new(cuda::Cuda::new(self, limits)?)),
            Family::Wgpu => Ok(Box::new(wgpu::Wgpu::new(self, limits)?)),
            Family::Cpu if !limits.kernels => Ok(Box::new(cpu::Cpu::idle())),
            Family::Cpu => Ok(Box::new(cpu::Cpu::new(limits.hold_bytes - limits.behind_bytes()))),
        }
    }
}

/// The devices of one family.
///
/// # Errors
/// Kind `Device`: why there is none.
pub fn devices(family: Family) -> Result<Vec<Device>> {
    match family {
        Family::Cuda => cuda::devices(),
        Family::Wgpu => wgpu::devices(),
        Family::Cpu => Ok(vec![Device::cpu()]),
    }
}

/// The device that `--device` names: `auto`, a family, or a family with a number or a part of a name. With `auto`, the best
/// that works, and why better ones do not; software that looks like a GPU never.
///
/// # Errors
/// Kind `Config` for a word that is none of these, `Device` for one that is not there.
pub fn choose(word: &str) -> Result<(Device, Option<String>)> {
    let mut passed_over = None;
    if word == "auto" {
        for family in Family::ALL {
            let found = devices(family).unwrap_or_else(|reason| {
                passed_over.get_or_insert(reason.message);
                Vec::new()
            });
            for device in found.into_iter().filter(|device| !device.software) {
                match device.unusable {
                    None => return Ok((device, passed_over)),
                    Some(reason) => _ = passed_over.get_or_insert(reason),
                }
            }
            passed_over.get_or_insert_with(|| format!("no {} device", family.name()));
        }
    }
    let (name, which) = word.split_once(':').unwrap_or((word, "0"));
    let Some(family) = Family::ALL.into_iter().find(|family| family.name() == name) else {
        let names: Vec<_> = Family::ALL.iter().map(|family| family.name()).collect();
        return Err(Error::config(format!("--device {word}: there is no such device")).hint(format!(
            "it can be auto, {}; with a number, or a part of its name, for one of several: cuda:1, wgpu:radeon",
            names.join(", ")
        )));
    };
    let found = devices(family)?;
    let count = found.len();
    let none = |told: String| {
        Error::device(format!("--device {word}: {told}")).hint("`mergeforge devices` lists them all")
    };
    let index = which.parse::<usize>();
    let usable = |device: &&Device| device.unusable.is_none();
    let by_number = match &index {
        // No number: the first that can be used.
        _ if !word.contains(':') => found.iter().find(usable).or(found.first()),
        Ok(index) => found.get(*index),
        Err(_) => None,
    };
    if let Some(device) = by_number {
        return Ok((device.clone(), None));
    }
    if index.is_ok() {
        return Err(none(format!("this machine has {count} such device(s), counted from 0")));
    }
    // One device may be there several times, through several interfaces.
    let part = which.to_lowercase();
    let named: Vec<&Device> =
        found.iter().filter(|device| device.name.to_lowercase().contains(&part)).collect();
    match named.first() {
        Some(first) if named.iter().all(|device| device.name == first.name) => {
            Ok(((*named.iter().find(|device| usable(device)).unwrap_or(first)).clone(), None))
        }
        Some(_) => Err(none("several devices have this in their names".into())),
        None => Err(none(format!("none of the {count} {name} device(s) has this in its name"))),
    }
}

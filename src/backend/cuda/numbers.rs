//! Numbers in a GPU's memory, what becomes of that memory afterwards, and numbers that come from there.

use std::sync::{Arc, Mutex};

use super::driver::{DeviceMemory, Event, Pinned, Region};
use crate::backend::gpu::lock;
use crate::error::Result;

/// Numbers in f32, in a device's memory.
#[derive(Debug)]
pub struct Numbers {
    pub(super) memory: Option<DeviceMemory>,
    pub(super) len: usize,
    pub(super) pools: Arc<Pools>,
    pub(super) purpose: Purpose,
}

/// What memory is for: rows of matrices have sizes of their own, and would take the place of larger things.
#[derive(Debug, Clone, Copy)]
pub(super) enum Purpose {
    States,
    Rows,
}

/// Memory that was given back.
#[derive(Debug, Default)]
pub(super) struct Pools {
    pub(super) states: Mutex<Vec<DeviceMemory>>,
    pub(super) rows: Mutex<Vec<DeviceMemory>>,
}

impl Pools {
    pub(super) fn of(&self, purpose: Purpose) -> &Mutex<Vec<DeviceMemory>> {
        match purpose {
            Purpose::States => &self.states,
            Purpose::Rows => &self.rows,
        }
    }
}

impl Numbers {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The memory of some of them.
    pub(super) fn some(&self, first: usize, len: usize) -> Region<'_> {
        let memory = self.memory.as_ref().expect("it is there until it is dropped");
        assert!(first + len <= self.len, "there are so many numbers");
        memory.region((first * size_of::<f32>()) as u64, (len * size_of::<f32>()) as u64)
    }
}

impl Drop for Numbers {
    fn drop(&mut self) {
        lock(self.pools.of(self.purpose)).extend(self.memory.take());
    }
}

/// The memory of so many numbers.
pub(super) fn bytes_of(len: usize) -> u64 {
    (len * size_of::<f32>()).max(1) as u64
}

/// Numbers on their way from the device.
#[derive(Debug)]
pub struct Outgoing {
    pub(super) memory: Pinned,
    /// How many there are.
    pub(super) len: usize,
    pub(super) arrived: Event,
}

impl Outgoing {
    /// The most numbers that there is memory for.
    pub fn room(&self) -> usize {
        self.memory.bytes().len() / size_of::<f32>()
    }

    /// The numbers, once they are there.
    ///
    /// # Errors
    /// Kind `Device`: it fails.
    pub fn numbers(&self) -> Result<&[f32]> {
        self.arrived.synchronize()?;
        Ok(bytemuck::cast_slice(&self.memory.bytes()[..self.len * size_of::<f32>()]))
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        // Nobody is left to hear of an error.
        let _ = self.arrived.synchronize();
    }
}

//! Tensors in memory: what is merged to be used at once, and not to be kept.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use super::Deposit;
use crate::error::Result;
use crate::plan::Plan;

/// Some tensors of a plan, by their places in it.
#[derive(Debug)]
pub struct InMemory {
    tensors: HashMap<usize, Mutex<Vec<u8>>>,
}

impl InMemory {
    /// Room for these tensors.
    pub fn of(plan: &Plan, tensors: &[usize]) -> Self {
        let room = |tensor: &usize| (*tensor, Mutex::new(vec![0; plan.tensors[*tensor].bytes as usize]));
        Self { tensors: tensors.iter().map(room).collect() }
    }

    /// Their bytes.
    pub fn into_bytes(self) -> HashMap<usize, Vec<u8>> {
        let bytes = |bytes: Mutex<Vec<u8>>| bytes.into_inner().unwrap_or_else(PoisonError::into_inner);
        self.tensors.into_iter().map(|(tensor, held)| (tensor, bytes(held))).collect()
    }
}

impl Deposit for InMemory {
    fn write_at(&self, tensor: usize, offset: u64, bytes: &[u8]) -> Result<Option<Instant>> {
        let mut held = self.tensors[&tensor].lock().unwrap_or_else(PoisonError::into_inner);
        held[offset as usize..][..bytes.len()].copy_from_slice(bytes);
        Ok(None)
    }
}

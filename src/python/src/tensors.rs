//! Tensors in the memory of Python's libraries, by their addresses: read as models, and written as what is merged.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use mergeforge::checkpoint::{HeldTensors, OutTensor, Source};
use mergeforge::cli::call;
use mergeforge::dtype::Dtype;
use mergeforge::error::{Error, Result};
use mergeforge::stream::Deposit;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::attended::{attended, raised};
use crate::{Config, written};

/// A tensor: its name, its type as safetensors calls it, its shape, and where it lies.
type Given = (String, String, Vec<usize>, Memory);

/// Memory in one piece that somebody holds: of an object with these attributes.
#[derive(Debug, FromPyObject)]
pub struct Memory {
    address: usize,
    bytes: usize,
    /// What must live as long as the memory is used.
    #[expect(dead_code, reason = "it is only there to be held")]
    owner: Py<PyAny>,
}

impl Memory {
    /// Whether it is memory, of so many bytes.
    fn is_of(&self, bytes: u64) -> bool {
        self.bytes as u64 == bytes && (self.address != 0 || self.bytes == 0)
    }

    /// Whether so many bytes from `offset` on are in it.
    fn has(&self, offset: u64, bytes: usize) -> bool {
        (offset as usize).checked_add(bytes).is_some_and(|end| end <= self.bytes)
    }
}

/// A model's tensors.
#[derive(Debug)]
struct Held(Vec<Memory>);

impl HeldTensors for Held {
    fn read_at(&self, tensor: usize, offset: u64, into: &mut [u8]) {
        let memory = &self.0[tensor];
        assert!(memory.has(offset, into.len()), "read inside the tensor");
        let from = std::ptr::with_exposed_provenance::<u8>(memory.address + offset as usize);
        // SAFETY: the package gives the address of a contiguous tensor of so many bytes, whose owner is held; `into` is ours, and
        // so elsewhere.
        unsafe { from.copy_to_nonoverlapping(into.as_mut_ptr(), into.len()) };
    }
}

/// Room for the tensors of a merge, in their order. One thread at a time writes to each.
struct Rooms(Vec<Mutex<Memory>>);

impl Deposit for Rooms {
    fn write_at(&self, tensor: usize, offset: u64, bytes: &[u8]) -> Result<Option<Instant>> {
        let room = self.0[tensor].lock().unwrap_or_else(PoisonError::into_inner);
        assert!(room.has(offset, bytes.len()), "written inside the tensor");
        let to = std::ptr::with_exposed_provenance_mut::<u8>(room.address + offset as usize);
        // SAFETY: the package gives the address of a new contiguous tensor of so many bytes, which nobody else has seen and whose owner
        // is held; while the lock is held nobody else writes to it.
        unsafe { bytes.as_ptr().copy_to_nonoverlapping(to, bytes.len()) };
        Ok(None)
    }
}

/// A merge of tensors in memory, planned.
#[pyclass(module = "mergeforge._mergeforge", frozen)]
pub struct PlannedTensors(call::PlannedTensors);

#[pymethods]
impl PlannedTensors {
    /// Name, type and shape of each tensor that the merge gives.
    fn tensors(&self) -> Vec<(String, String, Vec<usize>)> {
        let tensors = self.0.tensors().iter();
        tensors
            .map(|tensor| (tensor.name.to_string(), tensor.dtype.to_string(), tensor.shape.to_vec()))
            .collect()
    }

    /// Merges into room for each of these tensors.
    fn merge(
        &self,
        py: Python<'_>,
        rooms: Vec<Memory>,
        said: &Bound<'_, PyAny>,
        progress: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let fits = |(room, tensor): (&Memory, &mergeforge::plan::Tensor)| room.is_of(tensor.bytes);
        let tensors = self.0.tensors();
        if rooms.len() != tensors.len() || !rooms.iter().zip(tensors).all(fits) {
            return Err(PyValueError::new_err("there must be room for each tensor, of its size"));
        }
        let rooms = Rooms(rooms.into_iter().map(Mutex::new).collect());
        attended(py, said, progress, |host| self.0.merge(&rooms, host)).map(|((), _)| ())
    }
}

/// Plans a merge of models of which these are in memory.
#[pyfunction]
pub fn plan_tensors(
    py: Python<'_>,
    config: Config,
    models: Vec<(String, Vec<Given>)>,
    words: Vec<String>,
    said: &Bound<'_, PyAny>,
) -> PyResult<PlannedTensors> {
    let config = written(config);
    let models: Result<Vec<Source>> =
        models.into_iter().map(|(name, tensors)| source(&name, tensors)).collect();
    let models = models.map_err(|error| raised(py, error))?;
    let planned = attended(py, said, None, |host| call::plan_tensors(&config, models, &words, host))?.0;
    Ok(PlannedTensors(planned))
}

/// A model in memory.
fn source(model: &str, given: Vec<Given>) -> Result<Source> {
    let mut held = Vec::with_capacity(given.len());
    let mut tensors = Vec::with_capacity(given.len());
    for (name, dtype, shape, memory) in given {
        let unknown = |_| Error::config(format!("{model}: tensor {name}: there is no type {dtype}"));
        let dtype: Dtype = serde_json::from_value(dtype.as_str().into()).map_err(unknown)?;
        let tensor = OutTensor { name, dtype, shape };
        if !memory.is_of(tensor.bytes()) {
            let (name, bytes) = (&tensor.name, memory.bytes);
            return Err(Error::config(format!(
                "{model}: tensor {name}: {bytes} bytes are not those of its shape"
            )));
        }
        tensors.push(tensor);
        held.push(memory);
    }
    Source::in_memory(model, &tensors, Arc::new(Held(held)))
}

//! The shaders that ship in the program, and the pipelines made of them.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use super::driver::Gpu;
use crate::backend::table::Entry;
use crate::error::{Error, Result};
use crate::kernel::packed::{FLOAT_MIXED, float_code};
use crate::kernel::{KERNELS, Kernel, packed};

const PARAMS: &str = include_str!("../../../shaders/params.wgsl");
const PRELUDE: &str = include_str!("../../../shaders/prelude.wgsl");
const SUBGROUPS: &str = include_str!("../../../shaders/subgroups.wgsl");
const NO_SUBGROUPS: &str = include_str!("../../../shaders/no_subgroups.wgsl");

/// The whole text of a kernel's shader.
pub fn source(kernel: &Kernel, subgroups: bool) -> String {
    [if subgroups { SUBGROUPS } else { NO_SUBGROUPS }, PARAMS, PRELUDE, kernel.wgsl.text].concat()
}

/// The same, of files in a folder.
///
/// # Errors
/// Kind `Config`: a file cannot be read.
pub(super) fn source_in(folder: &Path, name: &str, subgroups: bool) -> Result<String> {
    let counting = if subgroups { "subgroups" } else { "no_subgroups" };
    let mut text = String::new();
    for stem in [counting, "params", "prelude", name] {
        let file = folder.join(format!("{stem}.wgsl"));
        text += &fs::read_to_string(&file)
            .map_err(|cause| Error::config(format!("{}: {cause}", file.display())))?;
    }
    Ok(text)
}

/// The most models whose counters a workgroup keeps at once in so many bytes of its memory.
pub(super) fn group_models(workgroup_bytes: u32) -> usize {
    let words = KERNELS.iter().map(|kernel| kernel.group_words).max().unwrap_or(0);
    (workgroup_bytes as usize / (4 * words).next_multiple_of(16)).clamp(1, packed::GROUP_MODELS)
}

/// Pipelines that have been asked for.
#[derive(Debug)]
pub(super) struct Pipelines {
    bindings: wgpu::BindGroupLayout,
    layout: wgpu::PipelineLayout,
    zero: wgpu::Buffer,
    group_models: usize,
    made: Mutex<MadePipelines>,
}

#[derive(Debug, Default)]
struct MadePipelines {
    modules: HashMap<&'static str, wgpu::ShaderModule>,
    pipelines: HashMap<Entry, wgpu::ComputePipeline>,
}

/// What a launch reads and writes.
pub(super) struct Bound<'a> {
    pub(super) table: &'a wgpu::Buffer,
    pub(super) memory: &'a wgpu::Buffer,
    /// Tallies, and from some place on the results.
    pub(super) results: &'a wgpu::Buffer,
    pub(super) results_from: u64,
}

impl Pipelines {
    pub(super) fn new(device: &wgpu::Device, group_models: usize) -> Self {
        let storage = |read_only| wgpu::BufferBindingType::Storage { read_only };
        let kinds =
            [storage(true), storage(true), storage(false), wgpu::BufferBindingType::Uniform, storage(false)];
        let entries: Vec<_> = (0..)
            .zip(kinds)
            .map(|(binding, ty)| wgpu::BindGroupLayoutEntry {
                binding,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None },
                count: None,
            })
            .collect();
        let bindings = device
            .create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: None, entries: &entries });
        let layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: None,
            bind_group_layouts: &[Some(&bindings)],
            immediate_size: 0,
        });
        // Buffers are zeros when they are new, and nothing ever writes to this one.
        let zero = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("zero"),
            size: 16,
            usage: wgpu::BufferUsages::UNIFORM,
            mapped_at_creation: false,
        });
        Self { bindings, layout, zero, group_models, made: Mutex::default() }
    }

    /// The pipeline of a kernel, compiled when it is first asked for.
    pub(super) fn get(&self, gpu: &Gpu, entry: &Entry) -> Result<wgpu::ComputePipeline> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let MadePipelines { modules, pipelines } = &mut *made;
        if let Some(pipeline) = pipelines.get(entry) {
            return Ok(pipeline.clone());
        }
        let name = entry.kernel.name;
        if !modules.contains_key(name) {
            modules.insert(name, gpu.shader(entry.kernel)?);
        }
        let models = if entry.kernel.group_words > 0 { self.group_models } else { entry.models };
        let float = entry.float.map_or(FLOAT_MIXED, float_code);
        let constants = [("FLOAT", f64::from(float)), ("MODELS", models as f64)];
        let pipeline = gpu.pipeline(name, &self.layout, &modules[name], &constants)?;
        pipelines.insert(*entry, pipeline.clone());
        Ok(pipeline)
    }

    /// Ties buffers to the names that shaders have for them.
    pub(super) fn bind(&self, device: &wgpu::Device, bound: &Bound<'_>) -> wgpu::BindGroup {
        let whole = |buffer| wgpu::BufferBinding { buffer, offset: 0, size: None };
        let tallies = wgpu::BufferBinding {
            buffer: bound.results,
            offset: 0,
            size: std::num::NonZeroU64::new(bound.results_from),
        };
        let results = wgpu::BufferBinding { offset: bound.results_from, ..whole(bound.results) };
        let buffers = [whole(bound.table), whole(bound.memory), tallies, whole(&self.zero), results];
        let entries: Vec<_> = (0..)
            .zip(buffers)
            .map(|(binding, buffer)| wgpu::BindGroupEntry {
                binding,
                resource: wgpu::BindingResource::Buffer(buffer),
            })
            .collect();
        device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout: &self.bindings,
            entries: &entries,
        })
    }
}

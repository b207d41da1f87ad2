//! Adapters, devices and buffers of wgpu, as far as they are needed, and errors with a way out.
//!
//! wgpu reports most errors later and elsewhere: what a device says of itself is collected here, and asked for after
//! every submission and every wait.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use pollster::block_on;
use wgpu::{BufferUsages, ErrorFilter, Features};

use super::shaders::{self, Pipelines};
use crate::backend::device::Device;
use crate::error::{Error, Kind, Result, without_panic};
use crate::kernel::packed::THREADS;
use crate::kernel::{KERNELS, Kernel};

/// What WebGPU promises of every device, and shaders need.
const WORKGROUP_BYTES_MIN: u32 = 16 << 10;

/// Storage buffers of a launch.
const STORAGE_BUFFERS: u32 = 4;

/// Larger bindings are not asked for: there are devices whose larger ones are not addressed as they say.
const BINDING_BYTES_MAX: u64 = (2 << 30) - 16;

/// A device that takes longer than this for one launch hangs.
const PATIENCE: Duration = Duration::from_mins(2);

/// What tests set in `MERGEFORGE_WGPU`, words with commas between them, to see rare devices on a common one.
#[derive(Debug, Clone, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a word of its own")]
struct Hooks {
    /// `default-limits`: no more than WebGPU's defaults.
    default_limits: bool,
    /// `no-subgroups`.
    no_subgroups: bool,
    /// `hardware`: software counts as a GPU.
    hardware: bool,
    /// `binding=BYTES`: a limit for what one launch may bind.
    binding_bytes: Option<u64>,
    /// `poor`: half of the workgroup memory that is needed.
    poor: bool,
    /// `lose=N`: the device is lost at its Nth submission.
    lose: Option<u64>,
    /// `panic=N`: wgpu panics when the Nth submission is waited for, as it does for a device that is lost meanwhile.
    panic: Option<u64>,
    /// `memory=BYTES`: buffers beyond so many bytes, added up, cannot be had.
    memory: Option<u64>,
    /// `shaders=FOLDER`: other shaders than those in the program.
    shaders: Option<PathBuf>,
}

impl Hooks {
    fn get() -> Result<Self> {
        const NAME: &str = "MERGEFORGE_WGPU";
        let words = std::env::var(NAME).unwrap_or_default();
        let mut hooks = Self::default();
        for word in words.split(',').filter(|word| !word.is_empty()) {
            let (name, number) = word.split_once('=').unwrap_or((word, ""));
            let (text, number) = (number, number.parse().ok());
            match (name, number) {
                ("shaders", _) => hooks.shaders = Some(text.into()),
                ("default-limits", None) => hooks.default_limits = true,
                ("no-subgroups", None) => hooks.no_subgroups = true,
                ("hardware", None) => hooks.hardware = true,
                ("poor", None) => hooks.poor = true,
                ("panic", Some(_)) => hooks.panic = number,
                ("binding", Some(_)) => hooks.binding_bytes = number,
                ("lose", Some(_)) => hooks.lose = number,
                ("memory", Some(_)) => hooks.memory = number,
                _ => {
                    return Err(Error::config(format!("{NAME}={words}: {word} is not known"))
                        .hint("unset it: it is for the project's own tests"));
                }
            }
        }
        Ok(hooks)
    }

    /// The whole text of a shader.
    fn text_of(&self, kernel: &Kernel, subgroups: bool) -> Result<String> {
        match &self.shaders {
            Some(folder) => shaders::source_in(folder, kernel.name, subgroups),
            None => Ok(shaders::source(kernel, subgroups)),
        }
    }
}

/// All adapters, the best kind first. They are looked for once.
fn adapters() -> &'static [wgpu::Adapter] {
    static ADAPTERS: OnceLock<Vec<wgpu::Adapter>> = OnceLock::new();
    ADAPTERS.get_or_init(|| {
        let backends = wgpu::Backends::PRIMARY;
        let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
            backends,
            // Validation layers, where they are installed, would cost more than the merge.
            flags: wgpu::InstanceFlags::empty(),
            ..wgpu::InstanceDescriptor::new_without_display_handle()
        });
        let mut adapters = block_on(instance.enumerate_adapters(backends));
        adapters.sort_by_key(|adapter| match adapter.get_info().device_type {
            wgpu::DeviceType::DiscreteGpu => 0,
            wgpu::DeviceType::IntegratedGpu => 1,
            wgpu::DeviceType::VirtualGpu => 2,
            wgpu::DeviceType::Other => 3,
            wgpu::DeviceType::Cpu => 4,
        });
        adapters
    })
}

/// The adapters as devices.
pub(super) fn devices() -> Result<Vec<Device>> {
    let hooks = Hooks::get()?;
    let device = |(index, adapter): (usize, &wgpu::Adapter)| {
        let info = adapter.get_info();
        let limits = limits(adapter, &hooks);
        let kind = match info.device_type {
            wgpu::DeviceType::DiscreteGpu => "discrete",
            wgpu::DeviceType::IntegratedGpu => "integrated",
            wgpu::DeviceType::VirtualGpu => "virtual",
            wgpu::DeviceType::Other => "other",
            wgpu::DeviceType::Cpu => "software",
        };
        let driver = [info.driver.as_str(), info.driver_info.as_str()].join(" ");
        let mib = |bytes: u64| format!("{} MiB", bytes >> 20);
        let facts = vec![
            ("backend", info.backend.to_string()),
            ("driver", driver.trim().to_string()),
            ("kind", kind.to_string()),
            ("binding", mib(limits.max_storage_buffer_binding_size)),
            ("buffer", mib(limits.max_buffer_size)),
            ("workgroup memory", format!("{} KiB", limits.max_compute_workgroup_storage_size >> 10)),
            (
                "subgroups",
                if features(adapter, &hooks).contains(Features::SUBGROUP) { "yes" } else { "no" }.into(),
            ),
        ];
        Ok(Device {
            family: &super::FAMILY,
            index,
            name: info.name,
            memory_bytes: None,
            binding_bytes: hooks.binding_bytes.unwrap_or_else(|| binding_bytes(&limits)),
            software: info.device_type == wgpu::DeviceType::Cpu && !hooks.hardware,
            identity: Some(identity(adapter, &hooks)?),
            facts,
            unusable: missing(&limits),
            others: Vec::new(),
        })
    };
    adapters().iter().enumerate().map(device).collect()
}

/// What a check of the kernels holds for: the adapter, its driver, what is asked of it, and the text of the shaders.
fn identity(adapter: &wgpu::Adapter, hooks: &Hooks) -> Result<String> {
    // Other versions of wgpu make other code of the same shaders. Some backends name no driver: it comes with the system.
    const VERSIONS: &str = include_str!("../../../Cargo.lock");
    let (features, limits) = (features(adapter, hooks), limits(adapter, hooks));
    let system = system_version();
    let mut identity = format!("{VERSIONS}\n{system}\n{:?}\n{features:?}\n{limits:?}\n", adapter.get_info());
    for kernel in KERNELS {
        identity += &hooks.text_of(kernel, features.contains(Features::SUBGROUP))?;
    }
    Ok(identity)
}

#[cfg(unix)]
fn system_version() -> String {
    let system = rustix::system::uname();
    format!("{} {}", system.sysname().to_string_lossy(), system.release().to_string_lossy())
}

/// Drivers report their versions there.
#[cfg(not(unix))]
fn system_version() -> String {
    std::env::consts::OS.into()
}

/// The most that one launch may bind at once.
fn binding_bytes(limits: &wgpu::Limits) -> u64 {
    limits.max_storage_buffer_binding_size.min(limits.max_buffer_size)
}

/// What of the adapter's limits is asked for.
fn limits(adapter: &wgpu::Adapter, hooks: &Hooks) -> wgpu::Limits {
    let there = adapter.limits();
    let defaults = wgpu::Limits::default().or_worse_values_from(&there);
    if hooks.poor {
        return wgpu::Limits { max_compute_workgroup_storage_size: WORKGROUP_BYTES_MIN / 2, ..defaults };
    }
    if hooks.default_limits {
        return defaults;
    }
    wgpu::Limits {
        max_storage_buffer_binding_size: there.max_storage_buffer_binding_size.min(BINDING_BYTES_MAX),
        max_buffer_size: there.max_buffer_size.min(BINDING_BYTES_MAX),
        max_compute_workgroup_storage_size: there.max_compute_workgroup_storage_size,
        ..defaults
    }
}

fn features(adapter: &wgpu::Adapter, hooks: &Hooks) -> Features {
    let useful = Features::SUBGROUP | Features::TIMESTAMP_QUERY | Features::TIMESTAMP_QUERY_INSIDE_ENCODERS;
    let unwanted = if hooks.no_subgroups { Features::SUBGROUP } else { Features::empty() };
    adapter.features() & useful & !unwanted
}

/// Why an adapter cannot run the shaders, if it cannot.
fn missing(limits: &wgpu::Limits) -> Option<Error> {
    let needs = [
        ("invocations in a workgroup", limits.max_compute_invocations_per_workgroup, THREADS as u32),
        ("storage buffers", limits.max_storage_buffers_per_shader_stage, STORAGE_BUFFERS),
        ("bytes of workgroup memory", limits.max_compute_workgroup_storage_size, WORKGROUP_BYTES_MIN),
    ];
    let (what, has, needed) = needs.into_iter().find(|(_, has, needed)| has < needed)?;
    let refusal = format!("the adapter allows {has} {what}, and {needed} are needed");
    Some(Error::device(refusal).hint("use --device cpu"))
}

/// An open device.
#[derive(Debug)]
pub(super) struct Gpu {
    pub(super) device: wgpu::Device,
    pub(super) queue: wgpu::Queue,
    pub(super) pipelines: Pipelines,
    pub(super) group_models: usize,
    name: String,
    features: Features,
    buffer_bytes_max: u64,
    /// The first failure that could not be returned.
    failure: Arc<Mutex<Option<String>>>,
    submissions: AtomicU64,
    waits: AtomicU64,
    allocated: AtomicU64,
    hooks: Hooks,
}

impl Gpu {
    /// The device of an adapter, the same one for all who ask: its pipelines are compiled once.
    pub(super) fn of(device: &Device) -> Result<Arc<Self>> {
        static OPEN: Mutex<Vec<(usize, Arc<Gpu>)>> = Mutex::new(Vec::new());
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        // One that was lost is of no use to anybody.
        open.retain(|(_, gpu)| gpu.healthy().is_ok());
        if let Some((_, gpu)) = open.iter().find(|(index, _)| *index == device.index) {
            return Ok(Arc::clone(gpu));
        }
        let gpu = Arc::new(Self::open(device)?);
        open.push((device.index, Arc::clone(&gpu)));
        Ok(gpu)
    }

    fn open(wanted: &Device) -> Result<Self> {
        let name = format!("{} {}", wanted.id(), wanted.name);
        if let Some(reason) = &wanted.unusable {
            return Err(Error { message: format!("{name}: {reason}"), ..reason.clone() });
        }
        let adapter = adapters().get(wanted.index).expect("devices are made from adapters");
        let hooks = Hooks::get()?;
        let (features, limits) = (features(adapter, &hooks), limits(adapter, &hooks));
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("mergeforge"),
            required_features: features,
            required_limits: limits.clone(),
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            ..Default::default()
        };
        let (device, queue) = block_on(adapter.request_device(&descriptor))
            .map_err(|cause| failed(&name, "open the device", &cause))?;
        let failure = Arc::<Mutex<Option<String>>>::default();
        let of_errors = Arc::clone(&failure);
        device.on_uncaptured_error(Arc::new(move |error| {
            let text = error.to_string();
            // Nobody destroys a buffer but a device that is lost, and another thread may see that before the device says so.
            let text = if text.contains("has been destroyed") {
                format!("the device was lost: {text}")
            } else {
                text
            };
            of_errors.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(text);
        }));
        let of_loss = Arc::clone(&failure);
        device.set_device_lost_callback(move |reason, text| {
            let text = format!("the device was lost ({reason:?}) {text}");
            // What failed before may have failed because of that.
            *of_loss.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
        });
        let group_models = shaders::group_models(limits.max_compute_workgroup_storage_size);
        let pipelines = Pipelines::new(&device, group_models);
        Ok(Self {
            device,
            queue,
            pipelines,
            group_models,
            name,
            features,
            buffer_bytes_max: limits.max_buffer_size,
            failure,
            submissions: AtomicU64::new(0),
            waits: AtomicU64::new(0),
            allocated: AtomicU64::new(0),
            hooks,
        })
    }

    /// Whether passes, and whether all commands, can be timed by the device's clock.
    pub(super) fn timing(&self) -> (bool, bool) {
        let has = |feature| self.features.contains(feature);
        (has(Features::TIMESTAMP_QUERY), has(Features::TIMESTAMP_QUERY_INSIDE_ENCODERS))
    }

    /// What went wrong so far.
    pub(super) fn healthy(&self) -> Result<()> {
        match &*self.failure.lock().unwrap_or_else(PoisonError::into_inner) {
            None => Ok(()),
            Some(text) => {
                Err(Error::device(format!("{}: {}", self.name, one_line(text))).hint(hint_for(text)))
            }
        }
    }

    /// What an operation gives, or the error that the device reports of it.
    fn scoped<T>(&self, what: &str, run: impl FnOnce() -> T) -> Result<T> {
        let memory = self.device.push_error_scope(ErrorFilter::OutOfMemory);
        let internal = self.device.push_error_scope(ErrorFilter::Internal);
        let validation = self.device.push_error_scope(ErrorFilter::Validation);
        let made = run();
        let errors = [block_on(validation.pop()), block_on(internal.pop()), block_on(memory.pop())];
        match errors.into_iter().flatten().next() {
            None => self.healthy().map(|()| made),
            Some(error) => {
                let is_full = matches!(error, wgpu::Error::OutOfMemory { .. });
                let failed = failed(&self.name, what, &error);
                Err(Error { kind: if is_full { Kind::DeviceMemory } else { failed.kind }, ..failed })
            }
        }
    }

    /// Takes back what `run` got, if it fails.
    pub(super) fn all_or_nothing<T>(&self, run: impl FnOnce() -> Result<T>) -> Result<T> {
        let before = self.allocated.load(Ordering::Relaxed);
        run().inspect_err(|_| self.allocated.store(before, Ordering::Relaxed))
    }

    /// A new buffer, of zeros.
    pub(super) fn buffer(
        &self,
        what: &str,
        bytes: u64,
        usage: BufferUsages,
        mapped: bool,
    ) -> Result<wgpu::Buffer> {
        let size = bytes.max(16).next_multiple_of(16);
        let action = format!("get {:.2} MB for {what}", size as f64 / 1e6);
        let so_far = self.allocated.fetch_add(size, Ordering::Relaxed) + size;
        if size > self.buffer_bytes_max || self.hooks.memory.is_some_and(|most| so_far > most) {
            self.allocated.fetch_sub(size, Ordering::Relaxed);
            let cause = "the device has no room for it";
            let refusal = Error::device(format!("{}: cannot {action}: {cause}", self.name)).hint(MEMORY_HINT);
            return Err(Error { kind: Kind::DeviceMemory, ..refusal });
        }
        let descriptor =
            wgpu::BufferDescriptor { label: Some(what), size, usage, mapped_at_creation: mapped };
        self.scoped(&action, || self.device.create_buffer(&descriptor))
    }

    /// Compiles a shader.
    pub(super) fn shader(&self, kernel: &Kernel) -> Result<wgpu::ShaderModule> {
        let name = kernel.name;
        let text = self.hooks.text_of(kernel, self.features.contains(Features::SUBGROUP))?;
        let source = wgpu::ShaderSource::Wgsl(text.into());
        let descriptor = wgpu::ShaderModuleDescriptor { label: Some(name), source };
        self.scoped(&format!("compile the shader {name}"), || {
            if self.hooks.shaders.is_some() {
                return self.device.create_shader_module(descriptor);
            }
            let mut checks = wgpu::ShaderRuntimeChecks::checked();
            checks.force_loop_bounding = false;
            // SAFETY: what is switched off is the guard against loops without an end; all loops of the shaders in the program
            // count up to a constant or to a number of the table, which nobody writes to. Accesses to memory stay checked.
            unsafe { self.device.create_shader_module_trusted(descriptor, checks) }
        })
    }

    /// Compiles a pipeline.
    pub(super) fn pipeline(
        &self,
        name: &str,
        layout: &wgpu::PipelineLayout,
        module: &wgpu::ShaderModule,
        constants: &[(&str, f64)],
    ) -> Result<wgpu::ComputePipeline> {
        let descriptor = wgpu::ComputePipelineDescriptor {
            label: Some(name),
            layout: Some(layout),
            module,
            entry_point: Some(name),
            // Shaders write to workgroup memory before they read it.
            compilation_options: wgpu::PipelineCompilationOptions {
                constants,
                zero_initialize_workgroup_memory: false,
            },
            cache: None,
        };
        self.scoped(&format!("compile the kernel {name}"), || {
            self.device.create_compute_pipeline(&descriptor)
        })
    }

    /// Hands commands to the device.
    pub(super) fn submit(&self, commands: wgpu::CommandEncoder) -> Result<wgpu::SubmissionIndex> {
        let number = self.submissions.fetch_add(1, Ordering::Relaxed) + 1;
        if self.hooks.lose == Some(number) {
            self.device.destroy();
        }
        let index = self.queue.submit([commands.finish()]);
        self.healthy().map(|()| index)
    }

    /// Waits until the device is done with what was submitted.
    pub(super) fn wait(&self, index: wgpu::SubmissionIndex) -> Result<()> {
        let wait = wgpu::PollType::Wait { submission_index: Some(index), timeout: Some(PATIENCE) };
        let number = self.waits.fetch_add(1, Ordering::Relaxed) + 1;
        // wgpu panics where a device is lost while it is waited for.
        let waited = without_panic(|| {
            assert!(self.hooks.panic != Some(number), "planted");
            self.device.poll(wait)
        });
        self.healthy()?;
        match waited {
            Some(Ok(_)) => Ok(()),
            Some(Err(cause @ wgpu::PollError::Timeout)) => Err(failed(&self.name, "finish its work", &cause)),
            // What was submitted never came to the device.
            Some(Err(wgpu::PollError::WrongSubmissionIndex(..))) | None => {
                Err(Error::device(format!("{}: the device was lost", self.name)).hint(HINT))
            }
        }
    }

    /// The error of a buffer that cannot be mapped although it is used as it should be.
    fn unmapped(&self, cause: &dyn std::error::Error) -> Error {
        let lost = || Error::device(format!("{}: the device was lost: {cause}", self.name)).hint(HINT);
        self.healthy().err().unwrap_or_else(lost)
    }
}

const HINT: &str =
    "`mergeforge check --device wgpu` tests the device; --device cpu gives the same bytes without it";

const MEMORY_HINT: &str =
    "give the merge less with --device-memory (and --host-memory), or end other programs on the device";

/// What can be done about an error with this text.
fn hint_for(text: &str) -> &'static str {
    if text.to_lowercase().contains("memory") { MEMORY_HINT } else { HINT }
}

/// wgpu's messages have several lines.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn failed(name: &str, what: &str, cause: &dyn std::error::Error) -> Error {
    let mut causes = vec![one_line(&cause.to_string())];
    let mut next = cause.source();
    while let Some(source) = next {
        causes.push(one_line(&source.to_string()));
        next = source.source();
    }
    causes.dedup();
    let causes = causes.join(": ");
    let hint = hint_for(&causes);
    Error::device(format!("{name}: cannot {what}: {causes}")).hint(hint)
}

/// A buffer that the host and the device own by turns.
#[derive(Debug)]
struct Shared {
    buffer: wgpu::Buffer,
    /// Tells that the host has it again.
    mapped: Option<Receiver<std::result::Result<(), wgpu::BufferAsyncError>>>,
}

impl Shared {
    /// Gives it to the host as soon as the device is done with these commands.
    fn map_after(&mut self, commands: &wgpu::CommandEncoder, mode: wgpu::MapMode) {
        let (sender, receiver) = mpsc::channel();
        commands.map_buffer_on_submit(&self.buffer, mode, .., move |mapped| {
            // Whoever does not wait any more does not want to know.
            let _ = sender.send(mapped);
        });
        self.mapped = Some(receiver);
    }

    /// Waits until the host has it. The device must be done: another thread may just be about to say so.
    fn wait(&mut self, gpu: &Gpu) -> Result<()> {
        let Some(receiver) = self.mapped.take() else { return Ok(()) };
        match receiver.recv_timeout(PATIENCE) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(cause)) => Err(gpu.unmapped(&cause)),
            Err(cause) => Err(gpu.unmapped(&cause)),
        }
    }
}

/// Memory that the host writes and the device copies from.
#[derive(Debug)]
pub(super) struct Upload {
    shared: Shared,
    view: Option<wgpu::BufferViewMut>,
}

impl Upload {
    pub(super) fn new(gpu: &Gpu, bytes: u64) -> Result<Self> {
        let usage = BufferUsages::MAP_WRITE | BufferUsages::COPY_SRC;
        let buffer = gpu.buffer("staging", bytes, usage, true)?;
        let mut upload = Self { shared: Shared { buffer, mapped: None }, view: None };
        upload.open(gpu)?;
        Ok(upload)
    }

    fn open(&mut self, gpu: &Gpu) -> Result<()> {
        let view = self.shared.buffer.get_mapped_range_mut(..).map_err(|cause| gpu.unmapped(&cause))?;
        self.view = Some(view);
        Ok(())
    }

    /// What the host writes to. It may be write-combined: reading it is slow.
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        let mut view = self.view.as_mut().expect("the host has it").slice(..);
        let len = view.len();
        let start = view.as_raw_element_ptr();
        // SAFETY: so many bytes are mapped while the view lives, which the borrow of `self` holds; wgpu made them zeros when
        // the buffer was new; nobody else has them until `hand_over`.
        unsafe { std::slice::from_raw_parts_mut(start.as_ptr().cast::<u8>(), len) }
    }

    /// Gives it to the device, for commands that are submitted next.
    pub(super) fn hand_over(&mut self) -> &wgpu::Buffer {
        self.view = None;
        self.shared.buffer.unmap();
        &self.shared.buffer
    }

    /// Has it given back when these commands are done.
    pub(super) fn map_after(&mut self, commands: &wgpu::CommandEncoder) {
        self.shared.map_after(commands, wgpu::MapMode::Write);
    }

    /// Takes it back. The device must be done with it.
    pub(super) fn take_back(&mut self, gpu: &Gpu) -> Result<()> {
        self.shared.wait(gpu)?;
        self.open(gpu)
    }
}

/// Memory that the device copies to and the host reads.
#[derive(Debug)]
pub(super) struct Download(Shared);

impl Download {
    pub(super) fn new(gpu: &Gpu, bytes: u64) -> Result<Self> {
        let usage = BufferUsages::MAP_READ | BufferUsages::COPY_DST;
        let buffer = gpu.buffer("results", bytes, usage, false)?;
        Ok(Self(Shared { buffer, mapped: None }))
    }

    pub(super) fn buffer(&self) -> &wgpu::Buffer {
        &self.0.buffer
    }

    /// Has it given to the host when these commands are done.
    pub(super) fn map_after(&mut self, commands: &wgpu::CommandEncoder) {
        self.0.map_after(commands, wgpu::MapMode::Read);
    }

    /// Shows what the device wrote. The device must be done with it.
    pub(super) fn read<T>(&mut self, gpu: &Gpu, read: impl FnOnce(&[u8]) -> Result<T>) -> Result<T> {
        self.0.wait(gpu)?;
        let view = self.0.buffer.get_mapped_range(..).map_err(|cause| gpu.unmapped(&cause))?;
        let result = read(&view);
        drop(view);
        self.0.buffer.unmap();
        result
    }
}

//! The CUDA driver, as far as it is needed: handles that close themselves, and errors with a way out.
//!
//! Handles belong to the device's primary context, which stays open as long as the process runs, and which a thread must
//! have bound ([`Context::bind`]) before it uses any of them: without it the driver answers with an error. Places in the
//! device's memory are [`Region`]s, which lie within it. What the driver does with memory it does later, when no borrow
//! holds it any more: functions that start such work are `unsafe` and say what has to be kept until when.

use std::ffi::{CStr, CString, c_int, c_void};
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::DriverError;
use cudarc::driver::result as cu;
use cudarc::driver::sys::{
    CUcontext, CUdevice, CUdevice_attribute as Attribute, CUdeviceptr, CUevent, CUevent_flags, CUfunction,
    CUjit_option as Jit, CUmodule, CUresult, CUstream, cuEventCreate, cuModuleLoadDataEx, is_culib_present,
};

use crate::error::{Error, Kind, Result};

/// The oldest driver that the kernels' PTX and the functions called are made for: CUDA 12.0.
const VERSION_MIN: i32 = 12_000;

/// The oldest compute capability that the kernels are compiled for: Turing.
const CAPABILITY_MIN: (i32, i32) = (7, 5);

/// Says what failed, and what can be done about it.
fn failed(what: &str) -> impl FnOnce(DriverError) -> Error + '_ {
    move |DriverError(code)| {
        let text = |text: std::result::Result<&std::ffi::CStr, DriverError>| {
            text.map_or_else(|_| "unknown".into(), |text| text.to_string_lossy().into_owned())
        };
        let (name, meaning) = (text(DriverError(code).error_name()), text(DriverError(code).error_string()));
        let error = Error::device(format!("CUDA: cannot {what}: {meaning} ({name})"));
        match code {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => error.hint(
                "give it less with --device-memory, or end other programs on the device",
            ),
            CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU
            | CUresult::CUDA_ERROR_INVALID_PTX
            | CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION => error.hint("update the NVIDIA driver"),
            CUresult::CUDA_ERROR_JIT_COMPILER_NOT_FOUND => error.hint(
                "install libnvidia-ptxjitcompiler of the driver's own version, which compiles the kernels; in a container, \
                 NVIDIA_DRIVER_CAPABILITIES has to have `compute`",
            ),
            CUresult::CUDA_ERROR_JIT_COMPILATION_DISABLED => {
                error.hint("unset CUDA_DISABLE_PTX_JIT and CUDA_DISABLE_JIT: the driver has to compile the kernels")
            }
            CUresult::CUDA_ERROR_NO_DEVICE => error.hint(
                "use --device cpu; nvidia-smi lists the GPUs, and CUDA_VISIBLE_DEVICES may hide them",
            ),
            _ => error.hint(
                "`mergeforge check --device cuda` tests the device; --device cpu gives the same bytes without it",
            ),
        }
    }
}

/// Loads the driver and asks how many devices it has.
///
/// # Errors
/// Kind `Device`: there is no driver, it is too old, or it fails.
pub(super) fn device_count() -> Result<usize> {
    // SAFETY: it opens the library and closes it again.
    if !unsafe { is_culib_present() } {
        return Err(Error::device("no NVIDIA driver is installed (libcuda is not found)")
            .hint("install NVIDIA's driver, or use --device cpu"));
    }
    cu::init().map_err(failed("start the driver"))?;
    let version = version()?;
    if version < VERSION_MIN {
        let (major, minor) = (version / 1000, version % 1000 / 10);
        return Err(Error::device(format!(
            "the NVIDIA driver is too old: it supports CUDA {major}.{minor}, and 12.0 is needed"
        ))
        .hint("update the NVIDIA driver, or use --device cpu"));
    }
    let count = cu::device::get_count().map_err(failed("count the devices"))?;
    Ok(count.max(0) as usize)
}

/// The newest CUDA that the driver supports: 1000 · major + 10 · minor.
pub(super) fn version() -> Result<i32> {
    let mut version: c_int = 0;
    // SAFETY: the pointer is to a live integer.
    unsafe { cudarc::driver::sys::cuDriverGetVersion(&raw mut version).result() }
        .map_err(failed("ask for the driver's version"))?;
    Ok(version)
}

/// A device's primary context, retained while this lives.
#[derive(Debug)]
pub(super) struct Context {
    device: CUdevice,
    context: CUcontext,
}

// SAFETY: contexts may be used from any thread.
unsafe impl Send for Context {}
// SAFETY: the driver's functions may be called by several threads at once.
unsafe impl Sync for Context {}

/// What there is to know of a device without opening it.
#[derive(Debug)]
pub(super) struct About {
    pub(super) name: String,
    pub(super) total_bytes: u64,
    pub(super) capability: (i32, i32),
    pub(super) multiprocessors: i32,
}

/// Asks a device what it is.
pub(super) fn about(index: usize) -> Result<About> {
    let device = cu::device::get(index as c_int).map_err(failed("find the device"))?;
    let attribute = |attribute| {
        // SAFETY: the device is one that the driver gave.
        unsafe { cu::device::get_attribute(device, attribute) }.map_err(failed("ask what the device is"))
    };
    Ok(About {
        name: cu::device::get_name(device).map_err(failed("ask for the device's name"))?,
        // SAFETY: as above.
        total_bytes: unsafe { cu::device::total_mem(device) }
            .map_err(failed("ask for the device's memory"))? as u64,
        capability: (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
    })
}

/// The refusal of a device that kernels cannot be compiled for.
pub(super) fn too_old(About { name, capability, .. }: &About) -> Option<Error> {
    let (major, minor) = capability;
    let refusal =
        format!("{name} has compute capability {major}.{minor}, and 7.5 (Turing) is the oldest supported");
    (*capability < CAPABILITY_MIN).then(|| Error::device(refusal).hint("use --device cpu"))
}

impl Context {
    /// The context of a device, the same one for all who ask: making it takes a good part of a second.
    pub(super) fn of(index: usize) -> Result<Arc<Self>> {
        static OPEN: Mutex<Vec<(usize, Arc<Context>)>> = Mutex::new(Vec::new());
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, context)) = open.iter().find(|(known, _)| *known == index) {
            context.bind()?;
            return Ok(Arc::clone(context));
        }
        if let Some(refusal) = too_old(&about(index)?) {
            return Err(refusal);
        }
        let device = cu::device::get(index as c_int).map_err(failed("find the device"))?;
        // SAFETY: the device is one that the driver gave.
        let context = unsafe { cu::primary_ctx::retain(device) }.map_err(|cause| {
            let error = failed("open the device")(DriverError(cause.0));
            match cause.0 {
                // What the driver takes for itself, before any budget.
                CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                    error.hint("end other programs on the device, or use --device cpu")
                }
                _ => error,
            }
        })?;
        let context = Arc::new(Self { device, context });
        context.bind()?;
        open.push((index, Arc::clone(&context)));
        Ok(context)
    }

    /// Makes it this thread's context.
    pub(super) fn bind(&self) -> Result<()> {
        // SAFETY: the context is retained.
        unsafe { cu::ctx::set_current(self.context) }.map_err(failed("use the device"))
    }

    /// Waits until the device has done all that it was asked for, by whatever thread.
    pub(super) fn synchronize(&self) -> Result<()> {
        self.bind()?;
        cu::ctx::synchronize().map_err(failed("finish its work"))
    }

    /// The free bytes of the device's memory.
    pub(super) fn free_bytes(&self) -> Result<u64> {
        self.bind()?;
        let (free, _) = cu::mem_get_info().map_err(failed("ask for the device's free memory"))?;
        Ok(free as u64)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: it was retained once. Nobody is left to hear of an error.
        let _ = unsafe { cu::primary_ctx::release(self.device) };
    }
}

/// A queue of work that the device does in order.
#[derive(Debug)]
pub(super) struct CudaStream(CUstream);

// SAFETY: streams may be used from any thread, and by several at once.
unsafe impl Send for CudaStream {}
// SAFETY: as above.
unsafe impl Sync for CudaStream {}

impl CudaStream {
    pub(super) fn new() -> Result<Self> {
        cu::stream::create(cu::stream::StreamKind::NonBlocking).map(Self).map_err(failed("make a stream"))
    }

    /// Fills a region from the beginning of `from`, later.
    ///
    /// # Safety
    /// Until the device has done it, `from` is neither written to nor dropped, and the region's memory is not dropped.
    ///
    /// # Panics
    /// The region is larger than `from`.
    pub(super) unsafe fn copy_in(&self, from: &Pinned, to: Region<'_>) -> Result<()> {
        // SAFETY: both ends have so many bytes, and the caller keeps them.
        unsafe { cu::memcpy_htod_async(to.address, &from.bytes()[..to.bytes], self.0) }
            .map_err(failed("copy to the device"))
    }

    /// Copies a region to the beginning of `to`, later.
    ///
    /// # Safety
    /// Until the device has done it, `to` is neither read nor written to nor dropped, and the region's memory is not
    /// dropped.
    ///
    /// # Panics
    /// The region is larger than `to`.
    pub(super) unsafe fn copy_out(&self, from: Region<'_>, to: &mut Pinned) -> Result<()> {
        // SAFETY: both ends have so many bytes, and the caller keeps them.
        unsafe { cu::memcpy_dtoh_async(&mut to.bytes_mut()[..from.bytes], from.address, self.0) }
            .map_err(failed("copy from the device"))
    }

    /// Fills a region with one byte, later.
    ///
    /// # Safety
    /// Until the device has done it, the region's memory is not dropped.
    pub(super) unsafe fn fill(&self, region: Region<'_>, byte: u8) -> Result<()> {
        // SAFETY: the region has so many bytes, and the caller keeps it.
        unsafe { cu::memset_d8_async(region.address, byte, region.bytes, self.0) }
            .map_err(failed("clear the device's memory"))
    }

    /// Copies a region to another one, later.
    ///
    /// # Safety
    /// Until the device has done it, the memory of neither is dropped.
    ///
    /// # Panics
    /// They have different sizes.
    pub(super) unsafe fn copy(&self, from: Region<'_>, to: Region<'_>) -> Result<()> {
        assert_eq!(from.bytes, to.bytes, "regions that are copied have one size");
        // SAFETY: both ends have so many bytes, and the caller keeps them.
        unsafe { cu::memcpy_dtod_async(to.address, from.address, from.bytes, self.0) }
            .map_err(failed("copy within the device's memory"))
    }

    /// Waits until the device has done all that is in it.
    pub(super) fn synchronize(&self) -> Result<()> {
        // SAFETY: the stream lives.
        unsafe { cu::stream::synchronize(self.0) }.map_err(failed("finish its work"))
    }

    /// The stream, for libraries.
    pub(super) fn handle(&self) -> *mut c_void {
        self.0.cast()
    }

    /// Starts a kernel of any parameters, later.
    ///
    /// # Safety
    /// The kernel has these parameters, and touches no place outside of its regions. Until the device has done it, neither the
    /// regions' memory nor the kernel's module is dropped.
    pub(super) unsafe fn start(
        &self,
        kernel: &Function,
        blocks: u32,
        threads: u32,
        parameters: &[Parameter<'_>],
    ) -> Result<()> {
        // Little endian, as all machines with such devices are: the lower bytes are the smaller number.
        let mut values: Vec<u64> = parameters.iter().map(Parameter::bits).collect();
        let mut pointers: Vec<*mut c_void> =
            values.iter_mut().map(|value| std::ptr::from_mut(value).cast()).collect();
        // SAFETY: the driver copies the parameters, which the kernel has, before it returns; the caller keeps what they mean.
        unsafe { cu::launch_kernel(kernel.0, (blocks, 1, 1), (threads, 1, 1), 0, self.0, &mut pointers) }
            .map_err(failed("start a kernel"))
    }

    /// Starts a kernel of this project, later: its three parameters are `memory`, `table` and `results`.
    ///
    /// # Safety
    /// The kernel, the grid and the threads are those of the table that is in its region when the kernel begins, and the
    /// table names no place outside of `memory` and `results`. Until the device has done it, neither the regions' memory
    /// nor the kernel's module is dropped.
    pub(super) unsafe fn launch(
        &self,
        kernel: &Function,
        grid: (u32, u32),
        threads: u32,
        parameters: [Region<'_>; 3],
    ) -> Result<()> {
        let mut addresses = parameters.map(|region| region.address);
        let mut pointers = addresses.each_mut().map(|address| std::ptr::from_mut(address).cast::<c_void>());
        // SAFETY: all entries have these parameters, which the driver copies before it returns; what they point to is as
        // the kernel expects it, and kept, as the caller promises.
        unsafe { cu::launch_kernel(kernel.0, (grid.0, grid.1, 1), (threads, 1, 1), 0, self.0, &mut pointers) }
            .map_err(failed("start a kernel"))
    }
}

impl Drop for CudaStream {
    fn drop(&mut self) {
        // SAFETY: nobody has the handle any more.
        let _ = unsafe { cu::stream::destroy(self.0) };
    }
}

/// A point in a stream that can be waited for.
#[derive(Debug)]
pub(super) struct Event(CUevent);

// SAFETY: events may be used from any thread.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    pub(super) fn new() -> Result<Self> {
        Self::with(CUevent_flags::CU_EVENT_DISABLE_TIMING)
    }

    /// One that knows its time, which costs the device a moment.
    pub(super) fn timed() -> Result<Self> {
        Self::with(CUevent_flags::CU_EVENT_DEFAULT)
    }

    fn with(flags: CUevent_flags) -> Result<Self> {
        // Threads that wait sleep: there are more of them than cores have time for.
        let flags = flags as u32 | CUevent_flags::CU_EVENT_BLOCKING_SYNC as u32;
        let mut event = std::ptr::null_mut();
        // SAFETY: the pointer is to a live handle.
        unsafe { cuEventCreate(&raw mut event, flags).result() }
            .map(|()| Self(event))
            .map_err(failed("make an event"))
    }

    pub(super) fn record(&self, stream: &CudaStream) -> Result<()> {
        // SAFETY: both handles live.
        unsafe { cu::event::record(self.0, stream.0) }.map_err(failed("record an event"))
    }

    /// Waits until the device has come to it.
    pub(super) fn synchronize(&self) -> Result<()> {
        // SAFETY: the event lives.
        unsafe { cu::event::synchronize(self.0) }.map_err(failed("finish its work"))
    }

    /// Milliseconds since another event; both must be timed, and have been waited for.
    pub(super) fn milliseconds_since(&self, earlier: &Self) -> Result<f32> {
        // SAFETY: both events live.
        unsafe { cu::event::elapsed(earlier.0, self.0) }.map_err(failed("read the time"))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: nobody has the handle any more.
        let _ = unsafe { cu::event::destroy(self.0) };
    }
}

/// Device memory.
#[derive(Debug)]
pub(super) struct DeviceMemory {
    start: CUdeviceptr,
    bytes: u64,
}

/// A parameter of a kernel.
#[derive(Debug, Clone, Copy)]
pub(super) enum Parameter<'a> {
    /// A pointer.
    Place(Region<'a>),
    Long(u64),
    Word(u32),
    Number(f32),
}

impl Parameter<'_> {
    fn bits(&self) -> u64 {
        match *self {
            Self::Place(region) => region.address,
            Self::Long(value) => value,
            Self::Word(value) => value.into(),
            Self::Number(value) => value.to_bits().into(),
        }
    }
}

/// A part of device memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Region<'a> {
    address: CUdeviceptr,
    bytes: usize,
    memory: PhantomData<&'a DeviceMemory>,
}

impl Region<'_> {
    /// Where it begins, for libraries.
    pub(super) fn address(&self) -> *mut c_void {
        std::ptr::with_exposed_provenance_mut(self.address as usize)
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl DeviceMemory {
    pub(super) fn new(bytes: u64) -> Result<Self> {
        // SAFETY: freed once, on drop.
        let start = unsafe { cu::malloc_sync(bytes as usize) }.map_err(|code| {
            let error = failed(&format!("get {:.2} MB of the device's memory", bytes as f64 / 1e6))(code);
            let is_full = code.0 == CUresult::CUDA_ERROR_OUT_OF_MEMORY;
            Error { kind: if is_full { Kind::DeviceMemory } else { error.kind }, ..error }
        })?;
        Ok(Self { start, bytes })
    }

    /// So many bytes from a place on.
    ///
    /// # Panics
    /// They do not lie within the memory.
    pub(super) fn region(&self, place: u64, bytes: u64) -> Region<'_> {
        let end = place.checked_add(bytes);
        assert!(end.is_some_and(|end| end <= self.bytes), "a region lies within the device's memory");
        Region { address: self.start + place, bytes: bytes as usize, memory: PhantomData }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn all(&self) -> Region<'_> {
        self.region(0, self.bytes)
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        // SAFETY: nobody uses it any more: whoever started work with it has waited for that (see `CudaStream`).
        let _ = unsafe { cu::free_sync(self.start) };
    }
}

/// Host memory that the device copies from or to by itself. It is cached like any other: inputs are copied into it out of the page
/// cache, and write-combined memory takes such copies slowly on some machines.
#[derive(Debug)]
pub(super) struct Pinned {
    start: *mut u8,
    bytes: usize,
}

// SAFETY: it is plain memory with one owner.
unsafe impl Send for Pinned {}

impl Pinned {
    pub(super) fn new(bytes: usize) -> Result<Self> {
        // SAFETY: freed once, on drop.
        let start = unsafe { cu::malloc_host(bytes, 0) };
        let start = start.map_err(|code| {
            let error = failed(&format!("pin {:.1} MB of host memory", bytes as f64 / 1e6))(code);
            match code.0 {
                CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                    error.hint("give the merge less with --host-memory, or use fewer --threads")
                }
                _ => error,
            }
        })?;
        Ok(Self { start: start.cast(), bytes })
    }

    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: so many bytes are ours. They are pages of the system, which come with values.
        unsafe { std::slice::from_raw_parts(self.start, self.bytes) }
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and there is one owner.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.bytes) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: nobody uses it any more: whoever started work with it has waited for that (see `CudaStream`).
        let _ = unsafe { cu::free_host(self.start.cast()) };
    }
}

/// Kernels of one text, compiled for the device by the driver.
#[derive(Debug)]
pub(super) struct Module(CUmodule);

// SAFETY: modules may be used from any thread.
unsafe impl Send for Module {}

/// A kernel of a module.
#[derive(Debug, Clone, Copy)]
pub(super) struct Function(CUfunction);

// SAFETY: functions may be launched from any thread.
unsafe impl Send for Function {}

impl Module {
    /// Compiles the PTX of a kernel, which errors name.
    pub(super) fn new(name: &str, ptx: &str) -> Result<Self> {
        let text = CString::new(ptx).expect("PTX has no zero bytes");
        let mut log = [0u8; 1024];
        let mut options = [Jit::CU_JIT_ERROR_LOG_BUFFER, Jit::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
        // The size is a value in the place of a pointer, which the driver writes the length of the log to.
        let mut values = [log.as_mut_ptr().cast::<c_void>(), std::ptr::without_provenance_mut(log.len())];
        let (count, mut module) = (options.len() as u32, std::ptr::null_mut());
        // SAFETY: the text ends with a zero byte; it, the options and the log are used before the call returns.
        let loaded = unsafe {
            cuModuleLoadDataEx(
                &raw mut module,
                text.as_ptr().cast(),
                count,
                options.as_mut_ptr(),
                values.as_mut_ptr(),
            )
            .result()
        };
        loaded.map(|()| Self(module)).map_err(|code| {
            let error = failed(&format!("load the kernel {name}"))(code);
            let log = CStr::from_bytes_until_nul(&log).map_or("".into(), CStr::to_string_lossy);
            match log.lines().map(str::trim).find(|line| !line.is_empty()) {
                Some(line) => Error { message: Error::device(format!("{error}: {line}")).message, ..error },
                None => error,
            }
        })
    }

    /// The kernel of this entry.
    pub(super) fn kernel(&self, entry: &str) -> Result<Function> {
        let name = CString::new(entry).expect("names have no zero bytes");
        // SAFETY: the module lives.
        let kernel = unsafe { cu::module::get_function(self.0, name) };
        kernel.map(Function).map_err(failed(&format!("find the kernel {entry}")))
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: its kernels are done, and not started any more: whoever starts one keeps its module (see `CudaStream::launch`).
        let _ = unsafe { cu::module::unload(self.0) };
    }
}

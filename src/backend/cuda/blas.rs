//! cuBLAS, as far as it is needed: products of matrices. It is NVIDIA's, comes with the CUDA toolkit and with PyTorch, and is loaded
//! when somebody asks for it: nothing of it is needed to build or to merge.
//!
//! Names and numbers are those of <https://docs.nvidia.com/cuda/cublas/>. cudarc's own loader looks for libraries up to CUDA 12
//! only, and ends the program where it finds none.

use std::ffi::{c_int, c_longlong, c_void};
use std::ops::Range;
use std::path::PathBuf;

use libloading::Library;

use super::driver::{CudaStream, Region};
use crate::error::{Error, Result};

/// What the library calls a product: `C = α · op(A) · op(B) + β · C`, column by column, for a batch of matrices.
type GemmStridedBatchedEx = unsafe extern "C" fn(
    *mut c_void,
    c_int,
    c_int,
    c_int,
    c_int,
    c_int,
    *const c_void,
    *const c_void,
    c_int,
    c_int,
    c_longlong,
    *const c_void,
    c_int,
    c_int,
    c_longlong,
    *const c_void,
    *mut c_void,
    c_int,
    c_int,
    c_longlong,
    c_int,
    c_int,
    c_int,
) -> c_int;
type Create = unsafe extern "C" fn(*mut *mut c_void) -> c_int;
type SetStream = unsafe extern "C" fn(*mut c_void, *mut c_void) -> c_int;
type Destroy = unsafe extern "C" fn(*mut c_void) -> c_int;

const AS_IT_IS: c_int = 0;
const TRANSPOSED: c_int = 1;
const COMPUTE_32F: c_int = 68;
const DEFAULT_ALGORITHM: c_int = -1;

/// Where a user says that the library is.
pub(super) const VARIABLE: &str = "MERGEFORGE_CUBLAS";

/// A handle of the library, whose work goes to one stream.
#[derive(Debug)]
pub(super) struct Blas {
    handle: *mut c_void,
    multiply: GemmStridedBatchedEx,
    destroy: Destroy,
    /// Its functions are in use as long as this lives.
    _library: Library,
}

// SAFETY: a handle may be used from any thread, by one at a time.
unsafe impl Send for Blas {}

/// The elements of a matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Element {
    F32,
    BF16,
}

impl Element {
    fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::BF16 => 2,
        }
    }

    /// The library's number for it.
    fn code(self) -> c_int {
        match self {
            Self::F32 => 0,
            Self::BF16 => 14,
        }
    }
}

/// Matrices in device memory, row by row.
#[derive(Debug, Clone, Copy)]
pub(super) struct Matrices<'a> {
    pub(super) region: Region<'a>,
    pub(super) element: Element,
    /// The first element.
    pub(super) first: usize,
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// From a row to the next, in elements.
    pub(super) row: usize,
    /// From a matrix to the next, in elements.
    pub(super) apart: usize,
}

impl<'a> Matrices<'a> {
    /// One that fills a region from its beginning.
    pub(super) fn of(region: Region<'a>, element: Element, rows: usize, columns: usize) -> Self {
        Self { region, element, first: 0, rows, columns, row: columns, apart: 0 }
    }

    /// Some columns of each.
    pub(super) fn columns(self, columns: &Range<usize>) -> Self {
        Self { first: self.first + columns.start, columns: columns.len(), ..self }
    }

    /// Where the first of `count` begins.
    ///
    /// # Panics
    /// They do not lie within the region.
    fn start(&self, count: usize) -> *mut c_void {
        let last = self.first + (count - 1) * self.apart + (self.rows - 1) * self.row + self.columns;
        assert!(last * self.element.bytes() <= self.region.bytes(), "matrices lie within their region");
        assert!(self.columns <= self.row, "rows do not overlap");
        self.region.address().wrapping_byte_add(self.first * self.element.bytes())
    }
}

/// How the right side of a product is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Right {
    AsItIs,
    Transposed,
}

impl Blas {
    /// Finds the library, and makes a handle for a stream of the current context.
    ///
    /// # Errors
    /// Kind `Device`: it is not there, or does not work.
    pub(super) fn new(stream: &CudaStream) -> Result<Self> {
        let said = std::env::var_os(VARIABLE).map(PathBuf::from);
        let places = said.map_or_else(places, |place| vec![place]);
        let (only, mut failure) = (places.len() == 1, None);
        for place in places {
            // SAFETY: what a library of this name does when it is loaded is the user's to know, as with the driver.
            let found = match unsafe { Library::new(&place) } {
                Ok(library) => Self::with(library, stream),
                // It is not there; where it is, the message is of what it needs itself.
                Err(error) if !only && error.to_string().starts_with(&*place.to_string_lossy()) => continue,
                Err(error) => Err(error.to_string()),
            };
            match found {
                Ok(blas) => return Ok(blas),
                Err(reason) => _ = failure.get_or_insert(format!("{}: {reason}", place.display())),
            }
        }
        let message =
            failure.unwrap_or_else(|| "it is in none of the places where libraries are looked for".into());
        Err(Error::device(format!("cuBLAS cannot be used: {message}")).hint(format!(
            "install the CUDA toolkit's libcublas, or set {VARIABLE} to the library's path (PyTorch brings one, in its environment's \
             site-packages/nvidia); --device cpu needs none"
        )))
    }

    fn with(library: Library, stream: &CudaStream) -> std::result::Result<Self, String> {
        // SAFETY: these functions have had these types since CUDA 11.
        let found = unsafe {
            (
                library.get::<Create>(b"cublasCreate_v2\0").map(|found| *found),
                library.get::<SetStream>(b"cublasSetStream_v2\0").map(|found| *found),
                library.get::<GemmStridedBatchedEx>(b"cublasGemmStridedBatchedEx\0").map(|found| *found),
                library.get::<Destroy>(b"cublasDestroy_v2\0").map(|found| *found),
            )
        };
        let (Ok(create), Ok(set_stream), Ok(multiply), Ok(destroy)) = found else {
            return Err("it lacks functions of CUDA 11 and later".into());
        };
        let mut handle = std::ptr::null_mut();
        // SAFETY: the pointer is to a live handle, and there is a current context.
        let code = unsafe { create(&raw mut handle) };
        if code != 0 {
            return Err(format!("it does not start ({})", status(code)));
        }
        let blas = Self { handle, multiply, destroy, _library: library };
        // SAFETY: both handles live.
        let code = unsafe { set_stream(blas.handle, stream.handle()) };
        if code == 0 { Ok(blas) } else { Err(format!("it does not take a stream ({})", status(code))) }
    }

    /// `c = scale · a · b`, or `c += scale · a · b` where `adds`, for `count` matrices each, later. `b` may be meant transposed. Sums are
    /// f32; `a` and `b` have the same type, and `c` is f32.
    ///
    /// # Errors
    /// Kind `Device`: it fails.
    ///
    /// # Safety
    /// Until the device has done it, no region's memory is dropped.
    ///
    /// # Panics
    /// Matrices do not lie within their regions, or do not belong together.
    pub(super) unsafe fn multiply(
        &self,
        scale: f32,
        a: Matrices<'_>,
        (b, right): (Matrices<'_>, Right),
        adds: bool,
        c: Matrices<'_>,
        count: usize,
    ) -> Result<()> {
        let (inner, columns) = match right {
            Right::AsItIs => (b.rows, b.columns),
            Right::Transposed => (b.columns, b.rows),
        };
        assert!(a.columns == inner && a.rows == c.rows && columns == c.columns, "matrices belong together");
        assert!(a.element == b.element && c.element == Element::F32, "products have these types");
        let beta: f32 = if adds { 1.0 } else { 0.0 };
        let int = |size: usize| c_int::try_from(size).expect("a side of a matrix is far smaller");
        let long = |size: usize| size as c_longlong;
        // Row by row, a matrix is its transpose column by column: Cᵀ = op(B)ᵀ · Aᵀ.
        let of_b = if right == Right::Transposed { TRANSPOSED } else { AS_IT_IS };
        let code = {
            let (a_start, b_start, c_start) = (a.start(count), b.start(count), c.start(count));
            // SAFETY: the matrices lie within their regions, which the caller keeps; factors are read before it returns.
            unsafe {
                (self.multiply)(
                    self.handle,
                    of_b,
                    AS_IT_IS,
                    int(c.columns),
                    int(c.rows),
                    int(inner),
                    (&raw const scale).cast(),
                    b_start,
                    b.element.code(),
                    int(b.row),
                    long(b.apart),
                    a_start,
                    a.element.code(),
                    int(a.row),
                    long(a.apart),
                    (&raw const beta).cast(),
                    c_start,
                    c.element.code(),
                    int(c.row),
                    long(c.apart),
                    int(count),
                    COMPUTE_32F,
                    DEFAULT_ALGORITHM,
                )
            }
        };
        if code == 0 {
            return Ok(());
        }
        let message = format!("cuBLAS fails to multiply matrices ({})", status(code));
        Err(Error::device(message).hint("--device cpu does without it"))
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        // SAFETY: nobody has the handle any more. Nobody is left to hear of an error.
        let _ = unsafe { (self.destroy)(self.handle) };
    }
}

/// Where the library may be, newest first.
fn places() -> Vec<PathBuf> {
    let names: &[&str] = if cfg!(windows) {
        &["cublas64_13.dll", "cublas64_12.dll"]
    } else {
        &["libcublas.so.13", "libcublas.so.12", "libcublas.so"]
    };
    let folders = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(std::env::var_os);
    let inner = if cfg!(windows) { "bin" } else { "lib64" };
    let mut places: Vec<PathBuf> = names.iter().map(PathBuf::from).collect();
    for folder in folders {
        places.extend(names.iter().map(|name| PathBuf::from(&folder).join(inner).join(name)));
    }
    places
}

/// What a code of the library means.
fn status(code: c_int) -> String {
    let name = match code {
        1 => "NOT_INITIALIZED",
        3 => "ALLOC_FAILED",
        7 => "INVALID_VALUE",
        8 => "ARCH_MISMATCH",
        11 => "MAPPING_ERROR",
        13 => "EXECUTION_FAILED",
        14 => "INTERNAL_ERROR",
        15 => "NOT_SUPPORTED",
        _ => return format!("code {code}"),
    };
    format!("CUBLAS_STATUS_{name}")
}

//! A CUDA driver for machines without a GPU: `tests/cuda/`, built with g++ together with the kernels.
//!
//! What is built is kept under the hash of all that it is made from: objects one by one, so that a kernel
//! that was changed is the only thing that is compiled again.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;

use crate::command::ROOT;

/// What watches the kernels while they run. A finding is reported on stderr, and ends the process with code 134.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sanitizer {
    /// Accesses outside of device memory and of shared variables, and indices outside of arrays.
    Address,
    /// Accesses of two threads of which neither barrier nor atomics tell the order; and outside of device
    /// memory.
    Thread,
}

/// A driver, built.
#[derive(Debug, Clone)]
pub struct Driver {
    /// Where `libcuda.so.1` is.
    pub folder: PathBuf,
}

/// What g++ turns into an object.
#[derive(Debug, Clone)]
struct Unit {
    source: PathBuf,
    flags: Vec<OsString>,
}

/// For all: no function of the engine may get in the way of the program's own, and no sum may be fused.
const FLAGS: [&str; 5] = ["-std=c++20", "-g1", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off"];

/// Only the engine has to be fast; the rest has to be compiled fast. Fibers push onto stacks where a function
/// may otherwise have values of its own.
const ENGINE_FLAGS: &[&str] = if cfg!(target_arch = "x86_64") { &["-O2", "-mno-red-zone"] } else { &["-O2"] };
const DRIVER_FLAGS: &[&str] = &["-O1"];

/// Optimised further they would hardly be faster, and take twice as long to compile. Where they are watched, what is
/// optimised away cannot be seen.
const KERNEL_FLAGS: &[&str] = &["-O2"];
const WATCHED_KERNEL_FLAGS: &[&str] = &["-O1"];
/// A kernel with a mistake runs once, so compiling is most of its time.
const MISTAKEN_KERNEL_FLAGS: &[&str] = &["-O0"];

impl Driver {
    /// With the kernels of the program.
    pub fn new() -> Self {
        Self::build(&kernels(), None)
    }

    /// With the kernels of the program, watched.
    pub fn sanitized(sanitizer: Sanitizer) -> Self {
        Self::build(&kernels(), Some(sanitizer))
    }

    /// With the kernels of another folder: a copy of the program's with a mistake in it.
    pub fn with_kernels(folder: &Path) -> Self {
        Self::build(folder, None)
    }

    /// With one kernel of another folder and no other: for a run of this kernel alone.
    pub fn with_kernel(folder: &Path, kernel: &str, sanitizer: Option<Sanitizer>) -> Self {
        let optimised = if sanitizer.is_some() { WATCHED_KERNEL_FLAGS } else { MISTAKEN_KERNEL_FLAGS };
        Self::link(vec![kernel_unit(folder.join(format!("{kernel}.cu")), optimised, sanitizer)], sanitizer)
    }

    /// With the kernels of any folder, watched or not.
    pub fn build(folder: &Path, sanitizer: Option<Sanitizer>) -> Self {
        let mut sources = files(folder, &["cu"]);
        let forward = folder.join("forward");
        if forward.is_dir() {
            sources.extend(files(&forward, &["cu"]));
        }
        assert!(!sources.is_empty(), "{} has no kernels", folder.display());
        let optimised = if sanitizer.is_some() { WATCHED_KERNEL_FLAGS } else { KERNEL_FLAGS };
        let unit = |source| kernel_unit(source, optimised, sanitizer);
        Self::link(sources.into_iter().map(unit).collect(), sanitizer)
    }

    /// The engine and the driver with these kernels.
    fn link(kernels: Vec<Unit>, sanitizer: Option<Sanitizer>) -> Self {
        let mut units = [engine_units(sanitizer), kernels].concat();
        // The longest first: the cores then end at about the same time.
        units
            .sort_by_key(|unit| std::cmp::Reverse(fs::metadata(&unit.source).map_or(0, |found| found.len())));
        let objects = compile_all(&units);
        let folder = cache().join(format!("driver-{}", hash(objects.iter().map(file_name))));
        make(&folder, |folder| {
            fs::create_dir(folder).unwrap();
            let library = folder.join("libcuda.so.1");
            let mut link = gpp();
            link.args(["-shared", "-pthread", "-Wl,-soname,libcuda.so.1", "-Wl,-z,defs", "-o"]);
            run(link.arg(&library).args(&objects));
            // Under this name it is looked for first, and a machine may have a real one.
            fs::hard_link(&library, folder.join("libcuda.so")).unwrap();
        });
        Self { folder }
    }

    /// The same with a cuBLAS beside it.
    pub fn with_cublas(&self) -> Self {
        let object = compile(&Unit { source: engine().join("cublas/cublas.cpp"), flags: vec!["-O3".into()] });
        let parts = [&self.folder, &object].map(file_name);
        let folder = cache().join(format!("driver-{}", hash(parts)));
        make(&folder, |folder| {
            fs::create_dir(folder).unwrap();
            for name in ["libcuda.so", "libcuda.so.1"] {
                fs::hard_link(self.folder.join(name), folder.join(name)).unwrap();
            }
            // The name that is looked for first: a machine may have a real one.
            let library = folder.join("libcublas.so.13");
            let mut link = gpp();
            link.args(["-shared", "-Wl,-soname,libcublas.so.13", "-Wl,-z,defs", "-o"]).arg(library);
            run(link.arg(&object).arg(folder.join("libcuda.so.1")));
        });
        Self { folder }
    }

    /// A C++ program over the driver. It runs with any driver that is applied to it.
    pub fn program(&self, source: &Path) -> PathBuf {
        let unit = Unit { source: source.to_owned(), flags: vec!["-O1".into()] };
        let object = compile(&unit);
        let program = object.with_extension("");
        make(&program, |program| {
            let mut link = gpp();
            run(link.arg("-o").arg(program).arg(&object).arg(self.folder.join("libcuda.so.1")));
        });
        program
    }

    /// Lets a program find this driver instead of the machine's.
    pub fn apply<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.env("LD_LIBRARY_PATH", &self.folder).env_remove("CUDA_VISIBLE_DEVICES")
    }
}

fn kernels() -> PathBuf {
    Path::new(ROOT).join("kernels")
}

fn engine() -> PathBuf {
    Path::new(ROOT).join("tests/cuda")
}

fn cache() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cuda");
    fs::create_dir_all(&folder).unwrap();
    folder
}

/// The files of a folder with one of these extensions, in order.
fn files(folder: &Path, extensions: &[&str]) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|found| extensions.iter().any(|wanted| found == *wanted)))
        .collect();
    files.sort();
    files
}

/// What makes the compiler put calls before the accesses of kernels. `checks.cpp` brings the functions that
/// are called.
///
/// They tell where they were called from by the return address, which a call in place of a return would hide.
fn watching(sanitizer: Option<Sanitizer>) -> &'static [&'static str] {
    match sanitizer {
        None => &[],
        Some(Sanitizer::Address) => &[
            "-DCUDA_CPU_CHECKED",
            "-fno-optimize-sibling-calls",
            "-fsanitize=kernel-address",
            "--param=asan-instrumentation-with-call-threshold=0",
            "--param=asan-globals=1",
            "--param=asan-stack=0",
            "-fsanitize=bounds",
        ],
        Some(Sanitizer::Thread) => &[
            "-DCUDA_CPU_CHECKED",
            "-fno-optimize-sibling-calls",
            "-fsanitize=thread",
            "--param=tsan-instrument-func-entry-exit=0",
        ],
    }
}

fn unit(source: PathBuf, flags: &[&[&str]]) -> Unit {
    Unit { source, flags: flags.iter().copied().flatten().map(OsString::from).collect() }
}

/// What the library is made of besides kernels: the engine and the driver.
fn engine_units(sanitizer: Option<Sanitizer>) -> Vec<Unit> {
    let mut units = Vec::new();
    for source in files(&engine(), &["cpp"]) {
        let checked: &[&str] = if sanitizer.is_some() { &["-DCUDA_CPU_CHECKED"] } else { &[] };
        match source.file_stem().and_then(|stem| stem.to_str()) {
            Some("checks") if sanitizer.is_none() => {}
            Some("engine" | "checks") => units.push(unit(source, &[ENGINE_FLAGS, checked])),
            _ => units.push(unit(source, &[DRIVER_FLAGS])),
        }
    }
    units
}

fn kernel_unit(source: PathBuf, optimised: &[&str], sanitizer: Option<Sanitizer>) -> Unit {
    let mut kernel = unit(source, &[optimised, watching(sanitizer), &["-I..", "-x", "c++", "-include"]]);
    kernel.flags.push(engine().join("cuda_cpu.h").into());
    kernel
}

/// Compiles what is not there yet, on all cores; the objects, in the order of the units.
fn compile_all(units: &[Unit]) -> Vec<PathBuf> {
    let waiting: Mutex<VecDeque<usize>> = Mutex::new((0..units.len()).collect());
    let objects: Vec<OnceLock<PathBuf>> = units.iter().map(|_| OnceLock::new()).collect();
    let cores = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                loop {
                    let next = waiting.lock().unwrap().pop_front();
                    let Some(next) = next else { return };
                    objects[next].set(compile(&units[next])).unwrap();
                }
            });
        }
    });
    objects.into_iter().map(|object| object.into_inner().unwrap()).collect()
}

/// The object of a unit. Its name tells all that it was made from: compiler, flags, source and the headers
/// around it.
fn compile(unit: &Unit) -> PathBuf {
    let folder = unit.source.parent().unwrap();
    let mut parts = vec![compiler().to_owned(), file_name(&unit.source)];
    parts.extend(FLAGS.iter().map(|flag| flag.as_bytes().to_vec()));
    parts.extend(unit.flags.iter().map(|flag| flag.as_encoded_bytes().to_vec()));
    parts.push(fs::read(&unit.source).unwrap());
    // Kernels of a forward pass lie below those whose headers they share.
    let above = files(folder.parent().unwrap(), &["cuh"]);
    for header in files(&engine(), &["h"]).iter().chain(&files(folder, &["h", "cuh"])).chain(&above) {
        parts.extend([file_name(header), fs::read(header).unwrap()]);
    }
    let stem = unit.source.file_stem().unwrap().to_str().unwrap();
    let object = cache().join(format!("{stem}-{}.o", hash(parts)));
    make(&object, |object| {
        let mut compile = gpp();
        // From its folder, so that messages and debug information have names and no paths.
        compile.current_dir(folder).args(FLAGS).args(&unit.flags);
        compile.arg("-c").arg(unit.source.file_name().unwrap()).arg("-o").arg(object);
        run(&mut compile);
    });
    object
}

/// Makes something under another name and renames it: other processes do the same at the same time. Tests that need the same
/// wait for the one that makes it.
fn make(path: &Path, how: impl FnOnce(&Path)) {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    static MAKING: Mutex<BTreeMap<PathBuf, Arc<Mutex<()>>>> = Mutex::new(BTreeMap::new());
    let own = Arc::clone(MAKING.lock().unwrap().entry(path.to_owned()).or_default());
    let _making = own.lock().unwrap_or_else(PoisonError::into_inner);
    if path.exists() {
        return;
    }
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = path.file_name().unwrap().to_str().unwrap();
    let unfinished = path.with_file_name(format!("{}.{number}.{name}", std::process::id()));
    how(&unfinished);
    if fs::rename(&unfinished, path).is_err() {
        assert!(path.exists(), "{} could not be renamed", unfinished.display());
        // A folder that another process was faster to make.
        fs::remove_dir_all(&unfinished).unwrap();
    }
}

/// A hash of parts, which do not run into each other.
fn hash(parts: impl IntoIterator<Item = Vec<u8>>) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes()).update(&part);
    }
    hasher.finalize().to_hex()[..16].to_owned()
}

fn file_name(path: impl AsRef<Path>) -> Vec<u8> {
    path.as_ref().file_name().unwrap().as_encoded_bytes().to_vec()
}

/// g++, with messages that are the same everywhere.
fn gpp() -> Command {
    let mut command = Command::new("g++");
    command.env("LC_ALL", "C");
    command
}

/// What g++ says of itself.
fn compiler() -> &'static [u8] {
    static VERSION: OnceLock<Vec<u8>> = OnceLock::new();
    VERSION.get_or_init(|| run(gpp().arg("--version")))
}

/// Runs g++, which has to succeed; what it wrote to stdout.
fn run(command: &mut Command) -> Vec<u8> {
    let output = command.output().unwrap_or_else(|error| {
        panic!(
            "g++ cannot be started ({error}): it builds the driver on which the CUDA kernels are tested; \
             install the package g++ (Debian, Ubuntu) or gcc-c++ (Fedora)"
        )
    });
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}:\n{stderr}");
    output.stdout
}

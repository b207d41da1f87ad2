//! What is settled before the first library of a device is loaded.
//!
//! The libraries of CUDA, Vulkan and DX12 are looked for by their names alone when devices are asked for, and bring further
//! ones along. Where the system looks, and what they print, is settled once for the process.

/// Settles it. To be called at the start of the program, before it has other threads.
pub fn prepare() {
    #[cfg(windows)]
    search_trusted_folders_only();
    #[cfg(target_os = "linux")]
    if let Some((name, value)) = quiet_mesa().filter(|_| is_only_thread()) {
        // SAFETY: there is no other thread that could read the environment at the same time, and this one starts none here.
        unsafe { std::env::set_var(name, value) };
    }
}

/// By default Windows looks for a library in the current folder as well, where a downloaded model may have brought a
/// `nvcuda.dll` of its own. From here on it looks in the program's folder and in its own.
#[cfg(windows)]
fn search_trusted_folders_only() {
    const LOAD_LIBRARY_SEARCH_DEFAULT_DIRS: u32 = 0x1000;
    #[link(name = "kernel32")]
    unsafe extern "system" {
        // SAFETY: it takes no pointer, and any thread may call it.
        safe fn SetDefaultDllDirectories(flags: u32) -> i32;
    }
    assert_ne!(SetDefaultDllDirectories(LOAD_LIBRARY_SEARCH_DEFAULT_DIRS), 0, "Windows knows this flag");
}

/// Without a desktop, a layer that sorts Mesa's adapters says that there is none, on the standard error output: the variable, with its
/// value, that keeps it from that, unless the user has decided something about it.
pub fn quiet_mesa() -> Option<(&'static str, &'static str)> {
    let is_set = |name: &str| std::env::var_os(name).is_some();
    let decided = ["XDG_RUNTIME_DIR", "NODEVICE_SELECT", "MESA_VK_DEVICE_SELECT", "DRI_PRIME"];
    (cfg!(target_os = "linux") && !decided.into_iter().any(is_set)).then_some(("NODEVICE_SELECT", "1"))
}

/// Whether this thread is the only one of the process; false where the system does not say.
#[cfg(target_os = "linux")]
fn is_only_thread() -> bool {
    std::fs::read_dir("/proc/self/task").is_ok_and(|threads| threads.count() == 1)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_second_thread_is_noticed() {
        std::thread::scope(|scope| {
            // Two at the least: this one, and the one that waits for it.
            assert!(!scope.spawn(is_only_thread).join().unwrap());
        });
    }
}

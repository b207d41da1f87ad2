//! Signals. One that was ignored when the program started stays ignored, as under `nohup`. The first other one asks the merge to
//! stop, which then removes what it has written or keeps what is finished; the second one ends the program at once, whatever it waits for.

use std::ffi::c_int;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

/// The exit code of a program that was interrupted.
const INTERRUPTED: i32 = 130;

#[cfg(unix)]
const ENDING: &[c_int] = &[SIGINT, SIGTERM, signal_hook::consts::SIGHUP];
#[cfg(not(unix))]
const ENDING: &[c_int] = &[SIGINT, SIGTERM];

/// Sets `stop` at the first signal, and ends the program at the second.
///
/// # Errors
/// The system gives no handler.
pub(super) fn listen(stop: &Arc<AtomicBool>) -> io::Result<()> {
    for signal in ENDING.iter().copied().filter(|signal| !is_ignored(*signal)) {
        // They run in this order: the first signal finds the flag unset.
        flag::register_conditional_shutdown(signal, INTERRUPTED, Arc::clone(stop))?;
        flag::register(signal, Arc::clone(stop))?;
    }
    Ok(())
}

/// A write beyond the limit on the size of files (`ulimit -f`) shall fail, and be reported, instead of ending the program.
pub(super) fn survive_file_limits() {
    // Any handler does. Where there is none, the system's way of ending the program stays.
    #[cfg(unix)]
    let _ = flag::register(signal_hook::consts::SIGXFSZ, Arc::default());
}

#[cfg(unix)]
fn is_ignored(signal: c_int) -> bool {
    use std::mem::MaybeUninit;
    let mut found = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: without a new action the call only writes the present one to the given place, and zeros are a value of the type.
    unsafe {
        libc::sigaction(signal, std::ptr::null(), found.as_mut_ptr()) == 0
            && found.assume_init().sa_sigaction == libc::SIG_IGN
    }
}

#[cfg(not(unix))]
fn is_ignored(_signal: c_int) -> bool {
    false
}

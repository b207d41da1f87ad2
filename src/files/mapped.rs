//! Files mapped into memory: what the page cache has is used where it lies, without a copy.
//!
//! A page of a mapped file that is no longer there, because the file was cut short or its disk failed, ends in SIGBUS.
//! [`Mapped::bring`] asks the system for the pages first, which reports failures without a signal; for what is lost after that, a
//! handler puts zeros in the page's place, so that the merge goes on, and notes which file it was: [`Mapped::broken`] says so,
//! and the merge fails in the end.
//!
//! Linux only: elsewhere nothing is mapped, and files are read by position.

use std::io;
use std::ops::Range;
#[cfg(target_os = "linux")]
use std::sync::{Mutex, PoisonError};

use super::File;

/// A file in memory, of which nothing is there until it is brought.
#[derive(Debug)]
pub struct Mapped(#[cfg(target_os = "linux")] linux::Mapped);

#[cfg(target_os = "linux")]
impl Mapped {
    /// Maps the first `bytes` of a file; `None` where that cannot be.
    pub fn new(file: &File, bytes: u64) -> Option<Self> {
        linux::Mapped::new(file, bytes).map(Self)
    }

    /// A part of the file; `absent` says whether its pages may not be there yet. `None` where they cannot be had, because the file
    /// has become shorter or its disk fails: a read will report it.
    ///
    /// # Errors
    /// The system has no memory for it.
    pub fn bring(&self, part: &Range<u64>, absent: bool) -> io::Result<Option<&[u8]>> {
        self.0.bring(part, absent)
    }

    /// Unmaps the pages of a part, which stay in the page cache. It costs an interruption of all threads, so release
    /// much at once.
    pub fn release(&self, part: &Range<u64>) {
        self.0.release(part);
    }

    /// Whether pages were lost while they were in use.
    pub fn broken(&self) -> bool {
        self.0.broken()
    }
}

#[cfg(not(target_os = "linux"))]
impl Mapped {
    /// Maps nothing here.
    pub fn new(_file: &File, _bytes: u64) -> Option<Self> {
        None
    }

    /// Nothing is mapped.
    pub fn bring(&self, _part: &Range<u64>, _absent: bool) -> io::Result<Option<&[u8]>> {
        Ok(None)
    }

    /// Nothing is mapped.
    pub fn release(&self, _part: &Range<u64>) {}

    /// Nothing is mapped.
    pub fn broken(&self) -> bool {
        false
    }
}

/// A file in memory that is written to past its lock, piece by piece, for `bench writes`: merges write by position.
#[derive(Debug)]
#[cfg(target_os = "linux")]
pub struct WritableMap {
    map: memmap2::MmapRaw,
    piece_bytes: usize,
    /// Of each piece: held by the thread that writes it.
    turns: Vec<Mutex<()>>,
}

#[cfg(target_os = "linux")]
impl WritableMap {
    /// Maps all of a file of whole pieces that was opened for reading and writing, and that nobody else has.
    ///
    /// # Errors
    /// It cannot be mapped.
    pub fn new(file: &File, piece_bytes: usize) -> io::Result<Self> {
        let map = memmap2::MmapRaw::map_raw(&file.0)?;
        let turns = (0..map.len() / piece_bytes).map(|_| Mutex::default()).collect();
        Ok(Self { map, piece_bytes, turns })
    }

    /// Writes a piece of the file. The system is asked for the pages first: a full disk is an error then, and no signal.
    ///
    /// # Errors
    /// The system does not give the pages, or cannot be asked (before Linux 5.14).
    ///
    /// # Panics
    /// When the file has no such piece, or `bytes` are not one.
    pub fn write(&self, piece: usize, bytes: &[u8]) -> io::Result<()> {
        assert_eq!(bytes.len(), self.piece_bytes, "a whole piece");
        let _turn = self.turns[piece].lock().unwrap_or_else(PoisonError::into_inner);
        let offset = piece * self.piece_bytes;
        self.map.advise_range(memmap2::Advice::PopulateWrite, offset, bytes.len())?;
        // SAFETY: there is a turn for each piece inside the map, and it is held. Nobody borrows the map's memory: it is only
        // written to, and only here.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.map.as_mut_ptr().add(offset), bytes.len());
        };
        Ok(())
    }
}

/// Nothing, where files are not mapped.
#[derive(Debug)]
#[cfg(not(target_os = "linux"))]
pub struct WritableMap;

#[cfg(not(target_os = "linux"))]
impl WritableMap {
    /// Maps nothing here.
    pub fn new(_file: &File, _piece_bytes: usize) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Nothing is mapped.
    pub fn write(&self, _piece: usize, _bytes: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use std::ffi::{c_int, c_void};
    use std::io;
    use std::mem::MaybeUninit;
    use std::ops::Range;
    use std::ptr;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use memmap2::{Advice, Mmap, MmapOptions, UncheckedAdvice};

    use crate::files::{File, On, Op, ask};

    /// Most files that are mapped at once, as many as twelve models of some hundred shards have. More are read.
    const FILES_MAX: usize = 4096;

    /// Where mapped files are: what the handler of SIGBUS can see without a lock.
    static PLACES: [MappedFile; FILES_MAX] = [const { MappedFile::free() }; FILES_MAX];

    /// One of them.
    struct MappedFile {
        /// 0 where it is free.
        start: AtomicUsize,
        end: AtomicUsize,
        broken: AtomicBool,
    }

    impl MappedFile {
        const fn free() -> Self {
            Self { start: AtomicUsize::new(0), end: AtomicUsize::new(0), broken: AtomicBool::new(false) }
        }

        /// Takes a free place, if there is one.
        fn claim(addresses: &Range<usize>) -> Option<&'static Self> {
            let free = |place: &&Self| {
                place.start.compare_exchange(0, addresses.start, Ordering::AcqRel, Ordering::Relaxed).is_ok()
            };
            let place = PLACES.iter().find(free)?;
            place.broken.store(false, Ordering::Relaxed);
            place.end.store(addresses.end, Ordering::Release);
            Some(place)
        }
    }

    #[derive(Debug)]
    pub(super) struct Mapped {
        map: Mmap,
        place: &'static MappedFile,
    }

    impl std::fmt::Debug for MappedFile {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.debug_struct("MappedFile").field("broken", &self.broken).finish_non_exhaustive()
        }
    }

    impl Mapped {
        pub(super) fn new(file: &File, bytes: u64) -> Option<Self> {
            let bytes = usize::try_from(bytes).ok().filter(|bytes| *bytes > 0)?;
            catch_bus_errors()?;
            // SAFETY: the memory is only read. If somebody writes to the file meanwhile, other values are read: every
            // pattern of bits is a value, no decision about memory depends on one, and the merge fails in the end since
            // the file has changed. If it is cut short, the handler installed above puts zeros there.
            let map = || unsafe { MmapOptions::new().len(bytes).map(&file.0) };
            let map = ask(Op::Map, On::File(&file.0), map).ok()?;
            let start = map.as_ptr() as usize;
            let place = MappedFile::claim(&(start..start + bytes))?;
            Some(Self { map, place })
        }

        pub(super) fn bring(&self, part: &Range<u64>, absent: bool) -> io::Result<Option<&[u8]>> {
            let part = part.start as usize..part.end as usize;
            if absent && !part.is_empty() {
                match self.map.advise_range(Advice::PopulateRead, part.start, part.len()) {
                    // Before Linux 5.14 it is not known; then pages come one by one, as they are touched.
                    Err(cause) if cause.raw_os_error() == Some(libc::EINVAL) => {}
                    Err(cause) if cause.raw_os_error() == Some(libc::EFAULT) => return Ok(None),
                    result => result?,
                }
            }
            Ok(Some(&self.map[part]))
        }

        pub(super) fn release(&self, part: &Range<u64>) {
            let page = page_bytes() as u64;
            // A page that is shared with what is not released stays.
            let last = if part.end == self.map.len() as u64 { part.end } else { part.end / page * page };
            let first = part.start.next_multiple_of(page);
            if first < last {
                // SAFETY: the pages are those of a file, and of the zeros put in the place of lost ones: when they are
                // touched again they come back with the same content, or as zeros.
                let released = unsafe {
                    let advice = UncheckedAdvice::DontNeed;
                    self.map.unchecked_advise_range(advice, first as usize, (last - first) as usize)
                };
                // It only costs memory if it fails.
                drop(released);
            }
        }

        pub(super) fn broken(&self) -> bool {
            self.place.broken.load(Ordering::Relaxed)
        }
    }

    impl Drop for Mapped {
        fn drop(&mut self) {
            // Free before the memory is: it is no longer used.
            self.place.end.store(0, Ordering::Release);
            self.place.start.store(0, Ordering::Release);
        }
    }

    fn page_bytes() -> usize {
        rustix::param::page_size()
    }

    /// What happened on SIGBUS before.
    static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

    /// Installs the handler, once.
    fn catch_bus_errors() -> Option<()> {
        static ONCE: OnceLock<bool> = OnceLock::new();
        let install = || {
            // The handler asks again, and must then be answered without a call of the system.
            let _ = page_bytes();
            let mut before = MaybeUninit::<libc::sigaction>::zeroed();
            // SAFETY: both structs are valid, all zeros being one of the values of the type; the handler does what may be
            // done in one: atomic loads and stores, and two calls of the system.
            let before = unsafe {
                if libc::sigaction(libc::SIGBUS, ptr::null(), before.as_mut_ptr()) != 0 {
                    return false;
                }
                before.assume_init()
            };
            let _ = BEFORE.set(before);
            // SAFETY: as above.
            unsafe {
                let mut action = MaybeUninit::<libc::sigaction>::zeroed().assume_init();
                let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = on_bus_error;
                action.sa_sigaction = handler as libc::sighandler_t;
                action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
                libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut()) == 0
            }
        };
        (*ONCE.get_or_init(install)).then_some(())
    }

    /// Puts a page of zeros where a page of a mapped file is lost. Any other bus error goes the way it went before.
    extern "C" fn on_bus_error(signal: c_int, info: *mut libc::siginfo_t, _context: *mut c_void) {
        // SAFETY: the system hands a valid struct to handlers with SA_SIGINFO. A signal that a process has sent has no address.
        let address = unsafe { if (*info).si_code > 0 { (*info).si_addr() as usize } else { 0 } };
        let ours = PLACES.iter().find(|place| {
            let (start, end) = (place.start.load(Ordering::Acquire), place.end.load(Ordering::Acquire));
            // Unless another file has taken the place in between.
            (start..end).contains(&address) && place.start.load(Ordering::Acquire) == start
        });
        if let Some(place) = ours {
            place.broken.store(true, Ordering::Relaxed);
            let page = page_bytes();
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
            // SAFETY: the page is one of our own map, which stays while it is used, and which ends with a whole page.
            let mapped = unsafe {
                libc::mmap((address & !(page - 1)) as *mut c_void, page, libc::PROT_READ, flags, -1, 0)
            };
            if mapped != libc::MAP_FAILED {
                return;
            }
        }
        if let Some(before) = BEFORE.get() {
            // SAFETY: it was valid when it was taken. The access is repeated, and then meets what it would have met.
            unsafe { libc::sigaction(signal, before, ptr::null_mut()) };
        }
    }
}

#[cfg(target_os = "linux")]
#[cfg(test)]
mod tests {
    use super::*;

    fn file(bytes: &[u8]) -> (tempfile::TempDir, File) {
        let folder = tempfile::tempdir().unwrap();
        let file = File::make(&folder.path().join("file")).unwrap();
        file.write_all_at(bytes, 0).unwrap();
        (folder, file)
    }

    #[test]
    fn what_is_brought_is_what_the_file_holds_before_and_after_it_is_released() {
        let data: Vec<u8> = (0..300_001u32).map(|i| (i * 7 % 251) as u8).collect();
        let (_folder, file) = file(&data);
        let mapped = Mapped::new(&file, data.len() as u64).unwrap();
        for part in [0..1, 4095..4097, 17..200_017, 0..300_001, 300_001..300_001] {
            for absent in [true, false] {
                let range = part.start as usize..part.end as usize;
                assert!(mapped.bring(&part, absent).unwrap() == Some(&data[range]), "{part:?}");
                mapped.release(&part);
            }
        }
        assert!(!mapped.broken());
    }

    #[test]
    fn a_file_cut_short_is_an_error_before_and_noted_after() {
        let (_folder, file) = file(&vec![7; 100_000]);
        let (mapped, other) = (Mapped::new(&file, 100_000).unwrap(), Mapped::new(&file, 100_000).unwrap());
        let bytes = mapped.bring(&(0..100_000), true).unwrap().unwrap();
        file.set_len(10_000).unwrap();
        // The page with the new end is there still, its rest zero; later ones are lost.
        assert_eq!((bytes[9_999], bytes[10_000], bytes[50_000], bytes[99_999]), (7, 0, 0, 0));
        assert!(mapped.broken() && !other.broken());
        assert!(other.bring(&(8_000..60_000), true).unwrap().is_none());
        assert!(!other.broken());
        drop((mapped, other));
        file.set_len(100_000).unwrap();
        assert!(!Mapped::new(&file, 100_000).unwrap().broken(), "a place taken again is whole");
    }

    #[test]
    fn what_is_written_into_pages_is_in_the_file() {
        let (_folder, file) = file(&[7; 10_000]);
        let map = WritableMap::new(&file, 2000).unwrap();
        map.write(2, &[1; 2000]).unwrap();
        map.write(3, &[2; 2000]).unwrap();
        let mut read = vec![0; 10_000];
        file.read_exact_at(&mut read, 0).unwrap();
        let expected = [&[7; 4000][..], &[1; 2000], &[2; 2000], &[7; 2000]].concat();
        assert!(read == expected);
    }

    #[test]
    fn an_empty_file_is_not_mapped() {
        let (_folder, file) = file(&[]);
        assert!(Mapped::new(&file, 0).is_none());
    }
}

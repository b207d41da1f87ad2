//! All that a merge does with files: the one place that asks the system for them.
//!
//! What a signal interrupts is asked again, and reads and writes that stop short go on. Tests put faults here, and record what was
//! done (`hook`): whatever comes between a merge and its files comes through here. No faults can be put where the pages of a mapped
//! file are brought, which has tests of its own (`mapped`), and where the system is asked about a file system: its kind, its free space.

#[cfg(all(test, target_os = "linux"))]
pub(crate) mod disk;
#[cfg(all(test, target_os = "linux"))]
pub(crate) mod faulty;
mod folder;
#[cfg(all(test, target_os = "linux"))]
pub(crate) mod hook;
#[cfg(not(all(test, target_os = "linux")))]
#[path = "files/unhooked.rs"]
mod hook;
mod mapped;

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

pub use std::fs::{Metadata, TryLockError};

pub use folder::{Folder, Found};
pub use mapped::Mapped;
pub(crate) use mapped::WritableMap;

/// What is asked of the system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(not(target_os = "linux"), allow(dead_code, reason = "not every system is asked for all"))]
pub(crate) enum Op {
    Open,
    Make,
    MakeFolder,
    Read,
    Write,
    SetSize,
    TakeSpace,
    Sync,
    SyncFolder,
    Rename,
    Remove,
    Lock,
    Map,
    List,
    Look,
    SetMode,
    Link,
}

/// What it is asked about.
#[derive(Clone, Copy)]
#[cfg_attr(not(all(test, target_os = "linux")), allow(dead_code, reason = "only tests look into it"))]
enum On<'a> {
    /// What has this path.
    Path(&'a Path),
    /// What has this name in a folder.
    In(&'a Folder, &'a Path),
    /// A folder that is open.
    Folder(&'a Folder),
    /// A file that is open.
    File(&'a fs::File),
}

/// What has been done, as far as it changes what is on a disk.
#[cfg_attr(not(all(test, target_os = "linux")), allow(dead_code, reason = "only tests look into it"))]
enum Done<'a> {
    Made(On<'a>),
    MadeFolder(On<'a>),
    /// Without a place: at the file's cursor, which stands behind it now.
    Wrote(&'a fs::File, Option<u64>, &'a [u8]),
    SetSize(&'a fs::File, u64),
    /// With what [`hook::now`] said before.
    Synced(&'a fs::File, usize),
    SyncedFolder(&'a Folder, usize),
    /// To this, from that.
    Renamed(On<'a>, On<'a>),
    Removed(On<'a>),
}

/// Asks the system, and again where a signal interrupts it.
#[inline]
fn ask<T>(op: Op, on: On<'_>, mut run: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    ask_for(op, on, 0, |_| run())
}

/// The same about so many bytes. Fewer may be had.
#[inline]
fn ask_for<T>(
    op: Op,
    on: On<'_>,
    bytes: usize,
    mut run: impl FnMut(usize) -> io::Result<T>,
) -> io::Result<T> {
    loop {
        match hook::asked(op, on, bytes).and_then(&mut run) {
            Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// A file that is open.
#[derive(Debug)]
pub struct File(fs::File);

impl From<fs::File> for File {
    fn from(file: fs::File) -> Self {
        Self(file)
    }
}

#[cfg(unix)]
impl std::os::fd::AsFd for File {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl File {
    fn at(path: &Path, op: Op, options: &fs::OpenOptions) -> io::Result<Self> {
        let file = ask(op, On::Path(path), || options.open(path))?;
        if op == Op::Make {
            hook::done(&Done::Made(On::Path(path)));
        }
        Ok(Self(file))
    }

    /// Opens what may be no file, for reading: a pipe is not waited for.
    ///
    /// # Errors
    /// Those of the system.
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut options = fs::OpenOptions::new();
        options.read(true);
        #[cfg(unix)]
        {
            use std::os::unix::fs::OpenOptionsExt;
            options.custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed());
        }
        Self::at(path, Op::Open, &options)
    }

    /// Makes a file that must not be there, be it as a link.
    ///
    /// # Errors
    /// Those of the system.
    pub fn make(path: &Path) -> io::Result<Self> {
        Self::at(path, Op::Make, fs::OpenOptions::new().read(true).write(true).create_new(true))
    }

    /// Opens a file for reading and writing, and makes it where it is not there, with this mode where the system has modes. A link in
    /// its place is not followed, where the system can refuse that, and a pipe is not waited for.
    ///
    /// # Errors
    /// Those of the system.
    pub fn open_or_make(path: &Path, mode: u32) -> io::Result<Self> {
        let mut options = fs::OpenOptions::new();
        options.read(true).write(true);
        #[cfg(unix)]
        {
            use std::os::unix::fs::OpenOptionsExt;
            let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
            options.custom_flags(flags.bits().cast_signed()).mode(mode);
        }
        #[cfg(not(unix))]
        let _ = mode;
        let open = || Self::at(path, Op::Open, &options);
        match open() {
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => {}
            opened => return opened,
        }
        match Self::at(path, Op::Make, options.clone().create_new(true)) {
            // Another process has made it meanwhile.
            Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => open(),
            result => result,
        }
    }

    /// Opens what the user has named for writing, as it is, and makes it where it is not there.
    ///
    /// # Errors
    /// Those of the system.
    pub fn open_to_write(path: &Path) -> io::Result<Self> {
        Self::at(path, Op::Make, fs::OpenOptions::new().create(true).truncate(false).write(true))
    }

    /// The same file once more, for reads past the page cache, wherever its path leads by now; `None` where it or the system has none.
    pub fn direct(&self) -> Option<Self> {
        #[cfg(target_os = "linux")]
        {
            use std::os::fd::AsRawFd;
            use std::os::unix::fs::OpenOptionsExt;
            let flags = rustix::fs::OFlags::DIRECT.bits();
            let path = format!("/proc/self/fd/{}", self.0.as_raw_fd());
            let open =
                || fs::OpenOptions::new().read(true).custom_flags(flags.cast_signed()).open(&path).map(Self);
            ask(Op::Open, On::File(&self.0), open).ok()
        }
        #[cfg(not(target_os = "linux"))]
        None
    }

    /// What the system says of it.
    ///
    /// # Errors
    /// Those of the system.
    pub fn metadata(&self) -> io::Result<Metadata> {
        ask(Op::Look, On::File(&self.0), || self.0.metadata())
    }

    /// Whether what looks like a file is a window into the system, as in `/proc` and `/sys`: it has no length that counts, and may say
    /// something else each time.
    pub fn is_of_the_system(&self) -> bool {
        #[cfg(target_os = "linux")]
        {
            const SYSFS: u64 = 0x6265_6572;
            let of_system = [rustix::fs::PROC_SUPER_MAGIC as u64, SYSFS];
            rustix::fs::fstatfs(&self.0).is_ok_and(|found| of_system.contains(&(found.f_type as u64)))
        }
        #[cfg(not(target_os = "linux"))]
        false
    }

    /// Gives it the mode, where the system has modes.
    ///
    /// # Errors
    /// Those of the system.
    #[cfg(unix)]
    pub fn set_mode(&self, mode: u32) -> io::Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let mode = || fs::Permissions::from_mode(mode);
        ask(Op::SetMode, On::File(&self.0), || self.0.set_permissions(mode()))
    }

    /// Another handle of it, with the same cursor.
    ///
    /// # Errors
    /// Those of the system.
    pub fn try_clone(&self) -> io::Result<Self> {
        ask(Op::Open, On::File(&self.0), || self.0.try_clone()).map(Self)
    }

    /// Locks it for this handle alone, if nobody has.
    ///
    /// # Errors
    /// Somebody has; or those of the system.
    pub fn try_lock(&self) -> Result<(), TryLockError> {
        self.lock_by(fs::File::try_lock)
    }

    /// Locks it against [`File::try_lock`].
    ///
    /// # Errors
    /// As of that.
    pub fn try_lock_shared(&self) -> Result<(), TryLockError> {
        self.lock_by(fs::File::try_lock_shared)
    }

    fn lock_by(&self, lock: fn(&fs::File) -> Result<(), TryLockError>) -> Result<(), TryLockError> {
        let locked = ask(Op::Lock, On::File(&self.0), || match lock(&self.0) {
            Ok(()) => Ok(true),
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(cause)) => Err(cause),
        });
        if locked.map_err(TryLockError::Error)? { Ok(()) } else { Err(TryLockError::WouldBlock) }
    }

    /// Gives it this size; what is new of it is zero.
    ///
    /// # Errors
    /// Those of the system.
    pub fn set_len(&self, bytes: u64) -> io::Result<()> {
        ask(Op::SetSize, On::File(&self.0), || self.0.set_len(bytes))?;
        hook::done(&Done::SetSize(&self.0, bytes));
        Ok(())
    }

    /// Takes space for it on a disk. A file system in memory would fill that with zeros, which costs as much as writing it.
    ///
    /// # Errors
    /// There is not so much.
    pub fn take_space(&self, bytes: u64) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        {
            use rustix::fs::{FallocateFlags, fallocate, fstatfs};
            const IN_MEMORY: [i128; 2] = [0x0102_1994, 0x8584_58f6]; // tmpfs, ramfs
            if bytes == 0 || fstatfs(&self.0).is_ok_and(|of| IN_MEMORY.contains(&i128::from(of.f_type))) {
                return Ok(());
            }
            let take = || Ok(fallocate(&self.0, FallocateFlags::empty(), 0, bytes)?);
            match ask(Op::TakeSpace, On::File(&self.0), take) {
                Err(cause) if is_full(&cause) => return Err(cause),
                // Not every file system can, and none has to.
                Err(_) => {}
                Ok(()) => hook::done(&Done::SetSize(&self.0, bytes)),
            }
        }
        #[cfg(not(target_os = "linux"))]
        let _ = bytes;
        Ok(())
    }

    /// Puts on the disk what it holds, and what the system says of it.
    ///
    /// # Errors
    /// The disk is full or fails, now or at an earlier write.
    pub fn sync_all(&self) -> io::Result<()> {
        self.sync_by(fs::File::sync_all)
    }

    /// Puts on the disk what it holds.
    ///
    /// # Errors
    /// As of [`File::sync_all`].
    pub fn sync_data(&self) -> io::Result<()> {
        self.sync_by(fs::File::sync_data)
    }

    fn sync_by(&self, sync: fn(&fs::File) -> io::Result<()>) -> io::Result<()> {
        let before = hook::now();
        ask(Op::Sync, On::File(&self.0), || sync(&self.0))?;
        hook::done(&Done::Synced(&self.0, before));
        Ok(())
    }

    /// Reads from `offset` on, perhaps less than there is room for; nothing at the end. The cursor stays or not.
    ///
    /// # Errors
    /// Those of the system.
    pub fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        ask_for(Op::Read, On::File(&self.0), into.len(), |bytes| {
            #[cfg(unix)]
            return std::os::unix::fs::FileExt::read_at(&self.0, &mut into[..bytes], offset);
            #[cfg(windows)]
            return std::os::windows::fs::FileExt::seek_read(&self.0, &mut into[..bytes], offset);
        })
    }

    /// Fills `into` from `offset` on; an earlier end of the file is `UnexpectedEof`.
    ///
    /// # Errors
    /// Those of the system, and this.
    pub fn read_exact_at(&self, mut into: &mut [u8], mut offset: u64) -> io::Result<()> {
        while !into.is_empty() {
            match self.read_at(into, offset)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => {
                    into = &mut into[count..];
                    offset += count as u64;
                }
            }
        }
        Ok(())
    }

    /// Writes all of `bytes` from `offset` on. The cursor stays or not.
    ///
    /// # Errors
    /// The disk is full or fails.
    pub fn write_all_at(&self, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
        while !bytes.is_empty() {
            let count = ask_for(Op::Write, On::File(&self.0), bytes.len(), |most| {
                #[cfg(unix)]
                return std::os::unix::fs::FileExt::write_at(&self.0, &bytes[..most], offset);
                #[cfg(windows)]
                return std::os::windows::fs::FileExt::seek_write(&self.0, &bytes[..most], offset);
            })?;
            if count == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            hook::done(&Done::Wrote(&self.0, Some(offset), &bytes[..count]));
            bytes = &bytes[count..];
            offset += count as u64;
        }
        Ok(())
    }
}

impl Read for &File {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        ask_for(Op::Read, On::File(&self.0), into.len(), |bytes| (&self.0).read(&mut into[..bytes]))
    }
}

impl Write for &File {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let on = On::File(&self.0);
        let count = ask_for(Op::Write, on, bytes.len(), |most| (&self.0).write(&bytes[..most]))?;
        hook::done(&Done::Wrote(&self.0, None, &bytes[..count]));
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for &File {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        (&self.0).seek(to)
    }
}

impl Read for File {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        (&*self).read(into)
    }
}

impl Write for File {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&*self).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for File {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        (&*self).seek(to)
    }
}

/// Whether a disk, or the part of it that a user may have, is full, or no file may be so large.
pub fn is_full(cause: &io::Error) -> bool {
    let kinds = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded, io::ErrorKind::FileTooLarge];
    kinds.contains(&cause.kind())
}

/// Whether a failure only says that a path leads to nothing, or from link to link for ever.
pub fn leads_nowhere(cause: io::ErrorKind) -> bool {
    #[cfg(unix)]
    if cause == io::Error::from(rustix::io::Errno::LOOP).kind() {
        return true;
    }
    cause == io::ErrorKind::NotFound
}

/// What the system says of what a path leads to.
///
/// # Errors
/// Those of the system: there may be nothing.
pub fn metadata(path: &Path) -> io::Result<Metadata> {
    ask(Op::Look, On::Path(path), || fs::metadata(path))
}

/// The same of a link itself.
///
/// # Errors
/// The same.
pub fn metadata_of_link(path: &Path) -> io::Result<Metadata> {
    ask(Op::Look, On::Path(path), || fs::symlink_metadata(path))
}

/// Whether a path leads to anything.
pub fn exists(path: &Path) -> bool {
    metadata(path).is_ok()
}

/// Whether a path leads to a file.
pub fn is_file(path: &Path) -> bool {
    metadata(path).is_ok_and(|found| found.is_file())
}

/// Whether a path leads to a folder.
pub fn is_folder(path: &Path) -> bool {
    metadata(path).is_ok_and(|found| found.is_dir())
}

/// Whether a path is that of a link, be it to nothing.
pub fn is_link(path: &Path) -> bool {
    metadata_of_link(path).is_ok_and(|found| found.is_symlink())
}

/// A path without links, from the root on.
///
/// # Errors
/// Those of the system: it may lead to nothing.
pub fn real(path: &Path) -> io::Result<PathBuf> {
    ask(Op::Look, On::Path(path), || path.canonicalize())
}

/// What a link says, if it is one.
///
/// # Errors
/// Those of the system.
pub fn link_target(path: &Path) -> io::Result<PathBuf> {
    ask(Op::Look, On::Path(path), || fs::read_link(path))
}

/// What a folder holds.
///
/// # Errors
/// Those of the system.
pub fn list(folder: &Path) -> io::Result<fs::ReadDir> {
    ask(Op::List, On::Path(folder), || fs::read_dir(folder))
}

/// Makes a folder and those that it lies in, as far as they are not there, with this mode where the system has modes.
///
/// # Errors
/// Those of the system.
pub fn make_folders(folder: &Path, mode: u32) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, mode);
    #[cfg(not(unix))]
    let _ = mode;
    let make = || -> io::Result<()> {
        ask(Op::MakeFolder, On::Path(folder), || builder.create(folder))?;
        hook::done(&Done::MadeFolder(On::Path(folder)));
        Ok(())
    };
    let result = match (make(), folder.parent()) {
        (Err(cause), Some(parent)) if cause.kind() == io::ErrorKind::NotFound => {
            make_folders(parent, mode)?;
            make()
        }
        (result, _) => result,
    };
    result.or_else(|cause| match metadata(folder) {
        Ok(found) if found.is_dir() => Ok(()),
        _ if folder.as_os_str().is_empty() => Ok(()),
        Err(unseen) if !leads_nowhere(unseen.kind()) => Err(unseen),
        _ => Err(cause),
    })
}

/// Gives a file another name on the same disk; what has that name goes.
///
/// # Errors
/// Those of the system.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    ask(Op::Rename, On::Path(to), || fs::rename(from, to))?;
    hook::done(&Done::Renamed(On::Path(to), On::Path(from)));
    Ok(())
}

/// Removes a file or a link.
///
/// # Errors
/// Those of the system.
pub fn remove_file(path: &Path) -> io::Result<()> {
    ask(Op::Remove, On::Path(path), || fs::remove_file(path))?;
    hook::done(&Done::Removed(On::Path(path)));
    Ok(())
}

/// Makes a link that says `target`. Only some users may where it is Windows.
///
/// # Errors
/// Those of the system.
pub fn link(target: &Path, link: &Path) -> io::Result<()> {
    ask(Op::Link, On::Path(link), || {
        #[cfg(unix)]
        return std::os::unix::fs::symlink(target, link);
        #[cfg(windows)]
        return std::os::windows::fs::symlink_file(target, link);
    })?;
    hook::done(&Done::Made(On::Path(link)));
    Ok(())
}

/// Gives a file one more name, or where that cannot be copies it. What has that name already, by another process, is taken for the same
/// file, and is not written to.
///
/// # Errors
/// Those of the system.
pub fn link_or_copy(file: &Path, to: &Path) -> io::Result<()> {
    static COPIES: AtomicUsize = AtomicUsize::new(0);
    match ask(Op::Link, On::Path(to), || fs::hard_link(file, to)) {
        Err(cause) if cause.kind() != io::ErrorKind::AlreadyExists => {}
        _ => return Ok(()),
    }
    // Under a name of its own until it is whole.
    let number = COPIES.fetch_add(1, Ordering::Relaxed);
    let mut name = OsString::from(format!(".{}-{number}.", std::process::id()));
    name.push(to.file_name().unwrap_or_default());
    let unfinished = to.with_file_name(name);
    let copied = ask(Op::Make, On::Path(&unfinished), || fs::copy(file, &unfinished));
    // On the disk, before its name says that it is whole.
    let synced = copied.and_then(|_| {
        File::at(&unfinished, Op::Open, fs::OpenOptions::new().read(true).write(cfg!(windows)))?.sync_all()
    });
    let named = synced.and_then(|()| rename(&unfinished, to));
    if named.is_err() {
        let _ = remove_file(&unfinished);
    }
    named
}

/// The bytes that may still be written on the disk of a path. `None` where the system does not say.
pub fn free_bytes(path: &Path) -> Option<u64> {
    #[cfg(unix)]
    {
        let stat = rustix::fs::statvfs(path).ok()?;
        Some(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        None
    }
}

/// Whether this user may write to a file, or into a folder; elsewhere than on unix the write itself will show it.
///
/// # Errors
/// Why not.
pub fn check_writable(path: &Path) -> io::Result<()> {
    #[cfg(unix)]
    {
        use rustix::fs::{Access, access};
        let needed = if is_folder(path) { Access::WRITE_OK | Access::EXEC_OK } else { Access::WRITE_OK };
        ask(Op::Look, On::Path(path), || Ok(access(path, needed)?))
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        Ok(())
    }
}

/// Whether a file system is mounted at a folder, as far as the system says so: it may be the one that the folder lies in.
pub fn is_mount_root(folder: &Path) -> bool {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};
        let found = statx(CWD, folder, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::empty());
        found.is_ok_and(|found| found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = folder;
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn a_file_that_gets_one_more_name_is_never_written_to() {
        use rustix::io::Errno;
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        let (file, to, content) = (root.join("file"), root.join("to"), vec![7; 100_000]);
        fs::write(&file, &content).unwrap();
        let hooked = hook::Hooked::on(&root);
        let linked_with = |op, cause| {
            let fault = hook::Fault::Error(cause);
            hooked.plant(Some(hook::Planted { op, call: 0, fault, lasts: false }));
            let result = link_or_copy(&file, &to);
            assert_eq!(hooked.hits().len(), 1, "{op:?}");
            hooked.plant(None);
            assert!(fs::read(&file).unwrap() == content, "{op:?} {cause}");
            result
        };
        link_or_copy(&file, &to).unwrap();
        // Another process has been here before.
        link_or_copy(&file, &to).unwrap();
        linked_with(Op::Link, Errno::EXIST).unwrap();
        // And after the link was refused.
        linked_with(Op::Link, Errno::PERM).unwrap();
        assert!(fs::read(&to).unwrap() == content);
        fs::write(&to, "a copy").unwrap();
        assert!(fs::read(&file).unwrap() == content, "it is no link any more");
        fs::remove_file(&to).unwrap();
        // Where neither can be, nothing is left. A link that the hook does not refuse would succeed.
        let no_links = root.join("no_folder/to");
        link_or_copy(&file, &no_links).unwrap_err();
        assert_eq!(fs::read_dir(&root).unwrap().count(), 1);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn space_is_taken_where_a_file_system_gives_it() {
        use std::os::unix::fs::MetadataExt;
        const BYTES: u64 = 1 << 20;
        for dir in [std::env::temp_dir(), "/dev/shm".into()] {
            let Ok(folder) = tempfile::tempdir_in(dir) else { continue };
            let file = File::make(&folder.path().join("file")).unwrap();
            file.take_space(BYTES).unwrap();
            let metadata = file.metadata().unwrap();
            let in_memory = rustix::fs::fstatfs(&file.0).unwrap().f_type == 0x0102_1994;
            let probe = tempfile::tempfile_in(&folder).unwrap();
            let can = rustix::fs::fallocate(&probe, rustix::fs::FallocateFlags::empty(), 0, BYTES).is_ok();
            assert_eq!(metadata.blocks() * 512 >= BYTES, can && !in_memory, "{}", folder.path().display());
        }
    }
}

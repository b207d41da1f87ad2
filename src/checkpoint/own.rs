//! Folders and files of this user alone: how they are made, opened and put on the disk.

use std::fs::File;
use std::io;

use cap_fs_ext::{FollowSymlinks, OpenOptionsFollowExt, OpenOptionsSyncExt};
use cap_std::fs::{Dir, DirBuilder, File as CapFile, Metadata, OpenOptions};

use super::file::Access;

/// Whether nobody else can have put anything into a folder or file.
#[cfg(unix)]
pub(super) fn is_ours(found: &Metadata) -> std::result::Result<(), &'static str> {
    use cap_std::fs::MetadataExt;
    if found.uid() != rustix::process::geteuid().as_raw() {
        return Err("it belongs to another user");
    }
    if found.mode() & 0o022 != 0 {
        return Err("others may write to it");
    }
    Ok(())
}

#[cfg(not(unix))]
pub(super) fn is_ours(_found: &Metadata) -> std::result::Result<(), &'static str> {
    Ok(())
}

/// How a file is made that must not be there.
pub(super) fn new_file(mode: u32) -> OpenOptions {
    let mut options = existing_file();
    options.create_new(true);
    #[cfg(unix)]
    {
        use cap_std::fs::OpenOptionsExt;
        options.mode(mode);
    }
    #[cfg(not(unix))]
    let _ = mode;
    options
}

/// How a file is opened that may not be what it was: a link is not followed, and a pipe not waited for.
pub(super) fn existing_file() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).nonblock(true).follow(FollowSymlinks::No);
    options
}

/// A folder that only this user may look into.
pub(super) fn private_folder() -> DirBuilder {
    #[allow(unused_mut, reason = "only unix has modes")]
    let mut builder = DirBuilder::new();
    #[cfg(unix)]
    {
        use cap_std::fs::DirBuilderExt;
        builder.mode(0o700);
    }
    builder
}

/// Gives a folder the mode that the inputs and the system's mask leave.
#[cfg(unix)]
pub(super) fn open_to(folder: &Dir, access: Access) -> io::Result<()> {
    use cap_std::fs::MetadataExt;
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;
    // The system may have added bits of the parent's, such as the one that hands its group on.
    let added = folder.dir_metadata()?.mode() & 0o7000;
    handle_of(folder)?.set_permissions(Permissions::from_mode(added | access.folder_mode()))
}

#[cfg(not(unix))]
pub(super) fn open_to(_folder: &Dir, _access: Access) -> io::Result<()> {
    Ok(())
}

/// A handle with which a folder can be synced and changed; one that only leads to files cannot.
#[cfg(unix)]
pub(super) fn handle_of(folder: &Dir) -> io::Result<File> {
    folder.open(".").map(CapFile::into_std)
}

/// Puts a folder's entries on the disk. Elsewhere than on unix a folder cannot be opened for that.
pub(super) fn sync_folder(folder: &Dir) -> io::Result<()> {
    #[cfg(unix)]
    match handle_of(folder).and_then(|folder| folder.sync_all()) {
        // Some file systems do not sync folders by themselves.
        Err(e) if ![io::ErrorKind::InvalidInput, io::ErrorKind::Unsupported].contains(&e.kind()) => {
            return Err(e);
        }
        _ => {}
    }
    #[cfg(not(unix))]
    let _ = folder;
    Ok(())
}

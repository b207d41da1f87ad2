//! Folders that are open: what is done in them by name stays in them, wherever their paths lead by now, and follows no link.

use std::ffi::OsString;
use std::io;
use std::path::Path;

use cap_fs_ext::{DirExt, FollowSymlinks, MetadataExt, OpenOptionsFollowExt, OpenOptionsSyncExt};
use cap_std::fs::{Dir, DirBuilder, DirEntry, FileType, Metadata, OpenOptions};

use super::{Done, File, On, Op, ask, hook};

/// A folder that is open.
#[derive(Debug)]
pub struct Folder(pub(super) Dir);

impl Folder {
    /// Opens the folder that a path leads to.
    ///
    /// # Errors
    /// Those of the system.
    pub fn open(path: &Path) -> io::Result<Self> {
        let open = || Dir::open_ambient_dir(path, cap_std::ambient_authority());
        ask(Op::Open, On::Path(path), open).map(Self)
    }

    /// Opens a folder in it.
    ///
    /// # Errors
    /// Those of the system; and it is a link.
    pub fn open_folder(&self, name: impl AsRef<Path>) -> io::Result<Self> {
        let name = name.as_ref();
        ask(Op::Open, On::In(self, name), || self.0.open_dir_nofollow(name)).map(Self)
    }

    /// Another handle of it.
    ///
    /// # Errors
    /// Those of the system.
    pub fn try_clone(&self) -> io::Result<Self> {
        ask(Op::Open, On::Folder(self), || self.0.try_clone()).map(Self)
    }

    /// Makes a folder in it.
    ///
    /// # Errors
    /// Those of the system.
    pub fn make_folder(&self, name: impl AsRef<Path>) -> io::Result<()> {
        self.make_by(name.as_ref(), &DirBuilder::new())
    }

    /// Makes a folder in it that only this user may look into.
    ///
    /// # Errors
    /// Those of the system.
    pub fn make_private_folder(&self, name: impl AsRef<Path>) -> io::Result<()> {
        #[allow(unused_mut, reason = "only unix has modes")]
        let mut builder = DirBuilder::new();
        #[cfg(unix)]
        cap_std::fs::DirBuilderExt::mode(&mut builder, 0o700);
        self.make_by(name.as_ref(), &builder)
    }

    fn make_by(&self, name: &Path, builder: &DirBuilder) -> io::Result<()> {
        ask(Op::MakeFolder, On::In(self, name), || self.0.create_dir_with(name, builder))?;
        hook::done(&Done::MadeFolder(On::In(self, name)));
        Ok(())
    }

    /// Makes a file in it that must not be there, with this mode where the system has modes.
    ///
    /// # Errors
    /// Those of the system.
    pub fn make_file(&self, name: impl AsRef<Path>, mode: u32) -> io::Result<File> {
        let (name, mut options) = (name.as_ref(), existing());
        options.write(true).create_new(true);
        #[cfg(unix)]
        cap_std::fs::OpenOptionsExt::mode(&mut options, mode);
        #[cfg(not(unix))]
        let _ = mode;
        let file = ask(Op::Make, On::In(self, name), || self.0.open_with(name, &options))?;
        hook::done(&Done::Made(On::In(self, name)));
        Ok(File(file.into_std()))
    }

    /// Opens a file in it, for reading and writing, that may not be what it was: a pipe is not waited for.
    ///
    /// # Errors
    /// Those of the system.
    pub fn open_file(&self, name: impl AsRef<Path>) -> io::Result<File> {
        self.open_by(name.as_ref(), existing().write(true))
    }

    /// The same for reading alone.
    ///
    /// # Errors
    /// Those of the system.
    pub fn open_to_read(&self, name: impl AsRef<Path>) -> io::Result<File> {
        self.open_by(name.as_ref(), &existing())
    }

    fn open_by(&self, name: &Path, options: &OpenOptions) -> io::Result<File> {
        ask(Op::Open, On::In(self, name), || self.0.open_with(name, options))
            .map(|file| File(file.into_std()))
    }

    /// Removes a file in it.
    ///
    /// # Errors
    /// Those of the system.
    pub fn remove_file(&self, name: impl AsRef<Path>) -> io::Result<()> {
        let name = name.as_ref();
        ask(Op::Remove, On::In(self, name), || self.0.remove_file(name))?;
        hook::done(&Done::Removed(On::In(self, name)));
        Ok(())
    }

    /// Removes a folder in it, if that is empty.
    ///
    /// # Errors
    /// Those of the system.
    pub fn remove_folder(&self, name: impl AsRef<Path>) -> io::Result<()> {
        let name = name.as_ref();
        ask(Op::Remove, On::In(self, name), || self.0.remove_dir(name))?;
        hook::done(&Done::Removed(On::In(self, name)));
        Ok(())
    }

    /// Gives what is in it another name.
    ///
    /// # Errors
    /// Those of the system.
    pub fn rename(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> io::Result<()> {
        let (from, to) = (from.as_ref(), to.as_ref());
        ask(Op::Rename, On::In(self, to), || self.0.rename(from, &self.0, to))?;
        hook::done(&Done::Renamed(On::In(self, to), On::In(self, from)));
        Ok(())
    }

    /// Moves what is in it to another folder of the same disk, where it keeps its name.
    ///
    /// # Errors
    /// Those of the system.
    pub fn move_to(&self, name: impl AsRef<Path>, other: &Self) -> io::Result<()> {
        let name = name.as_ref();
        ask(Op::Rename, On::In(other, name), || self.0.rename(name, &other.0, name))?;
        hook::done(&Done::Renamed(On::In(other, name), On::In(self, name)));
        Ok(())
    }

    /// What has this name in it.
    ///
    /// # Errors
    /// Those of the system.
    pub fn look(&self, name: impl AsRef<Path>) -> io::Result<Found> {
        let name = name.as_ref();
        ask(Op::Look, On::In(self, name), || self.0.symlink_metadata(name)).map(Found)
    }

    /// What it is itself.
    ///
    /// # Errors
    /// Those of the system.
    pub fn found(&self) -> io::Result<Found> {
        ask(Op::Look, On::Folder(self), || self.0.dir_metadata()).map(Found)
    }

    /// What a folder in it holds.
    ///
    /// # Errors
    /// Those of the system, for each entry too.
    pub fn list(&self, name: &Path) -> io::Result<impl Iterator<Item = io::Result<DirEntry>> + use<>> {
        ask(Op::List, On::In(self, name), || self.0.read_dir(name))
    }

    /// What it holds itself, with the kind of each.
    ///
    /// # Errors
    /// The same.
    pub fn entries(&self) -> io::Result<Vec<(OsString, FileType)>> {
        let kind =
            |entry: io::Result<DirEntry>| entry.and_then(|entry| Ok((entry.file_name(), entry.file_type()?)));
        self.list(Path::new("."))?.map(kind).collect()
    }

    /// Gives it a mode, where the system has modes. Bits that the system has added, such as the one that hands its group on, stay.
    ///
    /// # Errors
    /// Those of the system.
    pub fn set_mode(&self, mode: u32) -> io::Result<()> {
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let added = cap_std::fs::MetadataExt::mode(&self.found()?.0) & 0o7000;
            let mode = std::fs::Permissions::from_mode(added | mode);
            ask(Op::SetMode, On::Folder(self), || self.handle()?.into_std().set_permissions(mode.clone()))
        }
        #[cfg(not(unix))]
        {
            let _ = mode;
            Ok(())
        }
    }

    /// Puts its entries on the disk. Elsewhere than on unix a folder cannot be opened for that.
    ///
    /// # Errors
    /// The disk is full or fails.
    pub fn sync(&self) -> io::Result<()> {
        #[cfg(unix)]
        {
            let before = hook::now();
            match ask(Op::SyncFolder, On::Folder(self), || self.handle()?.sync_all()) {
                // Some file systems do not sync folders by themselves.
                Err(e) if ![io::ErrorKind::InvalidInput, io::ErrorKind::Unsupported].contains(&e.kind()) => {
                    return Err(e);
                }
                _ => hook::done(&Done::SyncedFolder(self, before)),
            }
        }
        Ok(())
    }

    /// A handle with which it can be synced and changed; one that only leads to files cannot.
    #[cfg(unix)]
    fn handle(&self) -> io::Result<cap_std::fs::File> {
        self.0.open(".")
    }
}

/// How a file is opened that may not be what it was: a link is not followed, and a pipe not waited for.
fn existing() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).nonblock(true).follow(FollowSymlinks::No);
    options
}

/// What the system says of something in a folder.
#[derive(Debug)]
pub struct Found(Metadata);

impl Found {
    /// What it says of an open file.
    ///
    /// # Errors
    /// Those of the system.
    pub fn of(file: &File) -> io::Result<Self> {
        ask(Op::Look, On::File(&file.0), || Metadata::from_file(&file.0)).map(Self)
    }

    /// Whether it is a folder.
    pub fn is_folder(&self) -> bool {
        self.0.is_dir()
    }

    /// Whether it is a file.
    pub fn is_file(&self) -> bool {
        self.0.is_file()
    }

    /// What is one and the same has the same numbers: of its device, and on it.
    pub fn number(&self) -> (u64, u64) {
        (self.0.dev(), self.0.ino())
    }

    /// Whether nobody else can have put anything into it.
    ///
    /// # Errors
    /// Why somebody can have.
    pub fn is_ours(&self) -> Result<(), &'static str> {
        #[cfg(unix)]
        {
            use cap_std::fs::MetadataExt;
            if self.0.uid() != rustix::process::geteuid().as_raw() {
                return Err("it belongs to another user");
            }
            if self.0.mode() & 0o022 != 0 {
                return Err("others may write to it");
            }
        }
        Ok(())
    }
}

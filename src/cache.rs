//! The folder of what merges remember for later ones.

use std::fs::DirBuilder;
use std::io;
use std::path::Path;

/// Makes a folder, and those that it lies in, for the user alone. What is there stays as it is.
///
/// # Errors
/// Those of the system.
pub fn make_private(folder: &Path) -> io::Result<()> {
    let mut builder = DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.recursive(true).create(folder)
}

//! Where the output goes, checked before anything is read: the folder is new or empty, apart from every input, and can be made.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::files::{self, Metadata};
use crate::text::bytes as size;

/// A folder that is to be made.
#[derive(Debug, Clone)]
pub struct Destination {
    /// Its path.
    pub out: PathBuf,
    /// What goes into it, in bytes.
    pub bytes: u64,
    /// What is written beside it meanwhile, to be removed, in bytes.
    pub on_the_way_bytes: u64,
}

/// Checks, before anything is read, that all of these can be made: each as of [`check_out`], none within another, and with room
/// for them together.
///
/// # Errors
/// Kind `Config`, with all that stands in the way; or `Output`, where a disk is too small.
pub fn check_destinations(all: &[Destination], inputs: &[PathBuf]) -> Result<()> {
    let inputs = real_inputs(inputs)?;
    let (mut problems, mut places, mut overlaps) = (Vec::new(), BTreeMap::new(), BTreeSet::new());
    for (number, Destination { out, .. }) in all.iter().enumerate() {
        match checked(out, &inputs) {
            // What is built beside one may take the place of another.
            Ok(real) => {
                for place in [partial_of(&real), real] {
                    overlaps.extend(places.insert(place, number).map(|other| (other, number)));
                }
            }
            Err(problem) => problems.push(problem),
        }
    }
    for (place, number) in &places {
        let above = place.ancestors().find_map(|above| places.get(above).filter(|other| *other != number));
        overlaps.extend(above.map(|other| (*other.min(number), *other.max(number))));
    }
    for (one, other) in overlaps {
        let (one, other) = (all[one].out.display(), all[other].out.display());
        let problem = Error::config(format!("the results {one} and {other} overlap"));
        problems.push(problem.hint("give each a folder of its own, beside the others"));
    }
    if problems.is_empty() { room(all) } else { Err(Error::all(problems)) }
}

/// Checks that `out` can become the output: it is new or an empty folder, apart from every input, and can be made.
///
/// # Errors
/// Kind `Config`, with what stands in the way; or `Output`, where the system lets nobody write.
pub fn check_out(out: &Path, inputs: &[PathBuf]) -> Result<()> {
    checked(out, &real_inputs(inputs)?).map(|_| ())
}

/// Checks that `out` lies in no input, and holds none.
///
/// # Errors
/// Kind `Config`, with the input.
pub fn check_apart(out: &Path, inputs: &[PathBuf]) -> Result<()> {
    let real = resolve(out).map_err(Error::config)?;
    apart_from_inputs(out, &real, &real_inputs(inputs)?)
}

/// Inputs without symlinks, each behind its path as it is written.
fn real_inputs(inputs: &[PathBuf]) -> Result<Vec<(&Path, PathBuf)>> {
    let real = |input: &PathBuf| files::real(input).map_err(|e| Error::reading(input, &e));
    inputs.iter().map(|input| Ok((input.as_path(), real(input)?))).collect()
}

/// As [`check_out`]; returns the place without symlinks.
fn checked(out: &Path, inputs: &[(&Path, PathBuf)]) -> Result<PathBuf> {
    let real = resolve(out).map_err(Error::config)?;
    apart_from_inputs(out, &real, inputs)?;
    free_to_take(out, &real)?;
    can_be_made(out, &real)?;
    Ok(real)
}

/// Checks that disks have room for all that goes there.
fn room(all: &[Destination]) -> Result<()> {
    let mut disks: BTreeMap<u64, Vec<&Destination>> = BTreeMap::new();
    for destination in all {
        disks.entry(disk_of(&destination.out)).or_default().push(destination);
    }
    for there in disks.values() {
        let needed = there.iter().map(|of| of.bytes.saturating_add(of.on_the_way_bytes));
        let needed = needed.fold(0, u64::saturating_add);
        let last = there[there.len() - 1];
        // What a stopped merge left is used again, or makes room.
        let left: u64 = there.iter().map(|destination| left_bytes(&destination.out)).sum();
        let free = free_bytes(&last.out).map(|free| free.saturating_add(left));
        let Some(free) = free.filter(|free| *free < needed) else { continue };
        let mut sizes = (size(needed), size(free));
        if sizes.0 == sizes.1 {
            sizes = (format!("{needed} bytes"), format!("{free} bytes"));
        }
        let (needed, free) = sizes;
        let what = match (there.len(), last.on_the_way_bytes) {
            (1, 0) => "the output needs".into(),
            (1, _) => "the output and what is merged on the way to it need".into(),
            (count, _) => format!("{count} results need"),
        };
        let mut refusal =
            format!("{what} {needed}, and only {free} are free where {} goes", last.out.display());
        if left > 0 {
            refusal += &format!(", with the {} that a stopped merge has left there", size(left));
        }
        return Err(Error::output(refusal).hint("free some space, or choose another disk"));
    }
    Ok(())
}

/// The space that files take which a stopped merge left beside `out`.
fn left_bytes(out: &Path) -> u64 {
    let entries = resolve(out).and_then(|real| files::list(&partial_of(&real)).map_err(|e| e.to_string()));
    let files = entries.into_iter().flatten().filter_map(|entry| entry.ok()?.metadata().ok());
    files.filter(Metadata::is_file).map(|file| taken_bytes(&file)).sum()
}

/// The space that a file takes.
fn taken_bytes(file: &Metadata) -> u64 {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        const BLOCK_BYTES: u64 = 512;
        file.blocks() * BLOCK_BYTES
    }
    #[cfg(not(unix))]
    {
        file.len()
    }
}

/// Whether two places are on one disk.
pub fn same_disk(one: &Path, other: &Path) -> bool {
    disk_of(one) == disk_of(other)
}

/// A number that tells disks apart, of the one where `out` will lie.
fn disk_of(out: &Path) -> u64 {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let folder = resolve(out).ok().and_then(|real| files::metadata(nearest_existing(&real)?).ok());
        folder.map_or(0, |folder| folder.dev())
    }
    #[cfg(not(unix))]
    {
        let _ = out;
        0
    }
}

/// The bytes that may still be written where `out` will lie. `None` where the system does not say.
pub fn free_bytes(out: &Path) -> Option<u64> {
    files::free_bytes(nearest_existing(&resolve(out).ok()?)?)
}

/// `out` without symlinks, as far as it exists; the rest as it is written. It has a name and a parent.
pub(super) fn resolve(out: &Path) -> std::result::Result<PathBuf, String> {
    let shown = out.display();
    let absolute = std::path::absolute(out).map_err(|e| format!("the output folder {shown:?}: {e}"))?;
    let (mut existing, mut rest) = (absolute.as_path(), Vec::new());
    let mut real = loop {
        match files::real(existing) {
            Ok(real) => break real,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(format!("the output folder {shown} cannot be reached: {e}")),
        }
        if files::is_link(existing) {
            return Err(format!("{} is a symlink to nothing", existing.display()));
        }
        // A path that ends in `..` has no name: what it means depends on a folder that is not there.
        let (Some(name), Some(parent)) = (existing.file_name(), existing.parent()) else {
            return Err(format!("the output folder {shown} leads through a folder that does not exist"));
        };
        rest.push(name);
        existing = parent;
    };
    real.extend(rest.into_iter().rev());
    match real.file_name() {
        Some(_) => Ok(real),
        None => Err(format!("{shown} cannot be the output folder")),
    }
}

pub(super) fn nearest_existing(path: &Path) -> Option<&Path> {
    path.ancestors().find(|ancestor| files::exists(ancestor))
}

/// The sibling in which `real` is built.
pub(super) fn partial_of(real: &Path) -> PathBuf {
    beside(real, ".partial")
}

/// The sibling of `out` in which its parts lie until they are put together.
///
/// # Errors
/// Kind `Config`: `out` is no place for an output. Kind `Output`: something else has that name.
pub fn parts_of(out: &Path) -> Result<PathBuf> {
    let parts = resolve(out).map(|real| beside(&real, ".parts")).map_err(Error::config)?;
    match files::metadata(&parts) {
        Ok(found) if !found.is_dir() => Err(in_the_way(&parts, "it is no folder")),
        _ => Ok(parts),
    }
}

/// Refuses what has the name of something that is to be made.
pub fn in_the_way(path: &Path, what: &str) -> Error {
    Error::output(format!("{} is in the way: {what}", path.display()))
        .hint("move or delete it, or choose another output folder")
}

/// The sibling in which `out` is built.
///
/// # Errors
/// Kind `Config`: `out` is no place for an output.
pub fn partial_path(out: &Path) -> Result<PathBuf> {
    resolve(out).map(|real| partial_of(&real)).map_err(Error::config)
}

/// A sibling whose name has this at its end.
fn beside(real: &Path, ending: &str) -> PathBuf {
    let mut name = real.file_name().unwrap_or(OsStr::new("out")).to_os_string();
    name.push(ending);
    real.with_file_name(name)
}

/// Neither the output nor the folder it is built in may lie in an input, or hold one.
fn apart_from_inputs(out: &Path, real: &Path, inputs: &[(&Path, PathBuf)]) -> Result<()> {
    let places = [real.to_path_buf(), partial_of(real)];
    for (input, folder) in inputs {
        if places.iter().any(|place| place.starts_with(folder) || folder.starts_with(place)) {
            let (out, input) = (out.display(), input.display());
            return Err(Error::config(format!("the output folder {out} and the input {input} overlap"))
                .hint("write to a folder of its own, beside the models"));
        }
    }
    Ok(())
}

/// Refuses a place that holds something: `real` without symlinks, `out` for messages.
pub(super) fn free_to_take(out: &Path, real: &Path) -> Result<()> {
    let Ok(metadata) = files::metadata_of_link(real) else {
        return Ok(());
    };
    if !metadata.is_dir() {
        return Err(Error::config(format!("the output {} exists and is no folder", out.display()))
            .hint("choose another output folder"));
    }
    if !is_empty(real).map_err(|e| Error::config(format!("cannot look into {}: {e}", out.display())))? {
        return Err(Error::config(format!("the output folder {} exists and is not empty", out.display()))
            .hint("choose another output folder, or delete this one"));
    }
    if is_mount_point(real) {
        return Err(Error::config(format!(
            "the output folder {} is a mount point, which cannot be replaced by a finished folder",
            out.display()
        ))
        .hint("give a folder inside it"));
    }
    Ok(())
}

fn can_be_made(out: &Path, real: &Path) -> Result<()> {
    let what = |why: String| format!("the output folder {} cannot be made: {why}", out.display());
    let refused = |error: Error| Err(error.hint("choose another output folder"));
    let Some(parent) = real.parent().and_then(nearest_existing) else {
        return refused(Error::config(what("no parent folder exists".into())));
    };
    if !files::is_folder(parent) {
        return refused(Error::config(what(format!("{} is no folder", parent.display()))));
    }
    // Another time it may be possible: a file system that others mounted read-only, or rights.
    let unwritable = |e| refused(Error::output(what(format!("cannot write in {}: {e}", parent.display()))));
    files::check_writable(parent).or_else(unwritable)
}

fn is_empty(folder: &Path) -> io::Result<bool> {
    Ok(files::list(folder)?.next().is_none())
}

/// Another file system, or the same one mounted there as well.
#[cfg(unix)]
fn is_mount_point(folder: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let device = |path: &Path| files::metadata(path).map(|metadata| metadata.dev()).ok();
    folder.parent().is_some_and(|parent| device(parent) != device(folder)) || files::is_mount_root(folder)
}

#[cfg(not(unix))]
fn is_mount_point(_folder: &Path) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use std::fs;

    fn check(out: &Path, inputs: &[&Path]) -> Result<()> {
        check_out(out, &inputs.iter().map(|input| input.to_path_buf()).collect::<Vec<_>>())
    }

    fn refused(out: &Path, inputs: &[&Path]) -> String {
        let error = check(out, inputs).unwrap_err();
        assert_eq!(error.kind, Kind::Config);
        error.message
    }

    #[test]
    fn the_output_must_be_new_or_empty() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        check(&at("new"), &[]).unwrap();
        check(&at("new/deep/er"), &[]).unwrap();
        fs::create_dir(at("empty")).unwrap();
        check(&at("empty"), &[]).unwrap();
        fs::write(at("file"), "x").unwrap();
        assert!(refused(&at("file"), &[]).contains("is no folder"));
        assert!(refused(&at("file/below"), &[]).contains("cannot be"));
        assert!(refused(dir.path(), &[]).contains("is not empty"));
        assert!(refused(&at("not/../there"), &[]).contains("does not exist"));
        assert!(refused(Path::new("/"), &[]).contains("cannot be the output"));
        check(Path::new(""), &[]).unwrap_err();
    }

    #[test]
    fn the_output_is_apart_from_the_inputs() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("models/a")).unwrap();
        fs::create_dir_all(at("c.partial")).unwrap();
        let input = at("models/a");
        for inside in ["models/a", "models/a/out", "models/a/x/y", "models/../models/a/out", "models"] {
            assert!(refused(&at(inside), &[&input]).contains("overlap"), "{inside}");
        }
        assert!(refused(&at("c"), &[&at("c.partial")]).contains("overlap"));
        check(&at("models/ab"), &[&input]).unwrap();
        assert!(check(&at("out"), &[&at("none")]).is_err());
    }

    #[test]
    fn destinations_are_apart_from_each_other_and_have_room_together() {
        let dir = tempfile::tempdir().unwrap();
        let at =
            |out: &str, bytes: u64| Destination { out: dir.path().join(out), bytes, on_the_way_bytes: 0 };
        let check = |all: &[Destination]| check_destinations(all, &[]);
        check(&[at("a", 1), at("b", 1), at("a.stages", 1), at("deep/a", 1)]).unwrap();
        for (one, other) in
            [("a", "a"), ("a", "a/b"), ("a/b/c", "a"), ("a.partial", "a"), ("a.partial/x", "a")]
        {
            let problem = check(&[at(one, 1), at(other, 1)]).unwrap_err();
            assert!(problem.message.contains("overlap"), "{one}, {other}: {problem}");
            assert_eq!(problem.kind, Kind::Config);
        }
        fs::write(dir.path().join("file"), "x").unwrap();
        let problems = check(&[at("file", 1), at("b", 1), at("c", 1), at("c/d", 1)]).unwrap_err();
        assert_eq!(problems.one_by_one().len(), 2, "all are reported");
        let Some(free) = free_bytes(dir.path()) else { return };
        // Each by itself would have room.
        let (one, other) = (at("a", free / 3), at("b", free));
        check(std::slice::from_ref(&one)).unwrap();
        let problem = check(&[one.clone(), other]).unwrap_err();
        assert!(problem.message.starts_with("2 results need "), "{problem}");
        assert_eq!(problem.kind, Kind::Output);
        let problem = check(&[Destination { on_the_way_bytes: free, ..one }]).unwrap_err();
        assert!(
            problem.message.starts_with("the output and what is merged on the way to it need"),
            "{problem}"
        );
    }

    #[cfg(unix)]
    #[test]
    fn symlinks_do_not_hide_where_the_output_lies() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("model")).unwrap();
        symlink(at("model"), at("link")).unwrap();
        assert!(refused(&at("link/new/out"), &[&at("model")]).contains("overlap"));
        assert!(refused(&at("model/out"), &[&at("link")]).contains("overlap"));
        symlink(at("nowhere"), at("dangling")).unwrap();
        assert!(refused(&at("dangling"), &[]).contains("symlink to nothing"));
        assert!(refused(&at("dangling/out"), &[]).contains("symlink to nothing"));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_folder_that_cannot_be_written_may_be_another_time() {
        use crate::files::Op;
        use crate::files::hook::{Fault, Hooked, Planted};
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let hooked = Hooked::on(&root);
        let mut refused = 0;
        for call in 0.. {
            let fault = Fault::Error(rustix::io::Errno::ROFS);
            hooked.plant(Some(Planted { op: Op::Look, call, fault, lasts: false }));
            let outcome = check(&root.join("deep/out"), &[]);
            if hooked.hits().is_empty() {
                break;
            }
            if let Err(error) = outcome
                && error.message.contains("deep/out cannot be made: cannot write in")
            {
                assert_eq!(error.kind, Kind::Output);
                refused += 1;
            }
        }
        assert_eq!(refused, 1);
    }

    #[test]
    fn free_space_is_reported_for_a_folder_that_is_not_there_yet() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(free_bytes(&dir.path().join("a/b")).is_some(), cfg!(unix));
    }
}

//! Where the checkpoints of a bench lie, and whether there is room for them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::bench::shapes::SHAPES;
use crate::bench::synth::Spec;
use crate::checkpoint::free_bytes;
use crate::error::{Error, Result};
use crate::machine::available_bytes;
use crate::text::bytes;

/// In a set's folder, what is not to stay.
pub(super) const WORK: &str = "work";

/// and the output.
pub(super) const OUT: &str = "out";

/// The folder of everything that benches make.
const OURS: &str = "mergeforge-bench";

/// Memory that is not filled with files: the merge and the rest of the machine need some.
const MEMORY_LEFT: u64 = 2 << 30;

/// The folder of a set of checkpoints, below `--dir`: what would be other bytes lies in another one.
pub fn folder_name(spec: &Spec) -> String {
    let whole = SHAPES.contains(&spec.shape);
    let layers = if whole { String::new() } else { format!("-{}-layers", spec.shape.layers) };
    format!("{}{layers}-{}-seed-{}", spec.shape.name, spec.float.name(), spec.seed)
}

/// Where a set goes by default: in memory, where there is room and a cold disk is not what is asked for; else in
/// the folder of temporary files.
pub fn choose(spec: &Spec, models: &[usize], cold: bool) -> PathBuf {
    let memory = Path::new("/dev/shm");
    let below = |folder: &Path| folder.join(OURS).join(folder_name(spec));
    let fits =
        |dir: &PathBuf| in_memory(memory) && room(dir).is_some_and(|room| room >= needed(spec, dir, models));
    Some(below(memory)).filter(|dir| !cold && fits(dir)).unwrap_or_else(|| below(&std::env::temp_dir()))
}

/// Bytes that the checkpoints which are not there yet and the output will take.
fn needed(spec: &Spec, dir: &Path, models: &[usize]) -> u64 {
    spec.model_bytes() * (spec.missing(dir, models).len() as u64 + 1)
}

/// Refuses a set that does not fit.
///
/// # Errors
/// Kind `Output`: with the bytes that are needed.
pub(super) fn check_room(spec: &Spec, dir: &Path, models: &[usize]) -> Result<()> {
    let needed = needed(spec, dir, models);
    match room(dir) {
        Some(room) if room < needed => Err(Error::output(format!(
            "the checkpoints that are still to be made and one output need {} ({needed} bytes), and {} has room for {}",
            bytes(needed),
            dir.display(),
            bytes(room),
        ))
        .hint("cut the shape with --layers, merge fewer --models, or name a larger disk with --dir")),
        _ => Ok(()),
    }
}

fn room(dir: &Path) -> Option<u64> {
    let free = free_bytes(dir)?;
    let memory = || available_bytes().map(|memory| memory.saturating_sub(MEMORY_LEFT));
    Some(if in_memory(dir) { memory().map_or(free, |memory| free.min(memory)) } else { free })
}

/// Whether files below this folder, which need not be there yet, lie in memory.
pub(super) fn in_memory(dir: &Path) -> bool {
    #[cfg(target_os = "linux")]
    {
        // tmpfs and ramfs, as statfs(2) numbers them.
        const IN_MEMORY: [u64; 2] = [0x0102_1994, 0x8584_58f6];
        let dir = std::path::absolute(dir).unwrap_or_else(|_| dir.into());
        let found = dir.ancestors().find_map(|ancestor| rustix::fs::statfs(ancestor).ok());
        found.is_some_and(|found| IN_MEMORY.contains(&(found.f_type as u64 & 0xffff_ffff)))
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = dir;
        false
    }
}

/// A set's folder while a bench uses it, with a folder for what is not to stay.
#[derive(Debug)]
pub(in crate::bench) struct HeldFolder {
    dir: PathBuf,
    pub work: PathBuf,
    /// Locked until it is closed: benches side by side would measure each other.
    _lock: Option<File>,
}

impl HeldFolder {
    /// Makes the folder, locks it, and clears what a killed bench left.
    ///
    /// # Errors
    /// Kind `Output`: it cannot be made, or another bench uses it.
    pub fn take(dir: &Path) -> Result<Self> {
        let failed = |cause: std::io::Error| Error::writing(dir, &cause);
        fs::create_dir_all(dir).map_err(failed)?;
        let lock = lock(dir)?;
        let held = Self { dir: dir.into(), work: dir.join(WORK), _lock: lock };
        held.clear();
        fs::create_dir(&held.work).map_err(failed)?;
        Ok(held)
    }

    /// Removes the output of a merge, if there is one.
    ///
    /// # Errors
    /// Kind `Output`.
    pub fn clear_output(&self) -> Result<()> {
        let out = self.work.join(OUT);
        match fs::remove_dir_all(&out) {
            Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => Err(Error::writing(&out, &cause)),
            _ => Ok(()),
        }
    }

    fn clear(&self) {
        // What cannot be removed will be in the way of what is made next, and be reported then.
        let _ = fs::remove_dir_all(&self.work);
    }
}

impl Drop for HeldFolder {
    fn drop(&mut self) {
        self.clear();
        // A set of which nothing was made leaves no trace; one that holds something stays.
        let _ = fs::remove_dir(&self.dir);
    }
}

/// A folder can be locked where it can be opened.
fn lock(dir: &Path) -> Result<Option<File>> {
    let Ok(folder) = File::open(dir) else { return Ok(None) };
    match folder.try_lock() {
        Err(fs::TryLockError::WouldBlock) => {
            Err(Error::output(format!("another bench uses {}", dir.display()))
                .hint("wait for it, or name another folder with --dir"))
        }
        _ => Ok(Some(folder)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::shapes::Shape;
    use crate::dtype::Float;
    use crate::error::Kind;

    fn spec(name: &str, layers: Option<usize>) -> Spec {
        let shape = Shape::find(name, layers).unwrap();
        Spec { shape, float: Float::BF16, seed: 7, shard_bytes: None }
    }

    #[test]
    fn folders_are_named_by_what_they_hold() {
        assert_eq!(folder_name(&spec("tiny", None)), "tiny-bfloat16-seed-7");
        assert_eq!(folder_name(&spec("llama-3-70b", Some(2))), "llama-3-70b-2-layers-bfloat16-seed-7");
    }

    #[test]
    fn a_folder_belongs_to_one_bench_and_is_cleared() {
        let dir = tempfile::tempdir().unwrap();
        let set = dir.path().join("set");
        fs::create_dir_all(set.join("work/out")).unwrap();
        let held = HeldFolder::take(&set).unwrap();
        assert!(held.work.is_dir() && !held.work.join("out").exists());
        if cfg!(unix) {
            assert_eq!(HeldFolder::take(&set).unwrap_err().kind, Kind::Output);
        }
        drop(held);
        assert!(!set.exists());
    }

    #[test]
    fn what_cannot_fit_is_refused_with_its_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let spec = spec("llama-3-70b", None);
        assert_eq!(needed(&spec, dir.path(), &[0, 1]), 3 * spec.model_bytes());
        let many: Vec<usize> = (0..1 << 20).collect();
        let error = check_room(&spec, dir.path(), &many).unwrap_err();
        assert!(
            error.message.contains(&format!("{} bytes", spec.model_bytes() * ((1 << 20) + 1))),
            "{error}"
        );
    }
}

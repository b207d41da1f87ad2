//! The program as a user runs it: a process of its own, with what it prints and how it ends.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// The repository: examples name their models from here.
pub const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The program, started in the repository. Nothing of the machine's own settings or caches reaches it, and it reaches no network.
pub fn mergeforge() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mergeforge"));
    command
        .current_dir(ROOT)
        .env("HF_HUB_CACHE", "/nowhere")
        .env("MERGEFORGE_CACHE", "")
        .env("HF_HUB_OFFLINE", "1");
    for key in [
        "NO_COLOR",
        "COLUMNS",
        "HF_HOME",
        "HF_TOKEN",
        "HF_TOKEN_PATH",
        "HF_ENDPOINT",
        "HUGGING_FACE_HUB_TOKEN",
        "HTTP_PROXY",
        "http_proxy",
        "HTTPS_PROXY",
        "https_proxy",
        "ALL_PROXY",
        "all_proxy",
        "RANK",
        "SLURM_ARRAY_TASK_ID",
        "JOB_COMPLETION_INDEX",
    ] {
        command.env_remove(key);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    hearing(&mut command);
    command
}

/// Lets a program hear the signals that ask it to end, though these tests may have been started with them ignored.
pub fn hearing(command: &mut Command) {
    use std::os::unix::process::CommandExt;
    let hear = || {
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
            // SAFETY: the default action is no handler, and setting it takes no memory.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        Ok(())
    };
    // SAFETY: between fork and exec it only makes calls of the system.
    unsafe { command.pre_exec(hear) };
}

/// How a run ended.
#[derive(Debug)]
pub struct Ended {
    /// `None`: a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("the program prints UTF-8");
        let ended =
            Self { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) };
        assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
        ended
    }
}

impl Ended {
    /// A run that has to succeed.
    #[track_caller]
    pub fn succeeded(self) -> Self {
        assert_eq!(self.code, Some(0), "{}", self.stderr);
        self
    }

    /// A run that has to fail with this code, and to say all of this.
    #[track_caller]
    pub fn failed(self, code: i32, says: &[&str]) -> Self {
        assert_eq!(self.code, Some(code), "{}", self.stderr);
        assert!(self.stdout.is_empty(), "an error is no data: {}", self.stdout);
        for part in says {
            assert!(self.stderr.contains(part), "no `{part}` in\n{}", self.stderr);
        }
        self
    }
}

/// Runs the program to its end.
pub fn run<S: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = S>) -> Ended {
    mergeforge().args(arguments).output().expect("the program starts").into()
}

/// Runs the program to its end, and looks at the most memory that it has had resident, in bytes. (What the system counts of a child at its
/// end begins with its parent's.)
#[cfg(target_os = "linux")]
pub fn run_watched<S: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = S>) -> (Ended, u64) {
    watched("VmHWM:", arguments)
}

/// The same without pages of files, which the system takes back when it likes: the most that was seen.
#[cfg(target_os = "linux")]
pub fn run_watched_alone<S: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = S>) -> (Ended, u64) {
    watched("RssAnon:", arguments)
}

#[cfg(target_os = "linux")]
fn watched<S: AsRef<std::ffi::OsStr>>(line: &str, arguments: impl IntoIterator<Item = S>) -> (Ended, u64) {
    let mut child = mergeforge().args(arguments).spawn().expect("the program starts");
    let (status, mut peak_bytes) = (format!("/proc/{}/status", child.id()), 0);
    while child.try_wait().expect("it is a child").is_none() {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let most = text.lines().find_map(|of| of.strip_prefix(line)?.trim().strip_suffix(" kB"));
        peak_bytes = most.map_or(peak_bytes, |now| peak_bytes.max(now.parse::<u64>().unwrap() << 10));
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    (child.wait_with_output().expect("it has ended").into(), peak_bytes)
}

/// Does the same with each of many, on as many threads as there are cores: what takes long keeps all of them busy, also where it is
/// the last test that runs.
pub fn each<T: Sync>(many: &[T], of: impl Fn(&T) + Sync) {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    mergeforge::threads::each(cores, many.len(), |place| of(&many[place]));
}

/// Writes a config into a folder.
pub fn config(folder: &Path, text: &str) -> PathBuf {
    let path = folder.join("config.yml");
    std::fs::write(&path, text).unwrap();
    path
}

/// Merges by the text of a config, from and into a folder: the output is `folder/out`.
pub fn merge(folder: &Path, text: &str, more: &[&str]) -> Ended {
    let (config, out) = (config(folder, text), folder.join("out"));
    mergeforge().arg("merge").args([&config, &out]).args(more).output().expect("the program starts").into()
}

/// Plans by the text of a config.
pub fn plan(folder: &Path, text: &str, more: &[&str]) -> Ended {
    mergeforge().arg("plan").arg(config(folder, text)).args(more).output().expect("the program starts").into()
}

/// That neither `folder/out` nor anything on the way to it is left.
#[track_caller]
pub fn assert_nothing_left(folder: &Path) {
    let left: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("out"))
        .collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}

/// The files of a folder of the repository with one mistake in one of them: what stands there, and what takes its place.
#[track_caller]
pub fn mistaken(sources: &str, file: &str, right: &str, wrong: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(Path::new(ROOT).join(sources)).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    let path = folder.path().join(file);
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(right), "{file} has no `{right}`");
    std::fs::write(&path, text.replacen(right, wrong, 1)).unwrap();
    folder
}

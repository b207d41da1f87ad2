//! What the system has of memory: the machine, or the container or job that this process is in.

use std::fs;
use std::path::{Path, PathBuf};

/// The memory that this process could have if nothing else ran: the machine's, or what its container or job may use where that is
/// less. In bytes.
#[cfg(target_os = "linux")]
pub fn physical_bytes() -> u64 {
    let info = rustix::system::sysinfo();
    let machine = info.totalram as u64 * u64::from(info.mem_unit);
    groups().filter_map(|group| group.most_bytes()).fold(machine, u64::min)
}

/// Elsewhere there is no bound that is known.
#[cfg(not(target_os = "linux"))]
pub fn physical_bytes() -> u64 {
    u64::MAX
}

/// The memory that can be had now without swapping, of the machine and of the container or job, in bytes. None where the system does
/// not say.
pub fn available_bytes() -> Option<u64> {
    let info = fs::read_to_string("/proc/meminfo").ok()?;
    let machine = kilobytes(&info, "MemAvailable:")?;
    Some(groups().filter_map(|group| group.available_bytes()).fold(machine, u64::min))
}

/// A line `Name:  123 kB` of a file in `/proc`, in bytes.
pub fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? << 10)
}

/// A control group of Linux, which bounds the memory of a container or of a job of a cluster.
#[derive(Debug)]
struct Group {
    folder: PathBuf,
    files: &'static Files,
}

/// What files of a group are called, in a version of control groups.
#[derive(Debug)]
struct Files {
    /// Where groups lie.
    root: &'static str,
    /// What a line of `/proc/self/cgroup` says before the group's path.
    controller: fn(&str) -> bool,
    most: &'static str,
    taken: &'static str,
    /// Lines of `memory.stat`: pages of files, which the system gives back when memory is asked for.
    given_back: [&'static str; 2],
}

const VERSIONS: [Files; 2] = [
    Files {
        root: "/sys/fs/cgroup",
        controller: str::is_empty,
        most: "memory.max",
        taken: "memory.current",
        given_back: ["inactive_file", "active_file"],
    },
    Files {
        root: "/sys/fs/cgroup/memory",
        controller: |controllers| controllers.split(',').any(|controller| controller == "memory"),
        most: "memory.limit_in_bytes",
        taken: "memory.usage_in_bytes",
        given_back: ["total_inactive_file", "total_active_file"],
    },
];

impl Group {
    fn number(&self, file: &str) -> Option<u64> {
        fs::read_to_string(self.folder.join(file)).ok()?.trim().parse().ok()
    }

    /// The most that it may use; none where it may use all.
    fn most_bytes(&self) -> Option<u64> {
        self.number(self.files.most)
    }

    fn available_bytes(&self) -> Option<u64> {
        let (most, taken) = (self.most_bytes()?, self.number(self.files.taken)?);
        let stat = fs::read_to_string(self.folder.join("memory.stat")).unwrap_or_default();
        let pages = |name: &str| -> Option<u64> {
            stat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?.trim().parse().ok()
        };
        let of_files = self.files.given_back.into_iter().filter_map(pages).fold(0, u64::saturating_add);
        Some(most.saturating_sub(taken.saturating_sub(of_files)))
    }
}

/// The groups that this process is in, each with those around it: a bound of any of them holds.
fn groups() -> impl Iterator<Item = Group> {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    groups_of(&own, |files| files.root.into()).into_iter()
}

/// The same of what `/proc/self/cgroup` says, where `root` says where groups lie. In a container the path may be one that is seen
/// from outside alone; then the root is the container's group.
fn groups_of(own: &str, root: impl Fn(&Files) -> PathBuf) -> Vec<Group> {
    let mut groups = Vec::new();
    for files in &VERSIONS {
        let path_of = |line: &str| {
            let (_, of) = line.split_once(':')?;
            let (controllers, path) = of.split_once(':')?;
            (files.controller)(controllers).then(|| path.trim_start_matches('/').to_owned())
        };
        let path = own.lines().find_map(path_of).unwrap_or_default();
        let within = Path::new(&path).ancestors();
        groups.extend(within.map(|path| Group { folder: root(files).join(path), files }));
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_proc_are_read() {
        assert_eq!(kilobytes("VmPeak:\t 9 kB\nVmHWM:\t   12 kB\n", "VmHWM:"), Some(12 << 10));
        assert_eq!(kilobytes("nothing", "VmHWM:"), None);
    }

    /// Control groups as the kernel's documentation has them, in a folder.
    #[test]
    fn the_tightest_group_around_a_process_bounds_it() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("2/slurm/job_7/memory.max", "1000\n");
        write("2/slurm/job_7/memory.current", "900\n");
        write("2/slurm/job_7/memory.stat", "anon 100\ninactive_file 300\nactive_file 200\nfile 700\n");
        write("2/slurm/job_7/step_0/memory.max", "max\n");
        write("2/slurm/memory.max", "5000\n");
        write("2/slurm/memory.current", "100\n");
        write("1/job/memory.limit_in_bytes", "800\n");
        write("1/job/memory.usage_in_bytes", "790\n");
        write("1/job/memory.stat", "inactive_file 1\ntotal_inactive_file 40\ntotal_active_file 0\n");
        let at = |files: &Files| root.path().join(if files.root.ends_with("memory") { "1" } else { "2" });
        let bounds = |own: &str| {
            let groups = groups_of(own, at);
            let most = groups.iter().filter_map(Group::most_bytes).min();
            (most, groups.iter().filter_map(Group::available_bytes).min())
        };
        assert_eq!(bounds("0::/slurm/job_7/step_0\n"), (Some(1000), Some(1000 - (900 - 500))));
        assert_eq!(bounds("0::/slurm\n"), (Some(5000), Some(4900)));
        assert_eq!(bounds("0::/elsewhere\n"), (None, None));
        assert_eq!(bounds("5:cpu,memory:/job\n0::/slurm\n"), (Some(800), Some(50)));
        // A group that took more than it may, as one does that was made smaller, has nothing left.
        write("2/slurm/memory.current", "9000\n");
        assert_eq!(bounds("0::/slurm\n"), (Some(5000), Some(0)));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_machine_has_memory() {
        let (all, now) = (physical_bytes(), available_bytes().unwrap());
        assert!((1 << 24..1 << 50).contains(&all) && now > 0 && now <= all, "{now} of {all}");
    }
}

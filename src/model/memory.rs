//! How much memory this process may use, according to the system.

use std::fs;
use std::path::Path;

use rustix::process::{Resource, getrlimit};

use crate::limits::MIN_DECODE_BYTES;

/// The shipped model must run on any machine.
const MIN_MODEL_BYTES: u64 = 256 << 20;

/// The default of `--max-decode-bytes`: a quarter of the available memory, divided among `workers` processes, but at
/// least [`MIN_DECODE_BYTES`].
pub fn default_decode_bytes(workers: u32) -> u64 {
    let quarter = available_bytes(Path::new("/")) / 4;
    (quarter / u64::from(workers.max(1))).max(MIN_DECODE_BYTES)
}

/// The default of `--model-memory`: half of the available memory, divided among `workers` processes, but at least
/// [`MIN_MODEL_BYTES`].
pub fn default_model_bytes(workers: u32) -> u64 {
    let half = available_bytes(Path::new("/")) / 2;
    (half / u64::from(workers.max(1))).max(MIN_MODEL_BYTES)
}

/// The memory of this process that is not backed by files. Returns 0 on a system that does not report it.
pub fn resident_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    kibibytes(&status, "RssAnon:").unwrap_or(0)
}

/// The minimum of the available memory of the machine, the limits of the cgroups of this process, and its own limit.
/// Returns `u64::MAX` when nothing is known.
fn available_bytes(root: &Path) -> u64 {
    let machine = fs::read_to_string(root.join("proc/meminfo")).ok().and_then(|text| kibibytes(&text, "MemAvailable:"));
    let own = getrlimit(Resource::As).current;
    [machine, cgroup_limit(root), own].into_iter().flatten().min().unwrap_or(u64::MAX)
}

/// Reads the bytes of a line such as `MemAvailable:    4000000 kB`.
fn kibibytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// The lowest limit of the cgroups (version 1 or 2) of this process. The limit of a parent applies to its children.
fn cgroup_limit(root: &Path) -> Option<u64> {
    let memberships = fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    memberships.lines().filter_map(|line| membership_limit(root, line)).min()
}

/// Reads a line of the form `ID:CONTROLLERS:PATH`. Version 2 has the id 0 and names no controller.
fn membership_limit(root: &Path, line: &str) -> Option<u64> {
    let mut fields = line.splitn(3, ':');
    let (id, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
    let (base, file) = match controllers {
        "" if id == "0" => ("sys/fs/cgroup", "memory.max"),
        names if names.split(',').any(|name| name == "memory") => ("sys/fs/cgroup/memory", "memory.limit_in_bytes"),
        _ => return None,
    };
    let base = root.join(base);
    let own = base.join(path.trim_start_matches('/'));
    let folders = own.ancestors().take_while(|folder| folder.starts_with(&base));
    let limits = folders.filter_map(|folder| fs::read_to_string(folder.join(file)).ok());
    // "max" means that there is no limit, and does not parse as a number.
    limits.filter_map(|text| text.trim().parse().ok()).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    const MEMINFO: (&str, &str) =
        ("proc/meminfo", "MemTotal:       8000000 kB\nMemFree:  1 kB\nMemAvailable:    4000000 kB\n");

    #[test]
    fn lowest_limit_of_machine_and_cgroups_counts() {
        let free = machine(&[MEMINFO]);
        assert_eq!(available_bytes(free.path()), 4_096_000_000);
        let version_2 = machine(&[
            MEMINFO,
            ("proc/self/cgroup", "0::/service/worker\n"),
            ("sys/fs/cgroup/service/worker/memory.max", "max\n"),
            ("sys/fs/cgroup/service/memory.max", "1000000000\n"),
        ]);
        assert_eq!(available_bytes(version_2.path()), 1_000_000_000);
        let version_1 = machine(&[
            MEMINFO,
            ("proc/self/cgroup", "3:cpu,cpuacct:/x\n2:memory:/box\n"),
            ("sys/fs/cgroup/memory/box/memory.limit_in_bytes", "500000000\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
        ]);
        assert_eq!(available_bytes(version_1.path()), 500_000_000);
    }

    #[test]
    fn workers_share_the_memory_down_to_a_minimum() {
        assert!(default_decode_bytes(1) >= default_decode_bytes(4));
        assert_eq!(default_decode_bytes(u32::MAX), MIN_DECODE_BYTES);
    }
}

//! What Linux reports about memory and processes in `/proc` and in the control groups of this
//! process. Other systems report nothing here.

use std::path::{Path, PathBuf};

/// Largest resident memory of this process so far in bytes; `None` where unknown.
pub fn peak_memory() -> Option<u64> {
    proc_bytes("/proc/self/status", "VmHWM:")
}

/// Lets [`peak_memory`] begin anew at what is resident now; false where that cannot be done.
pub fn forget_peak() -> bool {
    fs_err::write("/proc/self/clear_refs", "5").is_ok()
}

/// Resident memory of this process in bytes; `None` where unknown.
pub fn resident_memory() -> Option<u64> {
    proc_bytes("/proc/self/status", "VmRSS:")
}

/// Memory in bytes that this process can still have; `None` where unknown. The machine may have
/// more than the process is allowed: the smallest limit counts.
pub fn free_memory() -> Option<u64> {
    let swap = proc_bytes("/proc/meminfo", "SwapFree:").unwrap_or(0);
    // Available and not free: the kernel's own guess of what page cache would give back.
    let machine = proc_bytes("/proc/meminfo", "MemAvailable:").map(|free| free + swap);
    let groups = fs_err::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let groups = groups.lines().filter_map(|line| ControlGroup::parse(line)?.free());
    machine.into_iter().chain(groups).chain(free_addresses()).min()
}

/// The name of this machine, as the kernel or the environment gives it; `None` where unknown.
pub fn host_name() -> Option<String> {
    let from_kernel = fs_err::read_to_string("/proc/sys/kernel/hostname").ok();
    let name = from_kernel.or_else(|| std::env::var("HOSTNAME").ok());
    let name = name.or_else(|| std::env::var("COMPUTERNAME").ok())?;
    Some(name.trim().to_owned())
}

/// When a process of this machine began, in seconds since 1970; `None` where there is none of this
/// number or nothing says. A clock that was set since moves it.
pub fn started_at(process: u64) -> Option<u64> {
    let ticks = ticks_at_start(&fs_err::read_to_string(format!("/proc/{process}/stat")).ok()?)?;
    let machine = fs_err::read_to_string("/proc/stat").ok()?;
    let boot = machine.lines().find_map(|line| line.strip_prefix("btime "))?;
    Some(boot.trim().parse::<u64>().ok()? + ticks / TICKS_A_SECOND)
}

/// What Linux tells programs of every common processor, whatever the kernel counts in.
const TICKS_A_SECOND: u64 = 100;

/// The 22nd field of `/proc/PID/stat`. The second is a name in brackets, which may hold spaces and
/// brackets of its own.
fn ticks_at_start(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(22 - 3)?.parse().ok()
}

/// A line such as `VmHWM:   1234 kB`, in bytes.
fn proc_bytes(file: &str, key: &str) -> Option<u64> {
    let text = fs_err::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

/// What `ulimit -v` leaves.
fn free_addresses() -> Option<u64> {
    let limits = fs_err::read_to_string("/proc/self/limits").ok()?;
    // "unlimited" is no number, so that no limit is `None`.
    let line = limits.lines().find_map(|line| line.strip_prefix("Max address space"))?;
    let limit: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(limit.saturating_sub(proc_bytes("/proc/self/status", "VmSize:")?))
}

/// A control group that accounts for memory.
#[derive(Debug, PartialEq, Eq)]
struct ControlGroup {
    root: &'static str,
    path: PathBuf,
    limit: &'static str,
    used: &'static str,
    /// The key in `memory.stat` of file cache that makes room.
    cache: &'static str,
}

impl ControlGroup {
    /// From a line of `/proc/self/cgroup`: `0::/path` (version 2) or `4:memory:/path` (version 1).
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, PathBuf::from(fields.next()?));
        let (root, limit, used, cache) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
            list if list.split(',').any(|one| one == "memory") => (
                "/sys/fs/cgroup/memory",
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "total_inactive_file",
            ),
            _ => return None,
        };
        Some(Self { root, path, limit, used, cache })
    }

    /// What the tightest of this group and those around it leaves.
    fn free(&self) -> Option<u64> {
        let inner = self.path.strip_prefix("/").unwrap_or(&self.path);
        // Every group up to the root, which in a container is the container's own; folders that are
        // not there say nothing.
        inner.ancestors().filter_map(|path| self.free_in(&Path::new(self.root).join(path))).min()
    }

    fn free_in(&self, folder: &Path) -> Option<u64> {
        let number = |name: &str| -> Option<u64> {
            fs_err::read_to_string(folder.join(name)).ok()?.trim().parse().ok()
        };
        let stat = fs_err::read_to_string(folder.join("memory.stat")).unwrap_or_default();
        let cached = |line: &str| line.strip_prefix(self.cache)?.trim().parse::<u64>().ok();
        let cached = stat.lines().find_map(cached).unwrap_or(0);
        // File cache counts as used memory, but is given up before the limit is enforced. Without a
        // limit the file says `max`, which is no number.
        Some(number(self.limit)?.saturating_sub(number(self.used)?.saturating_sub(cached)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_says_when_it_began() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 0 0 0 2 3 0 0 20 0 1 0 4321 5 6";
        assert_eq!(ticks_at_start(stat), Some(4321));
        assert_eq!(ticks_at_start("7 (a"), None);
        if cfg!(target_os = "linux") {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            let age = now.unwrap().as_secs() + 2 - started_at(std::process::id().into()).unwrap();
            assert!(age < 24 * 3600, "{age}");
            assert_eq!(started_at(1 << 30), None);
        }
    }

    #[test]
    fn both_versions_of_control_groups_are_known() {
        let second = ControlGroup::parse("0::/user.slice/a").unwrap();
        assert_eq!((second.root, second.limit), ("/sys/fs/cgroup", "memory.max"));
        assert_eq!(second.path, Path::new("/user.slice/a"));
        let first = ControlGroup::parse("9:cpu,memory:/docker/1").unwrap();
        assert_eq!(first.limit, "memory.limit_in_bytes");
        assert_eq!(ControlGroup::parse("9:cpu:/docker/1"), None);
        assert_eq!(ControlGroup::parse("nonsense"), None);
    }

    #[test]
    fn a_group_leaves_its_limit_less_what_cannot_make_room() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs_err::write(folder.path().join(name), text).unwrap();
        let group = ControlGroup::parse("0::/").unwrap();
        assert_eq!(group.free_in(folder.path()), None);
        write("memory.max", "max\n");
        write("memory.current", "700\n");
        assert_eq!(group.free_in(folder.path()), None, "no limit");
        write("memory.max", "1000\n");
        assert_eq!(group.free_in(folder.path()), Some(300));
        write("memory.stat", "anon 100\ninactive_file 600\n");
        assert_eq!(group.free_in(folder.path()), Some(900));
    }

    #[test]
    fn this_process_has_some_memory_left() {
        assert!(free_memory().is_none_or(|free| free > 0));
    }
}

//! What Linux reports about memory in `/proc`. Other systems report nothing here.

/// Largest resident memory of this process so far in bytes; `None` where unknown.
pub fn peak_memory() -> Option<u64> {
    proc_bytes("/proc/self/status", "VmHWM:")
}

/// Memory in bytes that programs can still have; `None` where unknown.
pub fn free_memory() -> Option<u64> {
    proc_bytes("/proc/meminfo", "MemAvailable:")
}

/// A line such as `VmHWM:   1234 kB`, in bytes.
fn proc_bytes(file: &str, key: &str) -> Option<u64> {
    let text = fs_err::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

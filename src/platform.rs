//! The only file that makes calls of one operating system: signals, free space, memory.
//! Elsewhere than on Unix the fallbacks below are used; the README says which platforms were run.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Signals that arrived, polled by long work between its pieces.
///
/// The first SIGINT or SIGTERM (or SIGUSR2, which `mpirun` hands on) asks for a safe stop; a second
/// one ends the process at once, which tears nothing because files appear under their final name
/// only when complete.
#[derive(Clone, Debug, Default)]
pub struct Signals {
    interrupt: Arc<AtomicBool>,
    terminate: Arc<AtomicBool>,
    save: Arc<AtomicBool>,
}

/// Why a run was asked to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// SIGINT: Ctrl-C.
    Interrupt,
    /// SIGTERM: a scheduler's polite request.
    Terminate,
}

impl Stop {
    /// The exit code after a safe save: 128 + the signal's number.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Interrupt => 130,
            Self::Terminate => 143,
        }
    }
}

impl Signals {
    /// Starts listening. Signals that nobody listens for keep their default action.
    pub fn listen() -> std::io::Result<Self> {
        let signals = Self::default();
        for (signal, flag, stop) in [
            (signal_hook::consts::SIGINT, &signals.interrupt, Stop::Interrupt),
            (signal_hook::consts::SIGTERM, &signals.terminate, Stop::Terminate),
        ] {
            listen_for_stop(signal, flag, stop)?;
        }
        signals.listen_for_more()?;
        Ok(signals)
    }

    #[cfg(unix)]
    fn listen_for_more(&self) -> std::io::Result<()> {
        use signal_hook::consts::{SIGUSR1, SIGUSR2};
        listen_for_stop(SIGUSR2, &self.terminate, Stop::Terminate)?;
        signal_hook::flag::register(SIGUSR1, Arc::clone(&self.save)).map(|_| ())
    }

    #[cfg(not(unix))]
    fn listen_for_more(&self) -> std::io::Result<()> {
        Ok(())
    }

    /// Whether a stop was asked for.
    pub fn stop(&self) -> Option<Stop> {
        if self.interrupt.load(Ordering::Relaxed) {
            Some(Stop::Interrupt)
        } else if self.terminate.load(Ordering::Relaxed) {
            Some(Stop::Terminate)
        } else {
            None
        }
    }

    /// Whether SIGUSR1 arrived since the last call: save and go on.
    pub fn take_save(&self) -> bool {
        self.save.swap(false, Ordering::Relaxed)
    }
}

fn listen_for_stop(signal: i32, flag: &Arc<AtomicBool>, stop: Stop) -> std::io::Result<()> {
    // The order matters: the second arrival finds the flag set and ends the process.
    let code = i32::from(stop.exit_code());
    signal_hook::flag::register_conditional_shutdown(signal, code, Arc::clone(flag))?;
    signal_hook::flag::register(signal, Arc::clone(flag)).map(|_| ())
}

/// The cores this process may run on, by number; empty where unknown.
#[cfg(target_os = "linux")]
pub fn cores() -> BTreeSet<usize> {
    let Ok(set) = rustix::thread::sched_getaffinity(None) else { return BTreeSet::new() };
    (0..rustix::thread::CpuSet::MAX_CPU).filter(|&core| set.is_set(core)).collect()
}

/// The cores this process may run on, by number; empty where unknown.
#[cfg(not(target_os = "linux"))]
pub fn cores() -> BTreeSet<usize> {
    BTreeSet::new()
}

/// Bytes that an ordinary user may still write where `path` lies; `None` where unknown.
#[cfg(unix)]
pub fn free_space(path: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(path).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Bytes that an ordinary user may still write where `path` lies; `None` where unknown.
#[cfg(not(unix))]
pub fn free_space(_path: &Path) -> Option<u64> {
    None
}

/// Memory in bytes that programs can still have; `None` where unknown.
#[cfg(target_os = "linux")]
pub fn free_memory() -> Option<u64> {
    let status = fs_err::read_to_string("/proc/meminfo").ok()?;
    let line = status.lines().find(|line| line.starts_with("MemAvailable:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

/// Memory in bytes that programs can still have; `None` where unknown.
#[cfg(not(target_os = "linux"))]
pub fn free_memory() -> Option<u64> {
    None
}

/// Largest resident memory of this process so far in bytes; `None` where unknown.
#[cfg(target_os = "linux")]
pub fn peak_memory() -> Option<u64> {
    let status = fs_err::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

/// Largest resident memory of this process so far in bytes; `None` where unknown.
#[cfg(not(target_os = "linux"))]
pub fn peak_memory() -> Option<u64> {
    None
}

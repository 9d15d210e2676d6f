//! Everything that differs between operating systems: signals, cores, free space, memory, host name.
//! Systems other than Unix use the fallbacks below; the README lists the platforms that were tried.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub use bitnet_format::process::{free_memory, peak_memory};

/// Signals received so far; long work polls them.
///
/// The first SIGINT or SIGTERM (or SIGUSR2, which `mpirun` forwards) asks for a safe stop. A second
/// one ends the process at once. That leaves no half-written file, because files get their final
/// name only when complete. SIGHUP asks for a safe stop too, and any number of them: a shell passes
/// on the one that the terminal sent already.
#[derive(Clone, Debug, Default)]
pub struct Signals {
    interrupt: Arc<AtomicBool>,
    terminate: Arc<AtomicBool>,
    hangup: Arc<AtomicBool>,
    save: Arc<AtomicBool>,
}

/// Why a run was asked to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopSignal {
    /// SIGINT: Ctrl-C.
    Interrupt,
    /// SIGTERM: what schedulers send before they kill.
    Terminate,
    /// SIGHUP: the terminal is gone.
    Hangup,
    /// No signal: the time of `train.max_minutes` is over.
    TimeIsOver,
}

impl StopSignal {
    /// All of them; where ranks were asked by several, the last of these counts.
    pub(crate) const ALL: [Self; 4] =
        [Self::TimeIsOver, Self::Hangup, Self::Interrupt, Self::Terminate];

    /// What stopped the run.
    pub(crate) fn in_words(self) -> &'static str {
        match self {
            Self::TimeIsOver => "stopped: the minutes of train.max_minutes are over",
            Self::Interrupt | Self::Terminate | Self::Hangup => "stopped by a signal",
        }
    }

    /// The exit code after a safe save: 128 + the signal's number.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Hangup => 129,
            Self::Interrupt => 130,
            // As a scheduler's limit would end it.
            Self::Terminate | Self::TimeIsOver => 143,
        }
    }
}

impl Signals {
    /// Installs the handlers. All other signals keep their default action.
    pub fn listen() -> std::io::Result<Self> {
        let signals = Self::default();
        for (signal, flag, stop) in [
            (signal_hook::consts::SIGINT, &signals.interrupt, StopSignal::Interrupt),
            (signal_hook::consts::SIGTERM, &signals.terminate, StopSignal::Terminate),
        ] {
            listen_for_stop(signal, flag, stop)?;
        }
        signals.listen_for_more()?;
        Ok(signals)
    }

    #[cfg(unix)]
    fn listen_for_more(&self) -> std::io::Result<()> {
        use signal_hook::consts::{SIGHUP, SIGUSR1, SIGUSR2};
        listen_for_stop(SIGUSR2, &self.terminate, StopSignal::Terminate)?;
        // `nohup` means that the run goes on.
        if !ignores_hangup() {
            signal_hook::flag::register(SIGHUP, Arc::clone(&self.hangup))?;
        }
        signal_hook::flag::register(SIGUSR1, Arc::clone(&self.save)).map(|_| ())
    }

    #[cfg(not(unix))]
    fn listen_for_more(&self) -> std::io::Result<()> {
        Ok(())
    }

    /// Lets SIGINT and SIGTERM end the process at once, with their exit codes: for work that leaves
    /// nothing half done.
    pub fn end_at_once() -> std::io::Result<()> {
        for (signal, stop) in [
            (signal_hook::consts::SIGINT, StopSignal::Interrupt),
            (signal_hook::consts::SIGTERM, StopSignal::Terminate),
        ] {
            let (code, always) = (i32::from(stop.exit_code()), Arc::new(AtomicBool::new(true)));
            signal_hook::flag::register_conditional_shutdown(signal, code, always)?;
        }
        Ok(())
    }

    /// `Break` once a signal asked for the end, for work that asks now and then.
    pub fn flow(&self) -> ControlFlow<()> {
        match self.stop() {
            Some(_) => ControlFlow::Break(()),
            None => ControlFlow::Continue(()),
        }
    }

    /// Whether a stop was asked for.
    pub fn stop(&self) -> Option<StopSignal> {
        if self.interrupt.load(Ordering::Relaxed) {
            Some(StopSignal::Interrupt)
        } else if self.terminate.load(Ordering::Relaxed) {
            Some(StopSignal::Terminate)
        } else if self.hangup.load(Ordering::Relaxed) {
            Some(StopSignal::Hangup)
        } else {
            None
        }
    }

    /// Whether SIGUSR1 arrived since the last call: save and continue.
    pub fn take_save(&self) -> bool {
        self.save.swap(false, Ordering::Relaxed)
    }
}

fn listen_for_stop(signal: i32, flag: &Arc<AtomicBool>, stop: StopSignal) -> std::io::Result<()> {
    // Handlers run in this order: the first signal passes the check and then sets the flag, the
    // second finds it set and ends the process.
    let code = i32::from(stop.exit_code());
    signal_hook::flag::register_conditional_shutdown(signal, code, Arc::clone(flag))?;
    signal_hook::flag::register(signal, Arc::clone(flag)).map(|_| ())
}

/// Whether this process was started with SIGHUP ignored, as `nohup` does. Linux tells; elsewhere a
/// process without any terminal counts as one that was.
#[cfg(unix)]
fn ignores_hangup() -> bool {
    use std::io::IsTerminal;
    let status = fs_err::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    match mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()) {
        Some(mask) => mask & 1 != 0, // SIGHUP is signal 1
        None => ![
            std::io::stdin().is_terminal(),
            std::io::stdout().is_terminal(),
            std::io::stderr().is_terminal(),
        ]
        .contains(&true),
    }
}

/// Makes writing beyond the file size limit (`ulimit -f`) an error, where it would otherwise end the
/// process.
pub fn report_file_size_limit() {
    #[cfg(unix)]
    // Without the handler the run still works; only this limit would end it.
    let _ = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, Arc::default());
}

/// What the processor calls itself; `None` where unknown.
pub fn cpu_name() -> Option<String> {
    let text = fs_err::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
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

/// Lets the calling thread run on these cores, where the system does.
#[cfg(target_os = "linux")]
pub fn run_on(cores: &BTreeSet<usize>) {
    let mut set = rustix::thread::CpuSet::new();
    for &core in cores {
        set.set(core);
    }
    // Where that is not allowed it stays where it is, which is slower and not wrong.
    let _ = rustix::thread::sched_setaffinity(None, &set);
}

/// Lets the calling thread run on these cores, where the system does.
#[cfg(not(target_os = "linux"))]
pub fn run_on(_cores: &BTreeSet<usize>) {}

/// What makes a file or directory itself, whatever its name; `None` where it is not there or unknown.
#[cfg(unix)]
pub(crate) fn file_identity(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    let meta = path.metadata().ok()?;
    Some((meta.dev(), meta.ino()))
}

/// What makes a file or directory itself, whatever its name; `None` where it is not there or unknown.
#[cfg(not(unix))]
pub(crate) fn file_identity(_path: &Path) -> Option<(u64, u64)> {
    None
}

/// A command line in the system's shell, out of reach of the terminal's Ctrl-C.
#[cfg(unix)]
pub(crate) fn shell(text: &str) -> std::process::Command {
    use std::os::unix::process::CommandExt;
    let mut command = std::process::Command::new("sh");
    command.args(["-c", text]).process_group(0);
    command
}

/// A command line in the system's shell.
#[cfg(not(unix))]
pub(crate) fn shell(text: &str) -> std::process::Command {
    let mut command = std::process::Command::new("cmd");
    command.args(["/C", text]);
    command
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

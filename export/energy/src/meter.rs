//! Joules since a moment, from all counters of this machine.

use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::powercap;

/// A counter that only grows, until it starts again at 0.
pub(crate) trait Counter: Send {
    /// What is counted, as the system calls it.
    fn name(&self) -> String;
    /// Its value now; nothing where it can no longer be read.
    fn microjoules(&self) -> Option<u64>;
    /// The value after which it starts at 0 again.
    fn range(&self) -> u64;
}

/// Microjoules from one reading to the next.
fn between(before: u64, now: u64, range: u64) -> u64 {
    if now >= before { now - before } else { range.saturating_sub(before).saturating_add(now) }
}

struct Reading {
    counter: Box<dyn Counter>,
    last: u64,
}

impl fmt::Debug for Reading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.counter.name(), self.last)
    }
}

/// The energy that this machine has used since the meter was opened: all of it, not only this program's.
#[derive(Debug)]
pub struct EnergyMeter {
    readings: Vec<Reading>,
    microjoules: u64,
}

impl EnergyMeter {
    /// Opens the counters of this machine; nothing where none can be read.
    pub fn open() -> Option<Self> {
        Self::of(Path::new(powercap::ROOT))
    }

    /// The same from another folder than `/sys/class/powercap`, where a container or a test has it.
    pub fn of(root: &Path) -> Option<Self> {
        let mut counters = powercap::counters(root);
        #[cfg(feature = "nvml")]
        counters.extend(crate::nvml::counters());
        let reading = |counter: Box<dyn Counter>| {
            let last = counter.microjoules()?;
            Some(Reading { counter, last })
        };
        let readings: Vec<_> = counters.drain(..).filter_map(reading).collect();
        (!readings.is_empty()).then_some(Self { readings, microjoules: 0 })
    }

    /// What is counted, such as `package-0 + dram`.
    pub fn source(&self) -> String {
        let names: Vec<_> = self.readings.iter().map(|reading| reading.counter.name()).collect();
        names.join(" + ")
    }

    /// Joules since the meter was opened. A counter of a package wraps after about 262 kJ, three
    /// quarters of an hour at 100 W: call this more often.
    pub fn joules(&mut self) -> f64 {
        for reading in &mut self.readings {
            if let Some(now) = reading.counter.microjoules() {
                let range = reading.counter.range();
                self.microjoules += between(reading.last, now, range);
                reading.last = now;
            }
        }
        self.microjoules as f64 / 1e6
    }

    /// Watts while this thread sleeps: what the machine takes without the work to be measured.
    pub fn idle_watts(&mut self, pause: Duration) -> f64 {
        let (before, start) = (self.joules(), Instant::now());
        std::thread::sleep(pause);
        (self.joules() - before) / start.elapsed().as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fs_err as fs;

    fn domain(root: &Path, folder: &str, name: &str, energy: &str, range: u64) {
        let folder = root.join(folder);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("name"), format!("{name}\n")).unwrap();
        fs::write(folder.join("energy_uj"), energy).unwrap();
        fs::write(folder.join("max_energy_range_uj"), format!("{range}\n")).unwrap();
    }

    fn microjoules(meter: &mut EnergyMeter) -> u64 {
        (meter.joules() * 1e6).round() as u64
    }

    #[test]
    fn packages_and_memory_are_added_and_a_counter_may_start_again() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        domain(root, "intel-rapl:0", "package-0", "900\n", 1_000);
        domain(root, "intel-rapl:0:0", "core", "1\n", 1_000);
        domain(root, "intel-rapl:0:1", "dram", "10\n", 1_000);
        domain(root, "intel-rapl:1", "psys", "5\n", 1_000);
        domain(root, "intel-rapl-mmio:0", "package-0", "900\n", 1_000);
        let mut meter = EnergyMeter::of(root).unwrap();
        assert_eq!(meter.source(), "package-0 + dram");
        assert_eq!(microjoules(&mut meter), 0);
        domain(root, "intel-rapl:0", "package-0", "50\n", 1_000);
        domain(root, "intel-rapl:0:1", "dram", "30\n", 1_000);
        assert_eq!(microjoules(&mut meter), 170);
        // A counter that vanishes adds nothing, and the others go on.
        fs::remove_file(root.join("intel-rapl:0/energy_uj")).unwrap();
        domain(root, "intel-rapl:0:1", "dram", "31\n", 1_000);
        assert_eq!(microjoules(&mut meter), 171);
    }

    #[test]
    fn a_machine_without_counters_has_no_meter() {
        let root = tempfile::tempdir().unwrap();
        assert!(EnergyMeter::of(&root.path().join("absent")).is_none());
        domain(root.path(), "intel-rapl:0", "package-0", "not a number", 1_000);
        domain(root.path(), "dtpm", "dram", "", 1_000);
        assert!(EnergyMeter::of(root.path()).is_none());
    }

    #[test]
    fn idle_power_is_what_the_counter_gains_in_the_pause() {
        let root = tempfile::tempdir().unwrap();
        domain(root.path(), "intel-rapl:0", "package-0", "900\n", 1_000);
        let mut meter = EnergyMeter::of(root.path()).unwrap();
        assert!(meter.idle_watts(Duration::from_millis(1)).abs() < 1e-9);
    }
}

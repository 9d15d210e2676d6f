//! Linux powercap: the running energy counters of the processor's packages and of its memory.
//!
//! `/sys/class/powercap/intel-rapl:0` is a package and `intel-rapl:0:2` a part of it (AMD's driver uses
//! the same names). Each folder has `name`, `energy_uj` and `max_energy_range_uj`, after which the
//! counter starts at 0 again. The parts `core` and `uncore` lie within their package, and `psys` holds
//! everything, so only packages and `dram` are added up.

use std::io;
use std::path::{Path, PathBuf};

use fs_err as fs;

use crate::meter::Counter;

/// Where the kernel has them.
pub(crate) const ROOT: &str = "/sys/class/powercap";

/// A domain's counter.
struct RaplDomain {
    name: String,
    energy: PathBuf,
    range: u64,
}

/// The counters that can be read, packages first.
pub(crate) fn counters(root: &Path) -> Vec<Box<dyn Counter>> {
    let Ok(entries) = fs::read_dir(root) else { return Vec::new() };
    let mut folders: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    folders.sort();
    let mut domains: Vec<_> = folders.iter().filter_map(|folder| domain(folder)).collect();
    domains.sort_by_key(|domain| domain.name.starts_with("dram"));
    domains.into_iter().map(|domain| Box::new(domain) as Box<dyn Counter>).collect()
}

/// The domain of a folder, where it counts and may be read (many systems let only root read it).
fn domain(folder: &Path) -> Option<RaplDomain> {
    let name = fs::read_to_string(folder.join("name")).ok()?.trim().to_owned();
    // The memory-mapped interface names the same counters a second time.
    let twice = folder.file_name()?.to_string_lossy().starts_with("intel-rapl-mmio");
    if twice || !(name.starts_with("package") || name.starts_with("dram")) {
        return None;
    }
    let energy = folder.join("energy_uj");
    let range = number(&folder.join("max_energy_range_uj")).ok()?;
    number(&energy).is_ok().then_some(RaplDomain { name, energy, range })
}

fn number(path: &Path) -> io::Result<u64> {
    let text = fs::read_to_string(path)?;
    text.trim().parse().map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
}

impl Counter for RaplDomain {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn microjoules(&self) -> Option<u64> {
        number(&self.energy).ok()
    }

    fn range(&self) -> u64 {
        self.range
    }
}

//! What a graphics card has of memory, as its driver says: NVIDIA's through their library (feature `nvml`),
//! AMD's through the files of Linux' amdgpu driver. Other drivers tell no program without their own
//! interface.
//!
//! A card is named by its PCI address (`0000:03:00.0`), which all drivers and Burn's devices agree on.

use std::path::Path;

use fs_err as fs;

/// Where Linux has a folder for each card, under its address. `/sys/class/drm/card*/device` are links to
/// the same folders.
const PCI_DEVICES: &str = "/sys/bus/pci/devices";

/// The memory of a card in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CardMemory {
    /// All of it.
    pub total: u64,
    /// What no program has now.
    pub free: u64,
}

/// Whether a card has its own memory, or a part of the machine's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CardKind {
    /// On a board of its own.
    Discrete,
    /// Beside the processor. What the firmware sets aside for it is small, and it may have as much of the
    /// machine's memory as the driver allows.
    Integrated,
}

/// The memory of the card at this address; `None` where no driver tells.
pub fn card_memory(address: &str, kind: CardKind) -> Option<CardMemory> {
    nvidia(address).or_else(|| amd(Path::new(PCI_DEVICES), address, kind))
}

/// Through the driver's library, which is looked for at run time.
#[cfg(feature = "nvml")]
fn nvidia(address: &str) -> Option<CardMemory> {
    let library = nvml_wrapper::Nvml::init().ok()?;
    let memory = library.device_by_pci_bus_id(address).ok()?.memory_info().ok()?;
    Some(CardMemory { total: memory.total, free: memory.free })
}

#[cfg(not(feature = "nvml"))]
fn nvidia(_: &str) -> Option<CardMemory> {
    None
}

/// From the files of the driver, in the folder of the card under `root`.
fn amd(root: &Path, address: &str, kind: CardKind) -> Option<CardMemory> {
    let folder = root.join(address);
    let own = memory_of(&folder, "vram")?;
    if kind == CardKind::Discrete {
        return Some(own);
    }
    // What it may have of the machine's memory.
    let lent = memory_of(&folder, "gtt").unwrap_or(CardMemory { total: 0, free: 0 });
    let total = own.total.saturating_add(lent.total);
    Some(CardMemory { total, free: own.free.saturating_add(lent.free) })
}

/// One kind of memory, from `mem_info_KIND_total` and `mem_info_KIND_used`.
fn memory_of(folder: &Path, kind: &str) -> Option<CardMemory> {
    let bytes = |part: &str| -> Option<u64> {
        let path = folder.join(format!("mem_info_{kind}_{part}"));
        fs::read_to_string(path).ok()?.trim().parse().ok()
    };
    let (total, used) = (bytes("total")?, bytes("used")?);
    Some(CardMemory { total, free: total.saturating_sub(used) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CARD: &str = "0000:03:00.0";

    /// Files of cards, as the driver writes them.
    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn a_card_has_free_what_is_not_used_of_its_own_memory() {
        let root = tree(&[
            ("0000:03:00.0/mem_info_vram_total", "17163091968\n"),
            ("0000:03:00.0/mem_info_vram_used", "1163091968\n"),
            ("0000:03:00.0/mem_info_gtt_total", "8000000000\n"),
            ("0000:03:00.0/mem_info_gtt_used", "1000000000\n"),
            ("0000:09:00.0/mem_info_vram_total", "4000000000\n"),
            ("0000:09:00.0/mem_info_vram_used", "4000000001\n"),
        ]);
        let discrete = |address| amd(root.path(), address, CardKind::Discrete);
        let one = CardMemory { total: 17_163_091_968, free: 16_000_000_000 };
        assert_eq!(discrete(CARD), Some(one));
        assert_eq!(discrete("0000:09:00.0"), Some(CardMemory { total: 4_000_000_000, free: 0 }));
        assert_eq!(discrete("0000:0a:00.0"), None);
        let integrated = amd(root.path(), CARD, CardKind::Integrated);
        assert_eq!(integrated, Some(CardMemory { total: 25_163_091_968, free: 23_000_000_000 }));
    }

    #[test]
    fn what_a_driver_does_not_write_is_not_known() {
        let total = ("0000:03:00.0/mem_info_vram_total", "8000000000\n");
        for used in [None, Some("many\n"), Some("-1\n"), Some("")] {
            let used = used.map(|text| ("0000:03:00.0/mem_info_vram_used", text));
            let root = tree(&[Some(total), used].into_iter().flatten().collect::<Vec<_>>());
            for kind in [CardKind::Discrete, CardKind::Integrated] {
                assert_eq!(amd(root.path(), CARD, kind), None, "{used:?}");
            }
        }
        assert_eq!(card_memory("none", CardKind::Discrete), None);
    }
}

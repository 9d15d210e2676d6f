//! Devices by name: which ones this build supports and this machine has, and how they differ. Apart
//! from the native operations this is the only file that names a backend.
//!
//! * `flex`, or `cpu`: any CPU, with the native operations of `ops`; always available.
//! * `ndarray`: any CPU, with plain tensor operations; for comparison.
//! * `wgpu`, `wgpu:N`, `wgpu:KIND`: any GPU with a driver for Vulkan, Metal or DirectX, shaders in
//!   WGSL. `N` is an index in the list of adapters, `KIND` one of discrete, integrated, virtual, cpu,
//!   other. Without either, the fastest kind that the machine has.
//! * `vulkan`: the same adapters, shaders in SPIR-V.
//! * `cuda`, `cuda:N`: an NVIDIA card.

use burn::tensor::{Device, FloatDType};

use crate::card_memory::CardMemory;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
use crate::card_memory::{CardKind, card_memory};

/// The requested device is not in this build or not on this machine.
#[derive(Debug, thiserror::Error)]
#[error("device \"{asked}\" {why}; expected one of: {}", available.join(", "))]
pub struct NoDevice {
    asked: String,
    why: String,
    available: Vec<String>,
}

/// The device does not support `train.precision = "bf16"`.
#[derive(Debug, thiserror::Error)]
#[error(
    "train.precision is \"bf16\", and the device \"{device}\" does not compute with it; expected \
     \"f32\", or the device flex"
)]
pub struct NoBf16 {
    device: String,
}

/// Backends by name, and whether this build has them. All but the first are Cargo features.
const FAMILIES: [(&str, bool); 5] = [
    ("flex", true),
    ("ndarray", cfg!(feature = "ndarray")),
    ("wgpu", cfg!(feature = "wgpu")),
    ("vulkan", cfg!(feature = "vulkan")),
    ("cuda", cfg!(feature = "cuda")),
];

/// Kinds of adapters, in the order in which they are chosen.
const KINDS: [&str; 5] = ["discrete", "integrated", "virtual", "other", "cpu"];

/// A device of this machine; `kind` is an index of [`KINDS`].
struct FoundDevice {
    kind: usize,
    device: Device,
}

/// Opens a device by its recipe name, ready for training.
///
/// # Errors
/// When it is not in this build or not on this machine.
pub fn open(name: &str) -> Result<Device, NoDevice> {
    let (family, which) = split_name(name);
    let refused = |why: String| NoDevice { asked: name.to_owned(), why, available: available() };
    match FAMILIES.iter().find(|(known, _)| *known == family) {
        None => Err(refused("is not a device name".into())),
        Some((_, false)) => Err(refused(format!(
            "is not in this build (cargo build --release --features {family})"
        ))),
        Some((_, true)) => choose(found_devices(family), which)
            .map(Device::autodiff)
            .ok_or_else(|| refused("is not on this machine".into())),
    }
}

/// Opens the device of one of several ranks on a machine. Ranks share the CPU; of other devices,
/// each takes its own of the best kind, or of the kind that is named.
///
/// # Errors
/// As [`open`], and when there are fewer devices than ranks.
pub fn open_one_of(name: &str, place: usize, ranks: usize) -> Result<Device, NoDevice> {
    let first = open(name)?;
    if ranks == 1 || shares_memory(&first.clone().inner()) {
        return Ok(first);
    }
    let (family, which) = split_name(name);
    let mut found = candidates(found_devices(family), which);
    if found.len() < ranks {
        let there = found.len();
        return Err(NoDevice {
            asked: name.to_owned(),
            why: format!(
                "matches {there} here, but each of the {ranks} ranks on this machine needs its own"
            ),
            available: available(),
        });
    }
    Ok(found.swap_remove(place).device.autodiff())
}

/// The family of a device name, which all ranks must have in common.
pub fn family(name: &str) -> &str {
    split_name(name).0
}

/// Family, and which of its devices.
fn split_name(name: &str) -> (&str, Option<&str>) {
    match name.split_once(':') {
        Some((family, which)) => (family, Some(which)),
        // What other programs call it.
        None if name == "cpu" => ("flex", None),
        None => (name, None),
    }
}

/// The CPU without autodiff: the default for checking and evaluating stored models.
pub fn cpu() -> Device {
    Device::flex()
}

/// Whether the native operations of `ops` run on a device. A model asks once, when it is built, and
/// holds the answer as its `ops::OpBackend`.
pub fn runs_native_ops(device: &Device) -> bool {
    *device == Device::flex()
}

/// Whether its memory is the host's, so that reading a number costs nothing.
pub fn shares_memory(device: &Device) -> bool {
    #[cfg(feature = "ndarray")]
    if *device == ndarray() {
        return true;
    }
    runs_native_ops(device)
}

/// The memory of a device that has its own; `None` where its driver does not tell.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
pub fn own_memory(device: &Device) -> Option<CardMemory> {
    let address = device.identity()?.physical?.pci_address?;
    card_memory(&address.to_string(), kind_of(&device.clone().inner()))
}

/// The memory of a device that has its own: this build has none.
#[cfg(not(any(feature = "wgpu", feature = "cuda")))]
pub fn own_memory(_: &Device) -> Option<CardMemory> {
    None
}

/// A card of CUDA is taken for a discrete one: where it is not, its driver tells all of its memory.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
fn kind_of(device: &Device) -> CardKind {
    let families = FAMILIES.iter().filter(|(family, built)| *built && has_kinds(family));
    let mut found = families.flat_map(|(family, _)| found_devices(family));
    let is_integrated = |one: FoundDevice| KINDS[one.kind] == "integrated" && one.device == *device;
    if found.any(is_integrated) { CardKind::Integrated } else { CardKind::Discrete }
}

/// Whether a family's devices are adapters of a graphics interface, which have kinds.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
fn has_kinds(family: &str) -> bool {
    ["wgpu", "vulkan"].contains(&family)
}

/// Checks that a device can multiply bf16 operands.
///
/// # Errors
/// When it cannot.
pub fn require_bf16(device: &Device, name: &str) -> Result<(), NoBf16> {
    let supported = runs_native_ops(device) || device.supports_dtype(FloatDType::BF16);
    if supported { Ok(()) } else { Err(NoBf16 { device: name.to_owned() }) }
}

/// The product name of the device, if it has one.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
pub fn product_name(device: &Device) -> Option<String> {
    device.identity().map(|identity| identity.name)
}

/// The product name of the device: a CPU has none here.
#[cfg(not(any(feature = "wgpu", feature = "cuda")))]
pub fn product_name(_: &Device) -> Option<String> {
    None
}

/// Chooses a device: by index, by kind, or the first of the best kind.
fn choose(mut found: Vec<FoundDevice>, which: Option<&str>) -> Option<Device> {
    let place = match which {
        None => (0..found.len()).min_by_key(|&place| found[place].kind),
        Some(word) => match word.parse() {
            Ok(place) => (place < found.len()).then_some(place),
            Err(_) => found.iter().position(|one| KINDS[one.kind] == word),
        },
    };
    place.map(|place| found.swap_remove(place).device)
}

/// The devices that several ranks share out: those of the named kind, or of the best kind.
fn candidates(found: Vec<FoundDevice>, which: Option<&str>) -> Vec<FoundDevice> {
    if let Some(place) = which.and_then(|word| word.parse::<usize>().ok()) {
        return found.into_iter().skip(place).take(1).collect();
    }
    let named = which.and_then(|word| KINDS.iter().position(|kind| *kind == word));
    let kind = named.or_else(|| found.iter().map(|one| one.kind).min());
    found.into_iter().filter(|one| Some(one.kind) == kind).collect()
}

/// The devices that [`open`] accepts here, and what other builds would add; a line each.
pub fn listed() -> Vec<String> {
    let absent = FAMILIES.iter().filter(|(_, built)| !*built).map(|(family, _)| {
        format!("{family}: not in this build (cargo build --release --features {family})")
    });
    available().into_iter().chain(absent).collect()
}

/// All device names that [`open`] accepts here.
fn available() -> Vec<String> {
    let built = FAMILIES.iter().filter(|(_, built)| *built);
    built.flat_map(|(family, _)| named(family, &found_devices(family))).collect()
}

fn named(family: &str, found: &[FoundDevice]) -> Vec<String> {
    if ["flex", "ndarray"].contains(&family) {
        return vec![family.to_owned()];
    }
    let name =
        |(place, one): (usize, &FoundDevice)| format!("{family}:{place} ({})", KINDS[one.kind]);
    found.iter().enumerate().map(name).collect()
}

/// The devices of this machine for a backend of this build.
fn found_devices(family: &str) -> Vec<FoundDevice> {
    let on_the_host = |device| vec![FoundDevice { kind: KINDS.len() - 1, device }];
    match family {
        "flex" => on_the_host(Device::flex()),
        #[cfg(feature = "ndarray")]
        "ndarray" => on_the_host(ndarray()),
        #[cfg(feature = "wgpu")]
        "wgpu" => adapters(burn::tensor::DeviceType::Wgpu, Device::wgpu),
        #[cfg(feature = "vulkan")]
        "vulkan" => adapters(burn::tensor::DeviceType::Vulkan, Device::vulkan),
        #[cfg(feature = "cuda")]
        "cuda" => {
            let cards = Device::enumerate(burn::tensor::DeviceType::Cuda);
            cards.iter().map(|device| FoundDevice { kind: 0, device: device.clone() }).collect()
        }
        _ => unreachable!("the family is one of FAMILIES and in this build"),
    }
}

/// Deprecated upstream; until it is removed, tests compare with it.
#[cfg(feature = "ndarray")]
#[expect(deprecated, reason = "tests compare with it until upstream removes it")]
fn ndarray() -> Device {
    Device::ndarray()
}

/// The adapters of a graphics interface. A device does not report its kind, but equals the device
/// that `of_kind` makes for that kind.
#[cfg(feature = "wgpu")]
fn adapters(
    interface: burn::tensor::DeviceType,
    of_kind: fn(burn::tensor::DeviceKind) -> Device,
) -> Vec<FoundDevice> {
    use burn::tensor::DeviceKind::{Cpu, DiscreteGpu, IntegratedGpu, VirtualGpu};
    let found = Device::enumerate(interface);
    let kind = |device: &Device| {
        let any = |kind: fn(usize) -> _| (0..found.len()).any(|n| of_kind(kind(n)) == *device);
        let is = [any(DiscreteGpu), any(IntegratedGpu), any(VirtualGpu), false, any(|_| Cpu)];
        is.iter().position(|&is| is).unwrap_or(3)
    };
    found.iter().map(|device| FoundDevice { kind: kind(device), device: device.clone() }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two discrete cards, an integrated one and the CPU's adapter.
    fn offered(which: Option<&str>) -> usize {
        let offer = |kind| FoundDevice { kind, device: Device::flex() };
        candidates([1, 0, 4, 0].map(offer).into(), which).len()
    }

    #[test]
    fn ranks_choose_among_the_best_kind_or_the_one_they_name() {
        assert_eq!(offered(None), 2);
        assert_eq!(offered(Some("integrated")), 1);
        assert_eq!(offered(Some("cpu")), 1);
        assert_eq!(offered(Some("virtual")), 0);
        assert_eq!(offered(Some("3")), 1);
        assert_eq!(offered(Some("4")), 0);
    }

    #[test]
    fn every_device_is_listed_or_said_to_be_of_another_build() {
        let lines = listed();
        assert_eq!(lines[0], "flex");
        for (family, _) in FAMILIES {
            let said = lines.iter().any(|line| line.starts_with(family));
            assert!(said || cfg!(any(feature = "wgpu", feature = "cuda")), "{family}: {lines:?}");
        }
    }

    #[test]
    fn ranks_of_a_machine_share_its_cpu() {
        assert!(open_one_of("flex", 3, 4).is_ok());
        assert_eq!((family("cuda:1"), family("flex")), ("cuda", "flex"));
    }
}

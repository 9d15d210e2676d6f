//! The only file that names a backend: what devices are called, which of them this build has and
//! this machine offers, and what sets them apart. Nothing is computed here.
//!
//! * `flex`: any CPU, on this project's own operations; always there.
//! * `ndarray`: any CPU, on plain tensor operations; for comparison.
//! * `wgpu`, `wgpu:N`, `wgpu:KIND`: any GPU with a driver for Vulkan, Metal or DirectX, shaders in
//!   WGSL; `KIND` is discrete, integrated, virtual, cpu or other, `N` a place in the list of
//!   adapters. Without either the fastest kind that is there.
//! * `vulkan`, likewise: the same adapters, shaders in SPIR-V.
//! * `cuda`, `cuda:N`: an NVIDIA card.

use burn::tensor::{Device, FloatDType};

/// A device was asked for that this build does not have or this machine does not offer.
#[derive(Debug, thiserror::Error)]
#[error("device \"{asked}\" {why}; expected one of: {}", offered.join(", "))]
pub struct NoDevice {
    asked: String,
    why: String,
    offered: Vec<String>,
}

/// A device cannot compute with what `train.precision` asks for.
#[derive(Debug, thiserror::Error)]
#[error(
    "train.precision is \"bf16\", and the device \"{device}\" does not compute with it; expected \
     \"f32\", or the device flex"
)]
pub struct NoBf16 {
    device: String,
}

/// Backends by name, and whether this build has them. Each but the first is a Cargo feature of the
/// same name.
const FAMILIES: [(&str, bool); 5] = [
    ("flex", true),
    ("ndarray", cfg!(feature = "ndarray")),
    ("wgpu", cfg!(feature = "wgpu")),
    ("vulkan", cfg!(feature = "vulkan")),
    ("cuda", cfg!(feature = "cuda")),
];

/// Kinds of adapters, the one that is taken first where none is asked for.
const KINDS: [&str; 5] = ["discrete", "integrated", "virtual", "other", "cpu"];

/// A device that this machine offers, with its place in [`KINDS`].
struct Offer {
    kind: usize,
    device: Device,
}

/// Opens a device by its recipe name, ready for training.
///
/// # Errors
/// When this build does not have it, or this machine does not offer it.
pub fn open(name: &str) -> Result<Device, NoDevice> {
    let (family, which) = parts(name);
    let refused = |why: String| NoDevice { asked: name.to_owned(), why, offered: offered() };
    match FAMILIES.iter().find(|(known, _)| *known == family) {
        None => Err(refused("is no device's name".into())),
        Some((_, false)) => Err(refused(format!(
            "is not in this build (cargo build --release --features {family})"
        ))),
        Some((_, true)) => choose(offers(family), which)
            .map(Device::autodiff)
            .ok_or_else(|| refused("is not on this machine".into())),
    }
}

/// Opens the device of one of several ranks on a machine. CPUs they share; of other devices each
/// rank takes the next of the best kind, or of the kind that is named.
///
/// # Errors
/// As [`open`], and when there are fewer devices than ranks.
pub fn open_one_of(name: &str, place: usize, ranks: usize) -> Result<Device, NoDevice> {
    let first = open(name)?;
    if ranks == 1 || shares_memory(&first.clone().inner()) {
        return Ok(first);
    }
    let (family, which) = parts(name);
    let mut offers = candidates(offers(family), which);
    if offers.len() < ranks {
        let there = offers.len();
        return Err(NoDevice {
            asked: name.to_owned(),
            why: format!(
                "stands for {there} here, and {ranks} ranks of this machine want one each"
            ),
            offered: offered(),
        });
    }
    Ok(offers.swap_remove(place).device.autodiff())
}

/// Its family: what ranks must have in common.
pub fn family(name: &str) -> &str {
    parts(name).0
}

/// Family, and which of it.
fn parts(name: &str) -> (&str, Option<&str>) {
    name.split_once(':').map_or((name, None), |(family, which)| (family, Some(which)))
}

/// The device on which stored models are checked and evaluated where nothing else is asked for:
/// the CPU, without gradients.
pub fn cpu() -> Device {
    Device::flex()
}

/// Whether the native operations of `ops` run on a device. A model asks once, when it is built, and
/// holds the answer as its `ops::OpBackend`.
pub fn runs_native_ops(device: &Device) -> bool {
    *device == Device::flex()
}

/// Whether its memory is the host's, so that looking at a number costs nothing.
pub fn shares_memory(device: &Device) -> bool {
    #[cfg(feature = "ndarray")]
    if *device == ndarray() {
        return true;
    }
    runs_native_ops(device)
}

/// Refuses a device that cannot multiply bf16 operands.
///
/// # Errors
/// When it cannot.
pub fn require_bf16(device: &Device, name: &str) -> Result<(), NoBf16> {
    let able = runs_native_ops(device) || device.supports_dtype(FloatDType::BF16);
    if able { Ok(()) } else { Err(NoBf16 { device: name.to_owned() }) }
}

/// The part's own name, where the device has one.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
pub fn part_name(device: &Device) -> Option<String> {
    device.identity().map(|identity| identity.name)
}

/// The part's own name: a CPU has none here.
#[cfg(not(any(feature = "wgpu", feature = "cuda")))]
pub fn part_name(_: &Device) -> Option<String> {
    None
}

/// One of the offers: by place, by kind, or the first of the best kind.
fn choose(mut offers: Vec<Offer>, which: Option<&str>) -> Option<Device> {
    let place = match which {
        None => (0..offers.len()).min_by_key(|&place| offers[place].kind),
        Some(word) => match word.parse() {
            Ok(place) => (place < offers.len()).then_some(place),
            Err(_) => offers.iter().position(|offer| KINDS[offer.kind] == word),
        },
    };
    place.map(|place| offers.swap_remove(place).device)
}

/// The offers among which several ranks choose: those of a kind, or of the best kind.
fn candidates(offers: Vec<Offer>, which: Option<&str>) -> Vec<Offer> {
    if let Some(place) = which.and_then(|word| word.parse::<usize>().ok()) {
        return offers.into_iter().skip(place).take(1).collect();
    }
    let named = which.and_then(|word| KINDS.iter().position(|kind| *kind == word));
    let kind = named.or_else(|| offers.iter().map(|offer| offer.kind).min());
    offers.into_iter().filter(|offer| Some(offer.kind) == kind).collect()
}

/// Everything that can be asked for.
fn offered() -> Vec<String> {
    let built = FAMILIES.iter().filter(|(_, built)| *built);
    built.flat_map(|(family, _)| named(family, &offers(family))).collect()
}

fn named(family: &str, offers: &[Offer]) -> Vec<String> {
    if ["flex", "ndarray"].contains(&family) {
        return vec![family.to_owned()];
    }
    let name =
        |(place, offer): (usize, &Offer)| format!("{family}:{place} ({})", KINDS[offer.kind]);
    offers.iter().enumerate().map(name).collect()
}

/// What this machine offers of a backend that is in this build.
fn offers(family: &str) -> Vec<Offer> {
    let on_the_host = |device| vec![Offer { kind: KINDS.len() - 1, device }];
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
            cards.iter().map(|device| Offer { kind: 0, device: device.clone() }).collect()
        }
        _ => unreachable!("a name of FAMILIES that is built in"),
    }
}

/// Upstream has announced the end of this backend; until then it is a second opinion.
#[cfg(feature = "ndarray")]
#[expect(deprecated, reason = "a second opinion as long as it lasts")]
fn ndarray() -> Device {
    Device::ndarray()
}

/// The adapters of a graphics interface. A device does not tell its kind, but equals the one that
/// `of_kind` makes of it.
#[cfg(feature = "wgpu")]
fn adapters(
    interface: burn::tensor::DeviceType,
    of_kind: fn(burn::tensor::DeviceKind) -> Device,
) -> Vec<Offer> {
    use burn::tensor::DeviceKind::{Cpu, DiscreteGpu, IntegratedGpu, VirtualGpu};
    let found = Device::enumerate(interface);
    let kind = |device: &Device| {
        let any = |kind: fn(usize) -> _| (0..found.len()).any(|n| of_kind(kind(n)) == *device);
        let is = [any(DiscreteGpu), any(IntegratedGpu), any(VirtualGpu), false, any(|_| Cpu)];
        is.iter().position(|&is| is).unwrap_or(3)
    };
    found.iter().map(|device| Offer { kind: kind(device), device: device.clone() }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two discrete cards, an integrated one and the CPU's adapter.
    fn offered(which: Option<&str>) -> usize {
        let offer = |kind| Offer { kind, device: Device::flex() };
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
    fn ranks_of_a_machine_share_its_cpu() {
        assert!(open_one_of("flex", 3, 4).is_ok());
        assert_eq!((family("cuda:1"), family("flex")), ("cuda", "flex"));
    }
}

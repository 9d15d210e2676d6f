//! The only file that names a backend.

use burn::tensor::Device;

/// A device was asked for that this build does not have.
#[derive(Debug, thiserror::Error)]
#[error("device \"{asked}\" is not in this build; expected one of: {}", BUILT_IN.join(", "))]
pub struct UnknownDevice {
    asked: String,
}

/// The devices this build can open.
pub const BUILT_IN: &[&str] = &["flex"];

/// Opens a device by its recipe name, ready for training.
///
/// # Errors
/// When the name is not one of [`BUILT_IN`].
pub fn open(name: &str) -> Result<Device, UnknownDevice> {
    match name {
        "flex" => Ok(Device::flex().autodiff()),
        _ => Err(UnknownDevice { asked: name.to_owned() }),
    }
}

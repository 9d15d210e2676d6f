//! Joules of a computation: read from the machine's own counters, or estimated.
//!
//! * [`EnergyMeter`] adds up the counters that this machine lets a program read: Linux powercap (the
//!   RAPL domains `package` and `dram`) and, with the feature `nvml`, NVIDIA cards.
//! * [`InferenceWork`] and [`TrainingWork`] count operations and bytes of a token, and
//!   [`InferenceWork::estimate`] prices them with published energies. An estimate is not a measurement:
//!   it leaves out caches, control, leakage and the power supply.

mod estimate;
mod meter;
#[cfg(feature = "nvml")]
mod nvml;
mod powercap;
pub mod prices;
mod training;

pub use estimate::{EnergyEstimate, InferenceWork, report_joules};
pub use meter::EnergyMeter;
pub use training::{TrainingProducts, TrainingWork};

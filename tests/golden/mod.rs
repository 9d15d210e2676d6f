//! The golden proof: numbers made by transformers, torch and TRL, compared at the tolerances that
//! `tests/fixtures/golden/README.md` derives. Every test runs over every fixture set there and in
//! the folders named in `BITNET_FIXTURES`, and prints the largest error it saw.

mod agreement;
mod backward;
mod distillation;
mod dpo;
mod engine;
mod families;
mod forward;
mod gradients;
mod muon;
mod optimizer;
mod packed;
mod quantisers;
mod reference;
pub(crate) mod sets;
mod trajectories;
mod weight_error;

//! One optimizer step: sum the gradients of micro-batches (`accumulate`), check loss and norm
//! (`guard`), clip and update (`update`, `adamw`, `muon`), report (`report`). Latents and moments in fewer bits
//! than f32 are in `lean` and `moments`, updates in the middle of the backward pass in `during`.

pub(crate) mod accumulate;
pub(crate) mod adamw;
pub(crate) mod clip;
pub(crate) mod during;
pub(crate) mod guard;
mod lean;
pub(crate) mod moments;
pub(crate) mod muon;
pub(crate) mod report;
#[cfg(test)]
mod tests;
pub(crate) mod update;

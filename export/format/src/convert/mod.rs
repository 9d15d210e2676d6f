//! From one stored form of a model to another, a matrix at a time.
//!
//! [`hf`] and [`gguf`] write the tensors of a [`TensorSource`](crate::TensorSource). What a form
//! cannot hold is refused by tensor name before anything is written, and never more than one
//! matrix, or a part of the embedding, is in memory.

pub mod gguf;
pub mod hf;
#[cfg(test)]
mod tests;

use std::path::Path;

use crate::{FormatError, ModelSpec};

/// Called with the number of values that are done, and of all. An error stops the conversion.
pub type ConversionProgress<'a> = &'a mut dyn FnMut(usize, usize) -> Result<(), FormatError>;

/// For callers that show no progress.
///
/// # Errors
/// None.
pub fn no_progress(_done: usize, _total: usize) -> Result<(), FormatError> {
    Ok(())
}

/// What a conversion did with the values.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Converted {
    /// Values of ternary matrices written.
    pub ternary: usize,
    /// Latents that differ from the nearest BF16 value so that their codes stay.
    pub adjusted: usize,
    /// Tensors with latents whose code could not be kept, and how many.
    pub lost: Vec<(String, usize)>,
}

/// Counts the values that are done.
struct Counter<'a, 'p> {
    progress: &'a mut ConversionProgress<'p>,
    done: usize,
    total: usize,
}

impl<'a, 'p> Counter<'a, 'p> {
    fn new(spec: &ModelSpec, progress: &'a mut ConversionProgress<'p>) -> Self {
        Self { progress, done: 0, total: spec.parameters() }
    }

    fn add(&mut self, values: usize) -> Result<(), FormatError> {
        self.done += values;
        (self.progress)(self.done, self.total)
    }
}

/// Refuses a dense model where only ternary matrices fit.
fn check_ternary(path: &Path, spec: &ModelSpec) -> Result<(), FormatError> {
    if spec.quantise {
        return Ok(());
    }
    let what = "is a dense model (quantise = false); only ternary matrices can be packed";
    Err(FormatError::container(path, what))
}

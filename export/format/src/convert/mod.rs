//! From one stored form of a model to another, a matrix at a time.
//!
//! A [`Source`] gives the tensors of the one table as they are meant; [`hf`] and [`gguf`] write
//! them down. What a form cannot hold is refused by tensor name before anything is written, and
//! never more than one matrix, or a part of the embedding, is in memory.

pub mod gguf;
pub mod hf;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::path::Path;

use crate::matrix::Matrix;
use crate::{FormatError, ModelSpec, TensorEntry};

/// Where a conversion takes its tensors from.
pub trait Source {
    /// What the model is.
    fn spec(&self) -> &ModelSpec;

    /// A matrix of a block as it is meant ([`Matrix`]).
    fn matrix(&self, entry: &TensorEntry) -> Result<Matrix, FormatError>;

    /// Some rows of a float tensor, or some values of a norm.
    fn rows(&self, entry: &TensorEntry, rows: Range<usize>) -> Result<Vec<f32>, FormatError>;
}

/// A source whose float values a function gives, a whole tensor at a time.
pub struct FromValues<'a, F> {
    spec: &'a ModelSpec,
    values: std::cell::RefCell<F>,
}

impl<'a, F: FnMut(&TensorEntry) -> Result<Vec<f32>, FormatError>> FromValues<'a, F> {
    /// `values` is asked for each tensor of the table, in its order, once or more.
    pub fn new(spec: &'a ModelSpec, values: F) -> Self {
        Self { spec, values: values.into() }
    }
}

impl<F: FnMut(&TensorEntry) -> Result<Vec<f32>, FormatError>> Source for FromValues<'_, F> {
    fn spec(&self) -> &ModelSpec {
        self.spec
    }

    fn matrix(&self, entry: &TensorEntry) -> Result<Matrix, FormatError> {
        Ok(Matrix::from_floats((self.values.borrow_mut())(entry)?))
    }

    fn rows(&self, entry: &TensorEntry, rows: Range<usize>) -> Result<Vec<f32>, FormatError> {
        let width = entry.elements() / entry.shape[0];
        Ok((self.values.borrow_mut())(entry)?[rows.start * width..rows.end * width].to_vec())
    }
}

/// Told how many values are done, of how many. An error stops the conversion.
pub type Progress<'a> = &'a mut dyn FnMut(usize, usize) -> Result<(), FormatError>;

/// For callers that do not watch.
///
/// # Errors
/// None.
pub fn unwatched(_done: usize, _total: usize) -> Result<(), FormatError> {
    Ok(())
}

/// What a conversion had to do to the values.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Written {
    /// Values of ternary matrices written.
    pub ternary: usize,
    /// Latents that differ from the nearest BF16 value so that their codes stay.
    pub adjusted: usize,
    /// Tensors with latents whose code could not be kept, and how many.
    pub lost: Vec<(String, usize)>,
}

/// Rows of a float tensor that are read together: about 16 MiB as f32.
pub fn row_chunks(entry: &TensorEntry) -> impl Iterator<Item = Range<usize>> + use<> {
    let (rows, width) = (entry.shape[0], entry.elements() / entry.shape[0]);
    let step = ((4 << 20) / width).max(1);
    (0..rows).step_by(step).map(move |start| start..rows.min(start + step))
}

/// Counts the values that are done.
struct Counter<'a, 'p> {
    progress: &'a mut Progress<'p>,
    done: usize,
    total: usize,
}

impl<'a, 'p> Counter<'a, 'p> {
    fn new(spec: &ModelSpec, progress: &'a mut Progress<'p>) -> Self {
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

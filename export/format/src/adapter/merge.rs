//! Latent adapters: `W = W0 + s·(B·A)`, defined once for training and export.
//!
//! Each step is rounded to f32 and none is fused:
//!
//! ```text
//! sum[j] = (…((0 + B[i,0]·A[0,j]) + B[i,1]·A[1,j]) + …) + B[i,r−1]·A[r−1,j]
//! W[i,j] = W0[i,j] + s·sum[j]
//! ```
//!
//! So a merged model has exactly the codes that training saw.
#![expect(clippy::inline_always, reason = "the caller's instruction set must reach every line")]

use std::ops::Range;
use std::path::Path;

use super::{Adapter, AdapterKind};
use crate::{
    FormatError, ModelSpec, Shown, StoredModel, TensorEntry, TensorSource, TensorView, tensor_table,
};

/// Columns and rows whose sums stay in registers.
const TILE: usize = 16;
const ROWS: usize = 4;

/// Turns rows `W0 [n, in]` into those of `W`, with their rows of `B [n, r]` and the whole of `A [r,
/// in]`.
///
/// All of it is inlined, so that a caller can compile it for the instructions of its CPU; the bits
/// are the same.
///
/// # Panics
/// If the lengths do not fit each other.
#[inline(always)]
pub fn merge_rows(rows: &mut [f32], b_rows: &[f32], a: &[f32], rank: usize, scale: f32) {
    let width = a.len() / rank;
    assert_eq!(a.len(), rank * width, "A has a row for each column of B");
    assert_eq!(rows.len() * rank, b_rows.len() * width, "B has a row for each row");
    let product = Product { a, rank, width, scale };
    let groups = rows.chunks_mut(ROWS * width).zip(b_rows.chunks(ROWS * rank));
    // Four rows share each load of A. A tile changes which sums are in registers, not the order
    // within one.
    for (rows, b_rows) in groups {
        if rows.len() == ROWS * width {
            product.merge::<ROWS>(rows, b_rows);
            continue;
        }
        for (row, b_row) in rows.chunks_mut(width).zip(b_rows.chunks(rank)) {
            product.merge::<1>(row, b_row);
        }
    }
}

/// The right side of the product, `s·(…·A [r, in])`.
#[derive(Clone, Copy)]
struct Product<'a> {
    a: &'a [f32],
    rank: usize,
    width: usize,
    scale: f32,
}

impl Product<'_> {
    /// `R` rows, with their rows of B.
    #[inline(always)]
    fn merge<const R: usize>(self, rows: &mut [f32], b_rows: &[f32]) {
        let whole = self.width / TILE * TILE;
        for first in (0..whole).step_by(TILE) {
            self.tile::<R, TILE>(rows, b_rows, first);
        }
        for first in whole..self.width {
            self.tile::<R, 1>(rows, b_rows, first);
        }
    }

    /// `C` columns of `R` rows, from column `first` on.
    #[inline(always)]
    fn tile<const R: usize, const C: usize>(self, rows: &mut [f32], b_rows: &[f32], first: usize) {
        let mut sums = [[0.0f32; C]; R];
        for k in 0..self.rank {
            let a = &self.a[k * self.width + first..][..C];
            for (i, sums) in sums.iter_mut().enumerate() {
                let b = b_rows[i * self.rank + k];
                // Two roundings: Rust fuses no product and sum by itself, whatever the CPU has.
                sums.iter_mut().zip(a).for_each(|(sum, a)| *sum += b * a);
            }
        }
        for (i, sums) in sums.iter().enumerate() {
            let row = &mut rows[i * self.width + first..][..C];
            row.iter_mut().zip(sums).for_each(|(w, sum)| *w += self.scale * sum);
        }
    }
}

/// A model with latents and a latent adapter of it, read as the model that they make together.
#[derive(Debug)]
pub struct MergedModel<'a> {
    base: &'a StoredModel,
    adapter: &'a Adapter,
    spec: ModelSpec,
}

impl<'a> MergedModel<'a> {
    /// `base` is the model at `path`, and `base_hash` its [`model_hash`](crate::model_hash).
    ///
    /// # Errors
    /// A side adapter, an adapter of another model, a model whose latents are gone.
    pub fn new(
        base: &'a StoredModel,
        path: &Path,
        base_hash: &str,
        adapter: &'a Adapter,
    ) -> Result<Self, FormatError> {
        if adapter.description().kind == AdapterKind::Side {
            let what = "is a side adapter, which is no part of the matrices; expected a latent one";
            return Err(FormatError::container(adapter.path(), what));
        }
        if base.is_packed() {
            let what = format!(
                "holds packed codes without the latent weights that the adapter {} changes; \
                 expected the model that it was trained on, or an adapter of kind = \"side\"",
                adapter.path().shown()
            );
            return Err(FormatError::container(path, what));
        }
        adapter.require_base(path, base_hash)?;
        Ok(Self { base, adapter, spec: base.spec().clone() })
    }

    /// The same with what `spec` says beside the shape, such as the tokens that end a text.
    ///
    /// # Panics
    /// If `spec` has other tensors.
    #[must_use]
    pub fn with_spec(self, spec: ModelSpec) -> Self {
        assert_eq!(tensor_table(&spec), tensor_table(self.base.spec()), "a model of this shape");
        Self { spec, ..self }
    }
}

impl TensorSource for MergedModel<'_> {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn read(&self, entry: &TensorEntry, rows: Range<usize>) -> Result<TensorView, FormatError> {
        let Some(factors) = self.adapter.of(entry) else { return self.base.read(entry, rows) };
        // A whole matrix: whether its values are latents, or codes that were dequantised, is a
        // property of all of them, and training starts from latents in both cases.
        let mut values = self.base.matrix(entry)?.into_latents();
        let width = entry.row_length();
        values.truncate(rows.end * width);
        values.drain(..rows.start * width);
        let description = self.adapter.description();
        let rank = description.rank;
        let b_rows = &factors.b[rows.start * rank..rows.end * rank];
        merge_rows(&mut values, b_rows, &factors.a, rank, description.scale());
        Ok(TensorView::floats(values))
    }

    fn error(&self, entry: &TensorEntry, what: String) -> FormatError {
        self.base.error(entry, format!("with the adapter merged: {what}"))
    }
}

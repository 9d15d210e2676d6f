//! How a ternary layer reads matrices that lie outside of Burn's tensors: latents in few bits, latents that
//! are merged with an adapter's factors, codes that are never updated.

use std::sync::Arc;

use bitnet_format::quant::WeightScale;
use bitnet_kernels::{Kernel, RowGroup, TernaryPanels};

use crate::latents::{Latents, LatentsView};
use crate::ops::merged_latents::{FactorValues, merged};
use crate::ops::native::{for_each_task, unwritten};

/// Panels and codes of matrices with one input `[outᵢ, in]`, one below the other, and of each how tall it
/// is and whether it is trained. A group of rows is brought to f32, used and dropped.
pub(super) fn quantise_outside(
    outside: &[OutsideLatents],
    width: usize,
    kernel: Kernel,
) -> (TernaryPanels, Vec<i8>, Vec<(usize, bool)>) {
    let views: Vec<_> = outside.iter().map(|one| one.open(kernel)).collect();
    let mut row_of = Vec::new();
    for (matrix, view) in views.iter().enumerate() {
        row_of.extend((0..view.shape()[0]).map(|row| (matrix, row)));
    }
    // Of each matrix once, not of each row: the lookup takes a lock.
    let scales: Vec<_> = views.iter().map(|view| view.scale(kernel)).collect();
    let scales = row_of.iter().map(|&(matrix, _)| scales[matrix]).collect();
    let mut panels = TernaryPanels::for_rows(width, scales);
    let mut codes = unwritten(row_of.len() * width);
    let mut rest = &mut codes[..];
    let mut groups = Vec::new();
    for group in panels.groups() {
        let (codes, after) = rest.split_at_mut(group.rows().len() * width);
        groups.push((group, codes));
        rest = after;
    }
    for_each_task(groups, |(mut group, codes)| {
        let mut latents = vec![0.0; width];
        for (row, codes) in group.rows().zip(codes.chunks_exact_mut(width)) {
            let (matrix, within) = row_of[row];
            views[matrix].quantise(within, (&mut group, row), (&mut latents, codes), kernel);
        }
    });
    let heights = outside.iter().zip(&views);
    let heights = heights.map(|(one, view)| (view.shape()[0], one.is_trained)).collect();
    (panels, codes, heights)
}

/// A matrix of a layer that is not a tensor.
#[derive(Clone, Debug)]
pub(super) struct OutsideLatents {
    pub(super) latents: Latents,
    /// What is merged with them before they are quantised.
    pub(super) factors: Option<Arc<FactorValues>>,
    /// Whether a gradient of them is asked for.
    pub(super) is_trained: bool,
}

impl OutsideLatents {
    fn open(&self, kernel: Kernel) -> OpenLatents<'_> {
        match &self.factors {
            None => OpenLatents::Kept(self.latents.read()),
            Some(factors) => {
                let (values, scale) = merged(&self.latents, factors, kernel);
                OpenLatents::Merged { values, scale, shape: self.latents.shape() }
            }
        }
    }
}

/// Latents that are being quantised: as they are kept, or merged with factors.
enum OpenLatents<'a> {
    Kept(LatentsView<'a>),
    Merged { values: Vec<f32>, scale: WeightScale, shape: [usize; 2] },
}

impl OpenLatents<'_> {
    /// `[out, in]`
    fn shape(&self) -> [usize; 2] {
        match self {
            Self::Kept(view) => view.shape(),
            Self::Merged { shape, .. } => *shape,
        }
    }

    fn scale(&self, kernel: Kernel) -> WeightScale {
        match self {
            Self::Kept(view) => view.scale(kernel),
            Self::Merged { scale, .. } => *scale,
        }
    }

    /// Fills row `place` of `group`, and `codes`, from one of its rows; `latents` is room for it.
    fn quantise(
        &self,
        row: usize,
        (group, place): (&mut RowGroup, usize),
        (latents, codes): (&mut [f32], &mut [i8]),
        kernel: Kernel,
    ) {
        match self {
            Self::Kept(view) if view.copy_codes(row, codes, kernel) => {
                return group.write(place, codes);
            }
            Self::Kept(view) => view.rows(row..row + 1, latents, kernel),
            Self::Merged { values, .. } => {
                latents.copy_from_slice(&values[row * latents.len()..][..latents.len()]);
            }
        }
        group.quantise(kernel, place, latents, codes);
    }
}

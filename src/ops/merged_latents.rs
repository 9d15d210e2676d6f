//! Latents under a latent adapter: `W = W0 + s·(B·A)`, merged a part at a time and summed for their scale
//! while the part is in a cache. What a merged matrix is multiplied with is that of `outside_latents`, the
//! gradient of its factors that of `low_rank`.
#![expect(clippy::inline_always, reason = "loops are compiled for each instruction set")]

use bitnet_format::adapter::merge::merge_rows;
use bitnet_format::quant::{Absmean, WeightScale};
use bitnet_kernels::{Kernel, SimdWork};

use crate::latents::{AddMagnitudes, Latents, SUMMED_AT_ONCE};
use crate::ops::native::{in_rows, threads_here, unwritten, with_threads};

/// `A [r, in]` and `B [out, r]`, row-major, and the scale of their product.
#[derive(Clone, Debug)]
pub struct FactorValues {
    /// `[r, in]`
    pub a: Vec<f32>,
    /// `[out, r]`
    pub b: Vec<f32>,
    /// `s`
    pub scale: f32,
}

/// The merged latents `[out, in]`, by the definition that an export follows, and their scale.
pub(crate) fn merged(
    latents: &Latents,
    factors: &FactorValues,
    kernel: Kernel,
) -> (Vec<f32>, WeightScale) {
    let view = latents.read();
    let [height, width] = view.shape();
    let rank = factors.a.len() / width;
    let (mut merged, mut sum) = (unwritten(height * width), Absmean::default());
    // A part at a time, so that it is summed while it is in a cache. Whole sixteens of rows: the
    // sum takes sixteen latents at once.
    let at_once = (SUMMED_AT_ONCE / width).next_multiple_of(16).max(16);
    let merge = |part: usize, values: &mut [f32]| {
        in_rows(values, width, |first, rows| {
            let first = part * at_once + first;
            let end = first + rows.len() / width;
            view.rows(first..end, rows, kernel);
            // Rows are merged by the definition that exports follow (`merge_rows`), so the codes
            // that training sees are those of the merged file.
            let b_rows = &factors.b[first * rank..end * rank];
            kernel.dispatch(Merge { rows, b_rows, factors, rank });
        });
    };
    // The order of the sum is part of its definition, so one thread adds up while the others merge the
    // next part.
    let (threads, mut before) = (threads_here(), &[][..]);
    for (part, values) in merged.chunks_mut(at_once * width).enumerate() {
        let add = || kernel.dispatch(AddMagnitudes { sum: &mut sum, values: before });
        rayon::join(add, || with_threads(threads, || merge(part, values)));
        before = values;
    }
    kernel.dispatch(AddMagnitudes { sum: &mut sum, values: before });
    (merged, WeightScale::from_absmean(sum.finish()))
}

struct Merge<'a> {
    rows: &'a mut [f32],
    b_rows: &'a [f32],
    factors: &'a FactorValues,
    rank: usize,
}

impl SimdWork for Merge<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let FactorValues { a, scale, .. } = self.factors;
        merge_rows(self.rows, self.b_rows, a, self.rank, *scale);
    }
}

//! The loops over logits that are compiled for each instruction set. Logits lie transposed,
//! `[V, tokens]`, so a token's softmax runs down a column and neighbouring tokens fill a vector.
#![expect(clippy::inline_always, reason = "loops are compiled for each instruction set")]

use bitnet_kernels::SimdWork;
use bitnet_kernels::attention::exp;

/// The maximum of each column and of what `largest` held before.
pub(in crate::ops) struct ColumnMax<'a> {
    pub(in crate::ops) values: &'a [f32],
    pub(in crate::ops) largest: &'a mut [f32],
}

impl SimdWork for ColumnMax<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for row in self.values.chunks_exact(self.largest.len()) {
            for (largest, value) in self.largest.iter_mut().zip(row) {
                // Not `f32::max`, which treats NaN in its own way and does not become one
                // instruction.
                *largest = if *value > *largest { *value } else { *largest };
            }
        }
    }
}

/// `exp(value - shift)` with a shift for each column.
pub(super) struct ColumnExp<'a> {
    pub(super) values: &'a mut [f32],
    pub(super) shift: &'a [f32],
}

impl SimdWork for ColumnExp<'_> {
    /// The sums of the columns.
    type Output = Vec<f32>;

    #[inline(always)]
    fn run(self) -> Vec<f32> {
        let mut sums = vec![0.0; self.shift.len()];
        for row in self.values.chunks_exact_mut(self.shift.len()) {
            for ((value, shift), sum) in row.iter_mut().zip(self.shift).zip(&mut sums) {
                *value = exp(*value - shift);
                *sum += *value;
            }
        }
        sums
    }
}

/// Multiplies each column by its factor.
pub(super) struct ColumnScale<'a> {
    pub(super) values: &'a mut [f32],
    pub(super) factors: &'a [f32],
}

impl SimdWork for ColumnScale<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for row in self.values.chunks_exact_mut(self.factors.len()) {
            for (value, factor) in row.iter_mut().zip(self.factors) {
                *value *= factor;
            }
        }
    }
}

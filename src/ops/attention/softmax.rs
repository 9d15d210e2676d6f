//! The loops of attention that are compiled for each instruction set: rotary positions, and the
//! softmax of a tile of scores with its backward pass.
#![expect(clippy::inline_always, reason = "loops are compiled for each instruction set")]

use std::ops::Range;

use bitnet_format::rope::rotate;
use bitnet_kernels::SimdWork;
use bitnet_kernels::attention::{LANES, exp, largest, sum};

/// Rotates `values [T, heads, D]`: element `j` of a head pairs with element `j + D/2`.
///
/// ```text
/// low'  = low · cos − high · sin
/// high' = high · cos + low · sin        direction −1 rotates back: the transpose, for gradients
/// ```
pub(super) struct Rotate<'a> {
    pub(super) values: &'a mut [f32],
    pub(super) heads: usize,
    pub(super) half: usize,
    pub(super) cos: &'a [f32],
    pub(super) sin: &'a [f32],
    pub(super) direction: f32,
}

impl SimdWork for Rotate<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { values, heads, half, cos, sin, direction } = self;
        let tables = cos.chunks_exact(half).zip(sin.chunks_exact(half));
        for (token, (cos, sin)) in values.chunks_exact_mut(2 * half * heads).zip(tables) {
            for head in token.chunks_exact_mut(2 * half) {
                rotate(head, cos, sin, direction);
            }
        }
    }
}

/// Where the rows of a tile of scores stand: row `r` is a query of token `first + r / group`, its
/// columns are the tokens `keys`.
#[derive(Clone)]
pub(super) struct TileRows<'a> {
    /// Start of each query token's document.
    pub(super) starts: &'a [i32],
    pub(super) keys: Range<usize>,
    /// The first query token.
    pub(super) first: usize,
    /// Query heads of a token.
    pub(super) group: usize,
}

impl TileRows<'_> {
    /// The columns that a row's query sees.
    #[inline(always)]
    fn visible(&self, row: usize) -> Range<usize> {
        let token = row / self.group;
        let start = self.starts[token] as usize;
        start - self.keys.start..self.first + token + 1 - self.keys.start
    }
}

/// Scores `[queries, keys]` become weights, 0 where a key is masked. Keeps `ln Σ exp(score)` of each
/// query, from which the backward pass computes the same weights again.
pub(super) struct Softmax<'a> {
    pub(super) scores: &'a mut [f32],
    pub(super) rows: TileRows<'a>,
    pub(super) log_sums: &'a mut [f32],
}

impl SimdWork for Softmax<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { scores, rows, log_sums } = self;
        let width = rows.keys.len();
        for (row, (scores, log_sum)) in scores.chunks_exact_mut(width).zip(log_sums).enumerate() {
            let visible = rows.visible(row);
            // Zeros and not skipped: the product with the values runs over the whole tile.
            scores[..visible.start].fill(0.0);
            scores[visible.end..].fill(0.0);
            let scores = &mut scores[visible];
            let largest = largest(scores);
            for score in scores.iter_mut() {
                *score = exp(*score - largest);
            }
            let sum = sum(scores);
            *log_sum = largest + sum.ln();
            let inverse = 1.0 / sum;
            for score in scores {
                *score *= inverse;
            }
        }
    }
}

/// Scores become weights again, and the gradient of the weights becomes that of the scores:
///
/// ```text
/// w = exp(score − log_sum)        ds = w · (dw − Σ w·dw)
/// ```
pub(super) struct SoftmaxBackward<'a> {
    pub(super) scores: &'a mut [f32],
    /// The gradient of the weights before, of the scores after.
    pub(super) score_grads: &'a mut [f32],
    pub(super) rows: TileRows<'a>,
    pub(super) log_sums: &'a [f32],
}

impl SimdWork for SoftmaxBackward<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { scores, score_grads, rows, log_sums } = self;
        let width = rows.keys.len();
        let pairs = scores.chunks_exact_mut(width).zip(score_grads.chunks_exact_mut(width));
        for (row, ((scores, grads), log_sum)) in pairs.zip(log_sums).enumerate() {
            let visible = rows.visible(row);
            // What is masked was computed too; as zeros it adds nothing to later products.
            for values in [&mut *scores, &mut *grads] {
                values[..visible.start].fill(0.0);
                values[visible.end..].fill(0.0);
            }
            let (weights, grads) = (&mut scores[visible.clone()], &mut grads[visible]);
            for weight in weights.iter_mut() {
                *weight = exp(*weight - log_sum);
            }
            let mean = dot(weights, grads);
            for (grad, weight) in grads.iter_mut().zip(weights) {
                *grad = *weight * (*grad - mean);
            }
        }
    }
}

/// `Σ a·b` in the order of [`sum`].
#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += a * b;
        }
    }
    lanes.iter().sum::<f32>() + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f32>()
}

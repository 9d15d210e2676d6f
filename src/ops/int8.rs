//! The backward pass of `BitLinear` in integers: the gradient of the output is rounded to eight bits,
//! and both products are exact sums of integers (`bitnet_kernels::input_gradient` has the formulas).
//!
//! ```text
//! dx: one scale a token and matrix  dy·m  [T, out] → codes · Tᵀ  [out, in], matrix by matrix, summed in f32
//! dw: one scale an output and block dy/a  [T, out] → codesᵀ · q  [T, in], block by block, summed in f32
//! ```
//!
//! A block holds tokens of one row of the batch, at most [`BLOCK`]: so neither scales nor random bits
//! depend on the rows beside it, and an outlier spoils no more than its own block.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bitnet_format::quant::WeightScale;
use bitnet_kernels::{
    Int8Matrix, Kernel, OutputGradient, RoundedAway, Rounding, TernaryPanels, input_gradient,
    weight_gradient,
};

use crate::ops::backend::{GradientAxis, GradientRounding};
use crate::ops::native::{for_each_task, in_rows, unwritten};

/// Most tokens of a block.
pub(crate) const BLOCK: usize = 1024;

/// Panels that a task fills.
const PANELS_PER_TASK: usize = 4;

/// How many entries of the gradients of a layer became zero, along both axes.
#[derive(Debug, Default)]
pub struct RoundingCounts {
    input: Count,
    weights: Count,
}

#[derive(Debug, Default)]
struct Count {
    entries: AtomicU64,
    lost: AtomicU64,
}

impl Count {
    fn add(&self, away: RoundedAway) {
        self.entries.fetch_add(away.entries, Relaxed);
        self.lost.fetch_add(away.lost, Relaxed);
    }

    fn read(&self) -> RoundedAway {
        RoundedAway { entries: self.entries.load(Relaxed), lost: self.lost.load(Relaxed) }
    }

    fn clear(&self) {
        self.entries.store(0, Relaxed);
        self.lost.store(0, Relaxed);
    }
}

impl RoundingCounts {
    /// Counts of the input's gradient, then of the weights', since they were cleared.
    pub fn read(&self) -> [RoundedAway; 2] {
        [self.input.read(), self.weights.read()]
    }

    /// Begins again.
    pub fn clear(&self) {
        self.input.clear();
        self.weights.clear();
    }
}

/// What a layer's backward pass has.
#[derive(Clone, Copy)]
pub(super) struct Int8Backward<'a> {
    pub(super) kernel: Kernel,
    pub(super) rounding: GradientRounding,
    /// Tokens of a row of the batch.
    pub(super) time: usize,
    /// Activation codes `[M, in]`.
    pub(super) activations: &'a [i8],
    /// `1 / a` of each token.
    pub(super) inverse_scales: &'a [f32],
    /// Weight codes `[out, in]`.
    pub(super) weights: &'a [i8],
    /// `m` of each row.
    pub(super) weight_scales: &'a [f32],
    /// Rows of each matrix, and where it counts.
    pub(super) matrices: &'a [(usize, Arc<RoundingCounts>)],
}

/// Rows of the stacked matrices that are of one of them.
#[derive(Clone)]
struct Matrix<'a> {
    rows: Range<usize>,
    counts: &'a RoundingCounts,
}

impl<'a> Int8Backward<'a> {
    fn width(&self) -> usize {
        self.weights.len() / self.weight_scales.len()
    }

    /// The rows of each matrix that are among `rows`.
    fn matrices(&self, rows: Range<usize>) -> impl Iterator<Item = Matrix<'a>> {
        let mut end = 0;
        let all = self.matrices.iter().map(move |(height, counts)| {
            let start = end;
            end += height;
            (start..end, &**counts)
        });
        all.filter_map(move |(own, counts)| {
            let rows = own.start.max(rows.start)..own.end.min(rows.end);
            (rows.start < rows.end).then_some(Matrix { rows, counts })
        })
    }

    /// The gradient of the input, `[M, in]`; `dy [M, out]`.
    pub(super) fn input(&self, dy: &[f32]) -> Vec<f32> {
        let width = self.width();
        let mut dx = unwritten(self.inverse_scales.len() * width);
        // Matrices with one input (q, k, v) differ in the size of their gradients: each is rounded
        // with scales of its own, and their contributions to dx are added in f32, in order.
        for Matrix { rows, counts } in self.matrices(0..self.weight_scales.len()) {
            // Codes [out, in] become panels of [in, out]: the kernels sum along a matrix's last
            // axis, and this sum runs over the outputs.
            let panels = self.transposed_weights(rows.clone());
            in_rows(&mut dx, width, |first, dx| {
                let tokens = first..first + dx.len() / width;
                for block in self.blocks(tokens) {
                    let dx = &mut dx[(block.tokens.start - first) * width..];
                    let dx = (rows.start > 0, &mut dx[..block.tokens.len() * width]);
                    let dy = (self.gradient(dy, &block, GradientAxis::Token), rows.clone());
                    let scales = &self.weight_scales[rows.clone()];
                    counts.input.add(input_gradient(self.kernel, &panels, dy, scales, dx));
                }
            });
        }
        dx
    }

    /// The codes of some rows, `[in, rows]`.
    fn transposed_weights(&self, rows: Range<usize>) -> TernaryPanels {
        let one = WeightScale::from_stored(1.0).expect("a positive number");
        let width = self.width();
        let codes = &self.weights[rows.start * width..rows.end * width];
        let mut panels = TernaryPanels::for_rows(rows.len(), vec![one; width]);
        for_each_task(panels.groups().collect(), |mut group| group.transpose(self.kernel, codes));
        panels
    }

    /// The gradient of each of some rows of the matrices, `[rows, in]`.
    pub(super) fn weights(&self, dy: &[f32], parts: &[Range<usize>]) -> Vec<Vec<f32>> {
        let width = self.width();
        let mut all: Vec<_> = parts.iter().map(|rows| unwritten(rows.len() * width)).collect();
        if parts.iter().all(Range::is_empty) {
            return all;
        }
        // Blocks outside: the transposed activations of a block serve all matrices, and the first
        // block writes where later ones add.
        for block in self.blocks(0..self.inverse_scales.len()) {
            let panels = self.transposed_activations(block.tokens.clone());
            for (part, dw) in parts.iter().zip(&mut all) {
                self.add_block(dy, &block, &panels, (part.start, dw));
            }
        }
        all
    }

    /// What a block contributes to the gradient of rows `first ..`; the first block overwrites it.
    fn add_block(
        &self,
        dy: &[f32],
        block: &Block,
        panels: &Int8Matrix,
        (first, dw): (usize, &mut [f32]),
    ) {
        let width = self.width();
        let (add, factors) = (block.tokens.start > 0, &self.inverse_scales[block.tokens.clone()]);
        let dy = self.gradient(dy, block, GradientAxis::Output);
        in_rows(dw, width, |row, dw| {
            let first = first + row;
            for Matrix { rows, counts } in self.matrices(first..first + dw.len() / width) {
                let dw = &mut dw[(rows.start - first) * width..(rows.end - first) * width];
                let (dy, dw) = ((dy, rows), (add, dw));
                counts.weights.add(weight_gradient(self.kernel, panels, dy, factors, dw));
            }
        });
    }

    /// The codes of some tokens, `[in, tokens]`.
    fn transposed_activations(&self, tokens: Range<usize>) -> Int8Matrix {
        let width = self.width();
        let codes = &self.activations[tokens.start * width..tokens.end * width];
        let mut panels = Int8Matrix::for_transpose(width, tokens.len());
        for_each_task(panels.panel_groups(PANELS_PER_TASK).collect(), |group| {
            group.transpose(self.kernel, codes);
        });
        panels
    }

    /// The gradient of a block's outputs.
    fn gradient<'d>(&self, dy: &'d [f32], block: &Block, axis: GradientAxis) -> OutputGradient<'d> {
        let stride = self.weight_scales.len();
        let rounding = match self.rounding {
            GradientRounding::Nearest => Rounding::Nearest,
            GradientRounding::Stochastic(place) => {
                Rounding::Stochastic(place.bits((block.row, block.number), axis))
            }
        };
        let Range { start, end } = block.tokens;
        OutputGradient {
            values: &dy[start * stride..end * stride],
            stride,
            rounding,
            place: block.place * stride,
        }
    }

    /// The blocks of some tokens, the first and last of which may be parts of one.
    fn blocks(&self, tokens: Range<usize>) -> impl Iterator<Item = Block> {
        let (time, mut next) = (self.time, tokens.start);
        std::iter::from_fn(move || {
            let (row, at) = (next / time, next % time);
            // Where a block begins depends on the place in its row, not on which thread took which
            // tokens.
            let (number, place) = (at / BLOCK, at % BLOCK);
            let end = (row * time + time.min((number + 1) * BLOCK)).min(tokens.end);
            let block = Block { row, number, place, tokens: next..end };
            next = end;
            (!block.tokens.is_empty()).then_some(block)
        })
    }
}

/// Tokens of one row of the batch.
struct Block {
    row: usize,
    /// In its row.
    number: usize,
    /// Position of the first token in its block.
    place: usize,
    tokens: Range<usize>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::backend::{DrawPlace, GradientFormat};
    use crate::ops::testing::{assert_within, cases, draw, gradient, leaf, with_gradients};
    use crate::ops::{OpBackend, bit_linear};
    use bitnet_format::quant::{quantise_row, ternary_codes};
    use bitnet_kernels::Operands;
    use proptest::prelude::*;

    const PLACE: DrawPlace = DrawPlace { seed: 3, step: 7, rank: 1, row: 5, matrix: 2 };

    /// The definition in plain loops; the same random bits, sums in i32.
    struct Plain {
        time: usize,
        heights: Vec<usize>,
        rounding: GradientRounding,
    }

    impl Plain {
        /// The codes of values with their tokens and outputs, all of one block, and their scale.
        fn codes(&self, values: &[(usize, usize, f32)], axis: GradientAxis) -> (Vec<i32>, f32) {
            let largest = values.iter().fold(0.0f32, |max, (_, _, x)| max.max(x.abs()));
            let scale = 127.0 / largest;
            if !scale.is_finite() {
                return (vec![0; values.len()], 1.0);
            }
            let code = |&(token, output, value): &(usize, usize, f32)| {
                let noise = match self.rounding {
                    GradientRounding::Nearest => 0.0,
                    GradientRounding::Stochastic(place) => {
                        let (row, at) = (token / self.time, token % self.time);
                        let bits = place.bits((row, at / BLOCK), axis);
                        let bits =
                            bits.bits(at % BLOCK * self.heights.iter().sum::<usize>() + output);
                        (bits as f32 + 0.5) / 65536.0 - 0.5
                    }
                };
                ((value * scale).clamp(-127.0, 127.0) + noise).round_ties_even() as i32
            };
            (values.iter().map(code).collect(), scale)
        }

        /// The gradients of `x [M, in]` and of all `w [outᵢ, in]`, one below the other.
        fn gradients(&self, x: &[f32], w: &[Vec<f32>], dy: &[f32]) -> [Vec<f32>; 2] {
            let width = w[0].len() / self.heights[0];
            let (mut q, mut inverse) = (vec![0; x.len()], Vec::new());
            for (x, q) in x.chunks(width).zip(q.chunks_mut(width)) {
                inverse.push(1.0 / quantise_row(x, q).multiplier());
            }
            let out: usize = self.heights.iter().sum();
            let (mut dx, mut dw) = (vec![0.0; x.len()], vec![0.0; out * width]);
            let mut first = 0;
            for w in w {
                let m = WeightScale::of_latents(w);
                let ternary = ternary_codes(w, m);
                let outputs = first..first + w.len() / width;
                first = outputs.end;
                for (token, dx) in dx.chunks_mut(width).enumerate() {
                    let value = |o| (token, o, dy[token * out + o] * m.multiplier());
                    let values: Vec<_> = outputs.clone().map(value).collect();
                    let (codes, scale) = self.codes(&values, GradientAxis::Token);
                    for (i, dx) in dx.iter_mut().enumerate() {
                        *dx += dot(&codes, ternary.chunks(width).map(|row| row[i])) / scale;
                    }
                }
            }
            let tokens: Vec<usize> = (0..inverse.len()).collect();
            for block in tokens.chunks(self.time).flat_map(|row| row.chunks(BLOCK)) {
                for (output, dw) in dw.chunks_mut(width).enumerate() {
                    let value = |&t: &usize| (t, output, dy[t * out + output] * inverse[t]);
                    let values: Vec<_> = block.iter().map(value).collect();
                    let (codes, scale) = self.codes(&values, GradientAxis::Output);
                    for (i, dw) in dw.iter_mut().enumerate() {
                        *dw += dot(&codes, block.iter().map(|t| q[t * width + i])) / scale;
                    }
                }
            }
            [dx, dw]
        }
    }

    /// An exact sum.
    fn dot(codes: &[i32], others: impl Iterator<Item = i8>) -> f32 {
        codes.iter().zip(others).map(|(code, other)| code * i32::from(other)).sum::<i32>() as f32
    }

    fn check<const N: usize>(
        [batch, time, width]: [usize; 3],
        heights: [usize; N],
        rounding: GradientRounding,
        seed: u64,
    ) {
        let x = draw(seed, "x", batch * time * width);
        let w = heights.map(|out| draw(seed.wrapping_add(out as u64), "w", out * width));
        let dy = draw(seed, "upstream", batch * time * heights.iter().sum::<usize>());
        let plain = Plain { time, heights: heights.to_vec(), rounding };
        let expected = plain.gradients(&x, &w, &dy);
        let x = leaf(x, [batch, time, width]);
        let mut heights = heights.into_iter();
        let w = w.map(|w| leaf(w, [heights.next().unwrap(), width]));
        let run = |backend: OpBackend| {
            with_gradients(&bit_linear(x.clone(), w.clone(), backend), seed, |grads| {
                let dw = w.iter().flat_map(|w| gradient(w, grads)).collect();
                vec![gradient(&x, grads), dw]
            })
        };
        let mut backend = OpBackend::native(Operands::Bf16);
        let in_f32 = run(OpBackend::native(Operands::F32));
        backend.gradients = GradientFormat::Int8(rounding);
        for kernel in Kernel::available() {
            backend.kernel = kernel;
            assert!(run(backend)[1..] == expected, "{kernel:?}");
            for threads in [1, 3] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                assert!(pool.install(|| run(backend))[1..] == expected, "{kernel:?}, {threads}");
            }
        }
        // Of 127 steps each entry keeps one, and errors of many average out.
        assert_within(&run(backend)[1..], &in_f32[1..], 0.05, "eight bits");
    }

    proptest! {
        #![proptest_config(cases(16))]

        #[test]
        fn gradients_are_those_of_the_definition_on_every_kernel_and_number_of_threads(
            batch in 1usize..4, time in 1usize..30, width in 1usize..50, out in 1usize..40,
            stochastic: bool, seed: u64,
        ) {
            let stochastic_rounding = GradientRounding::Stochastic(PLACE);
            let rounding = if stochastic { stochastic_rounding } else { GradientRounding::Nearest };
            check([batch, time, width], [out], rounding, seed);
            check([batch, time, width], [out, 1 + out / 3, 1 + out / 2], rounding, seed);
        }
    }

    #[test]
    fn a_row_of_several_blocks_is_quantised_block_by_block() {
        check([2, 2 * BLOCK + 37, 5], [3, 2], GradientRounding::Stochastic(PLACE), 1);
    }

    #[test]
    fn every_part_of_a_place_changes_the_bits() {
        let bits = |place: DrawPlace, at, axis| place.bits(at, axis).bits(0);
        let DrawPlace { seed, step, rank, row, matrix } = PLACE;
        let places = [
            DrawPlace { seed: seed + 1, ..PLACE },
            DrawPlace { step: step + 1, ..PLACE },
            DrawPlace { rank: rank + 1, ..PLACE },
            DrawPlace { row: row + 1, ..PLACE },
            DrawPlace { matrix: matrix + 1, ..PLACE },
        ];
        let first = bits(PLACE, (0, 0), GradientAxis::Token);
        for other in places.map(|place| bits(place, (0, 0), GradientAxis::Token)) {
            assert_ne!(first, other);
        }
        assert_ne!(first, bits(PLACE, (0, 1), GradientAxis::Token));
        assert_ne!(first, bits(PLACE, (0, 0), GradientAxis::Output));
        let next = DrawPlace { row: row + 1, ..PLACE };
        let of_second_row = bits(PLACE, (1, 0), GradientAxis::Token);
        assert_eq!(of_second_row, bits(next, (0, 0), GradientAxis::Token), "however it is cut");
    }
}

//! Causal grouped-query attention and its gradient, a block of queries at a time: scores exist for
//! one block of one head only (arXiv 2205.14135), and of the forward pass one number a query is kept.
#![expect(clippy::inline_always, reason = "loops are compiled for each instruction set")]

use std::ops::Range;
use std::sync::Arc;

use bitnet_kernels::attention::{LANES, exp, largest, sum};
use bitnet_kernels::{Left, Order, Right, Scale, Size, Work, float_product};
use burn::tensor::Shape;
use burn_flex::{Flex, FlexTensor};
use rayon::prelude::*;

use crate::ops::autodiff::Saved;
use crate::ops::flex::{floats, tensor};
use crate::ops::{AttentionShape, Compute};

/// Queries of a block.
const BLOCK: usize = 64;

/// What attention keeps: its input, and of each query and head the logarithm of the sum that its
/// weights were divided by, `[B, H, T]`.
#[derive(Clone, Debug)]
pub(crate) struct SavedAttention {
    qkv: FlexTensor,
    log_sums: Arc<Vec<f32>>,
    shape: AttentionShape,
    compute: Compute,
}

pub(crate) fn forward(
    qkv: FlexTensor,
    shape: AttentionShape,
    compute: Compute,
) -> (FlexTensor, SavedAttention) {
    let qkv = qkv.to_contiguous();
    let (values, out_width) = (floats(&qkv), shape.heads * shape.width);
    let mut out = vec![0.0; shape.batch * shape.time * out_width];
    let mut log_sums = vec![0.0; shape.batch * shape.heads * shape.time];
    let rows = out
        .par_chunks_mut(shape.time * out_width)
        .zip(log_sums.par_chunks_mut(shape.heads * shape.time));
    rows.enumerate().for_each(|(batch, (out, log_sums))| {
        let row = Row::new(values, &shape, compute, batch);
        for head in 0..shape.key_heads {
            row.forward(head, out, log_sums);
        }
    });
    let dims = Shape::from([shape.batch, shape.time, out_width]);
    (tensor(out, dims), SavedAttention { qkv, log_sums: Arc::new(log_sums), shape, compute })
}

impl Saved<Flex, 1> for SavedAttention {
    fn backward(self, dy: FlexTensor) -> [FlexTensor; 1] {
        let dy = dy.to_contiguous();
        let (shape, values, dy) = (&self.shape, floats(&self.qkv), floats(&dy));
        let out_width = shape.heads * shape.width;
        let mut dx = vec![0.0; values.len()];
        dx.par_chunks_mut(shape.time * shape.stride()).enumerate().for_each(|(batch, dx)| {
            let row = Row::new(values, shape, self.compute, batch);
            let dy = &dy[batch * shape.time * out_width..][..shape.time * out_width];
            let log_sums = shape.heads * shape.time;
            let log_sums = &self.log_sums[batch * log_sums..][..log_sums];
            for head in 0..shape.key_heads {
                row.backward(head, dy, log_sums, dx);
            }
        });
        let dims = Shape::from([shape.batch, shape.time, shape.stride()]);
        [tensor(dx, dims)]
    }
}

/// One row of tokens.
struct Row<'a> {
    /// `[T, (H + 2 KV)·D]`
    qkv: &'a [f32],
    shape: &'a AttentionShape,
    compute: Compute,
    /// `[T]`
    starts: &'a [i32],
    /// `[T, D/2]`
    cosines: &'a [f32],
    sines: &'a [f32],
    /// `1 / sqrt(D)`
    scale: f32,
}

/// Some queries and the keys that any of them sees.
#[derive(Clone)]
struct Block {
    queries: Range<usize>,
    keys: Range<usize>,
}

impl<'a> Row<'a> {
    fn new(values: &'a [f32], shape: &'a AttentionShape, compute: Compute, batch: usize) -> Self {
        let (time, half) = (shape.time, shape.width / 2);
        let turns = batch * time * half..(batch + 1) * time * half;
        Self {
            qkv: &values[batch * time * shape.stride()..][..time * shape.stride()],
            shape,
            compute,
            starts: &shape.starts[batch * time..][..time],
            cosines: &shape.cosines[turns.clone()],
            sines: &shape.sines[turns],
            scale: 1.0 / (shape.width as f32).sqrt(),
        }
    }

    /// Documents begin in order, so the first query sees the furthest back.
    fn blocks(&self) -> impl Iterator<Item = Block> {
        (0..self.shape.time).step_by(BLOCK).map(|first| {
            let queries = first..self.shape.time.min(first + BLOCK);
            Block { keys: self.starts[first] as usize..queries.end, queries }
        })
    }

    /// Head number `head` of all that lie in a row, `[T, D]`, turned by its position if asked.
    fn head(&self, head: usize, turned: bool) -> Vec<f32> {
        let (width, stride) = (self.shape.width, self.shape.stride());
        let mut values = Vec::with_capacity(self.shape.time * width);
        for token in self.qkv.chunks_exact(stride) {
            values.extend_from_slice(&token[head * width..][..width]);
        }
        if turned {
            self.turn(&mut values, 1.0);
        }
        values
    }

    /// Turns `[T, D]` by its positions, or back where `direction` is -1.
    fn turn(&self, values: &mut [f32], direction: f32) {
        let half = self.shape.width / 2;
        let turns = self.cosines.chunks_exact(half).zip(self.sines.chunks_exact(half));
        for (values, (cosines, sines)) in values.chunks_exact_mut(2 * half).zip(turns) {
            let (low, high) = values.split_at_mut(half);
            for (((low, high), cos), sin) in low.iter_mut().zip(high).zip(cosines).zip(sines) {
                let sin = direction * sin;
                (*low, *high) = (*low * cos - *high * sin, *high * cos + *low * sin);
            }
        }
    }

    /// Writes head number `head` of a row, `values [T, D]`.
    fn put(&self, head: usize, values: &[f32], stride: usize, out: &mut [f32]) {
        let width = self.shape.width;
        for (token, values) in out.chunks_exact_mut(stride).zip(values.chunks_exact(width)) {
            token[head * width..][..width].copy_from_slice(values);
        }
    }

    fn product(&self, size: [usize; 3], left: Left, right: Right, add: bool, out: &mut [f32]) {
        let size = Size { rows: size[0], depth: size[1], columns: size[2] };
        float_product(self.compute.kernel, self.compute.operands, size, left, right, add, out);
    }

    /// `q·k / sqrt(D)` of a block, `[queries, keys]`.
    fn scores(&self, block: &Block, q: &[f32], k: &[f32], scores: &mut Vec<f32>) {
        let width = self.shape.width;
        let (rows, columns) = (block.queries.len(), block.keys.len());
        scores.resize(rows * columns, 0.0);
        let left = inner(&q[block.queries.start * width..], width, self.scale);
        let right = Right::Floats(part(k, &block.keys, width), Order::Inner);
        self.product([rows, width, columns], left, right, false, scores);
    }

    /// All query heads of one key head.
    fn forward(&self, key_head: usize, out: &mut [f32], log_sums: &mut [f32]) {
        let (width, time) = (self.shape.width, self.shape.time);
        let k = self.head(self.shape.heads + key_head, true);
        let v = self.head(self.shape.heads + self.shape.key_heads + key_head, false);
        let (mut scores, mut found) = (Vec::new(), vec![0.0; time * width]);
        for head in key_head * self.shape.group()..(key_head + 1) * self.shape.group() {
            let q = self.head(head, true);
            let log_sums = &mut log_sums[head * time..][..time];
            for block in self.blocks() {
                self.scores(&block, &q, &k, &mut scores);
                let (starts, keys) = (&self.starts[block.queries.clone()], block.keys.clone());
                let (first, log_sums) = (block.queries.start, &mut log_sums[block.queries.clone()]);
                let scores = &mut scores[..];
                self.compute.kernel.compiled(Softmax { scores, starts, keys, first, log_sums });
                let (rows, columns) = (block.queries.len(), block.keys.len());
                let right = Right::Floats(part(&v, &block.keys, width), Order::Outer);
                let out = &mut found[block.queries.start * width..block.queries.end * width];
                self.product(
                    [rows, columns, width],
                    inner(scores, columns, 1.0),
                    right,
                    false,
                    out,
                );
            }
            self.put(head, &found, self.shape.heads * width, out);
        }
    }

    /// Adds what one key head and its query heads give to `dx [T, (H + 2 KV)·D]`.
    fn backward(&self, key_head: usize, dy: &[f32], log_sums: &[f32], dx: &mut [f32]) {
        let (width, time, stride) = (self.shape.width, self.shape.time, self.shape.stride());
        let (key_at, value_at) = (self.shape.heads + key_head, self.shape.key_heads);
        let value_at = key_at + value_at;
        let (k, v) = (self.head(key_at, true), self.head(value_at, false));
        let mut dk = vec![0.0; time * width];
        let (mut dv, mut dq, mut dout) = (dk.clone(), dk.clone(), dk.clone());
        let (mut weights, mut slopes) = (Vec::new(), Vec::new());
        for head in key_head * self.shape.group()..(key_head + 1) * self.shape.group() {
            let q = self.head(head, true);
            let tokens = dy.chunks_exact(self.shape.heads * width);
            for (dout, token) in dout.chunks_exact_mut(width).zip(tokens) {
                dout.copy_from_slice(&token[head * width..][..width]);
            }
            for block in self.blocks() {
                let Block { queries, keys } = block.clone();
                let (rows, columns) = (queries.len(), keys.len());
                self.scores(&block, &q, &k, &mut weights);
                slopes.resize(rows * columns, 0.0);
                let dout = part(&dout, &queries, width);
                let right = Right::Floats(part(&v, &keys, width), Order::Inner);
                self.product(
                    [rows, width, columns],
                    inner(dout, width, 1.0),
                    right,
                    false,
                    &mut slopes,
                );
                let log_sums = &log_sums[head * time..][queries.clone()];
                self.compute.kernel.compiled(SoftmaxBackward {
                    scores: &mut weights,
                    slopes: &mut slopes,
                    starts: &self.starts[queries.clone()],
                    keys: keys.clone(),
                    first: queries.start,
                    log_sums,
                });
                let places = keys.start * width..keys.end * width;
                let right = Right::Floats(dout, Order::Outer);
                let left = outer(&weights, columns, 1.0);
                self.product([columns, rows, width], left, right, true, &mut dv[places.clone()]);
                let right = Right::Floats(part(&q, &queries, width), Order::Outer);
                let left = outer(&slopes, columns, self.scale);
                self.product([columns, rows, width], left, right, true, &mut dk[places]);
                let right = Right::Floats(part(&k, &keys, width), Order::Outer);
                let left = inner(&slopes, columns, self.scale);
                let out = &mut dq[queries.start * width..queries.end * width];
                self.product([rows, columns, width], left, right, false, out);
            }
            self.turn(&mut dq, -1.0);
            self.put(head, &dq, stride, dx);
        }
        self.turn(&mut dk, -1.0);
        self.put(key_at, &dk, stride, dx);
        self.put(value_at, &dv, stride, dx);
    }
}

/// Rows of `values [T, width]`.
fn part<'v>(values: &'v [f32], rows: &Range<usize>, width: usize) -> &'v [f32] {
    &values[rows.start * width..rows.end * width]
}

fn inner(values: &[f32], stride: usize, scale: f32) -> Left<'_> {
    Left { values, order: Order::Inner, stride, first: 0, scale: Scale::All(scale) }
}

fn outer(values: &[f32], stride: usize, scale: f32) -> Left<'_> {
    Left { values, order: Order::Outer, stride, first: 0, scale: Scale::All(scale) }
}

/// Which of a block's keys the query at `token` sees.
#[inline(always)]
fn seen(start: i32, keys: &Range<usize>, token: usize) -> Range<usize> {
    start as usize - keys.start..token + 1 - keys.start
}

/// Scores `[queries, keys]` become weights, 0 where nothing is seen.
struct Softmax<'a> {
    scores: &'a mut [f32],
    starts: &'a [i32],
    keys: Range<usize>,
    first: usize,
    log_sums: &'a mut [f32],
}

impl Work for Softmax<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { scores, starts, keys, first, log_sums } = self;
        let rows = scores.chunks_exact_mut(keys.len()).zip(starts).zip(log_sums);
        for (row, ((scores, &start), log_sum)) in rows.enumerate() {
            let seen = seen(start, &keys, first + row);
            scores[..seen.start].fill(0.0);
            scores[seen.end..].fill(0.0);
            let scores = &mut scores[seen];
            let largest = largest(scores);
            for score in scores.iter_mut() {
                *score = exp(*score - largest);
            }
            let sum = sum(scores);
            *log_sum = largest + sum.ln();
            for score in scores {
                *score /= sum;
            }
        }
    }
}

/// Scores become weights again, and the slopes of the weights those of the scores.
struct SoftmaxBackward<'a> {
    scores: &'a mut [f32],
    slopes: &'a mut [f32],
    starts: &'a [i32],
    keys: Range<usize>,
    first: usize,
    log_sums: &'a [f32],
}

impl Work for SoftmaxBackward<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { scores, slopes, starts, keys, first, log_sums } = self;
        let rows = scores.chunks_exact_mut(keys.len()).zip(slopes.chunks_exact_mut(keys.len()));
        for (row, ((scores, slopes), (&start, log_sum))) in
            rows.zip(starts.iter().zip(log_sums)).enumerate()
        {
            let seen = seen(start, &keys, first + row);
            for values in [&mut *scores, &mut *slopes] {
                values[..seen.start].fill(0.0);
                values[seen.end..].fill(0.0);
            }
            let (weights, slopes) = (&mut scores[seen.clone()], &mut slopes[seen]);
            for weight in weights.iter_mut() {
                *weight = exp(*weight - log_sum);
            }
            let mean = dot(weights, slopes);
            for (slope, weight) in slopes.iter_mut().zip(weights) {
                *slope = *weight * (*slope - mean);
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

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

/// Queries of a block, those of all heads that share a key head together.
const BLOCK: usize = 128;

/// What attention keeps: its input, and of each query the logarithm of the sum that its weights were
/// divided by, `[B, KV, T, G]`.
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
        for (head, log_sums) in log_sums.chunks_exact_mut(shape.time * shape.group()).enumerate() {
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
            let of_head = log_sums.chunks_exact(shape.time * shape.group());
            for (head, log_sums) in of_head.enumerate() {
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

/// Some tokens that ask and those that any of them sees.
#[derive(Clone)]
struct Block {
    asking: Range<usize>,
    seen: Range<usize>,
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

    /// Documents begin in order, so the first token sees the furthest back.
    fn blocks(&self) -> impl Iterator<Item = Block> {
        let tokens = (BLOCK / self.shape.group()).max(1);
        (0..self.shape.time).step_by(tokens).map(move |first| {
            let asking = first..self.shape.time.min(first + tokens);
            Block { seen: self.starts[first] as usize..asking.end, asking }
        })
    }

    /// Some neighbouring heads of a row: `[T, heads, D]`.
    fn heads(&self, heads: Range<usize>) -> Vec<f32> {
        gathered(self.qkv, self.shape.stride(), self.columns(&heads))
    }

    /// Where some heads lie in a token's values.
    fn columns(&self, heads: &Range<usize>) -> Range<usize> {
        heads.start * self.shape.width..heads.end * self.shape.width
    }

    /// Turns `[T, heads, D]` by the positions, or back where `direction` is -1.
    fn turn(&self, values: &mut [f32], direction: f32) {
        let Self { cosines, sines, shape, .. } = *self;
        let (heads, half) = (values.len() / (shape.time * shape.width), shape.width / 2);
        self.compute.kernel.compiled(Turn { values, heads, half, cosines, sines, direction });
    }

    fn product(&self, size: [usize; 3], left: Left, right: Right, add: bool, out: &mut [f32]) {
        let size = Size { rows: size[0], depth: size[1], columns: size[2] };
        float_product(self.compute.kernel, self.compute.operands, size, left, right, add, out);
    }

    /// `q·k / sqrt(D)` of a block, `[queries, keys]`.
    fn scores(&self, q: &[f32], k: &[f32], scores: &mut [f32]) {
        let width = self.shape.width;
        let size = [q.len() / width, width, k.len() / width];
        let right = Right::Floats(k, Order::Inner);
        self.product(size, inner(q, width, self.scale), right, false, scores);
    }

    /// The query heads that share a key head, that key head, and where its values are.
    fn group(&self, key_head: usize) -> [Range<usize>; 3] {
        let AttentionShape { heads, key_heads, .. } = *self.shape;
        let (group, key) = (self.shape.group(), heads + key_head);
        let one = |head: usize| head..head + 1;
        [key_head * group..(key_head + 1) * group, one(key), one(key + key_heads)]
    }

    /// All query heads of one key head; `log_sums [T, G]`.
    fn forward(&self, key_head: usize, out: &mut [f32], log_sums: &mut [f32]) {
        let (width, group) = (self.shape.width, self.shape.group());
        let [queries, key, value] = self.group(key_head);
        let [mut q, mut k, v] = [queries.clone(), key, value].map(|heads| self.heads(heads));
        self.turn(&mut q, 1.0);
        self.turn(&mut k, 1.0);
        let (mut scores, mut found) = (Vec::new(), vec![0.0; q.len()]);
        for Block { asking, seen } in self.blocks() {
            let (rows, columns) = (asking.len() * group, seen.len());
            scores.resize(rows * columns, 0.0);
            self.scores(part(&q, &asking, group * width), part(&k, &seen, width), &mut scores);
            self.compute.kernel.compiled(Softmax {
                scores: &mut scores,
                starts: &self.starts[asking.clone()],
                keys: seen.clone(),
                first: asking.start,
                log_sums: part_mut(log_sums, &asking, group),
            });
            let (left, v) = (inner(&scores, columns, 1.0), part(&v, &seen, width));
            let right = Right::Floats(v, Order::Outer);
            let out = part_mut(&mut found, &asking, group * width);
            self.product([rows, columns, width], left, right, false, out);
        }
        put(&found, self.shape.heads * width, self.columns(&queries), out);
    }

    /// Writes what one key head and its query heads give to `dx [T, (H + 2 KV)·D]`.
    fn backward(&self, key_head: usize, dy: &[f32], log_sums: &[f32], dx: &mut [f32]) {
        let (width, group, stride) = (self.shape.width, self.shape.group(), self.shape.stride());
        let [queries, key, value] = self.group(key_head);
        let heads = [queries.clone(), key.clone(), value.clone()];
        let [mut q, mut k, v] = heads.map(|heads| self.heads(heads));
        self.turn(&mut q, 1.0);
        self.turn(&mut k, 1.0);
        let dout = gathered(dy, self.shape.heads * width, self.columns(&queries));
        let [mut dq, mut dk, mut dv] = [q.len(), k.len(), v.len()].map(|length| vec![0.0; length]);
        let (mut weights, mut slopes) = (Vec::new(), Vec::new());
        for Block { asking, seen } in self.blocks() {
            let (rows, columns) = (asking.len() * group, seen.len());
            let [q, dout] = [&q, &dout].map(|values| part(values, &asking, group * width));
            let [k, v] = [&k, &v].map(|values| part(values, &seen, width));
            weights.resize(rows * columns, 0.0);
            slopes.resize(rows * columns, 0.0);
            self.scores(q, k, &mut weights);
            let right = Right::Floats(v, Order::Inner);
            let left = inner(dout, width, 1.0);
            self.product([rows, width, columns], left, right, false, &mut slopes);
            self.compute.kernel.compiled(SoftmaxBackward {
                scores: &mut weights,
                slopes: &mut slopes,
                starts: &self.starts[asking.clone()],
                keys: seen.clone(),
                first: asking.start,
                log_sums: part(log_sums, &asking, group),
            });
            let left = outer(&weights, columns, 1.0);
            let out = part_mut(&mut dv, &seen, width);
            let right = Right::Floats(dout, Order::Outer);
            self.product([columns, rows, width], left, right, true, out);
            let left = outer(&slopes, columns, self.scale);
            let out = part_mut(&mut dk, &seen, width);
            self.product([columns, rows, width], left, Right::Floats(q, Order::Outer), true, out);
            let left = inner(&slopes, columns, self.scale);
            let out = part_mut(&mut dq, &asking, group * width);
            self.product([rows, columns, width], left, Right::Floats(k, Order::Outer), false, out);
        }
        self.turn(&mut dq, -1.0);
        self.turn(&mut dk, -1.0);
        for (values, heads) in [(&dq, &queries), (&dk, &key), (&dv, &value)] {
            put(values, stride, self.columns(heads), dx);
        }
    }
}

/// Rotary positions: element `j` of a head turns with element `j + D/2`.
struct Turn<'a> {
    values: &'a mut [f32],
    heads: usize,
    half: usize,
    cosines: &'a [f32],
    sines: &'a [f32],
    direction: f32,
}

impl Work for Turn<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { values, heads, half, cosines, sines, direction } = self;
        let turns = cosines.chunks_exact(half).zip(sines.chunks_exact(half));
        for (token, (cosines, sines)) in values.chunks_exact_mut(2 * half * heads).zip(turns) {
            for head in token.chunks_exact_mut(2 * half) {
                let (low, high) = head.split_at_mut(half);
                for (((low, high), cos), sin) in low.iter_mut().zip(high).zip(cosines).zip(sines) {
                    let sin = direction * sin;
                    (*low, *high) = (*low * cos - *high * sin, *high * cos + *low * sin);
                }
            }
        }
    }
}

/// Some columns of rows, one behind the other.
fn gathered(rows: &[f32], stride: usize, columns: Range<usize>) -> Vec<f32> {
    let mut values = Vec::with_capacity(rows.len() / stride * columns.len());
    for row in rows.chunks_exact(stride) {
        values.extend_from_slice(&row[columns.clone()]);
    }
    values
}

/// The opposite: `values` become some columns of `rows`.
fn put(values: &[f32], stride: usize, columns: Range<usize>, rows: &mut [f32]) {
    for (row, values) in rows.chunks_exact_mut(stride).zip(values.chunks_exact(columns.len())) {
        row[columns.clone()].copy_from_slice(values);
    }
}

/// Rows of `values [T, width]`.
fn part<'v>(values: &'v [f32], rows: &Range<usize>, width: usize) -> &'v [f32] {
    &values[rows.start * width..rows.end * width]
}

fn part_mut<'v>(values: &'v mut [f32], rows: &Range<usize>, width: usize) -> &'v mut [f32] {
    &mut values[rows.start * width..rows.end * width]
}

fn inner(values: &[f32], stride: usize, scale: f32) -> Left<'_> {
    Left { values, order: Order::Inner, stride, first: 0, scale: Scale::All(scale) }
}

fn outer(values: &[f32], stride: usize, scale: f32) -> Left<'_> {
    Left { values, order: Order::Outer, stride, first: 0, scale: Scale::All(scale) }
}

/// Which of a block's keys the queries of `token` see.
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
        let group = log_sums.len() / starts.len();
        let rows = scores.chunks_exact_mut(keys.len()).zip(log_sums);
        for (row, (scores, log_sum)) in rows.enumerate() {
            let seen = seen(starts[row / group], &keys, first + row / group);
            scores[..seen.start].fill(0.0);
            scores[seen.end..].fill(0.0);
            let scores = &mut scores[seen];
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
        let group = log_sums.len() / starts.len();
        let rows = scores.chunks_exact_mut(keys.len()).zip(slopes.chunks_exact_mut(keys.len()));
        for (row, ((scores, slopes), log_sum)) in rows.zip(log_sums).enumerate() {
            let seen = seen(starts[row / group], &keys, first + row / group);
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

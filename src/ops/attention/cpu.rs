//! Attention and its gradient on the CPU, a tile of queries at a time, so that scores exist for one
//! tile of one key head only (arXiv 2205.14135).
//!
//! ```text
//!             keys →
//!           ┌─────────────────
//! queries   │ ▓▓▒                 ▓ tiles that are computed: from the start of the first
//!    ↓      │ ▓▓▓▓▒                 query's document to the last query of the tile
//!           │     ▓▓▒             ▒ computed, then masked: the future
//!           │     ▓▓▓▓▒           (a document starts at the fifth column)
//! ```
//!
//! A tile sees all of its keys at once, so one softmax is enough and no running maximum is needed.
//! The backward pass goes over the same tiles and computes the weights again from the scores; of
//! the forward pass it needs the input and one number for each query, the logarithm of its sum.
//!
//! The `G` query heads of a key head are one matrix of `G·T` rows. Sequences run in parallel; the
//! gradients of keys and values are summed over tiles in order, by one thread.

use std::ops::Range;
use std::sync::Arc;

use bitnet_kernels::{MatrixA, MatrixB, OperandLayout, Scale, Size, float_product};
use burn::tensor::Shape;
use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::AttentionShape;
use super::softmax::{Rotate, Softmax, SoftmaxBackward, TileRows};
use crate::ops::OpBackend;
use crate::ops::native::{NativeOp, floats, tensor};

/// Query rows of a tile, over all heads that share a key head.
const TILE_ROWS: usize = 128;

#[derive(Clone, Debug)]
pub(super) struct NativeAttention {
    pub(super) shape: AttentionShape,
    pub(super) backend: OpBackend,
}

#[derive(Clone, Debug)]
pub(crate) struct SavedAttention {
    qkv: FlexTensor,
    /// `ln Σ exp(score)` of each query, `[B, KV, T, G]`.
    log_sums: Arc<Vec<f32>>,
    op: NativeAttention,
}

impl NativeOp<1> for NativeAttention {
    type Saved = SavedAttention;

    fn forward(self, [qkv]: [FlexTensor; 1]) -> (FlexTensor, SavedAttention) {
        let (qkv, shape) = (qkv.to_contiguous(), &self.shape);
        let (values, out_width) = (floats(&qkv), shape.heads * shape.head_dim);
        let mut out = vec![0.0; shape.batch * shape.time * out_width];
        let mut log_sums = vec![0.0; shape.batch * shape.heads * shape.time];
        let sequences = out
            .par_chunks_mut(shape.time * out_width)
            .zip(log_sums.par_chunks_mut(shape.heads * shape.time));
        sequences.enumerate().for_each(|(index, (out, log_sums))| {
            let sequence = Sequence::new(values, &self, index);
            let of_head = log_sums.chunks_exact_mut(shape.time * shape.group());
            for (kv_head, log_sums) in of_head.enumerate() {
                sequence.forward(kv_head, out, log_sums);
            }
        });
        let dims = Shape::from([shape.batch, shape.time, out_width]);
        let saved = SavedAttention { qkv, log_sums: Arc::new(log_sums), op: self };
        (tensor(out, dims), saved)
    }

    fn backward(saved: SavedAttention, dy: FlexTensor) -> [FlexTensor; 1] {
        let dy = dy.to_contiguous();
        let (shape, values, dy) = (&saved.op.shape, floats(&saved.qkv), floats(&dy));
        let out_width = shape.heads * shape.head_dim;
        let mut dx = vec![0.0; values.len()];
        dx.par_chunks_mut(shape.time * shape.stride()).enumerate().for_each(|(index, dx)| {
            let sequence = Sequence::new(values, &saved.op, index);
            let dy = &dy[index * shape.time * out_width..][..shape.time * out_width];
            let queries = shape.heads * shape.time;
            let log_sums = &saved.log_sums[index * queries..][..queries];
            let of_head = log_sums.chunks_exact(shape.time * shape.group());
            for (kv_head, log_sums) in of_head.enumerate() {
                sequence.backward(kv_head, dy, log_sums, dx);
            }
        });
        [tensor(dx, Shape::from([shape.batch, shape.time, shape.stride()]))]
    }
}

/// One sequence of the batch.
struct Sequence<'a> {
    /// `[T, (H + 2 KV)·D]`
    qkv: &'a [f32],
    shape: &'a AttentionShape,
    backend: OpBackend,
    /// `[T]`
    starts: &'a [i32],
    /// `[T, D/2]`
    cos: &'a [f32],
    sin: &'a [f32],
    /// `1 / sqrt(D)`
    scale: f32,
}

/// Neighbouring query tokens, and all tokens that any of them sees.
#[derive(Clone)]
struct ScoreTile {
    queries: Range<usize>,
    keys: Range<usize>,
}

impl<'a> Sequence<'a> {
    fn new(values: &'a [f32], op: &'a NativeAttention, index: usize) -> Self {
        let shape = &op.shape;
        let (time, half) = (shape.time, shape.head_dim / 2);
        let table = index * time * half..(index + 1) * time * half;
        Self {
            qkv: &values[index * time * shape.stride()..][..time * shape.stride()],
            shape,
            backend: op.backend,
            starts: &shape.segment_starts[index * time..][..time],
            cos: &shape.cos[table.clone()],
            sin: &shape.sin[table],
            scale: 1.0 / (shape.head_dim as f32).sqrt(),
        }
    }

    /// Starts never decrease along a sequence, so the first query of a tile sees furthest back.
    fn tiles(&self) -> impl Iterator<Item = ScoreTile> {
        let tokens = (TILE_ROWS / self.shape.group()).max(1);
        (0..self.shape.time).step_by(tokens).map(move |first| {
            let queries = first..self.shape.time.min(first + tokens);
            ScoreTile { keys: self.starts[first] as usize..queries.end, queries }
        })
    }

    /// Neighbouring heads, contiguous: `[T, heads, D]`.
    fn heads(&self, heads: Range<usize>) -> Vec<f32> {
        gather_columns(self.qkv, self.shape.stride(), self.columns(&heads))
    }

    /// The columns of heads in a token's values.
    fn columns(&self, heads: &Range<usize>) -> Range<usize> {
        heads.start * self.shape.head_dim..heads.end * self.shape.head_dim
    }

    /// Rotates `[T, heads, D]` by the positions, or back where `direction` is -1.
    fn rotate(&self, values: &mut [f32], direction: f32) {
        let Self { cos, sin, shape, .. } = *self;
        let (heads, half) = (values.len() / (shape.time * shape.head_dim), shape.head_dim / 2);
        self.backend.kernel.dispatch(Rotate { values, heads, half, cos, sin, direction });
    }

    fn product(&self, size: [usize; 3], left: MatrixA, right: MatrixB, add: bool, out: &mut [f32]) {
        let size = Size { rows: size[0], depth: size[1], columns: size[2] };
        let OpBackend { kernel, operands, .. } = self.backend;
        float_product(kernel, operands, size, left, right, add, out);
    }

    /// `q·k / sqrt(D)` of a tile, `[queries, keys]`.
    fn scores(&self, q: &[f32], k: &[f32], scores: &mut [f32]) {
        let width = self.shape.head_dim;
        let size = [q.len() / width, width, k.len() / width];
        let right = MatrixB::Floats(k, OperandLayout::KInner);
        self.product(size, rows(q, width, self.scale), right, false, scores);
    }

    fn tile_rows(&self, tile: &ScoreTile) -> TileRows<'a> {
        TileRows {
            starts: &self.starts[tile.queries.clone()],
            keys: tile.keys.clone(),
            first: tile.queries.start,
            group: self.shape.group(),
        }
    }

    /// The query heads that share a key head, that key head, and its value head.
    fn group(&self, kv_head: usize) -> [Range<usize>; 3] {
        let AttentionShape { heads, kv_heads, .. } = *self.shape;
        let (group, key) = (self.shape.group(), heads + kv_head);
        let one = |head: usize| head..head + 1;
        [kv_head * group..(kv_head + 1) * group, one(key), one(key + kv_heads)]
    }

    /// All query heads of one key head; `log_sums [T, G]`.
    fn forward(&self, kv_head: usize, out: &mut [f32], log_sums: &mut [f32]) {
        let (width, group) = (self.shape.head_dim, self.shape.group());
        let [queries, key, value] = self.group(kv_head);
        let [mut q, mut k, v] = [queries.clone(), key, value].map(|heads| self.heads(heads));
        self.rotate(&mut q, 1.0);
        self.rotate(&mut k, 1.0);
        let (mut scores, mut mixed) = (Vec::new(), vec![0.0; q.len()]);
        for tile in self.tiles() {
            let (height, columns) = (tile.queries.len() * group, tile.keys.len());
            scores.resize(height * columns, 0.0);
            let (q, k) = (part(&q, &tile.queries, group * width), part(&k, &tile.keys, width));
            self.scores(q, k, &mut scores);
            self.backend.kernel.dispatch(Softmax {
                scores: &mut scores,
                rows: self.tile_rows(&tile),
                log_sums: part_mut(log_sums, &tile.queries, group),
            });
            let right = MatrixB::Floats(part(&v, &tile.keys, width), OperandLayout::KOuter);
            let mixed = part_mut(&mut mixed, &tile.queries, group * width);
            let left = rows(&scores, columns, 1.0);
            self.product([height, columns, width], left, right, false, mixed);
        }
        scatter_columns(&mixed, self.shape.heads * width, self.columns(&queries), out);
    }

    /// Writes the gradients of one key head and its query heads to `dx [T, (H + 2 KV)·D]`.
    ///
    /// ```text
    /// dv += wᵀ · dy     dw = dy · vᵀ     dk += dsᵀ · q / sqrt(D)     dq = ds · k / sqrt(D)
    /// ```
    fn backward(&self, kv_head: usize, dy: &[f32], log_sums: &[f32], dx: &mut [f32]) {
        let (width, group, stride) = (self.shape.head_dim, self.shape.group(), self.shape.stride());
        let [queries, key, value] = self.group(kv_head);
        let heads = [queries.clone(), key.clone(), value.clone()];
        let [mut q, mut k, v] = heads.map(|heads| self.heads(heads));
        self.rotate(&mut q, 1.0);
        self.rotate(&mut k, 1.0);
        let dy = gather_columns(dy, self.shape.heads * width, self.columns(&queries));
        let [mut dq, mut dk, mut dv] = [q.len(), k.len(), v.len()].map(|length| vec![0.0; length]);
        let (mut weights, mut score_grads) = (Vec::new(), Vec::new());
        for tile in self.tiles() {
            let (height, columns) = (tile.queries.len() * group, tile.keys.len());
            let [q, dy] = [&q, &dy].map(|values| part(values, &tile.queries, group * width));
            let [k, v] = [&k, &v].map(|values| part(values, &tile.keys, width));
            weights.resize(height * columns, 0.0);
            score_grads.resize(height * columns, 0.0);
            self.scores(q, k, &mut weights);
            let right = MatrixB::Floats(v, OperandLayout::KInner);
            self.product(
                [height, width, columns],
                rows(dy, width, 1.0),
                right,
                false,
                &mut score_grads,
            );
            self.backend.kernel.dispatch(SoftmaxBackward {
                scores: &mut weights,
                score_grads: &mut score_grads,
                rows: self.tile_rows(&tile),
                log_sums: part(log_sums, &tile.queries, group),
            });
            let (dk, dv) =
                (part_mut(&mut dk, &tile.keys, width), part_mut(&mut dv, &tile.keys, width));
            let dq = part_mut(&mut dq, &tile.queries, group * width);
            let [q, k, dy] =
                [q, k, dy].map(|values| MatrixB::Floats(values, OperandLayout::KOuter));
            let left = transposed(&weights, columns, 1.0);
            self.product([columns, height, width], left, dy, true, dv);
            let left = transposed(&score_grads, columns, self.scale);
            self.product([columns, height, width], left, q, true, dk);
            let left = rows(&score_grads, columns, self.scale);
            self.product([height, columns, width], left, k, false, dq);
        }
        self.rotate(&mut dq, -1.0);
        self.rotate(&mut dk, -1.0);
        for (values, heads) in [(&dq, &queries), (&dk, &key), (&dv, &value)] {
            scatter_columns(values, stride, self.columns(heads), dx);
        }
    }
}

/// Columns of all rows, made contiguous.
fn gather_columns(rows: &[f32], stride: usize, columns: Range<usize>) -> Vec<f32> {
    let mut values = Vec::with_capacity(rows.len() / stride * columns.len());
    for row in rows.chunks_exact(stride) {
        values.extend_from_slice(&row[columns.clone()]);
    }
    values
}

/// The inverse: writes `values` to columns of `rows`.
fn scatter_columns(values: &[f32], stride: usize, columns: Range<usize>, rows: &mut [f32]) {
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

/// A matrix times `scale` as left operand.
fn rows(values: &[f32], stride: usize, scale: f32) -> MatrixA<'_> {
    MatrixA { values, layout: OperandLayout::KInner, stride, first: 0, scale: Scale::All(scale) }
}

/// Its transpose.
fn transposed(values: &[f32], stride: usize, scale: f32) -> MatrixA<'_> {
    MatrixA { values, layout: OperandLayout::KOuter, stride, first: 0, scale: Scale::All(scale) }
}

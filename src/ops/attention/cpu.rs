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
//! The `G` query heads of a key head are one matrix of `G·T` rows. Sequences, key heads and tiles run in
//! parallel. The gradients of keys and values are summed over tiles in one order, whatever the number of
//! threads: the tiles of a long sequence are dealt out to up to [`GROUPS`] groups, each sums its own in
//! order, and then the sums of the groups are added in order.

use std::ops::Range;
use std::sync::Arc;

use bitnet_kernels::{MatrixA, MatrixB, OperandLayout, PackedB, Scale, Size, float_product};
use burn::tensor::Shape;
use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::AttentionShape;
use super::softmax::{Rotate, Softmax, SoftmaxBackward, TileRows};
use crate::ops::OpBackend;
use crate::ops::native::{NativeOp, floats, tensor, unwritten};

/// Query rows of a tile, over all heads that share a key head.
const TILE_ROWS: usize = 128;

/// Most groups of tiles whose gradients of keys and values are summed apart.
const GROUPS: usize = 4;

/// Least tiles of a group: a group has gradients of all keys to itself.
const TILES_PER_GROUP: usize = 4;

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
        let mut out = unwritten(shape.batch * shape.time * out_width);
        let mut log_sums = vec![0.0; shape.batch * shape.heads * shape.time];
        // Three levels run in parallel: sequences, key heads, tiles. A small batch of long rows and
        // a large batch of short ones then both fill all threads.
        let sequences = out
            .par_chunks_mut(shape.time * out_width)
            .zip(log_sums.par_chunks_mut(shape.heads * shape.time));
        sequences.enumerate().for_each(|(index, (out, log_sums))| {
            let sequence = Sequence::new(values, &self, index);
            let of_head = log_sums.par_chunks_exact_mut(shape.time * shape.group()).enumerate();
            let mixed: Vec<_> =
                of_head.map(|(kv_head, log_sums)| sequence.forward(kv_head, log_sums)).collect();
            for (kv_head, mixed) in mixed.iter().enumerate() {
                let [queries, ..] = sequence.group(kv_head);
                scatter_columns(mixed, out_width, sequence.columns(&queries), out);
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
        let mut dx = unwritten(values.len());
        dx.par_chunks_mut(shape.time * shape.stride()).enumerate().for_each(|(index, dx)| {
            let sequence = Sequence::new(values, &saved.op, index);
            let dy = &dy[index * shape.time * out_width..][..shape.time * out_width];
            let queries = shape.heads * shape.time;
            let log_sums = &saved.log_sums[index * queries..][..queries];
            let of_head = log_sums.par_chunks_exact(shape.time * shape.group()).enumerate();
            let gradients: Vec<_> = of_head
                .map(|(kv_head, log_sums)| sequence.backward(kv_head, dy, log_sums))
                .collect();
            for (kv_head, gradients) in gradients.iter().enumerate() {
                // Every head is in one group only, so columns are written and never added to.
                for (values, heads) in gradients.iter().zip(sequence.group(kv_head)) {
                    scatter_columns(values, shape.stride(), sequence.columns(&heads), dx);
                }
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

/// Keys or values of a head `[T, D]`. Tiles that begin with the first document see the first so many of
/// them: these are packed once for all of those tiles.
struct SharedOperand<'v> {
    values: &'v [f32],
    layout: OperandLayout,
    width: usize,
    packed: Option<PackedB>,
}

impl SharedOperand<'_> {
    /// What a tile with these keys is multiplied with.
    fn of(&self, keys: &Range<usize>) -> MatrixB<'_> {
        match &self.packed {
            Some(packed) if keys.start == 0 => MatrixB::PackedB(packed),
            _ => MatrixB::Floats(part(self.values, keys, self.width), self.layout),
        }
    }
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
    fn tile(&self, index: usize) -> ScoreTile {
        let first = index * self.tile_tokens();
        let queries = first..self.shape.time.min(first + self.tile_tokens());
        ScoreTile { keys: self.starts[first] as usize..queries.end, queries }
    }

    /// Query tokens of a tile.
    fn tile_tokens(&self) -> usize {
        (TILE_ROWS / self.shape.group()).max(1)
    }

    /// Groups whose tiles are summed apart: a matter of the shape alone.
    fn groups(&self) -> usize {
        let tiles = self.shape.time.div_ceil(self.tile_tokens());
        (tiles / TILES_PER_GROUP).clamp(1, GROUPS)
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

    fn product(&self, size: [usize; 3], a: MatrixA, b: MatrixB, add: bool, out: &mut [f32]) {
        let size = Size { rows: size[0], depth: size[1], columns: size[2] };
        let OpBackend { kernel, operands, .. } = self.backend;
        float_product(kernel, operands, size, a, b, add, out);
    }

    /// `q·k / sqrt(D)` of a tile with this many keys, `[queries, keys]`.
    fn scores(&self, q: &[f32], k: MatrixB, keys: usize, scores: &mut [f32]) {
        let width = self.shape.head_dim;
        // `1 / sqrt(D)` is multiplied into the queries while they are packed.
        let size = [q.len() / width, width, keys];
        self.product(size, rows(q, width, self.scale), k, false, scores);
    }

    /// Keys or values `[T, D]` as the second operand of the products with all tiles.
    fn shared<'v>(&self, values: &'v [f32], layout: OperandLayout) -> SharedOperand<'v> {
        let (width, tiles) = (self.shape.head_dim, self.shape.time.div_ceil(self.tile_tokens()));
        let of_first_document =
            (0..tiles).map(|index| self.tile(index)).take_while(|tile| tile.keys.start == 0);
        // A single tile packs what it needs itself.
        let longest = of_first_document.skip(1).last();
        let packed = longest.map(|ScoreTile { keys, .. }| {
            let (depth, columns) = match layout {
                OperandLayout::KInner => (width, keys.len()),
                OperandLayout::KOuter => (keys.len(), width),
            };
            let OpBackend { kernel, operands, .. } = self.backend;
            let b = MatrixB::Floats(part(values, &keys, width), layout);
            PackedB::new(kernel, operands, depth, columns, b)
        });
        SharedOperand { values, layout, width, packed }
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

    /// All query heads of one key head, `[T, G, D]`; `log_sums [T, G]`.
    fn forward(&self, kv_head: usize, log_sums: &mut [f32]) -> Vec<f32> {
        let (width, group) = (self.shape.head_dim, self.shape.group());
        let [mut q, mut k, v] = self.group(kv_head).map(|heads| self.heads(heads));
        // Queries and keys are kept unrotated in the graph and rotated here, once more in the
        // backward pass: no second copy of them has to be kept.
        self.rotate(&mut q, 1.0);
        self.rotate(&mut k, 1.0);
        let keys = self.shared(&k, OperandLayout::KInner);
        let values = self.shared(&v, OperandLayout::KOuter);
        let (mut mixed, tokens) = (unwritten(q.len()), self.tile_tokens());
        let tiles = mixed
            .par_chunks_mut(tokens * group * width)
            .zip(log_sums.par_chunks_mut(tokens * group))
            .enumerate();
        tiles.for_each_init(Vec::new, |scores, (index, (mixed, log_sums))| {
            let tile = self.tile(index);
            let (height, columns) = (tile.queries.len() * group, tile.keys.len());
            scores.resize(height * columns, 0.0);
            let q = part(&q, &tile.queries, group * width);
            self.scores(q, keys.of(&tile.keys), columns, scores);
            let rows_of_tile = self.tile_rows(&tile);
            self.backend.kernel.dispatch(Softmax { scores, rows: rows_of_tile, log_sums });
            let a = rows(scores, columns, 1.0);
            self.product([height, columns, width], a, values.of(&tile.keys), false, mixed);
        });
        mixed
    }

    /// The gradients of one key head: of its queries `[T, G, D]`, of keys and of values `[T, D]`.
    ///
    /// ```text
    /// dv += wᵀ · dy     dw = dy · vᵀ     dk += dsᵀ · q / sqrt(D)     dq = ds · k / sqrt(D)
    /// ```
    fn backward(&self, kv_head: usize, dy: &[f32], log_sums: &[f32]) -> [Vec<f32>; 3] {
        let (width, group) = (self.shape.head_dim, self.shape.group());
        let heads = self.group(kv_head);
        let dy = gather_columns(dy, self.shape.heads * width, self.columns(&heads[0]));
        let [mut q, mut k, v] = heads.map(|heads| self.heads(heads));
        self.rotate(&mut q, 1.0);
        self.rotate(&mut k, 1.0);
        let inputs = HeadInputs {
            q: &q,
            for_scores: self.shared(&k, OperandLayout::KInner),
            for_queries: self.shared(&k, OperandLayout::KOuter),
            v: self.shared(&v, OperandLayout::KInner),
            dy: &dy,
            log_sums,
        };
        let mut dq = unwritten(q.len());
        let mut groups: Vec<Vec<_>> = (0..self.groups()).map(|_| Vec::new()).collect();
        let count = groups.len();
        // Later tiles see more keys: dealt out in turn, all groups have as much to do.
        for (index, dq) in dq.chunks_mut(self.tile_tokens() * group * width).enumerate() {
            groups[index % count].push((self.tile(index), dq));
        }
        // Order of sums of dk and dv: inside a group tile after tile, then group 0 + group 1 + …
        //
        //    tile    0 1 2 3 4 5 6 7
        //    group   0 1 2 3 0 1 2 3      the number of groups depends on the length alone
        let sums: Vec<_> =
            groups.into_par_iter().map(|tiles| self.group_gradients(&inputs, tiles)).collect();
        let [mut dk, dv] = sums.into_iter().reduce(add_both).expect("at least one group");
        // A rotation's gradient is the rotation back.
        self.rotate(&mut dq, -1.0);
        self.rotate(&mut dk, -1.0);
        [dq, dk, dv]
    }

    /// Writes the gradients of the queries of these tiles, and returns what they add to those of keys and
    /// values, `[T, D]` each.
    fn group_gradients(
        &self,
        inputs: &HeadInputs,
        tiles: Vec<(ScoreTile, &mut [f32])>,
    ) -> [Vec<f32>; 2] {
        let (width, group) = (self.shape.head_dim, self.shape.group());
        let HeadInputs { q, for_scores, for_queries, v, dy, log_sums } = inputs;
        let [mut dk, mut dv] = [(); 2].map(|()| vec![0.0; self.shape.time * width]);
        let (mut weights, mut score_grads) = (Vec::new(), Vec::new());
        for (tile, dq) in tiles {
            let (height, columns) = (tile.queries.len() * group, tile.keys.len());
            let [q, dy] = [q, dy].map(|values| part(values, &tile.queries, group * width));
            weights.resize(height * columns, 0.0);
            score_grads.resize(height * columns, 0.0);
            self.scores(q, for_scores.of(&tile.keys), columns, &mut weights);
            let (a, v) = (rows(dy, width, 1.0), v.of(&tile.keys));
            self.product([height, width, columns], a, v, false, &mut score_grads);
            self.backend.kernel.dispatch(SoftmaxBackward {
                scores: &mut weights,
                score_grads: &mut score_grads,
                rows: self.tile_rows(&tile),
                log_sums: part(log_sums, &tile.queries, group),
            });
            let [dk, dv] = [&mut dk, &mut dv].map(|gradient| part_mut(gradient, &tile.keys, width));
            let [q, dy] = [q, dy].map(|values| MatrixB::Floats(values, OperandLayout::KOuter));
            // Other tiles see the same keys: `dv` and `dk` are added to, a tile's `dq` is its own.
            let a = transposed(&weights, columns, 1.0);
            self.product([columns, height, width], a, dy, true, dv);
            let a = transposed(&score_grads, columns, self.scale);
            self.product([columns, height, width], a, q, true, dk);
            let a = rows(&score_grads, columns, self.scale);
            self.product([height, columns, width], a, for_queries.of(&tile.keys), false, dq);
        }
        [dk, dv]
    }
}

/// What the backward pass of one key head reads: rotated queries `[T, G, D]`, rotated keys for the scores
/// and for the gradients of queries, values, the gradient of the result, and what the forward pass kept.
struct HeadInputs<'a> {
    q: &'a [f32],
    for_scores: SharedOperand<'a>,
    for_queries: SharedOperand<'a>,
    v: SharedOperand<'a>,
    dy: &'a [f32],
    log_sums: &'a [f32],
}

/// The sums of two groups.
fn add_both(mut sums: [Vec<f32>; 2], more: [Vec<f32>; 2]) -> [Vec<f32>; 2] {
    for (sum, more) in sums.iter_mut().zip(more) {
        sum.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
    }
    sums
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

/// A matrix times `scale` as matrix A.
fn rows(values: &[f32], stride: usize, scale: f32) -> MatrixA<'_> {
    MatrixA { values, layout: OperandLayout::KInner, stride, first: 0, scale: Scale::All(scale) }
}

/// Its transpose.
fn transposed(values: &[f32], stride: usize, scale: f32) -> MatrixA<'_> {
    MatrixA { values, layout: OperandLayout::KOuter, stride, first: 0, scale: Scale::All(scale) }
}

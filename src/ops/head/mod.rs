//! What the losses over logits share: the head wherever it lies, the trained tokens a chunk at a time,
//! and the products that lead from hidden states to logits and back.
//!
//! ```text
//!              tokens →  (512 a chunk)
//!            ┌────────┐
//!  words     │ block 0│   logits [words, tokens] of one block at a time; a loss makes their gradients of
//!    ↓       ├────────┤   them, and these become dhidden and dhead before the next block
//!  (512 a    │ block 1│
//!   block)   ├────────┤
//!            │   …    │
//! ```
//!
//! Tokens that are not trained cost nothing. Layout of sums: gradients of hidden states block after
//! block, gradients of the head chunk after chunk.

mod columns;
mod exponentials;

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use bitnet_kernels::{Kernel, MatrixA, MatrixB, OperandLayout, PackedB, Scale, Size};
use burn::backend::TensorMetadata;
use burn::tensor::Shape;
use burn_flex::FlexTensor;

use crate::latents::{Latents, LatentsView};
use crate::ops::OpBackend;
use crate::ops::native::{floats, in_rows, into_floats, product, tensor, unwritten, zeros};

pub(super) use columns::ColumnMax;
pub(crate) use exponentials::logits_at_once;
pub(super) use exponentials::{Exponentials, LogitColumns, Scratch};

/// Tokens of a chunk.
pub(super) const TOKENS: usize = 512;

/// Words of a block: with a chunk's tokens their logits stay in a cache of 1 MB.
pub(super) const WORDS: usize = 512;

/// Logits of a chunk that are kept between two passes, 16 MB.
pub(super) const KEPT: usize = 1 << 22;

/// What the loss counts: for each token `[B·T]` its target and its weight.
#[derive(Clone, Debug)]
pub struct Targets {
    /// The id to predict.
    pub ids: Arc<Vec<i32>>,
    /// Factor of the token's loss; 0 where nothing is trained.
    pub weights: Arc<Vec<f32>>,
}

impl Targets {
    /// The trained tokens. A weight of NaN counts as trained, so that it reaches the loss.
    pub(crate) fn trained(&self) -> Vec<usize> {
        let trained =
            |&token: &usize| self.weights[token].abs() > 0.0 || self.weights[token].is_nan();
        (0..self.ids.len()).filter(trained).collect()
    }
}

/// A head that is not a tensor.
#[derive(Clone, Debug)]
pub(super) struct OutsideHead {
    pub(super) latents: Latents,
    /// Whether its gradient is asked for.
    pub(super) is_trained: bool,
}

/// A head `[V, C]`, wherever it is.
pub(super) struct HeadMatrix<'a> {
    rows: HeadRows<'a>,
    pub(super) vocab: usize,
    pub(super) width: usize,
    is_trained: bool,
}

enum HeadRows<'a> {
    Values(&'a [f32]),
    Outside(LatentsView<'a>),
}

impl<'a> HeadMatrix<'a> {
    /// The matrix outside, else the tensor.
    pub(super) fn new(tensor: &'a FlexTensor, outside: Option<&'a OutsideHead>) -> Self {
        if let Some(OutsideHead { latents, is_trained }) = outside {
            return Self { is_trained: *is_trained, ..Self::outside(latents) };
        }
        let [vocab, width] = tensor.shape().dims();
        Self { rows: HeadRows::Values(floats(tensor)), vocab, width, is_trained: true }
    }

    /// A matrix that is read only.
    pub(super) fn outside(latents: &'a Latents) -> Self {
        let view = latents.read();
        let [vocab, width] = view.shape();
        Self { rows: HeadRows::Outside(view), vocab, width, is_trained: false }
    }

    /// Some rows in f32, `[rows, C]`.
    fn get(&self, rows: &Range<usize>, kernel: Kernel) -> Cow<'_, [f32]> {
        let width = self.width;
        match &self.rows {
            HeadRows::Values(values) => {
                Cow::Borrowed(&values[rows.start * width..rows.end * width])
            }
            HeadRows::Outside(view) => {
                let mut values = vec![0.0; rows.len() * width];
                in_rows(&mut values, width, |first, out| {
                    let first = rows.start + first;
                    view.rows(first..first + out.len() / width, out, kernel);
                });
                Cow::Owned(values)
            }
        }
    }
}

/// Tokens on their way through a head.
pub(super) struct HeadPass<'a> {
    /// `[B·T, C]`
    pub(super) hidden: &'a [f32],
    pub(super) head: HeadMatrix<'a>,
    pub(super) backend: OpBackend,
    /// The trained ones.
    pub(super) trained: Vec<usize>,
}

/// The gradients of a chunk while they are made.
pub(super) struct ChunkGradients<'a> {
    /// Gradient of its hidden states, `[tokens, C]`.
    hidden: &'a mut [f32],
    /// Gradient of the head, `[V, C]`; empty if the head is not trained.
    head: &'a mut [f32],
    /// Whether chunks before have written that of the head.
    add: bool,
}

impl HeadPass<'_> {
    /// Hands `each` the chunks with their tokens, without gradients.
    pub(super) fn values(&self, mut each: impl FnMut(&HeadChunk, &[usize])) {
        for tokens in self.trained.chunks(TOKENS) {
            each(&HeadChunk::new(self, tokens, false), tokens);
        }
    }

    /// Hands `each` the chunks with their tokens, to fill in their gradients.
    pub(super) fn gradients(
        &self,
        mut each: impl FnMut(&HeadChunk, &[usize], &mut ChunkGradients),
    ) -> SavedHead {
        let HeadMatrix { vocab, width, is_trained, .. } = self.head;
        let mut dhidden = zeros(self.hidden.len());
        let elements = if is_trained { vocab * width } else { 0 };
        // The first chunk writes all of it.
        let mut dhead = if self.trained.is_empty() { zeros(elements) } else { unwritten(elements) };
        // Only trained tokens: those without weight (prompts, padding) have no loss and meet no
        // head.
        for (index, tokens) in self.trained.chunks(TOKENS).enumerate() {
            let mut found = vec![0.0; tokens.len() * width];
            let (hidden, head, add) = (&mut *found, &mut *dhead, index > 0);
            let mut gradients = ChunkGradients { hidden, head, add };
            each(&HeadChunk::new(self, tokens, is_trained), tokens, &mut gradients);
            // Trained tokens were gathered for the products; the rows of all others stay 0.
            for (token, found) in tokens.iter().zip(found.chunks_exact(width)) {
                dhidden[token * width..][..width].copy_from_slice(found);
            }
        }
        let shape = Shape::from(if is_trained { [vocab, width] } else { [0, 0] });
        let rows = dhidden.len() / width;
        SavedHead {
            hidden: tensor(dhidden, Shape::from([rows, width])),
            head: tensor(dhead, shape),
        }
    }
}

/// Both gradients, for a gradient of the loss of 1.
#[derive(Clone, Debug)]
pub(crate) struct SavedHead {
    hidden: FlexTensor,
    head: FlexTensor,
}

impl SavedHead {
    /// The same with hidden states of this shape.
    pub(super) fn shaped(self, shape: Shape) -> Self {
        Self { hidden: tensor(into_floats(self.hidden), shape), ..self }
    }

    /// The gradients for another gradient of the loss.
    pub(super) fn scaled(self, factor: f32) -> [FlexTensor; 2] {
        [self.hidden, self.head].map(|mut gradient| {
            // Nearly always 1.
            if (factor - 1.0).abs() > 0.0 {
                gradient.storage_mut::<f32>().iter_mut().for_each(|value| *value *= factor);
            }
            gradient
        })
    }
}

/// A chunk of tokens at the head.
pub(super) struct HeadChunk<'a> {
    head: &'a HeadMatrix<'a>,
    pub(super) backend: OpBackend,
    pub(super) count: usize,
    /// Hidden states `[tokens, C]` packed as right operands: of the logits, and of the head's
    /// gradient where one is asked for.
    to_logits: PackedB,
    to_head: Option<PackedB>,
}

impl<'a> HeadChunk<'a> {
    pub(super) fn new(pass: &'a HeadPass<'a>, tokens: &[usize], of_head: bool) -> Self {
        let &HeadPass { hidden, ref head, backend, .. } = pass;
        let (width, count) = (head.width, tokens.len());
        let mut rows = Vec::with_capacity(count * width);
        for token in tokens {
            rows.extend_from_slice(&hidden[token * width..][..width]);
        }
        let packed = |layout: OperandLayout, depth: usize, columns: usize| {
            let rows = MatrixB::Floats(&rows, layout);
            PackedB::new(backend.kernel, backend.operands, depth, columns, rows)
        };
        // The hidden states of a chunk are packed once and meet every block of words:
        //
        //    logits [words, tokens] = head [words, C] · hiddenᵀ [C, tokens]      to_logits
        //    dhead  [words, C]     += dlogits [words, tokens] · hidden            to_head
        let to_logits = packed(OperandLayout::KInner, width, count);
        let to_head = of_head.then(|| packed(OperandLayout::KOuter, count, width));
        Self { head, backend, count, to_logits, to_head }
    }

    pub(super) fn vocab(&self) -> usize {
        self.head.vocab
    }

    pub(super) fn blocks(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let vocab = self.vocab();
        (0..vocab).step_by(WORDS).map(move |first| first..vocab.min(first + WORDS))
    }

    /// Logits `[words, tokens]`.
    pub(super) fn logits(&self, words: &Range<usize>, logits: &mut [f32]) {
        let size = Size { rows: words.len(), depth: self.head.width, columns: self.count };
        let rows = self.head.get(words, self.backend.kernel);
        let a = matrix_a(&rows, OperandLayout::KInner, self.head.width);
        product(self.backend, size, a, MatrixB::PackedB(&self.to_logits), false, logits);
    }

    /// Takes the gradients of the logits of a block, `[words, tokens]`, back to both operands. Blocks come
    /// in order.
    pub(super) fn back(&self, words: &Range<usize>, grads: &[f32], to: &mut ChunkGradients) {
        let (count, width, backend) = (self.count, self.head.width, self.backend);
        let size = Size { rows: count, depth: words.len(), columns: width };
        let rows = self.head.get(words, self.backend.kernel);
        let head_rows = MatrixB::Floats(&rows, OperandLayout::KOuter);
        let by_token = matrix_a(grads, OperandLayout::KOuter, count);
        // The first block overwrites, later ones add: words in ascending order, whatever the
        // threads.
        product(backend, size, by_token, head_rows, words.start > 0, to.hidden);
        let Some(to_head) = &self.to_head else { return };
        let size = Size { rows: words.len(), depth: count, columns: width };
        let dhead = &mut to.head[words.start * width..words.end * width];
        let by_word = matrix_a(grads, OperandLayout::KInner, count);
        product(backend, size, by_word, MatrixB::PackedB(to_head), to.add, dhead);
    }
}

fn matrix_a(values: &[f32], layout: OperandLayout, stride: usize) -> MatrixA<'_> {
    MatrixA { values, layout, stride, first: 0, scale: Scale::All(1.0) }
}

/// The targets of a chunk.
pub(super) struct ChunkTargets {
    pub(super) ids: Vec<usize>,
    pub(super) weights: Vec<f32>,
}

impl ChunkTargets {
    pub(super) fn new(targets: &Targets, tokens: &[usize]) -> Self {
        let ids = tokens.iter().map(|&at| targets.ids[at] as usize).collect();
        let weights = tokens.iter().map(|&at| targets.weights[at]).collect();
        Self { ids, weights }
    }

    /// Where the logits of the targets in a block are, `[words, tokens]`: the column, and the place.
    pub(super) fn within<'b>(
        &'b self,
        words: &'b Range<usize>,
    ) -> impl Iterator<Item = (usize, usize)> + 'b {
        let count = self.ids.len();
        let hit = move |(column, id): (usize, &usize)| {
            words.contains(id).then(|| (column, (id - words.start) * count + column))
        };
        self.ids.iter().enumerate().filter_map(hit)
    }

    /// `Σ weight · loss`
    pub(super) fn weighted(&self, losses: impl Iterator<Item = f64>) -> f64 {
        self.weights.iter().zip(losses).map(|(weight, loss)| f64::from(*weight) * loss).sum()
    }
}

/// A sum as a tensor of one element.
pub(super) fn scalar(value: f64) -> FlexTensor {
    tensor(vec![value as f32], Shape::from([1]))
}

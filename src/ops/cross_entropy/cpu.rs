//! Cross-entropy on the CPU: logits exist for a chunk of tokens and a block of words at a time.
//! Tokens that are not trained cost nothing.
//!
//! ```text
//!              tokens →  (512 a chunk)
//!            ┌────────┐
//!  words     │ block 0│   pass 1, down the blocks: the largest logit and Σ exp of each column, the
//!    ↓       ├────────┤           sum rescaled when a larger logit comes (arXiv 1805.02867)
//!  (512 a    │ block 1│   pass 2, down the blocks: exponentials → logit gradients → dhidden, dhead
//!   block)   ├────────┤
//!            │   …    │
//! ```
//!
//! Between the passes the exponentials are kept where they are few. With a large vocabulary the
//! logits are computed again, which is faster than reading them back from memory.
//!
//! Layout of sums: exponentials of 64 words in f32, these sums in f64 from the first word to the
//! last; gradients of hidden states block after block, gradients of the head chunk after chunk.

use std::borrow::Cow;
use std::ops::Range;

use bitnet_kernels::{MatrixA, MatrixB, OperandLayout, PackedB, Scale, Size};
use burn::backend::TensorMetadata;
use burn::tensor::Shape;
use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::Targets;
use super::columns::{ColumnExp, ColumnMax, ColumnScale};
use crate::latents::{Latents, LatentsView};
use crate::ops::OpBackend;
use crate::ops::native::{NativeOp, floats, in_rows, product, tensor};

/// Tokens of a chunk.
const TOKENS: usize = 512;

/// Words of a block: with a chunk's tokens their logits stay in a cache of 1 MB.
const WORDS: usize = 512;

/// Words whose exponentials are summed in f32 before they join the f64 sum.
const SUMMED_WORDS: usize = 64;

/// Exponentials that are kept between the passes, 16 MB.
const KEPT: usize = 1 << 22;

/// Logits in memory at the same time, for estimates of a run's memory.
pub(crate) fn logits_at_once(words: usize, tokens: usize) -> usize {
    let tokens = tokens.min(TOKENS);
    if words * tokens <= KEPT { words * tokens } else { words.min(WORDS) * tokens }
}

#[derive(Clone, Debug)]
pub(super) struct NativeCrossEntropy {
    pub(super) targets: Targets,
    /// The head, where it is no tensor.
    pub(super) outside: Option<OutsideHead>,
    pub(super) backend: OpBackend,
}

/// A head that is no tensor.
#[derive(Clone, Debug)]
pub(super) struct OutsideHead {
    pub(super) latents: Latents,
    /// Whether its gradient is asked for.
    pub(super) is_trained: bool,
}

/// The rows of a head, wherever they are.
enum HeadRows<'a> {
    Values(&'a [f32]),
    Outside(LatentsView<'a>),
}

impl HeadRows<'_> {
    /// Some rows in f32, `[rows, C]`.
    fn get(&self, rows: Range<usize>, width: usize) -> Cow<'_, [f32]> {
        match self {
            Self::Values(values) => Cow::Borrowed(&values[rows.start * width..rows.end * width]),
            Self::Outside(view) => {
                let mut values = vec![0.0; rows.len() * width];
                in_rows(&mut values, width, |first, out| {
                    let first = rows.start + first;
                    view.rows(first..first + out.len() / width, out);
                });
                Cow::Owned(values)
            }
        }
    }
}

/// Both gradients, for a gradient of the loss of 1.
#[derive(Clone, Debug)]
pub(crate) struct SavedCrossEntropy {
    hidden: FlexTensor,
    head: FlexTensor,
}

impl NativeOp<2> for NativeCrossEntropy {
    type Saved = SavedCrossEntropy;

    fn forward(self, [hidden, head]: [FlexTensor; 2]) -> (FlexTensor, SavedCrossEntropy) {
        let (hidden, head) = (hidden.to_contiguous(), head.to_contiguous());
        let mut pass = HeadPass::new(floats(&hidden), &head, &self, true);
        let loss = pass.run();
        let HeadPass { dhidden, dhead, vocab, width, .. } = pass;
        let shape = Shape::from(if dhead.is_empty() { [0, 0] } else { [vocab, width] });
        let (hidden, head) = (tensor(dhidden, hidden.shape()), tensor(dhead, shape));
        (scalar(loss), SavedCrossEntropy { hidden, head })
    }

    fn value(self, [hidden, head]: [FlexTensor; 2]) -> FlexTensor {
        let (hidden, head) = (hidden.to_contiguous(), head.to_contiguous());
        scalar(HeadPass::new(floats(&hidden), &head, &self, false).run())
    }

    fn backward(saved: SavedCrossEntropy, dy: FlexTensor) -> [FlexTensor; 2] {
        let factor = floats(&dy.to_contiguous())[0];
        let scaled = |mut gradient: FlexTensor| {
            // Nearly always 1.
            if (factor - 1.0).abs() > 0.0 {
                gradient.storage_mut::<f32>().iter_mut().for_each(|value| *value *= factor);
            }
            gradient
        };
        [scaled(saved.hidden), scaled(saved.head)]
    }
}

/// The log-probability of each target `[B·T]`, 0 where nothing is trained. It has no gradient.
#[derive(Clone, Debug)]
pub(super) struct NativeLogProbs(pub(super) NativeCrossEntropy);

impl NativeOp<2> for NativeLogProbs {
    type Saved = ();

    fn forward(self, inputs: [FlexTensor; 2]) -> (FlexTensor, ()) {
        (self.value(inputs), ())
    }

    fn value(self, [hidden, head]: [FlexTensor; 2]) -> FlexTensor {
        let (hidden, head) = (hidden.to_contiguous(), head.to_contiguous());
        let found = HeadPass::new(floats(&hidden), &head, &self.0, false).log_probs();
        let count = found.len();
        tensor(found, Shape::from([count]))
    }

    fn backward((): (), _: FlexTensor) -> [FlexTensor; 2] {
        unreachable!("its inputs are detached")
    }
}

fn scalar(value: f64) -> FlexTensor {
    tensor(vec![value as f32], Shape::from([1]))
}

/// All trained tokens on their way through the head.
struct HeadPass<'a> {
    hidden: &'a [f32],
    head: HeadRows<'a>,
    targets: &'a Targets,
    backend: OpBackend,
    vocab: usize,
    width: usize,
    /// Trained tokens.
    trained: Vec<usize>,
    /// Empty where no gradient is asked for.
    dhidden: Vec<f32>,
    dhead: Vec<f32>,
}

impl<'a> HeadPass<'a> {
    fn new(
        hidden: &'a [f32],
        head: &'a FlexTensor,
        op: &'a NativeCrossEntropy,
        gradients: bool,
    ) -> Self {
        let (targets, backend) = (&op.targets, op.backend);
        let width = hidden.len() / targets.ids.len();
        let (head, vocab, head_trained) = match &op.outside {
            Some(OutsideHead { latents, is_trained }) => {
                let view = latents.read();
                let vocab = view.shape()[0];
                (HeadRows::Outside(view), vocab, *is_trained)
            }
            None => (HeadRows::Values(floats(head)), head.shape()[0], true),
        };
        // A weight of NaN counts as trained, so that it reaches the loss.
        let trained =
            |&token: &usize| targets.weights[token].abs() > 0.0 || targets.weights[token].is_nan();
        let trained = (0..targets.ids.len()).filter(trained).collect();
        let zeros = |wanted: bool, count: usize| if wanted { vec![0.0; count] } else { Vec::new() };
        let dhidden = zeros(gradients, hidden.len());
        let dhead = zeros(gradients && head_trained, vocab * width);
        Self { hidden, head, targets, backend, vocab, width, trained, dhidden, dhead }
    }

    fn run(&mut self) -> f64 {
        let (mut loss, mut scratch) = (0.0, Scratch::default());
        let mut dhead = std::mem::take(&mut self.dhead);
        let mut dhidden = std::mem::take(&mut self.dhidden);
        for (index, tokens) in std::mem::take(&mut self.trained).chunks(TOKENS).enumerate() {
            let chunk = TokenChunk::new(self, tokens, !dhidden.is_empty(), !dhead.is_empty());
            let columns = chunk.first_pass(&mut scratch);
            loss += chunk.loss(&columns);
            if !dhidden.is_empty() {
                let width = &self.width;
                let found = chunk.second_pass(&mut scratch, &columns, index > 0, &mut dhead);
                for (token, found) in tokens.iter().zip(found.chunks_exact(*width)) {
                    dhidden[token * *width..][..*width].copy_from_slice(found);
                }
            }
        }
        (self.dhead, self.dhidden) = (dhead, dhidden);
        loss
    }

    fn log_probs(&self) -> Vec<f32> {
        let (mut found, mut scratch) = (vec![0.0; self.targets.ids.len()], Scratch::default());
        for tokens in self.trained.chunks(TOKENS) {
            let columns = TokenChunk::new(self, tokens, false, false).first_pass(&mut scratch);
            for (&token, loss) in tokens.iter().zip(columns.losses()) {
                found[token] = -loss as f32;
            }
        }
        found
    }
}

/// Memory that the chunks use one after the other.
#[derive(Default)]
struct Scratch {
    /// Exponentials of the first pass: `[V, tokens]` where they are kept, otherwise of one block.
    exponentials: Vec<f32>,
    /// What was subtracted from the logits of each block, `[blocks, tokens]`.
    shifts: Vec<f32>,
}

/// A chunk of tokens and what it needs of the pass.
struct TokenChunk<'a> {
    head: &'a HeadRows<'a>,
    backend: OpBackend,
    vocab: usize,
    width: usize,
    /// Hidden states `[tokens, C]` packed as right operands: of the logits, and of the head's
    /// gradient where one is asked for.
    to_logits: PackedB,
    to_head: Option<PackedB>,
    ids: Vec<usize>,
    weights: Vec<f32>,
    /// Whether the second pass finds the exponentials of the first in memory.
    keeps: bool,
}

/// What the first pass finds out about each token's logits.
struct LogitColumns {
    /// The largest.
    largest: Vec<f32>,
    /// `Σ exp(logit - largest)`
    sums: Vec<f64>,
    /// The target's logit.
    targets: Vec<f32>,
}

impl LogitColumns {
    /// `ln Σ exp(logit) - target's logit` of each token.
    fn losses(&self) -> impl Iterator<Item = f64> + '_ {
        let Self { largest, sums, targets } = self;
        let columns = sums.iter().zip(largest.iter().zip(targets));
        columns.map(|(sum, (largest, target))| sum.ln() + f64::from(*largest) - f64::from(*target))
    }
}

impl<'a> TokenChunk<'a> {
    fn new(pass: &'a HeadPass<'a>, tokens: &[usize], gradients: bool, of_head: bool) -> Self {
        let &HeadPass { hidden, ref head, targets, backend, vocab, width, .. } = pass;
        let keeps = gradients && vocab * tokens.len() <= KEPT;
        let mut rows = Vec::with_capacity(tokens.len() * width);
        for token in tokens {
            rows.extend_from_slice(&hidden[token * width..][..width]);
        }
        let packed = |layout: OperandLayout, depth: usize, columns: usize| {
            let rows = MatrixB::Floats(&rows, layout);
            PackedB::new(backend.kernel, backend.operands, depth, columns, rows)
        };
        let to_logits = packed(OperandLayout::KInner, width, tokens.len());
        let to_head = of_head.then(|| packed(OperandLayout::KOuter, tokens.len(), width));
        let ids = tokens.iter().map(|&at| targets.ids[at] as usize).collect();
        let weights = tokens.iter().map(|&at| targets.weights[at]).collect();
        Self { head, backend, vocab, width, to_logits, to_head, ids, weights, keeps }
    }

    fn count(&self) -> usize {
        self.ids.len()
    }

    fn blocks(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let vocab = self.vocab;
        (0..vocab).step_by(WORDS).map(move |first| first..vocab.min(first + WORDS))
    }

    /// Where the scratch memory holds the values of a block.
    fn in_scratch(&self, words: &Range<usize>) -> Range<usize> {
        let first = if self.keeps { words.start * self.count() } else { 0 };
        first..first + words.len() * self.count()
    }

    /// The rows of the head for a block.
    fn head_rows(&self, words: &Range<usize>) -> Cow<'_, [f32]> {
        self.head.get(words.clone(), self.width)
    }

    /// The columns whose target is in a block, and its row there.
    fn targets_in<'b>(
        &'b self,
        words: &'b Range<usize>,
    ) -> impl Iterator<Item = (usize, usize)> + 'b {
        let hit =
            |(column, id): (usize, &usize)| words.contains(id).then(|| (column, id - words.start));
        self.ids.iter().enumerate().filter_map(hit)
    }

    /// Logits `[words, tokens]`.
    fn logits(&self, words: &Range<usize>, logits: &mut [f32]) {
        let size = Size { rows: words.len(), depth: self.width, columns: self.count() };
        let rows = self.head_rows(words);
        let left = left(&rows, OperandLayout::KInner, self.width);
        product(self.backend, size, left, MatrixB::PackedB(&self.to_logits), false, logits);
    }

    fn first_pass(&self, scratch: &mut Scratch) -> LogitColumns {
        let count = self.count();
        let words = if self.keeps { self.vocab } else { WORDS.min(self.vocab) };
        scratch.exponentials.resize(scratch.exponentials.len().max(words * count), 0.0);
        scratch.shifts.clear();
        let mut largest = vec![f32::NEG_INFINITY; count];
        let (mut sums, mut targets) = (vec![0.0f64; count], vec![0.0; count]);
        for words in self.blocks() {
            let values = &mut scratch.exponentials[self.in_scratch(&words)];
            self.logits(&words, values);
            for (column, row) in self.targets_in(&words) {
                targets[column] = values[row * count + column];
            }
            let before = largest.clone();
            self.backend.kernel.dispatch(ColumnMax { values, largest: &mut largest });
            for (sum, (before, largest)) in sums.iter_mut().zip(before.iter().zip(&largest)) {
                // Only where the maximum rose: an infinity minus itself would be NaN.
                if before < largest {
                    *sum *= f64::from(before - largest).exp();
                }
            }
            for block_sums in self.exponentials(values, &largest) {
                sums.iter_mut().zip(block_sums).for_each(|(sum, more)| *sum += f64::from(more));
            }
            scratch.shifts.extend_from_slice(&largest);
        }
        LogitColumns { largest, sums, targets }
    }

    /// Logits become `exp(logit - shift)`. Returns the column sums of some words at a time, in order.
    fn exponentials(&self, values: &mut [f32], shift: &[f32]) -> Vec<Vec<f32>> {
        let kernel = self.backend.kernel;
        let chunks = values.par_chunks_mut(SUMMED_WORDS * self.count());
        chunks.map(|values| kernel.dispatch(ColumnExp { values, shift })).collect()
    }

    /// `Σ weight · loss`
    fn loss(&self, columns: &LogitColumns) -> f64 {
        let tokens = self.weights.iter().zip(columns.losses());
        tokens.map(|(weight, loss)| f64::from(*weight) * loss).sum()
    }

    /// Computes the gradients of the logits, and from them both results: adds to that of the head
    /// (or writes it, where not `add`) and returns that of the hidden states `[tokens, C]`.
    fn second_pass(
        &self,
        scratch: &mut Scratch,
        columns: &LogitColumns,
        add: bool,
        dhead: &mut [f32],
    ) -> Vec<f32> {
        let (count, width, backend) = (self.count(), self.width, self.backend);
        let mut dhidden = vec![0.0; count * width];
        for (block, words) in self.blocks().enumerate() {
            let grads = &mut scratch.exponentials[self.in_scratch(&words)];
            let mut shift = &scratch.shifts[block * count..][..count];
            if !self.keeps {
                shift = &columns.largest;
                self.logits(&words, grads);
                self.exponentials(grads, shift);
            }
            let factors = self.factors(columns, shift);
            in_rows(grads, count, |_, values| {
                backend.kernel.dispatch(ColumnScale { values, factors: &factors });
            });
            for (column, row) in self.targets_in(&words) {
                grads[row * count + column] -= self.weights[column];
            }
            let size = Size { rows: count, depth: words.len(), columns: width };
            let rows = self.head_rows(&words);
            let head_rows = MatrixB::Floats(&rows, OperandLayout::KOuter);
            let by_token = left(grads, OperandLayout::KOuter, count);
            product(backend, size, by_token, head_rows, block > 0, &mut dhidden);
            let Some(to_head) = &self.to_head else { continue };
            let size = Size { rows: words.len(), depth: count, columns: width };
            let dhead = &mut dhead[words.start * width..words.end * width];
            let by_word = left(grads, OperandLayout::KInner, count);
            product(backend, size, by_word, MatrixB::PackedB(to_head), add, dhead);
        }
        dhidden
    }

    /// What turns an exponential into `weight · p`.
    fn factors(&self, columns: &LogitColumns, shift: &[f32]) -> Vec<f32> {
        let LogitColumns { largest, sums, .. } = columns;
        let tokens = self.weights.iter().zip(sums).zip(largest.iter().zip(shift));
        let factor = |((weight, sum), (largest, shift)): ((&f32, &f64), (&f32, &f32))| {
            (f64::from(*weight) * f64::from(shift - largest).exp() / sum) as f32
        };
        tokens.map(factor).collect()
    }
}

fn left(values: &[f32], layout: OperandLayout, stride: usize) -> MatrixA<'_> {
    MatrixA { values, layout, stride, first: 0, scale: Scale::All(1.0) }
}

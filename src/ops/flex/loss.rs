//! Cross-entropy fused with the head: logits exist for some tokens and some words at a time, and the
//! gradients of hidden states and head are made in the forward pass (as arXiv 2410.10989 does).
//! Tokens that are not trained cost nothing.
//!
//! A first pass over the vocabulary finds each token's largest logit and sum of exponentials, as
//! they come (arXiv 1805.02867); a second makes the gradients. Between both the exponentials are
//! kept where they are few; with a large vocabulary the logits are computed again, which is faster
//! than reading them back and leaves no `[tokens, vocabulary]` floats.
//!
//! Logits lie transposed, `[V, tokens]`: each word's are one row, a token's softmax a column.
#![expect(clippy::inline_always, reason = "loops are compiled for each instruction set")]

use std::ops::Range;

use bitnet_kernels::attention::exp;
use bitnet_kernels::{Left, Order, Packed, Right, Scale, Size, Work};
use burn::backend::TensorMetadata;
use burn::tensor::Shape;
use burn_flex::{Flex, FlexTensor};
use rayon::prelude::*;

use crate::ops::autodiff::Saved;
use crate::ops::flex::{floats, in_rows, product, tensor};
use crate::ops::{Compute, Targets};

/// Tokens that pass the head together.
const TOKENS: usize = 512;

/// Words whose logits are made together: those of all tokens stay in a cache of 1 MB.
const WORDS: usize = 512;

/// Words whose exponentials are summed in f32 before they join the f64 sum.
const FEW: usize = 64;

/// Exponentials that are kept between both passes, 16 MB.
const KEPT: usize = 1 << 22;

/// Logits that are in memory at the same time, of so many tokens over so many words.
pub(crate) fn logits_at_once(words: usize, tokens: usize) -> usize {
    let tokens = tokens.min(TOKENS);
    if words * tokens <= KEPT { words * tokens } else { words.min(WORDS) * tokens }
}

/// What the loss keeps: both gradients for an upstream gradient of 1.
#[derive(Clone, Debug)]
pub(crate) struct SavedLoss {
    hidden: FlexTensor,
    head: FlexTensor,
}

/// The loss alone.
pub(crate) fn value(
    hidden: &FlexTensor,
    head: &FlexTensor,
    targets: &Targets,
    compute: Compute,
) -> FlexTensor {
    let (hidden, head) = (hidden.to_contiguous(), head.to_contiguous());
    let mut pass = Pass::new(floats(&hidden), floats(&head), targets, compute, false);
    scalar(pass.run())
}

pub(crate) fn forward(
    hidden: &FlexTensor,
    head: &FlexTensor,
    targets: &Targets,
    compute: Compute,
) -> (FlexTensor, SavedLoss) {
    let (hidden, head) = (hidden.to_contiguous(), head.to_contiguous());
    let mut pass = Pass::new(floats(&hidden), floats(&head), targets, compute, true);
    let loss = pass.run();
    let Pass { dhidden, dhead, .. } = pass;
    let saved =
        SavedLoss { hidden: tensor(dhidden, hidden.shape()), head: tensor(dhead, head.shape()) };
    (scalar(loss), saved)
}

impl Saved<Flex, 2> for SavedLoss {
    fn backward(self, dy: FlexTensor) -> [FlexTensor; 2] {
        let factor = floats(&dy.to_contiguous())[0];
        let scaled = |mut gradient: FlexTensor| {
            // Almost always it is 1.
            if (factor - 1.0).abs() > 0.0 {
                gradient.storage_mut::<f32>().iter_mut().for_each(|value| *value *= factor);
            }
            gradient
        };
        [scaled(self.hidden), scaled(self.head)]
    }
}

fn scalar(value: f64) -> FlexTensor {
    tensor(vec![value as f32], Shape::from([1]))
}

/// All trained tokens on their way through the head.
struct Pass<'a> {
    hidden: &'a [f32],
    head: &'a [f32],
    targets: &'a Targets,
    compute: Compute,
    width: usize,
    /// Trained tokens.
    trained: Vec<usize>,
    /// Empty where no gradient is asked for.
    dhidden: Vec<f32>,
    dhead: Vec<f32>,
}

impl<'a> Pass<'a> {
    fn new(
        hidden: &'a [f32],
        head: &'a [f32],
        targets: &'a Targets,
        compute: Compute,
        gradients: bool,
    ) -> Self {
        let width = hidden.len() / targets.ids.len();
        // A weight that is not 0, NaN too.
        let trained =
            |&token: &usize| targets.weights[token].abs() > 0.0 || targets.weights[token].is_nan();
        let trained = (0..targets.ids.len()).filter(trained).collect();
        let zeros = |count: usize| if gradients { vec![0.0; count] } else { Vec::new() };
        let (dhidden, dhead) = (zeros(hidden.len()), zeros(head.len()));
        Self { hidden, head, targets, compute, width, trained, dhidden, dhead }
    }

    fn run(&mut self) -> f64 {
        let gradients = !self.dhead.is_empty();
        let (mut loss, mut room) = (0.0, Room::default());
        for (index, tokens) in std::mem::take(&mut self.trained).chunks(TOKENS).enumerate() {
            let chunk = Chunk::new(self, tokens, gradients);
            let columns = chunk.columns(&mut room);
            loss += chunk.loss(&columns);
            if let Some(to_head) = &chunk.to_head {
                let Self { dhidden, dhead, width, .. } = self;
                let found = chunk.gradients(&mut room, &columns, to_head, index > 0, dhead);
                for (token, found) in tokens.iter().zip(found.chunks_exact(*width)) {
                    dhidden[token * *width..][..*width].copy_from_slice(found);
                }
            }
        }
        loss
    }
}

/// Memory that all chunks use, one after the other.
#[derive(Default)]
struct Room {
    /// Of the first pass: `[V, tokens]` where they are kept, else of one block of words.
    exponentials: Vec<f32>,
    /// What was taken off the logits of a block before, `[blocks, tokens]`.
    taken_off: Vec<f32>,
}

/// Some tokens, and what they need of the pass.
struct Chunk<'a> {
    head: &'a [f32],
    compute: Compute,
    width: usize,
    /// Hidden states `[tokens, C]` as right operands: of the logits, and of the head's gradient
    /// where one is asked for.
    to_logits: Packed,
    to_head: Option<Packed>,
    ids: Vec<usize>,
    weights: Vec<f32>,
    /// Whether a second pass finds the exponentials of the first.
    keeps: bool,
}

/// What is known of each token's logits.
struct Columns {
    /// The largest.
    largest: Vec<f32>,
    /// `Σ exp(logit - largest)`
    sums: Vec<f64>,
    /// The target's logit.
    targets: Vec<f32>,
}

impl<'a> Chunk<'a> {
    fn new(pass: &Pass<'a>, tokens: &[usize], gradients: bool) -> Self {
        let Pass { hidden, head, targets, compute, width, .. } = *pass;
        let keeps = gradients && head.len() / width * tokens.len() <= KEPT;
        let mut rows = Vec::with_capacity(tokens.len() * width);
        for token in tokens {
            rows.extend_from_slice(&hidden[token * width..][..width]);
        }
        let packed = |order: Order, depth: usize, columns: usize| {
            let rows = Right::Floats(&rows, order);
            Packed::new(compute.kernel, compute.operands, depth, columns, rows)
        };
        let to_logits = packed(Order::Inner, width, tokens.len());
        let to_head = gradients.then(|| packed(Order::Outer, tokens.len(), width));
        let ids = tokens.iter().map(|&at| targets.ids[at] as usize).collect();
        let weights = tokens.iter().map(|&at| targets.weights[at]).collect();
        Self { head, compute, width, to_logits, to_head, ids, weights, keeps }
    }

    fn count(&self) -> usize {
        self.ids.len()
    }

    fn vocab(&self) -> usize {
        self.head.len() / self.width
    }

    fn blocks(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let vocab = self.vocab();
        (0..vocab).step_by(WORDS).map(move |first| first..vocab.min(first + WORDS))
    }

    /// Where the values of some words are.
    fn places(&self, words: &Range<usize>) -> Range<usize> {
        let first = if self.keeps { words.start * self.count() } else { 0 };
        first..first + words.len() * self.count()
    }

    /// Rows of the head.
    fn words(&self, words: &Range<usize>) -> &'a [f32] {
        &self.head[words.start * self.width..words.end * self.width]
    }

    /// Columns whose target is one of some words, and its row among them.
    fn hits<'b>(&'b self, words: &'b Range<usize>) -> impl Iterator<Item = (usize, usize)> + 'b {
        let hit =
            |(column, id): (usize, &usize)| words.contains(id).then(|| (column, id - words.start));
        self.ids.iter().enumerate().filter_map(hit)
    }

    /// Logits `[words, tokens]`.
    fn logits(&self, words: &Range<usize>, logits: &mut [f32]) {
        let size = Size { rows: words.len(), depth: self.width, columns: self.count() };
        let left = left(self.words(words), Order::Inner, self.width);
        product(self.compute, size, left, Right::Packed(&self.to_logits), false, logits);
    }

    /// The first pass.
    fn columns(&self, room: &mut Room) -> Columns {
        let count = self.count();
        let words = if self.keeps { self.vocab() } else { WORDS.min(self.vocab()) };
        room.exponentials.resize(room.exponentials.len().max(words * count), 0.0);
        room.taken_off.clear();
        let mut largest = vec![f32::NEG_INFINITY; count];
        let (mut sums, mut targets) = (vec![0.0f64; count], vec![0.0; count]);
        for words in self.blocks() {
            let values = &mut room.exponentials[self.places(&words)];
            self.logits(&words, values);
            for (column, row) in self.hits(&words) {
                targets[column] = values[row * count + column];
            }
            let before = largest.clone();
            self.compute.kernel.compiled(Largest { values, largest: &mut largest });
            for (sum, (before, largest)) in sums.iter_mut().zip(before.iter().zip(&largest)) {
                // Not where nothing larger came, so that no infinity is taken off itself.
                if before < largest {
                    *sum *= f64::from(before - largest).exp();
                }
            }
            for found in self.exponentials(values, &largest) {
                sums.iter_mut().zip(found).for_each(|(sum, found)| *sum += f64::from(found));
            }
            room.taken_off.extend_from_slice(&largest);
        }
        Columns { largest, sums, targets }
    }

    /// Logits become `exp(logit - taken off)`; the sums of the columns of some rows at a time come
    /// back, in order.
    fn exponentials(&self, values: &mut [f32], taken_off: &[f32]) -> Vec<Vec<f32>> {
        let kernel = self.compute.kernel;
        let few = values.par_chunks_mut(FEW * self.count());
        few.map(|values| kernel.compiled(Exponentials { values, taken_off })).collect()
    }

    /// `Σ weight · (ln Σ exp(logit) - target's logit)`
    fn loss(&self, columns: &Columns) -> f64 {
        let Columns { largest, sums, targets } = columns;
        let places = self.weights.iter().zip(sums).zip(largest.iter().zip(targets));
        let loss = |((weight, sum), (largest, target)): ((&f32, &f64), (&f32, &f32))| {
            f64::from(*weight) * (sum.ln() + f64::from(*largest) - f64::from(*target))
        };
        places.map(loss).sum()
    }

    /// The second pass: `(p - 1 at the target) · weight`, and from there both gradients. Returns
    /// that of the hidden states `[tokens, C]`.
    fn gradients(
        &self,
        room: &mut Room,
        columns: &Columns,
        to_head: &Packed,
        add: bool,
        dhead: &mut [f32],
    ) -> Vec<f32> {
        let (count, width, compute) = (self.count(), self.width, self.compute);
        let mut found = vec![0.0; count * width];
        for (block, words) in self.blocks().enumerate() {
            let slopes = &mut room.exponentials[self.places(&words)];
            let mut taken_off = &room.taken_off[block * count..][..count];
            if !self.keeps {
                taken_off = &columns.largest;
                self.logits(&words, slopes);
                self.exponentials(slopes, taken_off);
            }
            let factors = self.factors(columns, taken_off);
            in_rows(slopes, count, |_, slopes| {
                compute.kernel.compiled(ScaleColumns { values: slopes, factors: &factors });
            });
            for (column, row) in self.hits(&words) {
                slopes[row * count + column] -= self.weights[column];
            }
            let size = Size { rows: count, depth: words.len(), columns: width };
            let right = Right::Floats(self.words(&words), Order::Outer);
            let slope_rows = left(slopes, Order::Outer, count);
            product(compute, size, slope_rows, right, block > 0, &mut found);
            let size = Size { rows: words.len(), depth: count, columns: width };
            let right = Right::Packed(to_head);
            let places = &mut dhead[words.start * width..words.end * width];
            product(compute, size, left(slopes, Order::Inner, count), right, add, places);
        }
        found
    }

    /// What makes `weight · p` of an exponential.
    fn factors(&self, columns: &Columns, taken_off: &[f32]) -> Vec<f32> {
        let Columns { largest, sums, .. } = columns;
        let places = self.weights.iter().zip(sums).zip(largest.iter().zip(taken_off));
        let factor = |((weight, sum), (largest, taken_off)): ((&f32, &f64), (&f32, &f32))| {
            (f64::from(*weight) * f64::from(taken_off - largest).exp() / sum) as f32
        };
        places.map(factor).collect()
    }
}

fn left(values: &[f32], order: Order, stride: usize) -> Left<'_> {
    Left { values, order, stride, first: 0, scale: Scale::All(1.0) }
}

/// The largest of each column and what was there before.
struct Largest<'a> {
    values: &'a [f32],
    largest: &'a mut [f32],
}

impl Work for Largest<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for row in self.values.chunks_exact(self.largest.len()) {
            for (largest, value) in self.largest.iter_mut().zip(row) {
                *largest = if *value > *largest { *value } else { *largest };
            }
        }
    }
}

struct Exponentials<'a> {
    values: &'a mut [f32],
    taken_off: &'a [f32],
}

impl Work for Exponentials<'_> {
    type Output = Vec<f32>;

    /// Sums of the columns.
    #[inline(always)]
    fn run(self) -> Vec<f32> {
        let mut sums = vec![0.0; self.taken_off.len()];
        for row in self.values.chunks_exact_mut(self.taken_off.len()) {
            for ((value, taken_off), sum) in row.iter_mut().zip(self.taken_off).zip(&mut sums) {
                *value = exp(*value - taken_off);
                *sum += *value;
            }
        }
        sums
    }
}

struct ScaleColumns<'a> {
    values: &'a mut [f32],
    factors: &'a [f32],
}

impl Work for ScaleColumns<'_> {
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

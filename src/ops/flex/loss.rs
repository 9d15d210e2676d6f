//! Cross-entropy fused with the head: logits exist for some tokens at a time, and the gradients of
//! hidden states and head are made while they do (as arXiv 2410.10989 does), so that a vocabulary of
//! 128k costs no `[tokens, vocabulary]` floats and nothing is computed twice. Tokens that are not
//! trained cost nothing.
//!
//! Logits lie transposed, `[V, tokens]`: each word's are one row, a token's softmax a column.
#![expect(clippy::inline_always, reason = "loops are compiled for each instruction set")]

use bitnet_kernels::attention::exp;
use bitnet_kernels::{Left, Order, Right, Scale, Size, Work};
use burn::backend::TensorMetadata;
use burn::tensor::Shape;
use burn_flex::{Flex, FlexTensor};

use crate::ops::autodiff::Saved;
use crate::ops::flex::{floats, in_rows, product, tensor};
use crate::ops::{Compute, Targets};

/// Tokens whose logits exist at the same time.
const TOKENS: usize = 256;

/// Rows of the vocabulary whose exponentials are summed in f32 before they join the f64 sum.
const ROW_BLOCK: usize = 64;

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

/// One pass over all trained tokens.
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
        let (vocab, width) = (self.head.len() / self.width, self.width);
        let mut logits = vec![0.0; vocab * TOKENS.min(self.trained.len())];
        let (mut rows, mut loss) = (Vec::new(), 0.0);
        for tokens in std::mem::take(&mut self.trained).chunks(TOKENS) {
            let count = tokens.len();
            rows.clear();
            for token in tokens {
                rows.extend_from_slice(&self.hidden[token * width..][..width]);
            }
            let logits = &mut logits[..vocab * count];
            let left = left(self.head, Order::Inner, width);
            let size = Size { rows: vocab, depth: width, columns: count };
            product(self.compute, size, left, Right::Floats(&rows, Order::Inner), false, logits);
            let ids: Vec<usize> = tokens.iter().map(|&at| self.targets.ids[at] as usize).collect();
            let weights: Vec<f32> = tokens.iter().map(|&at| self.targets.weights[at]).collect();
            let columns = softmax(self.compute, logits, &ids);
            for (column, weight) in columns.iter().zip(&weights) {
                loss += f64::from(*weight) * (column.log_sum - f64::from(column.target));
            }
            if !self.dhead.is_empty() {
                self.gradients(tokens, &rows, logits, &ids, &weights, &columns);
            }
        }
        loss
    }

    /// From exponentials to `(p - 1 at the target) · weight`, and from there to both gradients.
    fn gradients(
        &mut self,
        tokens: &[usize],
        rows: &[f32],
        slopes: &mut [f32],
        ids: &[usize],
        weights: &[f32],
        columns: &[Column],
    ) {
        let (count, width, compute) = (tokens.len(), self.width, self.compute);
        let vocab = slopes.len() / count;
        let factor = |(column, weight): (&Column, &f32)| (f64::from(*weight) / column.sum) as f32;
        let factors: Vec<f32> = columns.iter().zip(weights).map(factor).collect();
        in_rows(slopes, count, |_, slopes| {
            compute.kernel.compiled(ScaleColumns { values: slopes, factors: &factors });
        });
        for (column, (id, weight)) in ids.iter().zip(weights).enumerate() {
            slopes[id * count + column] -= weight;
        }
        let mut found = vec![0.0; rows.len()];
        let size = Size { rows: count, depth: vocab, columns: width };
        let right = Right::Floats(self.head, Order::Outer);
        product(compute, size, left(slopes, Order::Outer, count), right, false, &mut found);
        for (token, found) in tokens.iter().zip(found.chunks_exact(width)) {
            self.dhidden[token * width..][..width].copy_from_slice(found);
        }
        let size = Size { rows: vocab, depth: count, columns: width };
        let right = Right::Floats(rows, Order::Outer);
        product(compute, size, left(slopes, Order::Inner, count), right, true, &mut self.dhead);
    }
}

fn left(values: &[f32], order: Order, stride: usize) -> Left<'_> {
    Left { values, order, stride, first: 0, scale: Scale::All(1.0) }
}

/// What is known of one token's logits.
struct Column {
    /// `Σ exp(logit - largest)`
    sum: f64,
    /// `ln Σ exp(logit)`
    log_sum: f64,
    /// The target's logit.
    target: f32,
}

/// Logits `[V, tokens]` become `exp(logit - largest of the token)`.
fn softmax(compute: Compute, logits: &mut [f32], ids: &[usize]) -> Vec<Column> {
    let count = ids.len();
    let targets: Vec<f32> =
        ids.iter().enumerate().map(|(column, id)| logits[id * count + column]).collect();
    let largest = compute.kernel.compiled(Largest { values: logits, count });
    let mut sums = vec![0.0f64; count];
    for block in logits.chunks_mut(ROW_BLOCK * count) {
        let found = compute.kernel.compiled(Exponentials { values: block, largest: &largest });
        sums.iter_mut().zip(found).for_each(|(sum, found)| *sum += f64::from(found));
    }
    let column = |((sum, largest), target): ((f64, &f32), f32)| Column {
        sum,
        log_sum: sum.ln() + f64::from(*largest),
        target,
    };
    sums.into_iter().zip(&largest).zip(targets).map(column).collect()
}

/// The largest of each column.
struct Largest<'a> {
    values: &'a [f32],
    count: usize,
}

impl Work for Largest<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn run(self) -> Vec<f32> {
        let mut largest = vec![f32::NEG_INFINITY; self.count];
        for row in self.values.chunks_exact(self.count) {
            for (largest, value) in largest.iter_mut().zip(row) {
                *largest = if *value > *largest { *value } else { *largest };
            }
        }
        largest
    }
}

struct Exponentials<'a> {
    values: &'a mut [f32],
    largest: &'a [f32],
}

impl Work for Exponentials<'_> {
    type Output = Vec<f32>;

    /// Sums of the columns.
    #[inline(always)]
    fn run(self) -> Vec<f32> {
        let mut sums = vec![0.0; self.largest.len()];
        for row in self.values.chunks_exact_mut(self.largest.len()) {
            for ((value, largest), sum) in row.iter_mut().zip(self.largest).zip(&mut sums) {
                *value = exp(*value - largest);
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

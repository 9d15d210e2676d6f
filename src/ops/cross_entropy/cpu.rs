//! Cross-entropy on the CPU: logits exist for a chunk of tokens and a block of words at a time
//! (`ops::head`), and their softmax in two passes over the head.

use burn::backend::TensorMetadata;
use burn::tensor::Shape;
use burn_flex::FlexTensor;

use crate::ops::OpBackend;
use crate::ops::head::{
    ChunkTargets, Exponentials, HeadChunk, HeadMatrix, HeadPass, LogitColumns, OutsideHead,
    SavedHead, Scratch, Targets, scalar,
};
use crate::ops::native::{NativeOp, floats, tensor};

#[derive(Clone, Debug)]
pub(super) struct NativeCrossEntropy {
    pub(super) targets: Targets,
    /// The head, where it is not a tensor.
    pub(super) outside: Option<OutsideHead>,
    pub(super) backend: OpBackend,
}

impl NativeCrossEntropy {
    fn pass<'a>(&'a self, hidden: &'a FlexTensor, head: &'a FlexTensor) -> HeadPass<'a> {
        let head = HeadMatrix::new(head, self.outside.as_ref());
        let (hidden, trained) = (floats(hidden), self.targets.trained());
        HeadPass { hidden, head, backend: self.backend, trained }
    }

    /// Hands `each` the trained tokens with their losses, a chunk at a time.
    fn losses(
        &self,
        [hidden, head]: [FlexTensor; 2],
        mut each: impl FnMut(&[usize], &ChunkTargets, Vec<f64>),
    ) {
        let (hidden, head) = (hidden.to_contiguous(), head.to_contiguous());
        let mut scratch = Scratch::default();
        self.pass(&hidden, &head).values(|chunk, tokens| {
            let targets = ChunkTargets::new(&self.targets, tokens);
            let (_, losses) =
                first_pass(&mut Exponentials::new(chunk, &mut scratch, false), chunk, &targets);
            each(tokens, &targets, losses);
        });
    }
}

impl NativeOp<2> for NativeCrossEntropy {
    type Saved = SavedHead;

    fn forward(self, [hidden, head]: [FlexTensor; 2]) -> (FlexTensor, SavedHead) {
        let (hidden, head) = (hidden.to_contiguous(), head.to_contiguous());
        // Both gradients are made on the way forward, while a block of logits is in the cache: no
        // tensor `[B, T, V]` ever exists, and the backward pass only multiplies by `dy`.
        let (mut loss, mut scratch) = (0.0, Scratch::default());
        let saved = self.pass(&hidden, &head).gradients(|chunk, tokens, gradients| {
            let targets = &ChunkTargets::new(&self.targets, tokens);
            let mut passes = Exponentials::new(chunk, &mut scratch, true);
            let (columns, losses) = first_pass(&mut passes, chunk, targets);
            loss += targets.weighted(losses.into_iter());
            let factors = |shift: &[f32]| factors(targets, &columns, shift);
            // `dlogit = weight · (p - 1 at the target)`: `factors` makes `weight · p`, this takes
            // the 1 off.
            let at_target = |words: &_, grads: &mut [f32]| {
                for (column, place) in targets.within(words) {
                    grads[place] -= targets.weights[column];
                }
            };
            passes.second_pass(&columns, |_, _| {}, factors, at_target, gradients);
        });
        (scalar(loss), saved.shaped(hidden.shape()))
    }

    fn value(self, inputs: [FlexTensor; 2]) -> FlexTensor {
        let mut loss = 0.0;
        self.losses(inputs, |_, targets, losses| loss += targets.weighted(losses.into_iter()));
        scalar(loss)
    }

    fn backward(saved: SavedHead, dy: FlexTensor) -> [FlexTensor; 2] {
        // The loss is one number, and so is its gradient.
        saved.scaled(floats(&dy.to_contiguous())[0])
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

    fn value(self, inputs: [FlexTensor; 2]) -> FlexTensor {
        let count = self.0.targets.ids.len();
        let mut found = vec![0.0; count];
        self.0.losses(inputs, |tokens, _, losses| {
            for (&token, loss) in tokens.iter().zip(losses) {
                found[token] = -loss as f32;
            }
        });
        tensor(found, Shape::from([count]))
    }

    fn backward((): (), _: FlexTensor) -> [FlexTensor; 2] {
        unreachable!("its inputs are detached")
    }
}

/// The softmax of each token, and its loss `ln Σ exp(logit) - target's logit`.
fn first_pass(
    passes: &mut Exponentials,
    chunk: &HeadChunk,
    targets: &ChunkTargets,
) -> (LogitColumns, Vec<f64>) {
    let mut of_targets = vec![0.0; chunk.count];
    let columns = passes.first_pass(|words, logits| {
        for (column, place) in targets.within(words) {
            of_targets[column] = logits[place];
        }
    });
    // In f64: the two are nearly equal where a token is nearly certain.
    let losses = columns.log_sums().zip(of_targets).map(|(sum, target)| sum - f64::from(target));
    let losses = losses.collect();
    (columns, losses)
}

/// What turns an exponential into `weight · p`.
fn factors(targets: &ChunkTargets, columns: &LogitColumns, shift: &[f32]) -> Vec<f32> {
    let LogitColumns { largest, sums } = columns;
    let tokens = targets.weights.iter().zip(sums).zip(largest.iter().zip(shift));
    let factor = |((weight, sum), (largest, shift)): ((&f32, &f64), (&f32, &f32))| {
        // `sum` has the final maximum subtracted, a kept exponential perhaps an earlier one.
        (f64::from(*weight) * f64::from(shift - largest).exp() / sum) as f32
    };
    tokens.map(factor).collect()
}

//! Distillation on the CPU: logits of student and teacher exist for a chunk of tokens and a block of
//! words at a time (`ops::head`).

use std::sync::Arc;

use burn::backend::TensorMetadata;
use burn::tensor::Shape;
use burn_flex::FlexTensor;

use super::top::TopChunk;
use super::whole::WholeChunk;
use super::{DistillationTerms, TokenLosses, TopOutcomes};
use crate::latents::Latents;
use crate::ops::OpBackend;
use crate::ops::head::{
    ChunkGradients, ChunkTargets, HeadChunk, HeadMatrix, HeadPass, OutsideHead, SavedHead, Scratch,
    Targets,
};
use crate::ops::native::{NativeOp, floats, tensor};

#[derive(Clone, Debug)]
pub(super) struct NativeDistillation {
    pub(super) targets: Targets,
    /// The student's head, where it is not a tensor.
    pub(super) outside: Option<OutsideHead>,
    pub(super) teacher: NativeTeacher,
    pub(super) terms: DistillationTerms,
    pub(super) backend: OpBackend,
}

#[derive(Clone, Debug)]
pub(super) enum NativeTeacher {
    /// Final hidden states `[B·T, C']` and head `[V, C']`.
    Whole {
        hidden: Arc<Vec<f32>>,
        head: Latents,
    },
    Top(TopOutcomes),
}

/// Memory that the chunks use one after the other.
#[derive(Default)]
struct Memory {
    scratch: Scratch,
    student: Vec<f32>,
    teacher: Vec<f32>,
}

impl NativeDistillation {
    /// The weighted sums of both losses, and the gradients where they are asked for.
    fn run(
        &self,
        hidden: &FlexTensor,
        head: &FlexTensor,
        back: bool,
    ) -> ([f64; 2], Option<SavedHead>) {
        let (hidden, trained) = (floats(hidden), self.targets.trained());
        let head = HeadMatrix::new(head, self.outside.as_ref());
        let pass = HeadPass { hidden, head, backend: self.backend, trained };
        let teacher = match &self.teacher {
            NativeTeacher::Whole { hidden, head } => {
                // Chunks are cut by the student's tokens, so the teacher needs no list of its own.
                let (head, trained) = (HeadMatrix::outside(head), Vec::new());
                assert_eq!(head.vocab, pass.head.vocab, "both models have the same words");
                Some(HeadPass { hidden, head, backend: self.backend, trained })
            }
            NativeTeacher::Top(_) => None,
        };
        let (mut sums, mut memory) = ([0.0; 2], Memory::default());
        let mut chunk = |chunk: &HeadChunk, tokens: &[usize], to: Option<&mut ChunkGradients>| {
            let targets = ChunkTargets::new(&self.targets, tokens);
            let teacher = teacher.as_ref().map(|pass| HeadChunk::new(pass, tokens, false));
            let losses = self.chunk(chunk, teacher.as_ref(), (tokens, &targets), &mut memory, to);
            sums[0] += targets.weighted(losses.cross_entropy.into_iter());
            sums[1] += targets.weighted(losses.divergence.into_iter());
        };
        let saved = if back {
            Some(pass.gradients(|student, tokens, to| chunk(student, tokens, Some(to))))
        } else {
            pass.values(|student, tokens| chunk(student, tokens, None));
            None
        };
        (sums, saved)
    }

    fn chunk(
        &self,
        student: &HeadChunk,
        teacher: Option<&HeadChunk>,
        (tokens, targets): (&[usize], &ChunkTargets),
        memory: &mut Memory,
        to: Option<&mut ChunkGradients>,
    ) -> TokenLosses {
        let terms = self.terms;
        match (&self.teacher, teacher) {
            (NativeTeacher::Top(outcomes), _) => {
                let chunk = TopChunk::new(student, targets, outcomes, tokens, terms);
                chunk.run(&mut memory.scratch, to)
            }
            (NativeTeacher::Whole { .. }, teacher) => {
                let teacher = teacher.expect("a whole teacher has a chunk");
                let chunk = WholeChunk { student, teacher, targets, terms };
                chunk.run((&mut memory.student, &mut memory.teacher), to)
            }
        }
    }

    fn losses(&self, [cross_entropy, divergence]: [f64; 2]) -> FlexTensor {
        let DistillationTerms { cross_entropy: a, logits: b, .. } = self.terms;
        let loss = a * cross_entropy + b * divergence;
        let values = [loss, cross_entropy, divergence].map(|value| value as f32);
        tensor(values.into(), Shape::from([3]))
    }
}

impl NativeOp<2> for NativeDistillation {
    type Saved = SavedHead;

    fn forward(self, [hidden, head]: [FlexTensor; 2]) -> (FlexTensor, SavedHead) {
        let (hidden, head) = (hidden.to_contiguous(), head.to_contiguous());
        let (sums, saved) = self.run(&hidden, &head, true);
        let saved = saved.expect("gradients were asked for").shaped(hidden.shape());
        (self.losses(sums), saved)
    }

    fn value(self, [hidden, head]: [FlexTensor; 2]) -> FlexTensor {
        let (hidden, head) = (hidden.to_contiguous(), head.to_contiguous());
        self.losses(self.run(&hidden, &head, false).0)
    }

    fn backward(saved: SavedHead, dy: FlexTensor) -> [FlexTensor; 2] {
        // Only the first of the three values has a gradient.
        saved.scaled(floats(&dy.to_contiguous())[0])
    }
}

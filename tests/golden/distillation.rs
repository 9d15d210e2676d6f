//! The losses of `[distill]` against PyTorch (`scripts/make_distillation.py`): a whole teacher, its most
//! likely words, and relations in both forms, with their gradients.

use std::path::Path;
use std::sync::Arc;

use bitnet_format::tensors::TensorFile;
use bitnet_kernels::Operands;
use bitnet_train::model::SegmentStarts;
use bitnet_train::ops::{
    DistillationTerms, HeadOperand, OpBackend, Targets, TeacherLogits, distillation, top_outcomes,
};
use bitnet_train::recipe::RelationForm;
use bitnet_train::train::{RelationBlock, Relations, TokenBatch};
use burn::tensor::{Device, Tensor, TensorData};

use super::sets::{host, relative_distance};

const KNOWN: usize = 6;
const TERMS: DistillationTerms =
    DistillationTerms { cross_entropy: 0.7, logits: 1.3, temperature: 2.5 };
/// How far f64 may be from sums in f32.
const WITHIN: f64 = 2e-6;

struct Fixture(TensorFile);

impl Fixture {
    fn open() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden");
        Self(TensorFile::open(&root.join("distillation.safetensors")).unwrap())
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        let shape = self.0.info(name).unwrap().shape.clone();
        self.0.floats(name, &shape).unwrap()
    }

    fn tensor(&self, name: &str) -> Tensor<2> {
        let shape: [usize; 2] = self.0.info(name).unwrap().shape.clone().try_into().unwrap();
        Tensor::from_data(TensorData::new(self.floats(name), shape), &Device::flex())
    }

    fn leaf(&self, name: &str) -> Tensor<2> {
        self.tensor(name).autodiff().require_grad()
    }

    #[track_caller]
    fn check(&self, found: Vec<f32>, name: &str, backend: impl std::fmt::Debug) {
        let distance = relative_distance(&found, &self.floats(name));
        assert!(distance < WITHIN, "{name}, {backend:?}: {distance:e}");
    }
}

/// A sequence of one row.
fn row(values: Tensor<2>) -> Tensor<3> {
    values.unsqueeze()
}

#[test]
fn golden_distillation_of_logits() {
    let file = Fixture::open();
    let ids: Vec<i32> = file.floats("ids").iter().map(|&id| id as i32).collect();
    let targets = Targets { ids: Arc::new(ids), weights: Arc::new(file.floats("mask")) };
    for backend in [OpBackend::native(Operands::F32), OpBackend::reference(Operands::F32)] {
        let head = || HeadOperand { tensor: file.tensor("teacher_head"), outside: None };
        let hidden = || row(file.tensor("teacher_hidden"));
        let top = top_outcomes(hidden(), head(), &targets, KNOWN, backend);
        let whole = TeacherLogits::Whole { hidden: hidden(), head: head() };
        for (name, teacher) in [("whole", whole), ("top", TeacherLogits::Top(top))] {
            let (own, head) = (file.leaf("hidden"), file.leaf("head"));
            let operand = HeadOperand { tensor: head.clone(), outside: None };
            let (hidden, targets) = (row(own.clone()), targets.clone());
            let losses = distillation(hidden, operand, teacher, targets, TERMS, backend);
            let mut grads = losses.clone().narrow(0, 0, 1).backward();
            file.check(host(losses.inner()), &format!("{name}.losses"), backend);
            for (leaf, of) in [(own, "hidden"), (head, "head")] {
                let gradient = host(leaf.grad_remove(&mut grads).unwrap());
                file.check(gradient, &format!("{name}.{of}"), backend);
            }
        }
    }
}

#[test]
fn golden_distillation_of_relations() {
    let file = Fixture::open();
    let mask = file.floats("mask");
    let starts = [vec![0; 5], vec![5; 6], vec![11; 3]].concat();
    let rows = TokenBatch {
        tokens: vec![0; mask.len()],
        targets: vec![0; mask.len()],
        documents: SegmentStarts::new(1, mask.len(), starts),
        loss_mask: mask,
    };
    for (name, form) in RelationForm::WORDS {
        let student = RelationBlock { layer: 0, heads: [4, 2, 2], head_dim: 6 };
        let teacher = RelationBlock { layer: 0, heads: [6, 2, 2], head_dim: 8 };
        let relations = Relations { weight: 1.0, form: *form, student, teacher };
        let own = file.leaf("own");
        let loss = relations.loss(row(own.clone()), &row(file.tensor("theirs")), &rows);
        let mut grads = loss.backward();
        file.check(host(loss.inner()), &format!("{name}.loss"), form);
        let gradient = host(own.grad_remove(&mut grads).unwrap());
        file.check(gradient, &format!("{name}.own"), form);
        let plain = relations.loss(row(file.tensor("own")), &row(file.tensor("theirs")), &rows);
        file.check(host(plain), &format!("{name}.loss"), "without a graph");
    }
}

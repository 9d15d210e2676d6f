//! Distillation: cross-entropy beside what a teacher says, in pretraining and SFT.
//!
//! ```text
//! loss of a trained token = cross_entropy · CE + logits · KL(teacher ‖ student) + relations · R
//! ```
//!
//! KL is that of both models' next words at a temperature (`ops::distillation`), R that of how alike the
//! positions of a document are in one block (`relations`). The teacher never changes: it runs beside the
//! student, or its most likely words were kept before the first step (`kept`).

mod kept;
pub(crate) mod relations;
pub(crate) mod taught;

use burn::tensor::Tensor;

use super::objective::{LossSum, Objective, TokenBatch};
use crate::host::to_host;
use crate::model::{ForwardOutputs, LanguageModel};
use crate::ops::{self, DistillationTerms, TeacherLogits, TopOutcomes};
use relations::Relations;

/// Rows, and what is known of their teacher where it is not there.
#[derive(Clone, Debug)]
pub struct DistillationBatch {
    /// What the student reads.
    pub rows: TokenBatch,
    /// The teacher's most likely words; `None`: it runs beside the student.
    pub known: Option<TopOutcomes>,
}

/// Cross-entropy and the divergences from a teacher.
#[derive(Debug)]
pub struct Distillation {
    /// What the losses of logits are multiplied with.
    pub terms: DistillationTerms,
    /// What is compared inside of the models, if anything is.
    pub relations: Option<Relations>,
    /// The teacher, where it runs beside the student; outside of any graph.
    pub teacher: Option<LanguageModel>,
}

impl Objective for Distillation {
    type Batch = DistillationBatch;

    fn rows<'b>(&self, batch: &'b DistillationBatch) -> &'b TokenBatch {
        &batch.rows
    }

    fn shown(&self) -> Option<usize> {
        self.relations.as_ref().map(|relations| relations.student.layer)
    }

    fn loss(
        &self,
        model: &LanguageModel,
        outputs: ForwardOutputs,
        batch: &DistillationBatch,
    ) -> LossSum {
        let rows = &batch.rows;
        let theirs = self.teacher.as_ref().map(|teacher| self.run_teacher(teacher, rows));
        let losses = self.losses(model, outputs.hidden, theirs.as_ref(), batch);
        let values = to_host(ops::untracked(losses.clone()));
        let mut metrics =
            vec![("cross_entropy", f64::from(values[1])), ("distill_kl", f64::from(values[2]))];
        let mut sum = losses.narrow(0, 0, 1);
        if let Some(relations) = &self.relations {
            let theirs = theirs.and_then(|outputs| outputs.projections);
            let both = [outputs.projections, theirs];
            let [own, theirs] = both.map(|it| it.expect("both models show a block"));
            let loss = relations.loss(own, &theirs, rows);
            metrics
                .push(("distill_relations", f64::from(to_host(ops::untracked(loss.clone()))[0])));
            sum = sum + loss * relations.weight;
        }
        let (count, tokens) = (rows.counted(), rows.trained_tokens());
        LossSum { sum, root: None, count, tokens, metrics }
    }
}

impl Distillation {
    fn run_teacher(&self, teacher: &LanguageModel, rows: &TokenBatch) -> ForwardOutputs {
        let shown = self.relations.as_ref().map(|relations| relations.teacher.layer);
        rows.outputs(teacher, shown, &teacher.device())
    }

    /// The loss of logits and its two parts, `[3]`.
    fn losses(
        &self,
        model: &LanguageModel,
        hidden: Tensor<3>,
        theirs: Option<&ForwardOutputs>,
        batch: &DistillationBatch,
    ) -> Tensor<1> {
        let teacher = match (&self.teacher, theirs, &batch.known) {
            (Some(teacher), Some(theirs), _) => {
                let hidden = theirs.hidden.clone();
                TeacherLogits::Whole { hidden, head: teacher.head_operand() }
            }
            (_, _, Some(known)) => TeacherLogits::Top(known.clone()),
            _ => unreachable!("a batch without a teacher has its words"),
        };
        let targets = batch.rows.targets(batch.rows.loss_mask.clone());
        ops::distillation(
            hidden,
            model.head_operand(),
            teacher,
            targets,
            self.terms,
            model.backend(),
        )
    }
}

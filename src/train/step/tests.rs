//! Steps that update during the backward pass against steps that update behind it.

use super::accumulate::GradAccumulator;
use super::adamw::{AdamW, AdamWSettings};
use super::during::{Applied, UpdateDuring, sum};
use super::guard::{Limits, Skip};
use super::report::{StepReport, StepSettings};
use super::update::{OptimizerStep, lean_process};
use crate::latents::{LatentFormat, Latents, LeanSettings, MomentFormat, UpdateTime};
use crate::model::{ActivationMemory, LanguageModel, values};
use crate::recipe::StepRates;
use crate::speed::random_parts;
use crate::train::stage::objective::{CrossEntropy, TokenBatch};
use bitnet_format::{ModelSpec, tensor_table};
use burn::tensor::Tensor;

fn spec(tied: bool) -> ModelSpec {
    toml::from_str(&format!(
        "hidden_size = 32\nintermediate_size = 52\nnum_hidden_layers = 3\nvocab_size = 90\n\
         num_attention_heads = 4\nnum_key_value_heads = 2\ninitializer_range = 0.2\n\
         tie_word_embeddings = {tied}"
    ))
    .unwrap()
}

struct Run {
    spec: ModelSpec,
    lean: LeanSettings,
    update: UpdateTime,
    settings: StepSettings,
}

impl Run {
    fn new(tied: bool, latents: Option<LatentFormat>, update: UpdateTime) -> Self {
        let lean = LeanSettings { latents, moments: MomentFormat::F32, seed: 3 };
        let settings = StepSettings { grad_clip: 0.0, ..StepSettings::default() };
        Self { spec: spec(tied), lean, update, settings }
    }

    fn start(&self) -> (LanguageModel, AdamW, Box<dyn OptimizerStep>) {
        let device = crate::device::cpu().autodiff();
        let model = LanguageModel::initial_with(&self.spec, 7, &device, self.lean.latents.into());
        let model = model.with_activations(ActivationMemory::Recomputed);
        let frozen = vec![false; tensor_table(&self.spec).len()];
        let stepper = lean_process(model.backend(), frozen, (self.lean, self.update), true);
        let optimizer =
            stepper.new_optimizer(&tensor_table(&self.spec), AdamWSettings::default(), &device);
        (model, optimizer, stepper)
    }

    fn batch(&self) -> TokenBatch {
        random_parts(&self.spec, 1, 24, 1).remove(0)
    }

    fn step(
        &self,
        (model, optimizer): (LanguageModel, &mut AdamW),
        stepper: &dyn OptimizerStep,
        batch: &TokenBatch,
    ) -> (LanguageModel, StepReport, Option<usize>) {
        let rates = StepRates { learning_rate: 1e-2, weight_decay: 0.1 };
        let device = model.device();
        let sum = if self.update == UpdateTime::During {
            let updates = UpdateDuring::new(optimizer, self.settings, rates);
            GradAccumulator::updating(&model, &CrossEntropy, batch, &device, &updates)
        } else {
            GradAccumulator::of(&model, &CrossEntropy, std::slice::from_ref(batch), &device)
        };
        let broken = sum.broken();
        let (model, pending) = stepper.step(sum, model, optimizer, self.settings, rates);
        let report = stepper.sync(pending, optimizer);
        (model, report, broken)
    }

    /// Losses and all parameters after three steps.
    fn result(&self) -> (Vec<u32>, Vec<Vec<f32>>) {
        let (mut model, mut optimizer, stepper) = self.start();
        let batch = self.batch();
        let mut losses = Vec::new();
        for _ in 0..3 {
            let (next, report, _) = self.step((model, &mut optimizer), &*stepper, &batch);
            model = next;
            losses.push(report.loss.to_bits());
        }
        (losses, parameters(&model))
    }
}

fn parameters(model: &LanguageModel) -> Vec<Vec<f32>> {
    let tensors = values(model).into_iter().zip(model.outside());
    let values = |(tensor, outside): (Tensor<1>, &Option<Latents>)| {
        outside.as_ref().map_or_else(
            || tensor.into_data().try_to_vec().unwrap(),
            |latents| latents.read().all(),
        )
    };
    tensors.map(values).collect()
}

#[test]
fn without_clipping_updates_in_the_backward_pass_give_the_bits_of_those_behind_it() {
    for tied in [true, false] {
        let tensors = Run::new(tied, None, UpdateTime::After).result();
        let outside = Some(LatentFormat::F32);
        let after = Run::new(tied, outside, UpdateTime::After).result();
        let during = Run::new(tied, outside, UpdateTime::During).result();
        assert!(after == tensors, "latents outside of tensors, tied: {tied}");
        assert!(during == tensors, "updated as gradients come, tied: {tied}");
    }
}

/// Gradients of three tensors that arrive one after the other, the last first.
fn estimates(before: &[f32], squares: [f32; 3]) -> Vec<f64> {
    let mut applied = Applied::default();
    let arrive = |at: usize| {
        applied.see(at, &[Some(squares[at])]);
        applied.estimated_norm(before)
    };
    (0..3).rev().map(arrive).collect()
}

#[test]
fn the_norm_is_estimated_from_what_was_seen_and_the_step_before() {
    let before = [1.0f32, 4.0, 4.0];
    assert_eq!(estimates(&before, before), [3.0, 3.0, 3.0], "a step like the last");
    // A spike of a hundred times shows in its first gradient.
    let spike = before.map(|square| square * 1e4);
    assert_eq!(estimates(&before, spike), [300.0, 300.0, 300.0]);
    assert_eq!(estimates(&[], before), [2.0, 8f64.sqrt(), 3.0], "the first step");
    let late = estimates(&before, [1e4, 4.0, 4.0]);
    assert_eq!(late[..2], [3.0, 3.0], "nothing tells of a spike before it comes");
    assert!((late[2] - (1e4f64 + 8.0).sqrt()).abs() < 1e-9, "it is clipped itself");
}

#[test]
fn steps_are_clipped_and_remember_their_norms() {
    let mut run = Run::new(true, Some(LatentFormat::F32), UpdateTime::During);
    run.settings.grad_clip = 0.1;
    let (model, mut optimizer, stepper) = run.start();
    let batch = run.batch();
    let (_, report, _) = run.step((model, &mut optimizer), &*stepper, &batch);
    assert!(report.grad_norm > 0.2, "the limit matters: {}", report.grad_norm);
    let all = sum(&optimizer.last_squares);
    assert!((all.sqrt() - report.grad_norm).abs() < 1e-12);
    assert_eq!(optimizer.last_squares.len(), tensor_table(&run.spec).len());
}

#[test]
fn a_loss_that_is_not_finite_or_a_spike_changes_nothing() {
    let mut run = Run::new(true, Some(LatentFormat::Block16), UpdateTime::During);
    let (model, mut optimizer, stepper) = run.start();
    let before = parameters(&model);
    let mut bad = run.batch();
    bad.loss_mask[3] = f32::NAN;
    let (model, report, broken) = run.step((model, &mut optimizer), &*stepper, &bad);
    assert_eq!((report.skipped, broken), (Some(Skip::NotFinite), None));
    assert_eq!(optimizer.updates, 0);
    assert!(parameters(&model) == before);
    run.settings.limits = Limits { loss: 0.5, grad_norm: f64::INFINITY };
    let batch = run.batch();
    let (model, report, _) = run.step((model, &mut optimizer), &*stepper, &batch);
    assert_eq!((report.skipped, optimizer.updates), (Some(Skip::Spike), 0));
    assert!(parameters(&model) == before);
}

#[test]
fn a_gradient_that_is_not_finite_after_an_update_names_its_tensor() {
    let run = Run::new(false, Some(LatentFormat::F32), UpdateTime::During);
    let (model, mut optimizer, _) = run.start();
    let rates = StepRates { learning_rate: 1e-2, weight_decay: 0.0 };
    let updates = UpdateDuring::new(&mut optimizer, run.settings, rates);
    let device = model.device().inner();
    let ones = |count: usize| Some(Tensor::<1>::ones([count], &device));
    let table = tensor_table(&run.spec);
    let norm = table.len() - 2;
    updates.take(&model, norm, vec![ones(table[norm].elements())]);
    updates.take(&model, 0, vec![Some(ones(table[0].elements()).unwrap() * f32::NAN)]);
    let applied = updates.finish();
    assert_eq!((applied.broken, applied.skipped), (Some(0), None));
    let updates = UpdateDuring::new(&mut optimizer, run.settings, rates);
    updates.take(&model, 0, vec![Some(ones(table[0].elements()).unwrap() * f32::NAN)]);
    let applied = updates.finish();
    assert_eq!((applied.broken, applied.skipped), (None, Some(Skip::NotFinite)));
}

//! Twenty optimizer steps against torch: rates, losses, norms, and the weights they end in.
//!
//! The steps agree exactly until an activation flips at a near-tie. At that step our figures and
//! torch's must both be figures of the f64 model, for two choices at its near-ties. From there each
//! trajectory would go its own way; so the optimizer takes the f64 gradients of torch's choice, stays
//! on torch's trajectory, and the next step is compared exactly again.

use bitnet_kernels::Operands;
use bitnet_train::model::{LanguageModel, LinearWeight, named_values, replace_values, values};
use bitnet_train::ops::OpBackend;
use bitnet_train::train::{
    AdamW, AdamWSettings, CrossEntropy, GradAccumulator, Limits, LossReduction, StepRates,
    StepSettings, optimizer_step,
};
use burn::tensor::{Device, Tensor};
use serde_json::Value;

use super::agreement::{Agreement, agree, check, largest};
use super::backward::Target;
use super::reference::Reference;
use super::sets::{self, Fixture, Set, host, next_token_batch, reference_of};
use super::weight_error::WeightError;

/// Loss and gradient norm, relative to torch's; f32 sums differ by a fifth of it.
const EXACT: f64 = 1e-6;

/// What `meta.json` says of a trajectory.
struct Settings {
    adamw: AdamWSettings,
    step: StepSettings,
}

impl Settings {
    fn of(trajectory: &Value) -> Self {
        let number = |value: &Value| value.as_f64().unwrap();
        let adamw = AdamWSettings {
            beta1: number(&trajectory["betas"][0]),
            beta2: number(&trajectory["betas"][1]),
            eps: number(&trajectory["eps"]),
            ..AdamWSettings::default()
        };
        let grad_clip = trajectory["clip_grad_norm_max"].as_f64().unwrap_or(0.0);
        let reduction = LossReduction::Mean;
        Self { adamw, step: StepSettings { reduction, grad_clip, limits: Limits::NONE } }
    }
}

/// A trajectory of ours that follows torch's.
struct Follower<'a> {
    set: &'a Set,
    settings: Settings,
    model: LanguageModel,
    optimizer: AdamW,
    /// How far torch's weights may be from ours.
    error: WeightError,
    /// The largest difference, as a part of what is allowed, of figures and of recorded weights.
    figures: Agreement,
    weights: f64,
}

impl<'a> Follower<'a> {
    fn new(set: &'a Set, trajectory: &Value, form: LinearWeight) -> Self {
        let settings = Settings::of(trajectory);
        let model = set.model_with(form, &Device::flex().autodiff());
        let sizes: Vec<_> = values(&model).iter().map(|value| value.dims()[0]).collect();
        // The fixtures decay every parameter; the project decays matrices only.
        let decayed = vec![true; sizes.len()];
        let optimizer = AdamW::new(settings.adamw, &sizes, decayed, &Device::flex());
        let error = WeightError::none(&sizes, settings.adamw);
        let figures = Agreement { apart: 0.0, flips: 0, expected: 0 };
        Self { set, settings, model, optimizer, error, figures, weights: 0.0 }
    }

    /// One step over `rows [B, width]`; `expected` is what torch recorded of it.
    fn step(&mut self, rows: &[i32], width: usize, expected: &Value) -> Result<(), String> {
        let device = Device::flex().autodiff();
        let number = |key: &str| expected[key].as_f64().unwrap();
        let rates = StepRates { learning_rate: number("lr"), weight_decay: number("wd") };
        let batch = vec![next_token_batch(rows, rows, width)];
        let sum = GradAccumulator::over(&self.model, &CrossEntropy, &[batch], &device, &|| false)
            .unwrap();
        let mut optimizer = self.optimizer.clone();
        let model = self.model.clone();
        let (after, report) = optimizer_step(sum, model, &mut optimizer, self.settings.step, rates);
        let found = [f64::from(report.loss), report.grad_norm];
        let step = ExactStep::new(self, rows, width);
        let agreement = step.agreement(&found, &["loss", "grad_norm"].map(number))?;
        if agreement.flips == 0 {
            (self.model, self.optimizer) = (after, optimizer);
        } else {
            let gradients = step.gradients(agreement.expected);
            self.update(gradients, rates);
        }
        self.error = self.error.after(&self.optimizer, rates.learning_rate);
        self.figures = Agreement::of_all([Ok(self.figures), Ok(agreement)].into_iter())?;
        Ok(())
    }

    /// The optimizer's update with these gradients, clipped as torch does.
    fn update(&mut self, gradients: Vec<Vec<f32>>, rates: StepRates) {
        let squares = gradients.iter().flatten().map(|g| f64::from(*g) * f64::from(*g));
        let (norm, limit) = (squares.sum::<f64>().sqrt(), self.settings.step.grad_clip);
        let factor = if limit > 0.0 { (limit / (norm + 1e-6)).min(1.0) } else { 1.0 };
        let flat = |values: Vec<f32>| Tensor::<1>::from_floats(values.as_slice(), &Device::flex());
        let gradients = gradients.into_iter().map(|values| Some(flat(values))).collect();
        let values = values(&self.model).into_iter().map(Tensor::inner).collect();
        let backend = OpBackend::native(Operands::F32);
        let new = self.optimizer.update(values, gradients, factor, rates, backend);
        let new = new.into_iter().map(Tensor::from_inner).collect();
        self.model = replace_values(self.model.clone(), new);
    }

    /// Compares the weights that `file` recorded after this step, if it did.
    fn compare_weights(&mut self, file: &Fixture, step: u64) -> Result<(), String> {
        for (index, (name, value)) in named_values(&self.model).into_iter().enumerate() {
            let key = format!("step{step}.{name}");
            if file.0.contains(&key) {
                let apart = self.error.apart(index, &host(value), &file.floats(&key), step);
                self.weights = self.weights.max(apart);
                if apart.is_nan() || apart > 1.0 {
                    return Err(format!("{key}: {apart} times what is allowed apart"));
                }
            }
        }
        Ok(())
    }
}

/// One step in f64.
struct ExactStep {
    reference: Reference,
    names: Vec<String>,
    rows: Vec<Vec<i32>>,
    targets: Vec<Target>,
}

impl ExactStep {
    fn new(follower: &Follower, rows: &[i32], width: usize) -> Self {
        let names: Vec<_> =
            named_values(&follower.model).into_iter().map(|(name, _)| name).collect();
        let errors = names.iter().cloned().zip(follower.error.likely.iter().cloned()).collect();
        Self {
            reference: reference_of(follower.set.spec(), &follower.model).with_errors(errors),
            names,
            rows: rows.chunks(width).map(|row| row[..width - 1].to_vec()).collect(),
            targets: Target::next_tokens(rows, width, true),
        }
    }

    /// Whether two pairs of loss and norm agree.
    fn agreement(&self, found: &[f64; 2], expected: &[f64; 2]) -> Result<Agreement, String> {
        let distance = |a: &[f64; 2], b: &[f64; 2]| {
            let error = |i: usize| (a[i] - b[i]).abs() / b[i].abs() / EXACT;
            largest([error(0), error(1)].into_iter())
        };
        agree([found, expected], distance, self.reference.passes(&self.rows), |pass| {
            let gradients = pass.gradients(&self.targets);
            let squares = gradients.values().flatten().map(|g| g * g);
            [pass.loss(&self.targets), squares.sum::<f64>().sqrt()]
        })
    }

    /// The gradients of one of its passes.
    fn gradients(&self, pass: usize) -> Vec<Vec<f32>> {
        let pass = self.reference.passes(&self.rows).nth(pass).unwrap();
        pass.loss_and_gradients(&self.targets, &self.names).gradients
    }
}

/// Follows the steps that `meta[key]` lists, and compares the weights in `file`.
fn follow<'a>(
    set: &'a Set,
    key: &str,
    form: LinearWeight,
    change: impl Fn(&mut Value),
) -> Result<Follower<'a>, String> {
    let mut meta = set.meta();
    change(&mut meta[key]);
    let trajectory = &meta[key];
    let weights = set.file(&format!("traj_{}.safetensors", key.trim_start_matches("trajectory_")));
    let file = set.file("train_batches.safetensors");
    let (shape, rows) = (file.shape("batches"), file.ints("batches"));
    let size = shape[1] * shape[2];
    let mut follower = Follower::new(set, trajectory, form);
    for expected in trajectory["steps"].as_array().unwrap() {
        let step = expected["step"].as_u64().unwrap();
        let rows = &rows[(step as usize - 1) % shape[0] * size..][..size];
        let in_step = |error| format!("step {step}: {error}");
        follower.step(rows, shape[2], expected).map_err(in_step)?;
        follower.compare_weights(&weights, step)?;
    }
    Ok(follower)
}

fn check_all(file: &str, key: &str, form: LinearWeight, what: &str) {
    for set in sets::with(file) {
        let follower = follow(&set, key, form, |_| ());
        let follower = follower.unwrap_or_else(|error| panic!("{} {what}: {error}", set.name()));
        check(&set, &format!("{what}, loss and norm"), Ok(follower.figures));
        let weights = Agreement { apart: follower.weights, flips: 0, expected: 0 };
        check(&set, &format!("{what}, weights"), Ok(weights));
    }
}

#[test]
fn golden_trajectory_a() {
    let form = LinearWeight::Latent;
    check_all("traj_A.safetensors", "trajectory_A", form, "trajectory A");
}

/// Transformers' own order of multiplication: dequantise, then multiply floats.
#[test]
fn golden_trajectory_a_in_transformers_order() {
    let form = LinearWeight::Dequantised;
    check_all("traj_A.safetensors", "trajectory_A", form, "trajectory A, transformers' order");
}

#[test]
fn golden_trajectory_b_follows_rates_and_clipping() {
    let form = LinearWeight::Latent;
    check_all("traj_B.safetensors", "trajectory_B", form, "trajectory B");
}

#[test]
fn golden_a_step_that_was_changed_by_a_thousandth_fails_on_every_set() {
    for set in sets::with("traj_A.safetensors") {
        for (step, key) in [(2, "grad_norm"), (9, "loss")] {
            let spoil = |trajectory: &mut Value| {
                let number = &mut trajectory["steps"][step][key];
                *number = (number.as_f64().unwrap() * 1.001).into();
            };
            let found = follow(&set, "trajectory_A", LinearWeight::Latent, spoil);
            assert!(found.is_err(), "{} step {step} {key}", set.name());
        }
    }
}

//! Every device of this build, and the reference operations on the CPU, against the native operations:
//! quantisers, losses, gradients and twenty steps of a tiny model. Each test prints the largest
//! difference it saw.
//!
//! Two models are compared. The dense baseline has no thresholds, so only the rounding of sums
//! differs. In the quantised model such a rounding sometimes moves an activation across a threshold
//! to the neighbouring code, and everything after it differs by more than rounding.
//!
//! Devices that this machine lacks are skipped with a line on stderr. `BITNET_REQUIRE_DEVICE` names
//! one whose absence is a failure.

use std::io::Write as _;
use std::sync::OnceLock;

use bitnet_format::ModelSpec;
use bitnet_format::quant::{ActivationScale, WeightScale, quantise_row, ternary_codes};
use bitnet_kernels::Operands;
use bitnet_train::device;
use bitnet_train::model::{LanguageModel, SegmentStarts, named_values, values};
use bitnet_train::ops::{self, OpBackend};
use bitnet_train::random;
use bitnet_train::train::{
    AdamW, AdamWSettings, CrossEntropy, GradAccumulator, Limits, LossReduction, Skip, StepRates,
    StepSettings, TokenBatch, batch_log_probs, optimizer_step, single_process,
};
use burn::tensor::{Device, Tensor, TensorData};
use rand::Rng;
use rand_distr::{Distribution, Normal};

use crate::golden::sets::{self, host, relative_distance};

/// The devices of this build and this machine, except `flex`.
pub(crate) fn devices() -> &'static [(String, Device)] {
    static FOUND: OnceLock<Vec<(String, Device)>> = OnceLock::new();
    FOUND.get_or_init(|| {
        let required = std::env::var("BITNET_REQUIRE_DEVICE").unwrap_or_default();
        let mut names: Vec<_> = ["ndarray", "wgpu", "vulkan", "cuda"].map(String::from).into();
        if !required.is_empty() && !names.contains(&required) {
            names.push(required.clone());
        }
        names.into_iter().filter_map(|name| open(name, &required)).collect()
    })
}

fn open(name: String, required: &str) -> Option<(String, Device)> {
    match device::open(&name) {
        Ok(device) => Some((name, device)),
        Err(error) if required == name => panic!("BITNET_REQUIRE_DEVICE: {error}"),
        Err(error) => {
            print_unbuffered(&format!("parity skipped: {error}"));
            None
        }
    }
}

/// Prints a line that is seen even where the test harness hides the output of passing tests.
fn print_unbuffered(line: &str) {
    let mut stderr = std::io::stderr().lock();
    stderr.write_all(format!("{line}\n").as_bytes()).unwrap();
}

/// Prints what was measured and fails when it exceeds the tolerance (or is NaN).
#[track_caller]
fn check(device: &str, what: &str, error: f64, tolerance: f64) {
    println!("parity | {device} | {what} | {error:.1e} | {tolerance:.0e} |");
    assert!(error <= tolerance, "{device}, {what}: {error:e} > {tolerance:e}");
}

/// Normally distributed numbers, the same for the same seed and purpose.
pub(crate) fn draw(seed: u64, purpose: &str, count: usize) -> Vec<f32> {
    let normal = Normal::new(0.0f32, 1.0).unwrap();
    normal.sample_iter(random::keyed(seed, purpose, 0, 0)).take(count).collect()
}

fn matrix(values: &[f32], columns: usize, device: &Device) -> Tensor<2> {
    let shape = [values.len() / columns, columns];
    Tensor::from_data(TensorData::new(values.to_vec(), shape), device)
}

/// For each code that differs from the format's definition, the distance of its latent from the
/// nearest threshold.
fn wrong_weight_codes(latents: &[f32], columns: usize, device: &Device) -> Vec<f64> {
    let (found, _) = ops::weight_codes(matrix(latents, columns, device));
    let scale = WeightScale::of_latents(latents);
    let expected = ternary_codes(latents, scale);
    let places = host(found).into_iter().zip(expected).zip(latents);
    let wrong = places.filter(|((found, expected), _)| *found as i8 != *expected);
    let distance = |latent: f32| (f64::from(latent * scale.inverse()).abs() - 0.5).abs();
    wrong.map(|(_, &latent)| distance(latent)).collect()
}

/// The same for the 8-bit codes of rows; distances in parts of the range.
fn wrong_activation_codes(rows: &[f32], columns: usize, device: &Device) -> Vec<f64> {
    let x = matrix(rows, columns, device).unsqueeze::<3>();
    let found = host(ops::activation_codes(&x).0);
    let mut wrong = Vec::new();
    for (row, found) in rows.chunks(columns).zip(found.chunks(columns)) {
        let mut expected = vec![0i8; columns];
        quantise_row(row, &mut expected);
        let scale = ActivationScale::of_row(row).multiplier();
        for ((&x, &found), &expected) in row.iter().zip(found).zip(&expected) {
            let exact = f64::from(x) * f64::from(scale);
            let distance = ((exact - exact.floor()) - 0.5).abs() / 127.0;
            wrong.extend((found as i8 != expected).then_some(distance));
        }
    }
    wrong
}

#[test]
fn parity_of_the_quantisers_on_the_fixtures_is_exact() {
    for (name, device) in devices() {
        for set in sets::with("forward.safetensors") {
            let file = set.file("forward.safetensors");
            for part in ["", "tie_", "zero_"] {
                let key = format!("unit.wq.{part}in");
                let columns = file.shape(&key)[1];
                let wrong = wrong_weight_codes(&file.floats(&key), columns, device);
                assert!(wrong.is_empty(), "{name} {key}: {wrong:?}");
            }
            for part in ["", "tie_"] {
                let key = format!("unit.aq.{part}in");
                let columns = file.shape(&key)[1];
                let wrong = wrong_activation_codes(&file.floats(&key), columns, device);
                assert!(wrong.is_empty(), "{name} {key}: {wrong:?}");
            }
            for (tensor, values) in named_values(&set.model(&Device::flex())) {
                let wrong = wrong_weight_codes(&host(values.clone()), 1, device);
                assert!(wrong.is_empty(), "{name} {tensor}: {wrong:?}");
            }
        }
    }
}

#[test]
fn parity_of_the_quantisers_on_random_values_fails_only_at_thresholds() {
    const COLUMNS: usize = 256;
    for (name, device) in devices() {
        let mut wrong = [Vec::new(), Vec::new()];
        for seed in 0..4 {
            let values = draw(seed, "quantised", 512 * COLUMNS);
            wrong[0].extend(wrong_weight_codes(&values, COLUMNS, device));
            wrong[1].extend(wrong_activation_codes(&values, COLUMNS, device));
        }
        for (what, wrong) in ["ternary codes", "8-bit codes"].into_iter().zip(wrong) {
            let (count, all) = (wrong.len(), 4 * 512 * COLUMNS);
            let farthest = wrong.into_iter().fold(0.0, f64::max);
            check(name, &format!("{count} of {all} {what}, from threshold"), farthest, 1e-6);
        }
    }
}

/// Half to even, at every half there is.
#[test]
fn parity_of_rounding_at_ties() {
    // 254 halves and a largest value that makes the scale exactly 1.
    let mut row: Vec<f32> = (-127..127).map(|level| level as f32 + 0.5).collect();
    row.extend([127.0, -127.0]);
    for (name, device) in devices() {
        let wrong = wrong_activation_codes(&row, row.len(), device);
        assert!(wrong.is_empty(), "{name}: {} of {}", wrong.len(), row.len());
    }
}

const TIME: usize = 24;
const ROWS: usize = 4;
const VOCAB: usize = 90;

/// A model with sub-norms, relu² and a tied head, or with none of these.
fn spec(quantise: bool, rich: bool) -> ModelSpec {
    let act = if rich { "relu2" } else { "silu" };
    let text = format!(
        "hidden_size = 48\nintermediate_size = 80\nnum_hidden_layers = 2\nvocab_size = {VOCAB}\n\
         num_attention_heads = 4\nnum_key_value_heads = 2\ninitializer_range = 0.2\n\
         hidden_act = \"{act}\"\nsub_norms = {rich}\ntie_word_embeddings = {rich}\n\
         quantise = {quantise}"
    );
    toml::from_str(&text).unwrap()
}

/// Rows of two documents each, a third of the targets untrained.
fn batch(seed: u64) -> TokenBatch {
    let mut draw = random::keyed(seed, "parity", 0, 0);
    let mut ids = || -> Vec<i32> {
        (0..ROWS * TIME).map(|_| (draw.next_u32() % VOCAB as u32) as i32).collect()
    };
    let start = |at: usize| if at % TIME < 9 { 0 } else { 9 };
    TokenBatch {
        tokens: ids(),
        targets: ids(),
        loss_mask: (0..ROWS * TIME).map(|at| f32::from(at % 3 > 0)).collect(),
        documents: SegmentStarts::new(ROWS, TIME, (0..ROWS * TIME).map(start).collect()),
    }
}

/// A device with the operations that run on it.
struct Target {
    name: String,
    device: Device,
    backend: OpBackend,
}

impl Target {
    fn new(name: &str, device: Device) -> Self {
        let backend = OpBackend::of(&device, Operands::F32);
        Self { name: name.to_owned(), device, backend }
    }

    /// What all others are compared with.
    fn native() -> Self {
        Self::new("flex", Device::flex().autodiff())
    }

    /// The devices of this machine, and in every build `flex` with the reference operations.
    fn all() -> Vec<Self> {
        let backend = OpBackend::reference(Operands::F32);
        let reference = Self { name: "reference on flex".to_owned(), backend, ..Self::native() };
        let others = devices().iter().map(|(name, device)| Self::new(name, device.clone()));
        others.chain([reference]).collect()
    }

    fn model(&self, spec: &ModelSpec) -> LanguageModel {
        LanguageModel::initial(spec, 7, &self.device).with_backend(self.backend)
    }
}

/// Loss, gradients and log-probabilities of one batch.
struct Pass {
    loss: f64,
    gradients: Vec<Vec<f32>>,
    log_probs: Vec<f32>,
}

fn pass(spec: &ModelSpec, target: &Target) -> Pass {
    let (model, device) = (target.model(spec), &target.device);
    let sum = GradAccumulator::over(&model, &CrossEntropy, &[vec![batch(1)]], device, &|| false);
    let sum = sum.unwrap();
    let loss = f64::from(sum.loss());
    let gradients = sum.reduced_gradients(LossReduction::Mean).into_iter().map(host).collect();
    Pass { loss, gradients, log_probs: host(batch_log_probs(&model, &batch(1), device)) }
}

fn relative(found: f64, expected: f64) -> f64 {
    (found - expected).abs() / expected.abs()
}

#[test]
fn parity_of_loss_and_gradients() {
    for target in Target::all() {
        for quantise in [false, true] {
            let (what, tolerance) = if quantise { ("ternary", 5e-3) } else { ("dense", 1e-5) };
            let mut worst = [0.0f64; 3];
            for rich in [false, true] {
                let spec = spec(quantise, rich);
                let (expected, found) = (pass(&spec, &Target::native()), pass(&spec, &target));
                let pairs = found.gradients.iter().zip(&expected.gradients);
                let gradients = pairs.map(|(found, expected)| relative_distance(found, expected));
                let seen = [
                    relative(found.loss, expected.loss),
                    relative_distance(&found.log_probs, &expected.log_probs),
                    gradients.fold(0.0, f64::max),
                ];
                worst = std::array::from_fn(|i| worst[i].max(seen[i]));
            }
            let names = ["loss", "log-probabilities", "largest of all gradients"];
            for (quantity, error) in names.into_iter().zip(worst) {
                check(&target.name, &format!("{what}: {quantity}"), error, tolerance);
            }
        }
    }
}

/// Twenty steps with clipping and decay: losses, norms and the weights they end in.
fn twenty_steps(spec: &ModelSpec, target: &Target) -> (Vec<[f64; 2]>, Vec<Vec<f32>>) {
    let (mut model, device) = (target.model(spec), &target.device);
    let mut optimizer = AdamW::for_model(spec, AdamWSettings::default(), device);
    let stepper = single_process(model.backend(), Vec::new(), false);
    let mut made = Vec::new();
    for step in 0..20u32 {
        let rates = StepRates { learning_rate: 3e-3 - 1e-4 * f64::from(step), weight_decay: 0.1 };
        let batches = [vec![batch(u64::from(2 * step))], vec![batch(u64::from(2 * step + 1))]];
        let sum =
            GradAccumulator::over(&model, &CrossEntropy, &batches, device, &|| false).unwrap();
        let (next, one) = stepper.step(sum, model, &mut optimizer, StepSettings::default(), rates);
        made.push(one);
        model = next;
    }
    let reports = made.into_iter().map(|one| stepper.sync(one, &mut optimizer));
    let figures = reports.map(|report| [f64::from(report.loss), report.grad_norm]).collect();
    assert_eq!(optimizer.updates, 20);
    (figures, values(&model).into_iter().map(host).collect())
}

/// Steps until the losses differ by more than 1e-5 for the first time.
fn steps_together(found: &[[f64; 2]], expected: &[[f64; 2]]) -> usize {
    let pairs = found.iter().zip(expected);
    pairs.take_while(|(found, expected)| relative(found[0], expected[0]) <= 1e-5).count()
}

#[test]
fn parity_of_twenty_steps() {
    for target in Target::all() {
        let name = &target.name;
        for quantise in [false, true] {
            // A code that flips moves a weight, which moves the codes of the next step.
            let (what, tolerance) = if quantise { ("ternary", 5e-2) } else { ("dense", 1e-4) };
            let spec = spec(quantise, true);
            let (expected, expected_weights) = twenty_steps(&spec, &Target::native());
            let (found, weights) = twenty_steps(&spec, &target);
            let together = steps_together(&found, &expected);
            println!("parity | {name} | {what}: steps whose loss agrees to 1e-5 | {together} | |");
            for (index, quantity) in ["loss", "gradient norm"].into_iter().enumerate() {
                let pairs = found.iter().zip(&expected);
                let errors = pairs.map(|(found, exact)| relative(found[index], exact[index]));
                let worst = errors.fold(0.0, f64::max);
                check(name, &format!("{what}: {quantity} in 20 steps"), worst, tolerance);
            }
            let distance = relative_distance(&weights.concat(), &expected_weights.concat());
            check(name, &format!("{what}: weights after 20 steps"), distance, tolerance);
        }
    }
}

#[test]
fn parity_of_skipped_steps() {
    let spec = spec(true, true);
    let rates = StepRates { learning_rate: 0.1, weight_decay: 0.1 };
    let step = |target: &Target, scale: f32, limits: Limits| {
        let device = &target.device;
        let model = LanguageModel::from_source(&spec, device, |entry| {
            let value = if entry.name == "model.norm.weight" { scale } else { 0.5 };
            let values = (0..entry.elements()).map(|i| value + (i % 7) as f32 * 0.1).collect();
            Ok::<_, ()>((values, bitnet_train::model::LinearWeight::Latent))
        });
        let model = model.unwrap().with_backend(target.backend);
        let mut optimizer = AdamW::for_model(&spec, AdamWSettings::default(), device);
        let before: Vec<_> = values(&model).into_iter().map(host).collect();
        let sum = GradAccumulator::of(&model, &CrossEntropy, &[batch(1)], device);
        let settings = StepSettings { limits, ..StepSettings::default() };
        let (after, report) = optimizer_step(sum, model, &mut optimizer, settings, rates);
        let same = values(&after).into_iter().map(host).collect::<Vec<_>>() == before;
        let moments = host(optimizer.first[0].clone()).iter().all(|&m| m == 0.0);
        (report.skipped, optimizer.updates, same, moments)
    };
    let low = Limits { loss: 1e-3, grad_norm: f64::INFINITY };
    for target in Target::all() {
        let name = &target.name;
        let not_finite = step(&target, f32::INFINITY, Limits::NONE);
        assert_eq!(not_finite, (Some(Skip::NotFinite), 0, true, true), "{name}");
        let spike = step(&target, 1.0, low);
        assert_eq!(spike, (Some(Skip::Spike), 0, true, true), "{name}");
        assert_eq!(step(&target, 1.0, Limits::NONE), (None, 1, false, false), "{name}");
    }
}

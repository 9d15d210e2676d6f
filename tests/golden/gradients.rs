//! Loss and the gradient of every parameter against torch's autograd.

use bitnet_train::train::{CrossEntropy, GradAccumulator, LossReduction};
use burn::tensor::Device;

use super::agreement::{Agreement, LossAndGradients, agree, check, loss_and_gradients};
use super::backward::Target;
use super::sets::{self, Set, host, next_token_batch};

/// The two losses of the fixtures.
#[derive(Clone, Copy)]
struct Loss {
    name: &'static str,
    reduction: LossReduction,
    labels: &'static str,
}

const MEAN: Loss = Loss { name: "mean_all", reduction: LossReduction::Mean, labels: "input_ids" };
const MASKED: Loss =
    Loss { name: "sum_masked", reduction: LossReduction::Sum, labels: "labels_mask" };

fn expected(set: &Set, loss: Loss) -> LossAndGradients {
    let (file, meta) = (set.file("grads.safetensors"), set.meta());
    let named = |name: &String| file.floats(&format!("{}.{name}", loss.name));
    let gradients = set.parameter_names().iter().map(named).collect();
    let loss = meta[&format!("loss_{}", loss.name)].as_f64().unwrap();
    LossAndGradients { loss, gradients }
}

/// Whether our loss and gradients agree with these.
fn agreement(set: &Set, loss: Loss, expected: &LossAndGradients) -> Result<Agreement, String> {
    let device = Device::flex().autodiff();
    let file = set.file("forward.safetensors");
    let (width, rows) = (file.shape("input_ids")[1], file.ints("input_ids"));
    let labels = file.ints(loss.labels);
    let targets = Target::next_tokens(&labels, width, loss.reduction == LossReduction::Mean);
    let batch = next_token_batch(&rows, &labels, width);
    let model = set.model(&device);
    let sum = GradAccumulator::over(&model, &CrossEntropy, &[vec![batch]], &device, &|| false);
    let sum = sum.unwrap();
    let total: f64 = targets.iter().map(|target| target.weight).sum();
    let found = LossAndGradients {
        loss: f64::from(sum.loss()) * total,
        gradients: sum.reduced_gradients(loss.reduction).into_iter().map(host).collect(),
    };
    let tokens: Vec<_> = rows.chunks(width).map(|row| row[..width - 1].to_vec()).collect();
    let (reference, names) = (set.reference(), set.parameter_names());
    agree([&found, expected], loss_and_gradients, reference.passes(&tokens), |pass| {
        pass.loss_and_gradients(&targets, &names)
    })
}

#[test]
fn golden_mean_loss_gradients() {
    for set in sets::with("grads.safetensors") {
        let names = set.file("grads.safetensors").0.names();
        if names.iter().any(|name| name.starts_with("mean_all.")) {
            let agreement = agreement(&set, MEAN, &expected(&set, MEAN));
            check(&set, "loss and gradients of the mean", agreement);
        }
    }
}

#[test]
fn golden_masked_sum_loss_gradients() {
    for set in sets::with("grads.safetensors") {
        let agreement = agreement(&set, MASKED, &expected(&set, MASKED));
        check(&set, "loss and gradients of the masked sum", agreement);
        let meta = set.meta();
        let number = |key: &str| meta[key].as_f64().unwrap();
        let mean = number("loss_sum_masked") / number("n_masked_targets");
        assert!((mean / number("loss_mean_masked") - 1.0).abs() < 1e-6);
    }
}

#[test]
fn golden_a_gradient_that_was_scaled_by_a_thousandth_fails_on_every_set() {
    for set in sets::with("grads.safetensors") {
        let right = expected(&set, MASKED);
        for at in [0, right.gradients.len() / 2, right.gradients.len() - 1] {
            let mut spoiled = right.clone();
            spoiled.gradients[at].iter_mut().for_each(|value| *value *= 1.001);
            let agreement = agreement(&set, MASKED, &spoiled);
            assert!(agreement.is_err(), "{} gradient {at}: {agreement:?}", set.name());
        }
    }
}

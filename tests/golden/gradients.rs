//! Loss and the gradient of every parameter against torch's autograd.

use bitnet_train::model::named_values;
use bitnet_train::train::{CrossEntropy, GradAccumulator, LossReduction};
use burn::tensor::Device;

use super::sets::{self, Set, check, host, relative_distance};

#[test]
fn golden_mean_loss_gradients() {
    for set in sets::with("grads.safetensors") {
        let meta = set.meta();
        let file = set.file("forward.safetensors");
        let rows = file.ints("input_ids");
        if set.file("grads.safetensors").0.names().iter().any(|name| name.starts_with("mean_all."))
        {
            compare(&set, "mean_all", LossReduction::Mean, &rows);
            let found = f64::from(accumulate(&set, &rows).loss());
            check(
                &set,
                "loss_mean_all",
                (found - meta["loss_mean_all"].as_f64().unwrap()).abs(),
                1e-5,
            );
        }
    }
}

#[test]
fn golden_masked_sum_loss_gradients() {
    for set in sets::with("grads.safetensors") {
        let meta = set.meta();
        let labels = set.file("forward.safetensors").ints("labels_mask");
        compare(&set, "sum_masked", LossReduction::Sum, &labels);
        let mean = f64::from(accumulate(&set, &labels).loss());
        let error = |key: &str, factor: f64| {
            let expected = meta[key].as_f64().unwrap();
            (mean * factor - expected).abs() / expected.abs().max(1.0)
        };
        let count = meta["n_masked_targets"].as_f64().unwrap();
        check(&set, "loss_mean_masked", error("loss_mean_masked", 1.0), 1e-5);
        check(&set, "loss_sum_masked", error("loss_sum_masked", count), 1e-5);
    }
}

fn accumulate(set: &Set, labels: &[i32]) -> GradAccumulator {
    let device = Device::flex().autodiff();
    let file = set.file("forward.safetensors");
    let width = file.shape("input_ids")[1];
    let batch = sets::next_token_batch(&file.ints("input_ids"), labels, width);
    let model = set.model(&device);
    GradAccumulator::over(&model, &CrossEntropy, &[vec![batch]], &device, &|| false).unwrap()
}

fn compare(set: &Set, prefix: &str, reduction: LossReduction, labels: &[i32]) {
    let expected = set.file("grads.safetensors");
    let names = named_values(&set.model(&Device::flex())).into_iter().map(|(name, _)| name);
    let gradients = accumulate(set, labels).reduced_gradients(reduction);
    let mut worst = 0.0f64;
    for (name, gradient) in names.zip(gradients) {
        let expected = expected.floats(&format!("{prefix}.{name}"));
        let error = relative_distance(&host(gradient), &expected);
        assert!(error <= 1e-4, "{prefix}.{name}: {error:e}");
        worst = worst.max(error);
    }
    check(set, &format!("{prefix} gradients, relative"), worst, 1e-4);
}

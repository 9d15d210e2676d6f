//! Preference training against TRL: log-probabilities, loss, logged figures and every gradient.

use bitnet_train::model::{LanguageModel, SegmentStarts, named_values};
use bitnet_train::train::{
    DpoObjective, GradAccumulator, LossReduction, Objective, PairBatch, TokenBatch,
    sequence_log_probs,
};
use burn::tensor::Device;

use super::sets::{self, Set, check, host, relative_distance};

/// The collated batch of a set: chosen rows, then rejected ones.
fn rows(set: &Set) -> TokenBatch {
    let file = set.file("dpo.safetensors");
    let [batch, width] = file.shape("input_ids")[..] else { panic!("[2P, T]") };
    let mask = file.ints("completion_mask");
    let part = |from: &[i32], skip: usize| -> Vec<i32> {
        from.chunks(width).flat_map(|row| row[skip..skip + width - 1].to_vec()).collect()
    };
    let ids = file.ints("input_ids");
    TokenBatch {
        tokens: part(&ids, 0),
        targets: part(&ids, 1),
        loss_mask: part(&mask, 1).iter().map(|&trained| trained as f32).collect(),
        documents: SegmentStarts::whole_rows(batch, width - 1),
    }
}

fn reference_model(set: &Set) -> LanguageModel {
    let file = set.file("dpo_reference_model.safetensors");
    let form = bitnet_train::model::LinearWeight::Latent;
    let source = |entry: &bitnet_format::TensorEntry| {
        file.0.floats(&entry.name, &entry.shape).map(|values| (values, form))
    };
    LanguageModel::from_source(&set.spec(), &Device::flex(), source).unwrap()
}

#[test]
fn golden_dpo_log_probabilities() {
    for set in sets::with("dpo.safetensors") {
        let (file, rows) = (set.file("dpo.safetensors"), rows(&set));
        let (flex, policy) = (Device::flex(), set.model(&Device::flex()));
        let found = host(sequence_log_probs(&policy, &rows, &flex));
        let error = relative_distance(&found, &file.floats("policy_logps"));
        check(&set, "dpo policy log-probabilities, relative", error, 1e-5);
        let found = host(sequence_log_probs(&reference_model(&set), &rows, &flex));
        let error = relative_distance(&found, &file.floats("ref_logps"));
        check(&set, "dpo reference log-probabilities, relative", error, 1e-5);
    }
}

#[test]
fn golden_dpo_loss_metrics_and_gradients() {
    for set in sets::with("dpo.safetensors") {
        let (file, meta) = (set.file("dpo.safetensors"), set.meta());
        let meta = &meta["dpo"];
        let device = Device::flex().autodiff();
        let objective = DpoObjective { beta: meta["beta"].as_f64().unwrap() };
        let batch = PairBatch { rows: rows(&set), reference: file.floats("ref_logps") };
        let model = set.model(&device);
        let outcome = objective.evaluate(&model, &batch, &device);
        let mean = |name: &str| {
            let (_, sum) = outcome.metrics.iter().find(|(key, _)| *key == name).unwrap();
            sum / outcome.count
        };
        for (ours, theirs, tolerance) in [
            ("reward_chosen", "rewards/chosen", 1e-5),
            ("reward_rejected", "rewards/rejected", 1e-5),
            ("margin", "rewards/margins", 1e-5),
            ("accuracy", "rewards/accuracies", 1e-6),
            ("logp_chosen", "logps/chosen", 1e-4),
            ("logp_rejected", "logps/rejected", 1e-4),
        ] {
            let error = (mean(ours) - meta["trl_metrics"][theirs].as_f64().unwrap()).abs();
            check(&set, &format!("dpo {ours}"), error, tolerance);
        }
        let sum = GradAccumulator::of(&model, &objective, &[batch], &device);
        let loss = f64::from(sum.loss());
        check(&set, "dpo loss", (loss - meta["loss_trl"].as_f64().unwrap()).abs(), 1e-5);
        let names = named_values(&model).into_iter().map(|(name, _)| name);
        let mut worst = 0.0f64;
        for (name, gradient) in names.zip(sum.reduced_gradients(LossReduction::Mean)) {
            let expected = file.floats(&format!("grad.{name}"));
            worst = worst.max(relative_distance(&host(gradient), &expected));
        }
        check(&set, "dpo gradients, relative", worst, 1e-4);
    }
}

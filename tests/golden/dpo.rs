//! Preference training against TRL: log-probabilities, loss, logged figures and every gradient.

use bitnet_train::model::{LanguageModel, SegmentStarts};
use bitnet_train::train::{
    DpoObjective, GradAccumulator, LossReduction, Objective, PairBatch, TokenBatch,
    sequence_log_probs,
};
use burn::tensor::Device;

use super::agreement::{Agreement, LossAndGradients, agree, check, largest, loss_and_gradients};
use super::backward::Target;
use super::reference::Pass;
use super::sets::{self, Set, host, reference_of};

/// The collated batch of a set: chosen rows, then rejected ones.
fn batch(set: &Set) -> TokenBatch {
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

/// The scored tokens of every row, and the rows up to the last of them: padding decides nothing.
fn scored(set: &Set) -> (Vec<Vec<Target>>, Vec<Vec<i32>>) {
    let ids = set.rows("dpo.safetensors", "input_ids");
    let masks = set.rows("dpo.safetensors", "completion_mask");
    let of_row = |(row, (ids, mask)): (usize, (Vec<i32>, Vec<i32>))| {
        let at = (0..ids.len() - 1).filter(|&position| mask[position + 1] == 1);
        let targets: Vec<_> = at
            .map(|position| Target { row, position, token: ids[position + 1], weight: 1.0 })
            .collect();
        let used = targets.last().unwrap().position + 1;
        (targets, ids[..used].to_vec())
    };
    ids.into_iter().zip(masks).enumerate().map(of_row).unzip()
}

fn reference_model(set: &Set) -> LanguageModel {
    let file = set.file("dpo_reference_model.safetensors");
    let form = bitnet_train::model::LinearWeight::Latent;
    let source = |entry: &bitnet_format::TensorEntry| {
        file.0.floats(&entry.name, &entry.shape).map(|values| (values, form))
    };
    LanguageModel::from_source(&set.spec(), &Device::flex(), source).unwrap()
}

/// Sums over the scored tokens, relative.
fn relative(a: f64, b: f64) -> f64 {
    (a - b).abs() / b.abs() / 1e-5
}

/// Whether a model's log-probabilities of the rows agree with these; every row by itself.
fn log_probs_agree(
    set: &Set,
    model: &LanguageModel,
    expected: &[f32],
) -> Result<Agreement, String> {
    let found = sequence_log_probs(model, &batch(set), &Device::flex());
    let (targets, rows) = scored(set);
    let reference = reference_of(set.spec(), model);
    Agreement::of_all((0..rows.len()).map(|row| {
        let sides = [&f64::from(found[row]), &f64::from(expected[row])];
        let passes = reference.passes(std::slice::from_ref(&rows[row]));
        agree(
            sides,
            |a, b| relative(*a, *b),
            passes,
            |pass| {
                let of = |target: &Target| pass.log_prob(&Target { row: 0, ..*target });
                targets[row].iter().map(of).sum()
            },
        )
    }))
}

#[test]
fn golden_dpo_log_probabilities() {
    for set in sets::with("dpo.safetensors") {
        let (file, policy) = (set.file("dpo.safetensors"), set.model(&Device::flex()));
        let agreement = log_probs_agree(&set, &policy, &file.floats("policy_logps"));
        check(&set, "dpo policy log-probabilities", agreement);
        let agreement = log_probs_agree(&set, &reference_model(&set), &file.floats("ref_logps"));
        check(&set, "dpo reference log-probabilities", agreement);
    }
}

#[test]
fn golden_a_log_probability_that_was_moved_by_a_thousandth_fails_on_every_set() {
    for set in sets::with("dpo.safetensors") {
        let mut spoiled = set.file("dpo.safetensors").floats("ref_logps");
        *spoiled.last_mut().unwrap() += 1e-3;
        let agreement = log_probs_agree(&set, &reference_model(&set), &spoiled);
        assert!(agreement.is_err(), "{}: {agreement:?}", set.name());
    }
}

/// The figures that TRL logs, with their names here and there.
const FIGURES: [(&str, &str); 6] = [
    ("reward_chosen", "rewards/chosen"),
    ("reward_rejected", "rewards/rejected"),
    ("margin", "rewards/margins"),
    ("accuracy", "rewards/accuracies"),
    ("logp_chosen", "logps/chosen"),
    ("logp_rejected", "logps/rejected"),
];

/// The logged figures, loss and gradients of a preference batch.
struct Preference {
    beta: f64,
    figures: [f64; 6],
    rest: LossAndGradients,
}

fn distance(a: &Preference, b: &Preference) -> f64 {
    // A reward is beta times a difference of log-probabilities and has their error.
    let [.., chosen, rejected] = b.figures;
    let log_prob = 2e-6 * chosen.abs().max(rejected.abs());
    let reward = b.beta * log_prob;
    let allowed = [reward, reward, reward, reward, log_prob, log_prob];
    let figures = (0..allowed.len()).map(|i| (a.figures[i] - b.figures[i]).abs() / allowed[i]);
    largest(figures.chain([loss_and_gradients(&a.rest, &b.rest)]))
}

fn expected(set: &Set) -> Preference {
    let (file, meta, beta) = (set.file("dpo.safetensors"), set.meta(), beta(set));
    let number = |(_, theirs)| meta["dpo"]["trl_metrics"][theirs].as_f64().unwrap();
    let named = |name: &String| file.floats(&format!("grad.{name}"));
    let gradients = set.parameter_names().iter().map(named).collect();
    let loss = meta["dpo"]["loss_trl"].as_f64().unwrap();
    Preference { beta, figures: FIGURES.map(number), rest: LossAndGradients { loss, gradients } }
}

fn beta(set: &Set) -> f64 {
    set.meta()["dpo"]["beta"].as_f64().unwrap()
}

fn found(set: &Set) -> Preference {
    let (device, beta) = (Device::flex().autodiff(), beta(set));
    let objective = DpoObjective { beta };
    let reference = set.file("dpo.safetensors").floats("ref_logps");
    let batch = PairBatch { rows: batch(set), reference };
    let model = set.model(&device);
    let outcome = objective.evaluate(&model, &batch, &device);
    let mean = |(ours, _)| {
        let (_, sum) = outcome.metrics.iter().find(|(key, _)| *key == ours).unwrap();
        sum / outcome.count
    };
    let sum = GradAccumulator::of(&model, &objective, &[batch], &device);
    let loss = f64::from(sum.loss());
    let gradients = sum.reduced_gradients(LossReduction::Mean).into_iter().map(host).collect();
    Preference { beta, figures: FIGURES.map(mean), rest: LossAndGradients { loss, gradients } }
}

/// The same of a pass of the f64 model.
fn exact(set: &Set, pass: &Pass) -> Preference {
    let (beta, mut targets) = (beta(set), scored(set).0);
    let reference = set.file("dpo.safetensors").floats("ref_logps");
    let log_probs: Vec<f64> = targets.iter().map(|targets| -pass.loss(targets)).collect();
    let pairs = log_probs.len() / 2;
    let reward = |row: usize| beta * (log_probs[row] - f64::from(reference[row]));
    let margins: Vec<_> = (0..pairs).map(|pair| reward(pair) - reward(pair + pairs)).collect();
    let mean = |of: &dyn Fn(usize) -> f64| (0..pairs).map(of).sum::<f64>() / pairs as f64;
    let figures = [
        mean(&reward),
        mean(&|pair| reward(pair + pairs)),
        mean(&|pair| margins[pair]),
        mean(&|pair| f64::from(u8::from(margins[pair] > 0.0))),
        mean(&|pair| log_probs[pair]),
        mean(&|pair| log_probs[pair + pairs]),
    ];
    for (row, targets) in targets.iter_mut().enumerate() {
        // The derivative of -log sigmoid(margin).
        let slope = beta / (1.0 + margins[row % pairs].exp()) / pairs as f64;
        let weight = if row < pairs { slope } else { -slope };
        for target in targets {
            target.weight = weight;
        }
    }
    let targets: Vec<_> = targets.into_iter().flatten().collect();
    let mut rest = pass.loss_and_gradients(&targets, &set.parameter_names());
    rest.loss = mean(&|pair| (-margins[pair]).exp().ln_1p());
    Preference { beta, figures, rest }
}

fn preference_agrees(set: &Set, expected: &Preference) -> Result<Agreement, String> {
    let reference = set.reference();
    let (_, rows) = scored(set);
    let passes = reference.passes(&rows);
    agree([&found(set), expected], distance, passes, |pass| exact(set, pass))
}

#[test]
fn golden_dpo_loss_metrics_and_gradients() {
    for set in sets::with("dpo.safetensors") {
        check(&set, "dpo loss, figures and gradients", preference_agrees(&set, &expected(&set)));
    }
}

#[test]
fn golden_a_preference_gradient_that_was_scaled_by_a_thousandth_fails_on_every_set() {
    for set in sets::with("dpo.safetensors") {
        let mut spoiled = expected(&set);
        spoiled.rest.gradients[1].iter_mut().for_each(|value| *value *= 1.001);
        let agreement = preference_agrees(&set, &spoiled);
        assert!(agreement.is_err(), "{}: {agreement:?}", set.name());
    }
}

//! Runs with 8-bit gradients by the real program: killed ones repeat the uninterrupted ones to the bit,
//! threads change nothing, adapters train, and metrics say what is lost.

use super::lab::{assert_code, assert_same, metrics, result, stderr};
use super::stages::{kill_stage, lab};

#[test]
fn a_killed_run_with_8_bit_gradients_resumes_to_the_bit() {
    kill_stage("sft.toml", 41, &["train.precision=int8"]);
}

#[test]
fn threads_change_no_bit_of_a_lean_run_with_8_bit_gradients() {
    let lab = lab();
    let words =
        ["train.precision=int8", "train.memory=lean", "train.micro_batch=4", "train.steps=6"];
    let [one, three, nearest] = ["one", "three", "nearest"].map(|name| lab.path(name));
    lab.finish_recipe("sft.toml", &one, &words);
    lab.finish_recipe("sft.toml", &three, &[&words[..], &["--threads", "3"]].concat());
    assert_same(&result(&three), &result(&one), "three threads");
    let parts = ["train.precision=int8", "train.micro_batch=4", "train.steps=4"];
    for recipe in ["sft.toml", "dpo.toml"] {
        let [one, five] = ["1", "5"].map(|threads| {
            let out = lab.path(&format!("{recipe}-{threads}"));
            lab.finish_recipe(recipe, &out, &[&parts[..], &["--threads", threads]].concat());
            result(&out)
        });
        assert_same(&five, &one, recipe);
    }
    let rounding = "train.gradient_rounding=nearest";
    lab.finish_recipe("sft.toml", &nearest, &[&words[..], &[rounding]].concat());
    assert_ne!(result(&nearest).losses, result(&one).losses);
}

#[test]
fn metrics_have_the_shares_that_round_to_zero() {
    let lab = lab();
    let adapter = ["adapter.kind=latent", "adapter.rank=4"];
    for (name, more) in [("all", &[][..]), ("adapter", &adapter)] {
        let out = lab.path(name);
        let words = ["train.precision=int8", "train.steps=4", "telemetry.every=2"];
        lab.finish_recipe("sft.toml", &out, &[&words[..], more].concat());
        let reports: Vec<_> = metrics(&out)
            .into_iter()
            .filter_map(|line| Some((line["step"].as_u64()?, line.get("rounded_away")?.clone())))
            .collect();
        assert_eq!(reports.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [2, 4], "{name}");
        for (_, kinds) in &reports {
            for kind in
                ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
            {
                let input = kinds[kind]["input"].as_f64().unwrap();
                assert!((0.0..0.9).contains(&input), "{name}: {kinds}");
                let weights = &kinds[kind]["weights"];
                assert_eq!(weights.is_null(), name == "adapter", "{name}: {kinds}");
            }
        }
    }
}

#[test]
fn what_8_bit_gradients_cannot_do_is_refused() {
    let lab = lab();
    let refused = |words: &[&str], named: &str| {
        let run = lab.run_recipe("sft.toml", &lab.path("no"), words);
        assert_code(&run, 3);
        assert!(stderr(&run).contains(named), "{}", stderr(&run));
    };
    refused(&["train.precision=int8", "device=ndarray"], "[device]: train.precision \"int8\" runs");
    refused(&["train.reduce_precision=int8"], "[train.reduce_precision]: unknown choice");
    refused(&["train.gradient_rounding=up"], "expected \"stochastic\" or \"nearest\"");
}

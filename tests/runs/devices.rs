//! Whole runs of the real program on every device that is here (`parity::devices`): each stage,
//! evaluation, checkpoints, resuming, and going on elsewhere.

use std::path::Path;

use serde_json::Value;

use super::lab::{Lab, assert_code, metrics, stderr};
use super::stages;
use crate::parity;

/// What two devices may differ by, relative: a level that flips now and then.
const TOLERANCE: f64 = 2e-3;

/// Six steps over the phase switch, saved and evaluated at the third and the last.
const SIX_STEPS: [&str; 4] =
    ["train.steps=6", "optimizer.warmup_steps=2", "eval.every=3", "checkpoint.every=3"];

/// The loss of each step, and its bits.
fn losses(out: &Path) -> Vec<(u64, f64, String)> {
    let lines = metrics(out);
    let step = |line: &Value| {
        let bits = line["loss_bits"].as_str()?.to_owned();
        Some((line["step"].as_u64()?, line["loss"].as_f64()?, bits))
    };
    lines.iter().filter_map(step).collect()
}

/// The last held-out loss.
fn held_out(out: &Path) -> f64 {
    let lines = metrics(out);
    let found = lines.iter().rev().find(|line| line["eval"].is_object()).unwrap();
    let sets = found["eval"].as_object().unwrap();
    sets.values().next().unwrap()["nll_per_token"].as_f64().unwrap()
}

#[track_caller]
fn assert_near(found: &Path, expected: &Path, what: &str) {
    let (ours, theirs) = (losses(found), losses(expected));
    assert!(!ours.is_empty());
    for (step, loss, _) in ours {
        let (_, exact, _) = theirs.iter().find(|(other, ..)| *other == step).unwrap();
        let error = (loss - exact).abs() / exact.abs();
        assert!(error <= TOLERANCE, "{what}, step {step}: {loss} and {exact}");
    }
    let (ours, theirs) = (held_out(found), held_out(expected));
    assert!((ours - theirs).abs() <= TOLERANCE * theirs, "{what}, held out: {ours} and {theirs}");
}

#[test]
fn parity_of_a_run_that_goes_on_here_and_elsewhere() {
    let lab = Lab::new();
    let on = |out: &str, extra: &[&str]| {
        let out = lab.path(out);
        let all = [&SIX_STEPS, extra].concat();
        (lab.finish(&out, &all), out)
    };
    let (_, flex) = on("flex", &[]);
    for (name, _) in parity::devices() {
        let (_, straight) = on(name, &["--device", name]);
        assert_near(&straight, &flex, name);
        assert_eq!(losses(&straight).len(), 6);

        // Fused operations once gave NaN upstream (Burn 5202): without fusion the same curve.
        let plain = lab.path(&format!("{name}-plain"));
        let mut command = lab.command(&plain, &[&SIX_STEPS[..], &["--device", name]].concat());
        let output = command.env("BURN_FUSION_MAX_EXPLORATIONS", "0").output().unwrap();
        assert_code(&output, 0);
        assert_near(&plain, &straight, "without fusion");

        // On the same device to the bit.
        let half = straight.join("step-000003").display().to_string();
        let (_, again) = on(&format!("{name}-again"), &["--device", name, "--resume", &half]);
        assert_eq!(losses(&again), losses(&straight)[3..], "{name}");
        let weights = |out: &Path| fs_err::read(out.join("final/model.safetensors")).unwrap();
        assert!(weights(&again) == weights(&straight), "{name}: weights");

        // From one to the other, either way, and only when that is said.
        let refused = lab.path("refused");
        let silent = lab.run(&refused, &[&SIX_STEPS[..], &["--resume", &half]].concat());
        assert_code(&silent, 3);
        assert!(stderr(&silent).contains("--allow-change device"), "{}", stderr(&silent));
        let allowed = ["--allow-change", "device", "--resume"];
        let (said, back) = on(&format!("{name}-flex"), &[&allowed[..], &[&half]].concat());
        assert!(stderr(&said).contains("within rounding"), "{}", stderr(&said));
        assert_near(&back, &straight, "flex after the device");
        let half = flex.join("step-000003").display().to_string();
        let to = [&["--device", name][..], &allowed, &[&half]].concat();
        assert_near(&on(&format!("flex-{name}"), &to).1, &flex, name);
    }
}

#[test]
fn parity_of_fine_tuning_and_preferences() {
    let lab = stages::lab();
    let few = ["train.steps=4", "optimizer.warmup_steps=1", "eval.every=4", "checkpoint.every=4"];
    for stage in ["sft", "dpo"] {
        let recipe = format!("{stage}.toml");
        let run = |device: &str| {
            let out = lab.path(&format!("{stage}-{device}"));
            lab.finish_recipe(&recipe, &out, &[&few[..], &["--device", device]].concat());
            out
        };
        let expected = run("flex");
        for (name, _) in parity::devices() {
            assert_near(&run(name), &expected, &format!("{stage} on {name}"));
        }
    }
}

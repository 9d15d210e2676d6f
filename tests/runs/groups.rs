//! Runs of models whose scales belong to groups of weights: they learn, resume to the bit, go on from
//! their own model, and their exports are run by the engine; what is not computed for them is refused.

use std::time::Duration;

use bitnet_engine::{Model, ThreadPool, Workspace};
use bitnet_format::StoredModel;
use bitnet_format::group::Group;

use super::kill::{last_step, wait_for, wait_until};
use super::lab::{Dice, Lab, assert_code, assert_same, metrics, result, stderr};
use super::stages::lab_of;

/// Groups of 64, and a ternary embedding of whole packs of rows.
const GROUPS: [&str; 5] = [
    "model.hidden_size=64",
    "model.intermediate_size=128",
    "model.vocab_size=320",
    "model.quantiser={ group = 64 }",
    "model.embedding=ternary",
];

const FORMATS: &str = "export.formats=[\"hf-packed\", \"gguf-q2_0\"]";

fn with<'a>(words: &[&'a str]) -> Vec<&'a str> {
    [&GROUPS, words].concat()
}

#[test]
fn a_killed_run_with_groups_resumes_to_the_bit_and_its_exports_run() {
    let lab = Lab::new();
    let straight = lab.path("straight");
    let words = with(&["train.steps=30", FORMATS, "telemetry.every=5"]);
    let output = lab.finish(&straight, &words);
    let said = stderr(&output);
    let verified = said.lines().filter(|line| line.contains("verified: codes equal")).count();
    assert_eq!(verified, 2, "{said}");
    let expected = result(&straight);
    let losses: Vec<f64> =
        metrics(&straight).iter().filter_map(|line| line["loss"].as_f64()).collect();
    assert!(losses[losses.len() - 1] < losses[0] - 0.5, "it learns: {losses:?}");
    let resume = [&["--resume", "auto"], &*words].concat();
    let mut dice = Dice(31);
    for run in 0..2 {
        let out = lab.path(&format!("killed-{run}"));
        for _ in 0..3 {
            let mut child = lab.spawn(&out, &resume);
            let target = last_step(&out).unwrap_or(0) + 1 + dice.below(6);
            if wait_until(&mut child, || last_step(&out).is_some_and(|step| step >= target)) {
                wait_for(&mut child, Duration::from_micros(dice.below(30_000)));
                let _ = child.kill();
            }
            child.wait().unwrap();
        }
        lab.finish(&out, &resume);
        assert_same(&result(&out), &expected, &format!("run {run}"));
    }
    let file = straight.join("export/model-q2_0.gguf");
    assert_eq!(StoredModel::open(&file).unwrap().spec().quantiser.group, Group::Columns(64));
    let (model, threads) = (Model::load(&file).unwrap(), ThreadPool::new(1).unwrap());
    let mut workspace = Workspace::new(&threads);
    let logits = model.forward_all(&mut workspace, &mut model.new_cache(), &[1, 2, 3]).unwrap();
    assert!(logits.iter().all(|logit| logit.is_finite()));
}

#[test]
fn every_quantiser_trains_in_both_precisions_and_its_model_trains_on() {
    let lab = Lab::new();
    let short = ["train.steps=4", "optimizer.warmup_steps=1", "telemetry.every=2"];
    for (number, words) in [
        &["model.quantiser={ group = \"row\" }", "train.precision=bf16"][..],
        &["model.activations=none", "train.precision=bf16", "train.recompute=true"],
        &["model.embedding=ternary", "model.quantiser={ group = \"matrix\" }"],
        &["optimizer.kind=muon", "model.tie_word_embeddings=false", "train.recompute=true"],
    ]
    .into_iter()
    .enumerate()
    {
        let out = lab.path(&format!("run-{number}"));
        let words = [&GROUPS, &short[..], words, &["export.formats=[\"hf-packed\"]"]].concat();
        let said = stderr(&lab.finish(&out, &words));
        assert!(said.contains("verified: codes equal"), "{said}");
        let flips = metrics(&out).iter().any(|line| line.to_string().contains("embed_tokens"));
        assert_eq!(flips, !words.contains(&"model.embedding=full"), "telemetry of the table");
        let recipe = "stage = \"pretrain\"\n[model]\ninit = \"INIT\"\n[data]\n\
            generate = { stories = 120, held_out = 6 }\nseq_len = 48\ncache = \"cache\"\n\
            [train]\nsteps = 2\nbatch = 4\n[optimizer]\nwarmup_steps = 1\n";
        let recipe = recipe.replace("INIT", &out.join("final").display().to_string());
        fs_err::write(lab.path("on.toml"), recipe).unwrap();
        let on = lab.path(&format!("on-{number}"));
        lab.finish_recipe("on.toml", &on, &[]);
        let spec =
            |out: &std::path::Path| StoredModel::open(&out.join("final")).unwrap().spec().clone();
        assert_eq!(spec(&on), spec(&out));
    }
}

/// A preference run that does not start at ln 2 ends with an error.
#[test]
fn a_model_with_groups_is_fine_tuned_and_learns_preferences() {
    let lab = lab_of(&GROUPS);
    let short = ["train.steps=4", "optimizer.warmup_steps=1", FORMATS];
    for (recipe, micro_batch) in [("sft.toml", "4"), ("dpo.toml", "2")] {
        let out = lab.path(recipe.trim_end_matches(".toml"));
        let micro_batch = format!("train.micro_batch={micro_batch}");
        let words = [&short[..], &[&*micro_batch]].concat();
        let said = stderr(&lab.finish_recipe(recipe, &out, &words));
        assert_eq!(said.matches("verified: codes equal").count(), 2, "{said}");
        let first = metrics(&out).iter().find_map(|line| line["loss"].as_f64()).unwrap();
        let is_a_pair = recipe == "dpo.toml";
        assert!(!is_a_pair || (first - std::f64::consts::LN_2).abs() < 1e-4, "{first}");
    }
}

#[test]
fn threads_change_no_bit_of_a_run_with_groups() {
    let lab = Lab::new();
    let words = with(&["train.steps=5", "optimizer.warmup_steps=1"]);
    let [one, three] = ["one", "three"].map(|name| lab.path(name));
    lab.finish(&one, &words);
    lab.finish(&three, &[&*words, &["--threads", "3"]].concat());
    assert_same(&result(&three), &result(&one), "three threads");
}

#[test]
fn settings_that_groups_do_not_support_are_refused_at_their_line() {
    let lab = Lab::new();
    let refused = |words: &[&str], named: &str| {
        let output = lab.run(&lab.path("refused"), &with(words));
        assert_code(&output, 3);
        assert!(stderr(&output).contains(named), "{named:?} is not in {}", stderr(&output));
    };
    refused(&["train.precision=int8"], "train.precision");
    refused(&["train.latents=bf16"], "train.latents");
    refused(&["train.update=during", "train.recompute=true"], "train.update");
    refused(&["model.hidden_size=96"], "must divide hidden_size (96)");
    refused(&["model.quantiser={ group = 96 }"], "expected \"matrix\", \"row\", 256, 128 or 64");
    refused(&["model.quantiser=64"], "model.quantiser");
    refused(&["model.embedding=half"], "model.embedding");
    refused(&["model.activations=int4"], "model.activations");
    refused(&["export.formats=[\"hf-bf16\"]"], "export.formats");
    refused(&["export.formats=[\"gguf-i2_s\"]"], "export.formats");
}

#[test]
fn what_a_stored_model_with_groups_is_not_trained_with_is_refused() {
    let lab = Lab::new();
    lab.finish(&lab.path("base"), &with(&["train.steps=2", "optimizer.warmup_steps=1"]));
    let recipe = "stage = \"pretrain\"\n[model]\ninit = \"base/final\"\n[data]\n\
        generate = { stories = 120, held_out = 6 }\nseq_len = 48\ncache = \"cache\"\n\
        [train]\nsteps = 2\nbatch = 4\n[optimizer]\nwarmup_steps = 1\n";
    fs_err::write(lab.path("on.toml"), recipe).unwrap();
    for (words, named) in [
        (&["train.precision=int8"][..], "[train.precision]"),
        (&["train.memory=lean", "train.micro_batch=4"], "[train.latents]"),
        (&["adapter.kind=latent", "adapter.rank=4"], "[adapter.kind]"),
    ] {
        let output = lab.run_recipe("on.toml", &lab.path("refused"), words);
        assert_code(&output, 3);
        assert!(stderr(&output).contains(named), "{named:?} is not in {}", stderr(&output));
    }
}

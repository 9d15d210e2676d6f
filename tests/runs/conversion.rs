//! A dense model that is trained as a ternary one: what it starts from, how it becomes ternary, and that
//! a killed run repeats the uninterrupted one to the bit.

use std::path::Path;

use bitnet_format::StoredModel;

use super::kill::{last_step, wait_until};
use super::lab::{Lab, assert_code, assert_same, metrics, result, stderr};

const CONVERT: &str = r#"
stage = "pretrain"
seed = 4
[model]
init = "dense/final"
quantise = true
insert_sub_norms = true
[ternary_warmup]
steps = 10
shape = "sigmoid"
[data]
generate = { stories = 60, held_out = 6 }
seq_len = 48
cache = "cache"
[train]
steps = 14
batch = 4
micro_batch = 2
[[phase]]
name = "main"
share = 1.0
learning_rate = { shape = "linear", peak = 1e-3, end = 0.0 }
data = { general = 1.0 }
[optimizer]
warmup_steps = 1
[eval]
every = 7
[checkpoint]
every = 2
[export]
formats = ["hf-packed"]
"#;

/// A laboratory with a dense model without sub-norms and the recipe that converts it.
fn lab() -> Lab {
    let lab = Lab::new();
    let dense = ["model.quantise=false", "model.sub_norms=false", "model.hidden_act=silu"];
    let short = ["train.steps=20", "eval.every=0", "sample.every=0", "checkpoint.every=0"];
    lab.finish(
        &lab.path("dense"),
        &[dense, ["optimizer.warmup_steps=1", short[0], short[1]]].concat(),
    );
    fs_err::write(lab.path("convert.toml"), CONVERT).unwrap();
    lab
}

fn first_loss(lab: &Lab, name: &str, words: &[&str]) -> f64 {
    let out = lab.path(name);
    let short = ["train.steps=12", "train.max_minutes=0", "export.formats=[]"];
    lab.finish_recipe("convert.toml", &out, &[&short[..], words].concat());
    metrics(&out)[0]["loss"].as_f64().unwrap()
}

fn spec(folder: &Path) -> bitnet_format::ModelSpec {
    StoredModel::open(folder).unwrap().spec().clone()
}

#[test]
fn a_dense_model_becomes_ternary_over_its_warm_up() {
    let lab = lab();
    let out = lab.path("out");
    lab.finish_recipe("convert.toml", &out, &[]);
    let (before, after) = (spec(&lab.path("dense/final")), spec(&out.join("final")));
    assert!(!before.quantise && !before.sub_norms && after.quantise && after.sub_norms);
    assert!(StoredModel::open(&out.join("export/hf-packed")).unwrap().is_packed());
    let lambda: Vec<f64> =
        metrics(&out).iter().filter_map(|line| line["ternary_lambda"].as_f64()).collect();
    assert_eq!(lambda.len(), 14);
    assert!(lambda.is_sorted() && lambda[0] < 0.05 && lambda[8] < 1.0, "{lambda:?}");
    assert_eq!(lambda[9..], [1.0; 5]);
}

#[test]
fn it_starts_as_nearly_as_it_can_as_the_dense_model() {
    let lab = lab();
    let plain = ["model.quantise=false", "model.insert_sub_norms=false"];
    let none = fs_err::read_to_string(lab.path("convert.toml")).unwrap();
    let warm = first_loss(&lab, "warm", &[]);
    let (head, tail) = none.split_once("[ternary_warmup]").unwrap();
    let without = format!("{head}{}", tail.split_once("\"sigmoid\"\n").unwrap().1);
    fs_err::write(lab.path("convert.toml"), without).unwrap();
    let dense = first_loss(&lab, "plain", &plain);
    let inserted = first_loss(&lab, "inserted", &plain[..1]);
    let ternary = first_loss(&lab, "ternary", &[]);
    println!("dense {dense}, sub-norms {inserted}, warm-up {warm}, ternary {ternary}");
    assert!(
        (inserted - dense).abs() < 0.25 * (ternary - dense).abs(),
        "{inserted} {dense} {ternary}"
    );
    assert!((warm - dense).abs() < 0.5 * (ternary - dense).abs(), "{warm} {dense} {ternary}");
}

#[test]
fn a_killed_conversion_resumes_to_the_bit() {
    let lab = lab();
    let [straight, killed] = ["straight", "killed"].map(|name| lab.path(name));
    lab.finish_recipe("convert.toml", &straight, &["--threads", "2"]);
    let resume = ["--resume", "auto"];
    for step in [3, 7] {
        let mut child = lab.spawn_recipe("convert.toml", &killed, &resume);
        wait_until(&mut child, || last_step(&killed).is_some_and(|last| last >= step));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    lab.finish_recipe("convert.toml", &killed, &resume);
    assert_same(&result(&killed), &result(&straight), "killed in the middle of the warm-up");
}

#[test]
fn what_does_not_fit_together_is_named() {
    let lab = lab();
    let refused = |words: &[&str], named: &str| {
        let output = lab.run_recipe("convert.toml", &lab.path("refused"), words);
        assert_code(&output, 3);
        assert!(stderr(&output).contains(named), "{named:?} is not in {}", stderr(&output));
    };
    refused(&["ternary_warmup.steps=15"], "at most its 14 steps, got 15");
    refused(&["train.tokens=1000"], "expected at most the run's 6 steps");
    refused(&["ternary_warmup.steps=0"], "ternary_warmup.steps");
    refused(&["ternary_warmup.shape=step"], "ternary_warmup.shape");
    refused(&["model.quantise=false"], "expected model.quantise = true, got a dense model");
    refused(&["model.quantiser={ group = 128 }"], "quantiser.group (128) must divide");
    refused(&["model.hidden_size=32"], "a shape beside `model.init`");
    refused(&["stage=dpo", "data.generate={}"], "[ternary_warmup]");
    refused(&["adapter.kind=latent"], "[ternary_warmup]");
    lab.finish_recipe("convert.toml", &lab.path("done"), &[]);
    let again = format!("model.init={}", lab.path("done/final").display());
    refused(&[&again], "the model has sub-norms already");
    refused(
        &[&again, "model.insert_sub_norms=false", "model.quantise=false"],
        "expected a dense model, got a ternary one",
    );
    let output = lab.run(&lab.path("refused"), &["model.insert_sub_norms=true"]);
    assert_code(&output, 3);
    assert!(stderr(&output).contains("expected model.init beside it"), "{}", stderr(&output));
}

#[test]
fn convert_says_what_it_cost_and_goes_on_after_a_kill() {
    let lab = lab();
    let text: String =
        (0..80).map(|n| format!("The {n} red boats are in the wide barn.\n\n")).collect();
    fs_err::write(lab.path("text.txt"), text).unwrap();
    let command = |name: &str, extra: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_bitnet-train"));
        command.arg("convert").arg("--model").arg(lab.path("dense/final"));
        command.arg("--data").arg(lab.path("text.txt")).arg("--out").arg(lab.path(name));
        let short =
            ["data.seq_len=48", "data.text_split=blank-line", "train.epochs=4", "eval.every=0"];
        command.args(["--json", "--threads", "1", "--resume", "auto"]).args(short);
        command.arg(format!("data.cache={}", lab.path("cache").display())).args(extra);
        command
    };
    let output = command("out", &[]).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let line: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let loss = |model: &str| line[model]["validation"]["nll_per_token"].as_f64().unwrap();
    let [dense, untrained, trained] = ["dense", "untrained", "trained"].map(loss);
    assert!(dense < untrained, "rounding costs something: {line}");
    assert!(trained < untrained, "and training gets it back: {line}");
    assert!(spec(&lab.path("out/final")).quantise);
    assert!(StoredModel::open(&lab.path("out/export/hf-packed")).unwrap().is_packed());

    let mut child = command("killed", &["checkpoint.every=1"]).spawn().unwrap();
    wait_until(&mut child, || last_step(&lab.path("killed")).is_some_and(|step| step >= 3));
    child.kill().unwrap();
    child.wait().unwrap();
    let output = command("killed", &["checkpoint.every=1"]).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert_same(&result(&lab.path("killed")), &result(&lab.path("out")), "killed and called again");

    let other = format!("model.init={}", lab.path("other").display());
    let refused = command("twice", &[&other]).output().unwrap();
    assert_code(&refused, 2);
    assert!(stderr(&refused).contains("--model and --data name these"), "{}", stderr(&refused));
    let missing = lab.path("nowhere").display().to_string();
    let refused = command("taught", &["--teacher", &missing]).output().unwrap();
    assert!(stderr(&refused).contains("distill.teacher"), "{}", stderr(&refused));

    let again = lab.path("out/final").display().to_string();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_bitnet-train"));
    command.args(["convert", "--model", &again, "--data", "x.txt", "--out", "y"]);
    let refused = command.output().unwrap();
    assert_code(&refused, 2);
    assert!(stderr(&refused).contains("expected a dense model"), "{}", stderr(&refused));
}

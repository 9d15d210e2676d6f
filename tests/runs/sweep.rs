//! Ladders of runs and the laws fitted to them; runs whose batch grows.

use std::process::{Command, Output};

use serde_json::Value;

use super::lab::{Lab, assert_code, assert_same, metrics, result, stderr};

fn tool(lab: &Lab, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bitnet-train"));
    command.current_dir(lab.path("")).args(arguments).output().unwrap()
}

const SWEEP: [&str; 13] = [
    "sweep",
    "--set",
    "general",
    "--recipe",
    "recipe.toml",
    "--sizes",
    "32:1",
    "--weights",
    "ternary,dense",
    "--threads",
    "1",
    "--out",
    "ladder",
];

#[test]
fn a_sweep_trains_each_run_once_and_is_extended_by_another() {
    let lab = Lab::new();
    let sweep = |extra: &[&str]| {
        let quick = ["sample.every=0", "eval.every=0", "checkpoint.every=0"];
        tool(&lab, &[&SWEEP[..], &quick, extra].concat())
    };
    let output = sweep(&["--tokens", "1k", "--json"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found["runs"].as_array().unwrap().len(), 2);
    assert!(found["runs"][0]["nll_per_token"].as_f64().unwrap() > 1.0);
    let weights = || fs_err::read(lab.path("ladder/32x1-1000-dense-seed1/final/model.safetensors"));
    let before = weights().unwrap();
    assert!(sweep(&["--tokens", "1k,2k"]).status.success());
    assert!(before == weights().unwrap());
    let table = fs_err::read_to_string(lab.path("ladder/ladder.csv")).unwrap();
    let rows: Vec<&str> = table.lines().collect();
    assert_eq!((rows.len(), rows[0]), (5, "run,parameters,tokens,weights,seed,loss"));
    assert!(rows[1].starts_with("32x1-1000-ternary-seed1,"), "{table}");
    // Two amounts of tokens and one size are no law.
    let fit = tool(&lab, &["fit", "ladder", "--set", "general"]);
    assert_code(&fit, 7);
    assert!(stderr(&fit).contains("1 sizes, 2 amounts of tokens"), "{}", stderr(&fit));
}

#[test]
fn mistakes_of_a_sweep_are_named_before_the_first_run() {
    let lab = Lab::new();
    for (words, code, what) in [
        (&["--sizes", "huge", "--tokens", "1k"][..], 2, "hidden:layers"),
        (&["--sizes", "32:1", "--tokens", "many"], 2, "number of tokens"),
        (&["--sizes", "32:1", "--tokens", "1k"], 2, "--set: expected one of"),
        (&["--sizes", "40:1", "--tokens", "1k"], 2, "multiple of 32"),
        (&["--sizes", "32:1", "--tokens", "1k", "train.batch=0"], 3, "train.batch"),
    ] {
        let start = ["sweep", "--recipe", "recipe.toml", "--out", "ladder"];
        let output = tool(&lab, &[&start[..], words].concat());
        assert_code(&output, code);
        assert!(stderr(&output).contains(what), "{words:?}: {}", stderr(&output));
        assert!(!lab.path("ladder").exists());
    }
}

#[test]
fn a_run_whose_batch_grows_resumes_to_the_bit() {
    let lab = Lab::new();
    let words =
        ["train.batch_warmup={ start = 1, steps = 20 }", "checkpoint.keep=30", "eval.every=0"];
    let (whole, rest) = (lab.path("whole"), lab.path("rest"));
    lab.finish(&whole, &words);
    let from = whole.join("step-000010").to_string_lossy().into_owned();
    lab.finish(&rest, &[&words[..], &["--resume", &from]].concat());
    let (whole_result, mut rest_result) = (result(&whole), result(&rest));
    assert_eq!(rest_result.losses.len(), 20);
    for step in 1..=10 {
        rest_result.losses.insert(step, whole_result.losses[&step].clone());
    }
    assert_same(&rest_result, &whole_result, "resumed while the batch grows");
    // 1 + 3·(t − 1)/20 rows, rounded down, of at most 48 tokens, then 4.
    let tokens = |step: u64| {
        let lines = metrics(&whole);
        let line = lines.iter().find(|line| line["step"] == step && line["tokens"].is_u64());
        line.unwrap()["tokens"].as_u64().unwrap()
    };
    assert!(tokens(7) <= 7 * 48 && tokens(8) - tokens(7) > 48);
    assert!(tokens(30) - tokens(29) > 3 * 48);
}

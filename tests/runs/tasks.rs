//! Benchmarks in training by the real program: what is missing is told before the first step, and the
//! scores are those of the exported model.

use std::ops::ControlFlow;
use std::process::Command;

use bitnet_engine::{Model, ThreadPool};
use bitnet_eval::{AskedModel, Benchmark};
use bitnet_text::Tokenizer;
use serde_json::{Value, json};

use rustix::process::{Pid, Signal, kill_process};

use super::kill::{last_step, wait_until};
use super::lab::{Lab, assert_code, metrics, stderr};

const TASK: &str = "task: own\noutput_type: multiple_choice\ntest_split: test\ndoc_to_text: q\n\
                    doc_to_choice: c\ndoc_to_target: a\n";

/// A laboratory with a task of this many rows.
fn lab(rows: usize) -> Lab {
    let lab = Lab::new();
    add_task(&lab, rows);
    lab
}

/// Writes the task `own.yaml`, with its rows below `sets`.
pub(super) fn add_task(lab: &Lab, rows: usize) {
    fs_err::create_dir_all(lab.path("sets/own")).unwrap();
    let row = |at: usize| json!({"q": format!("the {at}"), "c": ["fox", "dog"], "a": at % 2});
    let rows: Vec<String> = (0..rows).map(|at| row(at).to_string()).collect();
    fs_err::write(lab.path("sets/own/test.jsonl"), rows.join("\n")).unwrap();
    fs_err::write(lab.path("own.yaml"), TASK).unwrap();
}

#[test]
fn scores_in_training_are_those_of_the_export() {
    check_scores(&[]);
}

#[test]
fn scores_of_a_model_with_groups_are_those_of_the_export() {
    let model = ["model.hidden_size=64", "model.intermediate_size=128", "model.vocab_size=320"];
    let quantised = ["model.quantiser={ group = 64 }", "model.embedding=ternary"];
    check_scores(&[&model[..], &quantised].concat());
}

fn check_scores(model: &[&str]) {
    let lab = lab(5);
    let out = lab.path("out");
    let words = [
        "eval.tasks=[\"own.yaml\"]",
        "eval.task_data=sets",
        "eval.task_limit=4",
        "eval.task_every=2",
        "train.steps=5",
        "optimizer.warmup_steps=1",
        "export.formats=[\"hf-packed\"]",
    ];
    lab.finish_recipe("recipe.toml", &out, &[&words, model].concat());
    let asked = |line: &Value| Some((line["step"].as_u64()?, line.get("tasks")?["own"].clone()));
    let found: Vec<_> = metrics(&out).iter().filter_map(asked).collect();
    assert_eq!(found.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [2, 4, 5]);
    let packed = out.join("export/hf-packed");
    let model = Model::load(&packed).unwrap();
    let tokenizer = Tokenizer::from_file(&packed.join("tokenizer.json")).unwrap();
    let names = [lab.path("own.yaml").to_string_lossy().into_owned()];
    let benchmark = Benchmark::open(&names, &lab.path("sets"), Some(4)).unwrap();
    let threads = ThreadPool::new(1).unwrap();
    let asked = AskedModel { model: &model, tokenizer: &tokenizer, chat: None, threads: &threads };
    let scores = benchmark.run(asked, &mut |_, _, _| ControlFlow::Continue(())).unwrap();
    let last = &found[2].1;
    assert_eq!(last["rows"], 4);
    // The checkpoint, packed by the command.
    let folder = out.join("final");
    let asked = [
        "eval",
        &folder.to_string_lossy(),
        "--tasks",
        "own.yaml",
        "--data",
        "sets",
        "--limit",
        "4",
        "--json",
    ];
    let mut program = Command::new(env!("CARGO_BIN_EXE_bitnet-train"));
    let output = program.args(asked).current_dir(lab.path(".")).output().unwrap();
    assert_code(&output, 0);
    let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(printed["own"], *last);
    for metric in &scores[0].metrics {
        assert_eq!(last[&metric.metric].as_f64(), Some(metric.score), "{}", metric.metric);
    }
}

#[test]
fn questions_about_stories_need_no_data() {
    let lab = lab(6);
    let out = lab.path("run");
    let words = [
        "eval.tasks=[\"stories_one\", \"stories_three\"]",
        "eval.task_limit=2",
        "train.steps=2",
        "optimizer.warmup_steps=1",
    ];
    lab.finish_recipe("recipe.toml", &out, &words);
    let tasks = metrics(&out).into_iter().find_map(|line| line.get("tasks").cloned()).unwrap();
    let folder = out.join("final");
    let folder = folder.to_string_lossy();
    let asked = ["eval", &folder, "--tasks", "stories_one,stories_three", "--limit", "2", "--json"];
    let program = || Command::new(env!("CARGO_BIN_EXE_bitnet-train"));
    let output = program().args(asked).output().unwrap();
    assert_code(&output, 0);
    assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap(), tasks);
    assert_eq!(
        (&tasks["stories_one"]["rows"], &tasks["stories_three"]["rows"]),
        (&json!(2), &json!(2))
    );
    let other = program().args(["eval", &folder, "--tasks", "stories_one,piqa"]).output().unwrap();
    assert_code(&other, 2);
    assert!(stderr(&other).contains("--data"), "{}", stderr(&other));
    let unknown = program().args(["eval", &folder, "--tasks", "arc_esay"]).output().unwrap();
    assert_code(&unknown, 2);
    assert!(stderr(&unknown).contains("arc_easy"), "{}", stderr(&unknown));
}

#[test]
fn a_signal_in_the_middle_of_a_task_saves_and_the_resumed_run_asks_it_again() {
    let lab = lab(4000);
    let words = [
        "eval.tasks=[\"own.yaml\"]",
        "eval.task_data=sets",
        "eval.task_every=2",
        "train.steps=3",
        "optimizer.warmup_steps=1",
    ];
    let straight = lab.path("straight");
    lab.finish_recipe("recipe.toml", &straight, &words);
    let out = lab.path("stopped");
    let mut child = lab.spawn_recipe("recipe.toml", &out, &words);
    assert!(wait_until(&mut child, || last_step(&out) == Some(2)));
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(143));
    let asked = |out| metrics(out).iter().filter_map(|line| line.get("tasks").cloned()).collect();
    let before: Vec<Value> = asked(&out);
    assert!(before.is_empty(), "the signal came too late: {before:?}");
    lab.finish_recipe("recipe.toml", &out, &[&["--resume", "auto"], &words[..]].concat());
    let (found, expected): (Vec<Value>, Vec<Value>) = (asked(&out), asked(&straight));
    assert_eq!((found.len(), found), (2, expected));
}

#[test]
fn tasks_that_cannot_be_run_are_named_before_the_first_step() {
    let lab = lab(5);
    let refused = |words: &[&str], code: i32, named: &str| {
        let output = lab.run_recipe("recipe.toml", &lab.path("refused"), words);
        assert_code(&output, code);
        assert!(stderr(&output).contains(named), "{named:?} is not in {}", stderr(&output));
        assert!(!lab.path("refused/metrics.jsonl").exists());
    };
    let data = "eval.task_data=sets";
    refused(&["eval.tasks=[\"own.yaml\"]"], 3, "task_data");
    refused(&["eval.tasks=[\"arc_esay\"]", data], 3, "arc_easy");
    refused(&["eval.tasks=[\"arc_easy\"]", data], 4, "no data for split");
    refused(&["eval.tasks=[\"own.yaml\"]", data, "model.quantise=false"], 3, "[eval.tasks]");
}

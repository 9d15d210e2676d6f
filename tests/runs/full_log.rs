//! A disk without room for the logs of a run: training goes on, and the logs end up whole.
#![cfg(target_os = "linux")]

use std::path::{Path, PathBuf};
use std::process::{Child, Output};
use std::time::Duration;

use super::lab::{Lab, assert_code, assert_same, metrics, result, stderr};

const WORDS: [&str; 1] = ["train.steps=40"];

/// Starts a run and takes its log's room away after some steps; the run, and what was logged.
fn started_and_filled(lab: &Lab, out: &Path) -> (Child, PathBuf) {
    let mut child = lab.command(out, &WORDS).spawn().unwrap();
    let (log, kept) = (out.join("metrics.jsonl"), out.join("kept.log"));
    let lines = || fs_err::read_to_string(&log).unwrap_or_default().lines().count();
    wait_for(&mut child, || lines() >= 4);
    fs_err::rename(&log, &kept).unwrap();
    std::os::unix::fs::symlink("/dev/full", &log).unwrap();
    (child, kept)
}

fn wait_for(child: &mut Child, condition: impl Fn() -> bool) {
    while !condition() {
        assert!(child.try_wait().unwrap().is_none(), "the run ended before");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Every step was logged once, in order.
#[track_caller]
fn assert_whole(out: &Path) {
    let steps: Vec<u64> = metrics(out)
        .iter()
        .filter(|line| line.get("loss").is_some())
        .map(|line| line["step"].as_u64().unwrap())
        .collect();
    assert_eq!(steps, (1..=40).collect::<Vec<_>>());
}

#[track_caller]
fn assert_said_once(output: &Output) {
    let said = stderr(output);
    assert_eq!(said.matches("training goes on, and what the logs lack").count(), 1, "{said}");
}

#[test]
fn a_log_without_room_is_completed_when_there_is_some() {
    let lab = Lab::new();
    let (straight, out) = (lab.path("straight"), lab.path("out"));
    lab.finish(&straight, &WORDS);
    let (mut child, kept) = started_and_filled(&lab, &out);
    wait_for(&mut child, || out.join("step-000020").exists());
    fs_err::rename(kept, out.join("metrics.jsonl")).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_code(&output, 0);
    assert_said_once(&output);
    assert!(stderr(&output).contains("there is room again"), "{}", stderr(&output));
    assert_whole(&out);
    assert_same(&result(&out), &result(&straight), "after a full log");
}

#[test]
fn a_run_whose_log_never_gets_room_ends_saved_and_its_resume_completes_the_log() {
    let lab = Lab::new();
    let (straight, out) = (lab.path("straight"), lab.path("out"));
    lab.finish(&straight, &WORDS);
    let (child, kept) = started_and_filled(&lab, &out);
    let output = child.wait_with_output().unwrap();
    assert_code(&output, 5);
    assert_said_once(&output);
    assert!(stderr(&output).contains("metrics.jsonl"), "{}", stderr(&output));
    bitnet_train::checkpoint::verify(&out.join("step-000040")).unwrap();
    fs_err::rename(kept, out.join("metrics.jsonl")).unwrap();
    lab.finish(&out, &[&WORDS[..], &["--resume", "auto"]].concat());
    assert_whole(&out);
    assert_same(&result(&out), &result(&straight), "after a full log and a resume");
}

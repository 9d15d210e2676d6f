//! SIGINT and SIGTERM save and exit with their codes; a second process is refused.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Child;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::lab::{Lab, assert_code, assert_same, result, stderr};

/// Long enough that a signal finds the run at work, however busy the machine is.
const LONG: &str = "train.steps=150";

fn send(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

fn wait_for_step(out: &Path, child: &mut Child) {
    while !fs_err::read_to_string(out.join("metrics.jsonl"))
        .is_ok_and(|t| t.contains("\"step\":5,"))
    {
        assert!(child.try_wait().unwrap().is_none(), "the run ended before the signal");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn interrupt_and_terminate_save_and_the_resumed_run_is_the_same() {
    let lab = Lab::new();
    lab.finish(&lab.path("straight"), &[LONG]);
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143), (Signal::HUP, 129)] {
        let out = lab.path(&format!("stopped-{code}"));
        let mut child = lab.spawn(&out, &[LONG]);
        wait_for_step(&out, &mut child);
        send(&child, signal);
        assert_eq!(child.wait().unwrap().code(), Some(code));
        let saved = bitnet_train::checkpoint::list(&out).unwrap();
        let (step, newest) = saved.last().unwrap();
        bitnet_train::checkpoint::verify(newest).unwrap();
        assert!(*step >= 5, "the stop was saved at step {step}");
        lab.finish(&out, &["--resume", "auto", LONG]);
        assert_same(&result(&out), &result(&lab.path("straight")), "after a signal");
    }
}

#[test]
fn work_that_leaves_nothing_half_done_ends_at_once_with_the_same_codes() {
    let lab = Lab::new();
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_bitnet-train"))
            .args(["bench", "--seq-len", "16", "--batch", "1"])
            .args(["--steps", "1000000", "--config"])
            .arg(lab.path("shape.toml"))
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let (mut said, mut line) = (BufReader::new(child.stderr.take().unwrap()), String::new());
        said.read_line(&mut line).unwrap();
        assert!(line.starts_with("step 1"), "{line}");
        send(&child, signal);
        assert_eq!(child.wait().unwrap().code(), Some(code));
    }
}

/// As after `nohup`, or when a shell passes on what the terminal has sent already.
#[test]
fn a_hangup_that_was_ignored_from_the_start_stays_ignored_and_two_are_as_one() {
    let lab = Lab::new();
    let out = lab.path("nohup");
    let run = lab.command(&out, &["train.steps=40"]);
    let mut child = std::process::Command::new("sh")
        .args(["-c", "trap '' HUP; exec \"$0\" \"$@\""])
        .arg(run.get_program())
        .args(run.get_args())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    wait_for_step(&out, &mut child);
    send(&child, Signal::HUP);
    assert!(child.wait().unwrap().success());
    let out = lab.path("twice");
    let mut child = lab.spawn(&out, &[LONG]);
    wait_for_step(&out, &mut child);
    send(&child, Signal::HUP);
    send(&child, Signal::HUP);
    assert_eq!(child.wait().unwrap().code(), Some(129));
    let saved = bitnet_train::checkpoint::list(&out).unwrap();
    bitnet_train::checkpoint::verify(&saved.last().unwrap().1).unwrap();
}

#[test]
fn a_touched_file_makes_a_checkpoint_and_the_run_goes_on() {
    let lab = Lab::new();
    let out = lab.path("out");
    let mut child = lab.spawn(&out, &["checkpoint.every=1000", LONG]);
    wait_for_step(&out, &mut child);
    fs_err::write(out.join("SAVE_NOW"), "").unwrap();
    assert!(child.wait().unwrap().success());
    let saved: Vec<_> = bitnet_train::checkpoint::list(&out).unwrap();
    assert_eq!(saved.len(), 2, "the one asked for and the last one");
    assert!(!out.join("SAVE_NOW").exists());
}

#[test]
fn a_second_process_on_the_same_directory_is_refused_by_name() {
    let lab = Lab::new();
    let out = lab.path("out");
    let mut first = lab.spawn(&out, &[LONG]);
    wait_for_step(&out, &mut first);
    let second = lab.run(&out, &["--resume", "auto", LONG]);
    first.kill().unwrap();
    first.wait().unwrap();
    assert_code(&second, 7);
    assert!(stderr(&second).contains("another process trains here"), "{}", stderr(&second));
    assert!(stderr(&second).contains(&first.id().to_string()), "{}", stderr(&second));
    // The lock of a killed process is no obstacle.
    lab.finish(&out, &["--resume", "auto", LONG]);
}

#[test]
fn a_finished_run_stays_as_it_is_and_a_new_one_is_refused() {
    let lab = Lab::new();
    let out = lab.path("out");
    lab.finish(&out, &[]);
    let log = fs_err::read(out.join("metrics.jsonl")).unwrap();
    let again = lab.finish(&out, &["--resume", "auto"]);
    assert!(stderr(&again).contains("finished"), "{}", stderr(&again));
    let refused = lab.run(&out, &[]);
    assert_code(&refused, 7);
    assert!(stderr(&refused).contains("--resume auto"), "{}", stderr(&refused));
    assert_eq!(fs_err::read(out.join("metrics.jsonl")).unwrap(), log);
}

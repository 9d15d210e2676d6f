//! Two machines joined by nothing but a network, made of namespaces by `scripts/two_hosts.sh`;
//! skipped with a line where they cannot be made.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use super::mpi::{ENDS_WITHIN, FREELY, available, finish, group, launcher, send};
use super::{TERNARY, differences};
use crate::runs::kill::{last_step, wait_until};
use crate::runs::lab::{Lab, assert_same, result, stderr};

/// What `scripts/two_hosts.sh` ends with where namespaces cannot be made.
const NO_NAMESPACES: i32 = 77;

fn script(name: &str) -> Command {
    let mut command = Command::new(format!("{}/scripts/{name}", env!("CARGO_MANIFEST_DIR")));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A rank on each host; `None` where there can be no hosts.
fn on_two_hosts(lab: &Lab, out: &Path, words: &[&str]) -> Option<Output> {
    let output = script("two_hosts.sh").args(group(lab, 2, "recipe.toml", out, words)).output();
    let output = output.unwrap();
    if output.status.code() == Some(NO_NAMESPACES) {
        println!("{}", stderr(&output).trim_end());
        return None;
    }
    assert!(output.status.success(), "{}", stderr(&output));
    Some(output)
}

#[test]
fn mpi_two_hosts_give_the_bits_that_two_ranks_of_one_give() {
    if !available() {
        return;
    }
    let lab = Lab::new();
    let (here, there) = (lab.path("here"), lab.path("there"));
    let Some(output) = on_two_hosts(&lab, &there, &["train.shard_optimizer=true"]) else { return };
    let told = stderr(&output);
    println!("{}", told.lines().last().unwrap());
    assert!(told.contains("over the cable: ") && told.contains("on 2 ranks"), "{told}");
    finish(&lab, 2, &here, &[]);
    assert_same(&result(&there), &result(&here), "two hosts");
    let one = lab.path("one");
    lab.finish(&one, &[]);
    TERNARY.check(differences(&there, &one), "two hosts, a rank each");
}

#[test]
fn mpi_a_host_that_is_cut_off_ends_the_run_and_another_continues_it() {
    if !available() {
        return;
    }
    let lab = Lab::new();
    let (straight, out, cut) = (lab.path("straight"), lab.path("out"), lab.path("cut"));
    let words = ["eval.every=0", "sample.every=0", "train.steps=300", "checkpoint.every=20"];
    let mut command = script("two_hosts.sh");
    command.env("CUT", &cut).stdout(Stdio::null());
    // How soon Open MPI gives up on a host that says nothing.
    for (setting, seconds) in [("time", "5"), ("intvl", "5"), ("probes", "2")] {
        command.args(["--mca", &format!("oob_tcp_keepalive_{setting}"), seconds]);
    }
    let mut child = command.args(group(&lab, 2, "recipe.toml", &out, &words)).spawn().unwrap();
    if !wait_until(&mut child, || last_step(&out) >= Some(60)) {
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(NO_NAMESPACES), "{}", stderr(&output));
        println!("{}", stderr(&output).trim_end());
        return;
    }
    fs_err::write(&cut, "").unwrap();
    let began = Instant::now();
    let output = child.wait_with_output().unwrap();
    let took = began.elapsed();
    println!("cut off; the run ended {:.0} s later", took.as_secs_f64());
    assert!(took < ENDS_WITHIN && !output.status.success(), "{took:?}: {}", stderr(&output));
    let told = stderr(&output);
    assert!(told.contains("lost communication with a remote daemon"), "{told}");
    finish(&lab, 2, &out, &[&words[..], &["--resume", "auto"]].concat());
    finish(&lab, 2, &straight, &words);
    assert_same(&result(&out), &result(&straight), "after the cut");
}

#[test]
fn mpi_a_supervised_run_survives_killed_ranks() {
    if !available() {
        return;
    }
    let lab = Lab::new();
    let (straight, out) = (lab.path("straight"), lab.path("out"));
    let words = ["eval.every=0", "sample.every=0", "train.steps=200", "checkpoint.every=10"];
    finish(&lab, 2, &straight, &words);
    let mut command = script("supervise");
    command.args(["--delay", "0"]).arg(&out).arg(launcher());
    command.envs(FREELY).args(group(
        &lab,
        2,
        "recipe.toml",
        &out,
        &[&words[..], &["--resume", "auto"]].concat(),
    ));
    let mut child = command.spawn().unwrap();
    for (rank, step) in [(1, 50), (0, 100), (1, 150)] {
        assert!(wait_until(&mut child, || last_step(&out) >= Some(step)));
        let killed = format!("/proc/{}", send("KILL", &out, rank));
        // Until it is gone, the next look would find the same process.
        while Path::new(&killed).exists() {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    let output = child.wait_with_output().unwrap();
    let told = stderr(&output);
    assert!(output.status.success(), "{told}");
    // 137 of Open MPI, 9 of MPICH.
    assert_eq!(told.matches("supervise: ended with code ").count(), 3, "{told}");
    assert_same(&result(&out), &result(&straight), "after three restarts");
}

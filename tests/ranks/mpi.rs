//! Several ranks of the real program under `mpirun`: signals, kills, resuming on other numbers of ranks,
//! and ranks that disagree. Skipped with a line where there is no `mpirun`, unless
//! `BITNET_REQUIRE_MPI` is set.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use super::{DENSE, DENSE_TWIN, TERNARY, differences};
use crate::runs::kill::{last_step, wait_until};
use crate::runs::lab::{Lab, assert_code, assert_same, metrics, result, stderr};
use crate::runs::stages;

/// What a cluster's scheduler promises its users: nobody computes for nothing for longer.
pub(super) const ENDS_WITHIN: Duration = Duration::from_secs(30);

/// What starts ranks: `mpirun`, or what `MPIEXEC` says, which has to be that of the library that the
/// build was linked with.
pub(super) fn launcher() -> String {
    std::env::var("MPIEXEC").unwrap_or_else(|_| "mpirun".to_owned())
}

/// Whether it is there.
pub(super) fn available() -> bool {
    let found = Command::new(launcher()).arg("--version").output().is_ok();
    assert!(found || std::env::var_os("BITNET_REQUIRE_MPI").is_none(), "no mpirun");
    if !found {
        println!("skipped: no mpirun (Debian: openmpi-bin)");
    }
    found
}

/// What lets Open MPI's `mpirun` work for root, and with more ranks than cores; MPICH's asks for none.
pub(super) const FREELY: [(&str, &str); 4] = [
    ("OMPI_ALLOW_RUN_AS_ROOT", "1"),
    ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"),
    ("OMPI_MCA_rmaps_base_oversubscribe", "1"),
    ("OMPI_MCA_hwloc_base_binding_policy", "none"),
];

/// `mpirun` on this machine, however few cores it has.
fn mpirun() -> Command {
    let mut command = Command::new(launcher());
    command.envs(FREELY);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// The arguments of one group of ranks: the program on a recipe of the laboratory.
pub(super) fn group(
    lab: &Lab,
    ranks: usize,
    recipe: &str,
    out: &Path,
    words: &[&str],
) -> Vec<String> {
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    let mut all = vec!["-n".to_owned(), ranks.to_string()];
    all.push(env!("CARGO_BIN_EXE_bitnet-train").to_owned());
    all.extend(["--recipe".to_owned(), path(&lab.path(recipe)), "--out".to_owned(), path(out)]);
    all.extend(["--threads", "1", "--oversubscribe"].map(str::to_owned));
    all.extend(words.iter().map(|&word| word.to_owned()));
    all
}

fn run(lab: &Lab, ranks: usize, out: &Path, words: &[&str]) -> Output {
    mpirun().args(group(lab, ranks, "recipe.toml", out, words)).output().unwrap()
}

#[track_caller]
pub(super) fn finish(lab: &Lab, ranks: usize, out: &Path, words: &[&str]) {
    let output = run(lab, ranks, out, words);
    assert!(output.status.success(), "{}", stderr(&output));
}

fn spawn(lab: &Lab, ranks: usize, out: &Path, words: &[&str]) -> Child {
    let mut command = mpirun();
    command.args(group(lab, ranks, "recipe.toml", out, words));
    command.spawn().unwrap()
}

/// Sends a signal to one rank of a run; its process id.
pub(super) fn send(signal: &str, out: &Path, rank: usize) -> u32 {
    let wanted = ["OMPI_COMM_WORLD_RANK", "PMI_RANK"].map(|name| format!("{name}={rank}"));
    let mine = |pid: &u32| {
        let read = |what: &str| fs_err::read(format!("/proc/{pid}/{what}")).unwrap_or_default();
        let parts = |bytes: Vec<u8>| -> Vec<String> {
            bytes
                .split(|&byte| byte == 0)
                .map(|part| String::from_utf8_lossy(part).into())
                .collect()
        };
        let (command, environment) = (parts(read("cmdline")), parts(read("environ")));
        command[0].ends_with("bitnet-train")
            && command.iter().any(|part| Path::new(part) == out)
            && wanted.iter().any(|wanted| environment.contains(wanted))
    };
    let entries = fs_err::read_dir("/proc").unwrap();
    let pids = entries.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    let pid = pids.into_iter().find(mine).expect("the rank runs");
    let sent = Command::new("kill").args(["-s", signal, &pid.to_string()]).status().unwrap();
    assert!(sent.success());
    pid
}

#[test]
fn mpi_ranks_agree_with_one_process_and_repeat_themselves() {
    if !available() {
        return;
    }
    let lab = stages::lab();
    fs_err::copy(lab.path("recipe.toml"), lab.path("dense.toml")).unwrap();
    // A ternary model pretrained from random weights repeats its bits, but where the sums of another
    // number of ranks move one code at a near-tie, its run goes its own way. So the agreement of
    // pretraining is that of the dense twin, which holds to rounding.
    for (recipe, allowed) in [
        ("recipe.toml", None),
        ("dense.toml", Some(DENSE_TWIN)),
        ("sft.toml", Some(TERNARY)),
        ("dpo.toml", Some(TERNARY)),
    ] {
        let out = |name: &str| lab.path(&format!("{}-{name}", recipe.trim_end_matches(".toml")));
        let words = ["train.steps=20", "eval.every=10", "guard.spike_sigma=0", DENSE];
        let words = match recipe {
            "dense.toml" => &words[..],
            "dpo.toml" => &words[..2],
            _ => &words[..3],
        };
        lab.finish_recipe(recipe, &out("one"), words);
        for ranks in [2, 4] {
            let first = out(&format!("{ranks}"));
            for (out, more) in [
                (&first, &[][..]),
                (&out(&format!("{ranks}-again")), &[]),
                (&out(&format!("{ranks}-sharded")), &["train.shard_optimizer=true"]),
            ] {
                let words = [words, more].concat();
                let output = mpirun().args(group(&lab, ranks, recipe, out, &words)).output();
                let output = output.unwrap();
                assert!(output.status.success(), "{}", stderr(&output));
                if out != &first {
                    assert_same(&result(out), &result(&first), &format!("{}", out.display()));
                }
            }
            let what = format!("{recipe}, {ranks} MPI ranks");
            if let Some(allowed) = &allowed {
                allowed.check(differences(&first, &out("one")), &what);
            }
        }
    }
}

#[test]
fn mpi_a_killed_rank_ends_the_others_and_the_run_goes_on_to_the_bit() {
    if !available() {
        return;
    }
    let lab = Lab::new();
    let sharded = ["train.shard_optimizer=true", "checkpoint.every=2", "eval.every=0"];
    let straight = lab.path("straight");
    finish(&lab, 2, &straight, &sharded);
    let out = lab.path("killed");
    let words = [&sharded[..], &["--resume", "auto"]].concat();
    let mut kills = 0;
    for (rank, step) in [(1, 3), (0, 9), (1, 15), (0, 22)] {
        let mut child = spawn(&lab, 2, &out, &words);
        assert!(wait_until(&mut child, || last_step(&out) >= Some(step)));
        let pid = send("KILL", &out, rank);
        let began = Instant::now();
        let output = child.wait_with_output().unwrap();
        assert!(began.elapsed() < ENDS_WITHIN, "{:?}", began.elapsed());
        assert!(!output.status.success());
        // Open MPI names the rank, on stderr; MPICH the process, on stdout.
        let told = stderr(&output) + &String::from_utf8_lossy(&output.stdout);
        let names = [format!("rank {rank}"), format!("PID {pid}")];
        assert!(names.iter().any(|name| told.contains(name)), "{told}");
        assert!(told.contains("signal 9"), "{told}");
        kills += 1;
    }
    finish(&lab, 2, &out, &words);
    assert_same(&result(&out), &result(&straight), "after four kills");
    println!("{kills} kills of a rank, resumed to the bit");
}

#[test]
fn mpi_a_signal_to_any_rank_saves_on_all() {
    if !available() {
        return;
    }
    let lab = Lab::new();
    let straight = lab.path("straight");
    finish(&lab, 2, &straight, &["checkpoint.every=0"]);
    let out = lab.path("stopped");
    let signals =
        [(1, "TERM", 4, 143), (0, "INT", 11, 130), (1, "INT", 17, 130), (0, "USR2", 23, 143)];
    for (rank, signal, step, code) in signals {
        let mut child = spawn(&lab, 2, &out, &["checkpoint.every=0", "--resume", "auto"]);
        assert!(wait_until(&mut child, || last_step(&out) >= Some(step)));
        send(signal, &out, rank);
        let output = child.wait_with_output().unwrap();
        assert_code(&output, code);
        let told = stderr(&output);
        assert_eq!(told.matches("stopped by a signal").count(), 1, "{told}");
        let saved = bitnet_train::checkpoint::list(&out).unwrap();
        let (newest, path) = saved.last().expect("a checkpoint");
        assert!(*newest >= step);
        bitnet_train::checkpoint::verify(path).unwrap();
    }
    finish(&lab, 2, &out, &["checkpoint.every=0", "--resume", "auto"]);
    assert_same(&result(&out), &result(&straight), "after four signals");
}

#[test]
fn mpi_a_run_goes_on_on_any_number_of_ranks() {
    if !available() {
        return;
    }
    let lab = Lab::new();
    let (one, out) = (lab.path("one"), lab.path("moved"));
    lab.finish(&one, &[]);
    for (ranks, step, sharded) in [(2, 7, true), (1, 13, false), (4, 19, true), (2, 30, false)] {
        let sharded = format!("train.shard_optimizer={sharded}");
        let words = [sharded.as_str(), "--resume", "auto"];
        if step == 30 {
            finish(&lab, ranks, &out, &words);
            continue;
        }
        let mut child = spawn(&lab, ranks, &out, &words);
        assert!(wait_until(&mut child, || last_step(&out) >= Some(step)));
        send("TERM", &out, ranks - 1);
        assert_code(&child.wait_with_output().unwrap(), 143);
    }
    TERNARY.check(differences(&out, &one), "2, 1, 4 and 2 ranks in turn");
    let resumes = metrics(&out).iter().filter(|line| line["event"] == "resume").count();
    assert_eq!(resumes, 3);
}

#[test]
fn mpi_ranks_that_differ_refuse_to_start_and_name_the_difference() {
    if !available() {
        return;
    }
    let lab = Lab::new();
    let out = lab.path("out");
    let groups = |first: &[&str], other: (&str, &[&str])| {
        let mut all = group(&lab, 1, "recipe.toml", &out, first);
        all.push(":".to_owned());
        all.extend(group(&lab, 1, other.0, &out, other.1));
        mpirun().args(all).output().unwrap()
    };
    let refused = |output: &Output, code: i32, expected: &[&str]| {
        assert_code(output, code);
        let told = stderr(output);
        assert_eq!(told.matches("error: ").count(), 1, "{told}");
        for part in expected {
            assert!(told.contains(part), "{part} in {told}");
        }
        assert!(!out.join("metrics.jsonl").exists());
    };
    let other = groups(&[], ("recipe.toml", &["train.steps=40"]));
    refused(&other, 3, &["rank 1 on ", "train.steps: 30 there, 40 here"]);
    let missing = groups(&[], ("missing.toml", &[]));
    refused(&missing, 3, &["error: rank 1 on ", "missing.toml"]);
    let batch = run(&lab, 2, &out, &["train.batch=1", "train.micro_batch=1"]);
    refused(&batch, 3, &["train.batch", "is 1; expected at least one for each of the 2 ranks"]);
    // The same path, and another file behind it on one of the machines.
    let text = fs_err::read_to_string(lab.path("recipe.toml")).unwrap();
    let generated = "generate = { stories = 120, held_out = 6 }";
    assert!(text.contains(generated));
    let files = text.replace(generated, "train = [\"/proc/self/cwd/text.txt\"]");
    let files = files.replace("{ general = 1.0 }", "{ train = 1.0 }");
    let files = files.replace("{ general = 0.3, hq = 0.7 }", "{ train = 1.0 }");
    fs_err::write(lab.path("files.toml"), files).unwrap();
    let mut all = Vec::new();
    for (rank, sentence) in
        ["One two three four five.\n", "One two three four six.\n"].iter().enumerate()
    {
        let dir = lab.path(&format!("machine-{rank}"));
        fs_err::create_dir(&dir).unwrap();
        fs_err::write(dir.join("text.txt"), sentence.repeat(400)).unwrap();
        all.extend((rank > 0).then(|| ":".to_owned()));
        all.extend(["-wdir".to_owned(), dir.to_str().unwrap().to_owned()]);
        all.extend(group(&lab, 1, "files.toml", &out, &["eval.every=0"]));
    }
    let other = mpirun().args(all).output().unwrap();
    refused(&other, 3, &["rank 1 on ", "fingerprint of the training data"]);
}

#[test]
fn mpi_processes_that_a_launcher_of_another_mpi_started_are_refused() {
    let lab = Lab::new();
    let out = lab.path("out");
    let output = lab.command(&out, &[]).env("SLURM_STEP_NUM_TASKS", "2").output().unwrap();
    assert_code(&output, 5);
    let told = stderr(&output);
    assert!(told.contains("2 processes were started together"), "{told}");
    assert!(told.contains("finds only this one"), "{told}");
    assert!(!out.exists());
}

#[test]
fn mpi_more_threads_than_cores_are_refused_unless_asked_for() {
    if !available() {
        return;
    }
    let lab = Lab::new();
    let out = lab.path("out");
    let mut all = group(&lab, 2, "recipe.toml", &out, &[]);
    all.retain(|word| word != "--oversubscribe");
    let at = all.iter().position(|word| word == "--threads").unwrap();
    all[at + 1] = "999".to_owned();
    let output = mpirun().args(all).output().unwrap();
    assert_code(&output, 5);
    let told = stderr(&output);
    assert!(told.contains("cores for its 2 ranks with 999 threads each"), "{told}");
}

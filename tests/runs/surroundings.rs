//! What lies around a run: the directory it is given, the terminal it prints to, the folder of its
//! project, the memory of the machine, the clock.

use std::path::Path;

use super::lab::{Lab, assert_code, assert_same, result, stderr};

const SHORT: [&str; 3] = ["train.steps=6", "optimizer.warmup_steps=1", "eval.every=0"];

fn words<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&SHORT, more].concat()
}

fn full() -> Option<fs_err::File> {
    let full = fs_err::OpenOptions::new().write(true).open("/dev/full").ok();
    if full.is_none() {
        println!("skipped: this system has no /dev/full");
    }
    full
}

#[test]
fn a_directory_with_other_things_is_left_alone_unless_forced_and_then_they_stay() {
    let lab = Lab::new();
    let out = lab.path("mine");
    fs_err::create_dir_all(out.join("final.tmp-1")).unwrap();
    fs_err::write(out.join("notes.tmp-2"), "mine").unwrap();
    let refused = lab.run(&out, &words(&[]));
    assert_code(&refused, 7);
    assert!(stderr(&refused).contains("--force"), "{}", stderr(&refused));
    assert_eq!(fs_err::read_dir(&out).unwrap().count(), 2);
    lab.finish(&out, &words(&["--force"]));
    assert!(out.join("final.tmp-1").is_dir() && out.join("notes.tmp-2").is_file());
}

#[test]
fn a_full_disk_or_a_closed_pipe_behind_the_output_ends_no_run() {
    let Some(log) = full() else { return };
    let lab = Lab::new();
    lab.finish(&lab.path("straight"), &words(&[]));
    let out = lab.path("full");
    let mut command = lab.command(&out, &words(&["-v"]));
    let status = command.stderr(log.into_parts().0).status().unwrap();
    assert!(status.success(), "{status}");
    assert_same(&result(&out), &result(&lab.path("straight")), "with a full log");
    let out = lab.path("pipe");
    let mut child = lab.command(&out, &words(&["-v"])).spawn().unwrap();
    drop((child.stdout.take(), child.stderr.take()));
    assert!(child.wait().unwrap().success());
    assert_same(&result(&out), &result(&lab.path("straight")), "with closed pipes");
}

#[test]
fn results_that_cannot_be_written_are_an_error_and_a_closed_pipe_is_none() {
    let Some(log) = full() else { return };
    let lab = Lab::new();
    let plan = || {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_bitnet-train"));
        command.args(["plan", "--no-probe", "--recipe"]).arg(lab.path("recipe.toml"));
        command
    };
    let full = plan().stdout(log.into_parts().0).output().unwrap();
    assert_code(&full, 5);
    assert!(stderr(&full).contains("stdout"), "{}", stderr(&full));
    let pipe = std::process::Stdio::piped;
    let mut child = plan().stdout(pipe()).stderr(pipe()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
}

#[test]
fn a_run_that_cannot_fit_into_memory_is_refused_with_the_table() {
    let lab = Lab::new();
    let vast = ["train.batch=1000000000", "train.micro_batch=1000000000"];
    for dry in [&[][..], &["--dry-run"]] {
        let out = lab.path("vast");
        let refused = lab.run(&out, &words(&[&vast, dry].concat()));
        assert_code(&refused, 5);
        for part in ["activations", "total", "train.micro_batch = 1"] {
            assert!(stderr(&refused).contains(part), "{part}: {}", stderr(&refused));
        }
    }
}

#[test]
fn a_moved_project_resumes() {
    let lab = Lab::new();
    let project = lab.path("project");
    fs_err::create_dir(&project).unwrap();
    fs_err::copy(lab.path("model.toml"), project.join("model.toml")).unwrap();
    let text = "{\"text\": \"one day a cat sat on a mat and slept\"}\n".repeat(60);
    fs_err::write(project.join("text.jsonl"), text).unwrap();
    let trained = "tokenizer.train.vocab_size = 270\n";
    let recipe = |tokenizer: &str| {
        format!(
            "stage = \"pretrain\"\nmodel.config = \"model.toml\"\n{tokenizer}\
             data = {{ train = [\"text.jsonl\"], seq_len = 16, cache = \"cache\" }}\n\
             train = {{ steps = 6, batch = 2 }}\ncheckpoint.every = 2\n"
        )
    };
    fs_err::write(project.join("recipe.toml"), recipe(trained)).unwrap();
    lab.finish_recipe("project/recipe.toml", &lab.path("first"), &[]);
    fs_err::copy(lab.path("first/final/tokenizer.json"), project.join("tokenizer.json")).unwrap();
    let path = "tokenizer.path = \"tokenizer.json\"\n";
    fs_err::write(project.join("recipe.toml"), recipe(path)).unwrap();
    lab.finish_recipe("project/recipe.toml", &project.join("run"), &[]);
    let straight = result(&project.join("run"));
    let unfinished = |project: &Path| {
        fs_err::remove_dir_all(project.join("run/final")).unwrap();
        fs_err::remove_dir_all(project.join("run/step-000006")).unwrap();
    };
    unfinished(&project);
    let moved = lab.path("moved");
    fs_err::rename(&project, &moved).unwrap();
    lab.finish_recipe("moved/recipe.toml", &moved.join("run"), &["--resume", "auto"]);
    assert_same(&result(&moved.join("run")), &straight, "after the move");
    // Other contents under the same names are still refused.
    unfinished(&moved);
    fs_err::write(moved.join("text.jsonl"), "{\"text\": \"another day\"}\n".repeat(60)).unwrap();
    let other = lab.run_recipe("moved/recipe.toml", &moved.join("run"), &["--resume", "auto"]);
    assert_code(&other, 3);
}

#[test]
fn checkpoints_by_the_clock_change_no_bit() {
    let lab = Lab::new();
    let (straight, often) = (lab.path("straight"), lab.path("often"));
    lab.finish(&straight, &words(&["checkpoint.every=0", "checkpoint.every_minutes=0"]));
    assert_eq!(bitnet_train::checkpoint::list(&straight).unwrap().len(), 1);
    lab.finish(&often, &words(&["checkpoint.every=0", "checkpoint.every_minutes=1e-9"]));
    assert_eq!(
        bitnet_train::checkpoint::list(&often).unwrap().len(),
        4,
        "three, and a phase's end"
    );
    assert_same(&result(&often), &result(&straight), "with checkpoints by the clock");
}

//! Damaged checkpoints, changed recipes and data, a full disk.

use std::path::{Path, PathBuf};

use super::lab::{Lab, assert_code, assert_same, result, stderr};

/// A finished run whose final folder is taken away, so that a resume has something to do.
fn interrupted_run(lab: &Lab) -> PathBuf {
    let out = lab.path("out");
    lab.finish(&out, &[]);
    fs_err::remove_dir_all(out.join("final")).unwrap();
    out
}

fn newest(out: &Path) -> PathBuf {
    bitnet_train::checkpoint::list(out).unwrap().pop().unwrap().1
}

type Damage = (&'static str, fn(&Path));

/// Every way a file can go bad that the corruption matrix of the promise names.
const DAMAGES: &[Damage] = &[
    ("cut", |path| {
        let bytes = fs_err::read(path).unwrap();
        fs_err::write(path, &bytes[..bytes.len() - 1]).unwrap();
    }),
    ("extended", |path| {
        let mut bytes = fs_err::read(path).unwrap();
        bytes.push(0);
        fs_err::write(path, bytes).unwrap();
    }),
    ("emptied", |path| fs_err::write(path, "").unwrap()),
    ("one bit flipped", |path| {
        let mut bytes = fs_err::read(path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs_err::write(path, bytes).unwrap();
    }),
    ("missing", |path| fs_err::remove_file(path).unwrap()),
];

#[test]
fn every_damage_to_every_file_of_a_checkpoint_is_found() {
    let lab = Lab::new();
    let out = interrupted_run(&lab);
    let good = newest(&out);
    let names = [
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "optimizer.safetensors",
        "state.json",
        "MANIFEST.json",
    ];
    for name in names {
        for (what, damage) in DAMAGES {
            let copy = lab.path("copy");
            copy_dir(&good, &copy);
            damage(&copy.join(name));
            let found = bitnet_train::checkpoint::verify(&copy);
            // The manifest ends with a blank, and one flipped bit may fall on another.
            let harmless = name == "MANIFEST.json" && matches!(*what, "cut" | "one bit flipped");
            assert!(found.is_err() || harmless, "{name} {what}");
            fs_err::remove_dir_all(&copy).unwrap();
        }
    }
    bitnet_train::checkpoint::verify(&good).unwrap();
}

#[test]
fn a_damaged_newest_checkpoint_falls_back_to_the_one_before() {
    let lab = Lab::new();
    let out = interrupted_run(&lab);
    let expected = fs_err::read(newest(&out).join("model.safetensors")).unwrap();
    let damaged = newest(&out);
    (DAMAGES[3].1)(&damaged.join("optimizer.safetensors"));
    // Asked for by name, it is an error and nothing else is tried.
    let explicit = lab.run(&out, &["--resume", damaged.to_str().unwrap()]);
    assert_code(&explicit, 4);
    assert!(stderr(&explicit).contains("optimizer.safetensors"), "{}", stderr(&explicit));
    let output = lab.finish(&out, &["--resume", "auto"]);
    assert!(stderr(&output).contains("does not verify"), "{}", stderr(&output));
    assert!(stderr(&output).contains("optimizer.safetensors"), "{}", stderr(&output));
    assert_eq!(fs_err::read(out.join("final/model.safetensors")).unwrap(), expected);
}

#[test]
fn when_no_checkpoint_verifies_the_run_does_not_start_over() {
    let lab = Lab::new();
    let out = interrupted_run(&lab);
    for (_, dir) in bitnet_train::checkpoint::list(&out).unwrap() {
        fs_err::remove_file(dir.join("MANIFEST.json")).unwrap();
    }
    let before = fs_err::read(out.join("metrics.jsonl")).unwrap();
    let output = lab.run(&out, &["--resume", "auto"]);
    assert_code(&output, 4);
    assert!(stderr(&output).contains("no checkpoint verifies"), "{}", stderr(&output));
    assert_eq!(fs_err::read(out.join("metrics.jsonl")).unwrap(), before);
}

#[test]
fn a_torn_last_line_of_the_log_is_cut_off() {
    let lab = Lab::new();
    let out = interrupted_run(&lab);
    let log = out.join("metrics.jsonl");
    let mut text = fs_err::read_to_string(&log).unwrap();
    text.push_str("{\"step\":99,\"lo");
    fs_err::write(&log, text).unwrap();
    lab.finish(&out, &["--resume", "auto"]);
    assert_eq!(result(&out).losses.len(), 30);
}

#[test]
fn a_changed_recipe_is_refused_unless_it_is_safe_or_allowed() {
    let lab = Lab::new();
    let out = interrupted_run(&lab);
    let expected = result_of_weights(&out);
    for (change, word) in [("seed=4", "seed"), ("data.seq_len=40", "seq_len")] {
        let output = lab.run(&out, &["--resume", "auto", change, "--allow-change", word]);
        assert_code(&output, 3);
        assert!(stderr(&output).contains(word), "{}", stderr(&output));
    }
    let refused = lab.run(&out, &["--resume", "auto", "optimizer.grad_clip=0.5"]);
    assert_code(&refused, 3);
    assert!(
        stderr(&refused).contains("--allow-change optimizer.grad_clip"),
        "{}",
        stderr(&refused)
    );
    lab.finish(&out, &["--resume", "auto", "eval.every=9", "checkpoint.keep=2"]);
    assert_eq!(fs_err::read(out.join("final/model.safetensors")).unwrap(), expected);
}

fn result_of_weights(out: &Path) -> Vec<u8> {
    fs_err::read(newest(out).join("model.safetensors")).unwrap()
}

#[test]
fn changed_data_is_refused_unless_allowed() {
    let lab = Lab::new();
    let text = lab.path("text.jsonl");
    fs_err::write(&text, "{\"text\": \"one day a cat sat on a mat and slept\"}\n".repeat(60))
        .unwrap();
    let recipe = "stage = \"pretrain\"\nmodel.config = \"model.toml\"\ntokenizer.train.vocab_size = 270\n\
        data = { train = [\"text.jsonl\"], seq_len = 16, cache = \"cache\" }\n\
        train = { steps = 4, batch = 2 }\ncheckpoint.every = 2\n";
    fs_err::write(lab.path("recipe.toml"), recipe).unwrap();
    let out = interrupted_run(&lab);
    fs_err::remove_dir_all(newest(&out)).unwrap();
    let mut longer = fs_err::read_to_string(&text).unwrap();
    longer.push_str("{\"text\": \"a new line\"}\n");
    fs_err::write(&text, longer).unwrap();
    let refused = lab.run(&out, &["--resume", "auto"]);
    assert_code(&refused, 3);
    assert!(stderr(&refused).contains("--allow-change data"), "{}", stderr(&refused));
    lab.finish(&out, &["--resume", "auto", "--allow-change", "data"]);
}

#[test]
fn micro_batch_changes_the_result_by_rounding_only() {
    let lab = Lab::new();
    let loss = |out: &Path| {
        let last =
            super::lab::metrics(out).iter().filter_map(|line| line["loss"].as_f64()).next_back();
        last.unwrap()
    };
    let (two, four) = (lab.path("two"), lab.path("four"));
    lab.finish(&two, &["train.steps=6"]);
    lab.finish(&four, &["train.steps=6", "train.micro_batch=4"]);
    // One flipped activation level may separate two roundings.
    assert!((loss(&two) - loss(&four)).abs() < 5e-3);
    assert_same(&result(&two), &result(&two), "itself");
}

/// A file system of its own that fills up: needs the right to mount one.
#[test]
fn a_full_disk_during_a_save_loses_nothing() {
    let lab = Lab::new();
    let disk = lab.path("disk");
    fs_err::create_dir(&disk).unwrap();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=6m", "tmpfs"])
        .arg(&disk)
        .output()
        .is_ok_and(|output| output.status.success());
    if !mounted {
        println!("skipped: this user cannot mount a small file system");
        return;
    }
    let out = disk.join("out");
    let full = fill_the_disk(&lab, &disk, &out);
    let unmounted = std::process::Command::new("umount").arg(&disk).status();
    assert!(full.is_ok() && unmounted.is_ok_and(|status| status.success()), "{full:?}");
}

fn fill_the_disk(lab: &Lab, disk: &Path, out: &Path) -> Result<(), String> {
    let check = |condition: bool, what: &str| condition.then_some(()).ok_or(what.to_owned());
    let mut child = lab.command(out, &["train.steps=400"]).spawn().unwrap();
    while bitnet_train::checkpoint::list(out).unwrap_or_default().len() < 2 {
        check(child.try_wait().unwrap().is_none(), "the run ended before the disk was full")?;
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let filler = disk.join("filler");
    let mut file = fs_err::File::create(&filler).unwrap();
    while std::io::Write::write_all(&mut file, &[0; 4096]).is_ok() {}
    drop(file);
    let output = child.wait_with_output().unwrap();
    check(output.status.code() == Some(5), &stderr(&output))?;
    let kept = bitnet_train::checkpoint::list(out).unwrap();
    check(!kept.is_empty(), "no checkpoint is left")?;
    for (_, checkpoint) in kept {
        bitnet_train::checkpoint::verify(&checkpoint).map_err(|error| error.to_string())?;
    }
    fs_err::remove_file(filler).unwrap();
    let output = lab.run(out, &["--resume", "auto", "train.steps=400"]);
    check(output.status.success(), &stderr(&output))
}

fn copy_dir(from: &Path, to: &Path) {
    fs_err::create_dir(to).unwrap();
    for entry in fs_err::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs_err::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

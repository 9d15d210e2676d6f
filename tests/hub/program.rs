//! The programs on a data set of the hub: they see its files as they see local ones.

use std::path::Path;
use std::process::{Command, Output};

use super::{Bench, bench};

fn rows(split: &str) -> Vec<u8> {
    let row = |at| format!("{{\"text\": \"{split} {at}: one word after the other and so on\"}}\n");
    (0..20).map(row).collect::<String>().into_bytes()
}

fn program(bench: &Bench, folder: &Path, words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_bitnet-train"))
        .current_dir(folder)
        .env("HF_ENDPOINT", &bench.settings.endpoint)
        .env("HF_HUB_CACHE", &bench.settings.cache)
        .env("XDG_CACHE_HOME", folder)
        .env_remove("HF_HUB_OFFLINE")
        .args(words)
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn data_commands_take_a_data_set_of_the_hub() {
    let mut bench = bench(vec![("train.jsonl", rows("train")), ("test.jsonl", rows("test"))]);
    let folder = tempfile::tempdir().unwrap();
    let name = "hf-dataset:owner/name";
    let words =
        ["data", "convert", "--data", name, "hf-dataset:owner/name/test", "--out", "a.jsonl"];
    let output = program(&bench, folder.path(), &words);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let written = fs_err::read_to_string(folder.path().join("a.jsonl")).unwrap();
    assert_eq!(written.lines().count(), 40);
    assert!(written.starts_with("{\"text\":\"train 0: ") && written.contains("\"test 19: "));
    bench.unplug();
    let output = program(&bench, folder.path(), &["data", "stats", "--data", name, "--json"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    for (wrong, code, expected) in [
        ("hf-dataset:owner/name/dev", 3, "expected one of test, train; got \"dev\""),
        (
            "hf-dataset:owner",
            3,
            "hf-dataset:owner [--data]: not a data set; expected \"hf-dataset:",
        ),
        ("hf-dataset:owner/other", 5, "cannot be reached ("),
    ] {
        let output = program(&bench, folder.path(), &["data", "stats", "--data", wrong]);
        let message = text(&output.stderr);
        assert!(message.contains(expected), "{message}");
        assert_eq!(output.status.code(), Some(code), "{message}");
    }
}

#[test]
fn a_recipe_names_data_sets_of_the_hub() {
    let bench = bench(vec![("train.jsonl", rows("train")), ("test.jsonl", rows("test"))]);
    let folder = tempfile::tempdir().unwrap();
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/tiny.toml");
    let recipe = format!(
        "stage = \"pretrain\"\n[model]\nconfig = {config:?}\n[tokenizer]\ntrain = {{ vocab_size = 300 }}\n\
         [data]\ntrain = \"hf-dataset:owner/name\"\nvalidation = [\"hf-dataset:owner/name/test\"]\n\
         seq_len = 16\n[train]\nsteps = 2\nbatch = 1\n"
    );
    fs_err::write(folder.path().join("r.toml"), recipe).unwrap();
    let output =
        program(&bench, folder.path(), &["inspect", "data", "--recipe", "r.toml", "--json"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let shown = text(&output.stdout);
    assert!(shown.contains("train.jsonl:"), "{shown}");
    // What is held out is not shown, but it is there.
    assert_eq!(bench.server.starts("test.jsonl"), [0]);
    let wrong = ["inspect", "data", "--recipe", "r.toml", "data.train=hf-dataset:owner/name:en"];
    let output = program(&bench, folder.path(), &wrong);
    let message = text(&output.stderr);
    assert!(message.contains("has no such config; expected one of default"), "{message}");
    assert_eq!(output.status.code(), Some(3), "{message}");
}

#[test]
fn rows_of_tasks_are_brought_to_where_tasks_look_for_them() {
    let mut bench = bench(vec![("train.jsonl", rows("train")), ("test.jsonl", rows("test"))]);
    let folder = tempfile::tempdir().unwrap();
    let task = "task: own\ndataset_path: owner/name\noutput_type: loglikelihood_rolling\ntest_split: test\n\
                doc_to_text: \"\"\ndoc_to_target: text\nnum_fewshot: 0\n";
    fs_err::write(folder.path().join("own.yaml"), task).unwrap();
    let fetch = ["data", "fetch", "--tasks", "own.yaml,stories_one", "--out", "sets", "--json"];
    for (fetched, here) in [(1, 0), (0, 1)] {
        let output = program(&bench, folder.path(), &fetch);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let line: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(line, serde_json::json!({"out": "sets", "fetched": fetched, "here": here}));
        // The second time from what is here.
        bench.unplug();
    }
    let placed = folder.path().join("sets/owner/name/test.jsonl");
    assert_eq!(fs_err::read(placed).unwrap(), rows("test"));
    let unknown = ["data", "fetch", "--tasks", "arc_esay", "--out", "sets"];
    let output = program(&bench, folder.path(), &unknown);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("arc_easy"));
}

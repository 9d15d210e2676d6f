//! Mistakes on the command line and in files: the exit code of their class, the same facts as JSON, and
//! what to do instead.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use super::lab::{Lab, assert_code, stderr};

fn program(lab: &Lab, words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bitnet-train"));
    command.current_dir(lab.path("")).args(words).output().unwrap()
}

/// The object on stdout, which holds nothing else.
#[track_caller]
fn error_object(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    let line: Value = serde_json::from_str(text.trim_end())
        .unwrap_or_else(|error| panic!("{error}: {text:?} {}", stderr(output)));
    line["error"].clone()
}

#[test]
fn every_class_of_error_is_an_object_with_its_code_file_and_field() {
    let lab = Lab::new();
    fs_err::write(lab.path("bad.toml"), "stage = \"sft\"\n").unwrap();
    fs_err::write(lab.path("torn.jsonl"), "{\"text\": \"a\"}\n{\"text\": ").unwrap();
    fs_err::write(lab.path("taken.out"), "x").unwrap();
    for (words, code, class, file, field) in [
        (&["--no-such-flag"][..], 2, "usage", "", "--no-such-flag"),
        (&["eval", "--data", "x"], 2, "usage", "", "--model"),
        (&["recipe.toml", "sed=1"], 3, "recipe", "", "sed"),
        (&["plan", "nowhere.toml"], 3, "recipe", "nowhere.toml", ""),
        (&["bench", "--config", "bad.toml"], 3, "recipe", "bad.toml", ""),
        (&["init", "--config", "none.toml", "--out", "o"], 3, "recipe", "none.toml", ""),
        (&["inspect", "model", "no/model"], 4, "input", "no/model", ""),
        (&["inspect", "model", "missing"], 4, "input", "missing", ""),
        (&["eval", "--model=missing", "--data", "x"], 4, "input", "missing", ""),
        (
            &["tokenizer", "--data", "torn.jsonl", "--vocab-size", "300", "--out", "t.json"],
            4,
            "input",
            "torn.jsonl",
            "",
        ),
        (&["--recipe", "recipe.toml", "device=cuda"], 5, "environment", "", ""),
        (&["init", "--config", "shape.toml", "--out", "taken.out"], 7, "refused", "taken.out", ""),
    ] {
        let output = program(&lab, &[words, &["--json"]].concat());
        assert_code(&output, code);
        let error = error_object(&output);
        assert_eq!((&error["code"], &error["class"]), (&code.into(), &class.into()), "{error}");
        for (key, value) in [("file", file), ("field", field)] {
            let said = error[key].as_str().unwrap_or_default();
            assert!(value.is_empty() || said.ends_with(value), "{key}: {error}");
        }
        assert!(error["message"].as_str().unwrap().len() > 5, "{error}");
        assert!(!stderr(&output).is_empty(), "people read it on stderr");
    }
    assert!(Path::new(&lab.path("taken.out")).is_file(), "it was not replaced");
}

#[test]
fn every_command_ends_with_2_on_a_wrong_flag_and_with_3_on_a_wrong_recipe() {
    let lab = Lab::new();
    fs_err::write(lab.path("bad.toml"), "stage = ").unwrap();
    let commands: [&[&str]; 9] = [
        &[],
        &["plan"],
        &["inspect", "data"],
        &["inspect", "model"],
        &["tokenizer"],
        &["eval"],
        &["export"],
        &["init"],
        &["bench"],
    ];
    for command in commands {
        let output = program(&lab, &[command, &["--no-such-flag"]].concat());
        assert_code(&output, 2);
        assert!(output.stdout.is_empty(), "without --json nothing goes to stdout");
    }
    for command in [&[][..], &["plan"], &["inspect", "data"]] {
        for recipe in ["bad.toml", "none.toml"] {
            assert_code(&program(&lab, &[command, &["--recipe", recipe]].concat()), 3);
        }
        assert_code(
            &program(&lab, &[command, &["--recipe", "recipe.toml", "no_such_key=1"]].concat()),
            3,
        );
        assert_code(&program(&lab, &[command, &["--recipe", "recipe.toml", "seed"]].concat()), 2);
    }
    for command in [&["bench"][..], &["init", "--out", "o"]] {
        assert_code(&program(&lab, &[command, &["--config", "bad.toml"]].concat()), 3);
    }
}

#[test]
fn what_people_type_first_is_answered_with_the_right_form() {
    let lab = Lab::new();
    for (words, hint) in [
        (&["plna", "recipe.toml"][..], "did you mean bitnet-train plan?"),
        (&["evla", "--model", "x"], "did you mean bitnet-train eval?"),
        (&["train", "--config", "x"], "--recipe RECIPE.toml trains"),
        (&[], "--recipe"),
    ] {
        let output = program(&lab, words);
        assert_code(&output, 2);
        assert!(stderr(&output).contains(hint), "{words:?}: {}", stderr(&output));
    }
    let words = [
        "recipe.toml",
        "--out",
        "out",
        "--device",
        "cpu",
        "--resume",
        "latest",
        "--dry-run",
        "--json",
    ];
    let output = program(&lab, &words);
    assert_code(&output, 0);
    let line: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&line["dry_run"], &line["steps"]), (&true.into(), &30.into()));
}

#[cfg(not(feature = "hub"))]
#[test]
fn a_data_set_of_the_hub_asks_for_the_feature() {
    let lab = Lab::new();
    let recipe = fs_err::read_to_string(lab.path("recipe.toml")).unwrap();
    let set = "\"hf-dataset:owner/name\"";
    let sets = format!("sets = {{ general = {set}, hq = {set} }}\nvalidation = {set}");
    let recipe = recipe.replace("generate = { stories = 120, held_out = 6 }", &sets);
    fs_err::write(lab.path("hub.toml"), recipe).unwrap();
    for words in [
        &["data", "stats", "--data", "hf-dataset:owner/name"][..],
        &["inspect", "data", "hub.toml"],
    ] {
        let output = program(&lab, words);
        let message = stderr(&output);
        assert!(message.contains("hf-dataset:owner/name ["), "{message}");
        assert!(message.contains("needs a build with the feature hub"), "{message}");
        assert_code(&output, 3);
    }
}

#[test]
fn files_of_other_programs_are_named_wherever_they_are_given() {
    let lab = Lab::new();
    let lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n";
    let files: [(&str, &[u8], &str); 5] = [
        ("a.parquet", b"PAR1\x15\x04\x15\x10", "Parquet"),
        ("a.txt", lfs, "Git LFS pointer"),
        (
            "a.bin",
            b"PK\x03\x04\x14\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x10\0\0\0archive/data.pkl",
            "PyTorch",
        ),
        ("a.jsonl", b"<!DOCTYPE html>\n<html></html>", "HTML"),
        ("a.model", b"\x0a\x0e\x0a\x05<unk>\x15\0\0\0\0\x18\x02", "SentencePiece"),
    ];
    for (name, bytes, kind) in files {
        fs_err::write(lab.path(name), bytes).unwrap();
        let tokenizer = format!("tokenizer.path={name}");
        for (words, code) in [
            (&["tokenizer", "--vocab-size", "300", "--out", "t.json", "--data", name][..], 4),
            (&["inspect", "model", name], 4),
            (&["inspect", "data", "recipe.toml", &tokenizer], 4),
            (&["plan", "--recipe", name], 3),
            (&["bench", "--config", name], 3),
        ] {
            let output = program(&lab, words);
            assert_code(&output, code);
            let message = stderr(&output);
            assert!(message.contains(kind) && message.contains(name), "{words:?}: {message}");
        }
    }
    assert!(!lab.path("t.json").exists());
}

#[test]
fn a_name_with_a_line_break_stays_on_one_line() {
    let lab = Lab::new();
    fs_err::write(lab.path("a\nb.jsonl"), "{\"text\": 3}\n").unwrap();
    fs_err::write(lab.path("a\nb.toml"), "stage = 3\n").unwrap();
    fs_err::create_dir(lab.path("a\nb")).unwrap();
    fs_err::write(lab.path("a\nb/config.json"), "{").unwrap();
    let tokenizer = ["tokenizer", "--vocab-size", "300", "--out", "t.json", "--data"];
    for words in [
        &["plan", "a\nb.toml"][..],
        &["inspect", "model", "a\nb"],
        &["inspect", "model", "not\nthere"],
        &["bench", "--config", "not\nthere.toml"],
        &[&tokenizer[..], &["a\nb.jsonl"]].concat(),
    ] {
        let output = program(&lab, words);
        let text = stderr(&output);
        assert!(text.contains("a\\nb") || text.contains("not\\nthere"), "{words:?}: {text}");
        assert!(text.lines().next().unwrap().contains(": "), "{words:?}: {text}");
    }
}

#[test]
fn no_name_and_no_key_of_a_file_commands_the_terminal() {
    let lab = Lab::new();
    let name = "a\u{1b}[31m\u{9b}2J.toml";
    fs_err::write(lab.path(name), "stage = \"sft\"\n\"k\\u001b[31m\" = 1\n").unwrap();
    let flag = ["plan", "--x\u{1b}[2J"];
    for words in [&["plan", name][..], &["inspect", "model", name], &[name, "--json"], &flag] {
        let output = program(&lab, words);
        let all = [output.stdout.clone(), output.stderr.clone()].concat();
        let text = String::from_utf8_lossy(&all);
        assert!(!text.contains(['\u{1b}', '\u{9b}']), "{words:?}: {text:?}");
        assert!(words == flag || text.contains("u{1b}"), "the name is still to be read: {text:?}");
    }
}

#[test]
fn what_has_nothing_in_it_or_changes_nothing_is_said() {
    let lab = Lab::new();
    let model = ["init", "--config", "shape.toml", "--out", "model"];
    assert_code(&program(&lab, &model), 0);
    fs_err::write(lab.path("empty.txt"), "").unwrap();
    fs_err::write(lab.path("blank.jsonl"), "{\"text\": \"\"}\n").unwrap();
    fs_err::write(lab.path("rows.parquet"), "not rows").unwrap();
    let tokenizer = ["tokenizer", "--vocab-size", "300", "--out", "t.json", "--data"];
    let export = ["export", "--model", "model", "--out", "x", "--format"];
    let resumed = ["recipe.toml", "--out", "run", "--resume"];
    for (words, more, code, parts) in [
        (&tokenizer[..], &["empty.txt"][..], 4, ["empty.txt", "no documents"]),
        (&tokenizer, &["blank.jsonl"], 4, ["blank.jsonl", "no documents"]),
        (&tokenizer, &["rows.parquet"], 4, ["rows.parquet", "Parquet"]),
        (&export, &["gguf-i2_s", "--embedding", "q4_0"], 2, ["--embedding", "got \"q4_0\""]),
        (&export, &["hf-packed", "--i2s-arm"], 2, ["--i2s-arm", "got the folder model"]),
        (&resumed, &["step-9"], 4, ["step-000009", "is no checkpoint"]),
        (&resumed, &["recipe.toml"], 4, ["recipe.toml", "is no checkpoint"]),
        (&resumed, &["model"], 4, ["model", "is no checkpoint"]),
    ] {
        let output = program(&lab, &[words, more].concat());
        assert_code(&output, code);
        let message = stderr(&output);
        assert!(parts.iter().all(|part| message.contains(part)), "{parts:?}: {message}");
    }
    assert!(!lab.path("t.json").exists() && !lab.path("x").exists());
}

#[test]
fn a_key_of_any_length_is_named_in_a_few_lines() {
    let lab = Lab::new();
    let recipe = fs_err::read_to_string(lab.path("recipe.toml")).unwrap();
    fs_err::write(lab.path("long.toml"), format!("{} = 1\n{recipe}", "k".repeat(100_000))).unwrap();
    let output = program(&lab, &["plan", "long.toml"]);
    assert_code(&output, 3);
    let message = stderr(&output);
    assert!(message.len() < 5000 && message.contains("long.toml:1:1 [kkk"), "{message}");
}

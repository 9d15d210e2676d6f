//! The program as people and scripts use it: arguments in, stdout, stderr and exit code out.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use bitnet_format::ModelSpec;
use bitnet_format::convert::hf::write_packed;
use bitnet_format::folder::TOKENIZER_FILE;
use bitnet_text::{Tokenizer, train_bpe};
use serde_json::Value;
use tempfile::TempDir;

const CONFIG: &str = "hidden_size = 32\nintermediate_size = 48\nnum_hidden_layers = 1\n\
    num_attention_heads = 2\nnum_key_value_heads = 1\nvocab_size = 300\n\
    max_position_embeddings = 64\n";

/// A packed folder with random weights and a tokenizer; the same config gives the same bytes.
fn model(config: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let spec: ModelSpec = toml::from_str(config).unwrap();
    let mut state = 1u32;
    let mut draw = move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1u32 << 23) as f32 - 1.0
    };
    write_packed(dir.path(), &spec, |entry| Ok((0..entry.elements()).map(|_| draw()).collect()))
        .unwrap();
    let texts = ["the cat sat on the mat", "the dog sat on the log, and sang"];
    let json = train_bpe(texts.into_iter().map(str::to_owned), 290).unwrap();
    fs_err::write(dir.path().join(TOKENIZER_FILE), json).unwrap();
    dir
}

fn bitnet(args: &[&str], model: &Path) -> Output {
    command(args, model).output().unwrap()
}

fn command(args: &[&str], model: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bitnet"));
    command.args(args).arg("--model").arg(model);
    command
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Asserts a failure: its code, no output, one message without panic text.
fn refused(output: &Output, code: i32) -> String {
    let message = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(code), "{message}");
    assert!(output.stdout.is_empty());
    assert!(message.starts_with("error: ") && !message.contains("panicked"), "{message}");
    message
}

fn json(output: &Output) -> Value {
    let text = stdout(output);
    assert_eq!(text.lines().count(), 1, "one line of JSON");
    serde_json::from_str(&text).unwrap()
}

#[test]
fn greedy_generation_repeats_and_streams_the_text_of_its_tokens() {
    let model = model(CONFIG);
    let args = ["generate", "--prompt", "the cat", "--max-tokens", "20"];
    let text = stdout(&bitnet(&args, model.path()));
    assert_eq!(stdout(&bitnet(&[&args[..], &["--threads", "1"]].concat(), model.path())), text);
    let result = json(&bitnet(&[&args[..], &["--json"]].concat(), model.path()));
    assert_eq!(result["text"], text);
    let tokens: Vec<u32> = serde_json::from_value(result["tokens"].clone()).unwrap();
    let tokenizer = Tokenizer::from_file(&model.path().join(TOKENIZER_FILE)).unwrap();
    assert_eq!(tokenizer.decode(&tokens), text);
    let prompt =
        tokenizer.encode("the cat").unwrap().len() + usize::from(tokenizer.first().is_some());
    assert_eq!(result["prompt_tokens"], prompt);
    assert!(result["tokens_per_second"].as_f64().unwrap() > 0.0);
}

#[test]
fn the_prompt_can_come_from_stdin() {
    let model = model(CONFIG);
    let told = stdout(&bitnet(&["generate", "--prompt", "on the\n"], model.path()));
    let mut child = command(&["generate", "--prompt", "-"], model.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"on the\n").unwrap();
    assert_eq!(stdout(&child.wait_with_output().unwrap()), told);
}

#[test]
fn sampling_follows_its_seed() {
    let model = model(CONFIG);
    let drawn = |seed: &str| {
        let args = ["generate", "--prompt", "a", "--temperature", "1", "--seed", seed, "--json"];
        json(&bitnet(&args, model.path()))["tokens"].clone()
    };
    assert_eq!(drawn("3"), drawn("3"));
    assert_ne!(drawn("3"), drawn("4"));
}

#[test]
fn generation_stops_at_the_config_s_stop_ids() {
    let free = model(CONFIG);
    let args = ["generate", "--prompt", "the", "--max-tokens", "9", "--json"];
    let result = json(&bitnet(&args, free.path()));
    assert_eq!(result["stop"], "length");
    let first = &result["tokens"][0];
    let stopping = model(&format!("{CONFIG}eos_token_id = [5, {first}]"));
    let result = json(&bitnet(&args, stopping.path()));
    assert_eq!((&result["stop"], &result["tokens"]), (&"id".into(), &Value::Array(vec![])));
}

#[test]
fn a_closed_pipe_ends_quietly() {
    let model = model(CONFIG);
    let mut child = command(&["generate", "--prompt", "the"], model.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty());
    for args in [&["completions", "bash"][..], &["--help"], &["generate", "--help"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        // Before the program begins, so that its first byte already finds nobody.
        drop(reader);
        let mut command = Command::new(env!("CARGO_BIN_EXE_bitnet"));
        let output = command.args(args).stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
        let output = output.wait_with_output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && told.is_empty(), "{args:?}: {told}");
    }
}

#[test]
fn a_model_that_is_not_there_or_broken_is_bad_input() {
    let args = ["generate", "--prompt", "a"];
    let message = refused(&bitnet(&args, Path::new("no/such/model")), 4);
    assert!(message.starts_with("error: no/such/model: no such model"), "{message}");
    let model = model(CONFIG);
    let config = model.path().join("config.json");
    fs_err::write(&config, "{\"model_type\": \"gpt2\"}").unwrap();
    let message = refused(&bitnet(&args, model.path()), 4);
    assert!(message.contains("config.json [model_type]: \"gpt2\" is unknown"), "{message}");
}

#[test]
fn a_tokenizer_that_is_missing_or_too_large_is_bad_input() {
    let model = model(&CONFIG.replace("vocab_size = 300", "vocab_size = 270"));
    let args = ["generate", "--prompt", "a"];
    let message = refused(&bitnet(&args, model.path()), 4);
    assert!(message.contains("tokenizer.json [model.vocab]: has ids up to"), "{message}");
    fs_err::remove_file(model.path().join(TOKENIZER_FILE)).unwrap();
    assert!(refused(&bitnet(&args, model.path()), 4).contains("tokenizer.json"));
}

#[test]
fn wrong_arguments_are_usage() {
    let model = model(CONFIG);
    for args in [
        &["generate", "--prompt", "a", "--surprise"][..],
        &["generate", "--prompt", "a", "--threads", "0"],
        &["generate", "--prompt", "a", "--top-p", "1.5"],
        &["generate", "--prompt", "a", "--temperature", "NaN"],
        &["generate"],
    ] {
        refused(&bitnet(args, model.path()), 2);
    }
    let long = "the cat ".repeat(99);
    let message = refused(&bitnet(&["generate", "--prompt", &long], model.path()), 2);
    assert!(message.contains("do not fit the model's context of 64"), "{message}");
}

#[test]
fn every_error_is_an_object_when_json_was_requested() {
    let model = model(CONFIG);
    let broken = model.path().join("broken.toml");
    fs_err::write(&broken, "hidden_size = ").unwrap();
    let page = model.path().join("page.gguf");
    fs_err::write(&page, "<!DOCTYPE html>").unwrap();
    let (broken, page) = (broken.to_str().unwrap(), page.to_str().unwrap());
    let folder = model.path().to_str().unwrap();
    for (args, code, class, part) in [
        (&["inspect"][..], 2, "usage", "--model"),
        (&["bench", folder, "--kernel", "x"], 2, "usage", "--kernel"),
        (&["generate", folder, "--prompt", "a", "--top-p", "2"], 2, "usage", "--top-p"),
        (&["bench", "--config", broken], 3, "recipe", "broken.toml"),
        (&["inspect", "no/model"], 4, "input", "no/model"),
        (&["inspect", page], 4, "input", "an HTML page"),
        (&["score", folder, "--ids", page], 4, "input", "an HTML page"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_bitnet")).args(args).arg("--json").output();
        let output = output.unwrap();
        assert_eq!(output.status.code(), Some(code), "{args:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        let error = serde_json::from_str::<Value>(text.trim_end()).unwrap()["error"].clone();
        assert_eq!((&error["code"], &error["class"]), (&code.into(), &class.into()), "{error}");
        assert!(error.to_string().contains(part), "{part}: {error}");
        assert!(String::from_utf8(output.stderr).unwrap().starts_with("error: "));
    }
}

#[test]
fn a_model_needs_no_flag() {
    let model = model(CONFIG);
    let folder = model.path().to_str().unwrap();
    for args in
        [&["generate", folder, "--prompt", "a"][..], &["inspect", folder], &["chat", folder]]
    {
        let output = Command::new(env!("CARGO_BIN_EXE_bitnet"))
            .args(args)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        stdout(&output);
    }
    let report =
        Command::new(env!("CARGO_BIN_EXE_bitnet")).args(["inspect", folder, "--json"]).output();
    let report = json(&report.unwrap());
    assert_eq!((&report["hidden_size"], &report["vocab_size"]), (&32.into(), &300.into()));
    assert!(report["tensors"][1]["shape"].is_array() && report["notes"].is_array(), "{report}");
}

#[test]
fn each_line_of_ids_is_scored() {
    let model = model(CONFIG);
    let ids = model.path().join("ids.jsonl");
    fs_err::write(&ids, "[1, 2, 3]\n[7]\n").unwrap();
    let args = ["score", "--ids", ids.to_str().unwrap()];
    let text = stdout(&bitnet(&[&args[..], &["--json"]].concat(), model.path()));
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[0]["argmax"].as_array().unwrap().len(), 3);
    assert_eq!(lines[0]["logprobs"][0], Value::Null);
    assert!(lines[0]["logprobs"][2].as_f64().unwrap() < 0.0);
    assert_eq!(lines[1]["logprobs"], Value::Array(vec![Value::Null]));
    assert!(stdout(&bitnet(&args, model.path())).starts_with("2 tokens scored, nll "));
}

#[test]
fn a_bad_line_of_ids_is_named_before_anything_is_printed() {
    let model = model(CONFIG);
    let ids = model.path().join("ids.jsonl");
    for (line, what) in [
        ("[1, -2]", "expected a JSON array of token ids"),
        ("", "expected a JSON array of token ids"),
        ("[]", "holds no token id"),
        ("[300]", "token id 300 lies outside the vocabulary of 300"),
        ("[1, 2", "expected a JSON array of token ids"),
    ] {
        fs_err::write(&ids, format!("[1]\n{line}\n[2]\n")).unwrap();
        let args = ["score", "--ids", ids.to_str().unwrap()];
        let message = refused(&bitnet(&args, model.path()), 4);
        assert!(message.contains("ids.jsonl:2: ") && message.contains(what), "{message}");
    }
}

#[test]
fn a_file_without_ids_is_refused() {
    let model = model(CONFIG);
    let ids = model.path().join("ids.jsonl");
    fs_err::write(&ids, "").unwrap();
    let args = ["score", "--ids", ids.to_str().unwrap()];
    let message = refused(&bitnet(&args, model.path()), 4);
    assert!(message.contains("ids.jsonl") && message.contains("is empty"), "{message}");
}

#[test]
fn inspect_shows_config_tensors_and_shares() {
    let model = model(CONFIG);
    let inspect = |path: &Path| {
        Command::new(env!("CARGO_BIN_EXE_bitnet")).arg("inspect").arg(path).output().unwrap()
    };
    let text = stdout(&inspect(model.path()));
    assert!(text.contains("hidden_size              32\n"), "{text}");
    let line = text.lines().find(|line| line.contains("q_proj")).unwrap();
    assert!(line.contains("[32, 32]") && line.contains("+1 "), "{line}");
    refused(&inspect(&model.path().join("config.json")), 4);
}

/// A chat in a pipe: turns in, answers out.
fn talk(model: &Path, extra: &[&str], turns: &str) -> Output {
    let mut child = command(&[&["chat", "--max-tokens", "12"], extra].concat(), model)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(turns.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

/// A context with room for a few turns.
const LONG: &str = "hidden_size = 32\nintermediate_size = 48\nnum_hidden_layers = 1\n\
    num_attention_heads = 2\nnum_key_value_heads = 1\nvocab_size = 300\n\
    max_position_embeddings = 160\n";

#[test]
fn a_chat_in_a_pipe_answers_every_turn_and_repeats() {
    let model = model(LONG);
    let first = talk(model.path(), &[], "the cat\n\non the log\n");
    let text = stdout(&first);
    assert!(text.matches('\n').count() >= 2, "an answer a turn: {text:?}");
    assert_eq!(stdout(&talk(model.path(), &[], "the cat\n\non the log\n")), text);
    assert_eq!(stdout(&talk(model.path(), &["--threads", "1"], "the cat\non the log\n")), text);
    let told = stdout(&talk(model.path(), &["--system", "sing"], "the cat\non the log\n"));
    assert_ne!(told, text, "a system turn changes what is said");
}

#[test]
fn reset_forgets_the_conversation_and_exit_leaves() {
    let model = model(LONG);
    let alone = stdout(&talk(model.path(), &[], "on the log\n"));
    let after =
        stdout(&talk(model.path(), &[], "on the log\n/reset\non the log\n/exit\nthe cat\n"));
    assert_eq!(after, alone.repeat(2));
}

#[test]
fn a_full_context_forgets_the_oldest_turns_and_a_turn_too_long_is_left_out() {
    let model = model(LONG);
    let long = talk(model.path(), &[], &"the cat sat on the mat, and the dog sang\n".repeat(12));
    assert!(long.status.success());
    let message = String::from_utf8_lossy(&long.stderr).into_owned();
    assert!(message.contains("the oldest"), "{message}");
    let huge = talk(model.path(), &[], &format!("{}\nthe cat\n", "the cat ".repeat(200)));
    let message = String::from_utf8_lossy(&huge.stderr).into_owned();
    assert!(message.contains("does not fit into the context of 160"), "{message}");
    // Its answer is an empty line, so that turns and lines still match.
    let alone = stdout(&talk(model.path(), &[], "the cat\n"));
    assert_eq!(stdout(&huge), format!("\n{alone}"));
}

#[test]
fn an_answer_ends_before_a_stop_text() {
    let model = model(LONG);
    let run = |extra: &[&str]| {
        let args = ["generate", "--prompt", "the cat", "--max-tokens", "20", "--json"];
        json(&bitnet(&[&args[..], extra].concat(), model.path()))
    };
    let whole = run(&[]);
    let text = whole["text"].as_str().unwrap();
    let stop: String = text.chars().skip(3).take(2).collect();
    let cut = run(&["--stop", &stop, "--stop", "never"]);
    assert_eq!(cut["stop"], "text");
    assert_eq!(cut["text"].as_str().unwrap(), &text[..text.find(&stop).unwrap()]);
    assert_ne!(run(&["--repetition-penalty", "5"])["tokens"], whole["tokens"]);
    refused(&bitnet(&["generate", "--prompt", "a", "--stop", ""], model.path()), 2);
}

#[test]
fn bench_times_a_model_and_a_shape() {
    let model = model(LONG);
    let run = ["--prompt-tokens", "9", "--generate-tokens", "5", "--repeat", "2", "--json"];
    let result = json(&bitnet(&[&["bench"][..], &run].concat(), model.path()));
    for rate in ["prefill_tokens_per_second", "decode_tokens_per_second"] {
        assert!(result[rate].as_f64().unwrap() > 0.0, "{result}");
    }
    assert_eq!(result["head"], "int8");
    let shape = model.path().join("shape.toml");
    fs_err::write(&shape, LONG).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_bitnet"));
    command.args(["bench", "--kernel", "scalar", "--threads", "2", "--head", "file"]).args(run);
    let result = json(&command.arg("--config").arg(&shape).output().unwrap());
    assert_eq!((&result["kernel"], &result["threads"]), (&"scalar".into(), &2.into()));
    let message = refused(&bitnet(&["bench", "--kernel", "quantum"], model.path()), 2);
    assert!(message.contains("--kernel quantum: not on this CPU; expected scalar"), "{message}");
    let message = refused(&bitnet(&["bench", "--prompt-tokens", "999"], model.path()), 2);
    assert!(message.contains("do not fit the model's context of 160"), "{message}");
}

#[test]
fn an_8_bit_head_is_near_the_file_s() {
    let model = model(LONG);
    let score = |head: &str| {
        fs_err::write(model.path().join("ids"), "[1, 2, 3, 4, 5, 6, 7, 8]\n").unwrap();
        let ids = model.path().join("ids");
        let args = ["score", "--json", "--head", head, "--ids", ids.to_str().unwrap()];
        json(&bitnet(&args, model.path()))["logprobs"].clone()
    };
    let (file, int8) = (score("file"), score("int8"));
    assert_ne!(file, int8);
    for (a, b) in file.as_array().unwrap().iter().zip(int8.as_array().unwrap()).skip(1) {
        let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
        assert!((a - b).abs() < 0.2, "{a} became {b}");
    }
}

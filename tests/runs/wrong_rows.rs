//! Rows that cannot be trained on: every way a row can be wrong is reported with file, line and field.

use super::lab::{Lab, assert_code, stderr};
use super::stages::lab;

/// Replaces the training file of a stage by `rows` and expects a code and words.
#[track_caller]
fn expect_row(lab: &Lab, stage: &str, rows: &[u8], code: i32, words: &[&str]) {
    fs_err::write(lab.path(&format!("{stage}.jsonl")), rows).unwrap();
    let out = lab.path("refused");
    let output = lab.run_recipe(&format!("{stage}.toml"), &out, &[]);
    let message = stderr(&output);
    assert_code(&output, code);
    for word in words {
        assert!(message.contains(word), "{word:?} is not in: {message}");
    }
    assert!(!message.contains("panicked"), "{message}");
    assert!(!out.join("metrics.jsonl").exists());
}

#[test]
fn every_wrong_conversation_is_reported_with_file_line_and_field() {
    let lab = lab();
    let good = r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}"#;
    let of = |row: &str, field: &str| {
        let rows = format!("{good}\n\n{row}\n");
        expect_row(&lab, "sft", rows.as_bytes(), 4, &["sft.jsonl:3", field]);
    };
    of(r#"{"messages":[{"role":"narrator","content":"a"}]}"#, "[messages.0.role]");
    of(r#"{"messages":[{"role":"user","content":null}]}"#, "[messages.0.content]");
    of(r#"{"messages":[]}"#, "[messages]");
    of(r#"{"messages":[{"role":"user","content":"a"}]}"#, "assistant's turn at the end");
    of(r#"{"title":"a row of something else"}"#, "[messages]");
    of(r#"{"conversations":[{"from":"x","value":"a"}]}"#, "[conversations.0.from]");
    of(r#"{"instruction":"a","output":true}"#, "[output]");
    of("[1]", "expected one object a line");
    let torn = format!("{good}\n{{\"messages\":[{{\"role\":\"us");
    expect_row(&lab, "sft", torn.as_bytes(), 4, &["sft.jsonl:2", "torn"]);
    let latin = [good.as_bytes(), b"\n{\"messages\":\"\xff\"}\n"].concat();
    expect_row(&lab, "sft", &latin, 4, &["sft.jsonl:2", "not UTF-8"]);
    // U+2028 within a string ends no line.
    let separator = good.replace("\"a\"", "\"a\u{2028}b\"");
    fs_err::write(lab.path("sft.jsonl"), format!("{separator}\n").repeat(3)).unwrap();
    lab.finish_recipe("sft.toml", &lab.path("separator"), &["train.steps=3", "eval.every=0"]);
}

#[test]
fn every_wrong_preference_is_reported_with_file_line_and_field() {
    let lab = lab();
    let of = |row: &str, field: &str| {
        expect_row(&lab, "dpo", format!("{row}\n").as_bytes(), 4, &["dpo.jsonl:1", field]);
    };
    of(r#"{"prompt":"q","chosen":"a"}"#, "[rejected]");
    of(r#"{"prompt":"q","chosen":null,"rejected":"a"}"#, "[chosen]");
    of(
        r#"{"chosen":[{"role":"user","content":"q"},{"role":"assistant","content":"a"}],
           "rejected":[{"role":"user","content":"r"},{"role":"assistant","content":"b"}]}"#
            .replace('\n', "")
            .as_str(),
        "the same prompt",
    );
    of(
        r#"{"prompt":[{"role":"assistant","content":"q"}],"chosen":"a","rejected":"b"}"#,
        "[prompt]",
    );
    fs_err::write(lab.path("dpo.txt"), "no rows").unwrap();
    let text = lab.run_recipe("dpo.toml", &lab.path("refused"), &["data.train=[\"dpo.txt\"]"]);
    assert_code(&text, 4);
    assert!(stderr(&text).contains("dpo.txt: unknown kind of file"), "{}", stderr(&text));
}

#[test]
fn rows_without_an_answer_in_reach_are_counted_and_listed() {
    let lab = lab();
    let long = "word ".repeat(80);
    let row = |user: &str| {
        format!(
            r#"{{"messages":[{{"role":"user","content":"{user}"}},{{"role":"assistant","content":"b"}}]}}"#
        )
    };
    let rows = format!("{}\n{}\n{}\n", row("a"), row(&long), row("c")).repeat(4);
    fs_err::write(lab.path("sft.jsonl"), rows).unwrap();
    let run = lab.finish_recipe(
        "sft.toml",
        &lab.path("out"),
        &["train.steps=2", "optimizer.warmup_steps=0"],
    );
    let message = stderr(&run);
    assert!(message.contains("4 left out because no trained token fits"), "{message}");
    assert!(message.contains("sft.jsonl:2 "), "{message}");
    assert!(message.contains("% filled"), "{message}");
}

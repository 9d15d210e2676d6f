//! `bitnet-train data` on files, and recipes whose keys choose their rows.

use std::process::Output;

use serde_json::Value;

use super::lab::{Lab, assert_code, stderr};

fn tool(lab: &Lab, words: &str) -> Output {
    lab.tool(&words.split(' ').collect::<Vec<_>>())
}

fn json(lab: &Lab, words: &str) -> Value {
    let output = tool(lab, words);
    assert!(output.status.success(), "{words}: {}", stderr(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A lab with a table of questions and a list of texts.
fn files() -> Lab {
    let lab = Lab::new();
    let table = "Question,Answer\none?,1\ntwo?,2\none?,1\n";
    let list = r#"[{"text": "a b c d e f g h i j k l m n"}, {"text": "short"}]"#;
    fs_err::write(lab.path("chats.csv"), table).unwrap();
    fs_err::write(lab.path("texts.json"), list).unwrap();
    let set = "{\"q\": \"B C D E F G H I J K L M N!\"}\n";
    fs_err::write(lab.path("set.jsonl"), set).unwrap();
    lab
}

const COLUMNS: &str = "--column instruction=Question --column output=Answer";

#[test]
fn data_commands_convert_split_and_clean_and_replace_only_with_force() {
    let lab = files();
    let convert = format!("data convert --data chats.csv {COLUMNS} --out rows.jsonl --json");
    let result = json(&lab, &convert);
    assert_eq!((&result["rows"], &result["bad"]), (&3.into(), &0.into()));
    assert_code(&tool(&lab, &convert), 7);
    assert!(tool(&lab, &format!("{convert} --force")).status.success());
    let rows = fs_err::read_to_string(lab.path("rows.jsonl")).unwrap();
    assert!(rows.starts_with("{\"messages\":[{\"role\":\"user\",\"content\":\"one?\"}"), "{rows}");

    let once = json(&lab, "data dedup --data rows.jsonl --out once.jsonl --list left.jsonl --json");
    assert_eq!((&once["rows"], &once["left_out"]), (&2.into(), &1.into()));
    let left = fs_err::read_to_string(lab.path("left.jsonl")).unwrap();
    assert!(left.contains("rows.jsonl:3") && left.contains("rows.jsonl:1"), "{left}");

    let split = "data split --data rows.jsonl --out a.jsonl --held-out b.jsonl --share 0.5 --json";
    let sides = json(&lab, split);
    assert_eq!(sides["rows"].as_u64().unwrap() + sides["held_out"].as_u64().unwrap(), 3);

    let against =
        "data decontaminate --data texts.json --against set.jsonl --out clean.jsonl --json";
    let clean = json(&lab, against);
    assert_eq!((&clean["rows"], &clean["left_out"]), (&1.into(), &1.into()));
    assert!(clean["first"][0]["reason"].as_str().unwrap().ends_with("set.jsonl:1"), "{clean}");
}

#[test]
fn data_commands_refuse_with_the_documented_codes() {
    let lab = files();
    for (words, code) in [
        ("data convert --data nowhere.jsonl --out rows.jsonl", 4),
        ("data convert --data texts.json --out rows.parquet", 2),
        ("data convert --data chats.csv --out rows.jsonl", 4),
        ("data split --data texts.json --out a.jsonl --held-out b.jsonl --share 2", 2),
        ("data split --data texts.json --out a.jsonl --held-out a.jsonl", 2),
        ("data decontaminate --data texts.json --out a.jsonl", 2),
        ("data decontaminate --data texts.json --out a.jsonl --tasks arc_esay --task-data .", 2),
        ("data decontaminate --data texts.json --out a.jsonl --tasks arc_easy --task-data .", 4),
        ("eval none --tasks arc_esay --data .", 2),
        // What is read is never replaced.
        ("data dedup --data set.jsonl --out set.jsonl --force", 7),
    ] {
        let output = tool(&lab, words);
        assert_eq!(output.status.code(), Some(code), "{words}: {}", stderr(&output));
    }
    assert!(!lab.path("rows.jsonl").exists() && !lab.path("a.jsonl").exists());
}

#[test]
fn data_stats_count_rows_and_draw_their_lengths() {
    let lab = files();
    let statistics = json(&lab, "data stats --data texts.json --json");
    assert_eq!((&statistics["rows"], &statistics["longest"]), (&2.into(), &27.into()));
    let drawn = tool(&lab, "data stats --data texts.json");
    let text = String::from_utf8_lossy(&drawn.stdout).into_owned();
    assert!(text.lines().any(|line| line.ends_with(&"#".repeat(44))), "{text}");
}

const RECIPE: &str = "stage = \"pretrain\"\n[model]\nconfig = \"model.toml\"\n\
    [tokenizer]\ntrain = { vocab_size = 320 }\n[data]\ntrain = \"rows.jsonl\"\ncache = \"cache\"\n\
    seq_len = 32\n[train]\nsteps = 2\nbatch = 2\n[eval]\nevery = 2\n";

/// A lab with 400 rows, of which 100 repeat others.
fn rows() -> Lab {
    let lab = Lab::new();
    let row = |n: u32| format!("{{\"text\":\"row number {} says hello\"}}\n", n % 300);
    fs_err::write(lab.path("rows.jsonl"), (0..400).map(row).collect::<String>()).unwrap();
    fs_err::write(lab.path("rows.toml"), RECIPE).unwrap();
    lab
}

#[test]
fn a_run_uses_each_text_once_and_evaluates_on_the_share_that_it_holds_out() {
    let lab = rows();
    let keys = ["data.dedup=exact", "data.validation_share=0.1"];
    lab.finish_recipe("rows.toml", &lab.path("out"), &keys);
    let lines = super::lab::metrics(&lab.path("out"));
    assert!(lines.iter().any(|line| line.to_string().contains("\"validation\"")), "{lines:?}");
    let shown = tool(&lab, &format!("inspect data --recipe rows.toml --rows 1 {}", keys.join(" ")));
    let text = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(text.contains("duplicates left out") && text.contains("other side"), "{text}");
}

#[test]
fn a_run_trains_on_tokens_of_another_trainer() {
    let lab = rows();
    lab.finish_recipe("rows.toml", &lab.path("out"), &["eval.every=0"]);
    let id = |n: u32| if n.is_multiple_of(20) { 257_u16 } else { 65 };
    let ids: Vec<u8> = (0..600).flat_map(|n| id(n).to_le_bytes()).collect();
    fs_err::write(lab.path("ids.bin"), &ids).unwrap();
    let keys = "data.train=\"ids.bin\" data.tokens={dtype=\"u16\",document_separator=257} eval.every=0 \
        tokenizer={path=\"out/final/tokenizer.json\"}";
    let inspect = format!("inspect data --recipe rows.toml --rows 1 {keys}");
    let shown = tool(&lab, &inspect);
    let text = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(text.contains("30 rows of tokens"), "{text}{}", stderr(&shown));
    let beyond = [&ids[..], &999_u16.to_le_bytes()].concat();
    fs_err::write(lab.path("ids.bin"), beyond).unwrap();
    let refused = tool(&lab, &inspect);
    assert_code(&refused, 4);
    assert!(
        stderr(&refused).contains("ids.bin:1200: token id out of range"),
        "{}",
        stderr(&refused)
    );
    let both = tool(&lab, &format!("{inspect} data.dedup=exact"));
    assert_code(&both, 3);
    assert!(stderr(&both).contains("[data.tokens]"), "{}", stderr(&both));
}

//! `bitnet eval` as people and scripts use it: data and task files in, scores, files and exit codes out.

use std::process::{Command, Output};

use bitnet_format::adapter::{
    AdapterDescription, AdapterKind, LowRankFactor, matching_entries, write_adapter,
};
use bitnet_format::{DType, StoredModel, TensorEntry};
use serde_json::{Value, json};
use tempfile::TempDir;
use workplace::{random_model, write_rows};

mod workplace;

/// A packed folder `model` with random weights, and a folder `data` with rows of PIQA and of a task of
/// the user's.
fn workplace() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    random_model(&dir.path().join("model"), 64);
    let piqa = |i: usize| json!({"goal": format!("sit {i}"), "sol1": "on the mat", "sol2": "the log", "label": i % 2});
    write_rows(&dir.path().join("data/baber/piqa/validation.jsonl"), (0..7).map(piqa));
    let own = |i: usize| json!({"q": format!("cat {i}"), "a": "the"});
    write_rows(&dir.path().join("data/own/test.jsonl"), (0..3).map(own));
    fs_err::write(
        dir.path().join("own.yaml"),
        "task: own\ntest_split: test\ndoc_to_text: '{{q}} sat'\ndoc_to_target: a\n\
         generation_kwargs: {until: [','], max_gen_toks: 8}\n",
    )
    .unwrap();
    dir
}

fn eval(dir: &TempDir, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bitnet"));
    command.current_dir(dir.path()).arg("eval").args(args).output().unwrap()
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn refused(output: &Output, code: i32) -> String {
    let message = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(code), "{message}");
    assert!(message.starts_with("error: ") && !message.contains("panicked"), "{message}");
    message
}

#[test]
fn a_log_of_rows_replaces_nothing_but_a_log() {
    let dir = workplace();
    let args = ["model", "--data", "data", "--tasks", "own.yaml", "--log-samples"];
    let row = "{\"task\": \"own\", \"doc_id\": 1}\n";
    fs_err::write(dir.path().join("data.jsonl"), row).unwrap();
    for kept in ["data.jsonl", "own.yaml", "model/config.json"] {
        let before = fs_err::read(dir.path().join(kept)).unwrap();
        let message = refused(&eval(&dir, &[&args[..], &[kept]].concat()), 4);
        assert!(message.contains("is not replaced"), "{message}");
        assert_eq!(fs_err::read(dir.path().join(kept)).unwrap(), before, "{kept}");
    }
    for _ in 0..2 {
        stdout(&eval(&dir, &[&args[..], &["rows.jsonl"]].concat()));
    }
    let text = fs_err::read_to_string(dir.path().join("own.yaml")).unwrap();
    fs_err::write(dir.path().join("out.yaml"), text.replace("task: own", "task: ../own")).unwrap();
    let message = refused(&eval(&dir, &["model", "--data", "data", "--tasks", "out.yaml"]), 4);
    assert!(message.contains("out.yaml") && message.contains("[task]"), "{message}");
}

#[test]
fn scores_are_printed_logged_and_compared() {
    let dir = workplace();
    let args = ["model", "--data", "data", "--tasks", "piqa,own.yaml"];
    let table = stdout(&eval(&dir, &args));
    assert!(table.starts_with("task "), "{table}");
    assert_eq!(table.lines().filter(|line| line.starts_with("piqa")).count(), 2);
    let logged = [&args[..], &["--json", "--log-samples", "rows.jsonl", "--limit", "5"]].concat();
    let all: Value = serde_json::from_str(&stdout(&eval(&dir, &logged))).unwrap();
    assert_eq!(all["n-samples"]["piqa"], json!({"original": 7, "effective": 5}));
    let acc = all["results"]["piqa"]["acc,none"].as_f64().unwrap();
    assert!((0.0..=1.0).contains(&acc) && all["results"]["own"]["exact_match,none"].is_number());
    assert_eq!((&all["bitnet"]["bos"], &all["versions"]["piqa"]), (&json!("auto"), &json!(1.0)));
    assert!(
        all["bitnet"]["model_hash"].is_string()
            && all["bitnet"]["tasks"]["piqa"]["data_hash"].is_string()
    );
    let rows = fs_err::read_to_string(dir.path().join("rows.jsonl")).unwrap();
    let rows: Vec<Value> = rows.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows.len(), 8);
    let question = "Question: sit 0\nAnswer:";
    assert_eq!(rows[0]["arguments"], json!([[question, " on the mat"], [question, " the log"]]));
    let hits: f64 = rows[..5].iter().map(|row| row["acc"].as_f64().unwrap()).sum();
    assert!((hits / 5.0 - acc).abs() < 1e-12);
    assert_eq!(rows[5]["arguments"], json!([["cat 0 sat"]]));
    let same = stdout(&eval(&dir, &["--compare", "rows.jsonl", "rows.jsonl", "--json"]));
    let same: Value = serde_json::from_str(&same).unwrap();
    assert_eq!(same["differences"].as_array().unwrap().len(), 3);
    assert_eq!(same["differences"][0]["difference"], 0.0);
    assert!(
        stdout(&eval(&dir, &["--compare", "rows.jsonl", "rows.jsonl"])).contains("McNemar 0 : 0")
    );
}

#[test]
fn a_finished_task_is_kept_as_long_as_it_depends_on_the_same() {
    let dir = workplace();
    let args =
        ["--model", "model", "--data", "data", "--tasks", "piqa", "--out", "scores", "--json"];
    let seconds = |more: &[&str]| {
        let all = stdout(&eval(&dir, &[&args[..], more].concat()));
        let all: Value = serde_json::from_str(&all).unwrap();
        (all["bitnet"]["tasks"]["piqa"]["seconds"].to_string(), all["results"].to_string())
    };
    let first = seconds(&[]);
    assert_eq!(seconds(&["--resume"]), first, "the very same result");
    assert_ne!(seconds(&["--resume", "--bos", "never"]).0, first.0);
    let rows = dir.path().join("data/baber/piqa/validation.jsonl");
    let text = fs_err::read_to_string(&rows).unwrap();
    fs_err::write(&rows, text.replace("sit 0", "sit 9")).unwrap();
    assert_ne!(seconds(&["--resume"]).0, first.0);
    let other = dir.path().join("scores/piqa.json");
    fs_err::write(&other, "{\"mine\": 1}").unwrap();
    let message = refused(&eval(&dir, &args), 4);
    assert!(message.contains("piqa.json: is no result of this program"), "{message}");
    assert_eq!(fs_err::read_to_string(&other).unwrap(), "{\"mine\": 1}");
}

/// An adapter folder `adapter` with factors of this size.
fn write_adapter_of(dir: &TempDir, size: f32) {
    let folder = dir.path().join("adapter");
    let _ = fs_err::remove_dir_all(&folder);
    let description = AdapterDescription {
        kind: AdapterKind::Side,
        rank: 2,
        alpha: 4.0,
        base_path: "model".to_owned(),
        base_hash: None,
    };
    let stored = StoredModel::open(&dir.path().join("model")).unwrap();
    let entries = matching_entries(stored.spec(), &["q_proj".to_owned()]).unwrap();
    let values = |entry: &TensorEntry, factor: LowRankFactor| {
        Ok(vec![size; factor.shape(entry, 2).iter().product()])
    };
    fs_err::create_dir(&folder).unwrap();
    write_adapter(&folder, &description, stored.spec(), &entries, DType::Bf16, values).unwrap();
}

#[test]
fn a_file_that_was_changed_and_kept_its_name_is_another_one() {
    let dir = workplace();
    let write = |name: &str, text: &str| fs_err::write(dir.path().join(name), text).unwrap();
    let template = |end: &str| {
        let text = "{% for message in messages %}{{ message.content }}\n{% endfor %}";
        write("model/chat_template.jinja", &format!("{text}{end}"));
    };
    template("A:");
    write_adapter_of(&dir, 0.5);
    let args = ["model", "--data", "data", "--tasks", "own.yaml", "--out", "scores", "--json"];
    let more = ["--resume", "--adapter", "adapter", "--apply-chat-template"];
    let seconds = || {
        let all = stdout(&eval(&dir, &[&args[..], &more].concat()));
        let all: Value = serde_json::from_str(&all).unwrap();
        all["bitnet"]["tasks"]["own"]["seconds"].to_string()
    };
    let mut before = seconds();
    assert_eq!(seconds(), before);
    let changes: [(&str, &dyn Fn()); 4] = [
        ("template", &|| template("B:")),
        ("stop ids", &|| write("model/generation_config.json", "{\"eos_token_id\": [7]}")),
        ("tokenizer", &|| write("model/tokenizer_config.json", "{\"add_bos_token\": false}")),
        ("adapter", &|| write_adapter_of(&dir, 0.25)),
    ];
    for (what, change) in changes {
        change();
        let now = seconds();
        assert_ne!(now, before, "{what}");
        assert_eq!(seconds(), now, "{what}");
        before = now;
    }
}

#[test]
fn tasks_that_are_kept_have_their_rows_in_the_log() {
    let dir = workplace();
    let args = ["model", "--data", "data", "--tasks", "piqa,own.yaml", "--out", "scores"];
    let run = |more: &[&str]| {
        let output = eval(&dir, &[&args[..], more].concat());
        stdout(&output);
        String::from_utf8(output.stderr).unwrap()
    };
    let rows = |name: &str| fs_err::read_to_string(dir.path().join(name)).unwrap();
    run(&[]);
    let told = run(&["--resume", "--log-samples", "a.jsonl"]);
    let again = "is asked again, because --out holds no rows for --log-samples";
    for name in ["piqa", "own"] {
        assert!(told.contains(&format!("{name}: {again}")), "{told}");
    }
    assert_eq!(rows("a.jsonl").lines().count(), 10);
    let told = run(&["--resume", "--log-samples", "b.jsonl"]);
    assert!(!told.contains("asked again"), "{told}");
    assert_eq!(rows("a.jsonl"), rows("b.jsonl"));
    run(&["--resume", "--log-samples", "c.jsonl", "--limit", "2"]);
    assert_eq!(rows("c.jsonl").lines().count(), 4);
    fs_err::write(dir.path().join("scores/own.rows.jsonl"), "mine").unwrap();
    let output = eval(&dir, &[&args[..], &["--log-samples", "d.jsonl"]].concat());
    let message = refused(&output, 4);
    assert!(message.contains("own.rows.jsonl: is no result of this program"), "{message}");
    assert_eq!(rows("scores/own.rows.jsonl"), "mine");
}

#[test]
fn a_task_that_cannot_be_run_is_refused_before_anything_ran() {
    let dir = workplace();
    let base = ["model", "--data", "data", "--tasks"];
    let write = |name: &str, text: &str| fs_err::write(dir.path().join(name), text).unwrap();
    let own = fs_err::read_to_string(dir.path().join("own.yaml")).unwrap();
    write("template.yaml", &own.replace("{{q}} sat", "{{q}} {{missing}}"));
    write(
        "label.yaml",
        "task: own\ntest_split: test\noutput_type: multiple_choice\ndoc_to_text: q\ndoc_to_choice: [a, b]\ndoc_to_target: 2\n",
    );
    write("room.yaml", &own.replace("max_gen_toks: 8", "max_gen_toks: 64"));
    write("key.yaml", &own.replace("doc_to_text", "doc_to_txt"));
    for (tasks, code, expected) in [
        ("piqua", 2, "--tasks piqua: no such task; did you mean piqa?"),
        (
            "boolq",
            4,
            "boolq: no data for split \"validation\" under data; looked for aps/super_glue/boolq/validation.jsonl",
        ),
        ("template.yaml", 4, "data/own/test.jsonl:1 [doc_to_text]: "),
        (
            "label.yaml",
            4,
            "data/own/test.jsonl:1 [doc_to_target]: label 2 is out of range; expected below 2",
        ),
        (
            "room.yaml",
            2,
            "own: 64 new tokens leave no room for a prompt in the model's context of 64",
        ),
        ("key.yaml", 4, "key.yaml [doc_to_text]: is missing"),
        ("none.yaml", 4, "none.yaml"),
    ] {
        let output = eval(&dir, &[&base[..], &[tasks]].concat());
        let message = refused(&output, code);
        assert!(message.contains(expected), "{tasks}: {message}");
    }
    let shots = [&base[..], &["piqa", "--num-fewshot", "9"]].concat();
    let message = refused(&eval(&dir, &shots), 4);
    assert!(message.contains("piqa: no data for split \"train\""), "{message}");
    assert!(refused(&eval(&dir, &["model", "--tasks", "piqa"]), 2).contains("--data"));
    assert!(
        refused(&eval(&dir, &["--compare", "own.yaml", "own.yaml"]), 4)
            .contains("own.yaml:1 [line]")
    );
}

#[test]
fn prompts_are_conversations_on_request() {
    let dir = workplace();
    write_rows(&dir.path().join("data/own/train.jsonl"), [json!({"q": "dog", "a": "sang"})]);
    let own = fs_err::read_to_string(dir.path().join("own.yaml")).unwrap();
    let text = own.replace("test_split", "training_split: train\nnum_fewshot: 1\ntest_split");
    fs_err::write(dir.path().join("own.yaml"), text + "description: Sing.\n").unwrap();
    let asked = |more: &[&str]| {
        let args =
            ["model", "--data", "data", "--tasks", "own.yaml", "--log-samples", "rows.jsonl"];
        stdout(&eval(&dir, &[&args[..], more].concat()));
        let rows = fs_err::read_to_string(dir.path().join("rows.jsonl")).unwrap();
        let row: Value = serde_json::from_str(rows.lines().next().unwrap()).unwrap();
        row["arguments"][0][0].as_str().unwrap().to_owned()
    };
    assert_eq!(asked(&[]), "Sing.dog sat sang\n\ncat 0 sat");
    let one = asked(&["--apply-chat-template"]);
    assert!(one.contains("Sing.") && one.contains("dog sat sang\n\ncat 0 sat"), "{one}");
    assert!(one.ends_with("Assistant:"), "{one}");
    let many = asked(&["--apply-chat-template", "--fewshot-as-multiturn"]);
    assert!(many.contains("dog sat") && !many.contains("sang\n\n"), "{many}");
    assert!(many.matches("Assistant:").count() == 2, "{many}");
    let args = ["model", "--data", "data", "--tasks", "piqa", "--log-samples", "rows.jsonl"];
    stdout(&eval(&dir, &[&args[..], &["--apply-chat-template"]].concat()));
    let rows = fs_err::read_to_string(dir.path().join("rows.jsonl")).unwrap();
    let row: Value = serde_json::from_str(rows.lines().next().unwrap()).unwrap();
    let [prompt, answer] = [0, 1].map(|at| row["arguments"][0][at].as_str().unwrap());
    assert!(prompt.contains("User: Question: sit 0\nAnswer:"), "{prompt}");
    assert!(prompt.ends_with("Assistant: "), "choices follow the published prompt: {prompt}");
    assert_eq!(answer, "on the mat");
}

#[test]
fn squad_2_asks_for_a_text_and_how_likely_no_answer_is() {
    let dir = workplace();
    let row = |i: usize| {
        let right = if i.is_multiple_of(2) { json!(["the cat"]) } else { json!([]) };
        json!({"id": i.to_string(), "title": "a", "context": "cat", "question": "who", "answers": {"text": right}})
    };
    write_rows(&dir.path().join("data/lighteval/squad_v2/validation.jsonl"), (0..4).map(row));
    let spec = fs_err::read_to_string(dir.path().join("model/config.json")).unwrap();
    let longer =
        spec.replace("\"max_position_embeddings\": 64", "\"max_position_embeddings\": 512");
    assert_ne!(spec, longer);
    fs_err::write(dir.path().join("model/config.json"), longer).unwrap();
    let args = ["model", "--data", "data", "--tasks", "squadv2", "--log-samples", "rows.jsonl"];
    let all: Value =
        serde_json::from_str(&stdout(&eval(&dir, &[&args[..], &["--json"]].concat()))).unwrap();
    let score = |name: &str| all["results"]["squadv2"][format!("{name},none")].as_f64().unwrap();
    let names = ["exact", "HasAns_exact", "NoAns_exact", "HasAns_f1", "NoAns_f1"];
    assert!(names.iter().all(|name| (0.0..=100.0).contains(&score(name))), "{all}");
    // Two of four rows have no answer: a threshold that leaves all unanswered is right for these.
    assert!(score("best_exact") >= 50.0 && score("best_f1") >= score("best_exact"), "{all}");
    assert_eq!(all["results"]["squadv2"]["exact_stderr,none"], "N/A");
    let rows = fs_err::read_to_string(dir.path().join("rows.jsonl")).unwrap();
    let row: Value = serde_json::from_str(rows.lines().next().unwrap()).unwrap();
    assert_eq!(row["arguments"][1][1], " unanswerable");
    assert!(row["resps"][2].as_f64().unwrap() < 0.0, "{row}");
    let table = stdout(&eval(&dir, &args));
    let line = table.lines().find(|line| line.contains("best_exact")).unwrap();
    assert!(line.ends_with(&format!("{:.2} %", score("best_exact"))), "{line}");
}

#[test]
fn programs_of_a_model_run_only_where_that_is_allowed() {
    let dir = workplace();
    let row = json!({"prompt": "def f():\n", "test": "def check(f): pass", "entry_point": "f"});
    write_rows(&dir.path().join("data/openai_humaneval/test.jsonl"), [row]);
    let args = ["model", "--data", "data", "--tasks", "humaneval"];
    let message = refused(&eval(&dir, &args), 2);
    assert!(message.contains("allow it with --allow-code-execution"), "{message}");
    let args = [&args[..], &["--allow-code-execution=no-such-python"]].concat();
    let message = refused(&eval(&dir, &args), 2);
    assert!(message.contains("no-such-python does not run a program here"), "{message}");
}

#[test]
fn the_suite_runs_what_there_is_data_for() {
    let dir = workplace();
    let output = eval(&dir, &["model", "--data", "data", "--suite", "report"]);
    let (table, left_out) = (stdout(&output), String::from_utf8(output.stderr).unwrap());
    assert!(table.contains("mean of 1 rows: this "), "{table}");
    assert!(table.contains("77.09") && table.contains("867.06 / 16"), "{table}");
    assert_eq!(
        left_out.lines().filter(|line| line.starts_with("left out: ")).count(),
        14,
        "{left_out}"
    );
}

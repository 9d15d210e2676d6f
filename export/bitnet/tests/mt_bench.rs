//! `bitnet mt-bench`: questions in, answers and judgments in FastChat's files out; the judge is a
//! small server of this test.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::mpsc::{Receiver, channel};

use serde_json::{Value, json};
use tempfile::TempDir;
use workplace::{random_model, write_rows};

mod workplace;

/// A packed folder `model` with random weights, two questions and the files of a judge.
fn workplace() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    random_model(&dir.path().join("model"), 256);
    let question = |id: u64, category: &str| json!({"question_id": id, "category": category, "turns": ["cat?", "dog?"]});
    write_rows(&dir.path().join("q.jsonl"), [question(81, "writing"), question(111, "math")]);
    let reference = json!({"question_id": 111, "choices": [{"index": 0, "turns": ["r1", "r2"]}]});
    write_rows(&dir.path().join("gpt-4.jsonl"), [reference]);
    let prompts =
        ["single-v1", "single-v1-multi-turn", "single-math-v1", "single-math-v1-multi-turn"];
    let texts =
        ["{question} {answer}", "{answer_1} {answer_2}", "{ref_answer_1}", "{ref_answer_2}"];
    let prompt = |(name, text): (&str, &str)| {
        json!({"name": name, "type": "single", "system_prompt": "Be fair.", "prompt_template": text,
            "output_format": "[[rating]]"})
    };
    write_rows(&dir.path().join("prompts.jsonl"), prompts.into_iter().zip(texts).map(prompt));
    fs_err::write(dir.path().join("key"), "secret\n").unwrap();
    dir
}

fn rows(path: &Path) -> Vec<Value> {
    let text = fs_err::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn mt_bench(dir: &TempDir, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bitnet"));
    let base = ["mt-bench", "model", "--questions", "q.jsonl", "--out", "out"];
    let length = ["--max-tokens", "8"];
    let length = if args.contains(&length[0]) { &[][..] } else { &length };
    command.current_dir(dir.path()).args(base).args(length).args(args).output().unwrap()
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// A judge: its address, and what it was asked. Its first answer is an error, the others rate with
/// 4, 5, 6 and then not at all.
fn judge() -> (String, Receiver<(String, Value)>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let (sender, asked) = channel();
    std::thread::spawn(move || {
        let texts = ["Rating: [[4]]", "[[5]]", "It is [6]", "no number"];
        let mut next = texts.iter();
        for (number, stream) in listener.incoming().enumerate() {
            let mut stream = stream.unwrap();
            let request = read_request(&stream);
            if number == 0 {
                answer(&mut stream, "500 Oops", &json!({"error": {"message": "busy"}}));
                continue;
            }
            let text = next.next().unwrap_or(&"[[9]]");
            answer(&mut stream, "200 OK", &json!({"choices": [{"message": {"content": text}}]}));
            if sender.send(request).is_err() {
                return;
            }
        }
    });
    (address, asked)
}

/// The key and the body of a request.
fn read_request(stream: &TcpStream) -> (String, Value) {
    let mut stream = BufReader::new(stream);
    let (mut length, mut key, mut line) = (0, String::new(), String::new());
    while stream.read_line(&mut line).unwrap() > 2 {
        let (name, value) = line.split_once(": ").unwrap_or_default();
        match name.to_lowercase().as_str() {
            "content-length" => length = value.trim().parse().unwrap(),
            "authorization" => value.trim().clone_into(&mut key),
            _ => {}
        }
        line.clear();
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).unwrap();
    (key, serde_json::from_slice(&body).unwrap())
}

fn answer(stream: &mut TcpStream, status: &str, body: &Value) {
    let body = body.to_string();
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
    .unwrap();
}

#[test]
fn questions_are_answered_once_and_the_file_is_fastchats() {
    let dir = workplace();
    let path = dir.path().join("out/model_answer/model.jsonl");
    assert_eq!(stdout(&mt_bench(&dir, &["--limit", "1"])), "1 answers in out\n");
    let first = rows(&path);
    assert_eq!((&first[0]["question_id"], &first[0]["model_id"]), (&json!(81), &json!("model")));
    let turns = first[0]["choices"][0]["turns"].as_array().unwrap();
    assert_eq!((turns.len(), &first[0]["choices"][0]["index"]), (2, &json!(0)));
    assert!(first[0]["answer_id"].is_string() && first[0]["tstamp"].is_number());
    assert_eq!(stdout(&mt_bench(&dir, &[])), "2 answers in out\n");
    let both = rows(&path);
    assert_eq!((both.len(), &both[0]), (2, &first[0]), "the first answer is kept");
    let other = mt_bench(&dir, &["--max-tokens", "4"]);
    let message = String::from_utf8(other.stderr).unwrap();
    assert!(
        message.contains("model.jsonl: holds answers of another model or of other settings"),
        "{message}"
    );
    assert_eq!((other.status.code(), rows(&path)), (Some(4), both));
}

#[test]
fn a_judge_rates_each_turn_once_and_its_means_are_printed() {
    let dir = workplace();
    let (address, asked) = judge();
    let args = [
        "--judge",
        &address,
        "--judge-model",
        "org/judge",
        "--judge-prompts",
        "prompts.jsonl",
        "--references",
        "gpt-4.jsonl",
        "--judge-key-file",
        "key",
        "--name",
        "mine",
    ];
    let table = stdout(&mt_bench(&dir, &args));
    assert_eq!(table.lines().nth(1).unwrap(), "mine     5.00    5.00    5.00", "{table}");
    let requests: Vec<(String, Value)> = asked.try_iter().collect();
    assert_eq!(requests.len(), 4);
    let (key, body) = &requests[3];
    assert_eq!((key.as_str(), &body["model"]), ("Bearer secret", &json!("org/judge")));
    assert_eq!(
        body["messages"],
        json!([{"role": "system", "content": "Be fair."},
        {"role": "user", "content": "r2"}])
    );
    let judged = rows(&dir.path().join("out/model_judgment/org_judge_single.jsonl"));
    let scores: Vec<(&Value, &Value)> =
        judged.iter().map(|row| (&row["turn"], &row["score"])).collect();
    assert_eq!(json!(scores), json!([[1, 4], [2, 5], [1, 6], [2, -1]]));
    assert_eq!(judged[0]["judge"], json!(["org/judge", "single-v1"]));
    // The same answers again: no judgment is asked for.
    let again = stdout(&mt_bench(&dir, &[&args[..], &["--json"]].concat()));
    let again: Value = serde_json::from_str(&again).unwrap();
    assert_eq!(
        again,
        json!({"model": "mine", "turn_1": 5.0, "turn_2": 5.0, "mean": 5.0, "judgments": 4, "unrated": 1})
    );
    assert_eq!(asked.try_iter().count(), 0);
}

#[test]
fn what_a_judge_lacks_is_said_before_anything_is_answered() {
    let dir = workplace();
    let judged = ["--judge", "http://127.0.0.1:9", "--judge-model", "j"];
    for (args, code, expected) in [
        (
            &["--judge-prompts", "prompts.jsonl"][..],
            2,
            "MT-bench question 111: has no reference answer",
        ),
        (
            &["--judge-prompts", "q.jsonl"],
            4,
            "q.jsonl:1 [name]: no prompt of the file is \"single-v1\"",
        ),
        (&[], 2, "--judge-prompts"),
    ] {
        let output = mt_bench(&dir, &[&judged[..], args].concat());
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{message}");
        assert!(message.contains(expected), "{message}");
    }
    let refused = mt_bench(
        &dir,
        &["--judge", "https://x", "--judge-model", "j", "--judge-prompts", "prompts.jsonl"],
    );
    assert_eq!(refused.status.code(), Some(2));
    assert!(
        String::from_utf8(refused.stderr)
            .unwrap()
            .contains("--judge https://x: expected an address")
    );
    assert!(!dir.path().join("out").exists());
}

#[test]
fn without_a_model_nothing_is_made() {
    let dir = workplace();
    fs_err::remove_dir_all(dir.path().join("model")).unwrap();
    let output = mt_bench(&dir, &[]);
    assert_eq!(output.status.code(), Some(4), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(!dir.path().join("out").exists());
}

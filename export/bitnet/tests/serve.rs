//! `bitnet serve` as a program: its one line, its flags, its exit codes. What it answers over HTTP is
//! tested in `bitnet-serve`.
#![cfg(all(unix, feature = "serve"))]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use bitnet_format::ModelSpec;
use bitnet_format::convert::hf::write_packed;
use bitnet_format::folder::TOKENIZER_FILE;
use bitnet_text::train_bpe;
use tempfile::TempDir;

/// A packed folder with fixed weights and a context of 512 tokens.
fn model() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let spec: ModelSpec = toml::from_str(
        "hidden_size = 32\nintermediate_size = 48\nnum_hidden_layers = 1\nnum_attention_heads = 2\n\
         num_key_value_heads = 1\nvocab_size = 300\nmax_position_embeddings = 512\n",
    )
    .unwrap();
    let value = |i: usize| ((i * 7919 % 1013) as f32) / 507.0 - 1.0;
    write_packed(dir.path(), &spec, |entry| Ok((0..entry.elements()).map(value).collect()))
        .unwrap();
    let json = train_bpe(["the cat sat on the mat".to_owned()].into_iter(), 290).unwrap();
    fs_err::write(dir.path().join(TOKENIZER_FILE), json).unwrap();
    dir
}

fn serve(model: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bitnet"));
    command.arg("serve").arg("--model").arg(model).args(args);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A server that answers, and its address.
fn started(model: &Path, args: &[&str]) -> (Child, String) {
    let mut child = serve(model, &[&["--port", "0"], args].concat()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    let address = line.trim().strip_prefix("listening on http://").unwrap().to_owned();
    (child, address)
}

fn ask(address: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    reply
}

fn signal(child: &Child, name: &str) {
    let id = child.id().to_string();
    assert!(Command::new("kill").args([name, &id]).status().unwrap().success());
}

/// Asserts a failure: its code, no output, one message without panic text.
fn refused(output: &Output, code: i32, message: &str) {
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{told}");
    assert!(output.stdout.is_empty() && told.contains(message), "{told}");
    assert!(told.starts_with("error: ") && !told.contains("panicked"), "{told}");
}

#[test]
fn it_says_where_it_listens_answers_and_ends_with_the_code_of_its_signal() {
    let model = model();
    for (name, code) in [("-TERM", 143), ("-INT", 130)] {
        let (mut child, address) = started(model.path(), &["--threads", "1"]);
        let head = "Host: localhost\r\nConnection: close\r\n";
        let reply = ask(&address, &format!("GET /v1/models HTTP/1.1\r\n{head}\r\n"));
        assert!(
            reply.starts_with("HTTP/1.1 200") && reply.contains("\"context_length\":512"),
            "{reply}"
        );
        let body = "{\"prompt\": \"the cat\", \"max_tokens\": 5}";
        let request = format!(
            "POST /v1/completions HTTP/1.1\r\n{head}Content-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        assert!(ask(&address, &request).contains("\"finish_reason\""));
        signal(&child, name);
        assert_eq!(child.wait().unwrap().code(), Some(code));
    }
}

#[test]
fn five_hundred_idle_connections_leave_others_served() {
    let model = model();
    let (mut child, address) = started(model.path(), &["--threads", "1"]);
    let idle: Vec<_> = (0..500).map(|_| TcpStream::connect(&address).unwrap()).collect();
    let head = "GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    for _ in 0..3 {
        assert!(ask(&address, head).starts_with("HTTP/1.1 200"));
    }
    drop(idle);
    signal(&child, "-TERM");
    assert_eq!(child.wait().unwrap().code(), Some(143));
}

/// A chat in a pipe: turns in, answers out.
fn talk(args: &[&str], turns: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bitnet"));
    command.arg("chat").args(["--max-tokens", "12"]).args(args);
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().unwrap();
    // One that is refused at once ends before it reads.
    let _ = child.stdin.take().unwrap().write_all(turns.as_bytes());
    child.wait_with_output().unwrap()
}

#[test]
fn a_chat_with_a_server_says_what_one_with_the_model_says() {
    let model = model();
    let path = model.path().to_str().unwrap();
    let keys = model.path().join("keys.txt");
    fs_err::write(&keys, "# mine\na-key\n").unwrap();
    let keys = keys.to_str().unwrap();
    let (mut child, address) = started(model.path(), &["--api-key-file", keys, "--threads", "1"]);
    let server = format!("http://{address}/");
    for settings in
        [&["--system", "sing"][..], &["--temperature", "1", "--top-k", "40", "--seed", "3"]]
    {
        let turns = "the cat\n/reset\non the mat\nthe cat sat\n";
        let alone = talk(&[&[path][..], settings].concat(), turns);
        let asked = [&["--server", &server, "--api-key-file", keys][..], settings].concat();
        let served = talk(&asked, turns);
        assert!(served.status.success(), "{}", String::from_utf8_lossy(&served.stderr));
        assert_eq!(String::from_utf8_lossy(&served.stdout), String::from_utf8_lossy(&alone.stdout));
        assert!(served.stdout.split(|byte| *byte == b'\n').count() > 3);
    }
    let long = format!("{}\n", "the cat ".repeat(400));
    let served = talk(&["--server", &server, "--api-key-file", keys], &long);
    let told = String::from_utf8_lossy(&served.stderr).into_owned();
    assert!(told.contains("does not fit into the context of 512 tokens"), "{told}");
    refused(&talk(&["--server", &server], "hi\n"), 5, "a valid key is needed");
    signal(&child, "-TERM");
    child.wait().unwrap();
    refused(&talk(&["--server", &server], "hi\n"), 5, &address);
    refused(&talk(&["--server", "https://localhost"], "hi\n"), 2, "http://127.0.0.1:8080");
}

#[test]
fn what_cannot_be_served_is_refused_with_the_documented_codes() {
    let model = model();
    let keys = model.path().join("keys.txt");
    fs_err::write(&keys, "# none\n").unwrap();
    let keys = keys.to_str().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let cases: [(&[&str], i32, &str); 9] = [
        (&["--host", "0.0.0.0"], 2, "--api-key-file"),
        (&["--host", "nowhere"], 2, "expected an IP address"),
        (&["--port", "70000"], 2, "70000"),
        (&["--slots", "0"], 2, "--slots"),
        (&["--context", "1024", "--port", "0"], 2, "expected at most the model's 512"),
        (&["--cors-origin", "*"], 2, "--cors-origin *"),
        (&["--api-key-file", keys], 4, "holds no key"),
        (&["--port", &port], 5, "cannot listen here"),
        (&["--max-memory", "1000000", "--port", "0"], 5, "--max-memory"),
    ];
    for (args, code, message) in cases {
        refused(&serve(model.path(), args).output().unwrap(), code, message);
    }
    refused(&serve(Path::new("/nothing"), &["--port", "0"]).output().unwrap(), 4, "/nothing");
}

#[test]
fn endpoints_are_listed_without_a_model_and_keys_open_other_addresses() {
    let list =
        Command::new(env!("CARGO_BIN_EXE_bitnet")).args(["serve", "--list-endpoints"]).output();
    let list = String::from_utf8(list.unwrap().stdout).unwrap();
    assert!(list.lines().any(|line| line == "POST /v1/chat/completions"), "{list}");
    let model = model();
    let keys = model.path().join("keys.txt");
    fs_err::write(&keys, "a-key\n").unwrap();
    let args = ["--host", "0.0.0.0", "--api-key-file", keys.to_str().unwrap()];
    let (mut child, address) = started(model.path(), &args);
    let address = address.replace("0.0.0.0", "127.0.0.1");
    let get = |header: &str| {
        ask(
            &address,
            &format!("GET /v1/models HTTP/1.1\r\nHost: box\r\nConnection: close\r\n{header}\r\n"),
        )
    };
    assert!(get("").starts_with("HTTP/1.1 401"));
    assert!(get("Authorization: Bearer a-key\r\n").starts_with("HTTP/1.1 200"));
    signal(&child, "-TERM");
    assert_eq!(child.wait().unwrap().code(), Some(143));
}

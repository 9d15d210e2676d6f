//! Bad requests of every kind: each gets its status and an `error` object, and the server goes on.

use std::io::{Read, Write};

use serde_json::{Value, json};

use super::client::{TestServer, request};
use super::options;
use crate::inference::FAULT_TOKEN;
use crate::options::{PromptBos, ServeOptions};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

#[test]
fn every_bad_value_is_named_and_the_server_goes_on() {
    let server = TestServer::with(256, ServeOptions { bos: PromptBos::Never, ..options() });
    let messages = json!([{"role": "user", "content": "hi"}]);
    let long = vec!["x"; 65];
    let cases: Vec<(&str, &str, Value)> = vec![
        ("temperature", "temperature", json!(-0.1)),
        ("temperature", "temperature", json!("hot")),
        ("temperature", "temperature", json!(1e-9)),
        ("top_p", "top_p", json!(0)),
        ("top_p", "top_p", json!(1.01)),
        ("top_k", "top_k", json!(-1)),
        ("min_p", "min_p", json!(2)),
        ("n", "n", json!(0)),
        ("n", "n", json!(5)),
        ("max_tokens", "max_tokens", json!(0)),
        ("max_tokens", "max_tokens", json!(-5)),
        ("max_tokens", "max_tokens", json!(1.5)),
        ("max_tokens", "max_tokens", json!(1u64 << 40)),
        ("seed", "seed", json!(1.5)),
        ("stop", "stop", json!([""])),
        ("stop", "stop", json!(["x".repeat(65)])),
        ("stop", "stop", json!(vec!["a"; 9])),
        ("stop", "stop", json!([1])),
        ("stream", "stream", json!("yes")),
        ("stream_options", "stream_options", json!({"include_usage": true})),
        ("presence_penalty", "presence_penalty", json!(3)),
        ("frequency_penalty", "frequency_penalty", json!(-2.5)),
        ("repetition_penalty", "repetition_penalty", json!(0)),
        ("logit_bias", "logit_bias", json!({"999": 1})),
        ("logit_bias", "logit_bias", json!({"x": 1})),
        ("logit_bias", "logit_bias.5", json!({"5": 101})),
        ("logit_bias", "logit_bias", json!([1])),
        ("user_", "user_", json!("x")),
        ("suffix_", "suffix_", json!(1)),
    ];
    for (field, param, value) in cases {
        for (path, mut body) in
            [(CHAT, json!({"messages": messages})), (TEXT, json!({"prompt": "hi"}))]
        {
            body[field] = value.clone();
            let reply = server.post(path, &body);
            assert_eq!(reply.status, 400, "{path} {body} {}", reply.body);
            assert_eq!(reply.error()["param"], param, "{path} {body} {}", reply.body);
        }
    }
    for (param, body) in [
        ("prompt", json!({})),
        ("prompt", json!({"prompt": ""})),
        ("prompt", json!({"prompt": []})),
        ("prompt", json!({"prompt": [300]})),
        ("prompt", json!({"prompt": [-1]})),
        ("prompt", json!({"prompt": [[1], [1.5]]})),
        ("prompt", json!({"prompt": {"a": 1}})),
        ("prompt", json!({"prompt": long})),
        ("logprobs", json!({"prompt": "hi", "logprobs": 21})),
        ("best_of", json!({"prompt": "hi", "best_of": 2})),
        ("suffix", json!({"prompt": "hi", "suffix": "x"})),
    ] {
        let reply = server.post(TEXT, &body);
        assert_eq!((reply.status, &reply.error()["param"]), (400, &param.into()), "{body}");
    }
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn every_bad_conversation_is_named() {
    let server = TestServer::usual();
    for (param, messages) in [
        ("messages", json!([])),
        ("messages", json!("hi")),
        ("messages", json!(vec![json!({"role": "user", "content": "x"}); 1025])),
        ("messages[0]", json!(["hi"])),
        ("messages[0].role", json!([{"content": "hi"}])),
        ("messages[0].role", json!([{"role": "robot", "content": "hi"}])),
        ("messages[0].tool_call_id", json!([{"role": "tool", "content": "hi"}])),
        ("messages[0].content", json!([{"role": "user"}])),
        ("messages[0].content", json!([{"role": "user", "content": 5}])),
        ("messages[0].tool_calls", json!([{"role": "assistant", "content": "", "tool_calls": []}])),
        (
            "messages[0].content[0].type",
            json!([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]),
        ),
        ("messages[0].content[0].text", json!([{"role": "user", "content": [{"type": "text"}]}])),
    ] {
        let reply = server.post(CHAT, &json!({"messages": messages}));
        assert_eq!((reply.status, &reply.error()["param"]), (400, &param.into()), "{messages}");
    }
    let hi = json!([{"role": "user", "content": "hi"}]);
    for (field, value) in [
        ("tools[0].function", json!([{"type": "function"}])),
        ("response_format.type", json!({"type": "xml"})),
        ("response_format.json_schema", json!({"type": "json_schema"})),
        (
            "response_format.json_schema.schema",
            json!({"type": "json_schema", "json_schema": {"schema": {"type": "nothing"}}}),
        ),
        (
            "response_format.json_schema.schema",
            json!({"type": "json_schema", "json_schema": {"schema": {"$ref": "#"}}}),
        ),
        (
            "response_format.json_schema.schema",
            json!({"type": "json_schema", "json_schema": {"schema": 5}}),
        ),
        ("response_format.x", json!({"type": "json_object", "x": 1})),
        ("audio", json!({})),
        ("top_logprobs", json!(3)),
        ("functions", json!([])),
    ] {
        let name = field.split(['.', '[']).next().unwrap();
        let reply = server.post(CHAT, &json!({"messages": hi, name: value}));
        assert_eq!((reply.status, &reply.error()["param"]), (400, &field.into()));
    }
    let words = "where is the key? ".repeat(200);
    let reply = server.post(CHAT, &json!({"messages": [{"role": "user", "content": words}]}));
    assert_eq!((reply.status, &reply.error()["code"]), (400, &"context_length_exceeded".into()));
    let reply = server.post(CHAT, &json!({"messages": hi, "max_tokens": 250}));
    assert_eq!(reply.error()["code"], "context_length_exceeded");
    let reply = server.post(CHAT, &json!({"messages": hi, "model": "gpt"}));
    assert_eq!((reply.status, &reply.error()["code"]), (404, &"model_not_found".into()));
}

#[test]
fn bodies_paths_and_headers_that_are_wrong_have_their_status() {
    let server = TestServer::usual();
    let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
    let nested = format!("{{\"prompt\": {}{}}}", "[".repeat(70), "]".repeat(70));
    for body in
        ["{", "[1]", "\"x\"", "nul", "{\"prompt\": \"a\"} x", &deep, &nested, "{\"a\": 1e999}"]
    {
        let reply = server.raw(request("POST", TEXT, "", body).as_bytes());
        assert_eq!((reply.status, &reply.error()["code"]), (400, &"invalid_json".into()), "{body}");
    }
    for (status, bytes) in [
        (404, request("GET", "/nothing", "", "")),
        (404, request("GET", "/v1/models/gpt", "", "")),
        (405, request("GET", TEXT, "", "")),
        (405, request("DELETE", "/health", "", "")),
        (413, request("POST", TEXT, "", &"x".repeat((2 << 20) + 1))),
        (
            415,
            request("POST", TEXT, "", "")
                .replace("Content-Length", "Content-Type: text/plain\r\nContent-Length"),
        ),
        (403, request("GET", "/health", "", "").replace("localhost", "evil.example")),
        (403, request("GET", "/health", "Origin: http://evil.example\r\n", "")),
        (403, request("GET", "/health", "Origin: null\r\n", "")),
        (400, request("GET", "/health", "Host: localhost\r\n", "")),
        (400, request("GET", "/health", "", "").replace("Host: localhost\r\n", "")),
    ] {
        let reply = server.raw(bytes.as_bytes());
        assert_eq!(reply.status, status, "{bytes:.200}");
        reply.error();
    }
    for bytes in [
        "nonsense\r\n\r\n",
        "GET / HTTP/9.9\r\n\r\n",
        "GET /\0 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ] {
        assert_eq!(server.raw(bytes.as_bytes()).status, 400, "{bytes:?}");
    }
    let not_utf8 = [&b"{\"prompt\": \""[..], &[0xff, 0xfe], b"\"}"].concat();
    let head = request("POST", TEXT, "", "{}").replace("Content-Length: 2", "Content-Length: 15");
    let whole =
        [head.trim_end_matches("{}").as_bytes(), &not_utf8[..15.min(not_utf8.len())]].concat();
    assert_eq!(server.raw(&whole).status, 400);
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn keys_are_required_everywhere_but_at_the_page_and_the_health_check() {
    let server =
        TestServer::with(256, ServeOptions { keys: vec!["secret-key".into()], ..options() });
    for path in ["/v1/models", "/metrics", "/tokenizer_info", "/nothing"] {
        let reply = server.get(path);
        assert_eq!((reply.status, &reply.error()["code"]), (401, &"invalid_api_key".into()));
    }
    assert_eq!((server.get("/health").status, server.get("/").status), (200, 200));
    let with = request("GET", "/v1/models", "Authorization: Bearer secret-key\r\n", "");
    assert_eq!(server.raw(with.as_bytes()).status, 200);
}

#[test]
fn a_client_that_hangs_up_frees_its_slot_in_both_forms() {
    let server = TestServer::with(1 << 17, ServeOptions { slots: 1, ..options() });
    for (count, stream) in [(1, false), (2, true)] {
        let never: serde_json::Map<String, Value> =
            server.state.stop_ids.iter().map(|id| (id.to_string(), json!(-100))).collect();
        let body =
            json!({"prompt": "the", "max_tokens": 50_000, "stream": stream, "logit_bias": never});
        let mut client = server.connect();
        client.write_all(request("POST", TEXT, "", &body.to_string()).as_bytes()).unwrap();
        if stream {
            let mut some = [0; 200];
            client.read_exact(&mut some).unwrap();
        } else {
            server.until("it runs", |state| {
                state.metrics.text("tiny").contains("\nbitnet_requests_running 1\n")
            });
        }
        drop(client);
        server.until("the slot is free", |state| state.metrics.cancelled_count() == count);
    }
    assert_eq!(
        server.ok(TEXT, &json!({"prompt": "the", "max_tokens": 2}))["object"],
        "text_completion"
    );
}

#[test]
fn a_fault_in_one_request_is_the_500_of_that_one() {
    let server = TestServer::usual();
    let good = json!({"prompt": [[20, 30, 40]], "max_tokens": 60, "temperature": 0});
    let expected = server.ok(TEXT, &good)["choices"].clone();
    let bad = json!({"prompt": [[20, FAULT_TOKEN, 40]], "max_tokens": 3});
    std::thread::scope(|scope| {
        let good = scope.spawn(|| server.ok(TEXT, &good)["choices"].clone());
        for _ in 0..5 {
            let reply = server.post(TEXT, &bad);
            assert_eq!((reply.status, &reply.error()["code"]), (500, &"internal_error".into()));
        }
        assert_eq!(good.join().unwrap(), expected);
    });
    let mut streamed = bad;
    streamed["stream"] = true.into();
    let reply = server.post(TEXT, &streamed);
    assert!(
        reply.body.contains("internal_error") && !reply.body.contains("[DONE]"),
        "{}",
        reply.body
    );
}

#[test]
fn idle_connections_leave_others_served_and_an_ending_server_finishes_its_answers() {
    let server = TestServer::usual();
    let idle: Vec<_> = (0..200).map(|_| server.connect()).collect();
    assert_eq!(server.get("/health").status, 200);
    drop(idle);
    let body = json!({"prompt": "the key", "max_tokens": 200, "temperature": 0});
    let whole = server.ok(TEXT, &body);
    let prompts = |state: &crate::http::AppState| {
        let text = state.metrics.text("tiny");
        let line = text.lines().find_map(|line| line.strip_prefix("bitnet_prompt_tokens_total "));
        line.unwrap().parse::<u64>().unwrap()
    };
    let before = prompts(&server.state);
    std::thread::scope(|scope| {
        let answer = scope.spawn(|| server.ok(TEXT, &body));
        server.until("the answer is in work", |state| prompts(state) > before);
        server.end();
        assert_eq!(answer.join().unwrap()["choices"], whole["choices"]);
    });
    server
        .until("the listener is closed", |_| std::net::TcpStream::connect(server.address).is_err());
}

#[test]
fn more_requests_than_may_wait_are_told_to_come_back() {
    let server = TestServer::with(4096, ServeOptions { slots: 1, ..options() });
    let prompts = vec!["the key"; 64];
    let body = json!({"prompt": prompts, "n": 4, "max_tokens": 1000, "stream": true});
    let bytes = request("POST", TEXT, "", &body.to_string());
    let held: Vec<_> = (0..2)
        .map(|_| {
            let mut client = server.connect();
            client.write_all(bytes.as_bytes()).unwrap();
            client
        })
        .collect();
    server.until("the queue fills", |state| state.inference.waiting() > 400);
    let reply = server.raw(bytes.as_bytes());
    assert_eq!((reply.status, &reply.error()["code"]), (429, &"queue_full".into()));
    assert!(reply.head.to_ascii_lowercase().contains("retry-after: 1"));
    drop(held);
    server.until("the queue empties", |state| state.inference.waiting() == 0);
    assert_eq!(server.post(TEXT, &json!({"prompt": "the", "max_tokens": 1})).status, 200);
}

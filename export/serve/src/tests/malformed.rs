//! One table of requests that are wrong in some way: bodies, headers, numbers, paths, origins,
//! encodings, names that stand twice. Each has its status and says what is at fault, and the server
//! goes on.

use std::io::{Read, Write};

use super::client::{TestServer, request};
use super::options;
use crate::options::{PromptBos, ServeOptions};

const TEXT: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";
const HI: &str = "\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}]";

/// Bodies with the address they go to, and the `param` of the error; for those that are no JSON its
/// `code`.
const BODIES: [(&str, &str, &str); 103] = [
    ("invalid_json", TEXT, "\u{feff}{\"prompt\": \"a\"}"),
    ("invalid_json", TEXT, "{\"prompt\": \"a\", \"prompt\": \"b\"}"),
    ("invalid_json", TEXT, "{\"prompt\": \"a\", \"logit_bias\": {\"1\": 1, \"1\": 2}}"),
    ("invalid_json", TEXT, "{\"prompt\": \"\\ud800\"}"),
    ("invalid_json", TEXT, "{\"prompt\": \"\u{1}\"}"),
    ("invalid_json", TEXT, "{\"prompt\": \"a\", \"temperature\": NaN}"),
    ("invalid_json", TEXT, "{\"prompt\": \"a\", \"temperature\": -Infinity}"),
    ("invalid_json", TEXT, "{\"prompt\": \"a\", \"temperature\": 1e400}"),
    ("invalid_json", TEXT, "{\"prompt\": \"a\", \"max_tokens\": 01}"),
    ("invalid_json", TEXT, "{\"prompt\": \"a\",}"),
    ("invalid_json", TEXT, "{'prompt': 'a'}"),
    ("invalid_json", TEXT, "{\"prompt\": \"a\"} {}"),
    ("invalid_json", TEXT, "prompt=a"),
    ("invalid_json", TEXT, "null"),
    (
        "invalid_json",
        CHAT,
        "{\"messages\": [{\"role\": \"user\", \"role\": \"system\", \"content\": \"a\"}]}",
    ),
    ("prompt", TEXT, "{\"prompt\": null}"),
    ("prompt", TEXT, "{\"prompt\": 5}"),
    ("prompt", TEXT, "{\"prompt\": true}"),
    ("prompt", TEXT, "{\"prompt\": [[]]}"),
    ("prompt", TEXT, "{\"prompt\": [\"a\", null]}"),
    ("prompt", TEXT, "{\"prompt\": [1, \"a\"]}"),
    ("prompt", TEXT, "{\"prompt\": [[1], \"a\", {}]}"),
    ("prompt", TEXT, "{\"prompt\": [4294967296]}"),
    ("prompt", TEXT, "{\"prompt\": [1e2]}"),
    ("prompt", TEXT, "{\"prompt\": [[[1]]]}"),
    ("max_tokens", TEXT, "{\"prompt\": \"a\", \"max_tokens\": \"5\"}"),
    ("max_tokens", TEXT, "{\"prompt\": \"a\", \"max_tokens\": 18446744073709551616}"),
    ("max_tokens", TEXT, "{\"prompt\": \"a\", \"max_tokens\": [5]}"),
    ("n", TEXT, "{\"prompt\": \"a\", \"n\": \"1\"}"),
    ("n", TEXT, "{\"prompt\": \"a\", \"n\": -9223372036854775808}"),
    ("seed", TEXT, "{\"prompt\": \"a\", \"seed\": 1e30}"),
    ("temperature", TEXT, "{\"prompt\": \"a\", \"temperature\": true}"),
    ("temperature", TEXT, "{\"prompt\": \"a\", \"temperature\": \"NaN\"}"),
    ("top_p", TEXT, "{\"prompt\": \"a\", \"top_p\": -0.0001}"),
    ("top_k", TEXT, "{\"prompt\": \"a\", \"top_k\": 4294967296}"),
    ("logprobs", TEXT, "{\"prompt\": \"a\", \"logprobs\": true}"),
    ("echo", TEXT, "{\"prompt\": \"a\", \"echo\": 1}"),
    ("stop", TEXT, "{\"prompt\": \"a\", \"stop\": {}}"),
    ("stop", TEXT, "{\"prompt\": \"a\", \"stop\": [null]}"),
    ("stream", TEXT, "{\"prompt\": \"a\", \"stream\": 1}"),
    ("stream_options", TEXT, "{\"prompt\": \"a\", \"stream\": true, \"stream_options\": 5}"),
    ("logit_bias.1", TEXT, "{\"prompt\": \"a\", \"logit_bias\": {\"1\": null}}"),
    ("logit_bias", TEXT, "{\"prompt\": \"a\", \"logit_bias\": {\"-1\": 1}}"),
    ("user", TEXT, "{\"prompt\": \"a\", \"user\": 5}"),
    ("metadata", TEXT, "{\"prompt\": \"a\", \"metadata\": \"x\"}"),
    ("model", TEXT, "{\"prompt\": \"a\", \"model\": 5}"),
    ("Prompt", TEXT, "{\"prompt\": \"a\", \"Prompt\": \"b\"}"),
    ("messages", CHAT, "{\"messages\": {}}"),
    ("messages[0]", CHAT, "{\"messages\": [null]}"),
    ("messages[0].role", CHAT, "{\"messages\": [{\"role\": 1, \"content\": \"a\"}]}"),
    ("messages[0].content", CHAT, "{\"messages\": [{\"role\": \"user\", \"content\": null}]}"),
    (
        "messages[0].content[0]",
        CHAT,
        "{\"messages\": [{\"role\": \"user\", \"content\": [\"a\"]}]}",
    ),
    (
        "messages[0].name",
        CHAT,
        "{\"messages\": [{\"role\": \"user\", \"content\": \"a\", \"name\": \"b\"}]}",
    ),
    ("logprobs", CHAT, "{HI, \"logprobs\": 5}"),
    ("top_logprobs", CHAT, "{HI, \"logprobs\": true, \"top_logprobs\": -1}"),
    ("response_format", CHAT, "{HI, \"response_format\": \"json\"}"),
    ("response_format.type", CHAT, "{HI, \"response_format\": {}}"),
    (
        "response_format.json_schema.schema",
        CHAT,
        "{HI, \"response_format\": {\"type\": \"json_schema\", \"json_schema\": {\"schema\": {\"$ref\": \"#/no\"}}}}",
    ),
    (
        "response_format.json_schema.schema",
        CHAT,
        "{HI, \"response_format\": {\"type\": \"json_schema\", \"json_schema\": {\"schema\": \
         {\"type\": \"string\", \"pattern\": \"(\"}}}}",
    ),
    (
        "response_format.json_schema.schema",
        CHAT,
        "{HI, \"response_format\": {\"type\": \"json_schema\", \"json_schema\": {\"schema\": \
         {\"type\": \"array\", \"minItems\": 3, \"maxItems\": 1}}}}",
    ),
    ("tool_choice", CHAT, "{HI, \"tool_choice\": 5}"),
    ("parallel_tool_calls", CHAT, "{HI, \"parallel_tool_calls\": \"no\"}"),
    ("max_tokens", "/v1/messages", "{HI}"),
    ("system", "/v1/messages", "{HI, \"max_tokens\": 5, \"system\": 5}"),
    (
        "messages[0].content[0].type",
        "/v1/messages",
        "{\"max_tokens\": 5, \"messages\": [{\"role\": \"user\", \
        \"content\": [{\"type\": \"tool_use\", \"name\": \"a\", \"input\": {}}]}]}",
    ),
    ("input", "/v1/responses", "{\"input\": []}"),
    (
        "input[0].call_id",
        "/v1/responses",
        "{\"input\": [{\"type\": \"function_call_output\", \"output\": \"a\"}]}",
    ),
    ("text", "/v1/responses", "{\"input\": \"a\", \"text\": 5}"),
    ("prompt", "/tokenize", "{\"prompt\": 5}"),
    ("tokens", "/detokenize", "{\"tokens\": [-1]}"),
    ("messages", "/apply-template", "{}"),
    ("invalid_json", TEXT, "{\"prompt\": \"a\", \"n\": 1, \"\\u006e\": 2}"),
    ("invalid_json", TEXT, "{\"prompt\": \"a\", \"n\": +1}"),
    ("invalid_json", TEXT, "{\"prompt\": \"a\", \"n\": 0x1}"),
    ("invalid_json", TEXT, "{\"prompt\": \"a\" /* b */}"),
    ("invalid_json", TEXT, "{\"prompt\": \"\\ud83d\\u0041\"}"),
    ("invalid_json", TEXT, "[{\"prompt\": \"a\"}]"),
    ("prompt", TEXT, "{\"prompt\": [\"\"]}"),
    ("prompt", TEXT, "{\"prompt\": [[1], []]}"),
    ("prompt", TEXT, "{\"prompt\": [1, true]}"),
    ("best_of", TEXT, "{\"prompt\": \"a\", \"n\": 2, \"best_of\": 1}"),
    ("logit_bias", TEXT, "{\"prompt\": \"a\", \"logit_bias\": {\"5\": 1, \"05\": -1}}"),
    ("logit_bias", TEXT, "{\"prompt\": \"a\", \"logit_bias\": {\"+5\": 1}}"),
    ("logit_bias", TEXT, "{\"prompt\": \"a\", \"logit_bias\": {\" 5\": 1}}"),
    ("logit_bias", TEXT, "{\"prompt\": \"a\", \"logit_bias\": {\"\": 1}}"),
    (
        "stream_options.x",
        TEXT,
        "{\"prompt\": \"a\", \"stream\": true, \"stream_options\": {\"x\": 1}}",
    ),
    ("max_tokens", CHAT, "{HI, \"max_tokens\": 5, \"max_completion_tokens\": 6}"),
    ("max_completion_tokens", CHAT, "{HI, \"max_completion_tokens\": 0}"),
    ("top_logprobs", CHAT, "{HI, \"top_logprobs\": 2}"),
    ("modalities", CHAT, "{HI, \"modalities\": [\"text\", \"audio\"]}"),
    ("store", CHAT, "{HI, \"store\": true}"),
    ("functions", CHAT, "{HI, \"functions\": [{\"name\": \"a\"}]}"),
    ("tools", CHAT, "{HI, \"tools\": {}}"),
    ("tools[0].type", CHAT, "{HI, \"tools\": [{\"type\": \"web_search\"}]}"),
    (
        "tools[0].function.name",
        CHAT,
        "{HI, \"tools\": [{\"type\": \"function\", \"function\": {\"name\": \"a b\"}}]}",
    ),
    ("tools[1]", CHAT, "{HI, \"tools\": [TOOL, TOOL]}"),
    (
        "tool_choice.function.x",
        CHAT,
        "{HI, \"tools\": [TOOL], \"tool_choice\": {\"type\": \"function\", \"function\": {\"name\": \"look\", \"x\": 1}}}",
    ),
    (
        "tool_choice.x",
        CHAT,
        "{HI, \"tools\": [TOOL], \"tool_choice\": {\"type\": \"function\", \"function\": {\"name\": \"look\"}, \"x\": 1}}",
    ),
    (
        "tool_choice",
        CHAT,
        "{HI, \"tools\": [TOOL], \"tool_choice\": {\"type\": \"function\", \"function\": {\"name\": \"other\"}}}",
    ),
    (
        "messages[0].tool_calls[0].function.arguments",
        CHAT,
        "{\"messages\": [{\"role\": \"assistant\", \"tool_calls\": \
        [{\"type\": \"function\", \"function\": {\"name\": \"a\", \"arguments\": \"{\\\"b\\\": 1, \\\"b\\\": 2}\"}}]}]}",
    ),
    (
        "tool_choice.type",
        "/v1/messages",
        "{HI, \"max_tokens\": 5, \"tool_choice\": {\"type\": \"auto\", \"name\": \"a\"}}",
    ),
    (
        "previous_response_id",
        "/v1/responses",
        "{\"input\": \"a\", \"previous_response_id\": \"resp_1\"}",
    ),
    ("content", "/tokenize", "{\"prompt\": \"a\", \"content\": \"b\"}"),
];

/// What stands for `TOOL` in a body.
const TOOL: &str = "{\"type\": \"function\", \"function\": {\"name\": \"look\"}}";

#[test]
fn every_wrong_body_is_refused_with_what_is_wrong() {
    let server = TestServer::with(256, ServeOptions { bos: PromptBos::Never, ..options() });
    let mut wrong = Vec::new();
    for (told, path, body) in BODIES {
        let body = body.replace("HI", HI).replace("TOOL", TOOL);
        let reply = server.raw(request("POST", path, "", &body).as_bytes());
        let error = reply.json()["error"].clone();
        let found = if told == "invalid_json" { &error["code"] } else { &error["param"] };
        let is_short = reply.body.len() < 600 && error["message"].is_string();
        if reply.status != 400 || found != told || !is_short {
            wrong.push(format!("{told}: {body}: {}", reply.body));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(server.get("/health").status, 200);
}

/// What takes the place of `Host: localhost` in a request for a path, with status and `code`.
const HEADS: [(u16, &str, &str, &str, &str); 29] = [
    (403, "host_not_allowed", "GET", "/health", "Host: [::1]x"),
    (403, "host_not_allowed", "GET", "/health", "Host: localhost:port"),
    (403, "host_not_allowed", "GET", "/health", "Host: localhost:99999"),
    (403, "host_not_allowed", "GET", "/health", "Host: localhost@evil.example"),
    (403, "host_not_allowed", "GET", "/health", "Host: 127.0.0.1.nip.io"),
    (403, "host_not_allowed", "GET", "http://evil.example/health", "Host: localhost"),
    (403, "host_not_allowed", "GET", "/health", "Host: [localhost]"),
    (403, "host_not_allowed", "GET", "/health", "Host: [127.0.0.1]:80"),
    (403, "host_not_allowed", "GET", "/health", "Host: localhost:+80"),
    (403, "host_not_allowed", "GET", "/health", "Host: 0x7f.1"),
    (403, "host_not_allowed", "GET", "http://a@localhost/health", "Host: localhost"),
    (400, "invalid_host", "GET", "/health", "X-Forwarded-Host: localhost"),
    (
        403,
        "origin_not_allowed",
        "GET",
        "/health",
        "Host: localhost\r\nOrigin: http://localhost\r\nOrigin: http://evil.example",
    ),
    (403, "origin_not_allowed", "GET", "/health", "Host: localhost\r\nOrigin: localhost"),
    (
        403,
        "origin_not_allowed",
        "OPTIONS",
        "/v1/models",
        "Host: localhost\r\nOrigin: http://localhost.evil.example",
    ),
    (404, "not_found", "GET", "//health", "Host: localhost"),
    (404, "not_found", "GET", "/health/", "Host: localhost"),
    (404, "not_found", "GET", "/HEALTH", "Host: localhost"),
    (404, "not_found", "GET", "/../etc/passwd", "Host: localhost"),
    (404, "not_found", "GET", "/v1/models/", "Host: localhost"),
    (404, "model_not_found", "GET", "/v1/models/..%2f..%2fetc%2fpasswd", "Host: localhost"),
    (400, "invalid_path", "GET", "/v1/models/%ff", "Host: localhost"),
    (405, "method_not_allowed", "TRACE", "/health", "Host: localhost"),
    (405, "method_not_allowed", "PUT", "/v1/completions", "Host: localhost"),
    (
        415,
        "unsupported_media_type",
        "POST",
        "/tokenize",
        "Host: localhost\r\nContent-Type: application/json; charset=utf-16",
    ),
    (
        415,
        "unsupported_media_type",
        "POST",
        "/tokenize",
        "Host: localhost\r\nContent-Type: application/json\r\nContent-Encoding: gzip",
    ),
    (
        415,
        "unsupported_media_type",
        "POST",
        "/tokenize",
        "Host: localhost\r\nContent-Type: application/json5",
    ),
    (
        415,
        "unsupported_media_type",
        "POST",
        "/tokenize",
        "Host: localhost\r\nContent-Type: application/json\r\nContent-Type: text/plain",
    ),
    (
        415,
        "unsupported_media_type",
        "POST",
        "/tokenize",
        "Host: localhost\r\nContent-Type: application/json\r\nContent-Encoding: identity\r\nContent-Encoding: br",
    ),
];

#[test]
fn every_head_that_is_wrong_has_its_status_and_code() {
    let server = TestServer::usual();
    for (status, code, method, path, headers) in HEADS {
        let bytes = request(method, path, "", "").replace("Host: localhost", headers);
        let reply = server.raw(bytes.as_bytes());
        assert_eq!(reply.status, status, "{method} {path} {headers}: {}", reply.body);
        assert_eq!(reply.error()["code"], code, "{method} {path} {headers}");
    }
    assert_eq!(server.get("/health").status, 200);
}

/// What is not HTTP, or breaks it, with the beginning of the answer.
const BYTES: [(&str, &str); 12] = [
    ("GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nrubbish\r\n\r\n", "HTTP/1.1 200"),
    (
        "POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n{}",
        "HTTP/1.1 400",
    ),
    ("POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n{}", "HTTP/1.1 400"),
    ("POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1e3\r\n\r\n{}", "HTTP/1.1 400"),
    (
        "POST /tokenize HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: zip\r\n\r\n{}",
        "HTTP/1.1 400",
    ),
    (
        "POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n{}",
        "HTTP/1.1 400",
    ),
    ("GET /health\r\n\r\n", "HTTP/1.1 400"),
    ("GET /health HTTP/1.1\r\nHost: localhost\r\nX: a\0b\r\n\r\n", "HTTP/1.1 400"),
    ("GET /hea lth HTTP/1.1\r\nHost: localhost\r\n\r\n", "HTTP/1.1 400"),
    ("GET /health HTTP/1.1\r\nHost : localhost\r\n\r\n", "HTTP/1.1 400"),
    ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", ""),
    ("\x16\x03\x01\x02\x00\x01\x00\x01\u{7c}\x03", "HTTP/1.1 400"),
];

#[test]
fn bytes_that_are_not_http_are_refused_and_never_taken_for_another_request() {
    let server = TestServer::usual();
    for (bytes, expected) in BYTES {
        let mut stream = server.connect();
        stream.write_all(bytes.as_bytes()).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut reply = Vec::new();
        let _ = stream.read_to_end(&mut reply);
        let reply = String::from_utf8_lossy(&reply);
        assert!(reply.starts_with(expected), "{bytes:?}: {reply}");
        assert!(reply.matches("HTTP/1.1 200").count() <= 1, "{reply}");
        assert!(
            !expected.ends_with("400") || reply.contains("{\"error\":{\"message\":"),
            "{reply}"
        );
    }
    let many = "X-A: b\r\n".repeat(500);
    let long = format!("/{}", "a".repeat(100_000));
    for (status, bytes) in
        [(431, request("GET", "/health", &many, "")), (414, request("GET", &long, "", ""))]
    {
        let reply = server.raw(bytes.as_bytes());
        assert_eq!(reply.status, status, "{}", reply.head);
        reply.error();
    }
    assert_eq!(server.get("/health").status, 200);
}

//! Clients that take their time: those that never end what they begin are cut, and none of them
//! keeps others from being served. In tests the limits are shorter.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use serde_json::json;

use super::client::TestServer;
use super::options;
use crate::options::{BODY_TIME, HEAD_TIME};

/// What a connection brings until its end, which comes after `least`.
fn until_cut(mut stream: TcpStream, least: std::time::Duration) -> String {
    let (start, mut bytes) = (Instant::now(), Vec::new());
    let _ = stream.read_to_end(&mut bytes);
    assert!(start.elapsed() + least / 10 >= least, "{:?}", start.elapsed());
    String::from_utf8(bytes).unwrap()
}

#[test]
fn heads_and_bodies_that_never_end_are_cut_and_idle_connections_disturb_nobody() {
    let server = TestServer::with(256, options());
    let begun = |bytes: &str| {
        let mut stream = server.connect();
        stream.write_all(bytes.as_bytes()).unwrap();
        stream
    };
    let head = "POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
    let (silent, half_head) = (server.connect(), begun(head));
    let half_body = begun(&format!("{head}Content-Length: 100\r\n\r\n{{"));
    let half_chunk = begun(&format!("{head}Transfer-Encoding: chunked\r\n\r\n5\r\n{{"));
    std::thread::scope(|scope| {
        scope.spawn(|| assert_eq!(until_cut(silent, HEAD_TIME), ""));
        scope.spawn(|| until_cut(half_head, HEAD_TIME));
        for stream in [half_body, half_chunk] {
            scope.spawn(|| {
                let reply = until_cut(stream, BODY_TIME);
                assert!(
                    reply.starts_with("HTTP/1.1 408") && reply.contains("body_timeout"),
                    "{reply}"
                );
            });
        }
        let idle: Vec<_> = (0..300).map(|_| server.connect()).collect();
        for _ in 0..5 {
            server.ok("/v1/completions", &json!({"prompt": "the key", "max_tokens": 2}));
        }
        drop(idle);
    });
    assert_eq!(server.get("/health").status, 200);
}

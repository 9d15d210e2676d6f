//! The server of a test, and a client that writes plain bytes.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::watch;

use super::{options, served};
use crate::connections::serve_connections;
use crate::http::{AppState, router};
use crate::options::ServeOptions;
use crate::server::{listen, start};

/// A server that runs until it is dropped.
pub(super) struct TestServer {
    pub(super) address: SocketAddr,
    pub(super) state: Arc<AppState>,
    end: watch::Sender<bool>,
    runtime: Option<Runtime>,
}

/// What came back.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) head: String,
    pub(super) body: String,
}

impl TestServer {
    /// With the usual options and a context of 256 tokens.
    pub(super) fn usual() -> Self {
        Self::with(256, options())
    }

    pub(super) fn with(context: usize, options: ServeOptions) -> Self {
        let runtime = Runtime::new().unwrap();
        let listener = listen(&options).unwrap();
        let address = listener.local_addr().unwrap();
        let (state, _stopped) = start(served(context), &options).unwrap();
        let (end, ending) = watch::channel(false);
        let router = router(&state, &options);
        runtime.block_on(async {
            let listener = TcpListener::from_std(listener).unwrap();
            tokio::spawn(serve_connections(listener, router, ending));
        });
        Self { address, state, end, runtime: Some(runtime) }
    }

    /// Sends bytes as they are and reads until the server closes.
    pub(super) fn raw(&self, request: &[u8]) -> Reply {
        let mut stream = self.connect();
        stream.write_all(request).unwrap();
        read_reply(&mut stream)
    }

    pub(super) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_mins(1))).unwrap();
        stream
    }

    pub(super) fn get(&self, path: &str) -> Reply {
        self.raw(request("GET", path, "", "").as_bytes())
    }

    pub(super) fn post(&self, path: &str, body: &Value) -> Reply {
        self.raw(request("POST", path, "", &body.to_string()).as_bytes())
    }

    /// The answer to a request that must be answered.
    pub(super) fn ok(&self, path: &str, body: &Value) -> Value {
        let reply = self.post(path, body);
        assert_eq!(reply.status, 200, "{path} {body}: {}", reply.body);
        reply.json()
    }

    /// The objects of a stream, without the mark of its end.
    pub(super) fn stream(&self, path: &str, body: &Value) -> Vec<Value> {
        let reply = self.post(path, body);
        assert_eq!(reply.status, 200, "{}", reply.body);
        assert!(reply.head.contains("text/event-stream"), "{}", reply.head);
        let data: Vec<&str> =
            reply.body.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
        let (done, events) = data.split_last().unwrap();
        assert_eq!(*done, "[DONE]");
        events.iter().map(|data| serde_json::from_str(data).unwrap()).collect()
    }

    /// Waits until `holds`.
    pub(super) fn until(&self, what: &str, holds: impl Fn(&AppState) -> bool) {
        let start = Instant::now();
        while !holds(&self.state) {
            assert!(start.elapsed() < Duration::from_mins(1), "{what}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Asks the server to end.
    pub(super) fn end(&self) {
        self.end.send(true).unwrap();
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        let _ = self.end.send(true);
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Reply {
    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// The `error` object, which every failure has.
    pub(super) fn error(&self) -> Value {
        let error = self.json()["error"].clone();
        assert!(error["message"].is_string() && error["type"].is_string(), "{error}");
        assert!(error.get("param").is_some() && error["code"].is_string(), "{error}");
        error
    }
}

/// A request whose connection closes after the answer; `headers` end in line ends.
pub(super) fn request(method: &str, path: &str, headers: &str, body: &str) -> String {
    let kind = if body.is_empty() { "" } else { "Content-Type: application/json\r\n" };
    format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}{kind}\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn read_reply(stream: &mut TcpStream) -> Reply {
    let mut bytes = Vec::new();
    // A connection that is reset after its answer still gave one.
    let _ = stream.read_to_end(&mut bytes);
    let text = String::from_utf8(bytes).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    let body = if chunked { without_chunks(body) } else { body.to_owned() };
    Reply { status, head: head.to_owned(), body }
}

fn without_chunks(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 {
            break;
        }
        whole += &rest[..size];
        body = &rest[size + 2..];
    }
    whole
}

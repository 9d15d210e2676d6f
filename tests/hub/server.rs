//! The part of the hub's address layout that a download uses, for one model and one data set
//! `owner/name` with the same files. Weights and Parquet are answered by a redirect to another
//! path, as the hub does for large files.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// The commit that every revision stands for at first.
pub(super) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// The commit of the branch with converted files.
pub(super) const CONVERTED: &str = "cccccccccccccccccccccccccccccccccccccccc";

/// A hub that lives as long as the test's process.
pub(super) struct Server {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

struct State {
    files: HashMap<&'static str, Vec<u8>>,
    /// Files of the branch `refs/convert/parquet`; without any there is none.
    converted: HashMap<&'static str, Vec<u8>>,
    commit: String,
    token: Option<String>,
    breaks: HashMap<&'static str, u32>,
    stalled: Option<&'static str>,
    ignores_range: bool,
    asked: Vec<String>,
    /// File and first byte of each request for a whole file.
    starts: Vec<(String, u64)>,
}

impl Server {
    pub(super) fn start(files: Vec<(&'static str, Vec<u8>)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State {
            files: files.into_iter().collect(),
            converted: HashMap::new(),
            commit: COMMIT.to_owned(),
            token: None,
            breaks: HashMap::new(),
            stalled: None,
            ignores_range: false,
            asked: Vec::new(),
            starts: Vec::new(),
        }));
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let shared = Arc::clone(&shared);
                // A client that goes away is part of the tests.
                thread::spawn(move || answer(stream.unwrap(), &shared).ok());
            }
        });
        Self { address, state }
    }

    pub(super) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The requests so far: method and path.
    pub(super) fn asked(&self) -> Vec<String> {
        self.state.lock().unwrap().asked.clone()
    }

    /// Where each download of `file` started.
    pub(super) fn starts(&self, file: &str) -> Vec<u64> {
        let state = self.state.lock().unwrap();
        state.starts.iter().filter(|(name, _)| name == file).map(|(_, start)| *start).collect()
    }

    pub(super) fn convert(&self, files: Vec<(&'static str, Vec<u8>)>) {
        self.state.lock().unwrap().converted = files.into_iter().collect();
    }

    pub(super) fn break_off(&self, file: &'static str, times: u32) {
        self.state.lock().unwrap().breaks.insert(file, times);
    }

    pub(super) fn stall(&self, file: &'static str) {
        self.state.lock().unwrap().stalled = Some(file);
    }

    pub(super) fn ignore_range(&self) {
        self.state.lock().unwrap().ignores_range = true;
    }

    pub(super) fn require_token(&self, token: &str) {
        self.state.lock().unwrap().token = Some(token.to_owned());
    }

    pub(super) fn move_to(&self, commit: &str) {
        commit.clone_into(&mut self.state.lock().unwrap().commit);
    }
}

/// One request.
struct Request {
    line: String,
    path: String,
    token: Option<String>,
    range: Option<(u64, Option<u64>)>,
}

fn read_request(stream: &TcpStream) -> std::io::Result<Request> {
    let mut lines = BufReader::new(stream).lines();
    let line = lines.next().transpose()?.unwrap_or_default();
    let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut request = Request { line, path, token: None, range: None };
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(": ") else { break };
        match name.to_lowercase().as_str() {
            "authorization" => request.token = value.strip_prefix("Bearer ").map(str::to_owned),
            "range" => {
                let (from, to) = value.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
                request.range = Some((from.parse().unwrap(), to.parse().ok()));
            }
            _ => {}
        }
    }
    Ok(request)
}

fn answer(mut stream: TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    let request = read_request(&stream)?;
    let mut state = state.lock().unwrap();
    state.asked.push(request.line.clone());
    if let Some(status) = refusal(&state, &request) {
        return head(&mut stream, status, 0, "");
    }
    if let Some(revision) = request.path.strip_prefix("/api/datasets/owner/name/revision/") {
        return list(&mut stream, &state, revision);
    }
    let direct = request.path.strip_prefix("/cdn/").and_then(|path| path.split_once('/'));
    let (revision, file) = direct.or_else(|| resolved(&request.path)).unwrap_or_default();
    let (files, commit) = state.branch(revision);
    let Some(content) = files.get(file).cloned() else {
        return head(&mut stream, "404 Not Found", 0, "");
    };
    let large = file.ends_with(".safetensors") || file.ends_with(".parquet");
    let mut headers = format!("X-Repo-Commit: {commit}\r\n");
    // A hash on the hub.
    let tag = file.replace(|c: char| !c.is_ascii_alphanumeric() && c != '.', "-");
    let tag = format!("\"{tag}-{}\"", content.len());
    if large && direct.is_none() {
        write!(headers, "X-Linked-Etag: {tag}\r\nX-Linked-Size: {}\r\n", content.len()).unwrap();
        let place = format!("/cdn/{revision}/{file}");
        write!(headers, "ETag: \"other\"\r\nLocation: {place}\r\n").unwrap();
        // The hub's own is at another host, so that a client does not follow it for its headers.
        let host = format!("Location: http://{}/cdn/", stream.local_addr()?);
        let headers = headers.replace("Location: /cdn/", &host);
        return head(&mut stream, "302 Found", 0, &headers);
    }
    write!(headers, "ETag: {tag}\r\n").unwrap();
    let whole = request.range.is_none_or(|(_, to)| to.is_none());
    let (from, to) = request.range.unwrap_or((0, None));
    if whole {
        state.starts.push((file.to_owned(), from));
    }
    if from >= content.len() as u64 {
        return head(&mut stream, "416 Range Not Satisfiable", 0, "");
    }
    let last = to.unwrap_or(u64::MAX).min(content.len() as u64 - 1);
    let ignores = whole && state.ignores_range;
    let part = if ignores { &content[..] } else { &content[from as usize..=last as usize] };
    let breaks = state.breaks.get_mut(file).filter(|left| whole && **left > 0);
    let breaks = breaks.map(|left| *left -= 1).is_some();
    let stalls = whole && state.stalled == Some(file);
    drop(state);
    write!(headers, "Content-Range: bytes {from}-{last}/{}\r\n", content.len()).unwrap();
    let status = if ignores { "200 OK" } else { "206 Partial Content" };
    head(&mut stream, status, part.len(), &headers)?;
    if request.line.starts_with("HEAD") {
        return Ok(());
    }
    if !breaks && !stalls {
        return stream.write_all(part);
    }
    stream.write_all(&part[..part.len() / 3])?;
    stream.flush()?;
    if stalls {
        thread::sleep(Duration::from_secs(30));
    }
    Ok(())
}

fn refusal(state: &State, request: &Request) -> Option<&'static str> {
    match (&state.token, &request.token) {
        (None, _) => None,
        (Some(_), None) => Some("401 Unauthorized"),
        (Some(right), Some(given)) => (right != given).then_some("403 Forbidden"),
    }
}

/// The revision and file of `/owner/name/resolve/<revision>/<file>`.
fn resolved(path: &str) -> Option<(&str, &str)> {
    let path = path.strip_prefix("/datasets").unwrap_or(path);
    path.strip_prefix("/owner/name/resolve/")?.split_once('/')
}

/// Answers what the hub says of a data set.
fn list(stream: &mut TcpStream, state: &State, revision: &str) -> std::io::Result<()> {
    let (files, commit) = state.branch(revision);
    if files.is_empty() {
        return head(stream, "404 Not Found", 0, "");
    }
    let siblings: Vec<_> =
        files.keys().map(|name| serde_json::json!({"rfilename": name})).collect();
    let text = serde_json::json!({"id": "owner/name", "sha": commit, "siblings": siblings});
    let text = text.to_string();
    head(stream, "200 OK", text.len(), "Content-Type: application/json\r\n")?;
    stream.write_all(text.as_bytes())
}

impl State {
    fn branch<'a>(&'a self, revision: &'a str) -> (&'a HashMap<&'static str, Vec<u8>>, &'a str) {
        match revision {
            "refs%2Fconvert%2Fparquet" | CONVERTED => (&self.converted, CONVERTED),
            commit if commit.len() == COMMIT.len() => (&self.files, commit),
            _ => (&self.files, &self.commit),
        }
    }
}

fn head(stream: &mut TcpStream, status: &str, length: usize, headers: &str) -> std::io::Result<()> {
    let fixed = format!("Content-Length: {length}\r\nConnection: close\r\n");
    write!(stream, "HTTP/1.1 {status}\r\n{fixed}{headers}\r\n")
}

//! Against a small hub on 127.0.0.1: no environment, no network.

mod dataset;
mod program;
mod server;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bitnet_train::hub::{HubCaller, HubError, HubRepository, HubSettings};
use server::{COMMIT, Server};

fn model(text: &str) -> HubRepository {
    HubRepository::model(text).unwrap().unwrap()
}

/// Somebody who waits and looks at nothing.
const PATIENT: HubCaller<'static> = HubCaller { interrupted: &|| false, progress: &|_, _, _| {} };

/// Bytes that show where they come from.
fn bytes(count: usize, seed: u8) -> Vec<u8> {
    (0..count).map(|at| (at % 251) as u8 ^ seed).collect()
}

fn whole() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("config.json", b"{\"a\": 1}".to_vec()),
        ("tokenizer.json", b"{}".to_vec()),
        ("tokenizer_config.json", b"{\"t\": 1}".to_vec()),
        ("model.safetensors", bytes(3_000_000, 1)),
        ("README.md", b"never asked for".to_vec()),
    ]
}

fn sharded(shards: [&'static str; 2]) -> Vec<(&'static str, Vec<u8>)> {
    let map = serde_json::json!({"weight_map": {"a": shards[0], "b": shards[1], "c": shards[0]}});
    vec![
        ("config.json", b"{}".to_vec()),
        ("tokenizer.json", b"{}".to_vec()),
        ("model.safetensors.index.json", map.to_string().into_bytes()),
        (shards[0], bytes(200_000, 2)),
        (shards[1], bytes(100_000, 3)),
    ]
}

/// A hub and a cache for one test.
struct Bench {
    server: Server,
    settings: HubSettings,
    _folder: tempfile::TempDir,
}

fn bench(files: Vec<(&'static str, Vec<u8>)>) -> Bench {
    let (server, folder) = (Server::start(files), tempfile::tempdir().unwrap());
    let settings = HubSettings {
        endpoint: server.endpoint(),
        cache: folder.path().join("hub"),
        token: None,
        offline: false,
        pause: Duration::from_millis(10),
    };
    Bench { server, settings, _folder: folder }
}

impl Bench {
    fn fetch(&self, text: &str) -> Result<PathBuf, HubError> {
        self.settings.model(&model(text), PATIENT)
    }

    fn message(&self, text: &str) -> String {
        self.fetch(text).unwrap_err().to_string()
    }

    fn repository(&self) -> PathBuf {
        self.settings.cache.join("models--owner--name")
    }

    /// Stands in for the machine's network being gone.
    fn unplug(&mut self) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        self.settings.endpoint = format!("http://{}", listener.local_addr().unwrap());
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs_err::read_dir(folder).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn names_are_parsed() {
    let main = model("hf:microsoft/bitnet-b1.58-2B-4T-bf16");
    assert_eq!(main.name, "microsoft/bitnet-b1.58-2B-4T-bf16");
    assert_eq!((main.revision.as_str(), main.to_string().len()), ("main", 36));
    let other = model("hf:a/b@refs/pr/1");
    assert_eq!(
        (other.revision.as_str(), other.to_string().as_str()),
        ("refs/pr/1", "hf:a/b@refs/pr/1")
    );
    assert_eq!(HubRepository::model("models/hf:a/b"), None);
}

#[test]
fn wrong_names_are_refused() {
    let wrong = [
        "hf:",
        "hf:a",
        "hf:a/",
        "hf:/b",
        "hf:a/b/c",
        "hf:a/b@",
        "hf:../b",
        "hf:a/..",
        "hf:a/b@..",
        "hf:a/b@x/../y",
        "hf:a/b@/etc",
        "hf:a\\b/c",
        "hf:a/b@c\\d",
        "hf:a/b@c\0",
        "hf:a/b?c",
        "hf:a/b c",
    ];
    for text in wrong {
        let message = HubRepository::model(text).unwrap().unwrap_err();
        assert!(message.contains("expected \"hf:owner/name[@revision]\""), "{text}: {message}");
    }
}

#[test]
fn a_model_arrives_in_the_standard_layout() {
    let bench = bench(whole());
    let seen = RefCell::new(BTreeMap::new());
    let note = |file: &str, done, total| {
        seen.borrow_mut().insert(file.to_owned(), (done, total));
    };
    let caller = HubCaller { progress: &note, ..PATIENT };
    let snapshot = bench.settings.model(&model("hf:owner/name"), caller).unwrap();
    assert_eq!(snapshot, bench.repository().join("snapshots").join(COMMIT));
    let expected = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];
    assert_eq!(names(&snapshot), expected);
    for (name, content) in whole().into_iter().filter(|(name, _)| expected.contains(name)) {
        assert_eq!(fs_err::read(snapshot.join(name)).unwrap(), content, "{name}");
    }
    let main = bench.repository().join("refs").join("main");
    assert_eq!(fs_err::read_to_string(main).unwrap(), COMMIT);
    assert_eq!(names(&bench.repository()), ["blobs", "refs", "snapshots"]);
    assert_eq!(seen.borrow()["model.safetensors"], (3_000_000, 3_000_000));
    assert_eq!(seen.borrow().len(), 4);
    // A wrong repository shows first; all files are of the commit that `main` was.
    let asked = bench.server.asked();
    assert!(asked[0].contains("/owner/name/resolve/main/config.json"), "{asked:?}");
    assert_eq!(asked.iter().filter(|line| line.contains("/resolve/main/")).count(), 1, "{asked:?}");
    assert!(!asked.iter().any(|line| line.contains("README")), "{asked:?}");
}

#[cfg(unix)]
#[test]
fn snapshots_are_links_into_the_blobs() {
    let bench = bench(whole());
    let snapshot = bench.fetch("hf:owner/name").unwrap();
    let target = fs_err::read_link(snapshot.join("config.json")).unwrap();
    assert!(target.starts_with("../../blobs"), "{target:?}");
}

#[test]
fn shards_come_from_the_index() {
    let bench = bench(sharded(["model-1.safetensors", "model-2.safetensors"]));
    let snapshot = bench.fetch("hf:owner/name@v1").unwrap();
    assert_eq!(fs_err::read(snapshot.join("model-1.safetensors")).unwrap(), bytes(200_000, 2));
    assert_eq!(fs_err::read(snapshot.join("model-2.safetensors")).unwrap(), bytes(100_000, 3));
    assert!(!snapshot.join("tokenizer_config.json").exists());
    assert_eq!(bench.fetch("hf:owner/name@v1").unwrap(), snapshot);
}

#[test]
fn a_shard_that_is_no_plain_name_is_never_asked_for() {
    let wrong = [
        "../other/secret",
        "/etc/passwd",
        "a/b.safetensors",
        "a\\b",
        "..",
        "a\0b",
        "C:x",
        "",
        ".x",
        "a?b",
    ];
    for name in wrong {
        let bench = bench(sharded(["model-1.safetensors", name]));
        let message = bench.message("hf:owner/name");
        assert!(
            message.contains("index.json [b]: ") && message.contains("plain file name"),
            "{message}"
        );
        let asked = bench.server.asked();
        assert!(asked.last().unwrap().contains("index.json"), "{asked:?}");
        // The list stays in the cache and is not trusted there either.
        let offline = HubSettings { offline: true, ..bench.settings.clone() };
        let again = offline.model(&model("hf:owner/name"), PATIENT);
        assert!(matches!(again, Err(HubError::Unreachable { .. })), "{again:?}");
    }
}

#[test]
fn a_broken_list_of_shards_is_named() {
    for text in ["[1]", "{", "{\"weight_map\": {}}", "{\"weight_map\": {\"b\": 1}}"] {
        let mut files = sharded(["model-1.safetensors", "model-2.safetensors"]);
        files[2].1 = text.into();
        let message = bench(files).message("hf:owner/name");
        assert!(message.contains("model.safetensors.index.json: "), "{message}");
    }
}

#[test]
fn a_whole_model_needs_no_network() {
    let mut bench = bench(whole());
    let snapshot = bench.fetch("hf:owner/name").unwrap();
    let asked = bench.server.asked().len();
    assert_eq!(bench.fetch("hf:owner/name").unwrap(), snapshot);
    assert_eq!(bench.server.asked().len(), asked);
    bench.unplug();
    assert_eq!(bench.fetch("hf:owner/name").unwrap(), snapshot);
    assert_eq!(bench.fetch(&format!("hf:owner/name@{COMMIT}")).unwrap(), snapshot);
    bench.settings.offline = true;
    assert_eq!(bench.fetch("hf:owner/name").unwrap(), snapshot);
}

#[test]
fn without_network_the_message_says_what_to_do() {
    let mut bench = bench(whole());
    let snapshot = bench.fetch("hf:owner/name").unwrap();
    fs_err::remove_file(snapshot.join("tokenizer.json")).unwrap();
    bench.unplug();
    let message = bench.message("hf:owner/name");
    assert!(message.starts_with("hf:owner/name: cannot be reached ("), "{message}");
    let end = format!(
        "); it is not in the cache {}; download it elsewhere and give its folder as model.init",
        bench.settings.cache.display()
    );
    assert!(message.ends_with(&end), "{message}");
    bench.settings.offline = true;
    assert!(bench.message("hf:owner/name").contains("(HF_HUB_OFFLINE is set)"));
}

#[test]
fn a_download_that_breaks_off_continues_by_itself() {
    let bench = bench(whole());
    bench.server.break_off("model.safetensors", 2);
    let snapshot = bench.fetch("hf:owner/name").unwrap();
    assert_eq!(fs_err::read(snapshot.join("model.safetensors")).unwrap(), bytes(3_000_000, 1));
    assert_eq!(bench.server.starts("model.safetensors").len(), 3);
    assert!(bench.server.starts("model.safetensors").is_sorted());
    assert!(bench.server.starts("model.safetensors")[2] > 0);
}

#[test]
fn a_later_call_continues_a_broken_download() {
    let bench = bench(whole());
    bench.server.break_off("model.safetensors", 4);
    let message = bench.message("hf:owner/name");
    assert!(message.contains("the download of model.safetensors broke off ("), "{message}");
    assert!(!bench.repository().join("refs").join("main").exists());
    let blobs = names(&bench.repository().join("blobs"));
    assert!(blobs.iter().any(|name| name.contains(".part")), "{blobs:?}");
    let snapshot = bench.fetch("hf:owner/name").unwrap();
    assert_eq!(fs_err::read(snapshot.join("model.safetensors")).unwrap(), bytes(3_000_000, 1));
    assert!(*bench.server.starts("model.safetensors").last().unwrap() > 0);
}

#[test]
fn a_part_that_is_complete_only_gets_its_name() {
    let bench = bench(whole());
    let snapshot = bench.fetch("hf:owner/name").unwrap();
    let blob = fs_err::canonicalize(snapshot.join("model.safetensors")).unwrap();
    fs_err::rename(&blob, blob.with_extension("part")).unwrap();
    assert_eq!(bench.fetch("hf:owner/name").unwrap(), snapshot);
    assert_eq!(fs_err::read(snapshot.join("model.safetensors")).unwrap(), bytes(3_000_000, 1));
    assert_eq!(bench.server.starts("model.safetensors").len(), 1);
}

#[test]
fn a_part_that_is_too_long_starts_over() {
    let bench = bench(whole());
    let snapshot = bench.fetch("hf:owner/name").unwrap();
    let blob = fs_err::canonicalize(snapshot.join("model.safetensors")).unwrap();
    fs_err::remove_file(&blob).unwrap();
    fs_err::write(blob.with_extension("part"), bytes(3_000_001, 9)).unwrap();
    bench.fetch("hf:owner/name").unwrap();
    assert_eq!(fs_err::read(snapshot.join("model.safetensors")).unwrap(), bytes(3_000_000, 1));
}

#[test]
fn a_new_commit_takes_the_blobs_it_shares() {
    let bench = bench(whole());
    bench.fetch("hf:owner/name").unwrap();
    let commit = "b".repeat(40);
    bench.server.move_to(&commit);
    let snapshot = bench.fetch("hf:owner/name@next").unwrap();
    assert!(snapshot.ends_with(&commit));
    assert_eq!(fs_err::read(snapshot.join("model.safetensors")).unwrap(), bytes(3_000_000, 1));
    assert_eq!(bench.server.starts("model.safetensors").len(), 1);
}

#[test]
fn a_server_that_ignores_range_damages_nothing() {
    let bench = bench(whole());
    bench.server.break_off("model.safetensors", 1);
    bench.server.ignore_range();
    let message = bench.message("hf:owner/name");
    assert!(
        message.contains("model.safetensors arrived damaged: expected 3000000 bytes"),
        "{message}"
    );
    bench.fetch("hf:owner/name").unwrap();
}

#[test]
fn refusals_ask_for_a_token() {
    let mut bench = bench(whole());
    bench.server.require_token("hf_right");
    let message = bench.message("hf:owner/name");
    assert!(
        message.contains("(status 401)") && message.contains("a token with access is needed"),
        "{message}"
    );
    assert!(message.ends_with("and none is given"), "{message}");
    bench.settings.token = Some("hf_wrong".to_owned());
    let message = bench.message("hf:owner/name");
    assert!(
        message.contains("(status 403)") && message.ends_with("the one given has none"),
        "{message}"
    );
    bench.settings.token = Some("hf_right".to_owned());
    bench.fetch("hf:owner/name").unwrap();
}

#[test]
fn missing_files_are_named() {
    let message = bench(whole()).message("hf:owner/other");
    assert!(message.starts_with("hf:owner/other: no such repository or revision"), "{message}");
    let mut files = whole();
    files.remove(1);
    let message = bench(files).message("hf:owner/name");
    assert!(message.ends_with("has no file tokenizer.json (status 404)"), "{message}");
    let mut files = whole();
    files.remove(3);
    let message = bench(files).message("hf:owner/name");
    assert!(
        message.contains("no file model.safetensors or model.safetensors.index.json"),
        "{message}"
    );
}

#[test]
fn headers_do_not_become_paths() {
    let bench = bench(whole());
    bench.server.move_to("../../../elsewhere");
    let message = bench.message("hf:owner/name");
    assert!(message.contains("X-Repo-Commit is \"../../../elsewhere\""), "{message}");
    assert_eq!(names(&bench.settings.cache), [".locks"]);
}

#[test]
fn an_interruption_does_not_wait_for_the_network() {
    let bench = bench(whole());
    bench.server.stall("model.safetensors");
    let (start, seen) = (Instant::now(), Cell::new(0));
    let interrupted = || start.elapsed() > Duration::from_secs(20) || seen.get() >= 3;
    let note = |_: &str, _, _| seen.set(seen.get() + 1);
    let caller = HubCaller { interrupted: &interrupted, progress: &note };
    let result = bench.settings.model(&model("hf:owner/name"), caller);
    assert!(matches!(result, Err(HubError::Interrupted { .. })), "{result:?}");
    assert!(start.elapsed() < Duration::from_secs(10));
    // Asked before anything starts.
    let caller = HubCaller { interrupted: &|| true, ..PATIENT };
    let result = bench.settings.model(&model("hf:owner/name"), caller);
    assert!(matches!(result, Err(HubError::Interrupted { .. })), "{result:?}");
}

#[test]
fn variables_are_read_as_python_does() {
    let user = tempfile::tempdir().unwrap();
    let read = |set: &[(&str, &str)]| {
        let find = |name: &str| {
            set.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        };
        HubSettings::from_variables(&find, Some(user.path().to_owned())).unwrap()
    };
    let home = user.path().join(".cache").join("huggingface");
    let usual = read(&[]);
    assert_eq!((usual.cache, usual.token, usual.offline), (home.join("hub"), None, false));
    assert_eq!(usual.endpoint, "https://huggingface.co");
    fs_err::create_dir_all(&home).unwrap();
    fs_err::write(home.join("token"), "hf_file\n").unwrap();
    assert_eq!(read(&[]).token.as_deref(), Some("hf_file"));
    assert_eq!(read(&[("HF_TOKEN", " hf_env ")]).token.as_deref(), Some("hf_env"));
    let other =
        read(&[("HF_HOME", "/h"), ("HF_ENDPOINT", "http://mirror/"), ("HF_HUB_OFFLINE", "1")]);
    assert_eq!(other.cache, std::path::absolute("/h/hub").unwrap());
    assert_eq!(
        (other.endpoint.as_str(), other.token, other.offline),
        ("http://mirror", None, true)
    );
    assert_eq!(
        read(&[("HF_HUB_CACHE", "/c"), ("HF_HOME", "/h")]).cache,
        std::path::absolute("/c").unwrap()
    );
    assert!(matches!(HubSettings::from_variables(&|_| None, None), Err(HubError::NoHome)));
}
